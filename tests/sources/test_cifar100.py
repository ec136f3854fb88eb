"""CIFAR-100 from the disk: every kind of source, the cache, and files that are broken or hostile."""

import gzip
import hashlib
import io
import os
import pickle
import random
import struct
import tarfile
import time
import tracemalloc
import zipfile

import numpy as np
import pytest
import torch
from archives import SMALL, SmallCifar, python2_pickle, tar_gz, write_files, zip_of
from torchvision.io import encode_jpeg, encode_png

import data
from running.files import UserError
from sources import cifar100, download

KINDS = ["folder", "tar", "png", "png below", "zip"]


@pytest.fixture(autouse=True)
def no_network(monkeypatch):
    """Nothing here is ever downloaded."""
    monkeypatch.setattr(download, "SOURCES", {})


def same(a, b):
    """Whether two datasets have the same content."""
    return (
        torch.equal(a.images, b.images)
        and torch.equal(a.labels, b.labels)
        and a.filenames == b.filenames
        and a.digest == b.digest
    )


def check_content(dataset, small, split):
    """Compare a dataset with what the files were made from, in the order that load_cifar100 promises."""
    images, labels, names = small.splits[split]
    expected = sorted(zip(labels.tolist(), names, [x.tobytes() for x in images], strict=True))
    assert dataset.labels.tolist() == [label for label, _, _ in expected]
    assert dataset.filenames == [name for _, name, _ in expected]
    assert [x.tobytes() for x in dataset.images.numpy()] == [x for _, _, x in expected]
    assert dataset.images.dtype == torch.uint8 and dataset.images.shape[1:] == (3, 32, 32)
    assert dataset.labels.dtype == torch.int64
    assert dataset.digest == small.digests()[split]


# ---------------------------------------------------------------------------------------------------------
# What the sources hold


def test_the_test_files_are_pickles_as_python_reads_them():
    for name, record in SMALL.records().items():
        read = pickle.loads(SMALL.pickles()[name], encoding="latin1")
        data_read, data_written = read.pop("data", None), record.pop("data", None)
        assert read == record
        assert np.array_equal(data_read, data_written)


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_source_gives_the_same_datasets(kind, tmp_path):
    SMALL.write(tmp_path, kind)
    for again in (False, True):  # the second time from the cache
        train, test = data.load("cifar100", tmp_path)
        check_content(train, SMALL, "train")
        check_content(test, SMALL, "test")
        for dataset in (train, test):
            assert dataset.name == "cifar100" and dataset.masks is None and not dataset.verified
            assert "300 training and 200 test" in dataset.provenance and "not verified" in dataset.provenance
            assert (dataset.class_names, dataset.superclass_names) == (
                cifar100.CLASS_NAMES,
                cifar100.SUPERCLASS_NAMES,
            )
            assert dataset.superclass_of.dtype == torch.int64 and len(dataset.superclass_of) == 100
        assert (tmp_path / "cifar100-cache.npz").exists(), again


def test_pickles_that_python_3_writes_are_read_too(tmp_path):
    for protocol in (3, 4):
        pickles = {name: pickle.dumps(x, protocol) for name, x in SMALL.records().items()}
        write_files(tmp_path / str(protocol) / "cifar-100-python", pickles)
        check_content(data.load_cifar100(tmp_path / str(protocol))[0], SMALL, "train")


def test_files_beside_the_set_are_no_source(tmp_path):
    write_files(tmp_path / "another set", {"train/dog/1.png": b"", "test/dog/1.png": b""})
    write_files(tmp_path / ".hidden", {"notes.txt": b""})
    (tmp_path / "AAA.zip").write_bytes(zip_of({"readme.txt": b"hello"}))
    SMALL.write(tmp_path, "zip")
    check_content(data.load_cifar100(tmp_path)[1], SMALL, "test")


def test_extra_files_in_a_source_are_left_aside(tmp_path):
    extra = {
        "README.md": b"hello",
        "__MACOSX/train/apple/._1.png": b"resource fork",
        "train/notes.txt": b"",
        "train/apple/Thumbs.db": b"",
    }
    (tmp_path / "set.zip").write_bytes(zip_of(SMALL.pngs() | extra))
    check_content(data.load_cifar100(tmp_path)[0], SMALL, "train")
    folder = tmp_path / "below"
    write_files(folder, SMALL.pngs() | extra)
    check_content(data.load_cifar100(folder)[0], SMALL, "train")


def test_superclass_table_is_complete():
    members = [names.split() for names in cifar100.SUPERCLASSES.values()]
    assert [len(names) for names in members] == [5] * 20
    flat = [name for names in members for name in names]
    assert len(set(flat)) == 100 and sorted(flat) == cifar100.CLASS_NAMES
    assert sorted(cifar100.SUPERCLASS_NAMES) == cifar100.SUPERCLASS_NAMES  # as in the official file
    for i, name in enumerate(cifar100.CLASS_NAMES):
        assert name in cifar100.SUPERCLASSES[cifar100.SUPERCLASS_NAMES[cifar100.SUPERCLASS_OF[i]]].split()


def test_digest_is_over_the_sorted_records():
    generator = np.random.default_rng(1)
    images = generator.integers(0, 256, (50, 3, 32, 32), dtype=np.uint8)
    images[1] = images[0]
    labels = generator.integers(0, 100, 50)
    records = sorted(bytes([label]) + image.tobytes() for label, image in zip(labels, images, strict=True))
    expected = hashlib.sha256(b"".join(records)).hexdigest()
    assert cifar100.content_digest(images, labels) == expected
    order = generator.permutation(50)
    assert cifar100.content_digest(images[order], labels[order]) == expected
    changed = images.copy()
    changed[7, 2, 31, 31] ^= 1
    assert cifar100.content_digest(changed, labels) != expected
    assert cifar100.content_digest(images, np.roll(labels, 1)) != expected


def test_only_the_official_content_is_verified(tmp_path, monkeypatch):
    small = SMALL
    monkeypatch.setattr(cifar100, "OFFICIAL_DIGEST", small.digests())
    monkeypatch.setattr(cifar100, "OFFICIAL_COUNT", {"train": 300, "test": 200})
    (tmp_path / "whole").mkdir()
    small.write(tmp_path / "whole", "tar")
    for dataset in data.load_cifar100(tmp_path / "whole"):
        assert dataset.verified and "verified: the content digest" in dataset.provenance

    changed = SmallCifar()
    changed.splits["test"][0][5, 0, 0, 0] ^= 1
    (tmp_path / "changed").mkdir()
    changed.write(tmp_path / "changed", "tar")
    for dataset in data.load_cifar100(tmp_path / "changed"):
        assert not dataset.verified and "NOT verified" in dataset.provenance


# ---------------------------------------------------------------------------------------------------------
# The cache


def forbid_reading(monkeypatch):
    def refuse(source):
        raise AssertionError("the source was read")

    monkeypatch.setattr(cifar100, "read_source", refuse)


@pytest.mark.parametrize("kind", KINDS)
def test_cache_serves_while_the_source_is_unchanged_or_gone(kind, tmp_path, monkeypatch):
    source = SMALL.write(tmp_path, kind)
    first = data.load_cifar100(tmp_path)
    forbid_reading(monkeypatch)
    assert all(map(same, data.load_cifar100(tmp_path), first))
    if kind != "png":  # there the folder of the data is the source
        source.rename(tmp_path.parent / f"gone {kind}")
        assert all(map(same, data.load_cifar100(tmp_path), first))


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_cache_is_made_again_when_the_source_changes(kind, tmp_path):
    SMALL.write(tmp_path, kind)
    data.load_cifar100(tmp_path)
    other = SmallCifar(per_class=(4, 2), seed=1)
    source = other.write(tmp_path, kind)
    if kind.startswith("png"):  # the first set's files are still there
        for split, (_, labels, names) in SMALL.splits.items():
            for label, name in zip(labels, names, strict=True):
                if (label, name) not in set(zip(other.splits[split][1], other.splits[split][2], strict=True)):
                    (source / split / cifar100.CLASS_NAMES[label] / name).unlink()
    for _ in range(2):
        check_content(data.load_cifar100(tmp_path)[0], other, "train")


def test_a_source_of_the_same_size_but_another_time_is_read_again(tmp_path):
    source = SMALL.write(tmp_path, "folder")
    data.load_cifar100(tmp_path)
    times = (source / "train").stat()
    changed = SmallCifar()
    changed.splits["train"][0][0, 0, 0, 0] ^= 255
    changed.write(tmp_path, "folder")
    os.utime(source / "train", ns=(times.st_atime_ns, times.st_mtime_ns + 1))
    check_content(data.load_cifar100(tmp_path)[0], changed, "train")


def without(arrays, name):
    return {key: value for key, value in arrays.items() if key != name}


DAMAGE = {
    "empty": lambda content, arrays: b"",
    "cut": lambda content, arrays: content[: len(content) // 2],
    "one bit": lambda content, arrays: content[:500_000] + bytes([content[500_000] ^ 1]) + content[500_001:],
    "a web page": lambda content, arrays: b"<!DOCTYPE html><html></html>",
    "a pickle": lambda content, arrays: pickle.dumps(arrays),
    "no labels": lambda content, arrays: npz(without(arrays, "train_labels")),
    "objects": lambda content, arrays: npz(arrays | {"train_filenames": np.array([{}] * 300)}),
    "label 100": lambda content, arrays: npz(arrays | {"test_labels": arrays["test_labels"] + 1}),
    "float images": lambda content, arrays: npz(arrays | {"test_images": arrays["test_images"] / 255}),
    "one label less": lambda content, arrays: npz(arrays | {"train_labels": arrays["train_labels"][1:]}),
}


def npz(arrays):
    out = io.BytesIO()
    np.savez(out, **arrays)
    return out.getvalue()


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_cache_is_made_again(damage, tmp_path, monkeypatch, capsys):
    SMALL.write(tmp_path, "tar")
    data.load_cifar100(tmp_path)
    cache = tmp_path / "cifar100-cache.npz"
    with np.load(cache) as file:
        arrays = dict(file)
    cache.write_bytes(DAMAGE[damage](cache.read_bytes(), arrays))
    check_content(data.load_cifar100(tmp_path)[0], SMALL, "train")
    assert f"{cache} is damaged" in capsys.readouterr().out
    forbid_reading(monkeypatch)
    check_content(data.load_cifar100(tmp_path)[0], SMALL, "train")
    assert capsys.readouterr().out == ""


def test_a_folder_that_cannot_be_written_to_is_used_without_a_cache(plain_user, capsys):
    SMALL.write(plain_user, "folder")
    plain_user.chmod(0o555)
    for _ in range(2):
        check_content(data.load_cifar100(plain_user)[0], SMALL, "train")
        assert "no cache was written" in capsys.readouterr().out
    assert [path.name for path in plain_user.iterdir()] == ["cifar-100-python"]


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="/dev/full is a device of Linux")
def test_a_disk_that_is_full_when_the_cache_is_written(tmp_path, capsys):
    SMALL.write(tmp_path, "tar")
    os.symlink("/dev/full", tmp_path / f".cifar100-cache.npz.{os.getpid()}.tmp")
    check_content(data.load_cifar100(tmp_path)[0], SMALL, "train")
    assert "no cache was written" in capsys.readouterr().out
    assert [path.name for path in tmp_path.iterdir()] == ["cifar-100-python.tar.gz"]


# ---------------------------------------------------------------------------------------------------------
# Hostile and broken files: one line, and nothing else happens


def refusal(root):
    """Load from `root`, which must fail with one line and change nothing; return the line."""
    before = sorted(str(path) for path in root.parent.rglob("*"))
    started = time.monotonic()
    with pytest.raises(UserError) as caught:
        data.load_cifar100(root)
    assert time.monotonic() - started < 20
    assert sorted(str(path) for path in root.parent.rglob("*")) == before
    message = str(caught.value)
    assert "\n" not in message and message.isprintable() and 20 < len(message) < 700
    return message


def official_files(kind, root, **changes):
    """Write the official layout with some of its files replaced (None: left out)."""
    files = SMALL.pickles() | changes
    files = {f"cifar-100-python/{name}": content for name, content in files.items() if content is not None}
    root.mkdir(exist_ok=True)
    if kind == "tar":
        (root / "cifar-100-python.tar.gz").write_bytes(tar_gz(files))
    else:
        write_files(root, files)


def call(module, name, *arguments):
    """The end of a pickle that calls a function with strings, or with one list of them."""
    written = b"".join(b"U" + bytes([len(x)]) + x.encode() for x in arguments)
    return f"c{module}\n{name}\n".encode() + b"(" + written + b"tR."


MAKES_A_FILE = {  # called `marker`
    "posix.system": call("posix", "system", "touch marker"),
    "builtins.exec": call("builtins", "exec", "open('marker', 'w')"),
    "__builtin__.eval": call("__builtin__", "eval", "open('marker', 'w')"),
    "os.mkdir": b"(U\x06markerios\nmkdir\n.",
    "subprocess.getoutput": call("subprocess", "getoutput", "touch marker"),
}
NAMES = MAKES_A_FILE | {
    "numpy.load": call("numpy", "load", "marker"),
    "numpy.ndarray.tofile": b"\x8c\x05numpy\x8c\x0endarray.tofile\x93.",
    "numpy.core.multiarray.scalar": b"cnumpy.core.multiarray\nscalar\n.",
    "copyreg._reconstructor": b"ccopyreg\n_reconstructor\n.",
    "data.load": b"cdata\nload\n.",
}


@pytest.mark.parametrize("name", NAMES)
def test_a_pickle_that_calls_anything_is_refused(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    protocol = b"\x80\x04" if b"\x93" in NAMES[name] else b"\x80\x02"
    for kind in ("folder", "tar"):
        official_files(kind, tmp_path / kind, train=protocol + NAMES[name])
        message = refusal(tmp_path / kind)
        assert "refused: the pickle asks for" in message and name in message
        assert str(tmp_path / kind) in message


PICKLES = {
    "an array of objects": (b"cnumpy\ndtype\n(U\x01OK\x00K\x01tR.", "refused: the pickle holds an array of"),
    "a type made of fields": (b"cnumpy\ndtype\n(U\x02V8K\x00K\x01tR.", "refused: the pickle holds an array"),
    "a persistent id": (b"U\x01xQ.", "persistent"),
    "an extension": (b"\x82\x01.", "unregistered extension"),
    "cut": (b"}(U\x10fine_label", "cut|truncated|ran out|EOF"),
    "empty": (b"", "Ran out of input"),
    "a web page": (b"<!DOCTYPE html>", "invalid load key"),
    "an array of petabytes": (
        b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(\x8a\x07\0\0\0\0\0\0\x04tU\x01btR.",
        "allocate|too big|too large|array",
    ),
    "a list": (b"].", "no file `train`"),
    "a number": (b"K\x07.", "no file `train`"),
}


@pytest.mark.parametrize("name", PICKLES)
def test_a_pickle_of_something_else_is_one_line(name, tmp_path):
    content, expected = PICKLES[name]
    protocol = b"" if name in ("empty", "a web page") else b"\x80\x02"
    official_files("folder", tmp_path / "data", train=protocol + content)
    message = refusal(tmp_path / "data")
    assert any(part in message for part in expected.split("|")), message


def nested(depth):
    """A list that takes little room until someone looks at all of it: 10**depth numbers."""
    value = [1] * 10
    for _ in range(depth - 1):
        value = [value] * 10
    return value


RECORDS = {
    "a label of 100": (
        lambda r: r["fine_labels"].__setitem__(5, 100),
        "labels are 0 to 100, expected 0 to 99",
    ),
    "a label of -1": (lambda r: r["fine_labels"].__setitem__(5, -1), "labels are -1 to 99, expected 0 to 99"),
    "a label of 2**70": (lambda r: r["fine_labels"].__setitem__(5, 2**70), "too large|too big"),
    "a label that is text": (lambda r: r["fine_labels"].__setitem__(5, "7"), "not a whole number"),
    "a label that is true": (lambda r: r["fine_labels"].__setitem__(5, True), "not a whole number"),
    "labels that nest": (lambda r: r["fine_labels"].__setitem__(5, nested(12)), "not a whole number"),
    "labels in a string": (lambda r: r.update(fine_labels="7" * 200), "not a whole number"),
    "a label too many": (lambda r: r["fine_labels"].append(1), "lacks one label and one file name"),
    "a file name too few": (lambda r: r["filenames"].pop(), "lacks one label and one file name"),
    "an image too few": (lambda r: r.update(data=r["data"][1:]), "lacks one label and one file name"),
    "a long file name": (lambda r: r["filenames"].__setitem__(5, "x" * 1_000_000), "under 256 characters"),
    "a number as file name": (lambda r: r["filenames"].__setitem__(5, 7), "under 256 characters"),
    "images of a wrong size": (lambda r: r.update(data=r["data"][:, :3071]), "rows of 3,072 pixels"),
    "images in 4 dimensions": (lambda r: r.update(data=r["data"].reshape(-1, 32, 32, 3)), "rows of 3,072"),
    "pixels in one row": (lambda r: r.update(data=r["data"][:, 0]), "rows of 3,072 pixels"),
    "images as lists": (lambda r: r.update(data=nested(12)), "rows of 3,072 pixels"),
    "floating-point images": (lambda r: r.update(data=r["data"] / 255), "refused: the pickle holds an array"),
    "no data": (lambda r: r.pop("data"), "no file `test` with data, fine_labels, filenames"),
    "no image": (
        lambda r: r.update(data=r["data"][:0], fine_labels=[], filenames=[]),
        "test: 100 of the 100 classes have no image",
    ),
    "a class without image": (
        lambda r: r.update(fine_labels=[label or 1 for label in r["fine_labels"]]),
        "test: 1 of the 100 classes have no image (apple",
    ),
}


@pytest.mark.parametrize("kind", ["folder", "tar"])
@pytest.mark.parametrize("name", RECORDS)
def test_official_files_with_wrong_content(name, kind, tmp_path):
    change, expected = RECORDS[name]
    record = SMALL.records()["test"]
    change(record)
    content = pickle.dumps(record, 4) if "2**70" in name or "nest" in name or "lists" in name else None
    content = content or python2_pickle(record)
    official_files(kind, tmp_path / "data", test=content)
    message = refusal(tmp_path / "data")
    assert any(part in message for part in expected.split("|")), message


def test_more_images_than_cifar100_has(tmp_path, monkeypatch):
    monkeypatch.setattr(cifar100, "OFFICIAL_COUNT", {"train": 300, "test": 199})
    (tmp_path / "data").mkdir()
    SMALL.write(tmp_path / "data", "zip")
    assert "more than the 199 test images" in refusal(tmp_path / "data")


def test_class_names_of_another_set(tmp_path):
    names = ["airplane", *cifar100.CLASS_NAMES[1:]]
    for value in (names, cifar100.CLASS_NAMES[:99], "apple", 7):
        meta = python2_pickle({"fine_label_names": value})
        official_files("folder", tmp_path / "data", meta=meta)
        assert "class names in `meta` are not those of CIFAR-100" in refusal(tmp_path / "data")


@pytest.mark.parametrize("absent", ["meta", "train", "test"])
@pytest.mark.parametrize("kind", ["folder", "tar"])
def test_an_official_file_that_is_absent(kind, absent, tmp_path):
    official_files(kind, tmp_path / "data", **{absent: None})
    assert absent in refusal(tmp_path / "data")


def test_an_official_folder_that_is_empty_or_holds_no_files(tmp_path):
    (tmp_path / "empty" / "cifar-100-python").mkdir(parents=True)
    message = refusal(tmp_path / "empty")
    assert "there is no file" in message and "meta" in message
    official_files("folder", tmp_path / "pipe", train=None)
    os.mkfifo(tmp_path / "pipe" / "cifar-100-python" / "train")  # opening it would wait for a writer
    assert "train is not a regular file" in refusal(tmp_path / "pipe")


def member(name, kind=tarfile.REGTYPE, linkname=""):
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, linkname
    return info


TAR_MEMBERS = {
    "symbolic link": member("cifar-100-python/train", tarfile.SYMTYPE, "/etc/passwd"),
    "hard link": member("cifar-100-python/train", tarfile.LNKTYPE, "../../etc/passwd"),
    "character device": member("cifar-100-python/train", tarfile.CHRTYPE),
    "block device": member("cifar-100-python/train", tarfile.BLKTYPE),
    "named pipe": member("cifar-100-python/train", tarfile.FIFOTYPE),
}


@pytest.mark.parametrize("name", TAR_MEMBERS)
def test_a_tar_member_that_is_no_plain_file(name, tmp_path):
    files = {f"cifar-100-python/{key}": content for key, content in SMALL.pickles().items()}
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "cifar-100-python.tar.gz").write_bytes(
        tar_gz(files | {"cifar-100-python/train": TAR_MEMBERS[name]})
    )
    assert "refused: member 'cifar-100-python/train'" in refusal(tmp_path / "data")


def test_a_tar_that_unpacks_to_far_more(tmp_path, monkeypatch):
    monkeypatch.setattr(cifar100, "MAX_UNPACKED", 20_000_000)
    root = tmp_path / "data"
    root.mkdir()
    path = root / "cifar-100-python.tar.gz"
    files = {f"cifar-100-python/{key}": content for key, content in SMALL.pickles().items()}
    bombs = {
        "one large member": tar_gz(files | {"cifar-100-python/train": bytes(30_000_000)}),
        "another large member": tar_gz({"junk": bytes(30_000_000)} | files),
        "a large header": tar_gz(files | {"x" * 25_000_000: b""}),
        "zeros at the end": gzip.compress(gzip.decompress(tar_gz(files)) + bytes(30_000_000)),
        "no tar at all": gzip.compress(bytes(30_000_000)),
    }
    for name, content in bombs.items():
        path.write_bytes(content)
        assert "unpacks to more than the 20 MB allowed" in refusal(root), name


def test_a_tar_is_not_unpacked_beyond_the_limit(tmp_path, monkeypatch):
    monkeypatch.setattr(cifar100, "MAX_UNPACKED", 20_000_000)
    root = tmp_path / "data"
    root.mkdir()
    (root / "cifar-100-python.tar.gz").write_bytes(gzip.compress(bytes(200_000_000), compresslevel=1))
    tracemalloc.start()
    message = refusal(root)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert "unpacks to more than the 20 MB allowed" in message and peak < 80_000_000


def sparse_member(name, apparent):
    """The header of a tar member that is one hole of `apparent` bytes, in GNU's old format."""
    header = bytearray(member(name, tarfile.GNUTYPE_SPARSE).tobuf(tarfile.GNU_FORMAT))
    header[386 : 386 + 24] = b"%011o\0%011o\0" % (apparent, 0)
    header[483:495] = b"%011o\0" % apparent
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    return bytes(header)


def test_a_tar_with_a_hole_of_gigabytes(tmp_path):
    files = {f"cifar-100-python/{key}": content for key, content in SMALL.pickles().items()}
    del files["cifar-100-python/train"]
    rest = gzip.decompress(tar_gz(files))
    content = sparse_member("cifar-100-python/train", 8_000_000_000) + rest
    with tarfile.open(fileobj=io.BytesIO(content)) as archive:
        assert archive.next().size == 8_000_000_000
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "cifar-100-python.tar.gz").write_bytes(gzip.compress(content))
    assert "refused: member 'cifar-100-python/train'" in refusal(tmp_path / "data")


@pytest.mark.slow
def test_a_file_in_the_official_folder_that_is_far_too_large(tmp_path):
    official_files("folder", tmp_path / "data")
    os.truncate(tmp_path / "data" / "cifar-100-python" / "train", 50_000_000_000)  # a hole, not a full disk
    assert "has more than the 400.0 MB allowed" in refusal(tmp_path / "data")


@pytest.mark.parametrize("kind", ["tar", "zip"])
@pytest.mark.parametrize("share", [0.001, 0.5, 0.9999])
def test_a_truncated_archive(share, kind, tmp_path):
    root = tmp_path / "data"
    root.mkdir()
    path = SMALL.write(root, kind)
    os.truncate(path, int(path.stat().st_size * share))
    assert str(path) in refusal(root)


@pytest.mark.parametrize("kind", ["tar", "zip"])
def test_an_archive_with_a_changed_byte(kind, tmp_path):
    """Everywhere a checksum covers the content, or the structure no longer fits."""
    root = tmp_path / "data"
    root.mkdir()
    path = SMALL.write(root, kind)
    content = path.read_bytes()
    rng = random.Random(0)
    refused = 0
    for _ in range(10):
        place = rng.randrange(len(content) // 10, len(content) * 8 // 10)
        path.write_bytes(content[:place] + bytes([content[place] ^ 0x10]) + content[place + 1 :])
        try:
            loaded = cifar100.read_source(path)
        except UserError as error:
            assert str(path) in str(error)
            refused += 1
        else:  # a byte that says nothing, such as a time
            assert loaded["train_digest"] == SMALL.digests()["train"]
    assert refused >= 5


@pytest.mark.parametrize("name", ["cifar-100-python.tar.gz", "cifar-100.zip"])
def test_a_web_page_saved_as_an_archive(name, tmp_path):
    root = tmp_path / "data"
    root.mkdir()
    (root / name).write_bytes(b"<!DOCTYPE html>\n<html><title>Please log in</title></html>" * 10)
    message = refusal(root)
    assert "neither a zip nor a tar.gz archive; is it a saved web page?" in message and name in message
    (root / name).write_bytes(b"")
    assert "neither a zip nor a tar.gz" in refusal(root)


def png(image):
    return encode_png(image).numpy().tobytes()


def png_header(width, height, depth=8, colour=2):
    """A PNG that is all header; decoders make room for its pixels before they miss them."""
    return struct.pack(
        ">8sI4sIIBBBBB", b"\x89PNG\r\n\x1a\n", 13, b"IHDR", width, height, depth, colour, 0, 0, 0
    )


GREEN = torch.full((3, 32, 32), 99, dtype=torch.uint8)
PICTURES = {
    "too wide": (png(torch.zeros(3, 32, 33, dtype=torch.uint8)), "32x32 pixels in 8-bit RGB"),
    "too high": (png(torch.zeros(3, 64, 32, dtype=torch.uint8)), "32x32 pixels in 8-bit RGB"),
    "grey": (png(torch.zeros(1, 32, 32, dtype=torch.uint8)), "32x32 pixels in 8-bit RGB"),
    "with a palette": (png_header(32, 32, 8, 3), "32x32 pixels in 8-bit RGB"),
    "with transparency": (png_header(32, 32, 8, 6), "32x32 pixels in 8-bit RGB"),
    "16 bits": (png_header(32, 32, 16, 2), "32x32 pixels in 8-bit RGB"),
    "of billions of pixels": (png_header(60_000, 60_000), "32x32 pixels in 8-bit RGB"),
    "a JPEG": (encode_jpeg(GREEN).numpy().tobytes(), "is not a PNG file"),
    "text": (b"hello", "is not a PNG file"),
    "empty": (b"", "is not a PNG file"),
    "a header only": (png_header(32, 32), "cannot be used"),
    "cut": (png(GREEN)[:60], "cannot be used"),
    "damaged": (png(GREEN)[:50] + b"\xff\0" + png(GREEN)[52:], "cannot be used"),
    "over 100 kB": (png(GREEN) + bytes(120_000), "PNG|0.1 MB allowed"),
}


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["zip", "folder"])
@pytest.mark.parametrize("name", PICTURES)
def test_a_picture_that_is_none_of_cifar100(name, kind, tmp_path):
    content, expected = PICTURES[name]
    files = SMALL.pngs() | {"test/bee/bad.png": content}
    root = tmp_path / "data"
    root.mkdir()
    if kind == "zip":
        (root / "set.zip").write_bytes(zip_of(files))
    else:
        write_files(root, files)
    message = refusal(root)
    assert "test/bee/bad.png" in message and any(part in message for part in expected.split("|")), message


def test_a_zip_member_that_unpacks_to_far_more(tmp_path, monkeypatch):
    """Sizes are counted as they are read: the member of 20 MB states 100 bytes, or is of another method."""
    root = tmp_path / "data"
    root.mkdir()
    bomb = png(GREEN) + bytes(20_000_000)
    files = SMALL.pngs() | {"train/bee/bomb.png": bomb}
    content = zip_of(files)
    lying = content.replace(len(bomb).to_bytes(4, "little"), (100).to_bytes(4, "little"))
    assert lying != content
    most = 0

    def watched(content):
        nonlocal most
        most = max(most, len(content))
        return decode(content)

    decode = cifar100.decode_png
    monkeypatch.setattr(cifar100, "decode_png", watched)
    for archive in (content, lying):
        (root / "set.zip").write_bytes(archive)
        assert "train/bee/bomb.png" in refusal(root)
    assert most <= cifar100.MAX_PNG + 1
    for method in (zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA):
        (root / "set.zip").write_bytes(zip_of(SMALL.pngs(), method))
        assert "compressed by another method than deflate" in refusal(root)


def test_a_zip_with_a_password(tmp_path):
    root = tmp_path / "data"
    root.mkdir()
    content = bytearray(SMALL.zip())
    content[content.index(b"PK\1\2") + 8] |= 1  # the flag of an encrypted member, in the directory
    (root / "set.zip").write_bytes(content)
    assert "encrypted" in refusal(root)


def test_a_picture_that_is_there_twice(tmp_path):
    root = tmp_path / "data"
    root.mkdir()
    files = SMALL.pngs()
    again = {f"copy/{name}": content for name, content in files.items()}
    (root / "set.zip").write_bytes(zip_of(files | again))
    assert "twice" in refusal(root)


def test_a_class_that_cifar100_has_not(tmp_path):
    files = SMALL.pngs() | {"test/\x1b[31mairplane/1.png": png(GREEN)}
    write_files(tmp_path / "data", files)
    assert "airplane is not one of CIFAR-100's class names" in refusal(tmp_path / "data")


@pytest.mark.parametrize("kind", ["png", "png below", "zip"])
@pytest.mark.parametrize("absent", ["train/", "test/", "train/bee/", "test/seal/"])
def test_a_png_source_without_a_split_or_a_class(absent, kind, tmp_path):
    files = {name: x for name, x in SMALL.pngs().items() if not name.startswith(absent)}
    root = tmp_path / "data"
    root.mkdir()
    if kind == "zip":
        (root / "set.zip").write_bytes(zip_of(files))
    else:
        write_files(root if kind == "png" else root / "set", files)
    message = refusal(root)
    split, name, *_ = [*absent.split("/"), ""]
    expected = f"{split}: 1 of the 100 classes have no image ({name}" if name else f"no {split}/<class>"
    assert expected in message


def test_a_zip_without_pictures(tmp_path):
    root = tmp_path / "data"
    root.mkdir()
    (root / "holiday.zip").write_bytes(zip_of({"beach.jpg": b"sand"}))
    message = refusal(root)
    assert "holiday.zip" in message and "no train/<class>/<name>.png" in message


def test_a_data_folder_that_is_a_file(tmp_path):
    (tmp_path / "data").write_text("hello")
    assert "data cannot be written (File exists)" in refusal(tmp_path / "data")


# ---------------------------------------------------------------------------------------------------------
# CIFAR-100 itself


@pytest.fixture(scope="module")
def real():
    if "CIFAR100_ROOT" not in os.environ:
        pytest.skip("CIFAR100_ROOT names no folder with CIFAR-100")
    return data.load("cifar100", os.environ["CIFAR100_ROOT"])


def test_real_set_is_verified_and_complete(real):
    train, test = real
    for dataset, count in ((train, 500), (test, 100)):
        assert dataset.verified and "verified: the content digest is the official one" in dataset.provenance
        assert torch.bincount(dataset.labels).tolist() == [count] * 100
        assert len(set(zip(dataset.labels.tolist(), dataset.filenames, strict=True))) == 100 * count


def test_real_superclasses_are_those_of_the_official_files(real):
    folder = os.path.join(os.environ["CIFAR100_ROOT"], "cifar-100-python")
    if not os.path.isdir(folder):
        pytest.skip("CIFAR100_ROOT holds no official folder")
    with open(os.path.join(folder, "meta"), "rb") as file:
        meta = pickle.load(file, encoding="latin1")
    with open(os.path.join(folder, "test"), "rb") as file:
        record = pickle.load(file, encoding="latin1")
    assert meta["coarse_label_names"] == cifar100.SUPERCLASS_NAMES
    assert [cifar100.SUPERCLASS_OF[label] for label in record["fine_labels"]] == record["coarse_labels"]


def test_real_start_from_the_cache_takes_under_half_a_second(real):
    times = []
    for _ in range(5):
        started = time.process_time()  # of this process, whatever else the machine does
        data.load("cifar100", os.environ["CIFAR100_ROOT"])
        times.append(time.process_time() - started)
    assert min(times) < 0.5

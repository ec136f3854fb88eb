"""CIFAR-100 from the disk, the shapes set, the split and the batches, each against a second computation."""

import gzip
import hashlib
import io
import os
import pickle
import random
import resource
import stat
import subprocess
import sys
import tarfile
import time
import tracemalloc
import zipfile
from collections import Counter

import numpy as np
import pytest
import torch
from torchvision import transforms
from torchvision.io import encode_jpeg, encode_png

import data

KINDS = ["folder", "tar", "png", "png below", "zip"]

pytestmark = pytest.mark.usefixtures("loopback_only")


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


def test_the_test_files_are_pickles_as_python_reads_them(cifar_files):
    for name, record in cifar_files.small.records().items():
        read = pickle.loads(cifar_files.small.pickles()[name], encoding="latin1")
        data_read, data_written = read.pop("data", None), record.pop("data", None)
        assert read == record
        assert np.array_equal(data_read, data_written)


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_source_gives_the_same_datasets(kind, tmp_path, cifar_files):
    cifar_files.small.write(tmp_path, kind)
    for again in (False, True):  # the second time from the cache
        train, test = data.load("cifar100", tmp_path)
        check_content(train, cifar_files.small, "train")
        check_content(test, cifar_files.small, "test")
        for dataset in (train, test):
            assert dataset.name == "cifar100" and dataset.masks is None and not dataset.verified
            assert "300 training and 200 test" in dataset.provenance and "not verified" in dataset.provenance
            assert (dataset.class_names, dataset.superclass_names) == (
                data.CLASS_NAMES,
                data.SUPERCLASS_NAMES,
            )
            assert dataset.superclass_of.dtype == torch.int64 and len(dataset.superclass_of) == 100
        assert (tmp_path / "cifar100-cache.npz").exists(), again


def test_pickles_that_python_3_writes_are_read_too(tmp_path, cifar_files):
    for protocol in (3, 4):
        pickles = {name: pickle.dumps(x, protocol) for name, x in cifar_files.small.records().items()}
        cifar_files.write_files(tmp_path / str(protocol) / "cifar-100-python", pickles)
        check_content(data.load_cifar100(tmp_path / str(protocol))[0], cifar_files.small, "train")


def test_files_beside_the_set_are_no_source(tmp_path, cifar_files):
    cifar_files.write_files(tmp_path / "another set", {"train/dog/1.png": b"", "test/dog/1.png": b""})
    cifar_files.write_files(tmp_path / ".hidden", {"notes.txt": b""})
    (tmp_path / "AAA.zip").write_bytes(cifar_files.zip_of({"readme.txt": b"hello"}))
    cifar_files.small.write(tmp_path, "zip")
    check_content(data.load_cifar100(tmp_path)[1], cifar_files.small, "test")


def test_extra_files_in_a_source_are_left_aside(tmp_path, cifar_files):
    extra = {
        "README.md": b"hello",
        "__MACOSX/train/apple/._1.png": b"resource fork",
        "train/notes.txt": b"",
        "train/apple/Thumbs.db": b"",
    }
    (tmp_path / "set.zip").write_bytes(cifar_files.zip_of(cifar_files.small.pngs() | extra))
    check_content(data.load_cifar100(tmp_path)[0], cifar_files.small, "train")
    folder = tmp_path / "below"
    cifar_files.write_files(folder, cifar_files.small.pngs() | extra)
    check_content(data.load_cifar100(folder)[0], cifar_files.small, "train")


def test_superclass_table_is_complete():
    members = [names.split() for names in data.SUPERCLASSES.values()]
    assert [len(names) for names in members] == [5] * 20
    flat = [name for names in members for name in names]
    assert len(set(flat)) == 100 and sorted(flat) == data.CLASS_NAMES
    assert sorted(data.SUPERCLASS_NAMES) == data.SUPERCLASS_NAMES  # as in the official file
    for i, name in enumerate(data.CLASS_NAMES):
        assert name in data.SUPERCLASSES[data.SUPERCLASS_NAMES[data.SUPERCLASS_OF[i]]].split()


def test_digest_is_over_the_sorted_records():
    generator = np.random.default_rng(1)
    images = generator.integers(0, 256, (50, 3, 32, 32), dtype=np.uint8)
    images[1] = images[0]
    labels = generator.integers(0, 100, 50)
    records = sorted(bytes([label]) + image.tobytes() for label, image in zip(labels, images, strict=True))
    expected = hashlib.sha256(b"".join(records)).hexdigest()
    assert data.content_digest(images, labels) == expected
    order = generator.permutation(50)
    assert data.content_digest(images[order], labels[order]) == expected
    changed = images.copy()
    changed[7, 2, 31, 31] ^= 1
    assert data.content_digest(changed, labels) != expected
    assert data.content_digest(images, np.roll(labels, 1)) != expected


def test_only_the_official_content_is_verified(tmp_path, cifar_files, monkeypatch):
    small = cifar_files.small
    monkeypatch.setattr(data, "OFFICIAL_DIGEST", small.digests())
    monkeypatch.setattr(data, "OFFICIAL_COUNT", {"train": 300, "test": 200})
    (tmp_path / "whole").mkdir()
    small.write(tmp_path / "whole", "tar")
    for dataset in data.load_cifar100(tmp_path / "whole"):
        assert dataset.verified and "verified: the content digest" in dataset.provenance

    changed = cifar_files.SmallCifar()
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

    monkeypatch.setattr(data, "read_source", refuse)


@pytest.mark.parametrize("kind", KINDS)
def test_cache_serves_while_the_source_is_unchanged_or_gone(kind, tmp_path, cifar_files, monkeypatch):
    source = cifar_files.small.write(tmp_path, kind)
    first = data.load_cifar100(tmp_path)
    forbid_reading(monkeypatch)
    assert all(map(same, data.load_cifar100(tmp_path), first))
    if kind != "png":  # there the folder of the data is the source
        source.rename(tmp_path.parent / f"gone {kind}")
        assert all(map(same, data.load_cifar100(tmp_path), first))


@pytest.mark.parametrize("kind", KINDS)
def test_cache_is_made_again_when_the_source_changes(kind, tmp_path, cifar_files):
    cifar_files.small.write(tmp_path, kind)
    data.load_cifar100(tmp_path)
    other = cifar_files.SmallCifar(per_class=(4, 2), seed=1)
    source = other.write(tmp_path, kind)
    if kind.startswith("png"):  # the first set's files are still there
        for split, (_, labels, names) in cifar_files.small.splits.items():
            for label, name in zip(labels, names, strict=True):
                if (label, name) not in set(zip(other.splits[split][1], other.splits[split][2], strict=True)):
                    (source / split / data.CLASS_NAMES[label] / name).unlink()
    for _ in range(2):
        check_content(data.load_cifar100(tmp_path)[0], other, "train")


def test_a_source_of_the_same_size_but_another_time_is_read_again(tmp_path, cifar_files):
    source = cifar_files.small.write(tmp_path, "folder")
    data.load_cifar100(tmp_path)
    times = (source / "train").stat()
    changed = cifar_files.SmallCifar()
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
    "no state": lambda content, arrays: npz(without(arrays, "source_state")),
    "objects": lambda content, arrays: npz(arrays | {"train_filenames": np.array([{}] * 300)}),
    "label 100": lambda content, arrays: npz(arrays | {"test_labels": arrays["test_labels"] + 1}),
    "float images": lambda content, arrays: npz(arrays | {"test_images": arrays["test_images"] / 255}),
    "one label less": lambda content, arrays: npz(arrays | {"train_labels": arrays["train_labels"][1:]}),
    "fewer names": lambda content, arrays: npz(arrays | {"train_filenames": arrays["train_filenames"][1:]}),
}


def npz(arrays):
    out = io.BytesIO()
    np.savez(out, **arrays)
    return out.getvalue()


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_cache_is_made_again(damage, tmp_path, cifar_files, monkeypatch, capsys):
    cifar_files.small.write(tmp_path, "tar")
    data.load_cifar100(tmp_path)
    cache = tmp_path / "cifar100-cache.npz"
    with np.load(cache) as file:
        arrays = dict(file)
    cache.write_bytes(DAMAGE[damage](cache.read_bytes(), arrays))
    check_content(data.load_cifar100(tmp_path)[0], cifar_files.small, "train")
    assert f"{cache} is damaged" in capsys.readouterr().out
    forbid_reading(monkeypatch)
    check_content(data.load_cifar100(tmp_path)[0], cifar_files.small, "train")
    assert capsys.readouterr().out == ""


def test_a_folder_that_cannot_be_written_to_is_used_without_a_cache(plain_user, cifar_files, capsys):
    cifar_files.small.write(plain_user, "folder")
    plain_user.chmod(0o555)
    for _ in range(2):
        check_content(data.load_cifar100(plain_user)[0], cifar_files.small, "train")
        assert "no cache was written" in capsys.readouterr().out
    assert [path.name for path in plain_user.iterdir()] == ["cifar-100-python"]


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="/dev/full is a device of Linux")
def test_a_disk_that_is_full_when_the_cache_is_written(tmp_path, cifar_files, capsys):
    cifar_files.small.write(tmp_path, "tar")
    os.symlink("/dev/full", tmp_path / f".cifar100-cache.npz.{os.getpid()}.tmp")
    check_content(data.load_cifar100(tmp_path)[0], cifar_files.small, "train")
    assert "no cache was written" in capsys.readouterr().out
    assert [path.name for path in tmp_path.iterdir()] == ["cifar-100-python.tar.gz"]


def test_a_limit_on_file_sizes_when_the_cache_is_written(tmp_path, cifar_files):
    cifar_files.small.write(tmp_path, "tar")
    code = "import data, sys; print(data.load_cifar100(sys.argv[1])[0].digest)"
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)],
        capture_output=True,
        text=True,
        cwd=os.path.dirname(data.__file__),
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, 300_000)),
    )
    assert done.returncode == 0, done.stderr
    assert "no cache was written" in done.stdout
    assert done.stdout.split()[-1] == cifar_files.small.digests()["train"]
    assert [path.name for path in tmp_path.iterdir()] == ["cifar-100-python.tar.gz"]


def test_atomic_write_leaves_the_old_file_or_the_whole_new_one(tmp_path):
    path = tmp_path / "file"
    with data.atomic_write(path) as temporary:
        temporary.write_text("old")
    with pytest.raises(ZeroDivisionError), data.atomic_write(path) as temporary:
        temporary.write_text("half of the n")
        assert path.read_text() == "old"
        raise ZeroDivisionError
    assert path.read_text() == "old"
    with data.atomic_write(path) as temporary:
        temporary.write_text("new")
        assert path.read_text() == "old"
    assert path.read_text() == "new" and os.listdir(tmp_path) == ["file"]


# ---------------------------------------------------------------------------------------------------------
# Hostile and broken files: one line, and nothing else happens


def refusal(root):
    """Load from `root`, which must fail with one line and change nothing; return the line."""
    before = sorted(str(path) for path in root.parent.rglob("*"))
    started = time.monotonic()
    with pytest.raises(data.UserError) as caught:
        data.load_cifar100(root)
    assert time.monotonic() - started < 20
    assert sorted(str(path) for path in root.parent.rglob("*")) == before
    message = str(caught.value)
    assert "\n" not in message and message.isprintable() and 20 < len(message) < 700
    return message


def official_files(cifar_files, kind, root, **changes):
    """Write the official layout with some of its files replaced (None: left out)."""
    files = cifar_files.small.pickles() | changes
    files = {f"cifar-100-python/{name}": content for name, content in files.items() if content is not None}
    root.mkdir(exist_ok=True)
    if kind == "tar":
        (root / "cifar-100-python.tar.gz").write_bytes(cifar_files.tar_gz(files))
    else:
        cifar_files.write_files(root, files)


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


@pytest.mark.parametrize("place", ["meta", "train", "test"])
@pytest.mark.parametrize("name", NAMES)
def test_a_pickle_that_calls_anything_is_refused(name, place, tmp_path, cifar_files, monkeypatch):
    monkeypatch.chdir(tmp_path)
    protocol = b"\x80\x04" if b"\x93" in NAMES[name] else b"\x80\x02"
    for kind in ("folder", "tar"):
        official_files(cifar_files, kind, tmp_path / kind, **{place: protocol + NAMES[name]})
        message = refusal(tmp_path / kind)
        assert "refused: the pickle asks for" in message and name in message
        assert str(tmp_path / kind) in message


@pytest.mark.parametrize("name", MAKES_A_FILE)
def test_those_pickles_would_call_it(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    pickle.loads(b"\x80\x02" + MAKES_A_FILE[name], encoding="latin1")
    assert os.path.exists("marker")


PICKLES = {
    "an array of objects": (b"cnumpy\ndtype\n(U\x01OK\x00K\x01tR.", "refused: the pickle holds an array of"),
    "a type made of fields": (b"cnumpy\ndtype\n(U\x02V8K\x00K\x01tR.", "refused: the pickle holds an array"),
    "a persistent id": (b"U\x01xQ.", "persistent"),
    "an extension": (b"\x82\x01.", "unregistered extension"),
    "cut": (b"}(U\x10fine_label", "cut|truncated|ran out|EOF"),
    "empty": (b"", "EOF|ran out"),
    "a web page": (b"<!DOCTYPE html>", "no file `train`"),
    "an array of petabytes": (
        b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(\x8a\x07\0\0\0\0\0\0\x04tU\x01btR.",
        "allocate|too big|too large|array",
    ),
    "a list": (b"].", "no file `train`"),
    "a number": (b"K\x07.", "no file `train`"),
}


@pytest.mark.parametrize("name", PICKLES)
def test_a_pickle_of_something_else_is_one_line(name, tmp_path, cifar_files):
    content, expected = PICKLES[name]
    protocol = b"" if name in ("empty", "a web page") else b"\x80\x02"
    official_files(cifar_files, "folder", tmp_path / "data", train=protocol + content)
    message = refusal(tmp_path / "data")
    assert any(part in message for part in expected.split("|")), message


def test_a_pickle_of_14_bytes_does_not_fill_the_memory(tmp_path, cifar_files):
    """The memo entry with number 500,000,000: an unpickler with a table for a memo fills 8 GB."""
    content = b"\x80\x02Nr" + (500_000_000).to_bytes(4, "little") + b"."
    official_files(cifar_files, "folder", tmp_path / "data", train=content)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert "no file `train`" in refusal(tmp_path / "data")
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 1_000_000  # kB


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
    "a label that is text": (lambda r: r["fine_labels"].__setitem__(5, "7"), "no whole number"),
    "a label that is true": (lambda r: r["fine_labels"].__setitem__(5, True), "no whole number"),
    "labels that nest": (lambda r: r["fine_labels"].__setitem__(5, nested(12)), "no whole number"),
    "labels in a string": (lambda r: r.update(fine_labels="7" * 200), "not one label and one file name"),
    "a label too many": (lambda r: r["fine_labels"].append(1), "not one label and one file name"),
    "a file name too few": (lambda r: r["filenames"].pop(), "not one label and one file name"),
    "an image too few": (lambda r: r.update(data=r["data"][1:]), "not one label and one file name"),
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
def test_official_files_with_wrong_content(name, kind, tmp_path, cifar_files):
    change, expected = RECORDS[name]
    record = cifar_files.small.records()["test"]
    change(record)
    content = pickle.dumps(record, 4) if "2**70" in name or "nest" in name or "lists" in name else None
    content = content or cifar_files.python2_pickle(record)
    official_files(cifar_files, kind, tmp_path / "data", test=content)
    message = refusal(tmp_path / "data")
    assert any(part in message for part in expected.split("|")), message


def test_more_images_than_cifar100_has(tmp_path, cifar_files, monkeypatch):
    monkeypatch.setattr(data, "OFFICIAL_COUNT", {"train": 300, "test": 199})
    expected = {"tar": "it has 200 images, CIFAR-100 only 199", "zip": "more than the 199 test images"}
    for kind, message in expected.items():
        (tmp_path / kind).mkdir()
        cifar_files.small.write(tmp_path / kind, kind)
        assert message in refusal(tmp_path / kind)


def test_class_names_of_another_set(tmp_path, cifar_files):
    names = ["airplane", *data.CLASS_NAMES[1:]]
    for value in (names, data.CLASS_NAMES[:99], "apple", 7):
        meta = cifar_files.python2_pickle({"fine_label_names": value})
        official_files(cifar_files, "folder", tmp_path / "data", meta=meta)
        assert "class names in `meta` are not those of CIFAR-100" in refusal(tmp_path / "data")


@pytest.mark.parametrize("absent", ["meta", "train", "test"])
@pytest.mark.parametrize("kind", ["folder", "tar"])
def test_an_official_file_that_is_absent(kind, absent, tmp_path, cifar_files):
    official_files(cifar_files, kind, tmp_path / "data", **{absent: None})
    assert absent in refusal(tmp_path / "data")


def test_an_official_folder_that_is_empty_or_holds_no_files(tmp_path, cifar_files):
    (tmp_path / "empty" / "cifar-100-python").mkdir(parents=True)
    assert "meta is not there or is no file" in refusal(tmp_path / "empty")
    official_files(cifar_files, "folder", tmp_path / "pipe", train=None)
    os.mkfifo(tmp_path / "pipe" / "cifar-100-python" / "train")  # opening it would wait for a writer
    assert "train is not there or is no file" in refusal(tmp_path / "pipe")


def member(name, kind=tarfile.REGTYPE, linkname=""):
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, linkname
    return info


TAR_MEMBERS = {
    "leads out": member("cifar-100-python/../../evil"),
    "leads out at once": member("../evil"),
    "absolute": member("/tmp/evil"),
    "leads out of Windows": member("..\\evil"),
    "a drive": member("C:\\evil"),
    "symbolic link": member("cifar-100-python/train", tarfile.SYMTYPE, "/etc/passwd"),
    "hard link": member("cifar-100-python/train", tarfile.LNKTYPE, "../../etc/passwd"),
    "character device": member("cifar-100-python/train", tarfile.CHRTYPE),
    "block device": member("cifar-100-python/train", tarfile.BLKTYPE),
    "named pipe": member("cifar-100-python/train", tarfile.FIFOTYPE),
}


@pytest.mark.parametrize("where", ["first", "last"])
@pytest.mark.parametrize("name", TAR_MEMBERS)
def test_a_tar_member_that_leads_out_or_is_no_file(name, where, tmp_path, cifar_files):
    files = {f"cifar-100-python/{key}": content for key, content in cifar_files.small.pickles().items()}
    files = {"x": TAR_MEMBERS[name]} | files if where == "first" else files | {"x": TAR_MEMBERS[name]}
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "cifar-100-python.tar.gz").write_bytes(cifar_files.tar_gz(files))
    message = refusal(tmp_path / "data")
    assert "refused: member" in message and repr(TAR_MEMBERS[name].name) in message


ZIP_MEMBERS = {
    "leads out": "../evil.png",
    "leads out below": "set/train/apple/../../../../evil.png",
    "absolute": "/tmp/evil.png",
    "leads out of Windows": "..\\evil.png",
    "a drive": "C:/evil.png",
    "symbolic link": stat.S_IFLNK | 0o777,
    "character device": stat.S_IFCHR | 0o666,
    "block device": stat.S_IFBLK | 0o666,
    "named pipe": stat.S_IFIFO | 0o666,
}


@pytest.mark.parametrize("name", ZIP_MEMBERS)
def test_a_zip_member_that_leads_out_or_is_no_file(name, tmp_path, cifar_files):
    wrong = ZIP_MEMBERS[name]
    info = zipfile.ZipInfo(wrong if isinstance(wrong, str) else "set/train/apple/1.png")
    if isinstance(wrong, int):
        info.external_attr = wrong << 16
    (tmp_path / "data").mkdir()
    content = cifar_files.zip_of(cifar_files.small.pngs() | {info: b"/etc/passwd"})
    (tmp_path / "data" / "set.zip").write_bytes(content)
    assert "refused: member" in refusal(tmp_path / "data")


def test_a_tar_that_unpacks_to_far_more(tmp_path, cifar_files, monkeypatch):
    monkeypatch.setattr(data, "MAX_UNPACKED", 20_000_000)
    root = tmp_path / "data"
    root.mkdir()
    path = root / "cifar-100-python.tar.gz"
    files = {f"cifar-100-python/{key}": content for key, content in cifar_files.small.pickles().items()}
    bombs = {
        "one large member": cifar_files.tar_gz(files | {"cifar-100-python/train": bytes(30_000_000)}),
        "another large member": cifar_files.tar_gz({"junk": bytes(30_000_000)} | files),
        "a large header": cifar_files.tar_gz(files | {"x" * 25_000_000: b""}),
        "zeros at the end": gzip.compress(gzip.decompress(cifar_files.tar_gz(files)) + bytes(30_000_000)),
        "no tar at all": gzip.compress(bytes(30_000_000)),
    }
    for name, content in bombs.items():
        path.write_bytes(content)
        assert "unpacks to more than the 20 MB allowed" in refusal(root), name

    path.write_bytes(cifar_files.tar_gz(files | {f"file {i}": b"" for i in range(200)}))
    assert "more than 100 members" in refusal(root)


def test_a_tar_is_not_unpacked_beyond_the_limit(tmp_path, monkeypatch):
    monkeypatch.setattr(data, "MAX_UNPACKED", 20_000_000)
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


def test_a_tar_with_a_hole_of_gigabytes(tmp_path, cifar_files):
    files = {f"cifar-100-python/{key}": content for key, content in cifar_files.small.pickles().items()}
    rest = gzip.decompress(cifar_files.tar_gz(files))
    content = sparse_member("cifar-100-python/train", 8_000_000_000) + rest
    with tarfile.open(fileobj=io.BytesIO(content)) as archive:
        assert archive.next().size == 8_000_000_000
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "cifar-100-python.tar.gz").write_bytes(gzip.compress(content))
    assert "refused: member 'cifar-100-python/train'" in refusal(tmp_path / "data")


def test_a_file_in_the_official_folder_that_is_far_too_large(tmp_path, cifar_files):
    official_files(cifar_files, "folder", tmp_path / "data")
    os.truncate(tmp_path / "data" / "cifar-100-python" / "train", 50_000_000_000)  # a hole, not a full disk
    assert "has more than the 400.0 MB allowed" in refusal(tmp_path / "data")


@pytest.mark.parametrize("kind", ["tar", "zip"])
@pytest.mark.parametrize("share", [0.001, 0.1, 0.5, 0.99, 0.9999])
def test_a_truncated_archive(share, kind, tmp_path, cifar_files):
    root = tmp_path / "data"
    root.mkdir()
    path = cifar_files.small.write(root, kind)
    os.truncate(path, int(path.stat().st_size * share))
    assert str(path) in refusal(root)


@pytest.mark.parametrize("kind", ["tar", "zip"])
def test_an_archive_with_a_changed_byte(kind, tmp_path, cifar_files):
    """Everywhere a checksum covers the content, or the structure no longer fits."""
    root = tmp_path / "data"
    root.mkdir()
    path = cifar_files.small.write(root, kind)
    content = path.read_bytes()
    rng = random.Random(0)
    refused = 0
    for _ in range(10):
        place = rng.randrange(len(content) // 10, len(content) * 8 // 10)
        path.write_bytes(content[:place] + bytes([content[place] ^ 0x10]) + content[place + 1 :])
        try:
            loaded = data.read_source(path)
        except data.UserError as error:
            assert str(path) in str(error)
            refused += 1
        else:  # a byte that says nothing, such as a time
            assert loaded["train_digest"] == cifar_files.small.digests()["train"]
    assert refused >= 5


@pytest.mark.parametrize("name", ["cifar-100-python.tar.gz", "cifar-100.zip"])
def test_a_web_page_saved_as_an_archive(name, tmp_path, cifar_files):
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
    return data.struct.pack(
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
    "a JPEG": (encode_jpeg(GREEN).numpy().tobytes(), "is no PNG file"),
    "text": (b"hello", "is no PNG file"),
    "empty": (b"", "is no PNG file"),
    "a header only": (png_header(32, 32), "cannot be used"),
    "cut": (png(GREEN)[:60], "cannot be used"),
    "damaged": (png(GREEN)[:50] + b"\xff\0" + png(GREEN)[52:], "cannot be used"),
    "over 100 kB": (png(GREEN) + bytes(120_000), "PNG|0.1 MB allowed"),
}


@pytest.mark.parametrize("kind", ["zip", "folder"])
@pytest.mark.parametrize("name", PICTURES)
def test_a_picture_that_is_none_of_cifar100(name, kind, tmp_path, cifar_files):
    content, expected = PICTURES[name]
    files = cifar_files.small.pngs() | {"test/bee/bad.png": content}
    root = tmp_path / "data"
    root.mkdir()
    if kind == "zip":
        (root / "set.zip").write_bytes(cifar_files.zip_of(files))
    else:
        cifar_files.write_files(root, files)
    message = refusal(root)
    assert "test/bee/bad.png" in message and any(part in message for part in expected.split("|")), message


def test_a_zip_member_that_unpacks_to_far_more(tmp_path, cifar_files, monkeypatch):
    """Sizes are counted as they are read: the member of 1 GB states 100 bytes, or is of another method."""
    root = tmp_path / "data"
    root.mkdir()
    bomb = png(GREEN) + bytes(200_000_000)
    files = cifar_files.small.pngs() | {"train/bee/bomb.png": bomb}
    content = cifar_files.zip_of(files)
    lying = content.replace(len(bomb).to_bytes(4, "little"), (100).to_bytes(4, "little"))
    assert lying != content
    most = 0

    def watched(content):
        nonlocal most
        most = max(most, len(content))
        return decode(content)

    decode = data.decode_png
    monkeypatch.setattr(data, "decode_png", watched)
    for archive in (content, lying):
        (root / "set.zip").write_bytes(archive)
        assert "train/bee/bomb.png" in refusal(root)
    assert most <= data.MAX_PNG + 1
    for method in (zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA):
        (root / "set.zip").write_bytes(cifar_files.zip_of(cifar_files.small.pngs(), method))
        assert "compressed by another method than deflate" in refusal(root)


def test_a_zip_with_a_password(tmp_path, cifar_files):
    root = tmp_path / "data"
    root.mkdir()
    content = bytearray(cifar_files.small.zip())
    content[content.index(b"PK\1\2") + 8] |= 1  # the flag of an encrypted member, in the directory
    (root / "set.zip").write_bytes(content)
    assert "encrypted" in refusal(root)


def test_a_picture_that_is_there_twice(tmp_path, cifar_files):
    root = tmp_path / "data"
    root.mkdir()
    files = cifar_files.small.pngs()
    again = {f"copy/{name}": content for name, content in files.items()}
    (root / "set.zip").write_bytes(cifar_files.zip_of(files | again))
    assert "twice" in refusal(root)


def test_a_class_that_cifar100_has_not(tmp_path, cifar_files):
    files = cifar_files.small.pngs() | {"test/\x1b[31mairplane/1.png": png(GREEN)}
    cifar_files.write_files(tmp_path / "data", files)
    assert "airplane is not one of CIFAR-100's class names" in refusal(tmp_path / "data")


@pytest.mark.parametrize("kind", ["png", "png below", "zip"])
@pytest.mark.parametrize("absent", ["train/", "test/", "train/bee/", "test/seal/"])
def test_a_png_source_without_a_split_or_a_class(absent, kind, tmp_path, cifar_files):
    files = {name: x for name, x in cifar_files.small.pngs().items() if not name.startswith(absent)}
    root = tmp_path / "data"
    root.mkdir()
    if kind == "zip":
        (root / "set.zip").write_bytes(cifar_files.zip_of(files))
    else:
        cifar_files.write_files(root if kind == "png" else root / "set", files)
    message = refusal(root)
    split, name, *_ = [*absent.split("/"), ""]
    expected = f"{split}: 1 of the 100 classes have no image ({name}" if name else f"no {split}/<class>"
    assert expected in message


def test_a_zip_without_pictures(tmp_path, cifar_files):
    root = tmp_path / "data"
    root.mkdir()
    (root / "holiday.zip").write_bytes(cifar_files.zip_of({"beach.jpg": b"sand"}))
    message = refusal(root)
    assert "holiday.zip" in message and "no train/<class>/<name>.png" in message


def test_a_data_folder_that_is_a_file(tmp_path):
    (tmp_path / "data").write_text("hello")
    assert "is a file" in refusal(tmp_path / "data")


def test_an_unreadable_folder(plain_user, cifar_files):
    root = plain_user / "data"
    root.mkdir()
    cifar_files.small.write(root, "png below")
    locked = root / "CIFAR-100-dataset-main" / "train" / "bee"
    locked.chmod(0)
    with pytest.raises(data.UserError, match="bee") as caught:
        data.load_cifar100(root)
    assert "Permission denied" in str(caught.value)
    locked.chmod(0o700)
    root.chmod(0)
    for folder in (root, root / "below"):
        with pytest.raises(data.UserError, match="cannot be read"):
            data.load_cifar100(folder)
    root.chmod(0o700)


# ---------------------------------------------------------------------------------------------------------
# The split


def toy(images, labels, num_classes):
    """A dataset of these images and labels."""
    names = [f"class {c}" for c in range(num_classes)]
    return data.Dataset(
        "toy", images, labels, names, torch.zeros(num_classes), ["all"], [""] * len(labels), "", False, ""
    )


@pytest.fixture
def with_copies():
    """600 images of 10 classes, 60 each, of which 40 are a copy of another, some with another label."""
    generator = torch.Generator().manual_seed(5)
    images = torch.randint(0, 256, (600, 3, 32, 32), generator=generator, dtype=torch.uint8)
    images[torch.arange(40) * 7 + 200] = images[torch.arange(40) * 3]
    labels = torch.randperm(600, generator=generator) % 10
    return toy(images, labels, 10)


@pytest.mark.parametrize("fraction", [0.0, 0.05, 0.2, 0.5])
def test_split_is_stratified_and_disjoint(fraction, with_copies):
    train, val = data.split_indices(with_copies, fraction, seed=3)
    assert train.dtype == val.dtype == torch.int64
    assert sorted(train.tolist() + val.tolist()) == list(range(600))
    share = round(60 * fraction)
    assert Counter(with_copies.labels[val].tolist()) == Counter({c: share for c in range(10) if share})
    assert Counter(with_copies.labels[train].tolist()) == dict.fromkeys(range(10), 60 - share)


@pytest.mark.parametrize("seed", range(5))
def test_copies_of_an_image_stay_on_one_side(seed, with_copies):
    train, val = data.split_indices(with_copies, 0.2, seed)
    sides = [{with_copies.images[i].numpy().tobytes() for i in part} for part in (train, val)]
    assert not sides[0] & sides[1]


def test_split_is_seeded_on_its_own(with_copies):
    expected = data.split_indices(with_copies, 0.2, seed=3)
    torch.manual_seed(77)
    np.random.seed(77)
    random.seed(77)
    state = torch.get_rng_state()
    again = data.split_indices(with_copies, 0.2, seed=3)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(map(torch.equal, again, expected))
    assert not torch.equal(data.split_indices(with_copies, 0.2, seed=4)[1], expected[1])


def test_each_prefix_of_a_split_is_balanced(with_copies):
    for part in data.split_indices(with_copies, 0.2, seed=0):
        counts = torch.zeros(10, dtype=torch.int64)
        for i in part.tolist():
            counts[with_copies.labels[i]] += 1
            assert counts.max() - counts.min() <= 1


def test_split_takes_every_image_with_the_same_chance():
    """Over 200 seeds each of 20 images is in a validation half about 100 times, and the order varies."""
    generator = torch.Generator().manual_seed(0)
    dataset = toy(
        torch.randint(0, 256, (20, 3, 32, 32), generator=generator, dtype=torch.uint8), torch.zeros(20), 1
    )
    dataset.labels = dataset.labels.long()
    counts, first = torch.zeros(20), Counter()
    for seed in range(200):
        train, val = data.split_indices(dataset, 0.5, seed)
        counts[val] += 1
        first[train[0].item()] += 1
    assert counts.min() > 65 and counts.max() < 135  # five standard deviations
    assert len(first) == 20


@pytest.mark.parametrize("fraction", [1, 1.5, -0.1, float("nan")])
def test_split_of_a_wrong_fraction(fraction, with_copies):
    with pytest.raises(ValueError, match="val_fraction must be in"):
        data.split_indices(with_copies, fraction, seed=0)


def test_first_copy_against_a_loop(with_copies):
    images = with_copies.images[:300]
    expected = [next(j for j in range(i + 1) if torch.equal(images[i], images[j])) for i in range(300)]
    assert data.first_copy(images).tolist() == expected


# ---------------------------------------------------------------------------------------------------------
# Batches


def slow_crop_and_flip(image, dy, dx, flip, padding=4):
    """One image [3, H, W]: pad, cut, mirror, each by numpy."""
    height, width = image.shape[1:]
    padded = np.pad(image, ((0, 0), (padding, padding), (padding, padding)), mode="reflect")
    window = padded[:, dy : dy + height, dx : dx + width]
    return window[:, :, ::-1] if flip else window


@pytest.mark.parametrize("shape, padding", [((32, 32), 4), ((5, 9), 4), ((32, 32), 0), ((20, 26), 7)])
def test_crop_and_flip_against_a_loop(shape, padding):
    """Every place of the window, mirrored or not."""
    places = [
        (dy, dx, flip)
        for dy in range(2 * padding + 1)
        for dx in range(2 * padding + 1)
        for flip in (False, True)
    ]
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (len(places), 3, *shape), generator=generator, dtype=torch.uint8)
    dy, dx, flip = (torch.tensor(values) for values in zip(*places, strict=True))
    result = data.crop_and_flip(images, dy, dx, flip, padding)
    assert result.dtype == torch.uint8 and result.shape == images.shape
    for i, place in enumerate(places):
        assert np.array_equal(result[i].numpy(), slow_crop_and_flip(images[i].numpy(), *place, padding))
    # Any dtype.
    assert torch.equal(data.crop_and_flip(images.float(), dy, dx, flip, padding), result.float())


@pytest.fixture
def numbered():
    """110 images and, as labels, their numbers."""
    generator = torch.Generator().manual_seed(2)
    return torch.randint(0, 256, (110, 3, 32, 32), generator=generator, dtype=torch.uint8), torch.arange(110)


def equal_batches(a, b):
    a, b = list(a), list(b)
    return len(a) == len(b) and all(
        torch.equal(x, u) and torch.equal(y, v) for (x, y), (u, v) in zip(a, b, strict=True)
    )


@pytest.mark.parametrize("padding", [4, 2, 0])
def test_batches_hold_each_image_at_most_once_as_the_loop_cuts_it(numbered, padding):
    images, labels = numbered
    seen, places, flips, shifts = [], Counter(), 0, 2 * padding + 1
    for batch, targets in data.batches(images, labels, 16, seed=0, epoch=1, padding=padding):
        assert batch.shape == (16, 3, 32, 32) and batch.dtype == torch.uint8 and targets.shape == (16,)
        seen += targets.tolist()
        for image, label in zip(batch.numpy(), targets.tolist(), strict=True):
            matches = [
                (dy, dx, flip)
                for dy in range(shifts)
                for dx in range(shifts)
                for flip in (False, True)
                if np.array_equal(image, slow_crop_and_flip(images[label].numpy(), dy, dx, flip, padding))
            ]
            assert len(matches) == 1
            dy, dx, flip = matches[0]
            places[dy] += 1
            places[shifts + dx] += 1
            flips += flip
    assert len(seen) == 110 // 16 * 16 and len(set(seen)) == len(seen)
    assert seen != sorted(seen)
    assert 30 < flips < 66 and set(places) == set(range(2 * shifts))


def test_batches_depend_on_seed_and_epoch_only(numbered):
    def draw(seed=0, epoch=1, start=0):
        return data.batches(*numbered, 16, seed, epoch, start)

    expected = list(draw())
    result = []
    for batch in draw():  # while others draw too
        torch.rand(7)
        np.random.rand(7)
        random.random()
        result.append(batch)
    assert equal_batches(result, expected)
    state = torch.get_rng_state()
    assert equal_batches(draw(), expected)
    assert torch.equal(torch.get_rng_state(), state)
    # (0, 1) and (1, 0) are different seeds, which a sum of the two would not be.
    others = [draw(epoch=2), draw(seed=1), draw(seed=1, epoch=0), draw(seed=0, epoch=0)]
    orders = {tuple(next(iter(batches))[1].tolist()) for batches in [expected, *others]}
    assert len(orders) == 5


@pytest.mark.parametrize("start", [0, 1, 5, 6, 9])
def test_batches_go_on_from_start(start, numbered):
    whole = list(data.batches(*numbered, 16, seed=4, epoch=3))
    assert equal_batches(data.batches(*numbered, 16, seed=4, epoch=3, start=start), whole[start:])


def test_fewer_images_than_a_batch_give_no_batch(numbered):
    assert list(data.batches(numbered[0][:15], numbered[1][:15], 16, seed=0, epoch=1)) == []


def test_normalize_and_to_input_against_torchvision(numbered):
    images = numbered[0]
    reference = transforms.Compose([transforms.ToTensor(), transforms.Normalize(data.MEAN, data.STD)])
    expected = torch.stack([reference(image.permute(1, 2, 0).numpy()) for image in images])
    result = data.to_input(images)
    assert result.dtype == torch.float32 and result.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(result, expected, rtol=1e-6, atol=1e-6, check_stride=False)
    double = data.normalize(images.double() / 255)
    assert double.dtype == torch.float64
    torch.testing.assert_close(double, expected.double(), rtol=1e-5, atol=1e-5)
    back = double * torch.tensor(data.STD).view(3, 1, 1) + torch.tensor(data.MEAN).view(3, 1, 1)
    torch.testing.assert_close((back * 255).round().to(torch.uint8), images)


# ---------------------------------------------------------------------------------------------------------
# The shapes set


@pytest.fixture(scope="module")
def shapes():
    return data.make_shapes(per_class=6, seed=0)


def test_shapes_is_in_the_format_of_cifar100(shapes):
    assert shapes.images.shape == (600, 3, 32, 32) and shapes.images.dtype == torch.uint8
    assert shapes.labels.dtype == torch.int64 and torch.bincount(shapes.labels).tolist() == [6] * 100
    assert shapes.masks.shape == (600, 32, 32) and shapes.masks.dtype == torch.bool
    assert shapes.superclass_of.dtype == torch.int64
    assert torch.bincount(shapes.superclass_of).tolist() == [10] * 10
    assert len(set(shapes.class_names)) == 100 and len(set(shapes.filenames)) == 600
    assert shapes.name == "shapes" and not shapes.verified and "shapes" in shapes.provenance
    for c, name in enumerate(shapes.class_names):
        assert name.endswith(f" {shapes.superclass_names[shapes.superclass_of[c]]}")
    for label, filename in zip(shapes.labels.tolist(), shapes.filenames, strict=True):
        assert filename.startswith(shapes.class_names[label] + " ")
    assert shapes.digest == data.content_digest(shapes.images.numpy(), shapes.labels.numpy())


def test_shapes_depend_on_their_seed_only(shapes):
    torch.manual_seed(123)
    state = torch.get_rng_state()
    again = data.make_shapes(per_class=6, seed=0)
    assert torch.equal(torch.get_rng_state(), state)
    assert same(again, shapes) and torch.equal(again.masks, shapes.masks)
    assert not torch.equal(data.make_shapes(per_class=6, seed=1).images, shapes.images)


def test_no_image_is_in_both_splits_of_shapes(monkeypatch):
    make, made = data.make_shapes, []
    monkeypatch.setattr(data, "make_shapes", lambda per_class, seed: made.append(per_class) or make(4, seed))
    pixels = [{image.tobytes() for image in split.images.numpy()} for split in data.load("shapes", None)]
    assert [len(part) for part in pixels] == [400, 400] and not pixels[0] & pixels[1]
    assert min(made) >= 10


def test_masks_show_where_the_colour_of_the_class_is(shapes):
    """Inside, the mean colour is much nearer to the colour that the class is named for than outside."""
    colours = torch.tensor(list(data.COLOURS.values())).repeat(10, 1)[shapes.labels]  # by shape, then colour
    for i, name in enumerate(data.COLOURS):
        assert shapes.class_names[i].startswith(name)
    images, masks = shapes.images / 255, shapes.masks
    distance = {}
    for side, mask in (("inside", masks), ("outside", ~masks)):
        mean = (images * mask[:, None]).sum(dim=(2, 3)) / mask.sum(dim=(1, 2))[:, None]
        distance[side] = (mean - colours).norm(dim=1)
    assert (distance["inside"] < distance["outside"]).float().mean() > 0.97
    assert distance["inside"].median() < 0.25 < distance["outside"].median()
    # Turned about, the masks show nothing: the object is not simply everywhere in the middle.
    other = masks.roll(16, dims=2)
    mean = (images * other[:, None]).sum(dim=(2, 3)) / other.sum(dim=(1, 2))[:, None]
    assert (mean - colours).norm(dim=1).median() > 0.35


def test_the_mask_of_a_circle_is_a_circle(shapes):
    for mask in shapes.masks[shapes.superclass_of[shapes.labels] == list(data.SHAPES).index("circle")]:
        rows, columns = torch.nonzero(mask, as_tuple=True)
        height, width = (axis.max() - axis.min() + 1 for axis in (rows, columns))
        assert abs(height - width) <= 1
        assert abs(mask.sum() / (torch.pi / 4 * height * width) - 1) < 0.2
        centre = torch.stack([rows.double().mean(), columns.double().mean()])
        box = torch.stack([rows.min() + rows.max(), columns.min() + columns.max()]) / 2
        assert (centre - box).abs().max() < 0.5
        assert rows.min() > 0 and columns.min() > 0 and rows.max() < 31 and columns.max() < 31


@pytest.mark.parametrize("per_class", [0, -1])
def test_shapes_of_no_image(per_class):
    with pytest.raises(ValueError, match="per_class must be at least 1"):
        data.make_shapes(per_class, seed=0)


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


def test_real_statistics_are_the_constants(real):
    counts = torch.stack([channel.flatten().bincount(minlength=256) for channel in real[0].images.unbind(1)])
    levels = torch.arange(256, dtype=torch.float64) / 255
    mean = (counts * levels).sum(dim=1) / counts.sum(dim=1)
    std = (counts * (levels - mean[:, None]).square()).sum(dim=1).div(counts.sum(dim=1)).sqrt()
    torch.testing.assert_close(mean, torch.tensor(data.MEAN, dtype=torch.float64), rtol=0, atol=1e-4)
    torch.testing.assert_close(std, torch.tensor(data.STD, dtype=torch.float64), rtol=0, atol=1e-4)


def test_real_set_has_the_known_copies(real):
    train, test = ([image.tobytes() for image in split.images.numpy()] for split in real)
    assert sum(image in set_of for set_of in [set(train)] for image in test) == 10
    assert len(train) - len(set(train)) == 14


def test_real_split_gives_100_of_each_class_and_keeps_copies_together(real):
    train, val = data.split_indices(real[0], 0.2, seed=0)
    assert torch.bincount(real[0].labels[val]).tolist() == [100] * 100
    sides = [{real[0].images[i].numpy().tobytes() for i in part.tolist()} for part in (train, val)]
    assert not sides[0] & sides[1]


def test_real_superclasses_are_those_of_the_official_files(real):
    folder = os.path.join(os.environ["CIFAR100_ROOT"], "cifar-100-python")
    if not os.path.isdir(folder):
        pytest.skip("CIFAR100_ROOT holds no official folder")
    with open(os.path.join(folder, "meta"), "rb") as file:
        meta = pickle.load(file, encoding="latin1")
    with open(os.path.join(folder, "test"), "rb") as file:
        record = pickle.load(file, encoding="latin1")
    assert meta["coarse_label_names"] == data.SUPERCLASS_NAMES
    assert [data.SUPERCLASS_OF[label] for label in record["fine_labels"]] == record["coarse_labels"]


def test_real_start_from_the_cache_takes_under_half_a_second(real):
    times = []
    for _ in range(5):
        started = time.process_time()  # of this process, whatever else the machine does
        data.load("cifar100", os.environ["CIFAR100_ROOT"])
        times.append(time.process_time() - started)
    assert min(times) < 0.5


def test_cutmix_takes_each_pixel_from_one_of_two_images():
    images = torch.randint(
        0, 256, (6, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)
    )
    shares = []
    for seed in range(2000):
        mixed, own_share = data.cutmix(images, np.random.default_rng(seed))
        if seed < 50:  # a slow second way: look up, pixel by pixel, whose it is
            foreign = (mixed != images).any(dim=(0, 1))
            rows, columns = foreign.any(dim=1).nonzero(), foreign.any(dim=0).nonzero()
            assert foreign.sum() == len(rows) * len(columns)  # a rectangle
            assert own_share == pytest.approx(1 - foreign.float().mean().item())
            assert torch.equal(mixed, torch.where(foreign, images.flip(0), images))
        shares.append(own_share)
    # A rectangle inside would leave 1/2 in the mean; what is cut off at the border leaves more.
    assert 0.5 < np.mean(shares) < 0.7

"""CIFAR-100 from the disk: every kind of source, the cache, and files that are broken or hostile."""

import gzip
import hashlib
import os
import pickle
import time
import tracemalloc
import zipfile

import numpy as np
import pytest
import torch
from archives import SMALL, SmallCifar, tar_gz, write_files, zip_of
from torchvision.io import encode_png

import data
from running.files import UserError
from sources import cifar100, download

KINDS = ["folder", "tar", "png", "png below", "zip"]


@pytest.fixture(autouse=True)
def no_network(monkeypatch):
    """Nothing here is ever downloaded."""
    monkeypatch.setattr(download, "SOURCES", {})


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


# What the sources hold


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_source_gives_the_same_datasets(kind, tmp_path):
    SMALL.write(tmp_path, kind)
    for _ in range(2):  # the second time from the cache
        train, test = data.load("cifar100", tmp_path)
        check_content(train, SMALL, "train")
        check_content(test, SMALL, "test")
        assert (tmp_path / "cifar100-cache.npz").exists()


FOREIGN = {  # what lies beside CIFAR-100 in a folder for data sets
    "tiny-imagenet-200.zip": zip_of({"tiny-imagenet-200/train/n01443537/images/1.JPEG": b""}),
    "cifar10.zip": zip_of({f"train/{name}/1.png": b"" for name in ("airplane", "bird", "horse", "ship")}),
    "flowers.zip": zip_of({f"train/{name}/1.png": b"" for name in ("rose", "tulip", "orchid")}),
    "damaged.zip": b"PK\3\4 but nothing behind it",
}


def test_other_zips_are_no_source(tmp_path):
    """They neither stop a download nor break the cache of one that was made before they came."""
    write_files(tmp_path, FOREIGN)
    assert not data.has_cifar100(tmp_path)
    zip_path = SMALL.write(tmp_path, "zip")
    check_content(data.load_cifar100(tmp_path)[0], SMALL, "train")
    zip_path.unlink()
    check_content(data.load_cifar100(tmp_path)[0], SMALL, "train")


def test_other_files_are_left_aside(tmp_path):
    extra = {
        "__MACOSX/train/apple/._1.png": b"resource fork",
        "train/notes.txt": b"",
        "train/apple/Thumbs.db": b"",
    }
    write_files(tmp_path / "another set", {f"train/{name}/1.png": b"" for name in ("dog", "bear", "rose")})
    (tmp_path / "cifar_100.zip").write_bytes(zip_of(SMALL.pngs() | extra))
    check_content(data.load_cifar100(tmp_path)[0], SMALL, "train")


def test_the_official_files_come_before_png_files_and_those_before_a_zip(tmp_path):
    for seed, kind in enumerate(("zip", "png below", "tar", "folder"), start=1):
        small = SmallCifar(per_class=(1, 1), seed=seed)
        small.write(tmp_path, kind)
        check_content(data.load_cifar100(tmp_path)[0], small, "train")


def test_digest_is_over_the_sorted_records():
    rng = np.random.default_rng(1)
    images = rng.integers(0, 256, (50, 3, 32, 32), dtype=np.uint8)
    images[1] = images[0]
    labels = rng.integers(0, 100, 50)
    records = sorted(bytes([label]) + image.tobytes() for label, image in zip(labels, images, strict=True))
    expected = hashlib.sha256(b"".join(records)).hexdigest()
    assert cifar100.content_digest(images, labels) == expected
    order = rng.permutation(50)
    assert cifar100.content_digest(images[order], labels[order]) == expected
    changed = images.copy()
    changed[7, 2, 31, 31] ^= 1
    assert cifar100.content_digest(changed, labels) != expected
    assert cifar100.content_digest(images, np.roll(labels, 1)) != expected


def test_only_the_official_content_is_verified(tmp_path, monkeypatch):
    monkeypatch.setattr(cifar100, "OFFICIAL_DIGEST", SMALL.digests())
    monkeypatch.setattr(cifar100, "OFFICIAL_COUNT", {"train": 300, "test": 200})
    SMALL.write(tmp_path / "whole", "tar")
    changed = SmallCifar()
    changed.splits["test"][0][5, 0, 0, 0] ^= 1
    changed.write(tmp_path / "changed", "tar")
    for name, verified, words in (("whole", True, ", verified: "), ("changed", False, ", NOT verified: ")):
        for dataset in data.load_cifar100(tmp_path / name):
            assert dataset.verified is verified and words in dataset.provenance


# The cache


@pytest.mark.parametrize("kind", KINDS)
def test_cache_is_made_again_when_the_source_changes_and_serves_until_then(kind, tmp_path, monkeypatch):
    source = SMALL.write(tmp_path, kind)
    data.load_cifar100(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(cifar100, "read_source", None)
        check_content(data.load_cifar100(tmp_path)[0], SMALL, "train")
    changed = SmallCifar()  # of the same sizes
    changed.splits["train"][0][0, 0, 0, 0] ^= 255
    changed.write(tmp_path, kind)
    touched = source if source.is_file() else source / "train"
    os.utime(touched, ns=(0, touched.stat().st_mtime_ns + 1))
    check_content(data.load_cifar100(tmp_path)[0], changed, "train")


@pytest.mark.parametrize("rest", [b"", b"another byte"])
def test_a_damaged_cache_is_made_again(rest, tmp_path, monkeypatch):
    SMALL.write(tmp_path, "tar")
    data.load_cifar100(tmp_path)
    cache = tmp_path / "cifar100-cache.npz"
    content = cache.read_bytes()
    cache.write_bytes(content[:500_000] + rest + (content[500_000 + len(rest) :] if rest else b""))
    check_content(data.load_cifar100(tmp_path)[0], SMALL, "train")
    monkeypatch.setattr(cifar100, "read_source", None)
    check_content(data.load_cifar100(tmp_path)[0], SMALL, "train")


def test_a_cache_that_cannot_be_written_is_no_obstacle(tmp_path, capsys):
    SMALL.write(tmp_path, "folder")
    (tmp_path / "cifar100-cache.npz").mkdir()
    check_content(data.load_cifar100(tmp_path)[0], SMALL, "train")
    assert "no cache was written" in capsys.readouterr().out


# Hostile and broken files: one line, and nothing else happens


def refusal(root):
    """Load from `root`, which must fail with one line and change nothing; return the line."""
    before = sorted(str(path) for path in root.parent.rglob("*"))
    with pytest.raises(UserError) as caught:
        data.load_cifar100(root)
    assert sorted(str(path) for path in root.parent.rglob("*")) == before
    message = str(caught.value)
    assert str(root) in message and message.isprintable() and len(message) < 700
    return message


def write_official(root, kind, **changes):
    """Write the official files with some of them replaced (None: left out)."""
    files = SMALL.pickles() | changes
    files = {f"cifar-100-python/{name}": content for name, content in files.items() if content is not None}
    root.mkdir(exist_ok=True)
    if kind == "tar":
        (root / "cifar-100-python.tar.gz").write_bytes(tar_gz(files))
    else:
        write_files(root, files)


HOSTILE = {  # the first two would make a file called `marker`
    "posix.system": b"cposix\nsystem\n(U\x0ctouch markertR.",
    "os.mkdir": b"(U\x06markerios\nmkdir\n.",
    "an array of petabytes": b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n"
    b"(\x8a\x07\0\0\0\0\0\0\x04tU\x01btR.",
}


@pytest.mark.parametrize("kind", ["folder", "tar"])
@pytest.mark.parametrize("name", HOSTILE)
def test_what_a_pickle_asks_for_is_not_called(name, kind, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_official(tmp_path / "data", kind, train=b"\x80\x02" + HOSTILE[name])
    assert "Inert" in refusal(tmp_path / "data")  # in its place: nothing is called


def nested(depth):
    """A list of ten lists of ten lists and so on, small in a pickle and without end for numpy."""
    return [nested(depth - 1)] * 10 if depth else 0


RECORDS = {
    "labels that nest": lambda r: r.update({b"fine_labels": [nested(12)] * 200}),
    "a row of pixels too few": lambda r: r.update({b"data": r[b"data"][1:]}),
    "a class without image": lambda r: r.update({b"fine_labels": [c or 1 for c in r[b"fine_labels"]]}),
}


@pytest.mark.parametrize("name", RECORDS)
def test_official_files_with_wrong_content(name, tmp_path):
    record = {key.encode(): value for key, value in SMALL.records()["test"].items()}
    record[b"filenames"] = [name.encode() for name in record[b"filenames"]]
    RECORDS[name](record)
    write_official(tmp_path / "data", "folder", test=pickle.dumps(record, 3))
    assert "cannot be used as CIFAR-100: " in refusal(tmp_path / "data")


@pytest.mark.parametrize("kind", ["folder", "tar"])
@pytest.mark.parametrize("content", [None, SMALL.pickles()["train"][:5000], b""])
def test_an_official_file_that_is_absent_or_cut(content, kind, tmp_path):
    write_official(tmp_path / "data", kind, train=content)
    message = refusal(tmp_path / "data")
    assert content is not None or "train" in message


@pytest.mark.parametrize("bomb", ["large header", "zeros"])
def test_an_archive_is_not_unpacked_beyond_the_limit(bomb, tmp_path, monkeypatch):
    monkeypatch.setattr(cifar100, "MAX_UNPACKED", 5_000_000)
    files = {f"cifar-100-python/{split}": SMALL.pickles()[split] for split in ("train", "test")}
    content = {
        "large header": lambda: tar_gz({"x" * 50_000_000: b""} | files),
        "zeros": lambda: gzip.compress(bytes(50_000_000), compresslevel=1),
    }[bomb]()
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "cifar-100-python.tar.gz").write_bytes(content)
    tracemalloc.start()
    refusal(tmp_path / "data")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 30_000_000


@pytest.mark.parametrize("kind", ["tar", "zip"])
def test_a_damaged_archive(kind, tmp_path):
    """Cut, with changed bytes where checksums cover the content, or a web page saved under its name."""
    path = SMALL.write(tmp_path / "data", kind)
    path = path.rename(path.with_name("cifar-100-python.tar.gz" if kind == "tar" else "CIFAR-100.zip"))
    content = path.read_bytes()
    middle = len(content) // 2
    changed = content[:middle] + bytes([byte ^ 0x10 for byte in content[middle : middle + 50]])
    for damaged in (content[:100], content[:-50], changed + content[middle + 50 :], b"<!DOCTYPE html>"):
        path.write_bytes(damaged)
        assert str(path) in refusal(tmp_path / "data")


def png(image):
    return encode_png(image).numpy().tobytes()


GREEN = torch.full((3, 32, 32), 99, dtype=torch.uint8)
HUGE = (60_000).to_bytes(4, "big")
PICTURES = {
    "grey": png(torch.zeros(1, 32, 32, dtype=torch.uint8)),
    "of billions of pixels": png(GREEN)[:16] + HUGE + HUGE + png(GREEN)[24:],
    "cut": png(GREEN)[:60],
}


@pytest.mark.parametrize("name", PICTURES)
def test_a_picture_that_is_none_of_cifar100(name, tmp_path):
    write_files(
        tmp_path / "data", {"cifar_100.zip": zip_of({"test/bee/bad.png": PICTURES[name]} | SMALL.pngs())}
    )
    message = refusal(tmp_path / "data")
    assert "test/bee/bad.png cannot be used as an image of CIFAR-100: " in message
    assert name == "cut" or "it is not a PNG file of 32x32 pixels in 8-bit RGB" in message


def test_a_zip_member_that_unpacks_to_far_more(tmp_path):
    """Sizes are counted as they are read: the member of 50 MB states 100 bytes, or is of another method."""
    bomb = {"train/bee/bomb.png": png(GREEN)[:40] + bytes(50_000_000)}
    content = zip_of(SMALL.pngs() | bomb)
    lying = content.replace((50_000_040).to_bytes(4, "little"), (100).to_bytes(4, "little"))
    assert lying != content
    other_method = zip_of(SMALL.pngs() | bomb, zipfile.ZIP_BZIP2)
    for archive in (content, lying, other_method):
        write_files(tmp_path / "data", {"cifar_100.zip": archive})
        tracemalloc.start()
        refusal(tmp_path / "data")
        assert tracemalloc.get_traced_memory()[1] < 20_000_000
        tracemalloc.stop()


def test_more_images_than_cifar100_has(tmp_path, monkeypatch):
    monkeypatch.setattr(cifar100, "OFFICIAL_COUNT", {"train": 300, "test": 199})
    SMALL.write(tmp_path / "data", "zip")
    assert "more than the 199 test images" in refusal(tmp_path / "data")


def test_png_files_of_another_class_or_without_one(tmp_path):
    write_files(tmp_path / "more", SMALL.pngs() | {"test/\x1b[31mairplane/1.png": png(GREEN)})
    assert "airplane" in refusal(tmp_path / "more")
    write_files(tmp_path / "less", {n: x for n, x in SMALL.pngs().items() if not n.startswith("test/seal/")})
    assert "test: images of 99 classes, expected CIFAR-100's 100" in refusal(tmp_path / "less")


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
    assert meta["fine_label_names"] == cifar100.CLASS_NAMES
    assert meta["coarse_label_names"] == cifar100.SUPERCLASS_NAMES
    assert [cifar100.SUPERCLASS_OF[label] for label in record["fine_labels"]] == record["coarse_labels"]


def test_real_start_from_the_cache_takes_under_half_a_second(real):
    times = []
    for _ in range(3):
        started = time.process_time()  # of this process, whatever else the machine does
        data.load("cifar100", os.environ["CIFAR100_ROOT"])
        times.append(time.process_time() - started)
    assert min(times) < 0.5

"""CIFAR-100 and CIFAR-10 from their official files: what they hold, damaged and hostile ones, downloads."""

import functools
import hashlib
import http.server
import itertools
import os
import pickle
import re
import socket
import threading

import numpy as np
import pytest
import torch
import torchvision
from archives import ARCHIVES, FOLDERS, Small, digest, tar_gz

import data
from sources import cifar
from support.errors import UserError

SMALL = {name: Small(name) for name in ("cifar100", "cifar10")}


@pytest.fixture(autouse=True)
def no_network(monkeypatch):
    monkeypatch.setattr(cifar, "MIRRORS", ())


def check_content(datasets, small):
    """Compare datasets with what the files were made from; CIFAR-100 in the order of class and file name."""
    for dataset, (images, labels, names) in zip(datasets, small.splits.values(), strict=True):
        expected = list(zip(labels.tolist(), names, [x.tobytes() for x in images], strict=True))
        if small.name == "cifar100":
            expected = sorted(expected)
            assert dataset.filenames == [name for _, name, _ in expected]
        assert dataset.labels.tolist() == [label for label, _, _ in expected]
        assert [x.tobytes() for x in dataset.images.numpy()] == [x for _, _, x in expected]
        assert dataset.images.dtype == torch.uint8 and dataset.images.shape[1:] == (3, 32, 32)
        assert dataset.labels.dtype == torch.int64
    assert [dataset.digest for dataset in datasets] == small.digests()


@pytest.mark.parametrize("name", SMALL)
@pytest.mark.parametrize("kind", ["folder", "tar"])
def test_the_official_files_are_read(name, kind, tmp_path, monkeypatch):
    publish(monkeypatch, SMALL[name])
    datasets = data.load(name, SMALL[name].write(tmp_path, kind))
    check_content(datasets, SMALL[name])
    train, test = datasets
    assert train.name == test.name == name and train.provenance == test.provenance
    assert ("NOT verified" not in train.provenance) == (name == "cifar10")
    if name == "cifar10":
        animals = {name for name, s in zip(train.class_names, train.superclass_of, strict=True) if s == 1}
        assert animals == {"bird", "cat", "deer", "dog", "frog", "horse"}
        assert train.class_names[0] == "airplane" and train.class_names[9] == "truck"
    # The archive was unpacked beside itself, and nothing else is left.
    assert set(os.listdir(tmp_path)) == {FOLDERS[name], *([ARCHIVES[name]] if kind == "tar" else [])}


def test_digest_is_over_the_sorted_records():
    """Also of labels that take more than a byte; of large images the sha256 of each record is sorted."""
    rng = np.random.default_rng(1)
    images, labels = rng.integers(0, 256, (50, 3, 32, 32), dtype=np.uint8), rng.integers(250, 260, 50)
    assert cifar.content_digest(images, labels) == digest(images, labels, size=4)
    large, labels = rng.integers(0, 256, (50, 3, 40, 40), dtype=np.uint8), labels % 7
    records = [bytes([label]) + image.tobytes() for label, image in zip(labels, large, strict=True)]
    expected = hashlib.sha256(b"".join(sorted(hashlib.sha256(record).digest() for record in records)))
    assert cifar.content_digest(large, labels) == expected.hexdigest()


def publish(monkeypatch, small):
    """Let torchvision know the files of a small set as the official ones; return the archive."""
    published = getattr(torchvision.datasets, small.name.upper())
    files, packed = small.files(), tar_gz(small.files())

    def md5s(official):
        paths = {name: f"{FOLDERS[small.name]}/{name}" for name, _ in official}
        return [[name, hashlib.md5(files[path]).hexdigest()] for name, path in paths.items() if path in files]

    monkeypatch.setattr(published, "tgz_md5", hashlib.md5(packed).hexdigest())
    for name in ("train_list", "test_list"):
        monkeypatch.setattr(published, name, md5s(getattr(published, name)))
    if small.name == "cifar10":
        meta = f"{FOLDERS[small.name]}/batches.meta"
        monkeypatch.setattr(published, "meta", published.meta | {"md5": hashlib.md5(files[meta]).hexdigest()})
    return packed


def test_the_content_says_what_is_official(tmp_path, monkeypatch):
    """A changed set is CIFAR-100 that is not verified; CIFAR-10 is taken only as published."""
    monkeypatch.setattr(cifar, "OFFICIAL_DIGESTS", SMALL["cifar100"].digests())
    publish(monkeypatch, SMALL["cifar10"])
    for name in SMALL:
        train, test = data.load(name, SMALL[name].write(tmp_path / name))
        assert ", verified: " in train.provenance == test.provenance
    for split in ("train", "test"):
        forged = Small()
        forged.records[split][b"data"][5, 0] ^= 1
        for dataset in data.load_cifar100(forged.write(tmp_path / split)):
            assert ", NOT verified: " in dataset.provenance
    forged = Small("cifar10")
    forged.records["data_batch_3"][b"data"][5, 0] ^= 1
    with pytest.raises(UserError, match="cannot be used as CIFAR-10"):
        data.load_cifar10(forged.write(tmp_path / "forged"))


def refusal(root):
    """Load from `root`, which must fail with one line and leave nothing half-made; return the line."""
    with pytest.raises(UserError) as caught:
        data.load_cifar100(root)
    assert not list(root.glob(".*.part"))
    message = str(caught.value)
    assert str(root) in message and message.isprintable() and len(message) < 700
    return message


def changed_test(key, value):
    """The file of the test set with other content, as today's Python writes it."""
    return {"test": pickle.dumps(SMALL["cifar100"].records["test"] | {key: value}, 5)}


def second_labels(labels):
    return changed_test(b"fine_labels", [*range(100), *labels])


WRONG = {  # files, and what the line says of them
    "code": ({"train": b"\x80\x02cposix\nsystem\n(U\x0ctouch markertR."}, "it names posix.system"),
    "cut": ({"train": SMALL["cifar100"].files()["cifar-100-python/train"][:5000]}, "train cannot be used"),
    "a label too few": (second_labels(range(99)), "test cannot be used"),
    "fractions": (second_labels(0.5 + i for i in range(100)), "labels must be whole numbers"),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_file_is_refused_and_no_code_in_it_is_called(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    files, said = WRONG[name]
    assert said in refusal(SMALL["cifar100"].write(tmp_path / "data", **files))
    assert os.listdir() == ["data"]


def test_an_archive_that_is_not_the_official_one_is_not_unpacked(tmp_path, monkeypatch):
    """Cut, or a web page saved under its name."""
    publish(monkeypatch, SMALL["cifar100"])
    SMALL["cifar100"].write(tmp_path / "data", "tar")
    path = tmp_path / "data" / ARCHIVES["cifar100"]
    content = path.read_bytes()
    for other in (content[: len(content) // 2], b"<!DOCTYPE html>"):
        path.write_bytes(other)
        assert "its MD5 sum is another: unpack it yourself" in refusal(tmp_path / "data")
    assert os.listdir(tmp_path) == ["data"]


@pytest.fixture
def mirrors(monkeypatch, tmp_path_factory):
    """The folder of a server, of which `another` and `good` are mirrors; one more is always silent."""
    folder = tmp_path_factory.mktemp("mirrors")
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=folder)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server, socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        threading.Thread(target=server.serve_forever, daemon=True).start()
        ports = dict.fromkeys(("missing", "another", "silent", "good"), server.server_port)
        ports["silent"] = silent.getsockname()[1]
        addresses = [f"http://127.0.0.1:{port}/{of}/{{name}}/{{filename}}" for of, port in ports.items()]
        monkeypatch.setattr(cifar, "MIRRORS", addresses)
        monkeypatch.setattr(cifar, "TIMEOUT", 0.5)
        yield folder
        server.shutdown()


def put(mirrors, **content):
    """Let mirrors deliver this as the archive of either set."""
    for mirror, (name, archive) in itertools.product(content, ARCHIVES.items()):
        (mirrors / mirror / name).mkdir(parents=True)
        (mirrors / mirror / name / archive).write_bytes(content[mirror])


@pytest.mark.parametrize("name", SMALL)
def test_the_mirrors_are_asked_one_after_the_other(name, mirrors, tmp_path, monkeypatch, capsys):
    packed = publish(monkeypatch, SMALL[name])
    put(mirrors, another=packed[:-1] + b"x", good=packed)
    root = tmp_path / "new" / "data"
    check_content(data.load(name, root), SMALL[name])
    assert socket.getdefaulttimeout() is None
    out = capsys.readouterr().out
    asked = [address.format(name=name, filename=ARCHIVES[name]) for address in cifar.MIRRORS]
    assert re.findall(f"downloading {name} from (.*)", out) == asked
    assert out.count("\nnote     http://127.0.0.1") == 3 and "404" in out and "timed out" in out
    assert os.listdir(root) == [FOLDERS[name]]
    check_content(data.load(name, root), SMALL[name])
    assert "downloading" not in capsys.readouterr().out


def test_when_no_mirror_delivers_nothing_is_left_and_a_line_says_what_to_do(mirrors, tmp_path, monkeypatch):
    publish(monkeypatch, SMALL["cifar100"])
    put(mirrors, another=b"<!DOCTYPE html>", good=b"x")
    with pytest.raises(UserError, match=r"cifar-100-python\.tar\.gz into .* --dataset shapes"):
        data.load_cifar100(tmp_path)
    assert os.listdir(tmp_path) == []

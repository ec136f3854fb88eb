"""CIFAR-100 and CIFAR-10 from their official files: what they hold, damaged and hostile ones, downloads."""

import hashlib
import http.server
import os
import pickle
import socket
import threading
import types

import numpy as np
import pytest
import torch
from archives import ARCHIVES, FOLDERS, Small, digest, tar_gz

import data
from running.errors import UserError
from sources import cifar

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


def test_pickles_of_todays_python_are_read_in_fortran_order_too(tmp_path):
    small = SMALL["cifar100"]
    dump = lambda record: pickle.dumps(record | {b"data": np.asfortranarray(record[b"data"])})  # noqa: E731
    check_content(data.load_cifar100(small.write(tmp_path, dump=dump)), small)


def test_digest_is_over_the_sorted_records():
    rng = np.random.default_rng(1)
    images = rng.integers(0, 256, (50, 3, 32, 32), dtype=np.uint8)
    images[10:20] = images[0]
    images[10:20, 2, 31, 31] = rng.integers(0, 256, 10)  # the last byte decides
    images[12:15, :, -1] = 0
    labels = rng.integers(0, 100, 50)
    expected = digest(images, labels)
    assert cifar.content_digest(images, labels) == expected
    order = rng.permutation(50)
    assert cifar.content_digest(images[order], labels[order]) == expected
    assert cifar.content_digest(images, np.roll(labels, 1)) != expected
    labels[7] += 256
    assert cifar.content_digest(images, labels) != expected
    records = [int(c).to_bytes(4, "big") + x.tobytes() for c, x in zip(labels, images, strict=True)]
    expected = hashlib.sha256(b"".join(sorted(records))).hexdigest()
    assert cifar.content_digest(images[order], labels[order]) == expected


def publish(monkeypatch, small):
    """Let torchvision know the files of a small set as the official ones; return the archive."""
    published, files, packed = getattr(cifar, small.name.upper()), small.files(), tar_gz(small.files())

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
    """The file of the test set with other content."""
    return {"test": pickle.dumps(SMALL["cifar100"].records["test"] | {key: value}, 4)}


def second_labels(labels):
    return changed_test(b"fine_labels", [*range(100), *labels])


WRONG = {  # files, and what the line says of them
    "code": ({"train": b"\x80\x02cposix\nsystem\n(U\x0ctouch markertR."}, "it names posix.system"),
    "absent": ({"train": None}, "train cannot be used"),
    "cut": ({"train": SMALL["cifar100"].files()["cifar-100-python/train"][:5000]}, "train cannot be used"),
    "a label too few": (second_labels(range(99)), "test cannot be used"),
    "a row of pixels too few": (
        changed_test(b"data", np.zeros((199, 3072), "u1")),
        "test cannot be used",
    ),
    "a label of 100": (second_labels(range(1, 101)), "labels must be in 0 to 99"),
    "fractions": (second_labels(0.5 + i for i in range(100)), "labels must be whole numbers"),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_file_is_refused_and_no_code_in_it_is_called(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    files, said = WRONG[name]
    assert said in refusal(SMALL["cifar100"].write(tmp_path / "data", **files))
    assert os.listdir() == ["data"]


def test_an_archive_that_is_not_the_official_one_is_not_unpacked(tmp_path, monkeypatch):
    """Cut, a web page saved under its name, or one that would write beside the folder of the data."""
    publish(monkeypatch, SMALL["cifar100"])
    SMALL["cifar100"].write(tmp_path / "data", "tar")
    path = tmp_path / "data" / ARCHIVES["cifar100"]
    content = path.read_bytes()
    outside = tar_gz(SMALL["cifar100"].files() | {"../../outside": b"code"})
    for other in (content[:100], content[: len(content) // 2], b"<!DOCTYPE html>", outside):
        path.write_bytes(other)
        assert "its MD5 sum is another: unpack it yourself" in refusal(tmp_path / "data")
    assert os.listdir(tmp_path) == ["data"]


@pytest.fixture
def server(monkeypatch):
    """Serve `server.answers[path]`, bytes or None for silence; all its paths are mirrors, in this order."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            answers.requests.append(self.path)
            content = answers.content.get(self.path.split("/")[1])
            if content is None:
                answers.stop.wait(10)
                return
            self.send_response(200 if content else 404)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *args):
            pass

    answers = types.SimpleNamespace(content={}, requests=[], stop=threading.Event())
    running = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=running.serve_forever, daemon=True).start()
    paths = ("missing", "another", "silent", "good")
    address = f"http://127.0.0.1:{running.server_port}"
    monkeypatch.setattr(cifar, "MIRRORS", [f"{address}/{path}/{{name}}/{{filename}}" for path in paths])
    yield answers
    answers.stop.set()
    running.shutdown()
    running.server_close()


@pytest.mark.parametrize("name", SMALL)
def test_the_mirrors_are_asked_one_after_the_other(name, server, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(cifar, "TIMEOUT", 0.5)
    packed = publish(monkeypatch, SMALL[name])
    server.content = {"missing": b"", "another": packed[:-1] + b"x", "good": packed}
    root = tmp_path / "new" / "data"
    check_content(data.load(name, root), SMALL[name])
    assert socket.getdefaulttimeout() is None
    mirrors = [path.split("/")[1] for path in server.requests]
    assert list(dict.fromkeys(mirrors)) == ["missing", "another", "silent", "good"]
    assert server.requests[-1] == f"/good/{name}/{ARCHIVES[name]}"
    out = capsys.readouterr().out
    assert out.count("\nnote     http://127.0.0.1") == 3 and "404" in out and "timed out" in out
    assert os.listdir(root) == [FOLDERS[name]]
    server.requests.clear()
    check_content(data.load(name, root), SMALL[name])
    assert not server.requests


def test_when_no_mirror_delivers_nothing_is_left_and_the_user_reads_what_to_do(server, tmp_path, monkeypatch):
    publish(monkeypatch, SMALL["cifar100"])
    server.content = {"missing": b"", "another": b"<!DOCTYPE html>", "silent": b"", "good": b"x"}
    with pytest.raises(UserError, match=r"cifar-100-python\.tar\.gz into .* --dataset shapes"):
        data.load_cifar100(tmp_path)
    assert os.listdir(tmp_path) == []

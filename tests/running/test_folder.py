"""running/folder.py: the run folder, and checkpoints that are what they say."""

import hashlib
import json
import os
import pickle
import zipfile

import pytest
import torch

from running import folder
from running.files import UserError


def touch(*paths):
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()


def test_newest_run_is_the_one_whose_best_checkpoint_is_newest(tmp_path):
    with pytest.raises(UserError):
        folder.newest_run(tmp_path)
    for name, time in [("old", 100), ("new", 300), ("middle", 200)]:
        touch(tmp_path / name / "checkpoints" / "best.pt")
        os.utime(tmp_path / name / "checkpoints" / "best.pt", (time, time))
    touch(tmp_path / "begun" / "checkpoints" / "last.pt")
    assert folder.newest_run(tmp_path) == tmp_path / "new"


def test_a_run_and_its_checkpoint_find_each_other(tmp_path):
    best, other = tmp_path / "run" / "checkpoints" / "best.pt", tmp_path / "checkpoints" / "best.pt"
    elsewhere = tmp_path / "run" / "plots" / "best.pt"
    touch(best, other, elsewhere, tmp_path / "run" / "config.json")
    assert folder.best_checkpoint(tmp_path / "run") == best and folder.run_of(best) == tmp_path / "run"
    assert folder.run_of(other) is None and folder.run_of(elsewhere) is None
    with pytest.raises(UserError):
        folder.best_checkpoint(tmp_path / "begun")


def test_results_of_other_weights_are_refused(tmp_path):
    names = ["metrics.json", "stress.json"]
    folder.check_results(tmp_path, "ab", names)
    for name in names:
        (tmp_path / name).write_text(json.dumps({"checkpoint_sha256": "ab"}))
    folder.check_results(tmp_path, "ab", names)
    (tmp_path / "stress.json").write_text(json.dumps({"checkpoint_sha256": "cd"}))
    folder.check_results(tmp_path, "ab", names[:1])
    with pytest.raises(UserError, match=r"stress\.json is of other weights"):
        folder.check_results(tmp_path, "ab", names)
    for content in ("[", "[]", "{}"):
        (tmp_path / "metrics.json").write_text(content)
        with pytest.raises(UserError, match=r"metrics\.json cannot be used as results"):
            folder.check_results(tmp_path, "ab", names)


# ---- Checkpoints -----------------------------------------------------------------------------------------

CHECKPOINT = {
    "model": {"fc.weight": torch.arange(12.0).reshape(3, 4).half(), "fc.steps": torch.tensor(7)},
    "optimizer": {"state": {0: {"momentum_buffer": torch.ones(2, 2)}}, "param_groups": [{"params": [0, 1]}]},
    "history": [{"epoch": 1, "loss": 0.1 + 0.2}],
    "class_names": ["Käfer"],
}


def test_a_checkpoint_is_read_as_it_was_saved_with_the_digest_of_its_file(tmp_path):
    path = tmp_path / "new" / "last.pt"
    touch(tmp_path / "new" / ".last.pt.77.tmp", tmp_path / "new" / ".best.pt.77.tmp")
    folder.save_checkpoint(path, CHECKPOINT)
    expected = CHECKPOINT | {"sha256": hashlib.sha256(path.read_bytes()).hexdigest()}
    assert repr(folder.read_checkpoint(path)) == repr(expected)
    assert repr(torch.load(path, weights_only=True)) == repr(CHECKPOINT)
    # What a killed training left of this file is gone, and nothing else.
    assert sorted(os.listdir(path.parent)) == [".best.pt.77.tmp", "last.pt"]


@pytest.mark.parametrize(
    "cut", [lambda content: b"", lambda content: content[:200], lambda content: b"weights"]
)
def test_a_file_that_torch_save_did_not_write(cut, tmp_path):
    folder.save_checkpoint(tmp_path / "x.pt", CHECKPOINT)
    (tmp_path / "x.pt").write_bytes(cut((tmp_path / "x.pt").read_bytes()))
    with pytest.raises(UserError, match="cannot be used as a checkpoint: it was not written by torch"):
        folder.read_tensors(tmp_path / "x.pt")


def test_a_bare_tensor_is_no_checkpoint(tmp_path):
    torch.save(torch.ones(3), tmp_path / "x.pt")
    content, _ = folder.read_tensors(tmp_path / "x.pt")
    assert torch.equal(content, torch.ones(3))
    with pytest.raises(UserError, match=r"x\.pt cannot be used as a checkpoint"):
        folder.read_checkpoint(tmp_path / "x.pt")


class Harmful:
    def __reduce__(self):
        return os.mkdir, ("this was run",)


def flipped_bit(path):
    """In the middle of the weights, where a checkpoint is still readable."""
    content = bytearray(path.read_bytes())
    content[content.index(torch.arange(12.0).half().numpy().tobytes()) + 5] ^= 1
    path.write_bytes(content)


def compressed(path):
    """As small as a bomb: what is zeros unpacks to a thousand times its size."""
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(name, content)


def link_to_itself(path):
    path.unlink()
    path.symlink_to(path)


def with_value(value):
    return lambda path: torch.save(CHECKPOINT | {"more": [{"deep": (value,)}]}, path)


DAMAGED = {
    "a flipped bit": flipped_bit,
    "cut": lambda path: path.write_bytes(path.read_bytes()[:-100]),
    "text": lambda path: path.write_text("hello"),
    "a link to itself": link_to_itself,
    "compressed": compressed,
    "code": with_value(Harmful()),
    "a plain pickle with code": lambda path: path.write_bytes(pickle.dumps(Harmful())),
    "a tensor of NaN": with_value(torch.tensor([1.0, float("nan")])),
    "a tensor of infinity": with_value(torch.tensor([float("-inf")])),
    "a few bytes that stand for more": with_value(torch.zeros(1).expand(10, 100)),
    "a sparse tensor": with_value(torch.eye(3).to_sparse()),
}


@pytest.mark.parametrize("row", DAMAGED)
def test_a_damaged_or_hostile_checkpoint_is_refused_in_one_line_without_harm(row, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "x.pt"
    folder.save_checkpoint(path, CHECKPOINT)
    DAMAGED[row](path)
    with pytest.raises(UserError, match=r"x\.pt") as info:
        folder.read_checkpoint(path)
    assert "\n" not in str(info.value) and os.listdir() == ["x.pt"]

"""support/checkpoint.py: checkpoints that are what they say."""

import hashlib
import os
import sys

import numpy as np
import pytest
import torch

from support import checkpoint
from support.errors import UserError

CHECKPOINT = {
    "model": {"fc.weight": torch.arange(12.0).reshape(3, 4).half(), "fc.steps": torch.tensor(7)},
    "optimizer": {"state": {0: {"momentum_buffer": torch.ones(2, 2)}}, "param_groups": [{"params": [0, 1]}]},
    "history": [{"epoch": 1, "loss": 0.1 + 0.2}],
    "class_names": ["Käfer"],
}


def test_a_checkpoint_is_read_as_it_was_saved_with_the_digest_of_its_file(tmp_path):
    path = tmp_path / "new" / "last.pt"
    path.parent.mkdir()
    for name in (".last.pt.77.tmp", ".best.pt.77.tmp"):
        (path.parent / name).touch()
    checkpoint.save_checkpoint(path, CHECKPOINT)
    expected = CHECKPOINT | {"sha256": hashlib.sha256(path.read_bytes()).hexdigest()}
    assert repr(checkpoint.read_checkpoint(path)) == repr(expected)
    assert repr(torch.load(path, weights_only=True)) == repr(CHECKPOINT)
    torch.save(torch.ones(3), tmp_path / "x.pt")
    assert torch.equal(checkpoint.read_tensors(tmp_path / "x.pt")[0], torch.ones(3))
    # What a killed training left of this file is gone, and nothing else.
    assert sorted(os.listdir(path.parent)) == [".best.pt.77.tmp", "last.pt"]


class Harmful:
    def __reduce__(self):
        return os.mkdir, ("this was run",)


def flipped_bit(path):
    """In the middle of the weights, where a checkpoint is still readable."""
    content = bytearray(path.read_bytes())
    content[content.index(torch.arange(12.0).half().numpy().tobytes()) + 5] ^= 1
    path.write_bytes(content)


def saved_by_numpy(path):
    with path.open("wb") as file:
        np.savez(file, weight=np.ones(3))


def with_value(value):
    return lambda path: torch.save(CHECKPOINT | {"more": [{"deep": (value,)}]}, path)


DAMAGED = {  # what is written in place of a checkpoint, and what is said of it
    "a flipped bit": (flipped_bit, "it is damaged, the checksum of"),
    "cut": (lambda path: path.write_bytes(path.read_bytes()[:-100]), "not written by torch.save, or only in"),
    "npz": (saved_by_numpy, r"it was not written by torch\.save: it is another archive, such as \.npz$"),
    "code": (with_value(Harmful()), r"it holds more than tensors and plain values, \w+\.mkdir: write"),
    "a bare tensor": (lambda path: torch.save(torch.ones(3), path), "cannot be used as a checkpoint of"),
    "TorchScript": (
        lambda path: torch.jit.save(torch.jit.script(torch.nn.Linear(2, 2)), path),
        r"it is a TorchScript: let FILE\.py return",
    ),
}


@pytest.mark.parametrize("row", DAMAGED)
@pytest.mark.filterwarnings("ignore:.torch.jit")
def test_a_damaged_or_hostile_checkpoint_is_refused_in_one_line_without_harm(row, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path, (damage, said) = tmp_path / "x.pt", DAMAGED[row]
    checkpoint.save_checkpoint(path, CHECKPOINT)
    damage(path)
    with pytest.raises(UserError, match=rf"x\.pt .*{said}") as info:
        checkpoint.read_checkpoint(path)
    assert "\n" not in str(info.value) and os.listdir() == ["x.pt"]


def test_safetensors_are_read_where_the_package_is_installed(tmp_path, monkeypatch):
    path, weight = tmp_path / "x.safetensors", torch.arange(6.0).reshape(2, 3)
    header = b'{"fc.weight":{"dtype":"F32","shape":[2,3],"data_offsets":[0,24]}}'
    path.write_bytes(len(header).to_bytes(8, "little") + header + weight.numpy().tobytes())
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "safetensors.torch", None)
        with pytest.raises(UserError, match="is of safetensors: pip install safetensors"):
            checkpoint.read_tensors(path)
    pytest.importorskip("safetensors")
    content, sha256 = checkpoint.read_tensors(path)
    assert list(content) == ["fc.weight"] and torch.equal(content["fc.weight"], weight)
    assert sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    path.write_bytes(path.read_bytes()[:-3])
    with pytest.raises(UserError, match=r"x\.safetensors cannot be used as a checkpoint"):
        checkpoint.read_tensors(path)

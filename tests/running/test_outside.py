"""A whole checkpoint with another content: refused in one line with its name, exit code 2, no harm."""

import shutil

import pytest
import torch
from processes import assert_one_line, contents, outcome

import train
from network import load_checkpoint
from resnet_cifar import resnet18


def examine(path):
    load_checkpoint(path, torch.device("cpu"))


def resume(path):
    train.main(["--resume", "--out", str(path.parent.parent)])


# What is done to the content of last.pt, and what reads it. A training knows the width from its settings.
CHANGES = {
    "no config": (lambda c: c.pop("config"), (examine, resume)),
    "an endless width": (lambda c: c["config"].update(width=10**7), (examine,)),
    "a width of text": (lambda c: c["config"].update(width="16"), (examine,)),
    "another width": (lambda c: c["config"].update(width=32), (examine,)),
    "another network": (lambda c: c.update(model=resnet18(9, 2).state_dict()), (examine, resume)),
    "a layer too few": (lambda c: c["model"].pop("fc.bias"), (examine, resume)),
    "best.pt as last.pt": (lambda c: c.pop("optimizer"), (resume,)),
    "another optimizer": (lambda c: c["optimizer"]["param_groups"].pop(), (resume,)),
}


@pytest.mark.parametrize("row", CHANGES)
def test_a_checkpoint_of_another_content(row, tmp_path, capsys, small, half_done):
    change, commands = CHANGES[row]
    shutil.copytree(half_done, tmp_path / "run")
    path = tmp_path / "run" / "checkpoints" / "last.pt"
    checkpoint = torch.load(path, weights_only=True)
    change(checkpoint)
    torch.save(checkpoint, path)
    before = contents(tmp_path)
    for command in commands:
        assert_one_line(*outcome(capsys, command, path), r"last\.pt cannot be used as")
    assert contents(tmp_path) == before

"""Files from outside: a damaged or hostile one is refused in one line with its name, exit code 2, no harm."""

import json
import os
import pickle
import shutil
import zipfile

import pytest
import torch
from processes import assert_one_line, contents, outcome

import stress
import train
from resnet_cifar import resnet18
from running.folder import read_history

CPU = torch.device("cpu")


class Harmful:
    def __reduce__(self):
        return os.mkdir, ("this was run",)


def flipped_byte(path):
    """In the middle of the weights, where a checkpoint is still readable."""
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def text(path):
    path.write_text("hello")


def link_to_itself(path):
    path.unlink()
    path.symlink_to(path)


def compressed(path):
    """As small as a bomb: what is zeros unpacks to a thousand times its size."""
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(name, content)


def plain_pickle(path):
    path.write_bytes(pickle.dumps(Harmful()))


def edited(change):
    """Damage that changes the content of the checkpoint."""

    def damage(path):
        checkpoint = torch.load(path, weights_only=True)
        change(checkpoint)
        torch.save(checkpoint, path)

    return damage


def weight(make):
    return edited(lambda c: c["model"].update({"fc.weight": make(c["model"]["fc.weight"])}))


# A few bytes that stand for 4 TB, or for 4 TB of a network.
huge = torch.zeros(1).expand(10**10, 100)
CHECKPOINTS = {
    "a flipped byte": (flipped_byte, "it is damaged, the checksum of"),
    "text": (text, "cannot be used as a checkpoint: File is not a zip file"),
    "a link to itself": (link_to_itself, "there is no|has no finished epoch"),
    "compressed": (compressed, "it is compressed, as torch.save never does"),
    "code": (edited(lambda c: c.update(extra=Harmful())), "refused, as it holds more than tensors and plain"),
    "a plain pickle with code": (plain_pickle, "cannot be used as a checkpoint: File is not a zip file"),
    "no config": (edited(lambda c: c.pop("config")), "KeyError: 'config'"),
    "weights of NaN": (weight(lambda w: w.fill_(float("nan"))), "it holds values that are not finite"),
    "a huge tensor of one number": (edited(lambda c: c.update(val_logits=huge)), "else than dense tensors"),
    "a sparse weight": (weight(lambda w: w.to_sparse()), "else than dense tensors"),
    "an endless width": (edited(lambda c: c["config"].update(width=10**7)), "cannot be used as a checkpoint"),
    "a width of text": (
        edited(lambda c: c["config"].update(width="16")),
        "cannot be used as a checkpoint: TypeError",
    ),
    "another width": (edited(lambda c: c["config"].update(width=32)), "size mismatch for conv1.weight"),
    "another network": (edited(lambda c: c.update(model=resnet18(9, 2).state_dict())), "size mismatch"),
    "a layer too few": (edited(lambda c: c["model"].pop("fc.bias")), "Missing key.*fc.bias"),
}
# What only --resume reads.
TO_RESUME = {
    "best.pt as last.pt": (edited(lambda c: c.pop("optimizer")), "last.pt .*KeyError: 'optimizer'"),
    "another optimizer": (edited(lambda c: c["optimizer"]["param_groups"].pop()), "last.pt .*group"),
    "other settings": (
        edited(lambda c: c["config"]["settings"].pop("lr")),
        "last.pt .*another vers",
    ),
    "other images": (
        edited(lambda c: c["config"].update(digest="0", provenance="cats")),
        "was trained on cats, but the data found are the built-in shapes",
    ),
}


@pytest.mark.parametrize("row", [*CHECKPOINTS, *TO_RESUME])
def test_a_checkpoint(row, tmp_path, capsys, monkeypatch, small, half_done):
    monkeypatch.chdir(tmp_path)
    damage, message = (CHECKPOINTS | TO_RESUME)[row]
    shutil.copytree(half_done, tmp_path / "run")
    damage(tmp_path / "run" / "checkpoints" / "last.pt")
    before = contents(tmp_path)
    assert_one_line(*outcome(capsys, train.main, ["--resume", "--out", "run"]), message)
    if row in CHECKPOINTS:
        code, err = outcome(capsys, lambda path: train.load_model(path, CPU), "run/checkpoints/last.pt")
        assert_one_line(code, err, r"run/checkpoints/last\.pt")
        assert_one_line(code, err, message)
    assert contents(tmp_path) == before


@pytest.mark.parametrize("content", ["epoch,lr\n1,x\n", "epoch,lr\n1\n", "epoch,lr\n1,2,3\n", "a,\udcff"])
def test_a_history(tmp_path, capsys, content):
    (tmp_path / "logs").mkdir()
    (tmp_path / "logs" / "history.csv").write_text(content, errors="surrogateescape")
    assert_one_line(
        *outcome(capsys, read_history, tmp_path), r"history\.csv cannot be used as the history of"
    )


@pytest.mark.parametrize("content", ["{", "[]", "{}", "[" * 100_000, '{"tests": {"clean/0": 5}}'])
def test_results_of_stress(tmp_path, capsys, content):
    path = tmp_path / "stress.json"
    ours = dict.fromkeys(stress.SAME, 5)
    if content.startswith('{"t'):
        content = json.dumps(ours | json.loads(content))
    path.write_text(content)
    assert_one_line(
        *outcome(capsys, lambda run: stress.kept_results(path, ours), None), r"stress\.json cannot be"
    )
    assert path.read_text() == content

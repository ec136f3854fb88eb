"""Training that goes wrong: what is refused before it begins, a loss that is not finite, full memory."""

import shutil
from dataclasses import replace

import pytest
import torch
from processes import TINY, assert_one_line, check_invariants, contents, continue_or_begin, outcome

import data
import train
from resnet_cifar import ResNet
from support.checkpoint import read_checkpoint, save_checkpoint

SHAPES = [*TINY, "--dataset", "shapes"]

OPTIONS = {
    "--epochs 0": "--epochs 0: expected a number from 1 to",
    "--warmup-epochs 4": r"--warmup-epochs 4\.0: expected a number from 0 to 3$",
    "--image-sizes 24,129": "--image-sizes 24,129: expected sizes from 8 to 128, the largest last",
    "--precision fp16": "--precision fp16 needs a CUDA GPU, not cpu",
}


@pytest.mark.parametrize("options", OPTIONS)
def test_an_option_is_refused_before_anything_is_read_or_written(options, tmp_path, capsys, monkeypatch):
    monkeypatch.delattr(data, "load")
    argv = [*SHAPES, "--out", str(tmp_path / "run"), *options.split()]
    assert_one_line(*outcome(capsys, train.main, argv), OPTIONS[options])
    assert contents(tmp_path) == {}


def test_a_batch_larger_than_the_training_set_is_refused(tmp_path, capsys, small):
    argv = [*SHAPES, "--out", str(tmp_path / "run"), "--batch-size", "9"]
    message = "--batch-size 9: expected at least 2, at most the 8 images to train on$"
    assert_one_line(*outcome(capsys, train.main, argv), message)
    assert contents(tmp_path) == {}


def no_epoch(run):
    """As a training leaves the folder that was killed in its first epoch, or while it saved that."""
    for name in ("logs/history.csv", "checkpoints/best.pt", "checkpoints/last.pt"):
        (run / name).unlink()
    (run / "checkpoints" / ".best.pt.123.tmp").write_bytes(b"half")


def someone_elses(run):
    shutil.rmtree(run)
    (run / "deep").mkdir(parents=True)
    (run / "deep" / "thesis.txt").write_text("x")


def other_version(run):
    path = run / "checkpoints" / "last.pt"
    last = read_checkpoint(path)
    last["config"]["settings"]["adversarial"] = 0.0
    save_checkpoint(path, last)


ABSENT = r"no run to resume, .*last\.pt is missing: give the --out of that run, or begin one"
AGAIN = "is not empty: continue a run there with --resume, delete the folder, or"
# How the run is changed, and what is said with --resume and without; None: it goes on, or begins.
RUNS = {
    "as it is": (lambda run: None, None, AGAIN),
    "without an epoch": (no_epoch, ABSENT, None),
    "somebody else's files": (someone_elses, ABSENT, AGAIN),
    "not there": (shutil.rmtree, ABSENT, None),
    "of another version": (other_version, "another version of train.py", AGAIN),
}


@pytest.mark.parametrize("row", RUNS)
def test_a_folder_with_and_without_resume(row, tmp_path, capsys, small, half_done):
    """Nothing is ever removed from it."""
    change, *messages = RUNS[row]
    for options, message in zip((["--resume"], SHAPES), messages, strict=True):
        run = tmp_path / options[0]
        shutil.copytree(half_done, run)
        change(run)
        before = contents(run)
        code, err = outcome(capsys, train.main, [*options, "--out", str(run)])
        if message is None:
            assert code == 0 and check_invariants(run) == 3
        else:
            assert_one_line(code, err, message)
            assert contents(run) == before


def test_resuming_with_another_setting_or_on_other_data_is_refused(
    tmp_path, capsys, small_sets, small, monkeypatch, half_done
):
    shutil.copytree(half_done, tmp_path / "run")
    argv = ["--resume", "--out", str(tmp_path / "run")]
    code, err = outcome(capsys, train.main, [*argv, "--lr", "0.3", "--cutmix", "0.5", "--precision", "bf16"])
    assert_one_line(code, err, r"was started with --lr 0\.1, --cutmix 0\.0: resume it without")
    other = replace(small_sets[0], digest="0123456789abcdef" * 4)
    monkeypatch.setattr(data, "load", lambda *some: (other, small_sets[1]))
    assert_one_line(*outcome(capsys, train.main, argv), "was trained on other data than those found")
    # The same images in another order, as renamed files are: the split would be another.
    renamed = replace(small_sets[0], images=small_sets[0].images.flip(0), labels=small_sets[0].labels.flip(0))
    monkeypatch.setattr(data, "load", lambda *some: (renamed, small_sets[1]))
    assert_one_line(*outcome(capsys, train.main, argv), "shapes has its training images in another order")


def at_forward(patch, number, change):
    """Let `change` have the result of the n-th forward pass; the third is the validation of epoch 1."""
    forward, calls = ResNet.forward, []

    def changed(model, images):
        calls.append(1)
        return change(forward(model, images)) if len(calls) == number else forward(model, images)

    patch.setattr(ResNet, "forward", changed)


def infinite_gradient(logits):
    logits.register_hook(lambda gradient: gradient * float("inf"))
    return logits


def out_of_memory(logits):
    raise MemoryError


NOT_FINITE = r"the loss is not finite in epoch 2, at learning rate 0\.\d+: try a lower --lr, a smaller"
WHILE_TRAINING = {  # at which forward pass what happens, what is said, and the number of epochs saved before
    "a loss that is not finite": (4, lambda logits: logits * float("nan"), NOT_FINITE, 1),
    "a gradient that is not finite": (2, infinite_gradient, "the scores .* are not finite in epoch 1, at", 0),
    "no memory in Python": (5, out_of_memory, "out of memory: free some", 1),
}


@pytest.mark.slow
@pytest.mark.parametrize("row", WHILE_TRAINING)
def test_while_training(row, tmp_path, capsys, small, monkeypatch, finished):
    number, change, message, epoch = WHILE_TRAINING[row]
    with monkeypatch.context() as patch:
        at_forward(patch, number, change)
        code, err = outcome(capsys, train.main, [*SHAPES, "--out", str(tmp_path)])
    assert_one_line(code, err, message)
    # The checkpoint from before is whole, no half-written file lies about, and the run goes on from there.
    assert check_invariants(tmp_path) == epoch and not list(tmp_path.rglob("*.tmp"))
    assert train.main(continue_or_begin(tmp_path, SHAPES)) == 0
    ends = [read_checkpoint(folder / "checkpoints" / "last.pt") for folder in (tmp_path, finished)]
    torch.testing.assert_close(ends[0]["model"], ends[1]["model"], rtol=0, atol=0)

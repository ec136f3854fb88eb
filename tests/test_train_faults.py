"""Training that goes wrong: options out of range, a loss that is not finite, full memory, Ctrl-C, kill -9."""

import os
import re
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from processes import (
    TINY,
    assert_one_line,
    check_invariants,
    contents,
    continue_or_begin,
    finish,
    needs_fork,
    outcome,
    wait_for,
)

import data
import train
from running.folder import load_checkpoint

# ---- Options out of their range ---------------------------------------------------------------------------

OPTIONS = {
    "--epochs 0": "--epochs 0: expected a number from 1 to",
    "--batch-size 9": "--batch-size 9: expected at most the 8 images to train on",
    "--limit-train 201": "--limit-train 201: expected at most the 200 images to train on",
    "--lr nan": "--lr nan: expected a number from",
    "--warmup-epochs 4": r"--warmup-epochs 4\.0: expected a number from 0 to 3$",
    "--warmup-epochs nan": r"--warmup-epochs nan: expected a number from 0 to 3$",
    "--image-sizes 20,": "--image-sizes 20,: expected sizes from 8 to 32",
    "--val-fraction 0.1": r"--val-fraction 0\.1: expected at least one validation image of 300",
    "--width 15": "--width 15: expected a number from 16 to",
    "--precision fp16": "--precision fp16 needs a CUDA GPU, not cpu",
    "--device meta": "--device meta is not available on this machine",
}


@pytest.mark.parametrize("options", OPTIONS)
def test_option(options, tmp_path, capsys, small):
    argv = [*TINY, "--dataset", "shapes", "--out", str(tmp_path / "run"), *options.split()]
    assert_one_line(*outcome(capsys, train.main, argv), OPTIONS[options])
    assert contents(tmp_path) == {}


# ---- What goes wrong while it trains ----------------------------------------------------------------------


def not_finite_input(patch):
    """The first batch of epoch 2 is not a number."""
    calls = []

    def to_input(images, size):
        calls.append(images)
        x = data.to_input(images, size)
        return x.fill_(float("nan")) if len(calls) == 4 else x  # the third call is the validation of epoch 1

    patch.setattr(train, "to_input", to_input)


def not_finite_gradient(patch):
    """The last step of epoch 1 is finite and its gradient infinite; validation is the first to see it."""
    calls = []

    def clip(parameters, norm):
        calls.append(norm)
        if len(calls) == 2:
            next(iter(parameters)).grad.fill_(float("inf"))

    patch.setattr(train.nn.utils, "clip_grad_norm_", clip)


def raising(error):
    def prepare(patch):
        calls = []

        def to_input(images, size):
            calls.append(images)
            if len(calls) == 5:
                raise error
            return data.to_input(images, size)

        patch.setattr(train, "to_input", to_input)

    return prepare


def memory_of_the_machine(patch):
    patch.setattr(train, "to_input", lambda *args: torch.empty(10**16))


def disk_full(patch):
    """/dev/full takes no byte, as a full disk; it is full when last.pt of epoch 2 is written."""
    write_bytes = Path.write_bytes

    def full(path, content):
        second = path.name.startswith(".last.pt.") and (path.parent / "last.pt").exists()
        return write_bytes(Path("/dev/full") if second else path, content)

    patch.setattr(Path, "write_bytes", full)


OUT_OF_MEMORY = "out of memory: free some .* or start a new run with half the --batch-size$"
WHILE_TRAINING = {
    "a loss that is not finite": (
        not_finite_input,
        r"the loss is not finite in epoch 2, step 1, at learning rate 0\.\d+: try a lower --lr, a smaller",
        1,
    ),
    "a gradient that is not finite": (
        not_finite_gradient,
        "the loss is not finite in epoch 1, step 2, at",
        0,
    ),
    "no memory on the GPU": (raising(torch.OutOfMemoryError("CUDA out of memory.")), OUT_OF_MEMORY, 1),
    "no memory in Python": (raising(MemoryError()), OUT_OF_MEMORY, 1),
    "no memory on the machine": (memory_of_the_machine, OUT_OF_MEMORY, 0),
    "a full disk": (
        disk_full,
        r"last\.pt cannot be written \(No space left on device\); the previous file is unchanged",
        1,
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("row", WHILE_TRAINING)
def test_while_training(row, tmp_path, capsys, small, monkeypatch, finished):
    prepare, message, epoch = WHILE_TRAINING[row]
    with monkeypatch.context() as patch:
        prepare(patch)
        argv = [*TINY, "--dataset", "shapes", "--out", str(tmp_path)]
        code, err = outcome(capsys, train.main, argv)
    assert_one_line(code, err, message)
    # The checkpoint from before is whole, no half-written file lies about, and the run goes on from there.
    assert check_invariants(tmp_path) == epoch and not list(tmp_path.rglob("*.tmp"))
    assert train.main(continue_or_begin(tmp_path, [*TINY, "--dataset", "shapes"])) == 0
    ends = [load_checkpoint(folder / "checkpoints" / "last.pt") for folder in (tmp_path, finished)]
    torch.testing.assert_close(ends[0]["model"], ends[1]["model"], rtol=0, atol=0)


@pytest.mark.slow
def test_compile_without_a_compiler(tmp_path):
    argv = [*TINY, "--compile", "--dataset", "shapes", "--limit-train=4", "--out", str(tmp_path / "run")]
    bare = {name: os.environ[name] for name in os.environ.keys() - {"CXX", "CC"}}
    bare |= {"PATH": "/nowhere", "TORCHINDUCTOR_CACHE_DIR": str(tmp_path / "cache")}
    command = [sys.executable, train.__file__, *argv]
    done = subprocess.run(command, env=bare, capture_output=True, text=True)
    assert_one_line(done.returncode, done.stderr, "--compile needs a working C.. compiler, or leave it out")


def test_another_error_is_not_hidden(tmp_path, small, monkeypatch):
    raising(RuntimeError("something else"))(monkeypatch)
    with pytest.raises(RuntimeError, match="something else"):
        train.main([*TINY, "--dataset", "shapes", "--out", str(tmp_path)])


def test_ctrl_c_before_the_training(tmp_path, capsys, monkeypatch):
    def load(*args):
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(5)

    monkeypatch.setattr(train, "load", load)
    argv = [*TINY, "--dataset", "shapes", "--out", str(tmp_path)]
    assert outcome(capsys, train.main, argv) == (130, "interrupted\n")


# ---- Signals to a process of its own ----------------------------------------------------------------------


def resumed(run, start):
    """Resume the run in a process of its own, and return that when it has saved an epoch more."""
    last = run / "checkpoints" / "last.pt"
    stamp = last.stat().st_mtime_ns
    process = start(["--resume", "--out", str(run)])
    assert wait_for(lambda: last.stat().st_mtime_ns != stamp, process)
    return process


@needs_fork
def test_ctrl_c_says_how_to_resume(tmp_path, start, tiny_cifar):
    run, log = tmp_path / "a run", tmp_path / "log"
    process = start([*tiny_cifar, "--epochs", "2000", "--patience", "0", "--out", str(run)])
    assert wait_for((run / "checkpoints" / "last.pt").exists, process)
    os.kill(process.pid, signal.SIGINT)
    assert finish(process) == 130
    written = log.read_text()
    command = re.search(r"\ninterrupted; resume with: python train\.py (.*)\n$", written)
    assert "Traceback" not in written and not list(run.rglob("*.tmp"))
    epoch = check_invariants(run)
    # The command that it names works, and goes on after the last finished epoch.
    assert shlex.split(command[1]) == ["--resume", "--out", str(run)]
    resumed(run, start)
    assert f"\nresumed  after {epoch} epochs\n" in log.read_text()

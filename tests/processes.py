"""Command lines for the tests, run in this process, and what holds of the run that is left."""

import csv
import os
import re
import shutil
from pathlib import Path

import pytest
import torch

import data
import report
import train
from support.checkpoint import read_checkpoint
from support.console import run_main

ROOT = Path(train.__file__).parent
TINY = ["--width=16", "--limit-train=8", "--batch-size=4", "--epochs=3", "--device=cpu", "--precision=fp32"]
CPU = torch.device("cpu")


def use_sets(patch, sets, *modules):
    """Let train.py, report.py and some modules of the laboratory find these sets under every name."""
    for module in (data, report, *modules):
        patch.setattr(module, "load", lambda name, root="data", *sides, **more: sets)


def outcome(capsys, main, argv):
    """Run a command line in this process; return its exit code and what it wrote to stderr."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as info:
        run_main(lambda: main(argv))
    return info.value.code or 0, capsys.readouterr().err


def assert_one_line(code, err, message):
    """Exit code 2, and after lines of stages one of at most 300 letters: error: and `message` in it."""
    *stages, line = err.splitlines()
    assert code == 2 and line.startswith("error: ") and len(line) <= 300, err
    assert all(re.search(r" \.\.\.$| in [\d hmins]+$", stage) for stage in stages), err
    assert re.search(message, line), err


def contents(folder):
    """{path: bytes} of all files below a folder, and of its folders with None."""
    return {p: p.read_bytes() if p.is_file() else None for p in folder.rglob("*")}


def continue_or_begin(run, options):
    """The options with which a run is resumed, or begun where it has saved nothing to resume yet."""
    if (run / "checkpoints" / "last.pt").exists():
        return ["--resume", "--out", str(run)]
    if (run / "checkpoints" / "best.pt").exists():  # killed between the two
        shutil.rmtree(run)
    return [*options, "--out", str(run)]


def read_history(run):
    """The rows of logs/history.csv, numbers as such."""
    with open(run / "logs" / "history.csv", newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    return [{k: v if k == "precision" else float(v) for k, v in row.items()} for row in rows]


def without_times(history):
    return [{k: v for k, v in row.items() if k not in ("seconds", "images_per_second")} for row in history]


def assert_same_run(run, reference):
    """Every bit of the weights, the optimizer, the history and best.pt is the same; not so the times."""
    for name, keys in {"last.pt": ("model", "optimizer", "scaler", "epoch"), "best.pt": ("model",)}.items():
        ours, theirs = (read_checkpoint(folder / "checkpoints" / name) for folder in (run, reference))
        for key in keys:
            torch.testing.assert_close(ours[key], theirs[key], rtol=0, atol=0)
        assert without_times(ours["history"]) == without_times(theirs["history"])
    assert without_times(read_history(run)) == without_times(read_history(reference))


def check_invariants(run):
    """What holds whenever a process is killed; returns the number of epochs in last.pt, 0 without one."""
    checkpoints, csv_file = run / "checkpoints", run / "logs" / "history.csv"
    if not (run / "config.json").exists():
        assert not list(run.rglob("*.pt")) and not csv_file.exists()
    epoch, saved, best_epoch = 0, [], 1
    if (checkpoints / "last.pt").exists():
        last = read_checkpoint(checkpoints / "last.pt")
        epoch, saved = last["epoch"], last["history"]
        assert [row["epoch"] for row in saved] == list(range(1, epoch + 1))
        best_epoch = max(saved, key=lambda row: row["val_accuracy"])["epoch"]  # the first of equal ones
    # An epoch writes best.pt, history.csv and last.pt in this order, so the first two may be one ahead.
    assert epoch == 0 or ((checkpoints / "best.pt").exists() and csv_file.exists())
    if (checkpoints / "best.pt").exists():
        _, best = report.load_network(checkpoints / "best.pt")
        assert best["epoch"] in (best_epoch, epoch + 1)
    if csv_file.exists():
        history = read_history(run)
        assert len(history) in (epoch, epoch + 1) and history[:epoch] == saved
        assert all(None not in row.values() and len(row) == 10 for row in history)
    return epoch


class KilledError(BaseException):
    """Nothing more is done to files once it is raised, also by what cleans up."""


def die_at(number, patch):
    """Kill a command before its n-th change to files; of a file half is written by then."""
    count = 0

    def counting(function, changes=lambda *args: True, half=lambda *args: None):
        def counted(*args, **kwargs):
            nonlocal count
            count += changes(*args)
            if count == number:
                half(*args)
            if count >= number:
                raise KilledError
            return function(*args, **kwargs)

        return counted

    def half_bytes(path, content):
        with open(path, "wb") as file:
            file.write(content[: len(content) // 2])

    for name in ("fsync", "replace"):
        patch.setattr(os, name, counting(getattr(os, name)))
    patch.setattr(Path, "mkdir", counting(Path.mkdir, changes=lambda path, *args: not path.exists()))
    patch.setattr(Path, "unlink", counting(Path.unlink, changes=Path.exists))
    patch.setattr(Path, "write_bytes", counting(Path.write_bytes, half=half_bytes))

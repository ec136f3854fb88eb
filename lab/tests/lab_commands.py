"""Command lines for the tests, run in this process."""

import re
from pathlib import Path

import pytest
import torch

import data
import train
from lab import pictures
from lab.support import run_main

ROOT = Path(train.__file__).parent
TINY = ["--width=16", "--limit-train=8", "--batch-size=4", "--epochs=3", "--device=cpu", "--precision=fp32"]
CPU = torch.device("cpu")


def use_sets(patch, sets):
    """Let the core and the laboratory find these sets under every name."""
    for module in (data, pictures):
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

"""support/console.py: options from settings, progress, and errors in one line."""

import dataclasses
import errno
import io
import itertools
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from support import console, settings
from support.errors import UserError, reading

ROOT = Path(console.__file__).parent.parent


@dataclasses.dataclass
class Bread:
    grain: str = settings.setting("rye", "which flour", choices=["rye", "wheat"])
    flour: float = settings.setting(500.0, "in grams", low=1, high=5000)
    num_loaves: int = settings.setting(2, "baked at once", low=1, high=6)
    minutes: int | None = settings.setting(None, "in the oven", low=1, high=120)
    baked_by: str | None = settings.setting(None, "name of the baker", metavar="NAME")
    knead: bool = settings.setting(True, "by hand")


def parse(argv):
    line = console.CommandLine("Bake.")
    settings.add_settings(line, Bread, {"wheat": {"minutes": 45, "num_loaves": 4}})
    return vars(line.parse_args(argv))


def test_an_option_that_was_not_given_leaves_the_default_or_the_saved_value():
    given = parse(["--num-loaves", "3", "--baked-by=Ann", "--no-knead", "--flour", "7"])
    assert given == {"num_loaves": 3, "baked_by": "Ann", "knead": False, "flour": 7.0}
    assert type(given["flour"]) is float
    assert parse([]) == {} and parse(["--knead", "--grain", "wheat"]) == {"knead": True, "grain": "wheat"}
    saved = dataclasses.asdict(Bread(grain="wheat", num_loaves=1))
    assert Bread(**(saved | given)) == Bread("wheat", 7.0, 3, None, "Ann", False)


@pytest.mark.parametrize(
    "argv, message",
    [
        ("--flour 0", "--flour 0.0: expected a number from 1 to 5000"),
        ("--flour nan", "--flour nan: expected a number from 1 to 5000"),
        ("--num-loaves two", "argument --num-loaves: "),
    ],
)
def test_an_option_that_is_refused(argv, message):
    with pytest.raises(UserError) as info:
        settings.check_ranges(Bread(**parse(argv.split())))
    assert str(info.value).startswith(message) and "\n" not in str(info.value)


class Screen(io.StringIO):
    isatty, fileno = lambda self: True, lambda self: 2


@pytest.mark.parametrize("columns", [20, 80])
def test_progress_never_needs_more_than_the_line_and_uses_no_colour(monkeypatch, columns):
    screen = Screen()
    monkeypatch.setattr(os, "get_terminal_size", lambda number: os.terminal_size((columns, 24)))
    monkeypatch.setattr(sys, "stderr", screen)
    monkeypatch.setattr(console.time, "monotonic", itertools.count(0, 10).__next__)  # every ten seconds
    with console.Progress("epoch 1/40", 200) as progress:
        for done in (0, 50, 100, 200):
            progress.update(done, loss="2.312", lr="0.0123", rate="1,234 images/s")
    written = screen.getvalue()
    assert set(re.findall(r"\x1b\[[0-9;]*[A-Za-z]", written)) == {"\x1b[K"}  # erase to the end of the line
    lines = written.replace("\x1b[K", "").split("\r")
    assert all(len(line) < columns for line in lines) and lines[-1] == "" and "\n" not in written
    if columns == 80:
        shown = "epoch 1/40  100/200  loss 2.312  lr 0.0123  rate 1,234 images/s  30 s left"
        assert lines[3] == shown  # half of it took thirty seconds


def test_a_log_says_that_a_stage_begins_and_that_it_ends(capsys, monkeypatch):
    now = iter([0.0, 75.2, 0.0, 0.0, 9.0])
    monkeypatch.setattr(console.time, "monotonic", lambda: next(now))
    with console.Progress("test images", 10000):
        pass
    with pytest.raises(ZeroDivisionError), console.Progress("reasons", 1):
        raise ZeroDivisionError
    with console.Progress("epoch 1/40", 200, in_log=False):
        pass
    out, err = capsys.readouterr()
    assert (out, err) == ("", "test images: 10,000 ...\ntest images: 10,000 in 1 min 15 s\nreasons ...\n")


def test_a_command_with_what_was_given_and_the_help_with_the_defaults(capsys):
    options = {"num_loaves": 3, "names": ["a b", "c"], "knead": True, "cut": False, "to": None, "more": []}
    lines = console.command_of("python bake.py", options).split(" \\\n    ")
    assert lines == ["python bake.py", "--num-loaves 3", "--names 'a b' c", "--knead"]
    with pytest.raises(SystemExit):
        parse(["--help"])
    assert "baked at once (1 to 6, default: 2, wheat: 4)" in " ".join(capsys.readouterr().out.split())


def test_duration_in_words():
    durations = {9.6: "10 s", 59.6: "1 min 0 s", 75.2: "1 min 15 s", 3599.4: "59 min 59 s", 3600: "1 h 0 min"}
    assert {seconds: console.duration(seconds) for seconds in durations} == durations


@pytest.mark.parametrize(
    "raised, code, message",
    [
        (UserError("x: do y"), 2, "error: x: do y\n"),
        (KeyboardInterrupt(), 130, "interrupted\n"),
        (PermissionError(errno.EACCES, "No permission", "a/file"), 2, "error: a/file: No permission\n"),
        (MemoryError(), 2, "error: out of memory"),
        (SystemExit(7), 7, ""),
    ],
)
def test_run_main_turns_errors_into_one_line(capsys, raised, code, message):
    def main():
        raise raised

    with pytest.raises(SystemExit) as info:
        console.run_main(main)
    out, err = capsys.readouterr()
    assert info.value.code == code and out == "" and err.startswith(message)
    assert len(err) <= 301 and err.count("\n") == bool(message)


def test_torch_without_memory_is_one_line_and_another_runtime_error_shows_where_it_was(capsys):
    with pytest.raises(SystemExit) as info:
        console.run_main(lambda: torch.empty(10**15))
    assert (info.value.code, capsys.readouterr().err[:21]) == (2, "error: out of memory:")
    with pytest.raises(MemoryError), reading("x.pt", "weights"):
        raise MemoryError
    with pytest.raises(RuntimeError, match="DefaultCPUAllocator"), reading("x.pt", "weights"):
        torch.empty(10**15)
    with pytest.raises(RuntimeError, match="shape"):
        console.run_main(lambda: torch.ones(3).view(2, 2))


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs a disk that is always full")
def test_a_full_disk_is_one_line():
    command = [sys.executable, "-c", "from support.console import *; run_main(lambda: print('a line'))"]
    with open("/dev/full", "w") as full:
        ended = subprocess.run(command, cwd=ROOT, stdout=full, stderr=subprocess.PIPE)
    assert (ended.returncode, ended.stderr) == (2, b"error: No space left on device\n")

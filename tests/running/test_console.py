"""running/console.py: options from settings, progress, and errors in one line."""

import dataclasses
import errno
import io
import os
import re
import sys

import pytest

from running import console
from running.files import UserError

# ---- Settings --------------------------------------------------------------------------------------------


@dataclasses.dataclass
class Bread:
    grain: str = console.setting("rye", "which flour", choices=["rye", "wheat"])
    flour: float = console.setting(500.0, "in grams", low=1, high=5000)
    num_loaves: int = console.setting(2, "baked at once", low=1, high=6)
    minutes: int | None = console.setting({"rye": 60, "wheat": 45}, "in the oven", low=1, high=120)
    baked_by: str | None = console.setting(None, "name of the baker", metavar="NAME")
    knead: bool = console.setting(True, "by hand")


def parse(argv):
    parser = console.CommandLine("Bake.")
    console.add_options(parser, Bread)
    return vars(parser.parse_args(argv))


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
        ("--num-loaves 7", "--num-loaves 7: expected a number from 1 to 6"),
        ("--num-loaves two", "argument --num-loaves: invalid int value: 'two' (see "),
        ("--grain oats", "argument --grain: invalid choice: 'oats' (choose from "),
        ("--knead yes", "unrecognized arguments: yes (see "),
        ("--flour", "argument --flour: expected one argument (see "),
    ],
)
def test_an_option_that_is_refused(argv, message):
    with pytest.raises(UserError) as info:
        console.check_ranges(Bread(**parse(argv.split())))
    assert str(info.value).startswith(message) and "\n" not in str(info.value)


# ---- Progress --------------------------------------------------------------------------------------------


def on_terminal(monkeypatch, columns, draw, term="xterm"):
    """Return what `draw` writes to a terminal that is `columns` wide."""
    import fcntl
    import pty
    import struct
    import termios

    leader, follower = pty.openpty()
    fcntl.ioctl(follower, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
    monkeypatch.setenv("TERM", term)
    with os.fdopen(follower, "w") as stderr:
        monkeypatch.setattr(sys, "stderr", stderr)
        draw()
        print("end", file=stderr)
        written = b""
        while not written.endswith(b"end\r\n"):
            written += os.read(leader, 4096)
    os.close(leader)
    return written.decode().removesuffix("end\r\n")


def draw_progress():
    with console.Progress("epoch 1/40", 200) as progress:
        for done in (0, 50, 100, 200):
            progress.update(done, loss="2.312", lr="0.0123", rate="1,234 images/s")
            progress.written = 0.0  # or most would be left out: ten a second are enough


needs_terminal = pytest.mark.skipif(not hasattr(os, "openpty"), reason="needs a pseudo terminal")


@needs_terminal
@pytest.mark.parametrize("columns", [0, 1, 20, 80])
def test_progress_never_needs_more_than_the_line_and_uses_no_colour(monkeypatch, columns):
    written = on_terminal(monkeypatch, columns, draw_progress)
    assert set(re.findall(r"\x1b\[[0-9;]*[A-Za-z]", written)) == {"\x1b[K"}  # erase to the end of the line
    lines = written.replace("\x1b[K", "").split("\r")
    # A terminal of width 0 does not know its width, and is taken for one of 80.
    assert all(len(line) < (columns or 80) for line in lines) and lines[-1] == "" and "\n" not in written
    if columns in (0, 80):
        assert "epoch 1/40" in lines[2] and "100/200  loss 2.312  lr 0.0123  rate 1,234 images/s" in lines[3]


@needs_terminal
def test_duration_in_words():
    durations = {9.6: "10 s", 59.6: "1 min 0 s", 75.2: "1 min 15 s", 3599.4: "59 min 59 s", 7370: "2 h 3 min"}
    assert {seconds: console.duration(seconds) for seconds in durations} == durations


def test_progress_is_silent_where_there_is_no_terminal(monkeypatch, capsys):
    draw_progress()
    assert capsys.readouterr() == ("", "")
    assert on_terminal(monkeypatch, 80, draw_progress, term="dumb") == ""


# ---- Errors and exit codes -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "raised, code, message",
    [
        (UserError("x: do y"), 2, "error: x: do y\n"),
        (UserError("x\nof\x1b[31m " + "y" * 1000), 2, "error: x of?[31m " + "y" * 185),
        (KeyboardInterrupt(), 130, "interrupted\n"),
        (PermissionError(errno.EACCES, "No permission", "a/file"), 2, "error: a/file: No permission\n"),
        (OSError(errno.ENOMEM, "Cannot allocate memory"), 2, "error: Cannot allocate memory\n"),
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
    assert len(err) <= 308 and err.count("\n") == bool(message)


def test_run_main_prints_each_line_at_once_and_whatever_its_letters(monkeypatch):
    def main():
        print("Läufe")
        assert sys.stdout.buffer.getvalue() == b"L?ufe\n"

    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(io.BytesIO(), encoding="ascii"))
    with pytest.raises(SystemExit):
        console.run_main(main)

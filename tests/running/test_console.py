"""running/console.py: options from settings, progress, and errors in one line."""

import dataclasses
import errno
import io
import os
import re
import subprocess
import sys

import pytest
from processes import ROOT, check_invariants, finish, needs_fork

from running import console
from running.files import UserError

# ---------------------------------------------------------------------------------------------------------
# Settings


@dataclasses.dataclass
class Bread:
    flour: float = console.setting(500.0, "in grams", low=1, high=5000)
    num_loaves: int = console.setting(2, "baked at once", low=1, high=6)
    grain: str = console.setting("rye", "which flour", choices=["rye", "wheat"])
    baked_by: str | None = console.setting(None, "name of the baker", metavar="NAME")
    hours: float | None = console.setting(None, "default: until it has risen", low=0, high=48)
    knead: bool = console.setting(True, "by hand")


def parse(argv):
    parser = console.CommandLine("Bake.")
    console.add_options(parser, Bread)
    return vars(parser.parse_args(argv))


def test_an_option_that_was_not_given_leaves_the_default_or_the_saved_value():
    given = parse(["--num-loaves", "3", "--baked-by=Ann", "--no-knead", "--hours", "1e1"])
    assert given == {"num_loaves": 3, "baked_by": "Ann", "knead": False, "hours": 10.0}
    assert parse([]) == {} and parse(["--knead", "--grain", "wheat"]) == {"knead": True, "grain": "wheat"}
    assert type(parse(["--flour", "7"])["flour"]) is float
    saved = dataclasses.asdict(Bread(flour=100.0, num_loaves=1))
    assert Bread(**(saved | given)) == Bread(100.0, 3, "rye", "Ann", 10.0, False)
    console.check_settings(Bread(**given))


def test_help_shows_ranges_and_defaults():
    parser = console.CommandLine("Bake.")
    console.add_options(parser, Bread)
    text = " ".join(parser.format_help().split())
    for part in [
        "--flour FLOUR in grams (1 to 5000, default: 500.0)",
        "--num-loaves NUM_LOAVES baked at once (1 to 6, default: 2)",
        "--grain {rye,wheat} which flour (default: rye)",
        "--baked-by NAME name of the baker",
        "--hours HOURS default: until it has risen (0 to 48)",
        "--knead, --no-knead by hand (default: True)",
    ]:
        assert part in text
    assert console.option("num_loaves") == "--num-loaves"


@pytest.mark.parametrize(
    "argv, message",
    [
        ("--flour 0", "--flour 0.0: expected a number from 1 to 5000"),
        ("--flour 5000.5", "--flour 5000.5: expected a number from 1 to 5000"),
        ("--flour nan", "--flour nan: expected a number from 1 to 5000"),
        ("--flour=-inf", "--flour -inf: expected a number from 1 to 5000"),
        ("--num-loaves 7", "--num-loaves 7: expected a number from 1 to 6"),
        ("--hours -1", "--hours -1.0: expected a number from 0 to 48"),
        ("--num-loaves two", "argument --num-loaves: invalid int value: 'two' (see "),
        ("--num-loaves 2.0", "argument --num-loaves: invalid int value: '2.0' (see "),
        ("--flour much", "argument --flour: invalid float value: 'much' (see "),
        ("--grain oats", "argument --grain: invalid choice: 'oats' (choose from "),
        ("--knead yes", "unrecognized arguments: yes (see "),
        ("--water 9", "unrecognized arguments: --water 9 (see "),
    ],
)
def test_an_option_that_is_refused(argv, message):
    with pytest.raises(UserError) as info:
        console.check_settings(Bread(**parse(argv.split())))
    assert str(info.value).startswith(message) and "\n" not in str(info.value)


@pytest.mark.parametrize(
    "values, message",
    [
        ({"num_loaves": "2"}, "--num-loaves: invalid int value: '2'"),
        ({"num_loaves": 2.0}, "--num-loaves: invalid int value: 2.0"),
        ({"num_loaves": True}, "--num-loaves: invalid int value: True"),
        ({"num_loaves": None}, "--num-loaves: invalid int value: None"),
        ({"flour": [1]}, "--flour: invalid float value: [1]"),
        ({"hours": "1"}, "--hours: invalid float value: '1'"),
        ({"grain": 5}, "--grain: invalid str value: 5"),
        ({"grain": "oats"}, "--grain: invalid choice: 'oats' (choose from rye, wheat)"),
        ({"baked_by": 5}, "--baked-by: invalid str value: 5"),
        ({"knead": 1}, "--knead: invalid bool value: 1"),
        ({"hours": 49}, "--hours 49: expected a number from 0 to 48"),
    ],
)
def test_saved_settings_that_were_edited_are_refused(values, message):
    with pytest.raises(UserError) as info:
        console.check_settings(Bread(**values))
    assert str(info.value) == message


def test_the_ends_of_a_range_are_in_it():
    for values in ({"flour": 1}, {"flour": 5000.0}, {"num_loaves": 6}, {"hours": 0.0}, {"hours": None}):
        console.check_settings(Bread(**values))


def test_command_line_errors_are_one_line():
    parser = console.CommandLine("Something.\n\nMore.")
    parser.add_argument("--n", type=int)
    for argv in (["--n", "x"], ["--m"], ["--n"]):
        with pytest.raises(UserError, match=r"\(see .* --help\)$") as info:
            parser.parse_args(argv)
        assert "\n" not in str(info.value)


# ---------------------------------------------------------------------------------------------------------
# Progress


@pytest.mark.parametrize(
    "seconds, text",
    [(0, "0:00"), (59.4, "0:59"), (59.6, "1:00"), (75.2, "1:15"), (3599.9, "1:00:00"), (3725, "1:02:05")],
)
def test_duration(seconds, text):
    assert console.duration(seconds) == text


def on_terminal(monkeypatch, columns, draw, **env):
    """Return what `draw` writes to a terminal that is `columns` wide."""
    import fcntl
    import pty
    import struct
    import termios

    leader, follower = pty.openpty()
    fcntl.ioctl(follower, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
    for name, value in {"TERM": "xterm", **env}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("COLUMNS", raising=False)
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
@pytest.mark.parametrize("columns", [0, 1, 5, 20, 40, 80, 200])
def test_progress_never_needs_more_than_the_line(monkeypatch, columns):
    written = on_terminal(monkeypatch, columns, draw_progress)
    lines = written.replace("\x1b[K", "").split("\r")
    assert all(len(line) < (columns or 80) for line in lines) and lines[-1] == ""
    assert "\n" not in written
    if columns == 0:  # the terminal does not know, so it is taken for one of 80
        assert written == on_terminal(monkeypatch, 80, draw_progress)
    if columns >= 80:
        assert "epoch 1/40" in lines[2] and "100/200  loss 2.312  lr 0.0123  rate 1,234 images/s" in lines[3]


@needs_terminal
def test_progress_uses_no_colour(monkeypatch):
    written = on_terminal(monkeypatch, 80, draw_progress, NO_COLOR="1")
    assert set(re.findall(r"\x1b\[[0-9;]*[A-Za-z]", written)) == {"\x1b[K"}  # erase to the end of the line


@needs_terminal
def test_progress_is_silent_on_a_dumb_terminal(monkeypatch):
    assert on_terminal(monkeypatch, 80, draw_progress, TERM="dumb") == ""


def test_progress_is_silent_where_there_is_no_terminal(capsys):
    draw_progress()
    assert capsys.readouterr() == ("", "")


@needs_terminal
def test_progress_tells_the_time_left_from_where_it_began(monkeypatch):
    clock = iter([200.0, 260.0])
    monkeypatch.setattr(console.time, "monotonic", lambda: next(clock))

    def resumed_in_the_middle():
        progress = console.Progress("x", 100)
        progress.update(40)
        progress.update(60)  # 20 in 60 s, so the other 40 take 120 s

    assert "60/100  2:00 left" in on_terminal(monkeypatch, 80, resumed_in_the_middle)


# ---------------------------------------------------------------------------------------------------------
# Errors and exit codes


@pytest.mark.parametrize(
    "raised, code, message",
    [
        (UserError("x: do y"), 2, "error: x: do y\n"),
        (KeyboardInterrupt(), 130, "interrupted\n"),
        (PermissionError(errno.EACCES, "No permission", "a/file"), 2, "error: a/file: No permission\n"),
        (OSError(errno.ENOSPC, "No space left on device", "f"), 2, "error: f: No space left on device\n"),
        (SystemExit(7), 7, ""),
    ],
)
def test_run_main_turns_errors_into_one_line(capsys, raised, code, message):
    def main():
        raise raised

    with pytest.raises(SystemExit) as info:
        console.run_main(main)
    assert info.value.code == code and capsys.readouterr() == ("", message)


def test_run_main_passes_exit_codes_and_unknown_errors(capsys):
    for code in (0, 130, None):
        with pytest.raises(SystemExit) as info:
            console.run_main(lambda code=code: code)
        assert info.value.code == code
    with pytest.raises(ZeroDivisionError):
        console.run_main(lambda: 1 / 0)


def test_run_main_prints_each_line_at_once_and_whatever_its_letters(monkeypatch):
    def main():
        print("Läufe")
        assert sys.stdout.buffer.getvalue() == b"L?ufe\n"

    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(io.BytesIO(), encoding="ascii"))
    with pytest.raises(SystemExit):
        console.run_main(main)


# ---------------------------------------------------------------------------------------------------------
# Real processes


@pytest.mark.slow
@needs_fork
def test_a_reader_that_goes(tmp_path, tiny_cifar):
    """python train.py | head -n 1, in a process that ends as any other does."""
    command = [sys.executable, str(ROOT / "train.py"), *tiny_cifar, "--epochs=2000", f"--out={tmp_path}"]
    env = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    with subprocess.Popen(command, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout.readline().startswith(b"data     CIFAR-100")
        process.stdout.close()
        assert (process.wait(60), process.stderr.read()) == (141, b"")
    check_invariants(tmp_path)


@pytest.mark.slow
@needs_fork
def test_output_into_a_full_disk(tmp_path, start, tiny_cifar):
    log = tmp_path / "log 2"
    process = start([*tiny_cifar, "--out", str(tmp_path / "run")], stdout="/dev/full", stderr=str(log))
    assert finish(process) == 2 and log.read_text() == "error: No space left on device\n"


def narrow_terminal():
    import fcntl
    import struct
    import termios

    fcntl.ioctl(2, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 30, 0, 0))
    os.environ |= {"TERM": "xterm", "NO_COLOR": "1"}


@pytest.mark.slow
@needs_fork
def test_a_narrow_terminal_without_colour(tmp_path, start, tiny_cifar):
    leader, follower = os.openpty()
    process = start(
        [*tiny_cifar, "--out", str(tmp_path / "run")],
        stdout=os.devnull,
        stderr=os.ttyname(follower),
        prepare=narrow_terminal,
    )
    assert finish(process) == 0
    os.close(follower)
    written = os.read(leader, 100_000).decode()
    assert "epoch 1/3" in written and "validation" in written and "\n" not in written
    assert set(re.findall(r"\x1b\[[0-9;]*[A-Za-z]", written)) == {"\x1b[K"}
    assert all(len(line) < 30 for line in written.replace("\x1b[K", "").split("\r"))


@pytest.mark.slow
@needs_fork
def test_the_command_itself_in_a_poor_place(tmp_path, tiny_cifar):
    """No home, no display, no terminal, an ASCII console, and a path with spaces and letters beyond ASCII."""
    env = {k: v for k, v in os.environ.items() if k not in ("DISPLAY", "TERM", "LANG", "PYTHONUNBUFFERED")}
    env |= {"HOME": "/dev/null/nowhere", "LC_ALL": "C", "PYTHONIOENCODING": "ascii", "OMP_NUM_THREADS": "1"}
    run = tmp_path / "grüne Läufe" / "ein Lauf"
    command = [sys.executable, str(ROOT / "train.py"), *tiny_cifar, "--out", str(run)]
    done = subprocess.run(command, env=env, capture_output=True, cwd=tmp_path, timeout=120)
    out = done.stdout.decode("ascii")
    assert (done.returncode, done.stderr) == (0, b"")
    assert "epoch   3/3  lr " in out and f"--run '{tmp_path}/gr?ne L?ufe/ein Lauf'\n" in out
    assert check_invariants(run) == 3

"""The command line: settings as options, progress, and errors in one line."""

import argparse
import dataclasses
import errno
import os
import sys
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any, TextIO, get_args

from running.files import UserError, one_line


def setting(default: Any, help: str, low=None, high=None, choices=None, metavar=None) -> Any:
    """Return a field of a dataclass, `lr: float = setting(0.15, "peak rate", low=0, high=1)`.

    Options, help and checks follow from it. Its type is int, float, str or bool, or one of these `| None`; a
    range includes both its ends. choices and metavar are those of argparse.
    """
    metadata = {"help": help, "low": low, "high": high, "choices": choices, "metavar": metavar}
    return dataclasses.field(default=default, metadata=metadata)


def option(name: str) -> str:
    """Return "batch_size" as "--batch-size"."""
    return "--" + name.replace("_", "-")


def add_options(parser: argparse.ArgumentParser, settings: type, presets: dict | None = None) -> None:
    """Add an option for each field of the dataclass `settings`, and for a bool also its opposite, --no-...

    An option that was not given is absent from what parse_args returns. The help names the default of the
    dataclass, and those of `presets`, {data set: {field: value}}.
    """
    for field in dataclasses.fields(settings):
        about = field.metadata
        notes = []
        if about["low"] is not None:
            notes.append(f"{about['low']:.10g} to {about['high']:.10g}")
        if field.default is not None:
            notes.append(f"default: {field.default}")
        for dataset, preset in (presets or {}).items():
            if preset.get(field.name) is not None:
                notes.append(f"{dataset}: {preset[field.name]}")
        text = f"{about['help']} ({', '.join(notes)})" if notes else about["help"]
        kind = (get_args(field.type) or (field.type,))[0]  # int, also for int | None
        if kind is bool:
            how = {"action": argparse.BooleanOptionalAction}
        else:
            how = {"type": kind, "choices": about["choices"], "metavar": about["metavar"]}
        parser.add_argument(option(field.name), help=text, **how).default = argparse.SUPPRESS


def expect(holds: bool, name: str, value: object, expected: str) -> None:
    """Raise UserError, such as "--epochs 0: expected a number from 1 to 9", unless the condition holds."""
    if not holds:
        raise UserError(f"{option(name)} {value}: expected {expected}")


def check_ranges(settings: Any) -> None:
    """Raise UserError if a value of the dataclass object is out of the range of its field; None is in it."""
    for field in dataclasses.fields(settings):
        value, low, high = getattr(settings, field.name), field.metadata["low"], field.metadata["high"]
        if low is not None and value is not None:
            expect(low <= value <= high, field.name, value, f"a number from {low} to {high}")


class CommandLine(argparse.ArgumentParser):
    """An argument parser whose errors are UserErrors: one line, without the usage above it."""

    def __init__(self, description: str):
        super().__init__(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)

    def error(self, message: str) -> None:
        raise UserError(f"{message} (see {self.prog} --help)")


def duration(seconds: float) -> str:
    """Return 9.6 as "10 s", 75.2 as "1 min 15 s" and 7370 as "2 h 3 min"."""
    if round(seconds) >= 3600:
        hours, minutes = divmod(round(seconds / 60), 60)
        return f"{hours} h {minutes} min"
    minutes, seconds = divmod(round(seconds), 60)
    return f"{minutes} min {seconds} s" if minutes else f"{seconds} s"


class Progress(AbstractContextManager):
    """One line on a terminal, as "epoch 1/40  100/196  loss 2.31  12 s left"; nothing elsewhere.

    with Progress("test", total) as progress: progress.update(done, loss="2.31")
    """

    def __init__(self, label: str, total: int):
        self.label, self.total = label, total
        self.started, self.written = time.monotonic(), 0.0
        self.shows = sys.stderr is not None and sys.stderr.isatty() and os.environ.get("TERM") != "dumb"

    def update(self, done: int, **values: str) -> None:
        """Write how much of the total is done, the given values and the time left, ten times a second."""
        now = time.monotonic()
        if now - self.written < 0.1:
            return
        self.written = now
        parts = [self.label, f"{done}/{self.total}", *(f"{key} {value}" for key, value in values.items())]
        if done:
            parts.append(f"{duration((now - self.started) / done * (self.total - done))} left")
        self.write("  ".join(parts))

    def write(self, text: str) -> None:
        """Put as much of the text as fits in place of the line; once the terminal is gone, nothing."""
        if self.shows:
            try:
                columns = os.get_terminal_size(sys.stderr.fileno()).columns or 80
                print(f"\r{text[: columns - 1]}", end="\033[K", file=sys.stderr, flush=True)
            except OSError:
                self.shows = False

    def __exit__(self, *exception) -> None:
        self.write("")


class Output:
    """stdout or stderr. What is written to a terminal that has closed, as after ssh and `disown`, is lost."""

    def __init__(self, stream: TextIO | None):
        # It is None where a shell has closed it.
        self.stream = stream or os.fdopen(os.open(os.devnull, os.O_WRONLY), "w")
        # Each line at once, also into a file; a letter that the console cannot show becomes a question mark.
        self.stream.reconfigure(line_buffering=True, errors="replace")

    def write(self, text: str) -> None:
        try:
            self.stream.write(text)
        except OSError as error:
            if error.errno != errno.EIO:
                raise

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)


def run_main(main: Callable[[], int | None]) -> None:
    """Run a command and exit: an error that the user can fix is one line and exit code 2, Ctrl-C is 130."""
    sys.stdout, sys.stderr = Output(sys.stdout), Output(sys.stderr)
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(130)
    except BrokenPipeError:
        sys.exit(141)  # as a shell reports SIGPIPE
    except UserError as error:
        message = str(error)
    except MemoryError:
        message = "out of memory: free some, and start the command again"
    except OSError as error:
        message = f"{error.filename}: {one_line(error)}" if error.filename else one_line(error)
    print(one_line(f"error: {message}"), file=sys.stderr)
    sys.exit(2)

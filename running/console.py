"""The command line: settings as options, progress, and errors in one line."""

import argparse
import dataclasses
import os
import sys
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any, get_args

from running.files import UserError, one_line


def setting(default: Any, help: str, low=None, high=None, **argument) -> Any:
    """Return a field of a dataclass, `lr: float = setting(0.15, "peak rate", low=0, high=1)`.

    Options, help and checks follow from it. Its type is int, float, str or bool, or one of these `| None`; a
    range includes both its ends. A default that depends on the data set is a dict, {data set: value}; the
    field is then None until that is known. What else is given goes to add_argument.
    """
    by_dataset = default if isinstance(default, dict) else {}
    metadata = {"help": help, "low": low, "high": high, "by_dataset": by_dataset, "argument": argument}
    return dataclasses.field(default=None if by_dataset else default, metadata=metadata)


def option(name: str) -> str:
    """Return "batch_size" as "--batch-size"."""
    return "--" + name.replace("_", "-")


def add_options(parser: argparse.ArgumentParser, settings: type) -> None:
    """Add an option for each field of the dataclass `settings`, and for a bool also its opposite, --no-...

    An option that was not given is absent from what parse_args returns; the default is that of the dataclass.
    """
    for field in dataclasses.fields(settings):
        help, low, high, by_dataset, argument = field.metadata.values()
        kind = (get_args(field.type) or (field.type,))[0]  # int, also for int | None
        notes = [] if low is None else [f"{low:.10g} to {high:.10g}"]
        notes += [] if field.default is None else [f"default: {field.default}"]
        notes += [f"default for {name}: {value}" for name, value in by_dataset.items()]
        if notes:
            help += f" ({', '.join(notes)})"
        how = {"action": argparse.BooleanOptionalAction} if kind is bool else {"type": kind, **argument}
        parser.add_argument(option(field.name), help=help, **how).default = argparse.SUPPRESS


def expect(holds: bool, name: str, value: object, expected: str) -> None:
    """Raise UserError, such as "--epochs 0: expected a number from 1 to 9", unless the condition holds."""
    if not holds:
        raise UserError(f"{option(name)} {value}: expected {expected}")


def check_ranges(settings: Any) -> None:
    """Raise UserError if a value is of another type than its field, none of its choices, or out of its range.

    argparse has seen to the first two on the command line, but a saved run may have been edited.
    """
    for field in dataclasses.fields(settings):
        value, (_, low, high, _, argument) = getattr(settings, field.name), field.metadata.values()
        kind, choices = (get_args(field.type) or (field.type,))[0], argument.get("choices")
        right = type(value) is kind or (kind is float and type(value) is int)
        expect(right or value is None, field.name, value, f"a value of type {kind.__name__}")
        expect(not choices or value in choices, field.name, value, f"one of {choices}")
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
        self.first = None  # the count at the first update, from which the speed is measured
        self.shows = sys.stderr.isatty() and os.environ.get("TERM") != "dumb"

    def update(self, done: int, **shown: str) -> None:
        """Write how much of the total is done, the given values and the time left, ten times a second."""
        now = time.monotonic()
        if self.first is None:
            self.first, self.started, self.written = done, now, 0.0
        if not self.shows or now - self.written < 0.1:
            return
        self.written = now
        parts = [self.label, f"{done}/{self.total}", *(f"{key} {value}" for key, value in shown.items())]
        if done > self.first:
            left = (now - self.started) / (done - self.first) * (self.total - done)
            parts.append(f"{duration(left)} left")
        columns = os.get_terminal_size(sys.stderr.fileno()).columns or 80
        print(f"\r{'  '.join(parts)[: columns - 1]}", end="\033[K", file=sys.stderr, flush=True)

    def __exit__(self, *exception) -> None:
        if self.shows:
            print(end="\r\033[K", file=sys.stderr, flush=True)


def run_main(main: Callable[[], int | None]) -> None:
    """Run a command and exit: an error that the user can fix is one line and exit code 2, Ctrl-C is 130."""
    for stream in filter(None, (sys.stdout, sys.stderr)):  # None where a shell has closed it
        # Each line at once, also into a file; a letter that the console cannot show becomes a question mark.
        stream.reconfigure(line_buffering=True, errors="replace")
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(130)
    except UserError as error:
        message = str(error)
    except OSError as error:
        try:
            sys.stdout.flush()
        except OSError:
            # Our own output failed: `| head` has ended, or the disk is full. At its exit Python would try to
            # write the rest once more, so that goes nowhere.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        if isinstance(error, BrokenPipeError):
            sys.exit(141)  # as a shell reports SIGPIPE
        message = f"{error.filename}: {one_line(error)}" if error.filename else one_line(error)
    print(f"error: {one_line(message)}", file=sys.stderr)
    sys.exit(2)

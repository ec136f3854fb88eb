"""The command line: progress, and errors in one line."""

import argparse
import os
import shlex
import sys
import time
from collections.abc import Callable

from support.errors import UserError, is_out_of_memory, one_line


class CommandLine(argparse.ArgumentParser):
    """An argument parser that raises UserError: its errors are one line, without the usage above it."""

    def __init__(self, description: str):
        super().__init__(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)

    def error(self, message: str) -> None:
        raise UserError(f"{message} (see {self.prog} --help)")


def option(name: str) -> str:
    """Return "batch_size" as "--batch-size"."""
    return "--" + name.replace("_", "-")


def command_of(start: str, options: dict) -> str:
    """Return a command with its options, {name: value}, one on each line; None, False and [] are left out."""
    words = [start]
    for name, value in options.items():
        if value is not None and value is not False and value != []:
            values = value if isinstance(value, list) else [value]
            words.append(shlex.join([option(name), *(str(value) for value in values if value is not True)]))
    return " \\\n    ".join(words)


def duration(seconds: float) -> str:
    """Return 9.6 as "10 s", 75.2 as "1 min 15 s" and 7370 as "2 h 3 min"."""
    if round(seconds) >= 3600:
        hours, minutes = divmod(round(seconds / 60), 60)
        return f"{hours} h {minutes} min"
    minutes, seconds = divmod(round(seconds), 60)
    return f"{minutes} min {seconds} s" if minutes else f"{seconds} s"


class Progress:
    """One line on a terminal, as "epoch 1/40  100/196  loss 2.31  12 s left".

    In a log it writes one line at the beginning, "test images: 10,000 ...", and one at the end, "test images:
    10,000 in 58 s", unless in_log is False.

    with Progress("test images", total) as progress: progress.update(done, loss="2.31")
    """

    def __init__(self, label: str, total: int, in_log: bool = True):
        self.label, self.total = label, total
        self.in_log = in_log and not sys.stderr.isatty()
        self.started, self.written = time.monotonic(), 0.0

    def __enter__(self) -> "Progress":
        self.log("...")
        return self

    def log(self, text: str) -> None:
        """Write a line to a log: the label, the total if it is above 1, and the text."""
        if self.in_log:
            count = f": {self.total:,}" if self.total > 1 else ""
            print(f"{self.label}{count} {text}", file=sys.stderr)

    def update(self, done: int, **values: str) -> None:
        """Write how much is done, the values and the time left, at most ten times a second."""
        now = time.monotonic()
        if now - self.written < 0.1:
            return
        self.written = now
        parts = [self.label, f"{done}/{self.total}", *(f"{key} {value}" for key, value in values.items())]
        if done:
            parts.append(f"{duration((now - self.started) / done * (self.total - done))} left")
        self.show("  ".join(parts))

    def show(self, text: str) -> None:
        """Replace the line on the terminal by the text, cut to its width."""
        if sys.stderr.isatty():
            columns = os.get_terminal_size(sys.stderr.fileno()).columns
            print(f"\r{text[: columns - 1]}", end="\033[K", file=sys.stderr, flush=True)

    def __exit__(self, error: type | None, *rest) -> None:
        self.show("")
        if error is None:
            self.log(f"in {duration(time.monotonic() - self.started)}")


def run_main(main: Callable[[], int | None]) -> None:
    """Run a command and exit: with one line and code 2 for an error the user can fix, with 130 for Ctrl-C."""
    for stream in (sys.stdout, sys.stderr):
        # Write each line at once, also to a file, and a question mark for letters that a console cannot show.
        stream.reconfigure(line_buffering=True, errors="replace")
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(130)
    except UserError as error:
        message = str(error)
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        message = "out of memory: free some, and start the command again"
    except OSError as error:
        message = f"{error.filename}: {one_line(error)}" if error.filename else one_line(error)
    print(one_line(f"error: {message}"), file=sys.stderr)
    sys.exit(2)

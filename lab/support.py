"""What several commands share: errors of one line, the console with its progress, files, and float32."""

import argparse
import contextlib
import hashlib
import io
import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path

import numpy as np
import torch

import train
from train import write

LARGE = 64 * 2**20  # bytes: larger arrays are saved as they are

# ---- Errors ------------------------------------------------------------------------------------------------


class UserError(ValueError):
    """Something the user gave cannot be used; the message is one line that says what to do about it."""


def one_line(error: object) -> str:
    """Return what an exception or a text says in one line of at most 300 printable characters.

    Files, servers and users can put anything into it. A longer text keeps its beginning and its end.
    """
    text = " ".join(str(getattr(error, "strerror", None) or error).split()) or type(error).__name__
    if isinstance(error, LookupError | TypeError | AttributeError | ArithmeticError):
        text = f"{type(error).__name__}: {text}"  # such as KeyError: 'epoch', which alone says little
    if isinstance(error, UnicodeDecodeError):
        text = "it is not text in UTF-8: save it as that"
    if len(text) > 300:
        text = f"{text[:195]} ... {text[-100:]}"
    return "".join(letter if letter.isprintable() else "?" for letter in text)


def is_out_of_memory(error: Exception) -> bool:
    """Return whether memory ran out; torch then raises a RuntimeError of many lines."""
    return (
        isinstance(error, MemoryError) or "DefaultCPUAllocator" in str(error) or "out of memory" in str(error)
    )


@contextlib.contextmanager
def reading(path: Path | str, what: str) -> Iterator[None]:
    """Raise UserError, "{path} cannot be used as {what}: {reason}", for whatever the block raises.

    The block should only read this one file and turn it into plain values. The file may be damaged, or of
    another program, and so fail anywhere on the way. An error after the block is a bug, with a traceback.
    """
    try:
        yield
    except Exception as error:
        if isinstance(error, UserError) or is_out_of_memory(error):
            raise
        raise UserError(f"{path} cannot be used as {what}: {one_line(error)}") from error


@contextlib.contextmanager
def core() -> Iterator[None]:
    """Raise UserError for the ValueError or OSError by which the core refuses what a user gave."""
    try:
        yield
    except (ValueError, OSError) as error:
        raise UserError(str(error)) from error


# ---- The command line --------------------------------------------------------------------------------------


class CommandLine(argparse.ArgumentParser):
    """An argument parser that raises UserError, one line without the usage, and takes no abbreviations."""

    def __init__(self, description: str):
        layout = argparse.RawDescriptionHelpFormatter
        super().__init__(description=description, formatter_class=layout, allow_abbrev=False)

    def error(self, message: str) -> None:
        raise UserError(f"{message} (see {self.prog} --help)")


def option(name: str) -> str:
    """Return "batch_size" as "--batch-size"."""
    return "--" + name.replace("_", "-")


class Progress:
    """One line on a terminal, as "stress tests  31/125  test fog/3  0:12:00 left"; in a log two lines.

    with Progress("test images", total) as progress: progress.update(done, test="fog/3")
    """

    def __init__(self, label: str, total: int):
        self.label, self.total = label, total
        self.started, self.written = time.monotonic(), 0.0

    def __enter__(self) -> "Progress":
        self.log("...")
        return self

    def log(self, text: str) -> None:
        """Write a line to a log: the label, the total if it is above 1, and the text."""
        if not sys.stderr.isatty():
            count = f": {self.total:,}" if self.total > 1 else ""
            print(f"{self.label}{count} {text}", file=sys.stderr)

    def update(self, done: int, **values: str) -> None:
        """Write how much is done, the values and the time left, at most ten times a second."""
        now = time.monotonic()
        if not sys.stderr.isatty() or now - self.written < 0.1:
            return
        self.written = now
        parts = [self.label, f"{done}/{self.total}", *(f"{key} {value}" for key, value in values.items())]
        if done:
            left = (now - self.started) / done * (self.total - done)
            parts.append(f"{timedelta(seconds=round(left))} left")
        columns = os.get_terminal_size(sys.stderr.fileno()).columns
        print(f"\r{'  '.join(parts)[: columns - 1]}\033[K", end="", file=sys.stderr, flush=True)

    def __exit__(self, error: type | None, *rest) -> None:
        if sys.stderr.isatty():
            print("\r\033[K", end="", file=sys.stderr, flush=True)
        elif error is None:
            self.log(f"in {time.monotonic() - self.started:.0f} s")


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


# ---- Files; digests are sha256 -----------------------------------------------------------------------------


def file_digest(path: Path) -> str:
    """Return the digest of a file."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def write_json(path: Path, content: dict) -> None:
    """Write a dict as JSON."""
    write(path, json.dumps(content, indent=2, ensure_ascii=False) + "\n")


def read_json(path: Path, what: str) -> dict:
    """Return the content of a .json file that holds a dict."""
    with reading(path, what):
        content = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(content, dict):
            raise ValueError(f"it holds a {type(content).__name__}")
        return content


def write_arrays(path: Path, content: dict) -> str:
    """Write tensors, texts, and lists of these to an .npz file; return its digest.

    More than LARGE bytes are not compressed: that would take most of the time of a large examination.
    """
    arrays, file = {key: np.asarray(value) for key, value in content.items()}, io.BytesIO()
    is_large = sum(array.nbytes for array in arrays.values()) > LARGE
    (np.savez if is_large else np.savez_compressed)(file, **arrays)
    write(path, file.getbuffer())
    return hashlib.sha256(file.getbuffer()).hexdigest()


def read_arrays(path: Path, what: str) -> dict:
    """Return the arrays of an .npz file: numbers as tensors, texts and lists of texts as they were.

    float16, as results/ keeps arrays, becomes float32.
    """
    content = {}
    with reading(path, what), np.load(path) as file:
        for key in file.files:
            array = file[key]
            if array.dtype == np.float16:
                array = array.astype(np.float32)
            content[key] = array.tolist() if array.dtype.kind == "U" else torch.from_numpy(array)
    return content


# ---- The device --------------------------------------------------------------------------------------------


def pick_device(name: str) -> torch.device:
    """Return the device called `name`, see train.pick_device; raise UserError if there is none."""
    with core():
        return train.pick_device(name)


@contextlib.contextmanager
def full_float32(device: torch.device | str) -> Iterator[None]:
    """Run a block in float32 and with deterministic algorithms, then restore what the caller had set.

    Without it a surrounding autocast would count, and cuDNN would convolve in TF32 on newer GPUs. Matrix
    products are in full float32 unless the caller has asked torch for less.
    """
    cudnn = torch.backends.cudnn
    wanted = [(cudnn, "deterministic", True), (cudnn, "benchmark", False)]
    if hasattr(cudnn, "conv"):  # torch 2.9 and later, where reading allow_tf32 may raise an error
        wanted.append((cudnn.conv, "fp32_precision", "ieee"))
    else:
        wanted.append((cudnn, "allow_tf32", False))
    before = [(owner, name, getattr(owner, name)) for owner, name, _ in wanted]
    try:
        for owner, name, value in wanted:
            setattr(owner, name, value)
        with torch.autocast(torch.device(device).type, enabled=False):
            yield
    finally:
        for owner, name, value in before:
            setattr(owner, name, value)

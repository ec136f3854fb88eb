"""The error that a user reads in one line, and what turns a damaged file into one."""

import contextlib
from collections.abc import Iterator
from pathlib import Path


class UserError(Exception):
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

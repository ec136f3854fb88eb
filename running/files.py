"""Files that are whole or absent, and the error that the user reads in one line."""

import contextlib
import csv
import io
import json
import os
from collections.abc import Iterator
from pathlib import Path

try:
    import fcntl
except ImportError:  # Windows has none: there a second command in the same folder is not noticed
    fcntl = None


class UserError(Exception):
    """Something the user gave cannot be used; the message is one line that says what to do about it."""


def one_line(error: object) -> str:
    """Return what an exception or a text says in one line of at most 300 printable characters.

    Files, servers and users can put anything into it. Of a longer one the beginning and the end are kept.
    """
    text = " ".join(str(getattr(error, "strerror", None) or error).split()) or type(error).__name__
    if isinstance(error, LookupError | TypeError | AttributeError | ArithmeticError):
        text = f"{type(error).__name__}: {text}"  # such as KeyError: 'epoch', which alone says little
    if len(text) > 300:
        text = f"{text[:195]} ... {text[-100:]}"
    return "".join(letter if letter.isprintable() else "?" for letter in text)


@contextlib.contextmanager
def reading(path: Path | str, what: str) -> Iterator[None]:
    """Raise UserError, "{path} cannot be used as {what}: {reason}", for whatever the block raises.

    Only for a block that reads this one file and turns it into plain values: it may be damaged, or of another
    program, and so fail anywhere on its way. An error after that is a bug, and shows its traceback.
    """
    try:
        yield
    except (UserError, MemoryError):
        raise
    except Exception as error:
        raise UserError(f"{path} cannot be used as {what}: {one_line(error)}") from error


def check_file(path: Path | str, what: str = "file") -> None:
    """Raise UserError unless `path` is a regular file: opening a named pipe would wait for ever."""
    if not os.path.isfile(path):
        there = os.path.exists(path)
        raise UserError(f"{path} is not a regular file" if there else f"there is no {what} {path}")


@contextlib.contextmanager
def whole_file(path: Path | str) -> Iterator[Path]:
    """Yield a temporary path to write to; when the block ends well, it is synced and renamed to `path`.

    The folder is made if it is missing. Raises UserError if the file cannot be written, for instance on a
    full disk; the old file is kept then.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        with open(temporary, "rb+") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        reason = f"{path} cannot be written ({one_line(error)}); a previous file is unchanged"
        raise UserError(reason) from error
    finally:
        with contextlib.suppress(OSError):  # it is not there
            temporary.unlink()


@contextlib.contextmanager
def locked(path: Path | str) -> Iterator[None]:
    """Hold the lock file `path` until the block or the process ends; UserError if another command holds it.

    The file stays: once it is removed, a third command could lock a new one while a second holds the old one.
    """
    path = Path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{path.parent} is no folder to write to ({one_line(error)}): name another") from None
    with open(path, "a") as file:
        try:
            if fcntl:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(f"another command is at work in {path.parent}: wait until it has ended") from None
        except OSError:
            pass  # some network file systems have no locks
        yield


def write_text(path: Path | str, text: str) -> None:
    """Write `text` to the file `path` as UTF-8; see whole_file."""
    with whole_file(path) as temporary:
        # File names may hold bytes that are no text, such as "\udcff" in Python; JSON reads this form of it.
        temporary.write_bytes(text.encode("utf-8", errors="backslashreplace"))


def write_json(path: Path | str, content: dict | list) -> None:
    """Write `content` to the file `path` as JSON; see whole_file."""
    write_text(path, json.dumps(content, indent=2, ensure_ascii=False) + "\n")


def write_csv(path: Path | str, rows: list[dict]) -> None:
    """Write rows, at least one and all with the same keys, to the file `path` as CSV; see whole_file."""
    text = io.StringIO()
    writer = csv.DictWriter(text, fieldnames=list(rows[0]))
    writer.writeheader()
    writer.writerows(rows)
    write_text(path, text.getvalue())

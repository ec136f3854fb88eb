"""Files that are whole or absent, and the error that the user reads in one line."""

import contextlib
import csv
import json
import os
from collections.abc import Iterator
from pathlib import Path

try:
    import fcntl
except ImportError:  # Windows has no fcntl: there a second command in the same folder is not noticed
    fcntl = None


class UserError(Exception):
    """Something the user gave cannot be used; the message is one line that says what to do about it."""


def one_line(error: object) -> str:
    """Return what an exception or a message says in one line of at most 300 printable characters.

    Files, servers and users can put anything into it. Of a longer one the beginning and the end are kept.
    """
    text = " ".join(str(getattr(error, "strerror", None) or error).split()) or type(error).__name__
    if isinstance(error, LookupError | TypeError | AttributeError | ArithmeticError):
        text = f"{type(error).__name__}: {text}"  # such as KeyError: 'epoch', which alone says little
    text = text if len(text) <= 300 else f"{text[:195]} ... {text[-100:]}"
    return "".join(c if c.isprintable() else "?" for c in text)


@contextlib.contextmanager
def usable(path: Path | str, what: str) -> Iterator[None]:
    """Raise UserError, "{path} cannot be used as {what}: {reason}", for whatever the block raises.

    A file from outside may be damaged, edited or of another program, and so fail anywhere on its way.
    """
    try:
        yield
    except Exception as error:
        if isinstance(error, UserError) and str(path) in str(error):
            raise
        raise UserError(f"{path} cannot be used as {what}: {one_line(error)}") from error


def check_file(path: Path | str, what: str = "file") -> None:
    """Raise UserError unless `path` is a regular file: opening a named pipe would wait for ever."""
    if not os.path.isfile(path):
        there = os.path.exists(path)
        raise UserError(f"{path} is not a regular file" if there else f"there is no {what} {path}")


def read_file(path: Path | str, limit: int = 20_000_000) -> bytes:
    """Return the content of a regular file; raise UserError if it is none or has more than `limit` bytes."""
    check_file(path)
    if os.path.getsize(path) > limit:
        raise UserError(f"{path} has more than the {limit / 1e6:.1f} MB allowed")
    return Path(path).read_bytes()


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
        try:
            yield temporary
            with open(temporary, "rb+") as file:
                os.fsync(file.fileno())
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)
    except (OSError, UnicodeEncodeError) as error:  # the name of a folder may be no text
        said = f"{path} cannot be written ({one_line(error)}); the previous file is unchanged"
        raise UserError(said) from None


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold a folder until the block or the process ends; raise UserError if another command holds it."""
    with contextlib.ExitStack() as stack:
        if fcntl:
            lock = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
            stack.callback(os.close, lock)
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise UserError(f"another command is at work in {folder}: wait until it has ended") from None
            except OSError:
                pass  # some network file systems have no locks
        yield


def write_json(path: Path | str, content: dict | list) -> None:
    """Write `content` to the file `path` as JSON; see whole_file."""
    with whole_file(path) as temporary:
        temporary.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def write_csv(path: Path | str, rows: list[dict]) -> None:
    """Write rows, at least one and all with the same keys, to the file `path` as CSV; see whole_file."""
    with whole_file(path) as temporary, open(temporary, "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, fieldnames=list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)

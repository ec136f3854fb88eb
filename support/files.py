"""Files that are whole or absent: written beside their place, then renamed."""

import contextlib
import csv
import io
import json
import os
from collections.abc import Iterator
from pathlib import Path

from support.errors import UserError, one_line


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
        raise UserError(
            f"{path} cannot be written ({one_line(error)}); a previous file is unchanged"
        ) from error
    finally:
        with contextlib.suppress(OSError):  # it is not there
            temporary.unlink()


def write_text(path: Path | str, text: str) -> None:
    """Write `text` to the file `path` as UTF-8; see whole_file."""
    with whole_file(path) as temporary:
        # File names may hold bytes that are no text, "\udcff" in Python; JSON can read the escaped form.
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

"""Download CIFAR-100 into a folder, from the first source that delivers it.

What comes is written to a file that ends in .part; it gets its final name once its content has been accepted.
A download that was interrupted is resumed at the next start if the server can send the rest alone.
"""

import hashlib
import urllib.request
import zipfile
from collections.abc import Callable
from pathlib import Path

from running.console import Progress
from running.files import UserError, locked, one_line

# The official host has been slow since June 2026 (60 to 85 kB/s, so 40 minutes and more for its 169 MB).
# A copy of the same pixels as PNG files is therefore asked first.
SOURCES = {
    "copy on GitHub": "https://github.com/cyizhuo/CIFAR-100-dataset/archive/refs/heads/main.zip",
    "official host": "https://www.cs.toronto.edu/~kriz/cifar-100-python.tar.gz",
}
PNG_ARCHIVE, OFFICIAL_ARCHIVE = "cifar-100-png.zip", "cifar-100-python.tar.gz"  # what a download is called
TYPICAL_SIZE = 150_000_000  # bytes, for the progress bar: GitHub does not state the size of an archive
MAX_DOWNLOAD = 400_000_000  # bytes; each source sends less than half of it
CONNECT_SECONDS = 8  # for the connection; the look-up of a name has the limit of the system, 10 to 30 s
READ_SECONDS = 60  # without a single byte; GitHub makes its archive when it is asked, which takes a while


def download(root: Path, url: str | None, read: Callable[[Path, str], dict]) -> dict:
    """Download CIFAR-100 into the folder `root` and return its arrays.

    `url` is asked first if it is given, then SOURCES. `read(path, address)` returns the arrays of the file
    that came, or raises UserError, as this does if no source delivers or another process is at work.
    """
    try:
        root.mkdir(parents=True, exist_ok=True)
        with locked(root):
            for address in ([url] if url else []) + list(SOURCES.values()):
                print(f"downloading CIFAR-100 to {root} from {address}", flush=True)
                try:
                    return download_from(address, root, read)
                except UserError as error:
                    print(f"note: {address}: {error}", flush=True)
    except OSError as error:
        raise UserError(f"{root} cannot be written ({error.strerror}): give another --data-dir") from None
    raise UserError(
        f"no source delivered CIFAR-100: put cifar-100-python.tar.gz into {root} by hand, name it with "
        "--data-url, or take the built-in set: python train.py --dataset shapes"
    )


def download_from(address: str, root: Path, read: Callable[[Path, str], dict]) -> dict:
    """Download `address` into the folder `root` and return its arrays; raise UserError if the source fails.

    A file that is not accepted is deleted: it may be that the one on the server changed between two parts.
    """
    # The name depends on the address, so that what came from one is never resumed from another.
    part = root / f"cifar100-{hashlib.sha256(address.encode()).hexdigest()[:8]}.part"
    fetch(address, part)
    try:
        arrays = read(part, address)
    except UserError:
        part.unlink()
        raise
    part.replace(root / (PNG_ARCHIVE if zipfile.is_zipfile(part) else OFFICIAL_ARCHIVE))
    for leftover in root.glob("cifar100-*.part"):
        leftover.unlink()
    return arrays


def fetch(address: str, part: Path) -> None:
    """Download `address` to `part`, from where that ends; if it fails, keep what came and raise UserError."""
    with open(part, "ab") as file:
        done = file.tell()
        try:
            request = urllib.request.Request(address, headers={"Range": f"bytes={done}-"} if done else {})
            with urllib.request.build_opener(Handler).open(request, timeout=CONNECT_SECONDS) as response:
                if response.status != 206:  # the server sends all of it
                    done = file.truncate(0)
                size = None if response.length is None else done + response.length
                with Progress("downloading (MB)", round((size or TYPICAL_SIZE) / 1e6)) as progress:
                    while piece := response.read1(1 << 16):
                        file.write(piece)
                        done += len(piece)
                        progress.update(round(done / 1e6))
                        if done > MAX_DOWNLOAD:
                            file.truncate(0)
                            raise UserError(f"it sends more than the {MAX_DOWNLOAD / 1e6:.0f} MB allowed")
            if size is not None and done < size:
                raise UserError(f"the connection was cut at {done / 1e6:.1f} of {size / 1e6:.1f} MB")
        except Exception as error:  # servers can answer anything
            if not done or getattr(error, "code", None) != 416:  # 416: there are no more bytes
                raise UserError(one_line(error)) from None


class Handler(urllib.request.HTTPHandler, urllib.request.HTTPSHandler):
    """Give urllib, whose time limit is one for every step, another for the answer than for the connection."""

    def do_open(self, connection_class: type, request: urllib.request.Request, **options):
        class Connection(connection_class):
            def connect(self) -> None:
                super().connect()
                self.sock.settimeout(READ_SECONDS)

        return super().do_open(Connection, request, **options)

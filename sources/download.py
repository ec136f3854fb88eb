"""Download CIFAR-100 into a folder, from the first source that delivers it.

What comes is written to a file that ends in .part; it gets its final name once its content has been accepted.
A download that was interrupted is resumed at the next start if the server can send the rest alone.
"""

import concurrent.futures
import hashlib
import http.client
import threading
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
TYPICAL_SIZE = 150_000_000  # bytes, for the progress bar: GitHub does not state the size of an archive
MAX_DOWNLOAD = 400_000_000  # bytes; each source sends less than half of it
CONNECT_SECONDS = 8  # for the look-up of the name, the connection and the first line of the answer together
READ_SECONDS = 15  # without a single byte


def download(root: Path, url: str | None, accept: Callable[[Path, str], dict]) -> dict:
    """Download CIFAR-100 into the folder `root` and return its arrays.

    `url` is asked first if it is given, then SOURCES. `accept(path, address)` returns the arrays of the file
    that came from an address, or raises UserError. Raises UserError with all reasons if no source delivers,
    and if another process is downloading to `root`.
    """
    reasons = []
    try:
        root.mkdir(parents=True, exist_ok=True)
        with locked(root):
            for address in ([url] if url else []) + list(SOURCES.values()):
                print(f"downloading CIFAR-100 to {root} from {address}", flush=True)
                try:
                    return download_from(address, root, accept)
                except UserError as error:
                    print(f"note: {address}: {error}", flush=True)
                    reasons.append(f"{address}: {error}")
    except OSError as error:  # of the disk; what the network raises has become a UserError
        reason = error.strerror or error
        raise UserError(
            f"{root} cannot be written ({reason}): make room for 400 MB or give another --data-dir"
        ) from None
    raise UserError(
        f"there is no CIFAR-100 in {root}, and no source delivered it ({'; '.join(reasons)}): put "
        "cifar-100-python.tar.gz there by hand, name it with --data-url, or take the built-in set: "
        "python train.py --dataset shapes --width 16"
    )


def download_from(address: str, root: Path, accept: Callable[[Path, str], dict]) -> dict:
    """Download `address` into the folder `root` and return its arrays; raise UserError if the source fails.

    A file that is not accepted is deleted. If it was resumed, all of it is then downloaded once more: the
    file on the server may have changed since its first part came.
    """
    # The name depends on the address, so that what came from one is never resumed from another.
    part = root / f"cifar100-{hashlib.sha256(address.encode()).hexdigest()[:8]}.part"
    resumed = fetch(address, part)
    try:
        arrays = accept(part, address)
    except UserError:
        part.unlink()
        if resumed:
            return download_from(address, root, accept)
        raise
    part.replace(root / ("cifar-100-png.zip" if zipfile.is_zipfile(part) else "cifar-100-python.tar.gz"))
    for leftover in root.glob("cifar100-*.part"):
        leftover.unlink()
    return arrays


def fetch(address: str, part: Path) -> bool:
    """Download `address` to the file `part`, and return whether that was resumed from what `part` held.

    Raises UserError if the source fails; what came until then is kept.
    """
    with open(part, "ab") as file:
        done = file.tell()
        response = connect(address, done)
        if response is None:
            return True
        resumed = response.status == 206
        if done and not resumed:  # the server sends all of it
            file.truncate(0)
            done = 0
        length = response.headers.get("Content-Length", "")
        size = done + int(length) if length.isdecimal() else None
        with response, Progress("downloading (MB)", round((size or TYPICAL_SIZE) / 1e6)) as progress:
            while piece := read_piece(response, done):
                file.write(piece)
                done += len(piece)
                progress.update(round(done / 1e6))
                if done > MAX_DOWNLOAD:
                    file.truncate(0)
                    raise UserError(f"it sends more than the {MAX_DOWNLOAD / 1e6:.0f} MB allowed")
    if size is not None and done < size:
        raise UserError(f"the connection was cut at {done / 1e6:.1f} of {size / 1e6:.1f} MB")
    return resumed


def connect(address: str, start: int) -> http.client.HTTPResponse | None:
    """Ask `address` for its bytes from `start` on; return the response, or None if there are no more bytes.

    Raises UserError if there is no good answer within CONNECT_SECONDS. The time limit of urlopen is one for
    each step, and the look-up of a name has none, so a thread asks and is left alone if it takes too long.
    """
    answer = concurrent.futures.Future()

    def ask() -> None:
        try:
            request = urllib.request.Request(address, headers={"Range": f"bytes={start}-"} if start else {})
            answer.set_result(urllib.request.urlopen(request, timeout=READ_SECONDS))
        except Exception as error:
            answer.set_exception(error)

    threading.Thread(target=ask, daemon=True).start()
    try:
        return answer.result(timeout=CONNECT_SECONDS)
    except concurrent.futures.TimeoutError:
        raise UserError(f"no answer in {CONNECT_SECONDS} s") from None
    except Exception as error:  # servers can answer anything
        if start and getattr(error, "code", None) == 416:
            return None
        raise UserError(one_line(error)) from None


def read_piece(response: http.client.HTTPResponse, done: int) -> bytes:
    """Return what comes next, empty at the end; raise UserError if after `done` bytes nothing comes."""
    try:
        return response.read1(1 << 16)
    except TimeoutError:
        raise UserError(f"at {done / 1e6:.1f} MB nothing came for {READ_SECONDS} s") from None
    except (OSError, http.client.HTTPException):
        raise UserError(f"the connection was cut at {done / 1e6:.1f} MB") from None

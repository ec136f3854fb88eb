"""CIFAR-100 over the network, from servers on the loopback address that do everything that servers do."""

import contextlib
import hashlib
import http.server
import os
import socket
import subprocess
import sys
import textwrap
import threading
import time
import zipfile

import pytest
from archives import SMALL, SmallCifar
from torchvision.io import encode_png

import data
from running.files import UserError, fcntl, locked
from sources import cifar100, download

HERE = os.path.dirname(data.__file__)


class Server(http.server.ThreadingHTTPServer):
    """Serves each path by a function of the request, and keeps a list of the requests."""

    daemon_threads = True
    block_on_close = False

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.answers, self.requests = {}, []
        self.over = threading.Event()  # lets what stalls end with the test
        threading.Thread(target=self.serve_forever, args=(0.02,), daemon=True).start()

    def url(self, path, answer):
        """Answer `path` by the function from now on; return its address."""
        self.answers[path] = answer
        return f"http://127.0.0.1:{self.server_port}{path}"

    def asked(self, path):
        """The headers of the requests for `path`."""
        return [headers for asked, headers in self.requests if asked == path]


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self):
        self.close_connection = True
        self.server.requests.append((self.path, dict(self.headers)))
        if len(self.server.requests) > 30:  # so that no mistake makes a test endless
            return self.send_error(508)
        with contextlib.suppress(OSError):
            self.server.answers[self.path](self)

    def log_message(self, *arguments):
        pass


def sends(
    content,
    *,
    ranges=True,
    length=True,
    cut=None,
    stall=None,
):
    """A function that answers with `content`.

    ranges: it can send the rest from the byte asked for. length: it states the length, else it sends chunks.
    cut: it closes the connection after so many bytes of each answer. stall: it sends no more after so many.
    """

    def answer(handler):
        start = 0
        asked = handler.headers.get("Range")
        if ranges and asked:
            start = int(asked.removeprefix("bytes=").removesuffix("-"))
            if start >= len(content):
                handler.send_response(416)
                handler.send_header("Content-Length", "0")
                handler.end_headers()
                return
            handler.send_response(206)
            handler.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        else:
            handler.send_response(200)
        if length:
            handler.send_header("Content-Length", str(len(content) - start))
        else:
            handler.send_header("Transfer-Encoding", "chunked")
        handler.end_headers()
        sent, step = 0, 1 << 14
        while start + sent < len(content):
            if cut is not None and sent >= cut:
                return
            if stall is not None and sent >= stall:
                handler.server.over.wait(30)
                return
            step = min(
                step, *(limit - sent for limit in (cut, stall) if limit is not None and limit > sent), 1 << 14
            )
            piece = content[start + sent : start + sent + step]
            handler.wfile.write(piece if length else b"%x\r\n%b\r\n" % (len(piece), piece))
            sent += len(piece)
        if not length:
            handler.wfile.write(b"0\r\n\r\n")

    return answer


def refuses(status):
    def answer(handler):
        handler.send_error(status)

    return answer


def redirects(address):
    def answer(handler):
        handler.send_response(302)
        handler.send_header("Location", address)
        handler.send_header("Content-Length", "0")
        handler.end_headers()

    return answer


def is_silent(handler):
    handler.server.over.wait(30)


def hangs_up(handler):
    handler.connection.shutdown(socket.SHUT_RDWR)


PAGE = b"<!DOCTYPE html>\n<html><title>Please log in</title></html>\n"


@pytest.fixture(autouse=True)
def small(monkeypatch):
    """The small set, which here is the official one; and short times."""
    monkeypatch.setattr(cifar100, "OFFICIAL_DIGEST", SMALL.digests())
    monkeypatch.setattr(download, "SOURCES", {})
    monkeypatch.setattr(download, "CONNECT_SECONDS", 2)
    monkeypatch.setattr(download, "READ_SECONDS", 0.5)
    monkeypatch.setenv("no_proxy", "*")
    return SMALL


def known(*addresses):
    """Let these be the known sources, in this order."""
    download.SOURCES.clear()
    download.SOURCES.update({f"source {i}": address for i, address in enumerate(addresses)})


@pytest.fixture(scope="module")
def archives():
    """The zip and the tar.gz of the small set, and the zip of another."""
    other = SmallCifar(seed=9)
    return {"zip": SMALL.zip(), "tar": SMALL.tar(), "other": other.zip()}


@pytest.fixture
def server():
    server = Server()
    yield server
    server.over.set()
    server.shutdown()
    server.server_close()


@pytest.fixture
def root(tmp_path):
    return tmp_path / "not yet there" / "data"


def contents(root):
    """The names in the folder."""
    return sorted(path.name for path in root.glob("*"))


def loads(root, small, url=None):
    """Load, check the content and return (train, test)."""
    datasets = data.load("cifar100", root, url)
    for split, dataset in zip(("train", "test"), datasets, strict=True):
        assert dataset.digest == small.digests()[split]
        assert dataset.verified and "verified: the content digest" in dataset.provenance
    return datasets


def part_of(root, address):
    digest = hashlib.sha256(address.encode()).hexdigest()[:8]
    return root / f"cifar100-{digest}.part"


# ---------------------------------------------------------------------------------------------------------
# A source that delivers


def test_the_mirror_as_github_sends_it(server, root, small, archives, capsys):
    """A redirect, chunks, no length."""
    archive = server.url("/archive", sends(archives["zip"], length=False, ranges=False))
    address = server.url("/main.zip", redirects(archive))
    known(address)
    loads(root, small)
    assert contents(root) == ["cifar-100-png.zip", "cifar100-cache.npz"]
    assert (root / "cifar-100-png.zip").read_bytes() == archives["zip"]
    assert [path for path, _ in server.requests] == ["/main.zip", "/archive"]
    assert f"downloading CIFAR-100 to {root} from {address}" in capsys.readouterr().out

    loads(root, small)  # from the cache
    (root / "cifar100-cache.npz").unlink()
    loads(root, small)  # from the archive
    assert len(server.requests) == 2
    assert capsys.readouterr().out == ""


def test_the_official_archive(server, root, small, archives):
    known(server.url("/cifar.tar.gz", sends(archives["tar"])))
    loads(root, small)
    assert contents(root) == ["cifar-100-python.tar.gz", "cifar100-cache.npz"]
    assert (root / "cifar-100-python.tar.gz").read_bytes() == archives["tar"]


def test_nothing_is_asked_where_there_is_a_set(server, root, small, archives, capsys):
    root.mkdir(parents=True)
    small.write(root, "folder")
    known(server.url("/main.zip", sends(archives["zip"])))
    loads(root, small, url=server.url("/mine.zip", sends(archives["other"])))
    assert server.requests == []
    assert "--data-url is not used" in capsys.readouterr().out


def test_the_sources_and_the_times_as_they_are():
    """What these tests replace. Without a network --data-url and both sources end in 24 s at the latest."""
    code = "from sources.download import *; print(*SOURCES.values(), CONNECT_SECONDS, READ_SECONDS)"
    run = subprocess.run([sys.executable, "-c", code], cwd=HERE, capture_output=True, text=True, check=True)
    mirror, official, connect, read = run.stdout.split()
    assert mirror == "https://github.com/cyizhuo/CIFAR-100-dataset/archive/refs/heads/main.zip"
    assert official == "https://www.cs.toronto.edu/~kriz/cifar-100-python.tar.gz"
    assert 5 <= float(connect) <= 8 and 5 <= float(read) <= 30


# ---------------------------------------------------------------------------------------------------------
# --data-url


@pytest.mark.skipif(fcntl is None, reason="Windows has no locks of folders")
def test_two_downloads_at_once_into_one_folder_are_refused(server, root, small, archives):
    known(address := server.url("/main.zip", sends(archives["zip"])))
    part = part_of(root, address)
    root.mkdir(parents=True)
    part.write_bytes(b"what the other process has got")
    with locked(root), pytest.raises(UserError, match=f"another command is at work in {root}: wait until"):
        data.load_cifar100(root)
    assert not server.requests and part.read_bytes() == b"what the other process has got"


def test_data_url_comes_first(server, root, small, archives):
    known(server.url("/main.zip", sends(archives["tar"])))
    loads(root, small, url=server.url("/mine", sends(archives["zip"])))
    assert [path for path, _ in server.requests] == ["/mine"]


def test_another_set_from_data_url_is_used_and_called_what_it_is(server, root, archives):
    train, test = data.load("cifar100", root, server.url("/mine", sends(archives["other"])))
    assert train.digest == SmallCifar(seed=9).digests()["train"]
    for dataset in (train, test):
        assert not dataset.verified and "not verified" in dataset.provenance
    assert contents(root) == ["cifar-100-png.zip", "cifar100-cache.npz"]


def test_when_data_url_fails_the_sources_follow_with_a_note(server, root, small, archives, capsys):
    known(server.url("/main.zip", sends(archives["zip"])))
    mine = server.url("/mine", refuses(404))
    loads(root, small, url=mine)
    assert f"note: {mine}: HTTP Error 404: Not Found" in capsys.readouterr().out


@pytest.mark.parametrize("kind", ["tar", "zip", "folder", "png", "png below", "parent"])
def test_data_url_may_be_a_path(kind, server, root, small, tmp_path, capsys):
    known(server.url("/main.zip", sends(b"")))
    place = tmp_path / "elsewhere"
    place.mkdir()
    source = small.write(place, "folder" if kind == "parent" else kind)
    source = place if kind == "parent" else source
    before = sorted(str(path) for path in place.rglob("*"))
    loads(root, small, url=str(source))
    assert contents(root) == ["cifar100-cache.npz"]  # read where it lies
    assert sorted(str(path) for path in place.rglob("*")) == before
    loads(root, small)
    assert server.requests == []


@pytest.mark.parametrize("name", ["absent.zip", "page.tar.gz", "empty"])
def test_data_url_with_a_path_that_is_no_set(name, server, root, archives, tmp_path):
    """A slip of the finger is no reason to download something else."""
    (tmp_path / "page.tar.gz").write_bytes(PAGE)
    (tmp_path / "empty").mkdir()
    known(server.url("/main.zip", sends(archives["zip"])))
    with pytest.raises(UserError, match=name):
        data.load("cifar100", root, str(tmp_path / name))
    assert server.requests == []


@pytest.mark.parametrize("url", ["ftp://127.0.0.1/x.zip", "file:///etc/passwd", "s3://x/y"])
def test_data_url_of_another_kind(url, server, root, archives):
    known(server.url("/main.zip", sends(archives["zip"])))
    with pytest.raises(UserError, match="expected http://, https:// or a path"):
        data.load("cifar100", root, url)
    assert server.requests == []


# ---------------------------------------------------------------------------------------------------------
# Sources that do not deliver: each is left for the next, with its reason


FAILURES = {
    "404": (lambda a: refuses(404), "HTTP Error 404: Not Found"),
    "503": (lambda a: refuses(503), "HTTP Error 503: Service Unavailable"),
    "hangs up": (lambda a: hangs_up, "closed connection|reset"),
    "is silent": (lambda a: is_silent, "no answer in 2 s|timed out"),
    "a loop of redirects": (lambda a: redirects("/first"), "infinite loop"),
    "a redirect to a file": (lambda a: redirects("file:///etc/passwd"), "not allowed"),
    "stalls at once": (lambda a: sends(a["zip"], stall=0), "nothing came for 0.5 s"),
    "stalls": (lambda a: sends(a["zip"], stall=50_000, ranges=False), "at 0.1 MB nothing came for 0.5 s"),
    "is cut": (lambda a: sends(a["zip"], cut=50_000, ranges=False), "was cut at 0.1 of 0."),
    "is cut in chunks": (
        lambda a: sends(a["zip"], cut=50_000, ranges=False, length=False),
        "was cut at 0.1 MB",
    ),
    "a web page": (lambda a: sends(PAGE), "is it a saved web page?"),
    "nothing": (lambda a: sends(b""), "neither a zip nor a tar.gz"),
    "half an archive": (lambda a: sends(a["zip"][:100_000]), "not a zip file"),
    "a damaged archive": (
        lambda a: sends(a["tar"][:90_000] + b"\xff\xff\xff" + a["tar"][90_003:]),
        "cannot be used as CIFAR-100",
    ),
    "another set": (lambda a: sends(a["other"]), "is not CIFAR-100: it has another content digest"),
    "nonsense": (lambda a: lambda handler: handler.wfile.write(b"\x1b[31mhello\r\n\r\n"), "?[31mhello"),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", FAILURES)
def test_a_source_that_fails_is_left_for_the_next(name, server, root, small, archives, capsys):
    answer, expected = FAILURES[name]
    first = server.url("/first", answer(archives))
    known(first, server.url("/second", sends(archives["tar"])))
    started = time.monotonic()
    loads(root, small)
    assert time.monotonic() - started < 6
    out = capsys.readouterr().out
    note = next(line for line in out.splitlines() if line.startswith(f"note: {first}: "))
    assert any(part in note for part in expected.split("|")) and note.isprintable(), note
    assert contents(root) == ["cifar-100-python.tar.gz", "cifar100-cache.npz"]
    assert "/second" in [path for path, _ in server.requests]


@pytest.mark.slow
@pytest.mark.parametrize("name", FAILURES)
def test_no_failure_is_ever_taken_for_the_set(name, server, root, archives, capsys):
    """With no other source each failure is the end, now and at the next start."""
    answer, expected = FAILURES[name]
    address = server.url("/first", answer(archives))
    known(address)
    for _ in range(2):
        with pytest.raises(UserError) as caught:
            data.load("cifar100", root)
        assert str(caught.value).startswith(f"there is no CIFAR-100 in {root}, and no source delivered it (")
        note = next(line for line in capsys.readouterr().out.splitlines() if line.startswith("note: "))
        assert note.startswith(f"note: {address}: ") and any(part in note for part in expected.split("|"))
        assert set(contents(root)) <= {part_of(root, address).name}


def test_a_whole_file_that_was_refused_is_downloaded_again_from_its_start(server, root, small, archives):
    address = server.url("/first", sends(archives["other"]))
    known(address)
    with pytest.raises(UserError):
        data.load("cifar100", root)
    assert contents(root) == []
    server.url("/first", sends(archives["zip"]))
    loads(root, small)
    assert len(server.requests) == 2 and "Range" not in server.asked("/first")[1]


def test_an_endless_answer_is_cut_off(server, root, small, archives, monkeypatch, capsys):
    monkeypatch.setattr(download, "MAX_DOWNLOAD", 2_000_000)

    def endless(handler):
        handler.send_response(200)
        handler.end_headers()
        while True:
            handler.wfile.write(bytes(100_000))

    known(server.url("/first", endless), server.url("/second", sends(archives["zip"])))
    loads(root, small)
    assert "it sends more than the 2 MB allowed" in capsys.readouterr().out


def test_a_port_where_nobody_listens(server, root, small, archives, capsys):
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    known(f"http://127.0.0.1:{port}/x.zip", server.url("/second", sends(archives["zip"])))
    loads(root, small)
    assert "Connection refused" in capsys.readouterr().out


@pytest.mark.parametrize(
    "address", ["http://", "http://127.0.0.1:port/x", "http://127.0.0.1/a b", "http://[::1/x"]
)
def test_an_address_that_is_none(address, server, root, small, archives, capsys):
    known(server.url("/second", sends(archives["zip"])))
    loads(root, small, url=address)
    assert f"note: {address}: " in capsys.readouterr().out


def test_a_name_server_that_hangs(root, small, monkeypatch):
    monkeypatch.setattr(download, "CONNECT_SECONDS", 0.5)
    over = threading.Event()
    monkeypatch.setattr(socket, "getaddrinfo", lambda *arguments, **options: over.wait(30))
    known("http://mirror.invalid/x.zip", "http://official.invalid/x.tar.gz")
    started = time.monotonic()
    with pytest.raises(UserError) as caught:
        data.load("cifar100", root)
    assert time.monotonic() - started < 3
    assert str(caught.value).count("no answer in 0.5 s") == 2
    over.set()


# ---------------------------------------------------------------------------------------------------------
# Resuming a download that was interrupted


def interrupted(server, root, content, **how):
    """Download about half of `content` from /first and fail; return how many bytes have come."""
    address = server.url("/first", sends(content, cut=len(content) // 2, **how))
    known(address)
    with pytest.raises(UserError, match="was cut at"):
        data.load("cifar100", root)
    assert len(server.requests) == 1  # it is not tried again and again
    server.requests.clear()
    assert part_of(root, address).read_bytes() == content[: len(content) // 2]
    return len(content) // 2


@pytest.mark.parametrize("length", [True, False])
def test_the_next_start_resumes(length, server, root, small, archives):
    half = interrupted(server, root, archives["tar"], length=length)
    server.url("/first", sends(archives["tar"], length=length))
    loads(root, small)
    assert server.asked("/first")[0]["Range"] == f"bytes={half}-" and len(server.requests) == 1
    assert contents(root) == ["cifar-100-python.tar.gz", "cifar100-cache.npz"]
    assert (root / "cifar-100-python.tar.gz").read_bytes() == archives["tar"]


def test_a_download_that_is_cut_again_and_again_ends(server, root, small, archives):
    content = archives["zip"]
    known(server.url("/first", sends(content, cut=len(content) // 3 + 1)))
    for _ in range(2):
        with pytest.raises(UserError, match="was cut at"):
            data.load("cifar100", root)
    loads(root, small)
    cut = len(content) // 3 + 1
    ranges = [headers.get("Range") for headers in server.asked("/first")]
    assert ranges == [None, f"bytes={cut}-", f"bytes={2 * cut}-"]
    assert (root / "cifar-100-png.zip").read_bytes() == content


def test_what_came_from_one_address_is_not_taken_for_a_part_of_another(server, root, small, archives):
    interrupted(server, root, archives["other"])
    known(server.url("/second", sends(archives["zip"])))
    loads(root, small)
    assert "Range" not in server.asked("/second")[0]
    assert contents(root) == ["cifar-100-png.zip", "cifar100-cache.npz"]


def test_a_server_that_refuses_ranges_sends_all_again(server, root, small, archives):
    interrupted(server, root, archives["zip"])
    server.url("/first", sends(archives["zip"], ranges=False))
    loads(root, small)
    assert (root / "cifar-100-png.zip").read_bytes() == archives["zip"]
    assert len(server.requests) == 1


def test_two_halves_of_different_files_are_not_taken_for_the_set(server, root, small, archives):
    """The file on the server has changed: the mixture is refused, and all of it is downloaded once more."""
    half = interrupted(server, root, archives["other"])
    server.url("/first", sends(archives["zip"]))
    loads(root, small)
    assert [headers.get("Range") for headers in server.asked("/first")] == [f"bytes={half}-", None]
    assert (root / "cifar-100-png.zip").read_bytes() == archives["zip"]


def test_a_resumed_file_of_a_wrong_digest_is_tried_once_more_and_then_the_next_source(
    server, root, small, archives
):
    interrupted(server, root, archives["other"])
    first = server.url("/first", sends(archives["other"]))
    known(first, server.url("/second", sends(archives["zip"])))
    loads(root, small)
    assert [path for path, _ in server.requests] == ["/first", "/first", "/second"]
    assert [("Range" in headers) for headers in server.asked("/first")] == [True, False]
    assert contents(root) == ["cifar-100-png.zip", "cifar100-cache.npz"]


def test_a_part_longer_than_the_file_means_a_new_start(server, root, small, archives):
    interrupted(server, root, archives["zip"])
    address = server.url("/first", sends(archives["zip"]))
    with open(part_of(root, address), "ab") as file:
        file.write(bytes(2_000_000))
    loads(root, small)
    assert [("Range" in headers) for headers in server.asked("/first")] == [True, False]


@pytest.mark.parametrize("end", [b"", b"wrong"])
def test_killed_between_the_last_byte_and_the_new_name(end, server, root, small, archives):
    """All of it is there: nothing is sent again, but the content is checked."""
    interrupted(server, root, archives["zip"])
    address = server.url("/first", sends(archives["zip"]))
    part_of(root, address).write_bytes(archives["zip"][: len(archives["zip"]) - len(end)] + end)
    loads(root, small)
    assert (
        [("Range" in headers) for headers in server.asked("/first")] == [True] if not end else [True, False]
    )
    assert (root / "cifar-100-png.zip").read_bytes() == archives["zip"]


def start_process(root, source, *first):
    """A process that runs the lines `first` and downloads into `root`, taking whatever it gets."""
    code = ["from pathlib import Path", "from sources import download", "from running.files import UserError"]
    code += [f"download.SOURCES = {{'source': {source!r}}}", *first, "try:"]
    code += [f"    download.download(Path({str(root)!r}), None, lambda path, address: {{}})"]
    code += ["except UserError as error:", "    raise SystemExit(f'error: {error}')"]
    return subprocess.Popen(
        [sys.executable, "-c", "\n".join(code)], cwd=HERE, stderr=subprocess.PIPE, text=True
    )


def test_after_kill_9_another_process_resumes(server, root, small, archives):
    source = server.url("/first", sends(archives["zip"], stall=80_000))
    part = part_of(root, source)
    with start_process(root, source, "download.READ_SECONDS = 30") as process:
        end = time.monotonic() + 30
        while not (part.exists() and part.stat().st_size > 60_000):
            assert time.monotonic() < end, "nothing came"
            time.sleep(0.02)
        process.kill()
    assert contents(root) == [part.name]
    size = part.stat().st_size
    assert part.read_bytes() == archives["zip"][:size]
    known(server.url("/first", sends(archives["zip"])))
    loads(root, small)
    assert server.asked("/first")[1]["Range"] == f"bytes={size}-"


# ---------------------------------------------------------------------------------------------------------
# The disk


needs_full = pytest.mark.skipif(not os.path.exists("/dev/full"), reason="/dev/full is a device of Linux")


@needs_full
def test_a_full_disk_ends_the_download(server, root, archives):
    first = server.url("/first", sends(archives["zip"]))
    known(first, server.url("/second", sends(archives["zip"])))
    root.mkdir(parents=True)
    os.symlink("/dev/full", part_of(root, first))
    with pytest.raises(UserError) as caught:
        data.load("cifar100", root)
    message = str(caught.value)
    assert "cannot be written (No space left on device): make room" in message and "\n" not in message
    assert server.asked("/second") == []  # it would not help


def test_a_disk_that_fills_up_and_is_cleared(server, root, small, archives):
    """A limit on the file size stops the download half way; without it, the download is resumed there."""
    source = server.url("/first", sends(archives["zip"]))
    known(source)
    limit = len(archives["zip"]) // 2
    lines = ("import resource", f"resource.setrlimit(resource.RLIMIT_FSIZE, ({limit}, {limit}))")
    with start_process(root, source, *lines) as process:
        error = process.stderr.read()
    assert "cannot be written (File too large): make room" in error and "Traceback" not in error
    loads(root, small)
    assert server.asked("/first")[1]["Range"] == f"bytes={limit}-"


def test_a_folder_that_cannot_be_made_or_written_to(server, plain_user, archives):
    known(server.url("/first", sends(archives["zip"])))
    plain_user.chmod(0o555)
    for root in (plain_user, plain_user / "data"):
        with pytest.raises(UserError, match=r"cannot be written \(Permission denied\)") as caught:
            data.load("cifar100", root)
        assert "--data-dir" in str(caught.value)
    assert server.requests == []


# ---------------------------------------------------------------------------------------------------------
# What the user sees


def test_when_no_source_answers_the_user_reads_why_and_what_to_do(
    server, root, tmp_path, monkeypatch, capsys
):
    first, second = server.url("/first", refuses(503)), server.url("/second", sends(PAGE))
    known(first, second)
    mine = server.url("/mine", refuses(404))
    with pytest.raises(UserError) as caught:
        data.load("cifar100", root, mine)
    notes = capsys.readouterr().out
    assert f"note: {mine}: HTTP Error 404: Not Found\n" in notes
    assert f"note: {first}: HTTP Error 503: Service Unavailable\n" in notes
    assert f"note: {second}: " in notes and "is it a saved web page?\n" in notes
    message = str(caught.value)
    assert f"in {root}, and no source delivered it ({mine}: HTTP Error 404: Not Found; {first}: " in message
    assert "--data-url" in message and "\n" not in message
    command = message.partition("python train.py ")[2].split()
    assert loaded_by_train([*command, "--out", str(tmp_path / "run")], monkeypatch)[0] == "shapes"


def test_an_empty_folder_of_the_user_stays(server, root):
    known(server.url("/first", sends(PAGE)))
    root.mkdir(parents=True)
    with pytest.raises(UserError, match="is it a saved web page"):
        data.load("cifar100", root)
    assert list(root.iterdir()) == []


@pytest.mark.slow
def test_train_without_a_network_ends_in_time_with_exit_code_2(server, tmp_path):
    """With the times as they are. The option never answers, the sources cannot be reached at once."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        closed = f"http://127.0.0.1:{free.getsockname()[1]}/x.tar.gz"
    silent, absent = server.url("/mine", is_silent), server.url("/first", refuses(404))
    code = f"""
        import runpy, sys
        from sources import download
        download.SOURCES = {{"first": {absent!r}, "second": {closed!r}}}
        sys.argv[0] = "train.py"
        runpy.run_path("train.py", run_name="__main__")
    """
    options = ["--data-dir", str(tmp_path / "data"), "--out", str(tmp_path / "run"), "--data-url", silent]
    started = time.monotonic()
    run = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code), *options],
        cwd=HERE,
        capture_output=True,
        text=True,
        timeout=60,
        env={**os.environ, "no_proxy": "*"},
    )
    assert time.monotonic() - started < 30
    assert run.returncode == 2
    assert run.stderr.startswith("error: there is no CIFAR-100 in") and "Traceback" not in run.stderr
    for address in (silent, absent, closed):
        assert f"note: {address}: " in run.stdout
    assert "no answer in 8 s" in run.stdout and "Connection refused" in run.stdout
    assert run.stderr.count("\n") == 1
    assert "python train.py --dataset shapes" in run.stderr
    assert len(server.requests) == 2
    assert not list((tmp_path / "run").rglob("*.pt"))


def loaded_by_train(options, monkeypatch):
    """The arguments with which train.py calls data.load."""
    import train

    seen = []

    def load(*arguments):
        seen.append(arguments)
        raise UserError("enough")

    monkeypatch.setattr(train, "load", load)
    with pytest.raises(UserError, match="enough"):
        train.main(options)
    assert len(seen) == 1
    return seen[0]


def test_train_passes_its_options_on(tmp_path, monkeypatch):
    options = ["--data-dir", "here", "--data-url", "http://127.0.0.1/x.zip", "--out", str(tmp_path / "run")]
    assert loaded_by_train(options, monkeypatch) == ("cifar100", "here", "http://127.0.0.1/x.zip")


@pytest.mark.parametrize("length", [True, False])
def test_the_progress_bar_counts_megabytes(length, server, root, archives, monkeypatch):
    monkeypatch.setattr(download, "TYPICAL_SIZE", 7_000_000)
    bars = []

    class Bar(download.Progress):
        def __init__(self, label, total):
            super().__init__(label, total)
            self.counts = []
            bars.append(self)

        def update(self, done):
            self.counts.append(done)

    monkeypatch.setattr(download, "Progress", Bar)
    content = bytes(3_000_000)
    known(server.url("/first", sends(content, length=length)))
    with pytest.raises(UserError):
        data.load("cifar100", root)
    assert [bar.total for bar in bars] == [3 if length else 7]
    assert set(bars[0].counts) == {0, 1, 2, 3} and bars[0].counts == sorted(bars[0].counts)


# ---------------------------------------------------------------------------------------------------------
# CIFAR-100 itself


@pytest.mark.slow
def test_the_whole_png_archive_over_loopback(server, root, tmp_path, monkeypatch):
    if "CIFAR100_ROOT" not in os.environ:
        pytest.skip("CIFAR100_ROOT names no folder with CIFAR-100")
    monkeypatch.undo()
    monkeypatch.setenv("no_proxy", "*")
    path = tmp_path / "main.zip"
    with zipfile.ZipFile(path, "w") as archive:
        for split, dataset in zip(
            ("train", "test"), data.load("cifar100", os.environ["CIFAR100_ROOT"]), strict=True
        ):
            for image, label, name in zip(
                dataset.images, dataset.labels.tolist(), dataset.filenames, strict=True
            ):
                folder = f"CIFAR-100-dataset-main/{split}/{dataset.class_names[label]}"
                archive.writestr(f"{folder}/{name}", encode_png(image, 6).numpy().tobytes())
    content = path.read_bytes()
    assert 100e6 < len(content) < 200e6
    address = server.url("/main.zip", sends(content, length=False))
    monkeypatch.setattr(download, "SOURCES", {"mirror": address})
    train, test = data.load("cifar100", root)
    assert train.verified and test.verified
    assert (len(train.images), len(test.images)) == (50_000, 10_000)
    assert train.digest == "37a2b72bd30f9438ff20798c661450f58f138c034f556846cd744a56bbb09967"
    assert test.digest == "b9ad4d741ee82873becf8846c246715e789a57766586a9677a8bbe26c8b30279"
    assert contents(root) == ["cifar-100-png.zip", "cifar100-cache.npz"]

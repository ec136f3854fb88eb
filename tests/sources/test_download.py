"""CIFAR-100 over the network, from servers on the loopback address that do everything that servers do."""

import contextlib
import hashlib
import http.server
import socket
import threading
import time

import pytest
from archives import SMALL, SmallCifar

import data
from running.files import UserError, fcntl, locked
from sources import cifar100, download

ZIP, TAR, OTHER = SMALL.zip(), SMALL.tar(), SmallCifar(per_class=(1, 1), seed=9)
LIMITS = (download.CONNECT_SECONDS, download.READ_SECONDS)  # which the tests below shorten
PAGE = b"<!DOCTYPE html>\n<html><title>Please log in</title></html>\n"


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

    def ranges(self, path):
        """The ranges that were asked of `path`, None for all of it."""
        return [headers.get("Range") for asked, headers in self.requests if asked == path]


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self):
        self.close_connection = True
        self.server.requests.append((self.path, dict(self.headers)))
        with contextlib.suppress(OSError):
            self.server.answers[self.path](self)

    def log_message(self, *arguments):
        pass


def sends(content, *, ranges=True, length=True, end=None, stall=False, wait=0):
    """A function that answers with `content`.

    ranges: it can send the rest from the byte asked for. length: it states the length, else it sends chunks.
    end: it sends so many bytes and then closes the connection, or stalls. wait: seconds before it answers.
    """

    def answer(handler):
        time.sleep(wait)
        asked = handler.headers.get("Range") if ranges else None
        start = int(asked.removeprefix("bytes=").removesuffix("-")) if asked else 0
        handler.send_response(200 if not asked else 206 if start < len(content) else 416)
        rest = content[start:]
        if length:
            handler.send_header("Content-Length", str(len(rest)))
        else:
            handler.send_header("Transfer-Encoding", "chunked")
        handler.end_headers()
        sent = rest[:end]
        handler.wfile.write(sent if length else b"%x\r\n%b\r\n" % (len(sent), sent))
        if stall:
            handler.server.over.wait(30)
        elif not length and len(sent) == len(rest):
            handler.wfile.write(b"0\r\n\r\n")

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


def refuses(handler):
    handler.send_error(404)


@pytest.fixture(autouse=True)
def short_times(monkeypatch):
    """The small set is the official one here, and nobody waits for long."""
    monkeypatch.setattr(cifar100, "OFFICIAL_DIGEST", SMALL.digests())
    monkeypatch.setattr(download, "SOURCES", {})
    monkeypatch.setattr(download, "READ_SECONDS", 0.5)
    monkeypatch.setenv("no_proxy", "*")


def known(*addresses):
    """Let these be the known sources, in this order."""
    download.SOURCES.clear()
    download.SOURCES.update({f"source {i}": address for i, address in enumerate(addresses)})


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
    return sorted(path.name for path in root.glob("*"))


def loads(root, url=None):
    """Load and check that it is all of the set."""
    for split, dataset in zip(("train", "test"), data.load("cifar100", root, url), strict=True):
        assert dataset.digest == SMALL.digests()[split] and dataset.verified


def part_of(root, address):
    return root / f"cifar100-{hashlib.sha256(address.encode()).hexdigest()[:8]}.part"


# A source that delivers


def test_the_copy_as_github_sends_it(server, root, capsys):
    """A redirect, chunks, no length, no ranges."""
    archive = server.url("/archive", sends(ZIP, length=False, ranges=False))
    known(server.url("/main.zip", redirects(archive)))
    loads(root)
    assert contents(root) == ["cifar-100-png.zip", "cifar100-cache.npz"]
    assert (root / "cifar-100-png.zip").read_bytes() == ZIP
    assert f"downloading CIFAR-100 to {root} from http://" in capsys.readouterr().out
    (root / "cifar100-cache.npz").unlink()
    loads(root)  # from the archive
    assert [path for path, _ in server.requests] == ["/main.zip", "/archive"]


def test_nothing_is_asked_where_there_is_a_set(server, root):
    SMALL.write(root, "folder")
    known(server.url("/main.zip", sends(ZIP)))
    loads(root, url=server.url("/mine.zip", sends(ZIP)))
    assert server.requests == []


def test_data_url_comes_first_and_the_sources_follow(server, root, capsys):
    known(server.url("/main.zip", sends(TAR)))
    mine = server.url("/mine", refuses)
    loads(root, url=mine)
    assert [path for path, _ in server.requests] == ["/mine", "/main.zip"]
    assert f"note: {mine}: HTTP Error 404: Not Found" in capsys.readouterr().out


@pytest.mark.parametrize("kind", ["tar", "folder", "png"])
def test_data_url_may_be_a_path(kind, root, tmp_path):
    loads(root, url=str(SMALL.write(tmp_path / "elsewhere", kind)))
    assert contents(root) == ["cifar100-cache.npz"]  # read where it lies
    loads(root)
    # The cache of one path does not answer for another.
    found, _ = data.load("cifar100", root, str(OTHER.write(tmp_path / "another place", kind)))
    assert found.digest == OTHER.digests()["train"]


def test_data_url_may_be_the_folder_above_a_set_that_changes(root, tmp_path):
    for small in (SMALL, OTHER):
        small.write(tmp_path / "above", "tar")
        found, _ = data.load("cifar100", root, str(tmp_path / "above"))
        assert found.digest == small.digests()["train"]


@pytest.mark.parametrize("url", ["absent.zip", "page.tar.gz", "empty", "ftp://127.0.0.1/x.zip"])
def test_data_url_that_is_no_set(url, server, root, tmp_path, monkeypatch):
    """A slip of the finger is no reason to download something else."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "page.tar.gz").write_bytes(PAGE)
    (tmp_path / "empty").mkdir()
    known(server.url("/main.zip", sends(ZIP)))
    with pytest.raises(UserError, match=url.replace("//", "/")):
        data.load("cifar100", root, url)
    assert server.requests == []


# Time limits: CONNECT_SECONDS for the connection, READ_SECONDS for each wait after it


def test_the_limits_leave_time_to_a_server_that_makes_its_archive_when_asked():
    connect, read = LIMITS
    assert connect <= 10 and 45 <= read <= 90


def test_a_slow_answer_is_waited_for(server, root, monkeypatch):
    """Also behind a redirect, and for longer than a connection may take."""
    monkeypatch.setattr(download, "CONNECT_SECONDS", 0.2)
    monkeypatch.setattr(download, "READ_SECONDS", 10)
    known(server.url("/main.zip", redirects(server.url("/archive", sends(ZIP, wait=0.6)))))
    loads(root)


def test_a_slow_connection_is_not(server, root, monkeypatch, capsys):
    """Nobody takes up the encryption of this one."""
    monkeypatch.setattr(download, "CONNECT_SECONDS", 0.3)
    monkeypatch.setattr(download, "READ_SECONDS", 60)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = f"https://127.0.0.1:{silent.getsockname()[1]}/main.zip"
        known(address, server.url("/second", sends(ZIP)))
        started = time.monotonic()
        loads(root)
    assert time.monotonic() - started < 10 and "timed out" in capsys.readouterr().out


# Sources that do not deliver: each is left for the next, with its reason

FAILURES = {
    "is silent": (is_silent, "timed out"),
    "a redirect to a file": (redirects("file:///etc/passwd"), "not allowed"),
    "is silent in the middle": (sends(ZIP, end=50_000, stall=True), "timed out"),
    "is cut": (sends(ZIP, end=50_000), "was cut at 0.1 of 0."),
    "is cut in chunks": (sends(ZIP, end=50_000, length=False), "IncompleteRead"),
    "a web page": (sends(PAGE), "Not a gzipped file (b'<!')"),
    "another set": (sends(OTHER.zip()), "its content digest is not that of the official set"),
    "nonsense": (lambda handler: handler.wfile.write(b"\x1b[31mhello\r\n\r\n"), "?[31mhello"),
}


@pytest.mark.parametrize("name", FAILURES)
def test_a_source_that_fails_is_left_for_the_next(name, server, root, capsys):
    answer, expected = FAILURES[name]
    first = server.url("/first", answer)
    known(first)
    with pytest.raises(UserError, match="no source delivered"):
        data.load("cifar100", root)
    assert set(contents(root)) <= {part_of(root, first).name}
    known(first, server.url("/second", sends(TAR)))
    capsys.readouterr()
    loads(root)
    note = next(x for x in capsys.readouterr().out.splitlines() if x.startswith(f"note: {first}: "))
    assert expected in note and note.isprintable()
    assert contents(root) == ["cifar-100-python.tar.gz", "cifar100-cache.npz"]


def test_an_endless_answer_is_cut_off(server, root, monkeypatch, capsys):
    monkeypatch.setattr(download, "MAX_DOWNLOAD", 2_000_000)
    known(server.url("/first", sends(bytes(9_000_000), length=False)), server.url("/second", sends(ZIP)))
    loads(root)
    assert "it sends more than the 2 MB allowed" in capsys.readouterr().out


def test_when_no_source_answers_the_user_reads_why_and_what_to_do(server, root, capsys):
    known(first := server.url("/first", refuses))
    with pytest.raises(UserError, match=r"no source delivered .*: put .* python train\.py --dataset shapes$"):
        data.load("cifar100", root, "http://127.0.0.1:port/x")
    out = capsys.readouterr().out
    assert "note: http://127.0.0.1:port/x: " in out and f"note: {first}: HTTP Error 404: Not Found" in out


# Resuming a download that was interrupted


def interrupted(server, root, content, length=True):
    """Download half of `content` from /first and fail; return how many bytes have come."""
    half = len(content) // 2
    known(address := server.url("/first", sends(content, end=half, length=length)))
    with pytest.raises(UserError, match="no source delivered"):
        data.load("cifar100", root)
    assert part_of(root, address).read_bytes() == content[:half]
    server.requests.clear()
    return half


@pytest.mark.parametrize("length", [True, False])
def test_the_next_start_resumes(length, server, root):
    half = interrupted(server, root, TAR, length)
    server.url("/first", sends(TAR, length=length))
    loads(root)
    assert server.ranges("/first") == [f"bytes={half}-"]
    assert (root / "cifar-100-python.tar.gz").read_bytes() == TAR


def test_two_halves_of_different_files_are_not_taken_for_the_set(server, root):
    """The file on the server has changed: the mixture is refused, and the next start downloads all of it."""
    half = interrupted(server, root, OTHER.zip())
    server.url("/first", sends(ZIP))
    with pytest.raises(UserError, match="no source delivered"):
        data.load("cifar100", root)
    loads(root)
    assert server.ranges("/first") == [f"bytes={half}-", None]


# The disk


@pytest.mark.skipif(fcntl is None, reason="Windows has no locks of folders")
def test_two_downloads_at_once_into_one_folder_are_refused(server, root):
    known(server.url("/main.zip", sends(ZIP)))
    root.mkdir(parents=True)
    with locked(root), pytest.raises(UserError, match="another command is at work"):
        data.load_cifar100(root)
    assert not server.requests


def test_a_disk_that_fills_up_and_is_cleared(server, root):
    """A limit on the size of files stops the download half way; without it, the download is resumed there."""
    resource = pytest.importorskip("resource")
    known(server.url("/first", sends(ZIP)))
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(ZIP) // 2, hard))
    try:
        with pytest.raises(UserError, match="no source delivered"):
            data.load("cifar100", root)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    loads(root)
    assert server.ranges("/first") == [None, f"bytes={len(ZIP) // 2}-"]


def test_a_folder_that_cannot_be_made(server, tmp_path):
    known(server.url("/first", sends(ZIP)))
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"cannot be written \(Not a directory\): .*--data-dir"):
        data.load("cifar100", tmp_path / "file" / "data")
    assert server.requests == []

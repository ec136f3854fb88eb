"""CIFAR-100 over the network, from servers on the loopback address that do everything that servers do."""

import contextlib
import http.server
import io
import os
import pathlib
import signal
import socket
import subprocess
import sys
import textwrap
import threading
import time
import zipfile

import pytest
from torchvision.io import encode_png

import data

HERE = os.path.dirname(data.__file__)


class Server(http.server.ThreadingHTTPServer):
    """Serves each path by a function of the request, and keeps a list of the requests."""

    daemon_threads = True
    block_on_close = False

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.answers, self.requests = {}, []
        self.over = threading.Event()  # lets what crawls and stalls end with the test
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
        if len(self.server.requests) > 30:  # so that nothing that these tests look for goes on for ever
            return self.send_error(508)
        with contextlib.suppress(OSError):
            self.server.answers[self.path](self)

    def log_message(self, *arguments):
        pass


def sends(
    content,
    *,
    etag='"1"',
    modified=None,
    ranges=True,
    check=True,
    length=True,
    cut=None,
    stall=None,
    rate=None,
    status=200,
):
    """A function that answers with `content`.

    ranges: goes on from the byte asked for; check: only where If-Range names this content. length: states it,
    else sends chunks. cut: closes the connection after so many bytes of each answer. stall: sends no more
    after so many. rate: bytes/s.
    """

    def answer(handler):
        start = 0
        asked = handler.headers.get("Range")
        same = handler.headers.get("If-Range") in (etag, modified) or not check
        if ranges and asked and same:
            start = int(asked.removeprefix("bytes=").removesuffix("-"))
            if start >= len(content):
                handler.send_response(416)
                handler.send_header("Content-Length", "0")
                handler.end_headers()
                return
            handler.send_response(206)
            handler.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        else:
            handler.send_response(status)
        for name, value in (("ETag", etag), ("Last-Modified", modified)):
            if value:
                handler.send_header(name, value)
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
            if rate:
                step = max(1, min(step, rate // 50))
                if handler.server.over.wait(step / rate):
                    return
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
def small(cifar_files, monkeypatch, loopback_only):
    """The small set, which here is the official one; and short times."""
    monkeypatch.setattr(data, "OFFICIAL_DIGEST", cifar_files.small.digests())
    monkeypatch.setattr(data, "CONNECT_SECONDS", 2)
    monkeypatch.setattr(data, "STALL_SECONDS", 0.6)
    monkeypatch.setattr(data, "RATE_SECONDS", 0.4)
    return cifar_files.small


@pytest.fixture(scope="module")
def archives(cifar_files):
    """The zip and the tar.gz of the small set, and the zip of another."""
    other = cifar_files.SmallCifar(seed=9)
    return {"zip": cifar_files.small.zip(), "tar": cifar_files.small.tar(), "other": other.zip()}


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
    """The names in the folder, without the lock."""
    return sorted(path.name for path in root.iterdir() if path.name != ".download.lock")


def loads(root, small, url=None):
    """Load, check the content and return (train, test)."""
    datasets = data.load("cifar100", root, url)
    for split, dataset in zip(("train", "test"), datasets, strict=True):
        assert dataset.digest == small.digests()[split]
        assert dataset.verified and "verified: the content digest" in dataset.provenance
    return datasets


def part_of(root, address):
    digest = data.hashlib.sha256(address.encode()).hexdigest()[:8]
    return root / f"cifar100-{digest}.part"


# ---------------------------------------------------------------------------------------------------------
# A source that delivers


def test_the_mirror_as_github_sends_it(server, root, small, archives, capsys):
    """A redirect, chunks, no length, a weak ETag."""
    archive = server.url("/archive", sends(archives["zip"], length=False, etag='W/"1"', ranges=False))
    data.SOURCES.append(server.url("/main.zip", redirects(archive)))
    loads(root, small)
    assert contents(root) == ["cifar-100-png.zip", "cifar100-cache.npz"]
    assert (root / "cifar-100-png.zip").read_bytes() == archives["zip"]
    assert [path for path, _ in server.requests] == ["/main.zip", "/archive"]
    assert f"downloading CIFAR-100 to {root} from {data.SOURCES[0]}" in capsys.readouterr().out

    loads(root, small)  # from the cache
    (root / "cifar100-cache.npz").unlink()
    loads(root, small)  # from the archive
    assert len(server.requests) == 2
    assert capsys.readouterr().out == ""


def test_the_official_archive(server, root, small, archives):
    data.SOURCES.append(server.url("/cifar.tar.gz", sends(archives["tar"])))
    loads(root, small)
    assert contents(root) == ["cifar-100-python.tar.gz", "cifar100-cache.npz"]
    assert (root / "cifar-100-python.tar.gz").read_bytes() == archives["tar"]


def test_nothing_is_asked_where_there_is_a_set(server, root, small, archives, capsys):
    root.mkdir(parents=True)
    small.write(root, "folder")
    data.SOURCES.append(server.url("/main.zip", sends(archives["zip"])))
    loads(root, small, url=server.url("/mine.zip", sends(archives["other"])))
    assert server.requests == []
    assert "--data-url is not used" in capsys.readouterr().out


def test_the_sources_and_the_times_as_they_are():
    """What these tests replace. Without a network --data-url and both sources end in 24 s at the latest."""
    code = "import data; print(*data.SOURCES, data.CONNECT_SECONDS, data.STALL_SECONDS, data.MIN_RATE)"
    run = subprocess.run([sys.executable, "-c", code], cwd=HERE, capture_output=True, text=True, check=True)
    mirror, official, connect, stall, rate = run.stdout.split()
    assert mirror == "https://github.com/cyizhuo/CIFAR-100-dataset/archive/refs/heads/main.zip"
    assert official == "https://www.cs.toronto.edu/~kriz/cifar-100-python.tar.gz"
    assert 5 <= float(connect) <= 8 and 5 <= float(stall) <= 30
    # The official host at its present rate is left; 146 MB at the rate asked for take under 15 minutes.
    assert float(rate) > 85_000 and 146e6 / float(rate) < 900


# ---------------------------------------------------------------------------------------------------------
# --data-url


def test_data_url_comes_first(server, root, small, archives):
    data.SOURCES.append(server.url("/main.zip", sends(archives["tar"])))
    loads(root, small, url=server.url("/mine", sends(archives["zip"])))
    assert [path for path, _ in server.requests] == ["/mine"]


def test_another_set_from_data_url_is_used_and_called_what_it_is(server, root, archives, cifar_files):
    train, test = data.load("cifar100", root, server.url("/mine", sends(archives["other"])))
    assert train.digest == cifar_files.SmallCifar(seed=9).digests()["train"]
    for dataset in (train, test):
        assert not dataset.verified and "not verified" in dataset.provenance
    assert contents(root) == ["cifar-100-png.zip", "cifar100-cache.npz"]


def test_when_data_url_fails_the_sources_follow_with_a_note(server, root, small, archives, capsys):
    data.SOURCES.append(server.url("/main.zip", sends(archives["zip"])))
    mine = server.url("/mine", refuses(404))
    loads(root, small, url=mine)
    assert f"note: {mine}: HTTP Error 404: Not Found" in capsys.readouterr().out


@pytest.mark.parametrize("kind", ["tar", "zip", "folder", "png", "png below", "parent"])
def test_data_url_may_be_a_path(kind, server, root, small, tmp_path, capsys):
    data.SOURCES.append(server.url("/main.zip", sends(b"")))
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
    data.SOURCES.append(server.url("/main.zip", sends(archives["zip"])))
    with pytest.raises(data.UserError, match=name):
        data.load("cifar100", root, str(tmp_path / name))
    assert server.requests == [] and not root.exists()


def test_data_url_with_a_path_that_cannot_be_read(server, root, small, plain_user):
    small.write(plain_user, "folder")
    plain_user.chmod(0)
    for path in (plain_user, plain_user / "cifar-100-python"):
        with pytest.raises(data.UserError, match="Permission denied"):
            data.load("cifar100", root, str(path))


@pytest.mark.parametrize("url", ["ftp://127.0.0.1/x.zip", "file:///etc/passwd", "s3://x/y"])
def test_data_url_of_another_kind(url, server, root, archives):
    data.SOURCES.append(server.url("/main.zip", sends(archives["zip"])))
    with pytest.raises(data.UserError, match="expected http://, https:// or a path"):
        data.load("cifar100", root, url)
    assert server.requests == [] and not root.exists()


# ---------------------------------------------------------------------------------------------------------
# Sources that do not deliver: each is left for the next, with its reason


def evil_zip(archives):
    out = io.BytesIO(archives["zip"])
    with zipfile.ZipFile(out, "a") as archive:
        archive.writestr("../evil.png", b"")
    return out.getvalue()


FAILURES = {
    "404": (lambda a: refuses(404), "HTTP Error 404: Not Found"),
    "503": (lambda a: refuses(503), "HTTP Error 503: Service Unavailable"),
    "hangs up": (lambda a: hangs_up, "closed connection|reset"),
    "is silent": (lambda a: is_silent, "no answer in 2 s|timed out"),
    "a loop of redirects": (lambda a: redirects("/first"), "infinite loop"),
    "a redirect to a file": (lambda a: redirects("file:///etc/passwd"), "not allowed"),
    "stalls at once": (lambda a: sends(a["zip"], stall=0), "nothing came for 0.6 s"),
    "stalls": (lambda a: sends(a["zip"], stall=50_000, ranges=False), "at 0.1 MB nothing came for 0.6 s"),
    "is cut": (lambda a: sends(a["zip"], cut=50_000, ranges=False), "was cut at 0.1 of 0."),
    "is cut in chunks": (
        lambda a: sends(a["zip"], cut=50_000, ranges=False, length=False),
        "was cut at 0.1 MB",
    ),
    "crawls": (lambda a: sends(a["zip"], rate=50_000), "too slow, "),
    "a web page": (lambda a: sends(PAGE), "is it a saved web page?"),
    "nothing": (lambda a: sends(b""), "neither a zip nor a tar.gz"),
    "half an archive": (lambda a: sends(a["zip"][:100_000]), "not a zip file"),
    "a damaged archive": (
        lambda a: sends(a["tar"][:90_000] + b"\xff\xff\xff" + a["tar"][90_003:]),
        "no usable CIFAR-100",
    ),
    "another set": (lambda a: sends(a["other"]), "is not CIFAR-100: it has another content digest"),
    "a zip that leads out": (lambda a: sends(evil_zip(a)), "refused: member '../evil.png'"),
    "nonsense": (lambda a: lambda handler: handler.wfile.write(b"\x1b[31mhello\r\n\r\n"), "?[31mhello"),
}


@pytest.mark.parametrize("name", FAILURES)
def test_a_source_that_fails_is_left_for_the_next(name, server, root, small, archives, capsys):
    answer, expected = FAILURES[name]
    first = server.url("/first", answer(archives))
    data.SOURCES += [first, server.url("/second", sends(archives["tar"]))]
    started = time.monotonic()
    loads(root, small)
    assert time.monotonic() - started < 6
    out = capsys.readouterr().out
    note = next(line for line in out.splitlines() if line.startswith(f"note: {first}: "))
    assert any(part in note for part in expected.split("|")) and note.isprintable(), note
    assert contents(root) == ["cifar-100-python.tar.gz", "cifar100-cache.npz"]
    assert "/second" in [path for path, _ in server.requests]


@pytest.mark.parametrize("name", FAILURES)
def test_no_failure_is_ever_taken_for_the_set(name, server, root, archives, monkeypatch):
    """With no other source each failure but slowness is the end, now and at the next start."""
    monkeypatch.setattr(data, "CRAWL_RATE", 10**9)
    answer, expected = FAILURES[name]
    data.SOURCES.append(server.url("/first", answer(archives)))
    for _ in range(2):
        with pytest.raises(data.UserError) as caught:
            data.load("cifar100", root)
        lines = str(caught.value).splitlines()
        assert lines[0] == f"there is no CIFAR-100 in {root}, and no source delivered it:"
        assert lines[1].startswith(f"  {data.SOURCES[0]}: ")
        assert any(part in lines[1] for part in expected.split("|"))
        assert set(contents(root)) <= {
            part_of(root, data.SOURCES[0]).name,
            part_of(root, data.SOURCES[0]).name + ".json",
        }


def test_a_wrong_digest_names_the_file(server, root, archives):
    data.SOURCES.append(server.url("/first", sends(archives["other"])))
    with pytest.raises(data.UserError) as caught:
        data.load("cifar100", root)
    part = part_of(root, data.SOURCES[0])
    assert f"{part} is not CIFAR-100: it has another content digest" in str(caught.value)
    assert part.read_bytes() == archives["other"]


def test_a_whole_file_that_was_refused_is_fetched_again_from_its_start(server, root, small, archives):
    data.SOURCES.append(server.url("/first", sends(archives["other"])))
    with pytest.raises(data.UserError):
        data.load("cifar100", root)
    server.url("/first", sends(archives["zip"]))  # the same ETag, which must not be relied on
    loads(root, small)
    assert "Range" not in server.asked("/first")[1]


def test_an_endless_answer_is_cut_off(server, root, small, archives, monkeypatch, capsys):
    monkeypatch.setattr(data, "MAX_DOWNLOAD", 2_000_000)

    def endless(handler):
        handler.send_response(200)
        handler.end_headers()
        while True:
            handler.wfile.write(bytes(100_000))

    data.SOURCES += [server.url("/first", endless), server.url("/second", sends(archives["zip"]))]
    loads(root, small)
    assert "it sends more than the 2 MB allowed" in capsys.readouterr().out


def test_a_port_where_nobody_listens(server, root, small, archives, capsys):
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    data.SOURCES += [f"http://127.0.0.1:{port}/x.zip", server.url("/second", sends(archives["zip"]))]
    loads(root, small)
    assert "Connection refused" in capsys.readouterr().out


@pytest.mark.parametrize(
    "address", ["http://", "http://127.0.0.1:port/x", "http://127.0.0.1/a b", "http://[::1/x"]
)
def test_an_address_that_is_none(address, server, root, small, archives, capsys):
    data.SOURCES.append(server.url("/second", sends(archives["zip"])))
    loads(root, small, url=address)
    assert f"note: {address}: " in capsys.readouterr().out


def test_a_name_server_that_hangs(root, small, monkeypatch):
    monkeypatch.setattr(data, "CONNECT_SECONDS", 0.5)
    over = threading.Event()
    monkeypatch.setattr(socket, "getaddrinfo", lambda *arguments, **options: over.wait(30))
    data.SOURCES += ["http://mirror.invalid/x.zip", "http://official.invalid/x.tar.gz"]
    started = time.monotonic()
    with pytest.raises(data.UserError) as caught:
        data.load("cifar100", root)
    assert time.monotonic() - started < 3
    assert str(caught.value).count("no answer in 0.5 s") == 2
    over.set()


# ---------------------------------------------------------------------------------------------------------
# Slow sources


def test_a_slow_source_is_kept_when_it_is_the_last(server, root, small, archives, monkeypatch):
    monkeypatch.setattr(data, "RATE_SECONDS", 0.1)
    monkeypatch.setattr(data, "MIN_RATE", 10**9)
    data.SOURCES += [
        server.url("/first", refuses(503)),
        server.url("/second", sends(archives["zip"], rate=800_000)),
    ]
    loads(root, small)
    assert len(server.asked("/second")) == 1


def test_of_slow_sources_the_fastest_goes_on(server, root, small, archives, monkeypatch, capsys):
    monkeypatch.setattr(data, "RATE_SECONDS", 0.2)
    monkeypatch.setattr(data, "MIN_RATE", 10**9)
    data.SOURCES += [
        server.url("/first", sends(archives["zip"], rate=100_000)),
        server.url("/second", sends(archives["zip"], rate=700_000)),
        server.url("/third", sends(archives["zip"], rate=50_000)),
    ]
    loads(root, small)
    assert [path for path, _ in server.requests] == ["/first", "/second", "/third", "/second"]
    assert int(server.requests[3][1]["Range"][6:-1]) > 50_000  # from where it was left
    assert capsys.readouterr().out.count("too slow, ") == 3
    assert contents(root) == ["cifar-100-png.zip", "cifar100-cache.npz"]


def test_the_rate_is_that_of_the_last_moments(server, root, small, archives, capsys):
    """A source that begins fast and then crawls is left as soon as it crawls."""

    def answer(handler):
        handler.send_response(200)
        handler.send_header("Content-Length", str(len(archives["zip"])))
        handler.end_headers()
        handler.wfile.write(archives["zip"][:700_000])
        for i in range(700_000, len(archives["zip"])):
            handler.wfile.write(archives["zip"][i : i + 1])
            if handler.server.over.wait(0.02):
                return

    data.SOURCES += [server.url("/first", answer), server.url("/second", sends(archives["tar"]))]
    loads(root, small)
    assert "/first: too slow, 0.0 kB/s" in capsys.readouterr().out


def test_a_source_that_as_good_as_stands_still_is_left_even_as_the_last(server, root, archives, monkeypatch):
    monkeypatch.setattr(data, "STALL_SECONDS", 5)
    crawl = sends(archives["zip"], rate=20, cut=100)

    def answer(handler):
        (refuses(404) if len(server.requests) > 3 else crawl)(handler)

    data.SOURCES.append(server.url("/first", answer))
    with pytest.raises(data.UserError, match="too slow, 0"):
        data.load("cifar100", root)
    assert len(server.requests) == 1


# ---------------------------------------------------------------------------------------------------------
# Going on after an interruption


@pytest.mark.parametrize(
    "validator", [{"etag": '"7"'}, {"etag": 'W/"7"', "modified": "Mon, 01 Jun 2026 10:00:00 GMT"}]
)
@pytest.mark.parametrize("length", [True, False])
def test_a_connection_that_is_cut_goes_on_where_it_was(length, validator, server, root, small, archives):
    content = archives["zip"]
    cut = len(content) // 3 + 1
    data.SOURCES.append(server.url("/first", sends(content, cut=cut, length=length, **validator)))
    loads(root, small)
    asked = server.asked("/first")
    assert [headers.get("Range") for headers in asked] == [None, f"bytes={cut}-", f"bytes={2 * cut}-"]
    assert {headers["If-Range"] for headers in asked[1:]} == {validator.get("modified") or validator["etag"]}
    assert (root / "cifar-100-png.zip").read_bytes() == content


def interrupted(server, root, content, **how):
    """Fetch about half of `content` from /first and fail; return how many bytes lie there."""
    data.SOURCES[:] = [server.url("/first", sends(content, cut=len(content) // 2, **how))]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(data, "TRIES", 1)
        with pytest.raises(data.UserError, match="was cut at"):
            data.load("cifar100", root)
    server.requests.clear()
    part = part_of(root, data.SOURCES[0])
    assert part.read_bytes() == content[: len(content) // 2]
    return part.stat().st_size


def test_the_next_start_goes_on(server, root, small, archives):
    half = interrupted(server, root, archives["tar"])
    server.url("/first", sends(archives["tar"]))
    loads(root, small)
    assert server.asked("/first")[0]["Range"] == f"bytes={half}-" and len(server.requests) == 1
    assert contents(root) == ["cifar-100-python.tar.gz", "cifar100-cache.npz"]


def test_what_came_from_one_address_is_not_taken_for_a_part_of_another(server, root, small, archives):
    interrupted(server, root, archives["other"])
    data.SOURCES[:] = [server.url("/second", sends(archives["zip"]))]
    loads(root, small)
    assert "Range" not in server.asked("/second")[0]
    assert contents(root) == ["cifar-100-png.zip", "cifar100-cache.npz"]


def test_a_server_that_refuses_ranges_sends_all_again(server, root, small, archives):
    interrupted(server, root, archives["zip"])
    server.url("/first", sends(archives["zip"], ranges=False))
    loads(root, small)
    assert (root / "cifar-100-png.zip").read_bytes() == archives["zip"]


def test_a_new_start_counts_from_zero(server, root, archives):
    """Cut once more, the message tells the true size."""
    interrupted(server, root, archives["zip"])
    server.url("/first", sends(archives["zip"], ranges=False, cut=100_000))
    with pytest.raises(data.UserError, match=f"cut at 0.1 of {len(archives['zip']) / 1e6:.1f} MB"):
        data.load("cifar100", root)


def test_a_file_that_has_changed_meanwhile_is_sent_again(server, root, small, archives):
    interrupted(server, root, archives["other"])
    server.url("/first", sends(archives["zip"], etag='"2"'))
    loads(root, small)
    assert server.asked("/first")[0]["If-Range"] == '"1"' and len(server.requests) == 1
    assert (root / "cifar-100-png.zip").read_bytes() == archives["zip"]


def test_two_halves_of_different_files_are_not_taken_for_the_set(server, root, small, archives):
    """A server that ignores If-Range: the mixture is refused, and the next start takes all of it."""
    interrupted(server, root, archives["other"])
    server.url("/first", sends(archives["zip"], etag='"2"', check=False))
    with pytest.raises(data.UserError, match=r"no usable CIFAR-100|another content digest"):
        data.load("cifar100", root)
    loads(root, small)


def test_without_a_name_for_the_version_nothing_is_gone_on_with(server, root, small, archives):
    for etag in (None, 'W/"1"'):
        interrupted(server, root, archives["zip"], etag=etag)
        server.url("/first", sends(archives["zip"], etag=etag))
        loads(root, small)
        assert "Range" not in server.asked("/first")[0]
        for path in root.iterdir():
            path.unlink()


@pytest.mark.parametrize("notes", [b"", b"{", b"[]", b"7", b'{"size": 7}', b"\xff"])
def test_damaged_notes_about_a_part_mean_a_new_start(notes, server, root, small, archives):
    interrupted(server, root, archives["zip"])
    pathlib.Path(f"{part_of(root, data.SOURCES[0])}.json").write_bytes(notes)
    server.url("/first", sends(archives["zip"]))
    loads(root, small)
    assert "Range" not in server.asked("/first")[0]


def test_a_part_longer_than_the_file_means_a_new_start(server, root, small, archives):
    interrupted(server, root, archives["zip"])
    with open(part_of(root, data.SOURCES[0]), "ab") as file:
        file.write(bytes(2_000_000))
    server.url("/first", sends(archives["zip"]))
    loads(root, small)
    assert [("Range" in headers) for headers in server.asked("/first")] == [True, False]


def test_killed_between_the_last_byte_and_the_new_name(server, root, small, archives):
    """All of it is there: nothing is asked again, but the content is checked."""
    for content in (archives["zip"], archives["zip"][:-5] + b"wrong"):
        half = interrupted(server, root, archives["zip"])
        with open(part_of(root, data.SOURCES[0]), "ab") as file:
            file.write(content[half:])
        server.url("/first", refuses(503))
        if content == archives["zip"]:
            loads(root, small)
            for path in root.iterdir():
                path.unlink()
        else:
            with pytest.raises(data.UserError, match="no usable CIFAR-100"):
                data.load("cifar100", root)
        assert server.requests == []


def test_a_cut_connection_is_not_tried_for_ever(server, root, archives):
    data.SOURCES.append(server.url("/first", sends(archives["zip"], cut=1000)))
    with pytest.raises(data.UserError, match="was cut"):
        data.load("cifar100", root)
    assert len(server.requests) == data.TRIES
    data.SOURCES[:] = [server.url("/none", sends(archives["zip"], cut=0))]
    with pytest.raises(data.UserError, match="was cut"):
        data.load("cifar100", root)
    assert len(server.asked("/none")) == 1


# ---------------------------------------------------------------------------------------------------------
# The disk


needs_full = pytest.mark.skipif(not os.path.exists("/dev/full"), reason="/dev/full is a device of Linux")


@needs_full
@pytest.mark.parametrize("suffix", ["", ".json"])
def test_a_full_disk_ends_the_download(suffix, server, root, archives):
    data.SOURCES += [
        server.url("/first", sends(archives["zip"])),
        server.url("/second", sends(archives["zip"])),
    ]
    root.mkdir(parents=True)
    full = f"{part_of(root, data.SOURCES[0])}{suffix}"
    os.symlink("/dev/full", full)
    with pytest.raises(data.UserError) as caught:
        data.load("cifar100", root)
    message = str(caught.value)
    assert "cannot be written (No space left on device): make room" in message and "\n" not in message
    assert server.asked("/second") == []  # it would not help


@needs_full
def test_a_full_disk_when_the_cache_is_written_after_a_download(server, root, small, archives, capsys):
    root.mkdir(parents=True)
    os.symlink("/dev/full", root / f".cifar100-cache.npz.{os.getpid()}.tmp")
    data.SOURCES.append(server.url("/first", sends(archives["zip"])))
    loads(root, small)
    assert "no cache was written" in capsys.readouterr().out
    assert contents(root) == ["cifar-100-png.zip"]


def test_a_disk_that_fills_up_and_is_cleared(server, root, small, archives):
    """A limit of the file size stops the download half way; without it, it goes on from there."""
    data.SOURCES.append(server.url("/first", sends(archives["zip"])))
    limit = len(archives["zip"]) // 2
    code = f"""
        import resource, sys, data
        resource.setrlimit(resource.RLIMIT_FSIZE, ({limit}, {limit}))
        data.SOURCES[:] = {data.SOURCES}
        try:
            data.load("cifar100", {str(root)!r})
        except data.UserError as error:
            sys.exit(f"error: {{error}}")
    """
    run = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)], cwd=HERE, capture_output=True, text=True, timeout=60
    )
    assert "cannot be written (File too large): make room" in run.stderr and "Traceback" not in run.stderr
    loads(root, small)
    assert server.asked("/first")[1]["Range"] == f"bytes={limit}-"


def test_a_folder_that_cannot_be_made_or_written_to(server, plain_user, archives):
    data.SOURCES.append(server.url("/first", sends(archives["zip"])))
    plain_user.chmod(0o555)
    for root in (plain_user, plain_user / "data"):
        with pytest.raises(data.UserError, match=r"cannot be written \(Permission denied\)") as caught:
            data.load("cifar100", root)
        assert "--data-dir" in str(caught.value)
    assert server.requests == []


# ---------------------------------------------------------------------------------------------------------
# Several processes


def start_process(root, source, small, output):
    code = f"""
        import data
        data.SOURCES[:] = [{source!r}]
        data.OFFICIAL_DIGEST.update({small.digests()!r})
        print(data.load("cifar100", {str(root)!r})[0].provenance)
    """
    with open(output, "w") as file:
        command = [sys.executable, "-c", textwrap.dedent(code)]
        return subprocess.Popen(command, cwd=HERE, stdout=file, stderr=subprocess.STDOUT)


def wait_for(condition, seconds=30):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.02)


def test_two_processes_at_once_download_once(server, root, small, archives, tmp_path):
    go_on = threading.Event()

    def answer(handler):
        go_on.wait(7)
        sends(archives["zip"], ranges=False)(handler)

    source = server.url("/first", answer)
    outputs = [tmp_path / "first.txt", tmp_path / "second.txt"]
    processes = [start_process(root, source, small, output) for output in outputs]
    with contextlib.suppress(AssertionError):
        wait_for(lambda: "waiting for another process" in "".join(output.read_text() for output in outputs))
    go_on.set()
    for process, output in zip(processes, outputs, strict=True):
        assert process.wait(60) == 0, output.read_text()
        assert "verified: the content digest" in output.read_text()
    assert len(server.requests) == 1
    assert sum("waiting for another process" in output.read_text() for output in outputs) == 1
    assert contents(root) == ["cifar-100-png.zip", "cifar100-cache.npz"]


def test_after_kill_9_another_process_goes_on(server, root, small, archives, tmp_path):
    source = server.url("/first", sends(archives["zip"], stall=80_000))
    process = start_process(root, source, small, tmp_path / "output.txt")
    part = part_of(root, source)
    wait_for(lambda: part.exists() and part.stat().st_size == 80_000)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert contents(root) == [part.name, part.name + ".json"]
    data.SOURCES.append(server.url("/first", sends(archives["zip"])))
    loads(root, small)
    assert server.asked("/first")[1]["Range"] == "bytes=80000-"


# ---------------------------------------------------------------------------------------------------------
# What the user sees


def test_when_no_source_answers_the_message_says_all(server, root):
    data.SOURCES += [server.url("/first", refuses(503)), server.url("/second", sends(PAGE))]
    mine = server.url("/mine", refuses(404))
    with pytest.raises(data.UserError) as caught:
        data.load("cifar100", root, mine)
    message = str(caught.value)
    assert f"  {mine}: HTTP Error 404: Not Found\n" in message
    assert f"  {data.SOURCES[0]}: HTTP Error 503: Service Unavailable\n" in message
    assert f"  {data.SOURCES[1]}: " in message and "is it a saved web page?\n" in message
    assert f"Put cifar-100-python.tar.gz or the zip of PNG files into {root} by hand" in message
    assert "--data-url" in message
    command = message.splitlines()[-1].split()
    assert command[:2] == ["python", "train.py"]
    import train

    assert train.settings(command[2:]).dataset == "shapes"


def test_train_without_a_network_ends_in_time_with_exit_code_2(server, tmp_path):
    """With the times as they are. The option never answers, the sources cannot be reached at once."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        closed = f"http://127.0.0.1:{free.getsockname()[1]}/x.tar.gz"
    silent, absent = server.url("/mine", is_silent), server.url("/first", refuses(404))
    code = f"""
        import runpy, sys, data
        data.SOURCES[:] = {[absent, closed]}
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
        assert address in run.stderr
    assert "no answer in 8 s" in run.stderr and "Connection refused" in run.stderr
    assert "python train.py --dataset shapes" in run.stderr
    assert len(server.requests) == 2
    assert not list((tmp_path / "run").rglob("*.pt"))


def test_train_passes_its_options_on(tmp_path, monkeypatch):
    import train

    seen = []

    def load(*arguments):
        seen.append(arguments)
        raise data.UserError("enough")

    monkeypatch.setattr(train, "load", load)
    options = ["--data-dir", "here", "--data-url", "http://127.0.0.1/x.zip", "--out", str(tmp_path / "run")]
    with pytest.raises(data.UserError, match="enough"):
        train.main(options) if hasattr(train, "main") else train.train(train.settings(options))
    assert seen == [("cifar100", "here", "http://127.0.0.1/x.zip")]


def test_the_bar_on_a_terminal_and_the_lines_elsewhere(server, root, small, archives, monkeypatch, capsys):
    data.show_progress(52_340_000, 146_000_000, 3_200_000, terminal=True)
    bar = capsys.readouterr().err
    assert bar.startswith("\r[===========                   ] 52.3 of 146 MB, 3.20 MB/s, 0:00:29 left")
    assert not bar.endswith("\n")
    data.show_progress(52_340_000, None, 60_000, terminal=False)
    assert capsys.readouterr().err == "52.3 of 150 MB, 0.06 MB/s, 0:27:08 left\n"
    for done, size, rate in [(1, 0, 0), (200_000_000, None, 1), (5, 5, 1e12)]:
        data.show_progress(done, size, rate, terminal=True)
        assert "0:00:00 left" in capsys.readouterr().err or done == 1

    data.SOURCES.append(server.url("/first", sends(archives["zip"], rate=400_000)))
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    loads(root, small)
    drawn = capsys.readouterr().err
    total = f"of {len(archives['zip']) / 1e6:.0f} MB"
    assert drawn.count("\r[") >= 2 and total in drawn and "MB/s" in drawn and "left" in drawn
    assert drawn.endswith("\r\033[K") and "\n" not in drawn


# ---------------------------------------------------------------------------------------------------------
# CIFAR-100 itself


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
    address = server.url("/main.zip", sends(content, length=False, etag=None))
    monkeypatch.setattr(data, "SOURCES", [address])
    train, test = data.load("cifar100", root)
    assert train.verified and test.verified
    assert (len(train.images), len(test.images)) == (50_000, 10_000)
    assert train.digest == "37a2b72bd30f9438ff20798c661450f58f138c034f556846cd744a56bbb09967"
    assert test.digest == "b9ad4d741ee82873becf8846c246715e789a57766586a9677a8bbe26c8b30279"
    assert contents(root) == ["cifar-100-png.zip", "cifar100-cache.npz"]

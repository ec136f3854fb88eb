"""running/files.py: files are whole or absent, also on a full disk."""

import csv
import errno
import json
import os
import pathlib

import pytest
from processes import assert_one_line, finish, needs_fork, wait_for

from running import files
from running.files import UserError


def test_json_and_csv_round_trip_into_new_folders(tmp_path):
    content = {"name": "Prüfung", "values": [1, 2.5, None]}
    files.write_json(tmp_path / "a" / "b" / "x.json", content)
    text = (tmp_path / "a" / "b" / "x.json").read_text(encoding="utf-8")
    assert json.loads(text) == content and "Prüfung" in text and text.endswith("}\n")
    rows = [{"epoch": 1, "loss": 0.1, "note": 'a, "b"'}, {"epoch": 2, "loss": 1e-9, "note": "ü\nx"}]
    files.write_csv(tmp_path / "c" / "x.csv", rows)
    with open(tmp_path / "c" / "x.csv", newline="", encoding="utf-8") as file:
        assert list(csv.DictReader(file)) == [{k: str(v) for k, v in row.items()} for row in rows]
    assert sorted(p.name for p in tmp_path.rglob("*") if p.is_file()) == ["x.csv", "x.json"]


def test_a_failed_write_leaves_the_old_file_and_names_the_new(tmp_path, monkeypatch):
    path = tmp_path / "x.json"
    files.write_json(path, {"old": 1})

    def full(*args, **kwargs):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(pathlib.Path, "write_text", full)
    with pytest.raises(UserError, match=r"x\.json cannot be written \(No space left on device\)"):
        files.write_json(path, {"new": 2})
    monkeypatch.undo()
    assert json.loads(path.read_text()) == {"old": 1} and os.listdir(tmp_path) == ["x.json"]


def test_a_folder_whose_name_is_no_text_is_refused(tmp_path):
    with pytest.raises(UserError, match="cannot be written"):
        files.write_json(tmp_path / "\udcff" / "x.json", {"a": "\udcff"})


def test_a_whole_file_takes_its_place_at_the_end(tmp_path):
    path = tmp_path / "new" / "folder" / "x.txt"
    for content in ("old", "new"):
        with files.whole_file(path) as temporary:
            before = path.read_text() if path.exists() else None
            temporary.write_text(content)
            assert temporary.parent == path.parent and temporary.name.startswith(".x.txt.")
            assert before == {"old": None, "new": "old"}[content]
        assert path.read_text() == content and os.listdir(path.parent) == ["x.txt"]


def test_an_error_while_writing_leaves_the_old_file(tmp_path):
    path = tmp_path / "x.txt"
    path.write_text("old")
    with pytest.raises(ZeroDivisionError), files.whole_file(path) as temporary:
        temporary.write_text("half")
        raise ZeroDivisionError
    assert path.read_text() == "old" and os.listdir(tmp_path) == ["x.txt"]


def test_a_folder_that_cannot_be_made_is_named(tmp_path):
    (tmp_path / "a").write_text("a file")
    for path in (tmp_path / "a" / "x.json", str(tmp_path / "a" / "b" / "x.json")):
        with pytest.raises(
            UserError, match=r"x\.json cannot be written \(.*\); the previous file is unchanged"
        ):
            files.write_json(path, {})


def small_files_only():
    import resource

    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))


@needs_fork
def test_a_disk_that_takes_no_more(tmp_path, start, tiny_cifar):
    run, log = tmp_path / "run", tmp_path / "log 2"
    process = start([*tiny_cifar, "--epochs", "2000", "--out", str(run)])
    assert wait_for((run / "checkpoints" / "last.pt").exists, process)
    process.kill()
    process.join()
    before = {path: path.read_bytes() for path in (run / "checkpoints").glob("*.pt")}
    process = start(
        ["--resume", "--out", str(run)], stdout=os.devnull, stderr=str(log), prepare=small_files_only
    )
    assert finish(process) == 2
    assert_one_line(
        2, log.read_text(), r"\.pt cannot be written \(File too large\); the previous file is unchanged"
    )
    assert {path: path.read_bytes() for path in (run / "checkpoints").glob("*.pt")} == before
    assert not list(run.rglob("*.tmp"))

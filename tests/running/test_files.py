"""running/files.py: files are whole or absent, also on a full disk, and what fails is named in one line."""

import csv
import errno
import json
import os

import pytest

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


def test_a_whole_file_takes_its_place_at_the_end(tmp_path):
    path = tmp_path / "new" / "folder" / "x.txt"
    for content, expected in (("old", None), ("new", "old")):
        with files.whole_file(path) as temporary:
            temporary.write_text(content)
            assert temporary.parent == path.parent and temporary.name.startswith(".x.txt.")
            assert (path.read_text() if path.exists() else None) == expected
        assert path.read_text() == content and os.listdir(path.parent) == ["x.txt"]


@pytest.mark.parametrize(
    "raised, expected",
    [
        (OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)), UserError),
        (ZeroDivisionError("x"), ZeroDivisionError),
    ],
)
def test_a_failed_write_leaves_the_old_file_and_names_the_new(tmp_path, raised, expected):
    path = tmp_path / "x.txt"
    path.write_text("old")
    with pytest.raises(expected) as info, files.whole_file(path) as temporary:
        temporary.write_text("half")
        raise raised
    assert path.read_text() == "old" and os.listdir(tmp_path) == ["x.txt"]
    said = f"{path} cannot be written (No space left on device); the previous file is unchanged"
    assert str(info.value) == (said if expected is UserError else "x")


@pytest.mark.parametrize(
    "raised, reason",
    [
        (ValueError("its\nends are loose"), "its ends are loose"),
        (KeyError("epoch"), "KeyError: 'epoch'"),
        (RecursionError(), "RecursionError"),
        (OSError(errno.EIO, "Input/output error", "some file"), "Input/output error"),
        (UserError("there is no b.pt"), "there is no b.pt"),
    ],
)
def test_whatever_fails_while_a_file_is_used_names_it_in_one_line(raised, reason):
    with pytest.raises(UserError) as info, files.usable("a.pt", "a checkpoint"):
        raise raised
    assert str(info.value) == f"a.pt cannot be used as a checkpoint: {reason}"
    assert info.value.__cause__ is raised
    with pytest.raises(KeyboardInterrupt), files.usable("a.pt", "a checkpoint"):
        raise KeyboardInterrupt


def test_only_regular_files_of_bounded_size_are_read(tmp_path):
    (tmp_path / "link").symlink_to(tmp_path / "link")
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "large").write_bytes(bytes(2_000_001))
    for name, said in [
        ("link", "there is no file"),
        ("x" * 5000, "there is no file"),
        ("x\0", "there is no file"),
        ("pipe", "is not a regular file"),
        (".", "is not a regular file"),
        ("large", "has more than the 2.0 MB allowed"),
    ]:
        with pytest.raises(UserError, match=said):
            files.read_file(tmp_path / name, 2_000_000)
    assert files.read_file(tmp_path / "large") == bytes(2_000_001)

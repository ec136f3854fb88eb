"""support/files.py: files are whole or absent, also on a full disk, and what fails is named in one line."""

import errno
import os

import pytest

from support import errors, files
from support.errors import UserError


def test_a_whole_file_takes_its_place_at_the_end(tmp_path):
    path = tmp_path / "new" / "folder" / "x.txt"
    for content, expected in (("old", None), ("new", "old")):
        with files.whole_file(path) as temporary:
            temporary.write_text(content)
            assert temporary.parent == path.parent
            assert (path.read_text() if path.exists() else None) == expected
        assert path.read_text() == content and os.listdir(path.parent) == ["x.txt"]


@pytest.mark.parametrize(
    "raised, expected, said",
    [
        (OSError(errno.ENOSPC, "No space left"), UserError, r"x\.txt .*No space left"),
        (ZeroDivisionError("x"), ZeroDivisionError, "^x$"),
    ],
)
def test_a_failed_write_leaves_the_old_file_and_names_the_new(tmp_path, raised, expected, said):
    path = tmp_path / "x.txt"
    path.write_text("old")
    with pytest.raises(expected, match=said), files.whole_file(path) as temporary:
        temporary.write_text("half")
        raise raised
    assert path.read_text() == "old" and os.listdir(tmp_path) == ["x.txt"]
    with pytest.raises(UserError, match=r"x\.txt/y cannot be written"), files.whole_file(path / "y"):
        raise AssertionError("a file is no folder")


@pytest.mark.parametrize(
    "raised, reason",
    [
        (ValueError("its\nends are loose"), "its ends are loose"),
        (KeyError("epoch"), "KeyError: 'epoch'"),
        (OSError(errno.EIO, "Input/output error", "some file"), "Input/output error"),
        (UnicodeDecodeError("utf-8", b"\xff", 0, 1, "why"), "it is not text in UTF-8: save it as that"),
    ],
)
def test_whatever_fails_while_a_file_is_read_names_it_in_one_line(raised, reason):
    with pytest.raises(UserError) as info, errors.reading("a.pt", "a checkpoint"):
        raise raised
    assert str(info.value) == f"a.pt cannot be used as a checkpoint: {reason}"
    assert info.value.__cause__ is raised
    with pytest.raises(UserError, match=r"^it says what to do$"), errors.reading("a.pt", "a checkpoint"):
        raise UserError("it says what to do")


def test_one_line_has_at_most_300_characters_and_no_control_among_them():
    assert errors.one_line("a\n b\x1b[31m\u202e\tc") == "a b?[31m? c"
    assert errors.one_line("x" * 300) == "x" * 300
    assert errors.one_line("x" * 300 + "y" * 100) == "x" * 195 + " ... " + "y" * 100

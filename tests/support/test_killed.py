"""A training that is killed at any moment: every file is whole, and no saved epoch is lost."""

import contextlib
import os
from pathlib import Path

import pytest
from processes import TINY, assert_same_run, check_invariants, continue_or_begin

import train


class KilledError(BaseException):
    """Nothing more is done to files once it is raised, also by what cleans up."""


def die_at(number, patch):
    """Kill the training before its n-th change to files; of a file half is written by then."""
    count = 0

    def counting(function, changes=lambda *args: True, half=lambda *args: None):
        def counted(*args, **kwargs):
            nonlocal count
            count += changes(*args)
            if count == number:
                half(*args)
            if count >= number:
                raise KilledError
            return function(*args, **kwargs)

        return counted

    def half_bytes(path, content):
        with open(path, "wb") as file:
            file.write(content[: len(content) // 2])

    for name in ("fsync", "replace"):
        patch.setattr(os, name, counting(getattr(os, name)))
    patch.setattr(Path, "mkdir", counting(Path.mkdir, changes=lambda path, *args: not path.exists()))
    patch.setattr(Path, "unlink", counting(Path.unlink, changes=Path.exists))
    patch.setattr(Path, "write_bytes", counting(Path.write_bytes, half=half_bytes))


@pytest.mark.slow
def test_killed_before_every_single_change_of_files(tmp_path, small):
    options = [*TINY, "--dataset", "shapes", "--epochs", "2", "--limit-train", "4"]
    assert train.main([*options, "--out", str(tmp_path / "whole")]) == 0
    number, ended = 0, False
    while not ended:
        number += 1
        run = tmp_path / f"killed at {number}"
        with pytest.MonkeyPatch.context() as patch:
            die_at(number, patch)
            with contextlib.suppress(KilledError):
                ended = train.main([*options, "--out", str(run)]) == 0
        check_invariants(run)
        assert train.main(continue_or_begin(run, options)) == 0
        assert_same_run(run, tmp_path / "whole")
    # config.json, and for each epoch history.csv, last.pt and, if it is the best, best.pt.
    assert number > 15

"""Runs of real processes that are killed at any moment: every file is whole, and no saved epoch is lost."""

import os
import signal
from pathlib import Path

import pytest
from processes import (
    assert_same_run,
    check_invariants,
    continue_or_begin,
    finish,
    needs_fork,
)

import train

pytestmark = needs_fork


def die_at(number):
    """Let this process kill itself before its n-th change to files; of a file half is written by then."""
    count = 0

    def counting(function, changes=lambda *args: True, half=lambda *args: None):
        def counted(*args, **kwargs):
            nonlocal count
            count += changes(*args)
            if count == number:
                half(*args)
                os.kill(os.getpid(), signal.SIGKILL)
            return function(*args, **kwargs)

        return counted

    def half_bytes(path, content):
        with open(path, "wb") as file:
            file.write(content[: len(content) // 2])

    for name in ("fsync", "replace"):
        setattr(os, name, counting(getattr(os, name)))
    Path.mkdir = counting(Path.mkdir, changes=lambda path, *args: not path.exists())
    Path.unlink = counting(Path.unlink, changes=Path.exists)
    Path.write_bytes = counting(Path.write_bytes, half=half_bytes)


@pytest.mark.slow
def test_killed_before_every_single_change_of_files(tmp_path, start, tiny_cifar):
    options = [*tiny_cifar, "--epochs", "2", "--limit-train", "4"]
    assert train.main([*options, "--out", str(tmp_path / "whole")]) == 0
    codes = []
    while 0 not in codes:
        run = tmp_path / f"killed at {len(codes) + 1}"
        codes.append(
            finish(start([*options, "--out", str(run)], prepare=die_at, arguments=(len(codes) + 1,)))
        )
        check_invariants(run)
        assert train.main(continue_or_begin(run, options)) == 0
        assert_same_run(run, tmp_path / "whole")
    # config.json, and for each epoch history.csv, last.pt and, if it is the best, best.pt.
    assert len(codes) > 15 and set(codes[:-1]) == {-signal.SIGKILL}

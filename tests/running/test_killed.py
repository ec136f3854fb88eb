"""Runs of real processes that are killed at any moment: every file is whole, and no saved epoch is lost."""

import os
import random
import signal
import time
from pathlib import Path

import pytest
from processes import (
    assert_one_line,
    assert_same_run,
    check_invariants,
    continue_or_begin,
    finish,
    needs_fork,
    outcome,
    wait_for,
)

import train

pytestmark = needs_fork


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1])
def test_killed_at_twelve_moments(seed, tmp_path, start, tiny_cifar):
    """SIGKILL, most times soon after a checkpoint; the end is that of a whole run."""
    options = [*tiny_cifar, "--epochs", "24", "--patience", "0"]
    whole, run = start([*options, "--out", str(tmp_path / "whole")]), tmp_path / "run"
    last, rng, epochs = run / "checkpoints" / "last.pt", random.Random(seed), [0]
    for number in range(12):
        stamp = last.stat().st_mtime_ns if last.exists() else 0
        process = start(continue_or_begin(run, options))
        if number % 4 < 3:  # one in four is killed while it starts
            wait_for(lambda: last.exists() and last.stat().st_mtime_ns != stamp, process)  # noqa: B023
        time.sleep(rng.uniform(0, 0.1))
        process.kill()
        assert finish(process) in (0, -signal.SIGKILL), (tmp_path / "log").read_text()
        epochs.append(check_invariants(run))
    assert finish(start(continue_or_begin(run, options))) == 0 and finish(whole) == 0
    assert epochs == sorted(epochs) and epochs[-1] > 5  # no epoch that was saved is ever lost
    assert check_invariants(run) == 24 and "Traceback" not in (tmp_path / "log").read_text()
    assert_same_run(run, tmp_path / "whole")


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


def test_a_second_training_in_a_folder_ends_at_once_and_the_lock_of_a_killed_one_is_free(
    tmp_path, start, tiny_cifar, capsys
):
    run = tmp_path / "run"
    process = start([*tiny_cifar, "--epochs", "2000", "--out", str(run)])
    assert wait_for((run / "checkpoints" / "last.pt").exists, process)
    for options in (["--resume"], tiny_cifar):
        code, err = outcome(capsys, train.main, [*options, "--out", str(run)])
        assert_one_line(code, err, "another command is at work in")
    process.kill()
    process.join()
    code, err = outcome(capsys, train.main, [*tiny_cifar, "--out", str(run)])
    assert_one_line(code, err, "holds a run already")


def test_of_two_trainings_that_start_at_once_in_a_new_folder_one_comes_to_its_end(
    tmp_path, start, tiny_cifar
):
    for number in range(5):
        run = tmp_path / f"run {number}"
        both = [start([*tiny_cifar, "--epochs", "1", "--out", str(run)]) for _ in range(2)]
        assert sorted(finish(process) for process in both) == [0, 2]
        assert check_invariants(run) == 1

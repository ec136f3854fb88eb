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
def test_killed_at_random_moments(tmp_path, start, tiny_cifar):
    """SIGKILL, most times soon after a checkpoint; the end is that of a whole run."""
    options = [*tiny_cifar, "--epochs", "24", "--patience", "0"]
    whole = start([*options, "--out", str(tmp_path / "whole")])
    rng = random.Random(time.time_ns())  # other moments every time; what must hold holds at each of them
    num_kills, kills, number = 24, 0, 0
    while kills < num_kills:
        number += 1
        run, epochs, code = tmp_path / f"run {number}", [0], None
        last = run / "checkpoints" / "last.pt"
        while code != 0:
            stamp = last.stat().st_mtime_ns if last.exists() else 0
            process = start(continue_or_begin(run, options))
            if kills < num_kills:
                if kills % 4 < 3:  # at most one in four is killed while it starts
                    wait_for(lambda: last.exists() and last.stat().st_mtime_ns != stamp, process)  # noqa: B023
                time.sleep(rng.uniform(0, 0.3))
                process.kill()
            code = finish(process)
            assert code in (0, -signal.SIGKILL), (tmp_path / "log").read_text()
            kills += code != 0
            epochs.append(check_invariants(run))
        assert epochs == sorted(epochs) and epochs[-1] == 24  # no epoch that was saved is ever lost
        assert finish(whole) == 0
        assert_same_run(run, tmp_path / "whole")
    assert "Traceback" not in (tmp_path / "log").read_text()


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
    Path.write_text = counting(Path.write_text)
    Path.write_bytes = counting(Path.write_bytes, half=half_bytes)


@pytest.mark.slow
def test_killed_before_every_single_change_of_files(tmp_path, start, tiny_cifar):
    options = [*tiny_cifar, "--epochs", "2", "--limit-train", "4"]
    assert train.main([*options, "--out", str(tmp_path / "whole")]) == 0
    codes = []
    while 0 not in codes:
        folders = {
            number: tmp_path / f"killed at {number}" for number in range(len(codes) + 1, len(codes) + 4)
        }
        processes = [
            start([*options, "--out", str(run)], prepare=die_at, arguments=(number,))
            for number, run in folders.items()
        ]
        codes += [finish(process) for process in processes]
        for run in folders.values():
            check_invariants(run)
            assert train.main(continue_or_begin(run, options)) == 0
            assert_same_run(run, tmp_path / "whole")
    # config.json, and for each epoch history.csv, last.pt and, if it is the best, best.pt.
    assert len(codes) > 20 and set(codes[: codes.index(0)]) == {-signal.SIGKILL}


def test_two_trainings_in_one_folder_and_the_lock_of_a_killed_one(tmp_path, start, tiny_cifar, capsys):
    run = tmp_path / "run"
    process = start([*tiny_cifar, "--epochs", "2000", "--out", str(run)])
    assert wait_for((run / "checkpoints" / "last.pt").exists, process)
    for options in (["--resume"], [*tiny_cifar, "--overwrite"], tiny_cifar):
        code, err = outcome(capsys, train.main, [*options, "--out", str(run)])
        assert_one_line(code, err, "another command is at work in")
    assert process.is_alive()
    process.kill()
    process.join()
    argv = [*tiny_cifar, "--epochs", "1", "--overwrite", "--out", str(run)]
    assert outcome(capsys, train.main, argv)[0] == 0

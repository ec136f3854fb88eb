"""A training that is killed at any moment: every file is whole, and no saved epoch is lost."""

import contextlib

import pytest
from processes import TINY, KilledError, assert_same_run, check_invariants, continue_or_begin, die_at

import train


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

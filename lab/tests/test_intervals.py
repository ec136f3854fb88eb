"""intervals.py: against draws, SciPy and sums by hand."""

import math

import numpy as np
import pytest
import torch

from lab import intervals, slices
from metrics import proportion


def test_a_share_of_draws_has_an_interval_over_images():
    """Of five draws that all agree there are still but twenty images."""
    generator = torch.Generator().manual_seed(0)
    for hits in (torch.ones(5, 20).bool(), torch.zeros(5, 20).bool()):
        assert intervals.share(hits) == intervals.share(hits[0]) == proportion(int(hits[0].sum()), 20)
    hits = torch.rand(5, 20, generator=generator) < 0.6
    means = hits.double().mean(dim=0).numpy()
    reach = 1.96 * np.std(means, ddof=1) / math.sqrt(20)
    expected = {"value": means.mean(), "low": means.mean() - reach, "high": means.mean() + reach}
    assert intervals.share(hits) == pytest.approx(expected)
    one = torch.arange(24).view(3, 8) == 10  # of nearly none and nearly all it stays within 0 and 1
    assert intervals.share(one)["low"] == 0 and intervals.share(~one)["high"] == 1


def test_mean_interval_by_hand():
    row = intervals.mean_interval([1, 2, 3, 6])
    error = 1.96 * np.std([1, 2, 3, 6], ddof=1) / 2
    assert row == pytest.approx({"value": 3, "low": 3 - error, "high": 3 + error})


def test_quantiles_of_students_t_are_those_of_scipy():
    stats = pytest.importorskip("scipy.stats")
    for freedom in (1, 1.3, 2, 3.7, 14, 500, 9999):
        assert intervals.t_quantile(freedom) == pytest.approx(stats.t.ppf(0.975, freedom), rel=1e-4)
        coverage = 1 - 0.05 / 60
        expected = stats.t.ppf((1 + coverage) / 2, freedom)
        assert intervals.t_quantile(freedom, coverage) == pytest.approx(expected, rel=1e-3)


def test_intervals_end_at_a_hundred_points():
    inside, right = torch.arange(64) < 16, torch.arange(64) % 16 > 0
    rows = slices.compare_slices(right & ~inside, torch.zeros(64).long(), {"x": inside})
    assert [row["gap"] for row in rows] == [pytest.approx(-15 / 16), pytest.approx(15 / 16)]
    assert rows[0]["low"] == -1 and rows[1]["high"] == 1
    assert rows[0]["high"] == pytest.approx(-rows[1]["low"]) and -15 / 16 < rows[0]["high"] < 0

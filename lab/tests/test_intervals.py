"""intervals.py: against draws, SciPy and sums by hand."""

import math
import statistics
from statistics import NormalDist

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


def test_accuracy_by_patients_is_as_sure_as_where_whole_patients_are_drawn_again():
    """Five of thirty patients, who have 5 to 34 pictures, fail; where all are right, each counts once."""

    def by_patients(right, patients):
        return [*intervals.share_by_groups(torch.from_numpy(right), torch.from_numpy(patients)).values()]

    def wilson(share, count):
        z = NormalDist().inv_cdf(0.975)
        return sorted(np.roots([1 + z**2 / count, -2 * share - z**2 / count, share**2]))

    generator, shrunk = np.random.default_rng(0), (1.959964 / 2.045230) ** 2  # by Student's t of 29
    patients = np.repeat(np.arange(30), np.arange(30) + 5)
    right = generator.random(len(patients)) < np.where(patients % 6 == 0, 0.2, 0.9)
    sums, counts = np.bincount(patients, right), np.bincount(patients)
    drawn = generator.integers(30, size=(20000, 30))
    variance = (sums[drawn].sum(axis=1) / counts[drawn].sum(axis=1)).var()
    value, *ends = by_patients(right, patients)
    size = value * (1 - value) / variance * shrunk
    assert value == pytest.approx(right.mean(), abs=5e-4)
    assert ends == pytest.approx(wilson(value, size), abs=0.01)
    value, *ends = by_patients(right | True, patients)
    assert value == 1 and ends == pytest.approx(wilson(1, 30 * shrunk), abs=6e-4)
    right = np.arange(len(patients)) > 0  # one mistake says little of how pictures fail together
    ends = wilson(right.mean(), len(right) * shrunk)
    assert by_patients(right, patients)[1:] == pytest.approx(ends, abs=1.5e-3)


@pytest.mark.parametrize("num_labels", [12, 40])
def test_the_interval_of_assisted_labels_holds_the_truth(num_labels):
    """Drawn a thousand times, for scores that tell much and for those that tell nothing."""
    generator = torch.Generator().manual_seed(0)
    for strength, worth in ((12.0, 1.7), (0.0, 0.95)):
        scores = torch.rand(5000, generator=generator, dtype=torch.float64)
        right = torch.rand(5000, generator=generator) < (strength * (scores - 0.5)).sigmoid()
        truth, holds, errors = right.double().mean().item(), [], []
        for _ in range(1000):
            index = torch.randperm(5000, generator=generator)[:num_labels]
            row = intervals.assisted_share(right[index], scores, index)
            holds.append(row["low"] <= truth <= row["high"])
            errors.append(row["value"] - truth)
        assert 0.93 <= statistics.mean(holds) <= 0.985
        if num_labels == 40:
            assert truth * (1 - truth) / 40 / statistics.mean(e**2 for e in errors) > worth


def test_difference_of_two_shares_holds_the_truth():
    """Of pictures of which 30 % are in the one share and 10 % in the other, in 3,000 draws of forty."""
    drawn = torch.rand(3000, 40, generator=torch.Generator().manual_seed(0))
    holds = []
    for row in drawn:
        first, second = (proportion(int(count), 40) for count in ((row < 0.3).sum(), (row > 0.9).sum()))
        ends = intervals.difference_of_shares(first, second)
        holds.append(ends["low"] <= 0.2 <= ends["high"])
    assert 0.94 <= statistics.mean(holds) <= 0.965

"""lab/more_metrics.py against brute force: all orders, all outcomes, all pairs."""

import itertools
import math
from fractions import Fraction
from statistics import mean

import numpy as np
import pytest
import torch
from networks import seeded
from test_metrics import EXACT, loop_headline, random_case

from lab import more_metrics


def test_the_error_of_a_calibrated_network_by_all_its_outcomes():
    confidence = torch.tensor([0.9, 0.5, 0.55, 0.7, 0.95, 1.0, 0.3], dtype=torch.float64)
    expected = 0.0
    for right in itertools.product([0, 1], repeat=7):
        chance = math.prod(p if r else 1 - p for p, r in zip(confidence.tolist(), right, strict=True))
        gaps = [0.0] * 5
        for p, r in zip(confidence.tolist(), right, strict=True):
            gaps[math.ceil(5 * p) - 1] += r - p
        expected += chance * sum(map(abs, gaps)) / 7
    found = more_metrics.calibration_error_by_chance(confidence, num_bins=5, num_draws=10_000)
    assert found == pytest.approx(expected, abs=4e-3)


def test_risk_coverage_is_the_mean_over_all_orders():
    y_true = torch.tensor([0, 1, 0, 0, 1, 1])  # 0 is predicted, so 1 is wrong
    confidence = torch.tensor([0.7, 0.9, 0.7, 0.9, 0.7, 0.6], dtype=torch.float64)
    probabilities = torch.stack([confidence, 1 - confidence], dim=1)
    curves = []
    for order in itertools.permutations(range(6)):
        surest = sorted(order, key=lambda i: -confidence[i])  # of equal ones in that order
        curves.append([Fraction(sum(y_true[surest[:n]].tolist()), n) for n in range(1, 7)])
    expected = [mean(risks) for risks in zip(*curves, strict=True)]
    for order in ([0, 1, 2, 3, 4, 5], [5, 4, 3, 2, 1, 0]):
        coverage, risk = more_metrics.risk_coverage(y_true[order], probabilities[order])
        assert coverage.tolist() == pytest.approx([i / 6 for i in range(1, 7)], **EXACT)
        assert risk.tolist() == pytest.approx(expected, **EXACT) and risk.dtype == torch.float64


@pytest.mark.parametrize("n", [1, 2, 7, 10])
def test_mcnemar_equals_counting_all_ways_in_which_coins_fall(n):
    heads = [bin(way).count("1") for way in range(2**n)]
    for k in range(n + 1):
        as_uneven = sum(abs(2 * h - n) >= abs(2 * k - n) for h in heads)
        assert more_metrics.mcnemar_exact(k, n - k) == as_uneven / 2**n


def test_auroc_is_the_share_of_pairs_in_the_right_order():
    generator = seeded()
    positive = torch.rand(60, generator=generator) < 0.3
    scores = (torch.rand(60, generator=generator) + 0.3 * positive).mul(10).round() / 10  # many are equal
    pairs = [(scores[i] > scores[j]) + 0.5 * (scores[i] == scores[j]) for i in range(60) for j in range(60)
             if positive[i] and not positive[j]]  # fmt: skip
    assert more_metrics.auroc(positive, scores) == pytest.approx(float(sum(pairs)) / len(pairs), abs=1e-6)
    assert more_metrics.auroc([True, True], [0.1, 0.2]) is None


@pytest.mark.parametrize("scale", [1e-9, 1, 30])
def test_log_odds_order_what_rounding_makes_equal(scale):
    y_true, probabilities = random_case(n=200, num_classes=20)
    logits = probabilities.log() * scale
    exact = []
    for row in logits.tolist():
        top = max(row)
        others = sorted(Fraction(math.exp(value - top)) for value in row)[:-1]
        exact.append(float(-math.log(sum(others))))
    odds = more_metrics.log_odds(logits)
    assert odds.tolist() == pytest.approx(exact, abs=1e-9)
    right = logits.argmax(dim=1) == y_true
    by_float32 = more_metrics.auroc(right, logits.softmax(dim=1).amax(dim=1))
    assert (more_metrics.auroc(right, odds) == by_float32) == (scale == 1)


def test_a_paired_difference_equals_a_loop_over_the_same_resamples():
    y_true, first = random_case(n=40, num_classes=6)
    second = random_case(seed=9, n=40, num_classes=6)[1]
    resamples = torch.randint(40, (60, 40), generator=seeded()).tolist()
    numbers = []
    for samples in [range(40), *resamples]:
        ours, theirs = (loop_headline(y_true.tolist(), rows.tolist(), samples) for rows in (first, second))
        numbers.append([float(a - b) for a, b in zip(ours, theirs, strict=True)])
    difference = more_metrics.paired_headline(y_true, first, second, num_resamples=60)
    for row, (value, *resampled) in zip(difference.values(), np.array(numbers).T, strict=True):
        expected = [value, *np.quantile(resampled, [0.025, 0.975])]
        assert [row[key] for key in ("value", "low", "high")] == pytest.approx(expected, **EXACT)
    with pytest.raises(ValueError, match="expected one shape"):
        more_metrics.paired_headline(y_true, first, second[:, :5])


def test_bad_arguments_raise():
    with pytest.raises(ValueError, match="positive must be bool"):
        more_metrics.auroc([0, 1, 2], [0.1, 0.2, 0.3])
    with pytest.raises(ValueError, match="no score NaN"):
        more_metrics.auroc([True, False], [0.1, math.nan])
    with pytest.raises(ValueError, match="only_first must be a whole number of at least 0"):
        more_metrics.mcnemar_exact(-1, 3)

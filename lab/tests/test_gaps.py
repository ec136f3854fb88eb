"""gaps.py: degrees of freedom by matrices, gaps within groups by loops, and the ways to draw."""

import math

import numpy as np
import pytest
import torch
from lab_networks import random_answers

from lab import gaps


@pytest.mark.parametrize(("num_classes", "tolerance"), [(1, 1e-9), (5, 0.03)])
def test_degrees_of_freedom_are_those_of_bell_and_mccaffrey(num_classes, tolerance):
    """The eigenvalues of the covariance of the changes, whose weights are those of regressions."""
    right, labels, _ = random_answers(300, num_classes)
    groups = torch.from_numpy(np.random.default_rng(3).choice(8, 300, p=[0.5, *[0.5 / 7] * 7]))
    inside = (groups % 3 == 0) ^ (torch.arange(300) % 11 == 0)
    design = np.column_stack([inside.numpy(), np.eye(num_classes)[labels.numpy()]]).astype(float)
    weights = [np.linalg.pinv(np.where((groups == k).numpy()[:, None], 0, design))[0] for k in range(8)]
    changes = np.linalg.pinv(design)[0] - np.array(weights)
    eigenvalues = np.linalg.eigvalsh(changes @ changes.T)
    expected = eigenvalues.sum() ** 2 / (eigenvalues**2).sum()
    assert gaps.gap(right, labels, inside, groups)["freedom"] == pytest.approx(expected, rel=tolerance)
    assert 1 < expected < 4  # though there are eight


def test_gaps_within_groups_are_those_of_a_loop():
    """Regressions with class and group effects; of equal groups the plain mean of gaps, and Student's t."""
    right, labels, columns = random_answers(600, 6)
    groups, inside = torch.arange(600) % 20, torch.from_numpy(columns["light"] > 1)
    design = np.column_stack([np.eye(6)[labels.numpy()], np.eye(20)[groups.numpy()]])
    x, y = (part - design @ np.linalg.pinv(design) @ part for part in (inside.numpy(), right.numpy()))
    s = np.array([(x[groups == g] ** 2).sum() for g in range(20)])
    of_groups = np.array([(x * y)[groups == g].sum() for g in range(20)]) / s
    h = 1 / ((y**2).sum() / (600 - 25) / s + gaps.SPREAD**2)
    h /= h.sum()
    found = gaps.within(right, labels, inside, groups)
    assert found["gap"] == pytest.approx(h @ of_groups, abs=1e-3)
    assert found["weight"] == pytest.approx(s.sum(), 1e-3)
    error = math.sqrt((h**2 / (1 - h) * (of_groups - h @ of_groups) ** 2).sum())
    assert found["error"] >= 0.99 * error and 15 < found["freedom"] < 19
    even = gaps.within(right, labels * 0, torch.arange(600) // 20 % 3 == 0, groups)
    assert even["freedom"] == pytest.approx(19)
    assert gaps.within(right, labels, groups < 9, groups)["weight"] == 0


def test_freedom_within_groups_is_that_of_a_quadratic_form():
    """sum q_g (gap_g - gap)^2, where gap_g has the variance 1 / h_g: trace(A)^2 / trace(A^2)."""
    generator, groups = np.random.default_rng(0), torch.arange(12).repeat_interleave(torch.arange(10, 70, 5))
    right, inside = (torch.from_numpy(generator.random(len(groups)) < share) for share in (0.7, 0.4))
    x, y = inside.double(), right.double()
    for g in range(12):
        for values in (x, y):
            values[groups == g] -= values[groups == g].mean()
    s = torch.stack([x[groups == g].square().sum() for g in range(12)])
    h = 1 / (y.square().sum() / (len(y) - 12) / s + gaps.SPREAD**2)
    h = (h / h.sum()).numpy()
    residual = np.eye(12) - h  # of each gap from their mean, which h weighs
    a = residual.T @ np.diag(h**2 / (1 - h)) @ residual @ np.diag(1 / h)
    found = gaps.within(right, torch.zeros(len(groups), dtype=torch.int64), inside, groups)
    assert found["freedom"] == pytest.approx(np.trace(a) ** 2 / np.trace(a @ a))


def test_gaps_are_within_groups_only_where_enough_groups_are_left():
    """Of forty wards all, or three that are large, have both scanners: these leave half of the weight."""
    generator = np.random.default_rng(0)
    for sizes, mixed in (([60] * 40, 40), ([400] * 3 + [30] * 37, 3)):
        wards = np.repeat(np.arange(40), sizes)
        inside = np.where(wards < mixed, generator.random(len(wards)) < 0.5, wards % 2 == 0)
        right, labels = torch.from_numpy(generator.random(len(wards)) < 0.7), torch.zeros(len(wards)).long()
        row = gaps.gap(right, labels, torch.from_numpy(inside), torch.from_numpy(wards))
        weight = gaps.within(right, labels, torch.from_numpy(inside), torch.from_numpy(wards))["weight"]
        assert weight > row["weight"] / 2 and row["within"] == (mixed == 40)


def test_fishers_test_counts_the_ways_to_draw():
    for table in [(38, 26, 212, 20), (10, 0, 30, 4), (12, 12, 15, 0), (400, 9, 30, 30)]:
        p, (n, wrong, others, wrong_there) = gaps.mid_p(torch.tensor([table])), table
        both, ways = wrong + wrong_there, math.comb(n + others, wrong + wrong_there)
        possible = range(wrong, min(n, both) + 1)
        chance = [math.comb(n, k) * math.comb(others, both - k) / ways for k in possible]
        assert p == pytest.approx(sum(chance) - chance[0] / 2, rel=1e-6)

"""What many tests say together: means over corruptions and severities, and what survives several attacks.

All functions take what stress.py measured, under names such as "fog/3", a corruption and its severity, or
"clean/0" and "grey/0", where there is none:

    records    {test: {"accuracy": ..., "mean_confidence": ..., "calibration": ...}}, see stress.measure
    answers    {test: whether each answer is right, bool [N]}
"""

import itertools
from collections.abc import Iterable

import numpy as np
import torch
from torch import Tensor

SEVERITIES = range(1, 6)
BIN_KEYS = ("gaps", "right", "count")  # of each bin of the calibration error


def calibration_of(records: dict, answers: dict[str, Tensor], tests: list[str]) -> dict:
    """Return accuracy, mean confidence and calibration error of several tests of as many images each.

    "ece", as trained and at the temperature if one is known, is that of all their answers together, where
    gaps of opposite sign cancel.
    """
    rows = [records[test] for test in tests]
    count = sum(len(answers[test]) for test in tests)
    found = {
        "accuracy": float(np.mean([row["accuracy"]["value"] for row in rows])),
        "mean_confidence": float(np.mean([row["mean_confidence"] for row in rows])),
    }
    for name in rows[0]["calibration"]:
        gaps = np.array([row["calibration"][name]["gaps"] for row in rows])  # [tests, bins]
        found[name] = {"ece": float(np.abs(gaps.sum(axis=0)).sum() / count)}
    return found


def reliability_bins(records: dict, answers: dict[str, Tensor], tests: list[str]) -> dict:
    """Return the bins of several tests together: `images` of each test, and `bins`.

    Those are {"as_trained": [[confidence, accuracy, count], ...], ...}, without empty ones.
    """
    found = {}
    for name in records[tests[0]]["calibration"]:
        parts = [records[test]["calibration"][name] for test in tests]
        gaps, right, count = (np.array([part[key] for part in parts]).sum(axis=0) for key in BIN_KEYS)
        rows = zip(gaps, right, count, strict=True)
        found[name] = [[(r - gap) / n, r / n, int(n)] for gap, r, n in rows if n]
    return {"images": len(answers[tests[0]]), "bins": found}


def tests_of(names: Iterable[str], severities: Iterable[int] = SEVERITIES) -> list[str]:
    """Return the names of the tests of corruptions at severities."""
    return [f"{name}/{severity}" for name, severity in itertools.product(names, severities)]


def mean_score(answers: dict[str, Tensor], names: Iterable[str]) -> Tensor:
    """Return the share of corruptions and severities at which each image is right, float64 [N]."""
    return torch.stack([answers[test] for test in tests_of(names)]).double().mean(dim=0)


def still_right(answers: dict[str, Tensor], names: Iterable[str], epsilon: float) -> Tensor:
    """Return which of the attacked images are right without an attack and under all of `names`, bool [N].

    Attacks that were not run at this epsilon do not count.
    """
    tests = ["unattacked/0", *(f"{name}/{epsilon:g}" for name in names)]
    return torch.stack([answers[test] for test in tests if test in answers]).all(dim=0)

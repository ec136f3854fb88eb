"""Sum up many tests: means over corruptions and severities, and the images that survive several attacks.

All functions take what lab.stress measured. The name of a test is a corruption with its severity, such as
"fog/3"; without a severity it is "clean/0" or "grey/0":

    records    {test: {"accuracy": ..., "mean_confidence": ..., "calibration": ...}}, see lab.stress.measure
    answers    {test: whether each answer is right, bool [N]}
"""

import itertools
from collections.abc import Iterable

import numpy as np
import torch
from torch import Tensor

SEVERITIES = range(1, 6)
BIN_KEYS = ("gaps", "right", "count")  # for each bin of the calibration error


def calibration_of(records: dict, answers: dict[str, Tensor], tests: list[str]) -> dict:
    """Return accuracy, mean confidence and calibration error of several tests with equally many images.

    "ece" is the calibration error of all answers together, so gaps of opposite sign cancel. It is there as
    trained and, if there is one, at the temperature.
    """
    rows = [records[test] for test in tests]
    count = sum(len(answers[test]) for test in tests)
    result = {
        "accuracy": float(np.mean([row["accuracy"]["value"] for row in rows])),
        "mean_confidence": float(np.mean([row["mean_confidence"] for row in rows])),
    }
    for name in rows[0]["calibration"]:
        gaps = np.array([row["calibration"][name]["gaps"] for row in rows])  # [tests, bins]
        result[name] = {"ece": float(np.abs(gaps.sum(axis=0)).sum() / count)}
    return result


def reliability_bins(records: dict, answers: dict[str, Tensor], tests: list[str]) -> dict:
    """Return the bins of several tests together: the number of `images` in each test, and `bins`.

    `bins` is {"as_trained": [[confidence, accuracy, count], ...], ...}, without empty bins.
    """
    bins = {}
    for name in records[tests[0]]["calibration"]:
        parts = [records[test]["calibration"][name] for test in tests]
        gaps, right, count = (np.array([part[key] for part in parts]).sum(axis=0) for key in BIN_KEYS)
        rows = zip(gaps, right, count, strict=True)
        bins[name] = [[(r - gap) / n, r / n, int(n)] for gap, r, n in rows if n]
    return {"images": len(answers[tests[0]]), "bins": bins}


def tests_of(names: Iterable[str], severities: Iterable[int] = SEVERITIES) -> list[str]:
    """Return the names of the tests of corruptions at severities."""
    return [f"{name}/{severity}" for name, severity in itertools.product(names, severities)]


def mean_score(answers: dict[str, Tensor], names: Iterable[str]) -> Tensor:
    """Return the share of corruptions and severities at which each image is right, float64 [N]."""
    return torch.stack([answers[test] for test in tests_of(names)]).double().mean(dim=0)


def still_right(answers: dict[str, Tensor], names: Iterable[str], epsilon: float) -> Tensor:
    """Return which of the attacked images are right unattacked and under each attack in names, bool [N].

    An attack that was not run at this epsilon does not count.
    """
    tests = ["unattacked/0", *(f"{name}/{epsilon:g}" for name in names)]
    return torch.stack([answers[test] for test in tests if test in answers]).all(dim=0)

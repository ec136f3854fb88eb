"""What stress tests say together: the names of the tests, shares of several, and the worst of the fifteen.

A test is a corruption with its severity, such as "fog/3", or "clean/0", "grey/0", "pgd/0.5". `stress` is
stress.json, and `right`, {test: bool [N]}, says which answers are right, as stress.npz does.
"""

import itertools
from collections.abc import Iterable

import torch
from torch import Tensor

from lab.intervals import picked

SEVERITIES = range(1, 6)
BINS, SHOWN_EDGE = 15, 12  # of confidence in `calibration`; a threshold of 12 fifteenths, .80, is shown first


def tests_of(names: Iterable[str], severities: Iterable[int] = SEVERITIES) -> list[str]:
    """Return the names of the tests of corruptions at severities."""
    return [f"{name}/{severity}" for name, severity in itertools.product(names, severities)]


def mean_score(right: dict[str, Tensor], names: Iterable[str]) -> Tensor:
    """Return the share of corruptions and severities at which each image is right, float64 [N]."""
    return torch.stack([right[test] for test in tests_of(names)]).double().mean(dim=0)


def still_right(right: dict[str, Tensor], names: Iterable[str], epsilon: float) -> Tensor:
    """Return which of the attacked images are right unattacked and under each attack in names, bool [N].

    An attack that was not run at this epsilon does not count.
    """
    tests = ["unattacked/0", *(f"{name}/{epsilon:g}" for name in names)]
    return torch.stack([right[test] for test in tests if test in right]).all(dim=0)


def corruptions_of(stress: dict) -> list[str]:
    """Return the names of all corruptions, also of those beside the fifteen."""
    return [
        test[:-2] for test, row in stress["tests"].items() if test.endswith("/5") and "calibration" in row
    ]


def worst_of(rows: dict[str, dict]) -> list[str]:
    """Return the name with the lowest value, then those whose intervals overlap with its own.

    Of equal values that of more answers comes first.
    """
    names = sorted(rows, key=lambda name: (rows[name]["value"], rows[name]["high"] - rows[name]["low"]))
    return [name for name in names if name == names[0] or rows[name]["low"] < rows[names[0]]["high"]]


def fifteen_of(stress: dict) -> list[str]:
    """Return the names of the fifteen corruptions, those of a family side by side."""
    return [*itertools.chain(*stress["families"].values())]


def right_of_fifteen(stress: dict, severity: int) -> dict[str, dict]:
    """Return what is right under each of the fifteen corruptions, see picked."""
    count, names = stress["corruption_images"], fifteen_of(stress)
    shares = {name: stress["tests"][f"{name}/{severity}"]["accuracy"]["value"] for name in names}
    return {name: picked(share * count, count, len(names)) for name, share in shares.items()}


def before_and_after(stress: dict, tests: list[str]) -> tuple[float, float] | None:
    """Return the mean accuracy of tests as trained and by own statistics, of the same pictures.

    None where own statistics were not measured.
    """
    own = [stress["tests"][test].get("own_statistics") for test in tests]
    if not all(own):
        return None
    parts = [row["plain"] for row in own], own
    return tuple(sum(row["accuracy"]["value"] for row in rows) / len(rows) for rows in parts)

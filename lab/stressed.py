"""What stress tests say together: the names of the tests, shares of several, and the worst of the fifteen.

A test is a corruption with its severity, such as "fog/3", or "clean/0", "grey/0", "pgd/0.5". `stress` is
stress.json, and `right`, {test: bool [N]}, says which answers are right, as stress.npz does.
"""

import itertools
import statistics
from collections.abc import Iterable

import torch
from torch import Tensor

from lab import attacks
from lab.corruptions import CORRUPTIONS, FIFTEEN
from lab.intervals import mean_interval, mean_share, picked, share, t_quantile

SEVERITIES = range(1, 6)
BINS, SHOWN_EDGE = 15, 12  # of confidence in `calibration`; a threshold of 12 fifteenths, .80, is shown first
OWN_SEVERITIES = 1, 3, 5  # of what own statistics are measured on


def tests_of(names: Iterable[str], severities: Iterable[int] = SEVERITIES) -> list[str]:
    """Return the names of the tests of corruptions at severities."""
    return [f"{name}/{severity}" for name, severity in itertools.product(names, severities)]


CHANGES = ["clean/0", *tests_of(CORRUPTIONS), "grey/0"]  # the tests without attack, of our own
WITH_OWN = {"clean/0", *tests_of(CORRUPTIONS, OWN_SEVERITIES)}  # tests that own statistics answer too


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


# ---- The summary in stress.json ----------------------------------------------------------------------------


def mean_of(records: dict, tests: list[str]) -> dict:
    """Return the mean accuracy, confidence and calibration errors of tests with equally many images."""
    rows = [records[test] for test in tests]
    means = {"accuracy": statistics.fmean(row["accuracy"]["value"] for row in rows)}
    means["mean_confidence"] = statistics.fmean(row["mean_confidence"] for row in rows)
    for key, bins in rows[0]["calibration"].items():
        gaps = torch.tensor([row["calibration"][key]["gaps"] for row in rows], dtype=torch.float64)
        means[key] = {"mean_ece": gaps.abs().sum(dim=1).mean().item() / sum(bins["count"])}
    return means


def add_summary(stress: dict) -> None:
    """Add what the tests without attack say together, `summary`."""
    tests, accuracies = stress["tests"], {}
    for group, names in {"fifteen": FIFTEEN, "published": [f"published {name}" for name in FIFTEEN]}.items():
        if all(test in tests for test in tests_of(names)):
            accuracies[group] = mean_share(mean_score(stress["answers"], names))
    by_severity = [["clean/0"], *(tests_of(FIFTEEN, [severity]) for severity in SEVERITIES)]
    stress["summary"] = {
        "mean_accuracy": accuracies,
        "mean_confidence": {"fifteen": mean_of(tests, tests_of(FIFTEEN))["mean_confidence"]},
        "by_severity": [mean_of(tests, several) for several in by_severity],
    }
    if all("own_statistics" in tests[name] for name in tests.keys() & WITH_OWN):
        stress["summary"]["own_statistics"] = {str(k): own_at(tests, k) for k in OWN_SEVERITIES}
    else:  # a few tests have them, of a run that was cut off, whose batches were larger
        for record in tests.values():
            record.pop("own_statistics", None)


def own_at(records: dict, severity: int) -> dict:
    """Return the mean accuracy of the fifteen by own statistics, without, and their difference."""
    rows = [records[test]["own_statistics"] for test in tests_of(FIFTEEN, [severity])]
    values = [(row["accuracy"]["value"], row["plain"]["accuracy"]["value"]) for row in rows]
    own, plain = torch.tensor(values, dtype=torch.float64).T
    reach = t_quantile(len(rows) - 1)
    difference = mean_interval(own - plain, reach)
    return {"own": mean_share(own, reach), "plain": mean_share(plain, reach), "difference": difference}


def add_attacks(stress: dict, attacked: Tensor) -> None:
    """Add the worst case of all attacks on the attacked images, int64 [M], its control, and the checks."""
    answers = stress["answers"]
    accuracies = {test: record["accuracy"]["value"] for test, record in stress["tests"].items()}
    stress |= {"robust_accuracy": {}, "random_signs": {}}
    for epsilon in attacks.EPSILONS:
        worst = still_right(answers, attacks.ATTACKS, epsilon)  # image by image, as of AutoAttack
        signs = answers[f"random/{epsilon:g}"][attacked]
        stress["robust_accuracy"][f"{epsilon:g}"] = share(worst)
        stress["random_signs"][f"{epsilon:g}"] = share(signs)
        # The checks take the attacked images alone, and not what random signs win.
        accuracies[f"random/{epsilon:g}"] = (signs & answers["unattacked/0"]).double().mean().item()
    stress["checks"] = attacks.check_attacks(accuracies)

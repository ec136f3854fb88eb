"""What many tests say together: means over corruptions and severities, with their intervals.

All functions take what stress.py measured, under names such as "fog/3", a corruption and its severity, or
"clean/0" and "grey/0", where there is none:

    records    {test: {"accuracy": ..., "mean_confidence": ..., "calibration": ...}}, see stress.measure
    answers    {test: whether each answer is right, bool [N]}
"""

import itertools
import math
from collections.abc import Iterable

import numpy as np
import torch
from torch import Tensor

from .corruptions import FIFTEEN
from .cues import CUES

SEVERITIES = range(1, 6)
BIN_KEYS = ("gaps", "right", "count")  # of each bin of the calibration error
FEWEST_OF_A_CLASS = 20  # images: a class with fewer is not ranked


def mean_interval(scores: Tensor) -> dict[str, float]:
    """Return the mean of one score for each image, float64 [N], and its 95 % interval: value, low, high.

    The images are the sample, however many tests gave each score: mean +- 1.96 standard errors, s / sqrt(N).
    """
    mean = scores.mean().item()
    error = 1.96 * scores.std(correction=0).item() / math.sqrt(max(1, len(scores) - 1))
    return {"value": mean, "low": mean - error, "high": mean + error}


def calibration_of(records: dict, answers: dict[str, Tensor], tests: list[str]) -> dict:
    """Return accuracy, mean confidence, NLL and calibration error of several tests of as many images each.

    "ece" is that of all their answers together, where gaps of opposite sign cancel; "mean_ece" is the mean of
    the errors of the single tests.
    """
    rows = [records[test] for test in tests]
    count = sum(len(answers[test]) for test in tests)
    found = {
        "accuracy": float(np.mean([row["accuracy"]["value"] for row in rows])),
        "mean_confidence": float(np.mean([row["mean_confidence"] for row in rows])),
    }
    for name in rows[0]["calibration"]:  # as trained, and at the temperature if one is known
        parts = [row["calibration"][name] for row in rows]
        gaps = np.array([part["gaps"] for part in parts])  # [tests, bins]
        found[name] = {
            "nll": float(np.mean([part["nll"] for part in parts])),
            "ece": float(np.abs(gaps.sum(axis=0)).sum() / count),
            "mean_ece": float(np.abs(gaps).sum() / count),
        }
    return found


def reliability(records: dict, answers: dict[str, Tensor], tests: list[str]) -> dict:
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


def mean_score(answers: dict[str, Tensor], names: Iterable[str]) -> Tensor:
    """Return of each image the share of corruptions and severities at which it is right, float64 [N]."""
    tests = [f"{name}/{severity}" for name, severity in itertools.product(names, SEVERITIES)]
    return torch.stack([answers[test] for test in tests]).double().mean(dim=0)


def still_right(answers: dict[str, Tensor], names: Iterable[str], epsilon: float) -> Tensor:
    """Return which of the attacked images are right without an attack and under all of `names`, bool [N].

    Attacks that were not run at this epsilon do not count.
    """
    tests = ["unattacked/0", *(f"{name}/{epsilon:g}" for name in names)]
    return torch.stack([answers[test] for test in tests if test in answers]).all(dim=0)


def summarise(records: dict, answers: dict[str, Tensor], labels: Tensor, class_names: list[str]) -> dict:
    """Return means over the fifteen, by severity, what each cue costs, and the classes that break first.

    A "drop" is the accuracy on the clean images less that on the changed ones, image by image. The published
    files of --cifar-c count if all fifteen were measured. labels int64 [N].
    """
    clean = answers["clean/0"].double()
    published = [f"published {name}" for name in FIFTEEN]
    summary, scores = {"mean_accuracy": {}, "drop": {}, "mean_confidence": {}}, {}
    for group, names in {"fifteen": FIFTEEN, "published": published}.items():
        tests = [f"{name}/{severity}" for name, severity in itertools.product(names, SEVERITIES)]
        if answers.keys() >= set(tests):
            scores[group] = mean_score(answers, names)
            summary["mean_accuracy"][group] = mean_interval(scores[group])
            summary["mean_confidence"][group] = calibration_of(records, answers, tests)["mean_confidence"]
            if group != "published":  # those are other images
                summary["drop"][group] = mean_interval(clean - scores[group])
    summary["by_severity"] = [calibration_of(records, answers, ["clean/0"])]
    for severity in SEVERITIES:
        tests = [f"{name}/{severity}" for name in FIFTEEN]
        summary["by_severity"].append(calibration_of(records, answers, tests))
    of_fifteen = [f"{name}/{severity}" for name, severity in itertools.product(FIFTEEN, SEVERITIES)]
    summary["reliability"] = reliability(records, answers, of_fifteen)
    summary["cues"] = {}
    for name in CUES:
        drop = mean_interval(clean - answers[f"{name}/0"].double())
        summary["cues"][name] = {"accuracy": records[f"{name}/0"]["accuracy"], "drop": drop}
    classes = []
    for c, count in enumerate(labels.bincount().tolist()):
        if count >= FEWEST_OF_A_CLASS:
            before, after = clean[labels == c].mean().item(), scores["fifteen"][labels == c].mean().item()
            row = {"class": class_names[c], "clean": before, "corrupted": after, "drop": before - after}
            classes.append(row)
    summary["classes_that_break_first"] = sorted(classes, key=lambda row: -row["drop"])[:10]
    return summary

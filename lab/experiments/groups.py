"""Does lab/slices.py find a weakness that is planted where pictures of a patient fail together, and no other?

    python lab/experiments/groups.py

Of 2,500 pictures of ten classes one of 41 patients has so large a share. Twelve columns of five values say
nothing. Values vary by picture, or half of the pictures have their patient's, or all. Patients, and in some
sets values within patients, have accuracies of their own. Under value 0 of the first column all classes lose
so many points, or one class, of which 40 pictures have it, loses 60. Prints in which share of 100 sets (of a
class 50) that is found among sixty slices; and of 25 sets without it, in which share a slice is called weak,
a class, or a slice better, and how many are not judged.
"""

import sys
from pathlib import Path

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from lab.experiments.findings import print_table
from lab.gaps import gap, gap_interval
from lab.slices import NOT_JUDGED, NOT_SHOWN, WEAK, compare_classes, compare_slices, slices_of

PICTURES, CLASSES, PATIENTS, COLUMNS, VALUES = 2500, 10, 41, 12, 5
LARGEST = {"no patients": None, "even": 1 / PATIENTS, "30 %": 0.3, "50 %": 0.5, "80 %": 0.8}
KINDS = {"picture": 0.0, "half": 0.5, "patient": 1.0}  # share of pictures that have their patient's value
PLANTED = [("picture", 10), ("picture", 20), ("picture", 55), ("half", 20), ("half", 55), ("patient", 55)]


def drawn(seed: int, largest: float | None, kind: str, points: int = 0, of_class: int = 0) -> tuple:
    """Return one set: right bool [N], labels int64 [N], columns, and patients int64 [N] or None."""
    generator, shares = np.random.default_rng(seed), [0.15, *[0.85 / 4] * 4]
    in_largest = round(PICTURES * (largest or 0))
    patients = np.r_[np.zeros(in_largest, int), 1 + np.arange(PICTURES - in_largest) % (PATIENTS - 1)]
    labels, columns = generator.integers(CLASSES, size=PICTURES), {}
    spread, slope = generator.choice([0.5, 1, 1.5]), generator.choice([0, 0.5, 1])
    differ = generator.normal(size=(4, PATIENTS, VALUES)) * (largest is not None)
    logits = 1.7 + np.linspace(-0.8, 0.8, CLASSES)[labels] + spread * differ[3, patients, 0]
    for k in range(COLUMNS):
        values = generator.choice(VALUES, size=PICTURES, p=shares)
        of_patients = generator.choice(VALUES, size=PATIENTS, p=shares)[patients]
        columns[f"c{k}"] = np.where(generator.random(PICTURES) < KINDS[kind], of_patients, values)
        if k < 3:
            logits = logits + slope * differ[k, patients, columns[f"c{k}"]]
    if of_class:
        members = generator.permutation(np.flatnonzero(labels == 7))
        columns["c0"][members] = np.where(np.arange(len(members)) < 40, 0, 1 + members % (VALUES - 1))
    lost = (points + of_class * (labels == 7)) * (columns["c0"] == 0) / 100
    right = torch.from_numpy(generator.random(PICTURES) < 1 / (1 + np.exp(-logits)) - lost)
    return right, torch.from_numpy(labels), columns, None if largest is None else torch.from_numpy(patients)


def is_found(right: torch.Tensor, labels: torch.Tensor, columns: dict, patients: torch.Tensor | None) -> bool:
    """Return whether value 0 of the first column is weak among sixty slices."""
    row = gap(right, labels, torch.from_numpy(columns["c0"] == 0), patients)
    return gap_interval(row, 0.05 / COLUMNS / VALUES)[1] < 0


def is_class_found(right: torch.Tensor, labels: torch.Tensor, columns: dict, patients: torch.Tensor) -> bool:
    """Return whether class 7 is weak there among the classes of sixty slices."""
    rows = []
    for column, values in columns.items():
        for text, inside in slices_of(column, values):
            row = {"slice": text, "column": column, "inside": inside}
            rows.append(row | {"verdict": NOT_SHOWN, "same_as": ""})
    pairs = compare_classes(rows, right, labels, patients)
    return any(pair["weak"] and (pair["slice"], pair["class"]) == ("c0 = 0", 7) for pair in pairs)


def false_alarms(right: torch.Tensor, labels: torch.Tensor, columns: dict, patients: torch.Tensor) -> list:
    """Return whether a slice is called weak, a class, or a slice better; and how many cannot be judged."""
    rows = compare_slices(right, labels, columns, patients)
    pairs, verdicts = compare_classes(rows, right, labels, patients), [row["verdict"] for row in rows]
    better, unjudged = any((row["low"] or 0) > 0 for row in rows), verdicts.count(NOT_JUDGED) / len(rows)
    return [WEAK in verdicts, any(pair["weak"] for pair in pairs), better, unjudged]


def main() -> None:
    found, wrong = [], []
    for title, largest in LARGEST.items():
        shares = []
        for planted in PLANTED:
            sets = [drawn(seed, largest, *planted) for seed in range(100)]
            shares.append(np.mean([is_found(*one) for one in sets]))
        shares.append(np.mean([is_class_found(*drawn(k, largest, "picture", 0, 60)) for k in range(50)]))
        found.append([title, *(f"{100 * share:.0f} %" for share in shares)])
        for kind in KINDS if largest else ["picture"]:
            facts = [false_alarms(*drawn(1000 + seed, largest, kind)) for seed in range(25)]
            shares = np.mean(facts, axis=0)
            wrong.append([title, f"by {kind}", *(f"{100 * share:.0f} %" for share in shares)])
    heads = "; ".join(f"by {kind}, -{points}" for kind, points in PLANTED)
    head = f"the largest has; {heads}; one class, -60"
    print_table("Weaknesses that are found", head, "The losses are in points.", found)
    head = "the largest has; values; weak; a class; better; not judged"
    print_table("Sets without a weakness", head, "Values are of pictures, patients, or half of each.", wrong)


if __name__ == "__main__":
    main()

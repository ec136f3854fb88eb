"""How much do simple properties of pictures say about mistakes, beyond their classes, in twelve networks?

    python lab/experiments/properties.py [--data-dir data]

Takes the stored answers of results/ to CIFAR-100's test images and the six properties of lab/slices.py.
Prints a Markdown table: the weak slices with their gap in points, and those that are better; the share of
the variance that classes explain, and of the rest what all slices explain, in all classes alike; and of the
raw differences of accuracy that one interval calls real, how many are not at equal classes.
"""

import argparse
import sys
from pathlib import Path

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import data
from lab.slices import compare_slices, computed, gap

RESULTS = Path(__file__).resolve().parents[2] / "results"


def explained(right: np.ndarray, labels: np.ndarray, members: np.ndarray) -> tuple[float, float]:
    """Return the share of the variance of right [N] that classes explain, and of the rest members [N, M]."""
    classes = np.eye(labels.max() + 1)[labels]
    shares = classes / classes.sum(axis=0)
    rest, slices = (values - classes @ (shares.T @ values) for values in (right, members))
    left = rest - slices @ np.linalg.lstsq(slices, rest, rcond=None)[0]
    return 1 - rest.var() / right.var(), 1 - left.var() / rest.var()


def in_words(row: dict) -> str:
    """Return the name of a slice with its gap in points and the interval."""
    value, low, high = (100 * row[key] for key in ("gap", "low", "high"))
    return f"{row['slice']}: {value:+.1f} ({low:.1f} to {high:.1f})"


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--data-dir", default="data", help="where CIFAR-100 lies")
    _, test = data.load("cifar100", parser.parse_args().data_dir)
    columns, labels = computed(test.images), test.labels
    head = "| network | weak slices | better slices | explained by classes | of the rest "
    print(f"{head}| raw gaps | not at equal classes |\n|{7 * '---|'}")
    for path in sorted(RESULTS.glob("*/predictions.npz")):
        right = torch.from_numpy(np.load(path)["y_pred"]) == labels
        rows = compare_slices(right, labels, columns)
        weak, better = (
            [row for row in rows if row[end] * sign > 0] for end, sign in (("high", -1), ("low", 1))
        )
        members = torch.stack([row["inside"] for row in rows], dim=1).double().numpy()
        shares = explained(right.double().numpy(), labels.numpy(), members)
        raw = held = 0
        for row in rows:
            inside, outside = right[row["inside"]].double(), right[~row["inside"]].double()
            error = (inside.var() / len(inside) + outside.var() / len(outside)).sqrt()
            if (inside.mean() - outside.mean()).abs() > 1.96 * error:
                difference, error, _ = gap(right, labels, row["inside"])
                raw, held = raw + 1, held + (abs(difference) <= 1.96 * error)
        percent = " | ".join(f"{100 * share:.1f} %" for share in shares)
        texts = " | ".join("; ".join(map(in_words, some)) or "none" for some in (weak, better))
        print(f"| {path.parent.name} | {texts} | {percent} | {raw} of {len(rows)} | {held} |")


if __name__ == "__main__":
    main()

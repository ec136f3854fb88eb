"""Does a threshold of confidence keep its promise under corruptions? Answers above .80 in every network.

    python lab/experiments/threshold.py

Prints Markdown tables from the stress.json of the networks in results/, as far as these count answers in
bins. The upper three of the fifteen bins of the calibration error are the answers above .80. Intervals of 95 %
come from 2,000 resamples of the fifteen corruptions, those of clean images are Wilson's. The second table asks
whether the warning of lab.estimate, to label some pictures, stands where fewer than 80 % of these answers are
right.
"""

import sys
from pathlib import Path

import torch
from torch import Generator, Tensor

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from lab.answers import SEVERITIES, tests_of
from lab.corruptions import FIFTEEN
from lab.estimate import APART, left_out, points
from lab.experiments.findings import NETWORKS, RESULTS, percent, print_table, read
from metrics import proportion

FIRST_BIN = 12  # of the fifteen: from .80 on
NUM_RESAMPLES = 2000


def kept_and_right(records: list[dict]) -> Tensor:
    """Return how many answers there are, are above .80, and of these are right, float64 [tests, 3]."""
    bins = [record["calibration"]["as_trained"] for record in records]
    rows = [(sum(b["count"]), sum(b["count"][FIRST_BIN:]), sum(b["right"][FIRST_BIN:])) for b in bins]
    return torch.tensor(rows, dtype=torch.float64)


def share_of_right(counts: Tensor) -> dict[str, float]:
    """Return the share of right answers above .80 over all tests, with its interval over the tests."""
    generator = Generator().manual_seed(0)
    drawn = torch.randint(len(counts), (NUM_RESAMPLES, len(counts)), generator=generator)
    sums = counts[drawn].sum(dim=1)
    low, high = (sums[:, 2] / sums[:, 1]).quantile(torch.tensor([0.025, 0.975]).double()).tolist()
    return {"value": (counts[:, 2].sum() / counts[:, 1].sum()).item(), "low": low, "high": high}


def cells_of(stress: dict) -> list[str]:
    """Return the share of right answers above .80, and how many are kept, clean and at three severities."""
    clean = kept_and_right([stress["tests"]["clean/0"]])
    cells = [percent(proportion(round(clean[0, 2].item()), round(clean[0, 1].item())))]
    kept = [clean[0, 1] / clean[0, 0]]
    for severity in SEVERITIES[::2]:
        counts = kept_and_right([stress["tests"][test] for test in tests_of(FIFTEEN, [severity])])
        cells.append(percent(share_of_right(counts)))
        kept.append(counts[:, 1].sum() / counts[:, 0].sum())
    return [*cells, ", ".join(f"{100 * share:.0f}" for share in kept)]


def warning_row(stress: dict) -> list[str] | None:
    """Return where the promise breaks and where the warning stands, in the 75 tests; None without planes."""
    tests = points(stress)
    if "same_answer" not in tests:
        return None
    names = [test for family in stress["families"].values() for test in tests_of(family)]
    counts = kept_and_right([stress["tests"][test] for test in names])
    broken = counts[:, 2] < 0.8 * counts[:, 1]
    alone = left_out({**stress, "tests": without_same_answer(stress["tests"])})["estimate"]
    warned = alone.clamp(0, 1) - left_out(stress)["estimate"].clamp(0, 1) > APART
    both, neither = int((broken & warned).sum()), int((~broken & warned).sum())
    return [f"{int(broken.sum())} of {len(names)}", f"{both}", f"{neither} of {int((~broken).sum())}"]


def without_same_answer(tests: dict) -> dict:
    """Return the records of tests as earlier versions wrote them, to which a line is fitted."""
    return {test: {k: v for k, v in row.items() if k != "same_answer"} for test, row in tests.items()}


def main() -> None:
    shares, warnings = [], []
    for name in NETWORKS:
        stress = read(RESULTS / name, "stress.json")
        if stress is not None and "count" in stress["tests"]["clean/0"]["calibration"]["as_trained"]:
            shares.append([name, f"{stress['corruption_images']:,}", *cells_of(stress)])
            row = warning_row(stress)
            warnings += [[name, *row]] if row else []
    head = "network; images; clean; severity 1; severity 3; severity 5; kept"
    caption = "In percent; kept is the share of all answers that are above .80, in the same order."
    print_table("Answers above .80 that are right", caption, head, shares)
    head = "network; tests below 80 % right; warned of these; warned of the others"
    caption = "Estimates are by the other families of corruptions; a warning is one to label some pictures."
    print_table("The warning where the promise breaks", caption, head, warnings)


if __name__ == "__main__":
    main()

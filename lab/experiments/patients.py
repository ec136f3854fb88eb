"""How often does lab/slices.py call a slice weak when patients fail together and nothing else does?

    python lab/experiments/patients.py

Each of 60 patients has an accuracy of their own, a logit of mean 1.2 and standard deviation 1, and pictures
of five classes. Ten were at one site, with 20 pictures each; or two of them hold two thirds, or nine tenths,
of its pictures. In 200 sets nothing is planted, in 200 the site loses 30 points. Prints a Markdown table: how
often the site is weak without groups and with them, and how often it is noted that few hold it.
"""

import sys
from pathlib import Path

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from lab.experiments.planted import percent
from lab.slices import compare_slices

SETS, NUM_PATIENTS, AT_SITE, PICTURES = 200, 60, 10, 20
SHARES = {"evenly": 0, "two hold two thirds": 2 / 3, "two hold nine tenths": 0.9}  # of the site


def drawn(share: float, points: int, seed: int) -> tuple[torch.Tensor, torch.Tensor, np.ndarray]:
    """Return of one set which answers are right, bool [N], the labels and the patients, int64 [N]."""
    generator, sizes = np.random.default_rng(seed), np.full(NUM_PATIENTS, PICTURES)
    if share:  # the other eight keep few enough pictures
        sizes[2:AT_SITE] = max(1, round(PICTURES * AT_SITE * (1 - share) / (AT_SITE - 2)))
        sizes[:2] = round(PICTURES * AT_SITE * share / 2)
    patients = np.repeat(np.arange(NUM_PATIENTS), sizes)
    rate = 1 / (1 + np.exp(-1.2 - generator.normal(size=NUM_PATIENTS)))[patients]
    rate = (rate - points / 100 * (patients < AT_SITE)).clip(min=0)
    labels = torch.from_numpy(generator.integers(5, size=len(patients)))
    return torch.from_numpy(generator.random(len(patients)) < rate), labels, patients


def main() -> None:
    head = ["pictures of the ten patients", "the site loses", "weak without groups", "with groups", "noted"]
    print(f"| {' | '.join(head)} |\n|{5 * '---|'}")
    for text, share in SHARES.items():
        for points in (0, 30):
            hits = {"alone": [], "grouped": [], "noted": []}
            for seed in range(SETS):
                right, labels, patients = drawn(share, points, seed)
                site = {"site": patients < AT_SITE}
                for key, groups in (("alone", None), ("grouped", patients)):
                    rows = {row["slice"]: row for row in compare_slices(right, labels, site, groups)}
                    hits[key].append(rows["site = True"]["weak"])
                hits["noted"].append("few_groups" in rows["site = True"])
            shares = " | ".join(percent(of_kind) for of_kind in hits.values())
            print(f"| {text} | {f'{points} points' if points else 'nothing'} | {shares} |", flush=True)


if __name__ == "__main__":
    main()

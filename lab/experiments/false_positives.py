"""How often does compare.py call a difference more than a seed's when only the seed differs?

    python experiments/false_positives.py runs/plain0 runs/plain1 runs/plain2 runs/smooth0 runs/smooth1
    python experiments/false_positives.py --simulate 2000

Of each pair of runs of the same recipe, and of each row of compare.py's table, it applies two rules: the
interval over the images leaves out 0; and that of compare.py, by which the difference also exceeds what a
seed does. The spread between seeds is that of the runs without the two, since of n runs no two differ by more
than s sqrt(2 (n - 1)): with the pair in its own spread the rule would never be wrong for n below 7.

--simulate makes up so many rows of two recipes of three seeds each that do not differ.
"""

import itertools
import sys
from pathlib import Path

import torch
from torch import Generator

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from lab import compare
from support.console import CommandLine, run_main


def judge_pairs(row: compare.Row, runs: list[dict], recipes: list[list[int]]) -> list[dict]:
    """Return what compare.judge says of all pairs of one recipe that have a yardstick without them."""
    judged = []
    for pair in (pair for places in recipes for pair in itertools.combinations(places, 2)):
        others = [[place for place in places if place not in pair] for places in recipes]
        found = compare.judge(row, runs, others, [pair[1]], [pair[0]])
        if found is not None and found["by_seed"] is not None:
            judged.append(found)
    return judged


def simulate(count: int, seed_spread: float, num_images: int = 400) -> list[dict]:
    """Return what compare.judge says of two recipes that are the same one, three seeds each, so many times.

    Of an image of difficulty d, which is the same for all runs, a run of quality q is right if q - d and
    noise of its own are above 0; all are normal, q with the standard deviation seed_spread.
    """
    generator, judged = Generator().manual_seed(0), []
    runs, recipes = [{"epochs": 10}] * 6, [[0, 1, 2], [3, 4, 5]]
    for _ in range(count):
        difficulty = torch.randn(num_images, generator=generator)
        quality = 0.7 + seed_spread * torch.randn(6, 1, generator=generator)
        right = quality - difficulty + 0.5 * torch.randn(6, num_images, generator=generator) > 0
        row = compare.Row(is_mean=True)
        for place, scores in enumerate(right.double()):
            row.values[place], row.samples[place] = scores.mean().item(), scores
        judged.append(compare.judge(row, runs, recipes, recipes[1], recipes[0]))
    return judged


def summary(judged: list[dict]) -> str:
    """Return how many of the differences either rule calls an effect, in words."""
    beyond = sum(found["beyond_images"] for found in judged)
    bold = sum(found["bold"] for found in judged)
    return f"{len(judged):5} differences, {beyond:4} beyond images, {bold:4} also beyond a seed"


def main() -> None:
    parser = CommandLine(__doc__)
    parser.add_argument("runs", type=Path, nargs="*", metavar="RUN")
    parser.add_argument("--simulate", type=int, default=0, metavar="N", help="rows to make up")
    args = parser.parse_args()
    if args.simulate:
        for seed_spread in (0.0, 0.05, 0.2):
            print(f"quality +- {seed_spread:4} {summary(simulate(args.simulate, seed_spread))}")
    if args.runs:
        runs = compare.read_all(args.runs)
        recipes, together = compare.places_by_recipe(runs), []
        for name, row in compare.tabulate(runs).items():
            judged = judge_pairs(row, runs, recipes)
            print(f"{name:36} {summary(judged)}")
            together += judged
        print(f"{'together':36} {summary(together)}")


if __name__ == "__main__":
    run_main(main)

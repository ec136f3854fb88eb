"""How often is a difference called more than a seed's when only the seed differs?

    python experiments/false_positives.py runs/plain0 runs/plain1 runs/plain2 runs/plain3 runs/plain4

Of each pair of runs of the same recipe, and of each row of compare.py's table, it applies two rules: the
interval over the images leaves out 0; and that of compare.py, by which the difference also exceeds the spread
between seeds. That is pooled over all runs given here, those of the pair among them.
"""

import itertools
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import compare
from running.console import CommandLine, run_main


def main() -> None:
    parser = CommandLine(__doc__)
    parser.add_argument("runs", type=Path, nargs="+", metavar="RUN")
    runs = [compare.read(folder) for folder in parser.parse_args().runs]
    recipes = compare.places_by_recipe(runs)
    pairs = [pair for places in recipes for pair in itertools.combinations(places, 2)]
    total, by_images, by_seeds = 0, 0, 0
    for name, row in compare.tabulate(runs).items():
        found = [compare.difference(row, [b], [a]) for a, b in pairs]
        found = [difference for difference in found if difference is not None]
        beyond = [d for d in found if d["low"] * d["high"] > 0]
        yardstick = compare.yardstick(row, recipes, 1, 1)
        called = [d for d in beyond if abs(d["value"]) > yardstick]
        print(f"{name:36} {len(found):3} pairs, {len(beyond):3} beyond images, {len(called):3} beyond a seed")
        total, by_images, by_seeds = total + len(found), by_images + len(beyond), by_seeds + len(called)
    print(f"together {total} differences, {by_images} beyond images, {by_seeds} beyond a seed")


if __name__ == "__main__":
    run_main(main)

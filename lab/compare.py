"""Compare runs on the same test images: what differs between recipes, and is it more than another seed does?

    python -m lab.compare RUN RUN [RUN ...]        the first against each of the others

Each RUN holds what report.py and stress.py have written. Runs of one recipe, which differ in the seed alone
by their config.json, make one column, the mean of them; the first run's recipe is what the others are
compared with. A cell is a number and the difference from the first recipe in points with its 95 % interval
over the images. It is bold if it is more than a seed does: 0 is outside of the interval, and the difference
is larger than the yardstick, which follows from the spread between the seeds of each recipe. "k of n" are the
pairs of the same seed whose own interval is on that side of 0. Several runs on one page is what report.py
--against shows.
"""

import itertools
import json
import math
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Generator, Tensor

import metrics
from lab import more_metrics
from lab.agreement import check_alike
from lab.results import IDENTITY, read_stress
from lab.stress_tests.summary import mean_score, still_right
from support.console import CommandLine, run_main
from support.errors import UserError, reading
from support.outputs import read_report

NUM_RESAMPLES = 200
# The 97.5 % quantile of Student's t with 1, 2, ... degrees of freedom (Student 1908).
T_QUANTILE = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160)
# Settings in which runs of one recipe may differ.
NOT_THE_RECIPE = {"seed", "out", "data_dir", "device", "precision", "compile", "dataset"}


@dataclass
class Row:
    """One row of the table: what the runs have that have it, by their places among the runs."""

    is_mean: bool  # of one score for each image
    values: dict[int, float] = field(default_factory=dict)
    samples: dict[int, Tensor] = field(default_factory=dict)  # these scores, or the numbers of resamples


# ---- The runs --------------------------------------------------------------------------------------------


def read_run(run: Path) -> dict:
    """Return the answers of a run with its numbers, recipe, seed, epochs, temperature and stress tests."""
    numbers, values = read_report(run)
    values |= {"numbers": numbers, "temperature": numbers.get("temperature")}
    values |= {"recipe": {"run": str(run)}, "seed": None, "epochs": None}
    if (run / "config.json").exists():
        with reading(run / "config.json", "settings of train.py"):
            config = json.loads((run / "config.json").read_text("utf-8"))
            settings = config["settings"]
            recipe = settings | {"change": config.get("change")}
            # A setting of 0 or None is the same as one that an earlier version did not have.
            values["recipe"] = {k: v for k, v in recipe.items() if v and k not in NOT_THE_RECIPE}
            values |= {"seed": settings["seed"], "epochs": settings["epochs"]}
    values["stress"] = read_stress(run, {key: numbers[key] for key in IDENTITY if key in numbers})
    return values


def read_all(folders: list[Path]) -> list[dict]:
    """Return what read_run does of each; raises UserError if two of them cannot be compared.

    Stress tests of another sample of images than those of the first run that has any are left out.
    """
    runs, owners, sample = [], {}, None
    for folder in folders:
        run = read_run(folder)
        check_alike(str(folder), run["numbers"], runs[0]["numbers"] if runs else run["numbers"], owners)
        owners[str(folder)] = run["numbers"]["checkpoint_sha256"]
        if run["stress"] is not None:
            sample = sample or run["stress"]["sample_sha256"]
            if run["stress"]["sample_sha256"] != sample:
                print(f"note     the stress tests of {folder} are of other images and left out")
                run["stress"] = None
        runs.append(run)
    return runs


def places_by_recipe(runs: list[dict]) -> list[list[int]]:
    """Return the places of the runs of each recipe, in the order in which the recipes come."""
    recipes = [run["recipe"] for run in runs]
    firsts = [place for place, recipe in enumerate(recipes) if recipes.index(recipe) == place]
    return [[p for p, recipe in enumerate(recipes) if recipe == recipes[first]] for first in firsts]


def differs(recipe: dict, first: dict) -> str:
    """Name a recipe by what differs from the first one."""
    words = []
    for name in {**first, **recipe}:
        value = recipe.get(name, 0)
        if value != first.get(name, 0):
            words.append(str(value) if name == "change" else f"{name} {value}")
    return ", ".join(words) or "the first recipe"


# ---- Their numbers ---------------------------------------------------------------------------------------


def scores_of(run: dict) -> dict[str, Tensor]:
    """Return scores of single images, float64 [N] or [M], whose means are rows of the table."""
    scores = {"accuracy": (run["y_pred"] == run["y_true"]).double()}
    stress = run["stress"]
    if stress is None or "summary" not in stress:
        return scores
    answers, families = stress["answers"], stress["families"]
    fifteen = list(itertools.chain(*families.values()))
    scores["fifteen corruptions"] = mean_score(answers, fifteen)
    for family, names in families.items():
        scores[family] = mean_score(answers, names)
    attacks = [name for name in stress["attacks"] if name != "random"]  # earlier versions counted it as one
    for epsilon in stress["epsilons"]:
        if f"apgd_ce/{epsilon:g}" in answers:  # elsewhere not all attacks were made
            right = still_right(answers, attacks, epsilon)
            scores[f"right under every attack of {epsilon:g}/255"] = right.double()
    return scores


def probabilities_of(run: dict) -> dict[str, Tensor]:
    """Return probabilities, float64 [N, C], whose calibration errors are rows of the table."""
    probabilities = run["probabilities"].double()
    found = {"calibration error": probabilities}
    if run["temperature"]:
        logits = probabilities.clamp(min=1e-30).log()
        found["calibration error after temperature"] = (logits / run["temperature"]).softmax(dim=1)
    return found


def tabulate(runs: list[dict]) -> dict[str, Row]:
    """Return the rows of the table, {name: Row}; the resamples are of the same images for all runs."""
    y_true, generator = runs[0]["y_true"], Generator().manual_seed(0)
    resamples = torch.randint(len(y_true), (NUM_RESAMPLES, len(y_true)), generator=generator)
    rows = {}
    for place, run in enumerate(runs):
        for name, scores in scores_of(run).items():
            row = rows.setdefault(name, Row(is_mean=True))
            row.values[place] = scores.mean().item()
            row.samples[place] = scores
        for name, probabilities in probabilities_of(run).items():
            row = rows.setdefault(name, Row(is_mean=False))
            row.values[place] = metrics.expected_calibration_error(y_true, probabilities)
            errors = [metrics.expected_calibration_error(y_true[i], probabilities[i]) for i in resamples]
            row.samples[place] = torch.tensor(errors, dtype=torch.float64)
    return rows


# ---- More than images and seeds? -------------------------------------------------------------------------


def difference(row: Row, ours: list[int], theirs: list[int]) -> dict[str, float] | None:
    """Return the mean of some runs less that of others with its interval over the images.

    None if one of them lacks the number.
    """
    if not row.values.keys() >= {*ours, *theirs}:
        return None
    our_mean = torch.stack([row.samples[place] for place in ours]).mean(dim=0)
    their_mean = torch.stack([row.samples[place] for place in theirs]).mean(dim=0)
    if row.is_mean:
        return more_metrics.mean_interval(our_mean - their_mean)
    ends = torch.tensor([0.025, 0.975], dtype=torch.float64)
    low, high = (our_mean - their_mean).quantile(ends).tolist()
    our_value = sum(row.values[place] for place in ours) / len(ours)
    their_value = sum(row.values[place] for place in theirs) / len(theirs)
    return {"value": our_value - their_value, "low": low, "high": high}


def seed_variance(row: Row, runs: list[dict], recipes: list[list[int]], epochs: int) -> tuple[float, int]:
    """Return the variance between seeds, pooled over recipes, and its degrees of freedom.

    Only recipes of so many epochs count: how far two seeds end apart depends on how long they are trained.
    """
    squares, freedom = 0.0, 0
    for places in recipes:
        values = [row.values[p] for p in places if p in row.values and runs[p]["epochs"] == epochs]
        if len(values) > 1:
            mean = sum(values) / len(values)
            squares += sum((value - mean) ** 2 for value in values)
            freedom += len(values) - 1
    return squares / max(1, freedom), freedom


def yardstick(
    row: Row, runs: list[dict], recipes: list[list[int]], ours: list[int], theirs: list[int]
) -> float | None:
    """Return how far the means of the n runs `ours` and the m runs `theirs` differ by their seeds, with 95 %.

        t sqrt(s^2 / n + s'^2 / m)

    s^2 and s'^2 are the seed_variance of as many epochs as ours and theirs, from the `recipes`; t is that of
    Student, by the fewer of their degrees of freedom. None if no recipe has several seeds.
    """
    variance, fewest = 0.0, len(T_QUANTILE)
    for places in (ours, theirs):
        of_one, freedom = seed_variance(row, runs, recipes, runs[places[0]]["epochs"])
        variance += of_one / len(places)
        fewest = min(fewest, freedom)
    return None if fewest == 0 else T_QUANTILE[fewest - 1] * math.sqrt(variance)


def judge(
    row: Row, runs: list[dict], recipes: list[list[int]], ours: list[int], theirs: list[int]
) -> dict | None:
    """Return the difference of two means of runs, its yardstick `by_seed`, and whether it is `bold`.

    None if one of the runs lacks the number. recipes: those from which the yardstick is.
    """
    found = difference(row, ours, theirs)
    if found is None:
        return None
    by_seed = yardstick(row, runs, recipes, ours, theirs)
    beyond_images = found["low"] * found["high"] > 0
    bold = beyond_images and by_seed is not None and abs(found["value"]) > by_seed
    return found | {"by_seed": by_seed, "beyond_images": beyond_images, "bold": bold}


def pairs_that_agree(row: Row, runs: list[dict], ours: list[int], theirs: list[int], value: float) -> str:
    """Return "k of n": of n pairs of the same seed the k whose own interval is on the side of the value.

    Empty if there are fewer than two pairs.
    """
    agree, count = 0, 0
    for a in ours:
        for b in theirs:
            if runs[a]["seed"] is not None and runs[a]["seed"] == runs[b]["seed"]:
                single = difference(row, [a], [b])
                agree += single["low"] > 0 if value > 0 else single["high"] < 0
                count += 1
    return f"{agree} of {count}" if count > 1 else ""


# ---- The command -----------------------------------------------------------------------------------------


def cell(row: Row, runs: list[dict], ours: list[int], theirs: list[int], found: dict | None) -> str:
    """Return the number of a recipe and what was `found`, see judge, as text."""
    known = [row.values[place] for place in ours if place in row.values]
    if not known:
        return ""
    text = f"{100 * sum(known) / len(known):.1f} %"
    if found is None:
        return text
    value, low, high = (100 * found[key] for key in ("value", "low", "high"))
    text += f", {value:+.1f} ({low:+.1f} to {high:+.1f})"
    if found["bold"]:
        text = f"**{text}**"
    agree = pairs_that_agree(row, runs, ours, theirs, value)
    return f"{text}, {agree}" if agree else text


def main(argv: list[str] | None = None) -> int:
    """Print the table of differences in Markdown; return the exit code."""
    parser = CommandLine(description=__doc__)
    parser.add_argument("runs", type=Path, nargs="+", metavar="RUN", help="folder of a run, two or more")
    folders = parser.parse_args(argv).runs
    if len(folders) < 2:
        raise UserError(f"only {folders[0]} is given: expected two runs or more")
    runs = read_all(folders)
    recipes = places_by_recipe(runs)
    first, *others = recipes
    names = [differs(runs[places[0]]["recipe"], runs[0]["recipe"]) for places in recipes]
    heads = [f"{name} (n = {len(places)})" for name, places in zip(names, recipes, strict=True)]
    print(f"| | {' | '.join(heads)} | a seed alone, +- |")
    print(f"| --- |{' --- |' * (len(heads) + 1)}")
    tested = 0
    for name, row in tabulate(runs).items():
        cells = [cell(row, runs, first, first, None)]
        for places in others:
            found = judge(row, runs, recipes, places, first)
            tested += found is not None and found["by_seed"] is not None
            cells.append(cell(row, runs, places, first, found))
        alone = yardstick(row, runs, recipes, first[:1], first)
        cells.append("" if alone is None else f"{100 * alone:.1f}")
        print(f"| {name} | {' | '.join(cells)} |")
    print("\nBold: more than images and a seed explain. The last column: one run against the first recipe;")
    times = math.sqrt(2 / (1 + 1 / len(first)))
    print(f"by their seeds alone two runs may differ by {times:.2f} times as much.")
    print(f"{tested} differences were tested; by chance at most {0.05 * tested:.1f} of them would be bold.")
    if tested == 0:
        print("No recipe has two seeds here: a difference cannot be told from that of another seed.")
    return 0


if __name__ == "__main__":
    run_main(main)

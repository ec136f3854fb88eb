"""Compare runs on the same test images: what differs between recipes, and is it more than another seed does?

    python compare.py RUN RUN [RUN ...]        the first against each of the others

Each RUN holds what report.py and stress.py have written. Runs of one recipe, which differ in the seed alone
by their config.json, make one column, the mean of them; the first run's recipe is what the others are
compared with. A cell is a number and the difference from the first recipe in points with its 95 % interval
over the images. It is bold if it is more than a seed does: 0 is outside of the interval, and the difference
is larger than t s sqrt(1/n + 1/m) for means of n and m runs, where s is the spread between seeds, pooled over
all recipes that have several. "k of n" are the pairs of the same seed whose own interval is on that side of
0. Several runs on one page is what report.py --against shows.
"""

import json
import math
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Generator, Tensor

import metrics
from running.console import CommandLine, run_main
from running.errors import UserError, reading
from running.outputs import digest_of_images, read_predictions, read_stress

NUM_RESAMPLES = 200
# The 97.5 % quantile of Student's t with 1, 2, ... degrees of freedom (Student 1908).
T_QUANTILE = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160)
# Settings in which runs of one recipe may differ.
NOT_THE_RECIPE = {"seed", "out", "data_dir", "device", "precision", "compile", "dataset"}

# ---- For report.py --against -----------------------------------------------------------------------------


def read_runs(runs: list[Path], test, digest: str) -> dict[str, dict]:
    """Return {name: what read_predictions returns} of runs on the images of `test`, a data.Dataset.

    digest: that of the network they are compared with. Raises UserError if a run is of other images, labels
    or classes, or has the weights of another one.
    """
    found, names, images = {}, {digest: "the network itself"}, digest_of_images(test.images)
    for run in runs:
        values = found[str(run)] = read_predictions(run)
        same = values["images_sha256"] == images and torch.equal(values["y_true"], test.labels)
        if not same or values.get("class_names", test.class_names) != test.class_names:
            raise UserError(f"--against {run} is of other test images, labels or classes: leave it out")
        if values["probabilities"].shape[1] != len(test.class_names):
            raise UserError(f"--against {run} has {values['probabilities'].shape[1]} classes: leave it out")
        other = names.setdefault(values["checkpoint_sha256"], str(run))
        if other != str(run):
            raise UserError(f"--against {run} has the same weights as {other}: leave it out")
    return found


def compare(runs: dict[str, dict], y_true: Tensor) -> dict:
    """Compare runs, {name: probabilities and y_pred}, of which the first is the one to report.

    Returns how many images are right in 0, 1, ... of the runs, the numbers of each, those of the mean of
    their probabilities, and the differences of the first from each of the others on the same images.
    """
    first, *others = runs.items()
    right = torch.stack([values["y_pred"] == y_true for values in runs.values()])
    accuracies = right.double().mean(dim=1)
    mean = torch.stack([values["probabilities"] for values in runs.values()]).mean(dim=0)
    result = {
        "mean_accuracy": accuracies.mean().item(),
        "standard_deviation": accuracies.std().item(),
        "right_in": right.sum(dim=0).bincount(minlength=len(runs) + 1).tolist(),
        "mean_of_probabilities": {
            "accuracy": metrics.accuracy(y_true, mean.argmax(dim=1)),
            "expected_calibration_error": metrics.expected_calibration_error(y_true, mean),
            "auroc": metrics.auroc(mean.argmax(dim=1) == y_true, mean.amax(dim=1)),
        },
        "runs": [],
        "differences": [],
    }
    for name, values in runs.items():
        error = metrics.expected_calibration_error(y_true, values["probabilities"])
        row = {"run": name} | metrics.headline(y_true, values["probabilities"])
        result["runs"].append(row | {"expected_calibration_error": error})
    for theirs, (name, values) in zip(right[1:], others, strict=True):
        only_first, only_other = int((right[0] & ~theirs).sum()), int((theirs & ~right[0]).sum())
        pair = first[1]["probabilities"], values["probabilities"]
        row = {"run": name} | metrics.bootstrap_headline(y_true, *pair)
        row["p"] = metrics.mcnemar_exact(only_first, only_other)
        row["churn"] = (first[1]["y_pred"] != values["y_pred"]).double().mean().item()
        result["differences"].append(row)
    return result


# ---- The command -----------------------------------------------------------------------------------------


def read(run: Path) -> dict:
    """Return the recipe, the seed and the results of a run."""
    values = read_predictions(run)
    with reading(run / "metrics.json", "numbers of report.py"):
        values["temperature"] = json.loads((run / "metrics.json").read_text("utf-8")).get("temperature")
    values["recipe"], values["seed"] = {"run": run.name}, None
    if (run / "config.json").exists():
        with reading(run / "config.json", "settings of train.py"):
            config = json.loads((run / "config.json").read_text("utf-8"))
            settings = config["settings"]
            recipe = settings | {"change": config.get("change")}
            # A setting of 0 or None is the same as one that an earlier version did not have.
            values["recipe"] = {k: v for k, v in recipe.items() if v and k not in NOT_THE_RECIPE}
            values["seed"] = settings["seed"]
    values["stress"] = read_stress(run, {"checkpoint_sha256": values["checkpoint_sha256"]})
    return values


def places_by_recipe(runs: list[dict]) -> list[list[int]]:
    """Return the places of the runs of each recipe, in the order in which the recipes come."""
    recipes = [run["recipe"] for run in runs]
    firsts = [place for place, recipe in enumerate(recipes) if recipes.index(recipe) == place]
    return [[p for p, recipe in enumerate(recipes) if recipe == recipes[first]] for first in firsts]


def differs(recipe: dict, first: dict) -> str:
    """Name a recipe by what differs from the first one."""
    names = [name for name in {**first, **recipe} if recipe.get(name) != first.get(name)]
    values = [
        str(recipe.get(name, 0)) if name == "change" else f"{name} {recipe.get(name, 0)}" for name in names
    ]
    return ", ".join(values) or "the first recipe"


def scores_of(run: dict) -> dict[str, Tensor]:
    """Return scores of single images, float64 [N] or [M], whose means are rows of the table."""
    scores = {"accuracy": (run["y_pred"] == run["y_true"]).double()}
    stress = run["stress"]
    if stress is None or "summary" not in stress:
        return scores
    answers, families = stress["answers"], stress["families"]
    fifteen = [name for names in families.values() for name in names]
    groups = {"fifteen corruptions": fifteen} | families
    for group, names in groups.items():
        tests = [answers[f"{name}/{severity}"] for name in names for severity in range(1, 6)]
        scores[group] = torch.stack(tests).double().mean(dim=0)
    for epsilon in ("0.5", "1"):
        names = [f"{attack}/{epsilon}" for attack in stress["attacks"]]
        tests = [answers[name] for name in names if name in answers]
        worst = torch.stack([answers["unattacked/0"], *tests]).all(dim=0)
        scores[f"right under every attack of {epsilon}/255"] = worst.double()
    return scores


def statistics_of(run: dict) -> dict[str, Callable]:
    """Return numbers that are no means over images, as functions of the indices of images."""
    y_true, probabilities = run["y_true"], run["probabilities"].double()
    found = {
        "calibration error": lambda i: metrics.expected_calibration_error(y_true[i], probabilities[i]),
    }
    if run["temperature"]:
        scaled = (probabilities.clamp(min=1e-30).log() / run["temperature"]).softmax(dim=1)
        after = lambda i: metrics.expected_calibration_error(y_true[i], scaled[i])  # noqa: E731
        found["calibration error after temperature"] = after
    return found


def tabulate(runs: list[dict]) -> dict[str, dict]:
    """Return of each row what each run has: `values`, one number, and `samples`, from which intervals follow.

    samples: the scores of single images, float64 [N], or the numbers of resamples of the images, float64 [R].
    """
    rows, generator = {}, Generator().manual_seed(0)
    count = len(runs[0]["y_true"])
    resamples = torch.randint(count, (NUM_RESAMPLES, count), generator=generator)
    for place, run in enumerate(runs):
        for name, scores in scores_of(run).items():
            row = rows.setdefault(name, {"values": {}, "samples": {}, "is_mean": True})
            row["values"][place], row["samples"][place] = scores.mean().item(), scores
        for name, number in statistics_of(run).items():
            row = rows.setdefault(name, {"values": {}, "samples": {}, "is_mean": False})
            row["values"][place] = number(torch.arange(count))
            row["samples"][place] = torch.tensor([number(i) for i in resamples], dtype=torch.float64)
    return rows


def difference(row: dict, ours: list[int], theirs: list[int]) -> dict[str, float] | None:
    """Return the mean of some runs less that of others with its interval over the images."""
    if not all(place in row["values"] for place in ours + theirs):
        return None
    means = [
        torch.stack([row["samples"][place] for place in places]).mean(dim=0) for places in (ours, theirs)
    ]
    if len(means[0]) != len(means[1]):
        return None  # of other images
    if row["is_mean"]:
        return metrics.mean_interval(means[0] - means[1])
    low, high = (means[0] - means[1]).quantile(torch.tensor([0.025, 0.975], dtype=torch.float64)).tolist()
    values = [sum(row["values"][place] for place in places) / len(places) for places in (ours, theirs)]
    return {"value": values[0] - values[1], "low": low, "high": high}


def yardstick(row: dict, recipes: list[list[int]], n: int, m: int) -> float | None:
    """Return how far the means of n and of m runs of one recipe differ by their seeds, with 95 %.

    t s sqrt(1/n + 1/m), where s^2 is the variance between seeds, pooled over the recipes that have several,
    and t is Student's of their degrees of freedom; None if no recipe has several.
    """
    squares, freedom = 0.0, 0
    for places in recipes:
        values = [row["values"][place] for place in places if place in row["values"]]
        mean = sum(values) / max(1, len(values))
        squares += sum((value - mean) ** 2 for value in values)
        freedom += max(0, len(values) - 1)
    if freedom == 0:
        return None
    t = T_QUANTILE[min(freedom, len(T_QUANTILE)) - 1]
    return t * math.sqrt(squares / freedom) * math.sqrt(1 / n + 1 / m)


def cell(row: dict, runs: list[dict], ours: list[int], first: list[int], recipes: list[list[int]]) -> str:
    """Return the number of a recipe, its difference from the first, bold if that is more than a seed's."""
    known = [row["values"][place] for place in ours if place in row["values"]]
    if not known:
        return ""
    text = f"{100 * sum(known) / len(known):.1f} %"
    found = None if ours is first else difference(row, ours, first)
    if found is None:
        return text
    value, low, high = (100 * found[key] for key in ("value", "low", "high"))
    text += f", {value:+.1f} ({low:+.1f} to {high:+.1f})"
    by_seed = yardstick(row, recipes, len(ours), len(first))
    if by_seed is not None and abs(value) > 100 * by_seed and low * high > 0:
        text = f"**{text}**"
    known_seeds = [place for place in ours if runs[place]["seed"] is not None]
    pairs = [(a, b) for a in known_seeds for b in first if runs[a]["seed"] == runs[b]["seed"]]
    if len(pairs) > 1:
        singles = [difference(row, [a], [b]) for a, b in pairs]
        agree = sum(d["low"] > 0 if value > 0 else d["high"] < 0 for d in singles if d is not None)
        text += f", {agree} of {len(pairs)}"
    return text


def main(argv: list[str] | None = None) -> int:
    """Print the table of differences in Markdown; return the exit code."""
    parser = CommandLine(description=__doc__)
    parser.add_argument("runs", type=Path, nargs="+", metavar="RUN", help="folder of a run, two or more")
    folders = parser.parse_args(argv).runs
    if len(folders) < 2:
        raise UserError(f"only {folders[0]} is given: expected two runs or more")
    runs = [read(folder) for folder in folders]
    for folder, run in zip(folders, runs, strict=True):
        if run["images_sha256"] != runs[0]["images_sha256"]:
            raise UserError(f"{folder} has other test images than {folders[0]}: leave it out")
    recipes, rows = places_by_recipe(runs), tabulate(runs)
    heads = []
    for places in recipes:
        name = differs(runs[places[0]]["recipe"], runs[0]["recipe"])
        heads.append(f"{name} (n = {len(places)})")
    print(f"| | {' | '.join(heads)} | a seed alone, +- |")
    print(f"| --- |{' --- |' * (len(heads) + 1)}")
    for name, row in rows.items():
        cells = [cell(row, runs, places, recipes[0], recipes) for places in recipes]
        by_seed = yardstick(row, recipes, 1, len(recipes[0]))
        alone = "" if by_seed is None else f"{100 * by_seed:.1f}"
        print(f"| {name} | {' | '.join(cells)} | {alone} |")
    print("\nBold: more than images and a seed explain; the last column is for one run against the first.")
    if not any(len(places) > 1 for places in recipes):
        print("No recipe has two seeds here: a difference cannot be told from that of another seed.")
    return 0


if __name__ == "__main__":
    run_main(main)

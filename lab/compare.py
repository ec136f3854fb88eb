"""Compare recipes on the same test images: is a difference more than another seed makes?

    python -m lab.compare RUN RUN [RUN ...]        each recipe less that of the first run

Each RUN is a folder with what report.py and lab.stress have written. Runs are of one recipe if only the seed
differs: they share the settings, the training images, the network, the optimizer, the augmentations and the
precision of config.json, and --size. The command prints in Markdown the mean of each recipe with the standard
deviation over its seeds, and its difference from the first recipe: with Welch's interval over seeds if both
recipes have several runs, with a paired interval over images if both are single runs, otherwise without one.
"""

import itertools
import json
import math
import statistics
import sys
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

if __name__ == "__main__":  # from any folder, and without lab/ before a user's own modules
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

import numpy as np
import torch
from torch import Generator, Tensor

from lab import more_metrics
from lab.answers import check_alike
from lab.results import digest_of_report, read_report, read_stress
from lab.stress_tests.summary import mean_score, still_right
from lab.support import CommandLine, UserError, reading, run_main

NUM_BINS = 15  # of the calibration error
NUM_RESAMPLES = 200
HEAD_OF_KIND = {
    "seeds": "95 % over seeds",
    "images": "other images only; another seed: not known",
    "none": "one run beside several, no interval",
}
MEANING_OF_KIND = {
    "seeds": """
Over seeds: Welch's 95 % interval for the difference of the recipes on these test images, by the spread of
their seeds. Few seeds say little of a spread: with n = 2 in both recipes the interval reaches up to 12.7
standard errors to either side, with many seeds 2. Bold leaves out 0, as one interval of twenty does by
chance. Where one run alone has a number, or no seed changes it, there is no interval.""",
    "images": """
Other images only: the paired 95 % interval over the choice of test images, for these two trainings. Another
seed may differ as much; two seeds or more of each would tell.""",
    "none": """
One run beside several: whether its seed is a lucky one is not known, so there is no interval.""",
}
# Settings in which runs of one recipe may differ. The training images are compared by their digest.
NOT_THE_RECIPE = {"seed", "out", "data_dir", "device", "precision", "compile", "dataset"}
# What the code or the machine made of them; older versions of train.py do not record all of it.
OF_CODE = ("network", "parameters", "augmentations", "optimizer", "precision")


@dataclass
class Run:
    """The numbers of one run, with those of single images for the interval over images."""

    folder: str
    recipe: dict  # see read_recipe
    values: dict[str, float]  # the numbers of the run by their names
    scores: dict[str, Tensor]  # float64 [N], a score for each image; their mean is the value of that name
    gaps: dict[str, tuple[Tensor, Tensor]]  # (bins, gaps); their calibration error is the value of that name


# ---- The numbers of a run --------------------------------------------------------------------------------


def scores_of(answers: dict, stress: dict | None) -> dict[str, Tensor]:
    """Return a score for each image, float64 [N] or [M], by name; the means are the numbers of a run."""
    scores = {"accuracy": (answers["y_pred"] == answers["y_true"]).double()}
    if stress is None or "summary" not in stress:
        return scores
    right, families = stress["answers"], stress["families"]
    scores["fifteen corruptions"] = mean_score(right, itertools.chain(*families.values()))
    for family, names in families.items():
        scores[family] = mean_score(right, names)
    for epsilon in stress["epsilons"]:
        if f"apgd_ce/{epsilon:g}" in right:  # elsewhere not all attacks were made
            survived = still_right(right, stress["attacks"], epsilon)
            scores[f"right under every attack of {epsilon:g}/255"] = survived.double()
    return scores


def gaps_of(answers: dict, temperature: float | None) -> dict[str, tuple[Tensor, Tensor]]:
    """Return what the calibration errors of a run are made of, {name: (bins int64 [N], gaps float64 [N])}.

    An image is in the bin of its confidence. Its gap is 1 less the confidence if the answer is right, and 0
    less the confidence if it is wrong.
    """
    probabilities = answers["probabilities"].double()
    scaled = {"calibration error": probabilities}
    if temperature:
        logits = probabilities.clamp(min=1e-30).log()
        scaled["calibration error after temperature"] = (logits / temperature).softmax(dim=1)
    gaps = {}
    for name, rows in scaled.items():
        confidence = rows.amax(dim=1).clamp(max=1)
        right = (rows.argmax(dim=1) == answers["y_true"]).double()
        gaps[name] = more_metrics.bin_of(confidence, NUM_BINS), right - confidence
    return gaps


def calibration_error(bins: Tensor, gaps: Tensor) -> float:
    """Return metrics.expected_calibration_error for images in these bins with these gaps, see gaps_of."""
    sums = torch.bincount(bins, weights=gaps, minlength=NUM_BINS)
    return sums.abs().sum().item() / len(gaps)


def resampled_errors(bins: Tensor, gaps: Tensor) -> Tensor:
    """Return the calibration error of each resample, float64 [NUM_RESAMPLES]; runs share the draws."""
    generator, errors = Generator().manual_seed(0), []
    for _ in range(NUM_RESAMPLES):
        drawn = torch.randint(len(bins), (len(bins),), generator=generator)
        errors.append(calibration_error(bins[drawn], gaps[drawn]))
    return torch.tensor(errors, dtype=torch.float64)


# ---- The runs --------------------------------------------------------------------------------------------


def read_run(folder: Path) -> tuple[dict, dict, dict | None]:
    """Return the answers of a run, the numbers of metrics.json, and its stress tests, if there are any."""
    numbers, answers = read_report(folder)
    owner = {"checkpoint_sha256": numbers["checkpoint_sha256"]}
    owner["test_sha256"] = digest_of_report((numbers, answers))
    return answers, numbers, read_stress(folder, owner)


def read_recipe(folder: Path, numbers: dict) -> dict:
    """Return the settings of a run but for the seed, its training images, and what the code made of them.

    A run without config.json has a recipe of its own.
    """
    path = folder / "config.json"
    if not path.exists():
        return {"folder": str(folder)}
    with reading(path, "settings of train.py"):
        config = json.loads(path.read_text(encoding="utf-8"))
        # A setting of 0 or None does nothing, like one that is absent.
        settings = {name: value for name, value in config["settings"].items() if value}
        if isinstance(sizes := settings.get("image_sizes"), list):
            settings["image_sizes"] = ",".join(map(str, sizes))  # as older versions record it
        recipe = {name: settings[name] for name in settings if name not in NOT_THE_RECIPE}
        size = numbers.get("image_size", config["image_size"])
        recipe |= {key: config[key] for key in OF_CODE if key in config}
        if "optimizer" in config:  # without those of its options that are settings
            known = [f"{name} {value}" for name, value in config["settings"].items()]
            options = [option for option in config["optimizer"].split(", ") if option not in known]
            recipe["optimizer"] = ", ".join(options)
        return recipe | {"training images": config["images_sha256"][:12], "size": size}


def read_all(folders: list[Path]) -> list[Run]:
    """Return the runs; raise UserError if two of them cannot be compared.

    Stress tests are compared on one sample of images, that of most runs, and of these the largest; others are
    left out.
    """
    runs, owners, first, read = [], {}, None, []
    for folder in folders:
        answers, numbers, stress = read_run(folder)
        first = first or (numbers, answers)
        check_alike(str(folder), (numbers, answers), first, owners)
        owners[str(folder)] = numbers["checkpoint_sha256"]
        read.append((folder, answers, numbers, stress))
    sample = common_sample([stress for *_, stress in read if stress is not None])
    for folder, answers, numbers, stress in read:
        if stress is not None and stress["sample_sha256"] != sample:
            print(f"The stress tests of {folder} are left out, as they are of another sample of images.\n")
            stress = None
        scores = scores_of(answers, stress)
        gaps = gaps_of(answers, numbers.get("temperature"))
        values = {name: score.mean().item() for name, score in scores.items()}
        values |= {name: calibration_error(*bins_and_gaps) for name, bins_and_gaps in gaps.items()}
        runs.append(Run(str(folder), read_recipe(folder, numbers), values, scores, gaps))
    return runs


def common_sample(results: list[dict]) -> str | None:
    """Return the sample_sha256 that most results of lab.stress share, of several the largest sample's."""
    count = Counter(stress["sample_sha256"] for stress in results)
    size = {stress["sample_sha256"]: stress["corruption_images"] for stress in results}
    return max(count, key=lambda sample: (count[sample], size[sample]), default=None)


def by_recipe(runs: list[Run]) -> list[list[Run]]:
    """Return the runs of each recipe, in the order in which the recipes come."""
    recipes = {}
    for run in runs:
        recipes.setdefault(json.dumps(run.recipe, sort_keys=True), []).append(run)
    return list(recipes.values())


def recipe_name(run: Run, first: Run) -> str:
    """Name the recipe of a run by what differs from the recipe of the first run.

    What only one of the two records is named only if nothing else differs.
    """
    if run.recipe == first.recipe:
        return "the first recipe"
    if "folder" in run.recipe or "folder" in first.recipe:
        return run.folder
    names = dict.fromkeys([*first.recipe, *run.recipe])
    values = {name: run.recipe.get(name, 0) for name in names}
    differing = [name for name in names if values[name] != first.recipe.get(name, 0)]
    both = [name for name in differing if name not in OF_CODE or name in run.recipe.keys() & first.recipe]
    return ", ".join(f"{name} {values[name]}" for name in both or differing)


# ---- Differences -----------------------------------------------------------------------------------------


def welch_interval(ours: list[float], theirs: list[float]) -> dict[str, float]:
    """Return the mean of n numbers less that of m others, with its 95 % interval over seeds.

        value +- t sqrt(v + w),  v = s^2 / n,  w = s'^2 / m

    s and s' are the two standard deviations, and t is the 97.5 % quantile of Student's t. Its degrees of
    freedom, in general no whole number, are

        (v + w)^2 / (v^2 / (n - 1) + w^2 / (m - 1)).

    If n or m is 1, or both deviations are 0, only the value is returned.
    Sources: Welch, "The generalization of 'Student's' problem when several different population variances are
    involved", 1947; Satterthwaite, "An approximate distribution of estimates of variance components", 1946.
    """
    value = statistics.mean(ours) - statistics.mean(theirs)
    if min(len(ours), len(theirs)) < 2:
        return {"value": value}
    v, w = (statistics.variance(values) / len(values) for values in (ours, theirs))
    if v + w == 0:
        return {"value": value}
    freedom = (v + w) ** 2 / (v**2 / (len(ours) - 1) + w**2 / (len(theirs) - 1))
    reach = t_quantile(freedom) * math.sqrt(v + w)
    return {"value": value, "low": value - reach, "high": value + reach}


def t_quantile(freedom: float) -> float:
    """Return the 97.5 % quantile of Student's t with `freedom` degrees of freedom, 1 or more.

    With t = sqrt(freedom) tan(a) the density of t becomes cos(a)^(freedom - 1), up to a constant. The
    quantile is where 95 % of its integral from 0 to pi / 2, here a sum over a fine grid, are reached.
    Source: Student, "The probable error of a mean", 1908, section III.
    """
    angles = np.linspace(0, math.pi / 2, 200_001)
    density = np.cos(angles) ** (freedom - 1)
    reached = np.cumsum(density[:-1] + density[1:])
    return math.sqrt(freedom) * math.tan(np.interp(0.95, reached / reached[-1], angles[1:]))


def paired_interval(name: str, ours: Run, theirs: Run) -> dict[str, float]:
    """Return a number of one run less that of another, with its 95 % interval over the images.

    For scores the interval follows from the normal distribution, for calibration errors from resamples of the
    images with the answers of both runs.
    """
    if name in ours.scores:
        return more_metrics.mean_interval(ours.scores[name] - theirs.scores[name])
    resampled = resampled_errors(*ours.gaps[name]) - resampled_errors(*theirs.gaps[name])
    low, high = resampled.quantile(torch.tensor([0.025, 0.975], dtype=torch.float64)).tolist()
    return {"value": ours.values[name] - theirs.values[name], "low": low, "high": high}


def values_of(name: str, recipe: list[Run]) -> list[float]:
    """Return the number `name` from each run of a recipe that has it."""
    return [run.values[name] for run in recipe if name in run.values]


def kind_of_interval(ours: list[Run], theirs: list[Run]) -> str:
    """Return what the interval of two recipes' difference is taken over: "seeds", "images" or "none"."""
    if len(ours) == len(theirs) == 1:
        return "images"
    return "none" if 1 in (len(ours), len(theirs)) else "seeds"


def difference(name: str, ours: list[Run], theirs: list[Run]) -> dict[str, float]:
    """Return a number of one recipe less that of another; the dict is empty if one recipe lacks it."""
    our_values, their_values = values_of(name, ours), values_of(name, theirs)
    if not our_values or not their_values:
        return {}
    if kind_of_interval(ours, theirs) == "images":
        return paired_interval(name, ours[0], theirs[0])
    return welch_interval(our_values, their_values)


# ---- The command -----------------------------------------------------------------------------------------


def mean_cell(values: list[float], count: int) -> str:
    """Return "66.12 +- 0.36", mean and spread in percent, with "(n = 2)" if there are not `count` values."""
    if not values:
        return ""
    text = f"{100 * statistics.mean(values):.2f}"
    if len(values) > 1:
        text += f" +- {100 * statistics.stdev(values):.2f}"
    return text if len(values) == count else f"{text} (n = {len(values)})"


def difference_cell(interval: dict[str, float], bold: bool) -> str:
    """Return "-0.14 (-1.08 to +0.79)" in points; `bold` marks an interval that leaves out 0."""
    if not interval:
        return ""
    text = f"{100 * interval['value']:+.2f}"
    if "low" not in interval:
        return text
    text += f" ({100 * interval['low']:+.2f} to {100 * interval['high']:+.2f})"
    return f"**{text}**" if bold and interval["low"] * interval["high"] > 0 else text


def print_table(heads: list[str], rows: dict[str, list[str]]) -> None:
    """Print rows of cells by their names as Markdown; rows without any text are left out."""
    print(f"| | {' | '.join(heads)} |")
    print(f"| --- |{' --- |' * len(heads)}")
    for name, cells in rows.items():
        if any(cells):
            print(f"| {name} | {' | '.join(cells)} |")


def print_means(recipes: list[list[Run]], heads: list[str], names: list[str]) -> None:
    """Print the runs of each recipe, and the means of the recipes."""
    print("## Recipes, in percent\n")
    for head, recipe in zip(heads, recipes, strict=True):
        print(f"- {head}: {', '.join(run.folder for run in recipe)}")
    rows = {}
    for name in names:
        rows[name] = [mean_cell(values_of(name, recipe), len(recipe)) for recipe in recipes]
    print()
    print_table(heads, rows)
    print("\nA number is the mean over the n seeds of a recipe, +- is their standard deviation.")


def print_differences(recipes: list[list[Run]], heads: list[str], names: list[str]) -> None:
    """Print each other recipe less the first one, and how to read the differences."""
    first, *others = recipes
    kinds = [kind_of_interval(other, first) for other in others]
    rows = {name: [] for name in names}
    for name in names:
        for other, kind in zip(others, kinds, strict=True):
            rows[name].append(difference_cell(difference(name, other, first), bold=kind == "seeds"))
    print(f"\n## Less {heads[0]}, in points\n")
    heads = [f"{head}: {HEAD_OF_KIND[kind]}" for head, kind in zip(heads[1:], kinds, strict=True)]
    print_table(heads, rows)
    for kind in dict.fromkeys(kinds):
        print(MEANING_OF_KIND[kind])


def main(argv: list[str] | None = None) -> int:
    """Print the tables in Markdown; return the exit code."""
    parser = CommandLine(description=__doc__)
    parser.add_argument("runs", type=Path, nargs="+", metavar="RUN", help="folder of a run, two or more")
    folders = parser.parse_args(argv).runs
    if len(folders) < 2:
        raise UserError(f"only {folders[0]} is given: expected two runs or more")
    runs = read_all(folders)
    recipes = by_recipe(runs)
    heads = [f"{recipe_name(recipe[0], runs[0])} (n = {len(recipe)})" for recipe in recipes]
    names = {}  # of the numbers, in the order in which the runs have them
    for run in runs:
        names |= dict.fromkeys(run.values)
    print_means(recipes, heads, list(names))
    if len(recipes) > 1:
        print_differences(recipes, heads, list(names))
    return 0


if __name__ == "__main__":
    run_main(main)

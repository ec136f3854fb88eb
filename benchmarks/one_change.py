"""Print how trainings that differ in one setting differ in their failures, as a table in Markdown.

    python benchmarks/one_change.py results/plain0 results/plain1 results/corrupt

Each folder holds what report.py and stress.py wrote: predictions.npz and metrics.json, stress.json and
stress.npz of the same images. The first is what the others are compared with. A cell is a number in percent
and, for the others, the difference from the first in points with its 95 % interval, image by image. Repair
rates and shares within the superclass are of the mistakes, which are others in each run, so their intervals
are given instead.
"""

import json
from pathlib import Path

import numpy as np
import torch
from loader import CommandLine  # loader also makes the project's modules found
from torch import Tensor

from metrics import bootstrap_difference, expected_calibration_error, proportion
from running.console import run_main
from running.files import UserError
from stress import read_results
from stress_tests.attacks import ATTACKS
from stress_tests.corruptions import FAMILIES, FIFTEEN
from stress_tests.summary import mean_interval, mean_score, still_right

NUM_RESAMPLES = 1000


def read(folder: Path) -> dict:
    """Return the content of the four files of a run; UserError if one is missing."""
    for name in ("predictions.npz", "metrics.json", "stress.npz", "stress.json"):
        if not (folder / name).exists():
            raise UserError(f"there is no {folder / name}: run report.py and stress.py on that run first")
    with np.load(folder / "predictions.npz") as file:
        y_true, probabilities = (torch.from_numpy(file[key]) for key in ("y_true", "probabilities"))
    numbers = json.loads((folder / "metrics.json").read_text(encoding="utf-8"))
    stress = read_results(folder, numbers["checkpoint_sha256"])
    if stress is None or "summary" not in stress:
        raise UserError(f"{folder / 'stress.json'} is of other weights, or not finished: run stress.py again")
    return {"y_true": y_true, "probabilities": probabilities.float(), "metrics": numbers, "stress": stress}


def calibration_difference(run: dict, first: dict) -> dict[str, float]:
    """Return the calibration error of a run less that of the first, with a paired bootstrap interval."""
    y_true, generator = run["y_true"], torch.Generator().manual_seed(0)

    def difference(index: Tensor) -> float:
        ours, theirs = (of["probabilities"][index] for of in (run, first))
        error = expected_calibration_error(y_true[index], ours)
        return error - expected_calibration_error(y_true[index], theirs)

    resamples = torch.randint(len(y_true), (NUM_RESAMPLES, len(y_true)), generator=generator)
    low, high = np.quantile([difference(index) for index in resamples], [0.025, 0.975])
    return {"value": difference(torch.arange(len(y_true))), "low": low, "high": high}


def scores_of(run: dict) -> dict[str, Tensor]:
    """Return the scores of single images, float64 [N] or [M], whose means are rows of the table."""
    answers = run["stress"]["answers"]
    scores = {"fifteen corruptions": mean_score(answers, FIFTEEN)}
    for family, names in FAMILIES.items():
        counted = [name for name in names if name in FIFTEEN]
        if counted:
            scores[f"{family}: {len(counted)} of them"] = mean_score(answers, counted)
    for name in ("fog", "contrast"):
        scores[name] = mean_score(answers, [name])
    scores["images for attacks, before them"] = answers["unattacked/0"].double()
    for epsilon in (0.5, 1):
        scores[f"right after all attacks, {epsilon:g}/255"] = still_right(answers, ATTACKS, epsilon).double()
    return scores


def shown(value: float, difference: dict | None = None) -> str:
    """Return "12.3 %", and with a difference "12.3 %, +1.0 (-0.5 to +2.5)"."""
    text = f"{100 * value:.1f} %"
    if difference is None:
        return text
    ends = [f"{100 * difference[end]:+.1f}" for end in ("value", "low", "high")]
    return f"{text}, {ends[0]} ({ends[1]} to {ends[2]})"


def with_interval(row: dict) -> str:
    """Return "12.3 % (9.9 to 15.1)"."""
    return f"{100 * row['value']:.1f} % ({100 * row['low']:.1f} to {100 * row['high']:.1f})"


def differences(run: dict, first: dict) -> dict[str, dict[str, float]]:
    """Return a run less the first, {name of the row: value, low and high}, image by image."""
    headline = bootstrap_difference(run["y_true"], run["probabilities"], first["probabilities"])
    result = {"accuracy": headline["accuracy"], "macro F1": headline["macro_f1"]}
    result["calibration error"] = calibration_difference(run, first)
    theirs = scores_of(first)
    return result | {name: mean_interval(ours - theirs[name]) for name, ours in scores_of(run).items()}


def column(run: dict, first: dict) -> dict[str, str]:
    """Return the cells of a run, {name of the row: cell}."""
    same, numbers = run is first, run["metrics"]
    values = {
        "accuracy": numbers["accuracy"]["value"],
        "macro F1": numbers["macro_f1"]["value"],
        "calibration error": numbers["expected_calibration_error"],
    }
    difference = {} if same else differences(run, first)
    cells = {name: shown(value, difference.get(name)) for name, value in values.items()}
    gap = numbers["mean_confidence"] - numbers["accuracy"]["value"]
    cells["mean confidence less accuracy, points"] = f"{100 * gap:+.1f}"
    for name, scores in scores_of(run).items():
        cells[name] = shown(scores.mean().item(), difference.get(name))
    y_pred = run["probabilities"].argmax(dim=1)
    wrong = int((y_pred != run["y_true"]).sum())
    if "repair" in numbers:
        cells["repaired, contrastive map"] = with_interval(numbers["repair"]["contrastive"]["mean_colour"])
        cells["repaired, random places"] = with_interval(numbers["repair"]["random"]["mean_colour"])
    if numbers.get("errors_within_superclass") is not None:
        within = round(numbers["errors_within_superclass"] * wrong)
        cells["mistakes within the superclass"] = with_interval(proportion(within, wrong))
    changed = int((y_pred != first["probabilities"].argmax(dim=1)).sum())
    cells["other answers than the first"] = "" if same else with_interval(proportion(changed, len(y_pred)))
    return cells


def main() -> None:
    """Read all runs and print the table."""
    parser = CommandLine(__doc__)
    parser.add_argument("folders", type=Path, nargs="+", metavar="FOLDER")
    folders = parser.parse_args().folders
    runs = [read(folder) for folder in folders]
    first = runs[0]
    for folder, run in zip(folders, runs, strict=True):
        if run["stress"]["sample_sha256"] != first["stress"]["sample_sha256"]:
            raise UserError(f"{folder} was stressed on other images than {folders[0]}")
        if not torch.equal(run["y_true"], first["y_true"]):
            raise UserError(f"{folder} has other test images than {folders[0]}")
    columns = [column(run, first) for run in runs]
    print(f"| | {' | '.join(folder.name for folder in folders)} |")
    print(f"| --- |{' --- |' * len(folders)}")
    for name in columns[0]:
        print(f"| {name} | {' | '.join(cells.get(name, '') for cells in columns)} |")


if __name__ == "__main__":
    run_main(main)

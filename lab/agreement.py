"""What several runs say of the same test images: how many are right on each, and how much two of them differ.

lab.examine --against calls it, and lab.compare asks it which runs can be compared at all.
"""

from pathlib import Path

import torch
from torch import Tensor

import metrics
from lab import more_metrics
from support.errors import UserError
from support.outputs import read_report


def check_alike(name: str, numbers: dict, first: dict, owners: dict[str, str]) -> None:
    """Raise UserError unless a run is of the images, labels and classes of the first and of another network.

    numbers and first: metrics.json of both. owners: of the runs before it {name: digest of its weights}.
    """
    if any(numbers[key] != first[key] for key in ("images_sha256", "labels_sha256", "class_names")):
        raise UserError(f"{name} is of other test images, labels or classes: leave it out")
    for owner, digest in owners.items():
        if numbers["checkpoint_sha256"] == digest:
            raise UserError(f"{name} has the same weights as {owner}: leave it out")


def read_runs(runs: list[Path], numbers: dict) -> dict[str, dict]:
    """Return {name: predictions.npz} of runs of the same test images as those of metrics.json, `numbers`.

    Raises UserError, see check_alike.
    """
    arrays_of, owners = {}, {"the network itself": numbers["checkpoint_sha256"]}
    for run in runs:
        of_run, arrays_of[str(run)] = read_report(run)
        check_alike(f"--against {run}", of_run, numbers, owners)
        owners[str(run)] = of_run["checkpoint_sha256"]
    return arrays_of


def compare(runs: dict[str, dict], y_true: Tensor) -> dict:
    """Compare runs, {name: y_pred with probabilities or logits}, of which the first is the one to report.

    Logits are better where they are known: probabilities of large ones are 0 or 1, by which classes tie.
    Returns how many images are right in 0, 1, ... of the runs, the numbers of each, those of the mean of
    their probabilities, and the differences of the first from each of the others on the same images.
    """
    scores, probabilities = {}, {}
    for name, values in runs.items():
        if "logits" in values:
            scores[name] = values["logits"].double()
            probabilities[name] = scores[name].softmax(dim=1)
        else:
            scores[name] = probabilities[name] = values["probabilities"].double()
    right = {name: values["y_pred"] == y_true for name, values in runs.items()}
    right_of_runs = torch.stack(list(right.values()))  # [runs, N]
    times_right = right_of_runs.sum(dim=0)
    mean = torch.stack(list(probabilities.values())).mean(dim=0)
    result = {
        "standard_deviation": right_of_runs.double().mean(dim=1).std().item(),
        "right_in": times_right.bincount(minlength=len(runs) + 1).tolist(),
        "mean_of_probabilities": {
            "accuracy": metrics.accuracy(y_true, mean.argmax(dim=1)),
            "expected_calibration_error": metrics.expected_calibration_error(y_true, mean),
            "auroc": more_metrics.auroc(mean.argmax(dim=1) == y_true, mean.amax(dim=1)),
        },
        "runs": [],
        "differences": [],
    }
    for name in runs:
        row = {"run": name} | metrics.headline(y_true, scores[name])
        error = metrics.expected_calibration_error(y_true, probabilities[name])
        result["runs"].append(row | {"expected_calibration_error": error})
    first, *others = runs
    for name in others:
        row = {"run": name} | more_metrics.paired_headline(y_true, scores[first], scores[name])
        only_first = int((right[first] & ~right[name]).sum())
        only_other = int((right[name] & ~right[first]).sum())
        row["p"] = more_metrics.mcnemar_exact(only_first, only_other)
        result["differences"].append(row)
    return result

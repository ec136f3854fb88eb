"""Compare several runs on the same test images: how many are right on each image, how much do two differ?

lab.examine --against calls it, and lab.compare asks it which runs can be compared at all.
"""

from pathlib import Path

import torch
from torch import Tensor

import metrics
from lab import more_metrics, results
from lab.support import UserError


def check_alike(name: str, run: tuple[dict, dict], first: tuple[dict, dict], owners: dict[str, str]) -> None:
    """Raise UserError unless a run has the images, labels and classes of the first, and other weights.

    run and first: metrics.json and predictions.npz of both. owners: {name: digest of its weights} for the
    runs before it.
    """
    if results.digest_of_report(run) != results.digest_of_report(first):
        raise UserError(f"{name} is of other test images, labels or classes: leave it out")
    for owner, digest in owners.items():
        if run[0]["checkpoint_sha256"] == digest:
            raise UserError(f"{name} has the same weights as {owner}: leave it out")


def read_runs(runs: list[Path], numbers: dict, arrays: dict) -> dict[str, dict]:
    """Return {name: predictions.npz} of runs on the same test images as `numbers` and `arrays`.

    These are metrics.json and predictions.npz of the network itself. Raises UserError, see check_alike.
    """
    arrays_by_run, owners = {}, {"the network itself": numbers["checkpoint_sha256"]}
    for run in runs:
        numbers_there, arrays_by_run[str(run)] = report_there = results.read_report(run)
        check_alike(f"--against {run}", report_there, (numbers, arrays), owners)
        owners[str(run)] = numbers_there["checkpoint_sha256"]
    return arrays_by_run


def compare(runs: dict[str, dict], y_true: Tensor) -> dict:
    """Compare runs, {name: predictions.npz}; the first is the run to report on.

    Logits are taken where there are any: large logits make probabilities of 0 and 1, and then classes tie.
    Returns how many images are right in 0, 1, ... of the runs, the numbers of each run, the numbers of the
    mean of their probabilities, and how the first run differs from each other run on the same images.
    """
    scores, probabilities = {}, {}
    for name, values in runs.items():
        if "logits" in values:
            scores[name] = values["logits"].double()
            probabilities[name] = scores[name].softmax(dim=1)
        else:
            scores[name] = probabilities[name] = values["probabilities"].double()
    right = {name: values["y_pred"] == y_true for name, values in runs.items()}
    stacked = torch.stack(list(right.values()))  # [runs, N]
    times_right = stacked.sum(dim=0)
    mean = torch.stack(list(probabilities.values())).mean(dim=0)
    right_by_mean = mean.argmax(dim=1) == y_true
    result = {
        "standard_deviation": stacked.double().mean(dim=1).std().item(),
        "right_in": times_right.bincount(minlength=len(runs) + 1).tolist(),
        "mean_of_probabilities": {
            "accuracy": metrics.accuracy(y_true, mean.argmax(dim=1)),
            "expected_calibration_error": metrics.expected_calibration_error(y_true, mean),
            "auroc": more_metrics.auroc(right_by_mean, mean.amax(dim=1)),
            "difference": more_metrics.mean_interval(stacked[0].double() - right_by_mean.double()),
        },
        "runs": [],
        "differences": [],
    }
    for name in runs:
        row = {"run": name} | metrics.resampled_headline(y_true, scores[name], 0)[0]
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

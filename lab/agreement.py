"""What several runs say of the same test images: how many are right on each, and how much two of them differ.

report.py --against calls it, and compare.py asks it which runs can be compared at all.
"""

from pathlib import Path

import torch
from torch import Tensor

import metrics
from support.errors import UserError
from support.outputs import NETWORK, agree, read_predictions


def check_alike(name: str, values: dict, first: dict, owners: list[tuple[str, dict]]) -> None:
    """Raise UserError unless a run is of the images, labels and classes of the first and of another network.

    values and first: see read_predictions. owners: the names of those before it, with what
    support.outputs.network_of says of each.
    """
    same = values["images_sha256"] == first["images_sha256"]
    same = same and torch.equal(values["y_true"], first["y_true"])
    if not same or not agree(values, first, ("class_names",)):
        raise UserError(f"{name} is of other test images, labels or classes: leave it out")
    for owner, network in owners:
        if agree(values, network, NETWORK):
            raise UserError(f"{name} has the same weights as {owner}: leave it out")


def read_runs(runs: list[Path], y_true: Tensor, whose: dict) -> dict[str, dict]:
    """Return {name: what read_predictions returns} of runs of the same test images, labelled y_true.

    whose: support.outputs.identity of the network that they are compared with. Raises UserError, see
    check_alike.
    """
    first = {"images_sha256": whose["images_sha256"], "y_true": y_true, "class_names": whose["class_names"]}
    found, owners = {}, [("the network itself", whose)]
    for run in runs:
        values = read_predictions(run)
        check_alike(f"--against {run}", values, first, owners)
        if values["probabilities"].shape[1] != len(whose["class_names"]):
            raise UserError(f"--against {run} has {values['probabilities'].shape[1]} classes: leave it out")
        owners.append((str(run), values))
        found[str(run)] = values
    return found


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
            "auroc": metrics.auroc(mean.argmax(dim=1) == y_true, mean.amax(dim=1)),
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
        row = {"run": name} | metrics.bootstrap_headline(y_true, scores[first], scores[name])
        only_first = int((right[first] & ~right[name]).sum())
        only_other = int((right[name] & ~right[first]).sum())
        row["p"] = metrics.mcnemar_exact(only_first, only_other)
        result["differences"].append(row)
    return result

"""Several runs on the same test images: what `report.py --run RUN --against OTHER ...` compares.

The answers of each are read from predictions.npz, which this module writes too, and plain numbers come out;
`section` shows them.
"""

import hashlib
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

import metrics
from page.page import Markup, fill, p_value, table
from running.files import UserError, check_file, reading, whole_file

NUMBERS = {
    "accuracy": "accuracy",
    "expected_calibration_error": "calibration error",
    "fifteen_corruptions": "fifteen corruptions",
}


def digest(images: Tensor) -> str:
    """Return the sha256 of images, uint8 [N, 3, H, W], in their order; kept beside the predictions."""
    return hashlib.sha256(images.numpy().tobytes()).hexdigest()


def write_predictions(path: Path, test, probabilities: Tensor, sha256: str) -> None:
    """Write predictions.npz; test is the test split, a data.Dataset, and sha256 the digest of the weights."""
    with whole_file(path) as temporary, open(temporary, "wb") as file:
        np.savez_compressed(
            file,
            y_true=test.labels.numpy(),
            y_pred=probabilities.argmax(dim=1).numpy(),
            probabilities=probabilities.numpy(),
            filenames=np.array(test.filenames),
            images_sha256=digest(test.images),
            checkpoint_sha256=sha256,
        )


def read_predictions(run: Path, test) -> dict:
    """Return probabilities, y_pred and checkpoint_sha256 of predictions.npz on the images of `test`.

    Raises UserError if the file is missing, damaged, or of other images or labels, or if the run has trained
    on since.
    """
    file, best = run / "predictions.npz", run / "checkpoints" / "best.pt"
    if not file.exists():
        raise UserError(f"there is no {file}: run python report.py --run {run} first")
    check_file(file)
    with reading(file, "predictions of report.py"):
        with np.load(file) as content:
            values = {key: content[key] for key in content.files}
        same_images = str(values["images_sha256"]) == digest(test.images)
        if not same_images or not np.array_equal(values["y_true"], test.labels):
            raise ValueError("it is of other test images or labels, which cannot be compared")
        rows = torch.from_numpy(values["probabilities"]).float()
        if rows.shape != (len(test.labels), len(test.class_names)):
            raise ValueError(f"it holds probabilities of shape {list(rows.shape)}")
        metrics.brier_score(test.labels, rows)  # ValueError if these are no probabilities
        sha256 = str(values["checkpoint_sha256"])
    if best.is_file() and hashlib.sha256(best.read_bytes()).hexdigest() != sha256:
        raise UserError(f"{file} is of other weights than {best}: run report.py --run {run} again")
    return {"probabilities": rows, "y_pred": rows.argmax(dim=1), "checkpoint_sha256": sha256}


def read_runs(runs: list[Path], test, sha256: str) -> dict[str, dict]:
    """Return {name: what read_predictions returns}; UserError if two of the networks are the same."""
    found, names = {}, {sha256: "the network itself"}
    for run in runs:
        found[str(run)] = read_predictions(run, test)
        other = names.setdefault(found[str(run)]["checkpoint_sha256"], str(run))
        if other != str(run):
            raise UserError(f"--against {run} has the same weights as {other}: leave it out")
    return found


def compare(runs: dict[str, dict], stress: dict[str, dict | None], test) -> dict:
    """Compare runs, {name: what read_predictions returns}, of which the first is the one to report.

    stress: {name: what stress.read_results returns}. Returns how many images are right in 0, 1, ... of the
    runs, the numbers of each, with corruptions if all were tested on the same images, and the differences of
    the first from each of the others on the same images, see metrics.bootstrap_difference.
    """
    y_true, (first, *others) = test.labels, runs.items()
    right = torch.stack([values["y_pred"] == y_true for values in runs.values()])
    accuracies = right.double().mean(dim=1)
    result = {
        "mean_accuracy": accuracies.mean().item(),
        "standard_deviation": accuracies.std().item(),
        "right_in": right.sum(dim=0).bincount(minlength=len(runs) + 1).tolist(),
        "runs": [],
        "differences": [],
    }
    finished = [tested for tested in stress.values() if tested is not None and "summary" in tested]
    same_images = len({tested["sample_sha256"] for tested in finished}) == 1
    for name, values in runs.items():
        row = {"run": name} | metrics.headline(y_true, values["probabilities"])
        error = metrics.expected_calibration_error(y_true, values["probabilities"])
        row["expected_calibration_error"] = error
        if same_images and len(finished) == len(runs):
            row["fifteen_corruptions"] = stress[name]["summary"]["mean_accuracy"]["fifteen"]["value"]
        result["runs"].append(row)
    for theirs, (name, values) in zip(right[1:], others, strict=True):
        only = int((right[0] & ~theirs).sum()), int((theirs & ~right[0]).sum())
        pair = first[1]["probabilities"], values["probabilities"]
        row = {"run": name} | metrics.bootstrap_difference(y_true, *pair)
        row |= {"only_this_right": only[0], "only_other_right": only[1], "p": metrics.mcnemar_exact(*only)}
        row["churn"] = (first[1]["y_pred"] != values["y_pred"]).double().mean().item()
        result["differences"].append(row)
    return result


def short(run: str) -> str:
    """Return the name of a run without the folders around it."""
    return Path(run).name


def section(compared: dict) -> Markup:
    """What `compare` found."""
    rows, right_in = [], compared["right_in"]
    difference_of = {row["run"]: row for row in compared["differences"]}
    for row in compared["runs"]:
        cells = {"run": short(row["run"])}
        for key, words in NUMBERS.items():
            if key in row:
                cells[words] = row[key]
        other = difference_of.get(row["run"])
        if other is None:  # the run itself
            rows.append(cells | {"this run less it, points": "", "p": "", "different answers": ""})
            continue
        value, low, high = (f"{100 * end:+.1f}" for end in other["accuracy"].values())
        cells["this run less it, points"] = (f"{value} ({low} to {high})", other["accuracy"]["value"])
        p = p_value(other["p"])
        rows.append(cells | {"p": (p, other["p"]), "different answers": other["churn"]})
    return fill(
        "against",
        num_runs=len(rows),
        mean=compared["mean_accuracy"],
        deviation=f"{100 * compared['standard_deviation']:.2f}",
        always=right_in[-1],
        never=right_in[0],
        table=table("All runs", rows),
    )

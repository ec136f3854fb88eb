"""Several runs on the same test images: the section that `report.py --run RUN --against OTHER ...` adds.

They are read from their folders: predictions.npz of report.py and, where it is there, stress.json.
"""

import hashlib
import json
import zipfile
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

import metrics
from page.page import Markup, fill, percent, table
from running.files import UserError, check_file, read_file, usable

COMPARED = {"accuracy": "accuracy", "macro_f1": "macro F1"}
MAX_UNPACKED = 200_000_000  # bytes; the predictions of 10,000 images and 100 classes have 4 MB


def digest(images: Tensor) -> str:
    """Return the sha256 of images, uint8 [N, 3, H, W], in their order; kept beside the predictions."""
    return hashlib.sha256(images.numpy().tobytes()).hexdigest()


def read_predictions(run: Path, test) -> dict:
    """Return y_pred, probabilities and checkpoint_sha256 of predictions.npz on the images of `test`.

    test is the test split, a data.Dataset. Raises UserError if the file is missing, damaged, or of other
    images or labels.
    """
    file = run / "predictions.npz"
    if not file.exists():
        raise UserError(f"there is no {file}: run python report.py --run {run} first")
    check_file(file)
    with usable(file, "predictions of report.py"):
        with zipfile.ZipFile(file) as archive:
            if sum(member.file_size for member in archive.infolist()) > MAX_UNPACKED:
                raise ValueError("it unpacks to too much")
        with np.load(file) as content:
            values = {key: content[key] for key in content.files}
        same_images = str(values["images_sha256"]) == digest(test.images)
        if not same_images or not np.array_equal(values["y_true"], test.labels):
            raise ValueError("it is of other test images or labels, which cannot be compared")
        rows = torch.from_numpy(values["probabilities"]).float()
        if rows.shape != (len(test.labels), len(test.class_names)):
            raise ValueError(f"it holds probabilities of shape {list(rows.shape)}")
        if not ((rows >= 0).all() and ((rows.double().sum(dim=1) - 1).abs() < 1e-3).all()):
            raise ValueError("it holds rows that are not probabilities")
        return {
            "probabilities": rows,
            "y_pred": rows.argmax(dim=1),
            "checkpoint_sha256": str(values["checkpoint_sha256"]),
        }


def fifteen_corruptions(run: Path, checkpoint_sha256: str) -> tuple[str, int, float] | None:
    """Return the digest of the sample, its size, and the mean accuracy over the fifteen corruptions.

    None where stress.py has not finished or has tested another checkpoint than that of the predictions.
    """
    file = run / "stress.json"
    if file.exists():
        with usable(file, "results of stress.py"):
            results = json.loads(read_file(file))
            if results["checkpoint_sha256"] == checkpoint_sha256 and "summary" in results:
                mean = results["summary"]["mean_accuracy"]["fifteen"]["value"]
                return results["sample_sha256"], results["corruption_images"], float(mean)
    return None


def section(run: Path, others: dict[str, dict], test) -> Markup:
    """Compare `run` with others, {folder: its predictions}, all reported on `test`, the test split."""
    runs = {str(run): read_predictions(run, test), **others}
    accuracies, right = several(test, runs)
    return fill(
        "against",
        num_test=len(test.labels),
        num_runs=len(runs),
        mean=accuracies.mean().item(),
        deviation=f"{100 * accuracies.std().item():.2f}",
        right=", ".join(f"{k} for {count:,} images" for k, count in enumerate(right)),
        number_table=number_table(test, runs),
        difference_table=difference_table(test, runs[str(run)], others),
    )


def several(test, runs: dict[str, dict]) -> tuple[Tensor, list[int]]:
    """Return the accuracies, float64 [K], and how many images are right in 0, 1, ..., K of the K runs."""
    correct = torch.stack([values["y_pred"] == test.labels for values in runs.values()])
    return correct.double().mean(dim=1), correct.sum(dim=0).bincount(minlength=len(runs) + 1).tolist()


def churn(y_pred: Tensor, other: Tensor) -> float:
    """Return the share of images that two networks answer differently, right or wrong.

    Milani Fard et al., "Launch and Iterate: Reducing Prediction Churn", 2016, section 2.
    """
    return (y_pred != other).double().mean().item()


def number_table(test, runs: dict[str, dict]) -> Markup:
    """The numbers of every run; the corruptions only if all were tested on the same images."""
    stress = [fifteen_corruptions(Path(name), run["checkpoint_sha256"]) for name, run in runs.items()]
    tested = None not in stress and len({sample for sample, _, _ in stress}) == 1
    rows = []
    for k, (name, run) in enumerate(runs.items()):
        numbers = metrics.headline(test.labels, run["probabilities"])
        numbers = {words: numbers[key] for key, words in COMPARED.items()}
        error = metrics.expected_calibration_error(test.labels, run["probabilities"])
        numbers["calibration error"] = error
        if tested:
            numbers[f"fifteen corruptions, {stress[k][1]:,} images"] = stress[k][2]
        shown = {words: (percent(value, 2), value) for words, value in numbers.items()}
        rows.append({"run": name if k else f"{name} (this run)"} | shown)
    return table("All runs", rows)


def difference_table(test, ours: dict, others: dict[str, dict]) -> Markup:
    """This run minus each of the others, on the same images."""
    rows, correct = [], ours["y_pred"] == test.labels
    for name, theirs in others.items():
        row = {"this run minus": name}
        difference = metrics.bootstrap_difference(test.labels, ours["probabilities"], theirs["probabilities"])
        for key, words in COMPARED.items():
            value, low, high = (f"{100 * end:+.2f}" for end in difference[key].values())
            row[words] = (f"{value} ({low} to {high})", difference[key]["value"])
        other_correct = theirs["y_pred"] == test.labels
        only = int((correct & ~other_correct).sum()), int((other_correct & ~correct).sum())
        p = metrics.mcnemar_exact(*only)
        shown = f"{p:.4f}" if p >= 0.0001 else "below 0.0001"
        row |= {"only this right": only[0], "only the other": only[1], "p": (shown, p)}
        rows.append(row | {"churn": churn(ours["y_pred"], theirs["y_pred"])})
    return table("Differences", rows)

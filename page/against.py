"""Two runs on the same test images: the section that `report.py --run RUN --against OTHER` adds.

Both are read from their folders: predictions.npz of report.py and, where it is there, stress.json.
"""

import hashlib
import json
import math
import zipfile
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

import metrics
from page.page import Markup, fill, filter_link, join, percent, picture, plain, png, table
from running.files import UserError, check_file, read_file, usable

COMPARED = {"accuracy": "accuracy", "macro_f1": "macro F1"}
NUM_CLASSES = 5  # of those that gained most, and as many of those that lost most
MAX_UNPACKED = 200_000_000  # bytes; the predictions of 10,000 images and 100 classes have 4 MB
NUM_FLIPPED = 8  # pictures in either direction


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


def section(run: Path, other: Path, test) -> Markup:
    """Compare `run` with `other`; both have been reported on `test`, the test split, a data.Dataset."""
    ours, theirs = read_predictions(run, test), read_predictions(other, test)
    correct, other_correct = (values["y_pred"] == test.labels for values in (ours, theirs))
    only_ours, only_theirs = correct & ~other_correct, other_correct & ~correct
    counts = int(only_ours.sum()), int(only_theirs.sum())
    stress = [
        fifteen_corruptions(folder, values["checkpoint_sha256"])
        for folder, values in ((run, ours), (other, theirs))
    ]
    classes = compare_classes(test, correct, other_correct)
    return fill(
        "against",
        other=str(other),
        num_test=len(test.labels),
        number_table=number_table(test.labels, ours["probabilities"], theirs["probabilities"], *stress),
        agreed=len(test.labels) - sum(counts),
        only_ours=counts[0],
        only_theirs=counts[1],
        p=p_value(metrics.mcnemar_exact(*counts)),
        class_table=class_table(classes),
        num_classes=len(classes),
        uneven=sum(row["p"] < 0.05 for row in classes),
        by_chance=round(0.05 * len(classes)),
        gained=flipped(test, only_ours, ours, theirs, "this run"),
        lost=flipped(test, only_theirs, theirs, ours, "the other run"),
    )


def points(difference: float) -> str:
    """Return a difference of two fractions in percentage points: 0.0123 is "+1.23"."""
    return f"{100 * difference:+.2f}"


def p_value(p: float) -> str:
    """Return a p-value with four decimals, or "below 0.0001"."""
    return f"{p:.4f}" if p >= 0.0001 else "below 0.0001"


def number_table(
    y_true: Tensor, ours: Tensor, theirs: Tensor, stress: tuple | None, other_stress: tuple | None
) -> Markup:
    """The numbers of both runs, their difference, and its interval where one can be computed."""
    headlines = [metrics.headline(y_true, rows) for rows in (ours, theirs)]
    difference = metrics.bootstrap_difference(y_true, ours, theirs)
    numbers = {name: [row[key] for row in headlines] for key, name in COMPARED.items()}
    intervals = {name: difference[key] for key, name in COMPARED.items()}
    numbers["expected calibration error"] = [
        metrics.expected_calibration_error(y_true, rows) for rows in (ours, theirs)
    ]
    if stress and other_stress and stress[0] == other_stress[0]:  # the same images
        numbers[f"mean of fifteen corruptions, {stress[1]:,} images"] = [stress[2], other_stress[2]]
    rows = []
    for name, (a, b) in numbers.items():
        row = {"number": name, "this run": (percent(a, 2), a), "the other": (percent(b, 2), b)}
        ends = intervals.get(name, {"low": math.nan})
        text = f"{points(ends['low'])} to {points(ends['high'])}" if name in intervals else "–"
        rows.append(row | {"difference": (points(a - b), a - b), "95 % interval": (text, ends["low"])})
    return table("This run and the other", rows)


def compare_classes(test, correct: Tensor, other_correct: Tensor) -> list[dict]:
    """Return for each class both accuracies, the images gained and McNemar's p, most gained first."""
    rows = []
    for c in test.labels.unique().tolist():
        ours, theirs = correct[test.labels == c], other_correct[test.labels == c]
        gained, lost = int((ours & ~theirs).sum()), int((theirs & ~ours).sum())
        row = {"name": plain(test.class_names[c]), "gained": gained - lost}
        row |= {"ours": ours.double().mean().item(), "theirs": theirs.double().mean().item()}
        rows.append(row | {"p": metrics.mcnemar_exact(gained, lost)})
    return sorted(rows, key=lambda row: -row["gained"])


def class_table(classes: list[dict]) -> Markup:
    """The classes that gained most and those that lost most, of the rows of compare_classes."""
    gained = [row for row in classes if row["gained"] > 0][:NUM_CLASSES]
    lost = [row for row in classes if row["gained"] < 0][-NUM_CLASSES:]
    rows = []
    for row in gained + lost:
        shown = {"class": filter_link(row["name"], true=row["name"])}
        shown |= {"this run": row["ours"], "the other": row["theirs"]}
        shown["images"] = (f"{row['gained']:+d}", row["gained"])
        rows.append(shown | {"p": (p_value(row["p"]), row["p"])})
    return table("Classes that gained and lost most", rows)


def flipped(test, chosen: Tensor, better: dict, worse: dict, who: str) -> Markup:
    """Pictures that only `better` recognises, those first whose true class gained most in probability.

    chosen, bool [N], are the images that `who`, which is `better` in words, alone recognises.
    """
    index = torch.nonzero(chosen).flatten()
    truth = test.labels[index]
    gain = better["probabilities"][index, truth] - worse["probabilities"][index, truth]
    pictures = []
    for i in index[gain.argsort(descending=True, stable=True)][:NUM_FLIPPED].tolist():
        true, wrong = (plain(test.class_names[c]) for c in (test.labels[i], worse["y_pred"][i]))
        label = f"{true}, not {wrong} ({percent(worse['probabilities'][i].max().item(), 0)})"
        shown = picture(png(test.images[i]), f"{true}, which only {who} recognises", 96)
        pictures.append(fill("labelled_picture", picture=shown, label=label))
    return join(pictures)

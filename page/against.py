"""Two runs on the same test images: the section that `report.py --run RUN --against OTHER` adds.

Both are read from their folders: predictions.npz of report.py and, where it is there, stress.json.
"""

import hashlib
import math
import zipfile
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

import metrics
from page import page
from page.page import Markup, code, fill, filter_link, percent, plain
from running.check import PREDICTIONS, check_sizes, check_tensors
from running.files import UserError, check_file
from running.folder import read_stress

NUM_CLASSES = 5  # of those that gained most, and as many of those that lost most
MAX_UNPACKED = 200_000_000  # bytes; the predictions of 10,000 images and 100 classes have 4 MB
NUM_FLIPPED = 8  # pictures in either direction


def digest(images: Tensor) -> str:
    """Return the sha256 of images, uint8 [N, 3, H, W], in their order; kept beside the predictions."""
    return hashlib.sha256(images.numpy().tobytes()).hexdigest()


def read_predictions(run: Path) -> dict:
    """Return the content of predictions.npz, arrays as tensors and digests as texts, or raise UserError."""
    file, advice = run / "predictions.npz", f"run python report.py --run {run} first"
    if not file.exists():
        raise UserError(f"there is no {file}: {advice}" if run.is_dir() else f"there is no run {run}")
    check_file(file)
    try:
        with zipfile.ZipFile(file) as archive:
            if sum(member.file_size for member in archive.infolist()) > MAX_UNPACKED:
                raise zipfile.BadZipFile("it unpacks to too much")
        with np.load(file) as content:
            values = {key: torch.from_numpy(content[key]) for key in PREDICTIONS}
            values |= {key: str(content[key]) for key in ("images_sha256", "checkpoint_sha256")}
    except Exception:  # zipfile and numpy raise many kinds for a damaged file
        raise UserError(f"{file} is damaged or of an older report.py: {advice}") from None
    check_tensors(values, file)
    check_sizes(values, PREDICTIONS, file)
    rows = values["probabilities"]
    if (rows < 0).any() or ((rows.double().sum(dim=1) - 1).abs() > 1e-3).any():
        raise UserError(f"{file} cannot be used: it holds rows that are not probabilities")
    return values


def check(run: Path, other: Path, test) -> None:
    """Raise UserError unless `other` is not `run` itself and has been reported on the images of `test`."""
    if other.resolve() == run.resolve():
        raise UserError(f"--against {other} is the run itself: name another one")
    theirs = read_predictions(other)
    read_stress(other)
    same_images = theirs["images_sha256"] == digest(test.images)
    same_classes = theirs["probabilities"].shape[1] == len(test.class_names)
    if not same_images or not same_classes or not torch.equal(theirs["y_true"], test.labels):
        raise UserError(f"{other} was tested on other images or labels than {run}: they cannot be compared")


def section(run: Path, other: Path, test) -> Markup:
    """Compare `run` with `other`; both have been reported on `test`, the test split, a data.Dataset."""
    ours, theirs = read_predictions(run), read_predictions(other)
    right, other_right = (values["y_pred"] == test.labels for values in (ours, theirs))
    only_ours, only_theirs = right & ~other_right, other_right & ~right
    counts = int(only_ours.sum()), int(only_theirs.sum())
    classes = compare_classes(test, right, other_right)
    return fill(
        "against",
        other=str(other),
        num_test=len(test.labels),
        number_table=number_table(
            test.labels, ours, theirs, corruptions_of(run, ours), corruptions_of(other, theirs)
        ),
        agreed=len(test.labels) - sum(counts),
        only_ours=counts[0],
        only_theirs=counts[1],
        p=p_value(metrics.mcnemar_exact(*counts)),
        code_numbers=code([metrics.bootstrap_difference, metrics._resampled_headline]),
        code_test=code([metrics.mcnemar_exact]),
        code_classes=code([compare_classes]),
        class_table=class_table(classes),
        num_classes=len(classes),
        uneven=sum(p < 0.05 for *_, p in classes),
        by_chance=round(0.05 * len(classes)),
        gained=flipped(test, only_ours, ours, theirs, "this run"),
        lost=flipped(test, only_theirs, theirs, ours, "the other run"),
    )


def points(difference: float) -> str:
    """Return a difference of two shares in percentage points: 0.0123 is "+1.23"."""
    return f"{100 * difference:+.2f}"


def p_value(p: float) -> str:
    """Return a p-value with four decimals, or "below 0.0001"."""
    return f"{p:.4f}" if p >= 0.0001 else "below 0.0001"


def corruptions_of(run: Path, predictions: dict) -> tuple[tuple, float] | None:
    """Return what stress.py tested and the mean accuracy over the fifteen corruptions, or None.

    None where the tests are not finished, or are those of another checkpoint than the predictions.
    """
    results = read_stress(run)
    if not results or "checks" not in results:
        return None
    fingerprint, mean = results["fingerprint"], results["summary"]["mean_accuracy"]["fifteen"]["value"]
    tested = results["corruption_images"], fingerprint["sample"], fingerprint["settings"]
    return (tested, mean) if fingerprint["checkpoint"] == predictions["checkpoint_sha256"] else None


def number_table(
    y_true: Tensor, ours: dict, theirs: dict, stress: tuple | None, other_stress: tuple | None
) -> Markup:
    """The numbers of both runs, their difference, and its interval where one can be computed."""
    both = ours["probabilities"], theirs["probabilities"]
    headlines = [metrics.headline(y_true, probabilities) for probabilities in both]
    difference, numbers = metrics.bootstrap_difference(y_true, *both), []
    for key, name in {"accuracy": "accuracy", "macro_f1": "macro F1"}.items():
        interval = difference[key]
        ends = f"{points(interval['low'])} to {points(interval['high'])}"
        numbers.append((name, *(values[key] for values in headlines), (ends, interval["low"])))
    none = ("–", math.nan)
    errors = [metrics.expected_calibration_error(y_true, probabilities) for probabilities in both]
    numbers.append(("expected calibration error", *errors, none))
    if stress and other_stress and stress[0] == other_stress[0]:  # the same tests on the same images
        images = f"{stress[0][0]:,} images"
        numbers.append((f"mean of fifteen corruptions, {images}", stress[1], other_stress[1], none))
    rows = [
        [name, (percent(a, 2), a), (percent(b, 2), b), (points(a - b), a - b), ends]
        for name, a, b, ends in numbers
    ]
    header = ["number", "this run", "the other", "difference", "95 % interval"]
    return page.table("This run and the other", header, rows)


def compare_classes(test, right: Tensor, other_right: Tensor) -> list[tuple]:
    """Return (name, accuracy, the other's, images gained, McNemar's p) of each class, most gained first."""
    rows = []
    for c in test.labels.unique().tolist():
        ours, theirs = right[test.labels == c], other_right[test.labels == c]
        gained, lost = int((ours & ~theirs).sum()), int((theirs & ~ours).sum())
        shares = [hits.double().mean().item() for hits in (ours, theirs)]
        p = metrics.mcnemar_exact(gained, lost)
        rows.append((plain(test.class_names[c]), *shares, gained - lost, p))
    return sorted(rows, key=lambda row: -row[3])


def class_table(classes: list[tuple]) -> Markup:
    """The classes that gained most and those that lost most, of the rows of compare_classes."""
    gained = [row for row in classes if row[3] > 0][:NUM_CLASSES]
    lost = [row for row in classes if row[3] < 0][-NUM_CLASSES:]
    rows = [
        [filter_link(row[0], true=row[0]), *row[1:3], (f"{row[3]:+d}", row[3]), (p_value(row[4]), row[4])]
        for row in gained + lost
    ]
    header = ["class", "this run", "the other", "images", "p"]
    return page.table("Classes that gained and lost most", header, rows)


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
        picture = page.picture(test.images[i], f"{true}, which only {who} recognises", 96)
        pictures.append(fill("labelled_picture", picture=picture, label=label))
    return page.join(pictures)

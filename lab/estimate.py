"""Estimate how many answers to pictures without labels are right, from how far mean confidence falls on them.

    python -m lab.estimate FOLDER                          by the shipped weights and results/stress.json
    python -m lab.estimate FOLDER --run runs/cifar100      by a run that lab.stress has tested

FOLDER holds pictures, with or without folders below. lab.stress has measured the accuracy a and the mean
confidence c of this network on clean test images (a0, c0) and under fifteen corruptions at five severities.
The line a0 - a = slope (c0 - c) is fitted to these 75 points and read at the confidence on the pictures.
Guillory et al., "Predicting with Confidence on Unseen Distributions", 2021 (arXiv 2107.03315), take the fall
of confidence itself for that of accuracy, a slope of 1.
"""

import itertools
import math
import sys
from pathlib import Path

if __name__ == "__main__":  # from any folder, and without lab/ before a user's own modules
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

import torch
from torch import Tensor

from data import is_picture
from lab import pictures, results
from lab.classifier import Classifier, load_data
from lab.networks import read_transform
from lab.options import SHIPPED, add_options, from_options
from lab.support import CommandLine, UserError, pick_device, read_json, run_main

COVERAGE = 0.9  # the share of left-out errors that the interval holds
NORMAL_QUANTILE = 1.645  # for the same share of a normal distribution
UNSEEN = (
    "other classes than the network's, other shares of the classes than in the test images, pictures that "
    "were chosen by their confidence, and changes that are like none of the fifteen corruptions"
)


def points(stress: dict) -> tuple[Tensor, Tensor, Tensor]:
    """Return the family, the mean confidence and the accuracy of each corruption and severity.

    stress is the content of stress.json. The families are int64 [75], their places in stress["families"]; the
    others are float64 [75], fractions. Raises UserError if a test is missing.
    """
    rows = []
    for place, names in enumerate(stress["families"].values()):
        for name, severity in itertools.product(names, range(1, 6)):
            test = f"{name}/{severity}"
            if test not in stress["tests"]:
                raise UserError(f"stress.json lacks the test {test}: run the same python -m lab.stress again")
            record = stress["tests"][test]
            rows.append([place, record["mean_confidence"], record["accuracy"]["value"]])
    family, confidences, accuracies = torch.tensor(rows, dtype=torch.float64).T
    return family.long(), confidences, accuracies


def slope_of(confidence_falls: Tensor, accuracy_falls: Tensor) -> float:
    """Return the slope of the line through the origin that fits best by least squares, both float64 [N]."""
    return ((confidence_falls * accuracy_falls).sum() / (confidence_falls**2).sum()).item()


def fit(stress: dict) -> dict:
    """Fit the line of a network to the content of its stress.json.

    Returns clean_accuracy and clean_confidence, fractions; the `slope`, in points of accuracy for a point of
    mean confidence; `confidences`, the lowest and the highest mean confidence of the 75 points and the clean
    one; `bias`, for each family the mean estimate less the mean accuracy if the line is fitted on the other
    families; and `width`, which nine of ten of these 75 errors do not exceed. Raises UserError if the
    confidence never changes.
    """
    family, confidences, accuracies = points(stress)
    clean = stress["tests"]["clean/0"]
    clean_accuracy, clean_confidence = clean["accuracy"]["value"], clean["mean_confidence"]
    confidence_falls, accuracy_falls = clean_confidence - confidences, clean_accuracy - accuracies
    errors = torch.zeros_like(confidences)
    for place in family.unique():
        inside, others = family == place, family != place
        slope = slope_of(confidence_falls[others], accuracy_falls[others])
        errors[inside] = (accuracy_falls - slope * confidence_falls)[inside]
    if not errors.isfinite().all():
        raise UserError("the network is as confident under all corruptions: its confidence estimates nothing")
    bias = {name: errors[family == place].mean().item() for place, name in enumerate(stress["families"])}
    return {
        "clean_accuracy": clean_accuracy,
        "clean_confidence": clean_confidence,
        "slope": slope_of(confidence_falls, accuracy_falls),
        "confidences": [confidences.min().item(), max(confidences.max().item(), clean_confidence)],
        "bias": bias,
        "width": errors.abs().quantile(COVERAGE, interpolation="higher").item(),
    }


def read_line(line: dict, confidence: float, count: int) -> dict[str, float]:
    """Return the estimated accuracy of `count` pictures, {value, low, high}, from their mean confidence.

    line: see fit. The interval is its width, and beside it the chance by which the accuracy of so few
    pictures differs from that of all such pictures.
    """
    fall = line["slope"] * (line["clean_confidence"] - confidence)
    value = min(max(line["clean_accuracy"] - fall, 0.0), 1.0)
    width = math.hypot(line["width"], NORMAL_QUANTILE * math.sqrt(value * (1 - value) / count))
    return {"value": value, "low": max(value - width, 0.0), "high": min(value + width, 1.0)}


def labels_for(width: float) -> int:
    """Return how many pictures with labels have a 90 % interval as wide, where half of them are right."""
    return math.ceil((NORMAL_QUANTILE / width) ** 2 / 4)


def estimate(classifier: Classifier, images: Tensor, stress: dict) -> dict:
    """Estimate how many answers of a network to images without labels are right.

    images uint8 [N, 3, S, S]; stress: the content of the network's stress.json. Returns the estimated
    `accuracy`, {value, low, high}, the mean `confidence`, the line (see fit), and `outside`: the confidence
    lies outside of those of the line, by more than 1.96 standard errors. Raises UserError for results of
    other weights.
    """
    if stress["checkpoint_sha256"] != classifier.digest:
        raise UserError(f"these stress tests are of other weights than {classifier.name}'s")
    line = fit(stress)
    confidences = classifier.predict(images).double().softmax(dim=1).amax(dim=1)
    confidence, (low, high) = confidences.mean().item(), line["confidences"]
    chance = 1.96 * confidences.std(correction=0).item() / math.sqrt(len(images))
    outside = not low - chance <= confidence <= high + chance
    accuracy = read_line(line, confidence, len(images))
    return line | {"accuracy": accuracy, "confidence": confidence, "outside": outside}


def read_pictures(folder: Path, classifier: Classifier) -> Tensor:
    """Return all pictures in a folder and the folders below, uint8 [N, 3, S, S] as the network takes them."""
    if not folder.is_dir():
        raise UserError(f"{folder} is not a folder: give one that holds pictures")
    paths = sorted(path for path in folder.rglob("*") if is_picture(path, folder))
    if not paths:
        raise UserError(f"{folder} holds no pictures: expected files such as .png or .jpg")
    transform = None if classifier.transform is None else read_transform(classifier.transform)
    size, resize, unreadable = classifier.model.image_size, classifier.model.uncropped, []
    images, _ = pictures.read_split([(path, 0) for path in paths], size, resize, None, transform, unreadable)
    pictures.check_readable(unreadable)
    return images


def check_stress(path: Path, stress: dict, identity: dict) -> None:
    """Raise UserError unless stress, the content of path, has the digests of lab.results.identity."""
    if any(stress.get(key) != digest for key, digest in identity.items()):
        raise UserError(
            f"{path} is of another network, preprocessing or test set: run python -m lab.stress with the "
            f"same options, and name its folder by --stress"
        )


def print_estimate(result: dict, path: Path) -> None:
    """Print how an estimate came about, what it cannot see, and the estimate; path: its stress.json."""
    here, clean, right = (100 * result[key] for key in ("confidence", "clean_confidence", "clean_accuracy"))
    low, high = (100 * confidence for confidence in result["confidences"])
    print(f"confidence  {here:.1f} % here, {clean:.1f} % on clean test images, where {right:.1f} % are right")
    print(f"slope       {result['slope']:.2f} points of accuracy for a point of confidence, by {path}")
    print(
        f"interval    of this network's left-out families of corruptions, nine of ten estimates erred by at "
        f"most {100 * result['width']:.1f} points"
    )
    if result["width"]:
        count = labels_for(result["width"])
        print(f"labels      {count:,} pictures with labels, drawn by chance, have an interval as narrow")
    if result["outside"]:
        print(f"note        {here:.1f} % is outside of {low:.1f} to {high:.1f} %, where the line was fitted")
    print(f"not seen    {UNSEEN}")
    value, low, high = (100 * result["accuracy"][key] for key in ("value", "low", "high"))
    print(f"estimated accuracy {value:.0f} % ({low:.0f} to {high:.0f} %)")


def main(argv: list[str] | None = None) -> int:
    """Estimate the accuracy of a network on the pictures of a folder; return the exit code."""
    parser = CommandLine(description=__doc__)
    parser.add_argument("folder", type=Path, metavar="FOLDER", help="pictures without labels")
    add_options(parser)
    text = "folder of stress.json (default: where lab.stress writes it, results/ for the shipped weights)"
    parser.add_argument("--stress", type=Path, metavar="DIR", help=text)
    parser.add_argument("--data-dir", help="where CIFAR is (default: where training found it, else data)")
    parser.add_argument("--dataset", help="the test set of lab.stress (default: that of training)")
    parser.add_argument("--device", default="auto", help="auto, cuda, mps or cpu (default: auto)")
    args = parser.parse_args(argv)
    classifier = from_options(args, pick_device(args.device))
    shipped = classifier.path is not None and classifier.path.resolve() == SHIPPED
    folder = args.stress or (SHIPPED.parents[1] / "results" if shipped else None)
    path = (folder or results.results_folder(classifier, None, args.dataset)) / "stress.json"
    if not path.is_file():
        raise UserError(f"there is no {path}: python -m lab.stress with the same options makes it")
    images = read_pictures(args.folder, classifier)
    stress = read_json(path, "results of lab.stress")
    _, test = load_data(classifier, args.dataset, args.data_dir)
    check_stress(path, stress, results.identity(classifier, test))
    print(f"network     {classifier.name}, {classifier.parameters:,} parameters, images {classifier.input}")
    print(f"pictures    {len(images):,} in {args.folder}")
    print_estimate(estimate(classifier, images, stress), path)
    return 0


if __name__ == "__main__":
    run_main(main)

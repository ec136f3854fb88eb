"""How well does a fall of mean confidence tell the accuracy on images without labels?

    python lab/experiments/unlabelled.py
    python lab/experiments/unlabelled.py --checkpoint weights/resnet18_cifar100.pt --data-dir data

Prints Markdown tables from the stress.json of the networks in results/, see lab/estimate.py for the line. An
error is the estimated accuracy less the true one, in points. Intervals of 95 % come from 2,000 resamples of
the networks and of the four families of corruptions. With a checkpoint the network answers 1,000 images that
are changed in other ways, and 1,000 corrupted ones, for a comparison with ATC: Garg et al., "Leveraging
Unlabeled Data to Predict Out-of-Distribution Performance", 2022 (arXiv 2201.04234).
"""

import itertools
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2 import functional as transforms

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from lab.classifier import Classifier, load_checkpoint, load_data
from lab.stress_tests.corruptions import FAMILIES, FIFTEEN, corrupt
from lab.support import CommandLine, Progress, pick_device, run_main

import data
from data import Dataset
from lab.estimate import estimate, fit, points, read_line, slope_of
from lab.experiments.findings import NARROW, RESULTS, WITH_SMOOTHING, WITHOUT_SMOOTHING, print_table, read
from lab.reasons import spearman
from lab.stress import draw_sample
from metrics import fit_temperature

RECIPES = [["shipped"], WITH_SMOOTHING, WITHOUT_SMOOTHING, NARROW]  # networks of the same recipe
NETWORKS = [name for names in RECIPES for name in names]
BILINEAR = InterpolationMode.BILINEAR
FURTHER = ("speckle_noise", "gaussian_blur", "saturate")  # to which no line was fitted
CHANGES = (*((name, 3) for name in FURTHER), ("speckle_noise", 5))  # with their severities
NUM_RESAMPLES, NUM_IMAGES = 2000, 1000


def all_cases(results: list[dict]) -> dict[str, np.ndarray]:
    """Return the cases of all networks, a network under a corruption at a severity, as arrays [675].

    `network` and `family` are their numbers; `confidence` and `accuracy` the true ones; `confidence_fall` and
    `accuracy_fall` what they have lost against clean images.
    """
    rows = []
    for network, stress in enumerate(results):
        clean = stress["tests"]["clean/0"]
        for family, confidence, accuracy in zip(*(column.tolist() for column in points(stress)), strict=True):
            falls = clean["mean_confidence"] - confidence, clean["accuracy"]["value"] - accuracy
            rows.append((network, family, confidence, accuracy, *falls))
    names = ("network", "family", "confidence", "accuracy", "confidence_fall", "accuracy_fall")
    return dict(zip(names, np.array(rows).T, strict=True))


def slope(cases: dict[str, np.ndarray], chosen: np.ndarray) -> float:
    """Return the slope of the line of the chosen cases, bool [675], see lab.estimate."""
    falls = (torch.from_numpy(cases[key][chosen]) for key in ("confidence_fall", "accuracy_fall"))
    return slope_of(*falls)


def left_out(cases: dict[str, np.ndarray], may_fit: Callable, fall_of: Callable) -> np.ndarray:
    """Return the errors of each network and family where the fit has seen neither of them, float64 [675].

    may_fit(numbers of networks, network): on which networks is fitted for a network, bool. fall_of(chosen,
    inside) is the estimated fall of accuracy of the cases inside, by the chosen ones, bool [675] both.
    """
    errors = np.zeros(len(cases["network"]))
    for network, family in itertools.product(np.unique(cases["network"]), np.unique(cases["family"])):
        inside = (cases["network"] == network) & (cases["family"] == family)
        chosen = may_fit(cases["network"], network) & (cases["family"] != family)
        errors[inside] = cases["accuracy_fall"][inside] - fall_of(chosen, inside)
    return errors


def by_line_of(cases: dict[str, np.ndarray]) -> Callable:
    """Return the fall_of of left_out that estimates by a line."""
    return lambda chosen, inside: slope(cases, chosen) * cases["confidence_fall"][inside]


def interval(cases: dict[str, np.ndarray], errors: np.ndarray) -> str:
    """Return the mean of absolute errors in points with its interval over networks and families."""
    generator, means = np.random.default_rng(0), []
    counts = np.zeros((len(NETWORKS), len(FAMILIES)))
    np.add.at(counts, (cases["network"].astype(int), cases["family"].astype(int)), 1)
    sums = np.zeros_like(counts)
    np.add.at(sums, (cases["network"].astype(int), cases["family"].astype(int)), errors)
    for _ in range(NUM_RESAMPLES):
        drawn = np.ix_(*(generator.integers(count, size=count) for count in counts.shape))
        means.append(sums[drawn].sum() / counts[drawn].sum())
    low, high = 100 * np.quantile(means, [0.025, 0.975])
    return f"{100 * errors.mean():.1f} ({low:.1f} to {high:.1f})"


def biases(family: np.ndarray, errors: np.ndarray) -> list[str]:
    """Return the mean error of each family, in points."""
    return [f"{100 * errors[family == place].mean():+.1f}" for place in np.unique(family)]


def nine_of_ten(errors: np.ndarray) -> str:
    """Return what nine of ten absolute errors do not exceed, in points."""
    return f"{100 * np.quantile(np.abs(errors), 0.9, method='higher'):.1f}"


def print_methods(cases: dict[str, np.ndarray]) -> np.ndarray:
    """Print how far estimates err, 675 of them each; return the errors of each network's own line."""
    recipe = np.array([k for k, names in enumerate(RECIPES) for _ in names])
    by_line = by_line_of(cases)
    own = left_out(cases, np.equal, by_line)
    methods = {
        "line of other networks, other families": left_out(cases, np.not_equal, by_line),
        "line of other recipes, other families": left_out(
            cases, lambda others, one: recipe[others.astype(int)] != recipe[int(one)], by_line
        ),
        "line of the network itself, other families": own,
        "fall of confidence itself (slope 1)": cases["accuracy_fall"] - cases["confidence_fall"],
        "mean confidence itself": cases["confidence"] - cases["accuracy"],
        "always the mean fall of other networks, other families": left_out(
            cases, np.not_equal, lambda chosen, inside: cases["accuracy_fall"][chosen].mean()
        ),
    }
    rows = []
    for name, errors in methods.items():
        rows.append(
            [name, interval(cases, np.abs(errors)), nine_of_ten(errors), *biases(cases["family"], errors)]
        )
    line, fall = (np.abs(list(methods.values())[place]) for place in (0, 3))
    caption = f"""
{len(own)} cases of {len(NETWORKS)} networks. Intervals are over networks and families; four families are few.
By family: the mean of estimated less true accuracy. The first row errs less than the fall of confidence,
by {interval(cases, fall - line)} points."""
    head = "; ".join(["estimate of accuracy; mean error; nine of ten below", *FAMILIES])
    print_table("Estimates without labels", caption, head, rows)
    return own


def print_networks(results: list[dict], cases: dict[str, np.ndarray], errors: np.ndarray) -> None:
    """Print the line of each network, and its errors [675]."""
    rows = []
    for network, name in enumerate(NETWORKS):
        inside = cases["network"] == network
        falls = (torch.from_numpy(cases[key][inside])[None] for key in ("confidence_fall", "accuracy_fall"))
        row = [name, f"{results[network]['corruption_images']:,}", f"{slope(cases, inside):.2f}"]
        row += [f"{spearman(*falls)[0]:.2f}", f"{100 * np.abs(errors[inside]).mean():.1f}"]
        rows.append([*row, nine_of_ten(errors[inside]), *biases(cases["family"][inside], errors[inside])])
    caption = "Each line is fitted without the family that it estimates; the slope is that of all 75 points."
    head = "network; images; slope; rank correlation; mean error; nine of ten below"
    print_table("The line of each network", caption, "; ".join([head, *FAMILIES]), rows)


def print_further(results: list[dict]) -> None:
    """Print how each network's own line, of all 75 points, does under three further corruptions."""
    rows = []
    for name in FURTHER:
        by_line, by_fall = [], []  # errors of each network and severity
        for stress in results:
            line = fit(stress)
            for severity in range(1, 6):
                record = stress["tests"][f"{name}/{severity}"]
                confidence_fall = line["clean_confidence"] - record["mean_confidence"]
                accuracy_fall = line["clean_accuracy"] - record["accuracy"]["value"]
                by_line.append(accuracy_fall - line["slope"] * confidence_fall)
                by_fall.append(accuracy_fall - confidence_fall)
        by_line, by_fall = np.array(by_line), np.array(by_fall)
        row = [name, f"{100 * np.abs(by_line).mean():.1f}", f"{100 * by_line.mean():+.1f}"]
        row += [nine_of_ten(by_line), f"{100 * np.abs(by_line[:5]).mean():.1f}"]
        rows.append([*row, f"{100 * np.abs(by_fall).mean():.1f}"])
    caption = """
Each network's own line, at five severities. Speckle noise and Gaussian blur have relatives among the fifteen,
saturation has none."""
    head = "corruption; mean error; estimate less truth; nine of ten below; mean error of the shipped network"
    head += "; of the fall of confidence itself"
    print_table("Three further corruptions, to which no line was fitted", caption, head, rows)


def print_superclasses(stress: dict) -> None:
    """Print how the shipped network's line does where only images of one superclass are left."""
    with np.load(RESULTS / "predictions.npz") as file:
        arrays = {key: file[key] for key in ("y_true", "y_pred", "confidence", "superclass_of")}
    line, group, errors = fit(stress), arrays["superclass_of"][arrays["y_true"]], []
    for one in np.unique(group):
        inside = group == one
        confidence = arrays["confidence"][inside].mean(dtype=np.float64)
        right = (arrays["y_true"] == arrays["y_pred"])[inside].mean()
        errors.append(read_line(line, confidence, int(inside.sum()))["value"] - right)
    errors = 100 * np.abs(errors)
    head, row = "superclasses; mean error; largest", [f"{errors.mean():.1f}", f"{errors.max():.1f}"]
    caption = "Clean images of one superclass at a time, by the shipped network's line of all 75 points."
    print_table("Other shares of the classes", caption, head, [[str(len(errors)), *row]])


def atc(scores: Tensor, right: Tensor, others: Tensor) -> Tensor:
    """Return the accuracy that ATC estimates for rows of other scores [T, M], float64 [T].

    The threshold is such that as large a share of the known scores [N] lies below it as answers are wrong,
    right bool [N]; the estimate is the share of the others that does not lie below it.
    """
    threshold = scores.sort().values[min(int((~right).sum()), len(scores) - 1)]
    return (others >= threshold).double().mean(dim=1)


def scores_of(logits: Tensor) -> dict[str, Tensor]:
    """Return the two scores of Garg et al. for logits [N, C], float64 [N] each."""
    probabilities = logits.double().softmax(dim=1)
    entropy = -(probabilities * probabilities.clamp(min=1e-300).log()).sum(dim=1)
    return {"confidence": probabilities.amax(dim=1), "negative entropy": -entropy}


def print_atc(classifier: Classifier, test: Dataset, num_images: int) -> None:
    """Let a network answer corrupted images, and compare its line with ATC."""
    sample = draw_sample(test, num_images)
    families = {family: [name for name in names if name in FIFTEEN] for family, names in FAMILIES.items()}
    names = [("clean", 0), *itertools.product(itertools.chain(*families.values()), range(1, 6))]
    temperature = fit_temperature(*classifier.validation)
    scores, right, tests = {}, [], {}  # in the order of lab.estimate.points, clean images before
    with Progress("corrupted images", len(names)) as progress:
        for done, (name, severity) in enumerate(names):
            progress.update(done, test=f"{name}/{severity}")
            images = corrupt(sample.images, name, severity) if severity else sample.images
            logits = classifier.predict(images)
            right.append(logits.argmax(dim=1) == sample.labels)
            for divisor, suffix in ((1, ""), (temperature, f" at temperature {temperature:.2f}")):
                for score, values in scores_of(logits / divisor).items():
                    scores.setdefault(score + suffix, []).append(values)
            confidence, accuracy = scores["confidence"][-1].mean().item(), right[-1].double().mean().item()
            tests[f"{name}/{severity}"] = {"mean_confidence": confidence, "accuracy": {"value": accuracy}}
    cases = all_cases([{"families": families, "tests": tests}])
    errors = {"line, family left out": left_out(cases, np.equal, by_line_of(cases))}
    errors["fall of confidence itself"] = cases["accuracy_fall"] - cases["confidence_fall"]
    for score, values in scores.items():
        estimates = atc(values[0], right[0], torch.stack(values[1:])).numpy()
        errors[f"ATC, {score}"] = estimates - cases["accuracy"]
    rows = []
    for method, values in errors.items():
        row = [method, f"{100 * np.abs(values).mean():.1f}", nine_of_ten(values)]
        rows.append([*row, *biases(cases["family"], values)])
    caption = f"{classifier.path.name}, {len(sample.labels):,} images; thresholds and clean point are theirs."
    head = "; ".join(["estimate; mean error; nine of ten below", *FAMILIES])
    print_table("Beside average thresholded confidence (ATC)", caption, head, rows)


def changed_sets(test: Dataset, num_images: int) -> dict[str, tuple[Tensor, Tensor]]:
    """Return images changed as none of the eighteen corruptions does, and sets that no fall tells of.

    {name: (images uint8 [N, 3, S, S], labels int64 [N])}; labels are -1 where no class is right.
    """
    sample = draw_sample(test, num_images)
    images, labels = sample.images, sample.labels
    small = transforms.resize(images, [images.shape[-1] // 2])
    sets = {f"{name}/{severity}": (corrupt(images, name, severity), labels) for name, severity in CHANGES}
    sets["rotated by 30 degrees"] = (transforms.rotate(images, 30, interpolation=BILINEAR), labels)
    sets["colours inverted"] = (255 - images, labels)
    sets["half as large, on black"] = (transforms.pad(small, images.shape[-1] // 4), labels)
    shapes = data.make_shapes(2, seed=0).images
    sets["other classes: coloured shapes"] = (shapes, torch.full((len(shapes),), -1))
    return sets


def print_changes(classifier: Classifier, test: Dataset, num_images: int) -> None:
    """Print what lab.estimate says about changed images, beside the truth."""
    stress, rows = read(RESULTS, "stress.json"), []
    if stress["checkpoint_sha256"] != classifier.digest:
        return  # of another network than the shipped one
    for name, (images, labels) in changed_sets(test, num_images).items():
        result = estimate(classifier, images, stress)
        value, low, high = (100 * result["accuracy"][key] for key in ("value", "low", "high"))
        right = (classifier.predict(images).argmax(dim=1) == labels).double().mean().item()
        inside = "yes" if low <= 100 * right <= high else "no"
        row = [name, f"{len(labels):,}", f"{100 * result['confidence']:.1f}"]
        rows.append([*row, f"{value:.0f} ({low:.0f} to {high:.0f})", f"{100 * right:.1f}", inside])
    caption = "By the line of all 75 points of results/stress.json."
    head = "pictures; images; mean confidence; estimate; truth; inside"
    print_table("What lab.estimate says of the shipped network", caption, head, rows)


def main() -> None:
    parser = CommandLine(__doc__)
    parser.add_argument("--checkpoint", type=Path, help="also compare with ATC, for this network")
    parser.add_argument("--data-dir", type=Path)
    parser.add_argument("--images", type=int, default=NUM_IMAGES)
    args = parser.parse_args()
    folders = [RESULTS if name == "shipped" else RESULTS / name for name in NETWORKS]
    results = [read(folder, "stress.json") for folder in folders]
    cases = all_cases(results)
    errors = print_methods(cases)
    print_networks(results, cases, errors)
    print_further(results)
    print_superclasses(results[0])
    if args.checkpoint:
        classifier = load_checkpoint(args.checkpoint, pick_device("auto"))
        _, test = load_data(classifier, None, args.data_dir)
        print_changes(classifier, test, args.images)
        print_atc(classifier, test, args.images)


if __name__ == "__main__":
    run_main(main)

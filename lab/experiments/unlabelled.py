"""How well does a fall of mean confidence tell the accuracy on images without labels?

    python lab/experiments/unlabelled.py
    python lab/experiments/unlabelled.py --checkpoint weights/resnet18_cifar100.pt --data-dir data

Prints Markdown tables from the stress.json of the networks in results/, see lab/estimate.py for the line. An
error is the estimated accuracy less the true one, in points. Intervals of 95 % come from 2,000 resamples of
the networks and of the four families of corruptions. With a checkpoint the network answers 1,000 images that
are changed in other ways, and 1,000 corrupted ones, for a comparison with ATC: Garg et al., "Leveraging
Unlabeled Data to Predict Out-of-Distribution Performance", 2022 (arXiv 2201.04234).
"""

import sys
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Generator, Tensor
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2 import functional as transforms

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import data
from data import Dataset
from lab.classifier import Classifier, load_checkpoint, load_data
from lab.estimate import estimate, points, slope_of
from lab.experiments.findings import NARROW, RESULTS, WITH_SMOOTHING, WITHOUT_SMOOTHING, print_table, read
from lab.reasons import spearman
from lab.stress import draw_sample
from lab.stress_tests.corruptions import CORRUPTIONS, FAMILIES, FIFTEEN, corrupt
from lab.support import CommandLine, Progress, pick_device, run_main
from metrics import fit_temperature

RECIPES = [["shipped"], WITH_SMOOTHING, WITHOUT_SMOOTHING, NARROW]  # networks of the same recipe
NETWORKS = [name for names in RECIPES for name in names]
PERSON, BILINEAR = 2, InterpolationMode.BILINEAR  # CIFAR-100's class baby
FURTHER = ("speckle_noise", "gaussian_blur", "saturate")  # to which no line was fitted
NUM_RESAMPLES, NUM_IMAGES = 2000, 1000


class Networks:
    """What the networks did under 75 corruptions, float64 [networks, 75], and without, [networks, 1]."""

    def __init__(self, results: list[dict]):
        rows = [points(stress) for stress in results]
        self.results, self.family = results, rows[0][0]
        self.families = list(results[0]["families"])
        self.confidence, self.accuracy = (torch.stack([row[k] for row in rows]) for k in (1, 2))
        clean = [stress["tests"]["clean/0"] for stress in results]
        self.clean_confidence = torch.tensor([[row["mean_confidence"]] for row in clean]).double()
        self.clean_accuracy = torch.tensor([[row["accuracy"]["value"]] for row in clean]).double()
        self.confidence_fall = self.clean_confidence - self.confidence
        self.accuracy_fall = self.clean_accuracy - self.accuracy

    def errors(self, estimate_fall: Callable, alike: Callable) -> Tensor:
        """Return the errors where the fall of accuracy is estimated, float64 [networks, 75].

        estimate_fall(confidence falls, accuracy falls, falls of confidence on the images) estimates it; it is
        given what it may be fitted on: networks for which alike(network, other) is not true, other families.
        """
        errors = torch.zeros_like(self.accuracy)
        for i, name in enumerate(NETWORKS):
            others = torch.tensor([not alike(name, other) for other in NETWORKS])
            for place in self.family.unique():
                inside = self.family == place
                known = (falls[others][:, ~inside] for falls in (self.confidence_fall, self.accuracy_fall))
                fall = estimate_fall(*known, self.confidence_fall[i, inside])
                errors[i, inside] = self.accuracy_fall[i, inside] - fall
        return errors

    def interval(self, errors: Tensor) -> str:
        """Return the mean absolute error in points with its interval over networks and families."""
        generator = Generator().manual_seed(0)
        num_families = len(self.families)
        sums = torch.stack([errors[:, self.family == place].abs().sum(1) for place in range(num_families)])
        counts = self.family.bincount().double()
        drawn = [
            torch.randint(count, (NUM_RESAMPLES, count), generator=generator)
            for count in (num_families, len(errors))
        ]
        families, networks = (
            torch.nn.functional.one_hot(places, places.shape[1]).sum(dim=1).double() for places in drawn
        )
        means = ((families @ sums) * networks).sum(1) / ((families @ counts) * networks.sum(1))
        low, high = (100 * means.quantile(torch.tensor([0.025, 0.975]).double())).tolist()
        return f"{100 * errors.abs().mean():.1f} ({low:.1f} to {high:.1f})"

    def biases(self, errors: Tensor) -> list[str]:
        """Return the mean error of each family, in points."""
        return [f"{100 * errors[..., self.family == place].mean():+.1f}" for place in self.family.unique()]


def nine_of_ten(errors: Tensor) -> str:
    """Return what nine of ten absolute errors do not exceed, in points."""
    return f"{100 * errors.abs().flatten().quantile(0.9, interpolation='higher'):.1f}"


def recipe_of(name: str) -> int:
    """Return the number of a network's recipe."""
    return next(k for k, names in enumerate(RECIPES) if name in names)


def own(name: str, other: str) -> bool:
    """Whether a line may not be fitted on the other network: only on this one."""
    return name != other


def by_line(confidence_falls: Tensor, accuracy_falls: Tensor, falls: Tensor) -> Tensor:
    """Estimate the fall of accuracy by the slope of what is known."""
    return slope_of(confidence_falls, accuracy_falls) * falls


def print_methods(networks: Networks) -> Tensor:
    """Print how far estimates err, 675 of them each; return the errors of each network's own line."""

    def itself(name: str, other: str) -> bool:
        return name == other

    methods = {
        "line of other networks, other families": networks.errors(by_line, itself),
        "line of other recipes, other families": networks.errors(
            by_line, lambda name, other: recipe_of(name) == recipe_of(other)
        ),
        "line of the network itself, other families": networks.errors(by_line, own),
        "fall of confidence itself (slope 1)": networks.errors(lambda x, y, falls: falls, own),
        "mean confidence itself": networks.confidence - networks.accuracy,
        "always the mean fall of other networks, other families": networks.errors(
            lambda x, y, falls: y.mean(), itself
        ),
    }
    rows = [
        [name, networks.interval(errors), nine_of_ten(errors), *networks.biases(errors)]
        for name, errors in methods.items()
    ]
    caption = (
        f"{networks.accuracy.numel()} cases of {len(NETWORKS)} networks. The interval is over networks and "
        "families; four families are few.\nBehind it, by family, the mean of estimated less true accuracy."
    )
    head = "estimate of accuracy; mean error; nine of ten below"
    print_table("Estimates without labels", caption, "; ".join([head, *networks.families]), rows)
    return methods["line of the network itself, other families"]


def print_networks(networks: Networks, errors: Tensor) -> None:
    """Print each network's own line, and means of the recipes; errors float64 [networks, 75]."""
    rows = []
    for i, name in enumerate(NETWORKS):
        fall, accuracy_fall = networks.confidence_fall[i], networks.accuracy_fall[i]
        row = [name, f"{networks.results[i]['corruption_images']:,}"]
        row += [f"{slope_of(fall, accuracy_fall):.2f}", f"{spearman(fall[None], accuracy_fall[None])[0]:.2f}"]
        rows.append([*row, f"{100 * errors[i].abs().mean():.1f}", nine_of_ten(errors[i])])
        rows[-1] += networks.biases(errors[i])
    caption = "Each line is fitted without the family that it estimates; the slope is that of all 75 points."
    head = "network; images; slope; rank correlation; mean error; nine of ten below"
    print_table("The line of each network", caption, "; ".join([head, *networks.families]), rows)


def print_further(networks: Networks) -> None:
    """Print how each network's own line, of all 75 points, does under three further corruptions."""
    errors = {}  # {method: float64 [networks, corruptions, severities]}
    for i, stress in enumerate(networks.results):
        tests = [[stress["tests"][f"{name}/{severity}"] for severity in range(1, 6)] for name in FURTHER]
        confidence = torch.tensor([[row["mean_confidence"] for row in rows] for rows in tests]).double()
        accuracy = torch.tensor([[row["accuracy"]["value"] for row in rows] for rows in tests]).double()
        slope = slope_of(networks.confidence_fall[i], networks.accuracy_fall[i])
        fall = networks.clean_confidence[i] - confidence
        estimates = {"line": networks.clean_accuracy[i] - slope * fall}
        estimates |= {"slope 1": networks.clean_accuracy[i] - fall, "confidence": confidence}
        for method, values in estimates.items():
            errors.setdefault(method, []).append(values - accuracy)
    errors, rows = {method: torch.stack(values) for method, values in errors.items()}, []
    for k, name in enumerate(FURTHER):
        line = errors["line"][:, k]
        row = [name, f"{100 * line.abs().mean():.1f}", f"{100 * line.mean():+.1f}", nine_of_ten(line)]
        row.append(f"{100 * line[0].abs().mean():.1f}, {100 * line[0].mean():+.1f}")
        rows.append(row + [f"{100 * errors[m][:, k].abs().mean():.1f}" for m in ("slope 1", "confidence")])
    caption = (
        "Each network's own line, at five severities. Speckle noise and Gaussian blur have relatives among "
        "the\nfifteen, saturation has none."
    )
    head = "corruption; mean error; mean of estimate less truth; nine of ten below; of the shipped network"
    head += "; mean error of slope 1; of mean confidence"
    print_table("Three further corruptions, to which no line was fitted", caption, head, rows)


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
    tests = [(name, severity) for name in (*FIFTEEN, *FURTHER) for severity in range(1, 6)]
    temperature = fit_temperature(*classifier.validation)
    scores, right = {}, []  # of the clean images first
    with Progress("corrupted images", len(tests)) as progress:
        for done, (name, severity) in enumerate([("clean", 0), *tests]):
            progress.update(done, test=f"{name}/{severity}")
            images = corrupt(sample.images, name, severity) if severity else sample.images
            logits = classifier.predict(images)
            right.append(logits.argmax(dim=1) == sample.labels)
            for divisor, suffix in ((1, ""), (temperature, f" at temperature {temperature:.2f}")):
                for score, values in scores_of(logits / divisor).items():
                    scores.setdefault(score + suffix, []).append(values)
    right = torch.stack(right)
    truth = right.double().mean(dim=1)
    confidence = torch.stack(scores["confidence"]).mean(dim=1)
    falls, accuracy_falls = confidence[0] - confidence[1:], truth[0] - truth[1:]
    fitted = torch.tensor([name in FIFTEEN for name, _ in tests])
    families = list(FAMILIES)
    family = torch.tensor([families.index(CORRUPTIONS[name].family) for name, _ in tests])
    errors = {"line, family left out": accuracy_falls.clone()}
    for place in family.unique():
        inside, others = family == place, (family != place) & fitted
        slope = slope_of(falls[others], accuracy_falls[others])
        errors["line, family left out"][inside] -= slope * falls[inside]
    errors["fall of confidence itself"] = accuracy_falls - falls
    for score, values in scores.items():
        values = torch.stack(values)
        errors[f"ATC, {score}"] = atc(values[0], right[0], values[1:]) - truth[1:]
    rows = []
    for method, values in errors.items():
        row = [method, *(f"{100 * values[m].abs().mean():.1f}" for m in (fitted, ~fitted))]
        row += [nine_of_ten(values[fitted])]
        rows.append(row + [f"{100 * values[fitted & (family == f)].mean():+.1f}" for f in family.unique()])
    caption = f"{classifier.path.name}, {len(sample.labels):,} images; thresholds and clean point are theirs."
    head = "; ".join(["estimate; mean error, fifteen; three further; nine of ten below", *families])
    print_table("Beside average thresholded confidence (ATC)", caption, head, rows)


def changed_sets(test: Dataset, num_images: int) -> dict[str, tuple[Tensor, Tensor]]:
    """Return images changed as none of the eighteen corruptions does, and sets that no fall tells of.

    {name: (images uint8 [N, 3, S, S], labels int64 [N])}; labels are -1 where no class is right.
    """
    sample = draw_sample(test, num_images)
    images, labels = sample.images, sample.labels
    small = transforms.resize(images, [images.shape[-1] // 2])
    sets = {name: (corrupt(images, name, 3), labels) for name in FURTHER}
    sets["rotated by 30 degrees"] = (transforms.rotate(images, 30, interpolation=BILINEAR), labels)
    sets["colours inverted"] = (255 - images, labels)
    sets["half as large, on black"] = (transforms.pad(small, images.shape[-1] // 4), labels)
    people = torch.nonzero(test.superclass_of[test.labels] == test.superclass_of[PERSON]).flatten()
    sets["five classes only: people"] = (test.images[people], test.labels[people])
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
    caption = "By the line of all 75 points of results/stress.json; corruptions at severity 3."
    head = "pictures; images; mean confidence; estimate; truth; inside"
    print_table("What lab.estimate says of the shipped network", caption, head, rows)


def main() -> None:
    parser = CommandLine(__doc__)
    parser.add_argument("--checkpoint", type=Path, help="also compare with ATC, for this network")
    parser.add_argument("--data-dir", type=Path)
    parser.add_argument("--images", type=int, default=NUM_IMAGES)
    args = parser.parse_args()
    networks = Networks(
        [read(RESULTS if name == "shipped" else RESULTS / name, "stress.json") for name in NETWORKS]
    )
    errors = print_methods(networks)
    print_networks(networks, errors)
    print_further(networks)
    if args.checkpoint:
        classifier = load_checkpoint(args.checkpoint, pick_device("auto"))
        _, test = load_data(classifier, None, args.data_dir)
        print_changes(classifier, test, args.images)
        print_atc(classifier, test, args.images)


if __name__ == "__main__":
    run_main(main)

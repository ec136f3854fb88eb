"""How well do numbers without labels tell the accuracy on changed images? lab.estimate beside its rivals.

    python lab/experiments/unlabelled.py measure --checkpoint weights/resnet18_cifar100.pt --out shipped.json
    python lab/experiments/unlabelled.py tables shipped.json narrow.json ...
    python lab/experiments/unlabelled.py changes --checkpoint weights/resnet18_cifar100.pt

`measure` lets a network answer 400 test images, clean and under the fifteen corruptions at five severities,
and goes on where it was interrupted; it takes the options of lab.stress for what to examine. `tables` fits
each number on one half of the images without a family of corruptions, and reads it at this family on the
other half, then the other way round. `changes` asks lab.estimate about images changed as no corruption does.
Markdown is printed; an error is the estimated less the true accuracy, in points. Intervals of 95 % come from
2,000 resamples of the networks and of the families.

ATC: Garg et al. 2022 (arXiv 2201.04234), by entropy; a direct estimate. Nuclear norm: Deng et al. 2023 (arXiv
2302.01094). COT: Lu et al. 2023 (arXiv 2302.05018), which needs SciPy here. Both are fitted like the others,
as a line through the clean point.
"""

import argparse
import itertools
import math
import sys
import time
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2 import functional as transforms

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import data
from data import Dataset, UserError
from lab import estimate
from lab.answers import tests_of
from lab.corruptions import FAMILIES, FIFTEEN, corrupt
from lab.experiments.findings import RESULTS, print_table
from lab.folder import read_json, write_json
from lab.network import command_line, from_options, load_images, logits_of, progress, run
from lab.stress import stratified_sample

NUM_IMAGES, COUNTS, NUM_RESAMPLES = 400, (50, 100, 200), 2000
CHANGES = ["speckle_noise/3", "speckle_noise/5", "gaussian_noise/5", "gaussian_blur/3", "saturate/3"]
METHODS = {  # the numbers of which a fall is fitted to the fall of accuracy, see falls
    "line of confidence": ["confidence"],
    "nuclear norm": ["nuclear_norm"],
    "COT": ["transport"],
    "plane of confidence and same answer": ["confidence", "same_answer"],
}


# ---- Numbers of answers without labels ---------------------------------------------------------------------


def entropies(probabilities: Tensor) -> Tensor:
    """Return the entropy of each row, float64 [N]."""
    return -(probabilities * probabilities.clamp(min=1e-300).log()).sum(dim=1)


def transport(probabilities: Tensor, labels: Tensor) -> float:
    """Return the mean probability of labels that the answers share among them as cheaply as possible.

    labels int64 [M], M from N on, have the shares of the clean images. 1 less this is the distance of optimal
    transport between answers and labels of Lu et al.: e_y is 1 - p_y away from p in the largest coordinate.
    """
    from scipy.optimize import linear_sum_assignment

    times = len(labels) // len(probabilities)  # each answer takes so many labels
    rows = probabilities.repeat_interleave(times, dim=0)
    costs = 1 - rows[:, labels[: len(rows)]].numpy()
    return 1 - costs[linear_sum_assignment(costs)].mean().item()


def threshold(scores: Tensor, right: Tensor) -> float:
    """Return ATC's threshold: as large a share of the scores [N] is above it as answers are wrong."""
    ordered = scores.sort().values
    return ordered[min(int(right.sum()), len(scores)) - 1].item() if right.any() else -math.inf


def numbers_of(probabilities: Tensor, right: Tensor, labels: Tensor, limit: float) -> dict[str, float]:
    """Return the numbers of answers float64 [N, C], and their `accuracy` by right, bool [N].

    labels int64 [M]: of other images, for their shares; limit: of ATC.
    """
    count, num_classes = probabilities.shape
    scale = math.sqrt(count * min(count, num_classes))
    return {
        "accuracy": right.double().mean().item(),
        "confidence": probabilities.amax(dim=1).mean().item(),
        "same_answer": estimate.same_answer(probabilities)[0],
        "nuclear_norm": torch.linalg.matrix_norm(probabilities, "nuc").item() / scale,
        "transport": transport(probabilities, labels),
        "atc": (entropies(probabilities) <= limit).double().mean().item(),
    }


def measure(args: argparse.Namespace) -> None:
    """Measure both halves of clean and corrupted images for themselves; save after each test.

    A test has the numbers of 50, 100 and all images of both halves, {"50": {...}}. ATC's threshold and the
    labels of COT are those of the clean images of the other half.
    """
    network, out = from_options(args)  # that of --out
    _, test, _ = load_images(network, args)
    index = stratified_sample(test.labels, args.images)
    sample = network.identity | {"dataset": test.name, "images": len(index)}
    families = {family: [n for n in names if n in FIFTEEN] for family, names in FAMILIES.items()}
    old = read_json(out) if out.is_file() else {}
    if old and any(old.get(key) != value for key, value in sample.items()):
        raise UserError(f"{out} is of another network or other images: give another --out")
    results = sample | {"families": families, "tests": old.get("tests", {})}
    images, labels, started = test.images[index], test.labels[index], time.monotonic()
    generator = torch.Generator().manual_seed(0)
    order = torch.randperm(len(index), generator=generator)
    by_class = order[labels[order].argsort(stable=True)]  # so that both halves have the same shares
    mixed = torch.randperm(len(index) // 2, generator=generator)
    halves, limits = [by_class[0::2][mixed], by_class[1::2][mixed]], []
    tests = ["clean/0", *tests_of(FIFTEEN)]
    for done, name in enumerate(tests):
        if name in results["tests"] and limits:
            continue
        progress(done, len(tests), started, f"{name}, test")
        change, severity = name.split("/")
        logits = logits_of(network, corrupt(images, change, int(severity)))
        probabilities, right = logits.double().softmax(dim=1), logits.argmax(dim=1) == labels
        if name == "clean/0":  # always first
            limits = [threshold(entropies(probabilities[half]), right[half]) for half in halves]
        rows = []
        for half, other, limit in zip(halves, halves[::-1], limits[::-1], strict=True):
            of_counts = {}
            for count in sorted({*(c for c in COUNTS if c < len(half)), len(half)}):
                part = half[:count]
                of_counts[str(count)] = numbers_of(probabilities[part], right[part], labels[other], limit)
            rows.append(of_counts)
        results["tests"][name] = rows
        write_json(out, results)


# ---- Errors of the estimates -------------------------------------------------------------------------------


def falls(rows: list[dict], clean: dict, names: list[str]) -> Tensor:
    """Return how far numbers fall below clean ones, float64 [T, K]; how far the log of same_answer rises."""
    columns = []
    for name in names:
        values = torch.tensor([row[name] for row in rows], dtype=torch.float64)
        columns.append((values / clean[name]).log() if name == "same_answer" else clean[name] - values)
    return torch.stack(columns, dim=1)


def errors_of(results: dict, count: int | None = None) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
    """Return family int64 [2 T], fall of confidence and errors by method, float64 [2 T], of both halves.

    A number is fitted on all images of a half without a family, and read at this family on `count` images of
    the other half, or all; the true accuracy is that of all images of this half.
    """
    places = [place for place, names in enumerate(results["families"].values()) for _ in tests_of(names)]
    names = tests_of(itertools.chain(*results["families"].values()))
    family, parts = torch.tensor(places), []
    for fitted, other in ((0, 1), (1, 0)):
        whole = str(max(map(int, results["tests"]["clean/0"][0])))
        rows = [results["tests"][name][fitted][whole] for name in names]
        truth = [results["tests"][name][other][whole]["accuracy"] for name in names]
        read_at = [results["tests"][name][other][str(count or whole)] for name in names]
        clean, truth = results["tests"]["clean/0"][fitted][whole], torch.tensor(truth, dtype=torch.float64)
        accuracy_falls = falls(rows, clean, ["accuracy"])[:, 0]
        errors = {}
        for method, numbers in METHODS.items():
            here, there, errors[method] = falls(rows, clean, numbers), falls(read_at, clean, numbers), -truth
            for one in family.unique():
                slopes = estimate.slopes_of(here[family != one], accuracy_falls[family != one])
                fall = there[family == one] @ slopes
                errors[method][family == one] += (clean["accuracy"] - fall).clamp(0, 1)
        errors["ATC by entropy"] = torch.tensor([row["atc"] for row in read_at], dtype=torch.float64) - truth
        fall = falls(read_at, clean, ["confidence"])[:, 0]
        errors["the fall of confidence itself"] = (clean["accuracy"] - fall).clamp(0, 1) - truth
        parts.append((fall, errors))
    (first, errors), (second, others) = parts
    errors = {method: torch.cat([errors[method], others[method]]) for method in errors}
    return family.repeat(2), torch.cat([first, second]), errors


def mean_error(families: list[Tensor], errors: list[Tensor]) -> str:
    """Return the mean of absolute errors, lists of one tensor a network, with its interval, in points."""
    generator = np.random.default_rng(0)
    num_families = int(families[0].max()) + 1
    cells = np.zeros((2, len(errors), num_families))  # sums and counts
    for network, (family, values) in enumerate(zip(families, errors, strict=True)):
        np.add.at(cells[0, network], family.numpy(), values.abs().numpy())
        np.add.at(cells[1, network], family.numpy(), 1)
    means = []
    for _ in range(NUM_RESAMPLES):
        networks = generator.integers(len(errors), size=len(errors))
        drawn = cells[:, networks][:, :, generator.integers(num_families, size=num_families)]
        means.append(drawn[0].sum() / drawn[1].sum())
    low, high = 100 * np.quantile(means, [0.025, 0.975])
    return f"{100 * cells[0].sum() / cells[1].sum():.1f} ({low:.1f} to {high:.1f})"


def nine_of_ten(errors: Tensor) -> str:
    """Return what nine of ten absolute errors do not exceed, in points; "" without any."""
    if not len(errors):
        return ""
    return f"{100 * errors.abs().quantile(0.9, interpolation='higher').item():.1f}"


def points_of(errors: Tensor, is_signed: bool = False) -> str:
    """Return the mean of absolute, or of signed errors in points; "" without any."""
    if not len(errors):
        return ""
    return f"{100 * errors.mean().item():+.1f}" if is_signed else f"{100 * errors.abs().mean().item():.1f}"


def tables(args: argparse.Namespace) -> None:
    """Print the methods in all networks, in each network, at few images, at small falls, and the warning."""
    results = [read_json(path) for path in args.files]
    measured = [set(one["tests"]["clean/0"][0]) for one in results]
    few_counts = [count for count in COUNTS if str(count) in set.intersection(*measured)]
    names = [path.stem for path in args.files]
    families, confidence_falls, errors = zip(*map(errors_of, results), strict=True)
    few = {count: [errors_of(one, count)[2] for one in results] for count in few_counts}
    rows = []
    for method in errors[0]:
        own = [of_network[method] for of_network in errors]
        together, family = torch.cat(own), torch.cat(families)
        row = [method, mean_error(families, own), nine_of_ten(together)]
        row += [points_of(together[family == place], is_signed=True) for place in family.unique()]
        row += [points_of(torch.cat([one[method] for one in some])) for some in few.values()]
        rows.append([*row, *(points_of(values) for values in own)])
    head = ["number; mean error; nine of ten below", *results[0]["families"]]
    head += [f"at {count}" for count in few] + names
    caption = f"""
{len(results)} networks, 75 corruptions, two halves of their images; a family is left out of each fit. By
family: the mean of estimated less true accuracy. Last, mean errors at so many images and of each network."""
    print_table("Estimates without labels", caption, "; ".join(head), rows)

    fall, small = torch.cat(confidence_falls), torch.cat(confidence_falls).abs() < 0.05
    line, plane = (torch.cat([one[m] for one in errors]) for m in ("line of confidence", list(METHODS)[-1]))
    itself = torch.cat([one["the fall of confidence itself"] for one in errors])
    rows = []
    for label, inside in {"below 5 points": small, "5 points and more": ~small}.items():
        row = [label, str(int(inside.sum()))]
        rows.append([*row, *(points_of(some[inside]) for some in (line, plane, itself))])
    head = "fall of confidence; cases; line; plane; the fall itself"
    print_table("Small falls and large ones", "Mean errors.", head, rows)

    warned, rows = line - plane > estimate.APART, []
    for label, inside in {"warns": warned, "does not": ~warned}.items():
        over = (line[inside] > 0.1).double().mean().item() if inside.any() else math.nan
        row = [label, str(int(inside.sum())), points_of(line[inside], is_signed=True)]
        rows.append([*row, f"{100 * over:.0f} %", points_of(plane[inside]), nine_of_ten(plane[inside])])
    caption = (
        "Where the line says over 5 points more than the plane, lab.estimate says to label some pictures."
    )
    head = (
        "lab.estimate; cases; line less truth; line over 10 points too high; error of the plane; nine of ten"
    )
    print_table("The warning", f"{caption} {len(fall):,} cases.", head, rows)


# ---- Changes that are like no corruption -------------------------------------------------------------------


def changed_sets(test: Dataset, num_images: int) -> dict[str, tuple[Tensor, Tensor]]:
    """Return images changed as none of the fifteen corruptions does, and sets that no number tells of.

    {name: (images uint8 [N, 3, S, S], labels int64 [N])}; labels are -1 where no class is right.
    """
    index = stratified_sample(test.labels, num_images)
    images, labels, side = test.images[index], test.labels[index], test.images.shape[-1]
    sets = {"clean": (images, labels)}
    for name in CHANGES:
        sets[name] = (corrupt(images, name.split("/")[0], int(name[-1])), labels)
    turned = transforms.rotate(images, 30, interpolation=InterpolationMode.BILINEAR)
    small = transforms.pad(transforms.resize(images, [side // 2]), side // 4)
    sets |= {"rotated by 30 degrees": (turned, labels), "colours inverted": (255 - images, labels)}
    sets["half as large, on black"] = (small, labels)
    shapes = data.make_shapes(2, seed=0).images
    sets["other classes: coloured shapes"] = (shapes, torch.full((len(shapes),), -1))
    if test.superclass_of is not None:
        group = test.superclass_of[test.labels]
        for g in group.unique().tolist():
            inside = group == g
            for change in ("clean/0", "fog/3"):
                shown = corrupt(test.images[inside], change.split("/")[0], int(change[-1]))
                sets[f"superclass {test.superclass_names[g]}, {change}"] = (shown, test.labels[inside])
    return sets


def changes(args: argparse.Namespace) -> None:
    """Print what lab.estimate says about changed images, beside the truth."""
    network, _ = from_options(args)
    _, test, _ = load_images(network, args)
    stress = estimate.read_stress((args.stress or RESULTS / "shipped") / "stress.json", network)
    rows, groups = [], {}
    for name, (images, labels) in changed_sets(test, args.images).items():
        logits = logits_of(network, images)
        result = estimate.estimate(logits.double().softmax(dim=1), stress)
        value, low, high = (100 * result["accuracy"][key] for key in ("value", "low", "high"))
        right = 100 * (logits.argmax(dim=1) == labels).double().mean().item()
        row = [100 * result["alone"] - right, value - right, result["label"]]
        if name.startswith("superclass"):
            groups.setdefault(name.split(", ")[1], []).append(row)
            continue
        row = [name, f"{100 * result['confidence']:.1f}", f"{result['classes']:.0f}"]
        row += [f"{100 * result['alone']:.0f}", f"{value:.0f} ({low:.0f} to {high:.0f})", f"{right:.1f}"]
        rows.append([*row, "warns" if result["label"] else "", "yes" if low <= right <= high else "no"])
    head = "pictures; mean confidence; classes; line; plane; truth; warning; inside"
    print_table("What lab.estimate says of changed images", "In percent.", head, rows)
    rows = []
    for change, some in groups.items():
        line, plane, warned = (torch.tensor(column) for column in zip(*some, strict=True))
        silent = ((plane.abs() > 10) & ~warned).sum().item()
        row = [change, str(len(some)), f"{line.abs().mean():.1f}", f"{plane.abs().mean():.1f}"]
        rows.append([*row, f"{int(warned.sum())}", f"{silent}"])
    head = (
        "one superclass at a time; sets; error of the line; of the plane; warned; plane over 10 off, silent"
    )
    print_table("Other shares of the classes", "Errors in points.", head, rows)


def main(argv: list[str] | None = None) -> int:
    """Run one of the three; return the exit code."""
    parser = command_line(__doc__, images=True)
    parser.add_argument("what", choices=["measure", "tables", "changes"])
    parser.add_argument("files", type=Path, nargs="*", metavar="FILE", help="for tables: what measure wrote")
    parser.add_argument("--images", type=int, default=NUM_IMAGES, metavar="N", help="an even number")
    parser.add_argument("--stress", type=Path, metavar="DIR", help="for changes: folder of stress.json")
    commands = {"measure": measure, "tables": tables, "changes": changes}
    return run(parser, argv, lambda args: commands[args.what](args))


if __name__ == "__main__":
    sys.exit(main())

"""Where do own statistics repair answers, and where do they ruin them? Controls, in the shipped network.

    python lab/experiments/own_statistics.py [--data-dir data]

Takes test images of CIFAR-100, of all classes in equal parts where nothing else is said. Prints a Markdown
table with the accuracy as trained and by own statistics, in percent, and the paired difference with its
interval, in points: over the images, or by Student's t over the groups of images that are answered apart.
"""

import sys
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import data
from lab.corruptions import FIFTEEN, corrupt
from lab.experiments.alarm import UNLIKE, mixed
from lab.experiments.findings import load_test, print_table
from lab.intervals import in_points, mean_interval, t_quantile
from lab.network import SHIPPED, Network, load_checkpoint, logits_of, own_statistics
from lab.stress import stratified_sample

SOME = ("gaussian_noise", "defocus_blur", "fog", "contrast", "jpeg_compression")  # of all four families
SHOWN = 6  # of the changes unlike the fifteen
HEAD = "pictures; batches; number; right; own statistics; difference"
Group = tuple[Tensor, Tensor]  # images uint8 [N, 3, 32, 32] and labels int64 [N], answered apart from others


def controls(test: data.Dataset) -> Iterator[tuple]:
    """Yield the title of each control, its groups, and the size of its batches if that is not 100."""

    def group(index: Tensor, name: str) -> Group:
        return corrupt(test.images[index], name, 5), test.labels[index]

    fifth, some, many = (stratified_sample(test.labels, count) for count in (200, 400, 1000))
    for size in (8, 32, 100):
        yield "clean", [group(some, "clean")], size
    yield "five corruptions, each alone", [group(fifth, name) for name in SOME]
    mixtures = {"the five, mixed": SOME, "all fifteen, mixed": FIFTEEN}
    for title, names in (mixtures | {"half clean, half fog": ("clean", "fog")}).items():
        yield title, [(mixed(test.images[some], names, 5), test.labels[some])]
    parts = [group(some[k :: len(SOME)], name) for k, name in enumerate(SOME)]  # as `mixed` takes them
    yield "the five, mixed, sorted by corruption first", parts
    superclass = test.superclass_of[test.labels]
    several = [torch.nonzero(superclass == k).flatten()[::4] for k in range(20)]
    ten = torch.nonzero(test.labels % 10 == 0).flatten()[::4]
    by_class = many[test.labels[many].argsort(stable=True)].split(100)
    for name in ("clean", "fog"):
        yield f"{name}, each of twenty superclasses", [group(index, name) for index in several]
        yield f"{name}, ten classes", [group(ten, name)]
        yield f"{name}, sorted by class", [group(index, name) for index in by_class]
    for title in list(UNLIKE)[:SHOWN]:
        yield title, [(UNLIKE[title](test.images[some]), test.labels[some])]


def row_of(network: Network, title: str, groups: list[Group], size: int = 100) -> list[str]:
    """Return the row of a control, answered in batches of a size."""
    ways = [[logits_of(network, images).argmax(dim=1) == y for images, y in groups]]
    ways.append([own_statistics(network.model, images, size).argmax(dim=1) == y for images, y in groups])
    rights = [torch.cat(way).double() for way in ways]
    difference = mean_interval(rights[1] - rights[0])
    if len(groups) > 1:  # of equal sizes
        gains = [b.double().mean() - a.double().mean() for a, b in zip(*ways, strict=True)]
        difference = mean_interval(gains, t_quantile(len(groups) - 1))
    shares = [f"{100 * right.mean():.1f}" for right in rights]
    return [title, str(size), f"{len(rights[0]):,}", *shares, in_points(difference)]


def main() -> None:
    network, test = load_checkpoint(SHIPPED), load_test(__doc__)
    rows = [row_of(network, *control) for control in controls(test)]
    print_table("Controls of own statistics", HEAD, "Corruptions are of severity 5.", rows)


if __name__ == "__main__":
    main()

"""Where do own statistics repair answers, and where do they ruin them? Controls, in the shipped network.

    python lab/experiments/own_statistics.py [--data-dir data]

Takes test images of CIFAR-100, of all classes in equal parts where nothing else is said. Prints a Markdown
table with the accuracy as it is and by own statistics, in percent, and the paired difference with its
interval, in points. lab.stress has the fifteen corruptions one by one. Takes six minutes on one core.
"""

import argparse
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import data
from lab.answers import in_points, mean_interval
from lab.corruptions import FIFTEEN, corrupt
from lab.experiments.alarm import UNLIKE, mixed
from lab.network import SHIPPED, Network, load_checkpoint, logits_of, own_statistics
from lab.stress import stratified_sample

SOME = ("gaussian_noise", "defocus_blur", "fog", "contrast", "jpeg_compression")  # of all four families
SIZES = (8, 16, 32, 50, 100)  # of batches; the last where nothing else is said
SHOWN = 6  # of the changes unlike the fifteen
Group = tuple[Tensor, Tensor]  # images uint8 [N, 3, 32, 32] and labels int64 [N], answered apart from others


def controls(test: data.Dataset) -> Iterator[tuple[str, list[Group], tuple[int, ...]]]:
    """Yield the title of each control, its groups, and the sizes of the batches."""

    def group(index: Tensor, change: Callable) -> Group:
        return change(test.images[index]), test.labels[index]

    fifth, some, many = (stratified_sample(test.labels, count) for count in (200, 400, 1000))
    changes = {"clean": lambda images: images, "fog": lambda images: corrupt(images, "fog", 5)}
    yield "clean", [group(some, changes["clean"])], SIZES
    groups = [group(fifth, lambda images, name=name: corrupt(images, name, 5)) for name in SOME]
    yield "five corruptions, each alone", groups, SIZES
    mixtures = {
        "the five, mixed": SOME,
        "all fifteen, mixed": FIFTEEN,
        "half clean, half fog": ("clean", "fog"),
    }
    for title, names in mixtures.items():
        yield title, [group(some, lambda images, names=names: mixed(images, names, 5))], SIZES[-1:]
    superclasses = [
        torch.nonzero(test.superclass_of[test.labels] == k).flatten()[::4] for k in (0, 5, 10, 15)
    ]
    ten = torch.nonzero(test.labels % 10 == 0).flatten()[::4]
    parts = many[test.labels[many].argsort(stable=True)].split(100)
    for title, change in changes.items():
        several = [group(index, change) for index in superclasses]
        yield f"{title}, one superclass, four times", several, SIZES[-1:]
        yield f"{title}, ten classes", [group(ten, change)], SIZES[-1:]
        yield f"{title}, sorted by class", [group(index, change) for index in parts], SIZES[-1:]
    for title in list(UNLIKE)[:SHOWN]:
        yield title, [group(some, UNLIKE[title])], SIZES[-1:]


def rows_of(network: Network, title: str, groups: list[Group], sizes: tuple[int, ...]) -> Iterator[list[str]]:
    """Yield the rows of a control, one for each size of the batches."""
    labels = torch.cat([labels for _, labels in groups])
    plain = torch.cat([logits_of(network, images) for images, _ in groups]).argmax(dim=1) == labels
    for size in sizes:
        logits = torch.cat([own_statistics(network.model, images, size) for images, _ in groups])
        own = logits.argmax(dim=1) == labels
        shares = [f"{100 * right.double().mean():.1f}" for right in (plain, own)]
        difference = in_points(mean_interval(own.double() - plain.double()))
        yield [title, str(size), f"{len(labels):,}", *shares, difference]


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--data-dir", default="data", help="where CIFAR-100 lies")
    _, test = data.load("cifar100", parser.parse_args().data_dir)
    network = load_checkpoint(SHIPPED)
    print("| pictures (corruptions of severity 5) | batches | number | right | own statistics | difference |")
    print(6 * "| --- " + "|")
    for control in controls(test):
        for cells in rows_of(network, *control):
            print(f"| {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()

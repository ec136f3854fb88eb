"""What are forty labels worth beside the second opinion, do their intervals hold, and does the alarm ring?

    python lab/experiments/labels.py [--checkpoint weights/resnet18_cifar100.pt] [--data-dir data]

A network, see lab/network.py, answers a thousand of its test images and 21 folders of 200. From each folder
forty are drawn 500 times, with replacement, as from a folder of very many. Prints a Markdown table, in
percent. Takes three minutes on one core with the shipped network.
"""

import sys
from argparse import Namespace
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import data
from lab import estimate
from lab.corruptions import FIFTEEN
from lab.experiments.alarm import UNLIKE, mixed
from lab.experiments.findings import print_table
from lab.network import command_line, from_options, load_images, run

HEAD = "folders; number; points lost; first bell; any bell; interval holds, least; worth, as it says"


def folders(test: data.Dataset, generator: torch.Generator) -> Iterator[tuple[str, Tensor, Tensor]]:
    """Yield the kind of each folder, its images uint8 [200, 3, S, S], and their labels."""
    plan = [("one corruption", [FIFTEEN[2 * k]], (1, 3, 5)[k % 3]) for k in range(8)]
    plan += [("mixed", names, severity) for names in (FIFTEEN, FIFTEEN[::3]) for severity in (3, 5)]
    plan += [("few classes", [name], 3) for name in ("clean", "clean", "clean", "defocus_blur")]
    changes = [(kind, partial(mixed, names=names, severity=s)) for kind, names, s in plan]
    changes += [("unlike", UNLIKE[name]) for name in list(UNLIKE)[::2]]
    dead = (torch.arange(test.images.shape[-1]) % 4 > 0).byte()
    for kind, change in [*changes, ("dead columns", lambda images: images * dead)]:
        classes = torch.randperm(len(test.class_names), generator=generator)
        classes = classes[: max(2, len(classes) // 20)] if kind == "few classes" else classes
        index = torch.nonzero(torch.isin(test.labels, classes)).flatten()
        index = index[torch.randperm(len(index), generator=generator)[:200]]
        yield kind, change(test.images[index]), test.labels[index]


def numbers_of(result: dict, labels: Tensor, clean: dict) -> list[float]:
    """Return what the table has of a folder; for result and clean see estimate."""
    right, rows = result["answers"] == labels, []
    accuracy = right.double().mean().item()
    for index in torch.randint(len(labels), (500, 40), generator=torch.Generator().manual_seed(0)):
        row = estimate.assisted_share(right[index], result["second_opinion"], index)
        errors = [(value - accuracy) ** 2 for value in (row["value"], right[index].double().mean().item())]
        rows.append([row["low"] <= accuracy <= row["high"], row["worth"] / 40, *errors])
    holds, says, error, alone = torch.tensor(rows).double().mean(dim=0).tolist()
    bells = result["fall"] > estimate.LARGEST_FALL, result["alarm"]
    return [clean["accuracy"]["value"] - accuracy, *bells, holds, says, alone / max(error, 1e-9)]


def command(args: Namespace) -> None:
    network, _ = from_options(args)
    _, test, _ = load_images(network, args)
    index = torch.randperm(len(test.labels), generator=torch.Generator().manual_seed(0))[:1000]
    clean, rows = estimate.estimate(network, test.images[index]), {}
    clean |= estimate.own_temperature(network, test.images[index], test.labels[index])
    clean["accuracy"] = {"value": (clean["answers"] == test.labels[index]).double().mean().item()}
    for kind, images, labels in folders(test, torch.Generator().manual_seed(1)):
        result = estimate.estimate(network, images, clean=clean)
        rows.setdefault(kind, []).append(numbers_of(result, labels, clean))
    table = []
    for kind, several in rows.items():
        lost, first, either, holds, says, worth = torch.tensor(several).double().T
        cells = [kind, str(len(lost)), f"{100 * lost.mean():.0f}"]
        cells += [f"{bell.sum():.0f}" for bell in (first, either)]
        cells.append(f"{100 * holds.mean():.1f}, {100 * holds.min():.1f}")
        table.append([*cells, f"{worth.mean():.2f}, {says.mean():.2f}"])
    print_table(f"Forty labels, {network.name}", "Worth is so many times forty labels alone.", HEAD, table)


if __name__ == "__main__":
    sys.exit(run(command_line(__doc__, images=True), None, command))

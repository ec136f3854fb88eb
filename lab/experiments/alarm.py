"""Does the alarm of lab.estimate ring where accuracy falls, and how far is mean confidence off there?

    python lab/experiments/alarm.py [--data-dir data]

The shipped network answers folders of 200 test images of CIFAR-100: clean, under one corruption, under all
fifteen or five that are drawn in equal parts, or changed otherwise. Takes three minutes on one core.
"""

import argparse
import sys
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F
from torchvision.transforms.functional import rotate

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import data
from lab.answers import tests_of
from lab.corruptions import FIFTEEN, corrupt
from lab.estimate import LARGEST_FALL, estimate
from lab.experiments.findings import RESULTS, print_table, read
from lab.network import SHIPPED, load_checkpoint

HEAD = "folders; how many; alarm, lost over ten points; alarm, lost under five; mean confidence; its line"
UNLIKE = {  # changes of uint8 images [N, 3, 32, 32]
    "moved by a quarter, on black": lambda images: F.pad(images, (8, -8, 8, -8)),
    "half as large, on black": lambda images: F.pad(F.avg_pool2d(images.float(), 2).byte(), (8, 8, 8, 8)),
    "rotated by 30 degrees": lambda images: rotate(images, 30),
    "upside down": lambda images: images.flip(2),
    "colours inverted": lambda images: 255 - images,
    "half as bright": lambda images: images // 2,
    "mirrored": lambda images: images.flip(3),
    "red and blue exchanged": lambda images: images.flip(1),
}


def mixed(images: torch.Tensor, names: list[str], severity: int) -> torch.Tensor:
    """Return uint8 images [N, 3, S, S] under corruptions in turn, so that each gets an equal part."""
    changed = images.clone()
    for k, name in enumerate(names):
        changed[k :: len(names)] = corrupt(images[k :: len(names)], name, severity)
    return changed


def folders(generator: torch.Generator) -> list[tuple]:
    """Return the kind of each folder, and what changes its pictures, a function of uint8 images."""
    plan = [("clean", torch.clone)] * 10
    for severity in (1, 3, 5):
        drawn = [[FIFTEEN[k] for k in torch.randperm(15, generator=generator)[:5]] for _ in range(5)]
        for names in [*([name] for name in FIFTEEN), FIFTEEN, *drawn]:
            kind = f"{'mixed' if len(names) > 1 else 'one corruption'}, severity {severity}"
            plan.append((kind, partial(mixed, names=names, severity=severity)))
    return plan + [("changed otherwise", change) for change in UNLIKE.values()]


def row_of(kind: str, falls: list[tuple], clean: torch.Tensor, slope: float) -> list[str]:
    """Return a row of the table; falls: of confidence and accuracy in each folder; clean: both there."""
    fall, lost = torch.tensor(falls).T
    alarm, cells = fall > LARGEST_FALL, [kind, str(len(falls))]
    cells += [f"{alarm[some].sum()} of {some.sum()}" for some in (lost > 0.1, lost < 0.05)]
    for error in (clean[0] - fall - clean[1] + lost, lost - slope * fall):
        cells.append(f"{100 * error.mean():+.1f}, {100 * error.abs().mean():.1f}")
    return cells


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--data-dir", default="data", help="where CIFAR-100 lies")
    _, test = data.load("cifar100", parser.parse_args().data_dir)
    tests = read(RESULTS / "shipped", "stress.json")["tests"]
    rows = [tests[test] for test in ["clean/0", *tests_of(FIFTEEN)]]
    numbers = torch.tensor([(row["mean_confidence"], row["accuracy"]["value"]) for row in rows])
    clean, (x, y) = numbers[0], (numbers[0] - numbers).T  # the line goes through the clean point
    slope, generator = ((x * y).sum() / (x * x).sum()).item(), torch.Generator().manual_seed(0)
    network, rows = load_checkpoint(SHIPPED), []
    for kind, change in folders(generator):
        index = torch.randperm(len(test.labels), generator=generator)[:200]
        result = estimate(network, change(test.images[index]), clean={"mean_confidence": clean[0].item()})
        lost = clean[1].item() - (result["answers"] == test.labels[index]).double().mean().item()
        rows.append((kind, result["fall"], lost))
    kinds = dict.fromkeys(["all", *(kind for kind, *_ in rows)])
    table = [row_of(kind, [row for k, *row in rows if kind in ("all", k)], clean, slope) for kind in kinds]
    print_table("The alarm", "Last are errors, in points: the mean, and the mean size.", HEAD, table)


if __name__ == "__main__":
    main()

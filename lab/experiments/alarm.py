"""Does the alarm of lab.estimate ring where accuracy falls, and what are forty labels worth there?

    python lab/experiments/alarm.py [--data-dir data]

The shipped network answers folders of 200 test images of CIFAR-100: clean, under one corruption, under all
fifteen or five that are drawn in equal parts, in a part under one, or changed otherwise. From each folder
forty labels are drawn 500 times, with replacement, as from a folder of very many. Below the table stands how
often the first bell, of mean confidence, would ring in the tests of each stress.json in results/.
"""

import sys
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Generator, Tensor
from torchvision.transforms.functional import rotate

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from lab.answers import tests_of
from lab.corruptions import FIFTEEN, corrupt
from lab.estimate import LARGEST_FALL, assisted_share, estimate
from lab.experiments.findings import RESULTS, load_test, print_table, read
from lab.network import SHIPPED, load_checkpoint
from metrics import proportion
from report import interval

HEAD = "folders; how many; alarm, lost over ten points; alarm, lost under five; first bell; and; \
mean confidence; interval of forty labels holds, least; worth, as it says"
CAPTION = """Mean confidence has the mean of its errors, in points, and their mean size. Worth is so many
times forty labels alone."""
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


def mixed(images: Tensor, names: list[str], severity: int) -> Tensor:
    """Return uint8 images [N, 3, S, S] under corruptions in turn, so that each gets an equal part."""
    changed = images.clone()
    for k, name in enumerate(names):
        changed[k :: len(names)] = corrupt(images[k :: len(names)], name, severity)
    return changed


def in_part(images: Tensor) -> Tensor:
    """Return uint8 images [N, 3, S, S], the first 24 % of them under shot noise of severity 5."""
    count = round(0.24 * len(images))
    return torch.cat([corrupt(images[:count], "shot_noise", 5), images[count:]])


def folders(generator: Generator) -> list[tuple]:
    """Return the kind of each folder, and what changes its pictures, a function of uint8 images."""
    plan = [("clean", torch.clone)] * 10
    for severity in (1, 3, 5):
        drawn = [[FIFTEEN[k] for k in torch.randperm(15, generator=generator)[:5]] for _ in range(5)]
        for names in [*([name] for name in FIFTEEN), FIFTEEN, *drawn]:
            kind = f"{'mixed' if len(names) > 1 else 'one corruption'}, severity {severity}"
            plan.append((kind, partial(mixed, names=names, severity=severity)))
    plan += [("changed otherwise", change) for change in UNLIKE.values()]
    return plan + [("shot noise in 24 %", in_part)] * 5


def worth_of_labels(right: Tensor, scores: Tensor) -> list[float]:
    """Return how often the interval of forty labels holds, their worth, and what it is said to be.

    right: bool [N], of all pictures of a folder; scores: the second opinion on each, see estimate.
    """
    accuracy, rows = right.double().mean().item(), []
    for index in torch.randint(len(right), (500, 40), generator=Generator().manual_seed(0)):
        row = assisted_share(right[index], scores, index)
        errors = [(value - accuracy) ** 2 for value in (row["value"], right[index].double().mean().item())]
        rows.append([row["low"] <= accuracy <= row["high"], row["worth"] / 40, *errors])
    holds, says, error, alone = torch.tensor(rows).double().mean(dim=0).tolist()
    return [holds, alone / max(error, 1e-9), says]


def rings(alarm: Tensor, lost: Tensor) -> list[str]:
    """Return how many ring, bool [N], of those that lost over ten points, and of those under five."""
    cells = []
    for some in (lost > 0.1, lost < 0.05):
        hits, count = int((alarm & some).sum()), int(some.sum())
        cells.append(f"{hits} of {count} ({interval(proportion(hits, count))})" if count else "none")
    return cells


def row_of(kind: str, results: list[tuple], clean: dict) -> list[str]:
    """Return a row of the table.

    results: of each folder the alarm, the falls of confidence and accuracy, and what worth_of_labels returns.
    """
    alarm, fall, lost, holds, worth, says = torch.tensor(results, dtype=torch.float64).T
    error = clean["mean_confidence"] - fall - clean["accuracy"]["value"] + lost
    cells = [kind, str(len(results)), *rings(alarm > 0, lost), *rings(fall > LARGEST_FALL, lost)]
    cells.append(f"{100 * error.mean():+.1f}, {100 * error.abs().mean():.1f}")
    return [
        *cells,
        f"{100 * holds.mean():.1f}, {100 * holds.min():.1f}",
        f"{worth.mean():.2f}, {says.mean():.2f}",
    ]


def stored() -> tuple[Tensor, Tensor]:
    """Return the falls of confidence and of accuracy in the tests under corruptions of each stress.json."""
    rows = []
    for path in sorted(RESULTS.glob("*/stress.json")):
        tests = read(path.parent, path.name)["tests"]
        records = [tests[test] for test in ("clean/0", *tests_of(FIFTEEN))]
        pairs = torch.tensor([(row["mean_confidence"], row["accuracy"]["value"]) for row in records])
        rows.append(pairs[0] - pairs[1:])
    return torch.cat(rows).unbind(dim=1)


def main() -> None:
    test, network = load_test(__doc__), load_checkpoint(SHIPPED)
    clean = read(RESULTS / "shipped", "metrics.json") | read(RESULTS / "shipped", "reasons.json")
    generator, rows = Generator().manual_seed(0), {"all": []}
    for kind, change in folders(generator):
        index = torch.randperm(len(test.labels), generator=generator)[:200]
        result = estimate(network, change(test.images[index]), clean=clean)
        right = result["answers"] == test.labels[index]
        lost = clean["accuracy"]["value"] - right.double().mean().item()
        row = (result["alarm"], result["fall"], lost, *worth_of_labels(right, result["second_opinion"]))
        rows["all"].append(row)
        rows.setdefault(kind, []).append(row)
    print_table("The alarm", HEAD, CAPTION, [row_of(kind, some, clean) for kind, some in rows.items()])
    fall, lost = stored()
    print("The first bell in the tests of each stress.json:", "; ".join(rings(fall > LARGEST_FALL, lost)))


if __name__ == "__main__":
    main()

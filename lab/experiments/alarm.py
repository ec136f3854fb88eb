"""Does the alarm of lab.estimate ring where accuracy falls, and do the intervals of forty labels hold?

    python train.py --dataset shapes
    python lab/experiments/alarm.py [--data-dir data]

Folders of pictures, clean or changed, are compared with the clean pictures of a reference, and so is the
reference itself; see `references`. A second table says what forty labels say where some pictures are of other
classes. Last stands how often the first bell, of mean confidence, rings in the tests of each stress.json in
results/.
"""

import sys
from collections import defaultdict
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Generator, Tensor, nn
from torchvision.transforms.functional import rotate

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import data
from lab.corruptions import FIFTEEN, corrupt
from lab.estimate import LARGEST_FALL, OTHER, estimate, own_reference
from lab.experiments.findings import RESULTS, load_test, print_table
from lab.folder import read_json
from lab.intervals import assisted_share
from lab.network import SHIPPED, Network, from_module, load_checkpoint, logits_of
from lab.stressed import tests_of
from metrics import proportion
from report import evaluate, interval

SHAPES = Path("runs/shapes/checkpoints/best.pt")
LOST = "lost over ten points; five to ten; under five"
HEAD = f"folders; how many; alarm, {LOST}; first bell, {LOST}; mean confidence less accuracy, points"
OTHERS = "of other classes, %; folders; alarm; interval holds with `other`, least; where these rows are empty"
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


# ---- References, and folders that are compared with them ---------------------------------------------------


def changes(generator: Generator) -> list[tuple]:
    """Return the kinds of folders, and what changes their pictures, functions of uint8 images."""
    plan = [("clean", torch.clone)] * 10
    for severity in (1, 3, 5):
        drawn = [[FIFTEEN[k] for k in torch.randperm(15, generator=generator)[:5]] for _ in range(5)]
        for names in [*([name] for name in FIFTEEN), FIFTEEN, *drawn]:
            kind = f"{'mixed' if len(names) > 1 else 'one corruption'}, severity {severity}"
            plan.append((kind, partial(mixed, names=names, severity=severity)))
    plan += [("changed otherwise", change) for change in UNLIKE.values()]
    return plan + [("shot noise in 24 %", in_part)] * 5


def folders(images: Tensor, labels: Tensor, plan: list[tuple], draw: Callable) -> Iterator[tuple]:
    """Yield the kind, the images and the labels of the folders of a plan; draw: returns their places."""
    for kind, change in plan:
        index = draw()
        yield kind, change(images[index]), labels[index]


class Grouped(nn.Module):
    """A network whose classes are groups of another's classes, with the sum of their odds."""

    def __init__(self, network: nn.Module, groups: list[list[int]]):
        super().__init__()
        self.network, self.groups = network, groups

    def forward(self, images: Tensor) -> Tensor:
        logits = self.network(images)
        return torch.stack([logits[:, group].logsumexp(dim=1) for group in self.groups], dim=1)


def clean_numbers(network: Network, images: Tensor, labels: Tensor) -> dict:
    """Return what lab.examine says of clean pictures, as far as estimate takes it."""
    class_names = [str(c) for c in range(network.num_classes)]
    numbers, arrays = evaluate(logits_of(network, images), labels, class_names)
    return numbers | own_reference(network, images, arrays["y_pred"], labels)


def references(test: data.Dataset, shipped: Network) -> Iterator[tuple]:
    """Yield the name of each reference, its network, clean numbers, images, labels, and folders.

    No picture of a folder is one of the reference, but for the test images of CIFAR-100.
    """
    generator = Generator().manual_seed(0)
    clean = read_json(RESULTS / "shipped" / "metrics.json") | read_json(RESULTS / "shipped" / "reasons.json")

    def any_of(index: Tensor) -> Tensor:
        return index[torch.randperm(len(index), generator=generator)[:200]]

    draw, plan = partial(any_of, torch.arange(len(test.labels))), changes(generator)
    some = folders(test.images, test.labels, plan, draw)
    yield "CIFAR-100", shipped, clean, test.images, test.labels, some

    (own,), drawn = data.load("shapes", splits=["test"]), data.make_shapes(20, 2)
    network = load_checkpoint(SHAPES)
    some = folders(drawn.images, drawn.labels, plan, partial(any_of, torch.arange(len(drawn.labels))))
    yield "shapes", network, clean_numbers(network, own.images, own.labels), own.images, own.labels, some

    severe = [("one corruption, severity 5", partial(corrupt, name=name, severity=5)) for name in FIFTEEN]
    yield from pairs(test, shipped, severe, generator)

    images, order = test.images.clone(), torch.randperm(len(test.labels), generator=generator)
    images[order[::4]] = corrupt(images[order[::4]], "contrast", 5)
    own, rest = order.chunk(2)
    clean = clean_numbers(shipped, images[own], test.labels[own])
    some = folders(images, test.labels, [("clean", torch.clone)] * 30 + severe, partial(any_of, rest))
    yield "a weak scanner", shipped, clean, images[own], test.labels[own], some


def pairs(test: data.Dataset, shipped: Network, severe: list[tuple], generator: Generator) -> Iterator[tuple]:
    """Yield ten references of two superclasses, of which the first has nine tenths of the pictures."""
    superclass = test.superclass_of[test.labels]
    for first in range(0, 20, 2):
        two = [first, first + 1]
        groups = [torch.nonzero(test.superclass_of == k).flatten().tolist() for k in two]
        network, labels = from_module(Grouped(shipped.model, groups)), superclass - first
        many, few = (torch.nonzero(superclass == k).flatten() for k in two)
        many, few = (index[torch.randperm(len(index), generator=generator)] for index in (many, few))
        own = torch.cat([many[:225], few[:25]])

        def draw(many: Tensor = many[225:], few: Tensor = few[25:]) -> Tensor:
            places = [torch.randperm(len(index), generator=generator) for index in (many, few)]
            return torch.cat([many[places[0][:90]], few[places[1][:10]]])

        plan = [("clean", torch.clone)] * 3 + [severe[k] for k in torch.randperm(15, generator=generator)[:3]]
        some, reference = folders(test.images, labels, plan, draw), (test.images[own], labels[own])
        yield "90 to 10", network, clean_numbers(network, *reference), *reference, some


# ---- What is measured --------------------------------------------------------------------------------------


def measured(network: Network, clean: dict, images: Tensor, labels: Tensor) -> tuple:
    """Return whether the alarm and the first bell ring in a folder, and more, see row_of."""
    result = estimate(network, images, clean=clean)
    accuracy = (result["answers"] == labels).double().mean().item()
    error, lost = result["mean_confidence"] - accuracy, clean["accuracy"]["value"] - accuracy
    return result["alarm"], result["fall"] > result["largest_fall"], error, lost


def share_that_holds(right: Tensor, scores: Tensor, is_labelled: Tensor) -> float:
    """Return in which share of 500 draws the interval of forty labels holds the accuracy of a folder.

    right: bool [N], of all its pictures; scores: the second opinion on each, see estimate. Labels, drawn with
    replacement as from a folder of very many, are given to those alone that is_labelled, bool [N].
    """
    accuracy, holds = right.double().mean().item(), 0
    for index in torch.randint(len(right), (500, 40), generator=Generator().manual_seed(0)):
        index = index[is_labelled[index]]
        row = assisted_share(right[index], scores, index)
        holds += row["low"] <= accuracy <= row["high"]
    return holds / 500


def rings(alarm: Tensor, lost: Tensor) -> list[str]:
    """Return how many ring, bool [N], of those that lost over ten points, five to ten, and under five."""
    lost, cells = lost.double().round(decimals=6), []  # ten of a hundred are ten points, not 9.9999999
    for some in (lost > 0.1, (lost >= 0.05) & (lost <= 0.1), lost < 0.05):
        hits, count = int((alarm & some).sum()), int(some.sum())
        cells.append(f"{hits} of {count} ({interval(proportion(hits, count))})" if count else "none")
    return cells


def row_of(kind: str, results: list[tuple]) -> list[str]:
    """Return a row of the table; results: of each folder what measured returns.

    That is the alarm, the first bell, mean confidence less accuracy, and the accuracy that was lost.
    """
    alarm, first, error, lost = torch.tensor(results, dtype=torch.float64).T
    cells = [kind, str(len(results)), *rings(alarm > 0, lost), *rings(first > 0, lost)]
    return [*cells, f"{100 * error.mean():+.1f}"]


def with_other_classes(test: data.Dataset, shipped: Network) -> Iterator[list[str]]:
    """Yield what forty labels say of folders of 200, by the share of pictures of classes that are unknown.

    Of the shipped network's classes fifty are known; these pictures are labelled `other`, or not at all.
    """
    generator = Generator().manual_seed(0)
    known, number = torch.randperm(100, generator=generator)[:50], torch.full((100,), OTHER)
    network = from_module(Grouped(shipped.model, [[c] for c in known.tolist()]))
    number[known] = torch.arange(50)
    labels, order = number[test.labels], torch.randperm(len(test.labels), generator=generator)
    own, rest = order.chunk(2)
    own = own[labels[own] != OTHER]
    clean = clean_numbers(network, test.images[own], labels[own])
    for share in (0, 10, 25, 50, 75):
        rows = []
        for _ in range(10):
            index = rest[torch.randperm(len(rest), generator=generator)]
            is_other, count = labels[index] == OTHER, 2 * share
            index = torch.cat([index[is_other][:count], index[~is_other][: 200 - count]])
            result = estimate(network, test.images[index], clean=clean)
            right, is_known = result["answers"] == labels[index], labels[index] != OTHER
            everyone = torch.ones_like(is_known)
            holds = [share_that_holds(right, result["second_opinion"], some) for some in (everyone, is_known)]
            rows.append([result["alarm"], *holds])
        alarms, holds, empty = torch.tensor(rows).double().T
        cells = [f"{100 * row.mean():.1f}, {100 * row.min():.1f}" for row in (holds, empty)]
        yield [str(share), str(len(rows)), str(int(alarms.sum())), *cells]


def stored() -> tuple[Tensor, Tensor]:
    """Return the falls of confidence and of accuracy in the tests under corruptions of each stress.json."""
    rows = []
    for path in sorted(RESULTS.glob("*/stress.json")):
        tests = read_json(path)["tests"]
        records = [tests[test] for test in ("clean/0", *tests_of(FIFTEEN))]
        pairs = [(row["mean_confidence"], row["accuracy"]["value"]) for row in records]
        means = torch.tensor(pairs, dtype=torch.float64)
        rows.append(means[0] - means[1:])
    return torch.cat(rows).unbind(dim=1)


def main() -> None:
    test, shipped, rows = load_test(__doc__), load_checkpoint(SHIPPED), defaultdict(list)
    for name, network, clean, *reference, some in references(test, shipped):
        rows[f"{name}: itself"].append(measured(network, clean, *reference))
        for kind, *pictures in some:
            row = measured(network, clean, *pictures)
            rows[f"{name}: all"].append(row)
            rows[f"{name}: {kind}"].append(row)
    caption = "How many ring, of the folders that lost so much accuracy."
    print_table("The alarm", HEAD, caption, [row_of(kind, some) for kind, some in rows.items()])
    caption = "The interval of forty labels, 500 draws from each folder, in %."
    print_table("Pictures of other classes", OTHERS, caption, list(with_other_classes(test, shipped)))
    fall, lost = stored()
    print("The first bell in the tests of each stress.json:", "; ".join(rings(fall > LARGEST_FALL, lost)))


if __name__ == "__main__":
    main()

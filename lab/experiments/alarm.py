"""Does the alarm of lab.estimate ring where accuracy falls, and what are forty labels worth there?

    python train.py --dataset shapes
    python lab/experiments/alarm.py [--data-dir data]

Folders of pictures, clean or changed, are compared with the clean pictures of a reference, and so is the
reference itself; see `references`. From each folder forty labels are drawn 500 times, with replacement, as
from a folder of very many. A second table says how often clean folders of different sizes ring, and a third
what forty labels say where some pictures are of other classes. Last stands how often the first bell, of mean
confidence, rings in the tests of each stress.json in results/.
"""

import itertools
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Generator, Tensor, nn
from torchvision.transforms.functional import rotate

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import data
from lab.answers import tests_of
from lab.corruptions import FIFTEEN, corrupt
from lab.estimate import LARGEST_FALL, OTHER, alarm_of, assisted_share, estimate, own_reference
from lab.experiments.findings import RESULTS, load_test, print_table, read
from lab.network import SHIPPED, Network, from_module, load_checkpoint, logits_of
from metrics import proportion
from report import evaluate, interval

SHAPES = Path("runs/shapes/checkpoints/best.pt")
LOST = "lost over ten points; five to ten; under five"
HEAD = f"folders; how many; alarm, {LOST}; first bell, {LOST}; mean confidence; \
interval of forty labels holds, least; worth, as it says"
CAPTION = """Mean confidence less accuracy has its mean, in points, and its mean size. Worth is so many times
forty labels alone."""
SIZES = "pictures; folders; first bell, %; second bell, %; alarm, %"
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
    clean = read(RESULTS / "shipped", "metrics.json") | read(RESULTS / "shipped", "reasons.json")

    def any_of(index: Tensor) -> Tensor:
        return index[torch.randperm(len(index), generator=generator)[:200]]

    draw, plan = partial(any_of, torch.arange(len(test.labels))), changes(generator)
    some = folders(test.images, test.labels, plan, draw)
    yield "CIFAR-100", shipped, clean, test.images, test.labels, some

    (own,), drawn, network = (
        data.load("shapes", splits=["test"]),
        data.make_shapes(20, 2),
        load_checkpoint(SHAPES),
    )
    some = folders(drawn.images, drawn.labels, plan, partial(any_of, torch.arange(len(drawn.labels))))
    yield "shapes", network, clean_numbers(network, own.images, own.labels), own.images, own.labels, some

    severe = [("one corruption, severity 5", partial(corrupt, name=name, severity=5)) for name in FIFTEEN]
    yield from pairs(test, shipped, severe, generator)

    images, order = test.images.clone(), torch.randperm(len(test.labels), generator=generator)
    images[order[::4]] = corrupt(images[order[::4]], "contrast", 5)
    own, rest = order.chunk(2)
    clean = clean_numbers(shipped, images[own], test.labels[own])
    alike = folders(images, test.labels, [("clean", torch.clone)] * 30 + severe, partial(any_of, rest))
    alone = [("the weak scanner alone", partial(corrupt, name="contrast", severity=5))] * 5
    alone = folders(test.images, test.labels, alone, partial(any_of, rest))
    some = itertools.chain(alike, alone)
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
        clean = clean_numbers(network, test.images[own], labels[own])
        yield (
            "90 to 10",
            network,
            clean,
            test.images[own],
            labels[own],
            folders(test.images, labels, plan, draw),
        )


# ---- What is measured --------------------------------------------------------------------------------------


def measured(network: Network, clean: dict, images: Tensor, labels: Tensor) -> tuple:
    """Return whether the alarm and the first bell ring in a folder, and more, see row_of."""
    result = estimate(network, images, clean=clean)
    right = result["answers"] == labels
    accuracy = right.double().mean().item()
    bells = result["alarm"], result["fall"] > result["largest_fall"]
    error, lost = result["mean_confidence"] - accuracy, clean["accuracy"]["value"] - accuracy
    return *bells, error, lost, *worth_of_labels(right, result["second_opinion"])


def worth_of_labels(right: Tensor, scores: Tensor, is_labelled: Tensor | None = None) -> list[float]:
    """Return how often the interval of forty labels holds, their worth, and what it is said to be.

    right: bool [N], of all pictures of a folder; scores: the second opinion on each, see estimate; labels are
    given to those alone that are drawn and is_labelled, bool [N].
    """
    accuracy, rows = right.double().mean().item(), []
    for index in torch.randint(len(right), (500, 40), generator=Generator().manual_seed(0)):
        index = index if is_labelled is None else index[is_labelled[index]]
        row = assisted_share(right[index], scores, index)
        errors = [(value - accuracy) ** 2 for value in (row["value"], right[index].double().mean().item())]
        rows.append([row["low"] <= accuracy <= row["high"], row["worth"] / 40, *errors])
    holds, says, error, alone = torch.tensor(rows).double().mean(dim=0).tolist()
    return [holds, alone / max(error, 1e-9), says]


def rings(alarm: Tensor, lost: Tensor) -> list[str]:
    """Return how many ring, bool [N], of those that lost over ten points, five to ten, and under five."""
    lost, cells = lost.double().round(decimals=6), []  # ten of a hundred are ten points, not 9.9999999
    for some in (lost > 0.1, (lost >= 0.05) & (lost <= 0.1), lost < 0.05):
        hits, count = int((alarm & some).sum()), int(some.sum())
        cells.append(f"{hits} of {count} ({interval(proportion(hits, count))})" if count else "none")
    return cells


def row_of(kind: str, results: list[tuple]) -> list[str]:
    """Return a row of the table; results: see measured.

    Of each folder the alarm, the first bell, mean confidence less accuracy, the accuracy that was lost, and
    what worth_of_labels returns.
    """
    alarm, first, error, lost, holds, worth, says = torch.tensor(results, dtype=torch.float64).T
    cells = [kind, str(len(results)), *rings(alarm > 0, lost), *rings(first > 0, lost)]
    cells.append(f"{100 * error.mean():+.1f}, {100 * error.abs().mean():.1f}")
    return [
        *cells,
        f"{100 * holds.mean():.1f}, {100 * holds.min():.1f}",
        f"{worth.mean():.2f}, {says.mean():.2f}",
    ]


def by_size(network: Network, clean: dict, images: Tensor) -> Iterator[list[str]]:
    """Yield how often clean folders ring, by their size; their pictures are drawn from the images.

    From 100 pictures on folders consist of the batches in which own_statistics answers all images.
    """
    generator = Generator().manual_seed(0)
    batches = torch.randperm(len(images), generator=generator).view(-1, 100)
    result = estimate(network, images, clean=clean)
    for size, count in {20: 2000, 50: 2000, 100: 100, 400: 2000, 1000: 2000}.items():
        bells = []
        for k in range(count):
            some = (
                [k]
                if size == 100
                else torch.randperm(len(batches), generator=generator)[: max(1, size // 100)]
            )
            index = batches[some].flatten()
            index = index[torch.randperm(len(index), generator=generator)[:size]]
            folder = {key: result[key][index] for key in ("answers", "confidences", "second_opinion")}
            found = alarm_of(
                folder | {"mean_confidence": folder["confidences"].double().mean().item()}, clean
            )
            doubts = "doubt" in found and found["doubt"] > found["largest_doubt"]
            bells.append([found["fall"] > found["largest_fall"], doubts, found["alarm"]])
        shares = 100 * torch.tensor(bells).double().mean(dim=0)
        yield [f"{size:,}", f"{count:,}", *(f"{share:.2f}" for share in shares)]


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
            right, scores = result["answers"] == labels[index], result["second_opinion"]
            holds = [worth_of_labels(right, scores, some)[0] for some in (None, labels[index] != OTHER)]
            rows.append([result["alarm"], *holds])
        alarms, holds, empty = torch.tensor(rows).double().T
        cells = [f"{100 * row.mean():.1f}, {100 * row.min():.1f}" for row in (holds, empty)]
        yield [str(share), str(len(rows)), str(int(alarms.sum())), *cells]


def stored() -> tuple[Tensor, Tensor]:
    """Return the falls of confidence and of accuracy in the tests under corruptions of each stress.json."""
    rows = []
    for path in sorted(RESULTS.glob("*/stress.json")):
        tests = read(path.parent, path.name)["tests"]
        records = [tests[test] for test in ("clean/0", *tests_of(FIFTEEN))]
        pairs = [(row["mean_confidence"], row["accuracy"]["value"]) for row in records]
        means = torch.tensor(pairs, dtype=torch.float64)
        rows.append(means[0] - means[1:])
    return torch.cat(rows).unbind(dim=1)


def main() -> None:
    test, shipped, rows = load_test(__doc__), load_checkpoint(SHIPPED), {}
    for name, network, clean, images, labels, some in references(test, shipped):
        for kind, *pictures in itertools.chain([("itself", images, labels)], some):
            row = measured(network, clean, *pictures)
            for title in dict.fromkeys(
                [f"{name}: {'itself' if kind == 'itself' else 'all'}", f"{name}: {kind}"]
            ):
                rows.setdefault(title, []).append(row)
    print_table("The alarm", HEAD, CAPTION, [row_of(kind, some) for kind, some in rows.items()])
    clean = read(RESULTS / "shipped", "metrics.json") | read(RESULTS / "shipped", "reasons.json")
    caption = "Clean test images of CIFAR-100. The second bell needs 100."
    print_table("Clean folders", SIZES, caption, list(by_size(shipped, clean, test.images)))
    caption = "The interval of forty labels, 500 draws from each folder, in %."
    print_table("Pictures of other classes", OTHERS, caption, list(with_other_classes(test, shipped)))
    fall, lost = stored()
    print("The first bell in the tests of each stress.json:", "; ".join(rings(fall > LARGEST_FALL, lost)))


if __name__ == "__main__":
    main()

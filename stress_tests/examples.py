"""A few images to look at: what the network answers to them under each corruption and under an attack.

An answer is [class, probability], the likeliest class of an image and its probability to four decimals. All
functions take a model of images in [0, 1], or a function that predicts with one, as the tests do.
"""

from collections import Counter
from collections.abc import Callable, Iterable

import torch
from torch import Generator, Tensor, nn

from .attacks import ATTACKS
from .corruptions import corrupt


def turns(keys: Iterable) -> list[int]:
    """Return for each key how many before it are equal to it."""
    seen, found = Counter(), []
    for key in keys:
        found.append(seen[key])
        seen[key] += 1
    return found


def choose(right: Tensor, labels: Tensor, superclass_of: Tensor | None, count: int) -> list[int]:
    """Return the indices of at most `count` images, bool [N] and int64 [N], that differ in what they show.

    Right answers come before wrong ones, the first image of each class before the second ones, and among the
    first ones one of each superclass before another of the same; otherwise the order stays.
    superclass_of: int64 [C], or None.
    """
    superclasses = labels if superclass_of is None else superclass_of[labels]
    wrong = (~right).tolist()
    in_class = turns(zip(wrong, labels.tolist(), strict=True))
    in_superclass = turns(zip(wrong, in_class, superclasses.tolist(), strict=True))
    rank = list(zip(wrong, in_class, in_superclass, strict=True))
    return sorted(range(len(rank)), key=rank.__getitem__)[:count]


def likeliest(logits: Tensor) -> list[list]:
    """Return the answers that logits float32 [N, C] give: [[class, probability], ...]."""
    probability, y_pred = logits.softmax(dim=1).max(dim=1)
    return [[c, round(p, 4)] for c, p in zip(y_pred.tolist(), probability.tolist(), strict=True)]


def answers_to(
    predict: Callable[[Tensor], Tensor], images: Tensor, tests: Iterable[tuple[str, int]]
) -> dict[str, list]:
    """Return the answers to images uint8 [N, 3, 32, 32] under corruptions: {"fog/3": [[class, p], ...]}.

    predict takes such images to logits; tests are (name, severity), with ("clean", 0) for the images as they
    are. The pictures are exactly corrupt(images, name, severity), which depend on an image's place.
    """
    answers = {}
    for name, severity in tests:
        pictures = images if name == "clean" else corrupt(images, name, severity)
        answers[f"{name}/{severity}"] = likeliest(predict(pictures))
    return answers


@torch.no_grad()
def answers_under_pgd(
    model: nn.Module, images: Tensor, labels: Tensor, seed: int
) -> tuple[dict[str, list], Tensor]:
    """Return the answers to images float32 [N, 3, 32, 32] in [0, 1] under PGD, and how it changes them.

    labels int64 [N]. The answers have the epsilon in 1/255 as key, "0" for none. The changes are int8
    [epsilons, N, 3, 32, 32]: change / epsilon x 127, rounded, so epsilon / 127 times the array is the change
    within half a step. Settings are those of ATTACKS.
    """
    attack = ATTACKS["pgd"]
    answers, changes = {"0": likeliest(model(images))}, []
    for epsilon in attack.epsilons:
        generator = Generator().manual_seed(seed)
        attacked = attack.function(model, images, labels, epsilon / 255, generator, **attack.settings)
        answers[f"{epsilon:g}"] = likeliest(model(attacked))
        changes.append(((attacked - images) / (epsilon / 255) * 127).round().to(torch.int8).cpu())
    return answers, torch.stack(changes)

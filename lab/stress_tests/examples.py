"""A few images to look at: what the network answers to them under each corruption and under an attack.

An answer is [class, probability], the likeliest class of an image and its probability to four decimals. All
functions take a model of images in [0, 1], or a function that predicts with one, as the tests do.
"""

import functools
import itertools
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator

import torch
import torch.nn.functional as F
from torch import Generator, Tensor, nn

from .attacks import ATTACKS, EPSILONS, pgd, random_corner
from .corruptions import CORRUPTIONS, corrupt
from .cues import CUES, change
from .summary import SEVERITIES

SHOWN_EPSILONS = EPSILONS[:-1]  # the last one is a check, at which nothing of a picture need be left
KEPT_SIDE = 64  # pixels, of a picture that is kept, at most


def turns(keys: Iterable) -> list[int]:
    """Return for each key how many before it are equal to it."""
    counters = defaultdict(itertools.count)
    return [next(counters[key]) for key in keys]


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


def top_answers(logits: Tensor) -> list[list]:
    """Return the answers that logits float32 [N, C] give: [[class, probability], ...]."""
    probability, y_pred = logits.softmax(dim=1).max(dim=1)
    return [[c, round(p, 4)] for c, p in zip(y_pred.tolist(), probability.tolist(), strict=True)]


def kept_picture(images: Tensor) -> Tensor:
    """Return images uint8 [N, 3, S, S] as they are kept: wider ones reduced to 64 pixels, antialiased."""
    if images.shape[-1] <= KEPT_SIDE:
        return images
    return F.interpolate(images, KEPT_SIDE, mode="bilinear", antialias=True)


def kept_change(pixels: Tensor) -> Tensor:
    """Return the middle 64x64 of pixels [..., S, S]; all of them if there are fewer."""
    first = max(0, (pixels.shape[-1] - KEPT_SIDE) // 2)
    return pixels[..., first : first + KEPT_SIDE, first : first + KEPT_SIDE]


def changed_pictures(images: Tensor) -> Iterator[tuple[str, Tensor]]:
    """Yield images uint8 [N, 3, S, S] under each test without attack: ("fog/3", images), clean ones first."""
    yield "clean/0", images
    for name, severity in itertools.product(CORRUPTIONS, SEVERITIES):
        yield f"{name}/{severity}", corrupt(images, name, severity)
    for name in CUES:
        yield f"{name}/0", change(images, name)


def pictures_and_answers(
    predict: Callable[[Tensor], Tensor], images: Tensor
) -> tuple[dict[str, list], Tensor]:
    """Return the answers to images uint8 [N, 3, S, S] under all corruptions and cues, and the pictures.

    predict takes such images to logits. The answers are {"clean/0": ..., "fog/3": [[class, p], ...]}, and the
    pictures, in their order, uint8 [tests, N, 3, s, s], s at most 64. A corruption depends on an image's
    place.
    """
    answers, pictures = {}, []
    for test, changed in changed_pictures(images):
        answers[test] = top_answers(predict(changed))
        pictures.append(kept_picture(changed))
    return answers, torch.stack(pictures)


@torch.no_grad()
def answers_under_attack(
    model: nn.Module, images: Tensor, labels: Tensor, seed: int
) -> tuple[dict[str, dict], Tensor]:
    """Return the answers to images under PGD and random signs, and how these change the images.

    images float32 [N, 3, S, S] in [0, 1]; labels int64 [N]. The answers are {"pgd": {"1": ...}, "random":
    ...}, with SHOWN_EPSILONS in 1/255 and "0" for none. The changes are int8 [2, epsilons, N, 3, s, s]:
    change / epsilon x 127, rounded, so epsilon / 127 times the array is the change within half a step. Of
    pictures above 64 pixels it is the middle: reduced, changes of opposite sign would cancel. Settings are
    those of ATTACKS, but that PGD goes on to the strongest point.
    """
    settings = {key: value for key, value in ATTACKS["pgd"].settings.items() if key != "until_fooled"}
    ways = {"pgd": functools.partial(pgd, **settings), "random": random_corner}
    answers, changes = {}, []
    for name, attack in ways.items():
        answers[name] = {"0": top_answers(model(images))}
        for epsilon in SHOWN_EPSILONS:
            attacked = attack(model, images, labels, epsilon / 255, Generator().manual_seed(seed))
            answers[name][f"{epsilon:g}"] = top_answers(model(attacked))
            change_of_pixels = kept_change(attacked - images) / (epsilon / 255)
            changes.append((127 * change_of_pixels).round().to(torch.int8).cpu())
    return answers, torch.stack(changes).unflatten(0, (2, -1))

"""The pictures of the stress tests that explore.html shows: a few images, changed, with their answers.

They are added to `stress`, the content of stress.json and stress.npz, once they are missing.
"""

import functools
from collections import Counter

import torch
from torch import Generator, Tensor

from data import Dataset
from lab import attacks
from lab import network as net
from lab.corruptions import corrupt
from lab.page.figures import SIDE, reduced
from lab.pictures import people_among
from lab.stressed import CHANGES

CORRUPTED, ATTACKED = 8, 6  # so many images


def choose(test: Dataset, places: Tensor, right: Tensor, count: int) -> Tensor:
    """Return at most `count` of these places of test images, int64 [n], which show no people.

    right bool [n]. Right answers come first, and one image of each class before the second of any.
    """
    shown = ~people_among(test.class_names)[test.labels[places]]
    places, rank, in_class = places[shown], [], Counter()
    for key in zip((~right[shown]).tolist(), test.labels[places].tolist(), strict=True):
        rank.append((key[0], in_class[key]))
        in_class[key] += 1
    return places[sorted(range(len(rank)), key=rank.__getitem__)[:count]]


def top_answers(logits: Tensor) -> list[list]:
    """Return the likeliest class of each image and its probability: [[class, probability], ...]."""
    probability, y_pred = logits.softmax(dim=1).max(dim=1)
    return [[c, round(p, 4)] for c, p in zip(y_pred.tolist(), probability.tolist(), strict=True)]


def add_corrupted(network: net.Network, test: Dataset, stress: dict, index: Tensor) -> None:
    """Add a few images of the sample, index int64 [N], under all corruptions, if there are none yet.

    `examples` holds their places and answers, {"clean/0": ..., "fog/3": [[class, p], ...]}, and
    `example_pixels`, uint8 [tests, k, 3, s, s], their pictures in the same order, s at most 64.
    """
    places = choose(test, index, stress["answers"]["clean/0"], CORRUPTED)
    if "examples" in stress or not len(places):
        return
    answers, pictures = {}, []
    for name in CHANGES:
        corruption, severity = name.split("/")
        images = corrupt(test.images[places], corruption, int(severity))
        answers[name] = top_answers(net.logits_of(network, images))
        pictures.append(reduced(images))
    stress["examples"] = {"images": places.tolist(), "answers": answers}
    stress["example_pixels"] = torch.stack(pictures)


def middle(pixels: Tensor) -> Tensor:
    """Return the middle 64x64 of pixels [..., S, S]; all of them if there are fewer."""
    first = max(0, (pixels.shape[-1] - SIDE) // 2)
    return pixels[..., first : first + SIDE, first : first + SIDE]


@torch.no_grad()
def add_attacked(network: net.Network, test: Dataset, stress: dict) -> None:
    """Add those corrupted examples that are right under PGD and random signs, if none has all epsilons yet.

    So one picture is seen under both. `attack_examples` holds the places and answers, {"pgd": {"1": ...},
    "random": ...}, with "0" for no attack. `attack_pixels` are the images, `attack_changes` how they change,
    int8 [2, epsilons, k, 3, s, s]: change / epsilon x 127, rounded. Above 64 pixels it is the middle, as
    changes of opposite sign would cancel in a reduced one.
    """
    shown = {f"{epsilon:g}": epsilon for epsilon in attacks.EPSILONS[:-1]}  # the last may leave no picture
    there = "attack_examples" in stress and [*stress["attack_examples"]["answers"]["pgd"]] == ["0", *shown]
    if there or "examples" not in stress:
        return
    clean = zip(stress["examples"]["images"], stress["examples"]["answers"]["clean/0"], strict=True)
    places = [i for i, (c, _) in clean if c == test.labels[i]][:ATTACKED]
    if not places:
        return
    x, y = test.images[places].to(network.device) / 255, test.labels[places].to(network.device)
    ways = {"pgd": functools.partial(attacks.pgd, restarts=2), "random": attacks.random_corner}
    answers, changes = {}, []
    for name, attack in ways.items():
        answers[name] = {"0": top_answers(network.model(x))}
        for key, epsilon in shown.items():
            made = attack(network.model, x, y, epsilon / 255, Generator().manual_seed(0))
            answers[name][key] = top_answers(network.model(made))
            change = 127 * middle(made - x) / (epsilon / 255)
            changes.append(change.round().to(torch.int8).cpu())
    stress["attack_examples"] = {"images": places, "answers": answers}
    stress["attack_pixels"] = middle(test.images[places])
    stress["attack_changes"] = torch.stack(changes).unflatten(0, (2, -1))

"""stress_tests/examples.py: the choice worked by hand, and answers against the corruptions and PGD alone."""

import functools

import pytest
import torch
from networks import Wavy, natural_images, seeded

from lab.stress_tests import attacks, examples
from lab.stress_tests.corruptions import corrupt
from lab.stress_tests.cues import change

LABELS = torch.tensor([0, 0, 1, 1, 2, 2, 3])
RIGHT = torch.tensor([False, True, True, True, True, False, True])


def test_the_choice_by_hand():
    superclass_of = torch.tensor([0, 0, 1, 1])
    # The first right one of each class: 1, 2, 4, 6, of which 1 and 4 are of two superclasses. Then the second
    # right one of class 1, then the wrong ones.
    chosen = [1, 4, 2, 6, 3, 0, 5]
    for count in (0, 3, 7, 8):
        assert examples.choose(RIGHT, LABELS, superclass_of, count) == chosen[:count]
    assert examples.choose(RIGHT, LABELS, None, 8) == [1, 2, 4, 6, 3, 0, 5]
    # Of two classes with many images each it takes them in turn.
    assert examples.choose(torch.ones(9) > 0, torch.arange(9) // 6, None, 4) == [0, 6, 1, 7]


MODEL, IMAGES = Wavy(4).eval(), natural_images(6)


def assert_answers(found, images):
    """Compare with [[class, probability], ...], one image at a time."""
    for (y_pred, p), image in zip(found, images, strict=True):
        probability = MODEL(image[None])[0].softmax(dim=0).tolist()
        assert y_pred == probability.index(max(probability))
        assert p == round(p, 4) == pytest.approx(max(probability), abs=6e-5)


@torch.no_grad()
def test_answers_under_corruptions_and_cues():
    pictures = (IMAGES * 255).round().byte()
    found, pixels = examples.pictures_and_answers(lambda batch: MODEL(batch / 255), pictures)
    assert next(iter(found)) == "clean/0" and list(found)[-1] == "high_pass/0"
    changed = {"clean/0": pictures, "grey/0": change(pictures, "grey")}
    changed["gaussian_noise/5"] = corrupt(pictures, "gaussian_noise", 5)
    for test, expected in changed.items():
        assert torch.equal(pixels[list(found).index(test)], expected), test
        assert_answers(found[test], expected / 255)


@torch.no_grad()
def test_answers_under_attack_and_the_changes():
    labels = MODEL(IMAGES).argmax(dim=1)
    answers, changes = examples.answers_under_attack(MODEL, IMAGES, labels, 3)
    assert changes.shape == (2, len(examples.SHOWN_EPSILONS), 6, 3, 32, 32) and changes.dtype == torch.int8
    ways = {"pgd": functools.partial(attacks.pgd, steps=10, restarts=2), "random": attacks.random_corner}
    for (name, attack), of_attack in zip(ways.items(), changes, strict=True):
        found = answers[name]
        assert list(found) == ["0", *(f"{epsilon:g}" for epsilon in examples.SHOWN_EPSILONS)]
        assert_answers(found["0"], IMAGES)
        for epsilon, moved in zip(examples.SHOWN_EPSILONS, of_attack, strict=True):
            attacked = attack(MODEL, IMAGES, labels, epsilon / 255, seeded(3))
            assert_answers(found[f"{epsilon:g}"], attacked)
            assert moved.min() == -127 and moved.max() == 127  # never -128: at most epsilon
            given_back = epsilon / 255 * moved / 127
            assert (given_back - (attacked - IMAGES)).abs().max() <= 1.01 * epsilon / 255 / 127 / 2
    assert [c for c, _ in answers["pgd"]["8"]] != labels.tolist()

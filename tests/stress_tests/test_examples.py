"""stress_tests/examples.py: the choice worked by hand, and answers against the corruptions and PGD alone."""

import functools

import torch
from networks import Wavy, natural_images, seeded

from stress_tests import attacks, examples
from stress_tests.corruptions import corrupt
from stress_tests.cues import change

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


def wavy():
    """A network of images in [0, 1] with four classes, and six images."""
    return Wavy(4).eval(), natural_images(6)


def answers_by_hand(model, images):
    """[[class, probability], ...], one image at a time."""
    found = []
    for image in images:
        probability = model(image[None])[0].softmax(dim=0).tolist()
        found.append([probability.index(max(probability)), max(probability)])
    return found


def assert_answers(found, expected, tolerance=6e-5):
    assert [c for c, _ in found] == [c for c, _ in expected]
    torch.testing.assert_close([p for _, p in found], [p for _, p in expected], rtol=0, atol=tolerance)
    assert all(p == round(p, 4) for _, p in found)


@torch.no_grad()
def test_answers_under_corruptions_and_cues():
    model, images = wavy()
    pictures = (images * 255).round().byte()
    found, pixels = examples.pictures_and_answers(lambda batch: model(batch / 255), pictures)
    assert next(iter(found)) == "clean/0" and list(found)[-1] == "high_pass/0"
    for test, changed in {
        "clean/0": pictures,
        "gaussian_noise/5": corrupt(pictures, "gaussian_noise", 5),
        "grey/0": change(pictures, "grey"),
    }.items():
        assert torch.equal(pixels[list(found).index(test)], changed), test
        assert_answers(found[test], answers_by_hand(model, changed / 255))


@torch.no_grad()
def test_answers_under_attack_and_the_changes():
    model, images = wavy()
    labels = model(images).argmax(dim=1)
    answers, changes = examples.answers_under_attack(model, images, labels, 3)
    assert changes.shape == (2, len(examples.SHOWN_EPSILONS), 6, 3, 32, 32) and changes.dtype == torch.int8
    ways = {"pgd": functools.partial(attacks.pgd, steps=10, restarts=2), "random": attacks.random_corner}
    for (name, attack), of_attack in zip(ways.items(), changes, strict=True):
        found = answers[name]
        assert list(found) == ["0", *(f"{epsilon:g}" for epsilon in examples.SHOWN_EPSILONS)]
        assert_answers(found["0"], answers_by_hand(model, images))
        for epsilon, moved in zip(examples.SHOWN_EPSILONS, of_attack, strict=True):
            attacked = attack(model, images, labels, epsilon / 255, seeded(3))
            assert_answers(found[f"{epsilon:g}"], answers_by_hand(model, attacked))
            assert moved.min() == -127 and moved.max() == 127  # never -128: at most epsilon
            given_back = epsilon / 255 * moved / 127
            assert (given_back - (attacked - images)).abs().max() <= 1.01 * epsilon / 255 / 127 / 2
    assert [c for c, _ in answers["pgd"]["8"]] != labels.tolist()

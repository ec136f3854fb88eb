"""Batches to train on: each image against a loop, each choice against its odds."""

import itertools
import math
import random

import numpy as np
import pytest
import torch
from networks import seeded

from augmentation import batches, crop_and_flip, cutmix

IMAGES = torch.randint(0, 256, (6, 3, 32, 32), generator=seeded(), dtype=torch.uint8)


def slow_crop_and_flip(image, dy, dx, flip):
    """One image [3, H, W]: pad, cut, mirror, each by numpy."""
    side = image.shape[1]
    padding = side // 8
    padded = np.pad(image, ((0, 0), (padding, padding), (padding, padding)), mode="reflect")
    window = padded[:, padding + dy :, padding + dx :][:, :side, :side]
    return window[:, :, ::-1] if flip else window


@pytest.mark.parametrize("side", [32, 8, 47])
def test_crop_and_flip_against_a_loop(side):
    """Every place of the window, mirrored or not."""
    moves = range(-(side // 8), side // 8 + 1)
    places = list(itertools.product(moves, moves, (False, True)))
    images = torch.randint(0, 256, (len(places), 3, side, side), generator=seeded(), dtype=torch.uint8)
    dy, dx, flip = (torch.tensor(values) for values in zip(*places, strict=True))
    result = crop_and_flip(images, dy, dx, flip)
    assert result.dtype == torch.uint8 and result.shape == images.shape
    for i, place in enumerate(places):
        assert np.array_equal(result[i].numpy(), slow_crop_and_flip(images[i].numpy(), *place))
    assert torch.equal(crop_and_flip(images.float(), dy, dx, flip), result.float())


@pytest.fixture
def numbered():
    """40 images and, as labels, their numbers."""
    return torch.randint(0, 256, (40, 3, 16, 16), generator=seeded(2), dtype=torch.uint8), torch.arange(40)


def test_batches_hold_each_image_at_most_once_as_the_loop_cuts_it(numbered):
    images, labels = numbered
    places, seen = list(itertools.product(range(-2, 3), range(-2, 3), (False, True))), []
    for batch, targets in batches(images, labels, 16, seed=0, epoch=1):
        assert batch.shape == (16, 3, 16, 16) and batch.dtype == torch.uint8 and targets.shape == (16,)
        for image, label in zip(batch.numpy(), targets.tolist(), strict=True):
            cut = [slow_crop_and_flip(images[label].numpy(), *place) for place in places]
            assert sum(np.array_equal(image, one) for one in cut) == 1
            seen.append(label)
    assert len(seen) == 32 and len(set(seen)) == len(seen) and seen != sorted(seen)


def test_half_of_the_images_are_flipped_and_every_place_is_as_frequent():
    """Of a ramp, the middle says where its window was, and the pixel beside it which way round."""
    n = 20_000
    rows, columns = torch.meshgrid(torch.arange(16), torch.arange(16), indexing="ij")
    images = torch.stack([rows, columns, columns]).byte().expand(n, 3, 16, 16)
    ((batch, _),) = batches(images, torch.zeros(n), n, seed=1, epoch=2)
    dy = batch[:, 0, 8, 8].int() - 8 + 2
    column, next_column = batch[:, 1, 8, 8].int(), batch[:, 1, 8, 9].int()
    flip = next_column < column
    dx = column - torch.where(flip, 7, 8) + 2
    for found, choices in ((flip, 2), (dx, 5), (dy, 5), (10 * dy + 2 * dx + flip, 50)):
        counts = found.int().bincount(minlength=choices).double()
        # Pearson's chi-squared has choices - 1 degrees of freedom; its deviation is the root of twice that.
        chi_squared = ((counts - n / choices).square() / (n / choices)).sum().item()
        assert len(counts) == choices and chi_squared < choices - 1 + 5 * math.sqrt(2 * (choices - 1))


def test_batches_depend_on_seed_and_epoch_only(numbered):
    def draw(seed=0, epoch=1):
        return list(batches(*numbered, 16, seed, epoch))

    state = torch.get_rng_state()
    expected = draw()
    assert torch.equal(torch.get_rng_state(), state)
    torch.rand(7), np.random.rand(7), random.random()
    for (images, labels), (same_images, same_labels) in zip(draw(), expected, strict=True):
        assert torch.equal(images, same_images) and torch.equal(labels, same_labels)
    # (0, 1) and (1, 0) are different seeds, which a sum of the two would not be.
    others = [draw(epoch=2), draw(seed=1), draw(seed=1, epoch=0), draw(seed=0, epoch=0)]
    assert len({tuple(drawn[0][1].tolist()) for drawn in [expected, *others]}) == 5


def test_cutmix_covers_the_drawn_rectangle_and_mixes_the_targets_by_area():
    for seed in range(200):
        lam, y, x = torch.rand(3, generator=seeded(seed)).tolist()
        mixed, targets = cutmix(IMAGES, torch.eye(6), seeded(seed))
        foreign = (mixed != IMAGES).any(dim=(0, 1))
        assert torch.equal(mixed, torch.where(foreign, IMAGES.flip(0), IMAGES))
        rows, columns = foreign.any(dim=1).nonzero(), foreign.any(dim=0).nonzero()
        assert foreign.sum() == len(rows) * len(columns)  # a rectangle
        for inside, centre in ((rows, 32 * y), (columns, 32 * x)):
            start, end = max(centre - 16 * math.sqrt(1 - lam), 0), min(centre + 16 * math.sqrt(1 - lam), 32)
            assert len(inside) == pytest.approx(end - start, abs=1.0001)
            if len(inside):
                assert inside[0].item() == pytest.approx(start, abs=0.5001)
                assert inside[-1].item() + 1 == pytest.approx(end, abs=0.5001)
        area = foreign.sum().item() / 1024
        expected = (1 - area) * torch.eye(6) + area * torch.eye(6).flip(0)
        torch.testing.assert_close(targets, expected)


def test_about_the_given_fraction_of_the_batches_is_mixed_and_the_others_stay():
    images, targets = IMAGES[..., :8, :8].repeat(200, 1, 1, 1), torch.eye(6).repeat(200, 1)
    whole, mixed = (list(batches(images, targets, 6, 3, 1, fraction)) for fraction in (0, 0.5))
    same = [torch.equal(a[0], b[0]) and torch.equal(a[1], b[1]) for a, b in zip(whole, mixed, strict=True)]
    assert 75 < sum(same) < 125 and same == [set(b.flatten().tolist()) == {0, 1} for _, b in mixed]
    again = list(batches(images, targets, 6, 3, 1, 0.5))
    assert all(torch.equal(a, b) for a, b in zip(mixed[7], again[7], strict=True))

"""cues.py against a worked example, Pillow, slow Fourier sums and sorted patches."""

import math
import zlib

import pytest
import torch
from networks import natural_images, seeded
from torchvision.transforms.functional import pil_to_tensor, to_pil_image

from lab.stress_tests import cues

IMAGES = natural_images(24)


@pytest.mark.parametrize("side", [32, 48])
def test_the_bands_part_at_a_quarter_of_the_side(side):
    x = torch.arange(side) * 2 * math.pi / side
    coarse, fine = 0.2 * torch.cos(side / 4 * x), 0.1 * torch.cos((side / 4 + 1) * x)
    image = (0.5 + coarse + fine).expand(1, 3, side, side)
    for name, left in {"low_pass": coarse, "high_pass": fine}.items():
        torch.testing.assert_close(cues.CUES[name](image, None), (0.5 + left).expand_as(image))


@pytest.mark.parametrize("frequency", [2.0, 5.0, 7.5])
def test_bands_against_sums_of_cosines(frequency):
    image = torch.rand(1, 1, 8, 8, generator=seeded(), dtype=torch.float64)
    expected = torch.zeros(8, 8, dtype=torch.float64)
    y, x = torch.meshgrid(torch.arange(8.0).double(), torch.arange(8.0).double(), indexing="ij")
    for row in range(-4, 4):
        for column in range(-4, 4):
            if math.hypot(row, column) <= frequency:
                angle = (row * y + column * x) * math.pi / 4
                real, imaginary = (image * angle.cos()).sum(), (image * angle.sin()).sum()
                expected += (real * angle.cos() + imaginary * angle.sin()) / 64
    low = cues.low_pass(image, frequency)
    torch.testing.assert_close(low[0, 0], expected)
    torch.testing.assert_close(low + cues.high_pass(image, frequency), image + image.mean())


def test_grey_is_that_of_pillow():
    images = (IMAGES * 255).round().byte()
    for image, grey in zip(images, cues.change(images, "grey"), strict=True):
        expected = pil_to_tensor(to_pil_image(image).convert("L")).int()
        assert torch.equal(grey, grey[:1].expand(3, 32, 32)) and (grey[:1] - expected).abs().max() <= 1


@pytest.mark.parametrize("side", [8, 16])
def test_patches_are_the_same_in_another_order(side):
    shuffled = cues.CUES[f"patches_{side}"](IMAGES, seeded())
    moves = []
    for image, other in zip(IMAGES, shuffled, strict=True):
        corners = [(y, x) for y in range(0, 32, side) for x in range(0, 32, side)]
        patches = [image[:, y : y + side, x : x + side] for y, x in corners]
        order = []
        for y, x in corners:
            patch = other[:, y : y + side, x : x + side]
            order.append([torch.equal(patch, one) for one in patches].index(True))
        assert sorted(order) == list(range(len(corners)))
        moves.append(tuple(order))
    assert len(set(moves)) > {16: 10, 8: 20}[side]  # each image has an order of its own
    odd = cues.shuffle_patches(IMAGES, 5, seeded())  # 6x6 patches, behind which two rows and columns stay
    assert torch.equal(odd[:, :, 30:], IMAGES[:, :, 30:]) and torch.equal(odd[..., 30:], IMAGES[..., 30:])
    inside = (x[:, :, :30, :30].flatten(1).sort().values for x in (odd, IMAGES))
    assert torch.equal(*inside)


@pytest.mark.parametrize("name", list(cues.CUES))
def test_a_cue_of_bytes_is_that_of_numbers(name):
    images = (IMAGES[:3] * 255).round().byte()
    images[2, :, :, 16:] = 255  # an edge at which filters overshoot
    expected = cues.CUES[name](images / 255, seeded(zlib.crc32(name.encode())))
    assert expected.shape == images.shape and expected.dtype == torch.float32
    assert expected.min() >= 0 and expected.max() <= 1
    changed = cues.change(images, name)
    assert changed.dtype == torch.uint8 and (changed / 255 - expected).abs().max() <= 0.501 / 255
    assert not torch.equal(changed, images)
    # The images are changed in pieces of 50; where the pieces end does not matter.
    many = cues.change(images[:1].expand(51, 3, 32, 32), name)
    generator = seeded(zlib.crc32(name.encode()))
    alone = torch.cat([cues.CUES[name](images[:1] / 255, generator) for _ in range(51)])
    assert (many / 255 - alone).abs().max() <= 0.501 / 255

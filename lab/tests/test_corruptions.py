"""corruptions.py against the published code's own outputs, closed forms, Pillow and slow Fourier sums."""

import itertools
import math
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from lab_networks import natural_images
from networks import seeded
from torchvision.transforms.functional import pil_to_tensor, to_pil_image

from lab import corruptions
from lab.corruptions import CORRUPTIONS, CUES, corrupt

IMAGES = natural_images(24)
BYTES = (IMAGES * 255).round().byte()
PUBLISHED_NAMES = [name for name in CORRUPTIONS if name != "frost"]


@pytest.mark.parametrize("name", list(CORRUPTIONS))
def test_shape_type_range_and_the_input_left_alone_in_a_batch_as_alone(name):
    mixed = torch.cat([IMAGES[:4], torch.zeros(1, 3, 32, 32), torch.ones(1, 3, 32, 32)])
    batches = [(severity, mixed) for severity in (1, 2, 3, 4, 5)]
    batches += [(5, torch.rand(1, 3, side, side, generator=seeded())) for side in (8, 47, 65)]
    for severity, images in batches:
        before = images.clone()
        corrupted = CORRUPTIONS[name](images, severity, seeded())
        assert corrupted.shape == images.shape and corrupted.dtype == torch.float32
        assert corrupted.min() >= 0 and corrupted.max() <= 1  # false for NaN too
        assert torch.equal(images, before)
        generator = seeded()
        alone = torch.cat([CORRUPTIONS[name](image[None], severity, generator) for image in images])
        torch.testing.assert_close(corrupted, alone, atol=1e-5, rtol=0)


def test_constants_are_those_of_the_side():
    """A side of 64 has the constants of CIFAR-10-C, from 65 on those of ImageNet-C; a row of five has one."""
    own = corruptions.Corruption(corruptions.contrast, "digital", "own", factor=(1, 0.9, 0.8, 0.7, 0.6))
    for side, factor in ((8, 0.75), (64, 0.75), (65, 0.4)):
        images = torch.rand(2, 3, side, side, generator=seeded())
        mean = images.mean(dim=(2, 3), keepdim=True)
        moved = CORRUPTIONS["contrast"](images, 1, seeded()) - mean
        torch.testing.assert_close(moved, factor * (images - mean))
        torch.testing.assert_close(own(images, 5, seeded()) - mean, 0.6 * (images - mean))


WIDE, SMALL = torch.rand(1, 3, 32, 40), torch.rand(1, 3, 7, 7)
OUTSIDE = [255 * IMAGES[:1], IMAGES[:1] - 0.5, torch.full_like(IMAGES[:1], torch.nan)]


@pytest.mark.parametrize("images", [IMAGES[0], IMAGES[:1, :1], WIDE, SMALL, *OUTSIDE])
def test_other_images_are_refused(images):
    with pytest.raises(ValueError, match="images must be"):
        CORRUPTIONS["fog"](images, 1, seeded())


# ---- The published code ------------------------------------------------------------------------------------

PUBLISHED = np.load(Path(__file__).parent / "published.npz")  # published.md says how it was made
# The largest difference in levels, and the fraction of values that may differ, where it is not 1 and 0.07.
LARGEST = {"snow": 2, "elastic_transform": 5}
DIFFERENT = {"snow": 0.45, "elastic_transform": 0.35, "motion_blur": 0.55, "pixelate": 0.30}


def channels_first(pictures: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(pictures).movedim(-1, -3).contiguous()


@pytest.mark.parametrize("name", PUBLISHED_NAMES)
def test_outputs_of_the_published_code(name):
    for severity, published in enumerate(channels_first(PUBLISHED[name]), start=1):
        ours = corrupt(channels_first(PUBLISHED["clean"]), name, severity)
        difference = (ours.int() - published.int()).abs()
        assert difference.max() <= LARGEST.get(name, 1), severity
        assert (difference > 0).float().mean() <= DIFFERENT.get(name, 0.07), severity


def test_frost_has_the_ice_of_the_same_photograph():
    clean = channels_first(PUBLISHED["clean"])
    ours, published = [], []
    for severity, pictures in enumerate(channels_first(PUBLISHED["frost"]), start=1):
        kept, weight, _ = (small[severity - 1] for small, _ in CORRUPTIONS["frost"].constants.values())
        for ice, frosted in ((ours, corrupt(clean, "frost", severity)), (published, pictures)):
            layer = (frosted - kept * clean) / (255 * weight)
            ice.append(torch.where(frosted < 255, layer, torch.nan))  # what is white may have been more
    ours, published = torch.stack(ours), torch.stack(published)  # [5, 4, 3, 32, 32]
    # Each crop has a brightness of its own, with a deviation of 0.035 to 0.062, see ICE.
    difference = (ours - published).nanmean(dim=(2, 3, 4))
    assert difference.abs().max() < 4 * 0.062 and difference.mean().abs() < 0.05
    tints = [ice.nanmean(dim=(3, 4)) - ice.nanmean(dim=(2, 3, 4))[..., None] for ice in (ours, published)]
    assert (tints[0] - tints[1]).abs().max() < 0.06
    inside = [ice - ice.nanmean(dim=(3, 4), keepdim=True) for ice in (ours, published)]
    texture = [ice.square().nanmean().sqrt() for ice in inside]
    assert 0.8 < texture[0] / texture[1] < 1.25


PUBLISHED_224 = np.load(Path(__file__).parent / "published_224.npz")
OFF_BY_MORE = dict.fromkeys(("snow", "pixelate", "saturate"), 0.008)  # than 0.3 %
PHOTOGRAPH = channels_first(PUBLISHED_224["clean"])[None]


def statistics(images: torch.Tensor) -> np.ndarray:
    """Of uint8 [N, 3, 224, 224]: how far they are from the photograph and how much neighbours differ, in
    levels, and the amplitude of waves of 1 to 4, 4 to 16, 16 to 64 and more periods; the means, float64 [6].
    """
    images = images.float()
    distance = (images - PHOTOGRAPH).abs().mean()
    gradient = images.diff(dim=2).abs().mean() + images.diff(dim=3).abs().mean()
    periods = 224 * torch.hypot(torch.fft.fftfreq(224)[:, None], torch.fft.fftfreq(224))
    power = torch.fft.fft2(images).abs().square().mean(dim=(0, 1)) / 224**4
    edges = (1, 4, 16, 64, 224)
    bands = [power[(periods >= a) & (periods < b)].sum().sqrt() for a, b in itertools.pairwise(edges)]
    return torch.stack([distance, gradient, *bands]).numpy()


@pytest.mark.parametrize("name", PUBLISHED_NAMES)
def test_statistics_of_the_published_code_at_224_pixels(name):
    ours = [statistics(corrupt(PHOTOGRAPH, name, severity)) for severity in (1, 2, 3, 4, 5)]
    np.testing.assert_allclose(ours, PUBLISHED_224[name], rtol=OFF_BY_MORE.get(name, 0.003))


def test_statistics_of_frost_at_224_pixels():
    """The published ones are means over 300 parts of the photographs of ice."""
    frosted = corrupt(PHOTOGRAPH.expand(16, -1, -1, -1), "frost", 3)
    np.testing.assert_allclose(statistics(frosted), PUBLISHED_224["frost"][2], rtol=0.12)


def test_fog_of_a_picture_without_white():
    """Clouds c from 0 to 1 are added to 0.5, which stays the brightest: (0.5 + 1.5 c) 0.5 / (0.5 + 1.5)."""
    foggy = CORRUPTIONS["fog"](torch.full((3, 3, 32, 32), 0.5), 5, seeded())
    torch.testing.assert_close(foggy.amin(dim=(1, 2, 3)), torch.full((3,), 0.125))
    torch.testing.assert_close(foggy.amax(dim=(1, 2, 3)), torch.full((3,), 0.5))


# ---- In bytes ----------------------------------------------------------------------------------------------

WHOLE_NUMBERS = ("motion_blur", "pixelate", "jpeg_compression", *CUES)  # which are rounded to the nearest


@pytest.mark.parametrize("name", [*CORRUPTIONS, *CUES])
def test_in_bytes_the_seed_follows_from_the_name(name, monkeypatch):
    monkeypatch.setattr(corruptions, "PIXELS_AT_ONCE", 2 * 32 * 32)  # where the pieces end does not matter
    images, generator = BYTES[:3].clone(), seeded(zlib.crc32(name.encode()))
    images[2, :, :, 16:] = 255  # an edge at which filters overshoot
    is_cue = name in CUES
    exact = 255 * (
        CUES[name](images / 255, generator) if is_cue else CORRUPTIONS[name](images / 255, 4, generator)
    )
    assert exact.shape == images.shape and exact.min() >= 0 and exact.max() <= 255
    expected = exact.round() if name in WHOLE_NUMBERS else (exact + 1e-4).floor()
    difference = corrupt(images, name, 0 if is_cue else 4).int() - expected.int()
    assert difference.abs().max() <= 1 and (difference != 0).float().mean() < 1e-3
    assert torch.equal(corrupt(images, "clean", 0), images)


# ---- Cues --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("side", [32, 48])
def test_the_bands_part_at_a_quarter_of_the_side(side):
    x = torch.arange(side) * 2 * math.pi / side
    coarse, fine = 0.2 * torch.cos(side / 4 * x), 0.1 * torch.cos((side / 4 + 1) * x)
    image = (0.5 + coarse + fine).expand(1, 3, side, side)
    for name, left in {"low_pass": coarse, "high_pass": fine}.items():
        torch.testing.assert_close(CUES[name](image, None), (0.5 + left).expand_as(image))


def test_bands_against_sums_of_cosines():
    image = torch.rand(1, 1, 8, 8, generator=seeded(), dtype=torch.float64)
    expected = torch.zeros(8, 8, dtype=torch.float64)
    y, x = torch.meshgrid(torch.arange(8.0).double(), torch.arange(8.0).double(), indexing="ij")
    for row, column in itertools.product(range(-4, 4), repeat=2):
        if math.hypot(row, column) <= 2:
            angle = (row * y + column * x) * math.pi / 4
            real, imaginary = (image * angle.cos()).sum(), (image * angle.sin()).sum()
            expected += (real * angle.cos() + imaginary * angle.sin()) / 64
    low = corruptions.low_pass(image)
    torch.testing.assert_close(low[0, 0], expected)
    torch.testing.assert_close(low + corruptions.high_pass(image), image + image.mean())


def test_grey_is_that_of_pillow():
    for image, grey in zip(BYTES, corrupt(BYTES, "grey", 0), strict=True):
        expected = pil_to_tensor(to_pil_image(image).convert("L")).int()
        assert torch.equal(grey, grey[:1].expand(3, 32, 32)) and (grey[:1] - expected).abs().max() <= 1


@pytest.mark.parametrize(("side", "orders"), [(8, 20), (16, 10)])
def test_patches_are_the_same_in_another_order(side, orders):
    moves = set()
    for image, other in zip(IMAGES, CUES[f"patches_{side}"](IMAGES, seeded()), strict=True):
        corners = list(itertools.product(range(0, 32, side), repeat=2))
        patches = [image[:, y : y + side, x : x + side] for y, x in corners]
        moved = [other[:, y : y + side, x : x + side] for y, x in corners]
        order = [[torch.equal(patch, one) for one in patches].index(True) for patch in moved]
        assert sorted(order) == list(range(len(corners)))
        moves.add(tuple(order))
    assert len(moves) > orders  # each image has an order of its own
    odd = corruptions.shuffle_patches(IMAGES, 5, seeded())  # 6x6 patches; two rows and columns stay behind
    assert torch.equal(odd[:, :, 30:], IMAGES[:, :, 30:]) and torch.equal(odd[..., 30:], IMAGES[..., 30:])
    inside = (x[:, :, :30, :30].flatten(1).sort().values for x in (odd, IMAGES))
    assert torch.equal(*inside)

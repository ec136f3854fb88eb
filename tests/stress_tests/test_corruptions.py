"""corruptions.py against a worked example, closed forms, slow loops, colorsys and Pillow."""

import colorsys
import io
import math
import os
import shutil
import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from networks import natural_images, seeded
from PIL import Image
from torchvision.transforms import InterpolationMode
from torchvision.transforms.functional import pil_to_tensor, rotate, to_pil_image

from stress_tests import corruptions
from stress_tests.corruptions import CORRUPTIONS

NAMES = list(CORRUPTIONS)
RANDOM = [
    *("gaussian_noise", "shot_noise", "impulse_noise", "speckle_noise", "glass_blur", "motion_blur", "snow"),
    *("frost", "fog", "spatter", "elastic_transform", "rotation", "translation", "scale", "occlusion"),
]
WHOLE_NUMBERS = ("motion_blur", "pixelate", "jpeg_compression")  # what the published code has as such
IMAGES = natural_images(24)


def test_worked_example():
    """Contrast 0.5 moves every value half of the way to the mean of its channel, here 0.4."""
    images = torch.full((1, 3, 32, 32), 0.2)
    images[..., 16:] = 0.6
    halved = CORRUPTIONS["contrast"](images, 2, seeded())
    torch.testing.assert_close(halved[..., :16], torch.full((1, 3, 32, 16), 0.3))
    torch.testing.assert_close(halved[..., 16:], torch.full((1, 3, 32, 16), 0.5))
    levels = corruptions.corrupt((images * 255).round().byte(), "contrast", 2)  # 76.5 and 127.5, rounded down
    assert levels[..., 0].unique().tolist() == [76] and levels[..., 31].unique().tolist() == [127]


# ---- Every corruption ------------------------------------------------------------------------------------


# make_cifar_c.py of github.com/hendrycks/robustness: the constants of the fifteen, in the order of severity.
PUBLISHED = """
gaussian_noise .04 .06 .08 .09 .10
shot_noise 500 250 100 75 50
impulse_noise .01 .02 .03 .05 .07
defocus_blur .3,.4 .4,.5 .5,.6 1,.2 1.5,.1
glass_blur .05,1 .25,1 .4,1 .25,2 .4,2
motion_blur 6,1 6,1.5 6,2 8,2 9,2.5
zoom_blur 1.06 1.11 1.16 1.21 1.26
snow .1,.2,1,.6,8,3,.95 .1,.2,1,.5,10,4,.9 .15,.3,1.75,.55,10,4,.9 \
.25,.3,2.25,.6,12,6,.85 .3,.3,1.25,.65,14,12,.8
frost 1,.2 1,.3 .9,.4 .85,.4 .75,.45
fog .2,3 .5,3 .75,2.5 1,2 1.5,1.75
brightness .05 .1 .15 .2 .3
contrast .75 .5 .4 .3 .15
elastic_transform 0,0,2.56 1.6,6.4,2.24 2.56,1.92,1.92 3.2,1.28,1.6 3.2,.96,.96
pixelate 30 28 27 24 20
jpeg_compression 80 65 58 50 40
"""


def test_the_constants_of_the_fifteen_are_the_published_ones():
    rows = [row.split() for row in PUBLISHED.strip().splitlines()]
    published = {name: [tuple(map(float, level.split(","))) for level in levels] for name, *levels in rows}
    ours = {
        name: list(zip(*CORRUPTIONS[name].constants.values(), strict=True)) for name in corruptions.FIFTEEN
    }
    assert ours == published


@pytest.mark.parametrize("name", NAMES)
def test_shape_type_range_and_the_input_left_alone(name):
    for severity in (1, 2, 3, 4, 5):
        for images in (IMAGES[:4], torch.zeros(2, 3, 32, 32), torch.ones(2, 3, 32, 32)):
            before = images.clone()
            corrupted = CORRUPTIONS[name](images, severity, seeded())
            assert corrupted.shape == images.shape and corrupted.dtype == torch.float32
            assert corrupted.min() >= 0 and corrupted.max() <= 1  # false for NaN too
            assert torch.equal(images, before)


def test_bad_input_is_refused():
    corruption = CORRUPTIONS["fog"]
    for severity in (0, 6, 2.5):
        with pytest.raises(ValueError, match="severity"):
            corruption(IMAGES[:1], severity, seeded())
    for images in (IMAGES[0], IMAGES[:1, :1], IMAGES[:1].double()):
        with pytest.raises(ValueError, match="images"):
            corruption(images, 1, seeded())


@pytest.mark.parametrize("name", NAMES)
def test_same_generator_same_result(name):
    one, two, other = (CORRUPTIONS[name](IMAGES[:6], 3, seeded(seed)) for seed in (5, 5, 6))
    assert torch.equal(one, two)
    # A corruption that is random in name only would fail here, a fixed one that draws would as well.
    assert torch.equal(one, other) == (name not in RANDOM)


@pytest.mark.parametrize("name", NAMES)
def test_in_a_batch_as_alone(name):
    corruption = CORRUPTIONS[name]
    for severity in (1, 5):
        together = corruption(IMAGES[:6], severity, seeded())
        generator = seeded()
        alone = torch.cat([corruption(image[None], severity, generator) for image in IMAGES[:6]])
        torch.testing.assert_close(together, alone, atol=1e-5, rtol=0)
        # Nor do the other images matter: the third keeps its result when all others change.
        others = IMAGES[6:12].clone()
        others[2] = IMAGES[2]
        torch.testing.assert_close(corruption(others, severity, seeded())[2], together[2], atol=1e-5, rtol=0)


# ---- Noise -----------------------------------------------------------------------------------------------


def test_moments_of_the_noises():
    grey = torch.full((40, 3, 32, 32), 0.5)
    n = grey.numel()
    for name, sigma in (("gaussian_noise", 0.06), ("speckle_noise", 0.5 * 0.10)):
        difference = CORRUPTIONS[name](grey, 2, seeded()) - grey
        assert abs(difference.mean()) < 5 * sigma / math.sqrt(n)
        assert difference.std().item() == pytest.approx(sigma, rel=0.02)
    counts = CORRUPTIONS["shot_noise"](grey, 3, seeded()) * 100  # Poisson with mean and variance 50
    torch.testing.assert_close(counts, counts.round(), atol=1e-3, rtol=0)
    assert counts.mean().item() == pytest.approx(50, abs=0.2) and counts.var().item() == pytest.approx(
        50, rel=0.05
    )
    impulses = CORRUPTIONS["impulse_noise"](grey, 5, seeded())
    for value in (0.0, 1.0):
        assert (impulses == value).float().mean().item() == pytest.approx(0.035, abs=0.003)
    assert ((impulses == 0.5) | (impulses == 0) | (impulses == 1)).all()
    assert (impulses[:, 0] != impulses[:, 1]).any()  # each channel by itself


# ---- Blur ------------------------------------------------------------------------------------------------


def test_defocus_blur_of_one_bright_pixel():
    pixel = torch.zeros(1, 3, 32, 32, dtype=torch.float64)
    pixel[..., 10, 20] = 1
    # A radius below 1 is the pixel alone, so the kernel is the softening, a Gaussian of 3x3 pixels.
    row = [math.exp(-(x**2) / (2 * 0.4**2)) for x in (-1, 0, 1)]
    softening = torch.tensor([[a * b / sum(row) ** 2 for a in row] for b in row], dtype=torch.float64)
    torch.testing.assert_close(corruptions.defocus_blur(pixel, [], 0.3, 0.4)[0, 0, 9:12, 19:22], softening)
    # Radius 1 is the pixel and its four neighbours: with hardly any softening, a fifth each.
    cross = torch.tensor([[0.0, 1, 0], [1, 1, 1], [0, 1, 0]], dtype=torch.float64) / 5
    torch.testing.assert_close(corruptions.defocus_blur(pixel, [], 1.0, 0.01)[0, 0, 9:12, 19:22], cross)


def test_motion_kernel_lies_on_its_line():
    degrees = torch.tensor([0.0, 90.0, 45.0, -30.0])
    kernels = corruptions.motion_kernel(3, 2.0, degrees)
    assert kernels.shape == (4, 13, 13)
    weights = [math.exp(-(i**2) / 8) for i in range(7)]
    for kernel, angle in zip(kernels, degrees.tolist(), strict=True):
        expected = torch.zeros(13, 13, dtype=torch.float64)
        for i, weight in enumerate(weights):
            x, y = i * math.cos(math.radians(angle)), i * math.sin(math.radians(angle))
            expected[6 + round(y), 6 + round(x)] += weight / sum(weights)
        torch.testing.assert_close(kernel, expected)


def test_filter_and_blur_against_a_loop():
    image = IMAGES[:2].double()
    sigma, radius = 0.8, 3
    expected = torch.zeros_like(image)
    for n in range(2):
        for y in range(0, 32, 3):
            for x in range(32):
                total = 0.0
                for i in range(-radius, radius + 1):
                    for j in range(-radius, radius + 1):
                        weight = math.exp(-(i**2 + j**2) / (2 * sigma**2))
                        total += weight
                        expected[n, :, y, x] += (
                            weight * image[n, :, min(max(y + i, 0), 31), min(max(x + j, 0), 31)]
                        )
                expected[n, :, y, x] /= total
    torch.testing.assert_close(corruptions.blur(image, sigma)[:, :, ::3], expected[:, :, ::3])
    torch.testing.assert_close(
        CORRUPTIONS["gaussian_blur"](IMAGES[:2], 4, seeded()).double()[:, :, ::3],
        expected[:, :, ::3],
        atol=1e-6,
        rtol=0,
    )
    # One kernel for each image: a kernel whose only weight is at row +1, column -2 reads from there.
    kernels = torch.zeros(2, 5, 5, dtype=torch.float64)
    kernels[0, 3, 0] = 1
    kernels[1, 2, 2] = 1
    filtered = corruptions.filter_image(image, kernels)
    assert torch.equal(filtered[0, :, :-1, 2:], image[0, :, 1:, :-2]) and torch.equal(filtered[1], image[1])


def test_glass_blur_moves_pixels_as_the_published_loop_does():
    image = (IMAGES[0] * 255).floor() / 255
    rows, columns = (corruptions.uniform(corruptions.spawn(seeded(), 1), 0, 2, 2, 32, 32).long() - 1)[0]
    expected = image.clone()
    for y in range(31, 1, -1):  # the order of the original, each step seeing what the steps before left
        for x in range(31, 1, -1):
            expected[:, y, x] = expected[:, y + rows[y, x], x + columns[y, x]]
    moved = CORRUPTIONS["glass_blur"](image[None], 1, seeded())[0]  # at severity 1 it does not blur
    torch.testing.assert_close(moved, expected)
    assert (moved != image).float().mean() > 0.5


def test_glass_blur_and_snow_round_down_inside():
    # Where both blurs do nothing, what is left of values between two levels is the lower level.
    between = torch.full((2, 3, 32, 32), 100.9 / 255)
    torch.testing.assert_close(
        CORRUPTIONS["glass_blur"](between, 1, seeded()), torch.full_like(between, 100 / 255)
    )
    # The flakes of snow are whole levels, and a picture of white stays at 1 whatever is added.
    flakes = CORRUPTIONS["snow"](torch.zeros(8, 3, 32, 32), 2, seeded()) - 0.1 * 0.5
    torch.testing.assert_close(flakes * 255, (flakes * 255).round(), atol=1e-3, rtol=0)
    assert len((flakes * 255).round().unique()) > 50


def test_zoom_against_coordinates():
    for factor in (1.0, 1.04, 1.25, 2.25):
        crop = math.ceil(32 / factor)
        large, top = round(crop * factor), (32 - crop) // 2
        trim = (large - 32) // 2
        image = torch.arange(32.0).expand(32, 32)[None, None]  # the value is the column
        columns = top + (torch.arange(32.0) + trim) * (crop - 1) / (large - 1)
        torch.testing.assert_close(
            corruptions.zoom(image, factor)[0, 0], columns.expand(32, 32), atol=1e-4, rtol=0
        )
    factors = [1.0, 1.01, 1.02, 1.03, 1.04, 1.05, 1.06]
    expected = (IMAGES + sum(corruptions.zoom(IMAGES, factor) for factor in factors)) / 8
    torch.testing.assert_close(CORRUPTIONS["zoom_blur"](IMAGES, 1, seeded()), expected)


# ---- Weather ---------------------------------------------------------------------------------------------


def test_clouds_are_means_of_their_corners_plus_a_bounded_number():
    # With a huge decay only the first two numbers and then interpolation are left; the field wraps around.
    field = corruptions.plasma(corruptions.spawn(seeded(), 3), 1e6).double()
    for step in (16, 8, 4, 2):
        half = step // 2
        corner = field[:, ::step, ::step]
        mean = (corner + corner.roll(-1, 1) + corner.roll(-1, 2) + corner.roll((-1, -1), (1, 2))) / 4
        torch.testing.assert_close(field[:, half::step, half::step], mean, atol=1e-5, rtol=0)
        centre = field[:, half::step, half::step]
        mean = (corner + corner.roll(-1, 2) + centre + centre.roll(1, 1)) / 4
        torch.testing.assert_close(field[:, ::step, half::step], mean, atol=1e-5, rtol=0)
        mean = (corner + corner.roll(-1, 1) + centre + centre.roll(1, 2)) / 4
        torch.testing.assert_close(field[:, half::step, ::step], mean, atol=1e-5, rtol=0)
    field = corruptions.plasma(corruptions.spawn(seeded(), 50), 2.0)
    assert (field.amin(dim=(1, 2)) == 0).all() and (field.amax(dim=(1, 2)) == 1).all()


def test_fog_and_frost_and_snow_by_their_formulas():
    black, white = torch.zeros(3, 3, 32, 32), torch.ones(3, 3, 32, 32)
    clouds = corruptions.plasma(corruptions.spawn(seeded(), 3), 2.0)[:, None]
    torch.testing.assert_close(CORRUPTIONS["fog"](white, 4, seeded()), ((1 + clouds) / 2).expand_as(white))
    assert torch.equal(CORRUPTIONS["fog"](black, 4, seeded()), black)
    # Frost is linear in the picture: w x + v ice, so two pictures differ by w times their difference.
    low, high = (torch.full((50, 3, 32, 32), value) for value in (0.1, 0.3))
    frosted_low, frosted_high = (
        CORRUPTIONS["frost"](low, 5, seeded()),
        CORRUPTIONS["frost"](high, 5, seeded()),
    )
    torch.testing.assert_close(frosted_high - frosted_low, 0.75 * (high - low), atol=1e-5, rtol=0)
    ice = (frosted_low - 0.75 * low) / 0.45
    assert 0.45 < ice.mean() < 0.8 and ice[:, 2].mean() > ice[:, 0].mean()
    # Snow only brightens, and turning it by 180 degrees changes nothing on a plain picture.
    snowed = CORRUPTIONS["snow"](low, 3, seeded())
    assert (snowed >= low).all()
    torch.testing.assert_close(snowed, snowed.rot90(2, (2, 3)))


def test_spatter_water_brightens_and_mud_is_brown():
    grey = torch.full((20, 3, 32, 32), 0.4)
    water = CORRUPTIONS["spatter"](grey, 3, seeded()) - grey
    assert (water >= 0).all() and water.amax() == pytest.approx(0.5 * 238 / 255, abs=0.01)
    torch.testing.assert_close(water[:, 1].amax(dim=(1, 2)), torch.full((20,), 0.5 * 238 / 255))  # of each
    torch.testing.assert_close(water[:, 0] * 238, water[:, 1] * 175, atol=1e-3, rtol=0)
    mud = CORRUPTIONS["spatter"](grey, 5, seeded())
    brown = torch.tensor([63, 42, 20])[:, None, None] / 255
    opacity = (grey - mud) / (grey - brown)
    torch.testing.assert_close(opacity[:, 0], opacity[:, 2], atol=1e-5, rtol=0)
    assert ((opacity < 1e-6) | (opacity > 0.799)).all() and (opacity > 0.8).any() and opacity.max() < 1.0001


# ---- Light, colour and files -----------------------------------------------------------------------------


def test_brightness_contrast_and_saturate_against_closed_forms():
    colours = torch.rand(1, 3, 32, 32, generator=seeded())
    colours[..., :2, :] = colours[:, :1, :2]  # some grey
    colours[..., 0, :3] = 0  # some black
    pixels = colours[0].flatten(1).T.double().tolist()
    hue_saturation_value = [colorsys.rgb_to_hsv(*pixel) for pixel in pixels]
    for severity, amount in enumerate((0.05, 0.10, 0.15, 0.20, 0.30), start=1):
        expected = [colorsys.hsv_to_rgb(h, s, min(v + amount, 1)) for h, s, v in hue_saturation_value]
        result = CORRUPTIONS["brightness"](colours, severity, seeded())[0].flatten(1).T
        torch.testing.assert_close(result, torch.tensor(expected), atol=1e-5, rtol=0)
    for severity, (factor, add) in enumerate(((0.3, 0), (0.1, 0), (1.5, 0), (2, 0.1), (2.5, 0.2)), start=1):
        expected = [colorsys.hsv_to_rgb(h, min(s * factor + add, 1), v) for h, s, v in hue_saturation_value]
        result = CORRUPTIONS["saturate"](colours, severity, seeded())[0].flatten(1).T
        torch.testing.assert_close(result, torch.tensor(expected), atol=1e-5, rtol=0)
    result = CORRUPTIONS["contrast"](IMAGES, 4, seeded())
    torch.testing.assert_close(result.mean(dim=(2, 3)), IMAGES.mean(dim=(2, 3)), atol=1e-6, rtol=0)
    torch.testing.assert_close(result.std(dim=(2, 3)), 0.3 * IMAGES.std(dim=(2, 3)), atol=1e-6, rtol=0)


def test_pixelate_against_pillow():
    for severity, side in enumerate((30, 28, 27, 24, 20), start=1):
        result = CORRUPTIONS["pixelate"](IMAGES[:4], severity, seeded())
        for image, pixelated in zip(IMAGES[:4], result, strict=True):
            picture = to_pil_image((image * 255).round().byte())
            picture = picture.resize((side, side), Image.BOX).resize((32, 32), Image.BOX)
            difference = (pixelated * 255 - pil_to_tensor(picture)).abs().max()
            assert difference < 1.6, severity  # Pillow rounds to whole levels, once for each direction


def test_jpeg_is_pillow_s_and_rounds_to_steps_of_the_standard():
    images = torch.cat([IMAGES, torch.rand(4, 3, 32, 32, generator=seeded())])
    for severity, quality in enumerate((80, 65, 58, 50, 40), start=1):
        result = CORRUPTIONS["jpeg_compression"](images, severity, seeded())
        for image, ours in zip(images, result, strict=True):
            file = io.BytesIO()
            to_pil_image((image * 255).round().byte()).save(file, "JPEG", quality=quality)
            assert torch.equal((ours * 255).round().byte(), pil_to_tensor(Image.open(file)))
    # A grey picture at quality 50: each cosine coefficient is a multiple of its step (ITU-T T.81, table K.1).
    grey = (0.3 + 0.4 * IMAGES[:1].mean(dim=1, keepdim=True)).expand(1, 3, 32, 32)
    block = CORRUPTIONS["jpeg_compression"](grey, 4, seeded())[0, 0, :8, :8] * 255 - 128
    wave = [[math.cos((2 * x + 1) * u * math.pi / 16) / 2 for x in range(8)] for u in range(8)]
    for u, step in enumerate((16, 11, 10, 16, 24, 40, 51, 61)):  # the first row of the table
        total = sum(wave[0][y] * wave[u][x] * block[y, x].item() for y in range(8) for x in range(8))
        coefficient = total * (0.5 if u == 0 else math.sqrt(0.5))
        assert abs(coefficient - step * round(coefficient / step)) < 1.2  # the pixels are whole numbers


# ---- Geometry --------------------------------------------------------------------------------------------


def test_rotation_translation_and_scale_do_what_they_say():
    n = len(IMAGES)
    # Quarters of a turn are those of rot90, small turns those of torchvision inside of the border.
    for degrees in (90.0, 12.0):
        turned = corruptions.rotation(IMAGES, corruptions.spawn(seeded(), n), degrees)
        if degrees == 90:
            both = [IMAGES.rot90(quarters, (2, 3)) for quarters in (1, -1)]
        else:
            both = [rotate(IMAGES, angle, InterpolationMode.BILINEAR) for angle in (degrees, -degrees)]
        difference = [(turned - one).abs()[:, :, 8:24, 8:24].amax(dim=(1, 2, 3)) for one in both]
        matches = torch.stack(difference) < 1e-4
        assert matches.any(dim=0).all() and matches.any(dim=1).all()
    assert CORRUPTIONS["rotation"].constants == {"degrees": (6, 12, 18, 24, 30)}
    for severity, pixels in enumerate((1, 2, 3, 5, 8), start=1):
        moved = CORRUPTIONS["translation"](IMAGES, severity, seeded())
        # Mirrored at the border, the edge pixel repeated: index -1 is 0, index 32 is 31.
        matches = []
        for dy in (-pixels, pixels):
            for dx in (-pixels, pixels):
                y, x = ((torch.arange(32) + d) for d in (dy, dx))
                y, x = (torch.where(i < 0, -1 - i, torch.where(i > 31, 63 - i, i)) for i in (y, x))
                matches.append((moved - IMAGES[:, :, y][:, :, :, x]).abs().amax(dim=(1, 2, 3)) < 1e-4)
        assert torch.stack(matches).any(dim=0).all() and all(match.any() for match in matches)
    column = (torch.arange(32.0).expand(20, 3, 32, 32) / 31).contiguous()
    for severity, factor in enumerate((1.1, 1.2, 1.35, 1.5, 1.75), start=1):
        slope = (CORRUPTIONS["scale"](column, severity, seeded())[:, 0, 16, 14:18] * 31).diff(dim=1)
        expected = torch.where(slope < 1, 1 / factor, factor)
        torch.testing.assert_close(slope, expected, atol=1e-4, rtol=1e-4)
        assert (slope < 1).any() and (slope > 1).any()


def test_elastic_transform_mirrors_as_the_published_one_does():
    # The affine step leaves the edge out of the mirror image: index -1 is 1, and 32 is 30.
    shift = torch.tensor([[-3.0, 2.0]])
    moved = corruptions.affine(IMAGES[:1], torch.eye(2)[None], shift, repeat_edge=False)
    source = torch.arange(32)
    columns, rows = (source - 3).abs(), torch.where(source + 2 > 31, 62 - (source + 2), source + 2)
    torch.testing.assert_close(moved, IMAGES[:1, :, rows][..., columns], atol=1e-5, rtol=0)
    # The blur of the bumps repeats it, and may reach over half of the row.
    for sigma in (0.0, 0.96, 6.4):
        radius = int(3 * sigma + 0.5)
        field = torch.rand(32, generator=seeded()).double()
        mirrored = torch.cat([field.flip(0), field, field.flip(0)])
        weights = [math.exp(-(i**2) / (2 * sigma**2)) if i else 1.0 for i in range(-radius, radius + 1)]
        expected = [
            sum(w * mirrored[32 + x + i - radius] for i, w in enumerate(weights)) / sum(weights)
            for x in range(32)
        ]
        blurred = corruptions.mirrored_blur_matrix(sigma).double() @ field
        torch.testing.assert_close(blurred, torch.stack(expected), atol=1e-6, rtol=0)


def test_occlusion_is_a_growing_grey_square():
    before = torch.zeros(30, 32, 32, dtype=torch.bool)
    images = torch.ones(30, 3, 32, 32)
    for severity, side in enumerate((4, 8, 12, 16, 20), start=1):
        occluded = CORRUPTIONS["occlusion"](images, severity, seeded())
        covered = (occluded == 0.5).all(dim=1)
        assert torch.equal(occluded, torch.where(covered[:, None], 0.5, images))
        assert (covered.any(dim=1).sum(dim=1) == side).all() and (covered.any(dim=2).sum(dim=1) == side).all()
        assert (covered.sum(dim=(1, 2)) == side**2).all()
        assert (covered | ~before).all()  # the larger square contains the smaller
        before = covered
    assert len({tuple(c.any(dim=0).nonzero()[0].tolist()) for c in before}) > 3  # at different places


# ---- The table and the folder ----------------------------------------------------------------------------

FOLDER = Path(corruptions.__file__).parent


def test_the_seed_of_a_corruption_follows_from_its_name():
    images = (IMAGES[:3] * 255).round().byte()
    seeds = set()
    for name in NAMES:
        seed = zlib.crc32(name.encode())
        seeds.add(seed)
        exact = CORRUPTIONS[name](images / 255, 4, seeded(seed)) * 255
        down = name in (*corruptions.FIFTEEN, *corruptions.EXTRA) and name not in WHOLE_NUMBERS
        expected = ((exact + 1e-4).floor() if down else exact.round()).byte()
        assert torch.equal(corruptions.corrupt(images, name, 4), expected), name
    assert len(seeds) == len(NAMES)
    # The images are corrupted in pieces of 500; where the pieces end does not matter.
    many = images[:1].expand(501, -1, -1, -1)
    expected = (
        CORRUPTIONS["impulse_noise"](many / 255, 5, seeded(zlib.crc32(b"impulse_noise"))) * 255
    ).round()  # values are whole levels already
    assert torch.equal(corruptions.corrupt(many, "impulse_noise", 5), expected.byte())


def test_rounding_down_keeps_whole_levels():
    levels = torch.arange(256) / 255
    for values in (levels, levels.nextafter(torch.tensor(-1.0)), levels.nextafter(torch.tensor(2.0))):
        assert torch.equal((corruptions.round_down(values) * 255).round(), torch.arange(256.0))
    assert torch.equal((corruptions.round_down(levels - 0.001 / 255) * 255).round()[1:], torch.arange(255.0))
    assert torch.equal((corruptions.round_down(levels + 0.999 / 255) * 255).round(), torch.arange(256.0))


def test_examples_show_the_image_nearest_to_mid_grey():
    images = torch.stack([torch.full((3, 32, 32), value, dtype=torch.uint8) for value in (0, 255, 120, 200)])
    images[2, 0, 0, 0] = 90
    pictures = corruptions.examples(images)
    assert list(pictures) == NAMES
    for name, rows in pictures.items():
        assert rows.shape == (6, 32, 32, 3) and rows.dtype == np.uint8
        assert np.array_equal(rows[0], images[2].permute(1, 2, 0).numpy())
        corrupted = corruptions.corrupt(images[2:3], name, 5)[0].permute(1, 2, 0).numpy()
        assert np.array_equal(rows[5], corrupted)


@pytest.mark.slow
def test_the_folder_works_alone_in_another_project(tmp_path):
    shutil.copytree(FOLDER, tmp_path / "theirs" / "robustness")
    program = """
import sys, torch
from theirs.robustness import attacks, corruptions, explanations
model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3072, 5))
images = torch.rand(2, 3, 32, 32)
corruptions.CORRUPTIONS["jpeg_compression"](images, 3, torch.Generator())
attacks.pgd(model, images, torch.tensor([0, 1]), 0.01, torch.Generator(), steps=2)
explain = lambda model, images, classes: images[:, 0]
explanations.cascading_randomization(model, images, explain, ["1"])
explanations.deletion_insertion(model, images, images[:, 0], torch.tensor([0, 1]), torch.zeros(3), 2)
print(*sorted({name.split(".")[0] for name in sys.modules}))
"""
    # Without the project's folder in the path.
    command = [sys.executable, "-c", program]
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=True)
    modules = set(done.stdout.split())
    assert "theirs" in modules and not modules & {"data", "train", "running", "stress_tests", "matplotlib"}

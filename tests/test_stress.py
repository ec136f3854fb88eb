import colorsys
import json
import math
import shutil
from copy import deepcopy
from itertools import pairwise
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import nn
from torchvision.io import decode_jpeg, encode_jpeg
from torchvision.transforms.functional import pil_to_tensor, to_pil_image

import data
import runs
import stress
from gradcam import GradCAM
from resnet_cifar import resnet18
from train import predict

NAMES = list(stress.CORRUPTIONS)
RANDOM = [
    *("gaussian_noise", "shot_noise", "impulse_noise", "speckle_noise", "glass_blur", "motion_blur", "snow"),
    *("frost", "fog", "spatter", "elastic_transform", "rotation", "translation", "scale", "occlusion"),
]


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def natural_images(n: int, seed: int = 0) -> torch.Tensor:
    """Random images with the spectrum of photographs, amplitude falling as 1/f, float32 [n, 3, 32, 32]."""
    frequency = torch.hypot(torch.fft.fftfreq(32)[:, None], torch.fft.rfftfreq(32)[None, :]).clamp(min=1 / 32)
    grey_and_colour = torch.randn(n, 4, 32, 32, generator=seeded(seed))
    fields = torch.fft.irfft2(torch.fft.rfft2(grey_and_colour) / frequency)
    fields = fields / fields.std(dim=(2, 3), keepdim=True)
    return (0.45 + 0.2 * fields[:, :1] + 0.07 * fields[:, 1:]).clamp(0, 1)


IMAGES = natural_images(24)


# ---- Every corruption ------------------------------------------------------------------------------------


def test_the_corruptions_are_the_published_ones_and_ours():
    assert len(stress.FIFTEEN) == 15 and len(NAMES) == 23
    assert set(stress.SEVERITIES) == set(NAMES)
    assert all(len(row) == 5 for row in stress.SEVERITIES.values())


@pytest.mark.parametrize("name", NAMES)
def test_shape_type_range_and_the_input_left_alone(name):
    for severity in (1, 2, 3, 4, 5):
        for images in (IMAGES[:4], torch.zeros(2, 3, 32, 32), torch.ones(2, 3, 32, 32)):
            before = images.clone()
            corrupted = stress.CORRUPTIONS[name](images, severity, seeded())
            assert corrupted.shape == images.shape and corrupted.dtype == torch.float32
            assert corrupted.min() >= 0 and corrupted.max() <= 1  # false for NaN too
            assert torch.equal(images, before)
    # The order of the values in memory does not matter.
    corrupted = stress.CORRUPTIONS[name](
        IMAGES[:4].contiguous(memory_format=torch.channels_last), 3, seeded()
    )
    torch.testing.assert_close(
        corrupted, stress.CORRUPTIONS[name](IMAGES[:4], 3, seeded()), atol=1e-5, rtol=0
    )


@pytest.mark.parametrize("name", NAMES)
def test_bad_input_is_refused(name):
    corruption = stress.CORRUPTIONS[name]
    for severity in (0, 6, 2.5):
        with pytest.raises(ValueError, match="severity"):
            corruption(IMAGES[:1], severity, seeded())
    for images in (IMAGES[0], IMAGES[:1, :1], IMAGES[:1].double(), (IMAGES[:1] * 255).byte()):
        with pytest.raises(ValueError, match="images"):
            corruption(images, 1, seeded())


@pytest.mark.parametrize("name", NAMES)
def test_same_generator_same_result(name):
    one, two, other = (stress.CORRUPTIONS[name](IMAGES[:6], 3, seeded(seed)) for seed in (5, 5, 6))
    assert torch.equal(one, two)
    # A corruption that is random in name only would fail here, a fixed one that draws would as well.
    assert torch.equal(one, other) == (name not in RANDOM)


@pytest.mark.parametrize("name", NAMES)
def test_in_a_batch_as_alone(name):
    corruption = stress.CORRUPTIONS[name]
    for severity in (1, 5):
        together = corruption(IMAGES[:6], severity, seeded())
        generator = seeded()
        alone = torch.cat([corruption(image[None], severity, generator) for image in IMAGES[:6]])
        torch.testing.assert_close(together, alone, atol=1e-5, rtol=0)
        # Nor do the other images matter: the third keeps its result when all others change.
        others = IMAGES[6:12].clone()
        others[2] = IMAGES[2]
        torch.testing.assert_close(corruption(others, severity, seeded())[2], together[2], atol=1e-5, rtol=0)


# Where the published constants do not get worse in mean distance from one severity to the next, and why.
NOT_WORSE = {
    "glass_blur": {2, 3, 5},  # the blur hides some of what the rounds do
    "motion_blur": {4},  # a longer radius, but the Gaussian has ended long before it
    "frost": {4, 5},  # the weights of both picture and frost fall
    "spatter": {4},  # mud after water
    "saturate": {3},  # intense after pale
    "elastic_transform": {2, 3, 4, 5},  # the shift falls while the bumps get finer
}


@pytest.mark.parametrize("name", NAMES)
def test_the_distance_rises_with_severity(name):
    distance = [
        (stress.CORRUPTIONS[name](IMAGES, severity, seeded()) - IMAGES).abs().mean().item()
        for severity in (1, 2, 3, 4, 5)
    ]
    assert distance[0] > 0.0005
    for severity in (2, 3, 4, 5):
        if severity not in NOT_WORSE.get(name, ()):
            assert distance[severity - 1] > distance[severity - 2], (severity, distance)


@pytest.mark.parametrize("name", ["defocus_blur", "glass_blur", "motion_blur", "zoom_blur", "gaussian_blur"])
def test_what_moves_or_averages_pixels_leaves_a_plain_image_alone(name):
    plain = torch.tensor([0.2, 0.5, 0.9])[None, :, None, None].expand(2, 3, 32, 32).contiguous()
    for corruption in (name, "elastic_transform", "pixelate", "rotation", "translation", "scale", "contrast"):
        torch.testing.assert_close(
            stress.CORRUPTIONS[corruption](plain, 5, seeded()), plain, atol=2e-6, rtol=0
        )


# ---- Noise -----------------------------------------------------------------------------------------------


def test_moments_of_the_noises():
    grey = torch.full((40, 3, 32, 32), 0.5)
    n = grey.numel()
    for name, sigma in (("gaussian_noise", 0.06), ("speckle_noise", 0.5 * 0.10)):
        difference = stress.CORRUPTIONS[name](grey, 2, seeded()) - grey
        assert abs(difference.mean()) < 5 * sigma / math.sqrt(n)
        assert difference.std().item() == pytest.approx(sigma, rel=0.02)
    counts = stress.shot_noise(grey, 3, seeded()) * 100  # Poisson with mean and variance 50
    torch.testing.assert_close(counts, counts.round(), atol=1e-3, rtol=0)
    assert counts.mean().item() == pytest.approx(50, abs=0.2) and counts.var().item() == pytest.approx(
        50, rel=0.05
    )
    impulses = stress.impulse_noise(grey, 5, seeded())
    for value in (0.0, 1.0):
        assert (impulses == value).float().mean().item() == pytest.approx(0.035, abs=0.003)
    assert ((impulses == 0.5) | (impulses == 0) | (impulses == 1)).all()
    assert (impulses[:, 0] != impulses[:, 1]).any()  # each channel by itself


# ---- Blur ------------------------------------------------------------------------------------------------


def test_kernels_sum_to_one_and_have_their_shape():
    for sigma in (0.0, 0.05, 0.4, 1.0, 6.4):
        weights = stress.gaussian_weights(sigma)
        assert weights.sum().item() == pytest.approx(1, abs=1e-12) and len(weights) % 2 == 1
        torch.testing.assert_close(weights, weights.flip(0))
    variance = (stress.gaussian_weights(1.5) * torch.arange(-6, 7).double() ** 2).sum().item()
    assert variance == pytest.approx(1.5**2, rel=0.01)
    for radius, sigma in stress.SEVERITIES["defocus_blur"]:
        kernel = stress.defocus_kernel(radius, sigma)
        assert kernel.sum().item() == pytest.approx(1, abs=1e-12)
        torch.testing.assert_close(kernel, kernel.rot90())
    # Radius 1 is the pixel and its four neighbours: with hardly any softening, a fifth each.
    cross = stress.defocus_kernel(1.0, 0.01)
    assert [round(v, 6) for v in (cross[3, 3].item(), cross[2, 3].item(), cross[2, 2].item())] == [
        0.2,
        0.2,
        0,
    ]


def test_motion_kernel_lies_on_its_line():
    degrees = torch.tensor([0.0, 90.0, 45.0, -30.0])
    kernels = stress.motion_kernel(3, 2.0, degrees)
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
    torch.testing.assert_close(stress.blur(image, sigma)[:, :, ::3], expected[:, :, ::3])
    torch.testing.assert_close(
        stress.gaussian_blur(IMAGES[:2], 4, seeded()).double()[:, :, ::3],
        expected[:, :, ::3],
        atol=1e-6,
        rtol=0,
    )
    # One kernel for each image: a kernel whose only weight is at row +1, column -2 reads from there.
    kernels = torch.zeros(2, 5, 5, dtype=torch.float64)
    kernels[0, 3, 0] = 1
    kernels[1, 2, 2] = 1
    filtered = stress.filter_image(image, kernels)
    assert torch.equal(filtered[0, :, :-1, 2:], image[0, :, 1:, :-2]) and torch.equal(filtered[1], image[1])


def test_glass_blur_moves_pixels_as_the_published_loop_does():
    generator = seeded()
    rows, columns = (torch.randint(-1, 1, (1, 32, 32), generator=generator) for _ in range(2))
    rows[:, :2], rows[:, :, :2], columns[:, :2], columns[:, :, :2] = 0, 0, 0, 0
    expected = IMAGES[0].clone()
    for y in range(31, 1, -1):  # the order of the original, each step seeing what the steps before left
        for x in range(31, 1, -1):
            expected[:, y, x] = expected[:, y + rows[0, y, x], x + columns[0, y, x]]
    assert torch.equal(stress.take_neighbours(IMAGES[:1], rows, columns)[0], expected)
    # The corruption itself, where it hardly blurs: each pixel is itself or a neighbour above or to the left.
    numbered = torch.arange(1024.0).view(1, 1, 32, 32).expand(1, 3, 32, 32) / 1024
    moved = (numbered - stress.glass_blur(numbered.contiguous(), 1, seeded())) * 1024
    moved = moved[0, 0].round().int()
    assert set(moved.flatten().tolist()) == {0, 1, 32, 33}
    assert not moved[:2].any() and not moved[:, :2].any()


def test_zoom_against_coordinates():
    for factor in (1.0, 1.04, 1.25, 2.25):
        crop = math.ceil(32 / factor)
        large, top = round(crop * factor), (32 - crop) // 2
        trim = (large - 32) // 2
        image = torch.arange(32.0).expand(32, 32)[None, None]  # the value is the column
        columns = top + (torch.arange(32.0) + trim) * (crop - 1) / (large - 1)
        torch.testing.assert_close(
            stress.zoom(image, factor)[0, 0], columns.expand(32, 32), atol=1e-4, rtol=0
        )
        torch.testing.assert_close(
            stress.zoom(image.mT, factor)[0, 0].mT, columns.expand(32, 32), atol=1e-4, rtol=0
        )
    factors = [1.0, 1.01, 1.02, 1.03, 1.04, 1.05, 1.06]
    expected = (IMAGES + sum(stress.zoom(IMAGES, factor) for factor in factors)) / 8
    torch.testing.assert_close(stress.zoom_blur(IMAGES, 1, seeded()), expected)


# ---- Weather ---------------------------------------------------------------------------------------------


def test_clouds_are_means_of_their_corners_plus_a_bounded_number():
    # With a huge decay only the first two numbers and then interpolation are left; the field wraps around.
    field = stress.plasma(stress.spawn(seeded(), 3), 1e6).double()
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
    field = stress.plasma(stress.spawn(seeded(), 50), 2.0)
    assert (field.amin(dim=(1, 2)) == 0).all() and (field.amax(dim=(1, 2)) == 1).all()
    # The slower the decay, the rougher the clouds.
    rough = [stress.plasma(stress.spawn(seeded(), 50), d).diff(dim=2).abs().mean() for d in (3.0, 2.0, 1.5)]
    assert rough[0] < rough[1] < rough[2]


def test_fog_and_frost_and_snow_by_their_formulas():
    black, white = torch.zeros(3, 3, 32, 32), torch.ones(3, 3, 32, 32)
    clouds = stress.plasma(stress.spawn(seeded(), 3), 2.0)[:, None]
    torch.testing.assert_close(stress.fog(white, 4, seeded()), ((1 + clouds) / 2).expand_as(white))
    assert torch.equal(stress.fog(black, 4, seeded()), black)
    # Frost is linear in the picture: w x + v ice, so two pictures differ by w times their difference.
    low, high = (torch.full((50, 3, 32, 32), value) for value in (0.1, 0.3))
    frosted_low, frosted_high = stress.frost(low, 5, seeded()), stress.frost(high, 5, seeded())
    torch.testing.assert_close(frosted_high - frosted_low, 0.75 * (high - low), atol=1e-5, rtol=0)
    ice = (frosted_low - 0.75 * low) / 0.45
    assert 0.45 < ice.mean() < 0.8 and ice[:, 2].mean() > ice[:, 0].mean()
    assert ice.mean(dim=1).std(dim=(1, 2)).mean().item() == pytest.approx(0.09, rel=0.05)
    # Snow only brightens, and turning it by 180 degrees changes nothing on a plain picture.
    snowed = stress.snow(low, 3, seeded())
    assert (snowed >= low).all()
    torch.testing.assert_close(snowed, snowed.rot90(2, (2, 3)))


def test_spatter_water_brightens_and_mud_is_brown():
    grey = torch.full((20, 3, 32, 32), 0.4)
    water = stress.spatter(grey, 3, seeded()) - grey
    assert (water >= 0).all() and water.amax() == pytest.approx(0.5 * 238 / 255, abs=0.01)
    torch.testing.assert_close(water[:, 0] * 238, water[:, 1] * 175, atol=1e-3, rtol=0)
    mud = stress.spatter(grey, 5, seeded())
    brown = torch.tensor([63, 42, 20])[:, None, None] / 255
    opacity = (grey - mud) / (grey - brown)
    torch.testing.assert_close(opacity[:, 0], opacity[:, 2], atol=1e-5, rtol=0)
    assert ((opacity < 1e-6) | (opacity > 0.799)).all() and (opacity > 0.8).any() and opacity.max() < 1.0001


# ---- Light, colour and files -----------------------------------------------------------------------------


def hsv(rgb: list[float]) -> tuple[float, float, float]:
    return colorsys.rgb_to_hsv(*rgb)


def test_brightness_contrast_and_saturate_against_closed_forms():
    colours = torch.rand(1, 3, 32, 32, generator=seeded())
    colours[..., :2, :] = colours[:, :1, :2]  # some grey
    colours[..., 0, :3] = 0  # some black
    pixels = colours[0].flatten(1).T.double().tolist()
    for severity, amount in enumerate((0.05, 0.10, 0.15, 0.20, 0.30), start=1):
        expected = [
            colorsys.hsv_to_rgb(h, s, min(v + amount, 1)) for h, s, v in (hsv(pixel) for pixel in pixels)
        ]
        result = stress.brightness(colours, severity, seeded())[0].flatten(1).T.double()
        torch.testing.assert_close(result, torch.tensor(expected, dtype=torch.float64), atol=1e-5, rtol=0)
    for severity, (factor, add) in enumerate(((0.3, 0), (0.1, 0), (1.5, 0), (2, 0.1), (2.5, 0.2)), start=1):
        expected = [
            colorsys.hsv_to_rgb(h, min(s * factor + add, 1), v)
            for h, s, v in (hsv(pixel) for pixel in pixels)
        ]
        result = stress.saturate(colours, severity, seeded())[0].flatten(1).T.double()
        torch.testing.assert_close(result, torch.tensor(expected, dtype=torch.float64), atol=1e-5, rtol=0)
    result = stress.contrast(IMAGES, 4, seeded())
    torch.testing.assert_close(result.mean(dim=(2, 3)), IMAGES.mean(dim=(2, 3)), atol=1e-6, rtol=0)
    torch.testing.assert_close(result.std(dim=(2, 3)), 0.3 * IMAGES.std(dim=(2, 3)), atol=1e-6, rtol=0)


def test_pixelate_against_block_means_and_pillow():
    half = stress.box_matrix(32, 16)
    blocks = half @ IMAGES @ half.T
    torch.testing.assert_close(blocks, F.avg_pool2d(IMAGES, 2))
    double = stress.box_matrix(16, 32)
    torch.testing.assert_close(
        double @ blocks @ double.T, blocks.repeat_interleave(2, 2).repeat_interleave(2, 3)
    )
    for severity, side in enumerate((30, 28, 27, 24, 20), start=1):
        result = stress.pixelate(IMAGES[:4], severity, seeded())
        for image, pixelated in zip(IMAGES[:4], result, strict=True):
            picture = to_pil_image((image * 255).round().byte())
            picture = picture.resize((side, side), Image.BOX).resize((32, 32), Image.BOX)
            difference = (pixelated * 255 - pil_to_tensor(picture)).abs().max()
            assert difference < 1.6, severity  # Pillow rounds to whole levels, once for each direction


def test_jpeg_against_torchvision():
    images = (torch.cat([IMAGES, torch.rand(4, 3, 32, 32, generator=seeded())]) * 255).round()
    for quality in (95, 80, 65, 58, 50, 40, 10):
        expected = torch.stack([decode_jpeg(encode_jpeg(image.byte(), quality=quality)) for image in images])
        difference = (stress.jpeg(images / 255, quality) * 255 - expected).abs()
        # libjpeg computes in integers, so a coefficient that is about half a step may go the other way.
        assert difference.mean() < 0.6 and (difference > 4).float().mean() < 0.02, quality
        assert difference.mean() < 0.08 * (images - expected).abs().mean(), quality
    for severity, quality in enumerate((80, 65, 58, 50, 40), start=1):
        assert torch.equal(stress.jpeg_compression(IMAGES, severity, seeded()), stress.jpeg(IMAGES, quality))


def test_jpeg_parts():
    transform = stress.dct_matrix()
    torch.testing.assert_close(transform @ transform.T, torch.eye(8, dtype=torch.float64))
    assert stress.quantisation_table(stress.LUMINANCE_STEPS, 50)[0, 0] == 16
    assert stress.quantisation_table(stress.CHROMINANCE_STEPS, 50)[7, 7] == 99
    assert stress.quantisation_table(stress.LUMINANCE_STEPS, 25)[0, 1] == 22  # twice the step
    assert (stress.quantisation_table(stress.LUMINANCE_STEPS, 100) == 1).all()
    # With steps of 1 everywhere grey pictures come back as they were, within rounding.
    grey = IMAGES.mean(dim=1, keepdim=True).expand_as(IMAGES)
    assert (stress.jpeg(grey, 100) - grey).abs().max() < 2.1 / 255


# ---- Geometry --------------------------------------------------------------------------------------------


def test_rotate_against_rot90():
    for quarters in (1, 2, 3):
        turned = stress.rotate(IMAGES, torch.full((len(IMAGES),), 90.0 * quarters))
        torch.testing.assert_close(turned, IMAGES.rot90(quarters, (2, 3)), atol=1e-4, rtol=0)
    angles = stress.rotate(IMAGES[:2], torch.tensor([0.0, 90.0]))  # each image its own angle
    torch.testing.assert_close(angles[0], IMAGES[0], atol=1e-4, rtol=0)
    torch.testing.assert_close(angles[1], IMAGES[1].rot90(1, (1, 2)), atol=1e-4, rtol=0)


def test_rotation_translation_and_scale_do_what_they_say():
    n = len(IMAGES)
    for severity, degrees in enumerate((6.0, 12.0, 18.0, 24.0, 30.0), start=1):
        turned = stress.rotation(IMAGES, severity, seeded())
        both = [stress.rotate(IMAGES, torch.full((n,), sign * degrees)) for sign in (1, -1)]
        matches = torch.stack([(turned - one).abs().amax(dim=(1, 2, 3)) < 1e-6 for one in both])
        assert matches.any(dim=0).all() and matches.any(dim=1).all()
    for severity, pixels in enumerate((1, 2, 3, 5, 8), start=1):
        moved = stress.translation(IMAGES, severity, seeded())
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
        slope = (stress.scale(column, severity, seeded())[:, 0, 16, 14:18] * 31).diff(dim=1)
        expected = torch.where(slope < 1, 1 / factor, factor)
        torch.testing.assert_close(slope, expected, atol=1e-4, rtol=1e-4)
        assert (slope < 1).any() and (slope > 1).any()


def test_elastic_transform_is_affine_at_severity_1_and_moves_by_its_bumps_at_5():
    # Column and row numbers as colours: what comes out says from where each pixel was read.
    y, x = torch.meshgrid(torch.arange(32.0), torch.arange(32.0), indexing="ij")
    images = (torch.stack([x, y, y]) / 31).expand(40, 3, 32, 32).contiguous()
    read = stress.elastic_transform(images, 1, seeded())[:, :2, 8:24, 8:24] * 31
    assert read.diff(n=2, dim=2).abs().max() < 1e-3 and read.diff(n=2, dim=3).abs().max() < 1e-3
    moved = (read - images[:, :2, 8:24, 8:24] * 31)[:, :, 8, 8].abs()
    assert 0.5 < moved.mean() < 2.56  # about the middle of the three corners, each moved by up to 2.56
    read = stress.elastic_transform(images, 5, seeded())[:, :2, 4:28, 4:28] * 31
    bend = read.diff(n=2, dim=3).abs().mean()
    assert 0.05 < bend < 1


def test_occlusion_is_a_growing_grey_square():
    before = torch.zeros(30, 32, 32, dtype=torch.bool)
    images = torch.ones(30, 3, 32, 32)
    for severity, side in enumerate((4, 8, 12, 16, 20), start=1):
        occluded = stress.occlusion(images, severity, seeded())
        covered = (occluded == 0.5).all(dim=1)
        assert torch.equal(occluded, torch.where(covered[:, None], 0.5, images))
        assert (covered.any(dim=1).sum(dim=1) == side).all() and (covered.any(dim=2).sum(dim=1) == side).all()
        assert (covered.sum(dim=(1, 2)) == side**2).all()
        assert (covered | ~before).all()  # the larger square contains the smaller
        before = covered
    assert len({tuple(c.any(dim=0).nonzero()[0].tolist()) for c in before}) > 3  # at different places


# ---- Attacks ---------------------------------------------------------------------------------------------


class Linear(nn.Module):
    """Logits W x + b of the normalised image, in float32."""

    def __init__(self, num_classes: int, seed: int = 0):
        super().__init__()
        self.fc = nn.Linear(3 * 32 * 32, num_classes)
        with torch.no_grad():
            self.fc.weight.copy_(0.02 * torch.randn(self.fc.weight.shape, generator=seeded(seed)))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc(x.flatten(1))


class Small(nn.Module):
    """A convolutional network with batch norm and dropout, whose modes matter."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.conv1 = nn.Conv2d(3, 8, 3, padding=1)
        self.bn1 = nn.BatchNorm2d(8)
        self.layer1 = nn.Sequential(nn.Conv2d(8, 16, 3, stride=2, padding=1), nn.ReLU())
        self.fc = nn.Linear(16, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.layer1(F.relu(self.bn1(self.conv1(x))))
        return self.fc(F.dropout(x.mean(dim=(2, 3)), 0.5, self.training))


def mean_loss(model: nn.Module, images: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        return F.cross_entropy(model.eval()(data.normalize(images)), labels, reduction="none")


def test_fgsm_against_the_closed_form_of_a_linear_model():
    model, epsilon = Linear(5), 4 / 255
    labels = torch.randint(0, 5, (len(IMAGES),), generator=seeded())
    attacked = stress.fgsm(model, IMAGES, labels, epsilon)
    # d loss / d x = W^T (softmax(logits) - onehot) / std, in float64.
    weight = model.fc.weight.detach().double()
    std = torch.tensor(data.STD, dtype=torch.float64)[:, None, None]
    mean = torch.tensor(data.MEAN, dtype=torch.float64)[:, None, None]
    logits = ((IMAGES.double() - mean) / std).flatten(1) @ weight.T + model.fc.bias.detach().double()
    gradient = (logits.softmax(dim=1) - F.one_hot(labels, 5)) @ weight
    gradient = gradient.view_as(IMAGES) / std
    expected = (IMAGES.double() + epsilon * gradient.sign()).clamp(0, 1)
    clear = gradient.abs() > 1e-6  # elsewhere float32 may see the other sign
    assert clear.float().mean() > 0.99
    torch.testing.assert_close(attacked.double()[clear], expected[clear], atol=1e-6, rtol=0)


@pytest.mark.parametrize("epsilon", [0.25 / 255, 1 / 255, 8 / 255, 64 / 255])
def test_attacks_stay_in_their_ball_exactly(epsilon):
    images = torch.cat([IMAGES[:6], torch.rand(6, 3, 32, 32, generator=seeded())])
    images[0], images[1] = 0.0, 1.0
    labels = torch.arange(12) % 10
    model = Small()
    for attacked in (
        stress.fgsm(model, images, labels, epsilon),
        stress.pgd(model, images, labels, epsilon, seeded(), steps=5, restarts=2),
        stress.random_corner(images, epsilon, seeded()),
    ):
        assert attacked.dtype == torch.float32 and attacked.shape == images.shape
        assert attacked.min() >= 0 and attacked.max() <= 1
        difference = (attacked.double() - images.double()).abs()
        assert difference.max() <= epsilon  # in float64, without tolerance
        assert difference.max() > 0.99 * epsilon  # and the radius is used
    low, high = stress.ball(images, epsilon)
    inside = (images > epsilon) & (images < 1 - epsilon)
    torch.testing.assert_close(high[inside] - low[inside], torch.full_like(high[inside], 2 * epsilon))


def test_pgd_is_at_least_as_strong_as_fgsm():
    # Two classes and a linear model: the gradient has one sign everywhere, so FGSM is the worst case.
    model = Linear(2)
    labels = torch.arange(len(IMAGES)) % 2
    single = stress.fgsm(model, IMAGES, labels, 2 / 255)
    iterated = stress.pgd(model, IMAGES, labels, 2 / 255, seeded(), steps=10)
    torch.testing.assert_close(
        mean_loss(model, iterated, labels), mean_loss(model, single, labels), atol=1e-5, rtol=0
    )
    assert (mean_loss(model, iterated, labels) > mean_loss(model, IMAGES, labels)).all()
    small = Small()
    labels = small.eval()(data.normalize(IMAGES)).argmax(dim=1)
    single = stress.fgsm(small, IMAGES, labels, 8 / 255)
    iterated = stress.pgd(small, IMAGES, labels, 8 / 255, seeded(), steps=20)
    assert (mean_loss(small, iterated, labels) >= mean_loss(small, single, labels) - 1e-4).all()
    noise = stress.random_corner(IMAGES, 8 / 255, seeded())
    assert mean_loss(small, noise, labels).mean() < mean_loss(small, single, labels).mean()


def test_pgd_fools_exactly_the_images_within_reach_and_restarts_only_the_others():
    # Two classes, a linear model: fooled if and only if the margin is below epsilon times the L1 norm of the
    # difference of the weights. Images away from 0 and 1, so that only the ball limits the attack.
    model, images = Linear(2), 0.25 + 0.5 * IMAGES
    logits = model(data.normalize(images)).detach()
    labels, margin = logits.argmax(dim=1), (logits[:, 0] - logits[:, 1]).abs()
    weight = (model.fc.weight[0] - model.fc.weight[1]).detach().view(3, 32, 32)
    reach = (weight / torch.tensor(data.STD)[:, None, None]).abs().sum()
    epsilon = (margin.sort().values[11:13].mean() / reach).item()
    attacked = stress.pgd(model, images, labels, epsilon, seeded(), steps=10, restarts=3)
    fooled = model(data.normalize(attacked)).argmax(dim=1) != labels
    assert torch.equal(fooled, margin < epsilon * reach) and fooled.sum() == 12
    seen = []
    model.register_forward_hook(lambda module, inputs, output: seen.append(len(output)))
    stress.pgd(model, images, labels, epsilon, seeded(), steps=10, restarts=3)
    assert seen == 11 * [24] + 22 * [12]


class Wavy(Linear):
    """Logits 3 sin(W x + b): the gradient soon points the wrong way, so a path has ups and downs."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return 3 * torch.sin(super().forward(x))


def test_pgd_returns_the_worst_point_it_visited():
    model, images = Wavy(10), IMAGES[:8]
    # Labels that are wrong from the start, so that only the loss counts.
    labels = (model(data.normalize(images)).argmax(dim=1) + 1) % 10
    seen = []
    handle = model.register_forward_hook(lambda module, inputs, output: seen.append(output.detach()))
    attacked = stress.pgd(model, images, labels, 8 / 255, seeded(), steps=6)
    handle.remove()
    visited = torch.stack([F.cross_entropy(logits, labels, reduction="none") for logits in seen])
    worst = visited.argmax(dim=0)
    assert len(visited) == 7 and (worst > 0).any() and (worst < 6).any()
    torch.testing.assert_close(mean_loss(model, attacked, labels), visited.amax(dim=0))


def test_attacks_are_the_same_in_a_batch_as_alone_and_leave_the_model_alone():
    model = Small()
    model.train()
    model.bn1.eval()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    labels = torch.arange(6)
    together = stress.pgd(model, IMAGES[:6], labels, 4 / 255, seeded(), steps=3, restarts=2)
    generator = seeded()
    alone = [
        stress.pgd(model, IMAGES[i : i + 1], labels[i : i + 1], 4 / 255, generator, steps=3, restarts=2)
        for i in range(6)
    ]
    # A gradient of about zero may change its sign with the order of summation, so not every pixel must agree.
    assert ((together - torch.cat(alone)).abs() < 1e-6).float().mean() > 0.999
    with torch.no_grad():  # gradients are on where they are needed, whatever surrounds the call
        assert not torch.equal(stress.fgsm(model, IMAGES[:6], labels, 4 / 255), IMAGES[:6])
    assert all(parameter.grad is None for parameter in model.parameters())
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    assert model.training and model.fc.training and not model.bn1.training


def test_the_checks_find_a_weak_attack():
    n = len(stress.RADII)
    falling = [0.6 - 0.1 * i for i in range(n - 1)] + [0.0]
    good = {"fgsm": [v + 0.01 for v in falling], "pgd": falling, "random": [0.7] * n}
    where = stress.RADII.index(stress.MORE_STEPS_RADIUS)

    def failed(clean=0.7, more_steps=falling[where], **changed):
        checks = stress.check_attacks(clean, good | changed, more_steps)
        assert len(checks) == 5 and all(check["detail"] for check in checks)
        return [i for i, check in enumerate(checks) if not check["passed"]]

    def with_value(values, i, value):
        return [*values[:i], value, *values[i + 1 :]]

    assert failed() == []
    assert failed(clean=0.55) == [0]
    assert failed(pgd=with_value(falling, 4, 0.35), fgsm=[0.9] * n) == [0]
    assert failed(fgsm=with_value(good["fgsm"], 2, 0.1)) == [1]
    assert failed(random=with_value(good["random"], 3, 0.2)) == [2]
    assert failed(pgd=with_value(falling, n - 1, 0.01), fgsm=[0.9] * n) == [3]
    assert failed(more_steps=falling[where] + 0.01) == [4]


# ---- Faithfulness ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["deletion", "insertion"])
def test_deletion_and_insertion_against_a_loop(mode):
    model, images = Linear(4), IMAGES[:3]
    maps = torch.rand(3, 32, 32, generator=seeded())
    maps[0, :16] = 0.5  # ties
    classes = torch.tensor([0, 3, 1])
    curves, areas = stress.deletion_insertion(model, images, maps, classes, steps=8, mode=mode)
    assert curves.shape == (3, 9)
    mean, std = (torch.tensor(v)[:, None, None] for v in (data.MEAN, data.STD))
    for n in range(3):
        blurred = stress.blur(images[n : n + 1], 4.0)[0]
        start = images[n] if mode == "deletion" else blurred
        order = sorted(range(1024), key=lambda i: (-maps[n].flatten()[i].item(), i))
        expected = []
        for step in range(9):
            picture = start.clone()
            for i in order[: step * 128]:
                y, x = divmod(i, 32)
                picture[:, y, x] = mean[:, 0, 0] if mode == "deletion" else images[n, :, y, x]
            logits = model(((picture - mean) / std)[None])
            expected.append(logits.softmax(dim=1)[0, classes[n]].item())
        assert curves[n].tolist() == pytest.approx(expected, abs=1e-5)
        area = sum((a + b) / 2 / 8 for a, b in pairwise(expected))
        assert areas[n].item() == pytest.approx(area, abs=1e-5)


def test_a_map_that_knows_the_truth_beats_a_random_one():
    model, images = Linear(4), IMAGES
    with torch.no_grad():
        logits = model(data.normalize(images))
    classes = logits.argmax(dim=1)
    # What each pixel adds to the logit of its class, less the mean of all: the truth for a linear model.
    weight = model.fc.weight.detach()
    weight = (weight[classes] - weight.mean(dim=0)).view(-1, 3, 32, 32)
    truth = (weight * data.normalize(images)).sum(dim=1)
    noise = torch.rand(truth.shape, generator=seeded())
    for mode, sign in (("deletion", -1), ("insertion", 1)):
        areas = [stress.deletion_insertion(model, images, m, classes, 16, mode)[1] for m in (truth, noise)]
        assert sign * (areas[0] - areas[1]).mean() > 0.1
    with pytest.raises(ValueError, match="mode"):
        stress.deletion_insertion(model, images, truth, classes, 16, "both")
    with pytest.raises(ValueError, match="maps"):
        stress.deletion_insertion(model, images, truth[:, :4, :4], classes)


def test_spearman_against_closed_forms():
    generator = seeded()
    a = torch.stack([torch.randperm(50, generator=generator) for _ in range(4)]).float()
    b = torch.stack([torch.randperm(50, generator=generator) for _ in range(4)]).float()
    # Without ties: 1 - 6 sum d^2 / (n (n^2 - 1)).
    expected = 1 - 6 * ((a - b) ** 2).sum(dim=1).double() / (50 * (50**2 - 1))
    torch.testing.assert_close(stress.spearman(a, b), expected)
    torch.testing.assert_close(stress.spearman(a, torch.exp(b / 9)), expected)  # only the order counts
    torch.testing.assert_close(stress.spearman(a, -a), -torch.ones(4, dtype=torch.float64))
    # With ties, by hand: ranks 1, 2.5, 2.5, 4 and 1, 2, 3, 4 give 4.5 / sqrt(4.5 * 5).
    tied = stress.spearman(torch.tensor([[0.0, 1, 1, 2]]), torch.tensor([[0.0, 1, 2, 3]]))
    assert tied.item() == pytest.approx(4.5 / math.sqrt(4.5 * 5))
    assert stress.spearman(torch.zeros(1, 4), torch.tensor([[0.0, 1, 2, 3]])).isnan().all()


def test_randomization_check_goes_down_from_the_classifier():
    model = Small()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    images = data.normalize(IMAGES)
    random_state = torch.get_rng_state()
    correlations = stress.randomization_check(model, images, "layer1")
    assert torch.equal(torch.get_rng_state(), random_state)
    assert list(correlations) == ["fc", "layer1", "bn1", "conv1"]
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    # At the first step nothing below the classifier has changed: the same by hand.
    changed = deepcopy(model)
    torch.manual_seed(stress.SEED)
    changed.fc.reset_parameters()
    classes = model.eval()(images).argmax(dim=1)
    maps = []
    for network in (model, changed):
        with GradCAM(network, "layer1") as cam:
            maps.append(cam(images, classes).flatten(1))
    torch.testing.assert_close(correlations["fc"], stress.spearman(*maps), equal_nan=True)
    assert correlations["conv1"].nanmean() < 0.9


# ---- The command -----------------------------------------------------------------------------------------


def test_stratified_sample(monkeypatch):
    labels = torch.arange(10).repeat(20)[torch.randperm(200, generator=seeded())]
    index = stress.stratified_sample(labels, 50)
    assert torch.equal(labels[index].bincount(), torch.full((10,), 5))
    assert (index.diff() > 0).all()
    assert set(stress.stratified_sample(labels, 20).tolist()) <= set(index.tolist())
    assert torch.equal(stress.stratified_sample(labels, 200), torch.arange(200))
    uneven = torch.tensor([0] * 9 + [1])
    assert torch.equal(stress.stratified_sample(uneven, 10), torch.arange(10))
    some = stress.stratified_sample(uneven, 6)  # three of the first class, one of the second
    assert some.tolist()[-1] == 9
    assert len(some) == 4
    monkeypatch.setattr(stress, "SEED", 1)
    assert not torch.equal(stress.stratified_sample(labels, 50), index)  # chosen at random, by the seed


TEST = data.make_shapes(per_class=2, seed=1)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """An untrained narrow network for the shapes set, as train.py would leave it."""
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("stress") / "runs" / "narrow" / "checkpoints" / "best.pt"
    path.parent.mkdir(parents=True)
    class_names = TEST.class_names
    content = {"model": resnet18(len(class_names), 4).state_dict(), "epoch": 1, "class_names": class_names}
    torch.save(content | {"config": {"dataset": "shapes", "width": 4}}, path)
    return path


@pytest.fixture
def quick(monkeypatch):
    monkeypatch.setattr(data, "load", lambda name, root: (None, TEST))  # a small part of the shapes set
    monkeypatch.setattr(stress, "CORRUPTION_IMAGES", 100)
    monkeypatch.setattr(stress, "ATTACK_IMAGES", 100)
    monkeypatch.setattr(stress, "PGD_STEPS", 2)
    monkeypatch.setattr(stress, "PGD_RESTARTS", 1)


def test_the_command_goes_on_where_it_stopped(checkpoint, quick, monkeypatch, capsys):
    run = checkpoint.parent.parent
    measured = []
    measure, measure_attack = stress.measure, stress.measure_attack

    def interrupted(logits, labels):
        if len(measured) == 7:
            raise KeyboardInterrupt
        measured.append("corruption")
        return measure(logits, labels)

    monkeypatch.setattr(stress, "measure", interrupted)
    with pytest.raises(KeyboardInterrupt):
        stress.main(["--run", str(run)])
    assert len(json.loads((run / "stress.json").read_text())["tests"]) == 7

    def counted(*arguments):
        measured.append("attack")
        return measure_attack(*arguments)

    monkeypatch.setattr(stress, "measure", lambda *a: measured.append("corruption") or measure(*a))
    monkeypatch.setattr(stress, "measure_attack", counted)
    assert stress.main(["--run", str(run)]) == 0
    assert measured.count("corruption") == 1 + 23 * 5
    assert measured.count("attack") == 1 + 3 * len(stress.RADII) + 1
    assert stress.main(["--run", str(run)]) == 0  # nothing is left to do
    assert len(measured) == 1 + 23 * 5 + 2 + 3 * len(stress.RADII)

    results = json.loads((run / "stress.json").read_text())
    assert set(results["summary"]["mean_accuracy"]) == {"fifteen", "extra", "geometry", "all"}
    values = [
        results["tests"][f"{name}/{s}"]["accuracy"]["value"] for name in stress.FIFTEEN for s in range(1, 6)
    ]
    assert results["summary"]["mean_accuracy"]["fifteen"]["value"] == pytest.approx(sum(values) / 75)
    record = results["tests"]["fog/3"]
    assert sum(record["correct_per_class"]) == pytest.approx(100 * record["accuracy"]["value"])
    assert record["accuracy"]["low"] <= record["accuracy"]["value"] <= record["accuracy"]["high"]
    assert len(results["checks"]) == 5
    for name in ("severity", "radius", "examples"):
        picture = Image.open(run / "plots" / f"stress_{name}.png")
        assert min(picture.size) > 400
    out = capsys.readouterr().out
    assert "gaussian_noise" in out and "passed" in out and f"report.py --run {run}" in out

    # Another checkpoint starts anew and the old results are kept aside.
    content = torch.load(checkpoint, weights_only=True)
    content["model"]["fc.bias"] += 1e-3
    torch.save(content, checkpoint)
    measured.clear()
    monkeypatch.setattr(stress, "measure", interrupted)
    with pytest.raises(KeyboardInterrupt):
        stress.main(["--run", str(run)])
    assert len(measured) == 7
    assert json.loads((run / "stress-old.json").read_text()) == results


def test_a_recorded_accuracy_is_that_of_the_corrupted_images(checkpoint, quick):
    path, device = checkpoint, torch.device("cpu")
    model, _ = runs.load_model(path, device)
    index = stress.stratified_sample(TEST.labels, 100)
    images, labels = TEST.images[index], TEST.labels[index]
    corrupted = stress.corrupt(images, "fog", 4)
    generator = torch.Generator().manual_seed(1000 * stress.SEED + list(stress.SEVERITIES).index("fog"))
    one_by_one = [stress.fog(image[None] / 255, 4, generator) for image in images]
    assert (corrupted.float() - (torch.cat(one_by_one) * 255).round()).abs().max() <= 1
    logits = predict(model, corrupted, device)
    record = stress.measure(logits, labels)
    right = logits.argmax(dim=1) == labels
    assert record["accuracy"]["value"] == pytest.approx(right.float().mean().item())
    assert record["correct_per_class"] == [int(right[labels == c].sum()) for c in range(100)]
    assert record["mean_confidence"] == pytest.approx(logits.softmax(1).max(1).values.mean().item(), abs=1e-6)


def test_the_accuracy_under_attack_counts_images_that_were_wrong_before():
    model, images = Linear(4), (IMAGES * 255).round().byte()
    labels = model(data.normalize(images / 255)).argmax(dim=1)
    labels[::3] = (labels[::3] + 1) % 4  # a third is wrong without any attack
    assert stress.measure_attack(model, images, labels, "none", 0, 1)["accuracy"]["value"] == 16 / 24
    right = []
    for image, label in zip(images / 255, labels, strict=True):
        attacked = stress.fgsm(model, image[None], label[None], 0.5 / 255)
        before, after = (model(data.normalize(x)).argmax() == label for x in (image[None], attacked))
        right.append(bool(before and after))
    assert 0 < sum(right) < 16
    record = stress.measure_attack(model, images, labels, "fgsm", 0.5, 1)
    assert record["accuracy"]["value"] == sum(right) / 24
    assert stress.measure_attack(model, images, (labels + 1) % 4, "pgd", 64, 3)["accuracy"]["value"] == 0


def test_summary_by_hand():
    record = {
        "accuracy": {"value": 0.5},
        "mean_confidence": 0.6,
        "ece": 0.1,
        "correct_per_class": [2, 0, 1, 0],
    }
    tests = {f"{name}/{severity}": dict(record) for name in NAMES for severity in range(1, 6)}
    tests["fog/5"] = {
        "accuracy": {"value": 0.0},
        "mean_confidence": 1.0,
        "ece": 0.9,
        "correct_per_class": [0] * 4,
    }
    tests["clean/0"] = {"correct_per_class": [2, 0, 2, 0]}
    summary = stress.summarise(tests, [2, 2, 2, 0], ["a", "b", "c", "d"])
    assert summary["mean_accuracy"]["fifteen"]["value"] == pytest.approx(0.5 * 74 / 75)
    assert summary["mean_accuracy"]["extra"]["value"] == 0.5
    assert summary["mean_ece"]["all"] == pytest.approx((0.1 * 114 + 0.9) / 115)
    assert summary["confidence_by_severity"] == pytest.approx([0.6] * 4 + [(0.6 * 22 + 1) / 23])
    rows = summary["classes_that_break_first"]
    assert [row["class"] for row in rows] == ["c", "a", "b"]  # d has no image
    assert rows[0]["drop"] == pytest.approx(1 - 0.5 * 114 / 115)


def test_bad_input_of_the_command_is_one_line(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(data.UserError, match="no run"):
        stress.main(["--run", "runs/nothing"])
    with pytest.raises(data.UserError, match="no checkpoint"):
        stress.main(["--checkpoint", "nothing.pt"])


def test_a_checkpoint_without_a_run_gets_a_folder_of_its_own(checkpoint, quick, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(stress, "predict", lambda *a: None)
    written = []
    monkeypatch.setattr(stress.runs, "write_json", lambda path, content: written.append(path))
    monkeypatch.setattr(
        stress, "measure", lambda *a: written.append("measured") or {"accuracy": {"value": 0.0}}
    )
    monkeypatch.setattr(stress, "measure_attack", lambda *a: (_ for _ in ()).throw(KeyboardInterrupt))
    alone = shutil.copy(checkpoint, tmp_path / "alone.pt")
    for given, folder in ((alone, Path("runs/alone")), (checkpoint, checkpoint.parent.parent)):
        written.clear()
        with pytest.raises(KeyboardInterrupt):
            stress.main(["--checkpoint", str(given)])
        assert set(written) == {"measured", folder / "stress.json"}

"""corruptions.py against a worked example, the published code's own outputs and closed forms."""

import itertools
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

from lab.stress_tests import corruptions
from lab.stress_tests.corruptions import CORRUPTIONS

NAMES = list(CORRUPTIONS)
PUBLISHED_NAMES = [name for name, row in CORRUPTIONS.items() if row.origin != "own" and name != "frost"]
IMAGES = natural_images(24)


@pytest.mark.parametrize("name", NAMES)
def test_shape_type_range_and_the_input_left_alone(name):
    given = torch.cat([IMAGES[:4], torch.zeros(1, 3, 32, 32), torch.ones(1, 3, 32, 32)])
    batches = [(severity, given) for severity in (1, 2, 3, 4, 5)]
    batches += [(5, torch.rand(1, 3, side, side, generator=seeded())) for side in (8, 47, 65)]
    for severity, images in batches:
        before = images.clone()
        corrupted = CORRUPTIONS[name](images, severity, seeded())
        assert corrupted.shape == images.shape and corrupted.dtype == torch.float32
        assert corrupted.min() >= 0 and corrupted.max() <= 1  # false for NaN too
        assert torch.equal(images, before)


def test_constants_are_those_of_the_side():
    """A side of 64 has the constants of CIFAR-10-C, from 65 on those of ImageNet-C; a row of five has one."""
    own = corruptions.Corruption(corruptions.contrast, "digital", "own", factor=(1, 0.9, 0.8, 0.7, 0.6))
    for side, factor in ((8, 0.75), (64, 0.75), (65, 0.4)):
        images = torch.rand(2, 3, side, side, generator=seeded())
        mean = images.mean(dim=(2, 3), keepdim=True)
        moved = CORRUPTIONS["contrast"](images, 1, seeded()) - mean
        torch.testing.assert_close(moved, factor * (images - mean))
        torch.testing.assert_close(own(images, 5, seeded()) - mean, 0.6 * (images - mean))


def test_bad_input_is_refused():
    for severity in (0, 6, 2.5):
        with pytest.raises(ValueError, match="severity"):
            CORRUPTIONS["fog"](IMAGES[:1], severity, seeded())
    wide, small = torch.rand(1, 3, 32, 40), torch.rand(1, 3, 7, 7)
    outside = 255 * IMAGES[:1], IMAGES[:1] - 0.5, torch.full_like(IMAGES[:1], torch.nan)
    for images in (IMAGES[0], IMAGES[:1, :1], IMAGES[:1].double(), wide, small, *outside):
        with pytest.raises(ValueError, match="images"):
            CORRUPTIONS["fog"](images, 1, seeded())


@pytest.mark.parametrize("name", NAMES)
def test_in_a_batch_as_alone(name):
    corruption = CORRUPTIONS[name]
    for severity in (1, 5):
        together = corruption(IMAGES[:6], severity, seeded())
        generator = seeded()
        alone = torch.cat([corruption(image[None], severity, generator) for image in IMAGES[:6]])
        torch.testing.assert_close(together, alone, atol=1e-5, rtol=0)


# ---- The published code ----------------------------------------------------------------------------------

PUBLISHED = np.load(Path(__file__).parent / "published.npz")  # published.md says how it was made
# The largest difference in levels, and the fraction of values that may differ, where it is not 1 and 0.07.
LARGEST = {"snow": 2, "elastic_transform": 5}
DIFFERENT = {"snow": 0.45, "elastic_transform": 0.35, "motion_blur": 0.55, "pixelate": 0.30}


def channels_first(pictures: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(pictures).movedim(-1, -3).contiguous()


@pytest.mark.parametrize("name", PUBLISHED_NAMES)
def test_outputs_of_the_published_code(name):
    for severity, published in enumerate(channels_first(PUBLISHED[name]), start=1):
        ours = corruptions.corrupt(channels_first(PUBLISHED["clean"]), name, severity)
        difference = (ours.int() - published.int()).abs()
        assert difference.max() <= LARGEST.get(name, 1), severity
        assert (difference > 0).float().mean() <= DIFFERENT.get(name, 0.07), severity


def test_frost_has_the_ice_of_the_same_photograph():
    clean = channels_first(PUBLISHED["clean"])
    ours, published = [], []
    for severity, pictures in enumerate(channels_first(PUBLISHED["frost"]), start=1):
        kept, weight, _ = (small[severity - 1] for small, _ in CORRUPTIONS["frost"].constants.values())
        for ice, frosted in ((ours, corruptions.corrupt(clean, "frost", severity)), (published, pictures)):
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
    ours = [statistics(corruptions.corrupt(PHOTOGRAPH, name, severity)) for severity in (1, 2, 3, 4, 5)]
    np.testing.assert_allclose(ours, PUBLISHED_224[name], rtol=OFF_BY_MORE.get(name, 0.003))


def test_statistics_of_frost_at_224_pixels():
    """The published ones are means over 300 parts of the photographs of ice."""
    frosted = corruptions.corrupt(PHOTOGRAPH.expand(16, -1, -1, -1), "frost", 3)
    np.testing.assert_allclose(statistics(frosted), PUBLISHED_224["frost"][2], rtol=0.12)


def test_fog_of_a_picture_without_white():
    """Clouds c from 0 to 1 are added to 0.5, which stays the brightest: (0.5 + 1.5 c) 0.5 / (0.5 + 1.5)."""
    foggy = CORRUPTIONS["fog"](torch.full((3, 3, 32, 32), 0.5), 5, seeded())
    torch.testing.assert_close(foggy.amin(dim=(1, 2, 3)), torch.full((3,), 0.125))
    torch.testing.assert_close(foggy.amax(dim=(1, 2, 3)), torch.full((3,), 0.5))


WHOLE_NUMBERS = ("motion_blur", "pixelate", "jpeg_compression")  # what the published code has as such


def test_the_seed_of_a_corruption_follows_from_its_name(monkeypatch):
    images = (IMAGES[:3] * 255).round().byte()
    monkeypatch.setattr(corruptions, "PIXELS_AT_ONCE", 2 * 32 * 32)  # so where the pieces end does not matter
    seeds = set()
    for name in NAMES:
        seed = zlib.crc32(name.encode())
        seeds.add(seed)
        exact = CORRUPTIONS[name](images / 255, 4, seeded(seed)) * 255
        expected = (exact.round() if name in WHOLE_NUMBERS else (exact + 1e-4).floor()).byte()
        difference = corruptions.corrupt(images, name, 4).int() - expected.int()
        assert (difference.abs().max() <= 1) and (difference != 0).float().mean() < 1e-3, name
    assert len(seeds) == len(NAMES)


@pytest.mark.slow
def test_the_folder_works_alone_in_another_project(tmp_path):
    shutil.copytree(Path(corruptions.__file__).parent, tmp_path / "theirs" / "robustness")
    program = """
import sys, torch
from theirs.robustness import attacks, corruptions, cues, examples, summary
model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3072, 5))
images, labels = torch.rand(2, 3, 32, 32), torch.tensor([0, 1])
corruptions.CORRUPTIONS["jpeg_compression"](images, 3, torch.Generator())
cues.CUES["low_pass"](images, torch.Generator())
attacks.pgd(model, images, labels, 0.01, torch.Generator(), steps=2)
examples.answers_under_attack(model, images, labels, seed=0)
summary.still_right({"unattacked/0": torch.ones(3).bool()}, [], 1)
print(*sorted({name.split(".")[0] for name in sys.modules}))
"""
    # Without the project's folder in the path.
    command = [sys.executable, "-c", program]
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=True)
    modules = set(done.stdout.split())
    assert "theirs" in modules and not modules & {"data", "train", "running", "stress_tests", "matplotlib"}

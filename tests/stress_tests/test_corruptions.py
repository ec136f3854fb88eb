"""corruptions.py against a worked example, the published code's own outputs and closed forms."""

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

from stress_tests import corruptions
from stress_tests.corruptions import CORRUPTIONS

NAMES = list(CORRUPTIONS)
RANDOM = [
    *("gaussian_noise", "shot_noise", "impulse_noise", "speckle_noise", "glass_blur", "motion_blur", "snow"),
    *("frost", "fog", "elastic_transform"),
]
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


# ---- The published code ----------------------------------------------------------------------------------

PUBLISHED = np.load(Path(__file__).parent / "published.npz")  # published.md says how it was made
# The largest difference in levels, and the fraction of values that may differ, where it is not 1 and 0.07.
LARGEST = {"snow": 2, "elastic_transform": 5}
DIFFERENT = {"snow": 0.45, "elastic_transform": 0.35, "motion_blur": 0.55, "pixelate": 0.30}


def channels_first(pictures: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(pictures).movedim(-1, -3).contiguous()


@pytest.mark.parametrize("name", [name for name in NAMES if name != "frost"])
def test_outputs_of_the_published_code(name):
    for severity, published in enumerate(channels_first(PUBLISHED[name]), start=1):
        ours = corruptions.corrupt(channels_first(PUBLISHED["clean"]), name, severity)
        difference = (ours.int() - published.int()).abs()
        assert difference.max() <= LARGEST.get(name, 1), severity
        assert (difference > 0).float().mean() <= DIFFERENT.get(name, 0.07), severity


def test_the_flakes_of_snow_are_whole_levels():
    flakes = 255 * (CORRUPTIONS["snow"](torch.zeros(8, 3, 32, 32), 2, seeded()) - 0.1 * 0.5)
    torch.testing.assert_close(flakes, flakes.round(), atol=1e-3, rtol=0)
    assert len(flakes.round().unique()) > 50


def test_frost_has_the_ice_of_the_same_photograph():
    clean = channels_first(PUBLISHED["clean"])
    ours, published = [], []
    for severity, pictures in enumerate(channels_first(PUBLISHED["frost"]), start=1):
        kept, weight = (values[severity - 1] for values in CORRUPTIONS["frost"].constants.values())
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


# ---- The table and the folder ----------------------------------------------------------------------------

FOLDER = Path(corruptions.__file__).parent


WHOLE_NUMBERS = ("motion_blur", "pixelate", "jpeg_compression")  # what the published code has as such


def test_the_seed_of_a_corruption_follows_from_its_name():
    images = (IMAGES[:3] * 255).round().byte()
    seeds = set()
    for name in NAMES:
        seed = zlib.crc32(name.encode())
        seeds.add(seed)
        exact = CORRUPTIONS[name](images / 255, 4, seeded(seed)) * 255
        expected = (exact.round() if name in WHOLE_NUMBERS else (exact + 1e-4).floor()).byte()
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


@pytest.mark.slow
def test_the_folder_works_alone_in_another_project(tmp_path):
    shutil.copytree(FOLDER, tmp_path / "theirs" / "robustness")
    program = """
import sys, torch
from theirs.robustness import attacks, corruptions, cues, examples, summary
model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3072, 5))
images, labels = torch.rand(2, 3, 32, 32), torch.tensor([0, 1])
corruptions.CORRUPTIONS["jpeg_compression"](images, 3, torch.Generator())
cues.CUES["low_pass"](images, torch.Generator())
attacks.pgd(model, images, labels, 0.01, torch.Generator(), steps=2)
examples.answers_under_attack(model, images, labels, seed=0)
summary.mean_interval(torch.rand(3))
print(*sorted({name.split(".")[0] for name in sys.modules}))
"""
    # Without the project's folder in the path.
    command = [sys.executable, "-c", program]
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=True)
    modules = set(done.stdout.split())
    assert "theirs" in modules and not modules & {"data", "train", "running", "stress_tests", "matplotlib"}

"""The data set as tensors: what is loaded, the split and the batches, each against a second computation."""

import itertools
import math
import os
import pickle
import random
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from networks import seeded

import data
from running.errors import UserError
from sources import cifar


def toy(images, labels, num_classes):
    """A dataset of these images and labels."""
    return data.from_arrays(images, labels, [f"class {c}" for c in range(num_classes)])


IMAGES = np.random.default_rng(0).integers(0, 256, (6, 3, 32, 32), dtype=np.uint8)
LABELS = [0, 2, 1, 1, 0, 2]
FORMS = {
    "NumPy": (IMAGES, np.array(LABELS, dtype=np.uint8)),
    "channels last": (np.ascontiguousarray(IMAGES.transpose(0, 2, 3, 1)), LABELS),
    "torch, channels last": (torch.from_numpy(IMAGES).permute(0, 2, 3, 1), torch.tensor(LABELS).int()),
    "backwards": (IMAGES[::-1].copy()[::-1], np.array(LABELS[::-1])[::-1]),
}
WRONG = {  # what replaces the images or the labels, and what the message names
    "float images": ({"images": IMAGES / 255}, r"float64 \[6, 3, 32, 32\]"),
    "no square": ({"images": IMAGES[:, :, :28]}, r"uint8 \[6, 3, 28, 32\]"),
    "7 pixels": ({"images": IMAGES[:, :, :7, :7]}, r"S from 8 to 512.*\[6, 3, 7, 7\]"),
    "two of three": ({"superclass_of": [0, 1], "superclass_names": ["x", "y"]}, "superclass_of must be"),
    "superclass 2 of 2": ({"superclass_of": [0, 1, 2], "superclass_names": ["x", "y"]}, "superclass_of must"),
    "too few labels": ({"labels": LABELS[1:]}, r"\[6\].*\[5\]"),
    "labels from 1": ({"labels": [1, 3, 2, 2, 1, 3]}, "0 to 2.*1 to 3"),
    "too few file names": ({"filenames": ["a.png"]}, "1 file names for 6"),
}


@pytest.mark.parametrize("form", FORMS)
def test_from_arrays_takes_every_usual_form(form):
    dataset = data.from_arrays(*FORMS[form], ["cat", "dog", "bird"])
    assert np.array_equal(dataset.images.numpy(), IMAGES) and dataset.labels.tolist() == LABELS
    assert dataset.images.dtype == torch.uint8 and dataset.labels.dtype == torch.int64
    assert dataset.class_names == ["cat", "dog", "bird"] and len(set(dataset.filenames)) == 6
    assert dataset.digest == cifar.content_digest(IMAGES, np.array(LABELS))


@pytest.mark.parametrize("name", WRONG)
def test_from_arrays_says_what_is_wrong(name):
    change, expected = WRONG[name]
    with pytest.raises(ValueError, match=expected) as caught:
        data.from_arrays(**{"images": IMAGES, "labels": LABELS, "class_names": ["a", "b", "c"]} | change)
    assert "\n" not in str(caught.value)


def test_an_unknown_data_set_is_refused_and_nothing_downloaded(tmp_path, monkeypatch):
    monkeypatch.setattr(cifar, "download", None)
    for name in ("cifar-100", str(tmp_path / "missing")):
        with pytest.raises(UserError, match=r"cifar100, cifar10, shapes or a folder"):
            data.load(name, tmp_path)


@pytest.fixture
def with_copies():
    """600 images of 10 classes, 60 each, of which 40 are a copy of another, some with another label."""
    images = torch.randint(0, 256, (600, 3, 8, 8), generator=seeded(5), dtype=torch.uint8)
    images[torch.arange(40) * 7 + 200] = images[torch.arange(40) * 3]
    return toy(images, torch.randperm(600, generator=seeded(6)) % 10, 10)


@pytest.mark.parametrize("fraction", [0.0, 0.2, 0.5])
def test_split_is_stratified_and_disjoint(fraction, with_copies):
    train, val = data.split_indices(with_copies, fraction, seed=3)
    assert train.dtype == val.dtype == torch.int64
    assert sorted(train.tolist() + val.tolist()) == list(range(600))
    share = round(60 * fraction)
    assert Counter(with_copies.labels[val].tolist()) == Counter({c: share for c in range(10) if share})
    assert Counter(with_copies.labels[train].tolist()) == dict.fromkeys(range(10), 60 - share)
    sides = [{with_copies.images[i].numpy().tobytes() for i in part} for part in (train, val)]
    assert not sides[0] & sides[1]  # copies of an image stay together
    torch.manual_seed(1), np.random.seed(1), random.seed(1)  # the seed alone decides
    assert all(map(torch.equal, data.split_indices(with_copies, fraction, seed=3), (train, val)))
    assert not torch.equal(data.split_indices(with_copies, fraction, seed=4)[0], train)


def test_a_class_of_copies_goes_to_training():
    images = torch.randint(0, 256, (12, 3, 8, 8), dtype=torch.uint8)
    images[:9] = images[0]  # of the ten images of class 0 only one has no copy
    train, val = data.split_indices(toy(images, torch.tensor([0] * 10 + [1] * 2), 2), 0.5, seed=0)
    assert sorted(val.tolist()) in ([9, 10], [9, 11]) and len(train) == 10


def test_a_split_has_the_first_of_every_class_then_the_second_and_so_on():
    images = torch.arange(9, dtype=torch.uint8)[:, None, None, None].repeat(1, 3, 8, 8)
    labels = torch.tensor([0, 2, 0, 1, 0, 1, 0, 1, 0])
    train, val = data.split_indices(toy(images, labels, 3), 0.3, seed=0)
    assert labels[val].tolist() == [0, 1, 0]  # of five, three and one: two, one and none
    assert labels[train].tolist() == [0, 1, 2, 0, 1, 0]


def test_first_copy_against_a_loop(with_copies):
    images = with_copies.images[::3]
    assert torch.equal(data.first_copy(images[:80], images[80:]), data.first_copy(images))
    expected = [next(j for j in range(i + 1) if torch.equal(images[i], images[j])) for i in range(200)]
    assert data.first_copy(images).tolist() == expected


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
    result = data.crop_and_flip(images, dy, dx, flip)
    assert result.dtype == torch.uint8 and result.shape == images.shape
    for i, place in enumerate(places):
        assert np.array_equal(result[i].numpy(), slow_crop_and_flip(images[i].numpy(), *place))
    assert torch.equal(data.crop_and_flip(images.float(), dy, dx, flip), result.float())


@pytest.fixture
def numbered():
    """40 images and, as labels, their numbers."""
    return torch.randint(0, 256, (40, 3, 16, 16), generator=seeded(2), dtype=torch.uint8), torch.arange(40)


def test_batches_hold_each_image_at_most_once_as_the_loop_cuts_it(numbered):
    images, labels = numbered
    places, seen = list(itertools.product(range(-2, 3), range(-2, 3), (False, True))), []
    for batch, targets in data.batches(images, labels, 16, seed=0, epoch=1):
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
    ((batch, _),) = data.batches(images, torch.zeros(n), n, seed=1, epoch=2)
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
        return list(data.batches(*numbered, 16, seed, epoch))

    state = torch.get_rng_state()
    expected = draw()
    assert torch.equal(torch.get_rng_state(), state)
    torch.rand(7), np.random.rand(7), random.random()
    for (images, labels), (same_images, same_labels) in zip(draw(), expected, strict=True):
        assert torch.equal(images, same_images) and torch.equal(labels, same_labels)
    # (0, 1) and (1, 0) are different seeds, which a sum of the two would not be.
    others = [draw(epoch=2), draw(seed=1), draw(seed=1, epoch=0), draw(seed=0, epoch=0)]
    assert len({tuple(batches[0][1].tolist()) for batches in [expected, *others]}) == 5


def test_shapes_is_in_the_format_of_cifar100(small_sets):
    drawn, _ = small_sets
    assert drawn.images.shape == (300, 3, 32, 32) and drawn.images.dtype == torch.uint8
    assert drawn.labels.dtype == torch.int64 and torch.bincount(drawn.labels).tolist() == [3] * 100
    assert drawn.masks.shape == (300, 32, 32) and drawn.masks.dtype == torch.bool
    assert torch.bincount(drawn.superclass_of).tolist() == [10] * 10
    assert len(set(drawn.class_names)) == 100 and len(set(drawn.filenames)) == 300
    assert drawn.name == "shapes"
    for c, name in enumerate(drawn.class_names):
        assert name.endswith(f" {drawn.superclass_names[drawn.superclass_of[c]]}")
    assert drawn.digest == cifar.content_digest(drawn.images.numpy(), drawn.labels.numpy())


def test_no_image_is_in_both_splits_of_shapes(monkeypatch):
    make = data.make_shapes
    monkeypatch.setattr(data, "make_shapes", lambda per_class, seed: make(1, seed))
    pixels = [{image.tobytes() for image in split.images.numpy()} for split in data.load("shapes", None)]
    assert [len(part) for part in pixels] == [100, 100] and not pixels[0] & pixels[1]


def test_cutmix_covers_the_drawn_rectangle_and_mixes_the_targets_by_area():
    images = torch.from_numpy(IMAGES)
    for seed in range(200):
        lam, y, x = torch.rand(3, generator=seeded(seed)).tolist()
        mixed, targets = data.cutmix(images, torch.eye(6), seeded(seed))
        foreign = (mixed != images).any(dim=(0, 1))
        assert torch.equal(mixed, torch.where(foreign, images.flip(0), images))
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


def test_the_last_tenth_of_the_epochs_is_without_cutmix():
    for epochs in range(1, 300):
        assert data.cutmix_end(epochs) == max(e for e in range(epochs + 1) if 10 * e <= 9 * epochs)


def test_about_the_given_fraction_of_the_batches_is_mixed_and_the_others_stay():
    images, targets = torch.from_numpy(IMAGES[..., :8, :8]).repeat(200, 1, 1, 1), torch.eye(6).repeat(200, 1)
    whole, mixed = (list(data.batches(images, targets, 6, 3, 1, fraction)) for fraction in (0, 0.5))
    same = [torch.equal(a[0], b[0]) and torch.equal(a[1], b[1]) for a, b in zip(whole, mixed, strict=True)]
    assert 75 < sum(same) < 125 and same == [set(b.flatten().tolist()) == {0, 1} for _, b in mixed]
    again = list(data.batches(images, targets, 6, 3, 1, 0.5))
    assert all(torch.equal(a, b) for a, b in zip(mixed[7], again[7], strict=True))


@pytest.fixture(scope="module")
def real():
    """(train, test)"""
    if "CIFAR100_ROOT" not in os.environ:
        pytest.skip("CIFAR100_ROOT names no folder with CIFAR-100")
    return data.load("cifar100", os.environ["CIFAR100_ROOT"])


@pytest.mark.slow
def test_real_set_is_verified_and_complete(real):
    for dataset, count in zip(real, (500, 100), strict=True):
        assert ", verified: the content digest is the official one" in dataset.provenance
        assert torch.bincount(dataset.labels).tolist() == [count] * 100
        assert len(set(zip(dataset.labels.tolist(), dataset.filenames, strict=True))) == 100 * count


@pytest.mark.slow
def test_real_superclasses_are_those_of_the_official_files(real):
    folder = os.path.join(os.environ["CIFAR100_ROOT"], "cifar-100-python")
    if not os.path.isdir(folder):
        pytest.skip("CIFAR100_ROOT holds no official folder")
    content = [Path(folder, name).read_bytes() for name in ("meta", "test")]
    meta, record = (pickle.loads(file, encoding="latin1") for file in content)
    assert meta["fine_label_names"] == real[0].class_names
    assert meta["coarse_label_names"] == real[0].superclass_names
    assert [real[0].superclass_of[label] for label in record["fine_labels"]] == record["coarse_labels"]


@pytest.mark.slow
def test_real_statistics_are_the_constants(real):
    counts = torch.stack([channel.flatten().bincount(minlength=256) for channel in real[0].images.unbind(1)])
    levels = torch.arange(256, dtype=torch.float64) / 255
    mean = (counts * levels).sum(dim=1) / counts.sum(dim=1)
    std = (counts * (levels - mean[:, None]).square()).sum(dim=1).div(counts.sum(dim=1)).sqrt()
    torch.testing.assert_close(mean, torch.tensor(data.MEAN, dtype=torch.float64), rtol=0, atol=1e-4)
    torch.testing.assert_close(std, torch.tensor(data.STD, dtype=torch.float64), rtol=0, atol=1e-4)

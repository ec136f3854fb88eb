"""The data set as tensors: what is loaded, the split and the batches, each against a second computation."""

import math
import os
import random
from collections import Counter

import numpy as np
import pytest
import torch
from torchvision import transforms

import data
from sources import cifar100

# CIFAR-100 as a dataset; tests/sources/ has where its arrays come from

PROVENANCE = {  # number of training images, whether the digests are the official ones, what is said of that
    "whole": (3, True, "verified: the content digest is the official one"),
    "changed": (3, False, "NOT verified: the content digest is not the official one"),
}


@pytest.mark.parametrize("name", PROVENANCE)
def test_a_dataset_says_what_its_images_are(name, monkeypatch):
    num_train, official, provenance = PROVENANCE[name]
    arrays = {}
    for split, n in (("train", num_train), ("test", 2)):
        arrays[f"{split}_images"] = np.full((n, 3, 32, 32), n, dtype=np.uint8)
        arrays[f"{split}_labels"] = np.arange(n)
        arrays[f"{split}_filenames"] = np.array([f"{split} {i}.png".encode() for i in range(n)])
        arrays[f"{split}_digest"] = np.array(split if official else "another")
    monkeypatch.setattr(cifar100, "read", lambda root, url: arrays)
    monkeypatch.setattr(cifar100, "OFFICIAL_DIGEST", {"train": "train", "test": "test"})
    for split, dataset in zip(("train", "test"), data.load("cifar100", "here"), strict=True):
        assert np.array_equal(dataset.images.numpy(), arrays[f"{split}_images"])
        assert dataset.labels.tolist() == arrays[f"{split}_labels"].tolist()
        assert dataset.filenames == [f"{split} {i}.png" for i in range(len(dataset.labels))]
        assert dataset.digest == (split if official else "another") and dataset.verified is official
        assert dataset.provenance == f"CIFAR-100, {num_train} training and 2 test images, {provenance}"
        assert dataset.class_names == cifar100.CLASS_NAMES


# The split


def toy(images, labels, num_classes):
    """A dataset of these images and labels."""
    names = [f"class {c}" for c in range(num_classes)]
    return data.Dataset(
        "toy", images, labels, names, torch.zeros(num_classes), ["all"], [""] * len(labels), "", False, ""
    )


@pytest.fixture
def with_copies():
    """600 images of 10 classes, 60 each, of which 40 are a copy of another, some with another label."""
    generator = torch.Generator().manual_seed(5)
    images = torch.randint(0, 256, (600, 3, 32, 32), generator=generator, dtype=torch.uint8)
    images[torch.arange(40) * 7 + 200] = images[torch.arange(40) * 3]
    labels = torch.randperm(600, generator=generator) % 10
    return toy(images, labels, 10)


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


def test_a_class_of_copies_goes_to_training():
    images = torch.randint(0, 256, (12, 3, 32, 32), dtype=torch.uint8)
    images[:9] = images[0]  # of the ten images of class 0 only one has no copy
    train, val = data.split_indices(toy(images, torch.tensor([0] * 10 + [1] * 2), 2), 0.5, seed=0)
    assert sorted(val.tolist()) in ([9, 10], [9, 11]) and len(train) == 10


def test_split_is_seeded_on_its_own(with_copies):
    expected = data.split_indices(with_copies, 0.2, seed=3)
    torch.rand(7), np.random.rand(7), random.random()
    state = torch.get_rng_state()
    again = data.split_indices(with_copies, 0.2, seed=3)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(map(torch.equal, again, expected))
    assert not torch.equal(data.split_indices(with_copies, 0.2, seed=4)[1], expected[1])


def test_a_split_has_the_first_of_every_class_then_the_second_and_so_on():
    images = torch.arange(9, dtype=torch.uint8)[:, None, None, None].repeat(1, 3, 32, 32)
    labels = torch.tensor([0, 2, 0, 1, 0, 1, 0, 1, 0])
    train, val = data.split_indices(toy(images, labels, 3), 0.3, seed=0)
    assert labels[val].tolist() == [0, 1, 0]  # of five, three and one: two, one and none
    assert labels[train].tolist() == [0, 1, 2, 0, 1, 0]


def test_first_copy_against_a_loop(with_copies):
    images = with_copies.images[:300]
    expected = [next(j for j in range(i + 1) if torch.equal(images[i], images[j])) for i in range(300)]
    assert data.first_copy(images).tolist() == expected


# Batches


def slow_crop_and_flip(image, dy, dx, flip):
    """One image [3, H, W]: pad, cut, mirror, each by numpy."""
    height, width = image.shape[1:]
    padded = np.pad(image, ((0, 0), (4, 4), (4, 4)), mode="reflect")
    window = padded[:, dy : dy + height, dx : dx + width]
    return window[:, :, ::-1] if flip else window


@pytest.mark.parametrize("shape", [(32, 32), (5, 9), (20, 26)])
def test_crop_and_flip_against_a_loop(shape):
    """Every place of the window, mirrored or not."""
    places = [(dy, dx, flip) for dy in range(9) for dx in range(9) for flip in (False, True)]
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (len(places), 3, *shape), generator=generator, dtype=torch.uint8)
    dy, dx, flip = (torch.tensor(values) for values in zip(*places, strict=True))
    result = data.crop_and_flip(images, dy, dx, flip)
    assert result.dtype == torch.uint8 and result.shape == images.shape
    for i, place in enumerate(places):
        assert np.array_equal(result[i].numpy(), slow_crop_and_flip(images[i].numpy(), *place))
    assert torch.equal(data.crop_and_flip(images.float(), dy, dx, flip), result.float())


@pytest.fixture
def numbered():
    """110 images and, as labels, their numbers."""
    generator = torch.Generator().manual_seed(2)
    return torch.randint(0, 256, (110, 3, 32, 32), generator=generator, dtype=torch.uint8), torch.arange(110)


def test_batches_hold_each_image_at_most_once_as_the_loop_cuts_it(numbered):
    images, labels = numbered
    seen, places, flips = [], Counter(), 0
    for batch, targets in data.batches(images, labels, 16, seed=0, epoch=1):
        assert batch.shape == (16, 3, 32, 32) and batch.dtype == torch.uint8 and targets.shape == (16,)
        seen += targets.tolist()
        for image, label in zip(batch.numpy(), targets.tolist(), strict=True):
            matches = [
                (dy, dx, flip)
                for dy in range(9)
                for dx in range(9)
                for flip in (False, True)
                if np.array_equal(image, slow_crop_and_flip(images[label].numpy(), dy, dx, flip))
            ]
            assert len(matches) == 1
            dy, dx, flip = matches[0]
            places[dy] += 1
            places[9 + dx] += 1
            flips += flip
    assert len(seen) == 110 // 16 * 16 and len(set(seen)) == len(seen)
    assert seen != sorted(seen) and 30 < flips < 66 and set(places) == set(range(18))


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


def test_batches_are_drawn_as_their_docstring_says(numbered):
    """The seed is the upper 63 of the 64 bits that numpy makes of (seed, epoch); the order is drawn first."""
    seed = int(np.random.SeedSequence([4, 3]).generate_state(1, np.uint64)[0]) // 2
    order = torch.randperm(110, generator=torch.Generator().manual_seed(seed))
    labels = torch.cat([labels for _, labels in data.batches(*numbered, 16, seed=4, epoch=3)])
    assert torch.equal(labels, order[:96])


def test_fewer_images_than_a_batch_give_no_batch(numbered):
    assert list(data.batches(numbered[0][:15], numbered[1][:15], 16, seed=0, epoch=1)) == []


def test_normalize_and_to_input_against_torchvision(numbered):
    images = numbered[0][:20]
    reference = transforms.Compose([transforms.ToTensor(), transforms.Normalize(data.MEAN, data.STD)])
    expected = torch.stack([reference(image.permute(1, 2, 0).numpy()) for image in images])
    result = data.to_input(images)
    assert result.dtype == torch.float32 and result.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(result, expected, rtol=1e-6, atol=1e-6, check_stride=False)
    double = data.Normalize()(images.double() / 255)
    torch.testing.assert_close(double, expected.double(), rtol=1e-5, atol=1e-5)


def test_memory_format_of_a_device():
    """Contiguous on MPS, where batch norm fails for channels last (pytorch issue 175189)."""
    assert data.memory_format(torch.device("mps")) == torch.contiguous_format
    for device in ("cpu", "cuda"):
        assert data.memory_format(torch.device(device)) == torch.channels_last


def test_resizing_against_torchvision(numbered):
    images = numbered[0][:4]
    expected = transforms.functional.resize(images.float() / 255, [24, 24], antialias=True)
    expected = transforms.functional.normalize(expected, data.MEAN, data.STD)
    torch.testing.assert_close(data.to_input(images, 24), expected, rtol=1e-5, atol=1e-5, check_stride=False)


def test_normalize_as_the_first_layer_of_a_model_adds_nothing_to_its_state(numbered):
    model = torch.nn.Sequential(data.Normalize(), torch.nn.Flatten(), torch.nn.Linear(3072, 2))
    assert set(model.state_dict()) == {"2.weight", "2.bias"}
    images = (numbered[0][:2] / 255).requires_grad_()
    model(images).sum().backward()  # attacks need the gradient with respect to the images in [0, 1]
    weight = model[2].weight.sum(dim=0).view(3, 32, 32) / torch.tensor(data.STD).view(3, 1, 1)
    torch.testing.assert_close(images.grad, weight.expand(2, 3, 32, 32))
    assert data.Normalize()(images.bfloat16()).dtype == torch.bfloat16


# The shapes set


@pytest.fixture(scope="module")
def drawn():
    return data.make_shapes(per_class=6, seed=0)


def test_shapes_is_in_the_format_of_cifar100(drawn):
    assert drawn.images.shape == (600, 3, 32, 32) and drawn.images.dtype == torch.uint8
    assert drawn.labels.dtype == torch.int64 and torch.bincount(drawn.labels).tolist() == [6] * 100
    assert drawn.masks.shape == (600, 32, 32) and drawn.masks.dtype == torch.bool
    assert torch.bincount(drawn.superclass_of).tolist() == [10] * 10
    assert len(set(drawn.class_names)) == 100 and len(set(drawn.filenames)) == 600
    assert drawn.name == "shapes" and not drawn.verified
    for c, name in enumerate(drawn.class_names):
        assert name.endswith(f" {drawn.superclass_names[drawn.superclass_of[c]]}")
    assert drawn.digest == cifar100.content_digest(drawn.images.numpy(), drawn.labels.numpy())


def test_shapes_depend_on_their_seed_only(drawn):
    state = torch.get_rng_state()
    again = data.make_shapes(per_class=6, seed=0)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(again.images, drawn.images) and torch.equal(again.masks, drawn.masks)
    assert not torch.equal(data.make_shapes(per_class=6, seed=1).images, drawn.images)


def test_no_image_is_in_both_splits_of_shapes(monkeypatch):
    make = data.make_shapes
    monkeypatch.setattr(data, "make_shapes", lambda per_class, seed: make(4, seed))
    pixels = [{image.tobytes() for image in split.images.numpy()} for split in data.load("shapes", None)]
    assert [len(part) for part in pixels] == [400, 400] and not pixels[0] & pixels[1]


# CIFAR-100 itself


@pytest.fixture(scope="module")
def real():
    if "CIFAR100_ROOT" not in os.environ:
        pytest.skip("CIFAR100_ROOT names no folder with CIFAR-100")
    return data.load("cifar100", os.environ["CIFAR100_ROOT"])


def test_real_statistics_are_the_constants(real):
    counts = torch.stack([channel.flatten().bincount(minlength=256) for channel in real[0].images.unbind(1)])
    levels = torch.arange(256, dtype=torch.float64) / 255
    mean = (counts * levels).sum(dim=1) / counts.sum(dim=1)
    std = (counts * (levels - mean[:, None]).square()).sum(dim=1).div(counts.sum(dim=1)).sqrt()
    torch.testing.assert_close(mean, torch.tensor(data.MEAN, dtype=torch.float64), rtol=0, atol=1e-4)
    torch.testing.assert_close(std, torch.tensor(data.STD, dtype=torch.float64), rtol=0, atol=1e-4)


def test_real_set_has_the_known_copies(real):
    train, test = ([image.tobytes() for image in split.images.numpy()] for split in real)
    assert len(set(train) & set(test)) == 10
    assert len(train) - len(set(train)) == 14


def test_real_split_gives_100_of_each_class(real):
    _, val = data.split_indices(real[0], 0.2, seed=0)
    assert torch.bincount(real[0].labels[val]).tolist() == [100] * 100


# CutMix

RANDOM = torch.randint(0, 256, (6, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def test_cutmix_takes_each_pixel_from_one_of_two_images_and_mixes_the_targets_by_area():
    areas = []
    for seed in range(2000):
        generator = torch.Generator().manual_seed(seed)
        mixed, targets = data.cutmix(RANDOM, torch.eye(6), generator)
        if seed < 50:  # a slow second way: look up, pixel by pixel, whose it is
            foreign = (mixed != RANDOM).any(dim=(0, 1))
            rows, columns = foreign.any(dim=1).nonzero(), foreign.any(dim=0).nonzero()
            assert foreign.sum() == len(rows) * len(columns)  # a rectangle
            assert torch.equal(mixed, torch.where(foreign, RANDOM.flip(0), RANDOM))
            for i, target in enumerate(targets.tolist()):
                expected = [0.0] * 6
                expected[5 - i] = foreign.sum().item() / 1024
                expected[i] = 1 - expected[5 - i]
                assert target == pytest.approx(expected)
        areas.append(targets[0, 5].item())
    # A rectangle inside would cover 1/2 in the mean; what is cut off at the border covers less.
    assert 0.3 < np.mean(areas) < 0.5


def test_the_rectangle_of_cutmix_is_where_and_as_large_as_drawn():
    for seed in range(100):
        lam, y, x = torch.rand(3, generator=torch.Generator().manual_seed(seed)).tolist()
        mixed, _ = data.cutmix(RANDOM, torch.eye(6), torch.Generator().manual_seed(seed))
        side = 32 * math.sqrt(1 - lam)
        for (start, end), centre in zip(edges(mixed != RANDOM), (32 * y, 32 * x), strict=True):
            assert start == pytest.approx(max(centre - side / 2, 0), abs=0.5001)
            assert end == pytest.approx(min(centre + side / 2, 32), abs=0.5001)


def edges(foreign):
    """The first row and the one after the last, and so the columns, where a bool [N, C, H, W] is true."""
    for dims in ((0, 1, 3), (0, 1, 2)):
        (inside,) = foreign.any(dim=dims).nonzero(as_tuple=True)
        yield (inside[0].item(), inside[-1].item() + 1) if len(inside) else (0, 0)


def test_about_the_given_share_of_the_batches_is_mixed_and_the_others_stay():
    images, targets = RANDOM.repeat(200, 1, 1, 1), torch.eye(6).repeat(200, 1)
    whole, mixed = (list(data.batches(images, targets, 6, 3, 1, share)) for share in (0, 0.5))
    same = [torch.equal(a[0], b[0]) and torch.equal(a[1], b[1]) for a, b in zip(whole, mixed, strict=True)]
    assert 75 < sum(same) < 125 and same == [set(b.flatten().tolist()) == {0, 1} for _, b in mixed]
    again = list(data.batches(images, targets, 6, 3, 1, 0.5))
    assert all(torch.equal(a, b) for a, b in zip(mixed[7], again[7], strict=True))

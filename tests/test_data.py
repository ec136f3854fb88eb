"""The data set as tensors: what is loaded and the split, each against a second computation."""

import os
import pickle
import random
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from networks import seeded
from processes import ROOT

import data
from sources import cifar
from support.errors import UserError


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


@pytest.mark.parametrize("fraction", [0.0, 0.2, 0.5])
def test_split_is_stratified_and_disjoint(fraction):
    """600 images of 10 classes, 60 each, of which 40 are a copy of another, some with another label."""
    images = torch.randint(0, 256, (600, 3, 8, 8), generator=seeded(5), dtype=torch.uint8)
    images[torch.arange(40) * 7 + 200] = images[torch.arange(40) * 3]
    with_copies = toy(images, torch.randperm(600, generator=seeded(6)) % 10, 10)
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


def test_a_split_has_the_first_of_every_class_then_the_second_and_so_on():
    images = torch.arange(9, dtype=torch.uint8)[:, None, None, None].repeat(1, 3, 8, 8)
    labels = torch.tensor([0, 2, 0, 1, 0, 1, 0, 1, 0])
    train, val = data.split_indices(toy(images, labels, 3), 0.3, seed=0)
    assert labels[val].tolist() == [0, 1, 0]  # of five, three and one: two, one and none
    assert labels[train].tolist() == [0, 1, 2, 0, 1, 0]


def test_shapes_have_names_of_their_own(small_sets):
    drawn, _ = small_sets
    assert len(set(drawn.class_names)) == 100 and len(set(drawn.filenames)) == 300
    for c, name in enumerate(drawn.class_names):
        assert name.endswith(f" {drawn.superclass_names[drawn.superclass_of[c]]}")


def test_no_image_is_in_both_splits_of_shapes(monkeypatch):
    make = data.make_shapes
    monkeypatch.setattr(data, "make_shapes", lambda per_class, seed: make(1, seed))
    pixels = [{image.tobytes() for image in split.images.numpy()} for split in data.load("shapes", None)]
    assert [len(part) for part in pixels] == [100, 100] and not pixels[0] & pixels[1]


def test_the_last_tenth_of_the_epochs_is_without_cutmix():
    for epochs in range(1, 300):
        assert data.cutmix_end(epochs) == max(e for e in range(epochs + 1) if 10 * e <= 9 * epochs)


@pytest.mark.slow
def test_the_core_starts_without_torchvision_and_matplotlib():
    """In a process of its own: torchvision takes as long to import as torch."""
    program = """
import atexit, sys
atexit.register(lambda: print({"torchvision", "matplotlib"} & {*sys.modules}))
import train, gradcam, report
report.main(["--help"])
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=ROOT)
    assert done.stdout.startswith("usage:") and done.stdout.endswith("\nset()\n"), done.stderr


@pytest.fixture(scope="module")
def real():
    """(train, test)"""
    if "CIFAR100_ROOT" not in os.environ:
        pytest.skip("CIFAR100_ROOT names no folder with CIFAR-100")
    return data.load("cifar100", os.environ["CIFAR100_ROOT"])


@pytest.mark.slow
def test_real_set_is_verified_and_complete_and_has_these_statistics(real):
    for dataset, count in zip(real, (500, 100), strict=True):
        assert ", verified: the content digest is the official one" in dataset.provenance
        assert torch.bincount(dataset.labels).tolist() == [count] * 100
        assert len(set(zip(dataset.labels.tolist(), dataset.filenames, strict=True))) == 100 * count
    for channel, mean, std in zip(real[0].images.unbind(1), data.MEAN, data.STD, strict=True):
        values = channel.double() / 255
        assert values.mean().item() == pytest.approx(mean, abs=1e-4)
        assert values.std().item() == pytest.approx(std, abs=1e-4)


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

"""pictures.py: folders of pictures, a transform, properties of pixels, copies."""

import itertools
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from lab_networks import options, small_cnn
from networks import seeded, write_pictures
from PIL import Image

import data
from lab import pictures
from lab.network import from_module
from lab.options import load_images
from lab.pictures import in_classes_of, pixel_properties, read_folder, reader_of

SYNOLOGY = [f"{folder}@eaDir/1.png/thumb.png" for folder in ("", "cat/", "dog/")]  # in each folder of a NAS


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["test/cat/1.png", "test/dog/1.png", "train/cat/2.png"], ["cat/1.png", "dog/1.png"]),
        (["val/cat/1.png", "val/dog/1.png"], ["cat/1.png", "dog/1.png"]),
        (["cat/1.png", "cat/day/1.png", "dog/1.png"], ["cat/1.png", "cat/day/1.png", "dog/1.png"]),
        (["cat/1.png", "dog/1.png", *SYNOLOGY], ["cat/1.png", "dog/1.png"]),
    ],
)
def test_folder_of_pictures(tmp_path, names, expected):
    test, notes = read_folder(write_pictures(tmp_path, *names), 32)
    assert (test.filenames, notes, test.class_names) == (expected, [], ["cat", "dog"])
    assert [test.class_names[c] for c in test.labels] == [name.split("/")[0] for name in expected]


@pytest.mark.parametrize(
    ("names", "text"),
    [
        (["train/cat/1.png", "holdout/cat/2.png"], "has train/, but no test/"),
        (["cat.png"], "holds no folders of classes"),
    ],
)
def test_folders_that_hold_splits_or_no_classes_are_refused(tmp_path, names, text):
    with pytest.raises(ValueError, match=text):
        read_folder(write_pictures(tmp_path, *names), 32)


def test_pictures_of_another_size_are_noted(tmp_path):
    write_pictures(tmp_path, "cat/1.png", "dog/1.png", side=49)
    _, notes = read_folder(tmp_path, 32)
    assert len(notes) == 1 and "(median) are brought to 32" in notes[0]
    assert read_folder(tmp_path, 49)[1] == []
    network, where = from_module(small_cnn(num_classes=2)), str(tmp_path)
    assert load_images(network, options(dataset=where))[2] == notes
    assert load_images(network, options(dataset=where, size=32))[2] == []  # the user has said so


def test_transform_takes_pictures_of_16_bits(tmp_path):
    values = np.arange(64, dtype=np.uint16).reshape(8, 8) * 1000
    Image.fromarray(values).save(tmp_path / "deep.png")
    read = reader_of(lambda picture: torch.from_numpy(np.array(picture) / 65535).expand(3, 8, 8))
    assert np.array_equal(read(tmp_path / "deep.png", 8)[0].numpy(), np.round(values / 65535 * 255))
    write_pictures(tmp_path, "cat/1.png", "cat/2.png", "dog/1.png")
    for wrong in (lambda picture: torch.full((3, 32, 32), 300.0), lambda picture: torch.zeros(3, 8, 8)):
        with pytest.raises(data.UserError, match=r"expected float \[3, 32, 32\] in \[0, 1\]"):
            read_folder(tmp_path, 32, wrong)


def classes_of(model):
    network = from_module(model)
    return network.class_names, network.num_classes, network.name


def test_superclasses_follow_the_order_of_the_networks_classes():
    dataset, model = data.make_shapes(1, seed=0), small_cnn(num_classes=100)
    assert dataset.superclass_of is not None
    order = torch.randperm(100, generator=seeded()).tolist()
    model.class_names = [dataset.class_names[c] for c in order]
    moved = in_classes_of(dataset, *classes_of(model))
    assert [moved.class_names[c] for c in moved.labels] == [dataset.class_names[c] for c in dataset.labels]
    assert moved.superclass_of.tolist() == [dataset.superclass_of[c] for c in order]


def test_classes_that_do_not_fit_are_refused():
    dataset, model = data.make_shapes(1, seed=0), small_cnn()
    with pytest.raises(ValueError, match="3 logits, and shapes 100 classes"):
        in_classes_of(dataset, *classes_of(model))
    model.class_names = ["red circle", "b", "c"]
    with pytest.raises(ValueError, match="has a class 'orange circle'"):
        in_classes_of(dataset, *classes_of(model))


def test_copies_are_found_pixel_by_pixel():
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (8, 3, 4, 4), dtype=torch.uint8, generator=generator)
    labels = torch.tensor([3, 1, 4, 1, 5, 2])
    train = data.Dataset("train", images[[0, 1, 2, 3, 4, 1]], labels, list("abcdef"))
    test = replace(train, images=images[[6, 1, 4, 1]], labels=train.labels[:4], filenames=None)
    assert pictures.find_copies(train, test).tolist() == [-1, 1, 5, 1]  # of equal images the first label


def test_computed_properties_are_those_of_loops():
    images = torch.randint(0, 256, (3, 3, 16, 16), dtype=torch.uint8, generator=seeded())
    columns = pixel_properties(images)
    for i, image in enumerate(images.double().numpy() / 255):
        luma = np.array([0.299, 0.587, 0.114]) @ image.reshape(3, -1)
        square = luma.reshape(16, 16)
        steps = [abs(square[y, x] - square[y, x - 1]) for y in range(16) for x in range(1, 16)]
        steps += [abs(square[y, x] - square[y - 1, x]) for y in range(1, 16) for x in range(16)]
        border = [square[y, x] for y in range(16) for x in range(16) if not (2 <= y < 14 and 2 <= x < 14)]
        places = itertools.product(range(3), range(16), range(16))
        mirrored = [abs(image[c, y, x] - image[c, y, 15 - x]) for c, y, x in places]
        expected = {
            "brightness": luma.mean(),
            "contrast": math.sqrt(((luma - luma.mean()) ** 2).mean()),
            "colourfulness": np.mean([max(pixel) - min(pixel) for pixel in image.reshape(3, -1).T]),
            "sharpness": np.mean(steps),
            "asymmetry": np.mean(mirrored),
            "brightness of the border": np.mean(border),
        }
        shown = {name: values[i].item() for name, values in columns.items()}
        assert shown == pytest.approx(expected, abs=1e-5)

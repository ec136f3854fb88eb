"""The pictures to examine: folders, a transform, classes, which may be drawn, copies, and properties."""

import hashlib
import os
import statistics
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path

import torch
from PIL import Image, ImageOps
from torch import Tensor

import data
import report
from data import Dataset, UserError
from lab.tables import class_numbers

PROPERTIES = {  # of pixel_properties, for people: the first fifth, the last one, and what it is
    "brightness": ("darkest", "brightest", "the mean brightness of a picture"),
    "contrast": ("lowest-contrast", "highest-contrast", "how much brightness varies within a picture"),
    "colourfulness": ("greyest", "most colourful", "how far the pixels are from grey, on average"),
    "sharpness": ("least sharp", "sharpest", "how much neighbouring pixels differ, on average"),
    "asymmetry": (
        "least asymmetric",
        "most asymmetric",
        "how far a picture differs from its mirror image, from 0 to 1",
    ),
    "brightness of the border": (
        "darkest-bordered",
        "brightest-bordered",
        "the mean brightness of the outer eighth of a picture",
    ),
}


def in_classes_of(dataset: Dataset, names: list[str] | None, num_classes: int, network: str) -> Dataset:
    """Return a data set with the labels of a network's classes: its own in any order, or more than those.

    names: of the network's classes, if it has any, and the number of these; network: its name. Names are
    compared without regard to case and underscores. Raises ValueError if the classes do not fit.
    """
    names = names or dataset.class_names
    if len(names) != num_classes:
        text = f"{network} has {num_classes} logits, and {dataset.name} {len(names)} classes"
        raise UserError(f"{text}: name the logits by an attribute `class_names` of the network")
    if names == dataset.class_names:
        return dataset
    places = torch.from_numpy(class_numbers(dataset.class_names, names))
    if places.min() < 0 or len(places.unique()) < len(places):
        wrong = dataset.class_names[places.argmin()]
        raise UserError(f"{dataset.name} has a class {wrong!r}, which is none of those of {network}")
    group = dataset.superclass_of
    if group is not None:
        group = group[places.argsort()] if len(places) == len(names) else None
    return replace(dataset, labels=places[dataset.labels], class_names=names, superclass_of=group)


def held_out_folder(root: Path) -> Path:
    """Return root/test, root/val or root/valid, or `root` itself if its folders are classes."""
    if not root.is_dir():
        raise UserError(f"there is no data set or folder {root}: give cifar100, cifar10, shapes or a folder")
    for name in ("test", "val", "valid"):
        if (root / name).is_dir():
            return root / name
    if (root / "train").is_dir():
        raise UserError(f"{root} has train/, but no test/ (or val/): give the folder of the test images")
    return root


def read_folder(root: Path, size: int, transform: Callable | None = None) -> tuple[Dataset, list[str]]:
    """Return the pictures root/test/CLASS/*, val/ or valid/, or else root/CLASS/*, and notes on them."""
    folder, read, sides = held_out_folder(root), reader_of(transform), []
    listed = data.list_pictures(folder)
    filenames = listed[1]
    if not filenames:
        raise UserError(f"{folder} holds no folders of classes with pictures")
    test = replace(data.read_pictures(folder, listed, size, read), name=f"folder {root.resolve().name}")
    for name in filenames[:: max(1, len(filenames) // 100)]:
        with Image.open(folder / name) as picture:
            sides.append(min(picture.size))
    side = statistics.median(sides)
    if transform is not None or side == size:
        return test, []
    text = f"pictures {side:.0f} pixels high or wide (median) are brought to {size}"
    return test, [f"{text}: is that the side S that the network takes?"]


def read_unlabelled(folder: Path, size: int, transform: Callable | None) -> tuple[list[str], Tensor]:
    """Return the names of the pictures in a folder and below it, and the pictures, uint8 [N, 3, S, S]."""
    names = []
    for parent, folders, files in os.walk(folder, followlinks=True):
        folders[:] = [name for name in folders if name[0] not in ".@"]
        paths = [Path(parent, name).relative_to(folder) for name in files if name[0] not in ".@"]
        names += [path.as_posix() for path in paths if path.suffix.lower() in data.SUFFIXES]
    names.sort()
    if not names:
        raise UserError(f"{folder} is no folder of pictures such as .png or .jpg")
    labels, read = [0] * len(names), reader_of(transform)  # nobody knows their classes
    return names, data.read_pictures(folder, (["unknown"], names, labels), size, read).images


def reader_of(transform: Callable | None) -> Callable:
    """Return the function from a file and S to uint8 [3, S, S]: data.read_picture, or by a transform.

    transform takes a picture of Pillow, upright by its EXIF and in its own mode, such as I;16.
    """
    if transform is None:
        return data.read_picture

    def read(path: Path | str, size: int) -> Tensor:
        with Image.open(path) as picture:
            pixels = torch.as_tensor(transform(ImageOps.exif_transpose(picture)))
        shape = list(pixels.shape)
        if shape != [3, size, size] or not pixels.is_floating_point() or pixels.min() < 0 or pixels.max() > 1:
            expected = f"float [3, {size}, {size}] in [0, 1], as the network itself normalises"
            raise UserError(f"transform makes {pixels.dtype} {shape} of {path}, expected {expected}")
        return (255 * pixels).round().byte()

    return read


def people_among(class_names: list[str]) -> Tensor:
    """Return which classes are of people, bool [C], see report.is_person; none where all of them are."""
    people = torch.tensor([report.is_person(name) for name in class_names])
    return people & ~people.all()


def may_be_drawn(arrays: dict, index: Tensor, others: Iterable = ()) -> Tensor:
    """Return which of the test images, int64 [n], neither show people nor are taken for them, bool [n].

    What a page draws by chance is of these; arrays: predictions.npz; others: more answers, each int64 [n].
    """
    people, shows = people_among(arrays["class_names"]), torch.zeros(len(index), dtype=torch.bool)
    for classes in (arrays["y_true"][index], arrays["y_pred"][index], *others):
        shows |= people[classes]
    return ~shows


def find_copies(train: Dataset, test: Dataset) -> Tensor:
    """Return the label that each test image has in the training set, pixel by pixel, int64 [N], else -1."""
    first = {}  # setdefault keeps the label of the first of equal images
    for image, label in zip(train.images.numpy(), train.labels.tolist(), strict=True):
        first.setdefault(hashlib.blake2b(image.tobytes()).digest(), label)
    digests = [hashlib.blake2b(image.tobytes()).digest() for image in test.images.numpy()]
    return torch.tensor([first.get(digest, -1) for digest in digests])


def pixel_properties(images: Tensor) -> dict[str, Tensor]:
    """Return the PROPERTIES of images uint8 [N, 3, S, S], each float32 [N] in [0, 1].

    Brightness is the mean luma (ITU-R BT.601), contrast its standard deviation, sharpness its mean step to
    the next pixel; colourfulness is the mean of the largest less the smallest channel, asymmetry the mean
    distance from the mirror image. The border is an eighth of the side wide.
    """
    side, parts = images.shape[-1], []
    edge = torch.ones(side, side, dtype=torch.bool)
    edge[side // 8 : side - side // 8, side // 8 : side - side // 8] = False
    for part in data.chunks(images, "cpu"):
        x = part / 255
        luma = 0.299 * x[:, 0] + 0.587 * x[:, 1] + 0.114 * x[:, 2]
        down, across = (luma.diff(dim=k).abs().mean(dim=(1, 2)) for k in (1, 2))  # steps to the next pixel
        properties = {
            "brightness": luma.mean(dim=(1, 2)),
            "contrast": luma.std(dim=(1, 2), correction=0),
            "colourfulness": (x.amax(dim=1) - x.amin(dim=1)).mean(dim=(1, 2)),
            "sharpness": (down + across) / 2,
            "asymmetry": (x - x.flip(-1)).abs().mean(dim=(1, 2, 3)),
            "brightness of the border": luma[:, edge].mean(dim=1),
        }
        parts.append(properties)
    return {name: torch.cat([properties[name] for properties in parts]) for name in parts[0]}

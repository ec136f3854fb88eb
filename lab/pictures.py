"""Data sets for any network: folders of pictures of any size, many of them, and arrays in memory.

CIFAR and the shapes are those of data.py. Of a folder the laboratory asks more: threads that decode, memory
that lies on the disk, --resize, --transform, and a folder without train/.
"""

import hashlib
import itertools
import math
import os
import shutil
import statistics
import tempfile
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

import data
from lab.support import UserError, core, one_line, reading

SIZE = 32  # pixels: the side of a network's images, unless --size or a checkpoint says otherwise
SMALLEST, LARGEST = 8, 512  # sides of images
IN_MEMORY = 2**30  # bytes of a split; more lie in a temporary file, of which the system keeps what it can
Transform = Callable[[Image.Image], Tensor]  # takes a picture to float [3, size, size] in [0, 1]


@dataclass
class Dataset(data.Dataset):
    """That of data.py. `images` is None where there are only answers."""

    picture_side: int | None = None  # pixels: the median of the shorter sides of a folder's pictures


def described(dataset: data.Dataset) -> str:
    """Return one line for people."""
    what = "answers without pictures" if dataset.images is None else "test images"
    return f"{dataset.name}, {len(dataset.labels):,} {what} of {len(dataset.class_names)} classes"


def load(
    name: str,
    root: Path | str = "data",
    size: int = SIZE,
    resize: int | None = None,
    *,
    with_train: bool = True,
    workers: int | None = None,
    transform: Transform | None = None,
) -> tuple[data.Dataset | None, data.Dataset]:
    """Return (train, test) of "cifar100" or "cifar10" in `root`, of "shapes", or of a folder of pictures.

    The other arguments count for a folder only: with_train=False reads test/, val/, valid/ or else folders
    of classes in the folder itself, and train is then None; `fit` or `transformed` bring pictures to size;
    workers decode, by default a thread for each core. Raises UserError for what cannot be used.
    """
    if name in (*data.CIFAR, "shapes") or not Path(name).is_dir():
        with core():
            return data.load(name, root)
    return read_folder(Path(name), size, resize, with_train, workers, transform)


def from_arrays(
    images: np.ndarray | Tensor,
    labels: Sequence[int] | np.ndarray | Tensor,
    class_names: list[str],
    name: str = "images",
    filenames: list[str] | None = None,
    superclass_of: Sequence[int] | None = None,
    superclass_names: list[str] | None = None,
) -> Dataset:
    """Make a data set of arrays; raise ValueError, in one line, if they do not fit together.

    images: uint8 [N, 3, S, S] or [N, S, S, 3], NumPy or torch; labels: N whole numbers in 0..C-1;
    class_names: C names; filenames: N names, by default the numbers of the images; superclass_of: the number
    of the superclass of each class. Arrays are copied only if they are not contiguous or not writable.
    """
    images, labels = (np.asarray(v.detach().cpu() if isinstance(v, Tensor) else v) for v in (images, labels))
    if images.ndim == 4 and images.shape[3] == 3:
        images = images.transpose(0, 3, 1, 2)
    side = images.shape[-1] if len(images) else 0
    if images.dtype != np.uint8 or images.shape[1:] != (3, side, side) or not SMALLEST <= side <= LARGEST:
        raise ValueError(
            f"images must be uint8 [N, 3, S, S] or [N, S, S, 3], S from {SMALLEST} to {LARGEST}, "
            f"not {images.dtype} {list(images.shape)}"
        )
    count, last = len(images), len(class_names) - 1
    fit_together = labels.dtype.kind in "iu" and labels.shape == (count,)
    if not fit_together or labels.min() < 0 or labels.max() > last:
        raise ValueError(
            f"labels must be {count} whole numbers from 0 to {last}, one for each image, "
            f"not {labels.dtype} {list(labels.shape)}: {one_line(labels.tolist())}"
        )
    filenames = [str(i) for i in range(len(images))] if filenames is None else list(filenames)
    if len(filenames) != len(images):
        raise ValueError(f"there are {len(filenames)} file names for {len(images)} images")
    if superclass_of is not None:
        places = range(len(superclass_names or ()))
        if len(superclass_of) != len(class_names) or not {*superclass_of} <= {*places}:
            raise ValueError(
                f"superclass_of must be the place of each class's superclass in superclass_names, "
                f"not {[*superclass_of]}"
            )
        superclass_of = torch.tensor(superclass_of)
    images = torch.from_numpy(np.require(images, requirements=["C_CONTIGUOUS", "WRITEABLE"]))
    labels = torch.from_numpy(labels.astype(np.int64))
    return Dataset(name, images, labels, [*class_names], filenames, superclass_of, superclass_names)


def from_pairs(
    pairs: Sequence[tuple[Image.Image, int]],
    class_names: list[str],
    size: int | None = None,
) -> Dataset:
    """Make a data set of pairs of a picture of Pillow and its label, such as a data set of torchvision.

    The middle square of a picture is brought to `size`; None stands for the side that all of them have.
    Raises ValueError for other pairs.
    """
    images, labels, sides = None, [], []
    for i in range(len(pairs)):
        picture, label = pairs[i]
        if not isinstance(picture, Image.Image):
            raise ValueError(
                f"picture {i} is a {type(picture).__name__}, expected one of Pillow: "
                f"give the data set without a transform"
            )
        pixels = data.to_pixels(picture)
        labels.append(label)
        sides.append(min(pixels.shape[1:]))
        if size is None and sides[i] != sides[0]:
            raise ValueError(
                f"picture {i} has a side of {sides[i]} pixels, and the first one {sides[0]}: give by size "
                f"the side that the network takes"
            )
        if images is None:
            images = empty_images(len(pairs), size or sides[0])
        images[i] = fit(pixels, images.shape[-1])
    dataset = from_arrays(images, labels, class_names)
    dataset.picture_side = statistics.median_high(sides)
    return dataset


# ---- Copies ------------------------------------------------------------------------------------------------


def find_copies(train: data.Dataset, test: data.Dataset) -> Tensor:
    """Return the label that each test image has in the training set, pixel by pixel, int64 [N], else -1."""
    images = itertools.chain(train.images.numpy(), test.images.numpy())
    digests = [hashlib.blake2b(image.tobytes()).digest() for image in images]
    first = {}  # setdefault keeps the first index of a digest
    copies = torch.tensor([first.setdefault(digest, i) for i, digest in enumerate(digests)])
    copies, labels = copies[len(train.labels) :], torch.full_like(test.labels, -1)
    in_train = copies < len(train.labels)
    labels[in_train] = train.labels[copies[in_train]]
    return labels


# ---- A folder of pictures ----------------------------------------------------------------------------------


def read_folder(
    root: Path,
    size: int,
    resize: int | None,
    with_train: bool,
    workers: int | None,
    transform: Transform | None,
) -> tuple[Dataset | None, Dataset]:
    """Return (train, test) of a folder of pictures, see load; file names are those in the class's folder.

    The classes are those of train/, of which test/ may lack some. Raises UserError if there are fewer than
    two, if test/ has others, or if pictures cannot be read.
    """
    if with_train and not (root / "train").is_dir():
        raise UserError(f"{root} has no train/: expected train/<class>/ and test/<class>/ (or val/)")
    folders = [root / "train", held_out_folder(root)] if with_train else [held_out_folder(root)]
    listed = [find_pictures(folder) for folder in folders]  # (class names, paths) of each folder
    names = listed[0][0]
    if others := sorted({*listed[-1][0]} - {*names}):
        raise UserError(f"{folders[-1]} has a class {others[0]!r} that train/ does not have")
    if len(names) < 2:
        raise UserError(f"{folders[0]} has pictures of {len(names)} classes, expected two or more")
    count, class_names = sum(len(paths) for _, paths in listed), [one_line(name) for name in names]
    print(f"reading {count:,} pictures of {len(names)} classes in {root}: {one_line(', '.join(class_names))}")
    splits, unreadable = [], []
    for folder, (own_names, paths) in zip(folders, listed, strict=True):
        images, side = read_split(paths, size, resize, workers, transform, unreadable)
        filenames = [one_line("/".join(Path(path).relative_to(folder).parts[1:])) for path, _ in paths]
        labels, name = torch.tensor([names.index(own_names[c]) for _, c in paths]), root.resolve().name
        splits.append(Dataset(f"folder {name}", images, labels, class_names, filenames, picture_side=side))
    check_readable(unreadable)
    return tuple(splits) if with_train else (None, *splits)


def held_out_folder(root: Path) -> Path:
    """Return test/, val/ or valid/, or `root` itself if it holds none of these nor train/.

    Raises UserError if `root` has folders of other names that hold the same classes, as Train/ and Test/ do.
    """
    for name in ("test", "val", "valid"):
        if (root / name).exists():
            return root / name
    if (root / "train").exists():
        return root / "test"
    inside = {
        f.name: {part.name for part in f.iterdir() if part.is_dir()} for f in root.iterdir() if f.is_dir()
    }
    for (first, classes), (second, others) in itertools.combinations(sorted(inside.items()), 2):
        if classes & others:
            raise UserError(
                f"{root}: {first}/ and {second}/ hold the same classes, such as {min(classes & others)}: "
                f"expected the names train/ and test/ (or val/)"
            )
    return root


def find_pictures(folder: Path) -> tuple[list[str], list[tuple[str, int]]]:
    """Return the names of the classes and (path, class) of each picture, as data.list_pictures."""
    with reading(folder, "a folder that holds one of pictures for each class"):
        class_names, samples = data.list_pictures(folder)
        loose = sum(path.suffix.lower() in data.SUFFIXES for path in folder.glob("[!.]*"))
    if loose:
        print(f"note     pictures in {folder} itself, in no folder of a class, are left out: {loose}")
    return class_names, samples


def check_readable(unreadable: list[str]) -> None:
    """Raise UserError if read_split has noted pictures that cannot be read."""
    if unreadable:
        named = ", ".join(unreadable[:5])
        raise UserError(f"pictures to repair or remove, as they cannot be read: {len(unreadable)}, {named}")


def read_split(
    paths: list[tuple[str, int]],
    size: int,
    resize: int | None,
    workers: int | None,
    transform: Transform | None,
    unreadable: list[str],
) -> tuple[Tensor, int]:
    """Return images uint8 [N, 3, size, size] and the median of the pictures' shorter sides in pixels.

    What cannot be read is noted in `unreadable`.
    """
    images = empty_images(len(paths), size)

    def read(place: int) -> tuple[int, str | None]:
        """Read one picture into its place; return its shorter side, and what is wrong with it."""
        path, _ = paths[place]
        try:
            picture = read_picture(path)
        except Exception as error:
            return 0, f"{path} ({one_line(error)})"
        if transform is None:
            images[place] = fit(picture, size, resize)
        else:
            with reading(path, "a picture for --transform"):
                images[place] = transformed(picture, size, transform)
        return min(picture.shape[1:]), None

    with ThreadPoolExecutor(workers or os.cpu_count()) as pool:  # Pillow decodes outside of Python's lock
        rows = list(pool.map(read, range(len(paths))))
    unreadable += [error for _, error in rows if error]
    return images, statistics.median_high(side for side, _ in rows)


def empty_images(count: int, size: int) -> Tensor:
    """Return an empty tensor uint8 [count, 3, size, size]; above IN_MEMORY bytes it lies in a temporary file.

    The file has no name and is deleted with the tensor. Raises UserError if the disk has no room for it.
    """
    shape = count, 3, size, size
    length = math.prod(shape)
    if length <= IN_MEMORY:
        return torch.empty(shape, dtype=torch.uint8)
    folder = tempfile.gettempdir()
    free = shutil.disk_usage(folder).free
    if free < length:
        raise UserError(
            f"the pictures need {length / 1e9:.1f} GB, and {folder} has {free / 1e9:.1f} GB free: "
            f"set TMPDIR to a folder with more, or give a smaller --size"
        )
    with tempfile.TemporaryFile() as file:
        return torch.from_numpy(np.memmap(file, np.uint8, "w+", shape=shape))


# ---- One picture -------------------------------------------------------------------------------------------


def read_picture(path: Path | str) -> Tensor:
    """Return a picture file, uint8 [3, H, W]; if it cannot be read, Pillow raises OSError or others."""
    with Image.open(path) as file:
        return data.to_pixels(file)


def fit(picture: Tensor, size: int, resize: int | None = None) -> Tensor:
    """Return the middle of a picture, uint8 [3, H, W], at size x size pixels, bilinear and antialiased.

    By default its largest square is reduced or enlarged to that size. With `resize` the shorter side is first
    brought to `resize` pixels, and the middle is cut out, as is usual for networks on ImageNet.
    """
    shorter, sides = min(picture.shape[1:]), [size, size]
    if resize is None:
        picture = center_crop(picture, shorter)
    else:
        sides = [int(resize * side / shorter) for side in picture.shape[1:]]  # as torchvision's v2.Resize
    # On bytes this calculates with whole numbers, so the result is the same on every processor.
    picture = F.interpolate(picture[None], sides, mode="bilinear", antialias=True)[0]
    return center_crop(picture, size)


def reduced(picture: Tensor) -> Tensor:
    """Return a picture, uint8 [3, H, W], that was enlarged by a whole factor as it was before.

    The pictures in a report's failures/ are such. It has 8 pixels or more; any other picture stays.
    """
    height, width = picture.shape[1:]
    for factor in range(min(height, width) // SMALLEST, 1, -1):
        small = picture[:, ::factor, ::factor]
        large = small.repeat_interleave(factor, dim=1).repeat_interleave(factor, dim=2)
        if torch.equal(large, picture):
            return small
    return picture


def transformed(picture: Tensor, size: int, transform: Transform) -> Tensor:
    """Return what a transform makes of a picture, uint8 [3, H, W], as uint8 [3, size, size].

    It gets the picture as one of Pillow in RGB, upright. Raises ValueError unless it returns float [3, size,
    size] in [0, 1]; of what stood in bytes before, as after resizing by Pillow, nothing is lost.
    """
    values = transform(Image.fromarray(picture.permute(1, 2, 0).numpy()))
    if not isinstance(values, Tensor) or not values.is_floating_point():
        made = str(getattr(values, "dtype", type(values).__name__))
        raise ValueError(f"it makes {made}, expected a float tensor [3, {size}, {size}] in [0, 1]")
    if values.shape != (3, size, size):
        raise ValueError(
            f"it makes {list(values.shape)}, expected [3, {size}, {size}], the side that --size says"
        )
    low, high = values.min().item(), values.max().item()
    if not (low >= 0 and high <= 1):
        advice = "normalising is left to --mean and --std"
        raise ValueError(f"it makes values from {low:.4g} to {high:.4g}, expected 0 to 1: {advice}")
    return (255 * values.detach()).round().to(torch.uint8)


def center_crop(images: Tensor, side: int) -> Tensor:
    """Return the middle side x side pixels of images [..., H, W] that are not smaller."""
    top, left = (round((length - side) / 2) for length in images.shape[-2:])  # as torchvision's
    return images[..., top : top + side, left : left + side]

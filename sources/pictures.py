"""A folder of pictures as arrays, train/<class>/* and test/<class>/*, as by torchvision's ImageFolder."""

import math
import os
import shutil
import statistics
import tempfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageOps
from torch import Tensor

from support.errors import UserError, one_line, reading

Image.init()
IN_MEMORY = 2**30  # bytes of a split; more lie in a temporary file, of which the system keeps what it can
Transform = Callable[[Image.Image], Tensor]  # takes a picture to float [3, size, size] in [0, 1]
SUFFIXES = {suffix for suffix, kind in Image.registered_extensions().items() if kind in Image.OPEN}


def read_folder(
    root: Path | str,
    size: int,
    resize: int | None = None,
    with_train: bool = True,
    workers: int | None = None,
    transform: Transform | None = None,
) -> tuple[list[str], list[tuple[Tensor, Tensor, list[str], int]], int]:
    """Return the class names, the arrays of training and of test pictures, and the number of other files.

    The arrays are images uint8 [N, 3, size, size], labels int64 [N] and N file names, those in the folder of
    the class, in the order of class and file name; then the median of the shorter sides of the pictures in
    pixels. with_train=False leaves out train/ and its arrays. workers: threads that decode, by default one
    for each core. `fit` brings pictures to the size, or `transformed` does if there is a transform. Raises
    UserError if there are fewer than two classes, if train/ and test/ do not have pictures of the same ones,
    or if pictures cannot be read.
    """
    root = Path(root)
    if with_train and not (root / "train").is_dir():
        raise UserError(f"{root} has no train/: docs/data.md says how to split folders of the classes")
    held_out = held_out_folder(root)
    folders = [root / "train", held_out] if with_train else [held_out]
    listed = [find_pictures(folder) for folder in folders]  # (class names, paths) of each folder
    names = listed[0][0]
    odd = sorted(set(names) ^ set(listed[-1][0]))
    if odd:
        raise UserError(
            f"{root}: train/ and {held_out.name}/ need the same classes, but only one has {odd[0]!r}"
        )
    if len(names) < 2:
        raise UserError(f"{folders[0]} has pictures of {len(names)} classes, expected two or more")
    class_names = [one_line(name) for name in names]
    if len(set(class_names)) < len(names):
        raise UserError(f"{root}: two classes have one name but for their spaces: rename a folder")
    count = sum(len(paths) for _, paths in listed)
    print(f"reading {count:,} pictures of {len(names)} classes in {root}", flush=True)
    splits, unreadable, num_others = [], [], 0
    for folder, (_, paths) in zip(folders, listed, strict=True):
        splits.append(read_split(folder, paths, size, resize, workers, transform, unreadable))
        for _, _, files in os.walk(folder):
            num_others += sum(not is_picture(name) and not name.startswith(".") for name in files)
    if unreadable:
        named = ", ".join(unreadable[:5])
        raise UserError(f"pictures to repair or remove, as they cannot be read: {len(unreadable)}, {named}")
    return class_names, splits, num_others


def held_out_folder(root: Path) -> Path:
    """Return test/, else val/, or `root` itself if it holds neither these nor train/."""
    for name in ("test", "val"):
        if (root / name).exists():
            return root / name
    return root / "test" if (root / "train").exists() else root


def is_picture(path: str) -> bool:
    """Return whether Pillow opens files with such a name."""
    return Path(path).suffix.lower() in SUFFIXES and not Path(path).name.startswith(".")


def find_pictures(folder: Path) -> tuple[list[str], list[tuple[str, int]]]:
    """Return the names of the classes and (path, class) of each picture, as ImageFolder finds them."""
    from torchvision.datasets.folder import find_classes, make_dataset  # here, as it takes as long as torch

    with reading(folder, "a folder that holds one of pictures for each class"):
        names = [name for name in find_classes(folder)[0] if not name.startswith(".")]
        return names, make_dataset(folder, {n: i for i, n in enumerate(names)}, is_valid_file=is_picture)


def read_split(
    folder: Path,
    paths: list[tuple[str, int]],
    size: int,
    resize: int | None,
    workers: int | None,
    transform: Transform | None,
    unreadable: list[str],
) -> tuple[Tensor, Tensor, list[str], int]:
    """Return the arrays of a folder's pictures, see read_folder; note in `unreadable` what cannot be read."""
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
    filenames = [one_line("/".join(Path(path).relative_to(folder).parts[1:])) for path, _ in paths]
    labels = torch.tensor([label for _, label in paths])
    return images, labels, filenames, statistics.median_high(side for side, _ in rows)


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


def read_picture(path: Path | str) -> Tensor:
    """Return a picture file, uint8 [3, H, W], as to_pixels does; an animation gives its first frame.

    If it cannot be read, Pillow raises OSError, ValueError or others.
    """
    with Image.open(path) as file:
        ImageOps.exif_transpose(file, in_place=True)  # a copy takes a third of the time of decoding
        return to_pixels(file)


def to_pixels(picture: Image.Image) -> Tensor:
    """Return a picture of Pillow, uint8 [3, H, W], on white where it is transparent.

    Raises ValueError if its values have no known range, see in_bytes.
    """
    if picture.mode == "F" or picture.mode.startswith("I"):
        picture = in_bytes(np.array(picture, dtype=np.float64), picture)
    if picture.mode in ("1", "L", "CMYK", "YCbCr") and "transparency" not in picture.info:
        picture = picture.convert("RGB")
    if picture.mode == "RGB" and "transparency" not in picture.info:
        return copy_pixels(picture).permute(2, 0, 1)
    # For a photograph this would take ten times as long as decoding, hence the two ways above.
    pixels = torch.from_numpy(np.array(picture.convert("RGBA"))).permute(2, 0, 1)
    alpha = pixels[3:] / 255
    return (pixels[:3] * alpha + 255 * (1 - alpha)).round().to(torch.uint8)


def copy_pixels(picture: Image.Image) -> Tensor:
    """Return an RGB picture, uint8 [H, W, 3]; strips stay cached, so np.array takes four times as long."""
    width, height = picture.size
    pixels = np.empty((height, width, 3), dtype=np.uint8)
    for top in range(0, height, 64):
        strip = picture.crop((0, top, width, min(top + 64, height)))
        pixels[top : top + 64] = strip
    return torch.from_numpy(pixels)


def in_bytes(values: np.ndarray, file: Image.Image) -> Image.Image:
    """Return grey values of more than 8 bits, float64 [H, W], in 8 bits by the range of their file.

    Pillow itself would cut them off at 255. Whole numbers range from 0 to the largest that their bits can
    hold, floats from 0 to 1. Raises ValueError if the file tells no range, or values lie outside it.
    """
    tags = getattr(file, "tag_v2", {})  # a TIFF has in 258 the bits of a sample, in 339 its kind
    white = None
    if file.mode == "F":
        white = 1.0
    elif file.format in ("PNG", "PPM", "JPEG2000"):
        white = 2.0**16 - 1  # Pillow scales them to that
    elif tags.get(339, (1,))[0] == 1 and 258 in tags:
        bits = tags[258][0]
        white = 2.0**bits - 1
        values = values % 2**bits  # Pillow reads 32 bits with a sign
    if white is None or not (values.min() >= 0 and values.max() <= white):
        raise ValueError(
            f"its values, {file.mode} from {values.min():g} to {values.max():g}, have no known range: "
            f"save it with 8 bits, or as 0 to 1"
        )
    return Image.fromarray((255 * values / white).round().astype(np.uint8))


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

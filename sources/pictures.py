"""A folder of pictures as arrays, train/<class>/* and test/<class>/*, as by torchvision's ImageFolder."""

import os
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageOps
from torch import Tensor

from support.errors import UserError, one_line, reading

Image.init()
SUFFIXES = {suffix for suffix, kind in Image.registered_extensions().items() if kind in Image.OPEN}


def read_folder(
    root: Path | str, size: int, resize: int | None = None
) -> tuple[list[str], list[tuple[Tensor, Tensor, list[str], int]], int]:
    """Return the class names, the arrays of training and of test pictures, and the number of other files.

    The arrays are images uint8 [N, 3, size, size], see fit, labels int64 [N] and N file names, those in the
    folder of the class, in the order of class and file name; then the median of the shorter sides of the
    pictures in pixels. val/ is taken where there is no test/. Raises UserError if there are fewer than two
    classes, if train/ and test/ do not have pictures of the same ones, or if pictures cannot be read.
    """
    root = Path(root)
    if not (root / "train").is_dir():
        raise UserError(f"{root} has no train/: docs/data.md says how to split folders of the classes")
    held_out = "test" if (root / "test").exists() or not (root / "val").exists() else "val"
    names, train = find_pictures(root / "train")
    test_names, test = find_pictures(root / held_out)
    if names != test_names:
        odd = sorted(set(names) ^ set(test_names))
        raise UserError(f"{root}: train/ and {held_out}/ need the same classes, but only one has {odd[0]!r}")
    if len(names) < 2:
        raise UserError(f"{root / 'train'} has pictures of {len(names)} classes, expected two or more")
    class_names = [one_line(name) for name in names]
    if len(set(class_names)) < len(names):
        raise UserError(f"{root}: two classes have one name but for their spaces: rename a folder")
    print(f"reading {len(train + test):,} pictures of {len(names)} classes in {root}", flush=True)
    splits, unreadable, num_others = [], [], 0
    for folder, found in ((root / "train", train), (root / held_out, test)):
        splits.append(read_split(folder, found, size, resize, unreadable))
        for _, _, files in os.walk(folder):
            num_others += sum(not is_picture(name) and not name.startswith(".") for name in files)
    if unreadable:
        named = ", ".join(unreadable[:5])
        raise UserError(f"pictures to repair or remove, as they cannot be read: {len(unreadable)}, {named}")
    return class_names, splits, num_others


def is_picture(path: str) -> bool:
    """Return whether a file's name is that of a picture that Pillow opens."""
    return Path(path).suffix.lower() in SUFFIXES and not Path(path).name.startswith(".")


def find_pictures(folder: Path) -> tuple[list[str], list[tuple[str, int]]]:
    """Return the names of the classes and (path, class) of each picture, as ImageFolder finds them."""
    from torchvision.datasets.folder import find_classes, make_dataset  # which takes as long as torch

    with reading(folder, "a folder that holds one of pictures for each class"):
        names = [name for name in find_classes(folder)[0] if not name.startswith(".")]
        return names, make_dataset(folder, {n: i for i, n in enumerate(names)}, is_valid_file=is_picture)


def read_split(
    folder: Path, pictures: list[tuple[str, int]], size: int, resize: int | None, unreadable: list[str]
) -> tuple[Tensor, Tensor, list[str], int]:
    """Return the arrays of pictures in a folder, see read_folder; add to `unreadable` what cannot be read."""
    # A list would take the memory twice.
    images = torch.zeros(len(pictures), 3, size, size, dtype=torch.uint8)
    labels, filenames, sides = [], [], []
    for image, (path, label) in zip(images, pictures, strict=True):
        try:
            picture = read_picture(path)
        except Exception as error:
            unreadable.append(f"{path} ({one_line(error)})")
            continue
        image.copy_(fit(picture, size, resize))
        labels.append(label)
        sides.append(min(picture.shape[1:]))
        filenames.append(one_line("/".join(Path(path).relative_to(folder).parts[1:])))
    return images, torch.tensor(labels), filenames, sorted(sides)[len(sides) // 2] if sides else 0


def read_picture(path: Path | str) -> Tensor:
    """Return a picture file, uint8 [3, H, W].

    Whatever Pillow opens: upright by its EXIF tag, on white where it is transparent, of an animation the
    first frame. Raises OSError, ValueError and others of Pillow if it cannot be read.
    """
    with Image.open(path) as file:
        picture = ImageOps.exif_transpose(file)
        if picture.mode == "F" or picture.mode.startswith("I"):
            picture = in_bytes(np.array(picture, dtype=np.float64), file)
        picture = picture.convert("RGBA")
    pixels = torch.from_numpy(np.array(picture)).permute(2, 0, 1)
    alpha = pixels[3:] / 255
    return (pixels[:3] * alpha + 255 * (1 - alpha)).round().to(torch.uint8)


def in_bytes(values: np.ndarray, file: Image.Image) -> Image.Image:
    """Return grey values of more than 8 bits, float64 [H, W], in 8 bits by the range of their file.

    Pillow itself would cut them off at 255. Whole numbers go from 0 to the largest of their bits, floats from
    0 to 1. Raises ValueError where the range is not known, or where values lie out of it.
    """
    tags = getattr(file, "tag_v2", {})  # of a TIFF: 258 are the bits of a sample, 339 its kind
    white = None
    if file.mode == "F":
        white = 1.0
    elif file.format in ("PNG", "PPM", "JPEG2000"):
        white = 2.0**16 - 1  # to which Pillow scales them
    elif tags.get(339, (1,))[0] == 1 and 258 in tags:
        bits = tags[258][0]
        white = 2.0**bits - 1
        values = values % 2**bits  # Pillow reads 32 bits with a sign
    if white is None or not (values.min() >= 0 and values.max() <= white):
        found = f"{file.mode} from {values.min():g} to {values.max():g}"
        raise ValueError(f"its values, {found}, have no known range: save it with 8 bits, or as 0 to 1")
    return Image.fromarray((255 * values / white).round().astype(np.uint8))


def fit(picture: Tensor, size: int, resize: int | None = None) -> Tensor:
    """Return the middle of a picture, uint8 [3, H, W], at size x size pixels, bilinear and antialiased.

    Its largest square is reduced or enlarged to that. With `resize` the shorter side is so many
    pixels first, and the middle is cut out of that, as networks for ImageNet are evaluated.
    """
    shorter, sides = min(picture.shape[1:]), [size, size]
    if resize is None:
        picture = center_crop(picture, shorter)
    else:
        sides = [int(resize * side / shorter) for side in picture.shape[1:]]  # as torchvision's v2.Resize
    # Of bytes, this calculates with whole numbers, and so gives the same on every processor.
    picture = F.interpolate(picture[None], sides, mode="bilinear", antialias=True)[0]
    return center_crop(picture, size)


def center_crop(images: Tensor, side: int) -> Tensor:
    """Return the middle side x side pixels of images [..., H, W] that are not smaller."""
    top, left = (round((length - side) / 2) for length in images.shape[-2:])  # as torchvision's
    return images[..., top : top + side, left : left + side]

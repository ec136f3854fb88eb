"""A folder of pictures as arrays: train/<class>/* and test/<class>/*, as for torchvision's ImageFolder."""

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from gradcam import read_square
from running.files import UserError, reading

SUFFIXES = (".jpg", ".jpeg", ".png", ".gif", ".webp")


def read(root: Path | str) -> tuple[list[str], dict, dict]:
    """Return the class names and the arrays of the training and of the test pictures in the folder `root`.

    The arrays are `images` uint8 [N, 3, 32, 32], `labels` int64 [N] and `filenames` (N names), in the order
    of class and file name. val/ is taken where there is no test/. Raises UserError if there are fewer than
    two classes, if train/ and test/ do not have pictures of the same ones, or if a picture cannot be read.
    """
    root = Path(root)
    held_out = "test" if (root / "test").exists() or not (root / "val").exists() else "val"
    train, test = find_pictures(root / "train"), find_pictures(root / held_out)
    for name in [*train, *test]:
        for folder, pictures in (("train", train), (held_out, test)):
            if not pictures.get(name):
                both = f"train/ and {held_out}/ need the same classes"
                raise UserError(f"{root / folder} has no picture of the class {name!r}: {both}")
    if len(train) < 2:
        raise UserError(f"{root / 'train'} has pictures of {len(train)} classes, expected two or more")
    count = sum(len(paths) for paths in [*train.values(), *test.values()])
    print(f"reading {count:,} pictures of {len(train)} classes in {root}", flush=True)
    return [printable(name) for name in train], read_split(train), read_split(test)


def find_pictures(folder: Path) -> dict[str, list[Path]]:
    """Return {class: paths of its pictures}, both in the order of names, of the folders in a folder.

    Hidden files and folders are skipped, and files whose names are not those of pictures, with a note.
    """
    found, num_others = {}, 0
    with reading(folder, "a folder that holds one of pictures for each class"):
        for class_folder in sorted(folder.iterdir()):
            if not class_folder.is_dir() or class_folder.name.startswith("."):
                continue
            files = [path for path in sorted(class_folder.iterdir()) if not path.name.startswith(".")]
            pictures = [path for path in files if path.suffix.lower() in SUFFIXES and path.is_file()]
            found[class_folder.name] = pictures
            num_others += len(files) - len(pictures)
    if num_others:
        print(f"note: {folder}: files left out, because they are not {', '.join(SUFFIXES)}: {num_others}")
    return found


def read_split(pictures: dict[str, list[Path]]) -> dict:
    """Return the arrays, see read, of {class: paths of its pictures}."""
    images, labels, filenames = [], [], []
    for label, paths in enumerate(pictures.values()):
        for path in paths:
            images.append(read_picture(path))
            labels.append(label)
            filenames.append(printable(path.name))
    return {"images": torch.stack(images), "labels": torch.tensor(labels), "filenames": filenames}


def read_picture(path: Path) -> Tensor:
    """Return the middle square of a picture at 32x32 pixels, uint8 [3, 32, 32]; else raise UserError."""
    with reading(path, "a picture"):
        square = read_square(path)
    # Of bytes, this calculates with whole numbers, and so gives the same on every processor.
    return F.interpolate(square[None], size=(32, 32), mode="bilinear", antialias=True)[0]


def printable(name: str) -> str:
    """Return a file's name with a question mark for whatever no terminal can show."""
    return "".join(letter if letter.isprintable() else "?" for letter in name)

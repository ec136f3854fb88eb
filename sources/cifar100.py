"""CIFAR-100 as arrays: from a folder on the disk, or downloaded to it first.

The data set is from Krizhevsky, "Learning Multiple Layers of Features from Tiny Images", 2009, chapter 3:
50,000 training and 10,000 test images of 32x32 pixels, 100 classes in 20 superclasses.

Archives and pickles come from elsewhere and may be damaged or hostile. Nothing is unpacked to the disk, every
size is limited while it is read, and read_source turns whatever goes wrong into a UserError of one line.
"""

import contextlib
import gzip
import hashlib
import io
import pickle
import re
import tarfile
import zipfile
from collections.abc import Iterator
from os.path import isdir
from pathlib import Path

import numpy as np
import torch
from torchvision.io import ImageReadMode, decode_image

from running.files import UserError, check_file, one_line, read_file, usable, whole_file
from sources import download

# The 20 superclasses and their classes (Krizhevsky 2009, and the file `meta` of the official archive).
SUPERCLASSES = {
    "aquatic_mammals": "beaver dolphin otter seal whale",
    "fish": "aquarium_fish flatfish ray shark trout",
    "flowers": "orchid poppy rose sunflower tulip",
    "food_containers": "bottle bowl can cup plate",
    "fruit_and_vegetables": "apple mushroom orange pear sweet_pepper",
    "household_electrical_devices": "clock keyboard lamp telephone television",
    "household_furniture": "bed chair couch table wardrobe",
    "insects": "bee beetle butterfly caterpillar cockroach",
    "large_carnivores": "bear leopard lion tiger wolf",
    "large_man-made_outdoor_things": "bridge castle house road skyscraper",
    "large_natural_outdoor_scenes": "cloud forest mountain plain sea",
    "large_omnivores_and_herbivores": "camel cattle chimpanzee elephant kangaroo",
    "medium_mammals": "fox porcupine possum raccoon skunk",
    "non-insect_invertebrates": "crab lobster snail spider worm",
    "people": "baby boy girl man woman",
    "reptiles": "crocodile dinosaur lizard snake turtle",
    "small_mammals": "hamster mouse rabbit shrew squirrel",
    "trees": "maple_tree oak_tree palm_tree pine_tree willow_tree",
    "vehicles_1": "bicycle bus motorcycle pickup_truck train",
    "vehicles_2": "lawn_mower rocket streetcar tank tractor",
}
SUPERCLASS_NAMES = list(SUPERCLASSES)
SUPERCLASS_BY_NAME = {name: i for i, names in enumerate(SUPERCLASSES.values()) for name in names.split()}
CLASS_NAMES = sorted(SUPERCLASS_BY_NAME)
SUPERCLASS_OF = [SUPERCLASS_BY_NAME[name] for name in CLASS_NAMES]

OFFICIAL_COUNT = {"train": 50_000, "test": 10_000}
OFFICIAL_DIGEST = {  # see content_digest
    "train": "37a2b72bd30f9438ff20798c661450f58f138c034f556846cd744a56bbb09967",
    "test": "b9ad4d741ee82873becf8846c246715e789a57766586a9677a8bbe26c8b30279",
}

CACHE_NAME = "cifar100-cache.npz"
MAX_UNPACKED = 400_000_000  # bytes; the official files have 187 MB
MAX_PNG = 100_000  # bytes; a PNG file of 32x32 pixels has 2 to 3 kB
# How a PNG file of 32x32 pixels in 8-bit RGB begins (PNG specification, section 11.2.1); no other is decoded.
PNG_START = b"\x89PNG\r\n\x1a\n\0\0\0\x0dIHDR" + bytes([0, 0, 0, 32, 0, 0, 0, 32, 8, 2])


def read(root: Path | str, url: str | None = None) -> dict[str, np.ndarray]:
    """Return CIFAR-100 from the folder `root`; see data.load_cifar100 for other places and for the errors.

    The result has for each split, "train" and "test": <split>_images uint8 [N, 3, 32, 32], <split>_labels
    int64 [N], <split>_filenames (bytes) [N], in the order of class and file name, and <split>_digest.
    """
    root = Path(root)
    source, cache = find_source(root), root / CACHE_NAME
    if source is None and url and not url.lower().startswith(("http://", "https://")):
        source = Path(url)
    # A cache that is absent, damaged (its checksums tell) or of another state of the source is made anew.
    with contextlib.suppress(Exception):
        check_file(cache)  # opening a named pipe would wait for ever
        with np.load(cache) as file:
            keys = ("images", "labels", "filenames", "digest")
            arrays = {f"{split}_{key}": file[f"{split}_{key}"] for split in OFFICIAL_COUNT for key in keys}
            if source is None or file["source_state"] == source_state(source):
                return arrays
    arrays = read_source(source) if source else download.download(root, url, read_source)
    try:
        with whole_file(cache) as temporary, open(temporary, "wb") as file:
            np.savez(file, **arrays, source_state=source_state(source or root))
    except UserError as error:
        print(f"note: no cache was written ({error}), so the next start reads the source again")
    return arrays


def find_source(root: Path) -> Path | None:
    """Return the file or folder in `root` that holds CIFAR-100, or None; a zip is known by its name."""
    official = [root / "cifar-100-python", root / download.OFFICIAL_ARCHIVE]
    # Other sets that may lie here have bears and roses too, but no aquarium fish.
    folders = [path for path in (root, *sorted(root.glob("*"))) if isdir(path / "train" / "aquarium_fish")]
    zips = [path for path in sorted(root.glob("*.zip")) if re.search("cifar.?100", path.name, re.IGNORECASE)]
    return next(filter(Path.exists, [*official, *folders, *zips]), None)


def read_source(path: Path, address: str | None = None) -> dict[str, np.ndarray]:
    """Return the arrays of a file or folder; raise UserError, in one line, if it cannot be used.

    What was downloaded from the `address` of a known source must be exactly CIFAR-100.
    """
    arrays = {}
    with usable(path, "CIFAR-100"):
        place = find_source(path) or path
        if not place.is_dir():
            check_file(place)
        png = (place / "train").is_dir() or place.suffix == ".zip" or zipfile.is_zipfile(place)
        for split, records in (read_pngs(place) if png else read_official(place)).items():
            records.sort(key=lambda record: record[:2])  # by class, then by file name
            classes = {label for label, _, _ in records}
            if classes != set(range(100)):
                raise UserError(f"{split}: images of {len(classes)} classes, expected CIFAR-100's 100")
            labels, filenames, images = zip(*records, strict=True)
            arrays[f"{split}_images"] = images = np.stack(images)
            arrays[f"{split}_labels"] = labels = np.array(labels, dtype=np.int64)
            # Cut off, because the array has room for the longest of them N times.
            arrays[f"{split}_filenames"] = np.array([name[:200].encode() for name in filenames])
            arrays[f"{split}_digest"] = np.array(content_digest(images, labels))
        if address in download.SOURCES.values() and not is_official(arrays):
            raise UserError("its content digest is not that of the official set")
    return arrays


class OfficialUnpickler(pickle.Unpickler):
    """Read containers, numbers, strings and arrays, and call nothing: whatever a pickle names is Inert."""

    class Inert:
        def __init__(self, *arguments):
            pass

        def __setstate__(self, state: tuple) -> None:
            self.state = state  # of an array; the last of it are the pixels

    def find_class(self, module: str, name: str) -> type:
        return self.Inert


def read_official(source: Path) -> dict[str, list]:
    """Return {split: [(label, file name, image uint8 [3, 32, 32]), ...]} of the official files."""
    if source.is_dir():
        files = {split: read_file(source / split, MAX_UNPACKED) for split in OFFICIAL_COUNT}
    else:
        with gzip.open(source) as file:
            unzipped = io.BytesIO(file.read(MAX_UNPACKED))
        with tarfile.open(fileobj=unzipped, mode="r:") as archive:
            members = {split: archive.extractfile(f"cifar-100-python/{split}") for split in OFFICIAL_COUNT}
            # With a limit again: a sparse file of gigabytes takes no room in the archive.
            files = {split: member.read(MAX_UNPACKED) for split, member in members.items()}
    records = {}
    for split, content in files.items():
        record = OfficialUnpickler(io.BytesIO(content), encoding="bytes").load()
        images = np.frombuffer(record[b"data"].state[-1], dtype=np.uint8).reshape(-1, 3, 32, 32)
        filenames = [name.decode() for name in record[b"filenames"]]
        records[split] = list(zip(record[b"fine_labels"], filenames, images, strict=True))
    return records


def png_files(source: Path) -> Iterator[tuple[str, bytes]]:
    """Yield the path and the content of every PNG file in a folder or a zip archive."""
    if source.is_dir():
        for path in [*source.glob("train/*/*.png"), *source.glob("test/*/*.png")]:
            yield path.as_posix(), read_file(path, MAX_PNG)
        return
    with zipfile.ZipFile(source) as archive:
        for member in archive.infolist():
            if member.filename.endswith(".png"):
                if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
                    raise UserError(f"refused: {member.filename} would be unpacked without a limit")
                with archive.open(member) as file:
                    yield member.filename, file.read(MAX_PNG)


def read_pngs(source: Path) -> dict[str, list]:
    """Return what read_official does of PNG files train/<class>/<name>.png and test/<class>/<name>.png."""
    records = {split: [] for split in OFFICIAL_COUNT}
    for path, content in png_files(source):
        split, class_name, filename = ["", "", *path.split("/")][-3:]
        if split not in records or filename.startswith("."):  # macOS adds files ._name.png
            continue
        if len(records[split]) == OFFICIAL_COUNT[split]:
            raise UserError(f"it has more than the {OFFICIAL_COUNT[split]:,} {split} images of CIFAR-100")
        with usable(one_line(path), "an image of CIFAR-100"):
            if not content.startswith(PNG_START):
                raise UserError("it is not a PNG file of 32x32 pixels in 8-bit RGB")
            image = decode_image(torch.frombuffer(bytearray(content), dtype=torch.uint8), ImageReadMode.RGB)
            records[split].append((CLASS_NAMES.index(class_name), filename, image.numpy()))
    return records


def content_digest(images: np.ndarray, labels: np.ndarray) -> str:
    """Return the sha256 over the sorted records of a split, which does not depend on their order.

    images: uint8 [N, 3, 32, 32]; labels: int [N], at most 255. A record is the label as one byte and then the
    image as 3,072 bytes, channels first.
    """
    records = np.concatenate([labels.astype(np.uint8)[:, None], images.reshape(len(images), -1)], axis=1)
    return hashlib.sha256(b"".join(sorted(record.tobytes() for record in records))).hexdigest()


def is_official(arrays: dict) -> bool:
    """Whether both splits have the content digest of CIFAR-100."""
    return all(arrays[f"{split}_digest"] == digest for split, digest in OFFICIAL_DIGEST.items())


def source_state(source: Path) -> str:
    """Return the names, sizes and times of a source's files; for PNG files, of the folders they are in."""
    source = find_source(source) or source
    patterns = ("train", "test", "train/*", "test/*")
    paths = [path for pattern in patterns for path in sorted(source.glob(pattern))] or [source]
    return str([(path.name, path.stat().st_size, path.stat().st_mtime_ns) for path in paths])

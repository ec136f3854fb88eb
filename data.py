"""CIFAR-100 from the disk or the network, the built-in `shapes` set, the validation split, and batches.

A data set is small enough to be one uint8 tensor, so there is no loader with worker processes: the tensor
lives on the training device and augmentation is a few batched tensor operations (`batches`).

CIFAR-100 is from Krizhevsky, "Learning Multiple Layers of Features from Tiny Images", 2009, chapter 3:
50,000 training and 10,000 test images of 32x32 pixels, 100 classes in 20 superclasses.
"""

import contextlib
import datetime
import gzip
import hashlib
import http.client
import io
import json
import math
import os
import pickle
import queue
import stat
import struct
import sys
import tarfile
import threading
import time
import urllib.error
import urllib.request
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

try:
    import fcntl
except ImportError:  # Windows has none: there a second download into one folder is not noticed
    fcntl = None

import numpy as np
import torch
from torch import Tensor
from torchvision.io import ImageReadMode, decode_image

# Mean and standard deviation of each channel over CIFAR-100's training images scaled to [0, 1]. The shapes
# set uses the same numbers: the first batch norm makes up for the difference, and a checkpoint then needs
# nothing but its weights to be applied to a picture.
MEAN = (0.50707516, 0.48654887, 0.44091784)
STD = (0.26733429, 0.25643846, 0.27615047)

# sha256 over the sorted records of a split (one label byte, then 3,072 channels-first pixel bytes): the same
# for every source of the official images, whatever their order.
OFFICIAL_DIGEST = {
    "train": "37a2b72bd30f9438ff20798c661450f58f138c034f556846cd744a56bbb09967",
    "test": "b9ad4d741ee82873becf8846c246715e789a57766586a9677a8bbe26c8b30279",
}
OFFICIAL_COUNT = {"train": 50_000, "test": 10_000}

CACHE_NAME = "cifar100-cache.npz"

# The 20 superclasses and their classes (Krizhevsky 2009, and the `meta` file of the official archive).
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
CLASS_NAMES = sorted(name for names in SUPERCLASSES.values() for name in names.split())
SUPERCLASS_OF = [
    next(i for i, names in enumerate(SUPERCLASSES.values()) if name in names.split()) for name in CLASS_NAMES
]


class UserError(Exception):
    """Something the user gave cannot be used; the message is one line that says what to do about it."""


@dataclass
class Dataset:
    """One split of a data set."""

    name: str  # "cifar100" or "shapes"
    images: Tensor  # uint8 [N, 3, 32, 32]
    labels: Tensor  # int64 [N]
    class_names: list[str]  # C names
    superclass_of: Tensor  # int64 [C]
    superclass_names: list[str]
    filenames: list[str]  # N names
    provenance: str  # one line for people: what these images are, and whether that was verified
    verified: bool  # the whole official split, by content digest
    digest: str  # sha256 of the content, as in OFFICIAL_DIGEST
    masks: Tensor | None = None  # bool [N, 32, 32], where the object is; only the shapes set knows


@contextlib.contextmanager
def atomic_write(path: Path | str) -> Iterator[Path]:
    """Yield a temporary path beside `path`; when the block ends well, sync it and rename it to `path`.

    A reader sees the old file or the whole new one, never a part. An exception leaves the old file alone.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        yield temporary
        with open(temporary, "rb+") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def load(name: str, root: Path | str, url: str | None = None) -> tuple[Dataset, Dataset]:
    """Return the (train, test) splits of the data set `name`: "cifar100" (see load_cifar100) or "shapes"."""
    if name == "shapes":
        # Different seeds: the two splits share no image.
        return make_shapes(per_class=60, seed=0), make_shapes(per_class=20, seed=1)
    return load_cifar100(root, url)


# ---------------------------------------------------------------------------------------------------------
# CIFAR-100 from the disk


def load_cifar100(root: Path | str, url: str | None = None) -> tuple[Dataset, Dataset]:
    """Return the (train, test) splits of CIFAR-100 from the folder `root`, or download it to there first.

    Looked for, in this order: the official folder cifar-100-python/, cifar-100-python.tar.gz, a folder of PNG
    files train/<class>/<name>.png and test/<class>/<name>.png (in `root` or one level below), a zip of such a
    folder. The first load writes cifar100-cache.npz into `root`; later ones read only that, as long as the
    source is unchanged or gone. Images come in the order of class and file name, so that a seed means the
    same split and the same batches whatever the source.

    Only where `root` holds none of these is anything else asked: `url` first, a path to read or an address to
    download from, then SOURCES. What lies in `root` or comes from `url` may be a part of CIFAR-100 or a
    changed set, and its provenance says so; what comes from SOURCES is CIFAR-100 or is refused.
    Raises UserError where something is broken, or nothing is there and nothing can be had.
    """
    root = Path(root)
    if url and "://" in url and not url.lower().startswith(("http://", "https://")):
        raise UserError(f"--data-url {url}: expected http://, https:// or a path")
    arrays = read_local(root)
    if arrays and url:
        print(f"note: --data-url is not used, as {root} holds CIFAR-100 already")
    if arrays is None and url and "://" not in url:
        arrays = read_source(Path(url))
        write_cache(root, Path(url), arrays)
    if arrays is None:
        with download_lock(root):
            # Another process may have brought it while this one waited for the lock.
            arrays = read_local(root) or download(root, url)
    return make_datasets(arrays)


def read_local(root: Path) -> dict | None:
    """Return the arrays of CIFAR-100 by name from the cache or a source in `root`, or None without either."""
    try:
        if root.exists() and not root.is_dir():
            raise UserError(f"{root} is a file; CIFAR-100 is looked for in a folder, see --data-dir")
        source = find_source(root)
        arrays = read_cache(root, source)
    except OSError as error:
        raise UserError(f"{root} cannot be read ({error.strerror}): give another --data-dir") from None
    if arrays is None and source is not None:
        try:
            arrays = read_source(source)
        except UserError as error:
            raise UserError(f"{error}; replace it, or move it away to have CIFAR-100 downloaded") from None
        write_cache(root, source, arrays)
    return arrays


def find_source(root: Path) -> Path | None:
    """Return the file or folder in `root` that holds CIFAR-100, or None."""
    if (root / "cifar-100-python").is_dir():
        return root / "cifar-100-python"
    if (root / "cifar-100-python.tar.gz").is_file():
        return root / "cifar-100-python.tar.gz"
    if root.is_dir():
        for folder in [root, *sorted(path for path in root.iterdir() if path.is_dir())]:
            # By the names of classes: other data sets have a train/ and a test/ too.
            if any((folder / split / name).is_dir() for split in ("train", "test") for name in CLASS_NAMES):
                return folder
        for path in sorted(root.glob("*.zip"), key=lambda path: ("cifar" not in path.name.lower(), path)):
            return path
    return None


# Nothing is unpacked to the disk, so no archive can write anywhere. Sizes are counted as they are read, as an
# archive can state any. The official files take 187 MB, and a PNG of 3,072 bytes of pixels 2 to 3 kB.
MAX_UNPACKED = 400_000_000
MAX_PNG = 100_000


def read_source(path: Path) -> dict:
    """Return arrays from the file or folder `path`: <split>_images, _labels, _filenames and _digest, checked.

    Raises UserError, one line that names it, whatever is wrong with it.
    """
    try:
        source = (find_source(path) if path.is_dir() else None) or path
        if source.is_dir() and (source.name == "cifar-100-python" or (source / "meta").is_file()):
            names = ("meta", "train", "test")
            splits = read_official({name: read_file(source / name, MAX_UNPACKED) for name in names})
        elif source.is_dir():
            splits = read_pngs(folder_pngs(source))
        elif is_zip(source):
            with zipfile.ZipFile(source) as archive:
                splits = read_pngs(zip_pngs(archive))
        elif read_file(source, 2, whole=False) == b"\x1f\x8b":
            splits = read_official(tar_files(source))
        else:
            raise UserError("it is neither a zip nor a tar.gz archive; is it a saved web page?")
        arrays = {}
        for split, (images, labels, filenames) in splits.items():
            images, labels, filenames = canonical_order(images, labels, filenames)
            arrays[f"{split}_images"], arrays[f"{split}_labels"] = images, labels
            arrays[f"{split}_filenames"] = np.array([name.encode() for name in filenames], dtype=np.bytes_)
        check_arrays(arrays)
        for split in splits:
            digest = content_digest(arrays[f"{split}_images"], arrays[f"{split}_labels"])
            arrays[f"{split}_digest"] = np.array(digest)
    except Exception as error:  # damaged and hostile files raise many kinds
        raise UserError(f"{path} is no usable CIFAR-100: {one_line(error)}") from None
    return arrays


def check_arrays(arrays: dict) -> None:
    """Raise UserError unless the arrays are images and labels of all 100 classes in both splits."""
    for split, most in OFFICIAL_COUNT.items():
        images, labels, filenames = (arrays[f"{split}_{part}"] for part in ("images", "labels", "filenames"))
        n = len(labels)
        if images.shape != (n, 3, 32, 32) or images.dtype != np.uint8 or filenames.shape != (n,):
            raise UserError(f"{split}: {n} labels do not match images {images.dtype} {images.shape}")
        if n > most:
            raise UserError(f"{split}: it has {n:,} images, CIFAR-100 only {most:,}")
        if n and (labels.min() < 0 or labels.max() > 99):
            raise UserError(f"{split}: its labels are {labels.min()} to {labels.max()}, expected 0 to 99")
        absent = [name for c, name in enumerate(CLASS_NAMES) if c not in labels]
        if absent:
            raise UserError(f"{split}: {len(absent)} of the 100 classes have no image ({absent[0]} for one)")


def one_line(error: Exception) -> str:
    """Return what an exception says in one printable line: files and servers can put anything into it."""
    text = " ".join(str(error).split()) or type(error).__name__
    return "".join(c if c.isprintable() else "?" for c in text)[:300]


def uint8_dtype(code: str, *flags) -> np.dtype:
    """Stand in for numpy.dtype, which can also make types that lead numpy to read wild memory."""
    if code != "u1":
        raise UserError(f"refused: the pickle holds an array of type {code!r}, expected u1")
    return np.dtype(np.uint8)


# What an official pickle may name for its reader to call; numpy moved `_reconstruct` in version 2.
PICKLE_NAMES = {
    ("numpy.core.multiarray", "_reconstruct"): np.empty(0).__reduce__()[0],
    ("numpy._core.multiarray", "_reconstruct"): np.empty(0).__reduce__()[0],
    ("numpy", "ndarray"): np.ndarray,
    ("numpy", "dtype"): uint8_dtype,
}


class NumpyUnpickler(pickle._Unpickler):
    """Unpickle what the official files are made of: containers, numbers, strings and one numpy array.

    A pickle can name any function for the reader to call. Everything but PICKLE_NAMES is refused before it is
    looked up. The base is the unpickler written in Python: 14 bytes make the one in C fill all memory.
    """

    def find_class(self, module: str, name: str):
        if (module, name) not in PICKLE_NAMES:
            raise UserError(f"refused: the pickle asks for {module}.{name}, which no CIFAR-100 file needs")
        return PICKLE_NAMES[module, name]


def read_official(files: dict[str, bytes]) -> dict:
    """Return {split: (images, labels, filenames)} from the three pickles of the official layout, by name."""
    content = {}
    for name in ("meta", "train", "test"):
        keys = ("fine_label_names",) if name == "meta" else ("data", "fine_labels", "filenames")
        try:
            record = NumpyUnpickler(io.BytesIO(files[name]), encoding="latin1").load()
            content[name] = [record[key] for key in keys]
        except (LookupError, TypeError):
            raise UserError(f"it has no file `{name}` with {', '.join(keys)}") from None
    if content["meta"] != [CLASS_NAMES]:
        raise UserError("the class names in `meta` are not those of CIFAR-100")
    splits = {}
    for split in ("train", "test"):
        data, labels, filenames = content[split]
        if not isinstance(data, np.ndarray) or data.ndim != 2 or data.shape[1] != 3072:
            raise UserError(f"{split}: `data` is no array with rows of 3,072 pixels")
        if not type(labels) is type(filenames) is list or not len(data) == len(labels) == len(filenames):
            raise UserError(f"{split}: it has not one label and one file name for each of {len(data)} images")
        if not all(type(label) is int for label in labels):
            raise UserError(f"{split}: it has a label that is no whole number")
        if not all(type(name) is str and len(name) < 256 for name in filenames):
            raise UserError(f"{split}: it has a file name that is no string of under 256 characters")
        splits[split] = (data.reshape(len(data), 3, 32, 32), np.array(labels, dtype=np.int64), filenames)
    return splits


def read_file(path: Path, limit: int, whole: bool = True) -> bytes:
    """Return the first `limit` bytes of a file; raise UserError where it is no file or (whole) has more."""
    if not path.is_file():  # opening a named pipe would wait for ever
        raise UserError(f"{path} is not there or is no file")
    with open(path, "rb") as file:
        content = file.read(limit + whole)
    if len(content) > limit:
        raise UserError(f"{path} has more than the {limit / 1e6:.1f} MB allowed")
    return content


def is_zip(path: Path) -> bool:
    """Whether a file starts as a zip archive does, whatever its name."""
    return read_file(path, 4, whole=False) == b"PK\3\4"


def tar_files(source: Path) -> dict[str, bytes]:
    """Return the content of the official archive's files by name."""
    with gzip.open(source) as file:
        unzipped = file.read(MAX_UNPACKED + 1)
    if len(unzipped) > MAX_UNPACKED:
        raise UserError(f"refused: it unpacks to more than the {MAX_UNPACKED / 1e6:.0f} MB allowed")
    files = {}
    with tarfile.open(fileobj=io.BytesIO(unzipped), mode="r:") as archive:
        for count, member in enumerate(archive):
            check_member(member.name, (member.isreg() and not member.issparse()) or member.isdir())
            if count == 100:  # the official one has 5
                raise UserError("refused: it has more than 100 members")
            folder, _, name = member.name.removeprefix("./").partition("/")
            if folder == "cifar-100-python" and name in ("meta", "train", "test"):
                files[name] = archive.extractfile(member).read()
    return files


def check_member(name: str, plain: bool) -> None:
    """Refuse an archive with a member that is no plain file or folder, or that lies outside of it."""
    parts = name.replace("\\", "/").split("/")
    if not plain or ".." in parts or parts[0] == "" or ":" in parts[0]:
        raise UserError(f"refused: member {name!r} is a link, a device or outside of the archive's folder")


def zip_pngs(archive: zipfile.ZipFile) -> Iterator[tuple[str, str, str, bytes]]:
    """Yield (split, class name, file name, content) of every PNG in the archive."""
    for member in archive.infolist():
        kind = stat.S_IFMT(member.external_attr >> 16)
        check_member(member.filename, kind in (0, stat.S_IFREG, stat.S_IFDIR))
        parts = member.filename.split("/")
        if len(parts) >= 3 and parts[-3] in ("train", "test") and is_png(parts[-1]):
            # zipfile unpacks the other methods without a limit.
            if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
                raise UserError(f"refused: {member.filename!r} is compressed by another method than deflate")
            with archive.open(member) as file:
                yield *parts[-3:], file.read(MAX_PNG + 1)


def folder_pngs(folder: Path) -> Iterator[tuple[str, str, str, bytes]]:
    """Yield (split, class name, file name, content) of every PNG below train/ and test/."""
    for split in ("train", "test"):
        for class_folder in (folder / split).iterdir() if (folder / split).is_dir() else []:
            for path in class_folder.iterdir() if class_folder.is_dir() else []:
                if is_png(path.name):
                    yield split, class_folder.name, path.name, read_file(path, MAX_PNG)


def is_png(filename: str) -> bool:
    """Whether the name is one of a picture; macOS adds files `._name.png` that are none."""
    return filename.endswith(".png") and not filename.startswith(".")


def decode_png(content: bytes) -> np.ndarray:
    """Decode a PNG of 32x32 pixels in 8-bit RGB to uint8 [3, 32, 32]; raise UserError for any other content.

    Size and mode stand at a fixed place (PNG specification, section 11.2.1), so they are checked before a
    picture of billions of pixels can be unpacked.
    """
    if len(content) > MAX_PNG or content[:8] != b"\x89PNG\r\n\x1a\n":
        raise UserError("is no PNG file of an image of CIFAR-100")
    if content[8:26] != struct.pack(">I4sIIBB", 13, b"IHDR", 32, 32, 8, 2):
        raise UserError("is not 32x32 pixels in 8-bit RGB")
    return decode_image(torch.frombuffer(bytearray(content), dtype=torch.uint8), ImageReadMode.RGB).numpy()


def read_pngs(members: Iterator[tuple[str, str, str, bytes]]) -> dict:
    """Return {split: (images, labels, filenames)} from PNG files; a class is the name of its folder."""
    index = {name: i for i, name in enumerate(CLASS_NAMES)}
    found = {"train": {}, "test": {}}  # (label, file name): image
    for split, class_name, filename, content in members:
        if class_name not in index:
            raise UserError(f"{split}/{class_name} is not one of CIFAR-100's class names")
        if (index[class_name], filename) in found[split]:
            raise UserError(f"it has {split}/{class_name}/{filename} twice")
        if len(found[split]) == OFFICIAL_COUNT[split]:
            raise UserError(f"it has more than the {OFFICIAL_COUNT[split]:,} {split} images of CIFAR-100")
        try:
            found[split][index[class_name], filename] = decode_png(content)
        except (UserError, RuntimeError) as error:
            raise UserError(f"{split}/{class_name}/{filename} cannot be used: {error}") from None
    splits = {}
    for split, images in found.items():
        if not images:
            raise UserError(f"it has no {split}/<class>/<name>.png")
        labels, filenames = zip(*images, strict=True)
        splits[split] = (np.stack(list(images.values())), np.array(labels, dtype=np.int64), list(filenames))
    return splits


def canonical_order(images: np.ndarray, labels: np.ndarray, filenames: list[str]) -> tuple:
    """Sort by class, then by file name, which is unique within a class."""
    order = sorted(range(len(labels)), key=lambda i: (labels[i], filenames[i]))
    return images[order], labels[order], [filenames[i] for i in order]


def content_digest(images: np.ndarray, labels: np.ndarray) -> str:
    """sha256 over the sorted records of one label byte and 3,072 pixel bytes."""
    records = np.concatenate([labels.astype(np.uint8)[:, None], images.reshape(len(images), -1)], axis=1)
    digest = hashlib.sha256()
    for record in sorted(record.tobytes() for record in records):
        digest.update(record)
    return digest.hexdigest()


def is_official(arrays: dict) -> bool:
    """Whether both splits have the content digest of CIFAR-100."""
    return all(arrays[f"{split}_digest"] == digest for split, digest in OFFICIAL_DIGEST.items())


def source_state(source: Path) -> str:
    """Return a string that changes with the source: size and time of its files, for PNG of its folders."""
    paths = [source / name for name in ("train", "test", "meta")] if source.is_dir() else [source]
    paths += sorted(source.glob("train/*/")) + sorted(source.glob("test/*/"))
    stats = {str(path.relative_to(source.parent)): path.stat() for path in paths if path.exists()}
    return json.dumps({name: [stat.st_size, stat.st_mtime_ns] for name, stat in stats.items()})


def write_cache(root: Path, source: Path, arrays: dict) -> None:
    """Put the arrays into one uncompressed npz file; where that cannot be written, a note says so."""
    try:
        root.mkdir(parents=True, exist_ok=True)
        with atomic_write(root / CACHE_NAME) as temporary, open(temporary, "wb") as file:
            np.savez(file, **arrays, source_state=np.array(source_state(source)))
    except OSError as error:
        print(f"note: no cache was written ({error}), so the next start reads the source again")


def read_cache(root: Path, source: Path | None) -> dict | None:
    """Return the arrays of the cache by name, or None where it is absent, damaged or not of this source."""
    try:
        # The zip format of npz carries a checksum of each array, so damage does not pass.
        with np.load(root / CACHE_NAME, allow_pickle=False) as file:
            if source is None or file["source_state"] == source_state(source):
                arrays = {name: file[name] for name in file.files}
                check_arrays(arrays)
                return arrays
    except FileNotFoundError:
        pass
    except Exception as error:  # a damaged file raises many kinds
        print(f"note: {root / CACHE_NAME} is damaged ({error}) and will be made again")
    return None


def make_datasets(arrays: dict) -> tuple[Dataset, Dataset]:
    """Turn the arrays of the cache into the two splits, and say what they are."""
    count = {split: len(arrays[f"{split}_labels"]) for split in ("train", "test")}
    verified = is_official(arrays)
    provenance = f"CIFAR-100, {count['train']:,} training and {count['test']:,} test images, "
    if verified:
        provenance += "verified: the content digest is the official one"
    elif count == OFFICIAL_COUNT:
        provenance += "NOT verified: the content differs from the official set"
    else:
        provenance += "not verified: a part of the official set has no official digest"
    return tuple(
        Dataset(
            name="cifar100",
            images=torch.from_numpy(arrays[f"{split}_images"]),
            labels=torch.from_numpy(arrays[f"{split}_labels"]),
            class_names=CLASS_NAMES,
            superclass_of=torch.tensor(SUPERCLASS_OF),
            superclass_names=SUPERCLASS_NAMES,
            filenames=[name.decode() for name in arrays[f"{split}_filenames"].tolist()],
            provenance=provenance,
            verified=verified,
            digest=str(arrays[f"{split}_digest"]),
        )
        for split in ("train", "test")
    )


# ---------------------------------------------------------------------------------------------------------
# CIFAR-100 from the network


# Where it is downloaded from, in this order. The official host has been slow since June 2026 (60 to 85 kB/s,
# 40 minutes and more for its 169 MB), so a copy of the same pixels as PNG files comes first.
SOURCES = [
    "https://github.com/cyizhuo/CIFAR-100-dataset/archive/refs/heads/main.zip",
    "https://www.cs.toronto.edu/~kriz/cifar-100-python.tar.gz",
]
TYPICAL_SIZE = 150_000_000  # bytes, for the bar: GitHub does not tell the size of an archive
MAX_DOWNLOAD = 400_000_000  # bytes; either source has less than half of it
CONNECT_SECONDS = 8  # from the look-up of the name to the first line of the answer
STALL_SECONDS = 15  # without a single byte
RATE_SECONDS = 20  # the rate is taken over this long
MIN_RATE = 200_000  # bytes/s: 12 minutes for all of it. Slower than that, the next source is asked
CRAWL_RATE = 1_000  # bytes/s: 40 hours for all of it. As good as nothing, even from the last source
TRIES = 5  # of one source whose connection is cut, as long as each brings something


class DiskError(UserError):
    """The folder for the data cannot be written to, so that no other source would help."""


class TooSlow(Exception):
    """A source sends at fewer bytes/s than asked for; the rate is the argument."""


def download(root: Path, url: str | None) -> dict:
    """Download CIFAR-100 into `root` from the first source that delivers it, and return its arrays.

    A slow source is left while another remains; when all others have failed, the fastest of the slow ones
    goes on. Raises UserError with the reason of each where none delivers.
    """
    waiting = ([url] if url else []) + SOURCES
    slow, reasons = {}, {}  # address: bytes/s; address: why it failed
    while waiting or slow:
        second_round = not waiting
        address = max(slow, key=slow.get) if second_round else waiting.pop(0)
        slow.pop(address, None)
        min_rate = MIN_RATE if (waiting or slow) and not second_round else CRAWL_RATE
        # A name of its own for each address: what came from one is never taken for a part of another.
        part = root / f"cifar100-{hashlib.sha256(address.encode()).hexdigest()[:8]}.part"
        print(f"downloading CIFAR-100 to {root} from {address}", flush=True)
        try:
            fetch(address, part, min_rate)
            arrays = read_source(part)
            if address != url and not is_official(arrays):
                raise UserError(f"{part} is not CIFAR-100: it has another content digest")
        except DiskError:
            raise
        except UserError as error:  # all of it came and is no good: nothing to go on with at the next start
            Path(f"{part}.json").unlink(missing_ok=True)
            reasons[address] = str(error)
        except TooSlow as error:
            reasons[address] = f"too slow, {error.args[0] / 1e3:.1f} kB/s"
            if min_rate == MIN_RATE:
                slow[address] = error.args[0]
        except urllib.error.HTTPError as error:
            reasons[address] = one_line(error)
        except (OSError, http.client.HTTPException, ValueError) as error:
            reasons[address] = one_line(getattr(error, "reason", error))
        else:
            source = root / ("cifar-100-png.zip" if is_zip(part) else "cifar-100-python.tar.gz")
            with writing(source):
                os.replace(part, source)
                for leftover in root.glob("cifar100-*.part*"):
                    leftover.unlink()
            write_cache(root, source, arrays)
            return arrays
        print(f"note: {address}: {reasons[address]}", flush=True)
    raise UserError(
        f"there is no CIFAR-100 in {root}, and no source delivered it:\n"
        + "".join(f"  {address}: {reason}\n" for address, reason in reasons.items())
        + f"Put cifar-100-python.tar.gz or the zip of PNG files into {root} by hand, or name an address or a "
        "file with --data-url.\nOr run everything on the built-in set, which needs no download:\n"
        "  python train.py --dataset shapes --width 16"
    )


@contextlib.contextmanager
def download_lock(root: Path) -> Iterator[None]:
    """Hold the folder `root`, made where it is missing, for one download; wait where another process has it.

    The lock goes with the process, however that ends.
    """
    with writing(root):
        root.mkdir(parents=True, exist_ok=True)
        lock = open(root / ".download.lock", "w")  # noqa: SIM115
    with lock:
        if fcntl:
            with contextlib.suppress(OSError):  # a file system without locks, as some network ones are
                try:
                    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:
                    print(f"waiting for another process that downloads to {root}", flush=True)
                    fcntl.flock(lock, fcntl.LOCK_EX)
        yield


@contextlib.contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turn an error of the disk into a DiskError."""
    try:
        yield
    except OSError as error:
        hint = "make room for 400 MB or give another --data-dir"
        raise DiskError(f"{path} cannot be written ({error.strerror or error}): {hint}") from None


def fetch(address: str, part: Path, min_rate: float) -> None:
    """Download `address` to the file `part`, over several connections where they are cut."""
    for tries_left in reversed(range(TRIES)):
        before = part.stat().st_size if part.exists() else 0
        try:
            return receive(address, part, min_rate)
        except ConnectionError:
            after = part.stat().st_size if part.exists() else 0
            if not tries_left or after <= before:
                raise


def receive(address: str, part: Path, min_rate: float) -> None:
    """Download `address` to `part` over one connection, going on with what is there where the server can.

    Beside `part` lies a JSON file with the size and with the ETag or date by which the server tells whether
    its file is still the one that was begun (RFC 9110, section 13.1.5); if not, it sends all of it again.
    Raises TooSlow, DiskError, ConnectionError for a connection that is cut or stalls, and what urlopen does.
    """
    notes = Path(f"{part}.json")
    try:
        state = json.loads(read_file(notes, 10_000))
        start = part.stat().st_size if state["validator"] else 0
    except (UserError, OSError, ValueError, LookupError, TypeError):
        state, start = {}, 0
    if start and start == state["size"]:
        return
    headers = {"Range": f"bytes={start}-", "If-Range": state["validator"]} if start else {}
    try:
        response = open_address(urllib.request.Request(address, headers=headers))
    except urllib.error.HTTPError as error:
        if error.code != 416:  # there is nothing from `start` on: the file is another
            raise
        notes.unlink()
        return receive(address, part, min_rate)
    with response:
        resumed = response.headers.get("Content-Range", "").startswith(f"bytes {start}-") and start > 0
        start = start if resumed else 0
        length = response.headers.get("Content-Length", "")
        size = start + int(length) if length.isdecimal() else None
        with writing(part):
            file = open(part, "ab" if resumed else "wb", buffering=0)  # noqa: SIM115
            if not resumed:
                etag = response.headers.get("ETag", "W/")
                validator = response.headers.get("Last-Modified") if etag.startswith("W/") else etag
                notes.write_text(json.dumps({"validator": validator, "size": size}))
        terminal = sys.stderr.isatty()
        done, began = start, time.monotonic()
        shown, window_began, window_start = began, began, start
        try:
            while chunk := response.read1(1 << 16):
                done += len(chunk)
                if done > MAX_DOWNLOAD:
                    raise OSError(f"it sends more than the {MAX_DOWNLOAD / 1e6:.0f} MB allowed")
                with writing(part):
                    while chunk:
                        chunk = chunk[file.write(chunk) :]
                now = time.monotonic()
                if now - window_began >= RATE_SECONDS:
                    rate = (done - window_start) / (now - window_began)
                    if rate < min_rate:
                        raise TooSlow(rate)
                    window_began, window_start = now, done
                if now - shown >= (0.2 if terminal else 10):
                    shown = now
                    show_progress(done, size, (done - start) / (now - began), terminal)
            with writing(part):
                os.fsync(file.fileno())
        except TimeoutError:
            raise ConnectionError(f"at {done / 1e6:.1f} MB nothing came for {STALL_SECONDS} s") from None
        except http.client.IncompleteRead:
            raise ConnectionError(f"the connection was cut at {done / 1e6:.1f} MB") from None
        finally:
            file.close()
            if terminal:
                print("\r\033[K", end="", file=sys.stderr, flush=True)
    if size is not None and done < size:
        raise ConnectionError(f"the connection was cut at {done / 1e6:.1f} of {size / 1e6:.1f} MB")


def open_address(request: urllib.request.Request) -> http.client.HTTPResponse:
    """Return the response to a request, or raise what urlopen does, within CONNECT_SECONDS.

    The time limit of urlopen is one for each step, and the look-up of a name has none. So a thread asks, and
    is left alone when it takes too long.
    """
    answers = queue.SimpleQueue()

    def ask() -> None:
        try:
            answers.put(urllib.request.urlopen(request, timeout=STALL_SECONDS))
        except Exception as error:
            answers.put(error)

    threading.Thread(target=ask, daemon=True).start()
    try:
        answer = answers.get(timeout=CONNECT_SECONDS)
    except queue.Empty:
        raise TimeoutError(f"no answer in {CONNECT_SECONDS} s") from None
    if isinstance(answer, Exception):
        raise answer
    return answer


def show_progress(done: int, size: int | None, rate: float, terminal: bool) -> None:
    """Draw the bar of a download on a terminal, or print a line; sizes in bytes, rate in bytes/s."""
    total = size or max(done, TYPICAL_SIZE)
    left = datetime.timedelta(seconds=round((total - done) / max(rate, 1)))
    text = f"{done / 1e6:.1f} of {total / 1e6:.0f} MB, {rate / 1e6:.2f} MB/s, {left} left"
    if terminal:
        text = f"\r[{'=' * round(30 * done / total):30}] {text}\033[K"
    print(text, end="" if terminal else "\n", file=sys.stderr, flush=True)


# ---------------------------------------------------------------------------------------------------------
# The built-in set: coloured shapes


COLOURS = {
    "red": (0.85, 0.10, 0.12),
    "orange": (0.98, 0.52, 0.06),
    "yellow": (0.96, 0.90, 0.15),
    "green": (0.12, 0.62, 0.18),
    "cyan": (0.15, 0.85, 0.88),
    "blue": (0.12, 0.22, 0.85),
    "purple": (0.52, 0.12, 0.70),
    "pink": (0.98, 0.52, 0.75),
    "brown": (0.45, 0.26, 0.10),
    "white": (0.96, 0.96, 0.96),
}


def inside_star(x: Tensor, y: Tensor) -> Tensor:
    """Five points of radius 1, notches of radius 0.42: one edge, seen in the fifth of the plane around it."""
    angle = torch.atan2(y, x) % (2 * math.pi / 5)
    angle = (angle - math.pi / 5).abs()
    u, v = x.hypot(y) * angle.cos(), x.hypot(y) * angle.sin()
    tip_u, tip_v = math.cos(math.pi / 5), math.sin(math.pi / 5)
    return (tip_u - 0.42) * v - tip_v * (u - 0.42) > 0


# Where (x, y) is inside the shape, in coordinates in which the shape fills about the unit circle, y upwards.
SHAPES = {
    "circle": lambda x, y: x.hypot(y) < 0.9,
    "ring": lambda x, y: (x.hypot(y) < 1) & (x.hypot(y) > 0.55),
    "square": lambda x, y: torch.maximum(x.abs(), y.abs()) < 0.8,
    "triangle": lambda x, y: (y > -0.6) & (y + math.sqrt(3) * x.abs() < 1.2),
    "star": inside_star,
    "cross": lambda x, y: (torch.minimum(x.abs(), y.abs()) < 0.3) & (torch.maximum(x.abs(), y.abs()) < 1),
    "bar": lambda x, y: (x.abs() < 1.1) & (y.abs() < 0.35),
    "heart": lambda x, y: ((1.1 * x) ** 2 + (1.1 * y) ** 2 - 0.7) ** 3 < 1.8 * (x * x) * (y * y * y),
    "crescent": lambda x, y: (x.hypot(y) < 1) & ((x - 0.5).hypot(y) > 0.8),
    "half disc": lambda x, y: (x.hypot(y + 0.4) < 1.05) & (y > -0.4),
}


def make_shapes(per_class: int, seed: int) -> Dataset:
    """Draw `per_class` images of each of 100 classes, 10 shapes x 10 colours, in CIFAR-100's format.

    The object's place, size (radius 6 to 11 pixels), tilt (up to 35 degrees), shade and exact colour
    vary; the background is a smooth blend of random colours with blobs of other colours lying about. The
    superclasses are the shapes. `masks` says where the object is, which is what an explanation should point
    at. The images come class by class; the same seed gives the same images. Raises ValueError for per_class
    below 1.
    """
    if per_class < 1:
        raise ValueError(f"per_class must be at least 1, not {per_class}")
    generator = torch.Generator().manual_seed(seed)
    palette = torch.tensor(list(COLOURS.values()))
    # Pixel centres of a grid three times as fine as the image; the mean over 3x3 of them antialiases edges.
    fine = (torch.arange(96) + 0.5) / 3
    grid_y, grid_x = fine[:, None], fine[None, :]

    def uniform(low: float, high: float, *shape: int) -> Tensor:
        return low + (high - low) * torch.rand(*shape, generator=generator)

    images, masks = [], []
    for inside in SHAPES.values():
        n = 10 * per_class  # this shape in every colour
        # Background: 3x3 random colours of low saturation, blended smoothly.
        grey = uniform(0.1, 0.9, n, 1, 3, 3)
        picture = (grey + uniform(-0.25, 0.25, n, 3, 3, 3)).clamp(0, 1)
        picture = torch.nn.functional.interpolate(picture, size=96, mode="bicubic", align_corners=True)
        # Clutter: five small discs, in any colour.
        for _ in range(5):
            x, y, radius = uniform(0, 32, n, 1, 1), uniform(0, 32, n, 1, 1), uniform(1, 2.8, n, 1, 1)
            disc = (grid_x - x).hypot(grid_y - y) < radius
            colour = uniform(0, 1, n, 3)[:, :, None, None]
            picture = torch.where(disc[:, None], colour, picture)
        # The object, turned by `angle` about its centre, lit from a random side.
        radius, angle = uniform(6, 11, n, 1, 1), uniform(-0.6, 0.6, n, 1, 1)
        centre_x, centre_y = uniform(11, 21, n, 1, 1), uniform(11, 21, n, 1, 1)
        x, y = (grid_x - centre_x) / radius, (centre_y - grid_y) / radius
        x, y = x * angle.cos() + y * angle.sin(), y * angle.cos() - x * angle.sin()
        covered = inside(x, y)
        colour = palette.repeat_interleave(per_class, dim=0) + uniform(-0.07, 0.07, n, 3)
        shade = uniform(0.75, 1.05, n, 1, 1) + uniform(-0.15, 0.15, n, 1, 1) * x
        picture = torch.where(covered[:, None], colour[:, :, None, None] * shade[:, None], picture)
        picture = torch.nn.functional.avg_pool2d(picture, 3) + 0.03 * torch.randn(
            n, 3, 32, 32, generator=generator
        )
        images.append((picture.clamp(0, 1) * 255).round().to(torch.uint8))
        masks.append(torch.nn.functional.avg_pool2d(covered.float()[:, None], 3)[:, 0] > 0.5)

    labels = torch.arange(100).repeat_interleave(per_class)
    class_names = [f"{colour} {shape}" for shape in SHAPES for colour in COLOURS]
    images = torch.cat(images)
    return Dataset(
        name="shapes",
        images=images,
        labels=labels,
        class_names=class_names,
        superclass_of=torch.arange(100) // 10,
        superclass_names=list(SHAPES),
        filenames=[f"{class_names[c]} {i % per_class:03d}.png" for i, c in enumerate(labels.tolist())],
        provenance=f"the built-in shapes set, {per_class} images of each of 100 classes, seed {seed}",
        verified=False,
        digest=content_digest(images.numpy(), labels.numpy()),
        masks=torch.cat(masks),
    )


# ---------------------------------------------------------------------------------------------------------
# Split and batches


def first_copy(images: Tensor) -> Tensor:
    """Return int64 [N]: for each image of uint8 [N, ...] the index of the first one with the same pixels."""
    seen = {}
    return torch.tensor(
        [
            seen.setdefault(hashlib.blake2b(image, digest_size=16).digest(), i)
            for i, image in enumerate(images.cpu().numpy().reshape(len(images), -1))
        ]
    )


def split_indices(dataset: Dataset, val_fraction: float, seed: int) -> tuple[Tensor, Tensor]:
    """Split a training set into (training, validation) indices, int64, disjoint.

    Stratified: each class of n images gives round(val_fraction * n) of them to validation. An image that has
    an exact copy always goes to training, so copies stay on one side. `seed` alone decides. Both results
    take turns over the classes, so a prefix of either is as balanced as its length allows. Raises ValueError
    where val_fraction is outside [0, 1).
    """
    if not 0 <= val_fraction < 1:
        raise ValueError(f"val_fraction must be in [0, 1), not {val_fraction}")
    generator = torch.Generator().manual_seed(seed)
    copies = first_copy(dataset.images)
    has_copy = torch.bincount(copies, minlength=len(copies))[copies] > 1
    train, val = [], []
    for c in range(len(dataset.class_names)):
        members = torch.nonzero(dataset.labels == c).flatten()
        members = members[torch.randperm(len(members), generator=generator)]
        members = torch.cat([members[~has_copy[members]], members[has_copy[members]]])
        num_val = round(val_fraction * len(members))
        val += [(turn, c, i) for turn, i in enumerate(members[:num_val].tolist())]
        train += [(turn, c, i) for turn, i in enumerate(members[num_val:].tolist())]
    return tuple(torch.tensor([i for _, _, i in sorted(part)], dtype=torch.int64) for part in (train, val))


def normalize(images: Tensor) -> Tensor:
    """Take float images [N, 3, H, W] in [0, 1] to about zero mean and unit variance, channel by channel."""
    mean = torch.tensor(MEAN, device=images.device, dtype=images.dtype)[:, None, None]
    std = torch.tensor(STD, device=images.device, dtype=images.dtype)[:, None, None]
    return (images - mean) / std


def to_input(images: Tensor) -> Tensor:
    """Take uint8 images [N, 3, H, W] to the network's input: float32, normalised, channels last in memory."""
    return normalize(images.float() / 255).contiguous(memory_format=torch.channels_last)


def crop_and_flip(images: Tensor, dy: Tensor, dx: Tensor, flip: Tensor, padding: int = 4) -> Tensor:
    """Cut a 32x32 window out of each image, padded by reflection, and mirror some of them.

    images [N, 3, H, W] of any dtype; dy and dx int64 [N] in 0..2*padding, the window's corner in the padded
    image; flip bool [N]. Padding, crop and flip only say which pixel goes where, so one gather does all
    three: row r of the result is row dy + r - padding of the image, reflected at the border (-1 means 1).
    """
    n, channels, height, width = images.shape
    rows = dy[:, None] + torch.arange(height, device=images.device) - padding
    columns = torch.arange(width, device=images.device).expand(n, width)
    columns = dx[:, None] + torch.where(flip[:, None], width - 1 - columns, columns) - padding
    rows = (height - 1) - ((height - 1) - rows.abs()).abs()
    columns = (width - 1) - ((width - 1) - columns.abs()).abs()
    index = torch.arange(n, device=images.device)
    channel = torch.arange(channels, device=images.device)
    return images[
        index[:, None, None, None], channel[:, None, None], rows[:, None, :, None], columns[:, None, None, :]
    ]


def batches(
    images: Tensor, labels: Tensor, batch_size: int, seed: int, epoch: int, start: int = 0, padding: int = 4
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield (images uint8 [batch_size, 3, 32, 32], labels) of one epoch, shuffled, cropped and flipped.

    Crops move an image by up to `padding` pixels either way; 0 leaves only the flips. The choices are drawn
    at once from a generator of their own, seeded by (seed, epoch), on the CPU: the same seed gives the same
    batches on every device and whatever else draws random numbers. `start` skips that many batches, which is
    how an interrupted epoch goes on. The last incomplete batch is left out: a few images would make noisy
    batch statistics, and each epoch leaves out others.
    """
    n = len(images)
    entropy = int(np.random.SeedSequence([seed, epoch]).generate_state(1, np.uint64)[0] >> 1)
    generator = torch.Generator().manual_seed(entropy)
    order = torch.randperm(n, generator=generator).to(images.device)
    dy, dx = torch.randint(0, 2 * padding + 1, (2, n), generator=generator).to(images.device)
    flip = torch.randint(0, 2, (n,), generator=generator).bool().to(images.device)
    for i in range(start, n // batch_size):
        part = slice(i * batch_size, (i + 1) * batch_size)
        chosen = order[part]
        yield crop_and_flip(images[chosen], dy[part], dx[part], flip[part], padding), labels[chosen]


def cutmix(images: Tensor, draw: np.random.Generator) -> tuple[Tensor, float]:
    """Cover a rectangle of each image with the same rectangle of another image of the batch.

    images: [B, 3, H, W] of any dtype. Image i is covered by image B - 1 - i: a batch is in random order, so
    this is a random pairing, and the labels of the covering images are labels.flip(0). The rectangle has the
    share 1 - lambda of the area, lambda uniform in [0, 1], about a place drawn uniformly, and is cut off at
    the border. Returns the new images and the share of each that is still its own.
    Source: Yun et al. 2019 (arXiv 1905.04899), section 3.1, equations (1) and (2), with alpha = 1.
    """
    height, width = images.shape[-2:]
    side = (1 - draw.uniform()) ** 0.5
    y, x = draw.uniform(0, height), draw.uniform(0, width)
    top, bottom = (round(float(np.clip(y + part * side * height, 0, height))) for part in (-0.5, 0.5))
    left, right = (round(float(np.clip(x + part * side * width, 0, width))) for part in (-0.5, 0.5))
    mixed = images.clone()
    mixed[..., top:bottom, left:right] = images.flip(0)[..., top:bottom, left:right]
    return mixed, 1 - (bottom - top) * (right - left) / (height * width)

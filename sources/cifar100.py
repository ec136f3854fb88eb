"""CIFAR-100 as arrays: from a folder on the disk, or downloaded to it first.

The data set is from Krizhevsky, "Learning Multiple Layers of Features from Tiny Images", 2009, chapter 3:
50,000 training and 10,000 test images of 32x32 pixels, 100 classes in 20 superclasses.

Archives and pickles come from elsewhere and may be damaged or hostile. Nothing is unpacked to the disk, every
size is limited while it is read, and whatever is wrong becomes a UserError of one line.
"""

import gzip
import hashlib
import io
import json
import pickle
import struct
import tarfile
import zipfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from torchvision.io import ImageReadMode, decode_image

from running.files import UserError, one_line, read_file, whole_file
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
MAX_UNPACKED = 400_000_000  # bytes; the three official files have 187 MB
MAX_PNG = 100_000  # bytes; a PNG file of 32x32 pixels has 2 to 3 kB


def read(root: Path | str, url: str | None = None) -> dict[str, np.ndarray]:
    """Return CIFAR-100 from the folder `root`; see data.load_cifar100 for where else it may come from.

    The result has for each split, "train" and "test": <split>_images uint8 [N, 3, 32, 32], <split>_labels
    int64 [N], <split>_filenames (bytes) [N], in the order of class and file name, and <split>_digest.
    Raises UserError if what is found is broken, or if nothing is found and nothing can be downloaded.
    """
    root = Path(root)
    if url and "://" in url and not url.lower().startswith(("http://", "https://")):
        raise UserError(f"--data-url {url}: expected http://, https:// or a path")
    source = find_source(root)
    arrays = read_cache(root, source)
    if url and (arrays or source):
        print(f"note: --data-url is not used, as {root} holds CIFAR-100 already")
    elif url and "://" not in url:
        source = Path(url)
    if arrays is not None:
        return arrays
    if source:
        arrays = read_source(source)
    else:
        arrays = download.download(root, url, accept)
        source = find_source(root)
    try:
        with whole_file(root / CACHE_NAME) as temporary, open(temporary, "wb") as file:
            np.savez(file, **arrays, source_state=np.array(source_state(source)))
    except UserError as error:
        print(f"note: no cache was written ({error}), so the next start reads the source again")
    return arrays


def accept(path: Path, address: str) -> dict:
    """Return the arrays of a downloaded file; what a known source sent must be exactly CIFAR-100."""
    arrays = read_source(path)
    if address in download.SOURCES.values() and not is_official(arrays):
        raise UserError("what it sent is not CIFAR-100: it has another content digest")
    return arrays


def find_source(root: Path) -> Path | None:
    """Return the file or folder in `root` that holds CIFAR-100, or None."""
    for official in (root / "cifar-100-python", root / "cifar-100-python.tar.gz"):
        if official.exists():
            return official
    if not root.is_dir():
        return None
    for folder in [root, *sorted(path for path in root.iterdir() if path.is_dir())]:
        # By the names of classes, because other data sets have folders train/ and test/ too.
        if any((folder / split / name).is_dir() for split in OFFICIAL_COUNT for name in CLASS_NAMES):
            return folder
    zips = sorted(root.glob("*.zip"), key=lambda path: ("cifar" not in path.name.lower(), path))
    return zips[0] if zips else None


def read_source(path: Path) -> dict:
    """Return the checked arrays of a file or folder; raise UserError, in one line, if it cannot be used."""
    try:
        arrays = {}
        for split, (images, labels, filenames) in read_splits(path).items():
            # By class, then by file name: a seed then means the same split whatever the source.
            order = [i for *_, i in sorted(zip(labels.tolist(), filenames, range(len(labels)), strict=True))]
            arrays[f"{split}_images"], arrays[f"{split}_labels"] = images[order], labels[order]
            arrays[f"{split}_filenames"] = np.array([filenames[i].encode() for i in order], dtype=np.bytes_)
        check_arrays(arrays)
        for split in OFFICIAL_COUNT:
            digest = content_digest(arrays[f"{split}_images"], arrays[f"{split}_labels"])
            arrays[f"{split}_digest"] = np.array(digest)
    except Exception as error:  # damaged and hostile files raise many kinds
        raise UserError(f"{path} cannot be used as CIFAR-100: {one_line(error)}") from None
    return arrays


def read_splits(path: Path) -> dict:
    """Return {split: (images, labels, file names)} from a source of any kind, in any order."""
    if path.is_dir():
        path = find_source(path) or path
    if path.is_dir():
        if path.name == "cifar-100-python" or (path / "meta").exists():
            return read_official({name: read_file(path / name, MAX_UNPACKED) for name in PICKLE_KEYS})
        return read_pngs(path)
    if not path.is_file():
        raise UserError("it does not exist or is not a file")
    with open(path, "rb") as file:
        magic = file.read(4)
    if magic == b"PK\3\4":
        return read_pngs(path)
    if magic[:2] == b"\x1f\x8b":
        return read_official(tar_files(path))
    raise UserError("it is neither a zip nor a tar.gz archive; is it a saved web page?")


# The official files: three pickles, in a folder or a tar.gz archive


def uint8_dtype(code: str, *flags) -> np.dtype:
    """Replace numpy.dtype in a pickle: other types than bytes can make numpy read memory it should not."""
    if code != "u1":
        raise UserError(f"refused: the pickle holds an array of type {code!r}, expected u1")
    return np.dtype(np.uint8)


# Everything that an official pickle may ask its reader to call; numpy 2 moved `_reconstruct`.
PICKLE_NAMES = {
    ("numpy.core.multiarray", "_reconstruct"): np.empty(0).__reduce__()[0],
    ("numpy._core.multiarray", "_reconstruct"): np.empty(0).__reduce__()[0],
    ("numpy", "ndarray"): np.ndarray,
    ("numpy", "dtype"): uint8_dtype,
}
IMAGE_KEYS = ("data", "fine_labels", "filenames")
PICKLE_KEYS = {"meta": ("fine_label_names",), "train": IMAGE_KEYS, "test": IMAGE_KEYS}  # by file


class NumpyUnpickler(pickle.Unpickler):
    """Read containers, numbers, strings and arrays of bytes; refuse all else that a pickle may call."""

    def find_class(self, module: str, name: str):
        if (module, name) not in PICKLE_NAMES:
            raise UserError(f"refused: the pickle asks for {module}.{name}, which no CIFAR-100 file needs")
        return PICKLE_NAMES[module, name]


def read_official(files: dict[str, bytes]) -> dict:
    """Return {split: (images, labels, file names)} from the content of the three official files, by name."""
    content = {}
    for file, keys in PICKLE_KEYS.items():
        try:
            record = NumpyUnpickler(io.BytesIO(files[file]), encoding="latin1").load()
            content[file] = [record[key] for key in keys]
        except (LookupError, TypeError):
            raise UserError(f"it has no file `{file}` with {', '.join(keys)}") from None
    if content.pop("meta") != [CLASS_NAMES]:
        raise UserError("the class names in `meta` are not those of CIFAR-100")
    splits = {}
    for split, (data, labels, filenames) in content.items():
        if not isinstance(data, np.ndarray) or data.shape[1:] != (3072,):
            raise UserError(f"{split}: `data` is not an array with rows of 3,072 pixels")
        if not len(data) == len(labels) == len(filenames):
            raise UserError(f"{split}: it lacks one label and one file name for each of {len(data)} images")
        if not all(type(label) is int for label in labels):
            raise UserError(f"{split}: a label is not a whole number")
        if not all(type(name) is str and len(name) < 256 for name in filenames):
            raise UserError(f"{split}: a file name is not a string of under 256 characters")
        splits[split] = (data.reshape(-1, 3, 32, 32), np.array(labels, dtype=np.int64), filenames)
    return splits


def tar_files(source: Path) -> dict[str, bytes]:
    """Return the content of the official archive's files by name."""
    with gzip.open(source) as file:
        unzipped = file.read(MAX_UNPACKED + 1)
    if len(unzipped) > MAX_UNPACKED:
        raise UserError(f"refused: it unpacks to more than the {MAX_UNPACKED / 1e6:.0f} MB allowed")
    with tarfile.open(fileobj=io.BytesIO(unzipped), mode="r:") as archive:
        members = {name: archive.getmember(f"cifar-100-python/{name}") for name in PICKLE_KEYS}
        for member in members.values():  # a sparse file of gigabytes takes no room in the archive
            if not member.isreg() or member.issparse():
                raise UserError(f"refused: member {member.name!r} is not a plain file")
        return {name: archive.extractfile(member).read() for name, member in members.items()}


# PNG files, train/<class>/<name>.png and test/<class>/<name>.png, in a folder or a zip archive


def png_files(source: Path) -> Iterator[tuple[str, bytes]]:
    """Yield the path and the content of every PNG file in a folder or a zip archive."""
    if source.is_dir():
        for path in [*source.glob("train/*/*.png"), *source.glob("test/*/*.png")]:
            yield path.as_posix(), read_file(path, MAX_PNG)
        return
    with zipfile.ZipFile(source) as archive:
        for member in archive.infolist():
            if member.filename.endswith(".png"):
                # zipfile unpacks the other methods without a limit.
                if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
                    raise UserError(f"{member.filename} is compressed by another method than deflate")
                with archive.open(member) as file:
                    yield member.filename, file.read(MAX_PNG + 1)


def read_pngs(source: Path) -> dict:
    """Return {split: (images, labels, file names)} from PNG files; a class is the name of its folder."""
    found = {split: {} for split in OFFICIAL_COUNT}  # (label, file name): image
    for path, content in png_files(source):
        split, class_name, filename = ["", "", *path.split("/")][-3:]
        if split not in found or filename.startswith("."):  # macOS adds files ._name.png
            continue
        if class_name not in CLASS_NAMES:
            raise UserError(f"{split}/{class_name} is not one of CIFAR-100's class names")
        key = (CLASS_NAMES.index(class_name), filename)
        if key in found[split]:
            raise UserError(f"it has {split}/{class_name}/{filename} twice")
        if len(found[split]) == OFFICIAL_COUNT[split]:
            raise UserError(f"it has more than the {OFFICIAL_COUNT[split]:,} {split} images of CIFAR-100")
        try:
            found[split][key] = decode_png(content)
        except (UserError, RuntimeError) as error:
            raise UserError(f"{split}/{class_name}/{filename} cannot be used: {error}") from None
    splits = {}
    for split, images in found.items():
        if not images:
            raise UserError(f"it has no {split}/<class>/<name>.png")
        labels, filenames = zip(*images, strict=True)
        splits[split] = (np.stack(list(images.values())), np.array(labels, dtype=np.int64), filenames)
    return splits


def decode_png(content: bytes) -> np.ndarray:
    """Decode a PNG file of 32x32 pixels in 8-bit RGB to uint8 [3, 32, 32]; raise UserError for any other.

    The header (PNG specification, section 11.2.1) is checked first: a picture may have billions of pixels.
    """
    if len(content) > MAX_PNG or content[:8] != b"\x89PNG\r\n\x1a\n":
        raise UserError("it is not a PNG file of an image of CIFAR-100")
    if content[8:26] != struct.pack(">I4sIIBB", 13, b"IHDR", 32, 32, 8, 2):
        raise UserError("it is not 32x32 pixels in 8-bit RGB")
    return decode_image(torch.frombuffer(bytearray(content), dtype=torch.uint8), ImageReadMode.RGB).numpy()


# Is it CIFAR-100?


def check_arrays(arrays: dict) -> None:
    """Raise UserError unless the arrays are images and labels of all 100 classes in both splits."""
    for split in OFFICIAL_COUNT:
        images, labels = arrays[f"{split}_images"], arrays[f"{split}_labels"]
        if images.shape != (len(labels), 3, 32, 32) or images.dtype != np.uint8:
            raise UserError(f"{split}: {len(labels)} labels do not match {images.dtype} {images.shape}")
        if len(labels) and (labels.min() < 0 or labels.max() > 99):
            raise UserError(f"{split}: its labels are {labels.min()} to {labels.max()}, expected 0 to 99")
        absent = [name for c, name in enumerate(CLASS_NAMES) if c not in labels]
        if absent:
            raise UserError(f"{split}: {len(absent)} of the 100 classes have no image ({absent[0]} for one)")


def content_digest(images: np.ndarray, labels: np.ndarray) -> str:
    """Return the sha256 over the sorted records of a split, which does not depend on their order.

    images: uint8 [N, 3, 32, 32]; labels: int [N], at most 255. A record is the label as one byte and then the
    image as 3,072 bytes, channels first.
    """
    records = np.concatenate([labels.astype(np.uint8)[:, None], images.reshape(len(images), -1)], axis=1)
    digest = hashlib.sha256()
    for record in sorted(record.tobytes() for record in records):
        digest.update(record)
    return digest.hexdigest()


def is_official(arrays: dict) -> bool:
    """Whether both splits have the content digest of CIFAR-100."""
    return all(arrays[f"{split}_digest"] == digest for split, digest in OFFICIAL_DIGEST.items())


# The cache: the arrays in one uncompressed npz file, which is read in a fraction of a second


def source_state(source: Path) -> str:
    """Return the names, sizes and times of a source's files; for PNG files, of the folders they are in."""
    patterns = ("meta", "train", "test", "train/*", "test/*")
    paths = [path for pattern in patterns for path in sorted(source.glob(pattern))] or [source]
    return json.dumps([(path.name, path.stat().st_size, path.stat().st_mtime_ns) for path in paths])


def read_cache(root: Path, source: Path | None) -> dict | None:
    """Return the arrays of the cache, or None if it is absent, damaged or of another state of the source."""
    cache = root / CACHE_NAME
    if not cache.is_file():
        return None
    try:
        with np.load(cache, allow_pickle=False) as file:  # compares a checksum of each array
            if source is None or file["source_state"] == source_state(source):
                arrays = {name: file[name] for name in file.files}
                check_arrays(arrays)
                return arrays
    except Exception as error:  # a damaged file raises many kinds
        print(f"note: {cache} is damaged ({one_line(error)}) and will be made again")
    return None

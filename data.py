"""The data set as tensors: loading, the validation split, augmentation and batches.

A data set is one uint8 tensor, whose training part train.py keeps on its device, and augmentation is a few
tensor operations on a whole batch, so there is no loader with worker processes.
"""

import hashlib
import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from sources import cifar100, shapes

# Of each channel over CIFAR-100's training images scaled to [0, 1]. The shapes set uses the same numbers, so
# that a checkpoint needs nothing but its weights to be applied to a picture.
MEAN = (0.50707516, 0.48654887, 0.44091784)
STD = (0.26733429, 0.25643846, 0.27615047)
PADDING = 4  # pixels by which a crop may move an image in each direction


@dataclass
class Dataset:
    """One split of a data set: N images of C classes."""

    name: str  # "cifar100" or "shapes"
    images: Tensor  # uint8 [N, 3, 32, 32]
    labels: Tensor  # int64 [N]
    class_names: list[str]  # C names
    superclass_of: Tensor  # int64 [C]
    superclass_names: list[str]
    filenames: list[str]  # N names
    provenance: str  # one line for people: what these images are, and whether that was verified
    verified: bool  # whether it is the whole official split, by its content digest
    digest: str  # sha256 of the content, see cifar100.content_digest
    masks: Tensor | None = None  # bool [N, 32, 32], where the object is; only the shapes set knows


def load(name: str, root: Path | str, url: str | None = None) -> tuple[Dataset, Dataset]:
    """Return (train, test) of "cifar100", see load_cifar100, or "shapes"; else raise ValueError."""
    if name == "shapes":
        # With different seeds the two splits have no image in common.
        return make_shapes(per_class=60, seed=0), make_shapes(per_class=20, seed=1)
    if name != "cifar100":
        raise ValueError(f"the data sets are cifar100 and shapes, not {name}")
    return load_cifar100(root, url)


def has_cifar100(root: Path | str) -> bool:
    """Return whether the folder `root` holds CIFAR-100, so that loading it from there downloads nothing."""
    try:
        return (Path(root) / cifar100.CACHE_NAME).is_file() or cifar100.find_source(Path(root)) is not None
    except (OSError, ValueError):  # it cannot be read, or is no path at all
        return False


def load_cifar100(root: Path | str, url: str | None = None) -> tuple[Dataset, Dataset]:
    """Return the (train, test) splits of CIFAR-100 from the folder `root`, downloaded first if necessary.

    Looked for, in this order: the official folder cifar-100-python/, cifar-100-python.tar.gz, PNG files
    train/<class>/<name>.png and test/<class>/<name>.png (in `root` or a folder in it), a zip of those whose
    name says CIFAR-100; then `url`, a path or an address, and the known sources. Images are in the order of
    class and file name, so a seed means the same split whatever the source. A part of CIFAR-100 or a changed
    set is taken too, and the provenance says that it is not verified. Raises UserError if something is
    broken, or nothing is found and none downloaded.
    """
    arrays = cifar100.read(root, url)
    verified = cifar100.is_official(arrays)
    num_train, num_test = len(arrays["train_labels"]), len(arrays["test_labels"])
    said = "verified: the content digest is" if verified else "NOT verified: the content digest is not"
    provenance = f"CIFAR-100, {num_train:,} training and {num_test:,} test images, {said} the official one"
    return tuple(
        Dataset(
            name="cifar100",
            images=torch.from_numpy(arrays[f"{split}_images"]),
            labels=torch.from_numpy(arrays[f"{split}_labels"]),
            class_names=cifar100.CLASS_NAMES,
            superclass_of=torch.tensor(cifar100.SUPERCLASS_OF),
            superclass_names=cifar100.SUPERCLASS_NAMES,
            filenames=[name.decode() for name in arrays[f"{split}_filenames"].tolist()],
            provenance=provenance,
            verified=verified,
            digest=str(arrays[f"{split}_digest"]),
        )
        for split in ("train", "test")
    )


def make_shapes(per_class: int, seed: int) -> Dataset:
    """Draw `per_class` images of each of 100 classes, 10 shapes (the superclasses) in 10 colours."""
    images, labels, masks = shapes.draw(per_class, seed)
    return Dataset(
        name="shapes",
        images=images,
        labels=labels,
        class_names=shapes.CLASS_NAMES,
        superclass_of=torch.arange(100) // 10,
        superclass_names=list(shapes.SHAPES),
        filenames=[f"{shapes.CLASS_NAMES[c]} {i % per_class:03d}.png" for i, c in enumerate(labels.tolist())],
        provenance=f"the built-in shapes set, {per_class} images of each of 100 classes, seed {seed}",
        verified=False,
        digest=cifar100.content_digest(images.numpy(), labels.numpy()),
        masks=masks,
    )


def first_copy(images: Tensor) -> Tensor:
    """Return int64 [N]: for each image of uint8 [N, ...] the index of the first one with the same pixels."""
    pixels = images.cpu().numpy().reshape(len(images), -1)
    digests = [hashlib.blake2b(image, digest_size=16).digest() for image in pixels]
    first = {}  # setdefault keeps the first index of a digest
    return torch.tensor([first.setdefault(digest, i) for i, digest in enumerate(digests)])


def split_indices(dataset: Dataset, val_fraction: float, seed: int) -> tuple[Tensor, Tensor]:
    """Split a training set into (training, validation) indices, int64, disjoint; `seed` alone decides.

    The split is stratified: of a class with n images, round(val_fraction * n) go to validation, or all that
    have no copy if those are fewer. Images that have an exact copy go to training, so that no image is on
    both sides. In each result the first image of every class comes first, then the second of every class, and
    so on; so the first k indices are a balanced sample for any k. val_fraction is in [0, 1).
    """
    generator = torch.Generator().manual_seed(seed)
    copies = first_copy(dataset.images)
    has_copy = torch.bincount(copies, minlength=len(copies))[copies] > 1
    train, val = [], []  # of each class a list of indices
    for c in range(len(dataset.class_names)):
        members = torch.nonzero(dataset.labels == c).flatten()
        members = members[torch.randperm(len(members), generator=generator)]
        alone, copied = members[~has_copy[members]].tolist(), members[has_copy[members]].tolist()
        num_val = min(round(val_fraction * len(members)), len(alone))
        val.append(alone[:num_val])
        train.append(alone[num_val:] + copied)
    return interleave(train), interleave(val)


def interleave(lists: list[list[int]]) -> Tensor:
    """Return int64 [N]: the first number of every list, then the second of every longer one, and so on."""
    rounds = itertools.zip_longest(*lists)  # a list that has ended gives None
    return torch.tensor([i for one in rounds for i in one if i is not None], dtype=torch.int64)


class Normalize(nn.Module):
    """Take images [N, 3, H, W] in [0, 1] to the network's input, (image - MEAN) / STD, in their own dtype.

    Images larger than image_size, the side in pixels that a network was trained for, are resized to it.
    """

    def __init__(self, image_size: int = 32):
        super().__init__()
        self.image_size = image_size

    def forward(self, images: Tensor) -> Tensor:
        if max(images.shape[-2:]) > self.image_size:
            device, sides = images.device, (self.image_size, self.image_size)
            # Apple GPUs cannot differentiate this (torch 2.13), as attacks must.
            images = images.cpu() if device.type == "mps" and images.requires_grad else images
            images = nn.functional.interpolate(images, sides, mode="bilinear", antialias=True).to(device)
        # Numbers, not tensors: copying those to a GPU would wait for it at every step.
        channels = zip(images.unbind(dim=1), MEAN, STD, strict=True)
        return torch.stack([(channel - mean) / std for channel, mean, std in channels], dim=1)


def memory_format(device: torch.device) -> torch.memory_format:
    """Return the layout of images and weights: channels last, but for Apple GPUs."""
    # There the gradient of batch norm fails or is wrong for channels last (pytorch issue 175189, torch 2.13).
    return torch.contiguous_format if device.type == "mps" else torch.channels_last


def to_input(images: Tensor, image_size: int = 32) -> Tensor:
    """Take uint8 images [N, 3, H, W] to the network's input, see Normalize: float32, in memory_format."""
    return Normalize(image_size)(images.float() / 255).contiguous(memory_format=memory_format(images.device))


def crop_and_flip(images: Tensor, dy: Tensor, dx: Tensor, flip: Tensor) -> Tensor:
    """Pad each image by reflection, cut a window of the image's size out of it, and mirror some of them.

    images [N, 3, H, W] of any dtype; dy and dx int64 [N] in 0..2*PADDING, the window's corner in the padded
    image; flip bool [N]. Padding, crop and flip only say which pixel goes where, so one gather does all
    three: row r of the result is row dy + r - PADDING of the image, reflected at the border: row -1 is row 1.
    """
    n, channels, height, width = images.shape
    rows = dy[:, None] + torch.arange(height, device=images.device) - PADDING
    columns = torch.arange(width, device=images.device).expand(n, width)
    columns = dx[:, None] + torch.where(flip[:, None], width - 1 - columns, columns) - PADDING
    # The inner abs() reflects at row 0, the outer one at the last row.
    rows = (height - 1) - ((height - 1) - rows.abs()).abs()
    columns = (width - 1) - ((width - 1) - columns.abs()).abs()
    index = torch.arange(n, device=images.device)[:, None, None, None]
    channel = torch.arange(channels, device=images.device)[:, None, None]
    return images[index, channel, rows[:, None, :, None], columns[:, None, None, :]]


def cutmix(images: Tensor, targets: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Cover a rectangle of each image by that of another image of the batch, and mix the targets likewise.

    images [B, 3, H, W] of any dtype; targets float [B, C], the probability of each class. The rectangle is
    the same for the whole batch. Its share of the area is 1 - lambda with lambda uniform in [0, 1], its
    centre is uniform in the image, and what lies outside of the image is cut off (Yun et al. 2019, arXiv
    1905.04899, section 3.1, equations 1 and 2 with alpha = 1). As a batch is in random order, image i is
    covered by image B - 1 - i.
    """
    height, width = images.shape[-2:]
    lam, y, x = torch.rand(3, generator=generator).tolist()
    side = math.sqrt(1 - lam) / 2
    top, bottom = (round(height * min(max(edge, 0), 1)) for edge in (y - side, y + side))
    left, right = (round(width * min(max(edge, 0), 1)) for edge in (x - side, x + side))
    mixed = images.clone()
    mixed[..., top:bottom, left:right] = images.flip(0)[..., top:bottom, left:right]
    kept = 1 - (bottom - top) * (right - left) / (height * width)  # lambda after rounding and cutting off
    return mixed, kept * targets + (1 - kept) * targets.flip(0)


def batches(
    images: Tensor, targets: Tensor, batch_size: int, seed: int, epoch: int, cutmix_probability: float = 0.0
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield (images, targets) of one epoch in batches: shuffled, cropped and flipped.

    images uint8 [N, 3, 32, 32]; targets int64 [N] or float [N, C]. Each batch is mixed by `cutmix` with
    probability `cutmix_probability`; above 0 that needs float targets. All choices come from a generator on
    the CPU that is seeded by (seed, epoch), so the batches are the same on every device and in a resumed run.
    The last incomplete batch is left out, because its batch-norm statistics would be noisy.
    """
    n = len(images)
    entropy = int(np.random.SeedSequence([seed, epoch]).generate_state(1, np.uint64)[0]) >> 1  # 63 bits
    generator = torch.Generator().manual_seed(entropy)
    order = torch.randperm(n, generator=generator).to(images.device)
    dy, dx = torch.randint(0, 2 * PADDING + 1, (2, n), generator=generator).to(images.device)
    flip = torch.randint(0, 2, (n,), generator=generator).bool().to(images.device)
    for start in range(0, n - batch_size + 1, batch_size):
        part = slice(start, start + batch_size)
        chosen = order[part]
        batch, target = crop_and_flip(images[chosen], dy[part], dx[part], flip[part]), targets[chosen]
        if torch.rand((), generator=generator) < cutmix_probability:
            batch, target = cutmix(batch, target, generator)
        yield batch, target

"""Batches to train on: a few operations on a whole batch in memory, so there is no loader with workers."""

import math
from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor


def crop_and_flip(images: Tensor, dy: Tensor, dx: Tensor, flip: Tensor) -> Tensor:
    """Pad each image by reflection, cut a window of the image's size out of it, and mirror some of them.

    images [N, 3, H, W] of any dtype; dy and dx int64 [N], by how many pixels the window is moved; flip bool
    [N]. Padding, crop and flip only say which pixel goes where, so one gather does all three: row r of the
    result is row dy + r of the image, reflected at the border: row -1 is row 1.
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
    the same for the whole batch. Its share of the area is 1 - lambda with lambda uniform in [0, 1], its
    centre is uniform in the image, and what lies outside of the image is cut off (Yun et al. 2019, arXiv
    1905.04899, section 3.1, equations 1 and 2 with alpha = 1). As a batch is in random order, image i is
    covered by image B - 1 - i.
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

    images uint8 [N, 3, S, S]; targets int64 [N] or float [N, C]. Each batch is mixed by `cutmix` with
    probability `cutmix_probability`; above 0 that needs float targets. All choices come from a generator on
    the CPU that is seeded by (seed, epoch), so the batches are the same on every device and in a resumed run.
    The last incomplete batch is left out, because its batch-norm statistics would be noisy.
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

"""Cues: what is left of the accuracy where a picture has lost its colour, its shape or a band of frequencies.

A network that needs a cue answers worse without it; Geirhos et al., "ImageNet-trained CNNs are biased towards
texture", 2019 (arXiv 1811.12231). Unlike corruptions, cues have no severities.

    CUES["grey"](images, generator)    float32 [N, 3, S, S] in [0, 1] to the same
    change(images, "grey")             uint8, with the seed of grey
"""

import zlib

import torch
from torch import Generator, Tensor

from .corruptions import grey_levels, spawn

# Where low_pass and high_pass part the waves, in periods across the image: each of the two bands tells the
# network in weights/ as much there. It gets 78.7 % of 1,000 of its validation images right, and of the same
#     low-passed, high-passed at    6: 11.8, 21.3 %    7: 16.5, 15.8 %    8: 24.6, 11.3 %
# So a network that does better on one of the bands leans more to it than that one does.
FREQUENCY = 7


def grey(images: Tensor) -> Tensor:
    """Take the colour away: every channel becomes the luma of ITU-R BT.601."""
    return grey_levels(images).expand_as(images)


def shuffle_patches(images: Tensor, side: int, generator: Generator) -> Tensor:
    """Cut images [N, 3, H, W] into patches of side x side pixels and lay them anew in random order.

    Texture and colour stay, the shape goes. Every order is equally likely, also the old one. Each image draws
    from a generator of its own, see corruptions.py. Rows and columns behind the last patches stay. Source:
    Zhang and Zhu, "Interpreting Adversarially Trained Convolutional Neural Networks", 2019 (arXiv
    1905.09797).
    """
    shuffled = images.clone()
    for image, own in zip(shuffled, spawn(generator, len(images)), strict=True):
        patches = image.unfold(1, side, side).unfold(2, side, side)  # [3, rows, columns, side, side]
        flat = patches.flatten(1, 2)
        flat = flat[:, torch.randperm(flat.shape[1], generator=own).to(image.device)]
        filled = flat.view_as(patches).transpose(2, 3).flatten(1, 2).flatten(2)
        image[:, : filled.shape[1], : filled.shape[2]] = filled
    return shuffled


def low_pass(images: Tensor, frequency: float) -> Tensor:
    """Keep the waves of at most `frequency` periods across images [N, 3, H, H]; not clipped.

    The others are set to zero in the Fourier transform of each channel. Sources: Yin et al., "A Fourier
    Perspective on Model Robustness in Computer Vision", 2019 (arXiv 1906.08988), section 3; Wang et al.,
    "High-frequency Component Helps Explain the Generalization of CNNs", 2020 (arXiv 1905.13545).
    """
    side = images.shape[-1]
    rows = side * torch.fft.fftfreq(side)
    columns = side * torch.fft.rfftfreq(side)
    kept = torch.hypot(rows[:, None], columns[None, :]) <= frequency
    return torch.fft.irfft2(torch.fft.rfft2(images) * kept.to(images.device), s=images.shape[-2:])


def parting(images: Tensor) -> int:
    """Return FREQUENCY, but of images below 28 pixels less, so that something is left of both bands."""
    return min(FREQUENCY, images.shape[-1] // 4)


def high_pass(images: Tensor, frequency: float) -> Tensor:
    """Keep the mean of each channel and the waves that low_pass removes; not clipped."""
    mean = images.mean(dim=(2, 3), keepdim=True)
    return images - low_pass(images, frequency) + mean


# {name: function(images float32 [N, 3, S, S] in [0, 1], generator) -> new images of the same kind}. The names
# of patches are their sides in images of CIFAR, a half and a quarter of that of any image.
CUES = {
    "grey": lambda images, generator: grey(images),
    "patches_16": lambda images, generator: shuffle_patches(images, images.shape[-1] // 2, generator),
    "patches_8": lambda images, generator: shuffle_patches(images, images.shape[-1] // 4, generator),
    "low_pass": lambda images, generator: low_pass(images, parting(images)).clamp(0, 1),
    "high_pass": lambda images, generator: high_pass(images, parting(images)).clamp(0, 1),
}


def change(images: Tensor, name: str) -> Tensor:
    """Take a cue from uint8 images [N, 3, S, S] and round to uint8; the seed follows from the name.

    Raises KeyError for a name that is not in CUES.
    """
    generator = Generator().manual_seed(zlib.crc32(name.encode()))
    changed = []
    for batch in images.split(50):
        changed.append((CUES[name](batch / 255, generator) * 255).round().to(torch.uint8))
    return torch.cat(changed)

"""Cues: what is left of the accuracy where a picture has lost its colour, its shape or a band of frequencies.

A network that needs a cue answers worse without it; Geirhos et al., "ImageNet-trained CNNs are biased towards
texture", 2019 (arXiv 1811.12231). Unlike corruptions, cues have no severities.

    CUES["grey"](images, generator)    float32 [N, 3, 32, 32] in [0, 1] to the same
    change(images, "grey")             uint8, with the seed of grey
"""

import zlib

import torch
from torch import Generator, Tensor

from .corruptions import grey_levels, spawn

FREQUENCY = 1 / 4  # of the side, in periods across the image: where low_pass and high_pass part the waves


def grey(images: Tensor) -> Tensor:
    """Take the colour away: every channel becomes the luma of ITU-R BT.601."""
    return grey_levels(images).expand_as(images)


def shuffle_patches(images: Tensor, side: int, generator: Generator) -> Tensor:
    """Cut images [N, 3, H, W] into patches of side x side pixels and lay them anew in random order.

    Texture and colour stay, the shape goes. Every order is equally likely, also the old one. Each image draws
    from a generator of its own, see corruptions.py. Raises ValueError unless the patches fill the image.
    Source: Zhang and Zhu, "Interpreting Adversarially Trained Convolutional Neural Networks", 2019 (arXiv
    1905.09797).
    """
    height, width = images.shape[-2:]
    if height % side or width % side:
        raise ValueError(f"patches of {side}x{side} pixels do not fill an image of {height}x{width}")
    shuffled = []
    for image, own in zip(images, spawn(generator, len(images)), strict=True):
        patches = image.unfold(1, side, side).unfold(2, side, side)  # [3, rows, columns, side, side]
        flat = patches.flatten(1, 2)
        flat = flat[:, torch.randperm(flat.shape[1], generator=own).to(image.device)]
        shuffled.append(flat.view_as(patches).transpose(2, 3).reshape(image.shape))
    return torch.stack(shuffled)


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


def high_pass(images: Tensor, frequency: float) -> Tensor:
    """Keep the mean of each channel and the waves that low_pass removes; not clipped."""
    mean = images.mean(dim=(2, 3), keepdim=True)
    return images - low_pass(images, frequency) + mean


# {name: function(images float32 [N, 3, 32, 32] in [0, 1], generator) -> new images of the same kind}
CUES = {
    "grey": lambda images, generator: grey(images),
    "patches_16": lambda images, generator: shuffle_patches(images, 16, generator),
    "patches_8": lambda images, generator: shuffle_patches(images, 8, generator),
    "low_pass": lambda images, generator: low_pass(images, FREQUENCY * images.shape[-1]).clamp(0, 1),
    "high_pass": lambda images, generator: high_pass(images, FREQUENCY * images.shape[-1]).clamp(0, 1),
}


def change(images: Tensor, name: str) -> Tensor:
    """Take a cue from uint8 images [N, 3, 32, 32] and round to uint8; the seed follows from the name.

    Raises KeyError for a name that is not in CUES.
    """
    generator = Generator().manual_seed(zlib.crc32(name.encode()))
    changed = [CUES[name](batch / 255, generator) for batch in images.split(500)]
    return (torch.cat(changed) * 255).round().to(torch.uint8)

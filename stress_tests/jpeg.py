"""JPEG compression, step by step as the library libjpeg computes it."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

# The step sizes for brightness and for colour of the JPEG standard (ITU-T T.81, annex K, tables K.1 and K.2).
LUMINANCE_STEPS = """
    16 11 10 16 24 40 51 61 12 12 14 19 26 58 60 55 14 13 16 24 40 57 69 56 14 17 22 29 51
    87 80 62 18 22 37 56 68 109 103 77 24 35 55 64 81 104 113 92 49 64 78 87 103 121 120
    101 72 92 95 98 112 100 103 99
"""
CHROMINANCE_STEPS = (
    "17 18 24 47 99 99 99 99 18 21 26 66 99 99 99 99 24 26 56 99 99 99 99 99 47 66" + 38 * " 99"
)


def quantisation_table(steps: str, quality: int) -> Tensor:
    """Scale a table of annex K to a quality of 1 to 100 as libjpeg does; float64 [8, 8]."""
    table = torch.tensor([int(step) for step in steps.split()]).view(8, 8)
    percent = 5000 // quality if quality < 50 else 200 - 2 * quality
    return ((table * percent + 50) // 100).clamp(1, 255).double()


def dct_matrix() -> Tensor:
    """Return the orthonormal cosine transform float64 [8, 8]; row u is cos((2 x + 1) u pi / 16), scaled."""
    u, x = torch.arange(8, dtype=torch.float64)[:, None], torch.arange(8, dtype=torch.float64)
    matrix = torch.cos((2 * x + 1) * u * math.pi / 16) / 2
    matrix[0] /= math.sqrt(2)
    return matrix


def quantise_blocks(plane: Tensor, table: Tensor) -> Tensor:
    """Round the cosine coefficients of every 8x8 block of [N, H, W] (0 to 255) to multiples of `table`."""
    n, h, w = plane.shape
    blocks = plane.reshape(n, h // 8, 8, w // 8, 8).transpose(2, 3) - 128
    transform = dct_matrix()
    # libjpeg keeps coefficients in eighths before it divides, so ties are common; it rounds them away from 0.
    steps = (transform @ blocks @ transform.T * 8).round() / 8 / table
    coefficients = steps.sign() * (steps.abs() + 0.5).floor() * table
    blocks = (transform.T @ coefficients @ transform + 128).round().clamp(0, 255)
    return blocks.transpose(2, 3).reshape(n, h, w)


def jpeg(images: Tensor, quality: int) -> Tensor:
    """Write images [N, 3, H, W] in [0, 1] as JPEG and read them; H and W multiples of 16. Returns float32.

    Colours become brightness Y and colour differences Cb and Cr (ITU-T T.871), which are halved in both
    directions (4:2:0); each plane goes through the quantised cosine transform of T.81, annex A.3; on the way
    back the colour planes are enlarged bilinearly, as libjpeg does. Computed in float64, and rounded wherever
    a file holds whole numbers.
    """
    w = images.shape[-1]
    r, g, b = (images.double() * 255).round().unbind(dim=1)
    y = 0.299 * r + 0.587 * g + 0.114 * b
    differences = torch.stack([(b - y) / 1.772 + 128, (r - y) / 1.402 + 128], dim=1).round()
    y = quantise_blocks(y.round(), quantisation_table(LUMINANCE_STEPS, quality))
    # The mean of 2x2 values often ends in .5: libjpeg rounds it down in even columns and up in odd ones.
    differences = (F.avg_pool2d(differences, 2) + torch.tensor([0.25, 0.5]).repeat(w // 4)).floor()
    table = quantisation_table(CHROMINANCE_STEPS, quality)
    differences = quantise_blocks(differences.flatten(0, 1), table).unflatten(0, (-1, 2))
    differences = F.interpolate(differences, scale_factor=2, mode="bilinear", align_corners=False).round()
    cb, cr = (differences - 128).unbind(dim=1)
    g = y - (0.114 * 1.772 * cb + 0.299 * 1.402 * cr) / 0.587
    rgb = torch.stack([y + 1.402 * cr, g, y + 1.772 * cb], dim=1)
    return (rgb.round().clamp(0, 255) / 255).float()

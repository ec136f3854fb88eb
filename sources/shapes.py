"""The built-in data set: coloured shapes in the format of CIFAR-100."""

import itertools
import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Generator, Tensor

COLOURS = {  # red, green and blue in [0, 1]
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
    """Return whether (x, y) is in a star of five points at radius 1 with notches at radius 0.42."""
    # The five edges are alike: turn the point into the fifth of the plane around one edge, and test that.
    angle = (torch.atan2(y, x) % (2 * math.pi / 5) - math.pi / 5).abs()
    u, v = x.hypot(y) * angle.cos(), x.hypot(y) * angle.sin()
    tip_u, tip_v = math.cos(math.pi / 5), math.sin(math.pi / 5)
    return (tip_u - 0.42) * v - tip_v * (u - 0.42) > 0


# Each function tells whether (x, y) lies in the shape. A shape about fills the unit circle; y points upwards.
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

CLASS_NAMES = [f"{colour} {shape}" for shape, colour in itertools.product(SHAPES, COLOURS)]


def draw_images(per_class: int, seed: int) -> tuple[Tensor, Tensor]:
    """Draw `per_class` images of each of 100 classes, 10 shapes in 10 colours.

    Returns images uint8 [N, 3, 32, 32] and labels int64 [N], class by class in the order of CLASS_NAMES. Only
    the seed decides.
    """
    generator = torch.Generator().manual_seed(seed)
    images = torch.cat([draw_shape(inside, per_class, generator) for inside in SHAPES.values()])
    return images, torch.arange(100).repeat_interleave(per_class)


def draw_shape(inside: Callable, per_class: int, generator: Generator) -> Tensor:
    """Draw one shape in every colour; return images uint8 [10 per_class, 3, 32, 32].

    The object's place, size (radius 6 to 11 pixels), tilt (up to 35 degrees), shade and exact colour vary.
    The background is a smooth blend of random colours, with small discs of other colours scattered over it.
    """

    def between(low: float, high: float, *shape: int) -> Tensor:
        return low + (high - low) * torch.rand(*shape, generator=generator)

    n = 10 * per_class
    # The pixel centres of a grid three times as fine as the image; means over 3x3 pixels smooth the edges.
    grid_x = (torch.arange(96) + 0.5) / 3
    grid_y = grid_x[:, None]
    # Background: 3x3 random colours of low saturation, blended smoothly.
    picture = (between(0.1, 0.9, n, 1, 3, 3) + between(-0.25, 0.25, n, 3, 3, 3)).clamp(0, 1)
    picture = F.interpolate(picture, size=96, mode="bicubic", align_corners=True)
    for _ in range(5):  # small discs
        x, y, radius = between(0, 32, n, 1, 1), between(0, 32, n, 1, 1), between(1, 2.8, n, 1, 1)
        disc = (grid_x - x).hypot(grid_y - y) < radius
        picture = torch.where(disc[:, None], between(0, 1, n, 3, 1, 1), picture)
    # The object: turned by `angle` about its centre and lit from a random side.
    radius, angle = between(6, 11, n, 1, 1), between(-0.6, 0.6, n, 1, 1)
    centre_x, centre_y = between(11, 21, n, 1, 1), between(11, 21, n, 1, 1)
    x, y = (grid_x - centre_x) / radius, (centre_y - grid_y) / radius
    x, y = x * angle.cos() + y * angle.sin(), y * angle.cos() - x * angle.sin()
    palette = torch.tensor(list(COLOURS.values())).repeat_interleave(per_class, dim=0)
    colour = (palette + between(-0.07, 0.07, n, 3))[:, :, None, None]
    shade = between(0.75, 1.05, n, 1, 1) + between(-0.15, 0.15, n, 1, 1) * x
    picture = torch.where(inside(x, y)[:, None], colour * shade[:, None], picture)
    picture = F.avg_pool2d(picture, 3) + 0.03 * torch.randn(n, 3, 32, 32, generator=generator)
    return (picture.clamp(0, 1) * 255).round().to(torch.uint8)

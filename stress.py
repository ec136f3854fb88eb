"""Find where the network breaks: corruptions, attacks, and whether its explanations can be believed.

    python stress.py --run runs/cifar100

Three parts, made of functions that can be used alone:

- Corruptions: the nineteen of CIFAR-10-C (Hendrycks and Dietterich, "Benchmarking Neural Network Robustness
  to Common Corruptions and Perturbations", 2019, arXiv 1903.12261) and four geometric changes, each at five
  severities.
- Attacks: FGSM and PGD, and the checks that tell a robust network from a weak attack.
- Faithfulness of explanations: deletion and insertion curves, and the randomisation check.

As a command it runs the first two on a sample of the test split and writes stress.json and plots into the run
folder; with --checkpoint and no --run, into runs/<name of the file>/. Every test is kept as soon as it
is done: the same command goes on after an interruption.
"""

import contextlib
import copy
import hashlib
import json
import math
import shlex
from collections.abc import Iterator

import numpy as np
import torch
import torch.nn.functional as F
from matplotlib.figure import Figure
from torch import Generator, Tensor, nn

import data
import metrics
import plots
import runs
from gradcam import GradCAM
from train import predict

# ---- Settings --------------------------------------------------------------------------------------------

SEED = 0
CORRUPTION_IMAGES = 200  # sizes of the default sample, for under five minutes on 2 cores; --full takes all
ATTACK_IMAGES = 100
RADII = (0.25, 0.5, 1, 2, 4, 8, 64)  # in 1/255; the last should leave no image
PGD_STEPS, PGD_RESTARTS = 10, 2
ATTACKS = ("fgsm", "pgd", "random")
MORE_STEPS_RADIUS = 1  # where PGD is run again with twice the steps; a radius at which some images survive


# ---- Corruptions: the constants --------------------------------------------------------------------------

# One entry for each severity 1 to 5. The first nineteen are the published constants of CIFAR-10-C (file
# ImageNet-C/create_c/make_cifar_c.py of github.com/hendrycks/robustness); lengths are in pixels.
SEVERITIES = {
    "gaussian_noise": (0.04, 0.06, 0.08, 0.09, 0.10),  # standard deviation
    "shot_noise": (500, 250, 100, 75, 50),  # photons of a white pixel
    "impulse_noise": (0.01, 0.02, 0.03, 0.05, 0.07),  # share of the values replaced
    "speckle_noise": (0.06, 0.10, 0.12, 0.16, 0.20),  # standard deviation on a white pixel
    "defocus_blur": ((0.3, 0.4), (0.4, 0.5), (0.5, 0.6), (1.0, 0.2), (1.5, 0.1)),  # disc radius, blur of it
    "glass_blur": ((0.05, 1), (0.25, 1), (0.4, 1), (0.25, 2), (0.4, 2)),  # blur, rounds of moving pixels
    "motion_blur": ((6, 1.0), (6, 1.5), (6, 2.0), (8, 2.0), (9, 2.5)),  # radius, standard deviation
    "zoom_blur": (1.06, 1.11, 1.16, 1.21, 1.26),  # end of the zoom factors 1.00, 1.01, 1.02, ...
    "gaussian_blur": (0.4, 0.6, 0.7, 0.8, 1.0),  # standard deviation
    "snow": (  # noise: mean, deviation; zoom; threshold; motion blur: radius, deviation; share kept
        (0.10, 0.2, 1.00, 0.60, 8, 3, 0.95),
        (0.10, 0.2, 1.00, 0.50, 10, 4, 0.90),
        (0.15, 0.3, 1.75, 0.55, 10, 4, 0.90),
        (0.25, 0.3, 2.25, 0.60, 12, 6, 0.85),
        (0.30, 0.3, 1.25, 0.65, 14, 12, 0.80),
    ),
    "frost": ((1.0, 0.2), (1.0, 0.3), (0.9, 0.4), (0.85, 0.4), (0.75, 0.45)),  # weights of picture and frost
    "fog": ((0.2, 3.0), (0.5, 3.0), (0.75, 2.5), (1.0, 2.0), (1.5, 1.75)),  # strength, decay of fine detail
    "spatter": (  # noise: mean, deviation; blur; threshold; strength of water or blur of mud
        (0.62, 0.1, 0.7, 0.70, 0.5, "water"),
        (0.65, 0.1, 0.8, 0.70, 0.5, "water"),
        (0.65, 0.3, 1.0, 0.69, 0.5, "water"),
        (0.65, 0.1, 0.7, 0.69, 0.6, "mud"),
        (0.65, 0.1, 0.5, 0.68, 0.6, "mud"),
    ),
    "brightness": (0.05, 0.10, 0.15, 0.20, 0.30),  # added to the value V of HSV
    "contrast": (0.75, 0.50, 0.40, 0.30, 0.15),  # factor on the distance from the mean
    "saturate": ((0.3, 0.0), (0.1, 0.0), (1.5, 0.0), (2.0, 0.1), (2.5, 0.2)),  # factor on S of HSV, addition
    "elastic_transform": (  # height and width of the bumps, shift of the three corners
        (0.00, 0.00, 2.56),
        (1.60, 6.40, 2.24),
        (2.56, 1.92, 1.92),
        (3.20, 1.28, 1.60),
        (3.20, 0.96, 0.96),
    ),
    "pixelate": (30, 28, 27, 24, 20),  # side of the small picture
    "jpeg_compression": (80, 65, 58, 50, 40),  # quality
    # The rest are ours. 30 degrees and 3 pixels are the limits of Engstrom et al. 2019 (arXiv 1712.02779).
    "rotation": (6, 12, 18, 24, 30),  # degrees
    "translation": (1, 2, 3, 5, 8),  # pixels along both axes
    "scale": (1.1, 1.2, 1.35, 1.5, 1.75),  # enlarged or reduced by this factor
    "occlusion": (4, 8, 12, 16, 20),  # side of the square
}


def constants(name: str, images: Tensor, severity: int):
    """Return the table's entry, or raise ValueError for images or a severity that no corruption takes."""
    if images.dtype != torch.float32 or images.ndim != 4 or images.shape[1:] != (3, 32, 32):
        raise ValueError(f"images must be float32 [N, 3, 32, 32], not {images.dtype} {list(images.shape)}")
    if severity not in (1, 2, 3, 4, 5):
        raise ValueError(f"severity must be 1, 2, 3, 4 or 5, not {severity}")
    return SEVERITIES[name][severity - 1]


# ---- Corruptions: what they share ------------------------------------------------------------------------
#
# Every corruption is a function (images float32 [N, 3, 32, 32] in [0, 1], severity 1 to 5, generator) that
# returns new images of the same shape, type and range on the CPU. Wrong images or severity raise ValueError.
#
# Randomness: a corruption takes exactly one number for each image from `generator`, in order, and that number
# seeds the image's own generator. So what happens to an image depends on its place in the sequence, not on
# the images beside it or on how the sequence is cut into batches: corrupting a and then b with one generator
# is corrupting the batch (a, b). Corruptions without randomness take nothing.


def spawn(generator: Generator, count: int) -> list[Generator]:
    """Return `count` generators, each seeded by the next number of `generator`."""
    seeds = torch.randint(2**63 - 1, (count,), generator=generator).tolist()
    return [Generator().manual_seed(seed) for seed in seeds]


def normal(generators: list[Generator], *shape: int) -> Tensor:
    """Draw standard normal numbers, one [*shape] from each generator; returns float32 [N, *shape]."""
    return torch.stack([torch.randn(shape, generator=generator) for generator in generators])


def uniform(generators: list[Generator], low: float, high: float, *shape: int) -> Tensor:
    """Draw numbers uniform in [low, high), one [*shape] from each generator; returns float32 [N, *shape]."""
    unit = torch.stack([torch.rand(shape, generator=generator) for generator in generators])
    return low + (high - low) * unit


def filter_image(images: Tensor, kernels: Tensor, border: str = "replicate") -> Tensor:
    """Replace each pixel by a weighted sum of its neighbours; `border` is a mode of torch's pad.

        out(y, x) = sum over i and j from -r to r of kernel(r + i, r + j) in(y + i, x + j)

    images [N, C, H, W]; kernels [K, K], or [N, K, K] for one for each image, K = 2 r + 1.
    """
    n, c, h, w = images.shape
    radius = kernels.shape[-1] // 2
    padded = F.pad(images, (radius,) * 4, mode=border).reshape(1, n * c, h + 2 * radius, w + 2 * radius)
    weight = kernels.expand(n, *kernels.shape[-2:]).repeat_interleave(c, dim=0)[:, None]
    return F.conv2d(padded, weight.to(images), groups=n * c).view(n, c, h, w)


def gaussian_weights(sigma: float, truncate: float = 4.0) -> Tensor:
    """Return a Gaussian at -r to r, r = truncate * sigma rounded, scaled to sum 1; float64 [2 r + 1]."""
    radius = int(truncate * sigma + 0.5)
    if radius == 0:
        return torch.ones(1, dtype=torch.float64)
    offsets = torch.arange(-radius, radius + 1, dtype=torch.float64)
    return torch.softmax(-(offsets**2) / (2 * sigma**2), dim=0)


def blur(images: Tensor, sigma: float, truncate: float = 4.0) -> Tensor:
    """Gaussian blur of images [N, C, H, W]."""
    weights = gaussian_weights(sigma, truncate)
    return filter_image(images, weights[:, None] * weights[None, :])


def defocus_kernel(radius: float, sigma: float) -> Tensor:
    """Return a disc of a radius below 3, softened by a Gaussian of 3x3 pixels; float64 [7, 7], sum 1."""
    offsets = torch.arange(-3, 4, dtype=torch.float64)
    disc = (offsets[:, None] ** 2 + offsets[None, :] ** 2 <= radius**2).double()
    near = torch.softmax(-(torch.arange(-1, 2, dtype=torch.float64) ** 2) / (2 * sigma**2), dim=0)
    return filter_image((disc / disc.sum())[None, None], near[:, None] * near[None, :])[0, 0]


def motion_kernel(radius: int, sigma: float, degrees: Tensor) -> Tensor:
    """Return kernels that smear along a line, float64 [N, K, K], each with sum 1; degrees float [N].

    One half of a Gaussian, 2 radius + 1 steps of one pixel long, along the direction `degrees` clockwise from
    the right, each step rounded to the nearest pixel: the rule of ImageMagick's motion blur.
    """
    steps = torch.arange(2 * radius + 1)
    weights = torch.softmax(-(steps.double() ** 2) / (2 * sigma**2), dim=0)
    angle = torch.deg2rad(degrees.double())[:, None]
    column = (steps * angle.cos()).round().long() + 2 * radius
    row = (steps * angle.sin()).round().long() + 2 * radius
    side = 4 * radius + 1
    kernels = torch.zeros(len(degrees), side * side, dtype=torch.float64)
    return kernels.scatter_add(1, row * side + column, weights.expand(len(degrees), -1)).view(-1, side, side)


def zoom(images: Tensor, factor: float) -> Tensor:
    """Enlarge the middle of images [N, C, H, H] bilinearly and cut to the old size; factor >= 1."""
    side = images.shape[-1]
    crop = math.ceil(side / factor)
    start = (side - crop) // 2
    middle = images[..., start : start + crop, start : start + crop]
    large = F.interpolate(middle, size=round(crop * factor), mode="bilinear", align_corners=True)
    start = (large.shape[-1] - side) // 2
    return large[..., start : start + side, start : start + side]


def warp(images: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """Read images [N, C, 32, 32] at pixel coordinates x, y [N, 32, 32], bilinearly; outside is a mirror."""
    grid = torch.stack([(2 * x + 1) / 32 - 1, (2 * y + 1) / 32 - 1], dim=-1)
    return F.grid_sample(images, grid.to(images), padding_mode="reflection", align_corners=False)


def affine(images: Tensor, matrix: Tensor, shift: Tensor) -> Tensor:
    """Read images at matrix @ (position from the centre) + shift; [N, 2, 2] and [N, 2], x before y."""
    offsets = torch.arange(32) - 15.5
    position = torch.stack(torch.meshgrid(offsets, offsets, indexing="xy")).flatten(1)  # [2, 1024]: x, y
    x, y = (matrix @ position + shift[:, :, None] + 15.5).view(-1, 2, 32, 32).unbind(dim=1)
    return warp(images, x, y)


# ---- Corruptions: noise ----------------------------------------------------------------------------------


def gaussian_noise(images: Tensor, severity: int, generator: Generator) -> Tensor:
    """Add normal noise: the grain of a picture taken in low light."""
    sigma = constants("gaussian_noise", images, severity)
    return (images + sigma * normal(spawn(generator, len(images)), 3, 32, 32)).clamp(0, 1)


def shot_noise(images: Tensor, severity: int, generator: Generator) -> Tensor:
    """Count photons: Poisson with mean `photons` x value."""
    photons = constants("shot_noise", images, severity)
    generators = spawn(generator, len(images))
    counts = [torch.poisson(image * photons, each) for image, each in zip(images, generators, strict=True)]
    return (torch.stack(counts) / photons).clamp(0, 1)


def impulse_noise(images: Tensor, severity: int, generator: Generator) -> Tensor:
    """Salt and pepper: replace a share of the values, in each channel by itself, by 0 or 1."""
    share = constants("impulse_noise", images, severity)
    draw = uniform(spawn(generator, len(images)), 0, 1, 3, 32, 32)
    return torch.where(draw < share, (draw < share / 2).float(), images)


def speckle_noise(images: Tensor, severity: int, generator: Generator) -> Tensor:
    """Add normal noise in proportion to the value."""
    sigma = constants("speckle_noise", images, severity)
    return (images + images * sigma * normal(spawn(generator, len(images)), 3, 32, 32)).clamp(0, 1)


# ---- Corruptions: blur -----------------------------------------------------------------------------------


def defocus_blur(images: Tensor, severity: int, generator: Generator) -> Tensor:
    """Blur with a disc, as a lens out of focus."""
    kernel = defocus_kernel(*constants("defocus_blur", images, severity))
    return filter_image(images, kernel, border="reflect").clamp(0, 1)


def take_neighbours(images: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """Replace each pixel by the one at an offset, rows and columns int64 [N, 32, 32]; all must lie inside."""
    source = (torch.arange(32)[:, None] + rows) * 32 + torch.arange(32) + columns
    return images.flatten(2).gather(2, source.flatten(1)[:, None].expand(-1, 3, -1)).view_as(images)


def glass_blur(images: Tensor, severity: int, generator: Generator) -> Tensor:
    """Frosted glass: blur, move pixels to a neighbour's place, blur.

    The published code means to swap neighbours at most one pixel apart, but it swaps views of one array,
    which copies: each pixel from the third row and column on takes the value of itself or of its neighbour
    above, left or above left. Its pictures are what results are compared on, so this does the same.
    """
    sigma, rounds = constants("glass_blur", images, severity)
    generators = spawn(generator, len(images))
    images = blur(images, sigma)
    for _ in range(rounds):
        offsets = uniform(generators, 0, 2, 2, 32, 32).long() - 1  # -1 or 0
        offsets[:, :, :2] = 0
        offsets[:, :, :, :2] = 0
        images = take_neighbours(images, offsets[:, 0], offsets[:, 1])
    return blur(images, sigma).clamp(0, 1)


def motion_blur(images: Tensor, severity: int, generator: Generator) -> Tensor:
    """Smear along a line within 45 degrees of the horizontal.

    A stand-in: the original calls ImageMagick, whose rule motion_kernel follows.
    """
    radius, sigma = constants("motion_blur", images, severity)
    degrees = uniform(spawn(generator, len(images)), -45, 45)
    return filter_image(images, motion_kernel(radius, sigma, degrees)).clamp(0, 1)


def zoom_blur(images: Tensor, severity: int, generator: Generator) -> Tensor:
    """Average the picture with enlargements of itself, as a camera that moves towards it."""
    end = constants("zoom_blur", images, severity)
    # numpy's own rounding decides whether the end is among the factors; the published numbers rely on it.
    zoomed = [zoom(images, factor) for factor in np.arange(1, end, 0.01).tolist()]
    return torch.stack([images, *zoomed]).mean(dim=0).clamp(0, 1)


def gaussian_blur(images: Tensor, severity: int, generator: Generator) -> Tensor:
    """Blur with a Gaussian."""
    return blur(images, constants("gaussian_blur", images, severity)).clamp(0, 1)


# ---- Corruptions: weather --------------------------------------------------------------------------------


def snow(images: Tensor, severity: int, generator: Generator) -> Tensor:
    """Whiten the picture and add flakes that fall: smeared, thresholded noise, once as it is and once turned.

    The smear is a stand-in for ImageMagick's: see motion_kernel.
    """
    mean, sigma, factor, threshold, radius, blur_sigma, kept = constants("snow", images, severity)
    generators = spawn(generator, len(images))
    flakes = zoom(mean + sigma * normal(generators, 1, 32, 32), factor)
    flakes = torch.where(flakes < threshold, 0, flakes).clamp(0, 1)
    flakes = filter_image(flakes, motion_kernel(radius, blur_sigma, uniform(generators, -135, -45)))
    grey = (images * torch.tensor([0.299, 0.587, 0.114])[:, None, None]).sum(dim=1, keepdim=True)
    white = kept * images + (1 - kept) * torch.maximum(images, 1.5 * grey + 0.5)
    return (white + flakes + flakes.rot90(2, (2, 3))).clamp(0, 1)


def frost(images: Tensor, severity: int, generator: Generator) -> Tensor:
    """Add a layer of ice. A stand-in: the original lays crops of five photographs of frost over the picture.

    The layer drawn here has what those crops have in common: a mean brightness between 0.45 and 0.8, a bluish
    tint, and a texture of standard deviation 0.09 whose power falls with the frequency f as 1 / f.
    """
    weight, ice_weight = constants("frost", images, severity)
    generators = spawn(generator, len(images))
    frequency = torch.hypot(torch.fft.fftfreq(32)[:, None], torch.fft.rfftfreq(32)[None, :])
    amplitude = torch.where(frequency > 0, frequency**-0.5, 0)
    texture = torch.fft.irfft2(torch.fft.rfft2(normal(generators, 1, 32, 32)) * amplitude)
    texture = 0.09 * texture / texture.std(dim=(1, 2, 3), keepdim=True)
    tint = torch.tensor([-0.07, 0.01, 0.06])[:, None, None]
    ice = (uniform(generators, 0.45, 0.8, 1, 1, 1) + tint + texture).clamp(0, 1)
    return (weight * images + ice_weight * ice).clamp(0, 1)


def plasma(generators: list[Generator], decay: float) -> Tensor:
    """Draw clouds by the diamond-square algorithm; returns float32 [N, 32, 32], each from 0 to 1.

    Start with one value on a grid that wraps around. Then, from coarse to fine, give each square of the grid
    a centre and each diamond between centres and corners a centre, the mean of its four corners plus a
    uniform number. The published code squares the amplitude, so it falls by decay^2 from one grid to the
    next. Source: Fournier, Fussell and Carpenter, "Computer rendering of stochastic models", 1982.
    """
    field = torch.zeros(len(generators), 32, 32)
    step, amplitude = 32, 1.0

    def add(corners: Tensor) -> Tensor:
        return corners / 4 + amplitude * uniform(generators, -1, 1, *corners.shape[1:])

    while step > 1:
        half = step // 2
        corner = field[:, ::step, ::step].clone()
        pair = corner + corner.roll(-1, dims=1)  # a corner and the one below it
        centre = add(pair + pair.roll(-1, dims=2))
        field[:, half::step, half::step] = centre
        field[:, ::step, half::step] = add(corner + corner.roll(-1, dims=2) + centre + centre.roll(1, dims=1))
        field[:, half::step, ::step] = add(pair + centre + centre.roll(1, dims=2))
        step, amplitude = half, amplitude / decay**2
    field -= field.amin(dim=(1, 2), keepdim=True)
    return field / field.amax(dim=(1, 2), keepdim=True)


def fog(images: Tensor, severity: int, generator: Generator) -> Tensor:
    """Add clouds and scale so that the brightest value stays possible."""
    strength, decay = constants("fog", images, severity)
    clouds = plasma(spawn(generator, len(images)), decay)[:, None]
    brightest = images.amax(dim=(1, 2, 3), keepdim=True)
    return ((images + strength * clouds) * brightest / (brightest + strength)).clamp(0, 1)


def spatter(images: Tensor, severity: int, generator: Generator) -> Tensor:
    """Splash water (severity 1 to 3) or mud (4 and 5) on the lens, where blurred noise exceeds a threshold.

    Water is a stand-in: the original shades the drops by the distance to their edges, found with OpenCV's
    Canny filter. Here the light falls on the upper left slope of the drops.
    """
    mean, sigma, blur_sigma, threshold, strength, liquid = constants("spatter", images, severity)
    noise = normal(spawn(generator, len(images)), 1, 32, 32)
    height = blur(mean + sigma * noise, blur_sigma)
    mask = (height > threshold).float()
    if liquid == "mud":
        mask = blur(mask, strength)
        mask = torch.where(mask < 0.8, 0, mask)
        return (images * (1 - mask) + mask * torch.tensor([63, 42, 20])[:, None, None] / 255).clamp(0, 1)
    slope = torch.tensor([[-2.0, -1, 0], [-1, 0, 1], [0, 1, 2]])
    light = blur(filter_image(mask, slope).clamp(min=0), 0.7) * mask * height
    light = strength * light / light.amax(dim=(1, 2, 3), keepdim=True).clamp(min=1e-6)
    return (images + light * torch.tensor([175, 238, 238])[:, None, None] / 255).clamp(0, 1)


# ---- Corruptions: light, colour and files ----------------------------------------------------------------


def brightness(images: Tensor, severity: int, generator: Generator) -> Tensor:
    """Add to the value V = max(R, G, B) of HSV.

    Hue and saturation stay, so all three channels grow by one factor, V' / V; black becomes grey.
    """
    value = images.amax(dim=1, keepdim=True)
    brighter = (value + constants("brightness", images, severity)).clamp(max=1)
    return torch.where(value > 0, images * brighter / value, brighter).clamp(0, 1)


def contrast(images: Tensor, severity: int, generator: Generator) -> Tensor:
    """Move every value towards its channel's mean."""
    factor = constants("contrast", images, severity)
    mean = images.mean(dim=(2, 3), keepdim=True)
    return (mean + factor * (images - mean)).clamp(0, 1)


def saturate(images: Tensor, severity: int, generator: Generator) -> Tensor:
    """Change the saturation S = (V - min(R, G, B)) / V of HSV; severities 1 and 2 pale, 3 to 5 intensify.

    V and hue stay, so the distance of each channel from V grows by one factor, S' / S. Grey has hue 0 by
    convention: where S' is above 0 it turns red, as in the original.
    """
    factor, addition = constants("saturate", images, severity)
    value, low = images.amax(dim=1, keepdim=True), images.amin(dim=1, keepdim=True)
    saturation = torch.where(value > 0, (value - low) / value, 0)
    new = (factor * saturation + addition).clamp(0, 1)
    coloured = value - (value - images) * new / saturation
    red = value * torch.cat([torch.ones_like(new), 1 - new, 1 - new], dim=1)
    return torch.where(saturation > 0, coloured, red).clamp(0, 1)


def elastic_transform(images: Tensor, severity: int, generator: Generator) -> Tensor:
    """Stretch: move three corners at random (affine), then move every pixel by smooth random bumps."""
    height, width, shift = constants("elastic_transform", images, severity)
    generators = spawn(generator, len(images))
    corners = torch.tensor([[26.0, 26.0], [26.0, 6.0], [6.0, 6.0]])
    moved = corners + uniform(generators, -shift, shift, 3, 2)
    # The affine map that takes the moved corners back to where they were says where each pixel is read.
    solution = torch.linalg.solve(F.pad(moved, (0, 1), value=1.0), corners.expand_as(moved))  # [N, 3, 2]
    matrix = solution[:, :2].mT
    images = affine(images, matrix, (matrix @ torch.full((2, 1), 15.5))[..., 0] + solution[:, 2] - 15.5)
    bumps = height * blur(uniform(generators, -1, 1, 2, 32, 32), width, truncate=3)
    grid = torch.arange(32)
    return warp(images, grid + bumps[:, 0], grid[:, None] + bumps[:, 1]).clamp(0, 1)


def box_matrix(size: int, new_size: int) -> Tensor:
    """Return the matrix float32 [new_size, size] that resizes a row with Pillow's BOX filter.

    A new pixel is the mean of the old ones whose centres lie in the interval it covers, made at least one
    pixel wide; so a larger row repeats the nearest pixel.
    """
    scale = size / new_size
    centre = (torch.arange(new_size, dtype=torch.float64)[:, None] + 0.5) * scale
    distance = torch.arange(size, dtype=torch.float64) + 0.5 - centre
    half = max(scale, 1.0) / 2
    weights = ((distance > -half) & (distance <= half)).float()
    return weights / weights.sum(dim=1, keepdim=True)


def pixelate(images: Tensor, severity: int, generator: Generator) -> Tensor:
    """Reduce the picture and enlarge it again, without smoothing."""
    side = constants("pixelate", images, severity)
    there_and_back = box_matrix(side, 32) @ box_matrix(32, side)
    return (there_and_back @ images @ there_and_back.T).clamp(0, 1)


# Annex K of the JPEG standard (ITU-T T.81, tables K.1 and K.2): step sizes for brightness and for colour.
LUMINANCE_STEPS = """
    16 11 10 16 24 40 51 61 12 12 14 19 26 58 60 55 14 13 16 24 40 57 69 56 14 17 22 29 51
    87 80 62 18 22 37 56 68 109 103 77 24 35 55 64 81 104 113 92 49 64 78 87 103 121 120
    101 72 92 95 98 112 100 103 99
"""
CHROMINANCE_STEPS = (
    "17 18 24 47 99 99 99 99 18 21 26 66 99 99 99 99 24 26 56 99 99 99 99 99 47 66" + 38 * " 99"
)


def quantisation_table(steps: str, quality: int) -> Tensor:
    """Scale a table of Annex K to a quality of 1 to 100 as libjpeg does; float64 [8, 8]."""
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
    # libjpeg keeps coefficients in eighths before it divides, so ties are common; they go away from zero.
    steps = (transform @ blocks @ transform.T * 8).round() / 8 / table
    coefficients = steps.sign() * (steps.abs() + 0.5).floor() * table
    blocks = (transform.T @ coefficients @ transform + 128).round().clamp(0, 255)
    return blocks.transpose(2, 3).reshape(n, h, w)


def jpeg(images: Tensor, quality: int) -> Tensor:
    """Write images [N, 3, H, W] in [0, 1] as JPEG and read them; H and W multiples of 16. Returns float32.

    Colours become brightness Y and colour differences Cb and Cr (ITU-T T.871), which are halved in both
    directions (4:2:0); each plane goes through the quantised cosine transform of T.81, annex A.3; on the way
    back the colour planes are enlarged bilinearly, as libjpeg does. In float64, rounded where a file would
    be.
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


def jpeg_compression(images: Tensor, severity: int, generator: Generator) -> Tensor:
    """Write the picture as a JPEG file of low quality and read it."""
    return jpeg(images, constants("jpeg_compression", images, severity))


# ---- Corruptions: geometry -------------------------------------------------------------------------------
#
# Ours, not CIFAR-10-C's. The direction is random; what comes in from outside is a mirror image, so that no
# black border gives the change away.


def random_sign(generators: list[Generator], *shape: int) -> Tensor:
    """Return -1.0 or 1.0, float32 [N, *shape]."""
    return torch.where(uniform(generators, 0, 1, *shape) < 0.5, -1.0, 1.0)


def rotate(images: Tensor, degrees: Tensor) -> Tensor:
    """Turn images about their centre, counterclockwise as torch.rot90 turns; degrees float [N]."""
    angle = torch.deg2rad(degrees)
    cos, sin = angle.cos(), angle.sin()
    # A pixel at p takes its value from p turned back; y grows downwards.
    matrix = torch.stack([torch.stack([cos, -sin], dim=1), torch.stack([sin, cos], dim=1)], dim=1)
    return affine(images, matrix, torch.zeros(len(images), 2))


def rotation(images: Tensor, severity: int, generator: Generator) -> Tensor:
    """Turn the picture to the left or to the right."""
    degrees = constants("rotation", images, severity)
    return rotate(images, degrees * random_sign(spawn(generator, len(images)))).clamp(0, 1)


def translation(images: Tensor, severity: int, generator: Generator) -> Tensor:
    """Shift the picture by whole pixels towards one of its corners."""
    pixels = constants("translation", images, severity)
    shift = pixels * random_sign(spawn(generator, len(images)), 2)
    return affine(images, torch.eye(2).expand(len(images), 2, 2), shift).clamp(0, 1)


def scale(images: Tensor, severity: int, generator: Generator) -> Tensor:
    """Enlarge or reduce the picture about its centre."""
    factor = constants("scale", images, severity)
    step = factor ** random_sign(spawn(generator, len(images)), 1, 1)
    return affine(images, step * torch.eye(2), torch.zeros(len(images), 2)).clamp(0, 1)


def occlusion(images: Tensor, severity: int, generator: Generator) -> Tensor:
    """Cover a square of the picture with grey. It grows with severity about a random place."""
    side = constants("occlusion", images, severity)
    corner = uniform(spawn(generator, len(images)), 0, 1, 2) * (32 - side + 1)
    start = corner.long()[:, :, None]
    index = torch.arange(32)
    inside = (index >= start) & (index < start + side)  # [N, 2, 32]: rows, columns
    return torch.where((inside[:, 0, :, None] & inside[:, 1, None, :])[:, None], 0.5, images)


FAMILIES = {
    "noise": (gaussian_noise, shot_noise, impulse_noise, speckle_noise),
    "blur": (defocus_blur, glass_blur, motion_blur, zoom_blur, gaussian_blur),
    "weather": (snow, frost, fog, brightness, spatter),
    "digital": (contrast, elastic_transform, pixelate, jpeg_compression, saturate),
    "geometry": (rotation, translation, scale, occlusion),
}
CORRUPTIONS = {function.__name__: function for family in FAMILIES.values() for function in family}
GEOMETRY = [function.__name__ for function in FAMILIES["geometry"]]
EXTRA = ["speckle_noise", "gaussian_blur", "spatter", "saturate"]  # published beside the fifteen
FIFTEEN = [name for name in CORRUPTIONS if name not in GEOMETRY + EXTRA]


# ---- Attacks ---------------------------------------------------------------------------------------------
#
# The network reads normalised images, the attacker changes images in [0, 1]; the normalisation is inside. All
# of it runs in float32: bfloat16 keeps 8 bits of a number, which would round the smallest changes to nothing.


@contextlib.contextmanager
def evaluating(model: nn.Module) -> Iterator[torch.device]:
    """Run a block in eval mode and full float32 and restore the modes; yields the model's device."""
    modes = {module: module.training for module in model.modules()}
    device = next(model.parameters()).device
    try:
        tf32_off = torch.backends.cudnn.flags(enabled=True, allow_tf32=False)
        with torch.autocast(device.type, enabled=False), tf32_off:
            model.eval()
            yield device
    finally:
        for module, mode in modes.items():
            module.training = mode


def attack_step(model: nn.Module, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return the loss [N], whether each image is misclassified, bool [N], and the loss's gradient."""
    with torch.enable_grad():
        images = images.detach().requires_grad_()
        logits = model(data.normalize(images))
        loss = F.cross_entropy(logits, labels, reduction="none")
        # Only the images' gradient is asked for: nothing is left in the parameters' .grad.
        (gradient,) = torch.autograd.grad(loss.sum(), images)
    return loss.detach(), logits.argmax(dim=1) != labels, gradient


def ball(images: Tensor, epsilon: float) -> tuple[Tensor, Tensor]:
    """Return the lowest and highest float32 images within epsilon of `images` and within [0, 1], exactly.

    In float64 on the CPU, because not every device has float64; the results are on the images' device.
    """
    device, images = images.device, images.cpu()
    exact_low, exact_high = images.double() - epsilon, images.double() + epsilon
    low, high = exact_low.float(), exact_high.float()
    # Rounding to float32 may have stepped out of the ball; the next number inwards is inside.
    low = torch.where(low.double() < exact_low, low.nextafter(torch.tensor(2.0)), low)
    high = torch.where(high.double() > exact_high, high.nextafter(torch.tensor(-1.0)), high)
    return low.clamp(min=0).to(device), high.clamp(max=1).to(device)


def fgsm(model: nn.Module, images: Tensor, labels: Tensor, epsilon: float) -> Tensor:
    """Fast gradient sign method: x' = x + epsilon sign(grad_x J(x, y)), cut to [0, 1].

    images float32 [N, 3, H, W] in [0, 1], labels int64 [N], epsilon in the images' units. The model takes
    normalised images. Returns images of the same shape, at most epsilon away in every value, on the model's
    device. Source: Goodfellow, Shlens and Szegedy 2015 (arXiv 1412.6572), section 4.
    """
    with evaluating(model) as device:
        images, labels = images.to(device), labels.to(device)
        gradient = attack_step(model, images, labels)[2]
        low, high = ball(images, epsilon)
        return (images + epsilon * gradient.sign()).clamp(low, high)


def pgd(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    epsilon: float,
    generator: Generator,
    steps: int = PGD_STEPS,
    restarts: int = 1,
) -> Tensor:
    """Projected gradient descent on the negative loss, within epsilon of the images in every value.

        x_{t+1} = Proj( x_t + a sign(grad_x J(x_t, y)) ),   x_0 uniform in the ball,   a = 2.5 epsilon / steps

    The projection onto the ball and [0, 1] is a clamp; a lets each point be reached from any start. Of all
    points visited the attack returns a misclassified one if there is any, and among those the one with the
    largest loss. A restart works only on the images that still stand. Arguments and result as in fgsm; the
    starts follow the rule for randomness of the corruptions. Source: Madry et al. 2018 (arXiv 1706.06083),
    section 2.1; the step is that of its section 5.
    """
    with evaluating(model) as device:
        images, labels = images.to(device), labels.to(device)
        low, high = ball(images, epsilon)
        best, best_loss = images.clone(), torch.full((len(images),), -math.inf, device=device)
        fooled = torch.zeros(len(images), dtype=torch.bool, device=device)
        generators = spawn(generator, len(images))
        for _ in range(restarts):
            start = images + epsilon * uniform(generators, -1, 1, *images.shape[1:]).to(device)
            standing = (~fooled).nonzero()[:, 0]
            if len(standing) == 0:
                break
            x = start.clamp(low, high)[standing]
            for step in range(steps + 1):
                loss, wrong, gradient = attack_step(model, x, labels[standing])
                better = (wrong > fooled[standing]) | (
                    (wrong == fooled[standing]) & (loss > best_loss[standing])
                )
                best[standing[better]], best_loss[standing[better]] = x[better], loss[better]
                fooled[standing[better]] = wrong[better]
                if step < steps:
                    x = (x + 2.5 * epsilon / steps * gradient.sign()).clamp(low[standing], high[standing])
        return best


def random_corner(images: Tensor, epsilon: float, generator: Generator) -> Tensor:
    """Change every value by epsilon up or down at random, cut to [0, 1]: what an attack must beat."""
    low, high = ball(images, epsilon)
    sign = random_sign(spawn(generator, len(images)), *images.shape[1:])
    return (images + epsilon * sign.to(images)).clamp(low, high)


def check_attacks(clean: float, attacks: dict[str, list[float]], more_steps: float) -> list[dict]:
    """Look for signs that the attack is weak rather than the network robust.

    clean is the accuracy without attack; attacks holds the accuracies at each of RADII under "fgsm", "pgd"
    and "random"; more_steps is that under PGD with twice the steps at MORE_STEPS_RADIUS. Returns one dict for
    each check: name, passed, and detail with the numbers. Source: Athalye, Carlini and Wagner 2018 (arXiv
    1802.00420), section 3.1; Carlini et al. 2019 (arXiv 1902.06705), "basic sanity tests".
    """
    checks = []

    def check(name: str, passed: bool, detail: str) -> None:
        checks.append({"name": name, "passed": passed, "detail": detail})

    def compare(name: str, stronger: list[float], weaker: list[float]) -> None:
        wrong = [
            f"{radius:g}/255: {100 * a:.1f} % > {100 * b:.1f} %"
            for radius, a, b in zip(RADII, stronger, weaker, strict=True)
            if a > b
        ]
        check(name, not wrong, "; ".join(wrong) or "at every radius")

    # Not asked of FGSM, whose one long step may well leave the region where its gradient holds.
    compare(
        "a larger radius does not raise the accuracy under PGD", attacks["pgd"], [clean, *attacks["pgd"][:-1]]
    )
    compare("PGD is at least as strong as FGSM", attacks["pgd"], attacks["fgsm"])
    compare("PGD is at least as strong as random noise", attacks["pgd"], attacks["random"])
    last = attacks["pgd"][-1]
    check("a large radius brings the accuracy to zero", last == 0, f"{100 * last:.1f} % at {RADII[-1]:g}/255")
    few = attacks["pgd"][RADII.index(MORE_STEPS_RADIUS)]
    detail = f"{100 * few:.1f} % with {PGD_STEPS}, {100 * more_steps:.1f} % with {2 * PGD_STEPS} steps"
    check("more steps do not weaken PGD", more_steps <= few, f"{detail} at {MORE_STEPS_RADIUS:g}/255")
    return checks


# ---- Are explanations faithful? --------------------------------------------------------------------------


@torch.no_grad()
def deletion_insertion(
    model: nn.Module, images: Tensor, maps: Tensor, classes: Tensor, steps: int = 32, mode: str = "deletion"
) -> tuple[Tensor, Tensor]:
    """Delete or insert pixels in the order of a map, largest first, and watch the probability of a class.

    images float32 [N, 3, H, W] in [0, 1]; maps float [N, H, W]; classes int64 [N]. Deletion starts from the
    image and puts the data's mean colour in place of the pixels; insertion starts from the image blurred by a
    Gaussian of standard deviation H / 8 and puts the pixels back. Ties go in reading order. Step k of `steps`
    has moved the share k / steps of the pixels.

    Returns the softmax probability of the class after each step, float32 [N, steps + 1], and the area under
    each curve, float32 [N] in [0, 1], by the trapezoidal rule. A faithful map has a small area for deletion
    and a large one for insertion. Source: Petsiuk, Das and Saenko, "RISE", 2018 (arXiv 1806.07421), section
    4, evaluation metrics. Raises ValueError for another mode or shapes that do not fit.
    """
    if mode not in ("deletion", "insertion"):
        raise ValueError(f"mode must be deletion or insertion, not {mode}")
    if maps.shape != images[:, 0].shape or classes.shape != maps.shape[:1]:
        shapes = f"{list(images.shape)}, {list(maps.shape)} and {list(classes.shape)}"
        raise ValueError(f"images [N, 3, H, W], maps [N, H, W] and classes [N] expected, not {shapes}")
    with evaluating(model) as device:
        images, maps, classes = images.to(device), maps.to(device), classes.to(device)
        picture = data.normalize(images)
        start, end = picture, torch.zeros_like(picture)  # zero is the mean
        if mode == "insertion":
            start, end = data.normalize(blur(images, images.shape[-1] / 8)), picture
        order = maps.flatten(1).argsort(dim=1, descending=True, stable=True)
        rank = order.argsort(dim=1).view_as(maps)[:, None]
        curve = []
        for step in range(steps + 1):
            moved = rank < step / steps * maps[0].numel()
            probabilities = model(torch.where(moved, end, start)).softmax(dim=1)
            curve.append(probabilities.gather(1, classes[:, None])[:, 0])
    curves = torch.stack(curve, dim=1)
    return curves, torch.trapezoid(curves, dx=1 / steps, dim=1)


def spearman(a: Tensor, b: Tensor) -> Tensor:
    """Return Spearman's rank correlation of the rows of a and b [N, K], float64 [N]; NaN for a constant row.

    Pearson's correlation of the ranks, tied values sharing the mean of their ranks.
    """

    def centred_ranks(x: Tensor) -> Tensor:
        # The mean rank of x_i, less (K + 1) / 2, is half of (number below - number above).
        return (x[:, :, None] - x[:, None, :]).sign().sum(dim=2).double() / 2

    a, b = centred_ranks(a), centred_ranks(b)
    return (a * b).sum(dim=1) / ((a * a).sum(dim=1) * (b * b).sum(dim=1)).sqrt()


def randomization_check(model: nn.Module, images: Tensor, layer: str, seed: int = SEED) -> dict[str, Tensor]:
    """Replace weights by random ones, from the classifier downwards, and compare Grad-CAM maps with the old.

    An explanation that does not change when the network forgets what it learned does not explain the network.
    images float [N, 3, H, W], normalised; layer is a name that GradCAM takes. The classes explained are those
    that the trained model predicts. A copy is changed, the model itself is not.

    Returns {child of the model, in the order of randomising: rank correlation float64 [N] between the maps of
    the trained model and those with this child and all above it random}; NaN where a map is empty. Source:
    Adebayo et al., "Sanity Checks for Saliency Maps", 2018 (arXiv 1810.03292), section 3, cascading
    randomisation.
    """
    model = copy.deepcopy(model)
    with evaluating(model), torch.no_grad():
        classes = model(images).argmax(dim=1)
    with GradCAM(model, layer) as cam:
        trained = cam(images, classes).flatten(1).cpu()
    correlations = {}
    for name, child in reversed(list(model.named_children())):
        if not list(child.parameters()):
            continue
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            for module in child.modules():
                if isinstance(module, nn.Conv2d):
                    nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
                elif isinstance(module, nn.Linear | nn.BatchNorm2d):
                    module.reset_parameters()
        with GradCAM(model, layer) as cam:
            correlations[name] = spearman(trained, cam(images, classes).flatten(1).cpu())
    return correlations


# ---- The command -----------------------------------------------------------------------------------------


def stratified_sample(labels: Tensor, count: int) -> Tensor:
    """Return the indices, int64 and ascending, of about `count` images with the same number of each class.

    The number is rounded up, and a class with fewer images gives all. A smaller sample is part of a larger
    one, and len(labels) images are all there are, whatever the classes.
    """
    if count >= len(labels):
        return torch.arange(len(labels))
    generator = Generator().manual_seed(SEED)
    order = torch.randperm(len(labels), generator=generator)
    classes = labels.unique()
    quota = math.ceil(count / len(classes))
    return torch.cat([order[labels[order] == c][:quota] for c in classes]).sort().values


def share(successes: int, n: int) -> dict[str, float]:
    """Return a share and its 95 % interval as a dict: value, low, high."""
    low, high = metrics.wilson_interval(successes, n)
    return {"value": successes / n, "low": low, "high": high}


def corrupt(images: Tensor, name: str, severity: int) -> Tensor:
    """Corrupt uint8 images [N, 3, 32, 32] and round to uint8 again, as a file would hold them.

    Every severity of a corruption starts from the same seed, so only the severity differs.
    """
    generator = Generator().manual_seed(1000 * SEED + list(SEVERITIES).index(name))
    batches = [CORRUPTIONS[name](batch / 255, severity, generator) for batch in images.split(500)]
    return (torch.cat(batches) * 255).round().to(torch.uint8)


def measure(logits: Tensor, labels: Tensor) -> dict:
    """Return the record of a corruption: accuracy, confidence, ECE, right answers of each class."""
    probabilities = logits.softmax(dim=1)
    right = labels[logits.argmax(dim=1) == labels]
    return {
        "accuracy": share(len(right), len(labels)),
        "mean_confidence": probabilities.amax(dim=1).mean().item(),
        "ece": metrics.expected_calibration_error(labels, probabilities),
        "correct_per_class": right.bincount(minlength=logits.shape[1]).tolist(),
    }


def measure_attack(
    model: nn.Module, images: Tensor, labels: Tensor, name: str, radius: float, steps: int
) -> dict:
    """Return what is recorded of an attack on uint8 images: the accuracy. Images already wrong stay wrong."""
    generator = Generator().manual_seed(SEED)
    attack = {
        "none": lambda x, y: x,
        "fgsm": lambda x, y: fgsm(model, x, y, radius / 255),
        "pgd": lambda x, y: pgd(model, x, y, radius / 255, generator, steps, PGD_RESTARTS),
        "random": lambda x, y: random_corner(x, radius / 255, generator),
    }[name]
    correct = 0
    with evaluating(model) as device, torch.no_grad():
        for x, y in zip(images.to(device).split(100), labels.to(device).split(100), strict=True):
            x = x / 255
            right = model(data.normalize(x)).argmax(dim=1) == y
            if right.any():
                x, y = x[right], y[right]
                correct += (model(data.normalize(attack(x, y))).argmax(dim=1) == y).sum().item()
    return {"accuracy": share(correct, len(labels))}


def summarise(tests: dict, class_sizes: list[int], class_names: list[str]) -> dict:
    """Return means over the corruptions and the classes that break first, from the records of all tests.

    The interval of a mean accuracy is that of one test on as many images: the same images come back in every
    test, so counting them again gains little; it errs on the wide side.
    """
    n = sum(class_sizes)
    severities = range(1, 6)
    groups = {"fifteen": FIFTEEN, "extra": EXTRA, "geometry": GEOMETRY, "all": CORRUPTIONS}
    summary = {"mean_accuracy": {}, "mean_confidence": {}, "mean_ece": {}}
    for group, names in groups.items():
        records = [tests[f"{name}/{severity}"] for name in names for severity in severities]
        mean = float(np.mean([record["accuracy"]["value"] for record in records]))
        summary["mean_accuracy"][group] = share(round(n * mean), n) | {"value": mean}
        summary["mean_confidence"][group] = float(np.mean([record["mean_confidence"] for record in records]))
        summary["mean_ece"][group] = float(np.mean([record["ece"] for record in records]))
    summary["confidence_by_severity"] = [
        float(np.mean([tests[f"{name}/{severity}"]["mean_confidence"] for name in CORRUPTIONS]))
        for severity in severities
    ]
    corrupted = np.mean([record["correct_per_class"] for record in records], axis=0)  # of all: the last group
    classes = []
    for name, size, before, after in zip(
        class_names, class_sizes, tests["clean/0"]["correct_per_class"], corrupted.tolist(), strict=True
    ):
        if size > 0:
            drop = (before - after) / size
            classes.append({"class": name, "clean": before / size, "corrupted": after / size, "drop": drop})
    summary["classes_that_break_first"] = sorted(classes, key=lambda row: -row["drop"])[:10]
    return summary


def draw(results: dict, images: Tensor) -> dict[str, Figure]:
    """Return the plots of finished results; the examples are drawn from uint8 images [N, 3, 32, 32]."""
    tests, radii = results["tests"], results["radii"]
    panels = {}
    for family, functions in FAMILIES.items():
        names = [function.__name__ for function in functions]
        panels[family] = {
            name: [tests[f"{name}/{severity}"]["accuracy"]["value"] for severity in range(1, 6)]
            for name in names
        }
    attacks = {name: [tests[f"{name}/{radius:g}"]["accuracy"] for radius in radii] for name in ATTACKS}
    # The example is the image whose mean is nearest to mid-grey: a white one would not show fog or snow.
    middle = (images.float().mean(dim=(1, 2, 3)) - 127.5).abs().argmin()
    example = images[middle : middle + 1]
    pictures = {}
    for name in CORRUPTIONS:
        row = torch.cat([example, *(corrupt(example, name, severity) for severity in range(1, 6))])
        pictures[name] = row.permute(0, 2, 3, 1).numpy()
    clean, unattacked = (tests[name]["accuracy"]["value"] for name in ("clean/0", "none/0"))
    return {
        "stress_severity": plots.stress_severity(panels, clean, results["summary"]["confidence_by_severity"]),
        "stress_radius": plots.stress_radius(radii, attacks, unattacked),
        "stress_examples": plots.stress_examples(pictures),
    }


def report(results: dict) -> None:
    """Print the results as aligned tables."""
    tests, summary = results["tests"], results["summary"]
    means = summary["mean_accuracy"]

    def interval(accuracy: dict) -> str:
        return f"{accuracy['value']:6.1%}  (95 % interval {accuracy['low']:.1%} to {accuracy['high']:.1%})"

    print(f"\naccuracy on {results['corruption_images']:,} images by severity")
    print(f"{'':20}{'1':>7}{'2':>7}{'3':>7}{'4':>7}{'5':>7}{'mean':>8}")
    for name in CORRUPTIONS:
        row = [tests[f"{name}/{severity}"]["accuracy"]["value"] for severity in range(1, 6)]
        print(f"{name:20}" + "".join(f"{value:7.1%}" for value in row) + f"{np.mean(row):8.1%}")
    clean = tests["clean/0"]
    print(f"\n{'clean':28}{interval(clean['accuracy'])}")
    print(f"{'the fifteen of CIFAR-C':28}{interval(means['fifteen'])}")
    print(f"{'all corruptions':28}{interval(means['all'])}")
    print(f"{'mean confidence':28}{summary['mean_confidence']['all']:6.1%}  on all corruptions", end="")
    print(f" (clean {clean['mean_confidence']:.1%})")
    print(f"{'calibration error (ECE)':28}{summary['mean_ece']['all']:6.1%}  on all corruptions", end="")
    print(f" (clean {clean['ece']:.1%})")
    worst = [row for row in summary["classes_that_break_first"][:5] if row["drop"] > 0]
    first = ", ".join(f"{row['class']} {100 * row['drop']:.0f}" for row in worst) or "none"
    each = results["corruption_images"] // len(clean["correct_per_class"])
    print(f"{'classes that lose most':28}{first}  (percentage points; {each} images each)")

    print(f"\naccuracy on {results['attack_images']:,} images by radius in 1/255")
    print(f"{'':20}" + "".join(f"{radius:7g}" for radius in RADII))
    for name in ATTACKS:
        values = [tests[f"{name}/{radius:g}"]["accuracy"]["value"] for radius in RADII]
        print(f"{name:20}" + "".join(f"{value:7.1%}" for value in values))
    print("\nchecks against a false sense of robustness")
    for check in results["checks"]:
        print(f"{'passed' if check['passed'] else 'FAILED':8}{check['name']}: {check['detail']}")


def main(argv: list[str] | None = None) -> int:
    """Run all tests of one checkpoint that stress.json does not hold yet; return the exit code."""
    parser = runs.CommandLine(description=__doc__)
    parser.add_argument("--run", help="the run folder (default: the newest under runs/)")
    parser.add_argument("--checkpoint", metavar="FILE", help="the checkpoint (default: best.pt of the run)")
    parser.add_argument("--data-dir", help="where CIFAR-100 lies (default: where training found it)")
    parser.add_argument("--full", action="store_true", help="all test images; hours without a GPU")
    args = parser.parse_args(argv)

    path = runs.find_checkpoint(args.run, args.checkpoint)
    out = runs.results_folder(args.run, args.checkpoint)
    device = runs.pick_device("auto")
    precision = runs.pick_precision("auto", device)
    model, checkpoint = runs.load_model(path, device)
    _, test = runs.load_data(path, checkpoint, args.data_dir)

    # The sample, and what the results depend on: if any of it changed, everything is measured anew.
    n = len(test.labels)
    index = stratified_sample(test.labels, n if args.full else CORRUPTION_IMAGES)
    images, labels = test.images[index], test.labels[index]
    index = stratified_sample(labels, n if args.full else ATTACK_IMAGES)
    attack_images, attack_labels = images[index], labels[index]
    settings = f"{SEED} {SEVERITIES} {RADII} {PGD_STEPS} {PGD_RESTARTS} {MORE_STEPS_RADIUS} {precision}"
    sample = images.numpy().tobytes() + labels.numpy().tobytes() + index.numpy().tobytes()
    results = {
        "fingerprint": {
            "checkpoint": hashlib.sha256(path.read_bytes()).hexdigest(),
            "sample": hashlib.sha256(sample).hexdigest(),
            "settings": hashlib.sha256(settings.encode()).hexdigest(),
        },
        "checkpoint": path.name,
        "dataset": test.name,
        "provenance": test.provenance,
        "seed": SEED,
        "precision": {"corruptions": precision, "attacks": "fp32"},
        "corruption_images": len(labels),
        "attack_images": len(attack_labels),
        "radii": RADII,
        "tests": {},
    }
    file = out / "stress.json"
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
        old = json.loads(file.read_text(encoding="utf-8"))
        if old["fingerprint"] == results["fingerprint"]:
            results["tests"] = old["tests"]
        else:
            file.replace(out / "stress-old.json")
            print(f"note     {file} is of another checkpoint, sample or setting: kept as stress-old.json")
    print(f"data     {test.provenance}")
    print(f"sample   {len(labels):,} images for corruptions, {len(attack_labels):,} for attacks")
    print(f"compute  {device}, {precision} (attacks fp32), {torch.get_num_threads()} threads")

    # Every test is a name, a level (severity or radius) and its cost in forward passes, for the time left. A
    # step of an attack, forwards and backwards in fp32, costs about two passes in fp32 or five in bf16.
    n, attacked = len(labels), len(attack_labels)
    step = 2 if precision == "fp32" else 5
    passes = {"none": 2, "random": 3, "fgsm": 2 + step, "pgd": step * PGD_STEPS}
    plan = [("clean", 0, n)]
    plan += [(name, severity, n) for name in CORRUPTIONS for severity in range(1, 6)]
    plan += [("none", 0, passes["none"] * attacked)]
    plan += [(name, radius, passes[name] * attacked) for name in ATTACKS for radius in RADII]
    plan += [("pgd_more_steps", MORE_STEPS_RADIUS, 2 * passes["pgd"] * attacked)]
    done = 0
    with runs.Progress("stress", sum(cost for _, _, cost in plan)) as progress:
        for name, level, cost in plan:
            key = f"{name}/{level:g}"
            progress.update(done, test=key)
            if key not in results["tests"]:
                if name == "clean":
                    record = measure(predict(model, images, device, precision), labels)
                elif name in CORRUPTIONS:
                    logits = predict(model, corrupt(images, name, level), device, precision)
                    record = measure(logits, labels)
                else:
                    kind, steps = ("pgd", 2 * PGD_STEPS) if name == "pgd_more_steps" else (name, PGD_STEPS)
                    record = measure_attack(model, attack_images, attack_labels, kind, level, steps)
                results["tests"][key] = record
                runs.write_json(file, results)
            done += cost

    class_sizes = labels.bincount(minlength=len(test.class_names)).tolist()
    results["summary"] = summarise(results["tests"], class_sizes, test.class_names)
    accuracy = {key: record["accuracy"]["value"] for key, record in results["tests"].items()}
    attacks = {name: [accuracy[f"{name}/{radius:g}"] for radius in RADII] for name in ATTACKS}
    more_steps = accuracy[f"pgd_more_steps/{MORE_STEPS_RADIUS:g}"]
    results["checks"] = check_attacks(accuracy["none/0"], attacks, more_steps)
    runs.write_json(file, results)
    for name, figure in draw(results, test.images).items():
        with runs.whole_file(out / "plots" / f"{name}.png") as temporary:
            plots.save_png(figure, temporary)
    report(results)
    print(f"\nsaved    {file} and {out}/plots/stress_*.png")
    source = ["--checkpoint", str(path)] if args.checkpoint else ["--run", str(out)]
    print(f"next     python report.py {shlex.join(source)}")
    return 0


if __name__ == "__main__":
    runs.run_main(main)

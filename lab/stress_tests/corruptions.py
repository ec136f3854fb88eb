"""Corruptions: what may happen to a picture before the network sees it.

They are eighteen of CIFAR-10-C and ImageNet-C: Hendrycks and Dietterich, "Benchmarking Neural Network
Robustness to Common Corruptions and Perturbations", 2019 (arXiv 1903.12261). Each has five severities.

    CORRUPTIONS["fog"](images, severity=3, generator=generator)     float32 [N, 3, S, S] in [0, 1]
    corrupt(images, "fog", severity=3)                              uint8, with the seed of fog

The side S is at least 8. Up to 64 pixels the constants are those of CIFAR-10-C, for larger sides those of
ImageNet-C, which are meant for 224. Lengths in pixels do not grow with S inside of these two ranges. The two
published codes differ in little but constants; glass_blur, frost and plasma, the clouds of fog, say in what.

To add a corruption, write one function and one row of TABLE, which holds the constants.

Randomness: every image has a random generator of its own, seeded by the next number of the generator that the
caller gives. So the result for an image depends on its place in the sequence, not on the other images or on
how the sequence is cut into batches: corrupting a and then b gives the same as corrupting the batch (a, b).
"""

import math
import zlib
from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from torch import Generator, Tensor
from torchvision.io import decode_jpeg, encode_jpeg


def check_range(images: Tensor) -> None:
    """Raise ValueError unless all values of images are in [0, 1]."""
    if not ((images >= 0) & (images <= 1)).all():
        low, high = images.min().item(), images.max().item()
        raise ValueError(
            f"images must be in [0, 1], not from {low} to {high}: "
            f"bytes are divided by 255, and the model normalises"
        )


# ---- Random numbers --------------------------------------------------------------------------------------


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


def random_sign(generators: list[Generator], *shape: int) -> Tensor:
    """Draw -1.0 or 1.0 with equal probability, one [*shape] from each generator; float32 [N, *shape]."""
    return torch.where(uniform(generators, 0, 1, *shape) < 0.5, -1.0, 1.0)


# ---- Filters and coordinates -----------------------------------------------------------------------------


def filter_image(images: Tensor, kernels: Tensor, border: str = "replicate") -> Tensor:
    """Replace each pixel by a weighted sum of its neighbours; `border` is a mode of torch's pad.

        out(y, x) = sum over i and j from -r to r of kernel(r + i, r + j) in(y + i, x + j)

    images [N, C, H, W]; kernels [K, K] for all images or [N, K, K], one for each image; K = 2 r + 1.
    """
    n, c, h, w = images.shape
    side = kernels.shape[-1]
    padded = F.pad(images, (side // 2,) * 4, mode=border)
    kernel_of_channel = kernels.expand(n, side, side).repeat_interleave(c, dim=0)[:, None].to(images)
    # One convolution with a group for each channel of each image.
    return F.conv2d(padded.flatten(0, 1)[None], kernel_of_channel, groups=n * c).view(n, c, h, w)


def gaussian_weights(sigma: float, radius: int) -> Tensor:
    """Return a Gaussian at the pixels -radius to radius, scaled to sum 1; float64 [2 radius + 1]."""
    offsets = torch.arange(-radius, radius + 1, dtype=torch.float64)
    return torch.softmax(-(offsets**2) / (2 * sigma**2), dim=0)


def blur(images: Tensor, sigma: float) -> Tensor:
    """Blur images [N, C, H, W] with a Gaussian, sigma in pixels, cut at 4 sigma."""
    weights = gaussian_weights(sigma, int(4 * sigma + 0.5))
    return filter_image(images, weights[:, None] * weights[None, :])


def motion_kernel(radius: int, sigma: float, degrees: Tensor) -> Tensor:
    """Return kernels that smear along a line, float64 [N, K, K], each with sum 1; degrees float [N].

    This is the rule of ImageMagick's motion blur, which the original calls: the weights are one half of a
    Gaussian, at 2 radius + 1 steps of one pixel in the direction `degrees`, clockwise from the right, and
    each step is rounded to the nearest pixel.
    """
    steps = torch.arange(2 * radius + 1)
    weights = torch.softmax(-(steps.double() ** 2) / (2 * sigma**2), dim=0)
    angle = torch.deg2rad(degrees.double())[:, None]
    side = 4 * radius + 1
    column = (steps * angle.cos()).round().long() + 2 * radius
    row = (steps * angle.sin()).round().long() + 2 * radius
    kernels = torch.zeros(len(degrees), side * side, dtype=torch.float64)
    kernels.scatter_add_(1, row * side + column, weights.expand(len(degrees), -1))
    return kernels.view(-1, side, side)


def zoom(images: Tensor, factor: float) -> Tensor:
    """Enlarge the middle of images [N, C, H, H] bilinearly and crop to the old size; factor >= 1."""
    side = images.shape[-1]
    crop = math.ceil(side / factor)
    start = (side - crop) // 2
    middle = images[..., start : start + crop, start : start + crop]
    large = F.interpolate(middle, size=round(crop * factor), mode="bilinear", align_corners=True)
    start = (large.shape[-1] - side) // 2
    return large[..., start : start + side, start : start + side]


def warp(images: Tensor, x: Tensor, y: Tensor, repeat_edge: bool = True) -> Tensor:
    """Read images [N, C, S, S] bilinearly at the pixel coordinates x and y [N, S, S].

    Outside of the image is its mirror image; `repeat_edge` says whether that repeats the pixels of the edge.
    """
    side = images.shape[-1]
    grid = torch.stack([x, y], dim=-1)
    if repeat_edge:
        grid = (2 * grid + 1) / side - 1
    else:
        grid = 2 * grid / (side - 1) - 1
    return F.grid_sample(images, grid.to(images), padding_mode="reflection", align_corners=not repeat_edge)


def affine(images: Tensor, matrix: Tensor, shift: Tensor, repeat_edge: bool = True) -> Tensor:
    """Read images at matrix @ (position from the centre) + shift; [N, 2, 2] and [N, 2], x before y."""
    side = images.shape[-1]
    centre = (side - 1) / 2
    offsets = torch.arange(side) - centre
    position = torch.stack(torch.meshgrid(offsets, offsets, indexing="xy")).flatten(1)  # [2, S S]: x, y
    source = (matrix @ position + shift[:, :, None] + centre).view(-1, 2, side, side)
    return warp(images, source[:, 0], source[:, 1], repeat_edge)


def grey_levels(images: Tensor) -> Tensor:
    """Return the luma of images [N, 3, H, W], [N, 1, H, W]: 0.299 red + 0.587 green + 0.114 blue."""
    weights = torch.tensor([0.299, 0.587, 0.114]).to(images)
    return (images * weights[:, None, None]).sum(dim=1, keepdim=True)


def round_down(images: Tensor) -> Tensor:
    """Round values in [0, 1] down to whole levels of 255, as a cast to bytes does; float32 [...].

    A float32 value up to 1e-4 of a level below a whole level counts as that level.
    """
    return (images * 255 + 1e-4).floor() / 255


# ---- The corruptions -------------------------------------------------------------------------------------
# Functions of images float32 [N, 3, S, S] in [0, 1], of one random generator for each image, and of
# constants, which TABLE gives for each severity; values of the result below 0 or above 1 are clipped later.


def gaussian_noise(images: Tensor, generators: list[Generator], sigma: float) -> Tensor:
    """Add normal noise: the grain of a picture taken in low light."""
    return images + sigma * normal(generators, *images.shape[1:])


def shot_noise(images: Tensor, generators: list[Generator], photons: float) -> Tensor:
    """Count photons: Poisson with mean `photons` x value."""
    counts = [torch.poisson(image * photons, each) for image, each in zip(images, generators, strict=True)]
    return torch.stack(counts) / photons


def impulse_noise(images: Tensor, generators: list[Generator], fraction: float) -> Tensor:
    """Salt and pepper: replace a fraction of the values, independently in each channel, by 0 or 1."""
    draw = uniform(generators, 0, 1, *images.shape[1:])
    return torch.where(draw < fraction, (draw < fraction / 2).float(), images)


def speckle_noise(images: Tensor, generators: list[Generator], sigma: float) -> Tensor:
    """Add normal noise in proportion to the value."""
    return images + images * sigma * normal(generators, *images.shape[1:])


def defocus_blur(images: Tensor, generators: list[Generator], radius: float, sigma: float) -> Tensor:
    """Blur with a disc whose edge is softened by a Gaussian: a lens out of focus.

    As published the Gaussian has 3x3 pixels up to a radius of 8 and 5x5 above, and the disc lies in a square
    that from a radius of 8 on it touches, so that the Gaussian meets the mirror image of the disc there.
    """
    reach = 3 if radius < 2 else max(8, int(radius))  # a small disc leaves most of 17x17 pixels 0
    offsets = torch.arange(-reach, reach + 1, dtype=torch.float64)
    disc = (offsets[:, None] ** 2 + offsets[None, :] ** 2 <= radius**2).double()
    weights = gaussian_weights(sigma, 1 if radius <= 8 else 2)
    soft = filter_image((disc / disc.sum())[None, None], weights[:, None] * weights, border="reflect")[0, 0]
    return filter_image(images, soft, border="reflect")


def glass_blur(images: Tensor, generators: list[Generator], sigma: float, reach: int, rounds: int) -> Tensor:
    """Frosted glass: blur, move pixels to the place of one at most `reach` pixels away, blur again.

    The published code is written to swap two pixels, but it swaps views of one array, which copies: from the
    last pixel to the first, each but those near the edge takes the value of a pixel from `reach` pixels above
    and to the left to `reach` - 1 below and to the right. Published results were measured on those pictures,
    so this function copies as well, and it rounds down after the first blur. With a reach of 1, as for CIFAR,
    a pixel takes what was there before; with more, as for ImageNet, a value may be handed on many times.
    """
    side = images.shape[-1]
    place = torch.arange(side * side)
    row, column = place // side, place % side
    changes = (torch.minimum(row, column) > reach) & (torch.maximum(row, column) <= side - reach)
    images = round_down(blur(images, sigma))
    for _ in range(rounds):
        offsets = uniform(generators, 0, 2 * reach, 2, side, side).long() - reach  # of rows and of columns
        offsets = (side * offsets[:, 0] + offsets[:, 1]).flatten(1)
        source = place + torch.where(changes, offsets, 0)  # int64 [N, S S], of each pixel
        # A source further on already has its new value, that of its own source: each turn of the loop goes
        # from there to the source of the source, which doubles the steps.
        is_new = source > place
        while is_new.any():
            next_source, next_is_new = source.gather(1, source), is_new.gather(1, source)
            source, is_new = torch.where(is_new, next_source, source), is_new & next_is_new
        images = images.flatten(2).gather(2, source[:, None].expand(-1, 3, -1)).view_as(images)
    return blur(images, sigma)


def motion_blur(images: Tensor, generators: list[Generator], radius: int, sigma: float) -> Tensor:
    """Smear along a line within 45 degrees of the horizontal."""
    degrees = uniform(generators, -45, 45)
    return filter_image(images, motion_kernel(radius, sigma, degrees))


def zoom_blur(images: Tensor, generators: list[Generator], end: float, step: float) -> Tensor:
    """Average the picture with enlargements by 1, 1 + step, ..., as of a camera that moves forward."""
    # np.arange because its rounding decides whether the last factor belongs to the range, as in the original.
    zoomed = [zoom(images, factor) for factor in np.arange(1, end, step).tolist()]
    return torch.stack([images, *zoomed]).mean(dim=0)


def gaussian_blur(images: Tensor, generators: list[Generator], sigma: float) -> Tensor:
    """Blur with a Gaussian."""
    return blur(images, sigma)


def snow(
    images: Tensor,
    generators: list[Generator],
    mean: float,
    sigma: float,
    enlargement: float,
    threshold: float,
    blur_radius: int,
    blur_sigma: float,
    kept: float,
) -> Tensor:
    """Whiten the picture and add falling flakes: thresholded noise, smeared, once upright and once turned.

    The layer of flakes is in whole levels before and after it is smeared.
    """
    flakes = zoom(mean + sigma * normal(generators, 1, *images.shape[2:]), enlargement)
    flakes = round_down(torch.where(flakes < threshold, 0, flakes).clamp(0, 1))
    flakes = filter_image(flakes, motion_kernel(blur_radius, blur_sigma, uniform(generators, -135, -45)))
    flakes = (flakes * 255).round() / 255
    white = kept * images + (1 - kept) * torch.maximum(images, 1.5 * grey_levels(images) + 0.5)
    return white + flakes + flakes.rot90(2, (2, 3))


# Of the five photographs of ice that the original draws from, in 32x32 crops: the mean brightness, the
# standard deviation inside of a crop, how much both differ from crop to crop, and the tint. The second and
# the third photograph are the same picture in two files.
ICE = {
    "mean": (0.508, 0.802, 0.802, 0.618, 0.448),
    "mean_deviation": (0.042, 0.035, 0.035, 0.039, 0.062),
    "texture": (0.055, 0.071, 0.071, 0.103, 0.134),
    "texture_deviation": (0.010, 0.011, 0.011, 0.008, 0.026),
    "red": (-0.21, -0.024, -0.024, -0.055, -0.045),
    "green": (0.07, -0.006, -0.006, 0.003, -0.001),
    "blue": (0.14, 0.030, 0.030, 0.053, 0.046),
}


def frost(images: Tensor, generators: list[Generator], kept: float, ice_weight: float, fall: float) -> Tensor:
    """Add a layer of ice to the picture.

    The original cuts it from five photographs, which are not part of this project. The layer drawn here has
    the statistics of one of them, and a texture whose power falls with the frequency f as 1 / f^fall, cut out
    of a larger field so that its opposite edges do not fit together. At every size the statistics are those
    of 32x32 crops, which the code for CIFAR takes from photographs reduced to a fifth. ImageNet's does not
    reduce them: at 224 edges are up to 9 % stronger than there and the coarsest waves up to 7 % weaker.
    """
    side = images.shape[-1]
    photograph = uniform(generators, 0, 5).long()
    ice = {name: torch.tensor(values)[photograph, None, None, None] for name, values in ICE.items()}
    frequency = torch.hypot(torch.fft.fftfreq(2 * side)[:, None], torch.fft.rfftfreq(2 * side)[None, :])
    amplitude = torch.where(frequency > 0, frequency ** (-fall / 2), 0)
    spectrum = torch.fft.rfft2(normal(generators, 1, 2 * side, 2 * side)) * amplitude
    texture = torch.fft.irfft2(spectrum)[..., :side, :side]
    texture = texture - texture.mean(dim=(1, 2, 3), keepdim=True)
    deviation = ice["texture"] + ice["texture_deviation"] * normal(generators, 1, 1, 1)
    texture = deviation * texture / texture.std(dim=(1, 2, 3), keepdim=True)
    mean = ice["mean"] + ice["mean_deviation"] * normal(generators, 1, 1, 1)
    tint = torch.cat([ice["red"], ice["green"], ice["blue"]], dim=1)
    return kept * images + ice_weight * (mean + tint + texture).clamp(0, 1)


def midpoint(sum_of_corners: Tensor, amplitude: float, generators: list[Generator]) -> Tensor:
    """Return the mean of four corners plus a number uniform in [-amplitude, amplitude)."""
    return sum_of_corners / 4 + amplitude * uniform(generators, -1, 1, *sum_of_corners.shape[1:])


def plasma(generators: list[Generator], decay: float, side: int) -> Tensor:
    """Draw clouds by the diamond-square algorithm; returns float32 [N, side, side], in [0, 1].

    Start with one value on a grid that wraps around. Then, from coarse to fine, give each square of the grid
    a centre, and then each diamond of two corners and two centres a centre: the mean of its four corners plus
    a random number. From one grid to the next the random numbers get smaller by the factor decay^2, as in the
    published code. As there the side of the grid is a power of two, 32 for CIFAR and 256 for ImageNet, whose
    pictures of 224 get a corner of it. Source: Fournier, Fussell and Carpenter, "Computer rendering of
    stochastic models", 1982.
    """
    step = 2 ** math.ceil(math.log2(side))
    field = torch.zeros(len(generators), step, step)
    amplitude = 1.0
    while step > 1:
        half = step // 2
        corner = field[:, ::step, ::step].clone()
        column_pair = corner + corner.roll(-1, dims=1)  # a corner and the one below it
        row_pair = corner + corner.roll(-1, dims=2)  # a corner and the one to its right
        square = column_pair + column_pair.roll(-1, dims=2)
        centre = midpoint(square, amplitude, generators)
        field[:, half::step, half::step] = centre
        diamond = row_pair + centre + centre.roll(1, dims=1)
        field[:, ::step, half::step] = midpoint(diamond, amplitude, generators)
        diamond = column_pair + centre + centre.roll(1, dims=2)
        field[:, half::step, ::step] = midpoint(diamond, amplitude, generators)
        amplitude /= decay**2
        step = half
    field -= field.amin(dim=(1, 2), keepdim=True)
    return (field / field.amax(dim=(1, 2), keepdim=True))[:, :side, :side]


def fog(images: Tensor, generators: list[Generator], strength: float, decay: float) -> Tensor:
    """Add clouds and scale so that no value exceeds the brightest one of the picture."""
    clouds = plasma(generators, decay, images.shape[-1])[:, None]
    brightest = images.amax(dim=(1, 2, 3), keepdim=True)
    return (images + strength * clouds) * brightest / (brightest + strength)


def brightness(images: Tensor, generators: list[Generator], amount: float) -> Tensor:
    """Add to the value V = max(R, G, B) of HSV.

    Hue and saturation stay, so all three channels grow by one factor, V' / V; black becomes grey.
    """
    value = images.amax(dim=1, keepdim=True)
    brighter = (value + amount).clamp(max=1)
    return torch.where(value > 0, images * brighter / value, brighter)


def contrast(images: Tensor, generators: list[Generator], factor: float) -> Tensor:
    """Move every value towards the mean of its channel."""
    mean = images.mean(dim=(2, 3), keepdim=True)
    return mean + factor * (images - mean)


def mirrored_blur_matrix(side: int, sigma: float) -> Tensor:
    """Return the matrix float32 [side, side] that blurs a row with a Gaussian cut at 3 sigma.

    The row continues as its mirror image, which repeats the values of the edge. The matrix from both sides
    blurs an image. A sigma of 0 changes nothing.
    """
    if sigma == 0:
        return torch.eye(side)
    weights = gaussian_weights(sigma, int(3 * sigma + 0.5)).float()
    source = torch.arange(side)[:, None] + torch.arange(len(weights)) - len(weights) // 2
    source = torch.minimum(source % (2 * side), 2 * side - 1 - source % (2 * side))
    return torch.zeros(side, side).scatter_add(1, source, weights.expand(side, -1))


def elastic_transform(
    images: Tensor, generators: list[Generator], bump_height: float, bump_width: float, corner_shift: float
) -> Tensor:
    """Stretch: move three corners at random (affine), then move every pixel by smooth random bumps.

    The constants are fractions of the picture's side.
    """
    side = images.shape[-1]
    low, high = float(side // 2 - side // 3), float(side // 2 + side // 3)
    corners = torch.tensor([[high, high], [high, low], [low, low]])
    moved = corners + uniform(generators, -corner_shift * side, corner_shift * side, 3, 2)
    # The affine map that takes the moved corners back to where they were says where each pixel is read.
    solution = torch.linalg.solve(F.pad(moved, (0, 1), value=1.0), corners.expand_as(moved))  # [N, 3, 2]
    matrix = solution[:, :2].mT
    centre = (side - 1) / 2
    shift = (matrix @ torch.full((2, 1), centre))[..., 0] + solution[:, 2] - centre
    images = affine(images, matrix, shift, repeat_edge=False)
    smooth = mirrored_blur_matrix(side, bump_width * side)
    bumps = bump_height * side * (smooth @ uniform(generators, -1, 1, 2, side, side) @ smooth.T)
    grid = torch.arange(side)
    return warp(images, grid + bumps[:, 0], grid[:, None] + bumps[:, 1])


def box_matrix(size: int, new_size: int) -> Tensor:
    """Return the matrix float32 [new_size, size] that resizes a row with Pillow's BOX filter.

    A new pixel is the mean of the old ones whose centres lie in the interval it covers. The interval is at
    least one pixel wide, so enlarging repeats the nearest pixel.
    """
    ratio = size / new_size
    centre = (torch.arange(new_size, dtype=torch.float64)[:, None] + 0.5) * ratio
    distance = torch.arange(size, dtype=torch.float64) + 0.5 - centre
    half = max(ratio, 1.0) / 2
    weights = ((distance > -half) & (distance <= half)).float()
    return weights / weights.sum(dim=1, keepdim=True)


def pixelate(images: Tensor, generators: list[Generator], fraction: float) -> Tensor:
    """Reduce the picture to a fraction of its side and enlarge it again, without smoothing."""
    side = images.shape[-1]
    small_side = int(side * fraction)
    there_and_back = box_matrix(small_side, side) @ box_matrix(side, small_side)
    return there_and_back @ images @ there_and_back.T


def jpeg_compression(images: Tensor, generators: list[Generator], quality: int) -> Tensor:
    """Write the picture, in whole levels, as a JPEG file of low quality and read it."""
    levels = (images * 255).round().byte().contiguous()
    read = [decode_jpeg(encode_jpeg(picture, quality=quality)) for picture in levels]
    return torch.stack(read) / 255


def saturate(images: Tensor, generators: list[Generator], factor: float, addition: float) -> Tensor:
    """Change the saturation S = (V - min(R, G, B)) / V of HSV: S' = factor S + addition.

    V and hue stay, so the distance of each channel from V grows by one factor, S' / S. Grey has hue 0 by
    convention: where S' is above 0 it turns red, as in the original.
    """
    value, low = images.amax(dim=1, keepdim=True), images.amin(dim=1, keepdim=True)
    saturation = torch.where(value > 0, (value - low) / value, 0)
    new = (factor * saturation + addition).clamp(0, 1)
    coloured = value - (value - images) * new / saturation
    red = value * torch.cat([torch.ones_like(new), 1 - new, 1 - new], dim=1)
    return torch.where(saturation > 0, coloured, red)


# ---- The table -------------------------------------------------------------------------------------------


class Corruption:
    """One row of the table, to be called as corruption(images, severity, generator)."""

    def __init__(self, function: Callable, family: str, origin: str, rounding: str = "down", **constants):
        self.function, self.name = function, function.__name__
        self.family = family
        self.origin = origin  # "fifteen": in CIFAR-10-C's mean; "extra": published beside those
        self.rounding = rounding  # to bytes: "down" or to the "nearest" level
        # Of each parameter of the function the values at severity 1 to 5, for sides up to 64 pixels and then
        # for larger ones. A row of the table that gives five values means them for both.
        self.constants = {name: np.broadcast_to(five, (2, 5)).tolist() for name, five in constants.items()}

    def __call__(self, images: Tensor, severity: int, generator: Generator) -> Tensor:
        """Corrupt images float32 [N, 3, S, S] in [0, 1]; returns new ones of the same kind.

        On the CPU. Takes one number for each image from `generator`. Raises ValueError for other images or
        values, for S below 8 and for a severity that is not 1, 2, 3, 4 or 5.
        """
        side = images.shape[-1] if images.ndim else 0
        if images.dtype != torch.float32 or images.shape[1:] != (3, side, side) or side < 8:
            expected = "float32 [N, 3, S, S] with S at least 8"
            raise ValueError(f"images must be {expected}, not {images.dtype} {[*images.shape]}")
        if severity not in (1, 2, 3, 4, 5):
            raise ValueError(f"severity must be 1, 2, 3, 4 or 5, not {severity}")
        check_range(images)
        constants = {name: values[side > 64][severity - 1] for name, values in self.constants.items()}
        return self.function(images, spawn(generator, len(images)), **constants).clamp(0, 1)


# The constants of "fifteen" and "extra" are the published ones of github.com/hendrycks/robustness, in pixels
# where they are lengths: of ImageNet-C/create_c/make_cifar_c.py, then of make_imagenet_c.py beside it. That
# code rounds down, except where a library returns bytes. The fall of frost's ice is of this project.
WIDER = 244 / 224  # elastic transform of ImageNet's 224 pixels takes fractions of 244 for those of the side
# fmt: off
TABLE = [
    Corruption(gaussian_noise, "noise", "fifteen",
               sigma=[(0.04, 0.06, 0.08, 0.09, 0.10), (0.08, 0.12, 0.18, 0.26, 0.38)]),
    Corruption(shot_noise, "noise", "fifteen",
               photons=[(500, 250, 100, 75, 50), (60, 25, 12, 5, 3)]),
    Corruption(impulse_noise, "noise", "fifteen",
               fraction=[(0.01, 0.02, 0.03, 0.05, 0.07), (0.03, 0.06, 0.09, 0.17, 0.27)]),
    Corruption(speckle_noise, "noise", "extra",
               sigma=[(0.06, 0.10, 0.12, 0.16, 0.20), (0.15, 0.20, 0.35, 0.45, 0.60)]),
    Corruption(defocus_blur, "blur", "fifteen",
               radius=[(0.3, 0.4, 0.5, 1, 1.5), (3, 4, 6, 8, 10)],
               sigma=[(0.4, 0.5, 0.6, 0.2, 0.1), (0.1, 0.5, 0.5, 0.5, 0.5)]),
    Corruption(glass_blur, "blur", "fifteen",
               sigma=[(0.05, 0.25, 0.4, 0.25, 0.4), (0.7, 0.9, 1, 1.1, 1.5)],
               reach=[(1, 1, 1, 1, 1), (1, 2, 2, 3, 4)],
               rounds=[(1, 1, 1, 2, 2), (2, 1, 3, 2, 2)]),
    # For CIFAR severities 3 and 4 give the same pictures: the longer kernel only adds weights below 1e-9.
    Corruption(motion_blur, "blur", "fifteen", "nearest",
               radius=[(6, 6, 6, 8, 9), (10, 15, 15, 15, 20)],
               sigma=[(1, 1.5, 2, 2, 2.5), (3, 5, 8, 12, 15)]),
    Corruption(zoom_blur, "blur", "fifteen",
               end=[(1.06, 1.11, 1.16, 1.21, 1.26), (1.11, 1.16, 1.21, 1.26, 1.31)],
               step=[(0.01, 0.01, 0.01, 0.01, 0.01), (0.01, 0.01, 0.02, 0.02, 0.03)]),
    Corruption(gaussian_blur, "blur", "extra",
               sigma=[(0.4, 0.6, 0.7, 0.8, 1), (1, 2, 3, 4, 6)]),
    Corruption(snow, "weather", "fifteen",
               mean=[(0.10, 0.10, 0.15, 0.25, 0.30), (0.1, 0.2, 0.55, 0.55, 0.55)],  # of the flakes' noise
               sigma=[(0.2, 0.2, 0.3, 0.3, 0.3), (0.3, 0.3, 0.3, 0.3, 0.3)],
               enlargement=[(1, 1, 1.75, 2.25, 1.25), (3, 2, 4, 4.5, 2.5)],  # of the flakes
               threshold=[(0.60, 0.50, 0.55, 0.60, 0.65), (0.5, 0.5, 0.9, 0.85, 0.85)],
               blur_radius=[(8, 10, 10, 12, 14), (10, 12, 12, 12, 12)],
               blur_sigma=[(3, 4, 4, 6, 12), (4, 4, 8, 8, 12)],
               kept=[(0.95, 0.90, 0.90, 0.85, 0.80), (0.8, 0.7, 0.7, 0.65, 0.55)]),  # not whitened
    Corruption(frost, "weather", "fifteen",
               kept=[(1, 1, 0.9, 0.85, 0.75), (1, 0.8, 0.7, 0.65, 0.6)],
               ice_weight=[(0.2, 0.3, 0.4, 0.4, 0.45), (0.4, 0.6, 0.7, 0.7, 0.75)],
               fall=[(1.25, 1.25, 1.25, 1.25, 1.25), (1.8, 1.8, 1.8, 1.8, 1.8)]),
    Corruption(fog, "weather", "fifteen",
               strength=[(0.2, 0.5, 0.75, 1, 1.5), (1.5, 2, 2.5, 2.5, 3)],
               decay=[(3, 3, 2.5, 2, 1.75), (2, 2, 1.7, 1.5, 1.4)]),
    Corruption(brightness, "weather", "fifteen",
               amount=[(0.05, 0.10, 0.15, 0.20, 0.30), (0.1, 0.2, 0.3, 0.4, 0.5)]),
    Corruption(contrast, "digital", "fifteen",
               factor=[(0.75, 0.50, 0.40, 0.30, 0.15), (0.4, 0.3, 0.2, 0.1, 0.05)]),
    Corruption(elastic_transform, "digital", "fifteen",
               bump_height=[(0, 0.05, 0.08, 0.1, 0.1), WIDER * np.array((2, 2, 0.05, 0.07, 0.12))],
               bump_width=[(0, 0.2, 0.06, 0.04, 0.03), WIDER * np.array((0.7, 0.08, 0.01, 0.01, 0.01))],
               corner_shift=[(0.08, 0.07, 0.06, 0.05, 0.03), WIDER * np.array((0.1, 0.2, 0.02, 0.02, 0.02))]),
    Corruption(pixelate, "digital", "fifteen", "nearest",
               fraction=[(0.95, 0.9, 0.85, 0.75, 0.65), (0.6, 0.5, 0.4, 0.3, 0.25)]),
    Corruption(jpeg_compression, "digital", "fifteen", "nearest",
               quality=[(80, 65, 58, 50, 40), (25, 18, 15, 10, 7)]),
    Corruption(saturate, "digital", "extra",
               factor=[(0.3, 0.1, 1.5, 2, 2.5), (0.3, 0.1, 2, 5, 20)],
               addition=(0, 0, 0, 0.1, 0.2)),
]
# fmt: on

PIXELS_AT_ONCE = 512_000  # of 500 images of CIFAR, or of 10 of ImageNet: bounds the memory that corrupt takes


CORRUPTIONS = {corruption.name: corruption for corruption in TABLE}
FIFTEEN = tuple(corruption.name for corruption in TABLE if corruption.origin == "fifteen")
FAMILIES: dict[str, list[str]] = {}  # the names of each family, in the order of TABLE
for row in TABLE:
    FAMILIES.setdefault(row.family, []).append(row.name)


def corrupt(images: Tensor, name: str, severity: int) -> Tensor:
    """Corrupt uint8 images [N, 3, S, S] and round to uint8 again, as the published files hold them.

    The seed follows from the name, so it is the same at every severity and does not depend on the table.
    Raises KeyError for a name that is not in CORRUPTIONS, ValueError as those do.
    """
    corruption = CORRUPTIONS[name]
    generator = Generator().manual_seed(zlib.crc32(name.encode()))
    batch_size = max(1, PIXELS_AT_ONCE // images.shape[-1] ** 2)
    corrupted = []
    for batch in images.split(batch_size):
        changed = corruption(batch / 255, severity, generator)
        if corruption.rounding == "down":
            changed = round_down(changed)
        corrupted.append((changed * 255).round().to(torch.uint8))
    return torch.cat(corrupted)

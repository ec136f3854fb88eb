"""Are the maps of an explanation better than controls that have not seen the picture?

For each cheap reason to do well there is a control. Maps and controls are measured on the same images, so
their differences are taken image by image.
"""

import math
from collections.abc import Callable

import torch
from torch import Generator, Tensor, nn

from .explanations import cascading_randomization, deletion_insertion


def with_controls(maps: Tensor, side: int, generator: Generator) -> dict[str, Tensor]:
    """Return maps float32 [N, h, w] as "gradcam", and three controls.

    "random" is noise of the maps' own resolution, "centre" a Gaussian [N, side, side] with a standard
    deviation of a quarter of the side, "other_image" the map of another image.
    """
    offsets = torch.arange(side) - (side - 1) / 2
    gaussian = torch.exp(-(offsets[:, None] ** 2 + offsets[None, :] ** 2) / (2 * (side / 4) ** 2))
    return {
        "gradcam": maps,
        "random": torch.rand(maps.shape, generator=generator),
        "centre": gaussian.expand(len(maps), side, side),
        "other_image": maps.roll(1, 0),
    }


def mean_and_error(values: Tensor) -> dict[str, float]:
    """Return the mean of values float [N] and its standard error, s / sqrt(N); one value leaves it at 0."""
    error = values.std(correction=0).item() / math.sqrt(max(1, len(values) - 1))
    return {"value": values.mean().item(), "standard_error": error}


def compare_with_controls(
    model: nn.Module, images: Tensor, heatmaps: dict[str, Tensor], classes: Tensor, fill: Tensor, steps: int
) -> dict[str, dict]:
    """Return for "deletion" and "insertion" the curve, the area and the difference of the areas of each map.

    heatmaps are those of with_controls, enlarged to [N, H, W]; the rest is as in deletion_insertion. The
    difference is the area of "gradcam" less that of the control, with its standard error.
    """
    result = {}
    for mode in ("deletion", "insertion"):
        result[mode], areas = {}, {}
        for name, maps in heatmaps.items():
            curves, areas[name] = deletion_insertion(model, images, maps, classes, fill, steps, mode)
            result[mode][name] = {
                "curve": [round(value, 5) for value in curves.mean(dim=0).tolist()],
                "area": mean_and_error(areas[name]),
                "gradcam_less_this": mean_and_error(areas["gradcam"] - areas[name]),
            }
    return result


def randomization(
    model: nn.Module,
    images: Tensor,
    explain: Callable[[Tensor, Tensor], Tensor],
    modules: list[str],
    num_seeds: int,
) -> dict[str, dict]:
    """Return {module: {"mean", "mean_abs", "other_image": value, low and high}} of cascading_randomization.

    They are the mean over the images of the rank correlation rho, of |rho|, and of |rho| with the map of
    another image, then their mean and range over the seeds; None where all maps are constant.
    """
    seeds = [cascading_randomization(model, images, explain, modules, seed) for seed in range(num_seeds)]
    result = {}
    for name in modules:
        rho = torch.stack([correlations[name] for correlations, _ in seeds])  # NaN where a map is constant
        other = torch.stack([of_another_image[name] for _, of_another_image in seeds])
        result[name] = {
            "mean": spread(rho.nanmean(dim=1)),
            "mean_abs": spread(rho.abs().nanmean(dim=1)),
            "other_image": spread(other.abs().nanmean(dim=1)),
        }
    return result


def spread(values: Tensor) -> dict[str, float | None]:
    """Return the mean, the minimum as `low` and the maximum as `high` of values float [N]; None for NaN."""
    row = {"value": values.mean().item(), "low": values.min().item(), "high": values.max().item()}
    return {key: None if math.isnan(number) else number for key, number in row.items()}

"""Do explanations show what the network does? Deletion and insertion, covering, and the randomisation check.

All functions take a model of images in [0, 1] on the images' device. An explanation is a map that says of
each pixel how much it speaks for a class; the method that computes it may be any.
"""

import copy
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .attacks import eval_mode, full_float32
from .corruptions import blur


def ranks(heatmaps: Tensor) -> Tensor:
    """Return the place of each pixel of [N, H, W], the largest first, int64; equal ones in reading order."""
    order = heatmaps.flatten(1).argsort(dim=1, descending=True, stable=True)
    return order.argsort(dim=1).view_as(heatmaps)


@torch.no_grad()
def deletion_insertion(
    model: nn.Module,
    images: Tensor,
    heatmaps: Tensor,
    classes: Tensor,
    fill: Tensor,
    steps: int = 32,
    mode: str = "deletion",
) -> tuple[Tensor, Tensor]:
    """Delete or insert pixels in the order of a map, largest first, and watch the probability of a class.

    images float32 [N, 3, H, W] in [0, 1]; heatmaps float [N, H, W]; classes int64 [N]; fill float [3] in [0,
    1]. Deletion starts from the image and replaces its pixels by the colour `fill`, usually the mean of the
    data; insertion starts from the image blurred by a Gaussian of standard deviation W / 8 and puts the
    pixels back. Pixels of equal value go in reading order. After step k of `steps`, k / steps of them are
    moved.

    Returns the softmax probability of the class after each step, float32 [N, steps + 1], and the area under
    each curve, float32 [N] in [0, 1], by the trapezoidal rule. A faithful map has a small area for deletion
    and a large one for insertion. Source: Petsiuk, Das and Saenko, "RISE", 2018 (arXiv 1806.07421), section
    4, evaluation metrics. Raises ValueError for another mode or shapes that do not fit.
    """
    if mode not in ("deletion", "insertion"):
        raise ValueError(f"mode must be deletion or insertion, not {mode}")
    if heatmaps.shape != images[:, 0].shape or classes.shape != heatmaps.shape[:1] or fill.shape != (3,):
        shapes = ", ".join(str([*tensor.shape]) for tensor in (images, heatmaps, classes, fill))
        raise ValueError(f"images [N, 3, H, W], maps [N, H, W], classes [N], fill [3] expected, not {shapes}")
    classes = classes.to(images.device)
    rank = ranks(heatmaps.to(images.device))[:, None]
    if mode == "deletion":
        start, end = images, fill.to(images)[:, None, None]
    else:
        start, end = blur(images, images.shape[-1] / 8), images
    curve = []
    with eval_mode(model), full_float32(images.device):
        for step in range(steps + 1):
            moved = rank < step / steps * heatmaps[0].numel()
            probabilities = model(torch.where(moved, end, start)).softmax(dim=1)
            curve.append(probabilities.gather(1, classes[:, None])[:, 0])
    curves = torch.stack(curve, dim=1)
    return curves, torch.trapezoid(curves, dx=1 / steps, dim=1)


def top_pixels(maps: Tensor, size: tuple[int, int], fraction: float = 0.25) -> Tensor:
    """Return where the maps float [N, h, w] are largest, once they are enlarged bilinearly to `size`, (H, W).

    bool [N, H, W]: of each map round(fraction H W) pixels. Those of equal value go in reading order.
    """
    heatmaps = F.interpolate(maps[:, None], size, mode="bilinear", align_corners=False)
    return ranks(heatmaps[:, 0]) < round(fraction * size[0] * size[1])


def cover(
    images: Tensor, maps: Tensor, fraction: float = 0.25, fill: str = "mean", mean: Tensor | None = None
) -> Tensor:
    """Cover the pixels of each image at which its map is largest; does the answer change as the map says?

    images float32 [N, 3, H, W] in [0, 1]; maps float [N, h, w]. The pixels of `top_pixels` are replaced by
    the colour `mean`, float [3], if fill is "mean", or if it is "blur" by those of the image blurred by a
    Gaussian of standard deviation W / 8. Returns new images. Raises ValueError for another fill, or "mean"
    without a colour.
    """
    if fill == "mean" and mean is not None:
        covered = mean.to(images)[:, None, None]
    elif fill == "blur":
        covered = blur(images, images.shape[-1] / 8)
    else:
        raise ValueError(f"fill must be blur, or mean with the argument mean, not {fill}")
    top = top_pixels(maps.to(images), images.shape[-2:], fraction)
    return torch.where(top[:, None], covered, images)


def activation_energy(activations: Tensor) -> Tensor:
    """Return the sum over the channels of the squared activations [N, K, h, w] of a layer, float32 [N, h, w].

    A map of where the layer responds, whatever the class: a control for maps that claim to explain one.
    """
    return activations.float().square().sum(dim=1)


def centred_ranks(x: Tensor) -> Tensor:
    """Return the ranks in each row of x [N, K], less their mean, float64; equal values share a mean rank."""
    # The mean rank of x_i, less (K + 1) / 2, is half of (number of smaller values - number of larger ones).
    ordered = x.sort(dim=1).values
    smaller = torch.searchsorted(ordered, x)
    larger = x.shape[1] - torch.searchsorted(ordered, x, right=True)
    return (smaller - larger).double() / 2


def spearman(a: Tensor, b: Tensor) -> Tensor:
    """Return the rank correlation of the rows of a and b [N, K], float64 [N]; NaN for a constant row."""
    a, b = centred_ranks(a.contiguous()), centred_ranks(b.contiguous())
    return (a * b).sum(dim=1) / ((a * a).sum(dim=1) * (b * b).sum(dim=1)).sqrt()


@torch.no_grad()
def randomize(module: nn.Module, seed: int) -> None:
    """Give a module random weights and fresh statistics; torch's random generators stay as they are.

    Convolutions are drawn as in He et al. 2015 (arXiv 1502.01852); modules that can reset their parameters,
    such as linear, normalising and attention layers, do so. Parameters that are then still the old ones, such
    as class tokens and position embeddings, are drawn from a normal distribution with their own mean and
    standard deviation, so that activations keep their scale; one that holds the same number throughout stays.
    The numbers are drawn on the CPU and in the order of the dimensions, so they are the same for every device
    and memory format.
    """
    fresh = copy.deepcopy(module).cpu().to(memory_format=torch.contiguous_format)
    with torch.random.fork_rng(devices=[]):  # saves and restores the CPU's generator alone
        torch.default_generator.manual_seed(seed)  # torch.manual_seed would seed all GPUs as well
        for part in fresh.modules():
            if isinstance(part, nn.Conv2d):
                nn.init.kaiming_normal_(part.weight, mode="fan_out", nonlinearity="relu")
                if part.bias is not None:
                    nn.init.zeros_(part.bias)
            elif hasattr(part, "reset_parameters"):
                part.reset_parameters()
            elif isinstance(part, nn.MultiheadAttention):
                part._reset_parameters()
        for old, new in zip(module.parameters(), fresh.parameters(), strict=True):
            if torch.equal(old.cpu(), new):
                new.normal_(new.mean().item(), new.std(correction=0).item())
    for old, new in zip(tensors_of(module), tensors_of(fresh), strict=True):
        old.copy_(new)


def tensors_of(module: nn.Module) -> list[Tensor]:
    """Return the parameters and buffers of a module."""
    return [*module.parameters(), *module.buffers()]


def cascading_randomization(
    model: nn.Module, images: Tensor, explain: Callable, modules: list[str], seed: int = 0
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Replace weights by random ones, module after module, and compare the maps with those of before.

    An explanation that stays the same when the network forgets what it has learned does not explain it.
    images float32 [N, 3, H, W] in [0, 1]; explain(images, classes) returns maps [N, h, w] of this very model,
    whose own weights are random meanwhile and the old ones again afterwards; modules holds dotted names of
    the model's modules in the order of randomising, the classifier first, see randomize. The classes
    explained are those that the trained model predicts.

    Returns {name: float64 [N]}, the rank correlation between the maps of the trained model and those with
    this module and all before it random, NaN where a map is constant; and {name: float64 [N]}, that with the
    trained map of another image, which is what maps have in common whatever the picture. Raises
    AttributeError for the name of no module. Source: Adebayo et al., "Sanity Checks for Saliency Maps", 2018
    (arXiv 1810.03292), section 3, cascading randomization.
    """
    trained_weights = [tensor.detach().clone() for tensor in tensors_of(model)]
    correlations, of_another_image = {}, {}
    try:
        with eval_mode(model), full_float32(images.device):
            with torch.no_grad():
                classes = model(images).argmax(dim=1)
            trained = explain(images, classes).flatten(1).cpu()
            for name in modules:
                randomize(model.get_submodule(name), seed)
                maps = explain(images, classes).flatten(1).cpu()
                correlations[name] = spearman(trained, maps)
                of_another_image[name] = spearman(trained.roll(1, 0), maps)
    finally:
        with torch.no_grad():
            for tensor, weights in zip(tensors_of(model), trained_weights, strict=True):
                tensor.copy_(weights)
    return correlations, of_another_image

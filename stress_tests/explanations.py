"""Do explanations show what the network does? Deletion and insertion curves, and the randomisation check.

All functions take a model of images in [0, 1], such as nn.Sequential(Normalize(), network), on the images'
device. An explanation is a map that says of each pixel how much it speaks for a class; the method that
computes it may be any.
"""

import copy
from collections.abc import Callable

import torch
from torch import Tensor, nn

from .attacks import eval_mode
from .corruptions import blur


@torch.no_grad()
def deletion_insertion(
    model: nn.Module,
    images: Tensor,
    maps: Tensor,
    classes: Tensor,
    fill: Tensor,
    steps: int = 32,
    mode: str = "deletion",
) -> tuple[Tensor, Tensor]:
    """Delete or insert pixels in the order of a map, largest first, and watch the probability of a class.

    images float32 [N, 3, H, W] in [0, 1]; maps float [N, H, W]; classes int64 [N]; fill float [3] in [0, 1].
    Deletion starts from the image and replaces its pixels by the colour `fill`, usually the mean of the data;
    insertion starts from the image blurred by a Gaussian of standard deviation W / 8 and puts the pixels
    back. Pixels of equal value go in reading order. After step k of `steps`, k / steps of them are moved.

    Returns the softmax probability of the class after each step, float32 [N, steps + 1], and the area under
    each curve, float32 [N] in [0, 1], by the trapezoidal rule. A faithful map has a small area for deletion
    and a large one for insertion. Source: Petsiuk, Das and Saenko, "RISE", 2018 (arXiv 1806.07421), section
    4, evaluation metrics. Raises ValueError for another mode or shapes that do not fit.
    """
    if mode not in ("deletion", "insertion"):
        raise ValueError(f"mode must be deletion or insertion, not {mode}")
    if maps.shape != images[:, 0].shape or classes.shape != maps.shape[:1] or fill.shape != (3,):
        shapes = ", ".join(str([*tensor.shape]) for tensor in (images, maps, classes, fill))
        raise ValueError(f"images [N, 3, H, W], maps [N, H, W], classes [N], fill [3] expected, not {shapes}")
    maps, classes = maps.to(images.device), classes.to(images.device)
    with eval_mode(model, images.device):
        if mode == "deletion":
            start, end = images, fill.to(images)[:, None, None]
        else:
            start, end = blur(images, images.shape[-1] / 8), images
        order = maps.flatten(1).argsort(dim=1, descending=True, stable=True)
        rank = order.argsort(dim=1).view_as(maps)[:, None]
        curve = []
        for step in range(steps + 1):
            moved = rank < step / steps * maps[0].numel()
            probabilities = model(torch.where(moved, end, start)).softmax(dim=1)
            curve.append(probabilities.gather(1, classes[:, None])[:, 0])
    curves = torch.stack(curve, dim=1)
    return curves, torch.trapezoid(curves, dx=1 / steps, dim=1)


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


def randomize(module: nn.Module, seed: int) -> None:
    """Give a module random weights and fresh statistics; torch's random generators stay as they are.

    The numbers are drawn on the CPU, so they are the same for every device.
    """
    fresh = copy.deepcopy(module).cpu()
    with torch.random.fork_rng(devices=[]):  # saves and restores the CPU's generator alone
        torch.default_generator.manual_seed(seed)  # torch.manual_seed would seed all GPUs as well
        for part in fresh.modules():
            if isinstance(part, nn.Conv2d):
                nn.init.kaiming_normal_(part.weight, mode="fan_out", nonlinearity="relu")
                if part.bias is not None:
                    nn.init.zeros_(part.bias)
            elif hasattr(part, "reset_parameters"):
                part.reset_parameters()
    module.load_state_dict(fresh.state_dict())


def cascading_randomization(
    model: nn.Module,
    images: Tensor,
    explain: Callable[[nn.Module, Tensor, Tensor], Tensor],
    modules: list[str],
    seed: int = 0,
) -> dict[str, Tensor]:
    """Replace weights by random ones, module after module, and compare the maps with those of before.

    An explanation that stays the same when the network forgets what it has learned does not explain it.
    images float32 [N, 3, H, W] in [0, 1]; explain(model, images, classes) returns maps [N, h, w];
    modules holds dotted names of the model's modules in the order of randomising, the classifier first. The
    classes explained are those that the trained model predicts. The model itself is not changed, a copy is.

    Returns {name: float64 [N]}, the rank correlation between the maps of the trained model and those with
    this module and all before it random, NaN where a map is constant. Raises AttributeError for the name of
    no module. Source: Adebayo et al., "Sanity Checks for Saliency Maps", 2018 (arXiv 1810.03292), section 3,
    cascading randomization.
    """
    model = copy.deepcopy(model)
    correlations = {}
    with eval_mode(model, images.device):
        with torch.no_grad():
            classes = model(images).argmax(dim=1)
        trained = explain(model, images, classes).flatten(1).cpu()
        for name in modules:
            randomize(model.get_submodule(name), seed)
            correlations[name] = spearman(trained, explain(model, images, classes).flatten(1).cpu())
    return correlations

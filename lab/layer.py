"""Choose the layer of a network that Grad-CAM explains, and bring its output to [N, K, h, w]."""

import functools
import math
from collections import Counter
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Generator, Tensor, nn
from torch.utils.hooks import RemovableHandle

from lab.support import UserError

Reshape = Callable[[Tensor], Tensor]  # takes the output of a layer to [N, K, h, w]


def find_layer(
    model: nn.Module,
    images: Tensor,
    outputs: list[tuple[str, object]],
    logits: Tensor,
    layer: str | None,
    projections: dict[str, str | None],
) -> tuple[str | None, Reshape | None, str]:
    """Return the layer to explain: the named one, none if the name is "none", by default the last fit one.

    model: a FromPixels. outputs are (name, output) of the modules of its network in the order of one forward
    pass of two images, and logits [2, C] the result. A layer is fit if it runs once, its output has cells
    that are places of the picture, see is_spatial, and the gradient of the scores reaches several of them;
    behind the last attention of a transformer it reaches the class token only. projections: {name of a linear
    layer: name of the layer before it}. The maps of the two are the same but for a constant, so by default
    the layer before it is explained, norm1 of a block rather than qkv. Returns the layer's name, what takes
    its output to [N, K, h, w], and a line for people that says how it was chosen, or why there is none.
    Raises UserError if the named layer is not fit.
    """
    if layer == "none":
        return None, None, "no maps, by --layer none"
    runs = Counter(name for name, _ in outputs)
    if layer is not None and runs[layer] != 1:
        problem = f"runs {runs[layer]} times in a pass" if runs[layer] else "is no layer that runs"
        choices = ", ".join(name for name, _ in outputs if runs[name] == 1 and "." not in name)
        raise UserError(f"--layer {layer} {problem}: expected one such as {choices}, or none")
    reasons = []  # why layers with cells are not fit
    for name, output in reversed(outputs):
        if runs[projections.get(name)] == 1 if layer is None else name != layer:
            continue
        for layout, reshape in layouts_of(output):
            cells = reshape(output)
            if not (cells != cells[..., :1, :1]).any():
                continue
            if runs[name] != 1:
                reasons.append(f"{name} and what comes before it runs more than once in a pass")
            elif not gradient_reaches(score_of(logits), output, reshape):
                reasons.append(f"no gradient of the scores reaches several cells of {name}")
            elif not is_spatial(model, name, reshape, cells):
                reasons.append(f"the cells of {name} are not places of the picture")
            else:
                how = f"{name}, {cells.shape[2]}x{cells.shape[3]} cells"
                how += "" if layout == "[N, K, h, w]" else f", brought from {layout} to [N, K, h, w]"
                if goes_around(model, name, images):
                    how += "; a part of the scores does not come through it, and is not explained"
                return name, reshape, how
    reason = reasons[0] if reasons else "no output is [N, K, h, w], [N, h, w, K] or tokens of several cells"
    if layer is not None:
        raise UserError(f"--layer {layer} cannot be explained: {reason}")
    return None, None, f"no maps: {reason}"


def layouts_of(output: object) -> list[tuple[str, Reshape]]:
    """Return what a module's output for two images may be, and what takes that to [N, K, h, w].

    The images are square, and so are their cells. At most 8 other tokens stand before those of the picture,
    such as a class token and registers.
    """
    if not isinstance(output, Tensor) or output.shape[:1] != (2,) or output.ndim not in (3, 4):
        return []
    if output.ndim == 4:
        _, first, second, third = output.shape
        layouts = [("[N, K, h, w]", channels_first)] if second == third > 1 else []
        return layouts + ([("[N, h, w, K]", channels_last)] if first == second > 1 else [])
    sides = [side for side in range(math.isqrt(output.shape[1]), 1, -1) if output.shape[1] - side**2 <= 8]
    return [("tokens [N, T, K]", functools.partial(tokens, side=side)) for side in sides]


def channels_first(output: Tensor) -> Tensor:
    """Return [N, K, h, w] as it is."""
    return output


def channels_last(output: Tensor) -> Tensor:
    """Return [N, h, w, K], as in Swin transformers, as [N, K, h, w]."""
    return output.movedim(-1, 1)


def tokens(output: Tensor, side: int) -> Tensor:
    """Return the last side * side tokens of [N, T, K], as in vision transformers, as [N, K, side, side]."""
    return output[:, -(side**2) :].unflatten(1, (side, side)).movedim(-1, 1)


def score_of(logits: Tensor) -> Tensor:
    """Return what is differentiated: a difference of logits, as one of them may be constant."""
    return (logits.amax(dim=1) - logits.amin(dim=1)).sum()


def gradient_reaches(score: Tensor, output: Tensor, reshape: Reshape) -> bool:
    """Return whether the gradient of the score reaches more than one cell of a layer's output."""
    if not score.requires_grad or not output.requires_grad:
        return False
    (gradient,) = torch.autograd.grad(score, output, retain_graph=True, materialize_grads=True)
    cells = reshape(gradient)
    reached = (cells != 0).any(dim=1).sum(dim=(1, 2))  # number of cells in each image
    return bool((reached > 1).any())


def is_spatial(model: nn.Module, name: str, reshape: Reshape, cells: Tensor) -> bool:
    """Return whether the cells of a layer, [2, K, h, w], are places of the picture rather than channels.

    One part of a picture after the other is painted, of 4x4 parts or, with fewer cells, of 2x2. The table
    says how much that changes each part of the cells, as a logarithm less the means of its row and column. In
    a spatial layer painting changes the cells of the same part most, so the diagonal is large. Its sum has
    mean 0 and the standard deviation below if the parts are paired at random.
    """
    if cells.shape[1] == 1:
        return False
    side, parts = model.image_size, 4 if cells.shape[2] >= 4 else 2
    count = 16 // parts**2  # of pictures, so that 16 are painted
    pictures, paint = torch.rand(2, count, 3, side, side, generator=Generator().manual_seed(0))
    row = torch.arange(side) * parts // side
    part_of_pixel = parts * row[:, None] + row
    painted = [torch.where(part_of_pixel == part, paint, pictures) for part in range(parts**2)]
    made = []
    with torch.no_grad(), hooked(model, name, lambda module, inputs, output: made.append(output)):
        model(torch.cat([pictures, *painted]).to(cells.device))
    new = reshape(made[0]).float().cpu().unflatten(0, (-1, count))
    change = (new[1:] - new[0]).abs().sum(dim=2).mean(dim=1)  # [part, h, w]
    table = (F.adaptive_avg_pool2d(change[:, None], parts).flatten(1) + 1e-9 * change.max()).log()
    table = table - table.mean(dim=0) - table.mean(dim=1, keepdim=True) + table.mean()
    deviation = (table.square().sum() / (len(table) - 1)).sqrt()
    return bool(table.trace() > 2 * deviation)


def goes_around(model: nn.Module, name: str, images: Tensor) -> bool:
    """Return whether the scores also depend on the images by a way that does not lead through a layer."""
    with hooked(model, name, lambda module, inputs, output: output.detach()):
        score = score_of(model(images))
    if not score.requires_grad:
        return False
    (gradient,) = torch.autograd.grad(score, images, materialize_grads=True)
    return bool(gradient.any())


def hooked(model: nn.Module, name: str, hook: Callable) -> RemovableHandle:
    """Let a hook see, and replace, the output of a layer while a with block runs."""
    return model.network.get_submodule(name).register_forward_hook(hook)

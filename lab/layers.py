"""The layer of a network that Grad-CAM explains: which it is, and what brings its output to [N, K, h, w]."""

import functools
import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Generator, Tensor, nn

import data
from data import UserError
from gradcam import GradCAM


@torch.no_grad()
def outputs_of(model: nn.Module, names: list[str], images: Tensor) -> dict[str, object]:
    """Return the outputs of the layers with these names, by name, in the order in which they came."""
    outputs, hooks = {}, []
    for name in names:
        note = functools.partial(lambda name, *call: outputs.update({name: call[2]}), name)
        hooks.append(model.get_submodule(name).register_forward_hook(note))
    model(images)
    for hook in hooks:
        hook.remove()
    return outputs


def find_layer(model: nn.Module, images: Tensor) -> tuple:
    """Return the layer to explain, what brings its output to [N, K, h, w], and both in words.

    By default it is the last layer on which GradCAM's checks pass, whose map is not constant, and whose cells
    are places of the picture: behind the last attention of a transformer the gradient reaches the class token
    alone. Raises ValueError if model.layer is not fit.
    """
    layer = getattr(model, "layer", None)
    layer = layer if isinstance(layer, str) else None  # else it is a part of the network that has this name
    own = getattr(model, "reshape", None) if layer else None
    names = [name for name, _ in model.named_modules() if name]
    outputs, reason = outputs_of(model, names, images), "no layer has an output of several places"
    candidates = [name for name, output in outputs.items() if layouts_of(output)]
    candidates.sort(key=lambda name: not is_in_attention(model, name))  # which are the last resort
    for name in [layer] if layer else reversed(candidates):
        for reshape in [own] if own else layouts_of(outputs.get(name)) or [None]:
            try:
                maps = GradCAM(model, name, reshape).weighted_sum(images, 0, 1)
            except Exception as error:  # whatever a network of somebody leads to
                reason = f"{name}: {data.printable(error)}"
                continue
            if maps.shape[1] == 1 or not (maps != maps[:, :1, :1]).any():
                reason = f"{name}: the map is the same everywhere"
            elif own is None and not are_places(model, name, reshape, images, maps.shape[1]):
                reason = f"the cells of {name} are not places of the picture"
            else:
                return name, reshape, f"Grad-CAM at {name}, {maps.shape[1]}x{maps.shape[2]} cells"
    if layer:
        raise UserError(f"the layer {layer} cannot be explained: {reason}")
    return None, None, f"no maps: {reason}"


def is_in_attention(model: nn.Module, name: str) -> bool:
    """Return whether a layer is a part of an attention, whose channels may mix queries, keys and values."""
    above = name.split(".")[:-1]
    kinds = [type(model.get_submodule(".".join(above[: k + 1]))).__name__ for k in range(len(above))]
    return any("attn" in text.lower() or "attention" in text.lower() for text in [*above, *kinds])


def layouts_of(output: object) -> list[Callable | None]:
    """Return what may bring an output of two images to [N, K, h, w]; the cells of a picture are a square.

    Of tokens [N, T, K] the last are the cells; up to 8 others, such as a class token, stand before them.
    """
    shape = list(output.shape) if isinstance(output, Tensor) else []
    if len(shape) == 4:
        first = [None] if shape[2] == shape[3] > 1 else []
        return first + ([lambda cells: cells.movedim(-1, 1)] if shape[1] == shape[2] > 1 else [])
    if len(shape) != 3:
        return []
    sides = [side for side in range(math.isqrt(shape[1]), 1, -1) if shape[1] - side**2 <= 8]
    return [
        lambda tokens, side=side: tokens[:, -(side**2) :].unflatten(1, (side, side)).movedim(-1, 1)
        for side in sides
    ]


def are_places(model: nn.Module, name: str, reshape: Callable | None, images: Tensor, cells: int) -> bool:
    """Return whether the cells x cells of a layer are places of the picture, and not channels in a square.

    One part of a picture after the other is painted, of 4x4 parts or, with fewer cells, of 2x2. The table
    says how much that changes each part of the cells, as a logarithm less the means of its row and column. In
    a layer of places painting changes the cells of the same part most, so the diagonal is large. If the parts
    are paired at random its sum has mean 0 and the standard deviation below.
    """
    side, parts = images.shape[-1], 4 if cells >= 4 else 2
    count = 16 // parts**2  # of pictures, so that 16 are painted
    pictures, paint = torch.rand(2, count, 3, side, side, generator=Generator().manual_seed(0))
    row = torch.arange(side) * parts // side
    part_of_pixel = parts * row[:, None] + row
    painted = [torch.where(part_of_pixel == part, paint, pictures) for part in range(parts**2)]
    output = outputs_of(model, [name], torch.cat([pictures, *painted]).to(images.device))[name]
    after = (reshape or nn.Identity())(output).float().cpu().unflatten(0, (-1, count))
    change = (after[1:] - after[0]).abs().sum(dim=2).mean(dim=1)  # [part, h, w]
    table = (F.adaptive_avg_pool2d(change[:, None], parts).flatten(1) + 1e-9 * change.max()).log()
    table = table - table.mean(dim=0) - table.mean(dim=1, keepdim=True) + table.mean()
    deviation = (table.square().sum() / (len(table) - 1)).sqrt()
    return bool(table.trace() > 2 * deviation)

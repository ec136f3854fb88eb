"""Choose the layer of a network that Grad-CAM explains, and bring its output to [N, K, h, w]."""

import functools
import math
from collections import Counter
from collections.abc import Callable

import torch
from torch import Tensor

from lab.support import UserError

Reshape = Callable[[Tensor], Tensor]  # takes the output of a layer to [N, K, h, w]; None: it has that shape


def find_layer(
    outputs: list[tuple[str, object]], logits: Tensor, layer: str | None, projections: dict[str, str | None]
) -> tuple[str | None, Reshape | None, str]:
    """Return the layer to explain: the named one, none if the name is "none", by default the last fit one.

    outputs are (name, output) of the modules in the order of one forward pass of two images, and logits
    [2, C] the result. A layer is fit if it runs once, its output has several cells, the cells differ, and the
    gradient of the scores reaches them; behind the last attention of a transformer it reaches the class token
    only. projections: {name of a linear layer: name of the layer before it}. The maps of the two are the same
    but for a constant, so by default the layer before it is explained, norm1 of a block rather than qkv.
    Returns the layer's name, what takes its output to [N, K, h, w], and a line for people that says how it
    was chosen, or why there is none. Raises UserError if the named layer is not fit.
    """
    if layer == "none":
        return None, None, "no maps, by --layer none"
    runs = Counter(name for name, _ in outputs)
    if layer is not None and runs[layer] != 1:
        problem = f"runs {runs[layer]} times in a pass" if runs[layer] else "is no layer that runs"
        choices = ", ".join(name for name, _ in outputs if runs[name] == 1 and "." not in name)
        raise UserError(f"--layer {layer} {problem}: expected one such as {choices}, or none")
    # The score is a difference, as one of the logits may be constant.
    score = (logits.amax(dim=1) - logits.amin(dim=1)).sum()
    reasons = []  # why layers with cells are not fit
    for place in reversed(range(len(outputs))):
        name, output = outputs[place]
        passed_over = runs[projections.get(name)] == 1 if layer is None else name != layer
        layout, reshape = (None, None) if passed_over else layout_of(output, outputs[:place])
        cells = output if reshape is None else reshape(output)
        if layout is None or not (cells != cells[..., :1, :1]).any():
            continue
        if runs[name] != 1:
            reasons.append(f"{name} and what comes before it runs more than once in a pass")
        elif not gradient_reaches(score, output, reshape):
            reasons.append(f"no gradient of the scores reaches several cells of {name}")
        else:
            height, width = cells.shape[2:]
            brought = "" if reshape is None else f", brought from {layout} to [N, K, h, w]"
            return name, reshape, f"{name}, {height}x{width} cells{brought}"
    reason = reasons[0] if reasons else "no output is [N, K, h, w], [N, h, w, K] or tokens of several cells"
    if layer is not None:
        raise UserError(f"--layer {layer} cannot be explained: {reason}")
    return None, None, f"no maps: {reason}"


def gradient_reaches(score: Tensor, output: Tensor, reshape: Reshape | None) -> bool:
    """Return whether the gradient of the score reaches more than one cell of a layer's output."""
    if not score.requires_grad or not output.requires_grad:
        return False
    (gradient,) = torch.autograd.grad(score, output, retain_graph=True, materialize_grads=True)
    cells = gradient if reshape is None else reshape(gradient)
    reached = (cells != 0).any(dim=1).sum(dim=(1, 2))  # number of cells in each image
    return bool((reached > 1).any())


def layout_of(output: object, earlier: list[tuple[str, object]]) -> tuple[str | None, Reshape | None]:
    """Return the layout of the cells in a module's output for two images, and what takes it to [N, K, h, w].

    (None, None) stands for an output without cells. The images are square, and so are their cells. Equal
    sides therefore tell [N, K, h, w] from [N, h, w, K], and both from queries [N, heads, T, K]. But equal
    sides as long as a row of tokens belong to attention between tokens. Tokens have the side of the last
    cells among the `earlier` outputs, if that leaves at most 8 other tokens before them, such as registers.
    Without such cells T is a square, or a square and one class token before it.
    """
    if not isinstance(output, Tensor) or output.shape[:1] != (2,) or output.ndim not in (3, 4):
        return None, None
    shapes = [made.shape for _, made in reversed(earlier) if isinstance(made, Tensor)]
    if output.ndim == 4:
        _, first, second, third = output.shape
        if second == third and second != next((shape[1] for shape in shapes if len(shape) == 3), None):
            return "[N, K, h, w]", None
        return ("[N, h, w, K]", channels_last) if first == second != third else (None, None)
    count, sides = output.shape[1], [cells_side(shape) for shape in shapes]
    side = next((side for side in sides if side > 1 and 0 <= count - side**2 <= 8), None)
    if side is None and count - math.isqrt(count) ** 2 > 1:
        return None, None
    return "tokens [N, T, K]", functools.partial(tokens, side=side)


def cells_side(shape: torch.Size) -> int:
    """Return the side of the cells of an output [N, K, h, w] or [N, h, w, K], 0 if they are not square."""
    if len(shape) != 4 or shape[2] not in (shape[1], shape[3]):
        return 0
    return shape[2]


def channels_last(output: Tensor) -> Tensor:
    """Return [N, h, w, K], as in Swin transformers, as [N, K, h, w]: a `reshape` for GradCAM."""
    return output.movedim(-1, 1)


def tokens(output: Tensor, side: int | None = None) -> Tensor:
    """Return [N, T, K], as in vision transformers, as [N, K, side, side]: a `reshape` for GradCAM.

    The last side * side tokens are those of the picture; class and distillation tokens and registers stand
    before them. If no side is given, T is a square or, with a class token, one more. Raises ValueError for
    another output. Behind the last attention the scores depend on the class token only, so the layer has to
    come before it.
    """
    if output.ndim != 3:
        raise ValueError(f"expected [N, T, K], not {list(output.shape)}")
    root = math.isqrt(output.shape[1])
    if (side or root) > root or (side is None and output.shape[1] - root**2 > 1):
        wanted = "T a square or one more" if side is None else f"T at least {side**2}"
        raise ValueError(f"expected [N, T, K], {wanted}, not {list(output.shape)}")
    side = side or root
    return output[:, -(side**2) :].unflatten(1, (side, side)).movedim(-1, 1)

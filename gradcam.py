"""Grad-CAM: which part of a picture raised the score of a class, or of one class rather than another.

Selvaraju et al., "Grad-CAM: Visual Explanations from Deep Networks via Gradient-based Localization", 2017
(arXiv 1610.02391), section 3. A^k is channel k of the feature maps of one convolutional layer, Z pixels, and
y^c the score of class c before the softmax. A backward pass from y^c says how much each activation matters
for class c. The mean of that over the pixels is the weight of channel k, equation (1),

    alpha_k^c = 1/Z sum_i sum_j  dy^c / dA^k_ij

The map is the weighted sum of the channels. Only its positive part speaks for c, equation (2),

    L^c = ReLU( sum_k alpha_k^c A^k )

A contrastive map has y^c - y^d in place of y^c: the positive part of the sum speaks for c rather than d, the
negative part for d rather than c (Prabhushankar et al. 2020, arXiv 2008.00178, differentiate a loss between
the two classes instead).

A forward hook on the layer reads A^k, and a backward hook on its output reads dy^c / dA^k_ij. As in the paper
the layer is the last convolutional one, layer4. Behind it this network has only global average pooling and a
linear classifier, y^c = b_c + 1/Z sum_k w_ck sum_ij A^k_ij, so alpha_k^c is w_ck / Z for every picture. This
is CAM (Zhou et al. 2016, arXiv 1512.04150) with a ReLU. Before the ReLU the pixels add up to y^c - b_c.
"""

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Classes = int | list[int] | Tensor | None  # one class for all images, or N of them; None: the predicted ones


class GradCAM:
    """Compute Grad-CAM maps of `model` at `layer`.

        with GradCAM(model, "layer4") as cam:
            maps = cam(images)  # float32 [N, h, w]

    `layer` is a module of the model or its dotted name ("layer4", "layer4.1.conv2"); another name raises
    ValueError. If the layer's output is not [N, K, h, w], `reshape` makes it so: channels_last, tokens, or
    your own function. It may only move and drop values, for the gradient goes through it as well. The hook
    exists only inside the with block, and acts only on the passes of `cam` itself.
    """

    def __init__(self, model: nn.Module, layer: nn.Module | str, reshape: Callable | None = None):
        modules = dict(model.named_modules())
        if isinstance(layer, str) and layer not in modules:
            raise ValueError(f"no layer {layer!r}; choose from {', '.join(filter(None, modules))}")
        self.layer = modules[layer] if isinstance(layer, str) else layer
        self.model, self.reshape = model, reshape
        self.handle = None  # inside the with block: what removes the hook
        self.activations = self.gradients = None  # lists during a call, None otherwise

    def __enter__(self) -> "GradCAM":
        self.handle = self.layer.register_forward_hook(self._forward_hook)
        return self

    def __exit__(self, *exception) -> None:
        self.handle.remove()
        self.handle = None

    def _forward_hook(self, layer: nn.Module, inputs: tuple, output: Tensor) -> Tensor | None:
        if self.activations is None:
            return None  # somebody else's forward pass stays as it is
        if not isinstance(output, Tensor) or not output.is_floating_point():
            raise ValueError(f"the layer must return a float tensor, not {type(output).__name__}")
        # The backward pass has to end at A. Detached from what comes before the layer, A is a leaf of the
        # graph: autograd records only what comes after the layer, even if all parameters are frozen.
        activation = output.detach().requires_grad_()
        activation.register_hook(lambda gradient: self.gradients.append(gradient))  # the backward hook
        self.activations.append(activation)
        return activation.clone()  # the next module may work in place, and torch refuses that on a leaf

    def __call__(self, images: Tensor, classes: Classes = None, against: Classes = None) -> Tensor:
        """Return the map of each image, float32 [N, h, w], 0 or more, at the layer's resolution, not scaled.

        images: float [N, 3, H, W], as the model takes them; they are brought to its device and precision.
        classes: the class to explain, one int for all images or N of them (a list or a tensor [N] of whole
        numbers); None explains the class predicted for each image. against: the class, in the same form, that
        has its score subtracted; None subtracts nothing.

        The model runs in eval mode and in the precision of its own parameters, also inside torch.autocast,
        torch.no_grad() or torch.inference_mode(). Whether the call returns or raises, it leaves .grad,
        requires_grad, the running statistics and the modes as they were. Raises ValueError for images or
        classes of a wrong shape, type or range. Raises it also for a layer that does not run exactly once,
        has another output than [N, K, h, w], or does not influence the scores.
        """
        return self.pairs(images, [(classes, against)])[0].relu_()  # equation (2)

    def pairs(self, images: Tensor, questions: list[tuple[Classes, Classes]]) -> list[Tensor]:
        """Return for each (classes, against) the sum of equation (2) before the ReLU, float32 [N, h, w].

        The positive part speaks for `classes` rather than `against`, the negative part for `against`. One
        forward pass serves all questions.
        """
        if self.handle is None:
            raise ValueError("call it in a block: with GradCAM(model, layer) as cam: cam(images)")
        if images.ndim != 4 or not images.is_floating_point():
            raise ValueError(f"images must be float [N, 3, H, W], not {images.dtype} {list(images.shape)}")
        like = next((p for p in self.model.parameters() if p.is_floating_point()), images)
        modes = {module: module.training for module in self.model.modules()}
        autocast_off = torch.autocast(like.device.type, enabled=False)  # float16 rounds gradients to 0
        try:
            self.activations = []
            self.model.eval()
            with torch.inference_mode(False), torch.enable_grad(), autocast_off:
                # A copy, as autograd refuses tensors that were created in inference mode.
                logits = self.model(images.to(like.device, like.dtype, copy=True))
                if (runs := len(self.activations)) != 1:
                    raise ValueError(f"the layer must run once in a pass, not {runs} times")
                return [self._weighted_sum(logits, *question) for question in questions]
        finally:
            self.activations = self.gradients = None
            for module, mode in modes.items():
                module.training = mode

    def _weighted_sum(self, logits: Tensor, classes: Classes, against: Classes) -> Tensor:
        """Go backward from the scores, and return sum_k alpha_k A^k of each image, float32 [N, h, w]."""
        self.gradients = []
        score = scores_of(logits, logits.argmax(dim=1) if classes is None else classes)
        if against is not None:
            score = score - scores_of(logits, against)
        # In eval mode the score of an image does not depend on the other images. So the gradient of the sum
        # of all scores holds for each image the gradient of its own score.
        if score.requires_grad:
            # Differentiate by A alone: no parameter's .grad changes. Keep the graph for the next question.
            score.sum().backward(inputs=self.activations, retain_graph=True)
        if not self.gradients:
            raise ValueError("no gradient of the scores reaches the layer: choose one they depend on")
        activation = self._to_cells(self.activations[0].detach(), len(logits))
        gradient = self._to_cells(self.gradients[0], len(logits))
        alpha = gradient.mean(dim=(2, 3), keepdim=True)  # equation (1)
        return (alpha * activation).sum(dim=1).float()

    def _to_cells(self, output: Tensor, count: int) -> Tensor:
        """Return the layer's output, or the gradient to it, as [N, K, h, w]."""
        cells = output if self.reshape is None else self.reshape(output)
        fits = cells.ndim == 4 and len(cells) == count
        if fits and self.reshape is None:
            # Maps are mostly square, so an output [N, s, s, K] has its channels last. If it were read as
            # [N, K, h, w], a map of s x K cells without meaning would come out, and nobody would notice.
            _, first, second, third = cells.shape
            fits = first != second or second == third
        if not fits:
            shape = f"{list(output.shape)} is not, or not surely, [{count}, K, h, w]"
            raise ValueError(f"the layer's output {shape}: give a reshape such as channels_last or tokens")
        return cells


def scores_of(logits: Tensor, classes: int | list[int] | Tensor) -> Tensor:
    """Return for each row of `logits` [N, C] the score of its class, float [N, 1]."""
    return logits.gather(1, check_classes(classes, *logits.shape).to(logits.device)[:, None])


def check_classes(classes: int | list[int] | Tensor, count: int, num_classes: int) -> Tensor:
    """Return the class of each of `count` images, int64 [count]; raise ValueError for what does not fit."""
    classes = torch.as_tensor(classes)
    is_whole = not classes.is_floating_point() and classes.dtype != torch.bool
    if not is_whole or list(classes.shape) not in ([], [count]):
        shape = list(classes.shape)
        raise ValueError(f"classes must be one whole number or {count} of them, not {classes.dtype} {shape}")
    if ((classes < 0) | (classes >= num_classes)).any():
        raise ValueError(f"classes must be in 0 to {num_classes - 1}, not {classes.tolist()}")
    return classes.long().expand(count).clone()  # a copy, as autograd refuses tensors of inference mode


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


def to_heatmap(maps: Tensor, size: int | tuple[int, int]) -> Tensor:
    """Enlarge Grad-CAM maps [N, h, w] bilinearly to `size`, a side or (H, W), each scaled by its own maximum.

    Returns float32 [N, H, W] in [0, 1]. The maximum of each heatmap is 1, but a map of zeros stays zero. The
    minimum is not moved to 0, so a constant map stays constant. Raises ValueError for maps of a wrong shape,
    below 0 or not finite.
    """
    if maps.ndim != 3 or not ((maps >= 0) & maps.isfinite()).all():
        raise ValueError(f"maps must be finite [N, h, w], 0 or more; this has shape {list(maps.shape)}")
    heatmaps = F.interpolate(maps[:, None].float(), size, mode="bilinear", align_corners=False)[:, 0]
    peak = heatmaps.amax(dim=(1, 2), keepdim=True)
    return heatmaps / torch.where(peak > 0, peak, 1.0)


def overlay(images: Tensor, heatmaps: Tensor) -> Tensor:
    """Show heatmaps on pictures, in the colours of matplotlib's inferno on a dark grey copy of the picture.

    images: float [N, 3, H, W] in [0, 1]; heatmaps: float [N, H, W] in [0, 1]. With L the luma of the picture
    (ITU-R BT.709) and d = 0.35 L, the colour c of the heatmap is added as light: d + (1 - d) c. The luma of
    inferno rises from 0 to 0.97, so on every picture more evidence is brighter. Returns uint8 [N, 3, H, W]
    on the images' device. Raises ValueError for values outside [0, 1].
    """
    import matplotlib  # here, as maps alone do not need it

    if not all(((values >= 0) & (values <= 1)).all() for values in (images, heatmaps)):
        raise ValueError("images and heatmaps must be in [0, 1]")
    rgba = matplotlib.colormaps["inferno"](heatmaps.cpu().numpy())  # [N, H, W, 4]
    colour = torch.from_numpy(rgba[..., :3]).permute(0, 3, 1, 2).to(images)
    red, green, blue = images.split(1, dim=1)
    dark = 0.35 * (0.2126 * red + 0.7152 * green + 0.0722 * blue)
    return (dark + (1 - dark) * colour).mul(255).round().to(torch.uint8)


def draw(panels: list[tuple[str, Tensor]], label: str):
    """Return a matplotlib figure of titled pictures, uint8 [3, H, W], and a bar of the colours of overlay."""
    from matplotlib.cm import ScalarMappable
    from matplotlib.figure import Figure  # unlike pyplot, this keeps no global state and opens no window

    figure = Figure(figsize=(3 * len(panels) + 0.9, 3.5), dpi=150, layout="constrained")
    axes = figure.subplots(1, len(panels))
    for ax, (title, picture) in zip(axes, panels, strict=True):
        ax.imshow(picture.permute(1, 2, 0).numpy())
        ax.set_title(title, fontsize=9, parse_math=False)
        ax.set_axis_off()
    figure.colorbar(ScalarMappable(cmap="inferno"), ax=axes[-1], fraction=0.046, pad=0.02, label=label)
    return figure

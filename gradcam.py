"""Grad-CAM: which part of a picture raised the score of a class.

Selvaraju et al., "Grad-CAM: Visual Explanations from Deep Networks via Gradient-based Localization", 2017
(arXiv 1610.02391), section 3. A^k is channel k of the feature maps of one convolutional layer, Z pixels, and
y^c the score of class c before the softmax. A backward pass from y^c says how much each activation matters
for class c; averaged over the pixels it gives the weight of channel k, equation (1),

    alpha_k^c = 1/Z sum_i sum_j  dy^c / dA^k_ij

and the map is the weighted sum of the channels, of which only the positive part speaks for c, equation (2),

    L^c = ReLU( sum_k alpha_k^c A^k )

A forward hook on the layer reads A^k, and a backward hook on its output dy^c / dA^k_ij. As in the paper the
layer is the last convolutional one, layer4. Behind it this network has only global average pooling and a
linear classifier, y^c = b_c + 1/Z sum_k w_ck sum_ij A^k_ij, so alpha_k^c = w_ck / Z whatever the picture.
That is CAM (Zhou et al. 2016, arXiv 1512.04150) but for ReLU, without which the pixels add up to y^c - b_c.

Measured by benchmarks/gradcam_layers.py on 200 test images with the network in weights/: areas, of which that
under the deletion curve should be small and that under the insertion curve large, and paired differences.

                                       deletion         insertion
    layer4                             0.139 ± 0.009     0.469 ± 0.015
    random, as layer4                  0.253 ± 0.012     0.296 ± 0.013
    centre                             0.148 ± 0.010     0.406 ± 0.016
    other_image, as layer4             0.211 ± 0.012     0.378 ± 0.015
    layer3                             0.184 ± 0.013     0.416 ± 0.015
    random, as layer3                  0.217 ± 0.012     0.256 ± 0.012
    other_image, as layer3             0.239 ± 0.013     0.306 ± 0.014
    layer4 less layer3                -0.045 ± 0.010     0.053 ± 0.013
    layer4 less centre                -0.009 ± 0.007     0.063 ± 0.007
    layer3 less centre                 0.036 ± 0.011     0.010 ± 0.014

So layer4 is better than layer3, and in insertion better than "look at the middle", where layer3 is not. Its
4x4 cells cannot say more finely than to 8 pixels where in a picture of 32x32 the evidence lies.

As a command, this explains a picture of your own:  python gradcam.py IMAGE
"""

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.io import ImageReadMode, decode_image, read_file
from torchvision.transforms.v2.functional import center_crop, resize, to_dtype

DEFAULT_CHECKPOINT = Path(__file__).parent / "weights" / "resnet18_cifar100.pt"


class GradCAM:
    """Compute Grad-CAM maps of `model` at `layer`.

        with GradCAM(model, "layer4") as cam:
            maps = cam(images)  # float32 [N, h, w]

    `layer` is a module of the model or its dotted name ("layer4", "layer4.1.conv2"), else ValueError is
    raised. The hook exists only inside the with block, and acts only on the passes of `cam` itself.
    """

    def __init__(self, model: nn.Module, layer: nn.Module | str):
        modules = dict(model.named_modules())
        if isinstance(layer, str) and layer not in modules:
            stages = [name for name, _ in model.named_children() if name.startswith("layer")]
            convolutions = [name for name, module in modules.items() if isinstance(module, nn.Conv2d)]
            raise ValueError(f"no layer {layer!r}; choose from {', '.join(stages + convolutions)}")
        self.model, self.layer = model, modules[layer] if isinstance(layer, str) else layer
        self.handle = None
        self.activations = self.gradients = None  # lists during a call, None otherwise

    def __enter__(self) -> "GradCAM":
        if self.handle is not None:
            raise RuntimeError("this GradCAM is already inside a with block")
        self.handle = self.layer.register_forward_hook(self._forward_hook)
        return self

    def __exit__(self, *exception) -> None:
        self.handle.remove()
        self.handle = None

    def _forward_hook(self, layer: nn.Module, inputs: tuple, output: Tensor) -> Tensor | None:
        if self.activations is None:
            return None  # a forward pass that is not ours stays as it is
        if output.ndim != 4:
            raise ValueError(f"Grad-CAM needs a layer whose output is [N, K, h, w], not {list(output.shape)}")
        # y^c is differentiated with respect to A. Detached, A is a leaf of the graph: autograd records what
        # comes after the layer, even if all parameters are frozen, and nothing that comes before it.
        activation = output.detach().requires_grad_()
        activation.register_hook(self.gradients.append)  # the backward hook
        self.activations.append(activation)
        return activation.clone()  # an in-place ReLU after the layer would overwrite A

    def __call__(self, images: Tensor, classes: int | list[int] | Tensor | None = None) -> Tensor:
        """Return the map of each image, float32 [N, h, w], 0 or more, at the layer's resolution, not scaled.

        images: float [N, 3, H, W], normalized as for training. classes: the class to explain, one int for all
        images or N of them (list or int64 tensor [N]); None explains the class predicted for each image.

        The model runs in eval mode and in the precision of its own parameters, also inside torch.autocast,
        torch.no_grad() or torch.inference_mode(). Whether the call returns or raises, it leaves .grad,
        requires_grad, the running statistics and the train or eval mode as they were. Raises ValueError for
        images or classes of a wrong shape, type or range, and for a layer that does not run exactly once or
        whose output is not [N, K, h, w]; RuntimeError outside the with block.
        """
        if self.handle is None:
            raise RuntimeError("use a with block: with GradCAM(model, layer) as cam: maps = cam(images)")
        if images.ndim != 4 or not images.is_floating_point():
            raise ValueError(f"images must be float [N, 3, H, W], not {images.dtype} {list(images.shape)}")
        modes = {module: module.training for module in self.model.modules()}
        autocast_off = torch.autocast(images.device.type, enabled=False)  # float16 rounds gradients to 0
        try:
            self.activations, self.gradients = [], []
            self.model.eval()
            with torch.inference_mode(False), torch.enable_grad(), autocast_off:
                # A copy, as autograd refuses tensors that were created in inference mode.
                logits = self.model(images.to(next(self.model.parameters()).dtype, copy=True))
                if (runs := len(self.activations)) != 1:
                    raise ValueError(f"Grad-CAM needs a layer that runs once in a pass, not {runs} times")
                # In eval mode the score of an image does not depend on the others, so the gradient of the
                # sum of the scores holds, for each image, the gradient of its own score.
                score = logits.gather(1, _check_classes(classes, logits)[:, None]).sum()
                score.backward(inputs=self.activations)  # to A only: no parameter's .grad changes
                alpha = self.gradients[0].mean(dim=(2, 3), keepdim=True)  # equation (1)
                activation = self.activations[0].detach()
                return F.relu((alpha * activation).sum(dim=1)).float()  # equation (2)
        finally:
            self.activations = self.gradients = None
            for module, mode in modes.items():
                module.training = mode


def _check_classes(classes: int | list[int] | Tensor | None, logits: Tensor) -> Tensor:
    """Return the class to explain for each row of `logits`, int64 [N]."""
    count, num_classes = logits.shape
    if classes is None:
        return logits.argmax(dim=1)
    classes = torch.as_tensor(classes, device=logits.device)
    if classes.dtype != torch.int64 or list(classes.shape) not in ([], [count]):
        raise ValueError(f"classes must be int or int64 [{count}], not {classes.dtype} {list(classes.shape)}")
    if ((classes < 0) | (classes >= num_classes)).any():
        raise ValueError(f"classes must be in 0 to {num_classes - 1}, not {classes.tolist()}")
    return classes.expand(count).clone()  # a copy, for the same reason as the images


def to_heatmap(maps: Tensor, size: int | tuple[int, int]) -> Tensor:
    """Enlarge Grad-CAM maps [N, h, w] bilinearly to `size`, a side or (H, W), each scaled by its own maximum.

    Returns float32 [N, H, W] in [0, 1]. The maximum of each heatmap is 1, except that an empty map, 0
    everywhere, stays empty. The minimum is not moved to 0, so a map that is the same everywhere stays the
    same everywhere. Raises ValueError for maps of a wrong shape, below 0 or not finite.
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
    import matplotlib

    if not all(((values >= 0) & (values <= 1)).all() for values in (images, heatmaps)):
        raise ValueError("images and heatmaps must be in [0, 1]")
    rgba = matplotlib.colormaps["inferno"](heatmaps.cpu().numpy())  # [N, H, W, 4]
    colour = torch.from_numpy(rgba[..., :3]).permute(0, 3, 1, 2).to(images)
    red, green, blue = images.split(1, dim=1)
    dark = 0.35 * (0.2126 * red + 0.7152 * green + 0.0722 * blue)
    return (dark + (1 - dark) * colour).mul(255).round().to(torch.uint8)


def read_square(path: Path) -> Tensor:
    """Return the largest centred square of a picture file, uint8 [3, side, side], upright by its EXIF tag."""
    picture = decode_image(read_file(str(path)), ImageReadMode.RGB, apply_exif_orientation=True)
    picture = picture[0] if picture.ndim == 4 else picture  # the first frame of an animation
    picture = to_dtype(picture, torch.uint8, scale=True)  # a PNG may have 16 bits
    return center_crop(picture, [min(picture.shape[1:])] * 2)


def format_table(probabilities: Tensor, checkpoint: dict) -> str:
    """Return the five largest probabilities, float [C], with class and, if known, superclass, as a table."""
    names, groups = checkpoint["class_names"], checkpoint.get("superclass_names", [""])
    group_of = checkpoint.get("superclass_of", [0] * len(names))
    rows = [("class", "probability", "superclass" if any(groups) else "")]
    for c in probabilities.topk(min(5, len(names))).indices.tolist():
        rows.append((names[c], f"{100 * probabilities[c]:.1f} %", groups[group_of[c]]))
    width = max(len(name) for name, _, _ in rows)
    return "\n".join(f"{name:{width}}  {percent:>11}  {group}".rstrip() for name, percent, group in rows)


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


def main(argv: list[str] | None = None) -> None:
    """Explain one picture: print its most likely classes and write the figure."""
    # These imports are here so that the module itself needs nothing else of the project.
    from data import to_input
    from running.console import CommandLine
    from running.files import UserError, check_file, usable, whole_file
    from running.folder import find_checkpoint
    from train import load_model

    parser = CommandLine("Show what in a picture speaks for the predicted class and for the runner-up.")
    parser.add_argument(
        "image", type=Path, metavar="IMAGE", help="picture; its middle square is reduced to 32x32 pixels"
    )
    parser.add_argument("--run", type=Path, help="run folder of train.py, whose best checkpoint is used")
    parser.add_argument("--checkpoint", type=Path, help="checkpoint file (default: the weights in weights/)")
    parser.add_argument("--layer", default="layer4", help="such as layer4.1.conv2 (default: %(default)s)")
    parser.add_argument("--output", type=Path, help="PNG file to write (default: <IMAGE's name>_gradcam.png)")
    args = parser.parse_args(argv)
    output = args.output or Path(f"{args.image.stem}_gradcam.png")
    check_file(args.image, "picture")
    with usable(args.image, "a picture (PNG, JPEG, GIF or WebP)"):
        square = read_square(args.image)
    if output.suffix.lower() != ".png" or (output.exists() and output.samefile(args.image)):
        raise UserError(f"--output must be a .png file other than IMAGE, not {output}")
    path = find_checkpoint(args.run, args.checkpoint or (None if args.run else DEFAULT_CHECKPOINT))
    model, checkpoint = load_model(path, torch.device("cpu"))
    with usable(path, "a checkpoint"):
        size = checkpoint["config"]["image_size"]
        seen = resize(square, [size, size], antialias=True)
        x = to_input(seen[None])
        with torch.no_grad():
            logits = model(x)[0]
        probabilities, classes = logits.softmax(dim=0), logits.topk(min(2, len(logits))).indices
        table = format_table(probabilities, checkpoint)
    # A side of 32 to 512 pixels stays as it is: large enough to show a heatmap, small enough for a figure.
    square = resize(square, [min(max(square.shape[1], 32), 512)] * 2, antialias=True)
    with usable(f"--layer {args.layer}", "the layer to explain"), GradCAM(model, args.layer) as cam:
        heatmaps = to_heatmap(cam(x.expand(len(classes), -1, -1, -1), classes), square.shape[1])
    print(table)

    panels = [("picture\ncentre square", square), (f"network input\n{size}x{size} pixels", seen)]
    for role, c, heatmap in zip(("prediction", "runner-up"), classes, heatmaps, strict=False):
        found = "evidence" if heatmap.any() else "no evidence"
        name = f"{checkpoint['class_names'][c]} ({100 * probabilities[c]:.1f} %)"
        panels.append((f"{found} for the {role}\n{name}", overlay(square[None] / 255, heatmap[None])[0]))
    figure = draw(panels, f"Grad-CAM at {args.layer}")
    with whole_file(output) as temporary:
        figure.savefig(temporary, format="png", bbox_inches="tight")
    print(f"wrote {output}")


if __name__ == "__main__":
    from running.console import run_main

    run_main(main)

"""Grad-CAM: which part of a picture raised the score of a class.

Selvaraju et al., "Grad-CAM: Visual Explanations from Deep Networks via Gradient-based Localization", 2017
(arXiv 1610.02391), section 3. A^k is channel k of the feature maps of one convolutional layer, u x v pixels
(Z = u v of them), and y^c the score of class c before the softmax. A backward pass from y^c says how much
each activation matters for class c; averaged over the pixels it gives the weight of channel k, equation (1),

    alpha_k^c = 1/Z sum_i sum_j  dy^c / dA^k_ij

and the map is the weighted sum of the channels, of which only the positive part speaks for c, equation (2),

    L^c = ReLU( sum_k alpha_k^c A^k )

A forward hook on the layer reads A^k and a backward hook on its output reads dy^c / dA^k_ij. The paper takes
the last convolutional layer, whose features are the closest to classes. Measured on 500 test images with the
network in weights/ by benchmarks/gradcam_layers.py, areas under the curve, standard errors up to 0.01:

    layer                           layer1   layer2   layer3   layer4   random map
    map                              32x32    16x16      8x8      4x4          8x8
    deletion (smaller is better)     0.174    0.164    0.187    0.141        0.205
    insertion (larger is better)     0.315    0.354    0.408    0.477        0.272

By both measures layer4 is the most faithful, though coarse maps may gain by moving whole areas at a time. Its
4x4 cells are too few to say where in 32x32 pixels the evidence lies, hence layer3 as the default; layer2 and
layer1 are finer and do better in deletion, but worse in insertion and in the difference of the two.

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

        with GradCAM(model, "layer3") as cam:
            maps = cam(images)  # float32 [N, h, w]

    `layer` is a module of the model or its dotted name ("layer3", "layer4.1.conv2"); its output must be
    [N, K, h, w]. The hook exists only inside the with block, and acts only on the passes of `cam` itself.
    Raises ValueError for a layer that the model does not have, and for a model created in inference mode.
    """

    def __init__(self, model: nn.Module, layer: nn.Module | str):
        modules = {name: module for name, module in model.named_modules() if name}
        if isinstance(layer, str):
            if layer not in modules:
                stages = [name for name, _ in model.named_children() if name.startswith("layer")]
                convolutions = [name for name, module in modules.items() if isinstance(module, nn.Conv2d)]
                raise ValueError(f"no layer {layer!r}; choose from {', '.join(stages + convolutions)}")
            layer = modules[layer]
        elif not any(layer is module for module in modules.values()):
            raise ValueError(f"this {type(layer).__name__} is not a layer of the model")
        if any(tensor.is_inference() for tensor in [*model.parameters(), *model.buffers()]):
            raise ValueError("Grad-CAM needs gradients: create the model outside torch.inference_mode()")
        self.model, self.layer = model, layer
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
        if not isinstance(output, Tensor) or output.ndim != 4:
            shape = list(output.shape) if isinstance(output, Tensor) else type(output).__name__
            raise ValueError(f"Grad-CAM needs a layer whose output is [N, K, h, w], not {shape}")
        # y^c is differentiated with respect to A. Detached, A is a leaf of the graph: autograd records what
        # comes after the layer, even if all parameters are frozen, and nothing that comes before it.
        activation = output.detach().requires_grad_()
        activation.register_hook(self.gradients.append)  # the backward hook
        self.activations.append(activation)
        # The network continues with a copy, because an in-place ReLU after the layer would overwrite A.
        return activation.clone()

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
                if len(self.activations) != 1:
                    runs = len(self.activations)
                    raise ValueError(f"Grad-CAM needs a layer that runs once in a pass, not {runs} times")
                classes = _check_classes(classes, logits)
                # In eval mode the score of an image does not depend on the others, so the gradient of the
                # sum of the scores holds, for each image, the gradient of its own score.
                score = logits.gather(1, classes[:, None]).sum()
                # Runs the backward hook. Unlike score.backward() it adds to no .grad.
                torch.autograd.grad(score, self.activations)
                activation, gradient = self.activations[0].detach(), self.gradients[0]
                alpha = gradient.mean(dim=(2, 3), keepdim=True)  # equation (1)
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
    same everywhere. Raises ValueError for maps of a wrong shape, below 0 or NaN.
    """
    if maps.ndim != 3:
        raise ValueError(f"maps must be [N, h, w], not {list(maps.shape)}")
    if not (maps >= 0).all():
        raise ValueError("maps must be 0 or more, without NaN")
    size = (size, size) if isinstance(size, int) else tuple(size)
    heatmaps = F.interpolate(maps[:, None].float(), size, mode="bilinear", align_corners=False)[:, 0]
    peak = heatmaps.amax(dim=(1, 2), keepdim=True)
    return heatmaps / torch.where(peak > 0, peak, 1.0)


def overlay(images: Tensor, heatmaps: Tensor) -> Tensor:
    """Show heatmaps on pictures, in the colours of matplotlib's inferno on a dark grey copy of the picture.

    images: float [N, 3, H, W] in [0, 1]; heatmaps: float [N, H, W] in [0, 1]. With L the luma of the
    picture (ITU-R BT.709), the grey copy is d = 0.35 L, and the colour c of the heatmap is added as light:

        result = d + (1 - d) c

    The luma of inferno rises from 0 to 0.97 with the heatmap, so that of the result rises from d to at least
    0.97: on every picture more evidence is brighter, and where there is none, 0.35 is the brightest. Returns
    uint8 [N, 3, H, W] on the images' device. Raises ValueError for wrong shapes and for values outside
    [0, 1].
    """
    import matplotlib

    if images.ndim != 4 or images.shape[1] != 3 or heatmaps.shape != images[:, 0].shape:
        shapes = f"{list(images.shape)} and {list(heatmaps.shape)}"
        raise ValueError(f"images must be [N, 3, H, W] and heatmaps [N, H, W], not {shapes}")
    for name, values in (("images", images), ("heatmaps", heatmaps)):
        if not ((values >= 0) & (values <= 1)).all():
            raise ValueError(f"{name} must be in [0, 1]")
    rgba = matplotlib.colormaps["inferno"](heatmaps.cpu().numpy())  # [N, H, W, 4]
    colour = torch.from_numpy(rgba[..., :3]).permute(0, 3, 1, 2).to(images)
    red, green, blue = images.split(1, dim=1)
    dark = 0.35 * (0.2126 * red + 0.7152 * green + 0.0722 * blue)
    return (dark + (1 - dark) * colour).mul(255).round().to(torch.uint8)


# ---- The command ----------------------------------------------------------------------------------------


def read_square(path: Path) -> Tensor:
    """Return the largest centred square of a picture file, uint8 [3, side, side], upright by its EXIF tag.

    Raises ValueError with one line if there is no such file or torchvision cannot decode it as a picture.
    """
    if not path.is_file():
        raise ValueError(f"no such picture: {path}")
    try:
        picture = decode_image(read_file(str(path)), ImageReadMode.RGB, apply_exif_orientation=True)
    except RuntimeError as error:
        detail = str(error).strip().partition("\n")[0]
        raise ValueError(f"{path} is not a picture: give a PNG, JPEG, GIF or WebP file ({detail})") from None
    picture = picture[0] if picture.ndim == 4 else picture  # the first frame of an animation
    picture = to_dtype(picture, torch.uint8, scale=True)  # a PNG may have 16 bits
    side = min(picture.shape[1:])
    return center_crop(picture, [side, side])


def format_table(probabilities: Tensor, checkpoint: dict) -> str:
    """Return the five largest probabilities, float [C], with class and, if known, superclass, as a table."""
    known = "superclass_of" in checkpoint
    rows = [("class", "probability", "superclass" if known else "")]
    for c in probabilities.topk(min(5, len(probabilities))).indices.tolist():
        group = checkpoint["superclass_names"][checkpoint["superclass_of"][c]] if known else ""
        rows.append((checkpoint["class_names"][c], f"{100 * probabilities[c]:.1f} %", group))
    width = max(len(name) for name, _, _ in rows)
    return "\n".join(f"{name:{width}}  {share:>11}  {group}".rstrip() for name, share, group in rows)


def draw(square: Tensor, seen: Tensor, heatmaps: Tensor, titles: list[str], layer: str):
    """Return a matplotlib figure: the picture, the input of the network, and the overlay of each heatmap.

    square: uint8 [3, S, S]; seen: uint8 [3, s, s]; heatmaps: float [K, S, S], with one title each.
    """
    from matplotlib.cm import ScalarMappable
    from matplotlib.figure import Figure  # unlike pyplot, this keeps no global state and opens no window

    side = seen.shape[-1]
    panels = [("picture\ncentre square", square), (f"network input\n{side}x{side} pixels", seen)]
    for title, heatmap in zip(titles, heatmaps, strict=True):
        found = "evidence" if heatmap.any() else "no evidence"
        panels.append((f"{found} for the {title}", overlay(square[None] / 255, heatmap[None])[0]))
    figure = Figure(figsize=(3 * len(panels) + 0.9, 3.5), dpi=150, layout="constrained")
    axes = figure.subplots(1, len(panels))
    for ax, (title, picture) in zip(axes, panels, strict=True):
        ax.imshow(picture.permute(1, 2, 0).numpy())
        ax.set_title(title, fontsize=11, parse_math=False)
        ax.set_axis_off()
    bar = figure.colorbar(ScalarMappable(cmap="inferno"), ax=axes[-1], fraction=0.046, pad=0.02)
    bar.set_label(f"Grad-CAM at {layer}")
    return figure


def main(argv: list[str] | None = None) -> None:
    """Explain one picture: print its most likely classes and write the figure."""
    # These imports are here so that the module itself needs nothing else of the project.
    from data import to_input
    from running.console import CommandLine
    from running.files import UserError, whole_file
    from running.folder import find_checkpoint
    from train import load_model

    parser = CommandLine(
        description="Show which part of a picture speaks for the predicted class and for the runner-up\n"
        "(Grad-CAM). The largest centred square of the picture is resized to the pixels that\n"
        "the network was trained for, 32x32 (bilinear, antialiased): that is all it sees."
    )
    parser.add_argument("image", type=Path, metavar="IMAGE", help="PNG, JPEG, GIF or WebP file of any size")
    parser.add_argument("--run", type=Path, help="run folder of train.py, whose best checkpoint is used")
    parser.add_argument("--checkpoint", type=Path, help="checkpoint file (default: the weights in weights/)")
    parser.add_argument("--layer", default="layer3", help="such as layer4.1.conv2 (default: %(default)s)")
    parser.add_argument("--output", type=Path, help="PNG file to write (default: <IMAGE's name>_gradcam.png)")
    args = parser.parse_args(argv)

    output = args.output or Path(f"{args.image.stem}_gradcam.png")
    if output.suffix.lower() != ".png" or output.resolve() == args.image.resolve():
        raise UserError(f"--output must be a .png file other than IMAGE, not {output}")
    if not output.parent.is_dir():
        raise UserError(f"{output} cannot be written (there is no folder {output.parent})")
    if args.run is None and args.checkpoint is None:
        args.checkpoint = DEFAULT_CHECKPOINT
        if not args.checkpoint.is_file():
            raise UserError(f"no weights {args.checkpoint}: train first with train.py and give --run RUN")

    try:
        square = read_square(args.image)
    except ValueError as error:
        raise UserError(str(error)) from None
    model, checkpoint = load_model(find_checkpoint(args.run, args.checkpoint), torch.device("cpu"))
    seen = resize(square, [checkpoint["config"]["image_size"]] * 2, antialias=True)
    images = to_input(seen[None])
    with torch.no_grad():
        probabilities = model(images)[0].softmax(dim=0)
    classes = probabilities.topk(min(2, len(probabilities))).indices
    try:
        with GradCAM(model, args.layer) as cam:
            maps = cam(images.expand(len(classes), -1, -1, -1), classes)
    except ValueError as error:
        raise UserError(f"--layer {args.layer}: {error}") from None
    print(format_table(probabilities, checkpoint))

    # A side of 32 to 512 pixels stays as it is: large enough to show a heatmap, small enough for a figure.
    square = resize(square, [min(max(square.shape[1], 32), 512)] * 2, antialias=True)
    titles = [
        f"{role}\n{checkpoint['class_names'][c]} ({100 * probabilities[c]:.1f} %)"
        for role, c in zip(("prediction", "runner-up"), classes, strict=False)
    ]
    figure = draw(square, seen, to_heatmap(maps, square.shape[1]), titles, args.layer)
    with whole_file(output) as temporary:
        figure.savefig(temporary, format="png", bbox_inches="tight")
    print(f"wrote {output}")


if __name__ == "__main__":
    from running.console import run_main

    run_main(main)

"""Grad-CAM: which part of a picture raised the score of a class.

Selvaraju et al., "Grad-CAM: Visual Explanations from Deep Networks via Gradient-based Localization", 2017
(arXiv 1610.02391), section 3. A^k is channel k of the feature maps of one convolutional layer, u x v pixels
(Z = u v of them), and y^c the score of class c before the softmax. A backward pass from y^c says how much
each activation matters for class c; averaged over the pixels it gives the weight of channel k, equation (1),

    alpha_k^c = 1/Z sum_i sum_j  dy^c / dA^k_ij

and the map is the weighted sum of the channels, of which only the positive part speaks for c, equation (2),

    L^c = ReLU( sum_k alpha_k^c A^k )

A forward hook on the layer reads A^k and a backward hook on its output reads dy^c / dA^k_ij.

The default layer is layer3, not the last one. The paper takes the last convolutional layer because it knows
most about classes, but at 32x32 pixels the last stage has only 4x4: a map of layer4 cannot say where within a
cell of 8x8 image pixels the evidence lies. layer3 has 8x8 maps.

As a command this explains one's own picture:  python gradcam.py IMAGE
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
    [N, K, h, w]. The hook is there only inside the with block and acts only on the passes of `cam` itself.

    Raises ValueError for a layer that the model does not have, and for a model created in inference mode,
    whose parameters autograd refuses.
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
        self.activations = None  # a list during a call, None otherwise
        self.gradients = None

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
            return None  # a pass of somebody else, left as it is
        if not isinstance(output, Tensor) or output.ndim != 4:
            shape = list(output.shape) if isinstance(output, Tensor) else type(output).__name__
            raise ValueError(f"Grad-CAM needs a layer whose output is [N, K, h, w], not {shape}")
        # y^c is differentiated with respect to A as the layer computed it. Detached, A is a leaf: autograd
        # follows what comes after the layer even if all parameters are frozen, and stops before the images.
        activation = output.detach().requires_grad_()
        activation.register_hook(self._backward_hook)
        self.activations.append(activation)
        # The network goes on with a copy, because an in-place ReLU behind the layer would overwrite A.
        return activation.clone()

    def _backward_hook(self, gradient: Tensor) -> None:
        self.gradients.append(gradient)

    def __call__(self, images: Tensor, classes: int | list[int] | Tensor | None = None) -> Tensor:
        """Return the map of each image, float32 [N, h, w], 0 or more, at the layer's resolution, not scaled.

        images: float [N, 3, H, W], normalized as for training. classes: the class to explain, one int for all
        images or N of them (list or int64 tensor [N]); None explains the class predicted for each image.

        The model runs in eval mode, and in the precision of its own parameters whatever autocast surrounds
        the call: without loss scaling small gradients vanish in float16. Works inside torch.no_grad() and
        torch.inference_mode(). Whether it returns or raises, it leaves .grad, requires_grad, the running
        statistics and train or eval mode as they were. The maps carry no gradient.

        Raises ValueError for images or classes of a wrong shape, type or range and for a layer that does not
        run exactly once or has no [N, K, h, w] output; RuntimeError outside the with block.
        """
        if self.handle is None:
            raise RuntimeError("use a with block: with GradCAM(model, layer) as cam: maps = cam(images)")
        if images.ndim != 4 or not images.is_floating_point():
            raise ValueError(f"images must be float [N, 3, H, W], not {images.dtype} {list(images.shape)}")
        modes = {module: module.training for module in self.model.modules()}
        autocast_off = torch.autocast(images.device.type, enabled=False)
        try:
            self.activations, self.gradients = [], []
            self.model.eval()
            with torch.inference_mode(False), torch.enable_grad(), autocast_off:
                # A copy, as autograd refuses tensors that were created in inference mode.
                weight = next(self.model.parameters())
                logits = self.model(images.to(weight.dtype, copy=True))
                if len(self.activations) != 1:
                    runs = len(self.activations)
                    raise ValueError(
                        f"Grad-CAM needs a layer that runs once in a forward pass, not {runs} times"
                    )
                classes = _check_classes(classes, logits)
                # In eval mode the images do not see each other, so the gradient of the sum of their scores
                # is, image by image, the gradient of each one's own score.
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
        given = f"{classes.dtype} {list(classes.shape)}"
        raise ValueError(f"classes must be one int or int64 [{count}], one for each image, not {given}")
    if ((classes < 0) | (classes >= num_classes)).any():
        raise ValueError(f"classes must be in 0 to {num_classes - 1}, not {classes.tolist()}")
    return classes.expand(count).clone()  # a copy, for the same reason as the images


def to_heatmap(maps: Tensor, size: int | tuple[int, int]) -> Tensor:
    """Enlarge Grad-CAM maps [N, h, w] bilinearly to `size`, a side or (H, W), each scaled by its own maximum.

    Returns float32 [N, H, W] in [0, 1]. The maximum of each heatmap is 1, except that an empty map, 0
    everywhere, stays 0: where nothing speaks for the class, nothing is shown. The minimum is not moved to 0,
    so a map without contrast looks like one. Raises ValueError for maps of a wrong shape, below 0 or NaN.
    """
    if maps.ndim != 3:
        raise ValueError(f"maps must be [N, h, w], not {list(maps.shape)}")
    if not (maps >= 0).all():
        raise ValueError("maps must be 0 or more, without NaN")
    size = (size, size) if isinstance(size, int) else tuple(size)
    heatmaps = F.interpolate(maps[:, None].float(), size, mode="bilinear", align_corners=False)[:, 0]
    peak = heatmaps.amax(dim=(1, 2), keepdim=True)
    return heatmaps / torch.where(peak > 0, peak, 1.0)


def overlay(images: Tensor, heatmaps: Tensor, alpha: float = 0.9) -> Tensor:
    """Lay heatmaps over pictures, in the colours of matplotlib's inferno.

    images: float [N, 3, H, W] in [0, 1]; heatmaps: float [N, H, W] in [0, 1]. The opacity of the colour is
    alpha x heatmap: where the heatmap is 0 the picture stays as it is, where it is 1 `alpha` of the colour
    covers it. inferno is perceptually uniform and gets lighter with heat, so it reads without colour vision.

    Returns uint8 [N, 3, H, W] on the images' device. Raises ValueError for wrong shapes and for values
    outside [0, 1].
    """
    import matplotlib

    if images.ndim != 4 or images.shape[1] != 3 or heatmaps.shape != images[:, 0].shape:
        shapes = f"{list(images.shape)} and {list(heatmaps.shape)}"
        raise ValueError(f"images must be [N, 3, H, W] and heatmaps [N, H, W], not {shapes}")
    for name, values in (("images", images), ("heatmaps", heatmaps), ("alpha", torch.tensor(alpha))):
        if not ((values >= 0) & (values <= 1)).all():
            raise ValueError(f"{name} must be in [0, 1]")
    rgba = matplotlib.colormaps["inferno"](heatmaps.cpu().numpy())  # [N, H, W, 4]
    colours = torch.from_numpy(rgba[..., :3]).permute(0, 3, 1, 2).to(images)
    opacity = alpha * heatmaps[:, None].to(images)
    return ((1 - opacity) * images + opacity * colours).mul(255).round().to(torch.uint8)


# ---------------------------------------------------------------------------------------------------------
# The command


def read_square(path: Path) -> Tensor:
    """Return the largest centred square of a picture file, uint8 [3, side, side], upright by its EXIF tag.

    Raises ValueError with one line if there is no such file or it is no picture that torchvision decodes.
    """
    if not path.is_file():
        raise ValueError(f"no such picture: {path}")
    try:
        picture = decode_image(read_file(str(path)), ImageReadMode.RGB, apply_exif_orientation=True)
    except RuntimeError as error:
        detail = str(error).strip().partition("\n")[0]
        expected = "a PNG, JPEG, GIF or WebP file"
        raise ValueError(f"{path} is not a picture: give {expected} (torchvision: {detail})") from None
    picture = picture[0] if picture.ndim == 4 else picture  # the first frame of an animation
    picture = to_dtype(picture, torch.uint8, scale=True)  # a PNG may have 16 bits
    side = min(picture.shape[1:])
    return center_crop(picture, [side, side])


def format_table(probabilities: Tensor, checkpoint: dict) -> str:
    """Return the five most likely classes as a table. probabilities: float [C]."""
    names, top = checkpoint["class_names"], probabilities.topk(min(5, len(probabilities)))
    rows = [("class", "probability")]
    rows += [
        (names[c], f"{100 * p:.1f} %") for p, c in zip(top.values.tolist(), top.indices.tolist(), strict=True)
    ]
    if "superclass_of" in checkpoint:
        groups = [checkpoint["superclass_names"][checkpoint["superclass_of"][c]] for c in top.indices]
        rows = [(*row, group) for row, group in zip(rows, ["superclass", *groups], strict=True)]
    width = max(len(row[0]) for row in rows)
    return "\n".join(f"{name:{width}}  {p:>11}  {'  '.join(rest)}".rstrip() for name, p, *rest in rows)


def draw(square: Tensor, seen: Tensor, heatmaps: Tensor, titles: list[str], layer: str):
    """Return a matplotlib figure: the picture, what the network sees of it, and the overlay of each heatmap.

    square: uint8 [3, S, S]; seen: uint8 [3, 32, 32]; heatmaps: float [K, S, S], with one title each.
    """
    from matplotlib.cm import ScalarMappable
    from matplotlib.figure import Figure  # without pyplot there is no global state and no window

    panels = [
        ("picture\ncentre square", square),
        (f"network input\n{seen.shape[1]}x{seen.shape[2]} pixels", seen),
    ]
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
    # Here, so that the module itself stands alone.
    from data import UserError, atomic_write, to_input
    from runs import CommandLine, find_checkpoint, load_model

    parser = CommandLine(
        description="Show which part of a picture speaks for the predicted class and for the runner-up\n"
        "(Grad-CAM). The largest centred square of the picture is resized to 32x32 pixels\n"
        "(bilinear, antialiased): that is all the network sees."
    )
    default = f"weights/{DEFAULT_CHECKPOINT.name}"
    parser.add_argument("image", type=Path, metavar="IMAGE", help="PNG, JPEG, GIF or WebP file of any size")
    parser.add_argument("--run", type=Path, help="run folder of train.py, whose best checkpoint is used")
    parser.add_argument(
        "--checkpoint", type=Path, help=f"checkpoint file ({default} if --run is left out too)"
    )
    parser.add_argument(
        "--layer", default="layer3", help="such as layer2 or layer4.1.conv2 (default: %(default)s)"
    )
    parser.add_argument(
        "--output", type=Path, help="PNG file to write (default: IMAGE's name with _gradcam.png, here)"
    )
    args = parser.parse_args(argv)

    output = args.output or Path(f"{args.image.stem}_gradcam.png")
    if output.suffix.lower() != ".png" or output.resolve() == args.image.resolve():
        raise UserError(f"--output must be a .png file other than IMAGE, not {output}")
    checkpoint_file = args.checkpoint
    if args.run is None and args.checkpoint is None:
        checkpoint_file = DEFAULT_CHECKPOINT
        if not checkpoint_file.is_file():
            raise UserError(
                f"there are no weights {checkpoint_file}: train first with train.py and give --run RUN"
            )
    try:
        square = read_square(args.image)
    except ValueError as error:
        raise UserError(str(error)) from None
    model, checkpoint = load_model(find_checkpoint(args.run, checkpoint_file), torch.device("cpu"))

    seen = resize(square, [32, 32], antialias=True)
    images = to_input(seen[None])
    with torch.no_grad():
        probabilities = model(images)[0].softmax(dim=0)
    explained = probabilities.topk(min(2, len(probabilities))).indices
    try:
        with GradCAM(model, args.layer) as cam:
            maps = cam(images.expand(len(explained), -1, -1, -1), explained)
    except ValueError as error:
        raise UserError(f"--layer {args.layer}: {error}") from None
    print(format_table(probabilities, checkpoint))

    # Large enough to lay a heatmap on, small enough for the page; 32 to 512 pixels stay as they are.
    square = resize(square, [min(max(square.shape[1], 32), 512)] * 2, antialias=True)
    titles = [
        f"{role}\n{checkpoint['class_names'][c]} ({100 * probabilities[c]:.1f} %)"
        for role, c in zip(("prediction", "runner-up"), explained, strict=False)
    ]
    figure = draw(square, seen, to_heatmap(maps, square.shape[1]), titles, args.layer)
    try:
        with atomic_write(output) as temporary:
            figure.savefig(temporary, format="png", bbox_inches="tight")
    except OSError as error:
        raise UserError(f"{output} cannot be written ({error.strerror})") from None
    print(f"wrote {output}")


if __name__ == "__main__":
    from runs import run_main

    run_main(main)

"""Grad-CAM: which part of a picture raised the score of a class, or of one class rather than another.

Selvaraju et al., "Grad-CAM: Visual Explanations from Deep Networks via Gradient-based Localization", 2017
(arXiv 1610.02391), section 3. A^k is channel k of the feature maps of one convolutional layer, Z pixels, and
y^c the score of class c before the softmax. A backward pass from y^c says how much each activation matters
for class c; averaged over the pixels it gives the weight of channel k, equation (1),

    alpha_k^c = 1/Z sum_i sum_j  dy^c / dA^k_ij

and the map is the weighted sum of the channels, of which only the positive part speaks for c, equation (2),

    L^c = ReLU( sum_k alpha_k^c A^k )

With y^c - y^d in place of y^c the map shows what speaks for c rather than d, and minus the same sum what
speaks for d rather than c: a contrastive map (Prabhushankar et al. 2020, arXiv 2008.00178, who differentiate
a loss between the two classes instead).

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

import itertools
import math
import os
import re
import sys
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.io import ImageReadMode, decode_image
from torchvision.transforms.v2.functional import center_crop, resize, to_dtype

DEFAULT_CHECKPOINT = Path(__file__).resolve().parent / "weights" / "resnet18_cifar100.pt"
MAX_PIXELS = 100_000_000  # of a picture that is read
Classes = int | list[int] | Tensor | None  # one class for all images, or int64 [N]; None: the predicted ones


class GradCAM:
    """Compute Grad-CAM maps of `model` at `layer`.

        with GradCAM(model, "layer4") as cam:
            maps = cam(images)  # float32 [N, h, w]

    `layer` is a module of the model or its dotted name ("layer4", "layer4.1.conv2"), else ValueError is
    raised. Unless its output is [N, K, h, w], `reshape` takes it there: channels_last, tokens, or a function
    of your own that only moves and drops values, for the gradient goes through it as well. The hook exists
    only inside the with block, and acts only on the passes of `cam` itself.
    """

    def __init__(self, model: nn.Module, layer: nn.Module | str, reshape: Callable | None = None):
        modules = dict(model.named_modules())
        if isinstance(layer, str) and layer not in modules:
            raise ValueError(f"no layer {layer!r}; choose from {', '.join(filter(None, modules))}")
        self.layer = modules[layer] if isinstance(layer, str) else layer
        self.model, self.reshape = model, reshape
        self.activations = self.gradients = None  # lists during a call, None otherwise

    def __enter__(self) -> "GradCAM":
        self.handle = self.layer.register_forward_hook(self._forward_hook)
        return self

    def __exit__(self, *exception) -> None:
        self.handle.remove()

    def _forward_hook(self, layer: nn.Module, inputs: tuple, output: Tensor) -> Tensor | None:
        if self.activations is None:
            return None  # a forward pass that is not ours stays as it is
        if not isinstance(output, Tensor) or not output.is_floating_point():
            raise ValueError(f"the layer must return a float tensor, not {type(output).__name__}")
        # y^c is differentiated with respect to A. Detached, A is a leaf of the graph: autograd records what
        # comes after the layer, even if all parameters are frozen, and nothing that comes before it.
        activation = output.detach().requires_grad_()
        activation.register_hook(self.gradients.append)  # the backward hook
        self.activations.append(activation)
        return activation.clone()  # what follows may work in place, which torch refuses on a leaf

    def __call__(self, images: Tensor, classes: Classes = None, against: Classes = None) -> Tensor:
        """Return the map of each image, float32 [N, h, w], 0 or more, at the layer's resolution, not scaled.

        images: float [N, 3, H, W], as the model takes them; they are brought to its device and precision.
        classes: the class to explain, one int for all images or N of them (list or int64 tensor [N]); None
        explains the class predicted for each image. against: likewise the class whose score is subtracted.

        The model runs in eval mode and in the precision of its own parameters, also inside torch.autocast,
        torch.no_grad() or torch.inference_mode(). Whether the call returns or raises, it leaves .grad,
        requires_grad, the running statistics and the modes as they were. Raises ValueError for images or
        classes of a wrong shape, type or range, and for a layer that does not run exactly once, whose output
        is not [N, K, h, w], or on which no score depends.
        """
        return self.pair(images, classes, against)[0]

    def pair(self, images: Tensor, classes: Classes, against: Classes) -> tuple[Tensor, Tensor]:
        """Return by one pass what cam(images, classes, against) and cam(images, against, classes) return."""
        if images.ndim != 4 or not images.is_floating_point():
            raise ValueError(f"images must be float [N, 3, H, W], not {images.dtype} {list(images.shape)}")
        like = next((p for p in self.model.parameters() if p.is_floating_point()), images)
        modes = {module: module.training for module in self.model.modules()}
        autocast_off = torch.autocast(like.device.type, enabled=False)  # float16 rounds gradients to 0
        try:
            self.activations, self.gradients = [], []
            self.model.eval()
            with torch.inference_mode(False), torch.enable_grad(), autocast_off:
                # A copy, as autograd refuses tensors that were created in inference mode.
                logits = self.model(images.to(like.device, like.dtype, copy=True))
                if (runs := len(self.activations)) != 1:
                    raise ValueError(f"the layer must run once in a pass of a with block, not {runs} times")
                score = logits.gather(1, _check_classes(classes, logits))
                if against is not None:
                    score = score - logits.gather(1, _check_classes(against, logits))
                # In eval mode the score of an image does not depend on the others, so the gradient of the
                # sum of the scores holds, for each image, the gradient of its own score.
                if score.requires_grad:
                    score.sum().backward(inputs=self.activations)  # to A only: no parameter's .grad changes
                if not self.gradients:
                    raise ValueError("no gradient of the scores reaches the layer: choose one they depend on")
                activation = self._to_cells(self.activations[0].detach(), len(images))
                gradient = self._to_cells(self.gradients[0], len(images))
                alpha = gradient.mean(dim=(2, 3), keepdim=True)  # equation (1)
                weighted_sum = (alpha * activation).sum(dim=1).float()
                return F.relu(weighted_sum), F.relu(-weighted_sum)  # equation (2)
        finally:
            self.activations = self.gradients = None
            for module, mode in modes.items():
                module.training = mode

    def _to_cells(self, output: Tensor, count: int) -> Tensor:
        """Return the layer's output, or the gradient to it, as [N, K, h, w]."""
        cells = output if self.reshape is None else self.reshape(output)
        fits = cells.ndim == 4 and len(cells) == count
        if fits and self.reshape is None:
            fits = cells.shape[1] != cells.shape[2] or cells.shape[2] == cells.shape[3]  # else channels last
        if not fits:
            shape = f"{list(output.shape)} is not, or not surely, [{count}, K, h, w]"
            raise ValueError(f"the layer's output {shape}: give a reshape such as channels_last or tokens")
        return cells


def _check_classes(classes: Classes, logits: Tensor) -> Tensor:
    """Return the class to explain for each row of `logits`, int64 [N, 1]."""
    count, num_classes = logits.shape
    if classes is None:
        return logits.argmax(dim=1, keepdim=True)
    classes = torch.as_tensor(classes, device=logits.device)
    if classes.dtype != torch.int64 or list(classes.shape) not in ([], [count]):
        raise ValueError(f"classes must be int or int64 [{count}], not {classes.dtype} {list(classes.shape)}")
    if ((classes < 0) | (classes >= num_classes)).any():
        raise ValueError(f"classes must be in 0 to {num_classes - 1}, not {classes.tolist()}")
    return classes.expand(count).clone()[:, None]  # a copy, for the same reason as the images


def channels_last(output: Tensor) -> Tensor:
    """Return [N, h, w, K], as in Swin transformers, as [N, K, h, w]: a `reshape` for GradCAM."""
    return output.movedim(-1, 1)


def tokens(output: Tensor) -> Tensor:
    """Return [N, T, K], as in vision transformers, as [N, K, s, s]: a `reshape` for GradCAM.

    T is s * s, or s * s + 1 with a class token first, else ValueError is raised. Behind the last attention
    scores depend on the class token only: the layer has to come before it.
    """
    side = math.isqrt(output.shape[1])
    if output.ndim != 3 or output.shape[1] - side**2 not in (0, 1):
        raise ValueError(f"expected [N, T, K], T a square or one more, not {list(output.shape)}")
    return output[:, -(side**2) :].unflatten(1, (side, side)).movedim(-1, 1)


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


def read_square(path: Path | str) -> Tensor:
    """Return the largest centred square of a PNG, JPEG, GIF or WebP file, uint8 [3, side, side].

    Upright by its EXIF tag, on white where a PNG or WebP is transparent, of an animated GIF the first frame.
    Raises ValueError if it has more than MAX_PIXELS, RuntimeError if it cannot be decoded.
    """
    data = Path(path).read_bytes()
    _check_size(data)
    colour_type = data[25] if data[1:4] == b"PNG" and len(data) > 25 else None
    # Only where there is alpha: of another palette torchvision makes a scrambled RGBA, of a JPEG none.
    palette_with_alpha = colour_type == 3 and b"tRNS" in data[: data.find(b"IDAT")]
    has_alpha = palette_with_alpha or colour_type in (4, 6) or data[8:12] == b"WEBP"
    mode = ImageReadMode.RGB_ALPHA if has_alpha else ImageReadMode.RGB
    encoded = torch.frombuffer(bytearray(data), dtype=torch.uint8)
    picture = decode_image(encoded, mode, apply_exif_orientation=True)
    picture = picture[0] if picture.ndim == 4 else picture  # the first frame of an animation
    picture = center_crop(picture, [min(picture.shape[-2:])] * 2)
    picture = to_dtype(picture, torch.uint8, scale=True)  # a PNG may have 16 bits
    if has_alpha:
        alpha = picture[3:] / 255
        picture = (picture[:3] * alpha + 255 * (1 - alpha)).round().to(torch.uint8)
    return picture


def _check_size(data: bytes) -> None:
    """Raise ValueError if a picture file says it has more than MAX_PIXELS, before these take any memory."""
    places = {  # where the two sides stand, and their byte order
        rb"\A\x89PNG.{12}(.{4})(.{4})": "big",
        rb"\AGIF.{3}(..)(..)": "little",
        rb"\ARIFF....WEBPVP8 .{10}(..)(..)": "little",
        rb"\ARIFF....WEBPVP8X.{8}(...)(...)": "little",
        # Each start of a frame of 1, 3 or 4 channels in a JPEG, the picture's and that of a thumbnail.
        rb"\xff[\xc0-\xcf]\x00[\x0b\x11\x14]\x08(..)(..)[\x01\x03\x04]": "big",
    }
    pixels = [0]
    for place, order in places.items():
        for sides in re.findall(place, data, re.DOTALL):
            pixels.append(math.prod(int.from_bytes(side, order) for side in sides))
    if data[8:16] == b"WEBPVP8L":  # lossless: the sides less 1 in 14 bits each
        bits = int.from_bytes(data[21:25], "little")
        pixels.append((bits & 0x3FFF) * (bits >> 14 & 0x3FFF))
    if max(pixels) > MAX_PIXELS:
        raise ValueError(f"more than the {MAX_PIXELS // 10**6} million pixels allowed")


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
    import network
    from running.console import CommandLine
    from running.files import UserError, check_file, reading

    parser = CommandLine("Show what in a picture speaks for the predicted class, and what for another one.")
    parser.add_argument("image", type=Path, metavar="IMAGE", help="picture; its middle square is taken")
    network.add_options(parser, default="the weights in weights/")
    help = "show what speaks for the prediction rather than CLASS, and the other way round"
    parser.add_argument("--contrast", metavar="CLASS", help=help)
    help = "PNG file to write (default: <IMAGE's name>_gradcam.png, numbered if that exists)"
    parser.add_argument("--output", type=Path, metavar="FILE", help=help)
    args = parser.parse_args(argv)
    check_file(args.image, "picture")
    with reading(args.image, "a picture (PNG, JPEG, GIF or WebP)"):
        square = read_square(args.image)
    output = args.output or _free_name(args.image.stem)
    if output.suffix.lower() != ".png" or (output.exists() and output.samefile(args.image)):
        raise UserError(f"--output must be a .png file other than IMAGE, not {output}")
    examined = network.from_options(args, torch.device("cpu"), DEFAULT_CHECKPOINT)

    small = resize(square, [32, 32], antialias=True)
    probabilities = network.predict(examined.model, small[None], examined.device)[0].softmax(dim=0)
    names = examined.class_names or [f"class {c}" for c in range(len(probabilities))]
    if not probabilities.isfinite().all() or len(names) != len(probabilities):
        expected = f"expected {len(names)}, a finite one for each class"
        raise UserError(f"the network makes {len(probabilities)} scores: {expected}")
    likely = probabilities.topk(min(5, len(names))).indices.tolist()
    classes, roles, against = likely[:2], ["the prediction", "the runner-up"], None
    if args.contrast is not None:
        if args.contrast not in names or args.contrast == names[likely[0]]:
            raise UserError(f"--contrast {args.contrast}: expected a class other than {names[likely[0]]}")
        classes = [likely[0], names.index(args.contrast)]
        against = torch.tensor(classes[::-1])
        roles = [f"rather than {names[c]}" for c in classes[::-1]]
    width = max(len(names[c]) for c in likely)
    print(f"{'class':{width}}  probability")
    for c in likely:
        print(f"{names[c]:{width}}  {100 * probabilities[c]:9.1f} %")
    if examined.layer is None:
        print(examined.layer_note)
        return
    images = (small / 255).expand(len(classes), -1, -1, -1)
    maps = examined.explain(images, torch.tensor(classes), against)
    titles = []
    for c, role in zip(classes, roles, strict=False):
        titles.append(f"{names[c]} ({100 * probabilities[c]:.1f} %)\n{role}")
    _write_figure(square, small, titles, maps, f"Grad-CAM at {examined.layer}", output)
    print(f"Grad-CAM at {examined.layer_note}\nwrote {output}")


def _write_figure(square: Tensor, small: Tensor, titles: list[str], maps: Tensor, label: str, output: Path):
    """Write the picture, what the network gets and its maps to a PNG file, in matplotlib's default style."""
    import matplotlib

    from running.files import whole_file

    # A side of 32 to 512 pixels stays as it is: large enough to show a heatmap, small enough for a figure.
    square = resize(square, [min(max(square.shape[1], 32), 512)] * 2, antialias=True)
    panels = [("picture\ncentre square", square), ("network input\n32x32 pixels", small)]
    for title, heatmap in zip(titles, to_heatmap(maps, square.shape[1]), strict=True):
        found = "evidence" if heatmap.any() else "no evidence"
        panels.append((f"{found} for {title}", overlay(square[None] / 255, heatmap[None])[0]))
    with matplotlib.rc_context(), whole_file(output) as temporary:
        matplotlib.rcdefaults()  # the user's own style may ask for what is not here, such as LaTeX
        draw(panels, label).savefig(temporary, format="png", bbox_inches="tight")


def _free_name(stem: str) -> Path:
    """Return <stem>_gradcam.png, or <stem>_gradcam_2.png and so on if there is such a file."""
    path = Path(f"{stem}_gradcam.png")
    for number in itertools.count(2):
        if not path.exists():
            return path
        path = Path(f"{stem}_gradcam_{number}.png")


if __name__ == "__main__":
    if not Path(__file__).resolve().with_name("network.py").is_file():
        print("error: the command needs network.py and the rest of its project beside it", file=sys.stderr)
        sys.exit(2)
    os.environ["MPLBACKEND"] = "agg"  # the user's own may not be installed here
    from running.console import run_main

    run_main(main)

"""Explain a picture of your own: its likeliest classes, and what in it speaks for them.

    python -m lab.explain IMAGE                       by the shipped weights
    python -m lab.explain IMAGE --contrast seal       what speaks for the answer rather than for a seal
    python -m lab.explain IMAGE --model net.py:make   by a network of your own

It writes a figure with the picture, the network's input, and two Grad-CAM maps, see gradcam.py.
"""

import difflib
import itertools
import sys
from pathlib import Path

if __name__ == "__main__":  # from any folder, and without lab/ before a user's own modules
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

import torch
from matplotlib.cm import ScalarMappable
from matplotlib.figure import Figure  # unlike pyplot, this keeps no global state and opens no window
from torch import Tensor

from gradcam import overlay, to_heatmap
from lab.classifier import Classifier
from lab.networks import read_transform
from lab.options import add_options, from_options
from lab.pictures import fit, read_picture, reduced, transformed
from lab.predictions import plain_name
from lab.support import CommandLine, UserError, pick_device, reading, run_main
from report import drawn
from train import write


def free_name(stem: str) -> Path:
    """Return <stem>_gradcam.png, or <stem>_gradcam_2.png and so on if there is such a file."""
    path = Path(f"{stem}_gradcam.png")
    for number in itertools.count(2):
        if not path.exists():
            return path
        path = Path(f"{stem}_gradcam_{number}.png")


def choose_maps(
    names: list[str], likely: list[int], contrast: str | None
) -> tuple[list, list, Tensor | None]:
    """Return the two classes to explain, their titles in the figure, and the class that each is against."""
    if contrast is None:
        return likely[:2], ["the prediction", "the runner-up"], None
    plain = [plain_name(name) for name in names]
    if contrast not in names and plain_name(contrast) not in plain:
        near = " or ".join(difflib.get_close_matches(contrast, names, 3, 0.0))
        raise UserError(f"--contrast {contrast} is none of the {len(names)} classes: give one such as {near}")
    other = names.index(contrast) if contrast in names else plain.index(plain_name(contrast))
    if other == likely[0]:
        raise UserError(f"--contrast {contrast} is the answer itself: expected another class")
    classes = [likely[0], other]
    return classes, [f"rather than {names[c]}" for c in classes[::-1]], torch.tensor(classes[::-1])


def draw(panels: list[tuple[str, Tensor]], label: str) -> Figure:
    """Return a figure of titled pictures, uint8 [3, H, W], and a bar of the colours of overlay."""
    figure = Figure(figsize=(3 * len(panels) + 0.9, 3.5), layout="constrained")
    axes = figure.subplots(1, len(panels))
    for ax, (title, picture) in zip(axes, panels, strict=True):
        ax.imshow(picture.permute(1, 2, 0).numpy())
        ax.set_title(title, fontsize=9, parse_math=False)
        ax.set_axis_off()
    figure.colorbar(ScalarMappable(cmap="inferno"), ax=axes[-1], fraction=0.046, pad=0.02, label=label)
    return figure


def write_figure(
    square: Tensor | None, small: Tensor, titles: list[str], maps: Tensor, label: str, output: Path
) -> None:
    """Write the picture, what the network gets of it, and its maps, float [M, h, w], to a PNG file.

    Without `square` what the network gets stands for the picture.
    """
    panels = [(f"network input\n{small.shape[1]} pixels", small)]
    if square is None:
        square = small
    else:
        panels.insert(0, ("picture\ncentre square", square))
    for title, heatmap in zip(titles, to_heatmap(maps, square.shape[1]), strict=True):
        evidence = "evidence" if heatmap.any() else "no evidence"
        panels.append((f"{evidence} for {title}", overlay(square[None] / 255, heatmap[None])[0]))
    write(output, drawn(draw(panels, label), "png", 150))


def explain_picture(examined: Classifier, picture: Tensor, contrast: str | None, output: Path) -> None:
    """Print the likeliest classes of a picture, uint8 [3, H, W], and write the figure."""
    size, resize = examined.model.image_size, examined.model.uncropped
    if examined.transform is None:
        small = reduced(picture)
        if small is picture or small.shape[1] != small.shape[2]:
            small = fit(small, size, resize)  # else the network itself resizes it, as it does in a report
    else:
        with reading(examined.transform, "a --transform of the picture"):
            small = transformed(picture, size, read_transform(examined.transform))
    probabilities = examined.predict(small[None])[0].softmax(dim=0)
    names = examined.class_names or [f"class {c}" for c in range(len(probabilities))]
    likely = probabilities.topk(min(5, len(names))).indices.tolist()
    classes, roles, against = choose_maps(names, likely, contrast)
    width = max(len(names[c]) for c in likely)
    print(f"{'class':{width}}  probability")
    for c in likely:
        print(f"{names[c]:{width}}  {100 * probabilities[c]:9.1f} %")
    if examined.layer is None:
        print(examined.layer_note)
        return
    if (small == small[:, :1, :1]).all():
        print("note     the picture is of one colour: what the maps show is the network's, not the picture's")
    images = small.expand(len(classes), -1, -1, -1)
    maps = examined.explain(images, torch.tensor(classes), against)
    titles = []
    for c, role in zip(classes, roles, strict=False):
        titles.append(f"{names[c]} ({100 * probabilities[c]:.1f} %)\n{role}")
    # The same part of the picture, large enough to show a heatmap and small enough for a figure.
    side = min(max(min(picture.shape[1:]), size), 512)
    square = None  # of a transform nobody knows what it would make at another side
    if examined.transform is None:
        square = fit(picture, side, resize and round(side * resize / size))
    write_figure(square, small, titles, maps, f"Grad-CAM at {examined.layer}", output)
    print(f"Grad-CAM at {examined.layer_note}\nwrote {output}")


def main(argv: list[str] | None = None) -> int:
    """Explain one picture; return the exit code."""
    parser = CommandLine(description=__doc__)
    parser.add_argument("image", type=Path, metavar="IMAGE", help="picture; its middle square is taken")
    add_options(parser, default="the weights in weights/")
    text = "show what speaks for the prediction rather than CLASS, and the other way round"
    parser.add_argument("--contrast", metavar="CLASS", help=text)
    text = "PNG file to write (default: <IMAGE's name>_gradcam.png, numbered if that exists)"
    parser.add_argument("--out", type=Path, metavar="FILE", help=text)
    parser.add_argument("--device", default="cpu", help="cpu, cuda, mps or auto (default: cpu)")
    args = parser.parse_args(argv)
    with reading(args.image, "a picture"):
        picture = read_picture(args.image)
    output = args.out or free_name(args.image.stem)
    if output.suffix.lower() != ".png" or output.exists():
        raise UserError(f"--out {output}: expected a .png file that is not there yet")
    explain_picture(
        from_options(args, pick_device(args.device), shipped=True), picture, args.contrast, output
    )
    return 0


if __name__ == "__main__":
    run_main(main)

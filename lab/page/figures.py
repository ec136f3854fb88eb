"""What the sections of explore.html draw with: numbers in words, sheets of pictures, and plots as SVG."""

import base64
import io
import math
import re
from html import escape

import numpy as np
import torch.nn.functional as F
from markupsafe import Markup
from matplotlib.figure import Figure
from torch import Tensor
from torchvision.utils import make_grid

import report
from report import GREY, INK, LINE, address, encoded, in_percent

SIDE = 64  # pixels: the largest side of a picture on the page
MAX_SHEET, BYTES_PER_PIXEL = 600_000, 0.25  # of a sheet of pictures, whose quality falls until it fits
# Colours are variables of the style sheet, so that one plot serves a light and a dark page.
VARIABLES = {INK: "ink", GREY: "grey", LINE: "line"}
TEXTS = ("axes.labelcolor", "axes.titlecolor", "text.color", "xtick.labelcolor", "ytick.labelcolor")
STYLE = report.STYLE | dict.fromkeys(TEXTS, INK) | dict.fromkeys(["xtick.color", "ytick.color"], GREY)
STYLE |= {
    "font.size": 15,  # of 360 pixels, so that no letter on a phone is smaller
    "figure.titlesize": 15,
    "figure.titleweight": "bold",
    "lines.markersize": 4,
    "svg.fonttype": "none",  # text stays text
    "svg.hashsalt": "explore",
}


# ---- Numbers in words --------------------------------------------------------------------------------------


def percent(value: float | dict | None, digits: int = 1) -> str:
    """Return report.percent of a fraction, or of a fraction with its interval, {value, low, high}."""
    return report.percent(value["value"] if isinstance(value, dict) else value, digits)


def interval(row: dict, digits: int = 1) -> str:
    """Return a fraction with its interval, value, low and high, as "12.3 % (9.9–15.1)"."""
    low, high = (f"{100 * row[key]:.{digits}f}" for key in ("low", "high"))
    return f"{percent(row['value'], digits)} ({low}\N{WORD JOINER}–\N{WORD JOINER}{high})"


def corruption(name: str) -> str:
    """Return the name of a corruption for people."""
    return report.plain(name).replace("gaussian", "Gaussian").replace("jpeg", "JPEG")


# ---- Pictures and plots ------------------------------------------------------------------------------------


def reduced(images: Tensor) -> Tensor:
    """Return images uint8 [N, 3, S, S] as the page shows them, reduced to 64 pixels if they are wider."""
    if images.shape[-1] <= SIDE:
        return images
    return F.interpolate(images, SIDE, mode="bilinear", antialias=True)


def picture(image: Tensor) -> str:
    """Return an image, uint8 [3, H, W] or float in [0, 1], as an address."""
    return address(encoded((255 * image).round().byte() if image.is_floating_point() else image), "png")


def sheet(images: Tensor, limit: int = MAX_SHEET, columns: int | None = None) -> dict:
    """Return images, uint8 [N, 3, S, S], as one JPEG file: `address`, `columns` and `rows`.

    Its quality falls until the file has `limit` bytes, or 0.25 a pixel. columns: by default a square.
    """
    images = images if len(images) else images.new_zeros(1, *images.shape[1:])
    columns = columns or math.ceil(math.sqrt(len(images)))
    pixels = make_grid(images, nrow=columns, padding=0)
    for quality in range(85, 15, -10):
        content = encoded(pixels, "JPEG", quality)
        if len(content) <= max(limit, BYTES_PER_PIXEL * pixels[0].numel()):
            break
    return {"address": address(content, "jpeg"), "columns": columns, "rows": math.ceil(len(images) / columns)}


def base64_of(values: np.ndarray) -> str:
    """Return uint8 values as the base64 of their bytes."""
    return base64.b64encode(values.tobytes()).decode()


def to_svg(figure: Figure, name: str, description: str) -> Markup:
    """Return a figure as an <svg> element, whose ids begin with `name`; the description is for the blind."""
    file = io.StringIO()
    figure.savefig(file, format="svg", transparent=True, metadata={"Date": None})
    text = file.getvalue()
    text = re.sub(r"<metadata>.*?</metadata>", "", text[text.index("<svg") :], flags=re.DOTALL)
    text = re.sub(r'(\bid="|href="#|url\(#)', rf"\g<1>{name}-", text)
    for colour, variable in VARIABLES.items():
        text = text.replace(colour, f"var(--{variable})")
    return Markup(text.replace("<svg ", f'<svg role="img" aria-label="{escape(description)}" ', 1))


def draw_attacks(curves: dict[str, dict], epsilons: list[float], unattacked: float) -> Markup:
    """Plot the accuracy under the `worst` of all attacks and under `random` signs by epsilon, with bands."""
    figure = Figure(figsize=(5, 215 / 72))  # 360 pixels wide
    axes = figure.add_subplot(xlabel="epsilon, in 1/255; bands: 95 % intervals")
    figure.suptitle("Right under attack", x=0.01, ha="left")
    for step, epsilon in enumerate(epsilons):  # the script shows one of these rules
        axes.axvline(epsilon, color=GREY, linewidth=1.2, marker="").set_gid(f"rule-{step}")
    axes.axhline(unattacked, color=GREY, linestyle=":", linewidth=1, marker="", label="no attack")
    looks = (("worst of all", INK, "o"), ("random signs", GREY, "s"))
    for of_epsilon, (label, colour, marker) in zip(curves.values(), looks, strict=True):
        line = [of_epsilon[f"{epsilon:g}"] for epsilon in epsilons]
        value, low, high = ([point[key] for point in line] for key in ("value", "low", "high"))
        axes.plot(epsilons, value, color=colour, marker=marker, label=label, clip_on=False)
        axes.fill_between(epsilons, low, high, color=colour, alpha=0.15, linewidth=0)
    axes.set_xscale("log", base=2)
    axes.set_xticks(epsilons, [f"{epsilon:g}" for epsilon in epsilons])
    axes.set(xlim=(epsilons[0] / 1.3, 1.05 * epsilons[-1]), ylim=(0, 1))
    in_percent(axes.yaxis)
    above = {"loc": "lower right", "bbox_to_anchor": (1.02, 0.98), "ncols": 3}  # the lines may be anywhere
    axes.legend(frameon=False, handlelength=1, columnspacing=0.7, handletextpad=0.3, **above)
    left = 100 * curves["worst"]["1"]["value"]
    text = f"Accuracy under attack by epsilon: at 1/255 the worst leaves {left:.1f} %."
    return to_svg(figure, "epsilon", text)

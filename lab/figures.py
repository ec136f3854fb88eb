"""What the sections of explore.html draw with: numbers in words, sheets of pictures, and plots as SVG."""

import base64
import io
import math
import re
from html import escape

import matplotlib
import numpy as np
import torch
import torch.nn.functional as F
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

import report
from report import BLUE, GREY, INK, LINE, ORANGE, address, encoded

SIDE = 64  # pixels: the largest side of a picture on the page
MAX_SHEET, BYTES_PER_PIXEL = 600_000, 0.25  # of a sheet of pictures, whose quality falls until it fits
# Colours are variables of the style sheet, so that one plot serves a light and a dark page.
VARIABLES = {INK: "ink", GREY: "grey", LINE: "line", BLUE: "blue", ORANGE: "orange"}
TEXTS = ("axes.labelcolor", "axes.titlecolor", "text.color", "xtick.labelcolor", "ytick.labelcolor")
STYLE = report.STYLE | dict.fromkeys(TEXTS, INK) | dict.fromkeys(["xtick.color", "ytick.color"], GREY)
STYLE |= {
    "figure.titlesize": 13,
    "figure.titleweight": "bold",
    "axes.prop_cycle": matplotlib.cycler(color=[INK, GREY], marker=["o", "s"]),
    "lines.markersize": 4,
    "svg.fonttype": "none",  # text stays text
    "svg.hashsalt": "explore",
}


# ---- Numbers in words --------------------------------------------------------------------------------------


def percent(value: float | dict | None, digits: int = 1) -> str:
    """Return report.percent of a fraction, or of a fraction with its interval."""
    return report.percent(None if value is None else value_of(value), digits)


def value_of(row: float | dict) -> float:
    """Return a fraction, of itself or of {value, low, high}."""
    return row["value"] if isinstance(row, dict) else row


def interval(row: dict, digits: int = 1) -> str:
    """Return a fraction with its interval, value, low and high, as "12.3 % (9.9–15.1)"."""
    low, high = (f"{100 * row[key]:.{digits}f}" for key in ("low", "high"))
    return f"{percent(row['value'], digits)} ({low}\N{WORD JOINER}–\N{WORD JOINER}{high})"


# ---- Pictures and plots ------------------------------------------------------------------------------------


def reduced(images: Tensor) -> Tensor:
    """Return images uint8 [N, 3, S, S] as the page shows them, reduced to 64 pixels if they are wider."""
    return (
        images if images.shape[-1] <= SIDE else F.interpolate(images, SIDE, mode="bilinear", antialias=True)
    )


def picture(image: Tensor) -> str:
    """Return an image, uint8 [3, H, W] or float in [0, 1], as an address."""
    return address(encoded((255 * image).round().byte() if image.is_floating_point() else image), "png")


def sheet(images: Tensor, limit: int = MAX_SHEET, columns: int | None = None) -> dict:
    """Return images, uint8 [N, 3, S, S], as one JPEG file: `address`, `columns` and `rows`.

    Its quality falls until the file has `limit` bytes, or 0.25 a pixel. columns: by default a square.
    """
    columns, side = columns or math.ceil(math.sqrt(max(1, len(images)))), images.shape[-1]
    rows = max(1, math.ceil(len(images) / columns))
    squares = torch.zeros(rows * columns, 3, side, side, dtype=torch.uint8)
    squares[: len(images)] = images
    squares = squares.view(rows, columns, 3, side, side).permute(2, 0, 3, 1, 4)
    pixels = squares.reshape(3, rows * side, columns * side)
    for quality in range(95, 15, -10):
        content = encoded(pixels, "JPEG", quality)
        if len(content) <= max(limit, BYTES_PER_PIXEL * pixels[0].numel()):
            break
    return {"address": address(content, "jpeg"), "columns": columns, "rows": rows}


def base64_of(values: np.ndarray) -> str:
    """Return uint8 values as the base64 of their bytes."""
    return base64.b64encode(values.tobytes()).decode()


def small_figure(title: str, x_label: str, height: int = 250) -> tuple[Figure, Axes]:
    """Return a figure 360 pixels wide and its axes; the title says what y is."""
    figure = Figure(figsize=(5, height / 72))
    axes = figure.add_subplot()
    figure.suptitle(title, x=0.01, ha="left")
    axes.set_xlabel(x_label)
    return figure, axes


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

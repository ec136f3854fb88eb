"""The plots of a page: functions of plain arrays and dicts that return a matplotlib Figure.

`save_png` writes a Figure to a file, and `to_svg` returns it as an element for a page. The page's style sheet
sets the colours of that element, so one plot serves a light and a dark page. plots.mplstyle says how plots
look. A figure is designed at the width of a phone and grows with its column; lines carry their names.
"""

import contextlib
import io
import re
from collections.abc import Iterable
from html import escape
from pathlib import Path

import matplotlib
import matplotlib.style
import numpy as np
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.colors import PowerNorm
from matplotlib.figure import Figure

from support.files import whole_file

INK, GRID, GREY = "#1a1a1b", "#d8d8d9", "#66666a"
BLUE, ORANGE, GREEN = "#00497a", "#b04c00", "#00785a"  # a black-and-white print shows three different greys
# The names of the colours in the style sheet of the report.
CSS_VARIABLES = {INK: "ink", GRID: "line", GREY: "grey", BLUE: "blue", ORANGE: "orange", GREEN: "green"}
PIXELS = 72  # pixels in an inch
LINE = 17  # pixels that a line of text needs
MOST_LABELLED = 200  # classes: with more of them the matrix is a picture without names


def styled() -> contextlib.AbstractContextManager:
    """Return the context, or the decorator, in which everything is drawn, whatever the user has set up."""
    return matplotlib.style.context(Path(__file__).parent / "plots.mplstyle", after_reset=True)


def save_png(figure: Figure, path: Path, dpi: int = 160) -> None:
    """Write the figure to a PNG file on white; see whole_file."""
    with whole_file(path) as temporary:
        figure.savefig(temporary, format="png", dpi=dpi, facecolor="white")


def to_svg(figure: Figure, name: str, description: str) -> Markup:
    """Return the figure as an <svg> element in pixels, with CSS variables for colours.

    Every id in it begins with `name`, so that ids are unique on a page. `description` tells people who cannot
    see the figure what it shows.
    """
    file = io.StringIO()
    matplotlib.rcParams["svg.hashsalt"] = name
    figure.savefig(file, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    svg = file.getvalue()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r'(\bid="|href="#|url\(#)', rf"\g<1>{name}-", svg)
    svg = re.sub(r'(width|height)="([\d.]+)pt"', r'\1="\2"', svg)
    for colour, variable in CSS_VARIABLES.items():
        svg = svg.replace(colour, f"var(--{variable})")
    svg = re.sub(r'width="[\d.]+" height="[\d.]+"', "", svg, count=1)  # as wide as its column
    attributes = f'id="{name}" role="img" aria-label="{escape(description)}"'
    return Markup(svg.replace("<svg ", f"<svg {attributes} ", 1))


def small_figure(title: str, x_label: str, width: int = 360, height: int = 250) -> tuple[Figure, Axes]:
    """Return a figure of width x height pixels and its axes; the title says what y is."""
    figure = Figure(figsize=(width / PIXELS, height / PIXELS))
    axes = figure.add_subplot()
    figure.suptitle(title, x=0.01, ha="left")
    axes.set_xlabel(x_label)
    return figure, axes


def shortened(names: Iterable[str], length: int) -> list[str]:
    """Return the names, cut to `length` letters, so that they leave room for the plot."""
    return [name if len(name) <= length else f"{name[: length - 1]}…" for name in names]


def in_percent(*several: Axis) -> None:
    """Label the axes of fractions in percent."""
    for axis in several:
        axis.set_major_formatter(lambda value, _: f"{100 * value:.3g} %")


def name_lines(axes: Axes, lines: dict[str, tuple[float, float, str]]) -> None:
    """Write its label beside the end of each line, {label: (x, y, colour)}, so that no two labels touch.

    A label that had to move is joined to its line.
    """
    low, high = axes.get_ylim()
    gap = LINE * (high - low) / 170  # about the pixels of the axes' height
    below = low - gap
    for label, (x, y, colour) in sorted(lines.items(), key=lambda line: line[1][1]):
        below = max(y, below + gap)
        options = {"textcoords": ("offset points", "data"), "va": "center", "annotation_clip": False}
        if below > y:
            options["arrowprops"] = {"arrowstyle": "-", "color": colour, "linewidth": 0.7, "relpos": (0, 0.5)}
            options["arrowprops"] |= {"shrinkA": 0, "shrinkB": 3}
        axes.annotate(label, (x, y), (14 if below > y else 6, below), color=colour, **options)


# ---- Curves ----------------------------------------------------------------------------------------------


def training_curve(
    history: dict[str, np.ndarray], quantity: str, best_epoch: float, changes: dict[float, str]
) -> Figure:
    """Draw the "loss" or the "accuracy" of both splits over the epochs, and mark the best epoch.

    history: the columns epoch, train_loss, val_loss and so on. changes: {epoch: what changes in the training
    there}, written above a vertical line.
    """
    figure, axes = small_figure(
        f"{quantity.capitalize()} in training", "epoch (dotted: the weights examined)"
    )
    ends, epochs = {}, history["epoch"]
    for split, label in {"train": "training", "val": "validation"}.items():
        values = history[f"{split}_{quantity}"]
        (line,) = axes.plot(epochs, values, markersize=3)
        ends[label] = (epochs[-1], values[-1], line.get_color())
    axes.axvline(best_epoch, color=GREY, linestyle=":", marker="")
    axes.xaxis.get_major_locator().set_params(integer=True)
    for epoch in changes:
        axes.axvline(epoch, color=GREY, linewidth=0.7, marker="")
    above = axes.secondary_xaxis("top")
    above.set_xticks(list(changes), list(changes.values()))
    above.tick_params(length=0)
    above.spines.top.set_visible(False)
    if quantity == "accuracy":
        in_percent(axes.yaxis)
        axes.set_ylim(0, 1)
    name_lines(axes, ends)
    return figure


# ---- Confidence ------------------------------------------------------------------------------------------


def reliability(title: str, bins: list[list[float]]) -> Figure:
    """Draw accuracy against confidence, [[confidence, accuracy, count], ...]; a point's area is its count."""
    confidence, accuracy, count = np.array(bins).T
    error = (count * abs(accuracy - confidence)).sum() / count.sum()
    title = f"{title}: calibration error {100 * error:.1f} %"
    figure, axes = small_figure(title, "confidence", height=320)
    axes.axline((0, 0), (1, 1), color=GREY, linestyle=":", linewidth=1.2)
    sizes = np.maximum(9, 1300 * count / count.sum())  # so that a bin of few answers is seen
    axes.scatter(confidence, accuracy, s=sizes, color=BLUE, marker="o", alpha=0.85)
    options = {"color": GREY, "transform": axes.transAxes}
    axes.text(0.04, 0.92, "underconfident:\nright more often", va="top", **options)
    axes.text(0.97, 0.07, "overconfident:\nright less often", ha="right", **options)
    ends, ticks = (-0.09, 1.09), np.linspace(0, 1, 6)  # room for a large point at the end
    axes.set(ylabel="accuracy", xlim=ends, ylim=ends, xticks=ticks, yticks=ticks)
    in_percent(axes.xaxis, axes.yaxis)
    return figure


def confidence_histogram(title: str, right: np.ndarray, wrong: np.ndarray, top: int = 0) -> Figure:
    """Draw how many right and wrong answers, int [B] each, have their confidence in each of the B bins.

    top: the highest bin of several histograms that are to have one scale.
    """
    figure, axes = small_figure(f"{title}: how sure answers are, stacked", "confidence", height=320)
    edges, filled = np.linspace(0, 1, len(right) + 1), {"fill": True, "linewidth": 0}
    axes.stairs(wrong, edges, color=ORANGE, **filled)
    # Lighter, so that the two differ in grey as well.
    axes.stairs(wrong + right, edges, baseline=wrong, color=BLUE, alpha=0.4, **filled)
    every = right + wrong
    x = 0.03 if every[len(every) // 2 :].sum() > every.sum() / 2 else 0.7  # where there are fewer bars
    axes.text(x, 0.92, f"right: {right.sum():,}", color=BLUE, transform=axes.transAxes)
    axes.text(x, 0.84, f"wrong: {wrong.sum():,}", color=ORANGE, transform=axes.transAxes)
    in_percent(axes.xaxis)
    axes.yaxis.get_major_locator().set_params(integer=True)
    axes.set(xlim=(0, 1), ylim=(0, 1.03 * max(1, top or every.max())))
    return figure


# ---- Bars ------------------------------------------------------------------------------------------------


def headline_bars(numbers: dict[str, dict[str, float]]) -> Figure:
    """Draw one bar for each number, {name: value, low and high}, with its value above."""
    figure, axes = small_figure("Test metrics with 95 % intervals", "", width=504)
    value, low, high = (np.array([row[key] for row in numbers.values()]) for key in ("value", "low", "high"))
    # With few images in a class the value can lie outside its interval, and an error bar cannot be negative.
    errors = np.clip([value - low, high - value], 0, None)
    names = [name.replace(" ", "\n") for name in numbers]
    bars = axes.bar(names, value, color=BLUE, width=0.6, yerr=errors, ecolor=INK, capsize=4)
    axes.bar_label(bars, [f"{100 * v:.2f} %" for v in value], padding=2)
    top = np.maximum(value, high).max()
    axes.set_ylim(0, top * 1.15 + 0.02)
    axes.set_yticks([tick for tick in axes.get_yticks() if tick <= 1])
    axes.grid(visible=False)
    in_percent(axes.yaxis)
    return figure


def worst_classes(title: str, recall: dict[str, float]) -> Figure:
    """Draw the recall of each class, {label: fraction}, the first on top."""
    figure, axes = small_figure(title, "accuracy", width=720, height=65 + 29 * len(recall))
    places = range(len(recall))
    bars = axes.barh(places, list(recall.values()), color=ORANGE, height=0.7)
    axes.set_yticks(places, shortened(recall, 60))
    axes.bar_label(bars, [f"{100 * value:.0f} %" for value in recall.values()], padding=4)
    axes.invert_yaxis()
    in_percent(axes.xaxis)
    axes.grid(visible=False, axis="y")
    axes.set_xlim(0, 1.1)
    return figure


# ---- The confusion matrix --------------------------------------------------------------------------------


def matrix_colours(shares: np.ndarray) -> np.ndarray:
    """Return a colour for each entry of a confusion matrix, as a share of its row: uint8 [C, C, 3].

    The scale is a square root, so that confusions of a few percent show beside the diagonal.
    """
    return matplotlib.colormaps["cividis"](PowerNorm(0.5, 0, 1)(shares), bytes=True)[..., :3]


def matrix_key() -> dict[float, str]:
    """Return a few shares of a row and their colours in matrix_colours, as CSS writes them."""
    shares = [0.0, 0.01, 0.05, 0.25, 1.0]
    return {
        share: f"rgb{tuple(colour)}"
        for share, colour in zip(shares, matrix_colours(shares).tolist(), strict=True)
    }


def confusion_matrix(counts: np.ndarray, class_names: list[str], groups: dict[str, int]) -> Figure:
    """Draw the confusion matrix [C, C] as shares of its rows, with lines between `groups`, {name: size}.

    See matrix_colours. More than MOST_LABELLED classes have no names beside them, and take the space of 145
    classes: 4 megapixels at 110 dpi.
    """
    count, fractions = len(counts), counts / np.maximum(1, counts.sum(axis=1, keepdims=True))
    has_names = count <= MOST_LABELLED
    cells = count if has_names else 145
    figure = Figure(figsize=(4.5 + 0.1 * cells, 3.4 + 0.09 * cells))
    axes = figure.add_subplot()
    mesh = axes.imshow(fractions, cmap="cividis", norm=PowerNorm(0.5, 0, 1), interpolation="nearest")
    names, places = shortened(class_names, 24), range(count)
    if not has_names:
        names, places = [], []
    axes.set_xticks(places, names, rotation=90, fontsize=7.4)
    axes.set_yticks(places, names, fontsize=7.4)
    axes.tick_params(which="both", length=0, pad=2)
    axes.grid(visible=False)
    title = "Share of each true class (row) given each predicted class (column)"
    figure.suptitle(title, x=0.01, ha="left", wrap=True)
    axes.set(xlabel="predicted class", ylabel="true class")
    if groups:
        edges = np.cumsum([0, *groups.values()]) - 0.5
        axes.set_xticks(edges, minor=True)
        axes.set_yticks(edges, minor=True)
        axes.grid(which="minor", linewidth=0.3)  # between the superclasses; their names stand on the right
        beside = axes.secondary_yaxis("right")
        beside.set_yticks((edges[1:] + edges[:-1]) / 2, list(groups), fontsize=9)
        beside.tick_params(length=0, pad=2)
    ticks = [0, 0.01, 0.1, 0.25, 0.5, 1]
    scale = figure.colorbar(mesh, ax=axes, location="bottom", shrink=0.5, aspect=40, pad=0.01, ticks=ticks)
    in_percent(scale.ax.xaxis)
    scale.outline.set_visible(False)
    # The first layout uses old positions of the labels and may cut them off. Saving makes a second one.
    figure.draw_without_rendering()
    return figure

"""Every plot of the report: functions of plain arrays and dicts that return a matplotlib Figure.

`save_png` writes a Figure to a file; `to_svg` returns it as an element for the report, whose style sheet sets
the colours, so that one plot serves a light and a dark page. plots.mplstyle says how they look. Figures of
the page are as wide as a phone, so that their letters have the same size everywhere; lines carry their names.
"""

import contextlib
import io
import os
import re
from collections.abc import Iterable, Iterator
from html import escape
from pathlib import Path
from unittest import mock

import numpy as np

with mock.patch.dict(os.environ, MPLBACKEND="agg"):  # the user's own may not be installed here
    import matplotlib
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis
    from matplotlib.colors import PowerNorm
    from matplotlib.figure import Figure

from page.page import Markup
from running.files import whole_file

INK, GRID, GREY = "#1a1a1b", "#d8d8d9", "#7a7a7b"
BLUE, ORANGE, GREEN = "#0072b2", "#d55e00", "#009e73"
# The colours' names in the style sheet of the report.
CSS_VARIABLES = {INK: "ink", GRID: "grid", GREY: "grey", BLUE: "blue", ORANGE: "orange", GREEN: "green"}
STYLE = matplotlib.rc_params_from_file(Path(__file__).parent / "plots.mplstyle", use_default_template=False)
PIXELS = 72  # to an inch
WIDTH, HEIGHT = 340 / PIXELS, 250 / PIXELS
LINE = 15  # pixels that a line of text needs


@contextlib.contextmanager
def styled() -> Iterator[None]:
    """Draw in the style of plots.mplstyle alone, whatever the user has set up, and leave no trace of it.

    Also a decorator: @styled().
    """
    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(STYLE)
        yield


@styled()
def save_png(figure: Figure, path: Path) -> None:
    """Write the figure to a PNG file at 160 dots per inch on white; see whole_file."""
    with whole_file(path) as temporary:
        figure.savefig(temporary, format="png", dpi=160, facecolor="white")


@styled()
def to_svg(figure: Figure, name: str, description: str) -> Markup:
    """Return the figure as an <svg> element in pixels, whose colours are CSS variables.

    `name` begins every id in it, so that ids are unique on a page. `description` says what is seen, for those
    who do not see it. data-axes has the left, top, right and bottom of the axes, for the script.
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
    box, height = figure.axes[0].get_window_extent(), figure.bbox.height
    corners = f"{box.x0:.1f} {height - box.y1:.1f} {box.x1:.1f} {height - box.y0:.1f}"
    attributes = f'id="{name}" role="img" aria-label="{escape(description)}" data-axes="{corners}"'
    return Markup(svg.replace("<svg ", f"<svg {attributes} ", 1))


def inferno() -> np.ndarray:
    """Return matplotlib's colours of that name, uint8 [256, 3], in which gradcam.overlay draws."""
    return matplotlib.colormaps["inferno"](np.arange(256), bytes=True)[:, :3]


def small_figure(x_label: str, y_label: str) -> tuple[Figure, Axes]:
    """Return a figure of the common size and its axes; the y axis is named above it, where there is room."""
    figure = Figure(figsize=(WIDTH, HEIGHT))
    axes = figure.add_subplot()
    axes.set_title(y_label, fontweight="normal", fontsize=11)
    axes.set_xlabel(x_label)
    return figure, axes


def shortened(names: Iterable[str], length: int) -> list[str]:
    """Return the names, those longer than `length` letters cut off, so that they leave room for the plot."""
    return [name if len(name) <= length else f"{name[: length - 1]}…" for name in names]


def in_percent(*several: Axis) -> None:
    """Label the axes of fractions in percent."""
    for axis in several:
        axis.set_major_formatter(lambda value, _: f"{100 * value:.3g} %")


def name_lines(axes: Axes, lines: dict[str, tuple[float, float, str]]) -> None:
    """Write beside the end of each line, {label: (x, y, colour)}, what it is, so that no two labels touch."""
    low, high = axes.get_ylim()
    gap = LINE * (high - low) / 170  # about the pixels of the axes' height
    below = low - gap
    for label, (x, y, colour) in sorted(lines.items(), key=lambda line: line[1][1]):
        below = max(y, below + gap)
        options = {"xytext": (6, 0), "textcoords": "offset points", "va": "center", "fontsize": 11}
        axes.annotate(label, (x, below), color=colour, annotation_clip=False, **options)


# ---- Curves ----------------------------------------------------------------------------------------------


@styled()
def curves(
    x_label: str, y_label: str, x: np.ndarray, lines: dict[str, np.ndarray], marker: str = ""
) -> Figure:
    """Curves of fractions, {label: values}, over a common x; a label "" is not written."""
    figure, axes = small_figure(x_label, y_label)
    ends = {}
    for label, values in lines.items():
        (line,) = axes.plot(x, values, marker=marker)
        if label:
            ends[label] = (x[-1], values[-1], line.get_color())
    if x[0] < x[-1]:
        axes.set_xlim(x[0], x[-1])
    axes.set_ylim(bottom=0)
    in_percent(axes.yaxis)
    name_lines(axes, ends)
    return figure


@styled()
def training_curve(
    history: dict[str, np.ndarray], quantity: str, best_epoch: float, changes: dict[float, str]
) -> Figure:
    """The "loss" or the "accuracy" of both splits over the epochs, with the best epoch marked.

    history: a column for each of epoch, train_loss, val_loss and so on. changes: {epoch: what is different in
    training from there on}, named above a vertical line.
    """
    figure, axes = small_figure("epoch", "")
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
    above.set_xticks(list(changes), list(changes.values()), fontsize=11)
    above.tick_params(length=0)
    above.spines.top.set_visible(False)
    if quantity == "accuracy":
        in_percent(axes.yaxis)
        axes.set_ylim(0, 1)
    name_lines(axes, ends)
    return figure


@styled()
def reliability(confidence: np.ndarray, accuracy: np.ndarray, count: np.ndarray) -> Figure:
    """Accuracy against confidence in bins, [B] each; the area of a point shows how many images it has."""
    figure, axes = small_figure("confidence", "accuracy")
    figure.set_figheight(300 / PIXELS)
    axes.axline((0, 0), (1, 1), color=GREY, linestyle=":", linewidth=1.2)
    some = count > 0
    sizes = 4 * point_radius(count[some], count.sum()) ** 2  # matplotlib: the square of the width
    points = axes.scatter(confidence[some], accuracy[some], s=sizes, color=ORANGE, marker="o")
    points.set_gid("points")
    axes.text(0.05, 0.92, "underconfident", color=GREY, fontsize=11, transform=axes.transAxes)
    axes.text(0.52, 0.04, "overconfident", color=GREY, fontsize=11, transform=axes.transAxes)
    axes.set(xlim=(0, 1), ylim=(0, 1))
    in_percent(axes.xaxis, axes.yaxis)
    return figure


def point_radius(count: np.ndarray, total: int) -> np.ndarray:
    """Return the radius in pixels of a point that stands for `count` of `total` images."""
    return 2 + 20 * np.sqrt(count / total)


# ---- Bars and dots ---------------------------------------------------------------------------------------


@styled()
def headline_bars(numbers: dict[str, dict[str, float]]) -> Figure:
    """One bar for each metric, {name: value, low and high}, and its value written above."""
    figure, axes = small_figure("", "Test metrics with 95 % intervals")
    figure.set_figwidth(1.4 * WIDTH)
    value, low, high = (np.array([row[key] for row in numbers.values()]) for key in ("value", "low", "high"))
    # With few images of a class the value can lie outside its interval, and an error bar cannot be negative.
    errors = np.clip([value - low, high - value], 0, None)
    names = [name.replace(" ", "\n") for name in numbers]
    bars = axes.bar(names, value, color=BLUE, width=0.6, yerr=errors, ecolor=INK, capsize=4)
    axes.bar_label(bars, [f"{100 * v:.2f} %" for v in value], padding=2)
    axes.set_ylim(0, np.maximum(value, high).max() * 1.15 + 0.02)
    axes.grid(visible=False)
    in_percent(axes.yaxis)
    return figure


@styled()
def worst_classes(title: str, recall: dict[str, float]) -> Figure:
    """The recall of each class, {label: fraction}, the first on top."""
    figure = Figure(figsize=(2 * WIDTH, 0.9 + 0.4 * len(recall)))
    axes = figure.add_subplot()
    places = range(len(recall))
    bars = axes.barh(places, list(recall.values()), color=ORANGE, height=0.7)
    axes.set_yticks(places, shortened(recall, 60))
    axes.bar_label(bars, [f"{100 * value:.0f} %" for value in recall.values()], padding=4)
    axes.invert_yaxis()
    in_percent(axes.xaxis)
    axes.grid(visible=False, axis="y")
    axes.set(xlabel="accuracy", xlim=(0, 1.1))
    # Above the labels too, as these leave the axes little room.
    figure.suptitle(title, x=0.01, ha="left", size=12, weight="bold")
    return figure


@styled()
def dots(rows: dict[str, dict[str, dict[str, float]]], x_label: str, unit: str = " %") -> Figure:
    """Fractions with their intervals, {row: {group: value, low, high}}; the first row names the groups.

    The name of a row stands above its points. A unit other than percent is that of differences, with signs.
    """
    groups, sign = list(next(iter(rows.values()))), "" if unit == " %" else "+"
    figure = Figure(figsize=(WIDTH, (50 + 21 * len(rows) * (1 + len(groups)) / 1.5) / PIXELS))
    axes = figure.add_subplot()
    place, ends = 0.0, [0.0]
    for label, of_row in rows.items():
        axes.text(0, place, label, transform=axes.get_yaxis_transform(), va="center", fontsize=12)
        for group, colour in zip(groups, (BLUE, ORANGE), strict=False):
            place += 0.8
            row = of_row[group]
            axes.plot([row["low"], row["high"]], [place, place], color=colour, marker="", linestyle="-")
            axes.plot(row["value"], place, color=colour, marker="o", markersize=7)
            named = f", {group}" if group and of_row is rows[next(iter(rows))] else ""
            text = f"{100 * row['value']:{sign}.1f}{unit}{named}"
            offset = {"xytext": (6, 0), "textcoords": "offset points"}
            text = axes.annotate(text, (row["high"], place), va="center", color=colour, fontsize=11, **offset)
            text.set_in_layout(False)  # it has room in the axes
            ends += [row["low"], row["high"]]
        place += 1.1
    axes.set_ylim(place - 0.4, -0.6)
    room = 2.0 if len(groups) > 1 else 1.5  # for the text behind the last point
    low, span = min(ends), max(ends) - min(ends)
    axes.set_xlim(low - 0.03 * span, low + room * span)
    axes.xaxis.get_major_locator().set_params(nbins=5)
    axes.set_xlabel(x_label)
    axes.set_yticks([])
    axes.set_xticks([tick for tick in axes.get_xticks() if low - 0.03 * span <= tick <= low + 1.1 * span])
    axes.spines.left.set_visible(False)
    if unit == " %":
        in_percent(axes.xaxis)
    else:
        axes.axvline(0, color=GREY, linewidth=1, marker="", zorder=0)
        axes.xaxis.set_major_formatter(lambda value, _: f"{100 * value:+.0f}")
    return figure


@styled()
def confidence_histogram(right: np.ndarray, wrong: np.ndarray) -> Figure:
    """How many of the right and of the wrong answers have a confidence in each of the bins, int [B] each."""
    figure, axes = small_figure("confidence", "test images")
    edges = np.linspace(0, 1, len(right) + 1)
    options = {"align": "edge", "width": edges[1]}
    axes.bar(edges[:-1], wrong, color=ORANGE, **options)
    axes.bar(edges[:-1], right, bottom=wrong, color=BLUE, **options)
    axes.text(0.03, 0.92, f"right: {right.sum():,}", color=BLUE, transform=axes.transAxes, fontsize=12)
    axes.text(0.03, 0.82, f"wrong: {wrong.sum():,}", color=ORANGE, transform=axes.transAxes, fontsize=12)
    in_percent(axes.xaxis)
    axes.yaxis.get_major_locator().set_params(integer=True)
    axes.set_xlim(0, 1)
    return figure


@styled()
def null_histogram(shuffled: np.ndarray, observed: float) -> Figure:
    """The values under permutation, float [P], and the observed one."""
    figure, axes = small_figure("variance of errors explained", "shuffles")
    figure.set_figheight(180 / PIXELS)
    axes.hist(shuffled, 30, color=GREY)
    axes.axvline(observed, color=ORANGE, linestyle="-", marker="")
    label = f"observed: {100 * observed:.1f} %"
    axes.annotate(label, (observed, axes.get_ylim()[1]), xytext=(-4, -4), textcoords="offset points",
                  ha="right", va="top", color=ORANGE)  # fmt: skip
    in_percent(axes.xaxis)
    return figure


# ---- Matrices --------------------------------------------------------------------------------------------


@styled()
def confusion_matrix(counts: np.ndarray, class_names: list[str], groups: dict[str, int]) -> Figure:
    """The confusion matrix [C, C] as shares of its rows, in the order of `groups`, {name: size}, if any.

    The colour scale is a square root, so that confusions of a few percent show beside the diagonal.
    """
    count, fractions = len(counts), counts / np.maximum(1, counts.sum(axis=1, keepdims=True))
    figure = Figure(figsize=(4.5 + 0.1 * count, 3.4 + 0.09 * count))
    axes = figure.add_subplot()
    mesh = axes.imshow(fractions, cmap="cividis", norm=PowerNorm(0.5, 0, 1), interpolation="nearest")
    names = shortened(class_names, 24)
    axes.set_xticks(range(count), names, rotation=90, fontsize=7.4)
    axes.set_yticks(range(count), names, fontsize=7.4)
    axes.grid(visible=False)
    tick_axes = [axes]
    if groups:
        edges = np.cumsum([0, *groups.values()]) - 0.5
        axes.set_xticks(edges, minor=True)
        axes.set_yticks(edges, minor=True)
        axes.grid(which="minor", linewidth=0.3)  # between the superclasses, whose names stand on the right
        beside = axes.secondary_yaxis("right")
        beside.set_yticks((edges[1:] + edges[:-1]) / 2, list(groups), fontsize=9)
        tick_axes.append(beside)
    for ticked in tick_axes:
        ticked.tick_params(which="both", length=0, pad=2)
    title = "Share of each true class (row) given each predicted class (column)"
    figure.suptitle(title, x=0.01, ha="left", size=12, weight="bold", wrap=True)
    axes.set(xlabel="predicted class", ylabel="true class")
    ticks = [0, 0.01, 0.1, 0.25, 0.5, 1]
    scale = figure.colorbar(mesh, ax=axes, location="bottom", shrink=0.5, aspect=40, pad=0.01, ticks=ticks)
    in_percent(scale.ax.xaxis)
    scale.outline.set_visible(False)
    # The first layout of square cells goes by old positions of the labels around them and may cut them off.
    # Saving makes a second one.
    figure.draw_without_rendering()
    return figure


# ---- Stress tests ----------------------------------------------------------------------------------------


@styled()
def stress_epsilon(tests: dict, robust_accuracy: dict[str, dict], epsilons: list[float]) -> Figure:
    """Accuracy against the epsilon of the attack, in 1/255, with 95 % intervals.

    tests are those of stress.json; robust_accuracy: that under the worst of all attacks, at each epsilon.
    """
    figure, axes = small_figure("epsilon: largest change of a value, in 1/255", "accuracy")
    unattacked = tests["unattacked/0"]["accuracy"]["value"]
    axes.axhline(unattacked, color=GREY, linestyle="--", linewidth=1)
    lines, labels = {}, {"fgsm": "FGSM", "pgd": "PGD", "random": "random signs"}
    for name, label in labels.items():
        lines[label] = [tests[f"{name}/{epsilon:g}"]["accuracy"] for epsilon in epsilons]
    lines["worst of all"] = [robust_accuracy[f"{epsilon:g}"] for epsilon in epsilons]
    colours = dict(zip(lines, (BLUE, ORANGE, GREEN, INK), strict=True))
    ends = {"no attack": (epsilons[-1], unattacked, GREY)}
    for label, points in lines.items():
        value, low, high = ([point[key] for point in points] for key in ("value", "low", "high"))
        axes.plot(epsilons, value, color=colours[label])
        axes.fill_between(epsilons, low, high, color=colours[label], alpha=0.15, linewidth=0)
        ends[label] = (epsilons[-1], value[-1], colours[label])
    axes.set_xscale("log", base=2)
    axes.set_xlim(epsilons[0] / 1.3, epsilons[-1])
    axes.set_xticks(epsilons, [f"{epsilon:g}" for epsilon in epsilons])
    axes.set_ylim(0, 1)
    in_percent(axes.yaxis)
    name_lines(axes, ends)
    return figure

"""Every plot of the report: functions of plain arrays and dicts that return a matplotlib Figure.

`save_png` writes a Figure to a file; `to_svg` returns it as an element for the report, whose style sheet sets
the colours, so that one plot serves a light and a dark page. plots.mplstyle says how they look.
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

from page.page import Markup, plain
from running.files import whole_file

INK, GRID, GREY = "#1a1a1b", "#d8d8d9", "#7a7a7b"
BLUE, ORANGE, GREEN = "#0072b2", "#d55e00", "#009e73"
# The colours' names in the style sheet of the report.
CSS_VARIABLES = {INK: "ink", GRID: "grid", GREY: "grey", BLUE: "blue", ORANGE: "orange", GREEN: "green"}
STYLE = matplotlib.rc_params_from_file(Path(__file__).parent / "plots.mplstyle", use_default_template=False)
SMALL = (4.6, 3.2)  # inches: two beside each other on a desktop, one across a phone


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
    # The first layout of a matrix of square cells goes by old positions of the labels around it and may cut
    # them off. Saving makes a second one.
    figure.draw_without_rendering()
    with whole_file(path) as temporary:
        figure.savefig(temporary, format="png", dpi=160, facecolor="white")


@styled()
def to_svg(figure: Figure, name: str) -> Markup:
    """Return the figure as an <svg> element whose colours are CSS variables.

    `name` begins every id in it, so that ids are unique on a page. For those who do not see the figure, its
    titles say what it shows.
    """
    file = io.StringIO()
    figure.draw_without_rendering()  # as above
    matplotlib.rcParams["svg.hashsalt"] = name
    figure.savefig(file, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    svg = file.getvalue()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r'(\bid="|href="#|url\(#)', rf"\g<1>{name}-", svg)
    for colour, variable in CSS_VARIABLES.items():
        svg = svg.replace(colour, f"var(--{variable})")
    titles = [axes.get_title(loc="left") for axes in figure.axes]
    alt = "; ".join(title for title in titles if title) or plain(name)
    return Markup(svg.replace("<svg ", f'<svg role="img" aria-label="{escape(alt)}" ', 1))


def inferno() -> np.ndarray:
    """Return matplotlib's colours of that name, uint8 [256, 3], in which gradcam.overlay draws."""
    return matplotlib.colormaps["inferno"](np.arange(256), bytes=True)[:, :3]


def small_figure(title: str, x_label: str, y_label: str) -> tuple[Figure, Axes]:
    """Return a figure of the common small size and its axes."""
    figure = Figure(figsize=SMALL)
    axes = figure.add_subplot()
    axes.set(title=title, xlabel=x_label, ylabel=y_label)
    return figure, axes


def shortened(names: Iterable[str], length: int) -> list[str]:
    """Return the names, those longer than `length` letters cut off, so that they leave room for the plot."""
    return [name if len(name) <= length else f"{name[: length - 1]}…" for name in names]


def in_percent(*several: Axis) -> None:
    """Label the axes of fractions in percent."""
    for axis in several:
        axis.set_major_formatter(lambda value, _: f"{100 * value:.0f} %")


# ---- Curves ----------------------------------------------------------------------------------------------


@styled()
def training_curve(
    history: dict[str, np.ndarray], quantity: str, best_epoch: float, changes: dict[float, str]
) -> Figure:
    """The "loss" or the "accuracy" of both splits over the epochs, with the best epoch marked.

    history: a column for each of epoch, train_loss, val_loss and so on. changes: {epoch: what is different in
    training from there on}, named above a vertical line.
    """
    figure, axes = small_figure(f"{quantity.capitalize()} over the epochs", "epoch", quantity)
    for split, label in {"train": "training (augmented images)", "val": "validation"}.items():
        axes.plot(history["epoch"], history[f"{split}_{quantity}"], markersize=3, label=label)
    best = f"best validation accuracy: epoch {best_epoch:.0f}"
    axes.axvline(best_epoch, color=GREY, linestyle=":", marker="", label=best)
    axes.xaxis.get_major_locator().set_params(integer=True)
    for epoch in changes:
        axes.axvline(epoch, color=GREY, linewidth=0.7, marker="")
    above = axes.secondary_xaxis("top")
    above.set_xticks(list(changes), list(changes.values()), fontsize=7.5)
    above.tick_params(length=0)
    above.spines.top.set_visible(False)
    if quantity == "accuracy":
        in_percent(axes.yaxis)
        axes.set_ylim(0, 1)
    axes.legend()
    return figure


@styled()
def curves(title: str, x_label: str, y_label: str, x: np.ndarray, lines: dict[str, np.ndarray]) -> Figure:
    """Curves of fractions over a common x in [0, 1], {label: values}."""
    figure, axes = small_figure(title, x_label, y_label)
    for label, values in lines.items():
        axes.plot(x, values, marker="", label=label)
    axes.set_xlim(0, 1)
    axes.set_ylim(bottom=0)
    in_percent(axes.xaxis, axes.yaxis)
    if len(lines) > 1:
        figure.set_figheight(SMALL[1] + 0.2 * len(lines))
        figure.legend(loc="outside lower center")
    return figure


@styled()
def reliability(bins: dict[str, tuple[np.ndarray, np.ndarray, np.ndarray]]) -> Figure:
    """Accuracy against confidence in bins, {label: (confidence, accuracy, count)}."""
    figure, axes = small_figure("Reliability diagram", "confidence", "accuracy")
    axes.axline((0, 0), (1, 1), color=GREY, linestyle=":", linewidth=1.2, label="perfectly calibrated")
    for label, (confidence, accuracy, count) in bins.items():
        axes.plot(confidence[count > 0], accuracy[count > 0], label=label)
    axes.set(xlim=(0, 1), ylim=(0, 1))
    in_percent(axes.xaxis, axes.yaxis)
    axes.legend()
    return figure


# ---- Bars ------------------------------------------------------------------------------------------------


@styled()
def headline_bars(numbers: dict[str, dict[str, float]]) -> Figure:
    """One bar for each metric, {name: value, low and high}, and its value written above."""
    figure, axes = small_figure("Test metrics with 95 % intervals", "", "")
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
    figure = Figure(figsize=(SMALL[0] + 2, 0.9 + 0.32 * len(recall)))
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
    figure.suptitle(title, x=0.01, ha="left", size=10, weight="bold")
    return figure


@styled()
def confidence_histogram(correct: np.ndarray, wrong: np.ndarray) -> Figure:
    """Histogram of the confidence of the correct and of the wrong predictions."""
    figure, axes = small_figure("Confidence of right and wrong predictions", "confidence", "test images")
    labels = [f"right ({len(correct):,})", f"wrong ({len(wrong):,})"]
    axes.hist([correct, wrong], np.linspace(0, 1, 21), color=[BLUE, ORANGE], label=labels)
    in_percent(axes.xaxis)
    axes.yaxis.get_major_locator().set_params(integer=True)
    axes.set_xlim(0, 1)
    axes.legend()
    return figure


# ---- Matrices and pictures -------------------------------------------------------------------------------


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
    figure.suptitle(title, x=0.01, ha="left", size=10, weight="bold", wrap=True)
    axes.set(xlabel="predicted class", ylabel="true class")
    ticks = [0, 0.01, 0.1, 0.25, 0.5, 1]
    scale = figure.colorbar(mesh, ax=axes, location="bottom", shrink=0.5, aspect=40, pad=0.01, ticks=ticks)
    in_percent(scale.ax.xaxis)
    scale.outline.set_visible(False)
    return figure


# ---- Stress tests ----------------------------------------------------------------------------------------


@styled()
def stress_severity(by_severity: list[dict]) -> Figure:
    """Accuracy and confidence, means over all corruptions, at severity 0, the clean images, to 5."""
    figure, axes = small_figure("Mean of all corruptions", "severity; 0 is clean", "accuracy, confidence")
    for key, label in {"accuracy": "accuracy", "mean_confidence": "mean confidence"}.items():
        axes.plot(range(6), [row[key] for row in by_severity], label=label)
    axes.set_ylim(0, 1)
    in_percent(axes.yaxis)
    axes.legend()
    return figure


@styled()
def stress_epsilon(tests: dict, robust_accuracy: dict[str, dict], epsilons: list[float]) -> Figure:
    """Accuracy against the epsilon of the attack, in 1/255, with 95 % intervals.

    tests are those of stress.json; robust_accuracy: that under the worst of all attacks, at each epsilon.
    """
    figure, axes = small_figure("Attacks", "epsilon: largest change of a value, in 1/255", "accuracy")
    unattacked = tests["unattacked/0"]["accuracy"]["value"]
    axes.axhline(unattacked, color=GREY, linestyle="--", linewidth=1, label="no attack")
    lines = {}
    for name, label in {"fgsm": "FGSM", "pgd": "PGD", "random": "random signs"}.items():
        lines[label] = [tests[f"{name}/{epsilon:g}"]["accuracy"] for epsilon in epsilons]
    lines["worst of all attacks"] = [robust_accuracy[f"{epsilon:g}"] for epsilon in epsilons]
    for label, points in lines.items():
        value, low, high = ([point[key] for point in points] for key in ("value", "low", "high"))
        (line,) = axes.plot(epsilons, value, label=label)
        axes.fill_between(epsilons, low, high, color=line.get_color(), alpha=0.15, linewidth=0)
    axes.set_xscale("log", base=2)
    axes.set_xticks(epsilons, [f"{epsilon:g}" for epsilon in epsilons])
    axes.set_ylim(0, 1)
    in_percent(axes.yaxis)
    figure.set_figheight(SMALL[1] + 0.4)
    figure.legend(loc="outside lower center", ncols=3)
    return figure

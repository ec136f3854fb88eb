"""Every plot of the report: functions of plain arrays and dicts that return a matplotlib Figure.

`save_png` writes a Figure to a file; `to_svg` returns it as an element for the report, whose style sheet sets
the colours, so that one plot serves a light and a dark page. plots.mplstyle says how they look.
"""

import io
import math
import re
from html import escape
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.colors import PowerNorm
from matplotlib.figure import Figure

from running.files import whole_file
from stress_tests.corruptions import FAMILIES

INK, GRID, GREY = "#1a1a1b", "#d8d8d9", "#7a7a7b"
BLUE, ORANGE, GREEN = "#0072b2", "#d55e00", "#009e73"
# The colours' names in the style sheet of the report.
CSS_VARIABLES = {INK: "ink", GRID: "grid", GREY: "grey", BLUE: "blue", ORANGE: "orange", GREEN: "green"}
STYLE = matplotlib.rc_params_from_file(Path(__file__).parent / "plots.mplstyle", use_default_template=False)
SMALL = (4.6, 3.2)  # inches: two beside each other on a desktop, one across a phone
styled = matplotlib.rc_context(STYLE)  # a decorator: a function draws in this style and leaves no trace of it


@styled
def save_png(figure: Figure, path: Path) -> None:
    """Write the figure to a PNG file at 160 dots per inch on white; see whole_file."""
    # The first layout of a matrix of square cells goes by old positions of the labels around it and may cut
    # them off. Saving makes a second one.
    figure.draw_without_rendering()
    with whole_file(path) as temporary:
        figure.savefig(temporary, format="png", dpi=160, facecolor="white")


@styled
def to_svg(figure: Figure, name: str, alt: str) -> str:
    """Return the figure as an <svg> element whose colours are CSS variables.

    `name` begins every id in it, so that ids are unique on a page; `alt` describes the figure in words.
    """
    file = io.StringIO()
    figure.draw_without_rendering()  # as above
    with matplotlib.rc_context({"svg.hashsalt": name}):
        figure.savefig(file, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    svg = file.getvalue()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r'(\bid="|href="#|url\(#)', rf"\g<1>{name}-", svg)
    for colour, variable in CSS_VARIABLES.items():
        svg = svg.replace(colour, f"var(--{variable})")
    return svg.replace("<svg ", f'<svg role="img" aria-label="{escape(alt)}" ', 1)


def small_figure(title: str, x_label: str, y_label: str) -> tuple[Figure, Axes]:
    """Return a figure of the common small size and its axes."""
    figure = Figure(figsize=SMALL)
    axes = figure.add_subplot()
    axes.set(title=title, xlabel=x_label, ylabel=y_label)
    return figure, axes


def in_percent(*several: Axis) -> None:
    """Label the axes of fractions in percent."""
    for axis in several:
        axis.set_major_formatter(lambda value, _: f"{100 * value:.0f} %")


# ---- Curves ----------------------------------------------------------------------------------------------


@styled
def training_curve(
    history: dict[str, np.ndarray], quantity: str, best_epoch: float, changes: dict[float, str]
) -> Figure:
    """The "loss" or the "accuracy" of both splits over the epochs, with the best epoch marked.

    history: a column for each of epoch, train_loss, val_loss and so on. changes: {epoch: what is different in
    training from there on}, named above a vertical line.
    """
    figure, axes = small_figure(f"{quantity.capitalize()} over the epochs", "epoch", quantity)
    axes.plot(
        history["epoch"], history[f"train_{quantity}"], markersize=3, label="training (augmented images)"
    )
    axes.plot(history["epoch"], history[f"val_{quantity}"], markersize=3, label="validation")
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


@styled
def curves(
    title: str,
    x_label: str,
    y_label: str,
    x: np.ndarray,
    lines: dict[str, np.ndarray],
    fractions: bool = True,
) -> Figure:
    """Curves over a common x, {label: values}; fractions, as x and the values are, stand in percent."""
    figure, axes = small_figure(title, x_label, y_label)
    for label, values in lines.items():
        axes.plot(x, values, marker="" if fractions else "o", label=label)
    axes.set_ylim(bottom=0)
    axes.xaxis.get_major_locator().set_params(integer=not fractions)
    if fractions:
        axes.set_xlim(0, 1)
        in_percent(axes.xaxis, axes.yaxis)
    if len(lines) > 1:
        figure.set_figheight(SMALL[1] + 0.2 * len(lines))
        figure.legend(loc="outside lower center")
    return figure


@styled
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


@styled
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


@styled
def worst_classes(recall: dict[str, float]) -> Figure:
    """The recall of each class, {label: fraction}, the first on top."""
    figure = Figure(figsize=(SMALL[0] + 2, 0.9 + 0.32 * len(recall)))
    axes = figure.add_subplot()
    bars = axes.barh(list(recall), list(recall.values()), color=ORANGE, height=0.7)
    axes.bar_label(bars, [f"{100 * value:.0f} %" for value in recall.values()], padding=4)
    axes.invert_yaxis()
    in_percent(axes.xaxis)
    axes.grid(visible=False, axis="y")
    axes.set(xlabel="accuracy", xlim=(0, 1.1))
    title = f"The {len(recall)} classes with the lowest accuracy"
    # Above the labels too, as these leave the axes little room.
    figure.suptitle(title, x=0.01, ha="left", size=10, weight="bold")
    return figure


@styled
def confidence_histogram(correct: np.ndarray, wrong: np.ndarray) -> Figure:
    """Histogram of the confidence of the correct and of the wrong predictions."""
    figure, axes = small_figure("Confidence of right and wrong predictions", "confidence", "test images")
    labels = [f"right ({len(correct):,})", f"wrong ({len(wrong):,})"]
    axes.hist([correct, wrong], np.linspace(0, 1, 21), color=[BLUE, ORANGE], label=labels)
    in_percent(axes.xaxis)
    axes.set_xlim(0, 1)
    axes.legend()
    return figure


# ---- Matrices and pictures -------------------------------------------------------------------------------


@styled
def confusion_matrix(fractions: np.ndarray, class_names: list[str], groups: dict[str, int]) -> Figure:
    """The row-normalised confusion matrix [C, C], classes in the order of `groups`, {name: size}.

    The colour scale is a square root, so that confusions of a few percent show beside the diagonal.
    """
    figure = Figure(figsize=(14.5, 12.4))
    axes = figure.add_subplot()
    mesh = axes.imshow(fractions, cmap="cividis", norm=PowerNorm(0.5, 0, 1), interpolation="nearest")
    axes.set_xticks(range(len(fractions)), class_names, rotation=90, fontsize=7.4)
    axes.set_yticks(range(len(fractions)), class_names, fontsize=7.4)
    edges = np.cumsum([0, *groups.values()]) - 0.5
    axes.set_xticks(edges, minor=True)
    axes.set_yticks(edges, minor=True)
    axes.grid(visible=False)
    axes.grid(which="minor", linewidth=0.3)  # between the superclasses, whose names stand on the right
    beside = axes.secondary_yaxis("right")
    beside.set_yticks((edges[1:] + edges[:-1]) / 2, list(groups), fontsize=9)
    for ticked in (axes, beside):
        ticked.tick_params(which="both", length=0, pad=2)
    axes.set(title="Share of each true class (row) given each predicted class (column)")
    axes.set(xlabel="predicted class", ylabel="true class")
    ticks = [0, 0.01, 0.05, 0.1, 0.25, 0.5, 1]
    scale = figure.colorbar(mesh, ax=axes, location="bottom", shrink=0.5, aspect=40, pad=0.01, ticks=ticks)
    in_percent(scale.ax.xaxis)
    scale.outline.set_visible(False)
    return figure


# ---- Stress tests ----------------------------------------------------------------------------------------


@styled
def fourier_heatmap(error: np.ndarray, rows: list[int], columns: list[int]) -> Figure:
    """The error rate [rows, columns] where a wave of so many periods is added, as half a plane."""
    figure, axes = small_figure("Error by frequency", "periods across", "periods down")
    half = (rows[1] - rows[0]) / 2
    extent = (columns[0] - half, columns[-1] + half, rows[-1] + half, rows[0] - half)
    mesh = axes.imshow(error, cmap="cividis", vmin=0, vmax=1, extent=extent, interpolation="nearest")
    axes.grid(visible=False)
    bar = figure.colorbar(mesh, ax=axes, label="error")
    in_percent(bar.ax.yaxis)
    return figure


def stress_figures(results: dict, examples: dict[str, np.ndarray]) -> dict[str, Figure]:
    """Return the plots of a finished stress.json: stress_severity, stress_epsilon and stress_examples.

    results: the content of the file. examples: {corruption: uint8 [6, 32, 32, 3]}, a picture clean and at
    five severities.
    """
    return {
        "stress_severity": stress_severity(results["tests"], results["summary"]["by_severity"]),
        "stress_epsilon": stress_epsilon(results["tests"], results["robust_accuracy"], results["epsilons"]),
        "stress_examples": stress_examples(examples),
    }


@styled
def stress_severity(tests: dict, by_severity: list[dict]) -> Figure:
    """Accuracy against severity, one panel for each family of corruptions and one for the mean of all.

    tests are those of stress.json; by_severity: the means at severity 0, the clean images, to 5.
    """
    rows = math.ceil((len(FAMILIES) + 1) / 3)
    figure = Figure(figsize=(10.5, 3.2 * rows))
    grid = figure.subplots(rows, 3, sharex=True, sharey=True, squeeze=False)
    *panels, last = grid.flat[: len(FAMILIES) + 1]
    for axes in grid.flat[len(FAMILIES) + 1 :]:
        axes.set_axis_off()
    for axes, (family, names) in zip(panels, FAMILIES.items(), strict=True):
        axes.set_title(family)
        for name in names:
            values = [tests[f"{name}/{severity}"]["accuracy"]["value"] for severity in range(1, 6)]
            axes.plot(range(1, 6), values, label=name.replace("_", " "))
    last.set_title("mean of all")
    for key, label in {"accuracy": "accuracy", "mean_confidence": "confidence"}.items():
        last.plot(range(1, 6), [row[key] for row in by_severity[1:]], label=label)
    clean = by_severity[0]["accuracy"]
    for axes in (*panels, last):
        axes.axhline(clean, color=GREY, linestyle="--", marker="", linewidth=1, label="clean accuracy")
        axes.set(ylim=(0, 1), xticks=range(1, 6))
        axes.tick_params(labelbottom=True)
        axes.legend(fontsize=7.5, ncols=2, columnspacing=1)  # two columns leave more room for the curves
    in_percent(grid[0, 0].yaxis)
    figure.supxlabel("severity", fontsize=9)
    figure.supylabel("accuracy", fontsize=9)
    return figure


@styled
def stress_epsilon(tests: dict, robust_accuracy: dict[str, dict], epsilons: list[float]) -> Figure:
    """Accuracy against the epsilon of the attack, in 1/255, with 95 % intervals.

    tests are those of stress.json; robust_accuracy: that under the worst of all attacks, at each epsilon.
    """
    figure, axes = small_figure("Attacks", "epsilon: largest change of a value, in 1/255", "accuracy")
    unattacked = tests["unattacked/0"]["accuracy"]["value"]
    axes.axhline(unattacked, color=GREY, linestyle="--", linewidth=1, label="no attack")
    labels = {"fgsm": "FGSM", "pgd": "PGD", "random": "random signs"}
    lines = {label: [tests[f"{name}/{e:g}"]["accuracy"] for e in epsilons] for name, label in labels.items()}
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


@styled
def stress_examples(pictures: dict[str, np.ndarray]) -> Figure:
    """Rows of pictures, {corruption: uint8 [6, 32, 32, 3]}: the clean one and the five severities."""
    names = list(pictures)
    half = math.ceil(len(names) / 2)
    figure = Figure(figsize=(11, 1.1 + 0.58 * half))
    for axes, column in zip(figure.subplots(1, 2), (names[:half], names[half:]), strict=True):
        opaque = np.insert(np.stack([pictures[name] for name in column]), 3, 255, axis=-1)
        apart = np.pad(opaque, [(0, half - len(column)), (0, 0), (1, 1), (1, 1), (0, 0)])  # transparent
        axes.imshow(apart.swapaxes(1, 2).reshape(34 * half, 34 * 6, 4), interpolation="nearest")
        rows = [34 * i + 16.5 for i in range(len(column))]
        axes.set_yticks(rows, [name.replace("_", " ") for name in column])
        axes.set_xticks([34 * j + 16.5 for j in range(6)], ["clean", "severity 1", "2", "3", "4", "5"])
        axes.xaxis.tick_top()
        axes.tick_params(length=0)
        axes.grid(False)
        axes.spines[:].set_visible(False)
    return figure

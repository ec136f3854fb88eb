"""The charts of explore.html that report.html has not; see page/plots.py."""

import matplotlib
import numpy as np
from matplotlib.figure import Figure

from page.plots import BLUE, GREEN, GREY, GRID, INK, ORANGE, in_percent, name_lines, small_figure


def severity_curves(title: str, curves: dict[str, list[float]]) -> Figure:
    """Fractions at the severities 0, clean, to 5, {label: values}, means of the fifteen corruptions."""
    figure, axes = small_figure(f"{title}, mean of the fifteen", "severity (0 is clean)")
    ends = {}
    for label, values in curves.items():
        (line,) = axes.plot(range(6), values)
        ends[label] = (5, values[-1], line.get_color())
    axes.set(xlim=(0, 5), ylim=(0, 1.1 * max(map(max, curves.values())) + 0.01))
    in_percent(axes.yaxis)
    name_lines(axes, ends)
    return figure


def reliability_of_groups(title: str, bins: dict[str, list]) -> Figure:
    """Accuracy against confidence; the area of a point shows how many images it stands for.

    bins: {group: [[confidence, accuracy, count], ...]}. The points of a group, and the title with their
    expected calibration error, have ids that end in its name, for the style sheet, which shows one group.
    """
    figure, axes = small_figure("", "confidence", height=320)
    axes.axline((0, 0), (1, 1), color=GREY, linestyle=":", linewidth=1.2)
    for group, rows in bins.items():
        confidence, accuracy, count = np.array(rows).T
        error = (count * abs(accuracy - confidence)).sum() / count.sum()
        sizes = 4 * (2 + 16 * np.sqrt(count / count.sum())) ** 2  # matplotlib: the square of the width
        points = {"marker": "o", "alpha": 0.85, "gid": f"points-{group}"}
        axes.scatter(confidence, accuracy, s=sizes, color=ORANGE, **points)
        written = {"weight": "bold", "va": "bottom", "gid": f"title-{group}", "transform": axes.transAxes}
        axes.text(0, 1.02, f"{title}: calibration error {100 * error:.1f} %", **written)
    options = {"color": GREY, "transform": axes.transAxes}
    axes.text(0.04, 0.92, "underconfident:\nright more often", va="top", **options)
    axes.text(0.97, 0.07, "overconfident:\nright less often", ha="right", **options)
    ends, ticks = (-0.09, 1.09), np.linspace(0, 1, 6)  # room for a large point at the end
    axes.set(ylabel="accuracy", xlim=ends, ylim=ends, xticks=ticks, yticks=ticks)
    in_percent(axes.xaxis, axes.yaxis)
    return figure


def histogram_of_groups(counts: dict[str, list[np.ndarray]]) -> Figure:
    """How many answers have a confidence in each of the bins, {group: [right, wrong]}, int [B] each.

    The steps of a group have ids that end in its name; see reliability.
    """
    figure, axes = small_figure("How sure right and wrong answers are, images", "confidence", height=320)
    for group, (right, wrong) in counts.items():
        edges, filled = np.linspace(0, 1, len(right) + 1), {"fill": True, "linewidth": 0}
        axes.stairs(wrong, edges, color=ORANGE, gid=f"wrong-{group}", **filled)
        # Lighter, so that they differ in grey as well.
        lighter = {"color": BLUE, "alpha": 0.4, "gid": f"right-{group}"}
        axes.stairs(wrong + right, edges, baseline=wrong, **lighter, **filled)
    right, wrong = next(iter(counts.values()))
    every = right + wrong
    x = 0.03 if every[len(every) // 2 :].sum() > every.sum() / 2 else 0.7  # where there are fewer bars
    axes.text(x, 0.92, f"right: {right.sum():,}", color=BLUE, transform=axes.transAxes)
    axes.text(x, 0.84, f"wrong: {wrong.sum():,}", color=ORANGE, transform=axes.transAxes)
    in_percent(axes.xaxis)
    axes.yaxis.get_major_locator().set_params(integer=True)
    axes.set_xlim(0, 1)
    return figure


def dots(title: str, rows: dict[str, dict], x_label: str, chance: dict, chance_label: str) -> Figure:
    """Fractions with their intervals, {row: value, low, high}; the name of a row stands above its point.

    chance: likewise, what all of them are compared with, a band behind them.
    """
    figure, axes = small_figure(title, x_label, height=100 + 34 * len(rows))
    axes.axvspan(chance["low"], chance["high"], color=GRID, linewidth=0)
    axes.axvline(chance["value"], color=GREY, linestyle=":", linewidth=1.2, marker="")
    for place, (label, row) in enumerate(rows.items()):
        colour = BLUE if place == 0 else ORANGE
        axes.text(0, place - 0.35, label, transform=axes.get_yaxis_transform(), va="center", color=INK)
        axes.plot([row["low"], row["high"]], [place, place], color=colour, marker="", linestyle="-")
        axes.plot(row["value"], place, color=colour, marker="os"[place > 0], markersize=7)
        text = f"{100 * row['value']:.1f} %"
        offset = {"xytext": (6, 0), "textcoords": "offset points", "fontsize": 11}
        axes.annotate(text, (row["high"], place), va="center", color=colour, **offset).set_in_layout(False)
    axes.set_ylim(len(rows), -0.75)
    room = 1.25 * max(row["high"] for row in [*rows.values(), chance]) + 0.02  # for the text behind a point
    axes.set_xlim(0, room)
    below = {"color": GREY, "ha": "center", "va": "center", "fontsize": 11}
    middle, said = max(chance["value"], 0.2 * room), f"{chance_label} {100 * chance['value']:.1f} %"
    axes.text(middle, len(rows) - 0.25, said, **below)
    axes.set_xticks([tick for tick in axes.get_xticks() if tick <= min(1, room)])
    axes.set_yticks([])
    axes.spines.left.set_visible(False)
    in_percent(axes.xaxis)
    return figure


def stress_epsilon(tests: dict, robust_accuracy: dict[str, dict], epsilons: list[float]) -> Figure:
    """Accuracy against the epsilon of the attack, in 1/255, with 95 % intervals.

    tests are those of stress.json; robust_accuracy: that under the worst of all attacks, at each epsilon. A
    rule at each epsilon has the id rule-<its place>, for the script, which shows one.
    """
    x_label = "epsilon: largest change of a value, in 1/255"
    figure, axes = small_figure("Accuracy under attack, 95 % intervals", x_label)
    unattacked = tests["unattacked/0"]["accuracy"]["value"]
    for step, epsilon in enumerate(epsilons):
        axes.axvline(epsilon, color=GREY, linewidth=1.2, marker="").set_gid(f"rule-{step}")
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
    axes.set_xticks(epsilons, [f"{epsilon:g}" for epsilon in epsilons])
    axes.set(xlim=(epsilons[0] / 1.3, 1.05 * epsilons[-1]), ylim=(0, 1))
    in_percent(axes.yaxis)
    name_lines(axes, ends)
    return figure


def inferno() -> np.ndarray:
    """Return matplotlib's colours of that name, uint8 [256, 3], in which gradcam.overlay draws."""
    return matplotlib.colormaps["inferno"](np.arange(256), bytes=True)[:, :3]

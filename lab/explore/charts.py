"""The charts of explore.html that report.html has not; see page/plots.py. Orange means wrong, only that."""

import matplotlib
import numpy as np
from matplotlib.figure import Figure

from page.plots import BLUE, GREEN, GREY, GRID, INK, in_percent, name_lines, small_figure


def severity_curves(title: str, curves: dict[str, list[float]], height: int) -> Figure:
    """Fractions at the severities 0, clean, to 5, {label: values}, means of the fifteen corruptions."""
    figure, axes = small_figure(title, "severity, mean of fifteen corruptions", height=height)
    ends = {}
    for (label, values), colour in zip(curves.items(), (BLUE, GREEN), strict=False):
        axes.plot(range(6), values, color=colour, clip_on=False)
        ends[label] = (5, values[-1], colour)
    axes.set(xlim=(0, 5), ylim=(0, 1.1 * max(map(max, curves.values())) + 0.01))
    axes.set_xticks(range(6), ["clean", *"12345"])
    in_percent(axes.yaxis)
    name_lines(axes, ends)
    return figure


def dots(title: str, rows: dict[str, dict], x_label: str, marked: str) -> Figure:
    """Fractions with their intervals, {label: value, low, high}; the last row is chance, a band behind all.

    The row `marked` stands out.
    """
    figure, axes = small_figure(title, x_label, height=85 + 24 * len(rows))
    chance = list(rows.values())[-1]
    axes.axvspan(chance["low"], chance["high"], color=GRID, linewidth=0)
    for place, (label, row) in enumerate(rows.items()):
        colour = BLUE if label == marked else INK
        axes.plot([row["low"], row["high"]], [place, place], color=colour, marker="", linestyle="-")
        axes.plot(row["value"], place, color=colour, marker="o", markersize=7)
        options = {"xytext": (6, 0), "textcoords": "offset points", "va": "center", "color": colour}
        text = axes.annotate(f"{100 * row['value']:.0f} %", (row["high"], place), **options)
        text.set_in_layout(False)
    axes.set_yticks(range(len(rows)), list(rows))
    axes.tick_params(axis="y", length=0)
    axes.grid(visible=False, axis="y")
    axes.spines.left.set_visible(False)
    room = 1.2 * max(row["high"] for row in rows.values()) + 0.03  # for the text behind a point
    axes.set(xlim=(0, room), ylim=(len(rows) - 0.5, -0.5))
    axes.locator_params(axis="x", nbins=5)
    axes.set_xticks([tick for tick in axes.get_xticks() if tick <= min(1, room)])
    in_percent(axes.xaxis)
    return figure


def stress_epsilon(tests: dict, robust: dict, random_signs: dict, epsilons: list[float]) -> Figure:
    """Accuracy against the epsilon of the attack, in 1/255, with 95 % intervals.

    tests are those of stress.json. robust is the accuracy under the worst of all attacks at each epsilon, and
    random_signs that under random signs. A rule at each epsilon has the id rule-<its place>, for the script,
    which shows one.
    """
    figure, axes = small_figure("Right under attack", "epsilon, in 1/255; bands: 95 % intervals", height=265)
    unattacked = tests["unattacked/0"]["accuracy"]["value"]
    for step, epsilon in enumerate(epsilons):
        axes.axvline(epsilon, color=GREY, linewidth=1.2, marker="").set_gid(f"rule-{step}")
    axes.axhline(unattacked, color=GREY, linestyle="--", linewidth=1)
    lines = {"random signs": [random_signs[f"{epsilon:g}"] for epsilon in epsilons]}
    lines["worst of all"] = [robust[f"{epsilon:g}"] for epsilon in epsilons]
    for name, label in {"fgsm": "FGSM", "pgd": "PGD"}.items():
        lines[label] = [tests[f"{name}/{epsilon:g}"]["accuracy"] for epsilon in epsilons]
    ends = {"no attack": (epsilons[-1], unattacked, GREY)}
    for (label, points), colour in zip(lines.items(), (GREEN, INK, BLUE, GREY), strict=True):
        value, low, high = ([point[key] for point in points] for key in ("value", "low", "high"))
        axes.plot(epsilons, value, color=colour, clip_on=False)
        axes.fill_between(epsilons, low, high, color=colour, alpha=0.15, linewidth=0)
        ends[label] = (epsilons[-1], value[-1], colour)
    axes.set_xscale("log", base=2)
    axes.set_xticks(epsilons, [f"{epsilon:g}" for epsilon in epsilons])
    axes.set(xlim=(epsilons[0] / 1.3, 1.05 * epsilons[-1]), ylim=(0, 1))
    in_percent(axes.yaxis)
    name_lines(axes, ends)
    return figure


def inferno() -> np.ndarray:
    """Return matplotlib's colours of that name, uint8 [256, 3], in which gradcam.overlay draws."""
    return matplotlib.colormaps["inferno"](np.arange(256), bytes=True)[:, :3]

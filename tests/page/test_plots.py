"""page/plots.py: what is drawn is what was given, all of it, and no label is cut off."""

import os
import re
import subprocess
import sys
from html import escape

import matplotlib
import numpy as np
import pytest
from PIL import Image  # a dependency of matplotlib
from processes import ROOT
from test_sections import stress_content

from page import plots

RNG = np.random.default_rng(0)
EPOCHS = np.arange(1, 21)
HISTORY = {"epoch": EPOCHS} | {
    f"{part}_{kind}": RNG.random(20) for part in ("train", "val") for kind in ("loss", "accuracy")
}
CHANGES = {7.5: "28 px", 14.5: "32 px", 18.5: "no CutMix"}
CLASSES = [f"a class called {i}" for i in range(100)]
GROUPS = {f"large man-made outdoor things {i}": 5 for i in range(20)}


def lines(axes):
    """{label: y values} of the curves of an Axes."""
    return {line.get_label(): list(line.get_ydata()) for line in axes.lines}


@pytest.mark.slow
@pytest.mark.parametrize("count", [2, 7, 100])
def test_no_label_of_the_largest_plots_is_cut_off(count, tmp_path):
    names = [f"{i} {99 * 'a'}" for i in range(count)]
    interval = {"value": 0.5, "low": 0.4, "high": 0.6}
    for figure in (
        plots.confusion_matrix(RNG.integers(0, 9, (count, count)), names, GROUPS if count == 100 else {}),
        plots.worst_classes("a title", dict.fromkeys(names[:10], 0.5)),
        plots.headline_bars(dict.fromkeys(CLASSES[:5], interval)),
    ):
        plots.save_png(figure, tmp_path / "a.png")
        pixels = np.asarray(Image.open(tmp_path / "a.png").convert("L"))
        for edge in (pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]):
            assert (edge == 255).all()
        assert pixels.std() > 5


def test_the_style_is_ours_alone(tmp_path):
    """An unknown backend, TeX and another size of letters change nothing."""
    (tmp_path / "matplotlibrc").write_text("text.usetex: True\nfont.size: 40\naxes.facecolor: red\n")
    script = "from page import plots; figure = plots.curves('a', 'b', 'c', [0, 1], {'': [0, 1]}); "
    script += "print(plots.to_svg(figure, 'x'))"
    drawn = []
    for changes in ({"MPLBACKEND": "no such one", "MATPLOTLIBRC": str(tmp_path)}, {}):
        environment = {key: value for key, value in os.environ.items() if not key.startswith("MPL")}
        command = [sys.executable, "-c", script]
        drawn.append(subprocess.check_output(command, env=environment | changes, cwd=ROOT))
    assert drawn[0] == drawn[1] and b"<svg" in drawn[0]


def test_svg_colours_are_variables_and_ids_are_apart():
    hostile = '<script>alert("1")</script>&'
    before = dict(matplotlib.rcParams)
    bins = [np.array([0.2, 0.8]), np.array([0.1, 0.9]), np.array([3, 4])]
    figure = plots.reliability({"as trained": bins})
    figure.axes[0].set_title(hostile, loc="left")
    svg = plots.to_svg(figure, "first")
    assert dict(matplotlib.rcParams) == before
    assert not [colour for colour in plots.CSS_VARIABLES if colour in svg] and "var(--blue)" in svg
    ids = re.findall(r'\bid="([^"]+)"', svg)
    assert ids and all(name.startswith("first-") for name in ids) and len(set(ids)) == len(ids)
    targets = re.findall(r'href="#([^"]+)"|url\(#([^)]+)\)', svg)
    assert targets and all((a or b) in ids for a, b in targets)
    assert "<script>" not in svg and escape(hostile) in svg


def test_training_curve():
    axes = plots.training_curve(HISTORY, "accuracy", 17, CHANGES).axes[0]
    drawn = lines(axes)
    assert drawn["training (augmented images)"] == list(HISTORY["train_accuracy"])
    assert drawn["validation"] == list(HISTORY["val_accuracy"])
    best = next(line for line in axes.lines if "17" in line.get_label())
    assert list(best.get_xdata()) == [17, 17]
    above = axes.child_axes[0]
    assert list(above.get_xticks()) == list(CHANGES)
    assert [label.get_text() for label in above.get_xticklabels()] == list(CHANGES.values())


def test_curves_stand_at_their_places():
    edges = (np.arange(15) + 0.5) / 15
    some = {f"curve {i}": RNG.random(15) for i in range(3)}
    figure = plots.curves("title", "x", "y", edges, some)
    assert lines(figure.axes[0]) == {label: list(values) for label, values in some.items()}
    assert all(list(line.get_xdata()) == list(edges) for line in figure.axes[0].lines)
    filled = np.arange(15) % 4 > 0
    bins = {label: [edges, values, 9 * filled] for label, values in some.items()}
    drawn = lines(plots.reliability(bins).axes[0])
    assert all(drawn[label] == list(values[filled]) for label, values in some.items())


def test_every_metric_has_a_bar_and_its_interval():
    """Also one whose value lies outside of its interval."""
    rows = {}
    for i in range(4):
        rows[f"macro {i}"] = {"value": 0.4 + i / 10, "low": 0.35 + i / 10, "high": 0.5 + i / 10}
    rows["outside"] = {"value": 0.5, "low": 0.3, "high": 0.4}
    (axes,) = plots.headline_bars(rows).axes
    assert [bar.get_height() for bar in axes.patches] == [row["value"] for row in rows.values()]
    assert [label.get_text() for label in axes.texts] == [f"{100 * r['value']:.2f} %" for r in rows.values()]
    drawn = [(bottom, top) for (_, bottom), (_, top) in axes.collections[0].get_segments()][:4]
    np.testing.assert_allclose(drawn, [(row["low"], row["high"]) for row in list(rows.values())[:4]])


def test_confusion_matrix():
    counts = RNG.integers(0, 9, (100, 100))
    counts[7] = 0  # a class without images
    axes = plots.confusion_matrix(counts, CLASSES, GROUPS).axes[0]
    expected = [[count / max(1, sum(row)) for count in row] for row in counts.tolist()]
    np.testing.assert_allclose(axes.images[0].get_array(), expected)
    for ticks in (axes.get_xticklabels(), axes.get_yticklabels()):
        assert [label.get_text() for label in ticks] == CLASSES
    for axis in (axes.xaxis, axes.yaxis):
        assert list(axis.get_minorticklocs()) == [5 * i - 0.5 for i in range(21)]
    beside = axes.child_axes[0]
    assert list(beside.get_yticks()) == [5 * i + 2 for i in range(20)]
    assert [label.get_text() for label in beside.get_yticklabels()] == list(GROUPS)


def test_stress_figures_draw_what_the_file_holds():
    results = stress_content()
    tests = {key: {"accuracy": {"value": 0.5 + i / 999, "low": 0.4, "high": 0.9}} for i, key in
             enumerate(results["tests"])}  # fmt: skip
    rows = [{"accuracy": 0.9 - i / 99, "mean_confidence": 0.8 - i / 88} for i in range(6)]
    drawn = lines(plots.stress_severity(rows).axes[0])
    for label, key in {"accuracy": "accuracy", "mean confidence": "mean_confidence"}.items():
        assert drawn[label] == [row[key] for row in rows]
    drawn = lines(plots.stress_epsilon(tests, results["robust_accuracy"], results["epsilons"]).axes[0])
    assert drawn.pop("no attack") == [tests["unattacked/0"]["accuracy"]["value"]] * 2
    assert set(drawn) == {"FGSM", "PGD", "random signs", "worst of all attacks"}
    assert drawn["PGD"] == [tests[f"pgd/{epsilon:g}"]["accuracy"]["value"] for epsilon in results["epsilons"]]
    assert drawn["worst of all attacks"] == [row["value"] for row in results["robust_accuracy"].values()]

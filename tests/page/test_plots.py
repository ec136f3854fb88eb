"""page/plots.py: what is drawn is what was given, all of it, and no label is cut off."""

import re
from html import escape
from xml.etree import ElementTree

import matplotlib
import numpy as np
import pytest
from PIL import Image  # a dependency of matplotlib
from test_sections import noise_pictures, stress_content

from page import plots
from stress_tests.corruptions import FAMILIES

RNG = np.random.default_rng(0)
EPOCHS = np.arange(1, 21)
HISTORY = {"epoch": EPOCHS} | {
    f"{part}_{kind}": RNG.random(20) for part in ("train", "val") for kind in ("loss", "accuracy")
}
CHANGES = {7.5: "28 px", 14.5: "32 px", 18.5: "no CutMix"}
EDGES = (np.arange(15) + 0.5) / 15
CLASSES = [f"a class called {i}" for i in range(100)]
GROUPS = {f"large man-made outdoor things {i}": 5 for i in range(20)}


def lines(axes):
    """{label: y values} of the curves of an Axes."""
    return {line.get_label(): list(line.get_ydata()) for line in axes.lines}


# ---- Labels ----------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_no_label_of_the_largest_plots_is_cut_off(tmp_path):
    for figure in (
        plots.confusion_matrix(RNG.random((100, 100)), CLASSES, GROUPS),
        plots.worst_classes({f"{20 * 'a'} (mostly taken for {20 * 'b'}) {i}": 0.5 for i in range(10)}),
        plots.headline_bars({name: {"value": 0.5, "low": 0.4, "high": 0.6} for name in CLASSES[:5]}),
        plots.stress_figures(stress_content(), noise_pictures())["stress_severity"],
    ):
        plots.save_png(figure, tmp_path / "a.png")
        pixels = np.asarray(Image.open(tmp_path / "a.png").convert("L"))
        for edge in (pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]):
            assert (edge == 255).all()
        assert pixels.std() > 5


def test_svg_colours_are_variables_and_ids_are_apart():
    hostile = '<script>alert("1")</script>&'
    before = dict(matplotlib.rcParams)
    bins = [np.array([0.2, 0.8]), np.array([0.1, 0.9]), np.array([3, 4])]
    svg = plots.to_svg(plots.reliability({"as trained": bins}), "first", hostile)
    assert dict(matplotlib.rcParams) == before
    assert not [colour for colour in plots.CSS_VARIABLES if colour in svg] and "var(--blue)" in svg
    ids = re.findall(r'\bid="([^"]+)"', svg)
    assert ids and all(name.startswith("first-") for name in ids) and len(set(ids)) == len(ids)
    targets = re.findall(r'href="#([^"]+)"|url\(#([^)]+)\)', svg)
    assert targets and all((a or b) in ids for a, b in targets)
    assert "<script>" not in svg and escape(hostile) in svg


@pytest.mark.parametrize("name", [r"$\frac{$", "<b>&amp;"])
def test_any_name_of_a_class_is_drawn_as_it_is(name):
    figure = plots.worst_classes({name: 0.1, "b": 0.2})
    assert ElementTree.fromstring(plots.to_svg(figure, "x", name)).get("aria-label") == name
    assert figure.axes[0].get_yticklabels()[0].get_text() == name
    assert [label.get_text() for label in figure.axes[0].texts] == ["10 %", "20 %"]


# ---- What is drawn is what was given ---------------------------------------------------------------------


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
    some = {f"curve {i}": RNG.random(15) for i in range(3)}
    figure = plots.curves("title", "x", "y", EDGES, some)
    assert lines(figure.axes[0]) == {label: list(values) for label, values in some.items()}
    assert all(list(line.get_xdata()) == list(EDGES) for line in figure.axes[0].lines)
    filled = np.arange(15) % 4 > 0
    bins = {label: [EDGES, values, 9 * filled] for label, values in some.items()}
    drawn = lines(plots.reliability(bins).axes[0])
    assert all(drawn[label] == list(values[filled]) for label, values in some.items())


def test_every_metric_has_a_bar_and_its_interval():
    """Also one whose value lies outside of its interval."""
    rows = {
        f"macro {i}": {"value": 0.4 + i / 10, "low": 0.35 + i / 10, "high": 0.5 + i / 10} for i in range(4)
    }
    rows["outside"] = {"value": 0.5, "low": 0.3, "high": 0.4}
    (axes,) = plots.headline_bars(rows).axes
    assert [bar.get_height() for bar in axes.patches] == [row["value"] for row in rows.values()]
    assert [text.get_text() for text in axes.texts] == [
        f"{100 * row['value']:.2f} %" for row in rows.values()
    ]
    segments = axes.collections[0].get_segments()
    drawn = [(bottom, top) for (_, bottom), (_, top) in segments][:4]
    np.testing.assert_allclose(drawn, [(row["low"], row["high"]) for row in list(rows.values())[:4]])


def test_confusion_matrix():
    matrix = RNG.random((100, 100))
    axes = plots.confusion_matrix(matrix, CLASSES, GROUPS).axes[0]
    assert np.array_equal(axes.images[0].get_array(), matrix)
    for ticks in (axes.get_xticklabels(), axes.get_yticklabels()):
        assert [label.get_text() for label in ticks] == CLASSES
    for axis in (axes.xaxis, axes.yaxis):
        assert list(axis.get_minorticklocs()) == [5 * i - 0.5 for i in range(21)]
    beside = axes.child_axes[0]
    assert list(beside.get_yticks()) == [5 * i + 2 for i in range(20)]
    assert [label.get_text() for label in beside.get_yticklabels()] == list(GROUPS)


# ---- Stress tests ----------------------------------------------------------------------------------------


def test_stress_figures_draw_what_the_file_holds():
    results, pictures = stress_content(), noise_pictures()
    results["tests"] = {  # values that are all different
        key: {"accuracy": {"value": 0.5 + i / 999, "low": 0.4, "high": 0.9}, "mean_confidence": i / 999}
        for i, key in enumerate(results["tests"])
    }
    rows = results["summary"]["by_severity"] = [
        {"accuracy": 0.9 - i / 99, "mean_confidence": 0.8 - i / 88} for i in range(6)
    ]
    tests, figures = results["tests"], plots.stress_figures(results, pictures)
    panels = figures["stress_severity"].axes
    for axes, (family, names) in zip(panels, FAMILIES.items(), strict=False):
        assert axes.get_title(loc="left") == family
        drawn = lines(axes)
        assert drawn.pop("clean accuracy") == [rows[0]["accuracy"]] * 2
        assert drawn == {
            name.replace("_", " "): [tests[f"{name}/{s}"]["accuracy"]["value"] for s in range(1, 6)]
            for name in names
        }
    means = lines(panels[len(FAMILIES)])
    for label, key in {"accuracy": "accuracy", "confidence": "mean_confidence"}.items():
        assert means[label] == [row[key] for row in rows[1:]]
    drawn = lines(figures["stress_epsilon"].axes[0])
    assert drawn.pop("no attack") == [tests["unattacked/0"]["accuracy"]["value"]] * 2
    assert set(drawn) == {"FGSM", "PGD", "random signs", "worst of all attacks"}
    assert drawn["PGD"] == [tests[f"pgd/{epsilon:g}"]["accuracy"]["value"] for epsilon in results["epsilons"]]
    labels = [
        label.get_text() for axes in figures["stress_examples"].axes for label in axes.get_yticklabels()
    ]
    assert labels == [name.replace("_", " ") for name in pictures]
    canvas = figures["stress_examples"].axes[0].images[0].get_array()
    assert np.array_equal(canvas[1:33, 35:67, :3], next(iter(pictures.values()))[1])

"""page/plots.py: what is drawn is what was given, all of it, and no label is cut off."""

import copy
import io
import json
import math
import re
from html import escape
from pathlib import Path
from xml.etree import ElementTree

import matplotlib
import numpy as np
import pytest
from matplotlib.colors import to_rgb
from PIL import Image  # a dependency of matplotlib

from page import plots
from stress_tests.corruptions import FAMILIES

RNG = np.random.default_rng(0)
NAMES = [name for names in FAMILIES.values() for name in names]
EPSILONS = [0.25, 0.5, 1, 2, 4, 8, 64]
EPOCHS = np.arange(1, 21)
CHANGES = {7.5: "28 px", 14.5: "32 px", 18.5: "no CutMix"}
EDGES = (np.arange(15) + 0.5) / 15
CLASSES = [f"a class called {i}" for i in range(100)]
GROUPS = [(f"large man-made outdoor things {i}", 5) for i in range(20)]


def shares(count):
    """A row-normalised confusion matrix."""
    matrix = RNG.random((count, count)) ** 8 + 2 * np.eye(count)
    return matrix / matrix.sum(axis=1, keepdims=True)


def stress_results():
    """The content of a stress.json, with values that are all different."""

    def record():
        value = RNG.random()
        accuracy = {"value": value, "low": 0.9 * value, "high": 0.9 * value + 0.1}
        return {"accuracy": accuracy, "mean_confidence": RNG.random()}

    keys = ["clean/0", *(f"{name}/{severity}" for name in NAMES for severity in range(1, 6))]
    keys += [
        "none/0",
        *(f"{name}/{radius:g}" for name in ("fgsm", "pgd", "random") for radius in EPSILONS),
        "pgd_more_steps/1",
    ]
    worst = {f"{radius:g}": record()["accuracy"] for radius in EPSILONS}
    return {"radii": EPSILONS, "tests": {key: record() for key in keys}, "robust_accuracy": worst}


def examples(names=NAMES):
    return {name: RNG.integers(0, 256, (6, 32, 32, 3), dtype=np.uint8) for name in names}


STRESS = stress_results()
EXAMPLES = examples()
MATRIX, COARSE = shares(100), shares(20)
FIGURES = {
    "training_curve": lambda: plots.training_curve(EPOCHS, 2 / EPOCHS, 3 / EPOCHS, 17, "Loss", CHANGES),
    "learning_rate": lambda: plots.learning_rate(EPOCHS / 2, 0.1 / EPOCHS),
    "headline_bars": lambda: plots.headline_bars(
        ["accuracy", "macro precision", "macro recall", "macro F1", "top-5 accuracy"],
        [0.7333, 0.7352, 0.7333, 0.733, 0.9312],
        [0.725, 0.727, 0.725, 0.725, 0.926],
        [0.742, 0.744, 0.742, 0.742, 0.936],
        [0.6596, 0.6611, 0.6596, 0.6588, None],
    ),
    "confusion_matrix": lambda: plots.confusion_matrix(MATRIX, CLASSES, GROUPS),
    "superclass_confusion": lambda: plots.superclass_confusion(COARSE, [name for name, _ in GROUPS]),
    "worst_classes": lambda: plots.worst_classes(CLASSES[:10], [0.4] * 10, CLASSES[10:20]),
    "reliability": lambda: plots.reliability([("as trained", EDGES, EDGES**2, np.arange(15))]),
    "confidence_histogram": lambda: plots.confidence_histogram(RNG.random(900), RNG.random(90)),
    "risk_coverage": lambda: plots.risk_coverage(EDGES, EDGES**2),
    "deletion_insertion": lambda: plots.deletion_insertion(
        "Deletion", EDGES, [("Grad-CAM, area 0.1", 1 - EDGES)], "share of the pixels that are deleted"
    ),
    "gradcam_triptych": lambda: plots.gradcam_triptych(
        *EXAMPLES["fog"][:3], "evidence for crab", "evidence for lobster", "lobster, taken for crab"
    ),
    **{
        name: lambda name=name: plots.stress_figures(STRESS, EXAMPLES)[name]
        for name in ("stress_severity", "stress_radius", "stress_examples")
    },
}


def lines(axes):
    """{label: y values} of the curves of an Axes."""
    return {line.get_label(): list(line.get_ydata()) for line in axes.lines}


# ---- Labels ----------------------------------------------------------------------------------------------


def transform_matrix(text):
    """The 3x3 matrix of an SVG transform such as "translate(1 2) rotate(-90) scale(0.09 -0.09)"."""
    matrix = np.eye(3)
    for kind, arguments in re.findall(r"(\w+)\(([^)]*)\)", text or ""):
        a = [float(number) for number in re.split(r"[ ,]+", arguments.strip())]
        step = np.eye(3)
        if kind == "translate":
            step[:2, 2] = [a[0], a[1] if len(a) > 1 else 0]
        elif kind == "scale":
            step[0, 0], step[1, 1] = a[0], a[-1]
        elif kind == "rotate":
            turn = math.radians(a[0])
            step[:2, :2] = [[math.cos(turn), -math.sin(turn)], [math.sin(turn), math.cos(turn)]]
        elif kind == "matrix":
            step[:2] = np.array(a).reshape(3, 2).T
        matrix = matrix @ step
    return matrix


def text_extent(svg):
    """(left, top, right, bottom) of all letters of an SVG with text as paths, and its (width, height)."""
    root = ElementTree.fromstring(svg)
    href = "{http://www.w3.org/1999/xlink}href"
    glyphs = {}  # of every letter: its points, as [3, P]
    for path in root.iter("{http://www.w3.org/2000/svg}path"):
        if "DejaVu" in path.get("id", ""):
            numbers = re.findall(r"-?\d+\.?\d*(?:e-?\d+)?", path.get("d", ""))
            points = np.array(numbers, dtype=float).reshape(-1, 2)
            points = np.column_stack([points, np.ones(len(points))]).T
            glyphs["#" + path.get("id")] = transform_matrix(path.get("transform")) @ points
    drawn = []

    def walk(element, outer):
        matrix = outer @ transform_matrix(element.get("transform"))
        glyph = glyphs.get(element.get(href))
        if glyph is not None and glyph.size:
            matrix = matrix @ transform_matrix(f"translate({element.get('x', 0)} {element.get('y', 0)})")
            drawn.append((matrix @ glyph)[:2])
        for child in element:
            walk(child, matrix)

    walk(root, np.eye(3))
    points = np.concatenate(drawn, axis=1)
    return [*points.min(axis=1), *points.max(axis=1)], [float(n) for n in root.get("viewBox").split()[2:]]


@pytest.mark.slow
@pytest.mark.parametrize("name", FIGURES)
def test_no_label_is_cut_off_in_the_svg(name):
    (left, top, right, bottom), (width, height) = text_extent(plots.to_svg(FIGURES[name](), "figure", "alt"))
    assert 0 <= left < right <= width
    assert 0 <= top < bottom <= height


@pytest.mark.slow
@pytest.mark.parametrize("name", ["headline_bars", "stress_severity", "confusion_matrix"])
def test_no_label_is_cut_off_in_the_png(name, tmp_path):
    plots.save_png(FIGURES[name](), tmp_path / "plot.png")
    pixels = np.asarray(Image.open(tmp_path / "plot.png").convert("L"))
    for edge in (pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]):
        assert (edge == 255).all()
    assert pixels.std() > 5


def test_svg_colours_are_variables_and_ids_are_apart():
    figure = plots.reliability([("as trained", np.array([0.2, 0.8]), np.array([0.1, 0.9]), np.array([3, 4]))])
    svg = plots.to_svg(figure, "first", "alt")
    assert not [colour for colour in plots.CSS_VARIABLES if colour in svg] and "var(--blue)" in svg
    ids = re.findall(r'\bid="([^"]+)"', svg)
    assert ids and all(name.startswith("first-") for name in ids) and len(set(ids)) == len(ids)
    targets = re.findall(r'href="#([^"]+)"|url\(#([^)]+)\)', svg)
    assert targets and all((a or b) in ids for a, b in targets)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["$fox", "$x$", r"$\frac{$", "<b>&amp;", "two\nlines", "a_b^c"])
def test_any_name_of_a_class_or_file_is_drawn_as_it_is(name, tmp_path):
    names, groups = [name, "b"], [(name, 1), ("b", 1)]
    for figure in (
        plots.confusion_matrix(np.eye(2), names, groups),
        plots.superclass_confusion(np.eye(2), names),
        plots.worst_classes(names, [0.1, 0.2], names),
        plots.gradcam_triptych(*EXAMPLES["fog"][:3], name, name, name),
    ):
        plots.save_png(figure, tmp_path / "x.png")
        svg = plots.to_svg(figure, "x", name)
        assert ElementTree.fromstring(svg).get("aria-label") == name.replace("\n", " ")
        texts = figure.findobj(lambda part: hasattr(part, "get_parse_math") and name in part.get_text())
        assert texts and not any(text.get_parse_math() for text in texts)


def test_the_description_of_an_svg_is_escaped():
    hostile = '<script>alert("1")</script>&'
    svg = plots.to_svg(plots.headline_bars(["a"], [0.5], [0.4], [0.6]), "x", hostile)
    assert "<script>" not in svg and escape(hostile) in svg


def test_plots_leave_the_style_of_others_alone():
    before = dict(matplotlib.rcParams)
    plots.save_png(FIGURES["learning_rate"](), io.BytesIO())
    assert dict(matplotlib.rcParams) == before


# ---- What is drawn is what was given ---------------------------------------------------------------------


def test_training_curve():
    train, val = RNG.random(20), RNG.random(20)
    figure = plots.training_curve(EPOCHS, train, val, 17, "Accuracy", CHANGES)
    drawn = lines(figure.axes[0])
    assert drawn["training (augmented images)"] == list(train) and drawn["validation"] == list(val)
    best = next(line for line in figure.axes[0].lines if "17" in line.get_label())
    assert list(best.get_xdata()) == [17, 17]
    above = figure.axes[0].child_axes[0]
    assert list(above.get_xticks()) == list(CHANGES)
    assert [label.get_text() for label in above.get_xticklabels()] == list(CHANGES.values())
    upright = [line.get_xdata()[0] for line in figure.axes[0].lines if line.get_label().startswith("_")]
    assert upright == list(CHANGES)


def test_learning_rate_and_risk_coverage():
    x, y = RNG.random(50), RNG.random(50)
    for figure in (plots.learning_rate(x, y), plots.risk_coverage(x, y)):
        (line,) = figure.axes[0].lines
        assert list(line.get_xdata()) == list(x) and list(line.get_ydata()) == list(y)


@pytest.mark.parametrize("count", [1, 4, 7])
@pytest.mark.parametrize("compared", [False, True])
def test_every_metric_has_a_bar(count, compared):
    values = list(RNG.uniform(0.3, 0.8, count))
    low, high = [v - 0.05 for v in values], [v + 0.1 for v in values]
    reference = [None if i == 0 else 0.5 + i / 100 for i in range(count)] if compared else None
    figure = plots.headline_bars([f"metric {i}" for i in range(count)], values, low, high, reference)
    (axes,) = figure.axes
    assert [bar.get_height() for bar in axes.patches] == values
    assert [label.get_text() for label in axes.get_xticklabels()] == [f"metric\n{i}" for i in range(count)]
    assert [text.get_text() for text in axes.texts] == [f"{100 * v:.2f} %" for v in values]
    intervals, *references = (collection.get_segments() for collection in axes.collections)
    drawn = [(bottom, top) for (_, bottom), (_, top) in intervals]
    np.testing.assert_allclose(drawn, np.column_stack([low, high]))
    if compared and count > 1:
        assert [start[1] for start, _ in references[0]] == reference[1:]
        assert [round((start[0] + end[0]) / 2, 6) for start, end in references[0]] == list(range(1, count))
    else:
        assert references == [] and figure.legends == []


def test_a_value_outside_its_interval_still_has_its_bar():
    figure = plots.headline_bars(["macro F1"], [0.5], [0.3], [0.4])
    assert figure.axes[0].patches[0].get_height() == 0.5


@pytest.mark.parametrize("name", ["confusion_matrix", "superclass_confusion"])
def test_confusion_matrices(name):
    axes = FIGURES[name]().axes[0]
    matrix, labels = (MATRIX, CLASSES) if name == "confusion_matrix" else (COARSE, [g for g, _ in GROUPS])
    assert np.array_equal(axes.images[0].get_array(), matrix)
    for ticks in (axes.get_xticklabels(), axes.get_yticklabels()):
        assert [label.get_text() for label in ticks] == labels
    if name == "confusion_matrix":
        blocks = [(patch.get_x(), patch.get_y(), patch.get_width()) for patch in axes.patches]
        assert blocks == [(5 * i - 0.5, 5 * i - 0.5, 5) for i in range(20)]
        assert [text.get_text() for text in axes.texts] == [name for name, _ in GROUPS]
    else:
        written = {(text.get_position()[1], text.get_position()[0]): text.get_text() for text in axes.texts}
        expected = {
            (r, c): f"{100 * COARSE[r, c]:.0f}" for r, c in np.ndindex(20, 20) if COARSE[r, c] > 0.005
        }
        assert written == expected


def test_no_share_of_superclasses_is_written_as_zero():
    shares = np.array([[0.99, 0.005], [0.006, 0.99]], dtype=np.float32)  # one image of 200, and a bit more
    texts = [text.get_text() for text in plots.superclass_confusion(shares, ["a", "b"]).axes[0].texts]
    assert sorted(texts) == ["1", "99", "99"]


def test_points_of_curves_stand_at_their_places():
    x, y, label = RNG.random(15), RNG.random(15), "training (augmented images)"
    for name, figure, places in [
        ("a", plots.reliability([("a", x, y, np.arange(15))]), x[1:]),  # its first bin is empty
        ("a", plots.deletion_insertion("Deletion", x, [("a", y)], ""), x),
        ("a", plots.stress_severity({"noise": {"a": list(y[:5])}}, 0.7, [0.5] * 5), range(1, 6)),
        (label, plots.training_curve(EPOCHS, 2 / EPOCHS, 3 / EPOCHS, 17, "Loss", {}), EPOCHS),
    ]:
        (line,) = [line for line in figure.axes[0].lines if line.get_label() == name]
        assert list(line.get_xdata()) == list(places), name


def test_worst_classes():
    axes = plots.worst_classes(["otter", "man"], [0.42, 0.46], ["seal", ""]).axes[0]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["otter", "man"]
    assert [bar.get_width() for bar in axes.patches] == [0.42, 0.46]
    assert [text.get_text() for text in axes.texts] == ["42 %, mostly taken for seal", "46 %"]


@pytest.mark.parametrize("count", [1, 2, 3, 7])
def test_reliability_draws_every_curve_without_its_empty_bins(count):
    filled = np.arange(15) % 4 > 0
    curves = [(f"curve {i}", EDGES, RNG.random(15), 9 * filled) for i in range(count)]
    drawn = lines(plots.reliability(curves).axes[0])
    for label, _, accuracy, _ in curves:
        assert drawn[label] == list(accuracy[filled])


def test_reliability_shows_the_number_of_images_in_each_bin():
    count = RNG.integers(0, 3000, 15)
    curves = [("as trained", EDGES, EDGES, count), ("scaled", EDGES, EDGES, np.ones(15))]
    below = plots.reliability(curves).axes[1]
    assert [bar.get_height() for bar in below.patches] == list(count)
    assert [label.get_text() for label in below.texts] == [str(n) for n in count]
    centres = [bar.get_x() + bar.get_width() / 2 for bar in below.patches]
    np.testing.assert_allclose(centres, EDGES)


def luminance(colour):
    """Relative luminance of WCAG 2.1 of a matplotlib colour."""
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in to_rgb(colour)]
    return np.dot(linear, [0.2126, 0.7152, 0.0722])


def test_numbers_in_the_superclass_matrix_are_readable_on_their_cells():
    matrix = np.linspace(0.006, 1, 400).reshape(20, 20)
    axes = plots.superclass_confusion(matrix, [name for name, _ in GROUPS]).axes[0]
    assert len(axes.texts) == 400
    for label in axes.texts:
        column, row = label.get_position()
        cell = axes.images[0].cmap(axes.images[0].norm(matrix[row, column]))[:3]
        dark, bright = sorted([luminance(cell), luminance(label.get_color())])
        assert (bright + 0.05) / (dark + 0.05) >= 4.5


def test_confidence_histogram():
    right, wrong = RNG.random(300), RNG.random(50)
    axes = plots.confidence_histogram(right, wrong).axes[0]
    heights = [[bar.get_height() for bar in bars] for bars in axes.containers]
    assert heights == [
        [sum(int(20 * v) == i for v in values) for i in range(20)] for values in (right, wrong)
    ]


@pytest.mark.parametrize("count", [1, 2, 5])
def test_deletion_insertion_draws_every_curve(count):
    curves = [(f"curve {i}", RNG.random(15)) for i in range(count)]
    drawn = lines(plots.deletion_insertion("Deletion", EDGES, curves, "x").axes[0])
    assert drawn == {label: list(values) for label, values in curves}


def test_gradcam_triptych():
    pictures = EXAMPLES["snow"][:3]
    axes = plots.gradcam_triptych(*pictures, "predicted", "true", "picture").axes
    assert [ax.get_title() for ax in axes] == ["picture", "predicted", "true"]
    assert all(np.array_equal(ax.images[0].get_array(), p) for ax, p in zip(axes, pictures, strict=True))


# ---- Stress tests ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [1, 6, 21])
def test_every_corruption_of_a_family_is_drawn(count):
    curves = {f"corruption_{i}": list(RNG.random(5)) for i in range(count)}
    axes = plots.stress_severity({"noise": curves}, 0.7, [0.5] * 5).axes[0]
    drawn = lines(axes)
    assert drawn.pop("clean accuracy") == [0.7, 0.7]
    assert drawn == {name.replace("_", " "): values for name, values in curves.items()}
    looks = {(line.get_color(), line.get_marker(), line.get_linestyle()) for line in axes.lines[1:]}
    assert len(looks) == min(count, 20)
    assert len(axes.get_legend().get_texts()) == count + 1


@pytest.mark.slow
@pytest.mark.parametrize("count", [1, 2, 5, 6, 8])
def test_every_family_has_a_panel_and_the_last_one_is_the_mean(count):
    panels = {f"family {i}": {"a": list(RNG.random(5)), "b": list(RNG.random(5))} for i in range(count)}
    confidence = list(RNG.random(5))
    axes = [ax for ax in plots.stress_severity(panels, 0.7, confidence).axes if ax.axison]
    assert [ax.get_title(loc="left") for ax in axes] == [*panels, "mean of all"]
    every = [values for curves in panels.values() for values in curves.values()]
    drawn = lines(axes[-1])
    assert drawn["accuracy"] == pytest.approx(
        [sum(column) / len(every) for column in zip(*every, strict=True)]
    )
    assert drawn["confidence"] == confidence


def test_stress_figures_draw_what_the_file_holds():
    figures = plots.stress_figures(STRESS, EXAMPLES)
    assert list(figures) == ["stress_severity", "stress_radius", "stress_examples"]
    tests = STRESS["tests"]
    for axes, (family, names) in zip(figures["stress_severity"].axes, FAMILIES.items(), strict=False):
        assert axes.get_title(loc="left") == family
        drawn = lines(axes)
        assert drawn.pop("clean accuracy") == [tests["clean/0"]["accuracy"]["value"]] * 2
        assert drawn == {
            name.replace("_", " "): [tests[f"{name}/{s}"]["accuracy"]["value"] for s in range(1, 6)]
            for name in names
        }
    (axes,) = figures["stress_radius"].axes
    drawn = lines(axes)
    assert drawn.pop("no attack") == [tests["none/0"]["accuracy"]["value"]] * 2
    attacks = {"FGSM": "fgsm", "PGD": "pgd", "random signs": "random"}
    rows = {
        label: [tests[f"{name}/{radius:g}"]["accuracy"] for radius in EPSILONS]
        for label, name in attacks.items()
    }
    rows["worst of all attacks"] = [STRESS["robust_accuracy"][f"{radius:g}"] for radius in EPSILONS]
    assert set(drawn) == set(rows)
    for band, (label, records) in zip(axes.collections, rows.items(), strict=True):
        assert drawn[label] == [record["value"] for record in records]
        corners = {tuple(corner) for corner in band.get_paths()[0].vertices}
        for radius, record in zip(EPSILONS, records, strict=True):
            assert {(radius, record["low"]), (radius, record["high"])} <= corners


def test_every_example_is_drawn():
    for names in (NAMES, NAMES[:1], [*NAMES, "something_new"]):
        pictures = examples(names)
        figure = plots.stress_examples(pictures)
        shown = {}
        for axes in figure.axes:
            canvas = axes.images[0].get_array()
            for i, label in enumerate(axes.get_yticklabels()):
                row = [canvas[34 * i + 1 : 34 * i + 33, 34 * j + 1 : 34 * j + 33] for j in range(6)]
                shown[label.get_text().replace(" ", "_")] = np.stack(row)
        assert list(shown) == list(names)
        for name, row in shown.items():
            assert np.array_equal(row[..., :3], pictures[name]) and (row[..., 3] == 255).all()


def test_the_shipped_results_are_drawn_with_their_own_means():
    results = json.loads((Path(plots.__file__).parents[1] / "results" / "stress.json").read_text("utf-8"))
    unchanged = copy.deepcopy(results)
    figure = plots.stress_figures(results, EXAMPLES)["stress_severity"]
    assert results == unchanged
    (mean,) = [ax for ax in figure.axes if ax.get_title(loc="left") == "mean of all"]
    assert np.mean(lines(mean)["confidence"]) == pytest.approx(results["summary"]["mean_confidence"]["all"])
    assert np.mean(lines(mean)["accuracy"]) == pytest.approx(
        results["summary"]["mean_accuracy"]["all"]["value"]
    )

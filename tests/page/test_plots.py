"""page/plots.py: what is drawn is what was given, all of it, where the script expects it, and not cut off."""

import re
from html import escape

import numpy as np
import pytest
from matplotlib.text import Text
from pages import assert_letters_inside, fraction
from PIL import Image  # a dependency of matplotlib

from page import plots

RNG = np.random.default_rng(0)
HISTORY = {
    f"{split}_{quantity}": RNG.random(20) for split in ("train", "val") for quantity in ("loss", "accuracy")
}
HISTORY["epoch"] = np.arange(1, 21)
CHANGES = {7.5: "28 px", 14.5: "32 px", 18.5: "no CutMix"}
CLASSES = [f"a class called {i}" for i in range(100)]
GROUPS = {f"large man-made outdoor things {i}": 5 for i in range(20)}
BINS = [[0.25, 0.0, 300], [0.5, 0.75, 100], [0.9, 0.4, 100]]  # confidence, accuracy, count
COUNTS = np.arange(50), np.arange(50)[::-1] % 7  # of right and wrong answers
FIGURES = {
    "training": lambda: plots.training_curve(HISTORY, "accuracy", 17, CHANGES),
    "reliability": lambda: plots.reliability("a title", BINS),
    "confidence": lambda: plots.confidence_histogram("a title", *COUNTS),
}


@pytest.fixture(autouse=True)
def style():
    with plots.styled():
        yield


def ends(axes):
    """{label: y values} of the curves of an Axes, whose names are written at their ends."""
    labels = {text.get_color(): text.get_text() for text in axes.texts}
    return {
        labels[line.get_color()]: list(line.get_ydata()) for line in axes.lines if line.get_color() in labels
    }


@pytest.mark.filterwarnings("error")  # matplotlib warns of what has no room
@pytest.mark.parametrize("name", FIGURES)
def test_a_figure_of_the_page(name):
    """Its letters are text inside of it; its ids are its own; its colours are variables."""
    hostile = '<b id="x">"&'
    figure = FIGURES[name]()
    svg = plots.to_svg(figure, "first", hostile)
    assert hostile not in svg and f'aria-label="{escape(hostile)}"' in svg and 'role="img"' in svg
    assert not [colour for colour in plots.CSS_VARIABLES if colour in svg] and "var(--ink)" in svg
    ids = re.findall(r'\bid="([^"]+)"', svg)[1:]
    assert all(i.startswith("first-") for i in ids) and len(set(ids)) == len(ids)
    assert all((a or b) in ids for a, b in re.findall(r'href="#([^"]+)"|url\(#([^)]+)\)', svg))
    assert_letters_inside(figure, 6)


def test_the_points_of_the_reliability_diagram():
    """The area is in proportion to the count, and so is the weight of a gap in the calibration error."""
    (axes,) = plots.reliability("a title", BINS).axes
    (drawn,) = axes.collections
    np.testing.assert_allclose(drawn.get_offsets(), [[0.25, 0.0], [0.5, 0.75], [0.9, 0.4]])
    large, *small = drawn.get_sizes()
    assert small == pytest.approx([large / 3, large / 3])
    # 300 x 0.25, 100 x 0.25 and 100 x 0.5, of 500; unweighted it would be a third of 1.
    assert axes.figure.get_suptitle() == "a title: calibration error 30.0 %"
    (axes,) = plots.reliability("a title", [[0.2, 0.1, 1], [0.9, 0.9, 100_000]]).axes
    assert axes.collections[0].get_sizes()[0] == 9  # one answer is seen: 3 points wide


def test_right_answers_stand_on_wrong_ones():
    (axes,) = plots.confidence_histogram("a title", *COUNTS).axes
    wrong, right = (patch.get_data() for patch in axes.patches)
    assert list(wrong.values) == list(COUNTS[1]) and list(right.baseline) == list(COUNTS[1])
    assert list(right.values - right.baseline) == list(COUNTS[0])
    assert [text.get_text() for text in axes.texts] == ["right: 1,225", f"wrong: {sum(COUNTS[1])}"]


def test_curves_stand_at_their_places():
    axes = plots.training_curve(HISTORY, "accuracy", 17, CHANGES).axes[0]
    curves = {"training": list(HISTORY["train_accuracy"]), "validation": list(HISTORY["val_accuracy"])}
    assert ends(axes) == curves and [17, 17] in [list(line.get_xdata()) for line in axes.lines]
    above = axes.child_axes[0]
    labels = (label.get_text() for label in above.get_xticklabels())
    assert dict(zip(above.get_xticks(), labels, strict=True)) == CHANGES


def test_lines_that_end_together_have_names_apart():
    history = HISTORY | {"val_accuracy": HISTORY["train_accuracy"]}
    axes = plots.training_curve(history, "accuracy", 17, {}).axes[0]
    axes.figure.draw_without_rendering()
    low, high = sorted((Text.get_window_extent(text) for text in axes.texts), key=lambda box: box.y0)
    assert low.y1 <= high.y0 + 2


def test_every_metric_has_its_bar():
    """Also one whose value lies outside of its interval."""
    rows = {f"macro {v}": {"value": v, "low": v - 0.1, "high": v + 0.03} for v in (0.4, 0.5, 0.6, 0.7)}
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
    for axis in (axes.xaxis, axes.yaxis):
        assert [label.get_text() for label in axis.get_ticklabels()] == CLASSES
        assert list(axis.get_minorticklocs()) == [5 * i - 0.5 for i in range(21)]
    (beside,) = axes.child_axes
    assert [label.get_text() for label in beside.get_yticklabels()] == list(GROUPS)
    assert list(beside.get_yticks()) == list(range(2, 100, 5))


def test_a_matrix_of_very_many_classes_has_no_names_and_4_megapixels():
    for count in (200, 201, 400):
        figure = plots.confusion_matrix(np.eye(count, dtype=int), ["x"] * count, {})
        width, height = 110 * figure.get_size_inches()
        labels = figure.axes[0].get_xticklabels() + figure.axes[0].get_yticklabels()
        assert len(labels) == 2 * count if count == 200 else not labels and width * height <= 4e6


@pytest.mark.slow
@pytest.mark.parametrize("count", [2, 7, 100])
def test_no_label_of_the_largest_plots_is_cut_off(count, tmp_path):
    names = [f"{i} {99 * 'a'}" for i in range(count)]
    for figure in (
        plots.confusion_matrix(RNG.integers(0, 9, (count, count)), names, GROUPS if count == 100 else {}),
        plots.worst_classes("a title", dict.fromkeys(names[:10], 0.5)),
        plots.headline_bars(dict.fromkeys(CLASSES[:5], fraction(0.5))),
    ):
        plots.save_png(figure, tmp_path / "a.png")
        pixels = np.asarray(Image.open(tmp_path / "a.png").convert("L"))
        for edge in (pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]):
            assert (edge == 255).all()
        assert pixels.std() > 5

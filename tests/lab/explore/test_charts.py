"""lab/explore/charts.py: what is drawn is what was given, all of it, where the script expects it."""

import numpy as np
import pytest
from pages import assert_letters_inside, fraction

from lab.explore import charts
from page import plots

ROWS = {f"a row with a long name, {i}": fraction(0.1 + i / 5) for i in range(4)}
BINS = {"as_trained": [[0.25, 0.0, 300], [0.5, 0.75, 100]], "with_temperature": [[0.3, 0.2, 400]]}
COUNTS = {"a": [np.arange(50), np.arange(50)[::-1] % 7], "b": [np.arange(50), np.arange(50)]}
EPSILONS = [0.25, 0.5, 1, 2]
ATTACKS = [f"{name}/{epsilon:g}" for name in ("fgsm", "pgd", "random") for epsilon in EPSILONS]
TESTS = {name: {"accuracy": fraction(0.1 + i / 20)} for i, name in enumerate([*ATTACKS, "unattacked/0"])}
WORST = {f"{epsilon:g}": fraction(0.1 + epsilon / 99) for epsilon in EPSILONS}
FIGURES = {
    "severity": lambda: charts.severity_curves("Accuracy", dict.fromkeys(["a curve", "one more"], [0.5] * 6)),
    "reliability": lambda: charts.reliability_of_groups("a title", BINS),
    "dots": lambda: charts.dots(
        "Mistakes that become right", ROWS, "of the mistakes", fraction(0.1), "chance"
    ),
    "confidence": lambda: charts.histogram_of_groups(COUNTS),
    "attacks": lambda: charts.stress_epsilon(TESTS, WORST, EPSILONS),
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
def test_the_letters_of_a_chart_are_text_inside_of_it(name):
    assert_letters_inside(FIGURES[name](), 6)


def test_groups_have_ids_that_the_style_sheet_shows_and_hides():
    figure = charts.reliability_of_groups("a title", BINS)
    svg = plots.to_svg(figure, "first", "")
    assert 'id="first-points-as_trained"' in svg and 'id="first-points-with_temperature"' in svg
    np.testing.assert_allclose(figure.axes[0].collections[0].get_offsets(), [[0.25, 0.0], [0.5, 0.75]])
    assert "a title: calibration error 25.0 %" in svg  # 300 x 0.25 and 100 x 0.25, of 400
    assert 'id="first-title-with_temperature"' in svg and "calibration error 10.0 %" in svg
    (axes,) = charts.histogram_of_groups(COUNTS).axes
    drawn = {patch.get_gid(): patch.get_data() for patch in axes.patches}
    for group, (right, wrong) in COUNTS.items():
        assert list(drawn[f"wrong-{group}"].values) == list(wrong)
        assert list(drawn[f"right-{group}"].values - drawn[f"right-{group}"].baseline) == list(right)


def test_dots_have_their_intervals_and_numbers():
    (axes,) = charts.dots("title", ROWS, "x", fraction(0.3), "chance").axes
    (band,) = axes.patches
    assert (band.get_x(), band.get_x() + band.get_width()) == pytest.approx((0.2, 0.4))
    chance, *lines = axes.lines
    assert list(chance.get_xdata()) == [0.3, 0.3] and axes.texts[-1].get_text() == "chance 30.0 %"
    drawn = [list(line.get_xdata()) for line in lines]
    assert drawn[::2] == [[row["low"], row["high"]] for row in ROWS.values()]
    assert drawn[1::2] == [[row["value"]] for row in ROWS.values()]
    written = [text.get_text() for text in axes.texts[:-1]]
    assert written[1::2] == [f"{100 * row['value']:.1f} %" for row in ROWS.values()]
    assert written[::2] == list(ROWS)


def test_attacks_stand_at_their_places():
    drawn = ends(charts.stress_epsilon(TESTS, WORST, EPSILONS).axes[0])
    values = [row["accuracy"]["value"] for row in TESTS.values()]
    expected = {"no attack": [values[12]] * 2, "FGSM": values[:4], "PGD": values[4:8]}
    worst = [row["value"] for row in WORST.values()]
    assert drawn == expected | {"random signs": values[8:12], "worst of all": worst}

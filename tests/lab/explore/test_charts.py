"""lab/explore/charts.py: what is drawn is what was given, all of it, where the script expects it."""

import pytest
from pages import assert_letters_inside, fraction

from lab.explore import charts
from page import plots

ROWS = {f"a row with a name, {i}": fraction(0.1 + i / 5) for i in range(4)}
EPSILONS = [0.25, 0.5, 1, 2]
ATTACKS = [f"{name}/{epsilon:g}" for name in ("fgsm", "pgd", "random") for epsilon in EPSILONS]
SIGNS = {f"{epsilon:g}": fraction(0.9 - epsilon / 99) for epsilon in EPSILONS}
TESTS = {name: {"accuracy": fraction(0.1 + i / 20)} for i, name in enumerate([*ATTACKS, "unattacked/0"])}
WORST = {f"{epsilon:g}": fraction(0.1 + epsilon / 99) for epsilon in EPSILONS}
CURVES = {"a curve": [0.1 * severity for severity in range(6)], "one more": [0.5] * 6}
FIGURES = {
    "severity": lambda: charts.severity_curves("Calibration error", CURVES, height=320),
    "dots": lambda: charts.dots(
        "Mistakes that become right", ROWS, "a quarter covered", "a row with a name, 1"
    ),
    "attacks": lambda: charts.stress_epsilon(TESTS, WORST, SIGNS, EPSILONS),
}


@pytest.fixture(autouse=True)
def style():
    with plots.styled():
        yield


def ends(axes):
    """{label: y values} of the curves of an Axes, whose names are written at their ends."""
    labels = {text.get_color(): text.get_text() for text in axes.texts}
    lines = [line for line in axes.lines if line.get_color() in labels]
    return {labels[line.get_color()]: list(line.get_ydata()) for line in lines}


@pytest.mark.filterwarnings("error")  # matplotlib warns of what has no room
@pytest.mark.parametrize("name", FIGURES)
def test_the_letters_of_a_chart_are_text_inside_of_it_and_nothing_is_orange(name):
    assert_letters_inside(FIGURES[name](), 6)
    assert "orange" not in plots.to_svg(FIGURES[name](), name, "")


def test_curves_by_severity():
    assert ends(FIGURES["severity"]().axes[0]) == CURVES


def test_dots_have_their_intervals_and_the_last_is_a_band():
    (axes,) = FIGURES["dots"]().axes
    (band,) = axes.patches
    assert (band.get_x(), band.get_x() + band.get_width()) == pytest.approx((0.6, 0.8))
    drawn = [list(line.get_xdata()) for line in axes.lines]
    assert drawn[::2] == [[row["low"], row["high"]] for row in ROWS.values()]
    assert drawn[1::2] == [[row["value"]] for row in ROWS.values()]
    assert [text.get_text() for text in axes.texts] == [
        f"{100 * row['value']:.0f} %" for row in ROWS.values()
    ]
    assert [text.get_text() for text in axes.get_yticklabels()] == list(ROWS)


def test_attacks_stand_at_their_places():
    drawn = ends(FIGURES["attacks"]().axes[0])
    values = [row["accuracy"]["value"] for row in TESTS.values()]
    expected = {"FGSM": values[:4], "random signs": [row["value"] for row in SIGNS.values()]}
    expected["worst of all"] = [row["value"] for row in WORST.values()]
    assert {name: drawn[name] for name in expected} == expected

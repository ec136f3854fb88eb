"""page/sections.py puts numbers together: signs, sides, the hardest row, epsilons, pictures of any size."""

import numpy as np
import pytest
import torch
from lab_pages import stress_content
from pages import decoded, fraction

from page import pictures, plots, sections


@pytest.fixture
def figures(monkeypatch):
    """The figures that a section draws, {name: Figure}."""
    drawn = {}
    monkeypatch.setattr(plots, "to_svg", lambda figure, name, said: drawn.setdefault(name, figure) and name)
    return drawn


@pytest.fixture
def stress(left):
    return stress_content(left[1]["y_true"])


def brightness(picture, row, column):
    """Of one of the 4x4 cells of a picture in an address."""
    size = decoded(picture.split(",")[1]).float()
    side = size.shape[-1] // 4
    return size[:, side * row : side * (row + 1), side * column : side * (column + 1)].mean().item()


def test_the_opener_is_the_surest_truth_and_its_maps_have_their_signs(left, small_sets):
    _, answers, evidence = left
    truth = answers["y_true"][evidence["mistakes"]]
    evidence["covered_answers"] = (truth + 1) % 100
    evidence["covered_probabilities"][:] = torch.linspace(0.9, 0.1, 30)
    evidence["covered_answers"][[3, 7]] = truth[[3, 7]]
    evidence["covered_probabilities"][7] = 0.85
    evidence["opener"] = torch.tensor(7)
    evidence["maps"][7] = torch.zeros(4, 4)
    evidence["maps"][7, 0, 1], evidence["maps"][7, 3, 2] = 2.0, -2.0
    evidence["puzzles"] = torch.tensor([7])
    black = torch.zeros_like(small_sets[1].images)
    opener = sections.one_mistake(answers, evidence, black)["opener"]
    assert opener["true"] == pictures.plain(answers["class_names"][truth[7]])
    assert opener["probability"] == pytest.approx(0.85) and opener["answer"] == opener["true"]
    assert brightness(opener["for"], 0, 1) > 100 > 5 > brightness(opener["for"], 3, 2)
    assert brightness(opener["against"], 3, 2) > 100 > 5 > brightness(opener["against"], 0, 1)


def test_the_histogram_has_right_and_wrong_answers_on_their_sides(left, stress, figures):
    numbers, answers, _ = left
    sections.confidence(numbers, stress)
    logits, is_right = answers["probabilities"].log(), answers["y_pred"] == answers["y_true"]
    steps = {part.get_gid(): part.get_data() for part in figures["histogram"].axes[0].patches}
    for group, temperature in (("as_trained", 1.0), ("with_temperature", numbers["temperature"])):
        sure = (logits / temperature).softmax(dim=1).amax(dim=1)
        for side, members in (("right", is_right), ("wrong", ~is_right)):
            values, edges, baseline = steps[f"{side}-{group}"]
            expected = np.histogram(sure[members].numpy(), edges)[0]
            assert abs(values - baseline - expected).sum() <= 2, side  # of values at the edge of a bin
    (axes,) = figures["calibration"].axes
    drawn = [list(line.get_ydata()) for line in axes.lines]
    rows = stress["summary"]["by_severity"]
    assert drawn == [[row[key]["ece"] for row in rows] for key in ("as_trained", "with_temperature")]


def test_the_hardest_corruption_and_every_epsilon(left, stress, figures, small_sets):
    tests, answers = stress["tests"], left[1]
    for name, values in {"frost": (0.1, 0.1, 0.19, 0.1, 0.1), "snow": (0.5, 0.5, 0.18, 0.5, 0.5)}.items():
        for severity, value in enumerate(values, 1):
            tests[f"{name}/{severity}"]["accuracy"] = fraction(value)
    shown = sections.stress_tests(answers, stress, small_sets[1].images)
    assert shown["hardest"]["name"] == "snow"  # the lowest at severity 3, not on average
    for row in shown["corruption_rows"]:
        values = [tests[f"{row['name']}/{severity}"]["accuracy"]["value"] for severity in range(1, 6)]
        assert row["values"] == pytest.approx([*values, np.mean(values)])
    (axes,) = figures["epsilon"].axes
    curves = [list(line.get_xdata()) for line in axes.lines if len(line.get_xdata()) > 2]
    assert curves == [stress["epsilons"][:-1]] * 4
    assert pictures.stress_data(answers, stress)["attacks"]["epsilons"] == stress["epsilons"][:-1]
    right = [c == answers["y_true"][i] for i, (c, _) in enumerate(stress["examples"]["answers"]["clean/0"])]
    assert shown["clean_right"] == sum(right)


def test_superclasses_that_are_confused_most(left):
    _, answers, _ = left
    pairs, of = sections.superclass_pairs(answers), answers["superclass_of"].tolist()
    rows = zip(answers["y_true"].tolist(), answers["y_pred"].tolist(), strict=True)
    counts = {}
    for true, predicted in rows:
        if of[true] != of[predicted]:
            pair = tuple(pictures.plain(answers["superclass_names"][of[c]]) for c in (true, predicted))
            counts[pair] = counts.get(pair, 0) + 1
    assert [pair["count"] for pair in pairs] == sorted(counts.values(), reverse=True)[:8]
    for pair in pairs:
        assert pair["count"] == counts[pair["true"], pair["predicted"]] == round(10 * pair["share"])

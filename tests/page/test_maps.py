"""The section on maps: what it claims is chosen by the verdict, and its plot has the controls that exist."""

import copy

import pytest
from pages import fraction, text

from page import page, plots, sections

TO_TRUTH = {"changed": fraction(0.8), "to_truth": fraction(0.27)}
TO_RUNNER_UP = {"changed": fraction(0.6), "to_runner_up": fraction(0.2)}
CONTROLS = ["runner_up", "random_class", "usual", "other_image"]
RANDOM = {"changed": fraction(0.5), "to_truth": fraction(0.14)}
COVERING = {
    "images": {"mistakes": 800, "right": 400},
    "mistakes": {"contrastive": TO_TRUTH, **dict.fromkeys(CONTROLS, TO_TRUTH), "random": RANDOM},
    "blurred": {"contrastive": TO_TRUTH, "random": RANDOM},
    "another": {name: {"to_another": fraction(0.3)} for name in ("contrastive", "random")},
    "differences": dict.fromkeys(["random", "blurred_random", "other_image", "random_class"], fraction(0.1)),
    "right": dict.fromkeys(["runner_up", "usual", "random", "centre"], TO_RUNNER_UP),
}
WEIGHTS = {"images": 40, "seeds": 5, "same_image": fraction(0.2), "other_image": fraction(0.2)}
CLAIMS = {
    "specific": "random cells 14 %: they mark what weighs between these two classes.",
    "more than chance": "14 %: more than chance, but not shown to be specific to the two classes.",
    "no": "random cells 14 %: not shown to be more than chance.",
    "too few": "7 mistakes: too few to say.",
}


@plots.styled()
def filled(covering):
    """The claim and the section as a reader sees them, without its details, and all of its plot."""
    numbers = {"covering": covering, "maps": {"layer": "layer4", "size": [4, 4], "random_weights": WEIGHTS}}
    shown = sections.maps(numbers)
    context = {"n": numbers, "followed": None} | shown
    module = page.environment().get_template("maps.html").make_module(context)
    html = str(module)
    start, end = html.index("<details><summary>"), html.rindex("</details>")
    without_plot = html.replace(str(shown["covering_plot"]), "")
    return text(str(module.claim)), text(without_plot.split("<details><summary>")[0]), html[start:end], shown


@pytest.mark.parametrize("verdict", CLAIMS)
def test_the_verdict_chooses_the_claim(verdict):
    covering = copy.deepcopy(COVERING) | {"verdict": verdict}
    if verdict == "too few":
        covering["images"]["mistakes"] = 7
    claim, said, details, shown = filled(covering)
    assert claim.endswith(CLAIMS[verdict])
    assert len(said.split()) <= 60, said
    assert "400 right answers" in text(details) and "Random weights" in details
    for name in sections.MAPS.values():
        assert f"{name} 27 %" in shown["covering_plot"], name
    assert "random cells 14.0 %" in shown["covering_plot"]


def test_two_classes_and_one_mistake_have_fewer_controls():
    covering = copy.deepcopy(COVERING) | {"verdict": "too few"}
    for name in ("random_class", "other_image"):
        del covering["mistakes"][name], covering["differences"][name]
    del covering["another"], covering["right"]
    _, _, details, shown = filled(covering)
    assert "random class" not in shown["covering_plot"] and "another image's map" not in details
    for name in ("mistakes", "blurred", "differences"):
        del covering[name]
    covering["images"]["mistakes"] = 0
    claim, said, _, shown = filled(covering)
    assert claim == "No mistakes: too few to say." and said == "" and shown["covering_plot"] is None

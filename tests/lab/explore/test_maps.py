"""The section on maps: what it claims is chosen by the verdict, and its plot has the controls that exist."""

import copy

import pytest
from lab_pages import COVERING, MAPS
from pages import text

from page import plots, sections, write

CLAIMS = {
    "specific": "random cells 14 %: they mark what weighs between the classes.",
    "more than chance": "14 %: more than chance, but not shown to be specific to the two classes.",
    "no": "random cells 14 %: not shown to be more than chance.",
    "too few": "7 mistakes: too few to say.",
}


@plots.styled()
def filled(covering):
    """The claim and the section as a reader sees them, without its details, and all of its plot."""
    shown = sections.maps({"covering": covering})
    context = {"n": {"covering": covering, "maps": MAPS}, "followed": None} | shown
    module = write.make_templates().get_template("maps.html").make_module(context)
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


def test_two_classes_and_one_mistake_have_fewer_controls(monkeypatch):
    """Of so few images maps may be constant: no correlation with those of another image is known then."""
    monkeypatch.setitem(MAPS["random_weights"]["other_image"], "value", None)
    covering = copy.deepcopy(COVERING) | {"verdict": "too few"}
    for name in ("random_class", "other_image"):
        del covering["mistakes"][name], covering["differences"][name]
    del covering["another"], covering["right"]
    _, _, details, shown = filled(covering)
    assert "nothing, as maps are constant" in text(details)
    assert "random class" not in shown["covering_plot"] and "another image's map" not in details
    for name in ("mistakes", "blurred", "differences"):
        del covering[name]
    covering["images"]["mistakes"] = 0
    claim, said, _, shown = filled(covering)
    assert claim == "No mistakes: too few to say." and said == "" and shown["covering_plot"] is None

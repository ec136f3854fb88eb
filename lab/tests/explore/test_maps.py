"""The section on maps: a title by verdict and intervals, and plots of the controls that there are."""

import copy

import pytest
from lab_pages import fraction, text
from made_up import COVERING, MAPS

from lab.explore import compose, story
from lab.explore import drawing as plots

ABOVE, AROUND = fraction(0.2), fraction(0.02)  # differences to chance
BEFORE, TOLD = "by chance 14 %", "By a map that knows the true class: 27 %"
TITLES = {
    ("specific", "above"): f"{BEFORE}. {TOLD}.",
    ("specific", "around"): f"{BEFORE} (no difference shown). {TOLD}.",
    ("more than chance", "above"): f"{BEFORE}. {TOLD}.",
    ("no", "above"): f"{BEFORE}. {TOLD} (not shown to beat chance).",
    ("specific", "below"): f"{BEFORE}. {TOLD}.",
    ("no", "around"): f"{BEFORE} (no difference shown). {TOLD} (not shown to beat chance).",
}
LESS = {"above": ABOVE, "around": AROUND, "below": fraction(-0.2)}


@plots.styled()
def filled(covering):
    """The title, the section as a reader sees it, and what story.py drew for it."""
    shown = story.maps({"covering": covering}, {}, {}, None)
    templates = compose.make_templates()
    templates.globals |= {"source": compose.source, "glossary": compose.glossary()}
    context = {"n": {"covering": covering, "maps": MAPS, "truth_second": 0.4}} | shown
    module = templates.get_template("maps.html").make_module(context)
    return text(str(module.claim)), text(str(module)), shown["covering_plots"]


@pytest.mark.parametrize(("verdict", "usual"), TITLES)
def test_the_title_follows_from_verdict_and_intervals(verdict, usual):
    covering = copy.deepcopy(COVERING) | {"verdict": verdict, "usual_less": {"random": LESS[usual]}}
    title, words, drawn = filled(covering)
    assert (
        title
        == f"Cover what the usual heat map marks: 27 % of mistakes become right, {TITLES[verdict, usual]}"
    )
    assert "quarter 60 %, and the bare centre 60 %" in words
    for name in ("contrastive map", "against runner-up", "the usual map", "random cells"):
        assert name in drawn["mistakes"], name


def test_two_classes_and_one_mistake_have_fewer_controls(monkeypatch):
    """Of so few images maps may be constant: no correlation with those of another image is known then."""
    monkeypatch.setitem(MAPS["random_weights"]["other_image"], "value", None)
    covering = copy.deepcopy(COVERING) | {"verdict": "too few"}
    covering["images"]["mistakes"] = 7
    for name in ("random_class", "other_image"):
        del covering["mistakes"][name], covering["differences"][name]
    del covering["another"], covering["right"]
    title, words, drawn = filled(covering)
    assert title == "7 mistakes: too few to say whether the maps mark what matters."
    assert "The maps are constant" in words
    assert "random class" not in drawn["mistakes"] and "right" not in drawn
    for name in ("mistakes", "blurred", "differences"):
        del covering[name]
    covering["images"]["mistakes"] = 0
    title, _, drawn = filled(covering)
    assert title.startswith("No mistakes: too few") and drawn == {}

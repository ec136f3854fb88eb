"""Each sentence of explore.html that has several forms, in each of them: a section by made-up numbers."""

import pytest
import torch
from lab_pages import fraction, text
from made_files import covering, stress_results

from lab.explore import compose, drawing, story

ABOVE, AROUND, BELOW = fraction(0.2), fraction(0.02), fraction(-0.2)
FINE = {"value": 0.76, "low": 0.75, "high": 0.77}


@drawing.styled()
def section(name, context):
    """The claim, what stands below it, and the rest of a section, as a reader sees them."""
    module = compose.make_templates().get_template(f"{name}.html").make_module(context)
    below = text(str(getattr(module, "below", "")))
    return text(str(module.claim)), below, text(str(module))


def maps(content):
    return section(
        "maps", {"n": {"covering": content, "network": {}}} | story.maps({"covering": content}, {}, {}, None)
    )


# ---- Heat maps -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("less", "ending"),
    [(ABOVE, "more than by chance"), (AROUND, "chance does about as well"), (BELOW, "fewer than by chance")],
)
def test_the_usual_map_and_chance(less, ending):
    claim, below, _ = maps(covering(usual_less={"random": less}))
    assert claim == f"Cover what a heat map marks, and 28 % of the mistakes become right: {ending}."
    assert below == "The usual map turns 28 % (27–29) of 800 mistakes, random cells 26 % (25–27)."


@pytest.mark.parametrize(
    ("verdict", "sentence"),
    [
        ("specific", "more than each of the controls that do not know the truth."),
        ("more than chance", "more than random cells, but not by three points more than each control."),
        ("no", "that is not shown to be more than by chance."),
    ],
)
def test_the_verdict_on_the_contrastive_map(verdict, sentence):
    assert f"The contrastive map turns 30 % (29–31): {sentence}" in maps(covering(verdict))[2]


@pytest.mark.parametrize(
    ("tries", "worth"), [(0, "less than one blind guess"), (1, "one blind guess"), (3, "three blind guesses")]
)
def test_what_knowing_the_truth_is_worth(tries, worth):
    words = maps(covering(tries=tries, differences={"best_of_three": fraction(-0.05, 0.02)}))[2]
    assert "the best of three turns 14 %, and the map's lead is −5.0 points (−7.0 to −3.0)." in words
    assert f"So this map, which is told the truth, is worth about {worth}." in words


@pytest.mark.parametrize(
    ("lead", "ending"),
    [
        (ABOVE, "is ahead of the centre"),
        (AROUND, "is not shown to beat the centre"),
        (BELOW, "falls behind the centre"),
    ],
)
def test_the_usual_map_and_the_centre(lead, ending):
    words = maps(covering(changed_less={"centre": lead}))[2]
    assert "changes 88 % of these answers, covering the bare centre 84 %, random cells 86 %" in words
    assert f"{ending}." in words


def test_older_results_without_the_best_of_several_covers_and_two_classes_have_fewer_rows(figures):
    content = covering()
    for name in ("best_of_two", "best_of_three", "best_of_four", "random_class", "other_image"):
        del content["mistakes"][name]
    del content["tries"], content["differences"]["best_of_three"], content["changed_less"]
    assert "blind" not in maps(content)[2]
    rows = [label.get_text() for label in figures["covering"].axes[0].get_yticklabels()]
    assert rows == ["contrastive map", "against runner-up", "the usual map", "the centre", "random cells"]


@pytest.mark.parametrize(
    ("count", "claim"), [(0, "No mistakes: too"), (1, "1 mistake: too"), (7, "7 mistakes: too")]
)
def test_too_few_mistakes(count, claim):
    content = covering("too few")
    content["images"]["mistakes"] = count
    assert maps(content)[0].startswith(claim)


# ---- Mistakes and classes --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("wrong", "claim"), [(0, "There is no mistake."), (3, "3 of 50 pictures get a wrong answer.")]
)
def test_how_many_are_wrong(wrong, claim):
    context = {"num_wrong": wrong, "num_shown": 0, "wrong": fraction(0.06, 0.05)}
    assert (
        section("mistakes", context | {"n": {"num_test": 50, "accuracy": FINE, "truth_second": 0.4}})[0]
        == claim
    )


def classes(**changed):
    lowest = {"name": "a_b", "tied": 1} | fraction(0.2)
    context = {
        "num_wrong": 9,
        "num_shown": 9,
        "matrix": None,
        "failing": [],
        "same_word": 0.1,
        "lowest": lowest,
        "class_names": list("ab"),
    }
    return section("accuracy", {"n": {"accuracy": FINE, "num_test": 50}} | context | changed)


def test_classes_that_fail_are_named():
    group = {
        "name": "white",
        "names": ["white star", "white bar"],
        "group": fraction(0.5),
        "rest": fraction(0.9),
    }
    words = classes(failing=[group, group | {"name": "big_fish"}])[2]
    assert "The hardest group: white Of white star, white bar 50 % (40–60) are right, " in words
    assert "of all other classes 90 % (80–100)." in words
    assert "Next: big fish, 50 %." in words and "group" not in classes()[2]
    assert "Of its 7 classes 50 %" in classes(failing=[group | {"names": list("abcdefg")}])[2]


def test_how_many_are_right():
    for value, words in ((0.76, "Three in four answers are"), (1, "All answers are"), (0, "No answer is")):
        accuracy = {"value": value, "low": 0, "high": 1}
        assert classes(n={"accuracy": accuracy, "num_test": 50})[0] == f"{words} right."


def test_tied_classes_a_kept_word_and_luck():
    assert "The hardest class a b: 20 % (10–30) right." in classes()[2]
    assert "hardest" not in classes(num_wrong=0)[2]
    tied = {"name": "a_b", "tied": 3} | fraction(0.2)
    assert "The hardest classes a b and 2 more: 20 % (10–30) right." in classes(lowest=tied)[2]
    assert "unlucky" in classes(class_names=list(range(21)))[2] and "unlucky" not in classes()[2]
    assert "keeps a word" not in classes()[2]
    assert "In 98 % of the mistakes the answer keeps a word of the true name." in classes(same_word=0.98)[2]


# ---- Confidence ------------------------------------------------------------------------------------------


def confidence(sure, trained=(0.05, 0.1), scaled=(0.02, 0.2), corrupted=0.6, smoothing=0.1, severities=True):
    """The section for a mean confidence, and calibration errors, clean and at severity 5."""
    n = {
        "expected_calibration_error": trained[0],
        "mean_confidence": sure,
        "accuracy": FINE,
        "temperature": 0.8,
    }
    n |= {"expected_calibration_error_after_temperature": scaled[0], "calibration_error_by_chance": 0.01}
    n |= {"training": {"label_smoothing": smoothing}, "confident": {"answers": 9, "wrong": 0}}
    means = {"mean_confidence": {"fifteen": corrupted}, "mean_accuracy": {"fifteen": fraction(0.5)}}
    curves = {"as trained": [trained[0]] * 5 + [trained[1]], "temperature": [scaled[0]] * 5 + [scaled[1]]}
    context = {
        "n": n,
        "stress": {"summary": means} if severities else None,
        "confidence_plots": {"histogram": ""},
    }
    context |= {"calibration_errors": curves if severities else {}, "kept": []}
    return section("confidence", context)


@pytest.mark.parametrize(
    ("sure", "verdict"), [(0.7, "not sure enough"), (0.76, "about as sure as it is right"), (0.9, "too sure")]
)
def test_the_verdict_on_confidence(sure, verdict):
    claim, below, words = confidence(sure)
    assert claim == f"Its confidence is off by 5.0 points: it is {verdict}."
    assert ("Label smoothing" in below) == (sure == 0.7)
    assert "Label smoothing" not in confidence(sure, smoothing=0)[1]
    assert "Above 90 % none of 9 answers are wrong." in words


def test_confidence_under_corruptions():
    for corrupted, verdict in (
        (0.3, "not sure enough"),
        (0.5, "about as sure as it is right"),
        (0.7, "too sure"),
    ):
        words = confidence(0.7, corrupted=corrupted)[2]
        assert (
            f"When pictures are corrupted it is {verdict}: {100 * corrupted:.0f} % sure and 50 % right."
            in words
        )
    assert "corrupted" not in confidence(0.7, severities=False)[2]


@pytest.mark.parametrize(
    ("scaled", "ending"),
    [
        ((0.02, 0.2), "ship it where pictures stay clean."),
        ((0.02, 0.05), "it helps on both."),
        ((0.06, 0.05), "it helps on corrupted ones only."),
        ((0.06, 0.2), "it helps on neither."),
    ],
)
def test_what_the_temperature_does(scaled, ending):
    clean, corrupted = (f"{100 * error:.1f} %" for error in scaled)
    expected = (
        f"from 5.0 % to {clean} on clean pictures, and at severity 5 from 10.0 % to {corrupted}: {ending}"
    )
    assert expected in confidence(0.7, scaled=scaled)[2]
    assert f"to {clean} on clean pictures." in confidence(0.7, scaled=scaled, severities=False)[2]


# ---- Corruptions and attacks -----------------------------------------------------------------------------


def test_without_stress_tests_one_section_has_the_command():
    context = {"stress": None, "line": None, "stress_command": "python -m lab.stress --run runs/a"}
    claim, _, words = section("corruptions", context | {"n": {"network_sha256": "x"}})
    assert claim == "There are no finished tests of corruptions and attacks." and words.endswith(
        "--run runs/a"
    )
    assert section("corruptions", context | {"n": {}})[0] == ""  # of answers in a file nothing can be tried
    assert section("attacks", context)[0] == section("unlabelled", context)[0] == ""


def attacks(signs=0.7, survivors=0.0, passed=True, **changed):
    stress = stress_results(torch.arange(100)) | {"checks": [{"name": "a", "detail": "b", "passed": passed}]}
    stress["robust_accuracy"] = {"1": fraction(0.1, 0.02), "8": fraction(survivors, 0.0)}
    stress["random_signs"] = {"1": fraction(signs, 0.02)}
    context = {"stress": stress, "epsilon_plot": "", "surviving": 0.13}
    return section("attacks", context | {"n": {"training": {}}} | changed)


def test_attacks():
    claim, below, words = attacks()
    assert claim == "Change each colour by one level of 255, chosen to mislead: 10 % stay right."
    assert "10.0 % (8.0–12.0) of 100 pictures" in below and below.endswith(
        "70 % are right: it is the aim that misleads."
    )
    assert attacks(signs=0.12)[1].endswith("12 % are right.")
    assert "13 % of the right answers survive" in words and "none of the 100 pictures stays right" in words
    assert "2.0 % of the 100 pictures stay right" in attacks(survivors=0.02)[2]
    assert "trained against" in words and "trained against" not in attacks(n={})[2]
    assert "failed" not in words and "1 of 1 checks of the attacks failed" in attacks(passed=False)[2]


def test_a_difference_in_words():
    row = {"value": 0.5, "low": 0.25, "high": 0.75}
    assert drawing.points(row) == "+50.0 points (+25.0 to +75.0)"
    assert drawing.points({key: -value for key, value in row.items()}, 0) == "−50 points (−25 to −75)"


@pytest.mark.parametrize(
    ("share", "words"),
    [
        (0.76, "three in four"),
        (0.45, "45 in 100"),
        (0.9, "nine in ten"),
        (0.993, "more than 99 in 100"),
        (0.004, "fewer than 1 in 100"),
        (1, "all"),
    ],
)
def test_a_share_in_words(share, words):
    assert drawing.in_words(share) == words

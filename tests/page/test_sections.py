"""page/sections.py: each claim and each sentence is chosen by the numbers that it says."""

import dataclasses
import html
import json
import re
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from pages import HOSTILE_CLASS, HOSTILE_FILE, fraction, pictures, said, stress_content, text

import data
import report
from page import page, sections
from stress_tests.corruptions import CORRUPTIONS


@pytest.fixture(autouse=True)
def no_plots(request, monkeypatch):
    """They take long to draw; in their place stands what they show, for those who do not see it."""
    if "reported" not in request.fixturenames:
        monkeypatch.setattr(sections.plots, "to_svg", lambda figure, name, said: page.fill("cell", text=said))
        monkeypatch.setattr(sections.plots, "save_png", lambda figure, path: None)


# ---- The mistakes ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("repaired, place", [({3: 0.5, 7: 0.9, 9: 0.8}, 7), ({}, 0)])
def test_the_mistake_that_covering_repairs_best_is_taken_apart(repaired, place, found, small_sets):
    test, i = small_sets[1], found.browsed[place].item()
    for row, probability in repaired.items():
        found.covered[0][row], found.covered[1][row] = test.labels[found.browsed[row]], probability
    found.neighbours["similarity"][i, 1] = 0  # no training image of the true class
    section = sections.one_mistake(test, found)
    true, predicted = (test.class_names[c] for c in (test.labels[i], found.y_pred[i]))
    answer = f"{true} \\(90 %" if repaired else f"{predicted} \\(99 %"
    assert re.match(rf"{true.capitalize()}, taken for {predicted} .* {answer}", said(section))
    shown = pictures(section.content)
    assert len(shown) == 5 + 5 and torch.equal(shown[0], test.images[i])
    # A quarter of the pixels, where the enlarged map is largest, have the mean colour.
    large = F.interpolate(found.maps[place, :1][None], 32, mode="bilinear", align_corners=False)[0, 0]
    mean = torch.tensor([round(255 * value) for value in data.MEAN], dtype=torch.uint8)[:, None, None]
    hidden = large >= large.flatten().sort().values[-256]
    assert torch.equal(shown[3], torch.where(hidden, mean, test.images[i]))
    assert torch.equal(shown[4], found.neighbours["images"][place, 0])
    beside = [j for j in found.browsed.tolist() if j != i][:5]
    assert torch.equal(torch.stack(shown[5:]), test.images[beside])
    answer = found.others["b"]["probabilities"][i].argmax()
    assert f"b says {test.class_names[answer]} (" in text(section.content)
    found.covered, found.maps, found.neighbours, found.others = None, None, None, {}
    section = sections.one_mistake(test, found)
    assert len(pictures(section.content)) == 1 + 5 and "covered" not in said(section)
    found.browsed = found.browsed[:0]
    assert said(sections.one_mistake(test, found)).startswith("There is no wrong answer.")


def rates(value, low=0.0):
    return {fill: {"value": value, "low": low, "high": value} for fill in ("mean_colour", "blur")}


@pytest.mark.parametrize(
    "value, p, words", [(0.3, 0.01, []), (0.1, 0.01, ["only"]), (0.3, 0.06, ["no more"])]
)
@pytest.mark.parametrize("usual_low", [0.21, 0.19])
def test_what_repairs_a_mistake(value, p, words, usual_low):
    repair = {"images": 400, "contrastive": rates(value), "random": rates(0.2)}
    repair |= {name: rates(0.25, usual_low) for name in ("predicted", "true", "activation")}
    repair["mcnemar"] = {"mean_colour": {"only_contrastive": 73, "only_random": 17, "p": p}}
    row = {"predicted_label": 0.5, "true_label": 0.125, "none_with_true_label": 0.6, "knn_agrees": 0.4}
    numbers = {"repair": repair, "neighbours": {"neighbours": 10, "training_images": 8000}}
    numbers["neighbours"] |= {"mistakes": row, "right": row | {"knn_agrees": 0.95}}
    section = sections.why(numbers, "maps of layer4")
    seen, claim = said(section), text(section.claim)
    assert (
        re.findall("no more|only", claim) == words and f"{100 * value:.1f} %" in claim and "20.0 %" in claim
    )
    assert ("not clearly more" in seen) == (usual_low < 0.2)
    assert "own answer for 40.0 % of its mistakes and 95.0 % of its right answers" in seen
    assert re.findall(r"width: ([\d.]+)%", section.content) == ["50.00", "12.50", "37.50"]  # it adds up
    del numbers["repair"]
    assert "There are no maps" in said(sections.why(numbers, "no maps"))
    numbers["neighbours"]["mistakes"] = None
    assert sections.why(numbers, "no maps") is None and sections.why({}, "no maps") is None


SHARED = ["all runs give the same wrong answer", "all runs are wrong, but not alike", "another run is right"]
ALONE = ["the true class is second, <here>", "the true class is further down", "second, elsewhere"]


@pytest.mark.parametrize(
    "others, words", [(1, "15 are the same in both runs; 5 are"), (2, "all 3 runs"), (0, "20 of 30")]
)
def test_kinds_of_mistakes_add_up(others, words):
    rows = [{"name": "never", "count": 0, "share": 0.0, "accuracy_if_right": 0.8}]
    for name, count in zip(SHARED if others else ALONE, (15, 10, 5), strict=True):
        rows.append({"name": name, "count": count, "share": count / 30, "accuracy_if_right": 0.9})
    section = sections.kinds(rows, others, "")
    assert re.search(words, text(section.claim)) and ("--against" in said(section)) == (not others)
    assert re.findall(r"width: ([\d.]+)%", section.content) == ["50.00", "33.33", "16.67"]
    assert "<here>" not in section.content and sections.kinds(rows[:1], others, "") is None


@pytest.mark.parametrize("wrong, words", [(0, "none is wrong"), (1, "1 is wrong"), (2, "2 are wrong")])
@pytest.mark.parametrize("runs, shared", [(0, ""), (1, "both runs"), (2, "all 3 runs")])
def test_the_claim_on_confident_mistakes(wrong, words, runs, shared, found, small_sets):
    found.numbers["confident"] = {"answers": 1234, "wrong": wrong}
    if runs:
        found.numbers["confident"]["shared"] = {"mistakes": wrong, "same_answer": wrong, "all_wrong": wrong}
    found.others, count = dict.fromkeys(map(str, range(runs))), len(found.misclassified)
    section = sections.mistakes(small_sets[1], found)
    assert "1,234" in section.claim and words in text(section.claim)
    assert re.findall("both runs|all 3 runs", section.claim) == ([shared] if wrong and runs else [])
    assert f"30 most confident of {count}" in said(section)
    found.browsed = found.misclassified
    assert f"All {count} mistakes" in said(sections.mistakes(small_sets[1], found))


# ---- Classes, words, confidence --------------------------------------------------------------------------


@pytest.mark.parametrize("superclasses", [True, False])
@pytest.mark.parametrize(
    "wrong, words",
    [([2, 2, 0], "1 of 4 are right (5–70 %), 2 are taken for c."), ([], "4 of 4 are right (51–100 %).")],
)
def test_which_classes(superclasses, wrong, words):
    """Three classes of four images: of the second one image is right, or all images are right."""
    test = data.from_arrays(torch.zeros(12, 3, 32, 32).byte(), torch.arange(12) % 3, ["a", "b_b", "c"])
    if superclasses:
        test = dataclasses.replace(test, superclass_of=torch.tensor([0, 1, 1]), superclass_names=["s", "t"])
    y_pred = test.labels.clone()
    y_pred[[1, 4, 7][: len(wrong)]] = torch.tensor(wrong, dtype=torch.int64)
    section = sections.which_classes(
        test, y_pred, report.evaluate(9 * torch.eye(3)[y_pred], test, None, None).numbers
    )
    assert words in text(section.claim) and (not wrong or "b b" in section.claim)
    assert f"{4 if wrong else 6} of 6 pairs never occur" in said(section)
    assert ("66.7 % of the errors stay inside" in said(section)) == (superclasses and len(wrong) > 0)
    assert ("superclass" in said(section)) == superclasses


@pytest.mark.parametrize(
    "differing, words", [(0, "none of 3 differs"), (1, "1 of 3 differs"), (2, "2 of 3 differ ")]
)
@pytest.mark.parametrize("p, depends", [(0.001, "do go with"), (0.3, "do not clearly go with")])
def test_the_sentences_on_words_follow_from_the_tests(differing, words, p, depends):
    rows = []
    for place, word in enumerate(("soda_can", "tin", "beer_can")):
        row = {"class": "can", "word": word, "images": 38, "error_rate": 0.03, "other_error_rate": 0.3}
        rows.append(row | {"p_adjusted": 0.01, "differs": place < differing})
    found = {
        "explained": 0.08,
        "p": p,
        "shuffled": [0.05],
        "shuffled_mean": 0.05,
        "shuffled_maximum": 0.06,
        "permutations": 1000,
    }
    markup = sections.search_words(found | {"words": rows})
    assert f"words {depends}" in text(markup) and words in text(markup)
    assert markup.count("<tr>") == 1 + (differing or 3)


@pytest.mark.parametrize(
    "confidence, word", [(0.59, "under"), (0.6, "neither"), (0.8, "neither"), (0.81, "over")]
)
@pytest.mark.parametrize("after, verb", [(0.04, "lowers"), (0.06, "raises"), (None, None)])
def test_words_on_confidence_follow_the_numbers(confidence, word, after, verb, found):
    row = found.calibration[0] | {"expected_calibration_error": 0.05, "mean_confidence": confidence}
    found.calibration = [row]
    if after is not None:
        found.calibration += [row | {"temperature": 0.81, "expected_calibration_error": after}, row]
    numbers = found.numbers | {"accuracy": fraction(0.7), "risk_at_half_coverage": 0.1}
    section = sections.confidence(numbers, found)
    assert f"It is {word}" in section.claim and f"{100 * confidence:.1f} %" in text(section.claim)
    scaled = [] if after is None else [("0.81", verb, f"{100 * after:.1f}")]
    assert re.findall(r"(0\.81), fitted .* (lowers|raises) the ECE to ([\d.]+) %", said(section)) == scaled
    assert f"10.0 % would be wrong instead of {100 * found.risk_coverage[1][-1]:.1f} %" in said(section)


# ---- Stress tests ----------------------------------------------------------------------------------------


def test_corruptions_of_which_one_is_hardest(small_sets):
    results, test = stress_content(small_sets[1].labels), small_sets[1]
    results["tests"]["glass_blur/3"] = {"accuracy": fraction(0.125)}
    results["tests"]["fog/5"] = {"accuracy": fraction(0.0625)}  # but not at severity 3
    section = sections.corruptions(results, test)
    assert "glass blur" in section.claim and "12.5 %" in text(section.claim)
    for name in CORRUPTIONS:
        assert f"<td>{name.replace('_', ' ')}</td>" in section.content
    assert re.findall('value="([a-z_]*)" selected', section.content) == ["glass_blur"]
    for words in (
        "underconfident.* overconfident",
        "severity 3, 4 and 5.* 10.0 % to 20.0 %",
        "a class .100",
    ):
        assert re.search(words, said(section)), words
    summary = results["summary"] | {"classes_that_break_first": []}
    summary["mean_accuracy"] = summary["mean_accuracy"] | {"published": fraction(0.375)}
    for error, words in ((0.09, "at no severity"), (0.11, "at every severity")):
        summary["by_severity"] = [
            row | {"with_temperature": {"ece": error}} for row in summary["by_severity"]
        ]
        without = {key: value for key, value in results.items() if key != "examples"} | {"summary": summary}
        seen = said(sections.corruptions(without, test))
        assert words in seen and "--full" in seen and "37.5 %" in seen and "CIFAR-100-C" not in said(section)
    del results["summary"]  # it is not finished
    assert sections.corruptions(results, test) == sections.corruptions(None, test)
    assert "stress.py" in said(sections.corruptions(None, test))


def test_attacks_are_believed_only_if_their_checks_pass(small_sets):
    results = stress_content(small_sets[1].labels)
    results["robust_accuracy"]["1"], results["tests"]["random/1"]["accuracy"] = (
        fraction(0.125),
        fraction(0.625),
    )
    section = sections.attacks(results, small_sets[1])
    assert "12.5 % (2.5–22.5)" in said(section) and "62.5 %" in text(section.claim)
    assert "1 of 2 checks of the attacks failed" in said(section) and "<so>" not in section.content
    results["checks"] = results["checks"][:1]
    del results["attack_examples"]
    content = sections.attacks(results, small_sets[1]).content
    assert "checks of the attacks passed" in content and not pictures(content) and pictures(section.content)


@pytest.mark.parametrize("name", ["grey", "patches_8", "low_pass", "high_pass"])
def test_what_each_cue_costs(name, small_sets):
    results = stress_content(small_sets[1].labels)
    results["summary"]["cues"][name]["drop"] = {"value": 0.375}
    seen = said(sections.cues(results))
    costs = re.findall(r"\d+\.\d", text(sections.cues(results).claim))
    assert costs == [
        "37.5" if cue == name else "25.0" for cue in ("grey", "patches_8", "low_pass", "high_pass")
    ]
    assert "Changes that should not matter" in seen


# ---- Maps ------------------------------------------------------------------------------------------------

NAMES = list(sections.CONTROLS)


@pytest.mark.parametrize("mode", ["deletion", "insertion"])
@pytest.mark.parametrize(
    "lost, word, beaten",
    [
        ({}, "all controls", []),
        ({"centre": 0.0}, "but not", ["random", "other_image", "activation"]),
        ({"centre": -0.1, "activation": 0.0}, "but not", ["random", "other_image"]),
        ({"random": 0.0}, "do not beat random", []),
        ({"random": -0.1}, "do not beat random", []),
    ],
)
def test_the_verdict_on_the_maps(mode, lost, word, beaten):
    """Grad-CAM is better by 0.1 than all controls but those that are lost in one of the two tests."""
    rho = {key: {"value": -0.001, "low": -0.2, "high": 0.2} for key in ("mean", "mean_abs", "other_image")}
    down_to = {"fc": rho, "layer4": rho | {"mean": {"value": None}}}
    found = {"layer": "layer4", "images": 100, "map_size": [4, 4]}
    found["randomization"] = {"images": 40, "seeds": 5, "down_to": down_to}
    for each, sign in {"deletion": -1, "insertion": 1}.items():
        gains = dict.fromkeys(NAMES, 0.1) | (lost if each == mode else {})
        found[each] = {
            n: {"gradcam_less_this": {"value": sign * gains[n], "standard_error": 0.02}} for n in NAMES
        }
    section = sections.maps(found, "")
    before, _, after = text(section.claim).partition("but not")
    assert word in text(section.claim) and [n for n in NAMES if sections.CONTROLS[n] in before] == beaten
    for name, value in lost.items():
        kind = "worse than" if value < 0 else "not told apart from"
        assert re.search(rf"in {mode} [^.]*{kind} [^;.]*{sections.CONTROLS[name]}", text(section.content))
        assert sections.CONTROLS[name] in after or not beaten
    assert section.content.count(">–<") == 1 and ">0.00 (-0.20 to 0.20)<" in section.content


# ---- Data, training, reproduction ------------------------------------------------------------------------


@pytest.mark.parametrize(
    "copies, words", [(0, "No test"), (1, "1 of the test images is"), (5, "5 of the test images are")]
)
def test_duplicates(copies, words):
    test = SimpleNamespace(labels=range(500), provenance="pictures of <mine>", class_names=["a", "b"])
    audit = {
        "test_images_in_train": copies,
        "with_another_label_there": 1,
        "misclassified_as_labelled_there": 1,
    }
    audit |= {"train_images_that_repeat_another": 14, "test_images_that_repeat_another": 2}
    numbers = {"classes": [{"num_train": 5, "num_test": 3}, {"num_train": 5, "num_test": 2000}]}
    numbers |= {"accuracy": fraction(0.7), "duplicates": audit | {"accuracy_without_them": 0.6975}}
    section = sections.data_set(test, numbers)
    seen = said(section)
    assert seen.startswith(words) and ("-0.25 points" in section.claim) == bool(copies)
    assert "5 in the training set and 3 to 2,000 in the test set" in seen and "<mine>" not in section.content
    assert ("another label there" in seen) == bool(copies) and "another one: 14" in seen
    del numbers["duplicates"]
    assert said(sections.data_set(test, numbers)).startswith("The test set has 500 images.")


@pytest.mark.parametrize("epochs, cutmix", [(4, {}), (3, {2.5: "no CutMix"})])
def test_training_shows_what_changed_and_when(epochs, cutmix, tmp_path, monkeypatch):
    keys = ["epoch", "train_loss", "train_accuracy", "val_loss", "val_accuracy", "image_size"]
    rows = [[1, 4.5, 0.1, 4.25, 0.125, 24], [2, 3.0, 0.3, 3.5, 0.5, 32], [3, 2.0, 0.4, 3.75, 0.25, 32]]
    history = [dict(zip(keys, row, strict=True)) | {"seconds": 60.0} for row in rows]
    config = {"num_train": 1200, "num_val": 300, "device": "cpu", "precision": "fp32"}
    config["environment"] = {"hardware": "a <computer>"}
    settings = {"cutmix": 0.5, "epochs": epochs}
    training = SimpleNamespace(settings=settings, config=config, epoch=3, history=history, val_accuracy=0.5)
    drawn = []
    monkeypatch.setattr(sections.plots, "training_curve", lambda *values: drawn.append(values[1:]))
    section = sections.training(training, tmp_path)
    seen = said(section)
    for expected in ("50.0 %", "3 min 0 s", f"Epoch 3 of {epochs}", "1,200 images", "3.750 in validation"):
        assert expected in seen
    assert "<computer>" not in section.content
    assert drawn == [(name, 2, {1.5: "32 px"} | cutmix) for name in ("loss", "accuracy")]


def test_the_commands_are_those_that_make_the_page():
    network = SimpleNamespace(
        training=None, device=torch.device("cpu"), path="w.pt", digest="1234", name="<net>"
    )
    network.parameters, network.macs, network.input, network.layer_note = 1000, 5e6, "any", "no maps"
    test = SimpleNamespace(labels=range(500), provenance="pictures", digest="5678")
    options = {
        "run": None,
        "model": "net.py:make",
        "mean": [0.5, 0.4, 0.3],
        "against": ["a b", "c"],
        "x": False,
    }

    def commands(stress, options):
        section = sections.reproduction(network, test, stress, options)
        assert (
            "1,000 parameters" in said(section) and "1234" in section.content and "<net>" not in section.claim
        )
        return re.findall(r"<pre>(.*?)</pre>", html.unescape(section.content), flags=re.DOTALL)

    flags = " \\\n    --model net.py:make \\\n    --mean 0.5 0.4 0.3"
    reporting = f"python report.py{flags} \\\n    --against 'a b' c"
    for count, full in ((200, ""), (500, " \\\n    --full")):
        assert commands({"corruption_images": count}, options) == [
            f"python stress.py{flags}{full}",
            reporting,
        ]
    assert commands(None, options) == [reporting] and commands(None, None) == []
    network.training = SimpleNamespace(settings={"epochs": 3, "seed": 0, "device": "auto"})
    network.training.config = {"environment": {}, "device": "cpu", "precision": "bf16"}  # what auto became
    flags = ["epochs 3", "seed 0", "device cpu", "precision bf16"]
    assert commands(None, None) == [" \\\n    --".join(["python train.py", *flags])]


# ---- The whole page --------------------------------------------------------------------------------------


def test_the_whole_page_has_short_claims_and_no_name_in_it_is_markup(reported):
    written = (reported / "report.html").read_text(encoding="utf-8")
    claims = re.findall(r'<p class="claim">(.*?)</p>', written, flags=re.DOTALL)
    assert len(claims) == written.count("<h2") == 13
    seen = text(written) + " ".join(said(page.Section(claim, "")) for claim in claims)
    assert not re.search(r"\b(nan|NaN|None|undefined)\b|\$\{|\b1 (are|were)\b|\ba [aeio]\w", seen)
    assert not [name for name in (HOSTILE_CLASS, HOSTILE_FILE, "<b>run") if name in written]
    assert HOSTILE_CLASS in seen and "<b>run" in seen
    game = json.loads((reported / "metrics.json").read_text(encoding="utf-8"))["explanations"][
        "pointing_game"
    ]
    assert (
        f"{100 * game['gradcam']['value']:.1f} % (" in seen
        and f"of {game['images']} images (pointing" in seen
    )
    assert said(sections.maps(None, "no maps: no layer")).startswith("There are no maps: no layer.")

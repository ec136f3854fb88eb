"""page/sections.py: the words and tables say what the numbers say, and the browser holds what it shows."""

import base64
import dataclasses
import html
import json
import re
from types import SimpleNamespace

import matplotlib
import numpy as np
import pytest
import torch
from torchvision.io import decode_image

import reasons
import report
from page import page, sections
from stress_tests.corruptions import CORRUPTIONS
from stress_tests.cues import CUES


def text(markup):
    """Return what a reader sees of HTML, its white space as single blanks."""
    return " ".join(re.sub(r"<[^>]*>", " ", markup).split()).replace("\N{NO-BREAK SPACE}", " ")


@pytest.fixture
def no_plots(monkeypatch):
    monkeypatch.setattr(sections.plots, "to_svg", lambda figure, name: page.Markup(""))
    monkeypatch.setattr(sections.plots, "save_png", lambda figure, path: None)


def test_history_gives_curves_time_and_the_best_epoch(tmp_path, monkeypatch, no_plots):
    keys = ["epoch", "train_loss", "train_accuracy", "val_loss", "val_accuracy", "image_size"]
    rows = [[1, 4.5, 0.1, 4.25, 0.125, 24], [2, 3.0, 0.3, 3.5, 0.5, 32], [3, 2.0, 0.4, 3.75, 0.25, 32]]
    history = [dict(zip(keys, row, strict=True)) | {"seconds": 60.0} for row in rows]
    config = {"num_train": 1200, "num_val": 300, "device": "cpu", "precision": "fp32"}
    config["environment"] = {"hardware": "a <computer>"}
    settings = {"cutmix": 0.5, "epochs": 4}
    training = SimpleNamespace(settings=settings, config=config, epoch=3, history=history, val_accuracy=0.5)
    drawn = []
    monkeypatch.setattr(sections.plots, "training_curve", lambda *values: drawn.append(values[1:]))
    seen = text(sections.training(training, tmp_path))
    for expected in (
        "3 epochs of 1,200 images took 3 min 0 s on a &lt;computer&gt; (cpu, fp32)",
        "Best validation accuracy: 50.0 % after epoch 2.",
        "Validation images always have the size of the last epochs",
        "saved after epoch 3 and knows nothing of the later ones",
        "Until epoch 3, CutMix mixed about 50 % of the training batches",
    ):
        assert expected in seen
    assert drawn == [(name, 2, {1.5: "32 px"}) for name in ("loss", "accuracy")]
    settings["epochs"] = 3
    sections.training(training, tmp_path)
    assert drawn[-1] == ("accuracy", 2, {1.5: "32 px", 2.5: "no CutMix"})


CALIBRATED = {
    "temperature": 1.0,
    "expected_calibration_error": 0.05,
    "negative_log_likelihood": 1.0,
    "mean_confidence": 0.59,
    "bins": 3 * [torch.ones(1)],
}


@pytest.mark.parametrize(
    "confidence, word", [(0.59, "under"), (0.6, "neither"), (0.8, "neither"), (0.81, "over")]
)
@pytest.mark.parametrize("after, verb", [(0.04, "lowers"), (0.06, "raises")])
def test_words_on_confidence_follow_the_numbers(confidence, word, after, verb, no_plots):
    accuracy, counts = {"value": 0.7, "low": 0.6, "high": 0.8}, {"answers": 3, "wrong": 1}
    tempered = CALIBRATED | {"expected_calibration_error": after, "temperature": 0.8087}
    equal = CALIBRATED | {"temperature": 0.9, "expected_calibration_error": 0.016}
    calibration = [CALIBRATED | {"mean_confidence": confidence}, tempered, equal]
    curve = torch.tensor([0.5, 1.0]), torch.tensor([0.1, 0.3])
    rest = calibration, curve, torch.ones(7), torch.zeros(3)
    seen = text(sections.confidence(accuracy, counts, 0.1, 0.2, *rest))
    assert f"the accuracy 70.0 %: as trained, the network is {word}" in seen
    assert (
        f"A temperature of 0.809, fitted by likelihood on the validation split, {verb} it to {after:.1%}"
        in (seen.replace(" %", "%"))
    )
    assert "0.900, leaves a calibration error of 1.6 %" in seen
    assert "would leave 10.0 % errors instead of 30.0 %" in seen


MAP = {"curve": [0.5] * 17, "area": {"value": 0.5, "standard_error": 0.01}}
WORSE = MAP | {"gradcam_less_this": {"value": -0.1, "standard_error": 0.02}}
NOT_APART = MAP | {"gradcam_less_this": {"value": 0.01, "standard_error": 0.02}}
RHO = {key: {"value": -0.001, "low": -0.2, "high": 0.2} for key in ("mean", "mean_abs", "other_image")}


def test_sentences_on_explanations_follow_from_the_differences(no_plots):
    maps = {"gradcam": WORSE, "random": WORSE, "centre": NOT_APART, "other_image": WORSE, "activation": WORSE}
    other_image = {"value": 0.29, "low": 0.29, "high": 0.29}
    random_weights = {
        "images": 40,
        "seeds": 5,
        "other_image": other_image,
        "down_to": {"fc": RHO, "layer4": RHO},
    }
    found = {"layer": "layer4", "images": 100, "map_size": [4, 4], "randomization": random_weights}
    seen = text(sections.explanations(found | {"deletion": maps, "insertion": maps}, "layer4, 4x4 cells"))
    controls = "random maps of the same size, the map of another image and the activation energy"
    better = f"In deletion Grad-CAM is better than {controls}; not told apart from a Gaussian in the centre."
    worse = f"In insertion Grad-CAM is not told apart from a Gaussian in the centre; worse than {controls}."
    assert better in seen and worse in seen and "layer4 0.00 (-0.20 to 0.20) 0.00 (-0.20 to 0.20)" in seen


def decoded(section, name):
    content = base64.b64decode(re.search(rf'id="{name}" src="data:image/jpeg;base64,(.*?)"', section)[1])
    return decode_image(torch.frombuffer(bytearray(content), dtype=torch.uint8)).float()


def test_the_browser_holds_the_most_confident_with_their_pictures(small_sets):
    generator, hostile = torch.Generator().manual_seed(0), '</script><b>"&'
    test = dataclasses.replace(small_sets[1], class_names=[hostile, *small_sets[1].class_names[1:]])
    logits = 3 * torch.randn(100, 100, generator=generator)
    logits[torch.arange(50), test.labels[:50]] += 9
    found = report.evaluate(logits, test, test, None)
    other = logits.flip(0).softmax(dim=1)
    found.others, found.browsed = {"another <run>": {"probabilities": other}}, found.misclassified[:30]
    found.maps = torch.rand(30, 2, 4, 4, generator=generator)
    found.maps[3, 1] = 0  # there is no evidence
    found.kinds, found.numbers["kinds"] = reasons.kinds_of_mistakes(test.labels, found.probabilities)
    found.covered = torch.arange(30), torch.linspace(0, 1, 30)
    pixels = torch.randint(256, (30, 2, 3, 1, 1), generator=generator, dtype=torch.uint8)
    nearest, similarity = pixels.expand(-1, -1, -1, 32, 32), torch.rand(100, 2, generator=generator)
    found.neighbours = {"images": nearest, "similarity": similarity}
    section = sections.browser(test, found)
    assert f"The 30 most confident of {len(found.misclassified)} wrong test images" in section
    content = re.search(r'id="mistakes-data">(.*?)</script>', section)[1]
    data = json.loads(content)
    assert "<" not in content and data["classes"][0] == hostile and data["runs"] == ["another <run>"]

    rows, y_true = found.probabilities.tolist(), test.labels.tolist()
    pairs = [(true, row.index(max(row))) for true, row in zip(y_true, rows, strict=True)]
    assert data["confusion"] == [[pairs.count((i, j)) for j in range(100)] for i in range(100)]
    wrong = sorted((i for i, (t, p) in enumerate(pairs) if t != p), key=lambda i: -max(rows[i]))[:30]
    assert [row["file"] for row in data["images"]] == [test.filenames[i] for i in wrong]
    for row, i in zip(data["images"], wrong, strict=True):
        likely = sorted(range(100), key=lambda c: -rows[i][c])[:5]
        likely += [] if y_true[i] in likely else [y_true[i]]
        assert (row["true"], row["classes"], row["copied"]) == (y_true[i], likely, y_true[i])
        assert row["probabilities"] == [round(rows[i][c], 6) for c in likely]
        second = sorted(range(100), key=lambda c: -rows[i][c])[1] == y_true[i]
        kind = "second" if second else "third to fifth" if y_true[i] in likely[:5] else "further down"
        assert data["kinds"][row["kind"]] == f"the true class is {kind}"
        assert row["similarity"] == [round(value, 2) for value in similarity[i].tolist()]
        said = other[i].tolist()
        assert row["others"] == [[said.index(max(said)), round(max(said), 6)]]

    levels = np.frombuffer(base64.b64decode(data["maps"]), dtype=np.uint8).reshape(30, 2, 16)
    for seen, exact in zip(levels.reshape(60, 16), found.maps.reshape(60, 16).numpy(), strict=True):
        np.testing.assert_allclose(seen / 255, exact / max(exact.max(), 1e-9), atol=0.002)
    colours = np.frombuffer(base64.b64decode(data["inferno"]), dtype=np.uint8).reshape(256, 3)
    assert np.abs(colours - 255 * matplotlib.colormaps["inferno"](np.arange(256))[:, :3]).max() <= 1
    sprite = decoded(section, "wrong-images")
    assert sprite.shape == (3, 32 * 5, 32 * 6)
    nearest_sprite = decoded(section, "nearest-images")  # 60 pictures, 8 in a row
    for place, colour in enumerate(pixels.flatten(0, 1).float()):
        y, x = 32 * (place // 8), 32 * (place % 8)
        assert (nearest_sprite[:, y : y + 32, x : x + 32] - colour).abs().mean() < 12
    for place, i in enumerate(wrong):
        y, x = 32 * (place // 6), 32 * (place % 6)
        assert (sprite[:, y : y + 32, x : x + 32] - test.images[i]).abs().mean() < 12


@pytest.mark.slow
def test_the_pictures_of_many_mistakes_stay_below_their_limit():
    """Noise, which no file format makes smaller."""
    images = torch.randint(0, 256, (2500, 3, 32, 32), dtype=torch.uint8)
    assert len(sections.sprite(images, sections.MAX_SPRITE)) < 4 / 3 * sections.MAX_SPRITE + 4


def test_the_commands_are_those_that_make_the_page():
    network = SimpleNamespace(training=None, device=torch.device("cpu"), path="w.pt", digest="1234")
    test = SimpleNamespace(labels=range(500), provenance="pictures", digest="5678")
    options = {"run": None, "model": "net.py:make", "mean": [0.5, 0.4, 0.3], "against": ["a b", "c"]}
    report_command = "python report.py --model net.py:make --mean 0.5 0.4 0.3 --against 'a b' c"
    for count, full in ((200, ""), (500, " --full")):
        page = sections.reproduction(network, test, {"corruption_images": count}, options)
        stress_command = f"python stress.py --model net.py:make --mean 0.5 0.4 0.3{full}"
        assert f"<pre>{stress_command}\n{report_command}</pre>" in html.unescape(page)
    assert "<pre>" not in sections.reproduction(network, test, None, None) and "1234" in page


def stress_content():
    """What stress.read_results returns of a finished test."""
    fraction, clean = {"value": 0.25, "low": 0.1, "high": 0.4}, {"value": 0.7, "low": 0.6, "high": 0.8}
    tests = {"clean/0": {"accuracy": clean, "mean_confidence": 0.55}, "unattacked/0": {"accuracy": clean}}
    for name in CORRUPTIONS:
        tests |= {f"{name}/{severity}": {"accuracy": fraction} for severity in range(1, 6)}
    epsilons = [0.25, 0.5, 1, 2, 4, 8, 64]
    tests |= {f"{name}/{e:g}": {"accuracy": fraction} for name in ("fgsm", "pgd", "random") for e in epsilons}
    row = {"accuracy": 0.5, "mean_confidence": 0.6, "as_trained": {"ece": 0.1, "mean_ece": 0.12, "nll": 2.0}}
    tempered = [{"ece": 0.04 * n, "mean_ece": 0.05 * n, "nll": 2.5} for n in range(6)]
    summary = {
        "mean_accuracy": {"fifteen": fraction, "all": fraction},
        "mean_confidence": {"fifteen": 0.5, "all": 0.5},
        "drop": {"fifteen": fraction},
        "by_severity": [row | {"with_temperature": part} for part in tempered],
        "cues": {name: {"accuracy": clean, "drop": fraction} for name in CUES},
        "classes_that_break_first": [{"class": "a_class", "clean": 1.0, "corrupted": 0.5, "drop": 0.5}] * 10,
    }
    shares = {"right": fraction, "wrong": None, "equally_sure": None, "difference": None}
    return {
        "consistency": {"mirror": shares, "shift": shares},
        "corruption_images": 200,
        "attack_images": 100,
        "epsilons": epsilons,
        "tests": tests,
        "summary": summary,
        "robust_accuracy": {f"{e:g}": fraction for e in epsilons},
        "checks": [{"name": "a check", "passed": passed, "detail": "<so>"} for passed in (True, False)],
    }


def test_stress_section_shows_every_corruption_and_every_check(no_plots):
    results, noise = stress_content(), np.zeros((6, 32, 32, 3), dtype=np.uint8)
    pictures = dict.fromkeys(CORRUPTIONS, noise)
    section = sections.stress(results, pictures)
    seen = text(section)
    assert section.count("<tr>") == 1 + len(CORRUPTIONS) + 1 + len(CUES) + 1 + 2
    assert all(f"<td>{name.replace('_', ' ')}</td>" in section for name in (*CORRUPTIONS, *CUES))
    assert section.count("<img") == len(CORRUPTIONS) and 'width="192" height="32"' in section
    assert (
        "FAILED a check &lt;so&gt;" in seen and "lose most over all corruptions are a class (100 % to" in seen
    )
    assert "larger with it at severity 3, 4, 5: as trained and with it 10.0 % and 4.0 % at severity 1" in seen
    assert "On the clean images the network is underconfident: its mean confidence is 55.0 %" in seen
    assert "PGD 25.00 % (95 % interval 10.00 to 40.00 %)" in seen and "at 0.5/255, 1/255, 2/255 only" in seen
    results["summary"]["classes_that_break_first"] = []
    assert "too few images of each class" in text(sections.stress(results, pictures))
    del results["summary"]  # it is not finished
    assert sections.stress(results, pictures) == sections.stress(None, pictures) == page.fill("no_stress")


def rate(value):
    return {fill: {"value": value, "low": value / 2, "high": value} for fill in ("mean_colour", "blur")}


@pytest.mark.parametrize(
    "contrastive, random, p, words",
    [
        (0.3, 0.1, 0.01, "more often than"),
        (0.1, 0.3, 0.01, "less often than"),
        (0.3, 0.1, 0.06, "no more often than"),
    ],
)
def test_the_sentence_on_repairs_follows_from_the_test(contrastive, random, p, words):
    found = {"images": 400, "contrastive": rate(contrastive), "random": rate(random)}
    found |= {name: rate(0.2) for name in ("predicted", "true", "activation")}
    found["mcnemar"] = {"mean_colour": {"only_contrastive": 73, "only_random": 17, "p": p}}
    seen = text(sections.repairs(found))
    assert f"makes the answer right {words} covering random places" in seen
    assert f"{contrastive:.1%} and {random:.1%} of the mistakes".replace("%", " %") in seen


def test_kinds_make_a_bar_of_the_whole_width():
    rows = [(5, 0.25), (0, 0.0), (15, 0.75)]
    kinds = []
    for number, (count, share) in enumerate(rows):
        kinds.append({"name": f"kind <{number}>", "count": count, "share": share, "accuracy_if_right": 0.9})
    section = sections.kinds_table(kinds, others=0)
    assert re.findall(r"width: ([\d.]+)%", section) == ["25.00", "75.00"]
    assert "kind <0>" not in section and "kind &lt;0&gt;" in section


@pytest.mark.parametrize("adjusted, words", [(0.01, "1 differ"), (0.2, "none differs")])
@pytest.mark.parametrize("p, depends", [(0.001, "does explain"), (0.3, "does not clearly explain")])
def test_the_sentences_on_words_follow_from_the_tests(adjusted, words, p, depends):
    row = {"class": "can", "word": "soda_can", "images": 38, "error_rate": 0.03, "other_error_rate": 0.3}
    row |= {"p_adjusted": adjusted, "differs": adjusted <= 0.05}
    found = {"explained": 0.08, "p": p, "shuffled_mean": 0.05, "shuffled_maximum": 0.06, "permutations": 1000}
    seen = text(sections.search_words(found | {"words": [row]}))
    assert f"The word {depends} errors" in seen and f"Of 1 words {words} from" in seen
    assert "soda can" in seen

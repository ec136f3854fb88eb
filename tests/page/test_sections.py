"""sections.py: the words and tables say what the numbers say."""

import base64
import dataclasses
import json
import re

import matplotlib
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torchvision.io import decode_image

import report
from gradcam import overlay, to_heatmap
from page import page, sections
from running.files import UserError
from stress_tests.corruptions import CORRUPTIONS


def text(markup):
    """Return what a reader sees of HTML, its white space as single blanks."""
    return " ".join(re.sub(r"<[^>]*>", " ", markup).split())


@pytest.fixture
def no_plots(monkeypatch):
    monkeypatch.setattr(sections, "plot", lambda folder, **figures: {f"plot_{n}": "" for n in figures})


@pytest.fixture(scope="module")
def logits(small_sets):
    """Of a network that is right about half of the test images."""
    logits = 3 * torch.randn(100, 100, generator=torch.Generator().manual_seed(0))
    logits[torch.arange(50), small_sets[1].labels[:50]] += 9
    return logits


@pytest.fixture(scope="module")
def result(small_sets, logits):
    return described(report.evaluate(logits, small_sets[1], small_sets[0], temperature=0.8087))


def described(result):
    """Return the numbers with those of the other measurements and the words for them."""
    result = result | {"explanations": EXPLAINED, "lookalikes": LOOKALIKES}
    return result | sections.in_words(result)


# ---- Training, failures, confidence, data ----------------------------------------------------------------


def test_history_gives_curves_speed_and_the_best_epoch(tmp_path, monkeypatch, no_plots):
    keys = ["epoch", "lr", "train_loss", "train_accuracy", "val_loss", "val_accuracy", "image_size"]
    rows = [
        [1, 0.1, 4.5, 0.1, 4.25, 0.125, 24],
        [2, 0.2, 3.0, 0.3, 3.5, 0.5, 32],
        [3, 0.1, 2.0, 0.4, 3.75, 0.25, 32],
    ]
    history = [dict(zip(keys, row, strict=True)) for row in rows]
    history = [row | {"seconds": 60.0, "images_per_second": 100.0 * row["epoch"]} for row in history]
    config = {
        "num_train": 1200,
        "device": "cpu",
        "precision": "fp32",
        "settings": {"cutmix": 0.5, "epochs": 4},
    }
    checkpoint = {"config": config | {"environment": {"hardware": "a <computer>"}}, "epoch": 3}
    drawn = []
    monkeypatch.setattr(sections.plots, "training_curve", lambda *values: drawn.append(values[1:]))
    seen = text(sections.training(checkpoint, history, 2, tmp_path))
    assert "3 epochs of 1,200 images took 3 min 0 s on a &lt;computer&gt; (cpu, fp32)" in seen
    assert "100 images/s at 24x24 pixels, 250 images/s at 32x32 pixels" in seen
    assert "Best validation accuracy: 50.0 % after epoch 2." in seen
    assert "Validation images always have the size of the last epochs" in seen
    assert "saved after epoch 3 and knows nothing of the later ones" in seen
    assert "Until epoch 2, CutMix mixed about 50 % of the training batches" in seen
    assert drawn == [(name, 2, {1.5: "32 px", 2.5: "no CutMix"}) for name in ("loss", "accuracy")]


def test_the_matrix_shows_fractions_of_rows_in_the_order_of_superclasses(
    small_sets, tmp_path, monkeypatch, no_plots
):
    labels, y_pred = torch.randint(100, (2, 100), generator=torch.Generator().manual_seed(0))
    test = dataclasses.replace(small_sets[1], labels=labels, superclass_of=torch.arange(100) % 10)
    drawn = []
    monkeypatch.setattr(sections.plots, "confusion_matrix", lambda *values: drawn.append(values))
    monkeypatch.setattr(sections.plots, "save_png", lambda figure, path: None)
    result = described(report.evaluate(10 * torch.eye(100)[y_pred], test, test))
    seen = text(sections.failures(result, test, y_pred, page.Markup(""), tmp_path))
    order = sorted(range(100), key=lambda c: (c % 10, c))
    pairs, true = list(zip(labels.tolist(), y_pred.tolist(), strict=True)), labels.tolist()
    expected = [[pairs.count((i, j)) / max(1, true.count(i)) for j in order] for i in order]
    assert [list(row) for row in drawn[0][0]] == [pytest.approx(row) for row in expected]
    assert drawn[0][1] == [test.class_names[c].replace("_", " ") for c in order]
    never = 9900 - len({(t, p) for t, p in pairs if t != p})
    assert f"Of the 9,900 pairs of a true and a wrong class, {never:,} never occur" in seen
    right = {c: sum(pair == (c, c) for pair in pairs) / true.count(c) for c in set(true)}
    worst = min(right, key=right.get)
    assert f"Among the hardest classes are {test.class_names[worst]} ({100 * right[worst]:.0f} %)" in seen


def test_sentences_on_confidence_count_the_answers(result, logits, small_sets, tmp_path, no_plots):
    labels, rows = small_sets[1].labels, logits.softmax(dim=1).tolist()
    seen = text(sections.confidence(result, logits, labels, tmp_path))
    answers = [
        (max(row), row.index(max(row)) != true) for row, true in zip(rows, labels.tolist(), strict=True)
    ]
    answers.sort(reverse=True)
    sure = [wrong for confidence, wrong in answers if confidence > 0.9]
    assert f"Of the {len(sure)} answers given with more than 90 % confidence, {sum(sure)} are wrong" in seen
    half, full = (100 * sum(wrong for _, wrong in part) / len(part) for part in (answers[:50], answers))
    assert f"would leave {half:.1f} % errors instead of {full:.1f} %." in seen
    error, after = (100 * result[f"expected_calibration_error{key}"] for key in ("", "_after_temperature"))
    assert f"error is {error:.1f} % (15 bins). A temperature of 0.809" in seen and f"{after:.1f} %" in seen


@pytest.mark.parametrize(
    "confidence, word",
    [(0.59, "under"), (0.6, "neither"), (0.7, "neither"), (0.8, "neither"), (0.81, "over")],
)
def test_the_interval_of_the_accuracy_decides_about_the_confidence(confidence, word):
    assert sections.side(confidence, {"value": 0.7, "low": 0.6, "high": 0.8}).startswith(word)


LOOKALIKES = {
    "threshold": 0.95,
    "images": 9,
    "with_another_label": 3,
    "misclassified": 5,
    "misclassified_as_its_label": 2,
    "by_similarity": [{"from": 0.95, "to": 1.0, "images": 9, "value": 4 / 9, "low": 0.2, "high": 0.7}],
    "same_label_trained_on": {"images": 4, "value": 0.75, "low": 0.3, "high": 0.95},
    "same_label_held_out": {"images": 2, "value": 0.5, "low": 0.1, "high": 0.9},
}


def test_data_section_counts_images_of_a_class_and_look_alikes(result, small_sets):
    section = sections.data_set(result, small_sets[1])
    assert "4 have one that the network was trained on, of which 75.00 % (95 % interval 30.00 to" in text(
        section
    )
    assert "0.95 to 1.00 9 44.44 % 20.00 to 70.00 %" in text(section)
    accuracy = f"{100 * result['accuracy']['value']:.2f} %"
    seen = text(section)
    assert "Each of the 100 classes has 3 images in the training set and 1 in the test set" in seen
    assert f"Without the copies the accuracy is {accuracy} instead of {accuracy}." in seen
    assert section.count("<img") == 100


# ---- The misclassified images ----------------------------------------------------------------------------


def nearest_images(test):
    """Made up: the image after the next, with its label; the second one is a copy."""
    nearest = {"images": test.images.roll(-2, 0), "labels": test.labels.roll(-2)}
    nearest["similarity"] = torch.linspace(-1, 1, len(test.labels))
    return nearest | {"equal": torch.arange(len(test.labels)) == 1}


def decoded(section, name):
    content = base64.b64decode(re.search(rf'id="{name}" src="data:image/jpeg;base64,(.*?)"', section)[1])
    return decode_image(torch.frombuffer(bytearray(content), dtype=torch.uint8)).float()


def test_the_browser_holds_the_most_confident_with_their_pictures(logits, small_sets):
    probabilities, other = logits.softmax(dim=1), logits.flip(0).softmax(dim=1)
    hostile = '</script><b>"&'
    test = dataclasses.replace(small_sets[1], class_names=[hostile, *small_sets[1].class_names[1:]])
    order = report.most_confident_misclassified(probabilities, test.labels)
    maps = torch.rand(30, 2, 4, 4, generator=torch.Generator().manual_seed(0))
    maps[3, 1] = 0  # there is no evidence
    nearest = nearest_images(test)
    section = sections.browser(order, probabilities, maps, nearest, {"another <run>": other}, test)
    assert f"The 30 most confident of {len(order)} wrong test images" in section
    content = re.search(r'id="mistakes-data">(.*?)</script>', section)[1]
    data = json.loads(content)
    assert "<" not in content and data["classes"][0] == hostile and data["runs"] == ["another <run>"]

    rows, y_true = probabilities.tolist(), test.labels.tolist()
    pairs = [(true, row.index(max(row))) for true, row in zip(y_true, rows, strict=True)]
    assert data["confusion"] == [[pairs.count((i, j)) for j in range(100)] for i in range(100)]
    wrong = sorted((i for i, (t, p) in enumerate(pairs) if t != p), key=lambda i: -max(rows[i]))[:30]
    assert [row["file"] for row in data["images"]] == [test.filenames[i] for i in wrong]
    for row, i in zip(data["images"], wrong, strict=True):
        likely = sorted(range(100), key=lambda c: -rows[i][c])[:5]
        likely += [] if y_true[i] in likely else [y_true[i]]
        assert (row["true"], row["classes"]) == (y_true[i], likely)
        assert row["probabilities"] == [round(rows[i][c], 6) for c in likely]
        said = other[i].tolist()
        assert row["others"] == [[said.index(max(said)), round(max(said), 6)]]
        assert row["nearest"] == [y_true[(i + 2) % 100], round(-1 + 2 * i / 99, 2)]
        assert row["equal"] == (i == 1)

    levels = np.frombuffer(base64.b64decode(data["maps"]), dtype=np.uint8).reshape(30, 2, 16)
    for seen, exact in zip(levels.reshape(60, 16), maps.reshape(60, 16).tolist(), strict=True):
        assert all(
            abs(level / 255 - value / max(max(exact), 1e-9)) < 0.002
            for level, value in zip(seen, exact, strict=True)
        )
    colours = np.frombuffer(base64.b64decode(data["inferno"]), dtype=np.uint8).reshape(256, 3)
    assert np.abs(colours - 255 * matplotlib.colormaps["inferno"](np.arange(256))[:, :3]).max() <= 1

    for name, images in {"wrong-images": test.images, "nearest-images": nearest["images"]}.items():
        sprite = decoded(section, name)
        assert sprite.shape == (3, 32 * 5, 32 * 6)
        for place, i in enumerate(wrong):
            y, x = 32 * (place // 6), 32 * (place % 6)
            assert (sprite[:, y : y + 32, x : x + 32] - images[i]).abs().mean() < 12
    # Without a mistake the confusion matrix still needs its counts.
    nothing = sections.browser(order[:0], probabilities, maps[:0], nearest, {}, test)
    content = json.loads(re.search(r'id="mistakes-data">(.*?)</script>', nothing)[1])
    assert content["images"] == [] and content["confusion"] == data["confusion"]


@pytest.mark.slow
def test_a_page_stays_below_6_megabytes(small_sets, tmp_path, monkeypatch):
    """An untrained network, and pictures of noise, which no file format makes smaller."""
    generator = torch.Generator().manual_seed(0)
    train, few = small_sets
    images = torch.randint(0, 256, (10_000, 3, 32, 32), generator=generator, dtype=torch.uint8)
    test = dataclasses.replace(
        few,
        images=images,
        labels=torch.arange(100).repeat(100),
        filenames=[f"a_file_with_a_long_name_{i:06d}.png" for i in range(10_000)],
        masks=None,
    )
    logits = torch.randn(10_000, 100, generator=generator)
    probabilities = logits.softmax(dim=1)
    result = described(report.evaluate(logits, test, train, temperature=2.0))
    wrong = report.most_confident_misclassified(probabilities, test.labels)
    failures = report.list_failures(wrong, probabilities, test)
    maps = torch.rand(2500, 2, 4, 4, generator=generator)
    heatmaps = to_heatmap(maps[:20, 0], 256)
    evidence = overlay(F.interpolate(images[wrong[:20]], scale_factor=8) / 255, heatmaps)
    evidence = {"predicted": evidence, "true": evidence}
    stress, _ = sections.stress_results(stress_content(), noise_pictures(), tmp_path)
    nearest = nearest_images(test)
    others = {f"runs/cifar100-seed{seed}": probabilities for seed in (1, 2)}
    browser = sections.browser(wrong, probabilities, maps, nearest, others, test)
    parts = [
        sections.headline(result, page.Markup(""), test, tmp_path),
        sections.failures(result, test, logits.argmax(dim=1), page.Markup(""), tmp_path),
        sections.mistakes(failures, evidence, nearest, browser, result, test),
        sections.confidence(result, logits, test.labels, tmp_path),
        sections.explanations(result, tmp_path),
        sections.data_set(result, test),
        stress,
    ]
    rest = 350_000  # the other sections, style and script have 220,000 for weights/, and --against 90,000
    assert "The 2,500 most confident of 9,8" in parts[2] or "The 2,500 most confident of 9,9" in parts[2]
    assert sum(len(part.encode()) for part in parts) + rest < 6e6, [len(part) for part in parts]


MAP = {
    "curve": [0.5] * 17,
    "area": {"value": 0.5, "standard_error": 0.01},
    "gradcam_less_this": {"value": -0.1, "standard_error": 0.02},
}
NOT_APART = MAP | {"gradcam_less_this": {"value": 0.01, "standard_error": 0.02}}
RHO = {key: {"value": -0.001, "low": -0.2, "high": 0.2} for key in ("mean", "mean_abs")}
EXPLAINED = {
    "layer": "layer4",
    "images": 100,
    "map_size": [4, 4],
    "deletion": {"gradcam": MAP, "random": MAP, "centre": NOT_APART, "other_image": MAP},
    "insertion": {"gradcam": MAP, "random": MAP, "centre": NOT_APART, "other_image": MAP},
    "randomization": {"images": 40, "seeds": 5, "down_to": {"fc": RHO, "layer4": RHO}},
}


def test_sentences_on_explanations_follow_from_the_differences(result, tmp_path, no_plots):
    seen = text(sections.explanations(result, tmp_path))
    controls = "random maps of the same size and the map of another image"
    assert (
        f"In deletion Grad-CAM is better than {controls}; not told apart from a Gaussian in the centre."
        in seen
    )
    assert (
        f"In insertion Grad-CAM is not told apart from a Gaussian in the centre; worse than {controls}."
        in seen
    )
    assert "a Gaussian in the centre +0.010 0.020" in seen
    assert "fc down to layer4 0.00 (-0.20 to 0.20) 0.00 (-0.20 to 0.20)" in seen


def test_what_was_found_follows_from_the_numbers(result, logits, small_sets):
    probabilities, y_true = logits.softmax(dim=1), small_sets[1].labels
    found = page.fill("findings", **result, stress=page.Markup("<li>of stress.py</li>"))
    seen, sure = text(found), [(max(row), row.index(max(row))) for row in probabilities.tolist()]
    wrong = [p > 0.9 and c != true for (p, c), true in zip(sure, y_true.tolist(), strict=True)]
    assert f"{sum(p > 0.9 for p, _ in sure)} answers have more than 90 % confidence" in seen
    assert f"; {sum(wrong)} of them are wrong" in seen and "of stress.py" in seen
    assert "not told apart from a Gaussian in the centre. In insertion they are not told apart" in seen


# ---- Stress ----------------------------------------------------------------------------------------------


def stress_content():
    """A finished stress.json."""
    fraction, clean = {"value": 0.25, "low": 0.1, "high": 0.4}, {"value": 0.7, "low": 0.6, "high": 0.8}
    record = {"accuracy": fraction, "mean_confidence": 0.5}
    tests = {"clean/0": {"accuracy": clean, "mean_confidence": 0.55}, "unattacked/0": {"accuracy": clean}}
    tests |= {f"{name}/{severity}": record for name in CORRUPTIONS for severity in range(1, 6)}
    epsilons = [0.25, 0.5, 1, 2, 4, 8, 64]
    tests |= {f"{name}/{e:g}": {"accuracy": fraction} for name in ("fgsm", "pgd", "random") for e in epsilons}
    broken = [{"class": "a_class", "clean": 1.0, "corrupted": 0.5, "drop": 0.5}] * 10
    groups = {"fifteen": fraction, "all": fraction}
    summary = {"mean_accuracy": groups, "mean_confidence": {"fifteen": 0.5, "all": 0.5}}
    row = {"accuracy": 0.5, "mean_confidence": 0.6, "as_trained": {"ece": 0.1, "mean_ece": 0.12, "nll": 2.0}}
    summary["by_severity"] = [
        row | {"with_temperature": {"ece": 0.04 * n, "mean_ece": 0.05 * n, "nll": 2.5}} for n in range(6)
    ]
    summary["drop"] = {"fifteen": fraction}
    sides = {"right": fraction, "wrong": clean}
    return {
        "consistency": {"mirror": sides, "shift": sides},
        "fourier": {"images": 50, "rows": [-2, 0, 2], "columns": [0, 2], "error": [[0.5, 0.6]] * 3},
        "checkpoint_sha256": "1234",
        "corruption_images": 200,
        "attack_images": 100,
        "epsilons": epsilons,
        "tests": tests,
        "summary": summary | {"classes_that_break_first": broken},
        "robust_accuracy": {f"{e:g}": fraction for e in epsilons},
        "checks": [{"name": "a check", "passed": passed, "detail": "<so>"} for passed in (True, False)],
    }


def noise_pictures():
    noise = np.random.default_rng(0).integers(0, 256, (6, 32, 32, 3), dtype=np.uint8)
    return dict.fromkeys(CORRUPTIONS, noise)


def test_stress_section_shows_every_corruption_and_every_check(tmp_path, no_plots, monkeypatch):
    monkeypatch.setattr(sections.plots, "stress_figures", lambda results, pictures: dict.fromkeys(
        ["stress_severity", "stress_epsilon", "stress_examples"]))  # fmt: skip
    section, _ = sections.stress_results(stress_content(), noise_pictures(), tmp_path)
    seen = text(section)
    assert section.count("<tr>") == 7 + 1 + len(CORRUPTIONS) + 1 + 10 + 1 + 2
    assert all(f"<td>{name.replace('_', ' ')}</td>" in section for name in CORRUPTIONS)
    assert "FAILED a check &lt;so&gt;" in seen and "lose most, over all corruptions" in seen
    assert "larger with it at severity 3, 4, 5: as trained and with it 10.0 % and 4.0 % at severity 1" in seen
    few = stress_content()
    few["summary"]["classes_that_break_first"] = []
    few, _ = sections.stress_results(few, noise_pictures(), tmp_path)
    assert "200 images are too few to rank the classes" in few
    assert "On these clean images the network is underconfident: its mean confidence is 55.0 %" in seen
    assert f"On average over all {len(CORRUPTIONS)} corruptions, the fifteen among them, it is over" in seen
    assert "PGD 25.00 % (95 % interval 10.00 to 40.00 %)" in seen and "at 0.5/255, 1/255, 2/255 only" in seen


def test_only_finished_results_of_this_checkpoint_are_shown(small_sets, tmp_path, no_plots, monkeypatch):
    monkeypatch.setattr(sections.plots, "stress_figures", lambda results, pictures: dict.fromkeys(
        ["stress_severity", "stress_epsilon", "stress_examples"]))  # fmt: skip
    file, images, results = tmp_path / "stress.json", small_sets[1].images, stress_content()

    def shown(sha256="1234"):
        return sections.stress(file, sha256, images, tmp_path)

    missing = shown()
    assert "Not all stress tests have been run for this checkpoint" in missing[0] and missing[1] == ""
    file.write_text(json.dumps(results))
    section, found = shown()
    assert "Among the classes that lose most" in section and shown("5678") == missing
    assert "lower the accuracy on 200 images from 70.0 % to 25.00 % (95 % interval 10.00 to 40.00 %)" in text(
        found
    )
    assert "25.0 % stay right if every value moves by 1/255 at random, and 25.00 %" in text(found)
    del results["summary"]
    file.write_text(json.dumps(results))
    assert shown() == missing
    file.write_text('{"checkpoint_sha256": "1234", "summary": ')
    with pytest.raises(UserError, match=r"stress\.json cannot be used as results of stress\.py: "):
        shown()

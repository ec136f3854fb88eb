"""page/sections.py: the words and tables say what the numbers say."""

import base64
import dataclasses
import hashlib
import json
import re
import shutil

import numpy as np
import pytest
import torch
from torchvision.io import decode_image

import data
import report
import stress
from page import sections
from stress_tests.corruptions import CORRUPTIONS, examples


def text(markup):
    """Return what a reader sees of HTML, its white space as single blanks."""
    return " ".join(re.sub(r"<[^>]*>", " ", markup).split())


CODE = {f"code_{place}": "" for place in report.CODE}


@pytest.fixture(scope="module")
def result(small_sets):
    """metrics.json without explanations, of a network that is right about half of the test images."""
    train, test = small_sets
    logits = 3 * torch.randn(100, 100, generator=torch.Generator().manual_seed(0))
    logits[torch.arange(50), test.labels[:50]] += 9
    return report.evaluate(logits, test, train, {}) | {"logits": logits}


# ---- Headline, training, mistakes, data ------------------------------------------------------------------


@pytest.mark.parametrize("name", ["cifar100", "shapes"])
def test_every_headline_metric_has_a_card_and_a_bar(result, small_sets, tmp_path, monkeypatch, name):
    """Also one that the notebook did not have, and all of them where there is no notebook."""
    test = small_sets[1]
    monkeypatch.setattr(test, "name", name)
    values = sections.headline(result, test, tmp_path, CODE)
    drawn = re.search(r'aria-label="Bar plot: (.*?)"', values["plot_headline_metrics"])[1].split(", ")
    shown = [f"{100 * result[key]['value']:.2f} %" for key in sections.HEADLINE]
    labels = ["accuracy", "macro precision", "macro recall", "macro F1", "top-5 accuracy"]
    assert drawn == [f"{label} {value}" for label, value in zip(labels, shown, strict=True)]
    assert re.findall(r"<b>(.*?)</b>", values["cards"]) == shown
    assert values["cards"].count("notebook") == (4 if name == "cifar100" else 0)
    assert ("first version" in values["notebook"]) == (name == "cifar100")


def test_history_gives_curves_speed_and_the_best_epoch(tmp_path, monkeypatch):
    keys = ["epoch", "train_loss", "train_accuracy", "val_loss", "val_accuracy", "image_size"]
    rows = [[1, 4.5, 0.1, 4.25, 0.125, 24], [2, 3.0, 0.3, 3.5, 0.5, 32], [3, 2.0, 0.4, 3.75, 0.25, 32]]
    history = [
        dict(zip(keys, row, strict=True)) | {"seconds": 60.0, "images_per_second": 100.0 * row[0]}
        for row in rows
    ]
    config = {
        "num_train": 1200,
        "device": "cpu",
        "precision": "fp32",
        "environment": {"hardware": "a <computer>"},
        "settings": {"cutmix": 0.5},
    }
    marked, curve = [], sections.plots.training_curve
    monkeypatch.setattr(sections.plots, "training_curve", lambda *a: marked.append(a[-1]) or curve(*a))
    section = sections.training(history, [0.1, 0.2, 0.1], 2, config, tmp_path, CODE)
    seen = text(section)
    assert "3 epochs of 1,200 images took 3:00 on a &lt;computer&gt; (cpu, fp32)" in seen
    assert "100 images/s at 24x24 pixels, 250 images/s at 32x32 pixels" in seen
    assert "Best validation accuracy: 50.00 % after epoch 2." in seen
    assert "Validation images always have the size of the last epochs" in seen
    assert marked == [{1.5: "32 px", 2.5: "no CutMix"}] * 2
    assert "Until epoch 2, CutMix mixed about 50.0 % of the training batches" in seen
    assert "Training loss goes from 4.50 to 2.00, validation loss from 4.25 to 3.75" in section
    assert {path.name for path in tmp_path.iterdir()} == {"loss.png", "accuracy.png", "learning_rate.png"}


@pytest.mark.parametrize("sizes", [[5] * 20, [10] * 10, [1, 2, 7], [1, 1]])
def test_chance_within_superclass_against_enumeration(sizes):
    superclass_of = [s for s, size in enumerate(sizes) for _ in range(size)]
    shares = []
    for true, coarse in enumerate(superclass_of):
        others = [c for c in range(len(superclass_of)) if c != true]
        shares.append(sum(superclass_of[c] == coarse for c in others) / len(others))
    assert sections.chance_within(torch.tensor(superclass_of)) == pytest.approx(sum(shares) / len(shares))


def test_every_test_image_is_also_in_training(small_sets):
    test = small_sets[1]
    result = report.evaluate(torch.eye(100)[test.labels], test, test, {})
    assert sections.data_set(result, test)["without_them"] == "No test image is left without those."


def test_data_section_counts_images_of_a_class(result, small_sets):
    values = sections.data_set(result, small_sets[1])
    assert (values["num_train_per_class"], values["num_test_per_class"]) == ("3", "1")
    assert values["samples"].count("<img") == 100
    accuracy = f"{100 * result['accuracy']['value']:.2f} %"
    assert values["without_them"] == f"Without those the accuracy is {accuracy} instead of {accuracy}."


@pytest.mark.slow
@pytest.mark.parametrize(("move", "side"), [(0.1, "underconfident"), (-0.1, "overconfident"), (0, "neither")])
def test_confidence_section_names_the_side(result, small_sets, tmp_path, move, side):
    confidence = result["logits"].softmax(dim=1).amax(dim=1).mean().item()
    more = {"temperature": 0.8087, "expected_calibration_error_after_temperature": 0.02229}
    more["accuracy"] = {
        "value": confidence + move,
        "low": confidence + move - 0.05,
        "high": confidence + move + 0.05,
    }
    values = sections.confidence(result | more, result["logits"], small_sets[1].labels, tmp_path)
    assert values["calibration_error"] == f"{100 * result['expected_calibration_error']:.2f} %"
    seen = text(values["temperature_scaling"])
    assert seen == "A temperature of 0.809, fitted on the validation split, brings it to 2.23 %."
    assert values["calibration_side"].startswith(side)


def test_the_matrix_shows_shares_of_rows_in_the_order_of_superclasses(small_sets, tmp_path, monkeypatch):
    labels, y_pred = torch.randint(100, (2, 100), generator=torch.Generator().manual_seed(0))
    test = dataclasses.replace(small_sets[1], labels=labels, superclass_of=torch.arange(100) % 10)
    drawn = []
    monkeypatch.setattr(sections.page, "plot", lambda folder, figures: {})
    monkeypatch.setattr(sections.plots, "confusion_matrix", lambda *values: drawn.append(values))
    sections.mistakes(report.evaluate(10 * torch.eye(100)[y_pred], test, test, {}), test, y_pred, tmp_path)
    order = sorted(range(100), key=lambda c: (c % 10, c))
    pairs, true = list(zip(labels.tolist(), y_pred.tolist(), strict=True)), labels.tolist()
    expected = [[pairs.count((i, j)) / max(1, true.count(i)) for j in order] for i in order]
    assert [list(row) for row in drawn[0][0]] == [pytest.approx(row) for row in expected]
    assert drawn[0][1] == [test.class_names[c].replace("_", " ") for c in order]


def test_sentences_on_confidence_count_the_answers(result, small_sets, tmp_path, monkeypatch):
    monkeypatch.setattr(sections.page, "plot", lambda folder, figures: {})
    labels, rows = small_sets[1].labels, result["logits"].softmax(dim=1).tolist()
    values = sections.confidence(result, result["logits"], labels, tmp_path)
    answers = [
        (max(row), row.index(max(row)) != true) for row, true in zip(rows, labels.tolist(), strict=True)
    ]
    answers.sort(reverse=True)
    sure = [wrong for confidence, wrong in answers if confidence > 0.9]
    assert (values["num_sure"], values["num_wrong_and_sure"]) == (len(sure), sum(sure)) and any(sure)
    errors = [
        f"{100 * sum(wrong for _, wrong in part) / len(part):.1f} %" for part in (answers[:50], answers)
    ]
    assert [values["risk_at_half"], values["risk_at_full"]] == errors


# ---- All mistakes ----------------------------------------------------------------------------------------


def test_every_mistake_is_in_the_browser_with_its_picture(result, small_sets, monkeypatch):
    test, probabilities = small_sets[1], result["logits"].softmax(dim=1)
    hostile = '</script><b>"&'
    monkeypatch.setattr(test, "class_names", [hostile, *test.class_names[1:]])
    order = report.most_confident_mistakes(probabilities, test.labels, len(test.labels))
    shown = sections.browser(order, probabilities, test)
    content = re.search(r'id="mistakes-data">(.*?)</script>', shown["mistakes"])[1]
    data = json.loads(content)
    assert "<" not in content and data["classes"][0] == hostile
    assert data["num_test"] == [1] * 100 and data["superclass_of"] == test.superclass_of.tolist()

    rows = probabilities.tolist()
    wrong = [i for i, row in enumerate(rows) if row.index(max(row)) != test.labels[i]]
    wrong.sort(key=lambda i: -max(rows[i]))
    assert [row["file"] for row in data["mistakes"]] == [test.filenames[i] for i in wrong]
    for row, i in zip(data["mistakes"], wrong, strict=True):
        likely = sorted(range(100), key=lambda c: -rows[i][c])[:5]
        assert (row["true"], row["classes"]) == (test.labels[i], likely)
        assert row["probabilities"] == [round(rows[i][c], 6) for c in likely]

    jpeg = base64.b64decode(re.search(r"base64,(.*?)\)", shown["sprite"])[1])
    sprite = decode_image(torch.frombuffer(bytearray(jpeg), dtype=torch.uint8)).float()
    columns = data["columns"]
    lines = -(-len(wrong) // columns)
    assert f"/ {columns}00% {lines}00%;" in shown["sprite"]
    assert sprite.shape == (3, 32 * lines, 32 * columns)
    for place, i in enumerate(wrong):
        y, x = 32 * (place // columns), 32 * (place % columns)
        assert (sprite[:, y : y + 32, x : x + 32] - test.images[i]).abs().mean() < 12


def test_a_browser_of_no_mistake_is_empty(small_sets):
    labels = small_sets[1].labels
    order = report.most_confident_mistakes(torch.eye(100)[labels], labels, 100)
    assert sections.browser(order, torch.eye(100)[labels], small_sets[1]) == {"sprite": "", "mistakes": ""}


@pytest.mark.slow
def test_sentences_above_the_matrices_count_what_they_name(result, small_sets, tmp_path):
    test = small_sets[1]
    y_pred = result["logits"].argmax(dim=1)
    pairs = {(t, p) for t, p in zip(test.labels.tolist(), y_pred.tolist(), strict=True) if t != p}
    values = sections.mistakes(result, test, y_pred, tmp_path)
    assert (values["pairs"], values["empty_pairs"]) == (9900, 9900 - len(pairs))
    worst = min((row for row in result["classes"] if row["num_test"]), key=lambda row: row["recall"])
    assert text(values["worst"]).startswith(f"The worst class is {worst['name'].replace('_', ' ')}: 0.0 % of")


# ---- Stress ----------------------------------------------------------------------------------------------


def stress_results(clean_confidence=0.55):
    """A finished stress.json."""
    share = {"value": 0.25, "low": 0.1, "high": 0.4}
    clean = {"value": 0.7, "low": 0.6, "high": 0.8}
    record = {"accuracy": share, "mean_confidence": 0.5, "correct_per_class": [0] * 100}
    tests = {"clean/0": record | {"accuracy": clean, "mean_confidence": clean_confidence}}
    tests |= {f"{name}/{s}": record for name in CORRUPTIONS for s in range(1, 6)}
    radii = [0.25, 0.5, 1, 2, 4, 8, 64]
    tests |= {
        f"{name}/{radius:g}": {"accuracy": share} for name in ("fgsm", "pgd", "random") for radius in radii
    }
    tests["none/0"] = {"accuracy": clean}
    summary = {
        "mean_accuracy": {"fifteen": share, "all": share},
        "mean_confidence": {"fifteen": 0.5, "all": 0.5},
        "classes_that_break_first": [{"class": "a_class", "clean": 1.0, "corrupted": 0.5, "drop": 0.5}] * 10,
    }
    checks = [{"name": "a check", "passed": passed, "detail": "so"} for passed in (True, False)]
    worst = {f"{radius:g}": share for radius in radii}
    return {"tests": tests, "summary": summary, "radii": radii, "checks": checks, "robust_accuracy": worst,
            "corruption_images": 200, "attack_images": 100}  # fmt: skip


PICTURES = {name: np.full((6, 32, 32, 3), 90, dtype=np.uint8) for name in CORRUPTIONS}


@pytest.mark.slow
def test_stress_section_shows_every_corruption_and_every_check(tmp_path):
    section = sections.stress(stress_results(), PICTURES, tmp_path, CODE)
    assert section.count("<tr>") == 1 + len(CORRUPTIONS) + 1 + 10 + 1 + 2
    assert all(f"<td>{name.replace('_', ' ')}</td>" in section for name in CORRUPTIONS)
    assert "FAILED" in section
    assert "2 images of each class. So few images are no more than a hint" in text(section)


@pytest.mark.slow
def test_stress_section_says_both_sides_of_the_confidence(tmp_path):
    seen = text(sections.stress(stress_results(), PICTURES, tmp_path, CODE))
    assert "On these clean images the network is underconfident: its mean confidence is 55.0 %" in seen
    assert "Over all corruptions it is overconfident: its mean confidence is 50.0 %" in seen
    assert "APGD at 0.5, 1 and 2/255 only" in seen


@pytest.mark.parametrize(
    "confidence, word",
    [(0.59, "under"), (0.6, "neither"), (0.7, "neither"), (0.8, "neither"), (0.81, "over")],
)
def test_the_interval_of_the_accuracy_decides_about_the_confidence(confidence, word):
    assert sections.side(confidence, {"value": 0.7, "low": 0.6, "high": 0.8}).startswith(word)


def test_without_stress_results_the_section_says_what_to_do(tmp_path):
    assert "Not all stress tests have been run for this checkpoint" in sections.stress(
        None, {}, tmp_path, CODE
    )


@pytest.mark.slow
def test_stress_section_shows_what_stress_json_holds(shapes_report, monkeypatch, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(shapes_report, run)
    monkeypatch.setattr(stress, "corrupt", lambda images, name, severity: images)
    monkeypatch.setattr(
        stress, "predict", lambda model, images, *rest: torch.eye(100)[torch.arange(len(images)) % 90]
    )
    share = {"value": 0.25, "low": 0.1, "high": 0.4}
    record = {"accuracy": share, "right": "1000" * 25}
    monkeypatch.setattr(stress, "measure_attack", lambda *rest: record)
    assert stress.main(["--run", str(run)]) == 0
    checkpoint = run / "checkpoints" / "best.pt"
    results = report.stress_of(run, {"sha256": hashlib.sha256(checkpoint.read_bytes()).hexdigest()})
    pictures = examples(data.make_shapes(1, 1).images)
    section = " ".join(sections.stress(results, pictures, tmp_path / "plots", CODE).split())
    clean = results["tests"]["clean/0"]["accuracy"]
    low, high = f"{100 * clean['low']:.1f}", f"{100 * clean['high']:.1f} %"
    assert (
        f"{100 * clean['value']:.1f} % (95 % interval {low} to {high}; over the fifteen"
        in section.replace(");", ";")
    )
    assert "PGD 25.0 % (95 % interval 10.0 to 40.0 %)" in section
    assert section.count("<tr>") == 1 + len(CORRUPTIONS) + 1 + 10 + 1 + len(results["checks"])
    assert "FAILED" in section  # 25 % at the largest radius is no sound attack, and the page says so
    drawn = {path.stem for path in (tmp_path / "plots").iterdir()}
    assert drawn == {"stress_severity", "stress_radius", "stress_examples"}
    # Results of another checkpoint are not shown.
    assert report.stress_of(run, {"sha256": "1234"}) is None

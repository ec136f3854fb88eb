"""report.py: what it writes against a second computation from predictions.npz, and the pieces of the page."""

import csv
import html
import json
import re
import shutil

import numpy as np
import pytest
import torch
from torchvision.io import decode_image, read_file

import data
import plots
import report
import stress

HEADLINE = ["accuracy", "macro_precision", "macro_recall", "macro_f1", "top5_accuracy"]


@pytest.fixture(scope="module")
def results(shapes_report):
    predictions = np.load(shapes_report / "predictions.npz")
    numbers = json.loads((shapes_report / "metrics.json").read_text(encoding="utf-8"))
    return numbers, predictions, (shapes_report / "report.html").read_text(encoding="utf-8")


def test_predictions_file(results):
    _, predictions, _ = results
    y_true, y_pred, probabilities = (predictions[key] for key in ("y_true", "y_pred", "probabilities"))
    assert (y_true.dtype, y_pred.dtype, probabilities.dtype) == (np.int64, np.int64, np.float32)
    assert y_true.shape == y_pred.shape == (2000,) and probabilities.shape == (2000, 100)
    assert (probabilities.argmax(axis=1) == y_pred).all()
    np.testing.assert_allclose(probabilities.sum(axis=1), 1, atol=1e-5)
    assert (y_true == data.make_shapes(20, 1).labels.numpy()).all()


def test_headline_numbers_against_loops(results):
    numbers, predictions, _ = results
    y_true, y_pred = predictions["y_true"].tolist(), predictions["y_pred"].tolist()
    precision, recall, f1 = [], [], []
    for c in range(100):
        hits = sum(t == p == c for t, p in zip(y_true, y_pred, strict=True))
        precision.append(hits / y_pred.count(c) if y_pred.count(c) else 0.0)
        recall.append(hits / y_true.count(c))
        f1.append(2 * hits / (y_pred.count(c) + y_true.count(c)))
    top5 = np.argsort(-predictions["probabilities"], axis=1, kind="stable")[:, :5].tolist()
    expected = [
        sum(t == p for t, p in zip(y_true, y_pred, strict=True)) / 2000,
        *(sum(values) / 100 for values in (precision, recall, f1)),
        sum(t in best for t, best in zip(y_true, top5, strict=True)) / 2000,
    ]
    assert [numbers[key]["value"] for key in HEADLINE] == pytest.approx(expected, abs=1e-12)
    for key in HEADLINE[:1] + HEADLINE[4:]:
        assert numbers[key]["low"] <= numbers[key]["value"] <= numbers[key]["high"]
    for c in (0, 37, 99):
        row = numbers["classes"][c]
        assert (row["precision"], row["recall"], row["f1"]) == pytest.approx((precision[c], recall[c], f1[c]))
        wrong = [p for t, p in zip(y_true, y_pred, strict=True) if t == c and p != c]
        if wrong:
            assert row["most_common_mistake_count"] == max(wrong.count(p) for p in set(wrong))


def test_every_test_image_is_also_in_training(small_sets):
    """Nothing is left to measure without them: no number, and a sentence that says so."""
    test = small_sets[1]
    result = report.evaluate(torch.eye(100)[test.labels], test, test, {})
    assert result["duplicates"]["test_images_in_train"] == len(test.labels)
    assert result["duplicates"]["accuracy_without_them"] is None and result["accuracy"]["value"] == 1
    page = report.data_section(result, test, {"num_train": 100, "num_val": 0})
    assert "No test image is left without those." in page


def test_numbers_on_the_page_are_those_of_the_file(results):
    numbers, _, page = results
    cards = re.findall(
        r"<div class=card>(.*?)<b>(.*?)</b><span class=soft>95 % interval (.*?) to (.*?) %", page
    )
    assert [name for name, *_ in cards] == [
        "accuracy",
        "macro precision",
        "macro recall",
        "macro F1",
        "top-5 accuracy",
    ]
    for key, (_, value, low, high) in zip(HEADLINE, cards, strict=True):
        assert value == f"{100 * numbers[key]['value']:.2f} %"
        assert (low, high) == (f"{100 * numbers[key]['low']:.2f}", f"{100 * numbers[key]['high']:.2f}")
    for row in numbers["classes"]:
        cells = f"<td>{row['name']}</td><td>{row['superclass']}</td>"
        shown = page[page.index(cells) + len(cells) :]
        texts = re.findall(r'<td class="number" data-value="[^"]*">(.*?)</td>', shown)[:4]
        assert texts[:3] == [f"{100 * row[key]:.1f} %" for key in ("precision", "recall", "f1")]
        assert texts[3] == str(row["num_test"])


def test_page_is_one_small_file_without_addresses(results):
    _, _, page = results
    assert len(page.encode()) < 6e6
    addresses = re.findall(r'(?:src|href|url)\s*[=(]\s*["\']?([^"\'\s>)]+)', page)
    assert all(address.startswith(("data:", "#")) for address in addresses)


def test_confident_mistakes_are_the_most_confident(results, shapes_report):
    _, predictions, _ = results
    y_true, y_pred, probabilities = (predictions[key] for key in ("y_true", "y_pred", "probabilities"))
    wrong = [i for i in range(2000) if y_true[i] != y_pred[i]]
    expected = sorted(wrong, key=lambda i: (-probabilities[i, y_pred[i]], i))[: report.NUM_FAILURES]
    with open(shapes_report / "failures" / "failures.csv", newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [int(row["test_index"]) for row in rows] == expected
    test = data.make_shapes(20, 1)
    for row in rows:
        i = int(row["test_index"])
        assert row["true_class"] == test.class_names[y_true[i]]
        assert row["predicted_class"] == test.class_names[y_pred[i]]
        assert row["file_name"] == test.filenames[i]
        assert float(row["probability_predicted"]) == pytest.approx(probabilities[i, y_pred[i]], abs=1e-6)
        assert float(row["probability_true"]) == pytest.approx(probabilities[i, y_true[i]], abs=1e-6)
        picture = decode_image(read_file(str(shapes_report / row["picture"])))
        assert torch.equal(picture[:, ::8, ::8], test.images[i]) and torch.equal(
            picture[:, 7::8, 3::8], test.images[i]
        )
        assert decode_image(read_file(str(shapes_report / row["gradcam"]))).shape[-1] > 1000


def test_most_confident_mistakes_without_any():
    assert report.most_confident_mistakes(torch.eye(3), torch.arange(3), 5).tolist() == []


def test_explanations_are_measured(results):
    explanations = results[0]["explanations"]
    assert explanations["layer"] == "layer3" and explanations["map_size"] == [8, 8]
    for mode in ("deletion", "insertion"):
        for name in ("gradcam", "random"):
            record = explanations[f"{mode}_{name}"]
            assert len(record["curve"]) == report.STEPS + 1
            area = (
                sum((a + b) / 2 for a, b in zip(record["curve"], record["curve"][1:], strict=False))
                / report.STEPS
            )
            assert record["area"] == pytest.approx(area, abs=1e-4)
    assert next(iter(explanations["randomization"])) == "fc"
    assert 0 < explanations["pointing_game"]["chance"] < 0.3


def test_every_plot_is_there(shapes_report):
    names = {path.stem for path in (shapes_report / "plots").glob("*.png")}
    assert names >= {
        "loss",
        "accuracy",
        "learning_rate",
        "headline_metrics",
        "confusion_matrix",
        "worst_classes",
    }
    assert names >= {
        "superclass_confusion",
        "reliability",
        "confidence",
        "risk_coverage",
        "deletion",
        "insertion",
    }
    for path in (shapes_report / "plots").glob("*.png"):
        picture = decode_image(read_file(str(path)))[:3].float()
        assert picture.std() > 5, f"{path.name} is blank"


def test_checkpoint_alone(shapes_report, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shutil.copy(shapes_report / "checkpoints" / "best.pt", tmp_path / "my weights.pt")
    assert report.main(["--checkpoint", "my weights.pt"]) == 0
    again = json.loads((tmp_path / "runs" / "my weights" / "metrics.json").read_text(encoding="utf-8"))
    assert again == json.loads((shapes_report / "metrics.json").read_text(encoding="utf-8"))
    assert not list(shapes_report.rglob("*.tmp"))
    assert "history of its training is not here" in (tmp_path / "runs/my weights/report.html").read_text(
        "utf-8"
    )


@pytest.mark.parametrize("sizes", [[5] * 20, [10] * 10, [1, 2, 7], [1, 1]])
def test_chance_within_superclass_against_enumeration(sizes):
    superclass_of = [s for s, size in enumerate(sizes) for _ in range(size)]
    shares = []
    for true, coarse in enumerate(superclass_of):
        others = [c for c in range(len(superclass_of)) if c != true]
        shares.append(sum(superclass_of[c] == coarse for c in others) / len(others))
    assert report.chance_within(torch.tensor(superclass_of)) == pytest.approx(sum(shares) / len(shares))


def test_inserted_text_is_escaped():
    hostile = '<script>alert("1")</script>&'
    page = report.table([hostile, "n"], [[hostile, ("1", 1)]])
    picture = report.image(torch.zeros(3, 4, 4, dtype=torch.uint8), hostile, 4)
    for markup in (page, picture):
        assert "<script>" not in markup and html.escape(hostile) in markup
    svg = plots.to_svg(plots.headline_bars(["a"], [0.5], [0.4], [0.6]), "x", hostile)
    assert "<script>" not in svg and html.escape(hostile) in svg


def test_outline_marks_the_border_only():
    mask = torch.zeros(32, 32, dtype=torch.bool)
    mask[10:20, 5:30] = True
    drawn = report.outline(torch.full((3, 128, 128), 90, dtype=torch.uint8), mask)
    big = mask.repeat_interleave(4, 0).repeat_interleave(4, 1)
    for y in range(128):
        for x in range(128):
            near = big[max(0, y - 1) : y + 2, max(0, x - 1) : x + 2]
            expected = 90 if near.all() or not near.any() else 255 if big[y, x] else 0
            assert drawn[:, y, x].tolist() == [expected] * 3


def test_svg_colours_are_variables_and_ids_are_apart():
    figure = plots.reliability([("as trained", np.array([0.2, 0.8]), np.array([0.1, 0.9]), np.array([3, 4]))])
    svg = plots.to_svg(figure, "first", "alt")
    assert not [colour for colour in plots.CSS_VARIABLES if colour in svg] and "var(--blue)" in svg
    ids = re.findall(r'\bid="([^"]+)"', svg)
    assert ids and all(name.startswith("first-") for name in ids) and len(set(ids)) == len(ids)
    targets = re.findall(r'href="#([^"]+)"|url\(#([^)]+)\)', svg)
    assert targets and all((a or b) in ids for a, b in targets)


def test_stress_section_shows_what_stress_json_holds(shapes_report, monkeypatch, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(shapes_report, run)
    monkeypatch.setattr(stress, "corrupt", lambda images, name, severity: images)
    monkeypatch.setattr(
        stress, "predict", lambda model, images, *rest: torch.eye(100)[torch.arange(len(images)) % 90]
    )
    share = {"value": 0.25, "low": 0.1, "high": 0.4}
    monkeypatch.setattr(stress, "measure_attack", lambda *rest: {"accuracy": share})
    assert stress.main(["--run", str(run)]) == 0
    checkpoint = run / "checkpoints" / "best.pt"
    results = report.read_stress(run, checkpoint)
    figures = {}
    section = report.stress_section(results, data.make_shapes(1, 1), figures)
    clean = results["tests"]["clean/0"]["accuracy"]
    low, high = f"{100 * clean['low']:.1f}", f"{100 * clean['high']:.1f} %"
    assert (
        f"{100 * clean['value']:.1f} % (95 % interval {low} to {high}; over the fifteen"
        in section.replace(");", ";")
    )
    assert "PGD 25.0 % (95 % interval 10.0 to 40.0 %)" in section
    assert section.count("<tr>") == 1 + len(stress.CORRUPTIONS) + 1 + 10 + 1 + len(results["checks"])
    assert "FAILED" in section  # 25 % at the largest radius is no sound attack, and the page says so
    assert set(figures) == {"stress_severity", "stress_radius", "stress_examples"}
    # Results of another checkpoint are not shown.
    checkpoint.write_bytes(checkpoint.read_bytes() + b"x")
    assert report.read_stress(run, checkpoint) is None
    assert "Not run for this checkpoint" in report.stress_section(None, data.make_shapes(1, 1), {})

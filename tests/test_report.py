"""report.py: what it computes and writes, against a second computation."""

import csv
import dataclasses
import html
import inspect
import json
import math
import re
import shutil
import statistics
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from processes import TINY
from torch import nn
from torchvision.io import decode_image, read_file

import data
import report
import stress
import train
from gradcam import GradCAM, overlay, to_heatmap
from metrics import expected_calibration_error
from page.page import code
from resnet_cifar import resnet18
from running.console import Progress

HEADLINE = ["accuracy", "macro_precision", "macro_recall", "macro_f1", "top5_accuracy"]

# ---- Quick: single functions on the small sets -----------------------------------------------------------


@pytest.fixture(scope="module")
def network():
    """A network with its first random weights, as a model of images in [0, 1]."""
    torch.manual_seed(0)
    return nn.Sequential(data.Normalize(), resnet18(100, 16)).eval()


def test_evaluate_against_loops(small_sets):
    train, test = small_sets
    logits = 3 * torch.randn(100, 100, generator=torch.Generator().manual_seed(0))
    logits[torch.arange(50), test.labels[:50]] += 9
    val_labels = torch.arange(100)
    result = report.evaluate(logits, test, train, {"val_logits": logits.half(), "val_labels": val_labels})
    predicted, true = logits.argmax(dim=1).tolist(), test.labels.tolist()
    check_headline(result, true, predicted, logits.softmax(dim=1).numpy())
    assert result["duplicates"]["test_images_in_train"] == 0
    assert result["duplicates"]["accuracy_without_them"] == result["accuracy"]["value"]
    pairs = {}
    for pair in zip(true, predicted, strict=True):
        pairs[pair] = pairs.get(pair, 0) + (pair[0] != pair[1])
    counts = [row["count"] for row in result["most_confused_pairs"]]
    assert counts == sorted(pairs.values(), reverse=True)[:20]
    scaled = (logits / result["temperature"]).softmax(dim=1)
    after = expected_calibration_error(test.labels, scaled)
    assert result["expected_calibration_error_after_temperature"] == pytest.approx(after)


def test_other_numbers_against_loops(small_sets):
    train, test = small_sets
    logits = 3 * torch.randn(100, 100, generator=torch.Generator().manual_seed(0))
    logits[torch.arange(50), test.labels[:50]] += 9
    result = report.evaluate(logits, test, train, {})
    rows, of = logits.double().softmax(dim=1).tolist(), test.superclass_of.tolist()
    answers = [(t, row.index(max(row)), row) for t, row in zip(test.labels.tolist(), rows, strict=True)]
    surest = sorted(answers, key=lambda answer: -max(answer[2]))
    wrong = [t != p for t, p, _ in surest]
    squares = [sum((p - (c == t)) ** 2 for c, p in enumerate(row)) for t, _, row in answers]
    expected = {
        "negative_log_likelihood": statistics.mean([-math.log(row[t]) for t, _, row in answers]),
        "brier_score": statistics.mean(squares),
        "superclass_accuracy": statistics.mean([float(of[t] == of[p]) for t, p, _ in answers]),
        "errors_within_superclass": statistics.mean([float(of[t] == of[p]) for t, p, _ in answers if t != p]),
        "aurc": statistics.mean([sum(wrong[:i]) / i for i in range(1, 101)]),
    }
    assert {key: result[key] for key in expected} == pytest.approx(expected, rel=1e-5)


def test_the_temperature_is_fitted_on_the_validation_split(small_sets):
    train, test = small_sets
    generator = torch.Generator().manual_seed(0)
    val_logits = 2 * torch.randn(2000, 100, generator=generator)
    val_labels = torch.multinomial((val_logits / 2.5).softmax(dim=1), 1, generator=generator)[:, 0]
    checkpoint = {"val_logits": val_logits.half(), "val_labels": val_labels}
    result = report.evaluate(torch.eye(100)[test.labels], test, train, checkpoint)  # right everywhere: 0.01
    assert result["temperature"] == pytest.approx(2.5, rel=0.1)  # that made the labels


def test_duplicates_are_counted_and_left_out(small_sets):
    def split(values):
        pixels = torch.tensor(values, dtype=torch.uint8)[:, None, None, None].expand(-1, 3, 32, 32)
        labels = torch.zeros(len(values), dtype=torch.int64)
        return dataclasses.replace(small_sets[1], images=pixels, labels=labels)

    y_pred = torch.tensor([0, 0, 1, 1])
    assert report.audit_duplicates(split([0, 1, 1, 2]), split([1, 3, 3, 4]), y_pred) == {
        "train_images_that_repeat_another": 1,
        "test_images_that_repeat_another": 1,
        "test_images_in_train": 1,
        "accuracy_without_them": 1 / 3,
    }


def check_headline(numbers, y_true, y_pred, probabilities):
    """The headline numbers and those of three classes, by counting."""
    precision, recall, f1 = [], [], []
    for c in range(100):
        hits = sum(t == p == c for t, p in zip(y_true, y_pred, strict=True))
        precision.append(hits / y_pred.count(c) if y_pred.count(c) else 0.0)
        recall.append(hits / y_true.count(c))
        f1.append(2 * hits / (y_pred.count(c) + y_true.count(c)))
    top5 = np.argsort(-probabilities, axis=1, kind="stable")[:, :5].tolist()
    expected = [
        sum(t == p for t, p in zip(y_true, y_pred, strict=True)) / len(y_true),
        *(sum(values) / 100 for values in (precision, recall, f1)),
        sum(t in best for t, best in zip(y_true, top5, strict=True)) / len(y_true),
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
    """Nothing is left to measure without them: no number; test_sections.py has the sentence that says so."""
    test = small_sets[1]
    result = report.evaluate(torch.eye(100)[test.labels], test, test, {})
    assert result["duplicates"]["test_images_in_train"] == len(test.labels)
    assert result["duplicates"]["accuracy_without_them"] is None and result["accuracy"]["value"] == 1
    assert result["errors_within_superclass"] is None


def test_most_confident_mistakes_without_any():
    assert report.most_confident_mistakes(torch.eye(3), torch.arange(3), 5).tolist() == []


def test_explain_is_gradcam_of_the_network_behind_its_normalisation(network, small_sets):
    images, classes = small_sets[1].images[:3], torch.tensor([5, 0, 99])
    with GradCAM(network[1], "layer3") as cam:
        expected = cam(data.to_input(images), classes)
    torch.testing.assert_close(report.explain(network, images / 255, classes), expected, rtol=1e-4, atol=1e-6)


def test_failures_replace_those_of_an_earlier_report_and_nothing_else(
    network, small_sets, tmp_path, monkeypatch
):
    monkeypatch.setattr(report, "NUM_FAILURES", 2)
    test = small_sets[1]
    earlier = [tmp_path / "failures" / "03_apple_as_pear.png", tmp_path / "gradcam" / "20_b_as_c.png"]
    others = [tmp_path / "failures" / "my notes.txt", tmp_path / "gradcam" / "own" / "01_x.png"]
    for path in [*earlier, *others]:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("x")
    failures = report.find_failures(torch.full((100, 100), 0.01), test)
    evidence = report.write_failures(tmp_path, network, test, failures)
    assert [list(evidence[kind].shape) for kind in ("predicted", "true")] == [[2, 3, 256, 256]] * 2
    expected = {tmp_path / row[key] for row in failures for key in ("picture", "gradcam")}
    expected |= {*others, tmp_path / "failures" / "failures.csv"}
    assert {path for path in tmp_path.rglob("*") if path.is_file()} == expected
    assert report.write_failures(tmp_path, network, test, []) == {}
    assert {path for path in tmp_path.rglob("*") if path.is_file()} == set(others)
    for i, row in enumerate(failures):
        image = test.images[row["test_index"]][None]
        for kind in ("predicted", "true"):
            with GradCAM(network[1], "layer3") as cam:
                maps = cam(data.to_input(image), test.class_names.index(row[f"{kind}_class"]))
            enlarged = image.repeat_interleave(8, 2).repeat_interleave(8, 3) / 255
            difference = evidence[kind][i].float() - overlay(enlarged, to_heatmap(maps, 256))[0].float()
            assert difference.abs().mean() < 0.5


def test_stress_results_are_those_of_this_checkpoint(tmp_path):
    checkpoint, file = {"sha256": "1234"}, tmp_path / "stress.json"
    assert report.stress_of(tmp_path, checkpoint) is None
    results = json.loads((Path(report.__file__).parent / "results" / "stress.json").read_text("utf-8"))
    file.write_text(json.dumps(results))
    assert report.stress_of(tmp_path, checkpoint) is None  # of another checkpoint
    results["fingerprint"]["checkpoint"] = "1234"
    file.write_text(json.dumps(results))
    assert report.stress_of(tmp_path, checkpoint) == results
    older = results | {"tests": {key: value for key, value in results["tests"].items() if "fog" not in key}}
    file.write_text(json.dumps(older))
    assert report.stress_of(tmp_path, checkpoint) is None  # made before fog was added
    del results["checks"]
    file.write_text(json.dumps(results))
    assert report.stress_of(tmp_path, checkpoint) is None  # not finished


def test_learning_rates_are_one_for_each_step():
    settings = {"batch_size": 32, "epochs": 4, "warmup_epochs": 0.5, "lr": 0.2}
    rates = report.learning_rates(3, {"num_train": 100, "settings": settings})
    assert len(rates) == 9 and max(rates) <= 0.2
    assert rates == [report.warmup_cosine(step, 12, 2, 0.2) for step in range(9)]


def test_settings_that_are_off_are_no_part_of_the_command(small_sets, network):
    settings = {"out": "runs/x", "epochs": 7, "compile": True, "resume": False, "limit_train": None}
    checkpoint = {"config": {"settings": settings, "environment": {"python": "3.12"}}}
    values = report.reproduction("best.pt", checkpoint, network[1], small_sets[1])
    shown = re.findall(r">(--.*?)<", values["options"])
    assert shown == ["--out runs/x", "--epochs 7", "--compile"]


def test_the_command_on_a_tiny_run(finished, small_sets, tmp_path, monkeypatch, capsys):
    """Everything is written and every value of the page is there; slow tests look at the content."""
    monkeypatch.setattr(train, "load", lambda *args: small_sets)
    monkeypatch.setattr(report, "NUM_FAILURES", 1)
    monkeypatch.setattr(report, "NUM_EXPLAINED", 2)
    shutil.copytree(finished, tmp_path / "run")
    assert report.main(["--run", str(tmp_path / "run")]) == 0
    files = {"metrics.json", "predictions.npz", "report.html", "plots", "failures", "gradcam"}
    assert files <= {path.name for path in (tmp_path / "run").iterdir()}
    page = (tmp_path / "run" / "report.html").read_text(encoding="utf-8")
    numbers = json.loads((tmp_path / "run" / "metrics.json").read_text(encoding="utf-8"))
    error = f"{100 * numbers['expected_calibration_error']:.2f} %"
    assert f"The expected calibration error is {error} (15 bins)" in page
    assert re.search(rf"calibration error +{re.escape(error)}\n", capsys.readouterr().out)


@pytest.mark.slow
def test_the_code_on_the_page_is_the_code_that_ran(small_sets, tmp_path, monkeypatch):
    """Train, stress and report a tiny run, and note the code of every function that is called."""
    monkeypatch.setattr(train, "load", lambda *args: small_sets)
    for name, value in {"CORRUPTION_IMAGES": 10, "ATTACK_IMAGES": 10}.items():
        monkeypatch.setattr(stress, name, value)
    monkeypatch.setattr(stress.attacks, "PGD_STEPS", 2)
    monkeypatch.setattr(report, "NUM_FAILURES", 1)
    monkeypatch.setattr(report, "NUM_EXPLAINED", 2)
    monkeypatch.setattr(stress.plots, "save_png", lambda figure, path: path.touch())  # takes long
    run, called = tmp_path / "run", set()
    root = Path(report.__file__).parent
    sys.setprofile(lambda frame, event, argument: called.add(frame.f_code))
    try:
        assert train.main([*TINY, "--dataset", "shapes", "--out", str(run)]) == 0
        assert stress.main(["--run", str(run)]) == 0
        assert report.main(["--run", str(run)]) == 0
    finally:
        sys.setprofile(None)
    ran = {}  # {(file, line): source}
    for function in called:
        path = Path(function.co_filename)
        if root in path.parents and "<" not in function.co_name:
            ran[str(path.relative_to(root)), function.co_firstlineno] = inspect.getsource(function)

    page = (run / "report.html").read_text(encoding="utf-8")
    folded = re.findall(r'<details class="code">\n<summary>Code(.*?)</details>', page, flags=re.DOTALL)
    assert len(folded) == len(report.CODE)
    for (place, functions), markup in zip(shown_in_order(page), folded, strict=True):
        sources = re.findall(
            r"<p><code>(.*?)</code>, from line (\d+)</p>\n<pre>(.*?)</pre>", markup, re.DOTALL
        )
        assert len(sources) == len(functions), place
        for path, line, text in sources:
            text = html.unescape(text)
            if text.startswith("class "):
                methods = [source for (file, n), source in ran.items() if file == path and n > int(line)]
                assert any(source.rstrip() in text for source in methods), f"{place}: {path}, line {line}"
            else:
                assert ran[path, int(line)].rstrip() == text, f"{place}: {path}, line {line}"


def shown_in_order(page):
    """The rows of report.CODE in the order in which the page shows them."""
    return sorted(report.CODE.items(), key=lambda row: page.index(code(row[1])))


# ---- Slow: the whole command on the shapes set -----------------------------------------------------------


@pytest.fixture(scope="module")
def results(shapes_report):
    predictions = np.load(shapes_report / "predictions.npz")
    numbers = json.loads((shapes_report / "metrics.json").read_text(encoding="utf-8"))
    return numbers, predictions, (shapes_report / "report.html").read_text(encoding="utf-8")


@pytest.mark.slow
def test_predictions_file(results):
    _, predictions, _ = results
    y_true, y_pred, probabilities = (predictions[key] for key in ("y_true", "y_pred", "probabilities"))
    assert (y_true.dtype, y_pred.dtype, probabilities.dtype) == (np.int64, np.int64, np.float32)
    assert y_true.shape == y_pred.shape == (2000,) and probabilities.shape == (2000, 100)
    assert (probabilities.argmax(axis=1) == y_pred).all()
    np.testing.assert_allclose(probabilities.sum(axis=1), 1, atol=1e-5)
    assert (y_true == data.make_shapes(20, 1).labels.numpy()).all()


@pytest.mark.slow
def test_headline_numbers_against_loops(results):
    numbers, predictions, _ = results
    y_true, y_pred = predictions["y_true"].tolist(), predictions["y_pred"].tolist()
    check_headline(numbers, y_true, y_pred, predictions["probabilities"])


@pytest.mark.slow
def test_numbers_on_the_page_are_those_of_the_file(results):
    numbers, _, page = results
    cards = re.findall(
        r'<div class="card">(.*?)<b>(.*?)</b><span class="soft">95 % interval (.*?) to (.*?) %', page
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
    page = re.sub(r"</?a\b[^>]*>", "", page)  # without the links of the cells
    for row in numbers["classes"]:
        cells = f"<td>{row['name']}</td>\n<td>{row['superclass']}</td>"
        shown = page[page.index(cells) + len(cells) :]
        texts = re.findall(r'<td class="number" data-value="[^"]*">(.*?)</td>', shown)[:4]
        assert texts[:3] == [f"{100 * row[key]:.1f} %" for key in ("precision", "recall", "f1")]
        assert texts[3] == str(row["num_test"])


@pytest.mark.slow
def test_page_is_one_small_file_without_addresses(results):
    _, _, page = results
    assert len(page.encode()) < 6e6
    addresses = re.findall(r'(?:src|href|url)\s*[=(]\s*["\']?([^"\'\s>)]+)', page)
    assert all(address.startswith(("data:", "#")) for address in addresses)


@pytest.mark.slow
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


@pytest.mark.slow
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
        areas = [explanations[f"{mode}_{name}"]["area"] for name in ("gradcam", "random")]
        assert explanations[f"{mode}_difference"]["value"] == pytest.approx(areas[0] - areas[1], abs=1e-6)
    assert next(iter(explanations["randomization"])) == "fc"
    assert 0 < explanations["pointing_game"]["chance"] < 0.3


@pytest.mark.parametrize("count", [1, 2, 7])
def test_areas_are_compared_image_by_image(small_sets, monkeypatch, count):
    pairs = [[(0.1 * i, 0.3 + 0.01 * i**2) for i in range(count)], [(0.5, 0.2 * i) for i in range(count)]]
    areas = iter([torch.tensor(column) for pair in pairs for column in zip(*pair, strict=True)])
    monkeypatch.setattr(report, "NUM_EXPLAINED", count)
    test, tested = small_sets[1], []
    y_pred = (test.labels + 1) % 100
    place = {image.numpy().tobytes(): i for i, image in enumerate(test.images)}

    def objects(model, images, classes):  # the map is the object itself
        index = [place[image.numpy().tobytes()] for image in (255 * images).round().byte()]
        assert torch.equal(classes, y_pred[index])
        return test.masks[index].float()

    def measured(model, images, maps, classes, fill, *rest):
        assert fill.tolist() == pytest.approx(data.MEAN)
        tested.append(torch.equal(maps, objects(model, images, classes)))
        return torch.zeros(count, 5), next(areas)

    monkeypatch.setattr(report, "explain", objects)
    monkeypatch.setattr(report, "deletion_insertion", measured)
    monkeypatch.setattr(report, "cascading_randomization", lambda *rest: {})
    model = nn.Sequential(nn.ReLU(), nn.Linear(1, 1))
    result = report.check_explanations(model, test, y_pred, Progress("", 3))
    assert tested == [True, False] * 2 and result["pointing_game"]["value"] == 1
    for mode, pair in zip(("deletion", "insertion"), pairs, strict=True):
        differences = [a - b for a, b in pair]
        error = statistics.stdev(differences) / count**0.5 if count > 1 else 0
        found = result[f"{mode}_difference"]
        assert found["value"] == pytest.approx(statistics.mean(differences), abs=1e-6)
        assert found["standard_error"] == pytest.approx(error, abs=1e-6)


@pytest.mark.slow
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


@pytest.mark.slow
def test_checkpoint_alone(shapes_report, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shutil.copy(shapes_report / "checkpoints" / "best.pt", tmp_path / "my weights.pt")
    assert report.main(["--checkpoint", "my weights.pt"]) == 0
    again = json.loads((tmp_path / "runs" / "my weights" / "metrics.json").read_text(encoding="utf-8"))
    assert again == json.loads((shapes_report / "metrics.json").read_text(encoding="utf-8"))
    assert not list(shapes_report.rglob("*.tmp"))
    page = (tmp_path / "runs/my weights/report.html").read_text("utf-8")
    # The checkpoint carries the history of its training.
    assert 'id="training"' in page


@pytest.mark.slow
def test_a_network_of_small_images_is_shown_small_images(tmp_path, small, monkeypatch):
    argv = [*TINY, "--dataset=shapes", "--image-sizes=16", "--epochs=1", f"--out={tmp_path}"]
    assert (
        train.main(argv)
        == report.main(["--run", str(tmp_path)])
        == stress.main(["--run", str(tmp_path)])
        == 0
    )
    network, _ = train.load_model(tmp_path / "checkpoints" / "best.pt", torch.device("cpu"))
    images = nn.functional.interpolate(small[1].images / 255, (16, 16), mode="bilinear", antialias=True)
    with torch.no_grad():
        expected = network(data.Normalize()(images))
    found = torch.from_numpy(np.load(tmp_path / "predictions.npz")["probabilities"])
    torch.testing.assert_close(found, expected.softmax(dim=1), rtol=0.02, atol=1e-3)
    clean = json.loads((tmp_path / "stress.json").read_text("utf-8"))["tests"]
    accuracy = (expected.argmax(dim=1) == small[1].labels).double().mean().item()
    for name in ("clean/0", "none/0"):
        assert clean[name]["accuracy"]["value"] == pytest.approx(accuracy, abs=0.011)

"""report.py: what it computes and writes, against a second computation from predictions.npz."""

import csv
import dataclasses
import html
import json
import math
import re
import shutil
import statistics
import types
from collections import OrderedDict

import numpy as np
import pytest
import torch
from processes import TINY, assert_one_line, outcome
from torch import nn
from torchvision.io import decode_image, read_file

import data
import report
import train
from gradcam import GradCAM, overlay, to_heatmap
from metrics import expected_calibration_error
from resnet_cifar import count_parameters_and_macs, resnet18
from running.console import Progress
from running.folder import load_checkpoint, save_checkpoint

HEADLINE = ["accuracy", "macro_precision", "macro_recall", "macro_f1", "top5_accuracy"]

# ---- Single functions on the small sets ------------------------------------------------------------------


@pytest.fixture(scope="module")
def network():
    """A network with its first random weights, as a model of images in [0, 1]."""
    torch.manual_seed(0)
    return nn.Sequential(data.Normalize(), resnet18(100, 16)).eval()


@pytest.fixture(scope="module")
def logits(small_sets):
    """Of a network that is right about half of the test images."""
    logits = 3 * torch.randn(100, 100, generator=torch.Generator().manual_seed(0))
    logits[torch.arange(50), small_sets[1].labels[:50]] += 9
    return logits


def test_numbers_against_loops(small_sets, logits):
    train, test = small_sets
    result = report.evaluate(logits, test, train)
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


def test_a_temperature_divides_the_logits(small_sets, logits):
    result = report.evaluate(logits, small_sets[1], small_sets[0], temperature=2.5)
    after = expected_calibration_error(small_sets[1].labels, (logits / 2.5).softmax(dim=1))
    assert result["expected_calibration_error_after_temperature"] == pytest.approx(after)


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
        "with_another_label_there": 0,
        "misclassified_as_labelled_there": 0,
        "accuracy_without_them": 1 / 3,
    }
    # All of them are in training and all are right: of nothing there is no number.
    test = small_sets[1]
    result = report.evaluate(torch.eye(100)[test.labels], test, test)
    assert (
        result["duplicates"]["accuracy_without_them"] is None and result["errors_within_superclass"] is None
    )
    assert report.most_confident_misclassified(torch.eye(3), torch.arange(3)).tolist() == []


def test_explain_is_gradcam_of_the_network_behind_its_normalisation(network, small_sets):
    images, classes = small_sets[1].images[:3], torch.tensor([5, 0, 99])
    with GradCAM(network[1], "layer4") as cam:
        expected = cam(data.to_input(images), classes)
    torch.testing.assert_close(report.explain(network, images / 255, classes), expected, rtol=1e-4, atol=1e-6)
    assert report.explain(network, images[:0] / 255, classes[:0]).shape == (0, 4, 4)


def test_failures_replace_those_of_an_earlier_report_and_nothing_else(
    network, small_sets, tmp_path, monkeypatch
):
    monkeypatch.setattr(report, "NUM_FAILURES", 2)
    test, probabilities = small_sets[1], torch.full((100, 100), 0.01)
    earlier = [tmp_path / "failures" / "03_apple_as_pear.png", tmp_path / "gradcam" / "20_b_as_c.png"]
    others = [tmp_path / "failures" / "my notes.txt", tmp_path / "gradcam" / "own" / "01_x.png"]
    for path in [*earlier, *others]:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("x")
    wrong = report.most_confident_misclassified(probabilities, test.labels)
    failures = report.list_failures(wrong, probabilities, test)
    classes = (torch.zeros(100, dtype=torch.int64), test.labels)
    maps = torch.stack([report.explain(network, test.images[wrong] / 255, c[wrong]) for c in classes], dim=1)
    evidence = report.write_failures(tmp_path, test, failures, maps)
    expected = {tmp_path / row[key] for row in failures for key in ("picture", "gradcam")}
    expected |= {*others, tmp_path / "failures" / "failures.csv"}
    assert {path for path in tmp_path.rglob("*") if path.is_file()} == expected
    for i, row in enumerate(failures):
        image = test.images[row["test_index"]][None]
        for kind in ("predicted", "true"):
            with GradCAM(network[1], "layer4") as cam:
                maps = cam(data.to_input(image), test.class_names.index(row[f"{kind}_class"]))
            enlarged = image.repeat_interleave(8, 2).repeat_interleave(8, 3) / 255
            difference = evidence[kind][i].float() - overlay(enlarged, to_heatmap(maps, 256))[0].float()
            assert difference.abs().mean() < 0.5
    assert report.write_failures(tmp_path, test, [], maps[:0]) == {}
    assert {path for path in tmp_path.rglob("*") if path.is_file()} == set(others)


def test_areas_are_compared_image_by_image(small_sets, monkeypatch):
    """The map is the object itself, and the areas are made up: four kinds of maps, twice."""
    columns = torch.rand(2, 4, 7, generator=torch.Generator().manual_seed(0)).double()
    areas, shown = iter(columns.flatten(0, 1)), []
    monkeypatch.setattr(report, "NUM_EXPLAINED", 7)
    test = small_sets[1]
    y_pred = (test.labels + 1) % 100
    place = {image.numpy().tobytes(): i for i, image in enumerate(test.images)}

    def objects(model, images, classes):
        index = [place[image.numpy().tobytes()] for image in (255 * images).round().byte()]
        assert torch.equal(classes, y_pred[index])
        return test.masks[index].float()

    def measured(model, images, maps, classes, fill, *rest):
        assert fill.tolist() == pytest.approx(data.MEAN)
        shown.append((maps, objects(model, images, classes)))
        return torch.zeros(7, 5), next(areas)

    def random_weights(model, images, explain, modules, seed):
        return {name: torch.tensor([math.nan, 0.5, -0.1 * seed]) for name in modules}

    monkeypatch.setattr(report, "explain", objects)
    monkeypatch.setattr(report, "deletion_insertion", measured)
    monkeypatch.setattr(report, "cascading_randomization", random_weights)
    model = nn.Sequential(nn.PReLU(), nn.Sequential(OrderedDict(fc=nn.PReLU())))
    result = report.check_explanations(model, test, y_pred, Progress("", 3))
    for i, mode in enumerate(("deletion", "insertion")):
        for k, name in enumerate(("gradcam", "random", "centre", "other_image")):
            differences = (columns[i, 0] - columns[i, k]).tolist()
            found = result[mode][name]
            assert found["area"]["value"] == pytest.approx(columns[i, k].mean().item())
            mean, error = statistics.mean(differences), statistics.stdev(differences) / 7**0.5
            expected = {"value": mean, "standard_error": error}
            assert found["gradcam_less_this"] == pytest.approx(expected, abs=1e-9)
    (own, expected), _, (centre, _), (other, _) = shown[:4]
    assert torch.equal(own, expected) and torch.equal(other, expected.roll(1, 0))
    assert centre[0, 15, 8].item() == pytest.approx(math.exp(-(0.5**2 + 7.5**2) / 128))
    # Seed s has the correlations 0.5 and -s / 10 with one map that is constant.
    rho = result["randomization"]["down_to"]["fc"]
    assert rho["mean"] == pytest.approx({"value": 0.15, "low": 0.05, "high": 0.25})
    assert rho["mean_abs"] == pytest.approx({"value": 0.35, "low": 0.25, "high": 0.45})
    game = result["pointing_game"]
    assert game["gradcam"]["value"] == 1 > game["centre"]["value"] > game["chance"]


def test_lookalikes_by_hand():
    test = types.SimpleNamespace(labels=torch.tensor([0, 1, 2, 3]))
    nearest = {
        "labels": torch.tensor([0, 5, 2, 0]),
        "similarity": torch.tensor([1.0, 0.97, 0.96, 0.5]),
        "similarity_trained_on": torch.tensor([1.0, 0.97, 0.94, 0.5]),  # that of the third was held out
    }
    y_pred = torch.tensor([0, 5, 1, 3])
    found = report.audit_lookalikes(test, y_pred, nearest)
    counts = {"images": 3, "with_another_label": 1, "misclassified": 2, "misclassified_as_its_label": 1}
    assert {key: found[key] for key in counts} == counts
    assert found["same_label_trained_on"]["value"] == 1 and found["same_label_held_out"]["value"] == 0
    assert [(row["from"], row["images"], row["value"]) for row in found["by_similarity"]] == [
        (-1.0, 1, 1.0),
        (0.95, 3, 1 / 3),
    ]


def test_an_interrupted_report_of_a_checkpoint_outside_of_a_run_can_be_made_again(
    finished, small_sets, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    shutil.copy(finished / "checkpoints" / "best.pt", tmp_path / "alone.pt")
    monkeypatch.setattr(train, "load", lambda *args: small_sets)
    monkeypatch.setattr(report, "NUM_FAILURES", 1)
    monkeypatch.setattr(report, "NUM_EXPLAINED", 2)
    begun = []

    def interrupted(*arguments):
        begun.append(sorted(path.name for path in (tmp_path / "runs" / "alone").glob("*.*")))
        raise KeyboardInterrupt

    monkeypatch.setattr(report, "write_failures", interrupted)
    for _ in range(2):  # the second is not refused
        with pytest.raises(KeyboardInterrupt):
            report.main(["--checkpoint", "alone.pt"])
    assert begun == 2 * [["metrics.json", "predictions.npz"]]


# ---- The whole command -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def results(reported):
    predictions = np.load(reported / "predictions.npz")
    numbers = json.loads((reported / "metrics.json").read_text(encoding="utf-8"))
    return numbers, predictions, (reported / "report.html").read_text(encoding="utf-8")


def test_headline_numbers_on_the_page_against_loops(results):
    numbers, predictions, page = results
    page = page.replace("\N{NO-BREAK SPACE}", " ")
    y_true, y_pred = predictions["y_true"].tolist(), predictions["y_pred"].tolist()
    precision, recall, f1 = [], [], []
    for c in range(100):
        hits = sum(t == p == c for t, p in zip(y_true, y_pred, strict=True))
        precision.append(hits / y_pred.count(c) if y_pred.count(c) else 0.0)
        recall.append(hits / y_true.count(c))
        f1.append(2 * hits / (y_pred.count(c) + y_true.count(c)))
    top5 = np.argsort(-predictions["probabilities"], axis=1, kind="stable")[:, :5].tolist()
    expected = [
        sum(t == p for t, p in zip(y_true, y_pred, strict=True)) / len(y_true),
        *(sum(values) / 100 for values in (precision, recall, f1)),
        sum(t in best for t, best in zip(y_true, top5, strict=True)) / len(y_true),
    ]
    assert [numbers[key]["value"] for key in HEADLINE] == pytest.approx(expected, abs=1e-12)
    cards = re.findall(r'<div class="card">(.*?)<b>(.*?)</b><span class="soft">95 % interval (.*?)</', page)
    assert [value for _, value, _ in cards] == [f"{100 * value:.2f} %" for value in expected]
    for key, (_, _, ends) in zip(HEADLINE, cards, strict=True):
        assert ends == f"{100 * numbers[key]['low']:.2f} to {100 * numbers[key]['high']:.2f} %"

    shown = re.sub(r"</?a\b[^>]*>", "", page)  # without the links of the cells
    for c, row in enumerate(numbers["classes"]):
        name = html.escape(row["name"])
        wrong = [p for t, p in zip(y_true, y_pred, strict=True) if t == c != p]
        assert row["most_confused_with_count"] == max([wrong.count(p) for p in wrong], default=0)
        rest = shown[shown.index(f"<td>{name}</td>\n<td>{row['superclass']}</td>") :]
        texts = re.findall(r'<td class="number" data-value="[^"]*">(.*?)</td>', rest)[:4]
        fractions = [f"{100 * column[c]:.1f} %" for column in (precision, recall, f1)]
        assert texts == [*fractions, str(y_pred.count(c))]


def test_every_link_of_the_page_has_its_place(results):
    links = re.findall('href="#(.*?)"', results[2])
    assert len(links) > 12 and set(links) <= set(re.findall('id="(.*?)"', results[2]))


def test_every_file_is_written(results, reported, reported_sets):
    numbers, predictions, _ = results
    y_true, y_pred, probabilities = (predictions[key] for key in ("y_true", "y_pred", "probabilities"))
    assert (y_true.dtype, y_pred.dtype, probabilities.dtype) == (np.int64, np.int64, np.float32)
    assert (y_true == reported_sets[1].labels.numpy()).all() and (
        probabilities.argmax(axis=1) == y_pred
    ).all()
    best = load_checkpoint(reported / "checkpoints" / "best.pt")
    assert numbers["checkpoint_sha256"] == best["sha256"] == str(predictions["checkpoint_sha256"])
    names = {path.stem for path in (reported / "plots").glob("*.png")}
    assert names == {
        *("loss", "accuracy", "learning_rate", "headline_metrics", "worst_classes", "confusion_matrix"),
        *("reliability", "confidence", "risk_coverage", "deletion", "insertion"),
    }
    explanations = numbers["explanations"]
    assert explanations["layer"] == "layer4" and explanations["map_size"] == [4, 4]
    assert len(explanations["deletion"]["centre"]["curve"]) == report.STEPS + 1
    assert not list(reported.rglob("*.tmp"))


def test_failures_are_the_most_confident(results, reported, reported_sets):
    _, predictions, _ = results
    y_true, y_pred, probabilities = (predictions[key] for key in ("y_true", "y_pred", "probabilities"))
    wrong = [i for i in range(400) if y_true[i] != y_pred[i]]
    expected = sorted(wrong, key=lambda i: (-probabilities[i, y_pred[i]], i))[:2]
    with open(reported / "failures" / "failures.csv", newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [int(row["test_index"]) for row in rows] == expected
    test = reported_sets[1]
    for row, i in zip(rows, expected, strict=True):
        assert (row["true_class"], row["predicted_class"], row["file_name"]) == (
            *(test.class_names[c] for c in (y_true[i], y_pred[i])),
            test.filenames[i],
        )
        assert float(row["probability_true"]) == pytest.approx(probabilities[i, y_true[i]], abs=1e-6)
        assert torch.equal(
            decode_image(read_file(str(reported / row["picture"])))[:, ::8, ::8], test.images[i]
        )
        assert decode_image(read_file(str(reported / row["gradcam"]))).shape[-1] > 1000


def edited_checkpoint(change):
    def edit(run):
        path = run / "checkpoints" / "best.pt"
        checkpoint = torch.load(path, weights_only=True)
        change(checkpoint)
        save_checkpoint(path, checkpoint)

    return edit


def damaged(name, content):
    def edit(run):
        (run / name).write_text(content)

    return edit


REFUSED = {
    "no settings": (edited_checkpoint(lambda c: c["config"].pop("settings")), r"best\.pt .*'settings'"),
    "no history": (damaged("logs/history.csv", "epoch\n"), r"history\.csv cannot be used|best\.pt cannot"),
    "wrong validation": (
        edited_checkpoint(lambda c: c.update(val_labels=torch.arange(3))),
        r"best\.pt cannot",
    ),
    "huge weights": (
        edited_checkpoint(lambda c: c["model"]["fc.weight"].fill_(1e38)),
        r"best\.pt cannot be used: with its weights the scores of images are not finite",
    ),
    "stress": (damaged("stress.json", "{}"), r"stress\.json cannot be used as results of stress\.py"),
}


@pytest.mark.parametrize("row", REFUSED)
def test_a_file_that_cannot_be_used_is_one_line(row, finished, small, tmp_path, capsys):
    edit, message = REFUSED[row]
    shutil.copytree(finished, tmp_path / "run")
    edit(tmp_path / "run")
    code, err = outcome(capsys, report.main, ["--run", str(tmp_path / "run")])
    assert_one_line(code, err, message)
    assert not (tmp_path / "run" / "metrics.json").exists()


@pytest.mark.slow
def test_a_checkpoint_alone_gives_the_same_numbers_as_the_newest_run(
    finished, small, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(report, "NUM_FAILURES", 1)
    monkeypatch.setattr(report, "NUM_EXPLAINED", 2)
    shutil.copytree(finished, tmp_path / "runs" / "mine")
    shutil.copy(finished / "checkpoints" / "best.pt", tmp_path / "my weights.pt")
    assert report.main([]) == report.main(["--checkpoint", "my weights.pt"]) == 0
    both = [(tmp_path / "runs" / name / "metrics.json").read_text() for name in ("mine", "my weights")]
    assert both[0] == both[1]
    for name, source in (("mine", "--run runs/mine"), ("my weights", "--checkpoint 'my weights.pt'")):
        page = html.unescape((tmp_path / "runs" / name / "report.html").read_text())
        assert f"\npython report.py {source}</pre>" in page  # how to make this page again
    last = "runs/mine/checkpoints/last.pt"
    assert report.main(["--checkpoint", last]) == 0
    page = (tmp_path / "runs" / "mine" / "report.html").read_text()
    assert f"\npython report.py --checkpoint {last}</pre>" in page
    assert re.search(r"report.html in a browser \(\d\.\d MB\)", capsys.readouterr().out)


@pytest.mark.slow
@pytest.mark.parametrize("size", [8, 16])  # of 8 pixels layer4 leaves one cell
def test_a_network_of_small_images_is_shown_small_images(size, tmp_path, small):
    argv = [*TINY, "--dataset=shapes", f"--image-sizes={size}", "--epochs=1", f"--out={tmp_path}"]
    assert train.main(argv) == report.main(["--run", str(tmp_path)]) == 0
    network, _ = train.load_model(tmp_path / "checkpoints" / "best.pt", torch.device("cpu"))
    images = nn.functional.interpolate(small[1].images / 255, (size, size), mode="bilinear", antialias=True)
    with torch.no_grad():
        expected = network(data.Normalize()(images)).softmax(dim=1)
    found = torch.from_numpy(np.load(tmp_path / "predictions.npz")["probabilities"])
    torch.testing.assert_close(found, expected, rtol=0.02, atol=1e-3)
    # The cost of a convolution goes with the number of its output pixels, that of fc does not.
    *convolutions, fc = [layer["macs"] for layer in count_parameters_and_macs(network)]
    macs = sum(convolutions) * (size / 32) ** 2 + fc
    page = " ".join((tmp_path / "report.html").read_text().split())
    assert f"needs {macs / 1e9:.3f} G multiply-accumulates" in page
    # One cell has no order; for four, at 16 pixels, unrelated maps have about sqrt(2 / pi / 3).
    assert f"have about {'–' if size == 8 else '0.46'}." in page

"""report.py: what it finds, against a second computation in plain loops, and pages of unusual sets."""

import csv
import dataclasses
import html
import json
import math
import re
import shutil
import statistics
from collections import Counter

import evaluate
import numpy as np
import pytest
import torch
from networks import seeded, tiny_resnet
from pages import text
from processes import assert_one_line, outcome
from torch import nn
from torchvision.io import decode_image, read_file

import data
import metrics
import report
from gradcam import GradCAM
from lab import more_metrics
from metrics import expected_calibration_error
from page import plots, sections
from page.plots import save_png
from page.sections import write_plots
from support.checkpoint import read_checkpoint
from support.errors import UserError

HEADLINE = ["accuracy", "macro_precision", "macro_recall", "macro_f1", "top5_accuracy"]


# ---- The numbers -----------------------------------------------------------------------------------------


@pytest.fixture
def logits(small_sets, few_resamples):
    """Of a network that is right about half of the test images."""
    logits = 3 * torch.randn(100, 100, generator=seeded())
    logits[torch.arange(50), small_sets[1].labels[:50]] += 9
    return logits


def test_numbers_against_loops(small_sets, logits):
    train, test = small_sets
    numbers, evaluated = evaluate.evaluate(logits, test, train, (2.5 * logits, test.labels))
    rows, of = logits.double().softmax(dim=1).tolist(), test.superclass_of.tolist()
    answers = [(t, row.index(max(row)), row) for t, row in zip(test.labels.tolist(), rows, strict=True)]
    surest = sorted(answers, key=lambda answer: -max(answer[2]))
    wrong = [t != p for t, p, _ in surest]
    expected = {
        "superclass_accuracy": statistics.mean([float(of[t] == of[p]) for t, p, _ in answers]),
        "errors_within_superclass": statistics.mean([float(of[t] == of[p]) for t, p, _ in answers if t != p]),
        "risk_at_half_coverage": sum(wrong[:50]) / 50,
        "aurc": statistics.mean(sum(wrong[:n]) / n for n in range(1, 101)),
        "mean_confidence": statistics.mean(max(row) for _, _, row in answers),
        "calibration_error_by_chance": more_metrics.calibration_error_by_chance(
            [max(row) for _, _, row in answers]
        ),
        "truth_second": statistics.mean([sorted(row)[-2] == row[t] for t, p, row in answers if t != p]),
    }
    assert {key: numbers[key] for key in expected} == pytest.approx(expected, rel=1e-5)
    sure = [t != p for t, p, row in answers if max(row) > 0.9]
    assert numbers["confident"] == {"answers": len(sure), "wrong": sum(sure)}
    pairs = Counter((t, p) for t, p, _ in answers if t != p)
    count = pairs.most_common(1)[0][1]
    shown = numbers["most_confused_pairs"][0]
    names = [test.class_names.index(shown[key]) for key in ("true", "predicted")]
    assert shown["count"] == count == pairs[tuple(names)]
    for c, row in enumerate(numbers["classes"]):  # of each there is one image
        expected = {"num_train": 3, "num_test": 1, "num_right": sum(t == p == c for t, p, _ in answers)}
        expected["num_predicted"] = sum(p == c for _, p, _ in answers)
        expected["precision"] = expected["num_right"] / max(1, expected["num_predicted"])
        expected["recall"] = expected["num_right"]
        expected["most_confused_with_count"] = 1 - expected["num_right"]
        assert {key: row[key] for key in expected} == pytest.approx(expected)
    coarse = Counter((of[t], of[p]) for t, p, _ in answers)
    found = evaluated["superclass_confusion"]
    assert all(found[pair] == count for pair, count in coarse.items()) and found.sum() == 100
    right = [[max(row) for t, p, row in answers if (t == p) == is_right] for is_right in (True, False)]
    counts = [[sum(int(50 * p) == b for p in group) for b in range(50)] for group in right]
    assert list(numbers["confidence_histogram"].values()) == counts
    # The temperature of the validation logits divides those of the test.
    scaled = (logits / metrics.fit_temperature(2.5 * logits, test.labels)).softmax(dim=1)
    after = expected_calibration_error(test.labels, scaled)
    assert numbers["expected_calibration_error_after_temperature"] == pytest.approx(after)
    counts = numbers["confidence_histogram_after_temperature"]["right"]
    assert counts[49] == ((scaled.amax(dim=1) >= 0.98) & (logits.argmax(dim=1) == test.labels)).sum()


def test_duplicates_are_counted_and_left_out(small_sets, few_resamples):
    def split(values, labels):
        pixels = torch.tensor(values, dtype=torch.uint8)[:, None, None, None].expand(-1, 3, 32, 32)
        return dataclasses.replace(small_sets[1], images=pixels, labels=torch.tensor(labels))

    train, test = split([0, 1, 1, 2], [7, 1, 1, 0]), split([1, 3, 3, 4, 2], [1, 0, 0, 0, 5])
    counts, labels = evaluate.audit_duplicates(train, test, torch.tensor([2, 0, 1, 1, 0]))
    assert labels.tolist() == [1, -1, -1, -1, 0]
    assert counts == {
        "train_images_that_repeat_another": 1,
        "test_images_in_train": 2,
        "with_another_label_there": 1,
        "misclassified_as_labelled_there": 1,
        "accuracy_without_them": 1 / 3,
    }
    # All of them are in training and all are right: of nothing there is no number.
    test = small_sets[1]
    numbers, _ = evaluate.evaluate(torch.eye(100)[test.labels], test, test, None)
    assert numbers["duplicates"]["accuracy_without_them"] is None
    assert numbers["errors_within_superclass"] is None


# ---- A network in memory ---------------------------------------------------------------------------------


def tiny(num_classes):
    torch.manual_seed(0)
    return tiny_resnet(num_classes, 16).eval()


def pictures(labels, names, seed=0):
    """A data set of noise with these labels."""
    pixels = np.random.default_rng(seed).integers(0, 256, (len(labels), 3, 32, 32), dtype=np.uint8)
    return data.from_arrays(pixels, labels, names, name="my_pictures")


@pytest.fixture
def no_reasons(monkeypatch, no_page):
    monkeypatch.setattr(report, "find_reasons", lambda *found: ({}, {}))


LABELS = torch.arange(30)
# {case: (labels, number of classes, images that are taken for the next class)}
CASES = {
    "two unequal classes": ((LABELS > 21).long(), 2, [3, 25]),
    "no mistakes": (LABELS % 7, 7, []),
    "all mistakes": (LABELS % 7, 7, list(range(30))),
    "classes without test images": (LABELS % 3, 9, [1, 2, 5]),
    "no layer to explain": (LABELS % 3, 3, [1, 2, 5]),
}


@pytest.mark.parametrize("case", CASES)
def test_the_page_of_any_set_says_what_holds_for_it(case, quick, tmp_path, monkeypatch, capsys):
    labels, num_classes, wrong = CASES[case]
    names = [f"class_{c}" for c in range(num_classes)]
    test, answers = pictures(labels, names), labels.clone()
    answers[wrong] = (answers[wrong] + 1) % num_classes
    sureness = 1 + 3 * torch.rand(len(labels), 1, generator=seeded())
    logits = sureness * torch.eye(num_classes)[answers] + 0.1 * torch.rand(num_classes, generator=seeded(1))
    monkeypatch.setattr(report, "predict", lambda *some, **more: logits)
    explained = case != "no layer to explain"
    model = tiny(num_classes) if explained else nn.Sequential(nn.Flatten(), nn.Linear(3072, num_classes))
    numbers = report.examine(model, test, pictures(labels, names, 1), out=tmp_path)
    absent = num_classes - len(set(labels.tolist()))
    assert (f"note     {absent} classes have no test image" in capsys.readouterr().out) == (absent > 0)
    assert numbers == json.loads((tmp_path / "metrics.json").read_text(encoding="utf-8"))
    assert numbers["accuracy"]["value"] == pytest.approx(1 - len(wrong) / len(labels))
    written = (tmp_path / "report.html").read_text(encoding="utf-8")
    seen = text(written).replace("None are right", "")
    assert not re.search(r"\b(nan|NaN|None)\b|ResNet|superclass|validation images", seen)
    assert type(model).__name__ in seen and "my_pictures" in seen and numbers["checkpoint_sha256"] in seen
    assert ("first five answers" in seen) == (num_classes > 5)
    assert "python report.py" not in seen and "Training" not in seen
    recalls = metrics.per_class_accuracy(metrics.confusion_matrix(labels, logits.argmax(1), num_classes))
    cells = re.findall(r"<tr><td><a [^>]*>class \d+</a></td>\s*<td [^>]*>(.*?)</td>", written)
    expected = [f"{100 * r:.1f}\N{NO-BREAK SPACE}%" for r in sorted(recalls[~recalls.isnan()].tolist())]
    assert cells[-num_classes:] == expected + ["–"] * int(recalls.isnan().sum())
    assert ("All are right" in seen) == (not wrong)
    assert ("There are no maps" in seen) == (not explained)
    if explained:
        assert ("mistakes" in numbers["covering"]) == bool(wrong)
    else:
        assert not {"maps", "covering"} & numbers.keys() and "answer rather than truth" not in seen
        assert "gradcam" not in (tmp_path / "failures" / "failures.csv").read_text(encoding="utf-8")
    assert any("near chance" in note for note in numbers["notes"]) == (case == "all mistakes")


def test_other_training_images_are_noted_and_results_of_other_weights_stay_without_overwrite(
    no_reasons, few_resamples, finished, small, tmp_path, monkeypatch, capsys
):
    """With another picture added to the training set it is not known any more which ones were trained on."""
    run = shutil.copytree(finished, tmp_path / "run")
    argv, written = ["--run", str(run)], run / "metrics.json"
    assert report.main(argv) == 0
    numbers = json.loads(written.read_text())
    assert "duplicates" in numbers and numbers["notes"] == []
    written.write_text('{"checkpoint_sha256": "of another --mean"}')
    assert_one_line(*outcome(capsys, report.main, argv), "is of other weights.*by --overwrite")
    monkeypatch.setattr(small[0], "digest", "of other images")
    assert report.main([*argv, "--overwrite"]) == 0
    numbers = json.loads(written.read_text())
    assert "duplicates" not in numbers and "not those" in numbers["notes"][0]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16])
def test_a_model_stays_as_it_was(quick, no_page, dtype, tmp_path):
    model = tiny(3).to(dtype).train()
    model[3].eval()  # frozen by the caller
    seen = model.seen = 2 * model[0].weight  # with its graph, as after a pass
    before = {name: value.clone() for name, value in model.state_dict().items()}
    modes = [module.training for module in model.modules()]
    report.examine(model, pictures(LABELS % 3, ["a", "b", "c"]), out=tmp_path)
    assert [module.training for module in model.modules()] == modes and model.seen is seen
    torch.testing.assert_close(dict(model.state_dict()), before, rtol=0, atol=0)


def test_every_file_is_written(quick, tmp_path, monkeypatch):
    monkeypatch.setattr(plots, "save_png", save_png)
    monkeypatch.setattr(sections, "write_plots", write_plots)
    for name in ("failures/03_apple_as_pear.png", "gradcam/20_b_as_c.png", "failures/my notes.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("of an earlier report, or not")
    names = ["a/b", "../c", "c*/d", "é/"]
    test, train = pictures(LABELS % 4, names), pictures(LABELS % 4, names, 1)
    train.images[5], train.labels[5] = test.images[0], 3
    model = tiny(4)
    numbers = report.examine(model, test, train, out=tmp_path, layer="3")
    with torch.no_grad():
        expected = model(test.images / 255).softmax(dim=1)
    written = np.load(tmp_path / "predictions.npz")
    torch.testing.assert_close(torch.from_numpy(written["probabilities"]), expected)
    assert (written["y_true"] == test.labels.numpy()).all() and written["y_true"].dtype == np.int64
    assert (written["y_pred"] == expected.argmax(dim=1).numpy()).all() and written["y_pred"].dtype == np.int64
    assert written["filenames"].tolist() == test.filenames
    drawn = {path.name for path in (tmp_path / "plots").iterdir()}
    assert drawn == {"headline_metrics.png", "worst_classes.png", "confusion_matrix.png"}
    assert numbers["maps"]["layer"] == "3" and numbers["maps"]["size"] == [8, 8]

    wrong = [i for i in range(30) if expected[i].argmax() != test.labels[i]]
    surest = sorted(wrong, key=lambda i: (-expected[i].max(), i))[:2]
    found = np.load(tmp_path / "evidence.npz")  # in order of the most confident ones
    assert found["mistakes"][:2].tolist() == surest
    answers = expected[surest].argmax(dim=1)
    with GradCAM(model, "3") as cam:
        (maps,) = cam.pairs(test.images[surest] / 255, [(answers, test.labels[surest])])
    torch.testing.assert_close(torch.from_numpy(found["maps"][:2]), maps)
    assert found["fill"] == pytest.approx((train.images / 255).double().mean(dim=(0, 2, 3)).numpy())
    with open(tmp_path / "failures" / "failures.csv", newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [int(row["test_index"]) for row in rows] == surest
    for row, i in zip(rows, surest, strict=True):
        assert (row["true_class"], row["file_name"]) == (names[test.labels[i]], test.filenames[i])
        assert float(row["probability_true"]) == pytest.approx(expected[i, test.labels[i]].item(), abs=1e-6)
        assert row["label_in_training"] == ("é/" if i == 0 else "")
        large = decode_image(read_file(str(tmp_path / row["picture"])))
        assert torch.equal(large[:, ::8, ::8], test.images[i])
        assert decode_image(read_file(str(tmp_path / row["gradcam"]))).shape[-1] > 1000
    pictures_there = {path.name for path in (tmp_path / "failures").iterdir()}
    assert pictures_there == {"failures.csv", "my notes.txt", *(row["picture"][9:] for row in rows)}
    assert not list(tmp_path.rglob("*.tmp"))


def test_results_of_other_weights_and_scores_that_are_not_finite_are_refused(quick, no_reasons, tmp_path):
    test, model = pictures(LABELS % 3, ["a", "b", "c"]), tiny(3)
    report.examine(model, test, out=tmp_path)
    report.examine(model, test, out=tmp_path)  # the same weights replace their own
    nn.init.constant_(model[-1].bias, 1)
    with pytest.raises(UserError, match="of other weights"):
        report.examine(model, test, out=tmp_path)
    assert report.examine(model, test, out=tmp_path / "new")
    nn.init.constant_(model[-1].bias, math.inf)
    with pytest.raises(UserError, match="not finite"):
        report.examine(model, test, out=tmp_path / "other")
    assert not (tmp_path / "other" / "metrics.json").exists()


# ---- The command -----------------------------------------------------------------------------------------


def test_the_command_reports_a_run_and_its_page_is_made_again_of_the_files(
    quick, finished, small, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    run = shutil.copytree(finished, tmp_path / "runs" / "mine")
    shutil.copy(finished / "checkpoints" / "best.pt", tmp_path / "my weights.pt")
    assert report.main([]) == 0
    printed = capsys.readouterr().out
    assert "best.pt" in printed and "parameters" in printed and "layer4" in printed
    alone = ["--checkpoint", "my weights.pt", "--out", "elsewhere", "--layer", "none"]
    assert report.main(alone) == 0
    both = [json.loads((tmp_path / name / "metrics.json").read_text()) for name in ("runs/mine", "elsewhere")]
    for numbers in both:
        assert numbers.pop("command") and numbers.pop("network")
        assert numbers.pop("training")["last_cutmix"] == 0
    assert both[0].pop("maps") and both[0].pop("covering") and both[0] == both[1]
    commands = {"runs/mine": ["--run runs/mine"]}
    commands["elsewhere"] = ["--checkpoint 'my weights.pt'", "--layer none", "--out elsewhere"]
    for folder, options in commands.items():
        command = " \\\n    ".join(["<pre>python report.py", *options])  # a line for each
        page = html.unescape((tmp_path / folder / "report.html").read_text())
        assert f"{command}</pre>" in page and "python train.py \\\n    --dataset shapes" in page
        tested = " \\\n    ".join(
            ["<pre>python -m lab.stress", *options]
        )  # it was not run: the command to copy
        assert f"{tested}</pre>" in page and "It was tested by" not in page
    history = read_checkpoint(finished / "checkpoints" / "best.pt")["history"]
    best = 100 * max(row["val_accuracy"] for row in history)
    assert f"the best of {len(history)} on validation images ({best:.1f} %)" in text(page)

    # From here on there is no network any more.
    made = (run / "report.html").read_bytes()
    for name in ("report.html", "checkpoints/best.pt"):
        (run / name).unlink()
    shutil.rmtree(run / "failures")
    again = ["--run", "runs/mine", "--page"]
    assert report.main(again) == 0
    assert (run / "report.html").read_bytes() == made and (run / "failures" / "failures.csv").is_file()
    # Files of two reports are not mixed: such a folder is left by a report that was killed between two files.
    numbers = json.loads((run / "metrics.json").read_text())
    for key in ("checkpoint_sha256", "labels_sha256", "runs", "class_names"):
        other = {"other": 1} if key == "runs" else "another"
        (run / "metrics.json").write_text(json.dumps(numbers | {key: other}))
        assert_one_line(*outcome(capsys, report.main, again), r"predictions\.npz is of another report")
    (run / "metrics.json").write_text(json.dumps(numbers))
    monkeypatch.setattr(report, "load", lambda *some: (small[1], small[0]))
    assert_one_line(*outcome(capsys, report.main, again), "are not those of .*--dataset")
    assert_one_line(*outcome(capsys, report.main, ["--out", "no", "--page"]), "there is no")


def test_classes_of_the_training_set_are_found_by_their_names(quick, no_page, tmp_path):
    test = pictures(LABELS % 3, ["a", "b", "c"])
    train = dataclasses.replace(test, class_names=["c", "a", "b"], labels=(test.labels + 1) % 3)
    numbers = report.examine(tiny(3), test, train, out=tmp_path)
    assert numbers["duplicates"]["test_images_in_train"] == 30
    assert numbers["duplicates"]["with_another_label_there"] == 0
    other = dataclasses.replace(train, class_names=["x", "a", "b"])
    with pytest.raises(UserError, match="have other classes"):
        report.examine(tiny(3), test, other, out=tmp_path)

"""report.py: its numbers against plain loops, and what the command leaves against second computations."""

import csv
import dataclasses
import json
import math
import os
import re
import shutil
import statistics
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from networks import seeded, small_resnet
from PIL import Image
from processes import assert_one_line, contents, outcome
from torchvision.io import decode_image, read_file
from torchvision.transforms.functional import normalize, resize

import data
import metrics
import report
from page import write
from resnet_cifar import resnet18
from support.checkpoint import read_checkpoint, save_checkpoint
from support.errors import UserError

# ---- The numbers -----------------------------------------------------------------------------------------


@pytest.fixture
def logits(small_sets, few_resamples):
    """Of a network that is right about half of the test images."""
    logits = 3 * torch.randn(100, 100, generator=seeded())
    logits[torch.arange(50), small_sets[1].labels[:50]] += 9
    return logits


def test_numbers_against_loops(small_sets, logits):
    train, test = small_sets
    numbers, arrays = report.evaluate(logits, test, train, (2.5 * logits, test.labels))
    rows, group = logits.double().softmax(dim=1).tolist(), test.superclass_of.tolist()
    answers = [(t, row.index(max(row)), row) for t, row in zip(test.labels.tolist(), rows, strict=True)]
    expected = {
        "num_test": 100,
        "superclass_accuracy": statistics.mean(float(group[t] == group[p]) for t, p, _ in answers),
        "errors_within_superclass": statistics.mean(
            float(group[t] == group[p]) for t, p, _ in answers if t != p
        ),
        "mean_confidence": statistics.mean(max(row) for _, _, row in answers),
    }
    assert {key: numbers[key] for key in expected} == pytest.approx(expected, rel=1e-5)
    sure = [t != p for t, p, row in answers if max(row) > 0.9]
    assert numbers["confident"] == {"answers": len(sure), "wrong": sum(sure)}
    pairs = Counter((test.class_names[t], test.class_names[p]) for t, p, _ in answers if t != p)
    listed = [((pair["true"], pair["predicted"]), pair["count"]) for pair in numbers["most_confused_pairs"]]
    assert [count for _, count in listed] == sorted(pairs.values(), reverse=True)[:20]
    assert all(pairs[pair] == count for pair, count in listed) and len(dict(listed)) == len(listed)
    for c, row in enumerate(numbers["classes"]):  # of each there is one image
        expected = {"num_train": 3, "num_test": 1, "num_right": sum(t == p == c for t, p, _ in answers)}
        expected["num_predicted"] = sum(p == c for _, p, _ in answers)
        expected["precision"] = expected["num_right"] / max(1, expected["num_predicted"])
        expected["recall"] = expected["num_right"]
        expected["f1"] = 2 * expected["num_right"] / (1 + expected["num_predicted"])
        expected["most_confused_with_count"] = 1 - expected["num_right"]
        assert {key: row[key] for key in expected} == pytest.approx(expected)
        others = [test.class_names[p] for t, p, _ in answers if t == c != p]
        assert row["most_confused_with"] == "".join(others)
    wrong = [i for i, (t, p, _) in enumerate(answers) if t != p]
    assert arrays["mistakes"].tolist() == sorted(wrong, key=lambda i: -max(answers[i][2]))
    for key, number in (("confusion", range(100)), ("superclass_confusion", group)):
        counts = Counter((number[t], number[p]) for t, p, _ in answers)
        assert all(arrays[key][pair] == count for pair, count in counts.items()) and arrays[key].sum() == 100
    right = [[max(row) for t, p, row in answers if (t == p) == is_right] for is_right in (True, False)]
    counts = [[sum(int(50 * p) == b for p in group) for b in range(50)] for group in right]
    assert list(numbers["confidence_histogram"].values()) == counts
    # The temperature of the validation logits divides those of the test.
    scaled = (logits / metrics.fit_temperature(2.5 * logits, test.labels)).softmax(dim=1)
    after = metrics.expected_calibration_error(test.labels, scaled)
    assert numbers["expected_calibration_error_after_temperature"] == pytest.approx(after)
    counts = numbers["confidence_histogram_after_temperature"]["right"]
    assert counts[49] == ((scaled.amax(dim=1) >= 0.98) & (logits.argmax(dim=1) == test.labels)).sum()


def test_duplicates_are_counted_and_left_out(small_sets, few_resamples):
    def split(values, labels):
        pixels = torch.tensor(values, dtype=torch.uint8)[:, None, None, None].expand(-1, 3, 32, 32)
        return dataclasses.replace(small_sets[1], images=pixels, labels=torch.tensor(labels))

    train, test = split([0, 1, 1, 2], [7, 1, 1, 0]), split([1, 3, 3, 4, 2], [1, 0, 0, 0, 5])
    labels, num_repeats = data.find_copies(train, test)
    assert labels.tolist() == [1, -1, -1, -1, 0]
    assert report.count_duplicates(labels, num_repeats, test.labels, torch.tensor([2, 0, 1, 1, 0])) == {
        "train_images_that_repeat_another": 1,
        "test_images_in_train": 2,
        "with_another_label_there": 1,
        "misclassified_as_labelled_there": 1,
        "accuracy_without_them": 1 / 3,
    }
    # All of them are in training and all are right: of nothing there is no number.
    test = small_sets[1]
    numbers, arrays = report.evaluate(torch.eye(100)[test.labels], test, test, None)
    assert numbers["duplicates"]["accuracy_without_them"] is numbers["errors_within_superclass"] is None
    assert report.explain_mistakes(None, None, test.images, arrays) == {}


def test_answers_are_in_the_order_of_the_images_at_the_size_of_the_network(small_sets):
    images, network = small_sets[1].images[:70], small_resnet()  # more than one batch
    model = report.FromPixels(network, 24, data.Normalize())
    pixels = resize(images / 255, 24, antialias=True)
    with torch.no_grad():
        expected = network(normalize(pixels, data.MEAN, data.STD))
    torch.testing.assert_close(report.predict(model, images, "cpu"), expected, rtol=1e-4, atol=1e-4)
    for other in (images / 255, images[0]):
        with pytest.raises(ValueError, match=r"images must be uint8 \[N, 3, S, S\], not torch\.\w+ \["):
            report.predict(model, other, "cpu")


# ---- What is left in a folder ----------------------------------------------------------------------------


def test_every_file_of_a_run_is_written(run_with_report, finished, small_sets):
    """Answers and maps again, of the weights alone; behind layer4 the map is that of CAM, in closed form."""
    test, best = small_sets[1], torch.load(finished / "checkpoints" / "best.pt", weights_only=True)
    network, activations = resnet18(100, 16).eval(), []
    network.load_state_dict(best["model"])
    network.layer4.register_forward_hook(lambda layer, inputs, output: activations.append(output))
    with torch.no_grad():
        expected = network(normalize(test.images / 255, data.MEAN, data.STD)).softmax(dim=1)
    answers = expected.argmax(dim=1)
    written = np.load(run_with_report / "predictions.npz")
    logits = torch.from_numpy(written["logits"])
    for probabilities in (torch.from_numpy(written["probabilities"]), logits.softmax(dim=1)):
        torch.testing.assert_close(probabilities, expected, rtol=1e-4, atol=1e-6)
    for key, value in (("y_true", test.labels), ("y_pred", answers), ("filenames", test.filenames)):
        assert written[key].tolist() == list(value)
    wrong = [i for i in range(100) if answers[i] != test.labels[i]]
    surest = sorted(wrong, key=lambda i: -expected[i].max())
    assert written["mistakes"].tolist() == surest
    for key, classes in (("maps_predicted", answers), ("maps_true", test.labels)):
        chosen = activations[0][surest[:3]]
        weights = network.fc.weight.detach()[classes[surest[:3]]] / chosen[0, 0].numel()
        maps = torch.einsum("nk,nkhw->nhw", weights, chosen).relu()
        torch.testing.assert_close(torch.from_numpy(written[key]), maps, rtol=1e-3, atol=1e-5)
    with open(run_with_report / "failures" / "failures.csv", newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [int(row["test_index"]) for row in rows] == surest[:3]
    for row, i in zip(rows, surest, strict=False):
        named = (row["true_class"], row["predicted_class"], row["file_name"])
        assert named == (test.class_names[test.labels[i]], test.class_names[answers[i]], test.filenames[i])
        for kind, c in (("true", test.labels[i]), ("predicted", answers[i])):
            assert float(row[f"probability_{kind}"]) == pytest.approx(expected[i, c].item(), abs=1e-5)
        large = decode_image(read_file(str(run_with_report / row["picture"])))
        assert torch.equal(large[:, ::8, ::8], test.images[i])
    for folder, more in (("failures", ["failures.csv", "my notes.txt"]), ("gradcam", [])):
        pictures = [Path(row["picture"]).name for row in rows]
        assert sorted(os.listdir(run_with_report / folder)) == sorted(pictures + more)
    names = ["accuracy", "confusion_matrix", "headline_metrics", "loss", "worst_classes"]
    assert sorted(os.listdir(run_with_report / "plots")) == [f"{name}.png" for name in names]
    numbers = numbers_in(run_with_report)
    assert numbers["training"]["epoch"] == best["epoch"] and len(numbers["training"]["history"]) == 3
    assert numbers["command"] == f"python report.py --run '{run_with_report}'"
    assert not list(run_with_report.rglob("*.tmp"))


# ---- The command -----------------------------------------------------------------------------------------


def numbers_in(folder):
    return json.loads((folder / "metrics.json").read_text(encoding="utf-8"))


@pytest.fixture
def no_page(monkeypatch, few_resamples):
    """Numbers only, in a moment."""
    monkeypatch.setattr(write, "write_page", lambda *arguments: None)


def test_a_run_or_a_checkpoint_is_examined(no_page, finished, small, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    shipped = r"no finished epoch of a run .*--checkpoint weights/resnet18_cifar100\.pt takes the network"
    assert_one_line(*outcome(capsys, report.main, []), shipped)
    for age, name in ((100, "old"), (0, "new"), (50, "other")):
        best = shutil.copytree(finished, Path("runs") / name) / "checkpoints" / "best.pt"
        os.utime(best, (best.stat().st_mtime - age,) * 2)
    shutil.copy("runs/old/checkpoints/best.pt", "my weights.pt")
    last = "runs/old/checkpoints/last.pt"  # is not what the results of a run are of
    examined = {"runs/new": [], "runs/old": ["--run", "runs/old"], "runs/last": ["--checkpoint", last]}
    examined |= {"runs/my weights": ["--checkpoint", "my weights.pt"]}
    for folder, argv in examined.items():
        assert report.main(argv) == 0
        printed, numbers = capsys.readouterr().out, numbers_in(Path(folder))
        named = " ".join(argv) or "--run runs/new"
        assert f"{folder}/report.html" in printed and f"lab.examine {named}:" in printed
        for name, key in (("accuracy", "accuracy"), ("top-5 accuracy", "top5_accuracy")):
            value, low, high = (100 * numbers[key][end] for end in ("value", "low", "high"))
            assert re.search(rf"\n{name} +{value:.2f} %   95 % interval {low:.2f} to {high:.2f} %\n", printed)
    digests = [numbers_in(Path(folder))["checkpoint_sha256"] for folder in examined]
    assert digests[0] == digests[1] == digests[3] == read_checkpoint("my weights.pt")["sha256"] != digests[2]
    # A folder of other weights stays as it is, and one of the same is written again.
    alone = ["--checkpoint", "my weights.pt", "--out"]
    before = contents(tmp_path)
    message = r"runs/last/metrics\.json is of other weights: give another --out"
    assert_one_line(*outcome(capsys, report.main, [*alone, "runs/last"]), message)
    assert contents(tmp_path) == before and report.main([*alone, "runs/old"]) == 0
    Path("runs/old/config.json").unlink()
    message = r"no runs/old/config\.json, .* run .* has: give --checkpoint runs/old/checkpoints/best\.pt"
    assert_one_line(*outcome(capsys, report.main, ["--run", "runs/old"]), message)
    assert_one_line(*outcome(capsys, report.main, ["--run", "runs"]), "no finished epoch in runs: expected")


def test_where_cifar_lies(tmp_path):
    here, gone = str(tmp_path), str(tmp_path / "gone")
    for given, recorded, root in ((None, here, here), (None, gone, "data"), ("mine", here, "mine")):
        config = {"dataset": "cifar100", "settings": {"data_dir": recorded}}
        assert report.find_data(config, given) == ("cifar100", root)


def test_a_folder_of_pictures_that_has_moved(no_page, finished, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for split, grey in (("train", 0), ("test", 100)):
        for name, shift in (("cat", 0), ("dog", 50)):
            folder = Path("pets", split, name)
            folder.mkdir(parents=True)
            Image.new("RGB", (40, 60), (grey + shift,) * 3).save(folder / "a.png")
    best = read_checkpoint(finished / "checkpoints" / "best.pt")
    digest = data.load("pets", size=16)[0].digest
    best["config"] |= {"dataset": "pets", "image_size": 16, "digest": digest}
    best |= {"class_names": ["cat", "dog"], "model": resnet18(2, 16).state_dict()}
    del best["val_logits"]
    save_checkpoint("pets.pt", best)
    Path("pets").rename("moved")
    argv = ["--checkpoint", "pets.pt", "--out", "out"]
    assert_one_line(*outcome(capsys, report.main, argv), "no data set or folder pets")
    argv += ["--data-dir", "moved"]
    assert report.main(argv) == 0
    numbers = numbers_in(Path("out"))
    assert (numbers["data"]["dataset"], numbers["data"]["size"], numbers["num_test"]) == ("moved", 16, 2)
    assert "duplicates" in numbers and numbers["notes"] == [] and "temperature" not in numbers
    assert "top-5" not in capsys.readouterr().out  # of two classes
    # With one more picture it is not known any more which ones were trained on.
    Image.new("RGB", (40, 60)).save("moved/train/cat/new.png")
    assert report.main(argv) == 0
    assert "\nnote     the training images found are not those of the training" in capsys.readouterr().out
    assert "duplicates" not in numbers_in(Path("out"))
    for split in ("train", "test"):
        Path("moved", split, "dog").rename(f"moved/{split}/cow")
    message = "the classes of folder moved are not those of the checkpoint: give its --data-dir"
    assert_one_line(*outcome(capsys, report.main, argv), message)


def test_a_checkpoint_that_is_damaged_or_not_finite_is_refused(no_page, finished, small, tmp_path, capsys):
    best, path = read_checkpoint(finished / "checkpoints" / "best.pt"), tmp_path / "x.pt"
    for key in ("model", "class_names", "config"):
        save_checkpoint(path, {name: value for name, value in best.items() if name != key})
        with pytest.raises(UserError, match=r"x\.pt cannot be used as a checkpoint of train\.py: KeyError"):
            report.load_network(path)
    save_checkpoint(path, best | {"class_names": ["with\na line", *best["class_names"][1:]]})
    _, rest = report.load_network(path)
    assert rest["class_names"][0] == "with a line" and rest["validation"][0].dtype == torch.float32
    best["model"]["fc.bias"][0] = math.inf
    save_checkpoint(path, best)
    argv = ["--checkpoint", str(path), "--out", str(tmp_path / "out")]
    message = r"x\.pt cannot be used: its scores of the test images are not finite"
    assert_one_line(*outcome(capsys, report.main, argv), message)
    assert not (tmp_path / "out").exists()

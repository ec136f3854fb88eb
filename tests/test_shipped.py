"""weights/resnet18_cifar100.pt and the files in results/ are of one network, and agree with each other."""

import csv
import hashlib
import json
import os
import re
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
import torch
from test_resnet import torchvision_resnet18
from torchvision.io import write_png
from torchvision.transforms.functional import normalize

import data
import explain
from classifier import load_checkpoint
from metrics import proportion
from train import Config

RESULTS = Path(data.__file__).parent / "results"
ONE_CHANGE = ["plain0/", "plain1/", "smooth0/", "corrupt/", "adversarial/"]
WEIGHTS = RESULTS.parent / "weights" / "resnet18_cifar100.pt"


def read(name):
    path = RESULTS / name
    if path.suffix == ".npz":
        with np.load(path) as file:
            return dict(file)
    text = path.read_text(encoding="utf-8")
    return json.loads(text) if path.suffix == ".json" else list(csv.DictReader(text.splitlines()))


@pytest.fixture(scope="module")
def checkpoint():
    return torch.load(WEIGHTS, weights_only=True)


@pytest.fixture(scope="module")
def cifar100_test():
    if "CIFAR100_ROOT" not in os.environ:
        pytest.skip("CIFAR100_ROOT names no folder with CIFAR-100")
    return data.load("cifar100", os.environ["CIFAR100_ROOT"])[1]


def test_the_file_is_small_and_the_best_epoch_of_the_default_recipe(checkpoint):
    assert WEIGHTS.stat().st_size < 26e6
    assert {t.dtype for t in checkpoint["model"].values()} == {torch.float16, torch.int64}
    assert checkpoint["config"] == read("config.json")
    best = max(read("logs/history.csv"), key=lambda row: float(row["val_accuracy"]))
    assert checkpoint["epoch"] == int(best["epoch"])
    saved, default = checkpoint["config"]["settings"], asdict(Config())  # train.py without options
    for name in (saved.keys() & default.keys()) - {"out"}:
        assert saved[name] == default[name], name


@pytest.mark.parametrize("folder", ["", "seed1/", "seed2/", *ONE_CHANGE])
def test_metrics_are_those_of_the_predictions(folder, checkpoint):
    metrics, predictions = read(f"{folder}metrics.json"), read(f"{folder}predictions.npz")
    assert metrics["checkpoint_sha256"] == str(predictions["checkpoint_sha256"])
    y_true, y_pred = predictions["y_true"], predictions["y_pred"]
    assert (predictions["probabilities"].argmax(axis=1) == y_pred).all()
    hits = np.bincount(y_true[y_true == y_pred], minlength=100)
    f1 = 2 * hits / (np.bincount(y_true, minlength=100) + np.bincount(y_pred, minlength=100))
    assert metrics["accuracy"]["value"] == np.mean(y_true == y_pred)
    assert metrics["macro_f1"]["value"] == pytest.approx(f1.mean(), abs=1e-12)
    assert [row["f1"] for row in metrics["classes"]] == pytest.approx(f1, abs=1e-12)
    if folder in ONE_CHANGE:
        assert metrics["checkpoint_sha256"] == read(f"{folder}stress.json")["checkpoint_sha256"]
    if not folder:
        assert metrics["accuracy"]["value"] == checkpoint["test_accuracy"]
        digest = hashlib.sha256(WEIGHTS.read_bytes()).hexdigest()
        assert metrics["checkpoint_sha256"] == read("stress.json")["checkpoint_sha256"] == digest


def test_failures_are_the_most_confident_mistakes(checkpoint):
    predictions, names = read("predictions.npz"), checkpoint["class_names"]
    confidence = predictions["probabilities"].max(axis=1)
    confidence[predictions["y_true"] == predictions["y_pred"]] = 0
    order = (-confidence).argsort(kind="stable")
    for row, index in zip(read("failures/failures.csv"), order, strict=False):
        assert int(row["test_index"]) == index
        assert row["true_class"] == names[predictions["y_true"][index]]
        assert row["predicted_class"] == names[predictions["y_pred"][index]]


def test_nothing_in_results_names_a_place_of_one_machine():
    for path in RESULTS.rglob("*"):
        if path.suffix in (".json", ".csv", ".md"):
            assert not re.search(r"/(home|root|tmp|work|Users)\b", path.read_text(encoding="utf-8")), path


@pytest.mark.slow
def test_accuracy_in_torchvisions_network(checkpoint, cifar100_test):
    """On three test images of each class: within the interval that so many images allow."""
    ours, theirs = load_checkpoint(WEIGHTS, torch.device("cpu")), torchvision_resnet18().eval()
    theirs.load_state_dict(checkpoint["model"], strict=True)
    index = cifar100_test.labels.argsort(stable=True).view(100, 100)[:, :3].flatten()
    images = cifar100_test.images[index] / 255
    with torch.no_grad():
        logits = theirs(normalize(images, data.MEAN, data.STD))
        torch.testing.assert_close(ours.model(images[:100]), logits[:100], rtol=1e-3, atol=1e-3)
    interval = proportion((logits.argmax(dim=1) == cifar100_test.labels[index]).sum(), 300)
    assert interval["low"] < checkpoint["test_accuracy"] < interval["high"]


@pytest.mark.slow
def test_a_newcomer_explains_a_picture(cifar100_test, tmp_path, monkeypatch, capsys):
    """explain.py with nothing but a picture, on enlarged test images: most are named right."""
    monkeypatch.chdir(tmp_path)
    right = 0
    for i in range(6):
        write_png(cifar100_test.images[i].repeat_interleave(5, 1).repeat_interleave(5, 2), f"{i}.png")
        explain.main([f"{i}.png"])
        likeliest = capsys.readouterr().out.splitlines()[1]  # below the head of the table
        right += likeliest.startswith(cifar100_test.class_names[cifar100_test.labels[i]])
    assert right >= 3 and len(list(tmp_path.glob("*_gradcam.png"))) == 6

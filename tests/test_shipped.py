"""weights/resnet18_cifar100.pt and results/: that they are what README.md says."""

import csv
import json
import os
import re
from dataclasses import asdict
from pathlib import Path

import pytest
import torch
from test_resnet import torchvision_resnet18
from torchvision.io import write_png
from torchvision.transforms.functional import convert_image_dtype, normalize

import data
import gradcam
from metrics import proportion
from sources import cifar100
from train import Config, load_model

ROOT = Path(__file__).parent.parent
WEIGHTS = ROOT / "weights" / "resnet18_cifar100.pt"


@pytest.fixture(scope="module")
def checkpoint():
    return torch.load(WEIGHTS, weights_only=True)


@pytest.fixture(scope="module")
def results():
    return {
        name: json.loads((ROOT / "results" / f"{name}.json").read_text()) for name in ("config", "metrics")
    }


@pytest.fixture(scope="module")
def cifar100_test():
    if "CIFAR100_ROOT" not in os.environ:
        pytest.skip("CIFAR100_ROOT names no folder with CIFAR-100")
    return data.load("cifar100", os.environ["CIFAR100_ROOT"])[1]


@pytest.fixture(scope="module")
def theirs(checkpoint):
    """The shipped weights in torchvision's own network."""
    model = torchvision_resnet18()
    model.load_state_dict(checkpoint["model"], strict=True)
    return model.eval()


def test_the_file_is_small_half_precision_and_a_checkpoint_of_the_run(checkpoint, results):
    assert WEIGHTS.stat().st_size < 26e6
    assert {t.dtype for t in checkpoint["model"].values()} == {torch.float16, torch.int64}
    assert checkpoint["config"] == results["config"]
    assert checkpoint["class_names"] == cifar100.CLASS_NAMES
    best = max(read_history(), key=lambda row: float(row["val_accuracy"]))
    assert checkpoint["epoch"] == int(best["epoch"])
    assert checkpoint["val_accuracy"] == pytest.approx(float(best["val_accuracy"]), abs=1e-9)
    # Half precision may not move the accuracy by more than a tenth of a point.
    assert abs(checkpoint["test_accuracy"] - results["metrics"]["accuracy"]["value"]) < 0.001


def test_the_shipped_network_is_that_of_train_py_without_options(results):
    assert results["config"]["settings"] == asdict(Config())


def read_history():
    with open(ROOT / "results" / "history.csv", newline="") as file:
        return list(csv.DictReader(file))


def test_readme_states_what_was_measured(results):
    accuracy = results["metrics"]["accuracy"]["value"]
    for name in ("README.md", "results/README.md"):
        assert f"{100 * accuracy:.2f} %" in (ROOT / name).read_text(), name


def test_nothing_in_results_names_a_place_of_one_machine():
    for path in (ROOT / "results").rglob("*"):
        if path.suffix in (".json", ".csv", ".md"):
            assert not re.search(r"/(home|root|tmp|work|Users)\b", path.read_text()), path


@pytest.mark.slow
def test_accuracy_in_torchvisions_network(theirs, checkpoint, cifar100_test):
    """On 1,000 test images, ten of each class: within the interval that so many images allow."""
    index = cifar100_test.labels.argsort(stable=True).view(100, 100)[:, :10].flatten()
    x = normalize(convert_image_dtype(cifar100_test.images[index]), data.MEAN, data.STD)
    with torch.no_grad():
        logits = theirs(x)
    right = int((logits.argmax(dim=1) == cifar100_test.labels[index]).sum())
    interval = proportion(right, len(index))
    assert interval["low"] < checkpoint["test_accuracy"] < interval["high"]
    ours, _ = load_model(WEIGHTS, torch.device("cpu"))
    with torch.no_grad():
        some = ours(data.to_input(cifar100_test.images[index[:100]]))
    torch.testing.assert_close(some, logits[:100], rtol=1e-3, atol=1e-3)


@pytest.mark.slow
def test_a_newcomer_explains_a_picture(cifar100_test, tmp_path, monkeypatch, capsys):
    """gradcam.py with nothing but a picture, on enlarged test images: most are named right."""
    monkeypatch.chdir(tmp_path)
    named = 0
    for i in range(8):
        write_png(cifar100_test.images[i].repeat_interleave(5, 1).repeat_interleave(5, 2), f"{i}.png")
        gradcam.main([f"{i}.png"])
        first = capsys.readouterr().out.splitlines()[1]
        named += first.startswith(cifar100_test.class_names[cifar100_test.labels[i]])
        assert Path(f"{i}_gradcam.png").stat().st_size > 10_000
    assert named >= 4

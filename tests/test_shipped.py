"""weights/resnet18_cifar100.pt is as accurate as it says, and results/ names no place of one machine."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from test_resnet import torchvision_resnet18
from torchvision.transforms.functional import normalize

import data
import report
from metrics import proportion

ROOT = Path(data.__file__).parent
WEIGHTS = "weights/resnet18_cifar100.pt"


def test_nothing_in_results_names_a_place_of_one_machine():
    for path in (ROOT / "results").rglob("*"):
        if path.suffix in (".json", ".csv", ".md"):
            assert not re.search(r"/(home|root|tmp|work|Users)\b", path.read_text(encoding="utf-8")), path


@pytest.mark.slow
def test_accuracy_in_torchvisions_network():
    """On three test images of each class: within the interval that so many images allow."""
    if "CIFAR100_ROOT" not in os.environ:
        pytest.skip("CIFAR100_ROOT names no folder with CIFAR-100")
    _, test = data.load("cifar100", os.environ["CIFAR100_ROOT"])
    checkpoint = torch.load(ROOT / WEIGHTS, weights_only=True)
    network, _ = report.load_network(ROOT / WEIGHTS)
    ours = report.FromPixels(network, 32, data.Normalize())
    theirs = torchvision_resnet18(checkpoint["model"])
    index = test.labels.argsort(stable=True).view(100, 100)[:, :3].flatten()
    images = test.images[index] / 255
    with torch.no_grad():
        logits = theirs(normalize(images, data.MEAN, data.STD))
        torch.testing.assert_close(ours(images[:100]), logits[:100], rtol=1e-3, atol=1e-3)
    interval = proportion((logits.argmax(dim=1) == test.labels[index]).sum(), 300)
    assert interval["low"] < checkpoint["test_accuracy"] < interval["high"]


LOAD = """
import sys
sys.modules["numpy"] = sys.modules["matplotlib"] = sys.modules["torchvision"] = None  # as if not installed
import torch
model = torch.hub.load("hub", "resnet18_cifar100", source="local", pretrained=True)
torch.save([model(torch.load("images.pt")), model.class_names, model.training], "found.pt")
"""


@pytest.mark.slow
def test_torch_hub_loads_them_from_a_folder_with_no_more_of_the_project_than_it_needs(tmp_path):
    """In a process of its own, with the logits of torchvision's network."""
    running = [f"support/{name}.py" for name in ("errors", "files", "checkpoint")]
    for name in ("hubconf.py", "resnet_cifar.py", *running, WEIGHTS):
        (tmp_path / "hub" / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, tmp_path / "hub" / name)
    images = torch.linspace(-2, 2, 2 * 3 * 32 * 32).view(2, 3, 32, 32).sin()
    torch.save(images, tmp_path / "images.pt")
    subprocess.run([sys.executable, "-W", "ignore", "-c", LOAD], cwd=tmp_path, check=True)
    checkpoint = torch.load(ROOT / WEIGHTS, weights_only=True)
    logits, class_names, training = torch.load(tmp_path / "found.pt")
    expected = torchvision_resnet18(checkpoint["model"])(images)
    torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-4)
    assert class_names == checkpoint["class_names"] and not training

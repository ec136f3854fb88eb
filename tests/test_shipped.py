"""weights/resnet18_cifar100.pt is as accurate as it says, and results/ names no place of one machine."""

import os
import re
from pathlib import Path

import pytest
import torch
from test_resnet import torchvision_resnet18
from torchvision.transforms.functional import normalize

import data
from classifier import load_checkpoint
from metrics import proportion

RESULTS = Path(data.__file__).parent / "results"
WEIGHTS = RESULTS.parent / "weights" / "resnet18_cifar100.pt"


def test_nothing_in_results_names_a_place_of_one_machine():
    for path in RESULTS.rglob("*"):
        if path.suffix in (".json", ".csv", ".md"):
            assert not re.search(r"/(home|root|tmp|work|Users)\b", path.read_text(encoding="utf-8")), path


@pytest.mark.slow
def test_accuracy_in_torchvisions_network():
    """On three test images of each class: within the interval that so many images allow."""
    if "CIFAR100_ROOT" not in os.environ:
        pytest.skip("CIFAR100_ROOT names no folder with CIFAR-100")
    _, test = data.load("cifar100", os.environ["CIFAR100_ROOT"])
    checkpoint = torch.load(WEIGHTS, weights_only=True)
    ours, theirs = load_checkpoint(WEIGHTS, torch.device("cpu")), torchvision_resnet18().eval()
    theirs.load_state_dict(checkpoint["model"], strict=True)
    index = test.labels.argsort(stable=True).view(100, 100)[:, :3].flatten()
    images = test.images[index] / 255
    with torch.no_grad():
        logits = theirs(normalize(images, data.MEAN, data.STD))
        torch.testing.assert_close(ours.model(images[:100]), logits[:100], rtol=1e-3, atol=1e-3)
    interval = proportion((logits.argmax(dim=1) == test.labels[index]).sum(), 300)
    assert interval["low"] < checkpoint["test_accuracy"] < interval["high"]

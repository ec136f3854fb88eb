"""The shipped network on forty test images: every array of the laboratory as commit 7b6c6a1 computed it.

golden.npz was made once, by that commit's code (torch 2.13, one thread). It is never made anew to let a test
pass: labels and pixels are equal, other numbers within 1e-4.
"""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Generator

import metrics
from data import Dataset
from lab import attacks, reasons
from lab.answers import evaluate
from lab.corruptions import CORRUPTIONS, CUES, corrupt
from lab.network import SHIPPED, load_checkpoint, logits_of, several_maps
from lab.stress import measure

GOLDEN = np.load(Path(__file__).parent / "golden.npz")
ATTACKS = {"fgsm": attacks.fgsm, "random": attacks.random_corner, "pgd": attacks.pgd, "apgd_ce": attacks.apgd}


def stored(name):
    return torch.from_numpy(GOLDEN[name])


def equal(name, value):
    """Classes, places and pixels are equal, floats nearly."""
    tolerance = 1e-4 if value.is_floating_point() else 0
    torch.testing.assert_close(value, stored(name), rtol=0, atol=tolerance, msg=lambda m: f"{name}: {m}")


def differing(new, old, place=""):
    """The places at which numbers of a .json file differ; keys that one of both lacks do not count."""
    if isinstance(new, dict) and isinstance(old, dict):
        shared = [key for key in new if key in old]
        return [text for key in shared for text in differing(new[key], old[key], f"{place}/{key}")]
    if isinstance(new, list) and isinstance(old, list) and len(new) == len(old):
        return [
            text
            for i, pair in enumerate(zip(new, old, strict=True))
            for text in differing(*pair, f"{place}/{i}")
        ]
    if isinstance(new, float) and isinstance(old, int | float):
        return [] if new == pytest.approx(old, abs=1e-4, nan_ok=True) else [f"{place}: {new}, not {old}"]
    return [] if new == old else [f"{place}: {new}, not {old}"]


@pytest.fixture(scope="module")
def network():
    return load_checkpoint(SHIPPED)


@pytest.fixture(scope="module")
def answers(network):
    """The test set of forty images, metrics.json and predictions.npz of it."""
    names = network.class_names
    files = [str(place) for place in GOLDEN["index"]]
    test = Dataset("forty", stored("images"), stored("labels"), names, files)
    logits = logits_of(network, test.images)
    validation = network.checkpoint["val_logits"].float(), network.checkpoint["val_labels"]
    return test, *evaluate(logits, test, validation)


def test_logits_and_numbers(network, answers):
    _, numbers, arrays = answers
    equal("logits", arrays["logits"])
    old = json.loads(GOLDEN["numbers"].item())
    assert len(numbers.keys() & old.keys()) > 15 and differing(numbers, old) == []
    assert numbers["temperature"] == pytest.approx(float(GOLDEN["temperature"]), abs=1e-4)


def test_maps_and_what_covering_by_them_answers(network, answers):
    test, _, arrays = answers
    truth, likely = test.labels, arrays["logits"].argsort(dim=1, descending=True)
    answer = likely[:, 0]
    against = torch.where(answer == truth, likely[:, 1], truth)
    usual, contrastive = several_maps(network, test.images, [(answer, None), (answer, against)])
    equal("usual_maps", usual)
    equal("contrastive_maps", contrastive)
    hidden = reasons.top_pixels(stored("contrastive_maps"), reasons.COVERED, 32)
    assert (np.packbits(hidden.numpy()) == GOLDEN["top_pixels"]).all()
    for name, fill in {"covered": stored("fill"), "blurred": reasons.blurred}.items():
        classes, probabilities = reasons.answers_under_covering(network, test.images, hidden, fill)
        equal(f"{name}_classes", classes)
        equal(f"{name}_probabilities", probabilities)


def test_covering_with_its_controls(network, answers):
    test, _, arrays = answers
    wanted = arrays["mistakes"]
    covering, seen = reasons.measure_covering(
        network, test.images, test.labels, arrays["logits"], stored("fill"), wanted
    )
    old = json.loads(GOLDEN["covering"].item())
    assert old["mistakes"].keys() > covering["mistakes"].keys() > {"contrastive", "best_of_three"}
    assert differing(covering, old) == []
    torch.testing.assert_close(
        seen["contrastive"], stored("contrastive_maps")[seen["index"]], rtol=0, atol=1e-4
    )
    assert torch.equal(seen["answers"], stored("covered_classes")[seen["index"], 0])


def test_puzzles(network, answers):
    test, _, _ = answers
    hidden = torch.stack([reasons.cells_hidden(cells, 32) for cells in reasons.COVERS])
    for k, i in enumerate(GOLDEN["puzzles"]):
        images = test.images[i].expand(len(hidden), -1, -1, -1)
        classes, probabilities = reasons.answers_under_covering(network, images, hidden, stored("fill"))
        assert torch.equal(classes, stored("puzzle_classes")[k])
        torch.testing.assert_close(probabilities, stored("puzzle_probabilities")[k], rtol=0, atol=1e-4)


def test_corruptions_and_cues(network):
    images = stored("images")[:4]
    assert GOLDEN["corruption_names"].tolist() == list(CORRUPTIONS) and GOLDEN["cue_names"].tolist() == list(
        CUES
    )
    corrupted = torch.stack([corrupt(images, name, 3) for name in CORRUPTIONS])
    equal("corrupted", corrupted)
    equal("cues", torch.stack([corrupt(images, name, 0) for name in CUES]))
    equal("corrupted_logits", torch.stack([logits_of(network, some) for some in corrupted]))


@pytest.mark.parametrize("name", [*ATTACKS, "apgd_dlr"])
def test_attacks(network, name):
    attacked = stored("attacked")
    images, labels = stored("images")[attacked] / 255, stored("labels")[attacked]
    settings = {"loss": "dlr"} if name == "apgd_dlr" else {}
    attack, generator = ATTACKS.get(name, attacks.apgd), Generator().manual_seed(0)
    with torch.no_grad():
        logits = network.model(attack(network.model, images, labels, 1 / 255, generator, **settings))
    equal(f"{name}_answers", logits.argmax(dim=1))
    # Where a gradient is nearly 0, its sign depends on how a machine rounds: that moves a picture or two.
    assert ((logits - stored(f"{name}_logits")).abs().amax(dim=1) < 1e-4).double().mean() >= 0.5


def test_calibration_of_a_stress_test(answers):
    test, _, arrays = answers
    record, right = measure(arrays["logits"], test.labels, float(GOLDEN["temperature"]))
    old = json.loads(GOLDEN["record"].item())
    assert record.keys() & old.keys() >= {"accuracy", "mean_confidence"} and differing(record, old) == []
    assert torch.equal(right, stored("logits").argmax(dim=1) == test.labels)
    error = metrics.expected_calibration_error(test.labels, arrays["probabilities"])
    gaps = np.abs(old["calibration"]["as_trained"]["gaps"]).sum() / len(test.labels)
    assert error == pytest.approx(gaps, abs=1e-4)

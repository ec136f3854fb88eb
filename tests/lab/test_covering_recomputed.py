"""reasons.measure_covering on the shipped weights, and the same in torchvision's network and plain torch.

The second computation imports nothing of the project, which only reads the images and the weights. Needs
CIFAR-100 in the folder that the variable CIFAR100_ROOT names.
"""

import math
import os
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
import torchvision
from torch import nn
from torchvision.transforms.v2.functional import normalize

pytestmark = pytest.mark.slow
WEIGHTS = Path(__file__).parents[2] / "weights" / "resnet18_cifar100.pt"
MEAN, STD = (0.50707516, 0.48654887, 0.44091784), (0.26733429, 0.25643846, 0.27615047)


def torchvision_network():
    network = torchvision.models.resnet18(num_classes=100)
    network.conv1, network.maxpool = nn.Conv2d(3, 64, 3, padding=1, bias=False), nn.Identity()
    state = torch.load(WEIGHTS, weights_only=True)["model"]
    network.load_state_dict({name: value.float() for name, value in state.items()})
    return network.eval().requires_grad_(False)


@torch.no_grad()
def logits_of(network, images):
    return torch.cat([network(normalize(part, MEAN, STD)) for part in images.split(100)])


def cells_and_gradients(network, images, weights_of_classes):
    """Return layer4's output, [N, 512, 4, 4], and the gradients to it of sums of scores, [N, 100] each."""
    kept = []
    handle = network.layer4.register_forward_hook(lambda *call: kept.append(call[2].requires_grad_()))
    cells, gradients = [], [[] for _ in weights_of_classes]
    for part in torch.arange(len(images)).split(100):
        with torch.enable_grad():
            scores = network(normalize(images[part], MEAN, STD))
            for of_score, weights in zip(gradients, weights_of_classes, strict=True):
                total = (scores * weights[part]).sum()
                of_score += torch.autograd.grad(total, kept[-1], retain_graph=True)
        cells.append(kept.pop().detach())
    handle.remove()
    return torch.cat(cells), [torch.cat(of_score) for of_score in gradients]


def maps_of(network, images, questions):
    """Return Grad-CAM's sum of each (class, other class or None), [N, 4, 4]."""
    weights = []
    for classes, others in questions:
        weights.append(F.one_hot(classes, 100).float() - (0 if others is None else F.one_hot(others, 100)))
    cells, gradients = cells_and_gradients(network, images, weights)
    return [torch.einsum("nk,nkij->nij", of_score.mean(dim=(2, 3)), cells) for of_score in gradients]


def answers(network, images, maps, fill):
    """Return what is answered without the 256 pixels of 1,024 where maps [N, h, w] are largest."""
    large = F.interpolate(maps[:, None], (32, 32), mode="bilinear", align_corners=False).flatten(1)
    top = large.sort(dim=1, descending=True, stable=True).indices[:, :256]
    hidden = torch.zeros_like(large).scatter(1, top, 1.0).view(-1, 1, 32, 32)
    return logits_of(network, images * (1 - hidden) + fill * hidden).argmax(dim=1)


def centre():
    y, x = torch.meshgrid(torch.arange(32) - 15.5, torch.arange(32) - 15.5, indexing="ij")
    return torch.exp(-(x**2 + y**2) / 128)


def blurred(images):
    """A Gaussian of standard deviation 4, by two convolutions, over what is in the picture."""
    line = torch.exp(-(torch.arange(-31.0, 32) ** 2) / 32)
    weights = torch.stack([line] * 3)[:, None, None]
    padded = torch.cat([images, torch.ones(len(images), 3, 32, 32)])
    for kernel in (weights, weights.transpose(2, 3)):
        padded = F.conv2d(padded, kernel, padding=[(size - 1) // 2 for size in kernel.shape[2:]], groups=3)
    return padded[: len(images)] / padded[len(images) :]


def covering_again(network, images, y_true, logits, fill, num_mistakes, num_right):
    """Return {name: float64 [N]}, of each image how many of the draws hit."""
    generator = torch.Generator().manual_seed(0)
    wrong = (logits.argmax(1) != y_true).nonzero()[:, 0]
    right = (logits.argmax(1) == y_true).nonzero()[:, 0]
    wrong = wrong[torch.randperm(len(wrong), generator=generator)[:num_mistakes]]
    right = right[torch.randperm(len(right), generator=generator)[:num_right]]
    fill, hits = fill.view(1, 3, 1, 1), {}

    def count(name, before, goals, images, maps, fill):
        now = torch.stack([answers(network, images, of_draw, fill) for of_draw in maps])
        for key, goal in goals.items():
            hits[f"{name} {key}"] = (now == goal).double().mean(0)
        hits[f"{name} changed"] = (now != before).double().mean(0)

    pictures, truth = images[wrong] / 255, y_true[wrong]
    first, second = logits[wrong].topk(2).indices.T
    hits["rank"] = (logits[wrong] > logits[wrong].gather(1, truth[:, None])).sum(1)
    taken = F.one_hot(first, 100) + F.one_hot(truth, 100)
    other = (logits[wrong] - 1e9 * taken).argmax(1)
    drawn = (torch.rand(len(wrong), 100, generator=generator) - 9 * taken).argmax(1)
    questions = [(first, goal) for goal in (truth, second, drawn, None, other)]
    to_truth, to_second, to_drawn, usual, to_other = maps_of(network, pictures, questions)
    draws = torch.rand(3, len(wrong), 4, 4, generator=generator)
    goals = {"to_truth": truth, "to_another": other}
    for name, maps in {
        "contrastive": [to_truth],
        "runner_up": [to_second],
        "random_class": [to_drawn],
        "usual": [usual],
        "other_image": [torch.cat([to_truth[-1:], to_truth[:-1]])],
        "centre": [centre().expand(len(wrong), 32, 32)],
        "random": draws,
        "another": [to_other],
    }.items():
        count(name, first, goals, pictures, maps, fill)
    for name, maps in {"contrastive": [to_truth], "random": draws}.items():
        count(f"blurred {name}", first, goals, pictures, maps, blurred(pictures))
    pictures, (first, second) = images[right] / 255, logits[right].topk(2).indices.T
    to_second, usual = maps_of(network, pictures, [(first, second), (first, None)])
    draws = torch.rand(3, len(right), 4, 4, generator=generator)
    centres = [centre().expand(len(right), 32, 32)]
    of_right = {"runner_up": [to_second], "usual": [usual], "random": draws, "centre": centres}
    for name, maps in of_right.items():
        count(f"right {name}", first, {"to_runner_up": second}, pictures, maps, fill)
    return hits


def test_covering_of_the_shipped_network(monkeypatch):
    import data
    from lab import reasons
    from lab.classifier import load_checkpoint

    if "CIFAR100_ROOT" not in os.environ:
        pytest.skip("CIFAR100_ROOT names no folder with CIFAR-100")
    _, test = data.load("cifar100", os.environ["CIFAR100_ROOT"])
    images, y_true, fill = test.images[::16], test.labels[::16], torch.tensor(MEAN)
    network = torchvision_network()
    logits = logits_of(network, images / 255)
    hits = covering_again(network, images, y_true, logits, fill, 100, 50)
    monkeypatch.setattr(reasons, "NUM_MISTAKES", 100)
    monkeypatch.setattr(reasons, "NUM_RIGHT", 50)
    classifier = load_checkpoint(WEIGHTS, torch.device("cpu"))
    found = reasons.measure_covering(classifier, images, y_true, logits, fill)

    assert found["images"] == {"mistakes": 100, "right": 50}
    expected = {}
    for group, names, goal in (
        (
            "mistakes",
            ["contrastive", "runner_up", "random_class", "usual", "other_image", "random", "centre"],
            "to_truth",
        ),
        ("right", ["runner_up", "usual", "random", "centre"], "to_runner_up"),
    ):
        assert set(found[group]) == set(names)
        for name in names:
            for key in ("changed", goal):
                expected[group, name, key] = hits[f"{'right ' * (group == 'right')}{name} {key}"]
    for name in ("contrastive", "random"):
        expected["blurred", name, "to_truth"] = hits[f"blurred {name} to_truth"]
    expected["another", "contrastive", "to_another"] = hits["another to_another"]
    expected["another", "random", "to_another"] = hits["random to_another"]
    for (group, name, key), of_images in expected.items():
        one_image = 1.01 / len(of_images)  # may fall on the other side by rounding
        value = found[group][name][key]["value"]
        assert value == pytest.approx(of_images.mean().item(), abs=one_image), (group, name, key)
    for name, row in found["mistakes"].items():
        to_truth, rank = hits[f"{name} to_truth"], hits["rank"]
        of_changed = to_truth.sum().item() / hits[f"{name} changed"].sum().item()
        assert row["to_truth_of_changed"]["value"] == pytest.approx(of_changed, abs=0.02), name
        for place, members in {"second": rank == 1, "third": rank == 2, "later": rank > 2}.items():
            share, one_image = to_truth[members].mean().item(), 1.01 / int(members.sum())
            assert row["by_rank"][place]["value"] == pytest.approx(share, abs=one_image), (name, place)
    low, values = [], []
    differences = [("contrastive", name, row) for name, row in found["differences"].items()]
    differences += [("usual", name, row) for name, row in found["usual_less"].items()]
    for claim, name, row in differences:
        blur = "blurred " if name.startswith("blurred") else ""
        control = hits[f"{blur}{name.removeprefix('blurred_')} to_truth"]
        gain = hits[f"{blur}{claim} to_truth"] - control
        assert row["value"] == pytest.approx(gain.mean().item(), abs=0.021), name
        error = 1.96 * gain.std().item() / math.sqrt(len(gain))
        assert row["high"] - row["low"] == pytest.approx(2 * error, abs=0.02), name
        if claim == "contrastive":
            low.append(row["low"])
            values.append(row["value"])
    specific = min(low) > 0 and min(values) >= 0.03
    assert len(low) == 6 and (found["verdict"] == "specific") == specific

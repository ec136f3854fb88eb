"""What results/metrics.json says of reasons, from the weights in torchvision's network and plain torch.

No code of the project but that which reads the data: each number is computed anew in a few straight lines.
Needs CIFAR-100 in the folder that the variable CIFAR100_ROOT names, and takes some minutes.
"""

import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import torchvision
from torch import nn
from torchvision.transforms.v2.functional import normalize

import data

pytestmark = pytest.mark.slow
ROOT = Path(data.__file__).parent
METRICS = json.loads((ROOT / "results" / "metrics.json").read_text(encoding="utf-8"))
MEAN, STD = (0.50707516, 0.48654887, 0.44091784), (0.26733429, 0.25643846, 0.27615047)


@pytest.fixture(scope="module")
def sets():
    if "CIFAR100_ROOT" not in os.environ:
        pytest.skip("CIFAR100_ROOT names no folder with CIFAR-100")
    return data.load("cifar100", os.environ["CIFAR100_ROOT"])


@pytest.fixture(scope="module")
def checkpoint():
    return torch.load(ROOT / "weights" / "resnet18_cifar100.pt", weights_only=True)


@pytest.fixture(scope="module")
def parts(checkpoint):
    """The network up to the last cells, [N, 512, 4, 4], and the linear layer behind their mean."""
    network = torchvision.models.resnet18(num_classes=100)
    network.conv1, network.maxpool = nn.Conv2d(3, 64, 3, padding=1, bias=False), nn.Identity()
    network.load_state_dict({name: value.float() for name, value in checkpoint["model"].items()})
    *convolutions, _, fc = network.eval().requires_grad_(False).children()
    return nn.Sequential(*convolutions), fc


@pytest.fixture(scope="module")
def cells_of(parts):
    def cells(images):
        return torch.cat([parts[0](normalize(part, MEAN, STD)) for part in images.split(100)])

    return cells


@pytest.fixture(scope="module")
def features(sets, cells_of):
    """Of the test images, and of the 1,000 training and held-out images that are looked at, with labels."""
    train, test = sets
    groups = [index[:1000] for index in data.split_indices(train, 0.2, seed=0)]
    mean_cells = [cells_of(train.images[index] / 255).mean(dim=(2, 3)) for index in groups]
    of_test = cells_of(test.images / 255).mean(dim=(2, 3))
    return of_test, dict(zip(("training", "held_out"), zip(mean_cells, groups, strict=True), strict=True))


@pytest.fixture(scope="module")
def answers():
    """The probabilities of the three runs, the first one's answers, and the mistakes, the surest first."""
    runs = [np.load(ROOT / "results" / run / "predictions.npz") for run in ("", "seed1", "seed2")]
    probabilities = [torch.from_numpy(run["probabilities"]) for run in runs]
    confidence, y_pred = probabilities[0].max(dim=1)
    mistakes = (y_pred != torch.from_numpy(runs[0]["y_true"])).nonzero()[:, 0]
    return probabilities, y_pred, mistakes[confidence[mistakes].argsort(descending=True, stable=True)]


def test_answers_are_those_of_the_weights(sets, parts, features, answers):
    probabilities = parts[1](features[0]).softmax(dim=1)
    torch.testing.assert_close(probabilities, answers[0][0], rtol=0, atol=1e-4)
    assert METRICS["accuracy"]["value"] == (answers[1] == sets[1].labels).double().mean().item()


def test_kinds_of_mistakes(sets, answers):
    counts = [0, 0, 0]
    others = [probabilities.argmax(dim=1).tolist() for probabilities in answers[0][1:]]
    for i in answers[2].tolist():
        true, predicted = sets[1].labels[i].item(), answers[1][i].item()
        runs = [other[i] for other in others]
        counts[0 if runs == [predicted, predicted] else 1 if true not in runs else 2] += 1
    assert [row["count"] for row in METRICS["kinds"]] == counts


def test_neighbours(sets, features, answers):
    (train, test), (of_test, groups), y_pred = sets, features, answers[1]
    for group, (of_train, index) in groups.items():
        cosine = F.normalize(of_test.double()) @ F.normalize(of_train.double()).T
        nearest = train.labels[index][cosine.topk(10).indices]
        for name, members in (("mistakes", y_pred != test.labels), ("right", y_pred == test.labels)):
            found = METRICS["neighbours"][group][name]
            for key, classes in (("true_label", test.labels), ("predicted_label", y_pred)):
                share = (nearest == classes[:, None])[members].double().mean().item()
                assert found[key] == pytest.approx(share, abs=3e-4), (group, name, key)


def test_covering(sets, parts, cells_of, answers):
    (_, test), fc, (_, y_pred, mistakes) = sets, parts[1], answers
    generator = torch.Generator().manual_seed(0)
    right = (y_pred == test.labels).nonzero()[:, 0]
    fill = torch.tensor(MEAN)[:, None, None]
    for name, pool in (("mistakes", mistakes), ("right", right)):
        sample = pool[torch.randperm(len(pool), generator=generator)[:400]]
        images, predicted = test.images[sample] / 255, y_pred[sample, None]
        cells = cells_of(images).requires_grad_()
        scores = fc(cells.mean(dim=(2, 3)))
        if name == "mistakes":
            other = test.labels[sample, None]
        else:
            other = scores.detach().scatter(1, predicted, -1e9).argmax(dim=1, keepdim=True)
        of_answer, of_other = scores.gather(1, predicted), scores.gather(1, other)
        maps = {"activation": cells.detach().square().sum(dim=1)}
        for kind, score in (("contrastive", of_answer - of_other), ("usual", of_answer)):
            (gradient,) = torch.autograd.grad(score.sum(), cells, retain_graph=True)
            maps[kind] = (gradient.mean(dim=(2, 3), keepdim=True) * cells).sum(dim=1).detach()
        maps["other_image"] = maps["contrastive"].roll(1, 0)
        for kind, of_images in maps.items():
            large = F.interpolate(of_images[:, None], (32, 32), mode="bilinear", align_corners=False)
            large = large.flatten(1)
            order = large.argsort(dim=1, descending=True, stable=True)

            def answers_where(shown, images=images, large=large):
                shown = torch.zeros_like(large).scatter(1, shown, 1.0).view(-1, 1, 32, 32) == 1
                return fc(cells_of(torch.where(shown, images, fill)).mean(dim=(2, 3))).argmax(dim=1)

            after, found = answers_where(order[:, 256:]), METRICS["covering"][name][kind]
            goal = "to_truth" if name == "mistakes" else "to_runner_up"
            expected = {"changed": after != predicted[:, 0], goal: after == other[:, 0]}
            if name == "right":
                expected["kept"] = answers_where(order[:, :512]) == predicted[:, 0]
            for key, hits in expected.items():
                share = hits.double().mean().item()
                assert found[key]["value"] == pytest.approx(share, abs=0.008), (name, kind, key)
        for _ in range(3):  # as many random numbers as the draws of random cells take
            torch.rand(400, 4, 4, generator=generator)


def test_auroc_and_the_mean_of_three_networks(answers, sets):
    probabilities, y_true = answers[0], sets[1].labels
    mean = torch.stack(probabilities).mean(dim=0)
    assert (
        METRICS["against"]["mean_of_probabilities"]["accuracy"] == (mean.argmax(1) == y_true).double().mean()
    )
    confidence, right = probabilities[0].amax(dim=1), answers[1] == y_true
    higher = (confidence[right][:, None] > confidence[~right]).double().mean().item()
    assert METRICS["auroc"] == pytest.approx(higher, abs=1e-4)

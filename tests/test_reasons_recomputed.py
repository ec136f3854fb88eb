"""What results/metrics.json says of reasons, from the weights in torchvision's network and plain torch.

No code of the project but that which reads the data: each number is computed anew in a few straight lines.
Needs CIFAR-100 in the folder that the variable CIFAR100_ROOT names, and takes some minutes.
"""

import json
import os
import re
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import torchvision
from torch import nn
from torchvision.transforms.v2.functional import gaussian_blur, normalize

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
    """Of the test images, and of the 8,000 training images that are looked at, with the labels of these."""
    train, test = sets
    reference = data.split_indices(train, 0.2, seed=0)[0][:8000]
    mean_cells = [
        cells_of(images / 255).mean(dim=(2, 3)) for images in (test.images, train.images[reference])
    ]
    return *mean_cells, train.labels[reference]


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
    train, test = sets
    pixels, labels = [image.tobytes() for image in train.images.numpy()], train.labels.tolist()
    label_of = dict(zip(pixels[::-1], labels[::-1], strict=True))  # of equal images that of the first
    counts = [0, 0, 0, 0]
    others = [probabilities.argmax(dim=1).tolist() for probabilities in answers[0][1:]]
    for i in answers[2].tolist():
        true, predicted = test.labels[i].item(), answers[1][i].item()
        runs = [other[i] for other in others]
        if label_of.get(test.images[i].numpy().tobytes(), true) != true:
            counts[0] += 1
        elif runs == [predicted, predicted]:
            counts[1] += 1
        elif true not in runs:
            counts[2] += 1
        else:
            counts[3] += 1
    assert [row["count"] for row in METRICS["kinds"]] == counts


def test_neighbours(sets, features, answers):
    of_test, of_train, labels = features
    y_true, y_pred = sets[1].labels, answers[1]
    cosine = F.normalize(of_test.double()) @ F.normalize(of_train.double()).T
    nearest = labels[cosine.topk(10).indices]
    votes = F.one_hot(nearest, 100).sum(dim=1)
    # Of equally many the one whose first neighbour comes first.
    first = (votes.gather(1, nearest) == votes.amax(dim=1, keepdim=True)).int().argmax(dim=1)
    vote = nearest.gather(1, first[:, None])[:, 0]
    assert METRICS["neighbours"]["knn_accuracy"] == pytest.approx(
        (vote == y_true).double().mean().item(), abs=3e-4
    )
    for name, group in (("mistakes", y_pred != y_true), ("right", y_pred == y_true)):
        found = METRICS["neighbours"][name]
        with_true = (nearest == y_true[:, None])[group].double()
        with_predicted = (nearest == y_pred[:, None])[group].double()
        assert found["true_label"] == pytest.approx(with_true.mean().item(), abs=2e-4)
        assert found["predicted_label"] == pytest.approx(with_predicted.mean().item(), abs=2e-4)
        none = (with_true.sum(dim=1) == 0).double().mean().item()
        assert found["none_with_true_label"] == pytest.approx(none, abs=1e-3)
        assert found["knn_agrees"] == pytest.approx((vote == y_pred)[group].double().mean().item(), abs=1e-3)


def test_repair_rates(sets, parts, cells_of, answers):
    (_, test), fc, mistakes = sets, parts[1], answers[2]
    sample = mistakes[torch.randperm(len(mistakes), generator=torch.Generator().manual_seed(0))[:400]]
    images, predicted, true = test.images[sample] / 255, answers[1][sample, None], test.labels[sample, None]
    cells = cells_of(images).requires_grad_()
    scores = fc(cells.mean(dim=(2, 3)))
    of_predicted, of_true = scores.gather(1, predicted), scores.gather(1, true)
    maps = {"activation": cells.detach().square().sum(dim=1)}
    another = scores.detach().scatter(1, torch.cat([predicted, true], dim=1), -1e9).argmax(1, keepdim=True)
    for name, score in (
        ("contrastive", of_predicted - of_true),
        ("towards_another", of_predicted - scores.gather(1, another)),
        ("predicted", of_predicted),
        ("true", of_true),
    ):
        (gradient,) = torch.autograd.grad(score.sum(), cells, retain_graph=True)
        maps[name] = (gradient.mean(dim=(2, 3), keepdim=True) * cells).sum(dim=1).relu().detach()
    blurred = gaussian_blur(F.pad(images, (16, 16, 16, 16), mode="replicate"), [33, 33], [4.0, 4.0])
    fills = {"mean_colour": torch.tensor(MEAN)[:, None, None].expand_as(images)}
    fills["blur"] = blurred[..., 16:-16, 16:-16]
    for name, of_images in maps.items():
        heatmaps = F.interpolate(of_images[:, None], (32, 32), mode="bilinear", align_corners=False).flatten(
            1
        )
        top = heatmaps.argsort(dim=1, descending=True, stable=True)[:, :256]
        is_top = torch.zeros_like(heatmaps).scatter(1, top, 1.0).view(-1, 1, 32, 32) == 1
        for fill, pixels in fills.items():
            after = fc(cells_of(torch.where(is_top, pixels, images)).mean(dim=(2, 3))).argmax(dim=1)
            wanted = another if name == "towards_another" else true
            repaired = (after == wanted[:, 0]).double().mean().item()
            assert METRICS["repair"][name][fill]["value"] == pytest.approx(repaired, abs=0.005), (name, fill)


def test_search_words_explain_errors(sets, answers):
    """With other random numbers, so the mean over 200 shuffles is not quite the same."""
    test, wrong = sets[1], answers[1] != sets[1].labels
    matches = [re.match(r"(.*)_s_\d+\.png$", name) for name in test.filenames]
    words = [match[1] if match else "no word" for match in matches]
    names = sorted(set(words))
    word, labels, error = (
        np.array([names.index(w) for w in words]),
        test.labels.numpy(),
        wrong.double().numpy(),
    )
    rates = np.array([error[labels == c].mean() for c in range(100)])
    total = ((error - rates[labels]) ** 2).sum()

    def explained(word):
        group = labels * len(names) + word
        count = np.bincount(group)
        rate = np.bincount(group, weights=error) / np.maximum(count, 1)
        return (count * (rate - rates[np.arange(len(count)) // len(names)]) ** 2).sum() / total

    generator, null = np.random.default_rng(0), []
    for _ in range(200):
        shuffled = word.copy()
        for c in range(100):
            shuffled[labels == c] = generator.permutation(word[labels == c])
        null.append(explained(shuffled))
    found = METRICS["words"]
    assert found["explained"] == pytest.approx(explained(word), rel=1e-9)
    assert found["p"] == 1 / 1001 and max(null) < found["explained"]
    assert found["shuffled_mean"] == pytest.approx(np.mean(null), abs=4 * np.std(null) / np.sqrt(200))
    for row in found["words"]:
        of_word = (word == names.index(row["word"])) & (labels == test.class_names.index(row["class"]))
        assert (row["images"], row["errors"]) == (of_word.sum(), error[of_word].sum()), row["word"]


def test_temperature_of_equal_confidence(checkpoint, sets, parts, features):
    logits, y_val = checkpoint["val_logits"].double(), checkpoint["val_labels"]
    accuracy = (logits.argmax(dim=1) == y_val).double().mean()
    low, high = 0.1, 10.0
    for _ in range(40):
        middle = (low + high) / 2
        if (logits / middle).softmax(dim=1).amax(dim=1).mean() > accuracy:
            low = middle
        else:
            high = middle
    found = METRICS["temperature_of_equal_confidence"]
    assert found["temperature"] == pytest.approx(low, rel=1e-5)
    confidence, y_pred = (parts[1](features[0]).double() / low).softmax(dim=1).max(dim=1)
    right, bins = (y_pred == sets[1].labels).double(), (confidence * 15).ceil().long() - 1
    error = torch.zeros(15).double().index_add(0, bins, right - confidence).abs().sum() / len(right)
    assert found["mean_confidence"] == pytest.approx(confidence.mean().item(), abs=1e-5)
    assert found["expected_calibration_error"] == pytest.approx(error.item(), abs=2e-4)


def test_mirror_images_of_mistakes(sets, parts, cells_of, answers):
    found = json.loads((ROOT / "results" / "stress.json").read_text(encoding="utf-8"))["consistency"]
    mistakes = answers[2]
    mirrored = cells_of(sets[1].images[mistakes].flip(-1) / 255).mean(dim=(2, 3))
    changed = (parts[1](mirrored).argmax(dim=1) != answers[1][mistakes]).double().mean().item()
    assert found["mirror"]["wrong"]["value"] == pytest.approx(changed, abs=1e-3)

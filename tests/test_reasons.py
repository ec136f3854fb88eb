"""reasons.py: covering, neighbours, kinds of mistakes and search words, each computed a second time."""

import math
import os
from collections import Counter

import numpy as np
import pytest
import torch
from torch import nn

import data
import reasons
from network import from_module, predict
from sources.cifar100 import SUPERCLASS_OF
from stress_tests.corruptions import blur

CPU = torch.device("cpu")
ANSWERS = {  # of the runs in results/, in the order of test images
    run: np.load(f"{os.path.dirname(data.__file__)}/results/{run}predictions.npz")
    for run in ("", "seed1/", "seed2/")
}


def colours():
    """A network whose logits are 40 times the mean red, green and blue; its layer has 4x4 cells."""
    model = nn.Sequential(nn.AvgPool2d(8), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 3))
    nn.init.zeros_(model[3].bias)
    with torch.no_grad():
        model[3].weight.copy_(40 * torch.eye(3))
    return from_module(model, ["red", "green", "blue"], "0", CPU)


def blobs(n: int, green: float = 0.7):
    """Pictures of a red, a green and a yellow quarter, in all places: taken for red, and labelled green.

    Yellow has most red, and most green, and most of all colours: to cover it changes no answer. Only the red
    quarter speaks for red rather than green.
    """
    images = torch.zeros(n, 3, 32, 32)
    colours = torch.tensor([[0.8, 0, 0], [0, green, 0], [1, 1, 0]])
    for image in range(n):
        places = torch.randperm(4, generator=torch.Generator().manual_seed(image))
        for place, colour in zip(places.tolist(), colours, strict=False):
            top, left = 16 * (place // 2), 16 * (place % 2)
            images[image, :, top : top + 16, left : left + 16] = colour[:, None, None]
    images = (255 * images).round().to(torch.uint8)
    return data.from_arrays(images, torch.ones(n, dtype=torch.long), ["red", "green", "blue"])


def bilinear(maps: np.ndarray) -> np.ndarray:
    """Enlarge [4, 4] to [32, 32]: pixel i lies at (i + 0.5) / 8 - 0.5 of the cells, if there."""
    place = np.clip((np.arange(32) + 0.5) / 8 - 0.5, 0, 3)
    weights = np.maximum(0, 1 - np.abs(place[:, None] - np.arange(4)))
    return weights @ maps @ weights.T


def answer_without_top(image: np.ndarray, heatmap: np.ndarray, fill: np.ndarray):
    """The answer of `colours` to [3, 32, 32] with the 256 largest pixels replaced, and its probability."""
    top = np.argsort(-bilinear(heatmap.astype(np.float64)).ravel(), kind="stable")[:256]
    image = image.reshape(3, -1).copy()
    image[:, top] = fill.reshape(3, -1)[:, top]
    odds = np.exp(40 * image.mean(axis=1))
    return odds.argmax(), odds.max() / odds.sum()


# ---- Which part of the picture ---------------------------------------------------------------------------


def test_contrast_of_a_linear_network_is_the_difference_of_two_colours():
    network, test = colours(), blobs(230)  # of three batches
    images = test.images / 255
    y_pred, y_true = torch.zeros(230, dtype=torch.long), torch.arange(230) // 3 % 2 + 1
    maps = network.contrast(images, y_pred, y_true)
    assert maps.shape == (230, 2, 4, 4)
    cells = images.reshape(230, 3, 4, 8, 4, 8).mean(dim=(3, 5))
    for i in range(230):
        difference = 40 / 16 * (cells[i, 0] - cells[i, y_true[i]])
        torch.testing.assert_close(maps[i, 0], difference.clamp(min=0))
        torch.testing.assert_close(maps[i, 1], (-difference).clamp(min=0))


@pytest.mark.parametrize("fill", ["mean_colour", "blur"])
def test_answers_without_the_top_of_a_map(fill):
    network, images = colours(), blobs(210).images / 255
    maps = torch.rand(210, 4, 4, generator=torch.Generator().manual_seed(0))
    answers, probabilities = reasons.cover_answers(network, images, maps, fill)
    fills = torch.tensor(data.MEAN)[:, None, None].expand_as(images) if fill == "mean_colour" else None
    fills = blur(images, 4.0) if fills is None else fills
    for i in range(210):
        expected = answer_without_top(images[i].numpy(), maps[i].numpy(), fills[i].numpy())
        assert answers[i] == expected[0]
        assert probabilities[i] == pytest.approx(expected[1], rel=1e-4)


# Of either fill a green with which to cover the red quarter changes the answer, and to cover a part does not.
@pytest.mark.parametrize("fill, green", [("mean_colour", 0.6), ("blur", 0.75)])
def test_repair_rates_where_only_one_part_speaks_for_the_answer(fill, green, monkeypatch):
    scipy_stats = pytest.importorskip("scipy.stats")
    network, test = colours(), blobs(60, green)
    monkeypatch.setattr(reasons, "NUM_REPAIRED", 40)
    assert predict(network.model, test.images, CPU).argmax(dim=1).tolist() == [0] * 60
    covered, original = [], reasons.cover_answers

    def cover_answers(network, images, maps, fill_used):
        answers, probabilities = original(network, images, maps, fill_used)
        if fill_used == fill:
            covered.append((maps, (answers == 1).numpy()))
        return answers, probabilities

    monkeypatch.setattr(reasons, "cover_answers", cover_answers)
    probabilities = torch.tensor([0.7, 0.1, 0.2]).expand(60, 3)  # red, and after green, the truth, blue
    rates = reasons.repair_rates(network, test, probabilities, torch.arange(5, 60))
    assert rates["images"] == 40
    assert rates["contrastive"][fill]["value"] == 1
    assert rates["contrastive"][fill]["low"] == pytest.approx(40 / (40 + 1.959964**2))  # Wilson
    for name in ("predicted", "true", "activation"):
        assert rates[name][fill]["value"] == 0, name
    # Three different draws, whose mean is one number for each image.
    draws = covered[-3:]
    assert len({maps.sum().item() for maps, _ in draws}) == 3
    assert {maps.shape for maps, _ in covered} == {(40, 4, 4)}
    per_image = np.stack([repaired for _, repaired in draws]).mean(axis=0)
    mean, error = per_image.mean(), per_image.std(ddof=1) / math.sqrt(40)
    assert 0 < mean < 1
    expected = {"value": mean, "low": mean - 1.96 * error, "high": mean + 1.96 * error}
    assert rates["random"][fill] == pytest.approx(expected)
    only = int((~draws[0][1]).sum())  # the contrastive maps repair all
    p = scipy_stats.binomtest(only, only, 0.5).pvalue
    assert rates["mcnemar"][fill] == pytest.approx({"only_contrastive": only, "only_random": 0, "p": p})
    assert reasons.repair_rates(network, test, probabilities, torch.arange(5, 60)) == rates
    # No picture is blue. If blue is the truth, green is the other class, and its map is the one from above.
    assert rates["towards_another"][fill]["value"] == 0
    test.labels[:] = 2
    rates = reasons.repair_rates(network, test, probabilities, torch.arange(5, 60))
    assert rates["towards_another"][fill]["value"] == 1 and rates["contrastive"][fill]["value"] == 0


def test_both_counts_of_mcnemar(monkeypatch):
    """Covered pictures that become right by turns: with the contrastive map 3 alone, with a random one 2."""
    network, test = colours(), blobs(8)
    turns = [[1, 1, 1, 1, 0, 0, 0, 0], *[[0] * 8] * 4, [0, 0, 0, 1, 1, 1, 0, 0], *[[0] * 8] * 2]
    answers = iter(2 * turns)
    monkeypatch.setattr(reasons, "cover_answers", lambda *args: (torch.tensor(next(answers)), None))
    rates = reasons.repair_rates(network, test, torch.eye(3)[[0] * 8], torch.arange(8))
    assert rates["mcnemar"]["blur"] == {"only_contrastive": 3, "only_random": 2, "p": 1.0}
    assert rates["random"]["mean_colour"]["value"] == pytest.approx(3 / 24)


def test_energy_maps_sum_the_squares_of_a_reshaped_layer_and_leave_no_hook():
    network, images = colours(), blobs(130).images
    cells = (images / 255).reshape(130, 3, 4, 8, 4, 8).mean(dim=(3, 5))
    torch.testing.assert_close(reasons.energy_maps(network, images), (cells**2).sum(dim=1))
    network.reshape = lambda output: output.flip(2)
    torch.testing.assert_close(reasons.energy_maps(network, images), (cells**2).sum(dim=1).flip(1))
    assert not network.module[0]._forward_hooks


# ---- Neighbours ------------------------------------------------------------------------------------------


def noisy_sets():
    """Training and test sets of four classes of noisy colours, of which some are hard to tell apart."""
    generator = torch.Generator().manual_seed(0)
    base = torch.tensor([[0.7, 0.4, 0.4], [0.4, 0.7, 0.4], [0.5, 0.6, 0.4], [0.4, 0.4, 0.7]])
    sets = []
    for n in (120, 50):
        labels = torch.arange(n) % 4
        noise = torch.randn(n, 3, 1, 1, generator=generator) * 0.12
        images = (base[labels][:, :, None, None] + noise).clamp(0, 1).expand(n, 3, 32, 32)
        sets.append(data.from_arrays((255 * images).to(torch.uint8), labels, list("abcd")))
    return sets


def noisy_network():
    torch.manual_seed(0)
    model = nn.Sequential(nn.AvgPool2d(16), nn.Flatten(), nn.Linear(12, 8), nn.ReLU(), nn.Linear(8, 4))
    return from_module(model, list("abcd"), "none", CPU)


def test_features_are_what_goes_into_the_last_linear_layer():
    network, (_, test) = noisy_network(), noisy_sets()
    logits, features = network.features(test.images)
    assert torch.equal(logits, predict(network.model, test.images, CPU))
    torch.testing.assert_close(features, network.module[:4](test.images / 255).detach())
    assert not network.module[4]._forward_pre_hooks
    network.classifier = None
    assert network.features(test.images)[1] is None


@pytest.mark.parametrize("known", [False, True], ids=["all of train", "trained_on"])
def test_neighbours_agree_with_scikit_learn_and_loops(known, monkeypatch):
    neighbors = pytest.importorskip("sklearn.neighbors")
    network, (train, test) = noisy_network(), noisy_sets()
    monkeypatch.setattr(reasons, "NUM_REFERENCE", 60)
    trained_on = torch.arange(119, 9, -1) if known else None
    logits, features = network.features(test.images)
    y_pred = logits.argmax(dim=1)
    numbers, tensors = reasons.find_neighbours(network, train, test, y_pred, features, trained_on)
    if known:
        reference = list(range(119, 59, -1))
    else:
        reference = data.split_indices(train, 0.0, seed=0)[0][:60].tolist()
        assert Counter(train.labels[reference].tolist()) == {0: 15, 1: 15, 2: 15, 3: 15}
    reference_features = network.features(train.images[reference])[1].numpy()
    finder = neighbors.KNeighborsClassifier(10, metric="cosine", algorithm="brute")
    finder.fit(reference_features, train.labels[reference].numpy())
    distances, nearest = finder.kneighbors(features.numpy(), 60)
    shares, votes = {True: [], False: []}, []
    of_all = [[train.labels[reference[place]].item() for place in row] for row in nearest]
    for i, (true, predicted) in enumerate(zip(test.labels.tolist(), y_pred.tolist(), strict=True)):
        labels = of_all[i][:10]
        counts = Counter(labels)
        vote = next(label for label in labels if counts[label] == max(counts.values()))
        votes.append(vote == true)
        shares[predicted != true].append(
            (counts[predicted], counts[true], counts[true] == 0, vote == predicted)
        )
        assert tensors["counts"][i].tolist() == [counts[predicted], counts[true]]
        for place, c in enumerate((predicted, true)):
            rank = of_all[i].index(c)
            expected = (reference[nearest[i][rank]], 1 - distances[i][rank]) if true != predicted else (-1, 0)
            assert tensors["nearest"][i, place] == expected[0]
            assert tensors["similarity"][i, place].item() == pytest.approx(expected[1], abs=1e-5)
    assert numbers["knn_accuracy"] == pytest.approx(np.mean(votes))
    assert numbers["training_images"] == 60
    for wrong, name in ((True, "mistakes"), (False, "right")):
        predicted, true, none, agrees = np.mean(shares[wrong], axis=0)
        expected = {"predicted_label": predicted / 10, "true_label": true / 10}
        expected |= {"none_with_true_label": none, "knn_agrees": agrees}
        assert numbers[name] == pytest.approx(expected), name


def test_neighbours_where_there_is_little_to_find():
    network, (train, test) = noisy_network(), noisy_sets()
    few = torch.nonzero(train.labels < 2).flatten()[:7]
    wrong, (_, features) = (test.labels + 1) % 4, network.features(test.images)
    numbers, tensors = reasons.find_neighbours(network, train, test, wrong, features, few)
    assert numbers["neighbours"] == 7
    assert numbers["right"] is None
    absent = torch.stack([wrong >= 2, test.labels >= 2], dim=1)
    assert torch.equal(tensors["nearest"] == -1, absent)


def test_a_vote_that_ties_goes_to_the_nearest():
    assert reasons.vote(torch.tensor([[2, 1, 1, 2, 0], [0, 1, 1, 2, 3], [3, 2, 1, 0, 4]])).tolist() == [
        2,
        1,
        3,
    ]


# ---- Kinds of mistakes -----------------------------------------------------------------------------------

PLACE = {1: "second", 2: "third to fifth", 3: "third to fifth", 4: "third to fifth"}


def slow_kind(i, y_true, probabilities, superclass_of, training_labels, others):
    """The end of the name of the kind of mistake i; None for a right answer. No class ties with another."""
    true, row = y_true[i], probabilities[i]
    answer = max(range(len(row)), key=row.__getitem__)
    if answer == true:
        return None
    if training_labels is not None and training_labels[i] not in (-1, true):
        return "in the training set"
    if others:
        answers = {run[i] for run in others}
        if answers == {answer}:
            return "same wrong answer"
        return "another run is right" if true in answers else "not alike"
    rank = sum(value > row[true] for value in row)
    if rank == 1 and superclass_of is not None:
        return "superclass" if superclass_of[answer] == superclass_of[true] else "elsewhere"
    return PLACE.get(rank, "further down")


@pytest.mark.parametrize("copies", [False, True])
@pytest.mark.parametrize("way", ["runs", "superclasses", "plain"])
def test_kinds_are_those_of_a_slow_loop_and_add_up(way, copies):
    generator = torch.Generator().manual_seed(0)
    y_true = torch.randint(12, (600,), generator=generator)
    scores = torch.randn(600, 12, generator=generator)
    probabilities = (scores + torch.eye(12)[y_true]).softmax(dim=1)
    superclass_of = torch.arange(12) % 3 if way != "plain" else None
    training_labels = torch.randint(-1, 12, (600,), generator=generator) if copies else None
    if copies:
        training_labels[torch.rand(600, generator=generator) < 0.7] = -1
    noise = torch.randn(2, 600, 12, generator=generator)
    others = list((scores + noise + torch.eye(12)[y_true]).argmax(dim=2)) if way == "runs" else []
    kind, rows = reasons.kinds_of_mistakes(y_true, probabilities, superclass_of, training_labels, others)
    lists = [y_true, probabilities, superclass_of, training_labels]
    lists = [values if values is None else values.tolist() for values in lists]
    expected = [slow_kind(i, *lists, [run.tolist() for run in others]) for i in range(600)]
    for i in range(600):
        if expected[i] is None:
            assert kind[i] == -1
        else:
            assert rows[kind[i]]["name"].endswith(expected[i])
    wrong, right = 600 - expected.count(None), expected.count(None)
    assert len(rows) == {"runs": 3, "superclasses": 4, "plain": 3}[way] + copies
    assert sum(row["count"] for row in rows) == wrong
    assert sum(row["share"] for row in rows) == pytest.approx(1)
    for number, row in enumerate(rows):
        assert row["count"] == (kind == number).sum() > 0
        assert row["accuracy_if_right"] == pytest.approx((right + row["count"]) / 600)


def test_kinds_without_mistakes():
    kind, rows = reasons.kinds_of_mistakes(torch.arange(3), torch.eye(3))
    assert kind.tolist() == [-1, -1, -1]
    assert {row["count"] for row in rows} == {0}


def test_the_runs_in_results_share_most_confident_mistakes():
    """The numbers of DESIGN.md; without copies, which need the images."""
    y_true = torch.from_numpy(ANSWERS[""]["y_true"])
    probabilities = torch.from_numpy(ANSWERS[""]["probabilities"])
    others = [torch.from_numpy(ANSWERS[run]["y_pred"]) for run in ("seed1/", "seed2/")]
    _, rows = reasons.kinds_of_mistakes(y_true, probabilities, others=others)
    assert [row["count"] for row in rows] == [699, 788, 910]
    _, rows = reasons.kinds_of_mistakes(y_true, probabilities, torch.tensor(SUPERCLASS_OF))
    assert rows[0]["count"] + rows[1]["count"] == 1047
    shared = reasons.confident_mistakes(y_true, probabilities, others)
    assert shared == {"mistakes": 59, "same_answer": 51, "all_wrong": 54}


def test_colour_or_shape_of_mistakes_on_shapes():
    test = data.make_shapes(1, seed=0)
    purple_circle = test.class_names.index("purple circle")
    y_pred = test.labels.clone()
    y_pred[purple_circle] = test.class_names.index("purple half disc")
    y_pred[:2] = torch.tensor([test.class_names.index("pink circle"), test.class_names.index("white circle")])
    y_pred[99] = purple_circle
    counts = {"mistakes": 4, "right_colour": 1, "right_shape": 2, "neither": 1}
    assert reasons.colour_or_shape(test, y_pred) == counts
    test.name = "folder pets"
    assert reasons.colour_or_shape(test, y_pred) is None


# ---- Search words ----------------------------------------------------------------------------------------


def can_set(counts: dict):
    """Images {(class, word): number} of black pixels, named as CIFAR-100 names them."""
    labels, names = [], []
    for (c, word), count in counts.items():
        labels += [c] * count
        names += [f"{word}_s_{i:06d}.png" if word else f"manual-can{i:03d}.png" for i in range(count)]
    images = torch.zeros(len(labels), 3, 32, 32, dtype=torch.uint8)
    return data.from_arrays(images, labels, ["telephone", "can", "boy"], filenames=names)


def test_errors_by_word_agree_with_scipy_and_loops():
    scipy_stats = pytest.importorskip("scipy.stats")
    counts = {(1, "soda_can"): 40, (1, "tin"): 30, (1, "beer_can"): 9, (1, ""): 20}
    counts |= {(0, "dial_s_phone"): 50, (0, "phone"): 10, (2, "boy"): 30, (2, "phone"): 5}
    test = can_set(counts)
    words = reasons.search_words(test.filenames)
    assert Counter(zip(test.labels.tolist(), words, strict=True)) == counts
    chance = torch.rand(len(words), generator=torch.Generator().manual_seed(0))
    soda = torch.tensor([word == "soda_can" for word in words])
    wrong = chance < torch.where(soda, 0.05, 0.5)
    found = reasons.errors_by_word(test, wrong)
    assert found["classes"] == 2
    keys = {(row["class"], row["word"]) for row in found["words"]}
    assert keys == {
        ("can", "soda_can"),
        ("can", "tin"),
        ("telephone", "dial_s_phone"),
        ("telephone", "phone"),
    }
    assert found["words"][0]["word"] == "soda_can"
    assert found["words"][0]["differs"]
    p_values = sorted(row["p"] for row in found["words"])
    adjusted = [min(1, max((4 - j) * p_values[j] for j in range(i + 1))) for i in range(4)]
    assert [row["p_adjusted"] for row in found["words"]] == pytest.approx(adjusted)
    for row in found["words"]:
        table = np.zeros((2, 2), int)
        for label, word, error in zip(test.labels.tolist(), words, wrong.tolist(), strict=True):
            if test.class_names[label] == row["class"]:
                table[int(word != row["word"]), int(not error)] += 1
        assert row["p"] == pytest.approx(scipy_stats.fisher_exact(table).pvalue)
        assert [row["errors"], row["other_errors"]] == table[:, 0].tolist()
        assert [row["images"], row["other_images"]] == table.sum(axis=1).tolist()
        assert row["error_rate"] == table[0, 0] / table[0].sum()
        assert row["other_error_rate"] == table[1, 0] / table[1].sum()
        assert row["differs"] == (row["p_adjusted"] <= 0.05)
    within = between = by_chance = 0
    for c in range(3):
        of_class = [(w, e) for w, e, y in zip(words, wrong.tolist(), test.labels, strict=True) if y == c]
        mean = np.mean([error for _, error in of_class])
        variance = sum((error - mean) ** 2 for _, error in of_class)
        within += variance
        words_of_class = {word for word, _ in of_class}
        for word in words_of_class:
            errors = [error for other, error in of_class if other == word]
            between += len(errors) * (np.mean(errors) - mean) ** 2
        # Of n shuffled values k groups explain (k - 1) / (n - 1) of the variance on average.
        by_chance += variance * (len(words_of_class) - 1) / (len(of_class) - 1)
    assert found["explained"] == pytest.approx(between / within)
    assert found["shuffled_mean"] == pytest.approx(by_chance / within, rel=0.1)
    assert found["p"] < 0.01


def test_no_words_to_compare():
    none = torch.zeros(60, dtype=torch.bool)
    assert reasons.errors_by_word(can_set({(0, ""): 40, (1, "phone"): 20}), none) is None
    assert reasons.errors_by_word(can_set({(0, "tin"): 51, (0, "soda_can"): 9}), none) is None
    found = reasons.errors_by_word(can_set({(0, "tin"): 40, (0, "soda_can"): 20}), none)
    assert (found["explained"], found["p"]) == (0, 1)


@pytest.mark.slow
def test_words_of_cifar100():
    if "CIFAR100_ROOT" not in os.environ:
        pytest.skip("CIFAR100_ROOT names no folder with CIFAR-100")
    _, test = data.load_cifar100(os.environ["CIFAR100_ROOT"])
    found = reasons.errors_by_word(test, torch.from_numpy(ANSWERS[""]["y_pred"]) != test.labels)
    assert found["explained"] == pytest.approx(0.0828, abs=0.0001)
    assert found["shuffled_mean"] == pytest.approx(0.0525, abs=0.001)
    rows = {row["word"]: row for row in found["words"]}
    assert rows["soda_can"]["error_rate"] == pytest.approx(0.03, abs=0.005)
    assert rows["soda_can"]["other_error_rate"] == pytest.approx(0.30, abs=0.005)

"""reasons.py: covering, neighbours and kinds of mistakes, each computed a second time."""

import math
import os

import numpy as np
import pytest
import torch
from torch import nn

import data
import reasons
from classifier import from_module, predict
from sources.cifar import SUPERCLASS_OF

CPU = torch.device("cpu")
FILL = torch.tensor(data.MEAN)
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


# ---- Covering --------------------------------------------------------------------------------------------


def test_contrast_of_a_linear_network_is_the_difference_of_two_colours():
    network, test = colours(), blobs(230)  # of three batches
    images = test.images / 255
    y_pred, y_true = torch.zeros(230, dtype=torch.long), torch.arange(230) // 3 % 2 + 1
    signed, usual = network.contrast(images, [(y_pred, y_true), (y_pred, None)])
    cells = images.reshape(230, 3, 4, 8, 4, 8).mean(dim=(3, 5))
    for i in range(230):
        torch.testing.assert_close(signed[i], 40 / 16 * (cells[i, 0] - cells[i, y_true[i]]))
        torch.testing.assert_close(usual[i], 40 / 16 * cells[i, 0])


def test_answers_without_the_top_of_a_map():
    network, images = colours(), blobs(210).images / 255
    maps = torch.rand(210, 4, 4, generator=torch.Generator().manual_seed(0))
    hidden = reasons.top_pixels(maps, 0.25)
    assert hidden.shape == (210, 32, 32) and (hidden.sum(dim=(1, 2)) == 256).all()
    answers, probabilities = reasons.answers_to(network, images, hidden, FILL)
    fill = FILL[:, None, None].expand(3, 32, 32).numpy()
    for i in range(210):
        expected = answer_without_top(images[i].numpy(), maps[i].numpy(), fill)
        assert answers[i, 0] == expected[0]
        assert probabilities[i, 0] == pytest.approx(expected[1], rel=1e-4)


def test_covering_where_only_one_part_speaks_for_the_answer(monkeypatch):
    """Red rather than green is said by the red quarter alone: without it, it says green."""
    network, test = colours(), blobs(60, 0.6)
    monkeypatch.setattr(reasons, "NUM_COVERED", 40)
    assert predict(network.model, test.images, CPU).argmax(dim=1).tolist() == [0] * 60
    logits = torch.tensor([3.0, 1.0, 2.0]).expand(60, 3)  # red, then blue, then green, which is the truth
    found = reasons.measure_covering(network, test, logits, torch.arange(5, 60), FILL)
    assert set(found) == {"images", "covered", "kept", "mistakes"}  # no answer is right
    found = found["mistakes"]
    assert found["images"] == 40 and found["contrastive"]["to_truth"]["value"] == 1
    assert found["contrastive"]["to_truth"]["low"] == pytest.approx(40 / (40 + 1.959964**2))  # Wilson
    for name in ("usual", "activation"):  # to cover the yellow quarter, or all quarters a little
        assert found[name]["to_truth"]["value"] == 0, name
    # Three draws, whose mean is one number for each image.
    assert 0 < found["random"]["to_truth"]["value"] < 1
    gain = found["contrastive_less_random"]["to_truth"]
    assert gain["value"] == pytest.approx(1 - found["random"]["to_truth"]["value"])
    assert gain["low"] < gain["value"] < gain["high"]
    # No picture is blue, so nothing makes it the likeliest other wrong class.
    assert found["another"]["to_another"]["value"] == 0 == found["another"]["random"]["value"]
    assert len(found["by_margin"]) == 3 and found["by_margin"][0]["contrastive"]["value"] == 1
    # If red is right, green the runner-up, the same pixels make the runner-up the answer.
    test.labels[:] = 0
    logits = torch.tensor([3.0, 2.0, 1.0]).expand(60, 3)
    right = reasons.measure_covering(network, test, logits, torch.arange(0), FILL)["right"]
    assert right["contrastive"]["to_runner_up"]["value"] == right["contrastive"]["changed"]["value"] == 1
    assert right["contrastive"]["kept"]["value"] == 1 and "another" not in right and "by_margin" not in right


def test_random_cells_count_all_draws():
    hits = torch.tensor([[True, False, True, False], [True, True, False, False], [True, False, False, False]])
    per_image = hits.double().mean(dim=0)
    error = 1.96 * per_image.std().item() / math.sqrt(4)
    found = reasons.share(hits)
    assert found["value"] == pytest.approx(5 / 12) and found["low"] == pytest.approx(5 / 12 - error)


def test_energy_is_the_sum_of_the_squares_of_a_reshaped_layer_and_leaves_no_hook():
    network, images = colours(), blobs(130).images / 255
    cells = images.reshape(130, 3, 4, 8, 4, 8).mean(dim=(3, 5))
    for reshape, expected in (
        (None, (cells**2).sum(dim=1)),
        (lambda x: x.flip(2), (cells**2).sum(dim=1).flip(1)),
    ):
        network.reshape = reshape
        with reasons.energy_of_passes(network) as energy:
            network.explain(images, torch.zeros(130, dtype=torch.int64))
        torch.testing.assert_close(torch.cat(energy), expected)
    assert not network.module[0]._forward_hooks


def test_puzzles_against_covering_by_hand():
    network, test = colours(), blobs(30, 0.6)
    puzzles = reasons.find_puzzles(network, test, torch.arange(30), FILL)
    assert len(puzzles) == 15  # each can be turned, as the red quarter is four of the sixteen squares
    for puzzle in puzzles[:3]:
        image, turned = test.images[puzzle["index"]] / 255, []
        for place, cells in enumerate(reasons.COVERS):
            covered = image.clone()
            for cell in cells:
                top, left = 8 * (cell // 4), 8 * (cell % 4)
                covered[:, top : top + 8, left : left + 8] = FILL[:, None, None]
            p = (40 * covered.mean(dim=(1, 2))).softmax(dim=0)
            assert puzzle["classes"][place].tolist() == p.argsort(descending=True).tolist()
            torch.testing.assert_close(puzzle["probabilities"][place], p.sort(descending=True).values)
            turned.append(p[1].item() if p.argmax() == 1 else 0)
        assert puzzle["best"] == int(np.argmax(turned))
        assert puzzle["random"] == pytest.approx(np.mean([p > 0 for p in turned[-120:]]))
        # The two squares with most red and least green lie in the red quarter.
        red = (image[0] - image[1]).view(4, 8, 4, 8).mean(dim=(1, 3)).flatten()
        assert all(red[cell] > 0.7 for cell in reasons.COVERS[puzzle["by_map"]])
    network.layer = None
    assert reasons.find_puzzles(network, test, torch.arange(3), FILL)[0]["by_map"] is None


# ---- Random weights --------------------------------------------------------------------------------------


def test_rank_correlation_is_that_of_scipy():
    stats = pytest.importorskip("scipy.stats")
    a, b = torch.randint(0, 5, (2, 6, 20), generator=torch.Generator().manual_seed(0)).double()
    expected = [stats.spearmanr(x, y).statistic for x, y in zip(a, b, strict=True)]
    torch.testing.assert_close(reasons.spearman(a, b), torch.tensor(expected, dtype=torch.float64))
    assert reasons.spearman(torch.ones(1, 4), torch.rand(1, 4)).isnan().all()


def test_random_weights_are_those_of_a_copy():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(3600, 3))
    nn.init.uniform_(model[1].running_mean)
    network = from_module(model, None, "0", CPU)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    images, classes = torch.rand(5, 3, 32, 32), torch.tensor([0, 1, 2, 0, 1])
    state = torch.random.get_rng_state()
    found = reasons.measure_random_weights(network, images, classes)
    assert torch.equal(state, torch.random.get_rng_state())
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert found["seeds"] == 5 and found["images"] == 5
    for name in ("same_image", "other_image"):
        assert 0 <= found[name]["low"] <= found[name]["value"] <= found[name]["high"] <= 1
    reasons.randomize(model, 0)
    assert not torch.equal(model[3].weight, before["3.weight"]) and (model[1].running_mean == 0).all()


def test_the_pointing_game_finds_the_object_where_the_map_does():
    network, test = colours(), blobs(40)
    test.masks = test.images[:, 0] >= 255  # of the yellow quarter, which has most red
    game = reasons.measure_pointing(network, test, torch.zeros(40, dtype=torch.long))
    assert game["gradcam"]["value"] == 1 and game["chance"] == 0.25 and game["centre"]["value"] < 1


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


# ---- Kinds of mistakes -----------------------------------------------------------------------------------

PLACE = {1: "second", 2: "in_first_five", 3: "in_first_five", 4: "in_first_five"}


def slow_kind(i, y_true, logits, superclass_of, others):
    """The name of the kind of mistake i; None for a right answer. No class ties with another."""
    true, row = y_true[i], logits[i]
    answer = max(range(len(row)), key=row.__getitem__)
    if answer == true:
        return None
    if others:
        answers = {run[i] for run in others}
        if answers == {answer}:
            return "same_in_all"
        return "right_in_another" if true in answers else "wrong_in_all"
    rank = sum(value > row[true] for value in row)
    if rank == 1 and superclass_of is not None and superclass_of[answer] == superclass_of[true]:
        return "second_within_superclass"
    return PLACE.get(rank, "further_down")


@pytest.mark.parametrize("way", ["runs", "superclasses", "plain"])
def test_kinds_are_those_of_a_slow_loop_and_add_up(way):
    generator = torch.Generator().manual_seed(0)
    y_true = torch.randint(12, (600,), generator=generator)
    scores = torch.randn(600, 12, generator=generator)
    logits = scores + torch.eye(12)[y_true]
    superclass_of = torch.arange(12) % 3 if way != "plain" else None
    noise = torch.randn(2, 600, 12, generator=generator)
    others = list((logits + noise).argmax(dim=2)) if way == "runs" else []
    kind, rows = reasons.kinds_of_mistakes(y_true, logits, superclass_of, others)
    lists = [values if values is None else values.tolist() for values in (y_true, logits, superclass_of)]
    expected = [slow_kind(i, *lists, [run.tolist() for run in others]) for i in range(600)]
    assert [rows[k]["name"] if k >= 0 else None for k in kind.tolist()] == expected
    wrong, right = 600 - expected.count(None), expected.count(None)
    assert len(rows) == {"runs": 3, "superclasses": 4, "plain": 3}[way]
    assert sum(row["count"] for row in rows) == wrong
    assert sum(row["share"] for row in rows) == pytest.approx(1)
    for row in rows:
        assert row["count"] == expected.count(row["name"]) > 0
        assert row["accuracy_if_right"] == pytest.approx((right + row["count"]) / 600)


def test_the_mistakes_of_the_three_runs_in_results():
    """The numbers of DESIGN.md."""
    y_true = torch.from_numpy(ANSWERS[""]["y_true"])
    probabilities = torch.from_numpy(ANSWERS[""]["probabilities"])
    others = [torch.from_numpy(ANSWERS[run]["y_pred"]) for run in ("seed1/", "seed2/")]
    _, rows = reasons.kinds_of_mistakes(y_true, probabilities, others=others)
    assert [row["count"] for row in rows] == [699, 788, 910]
    superclass_of = torch.tensor(SUPERCLASS_OF)
    _, rows = reasons.kinds_of_mistakes(y_true, probabilities, superclass_of)
    assert rows[0]["count"] + rows[1]["count"] == 1047


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

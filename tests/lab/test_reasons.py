"""reasons.py: covering, puzzles, random weights and kinds of mistakes, each a second time in loops."""

import copy
import math
from collections import defaultdict
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from networks import seeded
from torch import nn

import data
from lab import reasons
from lab.classifier import from_module
from metrics import proportion

CPU = torch.device("cpu")
FILL = torch.tensor(data.MEAN)
SIDE = 18  # not a multiple of 4, the cells of a puzzle in a row


# ---- A small network and its maps by hand ----------------------------------------------------------------


@pytest.fixture
def small_case():
    """A network of 3x3 cells and nine classes, 240 images, two thirds of them mistakes, and its logits."""
    torch.manual_seed(3)
    head = nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 9)
    model = nn.Sequential(nn.AvgPool2d(6), nn.Conv2d(3, 16, 1), nn.ReLU(), *head)
    nn.init.normal_(model[1].weight)
    nn.init.normal_(model[5].weight, std=6.0)
    return case_of(model)


def in_pixels(cells):
    return cells.repeat_interleave(6, dim=-2).repeat_interleave(6, dim=-1)


def case_of(model):
    num_classes = model[5].out_features
    network = from_module(model, [f"class {c}" for c in range(num_classes)], "2", CPU, size=SIDE)
    # Within a cell all pixels are alike: at a border rounding decides which of equal ones is the larger.
    cells = torch.randint(256, (240, 3, 3, 3), generator=seeded(1))
    images = in_pixels(cells).to(torch.uint8)
    with torch.no_grad():
        model[5].bias -= model(images / 255).mean(dim=0)  # so that all classes are answered
        logits = model(images / 255)
    likely = logits.argsort(dim=1, descending=True)
    # Right, of the second class and of the third: so the runner-up is the truth for half of the mistakes.
    y_true = likely[torch.arange(240), torch.arange(240) % 3 % num_classes]
    return SimpleNamespace(network=network, model=model, images=images, y_true=y_true, logits=logits)


def cells_of(model, image):
    """The layer's output [16, 3, 3] of an image [3, 18, 18] in [0, 1]."""
    weight, bias = (value.detach().double().numpy() for value in (model[1].weight, model[1].bias))
    means = image.reshape(3, 3, 6, 3, 6).mean(axis=(2, 4))
    return np.maximum(0, np.einsum("kc,cij->kij", weight[:, :, 0, 0], means) + bias[:, None, None])


def logits_of(model, image):
    weight, bias = (value.detach().double().numpy() for value in (model[5].weight, model[5].bias))
    return weight @ cells_of(model, image).mean(axis=(1, 2)) + bias


def map_of(model, image, c, d=None):
    """Grad-CAM's sum at a layer in front of a mean and a linear layer, of class c or c rather than d."""
    weight = model[5].weight.detach().double().numpy()
    alpha = weight[c] - (0 if d is None else weight[d])
    return np.einsum("k,kij->ij", alpha / 9, cells_of(model, image))


def enlarged(cells, side=SIDE):
    """Enlarge [h, h] bilinearly to [side, side]: pixel i lies at (i + 0.5) h / side - 0.5 of the cells."""
    h = len(cells)
    place = np.clip((np.arange(side) + 0.5) * h / side - 0.5, 0, h - 1)
    weights = np.maximum(0, 1 - np.abs(place[:, None] - np.arange(h)))
    return weights @ np.asarray(cells, dtype=np.float64) @ weights.T


def blurred(image):
    """A Gaussian of two dimensions, of an eighth of the side, over what is there."""
    result, places = np.empty_like(image), np.arange(SIDE)
    for y in range(SIDE):
        for x in range(SIDE):
            squares = (places[:, None] - y) ** 2 + (places[None, :] - x) ** 2
            weights = np.exp(-squares / (2 * (SIDE / 8) ** 2))
            result[:, y, x] = (image * weights).sum(axis=(1, 2)) / weights.sum()
    return result


def top_quarter(heatmap):
    """Where the quarter of the pixels with the largest values is, bool [S, S]."""
    top = np.argsort(-heatmap.ravel(), kind="stable")[: heatmap.size // 4]
    return np.isin(np.arange(heatmap.size), top).reshape(heatmap.shape)


def answer_without_top(model, image, cells, fill):
    """The answer where a quarter of the pixels is replaced."""
    return int(np.argmax(logits_of(model, np.where(top_quarter(enlarged(cells)), fill, image))))


def centre():
    offsets = np.arange(SIDE) - (SIDE - 1) / 2
    return np.exp(-(offsets[:, None] ** 2 + offsets**2) / (2 * (SIDE / 4) ** 2))


def standard(values):
    error = 1.96 * np.std(values, ddof=1) / math.sqrt(len(values))
    return {"value": np.mean(values), "low": np.mean(values) - error, "high": np.mean(values) + error}


# ---- Covering --------------------------------------------------------------------------------------------


def test_covering_is_that_of_loops(small_case, monkeypatch):
    """All maps, draws and controls; of more than one batch of images."""
    monkeypatch.setattr(data, "BATCH_SIZE", 5)  # 15 of these images
    monkeypatch.setattr(reasons, "NUM_MISTAKES", 60)
    monkeypatch.setattr(reasons, "NUM_RIGHT", 20)
    model, images, y_true = small_case.model, small_case.images, small_case.y_true
    pixels = images.double().numpy() / 255
    likely = [np.argsort(-logits_of(model, image)).tolist() for image in pixels]
    for i in range(1, 240, 9):
        y_true[i] = likely[i][5]
    found = reasons.measure_covering(small_case.network, images, y_true, small_case.logits, FILL)

    generator = seeded()
    wrong = [i for i in range(240) if likely[i][0] != y_true[i]]
    right = [i for i in range(240) if likely[i][0] == y_true[i]]
    mistakes = [wrong[i] for i in torch.randperm(len(wrong), generator=generator)[:60]]
    right = [right[i] for i in torch.randperm(len(right), generator=generator)[:20]]
    class_draws = torch.rand(60, 9, generator=generator).tolist()
    draws = torch.rand(3, 60, 3, 3, generator=generator).double().numpy()
    draws_right = torch.rand(3, 20, 3, 3, generator=generator).double().numpy()
    hits = defaultdict(list)  # of each measurement a list over the draws for each image
    grey = np.broadcast_to(FILL.double().numpy()[:, None, None], (3, SIDE, SIDE))

    def count(group, i, maps, fill, key, goal):
        for name, cells in maps.items():
            now = [answer_without_top(model, pixels[i], one, fill) for one in cells]
            hits[group, name, key].append([a == goal for a in now])
            if group in ("mistakes", "right"):
                hits[group, name, "changed"].append([a != likely[i][0] for a in now])

    contrastive = [map_of(model, pixels[i], likely[i][0], y_true[i]) for i in mistakes]
    for n, i in enumerate(mistakes):
        image, answer, truth = pixels[i], likely[i][0], y_true[i].item()
        others = [c for c in likely[i] if c not in (answer, truth)]
        drawn = max(others, key=lambda c: class_draws[n][c])
        two = {"contrastive": [contrastive[n]], "random": list(draws[:, n])}
        more = {
            "runner_up": [map_of(model, image, answer, likely[i][1])],
            "random_class": [map_of(model, image, answer, drawn)],
            "usual": [map_of(model, image, answer)],
            "other_image": [contrastive[n - 1]],
            "centre": [centre()],
        }
        count("mistakes", i, two | more, grey, "to_truth", truth)
        count("blurred", i, two, blurred(image), "to_truth", truth)
        two["contrastive"] = [map_of(model, image, answer, others[0])]
        count("another", i, two, grey, "to_another", others[0])
    for n, i in enumerate(right):
        answer, runner_up = likely[i][:2]
        maps = {
            "runner_up": [map_of(model, pixels[i], answer, runner_up)],
            "usual": [map_of(model, pixels[i], answer)],
            "random": list(draws_right[:, n]),
            "centre": [centre()],
        }
        count("right", i, maps, grey, "to_runner_up", runner_up)

    assert found.pop("images") == {"mistakes": 60, "right": 20} and found.pop("covered") == 0.25
    assert found.pop("verdict") == reasons.verdict_on(60, found["differences"])
    differences, usual_less, measured = found.pop("differences"), found.pop("usual_less"), []
    runner_up_less = found.pop("runner_up_less")
    rank = np.array([[likely[i].index(y_true[i])] for i in mistakes])
    for name, row in found["mistakes"].items():
        changed, hit = (np.array(hits["mistakes", name, key]) for key in ("changed", "to_truth"))
        ranks = {"second": rank == 1, "third": rank == 2, "later": rank > 2}
        pairs = [(row["by_rank"].pop(place), members) for place, members in ranks.items()]
        assert row.pop("by_rank") == {}
        for share, among in [*pairs, (row.pop("to_truth_of_changed"), changed)]:
            among = np.broadcast_to(among, hit.shape)
            part = among & hit
            expected = proportion(part.sum(), among.sum())
            if name == "random":  # Taylor's first order of the ratio of two means over images
                error = (part - expected["value"] * among).mean(axis=1) / among.mean()
                expected = {key: expected["value"] + value for key, value in standard(error).items()}
                expected["low"] = max(0, expected["low"])
            assert share == pytest.approx(expected, abs=1e-6), name
            measured.append(expected["value"])
    for (group, name, key), of_images in hits.items():
        of_image = np.mean(of_images, axis=1)
        expected = standard(of_image) if name == "random" else proportion(of_image.sum(), len(of_image))
        expected["low"] = max(0, expected["low"])
        assert found[group][name].pop(key) == pytest.approx(expected, abs=1e-6), (group, name, key)
        measured.append(expected["value"])
    assert not any(row for group in found.values() for row in group.values())  # there is nothing else
    assert len(set(measured)) > 25  # so that one cannot be taken for another
    assert differences.keys() == set(reasons.CONTROLS) and usual_less.keys() == {"random", "centre"}
    pairs = [("contrastive", name, row) for name, row in differences.items()]
    pairs += [("usual", name, row) for name, row in usual_less.items()]
    pairs += [("runner_up", name, row) for name, row in runner_up_less.items()]
    for claim, name, difference in pairs:
        group = "blurred" if name == "blurred_random" else "mistakes"
        pair = [hits[group, of, "to_truth"] for of in (claim, name.removeprefix("blurred_"))]
        gain = np.mean(pair[0], axis=1) - np.mean(pair[1], axis=1)
        assert difference == pytest.approx(standard(gain), abs=1e-6), (claim, name)


def test_what_needs_a_third_class_or_another_image_is_absent_without(small_case):
    torch.manual_seed(0)
    two = case_of(nn.Sequential(*small_case.model[:5], nn.Linear(16, 2)))
    images, y_true, logits = two.images, two.y_true, two.logits
    wrong = logits.argmax(dim=1) != y_true
    found = reasons.measure_covering(two.network, images[wrong], y_true[wrong], logits[wrong], FILL)
    keys = {"images", "covered", "verdict", "mistakes", "blurred", "differences"}
    keys |= {"usual_less", "runner_up_less"}
    assert set(found) == keys and found["mistakes"]["usual"]["by_rank"]["third"] is None
    assert set(found["differences"]) == {"random", "blurred_random", "other_image", "usual", "centre"}
    assert found["mistakes"]["runner_up"] == found["mistakes"]["contrastive"]
    one = [values[:1] for values in (small_case.images, 1 - small_case.y_true.clamp(0, 1), small_case.logits)]
    found = reasons.measure_covering(small_case.network, *one, FILL)
    assert found["images"] == {"mistakes": 1, "right": 0} and found["verdict"] == "too few"
    assert "other_image" not in found["mistakes"] and "other_image" not in found["differences"]
    found = reasons.measure_covering(two.network, images[~wrong], y_true[~wrong], logits[~wrong], FILL)
    assert set(found) == {"images", "covered", "verdict", "right"} and found["verdict"] == "too few"


def test_the_verdict_needs_all_controls():
    verdicts = {"random": "no", "blurred_random": "no"}
    verdicts |= dict.fromkeys(["other_image", "random_class", "usual", "centre"], "more than chance")
    for missed, verdict in {**verdicts, "none": "specific"}.items():
        differences = {name: {"value": 0.03, "low": 0.0 if name == missed else 0.01} for name in verdicts}
        assert reasons.verdict_on(40, differences) == verdict
        assert reasons.verdict_on(39, differences) == "too few"
        near = {name: {"value": 0.029 if name == missed else 0.03, "low": 0.01} for name in verdicts}
        assert reasons.verdict_on(40, near) == ("specific" if missed == "none" else "more than chance")
        differences.pop(missed, None)  # a control that does not exist is not passed
        assert reasons.verdict_on(40, differences) == verdict


def test_the_first_mistake_shown_is_turned_by_one_map_alone_with_quarters_far_apart():
    drawn, truth = torch.tensor([7, 3, 9, 0, *range(20, 30)]), torch.ones(14, dtype=torch.int64)
    turned = torch.tensor([True] * 4 + [False] * 10)
    covered, usual = torch.zeros(14, 4, 4, dtype=torch.bool), torch.zeros(14, 4, 4, dtype=torch.bool)
    covered[:, 0], usual[:, 1] = True, True
    usual[1, 0, :3] = usual[2, 0, :1] = True  # the quarters of 3 share three pixels, those of 9 one
    answers = torch.zeros(14, dtype=torch.int64)
    answers[[0, 3]] = 1  # the usual map turns these, too
    kept = {"usual_answers": answers, "usual_covered_pixels": usual, "usual_maps": torch.arange(14)}
    shown = reasons.choose_shown(drawn, truth, turned, covered, kept)
    assert shown["shown"].tolist() == [9, 7, 3, 0, 20, 21, 22, 23, 24]
    assert shown["usual_maps"].tolist() == [2, 0, 1, 3, 4, 5, 6, 7, 8]
    shown = reasons.choose_shown(drawn, truth, torch.zeros(14, dtype=torch.bool), covered, kept)
    assert shown["shown"].tolist() == drawn[:9].tolist()  # none is turned


def test_the_usual_map_covered_is_that_of_loops(small_case):
    images, answers = small_case.images[:9], small_case.logits[:9].argmax(dim=1)
    shown = reasons.cover_usual(small_case.network, images, answers, FILL, 6)
    assert shown.keys() == {f"usual_{key}" for key in ("maps", "covered_pixels", "answers", "probabilities")}
    for i, image in enumerate(images.double().numpy() / 255):
        cells = map_of(small_case.model, image, answers[i])
        assert shown["usual_maps"][i].numpy() == pytest.approx(cells, abs=1e-4)
        image[:, top_quarter(enlarged(cells))] = FILL.double().numpy()[:, None]
        odds = np.exp(logits_of(small_case.model, image))
        assert shown["usual_answers"][i] == odds.argmax()
        assert shown["usual_probabilities"][i].item() == pytest.approx(odds.max() / odds.sum(), rel=1e-4)
        assert (shown["usual_covered_pixels"][i].numpy() == top_quarter(enlarged(cells, 6))).all()


# ---- Puzzles ---------------------------------------------------------------------------------------------


def test_puzzles_are_those_of_loops(small_case, monkeypatch):
    monkeypatch.setattr(reasons, "NUM_TURNED", 4)
    monkeypatch.setattr(reasons, "NUM_FIRM", 2)
    model, images, y_true = small_case.model, small_case.images, small_case.y_true
    wrong = torch.nonzero(small_case.logits.argmax(dim=1) != y_true).flatten()
    first = wrong[7].item()
    found = reasons.find_puzzles(small_case.network, images, y_true, wrong, FILL, first)
    edges, seen = [0, 4, 9, 13, 18], {True: [], False: []}
    squares = [(slice(*edges[r : r + 2]), slice(*edges[c : c + 2])) for r in range(4) for c in range(4)]
    covers = [[], *([a] for a in range(16)), *([a, b] for a in range(16) for b in range(a + 1, 16))]
    assert [[cell for cell in cover if cell >= 0] for cover in found["covers"].tolist()] == covers
    for n, index in enumerate(found["puzzles"].tolist()):
        image, truth = images[index].double().numpy() / 255, y_true[index].item()
        sure = []  # of each cover the probability of the truth, if it is the answer
        for place, cover in enumerate(covers):
            covered = image.copy()
            for square in cover:
                covered[(slice(None), *squares[square])] = FILL.double().numpy()[:, None, None]
            odds = np.exp(logits_of(model, covered))
            order = np.argsort(-odds)[:3]
            assert found["puzzle_classes"][n, place].tolist() == order.tolist()
            shares = found["puzzle_probabilities"][n, place].numpy()
            assert shares == pytest.approx(odds[order] / odds.sum(), rel=1e-4)
            sure.append(odds[truth] / odds.sum() if order[0] == truth else 0)
        assert found["puzzle_best"][n] == (int(np.argmax(sure)) if max(sure) else -1)
        assert found["puzzle_random"][n].item() == pytest.approx(np.mean([p > 0 for p in sure[17:]]))
        marked = enlarged(map_of(model, image, found["puzzle_classes"][n, 0, 0], truth))
        means = [marked[square].mean() for square in squares]
        assert covers[found["puzzle_by_map"][n]] == sorted(np.argsort(means)[-2:].tolist())
        seen[max(sure) > 0].append(sum(p > 0 for p in sure))
    assert len(seen[True]) == 4 and max(seen[True]) > 1  # some can be turned in several ways
    assert found["puzzles"].unique().numel() == len(found["puzzles"]) and len(seen[False]) == 2
    assert (found["puzzle_best"][:5] < 0).sum() == 1
    last = found["puzzles"][1:][found["puzzle_best"][1:] >= 0].max().item()
    opened = reasons.find_puzzles(small_case.network, images, y_true, wrong, FILL, last)
    assert opened["puzzles"][0] == last and len(opened["puzzles"]) == 6
    small_case.network.layer = None
    found = reasons.find_puzzles(small_case.network, images, y_true, wrong, FILL, first)
    assert found["puzzle_by_map"].tolist() == [-1] * 6


@pytest.mark.parametrize(
    "side, inside, most", [(32, 32, 60), (100, 50, 50), (224, 112, 10), (512, 9, 10), (32, 224, 10)]
)
def test_of_large_pictures_fewer_mistakes_are_taken_apart(side, inside, most, monkeypatch):
    """Whether the network's input is large or it enlarges its images; nothing turns these."""
    passes = []
    network = SimpleNamespace(model=SimpleNamespace(image_size=side), largest_side=inside, layer=None)
    answers = torch.zeros(137, 3, dtype=torch.int64), torch.ones(137, 3)
    monkeypatch.setattr(reasons, "answers_under_covering", lambda *_: passes.append(1) or answers)
    first = torch.randperm(80, generator=torch.Generator().manual_seed(1))[0].item()
    mistakes, images = torch.arange(80), torch.zeros(80, 3, 16, 16, dtype=torch.uint8)
    reasons.find_puzzles(network, images, torch.ones(80).long(), mistakes, FILL, first)
    assert len(passes) == most


def test_three_puzzles_that_can_be_turned_come_before_each_that_cannot():
    firm = "110101001101000"  # 1: nothing turns it
    puzzles = [(i, sign == "0") for i, sign in enumerate(firm)]
    order = [i for i, _ in reasons.mixed(puzzles)]
    assert order == [2, 4, 6, 0, 7, 10, 12, 1, 13, 14, 3, 5, 8, 9, 11]


# ---- Random weights --------------------------------------------------------------------------------------


def test_random_weights_are_those_of_loops(small_case, monkeypatch):
    """Ranks and maps by hand; the network itself and torch's generator stay as they are."""

    def ranks(values):
        return [np.sum(values < value) + np.sum(values == value) / 2 for value in values]

    monkeypatch.setattr(reasons, "NUM_RANDOMIZED", 15)
    model, images = small_case.model, small_case.images[:40]
    y_pred = small_case.logits[:40].argmax(dim=1)
    before, state = copy.deepcopy(model.state_dict()), torch.random.get_rng_state()
    found = reasons.measure_random_weights(small_case.network, images, y_pred)
    assert torch.equal(state, torch.random.get_rng_state())
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    sample = torch.randperm(40, generator=seeded())[:15].tolist()
    pixels = images.double().numpy() / 255
    same, other = [], []
    for seed in range(5):
        untrained = copy.deepcopy(model)
        reasons.randomize(untrained, seed)
        of_seed = [[], []]
        for n, i in enumerate(sample):
            random = np.maximum(0, map_of(untrained, pixels[i], y_pred[i])).ravel()
            for part, j in zip(of_seed, (i, sample[n - 1]), strict=True):
                trained = np.maximum(0, map_of(model, pixels[j], y_pred[j])).ravel()
                if np.ptp(random) and np.ptp(trained):  # else there are no ranks
                    part.append(abs(np.corrcoef(ranks(random), ranks(trained))[0, 1]))
        same.append(np.mean(of_seed[0]))
        other.append(np.mean(of_seed[1]))
    expected = {"images": 15, "seeds": 5}
    assert {key: found[key] for key in expected} == expected
    for name, values in {"same_image": same, "other_image": other}.items():
        row = {"value": np.mean(values), "low": min(values), "high": max(values)}
        assert found[name] == pytest.approx(row, abs=1e-5)


def test_all_parameters_are_drawn_anew():
    class Transformer(nn.Module):
        def __init__(self):
            super().__init__()
            self.token = nn.Parameter(5 + 3 * torch.randn(1, 400))
            self.convolution = nn.Conv2d(3, 64, 3)
            self.norm = nn.BatchNorm2d(64)
            self.attention = nn.MultiheadAttention(8, 2)

    torch.manual_seed(0)
    module = Transformer()
    for value in module.norm.state_dict().values():
        value += 3
    for bias in (module.attention.in_proj_bias, module.attention.out_proj.bias):
        nn.init.uniform_(bias)
    before = copy.deepcopy(module.state_dict())
    reasons.randomize(module, 0)
    after = module.state_dict()
    assert not any(torch.equal(before[name], value) for name, value in after.items())
    assert after["token"].mean().item() == pytest.approx(5, abs=0.5)
    assert after["token"].std().item() == pytest.approx(3, abs=0.5)
    assert after["convolution.weight"].std().item() == pytest.approx(math.sqrt(2 / (64 * 9)), rel=0.1)
    assert (after["norm.running_mean"] == 0).all() and (after["norm.weight"] == 1).all()


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
    generator = seeded()
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

"""The sections of the page: their numbers by a second computation, on made-up answers and tests."""

from statistics import NormalDist

import numpy as np
import pytest
import torch
from check_sentences import wilson
from lab_pages import section
from networks import seeded

import metrics
from lab import answers, intervals
from lab.corruptions import FIFTEEN
from lab.page import confidence, page, sections
from lab.pictures import may_be_drawn

NAMES = ["cat", "dog", "owl", "boy", "man", "woman"]
NOTHING = {"mistakes": torch.zeros(0, dtype=torch.int64)}  # evidence.npz


def bins_of(rng, total=200):
    """Made-up answers in fifteen bins of confidence, of which some are right."""
    count = rng.multinomial(total, np.full(15, 1 / 15))
    return {"count": count.tolist(), "right": rng.binomial(count, 0.6).tolist(), "gaps": [0.0] * 15}


def share(value):
    return {"value": value, "low": max(0, value - 0.02), "high": min(1, value + 0.02)}


def make_stress(with_repair):
    """The content of stress.json without attacks; with_repair: with own statistics."""
    rng, tests = np.random.default_rng(0), {}
    for test in ["clean/0", *(f"{name}/{k}" for name in FIFTEEN for k in range(1, 6))]:
        bins = bins_of(rng)
        record = {"accuracy": share(sum(bins["right"]) / 200), "calibration": {"as_trained": bins}}
        if with_repair and test[-1] in "0135":
            plain, own = bins_of(rng, 100), bins_of(rng, 100)
            right = {"accuracy": share(sum(own["right"]) / 100), "calibration": own, "images": 100}
            right["plain"] = {"accuracy": share(sum(plain["right"]) / 100), "calibration": plain}
            record["own_statistics"] = right
        tests[test] = record
    families = {"noise": list(FIFTEEN[:3]), "others": list(FIFTEEN[3:])}
    summary = {"mean_accuracy": {"fifteen": share(0.6)}, "mean_confidence": {"fifteen": 0.5}}
    summary["by_severity"] = [{"as_trained": {"mean_ece": 0.1}}] * 6
    return {"tests": tests, "families": families, "summary": summary, "corruption_images": 200}


@pytest.fixture
def known(few_resamples):
    """metrics.json and reasons.json, and predictions.npz, of random answers in which people are mixed up."""
    y_true = torch.randint(0, 6, (600,), generator=seeded(0))
    logits = 3 * torch.rand(600, 6, generator=seeded(1)) + 2 * torch.eye(6)[y_true]
    logits[:, 3:] += 5 * (y_true >= 3)[:, None] * torch.rand(600, 3, generator=seeded(2))
    arrays = {"y_true": y_true.numpy(), "logits": logits.numpy(), "class_names": NAMES}
    _, numbers, made = answers.evaluate_arrays(arrays, "made up")
    numbers |= answers.further_numbers(made) | {"notes": [], "num_test": 600, "runs": ["this network"]}
    numbers |= {"data": {"name": "made up", "size": 32}, "network": {"name": "made up", "maps": ""}}
    numbers |= {"slices": [], "weak_classes": []}
    return numbers, made


def read(known, stress, name):
    """Return a section of the page as a reader sees it, and what its template knows."""
    n, made = known
    return section(name, n, made, NOTHING, stress, None)


def counted(stress, name, severity, edge):
    """By a sum over the bins of one corruption: how many are kept, and how many of these are right."""
    bins = stress["tests"][f"{name}/{severity}"]["calibration"]["as_trained"]
    return [sum(part for place, part in enumerate(bins[key]) if place >= edge) for key in ("count", "right")]


def test_of_no_corruption_the_kept_answers_are_left_out_however_few_they_are(known):
    """One keeps four answers and one none; the heading names the lowest share, and the script has all."""
    stress = make_stress(False)
    few, none = (stress["tests"][f"{name}/5"]["calibration"]["as_trained"] for name in ("snow", "frost"))
    few["count"][12:], few["right"][12:] = [1, 1, 2], [0, 0, 1]
    none["count"][12:], none["right"][12:] = [0, 0, 0], [0, 0, 0]
    words, context = read(known, stress, "confidence")
    assert {row["name"] for row in context["dots"]} == set(FIFTEEN)
    for row in context["dots"]:
        assert [row["count"], row["hits"]] == counted(stress, row["name"], 5, 12)
    assert context["dots"][0]["name"] == "snow" and "snow 2 % 1 of 4" in words
    assert context["dots"][-1]["name"] == "frost" and "frost 0 % –" in words
    script = confidence.confidence(*known, stress)[1]["thresholds"]
    for step, edge in enumerate(confidence.EDGES):
        for dot, row in zip(context["dots"], script["dots"][step], strict=True):
            assert row[:2] == counted(stress, dot["name"], 5, edge)


@pytest.mark.parametrize("count", [0, 7, 60])
def test_the_worst_is_that_of_all_answers_also_above_a_threshold(known, count):
    """The heading, the text and In short name it, though others have fewer right above it, or it has none."""
    stress = make_stress(False)
    stress["tests"]["frost/5"]["accuracy"] = share(0.01)
    stress["tests"]["snow/5"]["calibration"]["as_trained"]["right"] = [0] * 15
    sure = stress["tests"]["frost/5"]["calibration"]["as_trained"]
    sure["count"][12:], sure["right"][12:] = [0, 0, count], [0, 0, count // 2]
    words, _ = read(known, stress, "confidence")
    hits = "50 %" if count >= 50 else f"{count // 2} of {count}"
    said = f"it is {hits}" if count else "none is that sure"
    assert f"; under frost of severity 5 {said}. Confidence" in words
    assert f"Under frost of severity 5, {f'it is {count // 2} of {count}' if count else 'no answer'}" in words
    words, _ = read(known, stress, "ending")
    assert ("above 80 % confidence, under frost of severity 5" in words) == (count > 0)
    stress["tests"]["random/5"] = {"accuracy": share(0.5)}  # an attack is no corruption
    words, _ = read(known, stress, "corruptions")
    assert "At severity 5 frost leaves the fewest right, 1 %, and" in words


def test_two_corruptions_under_which_a_threshold_is_enough_are_both_named(known):
    """Of 997 of 1,000 that are right in each bin; of those above 60 % under snow 85 % are."""
    stress = make_stress(False)
    for name, right in {"fog": [997] * 15, "snow": [100] * 10 + [997] * 5}.items():
        stress["tests"][f"{name}/5"]["calibration"]["as_trained"] |= {"count": [1000] * 15, "right": right}
    words, context = read(known, stress, "confidence")
    enough = {row["name"]: row["least"] for row in context["enough"]}
    assert enough.pop("fog") == 9 / 15 and enough.pop("snow") == 10 / 15 and set(enough.values()) == {None}
    both = "At severity 5, the threshold that is enough lies between 60 % and 66.7 % under snow and fog"
    assert f"{both}; under the other 13 no threshold up to 93.3 % is certain. Certain: " in words


@pytest.mark.parametrize(("hits", "count"), [(0, 30), (17, 30), (1, 26), (200, 200)])
def test_an_interval_is_widened_for_the_worst_of_several(hits, count):
    """By Wilson's equation, (q - p)^2 = z^2 p (1 - p) / n at both ends, with z of a fifteenth of 5 %."""
    row, z = intervals.picked(hits, count, 15), NormalDist().inv_cdf(1 - 0.05 / 15 / 2)
    for end in ("low", "high"):
        p, q = row[end], hits / count
        assert p == pytest.approx(q) or (q - p) ** 2 == pytest.approx(z**2 * p * (1 - p) / count)
    alone = metrics.proportion(hits, count)
    assert row["low"] <= alone["low"] <= alone["high"] <= row["high"]


def test_mistakes_that_stay_in_the_hardest_group_are_counted(known):
    """By NumPy, of people; In short sends to the next, which is no person."""
    truth, answer = (known[1][key].numpy() for key in ("y_true", "y_pred"))
    inside, wrong = truth >= 3, truth != answer
    known[1]["superclass_of"] = torch.tensor([0, 0, 0, 1, 1, 1])
    known[1]["superclass_names"] = ["animals", "people"]
    (row,) = sections.weak_groups(known[1])
    stay = (inside & wrong & (answer >= 3)).sum()
    assert row["name"] == "people" and (row["mistakes"], row["stay"]) == ((inside & wrong).sum(), stay)
    words, context = read(known, make_stress(False), "ending")
    assert not [act for act in context["acts"] if act["kind"] in ("slice", "group")]
    shares = sorted(((truth == t) & ~wrong).sum() / (truth == t).sum() for t in range(3))
    (row,) = (act for act in context["acts"] if act["kind"] == "classes")
    assert [hits / count for _, hits, count in row["classes"]] == pytest.approx(shares)
    (worst, hits, count), *_ = row["classes"]
    assert {name for name, *_ in row["classes"]} == {"cat", "dog", "owl"}
    low, high = wilson(hits, count, 6)
    rest = (600 - wrong.sum() - hits) / (600 - count)
    text = f"{worst.capitalize()}, the worst of 6 classes, but for people {hits} of {count} right"
    assert f"{text} ({100 * low:.0f}–{100 * high:.0f} %); all others {100 * rest:.0f} %" in words


def test_classes_tied_with_the_third_worst_are_named():
    confusion = torch.diag(torch.tensor([5, 6, 7, 7, 9]))
    confusion += (10 - confusion.sum(dim=1)).diag().roll(1, dims=1)
    (row,) = sections.worst_classes({"class_names": list("abcde"), "confusion": confusion})
    assert row["classes"] == [("a", 5, 10), ("b", 6, 10), ("c", 7, 10), ("d", 7, 10)]


def test_where_all_classes_are_of_people_nothing_is_set_aside(known):
    _, made = known
    made["class_names"] = ["boy", "girl", "man", "woman", "baby", "son"]
    images = torch.randint(0, 256, (600, 3, 8, 8), generator=seeded(0)).byte()
    drawn = images.clone()
    page.set_aside(made, torch.arange(600), drawn)
    assert torch.equal(drawn, images)
    assert may_be_drawn(made, made["mistakes"]).all()


def test_no_section_is_given_a_picture_of_people(known):
    """Of the pictures that are stored; nothing is written where the others are, so they need no memory."""
    _, made = known
    images = torch.randint(0, 100, (600, 3, 8, 8), generator=seeded(0)).byte()
    drawn, stored = images.clone(), torch.arange(0, 600, 2)
    page.set_aside(made, stored, drawn)
    is_person = (made["y_true"] >= 3) | (made["y_pred"] >= 3)
    for i in range(600):
        is_grey = is_person[i] and i % 2 == 0
        assert (drawn[i] == 128).all() if is_grey else torch.equal(drawn[i], images[i])


def test_a_network_near_chance_hears_first_that_it_must_be_trained_longer(known):
    n, _ = known
    words, context = read(known, make_stress(True), "ending")
    assert {"threshold", "classes"} <= {act["kind"] for act in context["acts"]}
    assert context["acts"][-1] == {"kind": "untested"} and "a second training" in words
    n["accuracy"] = share(0.35)  # of six classes, 1/6 + 5/24
    words, context = read(known, make_stress(True), "ending")
    assert [act["kind"] for act in context["acts"]] == ["train", "classes", "untested"]
    assert "35 % right by guessing 17 % Train longer." in words
    confidence, _ = read(known, make_stress(True), "confidence")
    assert confidence.index("Train longer first") < confidence.index("calibration error")


def test_weaknesses_are_ranked_by_what_they_cost_at_least(known):
    """The worst corruption has the fewest right of the fifteen; what counts only sure answers has no rank."""
    stress = make_stress(False)
    for name in FIFTEEN:
        stress["tests"][f"{name}/5"]["accuracy"] = share(0.1 if name == "fog" else 0.5)
    words, context = read(known, stress, "ending")
    *ranked, sure, untested = context["acts"]
    costs = [act["costs"] for act in ranked]
    assert costs == sorted(costs, reverse=True) and "threshold" not in {act["kind"] for act in ranked}
    assert (sure["kind"], untested["kind"]) == ("threshold", "untested") and sure["costs"] > min(costs)
    act = next(act for act in context["acts"] if act["kind"] == "corruption")
    high = intervals.picked(20, 200, 15)["high"]
    assert act["costs"] == pytest.approx(stress["tests"]["clean/0"]["accuracy"]["value"] - high)
    said = f"Fog, the worst of fifteen corruptions at severity 5 10 % right (5–{100 * high:.0f} %) of 200"
    assert said in words
    for better, images in ((0.6, 200), (0.14, None)):  # what hardly helps is not advised
        own = {"accuracy": share(better), "plain": {"accuracy": share(0.1)}, "images": 200}
        stress["tests"]["fog/5"]["own_statistics"] = own | {"calibration": bins_of(np.random.default_rng(0))}
        row, *_ = sections.under_stress(known[1], stress)
        assert row.get("repaired") == (images and (0.1, better, images))


def test_groups_that_lose_as_much_are_named_together_and_people_counted(known):
    n, made = known
    names = ["cat", "dog", "owl", "bee", "ant", "fly", "boy", "man", "car", "bus"]
    confusion = torch.diag(torch.tensor([60, 60, 60, 60, 60, 61, 40, 40, 2000, 100]))
    confusion[:8, 9] += 100 - confusion.diagonal()[:8]
    made |= {"class_names": names, "confusion": confusion}
    made["superclass_names"] = ["pets", "insects", "people", "rest"]
    made["superclass_of"] = torch.tensor([0, 0, 0, 1, 1, 1, 2, 2, 3, 3])
    (first,), (people,) = sections.look_first(n | {"most_confused_pairs": []}, made)
    rows = [(row["name"], row["hits"], row["count"]) for row in first["tied"]]
    assert rows == [("pets", 180, 300), ("insects", 181, 300)]
    assert (people["name"], people["hits"], people["count"], people["worst"]) == ("people", 80, 200, True)


@pytest.mark.parametrize(("name", "shown"), [("cifar100", "test image 3"), ("a folder", "man/3.png")])
def test_files_of_cifar_that_name_people_are_not_named(known, name, shown):
    made = known[1] | {"filenames": ["", "", "", "man/3.png"], "y_true": torch.tensor([0, 0, 0, 4])}
    assert sections.file_of({"data": {"name": name}}, made, 3) == shown


def test_the_pairs_confused_most_often_and_how_many_tie_with_the_last(known):
    """By NumPy, of classes that are no people."""
    n, made = known
    rows = [[9, 7, 5, 5, 0, 0], [5, 9, 5, 0, 0, 0], [1, 5, 9, 0, 0, 0]]
    confusion = torch.tensor([*rows, *3 * [[0, 8, 0, 9, 0, 0]]])
    _, shown = read((n, made | {"confusion": confusion}), None, "mistakes")
    counts = confusion.numpy()[:3, :3]
    pairs = sorted((-counts[t, p], t, p) for t in range(3) for p in range(3) if t != p)
    assert shown["pairs"] == [(NAMES[t], NAMES[p], -count) for count, t, p in pairs[:4]]
    assert shown["num_tied"] == 1  # of five pairs with five mistakes or more


def test_without_stress_tests_the_thresholds_of_clean_answers_stand_there(known):
    made = known[1]
    words, _ = read(known, None, "confidence")
    sure = made["logits"].double().softmax(dim=1).amax(dim=1).numpy()
    right = (made["y_true"] == made["y_pred"]).numpy()
    for edge in range(9, 15):
        kept = sure > edge / 15
        assert f" {100 * kept.mean():.0f} % {(kept & right).sum()} of {kept.sum()}" in words


def test_mistakes_that_copy_a_training_image_are_counted_and_opened_but_for_people(known):
    """Of four mistakes three are copies, two with the label that the network answers, and one is no man."""
    n, made = known
    is_animal = (made["y_true"] < 3) & (made["y_pred"] < 3)
    animal, man = (next(i for i in made["mistakes"] if is_animal[i] == wanted) for wanted in (True, False))
    index = torch.stack([man, animal, man, made["mistakes"][-1]])
    copies = torch.cat([made["y_pred"][index[:3]], torch.tensor([-1])])
    copies[1] = (copies[1] + 1) % 6
    evidence = {"mistakes": index, "copies": copies, "answers": made["y_pred"][None, index, None]}
    evidence |= {"answer_probabilities": torch.ones(1, 4, 1), "probability_true": torch.zeros(4)}
    words, _ = section("mistakes", n, made, evidence | {"rank_true": torch.ones(4).long()}, None, None)
    opened = f"a training image (such as {NAMES[made['y_true'][animal]]})"
    assert (
        f"3 mistakes have the pixels of {opened}; 2 of these are answered as that one is labelled." in words
    )

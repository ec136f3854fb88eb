"""sections.py and page.py: numbers of the page by a second computation, on made-up answers and tests."""

import numpy as np
import pytest
import torch
from lab_pages import text_of
from networks import seeded

from lab import answers, page, sections
from lab.corruptions import FIFTEEN

NAMES = ["cat", "dog", "owl", "boy", "man", "woman"]
NOTHING = {"mistakes": torch.zeros(0, dtype=torch.int64)}  # evidence.npz
LEVELS = {"clean": (0,), "severity 1": (1,), "severity 3": (3,), "severity 5": (5,)}


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
            right["plain"] = {"accuracy": sum(plain["right"]) / 100, "calibration": plain}
            record["own_statistics"] = right
        tests[test] = record
    families = {"noise": list(FIFTEEN[:3]), "others": list(FIFTEEN[3:])}
    summary = {"mean_accuracy": {"fifteen": share(0.6)}, "mean_confidence": {"fifteen": 0.5}, "cues": {}}
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
    """Return a section of the page as a reader sees it."""
    n, made = known
    context = {"n": n, "class_names": NAMES}
    for of_template, _ in page.parts_of_sections(n, made, NOTHING, stress, None):
        context |= of_template
    module = page.make_templates().get_template(f"{name}.html").make_module(context)
    return text_of(f"{module.claim} {getattr(module, 'below', '')} {module}"), context


@pytest.mark.parametrize("edge", sections.EDGES)
def test_what_a_threshold_keeps_is_counted_one_answer_at_a_time(edge):
    """Over the corruptions of a severity together; an interval by NumPy's own resamples is about as wide."""
    stress, rng = make_stress(False), np.random.default_rng(1)
    for row, (level, severities) in zip(sections.promise(stress, edge), LEVELS.items(), strict=True):
        every = kept = right = 0
        tests = ["clean/0"] if level == "clean" else [f"{n}/{k}" for n in FIFTEEN for k in severities]
        for test in tests:
            bins = stress["tests"][test]["calibration"]["as_trained"]
            for place, (count, hits) in enumerate(zip(bins["count"], bins["right"], strict=True)):
                every, kept, right = (
                    every + count,
                    kept + count * (place >= edge),
                    right + hits * (place >= edge),
                )
        assert row["level"] == level and row["right"]["value"] == pytest.approx(right / kept)
        assert row["cells"][0].replace("\N{NO-BREAK SPACE}", " ") == f"{100 * kept / every:.0f} %"
        if level != "clean":
            bins = [stress["tests"][test]["calibration"]["as_trained"] for test in tests]
            counts = np.array([[sum(b["count"][edge:]), sum(b["right"][edge:])] for b in bins])
            drawn = counts[rng.integers(0, 15, (4000, 15))].sum(axis=1)
            ends = np.quantile(drawn[:, 1] / drawn[:, 0], [0.025, 0.975])
            assert np.allclose([row["right"]["low"], row["right"]["high"]], ends, atol=0.01)


def test_a_threshold_that_keeps_nothing_has_no_share_of_right_answers():
    none = {"count": [5, 0], "right": [3, 0]}
    for bins in ([none], [none, none]):
        found = answers.above_threshold(bins, 1)
        assert found["right"] is None and found["kept"]["value"] == 0
    some = answers.above_threshold([none, {"count": [1, 4], "right": [0, 3]}], 1)  # resamples keep none, too
    assert some["right"]["value"] == some["right"]["low"] == some["right"]["high"] == 0.75


def test_the_repair_is_on_the_page_where_it_was_measured_and_nowhere_else(known):
    words, _ = read(known, make_stress(False), "confidence")
    assert "repair" not in words and "Above 80 % confidence" in words
    assert "repair" not in read(known, make_stress(False), "corruptions")[0]
    stress = make_stress(True)
    words, context = read(known, stress, "confidence")
    for kind, key in (("as trained", "plain"), ("repaired", None)):
        records = [stress["tests"][f"{name}/5"]["own_statistics"] for name in FIFTEEN]
        bins = [(record[key] if key else record)["calibration"] for record in records]
        kept, right = (sum(sum(b[part][12:]) for b in bins) for part in ("count", "right"))
        accuracy = sum(sum(b["right"]) for b in bins) / 1500
        row = next(row for row in context["repair"][-2:] if row["kind"] == kind)
        assert [row["all"]["value"], row["right"]["value"]] == pytest.approx([accuracy, right / kept])
        assert f"{kind} {100 * accuracy:.0f} % {100 * kept / 1500:.0f} % {100 * right / kept:.0f} %" in words
    assert "all changed alike and show all classes" in words
    own = stress["tests"]["fog/5"]["own_statistics"]
    cell = f"{100 * own['plain']['accuracy']:.0f} → {100 * own['accuracy']['value']:.0f}"
    assert cell in read(known, stress, "corruptions")[0].split(" fog ")[1].split(" brightness ")[0]


def test_mistakes_that_stay_in_the_hardest_group_are_counted(known):
    """By NumPy, of people; the sentence says so, and the end sends there."""
    truth, answer = (known[1][key].numpy() for key in ("y_true", "y_pred"))
    inside, wrong = truth >= 3, truth != answer
    groups = {"people": [3, 4, 5], "animals": [0, 1, 2]}
    (row,) = answers.failing_groups(known[1]["confusion"], groups)
    stay = (inside & wrong & (answer >= 3)).sum()
    assert row["name"] == "people" and (row["mistakes"], row["stay"]) == ((inside & wrong).sum(), stay)
    assert row["answered"] == pytest.approx((answer[inside] >= 3).mean())
    known[1]["superclass_of"] = torch.tensor([0, 0, 0, 1, 1, 1])
    known[1]["superclass_names"] = ["animals", "people"]
    words, _ = read(known, None, "accuracy")
    said = f"{100 * row['answered']:.0f} % of its pictures are answered as some person: {stay} of the"
    assert f"{said} {row['mistakes']} mistakes stay among people" in words
    words, _ = read(known, make_stress(False), "ending")
    tests = make_stress(False)["tests"]
    hardest = min(FIFTEEN, key=lambda name: tests[f"{name}/5"]["accuracy"]["value"])
    right = 100 * tests[f"{hardest}/5"]["accuracy"]["value"]
    means = {
        name: np.mean([tests[f"{name}/{k}"]["accuracy"]["value"] for k in range(1, 6)]) for name in FIFTEEN
    }
    usual = min(means, key=means.get)
    exact = f"{100 * (~wrong)[~inside].mean():.0f} %"
    assert f"Good at: animals, of which {exact} get their exact class" in words
    said = f"{hardest.replace('_', ' ')} at its strongest ({right:.0f} % right), on average over the"
    assert f"{said} strengths by {usual.replace('_', ' ')} ({100 * means[usual]:.0f} %)." in words
    assert f"Look first at people: {100 * (~wrong)[inside].mean():.0f} % are right" in words


def test_people_are_spoken_of_only_where_there_are_classes_of_people(known):
    n, made = known
    names = ["cat", "dog", "owl", "bee", "ant", "fox"]
    for class_names, has_people in ((NAMES, True), (names, False)):
        made["class_names"] = class_names
        for row, name in zip(n["classes"], class_names, strict=True):
            row["name"] = name
        (shared, _), *_ = page.parts_of_sections(n, made, NOTHING, None, None)
        assert shared["has_people"] == has_people


@pytest.mark.parametrize(("name", "shown"), [("cifar100", "test image 3"), ("a folder", "man/3.png")])
def test_files_of_cifar_that_name_people_are_not_named(known, name, shown):
    made = known[1] | {"filenames": ["", "", "", "man/3.png"], "y_true": torch.tensor([0, 0, 0, 4])}
    assert sections.file_of({"data": {"name": name}}, made, 3) == shown

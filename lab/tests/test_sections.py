"""sections.py and page.py: numbers of the page by a second computation, on made-up answers and tests."""

import numpy as np
import pytest
import torch
from lab_pages import text_of
from networks import seeded

from lab import answers, figures, page, sections, slices
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


def test_slices_that_cannot_be_judged_are_listed_also_those_of_few_pictures(known):
    numbers, made = known
    right = (made["y_pred"] == made["y_true"]) & (torch.arange(600) >= 9)
    scanner = ["D"] * 9 + ["E"] * 4 + ["A"] * 587
    rows = slices.compare_slices(right, made["y_true"], {"scanner": scanner})
    numbers["slices"] = [{key: row[key] for key in slices.FACTS} for row in rows]
    text, _ = read((numbers, made), None, "where")
    few = "scanner = D: 0 of 9 right, too few for an interval, yet no chance (raw gap -"
    assert few in text and "; scanner = E, too few pictures (4)" in text


@pytest.mark.parametrize("edge", sections.EDGES)
def test_what_a_threshold_keeps_is_counted_one_answer_at_a_time(edge):
    """Over the corruptions of a severity together; an interval by NumPy's own resamples is about as wide."""
    stress, rng = make_stress(False), np.random.default_rng(1)
    rows = sections.promise(stress, edge, list(FIFTEEN))
    for row, (level, severities) in zip(rows, LEVELS.items(), strict=True):
        every = kept = right = 0
        tests = ["clean/0"] if level == "clean" else [f"{n}/{k}" for n in FIFTEEN for k in severities]
        for test in tests:
            bins = stress["tests"][test]["calibration"]["as_trained"]
            for place, (count, hits) in enumerate(zip(bins["count"], bins["right"], strict=True)):
                every += count
                kept += count * (place >= edge)
                right += hits * (place >= edge)
        assert row["level"] == level and row["right"]["value"] == pytest.approx(right / kept)
        assert row["cells"][0].replace("\N{NO-BREAK SPACE}", " ") == f"{100 * kept / every:.0f} %"
        if level != "clean":
            bins = [stress["tests"][test]["calibration"]["as_trained"] for test in tests]
            counts = np.array([[sum(b["count"][edge:]), sum(b["right"][edge:])] for b in bins])
            drawn = counts[rng.integers(0, 15, (4000, 15))].sum(axis=1)
            ends = np.quantile(drawn[:, 1] / drawn[:, 0], [0.025, 0.975])
            assert np.allclose([row["right"]["low"], row["right"]["high"]], ends, atol=0.01)


def right_above(stress, name, edge):
    """By a sum over the bins of one corruption at severity 5."""
    bins = stress["tests"][f"{name}/5"]["calibration"]["as_trained"]
    count, right = (sum(bins[key][edge:]) for key in ("count", "right"))
    return right / count if count else None


def test_the_menu_of_corruptions_names_the_best_and_the_worst_and_what_keeps_no_promise(known):
    """Each of them has its own table."""
    stress = make_stress(False)
    fog = stress["tests"]["fog/5"]["calibration"]["as_trained"]
    fog["right"] = [round(0.95 * count) for count in fog["count"]]  # it alone keeps the promise
    few = stress["tests"]["snow/5"]["calibration"]["as_trained"]
    few["count"][12:], few["right"][12:] = [9, 10, 10], [0, 0, 0]  # fewer than thirty answers say nothing
    bins = {name: stress["tests"][f"{name}/5"]["calibration"]["as_trained"] for name in FIFTEEN}
    enough = [name for name in FIFTEEN if sum(bins[name]["count"][12:]) >= 30]
    right = {name: right_above(stress, name, 12) for name in enough}
    worst = min(right, key=right.get)
    assert 1 < len(enough) < 15
    words, context = read(known, stress, "confidence")
    ends = f"{100 * right[worst]:.0f} % ({figures.corruption(worst)})", f"{100 * right['fog']:.0f} % (fog)"
    said = f"from {ends[0]} to {ends[1]}"
    assert context["spread"]["worst"] == worst and words.count(said) == 2  # its claim and beside the table
    shares = {name: [right_above(stress, name, edge) for edge in sections.EDGES] for name in FIFTEEN}
    assert context["not_kept"] == [name for name in FIFTEEN if max(shares[name]) < 0.9]
    assert "fog" not in context["not_kept"] and worst in context["not_kept"]
    enough = next(edge for edge in sections.EDGES if right_above(stress, "fog", edge) >= 0.9)
    cells = sections.confidence(*known, stress)[1]["thresholds"]["cells"]
    assert [*cells] == ["", *FIFTEEN] and all(len(rows) == len(sections.EDGES) for rows in cells.values())
    for rows, value in zip(cells["fog"], shares["fog"], strict=True):
        assert rows[3][1].replace("\xa0", " ").startswith(f"{100 * value:.1f} % (")
        assert rows[3][2].replace("\xa0", " ").removeprefix("≤ ") == f"{100 * enough / 15:.0f} %"
    assert cells[worst][0][3][2] == "none"


def test_a_threshold_that_keeps_nothing_has_no_share_of_right_answers():
    none = {"count": [5, 0], "right": [3, 0]}
    for bins in ([none], [none, none]):
        found = answers.above_threshold(bins, 1)
        assert found["right"] is None and found["kept"]["value"] == 0
    some = answers.above_threshold([none, {"count": [1, 4], "right": [0, 3]}], 1)  # resamples keep none, too
    assert some["right"]["value"] == some["right"]["low"] == some["right"]["high"] == 0.75


def test_the_repair_is_on_the_page_where_it_was_measured_and_nowhere_else(known):
    words, _ = read(known, make_stress(False), "confidence")
    assert "repair" not in words and "above 80 % confidence" in words
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
    assert "all changed alike and show many classes" in words
    own = stress["tests"]["fog/5"]["own_statistics"]
    cell = f"{100 * own['plain']['accuracy']:.0f} → {100 * own['accuracy']['value']:.0f}"
    assert cell in read(known, stress, "corruptions")[0].split(" fog ")[1].split(" brightness ")[0]


def test_mistakes_that_stay_in_the_hardest_group_are_counted(known):
    """By NumPy, of people; the sentence says so, and the end sends to the next, which is no person."""
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
    words, context = read(known, make_stress(False), "ending")
    first = next(act for act in context["acts"] if act["kind"] in ("slice", "group", "pair"))
    assert first["kind"] == "pair" and {first["true"], first["predicted"]} <= {"cat", "dog", "owl"}
    pair = wrong & (truth < 3) & (answer < 3)
    most = max(((truth == t) & (answer == p) & pair).sum() for t in range(3) for p in range(3))
    assert f"{first['true']}, answered {first['predicted']}" in words and f"but for people: {most} " in words


def test_people_are_spoken_of_only_where_there_are_classes_of_people(known):
    n, made = known
    names = ["cat", "dog", "owl", "bee", "ant", "fox"]
    for class_names, has_people in ((NAMES, True), (names, False)):
        made["class_names"] = class_names
        for row, name in zip(n["classes"], class_names, strict=True):
            row["name"] = name
        n["most_confused_pairs"] = [{"true": class_names[0], "predicted": class_names[1], "count": 1}]
        (shared, _), *_ = page.parts_of_sections(n, made, NOTHING, None, None)
        assert shared["has_people"] == has_people
        assert shared["people"] == ["boy", "man", "woman"][: 3 * has_people]


def test_where_all_classes_are_of_people_nothing_is_set_aside(known):
    _, made = known
    made["class_names"] = ["boy", "girl", "man", "woman", "baby", "face"]
    images = torch.randint(0, 256, (600, 3, 8, 8), generator=seeded(0)).byte()
    shown, drawn = page.set_aside(made, {"mistakes": made["mistakes"]}, images)
    assert torch.equal(drawn, images) and not shown["has_people"] and shown["only_people"]
    assert len(answers.draw_game(made)) == 40 and answers.may_be_drawn(made, made["mistakes"]).all()


def test_no_section_is_given_a_picture_of_people(known):
    _, made = known
    images = torch.randint(0, 100, (600, 3, 8, 8), generator=seeded(0)).byte()
    shown, drawn = page.set_aside(made, {"mistakes": made["mistakes"]}, images)
    is_person = (made["y_true"] >= 3) | (made["y_pred"] >= 3)
    for i in range(600):
        assert (drawn[i] == 128).all() if is_person[i] else torch.equal(drawn[i], images[i])
    assert shown["num_people"] == is_person[made["mistakes"]].sum()
    columns = shown["people_sheet"]["columns"]
    assert columns * shown["people_sheet"]["rows"] >= shown["num_people"] > 0


def test_a_network_near_chance_hears_first_that_it_must_be_trained_longer(known):
    n, _ = known
    words, context = read(known, make_stress(True), "ending")
    assert [act["kind"] for act in context["acts"]] == ["expected", "threshold", "pair", "untested"]
    assert "suggests overfitting" not in words
    n |= {"history": [{"epoch": 3, "train_accuracy": 0.9, "val_accuracy": 0.7}], "epoch": 3}
    words, _ = read(known, make_stress(True), "ending")
    assert "90 % of the augmented training images are right, and 70 % of the validation images" in words
    n["accuracy"] = share(0.35)  # of six classes, 1/6 + 5/24
    words, context = read(known, make_stress(True), "ending")
    assert [act["kind"] for act in context["acts"]] == ["train", "pair", "untested"]
    assert "If 35 % right is all it reaches train longer" in words
    confidence, _ = read(known, make_stress(True), "confidence")
    assert confidence.index("Train longer first") < confidence.index("temperature")


def test_own_statistics_are_advised_where_they_help_with_what_they_harm(known):
    """By NumPy over the corruptions of a family: noise gains, the others lose, and so do clean pictures."""
    stress = make_stress(True)
    for name in ["clean", *FIFTEEN]:
        own = stress["tests"]["clean/0" if name == "clean" else f"{name}/5"]["own_statistics"]
        gain = 0.3 if name in FIFTEEN[:3] else -0.02 - 0.1 * (name == "fog")
        own["accuracy"], own["plain"]["accuracy"] = share(0.5 + gain), 0.5
    words, context = read(known, stress, "ending")
    act = context["acts"][0]
    assert act["helped"] == {"noise": pytest.approx((0.5, 0.8))}
    assert act["harmed"][0][0] == "fog" and len(act["harmed"]) == 13
    assert "If you expect noise corruptions let batch norm" in words
    assert "gains most is noise, from 50 % to 80 % right" in words
    assert "ruins the answers. Under fog 50 % become 38 %." in words
    words, context = read(known, make_stress(False), "ending")
    stress, means = make_stress(False), {}
    for family, names in stress["families"].items():
        means[family] = np.mean([stress["tests"][f"{name}/5"]["accuracy"]["value"] for name in names])
    assert f"If you expect corruptions such as {min(means, key=means.get)} train with" in words


@pytest.mark.parametrize(("name", "shown"), [("cifar100", "test image 3"), ("a folder", "man/3.png")])
def test_files_of_cifar_that_name_people_are_not_named(known, name, shown):
    made = known[1] | {"filenames": ["", "", "", "man/3.png"], "y_true": torch.tensor([0, 0, 0, 4])}
    assert sections.file_of({"data": {"name": name}}, made, 3) == shown

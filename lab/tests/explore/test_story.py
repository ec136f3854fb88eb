"""What explore.html shows of made-up files, against loops over them: rows, pictures, orders."""

import numpy as np
import pytest
import torch
from lab_pages import decoded, fraction
from made_files import COVERS, NUM_PUZZLES, SOLUTION, stress_results, with_puzzles
from made_up import stress_content

from lab.explore import script_data, story
from report import plain

# ---- The game ---------------------------------------------------------------------------------------------


def test_sure_mistakes_of_another_superclass_that_squares_solve_come_first(left):
    _, answers, evidence = left
    evidence = with_puzzles(evidence, answers)
    group, order = answers["superclass_of"], script_data.absurd_first(answers, evidence)
    rows = []
    for place, i in enumerate(evidence["puzzles"].tolist()):
        far = group[answers["y_true"][i]] != group[answers["y_pred"][i]]
        solved = evidence["puzzle_best"][place] >= 0
        rows.append((not solved, bool(solved and not far), -answers["confidence"][i].item(), place))
    assert order == [place for *_, place in sorted(rows)]
    early = [row["early"] for row in script_data.puzzle_data(answers, evidence)]
    assert early == [order.index(place) < script_data.NUM_EARLY for place in range(NUM_PUZZLES)]


def test_a_puzzle_without_the_script_and_in_the_data_of_the_script(left, small_sets):
    _, answers, evidence = left
    evidence = with_puzzles(evidence, answers)
    shown, names = story.game(answers, evidence, small_sets[1].images), answers["class_names"]
    first = evidence["puzzles"][script_data.absurd_first(answers, evidence)[0]]
    for key in ("true", "pred"):
        assert shown["opener"][key] == plain(names[answers[f"y_{key}"][first]])
    assert torch.equal(decoded(shown["opener"]["picture"].split(",")[1]), small_sets[1].images[first])
    sheet = decoded(shown["puzzle_sheet"]["address"].split(",")[1]).float()
    rows = script_data.puzzle_data(answers, evidence)
    for place, (row, i) in enumerate(zip(rows, evidence["puzzles"], strict=True)):
        assert (sheet[:, :, 32 * place : 32 * place + 32] - small_sets[1].images[i]).abs().mean() < 12
        assert row["true"] == answers["y_true"][i] and evidence["mistakes"][row["mistake"]] == i
        assert row["best"] == (SOLUTION if place < 4 else None) and len(row["answers"]) == len(COVERS)
        classes, probabilities = (
            evidence["puzzle_classes"][place, 136],
            evidence["puzzle_probabilities"][place, 136],
        )
        pairs = zip(classes.tolist(), probabilities.tolist(), strict=True)
        assert row["answers"][136] == [number for c, p in pairs for number in (c, round(100 * p))]


# ---- Classes ---------------------------------------------------------------------------------------------


def test_the_matrix_of_the_superclasses(left):
    _, answers, _ = left
    group, counts = answers["superclass_of"].tolist(), {}
    for true, predicted in zip(answers["y_true"].tolist(), answers["y_pred"].tolist(), strict=True):
        pair = group[true], group[predicted]
        counts[pair] = counts.get(pair, 0) + 1
    names = [plain(name) for name in answers["superclass_names"]]
    shown = story.matrix(answers)
    assert shown["of_superclasses"] and [row["name"] for row in shown["matrix"]] == names
    for i, row in enumerate(shown["matrix"]):
        assert [cell["count"] for cell in row["cells"]] == [counts.get((i, j), 0) for j in range(len(names))]
        assert [cell["right"] for cell in row["cells"]] == [i == j for j in range(len(names))]
        assert row["cells"][1]["link"] == {"true": f"all {names[i]}", "predicted": f"all {names[1]}"}


def test_a_hundred_classes_without_superclasses_have_no_matrix_here(left):
    _, answers, _ = left
    del answers["superclass_of"]
    assert story.matrix(answers)["matrix"] is None


def test_a_colour_that_fails_is_named_and_a_word_that_mistakes_keep(left):
    """Of the shapes all white ones are taken for a white star, the others are right."""
    numbers, answers, _ = left
    names = answers["class_names"]
    white = [c for c, name in enumerate(names) if name.startswith("white ")]
    confusion = 10 * torch.eye(len(names), dtype=torch.int64)
    for c in white:
        confusion[c] = 10 * (torch.arange(len(names)) == names.index("white star"))
    shown = story.classes(numbers, answers | {"confusion": confusion})
    assert shown["failing"][0]["name"] == "white" and shown["failing"][0]["classes"] == white
    assert (
        shown["failing"][0]["group"]["value"] == 1 / len(white) and shown["failing"][0]["rest"]["value"] == 1
    )
    assert shown["same_word"] == 1
    confusion[white[0]] = 10 * (torch.arange(len(names)) == names.index("red heart"))
    share = sum(name != "white star" and name != names[white[0]] for name in (names[c] for c in white))
    others = len(white) - 1 + (names[white[0]] == "white star")
    assert story.same_word(answers | {"confusion": confusion}) == pytest.approx(share / others)


# ---- Confidence and maps ---------------------------------------------------------------------------------


def test_how_many_answers_are_kept_above_a_confidence(left):
    _, answers, _ = left
    pairs = list(
        zip(answers["confidence"].tolist(), (answers["y_true"] == answers["y_pred"]).tolist(), strict=True)
    )
    rows = story.kept(answers)
    assert [row["least"] for row in rows] == [0, 0.5, 0.7, 0.9, 0.95]
    for row in rows:
        right = [is_right for confidence, is_right in pairs if confidence >= row["least"]]
        assert row["share"] == len(right) / len(pairs) and row["right"]["value"] == sum(right) / len(right)
    assert story.kept(answers | {"confidence": torch.full((100,), 0.6)})[2] == {
        "least": 0.7,
        "share": 0,
        "right": None,
    }


def test_points_and_line_of_confidence_and_accuracy(figures):
    """Accuracy falls by exactly 1.5 of what confidence falls: so does the line, in each family."""
    stress = stress_results(torch.arange(100))
    for test in stress["tests"].values():
        test["accuracy"] = fraction(0.9 - 1.5 * (0.8 - test["mean_confidence"]))
    stress["tests"]["clean/0"] |= {"mean_confidence": 0.8}
    stress["tests"]["clean/0"]["accuracy"] = fraction(0.9)
    assert story.unlabelled(stress)["line"]["slope"] == pytest.approx(1.5)
    (axes,) = figures["line"].axes
    drawn = {line.get_label(): len(line.get_xdata()) for line in axes.lines[1:-1]}
    assert drawn == {name: 5 * len(members) for name, members in stress["families"].items()}
    for test in stress["tests"].values():
        test["mean_confidence"] = 0.5  # of a network that is as sure of everything
    assert story.unlabelled(stress) == {"line": None}
    assert story.unlabelled(stress_content(torch.arange(100))) == {"line": None}  # of an older file


def test_mistakes_with_maps_show_what_was_covered(left, small_sets):
    _, answers, evidence = left
    truth = answers["y_true"][evidence["mistakes"]]
    places = torch.arange(9).flip(0)
    evidence["covered_answers"][8], evidence["shown"] = truth[8], places
    usual = {"maps": evidence["maps"][:9], "covered_pixels": evidence["covered_pixels"][:9]}
    usual |= {"answers": (truth[places] + 1) % 100, "probabilities": torch.linspace(0.1, 0.9, 9)}
    evidence |= {f"usual_{key}": value for key, value in usual.items()}
    cases = story.maps({}, answers, evidence, small_sets[1].images)["cases"]
    assert len(cases) == 5 and cases[0]["turned"] == {"usual": False, "contrastive": True}
    index = evidence["mistakes"][places].tolist()
    names = [plain(name) for name in answers["class_names"]]
    for row, i in zip(cases, index, strict=False):
        assert (row["true"], row["predicted"]) == (names[answers["y_true"][i]], names[answers["y_pred"][i]])
    image = small_sets[1].images[index[0]]
    hidden = {"contrastive": evidence["covered_pixels"][8], "usual": evidence["covered_pixels"][0]}
    for kind, pixels in hidden.items():
        seen = decoded(cases[0]["kinds"][kind]["covered"].split(",")[1])
        assert torch.equal(seen[:, ~pixels], image[:, ~pixels])
        assert (seen[:, pixels] - 255 * evidence["fill"][:, None]).abs().max() <= 0.5
    assert cases[2]["kinds"]["usual"]["probability"] == pytest.approx(0.3)


# ---- Stress tests ----------------------------------------------------------------------------------------


def test_corruptions_and_families_the_hardest_first():
    stress = stress_results(torch.arange(100))
    tests = stress["tests"]
    for name, values in {"frost": (0.01, 0.9, 0.9, 0.9, 0.9), "snow": (0.1, 0.1, 0.2, 0.1, 0.05)}.items():
        for severity, value in enumerate(values, 1):
            tests[f"{name}/{severity}"]["accuracy"] = fraction(value)
    shown = story.corruptions(stress)
    means = {}
    for row in shown["corruption_rows"]:
        values = [tests[f"{row['name']}/{severity}"]["accuracy"]["value"] for severity in range(1, 6)]
        means[row["name"]] = np.mean(values)
        assert row["values"] == pytest.approx([*values, np.mean(values)])
    assert [row["name"] for row in shown["corruption_rows"]] == sorted(means, key=means.get)
    assert shown["corruption_rows"][0]["name"] == "snow"  # on average, not at a single severity
    families = {name: np.mean([means[n] for n in members]) for name, members in stress["families"].items()}
    assert [name for name, _ in shown["families"]] == sorted(families, key=families.get)
    assert dict(shown["families"]) == pytest.approx(families)


def test_of_the_attacks_the_worst_and_random_signs_are_drawn_at_every_epsilon(figures):
    stress = stress_results(torch.arange(100))
    stress["tests"]["unattacked/0"]["accuracy"] = fraction(0.6)
    stress["robust_accuracy"]["1"] = fraction(0.15)
    assert story.attacks(stress)["surviving"] == pytest.approx(0.25)
    (axes,) = figures["epsilon"].axes
    epsilons = stress["epsilons"][:-1]
    curves = [list(line.get_ydata()) for line in axes.lines if list(line.get_xdata()) == epsilons]
    rows = stress["robust_accuracy"], stress["random_signs"]
    assert curves == [[row[f"{epsilon:g}"]["value"] for epsilon in epsilons] for row in rows]


def test_the_sheet_of_the_attacks(small_sets):
    images, stress = small_sets[1].images, stress_content(small_sets[1].labels)
    sheet = decoded(script_data.attack_sheet(images, stress)["address"].split(",")[1]).float()
    step = stress["epsilons"].index(4)
    for attack in (0, 1):
        for column, change in enumerate(stress["attack_changes"][attack, step] / 127):
            first = 1 + 2 * (6 * attack + step)
            for row, image in ((first, 128 + 100 * change), (first + 1, images[column] + 4 * change)):
                seen = sheet[:, 32 * row : 32 * row + 32, 32 * column : 32 * column + 32]
                assert (seen - image.clamp(0, 255)).abs().mean() < 12

"""What explore.html shows of made-up files, against loops over them: rows, pictures, orders."""

import numpy as np
import pytest
import torch
from lab_pages import decoded, fraction
from made_up import stress_content

from lab.explore import drawing as plots
from lab.explore import script_data, story
from report import plain


@pytest.fixture
def figures(monkeypatch):
    """The figures that a section draws, {name: Figure}."""
    drawn = {}
    monkeypatch.setattr(plots, "to_svg", lambda figure, name, text: drawn.setdefault(name, figure) and name)
    return drawn


@pytest.fixture
def puzzles(left):
    """Six puzzles, of the first six mistakes; which squares turn them, and what the map's do, is made up."""
    _, answers, evidence = left
    mistakes = evidence["mistakes"][:6]
    truth = answers["y_true"][mistakes]
    classes = ((truth + 1) % 100)[:, None, None].expand(6, 137, 3).clone()
    best, by_map = torch.tensor([-1, 20, 20, -1, 20, 20]), torch.tensor([30, 30, 20, 30, 20, 20])
    for k in range(6):
        if best[k] >= 0:
            classes[k, best[k], 0] = truth[k]
    evidence |= {"puzzles": mistakes, "puzzle_classes": classes, "puzzle_best": best, "puzzle_by_map": by_map}
    evidence["puzzle_random"] = torch.tensor([0.0, 0.01, 0.3, 0.0, 0.1, 0.2], dtype=torch.float64)
    evidence["puzzle_probabilities"] = torch.rand(6, 137, 3, generator=torch.Generator().manual_seed(1))
    cells = [(), *((a,) for a in range(16)), *((a, b) for a in range(16) for b in range(a + 1, 16))]
    evidence["covers"] = torch.tensor([(*pair, -1, -1)[:2] for pair in cells])
    return left


def test_the_game_opens_with_what_the_map_solves_and_luck_seldom(puzzles, small_sets):
    _, answers, evidence = puzzles
    order = script_data.puzzle_order(answers, evidence)
    assert order[0] == 4  # puzzle 1 is rarer, but the map's squares do not solve it
    assert sorted(order) == list(range(6)) and [k for k in order if k not in (0, 3)] == [4, 1, 2, 5]
    assert order == script_data.puzzle_order(answers, evidence)
    shown = story.game(answers, evidence, small_sets[1].images)
    index = evidence["mistakes"][4]
    true, predicted = (plain(answers["class_names"][answers[key][index]]) for key in ("y_true", "y_pred"))
    assert shown["opener"]["title"] in {
        f"It calls this {true} {a} {predicted}. Can you change its mind?" for a in ("a", "an")
    }
    assert shown["opener"]["answer"] == true and shown["opener"]["cells"] == evidence["covers"][20].tolist()
    sheet = decoded(shown["puzzle_sheet"]["address"].split(",")[1]).float()
    for column, k in enumerate(order):
        image = small_sets[1].images[evidence["mistakes"][k]]
        assert (sheet[:, :, 32 * column : 32 * column + 32] - image).abs().mean() < 12
    for name in ("an apple", "a lamp"):
        title = f"It calls this crab {name}. Can you change its mind?"
        assert script_data.title_of("crab", name.split()[1]) == title
    titles = [row["title"] for row in script_data.puzzle_data(answers, evidence)]
    assert titles[0] == shown["opener"]["title"] and len(titles) == 6


def test_a_puzzle_in_the_data_of_the_script(puzzles):
    _, answers, evidence = puzzles
    rows = script_data.puzzle_data(answers, evidence)
    for row, k in zip(rows, script_data.puzzle_order(answers, evidence), strict=True):
        assert row["mistake"] == k and row["true"] == answers["y_true"][evidence["mistakes"][k]]
        assert row["best"] == (None if k in (0, 3) else 20)
        classes, probabilities = evidence["puzzle_classes"][k, 136], evidence["puzzle_probabilities"][k, 136]
        pairs = zip(classes.tolist(), probabilities.tolist(), strict=True)
        assert row["answers"][136] == [number for c, p in pairs for number in (c, round(100 * p))]


def test_the_matrix_of_the_superclasses_and_the_groups_confused_most(left):
    _, answers, _ = left
    group, counts, inside = answers["superclass_of"].tolist(), {}, {}
    for true, predicted in zip(answers["y_true"].tolist(), answers["y_pred"].tolist(), strict=True):
        pair = group[true], group[predicted]
        counts[pair] = counts.get(pair, 0) + 1
        if true != predicted and pair[0] == pair[1]:
            inside[pair[0]] = inside.get(pair[0], 0) + 1
    names = [plain(name) for name in answers["superclass_names"]]
    shown = story.matrix(answers)
    assert shown["of_superclasses"] and [row["name"] for row in shown["matrix"]] == names
    for i, row in enumerate(shown["matrix"]):
        assert [cell["count"] for cell in row["cells"]] == [counts.get((i, j), 0) for j in range(len(names))]
        assert [cell["right"] for cell in row["cells"]] == [i == j for j in range(len(names))]
        assert row["cells"][0]["link"] == {"superclass": names[i], "predicted_superclass": names[0]}
    sizes = {i: sum(counts.get((i, j), 0) for j in range(len(names))) for i in range(len(names))}
    shares = sorted((inside.get(i, 0) / sizes[i] for i in sizes), reverse=True)
    assert [row["value"] for row in story.groups(answers)] == pytest.approx(shares[:2])


def test_superclasses_make_the_title_only_if_mistakes_stay_inside_more_than_by_chance(left):
    numbers, answers, _ = left
    for inside, expected in ((0.3, 2), (0.1, 0), (None, 0)):
        shares = {"errors_within_superclass": inside, "chance_within_superclass": 0.2}
        assert len(story.confusions(numbers | shares, answers, {}, None)["groups"]) == expected


def test_a_hundred_classes_without_superclasses_have_no_matrix_here(left):
    _, answers, _ = left
    del answers["superclass_of"]
    assert story.matrix(answers)["matrix"] is None and story.groups(answers) == []


def test_mistakes_with_maps_show_what_was_covered(left, small_sets):
    _, answers, evidence = left
    truth = answers["y_true"][evidence["mistakes"]]
    places = torch.arange(9).flip(0)
    evidence["covered_answers"][8], evidence["shown"] = truth[8], places
    usual = {"maps": evidence["maps"][:9], "covered_pixels": evidence["covered_pixels"][:9]}
    usual |= {"answers": (truth[places] + 1) % 100, "probabilities": torch.linspace(0.1, 0.9, 9)}
    evidence |= {f"usual_{key}": value for key, value in usual.items()}
    cases = story.maps({}, answers, evidence, small_sets[1].images)["cases"]
    assert len(cases) == 9 and cases[0]["turned"] == {"usual": False, "contrastive": True}
    index = evidence["mistakes"][places].tolist()
    assert [row["file"] for row in cases] == [answers["filenames"][i] for i in index]
    image = small_sets[1].images[index[0]]
    hidden = {"contrastive": evidence["covered_pixels"][8], "usual": evidence["covered_pixels"][0]}
    for kind, pixels in hidden.items():
        seen = decoded(cases[0]["kinds"][kind]["covered"].split(",")[1])
        assert torch.equal(seen[:, ~pixels], image[:, ~pixels])
        assert (seen[:, pixels] - 255 * evidence["fill"][:, None]).abs().max() <= 0.5
    assert cases[2]["kinds"]["usual"]["probability"] == pytest.approx(0.3)


def test_the_contrastive_map_on_all_mistakes_only_if_the_page_holds_all(left):
    _, answers, evidence = left
    truth, places = answers["y_true"], evidence["mistakes"]
    evidence["covered_answers"][:2] = truth[places[:2]]
    pairs = list(zip(evidence["covered_answers"].tolist(), truth[places].tolist(), strict=True))
    share = pytest.approx(sum(answer == true for answer, true in pairs) / len(pairs))
    only_these = truth.index_add(0, places, torch.ones_like(places))
    shown = story.turned_of_all(answers | {"y_pred": only_these}, evidence)
    assert shown == {"count": len(pairs), "share": share}
    only_these[next(i for i in range(len(truth)) if i not in places.tolist())] += 1
    assert story.turned_of_all(answers | {"y_pred": only_these}, evidence) is None


def test_the_hardest_corruption_and_every_epsilon(left, figures, small_sets):
    _, answers, _ = left
    stress = stress_content(answers["y_true"])
    tests = stress["tests"]
    for name, values in {"frost": (0.1, 0.1, 0.19, 0.1, 0.1), "snow": (0.5, 0.5, 0.18, 0.5, 0.5)}.items():
        for severity, value in enumerate(values, 1):
            tests[f"{name}/{severity}"]["accuracy"] = fraction(value)
    shown = story.stress_tests(answers, stress, small_sets[1].images)
    assert shown["hardest"] == "snow"  # the lowest at severity 3, not on average
    for row in shown["corruption_rows"]:
        values = [tests[f"{row['name']}/{severity}"]["accuracy"]["value"] for severity in range(1, 6)]
        assert row["values"] == pytest.approx([*values, np.mean(values)])
    (axes,) = figures["epsilon"].axes
    curves = [list(line.get_xdata()) for line in axes.lines if len(line.get_xdata()) > 2]
    assert curves == [stress["epsilons"][:-1]] * 4
    assert script_data.stress_data(answers, stress)["attacks"]["epsilons"] == stress["epsilons"][:-1]


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

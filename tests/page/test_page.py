"""The page: what its templates say and show of made-up findings, against loops over what was found."""

import base64
import json
import re
from html import unescape
from urllib.parse import parse_qsl

import numpy as np
import pytest
import torch
from jinja2 import UndefinedError
from pages import decoded, stress_content, text

from page import page, pictures, sections


def cell(sheet, row, column):
    """Return a picture, float32 [3, 32, 32], of a sheet of them."""
    return sheet[:, 32 * row : 32 * row + 32, 32 * column : 32 * column + 32].float()


def stored(content, *shape):
    return np.frombuffer(base64.b64decode(content), dtype=np.uint8).reshape(shape)


def of(sheet):
    return decoded(sheet["address"].split(",")[1])


def test_words_for_numbers():
    assert page.percent(0.1234) == "12.3\N{NO-BREAK SPACE}%" and page.percent(None) == "–"
    row = {"value": 0.5, "low": 0.25, "high": 0.75}
    assert page.interval(row, 0) == "50\N{NO-BREAK SPACE}% (25–75)"
    assert page.points(row) == "+50.0 points (+25.0 to +75.0)"
    assert page.points({key: -value for key, value in row.items()}, 0) == "−50 points (−25 to −75)"
    assert [page.p_value(p) for p in (0.5, 0.0012, 1e-9)] == ["0.50", "0.0012", "below 0.0001"]


def test_a_share_in_words():
    said = {0.76: "three in four", 0.099: "one in ten", 0.665: "two in three", 0.85: "85 in 100", 0: "none"}
    said |= {1: "all", 0.001: "1 in 100", 0.999: "99 in 100", 0.41: "two in five"}
    assert {share: page.in_words(share) for share in said} == said


def test_a_missing_value_fails_and_every_text_is_escaped():
    templates = page.environment()
    with pytest.raises(UndefinedError):
        templates.from_string("{{ n.no_such_value }}").render(n={})
    assert templates.from_string("{{ name }}").render(name="<b>&") == "&lt;b&gt;&amp;"


def test_the_code_behind_a_number_is_its_source():
    (source,) = page.sources("metrics.accuracy")
    lines = (page.FOLDER.parent / "metrics.py").read_text(encoding="utf-8").splitlines()
    assert source["path"] == "metrics.py" and lines[source["line"] - 1] == source["text"].split("\n")[0]
    for template in page.FOLDER.glob("*.html"):
        for names in re.findall(r'code\("(.*?)"\)', template.read_text(encoding="utf-8"), re.DOTALL):
            assert all(found["text"] for found in page.sources(names))


def test_the_data_of_the_script(left):
    numbers, answers, evidence = left
    rows, y_true = answers["probabilities"].tolist(), answers["y_true"].tolist()
    stress = stress_content(answers["y_true"])
    data = json.loads(json.dumps(pictures.data_for_script(numbers, answers, evidence, stress)))
    wrong = [i for i, row in enumerate(rows) if row.index(max(row)) != y_true[i]]
    wrong = sorted(wrong, key=lambda i: -max(rows[i]))[:30]
    assert [row["file"] for row in data["images"]] == [answers["filenames"][i] for i in wrong]
    assert data["runs"] == ["this network", "another training (b)"]
    for row, i in zip(data["images"], wrong, strict=True):
        likely = sorted(range(100), key=lambda c: -rows[i][c])[:3]
        assert row["answers"][0] == [[c, round(rows[i][c], 4)] for c in likely] and len(row["answers"]) == 2
        assert (row["true"], row["copied"]) == (y_true[i], y_true[i])
        assert row["truth"] == round(rows[i][y_true[i]], 4)
        assert row["covered"] == [likely[0], 0.99]
        rank = sorted(rows[i], reverse=True).index(rows[i][y_true[i]])
        assert row["rank"] == rank + 1
        kind = "second" if rank == 1 else "in_first_five" if rank < 5 else "further_down"
        assert data["kinds"][row["kind"]] == kind
    scale = evidence["maps"].abs().amax(dim=(1, 2))[:, None]
    shown = (stored(data["maps"], 30, 16).astype(float) - 128) / 127
    np.testing.assert_allclose(shown, evidence["maps"].flatten(1) / scale, atol=0.005)
    hidden = evidence["covered_pixels"].flatten().numpy()
    assert (np.unpackbits(stored(data["covered_pixels"], -1)) == hidden).all()
    assert data["corruptions"]["answers"] == stress["examples"]["answers"]
    assert data["attacks"]["answers"] == stress["attack_examples"]["answers"]
    # What is not known is left out.
    del evidence["maps"], evidence["covered_answers"], answers["training_labels"]
    data = pictures.data_for_script(numbers, answers, evidence, None)
    assert not {"maps", "covered_pixels", "corruptions", "attacks"} & data.keys()
    assert "covered" not in data["images"][0] and data["images"][0]["copied"] == -1


def test_a_sheet_holds_the_pictures_in_their_order(small_sets):
    images = small_sets[1].images[:30]
    sheet = of(pictures.sheet(images))
    assert all((cell(sheet, *divmod(n, 6)) - image).abs().mean() < 12 for n, image in enumerate(images))


def test_the_puzzles(left, small_sets):
    _, answers, evidence = left
    classes = torch.randint(100, (137, 3), generator=torch.Generator().manual_seed(0))
    probabilities = torch.rand(137, 3, generator=torch.Generator().manual_seed(1))
    puzzle = {"classes": classes, "probabilities": probabilities, "best": 20, "by_map": -1, "random": 0.25}
    evidence |= {f"puzzle_{key}": torch.as_tensor(value)[None] for key, value in puzzle.items()}
    evidence["puzzles"] = torch.tensor([7])
    (row,) = pictures.puzzle_data(answers, evidence)
    assert (row["true"], row["best"], row["by_map"], row["random"]) == (answers["y_true"][7], 20, None, 0.25)
    for place in (0, 136):
        pairs = zip(classes[place].tolist(), probabilities[place].tolist(), strict=True)
        assert row["answers"][place] == [number for c, p in pairs for number in (c, round(100 * p))]
    assert row["file"] == answers["filenames"][7]
    assert sections.one_mistake(answers, evidence, small_sets[1].images)["opener"] is None
    evidence["opener"] = torch.tensor(3)
    shown = sections.one_mistake(answers, evidence, small_sets[1].images)
    assert shown["followed"]["link"]["open"] == answers["filenames"][7]
    index = evidence["mistakes"][3].item()
    image, hidden = small_sets[1].images[index], evidence["covered_pixels"][3]
    assert shown["opener"]["link"]["open"] == answers["filenames"][index]
    covered = decoded(shown["opener"]["covered"].split(",")[1])
    assert torch.equal(covered[:, ~hidden], image[:, ~hidden]) and hidden.sum() == 256
    assert (covered[:, hidden] - 255 * evidence["fill"][:, None]).abs().max() <= 0.5


def test_the_sheets_of_the_viewers(small_sets):
    images, results = small_sets[1].images, stress_content(small_sets[1].labels)
    sheet = of(pictures.attack_sheet(images, results))
    step = results["epsilons"].index(4)
    for attack in (0, 1):
        for column, change in enumerate(results["attack_changes"][attack, step] / 127):
            first = 1 + 2 * (6 * attack + step)
            for row, image in ((first, 128 + 100 * change), (first + 1, images[column] + 4 * change)):
                assert (cell(sheet, row, column) - image.clamp(0, 255)).abs().mean() < 12


def test_the_whole_page(reported, reported_sets):
    written = (reported / "report.html").read_text(encoding="utf-8")
    numbers = json.loads((reported / "metrics.json").read_text(encoding="utf-8"))
    seen = text(written)
    claims = [text(claim) for claim in re.findall(r'<p class="claim">(.*?)</p>', written, re.DOTALL)]
    assert len(claims) == 7
    three = text(re.search(r'<ul class="claims">(.*?)</ul>', written, re.DOTALL).group(1))
    for claim in claims:
        assert 0 < len(claim.replace(" %", "%").split()) <= 20 and claim.endswith("."), claim
        assert seen.count(claim) == 1 + (claim in three)  # above its section, and on the first screen
    assert sum(claim in three for claim in claims) == 3
    assert f"{100 * numbers['accuracy']['value']:.1f} % (" in seen
    assert not re.search(r"\b(nan|NaN|None|undefined)\b|Markup", seen) and "<so>" in seen
    assert not re.search(r"[a-z]\.[A-Z]|\.\d* ?[A-Z][a-z]+ [a-z]+\.[A-Z]", seen.replace("report.html", ""))
    # Each mistake is found by its class and its file, whatever letters are in them.
    _, test = reported_sets
    addresses = re.findall(r'href="#(true=[^"]*?open=.*?)"', written)
    for address in addresses:
        query = dict(parse_qsl(unescape(address)))
        index = [i for i, name in enumerate(test.filenames) if name == query["open"]]
        assert query["true"] in [test.class_names[test.labels[i]].replace("_", " ") for i in index]
    assert addresses
    kinds = {row["name"]: row["count"] for row in numbers["kinds"]}
    share = 100 * kinds["same_in_all"] / sum(kinds.values())
    assert f"{share:.0f} % of {sum(kinds.values())} mistakes are the same wrong answer in both runs" in seen

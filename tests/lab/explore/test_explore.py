"""The page: what its templates say and show of made-up findings, against loops over what was found."""

import base64
import json
import re
from html import unescape
from urllib.parse import parse_qsl

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from jinja2 import UndefinedError
from lab_pages import COVERING, HOSTILE_FILE, MAPS, stress_content
from pages import decoded, text

from lab import reasons
from page import failures, pictures, sections, write
from support import outputs
from support.files import write_json


def cell(sheet, row, column):
    """Return a picture, float32 [3, 32, 32], of a sheet of them."""
    return sheet[:, 32 * row : 32 * row + 32, 32 * column : 32 * column + 32].float()


def stored(content, *shape):
    return np.frombuffer(base64.b64decode(content), dtype=np.uint8).reshape(shape)


def test_words_for_numbers():
    assert write.percent(0.1234) == "12.3\N{NO-BREAK SPACE}%" and write.percent(None) == "–"
    row = {"value": 0.5, "low": 0.25, "high": 0.75}
    assert write.interval(row, 0) == "50\N{NO-BREAK SPACE}% (25–75)"
    assert write.points(row) == "+50.0 points (+25.0 to +75.0)"
    assert write.points({key: -value for key, value in row.items()}, 0) == "−50 points (−25 to −75)"
    assert [write.p_value(p) for p in (0.5, 0.0012, 1e-9)] == ["0.50", "0.0012", "below 0.0001"]


def test_a_share_in_words():
    said = {0.76: "three in four", 0.099: "one in ten", 0.665: "two in three", 0.85: "85 in 100", 0: "none"}
    said |= {1: "all", 0.001: "1 in 100", 0.999: "99 in 100", 0.41: "two in five"}
    assert {share: write.in_words(share) for share in said} == said


def test_a_missing_value_fails_and_every_text_is_escaped():
    templates = write.make_templates()
    with pytest.raises(UndefinedError):
        templates.from_string("{{ n.no_such_value }}").render(n={})
    assert templates.from_string("{{ name }}").render(name="<b>&") == "&lt;b&gt;&amp;"


def test_the_code_behind_a_number_is_its_source():
    source = write.source("metrics.accuracy")
    lines = (write.FOLDER.parent / "metrics.py").read_text(encoding="utf-8").splitlines()
    assert source["path"] == "metrics.py" and lines[source["line"] - 1] == source["text"].split("\n")[0]
    for template in write.FOLDER.glob("*.html"):
        for names in re.findall(r'code\("(.*?)"\)', template.read_text(encoding="utf-8"), re.DOTALL):
            assert all(write.source(name.strip())["text"] for name in names.split(","))


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
    sheet = decoded(pictures.attack_sheet(images, results)["address"].split(",")[1])
    step = results["epsilons"].index(4)
    for attack in (0, 1):
        for column, change in enumerate(results["attack_changes"][attack, step] / 127):
            first = 1 + 2 * (6 * attack + step)
            for row, image in ((first, 128 + 100 * change), (first + 1, images[column] + 4 * change)):
                assert (cell(sheet, row, column) - image.clamp(0, 255)).abs().mean() < 12


def write_folder(folder, numbers, answers, evidence, stress):
    """A run folder as report.py leaves it, with pictures of 96 pixels; return them."""
    coarse = 255 * torch.rand(100, 1, 4, 4, generator=torch.Generator().manual_seed(0)).expand(-1, 3, -1, -1)
    answers["runs"] = evidence["runs"] = numbers["runs"] = ["this network"]
    for key in ("answers", "answer_probabilities"):
        evidence[key] = evidence[key][:1]
    digests = {key: "a digest" for key in outputs.IDENTITY if key not in ("class_names", "fixed_logits")}
    numbers |= {"network": {"name": "a network"}, "environment": {}, "command": {}, "notes": []}
    numbers["data"] = {"name": "pets", "provenance": "pets", "digest": "of"}
    write_json(folder / "metrics.json", numbers | digests | {"fixed_logits": None})
    outputs.write_arrays(folder / "predictions.npz", answers | digests)
    outputs.write_arrays(folder / "evidence.npz", evidence | digests)
    write_json(folder / "stress.json", digests)  # only so that it is there; see read_stress
    return F.interpolate(coarse, 96, mode="bilinear").byte()  # smooth, so that JPEG changes little


def written_page(folder, images, stress):
    """The page of the folder, its claims, and the data of its script."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sections, "write_plots", NO_PLOTS)
        patch.setattr(failures, "NUM_FAILURES", 1)
        patch.setattr(write, "read_stress", lambda folder, whose: stress)
        write.write_page(folder, images)
    written = (folder / "report.html").read_text(encoding="utf-8")
    claims = [text(claim) for claim in re.findall(r'<p class="claim">(.*?)</p>', written, re.DOTALL)]
    assert not re.search(r"\b(nan|NaN|None|undefined)\b|Markup", text(written))
    content = re.search(r'<script type="application/json" id="page-data">(.*?)</script>', written)[1]
    return written, claims, json.loads(content)


def test_the_whole_page(left, tmp_path):
    """Pictures of 96 pixels are reduced as torchvision reduces them; of attacked ones the middle is shown."""
    numbers, answers, evidence = left
    stress, mistakes = stress_content(answers["y_true"]), evidence["mistakes"]
    evidence["covered_pixels"] = reasons.top_pixels(evidence["maps"], 0.25, 64)
    evidence |= {"opener": torch.tensor(0), "puzzles": mistakes[:1], "covers": torch.zeros(137, 2)}
    evidence |= {f"puzzle_{key}": torch.zeros(1) for key in ("best", "by_map", "random")}
    evidence |= {f"puzzle_{key}": torch.zeros(1, 137, 3) for key in ("classes", "probabilities")}
    answers["filenames"][mistakes[0]], answers["filenames"][mistakes[1]] = HOSTILE_FILE, "2" + HOSTILE_FILE
    numbers |= {"covering": COVERING | {"verdict": "specific"}, "maps": MAPS}
    for name, shape in (("example_pixels", (-1, -1, -1)), ("attack_changes", (-1, -1, -1, -1))):
        stress[name] = stress[name][..., :1, :1].expand(*shape, 64, 64)
    images = write_folder(tmp_path, *left, stress)
    written, claims, data = written_page(tmp_path, images, stress)
    seen, three = text(written), text(re.search(r'<ul class="claims">(.*?)</ul>', written, re.DOTALL)[1])
    assert len(claims) == 7 and sum(claim in three for claim in claims) == 3
    for claim in claims:
        assert 0 < len(claim.replace(" %", "%").split()) <= 20 and claim.endswith("."), claim
        assert seen.count(claim) == 1 + (claim in three)  # above its section, and on the first screen
    assert f"{100 * numbers['accuracy']['value']:.1f} % (" in seen and "<so>" in seen
    # Each mistake is found by its class and its file, whatever letters are in them.
    links = re.findall(r'href="#(true=[^"]*?open=.*?)"', written)
    addresses = [dict(parse_qsl(unescape(link))) for link in links]
    names = [pictures.plain(answers["class_names"][c]) for c in answers["y_true"]]
    known = set(zip(names, answers["filenames"], strict=True))
    assert {(address["true"], address["open"]) for address in addresses} < known and addresses
    assert data["images"][0]["file"] == HOSTILE_FILE and data["side"] == 64 and "middle 64x64" in seen
    sheets = dict(re.findall(r"<style>\.(\w+) \{ --sheet: url\(data:image/jpeg;base64,(.*?)\)", written))
    sheet, attacked = decoded(sheets["mistakes"]), decoded(sheets["attacked"])
    assert sheet.shape == (3, 5 * 64, 6 * 64)  # thirty mistakes
    second = F.interpolate(images[mistakes[1]][None].float(), 64, mode="bilinear", antialias=True)[0]
    assert (sheet[:, :64, 64:128].float() - second).abs().mean() < 12
    assert (attacked[:, :64, :64].float() - images[0][:, 16:80, 16:80]).abs().mean() < 12
    (failure,) = (tmp_path / "failures").glob("*.png")
    assert decoded(failure.read_bytes()).shape == (3, 192, 192)


def test_without_pictures_mistakes_are_a_table(left, tmp_path):
    for key in ("fill", "maps", "covered_pixels", "covered_answers", "covered_probabilities"):
        del left[2][key]
    del left[1]["training_labels"]
    write_folder(tmp_path, *left, None)
    written, claims, data = written_page(tmp_path, None, None)
    assert {row["copied"] for row in data["images"]} == {-1}
    assert data["side"] is None and len(data["images"]) == 30 and '<tbody id="thumbnails">' in written
    assert "<canvas" not in written and "mistakes {" not in written.split("<script>")[0]
    assert len(claims) == len(re.findall("<section", written)) == 4 and all(claims)
    rows = (tmp_path / "failures" / "failures.csv").read_text(encoding="utf-8").splitlines()
    assert len(rows) == 2 and not list((tmp_path / "failures").glob("*.png"))

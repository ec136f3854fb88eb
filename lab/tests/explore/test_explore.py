"""The page as a whole: the data of its script, links and sections, and pages of which little is known."""

import json
import re
from html import unescape
from urllib.parse import parse_qsl

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from lab_pages import decoded, text
from made_files import covering, stress_results, with_puzzles
from made_up import HOSTILE_FILE

import report
from lab import reasons, results
from lab.explore import compose, script_data

SECTIONS = ["mistakes", "maps", "corruptions", "confidence", "unlabelled", "attacks", "accuracy"]


def stored(content, *shape):
    return np.frombuffer(script_data.base64.b64decode(content), dtype=np.uint8).reshape(shape)


def test_words_of_the_templates_are_in_the_glossary_and_the_function_behind_a_number_is_its_source():
    written = "".join(template.read_text(encoding="utf-8") for template in compose.FOLDER.glob("*.html"))
    words = re.findall(r'term\("(.*?)"', written)
    assert len(words) > 8 and all(compose.glossary()[word.lower()] for word in words)
    names = re.findall(r'set computed = "(.*?)"', written)
    assert len(names) == len(SECTIONS) and all(compose.source(name)["text"] for name in names)
    source = compose.source("metrics.accuracy")
    lines = (compose.ROOT / "metrics.py").read_text(encoding="utf-8").splitlines()
    assert source["path"] == "metrics.py" and lines[source["line"] - 1] == source["text"].split("\n")[0]


def test_the_data_of_the_script(left):
    numbers, answers, evidence = left
    rows, y_true = answers["probabilities"].tolist(), answers["y_true"].tolist()
    stress = stress_results(answers["y_true"])
    evidence["copies"] = answers["y_true"][evidence["mistakes"]]
    data = json.loads(json.dumps(script_data.data_for_script(numbers, answers, evidence, stress)))
    wrong = [i for i, row in enumerate(rows) if row.index(max(row)) != y_true[i]]
    wrong = sorted(wrong, key=lambda i: -max(rows[i]))[:30]
    assert [row["file"] for row in data["images"]] == [answers["filenames"][i] for i in wrong]
    assert data["runs"] == ["b"]
    for row, i in zip(data["images"], wrong, strict=True):
        likely = sorted(range(100), key=lambda c: -rows[i][c])[:3]
        pairs = [[c, round(rows[i][c], 4)] for c in likely]
        pairs[0][1] = row["confidence"]  # one answer has one probability, to the last digit
        assert row["answers"] == pairs
        other = max(rows[99 - i])  # conftest.left: the other run answers in reversed order
        assert row["others"] == [[rows[99 - i].index(other), round(other, 4)]]
        assert (row["true"], row["copied"]) == (y_true[i], y_true[i])
        assert row["truth"] == round(rows[i][y_true[i]], 4)
        assert row["covered"] == [likely[0], 0.99]
        rank = sorted(rows[i], reverse=True).index(rows[i][y_true[i]])
        assert row["rank"] == rank + 1
    scale = evidence["maps"].abs().amax(dim=(1, 2))[:, None]
    shown = (stored(data["maps"], 30, 16).astype(float) - 128) / 127
    np.testing.assert_allclose(shown, evidence["maps"].flatten(1) / scale, atol=0.005)
    hidden = evidence["covered_pixels"].flatten().numpy()
    assert (np.unpackbits(stored(data["covered_pixels"], -1)) == hidden).all()
    assert data["corruptions"]["answers"] == stress["examples"]["answers"]
    assert data["attacks"]["answers"] == stress["attack_examples"]["answers"]
    for test, right in data["corruptions"]["right"].items():
        row = stress["tests"].get(test) or stress["summary"]["cues"][test.split("/")[0]]
        assert right == row["accuracy"]["value"]
    right = script_data.stress_data(answers, stress)["attacks"]["right"]
    for epsilon in stress["epsilons"]:
        assert right["worst"][f"{epsilon:g}"] == stress["robust_accuracy"][f"{epsilon:g}"]["value"]
        assert right["random"][f"{epsilon:g}"] == stress["random_signs"][f"{epsilon:g}"]["value"]


def written_page(folder, numbers, answers, evidence, stress, images):
    """The page of a folder as lab.examine leaves it: its HTML, its claims, the script's data."""
    numbers |= {
        "network": {"name": "a net of width 9"},
        "notes": [],
        "data": {"name": "pets", "described": "pets"},
    }
    numbers |= {
        "network_sha256": "of a network",
        "checkpoint_sha256": "of weights",
        "images_sha256": "of images",
    }
    numbers = report.write_numbers(folder, numbers, answers)
    results.write_reasons(folder, numbers, evidence)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(results, "read_stress", lambda folder, owner: stress)
        compose.write_explore(folder, images)
    written = (folder / "explore.html").read_text(encoding="utf-8")
    claims = [
        text(claim) for claim in re.findall(r'<span class="claim">(.*?)</span></h2>', written, re.DOTALL)
    ]
    assert not re.search(r"\b(nan|NaN|None|undefined)\b|Markup", text(written))
    content = re.search(r'<script type="application/json" id="page-data">(.*?)</script>', written)[1]
    return written, claims, json.loads(content)


def test_the_whole_page(left, tmp_path):
    """Pictures of 96 pixels are reduced as torchvision reduces them; of attacked ones the middle is shown."""
    numbers, answers, evidence = left
    mistakes, stress = evidence["mistakes"], stress_results(answers["y_true"])
    evidence["covered_pixels"] = reasons.top_pixels(evidence["maps"], 0.25, 64)
    evidence = with_puzzles(evidence, answers)
    answers["filenames"] = list(answers["filenames"])  # other tests read the list of the test set
    answers["filenames"][mistakes[0]], answers["filenames"][mistakes[1]] = HOSTILE_FILE, "2" + HOSTILE_FILE
    numbers |= {"covering": covering()}
    for name, shape in (("example_pixels", (-1, -1, -1)), ("attack_changes", (-1, -1, -1, -1))):
        stress[name] = stress[name][..., :1, :1].expand(*shape, 64, 64)
    coarse = 255 * torch.rand(100, 1, 4, 4, generator=torch.Generator().manual_seed(0)).expand(-1, 3, -1, -1)
    images = F.interpolate(coarse, 96, mode="bilinear").byte()  # smooth, so that JPEG changes little
    written, claims, data = written_page(tmp_path, numbers, answers, evidence, stress, images)
    assert re.findall(r'<section aria-labelledby="(\w+)"', written) == SECTIONS
    for claim in claims:
        assert 0 < len(claim.split()) <= 20 and claim.endswith("."), claim
        assert len(re.findall(r"\d+(?:[.,]\d+)?", claim)) <= 2, claim
    seen = text(written)
    assert "What is this?" in seen and "a net says" in seen and "width" not in seen
    assert f"{100 * numbers['accuracy']['value']:.1f} % (" in seen
    addresses = [dict(parse_qsl(unescape(link))) for link in re.findall(r'href="#(true=all.*?)"', written)]
    groups = {f"all {name}".replace("_", " ") for name in answers["superclass_names"]}
    assert addresses and all(set(address.values()) <= groups for address in addresses)
    assert data["images"][0]["file"] == HOSTILE_FILE and data["side"] == 64 and "middle 64x64" in seen
    sheets = dict(re.findall(r"<style>\.(\w+) \{ --sheet: url\(data:image/jpeg;base64,(.*?)\)", written))
    sheet, attacked = decoded(sheets["mistakes"]), decoded(sheets["attacked"])
    assert sheet.shape == (3, 5 * 64, 6 * 64)  # thirty mistakes
    second = F.interpolate(images[mistakes[1]][None].float(), 64, mode="bilinear", antialias=True)[0]
    assert (sheet[:, :64, 64:128].float() - second).abs().mean() < 12
    assert (attacked[:, :64, :64].float() - images[0][:, 16:80, 16:80]).abs().mean() < 12


def test_without_pictures_mistakes_are_a_table(left, tmp_path):
    for key in ("fill", "maps", "covered_pixels", "covered_answers", "covered_probabilities"):
        del left[2][key]
    written, claims, data = written_page(tmp_path, *left, None, None)
    assert {row["copied"] for row in data["images"]} == {-1}
    assert data["side"] is None and len(data["images"]) == 30 and '<tbody id="thumbnails">' in written
    assert "<canvas" not in written and "mistakes {" not in written.split("<script>")[0]
    assert "How and where does this network fail?" in written
    assert len(claims) == len(re.findall("<section", written)) and all(claims)


def test_a_quick_run_has_numbers_only_and_one_command_for_stress_tests(left, tmp_path):
    numbers, answers, _ = left
    written, claims, data = written_page(tmp_path, numbers, answers, None, None, None)
    assert data["images"] == data["puzzles"] == [] and 'id="browser"' not in written
    shown = re.findall(r'<section aria-labelledby="(\w+)"', written)
    assert shown == ["mistakes", "corruptions", "confidence", "accuracy"] and all(claims)
    assert written.count("python -m lab.stress") == 1


def test_the_command_of_the_stress_tests(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run = compose.Path("runs") / "mine"
    assert compose.command_of_stress(run).startswith("python -m lab.stress --out runs/mine, with what")
    (run / "checkpoints").mkdir(parents=True)
    (run / "checkpoints" / "best.pt").touch()
    assert compose.command_of_stress(run) == "python -m lab.stress --run runs/mine"
    assert compose.command_of_stress(run.resolve()) == "python -m lab.stress --run mine"

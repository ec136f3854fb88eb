"""page/sections.py puts numbers together: signs, sides, the hardest row, epsilons, pictures of any size."""

import itertools
import json
import re

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from pages import NO_PLOTS, decoded, fraction, stress_content, text

import reasons
from page import failures, page, pictures, plots, sections
from running import outputs
from running.files import write_json


@pytest.fixture
def figures(monkeypatch):
    """The figures that a section draws, {name: Figure}."""
    drawn = {}
    monkeypatch.setattr(plots, "to_svg", lambda figure, name, said: drawn.setdefault(name, figure) and name)
    return drawn


@pytest.fixture
def stress(left):
    return stress_content(left[1]["y_true"])


def brightness(picture, row, column):
    """Of one of the 4x4 cells of a picture in an address."""
    size = decoded(picture.split(",")[1]).float()
    side = size.shape[-1] // 4
    return size[:, side * row : side * (row + 1), side * column : side * (column + 1)].mean().item()


def test_the_opener_is_the_surest_truth_and_its_maps_have_their_signs(left, small_sets):
    _, answers, evidence = left
    truth = answers["y_true"][evidence["mistakes"]]
    evidence["covered_answers"] = (truth + 1) % 100
    evidence["covered_probabilities"][:] = torch.linspace(0.9, 0.1, 30)
    evidence["covered_answers"][[3, 7]] = truth[[3, 7]]
    evidence["covered_probabilities"][7] = 0.85
    evidence["opener"] = torch.tensor(7)
    evidence["maps"][7] = torch.zeros(4, 4)
    evidence["maps"][7, 0, 1], evidence["maps"][7, 3, 2] = 2.0, -2.0
    evidence["puzzles"] = torch.tensor([7])
    black = torch.zeros_like(small_sets[1].images)
    opener = sections.one_mistake(answers, evidence, black)["opener"]
    assert opener["true"] == pictures.plain(answers["class_names"][truth[7]])
    assert opener["probability"] == pytest.approx(0.85) and opener["answer"] == opener["true"]
    assert brightness(opener["for"], 0, 1) > 100 > 5 > brightness(opener["for"], 3, 2)
    assert brightness(opener["against"], 3, 2) > 100 > 5 > brightness(opener["against"], 0, 1)


def test_the_histogram_has_right_and_wrong_answers_on_their_sides(left, stress, figures):
    numbers, answers, _ = left
    sections.confidence(numbers, stress)
    logits = answers["probabilities"].log()
    for group, temperature in (("as_trained", 1.0), ("with_temperature", numbers["temperature"])):
        sure, is_right = (
            (logits / temperature).softmax(dim=1).amax(dim=1),
            answers["y_pred"] == answers["y_true"],
        )
        for side, members in (("right", is_right), ("wrong", ~is_right)):
            (steps,) = (
                part for part in figures["histogram"].axes[0].patches if part.get_gid() == f"{side}-{group}"
            )
            values, edges, baseline = steps.get_data()
            expected = np.histogram(sure[members].numpy(), edges)[0]
            assert abs(values - baseline - expected).sum() <= 2, side  # of values at the edge of a bin
    (axes,) = figures["calibration"].axes
    drawn = [list(line.get_ydata()) for line in axes.lines]
    rows = stress["summary"]["by_severity"]
    assert drawn == [[row[key]["ece"] for row in rows] for key in ("as_trained", "with_temperature")]


def test_the_hardest_corruption_and_every_epsilon(left, stress, figures, small_sets):
    tests, answers = stress["tests"], left[1]
    for (name, severity), value in zip(
        itertools.product(("frost", "snow"), range(1, 6)),
        (0.1, 0.1, 0.19, 0.1, 0.1, 0.5, 0.5, 0.18, 0.5, 0.5),
        strict=True,
    ):
        tests[f"{name}/{severity}"]["accuracy"] = fraction(value)
    shown = sections.stress_tests(answers, stress, small_sets[1].images)
    assert shown["hardest"]["name"] == "snow"  # the lowest at severity 3, not on average
    for row in shown["corruption_rows"]:
        values = [tests[f"{row['name']}/{severity}"]["accuracy"]["value"] for severity in range(1, 6)]
        assert row["values"] == pytest.approx([*values, np.mean(values)])
    (axes,) = figures["epsilon"].axes
    curves = [list(line.get_xdata()) for line in axes.lines if len(line.get_xdata()) > 2]
    assert curves == [stress["epsilons"][:-1]] * 4
    assert pictures.stress_data(answers, stress)["attacks"]["epsilons"] == stress["epsilons"][:-1]
    right = [c == answers["y_true"][i] for i, (c, _) in enumerate(stress["examples"]["answers"]["clean/0"])]
    assert shown["clean_right"] == sum(right)


def test_superclasses_that_are_confused_most(left):
    _, answers, _ = left
    pairs, of = sections.superclass_pairs(answers), answers["superclass_of"].tolist()
    rows = zip(answers["y_true"].tolist(), answers["y_pred"].tolist(), strict=True)
    counts = {}
    for true, predicted in rows:
        if of[true] != of[predicted]:
            pair = tuple(pictures.plain(answers["superclass_names"][of[c]]) for c in (true, predicted))
            counts[pair] = counts.get(pair, 0) + 1
    assert [pair["count"] for pair in pairs] == sorted(counts.values(), reverse=True)[:8]
    for pair in pairs:
        assert (
            pair["count"] == counts[pair["true"], pair["predicted"]] and pair["share"] == pair["count"] / 10
        )


def write_folder(folder, left, stress, side):
    """A run folder as report.py leaves it, with pictures of another side; return them."""
    numbers, answers, evidence = left
    generator = torch.Generator().manual_seed(side)
    coarse = 255 * torch.rand(100, 1, 4, 4, generator=generator).expand(-1, 3, -1, -1)
    images = F.interpolate(coarse, side, mode="bilinear").byte()  # smooth, so that JPEG changes little
    answers["runs"] = evidence["runs"] = numbers["runs"] = ["this network"]
    for key in ("answers", "answer_probabilities"):
        evidence[key] = evidence[key][:1]
    evidence["covered_pixels"] = reasons.top_pixels(evidence["maps"], 0.25, min(64, side))
    digests = {key: "a digest" for key in outputs.IDENTITY if key not in ("class_names", "fixed_logits")}
    digests["fixed_logits"] = None
    numbers |= {
        "network": {"name": "a network"},
        "data": {"name": "pets", "provenance": "pets", "digest": "of"},
    }
    numbers |= {"notes": [], "environment": {}, "command": {}, "maps": {"layer": "a layer"}} | digests
    write_json(folder / "metrics.json", numbers)
    outputs.write_arrays(folder / "predictions.npz", answers | digests)
    outputs.write_arrays(folder / "evidence.npz", evidence | digests)
    write_json(folder / "stress.json", digests)  # only so that it is there; see read_stress
    return images


@pytest.fixture
def quick(monkeypatch, stress):
    monkeypatch.setattr(sections, "write_plots", NO_PLOTS)
    monkeypatch.setattr(failures, "NUM_FAILURES", 1)
    monkeypatch.setattr(page, "read_stress", lambda folder, whose: stress)


def data_of(written):
    content = re.search(r'<script type="application/json" id="page-data">(.*?)</script>', written)[1]
    return json.loads(content)


@pytest.mark.parametrize("side", [8, 96])
def test_pictures_of_any_size(left, stress, quick, side, tmp_path):
    """Wide ones are reduced as torchvision reduces them; of the attacked ones the middle is shown."""
    images, shown = write_folder(tmp_path, left, stress, side), min(64, side)
    for name, shape in (("example_pixels", (-1, -1, -1)), ("attack_changes", (-1, -1, -1, -1))):
        stress[name] = stress[name][..., :1, :1].expand(*shape, shown, shown)
    page.write_page(tmp_path, images)
    written = (tmp_path / "report.html").read_text(encoding="utf-8")
    data, evidence = data_of(written), left[2]
    assert (data["side"] == shown and "middle 64x64" in text(written)) or side < 64
    sheet = decoded(re.search(r'id="mistake-images" src="data:image/jpeg;base64,(.*?)"', written)[1])
    assert sheet.shape == (3, 5 * shown, 6 * shown)  # thirty mistakes
    second = F.interpolate(
        images[evidence["mistakes"][1]][None].float(), shown, mode="bilinear", antialias=True
    )
    assert (sheet[:, :shown, shown : 2 * shown].float() - second[0]).abs().mean() < 12
    attacked = decoded(re.search(r"\.attacked \{ --sheet: url\(data:image/jpeg;base64,(.*?)\)", written)[1])
    first = (side - shown) // 2
    middle = images[0][:, first : first + shown, first : first + shown]
    assert (attacked[:, :shown, :shown].float() - middle).abs().mean() < 12
    (failure,) = (tmp_path / "failures").glob("*.png")
    assert decoded(failure.read_bytes()).shape == (3, 256 // side * side, 256 // side * side)


def test_without_pictures_mistakes_are_a_table(left, stress, quick, monkeypatch, tmp_path):
    write_folder(tmp_path, left, stress, 8)
    monkeypatch.setattr(page, "read_stress", lambda folder, whose: None)
    answers_only = {
        key: left[2][key]
        for key in ("mistakes", "answers", "answer_probabilities", "probability_true", "rank_true")
    }
    whose = {key: left[0][key] for key in (*outputs.IDENTITY, "runs")}
    outputs.write_arrays(tmp_path / "evidence.npz", answers_only | whose)
    page.write_page(tmp_path, None)
    written = (tmp_path / "report.html").read_text(encoding="utf-8")
    data = data_of(written)
    assert data["side"] is None and len(data["images"]) == 30 and '<tbody id="thumbnails">' in written
    assert "<canvas" not in written and "mistake-images" not in written.split("<script>")[0]
    claims = re.findall(r'<p class="claim">(.*?)</p>', written, re.DOTALL)
    assert len(claims) == len(re.findall("<section", written)) == 4 and all(text(claim) for claim in claims)
    assert not re.search(r"\b(nan|NaN|None|undefined)\b", text(written))
    rows = (tmp_path / "failures" / "failures.csv").read_text(encoding="utf-8").splitlines()
    assert len(rows) == 2 and not list((tmp_path / "failures").glob("*.png"))

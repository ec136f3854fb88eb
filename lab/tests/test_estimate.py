"""estimate.py against NumPy, loops and simulation: answers of which the truth is known, and refusals.

The worked example: on clean images 80 % are right, at a mean confidence of 70 % and a same answer of 1 %.
Each point of confidence that a corruption takes costs two points of accuracy, and twice the same answer ten.
"""

import itertools
import json
import math
import re

import numpy as np
import pytest
import torch
from lab_networks import Linear, natural_images
from networks import seeded
from PIL import Image

from lab import estimate
from lab.corruptions import FAMILIES, FIFTEEN
from lab.network import load_model

FIFTEEN_BY_FAMILY = {family: [n for n in names if n in FIFTEEN] for family, names in FAMILIES.items()}
CLEAN = {"accuracy": {"value": 0.8}, "mean_confidence": 0.7, "same_answer": 0.01}


def stress_of(accuracy_of, with_same=True):
    """The content of a stress.json in which accuracy_of(family, confidence, same answer) is right."""
    generator, tests = np.random.default_rng(0), {"clean/0": dict(CLEAN)}
    for family, name in [(family, name) for family, names in FIFTEEN_BY_FAMILY.items() for name in names]:
        for severity in range(1, 6):
            confidence, same = generator.uniform(0.3, 0.7), 0.01 * generator.uniform(1, 20)
            record = {"accuracy": {"value": accuracy_of(family, confidence, same)}}
            tests[f"{name}/{severity}"] = record | {"mean_confidence": confidence, "same_answer": same}
    tests["saturate/1"] = {"accuracy": {"value": 0.0}, "mean_confidence": 0.69}  # not one of the fifteen
    if not with_same:
        del tests["fog/3"]["same_answer"]
    return {"families": FIFTEEN_BY_FAMILY, "tests": tests, "dataset": "made up"}


def example(family, confidence, same):
    return 0.8 - 2 * (0.7 - confidence) - 0.1 * math.log2(same / 0.01)


def answers_of(confidence, classes, count=1000, num_classes=200):
    """Answers to so many pictures, of this confidence, that fall on the first classes in turn."""
    rows = torch.full((count, num_classes), (1 - confidence) / (num_classes - 1), dtype=torch.float64)
    rows[torch.arange(count), torch.arange(count) % classes] = confidence
    return rows


def test_same_answer_by_pairs():
    rows = torch.rand(13, 4, generator=seeded(), dtype=torch.float64).softmax(dim=1)
    pairs = [
        sum(a * b for a, b in zip(p, q, strict=True)) for p, q in itertools.permutations(rows.tolist(), 2)
    ]
    assert estimate.same_answer(rows)[0] == pytest.approx(np.mean(pairs))
    every = torch.eye(4, dtype=torch.float64)  # no two answers are alike, which no number of pictures shows
    assert estimate.same_answer(every)[0] == 1 / 8
    assert estimate.same_answer(every[[2, 2, 2]]) == (1, 0)
    with pytest.raises(ValueError, match="one picture is too few"):
        estimate.same_answer(every[:1])


def test_same_answer_is_right_on_average_and_as_uncertain_as_it_says():
    population = (3 * torch.randn(20_000, 10, generator=seeded(1), dtype=torch.float64)).softmax(dim=1)
    population[:, 0] += 1
    population /= population.sum(dim=1, keepdim=True)
    truth, rows = (population.mean(dim=0) ** 2).sum().item(), []
    for seed in range(600):
        drawn = torch.randint(len(population), (30,), generator=seeded(seed))
        rows.append(estimate.same_answer(population[drawn]))
    values, errors = np.array(rows).T
    assert values.mean() == pytest.approx(truth, abs=4 * values.std() / math.sqrt(600))
    assert np.sqrt((errors**2).mean()) == pytest.approx(values.std(), rel=0.15)


def test_worked_example():
    model = estimate.fit(stress_of(example))
    assert model["plane"] == [pytest.approx(2), pytest.approx(0.1 / math.log(2))]
    assert model["width"] == pytest.approx(0, abs=1e-12)
    # At a confidence of 60 % twenty points are lost, and more as the answers fall on 50 of 200 classes.
    rows = answers_of(0.6, 50)
    same = (1000 * (rows.mean(dim=0) ** 2).sum() - (rows[0] ** 2).sum()).item() / 999
    result = estimate.estimate(rows, stress_of(example))
    assert result["accuracy"]["value"] == pytest.approx(example(None, 0.6, same))
    assert result["classes"] == pytest.approx(1 / same)
    assert result["alone"] == pytest.approx(0.8 - model["slope"] * 0.1)
    assert estimate.estimate(answers_of(0.6, 200, count=5), stress_of(example))["classes"] == 200
    lost = estimate.estimate(answers_of(0.4, 1), stress_of(example))
    assert lost["accuracy"] == {"value": 0, "low": 0, "high": pytest.approx(lost["accuracy"]["high"])}


@pytest.mark.parametrize("with_same", [True, False])
def test_fit_with_numpy(with_same):
    noise, slopes = np.random.default_rng(1), {"noise": 2.5, "blur": 1.5, "weather": 1.8, "digital": 2}
    stress = stress_of(
        lambda family, c, s: (
            0.8 - slopes[family] * (0.7 - c) - 0.05 * math.log(100 * s) + noise.normal(0, 0.02)
        ),
        with_same,
    )
    rows = []
    for family, name in [(family, name) for family, names in FIFTEEN_BY_FAMILY.items() for name in names]:
        for record in [stress["tests"][f"{name}/{severity}"] for severity in range(1, 6)]:
            log_ratio = math.log(record["same_answer"] / 0.01) if with_same else math.nan
            rows.append(
                (family, 0.7 - record["mean_confidence"], log_ratio, 0.8 - record["accuracy"]["value"])
            )
    families, *columns = (np.array(column) for column in zip(*rows, strict=True))
    x, y = np.stack(columns[: 1 + with_same], axis=1), columns[2]
    model, errors = estimate.fit(stress), np.empty(75)
    assert model["slope"] == pytest.approx((x[:, 0] * y).sum() / (x[:, 0] ** 2).sum())
    expected = np.linalg.lstsq(x, y, rcond=None)[0]
    assert model["plane"] == (pytest.approx(expected) if with_same else None)
    for family in slopes:
        inside = families == family
        errors[inside] = y[inside] - x[inside] @ np.linalg.lstsq(x[~inside], y[~inside], rcond=None)[0]
    assert model["width"] == pytest.approx(np.sort(np.abs(errors))[67])  # 68 of 75 are nine of ten
    left_out = estimate.left_out(stress)
    np.testing.assert_allclose(left_out["estimate"] - left_out["accuracy"], errors, atol=1e-12)
    assert model["confidences"] == [pytest.approx(0.7 - x[:, 0].max()), 0.7]


def test_the_interval_holds_nine_of_ten():
    """Samples of 100 pictures from a population of which the truth lies on the plane."""
    generator = np.random.default_rng(0)
    population = (2 * torch.randn(50_000, 20, generator=seeded(), dtype=torch.float64)).softmax(dim=1)
    confidence, same = population.amax(dim=1).mean().item(), (population.mean(dim=0) ** 2).sum().item()
    slopes = 0.8 * (0.7 - confidence), 0.05 * math.log(same / 0.01)  # in all 45 % are right
    stress = stress_of(lambda family, c, s: 0.8 - 0.8 * (0.7 - c) - 0.05 * math.log(s / 0.01))
    truth, inside = 0.8 - sum(slopes), []
    for _ in range(400):
        drawn = torch.from_numpy(generator.integers(len(population), size=100))
        row = estimate.estimate(population[drawn], stress)["accuracy"]
        inside.append(row["low"] <= generator.binomial(100, truth) / 100 <= row["high"])
    assert np.mean(inside) == pytest.approx(0.9, abs=0.06)


def test_where_nothing_changes_nothing_is_estimated():
    stress = stress_of(example)
    for record in stress["tests"].values():
        record |= {"mean_confidence": 0.7, "same_answer": 0.01}
    assert estimate.fit(stress) is None
    with pytest.raises(ValueError, match="no corruption changes the network's answers"):
        estimate.estimate(answers_of(0.7, 5), stress)


# ---- The command -------------------------------------------------------------------------------------------

PICTURES = (natural_images(12) * 255).round().byte()


def outcome(tmp_path, monkeypatch, capsys, stress, *options):
    """Run the command on pictures in two folders, with results of net() in tested/; return code and lines."""
    for i, image in enumerate(PICTURES):
        path = tmp_path / "pictures" / ("below/more" if i % 2 else ".") / f"{i:02}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image.permute(1, 2, 0).numpy()).save(path)
    (tmp_path / "pictures" / "notes.txt").write_text("not a picture")
    functions = "def net(): return Linear(10)\ndef other(): return Linear(10, 1)\n"
    (tmp_path / "net.py").write_text("from lab_networks import Linear\n" + functions)
    monkeypatch.chdir(tmp_path)
    identity = load_model("net.py:net").identity
    (tmp_path / "tested").mkdir()
    (tmp_path / "tested" / "stress.json").write_text(json.dumps(identity | stress))
    try:
        code = estimate.main(["pictures", "--model", "net.py:net", "--stress", "tested", *options])
    except SystemExit as stop:
        code = stop.code
    captured = capsys.readouterr()
    return code, (captured.out + captured.err).splitlines()


@pytest.mark.parametrize("offset", [0.03, 0.09])
def test_the_last_line_is_the_estimate_and_a_warning_comes_before_it(offset, tmp_path, monkeypatch, capsys):
    with torch.no_grad():
        rows = Linear(10)(PICTURES / 255).double().softmax(dim=1)
    # These pictures get the same answer four times as often as clean ones, which costs `offset`.
    stress, generator = stress_of(example), np.random.default_rng(0)
    for record in stress["tests"].values():
        times = 1 if record["mean_confidence"] == 0.7 else 16 ** generator.uniform(-1, 1)
        record["same_answer"] = times * estimate.same_answer(rows)[0] / 4
        record["accuracy"] = {"value": 0.1 + record["mean_confidence"] - offset * math.log(times, 4)}
    code, lines = outcome(tmp_path, monkeypatch, capsys, stress)
    result = estimate.estimate(rows, stress)
    (same, error), value = estimate.same_answer(rows), result["accuracy"]["value"]
    by_chance = value * (1 - value) / 12 + (result["plane"][1] * error / same) ** 2
    half = math.sqrt(result["width"] ** 2 + 1.645**2 * by_chance)
    assert value - result["accuracy"]["low"] == pytest.approx(min(value, half))
    assert result["alone"] - value == pytest.approx(offset, abs=0.02)
    value, low, high = (100 * result["accuracy"][key] for key in ("value", "low", "high"))
    assert code == 0 and lines[-1] == f"estimated accuracy {value:.0f} % ({low:.0f} to {high:.0f} %)"
    assert any(line.startswith("label") for line in lines) == (offset > 0.05)
    assert "pictures    12 in pictures" in lines


def test_one_class_is_no_plural(capsys):
    result = estimate.estimate(answers_of(0.7, 5), stress_of(example))
    for classes, text in ((1.02, "1 class[,\n]"), (2, "2 classes[,\n]")):
        estimate.print_estimate(result | {"classes": classes})
        assert re.search(f"spread as over {text}", capsys.readouterr().out)


def test_results_of_earlier_versions_keep_their_line_and_say_so(tmp_path, monkeypatch, capsys):
    code, lines = outcome(tmp_path, monkeypatch, capsys, stress_of(example, with_same=False))
    text = "\n".join(lines)
    assert code == 0 and lines[-1].startswith("estimated accuracy")
    assert "has no same_answer" in text and "without a digest of its tests" in text and "label" not in text


WITHOUT_FOG = stress_of(example)
del WITHOUT_FOG["tests"]["fog/3"]


@pytest.mark.parametrize(
    ("options", "stress", "message"),
    [
        (["--stress", "nowhere"], {}, "there is no nowhere/stress.json: python -m lab.stress"),
        (["--model", "net.py:other"], {}, "its checkpoint_sha256 is another"),
        ([], {"size": 64}, "its size is another"),
        ([], {"tests_sha256": "of others"}, "were changed after lab.stress"),
        ([], WITHOUT_FOG, "lacks the test fog/3"),
        (["--size", "24"], {}, "[4, 3, 24, 24]"),
    ],
)
def test_what_cannot_be_estimated(options, stress, message, tmp_path, monkeypatch, capsys):
    code, lines = outcome(tmp_path, monkeypatch, capsys, stress_of(example) | stress, *options)
    assert code == 2 and message in lines[-1]


def test_one_picture_is_too_few(tmp_path):
    (tmp_path / "a.png").write_bytes(b"")
    for folder in (tmp_path, tmp_path / "a.png"):
        with pytest.raises(ValueError, match="is no folder of at least two pictures"):
            estimate.read_unlabelled(folder, None)

"""compare.py and agreement.py: every number by loops, and differences that are more than those of seeds."""

import dataclasses
import json
import math
import shutil
import statistics

import false_positives
import numpy as np
import pytest
import torch
from lab_pages import write_run
from networks import seeded

from lab import agreement, compare
from support.errors import UserError
from support.outputs import read_predictions, sha256_of, write_stress

FAMILIES = {"noise": ["grain", "salt"], "blur": ["defocus"]}
ATTACKS = ["fgsm", "random", "apgd_ce"]


def rows_for(test, wrong, seed=0):
    """Probabilities right but for the images `wrong`, for which each seed has another class."""
    scores = torch.rand(100, 100, generator=seeded(seed))
    answers = test.labels.clone()
    answers[wrong] = (answers[wrong] + 1 + seed) % 100
    return (scores + 6 * torch.eye(100)[answers]).softmax(dim=1)


def surprises(y_true, rows):
    """Of each row of probabilities the bin of its confidence, and confidence less 1 if it is right."""
    found = []
    for label, row in zip(y_true.tolist(), rows.tolist(), strict=True):
        confidence = max(row)
        found.append((math.ceil(15 * confidence) - 1, confidence - (row.index(confidence) == label)))
    return found


def calibration_error(of_images):
    gaps = [0.0] * 15
    for place, gap in of_images:
        gaps[place] += gap
    return sum(map(abs, gaps)) / len(of_images)


# ---- agreement.py ----------------------------------------------------------------------------------------


def test_runs_of_the_same_images_are_compared_by_counting(small_sets, few_resamples):
    y_true = small_sets[1].labels
    logits = rows_for(small_sets[1], list(range(10))).log() * 1.3
    runs = {"a": {"logits": logits, "y_pred": logits.argmax(dim=1)}}
    for name, wrong in {"b": range(5, 25), "c": []}.items():
        rows = rows_for(small_sets[1], list(wrong), len(runs))
        runs[name] = {"probabilities": rows, "y_pred": rows.argmax(dim=1)}
    found = agreement.compare(runs, y_true)
    assert found["right_in"] == [0, 5, 20, 75]  # wrong in both a and b: 5 to 9
    assert found["standard_deviation"] == pytest.approx(0.1)

    probabilities = [logits.double().softmax(dim=1), *(runs[name]["probabilities"].double() for name in "bc")]
    mean = sum(probabilities) / 3
    right = [row.index(max(row)) == label for row, label in zip(mean.tolist(), y_true.tolist(), strict=True)]
    expected = {"accuracy": sum(right) / 100}
    expected["expected_calibration_error"] = calibration_error(surprises(y_true, mean))
    confidence = mean.amax(dim=1).tolist()
    pairs = [(p > q) + 0.5 * (p == q) for p, r in zip(confidence, right, strict=True) if r
             for q, other in zip(confidence, right, strict=True) if not other]  # fmt: skip
    expected["auroc"] = sum(pairs) / len(pairs)
    assert found["mean_of_probabilities"] == pytest.approx(expected)

    for row, name, rows, accuracy in zip(found["runs"], "abc", probabilities, (0.9, 0.8, 1), strict=True):
        order = [sorted(range(100), key=lambda c: -row[c]) for row in rows.tolist()]
        in_five = [label in best[:5] for label, best in zip(y_true.tolist(), order, strict=True)]
        expected = {"run": name, "accuracy": accuracy, "top5_accuracy": sum(in_five) / 100}
        expected["expected_calibration_error"] = calibration_error(surprises(y_true, rows))
        assert {key: row[key] for key in expected} == pytest.approx(expected)
    p = 2 * sum(math.comb(20, k) for k in range(6)) / 2**20  # 15 against 5; for c 0 against 10
    expected = {"b": [0.1, p], "c": [-0.1, 2 / 2**10]}
    assert [row["run"] for row in found["differences"]] == list(expected)
    for row in found["differences"]:
        assert [row["accuracy"]["value"], row["p"]] == pytest.approx(expected[row["run"]])


@pytest.mark.parametrize("scale", [1e-9, 30])
def test_the_scale_of_the_logits_changes_no_order(small_sets, few_resamples, scale):
    y_true = small_sets[1].labels
    logits = 5 * torch.randn(100, 100, generator=seeded()) + 8 * torch.eye(100)[y_true]
    y_pred = logits.argmax(dim=1)
    ours, rounded = {"logits": logits * scale}, {"probabilities": (logits * scale).softmax(dim=1)}
    rows = []
    for values in ({"logits": logits}, ours, rounded):
        rows.append(agreement.compare(dict.fromkeys("ab", values | {"y_pred": y_pred}), y_true)["runs"][0])
    for key in ("accuracy", "macro_f1", "top5_accuracy"):
        assert rows[1][key] == rows[0][key]
    assert rows[2]["top5_accuracy"] != rows[0]["top5_accuracy"]


def test_other_images_labels_classes_or_equal_weights_are_refused(small_sets, tmp_path):
    """By report.py --against, and by compare.py, whose first run `same` stands for the network."""
    test, rows = small_sets[1], rows_for(small_sets[1], [3])
    sets = {"same": test, "renamed": dataclasses.replace(test, class_names=[*test.class_names[1:], "x"])}
    sets["flipped"] = dataclasses.replace(test, images=test.images.flip(0))
    sets["relabelled"] = dataclasses.replace(test, labels=test.labels.flip(0))
    for name, of in sets.items():
        write_predictions(tmp_path / name, of, rows, name)
        (tmp_path / name / "metrics.json").write_text("{}")
    shutil.copytree(tmp_path / "same", tmp_path / "backup")

    def network(digest):
        whose = {"images_sha256": sha256_of(test.images), "class_names": test.class_names}
        return test.labels, whose | {"checkpoint_sha256": digest, "fixed_logits": None}

    same = tmp_path / "same"
    assert list(agreement.read_runs([same], *network("cd"))) == [str(same)]
    for name in ("renamed", "flipped", "relabelled"):
        refused = f"{name} is of other test images, labels or classes"
        with pytest.raises(UserError, match=f"^--against .*{refused}"):
            agreement.read_runs([tmp_path / name], *network("cd"))
        with pytest.raises(UserError, match=f"^/.*{refused}"):
            compare.main([str(same), str(tmp_path / name)])
    (tmp_path / "renamed" / "metrics.json").write_text('{"checkpoint_sha256": "of a later report"}')
    with pytest.raises(UserError, match=r"metrics\.json is of another report than predictions\.npz"):
        compare.main([str(same), str(tmp_path / "renamed")])
    with pytest.raises(UserError, match="has the same weights as the network itself"):
        agreement.read_runs([same], *network("same"))
    for twice in (same, tmp_path / "backup"):
        with pytest.raises(UserError, match=f"{twice} has the same weights as .*same"):
            compare.main([str(same), str(twice)])
        with pytest.raises(UserError, match="has the same weights as"):
            agreement.read_runs([same, twice], *network("cd"))


# ---- compare.py ------------------------------------------------------------------------------------------


def write_run(folder, test, wrong, seed, smoothing=0.1, epochs=3):
    rows = rows_for(test, wrong, seed)
    write_predictions(folder, test, rows, str(folder))
    (folder / "metrics.json").write_text(json.dumps({"temperature": 0.8}))
    settings = {"seed": seed, "out": str(folder), "label_smoothing": smoothing, "epochs": epochs}
    (folder / "config.json").write_text(json.dumps({"settings": settings}))
    return str(folder)


def write_answers(folder, test, generator, sample="a sample", count=37):
    """Write stress tests of made-up answers; return them, {test: [bool, ...]}."""
    names = [f"{name}/{s}" for names in FAMILIES.values() for name in names for s in range(1, 6)]
    names += ["unattacked/0", *(f"{attack}/{e}" for attack in ATTACKS for e in (0.5, 1))]
    answers = {
        name: torch.rand(count, generator=generator) < 0.2 + 0.2 * (i % 5) for i, name in enumerate(names)
    }
    answers["fgsm/4"] = torch.zeros(count) > 0  # where APGD was not run
    results = {"checkpoint_sha256": str(folder), "images_sha256": sha256_of(test.images)}
    results |= {"labels_sha256": sha256_of(test.labels), "class_names": test.class_names}
    results |= {"sample_sha256": sample, "families": FAMILIES, "attacks": ATTACKS, "epsilons": [0.5, 1, 4]}
    of_tests = {name: {"accuracy": {"value": int(right.sum()) / count}} for name, right in answers.items()}
    write_stress(folder, results | {"tests": of_tests, "answers": answers, "summary": {}})
    return {name: right.tolist() for name, right in answers.items()}


def table(capsys, runs):
    """The cells of what compare.py prints, {row: [cell, ...]}, and the lines around it."""
    assert compare.main(runs) == 0
    lines = capsys.readouterr().out.splitlines()
    rows = [line.strip("|").split("|") for line in lines if line[:1] == "|"]
    return {cells[0].strip(): [cell.strip() for cell in cells[1:]] for cells in rows}, "\n".join(
        line for line in lines if line[:1] != "|"
    )


def loop_scores(test, run, answers):
    """What the rows of the table are means of, {name: [score of each image]}."""
    values = read_predictions(run)
    right = [int(a == b) for a, b in zip(values["y_true"].tolist(), values["y_pred"].tolist(), strict=True)]
    found = {"accuracy": right}
    groups = {"fifteen corruptions": [name for names in FAMILIES.values() for name in names]} | FAMILIES
    for group, names in groups.items():
        tests = [f"{name}/{severity}" for name in names for severity in (1, 2, 3, 4, 5)]
        found[group] = [sum(answers[t][i] for t in tests) / len(tests) for i in range(37)]
    for epsilon in ("0.5", "1"):
        tests = ["unattacked/0", f"fgsm/{epsilon}", f"apgd_ce/{epsilon}"]  # random signs do not count
        of_images = [int(all(answers[t][i] for t in tests)) for i in range(37)]
        found[f"right under every attack of {epsilon}/255"] = of_images
    return found


def loop_calibration(run, temperature):
    """The calibration error of all images, then of compare.py's resamples."""
    values = read_predictions(run)
    rows = values["probabilities"].double().pow(1 / temperature)
    of_images = surprises(values["y_true"], rows / rows.sum(dim=1, keepdim=True))
    picks = [range(100), *torch.randint(100, (200, 100), generator=seeded()).tolist()]
    return [calibration_error([of_images[i] for i in pick]) for pick in picks]


def test_every_cell_of_the_table_by_loops(small_sets, tmp_path, capsys):
    test, generator = small_sets[1], seeded(5)
    recipes = {"plain": (3, 0.1, 3), "hard": (2, 0.0, 3), "long": (2, 0.1, 6)}  # seeds, smoothing, epochs
    folders, runs = {}, []
    for name, (seeds, smoothing, epochs) in recipes.items():
        folders[name] = [tmp_path / f"{name}{seed}" for seed in range(seeds)]
        for seed, folder in enumerate(folders[name]):
            wrong = list(range({"plain": 12, "hard": 55, "long": 20}[name] + 2 * seed * seed))
            runs.append(write_run(folder, test, wrong, seed, smoothing, epochs))
    answers = {run: write_answers(run, test, generator) for of in folders.values() for run in of}
    cells, around = table(capsys, runs)
    heads = ["the first recipe (n = 3)", "label_smoothing 0 (n = 2)", "epochs 6 (n = 2)", "a seed alone, +-"]
    assert cells.pop("") == heads and cells.pop("---") == ["---"] * 4

    samples = {}  # of each row and run the scores of images, or the error of all and of the resamples
    for run in answers:
        for name, of_images in loop_scores(test, run, answers[run]).items():
            samples.setdefault(name, {})[run] = of_images
    errors = {"calibration error": 1, "calibration error after temperature": 0.8}
    for name, temperature in errors.items():
        samples[name] = {run: loop_calibration(run, temperature) for run in answers}
    assert list(cells) == list(samples)
    bold, agreeing = 0, 0
    for name, found in cells.items():
        of = samples[name]
        values = {run: of[run][0] if name in errors else statistics.mean(of[run]) for run in of}

        def interval(ours, theirs, name=name, of=of, values=values):
            value = statistics.mean(values[run] for run in ours) - statistics.mean(values[r] for r in theirs)
            means = [np.mean([of[run] for run in runs], axis=0) for runs in (ours, theirs)]
            each = (means[0] - means[1]).tolist()
            if name in errors:
                return value, *np.quantile(each[1:], [0.025, 0.975])
            half = 1.96 * statistics.stdev(each) / math.sqrt(len(each))
            return value, value - half, value + half

        spread = {key: statistics.variance(values[run] for run in of) for key, of in folders.items()}
        of_three_epochs = (2 * spread["plain"] + spread["hard"]) / 3  # degrees of freedom 2 and 1
        yardsticks = {"hard": 3.182 * math.sqrt(of_three_epochs * (1 / 2 + 1 / 3))}
        yardsticks["long"] = 12.706 * math.sqrt(spread["long"] / 2 + of_three_epochs / 3)
        alone = 3.182 * math.sqrt(of_three_epochs * (1 + 1 / 3))
        expected = [f"{100 * statistics.mean(values[run] for run in folders['plain']):.1f} %"]
        for key, yardstick in yardsticks.items():
            value, low, high = interval(folders[key], folders["plain"])
            text = f"{100 * statistics.mean(values[run] for run in folders[key]):.1f} %"
            text += f", {100 * value:+.1f} ({100 * low:+.1f} to {100 * high:+.1f})"
            if low * high > 0 and abs(value) > yardstick:
                text, bold = f"**{text}**", bold + 1
            pairs = [interval([a], [b]) for a, b in zip(folders[key], folders["plain"], strict=False)]
            agree = sum(pair[1] > 0 if value > 0 else pair[2] < 0 for pair in pairs)
            expected.append(f"{text}, {agree} of 2")
            agreeing += agree
        assert found == [*expected, f"{100 * alone:.1f}"], name
    assert bold > 1 and agreeing > 3
    assert f"{2 * len(cells)} differences were tested; by chance at most {0.1 * len(cells):.1f} of" in around
    assert f"{math.sqrt(2 / (1 + 1 / 3)):.2f} times as much" in around


def test_runs_without_a_recipe_or_with_other_samples(small_sets, tmp_path, monkeypatch, capsys):
    """Folders of one name are recipes of their own, and stress tests of two sizes are not compared."""
    monkeypatch.setattr(compare, "NUM_RESAMPLES", 2)
    test = small_sets[1]
    for place in ("a", "b"):
        folder = tmp_path / place / "net"
        write_run(folder, test, [1], 0)
        (folder / "config.json").unlink()
    cells, around = table(capsys, [str(tmp_path / place / "net") for place in ("a", "b")])
    assert cells[""][1] == f"run {tmp_path / 'b' / 'net'} (n = 1)" and cells["accuracy"][2] == ""
    assert "No recipe has two seeds here" in around and "0 differences were tested" in around
    runs = [write_run(tmp_path / name, test, [3], seed) for seed, name in enumerate("cd")]
    write_answers(tmp_path / "c", test, seeded())
    write_answers(tmp_path / "d", test, seeded(), "another sample", 60)
    cells, around = table(capsys, runs)
    assert "noise" in cells and "the stress tests of" in around and "are of other images" in around
    for name in "cd":  # stress tests of other images than the answers
        write_answers(tmp_path / name, dataclasses.replace(test, images=test.images.flip(0)), seeded())
    assert "noise" not in table(capsys, runs)[0]
    with pytest.raises(UserError, match="expected two runs or more"):
        compare.main(runs[:1])


def test_seeds_that_do_not_differ_are_seldom_called_an_effect():
    """In a simulation, by compare.py's rule in at most 5 %; by the images alone in many."""
    judged = false_positives.simulate(400, seed_spread=0.2)
    bold = sum(found["bold"] for found in judged)
    assert 4 <= bold <= 32 and sum(found["beyond_images"] for found in judged) > 160  # 20 +- 3 sigma

"""compare.py: every cell of its tables by loops, and Welch's interval by SciPy."""

import json
import math
import statistics

import numpy as np
import pytest
import torch
from networks import seeded

import report
from lab import compare, folder
from metrics import expected_calibration_error

LABELS, NAMES = torch.arange(100) % 10, list("abcdefghij")
FAMILIES, ATTACKS = {"noise": ["grain", "salt"], "blur": ["defocus"]}, ["fgsm", "apgd_ce"]
KEYS = ["expected_calibration_error", "expected_calibration_error_after_temperature"]


def write_run(out, num_wrong, seed, images="of images", config=True, labels=LABELS, **settings):
    """Write a report on made-up answers, of which the first are wrong, and config.json; return the folder."""
    answers = labels.clone()
    answers[:num_wrong] = (answers[:num_wrong] + 1 + seed) % 10
    scores = torch.rand(100, 10, generator=seeded(seed))
    probabilities = (scores + 4 * torch.eye(10)[answers]).softmax(dim=1)
    arrays = {"y_true": labels, "y_pred": answers, "probabilities": probabilities, "class_names": NAMES}
    numbers = {"checkpoint_sha256": str(out), "images_sha256": images, "temperature": 0.8}
    numbers |= {key: rows[0] for key, rows in loop_errors(arrays).items()}
    report.write_numbers(out, numbers, arrays)
    recorded = settings.pop(
        "recorded", {"network": "ResNet", "optimizer": "SGD, momentum 0.9, nesterov True"}
    )
    settings = {"seed": seed, "out": str(out), "label_smoothing": 0.1, "epochs": 3} | settings
    digest = settings.pop("digest", "of a training set")
    if config:
        content = {"settings": settings, "images_sha256": digest, "image_size": settings.pop("size", 32)}
        folder.write_json(out / "config.json", content | recorded)
    return out


def loop_errors(arrays):
    """The two calibration errors, {key: [of all images, of the first resample, ...]}."""
    picks = [torch.arange(100), *torch.randint(100, (200, 100), generator=seeded())]
    errors = {}
    for key, temperature in zip(KEYS, (1, 0.8), strict=True):
        rows = arrays["probabilities"].double() ** (1 / temperature)
        rows /= rows.sum(dim=1, keepdim=True)
        errors[key] = [expected_calibration_error(arrays["y_true"][pick], rows[pick]) for pick in picks]
    return errors


def write_stress(out, seed, sample="a sample", count=37, images="of images"):
    """Write stress tests of made-up answers; return them, {test: [bool, ...]}."""
    names = [f"{name}/{s}" for name in ("grain", "salt", "defocus") for s in range(1, 6)]
    names += ["unattacked/0", *(f"{attack}/{e}" for attack in ATTACKS for e in (0.5, 1))]
    answers = {}
    for i, name in enumerate(names):
        answers[name] = torch.rand(count, generator=seeded(100 * seed + i)) < 0.2 + 0.2 * (i % 5)
    answers["fgsm/4"] = torch.zeros(count) > 0  # where APGD was not run
    results = {"checkpoint_sha256": str(out), "test_sha256": folder.test_digest(images, LABELS, NAMES)}
    results |= {"sample_sha256": sample, "corruption_images": count, "families": FAMILIES}
    results |= {"attacks": ATTACKS, "epsilons": [0.5, 1, 4], "summary": {}, "robust_accuracy": {}}
    tests = {name: {"accuracy": {"value": right.double().mean().item()}} for name, right in answers.items()}
    folder.write_stress(out, results | {"tests": tests, "answers": answers})
    return {name: right.tolist() for name, right in answers.items()}


def loop_scores(run, answers):
    """What the rows of the table are means of, {name: [score of each image]}."""
    arrays = folder.read_arrays(run / "predictions.npz")
    scores = {"accuracy": [int(a == b) for a, b in zip(arrays["y_true"], arrays["y_pred"], strict=True)]}
    groups = {"fifteen corruptions": ["grain", "salt", "defocus"]} | FAMILIES
    for group, names in groups.items() if answers else ():
        tests = [f"{name}/{severity}" for name in names for severity in (1, 2, 3, 4, 5)]
        scores[group] = [sum(answers[t][i] for t in tests) / len(tests) for i in range(37)]
    for epsilon in ("0.5", "1") if answers else ():
        tests = ["unattacked/0", f"fgsm/{epsilon}", f"apgd_ce/{epsilon}"]
        survive = [int(all(answers[t][i] for t in tests)) for i in range(37)]
        scores[f"right under every attack of {epsilon}/255"] = survive
    return scores


def tables(capsys, runs):
    """What compare.py prints: the cells of its tables, [{row: [cell, ...]}, ...], and all of it."""
    assert compare.main([str(run) for run in runs]) == 0
    text, parts = capsys.readouterr().out, []
    for line in text.splitlines():
        if line.startswith("| | "):
            parts.append({})
        if line.startswith("|") and not line.startswith("| ---"):
            name, *cells = (cell.strip() for cell in line[1:-1].split("|"))
            parts[-1][name] = cells
    return parts, text


def title(key):
    return key.removeprefix("expected_").replace("_", " ")


def cell(value, ends=(), is_bold=False):
    text = f"{100 * value:+.2f}" + (f" ({100 * ends[0]:+.2f} to {100 * ends[1]:+.2f})" if len(ends) else "")
    return f"**{text}**" if is_bold else text


def test_every_cell_of_recipes_of_several_seeds_by_loops(tmp_path, capsys):
    """The first has three runs, of which one has no stress tests; two have two, and one has one."""
    wrong = {0.1: (12, 12, 12), 0.0: (55, 55), 0.2: (30, 31), 0.3: (20,)}
    values, number, rows_of = {}, 0, {}
    for smoothing, counts in wrong.items():
        values[smoothing] = []
        for seed, count in enumerate(counts):
            run = write_run(tmp_path / f"{smoothing}-{seed}", count, seed, label_smoothing=smoothing)
            answers = None if (smoothing, seed) == (0.1, 1) else write_stress(run, number)
            scores = {row: statistics.mean(some) for row, some in loop_scores(run, answers).items()}
            errors = loop_errors(folder.read_arrays(run / "predictions.npz"))
            rows_of[run] = scores | {title(key): some[0] for key, some in errors.items()}
            values[smoothing].append(rows_of[run])
            number += 1
    (means, differences), text = tables(capsys, rows_of)
    heads = ["the first recipe (n = 3)", "label_smoothing 0 (n = 2)", "label_smoothing 0.2 (n = 2)"]
    heads.append("label_smoothing 0.3 (n = 1)")
    assert means.pop("") == heads and f"- {heads[3]}: {tmp_path / '0.3-0'}\n" in text
    kinds = ["95 % over seeds", "95 % over seeds", "one run beside several, no interval"]
    assert differences.pop("") == [f"{head}: {kind}" for head, kind in zip(heads[1:], kinds, strict=True)]
    assert set(means) == set(differences) == set(values[0.1][0])
    for row in means:
        samples = [[run[row] for run in runs if row in run] for runs in values.values()]
        for sample, runs, text_of_mean in zip(samples, values.values(), means[row], strict=True):
            expected = f"{100 * statistics.mean(sample):.2f}"
            expected += f" +- {100 * statistics.stdev(sample):.2f}" if len(sample) > 1 else ""
            expected += f" (n = {len(sample)})" if len(sample) < len(runs) else ""
            assert text_of_mean == expected, row
        for sample, text_of_difference in zip(samples[1:], differences[row], strict=True):
            value, *ends = compare.welch_interval(sample, samples[0]).values()
            is_bold = bool(ends) and (ends[0] > 0 or ends[1] < 0)
            assert text_of_difference == cell(value, ends, is_bold), row
    # Spreads of 0, then one degree of freedom.
    assert differences["accuracy"][:2] == ["-43.00", "**-18.50 (-24.85 to -12.15)**"]


def test_two_single_runs_have_an_interval_over_images_only(tmp_path, capsys):
    runs = [write_run(tmp_path / name, 10 + 20 * i, i, lr=i) for i, name in enumerate("ab")]
    scores = [loop_scores(run, write_stress(run, i)) for i, run in enumerate(runs)]
    errors = [loop_errors(folder.read_arrays(run / "predictions.npz")) for run in runs]
    (_, differences), text = tables(capsys, runs)
    expected = {"": ["lr 1 (n = 1): other images only; another seed: not known"]}
    for row in scores[0]:
        each = [b - a for a, b in zip(scores[0][row], scores[1][row], strict=True)]
        mean, half = statistics.mean(each), 1.96 * statistics.stdev(each) / math.sqrt(len(each))
        expected[row] = [cell(mean, (mean - half, mean + half))]
    for key in KEYS:
        value, *resampled = np.subtract(errors[1][key], errors[0][key])
        expected[title(key)] = [cell(value, np.quantile(resampled, [0.025, 0.975]))]
    assert differences == expected
    assert "70.0 % of the images are right in all runs, 10.0 % in none." in text


def test_welchs_interval_is_that_of_scipy():
    stats = pytest.importorskip("scipy.stats")
    for n, m, scale in ((2, 2, 1), (2, 5, 0.01), (3, 3, 4), (7, 8, 1)):
        ours = torch.randn(n, generator=seeded(n), dtype=torch.float64).tolist()
        theirs = (scale * torch.randn(m, generator=seeded(m + 9), dtype=torch.float64)).tolist()
        interval = stats.ttest_ind(ours, theirs, equal_var=False).confidence_interval(0.95)
        value = statistics.mean(ours) - statistics.mean(theirs)
        expected = {"value": value, "low": interval.low, "high": interval.high}
        assert compare.welch_interval(ours, theirs) == pytest.approx(expected, rel=1e-3)


def test_settings_training_images_and_what_the_code_did_belong_to_the_recipe(tmp_path, capsys):
    changes = [{}, {"device": "elsewhere"}, {"lr": 0.2}, {"digest": "of other images"}]
    changes += [{"size": 24}, {"size": 24}, {"recorded": {"network": "CNN"}}]  # the code was changed
    changes.append({"momentum": 0.0, "recorded": {"optimizer": "SGD, momentum 0.0, nesterov True"}})
    changes.append({"recorded": {}, "lr": 0.3, "image_sizes": "24,32"})  # as older versions record it
    runs = []
    for seed, change in enumerate(changes):
        change = {"momentum": 0.9, "image_sizes": [24, 32]} | change
        runs.append(write_run(tmp_path / str(seed), 1, seed, **change))
    (means, _), _ = tables(capsys, runs)
    others = ["lr 0.2 (n = 1)", "training images of other ima (n = 1)", "image_size 24 (n = 2)"]
    others += ["network CNN (n = 1)", "momentum 0 (n = 1)", "lr 0.3 (n = 1)"]
    assert means[""] == ["the first recipe (n = 2)", *others]


def test_runs_without_a_recipe_or_with_other_samples(tmp_path, capsys):
    """Folders without settings are recipes of their own; stress tests of two samples are not compared."""
    runs = [write_run(tmp_path / name, 3, seed, config=name == "c") for seed, name in enumerate("abc")]
    write_stress(runs[1], 0)
    write_stress(runs[2], 1, "another sample", 60)
    (means, _), text = tables(capsys, runs)
    assert means[""] == ["the first recipe (n = 1)", f"{runs[1]} (n = 1)", "with a config.json (n = 1)"]
    assert f"{runs[2]}/stress.json is of another sample" in text and f"\n- {runs[1]} (n = 1)\n" in text
    assert means["noise"][::2] == ["", ""] and means["noise"][1]
    write_stress(runs[1], 0, images="of other images")
    assert "b/stress.json is of another test set" in tables(capsys, runs)[1]


def test_what_cannot_be_compared_is_refused_in_one_line(tmp_path, capsys):
    first = write_run(tmp_path / "first", 1, 0)
    images = write_run(tmp_path / "images", 1, 1, images="of other images")
    labels = write_run(tmp_path / "labels", 1, 1, labels=LABELS.flip(0))
    same = write_run(tmp_path / "same", 1, 0)
    numbers = json.loads((same / "metrics.json").read_text())
    folder.write_json(same / "metrics.json", numbers | {"checkpoint_sha256": str(first)})
    refused = [
        ([first, images], "is of other test images, labels or classes: leave it out"),
        ([first, labels], "is of other test images, labels or classes: leave it out"),
        ([first, same], "has the same weights as another run: leave it out"),
        ([first, tmp_path / "nowhere"], "there is no report in"),
        ([first], "expected two runs or more"),
    ]
    for runs, message in refused:
        with pytest.raises(SystemExit) as stop:
            compare.main([str(run) for run in runs])
        error = capsys.readouterr().err
        assert stop.value.code == 2 and error.count("\n") == 1 and message in error

"""compare.py and answers.py: every number by loops."""

import dataclasses
import json
import math
import shutil
import statistics
from pathlib import Path

import made_up
import numpy as np
import pytest
import torch
from lab_networks import seeded

from lab import answers, compare, results
from lab.more_metrics import auroc
from lab.results import digest_of_set, read_report, write_stress
from lab.support import UserError
from metrics import expected_calibration_error, top_k_accuracy

FAMILIES = {"noise": ["grain", "salt"], "blur": ["defocus"]}
ATTACKS = ["fgsm", "apgd_ce"]


def rows_for(test, wrong, seed=0):
    """Probabilities right but for the images `wrong`, for which each seed has another class."""
    scores = torch.rand(100, 100, generator=seeded(seed))
    answers = test.labels.clone()
    answers[wrong] = (answers[wrong] + 1 + seed) % 100
    return (scores + 6 * torch.eye(100)[answers]).softmax(dim=1)


# ---- answers.py ----------------------------------------------------------------------------------------


def test_runs_of_the_same_images_are_compared_by_counting(small_sets, few_resamples):
    y_true = small_sets[1].labels
    logits = rows_for(small_sets[1], list(range(10))).log() * 1.3
    runs = {"a": {"logits": logits, "y_pred": logits.argmax(dim=1)}}
    for name, wrong in {"b": range(5, 25), "c": []}.items():
        rows = rows_for(small_sets[1], list(wrong), len(runs))
        runs[name] = {"probabilities": rows, "y_pred": rows.argmax(dim=1)}
    found = answers.compare(runs, y_true)
    assert found["right_in"] == [0, 5, 20, 75]  # wrong in both a and b: 5 to 9
    assert found["standard_deviation"] == pytest.approx(0.1)

    probabilities = [logits.double().softmax(dim=1), *(runs[name]["probabilities"].double() for name in "bc")]
    mean = sum(probabilities) / 3
    right = mean.argmax(dim=1) == y_true
    expected = {"accuracy": right.double().mean().item(), "auroc": auroc(right, mean.amax(dim=1))}
    expected["expected_calibration_error"] = expected_calibration_error(y_true, mean)
    changes = (probabilities[0].argmax(dim=1) == y_true).double().numpy() - right.double().numpy()
    half = 1.96 * changes.std(ddof=1) / len(changes) ** 0.5
    difference = found["mean_of_probabilities"].pop("difference")
    assert [difference[key] for key in ("low", "high")] == pytest.approx(
        [changes.mean() - half, changes.mean() + half]
    )
    assert found["mean_of_probabilities"] == pytest.approx(expected)

    for row, name, rows, accuracy in zip(found["runs"], "abc", probabilities, (0.9, 0.8, 1), strict=True):
        expected = {"run": name, "accuracy": accuracy, "top5_accuracy": top_k_accuracy(y_true, rows, 5)}
        expected["expected_calibration_error"] = expected_calibration_error(y_true, rows)
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
        rows.append(answers.compare(dict.fromkeys("ab", values | {"y_pred": y_pred}), y_true)["runs"][0])
    for key in ("accuracy", "macro_f1", "top5_accuracy"):
        assert rows[1][key] == rows[0][key]
    assert rows[2]["top5_accuracy"] != rows[0]["top5_accuracy"]


def test_other_images_labels_classes_or_equal_weights_are_refused(small_sets, tmp_path):
    """By lab.examine --against, and by lab.compare, whose first run `same` stands for the network."""
    test, rows = small_sets[1], rows_for(small_sets[1], [3])
    sets = {"same": test, "renamed": dataclasses.replace(test, class_names=[*test.class_names[1:], "x"])}
    sets["flipped"] = dataclasses.replace(test, images=test.images.flip(0))
    sets["relabelled"] = dataclasses.replace(test, labels=test.labels.flip(0))
    for name, of_name in sets.items():
        made_up.write_run(tmp_path / name, of_name, rows.log(), name)
    shutil.copytree(tmp_path / "same", tmp_path / "backup")

    numbers, arrays = results.read_report(tmp_path / "same")

    def network(digest):
        return numbers | {"checkpoint_sha256": digest}, arrays

    same = tmp_path / "same"
    assert list(answers.read_runs([same], *network("cd"))) == [str(same)]
    for name in ("renamed", "flipped", "relabelled"):
        refused = f"{name} is of other test images, labels or classes"
        with pytest.raises(UserError, match=f"^--against .*{refused}"):
            answers.read_runs([tmp_path / name], *network("cd"))
        with pytest.raises(UserError, match=f"^/.*{refused}"):
            compare.main([str(same), str(tmp_path / name)])
    with pytest.raises(UserError, match="has the same weights as the network itself"):
        answers.read_runs([same], *network("same"))
    with pytest.raises(UserError, match=r"backup has the same weights as .*same"):
        compare.main([str(same), str(tmp_path / "backup")])


# ---- compare.py ------------------------------------------------------------------------------------------


def write_run(
    folder,
    test,
    wrong,
    seed,
    smoothing=0.1,
    digest="of a set",
    size=32,
    recorded=(),
    **settings,
):
    """recorded: what config.json says of the code and the machine, besides; None stands for nothing."""
    numbers = {"temperature": 0.8, "image_size": size}
    made_up.write_run(folder, test, rows_for(test, wrong, seed).log(), str(folder), **numbers)
    places = dict.fromkeys(["out", "data_dir", "device", "precision", "compile"], str(folder))
    settings |= {"seed": seed, "label_smoothing": smoothing, "epochs": 3, **places}  # of one recipe
    config = {"settings": settings, "images_sha256": digest, "image_size": 32}
    made = {"network": "ResNet", "precision": "bf16", "optimizer": "SGD, momentum 0.9, nesterov True"}
    config |= {} if recorded is None else made | dict(recorded)
    (folder / "config.json").write_text(json.dumps(config))
    return str(folder)


def write_answers(folder, test, generator, sample="a sample", count=37):
    """Write stress tests of made-up answers; return them, {test: [bool, ...]}."""
    names = [f"{name}/{s}" for names in FAMILIES.values() for name in names for s in range(1, 6)]
    names += ["unattacked/0", *(f"{attack}/{e}" for attack in ATTACKS for e in (0.5, 1))]
    answers = {
        name: torch.rand(count, generator=generator) < 0.2 + 0.2 * (i % 5) for i, name in enumerate(names)
    }
    answers["fgsm/4"] = torch.zeros(count) > 0  # where APGD was not run
    results = {"checkpoint_sha256": str(folder), "test_sha256": digest_of_set(test)}
    results |= {
        "sample_sha256": sample,
        "corruption_images": count,
        "families": FAMILIES,
        "attacks": ATTACKS,
        "epsilons": [0.5, 1, 4],
    }
    of_tests = {name: {"accuracy": {"value": int(right.sum()) / count}} for name, right in answers.items()}
    write_stress(folder, results | {"tests": of_tests, "answers": answers, "summary": {}})
    return {name: right.tolist() for name, right in answers.items()}


def tables(capsys, runs):
    """What compare.py prints: the cells of its tables, [{row: [cell, ...]}, ...], and all of it."""
    assert compare.main([str(run) for run in runs]) == 0
    text, found = capsys.readouterr().out, []
    for line in text.splitlines():
        if line.startswith("| | "):
            found.append({})
        if line.startswith("|") and not line.startswith("| ---"):
            name, *cells = (cell.strip() for cell in line[1:-1].split("|"))
            found[-1][name] = cells
    return found, text


def loop_scores(run, answers):
    """What the rows of the table are means of, {name: [score of each image]}."""
    values = read_report(Path(run))[1]
    right = [int(a == b) for a, b in zip(values["y_true"].tolist(), values["y_pred"].tolist(), strict=True)]
    found = {"accuracy": right}
    groups = {"fifteen corruptions": [name for names in FAMILIES.values() for name in names]} | FAMILIES
    for group, names in groups.items() if answers else ():
        tests = [f"{name}/{severity}" for name in names for severity in (1, 2, 3, 4, 5)]
        found[group] = [sum(answers[t][i] for t in tests) / len(tests) for i in range(37)]
    for epsilon in ("0.5", "1") if answers else ():
        tests = ["unattacked/0", f"fgsm/{epsilon}", f"apgd_ce/{epsilon}"]
        of_images = [int(all(answers[t][i] for t in tests)) for i in range(37)]
        found[f"right under every attack of {epsilon}/255"] = of_images
    return found


def loop_errors(run):
    """The two calibration errors of a run, {name: [of all images, of the first resample, ...]}."""
    values = read_report(Path(run))[1]
    picks = [torch.arange(100), *torch.randint(100, (200, 100), generator=seeded())]
    found = {}
    for name, temperature in {"calibration error": 1, "calibration error after temperature": 0.8}.items():
        rows = values["probabilities"].double().pow(1 / temperature)
        rows /= rows.sum(dim=1, keepdim=True)
        found[name] = [expected_calibration_error(values["y_true"][pick], rows[pick]) for pick in picks]
    return found


def welch_cell(ours, theirs):
    """The cell of a difference over seeds, of Welch's interval, which is tested below."""
    value, *ends = compare.welch_interval(ours, theirs).values()
    text = f"{100 * value:+.2f}"
    if ends:
        text += f" ({100 * ends[0]:+.2f} to {100 * ends[1]:+.2f})"
    return f"**{text}**" if ends and (ends[0] > 0 or ends[1] < 0) else text


def test_every_cell_of_recipes_of_several_seeds_by_loops(small_sets, tmp_path, capsys):
    """The first has three runs, of which one has no stress tests; two have two, and one has one."""
    test, generator = small_sets[1], seeded(5)
    wrong = {"plain": (12, 12, 12), "hard": (55, 55), "mild": (30, 31), "one": (20,)}
    smoothings = {"plain": 0.1, "hard": 0.0, "mild": 0.2, "one": 0.3}
    samples, seeds = {}, {}  # of each run the values of its rows; the runs of each recipe
    for name, counts in wrong.items():
        seeds[name] = [str(tmp_path / f"{name}{seed}") for seed in range(len(counts))]
        for seed, run in enumerate(seeds[name]):
            write_run(tmp_path / f"{name}{seed}", test, list(range(counts[seed])), seed, smoothings[name])
            folder = tmp_path / f"{name}{seed}"
            answers = None if (name, seed) == ("plain", 1) else write_answers(folder, test, generator)
            scores = {row: statistics.mean(of) for row, of in loop_scores(folder, answers).items()}
            samples[run] = scores | {row: errors[0] for row, errors in loop_errors(folder).items()}
    (means, differences), text = tables(capsys, samples)

    heads = [
        "the first recipe (n = 3)",
        *(f"label_smoothing {s} (n = {n})" for s, n in ((0, 2), (0.2, 2), (0.3, 1))),
    ]
    assert means.pop("") == heads
    kinds = ["95 % over seeds", "95 % over seeds", "one run beside several, no interval"]
    assert differences.pop("") == [f"{head}: {kind}" for head, kind in zip(heads[1:], kinds, strict=True)]
    assert f"- {heads[0]}: {', '.join(seeds['plain'])}\n" in text
    assert set(means) == set(differences) == set(samples[seeds["plain"][0]])
    for row in means:
        values = {
            name: [samples[run][row] for run in runs if row in samples[run]] for name, runs in seeds.items()
        }
        cells = []
        for name, of in values.items():
            cells.append(f"{100 * sum(of) / len(of):.2f}")
            if len(of) > 1:
                cells[-1] += f" +- {100 * statistics.stdev(of):.2f}"
            if len(of) < len(seeds[name]):
                cells[-1] += f" (n = {len(of)})"
        assert means[row] == cells, row
        cells = [welch_cell(values[name], values["plain"]) for name in ("hard", "mild")]
        one = f"{100 * (values['one'][0] - statistics.mean(values['plain'])):+.2f}"
        assert differences[row] == [*cells, one], row
    assert differences["accuracy"][:2] == [
        "-43.00",
        "**-18.50 (-24.85 to -12.15)**",
    ]  # spreads of 0; 1 degree


def test_two_single_runs_have_an_interval_over_images_only(small_sets, tmp_path, capsys):
    test, generator = small_sets[1], seeded(5)
    folders = [tmp_path / "a", tmp_path / "b"]
    samples = []
    for seed, folder in enumerate(folders):
        write_run(folder, test, list(range(10 + 20 * seed)), seed, smoothing=seed)
        samples.append([loop_scores(folder, write_answers(folder, test, generator)), loop_errors(folder)])
    (_, differences), _ = tables(capsys, folders)
    head = "label_smoothing 1 (n = 1): other images only; another seed: not known"
    expected = {"": [head]}
    for row in samples[0][0]:
        each = [b - a for a, b in zip(samples[0][0][row], samples[1][0][row], strict=True)]
        half = 1.96 * statistics.stdev(each) / math.sqrt(len(each))
        ends = statistics.mean(each) - half, statistics.mean(each) + half
        expected[row] = [f"{100 * statistics.mean(each):+.2f} ({100 * ends[0]:+.2f} to {100 * ends[1]:+.2f})"]
    for row in samples[0][1]:
        value, *resampled = np.subtract(samples[1][1][row], samples[0][1][row])
        low, high = np.quantile(resampled, [0.025, 0.975])
        expected[row] = [f"{100 * value:+.2f} ({100 * low:+.2f} to {100 * high:+.2f})"]
    assert differences == expected


def test_welchs_interval_is_that_of_scipy():
    stats = pytest.importorskip("scipy.stats")
    for freedom in (1, 1.3, 2, 3.7, 14, 500):
        assert compare.t_quantile(freedom) == pytest.approx(stats.t.ppf(0.975, freedom), rel=1e-4)
    for n, m, scale in ((2, 2, 1), (2, 5, 0.01), (3, 3, 4), (7, 8, 1)):
        ours = torch.randn(n, generator=seeded(n), dtype=torch.float64).tolist()
        theirs = (scale * torch.randn(m, generator=seeded(m + 9), dtype=torch.float64)).tolist()
        test = stats.ttest_ind(ours, theirs, equal_var=False)
        value = statistics.mean(ours) - statistics.mean(theirs)
        reach = stats.t.ppf(0.975, test.df) * value / test.statistic
        expected = {"value": value, "low": value - abs(reach), "high": value + abs(reach)}
        assert compare.welch_interval(ours, theirs) == pytest.approx(expected, rel=1e-3)


def test_settings_training_images_and_size_belong_to_the_recipe(small_sets, tmp_path, capsys):
    changes, runs = [{}, {}, {"lr": 0.2}, {"digest": "of others"}, {"size": 24}, {"size": 24}], []
    # The code was changed, or the machine.
    changes.append({"recorded": {"network": "CNN"}})
    changes.append({"recorded": {"optimizer": "SGD, momentum 0.9"}})
    changes.append({"recorded": {"precision": "fp32"}})
    changes.append({"momentum": 0.0, "recorded": {"optimizer": "SGD, momentum 0.0, nesterov True"}})
    # Older versions do not record it, and sizes as text.
    changes.append({"recorded": None, "lr": 0.3, "image_sizes": "24,32"})
    recipe = {"momentum": 0.9, "image_sizes": [24, 32]}
    changes = [recipe | change for change in changes]
    for seed, change in enumerate(changes):
        runs.append(write_run(tmp_path / str(seed), small_sets[1], [1], seed, **change))
    (means, _), _ = tables(capsys, runs)
    others = ["lr 0.2 (n = 1)", "training images of others (n = 1)", "size 24 (n = 2)"]
    others += ["network CNN (n = 1)", "optimizer SGD (n = 1)", "precision fp32 (n = 1)", "momentum 0 (n = 1)"]
    others.append("lr 0.3 (n = 1)")
    assert means[""] == ["the first recipe (n = 2)", *others]


def test_runs_without_a_recipe_or_with_other_samples(small_sets, tmp_path, capsys):
    """Folders of one name are recipes of their own, and stress tests of two sizes are not compared."""
    test = small_sets[1]
    folders = [tmp_path / place / "net" for place in ("a", "b")]
    for folder in folders:
        write_run(folder, test, [1], 0)
        (folder / "config.json").unlink()
    (means, _), _ = tables(capsys, folders)
    assert means[""] == ["the first recipe (n = 1)", f"{folders[1]} (n = 1)"]
    runs = [write_run(tmp_path / name, test, [3], seed) for seed, name in enumerate("cdef")]
    write_answers(tmp_path / "c", test, seeded())
    larger = write_answers(tmp_path / "d", test, seeded(), "another sample", 60)
    for chosen in (runs[:2], runs[1::-1]):  # of equally many samples the largest is compared
        (means,), text = tables(capsys, chosen)
        tests = [right for test, right in larger.items() if test.startswith(("grain", "salt"))]
        assert means["noise"] == [f"{100 * np.mean(tests):.2f} (n = 1)"]
        assert f"The stress tests of {tmp_path / 'c'} are left out" in text
    for name in "ef":  # of the first sample there are now more
        write_answers(tmp_path / name, test, seeded())
    (means,), text = tables(capsys, runs)
    assert means["noise"][0].endswith("(n = 3)") and f"of {tmp_path / 'd'} are left out" in text
    for name in "cdef":  # stress tests of other images than the answers
        write_answers(tmp_path / name, dataclasses.replace(test, images=test.images.flip(0)), seeded())
    assert "noise" not in tables(capsys, runs)[0][0]
    with pytest.raises(UserError, match="expected two runs or more"):
        compare.main(runs[:1])

"""compare.py: what report.py --against says, and differences that are more than those of seeds."""

import dataclasses
import json
import math

import pytest
import torch

import compare
from running.errors import UserError
from running.outputs import digest_of_images, write_predictions


def rows_for(test, wrong, seed=0):
    """Probabilities right but for the images `wrong`."""
    scores = torch.rand(100, 100, generator=torch.Generator().manual_seed(seed))
    answers = test.labels.clone()
    answers[wrong] = (answers[wrong] + 1) % 100
    return (scores + 6 * torch.eye(100)[answers]).softmax(dim=1)


def test_runs_of_the_same_images_are_compared_by_counting(small_sets):
    test = small_sets[1]
    runs = {}
    for name, wrong in {"a": range(10), "b": range(5, 25), "c": []}.items():
        rows = rows_for(test, list(wrong), len(runs))
        runs[name] = {"probabilities": rows, "y_pred": rows.argmax(dim=1)}
    found = compare.compare(runs, test.labels)
    assert found["right_in"] == [0, 5, 20, 75]  # wrong in both a and b: 5 to 9
    assert found["mean_accuracy"] == pytest.approx((0.9 + 0.8 + 1) / 3)
    assert found["standard_deviation"] == pytest.approx(0.1)
    first, second = found["differences"]
    assert first["churn"] == 0.2
    assert first["p"] == pytest.approx(2 * sum(math.comb(20, k) for k in range(6)) / 2**20)  # 15 against 5
    assert first["accuracy"]["value"] == pytest.approx(0.1) and second["accuracy"]["value"] == pytest.approx(
        -0.1
    )
    mean = torch.stack([run["probabilities"] for run in runs.values()]).mean(dim=0)
    accuracy = (mean.argmax(dim=1) == test.labels).double().mean().item()
    assert found["mean_of_probabilities"]["accuracy"] == accuracy


def test_runs_of_other_images_classes_or_equal_weights_are_refused(small_sets, tmp_path):
    test, rows = small_sets[1], rows_for(small_sets[1], [3])
    renamed = dataclasses.replace(test, class_names=[f"{name}s" for name in test.class_names])
    flipped = dataclasses.replace(test, images=test.images.flip(0))
    for name, of in {"same": test, "renamed": renamed, "flipped": flipped}.items():
        write_predictions(tmp_path / name / "predictions.npz", of, rows, rows.argmax(dim=1), "ab")
    assert list(compare.read_runs([tmp_path / "same"], test, "cd")) == [str(tmp_path / "same")]
    for name in ("renamed", "flipped"):
        with pytest.raises(UserError, match="is of other test images, labels or classes"):
            compare.read_runs([tmp_path / name], test, "cd")
    with pytest.raises(UserError, match="has the same weights as the network itself"):
        compare.read_runs([tmp_path / "same"], test, "ab")


def write_run(folder, test, wrong, seed, smoothing=0.1):
    rows = rows_for(test, wrong, seed)
    write_predictions(folder / "predictions.npz", test, rows, rows.argmax(dim=1), f"{folder.name}")
    (folder / "metrics.json").write_text(json.dumps({"temperature": 0.8}))
    settings = {"seed": seed, "out": str(folder), "label_smoothing": smoothing, "epochs": 3}
    (folder / "config.json").write_text(json.dumps({"settings": settings}))
    return str(folder)


def table(capsys, runs):
    assert compare.main(runs) == 0
    lines = [line.strip("|").split("|") for line in capsys.readouterr().out.splitlines() if line[:1] == "|"]
    return {cells[0].strip(): [cell.strip() for cell in cells[1:]] for cells in lines}


def test_a_difference_is_bold_only_if_it_is_more_than_a_seed_does(small_sets, tmp_path, capsys):
    test = small_sets[1]
    plain = [write_run(tmp_path / f"plain{s}", test, list(range(20 + s)), s) for s in range(3)]
    other = [write_run(tmp_path / f"other{s}", test, list(range(60)), s, 0.0) for s in range(3)]
    found = table(capsys, [*plain, *other])
    assert found[""][:2] == ["the first recipe (n = 3)", "label_smoothing 0 (n = 3)"]
    # s = 1 point in one recipe and 0 in the other, so pooled sqrt(1/2); t of 4 degrees of freedom is 2.776.
    alone = 2.776 * math.sqrt(0.5) * math.sqrt(1 + 1 / 3)
    value, cell, by_seed = found["accuracy"]
    assert value == "79.0 %" and float(by_seed) == pytest.approx(alone, abs=0.05)
    assert cell.startswith("**40.0 %, -39.0 (") and cell.endswith(")**, 3 of 3")
    # A difference smaller than that of seeds is not marked, however narrow its interval over the images.
    noisy = [write_run(tmp_path / f"noisy{s}", test, list(range(10 + 15 * s)), s) for s in range(3)]
    found = table(capsys, [*noisy, *other[:1]])
    assert "**" not in found["accuracy"][1] and "-35.0 (" in found["accuracy"][1]


def test_two_recipes_of_one_seed_have_no_yardstick(small_sets, tmp_path, capsys):
    runs = [
        write_run(tmp_path / "a", small_sets[1], [1], 0),
        write_run(tmp_path / "b", small_sets[1], [2], 0, 0.0),
    ]
    assert compare.main(runs) == 0
    assert "No recipe has two seeds here" in capsys.readouterr().out
    with pytest.raises(UserError, match="expected two runs or more"):
        compare.main(runs[:1])
    images = digest_of_images(small_sets[1].images)
    assert compare.read(tmp_path / "a")["images_sha256"] == images

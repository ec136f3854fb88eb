"""page/against.py: two tiny runs compared by loops, and runs that cannot be compared."""

import json
import re
import shutil
import statistics

import numpy as np
import pytest
import torch
from processes import assert_one_line, outcome

import data
import metrics
import report
import train
from page import against
from running.files import UserError

C = 100


def text(markup):
    """Return what a reader sees of HTML, its white space as single blanks."""
    return " ".join(re.sub(r"<[^>]*>", " ", markup).split())


def cells(section, label):
    """Return the texts of the cells of a table, row by row."""
    body = section[section.index(f'aria-label="{label}"') :].split("<tbody>")[1].split("</tbody>")[0]
    return [
        [text(cell) for cell in re.findall(r"<td[^>]*>(.*?)</td>", row)] for row in body.split("</tr>")[:-1]
    ]


@pytest.fixture(scope="module")
def test_set():
    return data.make_shapes(3, seed=1)


def write_run(folder, test, wrong, fifteen=None, **changes):
    """Write what report.py and stress.py leave: the images `wrong` are taken for the next class, at 60 %."""
    folder.mkdir(parents=True)
    y_pred = test.labels.clone()
    y_pred[wrong] = (y_pred[wrong] + 1) % C
    probabilities = torch.full((len(y_pred), C), 0.4 / (C - 1))
    probabilities[torch.arange(len(y_pred)), y_pred] = 0.6
    content = {"y_true": test.labels.numpy(), "probabilities": probabilities.numpy()}
    content |= {"images_sha256": against.digest(test.images), "checkpoint_sha256": folder.name}
    np.savez_compressed(folder / "predictions.npz", **(content | changes))
    if fifteen is not None:
        results = {"checkpoint_sha256": folder.name, "sample_sha256": "a", "corruption_images": 200}
        results["summary"] = {"mean_accuracy": {"fifteen": {"value": fifteen}}}
        (folder / "stress.json").write_text(json.dumps(results))
    return folder


@pytest.fixture
def two_runs(tmp_path, test_set):
    """Of 300 images, three of each class, a has 10 wrong and b 24, of which 4 are the same."""
    a = write_run(tmp_path / "a", test_set, torch.arange(10), fifteen=0.5)
    b = write_run(tmp_path / "b", test_set, torch.arange(6, 30), fifteen=0.4375)
    return a, b


def compare(runs, test):
    return against.section(runs[0], {str(run): against.read_predictions(run, test) for run in runs[1:]}, test)


def test_the_section_says_what_loops_count(two_runs, test_set):
    section = compare(two_runs, test_set)
    seen = text(section)
    rows = cells(section, "All runs")
    # Every answer has a confidence of 60 %, so all images are in one bin.
    assert rows[0][:2] == [f"{two_runs[0]} (this run)", "96.67 %"] and rows[0][3:] == ["36.67 %", "50.00 %"]
    assert rows[1][:2] == [str(two_runs[1]), "92.00 %"] and rows[1][3:] == ["32.00 %", "43.75 %"]
    assert "fifteen corruptions, 200 images" in seen
    a, b = (torch.from_numpy(np.load(run / "predictions.npz")["probabilities"]) for run in two_runs)
    difference = metrics.bootstrap_difference(test_set.labels, a, b)["accuracy"]
    low, high = (f"{100 * difference[end]:+.2f}" for end in ("low", "high"))
    (row,) = cells(section, "Differences")
    p = 2 * sum([1, 26, 325, 2600, 14950, 65780, 230230]) / 2**26
    # The 20 and the 6 images that only one run gets right are answered differently, the other 274 are not.
    assert row[:2] == [str(two_runs[1]), f"+4.67 ({low} to {high})"]
    assert row[3:] == ["20", "6", f"{p:.4f}", "8.7 %"]
    assert "mean accuracy is 94.3 %, with a standard deviation of 3.30 percentage points" in seen
    assert "0 for 4 images, 1 for 26 images, 2 for 270 images" in seen


def test_three_runs_add_up(two_runs, tmp_path, test_set):
    """A network against itself changes no answer; the counts are those of a loop."""
    wrong = [set(range(10)), set(range(6, 30)), set(range(10))]
    twin = write_run(tmp_path / "twin", test_set, torch.arange(10))
    section = compare([*two_runs, twin], test_set)
    accuracies = [100 - len(part) / 3 for part in wrong]
    assert f"mean accuracy is {statistics.mean(accuracies):.1f} %" in text(section)
    assert f"deviation of {statistics.stdev(accuracies):.2f} percentage points" in text(section)
    right = [sum(i not in part for part in wrong) for i in range(300)]
    assert ", ".join(f"{k} for {right.count(k)} images" for k in range(4)) in text(section)
    rows = cells(section, "Differences")
    assert [row[0] for row in rows] == [str(two_runs[1]), str(twin)]
    assert rows[1][1:] == ["+0.00 (+0.00 to +0.00)"] * 2 + ["0", "0", "1.0000", "0.0 %"]
    assert "fifteen" not in text(section)  # the twin has no stress.json


@pytest.mark.parametrize("key", ["checkpoint_sha256", "sample_sha256", "summary"])
def test_corruptions_are_compared_only_on_the_same_images_of_these_checkpoints(two_runs, test_set, key):
    file = two_runs[1] / "stress.json"
    results = json.loads(file.read_text())
    results[key] = "other"
    if key == "summary":  # the tests are not finished
        del results[key]
    file.write_text(json.dumps(results))
    assert "fifteen" not in compare(two_runs, test_set)


def test_runs_that_cannot_be_compared_are_refused(tmp_path, test_set, monkeypatch):
    order = torch.arange(300).flip(0)
    rows = np.full((300, C), 0.5, dtype=np.float32)
    for name, changes, message in [
        ("labels", {"y_true": test_set.labels[order].numpy()}, "of other test images or labels"),
        (
            "order",
            {"images_sha256": against.digest(test_set.images[order])},
            "of other test images or labels",
        ),
        ("classes", {"probabilities": rows[:, :9] / 4.5}, r"probabilities of shape \[300, 9\]"),
        ("rows", {"probabilities": rows}, "rows that are not probabilities"),
        ("nan", {"probabilities": rows * np.nan}, "rows that are not probabilities"),
        ("objects", {"probabilities": np.array([{}])}, "predictions of report.py"),
    ]:
        run = write_run(tmp_path / name, test_set, order[:3], **changes)
        with pytest.raises(UserError, match=rf"{name}/predictions\.npz cannot be used as .*{message}"):
            against.read_predictions(run, test_set)
    whole = write_run(tmp_path / "whole", test_set, order[:3])
    content = (whole / "predictions.npz").read_bytes()
    monkeypatch.setattr(against, "MAX_UNPACKED", 100_000)
    with pytest.raises(UserError, match="it unpacks to too much"):
        against.read_predictions(whole, test_set)
    (whole / "predictions.npz").write_bytes(content[:500])
    with pytest.raises(
        UserError, match=r"whole/predictions\.npz cannot be used as predictions of report\.py"
    ):
        against.read_predictions(whole, test_set)
    with pytest.raises(
        UserError, match=r"there is no \S+predictions.npz: run python report.py --run \S+none"
    ):
        against.read_predictions(tmp_path / "none", test_set)


@pytest.mark.slow
def test_the_command_compares_two_runs(reported, reported_sets, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(train, "load", lambda *args: reported_sets)
    monkeypatch.setattr(report, "NUM_FAILURES", 1)
    monkeypatch.setattr(report, "NUM_EXPLAINED", 2)
    shutil.copytree(reported, tmp_path / "b")
    argv = ["--run", str(tmp_path / "b"), "--against"]
    assert_one_line(*outcome(capsys, report.main, [*argv, str(tmp_path / "b")]), "is the run itself")
    assert report.main([*argv, str(reported)]) == 0
    page = text((tmp_path / "b" / "report.html").read_text(encoding="utf-8"))
    assert "The 2 runs have answered the same 400 test images" in page

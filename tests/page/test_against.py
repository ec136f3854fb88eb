"""page/against.py: two tiny runs compared by loops, and runs that cannot be compared."""

import json
import re
import shutil

import numpy as np
import pytest
import torch
from processes import ROOT

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
    content = {
        "y_true": test.labels.numpy(),
        "y_pred": y_pred.numpy(),
        "probabilities": probabilities.numpy(),
    }
    content |= {"images_sha256": against.digest(test.images), "checkpoint_sha256": folder.name}
    content = {key: value for key, value in (content | changes).items() if value is not None}
    np.savez_compressed(folder / "predictions.npz", **content)
    if fifteen is not None:
        results = json.loads((ROOT / "results" / "stress.json").read_text(encoding="utf-8"))
        results["fingerprint"]["checkpoint"] = folder.name
        results["summary"]["mean_accuracy"]["fifteen"]["value"] = fifteen
        (folder / "stress.json").write_text(json.dumps(results))
    return folder


@pytest.fixture
def two_runs(tmp_path, test_set):
    """Of 300 images, three of each class, a has 10 wrong and b 24, of which 4 are the same."""
    a = write_run(tmp_path / "a", test_set, torch.arange(10), fifteen=0.5)
    b = write_run(tmp_path / "b", test_set, torch.arange(6, 30), fifteen=0.4375)
    return a, b


def test_the_section_says_what_loops_count(two_runs, test_set):
    against.check(*two_runs, test_set)
    section = against.section(*two_runs, test_set)
    seen = text(section)
    assert f"The other run is {two_runs[1]} , with the same 300 test images" in seen
    rows = cells(section, "This run and the other")
    assert [row[0] for row in rows] == [
        "accuracy",
        "macro F1",
        "expected calibration error",
        "mean of fifteen corruptions, 200 images",
    ]
    assert rows[0][1:4] == ["96.67 %", "92.00 %", "+4.67"]
    assert rows[3][1:4] == ["50.00 %", "43.75 %", "+6.25"]
    # Every answer has a confidence of 60 %, so all images are in one bin.
    assert rows[2][1:4] == ["36.67 %", "32.00 %", "+4.67"]
    a, b = (torch.from_numpy(np.load(run / "predictions.npz")["probabilities"]) for run in two_runs)
    for row, key in zip(rows, ("accuracy", "macro_f1"), strict=False):
        low, high = (metrics.bootstrap_difference(test_set.labels, a, b)[key][end] for end in ("low", "high"))
        assert row[4] == f"{100 * low:+.2f} to {100 * high:+.2f}"

    assert "On 274 images both runs are right or both are wrong." in seen
    assert "On 20 only this run is right, on 6 only the other." in seen
    p = 2 * sum([1, 26, 325, 2600, 14950, 65780, 230230]) / 2**26
    assert f"would then be {p:.4f} (McNemar" in seen
    for function in (metrics.bootstrap_difference, metrics.mcnemar_exact, against.compare_classes):
        assert f"def {function.__name__}(" in section


def test_classes_are_ranked_by_the_images_they_gained(two_runs, test_set):
    section = against.section(*two_runs, test_set)
    right = []
    for run in two_runs:
        content = np.load(run / "predictions.npz")
        hits = [0] * C
        for true, predicted in zip(content["y_true"], content["y_pred"], strict=True):
            hits[true] += true == predicted
        right.append(hits)
    change = {name: right[0][c] - right[1][c] for c, name in enumerate(test_set.class_names)}
    ranked = sorted(
        change.items(), key=lambda item: -item[1]
    )  # stable: equal changes in the order of classes
    expected = [item for item in ranked[:5] if item[1] > 0] + [item for item in ranked[-5:] if item[1] < 0]
    rows = cells(section, "Classes that gained and lost most")
    assert [(row[0], row[3]) for row in rows] == [(name, f"{value:+d}") for name, value in expected]
    seen = text(section)
    assert "Among 100 classes some differences arise by chance" in seen
    assert "with a p below 0.05 is 0; if both runs were equally good, up to about 5 would be expected" in seen


def test_pictures_flip_in_both_directions(two_runs, test_set):
    section = against.section(*two_runs, test_set)
    ours, theirs = section.split("Only the other run is right")
    ours = ours.split("Only this run is right")[1]
    assert (ours.count("<img"), theirs.count("<img")) == (against.NUM_FLIPPED, 6)
    for part, images in ((ours, range(10, 18)), (theirs, range(6))):
        for i in images:
            true = test_set.class_names[test_set.labels[i]]
            wrong = test_set.class_names[(test_set.labels[i] + 1) % C]
            assert f"{true}, not {wrong} (60 %)" in text(part)
    assert "which only this run recognises" in ours and "which only the other run recognises" in theirs


def test_equal_runs(tmp_path, test_set):
    runs = [write_run(tmp_path / name, test_set, torch.arange(5)) for name in "ab"]
    section = against.section(*runs, test_set)
    assert "would then be 1.0000 (McNemar" in text(section) and "<img" not in section
    assert cells(section, "Classes that gained and lost most") == []
    assert [row[3:] for row in cells(section, "This run and the other")] == [
        ["+0.00", "+0.00 to +0.00"],
        ["+0.00", "+0.00 to +0.00"],
        ["+0.00", "–"],
    ]


@pytest.mark.parametrize("key", ["checkpoint", "sample", "settings"])
def test_corruptions_are_compared_only_on_the_same_tests_of_these_checkpoints(two_runs, test_set, key):
    file = two_runs[1] / "stress.json"
    results = json.loads(file.read_text())
    results["fingerprint"][key] = "other"
    file.write_text(json.dumps(results))
    assert "mean of fifteen" not in against.section(*two_runs, test_set)
    del results["checks"]  # the tests are not finished
    file.write_text(json.dumps(results))
    assert "mean of fifteen" not in against.section(*two_runs, test_set)


def test_runs_that_cannot_be_compared_are_refused(tmp_path, two_runs, test_set):
    a, b = two_runs
    refused = {"is the run itself": a, "there is no run": tmp_path / "none"}
    (tmp_path / "empty").mkdir()
    refused[r"there is no \S+predictions.npz: run python report.py --run \S+empty first"] = tmp_path / "empty"
    whole = (b / "predictions.npz").read_bytes()
    for name, content in {
        "empty file": b"",
        "cut": whole[:500],
        "changed": whole[:300] + b"xxx" + whole[303:],
    }.items():
        shutil.copytree(b, tmp_path / name)
        (tmp_path / name / "predictions.npz").write_bytes(content)
        refused[rf"{name}/predictions.npz is damaged or of an older report.py: run python report.py"] = (
            tmp_path / name
        )
    for run, message in [(path, message) for message, path in refused.items()]:
        with pytest.raises(UserError, match=message) as caught:
            against.check(a, run, test_set)
        assert "\n" not in str(caught.value)
    order = torch.arange(300)
    order[[0, 300 - 1]] = order[[300 - 1, 0]]
    relabelled = test_set.labels[order].numpy()
    other_images = data.make_shapes(3, seed=2)  # with the same labels
    for name, changes in {
        "labels": {"y_true": relabelled},
        "images": {"images_sha256": against.digest(other_images.images)},
        "order": {"images_sha256": against.digest(test_set.images[order])},
    }.items():
        run = write_run(tmp_path / name, test_set, order[:3], **changes)
        with pytest.raises(UserError, match="was tested on other images or labels"):
            against.check(a, run, test_set)
    older = write_run(tmp_path / "older", test_set, order[:3], images_sha256=None)
    with pytest.raises(UserError, match="of an older"):
        against.check(a, older, test_set)


@pytest.mark.slow
def test_the_command_compares_two_runs(finished, small_sets, tmp_path, monkeypatch):
    monkeypatch.setattr(train, "load", lambda *args: small_sets)
    monkeypatch.setattr(report, "NUM_FAILURES", 1)
    monkeypatch.setattr(report, "NUM_EXPLAINED", 2)
    a, b = tmp_path / "a", tmp_path / "b"
    for run in (a, b):
        shutil.copytree(finished, run)
    assert report.main(["--run", str(a)]) == 0
    with pytest.raises(UserError, match="run python report"):
        report.main(["--run", str(a), "--against", str(b)])
    assert report.main(["--run", str(b), "--against", str(a)]) == 0
    pages = [(run / "report.html").read_text(encoding="utf-8") for run in (a, b)]
    assert ["Against another run" in page for page in pages] == [False, True]
    assert f"The other run is {a} , with the same 100 test images" in text(pages[1])
    # The same weights: no image is right in one run only.
    assert "On 100 images both runs are right or both are wrong." in text(pages[1])

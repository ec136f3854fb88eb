"""page/against.py: tiny runs compared by loops, and runs that cannot be compared."""

import hashlib
import re
import statistics

import numpy as np
import pytest
import torch
from pages import text
from processes import assert_one_line, outcome

import data
import metrics
import network
import report
from page import against
from running.files import UserError

C = 100


def cells(section):
    """Return the texts of the cells of its table, row by row."""
    rows = section.split("<tbody>")[1].split("</tbody>")[0].split("</tr>")[:-1]
    return [[text(cell) for cell in re.findall(r"<td[^>]*>(.*?)</td>", row)] for row in rows]


@pytest.fixture(scope="module")
def test_set():
    return data.make_shapes(3, seed=1)


def rows_for(test, wrong):
    """Probabilities where the images `wrong` are taken for the next class, each at 60 %."""
    y_pred = test.labels.clone()
    y_pred[wrong] = (y_pred[wrong] + 1) % C
    probabilities = torch.full((len(y_pred), C), 0.4 / (C - 1))
    probabilities[torch.arange(len(y_pred)), y_pred] = 0.6
    return probabilities


def stress_of(fifteen):
    """What stress.read_results returns of a finished test."""
    return {"sample_sha256": "same", "summary": {"mean_accuracy": {"fifteen": {"value": fifteen}}}}


def write_run(folder, test, wrong, sha256=None):
    path = folder / "predictions.npz"
    against.write_predictions(path, test, rows_for(test, wrong), sha256 or folder.name)
    return folder


@pytest.fixture
def three_runs(tmp_path, test_set):
    """Of 300 images a has 10 wrong, b 24, of which 4 are the same, and c those of a."""
    wrong = {"a": torch.arange(10), "b": torch.arange(6, 30), "c": torch.arange(10)}
    return [write_run(tmp_path / name, test_set, images) for name, images in wrong.items()]


def compare(runs, test, stress):
    return against.compare(against.read_runs(runs, test, "of the report"), stress, test)


def test_two_runs_against_loops(three_runs, test_set):
    runs = three_runs[:2]
    names = [str(run) for run in runs]
    stress = {name: stress_of(fifteen) for name, fifteen in zip(names, (0.5, 0.4375), strict=True)}
    compared = compare(runs, test_set, stress)
    rows = cells(against.section(compared))
    # Every answer has a confidence of 60 %, so all images are in one bin. The 20 and the 6 images that only
    # one run gets right are answered differently, the other 274 are not.
    ours, theirs = (rows_for(test_set, wrong) for wrong in (torch.arange(10), torch.arange(6, 30)))
    difference = metrics.bootstrap_difference(test_set.labels, ours, theirs)["accuracy"]
    low, high = (f"{100 * difference[end]:+.1f}" for end in ("low", "high"))
    p = 2 * sum([1, 26, 325, 2600, 14950, 65780, 230230]) / 2**26
    assert rows[0] == [runs[0].name, "96.7 %", "36.7 %", "50.0 %", "", "", ""]
    paired = [f"+4.7 ({low} to {high})", f"{p:.2g}", "8.7 %"]
    assert rows[1] == [runs[1].name, "92.0 %", "32.0 %", "43.8 %", *paired]


def test_three_runs_add_up(three_runs, test_set):
    """A network against one with the same answers; the counts are those of a loop."""
    wrong = [set(range(10)), set(range(6, 30)), set(range(10))]
    compared = compare(three_runs, test_set, {})
    accuracies = [1 - len(part) / 300 for part in wrong]
    assert compared["mean_accuracy"] == pytest.approx(statistics.mean(accuracies))
    assert compared["standard_deviation"] == pytest.approx(statistics.stdev(accuracies))
    right = [sum(i not in part for part in wrong) for i in range(300)]
    assert compared["right_in"] == [right.count(k) for k in range(4)]
    section = against.section(compared)
    assert cells(section)[2][-3:] == ["+0.0 (+0.0 to +0.0)", "1.00", "0.0 %"]
    deviation = f"{100 * compared['standard_deviation']:.2f} points"
    for words in (
        "3 runs",
        deviation,
        f"{right.count(3)} images are right in all",
        f"{right.count(0)} in none",
    ):
        assert words in text(section)


def test_copies_of_a_network_and_runs_that_trained_on_are_refused(three_runs, test_set, tmp_path):
    twin = write_run(tmp_path / "twin", test_set, torch.arange(3), sha256="a")
    with pytest.raises(UserError, match=f"--against {twin} has the same weights as {three_runs[0]}"):
        against.read_runs([three_runs[0], twin], test_set, "of the report")
    with pytest.raises(UserError, match="the same weights as the network itself"):
        against.read_runs(three_runs, test_set, "b")
    (twin / "checkpoints").mkdir()
    (twin / "checkpoints" / "best.pt").write_bytes(b"newer")
    with pytest.raises(UserError, match=r"of other weights than \S+best\.pt: run report\.py"):
        against.read_predictions(twin, test_set)


def test_files_that_cannot_be_compared_are_refused(tmp_path, test_set):
    probabilities = rows_for(test_set, []).numpy()
    content = {"y_true": test_set.labels.numpy(), "probabilities": probabilities, "checkpoint_sha256": "x"}
    content["images_sha256"] = against.digest(test_set.images)
    for key, value, message in [
        ("y_true", test_set.labels.flip(0).numpy(), "of other test images or labels"),
        ("images_sha256", against.digest(test_set.images.flip(0)), "of other test images or labels"),
        ("probabilities", probabilities[:, :9], r"probabilities of shape \[300, 9\]"),
        ("probabilities", 2 * probabilities, "sum to 1"),
        ("probabilities", np.nan * probabilities, "finite"),
        ("probabilities", np.array([{}]), "predictions of report.py"),
    ]:
        np.savez_compressed(tmp_path / "predictions.npz", **(content | {key: value}))
        with pytest.raises(UserError, match=rf"predictions\.npz cannot be used as .*{message}"):
            against.read_predictions(tmp_path, test_set)
    damaged = (tmp_path / "predictions.npz").read_bytes()[:500]
    (tmp_path / "predictions.npz").write_bytes(damaged)
    with pytest.raises(UserError, match=r"predictions\.npz cannot be used as predictions of report\.py"):
        against.read_predictions(tmp_path, test_set)
    with pytest.raises(UserError, match=r"there is no \S+npz: run python report.py --run \S+none"):
        against.read_predictions(tmp_path / "none", test_set)


def test_corruptions_are_compared_only_on_the_same_images(three_runs, test_set):
    stress = {str(run): stress_of(0.5) for run in three_runs}
    assert all("fifteen_corruptions" in row for row in compare(three_runs, test_set, stress)["runs"])
    for change in (stress_of(0.5) | {"sample_sha256": "another"}, {"sample_sha256": "same"}, None):
        stress[str(three_runs[1])] = change  # another sample, not finished, not begun
        assert not any("fifteen_corruptions" in row for row in compare(three_runs, test_set, stress)["runs"])


def test_the_command_refuses_the_run_itself_first(finished, small, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(network.Network, "features", None)
    sha256 = hashlib.sha256((finished / "checkpoints" / "best.pt").read_bytes()).hexdigest()
    copy = write_run(tmp_path / "copy", small[1], torch.arange(3), sha256)
    argv = ["--run", str(finished), "--out", str(tmp_path / "out"), "--against", str(copy)]
    assert_one_line(*outcome(capsys, report.main, argv), "the same weights as the network itself")

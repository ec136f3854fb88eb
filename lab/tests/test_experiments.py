"""Each experiment in its smallest run, with one of its numbers computed a second time.

Those that take a checkpoint get one of three epochs on a few shapes.
"""

import contextlib
import io
import json
import sys

import numpy as np
import pytest
import torch
from lab_commands import ROOT, use_sets

from lab.classifier import load_checkpoint
from lab.experiments import aimed, covering, findings, temperature, transfer, unlabelled
from lab.stress_tests.corruptions import FAMILIES, FIFTEEN, corrupt
from metrics import expected_calibration_error, fit_temperature

pytestmark = pytest.mark.slow
FAMILY_OF = {name: family for family, names in FAMILIES.items() for name in names}


@pytest.fixture
def run(monkeypatch, finished, small_sets, tmp_path):
    """run(experiment, ...) is what its command prints, as rows of cells; files go to an empty folder."""
    use_sets(monkeypatch, small_sets)
    monkeypatch.chdir(tmp_path)

    def run(experiment, *options):
        checkpoint = finished / "checkpoints" / "best.pt"
        argv = [str(checkpoint) if part == "CHECKPOINT" else str(part) for part in options]
        monkeypatch.setattr(sys, "argv", [experiment.__name__, *argv])
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            experiment.main()
        lines = [line for line in printed.getvalue().splitlines() if line.startswith("|")]
        return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]

    return run


@pytest.fixture
def network(finished):
    return load_checkpoint(finished / "checkpoints" / "best.pt", "cpu")


def first_number(cell):
    return float(cell.split()[0])


def test_unlabelled(run, monkeypatch):
    """The first method by NumPy: lines of other networks and other families."""
    rows = run(unlabelled, "--checkpoint", "CHECKPOINT", "--images", "20")
    stresses = [
        json.loads((ROOT / "results" / folder / "stress.json").read_text(encoding="utf-8"))["tests"]
        for folder in [".", *unlabelled.NETWORKS[1:]]
    ]
    clean = [stress["clean/0"] for stress in stresses]
    cases = [
        (n, FAMILY_OF[name], stress[f"{name}/{s}"]["mean_confidence"], stress[f"{name}/{s}"]["accuracy"])
        for n, stress in enumerate(stresses)
        for name in FIFTEEN
        for s in range(1, 6)
    ]
    network, family = np.array([case[0] for case in cases]), np.array([case[1] for case in cases])
    x = np.array([clean[n]["mean_confidence"] - confidence for n, _, confidence, _ in cases])
    y = np.array([clean[n]["accuracy"]["value"] - accuracy["value"] for n, _, _, accuracy in cases])
    errors = []
    for n in range(9):
        for one in FAMILIES:
            others, inside = (network != n) & (family != one), (network == n) & (family == one)
            errors.append(y[inside] - np.linalg.lstsq(x[others, None], y[others], rcond=None)[0] * x[inside])
    errors = 100 * np.concatenate(errors)
    assert first_number(rows[2][1]) == pytest.approx(np.abs(errors).mean(), abs=0.051)
    assert float(rows[2][2]) == pytest.approx(np.sort(np.abs(errors))[607], abs=0.051)  # of 675
    assert first_number(rows[5][1]) == pytest.approx(100 * np.abs(y - x).mean(), abs=0.051)
    assert [row[0] for row in rows[-6:]][1] == "fall of confidence itself"  # the table of ATC


def test_atc():
    """Where every fourth answer is wrong, the threshold leaves a quarter of the scores below it."""
    scores, right = torch.linspace(0, 1, 100), torch.arange(100) % 4 != 0
    estimate = unlabelled.atc(scores, right, torch.stack([scores, scores / 2, 0.3 + scores]))
    assert estimate.tolist() == pytest.approx([0.75, 0.5, 1], abs=0.011)


def test_findings(run, monkeypatch):
    drawn = {}
    monkeypatch.setattr(findings, "write", lambda path, content: drawn.update({path.name: content}))
    rows = run(findings)
    assert list(drawn) == ["temperature.png"]
    stress = json.loads((ROOT / "results" / "stress.json").read_text(encoding="utf-8"))["tests"]
    wrong = [1 - stress[f"{name}/{s}"]["accuracy"]["value"] for name in FIFTEEN for s in range(1, 6)]
    row = next(row for row in rows if row[0] == "shipped" and row[1] == "10,000")
    assert first_number(row[2]) == pytest.approx(100 * np.mean(wrong), abs=0.051)


def test_temperature(run, network, small_sets):
    """The calibration error is the mean of fifteen, each by metrics.py; at severity 0 of clean images."""
    rows = run(temperature, "CHECKPOINT", "--images", "100", "--severities", "0", "1")
    test, scaled = small_sets[1], fit_temperature(*network.validation)
    for severity, place in ((0, 2), (1, 5)):
        images = [corrupt(test.images, name, 1) for name in FIFTEEN] if severity else [test.images]
        for divisor, column in ((1, 4), (scaled, 5)):
            errors = [
                expected_calibration_error(
                    test.labels, (network.predict(x).double() / divisor).softmax(dim=1), 15
                )
                for x in images
            ]
            assert first_number(rows[place][column]) == pytest.approx(100 * np.mean(errors), abs=0.051)


def test_aimed(run):
    rows = {
        row[0]: first_number(row[1]) for row in run(aimed, "CHECKPOINT", "--images", "50", "--draws", "2")[2:]
    }
    assert rows["1/255: random signs"] >= rows["1/255: random signs, the worst of 2"] and len(rows) == 7


def test_covering(run):
    rows = run(covering, "CHECKPOINT", "--images", "4")
    assert all("%" in row[1] for row in rows[2:])


def test_transfer(run, monkeypatch):
    monkeypatch.setattr(transfer, "NUM_IMAGES", 4)  # as many as the run held out
    monkeypatch.setattr(transfer, "NUM_RESAMPLES", 3)
    monkeypatch.setattr(transfer, "SEVERITIES", (1,))
    rows = run(transfer, "CHECKPOINT", "--cache", "cache")
    assert [row[0] for row in rows[2::2]][:4] == [*FAMILIES]

"""benchmarks/one_change.py: its table against loops over two made-up runs."""

import json
import subprocess
import sys

import numpy as np
import torch
from processes import ROOT

import stress
from stress_tests.attacks import ATTACKS
from stress_tests.corruptions import FIFTEEN

NOISE = ("gaussian_noise", "shot_noise", "impulse_noise")


def calibration_error(y_true, probabilities):
    """Over 15 bins of confidence, by a loop (Guo et al. 2017, equation 3)."""
    confidence, right = probabilities.max(1), probabilities.argmax(1) == y_true
    total = 0
    for low in range(15):
        inside = (confidence > low / 15) & (confidence <= (low + 1) / 15)
        total += abs(right[inside].sum() - confidence[inside].sum())
    return total / len(y_true)


def write_run(folder, seed, sample="same"):
    """Return the probabilities of 40 images of 3 classes, and which are right under each stress test."""
    random = np.random.default_rng(seed)
    y_true, probabilities = np.arange(40) % 3, random.dirichlet(np.ones(3), 40)
    plan = stress.planned_tests(num_classes=3)
    answers = {f"{name}/{level:g}": random.random(40) < 0.6 for name, level in plan}
    rate = {"mean_colour": {"value": 0.25, "low": 0.2, "high": 0.3}}
    numbers = {"accuracy": {"value": np.mean(probabilities.argmax(1) == y_true)}, "macro_f1": {"value": 0.5}}
    numbers |= {"checkpoint_sha256": folder.name, "mean_confidence": 0.5, "errors_within_superclass": 0.5}
    numbers["expected_calibration_error"] = calibration_error(y_true, probabilities)
    numbers["repair"] = {"contrastive": rate, "random": rate}
    folder.mkdir()
    np.savez(folder / "predictions.npz", y_true=y_true, probabilities=probabilities.astype(np.float32))
    records = {test: {"accuracy": {"value": right.mean()}} for test, right in answers.items()}
    results = {"checkpoint_sha256": folder.name, "sample_sha256": sample, "tests": records, "summary": {}}
    results["answers"] = {test: torch.from_numpy(right) for test, right in answers.items()}
    stress.save_results(folder, results)
    (folder / "metrics.json").write_text(json.dumps(numbers))
    return probabilities, answers


def table(*folders):
    command = [sys.executable, ROOT / "benchmarks" / "one_change.py", *folders]
    return subprocess.run(command, capture_output=True, text=True)


def test_the_table_is_that_of_loops(tmp_path):
    y_true, written = np.arange(40) % 3, [write_run(tmp_path / name, seed) for seed, name in enumerate("ab")]
    runs = [(probabilities.argmax(1), answers) for probabilities, answers in written]
    done = table(tmp_path / "a", tmp_path / "b")
    lines = [[cell.strip() for cell in line.strip("|").split("|")] for line in done.stdout.splitlines()]
    cells = {row[0]: row[1:] for row in lines}
    right = [np.mean(y_pred == y_true) for y_pred, _ in runs]
    assert cells["accuracy"][0] == f"{100 * right[0]:.1f} %"
    assert cells["accuracy"][1].startswith(f"{100 * right[1]:.1f} %, {100 * (right[1] - right[0]):+.1f} (")
    errors = [calibration_error(y_true, probabilities) for probabilities, _ in written]
    assert cells["calibration error"][0] == f"{100 * errors[0]:.1f} %"
    assert cells["calibration error"][1].startswith(
        f"{100 * errors[1]:.1f} %, {100 * (errors[1] - errors[0]):+.1f} ("
    )
    for row, names in {"fifteen corruptions": FIFTEEN, "noise: 3 of them": NOISE, "fog": ["fog"]}.items():
        scores = [
            [np.mean([a[f"{n}/{s}"][i] for n in names for s in range(1, 6)]) for i in range(40)]
            for _, a in runs
        ]
        difference = np.subtract(scores[1], scores[0])
        error = 1.96 * difference.std(ddof=1) / np.sqrt(40)
        ends = [f"{100 * (difference.mean() + k * error):+.1f}" for k in (0, -1, 1)]
        assert cells[row] == [
            f"{100 * np.mean(scores[0]):.1f} %",
            f"{100 * np.mean(scores[1]):.1f} %, {ends[0]} ({ends[1]} to {ends[2]})",
        ]
    names = [name for name, attack in ATTACKS.items() if 1 in attack.epsilons]
    worst = [
        np.mean([all(a[t][i] for t in ["unattacked/0", *(f"{n}/1" for n in names)]) for i in range(40)])
        for _, a in runs
    ]
    assert cells["right after all attacks, 1/255"][0] == f"{100 * worst[0]:.1f} %"
    before = [a["unattacked/0"].mean() for _, a in runs]
    assert cells["images for attacks, before them"][0] == f"{100 * before[0]:.1f} %"
    churn = np.mean(runs[0][0] != runs[1][0])
    assert cells["other answers than the first"][1].startswith(f"{100 * churn:.1f} % (")


def test_rows_that_a_data_set_lacks_are_left_out(tmp_path):
    """CIFAR-10 and folders have no superclasses; a network that cannot be explained has no repair rate."""
    write_run(tmp_path / "a", 0)
    numbers = json.loads((tmp_path / "a" / "metrics.json").read_text())
    del numbers["errors_within_superclass"], numbers["repair"]
    (tmp_path / "a" / "metrics.json").write_text(json.dumps(numbers))
    done = table(tmp_path / "a")
    assert done.returncode == 0 and "| accuracy |" in done.stdout
    assert "repaired" not in done.stdout and "superclass" not in done.stdout


def test_other_images_and_missing_files_end_in_one_line(tmp_path):
    write_run(tmp_path / "a", 0)
    write_run(tmp_path / "b", 1, sample="other")
    done = table(tmp_path / "a", tmp_path / "b")
    assert (done.returncode, done.stderr.count("\n")) == (2, 1) and "other images" in done.stderr
    (tmp_path / "b" / "stress.json").unlink()
    done = table(tmp_path / "a", tmp_path / "b")
    assert done.returncode == 2 and "run report.py and stress.py" in done.stderr

"""README.md and docs/: blocks run or parse as they stand, links and options exist, accuracies are right."""

import json
import subprocess

import numpy as np
import pytest
from documents import TEXTS, blocks, broken_links, run_python, wrong_options
from processes import ROOT


def test_the_stated_accuracies_are_those_of_the_predictions():
    accuracies = []
    for folder in ("results", "results/seed1", "results/seed2"):
        with np.load(ROOT / folder / "predictions.npz") as file:
            accuracies.append(100 * np.mean(file["probabilities"].argmax(axis=1) == file["y_true"]))
        stated = json.loads((ROOT / folder / "metrics.json").read_text())["accuracy"]["value"]
        assert stated == pytest.approx(accuracies[-1] / 100)
    for number in (*[f"{accuracy:.2f} %" for accuracy in accuracies], f"{np.mean(accuracies):.1f} %"):
        assert number in TEXTS["README.md"]


def test_links_to_files_lead_somewhere():
    assert broken_links(of_lab=False) == []


def test_readme_has_the_two_shell_blocks_that_ci_runs():
    assert TEXTS["README.md"].count("```bash\n") == 2


@pytest.mark.parametrize("block", blocks("bash", of_lab=False))
def test_a_shell_block_parses(block):
    subprocess.run(["bash", "-n"], input=block, text=True, check=True)


@pytest.mark.parametrize("command", ["train", "report"])
def test_the_options_of_a_command_exist(command, capsys):
    assert wrong_options(command, capsys) == set()


@pytest.mark.slow
@pytest.mark.parametrize("block", blocks("python", of_lab=False))
def test_a_python_block_runs_as_it_stands(block, tmp_path):
    run_python(block, tmp_path)

"""README.md and docs/: Python blocks run as they stand, links and options exist."""

import pytest
from documents import TEXTS, broken_links, python_blocks, run_python, wrong_options


def test_links_to_files_lead_somewhere():
    assert broken_links(of_lab=False) == []


def test_readme_has_the_two_shell_blocks_that_ci_runs():
    assert TEXTS["README.md"].count("```bash\n") == 2


@pytest.mark.parametrize("command", ["train", "report"])
def test_the_options_of_a_command_exist(command, capsys):
    assert wrong_options(command, capsys) == set()


@pytest.mark.slow
@pytest.mark.parametrize("block", python_blocks(of_lab=False))
def test_a_python_block_runs_as_it_stands(block, tmp_path):
    run_python(block, tmp_path)

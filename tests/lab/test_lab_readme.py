"""What README.md and docs/ say of the laboratory: blocks run as they stand, links and options exist."""

import pytest
from documents import broken_links, python_blocks, run_python, wrong_options


def test_links_to_files_lead_somewhere():
    assert broken_links(of_lab=True) == []


@pytest.mark.parametrize("command", ["examine", "stress", "explain", "compare"])
def test_the_options_of_a_command_exist(command, capsys):
    assert wrong_options(f"lab.{command}", capsys) == set()


@pytest.mark.slow
@pytest.mark.parametrize("block", python_blocks(of_lab=True))
def test_a_python_block_runs_as_it_stands(block, tmp_path):
    run_python(block, tmp_path)

"""lab/README.md: its blocks run as they stand, in an empty folder."""

import re

import pytest
from lab_commands import ROOT

from lab import examine
from lab.support import read_json

README = (ROOT / "lab" / "README.md").read_text(encoding="utf-8")


@pytest.mark.slow
def test_the_blocks_of_python_run_and_the_commands_beside_them(quick, small, tmp_path, monkeypatch):
    pytest.importorskip("sklearn")
    monkeypatch.chdir(tmp_path)
    for block in re.findall(r"```python\n(.*?)```", README, re.DOTALL):
        exec(compile(block, "README.md", "exec"), {"__name__": "readme"})
        if "def make()" in block:
            (tmp_path / "net.py").write_text(block)
    assert examine.main(["--model", "net.py:make", "--quick"]) == 0
    assert examine.main(["--predictions", "digits.npz"]) == 0
    assert read_json(tmp_path / "runs" / "digits" / "metrics.json", "")["accuracy"]["value"] > 0.9
    assert (tmp_path / "runs" / "mine" / "explore.html").is_file()


def test_its_tables_name_the_keys_that_are_written(reported):
    """Each key of reasons.json and stress.json stands in the README, and each array of evidence.npz."""
    reasons = read_json(reported / "reasons.json", "")
    keys = {key.removesuffix("_after_temperature") for key in reasons if not key.endswith("_sha256")}
    assert {key for key in keys if f"`{key}`" not in README} == set()

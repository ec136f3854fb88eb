"""README.md and docs/: Python blocks run as they stand, links and options exist."""

import importlib.util
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torchvision.io import write_jpeg

ROOT = Path(__file__).parent.parent
TEXTS = {
    path.name: path.read_text(encoding="utf-8") for path in (ROOT / "README.md", *ROOT.glob("docs/*.md"))
}


def python_blocks():
    found = []
    for name, text in TEXTS.items():
        for block in re.findall(r"^```python\n(.*?)^```$", text, re.DOTALL | re.MULTILINE):
            found.append(pytest.param(block, id=f"{name}-{len(found)}"))
    return found


@pytest.mark.parametrize("name", TEXTS)
def test_links_to_files_lead_somewhere(name):
    folder = ROOT if name == "README.md" else ROOT / "docs"
    links = re.findall(r"\]\(([\w./-]+)[)#]", TEXTS[name])
    assert [link for link in links if not (folder / link).exists()] == []


def test_readme_has_the_two_shell_blocks_that_ci_runs():
    assert len(re.findall("^```bash$", TEXTS["README.md"], re.MULTILINE)) == 2


@pytest.mark.parametrize("command", ["train", "report", "lab.stress", "lab.explain", "lab.compare"])
def test_the_options_of_a_command_exist(command, capsys):
    with pytest.raises(SystemExit):
        importlib.import_module(command).main(["--help"])
    known = set(re.findall(r"--[\w-]+", capsys.readouterr().out))
    typed = rf"-m {command}" if "." in command else rf"{command}\.py"
    for name, text in TEXTS.items():
        for options in re.findall(rf"python {typed}((?:[^`#&\n]|\n(?=--))*)", text):
            assert set(re.findall(r"--[\w-]+", options)) <= known, name


@pytest.mark.slow
@pytest.mark.parametrize("block", python_blocks())
def test_a_python_block_runs_as_it_stands(block, tmp_path):
    imported = set(re.findall(r"^\s*(?:from|import) (\w+)", block, re.MULTILINE))
    if absent := [name for name in imported if importlib.util.find_spec(name) is None]:
        pytest.skip(f"needs {absent[0]}")
    for name in ("weights", "results"):
        shutil.copytree(ROOT / name, tmp_path / name)
    pixels = torch.randint(0, 256, (3, 60, 80), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    write_jpeg(pixels, str(tmp_path / "photo.jpg"))
    where = {"cwd": tmp_path, "env": os.environ | {"PYTHONPATH": str(ROOT)}}
    done = subprocess.run([sys.executable, "-c", block], **where, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr

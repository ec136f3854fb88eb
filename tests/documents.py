"""For tests of README.md and docs/: their Python blocks, links, options and tables."""

import importlib
import importlib.util
import os
import re
import shutil
import subprocess
import sys

import pytest
import torch
from processes import ROOT
from torchvision.io import write_jpeg

FILES = [ROOT / "README.md", *(ROOT / "docs").glob("*.md")]
TEXTS = {path.name: path.read_text(encoding="utf-8") for path in FILES}


def python_blocks(of_lab):
    """The blocks that import lab/, or the others, as parameters of a test."""
    chosen = []
    for name, text in TEXTS.items():
        for block in re.findall(r"^```python\n(.*?)^```$", text, re.DOTALL | re.MULTILINE):
            if bool(re.search(r"^\s*(from|import) lab\b", block, re.MULTILINE)) == of_lab:
                chosen.append(pytest.param(block, id=f"{name}-{len(chosen)}"))
    return chosen


def run_python(block, folder):
    """Run a block as it stands, in a folder with a photograph and what is shipped."""
    imported = set(re.findall(r"^\s*(?:from|import) (\w+)", block, re.MULTILINE))
    if absent := [name for name in imported if importlib.util.find_spec(name) is None]:
        pytest.skip(f"needs {absent[0]}")
    for name in ("weights", "results"):
        shutil.copytree(ROOT / name, folder / name)
    pixels = torch.randint(0, 256, (3, 60, 80), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    write_jpeg(pixels, str(folder / "photo.jpg"))
    where = {"cwd": folder, "env": os.environ | {"PYTHONPATH": str(ROOT)}}
    done = subprocess.run([sys.executable, "-c", block], **where, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def broken_links(of_lab):
    """The links that lead nowhere, those to files of lab/ or the others."""
    links = [(path, link) for path in FILES for link in re.findall(r"\]\(([\w./-]+)[)#]", TEXTS[path.name])]
    return [link for path, link in links if ("lab/" in link) == of_lab and not (path.parent / link).exists()]


def wrong_options(command, capsys):
    """The options of `python command.py` or `python -m command` in the texts that it does not have."""
    with pytest.raises(SystemExit):
        importlib.import_module(command).main(["--help"])
    options = set(re.findall(r"--[\w-]+", capsys.readouterr().out))
    typed = rf"-m {command}" if "." in command else rf"{command}\.py"
    lines = re.findall(rf"python {typed}((?:[^`#&\n]|\n(?=--))*)", "\n\n".join(TEXTS.values()))
    return set(re.findall(r"--[\w-]+", "\n".join(lines))) - options


def documented(section):
    """Return what stands in backticks in the first column of the table of a section of docs/formats.md."""
    rows = re.search(rf"^## {section}.*?(?=^## |\Z)", TEXTS["formats.md"], re.DOTALL | re.MULTILINE).group()
    cells = [row.split("|")[1] for row in rows.splitlines() if row.startswith("| `")]
    return {key for cell in cells for key in re.findall(r"`(\w+)`", cell)}

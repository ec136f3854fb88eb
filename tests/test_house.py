"""The card: six files, who imports whom, and nothing behind them; the README counts their lines."""

import ast
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
MAY_IMPORT = {
    "resnet_cifar": set(),
    "data": set(),
    "metrics": set(),
    "gradcam": set(),
    "train": {"data", "resnet_cifar"},
    "report": {"data", "gradcam", "metrics", "resnet_cifar", "train"},
    "hubconf": {"resnet_cifar"},
}
# Jinja2 comes with torch, Pillow with torchvision and matplotlib.
PACKAGES = {"torch", "torchvision", "numpy", "matplotlib", "jinja2", "PIL"}


def imports(name):
    """The first names of all modules that a file imports, also inside of functions."""
    names = set()
    for node in ast.walk(ast.parse((ROOT / f"{name}.py").read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        if isinstance(node, ast.ImportFrom):
            names.add(node.module.split(".")[0])
    return names


@pytest.mark.parametrize("name", MAY_IMPORT)
def test_a_file_imports_what_the_card_allows(name):
    assert imports(name) <= MAY_IMPORT[name] | PACKAGES | set(sys.stdlib_module_names)


@pytest.mark.skipif(
    shutil.which("git") is None or not (ROOT / ".git").exists(), reason="only git knows which files are ours"
)
def test_the_top_level_is_that_of_the_card():
    command = ["git", "-c", f"safe.directory={ROOT}", "ls-files", "*.py"]
    tracked = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    files = {Path(name).stem for name in tracked.stdout.split() if "/" not in name}
    assert files == set(MAY_IMPORT)


def test_no_file_of_the_core_knows_the_laboratory():
    for path in [*ROOT.glob("*.py"), *ROOT.glob("templates/*"), *ROOT.glob("tests/*.py")]:
        if path.name != "test_house.py":
            assert not re.search(r"\blab\b|laborator", path.read_text(encoding="utf-8")), path


def test_the_readme_counts_the_lines_of_the_six_files():
    counts = {
        name: len((ROOT / f"{name}.py").read_text(encoding="utf-8").splitlines()) for name in MAY_IMPORT
    }
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    rows = dict(re.findall(r"^\| `(\w+)\.py` \| (\d+) \|", readme, re.MULTILINE))
    del counts["hubconf"]
    assert {name: int(count) for name, count in rows.items()} == pytest.approx(counts, rel=0.03)
    total = int(re.search(r"six files of ([\d,]+) lines", readme)[1].replace(",", ""))
    assert total == pytest.approx(sum(counts.values()), rel=0.03)

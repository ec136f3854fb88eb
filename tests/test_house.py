"""Who imports whom, that nothing runs but what is imported, and what other packages bring along."""

import ast
import functools
import importlib.metadata
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
# What a place of the core may import of the project, itself aside; a folder is a place.
CORE = {
    "resnet_cifar": set(),
    "metrics": set(),
    "gradcam": set(),
    "support": set(),
    "sources": {"support.errors"},
    "data": {"sources", "support.errors"},
    "page": {"gradcam", "support"},
    "train": {"data", "resnet_cifar", "support"},
    "report": {"data", "gradcam", "metrics", "page", "resnet_cifar", "support"},
    "hubconf": {"resnet_cifar", "support.checkpoint"},
}
FILES = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts): path
    for path in [*ROOT.glob("*.py"), *(p for place in (*CORE, "lab") for p in ROOT.glob(f"{place}/**/*.py"))]
}


@functools.cache
def imports(name: str) -> set[str]:
    """The modules of the project that a module imports, also inside of functions."""
    package, names = name.rpartition(".")[0], set()
    for node in ast.walk(ast.parse(FILES[name].read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        if isinstance(node, ast.ImportFrom):
            base = f"{package}.{node.module}" if node.level else node.module
            names |= {base, *(f"{base}.{alias.name}" for alias in node.names)}
    return names & FILES.keys()


def closure(name: str) -> set[str]:
    """A module and all that it imports, directly or not."""
    seen, left = set(), [name]
    while left:
        module = left.pop()
        if module not in seen:
            seen.add(module)
            left += imports(module)
    return seen


@pytest.mark.parametrize("name", sorted(FILES))
def test_a_module_imports_what_its_place_may_and_never_itself(name):
    place = name.split(".")[0]
    for other in imports(name):
        may = place == "lab" or {other, other.split(".")[0]} & {place, *CORE[place]}
        assert may, f"{name} imports {other}"
        assert name not in closure(other), f"{name} and {other} are a circle"


def test_the_core_does_not_know_the_laboratory():
    """But for the last line of report.py, the sentence under the maps, and the links to explore.html."""
    named = []
    for path in [*ROOT.glob("*.py"), *(p for place in CORE for p in ROOT.glob(f"{place}/*.*"))]:
        named += [
            path.name for line in path.read_text(encoding="utf-8").splitlines() if re.search(r"\blab\b", line)
        ]
    assert sorted(named) == ["mistakes.html", "report.py"]


def test_no_name_of_a_module_stands_twice():
    names = [name.rpartition(".")[2] for name in FILES if not name.endswith("__init__")]
    assert sorted(names) == sorted(set(names))


SCRIPT = """
import sys
sys.path.insert(0, {root!r})
import train, report
train.main(["--dataset=shapes", "--width=16", "--limit-train=100", "--epochs=1", "--out=run", "--device=cpu"])
report.main(["--run", "run"])
for module in list(sys.modules.values()):
    if (getattr(module, "__file__", None) or "").startswith({root!r}):
        print("loaded", module.__name__)
"""


@pytest.mark.slow
def test_what_runs_in_a_report_is_what_its_imports_say(tmp_path):
    """In a process of its own, down to the page, which quotes code and so could import it."""
    script = SCRIPT.format(root=f"{ROOT}{os.sep}")
    done = subprocess.run([sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True)
    assert (tmp_path / "run" / "report.html").is_file(), done.stderr
    loaded = {line.split()[1] for line in done.stdout.splitlines() if line.startswith("loaded")}
    assert loaded & FILES.keys() == closure("report") | closure("train")


def test_jinja_comes_with_torch_and_pillow_with_torchvision():
    """They are imported and not in requirements.txt: the day one is no longer brought this fails."""
    for package, brought in (("torch", "jinja2"), ("torchvision", "pillow")):
        required = [re.split(r"[^\w-]", line)[0] for line in importlib.metadata.requires(package)]
        assert brought in [name.lower() for name in required]

"""Who imports whom, how much stands behind a module, and what other packages bring along."""

import ast
import functools
import importlib.metadata
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

ROOT = Path(__file__).parent.parent
# What each room may import of the project, itself aside; a folder is a room.
ROOMS = {
    "resnet_cifar": set(),
    "metrics": set(),
    "gradcam": set(),
    "stress_tests": set(),
    "running": set(),
    "sources": {"running.errors"},
    "data": {"sources", "running.errors"},
    "augmentation": set(),
    "gradcam_layer": {"gradcam", "running.errors"},
    "classifier": {"data", "gradcam", "gradcam_layer", "resnet_cifar", "running", "sources.networks"},
    "evaluate": {"data", "metrics"},
    "reasons": {"classifier", "gradcam", "metrics"},
    "train": {"augmentation", "data", "resnet_cifar", "running"},
    "stress": {"data", "classifier", "metrics", "sources", "stress_tests", "running"},
    "explain": {"classifier", "gradcam", "sources.pictures", "running"},
    "agreement": {"metrics", "running"},
    "compare": {"agreement", "metrics", "running", "stress_tests.summary"},
    "page": {"gradcam", "running"},
    "report": {
        "agreement",
        "classifier",
        "data",
        "evaluate",
        "metrics",
        "page",
        "reasons",
        "running",
        "sources.predictions",
    },
    "hubconf": {"resnet_cifar", "running"},
}
MOST_LINES = {"data": 678, "train": 1750, "explain": 2008, "report": 4955}
FILES = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts): path
    for path in [*ROOT.glob("*.py"), *(p for room in ROOMS for p in ROOT.glob(f"{room}/*.py"))]
}


@functools.cache
def imports(name: str) -> set[str]:
    """The modules of the project that a module imports, also inside of functions."""
    package, found = name.rpartition(".")[0], set()
    for node in ast.walk(ast.parse(FILES[name].read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        if isinstance(node, ast.ImportFrom):
            base = f"{package}.{node.module}" if node.level else node.module
            found |= {base, *(f"{base}.{alias.name}" for alias in node.names)}
    return found & FILES.keys()


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
def test_a_room_imports_what_it_may_and_never_itself(name):
    room = name.split(".")[0]
    for other in imports(name):
        own = other.split(".")[0] == room
        assert own or other.split(".")[0] in ROOMS[room] or other in ROOMS[room], f"{name} imports {other}"
        assert name not in closure(other), f"{name} and {other} are a circle"


@pytest.mark.parametrize("name", MOST_LINES)
def test_no_more_stands_behind_a_module_than_one_can_read(name):
    lines = {module: len(FILES[module].read_text(encoding="utf-8").splitlines()) for module in closure(name)}
    assert sum(lines.values()) <= MOST_LINES[name], lines


# Where 32 may stand: a data set that has it, the default of --size, and the recipe of train.py.
OF_CIFAR = {"data": 1, "sources.cifar": 2, "sources.cifar_c": 2, "sources.shapes": 4, "train": 6}


@pytest.mark.parametrize("name", sorted(FILES))
def test_a_picture_has_the_size_that_it_has(name):
    """No side of CIFAR's images stands in the code, nor how many pixels or values they have."""
    tree = ast.parse(FILES[name].read_text(encoding="utf-8"))
    texts = [n.value for n in ast.walk(tree) if isinstance(n, ast.Expr) and isinstance(n.value, ast.Constant)]
    values = [n.value for n in ast.walk(tree) if isinstance(n, ast.Constant) and n not in texts]
    of_cifar = [v for v in values if re.search(r"(?<![\w.])(32|3072)(?!\d)", str(v))]
    assert len(of_cifar) == OF_CIFAR.get(name, 0), of_cifar


SCRIPT = """
import sys
sys.path.insert(0, {root!r})
import report
report.main({argv!r})
for module in list(sys.modules.values()):
    if (getattr(module, "__file__", None) or "").startswith({root!r}):
        print("loaded", module.__name__)
"""
NETWORK = """
from torch import nn
def make():
    return nn.Sequential(nn.Conv2d(3, 4, 8, 8), nn.ReLU(), nn.Flatten(), nn.Linear(64, 2))
"""


@pytest.mark.slow
def test_what_runs_in_a_report_is_what_its_imports_say(tmp_path):
    """In a process of its own, down to the page, which quotes code and so could import it."""
    for i in range(8):
        picture = tmp_path / "pets" / ("train", "test")[i // 2 % 2] / f"class {i % 2}" / f"{i}.png"
        picture.parent.mkdir(parents=True, exist_ok=True)
        Image.effect_noise((32, 32), 20 * i + 9).convert("RGB").save(picture)
    (tmp_path / "net.py").write_text(NETWORK)
    argv = ["--model", "net.py:make", "--dataset", "pets", "--out", "out"]
    script = SCRIPT.format(root=f"{ROOT}{os.sep}", argv=argv)
    done = subprocess.run([sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True)
    assert (tmp_path / "out" / "report.html").is_file(), done.stderr
    loaded = {line.split()[1] for line in done.stdout.splitlines() if line.startswith("loaded")}
    assert loaded & FILES.keys() == closure("report")


def test_jinja_comes_with_torch_and_pillow_with_torchvision():
    """They are imported and not in requirements.txt: the day one is no longer brought this fails."""
    for package, brought in (("torch", "jinja2"), ("torchvision", "pillow")):
        required = [re.split(r"[^\w-]", line)[0] for line in importlib.metadata.requires(package)]
        assert brought in [name.lower() for name in required]

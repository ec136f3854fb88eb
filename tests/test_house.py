"""Who imports whom, that nothing runs but what is imported, and what other packages bring along."""

import ast
import functools
import importlib.metadata
import re
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
    "report": {"data", "evaluate", "gradcam", "lab", "metrics", "page", "resnet_cifar", "support"},
    "evaluate": {"data", "metrics"},
    "hubconf": {"resnet_cifar", "support.checkpoint"},
}
FILES = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts): path
    for path in [*ROOT.glob("*.py"), *(p for place in (*CORE, "lab") for p in ROOT.glob(f"{place}/**/*.py"))]
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
def test_a_module_imports_what_its_place_may_and_never_itself(name):
    place = name.split(".")[0]
    for other in imports(name):
        may = place == "lab" or {other, other.split(".")[0]} & {place, *CORE[place]}
        assert may, f"{name} imports {other}"
        assert name not in closure(other), f"{name} and {other} are a circle"


def test_jinja_comes_with_torch_and_pillow_with_torchvision():
    """They are imported and not in requirements.txt: the day one is no longer brought this fails."""
    for package, brought in (("torch", "jinja2"), ("torchvision", "pillow")):
        required = [re.split(r"[^\w-]", line)[0] for line in importlib.metadata.requires(package)]
        assert brought in [name.lower() for name in required]

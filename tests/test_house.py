"""Which file may import which: each row is a file or folder and all that it may import of the project."""

import ast
import functools
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
TOP = ["resnet_cifar", "data", "train", "metrics", "gradcam", "report", "stress", "hubconf"]
FOLDERS = ["page", "stress_tests", "sources", "running"]
ALLOWED = {
    "resnet_cifar": [],
    "hubconf": ["resnet_cifar"],
    "metrics": [],
    "gradcam": [],  # at the top of the file; main() may import what it needs
    "data": ["sources", "running"],
    "train": ["resnet_cifar", "data", "metrics", "running"],
    "stress": ["data", "metrics", "page", "running", "stress_tests", "train"],
    "report": [
        "data",
        "gradcam",
        "metrics",
        "page",
        "resnet_cifar",
        "running",
        "stress",
        "stress_tests",
        "train",
    ],
    "page": ["page", "metrics", "stress_tests", "running"],
    "stress_tests": ["stress_tests"],
    "sources": ["sources", "running"],
    "running": ["running"],
}


def files(name):
    return [ROOT / f"{name}.py"] if name in TOP else sorted((ROOT / name).glob("*.py"))


@functools.cache
def imported(path):
    """Return (module, whether at the top of the file) of every import of the project's own modules."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    found = []
    for node in ast.walk(tree):
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        if isinstance(node, ast.ImportFrom):
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        found += [(name, node in tree.body) for name in names if name.split(".")[0] in TOP + FOLDERS]
    return found


@pytest.mark.parametrize("name", ALLOWED)
def test_each_part_imports_only_what_it_builds_on(name):
    for path in files(name):
        for module, at_top in imported(path):
            if name == "gradcam" and not at_top:
                continue
            assert module.split(".")[0] in ALLOWED[name], f"{path.name} imports {module}"


def test_no_file_imports_itself_in_a_circle():
    paths = {path.relative_to(ROOT).with_suffix("").as_posix().replace("/", "."): path
             for name in ALLOWED for path in files(name)}  # fmt: skip
    graph = {
        name: {other for other in paths for module, _ in imported(path)
               if module == other or module.startswith(other + ".")}
        for name, path in paths.items()
    }  # fmt: skip
    # Take away, again and again, the files that import nothing that is left; a circle would remain.
    while free := {name for name, others in graph.items() if not others & graph.keys()}:
        graph = {name: others for name, others in graph.items() if name not in free}
    assert not graph, f"these files import each other: {sorted(graph)}"

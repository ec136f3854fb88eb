"""docs/formats.md names the keys that the files of results/ have, and no others."""

import json
import re
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).parent.parent
TEXT = (ROOT / "docs" / "formats.md").read_text(encoding="utf-8")


def documented(section):
    """Return what stands in backticks in the first column of the table of a section."""
    rows = re.search(rf"^## {section}.*?(?=^## |\Z)", TEXT, re.DOTALL | re.MULTILINE).group()
    cells = [row.split("|")[1] for row in rows.splitlines() if row.startswith("| `")]
    return {key for cell in cells for key in re.findall(r"`(\w+)`", cell)}


@pytest.mark.parametrize("name, elsewhere", [("metrics", {"colour_or_shape"}), ("stress", set())])
def test_the_keys_of_the_json_files_are_those_of_the_document(name, elsewhere):
    content = json.loads((ROOT / "results" / f"{name}.json").read_text(encoding="utf-8"))
    assert documented(f"{name}.json") == set(content) | elsewhere


def test_the_keys_of_predictions_are_those_of_the_document():
    with np.load(ROOT / "results" / "predictions.npz") as content:
        assert documented("predictions.npz") == set(content.files)

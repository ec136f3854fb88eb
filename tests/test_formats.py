"""docs/formats.md names the keys that the files of a fresh report have, and no others."""

import json
import re
from pathlib import Path

import numpy as np
import pytest

TEXT = (Path(__file__).parent.parent / "docs" / "formats.md").read_text(encoding="utf-8")


def documented(section):
    """Return what stands in backticks in the first column of the table of a section."""
    rows = re.search(rf"^## {section}.*?(?=^## |\Z)", TEXT, re.DOTALL | re.MULTILINE).group()
    cells = [row.split("|")[1] for row in rows.splitlines() if row.startswith("| `")]
    return {key for cell in cells for key in re.findall(r"`(\w+)`", cell)}


@pytest.mark.parametrize("name", ["metrics.json", "predictions.npz", "evidence.npz"])
def test_the_keys_of_a_report_are_those_of_the_document(name, reported):
    """Of all that can be known of a run; stress.json stands in test_stress.py."""
    keys = documented(name) | documented("All files")
    if name == "metrics.json":
        content = json.loads((reported / name).read_text(encoding="utf-8"))
    else:
        content = np.load(reported / name)
        keys.remove("resize")  # an .npz cannot hold null
    assert keys == set(content)

"""The keys that docs/formats.md names are those of the files of a fresh report."""

import json

import numpy as np
from documents import documented

from support.outputs import IDENTITY


def test_the_keys_of_a_report_are_those_of_the_document(run_with_report):
    """Of all that can be known of a run."""
    assert {*IDENTITY} <= documented("What results are of")
    numbers = json.loads((run_with_report / "metrics.json").read_text(encoding="utf-8"))
    assert documented("metrics.json") | {*IDENTITY} <= set(numbers)
    arrays = np.load(run_with_report / "predictions.npz")
    assert documented("predictions.npz") | {*IDENTITY} <= set(arrays)

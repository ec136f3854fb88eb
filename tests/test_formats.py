"""docs/formats.md names the keys that the files of a fresh report have, and no others."""

import json

import numpy as np
from documents import assert_named, documented


def test_the_keys_of_a_report_are_those_of_the_document(run_with_report):
    """Of all that can be known of a run."""
    numbers = json.loads((run_with_report / "metrics.json").read_text(encoding="utf-8"))
    assert documented("metrics.json") == set(numbers)
    assert_named(numbers, ("confident", "duplicates", "most_confused_pairs"))
    assert documented("predictions.npz") == set(np.load(run_with_report / "predictions.npz"))

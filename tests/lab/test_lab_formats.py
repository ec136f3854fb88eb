"""docs/formats.md names the keys of a fresh examination; stress.json is tested in test_stress.py."""

import json

import numpy as np
from documents import documented

from lab.results import IDENTITY


def test_the_keys_of_an_examination_are_those_of_the_document(reported):
    reasons = json.loads((reported / "reasons.json").read_text(encoding="utf-8"))
    assert {*IDENTITY} <= documented("What results are of")
    assert documented("reasons.json") | {*IDENTITY} <= set(reasons)
    assert documented("evidence.npz") <= set(np.load(reported / "evidence.npz"))

"""A whole page of explore.html, made of files whose content the tests know."""

from types import SimpleNamespace

import pytest
import torch
from made_files import NUM_EARLY, covering, stress_results, with_puzzles

from lab import results
from lab.explore import compose, drawing, script_data


@pytest.fixture
def figures(monkeypatch):
    """The figures that a section draws, {name: Figure}."""
    drawn = {}
    monkeypatch.setattr(drawing, "to_svg", lambda figure, name, text: drawn.setdefault(name, figure) and name)
    return drawn


@pytest.fixture(scope="session")
def made(tmp_path_factory, reported, reported_sets):
    """A folder with a whole page, its `address`, and what its files hold.

    The map of the first mistake speaks for the answer on the left, and for the truth on the right.
    """
    numbers, answers = results.read_report(reported)
    reasons, evidence = results.read_reasons(reported)
    evidence = with_puzzles(evidence, answers)
    evidence["maps"][0] = torch.tensor([1.0, 0.5, -0.25, -0.5]).expand(4, 4)
    evidence["covered_pixels"][0] = torch.arange(32) < 8
    stress = stress_results(answers["y_true"])
    folder = tmp_path_factory.mktemp("made") / "run"
    folder.mkdir()
    for name in ("metrics.json", "predictions.npz"):
        (folder / name).write_bytes((reported / name).read_bytes())
    reasons = reasons | {"covering": covering()}
    results.write_reasons(folder, {k: v for k, v in reasons.items() if k != "evidence_sha256"}, evidence)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(results, "read_stress", lambda folder, owner: stress)
        patch.setattr(script_data, "NUM_EARLY", NUM_EARLY)
        compose.write_explore(folder, reported_sets[1].images)
    content = {"numbers": numbers | reasons, "answers": answers, "evidence": evidence, "stress": stress}
    address = (folder / "explore.html").as_uri()
    return SimpleNamespace(folder=folder, address=address, images=reported_sets[1].images, **content)

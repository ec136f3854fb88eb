"""experiments/unlabelled.py: rivals by brute force, errors by NumPy, and a measurement that goes on."""

import itertools
import json

import numpy as np
import pytest
import torch
from networks import seeded

from lab.experiments import unlabelled

FAMILIES = {"noise": ["a", "b"], "blur": ["c"], "weather": ["d"]}


def test_transport_is_the_best_of_all_permutations():
    pytest.importorskip("scipy")
    rows = (2 * torch.randn(6, 4, generator=seeded(), dtype=torch.float64)).softmax(dim=1)
    labels = torch.tensor([0, 0, 1, 2, 3, 3])
    orders = itertools.permutations(range(6))
    best = max(np.mean([rows[i, labels[k]].item() for i, k in enumerate(order)]) for order in orders)
    assert unlabelled.transport(rows, labels) == pytest.approx(best)


def test_the_threshold_leaves_as_many_below_as_are_right():
    scores = torch.rand(50, generator=seeded())
    for count in (0, 1, 20, 50):
        limit = unlabelled.threshold(scores, torch.arange(50) < count)
        assert (scores <= limit).sum() == count


def row(generator):
    names = ("accuracy", "confidence", "same_answer", "nuclear_norm", "transport", "atc")
    return {name: generator.uniform(0.2, 0.8) for name in names}


def made_up(seed):
    """What `measure` writes, of numbers by chance, at 50 and 200 images."""
    generator = np.random.default_rng(seed)
    tests = ["clean/0", *(f"{name}/{s}" for name in "abcd" for s in range(1, 6))]
    results = {name: [{"50": row(generator), "200": row(generator)} for _ in range(2)] for name in tests}
    return {"families": FAMILIES, "tests": results}


@pytest.mark.parametrize("count", [50, 200])
def test_errors_by_numpy(count):
    results = made_up(0)
    family, fall, errors = unlabelled.errors_of(results, count)
    names = [f"{name}/{s}" for name in "abcd" for s in range(1, 6)]
    own = np.repeat([0, 0, 1, 2], 5)
    assert family.tolist() == [*own, *own]
    for half in (0, 1):
        clean = results["tests"]["clean/0"][half]["200"]

        def falls_of(side, size, clean=clean):
            rows = [results["tests"][name][side][size] for name in names]
            same = [np.log(one["same_answer"] / clean["same_answer"]) for one in rows]
            return np.stack([[clean["confidence"] - one["confidence"] for one in rows], same], axis=1)

        here, there = falls_of(half, "200"), falls_of(1 - half, str(count))
        fell = np.array(
            [clean["accuracy"] - results["tests"][name][half]["200"]["accuracy"] for name in names]
        )
        truth = np.array([results["tests"][name][1 - half]["200"]["accuracy"] for name in names])
        part = slice(20 * half, 20 * half + 20)
        np.testing.assert_allclose(fall[part], there[:, 0])
        for method, columns in {"line of confidence": 1, "plane of confidence and same answer": 2}.items():
            expected = np.empty(20)
            for one in range(3):
                others = own != one
                slopes = np.linalg.lstsq(here[others, :columns], fell[others], rcond=None)[0]
                estimates = clean["accuracy"] - there[~others, :columns] @ slopes
                expected[~others] = estimates.clip(0, 1) - truth[~others]
            np.testing.assert_allclose(errors[method][part], expected, atol=1e-12)
        atc = [results["tests"][name][1 - half][str(count)]["atc"] for name in names]
        np.testing.assert_allclose(errors["ATC by entropy"][part], atc - truth)


def test_an_interval_over_equal_networks_and_families_has_no_width():
    family = torch.tensor([0, 0, 1, 1])
    errors = [torch.tensor([0.1, -0.3, 0.2, -0.2], dtype=torch.float64)] * 3
    assert unlabelled.mean_error([family] * 3, errors) == "20.0 (20.0 to 20.0)"
    different = [*errors[:2], 2 * errors[0]]
    assert unlabelled.mean_error([family] * 3, different) == "26.7 (20.0 to 40.0)"


def test_tables_and_a_measurement_that_goes_on(small_sets, tmp_path, monkeypatch, capsys):
    pytest.importorskip("scipy")
    files = [tmp_path / f"{seed}.json" for seed in range(2)]
    for seed, file in enumerate(files):
        file.write_text(json.dumps(made_up(seed)))
    assert unlabelled.main(["tables", *map(str, files)]) == 0
    assert "| plane of confidence and same answer |" in capsys.readouterr().out

    (tmp_path / "net.py").write_text("from lab_networks import Linear\ndef net(): return Linear(100)\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(unlabelled, "FIFTEEN", ("contrast", "fog"))
    monkeypatch.setattr(unlabelled, "load_images", lambda network, args: (None, small_sets[1], []))
    argv = ["measure", "--model", "net.py:net", "--dataset", "shapes", "--images", "20", "--out", "some.json"]
    assert unlabelled.main(argv) == 0
    whole, calls = json.loads((tmp_path / "some.json").read_text()), []
    less = whole | {"tests": {name: whole["tests"][name] for name in list(whole["tests"])[:7]}}
    (tmp_path / "some.json").write_text(json.dumps(less))
    monkeypatch.setattr(unlabelled, "corrupt", lambda images, *change: calls.append(change) or images)
    assert unlabelled.main(argv) == 0
    assert len(whole["tests"]) == 11 and len(calls) == 5  # clean ones make the threshold
    with pytest.raises(SystemExit):
        unlabelled.main([*argv[:-3], "10", "--out", "some.json"])
    assert "some.json is of another network or other images" in capsys.readouterr().err

"""lab/results.py: files that know what they are of; see also tests/lab/test_stress.py."""

import json

import pytest
import torch
from made_up import stress_content

from lab import results
from lab.support import UserError, write_arrays

NETWORK = "ab"


def write(folder, name, content):
    (folder / f"{name}.json").write_text(json.dumps(content))


def test_results_of_another_network_are_refused_and_removed(tmp_path):
    arrays = {"metrics": "predictions", "reasons": "evidence", "stress": "stress"}
    for name, npz in arrays.items():
        write(tmp_path, name, {"checkpoint_sha256": "ab"})  # which is all that report.py says
        (tmp_path / f"{npz}.npz").touch()
    results.check_results(tmp_path, NETWORK)
    results.check_results(tmp_path / "nowhere", NETWORK)
    results.remove_others(tmp_path, NETWORK)
    assert len(list(tmp_path.iterdir())) == 6
    damaged = {'{"checkpoint_sha256": "cd"}': "is of other weights", "{}": "is of other weights"}
    damaged["["] = "cannot be used as results, which --overwrite replaces"
    for (name, npz), (content, message) in zip(arrays.items(), damaged.items(), strict=True):
        (tmp_path / f"{name}.json").write_text(content)
        with pytest.raises(UserError, match=rf"{name}\.json {message}"):
            results.check_results(tmp_path, NETWORK)
        results.remove_others(tmp_path, NETWORK)
        assert not list(tmp_path.glob(f"{name}.json")) and not list(tmp_path.glob(f"{npz}.npz"))


def test_reasons_are_read_with_the_evidence_they_were_written_with(tmp_path, capsys):
    assert results.read_reasons(tmp_path) == (None, None)
    (tmp_path / "predictions.npz").write_bytes(b"of these")
    maps = torch.rand(2, 4, 4, generator=torch.Generator().manual_seed(0))
    written = results.write_reasons(tmp_path, {"kinds": []}, {"maps": maps.half(), "opener": torch.tensor(1)})
    reasons, evidence = results.read_reasons(tmp_path)
    assert reasons == written and reasons["kinds"] == [] and evidence["opener"] == 1
    assert torch.equal(evidence["maps"], maps.half().float())  # float16, as results/ keeps it
    (tmp_path / "predictions.npz").write_bytes(b"of others")
    assert results.read_reasons(tmp_path) == (None, None)
    assert "reasons.json is about other predictions and left out" in capsys.readouterr().out
    (tmp_path / "predictions.npz").write_bytes(b"of these")
    write_arrays(tmp_path / "evidence.npz", {"maps": maps})
    assert results.read_reasons(tmp_path) == (None, None)
    (tmp_path / "evidence.npz").unlink()
    assert results.read_reasons(tmp_path) == (None, None)
    assert capsys.readouterr().out.count("evidence.npz is not that of") == 2
    written = results.write_reasons(tmp_path, {"kinds": []}, None)  # those of --quick remove an older one
    assert results.read_reasons(tmp_path) == (written, None)
    assert not (tmp_path / "evidence.npz").exists()


def test_stress_tests_of_another_network_or_other_images_are_no_results(tmp_path):
    right = torch.arange(100) % 4 == 0
    tests = {"clean/0": {"accuracy": {"value": 0.25}}}
    owner = {"checkpoint_sha256": "ab", "network_sha256": "used so", "test_sha256": "of the images"}
    made_up = stress_content(torch.arange(100))
    pixels = {key: made_up[key] for pair in results.PIXELS.items() for key in pair}
    results.write_stress(tmp_path, owner | pixels | {"tests": tests, "answers": {"clean/0": right}})
    for known in (owner, {"checkpoint_sha256": "ab"}):
        read = results.read_stress(tmp_path, known)
        assert torch.equal(read["answers"]["clean/0"], right) and read["tests"] == tests
        assert all(torch.equal(read[name], pixels[name]) for name in results.PIXELS)
    others = {"checkpoint_sha256": "cd", "network_sha256": "x", "test_sha256": "y"}
    for key, value in others.items():
        assert results.read_stress(tmp_path, owner | {key: value}) is None
    results.write_stress(tmp_path / "less", owner | {"tests": {}, "answers": {}})
    # Killed in the first save of an --overwrite.
    (tmp_path / "less" / "stress.npz").replace(tmp_path / "stress.npz")
    assert results.read_stress(tmp_path, owner) is None
    results.write_stress(tmp_path, owner | {"tests": tests, "answers": {"clean/0": ~right}})
    with pytest.raises(UserError, match=r"its accuracy for clean/0 is not that of stress\.npz"):
        results.read_stress(tmp_path, owner)

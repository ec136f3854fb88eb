"""The commands on a device that is no CPU: emulated, so that it lets no tensor of the CPU in unnoticed."""

import shutil

import numpy as np
import pytest
import torch
from other_device import other_device
from test_stress import shorten
from torchvision.io import write_png

from lab import compare, examine, explain, stress
from lab.explore import compose
from lab.results import read_report, read_stress
from lab.support import read_json


def commands(run, photo, device, capsys):
    """Examine, stress and explain on the device; return the numbers, the answers and what is printed."""
    where = ["--device", device]
    assert examine.main(["--run", str(run), *where]) == 0
    assert stress.main(["--run", str(run), "--images", "4", *where]) == 0
    capsys.readouterr()
    assert explain.main([photo, "--run", str(run), "--out", f"{device}.png", *where]) == 0
    printed = capsys.readouterr().out.splitlines()[1:6]
    return read_report(run)[1], read_stress(run, {})["answers"], np.load(run / "evidence.npz"), printed


def test_examine_stress_explain_and_compare_on_a_device_without_float64(
    quick, finished, small, tmp_path, monkeypatch, capsys
):
    shorten(monkeypatch)
    monkeypatch.setattr(compose, "write_explore", lambda *some: None)  # which asks for all eighteen
    monkeypatch.setattr(stress, "FEWEST_ATTACKED", 4)
    monkeypatch.chdir(tmp_path)
    write_png(small[1].images[7], "photo.png")
    found = {}
    for device in ("cpu", "mps"):
        run = shutil.copytree(finished, tmp_path / device)
        with monkeypatch.context() as patch:
            if device == "mps":
                with other_device(patch):
                    found[device] = commands(run, "photo.png", device, capsys)
            else:
                found[device] = commands(run, "photo.png", device, capsys)
    (ours, our_tests, our_evidence, we_print), (arrays, tests, evidence, printed) = found["mps"], found["cpu"]
    # Layouts differ, so sums do in their last bits, which now and then move the border of what is covered.
    for key in ("logits", "maps_predicted", "maps_true"):
        torch.testing.assert_close(ours[key], arrays[key], rtol=1e-4, atol=1e-4)
    for key, atol in {"maps": 1e-4, "covered_probabilities": 5e-3, "puzzle_probabilities": 1e-4}.items():
        np.testing.assert_allclose(our_evidence[key], evidence[key], rtol=1e-3, atol=atol)
    assert {test: right.tolist() for test, right in our_tests.items()} == {
        test: right.tolist() for test, right in tests.items()
    }
    assert we_print == printed
    kinds = [read_json(tmp_path / device / "reasons.json", "")["kinds"] for device in found]
    assert kinds[0] == kinds[1]
    with other_device(monkeypatch), pytest.raises(ValueError, match="same weights"):
        compare.main([str(tmp_path / device) for device in found])

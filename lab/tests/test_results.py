"""lab/results.py: files that know what they are of; see also tests/lab/test_stress.py."""

import hashlib
import zipfile
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from made_up import stress_content

import data
import report
from lab import results, support
from lab.support import UserError, write_arrays

NETWORK = "ab"


@pytest.mark.parametrize("names", [results.EXAMINED, results.STRESSED])
def test_a_folder_is_ours_if_its_record_says_so_or_if_it_has_none_of_the_names(names, tmp_path):
    record, other = tmp_path / names[0], tmp_path / names[1]
    results.check_folder(tmp_path / "nowhere", NETWORK, names)
    (tmp_path / "notes.txt").touch()
    results.check_folder(tmp_path, NETWORK, names)
    results.claim_folder(tmp_path, NETWORK, names)
    other.touch()
    results.check_folder(tmp_path, NETWORK, names)
    results.claim_folder(tmp_path, "of another", names)
    with pytest.raises(UserError, match="is of other weights"):
        results.check_folder(tmp_path, NETWORK, names)
    results.check_folder(tmp_path, NETWORK, names, overwrite=True)
    for content in ("[", "{}", '["checkpoint_sha256"]', None):  # which is no record, so all is the user's
        record.write_text(content) if content else record.unlink()
        for overwrite in (False, True):
            with pytest.raises(UserError):
                results.check_folder(tmp_path, NETWORK, names, overwrite)


def test_results_of_other_images_than_the_runs_own_have_a_folder_beside_it(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config = {"image_size": 32}
    examined = SimpleNamespace(path=Path("runs/r/checkpoints/best.pt"), dataset="cifar100", name="net")
    examined.training, examined.model = {"config": config}, SimpleNamespace(image_size=32)
    for dataset in (None, "cifar100"):
        assert results.results_folder(examined, None, dataset) == Path("runs/r")
    assert capsys.readouterr().out == ""
    assert results.results_folder(examined, None, "../some/pets") == Path("runs/r-on-pets")
    assert "go to runs/r-on-pets" in capsys.readouterr().out
    examined.model.image_size = 24
    assert results.results_folder(examined, None) == Path("runs/r-at-24")
    assert results.results_folder(examined, Path("out"), "pets") == Path("out")
    examined.training, examined.path = None, Path("other/net.pt")
    assert results.results_folder(examined, None, "pets") == Path("runs/net")
    examined.path = Path("proj/checkpoints/best.pt")  # that folder is the user's
    assert results.results_folder(examined, None) == Path("runs/best")
    examined.path = None
    assert results.results_folder(examined, None, "pets") == Path("runs/net")
    Path("runs/net/checkpoints").mkdir(parents=True)
    Path("runs/net/checkpoints/best.pt").touch()
    with pytest.raises(UserError, match=r"runs.net is the folder of a training: name another one by --out"):
        results.results_folder(examined, None)


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
    results.write_reasons(tmp_path, {"kinds": []}, {"maps": maps})
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


def test_a_report_is_read_with_the_predictions_and_weights_it_is_of(tmp_path):
    best = tmp_path / "checkpoints" / "best.pt"
    best.parent.mkdir()
    best.write_bytes(b"weights")
    numbers = {"checkpoint_sha256": hashlib.sha256(b"weights").hexdigest(), "images_sha256": "i", "epoch": 1}
    report.write_numbers(tmp_path, numbers, {"logits": torch.tensor([[0.5, 2]]).half(), "filenames": ["a"]})
    read, arrays = results.read_report(tmp_path)
    torch.testing.assert_close(arrays["logits"], torch.tensor([[0.5, 2]]))  # float32
    assert read.items() >= numbers.items() and arrays["filenames"] == ["a"]
    best.write_bytes(b"weights, trained further")
    with pytest.raises(UserError, match=r"it is of other weights than .*best\.pt"):
        results.read_report(tmp_path)
    best.unlink()
    results.read_report(tmp_path)
    best.write_bytes(b"weights of a network that train.py has not made")
    of_others = {key: value for key, value in numbers.items() if key != "epoch"}
    report.write_numbers(tmp_path, of_others, {"logits": torch.tensor([[0.5, 2]])})
    results.read_report(tmp_path)
    write_arrays(tmp_path / "predictions.npz", {"logits": torch.tensor([[2, 0.5]])})
    with pytest.raises(UserError, match=r"of another report than predictions\.npz"):
        results.read_report(tmp_path)


def test_each_thing_that_changes_answers_changes_a_digest(tmp_path):
    def digests(transform="", names=("a", "b"), labels=(0, 1), files=("1", "2"), **more):
        (tmp_path / "t.py").write_text(transform)
        model = {"image_size": 32, "uncropped": None, "order": None}
        network = {"digest": "d", "code": "c", "num_classes": 2, "transform": f"{tmp_path}/t.py:go"}
        model |= {key: more.pop(key) for key in model.keys() & more.keys()}
        network |= more
        test = data.Dataset("set", None, torch.tensor(labels), [*names], [*files])
        return results.identity(SimpleNamespace(model=SimpleNamespace(**model), **network), test)

    before = digests()
    assert digests() == before and digests(order=torch.tensor([0, 1])) == before
    of_network = [{"transform": "x"}, {"image_size": 24}, {"uncropped": 36}, {"order": torch.tensor([1, 0])}]
    of_network += [{"digest": "e"}, {"code": "e"}]
    for change in of_network:
        after = digests(**change)
        assert after["network_sha256"] != before["network_sha256"], change
        assert after["test_sha256"] == before["test_sha256"]
    for change in ({"names": "xy"}, {"labels": (1, 0)}, {"files": ("2", "1")}):
        after = digests(**change)
        assert after["test_sha256"] != before["test_sha256"], change
        assert after["network_sha256"] == before["network_sha256"]


def test_large_arrays_are_saved_as_they_are_and_small_ones_compressed(tmp_path, monkeypatch):
    for limit, kind in ((32 * 1024, zipfile.ZIP_DEFLATED), (32 * 1024 - 1, zipfile.ZIP_STORED)):
        monkeypatch.setattr(support, "LARGE", limit)
        write_arrays(tmp_path / "a.npz", {"zeros": torch.zeros(4096), "ones": torch.ones(4096)})
        with zipfile.ZipFile(tmp_path / "a.npz") as file:
            assert {entry.compress_type for entry in file.infolist()} == {kind}
        assert support.read_arrays(tmp_path / "a.npz", "")["ones"].sum() == 4096

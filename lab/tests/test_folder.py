"""folder.py: only results of the same owner are replaced, and only what belongs together is read."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

import data
import report
from lab import answers, folder

pytestmark = pytest.mark.usefixtures("few_resamples")
OWNER = {"checkpoint_sha256": "w", "model_file_sha256": "f", "model_name": "make", "size": 32}
OWNER |= {"test_sha256": "t"}


@pytest.mark.parametrize(
    ("record", "changes", "text"),
    [
        ("metrics.json", {}, None),
        ("metrics.json", {"checkpoint_sha256": "x"}, "another network or other answers"),
        ("metrics.json", {"model_name": "other"}, "another function of the file"),
        ("metrics.json", {"size": 64}, "another size of the images"),
        ("metrics.json", {"test_sha256": "u"}, "another test set: other images, labels or class names"),
        ("metrics.json", {"model_file_sha256": "g"}, None),  # another function beside it changes no answer
        ("stress.json", {"model_file_sha256": "g"}, "another content of the network's file"),
        ("metrics.json", {"model_name": None, "size": None, "test_sha256": None}, None),  # of older versions
    ],
)
def test_results_of_another_owner_need_overwrite(tmp_path, record, changes, text):
    content = {key: value for key, value in (OWNER | changes).items() if value is not None}
    folder.write_json(tmp_path / record, content)
    names = folder.EXAMINED if record == "metrics.json" else folder.STRESSED
    if text is not None:
        with pytest.raises(ValueError, match=f"{text}: give another folder, or overwrite"):
            folder.check(tmp_path, OWNER, names)
    folder.check(tmp_path, OWNER, names, overwrite=text is not None)


def test_files_of_others_and_inputs_are_never_replaced(tmp_path):
    def refused(text, out=tmp_path):
        for overwrite in (False, True):
            with pytest.raises(ValueError, match=text):
                folder.check(out, OWNER, folder.EXAMINED, overwrite)

    (tmp_path / "explore.html").write_text("mine")
    refused(r"explore\.html is there, and not our result")
    folder.write_json(tmp_path / "metrics.json", {"accuracy": 1})  # of another program
    refused("is there, and not our result")
    (tmp_path / "metrics.json").write_text("{")
    refused(r"metrics\.json is damaged")
    best = tmp_path / "run" / "checkpoints" / "best.pt"
    best.parent.mkdir(parents=True)
    best.write_bytes(b"weights")
    refused("is the run of another network", tmp_path / "run")
    folder.check(tmp_path / "run", OWNER | {"checkpoint_sha256": folder.sha256(best)}, folder.EXAMINED)
    with pytest.raises(ValueError, match=r"metrics\.json is read, and would be replaced"):
        folder.check_inputs(tmp_path, folder.EXAMINED, [tmp_path / "run" / ".." / "metrics.json"])
    with pytest.raises(ValueError, match=r"lies in .*, which is read"):
        folder.check_inputs(tmp_path / "run", folder.EXAMINED, [tmp_path])
    folder.check_inputs(tmp_path, folder.EXAMINED, [tmp_path / "other.npz", None])


# ---- Files -------------------------------------------------------------------------------------------------


def test_arrays_come_back_and_damaged_files_are_refused(tmp_path):
    content = {"a": torch.arange(6).view(2, 3), "b": torch.rand(2).half(), "names": ["é", "b"], "one": "text"}
    digest = folder.write_arrays(tmp_path / "a.npz", content)
    assert digest == folder.sha256(tmp_path / "a.npz")
    back = folder.read_arrays(tmp_path / "a.npz")
    assert torch.equal(back["a"], content["a"]) and (back["names"], back["one"]) == (["é", "b"], "text")
    assert back["b"].dtype == torch.float32 and torch.equal(back["b"].half(), content["b"])
    np.savez(tmp_path / "b.npz", a=np.array([None]))
    for name in ("b.npz", "none.npz"):
        with pytest.raises(ValueError, match=f"{name} cannot be read"):
            folder.read_arrays(tmp_path / name)
    for text in ("{", "3"):
        (tmp_path / "c.json").write_text(text)
        with pytest.raises(ValueError, match=r"c\.json is damaged"):
            folder.read_json(tmp_path / "c.json")


def write_report(out, **changes):
    """A report on made-up answers, as report.py writes it; return its numbers and arrays."""
    labels = torch.arange(12) % 3
    test = data.Dataset("made up", None, labels, list("abc"), [str(i) for i in range(12)])
    numbers, arrays = answers.evaluate(torch.randn(12, 3, generator=torch.Generator().manual_seed(0)), test)
    numbers |= {"checkpoint_sha256": "w", "images_sha256": folder.images_digest(test)} | changes
    return report.write_numbers(out, numbers, arrays), arrays


def test_report_whose_files_do_not_belong_together_is_refused(tmp_path):
    with pytest.raises(ValueError, match="there is no report"):
        folder.read_report(tmp_path)
    numbers, arrays = write_report(tmp_path)
    assert folder.read_report(tmp_path)[0] == json.loads(json.dumps(numbers))
    assert torch.equal(folder.read_report(tmp_path)[1]["logits"], arrays["logits"])
    (tmp_path / "predictions.npz").write_bytes(b"another")
    with pytest.raises(ValueError, match=r"predictions\.npz is not that of metrics\.json"):
        folder.read_report(tmp_path)
    write_report(tmp_path, epoch=3)
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / "best.pt").write_bytes(b"trained further")
    with pytest.raises(ValueError, match="is of other weights"):
        folder.read_report(tmp_path)


def test_reasons_whose_files_do_not_belong_together_are_refused(tmp_path):
    numbers, _ = write_report(tmp_path)
    written = {"predictions_sha256": numbers["predictions_sha256"], "notes": []}
    folder.write_json(tmp_path / "reasons.json", written)
    assert folder.read_reasons(tmp_path) == (written, {})
    digest = folder.write_arrays(tmp_path / "evidence.npz", {"a": torch.ones(2)})
    with pytest.raises(ValueError, match=r"not of evidence\.npz beside it"):
        folder.read_reasons(tmp_path)
    folder.write_json(tmp_path / "reasons.json", written | {"evidence_sha256": digest})
    assert folder.read_reasons(tmp_path)[1]["a"].tolist() == [1, 1]
    (tmp_path / "predictions.npz").write_bytes(b"another")
    with pytest.raises(ValueError, match=r"not of predictions\.npz beside it"):
        folder.read_reasons(tmp_path)


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({}, ""),
        ({"checkpoint_sha256": "x"}, "another network"),
        ({"test_sha256": "other labels"}, "another test set"),
        ({"model_file_sha256": "g"}, "another content of the network's file"),
        ({"size": 64}, "another size"),
        ({"size": None, "model_name": None}, ""),  # of an older version
        ({"tests": {"fog/1": {"accuracy": 0.9}}}, "not those that lab.stress wrote"),
    ],
)
def test_stress_tests_that_are_shown(tmp_path, changes, text):
    identity = {"model_file_sha256": "f", "model_name": "make", "size": 32}
    numbers, arrays = write_report(tmp_path, **identity)
    tested = folder.test_digest(numbers["images_sha256"], arrays["y_true"], arrays["class_names"])
    stress = {"checkpoint_sha256": "w", "test_sha256": tested} | identity
    stress |= {"tests": {"fog/1": {"accuracy": 0.5}}, "answers": {"fog/1": torch.tensor([True, False])}}
    stress |= {"examples": {}, "example_pixels": torch.zeros(1, 2, dtype=torch.uint8)}
    assert folder.read_stress(tmp_path, numbers, arrays) == (None, "")
    folder.write_stress(tmp_path, stress)
    content = folder.read_json(tmp_path / "stress.json") | changes
    folder.write_json(tmp_path / "stress.json", {k: v for k, v in content.items() if v is not None})
    back, note = folder.read_stress(tmp_path, numbers, arrays)
    assert text in note and (back is None) == bool(text)
    if back is not None:
        assert torch.equal(back["answers"]["fog/1"], stress["answers"]["fog/1"])
        assert torch.equal(back["example_pixels"], stress["example_pixels"]) and "attack_pixels" not in back


def test_digest_of_a_test_set_follows_images_labels_and_names():
    test = data.make_shapes(1, seed=0)
    assert folder.digest_of_test(test) == data.digest(test)
    others = [replace(test, labels=test.labels.flip(0)), replace(test, class_names=test.class_names[::-1])]
    others.append(replace(test, images=test.images.flip(0)))
    assert len({folder.digest_of_test(one) for one in [test, *others]}) == 4

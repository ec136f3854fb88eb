"""support/outputs.py: files that say what they are of, and that two reports are never mixed."""

import contextlib
import dataclasses
import hashlib
import os
import shutil
from pathlib import Path

import pytest
import torch
from networks import seeded
from processes import KilledError, die_at

import report
from support import outputs
from support.errors import UserError


def content(test, seed):
    """What a report writes of made-up answers."""
    numbers = outputs.identity(f"weights {seed}", test) | {"accuracy": {"value": seed / 10}}
    rows = torch.randn(len(test.labels), 100, generator=seeded(seed)).softmax(dim=1)
    return numbers, {"probabilities": rows, "y_true": test.labels, "filenames": test.filenames}


def test_a_report_is_read_as_it_was_written(tmp_path, small_sets):
    numbers, arrays = content(small_sets[1], 3)
    arrays |= {
        "superclass_names": ["é", "<"],
        "training_labels": None,
        "maps_true": torch.rand(2, 4, 4).half(),
    }
    report.write_results(tmp_path, numbers, arrays)
    digest = hashlib.sha256((tmp_path / "predictions.npz").read_bytes()).hexdigest()
    found, read = outputs.read_report(tmp_path)
    assert found == numbers | {"predictions_sha256": digest}
    del arrays["training_labels"]  # it is not known
    expected = arrays | {key: numbers[key] for key in outputs.IDENTITY}
    assert read.keys() == expected.keys()
    for key, value in expected.items():
        assert torch.equal(read[key], value) if isinstance(value, torch.Tensor) else read[key] == value
    assert read["maps_true"].dtype == torch.float32  # float16 in the file, as results/ has it


def test_a_report_that_is_killed_leaves_the_old_one_or_the_new_one_or_is_refused(tmp_path, small_sets):
    old, new = content(small_sets[1], 1), content(small_sets[1], 2)
    left, ended = [], False
    while not ended:
        report.write_results(tmp_path, *old)
        with pytest.MonkeyPatch.context() as patch:
            die_at(len(left) + 1, patch)
            with contextlib.suppress(KilledError):
                ended = bool(report.write_results(tmp_path, *new))
        try:
            numbers, arrays = outputs.read_report(tmp_path)
        except UserError as error:
            assert "predictions.npz is of another report" in str(error)
            left.append("refused")
        else:
            name, expected = ("old", old) if numbers["accuracy"] == old[0]["accuracy"] else ("new", new)
            assert torch.equal(arrays["probabilities"], expected[1]["probabilities"])
            left.append(name)
    # Before predictions.npz is synced and renamed; before metrics.json is written, synced and renamed; never.
    assert left == ["old", "old", "refused", "refused", "refused", "new"]


def test_a_report_that_is_missing_damaged_or_of_other_weights_is_refused(tmp_path, finished, small_sets):
    with pytest.raises(UserError, match=r"there is no .*metrics\.json: run python report\.py --run"):
        outputs.read_report(tmp_path)
    numbers, arrays = content(small_sets[1], 0)
    report.write_results(tmp_path, numbers, arrays)
    shutil.copytree(finished / "checkpoints", tmp_path / "checkpoints")  # as after more training
    with pytest.raises(UserError, match=r"is of other weights than .*best\.pt: run python report\.py"):
        outputs.read_report(tmp_path)
    best = hashlib.sha256((tmp_path / "checkpoints" / "best.pt").read_bytes()).hexdigest()
    report.write_results(tmp_path, numbers | {"checkpoint_sha256": best}, arrays)
    assert outputs.read_report(tmp_path)[0]["checkpoint_sha256"] == best
    for name, what in (("predictions.npz", "predictions"), ("metrics.json", "numbers")):
        (tmp_path / name).write_bytes((tmp_path / name).read_bytes()[:-9])
        with pytest.raises(UserError, match=rf"{name} cannot be used as {what} of report\.py"):
            outputs.read_report(tmp_path)


def test_the_newest_run_is_the_default_and_only_results_of_its_best_pt_go_into_it(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name, time in (("old", 100), ("new", 300), ("middle", 200)):
        path = Path("runs", name, "checkpoints", "best.pt")
        path.parent.mkdir(parents=True)
        for file in (path, Path("runs", name, "config.json")):
            file.touch()
        os.utime(path, (time, time))
    best = outputs.best_checkpoint(None)
    assert best == Path("runs/new/checkpoints/best.pt") and outputs.results_folder(best) == Path("runs/new")
    assert outputs.results_folder(best.with_name("last.pt")) == Path("runs/last")
    Path("runs/new/config.json").unlink()
    assert outputs.results_folder(best) == Path("runs/best")


def test_top_5_accuracy_is_a_main_number_of_more_than_five_classes():
    for count in (5, 6):
        numbers = dict.fromkeys(outputs.HEADLINE, 1.0) | {"classes": [{}] * count}
        assert ("top-5 accuracy" in outputs.headline(numbers)) == (count == 6)


def test_results_are_of_images_labels_and_names_in_their_order(small_sets):
    test = small_sets[1]
    numbers = outputs.identity("ab", test)
    assert outputs.is_of(numbers, test)
    other = {
        "images": test.images.flip(0),
        "labels": test.labels.flip(0),
        "class_names": test.class_names[::-1],
    }
    for key, value in other.items():
        assert not outputs.is_of(numbers, dataclasses.replace(test, **{key: value}))


def test_the_history_goes_on_where_the_checkpoint_ends(tmp_path):
    saved = [{"epoch": 1, "val_loss": 0.5}]
    assert outputs.read_history(tmp_path, saved) == saved
    (tmp_path / "logs").mkdir()
    for first, losses in (("0.5", [0.5, 0.75]), ("0.25", [0.5])):  # that of another run is not taken
        text = f"epoch,precision,val_loss\n1,fp32,{first}\n2,bf16,0.75\n"
        (tmp_path / "logs" / "history.csv").write_text(text)
        assert [row["val_loss"] for row in outputs.read_history(tmp_path, saved)] == losses

"""support/outputs.py: results that know what they are of. stress.json is tested in tests/test_stress.py."""

import json

import numpy as np
import pytest
import torch

from support import outputs
from support.errors import UserError


def test_results_of_other_weights_are_refused(tmp_path):
    network = {"checkpoint_sha256": "ab", "fixed_logits": [[1.0, -2.0]]}
    outputs.check_results(tmp_path, network)
    for name in ("metrics.json", "stress.json"):
        (tmp_path / name).write_text(json.dumps({"checkpoint_sha256": "ab"}))
    outputs.check_results(tmp_path, network)
    (tmp_path / "stress.json").write_text(json.dumps({"checkpoint_sha256": "cd"}))
    with pytest.raises(UserError, match=r"stress\.json is of other weights"):
        outputs.check_results(tmp_path, network)
    (tmp_path / "stress.json").unlink()
    # Of two networks with one digest, such as quantised ones, the logits differ; rounding is no difference.
    for logits, accepted in (([[1.001, -2.0]], True), ([[1.0, -2.1]], False), ([[1.0, -2.0, 0.0]], False)):
        (tmp_path / "metrics.json").write_text(json.dumps(network | {"fixed_logits": logits}))
        if accepted:
            outputs.check_results(tmp_path, network)
        else:
            with pytest.raises(UserError, match=r"metrics\.json is of other weights"):
                outputs.check_results(tmp_path, network)
    for content, found in (("[", "cannot be used"), ("[]", "cannot be used"), ("{}", "is of other")):
        (tmp_path / "metrics.json").write_text(content)
        with pytest.raises(UserError, match=rf"metrics\.json {found}"):
            outputs.check_results(tmp_path, network)


def test_arrays_and_texts_are_read_as_they_were_written(tmp_path):
    rows = torch.randn(5, 3, generator=torch.Generator().manual_seed(0)).softmax(dim=1)
    content = {"probabilities": rows, "y_true": torch.arange(5), "y_pred": rows.argmax(dim=1)}
    content |= {"class_names": ["a", "é", "<"], "checkpoint_sha256": "ab", "images_sha256": "cd"}
    outputs.write_arrays(tmp_path / "predictions.npz", content)
    found = outputs.read_predictions(tmp_path)
    assert found.keys() == content.keys()
    for key, value in content.items():
        assert torch.equal(found[key], value) if isinstance(value, torch.Tensor) else found[key] == value
    outputs.write_arrays(tmp_path / "predictions.npz", content | {"probabilities": rows.half()})
    assert outputs.read_predictions(tmp_path)["probabilities"].dtype == torch.float32
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / "best.pt").write_bytes(b"trained on")
    with pytest.raises(UserError, match=r"of other weights than .*best\.pt: run report\.py"):
        outputs.read_predictions(tmp_path)
    np.savez(tmp_path / "predictions.npz", y_true=[1])
    with pytest.raises(UserError, match="cannot be used as predictions"):
        outputs.read_predictions(tmp_path)
    with pytest.raises(UserError, match=r"there is no .*run python report\.py --run"):
        outputs.read_predictions(tmp_path / "nowhere")


def test_the_history_goes_on_where_the_checkpoint_ends(tmp_path):
    known = [{"epoch": 1, "val_loss": 0.5}]
    assert outputs.read_history(tmp_path, known) == known
    (tmp_path / "logs").mkdir()
    for first, rows in (("0.5", [0.5, 0.75]), ("0.25", [0.5])):  # that of another run is not taken
        (tmp_path / "logs" / "history.csv").write_text(
            f"epoch,precision,val_loss\n1,fp32,{first}\n2,bf16,0.75\n"
        )
        assert [row["val_loss"] for row in outputs.read_history(tmp_path, known)] == rows

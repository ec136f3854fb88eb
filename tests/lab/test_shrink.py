"""lab/experiments/shrink.py: the same numbers but for rounding, and digests that are right."""

import hashlib
import json
import shutil

import numpy as np
import torch
from processes import contents

from lab.experiments import shrink


def sha256_of(path):
    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_a_run_keeps_its_numbers_and_its_digests(reported, tmp_path):
    run = shutil.copytree(reported, tmp_path / "run")
    npz = {name: run / f"{name}.npz" for name in ("predictions", "evidence")}
    logits = np.float32([[7e4, 0.1], [-7e4, 3]])
    np.savez(npz["predictions"], **(dict(np.load(npz["predictions"])) | {"logits": logits}))
    digests = {f"{name}_sha256": sha256_of(path) for name, path in npz.items()}
    (run / "metrics.json").write_text(json.dumps({"predictions_sha256": digests["predictions_sha256"]}))
    (run / "reasons.json").write_text(json.dumps(digests | {"kinds": []}))
    before = {name: dict(np.load(path)) for name, path in npz.items()}
    weights = torch.load(run / "checkpoints" / "best.pt", weights_only=True)["model"]
    shrink.main([str(run)])
    halved = {"predictions": {"probabilities", "logits"}}
    halved["evidence"] = {key for key, values in before["evidence"].items() if values.dtype == np.float32}
    for name, arrays in before.items():
        after = dict(np.load(npz[name]))
        assert list(after) == list(arrays)
        for key, values in arrays.items():
            expected = values.clip(-6e4, 6e4).astype(np.float16) if key in halved[name] else values
            assert after[key].dtype == expected.dtype
            np.testing.assert_array_equal(after[key], expected)
    now = {f"{name}_sha256": sha256_of(path) for name, path in npz.items()}
    assert json.loads((run / "reasons.json").read_text()) == now | {"kinds": []}
    rounded = torch.load(run / "checkpoints" / "best.pt", weights_only=True)["model"]
    for name, values in weights.items():
        assert torch.equal(rounded[name], values.half() if values.is_floating_point() else values)
    # A second time nothing is left to do, so a report on the rounded weights stays a report on them.
    files = contents(run)
    shrink.main([str(run)])
    assert files == contents(run)

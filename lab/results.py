"""What the laboratory leaves in a folder beside the files of report.py.

reasons.json and evidence.npz come from lab.examine, stress.json and stress.npz from lab.stress. Each holds
the identity of the network and the images that it was made from; a file with another identity is refused or
left out. `classifier` is a lab.classifier.Classifier, `test` the test split, a data.Dataset.
"""

import json
from pathlib import Path

import numpy as np
import torch

from support import outputs
from support.errors import UserError, reading
from support.files import whole_file, write_json

NETWORK = ("checkpoint_sha256", "fixed_logits")  # the keys of network_of
INPUT = ("size", "resize", "transform", "class_order")
IDENTITY = (*NETWORK, *INPUT, "images_sha256", "labels_sha256", "class_names")
ARRAYS = {"metrics": "predictions", "reasons": "evidence", "stress": "stress"}  # the .npz to each .json
# The pixels of the examples in stress.npz, and the key of stress.json that says what they are.
PIXELS = {"example_pixels": "examples", "attack_changes": "attack_examples"}


# ---- What results are of ---------------------------------------------------------------------------------


def results_folder(classifier, out: Path | None) -> Path:
    """Return where results go: `out`, else the checkpoint's run, else runs/<name of weights or model>."""
    if out is not None:
        return out
    if classifier.path is None:
        return Path("runs") / classifier.name
    return outputs.results_folder(classifier.path)


def network_of(classifier) -> dict:
    """Return what tells a network from others: the digest of its weights and its logits of four fixed images.

    The logits show what the digest does not see, such as other code. Their last bits depend on the machine.
    """
    logits = classifier.fixed_logits
    fixed = None if logits is None else [[float(f"{x:.6g}") for x in row] for row in logits.tolist()]
    return {"checkpoint_sha256": classifier.digest, "fixed_logits": fixed}


def identity(classifier, test) -> dict:
    """Return the identity of results: network, size, images, labels, and which logit is which class."""
    order = classifier.model.order
    return {
        **outputs.identity(classifier.digest, test),
        **network_of(classifier),
        "size": classifier.model.image_size,
        "resize": classifier.model.uncropped,
        "transform": transform_of(classifier),
        "class_order": list(range(len(test.class_names))) if order is None else order.tolist(),
    }


def transform_of(classifier) -> str | None:
    """Return "FILE.py:NAME" of its --transform and the digest of that file, or None."""
    if classifier.transform is None:
        return None
    path = Path(classifier.transform.rpartition(":")[0])
    return f"{Path(classifier.transform).name}, {outputs.file_digest(path)}"


def agree(first: dict, second: dict, keys: tuple[str, ...] = IDENTITY) -> bool:
    """Return whether two files agree in all of the keys that both have."""
    return all(same(key, first[key], second[key]) for key in keys if key in first and key in second)


def same(key: str, a: object, b: object) -> bool:
    """Return whether two values of a key of identity are the same; logits may differ by rounding."""
    if key == "fixed_logits":
        if a is None or b is None:  # there is no network, or it answers at random
            return True
        a, b = torch.as_tensor(a).double(), torch.as_tensor(b).double()
        return a.shape == b.shape and bool((a - b).abs().max() <= 1e-3 * b.abs().max())
    return a == b


def is_of(path: Path, network: dict) -> bool:
    """Return whether a .json file belongs to a network, see network_of; raise UserError if it is damaged."""
    content = outputs.read_json(path, "results, which --overwrite replaces")
    return "checkpoint_sha256" in content and agree(content, network, NETWORK)


def check_results(folder: Path | str, network: dict) -> None:
    """Raise UserError if a file in the folder belongs to another network, see network_of, or is damaged."""
    for name in ARRAYS:
        path = Path(folder) / f"{name}.json"
        if path.is_file() and not is_of(path, network):
            raise UserError(
                f"{path} is of other weights, or normalised otherwise: "
                f"use another --out, or replace it by --overwrite"
            )


def remove_others(folder: Path, network: dict) -> None:
    """Remove results of another network, see network_of, and damaged ones, both .json and .npz."""
    for name, arrays in ARRAYS.items():
        path = folder / f"{name}.json"
        try:
            keep = not path.is_file() or is_of(path, network)
        except UserError:
            keep = False
        if not keep:
            path.unlink()
            (folder / f"{arrays}.npz").unlink(missing_ok=True)


# ---- reasons.json and evidence.npz -----------------------------------------------------------------------


def write_reasons(folder: Path, reasons: dict, evidence: dict | None) -> dict:
    """Write evidence.npz, or remove an old one, then reasons.json with its digest; return reasons.json."""
    path = folder / "evidence.npz"
    if evidence is None:
        path.unlink(missing_ok=True)
    else:
        reasons = reasons | {"evidence_sha256": outputs.write_arrays(path, evidence)}
    write_json(folder / "reasons.json", reasons)
    return reasons


def read_reasons(folder: Path, predictions_sha256: str) -> tuple[dict | None, dict | None]:
    """Return reasons.json and evidence.npz of a folder, None for a file that is not there.

    Both are left out with a note if they are about other predictions, or do not belong together, as after a
    process that was killed between the two files.
    """
    path, arrays = folder / "reasons.json", folder / "evidence.npz"
    if not path.is_file():
        return None, None
    reasons = outputs.read_json(path, "reasons of lab.examine")
    if reasons.get("predictions_sha256") != predictions_sha256:
        print(f"note     {path} is about other predictions and left out: run lab.examine again")
        return None, None
    if "evidence_sha256" not in reasons:
        return reasons, None
    if not arrays.is_file() or outputs.file_digest(arrays) != reasons["evidence_sha256"]:
        print(f"note     {arrays} is not that of {path}, and both are left out: run lab.examine again")
        return None, None
    return reasons, outputs.read_arrays(arrays, "evidence of lab.examine")


# ---- stress.json and stress.npz --------------------------------------------------------------------------


def write_stress(folder: Path, results: dict) -> None:
    """Write what are tensors to stress.npz and the rest to stress.json.

    The tensors are results["answers"], {test: which are right, bool [N]}, and PIXELS, if there are any.
    """
    arrays = {test: right.numpy() for test, right in results["answers"].items()}
    arrays |= {name: results[name].numpy() for name in PIXELS if name in results}
    with whole_file(folder / "stress.npz") as temporary, open(temporary, "wb") as file:
        np.savez_compressed(file, **arrays)
    rest = {key: results[key] for key in results if key not in ("answers", *PIXELS)}
    write_json(folder / "stress.json", rest)


def read_stress(folder: Path, owner: dict) -> dict | None:
    """Return what write_stress wrote to the folder, or None if there is nothing, or it has another owner.

    owner: the identity that stress.json should have, or some of its keys. Raises UserError if a file cannot
    be used, or if stress.json and stress.npz disagree.
    """
    path = folder / "stress.json"
    if not path.exists():
        return None
    with reading(path, "results of lab.stress, which its --overwrite replaces"):
        results = json.loads(path.read_text(encoding="utf-8"))
        if not agree(results, owner):
            return None
        # A command that was killed between the two files has left more tests in stress.npz than in
        # stress.json, or fewer, if it was the first save of an --overwrite.
        with np.load(folder / "stress.npz") as arrays:
            if not results["tests"].keys() <= set(arrays.files):
                return None
            results["answers"] = {test: torch.from_numpy(arrays[test]) for test in results["tests"]}
            for name, shown in PIXELS.items():
                if shown in results:
                    results[name] = torch.from_numpy(arrays[name])
        for test, right in results["answers"].items():
            if int(right.sum()) / len(right) != results["tests"][test]["accuracy"]["value"]:
                raise ValueError(f"its accuracy for {test} is not that of stress.npz")
    return results

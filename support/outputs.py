"""What the commands leave in a run folder for each other: metrics.json and two .npz files, and stress tests.

Each file says of what it is, see identity. `classifier` is a classifier.Classifier, `test` the test split, a
data.Dataset; digests are of weights.
"""

import csv
import hashlib
import json
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from support.errors import UserError, reading
from support.files import whole_file, write_json

NETWORK = ("checkpoint_sha256", "fixed_logits")  # the keys of network_of
# The keys of identity.
IDENTITY = (*NETWORK, "size", "resize", "images_sha256", "labels_sha256", "class_names", "class_order")
RESULTS = ("metrics.json", "stress.json")  # which say of which weights they are
# The pixels of the examples in stress.npz, and the key of stress.json that says what they are.
PIXELS = {"example_pixels": "examples", "attack_changes": "attack_examples"}


def run_of(checkpoint: Path) -> Path | None:
    """Return the run folder that a checkpoint lies in, or None if it lies elsewhere."""
    folder = checkpoint.parent
    is_run = folder.name == "checkpoints" and (folder.parent / "config.json").is_file()
    return folder.parent if is_run else None


def results_folder(classifier, out: Path | None) -> Path:
    """Return where results go: `out`, else the checkpoint's run, else runs/<name of weights or model>."""
    if out is not None:
        return out
    if classifier.path is None:
        return Path("runs") / classifier.name
    return run_of(classifier.path) or Path("runs") / (classifier.path.stem.strip(".") or "checkpoint")


def network_of(classifier) -> dict:
    """Return what tells a network from others: the digest of its weights and its logits of four fixed images.

    The second, of what the digest does not see, differ in their last bits from machine to machine.
    """
    logits = classifier.fixed_logits
    fixed = None if logits is None else [[float(f"{x:.6g}") for x in row] for row in logits.tolist()]
    return {"checkpoint_sha256": classifier.digest, "fixed_logits": fixed}


def identity(classifier, test) -> dict:
    """Return what results are of: network, size, images, labels, and which logit is which class."""
    sides = {"size": classifier.model.image_size, "resize": classifier.model.uncropped}
    order = classifier.model.order
    return network_of(classifier) | sides | data_of(test, None if order is None else order.tolist())


def data_of(test, order: list[int] | None = None) -> dict:
    """Return the rest of identity: images, labels, and which logit is which class, by default its own."""
    return {
        "images_sha256": test.digest if test.images is None else sha256_of(test.images),
        "labels_sha256": sha256_of(test.labels),
        "class_names": test.class_names,
        "class_order": order or list(range(len(test.class_names))),
    }


def is_of(found: dict, whose: dict) -> bool:
    """Return whether what a file says that it is of is `whose`, some of the keys of identity."""
    return all(same(key, found.get(key), value) for key, value in whose.items())


def agree(found: dict, whose: dict, keys: tuple[str, ...] = IDENTITY) -> bool:
    """Return whether two are of the same by the keys that both have: earlier versions wrote fewer."""
    return all(same(key, found[key], whose[key]) for key in keys if key in found and key in whose)


def same(key: str, a: object, b: object) -> bool:
    """Return whether two values of a key of identity are of the same thing."""
    if key == "fixed_logits" and a is not None and b is not None:
        a, b = torch.as_tensor(a).double(), torch.as_tensor(b).double()
        return a.shape == b.shape and bool((a - b).abs().max() <= 1e-3 * b.abs().max())
    a, b = (value.tolist() if isinstance(value, Tensor) else value for value in (a, b))
    return a == b


def sha256_of(array: Tensor) -> str:
    """Return the sha256 of the numbers of an array in their order, such as uint8 images [N, 3, S, S]."""
    return hashlib.sha256(np.ascontiguousarray(array)).hexdigest()


def check_results(folder: Path | str, network: dict) -> None:
    """Raise UserError if one of the RESULTS in the folder is of another network.

    network: see network_of; results of earlier versions know the digest alone.
    """
    for path in [Path(folder) / name for name in RESULTS]:
        if path.is_file():
            with reading(path, "results, which --overwrite replaces"):
                owner = json.loads(path.read_text(encoding="utf-8"))
                is_same = owner.get("checkpoint_sha256") is not None and agree(owner, network)
            if not is_same:
                hint = "use another --out, or replace it by --overwrite"
                raise UserError(f"{path} is of other weights, or normalised otherwise: {hint}")


def read_history(folder: Path, known: list[dict]) -> list[dict]:
    """Return the rows of logs/history.csv in a folder if it continues the `known` ones, else these.

    The checkpoint of the best epoch does not know of the epochs after it.
    """
    path, rows = folder / "logs" / "history.csv", []
    if path.is_file():
        with reading(path, "the history of train.py"), open(path, newline="", encoding="utf-8") as file:
            for row in csv.DictReader(file):
                rows.append(row | {key: float(row[key]) for key in row if key != "precision"})
    continues = [row["val_loss"] for row in rows[: len(known)]] == [row["val_loss"] for row in known]
    return rows if continues else known


# ---- metrics.json, predictions.npz and evidence.npz, from report.py ---------------------------------------


def write_arrays(path: Path, content: dict) -> None:
    """Write tensors, texts, and lists of numbers or of texts to an .npz file; None is left out."""
    arrays = {key: np.asarray(value) for key, value in content.items() if value is not None}
    with whole_file(path) as temporary, open(temporary, "wb") as file:
        np.savez_compressed(file, **arrays)


def read_arrays(path: Path, what: str) -> dict:
    """Return what write_arrays wrote: tensors of numbers, and texts and lists of them as they were.

    What is stored in float16, as in results/, comes in float32.
    """
    found = {}
    with reading(path, what), np.load(path) as content:
        for key in content.files:
            array = content[key]
            if array.dtype == np.float16:
                array = array.astype(np.float32)
            found[key] = array.tolist() if array.dtype.kind == "U" else torch.from_numpy(array)
    return found


def read_predictions(run: Path) -> dict:
    """Return what predictions.npz in the folder of a run holds, see docs/formats.md, tensors on the CPU.

    Raises UserError if the file is missing or damaged, or if the run has trained on since.
    """
    file, best = run / "predictions.npz", run / "checkpoints" / "best.pt"
    if not file.exists():
        raise UserError(f"there is no {file}: run python report.py --run {run} first")
    found = read_arrays(file, "predictions of report.py")
    with reading(file, "predictions of report.py"):
        checkpoint = found["checkpoint_sha256"]
    if best.is_file() and hashlib.sha256(best.read_bytes()).hexdigest() != checkpoint:
        raise UserError(f"{file} is of other weights than {best}: run report.py --run {run} again")
    return found


def read_report(folder: Path) -> tuple[dict, dict, dict]:
    """Return metrics.json, predictions.npz and evidence.npz of a folder, all of one report.

    Raises UserError if one is missing, damaged, or of another network, other images, labels or runs.
    """
    path = folder / "metrics.json"
    if not path.exists():
        raise UserError(f"there is no {path}: run report.py without --page first")
    with reading(path, "numbers of report.py"):
        numbers = json.loads(path.read_text(encoding="utf-8"))
        whose = {key: numbers[key] for key in ("runs", *IDENTITY)}
    found = []
    for name in ("predictions.npz", "evidence.npz"):
        arrays = read_arrays(folder / name, "arrays of report.py")
        if not is_of(arrays, whose):
            raise UserError(f"{folder / name} is of another report than {path}: run report.py again")
        found.append(arrays)
    return numbers, *found


# ---- stress.json and stress.npz, from stress.py ----------------------------------------------------------


def write_stress(folder: Path, results: dict) -> None:
    """Write what are tensors to stress.npz and the rest to stress.json.

    Tensors are results["answers"], {test: which are right, bool [N]}, and PIXELS, if they are known.
    """
    arrays = {test: right.numpy() for test, right in results["answers"].items()}
    arrays |= {name: results[name].numpy() for name in PIXELS if name in results}
    with whole_file(folder / "stress.npz") as temporary, open(temporary, "wb") as file:
        np.savez_compressed(file, **arrays)
    rest = {key: results[key] for key in results if key not in ("answers", *PIXELS)}
    write_json(folder / "stress.json", rest)


def read_stress(folder: Path, whose: dict) -> dict | None:
    """Return what write_stress wrote to the folder, or None if that is nothing or of another network.

    whose: keys of stress.json and what they have to be, see identity. Raises UserError if a file cannot be
    used, or if stress.json is not of what stress.npz holds.
    """
    path = folder / "stress.json"
    if not path.exists():
        return None
    with reading(path, "results of stress.py, which its --overwrite replaces"):
        results = json.loads(path.read_text(encoding="utf-8"))
        if not is_of(results, whose):
            return None
        # Killed between the two files, the command has left more in stress.npz than stress.json knows of, or
        # less, if that was the first save of an --overwrite.
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

"""What the commands leave in a run folder for each other: predictions.npz, and stress.json with stress.npz.

`classifier` is a classifier.Classifier, `test` the test split, a data.Dataset; digests are of weights.
"""

import csv
import hashlib
import json
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from running.errors import UserError, reading
from running.files import whole_file, write_json

# The pixels of the examples in stress.npz, and the key of stress.json that says what they are.
RESULTS = ("metrics.json", "stress.json")  # which say of which weights they are
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


def identity(classifier, test) -> dict:
    """Return what results are of: the weights, the test images, and which logit is which class."""
    order = classifier.model.order
    return {
        "checkpoint_sha256": classifier.digest,
        "images_sha256": digest_of_images(test.images),
        "class_order": list(range(classifier.num_classes)) if order is None else order.tolist(),
    }


def check_results(folder: Path | str, digest: str, names: Iterable[str] = RESULTS) -> None:
    """Raise UserError if one of the results in the folder that are called `names` is of other weights."""
    for path in [Path(folder) / name for name in names]:
        if path.is_file():
            with reading(path, "results, which --overwrite replaces"):
                owner = json.loads(path.read_text(encoding="utf-8"))["checkpoint_sha256"]
            if owner != digest:
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


# ---- predictions.npz, from report.py ---------------------------------------------------------------------


def digest_of_images(images: Tensor) -> str:
    """Return the sha256 of images, uint8 [N, 3, H, W], in their order; kept beside the predictions."""
    return hashlib.sha256(images.numpy().tobytes()).hexdigest()


def write_predictions(path: Path, test, probabilities: Tensor, y_pred: Tensor, digest: str) -> None:
    """Write predictions.npz; probabilities float32 [N, C], y_pred int64 [N]."""
    with whole_file(path) as temporary, open(temporary, "wb") as file:
        np.savez_compressed(
            file,
            y_true=test.labels.numpy(),
            y_pred=y_pred.numpy(),
            probabilities=probabilities.numpy(),
            filenames=np.array(test.filenames),
            class_names=np.array(test.class_names),
            images_sha256=digest_of_images(test.images),
            checkpoint_sha256=digest,
        )


def read_predictions(run: Path) -> dict:
    """Return what predictions.npz in the folder of a run holds.

    y_true and y_pred int64 [N], probabilities float32 [N, C], images_sha256, checkpoint_sha256, class_names.
    Raises UserError if the file is missing or damaged, or if the run has trained on since.
    """
    file, best = run / "predictions.npz", run / "checkpoints" / "best.pt"
    if not file.exists():
        raise UserError(f"there is no {file}: run python report.py --run {run} first")
    with reading(file, "predictions of report.py"):
        with np.load(file) as content:
            values = {key: content[key] for key in content.files}
        found = {key: torch.from_numpy(values[key]) for key in ("y_true", "y_pred", "probabilities")}
        found |= {key: str(values[key]) for key in ("images_sha256", "checkpoint_sha256")}
        if "class_names" in values:  # results of earlier versions have none
            found["class_names"] = values["class_names"].tolist()
    if best.is_file() and hashlib.sha256(best.read_bytes()).hexdigest() != found["checkpoint_sha256"]:
        raise UserError(f"{file} is of other weights than {best}: run report.py --run {run} again")
    return found


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

    whose: keys of stress.json and what they have to be, see classifier.identity. Left out are a test and
    examples that stand in one file only, as the command was killed between the two, and then "summary".
    Raises UserError if a file cannot be used.
    """
    path = folder / "stress.json"
    if not path.exists():
        return None
    with reading(path, "results of stress.py, which its --overwrite replaces"):
        results = json.loads(path.read_text(encoding="utf-8"))
        if any(results.get(key) != value for key, value in whose.items()):
            return None
        with np.load(folder / "stress.npz") as arrays:
            answers = {test: torch.from_numpy(arrays[test]) for test in results["tests"] if test in arrays}
            results |= {name: torch.from_numpy(arrays[name]) for name in PIXELS if name in arrays}
        for test, right in answers.items():
            if int(right.sum()) / len(right) != results["tests"][test]["accuracy"]["value"]:
                raise ValueError(f"its accuracy for {test} is not that of stress.npz")
    for name, shown in PIXELS.items():
        if name not in results or shown not in results:
            results.pop(name, None)
            results.pop(shown, None)
    if len(answers) < len(results["tests"]):
        results.pop("summary", None)
    results["tests"] = {test: results["tests"][test] for test in answers}
    results["answers"] = answers
    return results

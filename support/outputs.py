"""What report.py leaves in the folder of a run, and how its readers know that the files belong together.

predictions.npz is written first, then metrics.json with its digest. Both files hold `identity`: the weights,
images, labels and class names that they were made from. `test` is the test split, a data.Dataset; digests
are sha256.
"""

import csv
import hashlib
import json
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from support.errors import UserError, reading
from support.files import whole_file

HEADLINE = {  # the keys of the main numbers, and their names for people
    "accuracy": "accuracy",
    "macro_precision": "macro precision",
    "macro_recall": "macro recall",
    "macro_f1": "macro F1",
    "top5_accuracy": "top-5 accuracy",
}


def headline(numbers: dict) -> dict[str, dict]:
    """Return the main numbers of metrics.json by name; with five classes or fewer without top-5 accuracy."""
    shown = [key for key in HEADLINE if key != "top5_accuracy" or len(numbers["classes"]) > 5]
    return {HEADLINE[key]: numbers[key] for key in shown}


# ---- Folders ---------------------------------------------------------------------------------------------


def best_checkpoint(run: Path | None) -> Path:
    """Return best.pt of a run, by default the newest best.pt of the runs under runs/."""
    folders = Path("runs").glob("*") if run is None else [run]
    paths = [path for folder in folders if (path := folder / "checkpoints" / "best.pt").is_file()]
    if not paths and run is None:
        raise UserError(
            "there is no finished epoch of a run under runs/: run train.py first; "
            "--checkpoint weights/resnet18_cifar100.pt takes the network that is shipped"
        )
    if not paths:
        raise UserError(f"there is no finished epoch in {run}: expected the folder of a run of train.py")
    newest = max(paths, key=lambda path: path.stat().st_mtime)
    if run_of(newest) is None:
        config = newest.parent.parent / "config.json"
        raise UserError(f"there is no {config}, as a run of train.py has: give --checkpoint {newest}")
    return newest


def run_of(checkpoint: Path) -> Path | None:
    """Return the run folder of a checkpoint if it is the best.pt of a run, else None.

    The results in a run folder are those of best.pt.
    """
    folder = checkpoint.parent
    is_run = folder.name == "checkpoints" and (folder.parent / "config.json").is_file()
    return folder.parent if is_run and checkpoint.name == "best.pt" else None


def results_folder(checkpoint: Path) -> Path:
    """Return where the results of a checkpoint go: its run, else runs/<its name>."""
    return run_of(checkpoint) or Path("runs") / (checkpoint.stem.strip(".") or "checkpoint")


# ---- What results are of ---------------------------------------------------------------------------------


IDENTITY = ("checkpoint_sha256", "images_sha256", "labels_sha256", "class_names")


def identity(weights_sha256: str, test) -> dict:
    """Return the identity of results: the weights, images, labels and class names they were made from."""
    return {
        "checkpoint_sha256": weights_sha256,
        "images_sha256": test.digest if test.images is None else sha256_of(test.images),
        "labels_sha256": sha256_of(test.labels),
        "class_names": test.class_names,
    }


def is_of(numbers: dict, test) -> bool:
    """Return whether metrics.json was made from the images, labels and class names of this test set."""
    wanted = identity("", test)
    return all(numbers[key] == wanted[key] for key in IDENTITY[1:])


def data_of(
    test, dataset: str | None, data_dir: str | None, size: int | None, resize: int | None = None
) -> dict:
    """Return what metrics.json says about the test images: what they are, and where to find them again."""
    where = {"dataset": dataset, "data_dir": data_dir, "size": size, "resize": resize}
    return where | {"name": test.name, "provenance": test.provenance, "digest": test.digest}


def sha256_of(array: Tensor) -> str:
    """Return the digest of an array, such as uint8 images [N, 3, S, S]; it depends on their order."""
    return hashlib.sha256(np.ascontiguousarray(array)).hexdigest()


def file_digest(path: Path) -> str:
    """Return the digest of a file."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def check_owner(folder: Path, weights_sha256: str) -> None:
    """Raise UserError if a folder holds the results of other weights."""
    path = folder / "metrics.json"
    if path.is_file() and read_json(path, "numbers of report.py").get("checkpoint_sha256") != weights_sha256:
        raise UserError(f"{path} is of other weights: give another --out, or delete that folder")


# ---- Reading and writing ---------------------------------------------------------------------------------


def write_arrays(path: Path, content: dict) -> str:
    """Write tensors, texts, and lists of these to an .npz file, and skip None; return its digest."""
    arrays = {key: np.asarray(value) for key, value in content.items() if value is not None}
    with whole_file(path) as temporary:
        with open(temporary, "wb") as file:
            np.savez_compressed(file, **arrays)
        return file_digest(temporary)


def read_arrays(path: Path, what: str) -> dict:
    """Return what write_arrays wrote: numbers as tensors, texts and lists of texts as they were.

    float16, as results/ keeps arrays, becomes float32.
    """
    content = {}
    with reading(path, what), np.load(path) as file:
        for key in file.files:
            array = file[key]
            if array.dtype == np.float16:
                array = array.astype(np.float32)
            content[key] = array.tolist() if array.dtype.kind == "U" else torch.from_numpy(array)
    return content


def read_json(path: Path, what: str) -> dict:
    """Return the content of a .json file that holds a dict."""
    with reading(path, what):
        content = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(content, dict):
            raise ValueError(f"it holds a {type(content).__name__}")
        return content


def read_history(run: Path | None, saved: list[dict]) -> list[dict]:
    """Return the rows of a run's logs/history.csv if they continue the `saved` rows, else the saved rows.

    The checkpoint of the best epoch holds no row of the epochs after it.
    """
    if run is None:
        return saved
    path, rows = run / "logs" / "history.csv", []
    if path.is_file():
        with reading(path, "the history of train.py"), open(path, newline="", encoding="utf-8") as file:
            for row in csv.DictReader(file):
                rows.append(row | {key: float(row[key]) for key in row if key != "precision"})
    continues = [row["val_loss"] for row in rows[: len(saved)]] == [row["val_loss"] for row in saved]
    return rows if continues else saved


def read_report(folder: Path) -> tuple[dict, dict]:
    """Return metrics.json and predictions.npz of a folder, both of one report; floats are float32.

    Raises UserError if a file is missing or damaged, if the files are of two reports, as after a process that
    was killed between them, or if the run was trained further since.
    """
    path, best = folder / "metrics.json", folder / "checkpoints" / "best.pt"
    if not path.is_file():
        raise UserError(f"there is no {path}: run python report.py --run {folder} first")
    numbers = read_json(path, "numbers of report.py")
    arrays = read_arrays(folder / "predictions.npz", "predictions of report.py")
    if numbers.get("predictions_sha256") != file_digest(folder / "predictions.npz"):
        raise UserError(f"{folder / 'predictions.npz'} is of another report than {path}: run report.py again")
    if best.is_file() and file_digest(best) != numbers["checkpoint_sha256"]:
        raise UserError(f"{path} is of other weights than {best}: run python report.py --run {folder} again")
    return numbers, arrays

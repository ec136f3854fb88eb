"""The run folder, and the checkpoints in it.

runs/<name>/config.json           settings, data, versions and hardware
            logs/history.csv      one row for each epoch
            checkpoints/best.pt   the weights with the best validation accuracy
            checkpoints/last.pt   the weights after the last epoch, and what --resume needs besides them
            metrics.json, predictions.npz, plots/, failures/, gradcam/, report.html   from report.py
            stress.json, stress.npz                                                   from stress.py
"""

import hashlib
import io
import json
import pickle
import warnings
import zipfile
from collections.abc import Iterable
from pathlib import Path

import torch
from torch import Tensor

from running.files import UserError, check_file, reading, whole_file


def newest_run(parent: Path | str = "runs") -> Path:
    """Return the folder below `parent` with the newest best.pt, or raise UserError if there is none."""
    checkpoints = list(Path(parent).glob("*/checkpoints/best.pt"))
    if not checkpoints:
        raise UserError(f"there is no finished epoch of any run under {parent}/: train one first")
    return max(checkpoints, key=lambda path: path.stat().st_mtime).parent.parent


def best_checkpoint(run: Path | str) -> Path:
    """Return the path of best.pt in the folder of a run, or raise UserError if it is not there."""
    path = Path(run) / "checkpoints" / "best.pt"
    check_file(path, f"finished epoch in {run}; a run of train.py has a")
    return path


def run_of(checkpoint: Path | str) -> Path | None:
    """Return the run folder that a checkpoint lies in, or None if it lies elsewhere."""
    folder = Path(checkpoint).parent
    if folder.name == "checkpoints" and (folder.parent / "config.json").is_file():
        return folder.parent
    return None


def save_checkpoint(path: Path | str, checkpoint: dict) -> None:
    """Write a checkpoint, whole or not at all, and remove what a killed training left of the same one."""
    content = io.BytesIO()
    torch.save(checkpoint, content)
    with whole_file(path) as temporary:
        temporary.write_bytes(content.getbuffer())
    for left in Path(path).parent.glob(f".{Path(path).name}.*.tmp"):
        left.unlink(missing_ok=True)


def read_checkpoint(path: Path | str) -> dict:
    """Return what a checkpoint of train.py holds, and the `sha256` of its file besides; see read_tensors."""
    content, sha256 = read_tensors(path)
    if not isinstance(content, dict):
        raise UserError(f"{path} cannot be used as a checkpoint: it holds a {type(content).__name__}")
    return content | {"sha256": sha256}


def read_tensors(path: Path | str) -> tuple[object, str]:
    """Return what torch.save wrote to a file, with all tensors on the CPU, and the sha256 of the file.

    No code in the file is run. Raises UserError if the file is damaged or holds a tensor that is not dense
    or not finite.
    """
    check_file(path, "checkpoint")
    with reading(path, "a checkpoint"):
        data = Path(path).read_bytes()  # once: a training may put another file in its place at any moment
        if not zipfile.is_zipfile(io.BytesIO(data)):  # as torch.save writes it since torch 1.6
            raise ValueError("it was not written by torch.save, or only in part")
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            if any(member.compress_type != zipfile.ZIP_STORED for member in archive.infolist()):
                raise ValueError("it is compressed, as torch.save never does")
            if damaged := archive.testzip():  # torch.load itself does not compare the checksums
                raise ValueError(f"it is damaged, the checksum of {damaged} is wrong")
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # about kinds of tensors that are refused below
                content = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
        except pickle.UnpicklingError as error:
            instead = "write it by torch.save(model.state_dict(), FILE)"
            raise ValueError(f"it holds more than tensors and plain values: {instead}") from error
        check_tensors(content)
        return content, hashlib.sha256(data).hexdigest()


def check_tensors(content: object) -> None:
    """Raise ValueError unless all tensors in `content`, at any depth, are dense and hold finite numbers.

    A few bytes in a file can stand for a tensor of gigabytes: nothing is computed with it before this.
    """
    if isinstance(content, dict):
        content = list(content.values())
    if isinstance(content, list | tuple):
        for value in content:
            check_tensors(value)
    elif isinstance(content, Tensor):
        size = content.numel() * content.element_size()
        if content.untyped_storage().nbytes() < size:
            raise ValueError("it holds something else than dense tensors of numbers")
        if not content.isfinite().all():
            raise ValueError("it holds values that are not finite")


def check_results(folder: Path | str, sha256: str, names: Iterable[str]) -> None:
    """Raise UserError if one of the results in the folder that are called `names` is of other weights."""
    for path in [Path(folder) / name for name in names]:
        if path.is_file():
            with reading(path, "results"):
                owner = json.loads(path.read_text(encoding="utf-8"))["checkpoint_sha256"]
            if owner != sha256:
                raise UserError(f"{path} is of other weights, or normalised otherwise: use another --out")

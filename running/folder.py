"""The run folder, and the checkpoints in it.

runs/<name>/config.json           settings, data, versions and hardware
            logs/history.csv      one row for each epoch
            checkpoints/best.pt   the weights with the best validation accuracy
            checkpoints/last.pt   the weights after the last epoch, and what --resume needs besides them
            metrics.json, predictions.npz, plots/, failures/, gradcam/, report.html   from report.py
            stress.json           from stress.py
"""

import contextlib
import csv
import hashlib
import io
import json
import os
import pickle
import warnings
import zipfile
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

from running.files import UserError, check_file, locked, read_file, usable, whole_file

# What the commands write into a run folder, and nothing else in it is ever deleted but our own temporary
# files and empty folders. config.json goes last: without it a folder is not known as a run.
FAILURES = ["failures/failures.csv", "failures/[0-9][0-9]_*_as_*.png", "gradcam/[0-9][0-9]_*_as_*.png"]
RESULTS = ["metrics.json", "predictions.npz", "stress.json", "report.html", *FAILURES]
KNOWN = {"metrics.json", "stress.json"}  # those of them that say of which checkpoint they are
TRAINED = ["checkpoints/best.pt", "checkpoints/last.pt", "logs/history.csv", "config.json"]


def newest_run(parent: Path | str = "runs") -> Path:
    """Return the folder below `parent` with the newest best.pt, or raise UserError if there is none."""
    checkpoints = list(Path(parent).glob("*/checkpoints/best.pt"))
    if not checkpoints:
        raise UserError(f"there is no finished epoch of any run under {parent}/: train one first")
    return max(checkpoints, key=lambda path: path.stat().st_mtime).parent.parent


def is_run(folder: Path) -> bool:
    """Return whether the folder holds the config.json of train.py."""
    with contextlib.suppress(Exception):  # there is none, or it is that of another program
        return {"settings", "digest", "environment"} <= json.loads(read_file(folder / "config.json")).keys()
    return False


@contextlib.contextmanager
def lock_run(run: Path) -> Iterator[None]:
    """Hold the folder `run` for one training; raise UserError if another one holds it.

    The folder is made if necessary, and deleted again if it stays empty. So is what a killed training left
    half written.
    """
    with usable(run, "a run folder"):
        is_new = not run.exists()
        run.mkdir(parents=True, exist_ok=True)
    try:
        with locked(run):
            delete(run, [f"{Path(name).parent}/.{Path(name).name}.[0-9]*.tmp" for name in TRAINED])
            yield
    finally:
        if is_new:
            with contextlib.suppress(OSError):  # it is not empty
                run.rmdir()


def check_new_run(run: Path, overwrite: bool) -> None:
    """Raise UserError unless a training may begin in the folder `run`: new, empty, or to be overwritten.

    A folder with nothing but config.json counts as empty: that run ended before it saved a checkpoint.
    """
    names = {path.name for path in run.iterdir() if not path.is_dir() or any(path.iterdir())}
    if names and not is_run(run):
        raise UserError(f"{run} is not empty and holds no run of train.py: use another --out")
    names.discard("config.json")
    if names and not overwrite:
        hint = "go on with --resume, delete it with --overwrite, or use another --out"
        raise UserError(f"{run} holds a run already: {hint}")
    if names and not names & {"checkpoints", "logs"}:  # results that somebody keeps, such as results/
        raise UserError(f"{run} holds results without a training, which --overwrite keeps: use another --out")


def delete(run: Path, patterns: list[str]) -> None:
    """Delete the files in the folder `run` that the patterns name, but for those behind a linked folder."""
    for path in [path for pattern in patterns for path in run.glob(pattern)]:
        if not path.is_dir() and (path.parent == run or not path.parent.is_symlink()):
            path.unlink(missing_ok=True)


def remove_run(run: Path) -> None:
    """Delete the files of a run from the folder `run`, its folders where nothing else is in them, no more."""
    delete(run, [*RESULTS, *TRAINED])
    for name in ("checkpoints", "logs", "plots", "failures", "gradcam"):
        with contextlib.suppress(OSError):  # it is not empty
            (run / name).unlink() if (run / name).is_symlink() else (run / name).rmdir()


def read_history(run: Path) -> list[dict]:
    """Return the rows of logs/history.csv with all values as floats, or raise UserError.

    A spreadsheet may have saved the file with a byte order mark and other ends of lines.
    """
    path = run / "logs" / "history.csv"
    with usable(path, "the history of a run"):
        reader = csv.DictReader(io.StringIO(read_file(path).decode("utf-8-sig"), newline=""))
        return [{key: float(value) for key, value in row.items()} for row in reader]


def save_checkpoint(path: Path | str, checkpoint: dict) -> None:
    """Write a checkpoint, whole or not at all."""
    content = io.BytesIO()
    torch.save(checkpoint, content)
    with whole_file(path) as temporary:
        temporary.write_bytes(content.getbuffer())


def load_checkpoint(path: Path | str) -> dict:
    """Return the content of a checkpoint with all tensors on the CPU, and the `sha256` of the file besides.

    No code in the file is run. Raises UserError if the file is damaged or holds a tensor that is not dense
    or not finite.
    """
    check_file(path, "checkpoint")
    with usable(path, "a checkpoint"):
        content = Path(path).read_bytes()  # once: a training may put another file in its place at any moment
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            if any(member.compress_type != zipfile.ZIP_STORED for member in archive.infolist()):
                raise ValueError("it is compressed, as torch.save never does")
            if damaged := archive.testzip():  # torch.load itself does not compare the checksums
                raise ValueError(f"it is damaged, the checksum of {damaged} is wrong")
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # about kinds of tensors that are refused below
                checkpoint = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
        except pickle.UnpicklingError as error:
            raise ValueError("it is refused, as it holds more than tensors and plain values") from error
        check_tensors(checkpoint)
        return checkpoint | {"sha256": hashlib.sha256(content).hexdigest()}


def check_tensors(content: object) -> None:
    """Raise ValueError unless all tensors in `content`, at any depth, are dense and hold finite numbers.

    A few bytes in a file can stand for a tensor of gigabytes: nothing is computed with it before this.
    """
    if isinstance(content, dict | list | tuple):
        for value in content.values() if isinstance(content, dict) else content:
            check_tensors(value)
    elif isinstance(content, Tensor):
        size = content.numel() * content.element_size()
        if content.layout != torch.strided or content.untyped_storage().nbytes() < size:
            raise ValueError("it holds something else than dense tensors of numbers")
        if not content.isfinite().all():
            raise ValueError("it holds values that are not finite")


def find_checkpoint(run: Path | str | None, checkpoint: Path | str | None) -> Path:
    """Return the checkpoint that the options name: FILE itself, else best.pt of RUN or of the newest run.

    Raises UserError if RUN is no run of train.py, or if FILE is not in RUN/checkpoints/.
    """
    if run is None and checkpoint is not None:
        return Path(checkpoint)
    run = newest_run() if run is None else Path(run)
    if not is_run(run):
        raise UserError(f"there is no run of train.py in {run}: give its folder, such as runs/cifar100")
    path = run / "checkpoints" / "best.pt" if checkpoint is None else Path(checkpoint)
    if os.path.realpath(path.parent) != os.path.realpath(run / "checkpoints"):
        raise UserError(f"--checkpoint {checkpoint} is not in {run}/checkpoints: leave out --run")
    return path


def results_folder(checkpoint: Path) -> Path:
    """Return where the results of a checkpoint go: the run that it is in, else runs/<name of the file>/."""
    run = checkpoint.parent.parent
    if checkpoint.parent.name == "checkpoints" and is_run(run):
        return run
    return Path("runs") / (checkpoint.stem.strip(".") or "checkpoint")


def claim_folder(folder: Path, checkpoint: Path, sha256: str) -> None:
    """Raise UserError if a folder outside of the checkpoint's run holds a run or results of another one."""
    if folder == checkpoint.parent.parent:
        return
    files = {path for pattern in RESULTS for path in folder.glob(pattern)}
    owners = {None} if is_run(folder) or (files and not KNOWN & {path.name for path in files}) else set()
    for file in files:
        if file.name in KNOWN:
            with usable(file, "results"):
                owners.add(json.loads(read_file(file)).get("checkpoint_sha256"))
    if owners - {sha256}:
        raise UserError(f"{folder} holds results of another checkpoint than {checkpoint}: rename one of them")

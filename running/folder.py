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
import io
import json
import pickle
import shutil
import zipfile
from collections.abc import Iterator
from pathlib import Path

import torch

from running.files import UserError, whole_file

try:
    import fcntl
except ImportError:  # Windows has no fcntl: there a second training in the same folder is not noticed
    fcntl = None

# What a run consists of. config.json is deleted last: a folder without it is not known to be a run.
RUN_CONTENTS = ["checkpoints", "logs", "metrics.json", "predictions.npz", "plots", "failures", "gradcam"]
RUN_CONTENTS += ["report.html", "stress.json", "config.json"]

# What a checkpoint holds, and what --resume needs besides; history has the rows of history.csv.
CHECKPOINT_KEYS = {"model": dict, "config": dict, "epoch": int, "class_names": list}
RESUME_KEYS = {"optimizer": dict, "scaler": dict, "history": list}
HISTORY_COLUMNS = ["epoch", "image_size", "lr", "train_loss", "train_accuracy", "val_loss", "val_accuracy"]
HISTORY_COLUMNS += ["seconds", "images_per_second"]


def newest_run(parent: Path | str = "runs") -> Path:
    """Return the folder below `parent` with the newest best.pt, or raise UserError if there is none."""
    checkpoints = list(Path(parent).glob("*/checkpoints/best.pt"))
    if not checkpoints:
        raise UserError(f"there is no finished epoch of any run under {parent}/: train one first")
    return max(checkpoints, key=lambda path: path.stat().st_mtime).parent.parent


@contextlib.contextmanager
def lock_run(run: Path) -> Iterator[None]:
    """Make the folder `run` and hold it for one training; raise UserError if another training holds it.

    The lock ends with the process, however that ends. Half-written files of a killed training are deleted.
    """
    try:
        run.mkdir(parents=True, exist_ok=True)
        lock = open(run / ".lock", "w")  # noqa: SIM115
    except OSError as error:
        raise UserError(f"{run} cannot be written to ({error.strerror}): use another --out") from None
    with lock:
        try:
            if fcntl:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(f"another training is running in {run}: use another --out") from None
        except OSError:
            pass  # some network file systems have no locks
        for pattern in (".config.json.*.tmp", "logs/.*.tmp", "checkpoints/.*.tmp"):
            for leftover in run.glob(pattern):
                leftover.unlink(missing_ok=True)
        yield


def check_new_run(run: Path, overwrite: bool) -> None:
    """Raise UserError unless a training may begin in the folder `run`: new, empty, or to be overwritten.

    A folder with nothing but config.json counts as empty: that run ended before it saved a checkpoint.
    """
    paths = run.iterdir() if run.is_dir() else []
    names = {path.name for path in paths if not path.is_dir() or any(path.iterdir())} - {".lock"}
    if not names:
        return
    try:
        read_config(run)
    except UserError:
        raise UserError(f"{run} is not empty and holds no run of train.py: use another --out") from None
    if names != {"config.json"} and not overwrite:
        hint = "go on with --resume, delete it with --overwrite, or use another --out"
        raise UserError(f"{run} holds a run already: {hint}")


def remove_run(run: Path) -> None:
    """Delete what a run consists of from the folder `run`, and nothing else in it."""
    for name in RUN_CONTENTS:
        path = run / name
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)


def read_config(run: Path) -> dict:
    """Return the content of config.json, or raise UserError."""
    path = run / "config.json"
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read ({error}); is {run} a run of train.py?") from None
    if not isinstance(config, dict) or not isinstance(config.get("settings"), dict):
        raise UserError(f"{path} was not written by train.py: it has no settings")
    return config


def read_history(run: Path) -> list[dict]:
    """Return the rows of logs/history.csv with all values as floats, or raise UserError.

    A spreadsheet may have saved the file with a byte order mark and other ends of lines.
    """
    path = run / "logs" / "history.csv"
    try:
        with open(path, newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file)
            columns = reader.fieldnames or []
            rows = [{key: float(value) for key, value in row.items()} for row in reader]
    except (OSError, ValueError, TypeError, csv.Error) as error:
        raise UserError(f"{path} cannot be read ({error}); is {run} a run of train.py?") from None
    lacking = [name for name in HISTORY_COLUMNS if name not in columns]
    if lacking:
        raise UserError(f"{path} has no column {', '.join(lacking)}; is {run} a run of train.py?")
    return rows


def save_checkpoint(path: Path | str, checkpoint: dict) -> None:
    """Write a checkpoint, whole or not at all."""
    content = io.BytesIO()
    torch.save(checkpoint, content)
    with whole_file(path) as temporary:
        temporary.write_bytes(content.getbuffer())


def load_checkpoint(path: Path | str, resuming: bool = False) -> dict:
    """Return the content of a checkpoint with all tensors on the CPU; no code in the file is run.

    Raises UserError if it is damaged, or lacks a key of train.py's checkpoints or one needed for `resuming`.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            damaged = archive.testzip()  # torch.load itself does not compare the checksums
        if damaged:
            raise zipfile.BadZipFile(f"the checksum of {damaged} is wrong")
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise UserError(f"there is no checkpoint {path}") from None
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror})") from None
    except pickle.UnpicklingError:
        raise UserError(f"{path} is refused: it holds more than tensors and plain values") from None
    except Exception as error:  # zipfile and torch raise many kinds for a damaged file
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise UserError(f"{path} is damaged or no checkpoint ({reason})") from None

    keys = CHECKPOINT_KEYS | RESUME_KEYS if resuming else CHECKPOINT_KEYS
    content = checkpoint if isinstance(checkpoint, dict) else {}
    lacking = [key for key, kind in keys.items() if not isinstance(content.get(key), kind)]
    if lacking:
        raise UserError(f"{path} is no checkpoint of train.py: it lacks {', '.join(lacking)}")
    return checkpoint


def find_checkpoint(run: Path | str | None, checkpoint: Path | str | None) -> Path:
    """Return the checkpoint that the options name: FILE itself, else best.pt of RUN or of the newest run.

    Raises UserError if there is no such run, or if FILE is not in RUN/checkpoints/.
    """
    if run is None and checkpoint is not None:
        return Path(checkpoint)
    run = newest_run() if run is None else Path(run)
    if not run.is_dir():
        raise UserError(f"there is no run {run}")
    if checkpoint is None:
        return run / "checkpoints" / "best.pt"
    if Path(checkpoint).parent.resolve() != (run / "checkpoints").resolve():
        raise UserError(f"--checkpoint {checkpoint} is not in {run}/checkpoints: leave out --run")
    return Path(checkpoint)


def results_folder(run: Path | str | None, checkpoint: Path | str | None) -> Path:
    """Return where results go: to RUN, else to the run that FILE is in, else to runs/<name of FILE>."""
    path = find_checkpoint(run, checkpoint)
    if run is not None:
        return Path(run)
    return path.parent.parent if path.parent.name == "checkpoints" else Path("runs") / path.stem

"""The run folder, and the checkpoints in it.

runs/<name>/config.json           settings, data, versions and hardware
            logs/history.csv      one row for each epoch
            checkpoints/best.pt   the weights with the best validation accuracy
            checkpoints/last.pt   the weights after the last epoch, and what --resume needs besides them
            metrics.json, predictions.npz, plots/, failures/, gradcam/, report.html   from report.py
            stress.json           from stress.py

Results of a checkpoint that lies elsewhere go to runs/<name of the file>/.
"""

import contextlib
import csv
import hashlib
import io
import pickle
import warnings
import zipfile
from collections.abc import Iterator
from pathlib import Path

import torch

from running.check import CONFIG, HISTORY, check, check_checkpoint, check_stress
from running.files import UserError, check_file, locked, one_line, read_file, read_json, whole_file

# The files that the commands write into a run folder, as patterns. Nothing else in it is ever deleted but our
# own temporary files and empty folders, and config.json goes last: without it a folder is not known as a run.
PLOTS = "loss accuracy learning_rate headline_metrics worst_classes superclass_confusion confusion_matrix "
PLOTS += "reliability confidence risk_coverage deletion insertion "
PLOTS += "stress_severity stress_examples stress_radius"
FAILURES = ["failures/failures.csv", "failures/[0-9][0-9]_*_as_*.png", "gradcam/[0-9][0-9]_*_as_*.png"]
RESULTS = ["metrics.json", "predictions.npz", "stress.json", "report.html", *FAILURES]
RESULTS += [f"plots/{name}.png" for name in PLOTS.split()]
TRAINED = ["checkpoints/best.pt", "checkpoints/last.pt", "logs/history.csv", "config.json"]
RUN_FILES = [*RESULTS, *TRAINED]

# In runs/<name of a checkpoint>/: the sha256 of the checkpoint that the results are of.
ORIGIN = "checkpoint.sha256"


def newest_run(parent: Path | str = "runs") -> Path:
    """Return the folder below `parent` with the newest best.pt, or raise UserError if there is none."""
    checkpoints = list(Path(parent).glob("*/checkpoints/best.pt"))
    if not checkpoints:
        raise UserError(f"there is no finished epoch of any run under {parent}/: train one first")
    return max(checkpoints, key=lambda path: path.stat().st_mtime).parent.parent


@contextlib.contextmanager
def lock_run(run: Path, training: bool = False) -> Iterator[None]:
    """Hold the folder `run` for one command; raise UserError if another one holds it.

    A training locks the folder itself, report.py and stress.py lock plots/ in it, so that a report can be
    made while the training goes on. The folder is made if necessary, and the lock ends with the process,
    however that ends. Files that a killed command of the same kind left half written are deleted, and in the
    end the folders that were made here and are empty.
    """
    to_lock = run if training else run / "plots"
    with contextlib.ExitStack() as stack:
        try:
            for folder in reversed([to_lock, *to_lock.parents]):
                if not folder.exists():
                    folder.mkdir(exist_ok=True)
                    stack.callback(remove_empty, folder)
            stack.enter_context(locked(to_lock))
        except OSError as error:
            raise UserError(f"{run} cannot be written to ({error.strerror}): use another folder") from None
        written = TRAINED if training else [*RESULTS, ORIGIN]
        delete(run, [f"{Path(p).parent}/.{Path(p).name}.[0-9]*.tmp" for p in written])
        yield


def check_new_run(run: Path, overwrite: bool) -> None:
    """Raise UserError unless a training may begin in the folder `run`: new, empty, or to be overwritten.

    A folder with nothing but config.json counts as empty: that run ended before it saved a checkpoint.
    """
    paths = run.iterdir() if run.is_dir() else []
    names = {path.name for path in paths if not path.is_dir() or any(path.iterdir())}
    if not names:
        return
    if not is_run(run):
        raise UserError(f"{run} is not empty and holds no run of train.py: use another --out")
    if names != {"config.json"} and not overwrite:
        hint = "go on with --resume, delete it with --overwrite, or use another --out"
        raise UserError(f"{run} holds a run already: {hint}")
    if names != {"config.json"} and not names & {"checkpoints", "logs"}:
        raise UserError(
            f"{run} holds results without checkpoints/ and logs/ of a training: use another --out"
        )


def files_of(run: Path, patterns: list[str]) -> list[Path]:
    """Return the files in the folder `run` that the patterns name, but for those behind a linked folder."""
    found = [path for pattern in patterns for path in run.glob(pattern)]
    return [
        path for path in found if not path.is_dir() and (path.parent == run or not path.parent.is_symlink())
    ]


def delete(run: Path, patterns: list[str]) -> None:
    """Delete the files in the folder `run` that the patterns name."""
    for path in files_of(run, patterns):
        path.unlink(missing_ok=True)


def remove_empty(folder: Path) -> None:
    """Delete a folder if there is nothing in it, or a link to a folder."""
    with contextlib.suppress(OSError):
        folder.unlink() if folder.is_symlink() else folder.rmdir()


def remove_run(run: Path) -> None:
    """Delete the files of a run from the folder `run`, its folders where nothing else is in them, no more."""
    with lock_run(run):  # no report is being written
        delete(run, RUN_FILES)
    for name in ("checkpoints", "logs", "plots", "failures", "gradcam"):
        remove_empty(run / name)


def is_run(folder: Path) -> bool:
    """Return whether the folder holds the config.json of train.py."""
    try:
        return bool(read_config(folder))
    except UserError:
        return False


def read_config(run: Path) -> dict:
    """Return the content of config.json, or raise UserError if train.py did not write it."""
    path = run / "config.json"
    if not path.exists():
        raise UserError(f"{run} is no run of train.py: there is no {path}")
    config = read_json(path)
    check(config, CONFIG, path)
    return config


def read_history(run: Path) -> list[dict]:
    """Return the rows of logs/history.csv with all values as floats, or raise UserError.

    A spreadsheet may have saved the file with a byte order mark and other ends of lines.
    """
    path = run / "logs" / "history.csv"
    try:
        reader = csv.DictReader(io.StringIO(read_file(path).decode("utf-8-sig"), newline=""))
        lacking = [name for name in HISTORY if name not in (reader.fieldnames or [])]
        if lacking:
            raise UserError(f"{path} has no column {', '.join(lacking)}; is {run} a run of train.py?")
        rows = [{key: float(row[key]) for key in HISTORY} for row in reader]
    except (ValueError, TypeError, csv.Error) as error:
        raise UserError(f"{path} cannot be read ({one_line(error)}); is {run} a run of train.py?") from None
    check(rows, [HISTORY], path)
    return rows


def read_stress(run: Path) -> dict | None:
    """Return the content of stress.json, or None without one; raise UserError if it is none."""
    path = run / "stress.json"
    if not path.exists():
        return None
    results = read_json(path)
    check_stress(results, path)
    return results


def save_checkpoint(path: Path | str, checkpoint: dict) -> None:
    """Write a checkpoint, whole or not at all."""
    content = io.BytesIO()
    torch.save(checkpoint, content)
    with whole_file(path) as temporary:
        temporary.write_bytes(content.getbuffer())


def load_checkpoint(path: Path | str, resuming: bool = False) -> dict:
    """Return the content of a checkpoint with all tensors on the CPU, and the `sha256` of the file besides.

    No code in the file is run. Raises UserError if it is damaged, or lacks what running/check.py says that it
    holds, or for `resuming` the state of a training.
    """
    check_file(path, "checkpoint")
    try:
        # Read once: a training may put another file in its place at any moment.
        content = Path(path).read_bytes()
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            if any(member.compress_type != zipfile.ZIP_STORED for member in archive.infolist()):
                raise zipfile.BadZipFile("it is compressed, as torch.save never does")
            damaged = archive.testzip()  # torch.load itself does not compare the checksums
        if damaged:
            raise zipfile.BadZipFile(f"the checksum of {damaged} is wrong")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about kinds of tensors that are refused below
            checkpoint = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror})") from None
    except pickle.UnpicklingError:
        raise UserError(f"{path} is refused: it holds more than tensors and plain values") from None
    except Exception as error:  # zipfile and torch raise many kinds for a damaged file
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise UserError(f"{path} is damaged or no checkpoint ({reason})") from None
    check_checkpoint(checkpoint, path, resuming)
    return checkpoint | {"sha256": hashlib.sha256(content).hexdigest()}


def load_optimizer(optimizer: torch.optim.Optimizer, state: dict) -> None:
    """Load a saved state into the optimizer; raise UserError if it is of another one or of other weights."""
    kinds = [{key: type(value) for key, value in group.items()} for group in optimizer.param_groups]
    try:
        optimizer.load_state_dict(state)
        for group, expected in zip(optimizer.param_groups, kinds, strict=True):
            if {key: type(value) for key, value in group.items()} != expected:
                raise ValueError("another kind of optimizer")
        for parameter, saved in optimizer.state.items():
            for name, tensor in saved.items():
                if isinstance(tensor, torch.Tensor) and tensor.shape not in ((), parameter.shape):
                    raise ValueError(f"{name} {list(tensor.shape)} of weights {list(parameter.shape)}")
    except (AttributeError, LookupError, RuntimeError, TypeError, ValueError) as error:
        raise UserError(f"last.pt comes from another version of train.py ({error!r})") from None


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


def find_results(run: Path | str | None, checkpoint: Path | str | None) -> tuple[Path, Path]:
    """Return the checkpoint, as find_checkpoint does, and the folder that its results go to.

    That is RUN, else the run that FILE is in, else runs/<name of FILE>. Raises UserError if RUN is no run of
    train.py.
    """
    path = find_checkpoint(run, checkpoint)
    if run is None and checkpoint is not None:
        in_run = path.parent.name == "checkpoints" and is_run(path.parent.parent)
        return path, path.parent.parent if in_run else Path("runs") / path.stem
    folder = path.parent.parent if run is None else Path(run)
    read_config(folder)
    return path, folder


def claim_folder(folder: Path, checkpoint: Path, digest: str) -> None:
    """Raise UserError unless the results of the checkpoint with this sha256 may be written into the folder.

    They may into the run that it is in. Another folder must hold no run and no results, or those of this very
    checkpoint; it keeps its sha256.
    """
    if checkpoint.parent.resolve() == (folder / "checkpoints").resolve():
        return
    origin = folder / ORIGIN
    if origin.exists() and read_file(origin).decode(errors="replace").strip() == digest:
        return
    if is_run(folder) or files_of(folder, RESULTS):
        raise UserError(f"{folder} holds results of another checkpoint than {checkpoint}: rename one of them")
    with whole_file(origin) as temporary:
        temporary.write_text(f"{digest}\n", encoding="utf-8")

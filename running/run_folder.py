"""The run folder.

runs/<name>/config.json           settings, data, versions and hardware
            logs/history.csv      one row for each epoch
            checkpoints/best.pt   the weights with the best validation accuracy
            checkpoints/last.pt   the weights after the last epoch, and what --resume needs besides them
            metrics.json, predictions.npz, plots/, failures/, gradcam/, report.html   from report.py
            stress.json, stress.npz                                                   from stress.py
"""

from pathlib import Path

from running.errors import UserError
from running.files import check_file


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

"""Write the arrays and the weights of a run folder in half precision, as results/ and weights/ hold them.

    python lab/experiments/shrink.py runs/cifar100

Rounds to float16 the probabilities and logits in predictions.npz, the float32 arrays of evidence.npz, and
the weights in checkpoints/best.pt. metrics.json and reasons.json get the new digests of the arrays; their
numbers stay those of full precision. Rounded weights make a slightly different network: 4 of 10,000 answers
of the shipped one changed. So shrink a run, report on it again, and then shrink its arrays as well.
"""

import hashlib
import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from support.checkpoint import read_checkpoint, save_checkpoint
from support.console import CommandLine, run_main
from support.errors import UserError, reading
from support.files import write_text
from support.outputs import write_arrays

ARRAYS = {"predictions.npz": ("probabilities", "logits"), "evidence.npz": None}  # None: all in float32
RECORDS = ("metrics.json", "reasons.json")


def shrink_arrays(path: Path, keys: tuple[str, ...] | None) -> None:
    """Round those arrays of an .npz file that are in float32 to float16."""
    with reading(path, "arrays of a report"), np.load(path) as file:
        arrays = dict(file)
    for key, values in arrays.items():
        if values.dtype == np.float32 and (keys is None or key in keys):
            arrays[key] = values.clip(-6e4, 6e4).astype(np.float16)  # the largest is 65,504
    write_arrays(path, arrays)


def shrink_weights(path: Path) -> None:
    """Round the weights of a checkpoint to float16; one that has them so stays as it is, to the byte."""
    checkpoint = read_checkpoint(path)
    del checkpoint["sha256"]  # of the file that was read
    weights = {name: t.half() if t.is_floating_point() else t for name, t in checkpoint["model"].items()}
    if any(t.dtype != weights[name].dtype for name, t in checkpoint["model"].items()):
        save_checkpoint(path, checkpoint | {"model": weights})
        print(f"{path} has other weights now: report on the run again, then run this again")


def main(argv: list[str] | None = None) -> None:
    parser = CommandLine(__doc__)
    parser.add_argument("run", type=Path, help="a folder of train.py or of a report")
    run = parser.parse_args(argv).run
    if not run.is_dir():
        raise UserError(f"there is no folder {run}: give that of a run or of a report")
    records = {run / name: (run / name).read_text("utf-8") for name in RECORDS if (run / name).is_file()}
    for name, keys in ARRAYS.items():
        if (run / name).is_file():
            before = hashlib.sha256((run / name).read_bytes()).hexdigest()
            shrink_arrays(run / name, keys)
            after = hashlib.sha256((run / name).read_bytes()).hexdigest()
            records = {path: text.replace(before, after) for path, text in records.items()}
    for path, text in records.items():
        write_text(path, text)
    if (run / "checkpoints" / "best.pt").is_file():
        shrink_weights(run / "checkpoints" / "best.pt")


if __name__ == "__main__":
    run_main(main)

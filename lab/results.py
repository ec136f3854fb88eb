"""What lies in a folder of results, and what it is of.

metrics.json and predictions.npz are those of report.py. reasons.json and evidence.npz come from lab.examine,
stress.json and stress.npz from lab.stress. Each of the laboratory's .json files has three digests: of the
weights, `checkpoint_sha256` as in metrics.json; of the weights and how they are used, `network_sha256`; and
of the test images with their labels and class names, `test_sha256`. What else they record is text: nothing
in a file of results chooses code to run.
"""

import contextlib
import hashlib
import json
from collections.abc import Iterator
from pathlib import Path

import torch
from jinja2 import UndefinedError

import data
import report
from lab.classifier import is_own
from lab.support import (
    UserError,
    core,
    file_digest,
    one_line,
    read_arrays,
    read_json,
    reading,
    write_arrays,
    write_json,
)

# What the commands write. The first is the record: it says of which weights, or answers, the others are.
EXAMINED = [*report.FILES, "reasons.json", "evidence.npz", "answers.csv", "explore.html"]
STRESSED = ["stress.json", "stress.npz"]
# The pixels of the examples in stress.npz, and the key of stress.json that says what they are.
PIXELS = {"example_pixels": "examples", "attack_changes": "attack_examples"}


# ---- Which folder, and of what it is -----------------------------------------------------------------------


def results_folder(classifier, out: Path | None, dataset: str | None = None) -> Path:
    """Return where results go: `out`, else the run of the checkpoint, else runs/<name of weights or model>.

    Results of other images than the run's own, by --dataset or --size, have a folder beside it by default.
    """
    if out is not None:
        return out
    if classifier.training is None:
        return folder_of(classifier.name if classifier.path is None else classifier.path.stem)
    with core():
        folder = report.find_checkpoint(None, classifier.path)[1]
    name, side = folder.resolve().name, classifier.model.image_size
    if not is_own(classifier, dataset):
        name += f"-on-{Path(dataset).resolve().name}"
    if side != classifier.training["config"]["image_size"]:
        name += f"-at-{side}"
    if name != folder.resolve().name:
        folder = Path("runs") / name
        print(f"results  go to {folder}, as these images are not those of the training")
    return folder


def folder_of(name: str) -> Path:
    """Return runs/<name>. Raises UserError if that is the folder of a training, whose results are its own."""
    folder = Path("runs") / name
    if (folder / "checkpoints" / "best.pt").exists():
        raise UserError(
            f"{folder} is the folder of a training: name another one by --out, for lab.estimate by --stress"
        )
    return folder


def owner_of(path: Path) -> str | None:
    """Return the digest of the weights, or answers, that a .json file is of; None if it is no such file."""
    try:
        return read_json(path, "a record of results").get("checkpoint_sha256")
    except UserError:
        return None


def check_folder(folder: Path, digest: str, names: list[str], overwrite: bool = False) -> None:
    """Raise UserError if a command would replace files that it has not written itself of the same weights.

    names: EXAMINED or STRESSED. A folder is ours if the first of them says so, or if none of them is there.
    With `overwrite` results of other weights are replaced, but never files without a record.
    """
    owner = owner_of(folder / names[0])
    if owner not in (None, digest) and not overwrite:
        record = folder / names[0]
        raise UserError(f"{record} is of other weights or answers: use another --out, or give --overwrite")
    with core():
        report.check_folder(folder, owner or digest, names, names[0])


def claim_folder(folder: Path, digest: str, names: list[str]) -> None:
    """Write the record first, so that after a kill the folder is still ours; see check_folder."""
    if owner_of(folder / names[0]) != digest:
        write_json(folder / names[0], {"checkpoint_sha256": digest})


def digest_of(facts: list) -> str:
    """Return the digest of plain values."""
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()


def images_digest(test: data.Dataset) -> str:
    """Return images_sha256 of metrics.json; without images it is of their file names."""
    return digest_of(test.filenames) if test.images is None else data.sha256_of(test.images)


def set_digest(images_sha256: str, labels: torch.Tensor, class_names: list[str]) -> str:
    """Return the digest of test images with their labels and class names."""
    return digest_of([images_sha256, data.sha256_of(labels), class_names])


def digest_of_set(test: data.Dataset) -> str:
    """Return the digest of a test set."""
    return set_digest(images_digest(test), test.labels, test.class_names)


def digest_of_report(report_there: tuple[dict, dict]) -> str:
    """Return the digest of the test set of a report, see read_report."""
    numbers, arrays = report_there
    return set_digest(numbers["images_sha256"], arrays["y_true"], arrays["class_names"])


def identity(classifier, test: data.Dataset) -> dict:
    """Return the three digests of results of a network, a lab.classifier.Classifier, on test images."""
    model, transform = classifier.model, None
    if classifier.transform is not None:
        path = Path(classifier.transform.rpartition(":")[0])
        transform = f"{path.name}, {file_digest(path)}"
    order = list(range(classifier.num_classes)) if model.order is None else model.order.tolist()
    used = [classifier.digest, classifier.code, model.image_size, model.uncropped, transform, order]
    return {
        "checkpoint_sha256": classifier.digest,
        "network_sha256": digest_of(used),
        "test_sha256": digest_of_set(test),
    }


def is_of(path: Path, identity: dict) -> bool:
    """Return whether a .json file is there and has these digests."""
    try:
        there = read_json(path, "results")
    except UserError:
        return False
    return all(there.get(key) == digest for key, digest in identity.items())


@contextlib.contextmanager
def of_this_version(folder: Path) -> Iterator[None]:
    """Raise UserError if a page cannot be made, as files of another version lack a key."""
    try:
        yield
    except (KeyError, UndefinedError) as error:
        raise UserError(
            f"{folder} has results of another version ({one_line(error)}): run report.py, lab.examine, and "
            f"lab.stress --overwrite there anew"
        ) from error


# ---- Read and write ----------------------------------------------------------------------------------------


def read_report(folder: Path) -> tuple[dict, dict]:
    """Return metrics.json and predictions.npz of a folder, both of one report; floats are float32.

    Raises UserError if a file is missing or damaged, if the files are of two reports, as after a process that
    was killed between them, or if the run was trained further since.
    """
    path, best = folder / "metrics.json", folder / "checkpoints" / "best.pt"
    if not path.is_file():
        raise UserError(f"there is no {path}: run python report.py {folder} first")
    numbers = read_json(path, "numbers of report.py")
    arrays = read_arrays(folder / "predictions.npz", "predictions of report.py")
    with reading(path, "numbers of report.py"):
        if missing := {"checkpoint_sha256", "images_sha256", "predictions_sha256"} - numbers.keys():
            raise ValueError(f"it has no {min(missing)}, as of another version: run report.py again")
        if numbers["predictions_sha256"] != file_digest(folder / "predictions.npz"):
            raise ValueError("it is of another report than predictions.npz: run report.py again")
        # Beside weights that are not of train.py, whose digest is another, there may be a file of that name.
        if "epoch" in numbers and best.is_file() and file_digest(best) != numbers["checkpoint_sha256"]:
            raise ValueError(f"it is of other weights than {best}: run python report.py {folder} again")
    return numbers, arrays


def write_reasons(folder: Path, reasons: dict, evidence: dict | None) -> dict:
    """Write evidence.npz, or remove an old one, then reasons.json with both digests; return reasons.json."""
    path = folder / "evidence.npz"
    reasons = reasons | {"predictions_sha256": file_digest(folder / "predictions.npz")}
    if evidence is not None:
        reasons |= {"evidence_sha256": write_arrays(path, evidence)}
    write_json(folder / "reasons.json", reasons)
    if evidence is None:
        path.unlink(missing_ok=True)
    return reasons


def read_reasons(folder: Path) -> tuple[dict | None, dict | None]:
    """Return reasons.json and evidence.npz of a folder, None for a file that is not there.

    Both are left out with a note if they are about other predictions, or do not belong together, as after a
    process that was killed between the two files.
    """
    path, arrays = folder / "reasons.json", folder / "evidence.npz"
    if not path.is_file():
        return None, None
    reasons = read_json(path, "reasons of lab.examine")
    if reasons.get("predictions_sha256") != file_digest(folder / "predictions.npz"):
        print(f"note     {path} is about other predictions and left out: run lab.examine again")
        return None, None
    if "evidence_sha256" not in reasons:
        return reasons, None
    if not arrays.is_file() or file_digest(arrays) != reasons["evidence_sha256"]:
        print(f"note     {arrays} is not that of {path}, and both are left out: run lab.examine again")
        return None, None
    return reasons, read_arrays(arrays, "evidence of lab.examine")


def write_stress(folder: Path, results: dict) -> None:
    """Write what are tensors to stress.npz and the rest to stress.json.

    The tensors are results["answers"], {test: which are right, bool [N]}, and PIXELS, if there are any.
    """
    write_arrays(folder / "stress.npz", results["answers"] | {k: results[k] for k in PIXELS if k in results})
    rest = {key: results[key] for key in results if key not in ("answers", *PIXELS)}
    write_json(folder / "stress.json", rest)


def read_stress(folder: Path, owner: dict) -> dict | None:
    """Return what write_stress wrote to the folder, or None if there is nothing, or it has another owner.

    owner: the digests that stress.json should have, or some of them. Raises UserError if a file cannot be
    used, or if stress.json and stress.npz disagree.
    """
    path, what = folder / "stress.json", "results of lab.stress, which its --overwrite replaces"
    if not path.exists():
        return None
    results = read_json(path, what)
    if "tests" not in results or any(results.get(key) != owner[key] for key in owner):
        return None
    arrays = read_arrays(folder / "stress.npz", what)
    # A command that was killed between the two files has left more tests in stress.npz than in stress.json,
    # or fewer, if it was the first save of an --overwrite.
    with reading(path, what):
        if not results["tests"].keys() <= arrays.keys():
            return None
        results["answers"] = {test: arrays[test] for test in results["tests"]}
        results |= {name: arrays[name] for name, shown in PIXELS.items() if shown in results}
        for test, right in results["answers"].items():
            if int(right.sum()) / len(right) != results["tests"][test]["accuracy"]["value"]:
                raise ValueError(f"its accuracy for {test} is not that of stress.npz")
    return results

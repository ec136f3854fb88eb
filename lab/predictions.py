"""Answers without a network: a .npz or .csv file with the predictions of any framework.

Messages count rows, columns and classes from 1, but labels that are numbers from 0.
"""

import csv
import math
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

import data
from lab.pictures import Dataset, from_arrays
from lab.support import one_line, reading

ROUNDING = 0.01  # largest distance of a row's sum from 1, and of a probability from the softmax of its logits
TOLERANCE = 1e-6  # rounding in float32


def read(path: Path) -> dict:
    """Return the answers in a file of predictions, see checked. Raises UserError for what does not fit."""
    with reading(path, "predictions (docs/your_own_code.md says how to write them)"):
        if path.suffix == ".csv":
            return checked(read_csv(path))
        if path.suffix != ".npz":
            raise ValueError("its name does not end in .npz or .csv")
        return checked(read_npz(path))


def checked(arrays: dict[str, np.ndarray]) -> dict:
    """Check arrays as in an .npz file; return y_true int64 [N], logits float64 [N, C] and `notes` in a dict.

    A note is a line for people, such as that logits turned out to be probabilities, see as_logits. If the
    arrays hold them, there are also class_names, filenames, images uint8 [N, 3, S, S], and validation,
    (logits [V, C], labels [V]). Arrays of Python objects count as texts. Raises ValueError for what does not
    fit.
    """
    arrays = {key: array.astype(str) if array.dtype.kind in "OS" else array for key, array in arrays.items()}
    answers = {"notes": []}
    for key in ("class_names", "filenames"):
        if key in arrays:
            answers[key] = [one_line(name) for name in arrays[key].tolist()]
    names = answers.get("class_names", [])
    if len(set(names)) < len(names):
        raise ValueError(f"two classes have one name, expected another for each: {names}")
    answers["logits"] = logits_in(arrays, "", answers["notes"])
    count, num_classes = answers["logits"].shape
    for key, expected in {"class_names": num_classes, "filenames": count}.items():
        if key in answers and len(answers[key]) != expected:
            raise ValueError(f"it has {len(answers[key])} {key}, expected {expected}")
    answers["y_true"] = labels_in(arrays, "y_true", names, count, num_classes)
    if any(key.startswith("val_") for key in arrays):
        logits = logits_in(arrays, "val_", answers["notes"])
        if logits.shape[1] != num_classes:
            raise ValueError(f"its validation has {logits.shape[1]} classes, expected {num_classes}")
        answers["validation"] = logits, labels_in(arrays, "val_y_true", names, *logits.shape)
    if "images" in arrays:
        answers["images"] = arrays["images"]
    return answers


def test_set_of(answers: dict) -> Dataset:
    """Return the test set of answers, see checked; its images are None if there are none."""
    y_true, filenames = answers["y_true"], answers.get("filenames")
    class_names = answers.get("class_names") or [f"class {c}" for c in range(answers["logits"].shape[1])]
    if "images" in answers:
        return from_arrays(answers["images"], y_true, class_names, "test images", filenames)
    names = filenames or [str(i) for i in range(len(y_true))]
    return Dataset("test images", None, y_true, class_names, names)


def check_dataset(answers: dict, test: data.Dataset, name: str) -> None:
    """Raise ValueError, in one line, unless the answers are to the images of `test` in their order.

    answers: see checked; name: what people call the data set. The classes and all labels are compared, and
    the file names where both have them; one of two names may begin with folders that the other leaves out.
    """
    labels, names = answers["y_true"], answers.get("class_names", test.class_names)
    if names != test.class_names or answers["logits"].shape[1] != len(names):
        raise ValueError(f"its classes are not those of {name} in their order")
    if len(labels) != len(test.labels):
        raise ValueError(f"it has {len(labels)} answers, but {name} has {len(test.labels)} test images")
    if not torch.equal(labels, test.labels):
        row = (labels != test.labels).nonzero()[0].item()
        raise ValueError(
            f"y_true of row {row + 1} is {names[labels[row]]!r}, but that image of {name} is of "
            f"{names[test.labels[row]]!r}: expected its images in their order"
        )
    numbers = [str(i) for i in range(len(labels))]  # these stand for missing file names
    if numbers in (answers.get("filenames", numbers), test.filenames):
        return
    for row, (ours, theirs) in enumerate(zip(answers["filenames"], test.filenames, strict=True), start=1):
        path, other = f"/{ours}".replace("\\", "/"), f"/{theirs}"
        if not path.endswith(other) and not other.endswith(path):
            raise ValueError(
                f"the file name of row {row} is {ours!r}, but that image of {name} is {theirs!r}: "
                f"expected its images in their order"
            )


# ---- Logits or probabilities? ----------------------------------------------------------------------------


def kind_of(scores: Tensor) -> str:
    """Return whether all scores, float [N, C], are "probabilities", "percent", or else "logits".

    Probabilities are from 0 to 1, and each row sums to 1 within 0.01. If all have two decimals or more, and
    no more than five, a sum may be off by C / 2 units of the last decimal, as far as rounding can take it.
    Percent are 100 times that.
    """
    for kind, whole in (("probabilities", 1), ("percent", 100)):
        shares = scores.double() / whole
        sums = shares.sum(dim=1)
        if shares.min() < -TOLERANCE or shares.max() > 1 + TOLERANCE or sums.min() <= 0:
            continue
        off = (sums - 1).abs().max().item() - TOLERANCE
        if off <= max(ROUNDING, scores.shape[1] / 2 * last_decimal(shares)):
            return kind
    return "logits"


def last_decimal(shares: Tensor) -> float:
    """Return 0.01 if all numbers have two decimals, down to 0.00001 for five; 0 for fewer or more."""
    for decimals in range(1, 6):
        if (shares - shares.round(decimals=decimals)).abs().max() < TOLERANCE:
            return 10**-decimals if decimals > 1 else 0.0
    return 0.0


def as_logits(scores: Tensor, name: str = "the scores") -> tuple[Tensor, str | None]:
    """Return scores as logits, float64 [N, C], and a note for people if they were something else, else None.

    Probabilities and percent, see kind_of, are divided by the sum of their row, and the logarithm is taken.
    Rounding makes small probabilities 0. They share what it took from the sum of their row, so that a single
    true class of "probability 0" does not decide the temperature.
    """
    kind = kind_of(scores)
    if kind == "logits":
        return scores, None
    shares = scores / (100 if kind == "percent" else 1)
    unit, zeros = last_decimal(shares), shares <= 0
    lost = (1 - shares.sum(dim=1, keepdim=True)) / zeros.sum(dim=1, keepdim=True).clamp(min=1)
    lost = lost.clamp(unit / shares.shape[1], unit / 2).clamp(min=torch.finfo(torch.float64).tiny)
    shares = torch.where(zeros, lost, shares)
    logits = (shares / shares.sum(dim=1, keepdim=True)).log()
    return logits, f"{name} are {kind}: each row is divided by its sum, and the logarithm is taken"


def why_logits(scores: Tensor) -> str:
    """Return the cell or the row that keeps scores [N, C] from being probabilities or percent, in words."""
    if scores.min() < 0:
        row, column = divmod(scores.argmin().item(), scores.shape[1])
        return f"column {column + 1} of row {row + 1} is {scores.min():g}"
    sums = scores.sum(dim=1)
    row = torch.minimum((sums - 1).abs(), (sums - 100).abs()).argmax().item()
    return f"row {row + 1} sums to {sums[row]:g}"


def logits_in(arrays: dict, prefix: str, notes: list[str]) -> Tensor:
    """Return the logits, float64 [N, C], from the arrays with a prefix; add a note if they were others.

    They are those in `logits`; if there are `probabilities` as well, the two have to agree.
    """
    keys = [key for key in (f"{prefix}logits", f"{prefix}probabilities") if key in arrays]
    if not keys:
        raise ValueError(f"it has no {prefix}probabilities and no {prefix}logits")
    tables = [scores_in(arrays, key) for key in keys]
    kinds = [kind_of(table) for table in tables]
    if keys[-1].endswith("probabilities") and kinds[-1] == "logits":
        raise ValueError(
            f"{keys[-1]} do not sum to 1 in each row, {why_logits(tables[-1])}: "
            f"mend them, or call them {prefix}logits"
        )
    logits, note = as_logits(tables[0], keys[0])
    if keys[0] != f"{prefix}{kinds[0]}":
        notes.append(note)
    if len(keys) == 2:
        shares = tables[1] / (100 if kinds[1] == "percent" else 1)
        if logits.shape != shares.shape or (logits.softmax(dim=1) - shares).abs().max() > ROUNDING:
            raise ValueError(f"{keys[0]} and {keys[1]} disagree: leave out the wrong ones")
    return logits


def scores_in(arrays: dict, key: str) -> Tensor:
    """Return an array of scores as float64 [N, C]."""
    scores = arrays[key]
    if scores.dtype.kind != "f" or scores.ndim != 2 or min(scores.shape) == 0 or scores.shape[1] < 2:
        raise ValueError(f"{key} are {scores.dtype} {list(scores.shape)}, expected float [N, C]")
    scores = torch.from_numpy(scores.astype(np.float64))
    if not scores.isfinite().all():
        row, column = (~scores.isfinite()).nonzero()[0].tolist()
        raise ValueError(f"{key} are not all finite: column {column + 1} of row {row + 1} is not")
    return scores


# ---- Labels ----------------------------------------------------------------------------------------------


def labels_in(arrays: dict, key: str, names: list[str], count: int, num_classes: int) -> Tensor:
    """Return labels, int64 [count]: an array of numbers, or of texts that are all names or all numbers."""
    if key not in arrays:
        raise ValueError(f"it has no {key}")
    labels = arrays[key]
    if labels.dtype.kind not in "iufU" or labels.shape != (count,):
        raise ValueError(
            f"{key} is {labels.dtype} {list(labels.shape)}, expected whole numbers or names [{count}]"
        )
    labels = labels.tolist()
    readings = [[class_number(label, num_classes) for label in labels]]
    if isinstance(labels[0], str):
        class_of = {name: c for c, name in enumerate(names)}
        readings.append([class_of.get(one_line(label)) for label in labels])
    complete = [classes for classes in readings if None not in classes]
    if len(complete) == 2 and complete[0] != complete[1]:
        raise ValueError(
            f"{key} fits the names of the classes and their numbers from 0: "
            f"use names that are no numbers, or whole numbers in an .npz"
        )
    if not complete:
        row = min(readings, key=lambda classes: classes.count(None)).index(None)
        or_a_name = f", or in each row a name such as {names[0]!r}" if names else ""
        raise ValueError(
            f"row {row + 1} of {key} is {labels[row]!r}, "
            f"expected in each row a number from 0 to {num_classes - 1}{or_a_name}"
        )
    return torch.tensor(complete[0])


def class_number(label: str | float, num_classes: int) -> int | None:
    """Return a label such as 3, 3.0 or "3" as the number of a class, or None."""
    try:
        number = float(label)
    except ValueError:
        return None
    return int(number) if number.is_integer() and 0 <= number < num_classes else None


# ---- Files -----------------------------------------------------------------------------------------------


def read_npz(path: Path) -> dict[str, np.ndarray]:
    """Return the arrays of an .npz file; in Python objects only texts, numbers and containers are read."""
    arrays = {}
    with np.load(path) as content:
        for key in content.files:
            try:
                arrays[key] = content[key]
            except ValueError:  # Python objects, such as class_names=table.columns, lie there as a pickle
                with content.zip.open(f"{key}.npy") as file:
                    np.lib.format.read_magic(file)
                    np.lib.format.read_array_header_1_0(file)
                    arrays[key] = data.DataUnpickler(file).load()
    return arrays


def read_csv(path: Path) -> dict[str, np.ndarray]:
    """Return arrays as in an .npz file: y_true, `filename` if there is one, and a column for each class."""
    with open(path, newline="", encoding="utf-8-sig") as file:
        head, *rows = [row for row in csv.reader(file, skipinitialspace=True) if row] or [[]]
    head = [cell.strip() for cell in head]
    if not rows or "y_true" not in head:
        raise ValueError("it has no rows below a head such as y_true,cat,dog with commas")
    if len(set(head)) < len(head):
        raise ValueError(f"two columns have one name, expected another for each: {head}")
    for number, row in enumerate(rows, start=1):
        if len(row) != len(head):
            raise ValueError(f"row {number} has {len(row)} cells, expected {len(head)} for its head {head}")
    columns = dict(zip(head, zip(*rows, strict=True), strict=True))
    arrays = {"y_true": columns.pop("y_true")}
    if "filename" in columns:
        arrays["filenames"] = columns.pop("filename")
    arrays["class_names"] = list(columns)
    arrays["probabilities"] = probabilities_in(columns, arrays["y_true"])
    return {key: np.array(values) for key, values in arrays.items()}


def probabilities_in(columns: dict[str, tuple[str, ...]], labels: tuple[str, ...]) -> np.ndarray:
    """Return the columns of a table as probabilities, float64 [N, C]; raise ValueError if they are others."""
    names = list(columns)
    numbers = [numbers_of_column(name, cells) for name, cells in columns.items()]
    if len(numbers) < 2:
        raise ValueError(f"it takes {names} for classes, expected a column for each of two or more")
    table = torch.tensor(numbers, dtype=torch.float64).T
    if kind_of(table) == "logits":
        raise ValueError(
            f"it takes {names} for classes, but {why_logits(table)}: "
            f"expected probabilities that sum to 1, and no other columns"
        )
    for name, column in zip(names, numbers, strict=True):
        if not any(column) and name not in labels:
            raise ValueError(
                f"it takes {names} for classes, but {name!r} is 0 in each row: "
                f"leave it out if it is no class, else save an .npz"
            )
    return table.numpy()


def numbers_of_column(name: str, cells: tuple[str, ...]) -> list[float]:
    """Return the finite numbers in a column of a table."""
    numbers = []
    for row, cell in enumerate(cells, start=1):
        try:
            numbers.append(float(cell))
        except ValueError:
            numbers.append(math.nan)
        if not math.isfinite(numbers[-1]):
            raise ValueError(f"column {name!r} of row {row} is {cell!r}, expected a number")
    return numbers

"""Answers without a network: a file of what any framework predicted, .npz or .csv."""

import csv
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from support.errors import one_line, reading

ROUNDING = 0.01  # how far a sum of probabilities that were rounded may be from 1


def read(path: Path) -> dict:
    """Return what a file of predictions holds, see checked. Raises UserError for what does not fit."""
    with reading(path, "predictions (docs/your_own_code.md says how to write them)"):
        if path.suffix == ".csv":
            return checked(read_csv(path))
        if path.suffix != ".npz":
            raise ValueError("its name does not end in .npz or .csv")
        with np.load(path) as content:
            return checked({key: content[key] for key in content.files})


def checked(given: dict[str, np.ndarray]) -> dict:
    """Return y_true int64 [N] and logits float64 [N, C] of arrays as in an .npz file, and what else is there.

    Of probabilities the logits are the logarithms. Else there may be class_names, filenames, images uint8
    [N, 3, S, S], and validation, (logits [V, C], labels [V]). Raises ValueError for what does not fit.
    """
    found = {}
    for key in ("class_names", "filenames"):
        if key in given:
            found[key] = [one_line(name) for name in given[key].tolist()]
    names = found.get("class_names", ())
    if len(set(names)) < len(names):
        raise ValueError(f"two classes have one name, expected another for each: {names}")
    found["logits"] = logits_in(given, "")
    found["y_true"] = labels_in(given, "y_true", *found["logits"].shape)
    count, num_classes = found["logits"].shape
    if any(key.startswith("val_") for key in given):
        logits = logits_in(given, "val_")
        if logits.shape[1] != num_classes:
            raise ValueError(f"its validation has {logits.shape[1]} classes, expected {num_classes}")
        found["validation"] = logits, labels_in(given, "val_y_true", *logits.shape)
    for key, expected in {"class_names": num_classes, "filenames": count}.items():
        if key in found and len(found[key]) != expected:
            raise ValueError(f"it has {len(found[key])} {key}, expected {expected}")
    if "images" in given:
        found["images"] = given["images"]
    return found


def read_csv(path: Path) -> dict[str, np.ndarray]:
    """Return arrays as in an .npz file: y_true, `filename` if there is one, and a column for each class."""
    with open(path, newline="", encoding="utf-8-sig") as file:
        rows = csv.DictReader(file)
        names = [head for head in rows.fieldnames or [] if head not in ("y_true", "filename")]
        table = list(rows)
    if not table or "y_true" not in table[0]:
        raise ValueError("it has no rows below a head such as y_true,cat,dog with commas")
    labels, probabilities = [], []
    for number, row in enumerate(table, start=1):
        label = row["y_true"]
        try:
            # A label that is the head of a column is a name, else a number.
            labels.append(names.index(label) if label in names else int(label))
            probabilities.append([float(row[name]) for name in names])
            if None in row:  # where csv puts what is beyond the head
                raise ValueError
        except (TypeError, ValueError) as error:
            expected = "expected for y_true a class or its number, and for each class a number"
            raise ValueError(f"row {number} does not fit its head {rows.fieldnames}: {expected}") from error
    given = {"y_true": labels, "probabilities": probabilities, "class_names": names}
    if "filename" in table[0]:
        given["filenames"] = [row["filename"] for row in table]
    return {key: np.array(values) for key, values in given.items()}


def logits_in(given: dict, prefix: str) -> Tensor:
    """Return `logits`, or the logarithms of `probabilities`, of arrays whose names have a prefix."""
    name = next((f"{prefix}{key}" for key in ("logits", "probabilities") if f"{prefix}{key}" in given), None)
    if name is None:
        raise ValueError(f"it has no {prefix}probabilities and no {prefix}logits")
    scores = given[name]
    if scores.dtype.kind != "f" or scores.ndim != 2 or min(scores.shape) == 0 or scores.shape[1] < 2:
        raise ValueError(f"{name} are {scores.dtype} {list(scores.shape)}, expected float [N, C]")
    scores = torch.from_numpy(scores.astype(np.float64))
    if not scores.isfinite().all():
        raise ValueError(f"{name} are not all finite")
    if name.endswith("logits"):
        return scores
    away = (scores.sum(dim=1) - 1).abs().max().item()
    if scores.min() < 0 or away > ROUNDING:
        columns = "of a .csv all columns but y_true and filename"
        raise ValueError(f"{name} do not sum to 1 in each row ({columns}): mend them, or call them logits")
    return scores.clamp(min=torch.finfo(torch.float64).tiny).log()


def labels_in(given: dict, name: str, count: int, num_classes: int) -> Tensor:
    """Return labels, int64 [count], from 0 to num_classes - 1."""
    if name not in given:
        raise ValueError(f"it has no {name}")
    labels = given[name]
    if labels.dtype.kind not in "iu" or labels.shape != (count,):
        raise ValueError(f"{name} is {labels.dtype} {list(labels.shape)}, expected whole numbers [{count}]")
    if labels.min() < 0 or labels.max() >= num_classes:
        found = f"from {labels.min()} to {labels.max()}"
        raise ValueError(f"{name} goes {found}, expected 0 to {num_classes - 1}")
    return torch.from_numpy(labels.astype(np.int64))

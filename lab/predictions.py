"""Answers without a network: a .npz or .csv file with the predictions of any framework.

Messages count rows, columns and classes from 1, but labels that are numbers from 0.
"""

import csv
import itertools
import re
from array import array
from collections import Counter
from collections.abc import Iterable
from operator import itemgetter
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

import data
from lab.pictures import Dataset, from_arrays
from lab.support import one_line, reading

SCORES = ("logits", "probabilities", "val_logits", "val_probabilities")
ROUNDING = 0.01  # largest distance of a row's sum from 1, and of a probability from the softmax of its logits
TOLERANCE = 1e-6  # rounding in float32
PREFIX = re.compile(r"(prob|proba|probability|logit|logits)[_. ]", re.IGNORECASE)  # of a column of scores
BELOW = 1e4  # so far below the largest logit of its row is that of probability 0


def read(path: Path) -> dict:
    """Return the answers in a file of predictions, see checked. Raises UserError for what does not fit."""
    with reading(path, "predictions (lab/README.md says how to write them)"):
        suffix = path.suffix.lower()
        if suffix not in (".npz", ".csv", ".tsv"):
            raise ValueError("its name does not end in .npz, .csv or .tsv")
        arrays, notes = (read_npz(path), []) if suffix == ".npz" else read_table(path)
        answers = checked(arrays)
        return answers | {"notes": notes + answers["notes"]}


def checked(arrays: dict[str, np.ndarray | Tensor]) -> dict:
    """Check arrays as in an .npz file; return y_true int64 [N], logits [N, C] and `notes` in a dict.

    Scores are float64 where they were, else float32. A note is a line for people, see noticed. If the arrays
    hold them, there are also probabilities [N, C], class_names, filenames, images uint8 [N, 3, S, S], and
    validation, (logits [V, C], labels [V]). Arrays of Python objects count as texts. Raises ValueError for
    what does not fit.
    """
    arrays = {key: as_array(values) for key, values in arrays.items()}
    answers, tables = {}, {}
    for key in ("class_names", "filenames"):
        if key in arrays:
            answers[key] = [one_line(name) for name in arrays[key].tolist()]
    names = answers.get("class_names", [])
    if len(set(names)) < len(names):
        raise ValueError(f"two classes have one name, expected another for each: {names}")
    for key in SCORES:
        if key in arrays:
            scores = scores_in(arrays, key)
            tables[key] = scores, kind_of(scores)
    answers["logits"], probabilities = logits_in(tables, "")
    if probabilities is not None:
        answers["probabilities"] = probabilities
    count, num_classes = answers["logits"].shape
    for key, expected in {"class_names": num_classes, "filenames": count}.items():
        if key in answers and len(answers[key]) != expected:
            raise ValueError(f"it has {len(answers[key])} {key}, expected {expected}")
    answers["y_true"] = labels_in(arrays, "y_true", names, count, num_classes)
    if any(key.startswith("val_") for key in arrays):
        logits, _ = logits_in(tables, "val_")
        if logits.shape[1] != num_classes:
            raise ValueError(f"its validation has {logits.shape[1]} classes, expected {num_classes}")
        answers["validation"] = logits, labels_in(arrays, "val_y_true", names, *logits.shape)
    if "images" in arrays:
        answers["images"] = arrays["images"]
    return answers | {"notes": noticed(arrays, tables, answers)}


def as_array(values: np.ndarray | Tensor) -> np.ndarray:
    """Return a NumPy array; Python objects become texts."""
    if isinstance(values, Tensor):
        values = values.detach().cpu()
        values = values.float() if values.dtype == torch.bfloat16 else values
    values = np.asarray(values)
    return values.astype(str) if values.dtype.kind in "OS" else values


def noticed(arrays: dict, tables: dict, answers: dict) -> list[str]:
    """Return what is odd about answers that can be used, a line each; see checked."""
    notes, names, y_true = [], answers.get("class_names", []), answers["y_true"]
    for key, (scores, kind) in tables.items():
        sums = scores.sum(dim=1, dtype=torch.float64)
        if kind == "logits" and scores.min() >= 0 and scores.max() <= 1:
            notes.append(f"all {key} lie in 0 to 1: are these probabilities? Logits are expected")
        if kind not in ("logits", key.removeprefix("val_")):
            notes.append(f"{key} are {kind}, and are taken as such")
        whole = 100 if kind == "percent" else 1
        if kind != "logits" and (sums - whole).abs().max() > 0.002 * whole:
            notes.append(f"rows of {key} sum to {sums.min():.4g} to {sums.max():.4g}: they are made {whole}")
    if "y_pred" in arrays:
        logits = answers["logits"]
        y_pred = labels_in(arrays, "y_pred", names, *logits.shape)
        other = int((logits.gather(1, y_pred[:, None])[:, 0] < logits.amax(dim=1)).sum())
        if other:
            notes.append(
                f"y_pred is not the class of the highest score in {other} rows of {len(logits)}: scores count"
            )
    labels, numbers = arrays["y_true"], torch.tensor(numbers_in_names(names))
    if labels.ndim == 1 and len(numbers) and (numbers.diff() < 0).any():
        row = int((numbers[y_true] != y_true).int().argmax())
        notes.append(
            f"the numbers of the classes do not ascend: label {labels[row]} is {names[y_true[row]]!r}"
        )
    elif labels.dtype.kind in "iu" and names and all(name.isdecimal() for name in names):
        row = int((numbers != torch.arange(len(names))).int().argmax())
        if row != numbers[row]:
            notes.append(f"labels count classes from 0, so label {row} is class {names[row]!r}")
    filename, times = Counter(answers.get("filenames", [""])).most_common(1)[0]
    if times > 1:
        notes.append(f"{filename!r} and perhaps other filenames stand in several rows: {times} times")
    return notes


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
    num_classes = answers["logits"].shape[1]
    if num_classes != len(test.class_names):
        raise ValueError(f"it has {num_classes} classes, but {name} has {len(test.class_names)}")
    for ours, theirs in zip(names, test.class_names, strict=True):
        if ours != theirs:
            raise ValueError(f"its class {ours!r} stands where {name} has {theirs!r}: expected one order")
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
    scores = scores.detach().cpu()  # not every device has float64
    for kind, whole in (("probabilities", 1), ("percent", 100)):
        if scores.min() < -TOLERANCE * whole or scores.max() > (1 + TOLERANCE) * whole:
            continue
        sums = scores.sum(dim=1, dtype=torch.float64) / whole
        off = (sums - 1).abs().max().item() - TOLERANCE
        if sums.min() <= 0:
            continue
        if off <= ROUNDING or off <= scores.shape[1] / 2 * last_decimal(scores.double() / whole):
            return kind
    return "logits"


def last_decimal(shares: Tensor) -> float:
    """Return 0.01 if all numbers have two decimals, down to 0.00001 for five; 0 for fewer or more."""
    for decimals in range(1, 6):
        parts = shares.split(1000)  # most answers are told apart by the first of them
        if all((part - part.round(decimals=decimals)).abs().max() < TOLERANCE for part in parts):
            return 10**-decimals if decimals > 1 else 0.0
    return 0.0


def as_probabilities(scores: Tensor, kind: str) -> Tensor:
    """Return probabilities or percent [N, C], see kind_of, as probabilities of the same dtype.

    A row that sums to 1 keeps its numbers. Where rounding took something from the sum its zeros share it, up
    to half a unit of the last decimal; what is off then, the division by the sum mends.
    """
    shares = scores.clamp(min=0)
    if kind == "percent":
        shares /= 100
    sums = shares.sum(dim=1, keepdim=True, dtype=torch.float64)
    if ((sums - 1).abs() > TOLERANCE).any():
        zeros = shares == 0
        lost = (1 - sums) / zeros.sum(dim=1, keepdim=True).clamp(min=1)
        shares = torch.where(zeros, lost.clamp(0, last_decimal(shares) / 2).to(shares.dtype), shares)
        sums = shares.sum(dim=1, keepdim=True, dtype=torch.float64)
        shares /= torch.where((sums - 1).abs() > TOLERANCE, sums, 1)
    return shares


def as_logits(probabilities: Tensor, least: float = 0.0) -> Tensor:
    """Return the logarithms of probabilities [N, C], none below `least`; that of 0 is finite, see BELOW."""
    logits = probabilities.clamp(min=least).log()
    return torch.where(logits == -torch.inf, logits.amax(dim=1, keepdim=True) - BELOW, logits)


def why_logits(scores: Tensor) -> str:
    """Return what keeps scores [N, C] from being probabilities or percent, in words."""
    sums = scores.sum(dim=1)
    row = (sums - sums.median()).abs().argmax().item()
    return f"row {row + 1} sums to {sums[row]:g}, and numbers are from {scores.min():g} to {scores.max():g}"


def logits_in(tables: dict[str, tuple[Tensor, str]], prefix: str) -> tuple[Tensor, Tensor | None]:
    """Return logits [N, C] and, if these were no logits, their probabilities, else None.

    tables: {name: (scores, kind)}. The first whose name has the prefix counts; if there are logits and
    probabilities, the two have to agree. For a validation a zero is 1/C of a unit of the last decimal, or of
    the smallest number if decimals do not end: else a single true class of "probability 0" would decide the
    temperature.
    """
    keys = [key for key in (f"{prefix}logits", f"{prefix}probabilities") if key in tables]
    if not keys:
        raise ValueError(f"it has no {prefix}probabilities and no {prefix}logits")
    (scores, kind), (last, last_kind) = tables[keys[0]], tables[keys[-1]]
    if keys[-1].endswith("probabilities") and last_kind == "logits":
        raise ValueError(
            f"{keys[-1]} do not sum to 1 in each row, {why_logits(last)}: "
            f"mend them, or call them {prefix}logits"
        )
    logits, probabilities = scores, None
    if kind != "logits":
        probabilities, least = as_probabilities(scores, kind), 0.0
        if prefix == "val_":
            shares = scores / (100 if kind == "percent" else 1)
            least = (last_decimal(shares) or shares.where(shares > 0, 1).min().item()) / shares.shape[1]
        logits = as_logits(probabilities, least)
    if len(keys) == 2:
        shares = as_probabilities(last, last_kind)
        if logits.shape != shares.shape or (logits.softmax(dim=1) - shares).abs().max() > ROUNDING:
            raise ValueError(f"{keys[0]} and {keys[1]} disagree: leave out the wrong ones")
    return logits, probabilities


def scores_in(arrays: dict, key: str) -> Tensor:
    """Return an array of scores as float32 or float64 [N, C]; a single column is that of the second class."""
    scores = arrays[key]
    if scores.ndim == 1:
        scores = scores[:, None]
    if scores.dtype.kind not in "fiub" or scores.ndim != 2 or min(scores.shape) == 0:
        raise ValueError(f"{key} are {scores.dtype} {list(arrays[key].shape)}, expected float [N, C]")
    scores = torch.from_numpy(scores.astype(np.result_type(scores, np.float32), copy=False))
    if scores.shape[1] == 1:
        shares = key.endswith("probabilities") or (scores.min() >= 0 and scores.max() <= 1)
        scores = torch.cat([1 - scores if shares else torch.zeros_like(scores), scores], dim=1)
    if not key.endswith("probabilities") and scores.min() == -torch.inf:  # classes that are masked
        scores = scores.where(scores != -torch.inf, scores.amax(dim=1, keepdim=True) - BELOW)
    if not scores.isfinite().all():
        row, column = (~scores.isfinite()).nonzero()[0].tolist()
        raise ValueError(f"{key} are not all finite: column {column + 1} of row {row + 1} is not")
    return scores


# ---- Labels ----------------------------------------------------------------------------------------------


def labels_in(arrays: dict, key: str, names: list[str], count: int, num_classes: int) -> Tensor:
    """Return labels, int64 [count], from numbers, one-hot rows, or texts that are all names or all numbers.

    Numbers are the places of classes from 0. In texts they are those at the end of the names, such as 10 in
    class_10, where these do not ascend.
    """
    if key not in arrays:
        raise ValueError(f"it has no {key}")
    labels = arrays[key]
    if labels.shape == (count, num_classes) and labels.dtype.kind in "iufb":
        one_hot = (labels != 0).sum(axis=1) == 1
        labels = labels.argmax(axis=1) if one_hot.all() and labels.max() == 1 else labels
    if labels.dtype.kind not in "iufbU" or labels.size != count or labels.shape[0] != count:
        raise ValueError(
            f"{key} is {labels.dtype} {list(labels.shape)}, expected whole numbers or names [{count}]"
        )
    labels = labels.ravel().tolist()
    readings = [numbered(labels, range(num_classes))]
    if isinstance(labels[0], str):
        numbers = numbers_in_names(names)
        by_number = numbered(labels, numbers)
        if None not in by_number and numbers != sorted(numbers):
            return torch.tensor(by_number)
        alike = plain_name if len({*map(plain_name, names)}) == len(names) else one_line
        class_of = {alike(name): c for c, name in enumerate(names)}
        readings += [by_number, [class_of.get(alike(label)) for label in labels]]
    complete = [classes for classes in readings if None not in classes]
    if any(classes != complete[0] for classes in complete):
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


def plain_name(name: str) -> str:
    """Return the name of a class as names are compared: "Aquarium_fish" as "aquarium fish"."""
    return one_line(name).replace("_", " ").casefold()


def numbered(labels: list, numbers: list[int] | range) -> list[int | None]:
    """Return the places in `numbers` of labels such as 3, 3.0 or "3"; None for another label."""
    place_of, places = {number: place for place, number in enumerate(numbers)}, []
    for label in labels:
        try:
            places.append(place_of.get(float(label)))
        except ValueError:
            places.append(None)
    return places


def numbers_in_names(names: list[str]) -> list[int]:
    """Return [0, 1, 10] for class_0, class_1, class_10: names that differ by the number at their end."""
    matches = [re.fullmatch(r"(.*?)(\d+)", name) for name in names]
    if None in matches or len({match[1] for match in matches}) > 1:
        return []
    return [int(match[2]) for match in matches]


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


def read_table(path: Path) -> tuple[dict, list[str]]:
    """Return arrays as in an .npz file, and notes, from a table: y_true, a column for each class, filename.

    The text is UTF-8 or UTF-16; commas, semicolons, tabs or spaces stand between its cells. Row numbers, in a
    column without a head, are left out. If some columns begin with prob_ or logit_, these are the classes.
    """
    with open(path, "rb") as file:
        encoding = "utf-16" if file.read(2) in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig"
    with open(path, newline="", encoding=encoding) as file:
        line = next(filter(str.strip, file), "")
        for mark in ",;\t ":
            head = [cell.strip() for cell in next(csv.reader([line], delimiter=mark), [])]
            if "y_true" in head:
                break
        rows = filter(None, csv.reader(file, delimiter=mark, skipinitialspace=mark != " "))
        first = next(rows, None)
        if first is None or "y_true" not in head:
            raise ValueError("it has no rows below a head such as y_true,cat,dog")
        if len(first) == len(head) + 1:  # as R writes the names of rows
            head = ["", *head]
        return columns_of(head, itertools.chain([first], rows))


def columns_of(head: list[str], rows: Iterable[list[str]]) -> tuple[dict, list[str]]:
    """Return the columns of a table as arrays, and notes; see read_table."""
    if len(set(head)) < len(head):
        raise ValueError(f"two columns have one name, expected another for each: {head}")
    texts = {name: [] for name in ("y_true", "y_pred", "filename") if name in head}
    names = [name for name in head if name not in ("", *texts) and not name.startswith("Unnamed:")]
    prefix = next((match[0] for name in names if (match := PREFIX.match(name))), "")
    classes, others = [], []
    for name in names:
        (classes if name.startswith(prefix) else others).append(name)
    if len(classes) < 2:
        raise ValueError(f"it takes {classes} for classes, expected a column for each of two or more")
    pick, values = itemgetter(*map(head.index, classes)), array("d")
    for number, row in enumerate(rows, start=1):
        if len(row) != len(head):
            raise ValueError(f"row {number} has {len(row)} cells, expected {len(head)} for its head {head}")
        for name, column in texts.items():
            column.append(row[head.index(name)])
        try:
            values.extend(numbers_in(pick(row)))
        except ValueError as error:
            raise ValueError(f"row {number}: {error}, expected numbers in the columns {classes}") from error
    scores, notes = torch.frombuffer(values, dtype=torch.float64).view(-1, len(classes)), []
    if others:
        notes.append(f"the columns {others} are left out, as they do not begin with {prefix}")
    key = "probabilities"
    if kind_of(scores) == "logits":
        key, why = "logits", why_logits(scores)
        num_whole = (scores == scores.round()).all(dim=0).sum()  # of all columns, or one may be an id
        if scores.min() >= 0 or 0 < num_whole < len(classes):
            raise ValueError(
                f"it takes {classes} for classes, but {why}: "
                f"expected probabilities that sum to 1, or logits, and no other columns such as an id"
            )
        notes.append(f"{classes} are taken as logits, as {why}")
    arrays = {key: scores, "class_names": [name.removeprefix(prefix) for name in classes]}
    arrays |= {"filenames" if name == "filename" else name: column for name, column in texts.items()}
    return arrays, notes


def numbers_in(cells: tuple[str, ...]) -> array:
    """Return the numbers in the cells of a row, also such as 0,25 and 12.3%."""
    try:
        return array("d", map(float, cells))
    except ValueError:
        return array("d", [float(cell.replace(",", ".").rstrip("% ")) for cell in cells])

"""The forty pictures to label, to_label.csv: the draw, its rows, and doubts about what is filled in."""

import math
from pathlib import Path

import torch
from torch import Tensor

from data import UserError, printable
from lab.tables import as_written, class_numbers, read_table, write_csv

NUM_LABELLED = 40  # Wilson's interval of so many is at most 15 points to either side
OTHER = -2  # the label of a picture of none of the classes, in to_label.csv "other"


def draw(count: int) -> Tensor:
    """Return the places of the pictures to label, of `count`, int64; the first of them are a sample too."""
    # Another seed than that of own_statistics: the pictures are to be of all of its batches.
    return torch.randperm(count, generator=torch.Generator().manual_seed(1))[:NUM_LABELLED]


def read(path: Path, filenames: list[str]) -> tuple[dict[str, list[str]], list[str]]:
    """Return the columns of a to_label.csv in the order of the pictures, and notes, see tables.read_table."""
    table, notes = read_table(path, filenames, is_sample=True)
    table = {name.casefold(): cells for name, cells in table.items()}
    if "label" not in table:
        text = f"its columns are file_name, {', '.join(table)}, expected file_name, answer and label"
        raise UserError(f"{path} is no to_label.csv of this command: {printable(text)}")
    return {"answer": [""] * len(filenames)} | table, notes


def labels_of(table: dict, path: Path, class_names: list[str]) -> Tensor:
    """Return the labels in a filled to_label.csv, int64 [N], -1 for none, and -2 for "other"."""
    texts = table["label"]
    labels = class_numbers(texts, class_names)
    labels[[text.casefold() == "other" for text in texts] & (labels == -1)] = OTHER  # unless it is a class
    unknown = [*dict.fromkeys(text for text, c in zip(texts, labels, strict=True) if text and c == -1)]
    if unknown:
        text = f"in {path} no class is called {', '.join(map(repr, unknown[:5]))}: expected one of the"
        text += f" {len(class_names)}, such as {class_names[0]!r}, or other for none of them"
        raise UserError(f"{text}, or an empty cell where you cannot tell")
    if (labels == -1).all():
        raise UserError(f"{path} labels no picture: write the name of its class into the column label")
    return torch.from_numpy(labels)


def notes_on_labels(labels: Tensor, answers: Tensor) -> list[str]:
    """Return for people why labels, int64 [N], may say little of all answers, int64 [N]."""
    index, notes = torch.nonzero(labels != -1).flatten(), []
    count, num_chosen = len(index), int((~torch.isin(index, draw(len(labels)))).sum())
    if num_chosen and count < len(labels):
        text = f"{num_chosen} of {count} labelled pictures are not those that are drawn of this folder"
        notes.append(f"{text}: the accuracy below holds only if chance chose them, not you")
    right = int((labels == answers)[index].sum())
    length = int(max(labels.max(), answers.max())) + 1
    of_labels, of_answers = (torch.bincount(of[labels >= 0], minlength=length) for of in (labels, answers))
    by_chance = (of_labels @ of_answers).item() / count
    most = int(torch.minimum(of_labels, of_answers).sum())
    if right <= by_chance + math.sqrt(by_chance) and most - right >= count / 2:
        text = f"label and answer agree in {right} rows, no more than if the labels were shuffled"
        notes.append(f"{text}, in another order in {most}: does each stand beside its own picture?")
    return notes


def check_answers(table: dict, path: Path, result: dict, class_names: list[str]) -> None:
    """Raise UserError if the answers in a to_label.csv are not those to these pictures; result: of estimate.

    Two folders may have the same file names. One answer in ten may differ, by the rounding of a machine.
    """
    answers = [as_written(class_names[c]) for c in result["answers"].tolist()]
    rows = [as_written(text) == answer for text, answer in zip(table["answer"], answers, strict=True) if text]
    wrong = rows.count(False)
    if 10 * wrong > len(rows):
        text = f"{wrong} of {len(rows)} answers in {path} are not those to these pictures"
        raise UserError(f"{text}: it is of another folder or network, or a column was sorted alone")


def write(path: Path, filenames: list[str], result: dict, class_names: list[str], semicolons: bool) -> None:
    """Write which pictures of a folder to label, unless that is done; UserError if it is of others."""
    if path.exists():
        check_answers(read(path, filenames)[0], path, result, class_names)
        return print(f"note        {path} is there, of these pictures, and stays as it is")
    rows = []
    for i in draw(len(filenames)).tolist():
        answer, sure = class_names[result["answers"][i]], f"{100 * result['confidences'][i]:.0f} %"
        row = {"file_name": as_written(filenames[i]), "answer": answer, "confidence": sure}
        rows.append(row | {"label": ""})
    write_csv(path, rows, semicolons)

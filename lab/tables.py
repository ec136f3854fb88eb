"""Tables, .csv files that people hand in and take away: reading them, writing them, and what a cell means.

Cells are texts; the cells of a column together say whether they are numbers, dates or categories.
"""

import contextlib
import csv
import io
import itertools
import re
import unicodedata
from collections.abc import Sequence
from pathlib import Path

import numpy as np

import report
from data import UserError
from metrics import Values
from train import write

UNNAMED = {"", "Unnamed: 0"}  # how pandas writes its index
BLANKS = " \xa0\u202f'\u2019"  # may part thousands, as may the sign that is not the decimal one
SIGNS = {".": ",", ",": "."}  # the decimal sign, and the other one
NUMBERS = {
    sign: re.compile(
        rf"(?=\D*\d)[+-]?(\d*|[1-9]\d?\d?([{other}{BLANKS}]\d{{3}})+)([{sign}]\d+)?([eE][+-]?\d+)?[{BLANKS}]?%?"
    )
    for sign, other in SIGNS.items()
}
AS_PYTHON = {sign: str.maketrans(sign, ".", f"{other}{BLANKS}%") for sign, other in SIGNS.items()}
DECIMAL_POINT = re.compile(r"^([+-]?\d*)\.(\d+(?:e[+-]?\d+)?)$", re.IGNORECASE)  # a whole cell
MOST_NUMBERS, MOST_TEXTS = 20, 100  # different whole numbers that are categories; different texts
MOST_ODD = 0.05  # of the known cells in a column of numbers that are none
MISSING = ["", "nan", "none", "na", "<na>", "nat"]
DATE = re.compile(r"\d{4}-\d\d-\d\d([T ]\d\d:\d\d(:\d\d(\.\d+)?)?)?")  # ISO 8601
DAY_FIRST = re.compile(r"(\d\d?)\.(\d\d?)\.(\d{4})")  # as 31.03.2024


def write_csv(path: Path, rows: list[dict], semicolons: bool = False) -> None:
    """Write rows, at least one and all with the same keys, as a .csv file that Excel opens.

    By the byte order mark ahead of all Excel knows UTF-8. One in German or French expects semicolons, and
    decimals with a comma.
    """
    text = io.StringIO()
    writer = csv.DictWriter(text, rows[0], delimiter=";" if semicolons else ",")
    writer.writeheader()
    for row in rows:
        if semicolons:
            texts = {name: "" if cell is None else str(cell) for name, cell in row.items()}
            row = {name: DECIMAL_POINT.sub(r"\1,\2", text) for name, text in texts.items()}
        writer.writerow(row)
    write(path, "\ufeff" + text.getvalue())


def as_written(name: str) -> str:
    """Return the name of a file as Linux and the web write it: with slashes, and with whole umlauts."""
    return unicodedata.normalize("NFC", name.replace("\\", "/"))


def class_numbers(texts: Sequence[str], class_names: Sequence[str]) -> np.ndarray:
    """Return which class each text names, int64 [N], -1 for none; case and underscores do not matter."""
    classes = {report.plain(as_written(name)).casefold(): c for c, name in enumerate(class_names)}
    classes |= {as_written(name): c for c, name in enumerate(class_names)}
    texts = [as_written(text.strip()) for text in texts]
    numbers = [classes.get(text, classes.get(report.plain(text).casefold(), -1)) for text in texts]
    return np.array(numbers, dtype=np.int64)


def without_folders(names: Sequence[str]) -> list[str]:
    """Return the names of files alone."""
    return [Path(as_written(name)).name for name in names]


def text_of(path: Path) -> str:
    """Return a text in UTF-8 or UTF-16 or, if it is none, in the letters of Windows in the west of Europe."""
    if not path.is_file():
        raise UserError(f"there is no file {path}: expected a table, as CSV")
    content = path.read_bytes()
    if content.startswith((b"PK\x03\x04", b"\xd0\xcf\x11\xe0")):
        raise UserError(f"{path} is a workbook, such as Excel's own: save it as CSV UTF-8")
    if content.startswith((b"\xff\xfe", b"\xfe\xff")):
        return content.decode("utf-16")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError:
        return content.decode("cp1252")


def cells_of(text: str) -> tuple[list[list[str]], str]:
    """Return the rows of a table that are not empty, and what parts their cells, by sep=; or by the head."""
    first = re.match(r"[^\r\n]*", text)[0]
    separator = re.fullmatch(r'"?sep=(.)"?[;,\s]*', first, re.IGNORECASE)
    delimiter = next((sign for sign in "\t;" if sign in first), ",")
    if separator:
        delimiter, text = separator[1], text[len(first) :]
    lines = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, skipinitialspace=True)
    rows = [[cell.strip() for cell in row] for row in lines]
    return [row for row in rows if any(row)], delimiter


def read_csv(path: Path, filenames: Sequence[str] = ()) -> tuple[dict[str, list[str]], list[str]]:
    """Return the columns of a .csv file with a head, as pandas or Excel write it, and notes; else UserError.

    For letters, cells and numbers see text_of, cells_of and write_points. Excel leaves out empty cells at the
    end of a row, and writes empty columns. The index of pandas, a column without a name, is left out unless
    it names one of the pictures.
    """
    try:
        rows, delimiter = cells_of(text_of(path))
    except (UnicodeError, csv.Error) as error:
        raise UserError(f"{path} is no table of texts, such as Excel saves as CSV: {error}") from error
    if len(rows) < 2:
        raise UserError(f"{path} has no rows: expected a line of names, and then a line for each picture")
    table = [column for column in itertools.zip_longest(*rows, fillvalue="") if any(column)]
    columns = {name: cells for name, *cells in table}
    unnamed = [cells for name, *cells in table[1:] if not name]
    nameless = [i for cells in unnamed for i, cell in enumerate(cells, 1) if cell]
    if nameless:
        first = rows[nameless[0]][0]
        text = f"the row of {first!r} in {path} has more cells than its head has names"
        raise UserError(f"{text}: the first line is to hold a name for each column, and nothing stands above")
    if len(columns) < len(table):
        names = [name for name, *_ in table]
        raise UserError(f"{path} has two columns {max(names, key=names.count)!r}: rename or remove one")
    for name in UNNAMED & columns.keys():
        if len(columns) > 1 and not {*without_folders(columns[name])} & {*without_folders(filenames)}:
            del columns[name]
    return columns, write_points(columns, delimiter, path)


def write_points(columns: dict[str, list[str]], delimiter: str, path: Path) -> list[str]:
    """Write the numbers of a table as Python does, 3436.5 for 3.436,5 and 91.3 for 91,3 %, and return a note.

    Decimal is the sign with which all of them are numbers; for 3.436 alone both are, and UserError says so.
    """
    cells = [*itertools.chain(*columns.values())]
    if delimiter == "," and not re.search(rf"\d[,%{BLANKS}]", "\n".join(cells)):  # as Python does
        return []
    is_number = {sign: NUMBERS[sign].fullmatch for sign in SIGNS}
    only = {a: [c for c in cells if is_number[a](c) and not is_number[b](c)] for a, b in SIGNS.items()}
    both = [c for c in cells if {*SIGNS} & {*c} and is_number["."](c) and is_number[","](c)]
    if only["."] and only[","]:
        raise UserError(f"{path} has {only['.'][0]} and {only[','][0]}: write all numbers with a point")
    if both and not (only["."] or only[","]):
        raise UserError(
            f"{path} has {both[0]}, a whole or a decimal number: write it without signs, or {both[0]}0"
        )
    sign = "," if only[","] else "."
    for name, texts in columns.items():
        columns[name] = [c.translate(AS_PYTHON[sign]) if is_number[sign](c) else c for c in texts]
    parted = [c for c in both if sign not in c]
    return [f"{path}: {parted[0]} is read as {parted[0].translate(AS_PYTHON[sign])}"] if parted else []


def read_table(path: Path, filenames: list[str], is_sample: bool = False) -> tuple[dict, list[str]]:
    """Return the columns of a .csv file, {name: N texts, "" for a picture without a row}, and notes.

    Its first column names the pictures, all but for a sample, with or without their folders, as Linux, macOS
    or Windows write them. Raises UserError for what is no such table, for a picture that is named twice, and
    if none is named.
    """
    columns, notes = read_csv(path, filenames)
    first, *columns = columns.items()
    named, wanted = ([as_written(name) for name in names] for names in (first[1], filenames))
    if not {*named} & {*wanted}:
        if all(any("/" in name for name in names) for names in (named, wanted)):
            text = f"such as {named[0]!r}, for pictures such as {wanted[0]!r}"
            notes.append(f"{path}: names are compared without their folders, {text}: are they the same?")
        named, wanted = without_folders(named), without_folders(wanted)
    of_head = f"in {path}, whose first column, {first[0]!r}, is to name the pictures"
    for names, where in ((named, of_head), (wanted, "among the pictures: give their folders there")):
        if len(set(names)) < len(names):
            twice = max(names, key=names.count)
            raise UserError(f"{twice!r} stands {names.count(twice)} times {where}")
    rows, pictures = {name: i for i, name in enumerate(named)}, {*wanted}
    strangers, absent = [name for name in named if name not in pictures], pictures - rows.keys()
    if len(strangers) == len(rows):
        text = f"no row of {path} names a picture of this folder: its first column, {first[0]!r},"
        raise UserError(f"{text} has {strangers[0]!r}, expected names such as {filenames[0]!r}")
    if strangers:
        notes.append(f"{len(strangers):,} rows of {path} name no picture, such as {strangers[0]!r}")
    if absent and not is_sample:
        notes.append(f"{len(absent):,} pictures have no row in {path}")
    table = {name: [texts[rows[key]] if key in rows else "" for key in wanted] for name, texts in columns}
    return table, notes


def as_texts(values: Values) -> tuple[np.ndarray, np.ndarray]:
    """Return the values of a column as texts [N], and which are missing, bool [N]."""
    if getattr(getattr(values, "dtype", None), "kind", "") == "M":  # dates, perhaps of pandas
        values = np.asarray(values, "datetime64[s]").astype(str)
    values = values.tolist() if hasattr(values, "tolist") else values
    texts = np.array([str(value).strip() for value in values], dtype=str)
    return texts, np.isin(np.char.lower(texts), MISSING)


def as_date(text: str) -> float:
    """Return a date in seconds: 2024-03-31, also with a time (ISO 8601), or 31.03.2024; else ValueError."""
    text = DAY_FIRST.sub(lambda match: f"{match[3]}-{match[2]:0>2}-{match[1]:0>2}", text)
    if not DATE.fullmatch(text):
        raise ValueError(text)
    return float(np.datetime64(text, "s").astype(np.int64))


def numbers_in(texts: np.ndarray, missing: np.ndarray) -> tuple[np.ndarray, bool]:
    """Return the numbers in a column of texts, float64 [N], or its dates if it has more; and whether it has.

    texts and missing: see as_texts. What is missing, or neither, is nan; for dates see as_date.
    """
    readings = np.full((2, len(texts)), np.nan)
    for i in np.flatnonzero(~missing):
        text = texts[i].replace("_", "?")  # Python takes 1_2, a name, for 12
        for reading, read in zip(readings, (float, as_date), strict=True):
            with contextlib.suppress(ValueError):  # a text, or a date such as 30 February
                reading[i] = read(text)
    numbers, dates = readings
    are_dates = bool(np.isnan(dates).sum() < np.isnan(numbers).sum())
    return (dates if are_dates else numbers), are_dates


def as_numbers(texts: np.ndarray, missing: np.ndarray) -> tuple[np.ndarray | None, bool]:
    """Return numbers_in a column whose known cells all are such, else None; and whether these are dates.

    Of more than MOST_NUMBERS different ones, no categories, one known cell in twenty may be a text.
    """
    numbers, are_dates = numbers_in(texts, missing)
    num_known, num_odd = int((~missing).sum()), int((~missing & np.isnan(numbers)).sum())
    if num_odd and (
        num_odd > MOST_ODD * num_known or len(np.unique(numbers[~np.isnan(numbers)])) <= MOST_NUMBERS
    ):
        return None, False
    return numbers, are_dates

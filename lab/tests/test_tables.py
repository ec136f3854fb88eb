"""tables.py: the bytes of a table, its order, its cells."""

import csv
import re
import unicodedata

import pytest

import data
from lab import tables

NAMES = [f"pictures/{i:03}.png" for i in range(40)]


def written(tmp_path, rows, delimiter=",", encoding="utf-8-sig"):
    with (tmp_path / "table.csv").open("w", newline="", encoding=encoding) as file:
        csv.writer(file, delimiter=delimiter).writerows(rows)
    return tmp_path / "table.csv"


@pytest.mark.parametrize(
    ("delimiter", "encoding", "place"),
    [(",", "utf-8", "pictures/"), (";", "cp1252", ""), ("\t", "utf-8-sig", "")],
)
def test_a_table_is_brought_into_the_order_of_the_pictures(tmp_path, delimiter, encoding, place):
    """From Excel it has decimal commas, and its rows end before empty cells."""
    point = "." if delimiter == "," else ","
    rows = [[f"{place}{i:03}.png", f"{i}{point}5", f"Zürich, {i % 3}"] for i in range(40)]
    rows[2:4] = [rows[2][:2], rows[3][:1]]
    rows = [["file", "age", "site, one, or, two"], *rows[:1:-1], ["other.png", 1, "x"], ["", "", ""]]
    columns, notes = tables.read_table(table := written(tmp_path, rows, delimiter, encoding), NAMES)
    assert columns["age"] == ["", "", "2.5", "", *(f"{i}.5" for i in range(4, 40))]
    assert columns["site, one, or, two"][2:5] == ["", "", "Zürich, 1"] and len(columns) == 2
    assert notes[0].startswith(f"1 rows of {table} name no picture, such as 'other.png'")
    assert notes[1] == f"2 pictures have no row in {table}"
    assert tables.read_table(table, NAMES, is_sample=True)[1] == notes[:1]


@pytest.mark.parametrize("index", ["", "Unnamed: 0"])
def test_the_index_of_pandas_is_no_column_unless_it_names_the_pictures(tmp_path, index):
    rows = [[i, name, i % 3] for i, name in enumerate(NAMES)]
    columns, notes = tables.read_table(written(tmp_path, [[index, "file", "age"], *rows]), NAMES)
    assert columns == {"age": [str(i % 3) for i in range(40)]} and notes == []
    columns, _ = tables.read_table(written(tmp_path, [[index, "age"], *([row[1:] for row in rows])]), NAMES)
    assert columns == {"age": [str(i % 3) for i in range(40)]}


AS_WRITTEN = {
    "German Excel, CSV": (
        "Datei;Dosis;Größe;Tag\r\na.png;987;36,5;31.03.2024\r\nb.png;3.436;1.234,5;01.04.2024\r\n".encode(
            "cp1252"
        ),
        {"Dosis": ["987", "3436"], "Größe": ["36.5", "1234.5"], "Tag": ["31.03.2024", "01.04.2024"]},
    ),
    "German Excel, CSV UTF-8": (
        "\ufeffDatei;Dosis;Anteil\r\na.png;1.234.567;-0,5\r\nb.png;-3.436;91,3 %\r\n".encode(),
        {"Dosis": ["1234567", "-3436"], "Anteil": ["-0.5", "91.3"]},
    ),
    "German Excel, Unicode text": (
        "Datei\tDosis\tGröße\r\na.png\t3.436\t1E-05\r\nb.png\t987\t0,25\r\n".encode("utf-16"),
        {"Dosis": ["3436", "987"], "Größe": ["1E-05", "0.25"]},
    ),
    "French Excel": (
        "Fichier;Dose;Âge\r\na.png;3\u202f436;36,5\r\nb.png;987;41\r\n".encode("utf-8-sig"),
        {"Dose": ["3436", "987"], "Âge": ["36.5", "41"]},
    ),
    "English Excel, thousands": (
        b'File,Dose,Age\r\na.png,"3,436",36.5\r\nb.png,"1,234.5",41\r\n',
        {"Dose": ["3436", "1234.5"], "Age": ["36.5", "41"]},
    ),
    "German Google Sheets": (
        b'Datei,Dosis,Alter\r\na.png,3.436,"36,5"\r\nb.png,987,41',
        {"Dosis": ["3436", "987"], "Alter": ["36.5", "41"]},
    ),
    "pandas, sep=';'": (
        b"file;age;dose\na.png;36.512;0.913\nb.png;41.250;1.000\n",
        {"age": ["36.512", "41.250"], "dose": ["0.913", "1.000"]},
    ),
    "sep=, blanks, and empty columns": (
        b'sep=;\r\nFile ; Age; Site, old;;\r\na.png; 36,5; "x;y";;\r\nb.png ;41;;;\r\n;;;;\r\n',
        {"Age": ["36.5", "41"], "Site, old": ["x;y", ""]},
    ),
    "a comma table with sep=": (b'"sep=,"\nfile,a;b\na.png,1\nb.png,2\n', {"a;b": ["1", "2"]}),
    "thousands among decimals": (
        b"Datei;Dosis;Rest\na.png;3.436;2,180\nb.png;36,5;4.008\n",
        {"Dosis": ["3436", "36.5"], "Rest": ["2.180", "4008"]},
    ),
}


PARTED = dict.fromkeys(("German Excel, CSV", "German Excel, Unicode text", "German Google Sheets"), "3.436")
PARTED |= {"German Excel, CSV UTF-8": "-3.436", "English Excel, thousands": "3,436"}
PARTED["thousands among decimals"] = "3.436"


@pytest.mark.parametrize("program", AS_WRITTEN)
def test_tables_by_their_bytes(tmp_path, program):
    """As the programs write them; a note tells which cell has a sign that is taken to part thousands."""
    content, expected = AS_WRITTEN[program]
    (tmp_path / "t.csv").write_bytes(content)
    columns, notes = tables.read_table(tmp_path / "t.csv", ["a.png", "b.png"])
    assert columns == expected
    cell = PARTED.get(program, "")
    assert notes == ([f"{tmp_path / 't.csv'}: {cell} is read as {re.sub('[.,]', '', cell)}"] if cell else [])


BYTES_REFUSED = {
    b"f;dose\na.png;987\nb.png;3.436\n": "t.csv has 3.436, a whole or a decimal number",
    b'f,dose\na.png,987\nb.png,"3,436"\n': "t.csv has 3,436, a whole or .*, or 3,4360$",
    b"f;dose;a;b\na.png;3.436;1,5;1.5\n": "t.csv has 1.5 and 1,5: write all numbers with a point",
    b"f\tdose\na.png\t3,436\n": "t.csv has 3,436",  # an English or a German Excel
    b"PK\x03\x04\x14\x00\x06\x00": "t.csv is a workbook, such as Excel's own: save it as CSV",
    b"\xd0\xcf\x11\xe0\xa1\xb1": "save it as CSV",
    b"file, \x81\x8d": "is no table of texts, such as Excel saves as CSV",
    b"\xff\xfea": "is no table of texts",
    b"f;a\na.png;1;\nb.png;2;note\n": "the row of 'b.png' .* has more cells than its head has names",
}


@pytest.mark.parametrize("content", BYTES_REFUSED)
def test_bytes_that_are_refused(tmp_path, content):
    (tmp_path / "t.csv").write_bytes(content)
    with pytest.raises(data.UserError, match=BYTES_REFUSED[content]) as refused:
        tables.read_table(tmp_path / "t.csv", ["a.png", "b.png"])
    assert "\n" not in str(refused.value)


def test_classes_are_named_without_regard_to_case():
    names = ["maple_tree", "Bär", "cat", "Cat"]
    texts = ["Maple Tree", "bär", unicodedata.normalize("NFD", "BÄR"), " cat ", "Cat", "dog", ""]
    assert tables.class_numbers(texts, names).tolist() == [0, 1, 1, 2, 3, -1, -1]


REFUSED = [
    ([["file", "a"]], "table.csv has no rows"),
    ([["file", "a", "a"], [NAMES[0], 1, 2]], "table.csv has two columns 'a'"),
    ([["file", "a"], ["x/000.png", 1], ["y/000.png", 2]], "'000.png' stands 2 times in .*table.csv"),
    ([["file", "a"], ["z.png", 1]], "its first column, 'file', has 'z.png', expected .* 'pictures/000"),
]


@pytest.mark.parametrize(("rows", "message"), REFUSED)
def test_tables_that_are_refused(tmp_path, rows, message):
    with pytest.raises(data.UserError, match=message):
        tables.read_table(written(tmp_path, rows), NAMES)


def test_names_as_macos_and_windows_write_them_and_of_two_folders(tmp_path):
    names = ["Weiß Birke/grün.png", "Ahorn/b.png", "Ahorn/c.png"]
    decomposed = [unicodedata.normalize("NFD", name) for name in names]
    for filenames, rows, expected in (
        (names, [[decomposed[0], 1], ["Ahorn\\b.png", 2], ["C:\\x\\c.png", 3]], ["1", "2", ""]),
        (decomposed, [["grün.png", 1]], ["1", "", ""]),
        (["cat/1.png", "dog/1.png"], [["dog/1.png", 1]], ["", "1"]),
    ):
        columns, notes = tables.read_table(written(tmp_path, [["file", "a"], *rows]), filenames)
        assert columns == {"a": expected} and not any("without their folders" in note for note in notes)
    other = [["file", "a"], ["train/rose/1.png", 1]]  # perhaps of another set
    _, notes = tables.read_table(written(tmp_path, other), ["cat/1.png"])
    assert "such as 'train/rose/1.png', for pictures such as 'cat/1.png': are they the same?" in notes[0]
    with pytest.raises(data.UserError, match=r"'1.png' stands 2 times among the pictures"):
        tables.read_table(written(tmp_path, [["file", "a"], ["1.png", 1]]), ["cat/1.png", "dog/1.png"])

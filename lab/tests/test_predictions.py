"""Answers without a network: those of scikit-learn to its digits, and files that do not fit."""

import contextlib
import csv
import json
import re

import numpy as np
import pytest
import torch
from lab_commands import assert_one_line, outcome
from lab_networks import seeded

import metrics
from lab import examine, predictions
from lab.pictures import from_arrays
from lab.support import UserError

pytestmark = pytest.mark.usefixtures("few_resamples")


@pytest.fixture(scope="module")
def digits():
    """Labels, probabilities and images of scikit-learn's digits, answered by its own classifier."""
    datasets = pytest.importorskip("sklearn.datasets", reason="needs: pip install scikit-learn")
    linear_model = pytest.importorskip("sklearn.linear_model")
    x, y = datasets.load_digits(return_X_y=True)
    model = linear_model.LogisticRegression(max_iter=20, C=0.01).fit(x[:900], y[:900])
    images = (x[900:].reshape(-1, 8, 8, 1) * 15.9).astype(np.uint8).repeat(3, axis=3)
    return y[900:], model.predict_proba(x[900:]), images


@pytest.mark.filterwarnings("ignore::UserWarning")  # scikit-learn's of few iterations
@pytest.mark.parametrize("kind", ["npz", "csv", "called logits"])
def test_the_numbers_are_those_of_scikit_learn(kind, digits, no_page, tmp_path, capsys):
    from sklearn import metrics as theirs

    y_true, probabilities, images = digits
    y_pred, names = probabilities.argmax(axis=1), [f"digit {c}" for c in range(10)]
    file = tmp_path / f"answers.{'csv' if kind == 'csv' else 'npz'}"
    validation = np.log(probabilities[::2])
    if kind == "npz":
        content = {"y_true": y_true, "probabilities": probabilities, "class_names": names, "images": images}
        np.savez(file, **content, val_y_true=y_true[::2], val_logits=validation)
    elif kind == "called logits":  # as who passes on what predict_proba returns
        content = {"y_true": y_true.astype(str).astype(object), "class_names": np.array(names, dtype=object)}
        content |= {"val_y_true": y_true[::2].astype(float), "val_logits": 100 * probabilities[::2]}
        np.savez(file, logits=probabilities, images=images, **content)
    else:
        with open(file, "w", newline="") as opened:
            rows = csv.writer(opened)
            rows.writerow(["filename", *names, "y_true"])
            for i, row in enumerate(probabilities):
                rows.writerow([f"{i}.png", *row, names[y_true[i]]])
    assert examine.main(["--predictions", str(file), "--out", str(tmp_path / "out")]) == 0
    files = [tmp_path / "out" / name for name in ("metrics.json", "reasons.json")]
    numbers = json.loads(files[0].read_text()) | json.loads(files[1].read_text())
    macro = theirs.precision_recall_fscore_support(y_true, y_pred, average="macro", zero_division=0)[:3]
    expected = dict(zip(("macro_precision", "macro_recall", "macro_f1"), macro, strict=True))
    expected["accuracy"] = theirs.accuracy_score(y_true, y_pred)
    expected["top5_accuracy"] = theirs.top_k_accuracy_score(y_true, probabilities, k=5)
    assert {key: numbers[key]["value"] for key in expected} == pytest.approx(expected)
    auroc = theirs.roc_auc_score(y_pred == y_true, probabilities.max(axis=1))
    assert numbers["auroc"] == pytest.approx(auroc)
    recalls = theirs.recall_score(y_true, y_pred, average=None)
    assert [row["recall"] for row in numbers["classes"]] == pytest.approx(recalls)
    stored = np.load(tmp_path / "out" / "predictions.npz")
    assert (stored["confusion"] == theirs.confusion_matrix(y_true, y_pred)).all()
    assert stored["class_names"].tolist() == names
    assert stored["filenames"][3] == ("3.png" if kind == "csv" else "3")
    error = metrics.expected_calibration_error(y_true, probabilities)
    assert numbers["expected_calibration_error"] == pytest.approx(error)
    temperature = None if kind == "csv" else metrics.fit_temperature(validation, y_true[::2])
    assert numbers.get("temperature") == pytest.approx(temperature) and "covering" not in numbers
    # Another report in the folder is not replaced by the answers of another network.
    np.savez(tmp_path / "other.npz", y_true=y_true, probabilities=probabilities[:, ::-1])
    other = ["--predictions", str(tmp_path / "other.npz"), "--out", str(tmp_path / "out")]
    assert_one_line(*outcome(capsys, examine.main, other), "of other weights")


GOOD = {"y_true": np.array([0, 1]), "probabilities": np.array([[0.9, 0.1], [0.5, 0.5]])}
HALVES = np.array([[0.9, 0.1], [0.2, 0.8]])
WRONG = {
    "sums": ({"probabilities": np.ones((2, 2))}, "sum to 1 in each row, row 1 sums to 2, .*: mend them"),
    "negative": ({"probabilities": HALVES - [[0, 0], [0.3, -0.3]]}, "row 1 sums to 1, and .* -0.1 to 1.1"),
    "range": ({"y_true": np.array([0, 2])}, "row 2 of y_true is 2, .* a number from 0 to 1$"),
    "minus 1": ({"y_true": np.array([0, -1])}, "row 2 of y_true is -1, .* a number from 0 to 1$"),
    "length": ({"y_true": np.array([0])}, r"y_true is int64 \[1\], expected whole numbers or names \[2\]"),
    "name": ({"y_true": ["b", "c"], "class_names": ["a", "b"]}, "row 2 of y_true is 'c', .* such as 'a'"),
    "nan": ({"probabilities": np.where(HALVES == 0.8, np.nan, HALVES)}, "not all finite: column 2 of row 2"),
    "shape": ({"probabilities": np.ones((2, 2, 2))}, r"expected float \[N, C\]"),
    "all masked": ({"logits": np.full((2, 2), -np.inf)}, "not all finite: column 1 of row 1"),
    "two ones": ({"y_true": np.array([[1, 0], [1, 1]])}, r"y_true is int64 \[2, 2\]"),
    "names": ({"class_names": np.array(["a"])}, "it has 1 class_names, expected 2"),
    "twice": ({"class_names": np.array(["a", "a "])}, "two classes have one name"),
    "validation": ({"val_y_true": np.array([0])}, "no val_probabilities and no val_logits"),
    "others": ({"val_y_true": np.array([0]), "val_logits": np.ones((1, 3))}, "has 3 classes, expected 2"),
    "two networks": ({"logits": np.log(HALVES)}, "logits and probabilities disagree"),
    "objects": (
        {"class_names": np.array([np.mean, "b"], dtype=object)},
        "numpy.mean, and only data are read",
    ),
    "no head": ("0,1,0\n1,0,1\n", "no rows below a head such as y_true,cat,dog"),
    "names and numbers": ("y_true,a,b\na,1,0\nb,1,0\n1,0,1\n", "row 3 of y_true is '1', .* such as 'a'"),
    "either reading": ("y_true,1,2,3\n1,1,0,0\n2,0,0,1\n", "names of the classes and their numbers"),
    "short row": ("y_true,a,b\n0,1\n", "row 1 has 2 cells, expected 3 for its head"),
    "cell": ("y_true,a,b\n0,1,0\n0,x,1\n", "row 2: .* float: 'x', expected numbers in the columns .'a', 'b'"),
    "id": ("id,y_true,a,b\n1,0,1.5,-2\n2,1,-1,1.5\n", r"takes \['id', .*no other columns such as an id$"),
    "column more": ("y_true,a,b,id\n0,1,0,7\n", r"takes \['a', 'b', 'id'\] for classes, but row 1 sums to 8"),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_does_not_fit_is_one_line(case, tmp_path):
    content, message = WRONG[case]
    file = tmp_path / ("a.csv" if isinstance(content, str) else "a.npz")
    if isinstance(content, str):
        file.write_text(content)
    else:
        np.savez(file, **(GOOD | content))
    with pytest.raises(UserError, match=message) as info:
        predictions.read(file)
    assert "\n" not in str(info.value)


@pytest.mark.parametrize(
    ("head", "labels", "expected"),
    [
        ("1,2", "01", [0, 1]),  # each alone could be a name: 1 is a head
        ("1,2", "12", [0, 1]),
        ("1,0", "10", [0, 1]),  # numbers that do not ascend: the head counts
        ("class_10,class_2", ["2", "10"], [1, 0]),
        ("class_10,class_2", "10", [1, 0]),  # neither is at the end of a name: places
        ("class_1,class_2", "12", [0, 1]),
        ("b1,a0", "01", [0, 1]),  # not numbers of one kind of name
        ("great white_shark,Dog", ["dog", "Great_white shark"], [1, 0]),
        ("0,1", "10", [1, 0]),
        ("a,b", ["1.0", "0"], [1, 0]),
        ("a,b", "ba", [1, 0]),
    ],
)
def test_labels_of_a_table_are_all_names_or_all_numbers(head, labels, expected, tmp_path):
    file = tmp_path / "a.csv"
    file.write_text(f"\ufeffy_true,{head}\n{labels[0]},0.9,0.1\n{labels[1]},0.5,0.5\n")
    answers = predictions.read(file)
    assert answers["y_true"].tolist() == expected and answers["class_names"] == head.split(",")
    shares = answers["logits"].softmax(dim=1)
    torch.testing.assert_close(shares, torch.tensor([[0.9, 0.1], [0.5, 0.5]]).double())


def calibration_error(y_true, probabilities):
    """The calibration error over 15 bins, answer by answer."""
    gaps = np.zeros(15)
    for label, row in zip(y_true, probabilities, strict=True):
        place = sum(row.max() > edge / 15 for edge in range(1, 15))
        gaps[place] += (row.argmax() == label) - row.max()
    return np.abs(gaps).sum() / len(y_true)


@pytest.mark.parametrize("name", ["forest", "neighbors of 20", "neighbors of 7"])
def test_answers_of_few_decimals_are_those_of_scikit_learn(name, digits, no_page, tmp_path):
    from sklearn.ensemble import RandomForestClassifier
    from sklearn.metrics import roc_auc_score
    from sklearn.neighbors import KNeighborsClassifier

    y_true, _, images = digits
    x = images[..., 0].reshape(len(images), 64)
    model = RandomForestClassifier(100, random_state=0)
    if name != "forest":
        model = KNeighborsClassifier(int(name.split()[-1]))
    theirs = model.fit(x[:300], y_true[:300]).predict_proba(x[300:])
    y_true = y_true[300:]
    assert (theirs == 0).any()
    filenames = ["a.png", *map(str, range(1, len(y_true)))]
    filenames[3] = "a.png"
    out, validation, sure = tmp_path / "out", (theirs, y_true), theirs.max(axis=1)
    numbers = examine.examine_predictions(y_true, theirs, out=out, filenames=filenames, validation=validation)
    assert (np.load(out / "predictions.npz")["probabilities"] == theirs).all()
    expected = {"expected_calibration_error": calibration_error(y_true, theirs)}
    expected |= {
        "auroc": roc_auc_score(theirs.argmax(axis=1) == y_true, sure),
        "mean_confidence": sure.mean(),
    }
    assert {key: numbers[key] for key in expected} == pytest.approx(expected, abs=1e-12)
    assert numbers["confident"]["answers"] == (sure > 0.9).sum()
    assert 0.2 < numbers["temperature"] < 5  # true classes of "probability 0" do not decide it
    assert any("'a.png'" in note for note in numbers["notes"]) and "'a.png'" in numbers["examined"]["notes"]


NAMES = ["cat", "Dog", "great white shark"]
DIALECTS = {  # options of pandas, which writes and reads
    "commas": {},
    "semicolons": {"sep": ";"},
    "decimal commas": {"sep": ";", "decimal": ","},
    "tabs": {"sep": "\t"},
    "decimal commas between tabs": {"sep": "\t", "decimal": ","},
    "UTF-16": {"sep": "\t", "encoding": "utf-16"},
    "UTF-8 with a mark": {"encoding": "utf-8-sig"},
    "an index": {"index": True},
    "an index read as a column": {"index": True, "index_label": "Unnamed: 0"},
    "an index and tabs": {"index": True, "sep": "\t"},
    "row names of R": {"index": True, "index_label": False},
    "spaces": {"sep": " ", "quoting": csv.QUOTE_NONNUMERIC},
    "all in quotes": {"quoting": csv.QUOTE_ALL},
    "lines of Windows": {"lineterminator": "\r\n"},
    "five decimals": {"float_format": "%.5f"},
    "exponents": {"float_format": "%.3e"},
}
HEADS = {  # a name as it stands in the head
    "as it is": lambda name: name,
    "prob_": lambda name: f"prob_{name}",
    "another case": lambda name: name.upper().replace(" ", "_"),
}


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("dialect", DIALECTS)
def test_a_table_has_the_numbers_that_pandas_reads(dialect, head, tmp_path):
    pandas = pytest.importorskip("pandas", reason="needs: pip install pandas")
    names, shares = [HEADS[head](name) for name in NAMES], softmax(20, 3).numpy()
    table = pandas.DataFrame(shares, columns=names)
    y_true = shares[:, ::-1].argmax(axis=1)
    table.insert(1, "y_true", [NAMES[c] for c in y_true])
    table["filename"] = [f"photo, {i};.png" for i in range(20)]
    if head == "prob_":
        table["confidence"] = shares.max(axis=1)
    options, file = DIALECTS[dialect], tmp_path / "answers.csv"
    table.to_csv(file, **({"index": False} | options))
    same = options.keys() & {"sep", "decimal", "encoding"}
    back = pandas.read_csv(file, **{key: options[key] for key in same})
    answers = predictions.read(file)
    theirs = back[names].to_numpy()
    theirs = theirs / theirs.sum(axis=1, keepdims=True)
    np.testing.assert_allclose(answers["logits"].softmax(dim=1), theirs, rtol=0, atol=1e-12)
    assert answers["y_true"].tolist() == y_true.tolist()
    assert answers["filenames"] == back["filename"].tolist()
    assert answers["class_names"] == (NAMES if head == "prob_" else names)
    assert [note.split(" are ")[0] for note in answers["notes"] if "sum to" not in note] == (
        ["the columns ['confidence']"] if head == "prob_" else []
    )


WHOLE = np.array([[2, -1, 0], [0, 1, -3], [1, 1, 4]])
THREE = {"y_true": np.arange(3), "logits": WHOLE}
TWO = {"y_true": np.array([False, True]), "probabilities": np.array([0.2, 0.7])}
SHARES = np.array([[0.8, 0.2], [0.3, 0.7]])
MASKED = np.where(WHOLE == -1, -np.inf, WHOLE)
SUMS = {"y_true": [0, 1], "probabilities": np.array([[0.875, 0.12, 0], [0.5, 0.5, 0]])}
USABLE = {  # content, its probabilities by SciPy, and one note or none
    "whole numbers": (THREE, WHOLE, None),
    "one-hot": (THREE | {"y_true": np.eye(3, dtype=bool)}, WHOLE, None),
    "a column of labels": (THREE | {"y_true": np.arange(3.0)[:, None]}, WHOLE, None),
    "tensors": (THREE | {"logits": torch.tensor(WHOLE).bfloat16().requires_grad_()}, WHOLE, None),
    "masked": (THREE | {"logits": MASKED}, MASKED, None),
    "one column": (TWO, np.log(SHARES), None),
    "decision_function": (TWO | {"probabilities": None, "logits": [[-3.0], [2.0]]}, [[0, -3], [0, 2]], None),
    "one sigmoid": (
        TWO | {"probabilities": None, "logits": [[0.2], [0.7]]},
        np.log(SHARES),
        "probabilities,",
    ),
    "names that are numbers": (THREE | {"class_names": ["1", "2", "3"]}, WHOLE, "label 0 is class '1'"),
    "sigmoids": (THREE | {"logits": np.eye(3) / 2}, np.eye(3) / 2, "all logits lie in 0 to 1: are"),
    # Rounding to three decimals can have taken 0.0005 from the zero, not all 0.005.
    "sums": (
        SUMS,
        [np.log([0.875, 0.12, 0.0005]), [0, 0, -np.inf]],
        "rows of probabilities sum to 0.995 to 1:",
    ),
    "y_pred": (THREE | {"y_pred": [0, 0, 0]}, WHOLE, "y_pred is not .* in 2 rows"),
    "y_pred of a tie": (THREE | {"logits": [[2, 2, 0]] * 3, "y_pred": [0, 1, 1]}, [[2, 2, 0]] * 3, None),
    "filenames": (THREE | {"filenames": ["a", "b", "a"]}, WHOLE, "'a' and perhaps .*: 2 times"),
    "columns of logits": (
        "y_true;a;b\n0;2,5;-1\n1;0;3,5\n",
        [[2.5, -1], [0, 3.5]],
        "'b'] are taken as logits, as row",
    ),
    "logit_": ("y_true,logit_a,logit_b\n0,2,-1\n1,0,3\n", [[2, -1], [0, 3]], "_b'] are taken as"),
    "percent": ("y_true,a,b\n0,80%,20%\n1,30%,70.0 %\n", np.log(SHARES), "are percent"),
    "by number": ("y_true,c_0,c_10,c_2\n2,0,0,1\n10,0,1,0\n", None, "do not ascend: label 10 is 'c_10'"),
}


@pytest.mark.parametrize("case", USABLE)
def test_answers_as_people_have_them(case, tmp_path):
    content, logits, note = USABLE[case]
    if isinstance(content, str):
        (tmp_path / "a.csv").write_text(content)
        answers = predictions.read(tmp_path / "a.csv")
    else:
        answers = predictions.checked({key: values for key, values in content.items() if values is not None})
    count = len(answers["y_true"])
    if logits is None:  # each true class is sure
        logits = 1e4 * np.eye(3)[answers["y_true"]] - 1e4
    shares = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    np.testing.assert_allclose(answers["logits"].softmax(dim=1), shares, rtol=0, atol=1e-7)
    assert answers["logits"].isfinite().all() and answers["y_true"].dtype == torch.int64
    assert answers["y_true"].tolist() == ([2, 1] if case == "by number" else [*range(count)])
    assert [bool(re.search(note or "", text)) for text in answers["notes"]] == ([True] if note else [])


def softmax(n, num_classes, scale=2.0):
    logits = scale * torch.randn(n, num_classes, generator=seeded(num_classes))
    return logits.double().softmax(dim=1)


ROWS = softmax(50, 10)
KINDS = {
    "half precision": (softmax(50, 1000).half(), "probabilities"),
    "bfloat16": (ROWS.bfloat16(), "probabilities"),
    "two decimals": (softmax(500, 100, 3).round(decimals=2), "probabilities"),  # sums down to 0.91
    "just rounding": (torch.tensor([[0.05] * 9 + [0.6]]), "probabilities"),  # 1.05, of 10 classes
    "three decimals": (torch.tensor([[0.051] * 9 + [0.6]]), "logits"),  # 1.059, where 0.005 is possible
    "one decimal": (torch.tensor([[0.1] * 9 + [0.6]]), "logits"),
    "percent": ((100 * ROWS).float(), "percent"),
    "a negative number": (torch.tensor([[-0.2, 0.6, 0.6]]), "logits"),
    "one row not": (torch.cat([ROWS, ROWS[:1] * 1.02]), "logits"),
    "an empty row": (torch.cat([softmax(9, 200), torch.zeros(1, 200)]).round(decimals=2), "logits"),
    "sigmoids": (ROWS.logit().sigmoid() * 1.5, "logits"),
    "logarithms": (ROWS.log(), "logits"),
}


@pytest.mark.parametrize("name", KINDS)
def test_probabilities_are_told_from_logits_by_their_rows(name):
    scores, kind = KINDS[name]
    assert predictions.kind_of(scores) == kind


def test_rounded_probabilities_have_the_temperature_and_error_of_those_before():
    generator = seeded()
    logits = 2 * torch.randn(3000, 100, generator=generator).double()
    y_true = torch.multinomial(logits.softmax(dim=1), 1, generator=generator)[:, 0]
    probabilities = (1.5 * logits).softmax(dim=1)  # too sure of themselves
    rounded = probabilities.round(decimals=2)
    assert (rounded.gather(1, y_true[:, None]) == 0).any() and rounded.sum(dim=1).min() < 0.95
    arrays = {"y_true": y_true, "probabilities": rounded, "val_y_true": y_true, "val_logits": 100 * rounded}
    answers = predictions.checked(arrays)
    assert metrics.fit_temperature(*answers["validation"]) == pytest.approx(1.5, rel=0.15)  # 99 of tiny for 0
    errors = [
        metrics.expected_calibration_error(y_true, p) for p in (probabilities, answers["probabilities"])
    ]
    assert errors[1] == pytest.approx(errors[0], abs=2e-3)


def test_logits_count_where_probabilities_agree_with_them():
    logits = torch.randn(9, 4, generator=seeded()).double()
    percent = (100 * logits.softmax(dim=1)).numpy()
    arrays = {"y_true": np.arange(9) % 4, "logits": logits.numpy(), "probabilities": percent}
    answers = predictions.checked(arrays | {"val_y_true": arrays["y_true"], "val_logits": percent / 100})
    assert torch.equal(answers["logits"], logits)
    torch.testing.assert_close(answers["validation"][0].softmax(dim=1), logits.softmax(dim=1))
    kinds = [note.split(",")[0] for note in answers["notes"]]
    assert kinds == ["probabilities are percent", "val_logits are probabilities"]


IMAGES, CAT_AND_DOG = np.zeros((4, 8, 8, 3), dtype=np.uint8), ["cat", "dog"]
OTHERS = {
    "the same": ({}, None),
    "other folders": ({"filenames": ["1.png", "test\\b\\2.png", "c.png", "d.png"]}, None),
    "no names": ({"filenames": ["0", "1", "2", "3"]}, None),
    "order": ({"filenames": ["2.png", "b/1.png", "c.png", "d.png"]}, "row 1 is '2.png', .* is 'b/1.png'"),
    "half of a name": ({"filenames": ["b/1.png", "b/2.png", "cc.png", "d.png"]}, "row 3 is 'cc.png'"),
    "a label": ({"y_true": np.array([0, 0, 0, 1])}, "of row 3 is 'cat', but that image of D is of 'dog'"),
    "fewer": (
        {"y_true": [0], "filenames": ["c"], "probabilities": HALVES[:1]},
        "it has 1 answers, but D has 4",
    ),
    "classes": ({"class_names": CAT_AND_DOG[::-1]}, "its class 'dog' stands where D has 'cat'"),
    "more classes": ({"probabilities": np.full((4, 4), 0.25)}, "it has 4 classes, but D has 2"),
}


@pytest.mark.parametrize("case", OTHERS)
def test_answers_are_those_to_the_images_of_a_data_set(case):
    names = ["b/1.png", "b/2.png", "c.png", "d.png"]
    test = from_arrays(IMAGES, [0, 0, 1, 1], CAT_AND_DOG, filenames=names)
    other, message = OTHERS[case]
    arrays = {"y_true": np.array([0, 0, 1, 1]), "filenames": names, "probabilities": np.full((4, 2), 0.5)}
    answers = predictions.checked({key: np.array(value) for key, value in (arrays | other).items()})
    refused = contextlib.nullcontext() if message is None else pytest.raises(ValueError, match=message)
    with refused:
        predictions.check_dataset(answers, test, "D")
    if case == "the same":  # a set without names has numbers
        predictions.check_dataset(answers, from_arrays(IMAGES, [0, 0, 1, 1], CAT_AND_DOG), "D")

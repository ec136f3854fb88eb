"""Answers without a network: those of scikit-learn to its digits, and files that do not fit."""

import contextlib
import csv
import json

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
    "sums": ({"probabilities": np.ones((2, 2))}, "not sum to 1 in each row, row 1 sums to 2: mend them, or"),
    "negative": ({"probabilities": HALVES - [[0, 0], [0.3, -0.3]]}, "each row, column 1 of row 2 is -0.1"),
    "range": ({"y_true": np.array([0, 2])}, "row 2 of y_true is 2, .* a number from 0 to 1$"),
    "minus 1": ({"y_true": np.array([0, -1])}, "row 2 of y_true is -1, .* a number from 0 to 1$"),
    "length": ({"y_true": np.array([0])}, r"y_true is int64 \[1\], expected whole numbers or names \[2\]"),
    "name": ({"y_true": ["b", "c"], "class_names": ["a", "b"]}, "row 2 of y_true is 'c', .* such as 'a'"),
    "nan": ({"probabilities": np.where(HALVES == 0.8, np.nan, HALVES)}, "not all finite: column 2 of row 2"),
    "shape": ({"probabilities": np.ones(2)}, r"expected float \[N, C\]"),
    "names": ({"class_names": np.array(["a"])}, "it has 1 class_names, expected 2"),
    "twice": ({"class_names": np.array(["a", "a "])}, "two classes have one name"),
    "validation": ({"val_y_true": np.array([0])}, "no val_probabilities and no val_logits"),
    "others": ({"val_y_true": np.array([0]), "val_logits": np.ones((1, 3))}, "has 3 classes, expected 2"),
    "two networks": ({"logits": np.log(HALVES)}, "logits and probabilities disagree"),
    "objects": (
        {"class_names": np.array([np.mean, "b"], dtype=object)},
        "numpy.mean, and only data are read",
    ),
    "semicolons": ("y_true;a;b\n0;1;0\n", "no rows below a head such as y_true,cat,dog"),
    "names and numbers": ("y_true,a,b\na,1,0\nb,1,0\n1,0,1\n", "row 3 of y_true is '1', .* such as 'a'"),
    "either reading": ("y_true,1,2,3\n1,1,0,0\n2,0,0,1\n", "names of the classes and their numbers"),
    "short row": ("y_true,a,b\n0,1\n", "row 1 has 2 cells, expected 3 for its head"),
    "cell": ("y_true,a,b\n0,1,0\n0,x,1\n", "column 'a' of row 2 is 'x', expected a number"),
    "column more": ("y_true,a,b,id\n0,1,0,7\n", r"takes \['a', 'b', 'id'\] for classes, but row 1 sums to 8"),
    "empty column": ("y_true,a,b,x\n0,1,0,0\nb,0,1,0\n", "for classes, but 'x' is 0 in each row: leave it"),
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
        ("1,0", "10", None),
        ("0,1", "10", [1, 0]),
        ("a,b", ["1.0", "0"], [1, 0]),
        ("a,b", "ba", [1, 0]),
    ],
)
def test_labels_of_a_table_are_all_names_or_all_numbers(head, labels, expected, tmp_path):
    file = tmp_path / "a.csv"
    file.write_text(f"\ufeffy_true,{head}\n{labels[0]},0.9,0.1\n{labels[1]},0.5,0.5\n")
    if expected is None:
        with pytest.raises(UserError, match="names of the classes and their numbers"):
            predictions.read(file)
        return
    answers = predictions.read(file)
    assert answers["y_true"].tolist() == expected and answers["class_names"] == head.split(",")
    torch.testing.assert_close(answers["logits"].exp(), torch.tensor([[0.9, 0.1], [0.5, 0.5]]).double())


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
    "one row not": (torch.cat([ROWS, ROWS[:1] * 1.02]), "logits"),
    "an empty row": (torch.cat([softmax(9, 200), torch.zeros(1, 200)]).round(decimals=2), "logits"),
    "sigmoids": (ROWS.logit().sigmoid() * 1.5, "logits"),
    "logarithms": (ROWS.log(), "logits"),
}


@pytest.mark.parametrize("name", KINDS)
def test_probabilities_are_told_from_logits_by_their_rows(name):
    scores, kind = KINDS[name]
    assert predictions.kind_of(scores) == kind
    logits, note = predictions.as_logits(scores.double(), "these")
    if kind == "logits":
        assert note is None and torch.equal(logits, scores.double())
    else:
        assert note.startswith(f"these are {kind}")
        expected = scores.double() / scores.double().sum(dim=1, keepdim=True)
        if expected.all():
            torch.testing.assert_close(logits.exp(), expected)


def test_rounded_probabilities_have_the_temperature_and_error_of_those_before():
    generator = seeded()
    logits = 2 * torch.randn(3000, 100, generator=generator).double()
    y_true = torch.multinomial(logits.softmax(dim=1), 1, generator=generator)[:, 0]
    probabilities = (1.5 * logits).softmax(dim=1)  # too sure of themselves
    rounded = probabilities.round(decimals=2)
    assert (rounded.gather(1, y_true[:, None]) == 0).any() and rounded.sum(dim=1).min() < 0.95
    answers, _ = predictions.as_logits(rounded)
    assert metrics.fit_temperature(answers, y_true) == pytest.approx(1.5, rel=0.15)  # 99 of tiny for 0
    torch.testing.assert_close(predictions.as_logits(100 * rounded)[0], answers)
    errors = [metrics.expected_calibration_error(y_true, p) for p in (probabilities, answers.softmax(dim=1))]
    assert errors[1] == pytest.approx(errors[0], abs=2e-3)


def test_logits_count_where_probabilities_agree_with_them():
    logits = torch.randn(9, 4, generator=seeded()).double()
    rounded = (100 * logits.softmax(dim=1)).round()
    arrays = {"y_true": np.arange(9) % 4, "logits": logits.numpy(), "probabilities": rounded.numpy()}
    answers = predictions.checked(arrays)
    assert torch.equal(answers["logits"], logits) and answers["notes"] == []
    called = arrays | {"logits": rounded.numpy() / 100, "val_logits": rounded.numpy()}
    notes = predictions.checked(called | {"val_y_true": arrays["y_true"]})["notes"]
    assert [note.split(":")[0] for note in notes] == ["logits are probabilities", "val_logits are percent"]


IMAGES, CAT_AND_DOG = np.zeros((4, 8, 8, 3), dtype=np.uint8), ["cat", "dog"]
OTHERS = {
    "the same": ({}, None),
    "other folders": ({"filenames": ["1.png", "test\\b\\2.png", "c.png", "d.png"]}, None),
    "no names": ({"filenames": ["0", "1", "2", "3"]}, None),
    "order": ({"filenames": ["2.png", "b/1.png", "c.png", "d.png"]}, "row 1 is '2.png', .* is 'b/1.png'"),
    "half of a name": ({"filenames": ["b/1.png", "b/2.png", "cc.png", "d.png"]}, "row 3 is 'cc.png'"),
    "a label": ({"y_true": np.array([0, 0, 0, 1])}, "of row 3 is 'cat', but that image of D is of 'dog'"),
    "classes": ({"class_names": CAT_AND_DOG[::-1]}, "classes are not those of D in their order"),
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

"""Answers without a network: report.py --predictions, on scikit-learn's digits, and files that do not fit."""

import csv
import json

import numpy as np
import pytest
import torch
from pages import text
from processes import assert_one_line, outcome

import report
from lab.any_network import predictions

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
@pytest.mark.parametrize("kind", ["npz", "csv"])
def test_the_numbers_are_those_of_scikit_learn(kind, digits, no_page, tmp_path, capsys):
    from sklearn import metrics as theirs

    y_true, probabilities, images = digits
    y_pred, names = probabilities.argmax(axis=1), [f"digit {c}" for c in range(10)]
    file = tmp_path / f"answers.{kind}"
    if kind == "npz":
        content = {"y_true": y_true, "probabilities": probabilities, "class_names": names, "images": images}
        np.savez(file, **content, val_y_true=y_true[::2], val_logits=np.log(probabilities[::2]) * 2)
    else:
        with open(file, "w", newline="") as opened:
            rows = csv.writer(opened)
            rows.writerow(["filename", *names, "y_true"])
            for i, row in enumerate(probabilities):
                rows.writerow([f"{i}.png", *row, names[y_true[i]] if i % 2 else y_true[i]])
    assert report.main(["--predictions", str(file), "--out", str(tmp_path / "out")]) == 0
    numbers = json.loads((tmp_path / "out" / "metrics.json").read_text())
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
    assert stored["filenames"][3] == ("3" if kind == "npz" else "3.png")
    assert ("temperature" in numbers) == (kind == "npz") and "covering" not in numbers
    # Another report in the folder is not replaced by the answers of another network.
    np.savez(tmp_path / "other.npz", y_true=y_true, probabilities=probabilities[:, ::-1])
    other = ["--predictions", str(tmp_path / "other.npz"), "--out", str(tmp_path / "out")]
    assert_one_line(*outcome(capsys, report.main, other), "of other weights")


def test_an_accuracy_that_is_not_the_expected_one_writes_nothing(quick, tmp_path, capsys):
    y_true = np.arange(200) % 4
    logits = np.eye(4)[np.where(np.arange(200) < 150, y_true, (y_true + 1) % 4)]  # 75 % are right
    np.savez(tmp_path / "a.npz", y_true=y_true, logits=logits)
    argv = ["--predictions", str(tmp_path / "a.npz"), "--out", str(tmp_path / "out"), "--expect-accuracy"]
    line = r"the accuracy is 75.00 % \(.*not the expected 90 %: check"
    assert_one_line(*outcome(capsys, report.main, [*argv, "90"]), line)
    assert not (tmp_path / "out").exists()
    assert report.main([*argv, "76"]) == 0
    page = text((tmp_path / "out" / "report.html").read_text(encoding="utf-8"))
    assert "50 mistakes" in page and "known by its answers alone" in page


GOOD = {"y_true": np.array([0, 1]), "probabilities": np.array([[0.9, 0.1], [0.5, 0.5]])}
WRONG = {
    "sums": ({"probabilities": np.ones((2, 2))}, "do not sum to 1 in each row"),
    "range": ({"y_true": np.array([0, 2])}, "y_true goes from 0 to 2, expected 0 to 1"),
    "length": ({"y_true": np.array([0])}, r"y_true is int64 \[1\], expected whole numbers \[2\]"),
    "fractions": ({"y_true": np.array([0.0, 1.0])}, "expected whole numbers"),
    "nan": ({"probabilities": np.full((2, 2), np.nan)}, "not all finite"),
    "shape": ({"probabilities": np.ones(2)}, r"expected float \[N, C\]"),
    "names": ({"class_names": np.array(["a"])}, "it has 1 class_names, expected 2"),
    "twice": ({"class_names": np.array(["a", "a "])}, "two classes have one name"),
    "images": ({"images": np.zeros((2, 8, 8))}, "images must be uint8"),
    "validation": ({"val_y_true": np.array([0])}, "no val_probabilities and no val_logits"),
    "no labels": ({"val_logits": np.ones((3, 2))}, "it has no val_y_true"),
    "others": ({"val_y_true": np.array([0]), "val_logits": np.ones((1, 3))}, "has 3 classes, expected 2"),
    "table without labels": ("y_true;a;b\n0;1;0\n", "no rows below a head such as y_true,cat,dog"),
    "label of a table": ("y_true,a,b\na,1,0\nc,1,0\n", "row 2 does not fit its head"),
    "short row": ("y_true,a,b\n0,1\n", "row 1 does not fit"),
    "long row": ("y_true,a,b\n0,1,0,0\n", "row 1 does not fit"),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_does_not_fit_is_one_line(case, tmp_path, capsys):
    content, message = WRONG[case]
    if isinstance(content, str):
        file = tmp_path / "a.csv"
        file.write_text(content)
    else:
        file = tmp_path / "a.npz"
        np.savez(file, **(GOOD | content))
    argv = ["--predictions", str(file), "--out", str(tmp_path / "out")]
    assert_one_line(*outcome(capsys, report.main, argv), message)
    assert not (tmp_path / "out").exists()


def test_what_belongs_to_a_network_is_refused_beside_answers(tmp_path, capsys):
    for option in ("--weights", "--weights-key", "--classes", "--layer", "--resize"):
        argv = ["--predictions", str(tmp_path / "a.npz"), option, "64"]
        assert_one_line(*outcome(capsys, report.main, argv), f"needs no network: leave out {option}")


def test_labels_of_a_table_are_names_where_a_column_is_called_so(tmp_path):
    """The columns are called 1 and 0: the label 1 is the first of them."""
    (tmp_path / "a.csv").write_text("\ufeffy_true,1,0\n1,0.9,0.1\n0,0.5,0.5\n")
    found = predictions.read(tmp_path / "a.csv")
    assert found["y_true"].tolist() == [0, 1] and found["class_names"] == ["1", "0"]
    torch.testing.assert_close(found["logits"].exp(), torch.tensor([[0.9, 0.1], [0.5, 0.5]]).double())


def test_answers_in_memory_are_those_of_a_file(no_page, tmp_path):
    logits = np.random.default_rng(0).normal(size=(60, 4)).astype(np.float32)
    y_true, names = np.arange(60) % 4, ["a", "b", "c", "d"]
    uniform = np.full((60, 4), 0.25)  # does not count beside logits
    np.savez(tmp_path / "a.npz", y_true=y_true, logits=logits, probabilities=uniform, class_names=names)
    assert report.main(["--predictions", str(tmp_path / "a.npz"), "--out", str(tmp_path / "out")]) == 0
    known = {"class_names": names, "validation": (logits, y_true)}
    numbers = report.examine_predictions(torch.tensor(y_true), torch.tensor(logits), out=tmp_path, **known)
    written = json.loads((tmp_path / "out" / "metrics.json").read_text())
    for key in ("accuracy", "auroc", "classes", "checkpoint_sha256", "images_sha256"):
        assert numbers[key] == written[key]
    assert "temperature" in numbers and "temperature" not in written
    with pytest.raises(ValueError, match="y_true goes from"):
        report.examine_predictions(y_true + 1, logits, out=tmp_path / "c")

"""answers.py: one format of answers, refusals of all others, and numbers that follow, by loops and NumPy."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

import data
import report
from lab import answers, folder

pytestmark = pytest.mark.usefixtures("few_resamples")
Y_TRUE = np.array([0, 2, 1, 2, 0])
SCORES = np.array([[3.0, 1, 0], [0, 1, 2], [0, 3, 1], [2, 0, 1], [5, 4, 0]])  # 4 of 5 are right
SHARES = np.exp(SCORES) / np.exp(SCORES).sum(axis=1, keepdims=True)
NAMES = ["cat", "dog", "bird"]


# ---- The format --------------------------------------------------------------------------------------------


def test_one_format_as_npz_and_as_csv_of_pandas(tmp_path):
    """The two lines that the module and its messages show write what it reads."""
    pd = pytest.importorskip("pandas")
    files = [f"{k}.png" for k in range(5)]
    arrays = {"y_true": Y_TRUE, "probabilities": SHARES, "class_names": NAMES, "filenames": files}
    np.savez(tmp_path / "a.npz", **arrays, site=[1, 2, 1, 2, 2])
    table = pd.DataFrame(SHARES, columns=[f"p_{name}" for name in NAMES])
    table = table.assign(y_true=Y_TRUE, filename=files, site=[1, 2, 1, 2, 2])
    table.to_csv(tmp_path / "b.csv", index=False)
    named = table.assign(y_true=[NAMES[c] for c in Y_TRUE])
    named.to_csv(tmp_path / "c.csv", index=False)
    table.to_csv(tmp_path / "d.csv")  # with its index
    for name in ("a.npz", "b.csv", "c.csv", "d.csv"):
        given = answers.read(tmp_path / name)
        test, numbers, made = answers.evaluate_arrays(given, "a file")
        assert (test.class_names, test.filenames, test.labels.tolist()) == (NAMES, files, Y_TRUE.tolist())
        assert numbers["accuracy"]["value"] == 0.8 and len(numbers["classes"]) == 3
        np.testing.assert_allclose(made["probabilities"].numpy(), SHARES, rtol=1e-6)
        columns, notes = answers.properties(given)
        assert [str(value) for value in columns.pop("site")] == list("12122") and columns == {} == dict(notes)


def test_a_constant_column_is_a_property_and_no_class(tmp_path):
    """A column `fold` became a seventh class once, and macro F1 63.5 where it is 74.1 %."""
    pd, sklearn = pytest.importorskip("pandas"), pytest.importorskip("sklearn.metrics")
    table = pd.DataFrame(SHARES, columns=[f"p_{name}" for name in NAMES])
    table.assign(y_true=Y_TRUE, fold=0, loss=0.5).to_csv(tmp_path / "a.csv", index=False)
    given = answers.read(tmp_path / "a.csv")
    _, numbers, _ = answers.evaluate_arrays(given, "a file")
    expected = sklearn.f1_score(Y_TRUE, SCORES.argmax(axis=1), average="macro")
    assert numbers["macro_f1"]["value"] == pytest.approx(expected)
    assert set(answers.properties(given)[0]) == {"fold", "loss"}


def test_properties_are_the_other_arrays_of_n_and_those_of_other_shapes_are_named():
    given = {
        "y_true": Y_TRUE,
        "logits": SCORES,
        "loss": SCORES[:, 0],
        "site": np.array(list("abcab"), object),
    }
    given |= {"y_pred": Y_TRUE, "val_x": Y_TRUE, "features": SCORES, "total": np.float64(3)}
    columns, (note,) = answers.properties(given)
    assert set(columns) == {"loss", "site"} and columns["site"].tolist() == list("abcab")
    assert note.endswith("features [5, 3], total []")


def test_logits_keep_their_kind_and_probabilities_are_rescaled():
    _, logits, none = answers.scores_in({"y_true": Y_TRUE, "logits": SCORES})
    assert none is None and logits.dtype == torch.float64 and np.array_equal(logits.numpy(), SCORES)
    half = SHARES.astype(np.float16)  # whose rows sum to 1 within .01 only
    _, logits, shares = answers.scores_in({"y_true": Y_TRUE, "probabilities": half})
    exact = half.astype(np.float64) / half.astype(np.float64).sum(axis=1, keepdims=True)
    np.testing.assert_allclose(shares.numpy(), exact, atol=1e-6)
    np.testing.assert_allclose(logits.exp().numpy(), exact, atol=1e-6)
    assert logits.dtype == torch.float32
    zero = {"y_true": [0], "probabilities": [[1.0, 0.0]]}
    assert answers.scores_in(zero)[1].isfinite().all()


def test_temperature_is_fitted_on_the_validation():
    validation = {"val_y_true": Y_TRUE, "val_probabilities": SHARES}
    given = {"y_true": Y_TRUE, "logits": SCORES} | validation
    _, numbers, _ = answers.evaluate_arrays(given, "memory")
    losses = {}  # the temperature of least loss, by trying many
    for temperature in np.geomspace(0.2, 5, 2000):
        z = torch.tensor(SCORES / temperature)
        losses[temperature] = torch.nn.functional.cross_entropy(z, torch.tensor(Y_TRUE)).item()
    assert numbers["temperature"] == pytest.approx(min(losses, key=losses.get), rel=2e-3)


@pytest.mark.parametrize(
    ("arrays", "text"),
    [
        ({"y_true": Y_TRUE}, "the arrays are y_true: expected y_true, and either"),
        ({"y_true": Y_TRUE, "probabilities": SHARES, "logits": SCORES}, "and either probabilities or logits"),
        ({"y_true": Y_TRUE, "probabilities": SHARES[:, 0]}, r"are \[5\].*np.stack\(\[1 - p, p\]"),
        ({"y_true": Y_TRUE, "probabilities": SHARES[:, :1]}, r"are \[5, 1\]"),
        ({"y_true": Y_TRUE[:0], "probabilities": SHARES[:0]}, r"are \[0, 3\]"),
        ({"y_true": Y_TRUE[:3], "logits": SCORES}, r"y_true must be \[5\]"),
        ({"y_true": Y_TRUE + 1, "logits": SCORES}, r"y_true must be in 0\.\.2, not 1 to 3"),
        ({"y_true": Y_TRUE, "probabilities": 1 / (1 + np.exp(-SCORES))}, "their rows must sum to 1"),
        ({"y_true": Y_TRUE, "probabilities": 1.011 * SHARES}, "their rows must sum to 1"),
        ({"y_true": Y_TRUE % 2, "probabilities": np.full((5, 2), 0.3)}, "0 sums to 0.6; .* column p_NAME"),
        ({"y_true": Y_TRUE, "logits": SHARES}, "call them probabilities"),
        ({"y_true": Y_TRUE, "logits": SCORES * np.nan}, "must be finite"),
        ({"y_true": Y_TRUE, "logits": SCORES, "class_names": list("aab")}, "2 different class_names"),
        ({"y_true": Y_TRUE, "logits": SCORES, "class_names": "a"}, "1 different class_names, expected 3"),
        ({"y_true": np.array(list("abcab")), "logits": SCORES}, "y_true holds 'a', which is none of"),
        ({"y_true": Y_TRUE, "logits": SCORES, "filenames": ["a"]}, "3 class_names, 1 filenames"),
        (
            {"y_true": Y_TRUE, "logits": SCORES, "images": np.zeros((4, 8, 8, 3), np.uint8)},
            r"not \(torch.uint8, \[4, 3, 8, 8\], torch.int64, \[5\]\)",
        ),
        ({"y_true": Y_TRUE, "logits": SCORES, "val_logits": SCORES}, "expected val_y_true, and either"),
    ],
)
def test_arrays_that_do_not_fit_are_refused(arrays, text):
    arrays = {key: np.asarray(value) for key, value in arrays.items()}
    with pytest.raises(data.UserError, match=text):
        answers.evaluate_arrays(arrays, "memory")


@pytest.mark.parametrize(
    ("name", "content", "text"),
    [
        ("a.csv", "y_true;p_cat;p_dog\n0;1;0\n", "its columns are y_true;p_cat;p_dog: expected y_true, and"),
        ("a.csv", "y_true,cat,dog\n0,1,0\n", "expected y_true, and p_NAME"),
        ("a.csv", "y_true,p_cat,p_dog\n0,1\n", "the row of '0' in .* does not fit"),
        ("a.csv", 'y_true,p_cat,p_dog\n0,"0,9","0,1"\n', "could not convert string to float"),
        ("a.npz", "no archive", "it holds no plain arrays"),
        ("none.npz", None, "No such file"),
    ],
)
def test_files_that_cannot_be_read_are_refused_with_lines_that_write_one(tmp_path, name, content, text):
    path = tmp_path / name
    if content is not None:
        path.write_text(content, encoding="utf-8")
    with pytest.raises(ValueError, match=text) as refused:
        answers.read(path)
    assert answers.HOW[path.suffix] in str(refused.value) and "\n" not in str(refused.value)


def test_code_in_a_file_is_not_run(tmp_path):
    class Bomb:
        def __reduce__(self):
            return (open, (str(tmp_path / "exploded"), "w"))

    np.savez(tmp_path / "a.npz", y_true=np.array([Bomb()], dtype=object))
    with pytest.raises(ValueError, match="it holds no plain arrays"):
        answers.read(tmp_path / "a.npz")
    assert not (tmp_path / "exploded").exists()


def test_images_of_other_kinds_and_orders():
    pixels = np.random.default_rng(0).integers(0, 256, (2, 5, 5, 3), dtype=np.uint8)
    images, note = answers.as_images(pixels)
    assert images.shape == (2, 3, 5, 5) and note == ""
    assert np.array_equal(np.asarray(Image.fromarray(pixels[1])), images[1].permute(1, 2, 0).numpy())
    back, note = answers.as_images(images / 255)
    assert torch.equal(back, images) and "rounded" in note
    with pytest.raises(ValueError, match=r"not from -1 to .*normalises"):
        answers.as_images(images / 127.5 - 1)


# ---- Numbers that follow -----------------------------------------------------------------------------------


def made_up(count=60, num_classes=4, seed=0):
    generator = torch.Generator().manual_seed(seed)
    logits = 2 * torch.randn(count, num_classes, generator=generator)
    labels = torch.arange(count) % num_classes
    names = [f"c{i}" for i in range(num_classes)]
    test = data.Dataset("made up", None, labels, names, [str(i) for i in range(count)])
    return test, *answers.evaluate(logits, test)


def test_further_numbers_by_loops():
    test, _, arrays = made_up()
    numbers = answers.further_numbers(arrays)
    shares = arrays["logits"].double().softmax(dim=1).numpy()
    second, histogram = [], {"right": [0] * 50, "wrong": [0] * 50}
    for row, label in zip(shares, test.labels.tolist(), strict=True):
        order = sorted(range(4), key=lambda c: -row[c])
        side = "right" if order[0] == label else "wrong"
        histogram[side][min(49, math.floor(50 * row[order[0]]))] += 1
        if side == "wrong":
            second.append(order[1] == label)
    assert numbers["confidence_histogram"] == histogram
    assert numbers["truth_second"] == pytest.approx(np.mean(second))


def test_notes_say_what_makes_numbers_mean_less():
    test, numbers, arrays = made_up()
    assert "near chance" in answers.notes_on(numbers, arrays, test, None)[0]
    numbers, arrays = answers.evaluate(torch.eye(4)[test.labels] * 5, test)
    copies = torch.full((60,), -1)
    assert answers.notes_on(numbers, arrays, test, copies) == []
    (note,) = answers.notes_on(numbers, arrays | {"logits": arrays["logits"] / 5}, test, None)
    assert "all logits lie in 0 to 1" in note
    copies[:3] = torch.tensor([0, 1, 3])  # the labels of the test images are 0, 1, 2
    (note,) = answers.notes_on(numbers, arrays, test, copies)
    assert note.startswith("3 test images are training images too, 1 of them with another label")
    few = replace(test, labels=test.labels.clamp(max=2))
    assert answers.notes_on(numbers, arrays, few, None)[0].startswith("1 classes have no test image")


def test_copies_are_found_pixel_by_pixel():
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (8, 3, 4, 4), dtype=torch.uint8, generator=generator)
    train = data.Dataset("train", images[:5], torch.tensor([3, 1, 4, 1, 5]), list("abcdef"))
    test = replace(train, images=images[[6, 1, 4, 1]], labels=train.labels[:4], filenames=None)
    assert answers.find_copies(train, test).tolist() == [-1, 1, 5, 1]


def test_table_of_answers(tmp_path):
    pd = pytest.importorskip("pandas")
    test, _, arrays = made_up(5)
    answers.write_table(tmp_path / "answers.csv", arrays)
    table = pd.read_csv(tmp_path / "answers.csv")
    assert table.true_class.tolist() == [f"c{c}" for c in test.labels]
    assert table.predicted_class.tolist() == [f"c{c}" for c in arrays["logits"].argmax(dim=1)]


# ---- Other runs --------------------------------------------------------------------------------------------


def write_run(out, seed, weights, **changes):
    test, _, _ = made_up()
    test = replace(test, **changes)
    numbers, arrays = answers.evaluate(made_up(seed=seed)[2]["logits"], test)
    numbers |= {"checkpoint_sha256": weights, "images_sha256": folder.images_digest(test)}
    report.write_numbers(out, numbers, arrays)
    return out


def test_kinds_of_mistakes_by_a_loop(tmp_path):
    test, _, arrays = made_up()
    runs = [write_run(tmp_path / str(seed), seed, f"weights {seed}") for seed in (1, 2)]
    others = answers.read_runs(runs, "weights 0", test)
    assert list(others) == [str(run) for run in runs]
    kinds, rows = answers.kinds_of_mistakes(
        test.labels, arrays["y_pred"], [run["y_pred"] for run in others.values()]
    )
    names = [row["name"] for row in rows]
    counts = dict.fromkeys(names, 0)
    predictions = [arrays["y_pred"].tolist(), *(run["y_pred"].tolist() for run in others.values())]
    for i, label in enumerate(test.labels.tolist()):
        first, *rest = (predicted[i] for predicted in predictions)
        kind = "right_in_another"
        if all(other == first for other in rest):
            kind = "same_in_all"
        elif label not in rest:
            kind = "wrong_in_all"
        assert kinds[i] == (-1 if first == label else names.index(kind))
        counts[kind] += first != label
    assert {row["name"]: row["count"] for row in rows} == counts and min(counts.values()) > 0
    assert sum(row["share"] for row in rows) == pytest.approx(1)


@pytest.mark.parametrize(
    ("changes", "weights", "text"),
    [
        ({"labels": torch.zeros(60, dtype=torch.int64)}, "other", "of other test images, labels or classes"),
        ({}, "weights 0", "has the same weights as what is examined"),
    ],
)
def test_runs_that_cannot_be_compared_are_refused(tmp_path, changes, weights, text):
    run = write_run(tmp_path / "run", 1, weights, **changes)
    with pytest.raises(ValueError, match=text):
        answers.read_runs([run], "weights 0", made_up()[0])


def test_mean_interval_by_hand():
    row = answers.mean_interval([1, 2, 3, 6])
    error = 1.96 * np.std([1, 2, 3, 6], ddof=1) / 2
    assert row == pytest.approx({"value": 3, "low": 3 - error, "high": 3 + error})


def test_calibration_error_by_chance_of_one_bin():
    """N answers of confidence p in one bin: the error is |hits / N - p|, whose mean is a sum over hits."""
    n, p = 20, 0.9
    chances = [math.comb(n, k) * p**k * (1 - p) ** (n - k) for k in range(n + 1)]
    expected = sum(chance * abs(k / n - p) for k, chance in enumerate(chances))
    measured = answers.calibration_error_by_chance(torch.full((n,), p))
    assert measured == pytest.approx(expected, rel=0.1)


def test_groups_of_classes_that_fail_share_a_word_and_their_intervals_lie_below():
    names = ["red cat", "red dog", "Red_fish", "blue cat", "green dog"]
    groups = answers.shared_words(names)
    assert groups == {"red": [0, 1, 2]}
    confusion = torch.diag(torch.tensor([5, 5, 5, 50, 50]))
    confusion[:3, 3] = 45
    (row,) = answers.failing_groups(confusion, groups)
    assert (row["name"], row["group"]["value"], row["rest"]["value"]) == ("red", 0.1, 1.0)
    assert answers.failing_groups(torch.diag(torch.full((5,), 50)), groups) == []

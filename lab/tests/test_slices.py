"""Slices against regressions with class effects, closed forms, loops, and weaknesses that are planted."""

import csv
import math
from statistics import NormalDist

import numpy as np
import pytest
import torch
from networks import seeded

from lab import slices

NAMES = [f"pictures/{i:03}.png" for i in range(40)]


def made(count, num_classes, seed=0):
    """Answers that are right more often in some classes, and two columns that say nothing."""
    generator = np.random.default_rng(seed)
    labels = generator.integers(num_classes, size=count)
    right = generator.random(count) < 0.4 + 0.5 * labels / num_classes
    columns = {"site": generator.integers(4, size=count), "light": generator.normal(size=count)}
    return torch.from_numpy(right), torch.from_numpy(labels), columns


def least_squares(right, labels, inside):
    """The coefficient of a slice beside one for each class, its residual, and that of the regression."""
    y, x = right.double().numpy(), inside.double().numpy()
    classes = np.eye(int(labels.max()) + 1)[labels.numpy()]
    both = np.column_stack([x, classes])
    coefficients = np.linalg.lstsq(both, y, rcond=None)[0]
    alone = x - classes @ np.linalg.lstsq(classes, x, rcond=None)[0]
    return coefficients[0], alone, y - both @ coefficients


def test_gaps_are_those_of_a_regression_with_class_effects():
    right, labels, columns = made(600, 12)
    rows = slices.compare_slices(right, labels, columns)
    assert len(rows) == 4 + 5
    for row in rows:
        gap, _, _ = least_squares(right, labels, row["inside"])
        assert row["gap"] == pytest.approx(gap, abs=1e-6)
        assert row["n"] == int(row["inside"].sum())
        assert row["accuracy"] == pytest.approx(right[row["inside"]].double().mean().item())


def test_intervals_are_those_of_a_loop_over_classes():
    """Sato's variance, at least that of the test of Mantel and Haenszel; M intervals at once."""
    right, labels, columns = made(600, 12)
    right |= labels < 2  # classes in which all are right
    rows = slices.compare_slices(right, labels, columns)
    z = NormalDist().inv_cdf(1 - 0.05 / (2 * len(rows)))
    for row in rows:
        total = sato_p = sato_q = tested = 0
        for c in range(12):
            x, y = row["inside"][labels == c].tolist(), right[labels == c].tolist()
            n1, n0 = sum(x), len(x) - sum(x)
            a, b = (
                sum(i and j for i, j in zip(x, y, strict=True)),
                sum(not i and j for i, j in zip(x, y, strict=True)),
            )
            n = n1 + n0
            total += n1 * n0 / n
            sato_p += (n1**2 * b - n0**2 * a + n1 * n0 * (n0 - n1) / 2) / n**2
            sato_q += (a * (n0 - b) + b * (n1 - a)) / (2 * n)
            tested += n1 * n0 * (a + b) * (n - a - b) / (n**2 * (n - 1))
        half = z * math.sqrt(max(row["gap"] * sato_p + sato_q, tested)) / total
        assert (row["low"], row["high"]) == pytest.approx((row["gap"] - half, row["gap"] + half), abs=1e-9)
        assert row["weak"] == (row["high"] < 0)
    assert [row["high"] for row in rows] == sorted(row["high"] for row in rows)


def test_pictures_that_fail_together_widen_the_interval():
    """At least the error of sums over groups of the products of both residuals, as in a loop."""
    right, labels, _ = made(600, 6)
    patients = [f"p{i // 10}" if i >= 20 else "" for i in range(600)]  # the first twenty have no patient
    right = right.view(60, 10)[:, :1].expand(60, 10).flatten()  # ten pictures of a patient fail alike
    inside = torch.arange(600) // 10 % 3 == 0
    row, _ = slices.compare_slices(right, labels, {"scanner": inside.tolist()}, patients)
    gap, alone, residual = least_squares(right, labels, row["inside"])
    sums = {}
    for i, patient in enumerate(patients):
        key = patient or i
        sums[key] = sums.get(key, 0) + alone[i] * residual[i]
    scale = len(sums) / (len(sums) - 6)
    error = math.sqrt(scale * sum(value**2 for value in sums.values())) / (alone**2).sum()
    t = slices.t_quantile(28, 0.975)  # two slices, of which the one of fewer patients has 29
    assert row["high"] - gap == pytest.approx(t * error, rel=1e-9)
    plain, _ = slices.compare_slices(right, labels, {"scanner": inside.tolist()})
    assert error > 1.5 * (plain["high"] - gap) / NormalDist().inv_cdf(1 - 0.05 / 4)


def test_quantiles_of_students_t_are_those_of_scipy():
    stats = pytest.importorskip("scipy.stats")
    for freedom in (1, 1.3, 2, 3.7, 14, 500, 9999):
        assert slices.t_quantile(freedom) == pytest.approx(stats.t.ppf(0.975, freedom), rel=1e-4)
        coverage = 1 - 0.05 / 60
        expected = stats.t.ppf((1 + coverage) / 2, freedom)
        assert slices.t_quantile(freedom, coverage) == pytest.approx(expected, rel=1e-3)


def test_intervals_of_few_groups_hold_at_once():
    """Twelve patients of their own accuracy, and columns that say nothing; one of a single patient."""
    patients, generator, wrong = torch.arange(300) // 25, np.random.default_rng(0), 0
    for _ in range(40):
        rate = 1 / (1 + np.exp(-1.7 - generator.normal(size=12)))[patients]
        columns = {f"c{j}": generator.permutation(np.arange(12) % 3)[patients] for j in range(5)}
        columns["one"] = patients == 0
        right, labels = generator.random(300) < rate, generator.integers(3, size=300)
        rows = slices.compare_slices(right, labels, columns, patients)
        assert [row["high"] is None for row in rows if row["column"] == "one"] == [True, True]
        wrong += any(row["weak"] or row["low"] > 0 for row in rows if row["high"] is not None)
    assert wrong <= 5  # 2 are expected, 6 or more by chance once in seventy times


def test_a_planted_weakness_is_found_and_hard_classes_are_not_weak():
    """A scanner whose pictures fail, beside one that photographs the hard classes alone."""
    right, labels, columns = made(3000, 20)
    columns["scanner"] = np.random.default_rng(1).choice(["north", "south", "west"], 3000)
    columns["clinic"] = np.where((labels.numpy() < 5) & (columns["light"] > 0), "hard", "easy")
    right &= torch.from_numpy((columns["scanner"] != "west") | (np.random.default_rng(2).random(3000) < 0.7))
    rows = slices.compare_slices(right, labels, columns)
    assert [row["slice"] for row in rows if row["weak"]] == ["scanner = west"] == [rows[0]["slice"]]
    hard = next(row for row in rows if row["slice"] == "clinic = hard")
    assert hard["accuracy"] < 0.5 and hard["high"] > 0


COLUMNS = [  # values, the slices of "x"
    (["b", "a", "", "a", "NaN", None], ["x is missing", "x = a", "x = b"]),
    ([2, 1, 10, 1], ["x = 1", "x = 2", "x = 10"]),
    (["2.0", "1", "n/a?", "1"], ["x = 1", "x = 2.0", "x = n/a?"]),
    (list(range(20)), [f"x = {i}" for i in range(20)]),
    (list(range(1, 22)), ["x <= 5", "5 < x <= 9", "9 < x <= 13", "13 < x <= 17", "x > 17"]),
    ([0.5, 1.5, 1.5, float("nan")], ["x is missing", "x = 0.5", "x = 1.5"]),
    ([*[0.5] * 90, 1, 2, 3, 4, 5], ["x <= 0.5", "x > 0.5"]),
    ([*[9] * 90, 8.5, 1, 2, 3, 4], ["x <= 8.5", "x > 8.5"]),
    ([True, False], ["x = False", "x = True"]),
    ([f"id{i}" for i in range(101)], []),
]


@pytest.mark.parametrize(("values", "expected"), COLUMNS)
def test_slices_of_a_column(values, expected):
    made = slices.slices_of("x", values)
    assert [text for text, _ in made] == expected
    if made:
        assert torch.stack([inside for _, inside in made]).sum(dim=0).eq(1).all()  # each picture in one
    else:
        assert slices.notes_on({"x": values}) == ["the column x has 101 different texts, and is left out"]
    assert [text for text, _ in slices.slices_of("x", np.array(values))] == expected


def test_slices_of_too_few_pictures_come_last_and_are_not_weak():
    right, labels = torch.zeros(300).bool(), torch.arange(300) % 3
    right[::2] = True
    rows = slices.compare_slices(right, labels, {"class": labels, "rare": torch.arange(300) < 5})
    unknown = rows[-5:]  # one row a class, and both of the rare value
    assert len(rows) == 5 and all(row["gap"] is row["high"] is None and not row["weak"] for row in unknown)


# ---- Tables and pictures -----------------------------------------------------------------------------------


def written(tmp_path, rows):
    with (tmp_path / "table.csv").open("w", newline="", encoding="utf-8-sig") as file:
        csv.writer(file).writerows(rows)
    return tmp_path / "table.csv"


@pytest.mark.parametrize("short", [False, True])
def test_a_table_is_brought_into_the_order_of_the_pictures(tmp_path, short):
    rows = [
        [name.removeprefix("pictures/") if short else name, i, f"Zürich {i % 3}"]
        for i, name in enumerate(NAMES)
    ]
    table = written(tmp_path, [["file", "age", "site, or"], *rows[:1:-1], ["other.png", 1, "x"]])
    columns, notes = slices.read_table(table, NAMES)
    assert (
        columns["age"] == ["", "", *(str(i) for i in range(2, 40))] and columns["site, or"][2] == "Zürich 2"
    )
    assert list(columns) == ["age", "site, or"]
    assert notes == [f"1 rows of {table} name no picture of the test set"]


REFUSED = [
    ([], "expected UTF-8, commas, and a head"),
    ([["file", "a", "a"], [NAMES[0], 1, 2]], "its head in .* does not fit"),
    ([["file", "a"], [NAMES[0], 1], [NAMES[1]]], "the row of 'pictures/001.png' in .* does not fit"),
    ([["file", "a"], ["x/000.png", 1], ["y/000.png", 2]], "'000.png' stands 2 times in .*table.csv"),
    ([["file", "a"], ["z.png", 1]], "no row of .* names a picture: expected names such as 'pictures/000"),
]


@pytest.mark.parametrize(("rows", "message"), REFUSED)
def test_tables_that_are_refused(tmp_path, rows, message):
    with pytest.raises(ValueError, match=message):
        slices.read_table(written(tmp_path, rows), NAMES)


def test_pictures_of_one_name_in_two_folders_need_their_folders(tmp_path):
    names = ["cat/1.png", "dog/1.png"]
    with pytest.raises(ValueError, match=r"'1.png' stands 2 times among the pictures: give their folders"):
        slices.read_table(written(tmp_path, [["file", "a"], ["1.png", 1]]), names)
    columns, _ = slices.read_table(written(tmp_path, [["file", "a"], ["dog/1.png", 1]]), names)
    assert columns == {"a": ["", "1"]}


def test_computed_properties_are_those_of_loops():
    images = torch.randint(0, 256, (3, 3, 16, 16), dtype=torch.uint8, generator=seeded())
    columns = slices.computed(images)
    for i, image in enumerate(images.double().numpy() / 255):
        luma = np.array([0.299, 0.587, 0.114]) @ image.reshape(3, -1)
        square = luma.reshape(16, 16)
        steps = [abs(square[y, x] - square[y, x - 1]) for y in range(16) for x in range(1, 16)]
        steps += [abs(square[y, x] - square[y - 1, x]) for y in range(1, 16) for x in range(16)]
        border = [square[y, x] for y in range(16) for x in range(16) if not (2 <= y < 14 and 2 <= x < 14)]
        mirrored = [
            abs(image[c, y, x] - image[c, y, 15 - x]) for c in range(3) for y in range(16) for x in range(16)
        ]
        expected = {
            "brightness": luma.mean(),
            "contrast": math.sqrt(((luma - luma.mean()) ** 2).mean()),
            "colourfulness": np.mean([max(pixel) - min(pixel) for pixel in image.reshape(3, -1).T]),
            "sharpness": np.mean(steps),
            "asymmetry": np.mean(mirrored),
            "brightness of the border": np.mean(border),
        }
        assert {name: values[i].item() for name, values in columns.items()} == pytest.approx(
            expected, abs=1e-5
        )


def test_pictures_are_drawn_inside_and_beside_a_slice():
    labels = torch.arange(400) % 8
    inside, allowed = (torch.arange(400) % 5 == 0) & (labels < 6), labels != 3
    first, second = slices.draw_beside(inside, labels, allowed)
    assert len(first.unique()) == len(second.unique()) == 9
    assert inside[first].all() and not inside[second].any()
    drawn = {*labels[first].tolist()}
    assert {*labels[second].tolist()} <= drawn <= {0, 1, 2, 4, 5} and len(drawn) > 2  # not all of one class
    few = slices.draw_beside(torch.ones(4).bool(), torch.arange(4), torch.ones(4).bool())
    assert [len(places) for places in few] == [4, 0]

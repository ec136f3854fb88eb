"""Slices: in which pictures is a network wrong more often than their classes explain?

A slice holds the pictures that share a property, such as a scanner or little light. It is compared with the
other pictures of the same classes, so that none is weak for holding the hard ones. All intervals hold at once
with 95 %, so that of the worst slice, picked for being worst, holds too.
"""

import csv
import functools
import itertools
import math
from pathlib import Path
from statistics import NormalDist

import numpy as np
import torch
from torch import Tensor

import data
from data import UserError

LEAST = 10  # the weight that a slice needs, see gap; below it the interval is wide or wrong
FIFTHS = 5  # slices of a number
MOST_NUMBERS, MOST_TEXTS = 20, 100  # different whole numbers that are categories; different texts
FACTS = ("slice", "column", "n", "accuracy", "gap", "low", "high", "weak")  # of a row of slices.csv


# ---- Properties of pictures --------------------------------------------------------------------------------


def read_csv(path: Path) -> dict[str, list[str]]:
    """Return the columns of a .csv file, UTF-8 with commas and a head; UserError for anything else."""
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            head, *rows = [row for row in csv.reader(file) if row]
    except (ValueError, csv.Error) as error:
        raise UserError(f"{path} is no table: expected UTF-8, commas, and a head; {error}") from error
    wrong = next((row[0] for row in rows if len(row) != len(head)), None)
    if wrong is not None or len(set(head)) < len(head):
        problem = "its head" if wrong is None else f"the row of {wrong!r}"
        raise UserError(f"{problem} in {path} does not fit: expected different names, and a cell for each")
    return {name: [row[i] for row in rows] for i, name in enumerate(head)}


def read_table(path: Path, filenames: list[str]) -> tuple[dict[str, list[str]], list[str]]:
    """Return the columns of a .csv file in the order of the pictures, "" where it has no row; and notes.

    Its first column names the pictures, with or without their folders. Raises UserError for what is no such
    table, for a picture that is named twice, and if no picture is named.
    """
    first, *columns = read_csv(path).items()
    named, wanted = first[1], filenames
    if not {*named} & {*filenames}:  # the names alone
        named, wanted = ([Path(name).name for name in names] for names in (named, filenames))
    in_table, in_test = f"in {path}", "among the pictures: give their folders in the table"
    for names, where in ((named, in_table), (wanted, in_test)):
        if len(set(names)) < len(names):
            twice = max(names, key=names.count)
            raise UserError(f"{twice!r} stands {names.count(twice)} times {where}")
    rows = {name: i for i, name in enumerate(named)}
    strangers = len(rows.keys() - {*wanted})
    if strangers == len(rows):
        raise UserError(f"no row of {path} names a picture: expected names such as {filenames[0]!r}")
    notes = [f"{strangers:,} rows of {path} name no picture of the test set"] if strangers else []
    return {
        name: [texts[rows[key]] if key in rows else "" for key in wanted] for name, texts in columns
    }, notes


def computed(images: Tensor) -> dict[str, Tensor]:
    """Return six properties of images uint8 [N, 3, S, S], each float32 [N] in [0, 1].

    Brightness is the mean luma (ITU-R BT.601), contrast its standard deviation, sharpness its mean step to
    the next pixel; colourfulness is the mean of the largest less the smallest channel, asymmetry the mean
    distance from the mirror image. The border is an eighth of the side wide.
    """
    side, parts = images.shape[-1], []
    edge = torch.ones(side, side, dtype=torch.bool)
    edge[side // 8 : side - side // 8, side // 8 : side - side // 8] = False
    for part in data.parts(images, "cpu"):
        x = part / 255
        luma = 0.299 * x[:, 0] + 0.587 * x[:, 1] + 0.114 * x[:, 2]
        properties = {
            "brightness": luma.mean(dim=(1, 2)),
            "contrast": luma.std(dim=(1, 2), correction=0),
            "colourfulness": (x.amax(dim=1) - x.amin(dim=1)).mean(dim=(1, 2)),
            "sharpness": (luma.diff(dim=1).abs().mean(dim=(1, 2)) + luma.diff(dim=2).abs().mean(dim=(1, 2)))
            / 2,
            "asymmetry": (x - x.flip(-1)).abs().mean(dim=(1, 2, 3)),
            "brightness of the border": luma[:, edge].mean(dim=1),
        }
        parts.append(properties)
    return {name: torch.cat([properties[name] for properties in parts]) for name in parts[0]}


# ---- Slices ------------------------------------------------------------------------------------------------


def as_texts(values: list | np.ndarray | Tensor) -> tuple[np.ndarray, np.ndarray]:
    """Return the values of a column as texts [N], and which are missing, bool [N]."""
    values = values.tolist() if isinstance(values, Tensor | np.ndarray) else values
    texts = np.array([str(value).strip() for value in values])
    return texts, np.isin(np.char.lower(texts), ["", "nan", "none", "na"])


def slices_of(name: str, values: list | np.ndarray | Tensor) -> list[tuple[str, Tensor]]:
    """Return the slices of a column, each its text and bool [N]; none for more than 100 different texts.

    Each text is a slice, and so are whole numbers of at most 20 values. Other numbers of more than five
    values are cut in fifths, equal ones staying together. What is missing, an empty text or nan, is a slice
    too.
    """
    texts, missing = as_texts(values)
    slices = [(f"{name} is missing", missing)] if missing.any() else []
    try:
        numbers = np.where(missing, "nan", texts).astype(float)
    except ValueError:
        numbers = None
    known = texts[~missing] if numbers is None else numbers[~missing]
    different = np.unique(known)
    is_whole = numbers is not None and (different == different.round()).all()
    if numbers is None and len(different) <= MOST_TEXTS:
        slices += [(f"{name} = {text}", texts == text) for text in different]
    elif numbers is not None and len(different) <= (MOST_NUMBERS if is_whole else FIFTHS):
        slices += [(f"{name} = {number:.10g}", numbers == number) for number in different]
    elif numbers is not None:
        edges = np.quantile(known, np.arange(1, FIFTHS) / FIFTHS).clip(max=different[-2])
        edges = [-math.inf, *np.unique(edges), math.inf]
        for low, high in itertools.pairwise(edges):
            text = f"{low:.3g} < {name} <= {high:.3g}"
            text = f"{name} <= {high:.3g}" if low == -math.inf else text
            text = f"{name} > {low:.3g}" if high == math.inf else text
            slices.append((text, (numbers > low) & (numbers <= high)))  # nan is in none
    return [(text, torch.from_numpy(inside)) for text, inside in slices]


def notes_on(columns: dict) -> list[str]:
    """Return which columns hold too many different texts to be sliced, for people."""
    notes = []
    for name, values in columns.items():
        if not slices_of(name, values):
            count = len(np.unique(as_texts(values)[0]))
            notes.append(f"the column {name} has {count:,} different texts, and is left out")
    return notes


def gap(
    right: Tensor, labels: Tensor, inside: Tensor, groups: Tensor | None = None
) -> tuple[float, float, float]:
    """Return accuracy inside minus outside a slice at equal classes, its standard error, and its weight.

    right bool [N]: which answers are right; labels int64 [N]; inside bool [N]; groups int64 [N], such as
    patients, whose pictures fail together: the error is then at least that of sums over groups.

    The difference is that of Mantel and Haenszel: within each class accuracy inside minus outside, averaged
    with weights n1 n0 / (n1 + n0), whose sum is the last number: 0 if no class has pictures on both sides.
    See Greenland and Robins, "Estimation of a common effect parameter from sparse follow-up data", Biometrics
    1985. The variance is that of Sato, "On the variance estimator for the Mantel-Haenszel risk difference",
    Biometrics 1989, which holds for many classes of few pictures; but at least that of the test of Mantel and
    Haenszel, as Sato's is too small where nearly all answers are right, or wrong.
    """
    rows = (inside, ~inside, inside & right, ~inside & right)
    n1, n0, a, b = (torch.bincount(labels[row], minlength=int(labels.max()) + 1).double() for row in rows)
    n, m = (n1 + n0).clamp(min=1), a + b
    weight = float((n1 * n0 / n).sum())
    if weight == 0:
        return math.nan, math.nan, 0.0
    difference = float(((a * n0 - b * n1) / n).sum()) / weight
    p = (n1**2 * b - n0**2 * a + n1 * n0 * (n0 - n1) / 2) / n**2
    q = (a * (n0 - b) + b * (n1 - a)) / (2 * n)
    tested = n1 * n0 * m * (n - m) / (n**2 * (n - 1).clamp(min=1))
    variance = max(float((difference * p + q).sum()), float(tested.sum()))
    if groups is not None:
        residual = inside.double() - (n1 / n)[labels]  # of the slice, once the classes are known
        scores = residual * (right.double() - (m / n)[labels] - difference * residual)
        sums = torch.bincount(groups, weights=scores)
        count = len(groups.unique())
        scale = count / max(count - len(labels.unique()), 1)  # the classes cost freedom
        variance = max(variance, scale * float((sums**2).sum()))
    return difference, math.sqrt(variance) / weight, weight


@functools.cache  # many slices have equally many groups
def t_quantile(freedom: float, coverage: float = 0.95) -> float:
    """Return how far Student's t with `freedom` degrees of freedom, 1 or more, reaches to either side.

    That is the 97.5 % quantile for a coverage of 95 %. With t = sqrt(freedom) tan(a) the density of t becomes
    cos(a)^(freedom - 1), up to a constant. The quantile is where the coverage of its integral from 0 to
    pi / 2, here a sum over a fine grid, is reached.
    Source: Student, "The probable error of a mean", 1908, section III.
    """
    angles = np.linspace(0, math.pi / 2, 200_001)
    density = np.cos(angles) ** (freedom - 1)
    reached = np.cumsum(density[:-1] + density[1:])
    return math.sqrt(freedom) * math.tan(np.interp(coverage, reached / reached[-1], angles[1:]))


def compare_slices(
    right: Tensor, labels: Tensor, columns: dict, groups: list | np.ndarray | Tensor | None = None
) -> list[dict]:
    """Return a row for each slice of the columns, {name: N values}, the worst slice first.

    right bool [N]; labels int64 [N]; groups: N values, see gap; a missing one is a group of its own. A row
    has the FACTS and `inside`, bool [N]. `gap` is accuracy inside minus outside at equal classes, `low` and
    `high` its interval. The M intervals hold at once with 95 % (Bonferroni: each with 1 - 0.05 / M). With
    groups they are of Student's t, whose degrees of freedom are the groups inside or outside, whichever are
    fewer, less 1. `weak` is whether high < 0; -high is what a weak slice loses at least. The gap of the worst
    of many is too large by itself. Slices are sorted by `high`. gap, low and high are None, and come last,
    for slices that weigh less than LEAST, as a value that is the same in a whole class, and of one group.
    """
    right, labels = torch.as_tensor(right), torch.as_tensor(labels)
    if groups is not None:
        texts, missing = as_texts(groups)
        own = np.array([f"missing {i}" for i in range(len(texts))])
        groups = torch.from_numpy(np.unique(np.where(missing, own, texts), return_inverse=True)[1])
    rows = []
    for name, values in columns.items():
        for text, inside in slices_of(name, values):
            difference, error, weight = gap(right, labels, inside, groups)
            accuracy = float(right[inside].double().mean())
            facts = {"slice": text, "column": name, "n": int(inside.sum()), "accuracy": accuracy}
            sides = [] if groups is None else [groups[inside], groups[~inside]]
            freedom = min((len(side.unique()) - 1 for side in sides), default=math.inf)
            facts |= {"known": weight >= LEAST and error > 0 and freedom >= 1, "freedom": freedom}
            rows.append(facts | {"gap": difference, "error": error, "inside": inside})
    level = 0.05 / max(sum(row["known"] for row in rows), 1)
    for row in rows:
        error, known, freedom = row.pop("error"), row.pop("known"), row.pop("freedom")
        row["low"] = row["high"] = None
        if known:
            z = NormalDist().inv_cdf(1 - level / 2) if groups is None else t_quantile(freedom, 1 - level)
            row["low"], row["high"] = row["gap"] - z * error, row["gap"] + z * error
        row["gap"], row["weak"] = (row["gap"], row["high"] < 0) if known else (None, False)
    return sorted(rows, key=lambda row: math.inf if row["high"] is None else row["high"])


def draw_beside(inside: Tensor, labels: Tensor, allowed: Tensor, count: int = 9) -> tuple[Tensor, Tensor]:
    """Draw pictures of a slice, and as many of the same classes outside of it; their places, int64 [k] each.

    inside and allowed bool [N]; labels int64 [N]. Only pictures that are allowed are drawn, at most `count`.
    """
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(4))
    order = order[allowed[order]]
    first = order[inside[order]][:count]
    beside = ~inside[order] & torch.isin(labels[order], labels[first])
    return first, order[beside][:count]

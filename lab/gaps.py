"""The statistics of slices: a gap and its error, also where pictures of a group, such as a patient, agree.

right, bool [N], says which pictures are answered right; labels, int64 [N], their classes.
"""

import math
from statistics import NormalDist

import numpy as np
import torch
from torch import Tensor

from lab.intervals import t_quantile
from lab.tables import as_texts
from metrics import Values

LEAST = 10  # the weight that a slice needs, see gap; below it the interval is wide or wrong
SPREAD = 0.1  # by which gaps are taken to differ between groups, see within


def as_groups(groups: Values) -> tuple[Tensor, np.ndarray]:
    """Return the group of each picture, int64 [N] in 0..G-1, and their names [G]; a missing is its own."""
    texts, missing = as_texts(groups)
    texts = [f"missing {i}" if missing[i] else text for i, text in enumerate(texts)]
    names, ids = np.unique(texts, return_inverse=True)
    return torch.from_numpy(ids), names


def weighed(n1: Tensor, n0: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """Return the weight of each class, and this times its accuracy inside and outside, [3, C]; see gap."""
    return torch.stack([n1 * n0, a * n0, b * n1]) / (n1 + n0).clamp(min=1)


def gap(right: Tensor, labels: Tensor, inside: Tensor, groups: Tensor | None = None) -> dict:
    """Return accuracy inside minus outside a slice at equal classes, its error, and what it is made of.

    right bool [N]; labels int64 [N]; inside bool [N]; groups int64 [N] in 0..G-1, such as patients, whose
    pictures fail together. Of n pictures of a class n1 are inside, of which a are right, and n0 outside, b
    right. The gap of Mantel and Haenszel is `here` less `others`, of the same weights,

        weight = sum n1 n0 / n;  here = sum (a n0 / n) / weight;  others = sum (b n1 / n) / weight,

    and `by_class` [C] adds up to it. See Greenland and Robins, "Estimation of a common effect parameter from
    sparse follow-up data", Biometrics 1985. Its variance (gap P + Q) / weight^2 is that of Sato, "On the
    variance estimator for the Mantel-Haenszel risk difference", Biometrics 1989, for many classes of few
    pictures, but at least that of their test, as Sato's is too small where nearly all are right, or wrong.

    With groups it is the gap `within` them where half of the weight is left there; else it is between them,
    and its error at least that of the jackknife, infinite if it cannot be known. `alone` is that without
    groups.
    """
    masks = (inside, ~inside, inside & right, ~inside & right)
    counts = [torch.bincount(labels[mask], minlength=int(labels.max()) + 1).double() for mask in masks]
    (n1, n0, a, b), (weights, in_slice, outside) = counts, weighed(*counts)
    n, m, weight = (n1 + n0).clamp(min=1), a + b, max(float(weights.sum()), 1e-9)
    here, others = float(in_slice.sum()) / weight, float(outside.sum()) / weight
    row = {"gap": here - others, "here": here, "others": others, "weight": weight}
    row["by_class"] = (in_slice - outside) / weight
    p = (n1**2 * b - n0**2 * a + n1 * n0 * (n0 - n1) / 2) / n**2
    q = (a * (n0 - b) + b * (n1 - a)) / (2 * n)
    tested = n1 * n0 * m * (n - m) / (n**2 * (n - 1).clamp(min=1))
    row["alone"] = math.sqrt(max(float((row["gap"] * p + q).sum()), float(tested.sum()))) / weight
    row |= {"error": row["alone"], "freedom": math.inf, "within": False}
    if groups is not None:
        of_groups, row["freedom"] = jackknife(counts, masks, labels, groups)
        row["error"], inner = max(row["alone"], of_groups), within(right, labels, inside, groups)
        if inner.pop("weight") >= max(weight / 2, LEAST) and 2 * inner["freedom"] >= row["freedom"]:
            row |= inner | {"within": True}
    if weight < LEAST or row["error"] == 0 or row["freedom"] == 0:  # it cannot be known
        row |= {"error": math.inf, "freedom": math.inf}
    return row


def within(right: Tensor, labels: Tensor, inside: Tensor, groups: Tensor) -> dict:
    """Return the gap within groups, its error, degrees of freedom, and the weight that is left there.

    x and y are what a mean for each class and each group, found in turns, leaves of whether a picture is
    inside, and of whether it is right; groups on one side alone are left out. Of a group g

        s_g = sum x^2;  gap_g = sum x y / s_g;  w_g = 1 / (v / s_g + SPREAD^2);  h_g = w_g / sum w

    with v the variance of y, and the gap is sum h_g gap_g. These are the weights of DerSimonian and Laird,
    "Meta-analysis in clinical trials", Controlled Clinical Trials 1986, as if gaps differed between groups by
    SPREAD: fixed, as few groups tell no spread, and so that no large group outweighs all others. Its variance

        sum q_g (gap_g - gap)^2,  q_g = h_g^2 / (1 - h_g),  of freedom 1 / (sum h^2 + (sum q)^2 - sum q^2)

    holds whatever gaps differ by. It is CR2 of Bell and McCaffrey, see jackknife, for a mean of gaps: Tipton,
    "Small sample adjustments for robust variance estimation with meta-regression", Psychological Methods
    2015. It is at least sum h_g^2 v / s_g, that of equal gaps.
    """
    share = torch.bincount(groups, inside) / torch.bincount(groups)
    varies = ((share > 0) & (share < 1))[groups]
    nothing = dict.fromkeys(("gap", "error", "freedom", "weight"), 0.0)
    if not varies.any():
        return nothing
    groups, labels = (torch.unique(ids[varies], return_inverse=True)[1] for ids in (groups, labels))
    left = torch.stack([inside, right])[:, varies].double()
    for _ in range(50):
        before = left
        for ids in (labels, groups):
            sums = torch.zeros(2, int(ids.max()) + 1, dtype=left.dtype).index_add(1, ids, left)
            left = left - (sums / torch.bincount(ids))[:, ids]
        if (left - before).abs().max() < 1e-4:
            break
    x, y = left
    s = torch.bincount(groups, x.square()).clamp(min=1e-9)
    v = float(y.square().sum()) / max(len(y) - len(s) - len(labels.unique()) + 1, 1)
    gaps, h = torch.bincount(groups, x * y) / s, 1 / (v / s + SPREAD**2)
    h = h / h.sum()
    if h.max() > 1 - 1e-6:  # one group has all
        return nothing
    q, mean = h.square() / (1 - h), float(h @ gaps)
    variance = max(float(q @ (gaps - mean).square()), float(h.square() @ (v / s)))
    freedom = 1 / float(h.square().sum() + q.sum() ** 2 - q.square().sum())
    return {"gap": mean, "error": math.sqrt(variance), "freedom": freedom, "weight": float(s.sum())}


def jackknife(counts: list, masks: tuple, labels: Tensor, groups: Tensor) -> tuple[float, float]:
    """Return the jackknife error of a gap over G groups and its degrees of freedom; 0, 0 if one holds all.

    counts and masks: those inside and outside, in all and right, see gap. The gap is found again without each
    group: the variance is (G - 1) / G times the sum of the squared changes. The freedom is that of
    Satterthwaite, as if pictures were independent: trace(V)^2 / trace(V^2) of the covariance V [G, G] of the
    changes. Both are of Bell and McCaffrey, "Bias reduction in standard errors for linear regression with
    multi-stage samples", Survey Methodology 2002. A group with the share h of the weight of a side changes it
    by its own sum, less h times that of the side, over 1 - h: V is diagonal less a product for each side,
    exactly for one class. So many groups count as few if some hold nearly all.
    """
    counts, num_classes, count = torch.stack(counts), len(counts[0]), int(groups.max()) + 1
    cells, place = torch.unique(groups * num_classes + labels, return_inverse=True)  # a group and a class
    in_cells = torch.stack([torch.bincount(place[mask], minlength=len(cells)) for mask in masks])
    cell_class, of_classes = cells % num_classes, weighed(*counts)
    changes = weighed(*(counts[:, cell_class] - in_cells)) - of_classes[:, cell_class]
    total = of_classes.sum(dim=1)
    without = total[:, None].repeat(1, count).index_add(1, cells // num_classes, changes)  # each group
    if without[0].min() < 0.25:  # 0 but for rounding, as two pictures weigh 1 / 2
        return 0.0, 0.0
    moved = (without[1] - without[2]) / without[0] - (total[1] - total[2]) / total[0]
    error = math.sqrt((count - 1) / count * float(moved.square().sum()))
    n1, n0 = counts[0][labels], counts[1][labels]
    weights = torch.where(masks[0], n0, n1) / (n1 + n0) / total[0]  # of pictures, in their side
    shares = torch.stack([torch.bincount(groups, weights=weights * mask) for mask in masks[:2]])
    spread = torch.stack([weights[mask].norm() for mask in masks[:2]])[:, None]
    changed = spread * shares / (1 - shares)
    diagonal, product = (changed * spread / (1 - shares)).sum(dim=0), changed.square().sum(dim=0)
    squares = diagonal.square().sum() - 2 * diagonal @ product + (changed @ changed.T).square().sum()
    return error, max(float((diagonal - product).sum() ** 2 / squares), 1.0)


def gap_interval(row: dict, level: float) -> tuple[float, float]:
    """Return the interval of a gap that misses it with the probability `level`, all numbers if need be."""
    normal, freedom = NormalDist().inv_cdf(1 - level / 2), row["freedom"]
    reach = row["error"] * (normal if math.isinf(freedom) else t_quantile(freedom, 1 - level))
    return row["gap"] - reach, row["gap"] + reach


# ---- Counts that are too few for an interval ------------------------------------------------------------


def chance_of(right: Tensor, labels: Tensor, inside: Tensor) -> float:
    """Return mid_p of a slice, bool [N], within classes: right bool [N]; labels int64 [N]."""
    masks, num_classes = (inside, inside & ~right, ~inside, ~inside & ~right), int(labels.max()) + 1
    counts = torch.stack([torch.bincount(labels[mask], minlength=num_classes) for mask in masks], dim=1)
    return mid_p(counts[counts[:, 0] > 0])


def mid_p(counts: Tensor) -> float:
    """Return how surely so many inside of a slice are wrong by chance, at the right answers of each class.

    counts [C, 4]: of each class the n inside, those of them that are wrong, and both outside. It is the exact
    test of Mantel and Haenszel, of one class Fisher's: of the wrong of each class hypergeometric many lie
    inside, independently. Of their sum X it returns P(X > wrong) + P(X = wrong) / 2, the mid-p of Lancaster,
    "Significance tests in discrete distributions", Journal of the American Statistical Association 1961.
    """

    def log_ways(total: Tensor, chosen: Tensor) -> Tensor:
        return torch.lgamma(total + 1) - torch.lgamma(chosen + 1) - torch.lgamma(total - chosen + 1)

    chances, more = np.ones(1), 0  # of the fewest that can lie inside, and more
    for n, wrong, others, wrong_there in counts.double():
        both = wrong + wrong_there
        x = torch.arange(max(0, int(both - others)), int(min(n, both)) + 1).double()
        ways = log_ways(n, x) + log_ways(others, both - x) - log_ways(n + others, both)
        chances, more = np.convolve(chances, ways.exp().numpy()), more + int(wrong - x[0])
    return float(chances[more:].sum() - chances[more] / 2)


def independent_shares(wrong: Tensor, cell: Tensor, groups: Tensor) -> Tensor:
    """Return as which part of an independent picture each counts, float64 [N]; see compare_classes.

    wrong float64 [N]; cell int64 [N], even inside of the slice; groups int64 [N]. r is 1 if pictures of a
    group are equal, 0 if no more than any two: the mean product of two over the variance, averaged over
    groups of n pictures with the weights 1 - 1 / n, so that no large one outweighs the others.
    """
    rest, r = wrong - (torch.bincount(cell, wrong) / torch.bincount(cell).clamp(min=1))[cell], 0.0
    for side in (cell % 2 == 0, cell % 2 == 1, cell >= 0):
        n = torch.bincount(groups[side]).double().clamp(min=1)
        squares = torch.bincount(groups[side], rest[side].square())
        products = torch.bincount(groups[side], rest[side]).square() - squares
        most = float((1 - 1 / n).sum() * rest[side].square().mean())
        r = max(r, min(float((products / n.square()).sum()) / max(most, 1e-9), 1.0))
    in_cell = groups * (int(cell.max()) + 1) + cell
    _, place, n = torch.unique(in_cell, return_inverse=True, return_counts=True)
    return 1 / (1 + (n[place] - 1) * r)

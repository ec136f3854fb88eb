"""Shares, means and differences with their intervals: over images, over seeds, and of the worst of several.

A row is a dict of `value`, `low` and `high`, the ends of 95 %. The conventions are those of metrics.py.
"""

import functools
import math
import statistics
from statistics import NormalDist

import numpy as np
import torch
from torch import Tensor

from metrics import Values, as_tensor, proportion

FEWEST_ASSISTED = 10  # answers that scores can assist


def share(hits: Tensor) -> dict[str, float]:
    """Return the share of True in bool [N], or in D draws [D, N], with its interval over the N images.

    One draw, and a share of none or all, has Wilson's interval; more have 1.96 standard errors of their mean.
    """
    hits = torch.atleast_2d(hits)
    if len(hits) == 1 or not hits.any() or hits.all():
        return proportion(int(hits[0].sum()), hits.shape[1])
    return mean_share(hits.double().mean(dim=0))


def mean_share(shares: Values, reach: float = 1.96) -> dict[str, float]:
    """Return the mean of shares [N] with its interval, see mean_interval, within [0, 1]."""
    row = mean_interval(shares, reach)
    return row | {"low": max(0.0, row["low"]), "high": min(1.0, row["high"])}


def mean_interval(values: Values, reach: float = 1.96) -> dict[str, float]:
    """Return the mean of numbers [N] as `value`, and `low` and `high`, `reach` standard errors away.

    By default that is the normal quantile; of few numbers, such as fifteen, give that of t_quantile.
    The standard error is s / sqrt(N), where s^2 is the sum of the squared distances from the mean, divided by
    N - 1: the numbers lie closer to their own mean than to the true one.
    """
    values = as_tensor(values).double()
    value = values.mean().item()
    # This is s / sqrt(N), but for a single number 0 and not NaN.
    error = reach * values.std(correction=0).item() / math.sqrt(max(1, len(values) - 1))
    return {"value": value, "low": value - error, "high": value + error}


def auroc(higher: Tensor, lower: Tensor) -> dict[str, float]:
    """Return how often one of `higher` [N] exceeds one of `lower` [M], ties by half, with its interval.

    That is the area under the ROC curve. Of each number the share of the other side is taken; these shares
    have the area as their mean, and the variances of both means add up to its own. Source: DeLong, DeLong and
    Clarke-Pearson, "Comparing the areas under two or more correlated receiver operating characteristic
    curves: a nonparametric approach", Biometrics 1988. Where all pairs agree it has Wilson's interval of the
    smaller side.
    """
    wins = (higher[:, None] > lower).double() + (higher[:, None] == lower).double() / 2
    value, parts = wins.mean().item(), (wins.mean(dim=1), wins.mean(dim=0))
    if value in (0, 1):
        return proportion(value * min(wins.shape), min(wins.shape))
    reach = 1.96 * math.sqrt(sum(part.var().item() / len(part) for part in parts))
    return {"value": value, "low": max(0.0, value - reach), "high": min(1.0, value + reach)}


def in_points(row: dict[str, float], digits: int = 1) -> str:
    """Return a difference of shares with its interval as "+1.2 (+0.3 to +2.1)"."""
    value, low, high = (f"{100 * row[key]:+.{digits}f}" for key in ("value", "low", "high"))
    return f"{value} ({low} to {high})"


# ---- Wider than 1.96 standard errors -----------------------------------------------------------------------


@functools.cache
def t_quantile(freedom: float, coverage: float = 0.95) -> float:
    """Return how far Student's t with `freedom` degrees of freedom, 1 or more, reaches to either side.

    That is the 97.5 % quantile for a coverage of 95 %. With t = sqrt(freedom) tan(a) the density of t becomes
    cos(a)^(freedom - 1), up to a constant; its integral from 0, here a sum over a grid that is finest at the
    end, is to reach the coverage of that to pi / 2. Source: Student, "The probable error of a mean",
    Biometrika 1908, section III.
    """
    angles = math.pi / 2 * (1 - np.linspace(1, 0, 20_001) ** 2)
    density = np.cos(angles) ** (freedom - 1)
    reached = np.cumsum((density[:-1] + density[1:]) * np.diff(angles))
    return math.sqrt(freedom) * math.tan(np.interp(coverage, reached / reached[-1], angles[1:]))


def widened(share: float, count: float, reach: float) -> dict[str, float]:
    """Return Wilson's interval of a share of `count`, which reaches so many standard errors, not 1.96.

    It depends on reach^2 / count alone, so a larger reach is a smaller count.
    """
    count *= (1.959964 / reach) ** 2
    return proportion(share * count, count)


def picked(hits: float, count: float, candidates: int) -> dict[str, float]:
    """Return a share with Wilson's interval, widened for the worst of so many candidates after Bonferroni."""
    return widened(hits / count, float(count), NormalDist().inv_cdf(1 - 0.025 / candidates))


def share_by_groups(hits: Tensor, groups: Tensor) -> dict[str, float]:
    """Return the share of True in bool [N] with its interval over G groups, whose pictures may fail together.

    groups: int64 [N] in 0..G-1, such as patients. The interval is Wilson's of n / max(1, deff) pictures, of G
    if all are True or False, times (1.96 / t)^2 with Student's t of G - 1 degrees of freedom; of one group
    that of N pictures. deff is what groups do to the variance, of a ratio of G sums. Source: Korn and
    Graubard, "Confidence intervals for proportions with small expected number of positive counts estimated
    from survey data", Survey Methodology 1998.
    """
    counts, sums = torch.bincount(groups), torch.bincount(groups, hits.double())
    value, count = hits.double().mean().item(), len(counts)
    if count == 1:
        return share(hits)
    of_sums = (sums - value * counts).square().sum().item() * count / (count - 1)
    alone = value * (1 - value) * len(hits)
    size = len(hits) / max(1.0, of_sums / alone) if alone else count
    return widened(value, size, t_quantile(count - 1))


# ---- Of shares that scores assist, and of two trainings ----------------------------------------------------


def assisted_share(right: Tensor, scores: Tensor, index: Tensor) -> dict:
    """Return the share of N pictures that are right, known for n of them, with its interval and `worth`.

    right: bool [n], of the pictures `index` [n]; scores: float64 [N], larger where right is likelier. With
    the mean r of right, and f, F the mean scores of the n and of all N, the estimate is r + w (F - f): what
    the scores of all say, less their error in the n (Angelopoulos et al. 2023, arXiv 2301.09633). w is that
    of least squares (2311.01453), so scores that are worthless cost little. The interval is Wilson's of
    `worth` labels, n to 3 n of them, which alone would leave the same variance: that which the scores leave
    and, as these are known of N pictures only, n / N of the rest. It is widened as Student's t with n - 2
    degrees of freedom is wider than the normal distribution. Few labels, or those that all agree, are not
    assisted.
    """
    n, values, known = len(index), right.double(), scores[index]
    spread, centred = values - values.mean(), known - known.mean()
    if n < FEWEST_ASSISTED or not spread.any() or centred.abs().max() < 1e-3:
        return proportion(int(right.sum()), n) | {"worth": float(n)}
    weight = ((centred @ spread) / (centred @ centred)).clamp(0, 2)
    alone = spread.square().sum() / (n - 1)
    left = (spread - weight * centred).square().sum() / (n - 2)
    gain = (alone / torch.lerp(left, alone, n / len(scores))).item()
    worth = n * min(max(gain, 1.0), 3.0)
    share = (values.mean() + weight * (scores.mean() - known.mean())).clamp(0, 1).item()
    return widened(share, worth, t_quantile(n - 2)) | {"worth": worth}


def difference_of_shares(first: dict, second: dict) -> dict:
    """Return the difference of two shares of the same pictures, of which none is in both, with its interval.

    With l = p - low and u = high - p the lower end is p - q - sqrt(l_p^2 + u_q^2 - 2 r l_p u_q), the upper
    likewise, with r = -sqrt(p q / ((1 - p) (1 - q))), so it has a width where all agree. Source: Zou and
    Donner, "Construction of confidence limits about effect measures: a general approach", 2008, section 2.
    """
    p, q = first["value"], second["value"]
    r = -math.sqrt(p * q / ((1 - p) * (1 - q))) if max(p, q) < 1 else 0.0
    r = max(r, -1.0)  # assisted, the two may sum to more than 1
    reaches = []
    for one, other in ((p - first["low"], second["high"] - q), (first["high"] - p, q - second["low"])):
        reaches.append(math.sqrt(one**2 + other**2 - 2 * r * one * other))
    return {"value": p - q, "low": max(-1.0, p - q - reaches[0]), "high": min(1.0, p - q + reaches[1])}


def welch_interval(ours: list[float], theirs: list[float]) -> dict[str, float]:
    """Return the mean of n numbers less that of m others, with its 95 % interval over seeds.

        value +- t sqrt(v + w),  v = s^2 / n,  w = s'^2 / m
        degrees of freedom of t: (v + w)^2 / (v^2 / (n - 1) + w^2 / (m - 1)), in general no whole number

    s and s' are the two standard deviations, and t is the 97.5 % quantile of Student's t. If n or m is 1, or
    both deviations are 0, only the value is returned.
    Sources: Welch, "The generalization of 'Student's' problem when several different population variances are
    involved", 1947; Satterthwaite, "An approximate distribution of estimates of variance components", 1946.
    """
    value = statistics.mean(ours) - statistics.mean(theirs)
    if min(len(ours), len(theirs)) < 2:
        return {"value": value}
    v, w = (statistics.variance(values) / len(values) for values in (ours, theirs))
    if v + w == 0:
        return {"value": value}
    freedom = (v + w) ** 2 / (v**2 / (len(ours) - 1) + w**2 / (len(theirs) - 1))
    reach = t_quantile(freedom) * math.sqrt(v + w)
    return {"value": value, "low": value - reach, "high": value + reach}

"""The numbers that only the laboratory needs, as pure functions; the conventions are those of metrics.py."""

import math

import numpy as np
import torch
from torch import Tensor

from metrics import (
    Values,
    bin_of,
    check_count,
    check_probabilities,
    check_tensor,
    headline,
    resampled_headline,
)

# ---- Is the most confident answer right more often? ------------------------------------------------------


def risk_coverage(y_true: Values, probabilities: Values) -> tuple[Tensor, Tensor]:
    """Return the risk-coverage curve: the error rate if only the most confident samples are answered.

    Sorted by falling confidence, the largest probability, the first i of N samples have coverage i / N and
    risk (errors among them) / i. Returns coverage and risk, float64 [N] each. Source: El-Yaniv and Wiener,
    "On the Foundations of Noise-free Selective Classification", 2010, section 2.
    Samples of equal confidence have no order: each of them counts as the error rate of them all, which gives
    the mean over all their orders (McSherry and Najork 2008, on precision at k with tied scores).
    """
    y_true, probabilities = check_probabilities(y_true, probabilities)
    wrong = (probabilities.argmax(dim=1) != y_true).double()
    confidence, order = probabilities.amax(dim=1).sort(descending=True)
    _, tie_of, tied = confidence.unique_consecutive(return_inverse=True, return_counts=True)
    error_rate = torch.bincount(tie_of, weights=wrong[order]) / tied
    answered = torch.arange(1, len(y_true) + 1, dtype=torch.float64)
    return answered / len(y_true), error_rate[tie_of].cumsum(dim=0) / answered


def auroc(positive: Values, scores: Values) -> float | None:
    """Return the area under the ROC curve: how often a positive sample has a higher score than a negative.

    positive bool [N]; scores numbers [N], none of them NaN; equal ones count half. None if all samples are of
    one kind. With R the sum of the ranks of the P positive of N samples it is (R - P (P + 1) / 2) /
    (P (N - P)). Source: Hanley and McNeil, "The meaning and use of the area under a receiver operating
    characteristic (ROC) curve", 1982. Of right answers and log_odds it says how well confidence tells them.
    """
    scores = check_tensor("scores", scores, "N").double()
    positive = check_tensor("positive", positive, len(scores))
    if positive.dtype != torch.bool or scores.isnan().any():
        raise ValueError(f"positive must be bool, not {positive.dtype}, and no score NaN")
    count = int(positive.sum())
    pairs = count * (len(scores) - count)
    if pairs == 0:
        return None
    rank_sum = mean_ranks(scores)[positive].sum().item()
    return (rank_sum - count * (count + 1) / 2) / pairs


def log_odds(logits: Values) -> Tensor:
    """Return log(p / (1 - p)) of each sample's confidence p, float64 [N], from finite logits [N, C].

    It orders samples as their confidence does, but does not round to 1 where logits are large.
    """
    logits = check_tensor("logits", logits, "N", "C").double()
    largest, likeliest = logits.max(dim=1, keepdim=True)
    return largest[:, 0] - logits.scatter(1, likeliest, -math.inf).logsumexp(dim=1)


def mean_ranks(values: Tensor) -> Tensor:
    """Return the ranks from 1 in each row of values [..., N], of equal ones their mean; float64 [..., N]."""
    ordered = values.sort(dim=-1).values
    below, up_to = torch.searchsorted(ordered, values), torch.searchsorted(ordered, values, right=True)
    return (below + up_to + 1).double() / 2


def calibration_error_by_chance(confidence: Values, num_bins: int = 15, num_draws: int = 1000) -> float:
    """Return the expected calibration error that a perfectly calibrated network shows, in [0, 1].

    Its answers, of confidence p in [0, 1], [N], are right with probability p, which leaves a gap in each bin
    of finitely many: the mean over so many draws of which answers are right. Source: the consistency
    resampling of Bröcker and Smith, "Increasing the Reliability of Reliability Diagrams", 2007.
    """
    confidence = check_tensor("confidence", confidence, "N").double()
    place, generator, total = bin_of(confidence, num_bins), torch.Generator().manual_seed(0), 0.0
    check_count("num_draws", num_draws)
    for _ in range(num_draws):
        right = torch.rand(len(confidence), generator=generator, dtype=torch.float64) < confidence
        gaps = torch.bincount(place, weights=right.double() - confidence, minlength=num_bins)
        total += gaps.abs().sum().item() / len(confidence)
    return total / num_draws


# ---- Intervals, and differences on the same samples ------------------------------------------------------


def mean_interval(values: Values) -> dict[str, float]:
    """Return the mean of numbers [N] as `value`, with `low` and `high` 1.96 standard errors away."""
    values = check_tensor("values", values, "N").double()
    value = values.mean().item()
    error = 1.96 * values.std(correction=0).item() / math.sqrt(max(1, len(values) - 1))
    return {"value": value, "low": value - error, "high": value + error}


def paired_headline(
    y_true: Values, scores: Values, other: Values, num_resamples: int = 1000
) -> dict[str, dict[str, float]]:
    """Return the numbers of metrics.headline of one network less those of another on the same samples.

    scores and other [N, C]. Each is a dict of `value`, `low` and `high`, the 95 % percentile interval, paired
    as in Efron and Tibshirani 1993, section 6.3: what is drawn is a sample with the answers of both.
    """
    if np.shape(other) != np.shape(scores):
        raise ValueError(f"scores are {np.shape(scores)}, other {np.shape(other)}: expected one shape")
    ours, theirs = headline(y_true, scores), headline(y_true, other)
    resampled = resampled_headline(y_true, scores, num_resamples)
    resampled -= resampled_headline(y_true, other, num_resamples)
    low, high = resampled.quantile(torch.tensor([0.025, 0.975], dtype=torch.float64), dim=0).tolist()
    rows = zip(ours, low, high, strict=True)
    return {name: {"value": ours[name] - theirs[name], "low": a, "high": b} for name, a, b in rows}


def mcnemar_exact(only_first: int, only_second: int) -> float:
    """Return the two-sided p-value, in [0, 1], of McNemar's exact test of two networks on the same samples.

    only_first samples are answered correctly by the first network alone, only_second by the second alone; the
    other samples do not say which network is better. If neither is, each of these n = only_first +
    only_second samples falls to either network with probability 1/2, like the toss of a coin, so that

        p = min(1, 2 * sum over i = 0 to min(only_first, only_second) of binomial(n, i) / 2^n).

    A small p says that the split is too uneven for chance; n = 0 gives 1. Sources, which approximate the sum:
    McNemar 1947; Dietterich, "Approximate Statistical Tests for Comparing Supervised Classification Learning
    Algorithms", 1998, section 3.1.
    """
    check_count("only_first", only_first, least=0)
    check_count("only_second", only_second, least=0)
    n, fewer = only_first + only_second, min(only_first, only_second)
    return min(1.0, 2 * sum(math.comb(n, i) for i in range(fewer + 1)) / 2**n)

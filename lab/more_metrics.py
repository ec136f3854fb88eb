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
    headline_values,
    resampled_headline,
)

# ---- Is the most confident answer right more often? ------------------------------------------------------


def risk_coverage(y_true: Values, probabilities: Values) -> tuple[Tensor, Tensor]:
    """Return the risk-coverage curve: the error rate if only the most confident samples are answered.

    Sort the N samples by falling confidence, the largest probability. The first i of them have the coverage
    i / N and the risk (errors among them) / i. Returns coverage and risk, float64 [N] each. The mean of the
    risk is the AURC, the area under the curve. Source: El-Yaniv and Wiener, "On the Foundations of Noise-free
    Selective Classification", 2010, section 2.
    Samples of equal confidence have no order. Each of them counts with their common error rate, which gives
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

    positive bool [N]; scores [N] are numbers without NaN, and equal ones count half. Let P of the N samples
    be positive, and R be the sum of their ranks; the area is (R - P (P + 1) / 2) / (P (N - P)). It is None if
    all samples are positive, or none. Source: Hanley and McNeil, "The meaning and use of the area under a
    receiver operating characteristic (ROC) curve", 1982. With right answers as the positive samples and
    log_odds as their scores it says how well confidence tells right from wrong.
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
    """Return log(p / (1 - p)) for the confidence p of each sample, float64 [N], from finite logits [N, C].

    It orders samples as p does. Where logits are large p rounds to 1, and this does not.
    """
    logits = check_tensor("logits", logits, "N", "C").double()
    largest, likeliest = logits.max(dim=1, keepdim=True)
    return largest[:, 0] - logits.scatter(1, likeliest, -math.inf).logsumexp(dim=1)


def mean_ranks(values: Tensor) -> Tensor:
    """Return the ranks from 1 in each row of values [..., N], float64; equal values share their mean rank."""
    ordered = values.sort(dim=-1).values
    below, up_to = torch.searchsorted(ordered, values), torch.searchsorted(ordered, values, right=True)
    return (below + up_to + 1).double() / 2


def calibration_error_by_chance(confidence: Values, num_bins: int = 15, num_draws: int = 1000) -> float:
    """Return the expected calibration error that a perfectly calibrated network shows, in [0, 1].

    confidence [N], in [0, 1]. Such a network's answer with confidence p is right with probability p, so in a
    bin of finitely many answers confidence and accuracy still differ. Draw num_draws times which answers are
    right, and return the mean error. Source: the consistency resampling of Bröcker and Smith, "Increasing the
    Reliability of Reliability Diagrams", 2007.
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
    """Return the mean of numbers [N] as `value`, and `low` and `high`, which lie 1.96 standard errors away.

    The standard error is s / sqrt(N), where s^2 is the sum of the squared distances from the mean, divided by
    N - 1: the numbers lie closer to their own mean than to the true one, and N would make s too small.
    """
    values = check_tensor("values", values, "N").double()
    value = values.mean().item()
    # The same as s / sqrt(N), but for a single number 0 and not NaN.
    error = 1.96 * values.std(correction=0).item() / math.sqrt(max(1, len(values) - 1))
    return {"value": value, "low": value - error, "high": value + error}


def paired_headline(
    y_true: Values, scores: Values, other: Values, num_resamples: int = 1000
) -> dict[str, dict[str, float]]:
    """Return metrics.headline_values of one network less those of another on the same samples.

    scores and other [N, C]. Each number is a dict of `value`, `low` and `high`, the 95 % percentile interval,
    paired as in Efron and Tibshirani 1993, section 6.3: a sample is drawn together with the answers of both.
    """
    if np.shape(other) != np.shape(scores):
        raise ValueError(f"scores are {np.shape(scores)}, other {np.shape(other)}: expected one shape")
    ours, theirs = headline_values(y_true, scores), headline_values(y_true, other)
    resampled = resampled_headline(y_true, scores, num_resamples)
    resampled -= resampled_headline(y_true, other, num_resamples)
    low, high = resampled.quantile(torch.tensor([0.025, 0.975], dtype=torch.float64), dim=0).tolist()
    rows = zip(ours, low, high, strict=True)
    return {name: {"value": ours[name] - theirs[name], "low": a, "high": b} for name, a, b in rows}


def mcnemar_exact(only_first: int, only_second: int) -> float:
    """Return the two-sided p-value, in [0, 1], of McNemar's exact test of two networks on the same samples.

    Only the first network answers only_first samples correctly, only the second one only_second samples. The
    other samples do not say which network is better. If neither is, each of these n = only_first +
    only_second samples falls to either network with probability 1/2, like the toss of a coin, so that

        p = min(1, 2 * sum over i = 0 to min(only_first, only_second) of binomial(n, i) / 2^n).

    A small p says that chance would rarely split them so unevenly; n = 0 gives 1. Sources, which approximate
    the sum: McNemar 1947; Dietterich, "Approximate Statistical Tests for Comparing Supervised Classification
    Learning Algorithms", 1998, section 3.1.
    """
    check_count("only_first", only_first, least=0)
    check_count("only_second", only_second, least=0)
    n, fewer = only_first + only_second, min(only_first, only_second)
    return min(1.0, 2 * sum(math.comb(n, i) for i in range(fewer + 1)) / 2**n)

"""The metrics of classification and calibration, with their intervals, as pure functions of tensors.

Conventions, for all functions below:

- There are N samples, C classes and S superclasses. Labels are 1-D integers of any dtype, from 0 to C - 1.
- `scores` are any finite numbers [N, C]; a larger score means a more likely class. `probabilities` are scores
  from 0 on, and each row sums to 1 within 1e-3. A probability that rounding lifts above 1 counts as 1.
- Where classes tie, the lowest index is predicted, as in torch.argmax.
- Inputs may be lists, NumPy arrays, and tensors on any device. The arithmetic runs in int64 and float64 on
  the CPU, so a number does not depend on the device, and returned tensors are on the CPU.
- Other types, shapes, labels, scores, probabilities and counts raise ValueError.
"""

import math
import statistics
from collections.abc import Sequence
from numbers import Integral

import numpy as np
import torch
from torch import Tensor

Values = Tensor | np.ndarray | Sequence


def check_tensor(name: str, values: Values, *shape: str | int) -> Tensor:
    """Return the values as a tensor on the CPU, or raise ValueError if they do not have this shape.

    In `shape` a letter stands for any length.
    """
    if not isinstance(values, Tensor):
        try:
            values = torch.from_numpy(np.array(values))  # a copy: an array may be read-only or run backwards
        except (TypeError, ValueError, RuntimeError) as error:
            raise ValueError(f"{name} must be a list, array or tensor of numbers: {error}") from error
    lengths = zip(shape, values.shape, strict=False)
    fits = values.ndim == len(shape) and all(isinstance(wanted, str) or wanted == n for wanted, n in lengths)
    if not fits or values.numel() == 0:
        expected = ", ".join(map(str, shape))
        raise ValueError(f"{name} must be [{expected}] and not empty, but has shape {list(values.shape)}")
    return values.detach().cpu()


def check_integers(name: str, values: Values, *shape: str | int, limit: float = math.inf) -> Tensor:
    """Return integers from 0 to limit - 1 as int64 on the CPU, or raise ValueError."""
    values = check_tensor(name, values, *shape)
    if values.is_floating_point() or values.dtype == torch.bool:
        raise ValueError(f"{name} must hold integers, not {values.dtype}")
    values = values.long()
    low, high = values.min().item(), values.max().item()
    if low < 0 or high >= limit:
        raise ValueError(f"{name} must lie in [0, {limit}), but runs from {low} to {high}")
    return values


def check_counts(confusion: Values) -> Tensor:
    """Return a confusion matrix as int64 [C, C] on the CPU, or raise ValueError."""
    confusion = check_tensor("confusion", confusion, "C", "C")
    return check_integers("confusion", confusion, len(confusion), len(confusion))


def check_count(name: str, value: int, least: int = 1) -> None:
    """Raise ValueError unless the value is a whole number that is not below `least`."""
    if not isinstance(value, Integral) or value < least:
        raise ValueError(f"{name} must be a whole number of at least {least}, not {value!r}")


def check_scores(y_true: Values, scores: Values, name: str = "scores") -> tuple[Tensor, Tensor]:
    """Return y_true as int64 [N] and the scores as float64 [N, C], both on the CPU, or raise ValueError."""
    scores = check_tensor(name, scores, "N", "C").double()
    if not scores.isfinite().all():
        raise ValueError(f"{name} must be finite, but some are NaN or infinite")
    n, num_classes = scores.shape
    return check_integers("y_true", y_true, n, limit=num_classes), scores


def check_probabilities(y_true: Values, probabilities: Values) -> tuple[Tensor, Tensor]:
    """Return y_true as int64 [N] and probabilities as float64 [N, C] in [0, 1], or raise ValueError."""
    y_true, probabilities = check_scores(y_true, probabilities, "probabilities")
    if probabilities.min() < 0:
        raise ValueError(f"probabilities must lie in [0, 1], but one is {probabilities.min():g}")
    off = (probabilities.sum(dim=1) - 1).abs().max()
    if off > 1e-3:
        raise ValueError(f"rows of probabilities must sum to 1 within 1e-3, but one is off by {off:g}")
    return y_true, probabilities.clamp(max=1)


# ---- Which class was taken for which ---------------------------------------------------------------------


def confusion_matrix(y_true: Values, y_pred: Values, num_classes: int) -> Tensor:
    """Count the samples of each true class (row) that were given each predicted class (column).

    y_true and y_pred are integers [N]. Returns int64 [C, C] with C = num_classes; the entries sum to N.
    """
    check_count("num_classes", num_classes)
    y_true = check_integers("y_true", y_true, "N", limit=num_classes)
    y_pred = check_integers("y_pred", y_pred, len(y_true), limit=num_classes)
    # Sample (t, p) falls into entry t * C + p of the matrix read row by row, so counting is one histogram.
    entry = y_true * num_classes + y_pred
    return torch.bincount(entry, minlength=num_classes**2).view(num_classes, num_classes)


def precision_recall_f1(confusion: Values) -> tuple[Tensor, Tensor, Tensor]:
    """Return precision, recall and F1 of each class, three float64 [C] in [0, 1].

    With TP on the diagonal, TP + FP the column sum (how often the class was predicted) and TP + FN the row
    sum (how often it occurred):

        precision = TP / (TP + FP),   recall = TP / (TP + FN),   F1 = 2 TP / (2 TP + FP + FN).

    F1 is the harmonic mean of precision and recall. A class that was never predicted has precision 0, and a
    class without samples recall 0 (zero_division=0 in other libraries' terms). Source: Sokolova and Lapalme,
    "A systematic analysis of performance measures for classification tasks", 2009, table 2.
    """
    confusion = check_counts(confusion)
    return _rates(confusion.diagonal(), confusion.sum(dim=0), confusion.sum(dim=1))


def _rates(true_positives: Tensor, predicted: Tensor, actual: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return precision, recall and F1 from TP, TP + FP and TP + FN of each class, three int64 [C]."""
    true_positives = true_positives.double()
    # Where a denominator is 0, TP is 0 too, so dividing by 1 instead gives 0.
    precision = true_positives / predicted.clamp(min=1)
    recall = true_positives / actual.clamp(min=1)
    f1 = 2 * true_positives / (predicted + actual).clamp(min=1)
    return precision, recall, f1


def macro_average(per_class: Values) -> float:
    """Return the unweighted mean over the classes of [C] numbers, NaN if any entry is NaN.

    Macro F1 here is the mean of the classes' F1, not the F1 of macro precision and macro recall; Opitz
    and Burst, "Macro F1 and Macro F1", 2019 (arXiv 1911.03347) show how far the two can differ.
    """
    return check_tensor("per_class", per_class, "C").double().mean().item()


def per_class_accuracy(confusion: Values) -> Tensor:
    """Return the recall of each class, float64 [C], with NaN instead of 0 for a class without samples."""
    confusion = check_counts(confusion)
    return confusion.diagonal().double() / confusion.sum(dim=1)  # 0 / 0 is NaN


def most_confused_pairs(confusion: Values, n: int) -> list[tuple[int, int, int]]:
    """Return the n largest entries off the diagonal of a [C, C] confusion matrix as (true, predicted, count).

    Equal counts are in row-major order. Pairs that never occurred are left out, so there may be fewer than n.
    """
    check_count("n", n, least=0)
    confusion = check_counts(confusion)
    errors = confusion - confusion.diagonal().diag()
    entries = errors.flatten().argsort(descending=True, stable=True)
    pairs = []
    for entry in entries[:n].tolist():
        true, predicted = divmod(entry, len(errors))
        count = errors[true, predicted].item()
        if count > 0:
            pairs.append((true, predicted, count))
    return pairs


# ---- How often the answer was right ----------------------------------------------------------------------


def accuracy(y_true: Values, y_pred: Values) -> float:
    """Return the fraction of samples, in [0, 1], with y_pred equal to y_true; both are integers [N]."""
    y_true = check_integers("y_true", y_true, "N")
    y_pred = check_integers("y_pred", y_pred, len(y_true))
    return (y_true == y_pred).sum().item() / len(y_true)


def _in_top_k(y_true: Tensor, scores: Tensor, k: int) -> Tensor:
    """Return bool [N]: is the true class one of the k best? Where scores tie, the lower index comes first."""
    # The rank of the true class is the number of classes before it. torch.topk does not define ties.
    true_score = scores.gather(1, y_true[:, None])
    lower_index = torch.arange(scores.shape[1]) < y_true[:, None]
    rank = ((scores > true_score) | ((scores == true_score) & lower_index)).sum(dim=1)
    return rank < k


def top_k_accuracy(y_true: Values, scores: Values, k: int) -> float:
    """Return the fraction of samples, in [0, 1], with the true class among the k classes of largest score.

    scores [N, C] may be logits or probabilities, 1 <= k <= C. Exactly k classes count for each sample, also
    where scores tie. With k = 1 it is the accuracy of scores.argmax(dim=1).
    """
    y_true, scores = check_scores(y_true, scores)
    if not 1 <= k <= scores.shape[1]:
        raise ValueError(f"k must be from 1 to {scores.shape[1]}, not {k}")
    return _in_top_k(y_true, scores, k).sum().item() / len(y_true)


def chance_within_superclass(superclass_of: Values) -> float:
    """Return the fraction of errors that would stay in the superclass if errors hit all classes alike.

    superclass_of: integers [C]. With m classes in each superclass it is (m - 1) / (C - 1): on CIFAR-100
    4 of the 99 other classes, or 4.04 %.
    """
    superclass_of = check_integers("superclass_of", superclass_of, "C")
    sizes = superclass_of.bincount()[superclass_of].double()
    return ((sizes - 1) / max(1, len(superclass_of) - 1)).mean().item()


# ---- Do the probabilities mean what they say? ------------------------------------------------------------


def bin_of(confidence: Tensor, num_bins: int) -> Tensor:
    """Return the bin of each confidence, int64 [N]; a confidence on an edge is in the bin to its left."""
    check_count("num_bins", num_bins)
    edges = torch.arange(1, num_bins, dtype=torch.float64) / num_bins
    return torch.bucketize(confidence, edges)


def calibration_bins(
    y_true: Values, probabilities: Values, num_bins: int = 15
) -> tuple[Tensor, Tensor, Tensor]:
    """Sort the samples by confidence into bins of equal width, for the reliability diagram.

    The confidence of a sample is its largest probability. With M = num_bins, bin m holds the confidences in
    ((m - 1) / M, m / M]. Returns for each bin the mean confidence and the accuracy, float64 [M], NaN where
    the bin is empty, and the count, int64 [M]. They are conf(B_m), acc(B_m) and |B_m| in Guo, Pleiss, Sun and
    Weinberger, "On Calibration of Modern Neural Networks", 2017 (arXiv 1706.04599), section 2.
    """
    y_true, probabilities = check_probabilities(y_true, probabilities)
    confidence = probabilities.amax(dim=1)
    correct = (probabilities.argmax(dim=1) == y_true).double()
    place = bin_of(confidence, num_bins)
    count = torch.bincount(place, minlength=num_bins)
    mean_confidence = torch.bincount(place, weights=confidence, minlength=num_bins) / count
    bin_accuracy = torch.bincount(place, weights=correct, minlength=num_bins) / count
    return mean_confidence, bin_accuracy, count


def expected_calibration_error(y_true: Values, probabilities: Values, num_bins: int = 15) -> float:
    """Return the expected calibration error, in [0, 1], over equal-width bins of confidence.

        ECE = sum over m of |B_m| / N * |acc(B_m) - conf(B_m)|

    with the bins of calibration_bins. Source: Guo et al. 2017 (arXiv 1706.04599), equation (3).
    """
    mean_confidence, bin_accuracy, count = calibration_bins(y_true, probabilities, num_bins)
    gap = (bin_accuracy - mean_confidence).abs().nan_to_num()  # an empty bin has NaN, and no weight
    return ((count * gap).sum() / count.sum()).item()


def confidence_histogram(y_true: Values, probabilities: Values, num_bins: int = 50) -> tuple[Tensor, Tensor]:
    """Count right and wrong answers in each of num_bins equal bins of confidence, two int64 [num_bins].

    Bin m holds the confidences in [m / num_bins, (m + 1) / num_bins), and the last bin also 1.
    """
    y_true, probabilities = check_probabilities(y_true, probabilities)
    confidence, y_pred = probabilities.max(dim=1)
    place, right = (num_bins * confidence).long().clamp(max=num_bins - 1), y_pred == y_true
    return place[right].bincount(minlength=num_bins), place[~right].bincount(minlength=num_bins)


def fit_temperature(logits: Values, y_true: Values) -> float:
    """Return the temperature T for which softmax(logits / T) has the least negative log-likelihood.

    Source: temperature scaling, Guo et al. 2017 (arXiv 1706.04599), section 4.2. Fit T on validation data.
    T changes the confidence and not the prediction; T > 1 says that the network is overconfident on these
    samples. Let b = 1 / T, and m_ic = z_ic - z_iy the logit of class c less the logit of the true class y:

        NLL(b)  = mean over i of log(sum over c of exp(b m_ic))
        NLL'(b) = mean over i of sum over c of softmax(b m_i)_c m_ic.

    NLL'' is a mean of variances, so NLL' never falls. Bisection finds the zero of NLL' with T in [0.01, 100],
    or the nearer limit (0.01 if every prediction is right). T is 1 if each row [C] of logits is constant.
    Rows of numbers from 0 on that sum to 1 within 1e-3 raise ValueError: they are probabilities.
    """
    y_true, logits = check_scores(y_true, logits, "logits")
    if logits.min() >= 0 and (logits.sum(dim=1) - 1).abs().max() <= 1e-3:
        raise ValueError("logits are probabilities, as their rows sum to 1: expected their logarithms")
    margins = logits - logits.gather(1, y_true[:, None])
    if not margins.any():
        return 1.0  # every temperature gives the same probabilities
    low, high = -math.log(100), math.log(100)  # the limits of log b
    for _ in range(45):  # 9.2 / 2^45 leaves a relative error of 3e-13
        middle = (low + high) / 2
        slope = (torch.softmax(math.exp(middle) * margins, dim=1) * margins).sum(dim=1).mean().item()
        if slope > 0:
            high = middle
        else:
            low = middle
    return math.exp(-(low + high) / 2)


# ---- How sure are the numbers themselves? ----------------------------------------------------------------


def headline_values(y_true: Values, scores: Values) -> dict[str, float]:
    """Return the headline numbers of the report, each in [0, 1]; top-5 is 1 with 5 classes or fewer.

    scores [N, C] are better logits than probabilities: where logits are large, many probabilities are 0 in
    float32, and then classes tie.
    """
    y_true, scores = check_scores(y_true, scores)
    y_pred = scores.argmax(dim=1)
    precision, recall, f1 = precision_recall_f1(confusion_matrix(y_true, y_pred, scores.shape[1]))
    return {
        "accuracy": accuracy(y_true, y_pred),
        "macro_precision": macro_average(precision),
        "macro_recall": macro_average(recall),
        "macro_f1": macro_average(f1),
        "top5_accuracy": _in_top_k(y_true, scores, 5).sum().item() / len(y_true),
    }


def resampled_headline(y_true: Values, scores: Values, num_resamples: int) -> Tensor:
    """Return the numbers of headline_values for each resample, float64 [num_resamples, 5].

    The same N draws the same resamples, whatever the scores, so that two networks can be paired.
    """
    y_true, scores = check_scores(y_true, scores)
    check_count("num_resamples", num_resamples)
    n, num_classes = scores.shape
    y_pred, in_top5 = scores.argmax(dim=1), _in_top_k(y_true, scores, 5)
    count = y_true.bincount(minlength=num_classes)
    generator = torch.Generator().manual_seed(0)
    numbers = []
    for _ in range(num_resamples):
        sample = torch.randint(n, (n,), generator=generator)
        true, predicted = y_true[sample], y_pred[sample]
        # The numbers follow from three counts for each class: a confusion matrix would have C^2.
        kinds = (true[true == predicted], predicted, true)
        true_positives, num_predicted, actual = (labels.bincount(minlength=num_classes) for labels in kinds)
        counted = (count == 0) | (actual > 0)
        rates = _rates(true_positives, num_predicted, actual)
        macros = [macro_average(rate[counted]) for rate in rates]
        numbers.append([true_positives.sum().item() / n, *macros, in_top5[sample].sum().item() / n])
    return torch.tensor(numbers, dtype=torch.float64)


def bootstrap_headline(
    y_true: Values, scores: Values, num_resamples: int = 1000
) -> dict[str, dict[str, float]]:
    """Return the numbers of headline_values, each as a dict of `value`, `low` and `high`, as fractions.

    `low` and `high` are the 95 % percentile interval of Efron and Tibshirani, "An Introduction to the
    Bootstrap", 1993, section 13.3: draw N of the N samples with replacement, num_resamples times, compute the
    number for each draw, and cut 2.5 % off either end. The draws have their own generator: resample r is row
    r of torch.randint(N, (num_resamples, N), generator=torch.Generator().manual_seed(0)).

    The interval describes the choice of test samples, not the randomness of training. A class that is missing
    from a resample is left out of its macro averages; a class without any sample counts as 0 in all of them.
    With 2, 5 and 100 samples in each class the interval of macro recall held the true value in 89, 95 and
    93 % of 1,000 made-up test sets. Few samples make macro F1 too low: its interval held it in 88, 90 and
    94 %.

    If all answers are right, or none is, all resamples are alike. The interval is then that of `proportion`,
    for the accuracies with N samples. A macro average may lose most in the smallest class, so it counts as if
    each class had as many samples as the smallest one; with classes of one size these are N samples too.
    """
    value, resampled = headline_values(y_true, scores), resampled_headline(y_true, scores, num_resamples)
    low, high = resampled.quantile(torch.tensor([0.025, 0.975], dtype=torch.float64), dim=0).tolist()
    class_sizes = check_integers("y_true", y_true, "N").unique(return_counts=True)[1]
    intervals = {}
    for column, name in enumerate(value):
        intervals[name] = {"value": value[name], "low": low[column], "high": high[column]}
        is_certain = name == "top5_accuracy" and np.shape(scores)[1] <= 5  # then it is always 1
        is_macro = name.startswith("macro")
        if value[name] in (0, 1) and not is_certain and (is_macro or name.endswith("accuracy")):
            n = len(class_sizes) * int(class_sizes.min()) if is_macro else len(y_true)
            intervals[name] = proportion(n * int(value[name]), n)
    return intervals


def proportion(successes: int, n: int) -> dict[str, float]:
    """Return successes / n as `value`, and its 95 % Wilson score interval as `low` and `high`, in [0, 1].

    The observed fraction q = successes / n lies z standard errors away from both ends p of the interval,
    (q - p)^2 = z^2 p (1 - p) / n, with z = 1.96, the normal quantile of 97.5 %. The interval has a width even
    if all or none of the samples are right. Source: Wilson, "Probable Inference, the Law of Succession",
    1927.
    """
    if not 0 <= successes <= n or n == 0:
        raise ValueError(f"expected 0 to {n} successes of at least one sample, not {successes}")
    z = statistics.NormalDist().inv_cdf(0.975)
    q = successes / n
    centre = q + z**2 / (2 * n)
    half_width = z * math.sqrt(q * (1 - q) / n + z**2 / (4 * n**2))
    low = (centre - half_width) / (1 + z**2 / n)
    high = (centre + half_width) / (1 + z**2 / n)
    return {"value": q, "low": max(0.0, min(q, low)), "high": min(1.0, max(q, high))}  # against rounding

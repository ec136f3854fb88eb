"""metrics.py against an example by hand, slow loops in exact fractions, brute force and other libraries."""

import itertools
import math
from fractions import Fraction
from statistics import mean

import numpy as np
import pytest
import torch
from networks import seeded

import metrics

EXACT = {"abs": 1e-12, "rel": 0}
INTEGER_DTYPES = [torch.int8, torch.int64, torch.uint8, torch.uint64]


def test_worked_example():
    """Ten photos of cats (0), dogs (1) and birds (2), from labels to the macro averages, step by step."""
    y_true = [0, 0, 0, 0, 1, 1, 1, 2, 2, 2]
    y_pred = [0, 0, 0, 1, 1, 1, 0, 2, 1, 1]
    # Row: the true class; column: the predicted class. Three cats were recognised, one was taken for a dog.
    confusion = metrics.confusion_matrix(y_true, y_pred, 3)
    assert confusion.tolist() == [
        [3, 1, 0],  # 4 cats
        [1, 2, 0],  # 3 dogs
        [0, 2, 1],  # 3 birds
    ]  # predicted: 4, 5, 1
    precision, recall, f1 = metrics.precision_recall_f1(confusion)
    # Precision, by columns: of 4 answers "cat" 3 were right, of 5 "dog" 2, of 1 "bird" 1.
    assert precision.tolist() == pytest.approx([3 / 4, 2 / 5, 1 / 1], **EXACT)
    # Recall, by rows: of 4 cats 3 were found, of 3 dogs 2, of 3 birds 1.
    assert recall.tolist() == pytest.approx([3 / 4, 2 / 3, 1 / 3], **EXACT)
    # F1 = 2 P R / (P + R): 2 * 3/4 * 3/4 / (6/4) = 3/4; 2 * 2/5 * 2/3 / (16/15) = 1/2; 2 * 1/3 / (4/3) = 1/2.
    assert f1.tolist() == pytest.approx([3 / 4, 1 / 2, 1 / 2], **EXACT)
    # Macro: every class counts the same, whatever its number of samples.
    assert metrics.macro_average(precision) == pytest.approx(43 / 60, **EXACT)  # (45 + 24 + 60) / 60 / 3
    assert metrics.macro_average(recall) == pytest.approx(7 / 12, **EXACT)  # (9 + 8 + 4) / 12 / 3
    assert metrics.macro_average(f1) == pytest.approx(7 / 12, **EXACT)  # (3 + 2 + 2) / 4 / 3
    # Accuracy: the diagonal, 3 + 2 + 1 of 10.
    assert metrics.accuracy(y_true, y_pred) == pytest.approx(6 / 10, **EXACT)
    # The headline numbers of the report are these, here from probabilities whose largest is the prediction.
    probabilities = 0.7 * torch.nn.functional.one_hot(torch.tensor(y_pred), 3) + 0.1
    expected = {"accuracy": 6 / 10, "macro_precision": 43 / 60, "macro_recall": 7 / 12, "macro_f1": 7 / 12}
    expected["top5_accuracy"] = 1  # there are fewer than five classes
    headline = metrics.headline_values(y_true, probabilities)
    assert headline == pytest.approx(expected, **EXACT)
    bootstrap = metrics.bootstrap_headline(y_true, probabilities, num_resamples=1)
    assert {name: number["value"] for name, number in bootstrap.items()} == headline


def random_case(n=300, num_classes=7, seed=0):
    """Return y_true int64 [n] and probabilities float32 [n, num_classes] that are right now and then."""
    generator = seeded(seed)
    y_true = torch.randint(num_classes, (n,), generator=generator)
    logits = torch.randn(n, num_classes, generator=generator)
    logits[torch.arange(n), y_true] += 1
    return y_true, (2 * logits).softmax(dim=1)


def loop_confusion(y_true, y_pred, num_classes):
    counts = [[0] * num_classes for _ in range(num_classes)]
    for t, p in zip(y_true, y_pred, strict=True):
        counts[t][p] += 1
    return counts


def loop_precision_recall_f1(counts):
    """The definitions in exact fractions, F1 as the harmonic mean of the other two."""
    precision, recall, f1 = [], [], []
    for c in range(len(counts)):
        predicted = sum(row[c] for row in counts)
        actual = sum(counts[c])
        p = Fraction(counts[c][c], predicted or 1)
        r = Fraction(counts[c][c], actual or 1)
        precision.append(p)
        recall.append(r)
        f1.append(2 * p * r / (p + r or 1))
    return precision, recall, f1


# ---- Confusion matrix, precision, recall, F1 ---------------------------------------------------------------


@pytest.mark.parametrize("dtype", INTEGER_DTYPES, ids=str)
def test_confusion_matrix_equals_a_loop_for_every_integer_dtype(dtype):
    # 100 classes: an entry number such as 99 * 100 + 99 does not fit into 8 bits.
    y_true, y_pred = torch.randint(100, (2, 500), generator=seeded(1))
    y_true[0] = y_pred[0] = 99
    confusion = metrics.confusion_matrix(y_true.to(dtype), y_pred.to(dtype), 100)
    assert confusion.dtype == torch.int64
    assert confusion.tolist() == loop_confusion(y_true.tolist(), y_pred.tolist(), 100)
    assert metrics.accuracy(y_true.to(dtype), y_pred.to(dtype)) == mean((y_true == y_pred).tolist())


@pytest.mark.parametrize("seed", range(5))
def test_precision_recall_f1_equal_exact_fractions(seed):
    # Few samples of many classes, so that some classes are never predicted and some never occur.
    y_true, y_pred = torch.randint(12, (2, 20), generator=seeded(seed))
    counts = loop_confusion(y_true.tolist(), y_pred.tolist(), 12)
    results = metrics.precision_recall_f1(metrics.confusion_matrix(y_true, y_pred, 12))
    for result, expected in zip(results, loop_precision_recall_f1(counts), strict=True):
        assert result.tolist() == pytest.approx(expected, **EXACT)
        assert metrics.macro_average(result) == pytest.approx(mean(expected), **EXACT)


def test_per_class_accuracy_is_nan_without_a_sample():
    confusion = [[3, 1, 0], [0, 0, 0], [2, 0, 6]]
    result = metrics.per_class_accuracy(confusion)
    assert result.dtype == torch.float64
    assert result.tolist() == pytest.approx([3 / 4, math.nan, 6 / 8], nan_ok=True, **EXACT)
    assert math.isnan(metrics.macro_average(result))


def test_most_confused_pairs_against_a_sorted_list():
    confusion = torch.randint(4, (9, 9), generator=seeded(4))  # many ties and zeros
    pairs = [(t, p, confusion[t, p].item()) for t, p in itertools.permutations(range(9), 2)]
    pairs = sorted([pair for pair in pairs if pair[2] > 0], key=lambda pair: -pair[2])  # stable: row-major
    for n in (1, 5, len(pairs), 1000):
        assert metrics.most_confused_pairs(confusion, n) == pairs[:n]


# ---- Accuracy, top-k, superclasses -------------------------------------------------------------------------


@pytest.mark.parametrize("levels", [2, 4, 1000])
def test_top_k_accuracy_equals_sorting_each_row(levels):
    scores = torch.randint(-levels, levels, (200, 6), generator=seeded(levels)).float()  # few: many ties
    y_true = torch.randint(6, (200,), generator=seeded(1))
    for k in range(1, 7):
        hits = 0
        for label, row in zip(y_true.tolist(), scores.tolist(), strict=True):
            best = sorted(range(6), key=lambda c: -row[c])  # stable, so ties go to the lower class
            hits += label in best[:k]
        assert metrics.top_k_accuracy(y_true, scores, k) == hits / 200
    assert metrics.top_k_accuracy(y_true, scores, 1) == metrics.accuracy(y_true, scores.argmax(dim=1))


def test_chance_within_a_superclass_equals_a_loop():
    of = [2, 0, 1, 0, 2, 2, 0, 1, 0, 3]
    fractions = []
    for true in range(10):
        others = [of[c] == of[true] for c in range(10) if c != true]
        fractions.append(Fraction(sum(others), 9))
    assert metrics.chance_within_superclass(of) == pytest.approx(mean(fractions), **EXACT)


# ---- Calibration -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("num_bins", [1, 2, 10, 15])
def test_calibration_bins_and_error_equal_loops(num_bins):
    y_true, probabilities = random_case(seed=num_bins, n=200)
    members = [[] for _ in range(num_bins)]
    for label, row in zip(y_true.tolist(), probabilities.double().tolist(), strict=True):
        (index,) = [m for m in range(num_bins) if m / num_bins < max(row) <= (m + 1) / num_bins]
        members[index].append((Fraction(max(row)), row.index(max(row)) == label))
    bins = metrics.calibration_bins(y_true, probabilities, num_bins)
    assert bins[2].tolist() == [len(member) for member in members]
    error = Fraction(0)
    for member, confidence, share_right in zip(members, bins[0].tolist(), bins[1].tolist(), strict=True):
        sums = [sum(column) for column in zip(*member, strict=True)]
        expected = [float(total / len(member)) for total in sums] or [math.nan, math.nan]
        assert [confidence, share_right] == pytest.approx(expected, nan_ok=True, **EXACT)
        error += abs(sums[0] - sums[1]) / 200 if member else 0
    found = metrics.expected_calibration_error(y_true, probabilities, num_bins)
    assert found == pytest.approx(error, **EXACT)


def test_bins_are_closed_on_the_right():
    # Confidences on the edges 6/10 to 10/10 belong to the bins that end there, those just above to the next.
    on_edge = torch.tensor([6, 7, 8, 9, 10], dtype=torch.float64) / 10
    above = on_edge[:4] + 1e-9
    expected = [0, 0, 0, 0, 0, 1, 1, 1, 1, 1], [0, 0, 0, 0, 0, 0, 1, 1, 1, 1]
    for confidence, counts in zip((on_edge, above), expected, strict=True):
        rows = torch.stack([confidence, 1 - confidence], dim=1)
        assert metrics.calibration_bins([0] * len(rows), rows, 10)[2].tolist() == counts


def test_a_tied_prediction_is_the_lowest_class_everywhere():
    y_true, probabilities = [0, 1, 2, 3], torch.full((4, 4), 0.25)
    assert metrics.calibration_bins(y_true, probabilities, 4)[1].tolist()[0] == 0.25
    assert metrics.headline_values(y_true, probabilities)["accuracy"] == 0.25


def loss_at(temperature, logits, y_true):
    return torch.nn.functional.cross_entropy(logits.double() / temperature, y_true).item()


@pytest.mark.parametrize("scale", [0.2, 1.0, 5.0])
def test_temperature_has_the_least_loss_of_a_fine_grid(scale):
    y_true, probabilities = random_case(n=500)
    logits = scale * probabilities.log()
    best = metrics.fit_temperature(logits, y_true)
    at_best = loss_at(best, logits, y_true)
    assert at_best <= min(loss_at(t, logits, y_true) for t in np.logspace(-2, 2, 2001))
    left, right = (loss_at(best * factor, logits, y_true) - at_best for factor in (1 - 1e-3, 1 + 1e-3))
    assert left > 0 and right == pytest.approx(left, rel=0.01)  # a parabola with its lowest point at best


def test_temperature_stays_within_its_limits():
    for scale in (0.1, 2.0, 1000.0):  # 1000: the other classes' probabilities underflow to 0
        right = scale * torch.eye(3)
        assert metrics.fit_temperature(right, [0, 1, 2]) == pytest.approx(0.01)
        assert metrics.fit_temperature(-right, [0, 1, 2]) == pytest.approx(100)
    assert metrics.fit_temperature(torch.full((3, 4), 0.1), [0, 1, 2]) == 1


# ---- Intervals ---------------------------------------------------------------------------------------------


def loop_headline(labels, rows, samples):
    """The five headline numbers of some of the samples, in exact fractions.

    A class of which none of them is leaves the macro averages, but not one without a label at all.
    """
    num_classes = len(rows[0])
    true = [labels[i] for i in samples]
    ranked = [sorted(range(num_classes), key=lambda c: -rows[i][c]) for i in samples]
    counts = loop_confusion(true, [best[0] for best in ranked], num_classes)
    top1, top5 = ([Fraction(t in best[:k]) for t, best in zip(true, ranked, strict=True)] for k in (1, 5))
    kept = [c for c in range(num_classes) if c in true or c not in labels]
    macro = [mean([per_class[c] for c in kept]) for per_class in loop_precision_recall_f1(counts)]
    return [mean(top1), *macro, mean(top5)]


@pytest.mark.parametrize("num_classes", [4, 6])
def test_bootstrap_equals_a_loop_over_the_same_resamples(num_classes):
    y_true, first = random_case(n=40, num_classes=num_classes)
    y_true = (y_true - 1).clamp(min=0)  # nothing is of the last class
    y_true[y_true == 2] = 0
    y_true[7] = 2  # which a third of the resamples lack
    resamples = torch.randint(40, (60, 40), generator=seeded()).tolist()
    numbers = [loop_headline(y_true.tolist(), first.tolist(), samples) for samples in [range(40), *resamples]]
    torch.manual_seed(123)  # the draws come from a generator of their own
    state = torch.get_rng_state()
    bootstrap = metrics.bootstrap_headline(y_true, first, num_resamples=60)
    assert torch.equal(torch.get_rng_state(), state)
    assert list(bootstrap) == ["accuracy", "macro_precision", "macro_recall", "macro_f1", "top5_accuracy"]
    for row, (value, *resampled) in zip(bootstrap.values(), np.array(numbers, dtype=float).T, strict=True):
        expected = [value, *np.quantile(resampled, [0.025, 0.975])]
        assert [row[key] for key in ("value", "low", "high")] == pytest.approx(expected, **EXACT)


@pytest.mark.parametrize("n", [7, 180])
def test_a_perfect_score_and_one_of_nothing_have_intervals_with_a_width(n):
    """Wilson's equation has a root in closed form where all are right, n / (n + z^2), and where none is.

    Of 180 samples two classes have 25, the others 26: their macro averages are as sure as those of 7 * 25.
    """
    y_true = torch.arange(n) % 7
    right = torch.eye(7)[y_true] + 0.01 * torch.arange(7)
    for value, scores in ((1, right), (0, -right)):
        for name, row in metrics.bootstrap_headline(y_true, scores, num_resamples=3).items():
            samples = n // 7 * 7 if "macro" in name else n
            end = samples / (samples + 1.959963984540054**2)
            expected = [1, end, 1] if value else [0, 0, 1 - end]
            found = [row[key] for key in ("value", "low", "high")]
            assert found == pytest.approx(expected, abs=1e-12), name


@pytest.mark.parametrize("n", [1, 2, 10, 100, 10_000])
def test_interval_of_a_proportion_solves_its_quadratic(n):
    z = 1.959963984540054  # the normal quantile of 97.5 %
    for successes in {0, n // 3, n - 1, n}:
        value, low, high = metrics.proportion(successes, n).values()
        # (q - p)^2 = z^2 p (1 - p) / n, written as a polynomial in p
        roots = sorted(np.roots([1 + z**2 / n, -2 * value - z**2 / n, value**2]).real)
        assert value == successes / n and 0 <= low <= value <= high <= 1
        assert [low, high] == pytest.approx(roots, abs=1e-9)


# ---- What may come in --------------------------------------------------------------------------------------


LABELS = torch.tensor([0, 1, 2])
QUARTERS = torch.full((3, 4), 0.25)  # probabilities of three samples and four classes
OF_LABELS = [metrics.accuracy, lambda y, p: metrics.confusion_matrix(y, p, 3)]
OF_PROBABILITIES = [metrics.calibration_bins, metrics.confidence_histogram]
OF_SCORES = [
    *OF_PROBABILITIES,
    metrics.headline_values,
    lambda y, p: metrics.bootstrap_headline(y, p, num_resamples=2),
    lambda y, scores: metrics.top_k_accuracy(y, scores, 1),
]


@pytest.mark.parametrize("function", [*OF_LABELS, *OF_SCORES])
def test_lists_arrays_and_tensors_of_any_kind_give_the_same(function):
    second = LABELS.flip(0) if function in OF_LABELS else QUARTERS.double()
    kinds = [
        (LABELS.tolist(), second.tolist()),
        (LABELS.numpy(), second.numpy()[::-1].copy()[::-1]),  # strides that torch does not have
        (np.broadcast_to(LABELS.numpy(), (2, 3))[0], second.numpy()),  # read-only
        (LABELS.to(torch.uint8), second.t().contiguous().t()),
    ]
    if second.is_floating_point():
        kinds.append((LABELS, second.clone().requires_grad_()))
    if torch.cuda.is_available():
        kinds.append((LABELS.cuda(), second.cuda()))
    expected = function(LABELS, second)
    for arguments in kinds:
        found = function(*arguments)
        torch.testing.assert_close(found, expected, rtol=0, atol=0, equal_nan=True)
        assert "grad" not in repr(found)


def with_first(value):
    """Return QUARTERS with another first number."""
    probabilities = QUARTERS.clone()
    probabilities[0, 0] = value
    return probabilities


# Functions, arguments that all of them refuse, and what the message says.
REFUSED = [
    (OF_LABELS, (LABELS, LABELS[:2]), r"y_pred must be \[3\]"),
    (OF_LABELS, (LABELS, LABELS.roll(1).float()), "y_pred must hold integers"),
    (OF_LABELS, (LABELS, LABELS - 1), r"y_pred must lie in \[0, .*\), but runs from -1 to 1"),
    (OF_SCORES, (LABELS, with_first(math.nan)), "must be finite"),
    (OF_PROBABILITIES, (LABELS, QUARTERS - 0.5), r"lie in \[0, 1\], but one is -0.25"),
    (OF_PROBABILITIES, (LABELS, with_first(0.2511)), r"sum to 1 within 1e-3, but one is off by 0\.0011"),
    ([metrics.precision_recall_f1], ([[1, 2, 3], [4, 5, 6]],), r"confusion must be \[2, 2\] and not empty"),
    ([metrics.precision_recall_f1], (3,), r"confusion must be \[C, C\] and not empty"),
    ([metrics.confusion_matrix], (LABELS, LABELS, 3.0), "num_classes must be a whole number of at least 1"),
    ([metrics.most_confused_pairs], ([[1, 2], [3, 4]], -1), "n must be a whole number of at least 0, not -1"),
    ([metrics.expected_calibration_error], (LABELS, QUARTERS, 0), "num_bins must be a whole number"),
    ([metrics.bootstrap_headline], (LABELS, QUARTERS, 0), "num_resamples must be a whole number"),
    ([metrics.fit_temperature], (with_first(0.2508), LABELS), "logits are probabilities, as their rows"),
    ([metrics.fit_temperature], (with_first(math.nan), LABELS), "logits must be finite"),
    ([metrics.top_k_accuracy], (LABELS, QUARTERS, 5), "from 1 to 4"),
    ([metrics.proportion], (4, 3), "expected 0 to 3 successes"),
]


@pytest.mark.parametrize(("functions", "arguments", "message"), REFUSED)
def test_bad_arguments_raise(functions, arguments, message):
    for function in functions:
        with pytest.raises(ValueError, match=message):
            function(*arguments)

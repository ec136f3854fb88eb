"""metrics.py against a worked example by hand, slow loops in exact fractions, and brute force."""

import math
import statistics
from fractions import Fraction

import pytest
import torch

import metrics

EXACT = {"abs": 1e-12, "rel": 0}
INTEGER_DTYPES = [torch.int8, torch.int16, torch.int32, torch.int64]
INTEGER_DTYPES += [torch.uint8, torch.uint16, torch.uint32, torch.uint64]


def test_worked_example():
    """Ten photos of cats (0), dogs (1) and birds (2), from labels to the macro averages, step by step."""
    y_true = torch.tensor([0, 0, 0, 0, 1, 1, 1, 2, 2, 2])
    y_pred = torch.tensor([0, 0, 0, 1, 1, 1, 0, 2, 1, 1])
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
    probabilities = 0.7 * torch.nn.functional.one_hot(y_pred, 3) + 0.1
    expected = {"accuracy": 6 / 10, "macro_precision": 43 / 60, "macro_recall": 7 / 12, "macro_f1": 7 / 12}
    expected["top5_accuracy"] = 1  # there are fewer than five classes
    headline = metrics.headline(y_true, probabilities)
    assert headline == pytest.approx(expected, **EXACT)
    bootstrap = metrics.bootstrap_headline(y_true, probabilities)
    assert {name: number["value"] for name, number in bootstrap.items()} == headline


def random_case(n=300, num_classes=7, seed=0, sharpness=2.0):
    """Return y_true int64 [n] and probabilities float32 [n, num_classes] that are right now and then."""
    generator = torch.Generator().manual_seed(seed)
    y_true = torch.randint(num_classes, (n,), generator=generator)
    logits = torch.randn(n, num_classes, generator=generator)
    logits[torch.arange(n), y_true] += 1
    return y_true, (sharpness * logits).softmax(dim=1)


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
        p = Fraction(counts[c][c], predicted) if predicted else Fraction(0)
        r = Fraction(counts[c][c], actual) if actual else Fraction(0)
        precision.append(p)
        recall.append(r)
        f1.append(2 * p * r / (p + r) if p + r else Fraction(0))
    return precision, recall, f1


def floats(values):
    return [float(value) for value in values]


def mean(values):
    return sum(values) / len(values)


# ---- Confusion matrix, precision, recall, F1 ---------------------------------------------------------------


@pytest.mark.parametrize("dtype", INTEGER_DTYPES, ids=str)
def test_confusion_matrix_equals_a_loop_for_every_integer_dtype(dtype):
    # 100 classes: an entry number such as 99 * 100 + 99 does not fit into 8 bits.
    generator = torch.Generator().manual_seed(1)
    y_true, y_pred = torch.randint(100, (2, 500), generator=generator)
    y_true[0] = y_pred[0] = 99
    confusion = metrics.confusion_matrix(y_true.to(dtype), y_pred.to(dtype), 100)
    assert confusion.dtype == torch.int64
    assert confusion.tolist() == loop_confusion(y_true.tolist(), y_pred.tolist(), 100)
    assert metrics.accuracy(y_true.to(dtype), y_pred.to(dtype)) == mean((y_true == y_pred).tolist())


@pytest.mark.parametrize("seed", range(5))
def test_precision_recall_f1_equal_exact_fractions(seed):
    generator = torch.Generator().manual_seed(seed)
    # Few samples of many classes, so that some classes are never predicted and some never occur.
    y_true, y_pred = torch.randint(12, (2, 20), generator=generator)
    counts = loop_confusion(y_true.tolist(), y_pred.tolist(), 12)
    results = metrics.precision_recall_f1(metrics.confusion_matrix(y_true, y_pred, 12))
    for result, expected in zip(results, loop_precision_recall_f1(counts), strict=True):
        assert result.tolist() == pytest.approx(floats(expected), **EXACT)
        assert metrics.macro_average(result) == pytest.approx(float(mean(expected)), **EXACT)


def test_macro_recall_is_mean_per_class_accuracy_and_accuracy_on_balanced_data():
    generator = torch.Generator().manual_seed(3)
    y_true = torch.arange(8).repeat(25)
    y_pred = torch.where(torch.rand(200, generator=generator) < 0.6, y_true, (y_true * 3 + 1) % 8)
    confusion = metrics.confusion_matrix(y_true, y_pred, 8)
    macro_recall = metrics.macro_average(metrics.precision_recall_f1(confusion)[1])
    assert macro_recall == pytest.approx(
        metrics.macro_average(metrics.per_class_accuracy(confusion)), **EXACT
    )
    assert macro_recall == pytest.approx(metrics.accuracy(y_true, y_pred), **EXACT)


def test_micro_averages_are_the_accuracy():
    # Weighted by its own denominator, each of the three adds up to all true positives over all samples.
    y_true, probabilities = random_case()
    y_pred = probabilities.argmax(dim=1)
    confusion = metrics.confusion_matrix(y_true, y_pred, 7)
    actual, predicted = confusion.sum(dim=1), confusion.sum(dim=0)
    weights = (predicted, actual, predicted + actual)
    for per_class, weight in zip(metrics.precision_recall_f1(confusion), weights, strict=True):
        micro = (per_class * weight).sum() / weight.sum()
        assert micro.item() == pytest.approx(metrics.accuracy(y_true, y_pred), **EXACT)


def test_per_class_accuracy_is_nan_without_a_sample_where_recall_is_0():
    confusion = torch.tensor([[3, 1, 0], [0, 0, 0], [2, 0, 6]])
    result = metrics.per_class_accuracy(confusion)
    assert result.dtype == torch.float64
    assert result.tolist() == pytest.approx([3 / 4, math.nan, 6 / 8], nan_ok=True, **EXACT)
    assert metrics.precision_recall_f1(confusion)[1].tolist() == pytest.approx([3 / 4, 0, 6 / 8], **EXACT)
    assert math.isnan(metrics.macro_average(result))


def test_most_confused_pairs_against_a_sorted_list():
    generator = torch.Generator().manual_seed(4)
    confusion = torch.randint(4, (9, 9), generator=generator)  # many ties and zeros
    pairs = [(t, p, confusion[t, p].item()) for t in range(9) for p in range(9) if t != p]
    pairs = sorted([pair for pair in pairs if pair[2] > 0], key=lambda pair: -pair[2])  # stable: row-major
    for n in (1, 5, len(pairs), 1000):
        assert metrics.most_confused_pairs(confusion, n) == pairs[:n]
    assert metrics.most_confused_pairs(torch.tensor([[9, 0, 2], [2, 9, 0], [0, 3, 9]]), 2) == [
        (2, 1, 3),
        (0, 2, 2),
    ]


# ---- Accuracy and top-k ------------------------------------------------------------------------------------


@pytest.mark.parametrize("levels", [2, 4, 1000])
def test_top_k_accuracy_equals_sorting_each_row(levels):
    generator = torch.Generator().manual_seed(levels)
    scores = torch.randint(-levels, levels, (200, 6), generator=generator).float()  # few levels: many ties
    y_true = torch.randint(6, (200,), generator=generator)
    for k in range(1, 7):
        hits = 0
        for label, row in zip(y_true.tolist(), scores.tolist(), strict=True):
            hits += (
                label in sorted(range(6), key=lambda c: -row[c])[:k]
            )  # stable, so ties go to the lower class
        assert metrics.top_k_accuracy(y_true, scores, k) == hits / 200
    assert metrics.top_k_accuracy(y_true, scores, 1) == metrics.accuracy(y_true, scores.argmax(dim=1))
    assert metrics.top_k_accuracy(y_true, scores, 6) == 1


@pytest.mark.parametrize("k", range(1, 11))
def test_top_k_never_counts_more_than_k_classes_where_all_tie(k):
    # One sample of each class and equal scores throughout: exactly k of the ten classes may count.
    assert metrics.top_k_accuracy(torch.arange(10), torch.zeros(10, 10), k) == k / 10


# ---- Superclasses ------------------------------------------------------------------------------------------


def test_superclass_numbers_equal_loops():
    generator = torch.Generator().manual_seed(5)
    y_true, y_pred = torch.randint(10, (2, 400), generator=generator)
    superclass_of = torch.tensor([2, 0, 1, 0, 2, 2, 0, 1, 0, 3])
    of = superclass_of.tolist()
    pairs = list(zip(y_true.tolist(), y_pred.tolist(), strict=True))
    inside = [of[t] == of[p] for t, p in pairs]
    assert metrics.superclass_accuracy(y_true, y_pred, superclass_of.to(torch.uint8)) == mean(inside)


@pytest.mark.parametrize("sizes", [[5] * 20, [1, 2, 7], [1, 1]])
def test_chance_within_superclass_against_enumeration(sizes):
    superclass_of = [s for s, size in enumerate(sizes) for _ in range(size)]
    fractions = []
    for true, coarse in enumerate(superclass_of):
        others = [c for c in range(len(superclass_of)) if c != true]
        fractions.append(sum(superclass_of[c] == coarse for c in others) / len(others))
    expected = pytest.approx(sum(fractions) / len(fractions))
    assert metrics.chance_within_superclass(torch.tensor(superclass_of)) == expected


# ---- Calibration -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("num_bins", [1, 2, 10, 15])
def test_calibration_bins_and_error_equal_loops(num_bins):
    y_true, probabilities = random_case(seed=num_bins, n=200)
    rows = probabilities.double().tolist()
    members = [[] for _ in range(num_bins)]
    for label, row in zip(y_true.tolist(), rows, strict=True):
        confidence = max(row)
        (index,) = [m for m in range(num_bins) if m / num_bins < confidence <= (m + 1) / num_bins]
        members[index].append((Fraction(confidence), row.index(confidence) == label))
    mean_confidence, bin_accuracy, count = metrics.calibration_bins(y_true, probabilities, num_bins)
    assert mean_confidence.dtype == bin_accuracy.dtype == torch.float64
    assert count.dtype == torch.int64
    assert count.tolist() == [len(member) for member in members]
    error = Fraction(0)
    for m, member in enumerate(members):
        if not member:
            assert math.isnan(mean_confidence[m]) and math.isnan(bin_accuracy[m])
            continue
        confidence = mean([confidence for confidence, _ in member])
        right = Fraction(sum(right for _, right in member), len(member))
        assert mean_confidence[m].item() == pytest.approx(float(confidence), **EXACT)
        assert bin_accuracy[m].item() == pytest.approx(float(right), **EXACT)
        error += Fraction(len(member), 200) * abs(right - confidence)
    result = metrics.expected_calibration_error(y_true, probabilities, num_bins)
    assert result == pytest.approx(float(error), **EXACT)


def test_bins_are_closed_on_the_right():
    # Confidences on the edges 6/10 to 10/10 belong to the bins that end there, those just above to the next.
    on_edge = torch.tensor([6, 7, 8, 9, 10], dtype=torch.float64) / 10
    count = metrics.calibration_bins(
        torch.zeros(5, dtype=int), torch.stack([on_edge, 1 - on_edge], dim=1), 10
    )[2]
    assert count.tolist() == [0, 0, 0, 0, 0, 1, 1, 1, 1, 1]
    above = on_edge[:4] + 1e-9
    count = metrics.calibration_bins(torch.zeros(4, dtype=int), torch.stack([above, 1 - above], dim=1), 10)[2]
    assert count.tolist() == [0, 0, 0, 0, 0, 0, 1, 1, 1, 1]


def test_a_tied_prediction_is_the_lowest_class_everywhere():
    y_true = torch.tensor([0, 1, 2, 3])
    probabilities = torch.full((4, 4), 0.25)
    assert metrics.calibration_bins(y_true, probabilities, 4)[1].tolist()[0] == 0.25
    assert metrics.risk_coverage(y_true, probabilities)[1].tolist() == pytest.approx([0, 1 / 2, 2 / 3, 3 / 4])
    assert metrics.bootstrap_headline(y_true, probabilities, 1)["accuracy"]["value"] == 0.25


def test_brier_score_equals_a_loop():
    y_true, probabilities = random_case()
    brier = []
    for label, row in zip(y_true.tolist(), probabilities.double().tolist(), strict=True):
        brier.append(sum((p - (c == label)) ** 2 for c, p in enumerate(row)))
    assert metrics.brier_score(y_true, probabilities) == pytest.approx(mean(brier), **EXACT)
    uniform = torch.full((5, 4), 0.25)
    assert metrics.brier_score(torch.tensor([0, 1, 2, 3, 3]), uniform) == 3 / 4


# ---- Temperature -------------------------------------------------------------------------------------------


def loss_at(temperature, logits, y_true):
    return torch.nn.functional.cross_entropy(logits.double() / temperature, y_true).item()


@pytest.mark.parametrize("scale", [0.2, 1.0, 5.0])
def test_temperature_has_the_least_loss_of_a_fine_grid_and_a_zero_derivative(scale):
    y_true, probabilities = random_case(n=500)
    logits = scale * probabilities.log()
    best = metrics.fit_temperature(logits, y_true)
    at_best = loss_at(best, logits, y_true)
    grid = torch.logspace(-2, 2, 2001, dtype=torch.float64).tolist()
    losses = [loss_at(temperature, logits, y_true) for temperature in grid]
    assert at_best <= min(losses)
    lowest = losses.index(min(losses))
    assert grid[lowest - 1] < best < grid[lowest + 1]
    step = 1e-3 * best
    slope = (loss_at(best + step, logits, y_true) - loss_at(best - step, logits, y_true)) / (2 * step)
    curvature = (
        loss_at(best + step, logits, y_true) - 2 * at_best + loss_at(best - step, logits, y_true)
    ) / step**2
    assert abs(slope) < 1e-5 * curvature * best


def test_temperature_that_made_the_labels_is_found_again():
    generator = torch.Generator().manual_seed(6)
    logits = 4 * torch.randn(20_000, 5, generator=generator)
    y_true = torch.multinomial((logits / 2.5).softmax(dim=1), 1, generator=generator)[:, 0]
    fitted = metrics.fit_temperature(logits, y_true)
    assert fitted == pytest.approx(2.5, rel=0.04)
    # Scaled logits scale the temperature; a shift of all logits of a sample changes nothing.
    assert metrics.fit_temperature(3 * logits.double(), y_true) == pytest.approx(3 * fitted, rel=1e-9)
    assert metrics.fit_temperature(logits.double() + 1000, y_true) == pytest.approx(fitted, rel=1e-6)
    # and the fit makes the confidence honest
    before = metrics.expected_calibration_error(y_true, logits.softmax(dim=1))
    after = metrics.expected_calibration_error(y_true, (logits / fitted).softmax(dim=1))
    assert after < 0.02 < 0.1 < before


def test_temperature_stays_within_its_limits():
    y_true = torch.tensor([0, 1, 2])
    for scale in (0.1, 1.0, 1000.0):  # 1000: the other classes' probabilities underflow to 0
        right = scale * torch.eye(3)
        assert metrics.fit_temperature(right, y_true) == pytest.approx(0.01)
        assert metrics.fit_temperature(-right, y_true) == pytest.approx(100)
    assert metrics.fit_temperature(torch.full((3, 4), 0.1), y_true) == 1


# ---- Selective prediction ----------------------------------------------------------------------------------


def test_risk_coverage_equals_a_loop():
    y_true, probabilities = random_case(n=150)
    probabilities[75:] = probabilities[:75]  # ties of confidence with labels that differ
    rows = probabilities.tolist()
    order = sorted(range(150), key=lambda i: -max(rows[i]))  # stable
    errors, expected = 0, []
    for answered, i in enumerate(order, start=1):
        errors += rows[i].index(max(rows[i])) != y_true[i].item()
        expected.append(Fraction(errors, answered))
    coverage, risk = metrics.risk_coverage(y_true, probabilities)
    assert coverage.dtype == risk.dtype == torch.float64
    assert coverage.tolist() == pytest.approx([i / 150 for i in range(1, 151)], **EXACT)
    assert risk.tolist() == pytest.approx(floats(expected), **EXACT)
    assert risk[-1].item() == pytest.approx(
        1 - metrics.accuracy(y_true, probabilities.argmax(dim=1)), **EXACT
    )
    area = metrics.aurc(y_true, probabilities)
    assert area == pytest.approx(float(mean(expected)), **EXACT)


# ---- Intervals ---------------------------------------------------------------------------------------------


def quantile(values, fraction):
    """The quantile with linear interpolation between the order statistics."""
    values = sorted(values)
    position = fraction * (len(values) - 1)
    left = min(int(position), len(values) - 2)
    return values[left] + (position - left) * (values[left + 1] - values[left])


@pytest.mark.parametrize("num_classes", [4, 6])
def test_bootstrap_equals_a_loop_over_the_same_resamples(num_classes):
    y_true, probabilities = random_case(n=40, num_classes=num_classes)
    labels, rows = y_true.tolist(), probabilities.tolist()
    predicted = [row.index(max(row)) for row in rows]

    def headline(samples):
        counts = loop_confusion([labels[i] for i in samples], [predicted[i] for i in samples], num_classes)
        numbers = [mean([Fraction(labels[i] == predicted[i]) for i in samples])]
        numbers += [mean(per_class) for per_class in loop_precision_recall_f1(counts)]
        top = [sorted(range(num_classes), key=lambda c: -rows[i][c])[:5] for i in samples]
        return [*numbers, mean([Fraction(labels[i] in best) for i, best in zip(samples, top, strict=True)])]

    generator = torch.Generator().manual_seed(0)
    resamples = torch.randint(40, (60, 40), generator=generator).tolist()
    resampled = list(zip(*[headline(samples) for samples in resamples], strict=True))
    result = metrics.bootstrap_headline(y_true, probabilities, num_resamples=60)
    names = ["accuracy", "macro_precision", "macro_recall", "macro_f1", "top5_accuracy"]
    assert metrics.headline(y_true, probabilities) == {name: result[name]["value"] for name in names}
    for name, value, numbers in zip(names, headline(range(40)), resampled, strict=True):
        assert result[name]["value"] == pytest.approx(float(value), **EXACT)
        assert result[name]["low"] == pytest.approx(float(quantile(floats(numbers), 0.025)), **EXACT)
        assert result[name]["high"] == pytest.approx(float(quantile(floats(numbers), 0.975)), **EXACT)


def test_bootstrap_is_seeded_and_leaves_the_global_generator_alone():
    y_true, probabilities = random_case(n=100)
    before = torch.get_rng_state()
    first = metrics.bootstrap_headline(y_true, probabilities, num_resamples=50)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(123)
    assert metrics.bootstrap_headline(y_true, probabilities, num_resamples=50) == first
    torch.set_rng_state(before)


def test_bootstrap_width_is_that_of_the_binomial_normal_approximation():
    y_true, probabilities = random_case(n=3000)
    result = metrics.bootstrap_headline(y_true, probabilities, num_resamples=2000)
    for name in ("accuracy", "top5_accuracy"):
        value, low, high = result[name]["value"], result[name]["low"], result[name]["high"]
        half = 1.96 * math.sqrt(value * (1 - value) / 3000)
        # The end of an interval from 2000 resamples has a standard error of about 3 % of the half width.
        assert low == pytest.approx(value - half, abs=0.12 * half)
        assert high == pytest.approx(value + half, abs=0.12 * half)


def test_bootstrap_interval_covers_the_true_accuracy_as_often_as_it_says():
    # 300 test sets of 200 samples from a classifier that is right 70 % of the time: a 95 % interval should
    # hold 0.7 in about 285 of them, give or take three standard deviations of 3.8.
    generator = torch.Generator().manual_seed(8)
    covered = 0
    for _ in range(300):
        y_true = (
            torch.rand(200, generator=generator) < 0.3
        ).long()  # class 0, 70 % of them, is always predicted
        probabilities = torch.tensor([[0.9, 0.1]]).expand(200, 2)
        result = metrics.bootstrap_headline(y_true, probabilities, 200)["accuracy"]
        covered += result["low"] <= 0.7 <= result["high"]
    assert 273 <= covered <= 297


@pytest.mark.parametrize(
    ("successes", "n"), [(0, 1), (1, 1), (0, 10), (3, 10), (10, 10), (61, 100), (9999, 10000)]
)
def test_interval_of_a_proportion_solves_its_quadratic(successes, n):
    z = statistics.NormalDist().inv_cdf(0.975)
    observed = successes / n

    def root(inside, outside):
        """Bisect for the p where (observed - p)^2 - z^2 p (1 - p) / n changes its sign."""
        for _ in range(100):
            middle = (inside + outside) / 2
            if (observed - middle) ** 2 <= z**2 * middle * (1 - middle) / n:
                inside = middle
            else:
                outside = middle
        return inside

    value, low, high = metrics.proportion(successes, n).values()
    assert value == observed
    centre = (observed + z**2 / (2 * n)) / (
        1 + z**2 / n
    )  # between the roots, where the quadratic is negative
    assert low == pytest.approx(root(centre, 0), abs=1e-9)
    assert high == pytest.approx(root(centre, 1), abs=1e-9)
    assert 0 <= low <= observed <= high <= 1


# ---- Explanations -----------------------------------------------------------------------------------------


def test_pointing_game_against_a_loop():
    generator = torch.Generator().manual_seed(3)
    heatmaps = torch.rand(40, 6, 5, generator=generator)
    heatmaps[7] = 0  # an empty map points nowhere
    masks = torch.rand(40, 6, 5, generator=generator) < 0.4
    masks[7] = True
    hits = 0
    for heatmap, mask in zip(heatmaps.tolist(), masks.tolist(), strict=True):
        best = max(
            (value, -row, -column) for row, line in enumerate(heatmap) for column, value in enumerate(line)
        )
        hits += best[0] > 0 and mask[-best[1]][-best[2]]
    expected_chance = sum(value for mask in masks.tolist() for line in mask for value in line) / (40 * 30)
    count, chance = metrics.pointing_game(heatmaps, masks)
    assert count == hits and 0 < hits < 40
    assert chance == pytest.approx(expected_chance)


# ---- Two networks on the same samples ----------------------------------------------------------------------


def test_bootstrap_difference_equals_a_loop_over_the_same_resamples():
    y_true, first = random_case(n=40, num_classes=4)
    second = random_case(seed=9, n=40, num_classes=4)[1]
    labels = y_true.tolist()
    predicted = [[row.index(max(row)) for row in some.tolist()] for some in (first, second)]

    def difference(samples):
        numbers = []
        for of_one in predicted:
            pairs = [(labels[i], of_one[i]) for i in samples]
            f1 = loop_precision_recall_f1(loop_confusion(*zip(*pairs, strict=True), 4))[2]
            numbers.append((mean([Fraction(t == p) for t, p in pairs]), mean(f1)))
        return [a - b for a, b in zip(*numbers, strict=True)]

    resamples = torch.randint(40, (50, 40), generator=torch.Generator().manual_seed(0)).tolist()
    resampled = list(zip(*[difference(samples) for samples in resamples], strict=True))
    result = metrics.bootstrap_difference(y_true, first, second, num_resamples=50)
    for name, value, numbers in zip(("accuracy", "macro_f1"), difference(range(40)), resampled, strict=True):
        expected = [value, quantile(floats(numbers), 0.025), quantile(floats(numbers), 0.975)]
        assert [result[name][key] for key in ("value", "low", "high")] == pytest.approx(
            floats(expected), **EXACT
        )
    swapped = metrics.bootstrap_difference(y_true, second, first, num_resamples=50)
    for name in result:
        ends = [-swapped[name][key] for key in ("value", "high", "low")]
        assert list(result[name].values()) == pytest.approx(ends, **EXACT)


def test_bootstrap_difference_is_narrower_where_the_networks_agree():
    """The variance of the difference of accuracies: only samples on which one alone is right add to it."""
    y_true, first = random_case(n=3000)
    second = first.clone()
    second[:150] = first[:150].flip(1)  # other answers to 150 samples
    right, other_right = (some.argmax(dim=1) == y_true for some in (first, second))
    gained, lost = (right & ~other_right).sum().item(), (other_right & ~right).sum().item()
    value = (gained - lost) / 3000
    half = 1.96 * math.sqrt(((gained + lost) / 3000 - value**2) / 3000)
    result = metrics.bootstrap_difference(y_true, first, second, num_resamples=2000)["accuracy"]
    assert result["value"] == pytest.approx(value, **EXACT)
    assert result["low"] == pytest.approx(value - half, abs=0.12 * half)
    assert result["high"] == pytest.approx(value + half, abs=0.12 * half)
    for number in metrics.bootstrap_difference(y_true, first, first, num_resamples=20).values():
        assert list(number.values()) == [0, 0, 0]


def test_mcnemar_by_hand():
    # Six samples, all to one side: of the 64 ways for six coins to fall, two are as uneven.
    assert metrics.mcnemar_exact(6, 0) == metrics.mcnemar_exact(0, 6) == 2 / 64
    assert metrics.mcnemar_exact(1, 3) == 10 / 16  # 1 and 4 ways on either side
    assert metrics.mcnemar_exact(12, 3) == 2 * (1 + 15 + 105 + 455) / 2**15  # 0.0352
    assert [metrics.mcnemar_exact(n, n) for n in (0, 1, 20, 5000)] == [1, 1, 1, 1]
    assert metrics.mcnemar_exact(1, 0) == 1


@pytest.mark.parametrize("n", [1, 2, 7, 10])
def test_mcnemar_equals_counting_all_ways_in_which_coins_fall(n):
    heads = [bin(way).count("1") for way in range(2**n)]
    for k in range(n + 1):
        as_uneven = sum(abs(2 * h - n) >= abs(2 * k - n) for h in heads)
        assert metrics.mcnemar_exact(k, n - k) == as_uneven / 2**n


@pytest.mark.parametrize("counts", [(600, 700), (4800, 5200), (1000, 3), (9000, 1000)])
def test_mcnemar_of_large_counts_is_exact(counts):
    k, n = min(counts), sum(counts)
    ways, binomial = 0, 1  # to choose i of n, by Pascal's rule from i to i + 1
    for i in range(k + 1):
        ways, binomial = ways + binomial, binomial * (n - i) // (i + 1)
    expected = float(Fraction(2 * ways, 2**n))
    assert metrics.mcnemar_exact(*counts) == metrics.mcnemar_exact(*counts[::-1]) == expected


# ---- What may come in --------------------------------------------------------------------------------------


@pytest.mark.parametrize("device", ["cpu"] + ["cuda"] * torch.cuda.is_available())
def test_inputs_of_other_dtype_layout_device_and_with_gradient_give_the_same_numbers(device):
    y_true, probabilities = random_case(n=64)
    labels = y_true.to(device, torch.uint8).repeat_interleave(2)[::2]  # not contiguous
    scores = probabilities.to(device).T.contiguous().T.double().requires_grad_()
    for function in (metrics.headline, metrics.expected_calibration_error, metrics.bootstrap_headline):
        assert function(labels, scores) == function(labels.cpu(), scores) == function(y_true, probabilities)
    for result in metrics.calibration_bins(labels, scores) + metrics.risk_coverage(labels, scores):
        assert result.device.type == "cpu" and not result.requires_grad
    confusion = metrics.confusion_matrix(labels, scores.argmax(dim=1), 7)
    assert torch.equal(confusion, metrics.confusion_matrix(y_true, probabilities.argmax(dim=1), 7))


LABELS = torch.tensor([0, 1, 2])
QUARTERS = torch.full((3, 4), 0.25)  # probabilities of three samples and four classes
COUNTS = torch.ones(3, 3, dtype=torch.int64)
COARSE = torch.tensor([0, 0, 1])


def with_first(value):
    """Return QUARTERS with another first number."""
    probabilities = QUARTERS.clone()
    probabilities[0, 0] = value
    return probabilities


OF_LABELS = [
    lambda y, p: metrics.confusion_matrix(y, p, 3),
    lambda y, p: metrics.superclass_accuracy(y, p, COARSE),
]
OF_PROBABILITIES = [
    metrics.calibration_bins,
    metrics.brier_score,
    metrics.risk_coverage,
    metrics.headline,
    lambda y, p: metrics.bootstrap_headline(y, p, num_resamples=2),
    lambda y, p: metrics.bootstrap_difference(y, p, p, num_resamples=2),
]
OF_SCORES = [
    *OF_PROBABILITIES,
    lambda y, scores: metrics.top_k_accuracy(y, scores, 1),
    lambda y, scores: metrics.fit_temperature(scores, y),
]
OF_CONFUSION = [
    metrics.precision_recall_f1,
    metrics.per_class_accuracy,
    lambda confusion: metrics.most_confused_pairs(confusion, 3),
]

# Functions, arguments that all of them refuse, and what the message says.
REFUSED = [
    (OF_LABELS, (LABELS, LABELS[:2]), r"y_pred must be \[3\]"),
    (OF_LABELS, (LABELS[:, None], LABELS), r"y_true must be \[N\]"),
    (OF_LABELS, (LABELS[:0], LABELS), "not empty"),
    (OF_LABELS, (LABELS, LABELS.roll(1).float()), "y_pred must hold integers"),
    (OF_LABELS, (LABELS, LABELS - 1), r"y_pred must lie in \[0, .*\), but runs from -1 to 1"),
    (OF_LABELS, (LABELS, LABELS + 1), r"must lie in \[0, 3\), but runs from . to 3"),
    (OF_SCORES, (LABELS, QUARTERS[0]), r"must be \[N, C\] and not empty"),
    (OF_SCORES, (LABELS, QUARTERS[:2]), r"y_true must be \[2\]"),
    (OF_SCORES, (LABELS + 2, QUARTERS), r"y_true must lie in \[0, 4\)"),
    *((OF_SCORES, (LABELS, with_first(bad)), "must be finite") for bad in (math.nan, math.inf)),
    (OF_PROBABILITIES, (LABELS, QUARTERS - 0.5), r"lie in \[0, 1\], but run from -0.25"),
    (OF_PROBABILITIES, (LABELS, with_first(0.2511)), r"sum to 1 within 1e-3, but one is off by 0\.0011"),
    (OF_PROBABILITIES, (LABELS, with_first(0.2489)), r"sum to 1 within 1e-3, but one is off by 0\.0011"),
    (OF_CONFUSION, (COUNTS[:2],), r"confusion must be \[N, N\] and not empty"),
    (OF_CONFUSION, (COUNTS / 3,), "confusion must hold integers"),
    (OF_CONFUSION, (COUNTS - 2,), "runs from -1"),
    ([metrics.top_k_accuracy], (LABELS, QUARTERS, 0), "k must be 1 to 4"),
    ([metrics.top_k_accuracy], (LABELS, QUARTERS, 5), "k must be 1 to 4"),
    ([metrics.macro_average], (COUNTS,), "per_class must be 1-D and not empty"),
    ([metrics.most_confused_pairs], (COUNTS, 0), "n must be at least 1"),
    ([metrics.expected_calibration_error], (LABELS, QUARTERS, 0), "num_bins must be at least 1"),
    ([metrics.bootstrap_headline], (LABELS, QUARTERS, 0), "num_resamples must be at least 1"),
    ([metrics.bootstrap_difference], (LABELS, QUARTERS, QUARTERS[:, :3]), "must have the same shape"),
    *(([metrics.proportion], pair, "whole numbers") for pair in ((4, 3), (0, 0), (-1, 2), (0.66, 1))),
    *(([metrics.mcnemar_exact], pair, "whole numbers") for pair in ((-1, 3), (0.5, 2))),
    ([metrics.pointing_game], (QUARTERS, QUARTERS), r"\[N, H, W\]"),
]


@pytest.mark.parametrize(("functions", "arguments", "message"), REFUSED)
def test_bad_arguments_raise(functions, arguments, message):
    for function in functions:
        with pytest.raises(ValueError, match=message):
            function(*arguments)


def test_rows_may_be_off_by_a_thousandth():
    for probabilities in (with_first(0.25099), with_first(0.24901)):
        for function in OF_PROBABILITIES:
            function(LABELS, probabilities)

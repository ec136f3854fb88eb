"""From the answers to the test images to their numbers, those of metrics.json and predictions.npz.

The arithmetic stands in metrics.py; here it is put together, from the logits of any classifier.
"""

import torch
from torch import Tensor

import metrics
from data import Dataset, first_copy, images_at_once

CONFIDENT = 0.9
HISTOGRAM_BINS = 50


def evaluate(
    logits: Tensor, test: Dataset, train: Dataset | None, validation: tuple[Tensor, Tensor] | None
) -> tuple[dict, dict]:
    """Return the numbers of metrics.json and the arrays of predictions.npz that follow from the logits.

    logits float32 [N, C]: of the test split. train: the training set, and validation: logits [V, C] and
    labels [V]; None if it is not known.
    """
    probabilities, y_pred, y_true = logits.softmax(dim=1), logits.argmax(dim=1), test.labels
    confusion = metrics.confusion_matrix(y_true, y_pred, len(test.class_names))
    answers = {
        "y_true": y_true,
        "y_pred": y_pred,
        "probabilities": probabilities,
        "confidence": probabilities.amax(dim=1),
        "confusion": confusion,
        "filenames": test.filenames,
    }
    numbers = metrics.bootstrap_headline(y_true, logits) | {"num_test": len(y_true)}
    wrong, second = y_pred != y_true, logits.argsort(dim=1, descending=True, stable=True)[:, 1] == y_true
    numbers["truth_second"] = second[wrong].double().mean().item() if wrong.any() else None
    numbers |= evaluate_confidence(logits, y_true, validation)
    numbers |= evaluate_classes(confusion, test, train)
    if test.superclass_of is not None:
        of, names = test.superclass_of, test.superclass_names
        numbers |= evaluate_superclasses(test, y_pred)
        answers |= {"superclass_of": of, "superclass_names": names}
        answers["superclass_confusion"] = metrics.confusion_matrix(of[y_true], of[y_pred], len(names))
    if train is not None:
        numbers["duplicates"], answers["training_labels"] = audit_duplicates(train, test, y_pred)
    return numbers, answers


def evaluate_confidence(logits: Tensor, y_true: Tensor, validation: tuple[Tensor, Tensor] | None) -> dict:
    """Return how well confidence says which answers are right, as trained and `_after_temperature`."""
    numbers = confidence_at(1.0, logits, y_true)
    if validation is not None:
        numbers["temperature"] = metrics.fit_temperature(*validation)
        scaled = confidence_at(numbers["temperature"], logits, y_true)
        numbers |= {f"{key}_after_temperature": value for key, value in scaled.items()}
    return numbers


def confidence_at(temperature: float, logits: Tensor, y_true: Tensor) -> dict:
    """Return what the probabilities at a temperature say of which answers are right.

    `calibration_bins` are [confidence, accuracy, number of answers] of each bin that has any.
    """
    scaled = logits.double() / temperature  # in float32 large logits give a confidence of 1, small ones ties
    probabilities, right = scaled.softmax(dim=1), logits.argmax(dim=1) == y_true
    confidence = probabilities.amax(dim=1)
    sure = confidence > CONFIDENT
    _, risk = metrics.risk_coverage(y_true, probabilities)
    place = (HISTOGRAM_BINS * confidence).long().clamp(max=HISTOGRAM_BINS - 1)
    columns = [column.tolist() for column in metrics.calibration_bins(y_true, probabilities)]
    return {
        "expected_calibration_error": metrics.expected_calibration_error(y_true, probabilities),
        "error_if_calibrated": metrics.error_if_calibrated(confidence),
        "mean_confidence": confidence.mean().item(),
        "calibration_bins": [list(row) for row in zip(*columns, strict=True) if row[2]],
        "aurc": risk.mean().item(),
        "risk_at_half_coverage": risk[(len(risk) - 1) // 2].item(),
        "auroc": metrics.auroc(right, metrics.log_odds(scaled)),
        "confident": {"answers": int(sure.sum()), "wrong": int((sure & ~right).sum())},
        "confidence_histogram": {
            "right": place[right].bincount(minlength=HISTOGRAM_BINS).tolist(),
            "wrong": place[~right].bincount(minlength=HISTOGRAM_BINS).tolist(),
        },
    }


def evaluate_superclasses(test: Dataset, y_pred: Tensor) -> dict:
    """Return how many superclasses are right, and whether errors are near misses."""
    of, wrong = test.superclass_of, y_pred != test.labels
    true, predicted = of[test.labels], of[y_pred]
    return {
        "superclass_accuracy": metrics.accuracy(true, predicted),
        "errors_within_superclass": metrics.accuracy(true[wrong], predicted[wrong]) if wrong.any() else None,
        "chance_within_superclass": metrics.chance_within_superclass(of),
    }


def evaluate_classes(confusion: Tensor, test: Dataset, train: Dataset | None) -> dict:
    """Return the numbers of each class, what it is mistaken for most often, and the pairs often confused."""
    precision, recall, f1 = metrics.precision_recall_f1(confusion)
    wrong = confusion.clone().fill_diagonal_(0)
    classes, names, num_test = [], test.class_names, confusion.sum(dim=1)
    for c, name in enumerate(names):
        row = {"name": name}
        if test.superclass_of is not None:
            row["superclass"] = test.superclass_names[test.superclass_of[c]]
        if train is not None:
            row["num_train"] = int((train.labels == c).sum())
        row |= {
            "num_test": int(num_test[c]),
            "num_right": int(confusion[c, c]),
            "num_predicted": int(confusion[:, c].sum()),
            "precision": precision[c].item(),
            "recall": recall[c].item(),
            "f1": f1[c].item(),
            "most_confused_with": names[wrong[c].argmax()] if wrong[c].any() else "",
            "most_confused_with_count": int(wrong[c].max()),
        }
        classes.append(row)
    pairs = metrics.most_confused_pairs(confusion, 20)
    return {
        "classes": classes,
        "most_confused_pairs": [{"true": names[i], "predicted": names[j], "count": n} for i, j, n in pairs],
    }


def mean_colour(dataset: Dataset) -> Tensor:
    """Return the mean of all pixels of the images, float32 [3] in [0, 1]."""
    images = dataset.images  # a sum of all at once would have them in 64 bits
    sums = torch.stack([part.sum(dim=(0, 2, 3)) for part in images.split(images_at_once(images))])
    return (sums.sum(dim=0).double() / (255 * len(images) * images.shape[-1] ** 2)).float()


def audit_duplicates(train: Dataset, test: Dataset, y_pred: Tensor) -> tuple[dict, Tensor]:
    """Count equal images: a test image that is also a training image can flatter the accuracy or spoil it.

    Also returns the label of the pixels of each test image in the training set, int64 [N], -1 where they are
    not there.
    """
    copies, n = first_copy(train.images, test.images), len(train.labels)
    repeats = copies[:n] != torch.arange(n)
    in_train = copies[n:] < n
    rest = ~in_train
    training_labels = torch.full_like(test.labels, -1)
    training_labels[in_train] = train.labels[copies[n:][in_train]]
    relabelled = in_train & (training_labels != test.labels)
    counts = {
        "train_images_that_repeat_another": int(repeats.sum()),
        "test_images_in_train": int(in_train.sum()),
        "with_another_label_there": int(relabelled.sum()),
        "misclassified_as_labelled_there": int((relabelled & (y_pred == training_labels)).sum()),
        "accuracy_without_them": metrics.accuracy(test.labels[rest], y_pred[rest]) if rest.any() else None,
    }
    return counts, training_labels

"""What answers say without the network that gave them: the numbers of report.py, and further ones.

`further_numbers` returns those of reasons.json: how sure right and wrong answers are, which mistakes are of
which kind, and how runs on the same test images differ. `duplicates` counts test images that are training
images too.
"""

from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

import metrics
import report
from data import Dataset, sha256_of
from lab import more_metrics, pictures, reasons, results
from lab.classifier import Classifier
from lab.support import UserError, core
from train import write_csv

# ---- The numbers of report.py ------------------------------------------------------------------------------


def numbers_of_answers(given: dict, test: Dataset, source: str) -> tuple[dict, dict]:
    """Return numbers and arrays for answers from a file or from memory; `source` says which.

    given: see predictions.checked. The digest of the probabilities stands for that of the weights.
    """
    logits, probabilities = given["logits"], given.get("probabilities")
    with core():
        numbers, arrays = report.evaluate(logits, test, given.get("validation"), probabilities)
    digest = sha256_of(logits.double().softmax(dim=1) if probabilities is None else probabilities.double())
    facts = {"answers": source} | ({"notes": "; ".join(given["notes"])} if given["notes"] else {})
    return numbers | described("A classifier", test, facts, digest), arrays


def described(network: str, test: Dataset, facts: dict, digest: str) -> dict:
    """Return what metrics.json says about the network and the test images."""
    facts = facts | {"test images": pictures.described(test)}
    title, images = f"{network}, on {test.name}", results.images_digest(test)
    return {"title": title, "checkpoint_sha256": digest, "images_sha256": images, "examined": facts}


def notes_on(numbers: dict, test: Dataset) -> list[str]:
    """Return what makes the numbers mean less, for people."""
    notes, absent = [], len(test.class_names) - len(test.labels.unique())
    if absent:
        notes.append(f"{absent} classes have no test image and count as 0 in the macro averages")
    value, chance = 100 * numbers["accuracy"]["value"], 100 / len(test.class_names)
    if value < chance + 0.1 * (100 - chance):
        notes.append(
            f"an accuracy of {value:.1f} % is near chance: are images and classes as it expects them?"
        )
    return notes


def check_accuracy(numbers: dict, expected: float | None) -> None:
    """Raise UserError unless the expected accuracy, in percent, lies in the measured interval."""
    if expected is None:
        return
    value, low, high = (100 * numbers["accuracy"][key] for key in ("value", "low", "high"))
    if not low <= expected <= high:
        measured = f"{value:.2f} % ({low:.2f} to {high:.2f})"
        meant = f" Did you mean {100 * expected:g}?" if expected <= 1 else ""
        raise UserError(f"the accuracy is {measured}, not the expected {expected:g} %.{meant}")


# ---- Further ones ------------------------------------------------------------------------------------------


def further_numbers(
    arrays: dict,
    test: Dataset,
    temperature: float | None,
    others: dict[str, dict],
    probabilities: Tensor | None = None,
) -> tuple[dict, Tensor]:
    """Return the numbers of reasons.json that follow from the answers alone, and the kinds, int64 [N].

    arrays: predictions.npz; others: see read_runs; probabilities [N, C], if they were given and no logits.
    The kinds are those of reasons.kinds_of_mistakes.
    """
    logits, y_true, y_pred = arrays["logits"], arrays["y_true"], arrays["y_pred"]
    wrong, second = y_pred != y_true, logits.argsort(dim=1, descending=True, stable=True)[:, 1] == y_true
    numbers = {"truth_second": second[wrong].double().mean().item() if wrong.any() else None}
    for suffix, divisor in {"": 1.0, "_after_temperature": temperature}.items():
        if divisor is None:
            continue
        scaled = logits.double() / divisor
        of_confidence = numbers_of_confidence(y_true, y_pred, scaled, None if suffix else probabilities)
        numbers |= {f"{key}{suffix}": value for key, value in of_confidence.items()}
    answers_of_others = [values["y_pred"] for values in others.values()]
    kinds, numbers["kinds"] = reasons.kinds_of_mistakes(y_true, logits, test.superclass_of, answers_of_others)
    if others:
        numbers["against"] = compare({"this network": arrays, **others}, y_true)
    return numbers, kinds


def numbers_of_confidence(
    y_true: Tensor, y_pred: Tensor, logits: Tensor, probabilities: Tensor | None = None
) -> dict:
    """Return how well confidence tells right from wrong answers; logits float64 [N, C].

    Where probabilities were given they count, as their logarithms are not exact and would part equal ones.
    """
    sureness = more_metrics.log_odds(logits) if probabilities is None else probabilities.amax(dim=1)
    probabilities = logits.softmax(dim=1) if probabilities is None else probabilities.double()
    right, wrong = more_metrics.confidence_histogram(y_true, probabilities)
    _, risk = more_metrics.risk_coverage(y_true, probabilities)
    return {
        "confidence_histogram": {"right": right.tolist(), "wrong": wrong.tolist()},
        "calibration_error_by_chance": more_metrics.calibration_error_by_chance(probabilities.amax(dim=1)),
        "aurc": risk.mean().item(),  # the area under the curve is the mean risk
        "risk_at_half_coverage": risk[(len(risk) - 1) // 2].item(),
        "auroc": more_metrics.auroc(y_pred == y_true, sureness),
    }


def checked_training_set(network: Classifier, train: Dataset | None, test: Dataset) -> Dataset | None:
    """Return the training set with its classes in the order of `test`, or None if the network saw another.

    If the network was trained on another one it adds a note. Raises UserError if the two sets have different
    classes.
    """
    if train is None:
        return None
    config = network.training["config"] if network.training is not None else {}
    trained_on, own_size = config.get("images_sha256"), config.get("image_size") == network.model.image_size
    if own_size and trained_on is not None and trained_on != sha256_of(train.images):
        network.notes.append("the training images found are not those of the training: no duplicates")
        return None
    if train.class_names == test.class_names:
        return train
    if sorted(train.class_names) != sorted(test.class_names):
        raise UserError("the training set and the test set have other classes: expected the same names")
    places = torch.tensor([test.class_names.index(name) for name in train.class_names])
    return replace(train, labels=places[train.labels], class_names=test.class_names)


def duplicates(copies: Tensor, y_true: Tensor, y_pred: Tensor) -> dict:
    """Count test images that are training images too, which flatters the accuracy or spoils it.

    copies: see pictures.find_copies.
    """
    in_train = copies >= 0
    relabelled, rest = in_train & (copies != y_true), ~in_train
    return {
        "test_images_in_train": int(in_train.sum()),
        "with_another_label_there": int(relabelled.sum()),
        "misclassified_as_labelled_there": int((relabelled & (y_pred == copies)).sum()),
        "accuracy_without_them": metrics.accuracy(y_true[rest], y_pred[rest]) if rest.any() else None,
    }


def write_table(path: Path, arrays: dict) -> None:
    """Write answers.csv, a row for each test image with its truth, its answer and the confidence."""
    names, rows = arrays["class_names"], []
    columns = (arrays[key] for key in ("filenames", "y_true", "y_pred", "confidence"))
    columns = (column if isinstance(column, list) else column.tolist() for column in columns)
    for file_name, true, predicted, confidence in zip(*columns, strict=True):
        row = {"file_name": file_name, "true_class": names[true], "predicted_class": names[predicted]}
        rows.append(row | {"confidence": round(confidence, 6)})
    write_csv(path, rows)


# ---- Several runs on the same test images ------------------------------------------------------------------


def check_alike(name: str, run: tuple[dict, dict], first: tuple[dict, dict], owners: dict[str, str]) -> None:
    """Raise UserError unless a run has the images, labels and classes of the first, and other weights.

    run and first: metrics.json and predictions.npz of both. owners: {name: digest of its weights} for the
    runs before it.
    """
    if results.digest_of_report(run) != results.digest_of_report(first):
        raise UserError(f"{name} is of other test images, labels or classes: leave it out")
    for owner, digest in owners.items():
        if run[0]["checkpoint_sha256"] == digest:
            raise UserError(f"{name} has the same weights as {owner}: leave it out")


def read_runs(runs: list[Path], numbers: dict, arrays: dict) -> dict[str, dict]:
    """Return {name: predictions.npz} of runs on the same test images as `numbers` and `arrays`.

    These are metrics.json and predictions.npz of the network itself. Raises UserError, see check_alike.
    """
    arrays_by_run, owners = {}, {"the network itself": numbers["checkpoint_sha256"]}
    for run in runs:
        numbers_there, arrays_by_run[str(run)] = report_there = results.read_report(run)
        check_alike(f"--against {run}", report_there, (numbers, arrays), owners)
        owners[str(run)] = numbers_there["checkpoint_sha256"]
    return arrays_by_run


def compare(runs: dict[str, dict], y_true: Tensor) -> dict:
    """Compare runs, {name: predictions.npz}; the first is the run to report on.

    Logits are taken where there are any: large logits make probabilities of 0 and 1, and then classes tie.
    Returns how many images are right in 0, 1, ... of the runs, the numbers of each run, the numbers of the
    mean of their probabilities, and how the first run differs from each other run on the same images.
    """
    scores, probabilities = {}, {}
    for name, values in runs.items():
        if "logits" in values:
            scores[name] = values["logits"].double()
            probabilities[name] = scores[name].softmax(dim=1)
        else:
            scores[name] = probabilities[name] = values["probabilities"].double()
    right = {name: values["y_pred"] == y_true for name, values in runs.items()}
    stacked = torch.stack(list(right.values()))  # [runs, N]
    times_right = stacked.sum(dim=0)
    mean = torch.stack(list(probabilities.values())).mean(dim=0)
    right_by_mean = mean.argmax(dim=1) == y_true
    result = {
        "standard_deviation": stacked.double().mean(dim=1).std().item(),
        "right_in": times_right.bincount(minlength=len(runs) + 1).tolist(),
        "mean_of_probabilities": {
            "accuracy": metrics.accuracy(y_true, mean.argmax(dim=1)),
            "expected_calibration_error": metrics.expected_calibration_error(y_true, mean),
            "auroc": more_metrics.auroc(right_by_mean, mean.amax(dim=1)),
            "difference": more_metrics.mean_interval(stacked[0].double() - right_by_mean.double()),
        },
        "runs": [],
        "differences": [],
    }
    for name in runs:
        row = {"run": name} | metrics.resampled_headline(y_true, scores[name], 0)[0]
        error = metrics.expected_calibration_error(y_true, probabilities[name])
        result["runs"].append(row | {"expected_calibration_error": error})
    first, *others = runs
    for name in others:
        row = {"run": name} | more_metrics.paired_headline(y_true, scores[first], scores[name])
        only_first = int((right[first] & ~right[name]).sum())
        only_other = int((right[name] & ~right[first]).sum())
        row["p"] = more_metrics.mcnemar_exact(only_first, only_other)
        result["differences"].append(row)
    return result

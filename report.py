"""Evaluate a network on the test split, find and explain its failures, and write a report.

    python report.py                                         the newest run under runs/
    python report.py --run runs/a --against runs/b runs/c    compared with runs that have been reported
    python report.py --model net.py:make --weights net.pt    a network of your own
    python report.py --run runs/a --page                     its page again, from the files and the images

Three stages, each of which reads what the one before has left in the run folder or in --out: the answers and
their numbers (predictions.npz, metrics.json), the reasons (evidence.npz), and the page (plots/, failures/,
gradcam/, report.html). The numbers are computed in metrics.py, in float32 on every machine; the words around
them stand in page/*.html. `examine` does the same for a network in memory.
"""

import argparse
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import agreement
import classifier as classifiers
import metrics
import reasons
from classifier import Classifier, full_float32, predict
from data import Dataset, cutmix_end, first_copy, load
from page.page import write_page
from page.pictures import SIDE
from page.sections import HEADLINE
from running import outputs
from running.console import CommandLine, Progress, run_main
from running.device import environment, pick_device
from running.errors import UserError
from running.files import write_json

MAX_BROWSED = 2500  # misclassified images on the page, the most confident ones; fewer of large pictures:
MAX_BROWSED_PIXELS = 5_000_000  # of all of them together
CONFIDENT = 0.9
HISTOGRAM_BINS = 50


# ---- Evaluate --------------------------------------------------------------------------------------------


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
        of, count = test.superclass_of, len(test.superclass_names)
        coarse = metrics.confusion_matrix(of[y_true], of[y_pred], count)
        numbers |= evaluate_superclasses(test, y_pred, coarse)
        answers |= {"superclass_of": of, "superclass_names": test.superclass_names}
        answers["superclass_confusion"] = coarse
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
    scaled = logits / temperature
    probabilities, right = scaled.softmax(dim=1), logits.argmax(dim=1) == y_true
    confidence = probabilities.amax(dim=1)
    sure = confidence > CONFIDENT
    _, risk = metrics.risk_coverage(y_true, probabilities)
    place = (HISTOGRAM_BINS * confidence.double()).long().clamp(max=HISTOGRAM_BINS - 1)
    columns = [column.tolist() for column in metrics.calibration_bins(y_true, probabilities)]
    return {
        # From the logits: a probability that rounds to 0 would make it infinite.
        "negative_log_likelihood": F.cross_entropy(scaled, y_true).item(),
        "expected_calibration_error": metrics.expected_calibration_error(y_true, probabilities),
        "error_if_calibrated": metrics.error_if_calibrated(confidence),
        "mean_confidence": confidence.double().mean().item(),
        "calibration_bins": [list(row) for row in zip(*columns, strict=True) if row[2]],
        "aurc": metrics.aurc(y_true, probabilities),
        "risk_at_half_coverage": risk[(len(risk) - 1) // 2].item(),
        "auroc": metrics.auroc(right, confidence),
        "confident": {"answers": int(sure.sum()), "wrong": int((sure & ~right).sum())},
        "confidence_histogram": {
            "right": place[right].bincount(minlength=HISTOGRAM_BINS).tolist(),
            "wrong": place[~right].bincount(minlength=HISTOGRAM_BINS).tolist(),
        },
    }


def evaluate_superclasses(test: Dataset, y_pred: Tensor, coarse: Tensor) -> dict:
    """Return whether errors are near misses, and each tested superclass's recall.

    coarse: the confusion matrix of superclasses, int64 [S, S].
    """
    of, wrong = test.superclass_of, y_pred != test.labels
    true, predicted = of[test.labels], of[y_pred]
    within = metrics.accuracy(true[wrong], predicted[wrong]) if wrong.any() else None
    recalls = metrics.per_class_accuracy(coarse)
    tested = torch.nonzero(coarse.sum(dim=1)).flatten()
    return {
        "superclass_accuracy": metrics.accuracy(true, predicted),
        "errors_within_superclass": within,
        "chance_within_superclass": metrics.chance_within_superclass(of),
        "superclasses": [{"name": test.superclass_names[s], "recall": recalls[s].item()} for s in tested],
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
        ends = {"low": None, "high": None}  # without images
        if num_test[c]:
            ends = metrics.proportion(int(confusion[c, c]), int(num_test[c]))
        row |= {
            "num_test": int(num_test[c]),
            "num_right": int(confusion[c, c]),
            "num_predicted": int(confusion[:, c].sum()),
            "precision": precision[c].item(),
            "recall": recall[c].item(),
            "low": ends["low"],  # of the recall, with 95 % confidence
            "high": ends["high"],
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
    n, _, height, width = dataset.images.shape
    return (dataset.images.sum(dim=(0, 2, 3)).double() / (255 * n * height * width)).float()


def audit_duplicates(train: Dataset, test: Dataset, y_pred: Tensor) -> tuple[dict, Tensor]:
    """Count equal images: a test image that is also a training image can flatter the accuracy or spoil it.

    Also returns the label of the pixels of each test image in the training set, int64 [N], -1 where they are
    not there.
    """
    copies, n = first_copy(torch.cat([train.images, test.images])), len(train.labels)
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


# ---- Find reasons ----------------------------------------------------------------------------------------


def answers_to_mistakes(mistakes: Tensor, y_true: Tensor, runs: list[Tensor]) -> dict:
    """Return what each run answers to the mistakes, int64 [m]: of evidence.npz.

    runs: probabilities float32 [N, C] of this network and of others. `answers` and `answer_probabilities`,
    [R, m, 3], are the three likeliest classes; `probability_true` and `rank_true`, [m], are this network's
    probability of the true class, and its place in the order of the answers, from 1.
    """
    of_mistakes = torch.stack([probabilities[mistakes] for probabilities in runs])
    order = of_mistakes.argsort(dim=2, descending=True, stable=True)
    is_true = order[0] == y_true[mistakes, None]
    return {
        "mistakes": mistakes,
        "answers": order[..., :3],
        "answer_probabilities": of_mistakes.gather(2, order[..., :3]),
        "probability_true": runs[0][mistakes, y_true[mistakes]],
        "rank_true": is_true.int().argmax(dim=1) + 1,
    }


def find_reasons(
    examined: Classifier, test: Dataset, logits: Tensor, browsed: Tensor, fill: Tensor
) -> tuple[dict, dict]:
    """Return what covering does, as numbers of metrics.json and arrays of evidence.npz; see reasons.py.

    logits float32 [N, C]; browsed int64 [m]: the mistakes of the page, the most confident first; fill float32
    [3] in [0, 1] covers pixels. `opener` is the row of the mistake that the page shows first: the one that
    covering turns to the truth with the highest probability, or the most confident one.
    """
    y_pred, numbers, evidence, opener = logits.argmax(dim=1), {}, {}, 0
    if len(browsed) and examined.layer is not None:
        images = test.images[browsed] / 255
        (maps,) = examined.contrast(images, [(y_pred[browsed], test.labels[browsed])])
        hidden = reasons.top_pixels(maps, reasons.COVERED, images.shape[-1])
        classes, probabilities = reasons.answers_to(examined, images, hidden, fill)
        # Kept at the side of the pictures on the page: the same quarter of the same maps.
        shown = reasons.top_pixels(maps, reasons.COVERED, min(SIDE, images.shape[-1]))
        evidence |= {"maps": maps, "covered_pixels": shown}
        evidence |= {"covered_answers": classes[:, 0], "covered_probabilities": probabilities[:, 0]}
        turned = classes[:, 0] == test.labels[browsed]
        opener = int((turned * probabilities[:, 0]).argmax())
    if len(browsed):
        evidence["opener"] = torch.tensor(opener)
        first = browsed[opener].item()
        puzzles = reasons.find_puzzles(examined, test.images, test.labels, browsed, fill, first)
        evidence |= reasons.stack_puzzles(puzzles)
    if examined.layer is None:
        return numbers, evidence
    numbers["covering"] = reasons.measure_covering(examined, test.images, test.labels, logits, fill)
    (a_map,) = examined.explain(test.images[:1] / 255, y_pred[:1])
    numbers["maps"] = {"layer": examined.layer, "size": list(a_map.shape)}
    numbers["maps"]["random_weights"] = reasons.measure_random_weights(examined, test.images, y_pred)
    if test.masks is not None:
        numbers["maps"]["pointing_game"] = reasons.measure_pointing(examined, test.images, test.masks, y_pred)
    return numbers, evidence


# ---- The report ------------------------------------------------------------------------------------------


def check_data(examined: Classifier, train: Dataset | None, test: Dataset) -> Dataset | None:
    """Return the training set if it is what the network was trained on; note what is wrong with the data."""
    absent = len(test.class_names) - len(test.labels.unique())
    if absent:
        examined.notes.append(f"{absent} classes have no test image and count as 0 in the macro averages")
    if train is not None and examined.training is not None:
        if examined.training["config"].get("digest", train.digest) == train.digest:
            return train
        examined.notes.append("the training images found are not those of the training: no duplicates")
        return None
    return train


def check_accuracy(examined: Classifier, numbers: dict) -> None:
    """Note an accuracy of a network from elsewhere that is hardly above that of guessing."""
    chance = 1 / examined.num_classes
    accuracy = numbers["accuracy"]["value"]
    if examined.training is None and accuracy < chance + 0.1 * (1 - chance):
        value = f"an accuracy of {100 * accuracy:.1f} % is near chance"
        examined.notes.append(f"{value}: check --mean, --std and --classes")


def describe(examined: Classifier, test: Dataset, out: Path) -> dict:
    """Return what was examined, on which images, and where, for metrics.json and the page."""
    found = {
        "network": {
            "name": examined.name if examined.training else type(examined.module).__name__,
            "parameters": examined.parameters,
            "input": examined.input,
            "output": examined.output,
            "layer_note": examined.layer_note,
            "weights": str(examined.path or "in memory"),
        },
        "data": {"name": test.name, "provenance": test.provenance, "digest": test.digest},
        "environment": environment(examined.device),
        "notes": examined.notes,
    }
    if examined.training is not None:
        training = {key: examined.training[key] for key in ("config", "epoch", "val_accuracy")}
        settings = training["config"]["settings"]
        training["history"] = outputs.read_history(out, examined.training["history"])
        training["last_cutmix"] = cutmix_end(settings["epochs"]) if settings["cutmix"] else 0
        found["training"] = training
    return found


def write_report(
    examined: Classifier, train: Dataset | None, test: Dataset, out: Path, runs: list[Path], command: dict
) -> dict:
    """Examine the network and write everything into the folder `out`; return the content of metrics.json.

    runs: folders of others to compare it with; command: `options` of the command line, {name: value}, and the
    `dataset` and `data_dir` from which the images come, or nothing of them.
    """
    others = agreement.read_runs(runs, test, examined.digest)
    train = check_data(examined, train, test)

    # Evaluate.
    with Progress("test images", len(test.labels)) as progress:
        logits = predict(examined.model, test.images, examined.device, progress=progress)
    if not logits.isfinite().all():
        raise UserError(f"{examined.name} cannot be used: its scores of the test images are not finite")
    numbers, answers = evaluate(logits, test, train, examined.validation)
    check_accuracy(examined, numbers)
    for note in examined.notes:
        print(f"note     {note}")
    if others:
        ours = {"logits": logits, "y_pred": answers["y_pred"]}
        numbers["against"] = agreement.compare({str(out): ours, **others}, test.labels)
    of_others = [values["y_pred"] for values in others.values()]
    kinds = reasons.kinds_of_mistakes(test.labels, logits, test.superclass_of, of_others)
    answers["kinds"], numbers["kinds"] = kinds
    if test.name == "shapes":
        of_shapes = test.class_names, test.superclass_of, test.labels, answers["y_pred"]
        numbers["colour_or_shape"] = reasons.colour_or_shape(*of_shapes)

    # Find reasons.
    misclassified = torch.nonzero(answers["y_pred"] != test.labels).flatten()
    order = answers["confidence"][misclassified].argsort(descending=True, stable=True)
    misclassified = misclassified[order]
    count = min(MAX_BROWSED, MAX_BROWSED_PIXELS // min(SIDE, test.images.shape[-1]) ** 2)
    browsed, fill = misclassified[:count], mean_colour(test if train is None else train)
    probabilities = [answers["probabilities"], *(values["probabilities"] for values in others.values())]
    evidence = answers_to_mistakes(browsed, test.labels, probabilities) | {"fill": fill}
    with Progress("reasons", 1) as progress:
        progress.update(0)
        found = find_reasons(examined, test, logits, browsed, fill)
    numbers |= found[0]
    evidence |= found[1]

    # Write it down, first of all the numbers: they say of what the folder is.
    whose = outputs.identity(examined, test) | {"runs": ["this network", *others]}
    numbers |= describe(examined, test, out) | {"command": command} | whose
    write_json(out / "metrics.json", numbers)
    outputs.write_arrays(out / "predictions.npz", answers | whose)
    outputs.write_arrays(out / "evidence.npz", evidence | whose)
    write_page(out, test.images)
    return numbers


def examine(
    model: nn.Module,
    test: Dataset,
    train: Dataset | None = None,
    *,
    out: Path | str,
    layer: str | None = None,
    class_names: list[str] | None = None,
    against: tuple = (),
) -> dict:
    """Report on a network in memory, of float images [N, 3, 32, 32] in [0, 1] to logits, on its device.

    train: the training set, a Dataset, if it is known. layer is what Grad-CAM explains, found if it is None;
    "none" makes no maps. class_names are those of the logits, in their order, if it is not that of `test`;
    against: folders of other reports. `test` should have images of every class: one without any counts as 0
    in macro precision, recall and F1, as a line on the console says. A copy of the model is examined, in
    float32 and eval mode. Writes into the folder `out` and returns the content of metrics.json. Raises
    UserError for what does not fit.
    """
    device = next((parameter.device for parameter in model.parameters()), torch.device("cpu"))
    with full_float32(device):
        examined = classifiers.from_module(classifiers.copied(model), class_names, layer, device)
        classifiers.fit_classes(examined, test)
        outputs.check_results(out, examined.digest)
        return write_report(examined, train, test, Path(out), [Path(run) for run in against], {})


def page_again(out: Path, dataset: str | None, data_dir: str | None) -> None:
    """Make the page of the folder `out` from its files and the test images, which are looked for as before.

    Raises UserError if the files or the images are not there, or are others.
    """
    numbers, _, _ = outputs.read_report(out)
    came_from = numbers["command"]
    name, root = dataset or came_from.get("dataset"), data_dir or came_from.get("data_dir", "data")
    if name is None:
        raise UserError(f"{out} is of images in memory: its page needs --dataset and --data-dir")
    _, test = load(name, root)
    if outputs.digest_of(test.images) != numbers["images_sha256"]:
        raise UserError(f"the test images of {name} are not those of {out}: name them by --dataset")
    write_page(out, test.images)


def command_of(args: argparse.Namespace, examined: Classifier) -> dict:
    """Return the `options` of the command line as plain values, and where the images come from."""
    options = vars(args) | {"against": [str(run) for run in args.against]}
    if args.run is None and args.checkpoint is None and args.model is None:
        options["run"] = outputs.run_of(examined.path)
    options = {name: str(value) if isinstance(value, Path) else value for name, value in options.items()}
    dataset, data_dir = classifiers.find_data(examined, args.dataset, args.data_dir)
    return {"options": options, "dataset": dataset, "data_dir": data_dir}


def main(argv: list[str] | None = None) -> int:
    """Examine one network and write everything; return the exit code."""
    parser = CommandLine(description=__doc__)
    classifiers.add_options(parser)
    parser.add_argument("--data-dir", help="where CIFAR lies (default: as in training, else data)")
    text = "cifar100, cifar10, shapes or a folder (default: what the network was trained on, else cifar100)"
    parser.add_argument("--dataset", help=text)
    text = "folder of the results (default: the run, else runs/<name of the weights or of the model>)"
    parser.add_argument("--out", type=Path, metavar="DIR", help=text)
    text = "compare with other runs after their own reports"
    parser.add_argument("--against", type=Path, nargs="+", default=[], metavar="RUN", help=text)
    parser.add_argument("--overwrite", action="store_true", help="replace the results of other weights")
    text = "make the page of --out or of the run again, without the network"
    parser.add_argument("--page", action="store_true", help=text)
    args = parser.parse_args(argv)
    if args.page:
        out = args.out or args.run or outputs.run_of(classifiers.best_checkpoint(None))
        page_again(out, args.dataset, args.data_dir)
        print(f"next     open {out / 'report.html'} in a browser")
        return 0

    device = pick_device("auto")
    examined = classifiers.from_options(args, device)
    out = outputs.results_folder(examined, args.out)
    if not args.overwrite:
        outputs.check_results(out, examined.digest)
    train, test = classifiers.load_data(examined, args.dataset, args.data_dir)
    print(f"data     {test.provenance}")
    source = examined.path or f"weights as {args.model} made them"
    print(f"network  {examined.name}, {examined.parameters:,} parameters, {source}")
    print(f"images   {examined.input}")
    print(f"output   {examined.output}")
    print(f"maps     {examined.layer_note}")
    print(f"compute  {device}, {examined.computes_in}")
    with full_float32(device):  # a number means the same on every machine
        numbers = write_report(examined, train, test, out, args.against, command_of(args, examined))
    print()
    for key, name in HEADLINE.items():
        if key != "top5_accuracy" or examined.num_classes > 5:
            value, low, high = (100 * numbers[key][end] for end in ("value", "low", "high"))
            print(f"{name:20}{value:6.2f} %   95 % interval {low:.2f} to {high:.2f} %")
    print(f"{'calibration error':20}{100 * numbers['expected_calibration_error']:6.2f} %")
    maps = "" if examined.layer is None else ", gradcam/"
    print(f"\nsaved    {out / 'metrics.json'}, predictions.npz, plots/, failures/{maps}")
    print(f"next     open {out / 'report.html'} in a browser")
    return 0


if __name__ == "__main__":
    run_main(main)

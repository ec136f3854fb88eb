"""Evaluate a network on the test split, find and explain its failures, and write a report.

    python report.py                                         the newest run under runs/
    python report.py --run runs/a --against runs/b runs/c    compared with runs that have been reported
    python report.py --model net.py:make --weights net.pt    a network of your own

Writes metrics.json, predictions.npz, plots/, failures/, gradcam/ and report.html into the run folder, or into
--out. The numbers are computed in metrics.py, in float32 on every machine; the words around them stand in
page/*.html. `examine` does the same for a network in memory.
"""

from dataclasses import dataclass, field
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import classifier as classifiers
import compare
import metrics
import reasons
from classifier import Classifier, full_float32
from data import Dataset, first_copy
from page import failures
from page.page import write_page
from page.sections import HEADLINE
from running import outputs
from running.console import CommandLine, Progress, run_main
from running.device import environment, pick_device
from running.errors import UserError
from running.files import write_json

NUM_FAILURES = 20  # as files
MAX_BROWSED = 2500  # misclassified images on the page, the most confident ones
CONFIDENT = 0.9


@dataclass
class Found:
    """What was found on N test images of C classes, of which M are misclassified; each is computed once."""

    numbers: dict  # the content of metrics.json
    probabilities: Tensor  # float32 [N, C]
    y_pred: Tensor  # int64 [N]
    confidence: Tensor  # float32 [N]
    confusion: Tensor  # int64 [C, C]
    misclassified: Tensor  # int64 [M], the most confident first
    calibration: list[dict]  # see calibrate: as trained, then at the temperature, if that is known
    training_labels: Tensor | None  # int64 [N]: of the same pixels in the training set, -1 without
    fill: Tensor  # float32 [3] in [0, 1]: the mean colour, which covers pixels
    coarse: Tensor | None = None  # int64 [S, S], the confusion matrix of superclasses
    kinds: Tensor | None = None  # int64 [N], see reasons.kinds_of_mistakes
    stress: dict | None = None  # see running.outputs.read_stress
    others: dict[str, dict] = field(default_factory=dict)  # of other runs, see compare.read_runs
    failures: list[dict] = field(default_factory=list)  # the rows of failures.csv
    browsed: Tensor | None = None  # int64 [m]: the first of the misclassified
    maps: Tensor | None = None  # float32 [m, h, w], of answer rather than truth, see gradcam.GradCAM.pair
    covered_pixels: Tensor | None = None  # bool [m, 32, 32]: the top quarter of the maps
    covered: tuple[Tensor, Tensor] | None = None  # what is answered then, see reasons.answers_to
    puzzles: list[dict] = field(default_factory=list)  # see reasons.find_puzzles
    history: list[dict] = field(default_factory=list)  # of the training, a row for each epoch
    machine: dict = field(default_factory=dict)  # see running.device.environment
    options: dict | None = None  # those of the command line, {name: value}


# ---- Evaluate --------------------------------------------------------------------------------------------


def evaluate(
    logits: Tensor, test: Dataset, train: Dataset | None, validation: tuple[Tensor, Tensor] | None
) -> Found:
    """Return what follows from the logits, float32 [N, C], of the test split.

    train: the training set, and validation: logits [V, C] and labels [V]; None if it is not known.
    """
    probabilities, y_pred, y_true = logits.softmax(dim=1), logits.argmax(dim=1), test.labels
    confidence, wrong = probabilities.amax(dim=1), y_pred != y_true
    sure = confidence > CONFIDENT
    misclassified = torch.nonzero(wrong).flatten()
    confusion = metrics.confusion_matrix(y_true, y_pred, len(test.class_names))
    _, risk = metrics.risk_coverage(y_true, probabilities)
    numbers = metrics.bootstrap_headline(y_true, logits) | {
        "num_test": len(y_true),
        "aurc": risk.mean().item(),
        "risk_at_half_coverage": risk[(len(risk) - 1) // 2].item(),
        "auroc": metrics.auroc(~wrong, confidence),
        "confident": {
            "answers": int(sure.sum()),
            "wrong": int((sure & wrong).sum()),
            "mean_confidence": confidence[sure].double().mean().item() if sure.any() else None,
        },
    }
    calibration = [calibrate(logits, y_true, 1.0)]
    if validation is not None:
        numbers["temperature"] = metrics.fit_temperature(*validation)
        calibration.append(calibrate(logits, y_true, numbers["temperature"]))
    for suffix, row in zip(("", "_after_temperature"), calibration, strict=False):
        for key in ("negative_log_likelihood", "expected_calibration_error", "mean_confidence"):
            numbers[f"{key}{suffix}"] = row[key]
    found = Found(
        numbers=numbers | evaluate_classes(confusion, test, train),
        probabilities=probabilities,
        y_pred=y_pred,
        confidence=confidence,
        confusion=confusion,
        misclassified=misclassified[confidence[misclassified].argsort(descending=True, stable=True)],
        calibration=calibration,
        training_labels=None,
        fill=mean_colour(test if train is None else train),
    )
    if test.superclass_of is not None:
        of, count = test.superclass_of, len(test.superclass_names)
        found.coarse = metrics.confusion_matrix(of[y_true], of[y_pred], count)
        found.numbers |= evaluate_superclasses(test, y_pred, found.coarse)
    if train is not None:
        found.numbers["duplicates"], found.training_labels = audit_duplicates(train, test, y_pred)
    return found


def calibrate(logits: Tensor, y_true: Tensor, temperature: float) -> dict:
    """Return how well the probabilities at a temperature say how often the answers are right."""
    scaled = logits / temperature
    probabilities = scaled.softmax(dim=1)
    return {
        "temperature": temperature,
        # From the logits: a probability that rounds to 0 would make it infinite.
        "negative_log_likelihood": F.cross_entropy(scaled, y_true).item(),
        "expected_calibration_error": metrics.expected_calibration_error(y_true, probabilities),
        "mean_confidence": probabilities.amax(dim=1).double().mean().item(),
        "bins": metrics.calibration_bins(y_true, probabilities),
    }


def evaluate_superclasses(test: Dataset, y_pred: Tensor, coarse: Tensor) -> dict:
    """Return whether errors are near misses, and each tested superclass's recall; coarse: see Found."""
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
    typical = int(num_test[num_test > 0].median())
    return {
        "classes": classes,
        "typical_class": {"images": typical} | metrics.proportion((typical + 1) // 2, typical),
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
    repeats = copies != torch.arange(len(copies))
    in_train = copies[n:] < n
    rest = ~in_train
    training_labels = torch.full_like(test.labels, -1)
    training_labels[in_train] = train.labels[copies[n:][in_train]]
    relabelled = in_train & (training_labels != test.labels)
    counts = {
        "train_images_that_repeat_another": int(repeats[:n].sum()),
        "test_images_that_repeat_another": int((repeats[n:] & rest).sum()),
        "test_images_in_train": int(in_train.sum()),
        "with_another_label_there": int(relabelled.sum()),
        "misclassified_as_labelled_there": int((relabelled & (y_pred == training_labels)).sum()),
        "accuracy_without_them": metrics.accuracy(test.labels[rest], y_pred[rest]) if rest.any() else None,
    }
    return counts, training_labels


# ---- Find reasons ----------------------------------------------------------------------------------------


def find_reasons(examined: Classifier, test: Dataset, found: Found, logits: Tensor) -> None:
    """Add to `found` kinds of mistakes, and what covering does; see reasons.py.

    logits: float32 [N, C], of the test images.
    """
    numbers, y_pred = found.numbers, found.y_pred
    others = [values["y_pred"] for values in found.others.values()]
    found.kinds, numbers["kinds"] = reasons.kinds_of_mistakes(test.labels, logits, test.superclass_of, others)
    if test.name == "shapes":
        names, shapes = test.class_names, test.superclass_of
        numbers["colour_or_shape"] = reasons.colour_or_shape(names, shapes, test.labels, y_pred)
    images = test.images[found.browsed] / 255
    if len(images):
        mistakes = found.misclassified
        found.puzzles = reasons.find_puzzles(examined, test.images, test.labels, mistakes, found.fill)
    if examined.layer is None:
        return
    if len(images):
        questions = [(y_pred[found.browsed], test.labels[found.browsed])]
        (found.maps,) = examined.contrast(images, questions)
        found.covered_pixels = reasons.top_pixels(found.maps, reasons.COVERED, images.shape[-1])
        found.covered = reasons.answers_to(examined, images, found.covered_pixels, found.fill)
    of_test = test.images, test.labels, logits
    numbers["covering"] = reasons.measure_covering(examined, *of_test, found.fill)
    (a_map,) = examined.explain(test.images[:1] / 255, y_pred[:1])
    numbers["maps"] = {"layer": examined.layer, "size": list(a_map.shape)}
    numbers["maps"]["random_weights"] = reasons.measure_random_weights(examined, test.images, y_pred)
    if test.masks is not None:
        numbers["maps"]["pointing_game"] = reasons.measure_pointing(examined, test.images, test.masks, y_pred)


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


def write_report(
    examined: Classifier,
    train: Dataset | None,
    test: Dataset,
    out: Path,
    runs: list[Path],
    options: dict | None,
) -> dict:
    """Examine the network and write everything into the folder `out`; return the content of metrics.json.

    runs: folders of others to compare it with; options: those of the command line, {name: value}, if any.
    """
    others = compare.read_runs(runs, test, examined.digest)
    stress = outputs.read_stress(out, outputs.identity(examined, test))
    train = check_data(examined, train, test)

    # Evaluate.
    with Progress("test images", len(test.labels)) as progress:
        logits, _ = examined.features(test.images, progress)
    if not logits.isfinite().all():
        raise UserError(f"{examined.name} cannot be used: its scores of the test images are not finite")
    found = evaluate(logits, test, train, examined.validation)
    check_accuracy(examined, found.numbers)
    for note in examined.notes:
        print(f"note     {note}")
    found.numbers |= {"checkpoint_sha256": examined.digest, "notes": examined.notes}
    found.stress, found.others, found.options = stress, others, options
    found.machine = environment(examined.device)
    if examined.training is not None:
        found.history = outputs.read_history(out, examined.training["history"])
    if others:
        ours = {"probabilities": found.probabilities, "y_pred": found.y_pred}
        found.numbers["against"] = compare.compare({str(out): ours, **others}, test.labels)

    # Find the failures and explain them.
    found.browsed = found.misclassified[:MAX_BROWSED]
    rows = found.browsed[:NUM_FAILURES]
    found.failures = failures.describe(test, rows, found.probabilities, found.training_labels)
    with Progress("reasons", 1) as progress:
        progress.update(0)
        find_reasons(examined, test, found, logits)

    # Write it down, first of all the numbers: they say of which weights the folder is.
    write_json(out / "metrics.json", found.numbers)
    answers = found.probabilities, found.y_pred
    outputs.write_predictions(out / "predictions.npz", test, *answers, examined.digest)
    failures.write(out, test, found.failures, found.maps, examined.layer)
    write_page(out, examined, test, found)
    return found.numbers


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
        return write_report(examined, train, test, Path(out), [Path(run) for run in against], None)


def main(argv: list[str] | None = None) -> int:
    """Examine one network and write everything; return the exit code."""
    parser = CommandLine(description=__doc__)
    classifiers.add_options(parser)
    parser.add_argument("--data-dir", help="where CIFAR lies (default: as in training, else data)")
    help = "cifar100, cifar10, shapes or a folder (default: what the network was trained on, else cifar100)"
    parser.add_argument("--dataset", help=help)
    help = "folder of the results (default: the run, else runs/<name of the weights or of the model>)"
    parser.add_argument("--out", type=Path, help=help)
    help = "compare with other runs after their own reports"
    parser.add_argument("--against", type=Path, nargs="+", default=[], metavar="RUN", help=help)
    parser.add_argument("--overwrite", action="store_true", help="replace the results of other weights")
    args = parser.parse_args(argv)
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
    print(f"compute  {device}, fp32")
    if args.run is None and args.checkpoint is None and args.model is None:
        args.run = outputs.run_of(examined.path)
    with full_float32(device):  # a number means the same on every machine
        numbers = write_report(examined, train, test, out, args.against, vars(args))
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

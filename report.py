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

import metrics
import network as networks
import reasons
from data import MEAN, Dataset, first_copy, split_indices
from gradcam import to_heatmap
from network import Network
from page import against, failures, sections
from page.page import interval, percent
from running.console import CommandLine, Progress, run_main
from running.device import pick_device
from running.files import UserError, write_json
from running.folder import check_results, run_of
from stress import read_results
from stress_tests.attacks import eval_mode, full_float32
from stress_tests.controls import compare_with_controls, randomization, with_controls

NUM_FAILURES = 20
MAX_BROWSED = 2500  # misclassified images on the page, the most confident ones
NUM_EXPLAINED = 100  # images for deletion and insertion
NUM_RANDOMIZED = 40  # some of them, for the randomisation of the weights
NUM_SEEDS = 5  # of random weights
NUM_POINTED = 1000  # images for the pointing game
STEPS = 8  # of the deletion and insertion curves
# Those that the page shows, 1.0 among them.
TEMPERATURES = [step / 100 for step in [*range(40, 150), *range(150, 301, 5)]]


@dataclass
class Found:
    """What was found on N test images of C classes, of which M are misclassified; each is computed once."""

    probabilities: Tensor  # float32 [N, C]
    y_pred: Tensor  # int64 [N]
    confusion: Tensor  # int64 [C, C]
    misclassified: Tensor  # int64 [M], the most confident first
    confidence: Tensor  # float32 [N]
    calibration: list[dict]  # see calibrate: as trained, then at the temperature, if that is known
    temperatures: list[dict]  # see calibrate: at each of TEMPERATURES
    risk_coverage: tuple[Tensor, Tensor]  # see metrics.risk_coverage
    training_labels: Tensor | None  # int64 [N]: of the same pixels in the training set, -1 without
    numbers: dict  # the content of metrics.json
    stress: dict | None = None  # see stress.read_results
    others: dict[str, dict] = field(default_factory=dict)  # of other runs, see against.read_runs
    kinds: Tensor | None = None  # int64 [N], see reasons.kinds_of_mistakes
    neighbours: dict[str, Tensor] | None = None  # see reasons.find_neighbours; and their images
    failures: list[dict] = field(default_factory=list)  # the rows of failures.csv
    browsed: Tensor | None = None  # int64 [m]: the first of the misclassified
    maps: Tensor | None = None  # float32 [m, 2, h, w], see Network.contrast
    covered: tuple[Tensor, Tensor] | None = None  # see reasons.cover_answers, of the first of the two maps


# ---- Evaluate --------------------------------------------------------------------------------------------


def evaluate(
    logits: Tensor,
    test: Dataset,
    train: Dataset | None,
    temperature: float | None,
    temperature_of_equal_confidence: float | None = None,
) -> Found:
    """Return what follows from the logits, float32 [N, C], of the test split.

    Both temperatures were fitted on the validation split, see metrics. What is not known is None.
    """
    probabilities = logits.softmax(dim=1)
    confidence, y_pred = probabilities.max(dim=1)
    y_true, wrong, sure = test.labels, y_pred != test.labels, confidence > 0.9
    misclassified = torch.nonzero(wrong).flatten()
    confusion = metrics.confusion_matrix(y_true, y_pred, len(test.class_names))
    coverage, risk = metrics.risk_coverage(y_true, probabilities)
    numbers = metrics.bootstrap_headline(y_true, probabilities) | {
        "num_test": len(y_true),
        "brier_score": metrics.brier_score(y_true, probabilities),
        "aurc": metrics.aurc(y_true, probabilities),
        "risk_at_half_coverage": risk[(len(risk) - 1) // 2].item(),
        "confident": {
            "answers": int(sure.sum()),
            "wrong": int((sure & wrong).sum()),
            "mean_confidence": confidence[sure].double().mean().item() if sure.any() else None,
        },
    }
    calibration = [calibrate(logits, y_true, 1.0)]
    if temperature is not None:
        numbers["temperature"] = temperature
        calibration.append(calibrate(logits, y_true, temperature))
    for suffix, row in zip(("", "_after_temperature"), calibration, strict=False):
        for key in ("negative_log_likelihood", "expected_calibration_error", "mean_confidence"):
            numbers[f"{key}{suffix}"] = row[key]
    if temperature_of_equal_confidence is not None:
        calibration.append(calibrate(logits, y_true, temperature_of_equal_confidence))
        row = {key: value for key, value in calibration[-1].items() if key != "bins"}
        numbers["temperature_of_equal_confidence"] = row
    if test.superclass_of is not None:
        numbers |= evaluate_superclasses(test, y_pred)
    training_labels = None
    if train is not None:
        numbers["duplicates"], training_labels = audit_duplicates(train, test, y_pred)
    return Found(
        probabilities=probabilities,
        y_pred=y_pred,
        confusion=confusion,
        misclassified=misclassified[confidence[misclassified].argsort(descending=True, stable=True)],
        confidence=confidence,
        calibration=calibration,
        temperatures=[calibrate(logits, y_true, temperature) for temperature in TEMPERATURES],
        risk_coverage=(coverage, risk),
        training_labels=training_labels,
        numbers=numbers | evaluate_classes(confusion, test, train),
    )


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


def evaluate_superclasses(test: Dataset, y_pred: Tensor) -> dict:
    """Return whether the errors are near misses, and the recall of each superclass with test images."""
    of, wrong = test.superclass_of, y_pred != test.labels
    within = metrics.superclass_accuracy(test.labels[wrong], y_pred[wrong], of) if wrong.any() else None
    coarse = metrics.confusion_matrix(of[test.labels], of[y_pred], len(test.superclass_names))
    recalls = metrics.per_class_accuracy(coarse)
    tested = torch.nonzero(coarse.sum(dim=1)).flatten()
    return {
        "superclass_accuracy": metrics.superclass_accuracy(test.labels, y_pred, of),
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
        "pairs_never_confused": int((wrong == 0).sum()) - len(names),
    }


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


# ---- Explain ---------------------------------------------------------------------------------------------


def check_explanations(network: Network, test: Dataset, y_pred: Tensor) -> dict:
    """Measure on a seeded sample of test images whether Grad-CAM shows what the network uses.

    Deletion and insertion, and the pointing game where the set knows where the object is, each beside
    controls; then the cascading randomisation of the weights.
    """
    generator, side = torch.Generator().manual_seed(0), test.images.shape[-1]
    sample = torch.randperm(len(test.labels), generator=generator)[:NUM_EXPLAINED]
    images, classes = test.images[sample].to(network.device) / 255, y_pred[sample]
    maps = network.explain(images, classes)
    controls = with_controls(maps, side, generator)
    controls["activation"] = reasons.energy_maps(network, test.images[sample])
    heatmaps = {name: to_heatmap(control, side) for name, control in controls.items()}
    result = {"layer": network.layer, "images": len(sample), "map_size": list(maps.shape[1:])}
    result |= compare_with_controls(network.folded, images, heatmaps, classes, torch.tensor(MEAN), STEPS)
    sample = torch.randperm(len(test.labels), generator=generator)[:NUM_POINTED]
    if test.masks is not None:
        maps = network.explain(test.images[sample] / 255, y_pred[sample])
        game = result["pointing_game"] = {"images": len(sample)}
        controls = with_controls(maps, side, generator)
        controls["activation"] = reasons.energy_maps(network, test.images[sample])
        for name, control in controls.items():
            hits, game["chance"] = metrics.pointing_game(to_heatmap(control, side), test.masks[sample])
            game[name] = metrics.proportion(hits, len(sample))
    # From the classifier downwards; what belongs to no part of the network comes last.
    parts = [name for name, part in network.module.named_children() if list(part.parameters())]
    modules = [f"network.{name}" for name in reversed(parts)]
    if list(network.module.parameters(recurse=False)):
        modules.append("network")
    images = images[:NUM_RANDOMIZED]
    down_to = randomization(network.model, images, network.explain, modules, NUM_SEEDS)
    result["randomization"] = {
        "images": len(images),
        "seeds": NUM_SEEDS,
        "down_to": {name.removeprefix("network."): row for name, row in down_to.items()},
    }
    return result


# ---- Find reasons ----------------------------------------------------------------------------------------


def find_reasons(
    network: Network, train: Dataset | None, test: Dataset, found: Found, features: Tensor | None
) -> None:
    """Add to `found` why the network fails: kinds of mistakes, neighbours, repairs, words; see reasons.py.

    features float32 [N, D]: of the test images, what goes into the classifier; None if there is none.
    """
    numbers, y_true, wrong = found.numbers, test.labels, found.y_pred != test.labels
    others = [values["y_pred"] for values in found.others.values()]
    found.kinds, numbers["kinds"] = reasons.kinds_of_mistakes(
        y_true, found.probabilities, test.superclass_of, found.training_labels, others
    )
    if others:
        numbers["confident"]["shared"] = reasons.confident_mistakes(y_true, found.probabilities, others)
    by_word = reasons.errors_by_word(test, wrong)
    if by_word is not None:
        numbers["words"] = by_word
    halves = reasons.colour_or_shape(test, found.y_pred)
    if halves is not None:
        numbers["colour_or_shape"] = halves
    if train is not None and features is not None:
        trained_on = None
        if network.training is not None:
            settings = network.training.settings
            trained_on, _ = split_indices(train, settings["val_fraction"], settings["seed"])
            trained_on = trained_on[: settings["limit_train"]]
        numbers["neighbours"], found.neighbours = reasons.find_neighbours(
            network, train, test, found.y_pred, features, trained_on
        )
        nearest = found.neighbours["nearest"][found.browsed]
        found.neighbours["images"] = train.images[nearest.clamp(min=0)]
    if network.layer is not None and len(found.misclassified):
        numbers["repair"] = reasons.repair_rates(network, test, found.probabilities, found.misclassified)
        images = test.images[found.browsed] / 255
        answers, truths = found.y_pred[found.browsed], y_true[found.browsed]
        found.maps = network.contrast(images, answers, truths)
        found.covered = reasons.cover_answers(network, images, found.maps[:, 0])


# ---- The report ------------------------------------------------------------------------------------------


def write_report(
    network: Network, train: Dataset | None, test: Dataset, out: Path, runs: list[Path], options: dict | None
) -> dict:
    """Examine the network and write everything into the folder `out`; return the content of metrics.json.

    runs: folders of others to compare it with; options: those of the command line, {name: value}, if any.
    """
    others = against.read_runs(runs, test, network.digest)
    stress = {str(out): read_results(out, network.digest)}
    for name, values in others.items():
        stress[name] = read_results(Path(name), values["checkpoint_sha256"])

    # Evaluate.
    with Progress("test images", len(test.labels)) as progress:
        logits, features = network.features(test.images, progress)
    if not logits.isfinite().all():
        raise UserError(f"{network.name} cannot be used: its scores of the test images are not finite")
    absent = len(test.class_names) - len(test.labels.unique())
    if absent:
        print(f"note     {absent} classes have no test image and count as 0 in the macro averages")
    found = evaluate(logits, test, train, network.temperature, network.temperature_of_equal_confidence)
    found.numbers["checkpoint_sha256"] = network.digest
    found.stress, found.others = stress[str(out)], others
    if others:
        ours = {"probabilities": found.probabilities, "y_pred": found.y_pred}
        found.numbers["against"] = against.compare({str(out): ours, **others}, stress, test)

    # Find the failures.
    found.browsed = found.misclassified[:MAX_BROWSED]
    rows = found.browsed[:NUM_FAILURES]
    found.failures = failures.describe(test, rows, found.probabilities, found.training_labels)

    # Explain them.
    with Progress("reasons and explanations", 2) as progress:
        progress.update(0)
        find_reasons(network, train, test, found, features)
        progress.update(1)
        if network.layer is not None:
            found.numbers["explanations"] = check_explanations(network, test, found.y_pred)

    # Write it down, first of all the numbers: they say of which weights the folder is.
    write_json(out / "metrics.json", found.numbers)
    against.write_predictions(out / "predictions.npz", test, found.probabilities, network.digest)
    failures.write(out, test, found.failures, found.maps, network.layer)
    sections.fill_page(out, network, test, found, options)
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
    in macro precision, recall and F1, as a line on the console says. Writes into the folder `out` and returns
    the content of metrics.json. Raises UserError for what does not fit.
    """
    device = next((parameter.device for parameter in model.parameters()), torch.device("cpu"))
    with eval_mode(model), full_float32(device):
        network = networks.from_module(model, class_names, layer, device)
        networks.fit_classes(network, test)
        check_results(out, network.digest, ["metrics.json", "stress.json"])
        return write_report(network, train, test, Path(out), [Path(run) for run in against], None)


def main(argv: list[str] | None = None) -> int:
    """Examine one network and write everything; return the exit code."""
    parser = CommandLine(description=__doc__)
    networks.add_options(parser)
    parser.add_argument("--data-dir", help="where CIFAR lies (default: as in training, else data)")
    help = "cifar100, cifar10, shapes or a folder (default: what the network was trained on, else cifar100)"
    parser.add_argument("--dataset", help=help)
    help = "folder of the results (default: the run, else runs/<name of the weights or of the model>)"
    parser.add_argument("--out", type=Path, help=help)
    help = "compare with other runs after their own reports"
    parser.add_argument("--against", type=Path, nargs="+", default=[], metavar="RUN", help=help)
    args = parser.parse_args(argv)
    device = pick_device("auto")
    network = networks.from_options(args, device)
    out = networks.results_folder(network, args.out)
    check_results(out, network.digest, ["metrics.json", "stress.json"])
    train, test = networks.load_data(network, args.dataset, args.data_dir)
    print(f"data     {test.provenance}")
    source = network.path or f"weights as {args.model} made them"
    print(f"network  {network.name}, {network.parameters:,} parameters, {source}")
    print(f"images   {network.input}")
    print(f"maps     {network.layer_note}")
    print(f"compute  {device}, fp32")
    if args.run is None and args.checkpoint is None and args.model is None:
        args.run = run_of(network.path)
    with full_float32(device):  # a number means the same on every machine
        numbers = write_report(network, train, test, out, args.against, vars(args))
    print()
    for key, name in sections.HEADLINE.items():
        print(f"{name:20}{percent(numbers[key]['value'], 2):>9}   {interval(numbers[key])}")
    print(f"{'calibration error':20}{percent(numbers['expected_calibration_error'], 2):>9}")
    print(f"\nsaved    {out / 'metrics.json'}, predictions.npz, plots/, failures/, gradcam/")
    print(f"next     open {out / 'report.html'} in a browser")
    return 0


if __name__ == "__main__":
    run_main(main)

"""Evaluate a network on the test split, find and explain its failures, and write a report.

    python report.py                                         the newest run under runs/
    python report.py --run runs/a --against runs/b runs/c    compared with runs that have been reported
    python report.py --model net.py:make --weights net.pt    a network of your own
    python report.py --predictions answers.npz               answers of any framework, without a network
    python report.py --run runs/a --page                     its page again, from the files and the images

Three stages, each of which reads what the one before has left in the run folder or in --out: the answers and
their numbers (predictions.npz, metrics.json), the reasons (evidence.npz), and the page (plots/, failures/,
gradcam/, report.html). The numbers are computed in metrics.py, in float32 on every machine; the words around
them stand in page/*.html. `examine` does the same for a network in memory.
"""

import argparse
import hashlib
import json
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from data import SIZE, Dataset, cutmix_end, from_arrays, load
from evaluate import evaluate, mean_colour
from lab import agreement, reasons
from lab import classifier as classifiers
from lab.any_network import predictions
from lab.classifier import Classifier, full_float32, predict
from page.pictures import SIDE
from page.sections import HEADLINE
from page.write import write_page
from support import outputs
from support.console import CommandLine, Progress, option, run_main
from support.device import environment, pick_device
from support.errors import UserError, reading
from support.files import write_json

MAX_BROWSED = 2500  # misclassified images on the page, the most confident ones; fewer of large pictures:
MAX_BROWSED_PIXELS = 5_000_000  # of all of them together


@dataclass
class Answers:
    """What a report is about: the answers to the test images, whose they are, and what is known besides."""

    logits: Tensor  # float [N, C]
    test: Dataset  # its images are None if they are not known
    train: Dataset | None  # what the network was trained on
    validation: tuple[Tensor, Tensor] | None  # logits [V, C] and labels [V]
    identity: dict  # see support.outputs.identity
    about: dict  # for metrics.json: network, environment, command, and training if it is known
    notes: list[str]  # what makes the numbers mean less, for people
    examined: Classifier | None = None  # the network itself


# ---- Answer ----------------------------------------------------------------------------------------------


def answer(examined: Classifier, train: Dataset | None, test: Dataset, out: Path) -> Answers:
    """Let a network answer the test images; raise UserError for data or scores that cannot be used.

    out: the folder of the results, in which the history of a training may lie.
    """
    train = check_data(examined, train, test)
    with Progress("test images", len(test.labels)) as progress:
        logits = predict(examined.model, test.images, examined.device, progress=progress)
    if not logits.isfinite().all():
        raise UserError(f"{examined.name} cannot be used: its scores of the test images are not finite")
    about = {
        "network": {
            "name": examined.name if examined.training else type(examined.module).__name__,
            "parameters": examined.parameters,
            "input": examined.input,
            "output": examined.output,
            "layer_note": examined.layer_note,
            "weights": str(examined.path or "in memory"),
        },
        "environment": environment(examined.device),
        "command": {},
    }
    if examined.training is not None:
        training = {key: examined.training[key] for key in ("config", "epoch", "val_accuracy")}
        settings = training["config"]["settings"]
        training["history"] = outputs.read_history(out, examined.training["history"])
        training["last_cutmix"] = cutmix_end(settings["epochs"]) if settings["cutmix"] else 0
        about["training"] = training
    whose = outputs.identity(examined, test)
    return Answers(logits, test, train, examined.validation, whose, about, examined.notes, examined)


def check_data(examined: Classifier, train: Dataset | None, test: Dataset) -> Dataset | None:
    """Return the training set, its classes in the order of `test`, if it is what the network was trained on.

    Notes what is wrong with the data; raises UserError if the two sets have other classes.
    """
    if train is None:
        return None
    known = examined.training["config"].get("digest") if examined.training is not None else None
    if known not in (None, train.digest):
        examined.notes.append("the training images found are not those of the training: no duplicates")
        return None
    if train.class_names == test.class_names:
        return train
    if sorted(train.class_names) != sorted(test.class_names):
        raise UserError("the training set and the test set have other classes: expected the same names")
    places = torch.tensor([test.class_names.index(name) for name in train.class_names])
    return replace(train, labels=places[train.labels], class_names=test.class_names)


def answers_without_network(given: dict, test: Dataset, train: Dataset | None, source: str) -> Answers:
    """Return answers that came from a file or from memory, `source`; the network is told by its answers.

    given: see lab.any_network.predictions.checked.
    """
    logits, validation = given["logits"], given.get("validation")
    side = None if test.images is None else test.images.shape[-1]
    digest = outputs.sha256_of(logits.double().softmax(dim=1))
    whose = {"checkpoint_sha256": digest, "fixed_logits": None, "size": side, "resize": None}
    network = {"name": "A classifier", "output": "predictions"}
    network |= {"layer_note": "no maps: only the answers are known, not the network", "weights": source}
    about = {"network": network, "environment": environment(torch.device("cpu")), "command": {}}
    return Answers(logits, test, train, validation, whose | outputs.data_of(test), about, [])


def test_set_of(given: dict) -> Dataset:
    """Return the test set of answers that came without a network; its images are None if they are unknown.

    given: see lab.any_network.predictions.checked.
    """
    y_true, filenames = given["y_true"], given.get("filenames")
    class_names = given.get("class_names") or [f"class {c}" for c in range(given["logits"].shape[1])]
    if "images" in given:
        return from_arrays(given["images"], y_true, class_names, "test images", filenames)
    names = filenames or [str(i) for i in range(len(y_true))]
    digest = hashlib.sha256(repr((y_true.tolist(), names)).encode()).hexdigest()
    provenance = f"{len(y_true):,} answers without pictures"
    return Dataset("test images", None, y_true, class_names, None, None, names, provenance, digest)


# ---- Evaluate --------------------------------------------------------------------------------------------


def evaluate_answers(found: Answers, others: dict[str, dict], name: str) -> tuple[dict, dict]:
    """Return numbers of metrics.json and arrays of predictions.npz; notes what makes the numbers mean less.

    others: see agreement.read_runs; `name` is what these answers are called beside them.
    """
    logits, test, y_true = found.logits, found.test, found.test.labels
    numbers, answers = evaluate(logits, test, found.train, found.validation)
    y_pred = answers["y_pred"]
    if others:
        ours = {"logits": logits, "y_pred": y_pred}
        numbers["against"] = agreement.compare({name: ours, **others}, y_true)
    of_others = [values["y_pred"] for values in others.values()]
    kinds = reasons.kinds_of_mistakes(y_true, logits, test.superclass_of, of_others)
    answers["kinds"], numbers["kinds"] = kinds
    if test.name == "shapes":
        of_shapes = test.class_names, test.superclass_of, y_true, y_pred
        numbers["colour_or_shape"] = reasons.colour_or_shape(*of_shapes)
    absent = len(test.class_names) - len(y_true.unique())
    if absent:
        found.notes.append(f"{absent} classes have no test image and count as 0 in the macro averages")
    value, chance = 100 * numbers["accuracy"]["value"], 100 / len(test.class_names)
    if "training" not in found.about and value < chance + 0.1 * (100 - chance):
        found.notes.append(f"an accuracy of {value:.1f} % is near chance: check --mean, --std and --classes")
    return numbers, answers


def check_accuracy(accuracy: dict, expected: float) -> None:
    """Raise UserError unless an accuracy that was measured elsewhere, in percent, lies in the interval."""
    value, low, high = (100 * accuracy[key] for key in ("value", "low", "high"))
    if not low <= expected <= high:
        found = f"the accuracy is {value:.2f} % ({low:.2f} to {high:.2f}), not the expected {expected:g} %"
        raise UserError(f"{found}: check --mean, --std, --classes, --size and --weights-key")


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
    y_pred, numbers, evidence, opener = logits.argmax(dim=1), {}, {"fill": fill}, 0
    if len(browsed) and examined.layer is not None:
        images = test.images[browsed]
        (maps,) = examined.contrast(images, [(y_pred[browsed], test.labels[browsed])])
        hidden = reasons.top_pixels(maps, reasons.COVERED, images.shape[-1])
        classes, probabilities = reasons.answers_under_covering(examined, images, hidden, fill)
        # Kept at the side of the pictures on the page: the same quarter of the same maps.
        shown = reasons.top_pixels(maps, reasons.COVERED, min(SIDE, images.shape[-1]))
        evidence |= {"maps": maps, "covered_pixels": shown}
        evidence |= {"covered_answers": classes[:, 0], "covered_probabilities": probabilities[:, 0]}
        turned = classes[:, 0] == test.labels[browsed]
        opener = int((turned * probabilities[:, 0]).argmax())
    if len(browsed):
        evidence["opener"] = torch.tensor(opener)
        first = browsed[opener].item()
        evidence |= reasons.find_puzzles(examined, test.images, test.labels, browsed, fill, first)
    if examined.layer is None:
        return numbers, evidence
    numbers["covering"] = reasons.measure_covering(examined, test.images, test.labels, logits, fill)
    (a_map,) = examined.explain(test.images[:1], y_pred[:1])
    numbers["maps"] = {"layer": examined.layer, "size": list(a_map.shape)}
    numbers["maps"]["random_weights"] = reasons.measure_random_weights(examined, test.images, y_pred)
    if test.masks is not None:
        numbers["maps"]["pointing_game"] = reasons.measure_pointing(examined, test.images, test.masks, y_pred)
    return numbers, evidence


# ---- All of it -------------------------------------------------------------------------------------------


def write_report(found: Answers, out: Path, runs: list[Path], expected: float | None = None) -> dict:
    """Evaluate answers, find reasons, and write everything into the folder `out`; return metrics.json.

    runs: folders of other reports to compare with. expected: the accuracy in percent, see check_accuracy.
    """
    test, y_true = found.test, found.test.labels
    others = agreement.read_runs(runs, y_true, found.identity)
    numbers, answers = evaluate_answers(found, others, str(out))
    if expected is not None:
        check_accuracy(numbers["accuracy"], expected)
    for note in found.notes:
        print(f"note     {note}")

    misclassified = torch.nonzero(answers["y_pred"] != y_true).flatten()
    order = answers["confidence"][misclassified].argsort(descending=True, stable=True)
    side = SIDE if test.images is None else min(SIDE, test.images.shape[-1])
    browsed = misclassified[order][: min(MAX_BROWSED, MAX_BROWSED_PIXELS // side**2)]
    probabilities = [answers["probabilities"], *(values["probabilities"] for values in others.values())]
    evidence = answers_to_mistakes(browsed, y_true, probabilities)
    if found.examined is not None:
        fill = mean_colour(test if found.train is None else found.train)
        with Progress("reasons", 1) as progress:
            progress.update(0)
            reasons_found = find_reasons(found.examined, test, found.logits, browsed, fill)
        numbers |= reasons_found[0]
        evidence |= reasons_found[1]

    # First of all the numbers: they say of what the folder is.
    whose = found.identity | {"runs": ["this network", *others]}
    data = {"name": test.name, "provenance": test.provenance, "digest": test.digest}
    numbers |= found.about | {"data": data, "notes": found.notes} | whose
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
    """Report on a network in memory, of float images [N, 3, S, S] in [0, 1] to logits, on its device.

    train: the training set, a Dataset, if it is known. layer is what Grad-CAM explains, found if it is None;
    "none" makes no maps. class_names are those of the logits, in their order, if it is not that of `test`;
    against: folders of other reports. `test` should have images of every class: one without any counts as 0
    in macro precision, recall and F1, as a line on the console says. A copy of the model is examined, in
    float32 and eval mode. Writes into the folder `out` and returns the content of metrics.json. Raises
    UserError for what does not fit.
    """
    out, runs = Path(out), [Path(run) for run in against]
    device = next((parameter.device for parameter in model.parameters()), torch.device("cpu"))
    with full_float32(device):
        copied, side = classifiers.copied(model), test.images.shape[-1]
        examined = classifiers.from_module(copied, class_names, layer, device, size=side)
        classifiers.fit_classes(examined, test)
        outputs.check_results(out, outputs.network_of(examined))
        return write_report(answer(examined, train, test, out), out, runs)


def examine_predictions(
    y_true: np.ndarray | Tensor,
    logits: np.ndarray | Tensor,
    *,
    out: Path | str,
    class_names: list[str] | None = None,
    filenames: list[str] | None = None,
    images: np.ndarray | Tensor | None = None,
    validation: tuple | None = None,
    against: tuple = (),
) -> dict:
    """Report on answers of any framework: logits float [N, C], or logarithms of probabilities.

    y_true int [N]; arrays of NumPy or tensors on the CPU. What is known besides: C class_names, N filenames,
    images uint8 [N, 3, S, S] or [N, S, S, 3], and validation, (logits [V, C], labels [V]), from which the
    temperature follows. Writes into the folder `out` and returns the content of metrics.json. Raises
    ValueError for what does not fit.
    """
    out, runs = Path(out), [Path(run) for run in against]
    known = {"class_names": class_names, "filenames": filenames, "images": images}
    if validation is not None:
        known |= {"val_logits": validation[0], "val_y_true": validation[1]}
    arrays = {key: np.asarray(value) for key, value in known.items() if value is not None}
    given = predictions.checked(arrays | {"y_true": np.asarray(y_true), "logits": np.asarray(logits)})
    found = answers_without_network(given, test_set_of(given), None, "in memory")
    outputs.check_results(out, found.identity)
    return write_report(found, out, runs)


# ---- The command -----------------------------------------------------------------------------------------


def parse(argv: list[str] | None) -> argparse.Namespace:
    """Return the options of the command line."""
    parser = CommandLine(description=__doc__)
    classifiers.add_options(parser)
    parser.add_argument("--data-dir", help="where CIFAR lies (default: as in training, else data)")
    text = "cifar100, cifar10, shapes or a folder (default: what the network was trained on, else cifar100)"
    parser.add_argument("--dataset", help=text)
    text = "folder of the results (default: the run, else runs/<name of the weights, model or predictions>)"
    parser.add_argument("--out", type=Path, metavar="DIR", help=text)
    text = "compare with other runs after their own reports"
    parser.add_argument("--against", type=Path, nargs="+", default=[], metavar="RUN", help=text)
    parser.add_argument("--overwrite", action="store_true", help="replace the results of other weights")
    text = "make the page of --out or of the run again, without the network"
    parser.add_argument("--page", action="store_true", help=text)
    text = "in place of a network its answers, .npz or .csv, see docs/your_own_code.md"
    parser.add_argument("--predictions", type=Path, metavar="FILE", help=text)
    text = "end before anything is written unless this accuracy lies in the interval of the measured one"
    parser.add_argument("--expect-accuracy", type=float, metavar="PERCENT", help=text)
    return parser.parse_args(argv)


def answers_of_network(args: argparse.Namespace, device: torch.device) -> tuple[Answers, Path]:
    """Return the answers of the network that the options name, and the folder of the results."""
    examined = classifiers.from_options(args, device)
    out = outputs.results_folder(examined, args.out)
    if not args.overwrite:
        outputs.check_results(out, outputs.network_of(examined))
    train, test = classifiers.load_data(examined, args.dataset, args.data_dir)
    print(f"data     {test.provenance}")
    source = examined.path or f"weights as {args.model} made them"
    print(f"network  {examined.name}, {examined.parameters:,} parameters, {source}")
    print(f"images   {examined.input}")
    print(f"output   {examined.output}")
    print(f"maps     {examined.layer_note}")
    print(f"compute  {device}, {examined.computes_in}")
    found = answer(examined, train, test, out)
    if args.checkpoint is None and args.model is None:
        args.run = args.run or outputs.run_of(examined.path)
    name, root = classifiers.find_data(examined, args.dataset, args.data_dir)
    found.about["command"] = {"dataset": name, "data_dir": root}
    return found, out


def answers_in_file(args: argparse.Namespace) -> tuple[Answers, Path]:
    """Return the answers in the file --predictions, and the folder of the results."""
    for name in ("run", "checkpoint", "model", "layer", *classifiers.OF_MODEL):
        if getattr(args, name) is not None:
            raise UserError(f"--predictions needs no network: leave out {option(name)}")
    file = args.predictions
    given, train = predictions.read(file), None
    with reading(file, "predictions of test images"):
        test = test_set_of(given)
        if args.dataset is not None:
            train, test = load(args.dataset, args.data_dir or "data", args.size or SIZE)
            if not torch.equal(given["y_true"], test.labels):
                raise ValueError(f"y_true is not that of {args.dataset}: expected its images in their order")
            names = given.get("class_names", test.class_names)
            if names != test.class_names or given["logits"].shape[1] != len(names):
                raise ValueError(f"its classes are not those of {args.dataset} in their order")
    found = answers_without_network(given, test, train, str(file))
    found.about["command"] = {"dataset": args.dataset, "data_dir": args.data_dir}
    out = args.out or Path("runs") / file.stem
    if not args.overwrite:
        outputs.check_results(out, found.identity)
    print(f"data     {test.provenance}")
    return found, out


def page_again(out: Path, dataset: str | None, data_dir: str | None) -> None:
    """Make the page of the folder `out` from its files and the test images, which are looked for as before.

    Raises UserError if the files or the images are not there, or are others.
    """
    numbers, _, _ = outputs.read_report(out)
    came_from = numbers["command"]
    name, root = dataset or came_from.get("dataset"), data_dir or came_from.get("data_dir") or "data"
    if name is None and numbers["data"]["digest"] == numbers["images_sha256"]:
        write_page(out, None)  # there never were pictures
        return
    if name is None:
        raise UserError(f"{out} is of images in memory: its page needs --dataset and --data-dir")
    _, test = load(name, root, numbers["size"] or SIZE, numbers["resize"])
    if outputs.sha256_of(test.images) != numbers["images_sha256"]:
        raise UserError(f"the test images of {name} are not those of {out}: name them by --dataset")
    write_page(out, test.images)


def main(argv: list[str] | None = None) -> int:
    """Examine one network and write everything; return the exit code."""
    args = parse(argv)
    if args.page:
        out = args.out or args.run or outputs.run_of(classifiers.best_checkpoint(None))
        page_again(out, args.dataset, args.data_dir)
        print(f"next     open {out / 'report.html'} in a browser")
        return 0
    device = pick_device("auto")
    with full_float32(device):  # a number means the same on every machine
        found, out = answers_in_file(args) if args.predictions else answers_of_network(args, device)
        found.about["command"]["options"] = json.loads(json.dumps(vars(args), default=str))  # paths as texts
        numbers = write_report(found, out, args.against, args.expect_accuracy)
    print()
    for key, name in HEADLINE.items():
        if key != "top5_accuracy" or len(numbers["classes"]) > 5:
            value, low, high = (100 * numbers[key][end] for end in ("value", "low", "high"))
            print(f"{name:20}{value:6.2f} %   95 % interval {low:.2f} to {high:.2f} %")
    print(f"{'calibration error':20}{100 * numbers['expected_calibration_error']:6.2f} %")
    maps = ", gradcam/" if "maps" in numbers else ""
    print(f"\nsaved    {out / 'metrics.json'}, predictions.npz, plots/, failures/{maps}")
    print(f"next     open {out / 'report.html'} in a browser")
    return 0


if __name__ == "__main__":
    run_main(main)

"""Examine any classifier: all numbers, the reasons of its mistakes with their controls, and both pages.

    python -m lab.examine                                           the newest run under runs/
    python -m lab.examine --run runs/a --against runs/b runs/c      compared with runs that were examined
    python -m lab.examine --model net.py:make --weights net.pt      a network of your own
    python -m lab.examine --predictions answers.npz                 answers of any framework, no network
    python -m lab.examine --run runs/a --page                       both pages again, from the files

The answers and their numbers are those of report.py, in predictions.npz and metrics.json; if a run has its
report they are taken from there. The laboratory adds reasons.json, evidence.npz and explore.html. `examine`
and `examine_predictions` do the same for what is in memory.
"""

import argparse
import copy
import hashlib
import shlex
import sys
from dataclasses import replace
from pathlib import Path

if __name__ == "__main__":  # from any folder, and without lab/ before a user's own modules
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

import numpy as np
import torch
from torch import Generator, Tensor, nn

import metrics
import report
from data import Dataset
from lab import agreement, more_metrics, networks, options, pictures, predictions, reasons, results
from lab import classifier as classifiers
from lab.classifier import Classifier
from lab.explore.compose import write_explore
from lab.explore.drawing import SIDE
from lab.explore.script_data import answers_to_mistakes
from lab.support import (
    CommandLine,
    Progress,
    UserError,
    core,
    full_float32,
    option,
    pick_device,
    reading,
    run_main,
    sha256_of,
)

CONFIDENT = 0.9
NUM_DRAWN = 100  # mistakes that are covered by the usual map as well, of which the page shows nine
MAX_BROWSED = 2500  # mistakes on the page, the most confident ones; fewer if the pictures are large:
MAX_BROWSED_PIXELS = 5_000_000  # pixels of all these pictures together


# ---- Numbers ---------------------------------------------------------------------------------------------


def kept_report(examined: Classifier, test: Dataset, out: Path) -> tuple[dict, dict] | None:
    """Return metrics.json and predictions.npz in a folder if they are of this network and these images."""
    try:
        numbers, arrays = results.read_report(out)
    except UserError:  # there is none, or it is damaged
        return None
    if examined.training is None or numbers["checkpoint_sha256"] != examined.digest:
        return None
    side = examined.training["config"]["image_size"]
    if examined.model.image_size != side or numbers.get("image_size", side) != side:
        return None
    if results.digest_of_report((numbers, arrays)) != results.digest_of_set(test):
        return None
    print(f"answers  those of {out / 'metrics.json'}")
    return numbers, arrays


def numbers_of_network(examined: Classifier, test: Dataset) -> tuple[dict, dict]:
    """Let a network answer the test images; return numbers and arrays as report.write_numbers takes them.

    Raises UserError if scores are not finite.
    """
    with Progress("test images", len(test.labels)) as progress:
        logits = classifiers.predict(examined.model, test.images, examined.device, progress=progress)
    if not logits.isfinite().all():
        raise UserError(f"{examined.name} cannot be used: its scores of the test images are not finite")
    numbers, arrays = report.evaluate(logits, test, examined.validation)
    if examined.layer is not None and len(arrays["mistakes"]):
        chosen = arrays["mistakes"][: report.NUM_MISTAKES]
        for key, classes in (("maps_predicted", arrays["y_pred"]), ("maps_true", test.labels)):
            arrays[key] = examined.explain(test.images[chosen], classes[chosen])
        numbers["layer"] = examined.layer
    if examined.training is not None and examined.path is not None:
        saved = examined.training
        numbers |= {
            "epoch": saved["epoch"],
            "history": report.read_history(examined.path.parent.parent, saved["history"]),
        }
    network = f"{examined.name}, {examined.parameters:,} parameters"
    facts = {"weights": f"{examined.path or 'in memory'}, SHA-256 {examined.digest}", "network": network}
    facts |= {"its images": examined.input, "its output": examined.output, "maps": examined.layer_note}
    if notes := [*examined.notes, *notes_on(numbers, test)]:
        facts["notes"] = "; ".join(notes)
    facts["examined with"] = f"torch {torch.__version__}, {examined.device}, {examined.computes_in}"
    numbers["image_size"] = examined.model.image_size
    return numbers | described(network, test, facts, examined.digest), arrays


def numbers_of_answers(answers: dict, test: Dataset, source: str) -> tuple[dict, dict]:
    """Return numbers and arrays for answers from a file or from memory; `source` says which.

    answers: see predictions.checked. The digest of the probabilities stands for that of the weights.
    """
    logits = answers["logits"]
    numbers, arrays = report.evaluate(logits, test, answers.get("validation"))
    digest = sha256_of(logits.double().softmax(dim=1))
    return numbers | described("A classifier", test, {"answers": source}, digest), arrays


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


# ---- Reasons ---------------------------------------------------------------------------------------------


def sureness(y_true: Tensor, probabilities: Tensor) -> dict:
    """Return how sure right and wrong answers are: above 90 %, and in 50 bins of confidence."""
    right, wrong = more_metrics.confidence_histogram(y_true, probabilities)
    sure = probabilities.amax(dim=1) > CONFIDENT
    mistaken = sure & (probabilities.argmax(dim=1) != y_true)
    return {
        "confident": {"answers": int(sure.sum()), "wrong": int(mistaken.sum())},
        "confidence_histogram": {"right": right.tolist(), "wrong": wrong.tolist()},
    }


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


def more_numbers(
    arrays: dict, test: Dataset, temperature: float | None, others: dict[str, dict]
) -> tuple[dict, Tensor]:
    """Return the numbers of reasons.json that follow from the answers alone, and the kinds, int64 [N].

    others: see agreement.read_runs. The kinds are those of reasons.kinds_of_mistakes.
    """
    logits, y_true, y_pred = arrays["logits"], arrays["y_true"], arrays["y_pred"]
    wrong, second = y_pred != y_true, logits.argsort(dim=1, descending=True, stable=True)[:, 1] == y_true
    numbers = {"truth_second": second[wrong].double().mean().item() if wrong.any() else None}
    for suffix, divisor in {"": 1.0, "_after_temperature": temperature}.items():
        if divisor is None:
            continue
        scaled = logits.double() / divisor
        probabilities = scaled.softmax(dim=1)
        numbers |= {f"{key}{suffix}": row for key, row in sureness(y_true, probabilities).items()}
        _, risk = more_metrics.risk_coverage(y_true, probabilities)
        by_chance = more_metrics.calibration_error_by_chance(probabilities.amax(dim=1))
        numbers[f"calibration_error_by_chance{suffix}"] = by_chance
        numbers[f"aurc{suffix}"] = risk.mean().item()  # the area under the curve is the mean risk
        numbers[f"risk_at_half_coverage{suffix}"] = risk[(len(risk) - 1) // 2].item()
        numbers[f"auroc{suffix}"] = more_metrics.auroc(~wrong, more_metrics.log_odds(scaled))
    answers_of_others = [values["y_pred"] for values in others.values()]
    kinds, numbers["kinds"] = reasons.kinds_of_mistakes(y_true, logits, test.superclass_of, answers_of_others)
    if others:
        numbers["against"] = agreement.compare({"this network": arrays, **others}, y_true)
    return numbers, kinds


def find_reasons(
    examined: Classifier, test: Dataset, arrays: dict, browsed: Tensor, fill: Tensor
) -> tuple[dict, dict]:
    """Return what covering does, as numbers of reasons.json and arrays of evidence.npz; see lab/reasons.py.

    browsed int64 [m]: the mistakes on the page, the most confident first. fill float32 [3] in [0, 1] covers
    pixels. `opener` is the mistake that covering turns to the truth with the highest probability.
    """
    y_pred, numbers, evidence, opener = arrays["y_pred"], {}, {"fill": fill}, 0
    if len(browsed) and examined.layer is not None:
        images = test.images[browsed]
        (maps,) = examined.pairs(images, [(y_pred[browsed], test.labels[browsed])])
        hidden = reasons.top_pixels(maps, reasons.COVERED, images.shape[-1])
        classes, probabilities = reasons.answers_under_covering(examined, images, hidden, fill)
        # The same quarter of the same maps, at the size of the pictures on the page.
        shown = reasons.top_pixels(maps, reasons.COVERED, min(SIDE, images.shape[-1]))
        evidence |= {"maps": maps, "covered_pixels": shown}
        evidence |= {"covered_answers": classes[:, 0], "covered_probabilities": probabilities[:, 0]}
        turned = classes[:, 0] == test.labels[browsed]
        drawn = torch.randperm(len(browsed), generator=Generator().manual_seed(2))[:NUM_DRAWN]
        index = browsed[drawn]
        usual = reasons.cover_usual(examined, test.images[index], y_pred[index], fill, shown.shape[-1])
        evidence |= reasons.choose_shown(drawn, test.labels[index], turned[drawn], shown[drawn], usual)
        opener = int((turned * probabilities[:, 0]).argmax())
    if len(browsed):
        evidence["opener"] = torch.tensor(opener)
        first = browsed[opener].item()
        evidence |= reasons.find_puzzles(examined, test.images, test.labels, browsed, fill, first)
    if examined.layer is None:
        return numbers, evidence
    numbers["covering"] = reasons.measure_covering(examined, test.images, test.labels, arrays["logits"], fill)
    (a_map,) = examined.explain(test.images[:1], y_pred[:1])
    numbers["maps"] = {"layer": examined.layer, "size": list(a_map.shape)}
    numbers["maps"]["random_weights"] = reasons.measure_random_weights(examined, test.images, y_pred)
    return numbers, evidence


def about(examined: Classifier | None, test: Dataset) -> dict:
    """Return what reasons.json says about the network and the test images, and where to find them again."""
    about = {"network": {"name": "A classifier", "maps": "no maps: only the answers are known"}, "notes": []}
    about["data"] = {"name": test.name, "described": pictures.described(test)}
    if examined is None:
        return about
    about["network"] = {"name": examined.name, "maps": examined.layer_note}
    about["notes"] = [*examined.notes]
    about["data"] |= {"size": examined.model.image_size, "resize": examined.model.uncropped}
    if examined.training is not None:
        config = examined.training["config"]
        smoothing = {"label_smoothing": config["settings"]["label_smoothing"]}
        about["training"] = smoothing | {key: config[key] for key in ("num_train", "num_val")}
    return about


def write_all(
    out: Path,
    numbers: dict,
    arrays: dict,
    test: Dataset,
    train: Dataset | None,
    examined: Classifier | None,
    others: dict[str, dict],
    quick: bool = False,
    where: dict | None = None,
) -> dict:
    """Write the numbers, find reasons and write them, then both pages; return both .json files in one dict.

    numbers and arrays go into metrics.json and predictions.npz. examined is None if there are only answers.
    others: runs to compare with, see agreement.read_runs. quick leaves out covering and maps. where:
    {dataset, data_dir, transform} by which --page finds the images again.
    """
    report.write_numbers(out, numbers, arrays)
    written, kinds = more_numbers(arrays, test, numbers.get("temperature"), others)
    evidence = None
    if train is not None:
        copies = pictures.find_copies(train, test)
        written["duplicates"] = duplicates(copies, test.labels, arrays["y_pred"])
    if not quick:
        side = SIDE if test.images is None else min(SIDE, test.images.shape[-1])
        browsed = arrays["mistakes"][: min(MAX_BROWSED, MAX_BROWSED_PIXELS // side**2)]
        probabilities = [arrays["probabilities"], *(values["probabilities"] for values in others.values())]
        evidence = answers_to_mistakes(browsed, arrays["y_true"], probabilities) | {"kinds": kinds[browsed]}
        if train is not None:
            evidence["copies"] = copies[browsed]
        if examined is not None:
            fill = reasons.mean_colour(test if train is None else train)
            with Progress("reasons", 1) as progress:
                progress.update(0)
                covering, maps = find_reasons(examined, test, arrays, browsed, fill)
            written |= covering
            evidence |= maps
    written |= {"runs": ["this network", *others]} | about(examined, test)
    written["notes"] += notes_on(numbers, test)
    written["data"] |= where or {}
    if examined is None:
        written |= {
            "checkpoint_sha256": numbers["checkpoint_sha256"],
            "test_sha256": results.digest_of_set(test),
        }
    else:
        written |= results.identity(examined, test)
    written = results.write_reasons(out, written, evidence)
    write_explore(out, test.images)
    report.write_page(out, numbers, arrays, test.images)
    return numbers | written


# ---- From Python -----------------------------------------------------------------------------------------


def examine(
    model: nn.Module | Classifier,
    test: Dataset,
    train: Dataset | None = None,
    *,
    out: Path | str,
    layer: str | None = None,
    class_names: list[str] | None = None,
    against: tuple = (),
) -> dict:
    """Examine a network in memory, of float images [N, 3, S, S] in [0, 1] to logits, on its device.

    train: the training set, a Dataset, if it is available. Grad-CAM explains the layer; None finds one, and
    "none" makes no maps. class_names name the logits in their order, if it is not that of `test`. against:
    folders of other runs. `test` should have images of every class: a class without any counts as 0 in macro
    precision, recall and F1, and a note says so. A copy of the module is examined, in float32 and eval mode.
    Writes into the folder `out`; returns the content of metrics.json and reasons.json. Raises UserError for
    what does not fit.
    """
    out = Path(out)
    if not isinstance(model, Classifier):
        device = next((parameter.device for parameter in model.parameters()), torch.device("cpu"))
        copied, side = classifiers.copied(model), test.images.shape[-1]
        model = classifiers.from_module(copied, class_names, layer, device, size=side)
    # What holds for these images, the order of classes and notes, does not stay with the caller's network.
    model = replace(model, model=copy.copy(model.model), notes=[*model.notes])
    with full_float32(model.device):
        classifiers.fit_classes(model, test)
        results.check_results(out, model.digest)
        train = checked_training_set(model, train, test)
        numbers, arrays = numbers_of_network(model, test)
        others = agreement.read_runs([Path(run) for run in against], numbers, arrays)
        return write_all(out, numbers, arrays, test, train, model, others)


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
    """Examine answers of any framework: logits float [N, C], or probabilities, which are recognised.

    y_true int [N]. All are NumPy arrays or tensors on the CPU. If known: C class_names, N filenames, images
    uint8 [N, 3, S, S] or [N, S, S, 3], and validation, (logits [V, C], labels [V]), to fit the temperature.
    Writes into the folder `out`; returns the content of metrics.json and reasons.json. Raises ValueError for
    what does not fit.
    """
    out = Path(out)
    optional = {"class_names": class_names, "filenames": filenames, "images": images}
    if validation is not None:
        optional |= {"val_logits": validation[0], "val_y_true": validation[1]}
    arrays = {key: np.asarray(value) for key, value in optional.items() if value is not None}
    answers = predictions.checked(arrays | {"y_true": np.asarray(y_true), "logits": np.asarray(logits)})
    test = predictions.test_set_of(answers)
    numbers, arrays = numbers_of_answers(answers, test, "in memory")
    results.check_results(out, numbers["checkpoint_sha256"])
    others = agreement.read_runs([Path(run) for run in against], numbers, arrays)
    return write_all(out, numbers, arrays, test, None, None, others)


def checked_training_set(examined: Classifier, train: Dataset | None, test: Dataset) -> Dataset | None:
    """Return the training set with its classes in the order of `test`, or None if the network saw another.

    If the network was trained on another one it adds a note. Raises UserError if the two sets have different
    classes.
    """
    if train is None:
        return None
    trained_on = examined.training["config"].get("images_sha256") if examined.training is not None else None
    if trained_on is not None and trained_on != hashlib.sha256(train.images.numpy()).hexdigest():
        examined.notes.append("the training images found are not those of the training: no duplicates")
        return None
    if train.class_names == test.class_names:
        return train
    if sorted(train.class_names) != sorted(test.class_names):
        raise UserError("the training set and the test set have other classes: expected the same names")
    places = torch.tensor([test.class_names.index(name) for name in train.class_names])
    return replace(train, labels=places[train.labels], class_names=test.class_names)


# ---- The command -----------------------------------------------------------------------------------------


def parse(argv: list[str] | None) -> argparse.Namespace:
    """Return the options of the command line."""
    parser = CommandLine(description=__doc__)
    options.add_options(parser)
    text = "in place of a network its answers, .npz or .csv, see docs/your_own_code.md"
    parser.add_argument("--predictions", type=Path, metavar="FILE", help=text)
    parser.add_argument("--data-dir", help="where CIFAR lies (default: as in training, else data)")
    text = "cifar100, cifar10, shapes or a folder (default: what the network was trained on, else cifar100)"
    parser.add_argument("--dataset", help=text)
    text = "folder of the results (default: the run, else runs/<name of the weights, model or predictions>)"
    parser.add_argument("--out", type=Path, metavar="DIR", help=text)
    text = "compare with other runs that have their reports"
    parser.add_argument("--against", type=Path, nargs="+", default=[], metavar="RUN", help=text)
    parser.add_argument("--overwrite", action="store_true", help="replace the results of other weights")
    parser.add_argument("--quick", action="store_true", help="without covering and maps, a third of the time")
    text = "make both pages of --out or of the run again from the files, without the network"
    parser.add_argument("--page", action="store_true", help=text)
    text = "end before anything is written unless this accuracy lies in the interval of the measured one"
    parser.add_argument("--expect-accuracy", type=float, metavar="PERCENT", help=text)
    options.add_computing_options(parser)
    return parser.parse_args(argv)


def refuse(args: argparse.Namespace, names: tuple[str, ...], reason: str) -> None:
    """Raise UserError, with the reason, if one of these options is there."""
    for name in names:
        if getattr(args, name) not in (None, False, []):
            raise UserError(f"{reason}: leave out {option(name)}")


def answers_of_network(
    args: argparse.Namespace,
) -> tuple[Path, Classifier, dict, dict, Dataset | None, Dataset, dict]:
    """Let the network that the options name answer.

    Returns the folder of the results, the network, numbers, arrays, training and test set, and where the
    images are.
    """
    examined = options.from_options(args, pick_device(args.device))
    examined.model.batch_size = args.batch_size
    out = results.results_folder(examined, args.out)
    # The results in a run folder are those of its best.pt.
    is_its_run = examined.path is not None and out == examined.path.parent.parent
    if not args.overwrite and not is_its_run:
        results.check_results(out, examined.digest)
    source = examined.path or f"weights as {args.model} made them"
    print(f"network  {examined.name}, {examined.parameters:,} parameters, {source}")
    print(f"images   {examined.input}")
    print(f"output   {examined.output}")
    print(f"maps     {examined.layer_note}")
    train, test = classifiers.load_data(examined, args.dataset, args.data_dir, args.workers)
    print(f"data     {pictures.described(test)}\ncompute  {examined.device}, {examined.computes_in}")
    train = checked_training_set(examined, train, test)
    numbers, arrays = kept_report(examined, test, out) or numbers_of_network(examined, test)
    name, root = classifiers.find_data(examined, args.dataset, args.data_dir)
    where = {"dataset": name, "data_dir": root, "transform": examined.transform}
    return out, examined, numbers, arrays, train, test, where


def answers_of_file(args: argparse.Namespace) -> tuple[Path, None, dict, dict, Dataset | None, Dataset, dict]:
    """Read the answers in the file --predictions; return what answers_of_network does, without a network."""
    of_network = ("run", "checkpoint", "model", "layer", "batch_size", *options.OF_MODEL)
    refuse(args, of_network, "--predictions needs no network")
    out = args.out or Path("runs") / args.predictions.stem
    if args.predictions.resolve().parent == out.resolve():
        raise UserError(
            f"--out {out} holds {args.predictions.name}, which would be replaced: give another one"
        )
    answers, train = predictions.read(args.predictions), None
    with reading(args.predictions, "predictions of test images"):
        test = predictions.test_set_of(answers)
        if args.dataset is not None:
            size = args.size or pictures.SIZE
            train, test = pictures.load(args.dataset, args.data_dir or "data", size, workers=args.workers)
            predictions.check_dataset(answers, test, args.dataset)
    print(f"data     {pictures.described(test)}")
    numbers, arrays = numbers_of_answers(answers, test, str(args.predictions))
    if not args.overwrite:
        results.check_results(out, numbers["checkpoint_sha256"])
    where = {"dataset": args.dataset, "data_dir": args.data_dir, "size": args.size}
    where["predictions"] = str(args.predictions) if "images" in answers else None
    return out, None, numbers, arrays, train, test, where


def page_again(args: argparse.Namespace) -> Path:
    """Make both pages of a folder from its files and the test images; return the folder.

    Raises UserError if the files or the images are missing, or do not belong together.
    """
    others = (
        "checkpoint",
        "model",
        "layer",
        "size",
        "batch_size",
        "predictions",
        "expect_accuracy",
        *options.OF_MODEL,
    )
    refuse(args, (*others, "against", "quick", "overwrite"), "--page measures nothing")
    with core():
        out = args.out or args.run or report.find_checkpoint(None, None)[1]
    numbers, arrays = results.read_report(out)
    images = test_images_of(out, args)
    write_explore(out, images)
    report.write_page(out, numbers, arrays, images)
    return out


def test_images_of(out: Path, args: argparse.Namespace) -> Tensor | None:
    """Return the test images of the results in a folder, uint8 [N, 3, S, S], None if they had none."""
    found, _ = results.read_reasons(out)
    if found is None:
        raise UserError(f"there are no reasons in {out}: run lab.examine without --page")
    data = found["data"]
    name, root = args.dataset or data.get("dataset"), args.data_dir or data.get("data_dir") or "data"
    if name is None and "network_sha256" in found:
        raise UserError(f"{out} is of images in memory: its page needs --dataset and --data-dir")
    if name is None:  # there never were pictures, or they lie beside the answers
        path = data.get("predictions")
        return predictions.test_set_of(predictions.read(Path(path))).images if path else None
    how = {"with_train": False, "workers": args.workers}
    if data.get("transform"):
        how["transform"] = networks.read_transform(data["transform"])
    _, test = pictures.load(name, root, data.get("size") or pictures.SIZE, data.get("resize"), **how)
    if results.digest_of_set(test) != found["test_sha256"]:
        raise UserError(f"the test images are not those of {out / 'reasons.json'}: give their --data-dir")
    return test.images


def print_headline(numbers: dict) -> None:
    """Print the notes, and the main numbers with their intervals."""
    for note in numbers["notes"]:
        print(f"note     {note}")
    for name, row in report.headline(numbers).items():
        value, low, high = (100 * row[key] for key in ("value", "low", "high"))
        print(f"{name:20}{value:6.2f} %   95 % interval {low:.2f} to {high:.2f} %")
    print(f"{'calibration error':20}{100 * numbers['expected_calibration_error']:6.2f} %")


def main(argv: list[str] | None = None) -> int:
    """Examine one classifier and write everything; return the exit code."""
    args = parse(argv)
    if args.page:
        out = page_again(args)
    else:
        with full_float32(pick_device(args.device)):  # a number means the same on every machine
            answers_of = answers_of_network if args.predictions is None else answers_of_file
            out, examined, numbers, arrays, train, test, where = answers_of(args)
            check_accuracy(numbers, args.expect_accuracy)
            others = agreement.read_runs(args.against, numbers, arrays)
            if args.overwrite:
                results.remove_others(out, numbers["checkpoint_sha256"])
            command = ["python", "-m", "lab.examine", *(sys.argv[1:] if argv is None else argv)]
            numbers["examined"]["command"] = shlex.join(command)
            numbers = write_all(out, numbers, arrays, test, train, examined, others, args.quick, where)
        print_headline(numbers)
        print(f"\nsaved    {out}: the files of report.py, reasons.json, evidence.npz, explore.html")
    print(f"next     open {out / 'explore.html'} and report.html in a browser")
    return 0


if __name__ == "__main__":
    run_main(main)

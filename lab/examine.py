"""Examine any classifier: all numbers, the reasons of its mistakes with their controls, and both pages.

    python -m lab.examine                                           the newest run under runs/
    python -m lab.examine --run runs/a --against runs/b runs/c      compared with runs that were examined
    python -m lab.examine --model net.py:make --weights net.pt      a network of your own
    python -m lab.examine --predictions answers.npz                 answers of any framework, no network
    python -m lab.examine --run runs/a --page                       both pages again, from the files

The numbers of a run are those of report.py, which is run first if its report is not there. The laboratory
adds answers.csv, reasons.json, evidence.npz and explore.html. `examine` and `examine_predictions` do the same
for what is in memory.
"""

import argparse
import contextlib
import copy
import io
import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

if __name__ == "__main__":  # from any folder, and without lab/ before a user's own modules
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

import numpy as np
import torch
from torch import Generator, Tensor, nn

import report
from data import CIFAR, Dataset
from lab import answers, networks, options, pictures, predictions, reasons, results
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
)

INTERRUPTED = 130  # the exit code of report.py after Ctrl-C
NUM_DRAWN = 100  # mistakes that are covered by the usual map as well, of which the page shows nine
MAX_BROWSED = 2500  # mistakes on the page, the most confident ones; fewer if the pictures are large:
MAX_BROWSED_PIXELS = 5_000_000  # pixels of all these pictures together


@dataclass
class Subject:
    """What is examined: the answers to a test set, and the network that gave them, if it is there."""

    out: Path
    test: Dataset
    numbers: dict  # metrics.json
    arrays: dict  # predictions.npz
    network: Classifier | None = None
    train: Dataset | None = None
    others: dict[str, dict] = field(default_factory=dict)  # runs to compare with, see answers.read_runs
    given: dict = field(default_factory=dict)  # answers without a network, see predictions.checked
    facts: dict = field(default_factory=dict)  # `data` of reasons.json, by which --page finds the images
    has_report: bool = False  # whether the numbers are those of a report in the folder


# ---- Numbers ---------------------------------------------------------------------------------------------


def kept_report(network: Classifier, test: Dataset, out: Path) -> tuple[dict, dict] | None:
    """Return metrics.json and predictions.npz in a folder if they are of this network and these images."""
    try:
        numbers, arrays = results.read_report(out)
    except UserError:  # there is none, or it is damaged
        return None
    side = network.model.image_size
    if numbers["checkpoint_sha256"] != network.digest or numbers.get("image_size", side) != side:
        return None
    if results.digest_of_report((numbers, arrays)) != results.digest_of_set(test) or "logits" not in arrays:
        return None
    print(f"answers  those of {out / 'metrics.json'}")
    return numbers, arrays


def report_of_run(network: Classifier, test: Dataset, out: Path, data_dir: str) -> tuple[dict, dict] | None:
    """Return metrics.json and predictions.npz of report.py, which makes them if they are not in the folder.

    None if the network is not one of train.py, or examined at another size, or on other images.
    """
    own_size = network.training and network.training["config"]["image_size"] == network.model.image_size
    if not own_size or network.path is None:
        return None
    kept = kept_report(network, test, out)
    if kept is None:
        if results.owner_of(out / "metrics.json") is not None:  # of others, which --overwrite replaces
            results.claim_folder(out, network.digest, results.EXAMINED)
        options_of_report = ["--out", str(out), "--data-dir", data_dir, "--device", str(network.device)]
        with contextlib.redirect_stdout(io.StringIO()):  # its numbers are printed below
            if report.main(["--checkpoint", str(network.path), *options_of_report]) == INTERRUPTED:
                raise KeyboardInterrupt
        kept = kept_report(network, test, out)
    return kept


def numbers_of_network(network: Classifier, test: Dataset) -> tuple[dict, dict]:
    """Let a network answer the test images; return numbers and arrays as report.write_numbers takes them.

    Raises UserError if scores are not finite.
    """
    with Progress("test images", len(test.labels)) as progress:
        logits = classifiers.predict(network.model, test.images, network.device, progress=progress)
    if not logits.isfinite().all():
        raise UserError(f"{network.name} cannot be used: its scores of the test images are not finite")
    with core():
        numbers, arrays = report.evaluate(logits, test, network.validation)
    if network.layer is not None and len(arrays["mistakes"]):
        chosen = arrays["mistakes"][: report.NUM_MISTAKES]
        for key, classes in (("maps_predicted", arrays["y_pred"]), ("maps_true", test.labels)):
            arrays[key] = network.explain(test.images[chosen], classes[chosen])
        numbers["layer"] = network.layer
    if network.training is not None and network.path is not None:
        numbers["epoch"] = network.training["epoch"]
        numbers["history"] = report.read_history(network.path.parent.parent, network.training["history"])
    name = f"{network.name}, {network.parameters:,} parameters"
    facts = {"weights": f"{network.path or 'in memory'}, SHA-256 {network.digest}", "network": name}
    facts |= {"its images": network.input, "its output": network.output, "maps": network.layer_note}
    if notes := [*network.notes, *answers.notes_on(numbers, test)]:
        facts["notes"] = "; ".join(notes)
    facts["examined with"] = f"torch {torch.__version__}, {network.device}, {network.computes_in}"
    numbers["image_size"] = network.model.image_size
    return numbers | answers.described(name, test, facts, network.digest), arrays


# ---- Reasons ---------------------------------------------------------------------------------------------


def find_reasons(
    network: Classifier, test: Dataset, arrays: dict, browsed: Tensor, fill: Tensor
) -> tuple[dict, dict]:
    """Return what covering does, as numbers of reasons.json and arrays of evidence.npz; see lab/reasons.py.

    browsed int64 [m]: the mistakes on the page, the most confident first. fill float32 [3] in [0, 1] covers
    pixels.
    """
    y_pred, numbers, evidence = arrays["y_pred"], {}, {"fill": fill}
    if len(browsed) and network.layer is not None:
        images = test.images[browsed]
        (maps,) = network.pairs(images, [(y_pred[browsed], test.labels[browsed])])
        hidden = reasons.top_pixels(maps, reasons.COVERED, images.shape[-1])
        classes, probabilities = reasons.answers_under_covering(network, images, hidden, fill)
        # The same quarter of the same maps, at the size of the pictures on the page.
        shown = reasons.top_pixels(maps, reasons.COVERED, min(SIDE, images.shape[-1]))
        evidence |= {"maps": maps, "covered_pixels": shown}
        evidence |= {"covered_answers": classes[:, 0], "covered_probabilities": probabilities[:, 0]}
        turned = classes[:, 0] == test.labels[browsed]
        drawn = torch.randperm(len(browsed), generator=Generator().manual_seed(2))[:NUM_DRAWN]
        index = browsed[drawn]
        usual = reasons.cover_usual(network, test.images[index], y_pred[index], fill, shown.shape[-1])
        evidence |= reasons.choose_shown(drawn, test.labels[index], turned[drawn], shown[drawn], usual)
    if len(browsed):
        first = reasons.are_absurd(arrays, browsed)
        evidence |= reasons.find_puzzles(network, test.images, test.labels, browsed, fill, first)
    if network.layer is None:
        return numbers, evidence
    numbers["covering"] = reasons.measure_covering(network, test.images, test.labels, arrays["logits"], fill)
    (a_map,) = network.explain(test.images[:1], y_pred[:1])
    numbers["maps"] = {"layer": network.layer, "size": list(a_map.shape)}
    numbers["maps"]["random_weights"] = reasons.measure_random_weights(network, test.images, y_pred)
    return numbers, evidence


def about(subject: Subject) -> dict:
    """Return what reasons.json says about the network and the test images, and where to find them again."""
    network, test = subject.network, subject.test
    about = {"network": {"name": "A classifier", "maps": "no maps: only the answers are known"}}
    about["data"] = {"name": test.name, "described": pictures.described(test), **subject.facts}
    about["notes"] = [*subject.given.get("notes", []), *answers.notes_on(subject.numbers, test)]
    about["runs"] = ["this network", *subject.others]
    if network is None:
        digest = subject.numbers["checkpoint_sha256"]
        return about | {"checkpoint_sha256": digest, "test_sha256": results.digest_of_set(test)}
    about["network"] = {"name": network.name, "maps": network.layer_note}
    about["notes"] = [*network.notes, *about["notes"]]
    about["data"] |= {"size": network.model.image_size, "resize": network.model.uncropped}
    if network.training is not None:
        config = network.training["config"]
        smoothing = {"label_smoothing": config["settings"]["label_smoothing"]}
        about["training"] = smoothing | {key: config[key] for key in ("num_train", "num_val")}
    return about | results.identity(network, test)


def find_evidence(subject: Subject, kinds: Tensor, copies: Tensor | None) -> tuple[dict, dict]:
    """Return the numbers of reasons.json that a network is needed for, and the arrays of evidence.npz.

    kinds and copies int64 [N]: of each test image its kind of mistake, and its label in the training set.
    """
    test, arrays, network = subject.test, subject.arrays, subject.network
    side = SIDE if test.images is None else min(SIDE, test.images.shape[-1])
    browsed = arrays["mistakes"][: min(MAX_BROWSED, MAX_BROWSED_PIXELS // side**2)]
    probabilities = [run["probabilities"] for run in (arrays, *subject.others.values())]
    evidence = answers_to_mistakes(browsed, arrays["y_true"], probabilities) | {"kinds": kinds[browsed]}
    if copies is not None:
        evidence["copies"] = copies[browsed]
    if network is None:
        return {}, evidence
    fill = reasons.mean_colour(test if subject.train is None else subject.train)
    with Progress("reasons", 1):
        numbers, maps = find_reasons(network, test, arrays, browsed, fill)
    return numbers, evidence | maps


def write_all(subject: Subject, quick: bool = False) -> dict:
    """Write the numbers, find reasons and write them, then both pages; return both .json files in one dict.

    quick leaves out covering and maps.
    """
    out, arrays, test, train = subject.out, subject.arrays, subject.test, subject.train
    if not subject.has_report:
        subject.numbers = report.write_numbers(out, subject.numbers, arrays)
    temperature, probabilities = subject.numbers.get("temperature"), subject.given.get("probabilities")
    written, kinds = answers.further_numbers(arrays, test, temperature, subject.others, probabilities)
    copies = evidence = None
    if train is not None:
        copies = pictures.find_copies(train, test)
        written["duplicates"] = answers.duplicates(copies, test.labels, arrays["y_pred"])
    if not quick:
        numbers, evidence = find_evidence(subject, kinds, copies)
        written |= numbers
    answers.write_table(out / "answers.csv", arrays)
    written = results.write_reasons(out, written | about(subject), evidence)
    with results.of_this_version(out):
        write_explore(out, test.images)
        report.write_page(out, subject.numbers, arrays, test.images)
    return subject.numbers | written


# ---- From Python -----------------------------------------------------------------------------------------


def examine(
    model: nn.Module | Classifier,
    test: Dataset | Sequence,
    train: Dataset | None = None,
    *,
    out: Path | str,
    layer: str | None = None,
    class_names: list[str] | None = None,
    size: int | None = None,
    against: tuple = (),
    overwrite: bool = False,
) -> dict:
    """Examine a network in memory, of float images [N, 3, S, S] in [0, 1] to logits, on its device.

    test: a Dataset, or a sequence of (picture of Pillow, label), such as a data set of torchvision, whose
    classes are its `classes` or else class_names. size: the side to which the middle square of such pictures
    is brought, by default the one that all of them have; a Dataset and a Classifier have their own. train:
    the training set, if it is available. Grad-CAM explains the layer; None finds one, "none" makes no maps.
    class_names name the logits in their order, if it is not that of `test`. against: folders of other runs. A
    class without a test image counts as 0 in macro precision, recall and F1, and a note says so. A copy of
    the module is examined, in float32 and eval mode. Writes into the folder `out`, where `overwrite` replaces
    results of other weights; returns the content of metrics.json and reasons.json. Raises UserError for what
    does not fit.
    """
    out = Path(out)
    if not isinstance(test, Dataset):
        names = getattr(test, "classes", class_names)
        if names is None:
            raise UserError("these pictures have no `classes`: name those of the labels by class_names")
        side = model.model.image_size if isinstance(model, Classifier) else size
        test = pictures.from_pairs(test, [*names], side)
    if not isinstance(model, Classifier):
        device = next((parameter.device for parameter in model.parameters()), torch.device("cpu"))
        copied, side = classifiers.copied(model), test.images.shape[-1]
        model = classifiers.from_module(copied, class_names, layer, device, size=side)
    # What holds for these images, the order of classes and notes, does not stay with the caller's network.
    network = replace(model, model=copy.copy(model.model), notes=[*model.notes])
    with full_float32(network.device):
        test = classifiers.widened(test, network.class_names)
        classifiers.fit_classes(network, test)
        results.check_folder(out, network.digest, results.EXAMINED, overwrite)
        train = answers.checked_training_set(network, train, test)
        numbers, arrays = numbers_of_network(network, test)
        others = answers.read_runs([Path(run) for run in against], numbers, arrays)
        return write_all(Subject(out, test, numbers, arrays, network, train, others))


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
    overwrite: bool = False,
) -> dict:
    """Examine answers of any framework: logits float [N, C], or probabilities, which are recognised.

    y_true int [N]. All are NumPy arrays or tensors. If known: C class_names, N filenames, images uint8
    [N, 3, S, S] or [N, S, S, 3], and validation, (logits [V, C], labels [V]), to fit the temperature. Writes
    into the folder `out`, where `overwrite` replaces other answers; returns the content of metrics.json and
    reasons.json. Raises ValueError for what does not fit.
    """
    out, optional = Path(out), {"class_names": class_names, "filenames": filenames, "images": images}
    if validation is not None:
        optional |= {"val_logits": validation[0], "val_y_true": validation[1]}
    optional |= {"y_true": y_true, "logits": logits}
    given = predictions.checked({key: values for key, values in optional.items() if values is not None})
    test = predictions.test_set_of(given)
    numbers, arrays = answers.numbers_of_answers(given, test, "in memory")
    results.check_folder(out, numbers["checkpoint_sha256"], results.EXAMINED, overwrite)
    others = answers.read_runs([Path(run) for run in against], numbers, arrays)
    return write_all(Subject(out, test, numbers, arrays, others=others, given=given))


# ---- The command -----------------------------------------------------------------------------------------


def parse(argv: list[str] | None) -> argparse.Namespace:
    """Return the options of the command line."""
    parser = CommandLine(description=__doc__)
    options.add_options(parser)
    text = "in place of a network its answers, .npz or .csv, see lab/README.md"
    parser.add_argument("--predictions", type=Path, metavar="FILE", help=text)
    parser.add_argument("--data-dir", help="where CIFAR lies (default: as in training, else data)")
    text = "cifar100, cifar10, shapes or a folder (default: what the network was trained on, else cifar100)"
    parser.add_argument("--dataset", help=text)
    text = "folder of the results (default: the run, else runs/<name of the weights, model or predictions>)"
    parser.add_argument("--out", type=Path, metavar="DIR", help=text)
    text = "compare with other runs that have their reports"
    parser.add_argument("--against", type=Path, nargs="+", default=[], metavar="RUN", help=text)
    parser.add_argument("--overwrite", action="store_true", help="replace our results of other weights")
    parser.add_argument("--quick", action="store_true", help="without covering and maps, a third of the time")
    text = "make both pages of --out or of the run again from the files, without the network"
    parser.add_argument("--page", action="store_true", help=text)
    text = "end after the report unless this accuracy lies in the interval of the measured one"
    parser.add_argument("--expect-accuracy", type=float, metavar="PERCENT", help=text)
    options.add_computing_options(parser)
    return parser.parse_args(argv)


def refuse(args: argparse.Namespace, names: tuple[str, ...], reason: str) -> None:
    """Raise UserError, with the reason, if one of these options is there."""
    for name in names:
        if getattr(args, name) not in (None, False, []):
            raise UserError(f"{reason}: leave out {option(name)}")


def answers_of_network(args: argparse.Namespace) -> Subject:
    """Let the network that the options name answer, or take its answers from its report."""
    network = options.from_options(args, pick_device(args.device))
    network.model.batch_size = args.batch_size
    out = results.results_folder(network, args.out, args.dataset)
    best = out / "checkpoints" / "best.pt"
    if network.training is None or not (best.is_file() and best.samefile(network.path)):
        results.check_folder(out, network.digest, results.EXAMINED, args.overwrite)
    source = network.path or f"weights as {args.model} made them"
    print(f"network  {network.name}, {network.parameters:,} parameters, {source}")
    print(f"images   {network.input}")
    print(f"output   {network.output}")
    print(f"maps     {network.layer_note}")
    train, test = classifiers.load_data(network, args.dataset, args.data_dir, args.workers)
    print(f"data     {pictures.described(test)}\ncompute  {network.device}, {network.computes_in}")
    train = answers.checked_training_set(network, train, test)
    name, root = classifiers.find_data(network, args.dataset, args.data_dir)
    facts = {"dataset": name, "data_dir": root, "transform": network.transform}
    made = None
    if classifiers.is_own(network, args.dataset):
        made = report_of_run(network, test, out, root if name in (*CIFAR, "shapes") else name)
    numbers, arrays = made or numbers_of_network(network, test)
    return Subject(out, test, numbers, arrays, network, train, facts=facts, has_report=made is not None)


def answers_of_file(args: argparse.Namespace) -> Subject:
    """Read the answers in the file --predictions."""
    of_network = ("run", "checkpoint", "model", "layer", "batch_size", *options.OF_MODEL)
    refuse(args, of_network, "--predictions needs no network")
    out = args.out or results.folder_of(args.predictions.stem)
    given, train = predictions.read(args.predictions), None
    with reading(args.predictions, "predictions of test images"):
        test = predictions.test_set_of(given)
        if args.dataset is not None:
            size = args.size or pictures.SIZE
            with_train = not Path(args.dataset).is_dir()
            how = {"with_train": with_train, "workers": args.workers}
            train, test = pictures.load(args.dataset, args.data_dir or "data", size, **how)
            test = classifiers.widened(test, given.get("class_names"))
            if train is not None and train.class_names != test.class_names:
                train = None  # its labels have other numbers
            predictions.check_dataset(given, test, args.dataset)
    print(f"data     {pictures.described(test)}")
    numbers, arrays = answers.numbers_of_answers(given, test, str(args.predictions))
    results.check_folder(out, numbers["checkpoint_sha256"], results.EXAMINED, args.overwrite)
    facts = {"dataset": args.dataset, "data_dir": args.data_dir, "size": args.size}
    facts["predictions"] = str(args.predictions) if "images" in given else None
    return Subject(out, test, numbers, arrays, train=train, facts=facts, given=given)


def page_again(args: argparse.Namespace) -> Path:
    """Make both pages of a folder from its files and the test images; return the folder.

    Raises UserError if the files or the images are missing, or do not belong together.
    """
    unused = ("checkpoint", "layer", "size", "batch_size", "predictions", "expect_accuracy", "weights")
    unused += ("weights_key", "mean", "std", "classes", "resize", "against", "quick", "overwrite")
    refuse(args, unused, "--page measures nothing")
    if args.model is not None and args.out is None:
        raise UserError("--page with --model: name the folder of its results by --out")
    with core():
        out = args.out or args.run or report.find_checkpoint(None, None)[1]
    numbers, arrays = results.read_report(out)
    images = test_images_of(out, args, numbers)
    with results.of_this_version(out):
        write_explore(out, images)
        report.write_page(out, numbers, arrays, images)
    return out


def test_images_of(out: Path, args: argparse.Namespace, numbers: dict) -> Tensor | None:
    """Return the test images of the results in a folder, uint8 [N, 3, S, S], None if they had none.

    numbers: its metrics.json.

    A transform that they went through is run only if the command line names it again.
    """
    written, _ = results.read_reasons(out)
    if written is None:
        raise UserError(f"there are no reasons in {out}: run lab.examine without --page")
    where = written["data"]
    name, root = args.dataset or where.get("dataset"), args.data_dir or where.get("data_dir") or "data"
    if name is None and "network_sha256" in written:
        raise UserError(f"{out} is of images in memory: its page needs --dataset and --data-dir")
    if name is None:  # there never were pictures, or they lie beside the answers
        if not where.get("predictions"):
            return None
        test = predictions.test_set_of(predictions.read(Path(where["predictions"])))
    else:
        how = {"with_train": False, "workers": args.workers}
        if where.get("transform"):
            if args.transform is None or args.model is None:
                raise UserError(
                    f"its pictures went through {where['transform']}: name it by --model FILE.py:NAME "
                    f"--transform NAME"
                )
            how["transform"] = networks.read_transform(f"{args.model.rpartition(':')[0]}:{args.transform}")
        _, test = pictures.load(name, root, where.get("size") or pictures.SIZE, where.get("resize"), **how)
    if results.images_digest(test) != numbers["images_sha256"]:
        raise UserError(f"the test images are not those of {out / 'metrics.json'}: give their --data-dir")
    return test.images


def print_headline(numbers: dict) -> None:
    """Print the notes, and the main numbers with their intervals."""
    for note in numbers["notes"]:
        print(f"note     {note}")
    for name, row in report.main_numbers(numbers).items():
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
            subject = answers_of_network(args) if args.predictions is None else answers_of_file(args)
            out = subject.out
            answers.check_accuracy(subject.numbers, args.expect_accuracy)
            subject.others = answers.read_runs(args.against, subject.numbers, subject.arrays)
            command = ["python", "-m", "lab.examine", *(sys.argv[1:] if argv is None else argv)]
            subject.facts["command"] = shlex.join(command)
            numbers = write_all(subject, args.quick)
        print_headline(numbers)
        print(f"\nsaved    {out}: the files of report.py, answers.csv, reasons.json, explore.html")
    print(f"next     open {out / 'explore.html'} and report.html in a browser")
    return 0


if __name__ == "__main__":
    run_main(main)

"""Examine a run of train.py: from its checkpoint to numbers, mistakes, heat maps, plots and a page.

    python report.py                                                  the newest run under runs/
    python report.py --run runs/cifar100
    python report.py --checkpoint weights/resnet18_cifar100.pt        the network that is shipped

From top to bottom: read the checkpoint, predict the test images, evaluate the answers, explain the most
confident mistakes, write. The arithmetic stands in metrics.py and gradcam.py. In the folder are then
predictions.npz and metrics.json, and what page/ makes of them: plots/, failures/, gradcam/ and report.html.
"""

import shlex
import sys
from pathlib import Path

import torch
from torch import Tensor, nn

import metrics
from data import (
    CLASS_NAMES,
    Dataset,
    Normalize,
    cutmix_end,
    find_copies,
    images_at_once,
    load,
    memory_format,
    resize,
)
from gradcam import GradCAM
from resnet_cifar import ResNet, resnet18
from support import outputs
from support.checkpoint import read_checkpoint
from support.console import CommandLine, Progress, run_main
from support.device import environment, full_float32, pick_device
from support.errors import UserError, one_line, reading
from support.files import write_json

LAYER = "layer4"  # the last convolutional stage, which Grad-CAM explains
NUM_MAPS = 24  # how many mistakes get maps
CONFIDENT = 0.9


# ---- Read ------------------------------------------------------------------------------------------------


class FromPixels(nn.Module):
    """A network that takes float images in [0, 1] to logits [N, C]: it resizes and normalises them first.

    Images with another side are brought to image_size; `normalize` is any module from images to images.
    """

    def __init__(self, network: nn.Module, image_size: int, normalize: nn.Module):
        super().__init__()
        self.network, self.image_size, self.normalize = network, image_size, normalize

    def forward(self, images: Tensor) -> Tensor:
        return self.network(self.normalize(resize(images, self.image_size)))


def load_network(path: Path | str) -> tuple[ResNet, dict]:
    """Return the network of a checkpoint of train.py, in eval mode, and what else the checkpoint holds.

    The rest is config, epoch, history, val_accuracy, class_names, the sha256 of the file, and `validation`:
    logits float32 [V, C] and labels int64 [V], or None. Raises UserError if the file is damaged or does not
    fit.
    """
    checkpoint = read_checkpoint(path)
    with reading(path, "a checkpoint of train.py"):
        network = resnet18(len(checkpoint["class_names"]), checkpoint["config"]["width"])
        network.load_state_dict(checkpoint["model"])  # float16 in the shipped file, float32 in the network
        rest = {key: checkpoint[key] for key in ("config", "epoch", "history", "val_accuracy", "sha256")}
        rest["class_names"] = [one_line(name) for name in checkpoint["class_names"]]
        rest["validation"] = None
        if "val_logits" in checkpoint:
            rest["validation"] = checkpoint["val_logits"].float(), checkpoint["val_labels"]
    return network.eval(), rest


def find_data(config: dict, data_dir: str | None) -> tuple[str, str]:
    """Return the name of a training's data set, and the folder that holds CIFAR.

    config: config.json. data_dir: the folder with the pictures if the network was trained on a folder, else
    the folder with CIFAR. By default it is where the training found it, or data/ if that folder is gone.
    """
    dataset, recorded = config["dataset"], config["settings"]["data_dir"]
    if dataset not in CLASS_NAMES:
        return data_dir or dataset, recorded
    return dataset, data_dir or (recorded if Path(recorded).is_dir() else "data")


def load_images(
    checkpoint: dict, dataset: str, root: str, workers: int | None = None
) -> tuple[Dataset | None, Dataset, list[str]]:
    """Return the training and the test set of a checkpoint, see find_data, and notes for people.

    The training set is None if its images are not those of the training. Raises UserError if the classes
    differ.
    """
    config = checkpoint["config"]
    train, test = load(dataset, root, config["image_size"], workers=workers)
    if test.class_names != checkpoint["class_names"]:
        raise UserError(f"the classes of {test.name} are not those of the checkpoint: give its --data-dir")
    if train.digest == config["digest"]:
        return train, test, []
    return None, test, ["the training images found are not those of the training: copies are not looked for"]


# ---- Predict ---------------------------------------------------------------------------------------------


@torch.inference_mode()
def predict(
    model: nn.Module, images: Tensor, device: torch.device | str, progress: Progress | None = None
) -> Tensor:
    """Return the logits of uint8 images [N, 3, S, S], float32 [N, C] on the CPU, in the order of the images.

    model, on the device and in eval mode, takes float32 images in [0, 1]; if it has a batch_size, so many at
    once. Raises ValueError for other images.
    """
    if images.dtype != torch.uint8 or images.ndim != 4:
        raise ValueError(f"images must be uint8 [N, 3, S, S], not {images.dtype} {list(images.shape)}")
    logits, done = [], 0
    side, batch_size = (getattr(model, name, None) for name in ("image_size", "batch_size"))
    for part in images.split(images_at_once(images, side or 0, device, batch_size)):
        logits.append(model(part.to(device) / 255).float().cpu())
        done += len(part)
        if progress:
            progress.update(done)
    return torch.cat(logits)


# ---- Evaluate --------------------------------------------------------------------------------------------


def evaluate(
    logits: Tensor, test: Dataset, train: Dataset | None, validation: tuple[Tensor, Tensor] | None
) -> tuple[dict, dict]:
    """Return the numbers of metrics.json and the arrays of predictions.npz that follow from the logits.

    logits float32 [N, C] answer the test split. train is the training set and validation (logits [V, C],
    labels [V]); each is None if it is not available.
    """
    probabilities, y_pred, y_true = logits.softmax(dim=1), logits.argmax(dim=1), test.labels
    confidence = probabilities.amax(dim=1)
    confusion = metrics.confusion_matrix(y_true, y_pred, len(test.class_names))
    wrong = torch.nonzero(y_pred != y_true).flatten()
    arrays = {
        "y_true": y_true,
        "y_pred": y_pred,
        "logits": logits,
        "probabilities": probabilities,
        "confidence": confidence,
        "confusion": confusion,
        "filenames": test.filenames,
        "mistakes": wrong[confidence[wrong].argsort(descending=True, stable=True)],
    }
    numbers = metrics.bootstrap_headline(y_true, logits) | {"num_test": len(y_true)}
    numbers |= evaluate_confidence(logits, y_true, validation)
    numbers |= evaluate_classes(confusion, test, train)
    if test.superclass_of is not None:
        group, names = test.superclass_of, test.superclass_names
        numbers |= evaluate_superclasses(test, y_pred)
        arrays |= {"superclass_of": group, "superclass_names": names}
        arrays["superclass_confusion"] = metrics.confusion_matrix(group[y_true], group[y_pred], len(names))
    if train is not None:
        arrays["training_labels"], repeats = find_copies(train, test)
        numbers["duplicates"] = count_duplicates(arrays["training_labels"], repeats, y_true, y_pred)
    return numbers, arrays


def evaluate_confidence(logits: Tensor, y_true: Tensor, validation: tuple[Tensor, Tensor] | None) -> dict:
    """Return how well confidence tells right answers from wrong, as trained and `_after_temperature`."""
    numbers = evaluate_at(1.0, logits, y_true)
    if validation is not None:
        numbers["temperature"] = metrics.fit_temperature(*validation)
        scaled = evaluate_at(numbers["temperature"], logits, y_true)
        numbers |= {f"{key}_after_temperature": value for key, value in scaled.items()}
    return numbers


def evaluate_at(temperature: float, logits: Tensor, y_true: Tensor) -> dict:
    """Return how well the confidence at a temperature tells right answers from wrong.

    `calibration_bins` holds [confidence, accuracy, number of answers] for each bin that has answers.
    """
    probabilities = (logits.double() / temperature).softmax(dim=1)  # in float32 large logits round to 1
    confidence, right = probabilities.amax(dim=1), logits.argmax(dim=1) == y_true
    sure = confidence > CONFIDENT
    columns = [column.tolist() for column in metrics.calibration_bins(y_true, probabilities)]
    num_right, num_wrong = metrics.confidence_histogram(y_true, probabilities)
    return {
        "expected_calibration_error": metrics.expected_calibration_error(y_true, probabilities),
        "mean_confidence": confidence.mean().item(),
        "calibration_bins": [list(row) for row in zip(*columns, strict=True) if row[2]],
        "confident": {"answers": int(sure.sum()), "wrong": int((sure & ~right).sum())},
        "confidence_histogram": {"right": num_right.tolist(), "wrong": num_wrong.tolist()},
    }


def evaluate_classes(confusion: Tensor, test: Dataset, train: Dataset | None) -> dict:
    """Return the numbers of each class, the class it is most often taken for, and the most confused pairs."""
    precision, recall, f1 = metrics.precision_recall_f1(confusion)
    wrong = confusion.clone().fill_diagonal_(0)
    classes, names, num_test = [], test.class_names, confusion.sum(dim=1)
    for c, name in enumerate(names):
        recalled = {"low": None, "high": None}
        if num_test[c]:
            recalled = metrics.proportion(int(confusion[c, c]), int(num_test[c]))
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
            "recall_low": recalled["low"],
            "recall_high": recalled["high"],
            "most_confused_with": names[wrong[c].argmax()] if wrong[c].any() else "",
            "most_confused_with_count": int(wrong[c].max()),
        }
        classes.append(row)
    pairs = metrics.most_confused_pairs(confusion, 20)
    return {
        "classes": classes,
        "most_confused_pairs": [{"true": names[i], "predicted": names[j], "count": n} for i, j, n in pairs],
    }


def evaluate_superclasses(test: Dataset, y_pred: Tensor) -> dict:
    """Return how often the superclass is right, and which share of the mistakes stays inside it."""
    group, wrong = test.superclass_of, y_pred != test.labels
    true, predicted = group[test.labels], group[y_pred]
    return {
        "superclass_accuracy": metrics.accuracy(true, predicted),
        "errors_within_superclass": metrics.accuracy(true[wrong], predicted[wrong]) if wrong.any() else None,
        "chance_within_superclass": metrics.chance_within_superclass(group),
    }


def count_duplicates(training_labels: Tensor, num_repeats: int, y_true: Tensor, y_pred: Tensor) -> dict:
    """Count equal images: a test image that is also a training image can flatter the accuracy or spoil it.

    training_labels and num_repeats: see data.find_copies.
    """
    in_train = training_labels >= 0
    relabelled, rest = in_train & (training_labels != y_true), ~in_train
    return {
        "train_images_that_repeat_another": num_repeats,
        "test_images_in_train": int(in_train.sum()),
        "with_another_label_there": int(relabelled.sum()),
        "misclassified_as_labelled_there": int((relabelled & (y_pred == training_labels)).sum()),
        "accuracy_without_them": metrics.accuracy(y_true[rest], y_pred[rest]) if rest.any() else None,
    }


# ---- Explain ---------------------------------------------------------------------------------------------


def explain_mistakes(network: ResNet, model: FromPixels, images: Tensor, arrays: dict) -> dict:
    """Return Grad-CAM maps of the most confident mistakes, for the answer and for the true class.

    They are two float32 [m, h, w]; without a mistake the dict is empty.
    """
    chosen = arrays["mistakes"][:NUM_MAPS]
    if not len(chosen):
        return {}
    device = next(network.parameters()).device
    with GradCAM(model, network.get_submodule(LAYER)) as cam:
        pixels = images[chosen].to(device) / 255
        predicted, true = (cam(pixels, arrays[key][chosen]) for key in ("y_pred", "y_true"))
    return {"maps_predicted": predicted.cpu(), "maps_true": true.cpu()}


# ---- Write -----------------------------------------------------------------------------------------------


def write_results(out: Path, numbers: dict, arrays: dict) -> dict:
    """Write predictions.npz, then metrics.json with its digest; return the content of metrics.json.

    numbers include support.outputs.identity, which goes into both files.
    """
    arrays = arrays | {key: numbers[key] for key in outputs.IDENTITY}
    numbers = numbers | {"predictions_sha256": outputs.write_arrays(out / "predictions.npz", arrays)}
    write_json(out / "metrics.json", numbers)
    return numbers


def measure(
    path: Path,
    data_dir: str | None,
    device: torch.device,
    batch_size: int | None = None,
    workers: int | None = None,
) -> tuple[dict, dict, Dataset | None, Dataset]:
    """Examine a checkpoint of train.py; return numbers, arrays, and its training and test set.

    data_dir: see find_data; batch_size and workers: see data.images_at_once and load. Raises UserError if the
    checkpoint or its data cannot be used.
    """
    network, checkpoint = load_network(path)
    config, settings = checkpoint["config"], checkpoint["config"]["settings"]
    dataset, root = find_data(config, data_dir)
    train, test, notes = load_images(checkpoint, dataset, root, workers)
    model = FromPixels(network, config["image_size"], Normalize())
    model.batch_size = batch_size
    model.to(device, memory_format=memory_format(device)).eval()
    print(f"data     {test.provenance}\ncompute  {device}, float32")
    with full_float32(device):  # a number means the same on every machine
        with Progress("test images", len(test.labels)) as progress:
            logits = predict(model, test.images, device, progress)
        if not logits.isfinite().all():
            raise UserError(f"{path} cannot be used: its scores of the test images are not finite")
        numbers, arrays = evaluate(logits, test, train, checkpoint["validation"])
        arrays |= explain_mistakes(network, model, test.images, arrays)
    training = {key: checkpoint[key] for key in ("config", "epoch", "val_accuracy")}
    training["history"] = outputs.read_history(outputs.run_of(path), checkpoint["history"])
    training["last_cutmix"] = cutmix_end(settings["epochs"]) if settings["cutmix"] else 0
    numbers |= {
        "network": {
            "name": f"ResNet-18 of width {config['width']}",
            "parameters": sum(parameter.numel() for parameter in network.parameters()),
            "weights": str(path),
        },
        "layer": LAYER,
        "data": outputs.data_of(test, dataset, root, config["image_size"]),
        "training": training,
        "environment": environment(device),
        "notes": notes,
    }
    return numbers | outputs.identity(checkpoint["sha256"], test), arrays, train, test


def print_headline(numbers: dict) -> None:
    """Print the notes, and the main numbers with their intervals."""
    for note in numbers["notes"]:
        print(f"note     {note}")
    for name, row in outputs.headline(numbers).items():
        value, low, high = (100 * row[key] for key in ("value", "low", "high"))
        print(f"{name:20}{value:6.2f} %   95 % interval {low:.2f} to {high:.2f} %")
    print(f"{'calibration error':20}{100 * numbers['expected_calibration_error']:6.2f} %")


def main(argv: list[str] | None = None) -> int:
    """Examine one run or checkpoint and write everything; return the exit code."""
    parser = CommandLine(description=__doc__)
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--run", type=Path, help="run folder of train.py (default: the newest under runs/)")
    which.add_argument("--checkpoint", type=Path, metavar="FILE", help="a checkpoint of train.py")
    text = "where CIFAR lies, or of a run on a folder of pictures that folder (default: as in training)"
    parser.add_argument("--data-dir", metavar="DIR", help=text)
    text = "folder of the results (default: the run, or runs/<name of the checkpoint>)"
    parser.add_argument("--out", type=Path, metavar="DIR", help=text)
    parser.add_argument("--device", default="auto", help="auto, cuda, mps or cpu (default: auto)")
    args = parser.parse_args(argv)
    path = args.checkpoint or outputs.best_checkpoint(args.run)
    out = args.out or outputs.results_folder(path)
    print(f"network  {path}")
    if out != outputs.run_of(path):
        outputs.check_owner(out, read_checkpoint(path)["sha256"])

    from page.write import write_page  # matplotlib and Jinja2, without which --help is quicker

    numbers, arrays, _, test = measure(path, args.data_dir, pick_device(args.device))
    numbers["command"] = shlex.join(["python", "report.py", *(sys.argv[1:] if argv is None else argv)])
    write_results(out, numbers, arrays)
    write_page(out, test.images)
    print_headline(numbers)
    print(f"\nsaved    {out}: metrics.json, predictions.npz, plots/, failures/, gradcam/, report.html")
    print(f"next     open {out / 'report.html'} in a browser")
    named = f"--run {out}" if out == outputs.run_of(path) else f"--checkpoint {path}"
    print(f"more     python -m lab.examine {named}: do the maps mean anything, and a page to explore")
    return 0


if __name__ == "__main__":
    run_main(main)

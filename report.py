"""Evaluate a trained network on the test split, explain its failures, and write a report.

    python report.py                       the newest run under runs/
    python report.py --run runs/shapes     that run
    python report.py --checkpoint FILE     a checkpoint alone; the report goes to runs/<its name>/
    python report.py --run A --against B   A compared with B, which has been reported on the same test images

Writes metrics.json, predictions.npz, plots/, failures/, gradcam/ and report.html into the run folder. The
numbers are computed in metrics.py, in float32 on every machine; the words around them stand in page/*.html.
"""

import math
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import metrics
from data import MEAN, Dataset, Normalize, first_copy
from gradcam import GradCAM, overlay, to_heatmap
from page import against, plots, sections
from page.page import enlarge, fill, interval, percent, plain, png, write_page
from resnet_cifar import count_parameters_and_macs
from running.console import CommandLine, Progress, run_main
from running.device import environment, pick_device, use_full_float32
from running.files import UserError, usable, whole_file, write_csv, write_json
from running.folder import FAILURES, claim_folder, delete, find_checkpoint, read_history, results_folder
from stress_tests.explanations import cascading_randomization, deletion_insertion
from train import last_cutmix_epoch, load_data, load_model, predict

LAYER = "layer4"  # the stage that Grad-CAM explains; gradcam.py says why
NUM_FAILURES = 20
NUM_EXPLAINED = 50  # images for the deletion, insertion and randomisation checks
STEPS = 16  # of the deletion and insertion curves


# ---- Evaluate --------------------------------------------------------------------------------------------


def evaluate(logits: Tensor, test: Dataset, train: Dataset, temperature: float | None = None) -> dict:
    """Return the numbers of metrics.json from the logits, float32 [N, C], of the test split.

    temperature was fitted on the validation split, if its logits are known.
    """
    probabilities = logits.softmax(dim=1)
    y_true, y_pred = test.labels, probabilities.argmax(dim=1)
    confusion = metrics.confusion_matrix(y_true, y_pred, len(test.class_names))
    within = metrics.share_of_errors_within_superclass(y_true, y_pred, test.superclass_of)
    result = metrics.bootstrap_headline(y_true, probabilities) | {
        "num_test": len(y_true),
        "superclass_accuracy": metrics.superclass_accuracy(y_true, y_pred, test.superclass_of),
        "errors_within_superclass": finite(within),
        # From the logits: a probability that rounds to 0 would make it infinite.
        "negative_log_likelihood": F.cross_entropy(logits, y_true).item(),
        "brier_score": metrics.brier_score(y_true, probabilities),
        "expected_calibration_error": metrics.expected_calibration_error(y_true, probabilities),
        "aurc": metrics.aurc(y_true, probabilities),
    }
    if temperature is not None:
        after = metrics.expected_calibration_error(y_true, (logits / temperature).softmax(dim=1))
        result |= {"temperature": temperature, "expected_calibration_error_after_temperature": after}
    result["duplicates"] = audit_duplicates(train, test, y_pred)
    result["classes"] = evaluate_classes(confusion, train, test)
    result["most_confused_pairs"] = [
        {"true": test.class_names[i], "predicted": test.class_names[j], "count": count}
        for i, j, count in metrics.most_confused_pairs(confusion, 20)
    ]
    return result


def finite(value: float) -> float | None:
    """Return None for NaN, which JSON does not have."""
    return None if math.isnan(value) else value


def audit_duplicates(train: Dataset, test: Dataset, y_pred: Tensor) -> dict:
    """Count equal images; a test image that is also a training image can flatter the accuracy."""
    copies = first_copy(torch.cat([train.images, test.images]))
    repeats = copies != torch.arange(len(copies))
    in_train = copies[len(train.labels) :] < len(train.labels)
    rest = ~in_train
    return {
        "train_images_that_repeat_another": int(repeats[: len(train.labels)].sum()),
        "test_images_that_repeat_another": int((repeats[len(train.labels) :] & rest).sum()),
        "test_images_in_train": int(in_train.sum()),
        "accuracy_without_them": metrics.accuracy(test.labels[rest], y_pred[rest]) if rest.any() else None,
    }


def evaluate_classes(confusion: Tensor, train: Dataset, test: Dataset) -> list[dict]:
    """Return one row for each class: its numbers and what it is mistaken for most often."""
    precision, recall, f1 = metrics.precision_recall_f1(confusion)
    wrong = confusion.clone().fill_diagonal_(0)
    num_train = train.labels.bincount(minlength=len(test.class_names))
    return [
        {
            "name": name,
            "superclass": test.superclass_names[test.superclass_of[c]],
            "num_train": int(num_train[c]),
            "num_test": int(confusion[c].sum()),
            "precision": precision[c].item(),
            "recall": recall[c].item(),
            "f1": f1[c].item(),
            "most_confused_with": test.class_names[wrong[c].argmax()] if wrong[c].any() else "",
            "most_confused_with_count": int(wrong[c].max()),
        }
        for c, name in enumerate(test.class_names)
    ]


# ---- Find and explain ------------------------------------------------------------------------------------


def most_confident_misclassified(probabilities: Tensor, y_true: Tensor) -> Tensor:
    """Return the indices, int64, of the wrong predictions, those with the highest probability first."""
    confidence, y_pred = probabilities.max(dim=1)
    wrong = torch.nonzero(y_pred != y_true).flatten()
    return wrong[confidence[wrong].argsort(descending=True, stable=True)]


def list_failures(misclassified: Tensor, probabilities: Tensor, test: Dataset) -> list[dict]:
    """Return the rows of failures.csv: the first NUM_FAILURES of the misclassified images, int64 indices."""
    rows = []
    for i in misclassified[:NUM_FAILURES].tolist():
        true, predicted = test.labels[i].item(), probabilities[i].argmax().item()
        true_class, predicted_class = test.class_names[true], test.class_names[predicted]
        stem = f"{len(rows) + 1:02d}_{true_class}_as_{predicted_class}".replace(" ", "-")
        rows.append(
            {
                "rank": len(rows) + 1,
                "test_index": i,
                "file_name": test.filenames[i],
                "true_class": true_class,
                "predicted_class": predicted_class,
                "probability_predicted": round(probabilities[i, predicted].item(), 6),
                "probability_true": round(probabilities[i, true].item(), 6),
                "picture": f"failures/{stem}.png",
                "gradcam": f"gradcam/{stem}.png",
            }
        )
    return rows


def explain(model: nn.Module, images: Tensor, classes: Tensor) -> Tensor:
    """Return Grad-CAM maps at LAYER, float32 [N, h, w] on the CPU.

    model is nn.Sequential(Normalize(), network); images float32 [N, 3, H, W] in [0, 1]; classes int64 [N].
    """
    device = next(model.parameters()).device
    parts = zip(images.split(100), classes.split(100), strict=True)
    with GradCAM(model, f"1.{LAYER}") as cam:
        return torch.cat([cam(some.to(device), target.to(device)).cpu() for some, target in parts])


def write_failures(out: Path, model: nn.Module, test: Dataset, failures: list[dict]) -> dict[str, Tensor]:
    """Write failures/ and gradcam/ in place of those of an earlier report, which may have had more.

    Returns the evidence for the "predicted" and for the "true" class, laid over the pictures, each
    uint8 [K, 3, 256, 256].
    """
    delete(out, FAILURES)
    if not failures:
        return {}
    images = test.images[[row["test_index"] for row in failures]]
    pictures, evidence = enlarge(images, 8), {}
    for kind in ("predicted", "true"):
        classes = torch.tensor([test.class_names.index(row[f"{kind}_class"]) for row in failures])
        maps = explain(model, images / 255, classes)
        evidence[kind] = overlay(pictures / 255, to_heatmap(maps, pictures.shape[-1]))
    for row, *panels in zip(failures, pictures, evidence["predicted"], evidence["true"], strict=True):
        with whole_file(out / row["picture"]) as temporary:
            temporary.write_bytes(png(panels[0]))
        titles = [row["file_name"]]
        for kind in evidence:
            probability = percent(row[f"probability_{kind}"])
            titles.append(f"evidence for {plain(row[f'{kind}_class'])}\n({kind}, {probability})")
        figure = plots.gradcam_triptych(titles, [panel.permute(1, 2, 0).numpy() for panel in panels])
        with whole_file(out / row["gradcam"]) as temporary:
            plots.save_png(figure, temporary)
    write_csv(out / "failures" / "failures.csv", failures)
    return evidence


def check_explanations(model: nn.Module, test: Dataset, y_pred: Tensor, progress: Progress) -> dict:
    """Measure on a seeded sample of test images whether Grad-CAM shows what the network uses.

    Deletion and insertion are compared with random maps of the same resolution; then come the cascading
    randomisation of the weights and, where the set knows where the object is, the pointing game.
    """
    generator = torch.Generator().manual_seed(0)
    sample = torch.randperm(len(test.labels), generator=generator)[:NUM_EXPLAINED]
    images, classes = test.images[sample].to(next(model.parameters()).device) / 255, y_pred[sample]
    maps = explain(model, images, classes)
    random_maps = torch.rand(maps.shape, generator=generator)
    result = {"layer": LAYER, "images": len(sample), "map_size": list(maps.shape[1:])}
    colour = torch.tensor(MEAN)  # which takes the place of deleted pixels
    for done, mode in enumerate(("deletion", "insertion"), start=1):
        areas = {}
        for name, some_maps in {"gradcam": maps, "random": random_maps}.items():
            heatmaps = to_heatmap(some_maps, images.shape[-1])
            curves, areas[name] = deletion_insertion(model, images, heatmaps, classes, colour, STEPS, mode)
            curve = [round(value, 5) for value in curves.mean(dim=0).tolist()]
            result[f"{mode}_{name}"] = {"curve": curve, "area": areas[name].mean().item()}
        # Both maps are tested on the same images, so there is one difference for each image. Its standard
        # error, s / sqrt(n) with n - 1 in s, is written so that a single image has 0.
        difference = areas["gradcam"] - areas["random"]
        error = difference.std(correction=0).item() / math.sqrt(max(1, len(difference) - 1))
        result[f"{mode}_difference"] = {"value": difference.mean().item(), "standard_error": error}
        progress.update(done)
    # From the classifier downwards; model[1] is the network behind its normalisation.
    children = [name for name, child in model[1].named_children() if list(child.parameters())]
    modules = [f"1.{name}" for name in reversed(children)]
    correlations = cascading_randomization(model, images, explain, modules)
    result["randomization"] = {
        name.removeprefix("1."): finite(values.nanmean().item()) for name, values in correlations.items()
    }
    progress.update(3)
    if test.masks is not None:
        sample = torch.randperm(len(test.labels), generator=generator)[:1000]
        maps = explain(model, test.images[sample] / 255, y_pred[sample])
        heatmaps = to_heatmap(maps, test.images.shape[-1])
        hits, chance = metrics.pointing_game(heatmaps, test.masks[sample])
        low, high = metrics.wilson_interval(hits, len(sample))
        numbers = {"images": len(sample), "value": hits / len(sample), "low": low, "high": high}
        result["pointing_game"] = numbers | {"chance": chance}
    return result


# ---- The command -----------------------------------------------------------------------------------------


def write_predictions(path: Path, logits: Tensor, test: Dataset, checkpoint_sha256: str) -> None:
    """Write predictions.npz, which --against reads."""
    probabilities = logits.softmax(dim=1)
    with whole_file(path) as temporary, open(temporary, "wb") as file:
        np.savez_compressed(
            file,
            y_true=test.labels.numpy(),
            y_pred=probabilities.argmax(dim=1).numpy(),
            probabilities=probabilities.numpy(),
            images_sha256=against.digest(test.images),
            checkpoint_sha256=checkpoint_sha256,
        )


def print_numbers(result: dict) -> None:
    """Print the most important numbers; the page shows all of them."""
    print()
    for key, name in sections.HEADLINE.items():
        print(f"{name:20}{percent(result[key]['value'], 2):>9}   {interval(result[key], 2)}")
    print(f"{'calibration error':20}{percent(result['expected_calibration_error'], 2):>9}")
    print(f"{'superclass accuracy':20}{percent(result['superclass_accuracy'], 2):>9}")


def main(argv: list[str] | None = None) -> int:
    """Evaluate one checkpoint and write everything; return the exit code."""
    parser = CommandLine(description=__doc__)
    parser.add_argument("--run", type=Path, help="the run folder (default: the newest under runs/)")
    parser.add_argument("--checkpoint", type=Path, metavar="FILE", help="default: best.pt of the run")
    parser.add_argument("--data-dir", help="where CIFAR-100 lies (default: as in training, else data)")
    parser.add_argument("--against", type=Path, metavar="RUN", help="compare with this run's own report")
    args = parser.parse_args(argv)
    path = find_checkpoint(args.run, args.checkpoint)
    write_report(path, results_folder(path), args.data_dir, args.against)
    return 0


def write_report(path: Path, out: Path, data_dir: str | None, other: Path | None) -> None:
    """Evaluate the checkpoint at `path` and write everything into the folder `out`; see the options."""
    use_full_float32()
    device = pick_device("auto")
    network, checkpoint = load_model(path, device)
    train, test = load_data(path, checkpoint, data_dir)
    if other and other.resolve() == out.resolve():
        raise UserError(f"--against {other} is the run itself: name another one")
    if other:
        against.read_predictions(other, test)
    claim_folder(out, path, checkpoint["sha256"])
    print(f"data     {test.provenance}")
    print(f"network  {path}, epoch {checkpoint['epoch']}, on {device} in fp32")

    # What comes from outside is drawn first: a file that cannot be used costs no waiting.
    plots_folder, parts = out / "plots", {}
    with usable(path, "a checkpoint"):
        temperature = None
        if "val_logits" in checkpoint:
            temperature = metrics.fit_temperature(checkpoint["val_logits"].float(), checkpoint["val_labels"])
        # A checkpoint from elsewhere carries the history up to its epoch.
        history = read_history(out) if (out / "logs" / "history.csv").exists() else checkpoint["history"]
        last_cutmix = last_cutmix_epoch(checkpoint["config"]["settings"]["epochs"])
        about = fill("network", **checkpoint)
        parts["training"] = sections.training(checkpoint, history, last_cutmix, plots_folder)
        layers = count_parameters_and_macs(network)
        parts["reproduction"] = sections.reproduction(path, checkpoint, environment(device), layers, test)
    parts["stress"] = sections.stress(out / "stress.json", checkpoint["sha256"], test.images, plots_folder)

    # Evaluate.
    with Progress("test images", len(test.labels)) as progress:
        size = checkpoint["config"]["image_size"]
        logits = predict(network, test.images, device, image_size=size, progress=progress)
    if not logits.isfinite().all():
        raise UserError(f"{path} cannot be used: with its weights the scores of images are not finite")
    probabilities = logits.softmax(dim=1)
    y_pred = probabilities.argmax(dim=1)
    write_predictions(out / "predictions.npz", logits, test, checkpoint["sha256"])
    result = {"checkpoint_sha256": checkpoint["sha256"]} | evaluate(logits, test, train, temperature)

    # Find the failures and explain them.
    misclassified = most_confident_misclassified(probabilities, test.labels)
    failures = list_failures(misclassified, probabilities, test)
    model = nn.Sequential(Normalize(size), network).to(device).eval()
    evidence = write_failures(out, model, test, failures)
    with Progress("checking the explanations", 3) as progress:
        result["explanations"] = check_explanations(model, test, y_pred, progress)
    write_json(out / "metrics.json", result)

    # Draw the rest and fill the page.
    parts["headline"] = sections.headline(result, about, test, plots_folder)
    comparison = against.section(out, other, test) if other else ""
    parts["failures"] = sections.failures(result, test, y_pred, comparison, plots_folder)
    parts["mistakes"] = sections.mistakes(misclassified, probabilities, failures, evidence, result, test)
    parts["confidence"] = sections.confidence(result, logits, test.labels, plots_folder)
    parts["explanations"] = sections.explanations(result["explanations"], plots_folder)
    parts["data"] = sections.data_set(result, test)
    write_page(out / "report.html", run=out.name, **parts)

    print_numbers(result)
    print(f"\nsaved    {out / 'metrics.json'}, predictions.npz, plots/, failures/, gradcam/")
    megabytes = (out / "report.html").stat().st_size / 1e6
    print(f"next     open {out / 'report.html'} in a browser ({megabytes:.1f} MB)")


if __name__ == "__main__":
    run_main(main)

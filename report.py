"""Evaluate a trained network on the test split, explain its failures, and write a report.

    python report.py                       the newest run under runs/
    python report.py --run runs/shapes     that run
    python report.py --checkpoint FILE     a checkpoint alone; the report goes to runs/<its name>/
    python report.py --run A --against B   A compared with B, which has been reported on the same test images

Writes metrics.json, predictions.npz, plots/, failures/, gradcam/ and report.html into the run folder. The
numbers are computed in metrics.py; the words around them stand in page/report.html.
"""

import math
import shlex
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from running.check import check_reported
from torch import Tensor, nn

import metrics
from data import MEAN, Dataset, Normalize, first_copy
from gradcam import GradCAM, overlay, to_heatmap
from page import against, plots, sections
from page.page import Markup, code, enlarge, fill, interval, percent, plain, png, table, write_page
from resnet_cifar import count_parameters_and_macs
from running.console import CommandLine, Progress, option, run_main
from running.device import environment, pick_device, pick_precision
from running.files import whole_file, write_csv, write_json
from running.folder import (
    FAILURES,
    claim_folder,
    delete,
    find_results,
    lock_run,
    read_history,
    read_stress,
)
from stress import check_results, measure, measure_attack, planned_tests, summarise
from stress_tests import attacks, corruptions
from stress_tests.corruptions import examples
from stress_tests.explanations import cascading_randomization, deletion_insertion, randomize, spearman
from train import last_cutmix_epoch, load_data, load_model, predict, train_one_epoch, warmup_cosine

LAYER = "layer3"  # the stage that Grad-CAM explains; gradcam.py says why
NUM_FAILURES = 20
NUM_EXPLAINED = 50  # images for the deletion, insertion and randomisation checks
STEPS = 16  # of the deletion and insertion curves


# ---- Evaluate --------------------------------------------------------------------------------------------


def evaluate(logits: Tensor, test: Dataset, train: Dataset, checkpoint: dict) -> dict:
    """Return the numbers of metrics.json from the logits, float32 [N, C], of the test split."""
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
    if "val_logits" in checkpoint:
        temperature = metrics.fit_temperature(checkpoint["val_logits"].float(), checkpoint["val_labels"])
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
    mistakes = confusion.clone().fill_diagonal_(0)
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
            "most_common_mistake": test.class_names[mistakes[c].argmax()] if mistakes[c].any() else "",
            "most_common_mistake_count": int(mistakes[c].max()),
        }
        for c, name in enumerate(test.class_names)
    ]


# ---- Explain ---------------------------------------------------------------------------------------------


def explain(model: nn.Module, images: Tensor, classes: Tensor) -> Tensor:
    """Return Grad-CAM maps at LAYER, float32 [N, h, w] on the CPU.

    model is nn.Sequential(Normalize(), network); images float32 [N, 3, H, W] in [0, 1]; classes int64 [N].
    """
    device = next(model.parameters()).device
    parts = zip(images.split(100), classes.split(100), strict=True)
    with GradCAM(model, f"1.{LAYER}") as cam:
        return torch.cat([cam(some.to(device), target.to(device)).cpu() for some, target in parts])


def most_confident_mistakes(probabilities: Tensor, y_true: Tensor, count: int) -> Tensor:
    """Return the indices, int64, of the wrong predictions with the highest probability, the highest first."""
    confidence, y_pred = probabilities.max(dim=1)
    wrong = torch.nonzero(y_pred != y_true).flatten()
    return wrong[confidence[wrong].argsort(descending=True, stable=True)[:count]]


def find_failures(probabilities: Tensor, test: Dataset) -> list[dict]:
    """Return the rows of failures.csv: the most confident mistakes."""
    rows = []
    for i in most_confident_mistakes(probabilities, test.labels, NUM_FAILURES).tolist():
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
        figure = plots.gradcam_triptych(
            *(panel.permute(1, 2, 0).numpy() for panel in panels),
            *(
                f"evidence for {plain(row[f'{kind}_class'])}\n({kind}, {percent(row[f'probability_{kind}'])})"
                for kind in ("predicted", "true")
            ),
            row["file_name"],
        )
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
        share = {"value": hits / len(sample), "low": low, "high": high}
        result["pointing_game"] = {"images": len(sample), **share, "chance": chance}
    return result


# ---- The page --------------------------------------------------------------------------------------------


def stress_of(out: Path, checkpoint: dict) -> dict | None:
    """Return the results of stress.py for this very checkpoint if all its tests are among them, or None."""
    results = read_stress(out)
    planned = {f"{name}/{level:g}" for name, level in planned_tests()}
    finished = results and "checks" in results and planned <= results["tests"].keys()
    return results if finished and results["fingerprint"]["checkpoint"] == checkpoint["sha256"] else None


def learning_rates(epochs: int, config: dict) -> list[float]:
    """Return the learning rate of every step of the first `epochs` epochs."""
    settings = config["settings"]
    steps_per_epoch = config["num_train"] // settings["batch_size"]
    total_steps = settings["epochs"] * steps_per_epoch
    warmup_steps = round(settings["warmup_epochs"] * steps_per_epoch)
    steps = range(epochs * steps_per_epoch)
    return [warmup_cosine(step, total_steps, warmup_steps, settings["lr"]) for step in steps]


def reproduction(path: Path, checkpoint: dict, network: nn.Module, test: Dataset) -> dict:
    """The commands, versions, hardware, digest of the data, and complexity of the network."""
    config, layers = checkpoint["config"], count_parameters_and_macs(network)
    options = []
    for name, value in config["settings"].items():
        if value is not None and value is not False:
            text = option(name) if value is True else f"{option(name)} {shlex.quote(str(value))}"
            options.append(fill("option", text=text))
    here = environment(next(network.parameters()).device)
    facts = [[f"training: {name}", str(value)] for name, value in config["environment"].items()]
    facts += [[f"report: {name}", str(value)] for name, value in here.items()]
    facts += [["checkpoint", str(path)], ["data", test.provenance], ["test digest (sha256)", test.digest]]
    return {
        "options": Markup(" ".join(options)),
        "out": shlex.quote(config["settings"]["out"]),
        "facts_table": table("Versions and data", ["what", "value"], facts),
        "total_parameters": sum(layer["parameters"] for layer in layers),
        "total_macs": f"{sum(layer['macs'] for layer in layers) / 1e9:.3f}",
        "layer_table": sections.layer_table(layers),
    }


def page_values(
    folder: Path,
    checkpoint: dict,
    history: list,
    stress: dict | None,
    result: dict,
    logits: Tensor,
    test: Dataset,
) -> dict:
    """Draw the plots into the folder; return what page/report.html needs, except gallery and reproduction."""
    config, y_pred = checkpoint["config"], logits.softmax(dim=1).argmax(dim=1)
    pictures = examples(test.images) if stress else {}
    rates = learning_rates(len(history), config)
    last_cutmix = last_cutmix_epoch(config["settings"]["epochs"])
    sources = {f"code_{place}": code(functions) for place, functions in CODE.items()}
    return {
        **sources,
        # Single numbers of metrics.json: report.html can show any of them under its own name.
        **{key: value for key, value in result.items() if isinstance(value, int | float)},
        **{key: config[key] for key in ("width", "parameters", "num_train", "num_val")},
        "epoch": checkpoint["epoch"],
        "epochs": config["settings"]["epochs"],
        "val_accuracy": percent(checkpoint["val_accuracy"], 2),
        "provenance": test.provenance,
        **sections.headline(result, test, folder, sources),
        "training": sections.training(history, rates, last_cutmix, config, folder, sources),
        **sections.mistakes(result, test, y_pred, folder),
        **sections.confidence(result, logits, test.labels, folder),
        "stress": sections.stress(stress, pictures, folder, sources),
        **sections.explanations(result["explanations"], folder),
        **sections.data_set(result, test),
    }


# Whose source stands beside which number, table or plot of the page.
CODE = {
    "accuracy": [metrics.accuracy],
    "macro_precision": [metrics.precision_recall_f1, metrics.macro_average],
    "macro_recall": [metrics.precision_recall_f1, metrics.macro_average],
    "macro_f1": [metrics.precision_recall_f1, metrics.macro_average],
    "top5_accuracy": [metrics.top_k_accuracy],
    "headline_metrics": [
        metrics.bootstrap_headline,
        metrics._resampled_headline,
        metrics._headline,
        metrics._with_intervals,
        metrics.headline,
        plots.headline_bars,
    ],
    "history": [train_one_epoch, predict, plots.training_curve],
    "learning_rate": [warmup_cosine, plots.learning_rate],
    "superclass_accuracy": [metrics.superclass_accuracy, metrics.share_of_errors_within_superclass],
    "worst_classes": [metrics.per_class_accuracy, plots.worst_classes],
    "confused_pairs": [metrics.most_confused_pairs],
    "superclass_confusion": [metrics.superclass_confusion, plots.superclass_confusion],
    "confusion_matrix": [metrics.confusion_matrix, plots.confusion_matrix],
    "class_table": [evaluate_classes, metrics.precision_recall_f1],
    "mistakes": [most_confident_mistakes, sections.browser],
    "gallery": [GradCAM, to_heatmap, overlay],
    "calibration": [metrics.expected_calibration_error, metrics.fit_temperature],
    "reliability": [metrics.calibration_bins, plots.reliability],
    "confidence": [plots.confidence_histogram],
    "risk_coverage": [metrics.risk_coverage, metrics.aurc, plots.risk_coverage],
    "stress_severity": [measure, summarise, plots.stress_severity],
    "corruption_table": [corruptions.corrupt, corruptions.Corruption.__call__],
    "stress_examples": [examples, *(corruption.function for corruption in corruptions.TABLE)],
    "broken_table": [summarise],
    "stress_radius": [
        measure_attack,
        attacks.fgsm,
        attacks.pgd,
        attacks.apgd,
        attacks.random_corner,
        plots.stress_radius,
    ],
    "check_table": [check_results, attacks.check_attacks],
    "deletion_insertion": [deletion_insertion, plots.deletion_insertion],
    "randomization_table": [cascading_randomization, randomize, spearman],
    "duplicates": [audit_duplicates, first_copy],
    "layer_table": [count_parameters_and_macs],
}


# ---- The command -----------------------------------------------------------------------------------------


def print_numbers(result: dict) -> None:
    """Print the most important numbers; the page shows all of them."""
    print()
    for key, name in sections.HEADLINE.items():
        print(f"{name:20}{percent(result[key]['value'], 2):>9}   {interval(result[key], 2)}")
    print(f"{'calibration error':20}{percent(result['expected_calibration_error'], 2):>9}")
    print(f"{'superclass accuracy':20}{percent(result['superclass_accuracy'], 2):>9}")


def write_report(path: Path, out: Path, data_dir: str | None, other: Path | None) -> None:
    """Evaluate the checkpoint at `path` and write everything into the folder `out`; see the options."""
    device = pick_device("auto")
    precision = pick_precision("auto", device)
    network, checkpoint = load_model(path, device)
    check_reported(checkpoint, path)
    config = checkpoint["config"]
    # A checkpoint from elsewhere carries the history up to its epoch.
    history = read_history(out) if (out / "logs" / "history.csv").exists() else checkpoint["history"]
    train, test = load_data(path, checkpoint, data_dir)
    stress = stress_of(out, checkpoint)
    if other:
        against.check(out, other, test)
    claim_folder(out, path, checkpoint["sha256"])
    print(f"data     {test.provenance}")
    print(f"network  {path}, epoch {checkpoint['epoch']}, on {device} in {precision}")

    # Evaluate.
    with Progress("test images", len(test.labels)) as progress:
        logits = predict(network, test.images, device, precision, config["image_size"], progress=progress)
    probabilities = logits.softmax(dim=1)
    y_pred = probabilities.argmax(dim=1)
    with whole_file(out / "predictions.npz") as temporary, open(temporary, "wb") as file:
        np.savez_compressed(
            file,
            y_true=test.labels.numpy(),
            y_pred=y_pred.numpy(),
            probabilities=probabilities.numpy(),
            images_sha256=against.digest(test.images),
            checkpoint_sha256=checkpoint["sha256"],
        )
    result = evaluate(logits, test, train, checkpoint)

    # Explain.
    model = nn.Sequential(Normalize(config["image_size"]), network).to(device).eval()
    failures = find_failures(probabilities, test)
    evidence = write_failures(out, model, test, failures)
    with Progress("checking the explanations", 3) as progress:
        result["explanations"] = check_explanations(model, test, y_pred, progress)
    write_json(out / "metrics.json", result)

    # Draw the plots and fill the page.
    values = page_values(out / "plots", checkpoint, history, stress, result, logits, test)
    values |= sections.gallery(failures, evidence, test, result["explanations"])
    order = most_confident_mistakes(probabilities, test.labels, len(test.labels))
    values |= sections.browser(order, probabilities, test)
    values |= reproduction(path, checkpoint, network, test)
    values["against"] = against.section(out, other, test) if other else ""
    write_page(out / "report.html", run=out.name, **values)

    print_numbers(result)


def main(argv: list[str] | None = None) -> int:
    """Evaluate one checkpoint and write everything; return the exit code."""
    parser = CommandLine(description=__doc__)
    parser.add_argument("--run", type=Path, help="the run folder (default: the newest under runs/)")
    parser.add_argument(
        "--checkpoint", type=Path, metavar="FILE", help="default: checkpoints/best.pt of the run"
    )
    parser.add_argument(
        "--data-dir", help="where CIFAR-100 lies (default: where training found it, else data)"
    )
    parser.add_argument(
        "--against", type=Path, metavar="RUN", help="compare with this run, whose report has been made"
    )
    args = parser.parse_args(argv)

    path, out = find_results(args.run, args.checkpoint)
    with lock_run(out):
        write_report(path, out, args.data_dir, args.against)
    print(f"\nsaved    {out / 'metrics.json'}, predictions.npz, plots/, failures/, gradcam/")
    print(f"next     open {out / 'report.html'} in a browser")
    return 0


if __name__ == "__main__":
    run_main(main)

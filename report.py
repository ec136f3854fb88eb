"""Evaluate a trained network on the test split, explain its failures, and write a report.

    python report.py                       the newest run under runs/
    python report.py --run runs/shapes     that run
    python report.py --checkpoint FILE     a checkpoint alone; the report goes to runs/<its name>/
    python report.py --run A --against B C   A compared with runs that have been reported on the same images

Writes metrics.json, predictions.npz, plots/, failures/, gradcam/ and report.html into the run folder. The
numbers are computed in metrics.py, in float32 on every machine; the words around them stand in page/*.html.
"""

import itertools
import math
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import metrics
from data import MEAN, Dataset, Normalize, first_copy, split_indices
from gradcam import GradCAM, draw, overlay, to_heatmap
from page import against, plots, sections
from page.page import Markup, fill, interval, percent, plain, png, write_page
from resnet_cifar import count_parameters_and_macs
from running.console import CommandLine, Progress, duration, run_main
from running.device import environment, pick_device
from running.files import UserError, usable, whole_file, write_csv, write_json
from running.folder import FAILURES, claim_folder, delete, find_checkpoint, read_history, results_folder
from stress_tests.attacks import full_float32
from stress_tests.explanations import cascading_randomization, deletion_insertion
from stress_tests.lookalikes import most_similar
from train import fitted_temperature, last_cutmix_epoch, load_data, load_model, predict

LAYER = "layer4"  # the stage that Grad-CAM explains; gradcam.py says why
NUM_FAILURES = 20
MAX_BROWSED = 2500  # misclassified images on the page, the most confident ones
NUM_EXPLAINED = 100  # images for deletion and insertion
NUM_RANDOMIZED = 40  # some of them, for the randomisation of the weights
STEPS = 16  # of the deletion and insertion curves
LOOKALIKE = 0.95  # similarity from which a training image counts as a look-alike of a test image


# ---- Evaluate --------------------------------------------------------------------------------------------


def evaluate(logits: Tensor, test: Dataset, train: Dataset, temperature: float | None = None) -> dict:
    """Return the numbers of metrics.json from the logits, float32 [N, C], of the test split.

    temperature was fitted on the validation split, if its logits are known.
    """
    probabilities = logits.softmax(dim=1)
    y_true, y_pred = test.labels, probabilities.argmax(dim=1)
    confusion = metrics.confusion_matrix(y_true, y_pred, len(test.class_names))
    wrong, of = y_pred != y_true, test.superclass_of
    within = metrics.superclass_accuracy(y_true[wrong], y_pred[wrong], of) if wrong.any() else None
    result = metrics.bootstrap_headline(y_true, probabilities) | {
        "num_test": len(y_true),
        "superclass_accuracy": metrics.superclass_accuracy(y_true, y_pred, of),
        "errors_within_superclass": within,
        "chance_within_superclass": metrics.chance_within_superclass(of),
        "brier_score": metrics.brier_score(y_true, probabilities),
        "aurc": metrics.aurc(y_true, probabilities),
    }
    confidence = probabilities.amax(dim=1).double()
    sure = confidence > 0.9
    result["confident"] = {
        "answers": int(sure.sum()),
        "wrong": int((sure & wrong).sum()),
        "mean_confidence": finite(confidence[sure].mean().item()),
    }
    if temperature is not None:
        result["temperature"] = temperature
    for when, divisor in {"": 1.0, "_after_temperature": temperature}.items():
        if divisor is not None:
            scaled, rows = logits / divisor, (logits / divisor).softmax(dim=1)
            # From the logits: a probability that rounds to 0 would make it infinite.
            result[f"negative_log_likelihood{when}"] = F.cross_entropy(scaled, y_true).item()
            result[f"expected_calibration_error{when}"] = metrics.expected_calibration_error(y_true, rows)
            result[f"mean_confidence{when}"] = rows.amax(dim=1).double().mean().item()
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
    """Count equal images; a test image that is also a training image can flatter the accuracy or spoil it."""
    copies, n = first_copy(torch.cat([train.images, test.images])), len(train.labels)
    repeats = copies != torch.arange(len(copies))
    in_train = copies[n:] < n
    rest = ~in_train
    of_train = train.labels[copies[n:][in_train]]
    relabelled = of_train != test.labels[in_train]
    return {
        "train_images_that_repeat_another": int(repeats[:n].sum()),
        "test_images_that_repeat_another": int((repeats[n:] & rest).sum()),
        "test_images_in_train": int(in_train.sum()),
        "with_another_label_there": int(relabelled.sum()),
        "misclassified_as_labelled_there": int((relabelled & (y_pred[in_train] == of_train)).sum()),
        "accuracy_without_them": metrics.accuracy(test.labels[rest], y_pred[rest]) if rest.any() else None,
    }


def nearest_in_training(test: Dataset, train: Dataset, trained_on: Tensor) -> dict[str, Tensor]:
    """Return images, labels and similarity of the training image that each test image looks most like.

    "equal" says whether the two are the same, and "similarity_trained_on" is the similarity to the nearest
    of those that the network was trained on, whose indices, int64, trained_on holds. See most_similar.
    """
    index, similarity = most_similar(test.images, train.images)
    images = train.images[index]
    return {
        "images": images,
        "labels": train.labels[index],
        "similarity": similarity,
        "equal": (images == test.images).flatten(1).all(dim=1),
        "similarity_trained_on": most_similar(test.images, train.images[trained_on])[1],
    }


def audit_lookalikes(test: Dataset, y_pred: Tensor, nearest: dict[str, Tensor]) -> dict:
    """Compare the accuracy on test images that look like a training image with that on the others.

    nearest is what nearest_in_training found. Where the look-alike has the same label, but all look-alikes
    were held out for validation, the network cannot know one by heart: that tells whether such images are
    remembered or only easier.
    """
    right, label, similarity = y_pred == test.labels, nearest["labels"], nearest["similarity"]
    like = similarity >= LOOKALIKE
    same = like & (label == test.labels)
    edges = [-1.0, 0.7, 0.8, 0.9, LOOKALIKE, 1.001]
    result = {
        "threshold": LOOKALIKE,
        "images": int(like.sum()),
        "with_another_label": int((like & ~same).sum()),
        "misclassified_as_its_label": int((like & ~right & (y_pred == label)).sum()),
        "misclassified": int((like & ~right).sum()),
        "by_similarity": [],
    }
    for low, high in itertools.pairwise(edges):
        part = right[(similarity >= low) & (similarity < high)]
        if len(part):
            row = {"from": low, "to": min(high, 1.0), "images": len(part)}
            result["by_similarity"].append(row | metrics.proportion(int(part.sum()), len(part)))
    seen = nearest["similarity_trained_on"] >= LOOKALIKE
    for name, group in {"trained_on": seen, "held_out": ~seen}.items():
        part = right[same & group]
        if len(part):
            accuracy = metrics.proportion(int(part.sum()), len(part))
            result[f"same_label_{name}"] = {"images": len(part)} | accuracy
    return result


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
            "num_predicted": int(confusion[:, c].sum()),
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


def explain(model: nn.Module, images: Tensor, classes: Tensor, layer: str = LAYER) -> Tensor:
    """Return Grad-CAM maps at the layer, float32 [N, h, w] on the CPU.

    model is nn.Sequential(Normalize(), network); images float32 [N, 3, H, W] in [0, 1]; classes int64 [N].
    """
    device = next(model.parameters()).device
    parts = zip(images.split(100), classes.split(100), strict=True)
    with GradCAM(model, f"1.{layer}") as cam:
        return torch.cat([cam(some.to(device), target.to(device)).cpu() for some, target in parts])


def write_failures(out: Path, test: Dataset, failures: list[dict], maps: Tensor) -> dict[str, Tensor]:
    """Write failures/ and gradcam/ in place of those of an earlier report, which may have had more.

    maps, float [M, 2, h, w], begin with those of the failures for the predicted and for the true class.
    Returns the evidence for the "predicted" and for the "true" class, laid over the pictures, each
    uint8 [K, 3, 256, 256].
    """
    delete(out, FAILURES)
    if not failures:
        return {}
    images = test.images[[row["test_index"] for row in failures]]
    pictures, evidence = F.interpolate(images, scale_factor=8), {}  # larger, not blurred
    for kind, shown in zip(("predicted", "true"), maps[: len(failures)].unbind(dim=1), strict=True):
        evidence[kind] = overlay(pictures / 255, to_heatmap(shown, pictures.shape[-1]))
    for row, *panels in zip(failures, pictures, evidence["predicted"], evidence["true"], strict=True):
        with whole_file(out / row["picture"]) as temporary:
            temporary.write_bytes(png(panels[0]))
        titles = [row["file_name"]]
        for kind in evidence:
            probability = percent(row[f"probability_{kind}"])
            titles.append(f"evidence for {plain(row[f'{kind}_class'])}\n({kind}, {probability})")
        figure = draw(list(zip(titles, panels, strict=True)), f"Grad-CAM at {LAYER}")
        plots.save_png(figure, out / row["gradcam"])
    write_csv(out / "failures" / "failures.csv", failures)
    return evidence


def with_controls(maps: Tensor, side: int, generator: torch.Generator) -> dict[str, Tensor]:
    """Return the heatmaps of Grad-CAM and of three controls that have not seen the picture, [N, side, side].

    A control for each cheap reason to do well: noise of the map's own resolution, "look at the middle", a
    Gaussian with a standard deviation of a quarter of the side, and the map of another image.
    """
    offsets = torch.arange(side) - (side - 1) / 2
    gaussian = torch.exp(-(offsets[:, None] ** 2 + offsets[None, :] ** 2) / (2 * (side / 4) ** 2))
    return {
        "gradcam": to_heatmap(maps, side),
        "random": to_heatmap(torch.rand(maps.shape, generator=generator), side),
        "centre": gaussian.expand(len(maps), side, side),
        "other_image": to_heatmap(maps.roll(1, 0), side),
    }


def mean_and_error(values: Tensor) -> dict[str, float]:
    """Return the mean of values float [N] and its standard error, s / sqrt(N); one value leaves it at 0."""
    error = values.std(correction=0).item() / math.sqrt(max(1, len(values) - 1))
    return {"value": values.mean().item(), "standard_error": error}


def check_explanations(model: nn.Module, test: Dataset, y_pred: Tensor, progress: Progress) -> dict:
    """Measure on a seeded sample of test images whether Grad-CAM shows what the network uses.

    Deletion and insertion, and the pointing game where the set knows where the object is, each beside the
    controls and, as all maps are tested on the same images, with the difference image by image; then the
    cascading randomisation of the weights with five seeds.
    """
    generator, device = torch.Generator().manual_seed(0), next(model.parameters()).device
    sample = torch.randperm(len(test.labels), generator=generator)[:NUM_EXPLAINED]
    images, classes = test.images[sample].to(device) / 255, y_pred[sample]
    maps = explain(model, images, classes)
    heatmaps = with_controls(maps, images.shape[-1], generator)
    result = {"layer": LAYER, "images": len(sample), "map_size": list(maps.shape[1:])}
    for done, mode in enumerate(("deletion", "insertion"), start=1):
        result[mode], areas = {}, {}
        for name, shown in heatmaps.items():
            # The mean colour takes the place of deleted pixels.
            curves, areas[name] = deletion_insertion(
                model, images, shown, classes, torch.tensor(MEAN), STEPS, mode
            )
            result[mode][name] = {
                "curve": [round(value, 5) for value in curves.mean(dim=0).tolist()],
                "area": mean_and_error(areas[name]),
                "gradcam_less_this": mean_and_error(areas["gradcam"] - areas[name]),
            }
        progress.update(done)

    # From the classifier downwards; model[1] is the network behind its normalisation.
    children = [name for name, child in model[1].named_children() if list(child.parameters())]
    modules, some = [f"1.{name}" for name in reversed(children)], images[:NUM_RANDOMIZED]
    seeds = [cascading_randomization(model, some, explain, modules, seed) for seed in range(5)]
    result["randomization"] = {"images": len(some), "seeds": len(seeds), "down_to": {}}
    for name in modules:
        rho = torch.stack([correlations[name] for correlations in seeds])  # NaN where a map is constant
        rows = {"mean": rho.nanmean(dim=1), "mean_abs": rho.abs().nanmean(dim=1)}
        result["randomization"]["down_to"][name.removeprefix("1.")] = {
            key: {
                "value": finite(values.mean().item()),
                "low": finite(values.min().item()),
                "high": finite(values.max().item()),
            }
            for key, values in rows.items()
        }
    progress.update(3)

    if test.masks is not None:
        sample = torch.randperm(len(test.labels), generator=generator)[:1000]
        maps = explain(model, test.images[sample] / 255, y_pred[sample])
        shown = with_controls(maps, test.images.shape[-1], generator)
        games = {name: metrics.pointing_game(maps, test.masks[sample]) for name, maps in shown.items()}
        result["pointing_game"] = {"images": len(sample), "chance": games["gradcam"][1]}
        for name, (hits, _) in games.items():
            result["pointing_game"][name] = metrics.proportion(hits, len(sample))
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


def print_numbers(result: dict, out: Path) -> None:
    """Print the most important numbers, and where the rest is; the page shows all of them."""
    print()
    for key, name in sections.HEADLINE.items():
        print(f"{name:20}{percent(result[key]['value'], 2):>9}   {interval(result[key])}")
    print(f"{'calibration error':20}{percent(result['expected_calibration_error'], 2):>9}")
    print(f"{'superclass accuracy':20}{percent(result['superclass_accuracy'], 2):>9}")
    print(f"\nsaved    {out / 'metrics.json'}, predictions.npz, plots/, failures/, gradcam/")
    megabytes = (out / "report.html").stat().st_size / 1e6
    print(f"next     open {out / 'report.html'} in a browser ({megabytes:.1f} MB)")


def draw_training(
    path: Path, out: Path, network: nn.Module, checkpoint: dict, device: torch.device, test: Dataset
) -> tuple[Markup, Markup, Markup]:
    """Return a line about the network, the section on its training, and that on how to reproduce it."""
    # A checkpoint from elsewhere carries the history up to its epoch.
    history = read_history(out) if (out / "logs" / "history.csv").exists() else checkpoint["history"]
    about = fill("network", **checkpoint, duration=duration(sum(row["seconds"] for row in history)))
    last_cutmix = last_cutmix_epoch(checkpoint["config"]["settings"]["epochs"])
    training = sections.training(checkpoint, history, last_cutmix, out / "plots")
    layers = count_parameters_and_macs(network, checkpoint["config"]["image_size"])
    return about, training, sections.reproduction(path, checkpoint, environment(device), layers, test)


def write_report(
    path: Path, out: Path, device: torch.device, data_dir: str | None, others: list[Path]
) -> None:
    """Evaluate the checkpoint at `path` and write everything into the folder `out`; see the options."""
    network, checkpoint = load_model(path, device)
    train, test = load_data(path, checkpoint, data_dir)
    predictions = {str(other): against.read_predictions(other, test) for other in others}
    claim_folder(out, path, checkpoint["sha256"])
    print(f"data     {test.provenance}")
    # What comes from outside is read and drawn first: a file that cannot be used costs no waiting.
    temperature = fitted_temperature(path, checkpoint)
    with usable(path, "a checkpoint"):
        settings = checkpoint["config"]["settings"]
        train_index, _ = split_indices(train, settings["val_fraction"], settings["seed"])
        trained_on = train_index[: settings["limit_train"]]
        about, training, reproduction = draw_training(path, out, network, checkpoint, device, test)
    print(f"network  {path}, epoch {checkpoint['epoch']}, on {device} in fp32")
    plots_folder, stress_file = out / "plots", out / "stress.json"
    stress, found = sections.stress(stress_file, checkpoint["sha256"], test.images, plots_folder)

    # Evaluate.
    with Progress("test images", len(test.labels)) as progress:
        size = checkpoint["config"]["image_size"]
        logits = predict(network, test.images, device, image_size=size, progress=progress)
    if not logits.isfinite().all():
        raise UserError(f"{path} cannot be used: with its weights the scores of images are not finite")
    probabilities = logits.softmax(dim=1)
    y_pred = probabilities.argmax(dim=1)
    result = {"checkpoint_sha256": checkpoint["sha256"]} | evaluate(logits, test, train, temperature)
    nearest = nearest_in_training(test, train, trained_on)
    result["lookalikes"] = audit_lookalikes(test, y_pred, nearest)

    # Find the failures and explain them.
    misclassified = most_confident_misclassified(probabilities, test.labels)
    failures = list_failures(misclassified, probabilities, test)
    model = nn.Sequential(Normalize(size), network).to(device).eval()
    with Progress("checking the explanations", 3) as progress:
        result["explanations"] = check_explanations(model, test, y_pred, progress)
    # First of all results: it says of which checkpoint the folder is, should the rest be interrupted.
    write_json(out / "metrics.json", result)
    write_predictions(out / "predictions.npz", logits, test, checkpoint["sha256"])
    browsed = misclassified[:MAX_BROWSED]
    images = test.images[browsed] / 255
    maps = torch.stack([explain(model, images, c[browsed]) for c in (y_pred, test.labels)], dim=1)
    evidence = write_failures(out, test, failures, maps)

    # Draw the rest and fill the page.
    answers = {name: values["probabilities"] for name, values in predictions.items()}
    browser = sections.browser(misclassified, probabilities, maps, nearest, answers, test)
    comparison = against.section(out, predictions, test) if others else ""
    result |= sections.in_words(result)
    headline = sections.headline(result, about, test, plots_folder)
    parts = {
        "What was found": fill("findings", **result, stress=found),
        "Mistakes": sections.mistakes(failures, evidence, nearest, browser, result, test),
        "Where it fails": sections.failures(result, test, y_pred, comparison, plots_folder),
        "How sure it is": sections.confidence(result, logits, test.labels, plots_folder),
        "Where it breaks": stress,
        "Whether the explanations hold": sections.explanations(result, plots_folder),
        "Training": training,
        "Data": sections.data_set(result, test),
        "How to reproduce it": reproduction,
    }
    write_page(out / "report.html", out.name, headline, parts)
    print_numbers(result, out)


def main(argv: list[str] | None = None) -> int:
    """Evaluate one checkpoint and write everything; return the exit code."""
    parser = CommandLine(description=__doc__)
    parser.add_argument("--run", type=Path, help="the run folder (default: the newest under runs/)")
    parser.add_argument("--checkpoint", type=Path, metavar="FILE", help="default: best.pt of the run")
    parser.add_argument("--data-dir", help="where CIFAR-100 lies (default: as in training, else data)")
    help = "compare with other runs after their own reports"
    parser.add_argument("--against", type=Path, nargs="+", default=[], metavar="RUN", help=help)
    args = parser.parse_args(argv)
    path, device = find_checkpoint(args.run, args.checkpoint), pick_device("auto")
    out = results_folder(path)
    for other in args.against:
        if other.resolve() == out.resolve():
            raise UserError(f"--against {other} is the run itself: name another one")
    with full_float32(device):  # a number means the same on every machine
        write_report(path, out, device, args.data_dir, args.against)
    return 0


if __name__ == "__main__":
    run_main(main)

"""Evaluate a trained network on the test split and write down where it fails, how sure it is, and why.

    python report.py                       the newest run under runs/
    python report.py --run runs/shapes     that run
    python report.py --checkpoint FILE     a checkpoint alone; the report goes to runs/<its name>/

Writes metrics.json, predictions.npz, plots/, failures/, gradcam/ and report.html into the run folder.
"""

import base64
import hashlib
import json
import math
import shutil
from html import escape
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.io import encode_png

import metrics
import plots
from data import Dataset, UserError, first_copy, to_input
from gradcam import GradCAM, overlay, to_heatmap
from resnet_cifar import complexity
from runs import (
    CommandLine,
    Progress,
    duration,
    environment,
    find_checkpoint,
    load_data,
    load_model,
    pick_device,
    pick_precision,
    read_history,
    results_folder,
    run_main,
    whole_file,
    write_csv,
    write_json,
)
from stress import deletion_insertion, draw, randomization_check
from train import predict, warmup_cosine

LAYER = "layer3"  # the stage that Grad-CAM explains; gradcam.py says why
NUM_FAILURES = 20
NUM_EXPLAINED = 50  # images for the deletion, insertion and randomisation checks
STEPS = 16  # of the deletion and insertion curves
# The first version of this pipeline, 40 epochs on CIFAR-100; the numbers to beat.
NOTEBOOK = {"accuracy": 0.6596, "macro_precision": 0.6611, "macro_recall": 0.6596, "macro_f1": 0.6588}
HEADLINE = {
    "accuracy": "accuracy",
    "macro_precision": "macro precision",
    "macro_recall": "macro recall",
    "macro_f1": "macro F1",
    "top5_accuracy": "top-5 accuracy",
}


# ---------------------------------------------------------------------------------------------------------
# The numbers


def evaluate(logits: Tensor, test: Dataset, train: Dataset, checkpoint: dict) -> dict:
    """Return every number of metrics.json from the logits, float32 [N, C], of the test split."""
    probabilities = logits.softmax(dim=1)
    y_true, y_pred = test.labels, probabilities.argmax(dim=1)
    confusion = metrics.confusion_matrix(y_true, y_pred, len(test.class_names))
    precision, recall, f1 = metrics.precision_recall_f1(confusion)
    mistakes = confusion.clone().fill_diagonal_(0)
    num_train = train.labels.bincount(minlength=len(test.class_names))

    result = metrics.bootstrap_headline(y_true, probabilities)
    result["num_test"] = len(y_true)
    result["superclass_accuracy"] = metrics.superclass_accuracy(y_true, y_pred, test.superclass_of)
    result["errors_within_superclass"] = finite(
        metrics.share_of_errors_within_superclass(y_true, y_pred, test.superclass_of)
    )
    # From the logits: a probability that rounds to 0 would make it infinite.
    result["negative_log_likelihood"] = F.cross_entropy(logits, y_true).item()
    result["brier_score"] = metrics.brier_score(y_true, probabilities)
    result["expected_calibration_error"] = metrics.expected_calibration_error(y_true, probabilities)
    result["area_under_risk_coverage"] = metrics.area_under_risk_coverage(y_true, probabilities)
    if "val_logits" in checkpoint:
        temperature = metrics.fit_temperature(checkpoint["val_logits"].float(), checkpoint["val_labels"])
        scaled = (logits / temperature).softmax(dim=1)
        result["temperature"] = temperature
        result["expected_calibration_error_after_temperature"] = metrics.expected_calibration_error(
            y_true, scaled
        )

    # Test images that are also training images flatter the accuracy.
    copies = first_copy(torch.cat([train.images, test.images]))
    own = torch.arange(len(copies))
    leaked = copies[len(train.labels) :] < len(train.labels)
    result["duplicates"] = {
        "train_images_that_repeat_another": int((copies != own)[: len(train.labels)].sum()),
        "test_images_that_repeat_another": int(((copies != own)[len(train.labels) :] & ~leaked).sum()),
        "test_images_in_train": int(leaked.sum()),
        "accuracy_without_them": (
            None if leaked.all() else metrics.accuracy(y_true[~leaked], y_pred[~leaked])
        ),
    }
    result["classes"] = [
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
    result["most_confused_pairs"] = [
        {"true": test.class_names[i], "predicted": test.class_names[j], "count": count}
        for i, j, count in metrics.most_confused_pairs(confusion, 20)
    ]
    return result


def finite(value: float) -> float | None:
    """Return None for NaN, which JSON does not have."""
    return None if math.isnan(value) else value


def most_confident_mistakes(probabilities: Tensor, y_true: Tensor, count: int) -> Tensor:
    """Return the indices, int64, of the wrong predictions with the highest probability, the highest first."""
    confidence, y_pred = probabilities.max(dim=1)
    wrong = torch.nonzero(y_pred != y_true).flatten()
    return wrong[confidence[wrong].argsort(descending=True, stable=True)[:count]]


# ---------------------------------------------------------------------------------------------------------
# Pictures


def enlarge(images: Tensor, factor: int) -> Tensor:
    """Repeat each pixel of images [..., H, W] `factor` times in both directions: larger, not blurred."""
    return images.repeat_interleave(factor, dim=-2).repeat_interleave(factor, dim=-1)


def explain(
    model: torch.nn.Module, images: Tensor, classes: Tensor, device: torch.device, size: int
) -> Tensor:
    """Return Grad-CAM heatmaps, float32 [N, size, size], of uint8 images for the classes int64 [N]."""
    if len(images) == 0:
        return torch.zeros(0, size, size)
    with GradCAM(model, LAYER) as cam:
        maps = [
            cam(to_input(part.to(device)), target.to(device)).cpu()
            for part, target in zip(images.split(100), classes.split(100), strict=True)
        ]
    return to_heatmap(torch.cat(maps), size)


def write_failures(
    out: Path, model: torch.nn.Module, test: Dataset, probabilities: Tensor, device: torch.device
) -> list[dict]:
    """Write failures/ and gradcam/ and return what the report shows of each confident mistake."""
    index = most_confident_mistakes(probabilities, test.labels, NUM_FAILURES)
    images, true = test.images[index], test.labels[index]
    predicted = probabilities[index].argmax(dim=1)
    pictures = enlarge(images, 8)
    evidence = {
        "predicted": overlay(pictures / 255, explain(model, images, predicted, device, pictures.shape[-1])),
        "true": overlay(pictures / 255, explain(model, images, true, device, pictures.shape[-1])),
    }
    # A former report may have had more failures than this one.
    for folder in (out / "failures", out / "gradcam"):
        shutil.rmtree(folder, ignore_errors=True)
    rows = []
    for rank, i in enumerate(index.tolist()):
        names = test.class_names[true[rank]], test.class_names[predicted[rank]]
        stem = f"{rank + 1:02d}_{names[0]}_as_{names[1]}".replace(" ", "-")
        row = {
            "rank": rank + 1,
            "test_index": i,
            "file_name": test.filenames[i],
            "true_class": names[0],
            "predicted_class": names[1],
            "probability_predicted": round(probabilities[i, predicted[rank]].item(), 6),
            "probability_true": round(probabilities[i, true[rank]].item(), 6),
            "picture": f"failures/{stem}.png",
            "gradcam": f"gradcam/{stem}.png",
        }
        write_picture(out / row["picture"], pictures[rank])
        figure = plots.gradcam_triptych(
            *(
                p.permute(1, 2, 0).numpy()
                for p in (pictures[rank], evidence["predicted"][rank], evidence["true"][rank])
            ),
            f"for the prediction {plain(names[1])}: {percent(row['probability_predicted'])}",
            f"for the truth {plain(names[0])}: {percent(row['probability_true'])}",
            row["file_name"],
        )
        write_plot(figure, out / row["gradcam"])
        small = {
            name: F.avg_pool2d(picture[rank : rank + 1].float(), 2)[0] for name, picture in evidence.items()
        }
        rows.append(row | {"evidence": small})
    if rows:
        write_csv(
            out / "failures" / "failures.csv",
            [{k: v for k, v in row.items() if k != "evidence"} for row in rows],
        )
    return rows


def write_picture(path: Path, picture: Tensor) -> None:
    """Write uint8 [3, H, W] as PNG."""
    with whole_file(path) as temporary:
        temporary.write_bytes(encode_png(picture).numpy().tobytes())


def write_plot(figure, path: Path) -> None:
    """Write a figure as PNG."""
    with whole_file(path) as temporary:
        plots.save_png(figure, temporary)


def check_explanations(
    model: torch.nn.Module, test: Dataset, y_pred: Tensor, device: torch.device, progress: Progress
) -> dict:
    """Measure whether Grad-CAM says what the network does, on a seeded sample of test images.

    Deletion and insertion against random maps of the same resolution, cascading randomisation of the weights,
    and, where the set knows where the object is, the pointing game.
    """
    generator = torch.Generator().manual_seed(0)
    sample = torch.randperm(len(test.labels), generator=generator)[:NUM_EXPLAINED]
    images, classes = test.images[sample], y_pred[sample]
    with GradCAM(model, LAYER) as cam:
        maps = cam(to_input(images.to(device)), classes.to(device)).cpu()
    random_maps = torch.rand(maps.shape, generator=generator)
    result = {"layer": LAYER, "images": len(sample), "map_size": list(maps.shape[1:])}
    done = 0
    for mode in ("deletion", "insertion"):
        for name, some_maps in (("gradcam", maps), ("random", random_maps)):
            curves, areas = deletion_insertion(
                model, images / 255, to_heatmap(some_maps, images.shape[-1]), classes, STEPS, mode
            )
            result[f"{mode}_{name}"] = {
                "curve": [round(value, 5) for value in curves.mean(dim=0).tolist()],
                "area": areas.mean().item(),
            }
            done += 1
            progress.update(done)
    correlations = randomization_check(model, to_input(images.to(device)), LAYER)
    result["randomization"] = {name: finite(values.nanmean().item()) for name, values in correlations.items()}
    progress.update(done + 1)

    if test.masks is not None:
        sample = torch.randperm(len(test.labels), generator=generator)[:1000]
        heatmaps = explain(model, test.images[sample], y_pred[sample], device, test.images.shape[-1])
        hits, chance = metrics.pointing_game(heatmaps, test.masks[sample])
        low, high = metrics.wilson_interval(hits, len(sample))
        result["pointing_game"] = {
            "images": len(sample),
            "value": hits / len(sample),
            "low": low,
            "high": high,
            "chance": chance,
        }
    return result


# ---------------------------------------------------------------------------------------------------------
# The page: small pieces of HTML, every inserted text escaped


STYLE = """
:root {
  color-scheme: light dark;
  --page: #ffffff; --panel: #f5f5f4; --ink: #1a1a1b; --soft: #56565a; --line: #d8d8d9;
  --grid: #d8d8d9; --grey: #7a7a7b; --blue: #0072b2; --orange: #d55e00; --green: #009e73;
}
@media (prefers-color-scheme: dark) {
  :root {
    --page: #161618; --panel: #222226; --ink: #ececee; --soft: #aeaeb4; --line: #3c3c42;
    --grid: #3c3c42; --grey: #96969c; --blue: #56b4e9; --orange: #f08a3c; --green: #2fc99a;
  }
}
* { box-sizing: border-box; }
body {
  margin: 0 auto; max-width: 70rem; padding: 1rem 1.25rem 4rem;
  background: var(--page); color: var(--ink); font: 1rem/1.55 system-ui, sans-serif;
}
h1 { font-size: 1.9rem; line-height: 1.2; margin: 1rem 0 .25rem; }
h2 { font-size: 1.4rem; margin: 3rem 0 .5rem; padding-top: .75rem; border-top: 1px solid var(--line); }
h3 { font-size: 1.1rem; margin: 2rem 0 .5rem; }
p, ul { max-width: 46rem; }
a { color: var(--blue); }
nav { display: flex; flex-wrap: wrap; gap: .25rem 1rem; margin: 1rem 0; }
pre {
  background: var(--panel); padding: .75rem 1rem; border-radius: .5rem; font-size: .85rem;
  white-space: pre-wrap; overflow-wrap: anywhere;
}
details { margin: 1rem 0; }
summary { cursor: pointer; font-weight: 600; }
.soft { color: var(--soft); }

.cards {
  display: grid; grid-template-columns: repeat(auto-fit, minmax(11rem, 1fr)); gap: .75rem; margin: 1.5rem 0;
}
.card { background: var(--panel); border-radius: .5rem; padding: .75rem 1rem; }
.card b { display: block; font-size: 1.7rem; line-height: 1.3; font-variant-numeric: tabular-nums; }

.plots {
  display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 25rem), 1fr)); gap: 1rem 2rem;
}
figure { margin: 0; min-width: 0; }
figcaption { color: var(--soft); font-size: .875rem; }
svg { display: block; width: 100%; height: auto; }
img { image-rendering: pixelated; display: block; height: auto; border-radius: .25rem; }
.wide, .scroll { overflow-x: auto; }
.wide svg { min-width: 54rem; }
.matrix svg { min-width: 67rem; }

table { border-collapse: collapse; font-size: .9rem; }
th, td {
  text-align: left; vertical-align: top; padding: .25rem .75rem .25rem 0;
  border-bottom: 1px solid var(--line);
}
.number { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; }
th button {
  font: inherit; color: inherit; background: none; border: 0; padding: 0; cursor: pointer;
  text-decoration: underline dotted;
}
th[aria-sort=ascending] button::after { content: " \\25B2"; }
th[aria-sort=descending] button::after { content: " \\25BC"; }

.gallery {
  display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 20rem), 1fr)); gap: 1.25rem;
}
.mistake { background: var(--panel); border-radius: .5rem; padding: .75rem; break-inside: avoid; }
.mistake div { display: grid; grid-template-columns: repeat(3, 1fr); gap: .4rem; font-size: .75rem; }
.mistake p { margin: .5rem 0 0; font-size: .875rem; overflow-wrap: anywhere; }
.mistake img, .samples img { width: 100%; }
.pair { display: flex; gap: .3rem; }
.samples {
  display: grid; grid-template-columns: repeat(auto-fill, minmax(4.5rem, 1fr)); gap: .5rem;
  font-size: .7rem; line-height: 1.2; overflow-wrap: anywhere;
}
@media print {
  body { max-width: none; }
  nav { display: none; }
  h2 { break-after: avoid; }
  figure { break-inside: avoid; }
}
"""

# Sorting is added by the script, so without scripts the table is whole, just not sortable.
SCRIPT = """
for (const table of document.querySelectorAll("table.sortable")) {
  const body = table.tBodies[0];
  table.querySelectorAll("thead th").forEach((th, column) => {
    const button = document.createElement("button");
    button.type = "button";
    button.textContent = th.textContent;
    th.replaceChildren(button);
    button.addEventListener("click", () => {
      const down = th.getAttribute("aria-sort") === "ascending";
      table.querySelectorAll("th").forEach((other) => other.removeAttribute("aria-sort"));
      th.setAttribute("aria-sort", down ? "descending" : "ascending");
      const value = (row) => row.cells[column].dataset.value ?? row.cells[column].textContent;
      const rows = [...body.rows].sort((a, b) => th.classList.contains("number")
        ? Number(value(a)) - Number(value(b)) : value(a).localeCompare(value(b)));
      body.append(...(down ? rows.reverse() : rows));
    });
  });
}
"""


def percent(value: float, digits: int = 1) -> str:
    """Return 0.1234 as "12.3 %"."""
    return "–" if math.isnan(value) else f"{100 * value:.{digits}f} %"


def table(header: list[str], rows: list[list], sortable: bool = False) -> str:
    """Return a table. A cell is a text, or (shown text, number) for a number that sorts as one."""
    numeric = [isinstance(cell, tuple) for cell in rows[0]] if rows else [False] * len(header)
    head = "".join(
        f'<th scope="col"{" class=number" if number else ""}>{escape(name)}</th>'
        for name, number in zip(header, numeric, strict=True)
    )
    body = ""
    for row in rows:
        cells = [
            f'<td class="number" data-value="{cell[1]}">{escape(cell[0])}</td>'
            if isinstance(cell, tuple)
            else f"<td>{escape(cell)}</td>"
            for cell in row
        ]
        body += f"<tr>{''.join(cells)}</tr>\n"
    kind = ' class="sortable"' if sortable else ""
    content = f"<thead><tr>{head}</tr></thead><tbody>\n{body}</tbody>"
    return f"<div class=scroll tabindex=0><table{kind}>{content}</table></div>"


def image(picture: Tensor, alt: str, width: int) -> str:
    """Return uint8 [3, H, W] as an <img> with the picture inside it."""
    content = base64.b64encode(encode_png(picture.to(torch.uint8)).numpy().tobytes()).decode()
    return f'<img src="data:image/png;base64,{content}" alt="{escape(alt)}" width="{width}" height="{width}">'


def figure(figures: dict, name: str, alt: str, caption: str = "", kind: str = "") -> str:
    """Return the plot figures[name] with its caption; of the `kind` "wide" it may scroll sideways."""
    note = f"<figcaption>{escape(caption)}</figcaption>" if caption else ""
    attributes = f' class="{kind}" tabindex=0' if kind else ""
    return f"<figure{attributes}>{plots.to_svg(figures[name], name, alt)}{note}</figure>"


def plain(name: str) -> str:
    """Return a class name as people write it: CIFAR-100's have underscores for spaces."""
    return name.replace("_", " ")


def summary_section(result: dict, checkpoint: dict, test: Dataset, figures: dict) -> str:
    """The head of the page: what was evaluated, and the headline numbers."""
    config = checkpoint["config"]
    is_cifar = test.name == "cifar100"
    cards = ""
    for key, name in HEADLINE.items():
        value, low, high = (result[key][part] for part in ("value", "low", "high"))
        note = f"95 % interval {100 * low:.2f} to {percent(high, 2)}"
        if is_cifar and key in NOTEBOOK:
            note += f"; notebook {percent(NOTEBOOK[key], 2)}"
        cards += (
            f"<div class=card>{escape(name)}<b>{percent(value, 2)}</b><span class=soft>{note}</span></div>"
        )
    names = [HEADLINE[key].replace("macro ", "") for key in NOTEBOOK]
    values, low, high = ([result[key][part] for key in NOTEBOOK] for part in ("value", "low", "high"))
    figures["headline_metrics"] = plots.headline_bars(names, values, low, high)
    alt = "Bar plot: " + ", ".join(f"{n} {percent(v, 2)}" for n, v in zip(names, values, strict=True))
    about = (
        f"ResNet-18 of width {config['width']} ({config['parameters']:,} parameters) after epoch "
        f"{checkpoint['epoch']} of {config['settings']['epochs']}, chosen by its validation accuracy of "
        f"{percent(checkpoint['val_accuracy'], 2)}, on {result['num_test']:,} test images."
    )
    notebook = "The notebook is the first version of this pipeline: the same network, 40 epochs."
    notebook = f"<p class=soft>{notebook}</p>" if is_cifar else ""
    return (
        f"<h1>How a CNN fails on {'CIFAR-100' if is_cifar else 'coloured shapes'}</h1>"
        f"<p>{escape(about)}</p><p class=soft>Data: {escape(test.provenance)}.</p>"
        f"<div class=cards>{cards}</div>{notebook}<div class=plots>"
        + figure(figures, "headline_metrics", alt, "Bootstrap over the test images, 1,000 resamples.")
        + "</div>"
    )


def training_section(history: list[dict] | None, config: dict, figures: dict) -> str:
    """Curves of both splits, the learning rate, time and speed."""
    if not history:
        return "<p>The checkpoint came alone, so the history of its training is not here.</p>"
    column = {key: np.array([row[key] for row in history]) for key in history[0]}
    epoch, train_loss, val_loss = column["epoch"], column["train_loss"], column["val_loss"]
    train_accuracy, val_accuracy = column["train_accuracy"], column["val_accuracy"]
    best = int(epoch[val_accuracy.argmax()])
    settings = config["settings"]
    steps_per_epoch = config["num_train"] // settings["batch_size"]
    total_steps = settings["epochs"] * steps_per_epoch
    warmup_steps = round(settings["warmup_epochs"] * steps_per_epoch)
    steps = range(int(epoch[-1]) * steps_per_epoch)
    lr = [warmup_cosine(step, total_steps, warmup_steps, settings["lr"]) for step in steps]
    figures["loss"] = plots.training_curve(epoch, train_loss, val_loss, best, "Loss")
    figures["accuracy"] = plots.training_curve(epoch, train_accuracy, val_accuracy, best, "Accuracy")
    figures["learning_rate"] = plots.learning_rate(np.array(steps) / steps_per_epoch, np.array(lr))
    size, rate = column["image_size"], column["images_per_second"]
    speeds = [
        f"{np.median(rate[size == s]):,.0f} images/s at {s:.0f}x{s:.0f} pixels" for s in np.unique(size)
    ]
    text = (
        f"{len(epoch)} epochs of {config['num_train']:,} images took {duration(column['seconds'].sum())} on "
        f"{config['environment']['hardware']} ({config['device']}, {config['precision']}), validation "
        f"included. Training went at a median of {', '.join(speeds)}. The best epoch was {best}."
    )
    if len(speeds) > 1:
        text += (
            " Validation images are always whole, so its curves start low and rise with each change of size."
        )
    return (
        f"<p>{escape(text)}</p><div class=plots>"
        + figure(
            figures,
            "loss",
            f"Training loss falls from {train_loss[0]:.2f} to {train_loss[-1]:.2f}, validation loss goes "
            f"from {val_loss[0]:.2f} to {val_loss[-1]:.2f}",
            "Cross-entropy with the label smoothing of the recipe, on both splits.",
        )
        + figure(
            figures,
            "accuracy",
            f"Validation accuracy goes from {percent(val_accuracy[0])} to {percent(val_accuracy[-1])}",
            f"Best validation accuracy: {percent(val_accuracy.max(), 2)} after epoch {best}.",
        )
        + figure(
            figures,
            "learning_rate",
            f"The learning rate rises to {settings['lr']:g}, then falls along a cosine",
            "Linear warmup, then half a cosine; one value for each step.",
        )
        + "</div>"
    )


def failure_section(result: dict, test: Dataset, y_pred: Tensor, figures: dict) -> str:
    """Classes, pairs and superclasses that are confused."""
    names, superclass_of = [plain(name) for name in test.class_names], test.superclass_of
    superclasses = [plain(name) for name in test.superclass_names]
    confusion = metrics.confusion_matrix(test.labels, y_pred, len(names))
    coarse = metrics.superclass_confusion(confusion, superclass_of)
    order = superclass_of.argsort(stable=True)  # the classes of a superclass beside each other
    groups = list(
        zip(superclasses, superclass_of.bincount(minlength=len(superclasses)).tolist(), strict=True)
    )
    figures["confusion_matrix"] = plots.confusion_matrix(
        row_shares(confusion)[order][:, order].numpy(), [names[c] for c in order], groups
    )
    figures["superclass_confusion"] = plots.superclass_confusion(row_shares(coarse).numpy(), superclasses)
    worst = sorted((c for c in result["classes"] if c["num_test"]), key=lambda c: c["recall"])[:10]
    figures["worst_classes"] = plots.worst_classes(
        [plain(c["name"]) for c in worst],
        [c["recall"] for c in worst],
        [plain(c["most_common_mistake"]) for c in worst],
    )

    pairs = ""
    for true, predicted, count in metrics.most_confused_pairs(confusion, 10):
        examples = torch.nonzero((test.labels == true) & (y_pred == predicted)).flatten()[:4].tolist()
        alt = f"a {names[true]} taken for a {names[predicted]}"
        pictures = "".join(image(test.images[i], alt, 64) for i in examples)
        pairs += (
            f"<tr><td>{escape(names[true])}</td><td>{escape(names[predicted])}</td><td "
            f"class=number>{count}</td>"
            f"<td><div class=pair>{pictures}</div></td></tr>"
        )
    class_rows = [
        [
            plain(c["name"]),
            plain(c["superclass"]),
            *((percent(c[key]), c[key]) for key in ("precision", "recall", "f1")),
            (str(c["num_test"]), c["num_test"]),
            f"{plain(c['most_common_mistake'])} ({c['most_common_mistake_count']})"
            if c["most_common_mistake"]
            else "none",
        ]
        for c in result["classes"]
    ]
    text = (
        f"Top-5 accuracy is {percent(result['top5_accuracy']['value'], 2)}; the right superclass is named "
        f"for {percent(result['superclass_accuracy'], 2)} of the images."
    )
    if result["errors_within_superclass"] is not None:
        text += (
            f" Of the errors, {percent(result['errors_within_superclass'])} stay inside the right "
            "superclass; if wrong answers fell evenly on all other classes it would be "
            f"{percent(chance_within(superclass_of))}."
        )
    return (
        f"<p>{text}</p><div class=plots>"
        + figure(
            figures,
            "worst_classes",
            "The ten worst classes: "
            + ", ".join(f"{plain(c['name'])} {percent(c['recall'], 0)}" for c in worst),
        )
        + "</div><h3>Most confused pairs</h3><div class=scroll tabindex=0><table><thead><tr><th "
        "scope=col>true</th>"
        "<th scope=col>predicted</th><th scope=col class=number>images</th><th "
        "scope=col>examples</th></tr></thead>"
        f"<tbody>{pairs}</tbody></table></div><h3>By superclass</h3>"
        + figure(
            figures,
            "superclass_confusion",
            f"Confusion matrix of {len(superclasses)} superclasses, {percent(result['superclass_accuracy'])} "
            "on the diagonal",
            kind="wide",
        )
        + "<h3>By class</h3>"
        + figure(
            figures,
            "confusion_matrix",
            f"Confusion matrix of {len(names)} classes in blocks of their superclasses",
            "Classes stand in the order of their superclasses, so confusions inside one form a block on the "
            "diagonal.",
            kind="wide matrix",
        )
        + "<h3>All classes</h3><p class=soft>The accuracy of a class is its recall. Click a heading to "
        "sort.</p>"
        + table(
            [
                "class",
                "superclass",
                "precision",
                "recall = accuracy",
                "F1",
                "test images",
                "most common mistake",
            ],
            class_rows,
            sortable=True,
        )
    )


def row_shares(confusion: Tensor) -> Tensor:
    """Divide each row of a confusion matrix by its sum; a row without samples stays 0."""
    return confusion / confusion.sum(dim=1, keepdim=True).clamp(min=1)


def chance_within(superclass_of: Tensor) -> float:
    """Return the mean over the classes of the share of the other classes that are in the same superclass."""
    sizes = superclass_of.bincount()[superclass_of].double()
    return ((sizes - 1) / max(1, len(superclass_of) - 1)).mean().item()


def confidence_section(result: dict, logits: Tensor, y_true: Tensor, figures: dict) -> str:
    """Calibration before and after temperature scaling, confidence of right and wrong, risk and coverage."""
    probabilities = logits.softmax(dim=1)
    confidence, y_pred = probabilities.max(dim=1)
    right = y_pred == y_true
    ece = percent(result["expected_calibration_error"])
    text = f"The expected calibration error is {ece} (15 bins)."
    curves = [("as trained", *metrics.calibration_bins(y_true, probabilities))]
    if "temperature" in result:
        temperature = result["temperature"]
        after = (logits / temperature).softmax(dim=1)
        curves.append((f"at temperature {temperature:.2f}", *metrics.calibration_bins(y_true, after)))
        text += (
            f" A temperature of {temperature:.3f}, fitted on the validation split, brings it to "
            f"{percent(result['expected_calibration_error_after_temperature'])}: as trained, the network is "
            f"{'too confident' if temperature > 1 else 'not confident enough'}."
        )
    coverage, risk = metrics.risk_coverage(y_true, probabilities)
    half = percent(risk[(len(risk) - 1) // 2].item())
    figures["reliability"] = plots.reliability(
        [(label, *(v.numpy() for v in bins)) for label, *bins in curves]
    )
    figures["confidence"] = plots.confidence_histogram(confidence[right].numpy(), confidence[~right].numpy())
    figures["risk_coverage"] = plots.risk_coverage(coverage.numpy(), risk.numpy())
    return (
        f"<p>{text}</p><div class=plots>"
        + figure(
            figures,
            "reliability",
            f"Reliability diagram with an expected calibration error of {ece}",
            "Below the dotted line the network claims more than it keeps, above it less.",
        )
        + figure(
            figures,
            "confidence",
            "Histogram of the confidence of right and of wrong predictions",
            "Wrong answers on the right-hand side are those that nobody would check.",
        )
        + figure(
            figures,
            "risk_coverage",
            f"Risk against coverage: {half} errors at half coverage, {percent(risk[-1].item())} at full "
            "coverage",
            f"Answering only the more confident half of the images would leave {half} errors. The area under "
            f"the curve is {result['area_under_risk_coverage']:.3f}.",
        )
        + "</div>"
    )


def gallery_section(failures: list[dict], test: Dataset, explanations: dict) -> str:
    """The confident mistakes with Grad-CAM for the predicted and for the true class."""
    items = ""
    for row in failures:
        i, predicted, true = row["test_index"], plain(row["predicted_class"]), plain(row["true_class"])
        picture, name = enlarge(test.images[i], 4), "picture"
        if test.masks is not None:
            picture, name = outline(picture, test.masks[i]), "picture, object outlined"
        cells = ""
        for panel, label in (
            (picture, name),
            (row["evidence"]["predicted"], f"evidence for {predicted}"),
            (row["evidence"]["true"], f"evidence for {true}"),
        ):
            cells += f"<span>{image(panel, f'{true}: {label}', 128)}{escape(label)}</span>"
        items += (
            f"<div class=mistake><div>{cells}</div><p><b>{escape(predicted)}</b> "
            f"{percent(row['probability_predicted'])}, in truth <b>{escape(true)}</b> "
            f"{percent(row['probability_true'])}<br><span "
            f"class=soft>{escape(row['file_name'])}</span></p></div>"
        )
    text = (
        f"The {len(failures)} wrong predictions with the highest probability, and what Grad-CAM at "
        f"{explanations['layer']} marks as evidence for the predicted and for the true class. Bright is "
        "evidence; each map is scaled by its own maximum, and a map without evidence stays dark."
    )
    if "pointing_game" in explanations:
        game = explanations["pointing_game"]
        text += (
            f" Pointing game: on {game['images']:,} test images the maximum of the map for the predicted "
            f"class falls on the object in {percent(game['value'])} (95 % interval {100 * game['low']:.1f} "
            f"to {percent(game['high'])}); a random pixel would in {percent(game['chance'])}."
        )
    return f"<p>{text}</p><div class=gallery>{items or 'There is no wrong prediction.'}</div>"


def outline(picture: Tensor, mask: Tensor) -> Tensor:
    """Draw the border of bool mask [H, W], white beside black, into uint8 [3, k H, k W]."""
    mask = enlarge(mask, picture.shape[-1] // mask.shape[-1])
    padded = F.pad(mask[None, None].float(), (1, 1, 1, 1))
    grown = F.max_pool2d(padded, 3, stride=1)[0, 0] > 0
    shrunk = -F.max_pool2d(-padded, 3, stride=1)[0, 0] > 0
    picture = picture.clone()
    picture[:, grown & ~mask] = 0
    picture[:, mask & ~shrunk] = 255
    return picture


def stress_section(results: dict | None, test: Dataset, figures: dict) -> str:
    """What stress.py found: corruptions, attacks, and whether the attacks can be believed."""
    if results is None:
        return "<p>Not run for this checkpoint yet: <code>python stress.py</code>, then this report "
        "again.</p>"
    figures |= draw(results, test.images)
    tests, summary, means = results["tests"], results["summary"], results["summary"]["mean_accuracy"]
    clean, each = tests["clean/0"], results["corruption_images"] // len(test.class_names)
    caution = "" if each >= 20 else ": a hint at most, which <code>python stress.py --full</code> checks"

    def interval(share: dict) -> str:
        low, high = 100 * share["low"], percent(share["high"])
        return f"{percent(share['value'])} (95 % interval {low:.1f} to {high})"

    text = (
        f"On {results['corruption_images']:,} clean test images the accuracy is "
        f"{interval(clean['accuracy'])}; over the fifteen corruptions of CIFAR-C and five severities it is "
        f"{interval(means['fifteen'])}. The mean confidence goes from {percent(clean['mean_confidence'])} to "
        f"{percent(summary['mean_confidence']['all'])} and the calibration error from "
        f"{percent(clean['ece'])} to {percent(summary['mean_ece']['all'])} over all corruptions: under shift "
        "a network that stays sure is wrong without saying so."
    )
    severities = range(1, 6)
    rows = []
    for name in {key.split("/")[0]: None for key in tests if key.endswith("/5") and f"{key[:-1]}3" in tests}:
        values = [tests[f"{name}/{severity}"]["accuracy"]["value"] for severity in severities]
        rows.append([plain(name), *((percent(v), v) for v in [*values, sum(values) / 5])])
    broken = [
        [plain(row["class"]), *((percent(row[key], 0), row[key]) for key in ("clean", "corrupted", "drop"))]
        for row in summary["classes_that_break_first"]
    ]
    checks = [
        ["passed" if check["passed"] else "FAILED", check["name"], check["detail"]]
        for check in results["checks"]
    ]
    radius = {name: [f"{name}/{value:g}" for value in results["radii"]] for name in ("fgsm", "pgd")}
    attack_text = (
        f"On {results['attack_images']:,} images, with normalisation inside the attack and every change at "
        f"most the radius: at {results['radii'][2]:g}/255 FGSM leaves "
        f"{interval(tests[radius['fgsm'][2]]['accuracy'])} and PGD "
        f"{interval(tests[radius['pgd'][2]]['accuracy'])}. The checks below would fail if an attack were "
        "weak rather than the network robust."
    )
    return (
        f"<p>{text}</p>"
        + figure(
            figures, "stress_severity", "Accuracy against severity by family of corruptions", kind="wide"
        )
        + "<h3>Every corruption</h3>"
        + table(["corruption", "1", "2", "3", "4", "5", "mean"], rows, sortable=True)
        + figure(
            figures,
            "stress_examples",
            "A grid of one test image under every corruption at every severity",
            "One test image under every corruption, at severities 1 to 5.",
            kind="wide",
        )
        + f"<h3>Classes that break first</h3><p class=soft>Over all corruptions, {each} images of each "
        f"class{caution}.</p>"
        + table(["class", "clean", "corrupted", "drop"], broken)
        + f"<h3>Attacks</h3><p>{attack_text}</p><div class=plots>"
        + figure(figures, "stress_radius", "Accuracy against the radius of FGSM, PGD and random noise")
        + "</div>"
        + table(["check", "what it asks", "what was found"], checks)
    )


def read_stress(out: Path, checkpoint: Path) -> dict | None:
    """Return the finished results of stress.py for this very checkpoint, or None."""
    try:
        results = json.loads((out / "stress.json").read_text(encoding="utf-8"))
        same = results["fingerprint"]["checkpoint"] == hashlib.sha256(checkpoint.read_bytes()).hexdigest()
        return results if same and "checks" in results else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def explanation_section(result: dict, figures: dict) -> str:
    """Deletion, insertion and randomisation: can the maps be believed?"""
    share = np.linspace(0, 1, STEPS + 1)
    captions = {
        "deletion": "Pixels are replaced by the mean colour, those with the most evidence first. If the map "
        "is right, the probability falls faster than with a random map: a smaller area is better.",
        "insertion": "Pixels are put back into a blurred picture, those with the most evidence first. If "
        "the map is right, the probability rises faster than with a random map: a larger area is better.",
    }
    svgs = ""
    for mode, caption in captions.items():
        gradcam, random = result[f"{mode}_gradcam"], result[f"{mode}_random"]
        curves = [
            (f"Grad-CAM, area {gradcam['area']:.3f}", np.array(gradcam["curve"])),
            (f"random map, area {random['area']:.3f}", np.array(random["curve"])),
        ]
        figures[mode] = plots.deletion_insertion(
            mode.capitalize(), share, curves, f"pixels changed by {mode}"
        )
        alt = f"{mode} curves: area {gradcam['area']:.3f} for Grad-CAM, {random['area']:.3f} for random maps"
        svgs += figure(figures, mode, alt, caption)
    rows = [
        [
            f"fc down to {name}" if name != "fc" else "fc",
            ("–" if value is None else f"{round(value, 2) + 0.0:.2f}", value),
        ]
        for name, value in result["randomization"].items()
    ]
    return (
        f"<p>On {result['images']} test images, for the predicted class, with maps of "
        f"{result['map_size'][0]}x"
        f"{result['map_size'][1]} pixels at {result['layer']}.</p><div class=plots>{svgs}</div>"
        "<h3>Sanity check: random weights</h3><p>An explanation of what the network has learned must change "
        "when "
        "the network forgets it (Adebayo et al. 2018). The rank correlation with the original maps should "
        "fall "
        "to about 0 as more layers, from the classifier downwards, get random weights.</p>"
        + table(["random weights in", "rank correlation of the maps"], rows)
    )


def data_section(result: dict, test: Dataset, config: dict) -> str:
    """Class counts, samples, and the audit for duplicates."""
    train_counts, test_counts = ({c[key] for c in result["classes"]} for key in ("num_train", "num_test"))
    in_words = [f"{min(n)} to {max(n)}" if len(n) > 1 else str(min(n)) for n in (train_counts, test_counts)]
    duplicates = result["duplicates"]
    without = "No test image is left without those."
    if duplicates["accuracy_without_them"] is not None:
        without = (
            f"Without those the accuracy is {percent(duplicates['accuracy_without_them'], 2)} instead of "
        )
        without += f"{percent(result['accuracy']['value'], 2)}."
    samples = ""
    for c, name in enumerate(test.class_names):
        for i in torch.nonzero(test.labels == c).flatten()[:1].tolist():
            alt = f"a test image of the class {plain(name)}"
            samples += f"<span>{image(test.images[i], alt, 64)}{escape(plain(name))}</span>"
    return (
        f"<p>Each of the {len(test.class_names)} classes has {in_words[0]} images in the training set and "
        f"{in_words[1]} in the test set; this run trained on {config['num_train']:,} images and validated on "
        f"{config['num_val']:,}.</p><p>Exact duplicates, pixel by pixel: "
        f"{duplicates['train_images_that_repeat_another']} training images repeat another one, "
        f"{duplicates['test_images_that_repeat_another']} test images repeat another one, and "
        f"{duplicates['test_images_in_train']} test images are also in the training set. {without}</p>"
        f"<h3>One test image of each class</h3><div class=samples>{samples}</div>"
    )


def reproduction_section(checkpoint: dict, path: Path, model: torch.nn.Module, test: Dataset) -> str:
    """Command, settings, versions, hardware, data digest and complexity."""
    config = checkpoint["config"]
    options = " ".join(
        f"--{name.replace('_', '-')}" + ("" if value is True else f" {value}")
        for name, value in config["settings"].items()
        if value is not None and value is not False
    )
    here = environment(next(model.parameters()).device)
    facts = [[f"training: {name}", str(value)] for name, value in config["environment"].items()]
    facts += [[f"report: {name}", str(value)] for name, value in here.items()]
    facts += [["checkpoint", str(path)], ["data", test.provenance], ["test digest (sha256)", test.digest]]
    layers = complexity(model)
    parameters, macs = (sum(layer[key] for layer in layers) for key in ("parameters", "macs"))
    total = {"name": "all", "kind": "", "output": [], "parameters": parameters, "macs": macs}
    rows = [
        [
            layer["name"],
            layer["kind"],
            "x".join(map(str, layer["output"])),
            (f"{layer['parameters']:,}", layer["parameters"]),
            (f"{layer['macs'] / 1e6:,.2f}", layer["macs"]),
        ]
        for layer in [*layers, total]
    ]
    return (
        f"<pre>python train.py {escape(options)}\npython report.py --run "
        f"{escape(config['settings']['out'])}</pre>"
        + table(["what", "value"], facts)
        + f"<h3>Complexity</h3><p>{parameters:,} parameters, {macs / 1e9:.3f} G multiply-accumulates for one "
        "image.</p><details><summary>Layer by layer</summary>"
        + table(["layer", "kind", "output", "parameters", "multiply-accumulates (M)"], rows)
        + "</details>"
    )


def write_page(path: Path, title: str, summary: str, sections: dict[str, str]) -> None:
    """Write report.html: one file, no request to anywhere."""
    ids = {name: "".join(c if c.isalnum() else "-" for c in name.lower()) for name in sections}
    links = "".join(f'<a href="#{ids[name]}">{escape(name)}</a>' for name in sections)
    body = "".join(
        f'<section><h2 id="{ids[name]}">{escape(name)}</h2>{html}</section>'
        for name, html in sections.items()
    )
    page = (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        '<link rel="icon" href="data:,">'
        f"<title>{escape(title)}</title><style>{STYLE}</style></head>\n"
        f'<body><main>{summary}<nav aria-label="Sections">{links}</nav>\n{body}</main>'
        f"<script>{SCRIPT}</script></body></html>\n"
    )
    with whole_file(path) as temporary:
        temporary.write_text(page, encoding="utf-8")


# ---------------------------------------------------------------------------------------------------------
# The command


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
    args = parser.parse_args(argv)

    path = find_checkpoint(args.run, args.checkpoint)
    device = pick_device("auto")
    precision = pick_precision("auto", device)
    model, checkpoint = load_model(path, device)
    config = checkpoint["config"]
    lacking = {"settings", "environment", "parameters", "num_train", "num_val"} - config.keys()
    if lacking:
        raise UserError(f"{path} was not written by train.py: its config lacks {', '.join(sorted(lacking))}")
    out = results_folder(args.run, args.checkpoint)
    history = read_history(out) if (out / "logs" / "history.csv").exists() else None
    train, test = load_data(path, checkpoint, args.data_dir)
    print(f"data     {test.provenance}")
    print(f"network  {path}, epoch {checkpoint['epoch']}, on {device} in {precision}")

    with Progress("test images", len(test.labels)) as progress:
        logits = predict(model, test.images, device, precision, progress=progress)
    probabilities = logits.softmax(dim=1)
    y_pred = probabilities.argmax(dim=1)
    with whole_file(out / "predictions.npz") as temporary, open(temporary, "wb") as file:
        np.savez_compressed(
            file, y_true=test.labels.numpy(), y_pred=y_pred.numpy(), probabilities=probabilities.numpy()
        )
    result = evaluate(logits, test, train, checkpoint)
    failures = write_failures(out, model, test, probabilities, device)
    with Progress("checking the explanations", 5) as progress:
        result["explanations"] = check_explanations(model, test, y_pred, device, progress)
    write_json(out / "metrics.json", result)

    figures = {}  # name -> Figure of everything that goes into plots/
    summary = summary_section(result, checkpoint, test, figures)
    sections = {
        "Training": training_section(history, config, figures),
        "Where it fails": failure_section(result, test, y_pred, figures),
        "How sure it is": confidence_section(result, logits, test.labels, figures),
        "Where it breaks": stress_section(read_stress(out, path), test, figures),
        "Why it fails": gallery_section(failures, test, result["explanations"]),
        "Whether the explanations hold": explanation_section(result["explanations"], figures),
        "Data": data_section(result, test, config),
        "How to reproduce it": reproduction_section(checkpoint, path, model, test),
    }
    write_page(out / "report.html", f"How a CNN fails: {out.name}", summary, sections)
    with Progress("plots", len(figures)) as progress:
        for i, (name, plot) in enumerate(figures.items()):
            write_plot(plot, out / "plots" / f"{name}.png")
            progress.update(i + 1)

    print()
    for key, name in HEADLINE.items():
        value = result[key]
        low, high = 100 * value["low"], 100 * value["high"]
        print(f"{name:20}{100 * value['value']:7.2f} %   95 % interval {low:.2f} to {high:.2f} %")
    print(f"{'calibration error':20}{100 * result['expected_calibration_error']:7.2f} %")
    print(f"{'superclass accuracy':20}{100 * result['superclass_accuracy']:7.2f} %")
    print(f"\nsaved    {out / 'metrics.json'}, predictions.npz, plots/, failures/, gradcam/")
    print(f"next     open {out / 'report.html'} in a browser")
    return 0


if __name__ == "__main__":
    run_main(main)

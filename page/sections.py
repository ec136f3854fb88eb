"""The sections of the report, in their order: each draws its plots and returns the values of its template.

`result` is the content of metrics.json, computed by report.py; `test` is the test split, a data.Dataset;
`folder` is the plots/ of the run. Figures are {name: (figure, what it shows, in words)}. `code` is the code
behind the numbers, {"code_<place>": markup}, for the templates that are not filled with the page itself.
"""

import base64
import json
import math
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torchvision.utils import make_grid

import metrics
from page import page, plots
from page.page import Markup, fill, interval, percent, plain
from running.console import duration
from stress_tests.attacks import APGD_EPSILONS, MORE_STEPS_EPSILON

HEADLINE = {
    "accuracy": "accuracy",
    "macro_precision": "macro precision",
    "macro_recall": "macro recall",
    "macro_f1": "macro F1",
    "top5_accuracy": "top-5 accuracy",
}
# The first version of this pipeline, 40 epochs on CIFAR-100; the numbers to beat.
NOTEBOOK = {"accuracy": 0.6596, "macro_precision": 0.6611, "macro_recall": 0.6596, "macro_f1": 0.6588}


def headline(result: dict, test, folder: Path, code: dict) -> dict:
    """The headline metrics as cards and as bars."""
    notebook = NOTEBOOK if test.name == "cifar100" else {}
    cards = []
    for key, name in HEADLINE.items():
        note = interval(result[key], 2)
        if key in notebook:
            note += f"; notebook {percent(notebook[key], 2)}"
        value = result[key]["value"]
        bar = fill("bar", value=str(value), reference=str(notebook.get(key, -1)))
        more = {"value": percent(value, 2), "bar": bar, "code": code[f"code_{key}"]}
        cards.append(fill("card", name=name, note=note, **more))
    ahead = f"{100 * (result['accuracy']['value'] - NOTEBOOK['accuracy']):+.1f}"
    names = list(HEADLINE.values())
    values, low, high = ([result[key][part] for key in HEADLINE] for part in ("value", "low", "high"))
    bars = plots.headline_bars(names, values, low, high, [notebook.get(key) for key in HEADLINE])
    alt = "Bar plot: " + ", ".join(f"{n} {percent(v, 2)}" for n, v in zip(names, values, strict=True))
    return {
        "data_set": "CIFAR-100" if test.name == "cifar100" else "coloured shapes",
        "cards": page.join(cards),
        "notebook": fill("notebook", points=ahead) if notebook else "",
        **page.plot(folder, {"headline_metrics": (bars, alt)}),
    }


def training(
    history: list[dict], lr: list[float], last_cutmix_epoch: int, config: dict, folder: Path, code: dict
) -> Markup:
    """Curves of both splits, the learning rate `lr` of every step, the end of CutMix, time and speed."""
    column = {key: np.array([row[key] for row in history]) for key in history[0]}
    best = column["val_accuracy"].argmax()
    best_epoch = int(column["epoch"][best])
    size, rate = column["image_size"], column["images_per_second"]
    cutmix = config["settings"]["cutmix"]
    changes = {i + 0.5: f"{size[i]:.0f} px" for i in range(1, len(size)) if size[i] != size[i - 1]}
    if cutmix and 0 < last_cutmix_epoch < len(history):
        changes[last_cutmix_epoch + 0.5] = "no CutMix"
    figures = {}
    for quantity in ("loss", "accuracy"):
        train, val = column[f"train_{quantity}"], column[f"val_{quantity}"]
        curve = plots.training_curve(column["epoch"], train, val, best_epoch, quantity.capitalize(), changes)
        alt = f"Training {quantity} goes from {train[0]:.2f} to {train[-1]:.2f}, "
        figures[quantity] = (curve, alt + f"validation {quantity} from {val[0]:.2f} to {val[-1]:.2f}")
    curve = plots.learning_rate(np.linspace(0, len(history), len(lr), endpoint=False), np.array(lr))
    figures["learning_rate"] = (curve, f"The learning rate rises to {max(lr):g}, then falls along a cosine")
    speeds = {s: np.median(rate[size == s]) for s in np.unique(size)}
    return fill(
        "training",
        **page.plot(folder, figures),
        **code,
        **{key: config[key] for key in ("num_train", "device", "precision")},
        first_loss=f"{column['val_loss'][0]:.2f}",
        last_loss=f"{column['val_loss'][-1]:.2f}",
        last_train_accuracy=column["train_accuracy"][-1],
        last_val_accuracy=column["val_accuracy"][-1],
        peak_lr=f"{max(lr):g}",
        peak_epoch=f"{len(history) * lr.index(max(lr)) / len(lr):.1f}",
        hardware=config["environment"]["hardware"],
        num_epochs=len(history),
        duration=duration(column["seconds"].sum()),
        speeds=", ".join(f"{speed:,.0f} images/s at {s:.0f}x{s:.0f} pixels" for s, speed in speeds.items()),
        cutmix=fill("cutmix", last=last_cutmix_epoch, share=cutmix) if cutmix and last_cutmix_epoch else "",
        several_sizes=fill("several_sizes") if len(speeds) > 1 else "",
        best_epoch=best_epoch,
        best_val_accuracy=percent(column["val_accuracy"][best], 2),
    )


def mistakes(result: dict, test, y_pred: Tensor, folder: Path) -> dict:
    """Classes, pairs and superclasses that are confused."""
    names, superclasses = ([plain(n) for n in names] for names in (test.class_names, test.superclass_names))
    confusion = metrics.confusion_matrix(test.labels, y_pred, len(names))
    coarse = metrics.superclass_confusion(confusion, test.superclass_of)
    order = test.superclass_of.argsort(stable=True)  # the classes of a superclass beside each other
    sizes = test.superclass_of.bincount(minlength=len(superclasses)).tolist()
    groups = list(zip(superclasses, sizes, strict=True))
    in_order, shares = [names[c] for c in order], row_shares(confusion[order][:, order])
    accuracy = metrics.per_class_accuracy(confusion)
    worst = [c for c in accuracy.argsort(stable=True).tolist() if confusion[c].any()][:10]
    taken_for = [plain(result["classes"][c]["most_common_mistake"]) for c in worst]
    bars = plots.worst_classes([names[c] for c in worst], accuracy[worst].tolist(), taken_for)
    shown = ", ".join(f"{names[c]} {percent(accuracy[c].item(), 0)}" for c in worst)
    row = result["classes"][worst[0]]
    pairs = len(names) * (len(names) - 1)
    used = (confusion.clone().fill_diagonal_(0) > 0).sum().item()
    superclass_accuracy = percent(result["superclass_accuracy"], 2)
    figures = {
        "worst_classes": (bars, f"The ten worst classes: {shown}"),
        "superclass_confusion": (
            plots.superclass_confusion(row_shares(coarse), superclasses),
            f"Confusion matrix of {len(sizes)} superclasses, {superclass_accuracy} on the diagonal",
        ),
        "confusion_matrix": (
            plots.confusion_matrix(shares, in_order, groups),
            f"Confusion matrix of {len(names)} classes in blocks of their superclasses",
        ),
    }
    return {
        "top5_accuracy": percent(result["top5_accuracy"]["value"], 2),
        "superclass_accuracy": superclass_accuracy,
        "errors_within_superclass": result["errors_within_superclass"],
        "chance_within_superclass": chance_within(test.superclass_of),
        "worst": fill("worst", **row | {"name": plain(row["name"]), "mistake": taken_for[0] or "anything"}),
        "pairs": pairs,
        "empty_pairs": pairs - used,
        "confused_pairs": confused_pairs(confusion, test, y_pred),
        "class_table": class_table(result["classes"]),
        **page.plot(folder, figures),
    }


def row_shares(confusion: Tensor) -> np.ndarray:
    """Divide each row of a confusion matrix by its sum; a row without samples stays 0."""
    return (confusion / confusion.sum(dim=1, keepdim=True).clamp(min=1)).numpy()


def chance_within(superclass_of: Tensor) -> float:
    """Return the mean over the classes of the share of the other classes that are in the same superclass."""
    sizes = superclass_of.bincount()[superclass_of].double()
    return ((sizes - 1) / max(1, len(superclass_of) - 1)).mean().item()


def confused_pairs(confusion: Tensor, test, y_pred: Tensor) -> Markup:
    """The ten pairs that are confused most often, with up to four examples of each."""
    rows = []
    for true, predicted, count in metrics.most_confused_pairs(confusion, 10):
        names = plain(test.class_names[true]), plain(test.class_names[predicted])
        shown = torch.nonzero((test.labels == true) & (y_pred == predicted)).flatten()[:4]
        alt = f"a {names[0]} taken for a {names[1]}"
        pictures = page.join([page.picture(test.images[i], alt, 64) for i in shown])
        chosen = {"true": names[0], "predicted": names[1]}
        links = [page.filter_link(name, **chosen) for name in names]
        rows.append([*links, count, fill("pictures", pictures=pictures)])
    return page.table("Most confused pairs", ["true", "predicted", "images", "examples"], rows)


def class_table(classes: list[dict]) -> Markup:
    """The sortable table of all classes."""
    header = ["class", "superclass", "precision", "recall = accuracy", "F1", "test images"]
    rows = []
    for c in classes:
        name, superclass, taken_for = (plain(c[k]) for k in ("name", "superclass", "most_common_mistake"))
        numbers = [c[key] for key in ("precision", "recall", "f1", "num_test")]
        mistake = "none"
        if taken_for:
            text = f"{taken_for} ({c['most_common_mistake_count']})"
            mistake = page.filter_link(text, true=name, predicted=taken_for)
        links = [page.filter_link(name, true=name), page.filter_link(superclass, superclass=superclass)]
        rows.append([*links, *numbers, mistake])
    return page.table("All classes", [*header, "most common mistake"], rows, sortable=True)


def confidence(result: dict, logits: Tensor, y_true: Tensor, folder: Path) -> dict:
    """Calibration before and after temperature scaling, confidence of right and wrong, risk and coverage."""
    probabilities = logits.softmax(dim=1)
    highest, y_pred = probabilities.max(dim=1)
    right = y_pred == y_true
    bins = {"as trained": metrics.calibration_bins(y_true, probabilities)}
    scaling = ""
    if "temperature" in result:
        temperature = result["temperature"]
        scaled = metrics.calibration_bins(y_true, (logits / temperature).softmax(dim=1))
        bins[f"at temperature {temperature:.2f}"] = scaled
        scaling = fill(
            "temperature_scaling",
            temperature=f"{temperature:.3f}",
            error=percent(result["expected_calibration_error_after_temperature"], 2),
        )
    coverage, risk = metrics.risk_coverage(y_true, probabilities)
    half, full = percent(risk[(len(risk) - 1) // 2].item()), percent(risk[-1].item())
    mean = highest.double().mean().item()
    error = percent(result["expected_calibration_error"], 2)
    figures = {
        "reliability": (
            plots.reliability([(label, *(v.numpy() for v in values)) for label, values in bins.items()]),
            f"Reliability diagram with an expected calibration error of {error}",
        ),
        "confidence": (
            plots.confidence_histogram(highest[right].numpy(), highest[~right].numpy()),
            "Histogram of the confidence of right and of wrong predictions",
        ),
        "risk_coverage": (
            plots.risk_coverage(coverage.numpy(), risk.numpy()),
            f"Risk against coverage: {half} errors at half coverage, {full} at full coverage",
        ),
    }
    return {
        "calibration_error": error,
        "temperature_scaling": scaling,
        "mean_confidence": mean,
        "mean_accuracy": result["accuracy"]["value"],
        "calibration_side": side(mean, result["accuracy"]),
        "num_sure": int((highest > 0.9).sum()),
        "num_wrong_and_sure": int((highest[~right] > 0.9).sum()),
        "risk_at_half": half,
        "risk_at_full": full,
        "aurc": f"{result['aurc']:.3f}",
        **page.plot(folder, figures),
    }


def stress(results: dict | None, examples: dict, folder: Path, code: dict) -> Markup:
    """Corruptions, attacks, and whether the attacks can be believed.

    results is the content of stress.json, or None; examples are those of corruptions.examples, {corruption:
    uint8 [6, 32, 32, 3]}.
    """
    if results is None:
        return fill("no_stress")
    tests, summary = results["tests"], results["summary"]
    clean, clean_confidence = tests["clean/0"]["accuracy"], tests["clean/0"]["mean_confidence"]
    corrupted, corrupted_confidence = summary["mean_accuracy"]["all"], summary["mean_confidence"]["all"]
    alts = {
        "stress_severity": "Accuracy against severity by family of corruptions",
        "stress_examples": "A grid of one test image under every corruption at every severity",
        "stress_radius": "Accuracy against the radius of FGSM, PGD, random signs, and the worst attack",
    }
    figures = plots.stress_figures(results, examples)
    corruptions = []
    for name in examples:
        values = [tests[f"{name}/{severity}"]["accuracy"]["value"] for severity in range(1, 6)]
        corruptions.append([plain(name), *values, sum(values) / 5])
    hardest = min(corruptions, key=lambda row: row[-1])
    shares = ("clean", "corrupted", "drop")
    broken = [
        [plain(row["class"]), *((percent(row[key], 0), row[key]) for key in shares)]
        for row in summary["classes_that_break_first"]
    ]
    checks = [["passed" if c["passed"] else "FAILED", c["name"], c["detail"]] for c in results["checks"]]
    per_class = results["corruption_images"] // len(tests["clean/0"]["correct_per_class"])
    radius = f"{MORE_STEPS_EPSILON:g}"
    published = summary["mean_accuracy"].get("published")
    return fill(
        "stress",
        **code,
        **page.plot(folder, {name: (figures[name], alt) for name, alt in alts.items()}),
        hardest=hardest[0],
        hardest_accuracy=hardest[-1],
        at_severity_1=sum(row[1] for row in corruptions) / len(corruptions),
        at_severity_5=sum(row[5] for row in corruptions) / len(corruptions),
        corruption_images=results["corruption_images"],
        clean_accuracy=clean,
        clean_mean=clean["value"],
        clean_confidence=clean_confidence,
        clean_side=side(clean_confidence, clean),
        corrupted_mean=corrupted["value"],
        corrupted_confidence=corrupted_confidence,
        corrupted_side=side(corrupted_confidence, corrupted),
        fifteen_accuracy=summary["mean_accuracy"]["fifteen"],
        published=fill("published", accuracy=published) if published else "",
        corruption_table=page.table(
            "Every corruption", ["corruption", *"12345", "mean"], corruptions, sortable=True
        ),
        per_class=per_class,
        few_images=fill("few_images") if per_class < 20 else "",
        broken_table=page.table("Classes that break first", ["class", *shares], broken),
        attack_images=results["attack_images"],
        apgd_radii=f"{', '.join(f'{r:g}' for r in APGD_EPSILONS[:-1])} and {APGD_EPSILONS[-1]:g}/255",
        radius=radius,
        fgsm_accuracy=tests[f"fgsm/{radius}"]["accuracy"],
        pgd_accuracy=tests[f"pgd/{radius}"]["accuracy"],
        worst_accuracy=results["robust_accuracy"][radius],
        random_accuracy=tests[f"random/{radius}"]["accuracy"]["value"],
        check_table=page.table("Checks of the attacks", ["result", "check", "what was found"], checks),
    )


def side(mean_confidence: float, accuracy: dict) -> str:
    """Name the side of the accuracy on which the mean confidence is, if it is outside of the interval."""
    if accuracy["low"] <= mean_confidence <= accuracy["high"]:
        return "neither clearly overconfident nor clearly underconfident"
    return "overconfident" if mean_confidence > accuracy["value"] else "underconfident"


def browser(order: Tensor, probabilities: Tensor, test) -> dict:
    """All mistakes for the script to filter: their pictures as one, and what is known of each as JSON.

    order: their indices, int64, in the order in which they are shown.
    """
    if len(order) == 0:
        return {"sprite": "", "mistakes": ""}
    columns = math.ceil(math.sqrt(len(order)))
    rows = math.ceil(len(order) / columns)
    pictures = base64.b64encode(page.jpeg(make_grid(test.images[order], columns, padding=0))).decode()
    mistakes = []
    for i in order.tolist():
        likely = probabilities[i].argsort(descending=True, stable=True)[:5]
        mistakes.append(
            {
                "true": test.labels[i].item(),
                "classes": likely.tolist(),  # the first of them is the predicted class
                "probabilities": [round(p, 6) for p in probabilities[i, likely].tolist()],
                "file": test.filenames[i],
            }
        )
    data = {
        "classes": [plain(name) for name in test.class_names],
        "superclasses": [plain(name) for name in test.superclass_names],
        "superclass_of": test.superclass_of.tolist(),
        "num_test": test.labels.bincount(minlength=len(test.class_names)).tolist(),
        "columns": columns,
        "mistakes": mistakes,
    }
    # With this escape no name can end the script element; JSON.parse reads it as the sign itself.
    text = Markup(json.dumps(data, separators=(",", ":")).replace("<", "\\u003c"))
    return {
        "sprite": fill("sprite", content=pictures, columns=columns, rows=rows),
        "mistakes": fill("mistakes", data=text, num_mistakes=len(order)),
    }


def gallery(failures: list[dict], evidence: dict[str, Tensor], test, explained: dict) -> dict:
    """The confident mistakes with the evidence for the predicted and for the true class.

    failures are the rows of failures.csv; evidence is {"predicted" and "true": uint8 [K, 3, 256, 256]}, in
    the same order; explained is the `explanations` of metrics.json.
    """
    items = []
    for row, for_predicted, for_true in zip(failures, *evidence.values(), strict=True):
        predicted, true = plain(row["predicted_class"]), plain(row["true_class"])
        pixels, label = test.images[row["test_index"]], "picture"
        if test.masks is not None:
            mask = test.masks[row["test_index"]]
            pixels, label = page.outline(page.enlarge(pixels, 4), mask), "picture, object outlined"
        panels = {
            label: (pixels, page.png),
            f"evidence for {predicted}": (for_predicted, page.jpeg),
            f"evidence for {true}": (for_true, page.jpeg),
        }
        pictures = []
        for label, (panel, encode) in panels.items():
            picture = page.picture(panel, f"{true}: {label}", 256, encode)
            pictures.append(fill("labelled_picture", picture=picture, label=label))
        shown = {key: row[key] for key in ("probability_predicted", "probability_true", "file_name")}
        items.append(fill("mistake", panels=page.join(pictures), predicted=predicted, true=true, **shown))
    game = explained.get("pointing_game")
    return {
        "num_failures": len(items),
        "layer": explained["layer"],
        "pointing_game": fill("pointing_game", interval=interval(game), **game) if game else "",
        "gallery": page.join(items) if items else fill("no_mistake"),
    }


def explanations(explained: dict, folder: Path) -> dict:
    """Deletion, insertion and randomisation: can the maps be believed?"""
    figures, words = {}, {}
    for mode in ("deletion", "insertion"):
        gradcam, random = explained[f"{mode}_gradcam"], explained[f"{mode}_random"]
        curves = [
            (f"Grad-CAM, area {gradcam['area']:.3f}", np.array(gradcam["curve"])),
            (f"random map, area {random['area']:.3f}", np.array(random["curve"])),
        ]
        moved = np.linspace(0, 1, len(gradcam["curve"]))
        curve = plots.deletion_insertion(mode.capitalize(), moved, curves, f"pixels changed by {mode}")
        areas = f"area {gradcam['area']:.3f} for Grad-CAM, {random['area']:.3f} for random maps"
        figures[mode] = (curve, f"{mode} curves: {areas}")
        difference = explained[f"{mode}_difference"]
        words |= {f"{mode}_gradcam": f"{gradcam['area']:.3f}", f"{mode}_random": f"{random['area']:.3f}"}
        words[f"{mode}_difference"] = f"{difference['value']:+.3f}"
        words[f"{mode}_error"] = f"{difference['standard_error']:.3f}"
    rows = []
    for name, value in explained["randomization"].items():
        shown = "–" if value is None else f"{round(value, 2) + 0.0:.2f}"  # + 0.0 makes 0 of -0
        rows.append(["fc" if name == "fc" else f"fc down to {name}", (shown, value)])
    header = ["random weights in", "rank correlation of the maps"]
    return {
        "num_explained": explained["images"],
        "map_size": "x".join(map(str, explained["map_size"])),
        **words,
        "randomization_table": page.table("Random weights", header, rows),
        **page.plot(folder, figures),
    }


def data_set(result: dict, test) -> dict:
    """Class counts, the audit for duplicates, and one image of each class."""
    values = dict(result["duplicates"])
    for key in ("num_train", "num_test"):
        numbers = {c[key] for c in result["classes"]}
        low, high = min(numbers), max(numbers)
        values[f"{key}_per_class"] = f"{low}" if low == high else f"{low} to {high}"
    without, accuracy = values.pop("accuracy_without_them"), percent(result["accuracy"]["value"], 2)
    values["without_them"] = fill("all_in_train")
    if without is not None:
        values["without_them"] = fill("without_them", without=percent(without, 2), accuracy=accuracy)
    samples = []
    for c, name in enumerate(test.class_names):
        for i in torch.nonzero(test.labels == c).flatten()[:1]:
            pixels = page.picture(test.images[i], f"a test image of the class {plain(name)}", 64)
            samples.append(fill("labelled_picture", picture=pixels, label=plain(name)))
    return values | {"num_classes": len(test.class_names), "samples": page.join(samples)}


def layer_table(layers: list[dict]) -> Markup:
    """The table of what resnet_cifar.count_parameters_and_macs says of each layer, with their sum."""
    rows = []
    parameters, macs = (sum(layer[key] for layer in layers) for key in ("parameters", "macs"))
    total = {"name": "all", "kind": "", "output": [], "parameters": parameters, "macs": macs}
    for layer in [*layers, total]:
        shape = "x".join(map(str, layer["output"]))
        macs = (f"{layer['macs'] / 1e6:,.2f}", layer["macs"])
        rows.append([layer["name"], layer["kind"], shape, layer["parameters"], macs])
    header = ["layer", "kind", "output", "parameters", "multiply-accumulates (M)"]
    return page.table("Complexity layer by layer", header, rows)

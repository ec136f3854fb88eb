"""The sections of the report, in their order: each draws its plots and fills its template.

`result` is the content of metrics.json; the templates findings, failures, confidence and data find all its
numbers under their names. `test` is the test split, a data.Dataset; `folder` is the plots/ of the run.
"""

import base64
import json
import math
import shlex
from operator import itemgetter
from pathlib import Path

import matplotlib
import numpy as np
import torch
from torch import Tensor
from torchvision.utils import make_grid

import metrics
from page import plots
from page.page import (
    Markup,
    fill,
    filter_link,
    interval,
    jpeg,
    percent,
    picture,
    plain,
    plot,
    png,
    table,
)
from running.console import duration, option
from running.files import read_file, usable
from running.folder import results_folder
from stress_tests.attacks import APGD_EPSILONS
from stress_tests.corruptions import CORRUPTIONS, examples

HEADLINE = {
    "accuracy": "accuracy",
    "macro_precision": "macro precision",
    "macro_recall": "macro recall",
    "macro_f1": "macro F1",
    "top5_accuracy": "top-5 accuracy",
}
# The first version of this pipeline, 40 epochs on CIFAR-100; the numbers to beat.
NOTEBOOK = {"accuracy": 0.6596, "macro_precision": 0.6611, "macro_recall": 0.6596, "macro_f1": 0.6588}
CONTROLS = {
    "random": "random maps of the same size",
    "centre": "a Gaussian in the centre",
    "other_image": "the map of another image",
}
BETTER = {"deletion": -1, "insertion": 1}  # the sign of a difference in favour of Grad-CAM
MAX_SPRITE = 850_000  # bytes of the pictures of all mistakes, whose quality falls until they fit


# ---- What was found --------------------------------------------------------------------------------------


def in_words(result: dict) -> dict[str, str]:
    """Return what several sections say of the numbers in `result`, for their templates."""
    worst = [f"{plain(row['name'])} ({percent(row['recall'], 0)})" for row in worst_classes(result)[:3]]
    pairs = [
        f"{plain(pair['true'])} taken for {plain(pair['predicted'])} ({pair['count']} images)"
        for pair in result["most_confused_pairs"][:3]
    ]
    words = {
        "hardest": listed(worst),
        "pairs": listed(pairs) if pairs else "none",
        "side": side(result["mean_confidence"], result["accuracy"]),
        "after_temperature": "",
        "temperature_scaling": "",
        "held_out": "",
    }
    *_, all_random = result["explanations"]["randomization"]["down_to"].values()
    words["all_random"] = spread(all_random["mean_abs"])
    # Of two unrelated orders of n values rho is nearly normal, with a variance of 1 / (n - 1).
    cells = math.prod(result["explanations"]["map_size"])
    words["unrelated"] = f"{math.sqrt(2 / math.pi / (cells - 1)):.2f}" if cells > 1 else "–"
    if "temperature" in result:
        after = side(result["mean_confidence_after_temperature"], result["accuracy"])
        for name in ("after_temperature", "temperature_scaling"):
            words[name] = fill(name, **result, after=after)
    like = result["lookalikes"]
    if all(f"same_label_{name}" in like for name in ("trained_on", "held_out")):
        words["held_out"] = fill("held_out", **like)
    return words | {f"{mode}_verdict": verdict(result["explanations"][mode], mode) for mode in BETTER}


def worst_classes(result: dict) -> list[dict]:
    """Return the rows of ten classes with test images, those with the lowest recall."""
    return sorted((row for row in result["classes"] if row["num_test"]), key=lambda row: row["recall"])[:10]


def listed(words: list[str]) -> str:
    """Return words as "a", "a and b" or "a, b and c"."""
    return " and ".join([", ".join(words[:-1]), words[-1]] if len(words) > 1 else words)


def side(mean_confidence: float, accuracy: dict) -> str:
    """Name the side of the accuracy on which the mean confidence is, if it is outside of the interval."""
    if accuracy["low"] <= mean_confidence <= accuracy["high"]:
        return "neither clearly overconfident nor clearly underconfident"
    return "overconfident" if mean_confidence > accuracy["value"] else "underconfident"


def verdict(rows: dict[str, dict], mode: str) -> str:
    """Say of which controls Grad-CAM is better or worse by more than two standard errors."""
    groups = {"better than": [], "not told apart from": [], "worse than": []}
    for name, label in CONTROLS.items():
        row = rows[name]["gradcam_less_this"]
        gain, error = BETTER[mode] * row["value"], 2 * row["standard_error"]
        kind = "better than" if gain > error else "worse than" if gain < -error else "not told apart from"
        groups[kind].append(label)
    return "; ".join(f"{kind} {listed(labels)}" for kind, labels in groups.items() if labels)


# ---- The head and the training ---------------------------------------------------------------------------


def headline(result: dict, network: Markup, test, folder: Path) -> Markup:
    """What was trained, and the headline metrics as cards, with those of the notebook if any."""
    notebook = NOTEBOOK if test.name == "cifar100" else {}
    cards = []
    for key, name in HEADLINE.items():
        note = interval(result[key])
        note += f"; notebook {percent(notebook[key], 2)}" if key in notebook else ""
        cards.append(fill("card", name=name, note=note, **result[key]))
    bars = plots.headline_bars({name: result[key] for key, name in HEADLINE.items()})
    plots.save_png(bars, folder / "headline_metrics.png")
    return fill(
        "headline",
        cards=cards,
        data_set="CIFAR-100" if test.name == "cifar100" else "coloured shapes",
        network=network,
        notebook=fill("notebook") if notebook else "",
    )


def training(checkpoint: dict, history: list[dict], last_cutmix: int, folder: Path) -> Markup:
    """Curves of both splits, the learning rate, time and speed; last_cutmix is the last epoch with CutMix."""
    column = {key: np.array([row[key] for row in history]) for key in history[0]}
    best, size, rate = column["val_accuracy"].argmax(), column["image_size"], column["images_per_second"]
    changes = {i + 0.5: f"{size[i]:.0f} px" for i in range(1, len(size)) if size[i] != size[i - 1]}
    mixes = checkpoint["config"]["settings"]["cutmix"] > 0 and last_cutmix > 0
    if mixes and last_cutmix < len(history):
        changes[last_cutmix + 0.5] = "no CutMix"
    figures = {
        quantity: plots.training_curve(column, quantity, column["epoch"][best], changes)
        for quantity in ("loss", "accuracy")
    }
    x, lines = column["epoch"], {"": column["lr"]}
    figures["learning_rate"] = plots.curves("Learning rate", "epoch", "rate", x, lines, fractions=False)
    speeds = {s: np.median(rate[size == s]) for s in np.unique(size)}
    return fill(
        "training",
        **checkpoint,
        **plot(folder, **figures),
        best=history[best],
        last=history[-1],
        duration=duration(column["seconds"].sum()),
        speeds=", ".join(f"{speed:,.0f} images/s at {s:.0f}x{s:.0f} pixels" for s, speed in speeds.items()),
        cutmix=fill("cutmix", **checkpoint, last_cutmix=last_cutmix) if mixes else "",
        several_sizes=fill("several_sizes") if len(speeds) > 1 else "",
        shortened=fill("shortened", **checkpoint)
        if len(history) == checkpoint["epoch"] < checkpoint["config"]["settings"]["epochs"]
        else "",
    )


# ---- Where it fails --------------------------------------------------------------------------------------


def failures(result: dict, test, y_pred: Tensor, against: Markup, folder: Path) -> Markup:
    """Classes, pairs and superclasses that are confused, and the comparison with another run, if any."""
    names, superclasses = ([plain(n) for n in names] for names in (test.class_names, test.superclass_names))
    confusion = metrics.confusion_matrix(test.labels, y_pred, len(names))
    fractions = confusion / confusion.sum(dim=1, keepdim=True).clamp(min=1)  # of each row; without samples 0
    order = test.superclass_of.argsort(stable=True)  # the classes of a superclass beside each other
    sizes = test.superclass_of.bincount(minlength=len(superclasses)).tolist()
    matrix = fractions[order][:, order].numpy(), [names[c] for c in order]
    bars = {}
    for row in worst_classes(result):
        other = f" (mostly taken for {row['most_confused_with']})" if row["most_confused_with"] else ""
        bars[plain(row["name"] + other)] = row["recall"]
    plots.save_png(plots.worst_classes(bars), folder / "worst_classes.png")
    figure = plots.confusion_matrix(*matrix, dict(zip(superclasses, sizes, strict=True)))
    plots.save_png(figure, folder / "confusion_matrix.png")
    pairs = len(names) * (len(names) - 1)
    coarse = (test.superclass_of[classes] for classes in (test.labels, y_pred))
    _, found, _ = metrics.precision_recall_f1(metrics.confusion_matrix(*coarse, len(superclasses)))
    extremes = {"hardest_superclass": found.argmin(), "easiest_superclass": found.argmax()}
    return fill(
        "failures",
        **result,
        **{key: f"{superclasses[s]} ({percent(found[s].item())})" for key, s in extremes.items()},
        num_classes=len(names),
        num_pairs=pairs,
        empty_pairs=pairs - int((confusion.clone().fill_diagonal_(0) > 0).sum()),
        confused_pairs=confused_pairs(result["most_confused_pairs"][:10], test, y_pred),
        class_table=class_table(result["classes"]),
        against=against,
    )


def confused_pairs(pairs: list[dict], test, y_pred: Tensor) -> Markup:
    """The pairs that are confused most often, with up to four examples of each."""
    rows = []
    for pair in pairs:
        true, predicted = (test.class_names.index(pair[key]) for key in ("true", "predicted"))
        shown = torch.nonzero((test.labels == true) & (y_pred == predicted)).flatten()[:4]
        names = {key: plain(pair[key]) for key in ("true", "predicted")}
        alt = f"a {names['true']} taken for a {names['predicted']}"
        pictures = [picture(png(test.images[i]), alt, 64) for i in shown]
        links = {key: filter_link(name, **names) for key, name in names.items()}
        rows.append(links | {"images": pair["count"], "examples": fill("pictures", pictures=pictures)})
    return table("Most confused pairs", rows)


def class_table(classes: list[dict]) -> Markup:
    """The sortable table of all classes, those with the lowest recall first."""
    rows = []
    for row in sorted(classes, key=lambda row: row["recall"]):
        name, superclass, other = (plain(row[k]) for k in ("name", "superclass", "most_confused_with"))
        text = f"{other} ({row['most_confused_with_count']})"
        rows.append(
            {
                "class": filter_link(name, true=name),
                "superclass": filter_link(superclass, superclass=superclass),
                "precision": row["precision"],
                "recall": row["recall"],
                "F1": row["f1"],
                "times predicted": row["num_predicted"],
                "mostly taken for": filter_link(text, true=name, predicted=other) if other else "none",
            }
        )
    return table("All classes", rows, sortable=True)


# ---- The misclassified images ----------------------------------------------------------------------------


def mistakes(
    failures: list[dict], evidence: dict[str, Tensor], nearest: dict, browser: Markup, result: dict, test
) -> Markup:
    """The browser, and the most confident mistakes with the evidence for either class.

    failures are the rows of failures.csv; evidence is {"predicted" and "true": uint8 [K, 3, 256, 256]}, in
    the same order; nearest is as in `browser`.
    """
    items = []
    for row, for_predicted, for_true in zip(failures, *evidence.values(), strict=True):
        predicted, true, i = plain(row["predicted_class"]), plain(row["true_class"]), row["test_index"]
        panels = {
            "picture": png(test.images[i]),
            f"evidence for {predicted}": jpeg(for_predicted),
            f"evidence for {true}": jpeg(for_true),
        }
        pictures = [
            fill("labelled_picture", picture=picture(content, f"{true}: {label}", 256), label=label)
            for label, content in panels.items()
        ]
        label = plain(test.class_names[nearest["labels"][i]])
        copied = fill("copied", label=label) if nearest["equal"][i] else ""
        items.append(fill("mistake", **row, panels=pictures, predicted=predicted, true=true, copied=copied))
    game = result["explanations"].get("pointing_game")
    controls = [f"{label} {percent(game[name]['value'])}" for name, label in CONTROLS.items()] if game else []
    return fill(
        "mistakes",
        browser=browser,
        num_failures=len(items),
        layer=result["explanations"]["layer"],
        pointing_game=fill("pointing_game", **game, controls=", ".join(controls)) if game else "",
        gallery=items if items else fill("no_mistake"),
    )


def browser(
    misclassified: Tensor,
    probabilities: Tensor,
    maps: Tensor,
    nearest: dict[str, Tensor],
    others: dict[str, Tensor],
    test,
) -> Markup:
    """The first M of the misclassified images for the script to filter: pictures, maps, and the rest as JSON.

    maps, float32 [M, 2, h, h], are the evidence for the predicted and for the true class. nearest is what
    most_similar found in the training set for each test image: images, labels, similarity, and whether the
    two are equal. others: {name of another run: its probabilities, float32 [N, C]}.
    """
    count, shown = len(misclassified), misclassified[: len(maps)]
    columns = math.ceil(math.sqrt(max(1, len(shown))))
    images = []
    for i in shown.tolist():
        likely = probabilities[i].argsort(descending=True, stable=True)  # the predicted class first
        rank = int((likely == test.labels[i]).nonzero())
        likely = likely[[*range(5), rank]] if rank > 4 else likely[:5]
        said = [rows[i] for rows in others.values()]
        images.append(
            {
                "true": test.labels[i].item(),
                "classes": likely.tolist(),
                "probabilities": [round(p, 6) for p in probabilities[i, likely].tolist()],
                "file": test.filenames[i],
                "nearest": [nearest["labels"][i].item(), round(nearest["similarity"][i].item(), 2)],
                "equal": nearest["equal"][i].item(),
                "others": [[row.argmax().item(), round(row.max().item(), 6)] for row in said],
            }
        )
    confusion = metrics.confusion_matrix(test.labels, probabilities.argmax(dim=1), len(test.class_names))
    peak = maps.amax(dim=(2, 3), keepdim=True)
    inferno = matplotlib.colormaps["inferno"](range(256), bytes=True)[:, :3]
    data = {
        "classes": [plain(name) for name in test.class_names],
        "superclasses": [plain(name) for name in test.superclass_names],
        "superclass_of": test.superclass_of.tolist(),
        "confusion": confusion.tolist(),  # of all test images
        "images": images,
        "maps": base64_bytes((255 * maps / peak.clamp(min=1e-30)).round()),
        "inferno": base64_bytes(torch.from_numpy(inferno)),
        "runs": list(others),
    }
    return fill(
        "browser",
        which=f"The {len(shown):,} most confident of {count:,}" if len(shown) < count else f"All {count:,}",
        wrong_images=sprite(test.images[shown], columns),
        nearest_images=sprite(nearest["images"][shown], columns),
        # With this escape no name can end the script element; JSON.parse reads it as the sign itself.
        data=Markup(json.dumps(data, separators=(",", ":")).replace("<", "\\u003c")),
    )


def base64_bytes(values: Tensor) -> str:
    """Return whole numbers from 0 to 255 as the base64 of their bytes."""
    return base64.b64encode(values.to(torch.uint8).numpy().tobytes()).decode()


def sprite(images: Tensor, columns: int) -> str:
    """Return images, uint8 [N, 3, 32, 32], as one JPEG file in base64, so many of them in a row."""
    pixels = make_grid(images, columns, padding=0) if len(images) else torch.zeros(3, 32, 32).byte()
    for quality in range(95, 15, -10):
        content = jpeg(pixels, quality)
        if len(content) <= MAX_SPRITE:
            break
    return base64.b64encode(content).decode()


# ---- How sure it is --------------------------------------------------------------------------------------


def confidence(result: dict, logits: Tensor, y_true: Tensor, folder: Path) -> Markup:
    """Calibration before and after temperature scaling, confidence of right and wrong, risk and coverage."""
    probabilities = logits.softmax(dim=1)
    highest, y_pred = probabilities.max(dim=1)
    correct = y_pred == y_true
    rows = {"as trained": probabilities}
    if "temperature" in result:
        temperature = result["temperature"]
        rows[f"at temperature {temperature:.2f}"] = (logits / temperature).softmax(dim=1)
    bins = {}
    for label, scaled in rows.items():
        bins[label] = [column.numpy() for column in metrics.calibration_bins(y_true, scaled)]
    coverage, risk = (values.numpy() for values in metrics.risk_coverage(y_true, probabilities))
    histogram = plots.confidence_histogram(highest[correct].numpy(), highest[~correct].numpy())
    labels = "Risk against coverage", "coverage: share of images answered", "risk: errors among them"
    curve = plots.curves(*labels, coverage, {"": risk})
    return fill(
        "confidence",
        **result,
        risk_at_half=float(risk[(len(risk) - 1) // 2]),
        risk_at_full=float(risk[-1]),
        **plot(folder, reliability=plots.reliability(bins), confidence=histogram, risk_coverage=curve),
    )


# ---- Where it breaks -------------------------------------------------------------------------------------


def stress(file: Path, checkpoint_sha256: str, images: Tensor, folder: Path) -> tuple[Markup, Markup | str]:
    """Corruptions and attacks, if stress.py has tested the checkpoint: the section, and what was found.

    file is the stress.json of the run, images are those of the test split, uint8 [N, 3, 32, 32]. Raises
    UserError if the file cannot be used.
    """
    if file.exists():
        with usable(file, "results of stress.py"):
            results = json.loads(read_file(file))
            of_this = results["checkpoint_sha256"] == checkpoint_sha256 and "summary" in results
            if of_this and all(f"{name}/5" in results["tests"] for name in CORRUPTIONS):
                return stress_results(results, examples(images), folder)
    return fill("no_stress"), ""


def stress_results(results: dict, pictures: dict[str, np.ndarray], folder: Path) -> tuple[Markup, Markup]:
    """The same from a finished stress.json; pictures are those of corruptions.examples."""
    tests, summary = results["tests"], results["summary"]
    rows = summary["by_severity"]
    results = results | {"severity_1": rows[1], "severity_5": rows[5], "shift": shift_verdict(rows)}
    corruptions = []
    for name in pictures:
        values = [tests[f"{name}/{severity}"]["accuracy"]["value"] for severity in range(1, 6)]
        corruptions.append({"corruption": plain(name)} | dict(zip("12345", values, strict=True)))
        corruptions[-1]["mean"] = sum(values) / 5
    hardest = sorted(corruptions, key=lambda row: row["mean"])[:3]
    fourier = results["fourier"]
    heatmap = plots.fourier_heatmap(np.array(fourier["error"]), fourier["rows"], fourier["columns"])
    broken = [
        {key: (percent(value, 0), value) if key != "class" else plain(value) for key, value in row.items()}
        for row in summary["classes_that_break_first"]
    ]
    checks = [
        {"result": "passed" if passed else "FAILED", "check": name, "what was found": detail}
        for name, passed, detail in map(itemgetter("name", "passed", "detail"), results["checks"])
    ]
    clean = tests["clean/0"]
    section = fill(
        "stress",
        **results,
        **plot(folder, **plots.stress_figures(results, pictures), stress_fourier=heatmap),
        clean_side=side(clean["mean_confidence"], clean["accuracy"]),
        corrupted_side=side(summary["mean_confidence"]["all"], summary["mean_accuracy"]["all"]),
        published=fill("published", **results) if "published" in summary["mean_accuracy"] else "",
        hardest=", ".join(f"{row['corruption']} ({percent(row['mean'])})" for row in hardest),
        corruption_table=table("Every corruption", corruptions, sortable=True),
        severity_table=severity_table(rows),
        broken=table("Classes that break first", broken) if broken else fill("few_images", **results),
        num_corruptions=len(corruptions),
        apgd_epsilons=", ".join(f"{epsilon:g}/255" for epsilon in APGD_EPSILONS),
        check_table=table("Checks of the attacks", checks),
    )
    return section, fill("stress_findings", **results)


def severity_table(rows: list[dict]) -> Markup:
    """Accuracy, confidence and calibration at severity 0, the clean images, to 5."""
    body = []
    for severity, row in enumerate(rows):
        cells = {"severity": str(severity) if severity else "clean", "accuracy": row["accuracy"]}
        cells["mean confidence"] = row["mean_confidence"]
        for key, words in {"as_trained": "as trained", "with_temperature": "with the temperature"}.items():
            if key in row:
                cells[f"ECE pooled, {words}"] = row[key]["ece"]
                cells[f"mean of each ECE, {words}"] = row[key]["mean_ece"]
                cells[f"NLL, {words}"] = (f"{row[key]['nll']:.2f}", row[key]["nll"])
        body.append(cells)
    return table("Calibration under corruption", body)


def shift_verdict(rows: list[dict]) -> str:
    """Say at which severities the temperature, fitted on clean images, makes the calibration error larger."""
    if "with_temperature" not in rows[0]:
        return ""
    worse = [str(s) for s in range(1, 6) if rows[s]["with_temperature"]["ece"] > rows[s]["as_trained"]["ece"]]
    where = "every severity" if len(worse) == 5 else f"severity {', '.join(worse) or 'none'}"
    return fill("shift", where=where, mild=rows[1], severe=rows[5])


# ---- Explanations, data, reproduction --------------------------------------------------------------------


def explanations(result: dict, folder: Path) -> Markup:
    """Deletion, insertion and randomisation: can the maps be believed?"""
    explained, parts, figures = result["explanations"], {}, {}
    for mode in BETTER:
        rows, lines = explained[mode], {}
        for name, label in {"gradcam": "Grad-CAM", **CONTROLS}.items():
            lines[f"{label}, area {rows[name]['area']['value']:.3f}"] = np.array(rows[name]["curve"])
        moved = np.linspace(0, 1, len(rows["gradcam"]["curve"]))
        labels = f"pixels changed by {mode}", "probability of the explained class"
        figures[mode] = plots.curves(mode.capitalize(), *labels, moved, lines)
        differences = {label: rows[name]["gradcam_less_this"] for name, label in CONTROLS.items()}
        body = [
            {
                "area of Grad-CAM less that of": label,
                "difference": (f"{row['value']:+.3f}", row["value"]),
                "standard error": (f"{row['standard_error']:.3f}", row["standard_error"]),
            }
            for label, row in differences.items()
        ]
        parts[f"{mode}_table"] = table(f"Grad-CAM less the controls, {mode}", body)
    body = []
    for name, row in explained["randomization"]["down_to"].items():
        cells = {"random weights in": "fc" if name == "fc" else f"fc down to {name}"}
        for key, heading in {"mean": "mean of rho", "mean_abs": "mean of |rho|"}.items():
            cells[heading] = (spread(row[key]), row[key]["value"])
        body.append(cells)
    return fill(
        "explanations",
        **result,
        **parts,
        **plot(folder, **figures),
        size="x".join(map(str, explained["map_size"])),
        randomization_table=table("Random weights", body),
    )


def spread(row: dict) -> str:
    """Return a mean and its range over the seeds as "0.02 (-0.04 to 0.07)"."""
    if row["value"] is None:
        return "–"
    value, low, high = (f"{round(row[key], 2) + 0.0:.2f}" for key in ("value", "low", "high"))  # no -0.00
    return f"{value} ({low} to {high})"


def data_set(result: dict, test) -> Markup:
    """Class counts, the audit for duplicates, and one image of each class."""
    counts, samples = {}, []
    for key in ("num_train", "num_test"):
        numbers = sorted({row[key] for row in result["classes"]})
        counts[f"{key}_per_class"] = " to ".join(str(n) for n in sorted({numbers[0], numbers[-1]}))
    for c, name in enumerate(map(plain, test.class_names)):
        for i in torch.nonzero(test.labels == c).flatten()[:1]:
            sample = picture(png(test.images[i]), f"a test image of the class {name}", 64)
            samples.append(fill("labelled_picture", picture=sample, label=name))
    without = percent(result["duplicates"]["accuracy_without_them"], 2)
    like = result["lookalikes"]
    rows = [
        {
            "similarity": f"{max(row['from'], 0):.2f} to {row['to']:.2f}",
            "images": row["images"],
            "accuracy": (percent(row["value"], 2), row["value"]),
            "95 % interval": f"{100 * row['low']:.2f} to {percent(row['high'], 2)}",
        }
        for row in like["by_similarity"]
    ]
    return fill(
        "data",
        **result,
        **counts,
        without=without,
        similarity_table=table("Accuracy by similarity", rows),
        num_classes=len(test.class_names),
        samples=samples,
    )


def reproduction(path: Path, checkpoint: dict, environment: dict, layers: list[dict], test) -> Markup:
    """The commands, versions, hardware, digest of the data, and complexity of the network.

    environment is that of this report; layers are the rows of resnet_cifar.count_parameters_and_macs.
    """
    config, options = checkpoint["config"], []
    for name, value in config["settings"].items():
        if value is not None and value is not False:
            options += [option(name)] if value is True else [option(name), str(value)]
    facts = {f"training: {name}": str(value) for name, value in config["environment"].items()}
    facts |= {f"report: {name}": str(value) for name, value in environment.items()}
    facts |= {"checkpoint": str(path), "data": test.provenance, "test digest (sha256)": test.digest}
    parameters, macs = (sum(layer[key] for layer in layers) for key in ("parameters", "macs"))
    rows = []
    for row in layers:
        shown = {"layer": row["name"], "kind": row["kind"], "output": "x".join(map(str, row["output"]))}
        millions = (f"{row['macs'] / 1e6:,.2f}", row["macs"])
        rows.append(shown | {"parameters": row["parameters"], "multiply-accumulates (M)": millions})
    run = results_folder(path)
    is_best = path == run / "checkpoints" / "best.pt"
    return fill(
        "reproduction",
        options=shlex.join(options),
        source=shlex.join(["--run", str(run)] if is_best else ["--checkpoint", str(path)]),
        facts_table=table(
            "Versions and data", [{"what": key, "value": value} for key, value in facts.items()]
        ),
        parameters=parameters,
        macs=f"{macs / 1e9:.3f}",
        layer_table=table("Complexity layer by layer", rows),
    )

"""The sections of the report, in their order: each draws its plots and fills its template.

`result` is the content of metrics.json, whose numbers every template of a section finds under their names;
`test` is the test split, a data.Dataset; `folder` is the plots/ of the run.
"""

import base64
import json
import math
import shlex
from pathlib import Path

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
    join,
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
from stress_tests.attacks import APGD_EPSILONS, MORE_STEPS_EPSILON
from stress_tests.corruptions import examples

HEADLINE = {
    "accuracy": "accuracy",
    "macro_precision": "macro precision",
    "macro_recall": "macro recall",
    "macro_f1": "macro F1",
    "top5_accuracy": "top-5 accuracy",
}
# The first version of this pipeline, 40 epochs on CIFAR-100; the numbers to beat.
NOTEBOOK = {"accuracy": 0.6596, "macro_precision": 0.6611, "macro_recall": 0.6596, "macro_f1": 0.6588}
MAX_BROWSED = 2500  # misclassified images in the page, the most confident ones
MAX_SPRITE = 1_800_000  # bytes of their pictures; those of CIFAR-100 stay below it at the first quality


# ---- The head and the training ---------------------------------------------------------------------------


def network(checkpoint: dict) -> Markup:
    """What was trained on what."""
    config = checkpoint["config"]
    return fill(
        "network",
        **{key: config[key] for key in ("width", "parameters", "num_train", "num_val", "provenance")},
        epoch=checkpoint["epoch"],
        epochs=config["settings"]["epochs"],
        accuracy=percent(checkpoint["val_accuracy"], 2),
    )


def headline(result: dict, test, folder: Path) -> Markup:
    """The headline metrics as cards and as bars, with those of the notebook where there are any."""
    notebook = NOTEBOOK if test.name == "cifar100" else {}
    cards = {}
    for key, name in HEADLINE.items():
        note, value = interval(result[key], 2), result[key]["value"]
        if key in notebook:
            note += f"; notebook {percent(notebook[key], 2)}"
        bar = {"fraction": str(value), "reference": str(notebook.get(key, -1))}
        cards[f"card_{key}"] = fill("card", name=name, value=percent(value, 2), note=note, **bar)
    numbers = {name: result[key] for key, name in HEADLINE.items()}
    bars = plots.headline_bars(numbers, {HEADLINE[key]: value for key, value in notebook.items()})
    alt = "Bar plot: " + ", ".join(f"{name} {percent(row['value'], 2)}" for name, row in numbers.items())
    ahead = f"{100 * (result['accuracy']['value'] - NOTEBOOK['accuracy']):+.1f}"
    return fill(
        "headline",
        **cards,
        notebook=fill("notebook", points=ahead) if notebook else "",
        plot=plot(folder / "headline_metrics.png", bars, alt),
    )


def training(checkpoint: dict, history: list[dict], last_cutmix_epoch: int, folder: Path) -> Markup:
    """Curves of both splits, the learning rate, the end of CutMix, time and speed."""
    config, cutmix = checkpoint["config"], checkpoint["config"]["settings"]["cutmix"]
    column = {key: np.array([row[key] for row in history]) for key in history[0]}
    best, size, rate = column["val_accuracy"].argmax(), column["image_size"], column["images_per_second"]
    changes = {i + 0.5: f"{size[i]:.0f} px" for i in range(1, len(size)) if size[i] != size[i - 1]}
    if cutmix and 0 < last_cutmix_epoch < len(history):
        changes[last_cutmix_epoch + 0.5] = "no CutMix"
    drawn = {}
    for quantity in ("loss", "accuracy"):
        train, val = column[f"train_{quantity}"], column[f"val_{quantity}"]
        curve = plots.training_curve(
            column["epoch"], train, val, int(column["epoch"][best]), quantity.capitalize(), changes
        )
        alt = f"Training {quantity} goes from {train[0]:.2f} to {train[-1]:.2f}, "
        alt += f"validation {quantity} from {val[0]:.2f} to {val[-1]:.2f}"
        drawn[f"plot_{quantity}"] = plot(folder / f"{quantity}.png", curve, alt)
    curve = plots.curves(
        "Learning rate", "epoch", "learning rate", column["epoch"], {"": column["lr"]}, fractions=False
    )
    alt = f"The learning rate rises to {column['lr'].max():g}, then falls along a cosine"
    speeds = {s: np.median(rate[size == s]) for s in np.unique(size)}
    return fill(
        "training",
        **drawn,
        plot_learning_rate=plot(folder / "learning_rate.png", curve, alt),
        **{key: config[key] for key in ("num_train", "device", "precision")},
        hardware=config["environment"]["hardware"],
        num_epochs=len(history),
        duration=duration(column["seconds"].sum()),
        speeds=", ".join(f"{speed:,.0f} images/s at {s:.0f}x{s:.0f} pixels" for s, speed in speeds.items()),
        cutmix=fill("cutmix", last=last_cutmix_epoch, fraction=cutmix)
        if cutmix and last_cutmix_epoch
        else "",
        several_sizes=fill("several_sizes") if len(speeds) > 1 else "",
        last_train_accuracy=float(column["train_accuracy"][-1]),
        last_val_accuracy=float(column["val_accuracy"][-1]),
        best_epoch=int(column["epoch"][best]),
        best_val_accuracy=percent(column["val_accuracy"][best], 2),
    )


# ---- Where it fails --------------------------------------------------------------------------------------


def failures(result: dict, test, y_pred: Tensor, against: Markup, folder: Path) -> Markup:
    """Classes, pairs and superclasses that are confused, and the comparison with another run, if any."""
    names, superclasses = ([plain(n) for n in names] for names in (test.class_names, test.superclass_names))
    confusion = metrics.confusion_matrix(test.labels, y_pred, len(names))
    order = test.superclass_of.argsort(stable=True)  # the classes of a superclass beside each other
    groups = dict(
        zip(superclasses, test.superclass_of.bincount(minlength=len(superclasses)).tolist(), strict=True)
    )
    by_class = plots.confusion_matrix(
        row_fractions(confusion[order][:, order]), [names[c] for c in order], groups
    )
    coarse = metrics.superclass_confusion(confusion, test.superclass_of)
    by_superclass = plots.superclass_confusion(row_fractions(coarse), superclasses)

    worst = sorted((row for row in result["classes"] if row["num_test"]), key=lambda row: row["recall"])[:10]
    recall = {plain(row["name"]): row["recall"] for row in worst}
    bars = plots.worst_classes(recall, [plain(row["most_confused_with"]) for row in worst])
    shown = ", ".join(f"{name} {percent(value, 0)}" for name, value in recall.items())
    pairs = len(names) * (len(names) - 1)
    return fill(
        "failures",
        **result,
        chance_within_superclass=chance_within(test.superclass_of),
        worst=fill("worst", **{key: plain(v) if isinstance(v, str) else v for key, v in worst[0].items()}),
        pairs=pairs,
        empty_pairs=pairs - int((confusion.clone().fill_diagonal_(0) > 0).sum()),
        confused_pairs=confused_pairs(result["most_confused_pairs"][:10], test, y_pred),
        class_table=class_table(result["classes"]),
        plot_worst_classes=plot(folder / "worst_classes.png", bars, f"The ten worst classes: {shown}"),
        plot_confusion_matrix=plot(
            folder / "confusion_matrix.png", by_class, "Confusion matrix by class, in blocks of superclasses"
        ),
        plot_superclass_confusion=plot(
            folder / "superclass_confusion.png", by_superclass, "Confusion matrix by superclass"
        ),
        against=against,
    )


def row_fractions(confusion: Tensor) -> np.ndarray:
    """Divide each row of a confusion matrix by its sum; a row without samples stays 0."""
    return (confusion / confusion.sum(dim=1, keepdim=True).clamp(min=1)).numpy()


def chance_within(superclass_of: Tensor) -> float:
    """Return the mean over the classes of the fraction of other classes that are in the same superclass."""
    sizes = superclass_of.bincount()[superclass_of].double()
    return ((sizes - 1) / max(1, len(superclass_of) - 1)).mean().item()


def confused_pairs(pairs: list[dict], test, y_pred: Tensor) -> Markup:
    """The pairs that are confused most often, with up to four examples of each."""
    rows = []
    for pair in pairs:
        true, predicted = (test.class_names.index(pair[key]) for key in ("true", "predicted"))
        shown = torch.nonzero((test.labels == true) & (y_pred == predicted)).flatten()[:4]
        names = {key: plain(pair[key]) for key in ("true", "predicted")}
        alt = f"a {names['true']} taken for a {names['predicted']}"
        pictures = join([picture(png(test.images[i]), alt, 64) for i in shown])
        links = [filter_link(name, **names) for name in names.values()]
        rows.append([*links, pair["count"], fill("pictures", pictures=pictures)])
    return table("Most confused pairs", ["true", "predicted", "images", "examples"], rows)


def class_table(classes: list[dict]) -> Markup:
    """The sortable table of all classes."""
    header = ["class", "superclass", "precision", "recall = accuracy", "F1", "test images"]
    rows = []
    for row in classes:
        name, superclass, other = (plain(row[k]) for k in ("name", "superclass", "most_confused_with"))
        numbers = [row[key] for key in ("precision", "recall", "f1", "num_test")]
        text = f"{other} ({row['most_confused_with_count']})"
        mistake = filter_link(text, true=name, predicted=other) if other else "none"
        links = [filter_link(name, true=name), filter_link(superclass, superclass=superclass)]
        rows.append([*links, *numbers, mistake])
    return table("All classes", [*header, "most common mistake"], rows, sortable=True)


# ---- The misclassified images ----------------------------------------------------------------------------


def mistakes(
    misclassified: Tensor,
    probabilities: Tensor,
    failures: list[dict],
    evidence: dict[str, Tensor],
    result: dict,
    test,
) -> Markup:
    """The misclassified images, and for the most confident of them the evidence for either class.

    misclassified: their indices, int64, the most confident first. failures are the rows of failures.csv;
    evidence is {"predicted" and "true": uint8 [K, 3, 256, 256]}, in the same order.
    """
    items = []
    for row, for_predicted, for_true in zip(failures, *evidence.values(), strict=True):
        predicted, true = plain(row["predicted_class"]), plain(row["true_class"])
        panels = {
            "picture": png(test.images[row["test_index"]]),
            f"evidence for {predicted}": jpeg(for_predicted),
            f"evidence for {true}": jpeg(for_true),
        }
        pictures = [
            fill("labelled_picture", picture=picture(content, f"{true}: {label}", 256), label=label)
            for label, content in panels.items()
        ]
        items.append(fill("mistake", **row, panels=join(pictures), predicted=predicted, true=true))
    game = result["explanations"].get("pointing_game")
    return fill(
        "mistakes",
        browser=browser(misclassified, probabilities, test) if len(misclassified) else "",
        num_failures=len(items),
        layer=result["explanations"]["layer"],
        pointing_game=fill("pointing_game", interval=interval(game), **game) if game else "",
        gallery=join(items) if items else fill("no_mistake"),
    )


def browser(misclassified: Tensor, probabilities: Tensor, test) -> Markup:
    """The images for the script to filter, at most MAX_BROWSED: their pictures as one, the rest as JSON."""
    count, shown = len(misclassified), misclassified[:MAX_BROWSED]
    columns = math.ceil(math.sqrt(len(shown)))
    pixels = make_grid(test.images[shown], columns, padding=0)
    for quality in (95, 85, 75, 65):
        sprite = jpeg(pixels, quality)
        if len(sprite) <= MAX_SPRITE:
            break
    images = []
    for i in shown.tolist():
        likely = probabilities[i].argsort(descending=True, stable=True)[:5]  # the predicted class first
        row = {"true": test.labels[i].item(), "classes": likely.tolist(), "file": test.filenames[i]}
        images.append(row | {"probabilities": [round(p, 6) for p in probabilities[i, likely].tolist()]})
    confusion = metrics.confusion_matrix(test.labels, probabilities.argmax(dim=1), len(test.class_names))
    data = {
        "classes": [plain(name) for name in test.class_names],
        "superclasses": [plain(name) for name in test.superclass_names],
        "superclass_of": test.superclass_of.tolist(),
        "confusion": confusion.tolist(),  # of all test images
        "columns": columns,
        "images": images,
    }
    return fill(
        "browser",
        which=f"The {len(shown):,} most confident of {count:,}" if len(shown) < count else f"All {count:,}",
        sprite=base64.b64encode(sprite).decode(),
        columns=str(columns),
        rows=str(math.ceil(len(shown) / columns)),
        # With this escape no name can end the script element; JSON.parse reads it as the sign itself.
        data=Markup(json.dumps(data, separators=(",", ":")).replace("<", "\\u003c")),
    )


# ---- How sure it is --------------------------------------------------------------------------------------


def confidence(result: dict, logits: Tensor, y_true: Tensor, folder: Path) -> Markup:
    """Calibration before and after temperature scaling, confidence of right and wrong, risk and coverage."""
    probabilities = logits.softmax(dim=1)
    highest, y_pred = probabilities.max(dim=1)
    correct = y_pred == y_true
    rows, scaling = {"as trained": probabilities}, ""
    if "temperature" in result:
        temperature = result["temperature"]
        rows[f"at temperature {temperature:.2f}"] = (logits / temperature).softmax(dim=1)
        error = percent(result["expected_calibration_error_after_temperature"], 2)
        scaling = fill("temperature_scaling", temperature=f"{temperature:.3f}", error=error)
    bins = {
        label: [column.numpy() for column in metrics.calibration_bins(y_true, some)]
        for label, some in rows.items()
    }
    coverage, risk = (values.numpy() for values in metrics.risk_coverage(y_true, probabilities))
    labels = "coverage: share of images answered", "risk: errors among them"
    mean, error = highest.double().mean().item(), percent(result["expected_calibration_error"], 2)
    return fill(
        "confidence",
        calibration_error=error,
        temperature_scaling=scaling,
        mean_confidence=mean,
        mean_accuracy=result["accuracy"]["value"],
        side=side(mean, result["accuracy"]),
        num_sure=int((highest > 0.9).sum()),
        num_wrong_and_sure=int((highest[~correct] > 0.9).sum()),
        risk_at_half=float(risk[(len(risk) - 1) // 2]),
        risk_at_full=float(risk[-1]),
        aurc=f"{result['aurc']:.3f}",
        plot_reliability=plot(folder / "reliability.png", plots.reliability(bins), "Reliability diagram"),
        plot_confidence=plot(
            folder / "confidence.png",
            plots.confidence_histogram(highest[correct].numpy(), highest[~correct].numpy()),
            "Histogram of the confidence of right and of wrong predictions",
        ),
        plot_risk_coverage=plot(
            folder / "risk_coverage.png",
            plots.curves("Risk against coverage", *labels, coverage, {"": risk}),
            "Risk against coverage, which rises to the error of all answers",
        ),
    )


def side(mean_confidence: float, accuracy: dict) -> str:
    """Name the side of the accuracy on which the mean confidence is, if it is outside of the interval."""
    if accuracy["low"] <= mean_confidence <= accuracy["high"]:
        return "neither clearly overconfident nor clearly underconfident"
    return "overconfident" if mean_confidence > accuracy["value"] else "underconfident"


# ---- Where it breaks -------------------------------------------------------------------------------------


def stress(file: Path, checkpoint_sha256: str, images: Tensor, folder: Path) -> Markup:
    """Corruptions, attacks, and whether the attacks can be believed, if stress.py has tested the checkpoint.

    file is the stress.json of the run, images are those of the test split, uint8 [N, 3, 32, 32]. Raises
    UserError if the file cannot be used.
    """
    if file.exists():
        with usable(file, "results of stress.py"):
            results = json.loads(read_file(file))
            if results["checkpoint_sha256"] == checkpoint_sha256 and "summary" in results:
                return stress_results(results, examples(images), folder)
    return fill("no_stress")


def stress_results(results: dict, pictures: dict[str, np.ndarray], folder: Path) -> Markup:
    """The same from a finished stress.json; pictures are those of corruptions.examples."""
    tests, summary = results["tests"], results["summary"]
    alts = {
        "stress_severity": "Accuracy against severity by family of corruptions",
        "stress_examples": "A grid of one test image under every corruption at every severity",
        "stress_epsilon": "Accuracy against the epsilon of FGSM, PGD, random signs, and the worst attack",
    }
    figures = plots.stress_figures(results, pictures)
    corruptions = []
    for name in pictures:
        values = [tests[f"{name}/{severity}"]["accuracy"]["value"] for severity in range(1, 6)]
        corruptions.append([plain(name), *values, sum(values) / 5])
    hardest = min(corruptions, key=lambda row: row[-1])
    columns = ("clean", "corrupted", "drop")
    broken = [
        [plain(row["class"]), *((percent(row[key], 0), row[key]) for key in columns)]
        for row in summary["classes_that_break_first"]
    ]
    checks = [
        ["passed" if row["passed"] else "FAILED", row["name"], row["detail"]] for row in results["checks"]
    ]
    clean, corrupted = tests["clean/0"]["accuracy"], summary["mean_accuracy"]["all"]
    confidences = tests["clean/0"]["mean_confidence"], summary["mean_confidence"]["all"]
    epsilon, published = f"{MORE_STEPS_EPSILON:g}", summary["mean_accuracy"].get("published")
    few = 0 < results["corruption_images"] < 2000
    return fill(
        "stress",
        **{f"plot_{name}": plot(folder / f"{name}.png", figures[name], alt) for name, alt in alts.items()},
        corruption_images=results["corruption_images"],
        clean_accuracy=clean,
        clean_mean=clean["value"],
        clean_confidence=confidences[0],
        clean_side=side(confidences[0], clean),
        corrupted_mean=corrupted["value"],
        corrupted_confidence=confidences[1],
        corrupted_side=side(confidences[1], corrupted),
        fifteen_accuracy=summary["mean_accuracy"]["fifteen"],
        published=fill("published", accuracy=published) if published else "",
        at_severity_1=sum(row[1] for row in corruptions) / len(corruptions),
        at_severity_5=sum(row[5] for row in corruptions) / len(corruptions),
        hardest=hardest[0],
        hardest_accuracy=hardest[-1],
        corruption_table=table(
            "Every corruption", ["corruption", *"12345", "mean"], corruptions, sortable=True
        ),
        few_images=fill("few_images") if few else "",
        broken_table=table("Classes that break first", ["class", *columns], broken),
        attack_images=results["attack_images"],
        apgd_epsilons=", ".join(f"{e:g}/255" for e in APGD_EPSILONS),
        epsilon=epsilon,
        **{f"{name}_accuracy": tests[f"{name}/{epsilon}"]["accuracy"] for name in ("fgsm", "pgd", "random")},
        worst_accuracy=results["robust_accuracy"][epsilon],
        check_table=table("Checks of the attacks", ["result", "check", "what was found"], checks),
    )


# ---- Explanations, data, reproduction --------------------------------------------------------------------


def explanations(explained: dict, folder: Path) -> Markup:
    """Deletion, insertion and randomisation: can the maps be believed?"""
    parts = {}
    for mode in ("deletion", "insertion"):
        maps = {"Grad-CAM": explained[f"{mode}_gradcam"], "random map": explained[f"{mode}_random"]}
        lines = {f"{name}, area {row['area']:.3f}": np.array(row["curve"]) for name, row in maps.items()}
        moved = np.linspace(0, 1, len(explained[f"{mode}_gradcam"]["curve"]))
        labels = f"pixels changed by {mode}", "probability of the explained class"
        figure = plots.curves(mode.capitalize(), *labels, moved, lines)
        parts[f"plot_{mode}"] = plot(folder / f"{mode}.png", figure, f"{mode} curves: {'; '.join(lines)}")
        difference, error = (explained[f"{mode}_difference"][key] for key in ("value", "standard_error"))
        parts[f"{mode}_difference"] = f"{difference:+.3f}, with a standard error of {error:.3f}"
    rows = []
    for name, value in explained["randomization"].items():
        shown = "–" if value is None else f"{round(value, 2) + 0.0:.2f}"  # + 0.0 makes 0 of -0
        rows.append(["fc" if name == "fc" else f"fc down to {name}", (shown, value)])
    header = ["random weights in", "rank correlation of the maps"]
    return fill(
        "explanations",
        **parts,
        num_explained=explained["images"],
        layer=explained["layer"],
        map_size="x".join(map(str, explained["map_size"])),
        randomization_table=table("Random weights", header, rows),
    )


def data_set(result: dict, test) -> Markup:
    """Class counts, the audit for duplicates, and one image of each class."""
    duplicates, parts = result["duplicates"], {}
    for key in ("num_train", "num_test"):
        numbers = sorted({row[key] for row in result["classes"]})
        parts[f"{key}_per_class"] = f"{numbers[0]}" + (f" to {numbers[-1]}" if len(numbers) > 1 else "")
    samples = []
    for c, name in enumerate(map(plain, test.class_names)):
        for i in torch.nonzero(test.labels == c).flatten()[:1]:
            sample = picture(png(test.images[i]), f"a test image of the class {name}", 64)
            samples.append(fill("labelled_picture", picture=sample, label=name))
    return fill(
        "data",
        **duplicates,
        **parts,
        num_classes=len(test.class_names),
        accuracy=percent(result["accuracy"]["value"], 2),
        without=percent(duplicates["accuracy_without_them"], 2),
        samples=join(samples),
    )


def reproduction(path: Path, checkpoint: dict, environment: dict, layers: list[dict], test) -> Markup:
    """The commands, versions, hardware, digest of the data, and complexity of the network.

    environment is that of this report; layers are the rows of resnet_cifar.count_parameters_and_macs.
    """
    config, options = checkpoint["config"], []
    for name, value in config["settings"].items():
        if value is not None and value is not False:
            text = option(name) if value is True else f"{option(name)} {shlex.quote(str(value))}"
            options.append(fill("option", text=text))
    facts = [[f"training: {name}", str(value)] for name, value in config["environment"].items()]
    facts += [[f"report: {name}", str(value)] for name, value in environment.items()]
    facts += [["checkpoint", str(path)], ["data", test.provenance], ["test digest (sha256)", test.digest]]
    parameters, macs = (sum(layer[key] for layer in layers) for key in ("parameters", "macs"))
    total = {"name": "all", "kind": "", "output": [], "parameters": parameters, "macs": macs}
    rows = [
        [
            row["name"],
            row["kind"],
            "x".join(map(str, row["output"])),
            row["parameters"],
            (f"{row['macs'] / 1e6:,.2f}", row["macs"]),
        ]
        for row in [*layers, total]
    ]
    header = ["layer", "kind", "output", "parameters", "multiply-accumulates (M)"]
    return fill(
        "reproduction",
        options=join(options),
        out=shlex.quote(config["settings"]["out"]),
        facts_table=table("Versions and data", ["what", "value"], facts),
        parameters=parameters,
        macs=f"{macs / 1e9:.3f}",
        layer_table=table("Complexity layer by layer", header, rows),
    )

"""The sections of the report, in their order: each is given what it shows and fills its template.

What is not known is None, and what would say it is left out. `test` is the test split, a data.Dataset;
`accuracy`, `classes`, `pairs` and the like are parts of metrics.json. Nothing is measured here.
"""

import base64
import json
import math
import shlex
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.utils import make_grid

from page import against, plots
from page.page import (
    Markup,
    fill,
    filter_link,
    interval,
    jpeg,
    listed,
    percent,
    picture,
    plain,
    png,
    table,
    write_page,
)
from running.console import duration, option
from running.device import environment
from stress_tests.attacks import APGD_EPSILONS
from stress_tests.corruptions import examples

HEADLINE = {
    "accuracy": "accuracy",
    "macro_precision": "macro precision",
    "macro_recall": "macro recall",
    "macro_f1": "macro F1",
    "top5_accuracy": "top-5 accuracy",
}
DATA_SETS = {"cifar100": "CIFAR-100", "cifar10": "CIFAR-10", "shapes": "coloured shapes"}
CONTROLS = {
    "random": "random maps of the same size",
    "centre": "a Gaussian in the centre",
    "other_image": "the map of another image",
    "activation": "the activation energy",
}
BETTER = {"deletion": -1, "insertion": 1}  # the sign of a difference in favour of Grad-CAM
MAX_SPRITE = 850_000  # bytes of the pictures of all mistakes, whose quality falls until they fit


# ---- Words for numbers -----------------------------------------------------------------------------------


def side(mean_confidence: float, accuracy: dict) -> str:
    """Name the side of the accuracy on which the mean confidence is, if it is outside of the interval."""
    if accuracy["low"] <= mean_confidence <= accuracy["high"]:
        return "neither clearly overconfident nor clearly underconfident"
    return "overconfident" if mean_confidence > accuracy["value"] else "underconfident"


def named(row: dict) -> str:
    """Return a class or superclass and its recall as "maple tree (44 %)"."""
    return f"{plain(row['name'])} ({percent(row['recall'], 0)})"


def verdict(rows: dict[str, dict], mode: str) -> str:
    """Say of which controls Grad-CAM is better or worse by more than two standard errors."""
    groups = {"better than": [], "not told apart from": [], "worse than": []}
    for name, label in CONTROLS.items():
        difference = rows[name]["gradcam_less_this"]
        gain, error = BETTER[mode] * difference["value"], difference["standard_error"]
        if abs(gain) <= 2 * error:
            groups["not told apart from"].append(label)
        else:
            groups["better than" if gain > 0 else "worse than"].append(label)
    return "; ".join(f"{kind} {listed(labels)}" for kind, labels in groups.items() if labels)


def spread(row: dict) -> str:
    """Return a mean and its range over the seeds as "0.02 (-0.04 to 0.07)"."""
    if row["value"] is None:
        return "–"
    value, low, high = (f"{round(row[key], 2) + 0.0:.2f}" for key in ("value", "low", "high"))  # no -0.00
    return f"{value} ({low} to {high})"


# ---- The head and the training ---------------------------------------------------------------------------


def headline(network, test, cards: dict[str, dict]) -> Markup:
    """What is examined, a network.Network, and the headline metrics, {name: with interval}, as cards."""
    return fill(
        "headline",
        data_set=DATA_SETS.get(test.name, plain(test.name)),
        name=network.name,
        parameters=network.parameters,
        macs=f"{network.macs / 1e9:.3f}",
        file=f"Its weights are those of {network.path}" if network.path else "It was in memory",
        digest=network.digest,
        input=network.input,
        cards=[fill("card", name=name, note=interval(row), **row) for name, row in cards.items()],
    )


def training(training, folder: Path) -> Markup:
    """Curves of both splits, and time; training is a network.Training."""
    history, settings = training.history, training.settings
    column = {key: np.array([row[key] for row in history]) for key in history[0]}
    best = history[int(column["val_accuracy"].argmax())]
    sizes, changes = column["image_size"], {}
    for i in range(1, len(sizes)):
        if sizes[i] != sizes[i - 1]:
            changes[i + 0.5] = f"{sizes[i]:.0f} px"
    several_sizes = fill("several_sizes") if changes else ""
    last_cutmix = int(0.9 * settings["epochs"]) if settings["cutmix"] else 0  # as train_one_epoch has it
    if 0 < last_cutmix < len(history):
        changes[last_cutmix + 0.5] = "no CutMix"
    curves = {}
    for quantity in ("loss", "accuracy"):
        figure = plots.training_curve(column, quantity, best["epoch"], changes)
        plots.save_png(figure, folder / f"{quantity}.png")
        curves[f"plot_{quantity}"] = plots.to_svg(figure, quantity)
    shortened = len(history) == training.epoch < settings["epochs"]
    return fill(
        "training",
        **vars(training),
        **curves,
        best=best,
        last=history[-1],
        duration=duration(column["seconds"].sum()),
        cutmix=fill("cutmix", settings=settings, last_cutmix=last_cutmix) if last_cutmix else "",
        several_sizes=several_sizes,
        shortened=fill("shortened", epoch=training.epoch) if shortened else "",
    )


# ---- Where it fails --------------------------------------------------------------------------------------


def failures(
    test, y_pred: Tensor, classes, pairs, never, typical, superclasses, compared: Markup | str
) -> Markup:
    """Classes, pairs and superclasses that are confused, and the comparison with other runs, if any.

    never: how many pairs are never confused; typical: the interval of the recall of a class; superclasses:
    the numbers that only a set with superclasses has, or None.
    """
    coarse, count = "", len(test.class_names)
    if superclasses:
        ranked = sorted(superclasses["superclasses"], key=lambda row: row["recall"])
        coarse = fill("superclasses", **superclasses, hardest=named(ranked[0]), easiest=named(ranked[-1]))
    return fill(
        "failures",
        superclasses=coarse,
        hardest=listed([named(row) for row in worst_classes(classes)[:3]]),
        typical=typical,
        num_classes=count,
        num_pairs=count * (count - 1),
        never=never,
        confused_pairs=confused_pairs(pairs[:10], test, y_pred) if pairs else fill("no_mistake"),
        class_table=class_table(classes),
        by_superclass=fill("by_superclass") if superclasses else "",
        order=fill("superclass_order") if superclasses else "",
        compared=compared,
    )


def draw_failures(test, classes: list[dict], confusion: Tensor, folder: Path) -> None:
    """Draw the classes with the lowest recall and the confusion matrix, int64 [C, C], into the folder."""
    bars, worst = {}, worst_classes(classes)
    for row in worst:
        other = f" (mostly taken for {row['most_confused_with']})" if row["most_confused_with"] else ""
        bars[plain(row["name"] + other)] = row["recall"]
    title = f"The {len(worst)} classes with the lowest accuracy"
    if len(worst) == len(classes):
        title = "The accuracy of each class, the lowest first"
    plots.save_png(plots.worst_classes(title, bars), folder / "worst_classes.png")
    order, groups = list(range(len(classes))), {}
    if test.superclass_of is not None:
        order = test.superclass_of.argsort(stable=True).tolist()  # those of a superclass beside each other
        sizes = test.superclass_of.bincount(minlength=len(test.superclass_names)).tolist()
        groups = dict(zip(map(plain, test.superclass_names), sizes, strict=True))
    names = [plain(test.class_names[c]) for c in order]
    figure = plots.confusion_matrix(confusion[order][:, order].numpy(), names, groups)
    plots.save_png(figure, folder / "confusion_matrix.png")


def worst_classes(classes: list[dict]) -> list[dict]:
    """Return the rows of ten classes with test images, those with the lowest recall."""
    tested = [row for row in classes if row["num_test"]]
    return sorted(tested, key=lambda row: row["recall"])[:10]


def confused_pairs(pairs: list[dict], test, y_pred: Tensor) -> Markup:
    """The pairs that are confused most often, with up to four examples of each."""
    rows = []
    for pair in pairs:
        true, predicted = (test.class_names.index(pair[key]) for key in ("true", "predicted"))
        examples = torch.nonzero((test.labels == true) & (y_pred == predicted)).flatten()[:4]
        names = {key: plain(pair[key]) for key in ("true", "predicted")}
        alt = f"{names['true']}, taken for {names['predicted']}"
        pictures = [picture(png(test.images[i]), alt, 64) for i in examples]
        links = {key: filter_link(name, **names) for key, name in names.items()}
        rows.append(links | {"images": pair["count"], "examples": fill("pictures", pictures=pictures)})
    return table("Most confused pairs", rows)


def class_table(classes: list[dict]) -> Markup:
    """The sortable table of all classes, those with the lowest recall first and untested ones last."""
    rows = []
    for row in sorted(classes, key=lambda row: (row["num_test"] == 0, row["recall"])):
        name, other = plain(row["name"]), plain(row["most_confused_with"])
        cells = {"class": filter_link(name, true=name)}
        if "superclass" in row:
            superclass = plain(row["superclass"])
            cells["superclass"] = filter_link(superclass, superclass=superclass)
        cells["precision"] = row["precision"]
        cells["recall"] = row["recall"] if row["num_test"] else ("–", -1)
        cells["F1"] = row["f1"]
        cells["images"] = row["num_test"]
        cells["times predicted"] = row["num_predicted"]
        text = f"{other} ({row['most_confused_with_count']})"
        cells["mostly taken for"] = filter_link(text, true=name, predicted=other) if other else "none"
        rows.append(cells)
    return table("All classes", rows, sortable=True)


# ---- The misclassified images ----------------------------------------------------------------------------


def mistakes(test, rows: list[dict], overlays: dict[str, Tensor], about: Markup, browser: Markup) -> Markup:
    """The browser, and the most confident mistakes, with the evidence for either class if there are maps.

    rows and overlays are those of failures.csv, see failures.describe and failures.write; about says what the
    maps are.
    """
    items = []
    for place, row in enumerate(rows):
        names = {kind: plain(row[f"{kind}_class"]) for kind in ("predicted", "true")}
        panels = [("picture", png(test.images[row["test_index"]]))]
        for kind, pictures in overlays.items():
            other = names["true" if kind == "predicted" else "predicted"]
            panels.append((f"for {names[kind]} rather than {other}", jpeg(pictures[place])))
        figures = []
        for label, content in panels:
            enlarged = picture(content, f"{names['true']}: {label}", 256)
            figures.append(fill("labelled_picture", picture=enlarged, label=label))
        copied = fill("copied", label=plain(row["label_in_training"])) if row["label_in_training"] else ""
        items.append(fill("mistake", **row, panels=figures, names=names, copied=copied))
    gallery = fill("gallery", count=len(items), about=about, items=items) if items else fill("no_mistake")
    return fill("mistakes", browser=browser, gallery=gallery)


def maps_note(network, pointing_game: dict | None) -> Markup:
    """Say what the maps are; pointing_game is None where the data set does not know the object."""
    if network.layer is None:
        return fill("no_maps", layer_note=network.layer_note)
    game = ""
    if pointing_game:
        controls = [f"{label} {percent(pointing_game[name]['value'])}" for name, label in CONTROLS.items()]
        game = fill("pointing_game", **pointing_game, controls=", ".join(controls))
    return fill("maps", layer=network.layer, pointing_game=game)


def browser(test, found) -> Markup:
    """The misclassified images for the script to filter: pictures, maps, and the rest as JSON.

    found is a report.Found, whose tensors this shows: the most confident M of the misclassified images, as
    many as were browsed.
    """
    count, browsed, images = len(found.misclassified), found.browsed, []
    for i in browsed.tolist():
        ranked = found.probabilities[i].argsort(descending=True, stable=True)  # the predicted class first
        rank = int((ranked == test.labels[i]).nonzero())
        likely = ranked[[*range(5), rank]] if rank > 4 else ranked[:5]
        answers = []
        for values in found.others.values():
            probability, answer = values["probabilities"][i].max(dim=0)
            answers.append([answer.item(), round(probability.item(), 6)])
        image = {
            "true": test.labels[i].item(),
            "classes": likely.tolist(),
            "probabilities": [round(p, 6) for p in found.probabilities[i, likely].tolist()],
            "file": test.filenames[i],
            "copied": -1 if found.training_labels is None else found.training_labels[i].item(),
            "others": answers,
            "kind": found.kinds[i].item(),
        }
        if found.covered is not None:
            answer, probability = (values[len(images)].item() for values in found.covered)
            image["covered"] = [answer, round(probability, 6)]
        if found.neighbours is not None:
            image["similarity"] = [round(s, 2) for s in found.neighbours["similarity"][i].tolist()]
        images.append(image)
    data = {
        "classes": [plain(name) for name in test.class_names],
        "confusion": found.confusion.tolist(),  # of all test images
        "images": images,
        "inferno": base64_bytes(torch.from_numpy(plots.inferno())),
        "runs": list(found.others),
        "kinds": [row["name"] for row in found.numbers["kinds"]],
    }
    if test.superclass_of is not None:
        data["superclasses"] = [plain(name) for name in test.superclass_names]
        data["superclass_of"] = test.superclass_of.tolist()
    if found.maps is not None:
        maps = F.adaptive_avg_pool2d(found.maps, min(16, found.maps.shape[-1]))  # more cells weigh too much
        peak = maps.amax(dim=(2, 3), keepdim=True)
        data["maps"] = base64_bytes((255 * maps / peak.clamp(min=1e-30)).round())
    return fill(
        "browser",
        which=f"The {len(images):,} most confident of {count:,}" if len(images) < count else f"All {count:,}",
        by_superclass=fill("filter_superclass") if "superclasses" in data else "",
        evidence=fill("evidence") if "maps" in data else "",
        evidence_note=fill("evidence_note") if "maps" in data else "",
        neighbours=fill("nearest") if found.neighbours else "",
        wrong_images=sprite(test.images[browsed], MAX_SPRITE),
        nearest_images=nearest_sprite(found.neighbours),
        # With this escape no name can end the script element; JSON.parse reads it as the sign itself.
        data=Markup(json.dumps(data, separators=(",", ":")).replace("<", "\\u003c")),
    )


def base64_bytes(values: Tensor) -> str:
    """Return whole numbers from 0 to 255 as the base64 of their bytes."""
    return base64.b64encode(values.to(torch.uint8).numpy().tobytes()).decode()


def nearest_sprite(neighbours: dict[str, Tensor] | None) -> Markup | str:
    """The nearest training images of the two classes of each mistake, one after the other."""
    if neighbours is None:
        return ""
    return fill("nearest_images", content=sprite(neighbours["images"].flatten(0, 1), 2 * MAX_SPRITE))


def sprite(images: Tensor, limit: int) -> str:
    """Return images, uint8 [N, 3, 32, 32], as one JPEG file in base64, a square of them of `limit` bytes."""
    columns = math.ceil(math.sqrt(max(1, len(images))))
    pixels = make_grid(images, columns, padding=0) if len(images) else torch.zeros(3, 32, 32).byte()
    for quality in range(95, 15, -10):
        content = jpeg(pixels, quality)
        if len(content) <= limit:
            break
    return base64.b64encode(content).decode()


# ---- Why it fails ----------------------------------------------------------------------------------------


REPAIRED_BY = {
    "contrastive": "the answer rather than the truth (difference of the two scores)",
    "predicted": "the answer (the usual map)",
    "true": "the truth",
    "activation": "activation energy, which knows no class",
    "random": "random places, mean of three draws",
}


def why(numbers: dict, others: int) -> Markup:
    """Kinds, repairs, neighbours and words, each if it is known; others is the number of other runs."""
    parts = [kinds_table(numbers["kinds"], others)]
    if "shared" in numbers["confident"]:
        parts.append(fill("shared", **numbers["confident"]["shared"], runs=others + 1))
    if "repair" in numbers:
        parts.append(repairs(numbers["repair"]))
    if "neighbours" in numbers:
        parts.append(neighbours(numbers["neighbours"]))
    if "colour_or_shape" in numbers:
        parts.append(fill("colour_or_shape", **numbers["colour_or_shape"]))
    if "words" in numbers:
        parts.append(search_words(numbers["words"]))
    return Markup("\n".join(parts))


def kinds_table(kinds: list[dict], others: int) -> Markup:
    """The kinds of mistakes as a bar that adds up, and as a table that leads to them."""
    rows, bars = [], []
    for number, row in enumerate(kinds):
        if row["count"]:
            bars.append(fill("kind_bar", width=f"{100 * row['share']:.2f}", number=number + 1, **row))
        cells = {"": fill("kind_mark", number=number + 1), "kind": filter_link(row["name"], kind=row["name"])}
        cells |= {"mistakes": row["count"], "share of the mistakes": row["share"]}
        rows.append(cells | {"accuracy if they were right": row["accuracy_if_right"]})
    about = fill("kinds_of_runs", runs=others + 1) if others else fill("kinds_of_one")
    return fill("kinds", about=about, bars=bars, table=table("Kinds of mistakes", rows))


def repairs(found: dict) -> Markup:
    """How often a mistake becomes right when a quarter of the picture is covered."""
    rows = []
    for name, label in REPAIRED_BY.items():
        cells = {"covered is what speaks for": label}
        for fill_name, words in {"mean_colour": "by the mean colour", "blur": "by a blurred copy"}.items():
            row = found[name][fill_name]
            shown = f"{percent(row['value'])} ({100 * row['low']:.1f}–{100 * row['high']:.1f})"
            cells[f"repaired, covered {words}"] = (shown, row["value"])
        rows.append(cells)
    contrastive, at_random = found["contrastive"]["mean_colour"], found["random"]["mean_colour"]
    test = found["mcnemar"]["mean_colour"]
    if test["p"] > 0.05:
        verdict = "no more often than"
    else:
        verdict = "more often than" if contrastive["value"] > at_random["value"] else "less often than"
    p = f"{test['p']:.4f}" if test["p"] >= 0.0001 else "below 0.0001"
    repaired = table("Repaired mistakes", rows)
    return fill("repairs", **found, verdict=verdict, p=p, test=test, table=repaired)


def neighbours(found: dict) -> Markup:
    """What the network has seen that is like its mistakes."""
    rows = []
    for group, label in {"mistakes": "mistakes", "right": "right answers"}.items():
        row = found[group]
        if row is not None:
            cells = {"test images": label, "carry the predicted label": row["predicted_label"]}
            cells["carry the true label"] = row["true_label"]
            cells["none carries the true label"] = row["none_with_true_label"]
            rows.append(cells | {"k-NN agrees with the network": row["knn_agrees"]})
    return fill("neighbours", **found, table=table("Neighbours in the training set", rows))


def search_words(found: dict) -> Markup:
    """Whether errors depend on the word by which a picture was found, and the words that differ most."""
    differing = [row for row in found["words"] if row["differs"]]
    rows = []
    for row in differing or found["words"][:5]:
        cells = {"class": filter_link(plain(row["class"]), true=plain(row["class"]))}
        cells["word"] = filter_link(plain(row["word"]), word=row["word"])
        cells["images"] = row["images"]
        cells |= {
            "errors": row["error_rate"],
            "errors among the others of the class": row["other_error_rate"],
        }
        rows.append(cells | {"p after Holm": (f"{row['p_adjusted']:.3f}", row["p_adjusted"])})
    verdict = "differ" if differing else "no_word_differs"
    which = fill(verdict, count=len(differing), tested=len(found["words"]))
    depends = "does" if found["p"] <= 0.05 else "does not clearly"
    return fill("search_words", **found, depends=depends, which=which, table=table("Search words", rows))


# ---- How sure it is --------------------------------------------------------------------------------------


def confidence(accuracy, confident, risk_at_half, aurc, calibration, risk_coverage, right, wrong) -> Markup:
    """Calibration before and after temperature scaling, confidence of right and wrong, risk and coverage.

    calibration: the rows of report.calibrate; risk_coverage: those of metrics.risk_coverage; right and wrong:
    the confidence of the right and of the wrong answers, float [N - M] and [M].
    """
    as_trained, bins, scaling = calibration[0], {}, ""
    bins["as trained"] = [column.numpy() for column in as_trained["bins"]]
    for row in calibration[1:]:
        bins[f"at temperature {row['temperature']:.2f}"] = [column.numpy() for column in row["bins"]]
    if len(calibration) > 1:
        row, equal = calibration[1:]
        lower = row["expected_calibration_error"] < as_trained["expected_calibration_error"]
        after = side(row["mean_confidence"], accuracy)
        moves = "lowers" if lower else "raises"
        scaling = fill(
            "temperature_scaling", before=as_trained, after=row, moves=moves, side=after, equal=equal
        )
    coverage, risk = (values.numpy() for values in risk_coverage)
    labels = "Risk against coverage", "coverage: share of images answered", "risk: errors among them"
    histogram = plots.confidence_histogram(right.numpy(), wrong.numpy())
    return fill(
        "confidence",
        accuracy=accuracy,
        as_trained=as_trained,
        side=side(as_trained["mean_confidence"], accuracy),
        temperature_scaling=scaling,
        confident=confident,
        risk_at_half=risk_at_half,
        risk_at_full=float(risk[-1]),
        aurc=aurc,
        plot_reliability=plots.to_svg(plots.reliability(bins), "reliability"),
        plot_confidence=plots.to_svg(histogram, "confidence"),
        plot_risk_coverage=plots.to_svg(plots.curves(*labels, coverage, {"": risk}), "risk_coverage"),
    )


# ---- Where it breaks -------------------------------------------------------------------------------------


def stress(results: dict | None, pictures: dict[str, np.ndarray]) -> Markup:
    """Corruptions and attacks: what stress.read_results found; pictures are those of corruptions.examples."""
    if results is None or "summary" not in results:
        return fill("no_stress")
    tests, summary = results["tests"], results["summary"]
    corruptions = []
    for name, grid in pictures.items():
        cells = {"corruption": plain(name)}
        for severity in range(1, 6):
            cells[str(severity)] = tests[f"{name}/{severity}"]["accuracy"]["value"]
        strip = torch.from_numpy(np.concatenate(grid, axis=1)).permute(2, 0, 1).contiguous()
        cells["clean, then 1 to 5"] = picture(png(strip), f"the same picture under {plain(name)}", 192, 32)
        corruptions.append(cells)
    hardest = sorted(corruptions, key=lambda row: row["3"])[:3]
    cues = []
    for name, row in summary["cues"].items():
        value, low, high = (f"{100 * row['drop'][end]:.1f}" for end in ("value", "low", "high"))
        lost = f"{value} ({low} to {high})", row["drop"]["value"]
        cues.append({"pictures": plain(name), "accuracy": row["accuracy"]["value"], "points lost": lost})
    checks = []
    for row in results["checks"]:
        result = "passed" if row["passed"] else "FAILED"
        checks.append({"result": result, "check": row["name"], "what was found": row["detail"]})
    clean, rows = tests["clean/0"], summary["by_severity"]
    broken = []
    for row in summary["classes_that_break_first"][:5]:
        broken.append(f"{plain(row['class'])} ({percent(row['clean'], 0)} to {percent(row['corrupted'], 0)})")
    epsilons = plots.stress_epsilon(tests, results["robust_accuracy"], results["epsilons"])
    return fill(
        "stress",
        **results,
        plot_severity=plots.to_svg(plots.stress_severity(rows), "severity"),
        plot_epsilon=plots.to_svg(epsilons, "epsilon"),
        severity_1=rows[1],
        severity_5=rows[5],
        shift=shift(rows) if "with_temperature" in rows[0] else "",
        clean_side=side(clean["mean_confidence"], clean["accuracy"]),
        corrupted_side=side(summary["mean_confidence"]["all"], summary["mean_accuracy"]["all"]),
        published=fill("published", **results) if "published" in summary["mean_accuracy"] else "",
        hardest=listed([f"{row['corruption']} ({percent(row['3'])})" for row in hardest]),
        corruption_table=table("Every corruption", corruptions, sortable=True),
        cue_table=table("Without colour, texture or shape", cues),
        broken=fill("broken", classes=listed(broken)) if broken else fill("few_images", **results),
        num_corruptions=len(corruptions),
        apgd_epsilons=", ".join(f"{epsilon:g}/255" for epsilon in APGD_EPSILONS),
        check_table=table("Checks of the attacks", checks),
    )


def shift(rows: list[dict]) -> Markup:
    """Say at which severities the temperature, fitted on clean images, makes the calibration error larger."""
    worse = []
    for severity in range(1, 6):
        row = rows[severity]
        if row["with_temperature"]["ece"] > row["as_trained"]["ece"]:
            worse.append(str(severity))
    where = "every severity" if len(worse) == 5 else f"severity {', '.join(worse) or 'none'}"
    return fill("shift", where=where, mild=rows[1], severe=rows[5])


# ---- Explanations, data, reproduction --------------------------------------------------------------------


def explanations(found: dict | None, layer_note: str) -> Markup:
    """Deletion, insertion and randomisation: can the maps be believed?"""
    if found is None:
        return fill("no_explanations", layer_note=layer_note)
    parts = {}
    for mode in BETTER:
        rows, lines = found[mode], {}
        for name, label in {"gradcam": "Grad-CAM", **CONTROLS}.items():
            lines[f"{label}, area {rows[name]['area']['value']:.3f}"] = np.array(rows[name]["curve"])
        moved = np.linspace(0, 1, len(rows["gradcam"]["curve"]))
        labels = f"pixels changed by {mode}", "probability of the explained class"
        figure = plots.curves(mode.capitalize(), *labels, moved, lines)
        parts[f"plot_{mode}"] = plots.to_svg(figure, mode)
        parts[f"{mode}_verdict"] = verdict(rows, mode)
    random_weights, down_to = [], found["randomization"]["down_to"]
    for name, row in down_to.items():
        cells = {"mean of rho": (spread(row["mean"]), 0), "mean of |rho|": (spread(row["mean_abs"]), 0)}
        random_weights.append({"random weights, down to": name} | cells)
    return fill(
        "explanations",
        **found,
        **parts,
        size="x".join(map(str, found["map_size"])),
        all_random=spread(row["mean_abs"]),
        other_image=spread(row["other_image"]),
        randomization_table=table("Random weights", random_weights),
    )


def data_set(test, classes: list[dict], accuracy: dict, duplicates: dict | None) -> Markup:
    """Class counts and the audit for duplicates."""
    counts = []
    for key, words in {"num_train": "in the training set", "num_test": "in the test set"}.items():
        numbers = [row[key] for row in classes if key in row]
        if numbers:
            ends = sorted({min(numbers), max(numbers)})
            counts.append(f"{' to '.join(f'{n:,}' for n in ends)} {words}")
    audit = ""
    if duplicates and not duplicates["test_images_in_train"]:
        audit = fill("no_duplicates", **duplicates)
    elif duplicates:
        without = percent(duplicates["accuracy_without_them"], 2)
        audit = fill("duplicates", **duplicates, without=without, accuracy=accuracy)
    provenance, num_classes = test.provenance, len(test.class_names)
    return fill("data", provenance=provenance, num_classes=num_classes, counts=listed(counts), audit=audit)


def reproduction(network, test, stress: dict | None, options: dict | None) -> Markup:
    """The commands that make this page, and versions, hardware and digests.

    options are those of report.py, {name: value}; None if no command line made the page.
    """
    facts, lines = {}, []
    if network.training:
        trained_on = network.training.config["environment"]
        facts |= {f"training: {name}": value for name, value in trained_on.items()}
        lines.append(["train.py", *words(network.training.settings)])
    if stress and options is not None:
        tested = {name: value for name, value in options.items() if name != "against"}
        full = ["--full"] if stress["corruption_images"] == len(test.labels) else []
        lines.append(["stress.py", *words(tested), *full])
    if options is not None:
        lines.append(["report.py", *words(options)])
    facts |= {f"report: {name}": value for name, value in environment(network.device).items()}
    facts |= {"weights": network.path or "in memory", "digest of the weights": network.digest}
    facts |= {"data": test.provenance, "digest of the test images": test.digest}
    rows = [{"what": what, "value": str(value)} for what, value in facts.items()]
    commands = [shlex.join(["python", *line]) for line in lines]
    shown = fill("commands", commands=commands) if commands else ""
    return fill("reproduction", commands=shown, facts_table=table("Versions and data", rows))


def words(options: dict) -> list[str]:
    """Return options, {name: value}, as words of a command line, without those that say None, False or []."""
    found = []
    for name, value in options.items():
        if value is not None and value is not False and value != []:
            found.append(option(name))
            values = value if isinstance(value, list) else [value]
            found += [str(value) for value in values if value is not True]
    return found


# ---- The page --------------------------------------------------------------------------------------------


def fill_page(out: Path, network, test, found, options: dict | None) -> None:
    """Write report.html and plots/ into the folder `out`.

    network is a network.Network, test a data.Dataset and found a report.Found; options as in reproduction.
    """
    numbers, folder = found.numbers, out / "plots"
    accuracy, classes, pairs = numbers["accuracy"], numbers["classes"], numbers["most_confused_pairs"]
    explained, duplicates = numbers.get("explanations"), numbers.get("duplicates")
    cards = {name: numbers[key] for key, name in HEADLINE.items()}
    if len(classes) <= 5:
        del cards["top-5 accuracy"]  # it is 100 % whatever the network says
    plots.save_png(plots.headline_bars(cards), folder / "headline_metrics.png")
    draw_failures(test, classes, found.confusion, folder)
    never, typical = numbers["pairs_never_confused"], numbers["typical_class"]
    compared = against.section(numbers["against"], len(test.labels)) if "against" in numbers else ""
    confident, risk_at_half, aurc = numbers["confident"], numbers["risk_at_half_coverage"], numbers["aurc"]
    right = found.y_pred == test.labels
    answered = found.confidence[right], found.confidence[~right]
    about_maps = maps_note(network, explained and explained.get("pointing_game"))
    parts = {
        "Mistakes": mistakes(test, found.failures, found.overlays, about_maps, browser(test, found)),
        "Why it fails": why(numbers, len(found.others)),
        "Where it fails": failures(
            test, found.y_pred, classes, pairs, never, typical, found.superclasses, compared
        ),
        "How sure it is": confidence(
            accuracy, confident, risk_at_half, aurc, found.calibration, found.risk_coverage, *answered
        ),
        "Where it breaks": stress(found.stress, examples(test.images)),
        "Whether the explanations hold": explanations(explained, network.layer_note),
    }
    if network.training:
        parts["Training"] = training(network.training, folder)
    parts["Data"] = data_set(test, classes, accuracy, duplicates)
    parts["How to reproduce it"] = reproduction(network, test, found.stress, options)
    write_page(out / "report.html", f"{network.name}, {out.name}", headline(network, test, cards), parts)

"""What the templates of the sections show besides the numbers of metrics.json: pictures, plots and rows.

Each function returns a part of their context. test is the test split, a data.Dataset, and found a
report.Found; what is not known is None.
"""

import shlex
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from data import cutmix_end
from gradcam import overlay
from page import plots
from page.pictures import address, attack_sheet, picture, plain, run_name, sheet
from running.console import duration, option

NUM_BESIDE = 5  # mistakes beside the one that is dissected
MAPS = {  # of covering.mistakes: how the maps are called, in the order of their rows
    "contrastive": "contrastive: answer rather than truth",
    "runner_up": "answer rather than runner-up",
    "random_class": "answer rather than a random class",
    "usual": "usual: the answer alone",
    "other_image": "contrastive, of another image",
}
HEADLINE = {
    "accuracy": "accuracy",
    "macro_precision": "macro precision",
    "macro_recall": "macro recall",
    "macro_f1": "macro F1",
    "top5_accuracy": "top-5 accuracy",
}


def case(test, found, i: int) -> dict:
    """Return what is said of mistake i."""
    return {
        "true": plain(test.class_names[test.labels[i]]),
        "predicted": plain(test.class_names[found.y_pred[i]]),
        "confidence": found.confidence[i].item(),
        # Class and file, as folders repeat the names of files.
        "link": {"true": plain(test.class_names[test.labels[i]]), "open": test.filenames[i]},
        "picture": picture(test.images[i]),
    }


def hide(image: Tensor, hidden: Tensor, fill: Tensor) -> str:
    """Return the picture of an image, uint8 [3, 32, 32], with pixels covered, bool [32, 32]."""
    return picture(torch.where(hidden, fill[:, None, None], image / 255))


def one_mistake(test, found) -> dict:
    """The mistake that covering turns to the truth with the highest probability, and those to take apart."""
    if not len(found.browsed):
        return {"opener": None, "puzzle_sheet": None, "beside": []}
    place = 0
    if found.covered is not None:
        answers, probabilities = found.covered
        turned = answers[:, 0] == test.labels[found.browsed]
        place = int((turned * probabilities[:, 0]).argmax())
    i = found.browsed[place].item()
    opener, image = case(test, found, i) | {"others": []}, test.images[i]
    if found.covered is not None:
        # Not blurred: it shows how coarse the cells are.
        cells = F.interpolate(found.maps[place][None, None], 32)[0]
        scaled = cells / cells.abs().max().clamp(min=1e-30)
        opener["turned"] = bool(turned[place])
        opener["answer"] = plain(test.class_names[answers[place, 0]])
        opener["probability"] = probabilities[place, 0].item()
        opener["for"], opener["against"] = (
            picture(overlay(image[None] / 255, (sign * scaled).relu())[0]) for sign in (1, -1)
        )
        opener["covered"] = hide(image, found.covered_pixels[place], found.fill)
    for run, values in found.others.items():
        probability, answer = values["probabilities"][i].max(dim=0)
        said = {"run": run_name(run), "answer": plain(test.class_names[answer]), "p": probability.item()}
        opener["others"].append(said)
    beside = [j for j in found.browsed.tolist() if j != i][:NUM_BESIDE]
    opened = {"opener": opener, "beside": [case(test, found, j) for j in beside]}
    return opened | first_puzzle(test, found)


def first_puzzle(test, found) -> dict:
    """The sheet of the puzzles, and of the first of them what stands there without the script."""
    indices = [puzzle["index"] for puzzle in found.puzzles]
    if not indices:
        return {"puzzle_sheet": None}
    first = found.puzzles[0]
    shown = case(test, found, first["index"])
    for key in ("best", "by_map"):
        if first[key] is not None:
            answer, probability = first["classes"][first[key], 0], first["probabilities"][first[key], 0]
            covered = hide(test.images[first["index"]], first["hidden"][first[key]], found.fill)
            said = {"answer": plain(test.class_names[answer]), "p": probability.item()}
            shown[key] = said | {"picture": covered}
    return {"puzzle_sheet": sheet(test.images[indices], columns=len(indices)), "puzzle": shown}


def mistakes(test, found) -> dict:
    """The kinds of mistakes, and the sheet of those that the script shows."""
    return {
        "mistakes_sheet": sheet(test.images[found.browsed]),
        "runs": [run_name(run) for run in found.others],
    }


def classes(test, found) -> dict:
    """Classes, pairs and superclasses that are confused."""
    rows = sorted(found.numbers["classes"], key=lambda row: (row["num_test"] == 0, row["recall"]))
    pairs = []
    for pair in found.numbers["most_confused_pairs"][:8]:
        true, predicted = (test.class_names.index(pair[key]) for key in ("true", "predicted"))
        examples = torch.nonzero((test.labels == true) & (found.y_pred == predicted)).flatten()[:4]
        pictures = [case(test, found, i) for i in examples.tolist()]
        pairs.append(pair | {"pictures": pictures})
    # An example of each class, and a grey picture of one without.
    examples = torch.full((len(test.class_names), *test.images.shape[1:]), 128, dtype=torch.uint8)
    for c in range(len(test.class_names)):
        members = torch.nonzero(test.labels == c).flatten()
        if len(members):
            examples[c] = test.images[members[0]]
    matrix = None
    if found.coarse is not None:
        names = [plain(name) for name in test.superclass_names]
        said = "The mistakes between superclasses as a matrix; the table of classes has the numbers."
        matrix = plots.to_svg(plots.superclass_matrix(found.coarse.numpy(), names), "superclasses", said)
    return {
        "class_rows": rows,
        "pairs": pairs,
        "examples": sheet(examples, columns=10),
        "coarse_plot": matrix,
    }


def draw_matrix(test, found) -> plots.Figure:
    """Draw the confusion matrix, the classes of a superclass beside each other."""
    order, groups = list(range(len(test.class_names))), {}
    if test.superclass_of is not None:
        order = test.superclass_of.argsort(stable=True).tolist()
        sizes = test.superclass_of.bincount(minlength=len(test.superclass_names)).tolist()
        groups = dict(zip(map(plain, test.superclass_names), sizes, strict=True))
    names = [plain(test.class_names[c]) for c in order]
    return plots.confusion_matrix(found.confusion[order][:, order].numpy(), names, groups)


def maps(test, found) -> dict:
    """The plot of the covering test: how many mistakes become right, by each map and by its controls."""
    covering = found.numbers.get("covering", {})
    if "mistakes" not in covering:
        return {"covering_plot": None}
    of_map, blurred = covering["mistakes"], covering["blurred"]
    rows = {label: of_map[name]["to_truth"] for name, label in MAPS.items() if name in of_map}
    rows["contrastive, blurred instead"] = blurred["contrastive"]["to_truth"]
    rows["random cells, blurred instead"] = blurred["random"]["to_truth"]
    title = "Mistakes that become right, a quarter covered"
    figure = plots.dots(title, rows, "of the mistakes", of_map["random"]["to_truth"], "random cells")
    said = ", ".join(f"{label} {100 * row['value']:.0f} %" for label, row in rows.items())
    said = f"{title}: {said}; random cells {100 * of_map['random']['to_truth']['value']:.0f} %."
    return {"covering_plot": plots.to_svg(figure, "covering", said)}


def confidence(test, found) -> dict:
    """Reliability diagrams of clean and of corrupted images, and how sure right and wrong answers are."""
    clean = {}
    for name, row in zip(("as_trained", "with_temperature"), found.calibration, strict=False):
        columns = [column.tolist() for column in row["bins"]]
        clean[name] = [bin for bin in zip(*columns, strict=True) if bin[2]]
    bins = {"clean": clean}
    if found.stress is not None and "reliability" in found.stress.get("summary", {}):
        bins["corrupted"] = found.stress["summary"]["reliability"]["bins"]
    titles = {"clean": "Clean test images", "corrupted": "The fifteen corruptions"}
    drawn = {}
    for name, groups in bins.items():
        figure = plots.reliability(titles[name], groups)
        said = f"Reliability diagram, {titles[name].lower()}: accuracy against confidence."
        drawn[name] = plots.to_svg(figure, f"reliability-{name}", said)
    wrong = found.y_pred != test.labels
    place = (50 * found.confidence.double()).long().clamp(max=49)
    counts = [place[part].bincount(minlength=50).numpy() for part in (~wrong, wrong)]
    said = f"Confidence of right and wrong answers; above 90 % wrong: {found.numbers['confident']['wrong']}."
    histogram = plots.to_svg(plots.confidence_histogram(*counts), "histogram", said)
    return {"reliability_plots": drawn, "histogram": histogram}


def stress(test, found) -> dict:
    """What stress.py measured: tables, plots, and sheets for the two viewers."""
    results = found.stress
    if results is None or "summary" not in results:
        return {"stress": None}
    shown, tests = {"stress": results}, results["tests"]
    names = [name for name in dict.fromkeys(test.split("/")[0] for test in tests) if f"{name}/5" in tests]
    rows = []
    for name in names:
        values = [tests[f"{name}/{severity}"]["accuracy"]["value"] for severity in range(1, 6)]
        rows.append({"name": name, "values": values})
    shown["corruption_rows"] = rows
    shown["hardest"] = min(rows, key=lambda row: row["values"][2])
    by_severity = results["summary"]["by_severity"]
    lines = [[row[key] for row in by_severity] for key in ("accuracy", "mean_confidence")]
    said = f"Accuracy falls from {100 * lines[0][0]:.1f} % on clean images to {100 * lines[0][5]:.1f} %."
    shown["severity_plot"] = plots.to_svg(plots.severity_curves(*lines), "severity", said)
    epsilons = results["epsilons"][:-1]  # the last is a check, at which a sound attack leaves no image right
    figure = plots.stress_epsilon(tests, results["robust_accuracy"], epsilons)
    shown["epsilon_plot"] = plots.to_svg(figure, "epsilon", "Accuracy under attack by epsilon.")
    if "examples" in results:
        pixels, index = results["example_pixels"], results["examples"]["images"]
        shown["corruption_sheet"] = sheet(pixels.flatten(0, 1), columns=len(index))
        shown["corruption_tests"] = list(results["examples"]["answers"])
        shown["corrupted_true"] = [plain(test.class_names[c]) for c in test.labels[index].tolist()]
    if "attack_examples" in results:
        shown["attack_sheet"] = attack_sheet(test, results)
        index = results["attack_examples"]["images"]
        shown["attacked_true"] = [plain(test.class_names[c]) for c in test.labels[index].tolist()]
    return shown


def write_plots(folder: Path, test, found) -> dict:
    """Draw the headline numbers, the classes with the lowest recall and the confusion matrix as files."""
    headline = {name: found.numbers[key] for key, name in HEADLINE.items()}
    plots.save_png(plots.headline_bars(headline), folder / "headline_metrics.png")
    tested = [row for row in found.numbers["classes"] if row["num_test"]]
    bars, worst = {}, sorted(tested, key=lambda row: row["recall"])[:10]
    for row in worst:
        other = f" (mostly taken for {row['most_confused_with']})" if row["most_confused_with"] else ""
        bars[plain(row["name"] + other)] = row["recall"]
    title = f"The {len(worst)} classes with the lowest accuracy"
    if len(worst) == len(tested):
        title = "The accuracy of each class, the lowest first"
    plots.save_png(plots.worst_classes(title, bars), folder / "worst_classes.png")
    plots.save_png(draw_matrix(test, found), folder / "confusion_matrix.png", dpi=110)
    return {"confusion_png": address((folder / "confusion_matrix.png").read_bytes())}


def about(out: Path, examined, found) -> dict:
    """The training, the commands that make this page, versions and digests; examined: a Classifier."""
    facts, lines, shown = {}, [], {"training": None}
    if examined.training:
        config, history = examined.training["config"], found.history
        column = {key: np.array([row[key] for row in history]) for key in history[0]}
        changes = {}
        for i in range(1, len(history)):
            if column["image_size"][i] != column["image_size"][i - 1]:
                changes[i + 0.5] = f"{column['image_size'][i]:.0f} px"
        settings = config["settings"]
        last_cutmix = cutmix_end(settings["epochs"]) if settings["cutmix"] else 0
        if 0 < last_cutmix < len(history):
            changes[last_cutmix + 0.5] = "no CutMix"
        for quantity in ("loss", "accuracy"):
            figure = plots.training_curve(column, quantity, examined.training["epoch"], changes)
            plots.save_png(figure, out / "plots" / f"{quantity}.png")
        shown["training"] = examined.training
        said = "Accuracy by epoch in training and validation."
        shown["training_plot"] = plots.to_svg(figure, "training", said)
        shown |= {"took": duration(column["seconds"].sum()), "last_cutmix": last_cutmix}
        facts |= {f"training: {name}": value for name, value in config["environment"].items()}
        # It has the device and the precision that "auto" became.
        options = settings | {key: config[key] for key in ("device", "precision")}
        processes = config["environment"].get("processes", 1)
        start = "python" if processes == 1 else f"torchrun --nproc-per-node {processes}"
        changed = f"experiments/train_changed.py {config.get('change')}"
        script = changed if "change" in config else "train.py"
        lines.append(("The network was trained by", command(f"{start} {script}", options)))
    if found.options is not None:
        if found.stress:
            full = found.stress["corruption_images"] == found.numbers["num_test"]
            lines.append(("It was tested by", stress_command(found.options | {"full": full})))
        lines.append(("This page was made by", command("python report.py", found.options)))
    facts |= {f"report: {name}": value for name, value in found.machine.items()}
    facts |= {"images": examined.input, "output": examined.output, "maps": examined.layer_note}
    facts |= {"weights": examined.path or "in memory", "digest of the weights": examined.digest}
    return shown | {"facts": facts, "commands": lines, "stress_command": stress_command(found.options)}


def stress_command(options: dict | None) -> str | None:
    """Return the command that tests what is examined, to be copied; None if no command line made the page."""
    if options is None:
        return None
    return command(
        "python stress.py", {k: v for k, v in options.items() if k not in ("against", "overwrite")}
    )


def command(start: str, options: dict) -> str:
    """Return a command with its options, {name: value}, one in each line; None, False and [] are left out."""
    words = [start]
    for name, value in options.items():
        if value is not None and value is not False and value != []:
            values = value if isinstance(value, list) else [value]
            words.append(shlex.join([option(name), *(str(value) for value in values if value is not True)]))
    return " \\\n    ".join(words)

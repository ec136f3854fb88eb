"""What the templates of the sections show besides the numbers of metrics.json: pictures, plots and rows.

Each function returns a part of their context, from what report.py and stress.py have left in a run folder:
numbers is metrics.json, answers predictions.npz, evidence evidence.npz, stress the stress tests or None, see
docs/formats.md. images are the test images, uint8 [N, 3, S, S], at most 64 pixels wide, or None. What is
not known is None.
"""

import shlex
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from gradcam import overlay
from page import plots
from page.pictures import SIDE, address, attack_sheet, picture, plain, run_name, sheet
from support.console import duration, option

NUM_PAIRS = 8  # of classes, and of superclasses, that are confused most
MAPS = {  # of covering.mistakes: how the maps are called, in the order of their rows
    "contrastive": "contrastive: answer rather than truth",
    "runner_up": "answer rather than runner-up",
    "random_class": "answer rather than a random class",
    "usual": "usual: the answer alone",
    "other_image": "contrastive, of another image",
    "centre": "the centre of the picture",
}
HEADLINE = {
    "accuracy": "accuracy",
    "macro_precision": "macro precision",
    "macro_recall": "macro recall",
    "macro_f1": "macro F1",
    "top5_accuracy": "top-5 accuracy",
}


def case(answers: dict, images: Tensor, i: int) -> dict:
    """Return what is said of mistake i, a row of the test split."""
    true = plain(answers["class_names"][answers["y_true"][i]])
    return {
        "true": true,
        "predicted": plain(answers["class_names"][answers["y_pred"][i]]),
        "confidence": answers["confidence"][i].item(),
        # Class and file, as folders repeat the names of files.
        "link": {"true": true, "open": answers["filenames"][i]},
        "picture": picture(images[i]),
    }


def one_mistake(answers: dict, evidence: dict, images: Tensor | None) -> dict:
    """The pictures of the game, what stands there without a script, and the mistake to follow through."""
    if "opener" not in evidence or images is None:
        return {"opener": None, "followed": None, "puzzle_sheet": None}
    place = evidence["opener"].item()
    i = evidence["mistakes"][place].item()
    opener, image = case(answers, images, i), images[i]
    if "covered_answers" in evidence:
        # Not blurred: it shows how coarse the cells are.
        cells = F.interpolate(evidence["maps"][place][None, None], images.shape[-1])[0]
        scaled = cells / cells.abs().max().clamp(min=1e-30)
        opener["answer"] = plain(answers["class_names"][evidence["covered_answers"][place]])
        opener["probability"] = evidence["covered_probabilities"][place].item()
        opener["for"], opener["against"] = (
            picture(overlay(image[None] / 255, (sign * scaled).relu())[0]) for sign in (1, -1)
        )
        hidden, fill = evidence["covered_pixels"][place], evidence["fill"][:, None, None]
        opener["covered"] = picture(torch.where(hidden, fill, image / 255))
    indices = evidence["puzzles"].tolist()
    return {
        "opener": opener,
        "followed": case(answers, images, indices[0]),
        "puzzle_sheet": sheet(images[indices], columns=len(indices)),
    }


def mistakes(answers: dict, evidence: dict, images: Tensor | None) -> dict:
    """The kinds of mistakes, and the sheet of those that the script shows."""
    return {
        "mistakes_sheet": None if images is None else sheet(images[evidence["mistakes"]]),
        "runs": [run_name(run) for run in answers["runs"][1:]],
        "num_shown": len(evidence["mistakes"]),
        "num_puzzles": len(evidence.get("puzzles", ())),
        "has_superclasses": "superclass_of" in answers,
        "has_maps": "covered_answers" in evidence,
    }


def classes(numbers: dict, answers: dict, images: Tensor | None) -> dict:
    """Classes, and the pairs of them and of superclasses that are confused most."""
    rows = sorted(numbers["classes"], key=lambda row: (row["num_test"] == 0, row["recall"]))
    pairs, names = [], answers["class_names"]
    for pair in numbers["most_confused_pairs"][:NUM_PAIRS]:
        true, predicted = (names.index(pair[key]) for key in ("true", "predicted"))
        confused = (answers["y_true"] == true) & (answers["y_pred"] == predicted)
        examples = torch.nonzero(confused).flatten()[: 0 if images is None else 4]
        pairs.append(pair | {"pictures": [case(answers, images, i) for i in examples.tolist()]})
    return {"class_rows": rows, "pairs": pairs, "superclass_pairs": superclass_pairs(answers)}


def superclass_pairs(answers: dict) -> list[dict]:
    """Return the pairs of superclasses that are confused most: `true`, `predicted`, `count` and `share`.

    The share is of the images of the true superclass. Of equal counts the first in reading order comes first.
    """
    if "superclass_confusion" not in answers:
        return []
    names, counts = [plain(name) for name in answers["superclass_names"]], answers["superclass_confusion"]
    off_diagonal = counts.clone().fill_diagonal_(0).flatten()
    pairs = []
    for place in off_diagonal.argsort(descending=True, stable=True)[:NUM_PAIRS].tolist():
        row, column = divmod(place, len(names))
        pair = {"true": names[row], "predicted": names[column], "count": off_diagonal[place].item()}
        if pair["count"]:
            pairs.append(pair | {"share": pair["count"] / counts[row].sum().item()})
    return pairs


def draw_matrix(answers: dict) -> plots.Figure:
    """Draw the confusion matrix, the classes of a superclass beside each other."""
    order, groups = list(range(len(answers["class_names"]))), {}
    if "superclass_of" in answers:
        of, superclasses = answers["superclass_of"], answers["superclass_names"]
        order = of.argsort(stable=True).tolist()
        sizes = of.bincount(minlength=len(superclasses)).tolist()
        groups = dict(zip(map(plain, superclasses), sizes, strict=True))
    names = [plain(answers["class_names"][c]) for c in order]
    return plots.confusion_matrix(answers["confusion"][order][:, order].numpy(), names, groups)


def maps(numbers: dict) -> dict:
    """The plot of the covering test: how many mistakes become right, by each map and by its controls."""
    covering = numbers.get("covering", {})
    if "mistakes" not in covering:
        return {"covering_plot": None}
    of_map, blurred = covering["mistakes"], covering["blurred"]
    rows = {label: of_map[name]["to_truth"] for name, label in MAPS.items() if name in of_map}
    rows["contrastive, blurred instead"] = blurred["contrastive"]["to_truth"]
    rows["random cells, blurred instead"] = blurred["random"]["to_truth"]
    title, chance = "Mistakes that become right", of_map["random"]["to_truth"]
    figure = plots.dots(title, rows, "of the mistakes, a quarter covered", chance, "random cells")
    said = ", ".join(f"{label} {100 * row['value']:.0f} %" for label, row in rows.items())
    said = f"{title}: {said}; random cells {100 * chance['value']:.0f} %."
    return {"covering_plot": plots.to_svg(figure, "covering", said)}


def confidence(numbers: dict, stress: dict | None) -> dict:
    """Reliability, calibration by severity and how sure answers are, as trained and at the temperature."""
    summary = {} if stress is None else stress.get("summary", {})
    bins, histogram = {}, {}
    for name, suffix in {"as_trained": "", "with_temperature": "_after_temperature"}.items():
        if f"calibration_bins{suffix}" in numbers:
            bins[name] = numbers[f"calibration_bins{suffix}"]
            counts = numbers[f"confidence_histogram{suffix}"]
            histogram[name] = [np.array(counts[key]) for key in ("right", "wrong")]
    groups = {"clean": ("Clean images", bins)}
    if "reliability" in summary:
        groups["corrupted"] = ("Fifteen corruptions", summary["reliability"]["bins"])
    drawn = {}
    for name, (title, of_group) in groups.items():
        said = f"{title}: accuracy against confidence, in bins of confidence."
        drawn[name] = plots.to_svg(plots.reliability(title, of_group), f"reliability-{name}", said)
    if "by_severity" in summary:
        errors, rows = {}, summary["by_severity"]
        for name, label in {"as_trained": "as trained", "with_temperature": "at the temperature"}.items():
            if name in bins and name in rows[0]:
                errors[label] = [row[name]["ece"] for row in rows]
        ends = (f"{label} {100 * error[0]:.1f} to {100 * error[5]:.1f} %" for label, error in errors.items())
        said = f"Calibration error from clean images to severity 5: {', '.join(ends)}."
        figure = plots.severity_curves("Calibration error", errors)
        drawn["severity"] = plots.to_svg(figure, "calibration", said)
    said = f"Confidence of right and wrong answers; above 90 % wrong: {numbers['confident']['wrong']}."
    drawn["histogram"] = plots.to_svg(plots.confidence_histogram(histogram), "histogram", said)
    return {"confidence_plots": drawn}


def stress_tests(answers: dict, stress: dict | None, images: Tensor | None) -> dict:
    """What stress.py measured: tables, plots, and sheets for the two viewers.

    images uint8 [N, 3, S, S]: the test images at their own size.
    """
    if stress is None or "summary" not in stress:
        return {"stress": None}
    shown, tests = {"stress": stress}, stress["tests"]
    names = [name for name in dict.fromkeys(test.split("/")[0] for test in tests) if f"{name}/5" in tests]
    rows = []
    for name in names:
        values = [tests[f"{name}/{severity}"]["accuracy"]["value"] for severity in range(1, 6)]
        rows.append({"name": name, "values": [*values, sum(values) / 5]})  # the last is the mean
    shown["corruption_rows"] = rows
    shown["hardest"] = min(rows, key=lambda row: row["values"][2])
    by_severity = stress["summary"]["by_severity"]
    keys = {"accuracy": "accuracy", "confidence": "mean_confidence"}
    curves = {label: [row[key] for row in by_severity] for label, key in keys.items()}
    first, *_, last = curves["accuracy"]
    said = f"Accuracy falls from {100 * first:.1f} % on clean images to {100 * last:.1f} %."
    figure = plots.severity_curves("Accuracy and confidence", curves)
    shown["severity_plot"] = plots.to_svg(figure, "severity", said)
    epsilons = stress["epsilons"][:-1]  # the last is a check, at which a sound attack leaves no image right
    figure = plots.stress_epsilon(tests, stress["robust_accuracy"], epsilons)
    shown["epsilon_plot"] = plots.to_svg(figure, "epsilon", "Accuracy under attack by epsilon.")
    true = [plain(answers["class_names"][c]) for c in answers["y_true"].tolist()]
    if "examples" in stress:
        pixels, index = stress["example_pixels"], stress["examples"]["images"]
        shown["corruption_sheet"] = sheet(pixels.flatten(0, 1), columns=len(index))
        shown["corruption_tests"] = list(stress["examples"]["answers"])
        shown["corrupted_true"] = [true[i] for i in index]
        clean = [c for c, _ in stress["examples"]["answers"]["clean/0"]]
        shown["clean_right"] = sum(c == answers["y_true"][i] for c, i in zip(clean, index, strict=True))
    if "attack_examples" in stress and images is not None:
        shown["attack_sheet"] = attack_sheet(images, stress)
        shown["attack_cropped"] = images.shape[-1] > SIDE
        shown["attacked_true"] = [true[i] for i in stress["attack_examples"]["images"]]
    return shown


def write_plots(folder: Path, numbers: dict, answers: dict) -> dict:
    """Draw the headline numbers, the classes with the lowest recall and the matrix as files."""
    headline = {name: numbers[key] for key, name in HEADLINE.items()}
    plots.save_png(plots.headline_bars(headline), folder / "headline_metrics.png")
    tested = [row for row in numbers["classes"] if row["num_test"]]
    bars, worst = {}, sorted(tested, key=lambda row: row["recall"])[:10]
    for row in worst:
        other = f" (mostly taken for {row['most_confused_with']})" if row["most_confused_with"] else ""
        bars[plain(row["name"] + other)] = row["recall"]
    title = f"The {len(worst)} classes with the lowest accuracy"
    if len(worst) == len(tested):
        title = "The accuracy of each class, the lowest first"
    plots.save_png(plots.worst_classes(title, bars), folder / "worst_classes.png")
    plots.save_png(draw_matrix(answers), folder / "confusion_matrix.png", dpi=110)
    return {"confusion_png": address((folder / "confusion_matrix.png").read_bytes())}


def training(folder: Path, numbers: dict) -> dict:
    """The curves of the training, as files in the folder and as a plot."""
    trained = numbers.get("training")
    if trained is None:
        return {"training": None}
    history = trained["history"]
    column = {key: np.array([row[key] for row in history]) for key in history[0]}
    changes = {}
    for i in range(1, len(history)):
        if column["image_size"][i] != column["image_size"][i - 1]:
            changes[i + 0.5] = f"{column['image_size'][i]:.0f} px"
    if 0 < trained["last_cutmix"] < len(history):
        changes[trained["last_cutmix"] + 0.5] = "no CutMix"
    for quantity in ("loss", "accuracy"):
        figure = plots.training_curve(column, quantity, trained["epoch"], changes)
        plots.save_png(figure, folder / f"{quantity}.png")
    drawn = plots.to_svg(figure, "training", "Accuracy by epoch in training and validation.")
    return {"training": trained, "training_plot": drawn, "took": duration(column["seconds"].sum())}


def about(numbers: dict, stress: dict | None) -> dict:
    """The commands that make this page, versions and digests."""
    facts, commands, network = {}, [], numbers["network"]
    if "training" in numbers:
        config = numbers["training"]["config"]
        facts |= {f"training: {name}": value for name, value in config["environment"].items()}
        # It has the device and the precision that "auto" became.
        options = config["settings"] | {key: config[key] for key in ("device", "precision")}
        processes = config["environment"].get("processes", 1)
        start = "python" if processes == 1 else f"torchrun --nproc-per-node {processes}"
        changed = f"experiments/train_changed.py {config.get('change')}"
        script = changed if "change" in config else "train.py"
        commands.append(("The network was trained by", command(f"{start} {script}", options)))
    options = numbers["command"].get("options")
    if options is not None:
        if stress is not None:
            full = stress["corruption_images"] == numbers["num_test"]
            commands.append(("It was tested by", stress_command(options | {"full": full})))
        commands.append(("This page was made by", command("python report.py", options)))
    facts |= {f"report: {name}": value for name, value in numbers["environment"].items()}
    labels = {"images": "input", "output": "output", "maps": "layer_note", "weights": "weights"}
    facts |= {label: network[key] for label, key in labels.items() if key in network}
    digests = {"digest of the weights": numbers["checkpoint_sha256"]}
    facts |= digests | {"digest of the test images": numbers["data"]["digest"]}
    return {"facts": facts, "commands": commands, "stress_command": stress_command(options)}


def stress_command(options: dict | None) -> str | None:
    """Return the command that tests what is examined, to be copied, if a command line named a network."""
    if options is None or options["predictions"] is not None:
        return None
    kept = {key: value for key, value in options.items() if key not in ("against", "overwrite", "page")}
    return command("python -m lab.stress", kept)


def command(start: str, options: dict) -> str:
    """Return a command with its options, {name: value}, one in each line; None, False and [] are left out."""
    words = [start]
    for name, value in options.items():
        if value is not None and value is not False and value != []:
            values = value if isinstance(value, list) else [value]
            words.append(shlex.join([option(name), *(str(value) for value in values if value is not True)]))
    return " \\\n    ".join(words)

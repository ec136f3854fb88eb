"""What the templates of explore.html show besides the numbers: pictures, plots and rows.

Each function returns a part of their context, from what a run folder holds: numbers is metrics.json and
reasons.json, answers predictions.npz, evidence evidence.npz, stress the stress tests, see docs/formats.md.
images are the test images, uint8 [N, 3, S, S], at most 64 pixels wide, or None. What is not known is None.
"""

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from gradcam import overlay
from lab.explore import charts
from lab.explore.script_data import attack_sheet, run_name, sheet
from page import plots
from page.embed import SIDE, picture, plain

MAPS = {  # of covering.mistakes: how the maps are called, in the order of their rows
    "contrastive": "contrastive: answer rather than truth",
    "runner_up": "answer rather than runner-up",
    "random_class": "answer rather than a random class",
    "usual": "usual: the answer alone",
    "other_image": "contrastive, of another image",
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


def one_mistake(answers: dict, evidence: dict | None, images: Tensor | None) -> dict:
    """The pictures of the game, what stands there without a script, and the mistake to follow through."""
    if evidence is None or "opener" not in evidence or images is None:
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


def mistakes(numbers: dict, answers: dict, evidence: dict | None, images: Tensor | None) -> dict:
    """The kinds of mistakes, and the sheet of those that the script shows."""
    evidence = evidence or {"mistakes": torch.zeros(0, dtype=torch.int64)}
    return {
        "mistakes_sheet": None if images is None else sheet(images[evidence["mistakes"]]),
        "runs": [run_name(run) for run in numbers["runs"][1:]],
        "num_shown": len(evidence["mistakes"]),
        "num_puzzles": len(evidence.get("puzzles", ())),
        "has_superclasses": "superclass_of" in answers,
        "has_maps": "covered_answers" in evidence,
    }


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
    figure = charts.dots(title, rows, "of the mistakes, a quarter covered", chance, "random cells")
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
        drawn[name] = plots.to_svg(charts.reliability_of_groups(title, of_group), f"reliability-{name}", said)
    if "by_severity" in summary:
        errors, rows = {}, summary["by_severity"]
        for name, label in {"as_trained": "as trained", "with_temperature": "at the temperature"}.items():
            if name in bins and name in rows[0]:
                errors[label] = [row[name]["ece"] for row in rows]
        ends = (f"{label} {100 * error[0]:.1f} to {100 * error[5]:.1f} %" for label, error in errors.items())
        said = f"Calibration error from clean images to severity 5: {', '.join(ends)}."
        figure = charts.severity_curves("Calibration error", errors)
        drawn["severity"] = plots.to_svg(figure, "calibration", said)
    said = f"Confidence of right and wrong answers; above 90 % wrong: {numbers['confident']['wrong']}."
    drawn["histogram"] = plots.to_svg(charts.histogram_of_groups(histogram), "histogram", said)
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
    figure = charts.severity_curves("Accuracy and confidence", curves)
    shown["severity_plot"] = plots.to_svg(figure, "severity", said)
    epsilons = stress["epsilons"][:-1]  # the last is a check, at which a sound attack leaves no image right
    figure = charts.stress_epsilon(tests, stress["robust_accuracy"], epsilons)
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

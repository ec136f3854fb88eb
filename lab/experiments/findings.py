"""The three findings of README.md in every network of which results/ holds something, in percent.

    python experiments/findings.py > results/findings.md

Prints Markdown tables and draws results/temperature.png. Nothing is measured again, and what a file does not
hold is left out: there are no stress tests and no covering of seeds 1 and 2. Covering of earlier versions has
400 mistakes, maps after their ReLU, and no random class or other image; their random signs are of the
attacked images and count what is lost only, where today's are the change of accuracy on all of the sample.
"""

import json
import sys
from pathlib import Path

import torch
from matplotlib.figure import Figure
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from lab import compare
from page import plots

RESULTS = Path(__file__).resolve().parents[2] / "results"
NETWORKS = {
    "shipped": ".",
    "seed 1": "seed1",
    "seed 2": "seed2",
    "plain0": "plain0",
    "plain1": "plain1",
    "plain2": "plain2",
    "smooth0": "smooth0",
    "smooth1": "smooth1",
    "smooth2": "smooth2",
    "narrow0": "narrow0",
    "narrow1": "narrow1",
}
SHOWN_SEVERITIES = (1, 3, 5)
RECIPES = {  # of which the seed alone differs
    "Label smoothing 0.1": ("plain0", "plain1", "plain2"),
    "No label smoothing": ("smooth0", "smooth1", "smooth2"),
}


def read(folder: Path, name: str) -> dict | None:
    """Return the content of a .json file, or None where there is none."""
    path = folder / name
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else None


def percent(row: dict) -> str:
    """Return {value, low, high} as "29.0 (26.0 to 32.2)", in percent."""
    value, low, high = (100 * row[key] for key in ("value", "low", "high"))
    return f"{value:.1f} ({low:.1f} to {high:.1f})"


def points(row: dict) -> str:
    """Return a difference, {value, low, high}, as "-0.2 (-0.5 to +0.0)", in points."""
    value, low, high = (100 * row[key] for key in ("value", "low", "high"))
    return f"{value:+.1f} ({low:+.1f} to {high:+.1f})"


def print_table(title: str, caption: str, head: str, rows: list[list[str]]) -> None:
    print(f"## {title}\n\n{caption}\n")
    columns = head.split(";")
    for row in [columns, ["---"] * len(columns), *rows]:
        print("|", " | ".join(cell.strip() for cell in row), "|")
    print()


def covering_row(numbers: dict) -> list[str]:
    """Return what becomes the truth by the contrastive map and its controls, with the verdict, or nothing."""
    if "covering" in numbers:
        of_maps = numbers["covering"]["mistakes"]
        names = ("contrastive", "random_class", "other_image", "usual", "random")
        return [*(percent(of_maps[name]["to_truth"]) for name in names), numbers["covering"]["verdict"]]
    if "repair" in numbers:  # of earlier versions
        of_maps = numbers["repair"]
        found = [percent(of_maps[name]["mean_colour"]) for name in ("contrastive", "predicted", "random")]
        return [found[0], "", "", *found[1:], ""]
    return []


def attack_row(stress: dict) -> list[str]:
    """Return how many are attacked, right without a change, under every attack of 1/255, and random signs."""
    tests = stress["tests"]
    random = tests["random/1"]
    signs = f"{100 * random['accuracy']['value']:.1f}"
    if "change" in random:
        signs = points(random["change"])
    attacked = f"{stress['attack_images']:,}"
    right = percent(tests["unattacked/0"]["accuracy"])
    return [attacked, right, percent(stress["robust_accuracy"]["1"]), signs]


def temperature_row(folder: Path, numbers: dict, stress: dict | None, errors: Tensor | None) -> list[str]:
    """Return how many are corrupted, the temperature, and calibration errors before and after it.

    errors: see errors_by_severity; None without stress tests.
    """
    answers, _, _ = compare.read_run(folder)
    gaps = compare.gaps_of(answers, numbers["temperature"]).values()
    before, after = (compare.calibration_error(*of_images) for of_images in gaps)
    resamples = [compare.resampled_errors(*of_images) for of_images in gaps]
    low, high = (resamples[1] - resamples[0]).quantile(torch.tensor([0.025, 0.975]).double())
    change = {"value": after - before, "low": low, "high": high}
    cells = ["" if stress is None else f"{stress['corruption_images']:,}", f"{numbers['temperature']:.2f}"]
    cells += [f"{100 * before:.1f} to {100 * after:.1f}", points(change)]
    if errors is None:
        return [*cells, *[""] * len(SHOWN_SEVERITIES)]
    for severity in SHOWN_SEVERITIES:
        as_trained, scaled = (100 * errors[:, severity]).tolist()
        cells.append(f"{as_trained:.1f} to {scaled:.1f}")
    return cells


def errors_by_severity(numbers: dict, stress: dict) -> Tensor:
    """Return calibration errors of a network, float64 [2, 6]: as trained, and at the temperature.

    The first are of all clean test images, the others of the corrupted ones at severities 1 to 5.
    """
    errors = []
    for kind, suffix in {"as_trained": "", "with_temperature": "_after_temperature"}.items():
        corrupted = [row[kind]["ece"] for row in stress["summary"]["by_severity"][1:]]
        errors.append([numbers[f"expected_calibration_error{suffix}"], *corrupted])
    return torch.tensor(errors, dtype=torch.float64)


def change_over_seeds(errors: list[Tensor]) -> list[str]:
    """Return the mean change at each severity, with its 95 % interval over seeds by Student's t."""
    change = torch.stack([scaled - as_trained for as_trained, scaled in errors])  # [seeds, 6]
    width = compare.T_QUANTILE[len(errors) - 2] * change.std(dim=0) / len(errors) ** 0.5
    cells = []
    for severity in SHOWN_SEVERITIES:
        value, reach = change[:, severity].mean().item(), width[severity].item()
        cells.append(points({"value": value, "low": value - reach, "high": value + reach}))
    return cells


@plots.styled()
def draw_temperatures(path: Path, errors: dict[str, Tensor]) -> None:
    """Draw calibration error against severity, a line for each seed, as trained and at the temperature.

    errors: of each network, see errors_by_severity.
    """
    figure = Figure(figsize=(10, 3.6))
    for axes, (recipe, names) in zip(figure.subplots(1, 2, sharey=True), RECIPES.items(), strict=True):
        for name in names:
            as_trained, scaled = errors[name]
            axes.plot(range(6), as_trained, color=plots.ORANGE, marker="o", linestyle="--")
            axes.plot(range(6), scaled, color=plots.BLUE, marker="s")
        axes.set_title(recipe)
        axes.set_xlabel("severity (0 is clean)")
        axes.set_ylim(0, 0.24)
        plots.in_percent(axes.yaxis)
        last = {"as trained": (as_trained, plots.ORANGE), "at the temperature": (scaled, plots.BLUE)}
        ends = {label: (5, float(values[5]), colour) for label, (values, colour) in last.items()}
        plots.name_lines(axes, ends)
    figure.suptitle("Calibration error of three seeds each", x=0.01, ha="left")
    plots.save_png(figure, path)


def main() -> None:
    covering, attacks, temperatures, errors = [], [], [], {}
    for name, place in NETWORKS.items():
        folder = RESULTS / place
        numbers, stress = read(folder, "metrics.json"), read(folder, "stress.json")
        settings = read(folder, "config.json")["settings"]
        recipe = f"{settings['epochs']}, {settings['label_smoothing']:g}"
        if of_maps := covering_row(numbers):
            covering.append([name, recipe, percent(numbers["accuracy"]), *of_maps])
        if stress:
            attacks.append([name, *attack_row(stress)])
            errors[name] = errors_by_severity(numbers, stress)
        temperatures.append([name, *temperature_row(folder, numbers, stress, errors.get(name))])
    print("# The three findings, by network, in percent\n")
    print("By `python experiments/findings.py > results/findings.md`; README.md has the words.\n")
    caption = "Of 800 mistakes; without a verdict of 400, by maps after their ReLU, an earlier measure."
    head = "network; epochs, smoothing; right; contrastive map; random class; another image; usual map"
    print_table("Mistakes that covering makes right", caption, f"{head}; random cells; verdict", covering)
    caption = "Random signs: with a sign the change of accuracy on all images of the sample; without, "
    caption += "what stays right of the attacked images, as earlier versions counted."
    head = "network; attacked images; unchanged; all attacks of 1/255; random signs of 1/255"
    print_table("Images that changes of 1/255 leave right", caption, head, attacks)
    severities = "; ".join(f"severity {s}" for s in SHOWN_SEVERITIES)
    caption = "Clean: all 10,000 test images. The fewer are corrupted, the more of a small error is chance."
    head = f"network; corrupted images; temperature; clean; change; {severities}"
    print_table("Calibration error as trained and at the temperature", caption, head, temperatures)
    changes = []
    for recipe, names in RECIPES.items():
        changes.append([recipe, *change_over_seeds([errors[name] for name in names])])
    caption = "Means of three seeds, with 95 % intervals over seeds by Student's t."
    print_table("Its change by the temperature", caption, f"recipe; {severities}", changes)
    draw_temperatures(RESULTS / "temperature.png", errors)


if __name__ == "__main__":
    main()

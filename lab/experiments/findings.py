"""The three findings of README.md in every network that has files in results/, in percent.

    python lab/experiments/findings.py > results/findings.md

Prints Markdown tables and draws results/temperature.png. It measures nothing again, and leaves out what a
file does not hold: seeds 1 and 2 have no stress tests and no covering.
"""

import json
import sys
from pathlib import Path

import torch
from matplotlib.figure import Figure
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import report
from lab import compare
from lab.explore import drawing

RESULTS = Path(__file__).resolve().parents[2] / "results"
WITH_SMOOTHING = [f"with_smoothing_seed{seed}" for seed in range(3)]
WITHOUT_SMOOTHING = [f"without_smoothing_seed{seed}" for seed in range(3)]
NARROW = [f"narrow_without_smoothing_seed{seed}" for seed in range(2)]
NETWORKS = ["shipped", "seed1", "seed2", *WITH_SMOOTHING, *WITHOUT_SMOOTHING, *NARROW]
SHOWN_SEVERITIES = (1, 3, 5)
RECIPES = {"Label smoothing 0.1": WITH_SMOOTHING, "No label smoothing": WITHOUT_SMOOTHING}
MAPS = ("contrastive", "random_class", "other_image", "usual", "centre", "random")


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


def covering_row(reasons: dict | None) -> list[str]:
    """Return what becomes the truth by the contrastive map and its controls, with the verdict, or nothing."""
    if reasons is None:
        return []
    of_maps = reasons["covering"]["mistakes"]
    shares = [percent(of_maps[name]["to_truth"]) if name in of_maps else "not measured" for name in MAPS]
    return [*shares, reasons["covering"]["verdict"]]


def attack_row(stress: dict) -> list[str]:
    """Return how many are attacked, right before, under every attack of 1/255, and random signs of it."""
    before, after = stress["tests"]["unattacked/0"]["accuracy"], stress["robust_accuracy"]["1"]
    random = stress["tests"]["random/1"]
    signs = points(random["change"]) if "change" in random else "not measured"
    survive = f"{100 * after['value'] / before['value']:.0f}"
    return [f"{stress['attack_images']:,}", percent(before), percent(after), survive, signs]


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


def over_seeds(errors: list[Tensor]) -> list[str]:
    """Return mean errors at each severity, as trained and at the temperature, and the mean of their change.

    The last has its 95 % interval over seeds by Student's t.
    """
    all_errors = torch.stack(errors)  # [seeds, 2, 6]
    change = all_errors[:, 1] - all_errors[:, 0]
    width = compare.T_QUANTILE[len(errors) - 2] * change.std(dim=0) / len(errors) ** 0.5
    cells = []
    for severity in SHOWN_SEVERITIES:
        as_trained, scaled = (100 * all_errors[:, :, severity].mean(dim=0)).tolist()
        value, reach = change[:, severity].mean().item(), width[severity].item()
        of_change = points({"value": value, "low": value - reach, "high": value + reach})
        cells.append(f"{as_trained:.1f} to {scaled:.1f}, {of_change}")
    return cells


@drawing.styled()
def draw_temperatures(path: Path, errors: dict[str, Tensor]) -> None:
    """Draw calibration error against severity, a line for each seed, as trained and at the temperature.

    errors: of each network, see errors_by_severity.
    """
    figure = Figure(figsize=(10, 3.6))
    for axes, (recipe, names) in zip(figure.subplots(1, 2, sharey=True), RECIPES.items(), strict=True):
        for name in names:
            as_trained, scaled = errors[name]
            axes.plot(range(6), as_trained, color=report.ORANGE, marker="o", linestyle="--")
            axes.plot(range(6), scaled, color=report.BLUE, marker="s")
        axes.set_title(recipe)
        axes.set_xlabel("severity (0 is clean)")
        axes.set_ylim(0, 0.24)
        report.in_percent(axes.yaxis)
        last = {"as trained": (as_trained, report.ORANGE), "at the temperature": (scaled, report.BLUE)}
        ends = {label: (5, float(values[5]), colour) for label, (values, colour) in last.items()}
        drawing.name_lines(axes, ends)
    figure.suptitle("Calibration error of three seeds each", x=0.01, ha="left")
    report.write(path, report.png(figure, dpi=160))


def main() -> None:
    covering, attacks, temperatures, errors = [], [], [], {}
    for name in NETWORKS:
        folder = RESULTS if name == "shipped" else RESULTS / name
        numbers, reasons, stress = (read(folder, f"{kind}.json") for kind in ("metrics", "reasons", "stress"))
        settings = read(folder, "config.json")["settings"]
        recipe = f"{settings['epochs']}, {settings['label_smoothing']:g}"
        if of_maps := covering_row(reasons):
            covering.append([name, recipe, percent(numbers["accuracy"]), *of_maps])
        if stress:
            attacks.append([name, *attack_row(stress)])
            errors[name] = errors_by_severity(numbers, stress)
        temperatures.append([name, *temperature_row(folder, numbers, stress, errors.get(name))])
    print("# The three findings, by network, in percent\n")
    print("By `python lab/experiments/findings.py > results/findings.md`; README.md has the words.\n")
    caption = "Of 800 mistakes, the share that becomes the true class. Where the centre was not measured,\n"
    caption += "the verdict is at most that it is more than chance."
    head = "network; epochs, smoothing; right; contrastive map; random class; another image; usual map"
    print_table("Mistakes that covering turns", caption, f"{head}; centre; random cells; verdict", covering)
    caption = "Of the attacked images; random signs are the change of accuracy on all images of the sample."
    head = "network; attacked images; right before; all attacks of 1/255; of those right before; random signs"
    print_table("Images that changes of 1/255 leave right", caption, head, attacks)
    severities = "; ".join(f"severity {s}" for s in SHOWN_SEVERITIES)
    caption = "Clean: all 10,000 test images. The fewer are corrupted, the more of a small error is chance."
    head = f"network; corrupted images; temperature; clean; change; {severities}"
    print_table("Calibration error as trained and at the temperature", caption, head, temperatures)
    changes = [[recipe, *over_seeds([errors[name] for name in names])] for recipe, names in RECIPES.items()]
    caption = (
        "Means of three seeds, and of their change with a 95 % interval over seeds by Student's t; minus is\n"
    )
    caption += "better. Seed 0 of both recipes and seed 1 with smoothing are of 200 images."
    print_table("The same over seeds", caption, f"recipe; {severities}", changes)
    draw_temperatures(RESULTS / "temperature.png", errors)


if __name__ == "__main__":
    main()

"""The three findings of README.md in every network of which results/ holds something, in percent.

    python experiments/findings.py

Prints Markdown tables. Nothing is measured again, and what a file does not hold is left out: there are no
stress tests and no covering of seeds 1 and 2. Covering of earlier versions has 400 mistakes, maps after their
ReLU, and no random class or other image; their random signs are of the attacked images and count what is lost
only, where today's are the change of accuracy on all images of the sample.
"""

import json
import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import compare

RESULTS = Path(__file__).resolve().parent.parent / "results"
NETWORKS = {
    "shipped": ".",
    "seed 1": "seed1",
    "seed 2": "seed2",
    "plain0": "plain0",
    "plain1": "plain1",
    "smooth0": "smooth0",
    "narrow0": "narrow0",
    "narrow1": "narrow1",
    "corrupt": "corrupt",
    "adversarial": "adversarial",
}
SHOWN_SEVERITIES = (1, 3, 5)


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


def print_table(head: str, rows: list[list[str]]) -> None:
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
    """Return how many are right without a change, under every attack of 1/255, and under random signs."""
    tests = stress["tests"]
    random = tests["random/1"]
    signs = f"{100 * random['accuracy']['value']:.1f}"
    if "change" in random:
        signs = points(random["change"])
    return [percent(tests["unattacked/0"]["accuracy"]), percent(stress["robust_accuracy"]["1"]), signs]


def temperature_row(folder: Path, numbers: dict, stress: dict | None) -> list[str]:
    """Return the temperature, and calibration errors before and after it, in percent."""
    rows = compare.tabulate([compare.read_run(folder)])
    before, after = (rows[name] for name in ("calibration error", "calibration error after temperature"))
    low, high = (after.samples[0] - before.samples[0]).quantile(torch.tensor([0.025, 0.975]).double())
    change = {"value": after.values[0] - before.values[0], "low": low, "high": high}
    cells = [f"{numbers['temperature']:.2f}", f"{100 * before.values[0]:.1f} to {100 * after.values[0]:.1f}"]
    cells.append(points(change))
    if stress is None:
        return [*cells, *[""] * len(SHOWN_SEVERITIES)]
    for severity in SHOWN_SEVERITIES:
        row = stress["summary"]["by_severity"][severity]
        errors = [100 * row[name]["ece"] for name in ("as_trained", "with_temperature")]
        cells.append(f"{errors[0]:.1f} to {errors[1]:.1f}")
    return cells


def main() -> None:
    covering, attacks, temperatures = [], [], []
    for name, place in NETWORKS.items():
        folder = RESULTS / place
        numbers, stress = read(folder, "metrics.json"), read(folder, "stress.json")
        settings = read(folder, "config.json")["settings"]
        recipe = f"{settings['epochs']}, {settings['label_smoothing']:g}"
        if of_maps := covering_row(numbers):
            covering.append([name, recipe, percent(numbers["accuracy"]), *of_maps])
        if stress:
            attacks.append([name, *attack_row(stress)])
        temperatures.append([name, *temperature_row(folder, numbers, stress)])
    controls = "random class; another image; usual map; random cells; verdict"
    print_table(f"network; epochs, smoothing; right; contrastive map; {controls}", covering)
    print_table("network; unchanged; all attacks of 1/255; random signs of 1/255", attacks)
    severities = "; ".join(f"severity {s}" for s in SHOWN_SEVERITIES)
    print_table(f"network; temperature; clean; change; {severities}", temperatures)


if __name__ == "__main__":
    main()

"""The three findings of README.md in every network of which results/ holds something, as Markdown tables.

    python experiments/findings.py

Nothing is measured again. What a file does not hold is left out: seeds 1 and 2 of 40 epochs have no stress
tests and no covering. All but the shipped network were covered by an earlier version: 400 mistakes, the
map after its ReLU, and random cells and the usual map as the only controls. Their random signs are of the
attacked images and count losses only, as long as stress.json has no "change". Corruptions are of 200 images,
but of the shipped network of all.
"""

import json
import sys
from pathlib import Path

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import compare
import metrics

RESULTS = Path(__file__).resolve().parent.parent / "results"
NETWORKS = {
    "shipped": ".",
    "seed 1": "seed1",
    "seed 2": "seed2",
    "plain0": "plain0",
    "plain1": "plain1",
    "smooth0": "smooth0",
    "corrupt": "corrupt",
    "adversarial": "adversarial",
}
SHOWN_SEVERITIES = (1, 3, 5)


def read(folder: Path, name: str) -> dict | None:
    """Return the content of a .json file, or None where there is none."""
    path = folder / name
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else None


def percent(row: dict) -> str:
    """Return {value, low, high} as "29.0 % (26.0 to 32.2)"."""
    value, low, high = (100 * row[key] for key in ("value", "low", "high"))
    return f"{value:.1f} % ({low:.1f} to {high:.1f})"


def print_table(head: str, rows: list[list[str]]) -> None:
    columns = head.split(";")
    for row in [columns, ["---"] * len(columns), *rows]:
        print("|", " | ".join(cell.strip() for cell in row), "|")
    print()


def covering_row(numbers: dict) -> list[str]:
    """Return what becomes the truth by the contrastive map, the usual one, and random cells."""
    if "covering" in numbers:
        of_maps = numbers["covering"]["mistakes"]
        return [percent(of_maps[name]["to_truth"]) for name in ("contrastive", "usual", "random")]
    if "repair" in numbers:  # of earlier versions
        of_maps = numbers["repair"]
        return [percent(of_maps[name]["mean_colour"]) for name in ("contrastive", "predicted", "random")]
    return ["", "", ""]


def attack_row(stress: dict) -> list[str]:
    """Return how many are right without a change, under every attack of 1/255, and under random signs."""
    tests = stress["tests"]
    random = tests["random/1"]
    signs = f"{100 * random['accuracy']['value']:.1f} %, losses only"
    if "change" in random:
        value, low, high = (100 * random["change"][key] for key in ("value", "low", "high"))
        signs = f"{value:+.1f} points ({low:+.1f} to {high:+.1f})"
    cells = [percent(tests["unattacked/0"]["accuracy"]), percent(stress["robust_accuracy"]["1"]), signs]
    return [str(stress["attack_images"]), *cells]


def temperature_row(folder: Path, numbers: dict, stress: dict | None) -> list[str]:
    """Return the temperature, calibration errors before and after it, and accuracy at severity 5."""
    rows = compare.tabulate([compare.read_run(folder)])
    before, after = (rows[name] for name in ("calibration error", "calibration error after temperature"))
    low, high = 100 * (after.samples[0] - before.samples[0]).quantile(torch.tensor([0.025, 0.975]).double())
    change = 100 * (after.values[0] - before.values[0])
    cells = [f"{numbers['temperature']:.2f}", f"{100 * before.values[0]:.1f} to {100 * after.values[0]:.1f}"]
    cells.append(f"{change:+.1f} ({low:+.1f} to {high:+.1f})")
    if stress is None:
        return [*cells, *[""] * (len(SHOWN_SEVERITIES) + 1)]
    for severity in SHOWN_SEVERITIES:
        row = stress["summary"]["by_severity"][severity]
        errors = [100 * row[name]["ece"] for name in ("as_trained", "with_temperature")]
        cells.append(f"{errors[0]:.1f} to {errors[1]:.1f}")
    return [*cells, percent(accuracy_at(folder, stress, severity=5))]


def accuracy_at(folder: Path, stress: dict, severity: int) -> dict[str, float]:
    """Return the accuracy over the fifteen corruptions of a severity, with its interval over the images."""
    names = [name for family in stress["families"].values() for name in family]
    with np.load(folder / "stress.npz") as answers:
        right = np.stack([answers[f"{name}/{severity}"] for name in names])
    return metrics.mean_interval(torch.from_numpy(right).double().mean(dim=0))


def main() -> None:
    covering, attacks, temperatures = [], [], []
    for name, place in NETWORKS.items():
        folder = RESULTS / place
        numbers, stress = read(folder, "metrics.json"), read(folder, "stress.json")
        settings = read(folder, "config.json")["settings"]
        recipe = f"{settings['epochs']}, {settings['label_smoothing']:g}"
        covering.append([name, recipe, percent(numbers["accuracy"]), *covering_row(numbers)])
        if stress:
            attacks.append([name, *attack_row(stress)])
        temperatures.append([name, *temperature_row(folder, numbers, stress)])
    print_table("network; epochs, smoothing; right; contrastive map; usual map; random cells", covering)
    print_table("network; images; unchanged; all attacks of 1/255; random signs of 1/255", attacks)
    severities = "; ".join(f"severity {s}" for s in SHOWN_SEVERITIES)
    print_table(f"network; temperature; clean; change; {severities}; right at severity 5", temperatures)


if __name__ == "__main__":
    main()

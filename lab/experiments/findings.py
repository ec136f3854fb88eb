"""The findings of results/README.md in every network that has files in results/, in percent.

    python lab/experiments/findings.py > results/findings.md

Prints Markdown tables and draws results/temperature.png. It measures nothing again, and leaves out what a
file does not hold: seeds 1 and 2 have no stress tests and no covering, and all_images_seed0, which was
trained on all 50,000 images, has no validation images, and so no temperature.
"""

import json
import sys
from pathlib import Path

import numpy as np
import torch
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter
from torch import Generator, Tensor

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from lab.experiments.temperature import errors_of
from lab.reasons import TRIES
from lab.stress_tests.corruptions import FIFTEEN
from report import drawn
from train import write

RESULTS = Path(__file__).resolve().parents[2] / "results"
WITH_SMOOTHING = [f"with_smoothing_seed{seed}" for seed in range(3)]
WITHOUT_SMOOTHING = [f"without_smoothing_seed{seed}" for seed in range(3)]
NARROW = [f"narrow_without_smoothing_seed{seed}" for seed in range(2)]
NETWORKS = ["shipped", "seed1", "seed2", "all_images_seed0", *WITH_SMOOTHING, *WITHOUT_SMOOTHING, *NARROW]
SHOWN_SEVERITIES = (1, 3, 5)
RECIPES = {"Label smoothing 0.1": WITH_SMOOTHING, "No label smoothing": WITHOUT_SMOOTHING}
MAPS = ("contrastive", *reversed(TRIES.values()), "random", "usual", "random_class", "other_image", "centre")
NUM_RESAMPLES = 200
CAPTIONS = {
    "covering": """
Of 800 mistakes, the share that becomes the true class. The best of several random covers is chosen by the
truth. Where the centre was not measured, the verdict is at most that it is more than chance.""",
    "changing": "Of 400 right answers, the share that changes.",
    "attacks": """
Of the attacked images, under five attacks of 1/255, and under FGSM and PGD of 8/255. Random signs are the
change of accuracy on all images of the sample, by signs of 1/255.""",
    "clean": """
All 10,000 test images, as trained and at the temperature; NLL and Brier score are no percentages. All but the
shipped network's NLL come from probabilities of 16 bits, of which those below 6e-8 count as that.""",
    "corrupted": """
Error is the mean over 75 tests, the mean corruption error as AugMix gives it (not normalised), of corruptions
that are rebuilt here. The severities have the mean of fifteen calibration errors, as trained and at the
temperature. Chance adds to it, and more to 200 images than to 1,000: the two are not to be compared. Last is
mean confidence less accuracy at severity 5, as trained.""",
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
    print(f"## {title}\n\n{caption.strip()}\n")
    columns = head.split(";")
    for row in [columns, ["---"] * len(columns), *rows]:
        print("|", " | ".join(cell.strip() for cell in row), "|")
    print()


def covering_row(reasons: dict | None) -> list[str]:
    """Return what becomes the truth by the contrastive map and its controls, with the verdict, or nothing."""
    if reasons is None:
        return []
    rows = reasons["covering"]["mistakes"]
    shares = [percent(rows[name]["to_truth"]) if name in rows else "not measured" for name in MAPS]
    return [*shares, reasons["covering"]["verdict"]]


def changing_row(reasons: dict | None) -> list[str]:
    """Return how many right answers change by the usual map, the centre and random cells, or nothing."""
    if reasons is None:
        return []
    rows = reasons["covering"]["right"]
    return [percent(rows[name]["changed"]) for name in ("usual", "centre", "random")]


def attack_row(stress: dict) -> list[str]:
    """Return how many are attacked, right before, under attacks of 1/255 and 8/255, and random signs."""
    before = stress["tests"]["unattacked/0"]["accuracy"]
    after, large = (stress["robust_accuracy"][epsilon] for epsilon in ("1", "8"))
    random = stress["tests"]["random/1"]
    signs = points(random["change"]) if "change" in random else "not measured"
    survive = f"{100 * after['value'] / before['value']:.0f}"
    return [f"{stress['attack_images']:,}", percent(before), percent(after), survive, signs, percent(large)]


def clean_row(folder: Path, temperature: float | None) -> list[str]:
    """Return ECE, NLL and Brier score of the stored answers before and after, and the change of ECE."""
    with np.load(folder / "predictions.npz") as file:
        labels, arrays = torch.from_numpy(file["y_true"]), {key: file[key] for key in file.files}
    smallest = np.finfo(np.float16).smallest_subnormal  # in which the probabilities are stored
    logits = arrays["logits"] if "logits" in arrays else np.log(arrays["probabilities"].clip(smallest))
    logits = torch.from_numpy(logits.astype(np.float32))
    drawn = torch.randint(len(labels), (NUM_RESAMPLES, len(labels)), generator=Generator().manual_seed(0))
    counts = torch.stack([torch.ones_like(labels), *(row.bincount(minlength=len(labels)) for row in drawn)])
    temperatures = [1.0] if temperature is None else [1.0, temperature]
    errors = [errors_of(logits, labels, t, counts.double()) for t in temperatures]
    change = "not measured"
    if temperature is not None:
        changes = errors[1]["ECE"] - errors[0]["ECE"]
        low, high = changes[1:].quantile(torch.tensor([0.025, 0.975]).double()).tolist()
        change = points({"value": changes[0].item(), "low": low, "high": high})
    cells = [" to ".join(f"{100 * row['ECE'][0]:.1f}" for row in errors), change]
    return cells + [" to ".join(f"{row[key][0]:.3f}" for row in errors) for key in ("NLL", "Brier")]


def corrupted_errors(stress: dict) -> Tensor:
    """Return means of fifteen calibration errors, float64 [K, 5]: as trained, and at a temperature if any."""
    kinds = list(stress["tests"]["clean/0"]["calibration"])
    errors = torch.zeros(len(kinds), 5, dtype=torch.float64)
    for k, kind in enumerate(kinds):
        for severity in range(5):
            rows = [stress["tests"][f"{name}/{severity + 1}"]["calibration"][kind] for name in FIFTEEN]
            gaps = torch.tensor([row["gaps"] for row in rows]).double()
            errors[k, severity] = gaps.abs().sum(dim=1).mean() / stress["corruption_images"]
    return errors


def corruption_row(stress: dict, errors: Tensor) -> list[str]:
    """Return the images, the mean error over 75 corruptions, and calibration errors at three severities."""
    accuracy = stress["summary"]["mean_accuracy"]["fifteen"]
    wrong = {"value": 1 - accuracy["value"], "low": 1 - accuracy["high"], "high": 1 - accuracy["low"]}
    cells = [f"{stress['corruption_images']:,}", percent(wrong)]
    for severity in SHOWN_SEVERITIES:
        as_trained, *scaled = (100 * errors[:, severity - 1]).tolist()
        change = [f" to {error:.1f} ({error - as_trained:+.1f})" for error in scaled]
        cells.append(f"{as_trained:.1f}{''.join(change)}")
    last = [stress["tests"][f"{name}/5"] for name in FIFTEEN]
    sure = np.mean([row["mean_confidence"] - row["accuracy"]["value"] for row in last])
    return [*cells, f"{100 * sure:+.1f}"]


def draw_temperatures(path: Path, clean: dict[str, list[float]], errors: dict[str, Tensor]) -> None:
    """Draw calibration error against severity, a line for each seed, as trained and at the temperature.

    clean: the errors of each network on clean images; errors: see corrupted_errors.
    """
    figure = Figure(figsize=(10, 3.6), layout="constrained")
    for axes, (recipe, names) in zip(figure.subplots(1, 2, sharey=True), RECIPES.items(), strict=True):
        for name in names:
            trained, scaled = ([clean[name][k], *errors[name][k].tolist()] for k in (0, 1))
            (before,) = axes.plot(range(6), trained, color="tab:gray", marker="o", linestyle="--")
            (after,) = axes.plot(range(6), scaled, color="tab:blue", marker="s")
        axes.set_title(recipe)
        axes.set_xlabel("severity (0 is clean)")
        axes.set_ylim(0, 0.24)
        axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
        axes.legend([before, after], ["as trained", "at the temperature"], frameon=False)
    figure.suptitle("Mean of the calibration errors under fifteen corruptions, three seeds each", fontsize=11)
    write(path, drawn(figure, "png", 110))


def main() -> None:
    covering, changing, attacks, clean_rows, corrupted, clean, errors = [], [], [], [], [], {}, {}
    for name in NETWORKS:
        folder = RESULTS if name == "shipped" else RESULTS / name
        numbers, reasons, stress = (read(folder, f"{kind}.json") for kind in ("metrics", "reasons", "stress"))
        settings = read(folder, "config.json")["settings"]
        recipe = f"{settings['epochs']}, {settings['label_smoothing']:g}"
        if reasons:
            covering.append([name, recipe, percent(numbers["accuracy"]), *covering_row(reasons)])
            changing.append([name, *changing_row(reasons)])
        if stress:
            attacks.append([name, *attack_row(stress)])
            errors[name] = corrupted_errors(stress)
            corrupted.append([name, *corruption_row(stress, errors[name])])
        temperature = numbers.get("temperature")
        rounded = "none" if temperature is None else f"{temperature:.2f}"
        clean_rows.append([name, rounded, *clean_row(folder, temperature)])
        kinds = ("expected_calibration_error", "expected_calibration_error_after_temperature")
        clean[name] = [numbers.get(kind) for kind in kinds]
    print("# The findings, by network, in percent\n")
    print("By `python lab/experiments/findings.py > results/findings.md`; README.md has the words.\n")
    names = [name.replace("_", " ") for name in MAPS]
    head = "; ".join(["network; epochs, smoothing; right", *names, "verdict"])
    print_table("Mistakes that covering turns", CAPTIONS["covering"], head, covering)
    head = "network; usual map; centre; random"
    print_table("Right answers that covering changes", CAPTIONS["changing"], head, changing)
    head = "network; attacked images; right before; all attacks of 1/255; of those right before; random signs"
    head += "; FGSM and PGD of 8/255"
    print_table("Images that attacks leave right", CAPTIONS["attacks"], head, attacks)
    head = "network; temperature; calibration error; change; NLL; Brier score"
    print_table("Calibration on clean images", CAPTIONS["clean"], head, clean_rows)
    severities = "; ".join(f"severity {s}" for s in SHOWN_SEVERITIES)
    head = f"network; images; error; {severities}; overconfident at 5 by"
    print_table("Corruptions", CAPTIONS["corrupted"], head, corrupted)
    draw_temperatures(RESULTS / "temperature.png", clean, errors)


if __name__ == "__main__":
    main()

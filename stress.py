"""Find where the network breaks: run corruptions and attacks on a sample of the test images.

    python stress.py --run runs/cifar100

Runs every corruption at five severities (stress_tests/corruptions.py), the attacks at growing radii, and the
checks that tell a robust network from a weak attack (stress_tests/attacks.py). Writes stress.json and plots
into the run folder; with --checkpoint of a file outside of a run, into runs/<name of the file>/. Every test
is saved as soon as it is done, so after an interruption the same command runs only those that are missing.
"""

import hashlib
import json
import math
import shlex
from pathlib import Path

import numpy as np
import torch
from torch import Generator, Tensor, nn

from data import Normalize
from metrics import expected_calibration_error, wilson_interval
from page import plots
from running.console import CommandLine, Progress, run_main
from running.device import pick_device, pick_precision
from running.files import whole_file, write_json
from running.folder import find_checkpoint, results_folder
from stress_tests import attacks
from stress_tests.corruptions import CORRUPTIONS, EXTRA, FIFTEEN, GEOMETRY, corrupt, examples
from train import load_data, load_model, predict

SEED = 0  # of the sample and of the attacks; each corruption has its own seed
CORRUPTION_IMAGES = 200  # with this sample the tests take under five minutes on 2 cores; --full takes all
ATTACK_IMAGES = 100  # some of those
ATTACKS = ("fgsm", "pgd", "random")
SEVERITIES = range(1, 6)
SOURCES = Path(__file__).parent / "stress_tests"  # what the tests compute is written in these files


# ---- The sample and the kept results ---------------------------------------------------------------------


def stratified_sample(labels: Tensor, count: int) -> Tensor:
    """Return the indices, int64 and ascending, of about `count` images with the same number of each class.

    The number is rounded up, and a class with fewer images gives all. A smaller sample is part of a larger
    one; a count of len(labels) or more takes all images.
    """
    if count >= len(labels):
        return torch.arange(len(labels))
    generator = Generator().manual_seed(SEED)
    order = torch.randperm(len(labels), generator=generator)
    classes = labels.unique()
    quota = math.ceil(count / len(classes))
    return torch.cat([order[labels[order] == c][:quota] for c in classes]).sort().values


def fingerprint_of(
    checkpoint: Path, images: Tensor, labels: Tensor, attacked: Tensor, precision: str
) -> dict[str, str]:
    """Return digests of what the results depend on: if one of them differs, kept results are not valid."""
    parts = {
        "checkpoint": checkpoint.read_bytes(),
        "sample": b"".join(tensor.numpy().tobytes() for tensor in (images, labels, attacked)),
        "settings": f"{SEED} {precision}".encode(),
        "source": "".join(path.read_text("utf-8") for path in sorted(SOURCES.glob("*.py"))).encode(),
    }
    return {name: hashlib.sha256(content).hexdigest() for name, content in parts.items()}


def kept_tests(file: Path, fingerprint: dict[str, str]) -> dict[str, dict]:
    """Return the tests that stress.json holds if it has the same fingerprint, else none, with a note."""
    if not file.exists():
        return {}
    try:
        kept = json.loads(file.read_text(encoding="utf-8"))
        if kept["fingerprint"] == fingerprint:
            return kept["tests"]
    except (OSError, ValueError, KeyError, TypeError):
        pass  # not a stress.json, or damaged
    print(f"note     {file} is of another checkpoint, sample, setting or source code: all tests run again")
    return {}


# ---- The tests -------------------------------------------------------------------------------------------


def planned_tests() -> list[tuple[str, float]]:
    """Return (name, level) of all tests; the level is a severity, a radius in 1/255, or 0 for neither."""
    corruptions = [(name, severity) for name in CORRUPTIONS for severity in SEVERITIES]
    radii = [(name, radius) for name in ATTACKS for radius in attacks.RADII]
    more_steps = ("pgd_more_steps", attacks.MORE_STEPS_RADIUS)
    return [("clean", 0), *corruptions, ("none", 0), *radii, more_steps]


def share(successes: int, n: int) -> dict[str, float]:
    """Return a share and its 95 % interval as a dict: value, low, high."""
    low, high = wilson_interval(successes, n)
    return {"value": successes / n, "low": low, "high": high}


def measure(logits: Tensor, labels: Tensor) -> dict:
    """Return the record of a corruption: accuracy, confidence, ECE, right answers of each class."""
    probabilities = logits.softmax(dim=1)
    right = labels[logits.argmax(dim=1) == labels]
    return {
        "accuracy": share(len(right), len(labels)),
        "mean_confidence": probabilities.amax(dim=1).mean().item(),
        "ece": expected_calibration_error(labels, probabilities),
        "correct_per_class": right.bincount(minlength=logits.shape[1]).tolist(),
    }


def measure_attack(model: nn.Module, images: Tensor, labels: Tensor, name: str, radius: float) -> dict:
    """Return the record of an attack on uint8 images: the accuracy. The model takes images in [0, 1].

    An image that is misclassified without the attack is not attacked and counts as wrong.
    """
    generator, epsilon = Generator().manual_seed(SEED), radius / 255
    steps, restarts = attacks.PGD_STEPS, attacks.PGD_RESTARTS
    attack = {
        "none": lambda x, y: x,
        "fgsm": lambda x, y: attacks.fgsm(model, x, y, epsilon),
        "pgd": lambda x, y: attacks.pgd(model, x, y, epsilon, generator, steps, restarts),
        "pgd_more_steps": lambda x, y: attacks.pgd(model, x, y, epsilon, generator, 2 * steps, restarts),
        "random": lambda x, y: attacks.random_corner(x, epsilon, generator),
    }[name]
    correct = 0
    with attacks.evaluating(model) as device, torch.no_grad():
        for x, y in zip(images.to(device).split(100), labels.to(device).split(100), strict=True):
            x = x / 255
            right = model(x).argmax(dim=1) == y
            if right.any():
                x, y = x[right], y[right]
                correct += (model(attack(x, y)).argmax(dim=1) == y).sum().item()
    return {"accuracy": share(correct, len(labels))}


# ---- The summary -----------------------------------------------------------------------------------------


def summarise(tests: dict, class_sizes: list[int], class_names: list[str]) -> dict:
    """Return means over the corruptions and the classes that break first, from the records of the tests.

    A corruption counts if all its severities were tested. The interval of a mean accuracy is that of one test
    on as many images: all tests take the same images, so many tests do not make it narrower. As the average
    score of an image varies at most as much as its score in one test, the exact interval is not wider.
    """
    n = sum(class_sizes)
    records = {
        name: [tests[f"{name}/{severity}"] for severity in SEVERITIES]
        for name in CORRUPTIONS
        if all(f"{name}/{severity}" in tests for severity in SEVERITIES)
    }
    summary = {"mean_accuracy": {}, "mean_confidence": {}, "mean_ece": {}}
    for group, names in {"fifteen": FIFTEEN, "extra": EXTRA, "geometry": GEOMETRY, "all": records}.items():
        rows = [row for name in names for row in records.get(name, [])]
        if rows:
            mean = float(np.mean([row["accuracy"]["value"] for row in rows]))
            summary["mean_accuracy"][group] = share(round(n * mean), n) | {"value": mean}
            summary["mean_confidence"][group] = float(np.mean([row["mean_confidence"] for row in rows]))
            summary["mean_ece"][group] = float(np.mean([row["ece"] for row in rows]))
    summary["confidence_by_severity"] = [
        float(np.mean([row["mean_confidence"] for row in rows]))
        for rows in zip(*records.values(), strict=True)
    ]
    clean = tests["clean/0"]["correct_per_class"]
    corrupted = np.mean([row["correct_per_class"] for rows in records.values() for row in rows], axis=0)
    classes = []
    for name, size, before, after in zip(class_names, class_sizes, clean, corrupted.tolist(), strict=True):
        if size > 0:
            drop = (before - after) / size
            classes.append({"class": name, "clean": before / size, "corrupted": after / size, "drop": drop})
    summary["classes_that_break_first"] = sorted(classes, key=lambda row: -row["drop"])[:10]
    return summary


def check_results(tests: dict) -> list[dict]:
    """Return the checks of the attacks from the records of the tests."""
    accuracy = {key: record["accuracy"]["value"] for key, record in tests.items()}
    by_radius = {name: [accuracy[f"{name}/{radius:g}"] for radius in attacks.RADII] for name in ATTACKS}
    more_steps = accuracy[f"pgd_more_steps/{attacks.MORE_STEPS_RADIUS:g}"]
    return attacks.check_attacks(accuracy["none/0"], by_radius, more_steps)


def print_summary(results: dict) -> None:
    """Print the main results; the page of report.py shows all of them."""
    tests, means = results["tests"], results["summary"]["mean_accuracy"]
    rows = {"clean images": tests["clean/0"]["accuracy"]}
    rows |= {"mean of the fifteen of CIFAR-10-C": means["fifteen"], "mean of all corruptions": means["all"]}
    radius = f"{attacks.MORE_STEPS_RADIUS:g}"
    for name, label in {"random": "random noise", "fgsm": "FGSM", "pgd": "PGD"}.items():
        rows[f"{label} of {radius}/255"] = tests[f"{name}/{radius}"]["accuracy"]
    print("\naccuracy")
    for label, accuracy in rows.items():
        value, low, high = (f"{100 * accuracy[key]:.1f}" for key in ("value", "low", "high"))
        print(f"{label:36}{value:>6} %   95 % interval {low} to {high} %")
    failed = [check for check in results["checks"] if not check["passed"]]
    print(f"\nchecks   {len(results['checks']) - len(failed)} of {len(results['checks'])} passed")
    for check in failed:
        print(f"FAILED   {check['name']}: {check['detail']}")


# ---- The command -----------------------------------------------------------------------------------------


def run_tests(
    results: dict, file: Path, model: nn.Module, images: Tensor, labels: Tensor, attacked: Tensor
) -> None:
    """Run the planned tests that results["tests"] lacks and save the results after each; fills `results`.

    images uint8 [N, 3, 32, 32], labels int64 [N]; attacked int64: the indices of those to attack.
    """
    device, precision = next(model.parameters()).device, results["precision"]["corruptions"]
    model_of_images = nn.Sequential(Normalize(), model)  # attacks take a model of images in [0, 1]
    plan = planned_tests()
    with Progress("stress tests", len(plan)) as progress:
        for done, (name, level) in enumerate(plan):
            key = f"{name}/{level:g}"
            progress.update(done, test=key)
            if key in results["tests"]:
                continue
            if name == "clean" or name in CORRUPTIONS:
                shown = images if name == "clean" else corrupt(images, name, level)
                record = measure(predict(model, shown, device, precision), labels)
            else:
                record = measure_attack(model_of_images, images[attacked], labels[attacked], name, level)
            results["tests"][key] = record
            write_json(file, results)


def main(argv: list[str] | None = None) -> int:
    """Run all tests of one checkpoint that stress.json does not hold yet; return the exit code."""
    parser = CommandLine(description=__doc__)
    parser.add_argument("--run", help="the run folder (default: the newest under runs/)")
    parser.add_argument("--checkpoint", metavar="FILE", help="the checkpoint (default: best.pt of the run)")
    parser.add_argument("--data-dir", help="where CIFAR-100 lies (default: where training found it)")
    parser.add_argument("--full", action="store_true", help="all test images; takes hours without a GPU")
    args = parser.parse_args(argv)

    path = find_checkpoint(args.run, args.checkpoint)
    out = results_folder(args.run, args.checkpoint)
    device = pick_device("auto")
    precision = pick_precision("auto", device)
    model, checkpoint = load_model(path, device)
    _, test = load_data(path, checkpoint, args.data_dir)

    index = stratified_sample(test.labels, len(test.labels) if args.full else CORRUPTION_IMAGES)
    images, labels = test.images[index], test.labels[index]
    attacked = stratified_sample(labels, len(labels) if args.full else ATTACK_IMAGES)
    results = {
        "fingerprint": fingerprint_of(path, images, labels, attacked, precision),
        "checkpoint": path.name,
        "dataset": test.name,
        "provenance": test.provenance,
        "seed": SEED,
        "precision": {"corruptions": precision, "attacks": "fp32"},
        "corruption_images": len(labels),
        "attack_images": len(attacked),
        "radii": attacks.RADII,
    }
    file = out / "stress.json"
    results["tests"] = kept_tests(file, results["fingerprint"])
    print(f"data     {test.provenance}")
    print(f"sample   {len(labels):,} images for corruptions, {len(attacked):,} for attacks")
    print(f"compute  {device}, {precision} (attacks fp32), {torch.get_num_threads()} threads")

    run_tests(results, file, model, images, labels, attacked)
    class_sizes = labels.bincount(minlength=len(test.class_names)).tolist()
    results["summary"] = summarise(results["tests"], class_sizes, test.class_names)
    results["checks"] = check_results(results["tests"])
    write_json(file, results)
    for name, figure in plots.stress_figures(results, examples(test.images)).items():
        with whole_file(out / "plots" / f"{name}.png") as temporary:
            plots.save_png(figure, temporary)

    print_summary(results)
    print(f"\nsaved    {file} and {out}/plots/stress_*.png")
    source = ["--checkpoint", str(path)] if args.checkpoint else ["--run", str(out)]
    print(f"next     python report.py {shlex.join(source)}")
    return 0


if __name__ == "__main__":
    run_main(main)

"""Find where the network breaks: run corruptions and attacks on a sample of the test images.

    python stress.py --run runs/cifar100
    python stress.py --run runs/cifar100 --cifar-c CIFAR-100-C      also measures the published files

Runs every corruption at five severities (stress_tests/corruptions.py), the attacks at growing epsilons, with
the checks that tell a robust network from a weak attack (stress_tests/attacks.py), and changes too small to
matter to people, plane waves among them (stress_tests/sensitivity.py). Writes stress.json and
plots into the run folder; with --checkpoint of a file outside of a run, into runs/<name of the file>/. Every
test is saved as soon as it is done, so after an interruption the same command runs only those that are
missing. After a change of a corruption, an attack or torch, --overwrite measures all of them anew.
"""

import argparse
import hashlib
import itertools
import json
import math
import shlex
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Generator, Tensor, nn

from data import Normalize, interleave
from metrics import calibration_bins, proportion
from page import plots
from running.console import CommandLine, Progress, run_main
from running.device import pick_device
from running.files import UserError, check_file, read_file, usable, write_json
from running.folder import claim_folder, find_checkpoint, results_folder
from stress_tests import attacks, sensitivity
from stress_tests.corruptions import CORRUPTIONS, EXTRA, FIFTEEN, corrupt, examples
from train import fitted_temperature, load_data, load_model, predict

SEED = 0  # of the sample and of the attacks; each corruption has its own seed
CORRUPTION_IMAGES = 200  # with this sample the tests take under four minutes on 2 cores; --full takes all
ATTACK_IMAGES, FULL_ATTACK_IMAGES = 100, 1000  # some of those, and with --full
WAVE_IMAGES = 50  # some of those, for 144 plane waves
WAVE_ROWS, WAVE_COLUMNS = [*range(-14, 17, 2)], [*range(0, 17, 2)]  # every second frequency of 32x32 pixels
SEVERITIES = range(1, 6)
PUBLISHED_IMAGES = 10_000  # of each severity in the files of CIFAR-100-C
# Kept tests are those of the same checkpoint on the same images.
SAME = ("checkpoint_sha256", "sample_sha256", "precision", "corruption_images", "attack_images")


# ---- The sample and the plan -----------------------------------------------------------------------------


def stratified_sample(labels: Tensor, count: int) -> Tensor:
    """Return the indices, int64 and ascending, of `count` images, about as many of each class.

    A class with fewer images gives all. A smaller sample is part of a larger one.
    """
    order = torch.randperm(len(labels), generator=Generator().manual_seed(SEED))
    return interleave([order[labels[order] == c].tolist() for c in labels.unique()])[:count].sort().values


def planned_tests() -> list[tuple[str, float]]:
    """Return (name, level) of all tests; the level is a severity, an epsilon in 1/255, or 0 for neither."""
    corruptions = [(name, severity) for name in CORRUPTIONS for severity in SEVERITIES]
    attacked = [(name, epsilon) for name, attack in attacks.ATTACKS.items() for epsilon in attack.epsilons]
    return [("clean", 0), *corruptions, ("unattacked", 0), *attacked]


def kept_results(file: Path, results: dict) -> dict:
    """Return what stress.json holds of the same checkpoint and images, else nothing, with a note."""
    if not file.exists():
        return {}
    with usable(file, "results of stress.py, which --overwrite measures anew"):
        kept = json.loads(read_file(file))
        if all(kept[key] == results[key] for key in SAME):
            for name, record in kept["tests"].items():
                attacked = name.split("/")[0] in ("unattacked", *attacks.ATTACKS)
                if len(record["correct"]) != results["attack_images" if attacked else "corruption_images"]:
                    raise ValueError(f"{name} is a test of another number of images")
                float(record["accuracy"]["value"]) if attacked else calibration_of([record])
            return {key: kept[key] for key in ("tests", "consistency", "fourier") if key in kept}
        same_network = kept["checkpoint_sha256"] == results["checkpoint_sha256"]
        if same_network and kept["corruption_images"] > results["corruption_images"]:
            raise UserError("it has results of more images, which --full keeps")
    print(f"note     {file} is of another checkpoint or sample: all tests run again")
    return {}


# ---- The tests -------------------------------------------------------------------------------------------


def answers(correct: Tensor) -> dict:
    """Return the accuracy, and whether each answer is correct, bool [N], as a text of digits 0 and 1."""
    digits = "".join(str(int(value)) for value in correct.tolist())
    return {"accuracy": proportion(digits.count("1"), len(digits)), "correct": digits}


def correct_of(record: dict) -> Tensor:
    """Return bool [N], the opposite of `answers`."""
    return torch.tensor([digit == "1" for digit in record["correct"]])


def measure(logits: Tensor, labels: Tensor, temperature: float | None = None) -> dict:
    """Return the record of a corruption: the answers, the mean confidence and the calibration.

    logits float32 [N, C], labels int64 [N]. "calibration" has the negative log-likelihood and, for each bin
    of the expected calibration error, the number of right answers less the sum of the confidences, so that
    the error of several tests together follows from the sums; as trained and, if known, at the temperature.
    """
    if not logits.isfinite().all():
        raise UserError("the network's outputs are not finite: the checkpoint cannot be used")
    calibration = {}
    for name, divisor in {"as_trained": 1.0, "with_temperature": temperature}.items():
        if divisor is not None:
            confidence, accuracy, count = calibration_bins(labels, (logits / divisor).softmax(dim=1))
            gaps = (count * (accuracy - confidence)).nan_to_num().tolist()
            calibration[name] = {"nll": F.cross_entropy(logits / divisor, labels).item(), "gaps": gaps}
    confidence, y_pred = logits.softmax(dim=1).max(dim=1)
    record = answers(y_pred == labels) | {"mean_confidence": confidence.double().mean().item()}
    return record | {"calibration": calibration}


def still_correct(tests: dict, names: list[str], epsilon: float) -> Tensor:
    """Return which of the attacked images are right without an attack and under all of `names`, bool [N].

    Attacks that were not run at this epsilon do not count.
    """
    keys = ["unattacked/0", *(f"{name}/{epsilon:g}" for name in names)]
    return torch.stack([correct_of(tests[key]) for key in keys if key in tests]).all(dim=0)


def measure_attack(
    model: nn.Module, images: Tensor, labels: Tensor, name: str, epsilon: float, attacked: Tensor
) -> dict:
    """Return the record of an attack: the answers on its images; those not attacked count as wrong.

    The model is one of images in [0, 1]; images uint8 [N, 3, H, W], labels int64 [N], attacked bool [N];
    epsilon in 1/255.
    """
    generator, attack = Generator().manual_seed(SEED), attacks.ATTACKS[name]
    device = next(model.parameters()).device
    correct = torch.zeros(len(labels), dtype=torch.bool)
    for index in attacked.nonzero().flatten().split(100) if attacked.any() else []:
        x, y = images[index].to(device) / 255, labels[index].to(device)
        x = attack.function(model, x, y, epsilon / 255, generator, **attack.settings)
        with attacks.eval_mode(model, device), torch.no_grad():
            correct[index] = (model(x).argmax(dim=1) == y).cpu()
    return answers(correct)


def open_cifar_c(folder: Path, test_labels: Tensor) -> tuple[Tensor, dict[str, np.ndarray]]:
    """Open the files of CIFAR-100-C: uint8 [50000, 32, 32, 3] for each corruption, and the labels.

    Severity s stands in the rows 10000 (s - 1) to 10000 s, in the order of the official test file, and the
    labels repeat every 10,000 rows. Returns the labels int64 [10000] and {"published fog": array, ...}, which
    stay on the disk. Raises UserError for other files, and for other classes than those of test_labels.
    """
    names = [name for name in (*FIFTEEN, *EXTRA) if (folder / f"{name}.npy").exists()]
    if not names or not (folder / "labels.npy").exists():
        raise UserError(f"{folder} does not hold CIFAR-100-C, that is labels.npy, fog.npy and so on")
    arrays, count = {}, len(SEVERITIES) * PUBLISHED_IMAGES
    for name, shape in {"labels": (count,), **dict.fromkeys(names, (count, 32, 32, 3))}.items():
        file = folder / f"{name}.npy"
        check_file(file)
        with usable(file, "a file of CIFAR-100-C"):
            array = np.lib.format.open_memmap(file, mode="r")
            right = array.dtype.kind in "iu" if name == "labels" else array.dtype == np.uint8
            if array.shape != shape or not right:
                raise ValueError(f"it holds {array.dtype} {array.shape}, not uint8 {shape}")
            arrays[f"published {name}"] = array
    labels = torch.from_numpy(arrays.pop("published labels").astype(np.int64)).view(len(SEVERITIES), -1)
    if (labels != labels[0]).any() or not torch.equal(labels[0].unique(), test_labels.unique()):
        raise UserError(f"{folder}/labels.npy does not repeat the labels of {PUBLISHED_IMAGES:,} test images")
    return labels[0], arrays


# ---- The summary -----------------------------------------------------------------------------------------


def finished(tests: dict, names: list[str]) -> dict[str, list[dict]]:
    """Return the five records of every named corruption of which all severities were tested."""
    rows = {name: [tests.get(f"{name}/{severity}") for severity in SEVERITIES] for name in names}
    return {name: records for name, records in rows.items() if None not in records}


def mean_interval(scores: Tensor) -> dict[str, float]:
    """Return the mean of one score for each image, float64 [N], and its 95 % interval: value, low, high.

    The images are the sample, however many tests gave each score: mean +- 1.96 standard errors, s / sqrt(N).
    """
    mean = scores.mean().item()
    error = 1.96 * scores.std(correction=0).item() / math.sqrt(max(1, len(scores) - 1))
    return {"value": mean, "low": mean - error, "high": mean + error}


def calibration_of(records: list[dict]) -> dict:
    """Return accuracy, mean confidence, NLL and calibration error of several tests of as many images each.

    "ece" is that of all their answers together, where gaps of opposite sign cancel; "mean_ece" is the mean of
    the errors of the single tests.
    """
    count = sum(len(record["correct"]) for record in records)
    result = {
        "accuracy": float(np.mean([record["accuracy"]["value"] for record in records])),
        "mean_confidence": float(np.mean([record["mean_confidence"] for record in records])),
    }
    for name in records[0]["calibration"]:
        parts = [record["calibration"][name] for record in records]
        gaps = np.array([part["gaps"] for part in parts])  # [tests, bins]
        result[name] = {
            "nll": float(np.mean([part["nll"] for part in parts])),
            "ece": float(np.abs(gaps.sum(axis=0)).sum() / count),
            "mean_ece": float(np.abs(gaps).sum() / count),
        }
    return result


def summarise(tests: dict, labels: Tensor, class_names: list[str]) -> dict:
    """Return means over the corruptions, by severity, and the classes that break first, from the records.

    The published files count if all fifteen were measured. "drop" is the accuracy on the clean images less
    the mean one, image by image. The classes are left out where fewer than 20 images of each were tested.
    """
    ours = finished(tests, list(CORRUPTIONS))
    published = finished(tests, [f"published {name}" for name in FIFTEEN])
    groups = {"fifteen": [ours[name] for name in FIFTEEN], "all": list(ours.values())}
    if len(published) == len(FIFTEEN):
        groups["published"] = list(published.values())
    clean = correct_of(tests["clean/0"]).double()
    summary, scores = {"mean_accuracy": {}, "drop": {}, "mean_confidence": {}}, {}
    for group, records in groups.items():
        rows = list(itertools.chain(*records))
        scores[group] = torch.stack([correct_of(row) for row in rows]).double().mean(dim=0)
        summary["mean_accuracy"][group] = mean_interval(scores[group])
        if group != "published":  # those images are other ones
            summary["drop"][group] = mean_interval(clean - scores[group])
        summary["mean_confidence"][group] = calibration_of(rows)["mean_confidence"]
    by_severity = [[tests["clean/0"]], *zip(*ours.values(), strict=True)]
    summary["by_severity"] = [calibration_of(rows) for rows in by_severity]
    classes = []
    for c in labels.unique().tolist() if len(labels) >= 20 * len(labels.unique()) else []:
        before, after = (right[labels == c].mean().item() for right in (clean, scores["all"]))
        row = {"class": class_names[c], "clean": before, "corrupted": after, "drop": before - after}
        classes.append(row)
    summary["classes_that_break_first"] = sorted(classes, key=lambda row: -row["drop"])[:10]
    return summary


def robust_accuracy(tests: dict) -> dict[str, dict]:
    """Return the worst case over all attacks, image by image, as AutoAttack reports it, for each epsilon."""
    worst = {epsilon: still_correct(tests, list(attacks.ATTACKS), epsilon) for epsilon in attacks.EPSILONS}
    return {f"{epsilon:g}": answers(correct)["accuracy"] for epsilon, correct in worst.items()}


def print_summary(results: dict) -> None:
    """Print the main results; the page of report.py shows all of them."""
    tests, means = results["tests"], results["summary"]["mean_accuracy"]
    rows = {"clean images": tests["clean/0"]["accuracy"]}
    rows |= {"mean of the fifteen of CIFAR-10-C": means["fifteen"], "mean of all corruptions": means["all"]}
    if "published" in means:
        rows["the fifteen as published"] = means["published"]
    epsilon = f"{attacks.MORE_STEPS_EPSILON:g}"
    for name, label in {"random": "random noise", "fgsm": "FGSM", "pgd": "PGD"}.items():
        rows[f"{label} of {epsilon}/255"] = tests[f"{name}/{epsilon}"]["accuracy"]
    for epsilon in attacks.APGD_EPSILONS:
        rows[f"all attacks of {epsilon:g}/255"] = results["robust_accuracy"][f"{epsilon:g}"]
    print("\naccuracy")
    for label, accuracy in rows.items():
        value, low, high = (f"{100 * accuracy[key]:.1f}" for key in ("value", "low", "high"))
        print(f"{label:36}{value:>6} %   95 % interval {low} to {high} %")
    for name in (*FIFTEEN, *EXTRA):
        for label, records in finished(tests, [f"published {name}", name]).items():
            if f"published {name}/1" in tests:
                values = [100 * record["accuracy"]["value"] for record in records]
                by_severity = "".join(f"{value:6.1f}" for value in values)
                print(f"{label:36}{np.mean(values):6.1f} %   at severity 1 to 5{by_severity} %")
    failed = [check for check in results["checks"] if not check["passed"]]
    print(f"\nchecks   {len(results['checks']) - len(failed)} of {len(results['checks'])} passed")
    for check in failed:
        print(f"FAILED   {check['name']}: {check['detail']}")


# ---- The command -----------------------------------------------------------------------------------------


def run_tests(
    results: dict,
    file: Path,
    network: nn.Module,
    images: Tensor,
    labels: Tensor,
    chosen: Tensor,
    temperature: float | None,
) -> None:
    """Run the planned tests that results["tests"] lacks; put them there, and save after each.

    images uint8 [N, 3, 32, 32], labels int64 [N]; chosen int64: the indices of those to attack.
    """
    device, image_size = next(network.parameters()).device, results["image_size"]
    model = nn.Sequential(Normalize(image_size), network)  # attacks take a model of images in [0, 1]
    tests, plan = results["tests"], planned_tests()
    with Progress("stress tests", len(plan)) as progress:
        for done, (name, level) in enumerate(plan):
            key = f"{name}/{level:g}"
            progress.update(done, test=key)
            if key in tests:
                continue
            if name in attacks.ATTACKS:
                attacked = still_correct(tests, attacks.ATTACKS[name].survivors_of, level)
                tests[key] = measure_attack(model, images[chosen], labels[chosen], name, level, attacked)
            elif name == "unattacked":
                tests[key] = answers(correct_of(tests["clean/0"])[chosen])
            else:
                shown = images if name == "clean" else corrupt(images, name, level)
                logits = predict(network, shown, device, image_size=image_size)
                tests[key] = measure(logits, labels, temperature)
            write_json(file, results)


def run_sensitivity(
    results: dict, file: Path, network: nn.Module, images: Tensor, labels: Tensor, waved: Tensor
) -> None:
    """Count the answers that a mirror image, a shift of one pixel and plane waves change; as run_tests.

    waved int64: the indices of the images that get the waves.
    """
    device, image_size = next(network.parameters()).device, results["image_size"]

    def answer(pictures: Tensor) -> Tensor:
        return predict(network, pictures, device, image_size=image_size).argmax(dim=1)

    if "consistency" not in results:
        correct = correct_of(results["tests"]["clean/0"])
        changed = sensitivity.changed_answers(answer, images, answer(images))
        results["consistency"] = {
            name: {
                kind: proportion(int(flipped[group].sum()), int(group.sum())) if group.any() else None
                for kind, group in {"right": correct, "wrong": ~correct}.items()
            }
            for name, flipped in changed.items()
        }
        write_json(file, results)
    if "fourier" not in results:
        error = sensitivity.fourier_heatmap(answer, images[waved], labels[waved], WAVE_ROWS, WAVE_COLUMNS)
        waves = {"images": len(waved), "rows": WAVE_ROWS, "columns": WAVE_COLUMNS}
        results["fourier"] = waves | {"error": error.tolist()}
        write_json(file, results)


def run_published(
    results: dict, file: Path, network: nn.Module, labels: Tensor, arrays: dict[str, np.ndarray], count: int
) -> None:
    """Measure `count` images of each file of CIFAR-100-C, see open_cifar_c; as run_tests."""
    device, image_size, tests = next(network.parameters()).device, results["image_size"], results["tests"]
    index = stratified_sample(labels, count)
    with Progress("CIFAR-100-C", len(arrays) * len(SEVERITIES)) as progress:
        for done, (name, severity) in enumerate(itertools.product(arrays, SEVERITIES)):
            key = f"{name}/{severity}"
            progress.update(done, test=key)
            if key not in tests:
                rows = arrays[name][PUBLISHED_IMAGES * (severity - 1) + index.numpy()]
                shown = torch.from_numpy(rows).permute(0, 3, 1, 2).contiguous()
                tests[key] = measure(predict(network, shown, device, image_size=image_size), labels[index])
                write_json(file, results)


def write_results(path: Path, file: Path, device: torch.device, args: argparse.Namespace) -> dict:
    """Run the tests of the checkpoint at `path` that `file`, its stress.json, lacks; return its content."""
    network, checkpoint = load_model(path, device)
    _, test = load_data(path, checkpoint, args.data_dir)
    if args.cifar_c and test.name != "cifar100":
        raise UserError("--cifar-c needs a network that was trained on CIFAR-100")
    published = args.cifar_c and open_cifar_c(args.cifar_c, test.labels)  # before anything is written
    claim_folder(file.parent, path, checkpoint["sha256"])

    count = len(test.labels) if args.full else CORRUPTION_IMAGES
    index = stratified_sample(test.labels, count)
    images, labels = test.images[index], test.labels[index]
    chosen = stratified_sample(labels, FULL_ATTACK_IMAGES if args.full else ATTACK_IMAGES)
    sample = b"".join(tensor.numpy().tobytes() for tensor in (images, labels, chosen))
    results = {
        "checkpoint_sha256": checkpoint["sha256"],
        "sample_sha256": hashlib.sha256(sample).hexdigest(),
        "precision": "fp32",
        "dataset": test.name,
        "provenance": test.provenance,
        "seed": SEED,
        "image_size": checkpoint["config"]["image_size"],
        "corruption_images": len(labels),
        "attack_images": len(chosen),
        "epsilons": attacks.EPSILONS,
    }
    results |= {"tests": {}} | ({} if args.overwrite else kept_results(file, results))
    temperature = fitted_temperature(path, checkpoint)
    print(f"data     {test.provenance}")
    print(f"sample   {len(labels):,} images for corruptions, {len(chosen):,} for attacks")
    print(f"compute  {device}, fp32, {torch.get_num_threads()} threads")

    if published:
        run_published(results, file, network, *published, count)
    run_tests(results, file, network, images, labels, chosen, temperature)
    run_sensitivity(results, file, network, images, labels, chosen[:: max(1, len(chosen) // WAVE_IMAGES)])
    results["summary"] = summarise(results["tests"], labels, test.class_names)
    results["robust_accuracy"] = robust_accuracy(results["tests"])
    accuracy = {key: record["accuracy"]["value"] for key, record in results["tests"].items()}
    results["checks"] = attacks.check_attacks(accuracy)
    write_json(file, results)
    for name, figure in plots.stress_figures(results, examples(test.images)).items():
        plots.save_png(figure, file.parent / "plots" / f"{name}.png")
    return results


def main(argv: list[str] | None = None) -> int:
    """Run all tests of one checkpoint that stress.json does not hold yet; return the exit code."""
    parser = CommandLine(description=__doc__)
    parser.add_argument("--run", help="the run folder (default: the newest under runs/)")
    parser.add_argument("--checkpoint", metavar="FILE", help="the checkpoint (default: best.pt of the run)")
    parser.add_argument("--data-dir", help="where CIFAR-100 is (default: where training found it, else data)")
    parser.add_argument(
        "--full", action="store_true", help="all test images, and attacks on 1,000; over an hour on a CPU"
    )
    parser.add_argument("--cifar-c", type=Path, metavar="DIR", help="also measure CIFAR-100-C's files in DIR")
    parser.add_argument("--overwrite", action="store_true", help="measure anew what stress.json holds")
    args = parser.parse_args(argv)

    path, device = find_checkpoint(args.run, args.checkpoint), pick_device("auto")
    file = results_folder(path) / "stress.json"
    with attacks.full_float32(device):  # an accuracy means the same on every machine
        results = write_results(path, file, device, args)
    print_summary(results)
    print(f"\nsaved    {file} and {file.parent}/plots/stress_*.png")
    source = ["--checkpoint", str(path)] if args.checkpoint else ["--run", str(file.parent)]
    print(f"next     python report.py {shlex.join(source)}")
    return 0


if __name__ == "__main__":
    run_main(main)

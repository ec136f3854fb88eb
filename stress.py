"""Find where the network breaks: run corruptions and attacks on a sample of the test images.

    python stress.py --run runs/cifar100
    python stress.py --run runs/cifar100 --cifar-c CIFAR-100-C      also measures the published files

Runs every corruption at five severities (stress_tests/corruptions.py), the attacks at growing radii, and the
checks that tell a robust network from a weak attack (stress_tests/attacks.py). Writes stress.json and plots
into the run folder; with --checkpoint of a file outside of a run, into runs/<name of the file>/. Every test
is saved as soon as it is done, so after an interruption the same command runs only those that are missing,
and after a change of a corruption or an attack only those that it concerns.
"""

import ast
import contextlib
import hashlib
import inspect
import itertools
import json
import math
import shlex
import textwrap
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import torch
from torch import Generator, Tensor, nn

from data import Dataset, Normalize
from metrics import wilson_interval
from page import plots
from running.console import CommandLine, Progress, run_main
from running.device import pick_device, pick_precision
from running.files import UserError, check_file, whole_file, write_json
from running.folder import claim_folder, find_results, lock_run, read_stress
from stress_tests import attacks
from stress_tests.corruptions import CORRUPTIONS, EXTRA, FIFTEEN, Corruption, corrupt, examples
from train import load_data, load_model, predict

SEED = 0  # of the sample and of the attacks; each corruption has its own seed
CORRUPTION_IMAGES = 200  # with this sample the tests take under five minutes on 2 cores; --full takes all
ATTACK_IMAGES = 100  # some of those
SEVERITIES = range(1, 6)
PUBLISHED_IMAGES = 10_000  # of each severity in the files of CIFAR-100-C


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
    checkpoint: str, images: Tensor, labels: Tensor, attacked: Tensor, precision: str
) -> dict[str, str]:
    """Return digests of the checkpoint, the sample and the settings: kept results have the same ones.

    `checkpoint` is its sha256. A change of another file than those of stress_tests/, of torch or of the
    device is not noticed.
    """
    parts = {
        "sample": b"".join(tensor.numpy().tobytes() for tensor in (images, labels, attacked)),
        "settings": f"{SEED} {precision}".encode(),
    }
    digests = {name: hashlib.sha256(content).hexdigest() for name, content in parts.items()}
    return {"checkpoint": checkpoint} | digests


def kept_tests(out: Path, fingerprint: dict[str, str]) -> dict[str, dict]:
    """Return the tests that stress.json holds if it has the same fingerprint, else none, with a note."""
    kept = read_stress(out)
    if kept is None or kept["fingerprint"] == fingerprint:
        return kept["tests"] if kept else {}
    print(f"note     {out}/stress.json is of another checkpoint, sample or setting: all tests run again")
    return {}


def code_digest(functions: list[Callable], *constants: object) -> str:
    """Return a digest of the source of functions, of all that they call in their package, and of constants.

    Constants of a module that the functions name, such as PGD_STEPS, count as well if JSON can hold them.
    """
    found, waiting = {}, list(functions)
    while waiting:
        function = inspect.unwrap(waiting.pop())
        found[function.__qualname__] = source = textwrap.dedent(inspect.getsource(function))
        names = {node.id for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Name)}
        for name in names & function.__globals__.keys() - found.keys():
            value = function.__globals__[name]
            if inspect.isfunction(value):
                if value.__module__.split(".")[0] == function.__module__.split(".")[0]:
                    waiting.append(value)
            else:
                with contextlib.suppress(TypeError):  # modules, types and tables of functions
                    found[name] = json.dumps(value)
    return hashlib.sha256(repr((sorted(found.items()), constants)).encode()).hexdigest()


# ---- The tests -------------------------------------------------------------------------------------------


def planned_tests() -> list[tuple[str, float]]:
    """Return (name, level) of all tests; the level is a severity, a radius in 1/255, or 0 for neither."""
    severities = [(name, severity) for name in CORRUPTIONS for severity in SEVERITIES]
    attacked = [(name, epsilon) for name, attack in attacks.ATTACKS.items() for epsilon in attack.epsilons]
    return [("clean", 0), *severities, ("none", 0), *attacked]


def share(successes: int, n: int) -> dict[str, float]:
    """Return a share and its 95 % interval as a dict: value, low, high."""
    low, high = wilson_interval(successes, n)
    return {"value": successes / n, "low": low, "high": high}


def measure(logits: Tensor, labels: Tensor) -> dict:
    """Return the record of a corruption: accuracy, mean confidence, right answers of each class.

    logits float32 [N, C], labels int64 [N].
    """
    right = labels[logits.argmax(dim=1) == labels]
    return {
        "images": len(labels),
        "accuracy": share(len(right), len(labels)),
        "mean_confidence": logits.softmax(dim=1).amax(dim=1).mean().item(),
        "correct_per_class": right.bincount(minlength=logits.shape[1]).tolist(),
    }


def code_of_test(name: str, chosen: list[int]) -> str:
    """Return a digest of what a test computes and of the images that it attacks."""
    if name in attacks.ATTACKS:
        attack = attacks.ATTACKS[name]
        return code_digest([attack.function], attack.settings, chosen)
    if name in ("clean", "none"):
        return code_digest([])
    row = CORRUPTIONS[name]
    return code_digest([corrupt, Corruption.__call__, row.function], row.constants, row.rounding)


def still_right(tests: dict, names: Iterable[str], radius: float) -> list[int]:
    """Return which of the attacked images are right without an attack and under all those of `names`.

    Attacks that were not run at this radius do not count.
    """
    keys = ["none/0", *(f"{name}/{radius:g}" for name in names)]
    digits = zip(*(tests[key]["right"] for key in keys if key in tests), strict=True)
    return [i for i, column in enumerate(digits) if "0" not in column]


def to_attack(tests: dict, name: str, radius: float, count: int) -> list[int]:
    """Return the indices of the images, of `count`, that a test takes.

    An attack takes the images that are right without one and that survive those of its row in ATTACKS. The
    other tests take all.
    """
    if name not in attacks.ATTACKS:
        return list(range(count))
    return still_right(tests, attacks.ATTACKS[name].survivors_of, radius)


def measure_attack(
    model: nn.Module, images: Tensor, labels: Tensor, name: str, radius: float, chosen: list[int]
) -> dict:
    """Return the record of an attack on uint8 images: the accuracy, and one digit for each image, 1 if right.

    The model takes images in [0, 1]. Only the chosen images are attacked, the others count as wrong.
    """
    generator, device = Generator().manual_seed(SEED), next(model.parameters()).device
    right = torch.zeros(len(labels), dtype=torch.int64)
    with attacks.eval_mode(model, device), torch.no_grad():
        for start in range(0, len(chosen), 100):
            index = torch.tensor(chosen[start : start + 100])
            x, y = images[index].to(device) / 255, labels[index].to(device)
            if name in attacks.ATTACKS:  # else "none": the images as they are
                attack = attacks.ATTACKS[name]
                x = attack.function(model, x, y, radius / 255, generator, **attack.settings)
            right[index] = (model(x).argmax(dim=1) == y).long().cpu()
    return {"accuracy": share(right.sum().item(), len(labels)), "right": "".join(map(str, right.tolist()))}


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
        check_file(folder / f"{name}.npy")
        try:
            array = np.lib.format.open_memmap(folder / f"{name}.npy", mode="r")
        except (OSError, ValueError) as error:
            raise UserError(f"{folder}/{name}.npy cannot be read: {error}") from None
        right = array.dtype.kind in "iu" if name == "labels" else array.dtype == np.uint8
        if array.shape != shape or not right:
            raise UserError(f"{folder}/{name}.npy holds {array.dtype} {array.shape}, not uint8 {shape}")
        arrays[f"published {name}"] = array
    labels = torch.from_numpy(arrays.pop("published labels").astype(np.int64)).view(len(SEVERITIES), -1)
    if (labels != labels[0]).any() or not torch.equal(labels[0].unique(), test_labels.unique()):
        raise UserError(f"{folder}/labels.npy does not repeat the labels of {PUBLISHED_IMAGES:,} test images")
    return labels[0], arrays


# ---- The summary -----------------------------------------------------------------------------------------


def finished(tests: dict, names: Iterable[str]) -> dict[str, list[dict]]:
    """Return the five records of every named corruption of which all severities were tested."""
    rows = {name: [tests.get(f"{name}/{severity}") for severity in SEVERITIES] for name in names}
    return {name: records for name, records in rows.items() if None not in records}


def summarise(tests: dict, class_sizes: list[int], class_names: list[str]) -> dict:
    """Return means over the corruptions and the classes that break first, from the records of the tests.

    The published files count if all fifteen were measured. The interval of a mean accuracy is that of one
    test on as many images: all tests take the same images, so many tests do not make it narrower. With a mean
    p, the scores of the images vary by at most p (1 - p), as in one test, so the exact interval is not wider.
    """
    ours = finished(tests, CORRUPTIONS)
    published = finished(tests, [f"published {name}" for name in FIFTEEN])
    groups = {"fifteen": [ours[name] for name in FIFTEEN], "all": ours.values()}
    if len(published) == len(FIFTEEN):
        groups["published"] = published.values()
    summary = {"mean_accuracy": {}, "mean_confidence": {}}
    for group, records in groups.items():
        rows = list(itertools.chain(*records))
        # The interval needs a whole number of right answers: the nearest one.
        mean, n = float(np.mean([row["accuracy"]["value"] for row in rows])), rows[0]["images"]
        summary["mean_accuracy"][group] = share(round(n * mean), n) | {"value": mean}
        summary["mean_confidence"][group] = float(np.mean([row["mean_confidence"] for row in rows]))
    clean = tests["clean/0"]["correct_per_class"]
    corrupted = np.mean([row["correct_per_class"] for row in itertools.chain(*ours.values())], axis=0)
    classes = []
    for name, size, before, after in zip(class_names, class_sizes, clean, corrupted.tolist(), strict=True):
        if size > 0:
            drop = (before - after) / size
            classes.append({"class": name, "clean": before / size, "corrupted": after / size, "drop": drop})
    summary["classes_that_break_first"] = sorted(classes, key=lambda row: -row["drop"])[:10]
    return summary


def robust_accuracy(tests: dict, count: int) -> dict[str, dict]:
    """Return the worst case over all attacks, image by image, as AutoAttack reports it: {radius: share}."""
    right = {f"{radius:g}": still_right(tests, attacks.ATTACKS, radius) for radius in attacks.EPSILONS}
    return {radius: share(len(images), count) for radius, images in right.items()}


def check_results(tests: dict) -> list[dict]:
    """Return the checks of the attacks from the records of the tests."""
    accuracy = {key: record["accuracy"]["value"] for key, record in tests.items()}
    by_radius = {
        name: [accuracy[f"{name}/{radius:g}"] for radius in attacks.EPSILONS]
        for name in attacks.AT_ALL_EPSILONS
    }
    more_steps = accuracy[f"pgd_more_steps/{attacks.MORE_STEPS_EPSILON:g}"]
    return attacks.check_attacks(accuracy["none/0"], by_radius, more_steps)


def print_summary(results: dict) -> None:
    """Print the main results; the page of report.py shows all of them."""
    tests, means = results["tests"], results["summary"]["mean_accuracy"]
    rows = {"clean images": tests["clean/0"]["accuracy"]}
    rows |= {"mean of the fifteen of CIFAR-10-C": means["fifteen"], "mean of all corruptions": means["all"]}
    if "published" in means:
        rows["the fifteen as published"] = means["published"]
    radius = f"{attacks.MORE_STEPS_EPSILON:g}"
    for name, label in {"random": "random noise", "fgsm": "FGSM", "pgd": "PGD"}.items():
        rows[f"{label} of {radius}/255"] = tests[f"{name}/{radius}"]["accuracy"]
    for radius in attacks.APGD_EPSILONS:
        rows[f"all attacks of {radius:g}/255"] = results["robust_accuracy"][f"{radius:g}"]
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
    results: dict, file: Path, model: nn.Module, images: Tensor, labels: Tensor, attacked: Tensor
) -> None:
    """Run the planned tests that results["tests"] lacks, or has of other code, and save after each.

    images uint8 [N, 3, 32, 32], labels int64 [N]; attacked int64: the indices of those to attack. Fills
    `results`.
    """
    device, precision = next(model.parameters()).device, results["precision"]["corruptions"]
    image_size = results["image_size"]
    model_of_images = nn.Sequential(Normalize(image_size), model)  # attacks take a model of images in [0, 1]
    tests, plan = results["tests"], planned_tests()
    with Progress("stress tests", len(plan)) as progress:
        for done, (name, level) in enumerate(plan):
            key = f"{name}/{level:g}"
            progress.update(done, test=key)
            chosen = to_attack(tests, name, level, len(attacked))
            code = code_of_test(name, chosen)
            if tests.get(key, {}).get("code") == code:
                continue
            if name == "none" or name in attacks.ATTACKS:
                part = (images[attacked], labels[attacked])
                record = measure_attack(model_of_images, *part, name, level, chosen)
            else:
                shown = images if name == "clean" else corrupt(images, name, level)
                record = measure(predict(model, shown, device, precision, image_size), labels)
            tests[key] = record | {"code": code}
            write_json(file, results)


def run_published(
    results: dict, file: Path, model: nn.Module, folder: Path, test: Dataset, count: int
) -> None:
    """Measure about `count` images of the files of CIFAR-100-C that results["tests"] lacks; as run_tests."""
    device, precision = next(model.parameters()).device, results["precision"]["corruptions"]
    image_size = results["image_size"]
    tests, (labels, arrays) = results["tests"], open_cifar_c(folder, test.labels)
    index = stratified_sample(labels, count)
    with Progress("CIFAR-100-C", len(arrays) * len(SEVERITIES)) as progress:
        for done, (name, severity) in enumerate(itertools.product(arrays, SEVERITIES)):
            key = f"{name}/{severity}"
            progress.update(done, test=key)
            rows = arrays[name][PUBLISHED_IMAGES * (severity - 1) + index.numpy()]
            code = hashlib.sha256(rows.tobytes() + labels[index].numpy().tobytes()).hexdigest()
            if tests.get(key, {}).get("code") != code:
                shown = torch.from_numpy(rows).permute(0, 3, 1, 2).contiguous()
                record = measure(predict(model, shown, device, precision, image_size), labels[index])
                tests[key] = record | {"code": code}
                write_json(file, results)


def write_results(path: Path, out: Path, data_dir: str | None, full: bool, cifar_c: Path | None) -> None:
    """Run the tests of the checkpoint at `path` that stress.json in `out` lacks; see the options."""
    device = pick_device("auto")
    precision = pick_precision("auto", device)
    model, checkpoint = load_model(path, device)
    _, test = load_data(path, checkpoint, data_dir)

    if cifar_c and test.name != "cifar100":
        raise UserError("--cifar-c needs a network that was trained on CIFAR-100")
    if cifar_c:
        open_cifar_c(cifar_c, test.labels)  # other files are refused before anything is written
    claim_folder(out, path, checkpoint["sha256"])
    count = len(test.labels) if full else CORRUPTION_IMAGES
    index = stratified_sample(test.labels, count)
    images, labels = test.images[index], test.labels[index]
    attacked = stratified_sample(labels, len(labels) if full else ATTACK_IMAGES)
    results = {
        "fingerprint": fingerprint_of(checkpoint["sha256"], images, labels, attacked, precision),
        "checkpoint": path.name,
        "dataset": test.name,
        "provenance": test.provenance,
        "seed": SEED,
        "image_size": checkpoint["config"]["image_size"],
        "precision": {"corruptions": precision, "attacks": "fp32"},
        "corruption_images": len(labels),
        "attack_images": len(attacked),
        "radii": attacks.EPSILONS,
    }
    file = out / "stress.json"
    results["tests"] = kept_tests(out, results["fingerprint"])
    print(f"data     {test.provenance}")
    print(f"sample   {len(labels):,} images for corruptions, {len(attacked):,} for attacks")
    print(f"compute  {device}, {precision} (attacks fp32), {torch.get_num_threads()} threads")

    if cifar_c:
        run_published(results, file, model, cifar_c, test, count)
    run_tests(results, file, model, images, labels, attacked)
    class_sizes = labels.bincount(minlength=len(test.class_names)).tolist()
    results["summary"] = summarise(results["tests"], class_sizes, test.class_names)
    results["robust_accuracy"] = robust_accuracy(results["tests"], len(attacked))
    results["checks"] = check_results(results["tests"])
    write_json(file, results)
    for name, figure in plots.stress_figures(results, examples(test.images)).items():
        with whole_file(out / "plots" / f"{name}.png") as temporary:
            plots.save_png(figure, temporary)

    print_summary(results)


def main(argv: list[str] | None = None) -> int:
    """Run all tests of one checkpoint that stress.json does not hold yet; return the exit code."""
    parser = CommandLine(description=__doc__)
    parser.add_argument("--run", help="the run folder (default: the newest under runs/)")
    parser.add_argument("--checkpoint", metavar="FILE", help="the checkpoint (default: best.pt of the run)")
    parser.add_argument(
        "--data-dir", help="where CIFAR-100 lies (default: where training found it, else data)"
    )
    parser.add_argument("--full", action="store_true", help="all test images; takes hours without a GPU")
    parser.add_argument(
        "--cifar-c", type=Path, metavar="DIR", help="measure also the files of CIFAR-100-C in DIR"
    )
    args = parser.parse_args(argv)

    path, out = find_results(args.run, args.checkpoint)
    with lock_run(out):
        write_results(path, out, args.data_dir, args.full, args.cifar_c)
    print(f"\nsaved    {out}/stress.json and {out}/plots/stress_*.png")
    source = ["--checkpoint", str(path)] if args.checkpoint else ["--run", str(out)]
    print(f"next     python report.py {shlex.join(source)}")
    return 0


if __name__ == "__main__":
    run_main(main)

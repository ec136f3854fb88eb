"""Find where a network breaks: run corruptions and attacks on a sample of the test images.

    python -m lab.stress --run runs/cifar100
    python -m lab.stress --run runs/cifar100 --cifar-c CIFAR-100-C     also measures the published files
    python -m lab.stress --model net.py:make --weights net.pt          a network of your own

The tests stand in stress_tests/. Writes stress.json and, whether each single answer is right, stress.npz. A
test is saved as soon as it is done, so after an interruption the same command runs those that are missing.
After a change of a test or of torch, --overwrite runs all of them anew.
"""

import functools
import hashlib
import itertools
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

if __name__ == "__main__":  # from any folder, and without lab/ before a user's own modules
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

import torch
from torch import Generator, Tensor

from data import Dataset
from lab import results as files
from lab.classifier import Classifier, images_at_once, load_data, predict
from lab.more_metrics import mean_interval
from lab.options import add_computing_options, add_options, from_options
from lab.pictures import described
from lab.stress_tests import attacks, cifar_c, cues, examples, summary
from lab.stress_tests.corruptions import CORRUPTIONS, FAMILIES, FIFTEEN, corrupt
from lab.support import (
    CommandLine,
    Progress,
    UserError,
    core,
    full_float32,
    pick_device,
    read_json,
    run_main,
)
from metrics import calibration_bins, fit_temperature, proportion

SEED = 0  # for the sample and the attacks; each corruption has its own seed
CORRUPTION_IMAGES = 200  # with this sample the tests take about four minutes on 2 cores; --full takes all
FEWEST_ATTACKED, MOST_ATTACKED = 100, 1000  # between these a fifth of the sample is attacked
CORRUPTED_EXAMPLES, ATTACKED_EXAMPLES = 8, 6  # images that the page shows with their answers


class Sample(NamedTuple):
    """The images that are tested."""

    images: Tensor  # uint8 [N, 3, S, S]
    labels: Tensor  # int64 [N]
    attacked: Tensor  # int64, the indices of those that are attacked
    index: Tensor  # int64 [N], their places in the test split


def stratified_sample(labels: Tensor, count: int | None) -> Tensor:
    """Return the indices of `count` images or all, int64 and ascending, with the classes' shares of labels.

    A class has its share on average. A smaller sample is part of a larger one.
    """
    generator = Generator().manual_seed(SEED)
    order = torch.randperm(len(labels), generator=generator)
    by_class = [order[labels[order] == c] for c in labels.unique()]
    starts = torch.rand(len(by_class), generator=generator, dtype=torch.float64)
    # Of n images of a class one comes in every n-th part of the sample, from a start that is drawn.
    turns = [(torch.arange(len(c)) + start) / len(c) for c, start in zip(by_class, starts, strict=True)]
    return torch.cat(by_class)[torch.cat(turns).argsort()][:count].sort().values


def draw_sample(test: Dataset, count: int | None) -> Sample:
    """Return so many test images, or all if count is None."""
    attack_count = MOST_ATTACKED
    if count is not None:
        attack_count = max(FEWEST_ATTACKED, min(MOST_ATTACKED, count // 5))
    index = stratified_sample(test.labels, count)
    labels = test.labels[index]
    return Sample(test.images[index], labels, stratified_sample(labels, attack_count), index)


def planned_tests(num_classes: int, published: tuple[str, ...] = ()) -> list[tuple[str, float]]:
    """Return (name, level) of all tests; the level is a severity, an epsilon in 1/255, or 0 for neither.

    published: the names of the corruptions in the files of CIFAR-100-C. One attack needs three classes.
    """
    plan = [("clean", 0), *itertools.product([*CORRUPTIONS, *published], summary.SEVERITIES)]
    plan += [(name, 0) for name in (*cues.CUES, "unattacked")]
    plan += [("random", epsilon) for epsilon in attacks.EPSILONS]
    for name, attack in attacks.ATTACKS.items():
        if name != "apgd_dlr" or num_classes >= 3:
            plan += [(name, epsilon) for epsilon in attack.epsilons]
    return plan


# ---- What is kept ----------------------------------------------------------------------------------------


def planned_results(test: Dataset, sample: Sample, published: dict) -> dict:
    """Return the content of stress.json before any test has run; published: see run_tests."""
    digest = hashlib.sha256(sample.images.numpy())
    for part in (sample.labels, sample.attacked):
        digest.update(part.numpy())
    return {
        "sample_sha256": digest.hexdigest(),
        "dataset": test.name,
        "seed": SEED,
        "corruption_images": len(sample.labels),
        "attack_images": len(sample.attacked),
        "epsilons": attacks.EPSILONS,
        "families": {family: [n for n in names if n in FIFTEEN] for family, names in FAMILIES.items()},
        "attacks": list(attacks.ATTACKS),
        "published_sha256": {
            name: hashlib.sha256(array).hexdigest() for name, (array, _) in published.items()
        },
        "tests": {},
        "answers": {},
    }


def kept_results(folder: Path, new: dict, identity: dict) -> dict:
    """Return the tests in the folder that have the weights and images of the `new` results.

    identity: see lab.results.identity. Prints what is kept; nothing is written before the first new test is
    done. Raises UserError if the folder holds results for more or other images, or of another version.
    """
    path, old = folder / "stress.json", files.read_stress(folder, identity)
    if not old:
        if path.exists() and "tests" in read_json(path, "tests") and not files.is_of(path, identity):
            raise UserError(
                f"{path} is of other images, or of this network used in another way: use another --out, or "
                f"give --overwrite"
            )
        return {}
    if missing := new.keys() - old.keys():
        raise UserError(f"{path} has no {min(missing)}, as of another version: --overwrite measures it anew")
    if any(old[key] > new[key] for key in ("corruption_images", "attack_images")):
        raise UserError(
            f"{path} is of more images, {old['corruption_images']} of which {old['attack_images']} are "
            f"attacked: give the same --images or --full, use another --out, or give --overwrite"
        )
    if old["sample_sha256"] != new["sample_sha256"]:
        print(f"note     {path} is of fewer or other images: all tests run again")
        return {}
    tests, published = old["tests"], new["published_sha256"]
    for test in list(tests):
        name = test.split("/")[0]
        if name in published and old["published_sha256"].get(name) != published[name]:
            del tests[test]
    print(f"kept     {len(tests)} tests of {path}")
    kept = ["answers", *files.PIXELS, *files.PIXELS.values()]
    published = {"published_sha256": old["published_sha256"] | published}
    return {"tests": tests} | published | {key: old[key] for key in kept if key in old}


# ---- The tests -------------------------------------------------------------------------------------------


def accuracy_of(right: Tensor) -> dict[str, float]:
    """Return the share of True in bool [N] with its interval: value, low, high."""
    return proportion(int(right.sum()), len(right))


def pictures_of(name: str, severity: int, sample: Sample, published: dict) -> tuple[Tensor, Tensor]:
    """Return images, uint8 [N, 3, S, S], and labels, int64 [N], for a test without attack; see run_tests."""
    if name in published:
        array, labels = published[name]
        index = stratified_sample(labels, len(sample.labels))
        pixels = array[cifar_c.IMAGES * (severity - 1) + index.numpy()]  # reads these images only
        return torch.from_numpy(pixels).permute(0, 3, 1, 2).contiguous(), labels[index]
    if name in CORRUPTIONS:
        return corrupt(sample.images, name, severity), sample.labels
    if name in cues.CUES:
        return cues.change(sample.images, name), sample.labels
    return sample.images, sample.labels


def measure(logits: Tensor, labels: Tensor, temperature: float | None = None) -> tuple[dict, Tensor]:
    """Return the record of a test, and whether each answer is right, bool [N].

    logits float32 [N, C], labels int64 [N]. "calibration" holds three numbers for each bin of the expected
    calibration error: the answers (`count`), the `right` answers, and the right answers less the sum of the
    confidences (`gaps`). They can be added up over several tests. There are those as trained and, if there is
    a temperature, those at it.
    """
    if not logits.isfinite().all():
        raise UserError("the network's outputs are not finite: it cannot be tested")
    confidence, y_pred = logits.softmax(dim=1).max(dim=1)
    right = y_pred == labels
    record = {"accuracy": accuracy_of(right), "mean_confidence": confidence.double().mean().item()}
    record["calibration"] = {}
    for name, divisor in {"as_trained": 1.0, "with_temperature": temperature}.items():
        if divisor is not None:
            scaled = logits / divisor
            bin_confidence, bin_accuracy, count = calibration_bins(labels, scaled.softmax(dim=1))
            gaps = (count * (bin_accuracy - bin_confidence)).nan_to_num().tolist()
            in_bin = (count * bin_accuracy).nan_to_num().tolist()
            record["calibration"][name] = {"gaps": gaps, "right": in_bin, "count": count.tolist()}
    return record, right


def under_change(
    classifier: Classifier, images: Tensor, labels: Tensor, change: Callable[..., Tensor], epsilon: float
) -> Tensor:
    """Return which answers are right after a change of the images within epsilon / 255, bool [M].

    images uint8 [M, 3, S, S]; labels int64 [M].

    change(model, images, labels, epsilon, generator) is a function of lab/stress_tests/attacks.py.
    """
    generator, right = Generator().manual_seed(SEED), []
    count = classifier.model.batch_size or 2 * images_at_once(images, classifier.model.image_size)
    for batch, y_true in zip(images.split(count), labels.split(count), strict=True):
        x, y = batch.to(classifier.device) / 255, y_true.to(classifier.device)
        x = change(classifier.model, x, y, epsilon / 255, generator)
        with torch.no_grad():
            right.append((classifier.model(x).argmax(dim=1) == y).cpu())
    return torch.cat(right)


def measure_random(
    classifier: Classifier, sample: Sample, epsilon: float, clean: Tensor
) -> tuple[dict, Tensor]:
    """Return the record of random signs, and whether each answer is right, bool [N].

    clean, bool [N]: which answers are right without the signs. "lost" is the share of images that are right
    only without them, "won" the share that are right only with them. "change" is the accuracy with the signs
    less that without, paired.
    """
    right = under_change(classifier, sample.images, sample.labels, attacks.random_corner, epsilon)
    record = {"accuracy": accuracy_of(right), "change": mean_interval(right.double() - clean.double())}
    record["lost"] = (clean & ~right).double().mean().item()
    record["won"] = (right & ~clean).double().mean().item()
    return record, right


def attack_images(classifier: Classifier, sample: Sample, name: str, epsilon: float, left: Tensor) -> Tensor:
    """Return which of the M images are right under an attack, bool [M]; epsilon is in 1/255.

    left, bool [M], says which are attacked; the others count as wrong.
    """
    attack, index = attacks.ATTACKS[name], sample.attacked[left]
    change = functools.partial(attack.function, **attack.settings)
    right = torch.zeros(len(left), dtype=torch.bool)
    if len(index) == 0:
        return right
    try:
        right[left] = under_change(classifier, sample.images[index], sample.labels[index], change, epsilon)
    except attacks.NoGradientError as error:
        raise UserError(
            f"{classifier.name} cannot be attacked: {error}; the tests before the attacks are kept"
        ) from error
    return right


# ---- The command -----------------------------------------------------------------------------------------


def run_tests(classifier: Classifier, sample: Sample, published: dict, folder: Path, results: dict) -> None:
    """Run the tests that `results` lacks, put them there, and save after each test.

    published: {"published fog": (array, labels int64 [10000]), ...}, see lab/stress_tests/cifar_c.py.
    """
    tests, answers = results["tests"], results["answers"]
    plan = planned_tests(classifier.num_classes, tuple(published))
    temperature = None
    if classifier.validation is not None:
        with core():
            temperature = fit_temperature(*classifier.validation)
    with Progress("stress tests", len(plan)) as progress:
        for done, (name, level) in enumerate(plan):
            test = f"{name}/{level:g}"
            progress.update(done, test=test)
            if test in tests:
                continue
            if name == "unattacked":
                answers[test] = answers["clean/0"][sample.attacked]
                tests[test] = {"accuracy": accuracy_of(answers[test])}
            elif name == "random":
                tests[test], answers[test] = measure_random(classifier, sample, level, answers["clean/0"])
            elif name in attacks.ATTACKS:
                left = summary.still_right(answers, attacks.ATTACKS[name].survivors_of, level)
                answers[test] = attack_images(classifier, sample, name, level, left)
                tests[test] = {"accuracy": accuracy_of(answers[test])}
            else:
                pictures, labels = pictures_of(name, level, sample, published)
                logits = predict(classifier.model, pictures, classifier.device)
                tests[test], answers[test] = measure(logits, labels, temperature)
            files.write_stress(folder, results)


def add_examples(classifier: Classifier, sample: Sample, test: Dataset, results: dict) -> None:
    """Add the answers to a few images, as far as `results` lacks them, see lab/stress_tests/examples.py.

    "examples" shows images under every corruption and cue. "attack_examples" shows images that are right
    under PGD and random signs; it and "attack_changes" are left out if no image is right.
    """
    right = results["answers"]["clean/0"]
    if "examples" not in results:
        chosen = examples.choose(right, sample.labels, test.superclass_of, CORRUPTED_EXAMPLES)
        index = sample.index[chosen]
        predictor = functools.partial(predict, classifier.model, device=classifier.device)
        answers, pixels = examples.pictures_and_answers(predictor, test.images[index])
        results["examples"] = {"images": index.tolist(), "answers": answers}
        results["example_pixels"] = pixels

    left = sample.attacked[right[sample.attacked]]
    if "attack_examples" not in results and len(left) > 0:
        labels = sample.labels[left]
        chosen = examples.choose(right[left], labels, test.superclass_of, ATTACKED_EXAMPLES)
        index = sample.index[left[chosen]]
        images = test.images[index].to(classifier.device) / 255
        y_true = labels[chosen].to(classifier.device)
        answers, changes = examples.answers_under_attack(classifier.model, images, y_true, SEED)
        results["attack_examples"] = {"images": index.tolist(), "answers": answers}
        results["attack_changes"] = changes


def summarise(records: dict, answers: dict[str, Tensor]) -> dict:
    """Return means over the fifteen corruptions and by severity, and the cues; see stress_tests/summary.py.

    The published files of --cifar-c are a group of their own if all fifteen were measured.
    """
    means = {"mean_accuracy": {}, "mean_confidence": {}}
    for group, prefix in {"fifteen": "", "published": "published "}.items():
        names = [prefix + name for name in FIFTEEN]
        if answers.keys() >= set(summary.tests_of(names)):
            row = mean_interval(summary.mean_score(answers, names))
            means["mean_accuracy"][group] = row | {"low": max(0.0, row["low"]), "high": min(1.0, row["high"])}
            together = summary.calibration_of(records, answers, summary.tests_of(names))
            means["mean_confidence"][group] = together["mean_confidence"]
    by_severity = [["clean/0"], *(summary.tests_of(FIFTEEN, [severity]) for severity in summary.SEVERITIES)]
    means["by_severity"] = [summary.calibration_of(records, answers, tests) for tests in by_severity]
    means["reliability"] = summary.reliability_bins(records, answers, summary.tests_of(FIFTEEN))
    means["cues"] = {name: {"accuracy": records[f"{name}/0"]["accuracy"]} for name in cues.CUES}
    return means


def add_summary(results: dict, sample: Sample, class_names: list[str]) -> None:
    """Add what the tests say together: summary, the worst case of all attacks, and checks of the attacks.

    random_signs is the accuracy under them on the attacked images, the control of robust_accuracy.
    """
    tests, answers = results["tests"], results["answers"]
    results["summary"] = summarise(tests, answers)
    results["robust_accuracy"], results["random_signs"] = {}, {}
    for epsilon in attacks.EPSILONS:
        worst = summary.still_right(answers, attacks.ATTACKS, epsilon)  # image by image, as of AutoAttack
        results["robust_accuracy"][f"{epsilon:g}"] = accuracy_of(worst)
        results["random_signs"][f"{epsilon:g}"] = accuracy_of(answers[f"random/{epsilon:g}"][sample.attacked])
    accuracies = {test: tests[test]["accuracy"]["value"] for test in tests}
    for epsilon in attacks.EPSILONS:  # on the attacked images alone, and without what random signs win
        right = answers[f"random/{epsilon:g}"][sample.attacked] & answers["unattacked/0"]
        accuracies[f"random/{epsilon:g}"] = right.double().mean().item()
    results["checks"] = attacks.check_attacks(accuracies)
    if len(class_names) < 3:
        check = {"name": "apgd_dlr is left out", "passed": True, "detail": "its loss needs three classes"}
        results["checks"].append(check)


def print_summary(results: dict) -> None:
    """Print the main results; explore.html shows all of them."""
    rows = {"clean images": results["tests"]["clean/0"]["accuracy"]}
    for group, accuracy in results["summary"]["mean_accuracy"].items():
        rows[f"corruptions, mean of {group}"] = accuracy
    for epsilon, accuracy in results["robust_accuracy"].items():
        rows[f"worst of all attacks of {epsilon}/255"] = accuracy
    print("\naccuracy")
    for label, accuracy in rows.items():
        value, low, high = (f"{100 * accuracy[key]:.1f}" for key in ("value", "low", "high"))
        print(f"{label:34}{value:>6} %   95 % interval {low} to {high} %")
    for check in results["checks"]:
        print(f"{'passed' if check['passed'] else 'FAILED'}   {check['name']}: {check['detail']}")


def main(argv: list[str] | None = None) -> int:
    """Run the tests of one network that its folder does not hold yet; return the exit code."""
    parser = CommandLine(description=__doc__)
    add_options(parser)
    parser.add_argument("--data-dir", help="where CIFAR is (default: where training found it, else data)")
    parser.add_argument("--dataset", help="cifar100, cifar10, shapes or a folder (default: that of training)")
    parser.add_argument("--out", type=Path, metavar="DIR", help="where results go (default: the run)")
    size = parser.add_mutually_exclusive_group()
    text = "how many test images (default: %(default)s); a fifth of them, 100 to 1,000, are attacked"
    size.add_argument("--images", type=int, default=CORRUPTION_IMAGES, metavar="N", help=text)
    size.add_argument("--full", action="store_true", help="all images, 1,000 for attacks; hours on a CPU")
    parser.add_argument("--cifar-c", type=Path, metavar="DIR", help="also measure CIFAR-100-C's files in DIR")
    parser.add_argument("--overwrite", action="store_true", help="replace what stress.json holds")
    add_computing_options(parser)
    args = parser.parse_args(argv)
    if args.images < 1:
        raise UserError(f"--images {args.images}: expected at least 1")
    device = pick_device(args.device)
    classifier = from_options(args, device)
    classifier.model.batch_size = args.batch_size
    folder = files.results_folder(classifier, args.out, args.dataset)
    files.check_folder(folder, classifier.digest, files.STRESSED, args.overwrite)
    _, test = load_data(classifier, args.dataset, args.data_dir, args.workers)
    published = {}
    if args.cifar_c:
        if test.name not in ("cifar100", "cifar10"):
            raise UserError(f"--cifar-c needs a network of CIFAR-100 or CIFAR-10, not of {test.name}")
        arrays, y_true = cifar_c.open_files(args.cifar_c, set(test.labels.tolist()))
        published = {f"published {name}": (array, torch.from_numpy(y_true)) for name, array in arrays.items()}
    sample = draw_sample(test, None if args.full else args.images)
    print(f"network  {classifier.name}, {classifier.parameters:,} parameters, images {classifier.input}")
    for note in classifier.notes:
        print(f"note     {note}")
    print(f"data     {described(test)}")
    print(f"sample   {len(sample.labels):,} images for corruptions, {len(sample.attacked):,} for attacks")
    print(f"compute  {device}, fp32, {torch.get_num_threads()} threads")

    identity = files.identity(classifier, test)
    results = identity | planned_results(test, sample, published)
    with full_float32(device):  # without TF32 an accuracy means the same on every machine
        if not args.overwrite:
            results |= kept_results(folder, results, identity)
        if not (folder / "stress.json").exists():
            files.claim_folder(folder, classifier.digest, files.STRESSED)
        run_tests(classifier, sample, published, folder, results)
        add_examples(classifier, sample, test, results)
        add_summary(results, sample, test.class_names)
        files.write_stress(folder, results)
    print_summary(results)
    print(f"\nsaved    {folder}/stress.json and stress.npz")
    if files.is_of(folder / "reasons.json", identity):
        from lab.explore.compose import write_explore

        with files.of_this_version(folder):
            write_explore(folder, test.images)
        print(f"next     open {folder / 'explore.html'} in a browser")
    else:
        print("next     python -m lab.examine with the same options shows them on its page")
    return 0


if __name__ == "__main__":
    run_main(main)

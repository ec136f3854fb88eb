"""For tests of the laboratory: a network by its options, made-up results, and names that would be markup."""

import pytest
import torch
from lab_commands import CPU
from lab_pages import fraction

import metrics
import report
from lab import options, results
from lab.stress_tests.corruptions import CORRUPTIONS, FIFTEEN
from lab.stress_tests.cues import CUES
from lab.support import CommandLine

EPSILONS = [0.25, 0.5, 1, 2, 4, 8, 64]
HOSTILE_CLASS = "<img src=x onerror=alert(1)>&"
HOSTILE_FILE = "</script><b>\"'&a=%41#+.png"
TO_TRUTH = {"changed": fraction(0.8), "to_truth": fraction(0.27)}
TO_RUNNER_UP = {"changed": fraction(0.6), "to_runner_up": fraction(0.2)}
CONTROLS = ["runner_up", "random_class", "usual", "other_image"]
RANDOM = {"changed": fraction(0.5), "to_truth": fraction(0.14)}
COVERING = {  # of metrics.json, but for its verdict
    "images": {"mistakes": 800, "right": 400},
    "mistakes": {"contrastive": TO_TRUTH, **dict.fromkeys(CONTROLS, TO_TRUTH), "random": RANDOM},
    "blurred": {"contrastive": TO_TRUTH, "random": RANDOM},
    "another": {name: {"to_another": fraction(0.3)} for name in ("contrastive", "random")},
    "differences": dict.fromkeys(["random", "blurred_random", "other_image", "random_class"], fraction(0.1)),
    "right": dict.fromkeys(["runner_up", "usual", "random", "centre"], TO_RUNNER_UP),
}
WEIGHTS = {"images": 40, "seeds": 5, "same_image": fraction(0.2), "other_image": fraction(0.2)}
MAPS = {"layer": "layer4", "size": [4, 4], "random_weights": WEIGHTS}


def examined(*argv):
    """Return the network that these options name."""
    parser = CommandLine("")
    options.add_options(parser)
    return options.from_options(parser.parse_args([str(part) for part in argv]), CPU)


def write_run(folder, test, logits, digest, **numbers):
    """Write predictions.npz and metrics.json as a report on these images leaves them; return the folder."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(metrics.bootstrap_headline, "__defaults__", (20,))
        of_answers, arrays = report.evaluate(logits, test)
    report.write_numbers(
        folder,
        of_answers | {"checkpoint_sha256": digest, "images_sha256": results.images_digest(test)} | numbers,
        arrays,
    )
    return folder


def stress_content(labels):
    """What read_stress returns of a finished test of images with these labels, made up."""
    generator = torch.Generator().manual_seed(0)

    def answers(count):
        """Of the first images, each right or wrong by chance, with a probability that no other has."""
        wrong = torch.rand(count, generator=generator) > 0.5
        chosen = (labels[:count] + wrong) % (int(labels.max()) + 1)
        probability = torch.rand(count, generator=generator).double().round(decimals=4)
        return [list(answer) for answer in zip(chosen.tolist(), probability.tolist(), strict=True)]

    low, clean = fraction(0.25), fraction(0.7)
    tests = {"clean/0": {"accuracy": clean, "mean_confidence": 0.55}, "unattacked/0": {"accuracy": clean}}
    shown = {"clean/0": answers(8)}
    for name in CORRUPTIONS:
        for severity in range(1, 6):
            tests[f"{name}/{severity}"] = {"accuracy": fraction(0.3 if name != "fog" else 0.2)}
            shown[f"{name}/{severity}"] = answers(8)
    shown |= {f"{name}/0": answers(8) for name in CUES}
    tests |= {f"{name}/{e:g}": {"accuracy": low} for name in ("fgsm", "pgd", "random") for e in EPSILONS}
    row = {"accuracy": 0.5, "mean_confidence": 0.6, "as_trained": {"ece": 0.1, "mean_ece": 0.1}}
    bins = {name: [[0.5, 0.25, 10], [0.9, 0.8, 5]] for name in ("as_trained", "with_temperature")}
    summary = {
        "mean_accuracy": {"fifteen": low},
        "mean_confidence": {"fifteen": 0.5},
        "by_severity": [
            row | {"with_temperature": {"ece": 0.04 * n, "mean_ece": 0.04 * n}} for n in range(6)
        ],
        "reliability": {"images": 200, "bins": bins},
        "cues": {name: {"accuracy": clean} for name in CUES},
    }
    changes = torch.randint(-127, 128, (2, len(EPSILONS) - 1, 6, 3, 1, 1), generator=generator)
    pixels = torch.randint(256, (len(shown), 8, 3, 1, 1), generator=generator, dtype=torch.uint8)
    under = {name: {f"{e:g}": answers(6) for e in (0, *EPSILONS[:-1])} for name in ("pgd", "random")}
    return {
        "sample_sha256": "of a sample",
        "corruption_images": 200,
        "attack_images": 100,
        "epsilons": EPSILONS,
        "families": {"all": list(FIFTEEN)},
        "tests": tests,
        "summary": summary,
        "robust_accuracy": {f"{e:g}": low for e in EPSILONS},
        "random_signs": {f"{e:g}": fraction(0.6) for e in EPSILONS},
        "checks": [{"name": "a check", "passed": passed, "detail": "<so>"} for passed in (True, False)],
        "examples": {"images": list(range(8)), "answers": shown},
        "example_pixels": pixels.expand(-1, -1, -1, 32, 32),
        "attack_examples": {"images": list(range(6)), "answers": under},
        "attack_changes": changes.to(torch.int8).expand(-1, -1, -1, -1, 32, 32),
    }

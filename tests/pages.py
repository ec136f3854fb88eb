"""For tests of the page: what a reader sees of HTML, pictures in it, and made-up stress results."""

import base64
import re
from html import unescape

import torch
from torchvision.io import ImageReadMode, decode_image

from lab.stress_tests.corruptions import CORRUPTIONS
from lab.stress_tests.cues import CUES
from support import outputs

EPSILONS = [0.25, 0.5, 1, 2, 4, 8, 64]
# In place of sections.write_plots, which draws the files of plots/ and takes most of the time of a page.
NO_PLOTS = lambda *found: {"confusion_png": "data:image/gif;base64,R0lGODlhAQABAAAAACwAAAAAAQABAAAC"}  # noqa: E731
# What report.evaluate would never meet: names that would be markup, if they were not escaped.
HOSTILE_CLASS = "<img src=x onerror=alert(1)>&"
HOSTILE_FILE = "</script><b>\"'&a=%41#+.png"


def text(markup):
    """Return what a reader sees of HTML, without script, style and code, its white space as single blanks."""
    hidden = r'<(script|style|details class="code").*?</(script|style|details)>'
    markup = re.sub(hidden, " ", markup, flags=re.DOTALL)
    words = " ".join(re.sub(r"<[^>]*>", " ", markup).split())
    return unescape(words).replace("\N{NO-BREAK SPACE}", " ").replace(" .", ".").replace(" ,", ",")


def fraction(value, width=0.1):
    return {"value": value, "low": round(value - width, 6), "high": round(value + width, 6)}


def decoded(content):
    """Return the pixels, uint8 [3, H, W], of a picture in base64 or of the bytes of a file."""
    content = base64.b64decode(content) if isinstance(content, str) else content
    return decode_image(torch.frombuffer(bytearray(content), dtype=torch.uint8), ImageReadMode.RGB)


OF_CHANGED = {"to_truth_of_changed": None, "by_rank": dict.fromkeys(["second", "third", "later"])}
TO_TRUTH = {"changed": fraction(0.8), "to_truth": fraction(0.27), **OF_CHANGED}
TO_RUNNER_UP = {"changed": fraction(0.6), "to_runner_up": fraction(0.2)}
CONTROLS = ["random_class", "usual", "other_image", "centre"]
RANDOM = {"changed": fraction(0.5), "to_truth": fraction(0.14), **OF_CHANGED}
COVERING = {  # of metrics.json, but for its verdict
    "images": {"mistakes": 800, "right": 400},
    "mistakes": dict.fromkeys(["contrastive", "runner_up", *CONTROLS], TO_TRUTH) | {"random": RANDOM},
    "blurred": {"contrastive": TO_TRUTH, "random": RANDOM},
    "another": {name: {"to_another": fraction(0.3)} for name in ("contrastive", "random")},
    "differences": dict.fromkeys(["random", "blurred_random", *CONTROLS], fraction(0.1)),
    "usual_less": dict.fromkeys(["random", "centre"], fraction(0.1)),
    "right": dict.fromkeys(["runner_up", "usual", "random", "centre"], TO_RUNNER_UP),
}
WEIGHTS = {"images": 40, "seeds": 5, "same_image": fraction(0.2), "other_image": fraction(0.2)}
MAPS = {"layer": "layer4", "size": [4, 4], "random_weights": WEIGHTS}


def write_predictions(folder, test, probabilities, digest):
    """Write predictions.npz as a report on these images leaves it."""
    content = {
        "y_true": test.labels,
        "y_pred": probabilities.argmax(dim=1),
        "probabilities": probabilities,
        "class_names": test.class_names,
        "images_sha256": outputs.sha256_of(test.images),
        "checkpoint_sha256": digest,
    }
    outputs.write_arrays(folder / "predictions.npz", content)


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
    row = {"accuracy": 0.5, "mean_confidence": 0.6, "as_trained": {"ece": 0.1}}
    bins = {name: [[0.5, 0.25, 10], [0.9, 0.8, 5]] for name in ("as_trained", "with_temperature")}
    summary = {
        "mean_accuracy": {"fifteen": low},
        "mean_confidence": {"fifteen": 0.5},
        "by_severity": [row | {"with_temperature": {"ece": 0.04 * n}} for n in range(6)],
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
        "tests": tests,
        "summary": summary,
        "robust_accuracy": {f"{e:g}": low for e in EPSILONS},
        "checks": [{"name": "a check", "passed": passed, "detail": "<so>"} for passed in (True, False)],
        "examples": {"images": list(range(8)), "answers": shown},
        "example_pixels": pixels.expand(-1, -1, -1, 32, 32),
        "attack_examples": {"images": list(range(6)), "answers": under},
        "attack_changes": changes.to(torch.int8).expand(-1, -1, -1, -1, 32, 32),
    }

"""Does a temperature that was fitted on some corruptions hold under others, and what does it cost?

    python lab/experiments/transfer.py weights/resnet18_cifar100.pt --data-dir data

Leaves out one family of corruptions (noise, blur, weather, digital) at a time. The temperature is fitted on
1,000 validation images, clean and under the corruptions of the other families at severities 1, 3 and 5, the
four in equal parts. It is judged on 1,000 test images, clean (severity 0) and under the corruptions of the
family left out. Prints means of their calibration errors in percent, with 95 % intervals by 200 resamples of
the images: as trained, at the temperature of clean images, and at this one. --cache keeps all logits.
"""

import io
import sys
from pathlib import Path

import torch
from torch import Generator, Tensor

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from data import split_indices
from lab.classifier import Classifier, full_float32, load_checkpoint, load_data, predict
from lab.experiments.temperature import errors_of
from lab.stress import draw_sample
from lab.stress_tests.corruptions import FAMILIES, FIFTEEN, corrupt
from lab.support import CommandLine, UserError, pick_device, run_main
from metrics import fit_temperature
from train import write

NUM_IMAGES, NUM_RESAMPLES, SEVERITIES = 1000, 200, (1, 3, 5)
Logits = dict[tuple[str, int], Tensor]  # of each corruption and severity float32 [N, C]


def predict_all(classifier: Classifier, images: Tensor, folder: Path) -> Logits:
    """Return the logits of images uint8 [N, 3, S, S], clean and under each corruption; see --cache."""
    logits = {}
    for name, severity in [("clean", 0), *((name, s) for name in FIFTEEN for s in SEVERITIES)]:
        path = folder / f"{name}_{severity}.pt"
        if not path.exists():
            pictures = corrupt(images, name, severity) if severity else images
            file = io.BytesIO()
            torch.save(predict(classifier.model, pictures, classifier.device), file)
            write(path, file.getvalue())
        logits[name, severity] = torch.load(path, weights_only=True)
    return logits


def fit_without(family: str, logits: Logits, labels: Tensor) -> float:
    """Return the temperature of clean images and of all corruptions but a family's; labels int64 [N]."""
    names = [name for name in FIFTEEN if name not in FAMILIES[family]]
    mixed = [logits[name, severity] for name in names for severity in SEVERITIES]
    mixed += [logits["clean", 0]] * len(names)  # so that clean images weigh as much as a severity
    return fit_temperature(torch.cat(mixed), labels.repeat(len(mixed)))


def mean_error(temperature: float, logits: list[Tensor], labels: Tensor, counts: Tensor) -> Tensor:
    """Return the mean of the calibration errors of several tests for each resample, float64 [R].

    logits: of each test float32 [N, C]; labels int64 [N]; counts float64 [R, N], see temperature.errors_of.
    """
    return torch.stack([errors_of(test, labels, temperature, counts)["ECE"] for test in logits]).mean(dim=0)


def percent(errors: Tensor) -> str:
    """Return the first of fractions [R] in percent, with the 95 % interval of the others."""
    low, high = (100 * errors[1:]).quantile(torch.tensor([0.025, 0.975], dtype=torch.float64)).tolist()
    return f"{100 * errors[0]:.1f} ({low:.1f} to {high:.1f})"


def main() -> None:
    parser = CommandLine(__doc__)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--data-dir", type=Path)
    parser.add_argument("--cache", type=Path, default=Path("runs/transfer"))
    args = parser.parse_args()
    classifier = load_checkpoint(args.checkpoint, pick_device("auto"))
    train, test = load_data(classifier, None, args.data_dir)
    sample, cache = draw_sample(test, NUM_IMAGES), args.cache / classifier.digest[:12]
    settings = classifier.training["config"]["settings"]
    validation = split_indices(train, settings["val_fraction"], settings["seed"])[1][:NUM_IMAGES]
    with full_float32(classifier.device):
        fitted = predict_all(classifier, train.images[validation], cache / "validation")
        stored = classifier.validation[0][:NUM_IMAGES]
        if (fitted["clean", 0].argmax(dim=1) == stored.argmax(dim=1)).double().mean() < 0.9:
            raise UserError("the training images have another order than in training: use the official files")
        judged = predict_all(classifier, sample.images, cache / "test")
    draws = torch.randint(NUM_IMAGES, (NUM_RESAMPLES + 1, NUM_IMAGES), generator=Generator().manual_seed(0))
    draws[0] = torch.arange(NUM_IMAGES)
    counts = torch.stack([draw.bincount(minlength=NUM_IMAGES) for draw in draws]).double()
    clean_temperature, errors = fit_temperature(*classifier.validation), {}
    print(f"| left out | temperature | severity | as trained | at {clean_temperature:.2f} | at this one |")
    print("| --- | --- | --- | --- | --- | --- |")
    for family in FAMILIES:
        this = fit_without(family, fitted, train.labels[validation])
        for severity in (0, *SEVERITIES):
            names = [name for name in FIFTEEN if name in FAMILIES[family]] if severity else ["clean"]
            logits, temperatures = [judged[name, severity] for name in names], (1, clean_temperature, this)
            row = torch.stack([mean_error(t, logits, sample.labels, counts) for t in temperatures])
            print(f"| {family} | {this:.2f} | {severity} |", " | ".join(map(percent, row)), "|", flush=True)
            errors[severity] = errors.get(severity, 0) + row / len(FAMILIES)
    for severity, row in errors.items():
        print(f"| mean of the four | | {severity} |", " | ".join(map(percent, row)), "|")


if __name__ == "__main__":
    run_main(main)

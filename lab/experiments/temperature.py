"""What does a temperature do to calibration as corruptions get stronger? With intervals over images.

    python lab/experiments/temperature.py weights/resnet18_cifar100.pt --data-dir data

Takes any number of checkpoints and prints a Markdown table: as trained, at the temperature of the validation
images, and the difference. Each number is the mean over the fifteen corruptions. Their answers are not
pooled, as overconfident and underconfident ones would cancel. ECE is the calibration error, NLL the negative
log-likelihood, and Brier the squared distance of the probabilities from the truth. The 95 % intervals come
from 1,000 resamples of the images, each with all its corruptions. A resample repeats images, which raises its
ECE: intervals of ECE lie too high, those of its difference less so.
"""

import sys
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Generator, Tensor

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import metrics
from lab import more_metrics
from lab.classifier import Classifier, load_checkpoint, load_data
from lab.stress import draw_sample
from lab.stress_tests.corruptions import FIFTEEN, corrupt
from lab.support import CommandLine, Progress, pick_device, run_main

NUM_BINS, NUM_RESAMPLES = 15, 1000


def gaps(probabilities: Tensor, labels: Tensor) -> Tensor:
    """Return right less confidence of each answer in the column of its bin, float64 [N, 15]; else 0."""
    confidence, y_pred = probabilities.max(dim=1)
    gap = (y_pred == labels).double() - confidence
    bins = more_metrics.bin_of(confidence, NUM_BINS)[:, None]
    return torch.zeros(len(labels), NUM_BINS, dtype=torch.float64).scatter(1, bins, gap[:, None])


def errors_of(logits: Tensor, labels: Tensor, temperature: float, counts: Tensor) -> dict[str, Tensor]:
    """Return ECE, NLL and Brier score of each resample at a temperature, float64 [R].

    logits float32 [N, C]; labels int64 [N]; counts float64 [R, N]: how often a resample holds each image.
    """
    scaled = logits.double() / temperature
    probabilities = scaled.softmax(dim=1)
    truth = F.one_hot(labels, logits.shape[1])
    scores = {"NLL": F.cross_entropy(scaled, labels, reduction="none")}
    scores["Brier"] = ((probabilities - truth) ** 2).sum(dim=1)
    errors = {"ECE": (counts @ gaps(probabilities, labels)).abs().sum(dim=1) / len(labels)}
    return errors | {name: counts @ values / len(labels) for name, values in scores.items()}


def mean_errors(classifier: Classifier, sample, severity: int, temperatures: tuple, counts: Tensor) -> dict:
    """Return the means over the fifteen corruptions, or those of clean images at severity 0.

    The result is {measure: float64 [temperatures, R]}, see errors_of.
    """
    names, sums = FIFTEEN if severity else ["clean"], {}
    for name in names:
        images = corrupt(sample.images, name, severity) if severity else sample.images
        logits = classifier.predict(images)
        rows = [errors_of(logits, sample.labels, t, counts) for t in temperatures]
        for measure in rows[0]:
            sums[measure] = sums.get(measure, 0) + torch.stack([row[measure] for row in rows]) / len(names)
    return sums


def cell(values: Tensor, scale: int, sign: str = "") -> str:
    """Return the first of values [R], scaled, with the 95 % interval of the others."""
    low, high = (scale * values[1:]).quantile(torch.tensor([0.025, 0.975], dtype=torch.float64)).tolist()
    digits = 1 if scale == 100 else 2
    first = scale * values[0].item()
    return f"{first:{sign}.{digits}f} ({low:{sign}.{digits}f} to {high:{sign}.{digits}f})"


def main() -> None:
    parser = CommandLine(__doc__)
    parser.add_argument("checkpoint", type=Path, nargs="+")
    parser.add_argument("--data-dir", type=Path)
    parser.add_argument("--images", type=int, default=1000)
    parser.add_argument("--severities", type=int, nargs="+", default=[0, 1, 3, 5])
    args = parser.parse_args()
    device = pick_device("auto")
    print("| network | temperature | severity | measure | as trained | at the temperature | change |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    for path in args.checkpoint:
        classifier = load_checkpoint(path, device)
        _, test = load_data(classifier, None, args.data_dir)
        sample = draw_sample(test, args.images)
        count = len(sample.labels)
        drawn = torch.randint(count, (NUM_RESAMPLES, count), generator=Generator().manual_seed(0))
        counts = torch.stack([torch.ones(count).long(), *(row.bincount(minlength=count) for row in drawn)])
        temperature = metrics.fit_temperature(*classifier.validation)
        name = path.name if path.parent.name != "checkpoints" else path.parent.parent.name
        with Progress(name, len(args.severities)) as progress:
            for done, severity in enumerate(args.severities):
                progress.update(done)
                errors = mean_errors(classifier, sample, severity, (1.0, temperature), counts.double())
                for measure, (trained, scaled) in errors.items():
                    scale = 100 if measure == "ECE" else 1
                    cells = [cell(trained, scale), cell(scaled, scale), cell(scaled - trained, scale, "+")]
                    row = f"| {name} | {temperature:.2f} | {severity} | {measure} |"
                    print(row, " | ".join(cells), "|", flush=True)


if __name__ == "__main__":
    run_main(main)

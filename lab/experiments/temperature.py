"""What a temperature does to the calibration error as corruptions get stronger, with intervals over images.

    python lab/experiments/temperature.py weights/resnet18_cifar100.pt --data-dir data

Takes any number of checkpoints and prints a Markdown table. It has the calibration error of all answers to
the fifteen corruptions together: as trained, at the temperature of the validation images, and the difference.
The 95 % intervals come from a bootstrap of 1,000 resamples. An image is drawn with all its corruptions, as
their answers are alike. lab.stress keeps bins instead of answers, and bins give no such interval.
"""

import sys
from pathlib import Path

import torch
from torch import Generator, Tensor

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import metrics
from lab import more_metrics
from lab.classifier import Classifier, full_float32, load_checkpoint, load_data, predict
from lab.stress import draw_sample
from lab.stress_tests.corruptions import FIFTEEN, corrupt
from lab.support import CommandLine, Progress, pick_device, run_main

NUM_BINS, NUM_RESAMPLES = 15, 1000


def gaps(logits: Tensor, labels: Tensor, temperature: float) -> Tensor:
    """Return right less confidence of each answer in the column of its bin, float64 [N, 15]; else 0."""
    confidence, y_pred = (logits.double() / temperature).softmax(dim=1).max(dim=1)
    bin_of = more_metrics.bin_of(confidence, NUM_BINS)
    gap = (y_pred == labels).double() - confidence
    return torch.zeros(len(labels), NUM_BINS, dtype=torch.float64).scatter(1, bin_of[:, None], gap[:, None])


def errors_of(
    classifier: Classifier,
    images: Tensor,
    labels: Tensor,
    severity: int,
    temperature: float,
    counts: Tensor,
) -> Tensor:
    """Return the calibration errors as trained and at the temperature, float64 [2, resamples + 1].

    counts float64 [resamples + 1, N]: how often each image is drawn, in the first row once.
    """
    temperatures = (1.0, temperature)
    names = FIFTEEN if severity else ["clean"]
    totals = [0.0, 0.0]  # over the corruptions, [N, 15]
    for name in names:
        pictures = corrupt(images, name, severity) if severity else images
        logits = predict(classifier.model, pictures, classifier.device)
        totals = [total + gaps(logits, labels, t) for total, t in zip(totals, temperatures, strict=True)]
    errors = [(counts @ total).abs().sum(dim=1) / (len(labels) * len(names)) for total in totals]
    return torch.stack(errors)


def said(values: Tensor, sign: str = "") -> str:
    """Return the first of fractions [resamples + 1] in percent, with the 95 % interval of the others."""
    low, high = values[1:].quantile(torch.tensor([0.025, 0.975], dtype=torch.float64)).tolist()
    return f"{100 * values[0]:{sign}.1f} ({100 * low:{sign}.1f} to {100 * high:{sign}.1f})"


def main() -> None:
    parser = CommandLine(__doc__)
    parser.add_argument("checkpoint", type=Path, nargs="+")
    parser.add_argument("--data-dir", type=Path)
    parser.add_argument("--images", type=int, default=1000)
    parser.add_argument("--severities", type=int, nargs="+", default=[0, 1, 3, 5])
    args = parser.parse_args()
    device = pick_device("auto")
    print("| network | temperature | severity | as trained | at the temperature | change |")
    print("| --- | --- | --- | --- | --- | --- |")
    for path in args.checkpoint:
        classifier = load_checkpoint(path, device)
        _, test = load_data(classifier, None, args.data_dir)
        sample = draw_sample(test, args.images)
        count = len(sample.labels)
        drawn = torch.randint(count, (NUM_RESAMPLES, count), generator=Generator().manual_seed(0))
        counts = torch.stack([torch.ones(count).long(), *(row.bincount(minlength=count) for row in drawn)])
        temperature = metrics.fit_temperature(*classifier.validation)
        name = path if path.parent.name != "checkpoints" else path.parent.parent.name
        with full_float32(device), Progress(str(name), len(args.severities)) as progress:
            for done, severity in enumerate(args.severities):
                progress.update(done)
                pictures = sample.images, sample.labels
                errors = errors_of(classifier, *pictures, severity, temperature, counts.double())
                cells = [said(errors[0]), said(errors[1]), said(errors[1] - errors[0], "+")]
                print(f"| {name} | {temperature:.2f} | {severity} |", " | ".join(cells), "|", flush=True)


if __name__ == "__main__":
    run_main(main)

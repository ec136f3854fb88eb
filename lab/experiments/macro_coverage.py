"""How often do the intervals of the headline numbers hold the true values where a class has few images?

    python experiments/macro_coverage.py

Draws 1,000 test sets of 20 classes with 2, 5 and 100 images each for a made-up network, whose true numbers
are those of 20 million images, and prints how many of the 95 % intervals of metrics.bootstrap_headline, by
200 resamples each, hold them.
"""

import sys
from pathlib import Path

import torch
from torch import Generator, Tensor

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import metrics

NUM_CLASSES, NUM_SETS, NUM_RESAMPLES = 20, 1000, 200


def true_numbers(chances: Tensor) -> dict[str, float]:
    """Return the numbers of a network that answers c to an image of t with chances[t, c], float64 [C, C]."""
    confusion = (1_000_000 * chances).round().long()
    precision, recall, f1 = metrics.precision_recall_f1(confusion)
    return {
        "accuracy": recall.mean().item(),  # as many images of each class
        "macro_precision": precision.mean().item(),
        "macro_recall": recall.mean().item(),
        "macro_f1": f1.mean().item(),
    }


def main() -> None:
    generator = Generator().manual_seed(0)
    chances = torch.rand(NUM_CLASSES, NUM_CLASSES, generator=generator, dtype=torch.float64) ** 4
    diagonal = 0.4 + 0.55 * torch.rand(NUM_CLASSES, generator=generator, dtype=torch.float64)
    chances = chances.fill_diagonal_(0)
    chances = (1 - diagonal)[:, None] * chances / chances.sum(dim=1, keepdim=True) + diagonal.diag()
    truth = true_numbers(chances)
    for per_class in (2, 5, 100):
        y_true = torch.arange(NUM_CLASSES).repeat_interleave(per_class)
        inside, values = dict.fromkeys(truth, 0), dict.fromkeys(truth, 0.0)
        for _ in range(NUM_SETS):
            y_pred = torch.multinomial(chances[y_true], 1, generator=generator)[:, 0]
            scores = torch.eye(NUM_CLASSES, dtype=torch.float64)[y_pred]
            found = metrics.bootstrap_headline(y_true, scores, num_resamples=NUM_RESAMPLES)
            for name, value in truth.items():
                inside[name] += found[name]["low"] <= value <= found[name]["high"]
                values[name] += found[name]["value"] / NUM_SETS
        for name, value in truth.items():
            print(
                f"{per_class:4} a class, {name:16} true {value:.3f}, mean {values[name]:.3f}, "
                f"held by {inside[name] / NUM_SETS:.1%}"
            )


if __name__ == "__main__":
    main()

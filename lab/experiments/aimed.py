"""What does aim add to a small change? Right answers under random signs, drawn often, and under PGD.

    python lab/experiments/aimed.py weights/resnet18_cifar100.pt --data-dir data

Prints a Markdown table of 1,000 images that are answered right: how many stay right under changes of each
colour value by at most 1/255 and 8/255 (L-infinity). Random signs change every value by as much, up or down;
of 1/255 they are also drawn 32 times, where an image counts that is right under all draws. PGD (Madry et al.
2018) is that of lab.stress: ten steps from two random starts, by someone who has the weights. "Rounded" is to
whole levels of 255, as a file holds them. Intervals are Wilson's, over images. What PGD leaves right is an
upper limit: AutoAttack adds a targeted attack, FAB and Square.
"""

import functools
import sys
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Generator, Tensor

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from lab.classifier import Classifier, load_checkpoint, load_data
from lab.stress import SEED, draw_sample
from lab.stress_tests import attacks
from lab.support import CommandLine, Progress, full_float32, pick_device, run_main
from metrics import proportion

DRAWS = 32


def right_images(classifier: Classifier, test, count: int) -> tuple[Tensor, Tensor]:
    """Return so many images that are answered right, uint8 [count, 3, S, S], and their labels."""
    sample = draw_sample(test, 2 * count)
    right = torch.nonzero(classifier.predict(sample.images).argmax(dim=1) == sample.labels).flatten()[:count]
    return sample.images[right], sample.labels[right]


def changed(classifier: Classifier, images: Tensor, labels: Tensor, change: Callable) -> Tensor:
    """Return what change(model, images, labels) makes of images in [0, 1], float32 [N, 3, S, S]."""
    parts, count = [], classifier.images_at_once(images)
    with full_float32(classifier.device):
        for batch, y_true in zip(images.split(count), labels.split(count), strict=True):
            x, y = batch.to(classifier.device) / 255, y_true.to(classifier.device)
            parts.append(change(classifier.model, x, y).cpu())
    return torch.cat(parts)


@torch.no_grad()
def still_right(classifier: Classifier, images: Tensor, labels: Tensor) -> Tensor:
    """Return which answers to float images in [0, 1] are right, bool [N]."""
    count = classifier.images_at_once(images)
    with full_float32(classifier.device):
        logits = [classifier.model(batch.to(classifier.device)).cpu() for batch in images.split(count)]
    return torch.cat(logits).argmax(dim=1) == labels


def survivors(
    classifier: Classifier, images: Tensor, labels: Tensor, epsilon: int, draws: int
) -> dict[str, Tensor]:
    """Return which right answers stay right under changes of epsilon / 255, {name: bool [N]}."""
    options = {"epsilon": epsilon / 255, "generator": Generator().manual_seed(SEED)}
    signs = functools.partial(attacks.random_corner, **options)
    stay = []
    with Progress(f"random signs of {epsilon}/255", draws) as progress:
        for draw in range(draws):
            progress.update(draw)
            stay.append(still_right(classifier, changed(classifier, images, labels, signs), labels))
    pgd = attacks.ATTACKS["pgd"]
    aimed = functools.partial(pgd.function, **options, **pgd.settings)
    images = changed(classifier, images, labels, aimed)
    result = {"random signs": stay[0]}
    if draws > 1:
        result[f"random signs, the worst of {draws}"] = torch.stack(stay).all(dim=0)
    result["PGD"] = still_right(classifier, images, labels)
    result["PGD, rounded"] = still_right(classifier, (255 * images).round() / 255, labels)
    return result


def main() -> None:
    parser = CommandLine(__doc__)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--data-dir", type=Path)
    parser.add_argument("--images", type=int, default=1000)
    parser.add_argument("--draws", type=int, default=DRAWS)
    args = parser.parse_args()
    classifier = load_checkpoint(args.checkpoint, pick_device("auto"))
    _, test = load_data(classifier, None, args.data_dir)
    images, labels = right_images(classifier, test, args.images)
    print(f"| of {len(images):,} right answers stay right | |\n| --- | --- |")
    for epsilon, draws in ((8, 1), (1, args.draws)):
        for name, stay in survivors(classifier, images, labels, epsilon, draws).items():
            row = {key: 100 * value for key, value in proportion(int(stay.sum()), len(images)).items()}
            cell = f"{row['value']:.1f} % ({row['low']:.1f} to {row['high']:.1f})"
            print(f"| {epsilon}/255: {name} | {cell} |", flush=True)


if __name__ == "__main__":
    run_main(main)

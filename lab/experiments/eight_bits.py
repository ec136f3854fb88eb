"""Does rounding to 8 bits, as a file of pictures does, save a network from an attack?

    python experiments/eight_bits.py weights/resnet18_cifar100.pt --images 500 --data-dir data

Attacks a sample of the test images by PGD as stress.py does, but on to the strongest point, and prints how
many are right unattacked, attacked, and attacked and then rounded to 8 bits, and how many the rounding alone
turns either way.
"""

import sys
from pathlib import Path

import torch
from torch import Generator

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from lab.classifier import full_float32, load_checkpoint, load_data
from lab.stress import SEED, stratified_sample
from lab.stress_tests.attacks import pgd
from metrics import proportion
from support.console import CommandLine, Progress, run_main
from support.device import pick_device


def main() -> None:
    parser = CommandLine(__doc__)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--data-dir", type=Path)
    parser.add_argument("--images", type=int, default=500)
    parser.add_argument("--epsilon", type=float, default=1.0, help="in 1/255 (default: %(default)s)")
    args = parser.parse_args()
    device, generator = pick_device("auto"), Generator().manual_seed(SEED)
    classifier = load_checkpoint(args.checkpoint, device)
    _, test = load_data(classifier, None, args.data_dir)
    index = stratified_sample(test.labels, args.images)
    right = {"unattacked": [], "attacked": [], "attacked and rounded": []}
    with full_float32(device), Progress("images", len(index)) as progress:
        for done, batch in enumerate(index.split(50)):
            progress.update(50 * done)
            images, labels = test.images[batch].to(device) / 255, test.labels[batch].to(device)
            attacked = pgd(classifier.model, images, labels, args.epsilon / 255, generator, restarts=2)
            rounded = (attacked * 255).round() / 255
            for name, pictures in zip(right, (images, attacked, rounded), strict=True):
                with torch.no_grad():
                    right[name].append((classifier.model(pictures).argmax(dim=1) == labels).cpu())
    answers = {name: torch.cat(parts) for name, parts in right.items()}
    for name, of_images in answers.items():
        share = proportion(int(of_images.sum()), len(of_images))
        print(f"{name:22} {share['value']:.1%} right ({share['low']:.1%} to {share['high']:.1%})")
    before, after = answers["attacked"], answers["attacked and rounded"]
    print(f"rounding saves {int((after & ~before).sum())} and loses {int((before & ~after).sum())}")


if __name__ == "__main__":
    run_main(main)

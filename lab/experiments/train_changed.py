"""Train by the recipe of train.py on images that are corrupted or attacked, to see what that changes.

    python experiments/train_changed.py --corrupt 0.5 --epochs 10        half of the batches are corrupted
    python experiments/train_changed.py --adversarial 1 --epochs 10      one-step attacks within 1/255

All options of train.py are taken as well; --resume needs the options of this script again. results/README.md
says what came of it.
"""

import argparse
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Generator, Tensor

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import train
from data import resize
from lab.stress_tests.corruptions import CORRUPTIONS, EXTRA
from support.console import run_main
from support.errors import UserError


def corrupt_batch(images: Tensor, generator: Generator) -> Tensor:
    """Put images float32 [N, 3, S, S] in [0, 1] under one corruption, drawn like its severity.

    EXTRA are speckle noise, Gaussian blur and saturation, which Hendrycks and Dietterich (2019, arXiv
    1903.12261) published to develop methods on, so that the fifteen of the stress test stay unseen.
    """
    name = EXTRA[int(torch.randint(len(EXTRA), (), generator=generator))]
    severity = int(torch.randint(1, 4, (), generator=generator))
    return CORRUPTIONS[name](images.cpu(), severity, generator).to(images.device)


def attack(
    training: train.Training, size: int, images: Tensor, target: Tensor, uniform: Tensor, epsilon: float
) -> Tensor:
    """Return images under one step of FGSM from a random start, float32 [N, 3, S, S] in [0, 1].

    Wong, Rice and Kolter 2020 (arXiv 2001.03994), algorithm 3, with their alpha of 1.25 epsilon and the
    network in train mode. target float [N, C]; uniform [N, 3, S, S] are random numbers in [0, 1).
    """
    low, high = (images - epsilon).clamp(min=0), (images + epsilon).clamp(max=1)
    start = (images + epsilon * (2 * uniform - 1)).clamp(low, high).requires_grad_()
    # The plain network: the one shared among processes would wait for gradients of its weights.
    with train.autocast(training.device, training.precision):
        logits = training.model(training.normalize(resize(start, size))).float()
        loss = training.criterion(logits, target)
    (gradient,) = torch.autograd.grad(training.scaler.scale(loss), start)
    return (start.detach() + 1.25 * epsilon * gradient.sign()).clamp(low, high)


@dataclass
class Change:
    """What is done to images: the share of batches that are corrupted, and an attack's epsilon in 1/255."""

    corrupt: float
    adversarial: float

    def __str__(self) -> str:
        return f"--corrupt {self.corrupt} --adversarial {self.adversarial}"

    def __call__(self, training: train.Training, epoch: int) -> Callable[[Tensor, Tensor], Tensor]:
        """Return what changes the images of a batch in an epoch, by random numbers of (seed, epoch)."""
        config = training.config
        size = train.image_size(epoch, config.epochs, config.sizes())
        entropy = np.random.SeedSequence([config.seed, epoch, 1]).generate_state(1, np.uint64)[0]
        generator = Generator().manual_seed(int(entropy) >> 1)  # 63 bits

        def changed(images: Tensor, target: Tensor) -> Tensor:
            if torch.rand((), generator=generator) < self.corrupt:
                images = corrupt_batch(images, generator)
            if self.adversarial:
                uniform = torch.rand(images.shape, generator=generator).to(images.device)
                images = attack(training, size, images, target, uniform, self.adversarial / 255)
            return images

        return changed


def main(argv: list[str] | None = None) -> int:
    """Train as the command line says; return the exit code."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--corrupt", type=float, default=0.0)
    parser.add_argument("--adversarial", type=float, default=0.0)
    ours, others = parser.parse_known_args(argv)
    if not 0 <= ours.corrupt <= 1 or not 0 <= ours.adversarial <= 255:
        raise UserError(
            "expected --corrupt P with P from 0 to 1, and --adversarial EPS from 0 to 255, in 1/255"
        )
    return train.main(others, Change(**vars(ours)))


if __name__ == "__main__":
    run_main(main)

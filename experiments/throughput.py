"""How much of the training time is the network's own, and how does it scale? Prints images/s and ratios.

    python experiments/throughput.py --steps 30 --rounds 5    width 64, shapes, no download
    torchrun --nproc-per-node 2 experiments/throughput.py     each batch shared by two devices

bare step: forward, backward, clipping and optimizer step on batches prepared beforehand. whole loop: an epoch
of train.py. DataLoader, in one process only: as many repositories train, with torchvision's transforms image
by image in workers, float32, channels first.

The three take turns, --steps batches in each round. The first round, which starts the workers, does not
count, and the medians of the others are compared.
"""

import statistics
import sys
import time
from collections.abc import Iterable
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader
from torchvision.transforms import v2

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from data import MEAN, STD, batches, make_shapes, to_input
from running.console import CommandLine, run_main
from running.device import autocast, world_size
from running.distributed import init_distributed, shard
from train import Config, Training, train_one_epoch

WORKERS = 2
AUGMENT = v2.Compose(
    [
        v2.RandomCrop(32, 4, padding_mode="reflect"),
        v2.RandomHorizontalFlip(),
        v2.ToDtype(torch.float32, scale=True),
        v2.Normalize(MEAN, STD),
    ]
)


def load_batch(images: Tensor, labels: Tensor, indices: list[int]) -> tuple[Tensor, Tensor]:
    """Return a batch of images that were cropped, flipped and normalised one by one, and its labels."""
    return torch.stack([AUGMENT(images[i]) for i in indices]), labels[indices]


def train_on(training: Training, prepared: Iterable, epoch: int) -> None:
    """Take a step on each batch as train_one_epoch does, without its schedule and its progress."""
    for x, target in prepared:
        with autocast(training.device, training.precision):
            logits = training.network(x.to(training.device)).float()
            loss = training.criterion(logits, target.to(training.device))
        training.optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(training.network.parameters(), training.config.clip_norm)
        training.optimizer.step()


@init_distributed()
def main() -> None:
    parser = CommandLine(__doc__)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()

    count = args.steps * args.batch_size
    config = partial(
        Config,
        batch_size=args.batch_size,
        epochs=10 * (args.rounds + 1),
        image_sizes="32",
        cutmix=0.5,
        device=args.device,
    )
    shapes, index = make_shapes(-(-count // 100), seed=0), torch.arange(count)
    training = Training(config(), shapes, index, index[:1])
    drawn = batches(training.images, training.targets, args.batch_size, 0, 0, cutmix_probability=0.5)
    prepared = [
        (to_input(shard(images).float() / 255, 32, training.normalize), shard(target))
        for images, target in drawn
    ]
    ways = {
        "bare step": partial(train_on, training, prepared),
        "whole loop": partial(train_one_epoch, training),
    }
    if world_size() == 1:
        plain = Training(config(precision="fp32"), shapes, index, index[:1])
        plain.network.to(memory_format=torch.contiguous_format)
        read = partial(load_batch, shapes.images, shapes.labels)
        workers = {"num_workers": WORKERS, "persistent_workers": True}
        loader = DataLoader(range(count), args.batch_size, shuffle=True, collate_fn=read, **workers)
        ways["DataLoader"] = partial(train_on, plain, loader)

    rates = {name: [] for name in ways}
    for epoch in range(1, args.rounds + 2):
        for name, way in ways.items():
            start = time.perf_counter()
            way(epoch)
            getattr(torch, training.device.type).synchronize()
            rates[name].append(count / (time.perf_counter() - start))

    print(f"{training.device}, {training.precision}, batch {args.batch_size}, ", end="")
    print(f"{world_size()} processes of {torch.get_num_threads()} threads")
    bare = statistics.median(rates["bare step"][1:])
    for name, (_, *values) in rates.items():  # without the first round
        rate = statistics.median(values)
        spread = f"{min(values):,.1f} to {max(values):,.1f}"
        print(f"{name:12}{rate:10,.1f} images/s ({spread})   {rate / bare:6.3f} of the bare step")


if __name__ == "__main__":
    run_main(main)

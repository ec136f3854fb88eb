"""How much of the training time is the network's own, and how does it scale? Prints images/s and ratios.

    python benchmarks/throughput.py --steps 30 --rounds 5    width 64, shapes set, no download
    torchrun --nproc-per-node 2 benchmarks/throughput.py     each batch shared by two devices

bare step: forward, backward, clipping and optimizer step on batches prepared beforehand. whole loop: an epoch
of train.py. DataLoader, in one process only: as many repositories train, with torchvision's transforms image
by image in workers, float32, channels first.

The three take turns, --steps batches in each round. The first round, which starts the workers, does not
count, and the medians of the others are compared, with several processes those of all together.
"""

import statistics
import time
from functools import partial

import torch
from loader import parse
from torch import nn
from torch.utils.data import DataLoader
from torchvision.transforms import v2

from data import MEAN, STD, batches, make_shapes, to_input
from running.console import run_main
from running.device import autocast, world_size
from running.distributed import init_distributed, shard
from train import Config, Training, train_one_epoch

AUGMENT = v2.Compose(
    [
        v2.RandomCrop(32, 4, padding_mode="reflect"),
        v2.RandomHorizontalFlip(),
        v2.ToDtype(torch.float32, scale=True),
        v2.Normalize(MEAN, STD),
    ]
)


def load_batch(images, labels, indices):
    """Return a batch of images that were cropped, flipped and normalised one by one, and its labels."""
    return torch.stack([AUGMENT(images[i]) for i in indices]), labels[indices]


def train_on(training, prepared, epoch):
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
def main():
    args = parse(__doc__, batch_size=128, steps=10, rounds=3, workers=2)
    count = args.steps * args.batch_size
    settings = {
        "batch_size": args.batch_size,
        "epochs": 10 * (args.rounds + 1),
        "image_sizes": "32",
        "cutmix": 0.5,
        # With several processes each takes its own device of this kind.
        "device": args.device.type if world_size() > 1 else str(args.device),
    }
    shapes, index = make_shapes(-(-count // 100), seed=0), torch.arange(count)
    training = Training(Config(**settings), shapes, index, index[:1])
    drawn = batches(training.images, training.targets, args.batch_size, 0, 0, cutmix_probability=0.5)
    prepared = [(to_input(shard(images)), shard(target)) for images, target in drawn]
    ways = {
        "bare step": partial(train_on, training, prepared),
        "whole loop": partial(train_one_epoch, training),
    }
    if world_size() == 1:
        plain = Training(Config(**settings, precision="fp32"), shapes, index, index[:1])
        plain.network.to(memory_format=torch.contiguous_format)
        read = partial(load_batch, shapes.images, shapes.labels)
        workers = {"num_workers": args.workers, "persistent_workers": True}
        loader = DataLoader(range(count), args.batch_size, shuffle=True, collate_fn=read, **workers)
        ways["DataLoader"] = partial(train_on, plain, loader)
    rates = {name: [] for name in ways}
    for epoch in range(1, args.rounds + 2):
        for name, way in ways.items():
            start = time.perf_counter()
            way(epoch)
            getattr(torch, args.device.type).synchronize()
            rates[name].append(count / (time.perf_counter() - start))

    print(f"{args.device}, {training.precision}, batch {args.batch_size}, {args.workers} workers, ", end="")
    print(f"{world_size()} processes of {torch.get_num_threads()} threads")
    bare = statistics.median(rates["bare step"][1:])
    for name, (_, *values) in rates.items():  # without the first round
        rate = statistics.median(values)
        spread = f"{min(values):,.1f} to {max(values):,.1f}"
        print(f"{name:12}{rate:10,.1f} images/s ({spread})   {rate / bare:6.3f} of the bare step")


if __name__ == "__main__":
    run_main(main)

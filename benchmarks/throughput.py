"""How much of the training time is the network's own, and how does it scale? Prints images/s and ratios.

    python benchmarks/throughput.py --steps 30 --rounds 5    width 64, shapes set, no download
    torchrun --nproc-per-node 2 benchmarks/throughput.py     each batch shared by two devices

bare step: forward, backward, clipping and optimizer step on batches prepared beforehand. whole loop: the same
with batches drawn, cropped, flipped, normalised and mixed as in train.py. DataLoader, in one process only:
as many repositories train, with torchvision's transforms image by image in workers, float32, channels first.

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

from data import MEAN, STD, batches, make_shapes, memory_format, to_input
from resnet_cifar import resnet18
from running.console import run_main
from running.device import autocast, pick_precision
from running.distributed import data_parallel, init_distributed, shard, world_size
from running.files import UserError
from train import Config, make_optimizer

STEPS = [v2.RandomCrop(32, 4, padding_mode="reflect"), v2.RandomHorizontalFlip()]
STEPS += [v2.ToDtype(torch.float32, scale=True), v2.Normalize(MEAN, STD)]


def load_batch(images, labels, indices):
    """Return a batch of images that were cropped, flipped and normalised one by one, and its labels."""
    return torch.stack([v2.Compose(STEPS)(images[i]) for i in indices]), labels[indices]


def make_step(width, device, memory_format, precision):
    """Return a function that takes one training step on a batch, as train.py does by default."""
    model = data_parallel(resnet18(100, width).to(device, memory_format=memory_format))
    optimizer = make_optimizer(model, 0.01, Config.momentum, Config.weight_decay)
    criterion = nn.CrossEntropyLoss(label_smoothing=Config.label_smoothing)

    def step(inputs, targets):
        with autocast(device, precision):
            loss = criterion(model(inputs).float(), targets)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), Config.clip_norm)
        optimizer.step()

    return step


@init_distributed()
def main():
    args = parse(__doc__, width=64, batch_size=128, steps=10, rounds=3, workers=2)
    if not 16 <= args.width <= 1024 or args.batch_size % world_size():
        raise UserError("expected --width 16 to 1024, and a --batch-size that all processes share equally")
    device, precision, batch_size = args.device, pick_precision("auto", args.device), args.batch_size
    count = args.steps * batch_size  # images of a round
    shapes = make_shapes(-(-count // 100), seed=0)
    images, labels = shapes.images[:count], shapes.labels[:count]
    on_device, targets = images.to(device), nn.functional.one_hot(labels, 100).float().to(device)

    def drawn(epoch):
        for x, y in batches(on_device, targets, batch_size, 0, epoch, cutmix_probability=0.5):
            yield to_input(shard(x)), shard(y)

    step, prepared = make_step(args.width, device, memory_format(device), precision), list(drawn(0))
    ways = {"bare step": (step, lambda epoch: prepared), "whole loop": (step, drawn)}
    if world_size() == 1:
        read = partial(load_batch, images, labels)
        workers = {"num_workers": args.workers, "persistent_workers": True}
        loader = DataLoader(range(count), batch_size, shuffle=True, collate_fn=read, **workers)
        plain_step = make_step(args.width, device, torch.contiguous_format, "fp32")
        ways["DataLoader"] = (plain_step, lambda epoch: loader)
    rates = {name: [] for name in ways}
    for epoch in range(args.rounds + 1):
        for name, (take_step, source) in ways.items():
            start = time.perf_counter()
            for x, y in source(epoch):
                take_step(x.to(device), y.to(device))
            getattr(torch, device.type).synchronize()
            rates[name].append(count / (time.perf_counter() - start))

    print(f"{device}, {precision}, width {args.width}, batch {batch_size}, {args.workers} workers, ", end="")
    print(f"{world_size()} processes of {torch.get_num_threads()} threads")
    bare = statistics.median(rates["bare step"][1:])
    for name, (_, *values) in rates.items():  # without the first round
        rate, spread = statistics.median(values), f"{min(values):,.1f} to {max(values):,.1f}"
        print(f"{name:12}{rate:10,.1f} images/s ({spread})   {rate / bare:6.3f} of the bare step")


if __name__ == "__main__":
    run_main(main)

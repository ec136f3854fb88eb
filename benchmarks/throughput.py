"""How much of the training time is the network's own, and how does it scale? Prints images/s and ratios.

    python benchmarks/throughput.py                     width 64, shapes set, no download
    python benchmarks/throughput.py --steps 30 --rounds 5
    torchrun --nproc-per-node 2 benchmarks/throughput.py     each batch shared by two devices

bare step    forward, backward, clipping and optimizer step on batches prepared beforehand
whole loop   the same with batches drawn, cropped, flipped, normalised, half of them with CutMix, as in
             train.py
DataLoader   the same network as many repositories train it: torchvision transforms image by image in worker
             processes, float32, channels first

The step has the same loss, clipping and optimizer in all three. Each round is one epoch of exactly --steps
batches, and the three take turns; the workers live through all rounds and start in the first, which is not
counted. The medians over the rounds are compared. With several processes the images/s are those of all
together, and the DataLoader is left out.
"""

import statistics
import sys
import time
from pathlib import Path

import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms import v2

sys.path.insert(0, str(Path(__file__).parent.parent))

from data import MEAN, STD, batches, make_shapes, to_input
from resnet_cifar import resnet18
from running.console import CommandLine, run_main
from running.device import autocast, pick_device, pick_precision
from running.distributed import data_parallel, init_distributed, shard, world_size
from train import Config, make_optimizer


class Transformed(Dataset):
    """Images that are cropped, flipped and normalised one by one."""

    def __init__(self, images, labels):
        self.images, self.labels = images, labels
        steps = [v2.RandomCrop(32, 4, padding_mode="reflect"), v2.RandomHorizontalFlip()]
        self.transform = v2.Compose([*steps, v2.ToDtype(torch.float32, scale=True), v2.Normalize(MEAN, STD)])

    def __len__(self):
        return len(self.labels)

    def __getitem__(self, i):
        return self.transform(self.images[i]), self.labels[i]


def make_step(width, device, memory_format, precision):
    """Return a function that takes one training step on a batch, as train.py does by default."""
    model = data_parallel(resnet18(100, width).to(device, memory_format=memory_format))
    optimizer = make_optimizer(model, 0.01, Config.momentum, Config.weight_decay)
    criterion = nn.CrossEntropyLoss(label_smoothing=Config.label_smoothing)
    scaler = torch.amp.GradScaler(device.type, enabled=precision == "fp16")

    def step(inputs, targets):
        with autocast(device, precision):
            loss = criterion(model(inputs).float(), targets)
        optimizer.zero_grad(set_to_none=True)
        scaler.scale(loss).backward()
        scaler.unscale_(optimizer)
        nn.utils.clip_grad_norm_(model.parameters(), Config.clip_norm)
        scaler.step(optimizer)
        scaler.update()

    return step


def measure():
    parser = CommandLine(description=__doc__)
    parser.add_argument("--width", type=int, default=64)
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--steps", type=int, default=10, help="of each kind in a round (default: 10)")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--workers", type=int, default=2, help="of the DataLoader (default: 2)")
    args = parser.parse_args()
    if min(args.batch_size, args.steps, args.rounds, args.width) < 1 or args.workers < 0:
        parser.error("expected counts of at least 1, --workers of at least 0")

    device = pick_device("auto")
    precision = pick_precision("auto", device)
    count = args.steps * args.batch_size  # of the images: those of a round, no more are drawn or decoded
    shapes = make_shapes(-(-count // 100), seed=0)
    cpu_images, cpu_labels = shapes.images[:count], shapes.labels[:count]
    images, targets = cpu_images.to(device), nn.functional.one_hot(cpu_labels.to(device), 100).float()
    step = make_step(args.width, device, torch.channels_last, precision)
    plain_step = make_step(args.width, device, torch.contiguous_format, "fp32")
    drawn = batches(images, targets, args.batch_size, 0, 0)
    prepared = [(to_input(shard(x)), shard(y)) for x, y in drawn]
    loader = DataLoader(
        Transformed(cpu_images, cpu_labels),
        args.batch_size,
        shuffle=True,
        num_workers=args.workers,
        persistent_workers=args.workers > 0,
    )

    def bare_step(epoch):
        for x, y in prepared:
            step(x, y)

    def whole_loop(epoch):
        for x, y in batches(images, targets, args.batch_size, 0, epoch, cutmix_probability=0.5):
            step(to_input(shard(x)), shard(y))

    def data_loader(epoch):
        for x, y in loader:
            plain_step(x.to(device), y.to(device))

    kinds = {"bare step": bare_step, "whole loop": whole_loop}
    if world_size() == 1:
        kinds["DataLoader"] = data_loader
    rates = {name: [] for name in kinds}
    for epoch in range(args.rounds + 1):
        for name, run in kinds.items():
            start = time.perf_counter()
            run(epoch)
            getattr(torch, device.type).synchronize()
            if epoch:  # the first round warms up
                rates[name].append(count / (time.perf_counter() - start))

    print(f"{device}, {precision}, width {args.width}, batch {args.batch_size}, ", end="")
    print(f"{torch.get_num_threads()} threads in each of {world_size()} processes, {args.workers} workers")
    for name, values in rates.items():
        rate = statistics.median(values)
        ratio = rate / statistics.median(rates["bare step"])
        spread = f"{min(values):,.1f} to {max(values):,.1f}"
        print(f"{name:12}{rate:10,.1f} images/s ({spread})   {ratio:6.3f} of the bare step")


def main():
    with init_distributed():
        measure()


if __name__ == "__main__":
    run_main(main)

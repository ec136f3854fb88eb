"""How much of the training time is the network's own, and how does it scale? Prints images/s and ratios.

    python benchmarks/throughput.py                     width 64, shapes set, no download
    python benchmarks/throughput.py --steps 30 --rounds 5
    torchrun --nproc-per-node 2 benchmarks/throughput.py     each batch shared by two devices

bare step    forward, backward and optimizer step on batches prepared beforehand
whole loop   the same with the batches drawn, cropped, flipped and normalised as train.py does
DataLoader   the same network as many repositories train it: torchvision transforms image by image in worker
             processes, float32, channels first

The three take turns, round by round, and the medians are compared. With several processes the images/s are
those of all together, and the DataLoader is left out.
"""

import argparse
import contextlib
import statistics
import sys
import time
from itertools import islice
from pathlib import Path

import torch
import torch.nn.functional as F
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms import v2

sys.path.insert(0, str(Path(__file__).parent.parent))

from data import MEAN, STD, batches, make_shapes, to_input
from resnet_cifar import resnet18
from running.device import autocast, pick_device, pick_precision
from running.distributed import data_parallel, joined, own_share, process_count
from train import make_optimizer


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


parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--width", type=int, default=64)
parser.add_argument("--batch-size", type=int, default=128)
parser.add_argument("--steps", type=int, default=10, help="of each kind in a round (default: 10)")
parser.add_argument("--rounds", type=int, default=3)
args = parser.parse_args()

processes = contextlib.ExitStack()
processes.enter_context(joined())
device = pick_device("auto")
precision = pick_precision("auto", device)
shapes = make_shapes(max(20, -(-args.batch_size * (args.steps + 1) // 100)), seed=0)
images, labels = shapes.images.to(device), shapes.labels.to(device)


def make_step(memory_format, precision):
    """Return a function that takes one training step on a batch."""
    model = data_parallel(resnet18(100, args.width).to(device, memory_format=memory_format))
    optimizer = make_optimizer(model, 0.01, 0.9, 5e-4)

    def step(inputs, targets):
        with autocast(device, precision):
            loss = F.cross_entropy(model(inputs).float(), targets, label_smoothing=0.1)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()

    return step


step = make_step(torch.channels_last, precision)
plain_step = make_step(torch.contiguous_format, "fp32")
prepared = [
    (to_input(own_share(x)), own_share(y))
    for x, y in islice(batches(images, labels, args.batch_size, 0, 0), min(4, args.steps))
]
loader = DataLoader(
    Transformed(shapes.images, shapes.labels), args.batch_size, shuffle=True, num_workers=2, drop_last=True
)


def bare(count):
    for i in range(count):
        step(*prepared[i % len(prepared)])


def whole_loop(count):
    for x, y in islice(batches(images, labels, args.batch_size, 0, 1), count):
        step(to_input(own_share(x)), own_share(y))


def data_loader(count):
    for x, y in islice(loader, count):
        plain_step(x.to(device), y.to(device))


kinds = {"bare step": bare, "whole loop": whole_loop}
if process_count() == 1:
    kinds["DataLoader"] = data_loader
seconds = {name: [] for name in kinds}
for round_number in range(args.rounds + 1):
    for name, run in kinds.items():
        start = time.perf_counter()
        run(args.steps if round_number else 2)  # round 0 warms up
        if device.type == "cuda":
            torch.cuda.synchronize()
        if round_number:
            seconds[name].append((time.perf_counter() - start) / args.steps)

median = {name: statistics.median(values) for name, values in seconds.items()}
print(f"{device}, {precision}, width {args.width}, batch {args.batch_size}", end=", ")
print(f"{torch.get_num_threads()} threads in each of {process_count()} processes")
for name, value in median.items():
    rate, ratio = args.batch_size / value, median["bare step"] / value
    spread = f"{args.batch_size / max(seconds[name]):,.1f} to {args.batch_size / min(seconds[name]):,.1f}"
    print(f"{name:12}{rate:10,.1f} images/s ({spread})   {ratio:6.3f} of the bare step")
processes.close()

"""Compare settings of the recipe on the validation split in minutes instead of hours.

    python benchmarks/recipes.py --weight-decay 1e-3
    python benchmarks/recipes.py --cutmix 0.5

A small copy of what train.py does: a network of width 32 on images of 16 pixels, 12,000 of them, for 18
epochs of batches of 64 at a peak learning rate of 0.1, on one thread, so that two settings can run side by
side on two cores. Its training accuracy ends about 20 points above its validation accuracy, much as that of
the full run, so it shows whether a setting fits so few epochs. Believe only differences of more than a point:
it is one seed.

Prints the accuracy on the 10,000 validation images, as small as those for training, after each epoch.
"""

import argparse
import math
import sys
import time
from pathlib import Path

import torch
import torch.nn.functional as F

sys.path.insert(0, str(Path(__file__).parent.parent))

from data import batches, load, split_indices, to_input
from metrics import accuracy
from resnet_cifar import resnet18
from runs import autocast, pick_precision
from train import make_optimizer, warmup_cosine

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--data-dir", default="data")
parser.add_argument("--limit-train", type=int, default=12_000)
parser.add_argument("--epochs", type=int, default=18)
parser.add_argument("--weight-decay", type=float, default=5e-4)
parser.add_argument("--cutout", type=int, default=0, help="side of the square, of 32 pixels")
parser.add_argument("--cutmix", type=float, default=0.0, help="share of the batches")
args = parser.parse_args()

torch.set_num_threads(1)
torch.manual_seed(0)
cpu, side, batch_size, peak_lr = torch.device("cpu"), 16, 64, 0.1
precision = pick_precision("auto", cpu)
train_set, _ = load("cifar100", args.data_dir)
train_index, val_index = split_indices(train_set, 0.2, 0)
train_index = train_index[: args.limit_train]
images, labels = train_set.images[train_index], train_set.labels[train_index]
val_labels = train_set.labels[val_index]


def small(batch):
    resized = F.interpolate(to_input(batch), (side, side), mode="bilinear", antialias=True)
    return resized.contiguous(memory_format=torch.channels_last)


val_inputs = [small(batch) for batch in train_set.images[val_index].split(500)]
model = resnet18(100, 32).to(memory_format=torch.channels_last)
optimizer = make_optimizer(model, peak_lr, 0.9, args.weight_decay)
steps, warmup = len(images) // batch_size, min(2, args.epochs / 5)  # that of train.py
generator = torch.Generator().manual_seed(1)
started = time.perf_counter()


def draw(high):
    return torch.randint(0, high, (), generator=generator).item()


for epoch in range(1, args.epochs + 1):
    model.train()
    correct = 0
    for i, (batch, targets) in enumerate(batches(images, labels, batch_size, 0, epoch)):
        for group in optimizer.param_groups:
            group["lr"] = warmup_cosine((epoch - 1) * steps + i, args.epochs * steps, warmup * steps, peak_lr)
        x, others, share = small(batch), targets, 1.0
        if args.cutout:  # DeVries and Taylor 2017 (arXiv 1708.04552): a square of the mean colour anywhere
            y0, x0 = (torch.randint(0, side, (len(x), 1, 1), generator=generator) for _ in range(2))
            size, index = args.cutout * side // 32, torch.arange(side)
            y0, x0 = y0 - size // 2, x0 - size // 2
            inside = (
                (index[:, None] >= y0) & (index[:, None] < y0 + size) & (index >= x0) & (index < x0 + size)
            )
            x = x.masked_fill(inside[:, None], 0.0)
        if args.cutmix and torch.rand((), generator=generator).item() < args.cutmix:
            # Yun et al. 2019 (arXiv 1905.04899), section 3.1: a rectangle from another image of the batch
            size = round(side * math.sqrt(1 - torch.rand((), generator=generator).item()))
            y0, x0 = draw(side) - size // 2, draw(side) - size // 2
            rows, columns = slice(max(0, y0), y0 + size), slice(max(0, x0), x0 + size)
            x, others = x.clone(memory_format=torch.channels_last), targets.flip(0)
            x[:, :, rows, columns] = x.flip(0)[:, :, rows, columns]
            share = 1 - x[0, 0, rows, columns].numel() / side**2
        with autocast(cpu, precision):
            logits = model(x).float()
        losses = [F.cross_entropy(logits, t, label_smoothing=0.1) for t in (targets, others)]
        loss = share * losses[0] + (1 - share) * losses[1]
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 5.0)
        optimizer.step()
        correct += (logits.argmax(dim=1) == targets).sum().item()
    model.eval()
    with torch.inference_mode(), autocast(cpu, precision):
        predicted = torch.cat([model(x).argmax(dim=1) for x in val_inputs])
    print(
        f"epoch {epoch:2d}/{args.epochs}  train {correct / (steps * batch_size):6.2%}  "
        f"val {accuracy(val_labels, predicted):6.2%}  {time.perf_counter() - started:.0f} s",
        flush=True,
    )

"""Train a ResNet-18 on CIFAR-100 (or the built-in shapes set), top to bottom.

    python train.py                                     CIFAR-100, the full recipe
    python train.py --dataset shapes --width 16         no download, minutes on a laptop
    python train.py --resume                            go on after an interruption

The recipe: SGD with Nesterov momentum, linear warmup then cosine annealing of the learning rate, label
smoothing, weight decay, gradient clipping, mixed precision, and early stopping on the validation accuracy.
"""

import argparse
import contextlib
import math
import os
import re
import shlex
import signal
import sys
import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from data import UserError, batches, cutmix, load, split_indices, to_input
from metrics import accuracy
from resnet_cifar import resnet18, zero_init_residual
from runs import (
    CommandLine,
    Progress,
    autocast,
    check_new_run,
    duration,
    environment,
    is_out_of_memory,
    load_last,
    lock_run,
    pick_device,
    pick_precision,
    read_config,
    remove_run,
    run_main,
    save_checkpoint,
    write_csv,
    write_json,
)

# Where and how fast it computes may change when a run is resumed; what it computes may not.
MAY_CHANGE = {"data_dir", "data_url", "out", "device", "precision", "compile", "resume", "overwrite"}


def option(name: str) -> str:
    """Return "batch_size" as "--batch-size"."""
    return "--" + name.replace("_", "-")


def settings(argv: list[str] | None = None) -> argparse.Namespace:
    """Parse and check the command line; with --resume the run's own settings are the defaults."""
    parser = CommandLine(description=__doc__)
    parser.add_argument("--dataset", choices=["cifar100", "shapes"], default="cifar100")
    parser.add_argument(
        "--data-dir", default="data", help="where CIFAR-100 lies or is downloaded to (default: data)"
    )
    parser.add_argument(
        "--data-url",
        metavar="URL",
        help="an address or a file to take it from, asked first where --data-dir holds none",
    )
    parser.add_argument("--out", help="the run folder (default: runs/<dataset>)")
    parser.add_argument("--epochs", type=int, default=40)
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--lr", type=float, default=0.15, help="peak learning rate (default: 0.15)")
    parser.add_argument("--momentum", type=float, default=0.9, help="Nesterov; 0 is plain SGD (default: 0.9)")
    parser.add_argument("--weight-decay", type=float, default=1e-3, help="on weights only (default: 1e-3)")
    parser.add_argument("--label-smoothing", type=float, default=0.1, help="0 switches it off (default: 0.1)")
    parser.add_argument("--warmup-epochs", type=float, help="default: 2, or a fifth of a run under 10 epochs")
    parser.add_argument(
        "--clip-norm", type=float, default=5.0, help="gradient norm; 0 is no clipping (default: 5)"
    )
    parser.add_argument(
        "--crop-padding", type=int, default=4, help="shift images by up to so many pixels (default: 4)"
    )
    parser.add_argument(
        "--image-sizes",
        default="24,28,32",
        metavar="S,S,...",
        help="in pixels, an equal share of the epochs each (default: 24,28,32)",
    )
    parser.add_argument(
        "--cutmix",
        type=float,
        default=0.0,
        help="share of the batches, but for the last tenth of the epochs (default: 0)",
    )
    parser.add_argument("--zero-init", action="store_true", help="start every residual block as the identity")
    parser.add_argument(
        "--patience",
        type=int,
        default=15,
        help="full-size epochs without a new best; 0 is no early stopping (default: 15)",
    )
    parser.add_argument(
        "--val-fraction", type=float, default=0.2, help="of the training images (default: 0.2)"
    )
    parser.add_argument(
        "--limit-train",
        type=int,
        metavar="N",
        help="train on N images only, and validate on fewer in proportion",
    )
    parser.add_argument("--width", type=int, default=64, help="channels of the first stage (default: 64)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="auto", help="auto, cuda, mps or cpu (default: auto)")
    parser.add_argument("--precision", choices=["auto", "fp32", "bf16", "fp16"], default="auto")
    parser.add_argument(
        "--compile",
        action=argparse.BooleanOptionalAction,
        default=False,
        help="torch.compile: for long runs on a GPU",
    )
    parser.add_argument("--resume", action="store_true", help="go on with the run in --out")
    parser.add_argument("--overwrite", action="store_true", help="delete the run in --out first")

    argv = sys.argv[1:] if argv is None else argv
    args = parser.parse_args(argv)
    args.out = args.out or f"runs/{args.dataset}"
    if args.resume and args.overwrite:
        raise UserError("--resume goes on with the run that --overwrite deletes: use one of them")
    if args.resume:
        # The settings of the run as options before those given now, which override them.
        saved = read_config(Path(args.out))["settings"]
        saved = {option(name): value for name, value in saved.items() if value is not None}
        before = [f"{name}={value}" for name, value in saved.items() if not isinstance(value, bool)]
        before += [name for name, value in saved.items() if value is True]
        args = parser.parse_args([*before, *argv, f"--out={args.out}"])

    if args.warmup_epochs is None:
        args.warmup_epochs = min(2.0, args.epochs / 5)
    for name, low, high in [
        ("epochs", 1, 100_000),
        ("batch_size", 2, 1_000_000),
        ("lr", 1e-9, 1000),
        ("momentum", 0, 0.99999),
        ("weight_decay", 0, 10),
        ("label_smoothing", 0, 0.999),
        ("warmup_epochs", 0, args.epochs),
        ("clip_norm", 0, 1e9),
        ("crop_padding", 0, 31),
        ("cutmix", 0, 1),
        ("patience", 0, 100_000),
        ("val_fraction", 0.001, 0.9),
        ("limit_train", 1, 1_000_000),
        # Below 16 channels oneDNN, PyTorch's CPU library, writes past its memory in the backward pass of 1x1
        # convolutions with stride 2: crashes or wrong gradients (uxlfoundation/oneDNN issue 6035).
        ("width", 16, 1024),
        ("seed", 0, 2**32 - 1),
    ]:
        value = getattr(args, name)
        if value is not None and not low <= value <= high:  # NaN fails too
            raise UserError(f"{option(name)} {value}: expected a number from {low} to {high}")
    if not re.fullmatch(r"\d+(,\d+)*", args.image_sizes) or not all(8 <= size <= 32 for size in sizes(args)):
        raise UserError(f"--image-sizes {args.image_sizes}: expected sizes from 8 to 32, such as 24,28,32")
    return args


def sizes(args: argparse.Namespace) -> list[int]:
    """Return --image-sizes "24,28,32" as [24, 28, 32]."""
    return [int(size) for size in args.image_sizes.split(",")]


def warmup_cosine(
    step: int, total_steps: int, warmup_steps: int, peak_lr: float, final_lr: float = 0.0
) -> float:
    """Return the learning rate of one step, counted from 0.

    Linear from 0 at step 0 to peak_lr at step warmup_steps (gradual warmup, Goyal et al. 2017, arXiv
    1706.02677, section 2.2; they start above 0), then half a cosine to final_lr at step total_steps and
    beyond (Loshchilov and Hutter 2017, arXiv 1608.03983, equation 5, without restarts). Raises ValueError
    unless step >= 0, total_steps > 0 and 0 <= warmup_steps <= total_steps.
    """
    if step < 0 or total_steps < 1 or not 0 <= warmup_steps <= total_steps:
        raise ValueError(f"no schedule: step {step}, total_steps {total_steps}, warmup_steps {warmup_steps}")
    if step < warmup_steps:
        return peak_lr * step / warmup_steps
    if step >= total_steps:
        return final_lr
    progress = (step - warmup_steps) / (total_steps - warmup_steps)
    return final_lr + (peak_lr - final_lr) * (1 + math.cos(math.pi * progress)) / 2


def image_size(epoch: int, epochs: int, sizes: list[int]) -> int:
    """Return the side in pixels of the training images in epoch 1..epochs.

    Progressive resizing: the first epochs, in which the network learns what is coarse, see smaller images, of
    which a step costs a fraction (Touvron et al. 2019, arXiv 1906.06423, section 3, for why the last ones
    must not: what is learned at one apparent size is worth less at another). Each size has an equal share of
    the epochs, and the last epoch always has the last size.
    """
    return sizes[-1 - (epochs - epoch) * len(sizes) // epochs]


def make_optimizer(model: nn.Module, lr: float, momentum: float, weight_decay: float) -> torch.optim.SGD:
    """SGD with Nesterov momentum (Sutskever et al. 2013), weight decay on the weights of layers only.

    Decaying a batch norm's scale or a bias does not make the function simpler; it only pulls the
    normalised activations towards zero (He et al. 2019, arXiv 1812.01187, section 3.1).

    What a step added is decayed away after about (1 - momentum) / (lr * weight_decay) more steps. With the
    usual 5e-4 that is 4 epochs at the peak rate, little of 200 epochs but much of 20; benchmarks/recipes.py
    shows what 1e-3 brings to a short run.
    """
    decay = [parameter for parameter in model.parameters() if parameter.ndim > 1]
    no_decay = [parameter for parameter in model.parameters() if parameter.ndim <= 1]
    groups = [{"params": decay, "weight_decay": weight_decay}, {"params": no_decay, "weight_decay": 0.0}]
    return torch.optim.SGD(groups, lr=lr, momentum=momentum, nesterov=momentum > 0)


@torch.inference_mode()
def predict(
    model: nn.Module,
    images: Tensor,
    device: torch.device,
    precision: str = "fp32",
    batch_size: int = 500,
    progress: Progress | None = None,
) -> Tensor:
    """Return the logits of uint8 images [N, 3, 32, 32], float32 [N, C] on the CPU, in eval mode."""
    training = model.training
    model.eval()
    logits = []
    try:
        for i in range(0, len(images), batch_size):
            with autocast(device, precision):
                logits.append(model(to_input(images[i : i + batch_size].to(device))).float())
            if progress:
                progress.update(min(i + batch_size, len(images)))
    finally:
        model.train(training)
    return torch.cat(logits).cpu()


def train(args: argparse.Namespace) -> int:
    """Train from the settings `args`; return the exit code."""
    out = Path(args.out)
    best_path, last_path = out / "checkpoints" / "best.pt", out / "checkpoints" / "last.pt"
    resumed = None
    if args.resume:
        resumed = load_last(out)
        saved = resumed["config"].get("settings", {})
        changed = [k for k, v in vars(args).items() if k not in MAY_CHANGE and saved.get(k, v) != v]
        if changed:
            before = ", ".join(f"{option(name)} {saved[name]}" for name in changed)
            raise UserError(f"{out} was started with {before}: resume it without changing that")
        if resumed["state"].get("finished"):
            print(f"{out} is finished after {resumed['epoch']} epochs; next comes report.py")
            return 0
    else:
        check_new_run(out, args.overwrite)

    torch.manual_seed(args.seed)
    torch.backends.cudnn.deterministic = True
    device = pick_device(args.device)
    precision = pick_precision(args.precision, device)

    # Data: the whole training split is one uint8 tensor on the device.
    train_set, _ = load(args.dataset, args.data_dir, args.data_url)
    train_index, val_index = split_indices(train_set, args.val_fraction, args.seed)
    if (args.limit_train or 0) > len(train_index):
        raise UserError(f"--limit-train {args.limit_train} is more than the {len(train_index)} images for it")
    if args.limit_train:
        num_val = round(args.limit_train * len(val_index) / len(train_index))
        train_index, val_index = train_index[: args.limit_train], val_index[: max(1, num_val)]
    if len(val_index) == 0:
        raise UserError(
            f"--val-fraction {args.val_fraction} leaves no validation image of {len(train_set.labels)}"
        )
    if len(train_index) < args.batch_size:
        raise UserError(f"--batch-size {args.batch_size} is more than the {len(train_index)} training images")
    images, labels = train_set.images[train_index].to(device), train_set.labels[train_index].to(device)
    val_images, val_labels = train_set.images[val_index], train_set.labels[val_index]

    model = resnet18(len(train_set.class_names), args.width)
    if args.zero_init:
        zero_init_residual(model)
    model = model.to(device, memory_format=torch.channels_last)
    optimizer = make_optimizer(model, args.lr, args.momentum, args.weight_decay)
    # float16 has no room for small gradients: the loss is multiplied by a scale that adapts itself.
    scaler = torch.amp.GradScaler(device.type, enabled=precision == "fp16")
    network = torch.compile(model) if args.compile else model
    steps_per_epoch = len(images) // args.batch_size
    total_steps = args.epochs * steps_per_epoch
    warmup_steps = round(args.warmup_epochs * steps_per_epoch)
    num_parameters = sum(parameter.numel() for parameter in model.parameters())

    config = {
        "settings": {k: v for k, v in vars(args).items() if k not in ("resume", "overwrite")},
        "dataset": args.dataset,
        "width": args.width,
        "provenance": train_set.provenance,
        "verified": train_set.verified,
        "digest": train_set.digest,
        "num_train": len(train_index),
        "num_val": len(val_index),
        "parameters": num_parameters,
        "device": str(device),
        "precision": precision,
        "environment": environment(device),
    }
    # What grows, and is saved with the weights. sums: loss, right answers and images of this epoch. No state
    # of a random generator is in it, because the batches follow from the seed, the epoch and the step.
    state = {"epoch": 0, "step": 0, "sums": [0.0, 0.0, 0.0], "seconds": 0.0, "finished": False}
    state |= {"best_accuracy": -1.0, "best_epoch": 0, "history": []}
    if resumed:
        before = resumed["config"]
        if before.get("digest") != train_set.digest:
            raise UserError(f"{out} is a run on {before.get('provenance')}; here is {train_set.provenance}")
        try:
            state = {key: resumed["state"][key] for key in state}
            model.load_state_dict(resumed["model"])
            optimizer.load_state_dict(resumed["optimizer"])
            if resumed["scaler"]:  # it is empty where the run was not in fp16
                scaler.load_state_dict(resumed["scaler"])
        except (KeyError, ValueError, RuntimeError) as error:
            raise UserError(f"{out} comes from another version of train.py ({error!r})") from None
    else:
        remove_run(out)
    write_json(out / "config.json", config)

    def checkpoint() -> dict:
        return {
            "model": model.state_dict(),
            "config": config,
            "epoch": state["epoch"],
            "class_names": train_set.class_names,
            "superclass_names": train_set.superclass_names,
            "superclass_of": train_set.superclass_of.tolist(),
            "val_accuracy": state["best_accuracy"],
        }

    def save_last() -> None:
        resume_needs = {"optimizer": optimizer.state_dict(), "scaler": scaler.state_dict(), "state": state}
        save_checkpoint(last_path, checkpoint() | resume_needs, previous=last_path.with_name("previous.pt"))

    def check_finite(*values: Tensor) -> None:
        # Gradients are not looked at: under fp16 some overflow, and the scaler skips that step by itself.
        if not all(value.isfinite().all() for value in values):
            progress.close()
            raise UserError(
                f"the loss is not finite in epoch {epoch}, step {state['step']}, at learning rate {lr:.4g}: "
                "try a lower --lr, a smaller --clip-norm or --precision fp32; older checkpoints are kept"
            )

    # Ctrl-C and SIGTERM let the step end, then everything is saved; a second one is not waited for.
    received = []

    def on_signal(number: int, frame) -> None:
        received.append(number)
        for kind in (signal.SIGINT, signal.SIGTERM):
            signal.signal(kind, signal.SIG_DFL)
        with contextlib.suppress(OSError):
            os.write(2, b"\nsaving after this step; once more to leave at once\n")

    for kind in (signal.SIGINT, signal.SIGTERM):
        signal.signal(kind, on_signal)

    print(f"data     {train_set.provenance}")
    print(f"         {len(train_index):,} images to train on, {len(val_index):,} to validate")
    print(f"network  ResNet-18, width {args.width}, {num_parameters:,} parameters")
    print(f"compute  {device}, {precision}, {torch.get_num_threads()} threads")
    if resumed:
        print(f"resumed  after {state['epoch']} epochs and {state['step']} of {steps_per_epoch} steps")
    else:
        save_last()  # so that from here on --resume has something to go on from

    sides = [image_size(epoch, args.epochs, sizes(args)) for epoch in range(1, args.epochs + 1)]
    while state["epoch"] < args.epochs:
        epoch, started, seconds_before = state["epoch"] + 1, time.perf_counter(), state["seconds"]
        sums = torch.tensor(
            state["sums"], device=device, dtype=torch.float64 if device.type != "mps" else None
        )
        network.train()
        progress = Progress(f"epoch {epoch}/{args.epochs}", steps_per_epoch)
        size = sides[epoch - 1]
        drawn = batches(images, labels, args.batch_size, args.seed, epoch, state["step"], args.crop_padding)
        for batch, targets in drawn:
            step = state["epoch"] * steps_per_epoch + state["step"]
            lr = warmup_cosine(step, total_steps, warmup_steps, args.lr)
            for group in optimizer.param_groups:
                group["lr"] = lr
            # In the last tenth of the epochs the images are whole, as those of validation are.
            own_share, draw = 1.0, np.random.default_rng([args.seed, epoch, state["step"]])
            if epoch <= 0.9 * args.epochs and draw.uniform() < args.cutmix:
                batch, own_share = cutmix(batch, draw)
            x = to_input(batch)
            if size < x.shape[-1]:
                x = F.interpolate(x, (size, size), mode="bilinear", antialias=True)
            with autocast(device, precision):
                logits = network(x).float()
                loss = F.cross_entropy(logits, targets, label_smoothing=args.label_smoothing)
                if own_share < 1:
                    other = F.cross_entropy(logits, targets.flip(0), label_smoothing=args.label_smoothing)
                    loss = own_share * loss + (1 - own_share) * other
            optimizer.zero_grad(set_to_none=True)
            scaler.scale(loss).backward()
            if args.clip_norm:
                scaler.unscale_(optimizer)  # the norm to clip is that of the gradient, not of the scaled one
                nn.utils.clip_grad_norm_(model.parameters(), args.clip_norm)
            scaler.step(optimizer)
            scaler.update()
            state["step"] += 1
            with torch.no_grad():
                correct = (logits.argmax(dim=1) == targets).sum()
                sums += torch.stack([loss * len(targets), correct, torch.full_like(loss, len(targets))])
            # Reading a value waits for the GPU, so there it is done at every tenth step only.
            if device.type == "cpu" or state["step"] % 10 == 0 or state["step"] == steps_per_epoch:
                check_finite(sums)
                loss_sum, num_correct, count = sums.tolist()
                progress.update(
                    state["step"],
                    loss=f"{loss_sum / count:.3f}",
                    accuracy=f"{num_correct / count:.1%}",
                    lr=f"{lr:.3g}",
                    rate=f"{count / (seconds_before + time.perf_counter() - started):,.0f} images/s",
                )
            if received:
                break
        state["sums"], state["seconds"] = sums.tolist(), seconds_before + time.perf_counter() - started
        lr = optimizer.param_groups[0]["lr"]

        progress.close()
        progress, val_logits = Progress("validation", len(val_images)), []
        for i in range(0, len(val_images), 500):
            if received:
                break
            progress.update(i)
            val_logits.append(predict(network, val_images[i : i + 500], device, precision))
        progress.close()
        check_finite(sums, *val_logits, *model.state_dict().values())
        if received:
            save_last()
            done = f"epoch {epoch}, step {state['step']} of {steps_per_epoch}"
            print(f"stopped in {done}; go on with: python train.py --resume --out {shlex.quote(args.out)}")
            return 128 + received[0]

        val_logits = torch.cat(val_logits)
        val_accuracy = accuracy(val_labels, val_logits.argmax(dim=1))
        val_loss = F.cross_entropy(val_logits, val_labels, label_smoothing=args.label_smoothing).item()
        loss_sum, num_correct, count = state["sums"]
        train_seconds, total_seconds = state["seconds"], seconds_before + time.perf_counter() - started
        state["history"].append(
            {
                "epoch": epoch,
                "image_size": size,
                "lr": lr,
                "train_loss": loss_sum / count,
                "train_accuracy": num_correct / count,
                "val_loss": val_loss,
                "val_accuracy": val_accuracy,
                "seconds": round(total_seconds, 2),
                "images_per_second": round(count / train_seconds, 1),
            }
        )
        improved = val_accuracy > state["best_accuracy"]
        if improved:
            state |= {"best_accuracy": val_accuracy, "best_epoch": epoch}
        state |= {"epoch": epoch, "step": 0, "sums": [0.0, 0.0, 0.0], "seconds": 0.0}
        # Patience begins with images of the last size: before, validation images look unlike those of
        # training, and an accuracy that stands still says little.
        stale = epoch - max(state["best_epoch"], sides.index(sides[-1]))
        stopping = bool(args.patience) and stale >= args.patience
        state["finished"] = stopping or epoch == args.epochs
        # last.pt comes last: killed before it, a resumed run repeats the epoch and writes the same again.
        if improved:
            # With the validation logits report.py fits a temperature without another pass over the images.
            validation = {"val_logits": val_logits.half(), "val_labels": val_labels}
            save_checkpoint(best_path, checkpoint() | validation)
        write_csv(out / "logs" / "history.csv", state["history"])
        save_last()
        # With validation and what smaller images waste, the time of an epoch grows about with their side.
        left = sum(row["seconds"] for row in state["history"]) * sum(sides[epoch:]) / sum(sides[:epoch])
        print(
            f"epoch {epoch:3d}/{args.epochs}  lr {lr:.4f}  "
            f"train loss {loss_sum / count:.3f} acc {num_correct / count:6.2%}  "
            f"val loss {val_loss:.3f} acc {val_accuracy:6.2%}{' *' if improved else '  '}  "
            f"{count / train_seconds:,.0f} images/s  {duration(total_seconds)}, {duration(left)} left"
        )
        if stopping:
            print(f"stopped early: no better validation accuracy in {stale} epochs")
            break

    print(f"best     validation accuracy {state['best_accuracy']:.2%} after epoch {state['best_epoch']}")
    print(f"saved    {best_path}")
    print(f"next     python report.py --run {shlex.quote(args.out)}")
    return 0


def main(argv: list[str] | None = None) -> int:
    """Train as the command line says; return the exit code."""
    args = settings(argv)
    with lock_run(Path(args.out)):
        try:
            return train(args)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            raise UserError(
                f"out of memory with --batch-size {args.batch_size}: free some and go on with --resume, or "
                f"start a new run with --batch-size {max(2, args.batch_size // 2)}"
            ) from None


if __name__ == "__main__":
    run_main(main)

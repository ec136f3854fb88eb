"""Train a ResNet-18 on CIFAR-100 (or on the built-in shapes), top to bottom.

    python train.py                                     CIFAR-100, the full recipe
    python train.py --dataset shapes --width 16         no download, minutes on a laptop
    python train.py --resume                            continue after the last finished epoch
    torchrun --nproc-per-node 2 train.py                on two GPUs, see running/distributed.py

The recipe: SGD with Nesterov momentum, linear warmup then cosine annealing of the learning rate, label
smoothing, weight decay, CutMix, gradient clipping, mixed precision, and early stopping on the validation
accuracy.
"""

import contextlib
import math
import re
import shlex
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from data import Dataset, batches, has_cifar100, load, split_indices, to_input
from metrics import accuracy
from resnet_cifar import ResNet, resnet18
from running import console, distributed
from running.check import check_weights
from running.console import CommandLine, Progress, duration, option, run_main, setting
from running.device import advice_on, autocast, environment, pick_device, pick_precision
from running.distributed import rank, shard, world_size
from running.files import UserError, write_csv, write_json
from running.folder import (
    check_new_run,
    load_checkpoint,
    load_optimizer,
    lock_run,
    read_config,
    remove_run,
    save_checkpoint,
)


@dataclass
class Config:
    """Each setting with its default, its help and its range, from which the options follow."""

    dataset: str = setting("cifar100", "what to train on", choices=("cifar100", "shapes"))
    data_dir: str = setting("data", "folder with CIFAR-100, or to download it to")
    data_url: str | None = setting(None, "address or file of CIFAR-100, if not in --data-dir", metavar="URL")
    out: str | None = setting(None, "run folder (default: runs/<dataset>)")
    epochs: int = setting(40, "passes over the training images", 1, 100_000)
    batch_size: int = setting(128, "images in a step", 2, 1_000_000)
    lr: float = setting(0.15, "peak learning rate", 1e-9, 1000)
    momentum: float = setting(0.9, "Nesterov momentum; 0 is plain SGD", 0, 0.99999)
    weight_decay: float = setting(1e-3, "weight decay, not on biases and batch norm", 0, 10)
    label_smoothing: float = setting(0.1, "label smoothing; 0 turns it off", 0, 0.999)
    warmup_epochs: float | None = setting(None, "linear warmup; default: 2, or a fifth of --epochs if less")
    clip_norm: float = setting(5.0, "largest norm of the gradient; 0 is no clipping", 0, 1e9)
    image_sizes: str = setting("24,28,32", "in pixels, each for an equal share of the epochs", metavar="S,..")
    cutmix: float | None = setting(
        None, "share of the batches to mix by CutMix; default: 0.5, for shapes 0", 0, 1
    )
    patience: int | None = setting(
        None, "full-size epochs without a new best; 0: no limit; default: epochs / 8, at least 5", 0, 100_000
    )
    val_fraction: float = setting(0.2, "share of the training images held out for validation", 0.001, 0.9)
    limit_train: int | None = setting(None, "train on N images only", 1, 1_000_000, metavar="N")
    # Below 16 channels oneDNN on the CPU crashes or gives wrong gradients (uxlfoundation/oneDNN issue 6035).
    width: int = setting(64, "channels of the first stage", 16, 1024)
    seed: int = setting(0, "decides the split, the initial weights and the batches", 0, 2**32 - 1)
    device: str = setting("auto", "where to compute: auto, cuda, mps or cpu")
    precision: str = setting(
        "auto", "number format of the forward pass", choices=("auto", "fp32", "bf16", "fp16")
    )
    compile: bool = setting(False, "use torch.compile, for long runs on a GPU")

    def sizes(self) -> list[int]:
        """Return image_sizes "24,28,32" as [24, 28, 32]."""
        return [int(size) for size in self.image_sizes.split(",")]


# Resuming may change where, how fast and how precisely a run computes, and nothing else.
MAY_CHANGE = {"data_dir", "data_url", "out", "device", "precision", "compile"}


def read_settings(argv: list[str] | None = None) -> tuple[Config, bool, bool]:
    """Return the checked settings, whether to resume the run in --out, and whether to overwrite it.

    A resumed run has the settings that it saved, overlaid with those given on the command line.
    """
    parser = CommandLine(description=__doc__)
    console.add_options(parser, Config)
    parser.add_argument("--resume", action="store_true", help="continue the run in --out")
    parser.add_argument("--overwrite", action="store_true", help="delete the run in --out first")
    given = vars(parser.parse_args(argv))
    resume, overwrite = given.pop("resume"), given.pop("overwrite")
    if resume and overwrite:
        raise UserError("--resume continues the run that --overwrite deletes: use one of them")

    given.setdefault("out", f"runs/{given.get('dataset', Config.dataset)}")
    saved = read_config(Path(given["out"]))["settings"] if resume else {}
    if resume and saved.keys() != asdict(Config()).keys():
        raise UserError(f"{given['out']} was started by another version of train.py: resume it with that one")
    settings = Config(**(saved | given))
    console.check_settings(settings)
    if settings.warmup_epochs is None:
        settings.warmup_epochs = min(2.0, settings.epochs / 5)
    if settings.cutmix is None:
        settings.cutmix = 0.5 if settings.dataset == "cifar100" else 0.0
    if settings.patience is None:
        settings.patience = max(5, settings.epochs // 8)
    console.check_range("warmup_epochs", settings.warmup_epochs, 0, settings.epochs)
    sides = settings.image_sizes
    if not re.fullmatch(r"\d+(,\d+)*", sides) or not all(8 <= size <= 32 for size in settings.sizes()):
        raise UserError(f"--image-sizes {sides}: expected sizes from 8 to 32, such as 24,28,32")
    if settings.batch_size % world_size() or settings.batch_size < 2 * world_size():
        needed = f"a multiple of the {world_size()} processes, two images or more for each"
        raise UserError(f"--batch-size {settings.batch_size}: expected {needed}")
    return settings, resume, overwrite


def load_split(settings: Config) -> tuple[Dataset, Tensor, Tensor]:
    """Return the training set and, as indices into it, the images to train on and those to validate on."""
    dataset, _ = load(settings.dataset, settings.data_dir, settings.data_url)
    train_index, val_index = split_indices(dataset, settings.val_fraction, settings.seed)
    limit, available = settings.limit_train or len(train_index), len(train_index)
    if limit > available:
        raise UserError(f"--limit-train {limit} is more than the {available} images available for training")
    if limit < settings.batch_size:
        raise UserError(f"--batch-size {settings.batch_size} is more than the {limit} training images")
    if len(val_index) == 0:
        raise UserError(f"--val-fraction {settings.val_fraction} leaves no validation image of {available}")
    num_val = max(1, round(limit * len(val_index) / available))
    return dataset, train_index[:limit], val_index[:num_val]


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

    Progressive resizing: the first epochs learn coarse features, for which smaller and so cheaper images will
    do. The last epochs need the full size, because what is learned at one apparent size of objects is worth
    less at another (Touvron et al. 2019, arXiv 1906.06423, section 3). Each size has an equal share of the
    epochs, and the last epoch always has the last size.
    """
    steps_back = (epochs - epoch) * len(sizes) // epochs  # 0 for the last size, 1 for the one before it
    return sizes[-1 - steps_back]


def last_cutmix_epoch(epochs: int) -> int:
    """Return the last epoch with CutMix; the last tenth has whole images, as those of the test split are."""
    return int(0.9 * epochs)


def make_optimizer(model: nn.Module, lr: float, momentum: float, weight_decay: float) -> torch.optim.SGD:
    """Return SGD with Nesterov momentum (Sutskever et al. 2013) and weight decay on the weights of layers.

    Biases and batch norm are not decayed (He et al. 2019, arXiv 1812.01187, section 3.1). Smaller weights in
    a convolution do not change the function, as batch norm follows it; but the larger they are, the less a
    step turns them, and decay keeps them from growing (van Laarhoven 2017, arXiv 1706.05350). Each step
    shrinks the weights by about the fraction lr * weight_decay / (1 - momentum), so a shorter run needs a
    stronger decay.
    """
    decay = [parameter for parameter in model.parameters() if parameter.ndim > 1]
    no_decay = [parameter for parameter in model.parameters() if parameter.ndim <= 1]
    groups = [{"params": decay, "weight_decay": weight_decay}, {"params": no_decay, "weight_decay": 0.0}]
    return torch.optim.SGD(groups, lr=lr, momentum=momentum, nesterov=momentum > 0)


def check_finite(epoch: int, step: int, lr: float, *values: Tensor) -> None:
    """Raise UserError if a value is not finite."""
    if not all(value.isfinite().all() for value in values):
        advice = "try a lower --lr, a smaller --clip-norm or --precision fp32; earlier checkpoints are kept"
        where = f"in epoch {epoch}, step {step}, at learning rate {lr:.4g}"
        raise UserError(f"the loss is not finite {where}: {advice}")


def train_one_epoch(network, optimizer, scaler, images, targets, epoch, precision, settings) -> dict:
    """Train the network once on the images; return the row of this epoch, counted from 1.

    images uint8 [N, 3, 32, 32]; targets float32 [N, C], 1 for the class of each image. The images left over
    from whole batches, other ones in each epoch, are not used. The row holds epoch, image_size, lr (of the
    last step), and the means train_loss and train_accuracy, in [0, 1]. Where CutMix mixed two images, an
    answer counts as right if it is the class of the larger part. Raises UserError if the loss is not finite.
    """
    device, steps = images.device, len(images) // settings.batch_size
    total_steps, warmup_steps = settings.epochs * steps, round(settings.warmup_epochs * steps)
    size = image_size(epoch, settings.epochs, settings.sizes())
    # CutMix keeps the network from learning its images by heart: +2.1 points on the validation split in one
    # run of 32 epochs of 20,000 images of 16 pixels. In 20 epochs of all images, which are too few for that,
    # it cost 1.3 points there; see results/README.md.
    cutmix_share = settings.cutmix if epoch <= last_cutmix_epoch(settings.epochs) else 0.0
    criterion = nn.CrossEntropyLoss(label_smoothing=settings.label_smoothing)
    # Of the loss and of the right answers; MPS has no float64.
    sums = torch.zeros(2, device=device, dtype=torch.float32 if device.type == "mps" else torch.float64)
    network.train()
    with Progress(f"epoch {epoch}/{settings.epochs}", steps) as progress:
        drawn = batches(images, targets, settings.batch_size, settings.seed, epoch, cutmix_share)
        for step, (batch, target) in enumerate(drawn):
            # Data: shuffled, cropped and flipped images, of which each process takes its share.
            batch, target = shard(batch), shard(target)
            x = to_input(batch, size)

            # Schedule: every step has its own learning rate.
            lr = warmup_cosine((epoch - 1) * steps + step, total_steps, warmup_steps, settings.lr)
            for group in optimizer.param_groups:
                group["lr"] = lr

            # Forward and loss.
            with autocast(device, precision):
                logits = network(x).float()
                loss = criterion(logits, target)

            # Backward, clip, step. The norm to clip is that of the gradient, not of the scaled one.
            optimizer.zero_grad(set_to_none=True)
            scaler.scale(loss).backward()
            if settings.clip_norm:
                scaler.unscale_(optimizer)
                nn.utils.clip_grad_norm_(network.parameters(), settings.clip_norm)
            scaler.step(optimizer)
            scaler.update()

            right = logits.argmax(dim=1) == target.argmax(dim=1)
            sums += torch.stack([loss.detach() * len(target), right.sum()])
            # On a GPU, reading a value makes the program wait, so there it is read at every tenth step only.
            if device.type == "cpu" or (step + 1) % 10 == 0 or step + 1 == steps:
                totals = distributed.all_reduce(sums)
                check_finite(epoch, step + 1, lr, totals)
                mean_loss, correct = (totals / ((step + 1) * settings.batch_size)).tolist()
                progress.update(step + 1, loss=f"{mean_loss:.3f}", accuracy=f"{correct:.1%}")
    return {"epoch": epoch, "image_size": size, "lr": lr, "train_loss": mean_loss, "train_accuracy": correct}


@torch.inference_mode()
def predict(
    model: nn.Module,
    images: Tensor,
    device: torch.device,
    precision: str = "fp32",
    image_size: int = 32,
    batch_size: int = 100,
    progress: Progress | None = None,
) -> Tensor:
    """Return the logits of uint8 images [N, 3, 32, 32], float32 [N, C] on the CPU, computed in eval mode.

    The images are resized to image_size, the last size of the training (`image_size` in its config). Batches
    of 100 stay in the cache of a CPU.
    """
    training = model.training
    model.eval()
    logits = []
    try:
        for i in range(0, max(len(images), 1), batch_size):  # no images give logits [0, C]
            with autocast(device, precision):
                logits.append(model(to_input(images[i : i + batch_size].to(device), image_size)).float())
            if progress:
                progress.update(min(i + batch_size, len(images)))
    finally:
        model.train(training)
    return torch.cat(logits).cpu()


def best_row(history: list[dict]) -> dict:
    """Return the row with the highest validation accuracy, the first of equal ones."""
    return max(history, key=lambda row: row["val_accuracy"])


def should_stop(history: list[dict], settings: Config) -> bool:
    """Return whether all epochs have ended, or early stopping has ended the run.

    Early stopping counts the epochs at the last image size that came after the best epoch. At smaller sizes
    the validation images look unlike those of training, and an accuracy that stands still says little.
    """
    after_best = history[history.index(best_row(history)) + 1 :] if history else []
    without_best = sum(row["image_size"] == settings.sizes()[-1] for row in after_best)
    return len(history) >= settings.epochs or 0 < settings.patience <= without_best


def fit(settings: Config, last: dict | None = None) -> None:
    """Train epoch by epoch as the settings say; `last` is the checkpoint of a run that is resumed."""
    run = Path(settings.out)
    torch.manual_seed(settings.seed)
    torch.backends.cudnn.deterministic = True
    device = pick_device(settings.device)
    precision = pick_precision(settings.precision, device)

    # Data: all images to train on are one uint8 tensor on the device.
    with distributed.rank_0_first():
        dataset, train_index, val_index = load_split(settings)
    images, labels = dataset.images[train_index].to(device), dataset.labels[train_index].to(device)
    targets = nn.functional.one_hot(labels, len(dataset.class_names)).float()
    val_images, val_labels = dataset.images[val_index], dataset.labels[val_index]
    steps = len(images) // settings.batch_size

    model = resnet18(len(dataset.class_names), settings.width)
    model = model.to(device, memory_format=torch.channels_last)
    network = distributed.data_parallel(model)
    network = torch.compile(network) if settings.compile else network
    optimizer = make_optimizer(model, settings.lr, settings.momentum, settings.weight_decay)
    # Small gradients would be 0 in float16, so the loss is multiplied by a scale that adapts itself.
    scaler = torch.amp.GradScaler(device.type, enabled=precision == "fp16")
    history = restore(last, dataset, model, optimizer, scaler) if last else []

    config = {
        "settings": asdict(settings),
        "dataset": settings.dataset,
        "width": settings.width,
        "image_size": settings.sizes()[-1],
        "provenance": dataset.provenance,
        "verified": dataset.verified,
        "digest": dataset.digest,
        "num_train": len(images),
        "num_val": len(val_images),
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "device": str(device),
        "precision": precision,
        "environment": environment(device),
    }
    if rank() == 0:
        if not last:
            remove_run(run)
        write_json(run / "config.json", config)
    print(f"data     {dataset.provenance}")
    print(f"         {len(images):,} images to train on, {len(val_images):,} to validate")
    print(f"network  ResNet-18, width {settings.width}, {config['parameters']:,} parameters")
    shared = f" in each of {world_size()} processes" if world_size() > 1 else ""
    print(f"compute  {device}, {precision}, {torch.get_num_threads()} threads{shared}")

    while not should_stop(history, settings):
        epoch, started = len(history) + 1, time.perf_counter()
        row = train_one_epoch(network, optimizer, scaler, images, targets, epoch, precision, settings)
        train_seconds = time.perf_counter() - started
        distributed.average_running_statistics(model)

        # Validate.
        share = shard(val_images)
        with Progress("validation", len(share)) as progress:
            val_logits = predict(network, share, device, precision, config["image_size"], progress=progress)
        val_logits = distributed.all_gather(val_logits)
        check_finite(epoch, steps, row["lr"], val_logits, *model.state_dict().values())
        criterion = nn.CrossEntropyLoss(label_smoothing=settings.label_smoothing)
        row["val_loss"] = criterion(val_logits, val_labels).item()
        row["val_accuracy"] = accuracy(val_labels, val_logits.argmax(dim=1))
        row["seconds"] = round(time.perf_counter() - started, 2)
        row["images_per_second"] = round(steps * settings.batch_size / train_seconds, 1)
        history.append(row)
        best = best_row(history)
        if rank() > 0:
            continue

        # Checkpoint. last.pt is written last: if the run is killed before that, --resume repeats this epoch
        # with the same batches.
        checkpoint = {
            "model": model.state_dict(),
            "config": config,
            "epoch": epoch,
            "class_names": dataset.class_names,
            "superclass_names": dataset.superclass_names,
            "superclass_of": dataset.superclass_of.tolist(),
            "val_accuracy": best["val_accuracy"],
            "history": history,
        }
        if row is best:
            # With the validation logits report.py fits a temperature without another pass over the images.
            # After an unstable first epoch they may exceed 65,504, the largest float16.
            validation = {"val_logits": val_logits.clamp(-6e4, 6e4).half(), "val_labels": val_labels}
            save_checkpoint(run / "checkpoints" / "best.pt", checkpoint | validation)
        write_csv(run / "logs" / "history.csv", history)
        to_resume = {"optimizer": optimizer.state_dict(), "scaler": scaler.state_dict()}
        save_checkpoint(run / "checkpoints" / "last.pt", checkpoint | to_resume)
        print(
            f"epoch {epoch:3d}/{settings.epochs}  lr {row['lr']:.4f}  "
            f"train loss {row['train_loss']:.3f} acc {row['train_accuracy']:6.2%}  "
            f"val loss {row['val_loss']:.3f} acc {row['val_accuracy']:6.2%}{' *' if row is best else '  '}  "
            f"{duration(row['seconds'])}, about {duration((settings.epochs - epoch) * row['seconds'])} left"
        )

    if len(history) < settings.epochs:
        print(f"stopped early: no better validation accuracy in {settings.patience} full-size epochs")
    print(f"best     validation accuracy {best['val_accuracy']:.2%} after epoch {best['epoch']}")
    print(f"saved    {run / 'checkpoints' / 'best.pt'}")
    print(f"next     python report.py --run {shlex.quote(settings.out)}")


def restore(last, dataset, model, optimizer, scaler) -> list[dict]:
    """Load the state in the checkpoint `last` into model, optimizer and scaler; return the history."""
    if last["config"]["digest"] != dataset.digest:
        before = last["config"]["provenance"]
        raise UserError(f"the run was trained on {before}, but the data found are {dataset.provenance}")
    model.load_state_dict(last["model"])
    load_optimizer(optimizer, last["optimizer"])
    if last["scaler"]:  # it is empty if the run was not in float16
        scaler.load_state_dict(last["scaler"])
    print(f"resumed  after {last['epoch']} epochs")
    return last["history"]


def load_last(settings: Config) -> dict:
    """Return last.pt of the run in --out; raise UserError if there is none or it has other settings."""
    run, path = settings.out, Path(settings.out) / "checkpoints" / "last.pt"
    if not path.exists():
        raise UserError(f"{run} has no finished epoch to resume: start it again with --overwrite instead")
    _, last = load_model(path, torch.device("cpu"), resuming=True)
    saved, now = last["config"]["settings"], asdict(settings)
    changed = [name for name in now if name not in MAY_CHANGE and saved.get(name) != now[name]]
    if changed:
        before = ", ".join(f"{option(name)} {saved.get(name)}" for name in changed)
        raise UserError(f"{run} was started with {before}: resume it without changing that")
    return last


def load_model(path: Path | str, device: torch.device, resuming: bool = False) -> tuple[ResNet, dict]:
    """Return the network of a checkpoint, in eval mode, float32 and channels last, and the checkpoint itself.

    Raises UserError if the file is damaged or incomplete, or the weights do not fit the network.
    """
    checkpoint = load_checkpoint(path, resuming)
    weights, config, num_classes = checkpoint["model"], checkpoint["config"], len(checkpoint["class_names"])
    width = config["width"]
    with torch.device("meta"):  # shapes without memory
        expected = resnet18(num_classes, width).state_dict()
    check_weights(weights, expected, f"a ResNet-18 of width {width} for {num_classes} classes", path)
    model = resnet18(num_classes, width)
    model.load_state_dict(weights)
    return model.to(device, memory_format=torch.channels_last).eval(), checkpoint


def load_data(path: Path | str, checkpoint: dict, data_dir: str | None) -> tuple[Dataset, Dataset]:
    """Return the training and the test set for the network of the checkpoint, which was read from `path`.

    CIFAR-100 is read from `data_dir`; without one, from that of the training if CIFAR-100 is there, else from
    data/. Raises UserError for other classes.
    """
    config = checkpoint["config"]
    if data_dir is None:
        saved = config.get("settings", {}).get("data_dir", "")
        data_dir = saved if saved and has_cifar100(saved) else Config.data_dir
    splits = load(config["dataset"], data_dir)
    if splits[1].class_names != checkpoint["class_names"]:
        raise UserError(f"the classes of {path} are not those of the {splits[1].name} test set")
    return splits


def begin_or_resume(settings: Config, resume: bool, overwrite: bool) -> None:
    """Train in the run folder --out, of which process 0 holds the lock."""
    run = Path(settings.out)
    with lock_run(run, training=True) if rank() == 0 else contextlib.nullcontext():
        last = load_last(settings) if resume else None
        if not resume and rank() == 0:
            check_new_run(run, overwrite)
        if last and should_stop(last["history"], settings):
            print(f"{run} is finished after {last['epoch']} epochs; next comes report.py")
        else:
            fit(settings, last)


def main(argv: list[str] | None = None) -> int:
    """Train as the command line says; return the exit code."""
    settings = None
    try:
        with distributed.init_distributed():
            settings, resume, overwrite = read_settings(argv)
            begin_or_resume(settings, resume, overwrite)
        return 0
    except KeyboardInterrupt:
        if not settings or not (Path(settings.out) / "checkpoints" / "last.pt").exists():
            raise
        print(f"interrupted; resume with: python train.py --resume --out {shlex.quote(settings.out)}")
        return 130
    except (RuntimeError, MemoryError) as error:
        advice = advice_on(error, settings.batch_size, settings.width) if settings else None
        if advice is None:
            raise
        raise UserError(advice) from None


if __name__ == "__main__":
    run_main(main)

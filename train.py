"""Train a ResNet-18 on CIFAR-100 (or on the built-in shapes), top to bottom.

    python train.py                                     CIFAR-100, the full recipe
    python train.py --dataset shapes                    a demonstration without download, minutes on a laptop
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
from dataclasses import asdict, dataclass, fields
from pathlib import Path

import torch
from torch import Tensor, nn

from data import Dataset, batches, has_cifar100, load, memory_format, split_indices, to_input
from metrics import accuracy, fit_temperature
from resnet_cifar import ResNet, resnet18
from running import console, distributed
from running.console import Progress, duration, expect, setting
from running.device import advice_on, autocast, environment, pick_device, pick_precision
from running.distributed import rank, shard, world_size
from running.files import UserError, one_line, usable, write_csv, write_json
from running.folder import check_new_run, load_checkpoint, lock_run, remove_run, save_checkpoint


@dataclass
class Config:
    """Each setting with its default, its help, and its range, outside of which a value is a UserError."""

    dataset: str = setting("cifar100", "what to train on", choices=("cifar100", "shapes"))
    data_dir: str = setting("data", "folder with CIFAR-100, or to download it to")
    data_url: str | None = setting(None, "address or file of CIFAR-100, if not in --data-dir", metavar="URL")
    out: str = setting({"cifar100": "runs/cifar100", "shapes": "runs/shapes"}, "run folder")
    epochs: int = setting({"cifar100": 40, "shapes": 10}, "passes over the training images", 1, 100_000)
    batch_size: int = setting({"cifar100": 128, "shapes": 32}, "images in a step", 2, 1_000_000)
    lr: float = setting({"cifar100": 0.15, "shapes": 0.1}, "peak learning rate", 1e-9, 1000)
    momentum: float = setting(0.9, "Nesterov momentum; 0 is plain SGD", 0, 0.99999)
    weight_decay: float = setting(1e-3, "weight decay, not on biases and batch norm", 0, 10)
    label_smoothing: float = setting(0.1, "label smoothing; 0 turns it off", 0, 0.999)
    warmup_epochs: float | None = setting(None, "linear warmup; default: 2, or a fifth of --epochs if less")
    clip_norm: float = setting(5.0, "largest norm of the gradient; 0 is no clipping", 0, 1e9)
    image_sizes: str = setting("24,28,32", "8 to 32 pixels, for equal parts of the run", metavar="S,..")
    # In a run of 20 epochs CutMix cost 1.3 points of validation accuracy; see results/README.md.
    cutmix: float | None = setting(
        None, "share of batches with CutMix; default: 0.5, but 0 for shapes or below 30 epochs", 0, 1
    )
    patience: int | None = setting(
        None, "full-size epochs without a new best; 0: no limit; default: epochs / 8, at least 5", 0, 100_000
    )
    val_fraction: float = setting(0.2, "share of the training images held out for validation", 0.001, 0.9)
    limit_train: int | None = setting(None, "train on N images only", 1, 1_000_000, metavar="N")
    # Below 16 channels oneDNN on the CPU crashes or gives wrong gradients (uxlfoundation/oneDNN issue 6035).
    width: int = setting({"cifar100": 64, "shapes": 16}, "channels of the first stage", 16, 1024)
    seed: int = setting(0, "decides the split, the initial weights and the batches", 0, 2**32 - 1)
    device: str = setting("auto", "where to compute: auto, cuda, mps or cpu")
    precision: str = setting("auto", "number format to train in", choices=("auto", "fp32", "bf16", "fp16"))
    compile: bool = setting(False, "use torch.compile, for long runs on a GPU")

    def __post_init__(self) -> None:
        for field in fields(self):
            if getattr(self, field.name) is None:
                setattr(self, field.name, field.metadata["by_dataset"].get(self.dataset))
        console.check_ranges(self)
        if self.warmup_epochs is None:
            self.warmup_epochs = min(2.0, self.epochs / 5)
        if self.cutmix is None:
            self.cutmix = 0.5 if self.dataset == "cifar100" and self.epochs >= 30 else 0.0
        if self.patience is None:
            self.patience = max(5, self.epochs // 8)
        warmup, sides, epochs = self.warmup_epochs, self.image_sizes, self.epochs
        expect(0 <= warmup <= epochs, "warmup_epochs", warmup, f"a number from 0 to {epochs}")
        right = re.fullmatch(r"\d{1,2}(,\d{1,2})*", sides) and all(8 <= size <= 32 for size in self.sizes())
        expect(bool(right), "image_sizes", sides, "sizes from 8 to 32, such as 24,28,32")

    def sizes(self) -> list[int]:
        """Return image_sizes "24,28,32" as [24, 28, 32]."""
        return [int(size) for size in self.image_sizes.split(",")]


# Resuming may change where, how fast and how precisely a run computes, and nothing else.
MAY_CHANGE = {"data_dir", "data_url", "out", "device", "precision", "compile"}


def resumed_config(last: dict, given: dict, path: Path) -> Config:
    """Return the settings saved in last.pt at `path`, overlaid with those given on the command line.

    Raises UserError if they change what the run computes.
    """
    with usable(path, "a checkpoint to resume from"):
        saved = last["config"]["settings"]
        if saved.keys() != asdict(Config()).keys():
            raise ValueError("another version of train.py wrote it; resume the run with that one")
        config = Config(**(saved | given))
        should_stop(last["history"], config)
    changed = [name for name in given if name not in MAY_CHANGE and given[name] != saved[name]]
    if changed:
        started = ", ".join(f"{console.option(name)} {saved[name]}" for name in changed)
        raise UserError(f"{config.out} was started with {started}: resume it without changing that")
    return config


def load_split(config: Config) -> tuple[Dataset, Tensor, Tensor]:
    """Return the training set and, as indices into it, the images to train on and those to validate on."""
    dataset, _ = load(config.dataset, config.data_dir, config.data_url)
    train_index, val_index = split_indices(dataset, config.val_fraction, config.seed)
    available, held_out = len(train_index), len(val_index)
    limit, size, processes = config.limit_train or available, config.batch_size, world_size()
    expect(limit <= available, "limit_train", limit, f"at most the {available} images to train on")
    expect(size <= limit, "batch_size", size, f"at most the {limit} images to train on")
    needed = f"a multiple of the {processes} processes, two images or more for each"
    expect(size % processes == 0 and size >= 2 * processes, "batch_size", size, needed)
    needed = f"at least one validation image of {available}"
    expect(held_out > 0, "val_fraction", config.val_fraction, needed)
    return dataset, train_index[:limit], val_index[: max(1, round(limit * held_out / available))]


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

    Progressive resizing: each size has an equal share of the epochs. The first learn coarse features, for
    which smaller and so cheaper images will do; the last need the full size, because what is learned at one
    apparent size of objects is worth less at another (Touvron et al. 2019, arXiv 1906.06423, section 3).
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


class Training:
    """What every epoch of a training needs, as the settings say: data, network, optimizer and precision."""

    def __init__(self, config: Config, dataset: Dataset, train_index: Tensor):
        torch.manual_seed(config.seed)
        torch.backends.cudnn.deterministic = True
        num_classes = len(dataset.class_names)
        self.config, self.device = config, pick_device(config.device)
        self.precision = pick_precision(config.precision, self.device)
        # On the device: all images to train on, uint8 [N, 3, 32, 32], and the targets, float32 [N, C].
        self.images = dataset.images[train_index].to(self.device)
        self.targets = nn.functional.one_hot(dataset.labels[train_index], num_classes).float().to(self.device)
        self.steps = len(train_index) // config.batch_size  # in an epoch
        model = resnet18(num_classes, config.width)
        self.model = model.to(self.device, memory_format=memory_format(self.device))
        # The same network, shared among the processes and compiled.
        network = distributed.data_parallel(self.model)
        self.network = torch.compile(network) if config.compile else network
        self.criterion = nn.CrossEntropyLoss(label_smoothing=config.label_smoothing)
        self.optimizer = make_optimizer(self.model, config.lr, config.momentum, config.weight_decay)
        # Small gradients would be 0 in float16, so the loss is multiplied by a scale that adapts itself.
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=self.precision == "fp16")


def train_one_epoch(training: Training, epoch: int) -> dict[str, float]:
    """Train the network once on all images; return the row of this epoch, counted from 1.

    The images left over from whole batches, other ones in each epoch, are not used. The row holds epoch,
    image_size, lr (of the last step), and the means train_loss and train_accuracy, in [0, 1]. Where CutMix
    mixed two images, an answer counts as right if it is the class of the larger part. Raises UserError if the
    loss is not finite.
    """
    config, device, steps = training.config, training.device, training.steps
    network, optimizer, scaler = training.network, training.optimizer, training.scaler
    total_steps, warmup_steps = config.epochs * steps, round(config.warmup_epochs * steps)
    size = image_size(epoch, config.epochs, config.sizes())
    # CutMix keeps the network from learning its images by heart; results/README.md says what it gained.
    cutmix = config.cutmix if epoch <= last_cutmix_epoch(config.epochs) else 0.0
    # Of the loss and of the right answers; MPS has no float64.
    sums = torch.zeros(2, device=device, dtype=torch.float32 if device.type == "mps" else torch.float64)
    network.train()
    with Progress(f"epoch {epoch}/{config.epochs}", steps) as progress:
        drawn = batches(training.images, training.targets, config.batch_size, config.seed, epoch, cutmix)
        for step, (batch, target) in enumerate(drawn):
            # Data: shuffled, cropped and flipped images, of which each process takes its part.
            batch, target = shard(batch), shard(target)
            x = to_input(batch, size)

            # Schedule: every step has its own learning rate.
            lr = warmup_cosine((epoch - 1) * steps + step, total_steps, warmup_steps, config.lr)
            for group in optimizer.param_groups:
                group["lr"] = lr

            # Forward and loss.
            with autocast(device, training.precision):
                logits = network(x).float()
                loss = training.criterion(logits, target)

            # Backward, clip, step. The norm to clip is that of the gradient, not of the scaled one.
            optimizer.zero_grad(set_to_none=True)
            scaler.scale(loss).backward()
            if config.clip_norm:
                scaler.unscale_(optimizer)
                nn.utils.clip_grad_norm_(network.parameters(), config.clip_norm)
            scaler.step(optimizer)
            scaler.update()

            right = logits.argmax(dim=1) == target.argmax(dim=1)
            sums += torch.stack([loss.detach() * len(target), right.sum()])
            # On a GPU, reading a value makes the program wait, so there it is read at every tenth step only.
            if device.type == "cpu" or (step + 1) % 10 == 0 or step + 1 == steps:
                totals = distributed.all_reduce(sums)
                check_finite(epoch, step + 1, lr, totals)
                mean_loss, train_accuracy = (totals / ((step + 1) * config.batch_size)).tolist()
                progress.update(step + 1, loss=f"{mean_loss:.3f}", accuracy=f"{train_accuracy:.1%}")
    row = {"epoch": epoch, "image_size": size, "lr": lr}
    return row | {"train_loss": mean_loss, "train_accuracy": train_accuracy}


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


def should_stop(history: list[dict], config: Config) -> bool:
    """Return whether all epochs have ended, or early stopping has ended the run.

    Early stopping counts the epochs at the last image size that came after the best epoch. At smaller sizes
    the validation images look unlike those of training, and an accuracy that stands still says little.
    """
    after_best = history[history.index(best_row(history)) + 1 :] if history else []
    without_best = sum(row["image_size"] == config.sizes()[-1] for row in after_best)
    return len(history) >= config.epochs or 0 < config.patience <= without_best


def validate(training: Training, images: Tensor, labels: Tensor, row: dict[str, float]) -> Tensor:
    """Add val_loss and val_accuracy to the row of an epoch; return the logits, float32 [N, C]."""
    part, size = shard(images), training.config.sizes()[-1]
    with Progress("validation", len(part)) as progress:
        logits = predict(training.network, part, training.device, training.precision, size, progress=progress)
    logits = distributed.all_gather(logits)
    check_finite(row["epoch"], training.steps, row["lr"], logits, *training.model.state_dict().values())
    row["val_loss"] = training.criterion(logits, labels).item()
    row["val_accuracy"] = accuracy(labels, logits.argmax(dim=1))
    return logits


def save(training: Training, dataset: Dataset, record: dict, history: list[dict], validation: dict) -> None:
    """Write best.pt, if the last epoch is the best one, history.csv and last.pt.

    last.pt comes last: if the run is killed before that, --resume repeats this epoch with the same batches.
    """
    run, best = Path(training.config.out), best_row(history)
    checkpoint = {
        "model": training.model.state_dict(),
        "config": record,
        "epoch": len(history),
        "class_names": dataset.class_names,
        "superclass_names": dataset.superclass_names,
        "superclass_of": dataset.superclass_of.tolist(),
        "val_accuracy": best["val_accuracy"],
        "history": history,
    }
    if history[-1] is best:
        save_checkpoint(run / "checkpoints" / "best.pt", checkpoint | validation)
    write_csv(run / "logs" / "history.csv", history)
    to_resume = {"optimizer": training.optimizer.state_dict(), "scaler": training.scaler.state_dict()}
    save_checkpoint(run / "checkpoints" / "last.pt", checkpoint | to_resume)


def fit(config: Config, last: dict | None = None) -> None:
    """Train epoch by epoch as the settings say; `last` is the checkpoint of a run that is resumed."""
    run = Path(config.out)
    if rank() > 0:
        distributed.barrier()  # rank 0 loads first, which may be a download
    dataset, train_index, val_index = load_split(config)
    if rank() == 0:
        distributed.barrier()
    val_images, val_labels = dataset.images[val_index], dataset.labels[val_index]
    training = Training(config, dataset, train_index)
    history = restore(training, last, dataset) if last else []
    record = {
        "settings": asdict(config),
        "dataset": config.dataset,
        "width": config.width,
        "image_size": config.sizes()[-1],
        "provenance": dataset.provenance,
        "verified": dataset.verified,
        "digest": dataset.digest,
        "num_train": len(train_index),
        "num_val": len(val_index),
        "parameters": sum(parameter.numel() for parameter in training.model.parameters()),
        "device": str(training.device),
        "precision": training.precision,
        "environment": environment(training.device),
    }
    if rank() == 0:
        if not last:
            remove_run(run)
        write_json(run / "config.json", record)
    print(f"data     {dataset.provenance}")
    print(f"         {len(train_index):,} images to train on, {len(val_index):,} to validate")
    print(f"network  ResNet-18, width {config.width}, {record['parameters']:,} parameters")
    processes = f"processes: {world_size()}, threads: {torch.get_num_threads()}"
    print(f"compute  {training.device}, {training.precision}, {processes}")

    while not should_stop(history, config):
        started = time.perf_counter()
        row = train_one_epoch(training, len(history) + 1)
        speed = training.steps * config.batch_size / (time.perf_counter() - started)
        distributed.average_running_statistics(training.model)
        val_logits = validate(training, val_images, val_labels, row)
        row["seconds"] = round(time.perf_counter() - started, 2)
        row["images_per_second"] = round(speed, 1)
        history.append(row)
        if rank() == 0:
            # With the validation logits report.py fits a temperature without another pass over the images.
            # After an unstable first epoch they may exceed 65,504, the largest float16.
            validation = {"val_logits": val_logits.clamp(-6e4, 6e4).half(), "val_labels": val_labels}
            save(training, dataset, record, history, validation)
        star = "*" if row is best_row(history) else " "
        left = duration((config.epochs - row["epoch"]) * row["seconds"])
        print(
            f"epoch {row['epoch']:3d}/{config.epochs}  lr {row['lr']:.4f}  "
            f"train loss {row['train_loss']:.3f} acc {row['train_accuracy']:6.2%}  "
            f"val loss {row['val_loss']:.3f} acc {row['val_accuracy']:6.2%} {star}  "
            f"{duration(row['seconds'])}, about {left} left"
        )

    if len(history) < config.epochs:
        print(f"stopped early: no better validation accuracy in {config.patience} full-size epochs")
    best = best_row(history)
    print(f"best     validation accuracy {best['val_accuracy']:.2%} after epoch {best['epoch']}")
    print(f"next     python report.py --run {shlex.quote(config.out)}")


def restore(training: Training, last: dict, dataset: Dataset) -> list[dict]:
    """Load what the checkpoint `last` holds of a training; return the history.

    Raises UserError if the run was trained on other data, or the checkpoint is not one of this training.
    """
    with usable(Path(training.config.out) / "checkpoints" / "last.pt", "a checkpoint to resume from"):
        if last["config"]["digest"] != dataset.digest:
            before = last["config"]["provenance"]
            raise UserError(f"the run was trained on {before}, but the data found are {dataset.provenance}")
        training.model.load_state_dict(last["model"])
        training.optimizer.load_state_dict(last["optimizer"])
        if last["scaler"]:  # it is empty if the run was not in float16
            training.scaler.load_state_dict(last["scaler"])
        print(f"resumed  after {last['epoch']} epochs")
        return last["history"]


def load_model(path: Path | str, device: torch.device) -> tuple[ResNet, dict]:
    """Return the network of a checkpoint, in eval mode, float32 and memory_format, and the checkpoint itself.

    Raises UserError if the file is damaged or incomplete, or the weights do not fit the network.
    """
    checkpoint = load_checkpoint(path)
    with usable(path, "a checkpoint"):
        width, size = checkpoint["config"]["width"], checkpoint["config"]["image_size"]
        if size not in range(8, 33):
            raise ValueError(f"it says images of {size} pixels")
        names = checkpoint["class_names"] = [one_line(name) for name in checkpoint["class_names"]]
        with torch.device("meta"):  # without memory, as the file may claim any width
            model = resnet18(len(names), width)
        # A plain dict: in another one torch notes that it is to be assigned, also at a second loading.
        model.load_state_dict(dict(checkpoint["model"]), assign=True)
        return model.float().to(device, memory_format=memory_format(device)).eval(), checkpoint


def load_data(path: Path | str, checkpoint: dict, data_dir: str | None) -> tuple[Dataset, Dataset]:
    """Return the training and the test set for the network of the checkpoint, which was read from `path`.

    CIFAR-100 is read from `data_dir`; without one, from that of the training if CIFAR-100 is there, else from
    data/. Raises UserError for other classes.
    """
    with usable(path, "a checkpoint"):
        saved = checkpoint["config"].get("settings", {}).get("data_dir")
        root = data_dir or (saved if saved and has_cifar100(saved) else Config.data_dir)
        splits = load(checkpoint["config"]["dataset"], root)
        if splits[1].class_names != checkpoint["class_names"]:
            raise ValueError(f"its classes are not those of the {splits[1].name} test set")
        return splits


def fitted_temperature(path: Path | str, checkpoint: dict) -> float | None:
    """Return the temperature that fits the validation logits of the checkpoint, or None if it has none.

    See metrics.fit_temperature. The checkpoint was read from `path`; UserError if they cannot be used.
    """
    if "val_logits" not in checkpoint:
        return None
    with usable(path, "a checkpoint"):
        return fit_temperature(checkpoint["val_logits"].float(), checkpoint["val_labels"])


def main(argv: list[str] | None = None) -> int:
    """Train as the command line says; return the exit code."""
    parser = console.CommandLine(description=__doc__)
    console.add_options(parser, Config)
    either = parser.add_mutually_exclusive_group()
    either.add_argument("--resume", action="store_true", help="continue the run in --out")
    either.add_argument("--overwrite", action="store_true", help="delete the run in --out first")
    given = vars(parser.parse_args(argv))
    resume, overwrite = given.pop("resume"), given.pop("overwrite")
    run = Path(given.setdefault("out", f"runs/{given.get('dataset', Config.dataset)}"))
    last_file = run / "checkpoints" / "last.pt"
    try:
        with distributed.init_distributed(), lock_run(run) if rank() == 0 else contextlib.nullcontext():
            last = None
            if not resume:
                config = Config(**given)
                if rank() == 0:
                    check_new_run(run, overwrite)
            elif last_file.exists():
                _, last = load_model(last_file, torch.device("cpu"))
                config = resumed_config(last, given, last_file)
            else:
                raise UserError(f"{run} has no finished epoch to resume: start it again without --resume")
            if last and should_stop(last["history"], config):
                print(f"{run} is finished after {last['epoch']} epochs; next comes report.py")
            else:
                fit(config, last)
        return 0
    except KeyboardInterrupt:
        if not last_file.exists():
            raise
        print(f"interrupted; resume with: python train.py --resume --out {shlex.quote(str(run))}")
        return 130
    except (RuntimeError, MemoryError) as error:
        advice = advice_on(error)
        if advice is None:
            raise
        raise UserError(advice) from None


if __name__ == "__main__":
    console.run_main(main)

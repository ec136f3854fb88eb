"""Train a ResNet-18 on CIFAR-100, CIFAR-10, the built-in shapes or a folder of pictures, top to bottom.

    python train.py                                     CIFAR-100, the full recipe
    python train.py --dataset shapes                    a demonstration without download, minutes on a laptop
    python train.py --dataset FOLDER                    pictures FOLDER/train/CLASS/* and FOLDER/test/CLASS/*
    python train.py --resume                            continue after the last finished epoch
    torchrun --nproc-per-node 2 train.py                on two GPUs, see support/distributed.py

The recipe: SGD with Nesterov momentum, linear warmup then cosine annealing of the learning rate, label
smoothing, weight decay, CutMix, gradient clipping, mixed precision, and early stopping on the validation
accuracy.
"""

import hashlib
import math
import shlex
import time
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path

import torch
from torch import Tensor, nn

import data
from data import batches
from resnet_cifar import resnet18
from support import distributed
from support.checkpoint import read_checkpoint, save_checkpoint
from support.console import CommandLine, Progress, duration, option, run_main
from support.device import cpuinfo, environment, pick_device, rank, world_size
from support.errors import UserError, reading
from support.files import write_csv, write_json
from support.settings import add_settings, check_ranges, expect, setting


@dataclass
class Config:
    """Each setting with its default, its help, and its range; a value outside it raises UserError."""

    dataset: str = setting("cifar100", "cifar100, cifar10, shapes, or a folder with train/ and test/")
    data_dir: str = setting("data", "folder with CIFAR, or to download it to")
    out: str | None = setting(None, "run folder, new or empty; default: runs/ and the name of the data set")
    epochs: int | None = setting(40, "passes over the images; of a folder 10 to 100", 1, 100_000)
    batch_size: int | None = setting(128, "images in a step; of a folder up to 32", 2, 1_000_000)
    lr: float = setting(0.15, "peak learning rate", 1e-9, 1000)
    momentum: float = setting(0.9, "Nesterov momentum; 0 is plain SGD", 0, 0.99999)
    weight_decay: float = setting(1e-3, "weight decay, not on biases and batch norm", 0, 10)
    label_smoothing: float = setting(0.1, "label smoothing; 0 turns it off", 0, 0.999)
    warmup_epochs: float | None = setting(None, "linear warmup; default: 2, or a fifth of --epochs if less")
    clip_norm: float = setting(5.0, "largest norm of the gradient; 0 is no clipping", 0, 1e9)
    image_sizes: str = setting("24,28,32", "8 to 128 pixels, for equal parts of the run", metavar="S,..")
    # In a run of 20 epochs CutMix cost 1.3 points of validation accuracy; see results/log.md.
    cutmix: float | None = setting(None, "share of batches with CutMix; default: 0.5 from 30 epochs on", 0, 1)
    # It counts the epochs of full-size images after the best one.
    patience: int | None = setting(None, "epochs to wait, 0: no limit; default: an eighth, >= 5", 0, 100_000)
    val_fraction: float = setting(0.2, "share of the training images held out for validation", 0.001, 0.9)
    limit_train: int | None = setting(None, "train on N images only", 1, 1_000_000, metavar="N")
    # Below 16 channels oneDNN on the CPU crashes or gives wrong gradients (uxlfoundation/oneDNN issue 6035).
    width: int = setting(64, "channels of the first stage", 16, 1024)
    seed: int = setting(0, "decides the split, the initial weights and the batches", 0, 2**32 - 1)
    device: str = setting("auto", "where to compute: auto, cuda, mps or cpu")
    precision: str = setting("auto", "number format to train in", choices=("auto", "fp32", "bf16", "fp16"))
    compile: bool = setting(False, "use torch.compile, for long runs on a GPU")

    def __post_init__(self) -> None:
        check_ranges(self)
        is_there = self.dataset in data.CLASS_NAMES or Path(self.dataset).is_dir()
        expect(is_there, "dataset", self.dataset, f"{', '.join(data.CLASS_NAMES)} or a folder that is there")
        right = all(size.isdecimal() and 8 <= int(size) <= 128 for size in self.image_sizes.split(","))
        right = right and self.sizes()[-1] == max(self.sizes())
        expect(right, "image_sizes", self.image_sizes, "sizes from 8 to 128, the largest last, as 24,28,32")
        if self.epochs is None:  # what follows has to wait for load_split
            return
        if self.warmup_epochs is None:
            self.warmup_epochs = min(2.0, self.epochs / 5)
        if self.cutmix is None:
            self.cutmix = 0.5 if self.epochs >= 30 else 0.0
        if self.patience is None:
            self.patience = max(5, self.epochs // 8)
        fits = 0 <= self.warmup_epochs <= self.epochs
        expect(fits, "warmup_epochs", self.warmup_epochs, f"a number from 0 to {self.epochs}")

    def sizes(self) -> list[int]:
        """Return image_sizes "24,28,32" as [24, 28, 32]."""
        return [int(size) for size in self.image_sizes.split(",")]


# The defaults above are those for CIFAR; these differ. For None load_split chooses by the number of images.
PRESETS = {
    "shapes": {"epochs": 10, "batch_size": 32, "lr": 0.1, "width": 16, "cutmix": 0.0},
    "folder": {"epochs": None, "batch_size": None, "lr": 0.1, "width": 16, "cutmix": 0.0},
}
# Resuming may change where and how a run computes and where its files are found, and nothing else.
MAY_CHANGE = {"dataset", "data_dir", "out", "device", "precision", "compile"}


def load_split(config: Config) -> tuple[Config, data.Dataset, Tensor, Tensor]:
    """Return the completed settings, the training set, and the indices of training and validation images.

    Raises UserError if the settings do not fit the number of images.
    """
    dataset, _ = data.load(config.dataset, config.data_dir, config.sizes()[-1])
    train_index, val_index = data.split_indices(dataset, config.val_fraction, config.seed)
    available, held_out = len(train_index), len(val_index)
    limit = min(config.limit_train or available, available)
    expect(held_out > 0, "val_fraction", config.val_fraction, f"one validation image of {available} or more")
    if config.epochs is None:
        # The demonstration on shapes sees 48,000 images, 10 epochs of 4,800. See as many, but none too often.
        config = replace(config, epochs=min(max(10, round(48_000 / limit)), 100))
    if config.batch_size is None:
        config = replace(config, batch_size=max(2, min(32, limit)))
    size, processes = config.batch_size, world_size()
    fits = size % processes == 0 and 2 * processes <= size <= limit
    expected = f"at least {2 * processes}, at most the {limit} images to train on"
    if processes > 1:
        expected += f", a multiple of {processes}, the number of processes"
    expect(fits, "batch_size", size, expected)
    return config, dataset, train_index[:limit], val_index[: max(1, round(limit * held_out / available))]


def warmup_cosine(
    step: int, total_steps: int, warmup_steps: int, peak_lr: float, final_lr: float = 0.0
) -> float:
    """Return the learning rate of one step, counted from 0.

    It rises linearly from 0 at step 0 to peak_lr at step warmup_steps (gradual warmup, Goyal et al. 2017,
    arXiv 1706.02677, section 2.2, who start above 0). Then it falls by half a cosine to final_lr at step
    total_steps, and stays there (Loshchilov and Hutter 2017, arXiv 1608.03983, equation 5, without restarts).
    Raises ValueError unless step >= 0, total_steps > 0 and 0 <= warmup_steps <= total_steps.
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

    Progressive resizing: each size has an equal share of the epochs. The first epochs learn coarse features,
    and smaller, cheaper images suffice for that. The last epochs need the full size, because what a network
    learns at one apparent size of objects is worth less at another (Touvron et al. 2019, arXiv 1906.06423,
    section 3).
    """
    steps_back = (epochs - epoch) * len(sizes) // epochs  # 0 for the last size, 1 for the size before it
    return sizes[-1 - steps_back]


def make_optimizer(model: nn.Module, lr: float, momentum: float, weight_decay: float) -> torch.optim.SGD:
    """Return SGD with Nesterov momentum (Sutskever et al. 2013) and weight decay on the weights of layers.

    Biases and batch norm are not decayed (He et al. 2019, arXiv 1812.01187, section 3.1). Batch norm follows
    each convolution, so smaller weights there do not change the function. But a step turns large weights less
    than small ones, and decay keeps them from growing (van Laarhoven 2017, arXiv 1706.05350). Each step
    shrinks the weights by about the fraction lr * weight_decay / (1 - momentum), so a shorter run needs a
    stronger decay.
    """
    decay = [parameter for parameter in model.parameters() if parameter.ndim > 1]
    no_decay = [parameter for parameter in model.parameters() if parameter.ndim <= 1]
    groups = [{"params": decay, "weight_decay": weight_decay}, {"params": no_decay, "weight_decay": 0.0}]
    return torch.optim.SGD(groups, lr=lr, momentum=momentum, nesterov=momentum > 0)


def pick_precision(name: str, device: torch.device) -> str:
    """Return the precision to train in, "fp32", "bf16" or "fp16"; for the name "auto" the fastest one.

    CUDA takes bf16 from compute capability 8.0 on, where it is native, else fp16 with a gradient scaler. A
    CPU takes bf16 where it was measured to be faster (AMX, or AVX512-BF16 on AMD), else fp32.
    """
    if name == "fp16" and device.type != "cuda":
        raise UserError(f"--precision fp16 needs a CUDA GPU, not {device.type}: use bf16 or fp32")
    if name != "auto":
        return name
    if device.type == "cuda":
        return "bf16" if torch.cuda.get_device_capability(device)[0] >= 8 else "fp16"
    cpu = cpuinfo()
    is_fast = "amx_bf16" in cpu or ("avx512_bf16" in cpu and "AuthenticAMD" in cpu)
    return "bf16" if device.type == "cpu" and is_fast else "fp32"


def autocast(device: torch.device, precision: str) -> torch.autocast:
    """Return the context in which the forward pass of a training runs: mixed precision, or float32."""
    # fp32 has no dtype: on Apple GPUs torch before 2.10 warns of float32 even where autocast is off.
    dtype = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}[precision]
    return torch.autocast(device.type, dtype, enabled=precision != "fp32")


class Training:
    """What every epoch needs, made by the settings: data, network, optimizer, precision, and the history."""

    def __init__(self, config: Config, dataset: data.Dataset, train_index: Tensor, val_index: Tensor):
        torch.manual_seed(config.seed)
        torch.backends.cudnn.deterministic = True
        self.config, self.class_names = config, dataset.class_names
        self.device = device = pick_device(config.device)
        self.precision = pick_precision(config.precision, device)
        # On the device: all images to train on, uint8 [N, 3, S, S], and the targets, float32 [N, C].
        num_classes, labels = len(self.class_names), dataset.labels[train_index]
        self.images = dataset.images[train_index].to(device)
        self.targets = nn.functional.one_hot(labels, num_classes).float().to(device)
        self.val_images, self.val_labels = dataset.images[val_index], dataset.labels[val_index]
        self.steps = len(train_index) // config.batch_size  # in an epoch
        self.normalize = data.Normalize().to(device)
        self.model = resnet18(num_classes, config.width).to(device, memory_format=data.memory_format(device))
        self.network = torch.compile(self.model) if config.compile else self.model
        self.criterion = nn.CrossEntropyLoss(label_smoothing=config.label_smoothing)
        self.optimizer = make_optimizer(self.model, config.lr, config.momentum, config.weight_decay)
        # Small gradients would be 0 in float16, so the loss is multiplied by a scale that adapts itself.
        self.scaler = torch.amp.GradScaler(device.type, enabled=self.precision == "fp16")
        self.history = []  # a row for each epoch
        self.record = {  # config.json
            "settings": asdict(config),
            "dataset": config.dataset,
            "width": config.width,
            "image_size": config.sizes()[-1],
            "provenance": dataset.provenance,
            "digest": dataset.digest,
            "images_sha256": hashlib.sha256(dataset.images.numpy()).hexdigest(),  # in their order
            "num_train": len(train_index),
            "num_val": len(val_index),
            "parameters": sum(parameter.numel() for parameter in self.model.parameters()),
            "device": str(device),
            "precision": self.precision,
            "environment": environment(device),
        }


def check_finite(what: str, values: Tensor, epoch: int, lr: float) -> None:
    """Raise UserError if a value is not finite."""
    if not values.isfinite().all():
        raise UserError(
            f"{what} not finite in epoch {epoch}, at learning rate {lr:.4g}: try a lower --lr, a smaller "
            f"--clip-norm or --precision fp32; earlier checkpoints are kept"
        )


def train_one_epoch(training: Training, epoch: int) -> dict:
    """Train the network once on all images; return the row of this epoch, counted from 1.

    Images that do not fill a batch are left out, other ones in each epoch. The row holds epoch, image_size,
    precision, lr (of the last step), and the means train_loss and train_accuracy, in [0, 1], over the
    augmented images. Where CutMix mixed two images, the class of the larger part counts as right. Raises
    UserError if the loss is not finite.
    """
    config, device, steps = training.config, training.device, training.steps
    optimizer, scaler = training.optimizer, training.scaler
    total_steps, warmup_steps = config.epochs * steps, round(config.warmup_epochs * steps)
    size = image_size(epoch, config.epochs, config.sizes())
    model = training.network.train()
    # CutMix keeps the network from learning its images by heart; results/log.md says what it gained.
    cutmix = config.cutmix if epoch <= data.cutmix_end(config.epochs) else 0.0
    # The sums of the loss and of the right answers; MPS has no float64.
    sums = torch.zeros(2, device=device, dtype=torch.float32 if device.type == "mps" else torch.float64)
    with Progress(f"epoch {epoch}/{config.epochs}", steps, in_log=False) as progress:
        drawn = batches(training.images, training.targets, config.batch_size, config.seed, epoch, cutmix)
        for step, (batch, target) in enumerate(drawn):
            # Data: shuffled, cropped and flipped images in [0, 1]; each process takes its part.
            images, target = distributed.shard(batch.float() / 255), distributed.shard(target)

            # Schedule: every step has its own learning rate. The very first has 0: it changes no weight, but
            # fills the momentum and moves the running statistics of batch norm.
            lr = warmup_cosine((epoch - 1) * steps + step, total_steps, warmup_steps, config.lr)
            for group in optimizer.param_groups:
                group["lr"] = lr

            # Forward and loss.
            with autocast(device, training.precision):
                logits = model(training.normalize(data.resize(images, size))).float()
                loss = training.criterion(logits, target)

            # Backward, clip, step. Unscale first, as the gradient's own norm is to be clipped.
            optimizer.zero_grad(set_to_none=True)
            scaler.scale(loss).backward()
            distributed.average_gradients(training.model)
            if config.clip_norm:
                scaler.unscale_(optimizer)
                nn.utils.clip_grad_norm_(model.parameters(), config.clip_norm)
            scaler.step(optimizer)
            scaler.update()

            right = logits.argmax(dim=1) == target.argmax(dim=1)
            sums += torch.stack([loss.detach() * len(target), right.sum()])
            # To read a value from a GPU makes the program wait, so there every tenth step reads it.
            if device.type == "cpu" or (step + 1) % 10 == 0 or step + 1 == steps:
                totals = distributed.all_reduce(sums)
                check_finite("the loss is", totals, epoch, lr)
                mean_loss, train_accuracy = (totals / ((step + 1) * config.batch_size)).tolist()
                progress.update(step + 1, loss=f"{mean_loss:.3f}", accuracy=f"{train_accuracy:.1%}")
    row = {"epoch": epoch, "image_size": size, "precision": training.precision, "lr": lr}
    return row | {"train_loss": mean_loss, "train_accuracy": train_accuracy}


@torch.inference_mode()
def validate(training: Training, row: dict[str, float | str]) -> Tensor:
    """Add val_loss and val_accuracy to the row of an epoch; return the logits, float32 [N, C]."""
    images, labels, logits = distributed.shard(training.val_images), training.val_labels, []
    model, size = training.network.eval(), training.config.sizes()[-1]
    progress = Progress("validation", len(images), in_log=False)  # each epoch prints its own line
    with progress, autocast(training.device, training.precision):
        for part in images.split(data.images_at_once(images, size, training.device)):
            pixels = part.to(training.device).float() / 255
            logits.append(model(training.normalize(data.resize(pixels, size))).float())
            progress.update(len(part) * len(logits))
    logits = distributed.all_gather(torch.cat(logits).cpu())
    check_finite("the scores of the validation images are", logits, row["epoch"], row["lr"])
    row["val_loss"] = training.criterion(logits, labels).item()
    row["val_accuracy"] = (logits.argmax(dim=1) == labels).sum().item() / len(labels)
    return logits


def best_row(history: list[dict]) -> dict:
    """Return the row with the highest validation accuracy, the first one if rows tie."""
    return max(history, key=lambda row: row["val_accuracy"])


def should_stop(history: list[dict], config: Config) -> bool:
    """Return whether the run is over: after all epochs, or by early stopping.

    Early stopping counts the epochs after the best one that have the last image size. At smaller sizes the
    validation images look unlike the training images, and an accuracy that stands still says little.
    """
    after_best = history[history.index(best_row(history)) + 1 :] if history else []
    without_best = sum(row["image_size"] == config.sizes()[-1] for row in after_best)
    return len(history) >= config.epochs or 0 < config.patience <= without_best


def save(training: Training, val_logits: Tensor) -> None:
    """Write best.pt, if the last epoch is the best one, history.csv and last.pt.

    last.pt comes last: if the run is killed before that, --resume repeats this epoch with the same batches.
    """
    run, best = Path(training.config.out), best_row(training.history)
    checkpoint = {
        "model": training.model.state_dict(),
        "config": training.record,
        "epoch": len(training.history),
        "class_names": training.class_names,
        "val_accuracy": best["val_accuracy"],
        "history": training.history,
    }
    if training.history[-1] is best:
        # report.py fits a temperature on the validation logits, without another pass over the images. After
        # an unstable first epoch logits may exceed 65,504, the largest float16.
        validation = {"val_logits": val_logits.clamp(-6e4, 6e4).half(), "val_labels": training.val_labels}
        save_checkpoint(run / "checkpoints" / "best.pt", checkpoint | validation)
    write_csv(run / "logs" / "history.csv", training.history)
    to_resume = {"optimizer": training.optimizer.state_dict(), "scaler": training.scaler.state_dict()}
    save_checkpoint(run / "checkpoints" / "last.pt", checkpoint | to_resume)


def read_last(path: Path, options: dict) -> tuple[Config, dict]:
    """Return the saved settings, overlaid with the options of the command line, and the content of last.pt.

    Raises UserError if an option changes what the run computes, or if the file cannot be used.
    """
    if not path.is_file():
        raise UserError(
            f"there is no run to resume, {path} is missing: "
            f"give the --out of that run, or begin one without --resume"
        )
    last = read_checkpoint(path)
    with reading(path, "a checkpoint to resume from"):
        saved = last["config"]["settings"]
        if saved.keys() != {field.name for field in fields(Config)}:
            raise ValueError("another version of train.py wrote it: finish the run with that one")
        config = Config(**(saved | options))
    changed = [name for name in options if name not in MAY_CHANGE and options[name] != saved[name]]
    if changed:
        started = ", ".join(f"{option(name)} {saved[name]}" for name in changed)
        raise UserError(f"{config.out} was started with {started}: resume it without changing that")
    return config, last


def restore(training: Training, last: dict) -> None:
    """Continue a training from last.pt; raise UserError if it has other data or does not fit the network."""
    config, ours, record = training.config, training.record, last["config"]
    if record["digest"] != ours["digest"]:
        raise UserError(f"{config.out} was trained on other data than those found ({ours['provenance']})")
    if record.get("images_sha256", ours["images_sha256"]) != ours["images_sha256"]:
        raise UserError(
            f"{config.dataset} has its training images in another order, as of renamed files, and so another "
            f"split: name them as they were, or begin another run"
        )
    with reading(Path(config.out) / "checkpoints" / "last.pt", "a checkpoint to resume from"):
        training.model.load_state_dict(last["model"])
        training.optimizer.load_state_dict(last["optimizer"])
        if last["scaler"]:  # it is empty if the run was not in float16
            training.scaler.load_state_dict(last["scaler"])
    # config.json keeps saying how the run began; only the places of its files may be new.
    places = {"dataset": config.dataset, "data_dir": config.data_dir, "out": config.out}
    training.record = record | {"dataset": config.dataset, "settings": record["settings"] | places}
    training.history = last["history"]
    print(f"resumed  after {last['epoch']} epochs")


def time_left(row: dict, config: Config) -> str:
    """Return how long the epochs after this row will take: time grows with the pixels of an image."""
    sides = [image_size(e, config.epochs, config.sizes()) for e in range(row["epoch"] + 1, config.epochs + 1)]
    return duration(row["seconds"] * sum(side**2 for side in sides) / row["image_size"] ** 2)


def fit(config: Config, last: dict | None = None) -> None:
    """Train epoch by epoch; `last` is the content of last.pt if the run is resumed."""
    if rank() > 0:
        distributed.barrier()  # rank 0 loads first, which may be a download
    config, dataset, train_index, val_index = load_split(config)
    if rank() == 0:
        distributed.barrier()
    training = Training(config, dataset, train_index, val_index)
    if last is not None:
        restore(training, last)
    record, history = training.record, training.history
    if rank() == 0:
        write_json(Path(config.out) / "config.json", record)
    print(f"data     {record['provenance']}")
    print(f"         {record['num_train']:,} images to train on, {record['num_val']:,} to validate")
    print(f"network  ResNet-18, width {config.width}, {record['parameters']:,} parameters")
    print(f"recipe   {config.epochs} epochs, {config.batch_size} images a step, {config.image_sizes} pixels")
    threads = f"threads: {torch.get_num_threads()}"
    print(f"compute  {training.device}, {training.precision}, processes: {world_size()}, {threads}")

    while not should_stop(history, config):
        started = time.perf_counter()
        row = train_one_epoch(training, len(history) + 1)
        seconds = time.perf_counter() - started
        distributed.average_running_statistics(training.model)
        val_logits = validate(training, row)
        row["seconds"] = round(time.perf_counter() - started, 2)
        row["images_per_second"] = round(training.steps * config.batch_size / seconds, 1)
        history.append(row)
        if rank() == 0:
            save(training, val_logits)
        star = "*" if row is best_row(history) else " "
        print(
            f"epoch {row['epoch']:3d}/{config.epochs}  lr {row['lr']:.4f}  "
            f"train loss {row['train_loss']:.3f} acc {row['train_accuracy']:6.2%}  "
            f"val loss {row['val_loss']:.3f} acc {row['val_accuracy']:6.2%} {star}  "
            f"{duration(row['seconds'])}, about {time_left(row, config)} left"
        )

    if len(history) < config.epochs:
        print(f"stopped early: no better validation accuracy in {config.patience} full-size epochs")
    best = best_row(history)
    print(f"best     validation accuracy {best['val_accuracy']:.2%} after epoch {best['epoch']}")
    print(f"next     python report.py --run {shlex.quote(config.out)}")


def check_folder(run: Path) -> None:
    """Raise UserError unless the folder of a new run is empty or holds a training without a saved epoch."""
    config = run / "config.json"
    is_ours = config.is_file() and '"settings"' in config.read_text(encoding="utf-8", errors="replace")
    for path in run.rglob("*"):
        if path.is_file() and path.suffix != ".tmp" and not (path == config and is_ours):
            raise UserError(
                f"{run} is not empty: continue a run there with --resume, delete the folder, or use another "
                f"--out"
            )


def main(argv: list[str] | None = None) -> int:
    """Train as the command line says; return the exit code."""
    parser = CommandLine(description=__doc__)
    add_settings(parser, Config, PRESETS)
    parser.add_argument("--resume", action="store_true", help="continue the run in --out")
    options = vars(parser.parse_args(argv))
    resume, last = options.pop("resume"), None
    dataset = options.get("dataset", Config.dataset)
    run = Path(options.setdefault("out", f"runs/{Path(dataset).resolve().name}"))
    try:
        if not resume:
            preset = PRESETS.get(dataset if dataset in data.CLASS_NAMES else "folder", {})
            config = Config(**(preset | options))
            pick_precision(config.precision, pick_device(config.device))  # before anything is downloaded
        with distributed.init_distributed():
            if resume:
                config, last = read_last(run / "checkpoints" / "last.pt", options)
            elif rank() == 0:
                check_folder(run)
            fit(config, last)
        return 0
    except KeyboardInterrupt:
        print("interrupted; the same command with --resume goes on after the last finished epoch")
        return 130


if __name__ == "__main__":
    run_main(main)

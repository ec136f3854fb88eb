"""What a run folder holds, checkpoints in and out, the device and its precision, and the console.

runs/<name>/config.json           settings, data, versions and hardware
            logs/history.csv      one row an epoch
            checkpoints/best.pt   the weights with the best validation accuracy
            checkpoints/last.pt   everything that --resume needs; previous.pt is the one before it
            metrics.json, predictions.npz, plots/, failures/, gradcam/, report.html   from report.py
            stress.json           from stress.py
"""

import argparse
import contextlib
import csv
import io
import json
import os
import pickle
import platform
import shutil
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

try:
    import fcntl
except ImportError:  # Windows has none: there a second training in one folder is not noticed
    fcntl = None

import torch

import data
from data import UserError, atomic_write
from resnet_cifar import ResNet, resnet18

# ---------------------------------------------------------------------------------------------------------
# Files

# What train.py, report.py and stress.py write into a run folder. config.json is the last to be deleted:
# a folder without it is not known to be a run.
RUN_CONTENTS = ["checkpoints", "logs", "metrics.json", "predictions.npz", "plots", "failures", "gradcam"]
RUN_CONTENTS += ["report.html", "stress.json", "stress-old.json", "config.json"]


@contextlib.contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """Yield a temporary path that becomes `path` at the end, in a folder that is made where it is missing.

    Raises UserError where that fails, on a full disk for one; the file that was there before is then whole.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_write(path) as temporary:
            yield temporary
    except OSError as error:
        reason = error.strerror or error
        raise UserError(f"{path} cannot be written ({reason}); what was saved before is whole") from None


def write_json(path: Path, content: dict | list) -> None:
    """Write `content` to `path`, whole or not at all; raise UserError where that fails."""
    with whole_file(path) as temporary:
        temporary.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def write_csv(path: Path, rows: list[dict]) -> None:
    """Write rows with the same keys to `path` under a line of column names, as write_json does."""
    with whole_file(path) as temporary, open(temporary, "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, fieldnames=list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def read_history(run: Path) -> list[dict]:
    """Return the rows of logs/history.csv as numbers, or raise UserError."""
    path = run / "logs" / "history.csv"
    try:
        with open(path, newline="", encoding="utf-8") as file:
            return [{key: float(value) for key, value in row.items()} for row in csv.DictReader(file)]
    except (OSError, ValueError, TypeError) as error:
        raise UserError(f"{path} cannot be read ({error}); is {run} a run of train.py?") from None


def read_config(run: Path) -> dict:
    """Return the content of config.json, or raise UserError."""
    path = run / "config.json"
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read ({error}); is {run} a run of train.py?") from None
    if not isinstance(config, dict) or not isinstance(config.get("settings"), dict):
        raise UserError(f"{path} was not written by train.py: it has no settings")
    return config


def newest_run(parent: Path | str = "runs") -> Path:
    """Return the folder below `parent` whose checkpoint is newest, or raise UserError."""
    checkpoints = list(Path(parent).glob("*/checkpoints/best.pt"))
    if not checkpoints:
        raise UserError(
            f"there is no finished epoch of any run under {parent}/: train one first with train.py"
        )
    return max(checkpoints, key=lambda path: path.stat().st_mtime).parent.parent


@contextlib.contextmanager
def lock_run(run: Path) -> Iterator[None]:
    """Make the folder `run` and hold it for one training; raise UserError where another training has it.

    The lock goes with the process, however that ends. What a killed one left half written is removed.
    """
    try:
        run.mkdir(parents=True, exist_ok=True)
        lock = open(run / ".lock", "w")  # noqa: SIM115
    except OSError as error:
        raise UserError(f"{run} cannot be written to ({error.strerror}): use another --out") from None
    with lock:
        try:
            if fcntl:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(f"another training is running in {run}: use another --out") from None
        except OSError:
            pass  # a file system without locks, as some network ones are
        for pattern in (".config.json.*.tmp", "logs/.*.tmp", "checkpoints/.*.tmp"):
            for leftover in run.glob(pattern):
                leftover.unlink(missing_ok=True)
        yield


def check_new_run(run: Path, overwrite: bool) -> None:
    """Raise UserError unless a training may begin in the folder `run`: new, empty, or to be overwritten.

    One with nothing but config.json counts as empty: that run ended before it saved anything.
    """
    paths = run.iterdir() if run.is_dir() else []
    names = {path.name for path in paths if not path.is_dir() or any(path.iterdir())} - {".lock"}
    if not names:
        return
    try:
        read_config(run)
    except UserError:
        raise UserError(f"{run} is not empty and holds no run of train.py: use another --out") from None
    if names != {"config.json"} and not overwrite:
        raise UserError(
            f"{run} holds a run already: go on with --resume, delete it with --overwrite, or use another "
            "--out"
        )


def remove_run(run: Path) -> None:
    """Delete what a run consists of from the folder `run`, and nothing else that lies there."""
    for name in RUN_CONTENTS:
        path = run / name
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)


# ---------------------------------------------------------------------------------------------------------
# Checkpoints


def save_checkpoint(path: Path, checkpoint: dict, previous: Path | None = None) -> None:
    """Write a checkpoint, whole or not at all; the file that was there before becomes `previous`."""
    content = io.BytesIO()
    torch.save(checkpoint, content)
    with whole_file(path) as temporary:
        temporary.write_bytes(content.getbuffer())
        if previous and path.exists():
            # A second name for the old file, so that there is a whole `path` at every moment.
            previous.unlink(missing_ok=True)
            try:
                os.link(path, previous)
            except OSError:  # a file system without hard links
                os.replace(path, previous)


def load_checkpoint(path: Path | str, resuming: bool = False) -> dict:
    """Read a checkpoint of train.py without running code in it, and check it; all tensors are on the CPU.

    Checked are the checksums in the file, the keys (with `resuming` also those that only --resume needs), the
    data set's name, the name and shape of every tensor of the network, and that all weights are finite.
    Raises UserError where one of these is wrong.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            damaged = archive.testzip()  # torch.load itself does not compare the checksums
        if damaged:
            raise zipfile.BadZipFile(f"the checksum of {damaged} is wrong")
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise UserError(f"there is no checkpoint {path}") from None
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror or error})") from None
    except pickle.UnpicklingError:
        raise UserError(f"{path} is refused: it holds more than tensors and plain values") from None
    except Exception as error:  # zipfile and torch raise many kinds for a damaged file
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise UserError(f"{path} is damaged or no checkpoint ({reason})") from None

    keys = {"model": dict, "config": dict, "epoch": int, "class_names": list}
    if resuming:
        keys |= {"optimizer": dict, "scaler": dict, "state": dict}
    content = checkpoint if isinstance(checkpoint, dict) else {}
    lacking = [key for key, kind in keys.items() if not isinstance(content.get(key), kind)]
    if lacking:
        raise UserError(f"{path} is no checkpoint of train.py: it lacks {', '.join(lacking)}")

    weights, config, num_classes = content["model"], content["config"], len(content["class_names"])
    dataset, width = config.get("dataset"), config.get("width")
    if dataset not in ("cifar100", "shapes"):
        raise UserError(f"{path} was trained on {dataset}: expected cifar100 or shapes")
    if not isinstance(width, int) or not 1 <= width <= 1024 or num_classes < 1:
        raise UserError(f"{path} describes no network: width {width}, {num_classes} classes")
    with torch.device("meta"):  # shapes without memory
        expected = resnet18(num_classes, width).state_dict()
    for name in expected | weights:
        found, wanted = (getattr(tensors.get(name), "shape", None) for tensors in (weights, expected))
        if found != wanted:
            found, wanted = (list(shape) if shape is not None else "no tensor" for shape in (found, wanted))
            raise UserError(
                f"{path} holds another network: {found} as {name}, where a ResNet-18 of width {width} "
                f"for {num_classes} classes has {wanted}"
            )
        if not weights[name].isfinite().all():
            raise UserError(f"{path} holds values that are not finite in {name}")
    return checkpoint


def load_last(run: Path) -> dict:
    """Return what --resume goes on from: last.pt, or with a note previous.pt where last.pt is damaged."""
    last, previous, damaged = (run / "checkpoints" / f"{name}.pt" for name in ("last", "previous", "damaged"))
    if not last.exists() and not previous.exists():
        raise UserError(f"{run} has saved nothing to go on from: start it without --resume")
    try:
        return load_checkpoint(last, resuming=True)
    except UserError as error:
        if not previous.exists():
            raise
        print(f"note: {error}: trying {previous}", file=sys.stderr)
        checkpoint = load_checkpoint(previous, resuming=True)
        if last.exists():
            last.replace(damaged)  # so that it does not become the next previous.pt
        return checkpoint


def load_model(path: Path | str, device: torch.device) -> tuple[ResNet, dict]:
    """Return the network of a checkpoint in eval mode, float32, channels last; and the checkpoint itself."""
    checkpoint = load_checkpoint(path)
    model = resnet18(len(checkpoint["class_names"]), checkpoint["config"]["width"])
    model.load_state_dict(checkpoint["model"])
    return model.float().to(device, memory_format=torch.channels_last).eval(), checkpoint


def load_data(path: Path, checkpoint: dict, data_dir: str | None) -> tuple[data.Dataset, data.Dataset]:
    """Return the (train, test) splits that the network of a checkpoint was made for.

    CIFAR-100 is looked for in `data_dir`, or where training found it. Raises UserError for other classes.
    """
    config = checkpoint["config"]
    data_dir = data_dir or config.get("settings", {}).get("data_dir", "data")
    train, test = data.load(config["dataset"], data_dir)
    if test.class_names != checkpoint["class_names"]:
        raise UserError(f"the classes of {path} are not those of the {test.name} test set")
    return train, test


def find_checkpoint(run: Path | str | None, checkpoint: Path | str | None) -> Path:
    """Return the checkpoint that the options name: FILE itself, else best.pt of RUN, else of the newest."""
    if checkpoint is not None:
        return Path(checkpoint)
    run = newest_run() if run is None else Path(run)
    if not run.is_dir():
        raise UserError(f"there is no run {run}")
    return run / "checkpoints" / "best.pt"


def results_folder(run: Path | str | None, checkpoint: Path | str | None) -> Path:
    """Return where results go: to RUN, else to the run that FILE is in, else to runs/<name of FILE>."""
    if run is not None:
        return Path(run)
    path = find_checkpoint(run, checkpoint)
    return path.parent.parent if path.parent.name == "checkpoints" else Path("runs") / path.stem


# ---------------------------------------------------------------------------------------------------------
# Device and precision


def pick_device(name: str) -> torch.device:
    """Return the device called `name`; "auto" is the first there is of cuda, mps and cpu."""
    available = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if name == "auto":
        return torch.device(next(kind for kind, there in available.items() if there))
    try:
        device = torch.device(name)
    except RuntimeError:
        raise UserError(f"--device {name}: expected auto, cuda, mps or cpu") from None
    if not available.get(device.type) or (device.index or 0) >= max(1, torch.cuda.device_count()):
        raise UserError(f"--device {name} is not there on this machine: leave it out or use --device cpu")
    return device


def pick_precision(name: str, device: torch.device) -> str:
    """Return "fp32", "bf16" or "fp16" for `name`, which may be "auto": the fastest that trains well there.

    CUDA: bf16 from compute capability 8.0 on, which computes it natively, else fp16 with a gradient scaler.
    CPU: bf16 where the processor multiplies it faster than float32 (AMX, or AVX512-BF16 on AMD), else fp32;
    an Intel server with AVX512-BF16 but without AMX trained at 51 images/s in bf16 and at 73 in fp32.
    """
    if name != "auto":
        if name == "fp16" and device.type != "cuda":
            raise UserError(f"--precision fp16 needs a CUDA GPU, not {device.type}: use bf16 or fp32")
        return name
    if device.type == "cuda":
        return "bf16" if torch.cuda.get_device_capability(device)[0] >= 8 else "fp16"
    with contextlib.suppress(OSError):
        cpu = Path("/proc/cpuinfo").read_text()
        if device.type == "cpu" and ("amx_bf16" in cpu or ("avx512_bf16" in cpu and "AuthenticAMD" in cpu)):
            return "bf16"
    return "fp32"


def autocast(device: torch.device, precision: str) -> torch.autocast:
    """Return the context in which the forward pass runs: mixed precision, or plain float32."""
    dtype = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[precision]
    return torch.autocast(device.type, dtype, enabled=precision != "fp32")


def is_out_of_memory(error: BaseException) -> bool:
    """Whether `error` says that the memory of the GPU or of the machine is used up."""
    phrases = ("out of memory", "can't allocate memory", "not enough memory", "ALLOC_FAILED")
    return isinstance(error, MemoryError) or any(phrase in str(error) for phrase in phrases)


def environment(device: torch.device) -> dict:
    """Return versions, hardware and the commit, as strings, for config.json."""
    hardware = platform.processor() or platform.machine()
    with contextlib.suppress(OSError, IndexError):
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        # Some processors, ARM ones for instance, have no name there.
        hardware = next((line.split(": ")[1] for line in lines if line.startswith("model name")), hardware)
    hardware = f"{hardware}, {os.cpu_count()} cores"
    if device.type == "cuda":
        hardware = f"{torch.cuda.get_device_name(device)}; {hardware}"
    try:
        git = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty", "--abbrev=12"]
        commit = subprocess.run(git, capture_output=True, text=True, timeout=5, check=True).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        commit = "unknown"
    return {
        "python": platform.python_version(),
        "torch": str(torch.__version__),  # its own type is no plain value
        "system": platform.platform(),
        "hardware": hardware,
        "threads": torch.get_num_threads(),
        "commit": commit,
    }


# ---------------------------------------------------------------------------------------------------------
# The console


def duration(seconds: float) -> str:
    """Return 75.2 as "1:15" and 3725 as "1:02:05"."""
    seconds = round(seconds)
    hours, minutes = seconds // 3600, seconds // 60 % 60
    return f"{hours}:{minutes:02d}:{seconds % 60:02d}" if hours else f"{minutes}:{seconds % 60:02d}"


class Progress:
    """A progress bar on a terminal, nothing elsewhere; redrawn at most ten times a second.

    with Progress("test", total) as progress: progress.update(done, loss="2.31")
    """

    def __init__(self, label: str, total: int):
        self.label, self.total = label, total
        self.started = time.monotonic()
        self.first = None  # the count at the first update: an interrupted epoch does not start at 0
        self.drawn = 0.0
        self.shows = sys.stderr.isatty() and os.environ.get("TERM") != "dumb"

    def update(self, done: int, **shown: str) -> None:
        """Draw `done` of the total, the time left and the given values."""
        now = time.monotonic()
        if self.first is None:
            self.first, self.started = done, now
        if not self.shows or now - self.drawn < 0.1:
            return
        self.drawn = now
        left = (now - self.started) / max(1, done - self.first) * (self.total - done)
        values = "  ".join(f"{key} {value}" for key, value in shown.items())
        tail = (
            f" {done}/{self.total}  {values}  {duration(left)} left"
            if done > self.first
            else f" {done}/{self.total}"
        )
        columns = (os.get_terminal_size(sys.stderr.fileno()).columns or 80) - 1
        width = max(0, min(30, columns - len(self.label) - len(tail) - 3))
        filled = round(width * done / max(1, self.total))
        bar = f" [{'=' * filled}{' ' * (width - filled)}]" if width >= 5 else ""
        sys.stderr.write(f"\r{(self.label + bar + tail)[:columns]}\033[K")
        sys.stderr.flush()

    def close(self) -> None:
        """Clear the line."""
        if self.shows:
            sys.stderr.write("\r\033[K")
            sys.stderr.flush()

    def __enter__(self) -> "Progress":
        return self

    def __exit__(self, *exception) -> None:
        self.close()


class CommandLine(argparse.ArgumentParser):
    """An argument parser whose errors are UserErrors: one line, without the usage above it."""

    def __init__(self, description: str):
        super().__init__(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)

    def error(self, message: str) -> None:
        raise UserError(f"{message} (see {self.prog} --help)")


def run_main(main: Callable[[], int | None]) -> None:
    """Run a command line: what the user can mend becomes one line and exit code 2, Ctrl-C exit code 130."""
    for stream in (sys.stdout, sys.stderr):
        # Each line at once, also into a file; a letter that the console cannot show becomes a question mark.
        stream.reconfigure(line_buffering=True, errors="replace")
    try:
        sys.exit(main())
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(130)
    except OSError as error:
        if error.filename is None:
            # Our own output, into `| head` that has gone or a full disk. Python would try again at its end.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        if isinstance(error, BrokenPipeError):
            sys.exit(141)  # as a shell reports SIGPIPE
        where = f"{error.filename}: " if error.filename else ""
        print(f"error: {where}{error.strerror or error}", file=sys.stderr)
        sys.exit(2)

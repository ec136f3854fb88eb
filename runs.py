"""What a run folder holds, checkpoints in and out, the device and its precision, and the console.

runs/<name>/config.json           settings, data, versions and hardware
            logs/history.csv      one row an epoch
            checkpoints/best.pt   the weights with the best validation accuracy
            checkpoints/last.pt   everything that --resume needs
            metrics.json, predictions.npz, plots/, failures/, gradcam/, report.html   from report.py
            stress.json           from stress.py
"""

import argparse
import contextlib
import csv
import json
import os
import platform
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch

from data import UserError, atomic_write
from resnet_cifar import ResNet, resnet18

# ---------------------------------------------------------------------------------------------------------
# Files


def write_json(path: Path, content: dict | list) -> None:
    """Write `content` to `path`, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(path) as temporary:
        temporary.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def write_csv(path: Path, rows: list[dict]) -> None:
    """Write rows with the same keys to `path` under a line of column names, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(path) as temporary, open(temporary, "w", newline="", encoding="utf-8") as file:
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
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read ({error}); is {run} a run of train.py?") from None


def newest_run(parent: Path | str = "runs") -> Path:
    """Return the folder below `parent` whose checkpoint is newest, or raise UserError."""
    checkpoints = list(Path(parent).glob("*/checkpoints/best.pt"))
    if not checkpoints:
        raise UserError(
            f"there is no finished epoch of any run under {parent}/: train one first with train.py"
        )
    return max(checkpoints, key=lambda path: path.stat().st_mtime).parent.parent


# ---------------------------------------------------------------------------------------------------------
# Checkpoints


def save_checkpoint(path: Path, checkpoint: dict) -> None:
    """Write a checkpoint, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(path) as temporary:
        torch.save(checkpoint, temporary)


def load_checkpoint(path: Path | str) -> dict:
    """Read a checkpoint of this project without running code in it, and check it; all tensors on the CPU.

    Raises UserError where the file is absent, is no checkpoint, or does not hold this project's network.
    """
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise UserError(f"there is no checkpoint {path}") from None
    except Exception as error:  # torch.load raises many kinds for damaged and for hostile files
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(f"{path} cannot be read as a checkpoint ({reason})") from None
    missing = {"model", "config", "epoch", "class_names"} - (
        checkpoint.keys() if isinstance(checkpoint, dict) else set()
    )
    if missing:
        raise UserError(f"{path} is no checkpoint of this project: it lacks {', '.join(sorted(missing))}")
    return checkpoint


def load_model(path: Path | str, device: torch.device) -> tuple[ResNet, dict]:
    """Return the network of a checkpoint in eval mode, float32 and channels last, and the checkpoint itself."""
    checkpoint = load_checkpoint(path)
    try:
        model = resnet18(len(checkpoint["class_names"]), checkpoint["config"]["width"])
        model.load_state_dict(checkpoint["model"])
    except (RuntimeError, ValueError, TypeError, KeyError) as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"{path} does not hold the ResNet-18 that it describes ({reason})") from None
    return model.float().to(device, memory_format=torch.channels_last).eval(), checkpoint


def find_checkpoint(run: Path | str | None, checkpoint: Path | str | None) -> Path:
    """Return the checkpoint named by the options: FILE itself, else best.pt of RUN, else of the newest run."""
    if checkpoint is not None:
        return Path(checkpoint)
    run = newest_run() if run is None else Path(run)
    if not run.is_dir():
        raise UserError(f"there is no run {run}")
    return run / "checkpoints" / "best.pt"


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


def environment(device: torch.device) -> dict:
    """Return versions, hardware and the commit, as strings, for config.json."""
    hardware = platform.processor() or platform.machine()
    with contextlib.suppress(OSError, IndexError):
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        hardware = next(line.split(": ")[1] for line in lines if line.startswith("model name"))
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
        "torch": torch.__version__,
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
        columns = shutil.get_terminal_size().columns - 1
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
    """Run a command line: UserError becomes one line and exit code 2, Ctrl-C exit code 130."""
    try:
        sys.exit(main())
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(130)
    except BrokenPipeError:
        # The reader of our output, such as `| head`, has gone. Python would complain again when it flushes.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(128 + signal.SIGPIPE)

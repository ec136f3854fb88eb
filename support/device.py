"""The device to compute on, and a description of it."""

import contextlib
import os
import platform
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import torch

from support.errors import UserError, one_line


def world_size() -> int:
    """Return the number of processes, on all machines together."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def rank() -> int:
    """Return the number of this process, from 0."""
    return int(os.environ["RANK"]) if world_size() > 1 else 0


def pick_device(name: str) -> torch.device:
    """Return the device called `name`; "auto" is the first available of cuda, mps and cpu.

    With several processes each has its own: the GPU of number LOCAL_RANK, or the only GPU that it sees.
    """
    several, gpus = world_size() > 1, torch.cuda.device_count()
    mps = torch.backends.mps.is_available() and not several
    counts = {"cuda": gpus, "mps": int(mps), "cpu": 1}
    if name == "auto":
        name = next(kind for kind, count in counts.items() if count)
    try:
        device = torch.device(name)
    except RuntimeError:
        raise UserError(f"--device {name}: expected auto, cuda, mps or cpu") from None
    if (device.index or 0) >= counts.get(device.type, 0):
        raise UserError(f"--device {name} is not available on this machine: use --device cpu")
    if several and device.type == "cuda":
        # Some launchers let each process see its own GPU only.
        device = torch.device("cuda", int(os.environ["LOCAL_RANK"]) if gpus > 1 else 0)
        if device.index >= gpus:
            raise UserError(f"there are {gpus} CUDA GPUs: start as many processes, or use --device cpu")
        torch.cuda.set_device(device)
    return device


@contextlib.contextmanager
def full_float32(device: torch.device | str) -> Iterator[None]:
    """Run a block in float32 and with deterministic algorithms, then restore what the caller had set.

    Without it a surrounding autocast would count, and cuDNN would convolve in TF32 on newer GPUs. Matrix
    products are in full float32 unless the caller has asked torch for less.
    """
    cudnn = torch.backends.cudnn
    wanted = [(cudnn, "deterministic", True), (cudnn, "benchmark", False)]
    if hasattr(cudnn, "conv"):  # torch 2.9 and later, where reading allow_tf32 may raise an error
        wanted.append((cudnn.conv, "fp32_precision", "ieee"))
    else:
        wanted.append((cudnn, "allow_tf32", False))
    before = [(owner, name, getattr(owner, name)) for owner, name, _ in wanted]
    try:
        for owner, name, value in wanted:
            setattr(owner, name, value)
        with torch.autocast(torch.device(device).type, enabled=False):
            yield
    finally:
        for owner, name, value in before:
            setattr(owner, name, value)


def cpuinfo() -> str:
    """Return what Linux says about the processor, and "" elsewhere."""
    path = Path("/proc/cpuinfo")
    return path.read_text(errors="replace") if path.exists() else ""


def environment(device: torch.device) -> dict:
    """Return the versions, the hardware and the commit as plain strings and numbers, for config.json."""
    processor = re.search(r"model name\s*: (.*)", cpuinfo())
    hardware = f"{processor[1] if processor else platform.machine()}, {os.cpu_count()} cores"
    if device.type == "cuda":
        hardware = f"{torch.cuda.get_device_name(device)}; {hardware}"
    git = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty", "--abbrev=12"]
    try:
        commit = subprocess.run(git, capture_output=True, timeout=5, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        commit = b"unknown"
    return {
        "python": platform.python_version(),
        "torch": str(torch.__version__),  # a plain string, not torch's own type
        "system": platform.platform(),
        "hardware": hardware,
        "threads": torch.get_num_threads(),
        "processes": world_size(),
        "commit": one_line(commit.decode(errors="replace")),
    }

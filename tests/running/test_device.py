"""running/device.py: which device and precision are picked, and how they are described."""

import pathlib

import pytest
import torch

from running.device import advice_on, autocast, pick_device, pick_precision
from running.files import UserError

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


def machine(monkeypatch, gpus=0, mps=False):
    """Let torch see so many GPUs; return the list of what is set as the current one."""
    used = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpus > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    monkeypatch.setattr(torch.cuda, "set_device", used.append)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: mps)
    return used


@pytest.mark.parametrize(
    "gpus, mps, expected", [(2, True, "cuda"), (1, False, "cuda"), (0, True, "mps"), (0, False, "cpu")]
)
def test_auto_device_is_the_first_of_cuda_mps_and_cpu(monkeypatch, gpus, mps, expected):
    machine(monkeypatch, gpus, mps)
    assert pick_device("auto").type == expected and pick_device("cpu") == CPU
    for name, there in [("cuda", gpus), ("cuda:1", gpus > 1), ("cuda:2", 0), ("mps", mps), ("meta", 0)]:
        if there:
            assert pick_device(name) == torch.device(name)
        else:
            with pytest.raises(UserError, match=f"--device {name} is not available on this machine"):
                pick_device(name)


@pytest.mark.parametrize("gpus, local_rank, index", [(2, "0", 0), (2, "1", 1), (1, "1", 0), (1, "7", 0)])
def test_each_of_several_processes_has_its_own_gpu_or_the_only_one_it_sees(
    monkeypatch, gpus, local_rank, index
):
    used = machine(monkeypatch, gpus)
    monkeypatch.setenv("WORLD_SIZE", "8")
    monkeypatch.setenv("LOCAL_RANK", local_rank)
    for name in ("auto", "cuda"):
        assert pick_device(name) == torch.device("cuda", index) and used.pop() == index
    assert pick_device("cpu") == CPU and used == []


@pytest.mark.parametrize("gpus, local_rank, name", [(2, "2", "cuda"), (2, "0", "cuda:1"), (0, "0", "cuda")])
def test_several_processes_without_a_gpu_for_each_are_refused(monkeypatch, gpus, local_rank, name):
    machine(monkeypatch, gpus, mps=True)
    monkeypatch.setenv("WORLD_SIZE", "3")
    monkeypatch.setenv("LOCAL_RANK", local_rank)
    with pytest.raises(UserError, match=f"--device {name} "):
        pick_device(name)


INTEL, AMD = "vendor_id : GenuineIntel\nflags : fpu avx512f", "vendor_id : AuthenticAMD\nflags : fpu avx512f"


@pytest.mark.parametrize(
    "device, capability, cpuinfo, expected",
    [
        ("cuda", (7, 5), "", "fp16"),  # T4
        ("cuda", (8, 0), "", "bf16"),  # A100
        ("cuda", (12, 0), "", "bf16"),
        ("mps", None, AMD + " avx512_bf16", "fp32"),
        ("cpu", None, AMD + " avx512_bf16", "bf16"),  # Zen 4
        ("cpu", None, AMD, "fp32"),
        ("cpu", None, INTEL + " avx512_bf16", "fp32"),  # Cooper Lake
        ("cpu", None, INTEL + " avx512_bf16 amx_bf16", "bf16"),  # Sapphire Rapids
        ("cpu", None, None, "fp32"),  # no /proc: macOS, Windows
    ],
)
def test_auto_precision(monkeypatch, device, capability, cpuinfo, expected):
    def read_text(path, **kwargs):
        assert str(path) == "/proc/cpuinfo"
        if cpuinfo is None:
            raise FileNotFoundError(path)
        return cpuinfo

    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    monkeypatch.setattr(pathlib.Path, "read_text", read_text)
    assert pick_precision("auto", torch.device(device)) == expected


@pytest.mark.parametrize(
    "precision, dtype", [("fp32", torch.float32), ("bf16", torch.bfloat16), ("fp16", torch.float16)]
)
def test_autocast_computes_in_that_precision(precision, dtype):
    with autocast(CPU, precision):
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == dtype


def test_autocast_in_float32_names_no_dtype(monkeypatch):
    """On Apple GPUs torch before 2.10 warns of any dtype it cannot cast to, even where it casts nothing."""
    seen = []
    monkeypatch.setattr(torch, "autocast", lambda *args, **options: seen.append((*args, *options.values())))
    autocast(torch.device("mps"), "fp32")
    assert torch.float32 not in seen[0] and False in seen[0]


def test_out_of_memory_is_told_from_other_errors():
    with pytest.raises(RuntimeError) as of_the_cpu:
        torch.empty(10**16)
    for error in (
        of_the_cpu.value,
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
        RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"),
        MemoryError(),
    ):
        assert advice_on(error).startswith("out of memory: free some and resume the run, or start a new run")
    assert advice_on(RuntimeError("CUDA error: an illegal memory access was encountered")) is None

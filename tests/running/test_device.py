"""running/device.py: which device and precision are picked, and how they are described."""

import os
import pathlib
import sys

import pytest
import torch
from processes import TINY, assert_one_line, outcome

import train
from running.device import autocast, environment, is_out_of_memory, pick_device, pick_precision
from running.files import UserError

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


@pytest.mark.parametrize(
    "cuda, mps, expected", [(True, True, "cuda"), (False, True, "mps"), (False, False, "cpu")]
)
def test_auto_device_is_the_first_of_cuda_mps_and_cpu(monkeypatch, cuda, mps, expected):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: mps)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2 * cuda)
    assert pick_device("auto").type == expected
    assert pick_device("cpu") == CPU
    for name, there in [("cuda", cuda), ("cuda:1", cuda), ("cuda:2", False), ("mps", mps), ("meta", False)]:
        if there:
            assert pick_device(name) == torch.device(name)
        else:
            with pytest.raises(UserError, match=f"--device {name} is not available on this machine"):
                pick_device(name)


@pytest.mark.parametrize("name", ["gpu", "", "cpu:", "cuda:x", "CPU "])
def test_a_device_that_is_none(name):
    with pytest.raises(UserError, match="expected auto, cuda, mps or cpu"):
        pick_device(name)


INTEL, AMD = "vendor_id : GenuineIntel\nflags : fpu avx512f", "vendor_id : AuthenticAMD\nflags : fpu avx512f"


@pytest.mark.parametrize(
    "device, capability, cpuinfo, expected",
    [
        ("cuda", (7, 5), "", "fp16"),  # T4
        ("cuda", (6, 1), "", "fp16"),
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


def test_a_precision_that_is_named():
    for device in (CPU, CUDA):
        assert [pick_precision(name, device) for name in ("fp32", "bf16")] == ["fp32", "bf16"]
    assert pick_precision("fp16", CUDA) == "fp16"
    with pytest.raises(UserError, match="--precision fp16 needs a CUDA GPU"):
        pick_precision("fp16", CPU)


@pytest.mark.parametrize(
    "precision, dtype", [("fp32", torch.float32), ("bf16", torch.bfloat16), ("fp16", torch.float16)]
)
def test_autocast_computes_in_that_precision(precision, dtype):
    with autocast(CPU, precision):
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == dtype


def test_environment_is_plain_strings_and_numbers(tmp_path):
    content = environment(CPU)
    assert all(type(value) in (str, int) for value in content.values())
    assert content["torch"] == torch.__version__ and content["python"] == sys.version.split()[0]
    torch.save(content, tmp_path / "x.pt")
    assert torch.load(tmp_path / "x.pt", weights_only=True) == content


def test_environment_of_a_processor_without_a_name(monkeypatch):
    monkeypatch.setattr(pathlib.Path, "read_text", lambda *args, **kwargs: "processor\t: 0\nBogoMIPS\t: 50\n")
    assert environment(CPU)["hardware"].endswith(f"{os.cpu_count()} cores")


def test_environment_without_git(monkeypatch):
    monkeypatch.setenv("PATH", "/nowhere")
    assert environment(CPU)["commit"] == "unknown"


@pytest.mark.parametrize(
    "error, expected",
    [
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."), True),
        (RuntimeError("MPS backend out of memory (MPS allocated: 5.00 GB)"), True),
        (RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"), True),
        (MemoryError(), True),
        (RuntimeError("CUDA error: an illegal memory access was encountered"), False),
        (RuntimeError("unsupported memory format"), False),
    ],
)
def test_out_of_memory_is_told_from_other_errors(error, expected):
    assert is_out_of_memory(error) == expected


def test_out_of_memory_of_the_cpu():
    with pytest.raises(RuntimeError) as info:
        torch.empty(10**16)
    assert is_out_of_memory(info.value)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA GPU")
def test_cuda_that_is_not_there(tmp_path, capsys, small):
    argv = [*TINY, "--device", "cuda", "--out", str(tmp_path)]
    assert_one_line(
        *outcome(capsys, train.main, argv), "--device cuda is not available on this machine: use --device cpu"
    )

"""running/device.py: which device and precision are picked, and how they are described."""

import pytest
import torch

from running import device
from running.device import autocast, environment, pick_device, pick_precision
from running.errors import UserError

CPU = torch.device("cpu")


def machine(monkeypatch, gpus=0, mps=False, processes=1, local_rank=0):
    """Let torch see so many GPUs; return the list of what is set as the current one."""
    used = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpus > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    monkeypatch.setattr(torch.cuda, "set_device", used.append)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: mps)
    monkeypatch.setenv("WORLD_SIZE", str(processes))
    monkeypatch.setenv("LOCAL_RANK", str(local_rank))
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
            with pytest.raises(UserError, match=f"--device {name} is not available"):
                pick_device(name)


@pytest.mark.parametrize("gpus, local_rank, index", [(2, 0, 0), (2, 1, 1), (1, 1, 0), (1, 7, 0)])
def test_each_of_several_processes_has_its_own_gpu_or_the_only_one_it_sees(
    monkeypatch, gpus, local_rank, index
):
    used = machine(monkeypatch, gpus, processes=8, local_rank=local_rank)
    for name in ("auto", "cuda"):
        assert pick_device(name) == torch.device("cuda", index) and used.pop() == index
    assert pick_device("cpu") == CPU and used == []


@pytest.mark.parametrize(
    "gpus, local_rank, processes, name",
    [(2, 2, 3, "cuda"), (2, 0, 3, "cuda:1"), (0, 0, 3, "cuda"), (0, 0, 3, "mps"), (0, 0, 1, "gpu")],
)
def test_a_device_that_cannot_be_had_is_refused(monkeypatch, gpus, local_rank, processes, name):
    machine(monkeypatch, gpus, mps=True, processes=processes, local_rank=local_rank)
    with pytest.raises(UserError, match=f"--device {name}"):
        pick_device(name)


@pytest.mark.parametrize(
    "kind, capability, cpuinfo, expected",
    [
        ("cuda", (7, 5), "", "fp16"),  # T4
        ("cuda", (8, 0), "", "bf16"),  # A100
        ("mps", None, "AuthenticAMD avx512_bf16", "fp32"),
        ("cpu", None, "AuthenticAMD avx512_bf16", "bf16"),  # Zen 4
        ("cpu", None, "AuthenticAMD avx512f", "fp32"),
        ("cpu", None, "GenuineIntel avx512_bf16", "fp32"),  # Cooper Lake
        ("cpu", None, "GenuineIntel avx512_bf16 amx_bf16", "bf16"),  # Sapphire Rapids
        ("cpu", None, "", "fp32"),  # no /proc: macOS, Windows
    ],
)
def test_auto_precision(monkeypatch, kind, capability, cpuinfo, expected):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    monkeypatch.setattr(device, "cpuinfo", lambda: cpuinfo)
    assert pick_precision("auto", torch.device(kind)) == expected
    assert pick_precision("fp32", torch.device(kind)) == "fp32"


def test_autocast_computes_in_that_precision():
    for precision, dtype in {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}.items():
        with autocast(CPU, precision):
            assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == dtype


@pytest.mark.parametrize("prints, commit", [(r"v1\377\n", "v1\ufffd"), (None, "unknown")])
def test_environment_is_plain_whatever_git_prints(tmp_path, monkeypatch, prints, commit):
    if prints:
        (tmp_path / "git").write_text(f"#!/bin/sh\nprintf '{prints}'\n")
        (tmp_path / "git").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    known = environment(CPU)
    assert known["commit"] == commit
    assert known["threads"] == torch.get_num_threads() and known["processes"] == 1
    assert all(type(value) in (str, int) for value in known.values())

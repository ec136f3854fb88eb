"""support/device.py: which device is picked, and how it is described."""

import pytest
import torch

from support.device import environment, full_float32, pick_device
from support.errors import UserError

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


def test_each_of_several_processes_has_its_own_gpu(monkeypatch):
    used = machine(monkeypatch, 2, processes=8, local_rank=1)
    for name in ("auto", "cuda"):
        assert pick_device(name) == used.pop() == torch.device("cuda", 1)
    assert pick_device("cpu") == CPU and used == []
    machine(monkeypatch, 1, processes=8, local_rank=7)
    assert pick_device("auto") == torch.device("cuda", 0)
    machine(monkeypatch, 2, processes=3, local_rank=2)
    with pytest.raises(UserError, match="there are 2 CUDA GPUs: start as many processes"):
        pick_device("auto")


@pytest.mark.parametrize("value", ["ieee", "tf32"])
def test_full_float32_whatever_the_caller_has_set(value, monkeypatch):
    cudnn = torch.backends.cudnn
    newer = hasattr(cudnn, "conv")  # torch 2.9: beside this setting, reading the older allow_tf32 may raise
    owner, name = (cudnn.conv, "fp32_precision") if newer else (cudnn, "allow_tf32")
    value, wanted = (value, "ieee") if newer else (value == "tf32", False)
    before = getattr(owner, name)
    monkeypatch.setattr(cudnn, "benchmark", True)
    monkeypatch.setattr(cudnn, "deterministic", False)
    try:
        setattr(owner, name, value)
        with torch.autocast("cpu", torch.bfloat16), full_float32(CPU):
            product = torch.ones(2, 2) @ torch.ones(2, 2)
            during = (getattr(owner, name), cudnn.deterministic, cudnn.benchmark, product.dtype)
        assert during == (wanted, True, False, torch.float32)
        assert (getattr(owner, name), cudnn.deterministic, cudnn.benchmark) == (value, False, True)
    finally:
        setattr(owner, name, before)


def test_environment_is_plain_also_without_git(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    known = environment(CPU)
    assert known["commit"] == "unknown"
    assert known["threads"] == torch.get_num_threads() and known["processes"] == 1
    assert all(type(value) in (str, int) for value in known.values())

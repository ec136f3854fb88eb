"""The processes of one training, as torchrun starts them, one for each device:

    torchrun --nproc-per-node 2 train.py

Each process runs the whole program with its share of every batch. The gradients are averaged over the
processes after each backward pass, so all take the step that one process would take with the whole batch, and
the weights, which begin equal, stay equal. Batch norm takes the mean and variance of a process's own share;
its running statistics are averaged over the processes after each epoch. Rank 0 alone downloads, prints and
writes. With one process all this does nothing.
"""

import contextlib
import importlib
import os
from collections.abc import Iterator
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import Tensor, nn

from support.device import rank, world_size


@contextlib.contextmanager
def init_distributed() -> Iterator[None]:
    """Connect the processes for the length of a with block; only rank 0 prints."""
    if world_size() == 1:
        yield
        return
    # The optimizer imports this module, whose default arguments hold the group of the time. With a group in
    # them destroy_process_group leaves the threads of gloo behind, which may abort Python when it ends.
    importlib.import_module("torch.distributed.nn")
    # On GPUs tensors on the CPU still travel by gloo. The timeout is long, as rank 0 may have to download.
    nccl = torch.cuda.is_available() and dist.is_nccl_available()  # Windows has none
    dist.init_process_group("cpu:gloo,cuda:nccl" if nccl else "gloo", timeout=timedelta(days=1))
    with open(os.devnull, "w") as nowhere, contextlib.ExitStack() as stack:
        if rank() > 0:
            stack.enter_context(contextlib.redirect_stdout(nowhere))
            stack.enter_context(contextlib.redirect_stderr(nowhere))
        yield
        barrier()
    dist.destroy_process_group()  # not after an error, as it could wait for a process that is gone


def barrier() -> None:
    """Wait until every process has come here."""
    all_reduce(torch.zeros(1))


def shard(rows: Tensor) -> Tensor:
    """Return the part of `rows` [N, ...] that this process computes: N / processes consecutive ones."""
    return rows.tensor_split(world_size())[rank()]


def all_gather(part: Tensor) -> Tensor:
    """Return the parts of all processes, on the CPU, as one tensor again: the opposite of shard."""
    if world_size() == 1:
        return part
    parts = [None] * world_size()
    dist.all_gather_object(parts, part)
    return torch.cat(parts)


def all_reduce(values: Tensor) -> Tensor:
    """Return the sum of `values` over the processes."""
    if world_size() == 1:
        return values
    values = values.clone()
    dist.all_reduce(values)
    return values


def average_gradients(model: nn.Module) -> None:
    """Give all processes the mean of their gradients."""
    if world_size() == 1:
        return
    gradients = [parameter.grad for parameter in model.parameters()]
    mean = all_reduce(torch.cat([gradient.flatten() for gradient in gradients])) / world_size()
    parts = mean.split([gradient.numel() for gradient in gradients])
    for gradient, part in zip(gradients, parts, strict=True):
        gradient.copy_(part.view_as(gradient))


def average_running_statistics(model: nn.Module) -> None:
    """Give all processes the mean of their running statistics of batch norm."""
    for buffer in model.buffers():
        if buffer.is_floating_point():
            buffer.copy_(all_reduce(buffer) / world_size())

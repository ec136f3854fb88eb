"""The processes of one training, as torchrun starts them, one for each device:

    torchrun --nproc-per-node 2 train.py

Each of them runs the whole program with its share of every batch. DistributedDataParallel averages their
gradients, so all take the same step, that of one process with the whole batch, and their weights stay equal.
Batch norm, as everywhere, takes the mean and variance of a process's own share; its running statistics are
averaged over the processes after each epoch. Process 0 alone downloads, prints and writes.

torchrun says in environment variables how many processes there are, and which of them this is. A program that
is started without it is process 0 of 1, and for that all functions here do nothing.
"""

import contextlib
import os
import threading
import warnings
from collections.abc import Iterator
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import Tensor, nn

from running.files import UserError

# Summed over the processes only to wait for each other. It is global, because in torch 2.6 the end of the
# connections may hang if it was freed before.
NOTHING = torch.zeros(1)


def world_size() -> int:
    """Return the number of processes, on all machines together."""
    return int(os.environ.get("WORLD_SIZE", 1))


def rank() -> int:
    """Return the number of this process, from 0."""
    return int(os.environ.get("RANK", 0))


@contextlib.contextmanager
def init_distributed() -> Iterator[None]:
    """Join the other processes for the length of a with block; what all but process 0 print goes nowhere.

    If one process fails, all end. The first to fail counts itself in a store that all share, and its
    exception becomes the one message; the others see the count and end silently.
    """
    if world_size() == 1:
        yield
        return
    store, over = next(dist.rendezvous("env://"))[0], threading.Event()
    threading.Thread(target=end_with_others, args=(store, over), daemon=True).start()
    try:
        with contextlib.ExitStack() as streams:
            if rank() > 0:
                nowhere = streams.enter_context(open(os.devnull, "w"))
                streams.enter_context(contextlib.redirect_stdout(nowhere))
                streams.enter_context(contextlib.redirect_stderr(nowhere))
            # On GPUs tensors on the CPU still travel by gloo. The others wait for a download, however slow.
            backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
            dist.init_process_group(backend, timeout=timedelta(days=1))
            barrier()  # an error in the block finds all of them connected
            yield
            barrier()
        over.set()
        dist.destroy_process_group()
    except (Exception, KeyboardInterrupt) as error:
        if store.add("failed", 1) > 1:
            raise SystemExit(1) from None
        if isinstance(error, RuntimeError) and "by peer" in str(error):  # gloo's "Connection closed by peer"
            raise UserError("another process of this training was ended; what was saved is whole") from None
        raise


def end_with_others(store: dist.Store, over: threading.Event) -> None:
    """End this process, even while it waits for another one, once that has failed or torchrun has ended."""
    while not over.wait(0.5):
        with contextlib.suppress(RuntimeError):  # raised when the store has ended with torchrun
            if not store.check(["failed"]):
                continue
        if not over.wait(3):  # time to clear up
            os._exit(1)


def barrier() -> None:
    """Wait until every process has come here."""
    if world_size() > 1:
        dist.all_reduce(NOTHING)


@contextlib.contextmanager
def rank_0_first() -> Iterator[None]:
    """Run a with block in process 0, and in the others when it has ended there."""
    if rank() > 0:
        barrier()
    yield
    if rank() == 0:
        barrier()


def own_device(device: torch.device) -> torch.device:
    """Return the device of this process: with several, the GPU of number LOCAL_RANK, or the CPU of all."""
    if world_size() == 1 or device.type == "cpu":
        return device
    index = int(os.environ.get("LOCAL_RANK", 0))
    if device.index is not None or index >= torch.cuda.device_count():
        found = f"--device {device} with {torch.cuda.device_count()} CUDA GPUs"
        raise UserError(f"{found}: several processes need --device cuda with a GPU for each, or --device cpu")
    torch.cuda.set_device(index)
    return torch.device("cuda", index)


def shard(rows: Tensor) -> Tensor:
    """Return the part of `rows` [N, ...] that this process computes: N / processes consecutive ones."""
    return rows.tensor_split(world_size())[rank()]


def all_gather(share: Tensor) -> Tensor:
    """Return the shares of all processes, on the CPU, as one tensor again: the opposite of shard."""
    if world_size() == 1:
        return share
    shares = [None] * world_size()
    dist.all_gather_object(shares, share)
    return torch.cat(shares)


def all_reduce(values: Tensor) -> Tensor:
    """Return the sum of `values` over the processes."""
    if world_size() == 1:
        return values
    values = values.clone()
    dist.all_reduce(values)
    return values


def data_parallel(model: nn.Module) -> nn.Module:
    """Return the model so that its gradients are averaged over the processes."""
    if world_size() == 1:
        return model
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # torch is about to rename the option
        return nn.parallel.DistributedDataParallel(model, broadcast_buffers=False)


def average_running_statistics(model: nn.Module) -> None:
    """Give all processes the mean of their running statistics of batch norm."""
    for buffer in model.buffers():
        if buffer.is_floating_point():
            buffer.copy_(all_reduce(buffer) / world_size())

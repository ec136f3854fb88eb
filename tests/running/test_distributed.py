"""running/distributed.py: two processes on a CPU against one, and torchrun, which ends all when one fails."""

import os
import subprocess
import sys
import time

import pytest
import torch
import torch.distributed as dist
from processes import ROOT, check_invariants, contents, finish, needs_fork
from torch import nn

import data
import train
from resnet_cifar import resnet18
from running import distributed
from running.folder import load_checkpoint, read_history

# ---- The parts alone -------------------------------------------------------------------------------------


def test_one_process_is_left_as_it_is():
    model, rows = resnet18(3, 2), torch.arange(6.0)
    assert (distributed.world_size(), distributed.rank()) == (1, 0)
    assert distributed.data_parallel(model) is model
    for function in (distributed.all_gather, distributed.all_reduce):
        assert function(rows) is rows
    assert torch.equal(distributed.shard(rows), rows)
    with distributed.init_distributed(), distributed.rank_0_first():
        assert not dist.is_initialized()


@pytest.mark.parametrize("rows, count", [(12, 3), (7, 3), (2, 4), (0, 2)])
def test_shards_are_all_rows_in_order(monkeypatch, rows, count):
    monkeypatch.setenv("WORLD_SIZE", str(count))
    shards = []
    for number in range(count):
        monkeypatch.setenv("RANK", str(number))
        shards.append(distributed.shard(torch.arange(rows)))
    assert torch.cat(shards).tolist() == list(range(rows))
    assert max(map(len, shards)) - min(map(len, shards)) <= 1


@pytest.mark.parametrize(
    "cuda, nccl, backend",
    [
        (True, True, "cpu:gloo,cuda:nccl"),
        (True, False, "gloo"),
        (False, True, "gloo"),
        (False, False, "gloo"),
    ],
)
def test_nccl_is_asked_for_only_where_it_is_available(monkeypatch, cuda, nccl, backend):
    """On Windows torch has CUDA and no NCCL."""
    asked = []
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda)
    monkeypatch.setattr(dist, "is_nccl_available", lambda: nccl)
    monkeypatch.setattr(dist, "init_process_group", lambda backend, **options: asked.append(backend))
    monkeypatch.setattr(dist, "all_reduce", lambda values: None)
    monkeypatch.setattr(dist, "destroy_process_group", lambda: None)
    with distributed.init_distributed():
        assert asked == [backend]


# ---- Two processes compute what one does -----------------------------------------------------------------


def become(number, port, then, folder):
    """Let this process be number 0 or 1 of two, as torchrun would, and then call `then` with the folder."""
    os.environ |= {"RANK": str(number), "LOCAL_RANK": str(number), "WORLD_SIZE": "2"}
    os.environ |= {"MASTER_ADDR": "localhost", "MASTER_PORT": str(port)}
    os.environ["TORCHELASTIC_USE_AGENT_STORE"] = "True"
    then(folder)


@pytest.fixture
def start_two(start, tmp_path):
    """start_two(argv) starts train.py in two processes, with their output in tmp_path/log0 and log1."""
    stores = []  # torchrun keeps the store where the processes find each other; here this process does

    def start_two(argv, then, folder):
        stores.append(dist.TCPStore("localhost", 0, is_master=True, wait_for_workers=False))
        rows = [(number, stores[-1].port, then, folder) for number in (0, 1)]
        return [start(argv, tmp_path / f"log{row[0]}", prepare=become, arguments=row) for row in rows]

    return start_two


def logs(folder):
    return [(folder / f"log{number}").read_text() for number in (0, 1)]


def record_gradients(folder):
    """Compute in float64 with batch norm in eval mode, and keep the gradients of each step in a file."""
    step, count = torch.optim.SGD.step, 0

    def recording(self, closure=None):
        nonlocal count
        gradients = [parameter.grad for group in self.param_groups for parameter in group["params"]]
        torch.save(gradients, folder / f"step {count} of {distributed.rank()}.pt")
        count += 1
        return step(self)

    torch.optim.SGD.step = recording
    nn.BatchNorm2d.train = lambda self, mode=True: nn.Module.train(self, False)
    train.resnet18 = lambda *args: resnet18(*args).double()
    train.to_input = lambda *args: data.to_input(*args).double()


@pytest.mark.slow
@needs_fork
@pytest.mark.parametrize("options", ["", "--clip-norm 0.01 --batch-size 6 --limit-train 12"])
def test_gradients_and_history_are_those_of_one_process_with_the_whole_batch(
    tmp_path, start, start_two, tiny_cifar, options
):
    argv = [*tiny_cifar, *options.split(), "--lr", "0.01"]
    (tmp_path / "two").mkdir()
    alone = start([*argv, "--out", str(tmp_path / "a")], prepare=record_gradients, arguments=(tmp_path,))
    both = start_two([*argv, "--out", str(tmp_path / "b")], record_gradients, tmp_path / "two")
    assert [finish(process) for process in [alone, *both]] == [0, 0, 0], logs(tmp_path)
    for step in range(6):
        expected = torch.load(tmp_path / f"step {step} of 0.pt")
        assert sum(gradient.abs().sum() for gradient in expected) > 0
        for number in (0, 1):
            gradients = torch.load(tmp_path / "two" / f"step {step} of {number}.pt")
            torch.testing.assert_close(gradients, expected, rtol=0, atol=1e-10)
    for ours, theirs in zip(read_history(tmp_path / "b"), read_history(tmp_path / "a"), strict=True):
        assert list(ours.values())[:-2] == pytest.approx(list(theirs.values())[:-2], abs=1e-6)


def record_weights(folder):
    """Keep the weights and running statistics, as they are when an epoch is validated, in a file.

    Process 0 takes a while to load the data; the other may not begin before it has them.
    """
    average, load = distributed.average_running_statistics, train.load

    def recording(model):
        before = model.bn1.running_mean.clone()
        average(model)
        kept = {"model": model.state_dict(), "before": before}
        torch.save(kept, folder / f"weights of {distributed.rank()}.pt")

    def load_in_order(*args):
        if distributed.rank() == 0:
            time.sleep(0.5)
            (folder / "loaded").touch()
        assert (folder / "loaded").exists()
        return load(*args)

    distributed.average_running_statistics, train.load = recording, load_in_order


@pytest.mark.slow
@needs_fork
def test_equal_weights_one_set_of_files_and_one_output(tmp_path, start, start_two, tiny_cifar, finished):
    run = tmp_path / "run"
    both = start_two([*tiny_cifar, "--out", str(run)], record_weights, tmp_path)
    assert [finish(process) for process in both] == [0, 0], logs(tmp_path)
    ends = [torch.load(tmp_path / f"weights of {number}.pt") for number in (0, 1)]
    saved = load_checkpoint(run / "checkpoints" / "last.pt")["model"]
    for end in ends:
        torch.testing.assert_close(end["model"], saved, rtol=0, atol=0)
    assert not torch.equal(ends[0]["before"], ends[1]["before"])
    torch.testing.assert_close(saved["bn1.running_mean"], (ends[0]["before"] + ends[1]["before"]) / 2)
    assert {path.relative_to(run) for path in contents(run)} == {
        path.relative_to(finished) for path in contents(finished)
    }
    assert check_invariants(run) == 3
    assert logs(tmp_path)[0].count("\nepoch ") == 3 and logs(tmp_path)[1] == ""
    # The validation logits that were gathered are those of one process, in the same order.
    model, best = train.load_model(run / "checkpoints" / "best.pt", torch.device("cpu"))
    train_set, _ = data.load("cifar100", best["config"]["settings"]["data_dir"])
    val_index = data.split_indices(train_set, 0.2, 0)[1][: len(best["val_labels"])]
    assert torch.equal(best["val_labels"], train_set.labels[val_index])
    logits = train.predict(model, train_set.images[val_index], torch.device("cpu"))
    torch.testing.assert_close(best["val_logits"].float(), logits, rtol=1e-2, atol=1e-2)
    # The run is resumed by one process as well.
    assert finish(start(["--resume", "--out", str(run)], tmp_path / "log2")) == 0
    assert "is finished after 3 epochs" in (tmp_path / "log2").read_text()


# ---- torchrun itself -------------------------------------------------------------------------------------

TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2"]
OPTIONS = "--dataset shapes --limit-train 96 --epochs 2 --device cpu --out run"


@pytest.mark.slow
def test_torchrun(tmp_path):
    """The command of the README, on the CPU."""
    command = [*TORCHRUN, str(ROOT / "train.py"), *OPTIONS.split()]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0 and "Traceback" not in done.stderr, done.stderr
    assert done.stdout.count("\nepoch ") == 2 and "2 processes" in done.stdout
    assert check_invariants(tmp_path / "run") == 2


FAILING = """
import time, train
from pathlib import Path
from running.console import run_main
from running.distributed import rank

epoch = train.train_one_epoch

def failing(training, number):
    if number == 2:
        if rank() == {number}:
            Path("failed").touch()
            raise IndexError("something is wrong")
        time.sleep(1000)  # as stuck as can be
    return epoch(training, number)

train.train_one_epoch = failing
run_main(train.main)
"""


@pytest.mark.slow
@pytest.mark.parametrize("number", [0, 1])
def test_torchrun_ends_all_when_one_fails(tmp_path, number):
    (tmp_path / "failing.py").write_text(FAILING.format(number=number))
    env = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    with open(tmp_path / "log", "w") as log:
        process = subprocess.Popen(
            [*TORCHRUN, "failing.py", *OPTIONS.split()], cwd=tmp_path, env=env, stdout=log, stderr=log
        )
    try:
        assert process.wait(120) == 1
    finally:
        process.terminate()  # which ends its children too
    assert time.time() - (tmp_path / "failed").stat().st_mtime < 15
    assert "IndexError: something is wrong" in (tmp_path / "log").read_text()
    assert check_invariants(tmp_path / "run") == 1

"""running/distributed.py: two processes on a CPU against one, and what happens to both when one fails."""

import os
import re
import signal
import subprocess
import sys
import time

import pytest
import torch
import torch.distributed as dist
from processes import ROOT, check_invariants, contents, finish, needs_fork, wait_for
from torch import nn

import data
import train
from resnet_cifar import resnet18
from running import distributed
from running.files import UserError
from running.folder import load_checkpoint, read_history


def become(number, port, then=None, folder=None):
    """Let this process be number 0 or 1 of two, as torchrun would, and then call `then` with the folder."""
    os.environ |= {"RANK": str(number), "LOCAL_RANK": str(number), "WORLD_SIZE": "2"}
    os.environ |= {"MASTER_ADDR": "localhost", "MASTER_PORT": str(port)}
    os.environ["TORCHELASTIC_USE_AGENT_STORE"] = "True"
    if then:
        then(folder)


@pytest.fixture
def start_two(start, tmp_path):
    """start_two(argv) starts train.py in two processes, with their output in tmp_path/log0 and log1.

    `then` is called in both of them before the training, or in one, if it is {number: function}.
    """
    stores = []  # torchrun keeps the store where the processes find each other; here this process does

    def start_two(argv, then=None, folder=tmp_path):
        stores.append(dist.TCPStore("localhost", 0, is_master=True, wait_for_workers=False))
        for number in (0, 1):
            (tmp_path / f"log{number}").unlink(missing_ok=True)
        arguments = [
            (number, stores[-1].port, then.get(number) if isinstance(then, dict) else then, folder)
            for number in (0, 1)
        ]
        return [
            start(argv, stdout=tmp_path / f"log{row[0]}", prepare=become, arguments=row) for row in arguments
        ]

    return start_two


def logs(folder):
    return [(folder / f"log{number}").read_text() for number in (0, 1)]


def last(run):
    return load_checkpoint(run / "checkpoints" / "last.pt", resuming=True)


# ---------------------------------------------------------------------------------------------------------
# Two processes compute what one does


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


@needs_fork
@pytest.mark.parametrize("options", ["", "--clip-norm 0.01 --batch-size 6 --limit-train 12"])
def test_gradients_are_those_of_one_process_with_the_whole_batch(
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
    # The columns of the history, but for the two of time, are those of one process as well.
    for ours, theirs in zip(read_history(tmp_path / "b"), read_history(tmp_path / "a"), strict=True):
        assert list(ours.values())[:-2] == pytest.approx(list(theirs.values())[:-2], abs=1e-6)


def record_weights(folder):
    """Keep the weights and running statistics, as they are when an epoch is validated, in a file."""
    average = distributed.average_running_statistics

    def recording(model):
        before = model.bn1.running_mean.clone()
        average(model)
        kept = {"model": model.state_dict(), "before": before}
        torch.save(kept, folder / f"weights of {distributed.rank()}.pt")

    distributed.average_running_statistics = recording


@needs_fork
def test_equal_weights_one_set_of_files_and_one_output(tmp_path, start, start_two, tiny_cifar, finished):
    run = tmp_path / "run"
    both = start_two([*tiny_cifar, "--out", str(run)], record_weights)
    assert [finish(process) for process in both] == [0, 0], logs(tmp_path)
    ends = [torch.load(tmp_path / f"weights of {number}.pt") for number in (0, 1)]
    torch.testing.assert_close(ends[0]["model"], ends[1]["model"], rtol=0, atol=0)
    torch.testing.assert_close(ends[0]["model"], last(run)["model"], rtol=0, atol=0)
    mean = (ends[0]["before"] + ends[1]["before"]) / 2
    assert not torch.equal(ends[0]["before"], ends[1]["before"])
    torch.testing.assert_close(ends[0]["model"]["bn1.running_mean"], mean)
    assert {path.relative_to(run) for path in contents(run)} == {
        p.relative_to(finished) for p in contents(finished)
    }
    assert check_invariants(run) == 3
    assert logs(tmp_path)[0].count("\nepoch ") == 3 and logs(tmp_path)[1] == ""
    # The validation logits that were gathered are those of one process, in the same order.
    best = load_checkpoint(run / "checkpoints" / "best.pt")
    model, _ = train.load_model(run / "checkpoints" / "best.pt", torch.device("cpu"))
    train_set, _ = data.load("cifar100", best["config"]["settings"]["data_dir"])
    _, val_index = data.split_indices(train_set, 0.2, 0)
    val_index = val_index[: len(best["val_labels"])]
    assert torch.equal(best["val_labels"], train_set.labels[val_index])
    logits = train.predict(model, train_set.images[val_index], torch.device("cpu"))
    torch.testing.assert_close(best["val_logits"].float(), logits, rtol=1e-2, atol=1e-2)
    assert best["config"]["environment"]["processes"] == 2


@pytest.mark.slow
@needs_fork
@pytest.mark.parametrize("first, second", [(2, 1), (1, 2)])
def test_resumed_with_another_number_of_processes(tmp_path, start, start_two, tiny_cifar, first, second):
    run = tmp_path / "run"

    def go(count, argv):
        return start_two(argv) if count == 2 else [start(argv, stdout=tmp_path / "log0")]

    processes = go(first, [*tiny_cifar, "--epochs", "30", "--patience", "0", "--out", str(run)])
    assert wait_for((run / "checkpoints" / "last.pt").exists, processes[0])
    for process in processes:
        process.kill()
        process.join()
    epoch, before = check_invariants(run), last(run)["history"]
    processes = go(second, ["--resume", "--out", str(run)])
    assert [finish(process) for process in processes] == [0] * second
    assert f"resumed  after {epoch} epochs\n" in (tmp_path / "log0").read_text()
    assert check_invariants(run) == 30 and last(run)["history"][: len(before)] == before
    # And a finished run is finished for any number.
    assert [finish(process) for process in go(2, ["--resume", "--out", str(run)])] == [0, 0]
    assert "is finished after 30 epochs" in logs(tmp_path)[0] and logs(tmp_path)[1] == ""


def check_order(folder):
    """Process 0 takes a while to load the data; the other may not begin before it has them."""
    load = train.load

    def in_order(*args):
        if distributed.rank() == 0:
            time.sleep(0.5)
            (folder / "loaded").touch()
        assert (folder / "loaded").exists()
        return load(*args)

    train.load = in_order


@pytest.mark.slow
@needs_fork
def test_process_0_loads_the_data_first(tmp_path, start_two, tiny_cifar):
    both = start_two([*tiny_cifar, "--epochs", "1", "--out", str(tmp_path / "run")], check_order)
    assert [finish(process) for process in both] == [0, 0], logs(tmp_path)


@needs_fork
def test_early_stopping_ends_both(tmp_path, start_two, tiny_cifar):
    """At this learning rate nothing is learned, so the second epoch is no better than the first."""
    options = ["--lr", "1e-9", "--patience", "1", "--image-sizes", "32", "--epochs", "9"]
    both = start_two([*tiny_cifar, *options, "--out", str(tmp_path / "run")])
    assert [finish(process) for process in both] == [0, 0], logs(tmp_path)
    assert last(tmp_path / "run")["epoch"] < 9 and "stopped early" in logs(tmp_path)[0]


# ---------------------------------------------------------------------------------------------------------
# One process fails, and both end, within seconds and with one message


def in_epoch_2(change):
    """Let `change` alter the third batch of this process; with four images an epoch has two."""
    count = 0

    def to_input(images, size):
        nonlocal count
        count += torch.is_grad_enabled()
        x = data.to_input(images, size)
        return change(x) if count == 3 else x

    train.to_input = to_input


def not_finite(folder):
    in_epoch_2(lambda x: x.fill_(float("nan")))


def raises(folder):
    in_epoch_2(lambda x: [][0])


def full_memory(folder):
    in_epoch_2(lambda x: torch.empty(10**16))


def sleeps(folder):
    in_epoch_2(lambda x: time.sleep(100))


FAILURES = {
    "a loss that is not finite": ({1: not_finite}, r"^error: the loss is not finite in epoch 2, step 1"),
    "an exception": ({1: raises}, r"IndexError: list index out of range"),
    "an exception in process 0": ({0: raises}, r"IndexError: list index out of range"),
    "an exception while the other is busy": ({0: sleeps, 1: raises}, "IndexError: list index out of range"),
    "full memory": ({1: full_memory}, r"^error: out of memory with --batch-size 4: free some"),
}


@pytest.mark.slow
@needs_fork
@pytest.mark.parametrize("row", FAILURES)
def test_a_failure_in_one_process_ends_both_with_one_message(tmp_path, start_two, tiny_cifar, row):
    then, message = FAILURES[row]
    run = tmp_path / "run"
    both = start_two([*tiny_cifar, "--epochs", "2000", "--patience", "0", "--out", str(run)], then)
    assert wait_for((run / "checkpoints" / "last.pt").exists, both[0])
    started = time.monotonic()
    assert 0 not in [finish(process) for process in both]
    assert time.monotonic() - started < 10
    written = "".join(logs(tmp_path))

    assert len(re.findall(message, written, flags=re.MULTILINE)) == 1, written
    assert len(re.findall(r"^\w*[eE]rror: ", written, flags=re.MULTILINE)) == 1, written
    assert check_invariants(run) == 1


@pytest.mark.slow
@needs_fork
@pytest.mark.parametrize("number", [0, 1])
@pytest.mark.parametrize("kind", [signal.SIGKILL, signal.SIGINT])
def test_a_process_that_is_killed_or_interrupted_ends_the_run(
    tmp_path, start, start_two, tiny_cifar, number, kind
):
    run = tmp_path / "run"
    both = start_two([*tiny_cifar, "--epochs", "2000", "--patience", "0", "--out", str(run)])
    assert wait_for((run / "checkpoints" / "last.pt").exists, both[0])
    os.kill(both[number].pid, kind)
    started = time.monotonic()
    codes = [finish(process) for process in both]
    assert time.monotonic() - started < 10
    written = "".join(logs(tmp_path))
    if kind == signal.SIGKILL:
        message = "error: another process of this training was ended; what was saved is whole\n"
        assert codes[number] == -kind and codes[1 - number] == 2
    else:
        message = f"interrupted; resume with: python train.py --resume --out {run}\n"
        assert codes[number] == 130 and codes[1 - number] in (1, 130)
    assert written.count(message) == 1 and "Traceback" not in written, written
    epoch = check_invariants(run)
    resumed = start(["--resume", "--out", str(run)])
    assert wait_for(lambda: last(run)["epoch"] > epoch, resumed)


@needs_fork
@pytest.mark.parametrize("options", ["--batch-size 5", "--batch-size 2", "--epochs 0"])
def test_a_wrong_option_is_said_once(tmp_path, start_two, tiny_cifar, options):
    both = start_two([*tiny_cifar, *options.split(), "--out", str(tmp_path / "run")])
    assert sorted(finish(process) for process in both) == [1, 2]
    written = "".join(logs(tmp_path))
    assert written.count("\n") == 1 and f"error: {options}: expected" in written
    if "batch" in options:
        assert "expected a multiple of the 2 processes, two images or more for each" in written
    assert not (tmp_path / "run").exists()


# ---------------------------------------------------------------------------------------------------------
# torchrun itself, and the parts alone


@pytest.mark.slow
def test_torchrun(tmp_path):
    """The command of the README, on the CPU."""
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", str(ROOT / "train.py")]
    options = (
        "--dataset shapes --width 16 --batch-size 32 --limit-train 320 --epochs 2 --device cpu --out run"
    )
    done = subprocess.run([*command, *options.split()], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0 and "Traceback" not in done.stderr, done.stderr
    assert done.stdout.count("\nepoch ") == 2 and "2 processes" in done.stdout
    assert check_invariants(tmp_path / "run") == 2


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
def test_shares_are_all_rows_in_order(monkeypatch, rows, count):
    monkeypatch.setenv("WORLD_SIZE", str(count))
    shares = []
    for number in range(count):
        monkeypatch.setenv("RANK", str(number))
        shares.append(distributed.shard(torch.arange(rows)))
    assert torch.cat(shares).tolist() == list(range(rows))
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


def test_each_process_has_its_own_gpu(monkeypatch):
    used = []
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "set_device", used.append)
    cuda, cpu = torch.device("cuda"), torch.device("cpu")
    assert distributed.own_device(cuda) == cuda and used == []
    monkeypatch.setenv("WORLD_SIZE", "3")
    for number in (0, 1):
        monkeypatch.setenv("LOCAL_RANK", str(number))
        assert distributed.own_device(cuda) == torch.device("cuda", number) and used[-1] == number
        assert distributed.own_device(cpu) == cpu
    for name, number in [("cuda", 2), ("cuda:1", 0)]:
        monkeypatch.setenv("LOCAL_RANK", str(number))
        with pytest.raises(UserError, match=f"--device {name} with 2 CUDA GPUs: several processes need"):
            distributed.own_device(torch.device(name))

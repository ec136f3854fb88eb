"""support/distributed.py: two processes on a CPU against one."""

import os
import subprocess
import sys

import pytest
import torch
from processes import ROOT, check_invariants, contents, without_times

from support import distributed
from support.checkpoint import read_checkpoint


@pytest.mark.parametrize("rows, count", [(12, 3), (7, 3), (2, 4), (0, 2)])
def test_shards_are_all_rows_in_order(monkeypatch, rows, count):
    monkeypatch.setenv("WORLD_SIZE", str(count))
    shards = []
    for number in range(count):
        monkeypatch.setenv("RANK", str(number))
        shards.append(distributed.shard(torch.arange(rows)))
    assert torch.cat(shards).tolist() == list(range(rows))
    assert max(map(len, shards)) - min(map(len, shards)) <= 1


ENV = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}


def command(folder, processes, before):
    """The command of the README, on the CPU, with a few lines that change train.py before it runs."""
    main = "import train, support.console\nsupport.console.run_main(train.main)\n"
    (folder / "changed.py").write_text(f"{before}\n{main}")
    torchrun = ["-m", "torch.distributed.run", "--nproc-per-node", str(processes)] if processes > 1 else []
    options = f"--dataset shapes --limit-train 96 --epochs 2 --device cpu --precision fp32 --out {processes}"
    return [sys.executable, *torchrun, "changed.py", *options.split()]


# In float64 and with batch norm in eval mode the share of a process in a batch makes no difference.
# Linux shows the threads in /proc.
EXACT = """
import atexit, data, pathlib, resnet_cifar, torch, train
threads = pathlib.Path("/proc/self/task")
atexit.register(lambda: print("threads at the end:", [file.read_text() for file in threads.glob("*/comm")]))
torch.nn.BatchNorm2d.train = lambda self, mode=True: torch.nn.Module.train(self, False)
train.resnet18 = lambda *args: resnet_cifar.resnet18(*args).double()
resize = data.resize
data.resize = lambda images, side: resize(images.double(), side)
"""


@pytest.mark.slow
def test_two_processes_compute_what_one_does(tmp_path):
    for processes in (1, 2):
        done = subprocess.run(
            command(tmp_path, processes, EXACT), cwd=tmp_path, env=ENV, capture_output=True, text=True
        )
        assert done.returncode == 0 and "Traceback" not in done.stderr, done.stderr
        # A thread of gloo that outlives main may abort Python when it ends; see support/distributed.py.
        assert "threads at the end:" in done.stdout and "gloo" not in done.stdout, done.stdout
        assert done.stdout.count("\nepoch ") == check_invariants(tmp_path / str(processes)) == 2
    one, two = tmp_path / "1", tmp_path / "2"
    ours, theirs = (read_checkpoint(run / "checkpoints" / "last.pt") for run in (two, one))
    torch.testing.assert_close(ours["model"], theirs["model"], rtol=1e-6, atol=1e-8)
    for row, expected in zip(without_times(ours["history"]), without_times(theirs["history"]), strict=True):
        assert row == pytest.approx(expected, abs=1e-6)
    ours, theirs = (read_checkpoint(run / "checkpoints" / "best.pt") for run in (two, one))
    torch.testing.assert_close(ours["val_logits"], theirs["val_logits"], rtol=2e-3, atol=2e-3)
    left = [{path.relative_to(run) for path in contents(run)} for run in (one, two)]
    assert left[0] == left[1]

"""Nothing lost: a table of faults with their errors, and real processes that are stopped and killed."""

import errno
import io
import multiprocessing
import multiprocessing.forkserver
import os
import random
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

import data
import gradcam
import report
import runs
import stress
import train
from runs import load_checkpoint, load_model, read_config, read_history

ROOT = Path(train.__file__).parent
TINY = ["--width=16", "--limit-train=8", "--batch-size=4", "--epochs=3", "--device=cpu", "--precision=fp32"]


@pytest.fixture(scope="module")
def finished(tmp_path_factory, small_sets):
    """A run of three epochs on the small shapes set."""
    out = tmp_path_factory.mktemp("finished") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train, "load", lambda *args: small_sets)
        assert train.main([*TINY, "--dataset", "shapes", "--out", str(out)]) == 0
    return out


@pytest.fixture(scope="module")
def half_done(tmp_path_factory, small_sets):
    """The same run, interrupted in its second epoch."""
    out = tmp_path_factory.mktemp("half done") / "run"

    def batches(*args):
        for batch in data.batches(*args):
            if args[4] == 2:
                os.kill(os.getpid(), signal.SIGTERM)
            yield batch

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train, "load", lambda *args: small_sets)
        patch.setattr(train, "batches", batches)
        assert train.main([*TINY, "--dataset", "shapes", "--out", str(out)]) == 143
    return out


def outcome(capsys, main, argv):
    """Run a command line in this process; return its exit code and what it wrote to stderr."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as info:
        runs.run_main(lambda: main(argv))
    return info.value.code or 0, capsys.readouterr().err


def assert_one_line(code, err, message):
    """Exit code 2, and besides notes one line that begins with error: and has `message` in it."""
    lines = [line for line in err.splitlines() if not line.startswith("note: ")]
    assert code == 2 and len(lines) == 1 and lines[0].startswith("error: "), err
    assert re.search(message, lines[0]), err


def contents(folder):
    return {p: p.read_bytes() for p in folder.rglob("*") if p.is_file() and p.name != ".lock"}


# ---------------------------------------------------------------------------------------------------------
# Options out of their range

OPTIONS = {
    "--epochs 0": "--epochs 0: expected a number from 1 to",
    "--epochs -3": "--epochs -3: expected a number from 1 to",
    "--epochs many": "invalid int value: 'many'",
    "--epochs 1.5": "invalid int value: '1.5'",
    "--batch-size 1": "--batch-size 1: expected a number from 2 to",
    "--batch-size 9": "--batch-size 9 is more than the 8 training images",
    "--limit-train 0": "--limit-train 0: expected a number from 1 to",
    "--limit-train 201": "--limit-train 201 is more than the 200 images for it",
    "--lr nan": "--lr nan: expected a number from",
    "--lr inf": "--lr inf: expected a number from",
    "--lr 0": r"--lr 0\.0: expected a number from",
    "--lr -1": r"--lr -1\.0: expected a number from",
    "--lr fast": "invalid float value: 'fast'",
    "--momentum 1": r"--momentum 1\.0: expected a number from 0 to",
    "--momentum -0.1": r"--momentum -0\.1: expected a number from 0 to",
    "--weight-decay -1": r"--weight-decay -1\.0: expected a number from 0 to",
    "--weight-decay nan": "--weight-decay nan: expected a number from 0 to",
    "--label-smoothing 1": r"--label-smoothing 1\.0: expected a number from 0 to",
    "--warmup-epochs 4": r"--warmup-epochs 4\.0: expected a number from 0 to 3$",
    "--warmup-epochs -1": r"--warmup-epochs -1\.0: expected a number from 0 to 3$",
    "--clip-norm -1": r"--clip-norm -1\.0: expected a number from 0 to",
    "--patience -1": "--patience -1: expected a number from 0 to",
    "--val-fraction 0": r"--val-fraction 0\.0: expected a number from 0\.001 to 0\.9",
    "--val-fraction 1": r"--val-fraction 1\.0: expected a number from 0\.001 to 0\.9",
    "--val-fraction 0.1": r"--val-fraction 0\.1 leaves no validation image of 300",
    "--width 0": "--width 0: expected a number from 16 to",
    "--width 15": "--width 15: expected a number from 16 to",
    "--seed -1": "--seed -1: expected a number from 0 to",
    "--seed 4294967296": "--seed 4294967296: expected a number from 0 to 4294967295",
    "--dataset mnist": "invalid choice: 'mnist'",
    "--precision fp64": "invalid choice: 'fp64'",
    "--precision fp16": "--precision fp16 needs a CUDA GPU, not cpu",
    "--device gpu": "--device gpu: expected auto, cuda, mps or cpu",
    "--device cuda:99": "--device cuda:99 is not there on this machine",
    "--device meta": "--device meta is not there on this machine",
    "--speed 9": r"unrecognized arguments: --speed 9 \(see .* --help\)",
    "--lr": r"argument --lr: expected one argument \(see",
    "--resume --overwrite": "use one of them",
}


@pytest.mark.parametrize("options", OPTIONS)
def test_option(options, tmp_path, capsys, small):
    argv = [*TINY, "--dataset", "shapes", "--out", str(tmp_path / "run"), *options.split()]
    assert_one_line(*outcome(capsys, train.main, argv), OPTIONS[options])
    assert contents(tmp_path) == {}


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA GPU")
def test_cuda_that_is_not_there(tmp_path, capsys, small):
    argv = [*TINY, "--device", "cuda", "--out", str(tmp_path)]
    assert_one_line(
        *outcome(capsys, train.main, argv), "--device cuda is not there on this machine: leave it"
    )


# ---------------------------------------------------------------------------------------------------------
# Folders and files that are not what they should be. A row: what is done to a copy of an interrupted run, the
# options, what the error says. {run} stands for the folder.


def edit_checkpoint(run, change, name="last.pt"):
    path = run / "checkpoints" / name
    checkpoint = torch.load(path)
    change(checkpoint)
    torch.save(checkpoint, path)


def only_last(run):
    (run / "checkpoints" / "previous.pt").unlink()


def damage(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def damage_last(run):
    only_last(run)
    damage(run / "checkpoints" / "last.pt")


def damage_both(run):
    for name in ("last.pt", "previous.pt"):
        damage(run / "checkpoints" / name)


def cut_last(run):
    only_last(run)
    os.truncate(run / "checkpoints" / "last.pt", 1000)


def another_width(run):
    only_last(run)
    edit_checkpoint(run, lambda c: c["config"].update(width=32))


def not_finite(run):
    only_last(run)
    edit_checkpoint(run, lambda c: c["model"]["fc.bias"].fill_(float("inf")))


def best_as_last(run):
    only_last(run)
    shutil.copy(run / "checkpoints" / "best.pt", run / "checkpoints" / "last.pt")


class Harmful:
    def __reduce__(self):
        return (print, ("this was run",))


def harmful(run):
    only_last(run)
    edit_checkpoint(run, lambda c: c.update(extra=Harmful()))


def another_version(run):
    edit_checkpoint(run, lambda c: c["state"].pop("sums"))


def another_optimizer(run):
    edit_checkpoint(run, lambda c: c["optimizer"]["param_groups"].pop())


def another_set(run):
    edit_checkpoint(run, lambda c: c["config"].update(digest="0", provenance="images of cats"))


def no_checkpoints(run):
    shutil.rmtree(run / "checkpoints")


def config_is(text):
    def change(run):
        (run / "config.json").write_text(text)

    return change


def edit_config(run):
    path = run / "config.json"
    path.write_text(path.read_text().replace('"lr": 0.15', '"lr": 0.2'))


def a_file(run):
    shutil.rmtree(run)
    run.write_text("hello")


def below_a_file(run):
    shutil.rmtree(run)
    run.parent.rmdir()
    run.parent.write_text("hello")


def other_files(run):
    shutil.rmtree(run)
    (run / "src").mkdir(parents=True)
    (run / "src" / "main.py").write_text("print()")


def nothing(run):
    pass


def locked(run):
    locked.held = runs.lock_run(run)  # until the end of the test, which collects it
    locked.held.__enter__()


NO_RUN = "is not empty and holds no run of train.py: use another --out"
RUNS = {
    "a folder with a run": (
        nothing,
        "",
        "holds a run already: go on with --resume, delete it with --overwrite",
    ),
    "a folder with other files": (other_files, "", NO_RUN),
    "other files and --overwrite": (other_files, "--overwrite", NO_RUN),
    "a run without config.json and --overwrite": (
        lambda run: (run / "config.json").unlink(),
        "--overwrite",
        NO_RUN,
    ),
    "a run with another config.json": (config_is('{"name": "x"}'), "--overwrite", NO_RUN),
    "a file in place of the folder": (
        a_file,
        "",
        r"run cannot be written to \(File exists\): use another --out",
    ),
    "a file in place of its parent": (below_a_file, "", r"cannot be written to \(Not a directory\)"),
    "another training in it": (locked, "--resume", "another training is running in .*run: use another --out"),
    "another training in it, --overwrite": (locked, "--overwrite", "another training is running in"),
    "a bad option and --overwrite": (
        nothing,
        "--overwrite --batch-size 99",
        "--batch-size 99 is more than the 8",
    ),
    "nothing to resume": (
        shutil.rmtree,
        "--resume",
        r"config\.json cannot be read .*is .*run a run of train\.py\?",
    ),
    "no checkpoint to resume": (
        no_checkpoints,
        "--resume",
        "has saved nothing to go on from: start it without",
    ),
    "config.json cut": (config_is('{"settings": {'), "--resume", r"config\.json cannot be read \("),
    "config.json of another kind": (
        config_is("[1]"),
        "--resume",
        r"config\.json was not written by train\.py",
    ),
    "config.json with nonsense": (
        config_is('{"settings": {"epochs": "x"}}'),
        "--resume",
        "invalid int value: 'x'",
    ),
    "config.json with a list": (config_is('{"settings": {"lr": [1]}}'), "--resume", "invalid float value"),
    "config.json edited": (
        edit_config,
        "--resume",
        r"was started with --lr 0\.15: resume it without changing that",
    ),
    "other settings": (
        nothing,
        "--resume --epochs 9 --seed 4",
        "was started with --epochs 3, --seed 0: resume it",
    ),
    "last.pt damaged": (damage_last, "--resume", r"last\.pt is damaged or no checkpoint \(the checksum of"),
    "last.pt and previous.pt damaged": (damage_both, "--resume", r"previous\.pt is damaged or no checkpoint"),
    "last.pt cut": (cut_last, "--resume", r"last\.pt is damaged or no checkpoint"),
    "last.pt of another width": (another_width, "--resume", r"holds another network: .*width 32"),
    "last.pt not finite": (not_finite, "--resume", r"holds values that are not finite in fc\.bias"),
    "best.pt as last.pt": (best_as_last, "--resume", "it lacks optimizer, scaler, state"),
    "last.pt that runs code": (
        harmful,
        "--resume",
        "is refused: it holds more than tensors and plain values",
    ),
    "another version's state": (
        another_version,
        "--resume",
        r"another version of train\.py \(KeyError\('sums'\)",
    ),
    "another version's optimizer": (
        another_optimizer,
        "--resume",
        r"another version of train\.py \(ValueError",
    ),
    "last.pt of another set": (
        another_set,
        "--resume",
        "is a run on images of cats; here is the built-in shapes",
    ),
}


@pytest.mark.parametrize("row", RUNS)
def test_run_folder(row, tmp_path, capsys, small, half_done):
    prepare, options, message = RUNS[row]
    run = tmp_path / "runs" / "run"
    shutil.copytree(half_done, run)
    prepare(run)
    before = contents(tmp_path)
    settings = [] if "--resume" in options else [*TINY, "--dataset", "shapes"]
    assert_one_line(*outcome(capsys, train.main, [*settings, "--out", str(run), *options.split()]), message)
    assert contents(tmp_path) == before  # nothing is lost and nothing added
    assert "this was run" not in capsys.readouterr().out


def test_overwrite_removes_the_run_and_not_what_else_lies_there(tmp_path, small, half_done):
    run = tmp_path / "run"
    shutil.copytree(half_done, run)
    (run / "notes.txt").write_text("mine")
    (run / "metrics.json").write_text("of the old run")
    argv = [*TINY, "--dataset", "shapes", "--out", str(run), "--overwrite", "--epochs", "1"]
    assert train.main(argv) == 0
    assert (run / "notes.txt").read_text() == "mine" and not (run / "metrics.json").exists()
    assert len(read_history(run)) == 1 and not (run / "checkpoints" / "damaged.pt").exists()


def test_a_damaged_last_checkpoint_costs_no_more_than_what_came_after_the_one_before(
    tmp_path, capsys, small, finished, half_done
):
    run = tmp_path / "run"
    shutil.copytree(half_done, run)
    damage(run / "checkpoints" / "last.pt")
    code, err = outcome(capsys, train.main, ["--resume", "--out", str(run)])
    assert code == 0 and re.search(r"^note: .*last\.pt is damaged .*: trying .*previous\.pt$", err, re.M)
    ends = [load_checkpoint(folder / "checkpoints" / "last.pt") for folder in (run, finished)]
    torch.testing.assert_close(ends[0]["model"], ends[1]["model"], rtol=0, atol=0)


# ---------------------------------------------------------------------------------------------------------
# What goes wrong while it trains


def not_finite_input(patch):
    """The first batch of epoch 2 is not a number."""
    calls = []

    def to_input(images):
        calls.append(images)
        x = data.to_input(images)
        return x.fill_(float("nan")) if len(calls) == 4 else x  # the third call is the validation of epoch 1

    patch.setattr(train, "to_input", to_input)


def not_finite_gradient(patch):
    """The last step of epoch 1 is finite and its gradient infinite; validation is the first to see it."""
    calls = []

    def clip(parameters, norm):
        calls.append(norm)
        if len(calls) == 2:
            next(iter(parameters)).grad.fill_(float("inf"))

    patch.setattr(train.nn.utils, "clip_grad_norm_", clip)


def not_finite_gradient_and_ctrl_c(patch):
    def clip(parameters, norm):
        next(iter(parameters)).grad.fill_(float("inf"))
        os.kill(os.getpid(), signal.SIGINT)

    patch.setattr(train.nn.utils, "clip_grad_norm_", clip)


def raising(error):
    def prepare(patch):
        calls = []

        def to_input(images):
            calls.append(images)
            if len(calls) == 5:
                raise error
            return data.to_input(images)

        patch.setattr(train, "to_input", to_input)

    return prepare


def memory_of_the_machine(patch):
    patch.setattr(train, "to_input", lambda images: torch.empty(10**16))


def disk_full(patch):
    """/dev/full takes no byte, as a full disk; it is full from the first checkpoint of epoch 2 on."""
    real = runs.atomic_write

    class Full:
        def __init__(self, path):
            self.path = Path("/dev/full") if path.name == "last.pt" and load_epoch(path) == 1 else None
            self.real = None if self.path else real(path)

        def __enter__(self):
            return self.path or self.real.__enter__()

        def __exit__(self, *exception):
            return self.real.__exit__(*exception) if self.real else None

    def load_epoch(path):
        return load_checkpoint(path)["epoch"] if path.exists() else None

    patch.setattr(runs, "atomic_write", Full)


OUT_OF_MEMORY = "out of memory with --batch-size 4: free some .* or start a new run with --batch-size 2$"
WHILE_TRAINING = {
    "a loss that is not finite": (
        not_finite_input,
        r"the loss is not finite in epoch 2, step 1, at learning rate 0\.\d+: try a lower --lr, a smaller",
        1,
    ),
    "a gradient that is not finite": (
        not_finite_gradient,
        "the loss is not finite in epoch 1, step 2, at",
        0,
    ),
    "a gradient, and then Ctrl-C": (
        not_finite_gradient_and_ctrl_c,
        "the loss is not finite in epoch 1, step 1",
        0,
    ),
    "no memory on the GPU": (raising(torch.OutOfMemoryError("CUDA out of memory.")), OUT_OF_MEMORY, 1),
    "no memory in Python": (raising(MemoryError()), OUT_OF_MEMORY, 1),
    "no memory on the machine": (memory_of_the_machine, OUT_OF_MEMORY, 0),
    "a full disk": (disk_full, r"last\.pt cannot be written \(No space left on device\); what was saved", 1),
    "a broken disk": (raising(OSError(errno.EIO, "Input/output error", "x")), "x: Input/output error", 1),
}


@pytest.mark.parametrize("row", WHILE_TRAINING)
def test_while_training(row, tmp_path, capsys, small, monkeypatch, finished):
    prepare, message, epoch = WHILE_TRAINING[row]
    with monkeypatch.context() as patch:
        prepare(patch)
        argv = [*TINY, "--dataset", "shapes", "--out", str(tmp_path)]
        code, err = outcome(capsys, train.main, argv)
    assert_one_line(code, err.replace("\nsaving after this step; once more to leave at once\n", ""), message)
    # The checkpoint from before is whole, nothing lies half written about, and the run goes on from there.
    assert load_checkpoint(tmp_path / "checkpoints" / "last.pt", resuming=True)["epoch"] == epoch
    assert not list(tmp_path.rglob("*.tmp"))
    assert train.main(["--resume", "--out", str(tmp_path)]) == 0
    ends = [load_checkpoint(folder / "checkpoints" / "last.pt") for folder in (tmp_path, finished)]
    torch.testing.assert_close(ends[0]["model"], ends[1]["model"], rtol=0, atol=0)


def test_another_error_is_not_hidden(tmp_path, small, monkeypatch):
    raising(RuntimeError("something else"))(monkeypatch)
    with pytest.raises(RuntimeError, match="something else"):
        train.main([*TINY, "--dataset", "shapes", "--out", str(tmp_path)])


def test_ctrl_c_before_the_training(tmp_path, capsys, monkeypatch):
    def load(*args):
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(5)

    monkeypatch.setattr(train, "load", load)
    argv = [*TINY, "--dataset", "shapes", "--out", str(tmp_path)]
    assert outcome(capsys, train.main, argv) == (130, "interrupted\n")


def test_a_folder_without_permission(plain_user, capsys, small, half_done):
    plain_user.chmod(0o500)
    argv = [*TINY, "--dataset", "shapes", "--out", str(plain_user / "run")]
    message = r"run cannot be written to \(Permission denied\): use another --out"
    assert_one_line(*outcome(capsys, train.main, argv), message)
    plain_user.chmod(0o700)
    run = plain_user / "run"
    assert train.main([*argv, "--epochs", "1"]) == 0
    (run / "checkpoints").chmod(0o500)
    argv += ["--overwrite"]
    assert_one_line(*outcome(capsys, train.main, argv), r"\.pt: Permission denied")


# ---------------------------------------------------------------------------------------------------------
# The other commands


def text_as_checkpoint(run):
    (run / "checkpoints" / "best.pt").write_text("hello")


def without_best(run):
    (run / "checkpoints" / "best.pt").unlink()


def damage_best(run):
    damage(run / "checkpoints" / "best.pt")


def history_cut(run):
    (run / "logs" / "history.csv").write_text("epoch,lr\n1,x\n")


def class_renamed(run):
    edit_checkpoint(run, lambda c: c["class_names"].reverse(), "best.pt")


def an_image(run):
    from torchvision.io import write_png

    write_png(torch.zeros(3, 8, 8, dtype=torch.uint8), str(run / "x.png"))


def no_image(run):
    (run / "x.png").write_text("hello")


OTHERS = {
    "report: no run at all": (nothing, report, "", "there is no finished epoch of any run under runs/"),
    "report: no such run": (nothing, report, "--run {run}/x", "there is no run .*run/x"),
    "report: no checkpoint yet": (without_best, report, "--run {run}", r"there is no checkpoint .*best\.pt"),
    "report: damaged checkpoint": (damage_best, report, "--run {run}", r"best\.pt is damaged"),
    "report: text as checkpoint": (
        text_as_checkpoint,
        report,
        "--run {run}",
        r"best\.pt is damaged or no check",
    ),
    "report: a folder as checkpoint": (
        nothing,
        report,
        "--checkpoint {run}",
        r"run cannot be read \(Is a dir",
    ),
    "report: other classes": (class_renamed, report, "--run {run}", "the classes of .* are not those of"),
    "report: history cut": (history_cut, report, "--run {run}", r"history\.csv cannot be read"),
    "report: unknown option": (nothing, report, "--run {run} --fast", "unrecognized arguments: --fast"),
    "stress: no run at all": (nothing, stress, "", "there is no finished epoch of any run under runs/"),
    "stress: no such checkpoint": (
        nothing,
        stress,
        "--checkpoint {run}/x.pt",
        r"there is no checkpoint .*x\.pt",
    ),
    "stress: damaged checkpoint": (damage_best, stress, "--run {run}", r"best\.pt is damaged"),
    "gradcam: no image": (nothing, gradcam, "{run}/x.png --run {run}", r"x\.png"),
    "gradcam: an image that is none": (no_image, gradcam, "{run}/x.png --run {run}", r"x\.png"),
    "gradcam: unknown layer": (
        an_image,
        gradcam,
        "{run}/x.png --run {run} --layer layer9",
        "--layer layer9: ",
    ),
    "gradcam: no such run": (an_image, gradcam, "{run}/x.png --run {run}/y", "there is no run"),
    "gradcam: damaged checkpoint": (
        damage_best,
        gradcam,
        "{run}/x.png --run {run}",
        r"x\.png|best\.pt is damaged",
    ),
}


@pytest.mark.parametrize("row", OTHERS)
def test_other_command(row, tmp_path, capsys, monkeypatch, small_sets, finished):
    prepare, module, options, message = OTHERS[row]
    monkeypatch.setattr(data, "load", lambda name, root, url=None: small_sets)
    monkeypatch.chdir(tmp_path)
    run = tmp_path / "a run"
    shutil.copytree(finished, run)
    prepare(run)
    before = contents(run)
    argv = [part.replace("{run}", str(run)) for part in options.split()]
    assert_one_line(*outcome(capsys, module.main, argv), message)
    assert contents(run) == before


# ---------------------------------------------------------------------------------------------------------
# Real processes. Each is forked from a server that has imported this file and computed nothing.

pytestmark = pytest.mark.skipif(
    not hasattr(os, "fork"), reason="needs processes that can be forked and killed"
)


@pytest.fixture(scope="module")
def processes():
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["test_faults"])
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT), str(ROOT / "tests")]))
        multiprocessing.forkserver.ensure_running()
    return context


@pytest.fixture(scope="module")
def tiny_cifar(tmp_path_factory, cifar_files):
    """Options for a CIFAR-100 of 300 training images, which a process reads in a moment."""
    root = tmp_path_factory.mktemp("cifar")
    cifar_files.small.write(root, "folder")
    data.load("cifar100", root)  # leaves the cache
    return [*TINY, "--dataset", "cifar100", "--data-dir", str(root)]


def child(argv, stdout, stderr=None, prepare=None, arguments=()):
    """A process of its own: run the command line with its output in files, as after `prepare(*arguments)`."""
    torch.set_num_threads(1)
    os.dup2(os.open(stdout, os.O_WRONLY | os.O_CREAT | os.O_APPEND), 1)
    os.dup2(os.open(stderr or stdout, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOCTTY), 2)
    sys.stdout, sys.stderr = (io.TextIOWrapper(io.FileIO(number, "w")) for number in (1, 2))
    if prepare:
        prepare(*arguments)
    runs.run_main(lambda: train.main(argv))


@pytest.fixture
def start(processes, tmp_path):
    """start(argv, ...) starts such a process; none outlives the test."""
    started = []

    def start(argv, stdout=tmp_path / "log", **more):
        process = processes.Process(target=child, args=(argv, str(stdout)), kwargs=more)
        process.start()
        started.append(process)
        return process

    yield start
    for process in started:
        process.kill()
        process.join()


def wait_for(condition, process, seconds=60):
    """Wait until the condition holds or the process ends; return whether it holds."""
    end = time.monotonic() + seconds
    while not condition():
        if not process.is_alive():
            return condition()
        assert time.monotonic() < end, "nothing happens"
        time.sleep(0.001)
    return True


def finish(process):
    process.join(120)
    assert process.exitcode is not None, "it does not end"
    return process.exitcode


def continue_or_begin(run, options):
    """The options with which a run goes on, or begins where it has saved nothing yet."""
    saved = (run / "checkpoints" / "last.pt").exists()
    return ["--resume", "--out", str(run)] if saved else [*options, "--out", str(run)]


def check_invariants(run):
    """What holds whenever a process is killed; returns the state of last.pt, None where nothing is saved."""
    folder = run / "checkpoints"
    if (run / "config.json").exists():
        read_config(run)
    if not (folder / "last.pt").exists():
        assert not list(folder.glob("*.pt")) and not (run / "logs").exists()
        return None
    state = load_checkpoint(folder / "last.pt", resuming=True)["state"]
    assert (run / "config.json").exists()
    if (folder / "previous.pt").exists():
        before = load_checkpoint(folder / "previous.pt", resuming=True)["state"]
        assert before["epoch"] <= state["epoch"] <= before["epoch"] + 1
    epoch = state["epoch"]
    if epoch >= 1:
        _, best = load_model(folder / "best.pt", torch.device("cpu"))
        assert best["epoch"] in (state["best_epoch"], epoch + 1)
    if epoch >= 1 or (run / "logs" / "history.csv").exists():
        assert (run / "logs" / "history.csv").read_text().endswith("\n")
        history = read_history(run)
        assert [row["epoch"] for row in history] == list(range(1, len(history) + 1))
        assert len(history) in (epoch, epoch + 1) and history[:epoch] == state["history"]
        assert all(None not in row and len(row) == 9 for row in history)
    return state


def assert_same_end(run, reference):
    ends = [load_checkpoint(folder / "checkpoints" / "last.pt", resuming=True) for folder in (run, reference)]
    for key in ("model", "optimizer"):
        torch.testing.assert_close(ends[0][key], ends[1][key], rtol=0, atol=0)
    times = {"seconds": 0, "images_per_second": 0}
    assert [row | times for row in read_history(run)] == [row | times for row in read_history(reference)]
    best = [load_checkpoint(folder / "checkpoints" / "best.pt") for folder in (run, reference)]
    torch.testing.assert_close(best[0]["model"], best[1]["model"], rtol=0, atol=0)
    assert not list(run.rglob("*.tmp"))


def test_killed_at_random_moments(tmp_path, start, tiny_cifar):
    """SIGKILL, at least 24 times, most of them soon after a checkpoint; the end is that of a whole run."""
    options = [*tiny_cifar, "--epochs", "24", "--patience", "0"]
    whole = start([*options, "--out", str(tmp_path / "whole")])
    rng = random.Random(time.time_ns())  # other moments every time; what must hold holds at each of them
    kills, number = 0, 0
    while kills < 24:
        number += 1
        run, epochs, code = tmp_path / f"run {number}", [0], None
        last = run / "checkpoints" / "last.pt"
        while code != 0:
            stamp = last.stat().st_mtime_ns if last.exists() else 0
            process = start(continue_or_begin(run, options))
            if kills < 24:
                if kills % 4:  # at most one in four is killed while it starts
                    wait_for(lambda: last.exists() and last.stat().st_mtime_ns != stamp, process)  # noqa: B023
                time.sleep(rng.uniform(0, 0.3))
                process.kill()
            code = finish(process)
            assert code in (0, -signal.SIGKILL), (tmp_path / "log").read_text()
            kills += code != 0
            state = check_invariants(run)
            epochs.append(state["epoch"] if state else 0)
        assert epochs == sorted(epochs) and epochs[-1] == 24  # no epoch that was saved is ever lost
        assert finish(whole) == 0
        assert_same_end(run, tmp_path / "whole")
    assert "Traceback" not in (tmp_path / "log").read_text()


def die_at(number):
    """Let this process kill itself before its n-th change to files; of a file half is written by then."""
    count = 0

    def counting(function, changes=lambda *args: True, half=lambda *args: None):
        def counted(*args, **kwargs):
            nonlocal count
            count += changes(*args)
            if count == number:
                half(*args)
                os.kill(os.getpid(), signal.SIGKILL)
            return function(*args, **kwargs)

        return counted

    def half_bytes(path, content):
        with open(path, "wb") as file:
            file.write(content[: len(content) // 2])

    for name in ("fsync", "replace", "link"):
        setattr(os, name, counting(getattr(os, name)))
    Path.mkdir = counting(Path.mkdir, changes=lambda path, *args: not path.exists())
    Path.unlink = counting(Path.unlink, changes=Path.exists)
    Path.write_text = counting(Path.write_text)
    Path.write_bytes = counting(Path.write_bytes, half=half_bytes)


def test_killed_before_every_single_change_of_files(tmp_path, start, tiny_cifar):
    options = [*tiny_cifar, "--epochs", "2", "--limit-train", "4"]
    assert train.main([*options, "--out", str(tmp_path / "whole")]) == 0
    codes = []
    while 0 not in codes:
        folders = {
            number: tmp_path / f"killed at {number}" for number in range(len(codes) + 1, len(codes) + 4)
        }
        processes = [
            start([*options, "--out", str(run)], prepare=die_at, arguments=(number,))
            for number, run in folders.items()
        ]
        codes += [finish(process) for process in processes]
        for run in folders.values():
            check_invariants(run)
            assert train.main(continue_or_begin(run, options)) == 0
            assert_same_end(run, tmp_path / "whole")
    # config.json, the checkpoint at the start, and for each epoch best.pt, history.csv and last.pt.
    assert len(codes) > 20 and set(codes[: codes.index(0)]) == {-signal.SIGKILL}


@pytest.mark.parametrize("kind, code", [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_saves_says_how_to_go_on_and_exits(tmp_path, start, tiny_cifar, kind, code):
    run, log = tmp_path / "a run", tmp_path / "log"
    process = start([*tiny_cifar, "--epochs", "2000", "--out", str(run)])
    assert wait_for((run / "checkpoints" / "best.pt").exists, process)
    os.kill(process.pid, kind)
    assert finish(process) == code
    written = log.read_text()
    done = re.search(r"\nstopped in epoch (\d+), step ([12]) of 2; go on with: python (.*)\n$", written)
    assert "\nsaving after this step; once more to leave at once\n" in written
    state = check_invariants(run)
    assert (state["epoch"] + 1, state["step"]) == (int(done[1]), int(done[2]))
    # The command that it names works.
    process = start(shlex.split(done[3])[1:])
    stamp = (run / "checkpoints" / "last.pt").stat().st_mtime_ns
    assert wait_for(lambda: (run / "checkpoints" / "last.pt").stat().st_mtime_ns != stamp, process)
    assert f"resumed  after {state['epoch']} epochs and {state['step']} of 2 steps" in log.read_text()


def slow_disk():
    """Half of a checkpoint is written, and then nothing happens for long."""

    def write_bytes(path, content):
        with open(path, "wb") as file:
            file.write(content[: len(content) // 2])
        time.sleep(100)

    Path.write_bytes = write_bytes


def test_a_second_ctrl_c_leaves_at_once_also_while_saving(tmp_path, start, tiny_cifar):
    run = tmp_path / "run"
    process = start([*tiny_cifar, "--epochs", "2000", "--out", str(run)])
    assert wait_for((run / "checkpoints" / "best.pt").exists, process)
    process.kill()
    process.join()
    before = check_invariants(run)["epoch"]
    process = start(["--resume", "--out", str(run)], prepare=slow_disk)
    assert wait_for(lambda: list(run.glob("checkpoints/.*.tmp")), process)
    os.kill(process.pid, signal.SIGINT)
    assert wait_for(lambda: "saving after this step" in (tmp_path / "log").read_text(), process)
    assert process.is_alive()
    os.kill(process.pid, signal.SIGINT)
    assert finish(process) == -signal.SIGINT
    assert check_invariants(run)["epoch"] == before and list(run.rglob(".*.tmp"))
    # What it left half written is gone with the next start.
    process = start(["--resume", "--out", str(run)])
    stamp = (run / "checkpoints" / "last.pt").stat().st_mtime_ns
    assert wait_for(lambda: (run / "checkpoints" / "last.pt").stat().st_mtime_ns != stamp, process)
    os.kill(process.pid, signal.SIGINT)
    assert finish(process) == 130 and not list(run.rglob("*.tmp"))


def small_files_only():
    import resource

    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))


def test_a_disk_that_takes_no_more(tmp_path, start, tiny_cifar):
    run, log = tmp_path / "run", tmp_path / "log 2"
    process = start([*tiny_cifar, "--epochs", "2000", "--out", str(run)])
    assert wait_for((run / "checkpoints" / "best.pt").exists, process)
    process.kill()
    process.join()
    before = {path: path.read_bytes() for path in (run / "checkpoints").glob("*.pt")}
    process = start(
        ["--resume", "--out", str(run)], stdout=os.devnull, stderr=str(log), prepare=small_files_only
    )
    assert finish(process) == 2
    assert_one_line(
        2, log.read_text(), r"\.pt cannot be written \(File too large\); what was saved before is whole"
    )
    assert {path: path.read_bytes() for path in (run / "checkpoints").glob("*.pt")} == before
    assert not list(run.rglob("*.tmp"))


def test_two_trainings_in_one_folder_and_the_lock_of_a_killed_one(tmp_path, start, tiny_cifar, capsys):
    run = tmp_path / "run"
    process = start([*tiny_cifar, "--epochs", "2000", "--out", str(run)])
    assert wait_for((run / "checkpoints" / "best.pt").exists, process)
    for options in (["--resume"], [*tiny_cifar, "--overwrite"], tiny_cifar):
        code, err = outcome(capsys, train.main, [*options, "--out", str(run)])
        assert_one_line(code, err, "another training is running in")
    assert process.is_alive()
    process.kill()
    process.join()
    argv = [*tiny_cifar, "--epochs", "1", "--overwrite", "--out", str(run)]
    assert outcome(capsys, train.main, argv)[0] == 0


def test_a_reader_that_goes(tmp_path, tiny_cifar):
    """python train.py | head -n 1, in a process that ends as any other does."""
    command = [sys.executable, str(ROOT / "train.py"), *tiny_cifar, "--epochs=2000", f"--out={tmp_path}"]
    env = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    with subprocess.Popen(command, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout.readline().startswith(b"data     CIFAR-100")
        process.stdout.close()
        assert (process.wait(60), process.stderr.read()) == (141, b"")
    check_invariants(tmp_path)


def test_output_into_a_full_disk(tmp_path, start, tiny_cifar):
    log = tmp_path / "log 2"
    process = start([*tiny_cifar, "--out", str(tmp_path / "run")], stdout="/dev/full", stderr=str(log))
    assert finish(process) == 2 and log.read_text() == "error: No space left on device\n"


def narrow_terminal():
    import fcntl
    import struct
    import termios

    fcntl.ioctl(2, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 30, 0, 0))
    os.environ |= {"TERM": "xterm", "NO_COLOR": "1"}


def test_a_narrow_terminal_without_colour(tmp_path, start, tiny_cifar):
    leader, follower = os.openpty()
    process = start(
        [*tiny_cifar, "--out", str(tmp_path / "run")],
        stdout=os.devnull,
        stderr=os.ttyname(follower),
        prepare=narrow_terminal,
    )
    assert finish(process) == 0
    os.close(follower)
    written = os.read(leader, 100_000).decode()
    assert "epoch 1/3" in written and "validation" in written and "\n" not in written
    assert set(re.findall(r"\x1b\[[0-9;]*[A-Za-z]", written)) == {"\x1b[K"}
    assert all(len(line) < 30 for line in written.replace("\x1b[K", "").split("\r"))


def test_the_command_itself_in_a_poor_place(tmp_path, tiny_cifar):
    """No home, no display, no terminal, an ASCII console, and a path with spaces and letters beyond ASCII."""
    env = {k: v for k, v in os.environ.items() if k not in ("DISPLAY", "TERM", "LANG", "PYTHONUNBUFFERED")}
    env |= {"HOME": "/dev/null/nowhere", "LC_ALL": "C", "PYTHONIOENCODING": "ascii", "OMP_NUM_THREADS": "1"}
    run = tmp_path / "grüne Läufe" / "ein Lauf"
    command = [sys.executable, str(ROOT / "train.py"), *tiny_cifar, "--out", str(run)]
    done = subprocess.run(command, env=env, capture_output=True, cwd=tmp_path, timeout=120)
    out = done.stdout.decode("ascii")
    assert (done.returncode, done.stderr) == (0, b"")
    assert "epoch   3/3  lr " in out and f"--run '{tmp_path}/gr?ne L?ufe/ein Lauf'\n" in out
    assert check_invariants(run)["finished"]

"""runs.py: files that are whole or absent, checkpoints that are what they say, devices, and the console."""

import csv
import errno
import io
import json
import os
import pathlib
import re
import sys
import zipfile

import pytest
import torch
import torchvision

import runs
from data import UserError
from resnet_cifar import resnet18

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


def make_checkpoint(**changes):
    """A checkpoint of a network with weights drawn at random, width 2, for 3 classes."""
    torch.manual_seed(0)
    content = {
        "model": resnet18(3, width=2).state_dict(),
        "config": {"dataset": "shapes", "width": 2, "settings": {"epochs": 5}},
        "epoch": 4,
        "class_names": ["a", "b", "c"],
    }
    return content | changes


# ---------------------------------------------------------------------------------------------------------
# Files


def test_json_and_csv_round_trip_into_new_folders(tmp_path):
    content = {"name": "Prüfung", "values": [1, 2.5, None]}
    runs.write_json(tmp_path / "a" / "b" / "x.json", content)
    text = (tmp_path / "a" / "b" / "x.json").read_text(encoding="utf-8")
    assert json.loads(text) == content and "Prüfung" in text and text.endswith("}\n")
    rows = [{"epoch": 1, "loss": 0.1, "note": 'a, "b"'}, {"epoch": 2, "loss": 1e-9, "note": "ü\nx"}]
    runs.write_csv(tmp_path / "c" / "x.csv", rows)
    with open(tmp_path / "c" / "x.csv", newline="", encoding="utf-8") as file:
        assert list(csv.DictReader(file)) == [{k: str(v) for k, v in row.items()} for row in rows]
    assert sorted(p.name for p in tmp_path.rglob("*") if p.is_file()) == ["x.csv", "x.json"]


def test_history_is_read_as_numbers(tmp_path):
    rows = [{"epoch": 1, "loss": 0.1 + 0.2}, {"epoch": 2, "loss": float("inf")}]
    runs.write_csv(tmp_path / "logs" / "history.csv", rows)
    assert runs.read_history(tmp_path) == rows


def test_a_failed_write_leaves_the_old_file_and_names_the_new(tmp_path, monkeypatch):
    path = tmp_path / "x.json"
    runs.write_json(path, {"old": 1})

    def full(*args, **kwargs):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(pathlib.Path, "write_text", full)
    with pytest.raises(UserError, match=r"x\.json cannot be written \(No space left on device\)"):
        runs.write_json(path, {"new": 2})
    monkeypatch.undo()
    assert json.loads(path.read_text()) == {"old": 1} and os.listdir(tmp_path) == ["x.json"]


def test_newest_run_is_the_one_whose_best_checkpoint_is_newest(tmp_path):
    with pytest.raises(UserError, match="train one first"):
        runs.newest_run(tmp_path)
    for name, time in [("old", 100), ("new", 300), ("middle", 200)]:
        (tmp_path / name / "checkpoints").mkdir(parents=True)
        (tmp_path / name / "checkpoints" / "best.pt").touch()
        os.utime(tmp_path / name / "checkpoints" / "best.pt", (time, time))
    (tmp_path / "begun" / "checkpoints").mkdir(parents=True)
    (tmp_path / "begun" / "checkpoints" / "last.pt").touch()
    assert runs.newest_run(tmp_path) == tmp_path / "new"


def test_find_checkpoint(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs" / "a" / "checkpoints").mkdir(parents=True)
    (tmp_path / "runs" / "a" / "checkpoints" / "best.pt").touch()
    best = pathlib.Path("runs/a/checkpoints/best.pt")
    assert runs.find_checkpoint(None, None) == best
    assert runs.find_checkpoint("runs/a", None) == best
    assert runs.find_checkpoint("runs/a", "some.pt") == pathlib.Path("some.pt")
    assert runs.find_checkpoint(None, "some.pt") == pathlib.Path("some.pt")
    with pytest.raises(UserError, match="there is no run runs/b"):
        runs.find_checkpoint("runs/b", None)


def test_a_run_is_locked_once_and_cleaned_of_what_was_left_half_written(tmp_path):
    run = tmp_path / "new" / "run"
    left = [run / "checkpoints" / ".last.pt.77.tmp", run / "logs" / ".history.csv.77.tmp"]
    left.append(run / ".config.json.77.tmp")
    kept = [run / ".metrics.json.77.tmp", run / "checkpoints" / "last.pt"]  # report.py may be at work
    for path in left + kept:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    with runs.lock_run(run):
        assert not any(path.exists() for path in left) and all(path.exists() for path in kept)
        if runs.fcntl:
            with pytest.raises(UserError, match="another training is running in"), runs.lock_run(run):
                pass
    with runs.lock_run(run):
        pass


@pytest.mark.parametrize("without", ["fcntl", "support of the file system"])
def test_where_there_are_no_locks_training_goes_on_without(tmp_path, monkeypatch, without):
    if without == "fcntl":
        monkeypatch.setattr(runs, "fcntl", None)
    else:

        def flock(*args):
            raise OSError(errno.ENOTSUP, "not supported")

        monkeypatch.setattr(runs.fcntl, "flock", flock)
    with runs.lock_run(tmp_path):
        pass


def test_a_new_run_may_begin_only_where_nothing_is_lost(tmp_path):
    run = tmp_path / "run"
    runs.check_new_run(run, overwrite=False)  # does not exist
    with runs.lock_run(run):
        runs.check_new_run(run, overwrite=False)  # empty
        (run / "checkpoints").mkdir()
        runs.write_json(run / "config.json", {"settings": {}})
        runs.check_new_run(run, overwrite=False)  # ended before it saved anything
        (run / "checkpoints" / "last.pt").touch()
        with pytest.raises(
            UserError, match="holds a run already: go on with --resume, delete it with --over"
        ):
            runs.check_new_run(run, overwrite=False)
        runs.check_new_run(run, overwrite=True)
        for content in ("{}", "[]", "{", '{"settings": 1}'):
            (run / "config.json").write_text(content)
            with pytest.raises(UserError, match="is not empty and holds no run"):
                runs.check_new_run(run, overwrite=True)


def test_remove_run_removes_what_a_run_consists_of_and_nothing_else(tmp_path):
    run, elsewhere = tmp_path / "run", tmp_path / "big disk"
    for name in ("logs/history.csv", "plots/x.png", "config.json", "metrics.json", "notes.txt", "my/own.txt"):
        (run / name).parent.mkdir(parents=True, exist_ok=True)
        (run / name).touch()
    elsewhere.mkdir()
    (elsewhere / "last.pt").touch()
    (run / "checkpoints").symlink_to(elsewhere)
    runs.remove_run(run)
    assert sorted(path.name for path in run.iterdir()) == ["my", "notes.txt"]
    assert (elsewhere / "last.pt").exists()


# ---------------------------------------------------------------------------------------------------------
# Checkpoints


def test_checkpoint_round_trip_and_the_one_before(tmp_path):
    last, previous = tmp_path / "checkpoints" / "last.pt", tmp_path / "checkpoints" / "previous.pt"
    for epoch in (1, 2, 3):
        runs.save_checkpoint(last, make_checkpoint(epoch=epoch), previous)
        loaded, expected = runs.load_checkpoint(last), make_checkpoint(epoch=epoch)
        torch.testing.assert_close(loaded.pop("model"), expected.pop("model"), rtol=0, atol=0)
        assert loaded == expected
        assert previous.exists() == (epoch > 1)
        if epoch > 1:
            assert runs.load_checkpoint(previous)["epoch"] == epoch - 1
    assert sorted(os.listdir(last.parent)) == ["last.pt", "previous.pt"]


def test_the_one_before_is_kept_where_there_are_no_hard_links(tmp_path, monkeypatch):
    def link(*args):
        raise OSError(errno.EPERM, "not permitted")

    monkeypatch.setattr(os, "link", link)
    for epoch in (1, 2, 3):
        runs.save_checkpoint(tmp_path / "last.pt", make_checkpoint(epoch=epoch), tmp_path / "previous.pt")
    epochs = [runs.load_checkpoint(tmp_path / name)["epoch"] for name in ("last.pt", "previous.pt")]
    assert epochs == [3, 2]


def test_load_model_gives_the_same_network_in_eval_mode(tmp_path):
    torch.manual_seed(1)
    model = resnet18(3, width=2)
    model.train()(torch.randn(9, 3, 32, 32))
    runs.save_checkpoint(tmp_path / "x.pt", make_checkpoint(model=model.state_dict()))
    loaded, checkpoint = runs.load_model(tmp_path / "x.pt", CPU)
    images = torch.randn(2, 3, 32, 32)
    assert not loaded.training and checkpoint["epoch"] == 4
    assert all(p.dtype == torch.float32 for p in loaded.parameters())
    assert loaded.conv1.weight.is_contiguous(memory_format=torch.channels_last)
    with torch.inference_mode():
        torch.testing.assert_close(loaded(images), model.eval()(images))
    # Weights kept in half the bytes are read as float32.
    halved = {name: t.half() if t.is_floating_point() else t for name, t in model.state_dict().items()}
    runs.save_checkpoint(tmp_path / "x.pt", make_checkpoint(model=halved))
    loaded, _ = runs.load_model(tmp_path / "x.pt", CPU)
    torch.testing.assert_close(loaded.fc.weight, model.fc.weight.half().float(), rtol=0, atol=0)


@pytest.mark.parametrize("damage", ["one bit", "half of it", "empty", "text", "zip"])
def test_a_damaged_file_is_noticed(tmp_path, damage):
    path = tmp_path / "x.pt"
    runs.save_checkpoint(path, make_checkpoint())
    content = bytearray(path.read_bytes())
    weight = make_checkpoint()["model"]["layer4.1.conv2.weight"].numpy().tobytes()
    content[content.index(weight) + 1001] ^= 4
    damaged = {"one bit": content, "half of it": content[: len(content) // 2], "empty": b"", "text": b"hello"}
    if damage == "zip":
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("a.txt", "hello")
    else:
        path.write_bytes(damaged[damage])
    with pytest.raises(UserError, match=r"x\.pt is damaged or no checkpoint \(") as info:
        runs.load_checkpoint(path)
    assert "\n" not in str(info.value) and len(str(info.value)) < 400


class Harmful:
    def __reduce__(self):
        return (os.mkdir, ("this was run",))


def test_no_code_in_a_checkpoint_is_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save(make_checkpoint(config=Harmful()), "x.pt")
    with pytest.raises(UserError, match=r"x\.pt is refused: it holds more than tensors and plain values"):
        runs.load_checkpoint("x.pt")
    assert os.listdir() == ["x.pt"]


def with_weight(name, tensor):
    return make_checkpoint()["model"] | {name: tensor}


REFUSED = {
    "no dict": ([1, 2], "is no checkpoint of train.py: it lacks model, config, epoch, class_names"),
    "a bare state dict": (resnet18(3, 2).state_dict(), "it lacks model, config, epoch, class_names"),
    "a wrong type": (make_checkpoint(class_names="abc", epoch="4"), "it lacks epoch, class_names"),
    "no data set": (make_checkpoint(config={"width": 2}), "was trained on None: expected cifar100 or shapes"),
    "another data set": (
        make_checkpoint(config={"dataset": "imagenet", "width": 2}),
        "was trained on imagenet: expected cifar100 or shapes",
    ),
    "no width": (make_checkpoint(config={"dataset": "shapes"}), "width None, 3 classes"),
    "an absurd width": (make_checkpoint(config={"dataset": "shapes", "width": 10**9}), "width 1000000000"),
    "no classes": (make_checkpoint(class_names=[]), "width 2, 0 classes"),
    "another width": (
        make_checkpoint(config={"dataset": "shapes", "width": 3}),
        "holds another network: [2, 3, 3, 3] as conv1.weight, where a ResNet-18 of width 3 for 3 classes has "
        "[3, 3, 3, 3]",
    ),
    "another number of classes": (
        make_checkpoint(class_names=["a", "b"]),
        "[3, 16] as fc.weight, where a ResNet-18 of width 2 for 2 classes has [2, 16]",
    ),
    "torchvision's network": (
        make_checkpoint(
            model=torchvision.models.resnet18(num_classes=3).state_dict(),
            config={"dataset": "cifar100", "width": 64},
        ),
        "holds another network: [64, 3, 7, 7] as conv1.weight",
    ),
    "a layer too many": (
        make_checkpoint(model=with_weight("layer5.weight", torch.zeros(1))),
        "[1] as layer5.weight, where a ResNet-18 of width 2 for 3 classes has no tensor",
    ),
    "a layer too few": (
        make_checkpoint(model={k: v for k, v in make_checkpoint()["model"].items() if k != "fc.bias"}),
        "no tensor as fc.bias",
    ),
    "no tensor": (make_checkpoint(model=with_weight("fc.bias", 3.0)), "no tensor as fc.bias"),
    "a weight that is not finite": (
        make_checkpoint(model=with_weight("fc.bias", torch.tensor([0, float("nan"), 0]))),
        "holds values that are not finite in fc.bias",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_another_network_is_refused_by_name(tmp_path, case):
    content, message = REFUSED[case]
    torch.save(content, tmp_path / "x.pt")
    for load in (runs.load_checkpoint, lambda path: runs.load_model(path, CPU)):
        with pytest.raises(UserError) as info:
            load(tmp_path / "x.pt")
        assert message in str(info.value) and str(info.value).startswith(str(tmp_path / "x.pt"))


def test_resuming_needs_more_than_weights(tmp_path):
    runs.save_checkpoint(tmp_path / "x.pt", make_checkpoint())
    runs.load_checkpoint(tmp_path / "x.pt")
    with pytest.raises(UserError, match="it lacks optimizer, scaler, state"):
        runs.load_checkpoint(tmp_path / "x.pt", resuming=True)


def test_load_last_takes_the_one_before_when_the_last_is_damaged(tmp_path, capsys):
    folder = tmp_path / "checkpoints"
    last, previous = folder / "last.pt", folder / "previous.pt"
    with pytest.raises(UserError, match="has saved nothing to go on from: start it without --resume"):
        runs.load_last(tmp_path)
    more = {"optimizer": {}, "scaler": {}, "state": {}}
    for epoch in (1, 2):
        runs.save_checkpoint(last, make_checkpoint(epoch=epoch, **more), previous)
    assert runs.load_last(tmp_path)["epoch"] == 2
    assert capsys.readouterr().err == ""
    last.write_bytes(b"damaged")
    assert runs.load_last(tmp_path)["epoch"] == 1
    assert re.search(r"note: .*last\.pt is damaged .*: trying .*previous\.pt", capsys.readouterr().err)
    # The damaged file is out of the way: the next save keeps the good previous.pt, not the damaged one.
    assert (folder / "damaged.pt").read_bytes() == b"damaged" and not last.exists()
    assert runs.load_last(tmp_path)["epoch"] == 1
    runs.save_checkpoint(last, make_checkpoint(epoch=2, **more), previous)
    assert [runs.load_checkpoint(path)["epoch"] for path in (last, previous)] == [2, 1]
    last.write_bytes(b"damaged")
    previous.write_bytes(b"also")
    with pytest.raises(UserError, match=r"previous\.pt is damaged"):
        runs.load_last(tmp_path)
    assert last.exists()
    runs.save_checkpoint(previous, make_checkpoint())
    with pytest.raises(UserError, match="it lacks optimizer, scaler, state"):
        runs.load_last(tmp_path)
    previous.unlink()
    with pytest.raises(UserError, match=r"last\.pt is damaged"):
        runs.load_last(tmp_path)


# ---------------------------------------------------------------------------------------------------------
# Device and precision


@pytest.mark.parametrize(
    "cuda, mps, expected", [(True, True, "cuda"), (False, True, "mps"), (False, False, "cpu")]
)
def test_auto_device_is_the_first_of_cuda_mps_and_cpu(monkeypatch, cuda, mps, expected):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: mps)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2 * cuda)
    assert runs.pick_device("auto").type == expected
    assert runs.pick_device("cpu") == CPU
    for name, there in [("cuda", cuda), ("cuda:1", cuda), ("cuda:2", False), ("mps", mps), ("meta", False)]:
        if there:
            assert runs.pick_device(name) == torch.device(name)
        else:
            with pytest.raises(UserError, match=f"--device {name} is not there on this machine"):
                runs.pick_device(name)


@pytest.mark.parametrize("name", ["gpu", "", "cpu:", "cuda:x", "CPU "])
def test_a_device_that_is_none(name):
    with pytest.raises(UserError, match="expected auto, cuda, mps or cpu"):
        runs.pick_device(name)


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
    assert runs.pick_precision("auto", torch.device(device)) == expected


def test_a_precision_that_is_named():
    for device in (CPU, CUDA):
        assert [runs.pick_precision(name, device) for name in ("fp32", "bf16")] == ["fp32", "bf16"]
    assert runs.pick_precision("fp16", CUDA) == "fp16"
    with pytest.raises(UserError, match="--precision fp16 needs a CUDA GPU"):
        runs.pick_precision("fp16", CPU)


@pytest.mark.parametrize(
    "precision, dtype", [("fp32", torch.float32), ("bf16", torch.bfloat16), ("fp16", torch.float16)]
)
def test_autocast_computes_in_that_precision(precision, dtype):
    with runs.autocast(CPU, precision):
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == dtype


def test_environment_is_plain_strings_and_numbers(tmp_path):
    content = runs.environment(CPU)
    assert all(type(value) in (str, int) for value in content.values())
    assert content["torch"] == torch.__version__ and content["python"] == sys.version.split()[0]
    torch.save(content, tmp_path / "x.pt")
    assert torch.load(tmp_path / "x.pt", weights_only=True) == content


def test_environment_of_a_processor_without_a_name(monkeypatch):
    monkeypatch.setattr(pathlib.Path, "read_text", lambda *args, **kwargs: "processor\t: 0\nBogoMIPS\t: 50\n")
    assert runs.environment(CPU)["hardware"].endswith(f"{os.cpu_count()} cores")


def test_environment_without_git(monkeypatch):
    monkeypatch.setenv("PATH", "/nowhere")
    assert runs.environment(CPU)["commit"] == "unknown"


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
    assert runs.is_out_of_memory(error) == expected


def test_out_of_memory_of_the_cpu():
    with pytest.raises(RuntimeError) as info:
        torch.empty(10**16)
    assert runs.is_out_of_memory(info.value)


# ---------------------------------------------------------------------------------------------------------
# The console


@pytest.mark.parametrize(
    "seconds, text",
    [(0, "0:00"), (59.4, "0:59"), (59.6, "1:00"), (75.2, "1:15"), (3599.9, "1:00:00"), (3725, "1:02:05")],
)
def test_duration(seconds, text):
    assert runs.duration(seconds) == text


def on_terminal(monkeypatch, columns, draw, **env):
    """Return what `draw` writes to a terminal that is `columns` wide."""
    import fcntl
    import pty
    import struct
    import termios

    leader, follower = pty.openpty()
    fcntl.ioctl(follower, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
    for name, value in {"TERM": "xterm", **env}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("COLUMNS", raising=False)
    with os.fdopen(follower, "w") as stderr:
        monkeypatch.setattr(sys, "stderr", stderr)
        draw()
        print("end", file=stderr)
        written = b""
        while not written.endswith(b"end\r\n"):
            written += os.read(leader, 4096)
    os.close(leader)
    return written.decode().removesuffix("end\r\n")


def draw_progress():
    with runs.Progress("epoch 1/40", 200) as progress:
        for done in (0, 50, 100, 200):
            progress.drawn = 0.0  # or most would be left out: ten a second are enough
            progress.update(done, loss="2.312", lr="0.0123", rate="1,234 images/s")


needs_terminal = pytest.mark.skipif(not hasattr(os, "openpty"), reason="needs a pseudo terminal")


@needs_terminal
@pytest.mark.parametrize("columns", [0, 1, 5, 20, 40, 80, 200])
def test_progress_never_needs_more_than_the_line(monkeypatch, columns):
    written = on_terminal(monkeypatch, columns, draw_progress)
    lines = written.replace("\x1b[K", "").split("\r")
    assert all(len(line) < (columns or 80) for line in lines) and lines[-1] == ""
    assert "\n" not in written
    if columns == 0:  # the terminal does not know, so it is taken for one of 80
        assert written == on_terminal(monkeypatch, 80, draw_progress)
    if columns >= 80:
        assert "epoch 1/40" in lines[2] and "100/200  loss 2.312  lr 0.0123  rate 1,234 images/s" in lines[3]
    if columns == 200:
        assert [line.count("=") for line in lines[1:5]] == [0, 8, 15, 30]  # round(7.5) is 8


@needs_terminal
def test_progress_uses_no_colour(monkeypatch):
    written = on_terminal(monkeypatch, 80, draw_progress, NO_COLOR="1")
    assert set(re.findall(r"\x1b\[[0-9;]*[A-Za-z]", written)) == {"\x1b[K"}  # erase to the end of the line


@needs_terminal
def test_progress_is_silent_on_a_dumb_terminal(monkeypatch):
    assert on_terminal(monkeypatch, 80, draw_progress, TERM="dumb") == ""


def test_progress_is_silent_where_there_is_no_terminal(capsys):
    draw_progress()
    assert capsys.readouterr() == ("", "")


@needs_terminal
def test_progress_tells_the_time_left_from_where_it_began(monkeypatch):
    clock = iter([100.0, 200.0, 260.0])
    monkeypatch.setattr(runs.time, "monotonic", lambda: next(clock))

    def resumed_in_the_middle():
        progress = runs.Progress("x", 100)
        progress.update(40)
        progress.update(60)  # 20 in 60 s, so the other 40 take 120 s

    assert "60/100    2:00 left" in on_terminal(monkeypatch, 80, resumed_in_the_middle)


@pytest.mark.parametrize(
    "raised, code, message",
    [
        (UserError("x: do y"), 2, "error: x: do y\n"),
        (KeyboardInterrupt(), 130, "interrupted\n"),
        (PermissionError(errno.EACCES, "No permission", "a/file"), 2, "error: a/file: No permission\n"),
        (OSError(errno.ENOSPC, "No space left on device", "f"), 2, "error: f: No space left on device\n"),
        (SystemExit(7), 7, ""),
    ],
)
def test_run_main_turns_errors_into_one_line(capsys, raised, code, message):
    def main():
        raise raised

    with pytest.raises(SystemExit) as info:
        runs.run_main(main)
    assert info.value.code == code and capsys.readouterr() == ("", message)


def test_run_main_passes_exit_codes_and_unknown_errors(capsys):
    for code in (0, 130, None):
        with pytest.raises(SystemExit) as info:
            runs.run_main(lambda code=code: code)
        assert info.value.code == code
    with pytest.raises(ZeroDivisionError):
        runs.run_main(lambda: 1 / 0)


def test_run_main_prints_each_line_at_once_and_whatever_its_letters(monkeypatch):
    def main():
        print("Läufe")
        assert sys.stdout.buffer.getvalue() == b"L?ufe\n"

    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(io.BytesIO(), encoding="ascii"))
    with pytest.raises(SystemExit):
        runs.run_main(main)


def test_command_line_errors_are_one_line():
    parser = runs.CommandLine("Something.\n\nMore.")
    parser.add_argument("--n", type=int)
    for argv in (["--n", "x"], ["--m"], ["--n"]):
        with pytest.raises(UserError, match=r"\(see .* --help\)$") as info:
            parser.parse_args(argv)
        assert "\n" not in str(info.value)

"""running/folder.py: the run folder, and checkpoints that are what they say."""

import errno
import hashlib
import json
import os
import pathlib
import shutil
import zipfile
from dataclasses import asdict

import pytest
import torch
from processes import ROOT, TINY, assert_one_line, contents, outcome, write_config

import gradcam
import report
import stress
import train
from running import check, files, folder
from running.files import UserError


def make_checkpoint(**changes):
    """A checkpoint with random weights, for 3 classes."""
    torch.manual_seed(0)
    content = {
        "model": {"fc.weight": torch.randn(3, 512), "fc.bias": torch.zeros(3)},
        "config": {"dataset": "shapes", "width": 64, "image_size": 32, "settings": {"epochs": 5}},
        "epoch": 4,
        "class_names": ["a", "b", "c"],
    }
    return content | changes


# ---------------------------------------------------------------------------------------------------------
# The folder


def test_history_is_read_as_numbers(tmp_path):
    rows = [dict.fromkeys(check.HISTORY, 1.0) | {"train_loss": 0.1 + 0.2}]
    path = tmp_path / "logs" / "history.csv"
    files.write_csv(path, rows)
    assert folder.read_history(tmp_path) == rows
    # A spreadsheet writes a byte order mark, and may end lines in another way or leave some empty.
    text = path.read_text(encoding="utf-8")
    for ends in ("\r\n", "\n", "\r", "\r\n\r\n"):
        path.write_bytes(b"\xef\xbb\xbf" + ends.join(text.split()).encode() + ends.encode())
        assert folder.read_history(tmp_path) == rows


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda text: text.replace(",lr,", ",rate,"), "history.csv has no column lr; is"),
        (
            lambda text: "\n".join(line.split(",", 2)[2] for line in text.split()),
            "no column epoch, image_size;",
        ),
        (lambda text: text.replace(",", ";"), "has no column epoch, image_size, lr|cannot be read"),
        (lambda text: "", "has no column epoch, image_size, lr"),
        (lambda text: text + "1," + "1" * 200_000 + "\n", "cannot be read"),
        (lambda text: text.replace("1.0", ""), "cannot be read"),
    ],
)
def test_a_changed_history_is_one_line(tmp_path, change, message):
    path = tmp_path / "logs" / "history.csv"
    files.write_csv(path, [dict.fromkeys(check.HISTORY, 1.0)])
    path.write_text(change(path.read_text(encoding="utf-8")), encoding="utf-8")
    with pytest.raises(UserError, match=message) as error:
        folder.read_history(tmp_path)
    assert "\n" not in str(error.value)


def test_newest_run_is_the_one_whose_best_checkpoint_is_newest(tmp_path):
    with pytest.raises(UserError, match="train one first"):
        folder.newest_run(tmp_path)
    for name, time in [("old", 100), ("new", 300), ("middle", 200)]:
        (tmp_path / name / "checkpoints").mkdir(parents=True)
        (tmp_path / name / "checkpoints" / "best.pt").touch()
        os.utime(tmp_path / name / "checkpoints" / "best.pt", (time, time))
    (tmp_path / "begun" / "checkpoints").mkdir(parents=True)
    (tmp_path / "begun" / "checkpoints" / "last.pt").touch()
    assert folder.newest_run(tmp_path) == tmp_path / "new"


def test_find_checkpoint(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs" / "a" / "checkpoints").mkdir(parents=True)
    (tmp_path / "runs" / "a" / "checkpoints" / "best.pt").touch()
    best = pathlib.Path("runs/a/checkpoints/best.pt")
    assert folder.find_checkpoint(None, None) == best
    assert folder.find_checkpoint("runs/a", None) == best
    assert folder.find_checkpoint(None, "some.pt") == pathlib.Path("some.pt")
    with pytest.raises(UserError, match="there is no run runs/b"):
        folder.find_checkpoint("runs/b", None)


def test_a_run_and_a_checkpoint_are_taken_together_only_where_one_is_in_the_other(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("runs/a/checkpoints/best.pt", "runs/a/checkpoints/last.pt", "runs/b/checkpoints/best.pt"):
        pathlib.Path(name).parent.mkdir(parents=True, exist_ok=True)
        pathlib.Path(name).touch()
    write_config(tmp_path / "runs" / "a")
    last = tmp_path / "runs" / "a" / "checkpoints" / "last.pt"
    for path in ("runs/a/checkpoints/last.pt", last, "runs/b/../a/checkpoints/last.pt"):
        assert folder.find_checkpoint("runs/a", path).samefile(last)
        assert folder.find_results("runs/a", path)[1] == pathlib.Path("runs/a")
    for path in ("runs/b/checkpoints/best.pt", "some.pt", "runs/a/best.pt", "checkpoints/best.pt"):
        for function in (folder.find_checkpoint, folder.find_results):
            with pytest.raises(
                UserError, match=f"--checkpoint {path} is not in runs/a/checkpoints: leave out"
            ):
                function("runs/a", path)


def test_results_go_to_the_run_of_the_checkpoint(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs" / "a" / "checkpoints").mkdir(parents=True)
    (tmp_path / "runs" / "a" / "checkpoints" / "best.pt").touch()
    for run in (None, "runs/a"):
        with pytest.raises(
            UserError, match=r"runs/a is no run of train\.py: there is no runs/a/config\.json"
        ):
            folder.find_results(run, None)
    write_config(tmp_path / "runs" / "a")
    assert folder.find_results(None, None)[1] == pathlib.Path("runs/a")
    assert folder.find_results("runs/a", None)[1] == pathlib.Path("runs/a")
    assert folder.find_results(None, "runs/a/checkpoints/last.pt")[1] == pathlib.Path("runs/a")
    assert folder.find_results(None, "weights/some.pt")[1] == pathlib.Path("runs/some")


def test_only_a_folder_with_the_config_of_train_is_a_run(tmp_path):
    """The names in the table are those of train.Config, and shipped results are a run."""
    assert check.SETTINGS.keys() <= asdict(train.Config()).keys()
    assert folder.is_run(ROOT / "results")
    for changes in ({}, {"provenance": 1}, {"settings": {}}, {"settings": {"epochs": 5}}, {"num_val": "5"}):
        write_config(tmp_path, **changes)
        assert folder.is_run(tmp_path) == (changes == {})
    (tmp_path / "config.json").write_text('{"settings": {"lr": 0.1}}')
    assert not folder.is_run(tmp_path)


def test_a_run_is_locked_once_and_cleaned_of_what_was_left_half_written(tmp_path):
    run = tmp_path / "new" / "run"
    names = ["checkpoints/.last.pt.77.tmp", "logs/.history.csv.77.tmp", ".config.json.77.tmp"]
    names += [".metrics.json.77.tmp", "plots/.loss.png.77.tmp", "failures/.01_a_as_b.png.77.tmp"]
    kept = [run / "checkpoints" / "last.pt", run / ".notes.77.tmp", run / "plots" / ".mine.png.77.tmp"]
    left = [run / name for name in names]
    for path in left + kept:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    with folder.lock_run(run, training=True), folder.lock_run(run):
        assert not any(path.exists() for path in left) and all(path.exists() for path in kept)
        if files.fcntl:
            with pytest.raises(UserError, match="another command is at work"), folder.lock_run(run):
                pass
    with folder.lock_run(run):
        pass


def test_a_lock_leaves_nothing_behind(tmp_path):
    run = tmp_path / "new" / "run"
    with folder.lock_run(run):
        assert run.is_dir()
    with pytest.raises(ZeroDivisionError), folder.lock_run(run):
        raise ZeroDivisionError
    with pytest.raises(UserError, match="File name too long"), folder.lock_run(run / ("x" * 300)):
        pass
    assert not list(tmp_path.iterdir())
    with folder.lock_run(run):
        (run / "x").touch()
    assert list(run.iterdir()) == [run / "x"]


@pytest.mark.parametrize("without", ["fcntl", "support of the file system"])
def test_where_there_are_no_locks_training_goes_on_without(tmp_path, monkeypatch, without):
    if without == "fcntl":
        monkeypatch.setattr(files, "fcntl", None)
    else:

        def flock(*args):
            raise OSError(errno.ENOTSUP, "not supported")

        monkeypatch.setattr(files.fcntl, "flock", flock)
    with folder.lock_run(tmp_path, training=True):
        pass


def test_a_new_run_may_begin_only_where_nothing_is_lost(tmp_path):
    run = tmp_path / "run"
    folder.check_new_run(run, overwrite=False)  # does not exist
    with folder.lock_run(run):
        folder.check_new_run(run, overwrite=False)  # empty
        (run / "checkpoints").mkdir()
        write_config(run)
        folder.check_new_run(run, overwrite=False)  # ended before it saved anything
        (run / "checkpoints" / "last.pt").touch()
        with pytest.raises(
            UserError, match="holds a run already: go on with --resume, delete it with --over"
        ):
            folder.check_new_run(run, overwrite=False)
        folder.check_new_run(run, overwrite=True)
        for content in ("{}", "[]", "{", '{"settings": 1}', '{"settings": {"lr": 0.1}}'):
            (run / "config.json").write_text(content)
            with pytest.raises(UserError, match="is not empty and holds no run"):
                folder.check_new_run(run, overwrite=True)


def test_remove_run_removes_what_a_run_consists_of_and_nothing_else(tmp_path):
    run, elsewhere = tmp_path / "run", tmp_path / "big disk"
    for name in (
        "logs/history.csv",
        "plots/x.png",
        "plots/loss.png",
        "config.json",
        "metrics.json",
        "notes.txt",
        "my/own.txt",
    ):
        (run / name).parent.mkdir(parents=True, exist_ok=True)
        (run / name).touch()
    elsewhere.mkdir()
    (elsewhere / "last.pt").touch()
    (run / "checkpoints").symlink_to(elsewhere)
    folder.remove_run(run)
    assert sorted(path.name for path in run.iterdir()) == ["my", "notes.txt", "plots"]
    assert (elsewhere / "last.pt").exists()


# ---------------------------------------------------------------------------------------------------------
# Checkpoints


def test_checkpoint_round_trip(tmp_path):
    last = tmp_path / "checkpoints" / "last.pt"
    for epoch in (1, 2, 3):
        folder.save_checkpoint(last, make_checkpoint(epoch=epoch))
        loaded, expected = folder.load_checkpoint(last), make_checkpoint(epoch=epoch)
        torch.testing.assert_close(loaded.pop("model"), expected.pop("model"), rtol=0, atol=0)
        assert loaded == expected | {"sha256": hashlib.sha256(last.read_bytes()).hexdigest()}
    assert os.listdir(last.parent) == ["last.pt"]


@pytest.mark.parametrize("damage", ["one bit", "half of it", "empty", "text", "zip"])
def test_a_damaged_file_is_noticed(tmp_path, damage):
    path = tmp_path / "x.pt"
    folder.save_checkpoint(path, make_checkpoint())
    content = bytearray(path.read_bytes())
    weight = make_checkpoint()["model"]["fc.weight"].numpy().tobytes()
    content[content.index(weight) + 1001] ^= 4
    damaged = {"one bit": content, "half of it": content[: len(content) // 2], "empty": b"", "text": b"hello"}
    if damage == "zip":
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("a.txt", "hello")
    else:
        path.write_bytes(damaged[damage])
    with pytest.raises(UserError, match=r"x\.pt is damaged or no checkpoint \(") as info:
        folder.load_checkpoint(path)
    assert "\n" not in str(info.value) and len(str(info.value)) < 400


class Harmful:
    def __reduce__(self):
        return (os.mkdir, ("this was run",))


def test_no_code_in_a_checkpoint_is_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save(make_checkpoint(config=Harmful()), "x.pt")
    with pytest.raises(UserError, match=r"x\.pt is refused: it holds more than tensors and plain values"):
        folder.load_checkpoint("x.pt")
    assert os.listdir() == ["x.pt"]


REFUSED = {
    "no dict": ([1, 2], "x.pt cannot be used: its content is of type list, expected a table"),
    "a bare state dict": (make_checkpoint()["model"], "it lacks model, config, epoch, class_names"),
    "a wrong type": (
        make_checkpoint(class_names="abc", epoch="4"),
        "cannot be used: epoch is '4', expected a whole number of 1 to 100,000",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_file_that_lacks_what_a_checkpoint_holds_is_refused(tmp_path, case):
    content, message = REFUSED[case]
    torch.save(content, tmp_path / "x.pt")
    with pytest.raises(UserError) as info:
        folder.load_checkpoint(tmp_path / "x.pt")
    assert message in str(info.value) and str(info.value).startswith(str(tmp_path / "x.pt"))


def test_resuming_needs_more_than_weights(tmp_path):
    config = json.loads((ROOT / "results" / "config.json").read_text(encoding="utf-8"))
    folder.save_checkpoint(tmp_path / "x.pt", make_checkpoint(config=config, val_accuracy=0.5))
    folder.load_checkpoint(tmp_path / "x.pt")
    with pytest.raises(UserError, match=r"it lacks history, optimizer, scaler; it is of an older version"):
        folder.load_checkpoint(tmp_path / "x.pt", resuming=True)


# ---------------------------------------------------------------------------------------------------------
# Folders and files that are not what they should be. A row: what is done to a copy of an interrupted run, the
# options, what the error says. {run} stands for the folder.


def edit_checkpoint(run, change, name="last.pt"):
    path = run / "checkpoints" / name
    checkpoint = torch.load(path)
    change(checkpoint)
    torch.save(checkpoint, path)


def damage(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def damage_last(run):
    damage(run / "checkpoints" / "last.pt")


def cut_last(run):
    os.truncate(run / "checkpoints" / "last.pt", 1000)


def another_width(run):
    edit_checkpoint(run, lambda c: c["config"].update(width=32))


def not_finite(run):
    edit_checkpoint(run, lambda c: c["model"]["fc.bias"].fill_(float("inf")))


def best_as_last(run):
    shutil.copy(run / "checkpoints" / "best.pt", run / "checkpoints" / "last.pt")


def harmful(run):
    edit_checkpoint(run, lambda c: c.update(extra=Harmful()))


def no_history(run):
    edit_checkpoint(run, lambda c: c.pop("history"))


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


def edit_config(value):
    def change(run):
        path = run / "config.json"
        path.write_text(path.read_text().replace('"lr": 0.15', f'"lr": {value}'))

    return change


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
    locked.held = folder.lock_run(run, training=True)  # until the end of the test, which collects it
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
        r"run cannot be written to \(Not a directory\): use another folder",
    ),
    "a file in place of its parent": (below_a_file, "", r"cannot be written to \(Not a directory\)"),
    "another training in it": (locked, "--resume", "another command is at work in .*run: wait until it"),
    "another training in it, --overwrite": (locked, "--overwrite", "another command is at work in"),
    "a bad option and --overwrite": (
        nothing,
        "--overwrite --batch-size 99",
        "--batch-size 99 is more than the 8",
    ),
    "nothing to resume": (
        shutil.rmtree,
        "--resume",
        r"run is no run of train\.py: there is no .*config\.json",
    ),
    "no checkpoint to resume": (
        no_checkpoints,
        "--resume",
        "has no finished epoch to resume: start it again",
    ),
    "config.json cut": (config_is('{"settings": {'), "--resume", r"config\.json cannot be read \("),
    "config.json of another kind": (
        config_is("[1]"),
        "--resume",
        r"config\.json cannot be used: its content is of type list",
    ),
    "config.json with nonsense": (
        config_is('{"settings": {"epochs": "x"}}'),
        "--resume",
        "config.json cannot be used: it lacks dataset, width, image_size, provenance, ",
    ),
    "config.json edited to a list": (
        edit_config("[0.2]"),
        "--resume",
        "settings.lr is of type list, expected a",
    ),
    "config.json edited": (
        edit_config("0.2"),
        "--resume",
        r"was started with --lr 0\.15: resume it without changing that",
    ),
    "other settings": (
        nothing,
        "--resume --epochs 9 --seed 4",
        "was started with --epochs 3, --seed 0: resume it",
    ),
    "last.pt damaged": (damage_last, "--resume", r"last\.pt is damaged or no checkpoint \(the checksum of"),
    "last.pt cut": (cut_last, "--resume", r"last\.pt is damaged or no checkpoint"),
    "last.pt of another width": (another_width, "--resume", r"holds another network: .*width 32"),
    "last.pt not finite": (not_finite, "--resume", r"holds values that are not finite in model\.fc\.bias"),
    "best.pt as last.pt": (best_as_last, "--resume", "it lacks optimizer, scaler"),
    "last.pt that runs code": (
        harmful,
        "--resume",
        "is refused: it holds more than tensors and plain values",
    ),
    "last.pt without the history": (
        no_history,
        "--resume",
        r"last\.pt cannot be used: it lacks history; it is of an older",
    ),
    "another version's optimizer": (
        another_optimizer,
        "--resume",
        r"another version of train\.py \(ValueError",
    ),
    "last.pt of another set": (
        another_set,
        "--resume",
        "the run was trained on images of cats, but the data found are the built-in shapes",
    ),
}


@pytest.mark.parametrize("row", RUNS)
def test_run_folder(row, tmp_path, capsys, monkeypatch, small, half_done):
    monkeypatch.chdir(tmp_path)
    prepare, options, message = RUNS[row]
    run = tmp_path / "runs" / "run"
    shutil.copytree(half_done, run)
    prepare(run)
    before = contents(tmp_path)
    settings = [] if "--resume" in options else [*TINY, "--dataset", "shapes"]
    assert_one_line(*outcome(capsys, train.main, [*settings, "--out", str(run), *options.split()]), message)
    assert contents(tmp_path) == before  # nothing is lost and nothing added
    assert not pathlib.Path("this was run").exists()


def test_overwrite_removes_the_run_and_not_what_else_lies_there(tmp_path, small, half_done):
    run = tmp_path / "run"
    shutil.copytree(half_done, run)
    (run / "notes.txt").write_text("mine")
    (run / "metrics.json").write_text("of the old run")
    argv = [*TINY, "--dataset", "shapes", "--out", str(run), "--overwrite", "--epochs", "1"]
    assert train.main(argv) == 0
    assert (run / "notes.txt").read_text() == "mine" and not (run / "metrics.json").exists()
    assert len(folder.read_history(run)) == 1


def test_a_folder_without_permission(plain_user, capsys, small, half_done):
    plain_user.chmod(0o500)
    argv = [*TINY, "--dataset", "shapes", "--out", str(plain_user / "run")]
    message = r"run cannot be written to \(Permission denied\): use another folder"
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


def another_run(run):
    shutil.copytree(run / "checkpoints", run / "other" / "checkpoints")


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
        "run is not a regular file",
    ),
    "report: other classes": (class_renamed, report, "--run {run}", "the classes of .* are not those of"),
    "report: history cut": (history_cut, report, "--run {run}", r"history\.csv has no column image_size, "),
    "report: a checkpoint of another run": (
        another_run,
        report,
        "--run {run} --checkpoint {run}/other/checkpoints/best.pt",
        r"best\.pt is not in .*a run/checkpoints: leave out --run",
    ),
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
def test_other_command(row, tmp_path, capsys, monkeypatch, small, finished):
    prepare, module, options, message = OTHERS[row]
    monkeypatch.chdir(tmp_path)
    run = tmp_path / "a run"
    shutil.copytree(finished, run)
    prepare(run)
    before = contents(run)
    argv = [part.replace("{run}", str(run)) for part in options.split()]
    assert_one_line(*outcome(capsys, module.main, argv), message)
    assert contents(run) == before

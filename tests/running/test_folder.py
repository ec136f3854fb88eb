"""running/folder.py: the run folder, whose files are never lost, and checkpoints that are what they say."""

import functools
import os
import pathlib
import shutil
from pathlib import Path

import pytest
from processes import TINY, assert_one_line, contents, outcome, write_config

import train
from running import files, folder
from running.files import UserError


def touch(*paths):
    for path in map(pathlib.Path, paths):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()


# ---- Runs, checkpoints and results -----------------------------------------------------------------------


def test_history_is_read_as_numbers_also_after_a_spreadsheet(tmp_path):
    rows = [{"epoch": 1.0, "train_loss": 0.1 + 0.2}, {"epoch": 2.0, "train_loss": 1e-9}]
    path = tmp_path / "logs" / "history.csv"
    files.write_csv(path, rows)
    assert folder.read_history(tmp_path) == rows
    text = path.read_text(encoding="utf-8")
    for ends in ("\r\n", "\n", "\r", "\r\n\r\n"):
        path.write_bytes(b"\xef\xbb\xbf" + ends.join(text.split()).encode() + ends.encode())
        assert folder.read_history(tmp_path) == rows


def test_newest_run_is_the_one_whose_best_checkpoint_is_newest(tmp_path):
    with pytest.raises(UserError, match="train one first"):
        folder.newest_run(tmp_path)
    for name, time in [("old", 100), ("new", 300), ("middle", 200)]:
        touch(tmp_path / name / "checkpoints" / "best.pt")
        os.utime(tmp_path / name / "checkpoints" / "best.pt", (time, time))
    touch(tmp_path / "begun" / "checkpoints" / "last.pt")
    assert folder.newest_run(tmp_path) == tmp_path / "new"


def test_which_checkpoint_is_taken_and_where_its_results_go(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    best, last = (pathlib.Path(f"runs/a/checkpoints/{name}.pt") for name in ("best", "last"))
    touch(best, last, "runs/b/checkpoints/best.pt", "weights/some.pt")
    os.utime(best, (2e9, 2e9))
    for run in ("runs/a", "runs/c"):
        with pytest.raises(UserError, match=f"no run of train.py in {run}: give its folder, such"):
            folder.find_checkpoint(run, None)
    write_config(pathlib.Path("runs/a"))
    for run, checkpoint, found in [
        (None, None, best),
        ("runs/a", None, best),
        ("runs/a", last, last),
        ("runs/a", tmp_path / last, last),
        (None, last, last),
    ]:
        assert folder.find_checkpoint(run, checkpoint).samefile(found)
        assert folder.results_folder(folder.find_checkpoint(run, checkpoint)).samefile("runs/a")
    assert folder.results_folder(pathlib.Path("weights/some.pt")) == pathlib.Path("runs/some")
    pathlib.Path("loop").symlink_to("loop")
    for other in ("runs/b/checkpoints/best.pt", "weights/some.pt", "runs/a/best.pt", "loop/best.pt"):
        with pytest.raises(UserError, match=f"--checkpoint {other} is not in runs/a/checkpoints: leave out"):
            folder.find_checkpoint("runs/a", other)


def test_a_folder_takes_the_results_of_one_checkpoint_outside_of_a_run(tmp_path):
    checkpoint, results = tmp_path / "x.pt", tmp_path / "runs" / "x"
    folder.claim_folder(results, checkpoint, "ab")
    for name in ("metrics.json", "stress.json"):
        files.write_json(results / name, {"checkpoint_sha256": "ab"})
        folder.claim_folder(results, checkpoint, "ab")
        with pytest.raises(UserError, match=r"holds results of another checkpoint than .*x\.pt"):
            folder.claim_folder(results, checkpoint, "cd")
    (results / "metrics.json").write_text("[")
    with pytest.raises(UserError, match=r"metrics\.json cannot be used as results"):
        folder.claim_folder(results, checkpoint, "ab")
    write_config(tmp_path / "run")
    with pytest.raises(UserError, match="holds results of another checkpoint"):
        folder.claim_folder(tmp_path / "run", checkpoint, "ab")
    folder.claim_folder(tmp_path / "run", tmp_path / "run" / "checkpoints" / "best.pt", "ab")


# ---- Trainings: one at a time, and nothing of the user's is lost -----------------------------------------


def test_a_run_is_locked_once_and_cleaned_of_what_was_left_half_written(tmp_path):
    run = tmp_path / "new" / "run"
    left = [run / "checkpoints" / ".last.pt.77.tmp", run / "logs" / ".history.csv.77.tmp"]
    kept = [run / "checkpoints" / "last.pt", run / ".notes.77.tmp", run / "plots" / ".mine.png.77.tmp"]
    touch(*left, *kept)
    with folder.lock_run(run):
        assert not any(path.exists() for path in left) and all(path.exists() for path in kept)
        if files.fcntl:
            with pytest.raises(UserError, match="another command is at work"), folder.lock_run(run):
                pass
    with folder.lock_run(run):
        pass


def test_a_lock_leaves_no_empty_folder_behind_that_it_made(tmp_path):
    (tmp_path / "mine").mkdir()
    for name in ("mine", "run"):
        with pytest.raises(ZeroDivisionError), folder.lock_run(tmp_path / name):
            raise ZeroDivisionError
    assert os.listdir(tmp_path) == ["mine"]
    (tmp_path / "file").touch()
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    for name in ("x" * 300, "x\0", "file", "file/run", "loop", "loop/run"):
        with pytest.raises(UserError, match="as a run folder: "), folder.lock_run(tmp_path / name):
            pass


def test_overwrite_removes_the_run_and_not_what_else_lies_there(tmp_path, small, finished):
    run, elsewhere = tmp_path / "run", tmp_path / "big disk"
    shutil.copytree(finished, run)
    results = ["metrics.json", "stress.json", "report.html", "failures/failures.csv"]
    results += ["gradcam/01_apple_as_pear.png", "failures/01_apple_as_pear.png"]
    mine = ["notes.txt", "my/own.txt", "plots/mine.png", "failures/notes.md", "checkpoints/kept.pt"]
    touch(*(run / name for name in results + mine))
    (run / "logs").rename(elsewhere)
    (run / "logs").symlink_to(elsewhere)
    argv = [*TINY, "--dataset", "shapes", "--out", str(run), "--overwrite", "--epochs", "1"]
    assert train.main(argv) == 0
    assert len(folder.read_history(run)) == 1 and not any((run / name).exists() for name in results)
    assert all((run / name).exists() for name in mine)
    assert (elsewhere / "history.csv").read_text().count("\n") == 4  # a link is undone, not followed


def test_results_go_only_to_a_folder_of_the_same_checkpoint(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert folder.results_folder(Path("weights/net.pt")) == Path("runs/net")
    assert folder.results_folder(Path("weights/...pt")) == Path("runs/checkpoint")
    claim = functools.partial(folder.claim_folder, Path("runs/net"), Path("weights/net.pt"), "abc")
    claim()
    touch(Path("runs/net/report.html"))  # of the user
    with pytest.raises(UserError, match="holds results of another checkpoint"):
        claim()
    Path("runs/net/metrics.json").write_text('{"checkpoint_sha256": "abc"}')
    claim()
    Path("runs/net/stress.json").write_text('{"checkpoint_sha256": "another"}')
    with pytest.raises(UserError, match="holds results of another checkpoint"):
        claim()


def other_files(run):
    shutil.rmtree(run)
    touch(run / "src" / "main.py")


def only_results(run):
    shutil.rmtree(run / "checkpoints")
    shutil.rmtree(run / "logs")
    touch(run / "metrics.json")


def another_config(run):
    (run / "config.json").write_text('{"settings": {"mine": 1}}')


NO_RUN = "is not empty and holds no run of train.py: use another --out"
# What is done to a copy of an interrupted run, the options, and what the error says.
REFUSED = {
    "a run": (lambda run: None, "", "holds a run already: go on with --resume, delete it with --overwrite"),
    "other files": (other_files, "", NO_RUN),
    "other files, --overwrite": (other_files, "--overwrite", NO_RUN),
    "no config.json, --overwrite": (lambda run: (run / "config.json").unlink(), "--overwrite", NO_RUN),
    "another config.json, --overwrite": (another_config, "--overwrite", NO_RUN),
    "results alone, --overwrite": (only_results, "--overwrite", "holds results without a training, which"),
    "a bad option, --overwrite": (
        lambda run: None,
        "--overwrite --batch-size 99",
        "at most the 8 images to train on",
    ),
    "nothing to resume": (shutil.rmtree, "--resume", "run has no finished epoch to resume: start it again"),
    "changed settings": (
        lambda run: None,
        "--resume --epochs 9 --seed 4",
        "was started with --epochs 3, --seed 0: resume it without changing that",
    ),
    "another data set": (
        lambda run: None,
        "--resume --dataset cifar100",
        "was started with --dataset shapes",
    ),
    "both": (lambda run: None, "--resume --overwrite", "--overwrite: not allowed with argument --resume"),
}


@pytest.mark.parametrize("row", REFUSED)
def test_a_folder_that_training_does_not_touch(row, tmp_path, capsys, small, half_done):
    prepare, options, message = REFUSED[row]
    run = tmp_path / "run"
    shutil.copytree(half_done, run)
    prepare(run)
    before = contents(tmp_path)
    settings = [] if "--resume" in options else [*TINY, "--dataset", "shapes"]
    assert_one_line(*outcome(capsys, train.main, [*settings, "--out", str(run), *options.split()]), message)
    assert contents(tmp_path) == before

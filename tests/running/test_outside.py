"""Files, folders and options from outside: each is refused in one line, and nothing is left behind."""

import copy
import hashlib
import io
import json
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from processes import ROOT, TINY, assert_one_line, contents, outcome

import gradcam
import report
import stress
import train
from page import against
from running.folder import ORIGIN, RUN_FILES, claim_folder, files_of, find_results, lock_run, remove_run
from sources import cifar100

COMMANDS = {"train": train, "report": report, "stress": stress, "gradcam": gradcam}

# ---------------------------------------------------------------------------------------------------------
# What a file holds. A row: what is done to the content of the file, and what the error says.


def put(path, value):
    """A change that sets the value at a path such as "config.width"; DELETE deletes what is there."""

    def change(content):
        *before, last = [int(part) if part.isdigit() else part for part in path.split(".")]
        for part in before:
            content = content[part]
        if value is DELETE:
            del content[last]
        else:
            content[last] = value

    return change


DELETE, NAN = object(), float("nan")


def weight(make):
    """A change of fc.weight, 100 x 128 numbers."""

    def change(content):
        content["model"]["fc.weight"] = make(content["model"]["fc.weight"])

    return change


CHECKPOINT = {
    "no width": (put("config.width", DELETE), "it lacks config.width; it is of an older version"),
    "a width of text": (put("config.width", "16"), "config.width is '16', expected a whole number of 1 to"),
    "a width of true": (put("config.width", True), "config.width is True, expected a whole number"),
    "an absurd width": (put("config.width", 10**12), "config.width is 1000000000000, expected"),
    "a width of NaN": (put("config.width", NAN), "config.width is nan, expected a whole number"),
    "another data set": (put("config.dataset", "../etc"), "config.dataset is '../etc', expected cifar100 or"),
    "a list for the data set": (put("config.dataset", [1]), "config.dataset is of type list"),
    "an image size of 0": (put("config.image_size", 0), "config.image_size is 0, expected"),
    "the model is a list": (put("model", [1]), "model is of type list, expected a table"),
    "config is a text": (put("config", "x"), "config is 'x', expected a table"),
    "no class names": (put("class_names", DELETE), "it lacks class_names"),
    "class names of numbers": (
        put("class_names", list(range(100))),
        r"class_names\[0\] is 0, expected a text",
    ),
    "a class name twice": (put("class_names.1", "red circle"), "its class names are not distinct"),
    "an endless class name": (put("class_names.1", "x" * 10**6), "letters$"),
    "a class name too few": (put("class_names.99", DELETE), "superclass_of is not one index|another network"),
    "a superclass out of range": (
        put("superclass_of.3", 10),
        "superclass_of is not one index of superclass_n",
    ),
    "a superclass below 0": (put("superclass_of.3", -1), r"superclass_of\[3\] is -1, expected"),
    "no superclass names": (put("superclass_names", DELETE), "superclass_of is not one index of"),
    "too few superclasses": (put("superclass_of", [0, 1]), "superclass_of is not one index of"),
    "epoch 0": (put("epoch", 0), "epoch is 0, expected a whole number of 1 to 100,000"),
    "half an epoch": (put("epoch", 1.5), "epoch is 1.5, expected a whole number"),
    "history of texts": (put("history", ["x"]), r"history\[0\] is 'x', expected a table"),
    "history without a loss": (put("history.0.val_loss", DELETE), r"it lacks history\[0\].val_loss"),
    "history with NaN": (put("history.0.val_loss", NAN), r"history\[0\].val_loss is nan, expected a finite"),
    "history too short": (put("history.0", DELETE), "history does not have one row for each of"),
    "logits of one size": (put("val_logits", torch.zeros(5)), r"val_logits is not a tensor \[N, C = 100\]"),
    "logits of fewer classes": (put("val_logits", torch.zeros(5, 9)), "val_logits is not a tensor"),
    "logits of integers": (put("val_logits", torch.zeros(5, 100, dtype=torch.int64)), "val_logits is not a"),
    "logits that are a list": (put("val_logits", [1.0]), "val_logits is not a tensor"),
    "logits of NaN": (put("val_logits", torch.full((5, 100), NAN)), "not finite in val_logits"),
    "labels of another number": (put("val_labels", torch.zeros(7).long()), "val_labels is not a tensor"),
    "labels out of range": (lambda c: c["val_labels"].fill_(100), "val_labels is not a tensor"),
    "labels without logits": (put("val_logits", DELETE), "val_logits is not a tensor"),
    "a weight that is a number": (lambda c: c["model"].update({"fc.bias": 1.0}), "no tensor as fc.bias"),
    "weights on the meta device": (
        weight(lambda w: w.to("meta")),
        "dense tensor of numbers in model.fc.weight",
    ),
    "sparse weights": (weight(lambda w: w.to_sparse()), "dense tensor of numbers in model.fc.weight"),
    "compressed sparse weights": (weight(lambda w: w.to_sparse_csr()), "dense tensor of numbers in model.fc"),
    "complex weights": (
        weight(lambda w: w.to(torch.complex64)),
        "dense tensor of numbers in model.fc.weight",
    ),
    "weights of true and false": (weight(lambda w: w > 0), "dense tensor of numbers in model.fc.weight"),
    "quantised weights": (
        weight(lambda w: torch.quantize_per_tensor(w, 0.1, 0, torch.qint8)),
        "dense tensor of numbers in model.fc.weight",
    ),
    "weights expanded from one number": (
        weight(lambda w: torch.zeros(1).expand(100, 128)),
        "dense tensor of numbers in model.fc.weight",
    ),
    "a million million from one number": (
        put("val_logits", torch.zeros(1).expand(10**10, 100)),
        "dense tensor of numbers in val_logits",
    ),
    "a weight of infinity": (
        weight(lambda w: w.clone().fill_(float("inf"))),
        "not finite in model.fc.weight",
    ),
    "weights of another shape": (weight(lambda w: w.T.contiguous()), "holds another network"),
}
REPORTED = {
    "no settings": (put("config.settings", DELETE), "it lacks config.settings"),
    "settings of text": (put("config.settings", "x"), "config.settings is 'x', expected a table"),
    "data_dir of a number": (put("config.settings.data_dir", 5), "config.settings.data_dir is 5, expected a"),
    "an absent setting": (put("config.settings.batch_size", DELETE), "it lacks config.settings.batch_size"),
    "a batch of 0": (put("config.settings.batch_size", 0), "config.settings.batch_size is 0"),
    "a batch larger than the set": (put("config.settings.batch_size", 10**6), "batches are larger than"),
    "a learning rate of text": (
        put("config.settings.lr", "0.1"),
        "config.settings.lr is '0.1', expected a fini",
    ),
    "a learning rate of infinity": (put("config.settings.lr", float("inf")), "config.settings.lr is inf"),
    "a warmup longer than the run": (put("config.settings.warmup_epochs", 50), "its warmup is longer than"),
    "num_train of text": (put("config.num_train", "many"), "config.num_train is 'many'"),
    "an environment of text": (put("config.environment", "linux"), "config.environment is 'linux'"),
    "no hardware": (put("config.environment.hardware", DELETE), "it lacks config.environment.hardware"),
    "accuracy above 1": (
        put("val_accuracy", 73.3),
        "val_accuracy is 73.3, expected a finite number of 0 to 1",
    ),
    "an accuracy of none": (put("val_accuracy", None), "val_accuracy is None, expected"),
}
RESUMED = {
    "no optimizer": (put("optimizer", DELETE), "it lacks optimizer; it is of an older version"),
    "an optimizer of text": (put("optimizer", "x"), "optimizer is 'x', expected a table"),
    "a group of text": (put("optimizer.param_groups.0", "x"), r"optimizer.param_groups\[0\] is 'x'"),
    "a momentum of text": (
        put("optimizer.param_groups.0.momentum", "x"),
        "another version of train.py",
    ),
    "a buffer of another shape": (
        lambda c: c["optimizer"]["state"][0].update(momentum_buffer=torch.zeros(3)),
        "another version of train.py",
    ),
    "a buffer of another order": (
        lambda c: c["optimizer"]["state"][0].update(momentum_buffer=torch.zeros(3, 16, 3, 3)),
        "another version of train.py",
    ),
    "a buffer of NaN": (
        lambda c: c["optimizer"]["state"][0]["momentum_buffer"].fill_(NAN),
        "not finite in optimizer.state.0.momentum_buffer",
    ),
    "a state of text": (lambda c: c["optimizer"]["state"].update({0: "x"}), "another version of train.py"),
    "a scale of 0": (put("scaler", {"scale": 0.0}), "scaler.scale is 0.0, expected"),
    "no history": (put("history", DELETE), "it lacks history"),
    "no digest": (put("config.digest", DELETE), "it lacks config.digest"),
}
STRESS = {
    "a list": (lambda c: [], "its content is of type list, expected a table"),
    "no fingerprint": (put("fingerprint", DELETE), "it lacks fingerprint; it is of an older version"),
    "of an older version": (
        put("fingerprint.settings", DELETE),
        "it lacks fingerprint.settings; it is of an old",
    ),
    "tests of text": (put("tests", "x"), "tests is 'x', expected a table"),
    "a test of text": (put("tests.fog/1", "x"), "tests.fog/1 is 'x', expected a table"),
    "an accuracy of text": (put("tests.fog/1.accuracy", "x"), "tests.fog/1.accuracy is 'x'"),
    "an accuracy of NaN": (put("tests.fog/1.accuracy.value", NAN), "tests.fog/1.accuracy.value is nan"),
    "no confidence": (put("tests.fog/1.mean_confidence", DELETE), "it lacks tests.fog/1.mean_confidence"),
    "fewer classes": (put("tests.fog/1.correct_per_class", [1]), "its tests do not have the same classes"),
    "an attack of fewer images": (
        put("tests.pgd/1.right", "01"),
        "tests.pgd/1.right is not a digit 0 or 1 for",
    ),
    "an attack of letters": (put("tests.pgd/1.right", "x" * 100), "tests.pgd/1.right is not a digit"),
    "no clean test": (put("tests.clean/0", DELETE), "it lacks tests.clean/0"),
    "a radius too few": (put("tests.pgd/1", DELETE), "it lacks the test pgd/1"),
    "no radii": (put("radii", []), "radii is of type list, expected a list that is not empty"),
    "radii of text": (put("radii.0", "x"), r"radii\[0\] is 'x'"),
    "no worst case": (put("robust_accuracy", DELETE), "it lacks robust_accuracy"),
    "no mean": (put("summary.mean_accuracy.fifteen", DELETE), "it lacks summary.mean_accuracy.fifteen"),
    "a class of a number": (put("summary.classes_that_break_first.0.class", 5), r"first\[0\].class is 5"),
    "checks of text": (put("checks.0", "x"), r"checks\[0\] is 'x', expected a table"),
    "no images": (put("corruption_images", 0), "corruption_images is 0, expected a whole number of 1"),
    "robust accuracy of a list": (put("robust_accuracy", [1]), "robust_accuracy is of type list"),
}
CONFIG = {
    "a list": (lambda c: [], "its content is of type list, expected a table"),
    "another program's": (
        lambda c: {"settings": {"lr": 0.1}},
        "it lacks dataset, width, image_size, provenance",
    ),
    "settings of a list": (put("settings", []), "settings is of type list, expected a table"),
    "a setting of a list": (put("settings.epochs", [1]), "settings.epochs is of type list"),
    "a data folder of a number": (put("settings.data_dir", 5), "settings.data_dir is 5, expected a text"),
    "NaN": (put("settings.lr", NAN), "settings.lr is nan, expected a finite number"),
    "no provenance": (put("provenance", DELETE), "it lacks provenance"),
    "no digest": (put("digest", DELETE), "it lacks digest"),
}

RAW = {  # whole contents of a JSON file
    "100,000 brackets": (b"[" * 100_000 + b"]" * 100_000, r"cannot be read \("),
    "100,000 braces": (b'{"a":' * 100_000, r"cannot be read \("),
    "a line of 10 MB": (b'"' + b"x" * 10**7 + b'"', "its content is 'xxx"),
    "a number of 10 MB": (b"1" * 10**7, r"cannot be read \("),
    "more than 20 MB": (b" " * (20 * 10**6 + 1), "has more than the 20.0 MB allowed"),
    "bytes": (bytes(range(256)), r"cannot be read \("),
    "nothing": (b"", r"cannot be read \("),
    "NaN": (b"NaN", "its content is nan, expected a table"),
    "null": (b"null", "its content is None, expected a table"),
}
HISTORY = {
    "a line of 10 MB": (lambda text: text + "1" * 10**7, "cannot be read"),
    "a header of 10 MB": (lambda text: "x," * (5 * 10**6) + text, "has no column epoch|cannot be read"),
    "NaN": (lambda text: text.replace("\n1,", "\nnan,"), r"\[0\].epoch is nan, expected a finite"),
    "a size below 1": (lambda text: text.replace(",32,", ",-5,"), r"\[.\].image_size is -5.0, expected"),
    "a short row": (lambda text: text + "9,32\n", "cannot be read"),
    "no row": (lambda text: text.split("\n")[0] + "\n", "is of type list, expected a list that is not empty"),
    "nothing": (lambda text: "", "has no column epoch"),
    "null bytes": (lambda text: text.replace("1", "\0"), "cannot be read"),
}


@pytest.fixture(scope="session")
def run_content(finished):
    """The checkpoints of a finished run, by name."""
    return {name: torch.load(finished / "checkpoints" / f"{name}.pt") for name in ("best", "last")}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("case", CHECKPOINT | REPORTED)
def test_checkpoint(case, run_content, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    change, message = (CHECKPOINT | REPORTED)[case]
    content = copy.deepcopy(run_content["best"])
    change(content)
    torch.save(content, "x.pt")
    assert_one_line(*outcome(capsys, report.main, ["--checkpoint", "x.pt"]), message)
    assert os.listdir() == ["x.pt"]


@pytest.mark.parametrize("case", RESUMED)
def test_checkpoint_to_resume(case, run_content, finished, small, tmp_path, capsys):
    change, message = RESUMED[case]
    run = shutil.copytree(finished, tmp_path / "run")
    content = copy.deepcopy(run_content["last"])
    content["history"].pop()  # an epoch is left to do
    content["epoch"] -= 1
    change(content)
    torch.save(content, run / "checkpoints" / "last.pt")
    before = contents(tmp_path)
    assert_one_line(*outcome(capsys, train.main, ["--resume", "--out", str(run)]), message)
    assert contents(tmp_path) == before


def changed_json(path, change):
    content = json.loads(path.read_text(encoding="utf-8"))
    other = change(content)
    path.write_text(json.dumps(content if other is None else other), encoding="utf-8")


@pytest.fixture
def a_run(tmp_path, finished, small, monkeypatch):
    """A copy of a finished run, with a stress.json of its best.pt."""
    run = shutil.copytree(finished, tmp_path / "run")
    results = json.loads((ROOT / "results" / "stress.json").read_text(encoding="utf-8"))
    digest = hashlib.sha256((run / "checkpoints" / "best.pt").read_bytes()).hexdigest()
    results["fingerprint"]["checkpoint"] = digest
    (run / "stress.json").write_text(json.dumps(results), encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    return run


def refused(capsys, run, command, message, *options):
    """Run the command in the folder, which must fail in one line and change nothing."""
    before = contents(run.parent)
    where = "--out" if command == "train" else "--run"
    assert_one_line(*outcome(capsys, COMMANDS[command].main, [where, str(run), *options]), message)
    assert contents(run.parent) == before


@pytest.mark.parametrize("case", STRESS)
def test_stress_json(case, a_run, capsys):
    change, message = STRESS[case]
    changed_json(a_run / "stress.json", change)
    for command in ("report", "stress"):
        refused(capsys, a_run, command, r"stress\.json cannot be used: .*" + message)


def test_stress_json_with_a_corruption_that_was_begun_and_given_up(a_run, capsys):
    begun = json.loads((a_run / "stress.json").read_text(encoding="utf-8"))["tests"]["fog/1"]
    changed_json(a_run / "stress.json", put("tests.smear/1", begun))
    assert outcome(capsys, report.main, ["--run", str(a_run)])[0] == 0
    assert (a_run / "plots" / "stress_severity.png").exists()


@pytest.mark.parametrize("case", CONFIG)
def test_config_json(case, a_run, capsys):
    change, message = CONFIG[case]
    changed_json(a_run / "config.json", change)
    refused(capsys, a_run, "train", r"config\.json .*" + message, "--resume")
    refused(capsys, a_run, "train", "holds no run of train.py", *TINY, "--overwrite")
    refused(capsys, a_run, "report", r"config\.json .*" + message)


def test_a_setting_that_only_train_reads(a_run, capsys):
    changed_json(a_run / "config.json", put("settings.seed", "x"))
    refused(capsys, a_run, "train", "--seed: invalid int value: 'x'", "--resume")


@pytest.mark.parametrize("case", RAW)
def test_any_json(case, a_run, capsys):
    content, message = RAW[case]
    (a_run / "stress.json").write_bytes(content)
    refused(capsys, a_run, "report", r"stress\.json .*" + message)
    (a_run / "config.json").write_bytes(content)
    refused(capsys, a_run, "train", r"config\.json .*" + message, "--resume")


@pytest.mark.parametrize("case", HISTORY)
def test_history_csv(case, a_run, capsys):
    change, message = HISTORY[case]
    path = a_run / "logs" / "history.csv"
    path.write_bytes(change(path.read_text(encoding="utf-8")).encode())
    refused(capsys, a_run, "report", r"history\.csv .*" + message)


PREDICTIONS = {
    "no key": ({"y_true": None}, "damaged or of an older"),
    "indices out of range": ({"y_pred": np.full(100, 100)}, "y_pred is not a tensor"),
    "indices below 0": ({"y_pred": np.full(100, -1)}, "y_pred is not a tensor"),
    "indices of floats": ({"y_pred": np.zeros(100)}, "y_pred is not a tensor"),
    "too few": ({"y_pred": np.zeros(9, dtype=np.int64)}, "y_pred is not a tensor"),
    "probabilities of one size": ({"probabilities": np.zeros(100, dtype=np.float32)}, "probabilities is not"),
    "probabilities of NaN": (
        {"probabilities": np.full((100, 100), np.nan, np.float32)},
        "not finite in prob",
    ),
    "probabilities above 1": ({"probabilities": np.full((100, 100), 9, np.float32)}, "are not probabilities"),
    "probabilities of 0": ({"probabilities": np.zeros((100, 100), np.float32)}, "are not probabilities"),
    "a probability below 0": (
        {"probabilities": np.full((100, 100), [-1, 2, *[0] * 98], np.float32)},
        "are not probabilities",
    ),
    "fewer classes": (
        {"probabilities": np.zeros((100, 50), np.float32), "y_pred": np.zeros(100, dtype=np.int64)},
        "y_true is not a tensor|other images or labels",
    ),
    "more classes": ({"probabilities": np.full((100, 200), 1 / 200, np.float32)}, "other images or labels"),
    "objects": ({"y_true": np.array([{}] * 100)}, "damaged or of an older"),
    "text": ({"y_true": np.array(["x"] * 100)}, "damaged or of an older"),
}


@pytest.mark.parametrize("case", PREDICTIONS)
def test_predictions(case, a_run, small, tmp_path, capsys):
    changes, message = PREDICTIONS[case]
    test = small[1]
    content = {"y_true": test.labels.numpy(), "y_pred": test.labels.numpy(), "checkpoint_sha256": "x"}
    content |= {
        "probabilities": np.full((100, 100), 0.01, np.float32),
        "images_sha256": against.digest(test.images),
    }
    other = tmp_path / "other"
    other.mkdir()
    content = {key: value for key, value in (content | changes).items() if value is not None}
    np.savez(other / "predictions.npz", **content)
    refused(capsys, a_run, "report", r"other(/predictions\.npz)? .*" + message, "--against", str(other))


# ---------------------------------------------------------------------------------------------------------
# What is no file, or not the kind of file that it says


def a_pipe(path):
    os.mkfifo(path)


def zeros(path):
    path.symlink_to("/dev/zero")


def a_folder(path):
    path.mkdir()


def compressed(path):
    """A checkpoint of ten megabytes of zeros in a few kilobytes."""
    content = io.BytesIO()
    torch.save({"x": torch.zeros(2_500_000)}, content)
    with zipfile.ZipFile(content) as whole, zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for member in whole.infolist():
            archive.writestr(member.filename, whole.read(member))


def a_bomb(path):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive, archive.open("y_true.npy", "w") as file:
        for _ in range(3):
            file.write(bytes(10**6))


NO_FILE = {"a named pipe": a_pipe, "an endless file": zeros, "a folder": a_folder}
FILES = {"report": ["checkpoints/best.pt", "logs/history.csv", "stress.json", "config.json"]}
FILES |= {"stress": ["stress.json", "checkpoints/best.pt"], "gradcam": ["checkpoints/best.pt"]}
FILES |= {"train": ["config.json", "checkpoints/last.pt"]}


@pytest.mark.parametrize("kind", NO_FILE)
@pytest.mark.parametrize("command, name", [(key, name) for key, names in FILES.items() for name in names])
def test_only_regular_files_are_opened(command, name, kind, a_run, capsys, small):
    (a_run / name).unlink()
    NO_FILE[kind](a_run / name)
    options = {"train": ["--resume"], "gradcam": ["x.png"]}.get(command, [])
    shutil.copy(next((ROOT / "results" / "failures").glob("01_*.png")), "x.png")
    where = "--out" if command == "train" else "--run"
    argv = [*options, where, str(a_run)]
    assert_one_line(
        *outcome(capsys, COMMANDS[command].main, argv), f"{Path(name).name} is not a regular file"
    )


@pytest.mark.parametrize("kind", NO_FILE)
def test_only_regular_files_are_compared_with(kind, a_run, tmp_path, capsys):
    (tmp_path / "other").mkdir()
    NO_FILE[kind](tmp_path / "other" / "predictions.npz")
    argv = ["--run", str(a_run), "--against", str(tmp_path / "other")]
    assert_one_line(*outcome(capsys, report.main, argv), r"predictions\.npz is not a regular file")


def test_a_checkpoint_whose_members_are_compressed(tmp_path, capsys):
    compressed(tmp_path / "x.pt")
    assert (tmp_path / "x.pt").stat().st_size < 20_000
    argv = ["--checkpoint", str(tmp_path / "x.pt")]
    assert_one_line(*outcome(capsys, report.main, argv), "it is compressed, as torch.save never does")


def test_predictions_that_unpack_to_too_much(a_run, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(against, "MAX_UNPACKED", 2_000_000)
    (tmp_path / "other").mkdir()
    a_bomb(tmp_path / "other" / "predictions.npz")
    argv = ["--run", str(a_run), "--against", str(tmp_path / "other")]
    assert_one_line(*outcome(capsys, report.main, argv), r"predictions\.npz is damaged or of an older")


BENCHMARKS = {
    "half_precision.py --run nowhere --output x.pt": "there is no run nowhere",
    "gradcam_layers.py --run nowhere": "there is no run nowhere",
    "throughput.py --steps 0": "expected counts of at least 1",
    "throughput.py --steps many": "invalid int value: 'many'",
}


@pytest.mark.slow
@pytest.mark.parametrize("command", BENCHMARKS)
def test_benchmarks(command, tmp_path):
    name, *options = command.split()
    argv = [sys.executable, str(ROOT / "benchmarks" / name), *options]
    run = subprocess.run(argv, cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert_one_line(run.returncode, run.stderr, BENCHMARKS[command])
    assert os.listdir(tmp_path) == []


# ---------------------------------------------------------------------------------------------------------
# Folders that are not ours


def user_folder(folder):
    """Write files of a user, with names near to ours, into the folder; return {path: content}."""
    names = "checkpoints/notes.txt gradcam/main.py gradcam/01_me.png failures/notes.txt failures/my.csv "
    names += "plots/me.png logs/my.log config.yaml metrics.txt my/own/best.pt .lock .notes.77.tmp"
    files = {folder / name: f"mine: {name}".encode() for name in names.split()}
    for path, content in files.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return files


def untouched(files):
    return all(path.read_bytes() == content for path, content in files.items())


def test_a_folder_of_the_user_is_no_run_because_of_a_folder_called_checkpoints(tmp_path, finished):
    user_folder(tmp_path)
    path = Path(shutil.copy(finished / "checkpoints" / "best.pt", tmp_path / "checkpoints" / "x.pt"))
    assert find_results(None, path)[1] == Path("runs/x")
    (tmp_path / "config.json").write_text('{"settings": {"lr": 0.1}}')
    assert find_results(None, path)[1] == Path("runs/x")
    shutil.copy(finished / "config.json", tmp_path)
    assert find_results(None, path)[1] == tmp_path


@pytest.mark.parametrize("command", ["report", "stress"])
@pytest.mark.parametrize("there", ["a run", "results of another", "results of nobody"])
def test_results_of_another_checkpoint_are_not_written_over(command, there, a_run, tmp_path, capsys):
    folder = tmp_path / "runs" / "best"
    if there == "a run":
        shutil.copytree(a_run, folder)
        (folder / "stress.json").unlink()
    else:
        folder.mkdir(parents=True)
        (folder / "metrics.json").write_text("{}")
        (folder / "predictions.npz").write_bytes(b"old")
    if there == "results of another":
        (folder / ORIGIN).write_text("0" * 64)
    shutil.copy(a_run / "checkpoints" / "best.pt", tmp_path / "best.pt")
    before = contents(tmp_path)
    argv = ["--checkpoint", "best.pt"]
    message = "^error: runs/best holds results of another checkpoint than best.pt: rename one of them"
    assert_one_line(*outcome(capsys, COMMANDS[command].main, argv), message)
    assert contents(tmp_path) == before


def test_results_of_the_same_checkpoint_go_there_again(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "x.pt").write_bytes(b"weights")
    folder = tmp_path / "runs" / "x"
    claim_folder(folder, Path("x.pt"), hashlib.sha256(b"weights").hexdigest())
    assert (folder / ORIGIN).read_text().strip() == hashlib.sha256(b"weights").hexdigest()
    (folder / "metrics.json").write_text("{}")
    shutil.copy("x.pt", "y.pt")
    for path in ("x.pt", "y.pt"):
        claim_folder(folder, Path(path), hashlib.sha256(Path(path).read_bytes()).hexdigest())


OVERWRITE = "holds results without checkpoints/ and logs/ of a training: use another --out"


def test_results_are_not_a_run_to_overwrite(tmp_path, capsys, small):
    run = shutil.copytree(ROOT / "results", tmp_path / "results")
    refused(capsys, run, "train", OVERWRITE, *TINY, "--dataset=shapes", "--overwrite")
    refused(capsys, run, "train", "holds a run already", *TINY, "--dataset=shapes")


def test_notes_in_a_run_survive_its_removal(a_run):
    mine = user_folder(a_run)
    (a_run / "failures" / "01_a_as_b.png").write_text("ours")
    remove_run(a_run)
    assert untouched(mine) and not files_of(a_run, RUN_FILES)


@pytest.mark.parametrize("second", ["report", "stress", "train"])
def test_two_commands_at_once_in_one_run(second, a_run, capsys):
    (a_run / "stress.json").unlink()
    options = [*TINY, "--dataset=shapes", "--overwrite"] if second == "train" else []
    with lock_run(a_run, training=second == "train"):
        refused(
            capsys, a_run, second, "another command is at work in .*run(/plots)?: wait until it", *options
        )


def test_a_run_is_not_overwritten_while_its_report_is_written(a_run, capsys, small):
    with lock_run(a_run):
        options = [*TINY, "--dataset=shapes", "--overwrite"]
        refused(
            capsys, a_run, "train", "another command is at work in .*run(/plots)?: wait until it", *options
        )


def test_a_report_is_made_while_the_training_goes_on(a_run):
    half_written = a_run / "checkpoints" / ".last.pt.77.tmp"
    half_written.touch()
    with lock_run(a_run, training=True):
        half_written.touch()
        with lock_run(a_run):
            assert half_written.exists()


# Refused commands in the repository, as a user types them there; none may leave anything.
TYPED = [
    "train --out results",
    "train --out results --overwrite",
    "train --out results --resume",
    "train --out new/folder --dataset shapes --limit-train 9999999",
    "train --out new/folder --dataset shapes --limit-train 999999",
    "train --out new/folder --dataset shapes --batch-size 99999",
    "train --out new/folder --dataset shapes --data-dir new/data --val-fraction 0.001 --limit-train 5",
    "train --out new/folder --data-dir new/data --data-url ftp://x",
    "train --out new/folder --resume",
    "train --out LICENSE --dataset shapes",
    "train --out LICENSE/x --dataset shapes",
    "train --out tests --dataset shapes --overwrite",
    "train --out . --dataset shapes --overwrite",
    "report --run results",
    "report --run tests",
    "report --run new",
    "report --checkpoint results/config.json",
    "report --checkpoint weights",
    "report --checkpoint new.pt",
    "report --checkpoint weights/resnet18_cifar100.pt --run results",
    "report --checkpoint weights/resnet18_cifar100.pt --data-dir LICENSE",
    "stress --run results",
    "stress --checkpoint new.pt",
    "stress --checkpoint weights/resnet18_cifar100.pt --data-dir LICENSE",
    "stress --checkpoint /dev/zero",
    "stress --checkpoint weights/resnet18_cifar100.pt --cifar-c results",
    "gradcam LICENSE",
    "gradcam results/page_top.png --checkpoint new.pt",
    "gradcam results/page_top.png --output new/x.png",
]


@pytest.fixture(scope="module")
def repository(tmp_path_factory):
    """A copy of the files of the repository."""
    copy = tmp_path_factory.mktemp("copy") / "repository"
    ignored = shutil.ignore_patterns(".git", ".venv*", "runs", "data", "__pycache__", ".*_cache")
    return shutil.copytree(ROOT, copy, ignore=ignored)


def state(folder):
    """{path: (size, time of the last change)} of all files and folders below a folder."""
    return {p: (p.lstat().st_size, p.lstat().st_mtime_ns) for p in folder.rglob("*") if p != folder}


@pytest.mark.parametrize("command", TYPED)
def test_nothing_changes_in_the_repository_after_a_refused_command(
    command, repository, capsys, monkeypatch, request
):
    """More than that `git status` is clean: it says nothing of empty folders and of data/ and runs/."""
    if "shapes" in command:
        request.getfixturevalue("small")
    if "--cifar-c" in command:
        request.getfixturevalue("small")
        monkeypatch.setattr(request.getfixturevalue("small")[1], "name", "cifar100")
        monkeypatch.setattr(request.getfixturevalue("small")[1], "class_names", cifar100.CLASS_NAMES)
    monkeypatch.chdir(repository)
    before = state(repository)
    name, *argv = command.split()
    code, err = outcome(capsys, COMMANDS[name].main, argv)
    assert_one_line(code, err, "^error: ")
    assert state(repository) == before


@pytest.mark.slow
def test_a_run_full_of_the_users_own_files(tmp_path, small, monkeypatch):
    """Train, stress and report, then all of it once more over the first run."""
    monkeypatch.setattr(report, "NUM_FAILURES", 2)
    monkeypatch.setattr(report, "NUM_EXPLAINED", 2)
    monkeypatch.setattr(stress, "CORRUPTION_IMAGES", 10)
    monkeypatch.setattr(stress, "ATTACK_IMAGES", 10)
    monkeypatch.setattr(stress.attacks, "PGD_STEPS", 2)
    run, mine = tmp_path / "run", {}
    options = [*TINY, "--dataset=shapes", "--epochs=1", "--out", str(run)]
    for overwrite in ([], ["--overwrite"]):
        assert train.main([*options, *overwrite]) == 0
        mine |= user_folder(run)
        assert stress.main(["--run", str(run)]) == report.main(["--run", str(run)]) == 0
        assert untouched(mine)
    remove_run(run)
    # Every file of ours was in the list.
    assert {path for path, content in contents(run).items() if content is not None} == mine.keys()


# ---------------------------------------------------------------------------------------------------------
# One line, however long the input


LONG = {
    "train: a device": (train, "--device", "x" * 100_000),
    "train: a choice": (train, "--dataset", "x" * 100_000),
    "train: sizes": (train, "--image-sizes", "9" * 3000),
    "train: a number": (train, "--epochs", "9" * 3000),
    "train: lines": (train, "--out", "a\nb\x1b[31m\r" * 40),
    "train: an address": (train, "--data-url", "ftp://" + "x" * 5000),
    "report: a run": (report, "--run", "x\n" * 2000),
    "report: a checkpoint": (report, "--checkpoint", "x\n" * 2000),
    "report: an unknown option": (report, "--" + "x" * 5000, "1"),
    "stress: a run": (stress, "--run", "x" * 5000),
    "gradcam: a picture": (gradcam, "x\n" * 2000, "--layer=x"),
    "gradcam: an output": (gradcam, "x.png", "--output=" + "y\n" * 2000),
}


@pytest.mark.parametrize("case", LONG)
def test_what_is_printed_of_long_input_is_cut_and_printable(case, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    module, *argv = LONG[case]
    code, err = outcome(capsys, module.main, argv)
    assert_one_line(code, err, "error: ")
    assert len(err) < 320 and err[:-1].isprintable()

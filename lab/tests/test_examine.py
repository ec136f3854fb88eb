"""examine.py: what it writes, against report.py and other libraries; what it refuses, keeps and replaces."""

import csv
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from lab_networks import small_cnn
from PIL import Image

import data
import report
import train
from lab import answers, examine, folder, network, reasons

pytestmark = pytest.mark.usefixtures("quick")
NET = """
import torch
from torch import nn

def make():
    torch.manual_seed(0)
    layers = nn.Conv2d(3, 8, 3, 2), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 3)
    network = nn.Sequential(*layers)
    network[4].weight.data *= 20
    network[4].bias.data = torch.tensor([-0.1, -30.0, 0.0])
    network.class_names = ["cat", "dog", "bird"]
    return network

other = make
"""


def run(*argv):
    return examine.main([str(part) for part in (*argv, "--device", "cpu")])


def content(out):
    """All files below a folder, {name: bytes}."""
    return {path.relative_to(out).as_posix(): path.read_bytes() for path in out.rglob("*") if path.is_file()}


@pytest.fixture
def project(tmp_path, monkeypatch):
    """A folder with net.py and pics/test/CLASS, thirty pictures of each of two classes, to work in."""
    monkeypatch.chdir(tmp_path)
    Path("net.py").write_text(NET)
    generator = np.random.default_rng(0)
    for name in ("bird", "Cat"):
        Path("pics/test", name).mkdir(parents=True)
        for k in range(30):
            pixels = generator.integers(0, 60 + 6 * k, (40, 32, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(f"pics/test/{name}/{k}.png")
    return tmp_path


def in_memory(count=12, num_classes=3):
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (count, 3, 32, 32), dtype=torch.uint8, generator=generator)
    return small_cnn(num_classes), images, torch.arange(count) % num_classes, list("abcdef"[:num_classes])


# ---- A network of one's own --------------------------------------------------------------------------------


def test_network_of_ones_own_on_a_folder(project, capsys):
    assert run("--model", "net.py:make", "--dataset", "pics") == 0
    out = Path("runs/net-make")
    numbers, arrays = folder.read_report(out)
    written, evidence = folder.read_reasons(out)
    model = network.load_model("net.py:make")
    files = sorted(Path("pics/test").rglob("*.png"))
    images = torch.stack([data.read_picture(path, 32) for path in files])
    labels = torch.tensor([0 if path.parent.name == "Cat" else 2 for path in files])
    logits = train.predict(model.model, images, "cpu")
    assert torch.equal(arrays["logits"], logits) and torch.equal(arrays["y_true"], labels)
    assert numbers["accuracy"]["value"] == pytest.approx(
        np.mean(logits.numpy().argmax(axis=1) == labels.numpy())
    )
    assert {key: numbers[key] for key in model.identity} == model.identity
    assert (numbers["model_name"], numbers["size"], len(numbers["classes"])) == ("make", 32, 3)
    assert written["covering"]["images"]["mistakes"] == 3
    index, wrong = evidence["picture_index"], arrays["mistakes"]
    assert torch.equal(evidence["pictures"], images[index]) and torch.isin(wrong, index).all()
    top = logits.softmax(dim=1)[wrong].topk(3)
    assert torch.equal(evidence["answers"][0], top.indices)
    torch.testing.assert_close(evidence["answer_probabilities"][0], top.values)
    expected = "python -m lab.stress --model net.py:make --dataset pics"
    assert (written["data"]["stress"], written["data"]["dataset"]) == (expected, "pics")
    note = "1 classes have no test image"
    assert note in capsys.readouterr().out and note in (out / "report.html").read_text()
    assert any(note in text for text in written["notes"]) and note in numbers["examined"]["note"]


def test_quick_measures_no_covering_and_keeps_what_is_there(no_pages, project):
    options, out = ("--model", "net.py:make", "--dataset", "pics"), Path("runs/net-make")
    assert run(*options, "--quick") == 0
    assert "covering" not in folder.read_reasons(out)[0] and "maps" not in folder.read_reasons(out)[1]
    assert run(*options) == 0
    before, evidence = folder.read_reasons(out)
    assert run(*options, "--quick") == 0
    after, kept = folder.read_reasons(out)
    assert after["covering"] == before["covering"] and torch.equal(kept["maps"], evidence["maps"])


def test_results_of_another_function_need_overwrite_and_an_unrelated_function_does_not(
    no_pages, project, capsys
):
    options = "--dataset", "pics", "--out", "out", "--quick"
    assert run("--model", "net.py:make", *options) == 0
    with open("net.py", "a") as file:
        file.write("\ndef unrelated():\n    pass\n")
    assert run("--model", "net.py:make", *options) == 0
    before = content(Path("out"))
    with pytest.raises(SystemExit):
        run("--model", "net.py:other", *options)
    assert "give another --out FOLDER, or --overwrite\n" in capsys.readouterr().err
    assert content(Path("out")) == before
    assert run("--model", "net.py:other", *options, "--overwrite") == 0
    assert folder.read_report(Path("out"))[0]["model_name"] == "other"


# ---- A run of train.py -------------------------------------------------------------------------------------


def test_run_has_the_numbers_of_report_and_a_report_that_is_there_is_kept(tmp_path, trained, small, capsys):
    first, second = (Path(shutil.copytree(trained, tmp_path / name)) for name in ("a", "b"))
    assert report.main(["--run", str(first), "--device", "cpu"]) == 0
    folder.write_json(second / "metrics.json", {"checkpoint_sha256": "before it was trained further"})
    assert run("--run", second) == 0
    numbers, arrays = folder.read_report(first)
    ours, made = folder.read_report(second)
    for key in numbers.keys() - {"examined"}:
        assert ours[key] == numbers[key], key
    for key, values in arrays.items():
        assert np.array_equal(np.asarray(made[key]), np.asarray(values)), key
    before = content(first)
    assert run("--run", first, "--overwrite") == 0
    assert content(first)["predictions.npz"] == before["predictions.npz"]
    assert content(first)["metrics.json"] == before["metrics.json"]
    assert "explore.html" in (first / "report.html").read_text()
    written = json.loads((second / "reasons.json").read_text())
    assert written["training"]["num_train"] == 12 and written["data"]["dataset"] == "shapes"
    assert capsys.readouterr().out.count("macro F1") == 3  # no numbers are printed twice


def test_run_is_not_given_the_results_of_another_network(project, trained, capsys):
    shutil.copytree(trained, "runs/net-make")
    before = content(Path("runs/net-make"))
    for overwrite in ([], ["--overwrite"]):
        with pytest.raises(SystemExit):
            run("--model", "net.py:make", "--dataset", "pics", *overwrite)
        assert "is the run of another network" in capsys.readouterr().err
    assert content(Path("runs/net-make")) == before


def test_mistakes_of_other_runs(no_pages, tmp_path, small, trained):
    """A run against one that is right where this one has its first two mistakes."""
    first = Path(shutil.copytree(trained, tmp_path / "a"))
    assert run("--run", first, "--quick") == 0
    numbers, arrays = folder.read_report(first)
    logits, truth, mistakes = arrays["logits"].clone(), arrays["y_true"], arrays["mistakes"]
    logits[mistakes[:2], truth[mistakes[:2]]] += 100
    other, made = answers.evaluate(logits, small[1])
    images = {"checkpoint_sha256": "x", "images_sha256": numbers["images_sha256"]}
    report.write_numbers(tmp_path / "b", other | images, made)
    assert run("--run", first, "--quick", "--against", tmp_path / "b") == 0
    written, evidence = folder.read_reasons(first)
    counts = {row["name"]: row["count"] for row in written["kinds"]}
    assert counts == {"same_in_all": len(mistakes) - 2, "wrong_in_all": 0, "right_in_another": 2}
    assert written["runs"] == ["this network", str(tmp_path / "b")]
    assert evidence["answers"].shape == (2, len(mistakes), 3)
    assert evidence["answers"][1, :2, 0].tolist() == truth[mistakes[:2]].tolist()
    assert evidence["kinds"][:3].tolist() == [2, 2, 0]


# ---- Answers -----------------------------------------------------------------------------------------------


def test_answers_of_any_framework(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    generator = np.random.default_rng(0)
    shares = generator.dirichlet(np.ones(3), 40)
    y_true = generator.integers(0, 3, 40)
    np.savez("mine.npz", y_true=y_true, probabilities=shares, features=shares)
    assert run("--predictions", "mine.npz") == 0
    numbers, arrays = folder.read_report(tmp_path / "runs" / "mine")
    # F1 is 2 TP / (2 TP + FP + FN): twice the hits over the answers and the labels of a class.
    hits, answered, labelled = (
        np.bincount(classes, minlength=3)
        for classes in (y_true[y_true == shares.argmax(1)], shares.argmax(1), y_true)
    )
    assert numbers["macro_f1"]["value"] == pytest.approx(np.mean(2 * hits / (answered + labelled)))
    np.testing.assert_allclose(arrays["probabilities"].numpy(), shares)
    text = capsys.readouterr().out
    assert "not [N]: features [40, 3]" in text and "near chance" in text and "runs/mine/explore.html" in text


def test_other_class_names_need_overwrite(no_pages, tmp_path, capsys):
    shares, y_true = np.full((4, 2), 0.5), [0, 1, 1, 0]
    given = {"y_true": y_true, "probabilities": shares}
    examine.examine_answers(given | {"class_names": ["a", "b"]}, out=tmp_path)
    with pytest.raises(ValueError, match="another test set"):
        examine.examine_answers(given | {"class_names": ["b", "a"]}, out=tmp_path)
    examine.examine_answers(given | {"class_names": ["b", "a"]}, out=tmp_path, overwrite=True)
    assert "near chance" in capsys.readouterr().out


def test_inputs_in_the_folder_of_results_are_never_replaced(tmp_path, small, trained, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    np.savez("mine.npz", y_true=[0, 1], probabilities=np.eye(2))
    assert run("--predictions", "mine.npz", "--out", "own") == 0
    Path(shutil.copytree(trained, "run"), "slices.csv").write_text(f"file,site\n{small[1].filenames[0]},a\n")
    before = content(tmp_path)
    answers_there = "--predictions", "own/predictions.npz", "--out", "own"
    for argv in (answers_there, ("--run", "run", "--table", "run/slices.csv")):
        with pytest.raises(SystemExit):
            run(*argv, "--overwrite")
        assert content(tmp_path) == before
        assert "is read, and would be replaced" in capsys.readouterr().err


# ---- Slices ------------------------------------------------------------------------------------------------


def table_of(path):
    with open(path, newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_slices_by_a_table_beside_a_folder(no_pages, project, capsys):
    rows = [f"{name}/{k}.png,{'ab'[k % 2]},p{k // 4}" for name in ("bird", "Cat") for k in range(30)]
    Path("table.csv").write_text("\n".join(["file,site,patient", *rows[:-3]]))
    options = "--model", "net.py:make", "--dataset", "pics", "--quick", "--table", "table.csv"
    assert run(*options, "--group", "patient") == 0
    written, evidence = folder.read_reasons(Path("runs/net-make"))
    facts = {row["slice"]: row for row in written["slices"]}
    assert facts["site is missing"]["n"] == 3 and "patient" not in {row["column"] for row in facts.values()}
    assert facts["site = a"]["n"] + facts["site = b"]["n"] == 57
    assert {row["column"] for row in facts.values()} >= {"brightness", "contrast", "site"}
    assert [row["slice"] for row in table_of("runs/net-make/slices.csv")] == list(facts)
    assert torch.isin(evidence["slice_inside"], evidence["picture_index"]).all()
    assert "weak     " in capsys.readouterr().out
    ungrouped, before = run(*options), written["slices"]
    assert ungrouped == 0 and folder.read_reasons(Path("runs/net-make"))[0]["slices"] != before
    with pytest.raises(SystemExit):
        run(*options, "--group", "hospital")
    assert "no column hospital of groups, only site, patient: --table FILE.csv" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        run(*options[:-2], "--group", "patient")
    text = "no column patient of groups, as there are no columns: --table FILE.csv"
    assert text in capsys.readouterr().err


def test_a_planted_weakness_is_found_by_a_property_of_answers(no_pages, tmp_path, capsys):
    y_true = np.arange(400) % 2
    site = np.where(np.arange(400) % 4 < 2, "old", "new")
    right = np.where(site == "old", np.arange(400) % 100 < 50, True)
    shares = np.eye(2)[np.where(right, y_true, 1 - y_true)]
    given = {"y_true": y_true, "probabilities": shares, "site": site}
    result = examine.examine_answers(given, out=tmp_path / "a")
    worst = result["slices"][0]
    assert (worst["slice"], worst["n"], worst["weak"]) == ("site = old", 200, True)
    assert worst["accuracy"] == pytest.approx(right[site == "old"].mean())
    assert "weak     site = old, at least" in capsys.readouterr().out
    by_day = examine.examine_answers(given | {"day": np.arange(400) // 50}, out=tmp_path / "b", groups="day")
    assert by_day["slices"][0]["low"] < worst["low"]  # fifty pictures that fail together say less
    plain = examine.examine_answers({"y_true": y_true, "probabilities": shares}, out=tmp_path / "c")
    assert plain["slices"] == [] and not (tmp_path / "c" / "slices.csv").exists()


def test_columns_from_python(no_pages, tmp_path):
    model, images, labels, names = in_memory()
    columns = {"site": ["a", "b"] * 6, "age": torch.arange(12)}
    more = {"out": tmp_path, "quick": True, "columns": columns}
    result = examine.examine(model, images, labels, names, **more, groups=[1, 2, 3, 4] * 3)
    assert {row["column"] for row in result["slices"]} >= {"site", "age", "sharpness"}
    for wrong in ({"columns": {"site": ["a"]}}, {"groups": [1, 2]}):
        with pytest.raises(ValueError, match="values, expected 12"):
            examine.examine(model, images, labels, names, **more | wrong)


# ---- From Python -------------------------------------------------------------------------------------------


def test_examine_from_python_leaves_the_callers_network_alone(tmp_path, capsys):
    model, images, labels, names = in_memory()
    model.train().half()
    result = examine.examine(model, images, labels, names, out=tmp_path / "a")
    assert model.training and model[0].weight.dtype == torch.float16
    expected = model.float().eval()(images / 255).argmax(dim=1)
    assert result["accuracy"]["value"] == pytest.approx(np.mean(expected.numpy() == labels.numpy()))
    assert result["covering"]["verdict"] == "too few" and result["checkpoint_sha256"]
    assert "near chance" in capsys.readouterr().out
    with torch.autocast("cpu", torch.bfloat16):
        floats = examine.examine(model, images / 255, labels, names, out=tmp_path / "b", quick=True)
    logits = [folder.read_report(tmp_path / name)[1]["logits"] for name in "ab"]
    assert torch.equal(*logits)
    assert floats["accuracy"] == result["accuracy"] and "float images are rounded" in floats["notes"][0]
    with pytest.raises(ValueError, match="another network"):
        examine.examine(small_cnn(seed=1), images, labels, names, out=tmp_path / "a")
    with pytest.raises(ValueError, match="has the same weights as what is examined"):
        examine.examine(model, images, labels, names, out=tmp_path / "c", against=[tmp_path / "b"])


@pytest.mark.parametrize(
    ("place", "value", "text"),
    [
        (0, "net", "model is str, expected torch.nn.Module"),
        (1, torch.zeros(12, 3, 32, 32) - 1, "not from -1 to -1: the network itself normalises"),
        (1, torch.zeros(12, 32, 32, dtype=torch.uint8), "images must be uint8"),
        (2, torch.zeros(5, dtype=torch.int64), r"labels must be \[12\]"),
        (3, list("ab"), r"labels must be in 0\.\.1"),
        (3, list("abcd"), "3 logits, and images in memory 4 classes"),
    ],
)
def test_arguments_that_do_not_fit(tmp_path, place, value, text):
    arguments = list(in_memory())
    arguments[place] = value
    with pytest.raises(ValueError, match=text) as refused:
        examine.examine(*arguments, out=tmp_path / "out")
    assert "--" not in str(refused.value) and not (tmp_path / "out").exists()


def test_bugs_keep_their_traceback_and_numbers_that_are_not_finite_are_one_line(project, monkeypatch, capsys):
    def bug(*arguments):
        raise ValueError("a bug of ours")

    options = "--model", "net.py:make", "--dataset", "pics"
    with monkeypatch.context() as patch:
        patch.setattr(reasons, "measure", bug)
        with pytest.raises(ValueError, match="a bug of ours"):
            run(*options)
    Path("net.py").write_text(
        NET.replace("nn.Flatten()", "Odd()")
        + """
class Odd(nn.Flatten):
    def forward(self, x):
        return super().forward(x) / (1 if len(x) < 10 else 0)
"""
    )
    with pytest.raises(SystemExit):
        run(*options, "--overwrite", "--batch-size", 20)
    assert capsys.readouterr().err.strip().endswith("it cannot be examined")


@pytest.mark.parametrize(
    ("argv", "text"),
    [
        (["--model", "net.py:make", "--dataset", "nowhere"], "there is no data set or folder nowhere"),
        (
            ["--model", "net.py:make", "--dataset", "pics", "--out", "pics/test/out"],
            "lies in pics, which is read",
        ),
        (["--model", "net.py:make", "--dataset", "shapes"], "has a class 'red circle', which is none of"),
        (["--predictions", "net.py"], "net.py cannot be read"),
        (["--predictions", "a.npz", "--dataset", "shapes"], "--dataset is of a network"),
        (["--model", "net.py:make", "--dataset", "pics", "--against", "pics"], "there is no report in pics"),
    ],
)
def test_commands_that_are_refused_in_one_line(project, small, capsys, argv, text):
    before = content(project)
    with pytest.raises(SystemExit) as ended:
        run(*argv)
    (line,) = [line for line in capsys.readouterr().err.splitlines() if "error: " in line]
    assert ended.value.code == 2 and text in line and content(project) == before

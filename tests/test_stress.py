import dataclasses
import json
import shutil
import zlib
from pathlib import Path

import pytest
import torch
from networks import Linear, natural_images, seeded
from PIL import Image
from torch import nn

import data
import stress
import train
from data import Normalize
from resnet_cifar import resnet18
from running.files import UserError
from stress_tests import attacks, corruptions
from stress_tests.corruptions import CORRUPTIONS, FIFTEEN
from train import load_model, predict

IMAGES = natural_images(24)
NAMES = list(CORRUPTIONS)


def test_stratified_sample(monkeypatch):
    labels = torch.arange(10).repeat(20)[torch.randperm(200, generator=seeded())]
    index = stress.stratified_sample(labels, 50)
    assert torch.equal(labels[index].bincount(), torch.full((10,), 5))
    assert (index.diff() > 0).all()
    assert set(stress.stratified_sample(labels, 20).tolist()) <= set(index.tolist())
    assert torch.equal(stress.stratified_sample(labels, 200), torch.arange(200))
    uneven = torch.tensor([0] * 9 + [1])
    assert torch.equal(stress.stratified_sample(uneven, 10), torch.arange(10))
    some = stress.stratified_sample(uneven, 6)  # three of the first class, one of the second
    assert some.tolist()[-1] == 9
    assert len(some) == 4
    monkeypatch.setattr(stress, "SEED", 1)
    assert not torch.equal(stress.stratified_sample(labels, 50), index)  # chosen at random, by the seed


SHAPES = data.make_shapes(per_class=2, seed=1)
FEW = SHAPES.labels < 10  # two images of each of the first ten classes
TEST = dataclasses.replace(SHAPES, images=SHAPES.images[FEW], labels=SHAPES.labels[FEW])


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """An untrained narrow network for the shapes set, as train.py would leave it."""
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("stress") / "runs" / "narrow" / "checkpoints" / "best.pt"
    path.parent.mkdir(parents=True)
    class_names = TEST.class_names
    network = resnet18(len(class_names), 16)
    with torch.no_grad():
        network.fc.bias[0] += 1  # most images are taken for the first class, so that some are right
    content = {"model": network.state_dict(), "epoch": 1, "class_names": class_names}
    torch.save(content | {"config": {"dataset": "shapes", "width": 16}}, path)
    return path


@pytest.fixture
def quick(monkeypatch):
    monkeypatch.setattr(train, "load", lambda name, root: (None, TEST))  # a small part of the shapes set
    monkeypatch.setattr(stress, "CORRUPTION_IMAGES", 10)
    monkeypatch.setattr(stress, "ATTACK_IMAGES", 10)
    monkeypatch.setattr(attacks, "PGD_STEPS", 2)
    monkeypatch.setattr(attacks, "PGD_RESTARTS", 1)


def test_the_command_goes_on_where_it_stopped(checkpoint, quick, monkeypatch, capsys, tmp_path):
    run = checkpoint.parent.parent
    monkeypatch.setattr(stress.plots, "stress_figures", lambda results, examples: {})
    measured = []
    measure, measure_attack = stress.measure, stress.measure_attack

    def interrupted(logits, labels):
        if len(measured) == 7:
            raise KeyboardInterrupt
        measured.append("corruption")
        return measure(logits, labels)

    monkeypatch.setattr(stress, "measure", interrupted)
    with pytest.raises(KeyboardInterrupt):
        stress.main(["--run", str(run)])
    assert len(json.loads((run / "stress.json").read_text())["tests"]) == 7

    def counted(*arguments):
        measured.append("attack")
        return measure_attack(*arguments)

    monkeypatch.setattr(stress, "measure", lambda *a: measured.append("corruption") or measure(*a))
    monkeypatch.setattr(stress, "measure_attack", counted)
    assert stress.main(["--run", str(run)]) == 0
    assert measured.count("corruption") == 1 + 23 * 5
    assert measured.count("attack") == 1 + 3 * len(attacks.RADII) + 1
    assert stress.main(["--run", str(run)]) == 0  # nothing is left to do
    assert len(measured) == 1 + 23 * 5 + 2 + 3 * len(attacks.RADII)

    results = json.loads((run / "stress.json").read_text())
    assert set(results["summary"]["mean_accuracy"]) == {"fifteen", "extra", "geometry", "all"}
    values = [results["tests"][f"{name}/{s}"]["accuracy"]["value"] for name in FIFTEEN for s in range(1, 6)]
    assert results["summary"]["mean_accuracy"]["fifteen"]["value"] == pytest.approx(sum(values) / 75)
    record = results["tests"]["fog/3"]
    assert sum(record["correct_per_class"]) == pytest.approx(10 * record["accuracy"]["value"])
    assert record["accuracy"]["low"] <= record["accuracy"]["value"] <= record["accuracy"]["high"]
    assert len(results["checks"]) == 5
    out = capsys.readouterr().out
    assert "mean of the fifteen" in out and "PGD of 1/255" in out and f"report.py --run {run}" in out
    assert "passed" in out and "note " not in out

    # After a change of an attack or a corruption, and with another checkpoint, nothing is kept.
    def change_of_source():
        monkeypatch.setattr(
            stress, "SOURCES", edited_copy(tmp_path, "attacks.py", "2.5 * epsilon", "2 * epsilon")
        )

    def change_of_checkpoint():
        content = torch.load(checkpoint, weights_only=True)
        content["model"]["fc.bias"] += 1e-3
        torch.save(content, checkpoint)

    monkeypatch.setattr(stress, "measure", interrupted)
    for change in (change_of_source, change_of_checkpoint):
        change()
        measured.clear()
        with pytest.raises(KeyboardInterrupt):
            stress.main(["--run", str(run)])
        assert len(measured) == 7
        kept = json.loads((run / "stress.json").read_text())
        assert len(kept["tests"]) == 7 and kept["fingerprint"] != results["fingerprint"]
        assert capsys.readouterr().out.count("note ") == 1
    assert {path.name for path in run.iterdir()} == {"checkpoints", "stress.json"}


@pytest.mark.slow
def test_the_command_draws_what_it_found(checkpoint, quick, tmp_path):
    shutil.copytree(checkpoint.parent, tmp_path / "run" / "checkpoints")
    assert stress.main(["--run", str(tmp_path / "run")]) == 0
    for name in ("severity", "radius", "examples"):
        picture = Image.open(tmp_path / "run" / "plots" / f"stress_{name}.png")
        assert min(picture.size) > 400


def edited_copy(folder, name, old, new):
    """Copy the sources of the tests with one change and return the copy's folder."""
    copy = folder / f"edited-{len(list(folder.iterdir()))}"
    shutil.copytree(stress.SOURCES, copy)
    text = (copy / name).read_text(encoding="utf-8")
    assert text.count(old) >= 1
    (copy / name).write_text(text.replace(old, new), encoding="utf-8")
    return copy


def test_an_edited_source_or_setting_changes_the_fingerprint(tmp_path, monkeypatch, capsys):
    path = tmp_path / "best.pt"
    path.write_bytes(b"weights")
    attacked = torch.arange(5)

    def fingerprint(precision="fp32", labels=TEST.labels):
        return stress.fingerprint_of(path, TEST.images, labels, attacked, precision)

    def changed(other):
        return {key for key in before if other[key] != before[key]}

    before, sources = fingerprint(), stress.SOURCES
    assert sources == Path(corruptions.__file__).parent and fingerprint() == before
    assert changed(fingerprint("bf16")) == {"settings"}
    assert changed(fingerprint(labels=TEST.labels.flip(0))) == {"sample"}
    for name, old, new in (
        ("corruptions.py", "photons=(500", "photons=(400"),
        ("corruptions.py", "1.5 * grey + 0.5", "1.5 * grey + 0.4"),
        ("jpeg.py", "5000 // quality", "4000 // quality"),
        ("attacks.py", "PGD_STEPS = 10", "PGD_STEPS = 20"),
    ):
        monkeypatch.setattr(stress, "SOURCES", edited_copy(tmp_path, name, old, new))
        assert changed(fingerprint()) == {"source"}
        monkeypatch.setattr(stress, "SOURCES", sources)
    path.write_bytes(b"others")
    assert changed(fingerprint()) == {"checkpoint"}


def test_kept_results_are_those_of_the_same_fingerprint(tmp_path, capsys):
    file, fingerprint, tests = tmp_path / "stress.json", {"source": "a"}, {"fog/1": {"ece": 0.1}}
    assert stress.kept_tests(file, fingerprint) == {} and capsys.readouterr().out == ""
    file.write_text(json.dumps({"fingerprint": fingerprint, "tests": tests}))
    assert stress.kept_tests(file, fingerprint) == tests and capsys.readouterr().out == ""
    for content in ({"fingerprint": {"source": "b"}, "tests": tests}, {"tests": tests}, [], "damaged"):
        file.write_text(content if content == "damaged" else json.dumps(content))
        assert stress.kept_tests(file, fingerprint) == {}
        out = capsys.readouterr().out
        assert out.startswith("note ") and out.count("\n") == 1 and str(file) in out


def test_a_recorded_accuracy_is_that_of_the_corrupted_images(checkpoint, quick):
    path, device = checkpoint, torch.device("cpu")
    model, _ = load_model(path, device)
    index = stress.stratified_sample(TEST.labels, 100)
    images, labels = TEST.images[index], TEST.labels[index]
    corrupted = corruptions.corrupt(images, "fog", 4)
    generator = seeded(zlib.crc32(b"fog"))
    one_by_one = [CORRUPTIONS["fog"](image[None] / 255, 4, generator) for image in images]
    assert (corrupted.float() - (torch.cat(one_by_one) * 255).round()).abs().max() <= 1
    logits = predict(model, corrupted, device)
    record = stress.measure(logits, labels)
    right = logits.argmax(dim=1) == labels
    assert record["accuracy"]["value"] == pytest.approx(right.float().mean().item())
    assert record["correct_per_class"] == [int(right[labels == c].sum()) for c in range(100)]
    assert record["mean_confidence"] == pytest.approx(logits.softmax(1).max(1).values.mean().item(), abs=1e-6)


def test_the_accuracy_under_attack_counts_images_that_were_wrong_before():
    model, images = nn.Sequential(Normalize(), Linear(4)), (IMAGES * 255).round().byte()
    labels = model(images / 255).argmax(dim=1)
    labels[::3] = (labels[::3] + 1) % 4  # a third is wrong without any attack
    assert stress.measure_attack(model, images, labels, "none", 0)["accuracy"]["value"] == 16 / 24
    right = []
    for image, label in zip(images / 255, labels, strict=True):
        attacked = attacks.fgsm(model, image[None], label[None], 0.5 / 255)
        before, after = (model(x).argmax() == label for x in (image[None], attacked))
        right.append(bool(before and after))
    assert 0 < sum(right) < 16
    record = stress.measure_attack(model, images, labels, "fgsm", 0.5)
    assert record["accuracy"]["value"] == sum(right) / 24
    assert stress.measure_attack(model, images, (labels + 1) % 4, "pgd", 64)["accuracy"]["value"] == 0


def test_more_steps_are_twice_the_steps():
    network = Linear(4)
    model, images = nn.Sequential(Normalize(), network), (IMAGES[:5] * 255).round().byte()
    labels, passes = model(images / 255).argmax(dim=1), []
    handle = network.register_forward_hook(lambda module, inputs, output: passes.append(len(output)))
    for name, steps in (("pgd", 10), ("pgd_more_steps", 20)):
        passes.clear()
        # So small a radius fools no image, so all restarts are made; one pass before and one after it.
        assert stress.measure_attack(model, images, labels, name, 1e-6)["accuracy"]["value"] == 1
        assert passes == (2 + 2 * (steps + 1)) * [5]
    handle.remove()


def test_summary_by_hand():
    record = {
        "accuracy": {"value": 0.5},
        "mean_confidence": 0.6,
        "ece": 0.1,
        "correct_per_class": [2, 0, 1, 0],
    }
    tests = {f"{name}/{severity}": dict(record) for name in NAMES for severity in range(1, 6)}
    tests["fog/5"] = {
        "accuracy": {"value": 0.0},
        "mean_confidence": 1.0,
        "ece": 0.9,
        "correct_per_class": [0] * 4,
    }
    tests["clean/0"] = {"correct_per_class": [2, 0, 2, 0]}
    summary = stress.summarise(tests, [2, 2, 2, 0], ["a", "b", "c", "d"])
    assert summary["mean_accuracy"]["fifteen"]["value"] == pytest.approx(0.5 * 74 / 75)
    assert summary["mean_accuracy"]["extra"]["value"] == 0.5
    assert summary["mean_ece"]["all"] == pytest.approx((0.1 * 114 + 0.9) / 115)
    assert summary["confidence_by_severity"] == pytest.approx([0.6] * 4 + [(0.6 * 22 + 1) / 23])
    rows = summary["classes_that_break_first"]
    assert [row["class"] for row in rows] == ["c", "a", "b"]  # d has no image
    assert rows[0]["drop"] == pytest.approx(1 - 0.5 * 114 / 115)
    # Results that lack a corruption or a family are summarised without it.
    older = {key: value for key, value in tests.items() if key.split("/")[0] not in ("fog", "scale")}
    older["scale/1"] = tests["scale/1"]  # not at every severity
    summary = stress.summarise(older, [2, 2, 2, 0], ["a", "b", "c", "d"])
    assert {group: mean["value"] for group, mean in summary["mean_accuracy"].items()} == pytest.approx(
        {"fifteen": 0.5, "extra": 0.5, "geometry": 0.5, "all": 0.5}
    )
    assert summary["confidence_by_severity"] == pytest.approx([0.6] * 5)
    assert summary["classes_that_break_first"][0]["drop"] == 0.5
    older = {key: value for key, value in older.items() if key.split("/")[0] not in corruptions.GEOMETRY}
    summary = stress.summarise(older, [2, 2, 2, 0], ["a", "b", "c", "d"])
    assert set(summary["mean_accuracy"]) == {"fifteen", "extra", "all"}


def test_the_console_shows_the_summary_and_the_failed_checks(capsys):
    accuracy = {"value": 0.5, "low": 0.4, "high": 0.6}
    tests = {key: {"accuracy": accuracy} for key in ("clean/0", "random/1", "fgsm/1")}
    tests["pgd/1"] = {"accuracy": {"value": 0.25, "low": 0.125, "high": 0.375}}
    checks = [
        {"name": "good", "passed": True, "detail": ""},
        {"name": "bad", "passed": False, "detail": "why"},
    ]
    summary = {"mean_accuracy": {"fifteen": accuracy, "all": accuracy}}
    stress.print_summary({"tests": tests, "summary": summary, "checks": checks})
    out = capsys.readouterr().out
    assert out.count("50.0 %   95 % interval 40.0 to 60.0 %") == 5
    assert "PGD of 1/255" in out and "25.0 %   95 % interval 12.5 to 37.5 %" in out
    assert "1 of 2 passed" in out and "FAILED   bad: why" in out and "good" not in out


def test_bad_input_of_the_command_is_one_line(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="no run"):
        stress.main(["--run", "runs/nothing"])
    with pytest.raises(UserError, match="no checkpoint"):
        stress.main(["--checkpoint", "nothing.pt"])


def test_a_checkpoint_without_a_run_gets_a_folder_of_its_own(checkpoint, quick, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(stress, "predict", lambda *a: None)
    written = []
    monkeypatch.setattr(stress, "write_json", lambda path, content: written.append(path))
    monkeypatch.setattr(
        stress, "measure", lambda *a: written.append("measured") or {"accuracy": {"value": 0.0}}
    )
    monkeypatch.setattr(stress, "measure_attack", lambda *a: (_ for _ in ()).throw(KeyboardInterrupt))
    alone = shutil.copy(checkpoint, tmp_path / "alone.pt")
    for given, folder in ((alone, Path("runs/alone")), (checkpoint, checkpoint.parent.parent)):
        written.clear()
        with pytest.raises(KeyboardInterrupt):
            stress.main(["--checkpoint", str(given)])
        assert set(written) == {"measured", folder / "stress.json"}

import dataclasses
import importlib
import json
import shutil
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from networks import Linear, natural_images, seeded
from PIL import Image
from processes import write_config
from torch import nn

import data
import stress
import train
from data import Normalize, to_input
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
    torch.save(content | {"config": {"dataset": "shapes", "width": 16, "image_size": 32}}, path)
    write_config(path.parent.parent)
    return path


@pytest.fixture
def quick(monkeypatch):
    monkeypatch.setattr(train, "load", lambda name, root: (None, TEST))  # a small part of the shapes set
    monkeypatch.setattr(stress, "CORRUPTION_IMAGES", 10)
    monkeypatch.setattr(stress, "ATTACK_IMAGES", 10)
    for name, attack in list(attacks.ATTACKS.items()):
        fewer = attack.settings and attack.settings | {"steps": 2, "restarts": 1}
        monkeypatch.setitem(attacks.ATTACKS, name, attack._replace(settings=fewer))


@pytest.mark.slow
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
    number_of_attacks = 1 + 3 * len(attacks.EPSILONS) + 1 + 2 * 3
    assert measured.count("attack") == number_of_attacks
    assert stress.main(["--run", str(run)]) == 0  # nothing is left to do
    assert len(measured) == 1 + 23 * 5 + number_of_attacks

    results = json.loads((run / "stress.json").read_text())
    assert set(results["summary"]["mean_accuracy"]) == {"fifteen", "all"}
    values = [results["tests"][f"{name}/{s}"]["accuracy"]["value"] for name in FIFTEEN for s in range(1, 6)]
    assert results["summary"]["mean_accuracy"]["fifteen"]["value"] == pytest.approx(sum(values) / 75)
    record = results["tests"]["fog/3"]
    assert sum(record["correct_per_class"]) == pytest.approx(10 * record["accuracy"]["value"])
    assert record["accuracy"]["low"] <= record["accuracy"]["value"] <= record["accuracy"]["high"]
    assert len(results["checks"]) == 5
    # At each radius the worst case counts the images that every attack of this radius leaves right.
    for radius in attacks.EPSILONS:
        right = [
            results["tests"][f"{name}/{radius:g}"]["right"]
            for name in attacks.ATTACKS
            if f"{name}/{radius:g}" in results["tests"]
        ]
        assert len(right) == 3 + (radius == 1) + 2 * (radius in (0.5, 1, 2))
        worst = sum(set(digits) == {"1"} for digits in zip(*right, strict=True))
        assert results["robust_accuracy"][f"{radius:g}"]["value"] == worst / 10
    out = capsys.readouterr().out
    assert "mean of the fifteen" in out and "PGD of 1/255" in out and f"report.py --run {run}" in out
    assert "passed" in out and "note " not in out

    # After a change of one row of constants, that corruption is measured anew, and nothing else.
    measured.clear()
    fog = CORRUPTIONS["fog"]
    changed = fog._replace(constants=fog.constants | {"strength": (0.3, 0.5, 0.75, 1, 1.5)})
    monkeypatch.setitem(CORRUPTIONS, "fog", changed)
    assert stress.main(["--run", str(run)]) == 0
    assert measured == ["corruption"] * 5 and "note " not in capsys.readouterr().out
    again = json.loads((run / "stress.json").read_text())["tests"]
    other = {key for key in again if again[key]["code"] != results["tests"][key]["code"]}
    assert other == {f"fog/{severity}" for severity in range(1, 6)}

    # With another checkpoint nothing is kept.
    content = torch.load(checkpoint, weights_only=True)
    content["model"]["fc.bias"] += 1e-3
    torch.save(content, checkpoint)
    monkeypatch.setattr(stress, "measure", interrupted)
    measured.clear()
    with pytest.raises(KeyboardInterrupt):
        stress.main(["--run", str(run)])
    assert len(measured) == 7
    kept = json.loads((run / "stress.json").read_text())
    assert len(kept["tests"]) == 7 and kept["fingerprint"] != results["fingerprint"]
    assert capsys.readouterr().out.count("note ") == 1
    assert {path.name for path in run.iterdir()} == {"checkpoints", "config.json", "stress.json"}


@pytest.mark.slow
def test_the_command_draws_what_it_found(checkpoint, quick, tmp_path):
    shutil.copytree(checkpoint.parent.parent, tmp_path / "run")
    assert stress.main(["--run", str(tmp_path / "run")]) == 0
    for name in ("severity", "radius", "examples"):
        picture = Image.open(tmp_path / "run" / "plots" / f"stress_{name}.png")
        assert min(picture.size) > 400


def codes(package):
    """The digests of all tests by name, from the sources of a package like stress_tests."""
    parts = [importlib.import_module(f"{package}.{name}") for name in ("attacks", "corruptions")]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(stress, "attacks", parts[0])
        for name in ("CORRUPTIONS", "Corruption", "corrupt"):
            patch.setattr(stress, name, getattr(parts[1], name))
        names = ["clean", *parts[1].CORRUPTIONS, *parts[0].ATTACKS]
        return {name: stress.code_of_test(name, [1, 2]) for name in names}


PGD, APGD = {"pgd", "pgd_more_steps"}, {"apgd_ce", "apgd_dlr"}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("file", "old", "new", "changed"),
    [
        ("corruptions.py", "photons=(500", "photons=(400", {"shot_noise"}),
        ("corruptions.py", "1.5 * grey + 0.5", "1.5 * grey + 0.4", {"snow"}),
        (
            "corruptions.py",
            '"digital", "fifteen", "nearest", side',
            '"digital", "fifteen", "down", side',
            {"pixelate"},
        ),
        ("corruptions.py", "amplitude /= decay**2", "amplitude /= decay", {"fog"}),  # in plasma
        ("corruptions.py", "(0.508, 0.802", "(0.509, 0.802", {"frost"}),  # in ICE
        ("corruptions.py", "math.ceil(side / factor)", "round(side / factor)", {"zoom_blur", "snow"}),
        ("corruptions.py", "+ 1e-4).floor()", "+ 1e-3).floor()", "all corruptions"),
        ("corruptions.py", "quality=(80", "quality=(81", {"jpeg_compression"}),
        ("water.py", "FARTHEST = 20.0", "FARTHEST = 21.0", {"spatter"}),
        ("water.py", "low=50, high=150", "low=50, high=140", {"spatter"}),
        ("attacks.py", "2.5 * epsilon", "2 * epsilon", PGD),
        ("attacks.py", "APGD_STEPS = 20", "APGD_STEPS = 30", APGD),
        ("attacks.py", "PGD_STEPS = 10\n", "PGD_STEPS = 12\n", PGD),
        ("attacks.py", "+ 1e-12)", "+ 1e-9)", APGD),
        ("attacks.py", "clamp(min=0).to(device)", "to(device)", PGD | APGD | {"fgsm", "random"}),
        ("attacks.py", "Attacks: small changes", "Attacks: little changes", set()),  # the module's docstring
    ],
)
def test_a_change_of_code_concerns_only_the_tests_that_run_it(tmp_path, monkeypatch, file, old, new, changed):
    folder = Path(corruptions.__file__).parent
    package = f"edited_{tmp_path.name}"
    shutil.copytree(folder, tmp_path / package)
    text = (tmp_path / package / file).read_text(encoding="utf-8")
    assert old in text
    (tmp_path / package / file).write_text(text.replace(old, new), encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    before, after = codes("stress_tests"), codes(package)
    expected = set(NAMES) if changed == "all corruptions" else changed
    assert {name for name in before if before[name] != after[name]} == expected


def test_another_setting_or_sample_changes_the_fingerprint():
    def fingerprint(precision="fp32", labels=TEST.labels, checkpoint="1234"):
        return stress.fingerprint_of(checkpoint, TEST.images, labels, torch.arange(5), precision)

    def changed(other):
        return {key for key in before if other[key] != before[key]}

    before = fingerprint()
    assert fingerprint() == before
    assert changed(fingerprint("bf16")) == {"settings"}
    assert changed(fingerprint(labels=TEST.labels.flip(0))) == {"sample"}
    assert changed(fingerprint(checkpoint="5678")) == {"checkpoint"}


def test_kept_results_are_those_of_the_same_fingerprint(tmp_path, capsys):
    results = json.loads((Path(stress.__file__).parent / "results" / "stress.json").read_text("utf-8"))
    fingerprint, other = results["fingerprint"], results["fingerprint"] | {"sample": "other"}
    assert stress.kept_tests(tmp_path, fingerprint) == {} and capsys.readouterr().out == ""
    (tmp_path / "stress.json").write_text(json.dumps(results))
    assert stress.kept_tests(tmp_path, fingerprint) == results["tests"] and capsys.readouterr().out == ""
    assert stress.kept_tests(tmp_path, other) == {}
    out = capsys.readouterr().out
    assert out.startswith("note ") and out.count("\n") == 1 and str(tmp_path / "stress.json") in out


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
    unattacked = stress.measure_attack(model, images, labels, "none", 0, list(range(24)))
    assert unattacked["accuracy"]["value"] == 16 / 24 and unattacked["right"] == 8 * "011"
    chosen = stress.to_attack({"none/0": unattacked}, "fgsm", 0.5, 24)
    assert chosen == [i for i in range(24) if i % 3]
    right = []
    for image, label in zip(images / 255, labels, strict=True):
        attacked = attacks.fgsm(model, image[None], label[None], 0.5 / 255)
        before, after = (model(x).argmax() == label for x in (image[None], attacked))
        right.append(bool(before and after))
    assert 0 < sum(right) < 16
    record = stress.measure_attack(model, images, labels, "fgsm", 0.5, chosen)
    assert record["accuracy"]["value"] == sum(right) / 24
    assert record["right"] == "".join(str(int(one)) for one in right)
    nothing = stress.measure_attack(model, images, labels, "apgd_ce", 1, [])
    assert nothing["accuracy"]["value"] == 0 and nothing["right"] == 24 * "0"


def test_apgd_attacks_what_all_others_leave_right():
    tests = {
        "none/0": {"right": "111110"},
        "fgsm/1": {"right": "011110"},
        "pgd/1": {"right": "101110"},
        "fgsm/2": {"right": "000000"},  # another radius
        "pgd_more_steps/1": {"right": "110110"},
        "apgd_ce/1": {"right": "000010"},
        "apgd_dlr/1": {"right": "000000"},
        "clean/0": {"accuracy": {}},
    }
    assert stress.to_attack(tests, "none", 0, 6) == [0, 1, 2, 3, 4, 5]
    assert stress.to_attack(tests, "pgd", 1, 6) == [0, 1, 2, 3, 4]
    assert stress.to_attack(tests, "apgd_ce", 1, 6) == [3, 4]
    assert stress.to_attack(tests, "apgd_dlr", 1, 6) == [4]
    assert stress.to_attack(tests, "apgd_ce", 0.5, 6) == [0, 1, 2, 3, 4]
    worst = stress.robust_accuracy(tests, 6)
    assert {radius: row["value"] for radius, row in worst.items()} == {
        **{f"{radius:g}": 5 / 6 for radius in attacks.EPSILONS},
        "1": 0,
        "2": 0,
    }
    # Which images are attacked belongs to the code of a test: if others stand, it runs again.
    assert stress.code_of_test("apgd_ce", [3, 4]) != stress.code_of_test("apgd_ce", [3])


def test_more_steps_are_twice_the_steps():
    network = Linear(4)
    model, images = nn.Sequential(Normalize(), network), (IMAGES[:5] * 255).round().byte()
    labels, passes = model(images / 255).argmax(dim=1), []
    handle = network.register_forward_hook(lambda module, inputs, output: passes.append(len(output)))
    for name, steps in (("pgd", 10), ("pgd_more_steps", 20)):
        passes.clear()
        # So small a radius fools no image, so all restarts are made; one pass is after it.
        assert stress.measure_attack(model, images, labels, name, 1e-6, [0, 2, 4])["accuracy"]["value"] == 0.6
        assert passes == (1 + 2 * (steps + 1)) * [3]
    handle.remove()


def test_each_test_has_its_severity_and_its_images(monkeypatch, tmp_path):
    network, images = Linear(10), (IMAGES * 255).round().byte()
    labels, attacked = network(to_input(images)).argmax(dim=1), torch.tensor([1, 3, 4, 9, 13, 21])
    labels[::2] = (labels[::2] + 1) % 10
    plan = [("contrast", 2), ("contrast", 5), ("none", 0), ("fgsm", 0.25)]
    monkeypatch.setattr(stress, "planned_tests", lambda: plan)
    results = {"tests": {}, "precision": {"corruptions": "fp32"}, "image_size": 32}
    stress.run_tests(results, tmp_path / "stress.json", network, images, labels, attacked)
    for severity in (2, 5):
        probabilities = network(to_input(corruptions.corrupt(images, "contrast", severity))).softmax(dim=1)
        found = results["tests"][f"contrast/{severity}"]["mean_confidence"]
        assert found == pytest.approx(probabilities.amax(dim=1).mean().item(), abs=1e-6)
    model, x, y = nn.Sequential(Normalize(), network), images[attacked] / 255, labels[attacked]
    for key, shown in {"none/0": x, "fgsm/0.25": attacks.fgsm(model, x, y, 0.25 / 255)}.items():
        right = (model(x).argmax(dim=1) == y) & (model(shown).argmax(dim=1) == y)
        assert results["tests"][key]["right"] == "".join(str(int(one)) for one in right), key
    assert results["tests"]["fgsm/0.25"]["right"] != results["tests"]["none/0"]["right"]


def test_summary_by_hand():
    record = {
        "accuracy": {"value": 0.5},
        "mean_confidence": 0.6,
        "correct_per_class": [2, 0, 1, 0],
        "images": 6,
    }
    tests = {f"{name}/{severity}": dict(record) for name in NAMES for severity in range(1, 6)}
    tests["fog/5"] = {
        "accuracy": {"value": 0.0},
        "mean_confidence": 1.0,
        "correct_per_class": [0] * 4,
        "images": 6,
    }
    tests["clean/0"] = {"correct_per_class": [2, 0, 2, 0]}
    summary = stress.summarise(tests, [2, 2, 2, 0], ["a", "b", "c", "d"])
    assert summary["mean_accuracy"]["fifteen"]["value"] == pytest.approx(0.5 * 74 / 75)
    assert summary["mean_confidence"]["all"] == pytest.approx((0.6 * 114 + 1) / 115)
    rows = summary["classes_that_break_first"]
    assert [row["class"] for row in rows] == ["c", "a", "b"]  # d has no image
    assert rows[0]["drop"] == pytest.approx(1 - 0.5 * 114 / 115)
    # The published files are a group of their own as soon as all fifteen are measured.
    assert "published" not in summary["mean_accuracy"]
    published = {
        f"published {name}/{severity}": record | {"accuracy": {"value": 0.25}, "images": 8}
        for name in FIFTEEN
        for severity in range(1, 6)
    }
    with_published = stress.summarise(tests | published, [2, 2, 2, 0], ["a", "b", "c", "d"])
    assert with_published["mean_accuracy"].pop("published") == stress.share(2, 8)
    assert with_published["mean_accuracy"] == summary["mean_accuracy"]
    assert with_published["classes_that_break_first"] == rows
    del published["published fog/2"]
    without = stress.summarise(tests | published, [2, 2, 2, 0], ["a", "b", "c", "d"])
    assert "published" not in without["mean_accuracy"]


def test_the_console_shows_the_summary_and_the_failed_checks(capsys):
    accuracy = {"value": 0.5, "low": 0.4, "high": 0.6}
    tests = {key: {"accuracy": accuracy} for key in ("clean/0", "random/1", "fgsm/1")}
    tests["pgd/1"] = {"accuracy": {"value": 0.25, "low": 0.125, "high": 0.375}}
    checks = [
        {"name": "good", "passed": True, "detail": ""},
        {"name": "bad", "passed": False, "detail": "why"},
    ]
    summary = {"mean_accuracy": {"fifteen": accuracy, "all": accuracy}}
    robust = {"0.5": accuracy, "1": tests["pgd/1"]["accuracy"], "2": accuracy}
    results = {"tests": tests, "summary": summary, "checks": checks, "robust_accuracy": robust}
    stress.print_summary(results)
    out = capsys.readouterr().out
    assert out.count("50.0 %   95 % interval 40.0 to 60.0 %") == 7
    assert (
        "all attacks of 1/255" in out and out.count("25.0 %   95 % interval") == 2 and "published" not in out
    )
    for severity in range(1, 6):
        tests[f"fog/{severity}"] = {"accuracy": {"value": 0.9 - severity / 10}}
        tests[f"published fog/{severity}"] = {"accuracy": {"value": 0.8 - severity / 10}}
    summary["mean_accuracy"]["published"] = accuracy
    stress.print_summary(results)
    out = capsys.readouterr().out
    lines = [line for line in out.splitlines() if "fog" in line]
    assert [line.split()[0] for line in lines] == ["published", "fog"] and "as published" in out
    assert lines[0].endswith(" 50.0 %   at severity 1 to 5  70.0  60.0  50.0  40.0  30.0 %")
    assert lines[1].endswith(" 60.0 %   at severity 1 to 5  80.0  70.0  60.0  50.0  40.0 %")
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


# ---- CIFAR-100-C as published ----------------------------------------------------------------------------

PUBLISHED = ("fog", "frost", "spatter")


@pytest.fixture
def cifar_c(tmp_path, monkeypatch):
    """Small files in the layout of CIFAR-100-C: 20 images at five severities, in another order than TEST."""
    monkeypatch.setattr(stress, "PUBLISHED_IMAGES", 20)
    cifar100 = dataclasses.replace(TEST, name="cifar100")
    monkeypatch.setattr(train, "load", lambda name, root: (None, cifar100))
    folder = tmp_path / "CIFAR-100-C"
    folder.mkdir()
    order = torch.randperm(20, generator=seeded(3))
    for name in PUBLISHED:
        severities = [corruptions.corrupt(TEST.images[order], name, severity) for severity in range(1, 6)]
        np.save(folder / f"{name}.npy", torch.cat(severities).permute(0, 2, 3, 1).contiguous().numpy())
    np.save(folder / "labels.npy", TEST.labels[order].repeat(5).numpy().astype(np.uint8))
    return folder


def test_the_published_files_are_measured_and_kept(checkpoint, quick, cifar_c, monkeypatch, capsys, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(checkpoint.parent.parent, run)
    monkeypatch.setattr(stress.plots, "stress_figures", lambda results, examples: {})

    def run_tests(results, *rest):
        digits = {"right": "0" * results["attack_images"]}
        results["tests"] |= {key: row | digits if "right" in row else row for key, row in own.items()}

    monkeypatch.setattr(stress, "run_tests", run_tests)
    model, _ = load_model(run / "checkpoints" / "best.pt", torch.device("cpu"))
    labels = torch.from_numpy(np.load(cifar_c / "labels.npy")).long()
    own = {"clean/0": stress.measure(predict(model, TEST.images, torch.device("cpu")), TEST.labels)}
    for name in NAMES:
        own |= {f"{name}/{severity}": own["clean/0"] for severity in range(1, 6)}
    for name in (
        "none/0",
        "pgd_more_steps/1",
        *(f"{a}/{r:g}" for a in attacks.AT_ALL_EPSILONS for r in attacks.EPSILONS),
    ):
        own[name] = {"accuracy": stress.share(0, 10), "right": 10 * "0"}
    measured, measure = [], stress.measure
    monkeypatch.setattr(stress, "measure", lambda *a: measured.append(1) or measure(*a))

    command = ["--run", str(run), "--cifar-c", str(cifar_c)]
    assert stress.main([*command, "--full"]) == 0
    assert len(measured) == 3 * 5
    results = json.loads((run / "stress.json").read_text())
    tests, precision = results["tests"], results["precision"]["corruptions"]
    for name in PUBLISHED:
        pictures = np.load(cifar_c / f"{name}.npy")
        for severity in range(1, 6):
            part = slice(20 * (severity - 1), 20 * severity)
            images = torch.from_numpy(pictures[part]).permute(0, 3, 1, 2).contiguous()
            expected = measure(predict(model, images, torch.device("cpu"), precision), labels[part])
            found = tests[f"published {name}/{severity}"]
            assert found["images"] == 20
            assert found["correct_per_class"] == expected["correct_per_class"]
    assert "published fog" in capsys.readouterr().out
    assert stress.main([*command, "--full"]) == 0 and len(measured) == 3 * 5  # all kept
    pictures = np.load(cifar_c / "frost.npy")
    pictures[20:40] = 0
    np.save(cifar_c / "frost.npy", pictures)
    assert stress.main([*command, "--full"]) == 0 and len(measured) == 3 * 5 + 1  # one severity has changed
    # Without the option they stay among the results.
    assert stress.main(["--run", str(run), "--full"]) == 0 and len(measured) == 3 * 5 + 1
    assert "published fog" in capsys.readouterr().out

    # The sample has as many images of each class, by labels.npy.
    measured.clear()
    assert stress.main(command) == 0 and len(measured) == 3 * 5
    tests = json.loads((run / "stress.json").read_text())["tests"]
    index = stress.stratified_sample(labels[:20], 10)
    assert torch.equal(labels[index].bincount(), torch.ones(10, dtype=torch.int64))
    images = torch.from_numpy(np.load(cifar_c / "fog.npy")[80:][index.numpy()]).permute(0, 3, 1, 2)
    expected = measure(predict(model, images.contiguous(), torch.device("cpu"), precision), labels[index])
    assert tests["published fog/5"]["correct_per_class"] == expected["correct_per_class"]
    assert tests["published fog/5"]["images"] == 10


def test_files_of_another_kind_are_refused(cifar_c, tmp_path):
    labels, arrays = stress.open_cifar_c(cifar_c, TEST.labels)
    assert sorted(arrays) == [f"published {name}" for name in PUBLISHED] and len(labels) == 20
    assert all(isinstance(array, np.memmap) for array in arrays.values())  # not read into memory

    def refused(match, name, content):
        kept = (cifar_c / name).read_bytes()
        if isinstance(content, bytes):
            (cifar_c / name).write_bytes(content)
        else:
            np.save(cifar_c / name, content)
        with pytest.raises(UserError, match=match):
            stress.open_cifar_c(cifar_c, TEST.labels)
        (cifar_c / name).write_bytes(kept)

    fog, five = np.load(cifar_c / "fog.npy"), np.load(cifar_c / "labels.npy")
    refused("fog.npy holds uint8", "fog.npy", fog[:99])
    refused("fog.npy holds uint8", "fog.npy", fog.transpose(0, 3, 1, 2))
    refused("fog.npy holds float32", "fog.npy", fog.astype(np.float32))
    refused("fog.npy cannot be read", "fog.npy", b"damaged")
    refused("fog.npy cannot be read", "fog.npy", b"")
    refused("labels.npy holds", "labels.npy", np.full(len(five), "fox"))
    refused("labels.npy holds", "labels.npy", five[:20])
    refused("repeat", "labels.npy", np.concatenate([np.roll(five[:20], 1), five[20:]]))
    refused("repeat", "labels.npy", five % 5)  # other classes, as those of CIFAR-10-C
    with pytest.raises(UserError, match="does not hold CIFAR-100-C"):
        stress.open_cifar_c(tmp_path / "nothing", TEST.labels)
    (cifar_c / "labels.npy").unlink()
    with pytest.raises(UserError, match="does not hold CIFAR-100-C"):
        stress.open_cifar_c(cifar_c, TEST.labels)


def test_the_published_files_need_cifar100(checkpoint, quick, tmp_path):
    with pytest.raises(UserError, match="--cifar-c needs"):
        stress.main(["--run", str(checkpoint.parent.parent), "--cifar-c", str(tmp_path)])

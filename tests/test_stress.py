"""stress.py: its records against a loop over the images, and what it keeps of an interrupted command."""

import dataclasses
import json
import shutil
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
from metrics import expected_calibration_error, proportion
from resnet_cifar import resnet18
from running.files import UserError
from stress_tests import attacks, corruptions
from stress_tests.corruptions import CORRUPTIONS, FIFTEEN
from train import load_model, predict

CPU = torch.device("cpu")
IMAGES = natural_images(24)
NAMES = list(CORRUPTIONS)
SHAPES = data.make_shapes(per_class=2, seed=1)
FEW = SHAPES.labels < 10  # two images of each of the first ten classes
TEST = dataclasses.replace(SHAPES, images=SHAPES.images[FEW], labels=SHAPES.labels[FEW])


def digits(text):
    """A record whose answers are these, 1 where the answer is correct."""
    return {"accuracy": proportion(text.count("1"), len(text)), "correct": text}


def test_a_record_by_hand():
    logits = torch.tensor([[2.0, 0.0], [0.0, 2.0], [0.0, 1.0]])
    record = stress.measure(logits, torch.tensor([0, 1, 0]))
    confidence = [1 / (1 + np.exp(-2)), 1 / (1 + np.exp(-2)), 1 / (1 + np.exp(-1))]
    assert record["correct"] == "110" and record["accuracy"]["value"] == 2 / 3
    assert record["mean_confidence"] == pytest.approx(sum(confidence) / 3)
    assert stress.correct_of(record).tolist() == [True, True, False]
    # Two answers are 12 points too modest and one is 73 points too sure; a temperature of 2 makes all modest.
    nll = -(2 * np.log(confidence[0]) + np.log(1 - confidence[2])) / 3
    calibration = stress.calibration_of([record])["as_trained"]
    assert calibration["nll"] == pytest.approx(nll, abs=1e-6)
    assert calibration["ece"] == pytest.approx((2 * (1 - confidence[0]) + confidence[2]) / 3, abs=1e-6)


def test_the_calibration_of_several_tests_is_that_of_all_their_answers():
    parts = [2 * torch.randn(40, 5, generator=seeded(seed)) for seed in range(3)]
    labels = [torch.randint(5, (40,), generator=seeded(seed)) for seed in range(3)]
    records = [stress.measure(logits, y, 1.7) for logits, y in zip(parts, labels, strict=True)]
    found = stress.calibration_of(records)
    for name, divisor in {"as_trained": 1, "with_temperature": 1.7}.items():
        logits, y_true = torch.cat(parts) / divisor, torch.cat(labels)
        error = expected_calibration_error(y_true, logits.softmax(dim=1))
        assert found[name]["ece"] == pytest.approx(error, abs=1e-6)
        errors = [
            expected_calibration_error(y, (some / divisor).softmax(dim=1))
            for some, y in zip(parts, labels, strict=True)
        ]
        assert found[name]["mean_ece"] == pytest.approx(sum(errors) / len(errors), abs=1e-6)
        nll = nn.functional.cross_entropy(logits, y_true).item()
        assert found[name]["nll"] == pytest.approx(nll, abs=1e-6)
    assert found["as_trained"]["ece"] != found["with_temperature"]["ece"]


def test_the_interval_of_a_mean_by_resampling():
    scores = torch.rand(400, generator=seeded(), dtype=torch.float64)
    draws = torch.randint(400, (2000, 400), generator=seeded(1))
    low, high = scores[draws].mean(dim=1).quantile(torch.tensor([0.025, 0.975], dtype=torch.float64)).tolist()
    interval = stress.mean_interval(scores)
    assert interval["value"] == pytest.approx(scores.mean().item())
    assert interval["low"] == pytest.approx(low, abs=3e-3)
    assert interval["high"] == pytest.approx(high, abs=3e-3)


def test_stratified_sample(monkeypatch):
    labels = torch.arange(10).repeat(20)[torch.randperm(200, generator=seeded())]
    index = stress.stratified_sample(labels, 50)
    assert torch.equal(labels[index].bincount(), torch.full((10,), 5))
    assert (index.diff() > 0).all()
    assert set(stress.stratified_sample(labels, 20).tolist()) <= set(index.tolist())
    assert torch.equal(stress.stratified_sample(labels, 200), torch.arange(200))
    some = stress.stratified_sample(torch.tensor([0] * 9 + [1]), 6)  # five of one class, one of the other
    assert some.tolist()[-1] == 9 and len(some) == 6
    monkeypatch.setattr(stress, "SEED", 1)
    assert not torch.equal(stress.stratified_sample(labels, 50), index)  # chosen at random, by the seed


# ---- The command -----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """An untrained narrow network for the shapes set, as train.py would leave it."""
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("stress") / "runs" / "narrow" / "checkpoints" / "best.pt"
    path.parent.mkdir(parents=True)
    network = resnet18(len(TEST.class_names), 16)
    with torch.no_grad():
        network.fc.bias[0] += 1  # most images are taken for the first class, so that some are right
    content = {"model": network.state_dict(), "epoch": 1, "class_names": TEST.class_names}
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
def test_the_command_goes_on_where_it_stopped(checkpoint, quick, monkeypatch, capsys):
    run = checkpoint.parent.parent
    monkeypatch.setattr(stress.plots, "stress_figures", lambda results, examples: {})
    monkeypatch.setattr(stress, "run_sensitivity", lambda *arguments: None)
    done, measure, measure_attack = [], stress.measure, stress.measure_attack

    def interrupted(*arguments):
        if len(done) == 7:
            raise KeyboardInterrupt
        done.append("corruption")
        return measure(*arguments)

    monkeypatch.setattr(stress, "measure", interrupted)
    with pytest.raises(KeyboardInterrupt):
        stress.main(["--run", str(run)])
    assert len(json.loads((run / "stress.json").read_text())["tests"]) == 7

    monkeypatch.setattr(stress, "measure", lambda *a: done.append("corruption") or measure(*a))
    monkeypatch.setattr(stress, "measure_attack", lambda *a: done.append("attack") or measure_attack(*a))
    counts = {"corruption": 1 + 23 * 5, "attack": 3 * len(attacks.EPSILONS) + 1 + 2 * 3}
    for _ in range(2):  # the second time nothing is left to do
        assert stress.main(["--run", str(run)]) == 0
        assert {kind: done.count(kind) for kind in counts} == counts
    out = capsys.readouterr().out
    assert "mean of the fifteen" in out and "PGD of 1/255" in out and f"report.py --run {run}" in out
    assert "passed" in out and "note " not in out

    results = json.loads((run / "stress.json").read_text())
    tests = results["tests"]
    values = [tests[f"{name}/{s}"]["accuracy"]["value"] for name in FIFTEEN for s in range(1, 6)]
    assert set(results["summary"]["mean_accuracy"]) == {"fifteen", "all"} and len(results["checks"]) == 5
    assert results["summary"]["mean_accuracy"]["fifteen"]["value"] == pytest.approx(sum(values) / 75)
    # At each epsilon the worst case counts the images that every attack of this epsilon leaves right.
    for epsilon in attacks.EPSILONS:
        keys = [f"{name}/{epsilon:g}" for name in attacks.ATTACKS]
        found = [tests[key]["correct"] for key in keys if key in tests]
        assert len(found) == 3 + (epsilon == 1) + 2 * (epsilon in (0.5, 1, 2))
        worst = sum(set(column) == {"1"} for column in zip(*found, strict=True))
        assert results["robust_accuracy"][f"{epsilon:g}"]["value"] == worst / 10

    # --overwrite measures all anew, and of another checkpoint nothing is kept.
    done.clear()
    assert stress.main(["--run", str(run), "--overwrite"]) == 0 and len(done) == sum(counts.values())
    content = torch.load(checkpoint, weights_only=True)
    content["model"]["fc.bias"] += 1e-3
    torch.save(content, checkpoint)
    monkeypatch.setattr(stress, "measure", interrupted)
    done.clear()
    with pytest.raises(KeyboardInterrupt):
        stress.main(["--run", str(run)])
    assert len(json.loads((run / "stress.json").read_text())["tests"]) == 7
    assert capsys.readouterr().out.count("note ") == 1
    assert {path.name for path in run.iterdir()} == {"checkpoints", "config.json", "stress.json"}


@pytest.mark.slow
def test_the_command_draws_what_it_found(checkpoint, quick, tmp_path):
    shutil.copytree(checkpoint.parent.parent, tmp_path / "run")
    assert stress.main(["--run", str(tmp_path / "run")]) == 0
    for name in ("severity", "epsilon", "examples"):
        picture = Image.open(tmp_path / "run" / "plots" / f"stress_{name}.png")
        assert min(picture.size) > 400


def test_kept_results_are_those_of_the_same_checkpoint_and_images(tmp_path, capsys):
    file, header = tmp_path / "stress.json", dict.fromkeys(stress.SAME, 2)
    assert stress.kept_results(file, header) == {}
    file.write_text(json.dumps(header | {"tests": {"fgsm/1": digits("10")}}))
    assert stress.kept_results(file, header) == {"tests": {"fgsm/1": digits("10")}}
    assert capsys.readouterr().out == ""
    for key in stress.SAME:
        assert stress.kept_results(file, header | {key: 3}) == {}
        assert capsys.readouterr().out.startswith("note ")
    # The hour that --full took is not lost by a call without it.
    with pytest.raises(UserError, match="results of more images, which --full keeps"):
        stress.kept_results(file, header | {"corruption_images": 1})
    assert stress.kept_results(file, header | {"corruption_images": 1, "checkpoint_sha256": 3}) == {}
    assert capsys.readouterr().out.startswith("note ")
    too_many, no_confidence = {"fgsm/1": digits("100")}, {"clean/0": digits("10")}
    for content in ("", "[]", "{}", *(json.dumps(header | {"tests": t}) for t in (too_many, no_confidence))):
        file.write_text(content)
        with pytest.raises(UserError, match=r"stress\.json cannot be used"):
            stress.kept_results(file, header)


def test_bad_input_of_the_command_is_one_line(checkpoint, quick, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for command, message in {
        "--run runs/nothing": "no run",
        "--checkpoint nothing.pt": "no checkpoint",
        f"--run {checkpoint.parent.parent} --cifar-c .": "--cifar-c needs",
    }.items():
        with pytest.raises(UserError, match=message):
            stress.main(command.split())


def test_a_checkpoint_without_a_run_gets_a_folder_of_its_own(checkpoint, quick, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(stress, "predict", lambda *a, **b: None)
    monkeypatch.setattr(stress, "measure", lambda *a: (_ for _ in ()).throw(KeyboardInterrupt))
    written = []
    monkeypatch.setattr(stress, "kept_results", lambda file, results: written.append(file) or {})
    alone = shutil.copy(checkpoint, tmp_path / "alone.pt")
    for given, folder in ((alone, Path("runs/alone")), (checkpoint, checkpoint.parent.parent)):
        with pytest.raises(KeyboardInterrupt):
            stress.main(["--checkpoint", str(given)])
        assert written.pop() == folder / "stress.json"


# ---- The records -----------------------------------------------------------------------------------------


def test_the_accuracy_under_attack_counts_images_that_were_wrong_before():
    model, images = nn.Sequential(Normalize(), Linear(4)), (IMAGES * 255).round().byte()
    labels = model(images / 255).argmax(dim=1)
    labels[::3] = (labels[::3] + 1) % 4  # a third is wrong without any attack
    attacked = model(images / 255).argmax(dim=1) == labels
    right = []
    for image, label in zip(images / 255, labels, strict=True):
        moved = attacks.fgsm(model, image[None], label[None], 0.5 / 255)
        before, after = (model(x).argmax() == label for x in (image[None], moved))
        right.append(bool(before and after))
    assert 0 < sum(right) < 16
    record = stress.measure_attack(model, images, labels, "fgsm", 0.5, attacked)
    assert record["correct"] == "".join(str(int(one)) for one in right)
    nothing = stress.measure_attack(model, images, labels, "apgd_ce", 1, torch.zeros(24, dtype=torch.bool))
    assert nothing["accuracy"]["value"] == 0 and nothing["correct"] == 24 * "0"


def test_apgd_attacks_what_all_others_leave_right():
    tests = {
        "unattacked/0": digits("111110"),
        "fgsm/1": digits("011110"),
        "pgd/1": digits("101110"),
        "fgsm/2": digits("000000"),  # another epsilon
        "pgd_more_steps/1": digits("110110"),
        "apgd_ce/1": digits("000010"),
        "apgd_dlr/1": digits("000000"),
    }

    def attacked(name, epsilon):
        left = stress.still_correct(tests, attacks.ATTACKS[name].survivors_of, epsilon)
        return left.nonzero().flatten().tolist()

    assert attacked("pgd", 1) == [0, 1, 2, 3, 4]
    assert attacked("apgd_ce", 1) == [3, 4] and attacked("apgd_dlr", 1) == [4]
    assert attacked("apgd_ce", 0.5) == [0, 1, 2, 3, 4]
    worst = {epsilon: row["value"] for epsilon, row in stress.robust_accuracy(tests).items()}
    assert worst == {f"{epsilon:g}": 5 / 6 for epsilon in attacks.EPSILONS} | {"1": 0, "2": 0}


def test_more_steps_are_a_hundred_on_the_survivors():
    network = Linear(4)
    model, images = nn.Sequential(Normalize(), network), (IMAGES[:5] * 255).round().byte()
    labels, passes = model(images / 255).argmax(dim=1), []
    handle = network.register_forward_hook(lambda module, inputs, output: passes.append(len(output)))
    attacked = torch.tensor([True, False, True, False, True])
    for name, steps, restarts in (("pgd", 10, 2), ("pgd_more_steps", 100, 1)):
        passes.clear()
        # So small an epsilon fools no image, so all restarts are made; one pass is after it.
        assert stress.measure_attack(model, images, labels, name, 1e-6, attacked)["accuracy"]["value"] == 0.6
        assert passes == (1 + restarts * (steps + 1)) * [3]
    assert attacks.ATTACKS["pgd_more_steps"].survivors_of == ("pgd",)
    handle.remove()


def test_each_test_has_its_level_and_its_images(monkeypatch, tmp_path):
    network, images = Linear(10), (IMAGES * 255).round().byte()
    labels, chosen = network(to_input(images)).argmax(dim=1), torch.tensor([1, 3, 4, 9, 13, 21])
    labels[::2] = (labels[::2] + 1) % 10
    plan = [("clean", 0), ("contrast", 2), ("contrast", 5), ("unattacked", 0), ("fgsm", 0.25)]
    monkeypatch.setattr(stress, "planned_tests", lambda: plan)
    results = {"tests": {}, "image_size": 32}
    stress.run_tests(results, tmp_path / "stress.json", network, images, labels, chosen, None)
    for severity in (2, 5):
        probabilities = network(to_input(corruptions.corrupt(images, "contrast", severity))).softmax(dim=1)
        found = results["tests"][f"contrast/{severity}"]["mean_confidence"]
        assert found == pytest.approx(probabilities.amax(dim=1).mean().item(), abs=1e-6)
    model, x, y = nn.Sequential(Normalize(), network), images[chosen] / 255, labels[chosen]
    for key, shown in {"unattacked/0": x, "fgsm/0.25": attacks.fgsm(model, x, y, 0.25 / 255)}.items():
        right = (model(x).argmax(dim=1) == y) & (model(shown).argmax(dim=1) == y)
        assert results["tests"][key]["correct"] == "".join(str(int(one)) for one in right), key
    assert results["tests"]["fgsm/0.25"]["correct"] != results["tests"]["unattacked/0"]["correct"]


def test_summary_by_hand():
    def record(text, confidence):
        gaps = {"nll": 1.0, "gaps": [text.count("1") - confidence * len(text)]}
        return digits(text) | {"mean_confidence": confidence, "calibration": {"as_trained": gaps}}

    tests = {f"{name}/{severity}": record(20 * "110010", 0.6) for name in NAMES for severity in range(1, 6)}
    tests["fog/5"] = record(20 * "000000", 1.0)
    tests["clean/0"] = record(20 * "110011", 0.5)
    labels, names = torch.tensor(20 * [0, 0, 1, 1, 2, 2]), ["a", "b", "c", "d"]
    summary = stress.summarise(tests, labels, names)
    scores = torch.tensor(20 * [1.0, 1, 0, 0, 1, 0], dtype=torch.float64) * 74 / 75
    assert summary["mean_accuracy"]["fifteen"] == pytest.approx(stress.mean_interval(scores))
    assert summary["drop"]["fifteen"]["value"] == pytest.approx(4 / 6 - 0.5 * 74 / 75)
    assert summary["mean_confidence"]["all"] == pytest.approx((0.6 * 114 + 1) / 115)
    at_severity_5 = {"accuracy": 0.5 * 22 / 23, "mean_confidence": (0.6 * 22 + 1) / 23}
    assert {key: summary["by_severity"][5][key] for key in at_severity_5} == pytest.approx(at_severity_5)
    assert summary["by_severity"][5]["as_trained"]["ece"] == pytest.approx((0.1 * 22 + 1) / 23)
    assert summary["by_severity"][0]["accuracy"] == pytest.approx(4 / 6)
    rows = summary["classes_that_break_first"]
    assert [row["class"] for row in rows] == ["c", "a", "b"]  # d has no image
    assert rows[0]["drop"] == pytest.approx(1 - 0.5 * 114 / 115)
    # Few images of a class tell nothing about it.
    few = {key: record(row["correct"][:6], row["mean_confidence"]) for key, row in tests.items()}
    assert stress.summarise(few, labels[:6], names)["classes_that_break_first"] == []
    # The published files are a group of their own as soon as all fifteen are measured.
    published = record("11000000", 0.6)
    tests |= {f"published {name}/{severity}": published for name in FIFTEEN for severity in range(1, 6)}
    with_published = stress.summarise(tests, labels, names)
    assert with_published["mean_accuracy"].pop("published")["value"] == 0.25
    assert with_published["mean_accuracy"] == summary["mean_accuracy"]
    del tests["published fog/2"]
    assert stress.summarise(tests, labels, names) == summary


def test_consistency_and_waves_are_those_of_the_answers(tmp_path):
    network, images = Linear(6), (IMAGES * 255).round().byte()
    y_pred = network(to_input(images)).argmax(dim=1)
    labels, correct = y_pred.clone(), torch.arange(24) % 3 > 0
    labels[~correct] = (labels[~correct] + 1) % 6
    results = {"image_size": 32, "tests": {"clean/0": stress.answers(correct)}}
    stress.run_sensitivity(results, tmp_path / "stress.json", network, images, labels, torch.arange(0, 24, 6))
    flipped = network(to_input(images.flip(-1))).argmax(dim=1) != y_pred
    for kind, group in {"right": correct, "wrong": ~correct}.items():
        expected = proportion(int(flipped[group].sum()), int(group.sum()))
        assert results["consistency"]["mirror"][kind] == expected
    assert results["fourier"]["images"] == 4 and len(results["fourier"]["error"]) == 16
    assert json.loads((tmp_path / "stress.json").read_text()) == results


def test_the_console_shows_the_summary_and_the_failed_checks(capsys):
    tests = {key: digits("10") for key in ("clean/0", "random/1", "fgsm/1")} | {"pgd/1": digits("1000")}
    accuracy = tests["clean/0"]["accuracy"]
    checks = [{"name": "good", "passed": True}, {"name": "bad", "passed": False, "detail": "why"}]
    summary = {"mean_accuracy": {"fifteen": accuracy, "all": accuracy}}
    robust = {"0.5": accuracy, "1": tests["pgd/1"]["accuracy"], "2": accuracy}
    results = {"tests": tests, "summary": summary, "checks": checks, "robust_accuracy": robust}
    stress.print_summary(results)
    out = capsys.readouterr().out
    low, high = (f"{100 * accuracy[end]:.1f}" for end in ("low", "high"))
    assert out.count(f"50.0 %   95 % interval {low} to {high} %") == 7 and "published" not in out
    assert "all attacks of 1/255" in out and out.count("25.0 %   95 % interval") == 2
    assert "1 of 2 passed" in out and "FAILED   bad: why" in out and "good" not in out


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


def test_the_published_files_are_measured_and_kept(checkpoint, quick, cifar_c, monkeypatch, tmp_path):
    shutil.copytree(checkpoint.parent.parent, tmp_path / "run")
    command = ["--run", str(tmp_path / "run"), "--cifar-c", str(cifar_c)]
    monkeypatch.setattr(stress, "run_tests", lambda *a: (_ for _ in ()).throw(KeyboardInterrupt))
    measured, measure = [], stress.measure
    monkeypatch.setattr(stress, "measure", lambda *a: measured.append(1) or measure(*a))
    for _ in range(2):  # the second time all are kept
        with pytest.raises(KeyboardInterrupt):
            stress.main([*command, "--full"])
        assert len(measured) == 3 * 5
    model, _ = load_model(tmp_path / "run" / "checkpoints" / "best.pt", CPU)
    labels = torch.from_numpy(np.load(cifar_c / "labels.npy")).long()
    tests = json.loads((tmp_path / "run" / "stress.json").read_text())["tests"]
    for name in PUBLISHED:
        pictures = np.load(cifar_c / f"{name}.npy")
        for severity in range(1, 6):
            part = slice(20 * (severity - 1), 20 * severity)
            images = torch.from_numpy(pictures[part]).permute(0, 3, 1, 2).contiguous()
            expected = measure(predict(model, images, CPU), labels[part])
            assert tests[f"published {name}/{severity}"] == expected
    # A sample has as many images of each class, by labels.npy.
    with pytest.raises(UserError, match="which --full keeps"):
        stress.main(command)
    with pytest.raises(KeyboardInterrupt):
        stress.main([*command, "--overwrite"])
    index = stress.stratified_sample(labels[:20], 10)
    assert torch.equal(labels[index].bincount(), torch.ones(10, dtype=torch.int64))
    images = torch.from_numpy(np.load(cifar_c / "fog.npy")[80:][index.numpy()]).permute(0, 3, 1, 2)
    tests = json.loads((tmp_path / "run" / "stress.json").read_text())["tests"]
    assert tests["published fog/5"] == measure(predict(model, images.contiguous(), CPU), labels[index])


def test_files_of_another_kind_are_refused(cifar_c, tmp_path):
    labels, arrays = stress.open_cifar_c(cifar_c, TEST.labels)
    assert sorted(arrays) == [f"published {name}" for name in PUBLISHED] and len(labels) == 20
    assert all(isinstance(array, np.memmap) for array in arrays.values())  # not read into memory

    def refused(match, name, content):
        kept = (cifar_c / name).read_bytes()
        np.save(cifar_c / name, content)
        with pytest.raises(UserError, match=match):
            stress.open_cifar_c(cifar_c, TEST.labels)
        (cifar_c / name).write_bytes(kept)

    fog, five = np.load(cifar_c / "fog.npy"), np.load(cifar_c / "labels.npy")
    refused("fog.npy cannot be used.*holds uint8", "fog.npy", fog.transpose(0, 3, 1, 2))
    refused("fog.npy cannot be used.*holds float32", "fog.npy", fog.astype(np.float32))
    refused("labels.npy cannot be used", "labels.npy", np.full(len(five), "fox"))
    refused("repeat", "labels.npy", np.concatenate([np.roll(five[:20], 1), five[20:]]))
    refused("repeat", "labels.npy", five % 5)  # other classes, as those of CIFAR-10-C
    (cifar_c / "fog.npy").write_bytes(b"")
    with pytest.raises(UserError, match=r"fog\.npy cannot be used"):
        stress.open_cifar_c(cifar_c, TEST.labels)
    (cifar_c / "labels.npy").unlink()
    with pytest.raises(UserError, match="does not hold CIFAR-100-C"):
        stress.open_cifar_c(cifar_c, TEST.labels)

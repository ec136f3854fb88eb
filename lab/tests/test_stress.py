"""stress.py: its records against loops over the images, and what it keeps when it is stopped."""

import json
import os
import statistics

import numpy as np
import pytest
import torch
from lab_networks import Linear, Wavy, natural_images
from networks import seeded

import data
from lab import attacks, corruptions, estimate, folder, stress
from lab.answers import mean_interval
from lab.network import from_module, logits_of
from metrics import expected_calibration_error, fit_temperature, proportion

IMAGES = (natural_images(40, seed=3) * 255).round().byte()
CHANGES = ["clean/0", *(f"{name}/{s}" for name in ("fog", "contrast") for s in range(1, 6))]


class Frozen(Linear):
    """Its body works under no_grad, so that no gradient reaches the images."""

    def forward(self, x):
        with torch.no_grad():
            return super().forward(x)


class FrozenBody(Linear):
    """As of a feature extractor, behind which a trained layer follows."""

    def forward(self, x):
        with torch.no_grad():
            body = x.flatten(1).cos()
        return self.fc(body)


class Constant(Linear):
    def forward(self, x):
        return 0 * super().forward(x) + self.fc.bias


def answers_to(model, images):
    return model(images / 255).argmax(dim=1)


def partly_wrong(y_pred, num_classes=10):
    """The answers as labels, but each third label is another class in turn, so that no class is missing."""
    places = torch.arange(len(y_pred))
    return torch.where(places % 3 == 0, places // 3 % num_classes, y_pred)


LABELS = partly_wrong(answers_to(Linear(10), IMAGES))
PERSON = LABELS.bincount().argsort()[-2].item()  # there are several right ones
NAMES = ["old man" if c == PERSON else f"class {c}" for c in range(10)]


@pytest.fixture(autouse=True)
def few_tests(monkeypatch):
    """Two corruptions, two epsilons and short attacks on ten of twenty images."""
    two = {name: corruptions.CORRUPTIONS[name] for name in ("fog", "contrast")}
    monkeypatch.setattr(stress, "CORRUPTIONS", two)
    monkeypatch.setattr(stress, "FIFTEEN", ("fog", "contrast"))
    monkeypatch.setattr(attacks, "EPSILONS", (1, 64))
    for name, attack in attacks.ATTACKS.items():
        settings = {key: 2 if key == "steps" else value for key, value in attack.settings.items()}
        epsilons = tuple(e for e in attack.epsilons if e in (1, 64))
        monkeypatch.setitem(attacks.ATTACKS, name, attack._replace(settings=settings, epsilons=epsilons))
    monkeypatch.setattr(stress, "FEWEST_ATTACKED", 10)
    monkeypatch.setattr(os, "fsync", lambda file: None)


def measure_all(out, model=None, labels=LABELS, **more):
    more = {"num_images": 20} | more
    return stress.stress(model or Linear(10), IMAGES, labels, NAMES, out=out, **more)


def interrupt(monkeypatch, name, at=(), module=stress):
    """Press Ctrl-C before those calls of a function that are in `at`; return the list of calls."""
    calls, function = [], getattr(module, name)

    def interrupted(*arguments):
        calls.append(arguments)
        if len(calls) in at:
            raise KeyboardInterrupt
        return function(*arguments)

    monkeypatch.setattr(module, name, interrupted)
    return calls


def contents(out):
    return {path.name: path.read_bytes() for path in out.iterdir()}


# ---- Numbers -----------------------------------------------------------------------------------------------


def test_stratified_sample():
    labels = torch.arange(10).repeat(20)[torch.randperm(200, generator=seeded())]
    index = stress.stratified_sample(labels, 50)
    assert torch.equal(labels[index].bincount(), torch.full((10,), 5)) and (index.diff() > 0).all()
    assert set(stress.stratified_sample(labels, 20).tolist()) <= set(index.tolist())
    assert torch.equal(stress.stratified_sample(labels, 300), torch.arange(200))
    single = torch.tensor([*range(500), *[500] * 500])  # half of all images are the only ones of their class
    few = single[stress.stratified_sample(single, 200)]
    assert 90 < (few < 500).sum() < 110 and few[few < 500].max() > 450


def test_a_fifth_of_the_sample_is_attacked_within_limits(tmp_path, monkeypatch):
    monkeypatch.setattr(stress, "MOST_ATTACKED", 40)
    test = data.Dataset("many", IMAGES.repeat(8, 1, 1, 1), LABELS.repeat(8), NAMES, [""] * 320)
    for count, expected in {30: 10, 100: 20, 3000: 40}.items():
        _, sample = stress.begin(from_module(Linear(10)), test, tmp_path, count, False)
        attacked = sample[2]
        assert len(sample[0]) == min(320, count)
        assert len(attacked) == expected and attacked.max() < len(sample[0])


def test_a_record_by_hand():
    logits, labels = torch.tensor([[2.0, 0.0], [0.0, 2.0], [0.0, 1.0]]), torch.tensor([0, 1, 0])
    record, right = stress.measure(logits, labels)
    assert right.tolist() == [True, True, False] and record["accuracy"] == proportion(2, 3)
    sure, less_sure = 1 / (1 + np.exp(-2)), 1 / (1 + np.exp(-1))
    assert record["mean_confidence"] == pytest.approx((2 * sure + less_sure) / 3)
    first = [sure, 1 - sure, 1 - less_sure]  # probabilities of class 0
    alike = [a * b + (1 - a) * (1 - b) for a, b in (first[:2], first[1:], first[::2])]
    assert record["same_answer"] == pytest.approx(statistics.mean(alike))
    # Two answers are 12 points too modest and one is 73 points too sure, in two of the fifteen bins.
    bins = record["calibration"]["as_trained"]
    filled = [row for row in zip(bins["count"], bins["right"], bins["gaps"], strict=True) if row[0]]
    assert filled == [(1, 0, pytest.approx(-less_sure)), (2, 2, pytest.approx(2 * (1 - sure), abs=1e-6))]
    assert len(bins["gaps"]) == 15 and list(record["calibration"]) == ["as_trained"]


def test_the_summary_by_loops_over_the_images():
    labels, tests, rows = torch.arange(60) % 4, CHANGES[1:], {}
    published = [f"published {test}" for test in tests]
    results = {"tests": {}, "answers": {}}
    for seed, test in enumerate([*CHANGES, *published, *(f"{name}/0" for name in corruptions.CUES)]):
        rows[test] = 2 * torch.randn(60, 4, generator=seeded(seed))
        results["tests"][test], results["answers"][test] = stress.measure(rows[test], labels, 1.7)
    stress.add_summary(results)
    summary = results["summary"]
    for group, some in {"fifteen": tests, "published": published}.items():
        right = [[row.argmax() == y for row, y in zip(rows[test], labels, strict=True)] for test in some]
        scores = [statistics.mean(map(float, of_image)) for of_image in zip(*right, strict=True)]
        assert summary["mean_accuracy"][group] == pytest.approx(mean_interval(torch.tensor(scores)))
    del results["tests"]["published fog/2"]  # not all are measured
    stress.add_summary(results)
    assert list(results["summary"]["mean_accuracy"]) == ["fifteen"]
    for severity, row in enumerate(summary["by_severity"]):
        own = [f"{name}/{severity}" for name in ("fog", "contrast")] if severity else ["clean/0"]
        logits, y_true = torch.cat([rows[test] for test in own]), labels.repeat(len(own))
        assert row["accuracy"] == pytest.approx((logits.argmax(dim=1) == y_true).double().mean().item())
        assert row["mean_confidence"] == pytest.approx(logits.softmax(dim=1).amax(dim=1).mean().item())
        for name, divisor in {"as_trained": 1, "with_temperature": 1.7}.items():
            errors = [expected_calibration_error(labels, (rows[t] / divisor).softmax(dim=1)) for t in own]
            assert row[name] == {"mean_ece": pytest.approx(statistics.mean(errors), abs=1e-6)}


class Brightness(torch.nn.Module):
    """Says 0 if the mean of an image is below 119.99 / 255, else 1, and is surer the further away."""

    def forward(self, x):
        above = x.mean(dim=(1, 2, 3)) - 119.99 / 255
        return torch.stack([-above, above], dim=1)


@pytest.mark.parametrize("name", ["fgsm", "pgd", "apgd_ce"])
def test_epsilon_is_in_255ths(name):
    """Images of 112 become as bright as 120, and no brighter, by 8 / 255; with 8 / 256 they would not."""
    images = torch.full((3, 3, 32, 32), 112, dtype=torch.uint8)
    images[2] -= 1
    network, clean = from_module(Brightness()), torch.tensor([True, False, True])
    sample = images, torch.zeros(3, dtype=torch.long), torch.arange(3)
    record, right = stress.attack(network, sample, {"unattacked/0": clean}, f"{name}/8")
    assert right.tolist() == [False, False, True] and record["accuracy"] == proportion(1, 3)


def test_each_test_is_of_its_level_and_its_images(tmp_path):
    network, labels = (
        from_module(Wavy(10)),
        partly_wrong(answers_to(Wavy(10), IMAGES)),
    )  # it is hard to attack
    network.checkpoint = {"val_logits": logits_of(network, IMAGES), "val_labels": labels}
    test = data.Dataset("some", IMAGES, labels, NAMES, [""] * 40)
    results, sample = stress.begin(network, test, tmp_path, 20, False)
    stress.run_tests(network, test, tmp_path, results, sample, {})
    images, labels, attacked, index = sample
    assert torch.equal(images, IMAGES[index]) and torch.equal(labels, test.labels[index])
    model, answers = network.model, results["answers"]
    temperature = fit_temperature(*network.checkpoint.values())
    for name in ("clean/0", "contrast/2", "contrast/5", "patches_8/0"):
        shown = corruptions.corrupt(images, name[:-2], int(name[-1]))
        record, right = stress.measure(logits_of(network, shown), labels, temperature)
        assert results["tests"][name] == record and torch.equal(answers[name], right)
    before = {"fgsm": [], "pgd": [], "pgd_more_steps": ["pgd"], "apgd_ce": ["fgsm", "pgd", "pgd_more_steps"]}
    before["apgd_dlr"] = [*before["apgd_ce"], "apgd_ce"]
    for name, earlier in before.items():  # an attack takes only what those before it have left
        left = [answers["clean/0"][attacked], *(answers[f"{other}/1"] for other in earlier)]
        right, row = torch.stack(left).all(dim=0), attacks.ATTACKS[name]
        x, y = images[attacked[right]] / 255, labels[attacked[right]]
        moved = row.function(model, x, y, 1 / 255, seeded(), **row.settings)
        right[right.clone()] = model(moved).argmax(dim=1) == y
        assert torch.equal(answers[f"{name}/1"], right), name

    # Random signs are measured on all images, also on those that are right only with them.
    signs = model(attacks.random_corner(model, images / 255, labels, 64 / 255, seeded())).argmax(dim=1)
    assert torch.equal(answers["random/64"], signs == labels)
    change = [int(a) - int(b) for a, b in zip(signs == labels, answers["clean/0"], strict=True)]
    record = results["tests"]["random/64"]
    assert record["change"] == pytest.approx(mean_interval(torch.tensor(change).double()))
    # They do not count in the worst of all attacks.
    worst = [answers["unattacked/0"], answers["fgsm/64"], answers["pgd/64"]]
    assert results["robust_accuracy"]["64"] == proportion(int(torch.stack(worst).all(dim=0).sum()), 10)
    assert results["random_signs"]["64"]["value"] == (signs == labels)[attacked].double().mean()


def test_the_checks_compare_the_attacked_images_that_were_right():
    """PGD leaves two of four, and random signs one of these: that they win two others does not count."""
    t, f = True, False
    rows = {"unattacked/0": [f, f, t, t], "pgd": [f, f, t, t], "fgsm": [f, f, t, t], "random": [t, t, f, t]}
    answers = {f"{name}/{e}": torch.tensor(rows[name]) for name in ("pgd", "fgsm", "random") for e in (1, 64)}
    answers |= {"unattacked/0": torch.tensor(rows["unattacked/0"]), "pgd_more_steps/1": answers["pgd/1"]}
    tests = {name: {"accuracy": stress.share(right)} for name, right in answers.items()}
    results = {"tests": tests, "answers": answers}
    stress.add_attacks(results, torch.arange(4))
    passed = {check["name"]: check["passed"] for check in results["checks"]}
    assert passed["PGD is at least as strong as random noise"] is False
    assert passed["a larger epsilon does not raise the accuracy under PGD"] is True


def test_the_choice_by_hand():
    """The first right one of each class, then the second ones, then the wrong ones, no people at all."""
    labels = torch.tensor([3, 0, 0, 1, 1, 2, 2, 3])
    right = torch.tensor([True, False, True, True, True, True, False, True])
    test = data.Dataset("some", None, labels, ["a", "b", "c", "man"], [""] * 8)
    places = torch.arange(8)
    assert stress.choose(test, places, right, 8).tolist() == [2, 3, 5, 4, 1, 6]
    assert stress.choose(test, places[1:], right[1:], 2).tolist() == [2, 3]


def test_examples_can_be_made_again_from_the_files(tmp_path):
    results, model = measure_all(tmp_path), Linear(10)
    arrays = folder.read_arrays(tmp_path / "stress.npz")
    shown, attacked = results["examples"], results["attack_examples"]
    for name, pixels in zip(shown["answers"], arrays["example_pixels"], strict=True):
        change, severity = name.split("/")
        images = corruptions.corrupt(IMAGES[shown["images"]], change, int(severity))
        assert torch.equal(pixels, images)
        p, y = model(images / 255).softmax(dim=1).max(dim=1)
        expected = [[c, round(v, 4)] for c, v in zip(y.tolist(), p.tolist(), strict=True)]
        assert np.allclose(shown["answers"][name], expected, atol=1e-4)
    index, labels = attacked["images"], LABELS[attacked["images"]]
    images = IMAGES[index] / 255
    assert torch.equal(arrays["attack_pixels"], IMAGES[index])
    moved = attacks.pgd(model, images, labels, 1 / 255, seeded(), restarts=2)
    assert [c for c, _ in attacked["answers"]["pgd"]["1"]] == model(moved).argmax(dim=1).tolist()
    given = arrays["attack_changes"][0, 0] / 127 / 255
    assert (given - (moved - images)).abs().max() <= 1.01 / 255 / 127 / 2
    # Right answers of as many classes as there are, no people among them.
    assert [c for c, _ in attacked["answers"]["pgd"]["0"]] == labels.tolist()
    assert PERSON not in LABELS[shown["images"]].tolist() + labels.tolist()


# ---- What is kept ------------------------------------------------------------------------------------------


def test_wherever_it_is_interrupted_it_goes_on_to_the_same_files(tmp_path, monkeypatch):
    whole = measure_all(tmp_path / "whole")
    assert whole["tests_sha256"] == folder.tests_digest(whole["tests"])
    interrupt(monkeypatch, "write_json", at={1, 2, 5, 12, 24}, module=folder)  # stress.npz is written before
    measured = interrupt(monkeypatch, "measure", at={4})
    for _ in range(6):
        with pytest.raises(KeyboardInterrupt):
            measure_all(tmp_path / "cut")
    for _ in range(2):  # the second time nothing is left to do
        assert measure_all(tmp_path / "cut") == whole
        arrays = [(tmp_path / name / "stress.npz").read_bytes() for name in ("cut", "whole")]
        assert arrays[0] == arrays[1]
        assert len(measured) <= len(CHANGES) + len(corruptions.CUES) + 6  # each lost at most one test
    before = contents(tmp_path / "cut")
    monkeypatch.setattr(stress, "measure", measured.append)
    with pytest.raises(TypeError):  # all tests run anew, and until the first is done nothing is replaced
        measure_all(tmp_path / "cut", overwrite=True)
    assert contents(tmp_path / "cut") == before


def test_corruptions_are_summed_up_before_the_attacks_begin(tmp_path, monkeypatch):
    monkeypatch.setattr(stress, "attack", lambda *arguments: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        measure_all(tmp_path)
    results = json.loads((tmp_path / "stress.json").read_text())
    assert {"summary", "examples"} <= results.keys() and "robust_accuracy" not in results


def test_tests_of_an_earlier_version_get_their_same_answer_alone(tmp_path, monkeypatch, capsys):
    """Only where the network answers as it did, and only of the tests that lab.estimate reads."""
    whole = measure_all(tmp_path)
    old, arrays = json.loads(json.dumps(whole)), folder.read_arrays(tmp_path / "stress.npz")
    for record in old["tests"].values():
        record.pop("same_answer", None)
    old["tests"]["fog/2"]["accuracy"] = {"value": 0.3}  # a number, so that it is seen that it is kept
    del old["tests_sha256"]
    (tmp_path / "stress.json").write_text(json.dumps(old))
    arrays["fog/3"][:2] = ~arrays["fog/3"][:2]
    folder.write_arrays(tmp_path / "stress.npz", arrays)
    measured, attacked = interrupt(monkeypatch, "measure"), interrupt(monkeypatch, "attack")
    tests = measure_all(tmp_path)["tests"]
    assert len(measured) == len(CHANGES) and not attacked
    for name in set(CHANGES) - {"fog/3"}:
        assert tests[name]["same_answer"] == whole["tests"][name]["same_answer"], name
    assert tests["fog/2"]["accuracy"] == {"value": 0.3}
    assert "same_answer" not in tests["fog/3"].keys() | tests["grey/0"].keys()
    assert "fog/3: 2 of 20 answers differ from those that are stored" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"num_images": 10}, "is of another sample, 20 images"),
        ({"model": Linear(10, seed=1)}, "results of another network"),
        ({"labels": LABELS.flip(0)}, "another test set: other images, labels or class names"),
        ({"num_images": 1}, "1 test images are too few"),
        ({}, "wrote: overwrite them"),
    ],
)
def test_results_of_something_else_are_kept(more, message, tmp_path):
    results = measure_all(tmp_path)
    if not more:  # but the file was edited
        results["tests"]["fog/1"]["mean_confidence"] += 0.1
        (tmp_path / "stress.json").write_text(json.dumps(results))
    before = contents(tmp_path)
    with pytest.raises(ValueError, match=message):
        measure_all(tmp_path, **more)
    assert contents(tmp_path) == before


# ---- Networks and files of all kinds -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        (Frozen, "no gradient of the scores reaches"),
        (FrozenBody, "no gradient of the scores reaches"),
        (Constant, "do not change with"),
    ],
)
def test_a_network_that_cannot_be_attacked_is_corrupted(kind, reason, tmp_path, capsys):
    results = measure_all(tmp_path, kind(10))
    assert reason in results["attacks_left_out"] and reason in capsys.readouterr().out
    assert list(results["tests"]) == [*stress.planned_tests(10)[0]]
    assert "summary" in results and not {"robust_accuracy", "checks", "attack_examples"} & results.keys()


def test_two_classes_few_images_and_no_right_answer(tmp_path):
    labels = 1 - answers_to(Linear(2), IMAGES[:8])
    results = stress.stress(Linear(2), IMAGES[:8], labels, ["man", "woman"], out=tmp_path)
    assert (results["corruption_images"], results["attack_images"]) == (8, 8)
    assert "apgd_ce/1" in results["tests"] and "apgd_dlr/1" not in results["tests"]
    assert "apgd_dlr/1" in stress.planned_tests(3)[1]
    assert results["tests"]["clean/0"]["accuracy"]["value"] == 0
    assert not {"examples", "attack_examples"} & results.keys()  # there are people alone


@pytest.fixture
def published(tmp_path, monkeypatch):
    """CIFAR-10-C of 40 images, in another order of images than ours, and a network in another of classes."""
    monkeypatch.setattr(stress, "PUBLISHED_IMAGES", 40)
    names = ["airplane", "Automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]
    order, path = torch.randperm(40, generator=seeded(3)), tmp_path / "files"
    path.mkdir()
    pictures = torch.cat([IMAGES[order] // severity for severity in range(1, 6)])
    np.save(path / "spatter.npy", pictures.permute(0, 2, 3, 1).numpy())
    np.save(path / "labels.npy", LABELS[order].repeat(5).numpy().astype(np.uint8))
    reverse = data.Dataset("cifar10", IMAGES, 9 - LABELS, names[::-1], [""] * 40, source="CIFAR-10")
    return path, reverse, pictures, 9 - LABELS[order]


def test_published_files_are_measured_too(published, tmp_path, monkeypatch):
    path, test, pictures, labels = published
    network, measured = from_module(Linear(10)), interrupt(monkeypatch, "measure")
    for _ in range(2):  # the second time nothing is left to do
        results, sample = stress.begin(network, test, tmp_path / "out", 20, False)
        count = len(measured)
        stress.run_tests(network, test, tmp_path / "out", results, sample, stress.open_published(path, test))
    assert len(measured) == count
    index = stress.stratified_sample(labels, 20)
    for severity in range(1, 6):
        logits = logits_of(network, pictures[40 * (severity - 1) :][index])
        record, right = stress.measure(logits, labels[index])
        assert results["tests"][f"published spatter/{severity}"] == record
        assert torch.equal(results["answers"][f"published spatter/{severity}"], right)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("fog.npy", np.zeros((200, 3, 32, 32), np.uint8), "fog.npy holds uint8"),
        ("fog.npy", None, "fog.npy is damaged"),
        ("labels.npy", np.tile(np.arange(40) % 5, 5), "does not hold the 10 classes of cifar10"),
        ("spatter.npy", "gone", "expected a folder with labels.npy"),
    ],
)
def test_other_published_files_are_refused(name, content, message, published):
    path, test, *_ = published
    (path / name).write_bytes(b"cut off")
    if isinstance(content, str):
        (path / name).unlink()
    elif content is not None:
        np.save(path / name, content)
    with pytest.raises(ValueError, match=message):
        stress.open_published(path, test)
    with pytest.raises(ValueError, match="is for test images of CIFAR"):
        stress.open_published(path, data.Dataset("shapes", IMAGES, LABELS, NAMES, [], source="shapes"))


def test_the_command(tmp_path, monkeypatch, capsys):
    """It answers a folder of pictures batch by batch, and lab.estimate reads what it writes."""
    for i, image in enumerate(IMAGES):
        path = tmp_path / "pictures" / NAMES[LABELS[i]] / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        data.Image.fromarray(image.permute(1, 2, 0).numpy()).save(path)
    (tmp_path / "net.py").write_text("from lab_networks import Linear\ndef net(): return Linear(10)\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(stress, "FAMILIES", {"weather": ["fog"], "digital": ["contrast"]})
    answered = interrupt(monkeypatch, "logits_of")
    argv = ["--model", "net.py:net", "--dataset", "pictures", "--images", "20", "--batch-size", "3"]
    assert stress.main(argv) == 0
    results = json.loads((tmp_path / "runs" / "net-net" / "stress.json").read_text())
    assert (results["model_name"], results["size"]) == ("net", 32)
    assert {network.batch_size for network, _ in answered} == {3}
    text = capsys.readouterr().out
    clean = results["tests"]["clean/0"]
    assert f"{'clean images':34}{100 * clean['accuracy']['value']:>6.1f} %" in text
    assert text.count("passed") + text.count("FAILED") == 5
    assert estimate.points(results)["family"].tolist() == [0] * 5 + [1] * 5
    assert estimate.fit(results)["clean"]["same_answer"] == clean["same_answer"]

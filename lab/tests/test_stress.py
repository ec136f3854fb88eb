"""stress.py: its records against a loop over the images, and what it keeps when it is stopped."""

import contextlib
import dataclasses
import io
import json
import os
import shutil
import statistics
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from lab_commands import CPU, assert_one_line, contents, outcome
from lab_networks import Linear, Wavy, natural_images, seeded

import data
from lab import classifier, pictures, stress
from lab import results as lab_results
from lab.classifier import FromPixels, predict
from lab.more_metrics import mean_interval
from lab.results import read_stress
from lab.stress_tests import attacks, cifar_c, corruptions, cues, examples
from lab.support import UserError
from metrics import calibration_bins, expected_calibration_error, fit_temperature, proportion

IMAGES = (natural_images(24) * 255).round().byte()
# What --model names.
NETWORKS = """
from test_stress import NoGrad, quick

def net(): return quick(10)
def other(): return quick(10, seed=1)
def two(): return quick(2)
def frozen(): return quick(10, kind=NoGrad)
"""


class NoGrad(Linear):
    forward = torch.no_grad()(Linear.forward)


def quick(num_classes, seed=0, kind=Linear):
    """A network that answers at once, with the same weights each time."""
    torch.manual_seed(seed)
    return kind(num_classes, seed)


def partly_wrong(y_pred, num_classes):
    """Labels that differ from every third of the answers."""
    every_third = torch.arange(len(y_pred)) % 3 == 0
    return torch.where(every_third, (y_pred + 1) % num_classes, y_pred)


def shorten(monkeypatch):
    """Let stress.py run two corruptions and short attacks."""
    for name in list(corruptions.CORRUPTIONS):
        if name not in ("contrast", "fog"):
            monkeypatch.delitem(corruptions.CORRUPTIONS, name)
    monkeypatch.setattr(stress, "FIFTEEN", ("contrast", "fog"))
    monkeypatch.setattr(attacks, "EPSILONS", (1, 64))
    monkeypatch.setattr(examples, "SHOWN_EPSILONS", (1,))
    for name, attack in attacks.ATTACKS.items():
        settings = attack.settings and attack.settings | {"steps": 2, "restarts": 1}
        epsilons = tuple(e for e in attack.epsilons if e in (1, 64))
        monkeypatch.setitem(attacks.ATTACKS, name, attack._replace(settings=settings, epsilons=epsilons))
    monkeypatch.setattr(os, "fsync", lambda file: None)


def use_few_tests(monkeypatch, num_classes=10):
    """Let stress.py run few tests on four images for each class; return them."""
    shorten(monkeypatch)
    images = (natural_images(4 * num_classes, seed=3) * 255).round().byte()
    y_pred = predict(FromPixels(quick(num_classes)), images, CPU).argmax(dim=1)
    names, superclass_of = [f"class {c}" for c in range(num_classes)], [c // 2 for c in range(num_classes)]
    superclasses = {"superclass_of": superclass_of, "superclass_names": names[: (num_classes + 1) // 2]}
    test = pictures.from_arrays(images, partly_wrong(y_pred, num_classes), names, **superclasses)
    use_set(monkeypatch, test)
    monkeypatch.setattr(stress, "CORRUPTION_IMAGES", 20)
    monkeypatch.setattr(stress, "FEWEST_ATTACKED", 10)
    return test


def use_set(monkeypatch, test):
    monkeypatch.setattr(pictures, "load", lambda *some, **more: (None, test))


@pytest.fixture
def few_tests(monkeypatch):
    return use_few_tests(monkeypatch)


@pytest.fixture(scope="module")
def command(tmp_path_factory):
    """command(out, ..., name="net") is the command line for one of NETWORKS."""
    file = tmp_path_factory.mktemp("networks") / "some.py"
    file.write_text(NETWORKS)

    def command(out, *more, name="net"):
        return ["--model", f"{file}:{name}", "--layer", "none", "--out", str(out), *map(str, more)]

    return command


@pytest.fixture(scope="module")
def whole(tmp_path_factory, command):
    """The folder of a run that was not interrupted; what it printed stands in a file."""
    out, printed = tmp_path_factory.mktemp("whole"), io.StringIO()
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(printed):
        use_few_tests(patch)
        assert stress.main(command(out)) == 0
    (out / "printed.txt").write_text(printed.getvalue())
    return out


@pytest.fixture
def done(few_tests, whole, tmp_path):
    """A copy of that folder, for the same command to be run again."""
    return shutil.copytree(whole, tmp_path / "done")


def files(folder):
    """The bytes of both files of results."""
    return [(folder / name).read_bytes() for name in ("stress.json", "stress.npz")]


def read_json(folder):
    return json.loads((folder / "stress.json").read_text(encoding="utf-8"))


def interrupt(monkeypatch, name, at, module=stress):
    """Press Ctrl-C before those calls of a function of a module that are in `at`."""
    calls, function = [], getattr(module, name)

    def interrupted(*given):
        calls.append(given)
        if len(calls) in at:
            raise KeyboardInterrupt
        return function(*given)

    monkeypatch.setattr(module, name, interrupted)
    return calls


def test_stratified_sample(monkeypatch):
    labels = torch.arange(10).repeat(20)[torch.randperm(200, generator=seeded())]
    index = stress.stratified_sample(labels, 50)
    assert torch.equal(labels[index].bincount(), torch.full((10,), 5))
    assert (index.diff() > 0).all()
    assert set(stress.stratified_sample(labels, 20).tolist()) <= set(index.tolist())
    assert torch.equal(stress.stratified_sample(labels, 300), torch.arange(200))
    rare = torch.tensor([0] * 95 + [1] * 5)
    assert rare[stress.stratified_sample(rare, 20)].sum() == 1
    single = torch.tensor([*range(500), *[500] * 500])  # half of all images are the only ones of their class
    assert 90 < (single[stress.stratified_sample(single, 200)] < 500).sum() < 110
    few = stress.stratified_sample(torch.arange(1000), 200)  # of classes from the whole range
    assert few.max() > 900 and 400 < few.double().mean() < 600
    monkeypatch.setattr(stress, "SEED", 1)
    assert not torch.equal(stress.stratified_sample(labels, 50), index)  # chosen at random, by the seed


def test_a_record_by_hand():
    logits = torch.tensor([[2.0, 0.0], [0.0, 2.0], [0.0, 1.0]])
    record, right = stress.measure(logits, torch.tensor([0, 1, 0]))
    assert right.tolist() == [True, True, False] and record["accuracy"] == proportion(2, 3)
    sure, less_sure = 1 / (1 + np.exp(-2)), 1 / (1 + np.exp(-1))
    assert record["mean_confidence"] == pytest.approx((2 * sure + less_sure) / 3)
    # Two answers are 12 points too modest and one is 73 points too sure, in two of the fifteen bins.
    calibration = record["calibration"]["as_trained"]
    gaps = [gap for gap in calibration["gaps"] if gap != 0]
    assert gaps == pytest.approx([-less_sure, 2 * (1 - sure)], abs=1e-6) and len(calibration["gaps"]) == 15
    assert list(record["calibration"]) == ["as_trained"]
    with pytest.raises(UserError, match="not finite"):
        stress.measure(logits / 0, torch.tensor([0, 1, 0]))


def test_the_summary_by_loops_over_the_images(monkeypatch):
    monkeypatch.setattr(stress, "FIFTEEN", ("fog", "contrast"))
    labels, names = torch.arange(60) % 4, ["fog", "contrast", "published fog", "published contrast"]
    tests = [f"{name}/{severity}" for name in names for severity in range(1, 6)]
    rows, records, answers = {}, {}, {}
    for seed, test in enumerate(["clean/0", *tests, *(f"{name}/0" for name in cues.CUES)]):
        rows[test] = 2 * torch.randn(60, 4, generator=seeded(seed))
        records[test], answers[test] = stress.measure(rows[test], labels, 1.7)
    found = stress.summarise(records, answers)
    for group, of in {"fifteen": tests[:10], "published": tests[10:]}.items():
        right = [[row.argmax() == y for row, y in zip(rows[test], labels, strict=True)] for test in of]
        scores = [statistics.mean(map(float, of_image)) for of_image in zip(*right, strict=True)]
        assert found["mean_accuracy"][group] == pytest.approx(mean_interval(torch.tensor(scores)))
    for severity in range(6):
        own = [f"{name}/{severity}" for name in names[:2]] if severity else ["clean/0"]
        together, row = torch.cat([rows[test] for test in own]), found["by_severity"][severity]
        assert row["accuracy"] == pytest.approx(torch.cat([answers[test] for test in own]).double().mean())
        assert row["mean_confidence"] == pytest.approx(together.softmax(dim=1).amax(dim=1).mean().item())
        for name, divisor in {"as_trained": 1, "with_temperature": 1.7}.items():
            error = expected_calibration_error(labels.repeat(len(own)), (together / divisor).softmax(dim=1))
            assert row[name]["ece"] == pytest.approx(error, abs=1e-6)
            errors = [
                expected_calibration_error(labels, (rows[test] / divisor).softmax(dim=1)) for test in own
            ]
            assert row[name]["mean_ece"] == pytest.approx(statistics.mean(errors), abs=1e-6)
    together = torch.cat([rows[test] for test in tests[:10]]).softmax(dim=1)
    bins = calibration_bins(labels.repeat(10), together)
    expected = [list(row) for row in zip(*map(torch.Tensor.tolist, bins), strict=True) if row[2]]
    assert np.allclose(found["reliability"]["bins"]["as_trained"], expected, atol=1e-5)
    assert found["reliability"]["images"] == 60
    assert found["cues"]["grey"] == {"accuracy": records["grey/0"]["accuracy"]}
    del answers["published fog/2"]  # not all are measured yet
    assert set(stress.summarise(records, answers)["mean_accuracy"]) == {"fifteen"}


class Brightness(torch.nn.Module):
    """Says 0 if the mean of an image is below 119.99 / 255, else 1, and is surer the further away."""

    def forward(self, x):
        above = x.mean(dim=(1, 2, 3)) - 119.99 / 255
        return torch.stack([-above, above], dim=1)


@pytest.mark.parametrize("name", ["fgsm", "pgd", "apgd_ce"])
def test_epsilon_is_in_255ths(name):
    """Images of 112 become as bright as 120, and no brighter, by 8 / 255; with 8 / 256 they would not."""
    labels = torch.zeros(3, dtype=torch.long)
    images = torch.full((3, 3, 32, 32), 112, dtype=torch.uint8)
    images[2] -= 1
    examined = SimpleNamespace(model=FromPixels(Brightness()), device=CPU, name="Brightness")
    sample = stress.Sample(images, labels, torch.arange(3), torch.arange(3))
    right = stress.attack_images(examined, sample, name, 8, torch.tensor([True, False, True]))
    assert right.tolist() == [False, False, True]


def test_each_test_is_of_its_level_and_its_images(few_tests, tmp_path):
    torch.manual_seed(0)
    model = FromPixels(Wavy(10), normalize=data.Normalize()).eval()  # which is hard to attack
    logits = predict(model, IMAGES, CPU)
    labels = partly_wrong(logits.argmax(dim=1), 10)
    examined = SimpleNamespace(model=model, device=CPU, num_classes=10, validation=(logits, labels))
    attacked = torch.tensor([1, 3, 4, 9, 13, 21])
    sample = stress.Sample(IMAGES, labels, attacked, torch.arange(24))
    results = {"tests": {}, "answers": {}}
    stress.run_tests(examined, sample, {}, tmp_path, results)
    answers = results["answers"]
    changed = {f"contrast/{s}": corruptions.corrupt(IMAGES, "contrast", s) for s in (2, 5)}
    changed |= {"patches_8/0": cues.change(IMAGES, "patches_8"), "clean/0": IMAGES}
    for test, images in changed.items():
        record, right = stress.measure(predict(model, images, CPU), labels, fit_temperature(logits, labels))
        assert results["tests"][test] == record and torch.equal(answers[test], right)
    before = {"fgsm": (), "pgd": (), "pgd_more_steps": ("pgd",)}
    before["apgd_ce"] = ("fgsm", "pgd", "pgd_more_steps")
    before["apgd_dlr"] = (*before["apgd_ce"], "apgd_ce")
    for name, earlier in before.items():  # an attack takes only what those before it have left
        left = answers["clean/0"][attacked]
        for other in earlier:
            left = left & answers[f"{other}/1"]
        right = stress.attack_images(examined, sample, name, 1, left)
        assert torch.equal(answers[f"{name}/1"], right), name

    # Random signs are measured on all images, also on those that are right only with them.
    clean, right = answers["clean/0"].tolist(), answers["random/64"].tolist()
    signs = attacks.random_corner(model, IMAGES / 255, labels, 64 / 255, seeded())
    assert right == [c == y for c, y in zip(model(signs).argmax(dim=1), labels, strict=True)]
    change = [int(a) - int(b) for a, b in zip(right, clean, strict=True)]
    record = results["tests"]["random/64"]
    assert (record["lost"], record["won"]) == (change.count(-1) / 24, change.count(1) / 24)
    assert change.count(-1) > 0 and change.count(1) > 0
    assert record["change"] == pytest.approx(mean_interval(torch.tensor(change).double()))
    assert record["accuracy"] == proportion(sum(right), 24)
    # They do not count in the worst of all attacks.
    stress.add_summary(results, sample, list("abcdefghij"))
    survive = [answers[f"{name}/64"] for name in ("fgsm", "pgd")]
    assert results["robust_accuracy"]["64"]["value"] == torch.stack(survive).all(dim=0).double().mean()


@pytest.mark.parametrize(("count", "attacked"), [(30, 10), (100, 20), (3000, 40), (None, 40)])
def test_a_fifth_of_the_sample_is_attacked_within_limits(few_tests, monkeypatch, count, attacked):
    monkeypatch.setattr(stress, "MOST_ATTACKED", 40)
    images, labels = few_tests.images.repeat(8, 1, 1, 1), few_tests.labels.repeat(8)
    test = dataclasses.replace(few_tests, images=images, labels=labels)
    sample = stress.draw_sample(test, count)
    assert len(sample.labels) == min(320, count or 320) and len(sample.attacked) == attacked
    assert torch.equal(sample.labels, labels[sample.index])
    fewer = sample._replace(attacked=sample.attacked[1:])  # another sample
    results, others = stress.planned_results(test, sample, {}), stress.planned_results(test, fewer, {})
    assert results["sample_sha256"] != others["sample_sha256"]


def test_examples_can_be_made_again_from_the_files(few_tests, whole):
    model, labels = classifier.from_module(quick(10), None, "none", CPU).model, few_tests.labels
    results = read_stress(whole, {})
    sample = stress.draw_sample(few_tests, 20)
    right = predict(model, few_tests.images, CPU).argmax(dim=1) == labels
    among = {"examples": sample.index, "attack_examples": sample.index[sample.attacked]}
    for key, count in (("examples", 8), ("attack_examples", 6)):
        index = results[key]["images"]
        choice = among[key][right[among[key]]]  # right ones, of as many classes as there are
        assert set(index) <= set(choice.tolist()) and len(index) == min(count, len(choice)), key
        assert len(labels[index].unique()) == len(labels[choice].unique()) > 1, key

    shown, answers = results["examples"], results["attack_examples"]["answers"]["pgd"]
    images = few_tests.images[shown["images"]]
    for test, expected in {"clean/0": images, "fog/3": corruptions.corrupt(images, "fog", 3)}.items():
        assert torch.equal(results["example_pixels"][list(shown["answers"]).index(test)], expected)
    assert [answer for answer, _ in answers["0"]] == labels[index].tolist()


def test_files_without_examples_are_read_and_completed(few_tests, done, command, monkeypatch, capsys):
    """As a kill between the two files leaves them: of the pixels of examples stress.json does not know."""
    results, whole = read_json(done), read_json(done)
    del results["examples"], results["attack_examples"], results["tests"]["fog/1"]
    (done / "stress.json").write_text(json.dumps(results), encoding="utf-8")
    read = read_stress(done, {})
    assert not {"attack_changes", "attack_examples", "examples", "example_pixels"} & read.keys()
    measured = interrupt(monkeypatch, "measure", at={})
    chosen = interrupt(monkeypatch, "choose", at={}, module=examples)
    assert stress.main(command(done)) == 0
    assert read_json(done).items() == whole.items() and len(measured) == 1
    assert [call[2] is few_tests.superclass_of for call in chosen] == [True, True]
    assert read_stress(done, {})["attack_changes"].any()
    del whole["published_sha256"]  # as of a version that did not know it
    (done / "stress.json").write_text(json.dumps(whole), encoding="utf-8")
    older = outcome(capsys, stress.main, command(done))
    assert_one_line(*older, "stress.json has no published_sha256, .* --overwrite measures it anew")


def test_the_command_writes_and_prints_what_it_found(few_tests, whole):
    results = read_json(whole)
    tests, epsilons = results["tests"], attacks.EPSILONS
    assert len(tests) == 1 + 2 * 5 + len(cues.CUES) + 1 + 3 * len(epsilons) + 1 + 2
    assert (results["corruption_images"], results["attack_images"]) == (20, 10)
    with np.load(whole / "stress.npz") as arrays:
        assert list(arrays) == [*tests, "example_pixels", "attack_changes"]
        # At each epsilon the worst case counts the images that every attack of this epsilon leaves right.
        for epsilon in epsilons:
            run = [f"{name}/{epsilon:g}" for name in attacks.ATTACKS]
            worst = np.min([arrays[test] for test in run if test in tests], axis=0)
            assert results["robust_accuracy"][f"{epsilon:g}"]["value"] == worst.mean()
            attacked = stress.draw_sample(few_tests, 20).attacked.numpy()
            assert (
                results["random_signs"][f"{epsilon:g}"]["value"]
                == arrays[f"random/{epsilon:g}"][attacked].mean()
            )
    printed = (whole / "printed.txt").read_text()
    assert f"{100 * tests['clean/0']['accuracy']['value']:.1f} %" in printed
    for check in results["checks"]:
        assert f"{'passed' if check['passed'] else 'FAILED'}   {check['name']}: " in printed
    assert len(results["checks"]) == 5
    read = read_stress(whole, {"checkpoint_sha256": results["checkpoint_sha256"]})
    assert {key: read[key] for key in results} == results
    assert read_stress(whole, {"class_order": "other"}) is None and read_stress(whole / "no", {}) is None


def test_wherever_it_is_interrupted_it_goes_on_to_the_same_files(
    few_tests, whole, command, tmp_path, monkeypatch
):
    interrupt(monkeypatch, "write_json", at={1, 2, 5, 12, 24}, module=lab_results)  # stress.npz is written
    measured = interrupt(monkeypatch, "measure", at={4})
    for _ in range(6):
        with pytest.raises(KeyboardInterrupt):
            stress.main(command(tmp_path))
    for _ in range(2):  # the second time nothing is left to do
        assert stress.main(command(tmp_path)) == 0
        assert files(tmp_path) == files(whole)
        # Each interruption lost at most the test that it hit.
        assert len(measured) <= 1 + 2 * 5 + len(cues.CUES) + 6


def test_results_of_other_weights_or_more_images_are_kept(done, command, tmp_path, monkeypatch, capsys):
    before = files(done)
    few = outcome(capsys, stress.main, command(done, "--images", 10))
    assert_one_line(*few, "is of more images, 20 of which 10 are attacked: give the same --images or --full")
    results = read_json(done)
    (done / "stress.json").write_text(
        json.dumps(results | {"attack_images": 11, "sample_sha256": "of --full"})
    )
    assert_one_line(*outcome(capsys, stress.main, command(done)), "is of more images, 20 of which 11")
    (done / "stress.json").write_bytes(before[0])
    other = outcome(capsys, stress.main, command(done, "--full", name="other"))
    assert_one_line(*other, "stress.json is of other weights")
    assert files(done) == before
    interrupt(monkeypatch, "measure", at={1, 2})
    with pytest.raises(KeyboardInterrupt):
        stress.main(command(done, "--overwrite", name="other"))
    assert files(done) == before  # until the first new test is done
    with pytest.raises(KeyboardInterrupt):
        stress.main(command(tmp_path / "new"))
    (tmp_path / "new" / "stress.npz").touch()  # killed in the first save: the folder is still ours
    assert stress.main(command(tmp_path / "new")) == 0 and files(tmp_path / "new") == before


@pytest.mark.parametrize("name", ["stress.npz", "stress.json"])
def test_a_file_without_our_record_is_never_replaced(name, few_tests, command, tmp_path, capsys):
    (tmp_path / name).write_text('{"mine": 1}')
    for more in ([], ["--overwrite"]):
        code, err = outcome(capsys, stress.main, command(tmp_path, *more))
        assert_one_line(code, err, name)
        assert contents(tmp_path) == {tmp_path / name: b'{"mine": 1}'}


@pytest.mark.parametrize("what", ["mirrored", "in another order", "more images"])
def test_results_of_other_images_or_classes_are_kept_and_of_fewer_images_run_again(
    what, done, few_tests, command, tmp_path, monkeypatch, capsys
):
    """The same weights on other pictures, or with its classes in another order, share no result."""
    (tmp_path / "names").write_text("\n".join(few_tests.class_names[::-1]))
    if what == "mirrored":
        use_set(monkeypatch, dataclasses.replace(few_tests, images=few_tests.images.flip(-1)))
    before = files(done)
    interrupt(monkeypatch, "measure", at={1})
    more = {"in another order": ["--classes", tmp_path / "names"], "more images": ["--full"]}
    if what == "more images":
        with pytest.raises(KeyboardInterrupt):
            stress.main(command(done, "--full"))
        assert "other images: all tests run" in capsys.readouterr().out
    else:
        refused = outcome(capsys, stress.main, command(done, *more.get(what, [])))
        assert_one_line(*refused, "is of other images, or of this network used in another way")
    assert files(done) == before


def test_a_network_without_gradients_cannot_be_attacked(few_tests, command, tmp_path, capsys):
    code, err = outcome(capsys, stress.main, command(tmp_path, name="frozen"))
    assert_one_line(code, err, "cannot be attacked: no gradient of the scores reaches the images")
    assert list(read_json(tmp_path)["tests"])[-2:] == ["random/1", "random/64"]


def test_two_classes_few_images_and_no_right_answer(monkeypatch, command, tmp_path):
    test = use_few_tests(monkeypatch, num_classes=2)  # eight images in all
    test.labels = 1 - predict(FromPixels(quick(2)), test.images, CPU).argmax(dim=1)
    assert stress.main(command(tmp_path, name="two")) == 0
    results = read_stress(tmp_path, {})
    assert (results["corruption_images"], results["attack_images"]) == (8, 8)
    assert "apgd_ce/1" in results["tests"] and "apgd_dlr/1" not in results["tests"]
    assert ("apgd_dlr", 1) in stress.planned_tests(3)
    assert results["checks"][-1]["name"] == "apgd_dlr is left out" and "summary" in results
    assert results["tests"]["clean/0"]["accuracy"]["value"] == 0
    assert len(results["examples"]["images"]) == 8
    assert "attack_examples" not in results and "attack_changes" not in results


def test_arrays_that_cannot_be_used_are_replaced_by_overwrite_which_goes_on(
    done, whole, command, monkeypatch, capsys
):
    arrays = files(done)[1]
    flipped = bytearray(arrays)
    flipped[arrays.index(b"PK", 4) - 5] ^= 1  # in the data of the first array
    for content in (b"", bytes(flipped)):
        (done / "stress.npz").write_bytes(content)
        refused = outcome(capsys, stress.main, command(done))
        assert_one_line(*refused, r"stress\.npz cannot be used as .* --overwrite replaces: ")
    measured = interrupt(monkeypatch, "measure", at={1, 9})
    before = files(done)
    for is_kept in (True, False):  # nothing is written before the first new test is done
        with pytest.raises(KeyboardInterrupt):
            stress.main(command(done, "--overwrite"))
        assert (files(done) == before) == is_kept
    assert stress.main(command(done)) == 0 and files(done) == files(whole)
    assert len(measured) == 1 + 1 + 1 + 2 * 5 + len(cues.CUES)  # no old test was kept


def test_published_files_are_measured_too(done, few_tests, command, tmp_path, monkeypatch, capsys):
    """They come on top of what is there."""
    monkeypatch.setattr(cifar_c, "IMAGES", 40)
    order = torch.randperm(40, generator=seeded(3))  # the official one is another than ours
    labels = few_tests.labels[order]
    pictures = torch.cat([few_tests.images[order] // severity for severity in range(1, 6)])
    np.save(tmp_path / "spatter.npy", pictures.permute(0, 2, 3, 1).numpy())
    np.save(tmp_path / "labels.npy", labels.repeat(5).numpy().astype(np.uint8))
    code, err = outcome(capsys, stress.main, command(done, "--cifar-c", tmp_path))
    assert_one_line(code, err, "--cifar-c needs a network of CIFAR-100 or CIFAR-10, not of images")

    use_set(monkeypatch, dataclasses.replace(few_tests, name="cifar10"))
    measured = interrupt(monkeypatch, "measure", at={})
    assert stress.main(command(done, "--cifar-c", tmp_path)) == 0
    assert len(measured) == 5
    examined = classifier.from_module(quick(10), None, "none", CPU)
    results = read_stress(done, {})
    index = stress.stratified_sample(labels, 20)
    for severity in range(1, 6):
        logits = predict(examined.model, pictures[40 * (severity - 1) :][index], CPU)
        record, right = stress.measure(logits, labels[index])
        assert results["tests"][f"published spatter/{severity}"] == record
        assert torch.equal(results["answers"][f"published spatter/{severity}"], right)
    np.save(tmp_path / "spatter.npy", pictures.flip(0).permute(0, 2, 3, 1).numpy())
    measured.clear()
    assert stress.main(command(done, "--cifar-c", tmp_path)) == 0
    assert len(measured) == 5  # of a file that has changed nothing is kept
    record = {"checkpoint_sha256": read_json(done)["checkpoint_sha256"], "test_sha256": "of other images"}
    (done / "reasons.json").write_text(json.dumps(record))  # no page is made of two test sets
    assert stress.main(command(done)) == stress.main(command(done, "--cifar-c", tmp_path)) == 0
    assert len(measured) == 5

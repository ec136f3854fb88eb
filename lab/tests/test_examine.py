"""lab/examine.py: numbers against plain loops, and what is written and refused."""

import csv
import dataclasses
import html
import json
import re
import shutil

import numpy as np
import pytest
import torch
from lab_commands import CPU, assert_one_line, contents, outcome
from lab_pages import text
from made_up import stress_content
from networks import seeded, tiny_resnet
from PIL import Image
from torch import nn
from torchvision.transforms.v2.functional import to_pil_image

import report
from gradcam import GradCAM
from lab import answers as lab_answers
from lab import classifier, examine, more_metrics
from lab import pictures as lab_pictures
from lab.pictures import from_arrays
from lab.results import read_report, write_stress
from lab.support import UserError, read_json

LABELS = torch.arange(30)


def tiny(num_classes):
    torch.manual_seed(0)
    return tiny_resnet(num_classes, 16).eval()


def pictures(labels, names, seed=0):
    """A data set of noise with these labels."""
    pixels = np.random.default_rng(seed).integers(0, 256, (len(labels), 3, 32, 32), dtype=np.uint8)
    return from_arrays(pixels, labels, names, name="my_pictures")


def both_files(out):
    """The content of metrics.json and reasons.json."""
    return json.loads((out / "metrics.json").read_text()) | json.loads((out / "reasons.json").read_text())


@pytest.fixture
def no_reasons(monkeypatch, no_page, few_resamples):
    monkeypatch.setattr(examine, "find_reasons", lambda *some: ({}, {}))


# ---- Numbers ---------------------------------------------------------------------------------------------


def test_more_numbers_are_of_the_logits_as_trained_and_at_the_temperature(small_sets):
    test = small_sets[1]
    logits = 3 * torch.randn(100, 100, generator=seeded())
    logits[torch.arange(50), test.labels[:50]] += 9
    arrays = {"logits": logits, "y_true": test.labels, "y_pred": logits.argmax(dim=1)}
    numbers, kinds = lab_answers.further_numbers(arrays, test, 2.0, {})
    for suffix, divisor in {"": 1, "_after_temperature": 2}.items():
        rows = (logits.double() / divisor).softmax(dim=1)
        confidence, risks = rows.amax(dim=1), more_metrics.risk_coverage(test.labels, rows)[1]
        expected = {"aurc": risks.mean().item(), "risk_at_half_coverage": risks[49].item()}
        expected["auroc"] = more_metrics.auroc(arrays["y_pred"] == test.labels, confidence)
        expected["calibration_error_by_chance"] = more_metrics.calibration_error_by_chance(confidence)
        assert {key: numbers[f"{key}{suffix}"] for key in expected} == pytest.approx(expected)
    mistakes = [i for i in range(100) if arrays["y_pred"][i] != test.labels[i]]
    counts, sure = {"right": [0] * 50, "wrong": [0] * 50}, logits.double().softmax(dim=1).amax(dim=1).tolist()
    for i, confidence in enumerate(sure):
        counts["wrong" if i in mistakes else "right"][min(49, int(50 * confidence))] += 1
    assert numbers["confidence_histogram"] == counts
    ranks = [int((logits[i] > logits[i, test.labels[i]]).sum()) for i in mistakes]
    assert numbers["truth_second"] == ranks.count(1) / len(mistakes)
    assert (kinds >= 0).nonzero().flatten().tolist() == mistakes
    rows = [numbers["kinds"][k] for k in kinds[mistakes]]
    assert [rank > 4 for rank in ranks] == [row["name"] == "further_down" for row in rows]
    assert all(rows.count(row) == row["count"] for row in numbers["kinds"])


def test_copies_in_training_are_counted():
    """Two images without a copy, two copies, and two with the label 2 there, answered 2."""
    copies, labels = torch.tensor([-1, -1, 0, 1, 2, 2]), torch.tensor([0, 1, 0, 1, 0, 1])
    assert lab_answers.duplicates(copies, labels, torch.tensor([0, 0, 0, 0, 2, 2])) == {
        "test_images_in_train": 4,
        "with_another_label_there": 2,
        "misclassified_as_labelled_there": 2,
        "accuracy_without_them": 0.5,
    }


# ---- A network in memory ---------------------------------------------------------------------------------


# {case: (labels, number of classes, images that are taken for the next class)}
CASES = {
    "two unequal classes": ((LABELS > 21).long(), 2, [3, 25]),
    "no mistakes": (LABELS % 7, 7, []),
    "all mistakes": (LABELS % 7, 7, list(range(30))),
    "classes without test images": (LABELS % 3, 9, [1, 2, 5]),
    "no layer to explain": (LABELS % 3, 3, [1, 2, 5]),
}


@pytest.mark.parametrize("case", CASES)
def test_any_set_has_both_pages_and_one_dict_of_its_files(case, quick, tmp_path, monkeypatch, capsys):
    labels, num_classes, wrong = CASES[case]
    names = [f"class_{c}" for c in range(num_classes)]
    answers = labels.clone()
    answers[wrong] = (answers[wrong] + 1) % num_classes
    sureness = 1 + 3 * torch.rand(len(labels), 1, generator=seeded())
    logits = sureness * torch.eye(num_classes)[answers] + 0.1 * torch.rand(num_classes, generator=seeded(1))
    monkeypatch.setattr(classifier, "predict", lambda *some, **more: logits)
    explained = case != "no layer to explain"
    model = tiny(num_classes) if explained else nn.Sequential(nn.Flatten(), nn.Linear(3072, num_classes))
    numbers = examine.examine(model, pictures(labels, names), pictures(labels, names, 1), out=tmp_path)
    assert numbers == both_files(tmp_path)
    assert numbers["accuracy"]["value"] == pytest.approx(1 - len(wrong) / len(labels))
    assert ("maps" in numbers) == ("covering" in numbers) == explained
    if explained:
        assert ("mistakes" in numbers["covering"]) == bool(wrong)
    absent = num_classes - len(set(labels.tolist()))
    notes = [f"{absent} classes have no test image and count as 0"] if absent else []
    notes += ["an accuracy of 0.0 % is near chance"] if case == "all mistakes" else []
    assert [note[: len(start)] for note, start in zip(numbers["notes"], notes, strict=True)] == notes
    for name in ("report.html", "explore.html"):
        seen = text((tmp_path / name).read_text(encoding="utf-8"))
        assert not re.search(r"\b(nan|NaN|None)\b(?! (of the answers )?are right)", seen)
        assert type(model).__name__ in seen and all(note in html.unescape(seen) for note in numbers["notes"])


def test_a_module_and_its_classifier_give_the_same_and_stay_as_they_were(quick, no_page, tmp_path):
    model, test = tiny(3).train(), pictures(LABELS % 3, ["b", "c", "a"])
    model[3].eval()  # frozen by the caller
    seen = model.seen = 2 * model[0].weight  # with its graph, as after a pass
    before = {name: value.clone() for name, value in model.state_dict().items()}
    modes = [module.training for module in model.modules()]
    train = dataclasses.replace(test, class_names=["a", "b", "c"], labels=(test.labels + 1) % 3)
    options = {"class_names": ["a", "b", "c"], "out": tmp_path / "module"}
    numbers = examine.examine(model, test, train, **options)
    assert [module.training for module in model.modules()] == modes and model.seen is seen
    torch.testing.assert_close(dict(model.state_dict()), before, rtol=0, atol=0)
    logits = model.eval()(test.images / 255)[:, [1, 2, 0]]
    assert numbers["accuracy"]["value"] == (logits.argmax(dim=1) == test.labels).double().mean()
    # The classes of the training images are found by their names.
    assert numbers["duplicates"]["test_images_in_train"] == 30
    assert numbers["duplicates"]["with_another_label_there"] == 0
    examined = classifier.from_module(classifier.copied(model), ["a", "b", "c"], None, CPU)
    examined.training = {
        "config": {
            "images_sha256": "of other images",
            "image_size": examined.model.image_size,
            "settings": {"label_smoothing": 0},
            "num_train": 1,
            "num_val": 1,
        }
    }
    for name in ("first", "second"):  # no note stands there twice
        again = examine.examine(examined, test, train, out=tmp_path / name)
        note = "the training images found are not those of the training: no duplicates"
        assert again["notes"] == [note, *numbers["notes"]]
    assert examined.notes == [] and examined.model.order is None
    for key in (
        "duplicates",
        "notes",
        "network",
        "predictions_sha256",
        "evidence_sha256",
        "network_sha256",
        "title",
        "examined",
    ):
        del numbers[key]
    assert {key: again[key] for key in numbers} == numbers
    with pytest.raises(UserError, match="have other classes"):
        others = dataclasses.replace(train, class_names=["x", "a", "b"])
        examine.examine(model, test, others, out=tmp_path / "other")


class Pairs(list):
    """As a data set of torchvision: (picture, label), with the names of the classes."""

    classes = ("a", "b", "c")


def test_pictures_of_pillow_with_labels_are_a_test_set(quick, no_page, tmp_path):
    test = pictures(LABELS % 3, ["a", "b", "c"])
    pairs = Pairs((to_pil_image(image), int(c)) for image, c in zip(test.images, test.labels, strict=True))
    expected = examine.examine(tiny(3), test, out=tmp_path / "dataset")
    numbers = examine.examine(tiny(3), pairs, out=tmp_path / "pairs")
    again = examine.examine(tiny(3), [*pairs], class_names=["a", "b", "c"], out=tmp_path / "list")
    for key in ("accuracy", "classes", "covering", "images_sha256"):
        assert numbers[key] == again[key] == expected[key]
    with open(tmp_path / "pairs" / "answers.csv", newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    probabilities = tiny(3)(test.images / 255).softmax(dim=1)
    for i, row in enumerate(rows):
        assert (row["file_name"], row["true_class"]) == (str(i), "abc"[i % 3])
        assert row["predicted_class"] == "abc"[probabilities[i].argmax()]
        assert float(row["confidence"]) == pytest.approx(probabilities[i].max().item(), abs=1e-5)
    assert len(rows) == 30
    # A network may know more classes than there are pictures of, in another order.
    pairs.classes, names = ("a", "d", "c"), ["d", "c", "b", "a"]
    numbers = examine.examine(tiny(4), pairs, class_names=names, out=tmp_path / "fewer")
    answers = [names[c] for c in tiny(4)(test.images / 255).argmax(dim=1)]
    right = [answer == pairs.classes[i % 3] for i, answer in enumerate(answers)]
    assert numbers["accuracy"]["value"] == sum(right) / 30 and any(
        "1 classes have no" in n for n in numbers["notes"]
    )
    with pytest.raises(UserError, match="name those of the labels by class_names"):
        examine.examine(tiny(3), [*pairs], out=tmp_path / "unnamed")
    several = Pairs([(Image.new("RGB", (300, 224)), 0), (Image.new("RGB", (400, 300)), 1)])
    with pytest.raises(ValueError, match="picture 1 has a side of 300 pixels, and the first one 224: give"):
        examine.examine(tiny(3), several, out=tmp_path / "several")
    with pytest.raises(ValueError, match="picture 0 is a Tensor, expected one of Pillow"):
        examine.examine(tiny(3), Pairs([(test.images[0], 1)]), out=tmp_path / "tensors")


def test_evidence_is_of_the_surest_mistakes_and_their_maps(quick, no_page, tmp_path):
    test, train = pictures(LABELS % 4, ["a", "b", "c", "d"]), pictures(LABELS % 4, ["a", "b", "c", "d"], 1)
    model = tiny(4)
    with torch.no_grad():  # each class is answered, and some mistakes are turned
        model[-1].weight *= 20
        model[-1].bias -= model(test.images / 255).mean(dim=0)
    numbers = examine.examine(model, test, train, out=tmp_path, layer="3")
    assert numbers["maps"]["layer"] == numbers["layer"] == "3" and numbers["maps"]["size"] == [8, 8]
    with torch.no_grad():
        expected = model(test.images / 255).softmax(dim=1)
    answers = expected.argmax(dim=1)
    wrong = [i for i in range(30) if answers[i] != test.labels[i]]
    surest = sorted(wrong, key=lambda i: (-expected[i].max(), i))
    evidence = np.load(tmp_path / "evidence.npz")
    assert evidence["mistakes"].tolist() == surest
    cam = GradCAM(model, "3")
    maps = cam.weighted_sum(test.images[surest] / 255, answers[surest], test.labels[surest])
    torch.testing.assert_close(torch.from_numpy(evidence["maps"]), maps)
    assert evidence["fill"] == pytest.approx((train.images / 255).double().mean(dim=(0, 2, 3)).numpy())
    assert len([key for key in evidence if key.startswith("usual_")]) >= 3
    keys = ["shown", *(key for key in evidence if key.startswith("usual_"))]
    assert all(len(evidence[key]) == min(9, len(surest)) for key in keys)
    first = evidence["shown"][0]  # turned by the contrastive map alone, if there is such a mistake
    truth = test.labels[surest].numpy()
    assert evidence["usual_answers"][0] != truth[first] or not (evidence["covered_answers"] == truth).any()
    written = np.load(tmp_path / "predictions.npz")
    usual = cam(test.images[surest[:2]] / 255, answers[surest[:2]])
    torch.testing.assert_close(torch.from_numpy(written["maps_predicted"]), usual)


def test_results_of_other_weights_and_scores_that_are_not_finite_are_refused(no_reasons, tmp_path):
    test, model = pictures(LABELS % 3, ["a", "b", "c"]), tiny(3)
    examine.examine(model, test, out=tmp_path)
    examine.examine(model, test, out=tmp_path)  # the same weights replace their own
    nn.init.constant_(model[-1].bias, 1)
    before = contents(tmp_path)
    with pytest.raises(UserError, match="of other weights"):
        examine.examine(model, test, out=tmp_path)
    answers = {"y_true": test.labels.numpy(), "logits": np.eye(3)[[1, 0, 2] * 10]}
    with pytest.raises(UserError, match="of other weights"):
        examine.examine_predictions(**answers, out=tmp_path)
    assert contents(tmp_path) == before
    examine.examine_predictions(**answers, out=tmp_path, overwrite=True)
    assert read_json(tmp_path / "metrics.json", "")["accuracy"]["value"] == 1 / 3
    examine.examine(model, test, out=tmp_path, overwrite=True)
    before = contents(tmp_path)
    test.images[7] = 255  # of which alone the scores are not finite
    model.register_forward_hook(
        lambda _, inputs, output: output / (inputs[0].amin((1, 2, 3), True) < 1)[:, 0, 0]
    )
    with pytest.raises(UserError, match="its scores of the test images are not finite"):
        examine.examine(model, test, out=tmp_path / "other")
    assert contents(tmp_path) == before


# ---- The command for a run -------------------------------------------------------------------------------


def test_the_files_of_a_run_are_those_of_report_py_to_the_byte(
    quick, no_page, finished, small, tmp_path, monkeypatch, capsys
):
    run, argv = shutil.copytree(finished, tmp_path / "run"), ["--run", str(tmp_path / "run")]
    assert report.main(["--run", str(run)]) == 0
    core = {run / name: (run / name).read_bytes() for name in ("metrics.json", "predictions.npz")}

    def written():
        return {path: path.read_bytes() for path in core}

    for path in core:
        path.unlink()
    with monkeypatch.context() as patch:  # Ctrl-C while report.py predicts
        patch.setattr(report, "predict", lambda *arguments: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            examine.main(argv)
    assert not any(path.exists() for path in core)
    assert examine.main(argv) == 0
    assert written() == core
    assert {"maps", "covering"} < both_files(run).keys()

    def fail(*some, **more):
        raise AssertionError("it predicts again")

    before = contents(run)
    with monkeypatch.context() as patch:
        for module in (report, classifier):
            patch.setattr(module, "predict", fail)
        assert examine.main(argv) == 0
        assert contents(run) == before
        assert examine.main([*argv, "--layer", "none"]) == 0
        assert not {"maps", "covering"} & both_files(run).keys()
        assert "maps" not in np.load(run / "evidence.npz") and "puzzles" in np.load(run / "evidence.npz")
        assert examine.main([*argv, "--quick"]) == 0
        assert not {"maps", "covering"} & both_files(run).keys() and not (run / "evidence.npz").exists()
    # A report without logits, as results/ has some, is made anew, and so is one of another --size or images.
    numbers, arrays = read_report(run)
    report.write_numbers(run, numbers, {key: arrays[key] for key in arrays if key != "logits"})
    assert examine.main([*argv, "--quick"]) == 0
    assert written() == core
    (run / "metrics.json").write_text(json.dumps(read_json(run / "metrics.json", "") | {"image_size": 24}))
    assert examine.main([*argv, "--quick"]) == 0
    assert written() == core
    monkeypatch.setattr(small[1], "labels", small[1].labels.flip(0))
    assert examine.main([*argv, "--quick"]) == 0
    assert written() != core
    # Images of another set, even of this name, leave the run as it is.
    before = contents(run)
    monkeypatch.chdir(tmp_path)
    assert examine.main([*argv, "--quick", "--dataset", "others"]) == 0
    assert contents(run) == before and both_files(tmp_path / "runs" / "run-on-others")["data"]["dataset"]


def test_overwrite_replaces_results_of_another_network_and_no_file_of_the_users(
    quick, no_page, finished, small, tmp_path, capsys
):
    out, mine, net = tmp_path / "out", tmp_path / "mine", tmp_path / "net.py"
    network = "nn.Sequential(nn.Flatten(), nn.Linear(3072, 100))"
    net.write_text(f"import torch\nfrom torch import nn\n\ntorch.manual_seed(0)\nmake = lambda: {network}\n")
    of_run, of_model = ["--run", str(finished), "--quick"], ["--model", f"{net}:make", "--quick"]
    assert examine.main([*of_run, "--out", str(out)]) == 0
    for argv in (of_model, of_run):
        before = contents(out)
        refused = outcome(capsys, examine.main, [*argv, "--out", str(out)])
        assert_one_line(*refused, "is of other weights.*--overwrite")
        assert contents(out) == before
        assert examine.main([*argv, "--out", str(out), "--overwrite"]) == 0
        numbers = both_files(out)
        assert (numbers["network"]["name"] == "make") == (argv is of_model) == ("training" not in numbers)
        assert numbers["data"]["command"].startswith(f"python -m lab.examine {argv[0]}")
    for path in ("plots/loss.png", "evidence.npz", "metrics.json"):
        (mine / path).parent.mkdir(parents=True)
        (mine / path).write_text("{}")
        before = contents(mine)
        for argv in (of_model, of_run):
            for more in ([], ["--overwrite"]):
                code, err = outcome(capsys, examine.main, [*argv, "--out", str(mine), *more])
                assert_one_line(code, err, re.escape(str(mine)))
                assert contents(mine) == before
        shutil.rmtree(mine)


# ---- The pages again -------------------------------------------------------------------------------------


def test_pages_are_made_again_from_the_files(quick, finished, small, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    run, again = shutil.copytree(finished, tmp_path / "runs" / "mine"), ["--run", "runs/mine", "--page"]
    stress = stress_content(small[1].labels) | {"checkpoint_sha256": "of others"}
    shares = {name: row["accuracy"]["value"] for name, row in stress["tests"].items()}
    answers = {name: torch.arange(20) < round(20 * share) for name, share in shares.items()}
    write_stress(run, stress | {"answers": answers})
    assert examine.main(["--layer", "none"]) == 0
    made = contents(run)
    assert b'"corruptions":{"true"' not in made[run / "explore.html"]
    digests = ("checkpoint_sha256", "network_sha256", "test_sha256")
    unfinished = {key: stress[key] for key in stress if key != "summary"} | {"answers": answers}
    write_stress(run, unfinished | {key: read_json(run / "reasons.json", "")[key] for key in digests})
    assert examine.main(["--page"]) == 0 and "is not finished" in capsys.readouterr().out
    write_stress(run, stress | {"answers": answers})
    shutil.rmtree(run / "failures")
    for name in ("report.html", "explore.html"):
        (run / name).unlink()
    assert examine.main(["--page"]) == 0
    assert contents(run) == made
    (run / "checkpoints" / "best.pt").unlink()  # it needs no network
    assert examine.main(again) == 0
    assert_one_line(*outcome(capsys, examine.main, [*again, "--layer=1"]), "leave out --layer")
    numbers = read_json(run / "metrics.json", "")
    written = read_json(run / "reasons.json", "")
    with monkeypatch.context() as patch:
        patch.setattr(lab_pictures, "load", lambda *some, **more: (small[1], small[0]))
        assert_one_line(*outcome(capsys, examine.main, again), "are not those of .*--data-dir")
    asked, sides = [], {"size": 24, "resize": 28}
    (run / "reasons.json").write_text(json.dumps(written | {"data": written["data"] | sides}))
    with monkeypatch.context() as patch:
        patch.setattr(lab_pictures, "load", lambda *some, **more: asked.append(some) or small)
        assert examine.main(again) == 0 and asked[0][2:] == (24, 28)
    for name, content in {"reasons": written, "metrics": numbers}.items():  # of two examinations
        (run / f"{name}.json").write_text(json.dumps(content | {"predictions_sha256": "of others"}))
        assert_one_line(*outcome(capsys, examine.main, again), "no reasons in|of another report")
        of_another_version = {key: content[key] for key in content if key not in ("runs", "classes")}
        (run / f"{name}.json").write_text(json.dumps(of_another_version))
        assert_one_line(*outcome(capsys, examine.main, again), "results of another version.* anew")
        (run / f"{name}.json").write_text(json.dumps(content))
    (run / "evidence.npz").write_bytes(b"of others")
    capsys.readouterr()
    with pytest.raises(UserError, match="no reasons"):
        examine.main(again)
    assert "evidence.npz is not that of" in capsys.readouterr().out
    assert_one_line(*outcome(capsys, examine.main, ["--out", "no", "--page"]), "there is no")


# ---- Answers without a network ---------------------------------------------------------------------------


def answers_of(labels, seed):
    """y_true and logits of ten classes, half of them right."""
    logits = torch.randn(len(labels), 10, generator=seeded(seed))
    logits[torch.arange(len(labels)), labels] += 1.5
    return {"y_true": labels.numpy(), "logits": logits.double().numpy()}


def test_answers_in_a_file_and_in_memory(quick, tmp_path, monkeypatch, capsys):
    names = [f"c{c}" for c in range(10)]
    test, train = pictures(LABELS % 10, names), pictures(LABELS % 10, names, 1)
    monkeypatch.setattr(lab_pictures, "load", lambda *some, **more: (train, test))
    answers = answers_of(test.labels, 0) | {"class_names": names, "images": test.images.numpy()}
    file, out = tmp_path / "mine.npz", tmp_path / "out"
    np.savez(file, **answers)
    argv = ["--predictions", str(file), "--out", str(out)]
    for expected, meant in (("0.95", "Did you mean 95"), ("3", "not the expected 3 %")):
        assert_one_line(*outcome(capsys, examine.main, [*argv, "--expect-accuracy", expected]), meant)
    file.rename(tmp_path / "predictions.npz")
    inside = ["--predictions", str(tmp_path / "predictions.npz"), "--out", str(tmp_path)]
    assert_one_line(*outcome(capsys, examine.main, [*inside, "--overwrite"]), "predictions.npz")
    file = (tmp_path / "predictions.npz").rename(file)
    assert_one_line(*outcome(capsys, examine.main, [*argv, "--layer", "1"]), "leave out --layer")
    assert contents(tmp_path).keys() == {file}  # nothing is written yet
    right = 100 * (answers["logits"].argmax(axis=1) == answers["y_true"]).mean()
    assert examine.main([*argv, "--expect-accuracy", str(right + 1)]) == 0
    numbers = both_files(out)
    assert numbers["data"]["dataset"] is None and "duplicates" not in numbers
    made = contents(out)
    for name in ("report.html", "explore.html"):
        (out / name).unlink()
    assert examine.main(["--out", str(out), "--page"]) == 0  # the pictures are those of the file
    assert contents(out) == made
    np.savez(file, **answers | {"images": 255 - answers["images"]})
    again = ["--out", str(out), "--page"]
    assert_one_line(*outcome(capsys, examine.main, again), "the test images are not those of .*metrics.json")
    np.savez(file, **answers)
    in_memory = examine.examine_predictions(**answers, out=tmp_path / "memory")
    same = numbers.keys() - {"examined", "data"}
    assert {key: in_memory[key] for key in same} == {key: numbers[key] for key in same}
    # With --dataset they are compared, and its training set counts the copies.
    assert examine.main([*argv, "--dataset", "mine"]) == 0
    assert both_files(out)["duplicates"]["test_images_in_train"] == 0
    np.savez(file, **answers | {"y_true": answers["y_true"][::-1]})
    assert_one_line(*outcome(capsys, examine.main, [*argv, "--dataset", "mine"]), "y_true of row 1 is 'c9'")


def test_answers_to_a_folder_whose_test_pictures_lack_a_class(tmp_path):
    for place, name in enumerate(["train/a", "train/b", "train/c", "test/a", "test/c"]):
        (tmp_path / "pets" / name).mkdir(parents=True)
        Image.new("RGB", (40, 40), (40 * place, 120, 30)).save(tmp_path / "pets" / name / "1.png")
    np.savez(tmp_path / "mine.npz", y_true=[0, 2], logits=np.eye(3)[[0, 1]], class_names=["a", "b", "c"])
    argv = ["--predictions", str(tmp_path / "mine.npz"), "--dataset", str(tmp_path / "pets")]
    subject = examine.answers_of_file(examine.parse([*argv, "--out", str(tmp_path / "out")]))
    assert subject.test.labels.tolist() == [0, 2] and subject.test.class_names == ["a", "b", "c"]

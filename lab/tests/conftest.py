"""What the tests of the laboratory share: small sets for its commands, and a run that was examined."""

import dataclasses
import shutil

import pytest
import torch
from lab_commands import TINY, use_sets
from made_up import HOSTILE_CLASS, HOSTILE_FILE, stress_content, write_run
from matplotlib.figure import Figure

import data
import metrics
import report
import train
from lab import answers as lab_answers
from lab import classifier, examine, more_metrics, reasons, results
from lab.explore import drawing, script_data
from train import read_checkpoint, write_checkpoint

NO_PLOTS = dict.fromkeys(
    ["headline_metrics", "worst_classes", "confusion_superclasses", "confusion_matrix", "reliability"],
    Figure(),
)
NO_PLOTS |= dict.fromkeys(["reliability_after_temperature", "loss", "accuracy"], Figure())
torch.set_num_threads(1)  # on a busy machine a second one makes small convolutions many times slower


@pytest.fixture(scope="session")
def small_sets():
    """(train, test) of the shapes set with three and one images of each class, made in a moment."""
    return data.make_shapes(3, seed=0), data.make_shapes(1, seed=1)


@pytest.fixture
def small(monkeypatch, small_sets):
    """Let all commands find the small sets under every name."""
    use_sets(monkeypatch, small_sets)
    return small_sets


@pytest.fixture(scope="session")
def finished(tmp_path_factory, small_sets):
    """A run of three epochs."""
    out = tmp_path_factory.mktemp("finished") / "run"
    with pytest.MonkeyPatch.context() as patch:
        use_sets(patch, small_sets)
        assert train.main([*TINY, "--dataset", "shapes", "--out", str(out)]) == 0
    return out


@pytest.fixture(scope="session")
def run_with_report(tmp_path_factory, finished, small_sets):
    """The run of three epochs with its report, which shows three mistakes."""
    out = shutil.copytree(finished, tmp_path_factory.mktemp("with report") / "run")
    with pytest.MonkeyPatch.context() as patch:
        use_sets(patch, small_sets)
        patch.setattr(report, "NUM_MISTAKES", 3)
        assert report.main(["--run", str(out)]) == 0
    return out


@pytest.fixture(scope="session")
def reported_sets(small_sets):
    """A test set of 400 images; names of a class and of two files are as an attacker would choose them."""
    test = data.make_shapes(4, seed=1)
    classes = [HOSTILE_CLASS, *test.class_names[1:]]
    files = [HOSTILE_FILE, "2" + HOSTILE_FILE, *test.filenames[2:]]
    test = dataclasses.replace(test, class_names=classes, filenames=files)
    return dataclasses.replace(small_sets[0], class_names=classes), test


@pytest.fixture(scope="session")
def reported(tmp_path_factory, finished, reported_sets):
    """A run after lab.examine, for which made-up scores are right about more than half of the images.

    It is compared with another run, right about other images, and its stress results are made up.
    """
    out = tmp_path_factory.mktemp("reported") / "run"
    shutil.copytree(finished, out)
    test = reported_sets[1]
    best = read_checkpoint(out / "checkpoints" / "best.pt")
    write_checkpoint(out / "checkpoints" / "best.pt", best | {"class_names": test.class_names})
    generator = torch.Generator().manual_seed(0)
    scores = torch.randn(400, 100, generator=generator) + 4 * torch.eye(100)[test.labels]
    scores[torch.arange(40), (test.labels[:40] + 10) % 100] += 7  # some pairs are confused often
    scores[:2] *= 3  # the pictures with hostile names are among the surest
    other = 2 * torch.randn(400, 100, generator=generator) + 4 * torch.eye(100)[test.labels]

    other_run = write_run(out.parent / "other <b>run", test, other, "of other weights")
    stress = stress_content(test.labels)
    with pytest.MonkeyPatch.context() as patch:
        use_sets(patch, reported_sets)
        patch.setattr(results, "read_stress", lambda folder, owner: stress)
        for module in (classifier, report):  # what the network makes of the images
            patch.setattr(module, "predict", lambda *some, **more: scores)
        make_quick(patch)
        assert examine.main(["--run", str(out), "--against", str(other_run)]) == 0
    return out


def make_quick(patch):
    """Few resamples, mistakes and random networks; nothing is drawn into files."""
    patch.setattr(metrics.bootstrap_headline, "__defaults__", (20,))
    patch.setattr(more_metrics.paired_headline, "__defaults__", (20,))
    patch.setattr(report, "draw_plots", lambda *arguments: NO_PLOTS)
    patch.setattr(report, "NUM_MISTAKES", 2)
    patch.setattr(reasons, "NUM_SEEDS", 1)
    for name in ("NUM_MISTAKES", "NUM_RIGHT", "NUM_RANDOMIZED", "MAX_EXAMINED"):
        patch.setattr(reasons, name, 3)


@pytest.fixture
def few_resamples(monkeypatch):
    """Twenty in place of a thousand, where no interval is looked at."""
    monkeypatch.setattr(metrics.bootstrap_headline, "__defaults__", (20,))
    monkeypatch.setattr(more_metrics.paired_headline, "__defaults__", (20,))


@pytest.fixture
def quick(monkeypatch):
    """An examination in a moment, whose pages have no plots."""
    make_quick(monkeypatch)
    monkeypatch.setattr(drawing, "to_svg", lambda *arguments: "")


@pytest.fixture
def no_page(monkeypatch):
    """Draw nothing, where a test asks for numbers only."""
    monkeypatch.setattr(report, "write_page", lambda *arguments: None)
    monkeypatch.setattr(examine, "write_explore", lambda *arguments: None)


@pytest.fixture
def left(small_sets):
    """What an examination leaves of a hundred images, 30 mistakes shown: (numbers, answers, evidence).

    All that can be known of them is there, but for the covering test.
    """
    test, generator = small_sets[1], torch.Generator().manual_seed(0)
    logits = 3 * torch.randn(100, 100, generator=generator)
    logits[torch.arange(50), test.labels[:50]] += 9
    numbers, answers = report.evaluate(logits, test, (logits[:50], test.labels[:50]))
    more, kinds = lab_answers.further_numbers(answers, test, numbers["temperature"], {})
    numbers |= more | {"runs": ["this network", "results/b"]}
    wrong = answers["mistakes"][:30]
    runs = [answers["probabilities"], logits.flip(0).softmax(dim=1)]
    evidence = script_data.answers_to_mistakes(wrong, test.labels, runs) | {"kinds": kinds[wrong]}
    evidence["fill"] = reasons.mean_colour(test)
    evidence["maps"] = torch.randn(30, 4, 4, generator=generator)
    evidence["covered_pixels"] = reasons.top_pixels(evidence["maps"], 0.25, 32)
    evidence["covered_answers"] = answers["y_pred"][wrong]
    evidence["covered_probabilities"] = torch.full((30,), 0.99)
    return numbers, answers, evidence

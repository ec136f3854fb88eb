"""What several test files share: small runs, their report and small data sets."""

import dataclasses
import shutil
import signal

import pytest
import torch
from pages import HOSTILE_CLASS, HOSTILE_FILE, NO_PLOTS, stress_content, write_predictions
from processes import TINY

import data
import evaluate
import metrics
import report
import train
from lab import classifier, reasons
from page import failures, plots, sections, write
from support.checkpoint import read_checkpoint, save_checkpoint

torch.set_num_threads(1)  # on a busy machine a second one makes small convolutions many times slower
# A shell starts background jobs with Ctrl-C ignored, and ignored it would stay in every process below.
signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def small_sets():
    """(train, test) of the shapes set with three and one images of each class, made in a moment."""
    return data.make_shapes(3, seed=0), data.make_shapes(1, seed=1)


@pytest.fixture
def small(monkeypatch, small_sets):
    """Let all commands find those small sets under every name."""
    use_sets(monkeypatch, small_sets)
    return small_sets


def use_sets(patch, sets):
    for module in (data, classifier, report):
        patch.setattr(module, "load", lambda name, root="data", *sides: sets)


def small_run(out, sets, epochs=None):
    """Train on those small sets, three epochs or until it is stopped; return the folder."""
    with pytest.MonkeyPatch.context() as patch:
        use_sets(patch, sets)
        if epochs is not None:
            patch.setattr(train, "should_stop", lambda history, config: len(history) == epochs)
        train.main([*TINY, "--dataset", "shapes", "--out", str(out)])
    return out


@pytest.fixture(scope="session")
def finished(tmp_path_factory, small_sets):
    """A run of three epochs."""
    return small_run(tmp_path_factory.mktemp("finished") / "run", small_sets)


@pytest.fixture(scope="session")
def half_done(tmp_path_factory, small_sets):
    """The same run, which was stopped after its first epoch."""
    return small_run(tmp_path_factory.mktemp("half done") / "run", small_sets, epochs=1)


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
    """A run after report.py, for which made-up scores are right about more than half of the images.

    It is compared with another run, right about other images, and its stress results are made up.
    """
    out = tmp_path_factory.mktemp("reported") / "run"
    shutil.copytree(finished, out)
    test = reported_sets[1]
    best = read_checkpoint(out / "checkpoints" / "best.pt")
    save_checkpoint(out / "checkpoints" / "best.pt", best | {"class_names": test.class_names})
    generator = torch.Generator().manual_seed(0)
    scores = torch.randn(400, 100, generator=generator) + 4 * torch.eye(100)[test.labels]
    scores[torch.arange(40), (test.labels[:40] + 10) % 100] += 7  # some pairs are confused often
    scores[:2] *= 3  # the pictures with hostile names are among the surest
    other = 2 * torch.randn(400, 100, generator=generator) + 4 * torch.eye(100)[test.labels]

    other_run = out.parent / "other <b>run"
    write_predictions(other_run, test, other.softmax(dim=1), "of other weights")
    stress = stress_content(test.labels)
    with pytest.MonkeyPatch.context() as patch:
        use_sets(patch, reported_sets)
        patch.setattr(write, "read_stress", lambda folder, whose: stress)
        patch.setattr(report, "predict", lambda *some, **more: scores)  # what the network makes of the images
        make_quick(patch)
        assert report.main(["--run", str(out), "--against", str(other_run)]) == 0
    return out


def make_quick(patch):
    """Few resamples, mistakes and random networks; nothing is drawn into files."""
    patch.setattr(metrics.bootstrap_headline, "__defaults__", (20,))
    patch.setattr(sections, "write_plots", NO_PLOTS)
    patch.setattr(plots, "save_png", lambda *found: None)
    patch.setattr(failures, "NUM_FAILURES", 2)
    patch.setattr(reasons, "NUM_SEEDS", 1)
    for name in ("NUM_MISTAKES", "NUM_RIGHT", "NUM_RANDOMIZED", "MAX_EXAMINED"):
        patch.setattr(reasons, name, 3)


@pytest.fixture
def few_resamples(monkeypatch):
    """Twenty in place of a thousand, where no interval is looked at."""
    monkeypatch.setattr(metrics.bootstrap_headline, "__defaults__", (20,))


@pytest.fixture
def quick(monkeypatch):
    """A report in a moment, whose page has no plots."""
    make_quick(monkeypatch)
    monkeypatch.setattr(plots, "to_svg", lambda *found: "")


@pytest.fixture
def no_page(monkeypatch):
    """Draw nothing, where a test asks for numbers only."""
    monkeypatch.setattr(report, "write_page", lambda *found: None)


@pytest.fixture
def left(small_sets):
    """What a report leaves of a hundred images, of which 30 mistakes are shown: (numbers, answers, evidence).

    All that can be known of them is there, but for the covering test.
    """
    test, generator = small_sets[1], torch.Generator().manual_seed(0)
    logits = 3 * torch.randn(100, 100, generator=generator)
    logits[torch.arange(50), test.labels[:50]] += 9
    numbers, answers = evaluate.evaluate(logits, test, test, (logits[:50], test.labels[:50]))
    answers["kinds"], numbers["kinds"] = reasons.kinds_of_mistakes(test.labels, logits)
    whose = {"class_names": test.class_names, "runs": ["this network", "results/b"]}
    wrong = torch.nonzero(answers["y_pred"] != test.labels).flatten()
    wrong = wrong[answers["confidence"][wrong].argsort(descending=True, stable=True)][:30]
    runs = [answers["probabilities"], logits.flip(0).softmax(dim=1)]
    evidence = report.answers_to_mistakes(wrong, test.labels, runs) | {"fill": evaluate.mean_colour(test)}
    evidence["maps"] = torch.randn(30, 4, 4, generator=generator)
    evidence["covered_pixels"] = reasons.top_pixels(evidence["maps"], 0.25, 32)
    evidence["covered_answers"] = answers["y_pred"][wrong]
    evidence["covered_probabilities"] = torch.full((30,), 0.99)
    return numbers | whose, answers | whose, evidence | whose

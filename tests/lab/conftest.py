"""What the tests of the laboratory share: small sets for its commands, and a run that was examined."""

import dataclasses
import shutil

import pytest
import torch
from lab_pages import HOSTILE_CLASS, HOSTILE_FILE, stress_content, write_run
from processes import use_sets

import data
import metrics
import report
from lab import classifier, examine, more_metrics, reasons, results
from lab.explore import script_data
from page import failures, plots, sections
from support.checkpoint import read_checkpoint, save_checkpoint


@pytest.fixture
def small(monkeypatch, small_sets):
    """Let all commands find the small sets under every name."""
    use_sets(monkeypatch, small_sets, classifier, examine)
    return small_sets


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
    save_checkpoint(out / "checkpoints" / "best.pt", best | {"class_names": test.class_names})
    generator = torch.Generator().manual_seed(0)
    scores = torch.randn(400, 100, generator=generator) + 4 * torch.eye(100)[test.labels]
    scores[torch.arange(40), (test.labels[:40] + 10) % 100] += 7  # some pairs are confused often
    scores[:2] *= 3  # the pictures with hostile names are among the surest
    other = 2 * torch.randn(400, 100, generator=generator) + 4 * torch.eye(100)[test.labels]

    other_run = write_run(out.parent / "other <b>run", test, other.softmax(dim=1), "of other weights")
    stress = stress_content(test.labels)
    with pytest.MonkeyPatch.context() as patch:
        use_sets(patch, reported_sets, classifier, examine)
        patch.setattr(results, "read_stress", lambda folder, owner: stress)
        patch.setattr(report, "predict", lambda *some, **more: scores)  # what the network makes of the images
        make_quick(patch)
        assert examine.main(["--run", str(out), "--against", str(other_run)]) == 0
    return out


def make_quick(patch):
    """Few resamples, mistakes and random networks; nothing is drawn into files."""
    patch.setattr(metrics.bootstrap_headline, "__defaults__", (20,))
    patch.setattr(more_metrics.paired_headline, "__defaults__", (20,))
    patch.setattr(sections, "write_plots", lambda *arguments: None)
    patch.setattr(plots, "save_png", lambda *arguments, **options: None)
    patch.setattr(failures, "NUM_FAILURES", 2)
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
    monkeypatch.setattr(plots, "to_svg", lambda *arguments: "")


@pytest.fixture
def no_page(monkeypatch):
    """Draw nothing, where a test asks for numbers only."""
    monkeypatch.setattr(examine, "write_page", lambda *arguments: None)
    monkeypatch.setattr(examine, "write_explore", lambda *arguments: None)


@pytest.fixture
def left(small_sets):
    """What an examination leaves of a hundred images, 30 mistakes shown: (numbers, answers, evidence).

    All that can be known of them is there, but for the covering test.
    """
    test, generator = small_sets[1], torch.Generator().manual_seed(0)
    logits = 3 * torch.randn(100, 100, generator=generator)
    logits[torch.arange(50), test.labels[:50]] += 9
    numbers, answers = report.evaluate(logits, test, test, (logits[:50], test.labels[:50]))
    more, kinds = examine.more_numbers(answers, test, numbers["temperature"], {})
    numbers |= more | {"class_names": test.class_names, "runs": ["this network", "results/b"]}
    wrong = answers["mistakes"][:30]
    runs = [answers["probabilities"], logits.flip(0).softmax(dim=1)]
    evidence = script_data.answers_to_mistakes(wrong, test.labels, runs) | {"kinds": kinds[wrong]}
    evidence["fill"] = reasons.mean_colour(test)
    evidence["maps"] = torch.randn(30, 4, 4, generator=generator)
    evidence["covered_pixels"] = reasons.top_pixels(evidence["maps"], 0.25, 32)
    evidence["covered_answers"] = answers["y_pred"][wrong]
    evidence["covered_probabilities"] = torch.full((30,), 0.99)
    return numbers, answers | {"class_names": test.class_names}, evidence

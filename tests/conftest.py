"""What several test files share: small runs, their report and small data sets."""

import shutil
import signal

import pytest
import torch
from processes import TINY, use_sets

import data
import metrics
import report
import train
from page import failures

torch.set_num_threads(1)  # on a busy machine a second one makes small convolutions many times slower
# A shell starts background jobs with Ctrl-C ignored, and ignored it would stay in every process below.
signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def small_sets():
    """(train, test) of the shapes set with three and one images of each class, made in a moment."""
    return data.make_shapes(3, seed=0), data.make_shapes(1, seed=1)


@pytest.fixture
def small(monkeypatch, small_sets):
    """Let train.py and report.py find those small sets under every name."""
    use_sets(monkeypatch, small_sets)
    return small_sets


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
def run_with_report(tmp_path_factory, finished, small_sets):
    """The run of three epochs with its report, which shows three mistakes, in a folder that had another."""
    out = shutil.copytree(finished, tmp_path_factory.mktemp("with report") / "run")
    for name in ("failures/03_apple_as_pear.png", "gradcam/20_b_as_c.png", "failures/my notes.txt"):
        (out / name).parent.mkdir(exist_ok=True)
        (out / name).write_text("of an earlier report, or not")
    with pytest.MonkeyPatch.context() as patch:
        use_sets(patch, small_sets)
        patch.setattr(report, "NUM_MAPS", 3)
        patch.setattr(failures, "NUM_FAILURES", 3)
        assert report.main(["--run", str(out)]) == 0
    return out


@pytest.fixture
def few_resamples(monkeypatch):
    """Twenty in place of a thousand, where no interval is looked at."""
    monkeypatch.setattr(metrics.bootstrap_headline, "__defaults__", (20,))

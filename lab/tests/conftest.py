"""What the tests of the laboratory share: small sets, a run on them, quick examinations."""

import lab_pages
import pytest
import torch
from matplotlib.figure import Figure
from networks import TINY, tiny_resnet

import data
import metrics
import report
import resnet_cifar
import train
from lab import page, reasons

PLOTS = ["headline_metrics", "worst_classes", "confusion_superclasses", "confusion_matrix", "reliability"]
PLOTS += ["reliability_after_temperature", "loss", "accuracy"]
torch.set_num_threads(1)  # on a busy machine a second one makes small convolutions many times slower


@pytest.fixture(scope="session")
def small_sets():
    """(train, test) of the shapes set with three and one images of each class, made in a moment."""
    return data.make_shapes(3, seed=0), data.make_shapes(1, seed=1)


def use_small_sets(patch, small_sets):
    """Let all commands find the small sets under every name, and build one residual block."""

    def load(name, root="data", size=32, splits=("train", "test"), download=True):
        return tuple(small_sets[split == "test"] for split in splits)

    patch.setattr(data, "load", load)
    patch.setattr(resnet_cifar, "build", tiny_resnet)
    patch.setattr(resnet_cifar, "LAYER", "3")


@pytest.fixture
def small(monkeypatch, small_sets):
    use_small_sets(monkeypatch, small_sets)
    return small_sets


@pytest.fixture(scope="session")
def trained(tmp_path_factory, small_sets):
    """The folder of a run of three epochs of three steps, for copies: shutil.copytree."""
    out = tmp_path_factory.mktemp("trained") / "run"
    with pytest.MonkeyPatch.context() as patch:
        use_small_sets(patch, small_sets)
        assert train.main([*TINY, "--precision=fp32", "--out", str(out)]) == 0
    return out


@pytest.fixture
def few_resamples(monkeypatch):
    """Twenty in place of a thousand, where no interval is looked at."""
    monkeypatch.setattr(metrics.bootstrap_headline, "__defaults__", (20,))


@pytest.fixture
def quick(monkeypatch, few_resamples):
    """An examination in a moment: few resamples and covered images, and no plots."""
    monkeypatch.setattr(report, "draw_plots", lambda *arguments: dict.fromkeys(PLOTS, Figure()))
    monkeypatch.setattr(report, "drawn", lambda *arguments: b"")
    monkeypatch.setattr(report, "NUM_MISTAKES", 2)
    for name in ("NUM_MISTAKES", "NUM_RIGHT", "NUM_DRAWN"):
        monkeypatch.setattr(reasons, name, 3)


@pytest.fixture
def no_pages(monkeypatch, quick):
    """As quick, and no page is drawn, where only numbers and other files are looked at."""
    monkeypatch.setattr(report, "write_page", lambda *arguments: None)
    monkeypatch.setattr(page, "write_explore", lambda *arguments: [])


@pytest.fixture(scope="session")
def made(tmp_path_factory):
    """A folder with both pages and stress tests of a small network, and what its files hold."""
    return lab_pages.make(tmp_path_factory.mktemp("made") / "run")

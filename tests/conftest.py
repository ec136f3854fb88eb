"""What several test files share: a small trained run and its report."""

import os
import signal

import pytest
import torch

HANDLERS = {kind: signal.getsignal(kind) for kind in (signal.SIGINT, signal.SIGTERM)}

torch.set_num_threads(min(2, os.cpu_count() or 1))


@pytest.fixture(scope="session")
def shapes_run(tmp_path_factory):
    """A run folder of a narrow network on the shapes set, trained for a moment."""
    import train

    out = tmp_path_factory.mktemp("runs") / "shapes"
    options = "--dataset shapes --width 8 --epochs 2 --limit-train 1200 --batch-size 32 --device cpu --precision fp32"
    assert train.train(train.settings([*options.split(), "--out", str(out)])) == 0
    return out


@pytest.fixture(scope="session")
def shapes_report(shapes_run):
    """The same folder after report.py."""
    import report

    assert report.main(["--run", str(shapes_run)]) == 0
    return shapes_run


@pytest.fixture(autouse=True)
def signal_handlers():
    """Give Ctrl-C and SIGTERM back to pytest, for train.train keeps them."""
    yield
    for kind, handler in HANDLERS.items():
        signal.signal(kind, handler)


@pytest.fixture(scope="session")
def small_sets():
    """(train, test) of the shapes set with three and one images of each class, made in a moment."""
    from data import make_shapes

    return make_shapes(3, seed=0), make_shapes(1, seed=1)


@pytest.fixture
def small(monkeypatch, small_sets):
    """Let train.py find those small sets under every name."""
    import train

    monkeypatch.setattr(train, "load", lambda name, root: small_sets)
    return small_sets

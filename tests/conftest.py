"""What several test files share: small runs, their report, small data sets, and processes of their own."""

import dataclasses
import multiprocessing
import multiprocessing.forkserver
import os
import shutil
import signal
from pathlib import Path

import pytest
import torch
from torchvision.io import write_png

torch.set_num_threads(1)  # on a busy machine a second one makes small convolutions many times slower
# A shell starts background jobs with Ctrl-C ignored, and ignored it would stay in every process below.
signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def shapes_run(tmp_path_factory):
    """A run folder of a narrow network on the shapes set, trained for a moment."""
    import train

    out = tmp_path_factory.mktemp("runs") / "shapes"
    options = "--dataset shapes --width 16 --epochs 2 --limit-train 1200 --batch-size 32 "
    options += "--device cpu --precision fp32"
    assert train.main([*options.split(), "--out", str(out)]) == 0
    return out


@pytest.fixture(scope="session")
def small_sets():
    """(train, test) of the shapes set with three and one images of each class, made in a moment."""
    from data import make_shapes

    return make_shapes(3, seed=0), make_shapes(1, seed=1)


@pytest.fixture
def small(monkeypatch, small_sets):
    """Let train.py find those small sets under every name."""
    import train

    monkeypatch.setattr(train, "load", lambda name, root, url=None: small_sets)
    return small_sets


def tiny_run(out, small_sets, last_epoch):
    """Train for three epochs on those small sets, interrupted after last_epoch; return the run folder."""
    from processes import TINY

    import data
    import train

    def batches(images, targets, batch_size, seed, epoch, cutmix_share):
        if epoch > last_epoch:
            raise KeyboardInterrupt
        return data.batches(images, targets, batch_size, seed, epoch, cutmix_share)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train, "load", lambda *args: small_sets)
        patch.setattr(train, "batches", batches)
        train.main([*TINY, "--dataset", "shapes", "--out", str(out)])
    return out


@pytest.fixture(scope="session")
def finished(tmp_path_factory, small_sets):
    """A run of three epochs on those small sets."""
    return tiny_run(tmp_path_factory.mktemp("finished") / "run", small_sets, 3)


@pytest.fixture(scope="session")
def half_done(tmp_path_factory, small_sets):
    """The same run, interrupted in its second epoch."""
    return tiny_run(tmp_path_factory.mktemp("half done") / "run", small_sets, 1)


@pytest.fixture(scope="session")
def fork_server():
    """What forks processes that have imported train.py and computed nothing."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["processes"])
    tests = Path(__file__).parent
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", os.pathsep.join([str(tests.parent), str(tests)]))
        multiprocessing.forkserver.ensure_running()
    return context


@pytest.fixture
def start(fork_server, tmp_path):
    """start(argv, ...) starts train.py in such a process; none outlives the test. See processes.child."""
    import processes

    started = []

    def start(argv, stdout=tmp_path / "log", **more):
        process = fork_server.Process(target=processes.child, args=(argv, str(stdout)), kwargs=more)
        process.start()
        started.append(process)
        return process

    yield start
    for process in started:
        process.kill()
        process.join()


@pytest.fixture(scope="session")
def tiny_cifar(tmp_path_factory):
    """Options for a CIFAR-100 of 300 training images, which a process reads in a moment."""
    from processes import TINY

    import data
    from sources.cifar100 import CLASS_NAMES

    root = tmp_path_factory.mktemp("cifar")
    generator = torch.Generator().manual_seed(0)
    for name in CLASS_NAMES:
        for split, count in (("train", 3), ("test", 2)):
            (root / split / name).mkdir(parents=True)
            for i in range(count):
                image = torch.randint(0, 256, (3, 32, 32), generator=generator, dtype=torch.uint8)
                write_png(image, str(root / split / name / f"{i}.png"))
    data.load("cifar100", root)  # leaves the cache
    return [*TINY, "--dataset", "cifar100", "--data-dir", str(root)]


@pytest.fixture(scope="session")
def reported_sets(small_sets):
    """A test set of 400 images; the names of a class and of a file are as an attacker would choose them."""
    from data import make_shapes

    test = make_shapes(4, seed=1)
    classes = [*test.class_names[:3], "<img src=x onerror=alert(1)>&", *test.class_names[4:]]
    files = ["</script><b>\"'&.png", *test.filenames[1:]]
    test = dataclasses.replace(test, class_names=classes, filenames=files)
    return small_sets[0], test


@pytest.fixture(scope="session")
def reported(tmp_path_factory, finished, reported_sets):
    """A run after report.py, for which made-up scores are right about more than half of the images.

    It is compared with a run called other, right about other images.
    """
    import report
    import train
    from running.folder import load_checkpoint, save_checkpoint

    out = tmp_path_factory.mktemp("reported") / "run"
    shutil.copytree(finished, out)
    test = reported_sets[1]
    best = load_checkpoint(out / "checkpoints" / "best.pt")
    save_checkpoint(out / "checkpoints" / "best.pt", best | {"class_names": test.class_names})
    generator = torch.Generator().manual_seed(0)
    scores = torch.randn(400, 100, generator=generator) + 4 * torch.eye(100)[test.labels]
    scores[torch.arange(40), (test.labels[:40] + 10) % 100] += 7  # some pairs are confused often
    (out.parent / "other").mkdir()
    other = 2 * torch.randn(400, 100, generator=generator) + 4 * torch.eye(100)[test.labels]
    report.write_predictions(out.parent / "other" / "predictions.npz", other, test, "another checkpoint")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train, "load", lambda *args: reported_sets)
        patch.setattr(report, "predict", lambda *args, **more: scores)
        patch.setattr(report, "NUM_FAILURES", 2)
        patch.setattr(report, "NUM_EXPLAINED", 3)
        assert report.main(["--run", str(out), "--against", str(out.parent / "other")]) == 0
    return out

"""All that a GPU computes: emulated on a device that lets no tensor of the CPU in unnoticed, and on the
devices that this machine has."""

import contextlib
import os
import shutil
from dataclasses import replace

import pytest
import torch
from other_device import other_device
from processes import TINY, assert_same_run
from torch import nn
from torchvision.io import write_png

import data
import gradcam
import metrics
import report
import stress
import train
from data import Normalize
from resnet_cifar import count_parameters_and_macs, resnet18
from running.console import Progress
from running.files import UserError
from running.folder import load_checkpoint
from stress_tests import attacks
from stress_tests.explanations import cascading_randomization

CPU = torch.device("cpu")


# ---- Emulated --------------------------------------------------------------------------------------------


@contextlib.contextmanager
def on(name, monkeypatch):
    """Compute on the other device, or on the CPU in the same layout: only then are all sums the same."""
    with monkeypatch.context() as patch:
        if name == "cpu":
            for module in (data, train):
                patch.setattr(module, "memory_format", lambda device: torch.contiguous_format)
        with other_device(patch) if name == "mps" else contextlib.nullcontext():
            yield torch.device(name)


def test_training_and_resuming_on_another_device(tmp_path, monkeypatch, small):
    for name in ("cpu", "mps"):
        options = ["--dataset=shapes", "--image-sizes=24,32", "--cutmix=0.5", f"--out={tmp_path / name}"]
        with on(name, monkeypatch):
            with monkeypatch.context() as patch:
                patch.setattr(train, "should_stop", lambda history, config: len(history) == 2)
                assert train.main([*TINY, f"--device={name}", *options]) == 0
            assert train.main(["--resume", f"--out={tmp_path / name}"]) == 0
    ours, expected = (load_checkpoint(tmp_path / name / "checkpoints" / "last.pt") for name in ("mps", "cpu"))
    assert ours["config"]["device"] == "mps" and len(ours["history"]) == 3
    for key, value in expected["model"].items():
        assert torch.equal(ours["model"][key], value), key


def computed(path, test, device):
    """All that report.py and stress.py compute on the device, as text."""
    network, _ = train.load_model(path, device)
    model, pictures = nn.Sequential(Normalize(24), network), test.images
    logits = train.predict(network, pictures, device)
    labels, results = logits.argmax(dim=1), {"tests": {"clean/0": {"correct": "1101"}}, "image_size": 24}
    numbers = [logits.tolist(), count_parameters_and_macs(network)]
    numbers += [metrics.headline(labels.to(device), logits.softmax(dim=1).to(device))]
    numbers += [report.check_explanations(model, test, labels, Progress("", 3))]
    # Unlike those of report.explain, these maps stay on the device.
    images, explain = (pictures / 255).to(device), lambda model, images, classes: images[:, 0]
    numbers += [cascading_randomization(model, images, explain, ["1.fc"])["1.fc"].tolist()]
    stress.run_sensitivity(results, path.parent / "stress.json", network, pictures, labels, torch.arange(2))
    attacked = stress.correct_of(results["tests"]["clean/0"])
    for name in attacks.ATTACKS:
        numbers.append(stress.measure_attack(model, pictures, labels, name, 1, attacked))
    return repr([*numbers, results])


def test_explanations_attacks_and_metrics_on_another_device(monkeypatch, finished, small_sets):
    monkeypatch.setattr(report, "STEPS", 4)
    monkeypatch.setattr(stress, "WAVE_ROWS", [3])
    monkeypatch.setattr(stress, "write_json", lambda *results: None)
    test, results = small_sets[1], []
    test = replace(test, images=test.images[:4], labels=test.labels[:4], masks=test.masks[:4])
    for name in ("cpu", "mps"):
        with on(name, monkeypatch) as device:
            results.append(computed(finished / "checkpoints" / "best.pt", test, device))
    assert results[0] == results[1]


def test_report_and_stress_compute_in_full_float32(monkeypatch, finished):
    def load_model(path, device):
        raise UserError(f"deterministic: {torch.backends.cudnn.deterministic}")

    monkeypatch.setattr(torch.backends.cudnn, "deterministic", False)
    for command in (report, stress):
        monkeypatch.setattr(command, "load_model", load_model)
        with pytest.raises(UserError, match="deterministic: True"):  # which is a part of full_float32
            command.main(["--run", str(finished)])


# ---- torch.compile ---------------------------------------------------------------------------------------


def test_a_compiled_training_saves_and_resumes_what_a_plain_one_does(tmp_path, monkeypatch, small, finished):
    """The backend runs the traced network as it is, so all bits are the same; the last epoch is plain."""
    graphs, compile = [], torch.compile

    def backend(graph, inputs):
        graphs.append(graph)
        return graph.forward

    monkeypatch.setattr(torch, "compile", lambda network: compile(network, backend=backend))
    given = [*TINY, "--compile", "--dataset=shapes"], ["--resume"], ["--resume", "--no-compile"]
    for epoch, options in enumerate(given, start=1):
        torch._dynamo.reset()
        before = len(graphs)
        monkeypatch.setattr(train, "should_stop", lambda history, config, epoch=epoch: len(history) == epoch)
        assert train.main([*options, f"--out={tmp_path}"]) == 0
        assert (len(graphs) > before) == (epoch < 3)
    assert_same_run(tmp_path, finished)


COMPILER = shutil.which(os.environ.get("CXX", "g++")) or shutil.which("clang++")


@pytest.mark.slow
@pytest.mark.skipif(not COMPILER, reason="torch.compile needs a C++ compiler, and this machine has none")
def test_an_epoch_compiled_for_the_processor_and_its_report(tmp_path, monkeypatch, small):
    monkeypatch.setattr(report, "NUM_FAILURES", 2)
    monkeypatch.setattr(report, "NUM_EXPLAINED", 4)
    torch._dynamo.reset()
    options = [*TINY, "--dataset=shapes", "--epochs=1", "--image-sizes=32"]
    assert train.main([*options, "--compile", f"--out={tmp_path / 'compiled'}"]) == 0
    assert train.main([*options, f"--out={tmp_path / 'plain'}"]) == 0
    best = [load_checkpoint(tmp_path / run / "checkpoints" / "best.pt") for run in ("compiled", "plain")]
    torch.testing.assert_close(best[0]["model"], best[1]["model"], rtol=0.01, atol=1e-3)
    assert report.main(["--run", str(tmp_path / "compiled")]) == 0
    assert (tmp_path / "compiled" / "report.html").exists()


# ---- The devices of this machine -------------------------------------------------------------------------


AVAILABLE = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
DEVICES = [
    pytest.param(name, marks=pytest.mark.skipif(not there, reason=f"this machine has no {name} device"))
    for name, there in AVAILABLE.items()
]


@pytest.mark.parametrize("name", DEVICES)
def test_the_gradients_of_one_step_are_those_of_the_cpu(name):
    images, labels = torch.randint(0, 256, (8, 3, 32, 32), dtype=torch.uint8), torch.arange(8)
    gradients = []
    for device in (CPU, torch.device(name)):
        torch.manual_seed(0)
        model = resnet18(10, 16).to(device, memory_format=data.memory_format(device))
        logits = model(data.to_input(images.to(device), 24))
        nn.functional.cross_entropy(logits, labels.to(device)).backward()
        gradients.append({key: parameter.grad.cpu() for key, parameter in model.named_parameters()})
    for key, gradient in gradients[0].items():
        error = (gradients[1][key] - gradient).norm() / gradient.norm().clamp(min=1e-6)
        assert error < 0.02, key  # TF32, in which CUDA trains, has 10 bits


@pytest.mark.slow
@pytest.mark.parametrize("name", DEVICES)
def test_all_commands_on_the_devices_that_are_there(name, tmp_path, monkeypatch, small):
    monkeypatch.setattr(stress, "CORRUPTION_IMAGES", 100)
    run = str(tmp_path / name)
    options = ["--dataset=shapes", f"--device={name}", "--precision=auto", f"--out={run}"]
    with monkeypatch.context() as patch:
        patch.setattr(train, "should_stop", lambda history, config: len(history) == 2)
        assert train.main([*TINY, *options]) == 0
    assert train.main(["--resume", f"--out={run}"]) == 0
    monkeypatch.setattr(train, "load", lambda *arguments: small)
    for module in (report, stress):
        monkeypatch.setattr(module, "pick_device", lambda _: torch.device(name))
    assert stress.main(["--run", run]) == 0
    assert report.main(["--run", run]) == 0
    assert (tmp_path / name / "report.html").stat().st_size > 100_000
    write_png(small[1].images[0], str(tmp_path / "picture.png"))
    gradcam.main([str(tmp_path / "picture.png"), "--run", run, "--output", str(tmp_path / "map.png")])
    assert (tmp_path / "map.png").exists()

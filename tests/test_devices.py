"""What a GPU computes: emulated on a device that lets no tensor of the CPU in, and on real ones."""

import contextlib
import shutil

import pytest
import torch
from other_device import other_device
from processes import TINY, assert_same_run
from torch import nn

import data
import metrics
import network
import report
import stress
import train
from resnet_cifar import resnet18
from running.folder import read_checkpoint
from stress_tests import attacks
from stress_tests.explanations import cascading_randomization, deletion_insertion

CPU = torch.device("cpu")


@contextlib.contextmanager
def on(name, monkeypatch):
    """Compute on the other device, or on the CPU in the same layout: only then are all sums the same."""
    with monkeypatch.context() as patch:
        if name == "cpu":
            for module in (data, train, network):
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
    ours, expected = (read_checkpoint(tmp_path / name / "checkpoints" / "last.pt") for name in ("mps", "cpu"))
    assert ours["config"]["device"] == "mps" and len(ours["history"]) == 3
    for key, value in expected["model"].items():
        assert torch.equal(ours["model"][key], value), key


def computed(path, pictures, device):
    """What report.py and stress.py compute on the device, as text."""
    examined = network.load_checkpoint(path, device)
    model, images = examined.model, (pictures / 255).to(device)
    model.image_size = 24  # so images are resized, also where an attack takes the gradient
    logits = network.predict(model, pictures, device)
    labels = logits.argmax(dim=1)
    numbers = [logits, examined.explain(pictures / 255, labels)]
    numbers += [examined.explain(pictures / 255, labels, against=labels.roll(1))]
    labels = labels.to(device)
    numbers += deletion_insertion(model, images, torch.ones(4, 32, 32), labels, torch.zeros(3), steps=2)
    parts = ["network.fc", "network.layer4"]
    numbers += cascading_randomization(model, images, examined.explain, parts)[0].values()
    for attack in attacks.ATTACKS.values():
        generator = torch.Generator().manual_seed(0)
        numbers.append(attack.function(model, images, labels, 1 / 255, generator, **attack.settings))
    headline = metrics.headline(labels, logits.softmax(dim=1).to(device))
    return repr([headline, *(number.tolist() for number in numbers)])


def test_explanations_attacks_and_metrics_on_another_device(monkeypatch, finished, small_sets):
    results = []
    for name in ("cpu", "mps"):
        with on(name, monkeypatch) as device:
            results.append(computed(finished / "checkpoints" / "best.pt", small_sets[1].images[:4], device))
    assert results[0] == results[1]


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


needs_compiler = pytest.mark.skipif(not shutil.which("g++"), reason="torch.compile needs a C++ compiler")


@pytest.mark.slow
@pytest.mark.parametrize("name", DEVICES)
@pytest.mark.parametrize("more", [[], pytest.param(["--compile"], marks=needs_compiler)])
def test_all_commands_on_the_devices_that_are_there(name, more, tmp_path, monkeypatch, small):
    run = str(tmp_path / name)
    options = ["--dataset=shapes", f"--device={name}", "--precision=auto", f"--out={run}", *more]
    torch._dynamo.reset()
    assert train.main([*TINY, *options]) == 0
    for command in (report, stress):
        monkeypatch.setattr(command, "pick_device", lambda _: torch.device(name))
        assert command.main(["--run", run]) == 0
    assert (tmp_path / name / "report.html").stat().st_size > 100_000

"""All that a GPU computes: emulated on a device that lets no tensor of the CPU in unnoticed, and on the
devices that this machine has."""

import contextlib

import pytest
import torch
from other_device import other_device
from processes import TINY
from torch import Tensor, nn
from torchvision.io import write_png

import data
import gradcam
import metrics
import report
import stress
import train
from data import MEAN, Normalize
from gradcam import GradCAM
from resnet_cifar import count_parameters_and_macs, resnet18
from running.folder import load_checkpoint
from stress_tests import attacks
from stress_tests.explanations import cascading_randomization, deletion_insertion

CPU = torch.device("cpu")


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


def computed(path, pictures, device):
    """All that report.py and stress.py compute on the device, as text."""
    network, _ = train.load_model(path, device)
    model, images = nn.Sequential(Normalize(24), network), (pictures / 255).to(device)
    logits = train.predict(network, pictures, device)
    labels = logits.argmax(dim=1)
    heatmaps = torch.rand(4, 32, 32, generator=torch.Generator().manual_seed(0))

    def explain(model, images, classes):
        with GradCAM(model, "1.layer3") as cam:
            return cam(images, classes.tolist())

    numbers = [logits, report.explain(model, images, labels), count_parameters_and_macs(network)]
    numbers += [metrics.headline(labels.to(device), logits.softmax(dim=1).to(device))]
    for mode in ("deletion", "insertion"):
        numbers += deletion_insertion(model, images, heatmaps, labels, torch.tensor(MEAN), 4, mode)
    numbers += cascading_randomization(model, images, explain, ["1.fc", "1.layer4"]).values()
    attacked = torch.tensor([True, True, False, True])
    for name in attacks.ATTACKS:
        numbers.append(stress.measure_attack(model, pictures, labels, name, 1, attacked))
    return repr([number.tolist() if isinstance(number, Tensor) else number for number in numbers])


def test_explanations_attacks_and_metrics_on_another_device(monkeypatch, finished, small_sets):
    path, pictures = finished / "checkpoints" / "best.pt", small_sets[1].images[:4]
    results = []
    for name in ("cpu", "mps"):
        with on(name, monkeypatch) as device:
            results.append(computed(path, pictures, device))
    assert results[0] == results[1]


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

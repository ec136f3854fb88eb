"""hubconf.py: the network as torch.hub loads it, from a clean clone and in a process of its own."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from test_resnet import torchvision_resnet18

import data
import hubconf
import train

ROOT = Path(train.__file__).parent
LOAD = """
import sys
sys.modules["numpy"] = sys.modules["matplotlib"] = sys.modules["torchvision"] = None  # as if not installed
import torch
model = torch.hub.load(sys.argv[1], "resnet18_cifar100", source="local", pretrained=True)
assert not any(module.training for module in model.modules())
assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
with torch.no_grad():
    torch.save({"logits": model(torch.load("inputs.pt")), "names": model.class_names}, "outputs.pt")
"""


@pytest.fixture(scope="module")
def clone(tmp_path_factory):
    """A folder with the files of this project that git knows or would add, and no others."""
    if not (ROOT / ".git").exists() or not shutil.which("git"):
        pytest.skip("this is no clone")
    folder = tmp_path_factory.mktemp("clone")
    git = ["git", "-C", str(ROOT), "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    for name in subprocess.run(git, capture_output=True, text=True, check=True).stdout.split("\0")[:-1]:
        if (ROOT / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, folder / name)
    return folder


@pytest.mark.slow
def test_loaded_from_a_clean_clone_it_gives_the_logits_of_predict(clone, tmp_path, small_sets):
    images = small_sets[1].images[:10]
    torch.save(data.to_input(images), tmp_path / "inputs.pt")
    command = [sys.executable, "-W", "ignore", "-c", LOAD, str(clone)]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found = torch.load(tmp_path / "outputs.pt")
    model, checkpoint = train.load_model(ROOT / "weights" / "resnet18_cifar100.pt", torch.device("cpu"))
    expected = train.predict(model, images, torch.device("cpu"), "fp32")
    torch.testing.assert_close(found["logits"], expected, rtol=1e-4, atol=1e-4)
    assert found["names"] == checkpoint["class_names"]


@pytest.mark.parametrize("width", [2, 64])
def test_a_fresh_network_of_any_width(width):
    torch.manual_seed(0)
    model = hubconf.resnet18_cifar100(pretrained=False, width=width)
    assert model.conv1.weight.shape == (width, 3, 3, 3) and model.training
    assert not torch.equal(model.conv1.weight, hubconf.resnet18_cifar100(False, width).conv1.weight)


def test_weights_of_another_width_are_refused():
    with pytest.raises(ValueError, match="the trained network has width 64, not 16: use pretrained=False"):
        hubconf.resnet18_cifar100(width=16)


def test_the_docstring_says_what_was_measured_and_what_goes_in():
    text = re.sub(r"\s+", " ", hubconf.resnet18_cifar100.__doc__)
    accuracy = torch.load(ROOT / "weights" / "resnet18_cifar100.pt", weights_only=True)["test_accuracy"]
    assert f"{100 * accuracy:.2f} %" in text and str(data.MEAN) in text and str(data.STD) in text


def test_torchvisions_own_network_takes_the_same_state_dict():
    ours, theirs = hubconf.resnet18_cifar100(), torchvision_resnet18()
    theirs.load_state_dict(ours.state_dict(), strict=True)
    x = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        torch.testing.assert_close(theirs.eval()(x), ours(x), rtol=1e-4, atol=1e-4)

"""hubconf.py: the network as torch.hub loads it, from a folder with no more of the project than it needs."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from test_resnet import torchvision_resnet18

import hubconf

ROOT = Path(hubconf.__file__).parent
WEIGHTS = "weights/resnet18_cifar100.pt"
IMAGES = torch.linspace(-2, 2, 2 * 3 * 32 * 32).view(2, 3, 32, 32).sin()
LOAD = """
import sys
sys.modules["numpy"] = sys.modules["matplotlib"] = sys.modules["torchvision"] = None  # as if not installed
import torch
model = torch.hub.load("hub", "resnet18_cifar100", source="local", pretrained=True)
torch.save([model(torch.load("images.pt")), model.class_names, model.training], "found.pt")
"""


@pytest.mark.slow
def test_a_process_of_its_own_gets_the_logits_of_torchvisions_network(tmp_path):
    running = [f"running/{name}.py" for name in ("errors", "files", "checkpoint")]
    for name in ("hubconf.py", "resnet_cifar.py", *running, WEIGHTS):
        (tmp_path / "hub" / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, tmp_path / "hub" / name)
    torch.save(IMAGES, tmp_path / "images.pt")
    subprocess.run([sys.executable, "-W", "ignore", "-c", LOAD], cwd=tmp_path, check=True)
    checkpoint = torch.load(ROOT / WEIGHTS, weights_only=True)
    theirs = torchvision_resnet18().eval()
    theirs.load_state_dict(checkpoint["model"], strict=True)
    logits, class_names, training = torch.load(tmp_path / "found.pt")
    torch.testing.assert_close(logits, theirs(IMAGES), rtol=1e-4, atol=1e-4)
    assert class_names == checkpoint["class_names"] and not training

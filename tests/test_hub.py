"""hubconf.py: the network as torch.hub loads it, from a folder with no more of the project than it needs."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from test_resnet import torchvision_resnet18

import hubconf
from running.errors import UserError

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


@pytest.fixture
def hub(tmp_path):
    for name in (
        "hubconf.py",
        "resnet_cifar.py",
        "running/errors.py",
        "running/files.py",
        "running/checkpoint.py",
        WEIGHTS,
    ):
        (tmp_path / "hub" / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, tmp_path / "hub" / name)
    return tmp_path / "hub"


@pytest.mark.slow
def test_a_process_of_its_own_gets_the_logits_of_torchvisions_network(hub):
    torch.save(IMAGES, hub.parent / "images.pt")
    subprocess.run([sys.executable, "-W", "ignore", "-c", LOAD], cwd=hub.parent, check=True)
    checkpoint = torch.load(ROOT / WEIGHTS, weights_only=True)
    theirs = torchvision_resnet18().eval()
    theirs.load_state_dict(checkpoint["model"], strict=True)
    logits, class_names, training = torch.load(hub.parent / "found.pt")
    torch.testing.assert_close(logits, theirs(IMAGES), rtol=1e-4, atol=1e-4)
    assert class_names == checkpoint["class_names"] and not training


def test_weights_with_a_flipped_bit_are_refused(hub):
    content = bytearray((hub / WEIGHTS).read_bytes())
    content[len(content) // 2] ^= 1
    (hub / WEIGHTS).write_bytes(content)
    with pytest.raises(UserError, match="checksum"):
        torch.hub.load(str(hub), "resnet18_cifar100", source="local")

"""README.md: every block of Python runs as it stands, in a clean process with only the files it names."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torchvision.io import decode_image, write_jpeg

ROOT = Path(__file__).parent.parent
BLOCKS = re.findall(
    r"^```python\n(.*?)^```$", (ROOT / "README.md").read_text(), flags=re.DOTALL | re.MULTILINE
)

# What a block may use of the project: gradcam.py, metrics.py and stress_tests/ stand alone.
NEEDED = {
    "gradcam": ["gradcam.py"],
    "metrics": ["metrics.py"],
    "stress_tests": ["stress_tests"],
    "data": ["data.py", "sources", "running"],
    "torch.hub": ["hubconf.py", "resnet_cifar.py", "weights"],
}


def used(block):
    """Return the keys of NEEDED that the block imports or calls."""
    return [
        name for name in NEEDED if re.search(rf"^from {name}[ .]|= {name}\.load\(", block, flags=re.MULTILINE)
    ]


def test_each_part_has_one_block():
    assert sorted(name for block in BLOCKS for name in used(block)) == sorted(NEEDED)


CASES = [
    pytest.param(block, id=used(block)[0], marks=[] if used(block) == ["metrics"] else pytest.mark.slow)
    for block in BLOCKS
]


@pytest.mark.parametrize("block", CASES)
def test_a_block_runs_as_it_stands(block, tmp_path):
    for name in NEEDED[used(block)[0]]:
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
        copy(ROOT / name, tmp_path / name)
    generator = torch.Generator().manual_seed(0)
    picture = torch.randint(0, 256, (3, 60, 80), generator=generator, dtype=torch.uint8)
    write_jpeg(picture, str(tmp_path / "photo.jpg"))
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(
        [sys.executable, "-c", block], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    if "gradcam" in used(block):
        assert decode_image(str(tmp_path / "photo_explained.png")).shape == (3, 224, 224)
    if "metrics" in used(block):
        # Class 0: precision 1, recall 1/2; class 1: 1/2 and 1; class 2: 1 and 1.
        assert [round(float(value), 4) for value in done.stdout.split()] == [0.8, 0.8333, 0.8333, 0.7778]

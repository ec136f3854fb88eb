"""README.md and docs/: every block of Python runs as it stands, with only the files that it names."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torchvision.io import decode_image, write_jpeg

ROOT = Path(__file__).parent.parent
TEXTS = {path.name: path.read_text() for path in (ROOT / "README.md", *sorted(ROOT.glob("docs/*.md")))}

# What a block needs of the project where it says so: gradcam.py, metrics.py and stress_tests/ stand alone.
NEEDED = {
    "from gradcam import": ["gradcam.py"],
    "from metrics import": ["metrics.py"],
    "from stress_tests.": ["stress_tests"],
    "from data import": ["data.py", "sources", "running"],
    "torch.hub.load(": ["hubconf.py", "resnet_cifar.py", "weights"],
    '"results/failures"': ["results/failures"],
}
BLOCKS = [
    pytest.param(block, id=name, marks=[] if "from metrics import" in block else pytest.mark.slow)
    for name, text in TEXTS.items()
    for block in re.findall(r"^```python\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)
]


def test_each_part_has_a_block():
    assert all(any(phrase in block for (block,), *_ in BLOCKS) for phrase in NEEDED)


def test_readme_has_two_commands_and_is_read_to_the_end():
    assert TEXTS["README.md"].count("```bash\n") == 2  # .ci/run runs them
    assert len(TEXTS["README.md"].encode()) <= 12_000


def test_readme_counts_the_lines_of_what_is_read_first():
    rows = re.findall(r"^\| `(\w+\.py)` \| (\d+) \|", TEXTS["README.md"], re.MULTILINE)
    assert len(rows) == 7
    assert {name: len((ROOT / name).read_text().splitlines()) for name, _ in rows} == {
        name: int(count) for name, count in rows
    }


def test_the_stated_accuracies_are_those_of_the_predictions():
    right = []
    for folder in ("results", "results/seed1", "results/seed2"):
        with np.load(ROOT / folder / "predictions.npz") as file:
            right.append(file["probabilities"].argmax(axis=1) == file["y_true"])
        accuracy = right[-1].mean()
        assert json.loads((ROOT / folder / "metrics.json").read_text())["accuracy"]["value"] == accuracy
        assert f"| 40,000 | {100 * accuracy:.2f} % (" in TEXTS["README.md"]
    by_seed, by_image = np.mean(right, axis=1), np.sum(right, axis=0)
    text = " ".join(TEXTS["README.md"].split())
    assert f"mean of the three seeds is {100 * by_seed.mean():.1f} %" in text
    assert f"standard deviation of {100 * by_seed.std(ddof=1):.2f} points" in text
    for number in (by_image == 3).sum(), ((by_image == 1) | (by_image == 2)).sum(), (by_image == 0).sum():
        assert f" {number:,} " in text


@pytest.mark.parametrize("name", TEXTS)
def test_links_to_files_lead_somewhere(name):
    folder = ROOT if name == "README.md" else ROOT / "docs"
    links = re.findall(r"\]\(([\w./-]+)[)#]", TEXTS[name])
    assert [link for link in links if not (folder / link).exists()] == []


@pytest.mark.parametrize("block", BLOCKS)
def test_a_block_runs_as_it_stands(block, tmp_path):
    for name in [name for phrase, names in NEEDED.items() if phrase in block for name in names]:
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
    if "photo_explained.png" in block:
        assert decode_image(str(tmp_path / "photo_explained.png")).shape == (3, 224, 224)
    if "from metrics import" in block:
        # Class 0: precision 1, recall 1/2; class 1: 1/2 and 1; class 2: 1 and 1.
        assert [round(float(value), 4) for value in done.stdout.split()] == [0.8, 0.8333, 0.8333, 0.7778]

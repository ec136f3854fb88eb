"""explain.py: classes, probabilities and maps of one picture, against the network and GradCAM by hand."""

from pathlib import Path

import numpy as np
import pytest
import torch
from lab_networks import small_cnn
from matplotlib.image import imread
from PIL import Image

import data
from gradcam import GradCAM
from lab import explain, network

NET = """
import numpy as np
import torch
from torch import nn

def make():
    torch.manual_seed(0)
    head = nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 3)
    network = nn.Sequential(nn.Conv2d(3, 8, 3, 2), nn.ReLU(), *head)
    network.class_names = ["cat", "red_fox", "bird"]
    return network

def deep():
    network = make()
    network.transform = middle
    return network

def middle(picture):
    return torch.from_numpy(np.array(picture)[:32, :32] / 65535).expand(3, -1, -1)
"""


@pytest.fixture
def project(tmp_path, monkeypatch):
    """A folder with net.py, a picture of 8 bits, and one of 16 bits, to work in."""
    monkeypatch.chdir(tmp_path)
    Path("net.py").write_text(NET)
    generator = np.random.default_rng(0)
    Image.fromarray(generator.integers(0, 256, (50, 40, 3), dtype=np.uint8)).save("photo.png")
    Image.fromarray(generator.integers(0, 65536, (40, 40), dtype=np.uint16)).save("deep.png")
    return tmp_path


def run(*argv):
    return explain.main([str(part) for part in (*argv, "--device", "cpu")])


def test_explain_from_python_by_hand(project):
    model, image = small_cnn(), data.read_picture("photo.png", 32)
    model.class_names = ["cat", "red_fox", "bird"]
    result = explain.explain(model, image)
    shares = model(image[None] / 255)[0].softmax(dim=0)
    order = shares.argsort(descending=True)
    assert result["classes"] == [model.class_names[c] for c in order]
    assert result["probabilities"] == pytest.approx(shares[order].tolist(), rel=1e-5)
    layer = network.from_module(model).layer
    expected = GradCAM(model, layer)(image.expand(2, -1, -1, -1) / 255, order[:2])
    torch.testing.assert_close(result["maps"], expected)
    against = explain.explain(model, image / 255, contrast=result["classes"][2].upper().replace("_", " "))
    pair = order[[0, 2]]
    expected = GradCAM(model, layer)(image.expand(2, -1, -1, -1) / 255, pair, pair.flip(0))
    torch.testing.assert_close(against["maps"], expected)
    names = [model.class_names[c] for c in pair]
    assert against["roles"] == [f"{names[0]}, rather than {names[1]}", f"{names[1]}, rather than {names[0]}"]
    assert len(against["figure"].axes) == 5  # four panels and the scale


def test_command_prints_classes_and_writes_a_figure(project, capsys):
    assert run("photo.png", "--model", "net.py:make") == 0
    lines = capsys.readouterr().out.splitlines()
    loaded = network.load_model("net.py:make")
    shares = loaded.model(data.read_picture("photo.png", 32)[None] / 255)[0].softmax(dim=0)
    printed = {line.split()[0]: float(line.split()[1]) for line in lines[1:4]}
    for name, share in zip(loaded.class_names, shares.tolist(), strict=True):
        assert printed[name] == pytest.approx(100 * share, abs=0.051)
    assert imread("photo_gradcam.png").shape[1] > 3 * imread("photo_gradcam.png").shape[0]


def test_pictures_of_16_bits_by_the_transform_of_the_network(project, capsys):
    with pytest.raises(SystemExit):
        run("deep.png", "--model", "net.py:make")
    assert "more than 8 bits" in capsys.readouterr().err
    assert run("deep.png", "--model", "net.py:deep", "--out", "map.png") == 0
    assert Path("map.png").is_file()


@pytest.mark.parametrize(
    ("argv", "text"),
    [
        (["photo.png", "--contrast", "dog"], "dog is none of the classes, which are cat, red_fox, bird"),
        (["photo.png", "--out", "photo.png"], "photo.png is there, or is no .png file"),
        (["photo.png", "--contrast", "ANSWER"], "is the answer itself"),
    ],
)
def test_what_cannot_be_explained_is_refused(project, capsys, argv, text):
    if argv[-1] == "ANSWER":
        run("photo.png", "--model", "net.py:make", "--out", "first.png")
        argv = [*argv[:-1], capsys.readouterr().out.splitlines()[1].split()[0]]
    before = sorted(project.iterdir())
    with pytest.raises(SystemExit) as ended:
        run(*argv, "--model", "net.py:make")
    assert ended.value.code == 2 and text in capsys.readouterr().err
    assert sorted(path for path in project.iterdir() if path.name != "__pycache__") == before

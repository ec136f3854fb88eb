"""explain.py: a picture of one's own, against Pillow, NumPy and the network itself."""

import csv
from pathlib import Path

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from PIL import Image

from data import MEAN, STD
from gradcam import GradCAM, overlay, to_heatmap
from lab import explain, options
from lab.explain import main
from lab.support import UserError
from resnet_cifar import resnet18

OWN = ["--model", "net.py:net", "--classes", "names.txt"]
NETWORK = """
import torch
from torch import nn
from torchvision.transforms.functional import to_tensor

def net():
    torch.manual_seed(0)
    head = nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 3)
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), *head)

def squash(picture):
    return to_tensor(picture.resize((32, 32)))  # by Pillow's default, which is bicubic
"""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """The current folder: two pictures of one name, a small network and the names of its classes."""
    monkeypatch.chdir(tmp_path)
    generator = np.random.default_rng(0)
    small = Image.fromarray(generator.integers(0, 256, (7, 9, 3), dtype=np.uint8))
    noise = Image.fromarray(generator.integers(0, 256, (300, 500, 3), dtype=np.uint8))  # shows antialiasing
    photo = Image.blend(small.resize((500, 300), Image.Resampling.BICUBIC), noise, 0.5)
    for name in ("a", "b"):
        Path(name).mkdir()
        photo.save(f"{name}/my cat.png")
    Path("net.py").write_text(NETWORK)
    Path("names.txt").write_text("ant\n$bee$\na long name\n")
    Path("text.png").write_text("not a picture")
    return tmp_path


@pytest.fixture
def drawn(monkeypatch):
    """The arguments of each call of draw, which draws nothing."""
    calls = []
    monkeypatch.setattr(explain, "draw", lambda *arguments: calls.append(arguments) or Figure())
    return calls


def test_command(folder, drawn, capsys):
    main(["a/my cat.png"])
    lines = capsys.readouterr().out.splitlines()
    # The same with Pillow, NumPy and the network itself.
    checkpoint = torch.load(options.SHIPPED)
    network = resnet18()
    network.load_state_dict(checkpoint["model"])
    network.float().eval()
    picture = Image.open("a/my cat.png").crop((100, 0, 400, 300))
    pixels = (np.asarray(picture.resize((32, 32), Image.Resampling.BILINEAR)) / 255 - MEAN) / STD
    x = torch.from_numpy(pixels).permute(2, 0, 1)[None].float()
    probabilities = network(x)[0].softmax(dim=0)
    likely = probabilities.topk(5).indices
    assert lines[0].split() == ["class", "probability"] and lines[-1] == "wrote my cat_gradcam.png"
    for line, c in zip(lines[1:6], likely, strict=True):
        name, percentage, sign = line.split()
        assert name == checkpoint["class_names"][c] and sign == "%"
        assert abs(float(percentage) - 100 * probabilities[c]) < 0.5  # Pillow may round a pixel differently
    # Another picture of this name does not overwrite the first; the contrastive maps are those of its title.
    other = checkpoint["class_names"][likely[1]]
    main(["b/my cat.png", "--contrast", other.replace("_", " ").upper()])  # as the page writes it
    written = {path.name for path in Path().glob("*_gradcam*")}
    assert written == {"my cat_gradcam.png", "my cat_gradcam_2.png"}
    c, d = likely[:2].tolist()
    for (panels, label), pairs in zip(drawn, [[(c, None), (d, None)], [(c, d), (d, c)]], strict=True):
        assert label == "Grad-CAM at layer4"
        for (title, shown), (explained, against) in zip(panels[2:], pairs, strict=True):
            heatmap = to_heatmap(GradCAM(network, "layer4")(x, explained, against), 300)
            assert checkpoint["class_names"][explained] in title
            if against is not None:
                assert title.endswith(f"rather than {checkpoint['class_names'][against]}")
            assert title.startswith("evidence" if heatmap.any() else "no evidence")
            square = torch.tensor(np.asarray(picture)).permute(2, 0, 1)[None] / 255
            difference = shown.int() - overlay(square, heatmap)[0].int()
            assert difference.abs().float().mean() < 4


def test_command_with_a_network_of_ones_own(folder, capsys):
    options = [*OWN, "--out"]
    main(["a/my cat.png", *options, "out/one.PNG"])
    assert Path("out/one.PNG").read_bytes().startswith(b"\x89PNG")
    printed = capsys.readouterr().out
    assert "$bee$" in printed and "Grad-CAM at 1," in printed
    main(["a/my cat.png", *options, "out/two.png", "--layer", "none"])
    assert len(capsys.readouterr().out.splitlines()) == 5 and not Path("out/two.png").exists()


def test_a_transform_brings_the_picture_to_the_network(folder, drawn):
    main(["a/my cat.png", *OWN, "--transform", "squash"])
    ((panels, _),) = drawn
    expected = Image.open("a/my cat.png").resize((32, 32), Image.Resampling.BICUBIC)
    assert panels[0][0] == "network input\n32 pixels"
    assert np.array_equal(panels[0][1].permute(1, 2, 0), expected)
    assert [shown.shape for _, shown in panels] == 3 * [(3, 32, 32)]


def test_a_picture_of_a_report_gets_the_confidence_of_the_report(
    run_with_report, tmp_path, monkeypatch, capsys
):
    """Its 32 pixels are 256 in failures/."""
    monkeypatch.chdir(tmp_path)
    with open(run_with_report / "failures" / "failures.csv", newline="", encoding="utf-8") as file:
        row = next(csv.DictReader(file))
    for more in ([], ["--size", "48"]):
        assert (
            main([str(run_with_report / "failures" / row["picture"]), "--run", str(run_with_report), *more])
            == 0
        )
        first = capsys.readouterr().out.splitlines()[1]
        expected = f"{row['predicted_class']}  {100 * float(row['probability_predicted']):.1f} %"
        assert (first.split() == expected.split()) == (not more)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["text.png"], "text.png cannot be used as a picture"),
        (["a/my cat.png", "--out", "b/../a/my cat.png"], "expected a .png file that is not there yet"),
        (["a/my cat.png", *OWN, "--transform", "net"], "net.py:net cannot be used as a --transform of the"),
        (["a/my cat.png", *OWN, "--contrast", "a long nme"], "none of the 3 classes: .* a long name"),
    ],
)
def test_command_refuses(folder, arguments, message):
    before = Path("a/my cat.png").read_bytes()
    with pytest.raises(UserError, match=message) as error:
        main(arguments)
    assert "\n" not in str(error.value)
    assert not list(Path().glob("*_gradcam*.png"))
    assert Path("a/my cat.png").read_bytes() == before


def test_the_answer_itself_is_no_contrast_and_a_blank_picture_is_noted(folder, drawn, capsys):
    Image.new("RGB", (40, 40), (90, 120, 30)).save("blank.png")
    main(["blank.png", *OWN])
    written = capsys.readouterr().out
    assert "note     the picture is of one colour" in written
    answer = written.splitlines()[1].split("  ")[0]
    with pytest.raises(UserError, match="is the answer itself"):
        main(["blank.png", *OWN, "--contrast", answer])
    main(["a/my cat.png", *OWN])
    assert "note" not in capsys.readouterr().out

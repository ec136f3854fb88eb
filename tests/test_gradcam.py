"""Grad-CAM against closed forms, slow loops and finite differences, and all that a call must leave alone."""

import copy
import itertools
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image  # a dependency of torchvision and of matplotlib
from torch import nn

import gradcam
from data import MEAN, STD, to_input
from gradcam import GradCAM, draw, main, overlay, read_square, to_heatmap
from resnet_cifar import resnet18
from running.files import UserError


def test_closed_form_of_a_network_with_one_convolution():
    """A network so small that every number of equations (1) and (2) can be written down."""
    convolution = nn.Conv2d(3, 2, kernel_size=1, bias=False)
    convolution.weight.data = torch.tensor([[1.0, 0, 0], [0, 1, 0]])[:, :, None, None]
    classifier = nn.Linear(2, 2)
    classifier.weight.data = torch.tensor([[1.0, -1], [-1, 2]])
    model = nn.Sequential(convolution, nn.AdaptiveAvgPool2d(1), nn.Flatten(), classifier)
    # The convolution copies the red and the green channel: A^1 = red, A^2 = green. Blue is ignored.
    red, green, blue = [[4.0, 0], [8, 0]], [[0.0, 4], [4, 0]], [[9.0, 9], [9, 9]]
    image = torch.tensor([[red, green, blue]])
    # y^0 = mean(A^1) - mean(A^2), so dy^0 / dA^1_ij = 1/4 and dy^0 / dA^2_ij = -1/4 for each of the 4 pixels,
    # the weights (1) are alpha_1^0 = 1/4 and alpha_2^0 = -1/4, and the map (2) is ReLU((A^1 - A^2) / 4).
    # y^1 = 2 mean(A^2) - mean(A^1) in the same way gives ReLU((2 A^2 - A^1) / 4).
    with GradCAM(model, "0") as cam:
        assert cam(image, 0).tolist() == [[[1, 0], [1, 0]]]
        assert cam(image, 1).tolist() == [[[0, 2], [0, 0]]]
    # Scaled by its own maximum, each of them is a heatmap.
    assert to_heatmap(torch.tensor([[[0.0, 2], [0, 0]]]), 2).tolist() == [[[0, 1], [0, 0]]]


def make_model(num_classes=6):
    """A small network whose batch norms, as after training, are not the identity. In eval mode."""
    torch.manual_seed(0)
    model = resnet18(num_classes, width=4)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, std=0.3)
            nn.init.normal_(module.running_mean, std=0.3)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
    return model.eval()


@pytest.fixture
def model():
    return make_model()


@pytest.fixture
def images():
    return torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(1))


def compute(model, layer, images, classes=None):
    with GradCAM(model, layer) as cam:
        return cam(images, classes)


def run_stages(model, x, first, last):
    """Run parts `first` to `last` of the network, written here a second time and without in-place ReLU."""

    def run_block(block, x):
        shortcut = x if block.downsample is None else block.downsample(x)
        return F.relu(block.bn2(block.conv2(F.relu(block.bn1(block.conv1(x))))) + shortcut)

    parts = [lambda x: F.relu(model.bn1(model.conv1(x)))]
    for stage in (model.layer1, model.layer2, model.layer3, model.layer4):
        parts.append(lambda x, stage=stage: run_block(stage[1], run_block(stage[0], x)))
    parts.append(lambda x: model.fc(x.mean(dim=(2, 3))))
    for part in parts[first : last + 1]:
        x = part(x)
    return x


def slow_map(activation, gradient):
    """Equations (1) and (2) of the paper for one image, one multiplication at a time."""
    channels, height, width = activation.shape
    result = torch.zeros(height, width)
    for i, j in itertools.product(range(height), range(width)):
        total = 0.0
        for k in range(channels):
            alpha = sum(gradient[k].flatten().tolist()) / (height * width)
            total += alpha * activation[k, i, j].item()
        result[i, j] = max(total, 0.0)
    return result


# The maps themselves


def test_layer4_is_the_class_activation_map(model, images):
    """CAM (Zhou et al. 2016): the classifier's weights on every pixel. Its sum is the score less the bias."""
    activation = run_stages(model, images, 0, 4)
    cam = torch.einsum("ck,nkhw->cnhw", model.fc.weight / 16, activation).detach()  # [C, N, 4, 4]
    maps = torch.stack([compute(model, "layer4", images, c) for c in range(6)])
    assert maps.shape == (6, 3, 4, 4) and 0.1 < (cam > 0).float().mean() < 0.9
    torch.testing.assert_close(maps, F.relu(cam))
    scores = (model(images) - model.fc.bias).T.detach()
    torch.testing.assert_close(cam.sum(dim=(2, 3)), scores, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("layer", "stage", "side"), [("layer2", 2, 16), ("layer3", 3, 8)])
def test_slow_loop_over_an_independent_network(model, images, layer, stage, side):
    activation = run_stages(model, images[:1], 0, stage).detach()
    jacobian = torch.autograd.functional.jacobian(lambda a: run_stages(model, a, stage + 1, 5)[0], activation)
    maps = torch.cat([compute(model, layer, images[:1], c) for c in range(6)])
    expected = torch.stack([slow_map(activation[0], jacobian[c, 0]) for c in range(6)])
    assert maps.shape == (6, side, side) and 0.1 < (expected > 0).float().mean() < 0.9
    torch.testing.assert_close(maps, expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("layer", ["layer3", "layer3.1.conv2", "layer3.0.bn1"])
def test_alpha_against_finite_differences(images, layer):
    # Behind bn1 a ReLU works in place.
    # Adding eps to every pixel of channel k changes y^c by eps sum_ij dy^c / dA^k_ij = eps Z alpha_k^c.
    model, images = make_model().double(), images[:1].double()
    seen, eps = [], 1e-6

    def logits(k, shift):
        def add(module, inputs, output):
            seen.append(output[0])
            return output + shift * (torch.arange(output.shape[1]) == k)[:, None, None]

        with model.get_submodule(layer).register_forward_hook(add), torch.no_grad():
            return model(images)[0]

    logits(0, 0.0)
    activation = seen[0]
    channels, height, width = activation.shape
    differences = torch.stack([(logits(k, eps) - logits(k, -eps)) / (2 * eps) for k in range(channels)])
    alpha = differences / (height * width)  # [K, C]
    expected = torch.einsum("kc,khw->chw", alpha, activation).clamp_min(0)
    assert 0.1 < (expected > 0).double().mean() < 0.9
    maps = torch.cat([compute(model, layer, images, c) for c in range(6)])
    torch.testing.assert_close(maps, expected.float(), rtol=1e-4, atol=1e-7)


def test_classes_in_every_form(model, images):
    predicted = model(images).argmax(dim=1)
    alone = [compute(model, "layer3", images[i : i + 1], int(c)) for i, c in enumerate(predicted)]
    for classes in (None, predicted, predicted.tolist()):
        maps = compute(model, "layer3", images, classes)
        torch.testing.assert_close(maps, torch.cat(alone), rtol=1e-4, atol=1e-6)
    two = compute(model, "layer3", images, torch.tensor(2))
    assert torch.equal(two, compute(model, "layer3", images, [2, 2, 2])) and not torch.allclose(two, maps)


def test_layer_given_as_module_and_other_image_sizes(model, images):
    by_name = compute(model, "layer3.1.conv2", images)
    assert torch.equal(compute(model, model.layer3[1].conv2, images), by_name)
    assert compute(model, "layer3", torch.randn(2, 3, 40, 24)).shape == (2, 10, 6)
    assert compute(model, "layer3", torch.randn(0, 3, 32, 32)).shape == (0, 8, 8)


# What a call must survive and what it must leave alone


def snapshot(model):
    """Everything of a model that a call could change."""
    return {
        "modes": [module.training for module in model.modules()],
        "hooks": [
            len(hooks)
            for module in model.modules()
            for hooks in (module._forward_hooks, module._forward_pre_hooks, module._backward_hooks)
        ],
        "requires_grad": [p.requires_grad for p in model.parameters()],
        "grad": [None if p.grad is None else p.grad.tolist() for p in model.parameters()],
        "values": [(name, value.tolist()) for name, value in model.state_dict().items()],
        "grad_mode": (torch.is_grad_enabled(), torch.is_inference_mode_enabled()),
    }


def mixed_modes(model):
    model.train()
    model.layer2.eval()
    model.layer4[1].bn1.eval()
    return model


def test_leaves_no_trace(model, images):
    expected = compute(model, "layer3", images)
    for prepare in (nn.Module.eval, mixed_modes, lambda model: model.requires_grad_(False)):
        subject = prepare(copy.deepcopy(model))
        before = snapshot(subject)
        torch.testing.assert_close(compute(subject, "layer3", images), expected)
        assert snapshot(subject) == before


def test_keeps_gradients_that_were_there(model, images):
    images.requires_grad_()
    (model(images).sum() + (images**2).sum()).backward()
    before, image_grad = snapshot(model), images.grad.clone()
    maps = compute(model, "layer3", images)
    assert snapshot(model) == before and torch.equal(images.grad, image_grad)
    assert not maps.requires_grad and maps.grad_fn is None


def test_leaves_no_trace_when_it_raises(model, images):
    model = mixed_modes(model)
    failing = copy.deepcopy(model)
    failing.layer4.forward = lambda x: 1 / 0
    cases = [
        (model, "layer3", {"classes": 6}, ValueError),
        (model, "fc", {}, ValueError),  # output [N, C]
        (model, "layer3.0.relu", {}, ValueError),  # runs twice
        (failing, "layer3", {}, ZeroDivisionError),
    ]
    for subject, layer, arguments, error in cases:
        before = snapshot(subject)
        with pytest.raises(error), GradCAM(subject, layer) as cam:
            cam(images, **arguments)
        assert snapshot(subject) == before


def test_only_inside_a_with_block(model, images):
    cam = GradCAM(model, "layer3")
    with pytest.raises(RuntimeError, match="with block"):
        cam(images)
    with cam:
        expected = cam(images)
    with cam:  # a second block is fine
        assert torch.equal(cam(images), expected)


def test_repeated_calls_and_other_passes_in_the_block(model, images):
    with GradCAM(model, "layer3") as cam, GradCAM(model, "layer2") as other:
        first = cam(images)
        assert other(images).shape == (3, 16, 16)
        # A training step in between has all its gradients: the hook does not cut the graph of others.
        model(images).sum().backward()
        assert model.conv1.weight.grad.abs().sum() > 0
        assert torch.equal(cam(images), first)
        assert cam(images[:2]).shape == (2, 8, 8)


def test_under_no_grad_and_inference_mode(model, images):
    expected = compute(model, "layer3", images, [2, 2, 0])
    for context in (torch.no_grad, torch.inference_mode):
        with context():
            classes = torch.tensor([2, 2, 0])
            maps = compute(model, "layer3", images * 1.0, classes)
            assert not torch.is_grad_enabled()
        assert torch.equal(maps, expected) and not maps.is_inference()


def test_under_autocast_and_images_of_any_float_dtype(model, images):
    expected = compute(model, "layer3", images)
    with torch.autocast("cpu", torch.bfloat16):
        model(images)  # fills autocast's cache of bfloat16 weights
        maps = compute(model, "layer3", images)
        assert torch.is_autocast_enabled("cpu")
    assert maps.dtype == torch.float32 and torch.equal(maps, expected)
    assert torch.equal(compute(model, "layer3", images.double()), expected)
    rounded = compute(model, "layer3", images.bfloat16().float())
    assert torch.equal(compute(model, "layer3", images.bfloat16()), rounded)
    maps = compute(model.double(), "layer3", images)
    assert maps.dtype == torch.float32
    torch.testing.assert_close(maps, expected, rtol=1e-4, atol=1e-6)


# Heatmaps and overlays


@pytest.mark.parametrize("size", [32, (20, 33)])
def test_heatmap_against_pillow(size):
    maps = torch.rand(2, 8, 5) * torch.tensor([1e-4, 70.0])[:, None, None] + 0.1
    heatmaps = to_heatmap(maps, size)
    height, width = (size, size) if isinstance(size, int) else size
    assert heatmaps.shape == (2, height, width) and heatmaps.dtype == torch.float32
    for heatmap, values in zip(heatmaps, maps, strict=True):
        enlarged = Image.fromarray(values.numpy()).resize((width, height), Image.Resampling.BILINEAR)
        expected = torch.tensor(np.array(enlarged))
        torch.testing.assert_close(heatmap, expected / expected.max(), rtol=1e-4, atol=1e-5)


def test_heatmap_does_not_hide_what_the_map_says():
    flat = torch.full((1, 4, 4), 3.0)
    maps = torch.cat([torch.zeros(1, 4, 4), flat, torch.full((1, 4, 4), 1e-30), flat])
    maps[3, 0, 0] = 6.0
    heatmaps = to_heatmap(maps.double(), 8)
    assert heatmaps.dtype == torch.float32
    assert (heatmaps[0] == 0).all()  # empty stays empty
    assert (heatmaps[1:3] == 1).all()  # no min-max scaling
    assert heatmaps[3, 0, 0] == 1 and heatmaps[3, 7, 7] == 0.5


def test_overlay_against_a_loop():
    import matplotlib

    images, heatmaps = torch.rand(2, 3, 4, 5), torch.rand(2, 4, 5)
    heatmaps[0, 0, :2] = torch.tensor([0.0, 1.0])
    result = overlay(images, heatmaps)
    assert result.dtype == torch.uint8 and result.shape == images.shape
    for n, i, j in itertools.product(range(2), range(4), range(5)):
        red, green, blue = images[n, :, i, j].tolist()
        dark = 0.35 * (0.2126 * red + 0.7152 * green + 0.0722 * blue)
        for channel in range(3):
            colour = matplotlib.colormaps["inferno"](heatmaps[n, i, j].item())[channel]
            expected = 1 - (1 - dark) * (1 - colour)
            assert abs(result[n, channel, i, j].item() - 255 * expected) <= 0.501


@pytest.mark.parametrize("colour", [(1, 1, 1), (0, 0, 0), (0, 0, 1)])
def test_more_evidence_is_never_darker_on_any_picture(colour):
    heat = torch.linspace(0, 1, 1001)
    pictures = torch.tensor(colour, dtype=torch.float32)[None, :, None, None].expand(1, 3, 1, 1001)
    red, green, blue = (overlay(pictures, heat[None, None]) / 255)[0, :, 0]
    shown = 0.2126 * red + 0.7152 * green + 0.0722 * blue  # luma of ITU-R BT.709
    assert shown.diff().min() > -1 / 255  # whole numbers from 0 to 255 are rounded
    assert shown[-1] - shown[0] > 0.6 and shown[0] <= 0.36  # without evidence even white is dark
    assert (shown[250:] - shown[:-250]).min() > 0.02  # a quarter more of evidence is seen everywhere


# The command


NAMES = ["ant", "bee", "a_long_class_name", "dog", "elk", "$fox$"]


@pytest.fixture
def checkpoint(tmp_path, monkeypatch):
    """A checkpoint of a tiny network with 6 classes in 2 superclasses; the current folder is an empty one."""
    monkeypatch.chdir(tmp_path)
    content = {
        "model": make_model().state_dict(),
        "config": {"dataset": "shapes", "width": 4, "image_size": 32},
        "epoch": 1,
        "class_names": NAMES,
        "superclass_names": ["insects", "mammals"],
        "superclass_of": [0, 0, 1, 1, 1, 1],
    }
    path = tmp_path / "run" / "checkpoints" / "best.pt"
    path.parent.mkdir(parents=True)
    torch.save(content, path)
    Path("run/config.json").write_text('{"settings": {}, "digest": "", "environment": {}}')
    return path


def photo(height, width):
    """A picture with structure at every scale, uint8 [height, width, 3]."""
    rng = np.random.default_rng(0)
    small = Image.fromarray(rng.integers(0, 256, (7, 9, 3), dtype=np.uint8))
    return np.asarray(small.resize((width, height), Image.Resampling.BICUBIC))


@pytest.mark.parametrize("name", ["photo.jpg", "gray.png", "alpha.png", "palette.gif", "lossy.webp"])
def test_read_square_against_pillow(tmp_path, name):
    mode = {"gray.png": "L", "alpha.png": "RGBA", "palette.gif": "P"}.get(name, "RGB")
    more = {"save_all": True, "append_images": [Image.new("P", (20, 47))]} if name == "palette.gif" else {}
    Image.fromarray(photo(47, 20)).convert(mode).save(tmp_path / name, **more)  # the GIF has two frames
    with Image.open(tmp_path / name) as written:
        pixels = np.asarray(written.convert("RGB"))
    square = read_square(tmp_path / name)
    assert square.dtype == torch.uint8 and square.shape == (3, 20, 20)
    expected = torch.from_numpy(pixels[14:34].copy()).permute(2, 0, 1)  # round((47 - 20) / 2) is 14
    assert (square.int() - expected.int()).abs().max() <= 4  # two JPEG decoders may round differently


def test_read_square_turns_the_picture_upright(tmp_path):
    upright = photo(40, 40)
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was held so that the picture must be turned clockwise by 90 degrees
    Image.fromarray(np.rot90(upright)).save(tmp_path / "turned.png", exif=exif)
    assert torch.equal(read_square(tmp_path / "turned.png"), torch.tensor(upright).permute(2, 0, 1))


def test_read_square_rounds_16_bits_to_8(tmp_path):
    values = np.array([[0, 200, 255], [0x12F0, 0x8001, 0x80FE], [0xFE00, 0xFEFF, 0xFFFF]])
    Image.fromarray(values.astype(np.uint16)).save(tmp_path / "deep.png")
    for channel in read_square(tmp_path / "deep.png"):
        assert np.abs(channel.numpy() - values / 257).max() <= 1


def test_command(checkpoint, capsys):
    noise = np.random.default_rng(1).integers(0, 256, (300, 500, 3), dtype=np.uint8)  # shows antialiasing
    picture = Image.fromarray(photo(300, 500) // 2 + noise // 2)
    picture.save("my photo.png")
    before = Path("my photo.png").read_bytes()
    main(["my photo.png", "--run", "run"])
    lines = capsys.readouterr().out.splitlines()

    # The same with Pillow, numpy and the network itself.
    crop = picture.crop((100, 0, 400, 300)).resize((32, 32), Image.Resampling.BILINEAR)
    pixels = (np.asarray(crop) / 255 - MEAN) / STD
    with torch.no_grad():
        logits = make_model()(torch.from_numpy(pixels).permute(2, 0, 1)[None].float())[0].double().numpy()
    probabilities = np.exp(logits) / np.exp(logits).sum()
    order = np.argsort(-probabilities)[:5]
    assert lines[0].split() == ["class", "probability", "superclass"] and len(lines) == 7
    for line, c in zip(lines[1:6], order, strict=True):
        name, percentage, sign, superclass = line.split()
        assert name == NAMES[c] and superclass == ("insects" if c < 2 else "mammals") and sign == "%"
        assert abs(float(percentage) - 100 * probabilities[c]) < 0.3  # Pillow may round a pixel differently
    assert {line.index("%") for line in lines[1:6]} == {lines[0].index("y  ")}  # the end of "probability"
    assert lines[6] == "wrote my photo_gradcam.png"
    with Image.open("my photo_gradcam.png") as written:
        assert written.format == "PNG" and written.width > 1500
    assert sorted(path.name for path in Path().iterdir()) == ["my photo.png", "my photo_gradcam.png", "run"]
    assert Path("my photo.png").read_bytes() == before


def test_command_with_options_and_one_class(checkpoint, monkeypatch, capsys):
    config = {"dataset": "shapes", "width": 4, "image_size": 16}
    weights = make_model(num_classes=1).state_dict()
    torch.save({"model": weights, "config": config, "epoch": 1, "class_names": ["one"]}, "weights.pt")
    monkeypatch.setattr(gradcam, "DEFAULT_CHECKPOINT", Path("weights.pt"))
    Image.fromarray(photo(5, 5)).save("a.png")
    main(["a.png", "--layer", "layer3.1.conv2", "--output", "run/out.PNG"])
    assert capsys.readouterr().out == "class  probability\none        100.0 %\nwrote run/out.PNG\n"
    assert Path("run/out.PNG").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(("side", "shown"), [(1, 32), (1100, 512)])
def test_what_is_drawn(checkpoint, monkeypatch, side, shown):
    """The titles have the probabilities in percent; a picture that is made smaller is antialiased."""
    drawn, draw = [], gradcam.draw
    monkeypatch.setattr(gradcam, "draw", lambda *arguments: drawn.append(arguments) or draw(*arguments))
    noise = np.random.default_rng(1).integers(0, 256, (side, side + 30, 3), dtype=np.uint8)[:, 15:-15]
    Image.fromarray(noise).save("a.png")
    main(["a.png", "--run", "run"])
    ((((_, square), (_, seen), *explained), label),) = drawn
    assert seen.shape == (3, 32, 32) and label == "Grad-CAM at layer4"
    resized = np.asarray(Image.fromarray(noise).resize((shown, shown), Image.Resampling.BILINEAR))
    assert np.abs(square.permute(1, 2, 0).numpy().astype(int) - resized.astype(int)).max() <= 2
    model, x = make_model(), to_input(seen[None])
    probabilities, classes = model(x)[0].softmax(dim=0).topk(2)
    for i, role in enumerate(("prediction", "runner-up")):
        heatmap = to_heatmap(compute(model, "layer4", x, int(classes[i])), shown)
        found = "evidence" if heatmap.any() else "no evidence"
        name = f"{NAMES[classes[i]]} ({100 * probabilities[i]:.1f} %)"
        assert explained[i][0] == f"{found} for the {role}\n{name}"
        difference = explained[i][1].int() - overlay(square[None] / 255, heatmap)[0].int()
        assert difference.abs().max() <= 4  # one of the 256 steps of the colours


def test_a_map_without_evidence_is_called_so(checkpoint, monkeypatch):
    drawn, draw = [], gradcam.draw
    monkeypatch.setattr(gradcam, "draw", lambda *arguments: drawn.append(arguments) or draw(*arguments))
    monkeypatch.setattr(gradcam.GradCAM, "__call__", lambda cam, images, classes: torch.zeros(2, 4, 4))
    Image.fromarray(photo(40, 40)).save("a.png")
    main(["a.png", "--run", "run"])
    assert all(title.startswith("no evidence for the ") for title, _ in drawn[0][0][2:])


def test_draw():
    pictures = [torch.randint(0, 256, (3, side, side), dtype=torch.uint8) for side in (48, 32)]
    titles = ["picture", "evidence for the $fox$ (9.0 %)"]
    *axes, bar = draw(list(zip(titles, pictures, strict=True)), "Grad-CAM at layer3").axes
    for ax, title, picture in zip(axes, titles, pictures, strict=True):
        assert np.array_equal(ax.get_images()[0].get_array(), picture.permute(1, 2, 0).numpy())
        assert ax.get_title() == title and not ax.title.get_parse_math()  # $ in a name is a dollar sign
    assert bar.get_ylabel() == "Grad-CAM at layer3"


@pytest.mark.slow
def test_exit_code(checkpoint):
    Path("text.png").write_text("not a picture")
    command = [sys.executable, gradcam.__file__, "text.png", "--run", "run"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 2 and done.stdout == ""
    assert (
        done.stderr.startswith("error: text.png cannot be used as a picture") and done.stderr.count("\n") == 1
    )


@pytest.mark.slow
def test_stands_alone_at_import():
    ours = ["data", "running", "train", "resnet_cifar", "metrics", "matplotlib"]
    code = f"import sys, gradcam; sys.exit(any(name in sys.modules for name in {ours}))"
    assert subprocess.run([sys.executable, "-c", code], cwd=Path(gradcam.__file__).parent).returncode == 0


# What is refused


def call(model, images, layer="layer3", **arguments):
    with GradCAM(model, layer) as cam:
        cam(images, **arguments)


LAYERS = r"choose from layer1, layer2, layer3, layer4, conv1, .*, layer4\.1\.conv2"
REFUSED = [
    (lambda model, images: call(model, images, classes=[0, 6, 1]), r"0 to 5, not \[0, 6, 1\]"),
    (lambda model, images: call(model, images, classes=[0, 1]), r"int64 \[3\].*not torch.int64 \[2\]"),
    (lambda model, images: call(model, images.to(torch.uint8)), r"float \[N, 3, H, W\], not torch.uint8"),
    (lambda model, images: call(model, images, "layer3.0.relu"), "not 2 times"),
    (lambda model, images: call(model, images, "fc"), r"not \[3, 6\]"),
    (lambda model, images: call(model, images, make_model().layer3), "not 0 times"),
    (lambda model, images: GradCAM(model, "layer9"), LAYERS),
    (lambda model, images: to_heatmap(torch.zeros(4, 4), 8), "maps must be"),
    (lambda model, images: to_heatmap(torch.ones(1, 4, 4) * float("nan"), 8), "maps must be"),
    (lambda model, images: to_heatmap(torch.ones(1, 4, 4) * float("inf"), 8), "maps must be"),
    (lambda model, images: overlay(torch.rand(1, 3, 4, 4), torch.rand(1, 4, 4) + 1), "must be in"),
]


@pytest.mark.parametrize(("function", "message"), REFUSED)
def test_bad_arguments_raise(model, images, function, message):
    with pytest.raises(ValueError, match=message):
        function(model, images)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["absent.png", "--run", "run"], "there is no picture absent.png"),
        (["loop.png", "--run", "run"], "there is no picture loop.png"),
        (["text.png", "--run", "run"], "text.png cannot be used as a picture .*PNG, JPEG, GIF or WebP"),
        (["a.png", "--run", "run", "--layer", "layer5"], "--layer layer5 .*choose from layer1, layer2"),
        (["a.png", "--run", "run", "--layer", "fc"], r"--layer fc .*\[N, K, h, w\]"),
        (["a.png", "--run", "run", "--output", "run/../a.png"], "--output must be a .png file other than"),
        (["a.png"], "no checkpoint absent.pt"),
        (["a.png", "--checkpoint", "absent.pt"], "no checkpoint absent.pt"),
    ],
)
def test_command_refuses(checkpoint, monkeypatch, arguments, message):
    monkeypatch.setattr(gradcam, "DEFAULT_CHECKPOINT", Path("absent.pt"))
    Image.fromarray(photo(40, 40)).save("a.png")
    Path("text.png").write_text("not a picture")
    Path("loop.png").symlink_to("loop.png")
    before = Path("a.png").read_bytes()
    with pytest.raises(UserError, match=message) as error:
        main(arguments)
    assert "\n" not in str(error.value)
    assert sorted(path.name for path in Path().iterdir()) == ["a.png", "loop.png", "run", "text.png"]
    assert Path("a.png").read_bytes() == before


def test_command_refuses_weights_that_overflow(checkpoint):
    content = torch.load(checkpoint)
    content["model"]["conv1.weight"].fill_(1e38)
    torch.save(content, checkpoint)
    Image.fromarray(photo(40, 40)).save("a.png")
    with pytest.raises(UserError, match="maps must be finite"):
        main(["a.png", "--run", "run"])
    assert not Path("a_gradcam.png").exists()


def test_superclasses_that_do_not_fit(checkpoint):
    torch.save(torch.load(checkpoint) | {"superclass_of": [0]}, checkpoint)
    Image.fromarray(photo(40, 40)).save("a.png")
    with pytest.raises(UserError, match=r"best\.pt cannot be used as a checkpoint: IndexError"):
        main(["a.png", "--run", "run"])

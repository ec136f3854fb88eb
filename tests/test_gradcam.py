"""Grad-CAM against closed forms, slow loops and finite differences, and all that a call must leave alone."""

import copy
import itertools
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image  # a dependency of torchvision and of matplotlib
from torch import nn
from torchvision.io import decode_image, read_file

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


def make_model(width=4, num_classes=6, seed=0):
    """A small network whose batch norms, as after training, are not the identity. In eval mode."""
    torch.manual_seed(seed)
    model = resnet18(num_classes, width)
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


def test_closed_form_of_the_last_stage(model, images):
    # Global average pooling and a linear layer: dy^c / dA^k_ij = fc.weight[c, k] / (h w), whatever the image.
    activation = run_stages(model, images, 0, 4)
    expected = F.relu(torch.einsum("ck,nkhw->cnhw", model.fc.weight / 16, activation)).detach()
    maps = torch.stack([compute(model, "layer4", images, c) for c in range(6)])
    assert maps.shape == (6, 3, 4, 4) and 0.1 < (expected > 0).float().mean() < 0.9
    torch.testing.assert_close(maps, expected)


@pytest.mark.parametrize(("layer", "stage", "side"), [("layer1", 1, 32), ("layer2", 2, 16), ("layer3", 3, 8)])
def test_slow_loop_over_an_independent_network(model, images, layer, stage, side):
    activation = run_stages(model, images[:1], 0, stage).detach()
    jacobian = torch.autograd.functional.jacobian(lambda a: run_stages(model, a, stage + 1, 5)[0], activation)
    maps = torch.cat([compute(model, layer, images[:1], c) for c in range(6)])
    expected = torch.stack([slow_map(activation[0], jacobian[c, 0]) for c in range(6)])
    assert maps.shape == (6, side, side) and 0.1 < (expected > 0).float().mean() < 0.9
    torch.testing.assert_close(maps, expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("layer", ["layer2", "layer3", "layer3.1.conv2", "layer3.0.bn1"])
def test_alpha_against_finite_differences(images, layer):
    # Adding eps to every pixel of channel k changes y^c by eps sum_ij dy^c / dA^k_ij = eps Z alpha_k^c.
    model, images = make_model().double(), images[:1].double()
    seen = []

    def logits(k, eps):
        def add(module, inputs, output):
            seen.append(output.clone())
            shifted = output.clone()
            shifted[:, k] += eps
            return shifted

        handle = model.get_submodule(layer).register_forward_hook(add)
        with torch.no_grad():
            result = model(images)[0]
        handle.remove()
        return result

    logits(0, 0.0)
    activation, eps = seen[0][0], 1e-6
    channels, height, width = activation.shape
    differences = torch.stack([(logits(k, eps) - logits(k, -eps)) / (2 * eps) for k in range(channels)])
    alpha = differences / (height * width)  # [K, C]
    expected = torch.einsum("kc,khw->chw", alpha, activation).clamp_min(0)
    assert 0.1 < (expected > 0).double().mean() < 0.9
    maps = torch.cat([compute(model, layer, images, c) for c in range(6)])
    torch.testing.assert_close(maps, expected.float(), rtol=1e-4, atol=1e-7)


def test_batch_equals_one_by_one(model, images):
    maps = compute(model, "layer3", images, [5, 1, 3])
    alone = [compute(model, "layer3", images[i : i + 1], c) for i, c in enumerate([5, 1, 3])]
    torch.testing.assert_close(maps, torch.cat(alone), rtol=1e-4, atol=1e-6)
    assert not torch.allclose(maps[0], maps[1])


def test_layer_behind_which_relu_works_in_place(images):
    torch.manual_seed(0)
    relu, pool = nn.ReLU(inplace=True), nn.AvgPool2d(30)
    net = nn.Sequential(nn.Conv2d(3, 5, 3), relu, pool, nn.Flatten(), nn.Linear(5, 4))
    activation = net[0](images)
    slope = (activation > 0).float().mean(dim=(2, 3), keepdim=True) / 900  # mean gradient of ReLU and pool
    expected = F.relu((net[4].weight[2][None, :, None, None] * slope * activation).sum(dim=1)).detach()
    maps = compute(net, "0", images, 2)
    assert (expected.amax(dim=(1, 2)) > 0).all()
    torch.testing.assert_close(maps, expected)


def test_classes_in_every_form(model, images):
    predicted = model(images).argmax(dim=1)
    alone = [compute(model, "layer3", images[i : i + 1], int(c)) for i, c in enumerate(predicted)]
    expected = torch.cat(alone)
    for classes in (None, predicted, predicted.tolist(), predicted.numpy()):
        torch.testing.assert_close(compute(model, "layer3", images, classes), expected, rtol=1e-4, atol=1e-6)
    one = compute(model, "layer3", images, torch.tensor(2))
    assert torch.equal(one, compute(model, "layer3", images, 2))
    assert torch.equal(one, compute(model, "layer3", images, [2, 2, 2]))
    assert not torch.allclose(one, expected)


def test_layer_given_as_module(model, images):
    maps = compute(model, model.layer3[1].conv2, images)
    assert torch.equal(maps, compute(model, "layer3.1.conv2", images))


def test_other_image_sizes_and_an_empty_batch(model):
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
    for prepare in (nn.Module.eval, nn.Module.train, mixed_modes, lambda model: model.requires_grad_(False)):
        subject = prepare(copy.deepcopy(model))
        before = snapshot(subject)
        torch.testing.assert_close(compute(subject, "layer3", images), expected)
        assert snapshot(subject) == before


def test_keeps_gradients_that_were_there(model, images):
    model(images).sum().backward()
    images.requires_grad_()
    (images**2).sum().backward()
    before, image_grad = snapshot(model), images.grad.clone()
    maps = compute(model, "layer3", images)
    assert snapshot(model) == before and torch.equal(images.grad, image_grad) and images.requires_grad
    assert not maps.requires_grad and maps.grad_fn is None and maps.dtype == torch.float32
    compute(model, "layer3", images * 2)  # images with a history


class Failing(nn.Module):
    def forward(self, x):
        raise OSError("the disk is gone")


def test_leaves_no_trace_when_it_raises(model, images):
    model = mixed_modes(model)
    failing = copy.deepcopy(model)
    failing.layer4 = Failing()
    cases = [
        (model, "layer3", {"classes": 6}, ValueError),
        (model, "layer3", {"classes": -1}, ValueError),
        (model, "layer3", {"classes": [0, 1]}, ValueError),
        (model, "layer3", {"classes": [0.0, 1.0, 2.0]}, ValueError),
        (model, "layer3", {"classes": True}, ValueError),
        (model, "fc", {}, ValueError),  # output [N, C]
        (model, "layer3.0.relu", {}, ValueError),  # runs twice
        (failing, "layer3", {}, OSError),
    ]
    for subject, layer, arguments, error in cases:
        before = snapshot(subject)
        with pytest.raises(error), GradCAM(subject, layer) as cam:
            cam(images, **arguments)
        assert snapshot(subject) == before
        with GradCAM(subject, layer) as cam:
            with pytest.raises(error):
                cam(images, **arguments)
            assert cam.activations is None and cam.gradients is None
        assert snapshot(subject) == before


def test_only_inside_a_with_block(model, images):
    cam = GradCAM(model, "layer3")
    with pytest.raises(RuntimeError, match="with block"):
        cam(images)
    with cam:
        expected = cam(images)
        with pytest.raises(RuntimeError, match="already"), cam:
            pass
    with pytest.raises(RuntimeError, match="with block"):
        cam(images)
    with cam:  # a second block is fine
        assert torch.equal(cam(images), expected)


def test_hook_goes_when_the_block_raises(model, images):
    before = snapshot(model)
    with pytest.raises(KeyError), GradCAM(model, "layer3"):
        assert len(model.layer3._forward_hooks) == 1
        raise KeyError
    assert snapshot(model) == before


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


def test_model_made_in_inference_mode():
    with torch.inference_mode():
        model = make_model()
    with pytest.raises(ValueError, match="inference_mode"):
        GradCAM(model, "layer3")


def test_channels_last(model, images):
    expected = compute(model, "layer3", images)
    model, images = (x.to(memory_format=torch.channels_last) for x in (model, images))
    maps = compute(model, "layer3", images)
    torch.testing.assert_close(maps, expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("context", [torch.enable_grad, torch.no_grad, torch.inference_mode])
def test_under_autocast(model, images, context):
    expected = compute(model, "layer3", images)
    with torch.autocast("cpu", torch.bfloat16), context():
        model(images)  # fills autocast's cache of bfloat16 weights
        maps = compute(model, "layer3", images)
        rounded = compute(model, "layer3", images.bfloat16())  # as an operation under autocast leaves them
        assert torch.is_autocast_enabled("cpu")
    assert maps.dtype == torch.float32 and torch.equal(maps, expected)
    assert torch.equal(rounded, compute(model, "layer3", images.bfloat16().float()))


def test_double_model_takes_float_images(model, images):
    maps = compute(copy.deepcopy(model).double(), "layer3", images)
    assert maps.dtype == torch.float32
    torch.testing.assert_close(maps, compute(model, "layer3", images), rtol=1e-4, atol=1e-6)


# Heatmaps


def bilinear(values, height, width):
    """Interpolate between pixel centres, one pixel at a time; beyond the outer centres the edge goes on."""
    h, w = len(values), len(values[0])
    result = torch.zeros(height, width)
    for i, j in itertools.product(range(height), range(width)):
        y = min(max((i + 0.5) * h / height - 0.5, 0), h - 1)
        x = min(max((j + 0.5) * w / width - 0.5, 0), w - 1)
        top, left = min(int(y), max(h - 2, 0)), min(int(x), max(w - 2, 0))
        bottom, right = min(top + 1, h - 1), min(left + 1, w - 1)
        dy, dx = y - top, x - left
        upper = (1 - dx) * values[top][left] + dx * values[top][right]
        lower = (1 - dx) * values[bottom][left] + dx * values[bottom][right]
        result[i, j] = (1 - dy) * upper + dy * lower
    return result


@pytest.mark.parametrize("size", [32, (20, 33), (8, 5), (1, 1)])
def test_heatmap_against_bilinear_loop(size):
    maps = torch.rand(2, 8, 5) * torch.tensor([1e-4, 70.0])[:, None, None] + 0.1
    heatmaps = to_heatmap(maps, size)
    height, width = (size, size) if isinstance(size, int) else size
    assert heatmaps.shape == (2, height, width) and heatmaps.dtype == torch.float32
    for heatmap, values in zip(heatmaps, maps, strict=True):
        expected = bilinear(values.tolist(), height, width)
        torch.testing.assert_close(heatmap, expected / expected.max(), rtol=1e-4, atol=1e-5)
        assert heatmap.max() == 1


def test_heatmap_does_not_hide_what_the_map_says():
    flat = torch.full((1, 4, 4), 3.0)
    maps = torch.cat([torch.zeros(1, 4, 4), flat, torch.full((1, 4, 4), 1e-30), flat])
    maps[3, 0, 0] = 6.0
    heatmaps = to_heatmap(maps, 8)
    assert (heatmaps[0] == 0).all()  # empty stays empty
    assert (heatmaps[1] == 1).all()  # no min-max scaling
    assert (heatmaps[2] == 1).all()
    assert heatmaps[3, 0, 0] == 1 and heatmaps[3, 7, 7] == 0.5
    assert to_heatmap(torch.zeros(0, 4, 4), 8).shape == (0, 8, 8)
    assert to_heatmap(maps.double(), 8).dtype == torch.float32


# Overlay


def luminance(pictures):
    """ITU-R BT.709 luminance of [N, 3, H, W] in [0, 1]."""
    return (pictures * torch.tensor([0.2126, 0.7152, 0.0722])[:, None, None]).sum(dim=1)


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


@pytest.mark.parametrize("colour", [(1, 1, 1), (0.5, 0.5, 0.5), (0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 1)])
def test_more_evidence_is_never_darker_on_any_picture(colour):
    heat = torch.linspace(0, 1, 1001)
    pictures = torch.tensor(colour, dtype=torch.float32)[None, :, None, None].expand(1, 3, 1, 1001)
    shown = luminance(overlay(pictures, heat[None, None]) / 255)[0, 0]
    assert shown.diff().min() > -1 / 255  # whole numbers from 0 to 255 are rounded
    assert shown[-1] - shown[0] > 0.6
    assert (shown[250:] - shown[:-250]).min() > 0.02  # a quarter more of evidence is seen everywhere


def test_a_map_without_evidence_stays_dark():
    pictures = torch.rand(20, 3, 6, 7)
    pictures[0], pictures[1] = 1, 0
    shown = overlay(pictures, torch.zeros(20, 6, 7)) / 255
    assert luminance(shown).max() <= 0.36
    assert (shown[0] == shown[0, :, :1, :1]).all()  # a white picture becomes the same dark grey everywhere
    # The picture can still be made out: the order of its pixels from dark to bright is the same.
    before, after = luminance(pictures[2:]).flatten(), luminance(shown[2:]).flatten()
    assert torch.corrcoef(torch.stack([before, after]))[0, 1] > 0.99


# The command


@pytest.fixture
def checkpoint(tmp_path, monkeypatch):
    """A checkpoint of a tiny network with 6 classes in 2 superclasses; the current folder is an empty one."""
    monkeypatch.chdir(tmp_path)
    content = {
        "model": make_model().state_dict(),
        "config": {"dataset": "shapes", "width": 4, "image_size": 32},
        "epoch": 1,
        "class_names": ["ant", "bee", "a_long_class_name", "dog", "elk", "$fox$"],
        "superclass_names": ["insects", "mammals"],
        "superclass_of": [0, 0, 1, 1, 1, 1],
    }
    path = tmp_path / "run" / "checkpoints" / "best.pt"
    path.parent.mkdir(parents=True)
    torch.save(content, path)
    return path


def photo(height, width):
    """A picture with structure at every scale, uint8 [height, width, 3]."""
    rng = np.random.default_rng(0)
    small = Image.fromarray(rng.integers(0, 256, (7, 9, 3), dtype=np.uint8))
    return np.asarray(small.resize((width, height), Image.Resampling.BICUBIC))


SAVED = {
    "rgb.png": lambda picture: picture,
    "photo.jpg": lambda picture: picture,
    "gray.png": lambda picture: picture.convert("L"),
    "alpha.png": lambda picture: picture.convert("RGBA"),
    "palette.png": lambda picture: picture.convert("P"),
    "deep.png": lambda picture: Image.fromarray(np.asarray(picture.convert("L")).astype(np.uint16) * 257),
    "one.gif": lambda picture: picture.convert("P"),
    "lossy.webp": lambda picture: picture,
}


@pytest.mark.parametrize("name", SAVED)
@pytest.mark.parametrize(("height", "width"), [(300, 500), (47, 20), (1, 1)])
def test_read_square_against_pillow(tmp_path, name, height, width):
    SAVED[name](Image.fromarray(photo(height, width))).save(tmp_path / name)
    with Image.open(tmp_path / name) as written:
        if written.mode == "I;16":
            written = Image.fromarray((np.asarray(written) // 257).astype(np.uint8))
        pixels = np.asarray(written.convert("RGB"))
    side = min(height, width)
    top, left = round((height - side) / 2), round((width - side) / 2)
    square = read_square(tmp_path / name)
    assert square.dtype == torch.uint8 and square.shape == (3, side, side)
    expected = torch.from_numpy(pixels[top : top + side, left : left + side].copy()).permute(2, 0, 1)
    assert (square.int() - expected.int()).abs().max() <= 4  # two JPEG decoders may round differently


def test_read_square_turns_the_picture_upright(tmp_path):
    upright = photo(40, 40)
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was held so that the picture must be turned clockwise by 90 degrees
    Image.fromarray(np.rot90(upright)).save(tmp_path / "turned.png", exif=exif)
    assert torch.equal(read_square(tmp_path / "turned.png"), torch.tensor(upright).permute(2, 0, 1))


def test_read_square_takes_the_first_frame(tmp_path):
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "lime")]
    frames[0].save(tmp_path / "two.gif", save_all=True, append_images=frames[1:])
    assert read_square(tmp_path / "two.gif")[:, 0, 0].tolist() == [255, 0, 0]


def test_read_square_rounds_16_bits_to_the_high_8(tmp_path):
    # Grey values v of 0 to 65535 whose low byte says something else: v / 257 to the nearest, or below it.
    values = np.array(
        [[0, 200, 255, 256], [511, 0x12F0, 0x8001, 0x80FE], [0xFE00, 0xFEFF, 0xFF00, 0xFFFF]] * 4
    )
    Image.fromarray(values[:4].astype(np.uint16)).save(tmp_path / "deep.png")
    square = read_square(tmp_path / "deep.png")
    assert square.dtype == torch.uint8 and square.shape == (3, 4, 4)
    for channel in square:
        assert np.abs(channel.numpy() - values[:4] / 257).max() <= 1


@pytest.mark.parametrize("content", [b"", b"no picture", b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff\xe0"])
def test_not_a_picture(tmp_path, content):
    path = tmp_path / "file.png"
    path.write_bytes(content)
    with pytest.raises(
        ValueError, match=r"file.png is not a picture: give a PNG, JPEG, GIF or WebP"
    ) as error:
        read_square(path)
    assert "\n" not in str(error.value)
    reason = re.search(r"file\.png is not a picture: .* file \((.+)\)$", str(error.value))[1]
    with pytest.raises(RuntimeError) as decoder:  # what the decoder itself says is wrong with the file
        decode_image(read_file(str(path)))
    assert str(decoder.value).strip().startswith(reason)


@pytest.mark.parametrize(("height", "width"), [(300, 500), (32, 32), (1, 1)])
def test_command(checkpoint, capsys, height, width):
    noise = np.random.default_rng(1).integers(
        0, 256, (height, width, 3), dtype=np.uint8
    )  # antialiasing shows
    picture = Image.fromarray(photo(height, width) // 2 + noise // 2)
    picture.save("my photo.png")
    before = Path("my photo.png").read_bytes()
    main(["my photo.png", "--run", "run"])
    lines = capsys.readouterr().out.splitlines()

    # The same with Pillow, numpy and the network itself.
    side = min(height, width)
    left, top = (width - side) // 2, (height - side) // 2
    crop = picture.crop((left, top, left + side, top + side)).resize((32, 32), Image.Resampling.BILINEAR)
    pixels = (np.asarray(crop) / 255 - MEAN) / STD
    with torch.no_grad():
        logits = make_model()(torch.from_numpy(pixels).permute(2, 0, 1)[None].float())[0].double().numpy()
    probabilities = np.exp(logits) / np.exp(logits).sum()
    names = ["ant", "bee", "a_long_class_name", "dog", "elk", "$fox$"]
    order = np.argsort(-probabilities)[:5]
    assert lines[0].split() == ["class", "probability", "superclass"] and len(lines) == 7
    for line, c in zip(lines[1:6], order, strict=True):
        name, percentage, sign, superclass = line.split()
        assert name == names[c] and superclass == ("insects" if c < 2 else "mammals") and sign == "%"
        assert abs(float(percentage) - 100 * probabilities[c]) < 0.3  # Pillow may round a pixel differently
    assert {line.index("%") for line in lines[1:6]} == {
        lines[0].index("probability") + len("probability") - 1
    }
    assert lines[6] == "wrote my photo_gradcam.png"
    with Image.open("my photo_gradcam.png") as written:
        assert written.format == "PNG" and written.width > 1500
    assert sorted(path.name for path in Path().iterdir()) == ["my photo.png", "my photo_gradcam.png", "run"]
    assert Path("my photo.png").read_bytes() == before


@pytest.mark.parametrize("name", ["photo.jpg", "gray.png", "alpha.png", "deep.png"])
def test_command_with_other_files_and_options(checkpoint, name, capsys):
    SAVED[name](Image.fromarray(photo(60, 50))).save(name)
    main([name, "--checkpoint", str(checkpoint), "--layer", "layer4.1.conv2", "--output", "run/out.PNG"])
    assert capsys.readouterr().out.endswith("wrote run/out.PNG\n")
    assert Path("run/out.PNG").read_bytes().startswith(b"\x89PNG")


def test_command_with_default_weights_and_few_classes(checkpoint, monkeypatch, capsys):
    torch.save(
        {
            "model": make_model(num_classes=1).state_dict(),
            "config": {"dataset": "shapes", "width": 4, "image_size": 32},
            "epoch": 1,
            "class_names": ["one"],
        },
        "weights.pt",
    )
    monkeypatch.setattr(gradcam, "DEFAULT_CHECKPOINT", Path("weights.pt"))
    Image.fromarray(photo(5, 5)).save("a.png")
    main(["a.png"])
    assert capsys.readouterr().out == "class  probability\none        100.0 %\nwrote a_gradcam.png\n"


@pytest.mark.parametrize(("side", "shown"), [(1, 32), (40, 40), (700, 512)])
def test_size_of_the_picture_that_is_drawn(checkpoint, monkeypatch, side, shown):
    sides = []

    def record(square, seen, heatmaps, *rest):
        sides.extend([*square.shape[1:], *heatmaps.shape[1:], *seen.shape[1:]])
        return draw(square, seen, heatmaps, *rest)

    monkeypatch.setattr(gradcam, "draw", record)
    Image.fromarray(photo(side, side + 30)).save("a.png")
    main(["a.png", "--run", "run"])
    assert sides == [shown] * 4 + [32] * 2


@pytest.mark.parametrize("image_size", [32, 16])
def test_titles_maps_and_the_picture_that_is_drawn(checkpoint, monkeypatch, image_size):
    """The titles have the probabilities in percent; a picture that is made smaller is antialiased."""
    drawn, content = [], torch.load(checkpoint)
    torch.save(content | {"config": content["config"] | {"image_size": image_size}}, checkpoint)

    def record(square, seen, heatmaps, titles, layer):
        drawn.append((square, seen, heatmaps, titles, layer))
        return draw(square, seen, heatmaps, titles, layer)

    monkeypatch.setattr(gradcam, "draw", record)
    noise = np.random.default_rng(1).integers(0, 256, (1100, 1100, 3), dtype=np.uint8)
    Image.fromarray(noise).save("a.png")
    main(["a.png", "--run", "run"])
    ((square, seen, heatmaps, titles, layer),) = drawn
    assert seen.shape == (3, image_size, image_size)
    smaller = Image.fromarray(noise).resize((512, 512), Image.Resampling.BILINEAR)
    assert np.abs(square.permute(1, 2, 0).numpy().astype(int) - np.asarray(smaller).astype(int)).max() <= 2
    with torch.no_grad():
        probabilities = make_model()(to_input(seen[None]))[0].softmax(dim=0)
    names = ["ant", "bee", "a_long_class_name", "dog", "elk", "$fox$"]
    for title, role, c in zip(
        titles, ("prediction", "runner-up"), probabilities.topk(2).indices, strict=True
    ):
        assert title == f"{role}\n{names[c]} ({probabilities[c].item() * 100:.1f} %)"
    for heatmap, c in zip(heatmaps, probabilities.topk(2).indices.tolist(), strict=True):
        expected = to_heatmap(compute(make_model(), "layer3", to_input(seen[None]), c), 512)[0]
        torch.testing.assert_close(heatmap, expected, rtol=1e-4, atol=1e-5)
    assert layer == "layer3"


def test_draw_shows_overlays_and_says_when_a_map_is_empty():
    square = torch.randint(0, 256, (3, 48, 48), dtype=torch.uint8)
    seen = torch.randint(0, 256, (3, 32, 32), dtype=torch.uint8)
    heatmaps = torch.stack([torch.rand(48, 48), torch.zeros(48, 48)])
    figure = draw(square, seen, heatmaps, ["prediction\n$fox$ (9.0 %)", "runner-up\nbee (1.0 %)"], "layer3")
    shown = [ax.get_images()[0].get_array() for ax in figure.axes[:4]]
    overlays = overlay(torch.stack([square, square]) / 255, heatmaps)
    expected = [square, seen, *overlays]
    for array, picture in zip(shown, expected, strict=True):
        assert np.array_equal(array, picture.permute(1, 2, 0).numpy())
    titles = [ax.get_title() for ax in figure.axes[2:4]]
    assert titles == [
        "evidence for the prediction\n$fox$ (9.0 %)",
        "no evidence for the runner-up\nbee (1.0 %)",
    ]
    assert not any(ax.title.get_parse_math() for ax in figure.axes[:4])  # $ in a name is a dollar sign
    assert figure.axes[4].get_ylabel() == "Grad-CAM at layer3"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["text.png", "--run", "run"], "error: "),
        pytest.param([], "error: ", marks=pytest.mark.slow),
    ],
)
def test_exit_code(checkpoint, arguments, message):
    Path("text.png").write_text("not a picture")
    command = [sys.executable, gradcam.__file__, *arguments]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 2 and done.stdout == "" and done.stderr.startswith(message)
    assert "Traceback" not in done.stderr
    assert done.stderr.count("\n") == 1


@pytest.mark.slow
def test_stands_alone_at_import():
    ours = ["data", "running", "train", "resnet_cifar", "metrics", "matplotlib"]
    code = f"import sys, gradcam; sys.exit(any(name in sys.modules for name in {ours}))"
    assert subprocess.run([sys.executable, "-c", code], cwd=Path(gradcam.__file__).parent).returncode == 0


# What is refused


def call(model, images, layer="layer3", **arguments):
    with GradCAM(model, layer) as cam:
        cam(images, **arguments)


def with_spare_layer(model):
    model.spare = nn.Conv2d(3, 3, 1)
    return model


LAYERS = r"choose from layer1, layer2, layer3, layer4, conv1, .*, layer4\.1\.conv2"
PICTURE, MAP = torch.rand(1, 3, 4, 4), torch.rand(1, 4, 4)
REFUSED = [
    (lambda model, images: call(model, images, classes=[0, 6, 1]), r"0 to 5, not \[0, 6, 1\]"),
    (lambda model, images: call(model, images, classes=[0, 1]), r"int64 \[3\].*not torch.int64 \[2\]"),
    (lambda model, images: call(model, images.to(torch.uint8)), r"float \[N, 3, H, W\], not torch.uint8"),
    (lambda model, images: call(model, images[0]), r"not torch.float32 \[3, 32, 32\]"),
    (lambda model, images: call(model, images, "layer3.0.relu"), "not 2 times"),
    (lambda model, images: call(model, images, "fc"), r"not \[3, 6\]"),
    (lambda model, images: call(with_spare_layer(model), images, "spare"), "not 0 times"),
    (lambda model, images: GradCAM(model, "layer9"), LAYERS),
    (lambda model, images: GradCAM(model, ""), LAYERS),
    (lambda model, images: GradCAM(model, "layer3.1.conv9"), LAYERS),
    (lambda model, images: GradCAM(model, "Layer3"), LAYERS),
    (lambda model, images: GradCAM(model, make_model().layer3), "not a layer of the model"),
    (lambda model, images: to_heatmap(torch.zeros(4, 4), 8), "maps must be"),
    (lambda model, images: to_heatmap(-torch.ones(1, 4, 4), 8), "maps must be"),
    (lambda model, images: to_heatmap(torch.ones(1, 4, 4) * float("nan"), 8), "maps must be"),
    (lambda model, images: overlay(PICTURE, torch.rand(1, 4, 5)), "heatmaps"),
    (lambda model, images: overlay(PICTURE[0], MAP[0]), "images must be"),
    (lambda model, images: overlay(PICTURE[:, :1], MAP), "images must be"),
    (lambda model, images: overlay(PICTURE - 1, MAP), "images must be in"),
    (lambda model, images: overlay(PICTURE + 1, MAP), "images must be in"),
    (lambda model, images: overlay(PICTURE, MAP * float("nan")), "heatmaps must be in"),
]


@pytest.mark.parametrize(("function", "message"), REFUSED)
def test_bad_arguments_raise(model, images, function, message):
    with pytest.raises(ValueError, match=message):
        function(model, images)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["absent.png", "--run", "run"], "no such picture: absent.png"),
        (["run", "--run", "run"], "no such picture: run"),
        (["text.png", "--run", "run"], "text.png is not a picture"),
        (["a.png", "--run", "run", "--layer", "layer5"], "--layer layer5: .*choose from layer1, layer2"),
        (["a.png", "--run", "run", "--layer", "fc"], r"--layer fc: .*\[N, K, h, w\]"),
        (["a.png", "--run", "run", "--output", "a.png"], "--output must be a .png file other than IMAGE"),
        (["a.png", "--run", "run", "--output", "out.jpg"], "--output must be a .png file other than IMAGE"),
        (["a.png", "--run", "run", "--output", "no/out.png"], "no/out.png cannot be written"),
        (["a.png"], "no weights .*absent.pt: train first with train.py and give --run"),
        (["a.png", "--checkpoint", "absent.pt"], "no checkpoint absent.pt"),
    ],
)
def test_command_refuses(checkpoint, monkeypatch, arguments, message):
    monkeypatch.setattr(gradcam, "DEFAULT_CHECKPOINT", Path("absent.pt"))
    Image.fromarray(photo(40, 40)).save("a.png")
    Path("text.png").write_text("not a picture")
    before = Path("a.png").read_bytes()
    with pytest.raises(UserError, match=message) as error:
        main(arguments)
    assert "\n" not in str(error.value)
    assert sorted(path.name for path in Path().iterdir()) == ["a.png", "run", "text.png"]
    assert Path("a.png").read_bytes() == before

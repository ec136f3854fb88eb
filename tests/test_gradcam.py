"""Grad-CAM against closed forms and finite differences, and what a call must leave alone; heatmaps."""

import copy
import itertools

import numpy as np
import pytest
import torch
from networks import seeded, small_resnet, small_vit
from PIL import Image  # a dependency of torchvision and of matplotlib
from torch import nn

from gradcam import GradCAM, overlay, to_heatmap, tokens


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
    # y^0 - y^1 = 2 mean(A^1) - 3 mean(A^2) gives ReLU((2 A^1 - 3 A^2) / 4), and y^1 - y^0 its negative part.
    with GradCAM(model, "0") as cam:
        assert cam(image, 0).tolist() == [[[1, 0], [1, 0]]]
        assert cam(image, 1).tolist() == [[[0, 2], [0, 0]]]
        assert cam(image, 0, against=1).tolist() == [[[2, 0], [1, 0]]]
        assert cam(image, 1, against=0).tolist() == [[[0, 3], [0, 0]]]
    # Scaled by its own maximum, each of them is a heatmap.
    assert to_heatmap(torch.tensor([[[0.0, 2], [0, 0]]]), 2).tolist() == [[[0, 1], [0, 0]]]


@pytest.fixture
def model():
    return small_resnet()


@pytest.fixture
def images():
    return torch.randn(3, 3, 32, 32, generator=seeded(1))


def compute(model, layer, images, classes=None, against=None, reshape=None):
    with GradCAM(model, layer, reshape) as cam:
        return cam(images, classes, against)


# ---- The maps themselves ---------------------------------------------------------------------------------


@pytest.mark.parametrize("layer", ["layer4", "layer3.1.conv2", "layer3.0.bn1"])
def test_alpha_against_finite_differences(images, layer):
    # Behind bn1 a ReLU works in place.
    # Adding eps to every pixel of channel k changes y^c by eps sum_ij dy^c / dA^k_ij = eps Z alpha_k^c.
    model, images = small_resnet().double(), images[:1].double()
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
    sums = torch.einsum("kc,khw->chw", alpha, activation)
    assert 0.1 < (sums > 0).double().mean() < 0.9
    maps = torch.cat([compute(model, layer, images, c) for c in range(6)])
    torch.testing.assert_close(maps, sums.clamp_min(0).float(), rtol=1e-4, atol=1e-7)
    for c, d in itertools.permutations(range(3), 2):
        expected = (sums[c] - sums[d]).clamp_min(0).float()
        torch.testing.assert_close(compute(model, layer, images, c, d)[0], expected, rtol=1e-4, atol=1e-7)
    with GradCAM(model, layer) as signed:
        several = signed.pairs(images, [([2], None), ([2], [1])])
    expected = [sums[2][None].float(), (sums[2] - sums[1])[None].float()]
    torch.testing.assert_close(several, expected, rtol=1e-4, atol=1e-7)


def test_classes_in_every_form(model, images):
    predicted = model(images).argmax(dim=1)
    alone = [compute(model, "layer3", images[i : i + 1], int(c)) for i, c in enumerate(predicted)]
    for classes in (None, predicted, predicted.tolist(), predicted.int(), predicted.byte()):
        maps = compute(model, "layer3", images, classes)
        torch.testing.assert_close(maps, torch.cat(alone), rtol=1e-4, atol=1e-6)
    two = compute(model, "layer3", images, torch.tensor(2))
    assert torch.equal(two, compute(model, "layer3", images, [2, 2, 2])) and not torch.allclose(two, maps)
    assert not compute(model, "layer3", images, predicted, against=predicted).any()


# ---- What a call must survive and what it must leave alone -----------------------------------------------


def snapshot(model):
    """Everything of a model that a call could change."""
    return {
        "modes": [module.training for module in model.modules()],
        "hooks": [len(m._forward_hooks | m._forward_pre_hooks | m._backward_hooks) for m in model.modules()],
        "requires_grad": [p.requires_grad for p in model.parameters()],
        "grad": [None if p.grad is None else p.grad.tolist() for p in model.parameters()],
        "values": [(name, value.tolist()) for name, value in model.state_dict().items()],
        "grad_mode": (torch.is_grad_enabled(), torch.is_inference_mode_enabled()),
    }


def mixed_modes(model):
    """Some modules in training mode and some not, as where a part is frozen."""
    model.train()
    model.layer2.eval()
    model.layer4[1].bn1.eval()
    return model


def test_leaves_no_trace(model, images):
    expected = compute(model, "layer3", images)
    images.requires_grad_()
    (model(images).sum() + (images**2).sum()).backward()  # gradients that must stay as they are
    image_grad = images.grad.clone()
    for prepare in (nn.Module.eval, mixed_modes, lambda model: model.requires_grad_(False)):
        subject = prepare(model)
        before = snapshot(subject)
        torch.testing.assert_close(compute(subject, "layer3", images.detach()), expected)
        maps = compute(subject, "layer3", images)
        assert snapshot(subject) == before and torch.equal(images.grad, image_grad)
        assert not maps.requires_grad and maps.grad_fn is None
        torch.testing.assert_close(maps, expected)


def test_repeated_calls_and_other_passes_in_the_block(model, images):
    with GradCAM(model, "layer3") as cam, GradCAM(model, "layer2") as other:
        first = cam(images)
        assert other(images).shape == (3, 16, 16)
        # A training step in between has all its gradients: the hook does not cut the graph of others.
        model(images).sum().backward()
        assert model.conv1.weight.grad.abs().sum() > 0
        assert torch.equal(cam(images), first)


def test_under_no_grad_and_inference_mode(model, images):
    expected = compute(model, "layer3", images, [2, 2, 0], [1, 1, 1])
    for context in (torch.no_grad, torch.inference_mode):
        with context():
            classes, against = torch.tensor([2, 2, 0]), torch.tensor(1)
            maps = compute(model, "layer3", images * 1.0, classes, against)
            assert not torch.is_grad_enabled()
        assert torch.equal(maps, expected) and not maps.is_inference()


def test_under_autocast_and_models_and_images_of_any_float_dtype(model, images):
    expected = compute(model, "layer3", images)
    with torch.autocast("cpu", torch.bfloat16):
        model(images)  # fills autocast's cache of bfloat16 weights
        maps = compute(model, "layer3", images)
        assert torch.is_autocast_enabled("cpu")
    assert maps.dtype == torch.float32 and torch.equal(maps, expected)
    assert torch.equal(compute(model, "layer3", images.double()), expected)
    rounded = compute(model, "layer3", images.bfloat16().float())
    assert torch.equal(compute(model, "layer3", images.bfloat16()), rounded)
    for dtype, error in ((torch.float64, 1e-5), (torch.float16, 0.02), (torch.bfloat16, 0.1)):
        maps = compute(copy.deepcopy(model).to(dtype), "layer3", images)
        assert maps.dtype == torch.float32
        assert (maps - expected).abs().max() < error * expected.max()


def behind_a_detached_layer(model, images):
    detached = copy.deepcopy(model)
    detached.layer4.register_forward_hook(lambda layer, inputs, output: output.detach())
    compute(detached, "layer3", images)


def failing(model, images):
    model.layer4.forward = lambda x: 1 / 0
    compute(model, "layer3", images)


ATTENTION = "encoder.layers.encoder_layer_0.self_attention"
REFUSED = [
    (lambda model, images: compute(model, "layer3", images, [0, 6, 1]), r"0 to 5, not \[0, 6, 1\]"),
    (lambda model, images: compute(model, "layer3", images, [0, 1]), r"or 3 of them, not torch.int64 \[2\]"),
    (lambda model, images: compute(model, "layer3", images, [0.0] * 3), r"not torch.float32 \[3\]"),
    (lambda model, images: compute(model, "layer3", images.byte()), r"float \[N, 3, H, W\], not torch.uint8"),
    (lambda model, images: compute(model, "layer3.0.relu", images), "not 2 times"),
    (lambda model, images: compute(model, "fc", images), r"\[3, 6\] is not.* give a reshape"),
    (lambda model, images: GradCAM(model, "layer3")(images), r"with GradCAM\(model, layer\) as cam"),
    (lambda model, images: GradCAM(model, "layer9"), r"choose from conv1, .*layer4\.1\.conv2"),
    (lambda model, images: compute(small_vit(), ATTENTION, images), "float tensor, not tuple"),
    (behind_a_detached_layer, "no gradient"),
    (failing, "division by zero"),
    (lambda model, images: tokens(torch.zeros(2, 18, 4)), r"not \[2, 18, 4\]"),
    (lambda model, images: to_heatmap(torch.ones(1, 4, 4) * float("nan"), 8), "maps must be"),
    (lambda model, images: overlay(torch.rand(1, 3, 4, 4), torch.rand(1, 4, 4) + 1), "must be in"),
]


@pytest.mark.parametrize(("function", "message"), REFUSED)
def test_bad_arguments_raise_and_leave_no_trace(model, images, function, message):
    before = snapshot(mixed_modes(model))
    with pytest.raises((ValueError, ZeroDivisionError), match=message):
        function(model, images)
    assert snapshot(model) == before


# ---- Heatmaps and overlays -------------------------------------------------------------------------------


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

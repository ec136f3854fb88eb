"""resnet_cifar.py against torchvision's ResNet-18, torch's own operation counter, and formulas."""

import math

import pytest
import torch
import torch.nn.functional as F
import torchvision
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from resnet_cifar import count_parameters_and_macs, resnet18


def torchvision_resnet18(num_classes=100):
    """torchvision's network with the two changes for small images."""
    model = torchvision.models.resnet18(num_classes=num_classes)
    model.conv1 = nn.Conv2d(3, 64, 3, padding=1, bias=False)
    model.maxpool = nn.Identity()
    return model


def with_lived_in_statistics(model):
    """Give every batch norm a scale, a bias and running statistics that are not the initial ones."""
    generator = torch.Generator().manual_seed(3)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            for tensor in (module.weight.data, module.running_var):
                tensor.copy_(0.5 + torch.rand(tensor.shape, generator=generator))
            for tensor in (module.bias.data, module.running_mean):
                tensor.copy_(0.1 * torch.randn(tensor.shape, generator=generator))
    return model


@pytest.fixture(scope="module")
def pairs():
    """(source, target) in both directions, the target with the weights of the source."""
    torch.manual_seed(0)
    theirs, ours = torchvision_resnet18(), resnet18()
    ours.load_state_dict(with_lived_in_statistics(theirs).state_dict(), strict=True)
    ours_first, theirs_second = with_lived_in_statistics(resnet18()), torchvision_resnet18()
    theirs_second.load_state_dict(ours_first.state_dict(), strict=True)
    return {"from torchvision": (theirs, ours), "to torchvision": (theirs_second, ours_first)}


@pytest.mark.parametrize("direction", ["from torchvision", "to torchvision"])
@pytest.mark.parametrize("training", [False, True])
def test_outputs_gradients_and_statistics_equal_torchvision(pairs, direction, training):
    theirs, ours = pairs[direction]
    assert list(theirs.state_dict()) == list(ours.state_dict())
    images = torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    targets = torch.tensor([0, 17, 17, 99])
    results = []
    for model in (theirs, ours):
        model.train(training)
        model.zero_grad()
        logits = model(images)
        F.cross_entropy(logits, targets).backward()
        buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
        results.append((logits, {name: p.grad for name, p in model.named_parameters()}, buffers))
    torch.testing.assert_close(results[0], results[1])
    assert results[0][0].std() > 0.1


def test_other_image_sizes_and_strides(pairs):
    theirs, ours = pairs["from torchvision"]
    for size in (32, 33, 64):
        images = torch.randn(2, 3, size, size)
        with torch.inference_mode():
            torch.testing.assert_close(ours.eval()(images), theirs.eval()(images))


def test_parameter_count():
    assert sum(p.numel() for p in resnet18().parameters()) == 11_220_132
    assert sum(p.numel() for p in torchvision_resnet18().parameters()) == 11_220_132


def count_by_formula(width, num_classes):
    """Parameters and multiply-accumulates of the network for 32x32 images, from table 1 of the paper."""
    parameters = 27 * width + 2 * width
    macs = 32 * 32 * 27 * width
    inputs = width
    for stage, side in enumerate((32, 16, 8, 4)):
        outputs = width * 2**stage
        convolutions = [9 * inputs * outputs] + 3 * [9 * outputs * outputs]
        norms = 4
        if inputs != outputs:
            convolutions.append(inputs * outputs)
            norms += 1
        parameters += sum(convolutions) + norms * 2 * outputs
        macs += side * side * sum(convolutions)
        inputs = outputs
    return parameters + (inputs + 1) * num_classes, macs + inputs * num_classes


@pytest.mark.parametrize("width, num_classes", [(64, 100), (16, 100), (3, 7)])
def test_complexity_against_torch_and_formula(width, num_classes):
    model = resnet18(num_classes, width)
    rows = count_parameters_and_macs(model)
    counter = FlopCounterMode(display=False)
    with counter, torch.no_grad():
        model.eval()(torch.zeros(1, 3, 32, 32))
    macs, parameters = sum(row["macs"] for row in rows), sum(row["parameters"] for row in rows)
    assert 2 * macs == counter.get_total_flops()  # one multiplication and one addition each
    assert parameters == sum(p.numel() for p in model.parameters())
    assert (parameters, macs) == count_by_formula(width, num_classes)
    if width == 64:
        assert macs == pytest.approx(0.5555e9, rel=1e-4)


def test_complexity_names_every_layer_once_in_the_order_of_use():
    model = resnet18(10, width=4)
    rows = count_parameters_and_macs(model)
    layers = {n: m for n, m in model.named_modules() if isinstance(m, nn.Conv2d | nn.BatchNorm2d | nn.Linear)}
    assert {row["name"]: row["kind"] for row in rows} == {n: type(m).__name__ for n, m in layers.items()}
    assert len(rows) == len(layers) and rows[0]["name"] == "conv1" and rows[-1]["name"] == "fc"
    by_name = {row["name"]: row for row in rows}
    assert by_name["layer1.1.conv2"]["output"] == [4, 32, 32]
    assert by_name["layer3.0.downsample.0"]["output"] == [16, 8, 8]
    assert by_name["layer4.1.bn2"] == {
        "name": "layer4.1.bn2",
        "kind": "BatchNorm2d",
        "output": [32, 4, 4],
        "parameters": 64,
        "macs": 0,
    }


def test_complexity_leaves_the_model_as_it_is():
    model = resnet18(10, width=4)
    model.layer2.eval()
    modes = [module.training for module in model.modules()]
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    count_parameters_and_macs(model)
    assert [module.training for module in model.modules()] == modes
    assert not any(module._forward_hooks for module in model.modules())
    torch.testing.assert_close(model.state_dict(), state, rtol=0, atol=0)


def test_he_initialisation():
    torch.manual_seed(0)
    model = resnet18()
    for name, module in model.named_modules():
        if isinstance(module, nn.Conv2d):
            weight = module.weight.detach().double()
            # Equation 10 with n = kernel area x output channels, which is the paper's backward case.
            std = math.sqrt(2 / (module.kernel_size[0] ** 2 * module.out_channels))
            n = weight.numel()
            assert abs(weight.mean()) < 5 * std / math.sqrt(n), name
            assert abs(weight.std() / std - 1) < 5 / math.sqrt(2 * n), name
            kurtosis = ((weight / weight.std()) ** 4).mean()  # 3 for a normal, 1.8 for a uniform distribution
            assert abs(kurtosis - 3) < 5 * math.sqrt(24 / n), name
        elif isinstance(module, nn.BatchNorm2d):
            assert (module.weight == 1).all() and (module.bias == 0).all(), name


@pytest.mark.parametrize("num_classes, width", [(0, 64), (100, 0), (-1, 64)])
def test_impossible_sizes_are_refused(num_classes, width):
    with pytest.raises(ValueError, match="at least 1"):
        resnet18(num_classes, width)

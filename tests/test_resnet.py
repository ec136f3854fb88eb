"""resnet_cifar.py against torchvision's ResNet-18 and table 1 of the paper."""

import math

import pytest
import torch
import torch.nn.functional as F
import torchvision
from networks import seeded
from torch import nn

from resnet_cifar import resnet18


def torchvision_resnet18(state=None):
    """torchvision's network with the two changes for small images, in eval mode with these weights."""
    model = torchvision.models.resnet18(num_classes=100).eval()
    model.conv1 = nn.Conv2d(3, 64, 3, padding=1, bias=False)
    model.maxpool = nn.Identity()
    if state is not None:
        model.load_state_dict(state)
    return model


@pytest.fixture(scope="module")
def pair():
    """torchvision's network, with batch norms that are not fresh, and ours with the weights of it."""
    torch.manual_seed(0)
    theirs, ours = torchvision_resnet18(), resnet18()
    for module in theirs.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.weight.data.uniform_(0.5, 1.5)
            module.bias.data.normal_(0, 0.1)
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.5, 1.5)
    assert list(theirs.state_dict()) == list(ours.state_dict())
    ours.load_state_dict(theirs.state_dict(), strict=True)
    return theirs, ours


@pytest.mark.parametrize("training", [False, True])
def test_outputs_gradients_and_statistics_equal_torchvision(pair, training):
    images = torch.randn(3, 3, 32, 32, generator=seeded(1))
    targets = torch.tensor([0, 17, 99])
    results = []
    for model in pair:
        model.train(training)
        model.zero_grad()
        logits = model(images)
        F.cross_entropy(logits, targets).backward()
        gradients = {name: p.grad for name, p in model.named_parameters()}
        results.append((logits, gradients, dict(model.named_buffers())))
    torch.testing.assert_close(results[0], results[1])
    assert results[0][0].std() > 0.1


@pytest.mark.parametrize("size", [24, 33])
def test_other_image_sizes_and_strides(pair, size):
    images = torch.randn(2, 3, size, size, generator=seeded(2))
    with torch.inference_mode():
        theirs, ours = (model.eval()(images) for model in pair)
    torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("width, parameters", [(64, 11_220_132), (16, 713_076)])
def test_parameters_by_width(width, parameters):
    assert sum(parameter.numel() for parameter in resnet18(100, width).parameters()) == parameters


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
            kurtosis = ((weight / weight.std()) ** 4).mean()  # 3 if normal, 1.8 if uniform
            assert abs(kurtosis - 3) < 5 * math.sqrt(24 / n), name
        elif isinstance(module, nn.BatchNorm2d):
            assert (module.weight == 1).all() and (module.bias == 0).all(), name

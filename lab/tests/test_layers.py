"""layers.py: the layer that is explained."""

import pytest
import torch
import torchvision
from lab_networks import Wrapped
from networks import random_images, small_swin
from torch import nn

from gradcam import GradCAM
from lab.network import (
    from_module,
    signed_maps,
)


def small_vit():
    torch.manual_seed(0)
    model = torchvision.models.VisionTransformer(32, 8, 2, 2, hidden_dim=16, mlp_dim=32, num_classes=6)
    nn.init.normal_(model.heads.head.weight)
    return model.eval()


class Attention(nn.Module):
    """Of two heads, which are added; queries, keys and values are channels of one layer, as in timm."""

    def __init__(self):
        super().__init__()
        self.qkv, self.proj = nn.Linear(16, 48), nn.Linear(16, 16)

    def forward(self, x):
        q, k, v = self.qkv(x).unflatten(2, (3, 2, 8)).permute(2, 0, 3, 1, 4)
        heads = nn.functional.scaled_dot_product_attention(q, k, v)
        return x + self.proj(heads.transpose(1, 2).flatten(2)).relu()


class TimmViT(nn.Module):
    """As of timm: a class token before 4x4 cells, two blocks, and the logits of the token."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.patches, self.blocks = nn.Conv2d(3, 16, 8, 8), nn.Sequential(Attention(), Attention())
        self.token, self.head = nn.Parameter(torch.randn(1, 1, 16)), nn.Linear(16, 5)

    def forward(self, x):
        cells = self.patches(x).flatten(2).mT
        return self.head(self.blocks(torch.cat([self.token.expand(len(x), -1, -1), cells], dim=1))[:, 0])


def ending(*layers):
    """A network whose logits come from what the layers make of a picture."""
    model = nn.Sequential(*layers, nn.Flatten(), nn.LazyLinear(5))
    model(torch.zeros(1, 3, 32, 32))
    return model


@pytest.mark.parametrize(
    ("build", "layer", "side"),
    [
        (lambda: torchvision.models.resnet18(num_classes=5), "layer3", 2),  # layer4 has one cell
        (small_vit, "encoder.layers.encoder_layer_1.ln_1", 4),
        (small_swin, "permute", 8),
        (TimmViT, "blocks.0", 4),
        (lambda: ending(nn.Conv2d(3, 4, 3, 2), nn.ReLU(), nn.AdaptiveAvgPool2d(1)), "1", 15),
        # As VGG of torchvision at 32 pixels: one cell, spread over 7x7 by the pooling behind it, is no map.
        (lambda: ending(nn.Conv2d(3, 4, 3, 2), nn.MaxPool2d(15), nn.AdaptiveAvgPool2d(7)), "0", 15),
    ],
)
def test_layer_by_default_is_the_last_that_has_cells(build, layer, side):
    torch.manual_seed(0)
    network = from_module(build())
    maps = signed_maps(network, random_images(3, 32), [(torch.tensor([0, 1, 2]), torch.tensor([1, 2, 0]))])[0]
    assert (network.layer, maps.shape) == (layer, (3, side, side))
    assert not any(part._forward_hooks for part in network.model.modules())


def convolutions(*layers):
    return nn.Conv2d(3, 8, 3, 2), nn.ReLU(), nn.Conv2d(8, 64, 3, 2), nn.ReLU(), *layers


@pytest.mark.parametrize(
    ("build", "wrong", "right"),
    [
        (lambda: ending(nn.Conv2d(3, 16, 4, 4), nn.Flatten(2), nn.AdaptiveAvgPool1d(1)), "2", "0"),
        (lambda: ending(*convolutions(nn.Flatten(2), nn.Identity())), "5", "3"),
        (lambda: ending(*convolutions(nn.Flatten(2), nn.Conv1d(64, 16, 1))), "5", "3"),
    ],
)
def test_cells_that_are_channels_are_no_places_and_the_layer_before_them_is_taken(build, wrong, right):
    for seed in range(3):
        torch.manual_seed(seed)
        model = build()
        assert from_module(model).layer == right
        model.layer = wrong
        with pytest.raises(ValueError, match=f"{wrong} cannot be explained: .*not places of the picture"):
            from_module(model)


def test_tokens_and_channels_last_are_brought_to_channels_first():
    torch.manual_seed(0)
    model, images, classes = small_swin(), random_images(3, 32), torch.tensor([0, 1, 2])
    by_itself = signed_maps(from_module(model), images, [(classes, None)])[0]
    model.layer = "norm"  # [N, 8, 8, K], of which "permute" makes [N, K, 8, 8]
    torch.testing.assert_close(signed_maps(from_module(model), images, [(classes, None)])[0], by_itself)
    vit = small_vit()
    by_hand = GradCAM(vit, from_module(vit).layer, lambda t: t[:, 1:].mT.unflatten(2, (4, 4)))
    expected = by_hand.weighted_sum(images / 255, classes)
    torch.testing.assert_close(signed_maps(from_module(vit), images, [(classes, None)])[0], expected)


def test_without_a_layer_there_are_no_maps_and_a_reason():
    frozen, wide = Wrapped(lambda z: z.detach()), ending(nn.Conv2d(3, 4, (3, 9), 2))  # 15x12 cells
    for model, reason in [(wide, "no layer has an output"), (frozen, "no gradient of the scores")]:
        network = from_module(model)
        assert network.layer is None and network.about_maps.startswith("no maps: ")
        assert reason in network.about_maps
    frozen.layer = "nowhere"
    with pytest.raises(ValueError, match=r"the layer nowhere cannot be explained: .*choose from"):
        from_module(frozen)

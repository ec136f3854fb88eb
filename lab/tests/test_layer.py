"""layer.py: which layer is explained, and how its output is brought to cells, worked out by hand."""

import pytest
import torch
import torchvision
from lab_commands import CPU
from lab_networks import Applied, pictures, pool, simple, small_vit
from networks import small_swin
from torch import nn

from lab.classifier import from_module, predict
from lab.support import UserError


@pytest.mark.parametrize(
    ("build", "layer", "side"),
    [
        (lambda: torchvision.models.resnet18(num_classes=5), "layer3", 2),  # layer4 has one cell at 32 pixels
        (small_vit, "encoder.layers.encoder_layer_1.ln_1", 4),
        (small_swin, "permute", 8),
        (lambda: simple(nn.Conv2d(3, 4, 3, 2), nn.ReLU(), nn.AdaptiveAvgPool2d(1)), "1", 15),
        # As VGG of torchvision at 32 pixels: one cell, spread over 7x7 by the pooling behind it, is no map.
        (lambda: simple(nn.Conv2d(3, 4, 3, 2), nn.MaxPool2d(15), nn.AdaptiveAvgPool2d(7)), "0", 15),
    ],
)
def test_layer_by_default_is_the_last_that_has_cells(build, layer, side):
    torch.manual_seed(0)
    module = build()
    found = from_module(module, None, None, CPU)
    maps = found.explain(pictures(3), torch.tensor([0, 1, 2]))
    assert (found.layer, maps.shape) == (layer, (3, side, side))


class OriginalSwin(nn.Module):
    """The end of the original Swin: channels are pooled as rows of tokens, [N, 16, 1]."""

    def __init__(self):
        super().__init__()
        self.patches, self.norm = nn.Conv2d(3, 16, 4, 4), nn.LayerNorm(16)
        self.avgpool, self.head = nn.AdaptiveAvgPool1d(1), nn.Linear(16, 5)

    def forward(self, x):
        x = self.norm(self.patches(x).flatten(2).mT)
        return self.head(self.avgpool(x.mT).flatten(1))


def convolutions(*layers):
    return nn.Conv2d(3, 8, 3, 2), nn.ReLU(), nn.Conv2d(8, 64, 3, 2), nn.ReLU(), *layers


@pytest.mark.parametrize(
    ("build", "wrong", "right"),
    [
        (OriginalSwin, "avgpool", "norm"),
        (lambda: simple(*convolutions(nn.Flatten(2), nn.Identity())), "5", "3"),
        (lambda: simple(*convolutions(nn.Flatten(2), nn.Conv1d(64, 16, 1))), "5", "3"),
        (
            lambda: simple(*convolutions(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Unflatten(1, (4, 4, 4)))),
            "6",
            "3",
        ),
    ],
)
def test_cells_that_are_channels_are_no_map_and_the_layer_before_them_is_taken(build, wrong, right):
    for seed in range(3):
        torch.manual_seed(seed)
        module = build()
        assert from_module(module, None, None, CPU).layer == right
        with pytest.raises(
            UserError, match=f"--layer {wrong} cannot be explained: .*not places of the picture"
        ):
            from_module(module, None, wrong, CPU)


class Branches(nn.Module):
    """What two convolutions make, side by side or one added to its input."""

    def __init__(self, residual):
        super().__init__()
        self.a, self.b, self.residual = nn.Conv2d(3, 3, 3, padding=1), nn.Conv2d(3, 3, 3, padding=1), residual
        self.head = nn.LazyLinear(5)

    def forward(self, x):
        a = self.a(x)
        return self.head(pool(a + self.b(a) if self.residual else torch.cat([a, self.b(x)], dim=1)))


def test_a_part_of_the_scores_that_goes_around_the_layer_is_noted():
    note = "; a part of the scores does not come through it, and is not explained"
    for module in (Branches(True), Branches(False), small_vit()):  # whose class token is carried past norm1
        assert from_module(module, None, None, CPU).layer_note.endswith(note)
    for module in (Applied(), small_swin()):
        assert "a part" not in from_module(module, None, None, CPU).layer_note


def test_channels_last_layer_is_reshaped():
    torch.manual_seed(0)
    module = small_swin()
    last = from_module(module, None, "norm", CPU)  # [N, 8, 8, K]
    first = from_module(module, None, "permute", CPU)  # the same values as [N, K, 8, 8]
    images, classes = pictures(3), torch.tensor([0, 1, 2])
    torch.testing.assert_close(last.explain(images, classes), first.explain(images, classes))


def test_no_layer_with_cells_and_no_layer_wanted():
    flat = from_module(simple(), None, None, CPU)
    assert flat.layer is None and flat.layer_note.startswith("no maps: no output is [N, K, h, w], [N, h")
    for function in (lambda x: pool(x.detach()), lambda x: x[:, :, 0, 0]):
        note = from_module(Applied(function), None, None, CPU).layer_note
        assert note == "no maps: no gradient of the scores reaches several cells of conv"
    convolutional = simple(nn.Conv2d(3, 4, 3))
    assert from_module(convolutional, None, "none", CPU).layer is None
    assert from_module(convolutional, None, None, CPU).layer == "0"


def with_zero(z):
    return torch.cat([torch.zeros_like(z), z], dim=1)


@pytest.mark.parametrize("end", [lambda z: z, lambda z: z[:, 0], torch.squeeze, with_zero])
def test_one_logit_is_two_classes_and_has_a_layer_also_where_noise_falls_to_the_constant_class(end):
    for seed in range(5):
        torch.manual_seed(seed)
        module = Applied(lambda x: end(99 * pool(x)[:, :1]))
        network = from_module(module, ["no", "yes"], None, CPU)
        assert network.layer == "conv" and len(network.notes) == (end is not with_zero)
        for images in (pictures(3), pictures(1)):
            expected = with_zero(99 * pool(module.conv(images / 255))[:, :1]).detach().softmax(dim=1)
            torch.testing.assert_close(predict(network.model, images, CPU).softmax(dim=1), expected)


def test_the_map_of_one_logit_for_one_class_is_the_other_ones_negative():
    """Each has evidence of its own: what speaks for one of two classes speaks against the other."""
    torch.manual_seed(0)
    network = from_module(Applied(lambda x: pool(x)[:, :1]), None, "conv", CPU)
    no, yes = network.pairs(pictures(3), [(0, None), (1, None)])
    torch.testing.assert_close(no, -yes)
    assert yes.abs().flatten(1).amax(dim=1).min() > 0


def test_layer_that_cannot_be_explained_is_refused():
    convolution = nn.Conv2d(3, 3, 3, padding=1)
    module = simple(convolution, convolution)  # layer 0 twice; 2 is the flattened output
    refused = {"nowhere": "is no layer that runs", "0": "runs 2 times", "2": "cannot be explained: no"}
    for layer, message in refused.items():
        with pytest.raises(UserError, match=f"--layer {layer} {message}"):
            from_module(module, None, layer, CPU)
    assert from_module(module, None, None, CPU).layer_note.endswith("runs more than once in a pass")


class Tokens(nn.Module):
    """Patches as tokens behind a few others; logits from what the first token attends to."""

    def __init__(self, patch, before):
        super().__init__()
        self.patches, self.before = nn.Conv2d(3, 8, patch, patch), nn.Parameter(torch.randn(1, before, 8))
        self.norm, self.values, self.head = nn.LayerNorm(8), nn.Linear(8, 8), nn.Linear(8, 5)
        self.q_norm, self.attn_drop = nn.Identity(), nn.Dropout()  # whose outputs hold no cells
        self.one_cell = nn.Unflatten(1, (8, 1, 1))  # nor does this

    def forward(self, x):
        tokens = self.patches(x).flatten(2).mT
        tokens = self.norm(torch.cat([self.before.expand(len(x), -1, -1), tokens], dim=1))
        queries, values = self.q_norm(tokens[:, None]), self.values(tokens)[:, None]  # [N, 1, T, 8]
        attention = self.attn_drop((queries @ queries.mT).softmax(dim=3))  # [N, 1, T, T]
        mixed = (attention @ values)[:, 0, 0]
        return self.head(self.one_cell(mixed).flatten(1))


@pytest.mark.parametrize(("patch", "before"), [(8, 0), (8, 1), (8, 2), (8, 5), (4, 5), (16, 5)])
def test_tokens_of_the_picture_are_the_last_ones_and_explained_before_they_are_projected(patch, before):
    torch.manual_seed(0)
    module = Tokens(patch, before).eval()
    found, side = from_module(module, None, None, CPU), 32 // patch
    images, classes = pictures(2), torch.tensor([1, 3])
    maps = found.explain(images, classes)
    outputs = []
    handle = module.norm.register_forward_hook(lambda layer, inputs, output: outputs.append(output))
    scores = module(images / 255).gather(1, classes[:, None]).sum()
    handle.remove()
    (gradient,) = torch.autograd.grad(scores, outputs[0])
    cells = [[outputs[0][n, before:] @ gradient[n, before:].mean(dim=0)] for n in range(2)]
    expected = torch.stack([row[0].view(side, side).relu() for row in cells]).detach()
    torch.testing.assert_close(maps, expected)
    assert expected.any() and found.layer_note.startswith(f"norm, {side}x{side} cells, brought from tokens")
    assert from_module(module, None, "values", CPU).layer == "values"

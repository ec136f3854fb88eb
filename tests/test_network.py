"""network.py: a checkpoint and a network from outside become one object; layer, counts, classes."""

import argparse
import textwrap

import pytest
import torch
import torchvision
from networks import small_resnet
from torch import nn

import data
import network
from data import MEAN, STD, Normalize, make_shapes
from network import FromPixels, from_module, load_checkpoint, load_model, predict
from running.files import UserError

CPU = torch.device("cpu")
SHIPPED = "weights/resnet18_cifar100.pt"
# torchvision's ResNet-18 with a 3x3 stem and no pooling: what the shipped weights belong to.
THEIRS = """
    import torchvision
    from torch import nn

    def net():
        model = torchvision.models.resnet18(num_classes=100)
        model.conv1, model.maxpool = nn.Conv2d(3, 64, 3, padding=1, bias=False), nn.Identity()
        return model

    def two():
        convolution, pool = nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1)
        return nn.Sequential(convolution, nn.ReLU(), pool, nn.Flatten(), nn.Linear(4, 2))

    def nothing():
        return 3

    def broken():
        raise RuntimeError("no such thing")
"""


def pictures(n: int = 6) -> torch.Tensor:
    return torch.randint(
        0, 256, (n, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)
    )


@pytest.fixture
def theirs(tmp_path):
    """A file of networks, and the shipped weights as a plain state dict."""
    file, weights = tmp_path / "theirs.py", tmp_path / "theirs.pt"
    file.write_text(textwrap.dedent(THEIRS))
    state = torch.load(SHIPPED, weights_only=True)["model"]
    torch.save({name: value.float() for name, value in state.items()}, weights)
    return file, weights


def load(spec, weights=None, mean=None, std=None, layer=None, class_names=None):
    return load_model(str(spec), weights, mean, std, layer, class_names, CPU)


class Applied(nn.Module):
    """A network that is a function of images, behind a convolution that keeps their size."""

    def __init__(self, function, channels=3):
        super().__init__()
        self.conv, self.function = nn.Conv2d(channels, 5, 3, padding=1), function

    def forward(self, x):
        return self.function(self.conv(x))


def simple(*layers: nn.Module, num_classes: int = 5) -> nn.Module:
    return nn.Sequential(*layers, nn.Flatten(), nn.LazyLinear(num_classes))


# ---- A checkpoint, and the same weights from outside -----------------------------------------------------


def test_shipped_weights_give_the_same_answers_in_torchvisions_network(theirs):
    file, weights = theirs
    with torch.no_grad():
        ours = load_checkpoint(SHIPPED, CPU)
    outside = load(f"{file}:net", weights, MEAN, STD)
    images = pictures()
    expected = predict(ours.model, images, CPU)
    torch.testing.assert_close(predict(outside.model, images, CPU), expected, rtol=1e-4, atol=1e-4)
    assert ours.layer == outside.layer == "layer4"
    assert ours.parameters == outside.parameters == 11_220_132
    assert ours.training.epoch == 39
    assert ours.training.val_logits.shape == (10_000, 100)
    assert outside.training is None
    assert outside.temperature is None
    maps = ours.explain(images.float() / 255, torch.arange(6))
    torch.testing.assert_close(
        outside.explain(images.float() / 255, torch.arange(6)), maps, rtol=1e-3, atol=1e-4
    )


@pytest.mark.parametrize("wrap", [lambda s: {"state_dict": s}, lambda s: {"model": s, "epoch": 3}])
def test_weights_below_a_key_and_with_module_before_the_names(theirs, tmp_path, wrap):
    file, weights = theirs
    state = torch.load(weights, weights_only=True)
    renamed = {f"module._orig_mod.{name}": value for name, value in state.items()}
    torch.save(wrap(renamed), tmp_path / "wrapped.pt")
    plain, wrapped = load(f"{file}:net", weights), load(f"{file}:net", tmp_path / "wrapped.pt")
    assert plain.digest == wrapped.digest
    assert torch.equal(predict(plain.model, pictures(), CPU), predict(wrapped.model, pictures(), CPU))


def test_digest_changes_with_one_weight():
    module = simple(nn.Conv2d(3, 4, 3))
    module(torch.zeros(1, 3, 32, 32))
    before = from_module(module, None, None, CPU).digest
    assert from_module(module, None, None, CPU).digest == before
    with torch.no_grad():
        module[0].weight[0, 0, 0, 0] += 1e-6
    assert from_module(module, None, None, CPU).digest != before


def test_digest_changes_with_what_normalises(theirs):
    file, weights = theirs
    numbers = [(None, None), (MEAN, STD), (MEAN, (0.5, 0.5, 0.5))]
    digests = {load(f"{file}:net", weights, mean, std).digest for mean, std in numbers}
    assert len(digests) == 3


def test_normalisation_is_that_of_the_options(theirs):
    mean, std = (0.1, 0.2, 0.3), (0.4, 0.5, 0.6)
    found = load(f"{theirs[0]}:two", None, mean, std)
    x = (pictures().double() / 255 - torch.tensor(mean).view(3, 1, 1)) / torch.tensor(std).view(3, 1, 1)
    with torch.no_grad():
        expected = found.module(x.float())
    torch.testing.assert_close(predict(found.model, pictures(), CPU), expected)


def test_smaller_image_size_resizes_first():
    class Side(nn.Module):
        def forward(self, x):
            return torch.tensor([[float(x.shape[-1]), 0.0]]).expand(len(x), 2)

    model = FromPixels(Side(), image_size=24, normalize=Normalize())
    assert model(torch.rand(2, 3, 32, 32))[0, 0] == 24


def test_predict_restores_frozen_modules_and_changes_nothing():
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(3600, 2)).train()
    model[1].eval()  # frozen by the caller
    before = {name: value.clone() for name, value in model.state_dict().items()}
    logits = predict(model, pictures(5), CPU, batch_size=2)
    assert [module.training for module in model] == [True, False, True, True]
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    model.eval()
    with torch.no_grad():
        expected = model(pictures(5).float() / 255)
    torch.testing.assert_close(logits, expected, rtol=1e-5, atol=1e-5)
    assert predict(model, pictures(5)[:0], CPU).shape == (0, 2)


# ---- What is inside --------------------------------------------------------------------------------------


def small_vit() -> nn.Module:
    return torchvision.models.VisionTransformer(
        image_size=32, patch_size=8, num_layers=2, num_heads=2, hidden_dim=16, mlp_dim=32, num_classes=5
    )


def small_swin() -> nn.Module:
    return torchvision.models.SwinTransformer(
        patch_size=[2, 2],
        embed_dim=16,
        depths=[2, 2],
        num_heads=[2, 4],
        window_size=[4, 4],
        num_classes=5,
    )


@pytest.mark.parametrize(
    ("build", "layer", "side"),
    [
        (lambda: torchvision.models.resnet18(num_classes=5), "layer3", 2),  # layer4 has one cell at 32 pixels
        (lambda: torchvision.models.mobilenet_v2(num_classes=5), "features.14.conv.0", 2),
        (small_vit, "encoder.layers.encoder_layer_1.ln_1", 4),
        (small_swin, "permute", 8),
        (lambda: simple(nn.Conv2d(3, 4, 3, 2), nn.ReLU(), nn.AdaptiveAvgPool2d(1)), "1", 15),
    ],
)
def test_layer_by_default_is_the_last_that_has_cells(build, layer, side):
    torch.manual_seed(0)
    module = build()
    if any(isinstance(part, nn.LazyLinear) for part in module.modules()):
        module(torch.zeros(1, 3, 32, 32))
    if isinstance(module, torchvision.models.VisionTransformer):
        nn.init.normal_(module.heads.head.weight)  # zero as built: then no gradient reaches anything
    found = from_module(module, None, None, CPU)
    maps = found.explain(torch.rand(3, 3, 32, 32), torch.tensor([0, 1, 2]))
    assert (found.layer, maps.shape) == (layer, (3, side, side))


def test_channels_last_layer_is_reshaped():
    torch.manual_seed(0)
    module = small_swin()
    last = from_module(module, None, "norm", CPU)  # [N, 8, 8, K]
    first = from_module(module, None, "permute", CPU)  # the same values as [N, K, 8, 8]
    images, classes = torch.rand(3, 3, 32, 32), torch.tensor([0, 1, 2])
    torch.testing.assert_close(last.explain(images, classes), first.explain(images, classes))


def test_copied_cells_are_no_map():
    # As VGG of torchvision at 32 pixels: one cell, spread over 7x7 by the pooling behind it.
    module = simple(nn.Conv2d(3, 4, 3, 2), nn.MaxPool2d(15), nn.AdaptiveAvgPool2d(7))
    module(torch.zeros(1, 3, 32, 32))
    assert from_module(module, None, None, CPU).layer == "0"


def test_layer_of_which_one_cell_alone_is_used_is_no_map():
    corner = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Conv2d(4, 5, 3), Applied(lambda x: x[..., 0, 0], 5))
    assert from_module(corner, None, None, CPU).layer == "1"


def test_no_layer_with_cells_and_no_layer_wanted():
    flat = simple()
    flat(torch.zeros(1, 3, 32, 32))
    assert from_module(flat, None, None, CPU).layer is None
    convolutional = simple(nn.Conv2d(3, 4, 3))
    convolutional(torch.zeros(1, 3, 32, 32))
    assert from_module(convolutional, None, "none", CPU).layer is None
    assert from_module(convolutional, None, None, CPU).layer == "0"


def test_scores_without_a_gradient_have_no_maps():
    found = from_module(Applied(lambda x: x.detach().mean(dim=(2, 3))), None, None, CPU)
    assert (found.layer, found.num_classes) == (None, 5)


def test_a_network_inside_no_grad_has_no_maps():
    class Frozen(nn.Sequential):
        @torch.no_grad()
        def forward(self, x):
            return super().forward(x)

    found = from_module(Frozen(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(3600, 5)), None, None, CPU)
    assert (found.layer, found.classifier, found.macs) == (None, "2", 900 * 4 * 27 + 3600 * 5)


def test_a_module_that_returns_one_number_is_no_layer():
    class Scaled(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.scale = nn.Conv2d(3, 5, 3), Applied(lambda x: x.mean())

        def forward(self, x):
            return self.conv(x).mean(dim=(2, 3)) * self.scale(x)

    assert from_module(Scaled(), None, None, CPU).layer == "scale.conv"


def test_lazy_layers_get_their_weights_in_the_first_pass():
    found = from_module(simple(nn.Conv2d(3, 4, 3)), None, None, CPU)
    assert found.parameters == 4 * 28 + 30 * 30 * 4 * 5 + 5
    assert found.digest == from_module(found.module, None, None, CPU).digest
    lazy = simple(nn.Conv2d(3, 4, 3))
    network.load_weights(lazy, found.module.state_dict())
    assert from_module(lazy, None, None, CPU).digest == found.digest


@pytest.mark.parametrize("layer", ["nowhere", "1"])  # no such module; the flattened output
def test_layer_that_cannot_be_explained_is_refused(layer):
    module = simple(nn.Conv2d(3, 4, 3))
    module(torch.zeros(1, 3, 32, 32))
    with pytest.raises(UserError, match=f"--layer {layer}"):
        from_module(module, None, layer, CPU)


def test_layer_that_runs_twice_is_refused():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.head = nn.Conv2d(3, 3, 3, padding=1), nn.Linear(3, 2)

        def forward(self, x):
            return self.head(self.conv(self.conv(x)).mean(dim=(2, 3)))

    with pytest.raises(UserError, match="2 times"):
        from_module(Twice(), None, "conv", CPU)
    assert from_module(Twice(), None, None, CPU).layer is None


def test_multiply_accumulates_of_convolution_linear_and_attention():
    module = simple(nn.Conv2d(3, 4, 3, padding=1, groups=1), num_classes=7)
    module(torch.zeros(1, 3, 32, 32))
    found = from_module(module, None, None, CPU)
    assert found.macs == 32 * 32 * 4 * 3 * 9 + 4 * 32 * 32 * 7
    assert found.parameters == 4 * 3 * 9 + 4 + 4 * 32 * 32 * 7 + 7

    class Attention(nn.Module):
        def __init__(self):
            super().__init__()
            self.embed = nn.Conv2d(3, 16, 8, stride=8)
            self.attention = nn.MultiheadAttention(16, 2, batch_first=True)
            self.head = nn.Linear(16, 5)

        def forward(self, x):
            x = self.embed(x).flatten(2).transpose(1, 2)
            return self.head(self.attention(x, x, x, need_weights=False)[0].mean(dim=1))

    tokens, width = 16, 16
    embedding = tokens * width * 3 * 64
    projections = 4 * tokens * width * width
    products = 2 * tokens * tokens * width
    found = from_module(Attention(), None, None, CPU)
    assert found.macs == embedding + projections + products + width * 5
    assert found.parameters == sum(p.numel() for p in Attention().parameters())


def test_features_are_what_goes_into_the_classifier():
    torch.manual_seed(0)
    module = torchvision.models.resnet18(num_classes=5)
    found = from_module(module, None, None, CPU)
    logits, features = found.features(pictures(5))
    with torch.no_grad():
        expected = module.fc(features)
    assert (found.classifier, features.shape) == ("fc", (5, 512))
    torch.testing.assert_close(logits, expected)


def test_a_linear_layer_that_runs_twice_is_no_classifier():
    class Mirrored(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc = nn.Linear(3, 2)

        def forward(self, x):
            return self.fc(x[..., 0, 0]) + self.fc(x[..., 0, 31])

    found = from_module(Mirrored(), None, None, CPU)
    assert found.classifier is None
    logits, features = found.features(pictures(5))
    assert (logits.shape, features) == ((5, 2), None)


# ---- Batch norm folded into convolutions -----------------------------------------------------------------


class Head(nn.Linear):
    """A classifier that a tracer looks into, so that no hook on it runs afterwards."""


class Unusual(nn.Module):
    """A convolution, a batch norm with statistics of its own, and something that makes it hard to fold."""

    def __init__(self, how):
        super().__init__()
        self.conv, self.bn, self.how = nn.Conv2d(3, 3, 3, padding=1), nn.BatchNorm2d(3), how
        self.fc = (Head if how == "head" else nn.Linear)(3, 5)
        nn.init.uniform_(self.bn.running_mean)
        nn.init.uniform_(self.bn.running_var, 0.2, 3)
        nn.init.normal_(self.bn.weight)
        if how == "hook":
            self.bn.register_forward_hook(lambda module, inputs, output: 2 * output)
        if how == "no copy":
            self.state = (part for part in ())  # a generator cannot be copied

    def forward(self, x):
        if self.how == "branch" and x.mean() > 2:
            return self.fc(x[..., 0, 0])
        x = self.bn(self.conv(x))
        if self.how == "twice":
            x = self.bn(self.conv(x))
        if self.how == "training" and self.training:
            raise RuntimeError("only in training")
        return self.fc(x.relu().mean(dim=(2, 3)))


def batch_norms_that_run(model: FromPixels) -> int:
    modules = dict(model.network.named_modules())
    return sum(isinstance(modules.get(node.target), nn.BatchNorm2d) for node in model.network.graph.nodes)


@pytest.mark.parametrize(
    ("build", "left"),
    [
        (small_resnet, 0),
        (lambda: small_resnet().to(memory_format=torch.channels_last), 0),
        (lambda: torchvision.models.mobilenet_v2(num_classes=5), 0),
        (lambda: torchvision.models.densenet121(num_classes=5), 62),  # those that come before a convolution
        (lambda: Unusual("training").train(), 0),
    ],
)
def test_folded_network_makes_the_same_logits_and_leaves_the_module_alone(build, left):
    torch.manual_seed(0)
    module = build()
    before = {name: value.clone() for name, value in module.state_dict().items()}
    found = from_module(module, None, "none", CPU)
    with torch.inference_mode():
        folded = found.folded
    expected = predict(found.model, pictures(), CPU)
    scale = expected.abs().max()
    torch.testing.assert_close(predict(folded, pictures(), CPU), expected, rtol=0, atol=1e-5 * scale)
    assert folded is not found.model
    assert batch_norms_that_run(folded) == left
    assert not any(value.is_inference() for value in folded.state_dict().values())
    logits, features = found.features(pictures())
    inputs = []
    with module.get_submodule(found.classifier).register_forward_pre_hook(lambda _, x: inputs.append(x[0])):
        torch.testing.assert_close(predict(found.model, pictures(), CPU), logits, rtol=0, atol=1e-5 * scale)
    torch.testing.assert_close(features, inputs[0], rtol=1e-4, atol=1e-5 * inputs[0].abs().max())
    after = module.state_dict()
    assert after.keys() == before.keys() and all(torch.equal(after[name], before[name]) for name in before)
    assert not any(part._forward_pre_hooks or part._forward_hooks for part in module.modules())


@pytest.mark.parametrize("how", ["branch", "twice", "hook", "head", "no copy"])
def test_what_cannot_be_folded_stays_as_it_is(how):
    torch.manual_seed(0)
    found = from_module(Unusual(how), None, "none", CPU)
    assert found.folded is found.model
    logits, features = found.features(pictures())
    torch.testing.assert_close(logits, predict(found.model, pictures(), CPU))
    torch.testing.assert_close(logits, found.module.fc(features).detach())


def test_hooks_of_somebody_see_every_pass_and_nothing_else():
    module, seen = small_resnet(), []
    handle = module.layer1.register_forward_hook(lambda part, inputs, output: seen.append(output))
    found = from_module(module, None, "none", CPU)
    seen.clear()
    found.features(pictures(60))
    assert [len(output) for output in seen] == [50, 10]
    assert all(type(output) is torch.Tensor for output in seen)
    handle.remove()


def test_transformers_and_networks_without_batch_norm_stay_as_they_are():
    for module in (small_vit(), small_swin(), Unusual("branch").fc):
        found = network.Network(FromPixels(module.eval()), CPU, "", None, None, "")
        assert found.folded is found.model


def test_folded_logits_come_in_the_order_of_the_data_set_and_behind_what_normalises():
    module, names = Unusual("training"), list("abcde")
    test = data.from_arrays(pictures(5), torch.arange(5), names[::-1])
    found = from_module(
        FromPixels(module, 24, Normalize((0.1, 0.2, 0.3), (0.4, 0.5, 0.6))), names, "none", CPU
    )
    assert found.folded.order is None
    network.fit_classes(found, test)
    assert found.folded.network is not module
    torch.testing.assert_close(
        predict(found.folded, test.images, CPU), predict(found.model, test.images, CPU)
    )


# ---- Classes and data ------------------------------------------------------------------------------------


def test_logits_are_brought_into_the_order_of_the_data_set():
    test = make_shapes(1, seed=1)
    order = torch.randperm(100, generator=torch.Generator().manual_seed(0)).tolist()
    module = simple(nn.AvgPool2d(8), num_classes=100)
    module(torch.zeros(1, 3, 32, 32))
    found = from_module(module, [test.class_names[c].upper() for c in order], None, CPU)
    own = predict(found.model, test.images[:3], CPU)
    network.fit_classes(found, test)
    fitted = predict(found.model, test.images[:3], CPU)
    for place, c in enumerate(order):
        assert torch.equal(fitted[:, c], own[:, place])


def test_other_classes_or_another_number_are_refused():
    test = make_shapes(1, seed=1)
    module = simple(nn.AvgPool2d(8), num_classes=100)
    module(torch.zeros(1, 3, 32, 32))
    with pytest.raises(UserError, match="are not those of"):
        network.fit_classes(from_module(module, [*test.class_names[1:], "cat"], None, CPU), test)
    module = simple(nn.AvgPool2d(8), num_classes=99)
    module(torch.zeros(1, 3, 32, 32))
    with pytest.raises(UserError, match="99 logits"):
        network.fit_classes(from_module(module, None, None, CPU), test)


def test_another_number_of_classes_is_noticed_before_the_data_are_read(monkeypatch):
    monkeypatch.setattr(network, "load", lambda name, root: pytest.fail("it reads the data"))
    found = from_module(Applied(lambda x: x.mean(dim=(2, 3))), None, None, CPU)
    for name, count in (("cifar100", 100), ("cifar10", 10), ("shapes", 100)):
        with pytest.raises(
            UserError, match=f"has 5 logits, but {name} has {count} classes: name the data set"
        ):
            network.load_data(found, name, None)


# ---- What cannot be used ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("theirs.py", "FILE.py:NAME"),
        ("nowhere.py:net", "no Python file"),
        ("theirs.py:nowhere", "nowhere"),
        ("theirs.py:nothing", "int"),
        ("theirs.py:broken", "no such thing"),
    ],
)
def test_models_that_cannot_be_used(theirs, monkeypatch, spec, message):
    monkeypatch.chdir(theirs[0].parent)
    with pytest.raises(UserError, match=message):
        load(spec)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (lambda state: {"weights": [1, 2]}, "state dict"),
        (lambda state: dict(list(state.items())[1:]), r"missing names \(1\): conv1.weight$"),
        (
            lambda state: {f"net.{name}": value for name, value in state.items()},
            r"\(102\): conv1.weight, bn1.weight, bn1.bias; unexpected names \(122\): net.conv1.weight, ",
        ),
        (lambda state: state | {"fc.bias": torch.zeros(10)}, r"\(1\): fc.bias \[10\] instead of \[100\]$"),
        (lambda state: state | {"fc.bias": torch.full((100,), torch.nan)}, "not finite"),
    ],
)
def test_weights_that_do_not_fit(theirs, tmp_path, content, message):
    file, weights = theirs
    torch.save(content(torch.load(weights, weights_only=True)), tmp_path / "other.pt")
    with pytest.raises(UserError, match=message):
        load(f"{file}:net", tmp_path / "other.pt")


def test_a_whole_pickled_module_is_refused_and_not_run(theirs, tmp_path):
    torch.save(nn.Linear(2, 2), tmp_path / "whole.pt")
    with pytest.raises(UserError, match="more than tensors"):
        load(f"{theirs[0]}:net", tmp_path / "whole.pt")


def test_mean_without_std_and_values_of_bytes(theirs):
    with pytest.raises(UserError, match="belong together"):
        load(f"{theirs[0]}:two", None, mean=(0.5, 0.5, 0.5))
    with pytest.raises(UserError, match="0 to 1"):
        load(f"{theirs[0]}:two", None, (125.3, 123.0, 113.9), (63.0, 62.1, 66.7))
    with pytest.raises(UserError, match="above 0"):
        load(f"{theirs[0]}:two", None, (0.5, 0.5, 0.5), (0.5, 0.0, 0.5))


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (lambda x: x, r"\[2, 5, 32, 32\] of 2 images"),
        (lambda x: (x.mean(dim=(2, 3)),), "tuple of 2 images"),
        (lambda x: x.mean(dim=(0, 2, 3)), r"\[5\] of 2 images"),
        (lambda x: x.mean(dim=(0, 2, 3))[None], r"\[1, 5\] of 2 images"),
        (lambda x: x.mean(), r"\[\] of 2 images"),
        (lambda x: x.mean(dim=(2, 3)).argsort(), r"int64 \[2, 5\] of 2 images"),
        (lambda x: x.mean(dim=(2, 3)) * torch.nan, "not finite"),
    ],
)
def test_outputs_that_are_no_logits(function, message):
    with pytest.raises(UserError, match=message):
        from_module(Applied(function), None, None, CPU)


def test_class_names_are_as_many_as_logits():
    with pytest.raises(UserError, match="5 logits, but its class names are 2"):
        from_module(Applied(lambda x: x.mean(dim=(2, 3))), ["cat", "dog"], None, CPU)


def test_an_error_inside_the_network_is_its_own():
    with pytest.raises(RuntimeError, match="invalid for input of size"):
        from_module(Applied(lambda x: x.view(7, -1)), None, None, CPU)


# ---- The options -----------------------------------------------------------------------------------------


def options(*argv: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    network.add_options(parser)
    return parser.parse_args(argv)


def test_options_of_a_model_without_the_model_are_refused():
    with pytest.raises(UserError, match="--weights belongs to --model"):
        network.from_options(options("--weights", "w.pt"), CPU)


def test_classes_come_from_a_file(theirs, tmp_path):
    (tmp_path / "names").write_text("cat\n\ndog\r\n")
    found = network.from_options(
        options("--model", f"{theirs[0]}:two", "--classes", f"{tmp_path}/names"), CPU
    )
    assert found.class_names == ["cat", "dog"]


def test_results_go_to_the_run_or_to_a_folder_of_the_name(theirs, tmp_path):
    file, weights = theirs
    assert str(network.results_folder(load(f"{file}:net", weights), None)) == "runs/theirs"
    assert str(network.results_folder(load(f"{file}:net"), None)) == "runs/net"
    assert network.results_folder(load(f"{file}:net"), tmp_path) == tmp_path
    shipped = load_checkpoint(SHIPPED, CPU)
    assert str(network.results_folder(shipped, None)) == "runs/resnet18_cifar100"
    (tmp_path / "run/checkpoints").mkdir(parents=True)
    (tmp_path / "run/config.json").write_text("{}")
    shipped.path = tmp_path / "run/checkpoints/last.pt"
    assert network.results_folder(shipped, None) == tmp_path / "run"


def test_data_of_the_training_are_the_default(monkeypatch):
    asked = []
    monkeypatch.setattr(network, "load", lambda name, root: asked.append((name, root)) or (None, None))
    monkeypatch.setattr(network, "fit_classes", lambda *args: None)
    shipped = load_checkpoint(SHIPPED, CPU)
    network.load_data(shipped, None, None)
    network.load_data(shipped, "shapes", "elsewhere")
    assert asked == [("cifar100", "data"), ("shapes", "elsewhere")]
    assert data.load is not network.load

"""classifier.py, inside.py, networks.py: what comes from outside as one object, and what is unusual in it."""

import argparse
import sys
import textwrap
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torchvision
from lab_commands import CPU
from lab_networks import Applied, pictures, pool
from made_up import examined
from torch import nn
from torch.utils.checkpoint import checkpoint

import train
from data import MEAN, STD
from lab import classifier, networks
from lab.classifier import from_module, load_checkpoint, load_model, predict
from lab.pictures import from_arrays
from lab.support import UserError
from resnet_cifar import resnet18

THEIRS = """
    from __future__ import annotations
    from dataclasses import dataclass
    from torch import nn

    @dataclass
    class Options:
        width: int = 4  # looked up in sys.modules

    def two():
        convolution, pool = nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1)
        return nn.Sequential(convolution, nn.ReLU(), pool, nn.Flatten(), nn.Linear(4, 2))

    def nothing():
        return 3

    def broken():
        raise RuntimeError("no such thing")
"""


@pytest.fixture
def theirs(tmp_path):
    """A file of networks, and weights of `two` as a plain state dict."""
    file, weights = tmp_path / "theirs.py", tmp_path / "weights.pt"
    file.write_text(textwrap.dedent(THEIRS))
    torch.save(load(f"{file}:two").module.state_dict(), weights)
    return file, weights


def load(spec, weights=None, mean=None, std=None):
    return load_model(str(spec), weights, mean, std, device=CPU)


# ---- A checkpoint, and the same weights from outside -----------------------------------------------------


def test_a_checkpoint_comes_with_its_validation(finished):
    path = finished / "checkpoints" / "best.pt"
    content, found = torch.load(path), load_checkpoint(path, CPU)
    assert torch.equal(found.validation[0], content["val_logits"].float())
    assert torch.equal(found.validation[1], content["val_labels"])
    network = resnet18(100, 16).eval()
    network.load_state_dict(content["model"])
    x = torchvision.transforms.functional.normalize(pictures() / 255, MEAN, STD)
    torch.testing.assert_close(predict(found.model, pictures(), CPU), network(x).detach())


def test_weights_for_a_checkpoint_are_refused_with_what_they_are_for(theirs):
    with pytest.raises(UserError, match=r"is not a whole checkpoint of train\.py.*is --model, its weights"):
        load_checkpoint(theirs[1])


def test_weights_below_a_key_and_with_prefixes(tmp_path, capsys):
    """As DataParallel, torch.compile, Lightning and AveragedModel save them."""
    torch.manual_seed(0)
    wrapped, network = nn.Module(), nn.Linear(2, 2)
    wrapped.module = nn.Linear(2, 2)
    for own in (wrapped, network):
        state = {name: value.clone() for name, value in own.state_dict().items()}
        for prefix in ("", "module.", "_orig_mod.", "_orig_mod.module.", "net."):
            named = {prefix + name: value for name, value in state.items()}
            others = {"n_averaged": torch.tensor(3), "loss.weight": torch.ones(2)} if prefix else {}
            nn.init.zeros_(next(own.parameters()))
            networks.load_weights(own, {"epoch": 3, "state_dict": named | others})
            torch.testing.assert_close(dict(own.state_dict()), state)
    said = capsys.readouterr().out
    assert "weights  taken from the key 'state_dict', beside epoch\n" in said
    assert "weights  'net.' taken off their names, without n_averaged, loss.weight\n" in said
    ones = {name: torch.ones_like(value) for name, value in state.items()}
    several = {"model": network.state_dict(), "shadow": {"state_dict": ones}}
    networks.load_weights(network, several, "shadow")
    assert torch.equal(network.weight, torch.ones(2, 2))
    with pytest.raises(ValueError, match="no state dict below --weights-key ema: it holds model, shadow"):
        networks.load_weights(network, several, "ema")


def test_digest_changes_with_one_weight_and_with_what_normalises(theirs):
    """And the normalisation is that of the options, the weights those of the file."""
    file, weights = theirs
    mean, std = (0.1, 0.2, 0.3), (0.4, 0.5, 0.6)
    numbers = [(None, None), (mean, std), (mean, (0.5, 0.5, 0.5))]
    found = [load(f"{file}:two", weights, *pair) for pair in numbers]
    torch.testing.assert_close(dict(found[1].module.state_dict()), dict(torch.load(weights)))
    x = (pictures().double() / 255 - torch.tensor(mean).view(3, 1, 1)) / torch.tensor(std).view(3, 1, 1)
    torch.testing.assert_close(predict(found[1].model, pictures(), CPU), found[1].module(x.float()).detach())
    digests = [network.digest for network in found]
    with torch.no_grad():
        found[0].module[0].weight[0, 0, 0, 0] += 1e-6
    assert len({*digests, networks.digest_of(found[0].model)}) == 4
    by_name = {networks.digest_of(nn.ModuleDict({name: found[0].module})) for name in "ab"}
    assert len(by_name) == 2


@pytest.mark.filterwarnings("ignore:.*deprecated")
def test_digest_changes_with_quantised_weights():
    """They are neither parameters nor buffers."""
    torch.manual_seed(0)
    linear = nn.Sequential(nn.Flatten(), nn.Linear(12, 2))
    digests = {networks.digest_of(torch.ao.quantization.quantize_dynamic(linear, {nn.Linear}))}
    for parameter in linear[1].parameters():
        with torch.no_grad():
            parameter[0] += 1
        digests.add(networks.digest_of(torch.ao.quantization.quantize_dynamic(linear, {nn.Linear})))
    assert len(digests) == 3
    scripted = [torch.jit.script(torch.ao.quantization.quantize_dynamic(linear, {nn.Linear}))]
    with torch.no_grad():
        linear[1].weight[0] += 1
    scripted.append(torch.jit.script(torch.ao.quantization.quantize_dynamic(linear, {nn.Linear})))
    before = torch.jit.script(nn.BatchNorm2d(3))  # something with weights that can be seen
    assert len({networks.digest_of(nn.Sequential(before, network)) for network in scripted}) == 2


def test_a_submodule_called_bias_is_no_quantised_weight():
    network = nn.Sequential(nn.Flatten(), nn.Linear(12, 2))
    network.bias = nn.Identity()
    assert networks.digest_of(network) == networks.digest_of(network[:2])
    assert networks.number_formats(network, []) == "float32"


# ---- In memory -------------------------------------------------------------------------------------------


def test_a_classifier_predicts_and_explains_by_itself_on_a_device_that_is_a_text():
    torch.manual_seed(0)
    network = from_module(Applied(), device="cpu")
    images = pictures(60)  # more than are computed at once
    images[::2] //= 8
    logits = network.predict(images)
    torch.testing.assert_close(logits, predict(network.model, images, "cpu"))
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(network.predict(images), logits)
    answers = logits.argmax(dim=1)
    assert len(answers.unique()) > 1
    expected = network.explain(images, answers, 2)
    for classes in (None, answers.tolist(), answers.int()):
        torch.testing.assert_close(network.explain(images, classes, torch.tensor(2)), expected)
    assert torch.equal(network.explain(images, 3), network.explain(images, [3] * 60))
    with pytest.raises(ValueError, match="no maps, by --layer none"):
        from_module(Applied(), layer="none").explain(images)


class NoFloat64(torch.Tensor):
    """What lies on a device that, as Apple's, has no float64."""

    @classmethod
    def __torch_function__(cls, function, types, args=(), kwargs=None):
        result = super().__torch_function__(function, types, args, kwargs)
        if function is torch.Tensor.cpu:
            return result.as_subclass(torch.Tensor)
        if isinstance(result, torch.Tensor) and result.dtype == torch.float64:
            raise TypeError("Cannot convert a MPS Tensor to float64")
        return result


def test_a_device_without_float64():
    network = from_module(Applied(lambda x: pool(x.as_subclass(NoFloat64))), device=CPU)
    with pytest.raises(TypeError):
        network.model(torch.rand(2, 3, 32, 32)).double()
    assert network.layer == "conv" and type(network.predict(pictures())) is torch.Tensor
    assert type(network.explain(pictures())) is torch.Tensor


def test_a_module_keeps_its_mode_and_its_numbers_and_one_that_is_compiled_is_unwrapped():
    module = nn.Sequential(Applied(), nn.Dropout()).double().train()
    network = from_module(module, device=CPU)
    assert module.training and module[1].training and module[0].conv.weight.dtype == torch.float64
    with torch.autocast("cpu", torch.bfloat16):
        within = from_module(torch.compile(module), device=CPU)
        assert torch.equal(within.predict(pictures()), network.predict(pictures()))
    assert within.layer == "0.conv" and within.name == "Sequential" and within.computes_in == "float32"


# ---- Classes and data ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("wanted", "given", "order"),
    [
        (["lawn_mower", "Sweet pepper", "bee"], ["Bee", "lawn mower", "sweet_pepper"], [1, 2, 0]),
        (["a", "A", "b_c", "B c"], ["B c", "b_c", "A", "a"], [3, 2, 1, 0]),
        (["a", "A", "b_c", "B c"], ["A ", "a", "b c", "bc"], None),
        (["a", "b", "c"], ["a", "b", "b"], None),
    ],
)
def test_logits_come_in_the_order_of_the_data_set_by_names_without_case_and_underscores(wanted, given, order):
    """These count where they tell classes apart."""
    test = from_arrays(pictures(len(wanted)), torch.arange(len(wanted)), wanted)
    found = from_module(Applied(lambda x: pool(x)[:, : len(wanted)]), given, None, CPU)
    if order is None:
        with pytest.raises(UserError, match=r"are not those of .*each of those once, .*--classes"):
            classifier.fit_classes(found, test)
    else:
        own = predict(found.model, test.images, CPU)
        classifier.fit_classes(found, test)
        assert torch.equal(predict(found.model, test.images, CPU), own[:, order])
        assert found.class_names == wanted
        # Fitted to a second data set, the logits come in the order of that one.
        second = from_arrays(test.images, test.labels, wanted[::-1])
        classifier.fit_classes(found, second)
        assert torch.equal(predict(found.model, test.images, CPU), own[:, order[::-1]])


@pytest.mark.parametrize(
    ("pictures_of", "size", "enlarged_to", "advice"),
    [
        (48, 32, 32, None),
        (49, 32, 32, 49),
        (9999, 32, 32, 512),
        (100, 64, 64, None),  # it was given: 32 is the default
        (100, 40, 64, 64),
        (None, 32, 64, None),  # no pictures of a folder
    ],
)
def test_pictures_that_may_be_reduced_too_much_are_noted(pictures_of, size, enlarged_to, advice):
    test = from_arrays(pictures(5), torch.arange(5), list("abcde"))
    test.picture_side = pictures_of
    network = from_module(nn.Sequential(nn.Upsample(enlarged_to), Applied()), None, None, CPU, size=size)
    classifier.fit_classes(network, test)
    assert [note.partition("such as ")[2] for note in network.notes] == (
        [f"--size {advice}"] if advice else []
    )
    test.class_names.append("another")
    with pytest.raises(UserError, match="has 5 logits"):
        classifier.fit_classes(network, test)


# ---- What cannot be used ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("spec", "options", "message"),
    [
        ("theirs.py:nothing", {}, "int"),
        ("theirs.py:broken", {}, "no such thing"),
        ("theirs.py:two", {"mean": (0.5, 0.5, 0.5)}, "belong together"),
        ("theirs.py:two", {"mean": (125.3, 123.0, 113.9), "std": (63.0, 62.1, 66.7)}, "0 to 1"),
    ],
)
def test_models_that_cannot_be_used(theirs, monkeypatch, spec, options, message):
    monkeypatch.chdir(theirs[0].parent)
    with pytest.raises(UserError, match=message):
        load(spec, **options)


@pytest.mark.parametrize(
    "content",
    [
        lambda state: {"model": state, "args": argparse.Namespace(lr=0.1), "best": np.float64(0.5)},
        lambda state: {"params": state},
        lambda state: {**state, "epoch": 3, "config": {"width": 4}},
    ],
)
@pytest.mark.parametrize("zipped", [True, False])
def test_weights_beside_options_and_numbers_and_in_the_older_format(theirs, tmp_path, content, zipped):
    file, weights = theirs
    state = torch.load(weights)
    torch.save(content(state), tmp_path / "other.pt", _use_new_zipfile_serialization=zipped)
    loaded = load(f"{file}:two", tmp_path / "other.pt").module.state_dict()
    torch.testing.assert_close(dict(loaded), dict(state))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (lambda state: state | {"0.weight": state["0.weight"].char()}, r"0\.weight is torch\.int8, expected"),
        (lambda state: dict(list(state.items())[1:]), r'Missing key\(s\) in state_dict: "0.weight"'),
        (lambda state: {f"{net}.{key}": state[key] for net in "ab" for key in state}, r"below a\. and b\.:"),
        (lambda state: {"shadow": state}, "only shadow: name its key by --weights-key"),
    ],
)
def test_weights_that_do_not_fit(theirs, tmp_path, content, message):
    file, weights = theirs
    torch.save(content(torch.load(weights, weights_only=True)), tmp_path / "other.pt")
    with pytest.raises(UserError, match=message):
        load(f"{file}:two", tmp_path / "other.pt")


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (lambda x: x.view(7, -1), "for another size give --size"),
        (lambda x: pool(x).argsort(), r"int64 \[2, 5\], expected float logits"),
        (lambda x: pool(x) * torch.nan, "not finite"),
        (lambda x: pool(x)[:, :3], "3 logits and has 2 class names"),
        (lambda x: pool(checkpoint(torch.sin, x, use_reentrant=True)), "differentiated: .*use_reentr"),
        (lambda x: pool(x).squeeze().flatten(1), r"not one or four \(.*flatten\(1\) does not"),
    ],
)
def test_networks_that_cannot_be_examined_are_named_in_one_line(function, message):
    with pytest.raises(UserError, match=message) as info:
        from_module(Applied(function), ["cat", "dog"] if "names" in message else None, None, CPU)
    assert "\n" not in str(info.value)


@pytest.mark.parametrize(
    "build",
    [
        lambda: Applied(lambda x: (pool(x), x)),
        lambda: Applied(lambda x: {"features": x, "scores": pool(x)}),
        lambda: Applied(lambda x: SimpleNamespace(loss=None, logits=pool(x))),
        lambda: Applied(lambda x: x.mean(dim=(2, 3), keepdim=True)),
        lambda: Applied(channels=1),
    ],
)
def test_for_other_inputs_and_outputs_the_message_holds_the_wrapper(build):
    def named():
        torch.manual_seed(0)
        return build()

    with pytest.raises(UserError, match="name it in its place: def wrapped") as info:
        from_module(named(), name="named")
    assert len(f"error: {info.value}") <= 300  # as much as a command prints
    scope = {"named": named}
    exec(str(info.value).partition("in its place: ")[2], scope)
    network, own = from_module(scope["wrapped"](), device=CPU), named()
    images = pictures() / 255
    features = own.conv(images.mean(dim=1, keepdim=True) if own.conv.in_channels == 1 else images)
    torch.testing.assert_close(network.predict(pictures()), pool(features).detach())
    assert network.layer == "conv"


def test_a_network_that_refuses_four_images_is_refused_in_one_line():
    def of_two(x):
        if len(x) == 4:
            raise ValueError("expected two images")
        return pool(x)

    with pytest.raises(UserError, match="takes two images, but not one or four"):
        from_module(Applied(of_two), None, "none", CPU)


@pytest.mark.parametrize("batch", [1, 2, 3])
def test_a_network_of_torch_export_with_a_fixed_batch_is_refused_in_one_line(batch):
    exported = torch.export.export(Applied().eval(), (torch.rand(batch, 3, 32, 32),)).module()
    with pytest.raises(UserError, match="dynamic_shapes"):
        from_module(classifier.FromPixels(exported))


# ---- The options -----------------------------------------------------------------------------------------


def test_classes_come_from_a_file(theirs, tmp_path):
    (tmp_path / "names").write_text("\ufeffcat\n\ndog\r\n", encoding="utf-8")
    found = examined("--model", f"{theirs[0]}:two", "--classes", tmp_path / "names")
    assert found.class_names == ["cat", "dog"]


# ---- What is noticed before the numbers ------------------------------------------------------------------


class Unusual(nn.Module):
    """A convolution, a batch norm and a linear layer, with something at the end that changes the numbers."""

    def __init__(self, end=lambda x: x, **of_batch_norm):
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.bn = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8, **of_batch_norm)
        self.auxiliary, self.fc, self.end = nn.Linear(8, 5), nn.Linear(8, 5), end

    def forward(self, x):
        x = pool(self.bn(self.conv(x)).relu())
        self.auxiliary(x)  # a head that is not used
        return self.end(self.fc(x))


NOTES = {
    "as usual": (Unusual(), None),
    "other images": (Unusual(track_running_stats=False), "depends on the other images of the batch"),
    "softmax": (Unusual(lambda x: (1000 * x).softmax(dim=1)), "makes probabilities"),  # many of them are 0
    "per cent": (Unusual(lambda x: 100 * x.softmax(dim=1).bfloat16()), "makes percent"),
    "sigmoid": (Unusual(lambda x: x.sigmoid()), "outputs lie in 0 to 1: are these probabilities"),
    "a little noise": (Unusual(lambda x: x + 0.01 * x.abs().max() * torch.randn(x.shape)), "at random"),
    "rounding": (Unusual(lambda x: x + 1e-5 * x.abs().max() * torch.randn(x.shape)), None),
}


@pytest.mark.parametrize("name", NOTES)
def test_what_makes_all_numbers_mean_less_is_noted(name):
    module, note = NOTES[name]
    found = from_module(module, None, None, CPU)
    assert len(found.notes) == (note is not None) and all(note in said for said in found.notes)
    if name == "as usual" or "makes" in (note or ""):
        logits, outputs = (
            predict(found.model, pictures(), CPU),
            module.eval()(pictures() / 255).detach().float(),
        )
        expected = outputs.softmax(dim=1) if note is None else outputs / outputs.sum(dim=1, keepdim=True)
        assert logits.isfinite().all() and (expected == 0).any() == (name == "softmax")
        torch.testing.assert_close(logits.softmax(dim=1), expected)


def test_one_number_from_0_to_1_is_the_probability_of_the_second_class():
    network = Unusual(lambda x: (odds := x[:, 0].abs().exp()) / (1 + odds)).eval()  # nan where x is large
    found = from_module(network, None, None, CPU)
    (note,) = found.notes
    assert "the probability of the second class" in note
    p = network(pictures() / 255).detach()
    torch.testing.assert_close(found.predict(pictures()).softmax(dim=1), torch.stack([1 - p, p], dim=1))


def test_one_small_logit_is_no_probability():
    """Of noise it is between 0 and 1, but outside of [0, 1] logits grow."""
    network = Unusual(lambda x: x[:, :1] / 100 + 0.5).eval()
    found = from_module(network, None, None, CPU)
    z = network(pictures() / 255).detach().flatten()
    torch.testing.assert_close(found.predict(pictures()), torch.stack([-z / 2, z / 2], dim=1))


def test_what_is_no_probability_of_an_image_is_refused():
    class Bright(nn.Module):
        def forward(self, x):
            return 0.5 + (x.mean(dim=(1, 2, 3)) - 0.6).clamp(0, 0.4) * 2

    with pytest.raises(UserError, match=r"from 1\.3 to 1\.3 of images, so they may be logits"):
        from_module(Bright(), None, "none", CPU).predict(torch.full((2, 3, 32, 32), 255, dtype=torch.uint8))


def test_the_map_of_a_network_that_ends_in_softmax_is_that_of_its_logits():
    """Where an answer is sure, the logarithm of its probability is flat, but not its lead over the others."""
    logits, softmax = Unusual(lambda x: 200 * x), Unusual(lambda x: (200 * x).softmax(dim=1))
    found, same = (from_module(network, None, "bn", CPU) for network in (softmax, logits))
    answers = same.predict(pictures()).argmax(dim=1)
    assert found.predict(pictures()).softmax(dim=1).amax(dim=1).min() > 0.999
    maps, expected = (network.explain(pictures(), answers).flatten(1) for network in (found, same))
    assert torch.cosine_similarity(maps, expected).min() > 0.9


def test_channels_last_are_no_pixels():
    """As in ConvNeXt: [N, h, w, K]."""
    last = [torchvision.ops.Permute([0, 2, 3, 1]), nn.Flatten(), nn.Linear(8 * 8 * 99, 2)]
    network = nn.Sequential(nn.Conv2d(3, 99, 4, stride=4), *last)
    assert from_module(network, None, "none", CPU).largest_side == 8


def test_images_are_predicted_in_a_random_order_and_put_back():
    """In the order of their classes a network without running statistics sees one class at a time."""
    images = torch.arange(120, dtype=torch.uint8)[:, None, None, None].expand(-1, 3, 32, 32)
    seen, model = [], Unusual().eval()
    model.register_forward_hook(lambda module, inputs, output: seen.append(inputs[0]))
    done = []
    logits = predict(model, images, CPU, SimpleNamespace(update=done.append))
    assert [len(batch) for batch in seen] == [50, 50, 20] and done == [50, 100, 120]
    assert seen[0][:, 0, 0, 0].std() > 0.1 and not torch.equal(seen[0], seen[0].sort(dim=0).values)
    torch.testing.assert_close(logits, model(images / 255).detach(), rtol=1e-4, atol=1e-4)
    assert predict(model, images[:0], CPU).shape == (0, 5)


def test_what_works_in_place_and_squeezes():
    convolution = nn.Conv2d(3, 5, 32)
    network = nn.Sequential(nn.ReLU(inplace=True), convolution, Applied(torch.squeeze, 5))
    network[2].conv = nn.Identity()
    images = pictures(51)  # the last batch has one image
    found = from_module(network, None, "none", CPU)
    expected = convolution(images / 255).flatten(1).detach()
    torch.testing.assert_close(predict(found.model, images, CPU), expected, rtol=1e-4, atol=1e-5)


def test_modules_beside_the_file_come_before_ours_and_ours_are_back_afterwards(tmp_path):
    """A data.py and a helper beside each of two files, which are also imported when a function is called."""
    for folder, width in (("a", 4), ("b", 6)):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "data.py").write_text("from helper import width\n")
        (tmp_path / folder / "helper.py").write_text(f"width = {width}\n")
        (tmp_path / folder / f"only_{folder}.py").write_text("scale = 2.0\n")
        lines = [
            "from torch import nn",
            "import data, resnet_cifar",  # theirs and ours
            "class Scaled(nn.Linear):",
            "    def forward(self, x):",
            f"        from only_{folder} import scale",
            "        return scale * super().forward(x.mean(dim=(2, 3)))",
            "def make():",
            "    import train  # ours again",
            "    return Scaled(3, data.width)",
        ]
        (tmp_path / folder / "net.py").write_text("\n".join(lines))
    ours = {name: module for name, module in sys.modules.items() if name.partition(".")[0] in ("data", "lab")}
    assert Path(train.__file__) == networks.ROOT / "train.py"
    networks_made = [load(tmp_path / folder / "net.py:make") for folder in "ab"]
    assert [network.num_classes for network in networks_made] == [4, 6]
    assert all(sys.modules[name] is module for name, module in ours.items())

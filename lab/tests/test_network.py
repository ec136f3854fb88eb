"""network.py: what is a network, its digest, its layer and its test images, each by a second way."""

import argparse
import hashlib
import shutil

import numpy as np
import pytest
import torch
import torchvision
from lab_networks import small_cnn
from networks import small_swin
from PIL import Image
from torch import nn

import data
import train
from gradcam import GradCAM
from lab.network import (
    digest_of,
    from_module,
    from_options,
    full_float32,
    in_classes_of,
    in_memory,
    load_checkpoint,
    load_images,
    load_model,
    logits_of,
    read_folder,
    reader_of,
    signed_maps,
)


def pictures(n=6, side=32):
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (n, 3, side, side), dtype=torch.uint8, generator=generator)


def options(**given):
    defaults = {"dataset": None, "data_dir": None, "device": "cpu", "model": None, "size": None}
    return argparse.Namespace(**defaults | {"run": None, "checkpoint": None} | given)


def write_model(folder, body, name="net.py"):
    path = folder / name
    path.write_text(f"import torch\nfrom torch import nn\n{body}\n")
    return path


CNN = "def make():\n    torch.manual_seed(0)\n    return nn.Sequential(nn.Conv2d(3, 4, 3, 2), nn.ReLU(), "
CNN += "nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3))\n"


# ---- What is a network -------------------------------------------------------------------------------------


class Wrapped(nn.Module):
    """A network of which a function changes the logits."""

    def __init__(self, function, network=None):
        super().__init__()
        self.network, self.function = network or small_cnn(), function

    def forward(self, x):
        return self.function(self.network(x))


@pytest.mark.parametrize(
    ("model", "text"),
    [
        (Wrapped(lambda z: z.softmax(dim=1)), "makes probabilities, expected logits"),
        (Wrapped(lambda z: (z, z)), r"makes tuple of 4 images, expected logits \[4, C\] alone"),
        (Wrapped(lambda z: z[:, :1]), r"makes \[4, 1\] of 4 images.*torch.cat\(\[-z, z\]"),
        (Wrapped(lambda z: z / 0), "not finite"),
        (Wrapped(lambda z: nn.functional.dropout(z, 0.5)), "answers by chance"),
        (Wrapped(torch.squeeze), r"makes \[3\] of 1 images"),
        (nn.Sequential(nn.Conv2d(1, 2, 32), nn.Flatten()), "size=S: RuntimeError: .* to have 1 channels"),
        (nn.Sequential(nn.Flatten(), nn.Linear(10, 2)), "mat1 and mat2 shapes cannot be multiplied"),
    ],
)
def test_what_is_no_network_is_refused_in_one_line(model, text):
    with pytest.raises(ValueError, match=text) as refused:
        from_module(model)
    assert "\n" not in str(refused.value)


def test_batch_norm_without_statistics_is_noted():
    norm = nn.BatchNorm2d(3, track_running_stats=False)
    (note,) = from_module(nn.Sequential(norm, small_cnn())).notes
    assert "other images of its batch" in note and from_module(small_cnn()).notes == []


def test_attributes_of_a_network_and_parts_of_it_with_these_names():
    model = small_cnn()
    model.class_names, model.layer = ("a", "b", "c"), "0"
    model.transform = lambda picture: torch.zeros(3, 32, 32)
    network = from_module(model)
    assert (network.class_names, network.layer) == (["a", "b", "c"], "0")
    assert network.transform is model.transform
    parts = Wrapped(lambda z: z)
    parts.layer, parts.transform = nn.Linear(2, 2), nn.Linear(2, 2)
    network = from_module(parts)
    assert (network.layer, network.transform) == ("network.1", None)
    model.class_names = ["a", "b", "b"]
    with pytest.raises(ValueError, match="makes 3 logits, and has 2 different class_names"):
        from_module(model)


def test_settings_of_torch_are_restored():
    cudnn = torch.backends.cudnn
    before = cudnn.allow_tf32, cudnn.deterministic, cudnn.benchmark
    with full_float32():
        assert (cudnn.allow_tf32, cudnn.deterministic) == (False, True)
    assert (cudnn.allow_tf32, cudnn.deterministic, cudnn.benchmark) == before


def test_network_in_memory_brings_labels_into_the_order_of_its_classes():
    model = small_cnn()
    model.class_names = ["Dog", "cat_b", "bird"]
    images = torch.rand(4, 32, 32, 3)
    network, test = in_memory(model, images, [0, 1, 1, 0], ["cat b", "dog"], batch_size=3)
    assert test.labels.tolist() == [1, 0, 0, 1] and test.class_names == ["Dog", "cat_b", "bird"]
    assert (test.images.permute(0, 2, 3, 1) / 255 - images).abs().max() <= 0.5 / 255 + 1e-6
    assert network.notes == ["float images are rounded to 255 levels"]
    expected = train.predict(model.eval(), test.images, "cpu")
    torch.testing.assert_close(logits_of(network, test.images), expected)


def test_predict_in_batches_is_the_same_and_infinite_logits_are_no_answers():
    network, images = from_module(small_cnn()), pictures(7)
    whole = logits_of(network, images)
    network.batch_size, sizes = 2, []
    network.model.register_forward_pre_hook(lambda module, inputs: sizes.append(len(inputs[0])))
    torch.testing.assert_close(logits_of(network, images), whole)
    assert sizes == [2, 2, 2, 1]
    network = from_module(Wrapped(lambda z: z))
    network.model.function = lambda z: z / 0
    with pytest.raises(FloatingPointError, match="not finite"):
        logits_of(network, images)


# ---- FILE.py:NAME and digests ------------------------------------------------------------------------------


def test_digest_is_of_the_weights_and_the_code_stands_beside_it(tmp_path):
    path = write_model(tmp_path, CNN)
    first = load_model(f"{path}:make", "cpu", 16)
    code = {"model_file_sha256": hashlib.sha256(path.read_bytes()).hexdigest()}
    assert first.code == code | {"model_name": "make", "size": 16}
    assert first.identity == first.code | {"checkpoint_sha256": first.digest}
    write_model(tmp_path, CNN + "\ndef unrelated():\n    pass\n")
    again = load_model(f"{path}:make", "cpu", 16)
    assert again.digest == first.digest and again.code != first.code
    write_model(tmp_path, CNN.replace("manual_seed(0)", "manual_seed(1)"))
    assert load_model(f"{path}:make", "cpu", 16).digest != first.digest


def quantised(seed):
    torch.manual_seed(seed)
    linear = nn.Sequential(nn.Flatten(), nn.Linear(12, 3))
    return torch.ao.quantization.quantize_dynamic(linear, {nn.Linear})


def test_digest_of_any_module_follows_its_weights():
    def cnn(seed):
        return small_cnn(seed=seed)

    def scripted(seed):
        return torch.jit.script(quantised(seed))

    for make in (cnn, quantised, scripted):
        assert digest_of(make(0)) == digest_of(make(0)) != digest_of(make(1))
    assert from_module(torch.compile(cnn(0))).digest == digest_of(cnn(0))
    assert from_module(torch.jit.script(cnn(0))).num_classes == 3


def test_modules_beside_a_file_come_before_ours_and_ours_come_back(tmp_path):
    (tmp_path / "data.py").write_text("WIDTH = 5\n")
    body = CNN.replace("def make():", "def make():\n    from data import WIDTH").replace("4", "WIDTH")
    network = load_model(f"{write_model(tmp_path, body)}:make")
    assert network.model[0].out_channels == 5
    import data as ours

    assert ours is data


@pytest.mark.parametrize(
    ("body", "given", "text"),
    [
        (CNN, {"model": "net.py"}, "expected FILE.py:NAME"),
        (CNN, {"model": "net.py:mak"}, "cannot be made: AttributeError.*mak"),
        ("def make(x):\n    pass", {"model": "net.py:make"}, "cannot be made: TypeError.*missing 1 required"),
        ("def make():\n    return {}", {"model": "net.py:make"}, "returns dict, expected torch.nn.Module"),
        ("import nowhere", {"model": "net.py:make"}, "No module named 'nowhere'"),
        (CNN, {"size": 32}, "--size S is for --model"),
        (CNN, {"model": "net.py:make", "size": 0}, "--size S is for --model, in pixels"),
        (CNN, {"device": "nowhere"}, "device=nowhere cannot be used"),
    ],
)
def test_files_and_options_that_make_no_network_are_refused(tmp_path, monkeypatch, body, given, text):
    write_model(tmp_path, body)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=text):
        from_options(options(**given))


def test_default_folders_tell_two_functions_of_one_file_and_two_files_apart(tmp_path, monkeypatch):
    for name in ("a.py", "b.py"):
        write_model(tmp_path, CNN + "other = make\n", name)
    monkeypatch.chdir(tmp_path)
    for spec in ("a.py:make", "a.py:other", "b.py:make"):
        assert str(from_options(options(model=spec))[1]) == "runs/" + spec.replace(".py:", "-")


# ---- Its layer ---------------------------------------------------------------------------------------------


def small_vit():
    torch.manual_seed(0)
    model = torchvision.models.VisionTransformer(32, 8, 2, 2, hidden_dim=16, mlp_dim=32, num_classes=6)
    nn.init.normal_(model.heads.head.weight)
    return model.eval()


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
        (lambda: ending(nn.Conv2d(3, 4, 3, 2), nn.ReLU(), nn.AdaptiveAvgPool2d(1)), "1", 15),
        # As VGG of torchvision at 32 pixels: one cell, spread over 7x7 by the pooling behind it, is no map.
        (lambda: ending(nn.Conv2d(3, 4, 3, 2), nn.MaxPool2d(15), nn.AdaptiveAvgPool2d(7)), "0", 15),
    ],
)
def test_layer_by_default_is_the_last_that_has_cells(build, layer, side):
    torch.manual_seed(0)
    network = from_module(build())
    maps = signed_maps(network, pictures(3), torch.tensor([0, 1, 2]), torch.tensor([1, 2, 0]))
    assert (network.layer, maps.shape) == (layer, (3, side, side))


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
    model, images, classes = small_swin(), pictures(3), torch.tensor([0, 1, 2])
    by_itself = signed_maps(from_module(model), images, classes)
    model.layer = "norm"  # [N, 8, 8, K], of which "permute" makes [N, K, 8, 8]
    torch.testing.assert_close(signed_maps(from_module(model), images, classes), by_itself)
    vit = small_vit()
    by_hand = GradCAM(vit, from_module(vit).layer, lambda t: t[:, 1:].mT.unflatten(2, (4, 4)))
    expected = by_hand.weighted_sum(images / 255, classes)
    torch.testing.assert_close(signed_maps(from_module(vit), images, classes), expected)


def test_without_a_layer_there_are_no_maps_and_a_reason():
    frozen = Wrapped(lambda z: z.detach())
    for model, reason in [(ending(), "no layer has an output"), (frozen, "no gradient of the scores")]:
        network = from_module(model)
        assert network.layer is None and network.maps.startswith("no maps: ") and reason in network.maps
    frozen.layer = "nowhere"
    with pytest.raises(ValueError, match=r"the layer nowhere cannot be explained: .*choose from"):
        from_module(frozen)


# ---- Test images -------------------------------------------------------------------------------------------


def write_pictures(folder, *names, side=32):
    generator = np.random.default_rng(0)
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(generator.integers(0, 256, (side, side, 3), dtype=np.uint8)).save(path)
    return folder


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["test/cat/1.png", "test/dog/1.png", "train/cat/2.png"], ["cat/1.png", "dog/1.png"]),
        (["val/cat/1.png", "val/dog/1.png"], ["cat/1.png", "dog/1.png"]),
        (["cat/1.png", "cat/day/1.png", "dog/1.png"], ["cat/1.png", "cat/day/1.png", "dog/1.png"]),
    ],
)
def test_folder_of_pictures(tmp_path, names, expected):
    test, notes = read_folder(write_pictures(tmp_path, *names), 32)
    assert (test.filenames, notes, test.class_names) == (expected, [], ["cat", "dog"])
    assert [test.class_names[c] for c in test.labels] == [name.split("/")[0] for name in expected]


@pytest.mark.parametrize(
    ("names", "text"),
    [
        (["train/cat/1.png", "holdout/cat/2.png"], "has train/, but no test/"),
        (["Train/cat/1.png", "Test/cat/2.png"], "2 folders in .* hold a folder cat/, as splits do"),
        (["cat.png"], "holds no folders of classes"),
    ],
)
def test_folders_that_hold_splits_or_no_classes_are_refused(tmp_path, names, text):
    with pytest.raises(ValueError, match=text):
        read_folder(write_pictures(tmp_path, *names), 32)


def test_pictures_that_lose_much_are_noted(tmp_path):
    write_pictures(tmp_path, "cat/1.png", "dog/1.png", side=49)
    _, notes = read_folder(tmp_path, 32)
    assert len(notes) == 1 and "(median) are reduced to 32" in notes[0]
    assert read_folder(tmp_path, 33)[1] == []  # 49 is less than 1.5 times 33
    network, where = from_module(small_cnn(num_classes=2)), str(tmp_path)
    assert load_images(network, options(dataset=where))[2] == notes
    assert load_images(network, options(dataset=where, size=32))[2] == []  # the user has said so


def test_transform_takes_pictures_of_16_bits(tmp_path):
    values = np.arange(64, dtype=np.uint16).reshape(8, 8) * 1000
    Image.fromarray(values).save(tmp_path / "deep.png")

    def transform(picture):
        pixels = torch.from_numpy(np.array(picture).astype(np.float32) / 65535)
        return pixels.expand(3, 8, 8)

    image = reader_of(transform)(tmp_path / "deep.png", 8)
    assert np.array_equal(image[0].numpy(), np.round(values / 65535 * 255))
    for wrong in (lambda picture: 300 * transform(picture), lambda picture: transform(picture)[:1]):
        with pytest.raises(ValueError, match=r"deep.png, expected float \[3, 8, 8\] in \[0, 1\]"):
            reader_of(wrong)(tmp_path / "deep.png", 8)


def test_run_of_training_has_its_own_images_and_another_set_by_name(tmp_path, trained, small):
    path = shutil.copytree(trained, tmp_path / "run") / "checkpoints" / "best.pt"
    network = load_checkpoint(path)
    assert network.digest == hashlib.sha256(path.read_bytes()).hexdigest() and network.code == {}
    train_set, test, notes = load_images(network, options())
    assert test is small[1] and train_set is small[0] and notes == []
    write_pictures(tmp_path / "pics", "red heart/1.png", "Blue_Ring/1.png")
    train_set, test, _ = load_images(network, options(dataset=str(tmp_path / "pics")))
    assert train_set is None
    assert {test.class_names[c] for c in test.labels} == {"red heart", "blue ring"}


def test_a_network_of_other_than_100_classes_needs_a_data_set_before_a_download(monkeypatch):
    monkeypatch.setattr(data, "load", lambda *arguments: pytest.fail("a data set was loaded"))
    with pytest.raises(data.UserError, match="has 3 logits: give its dataset="):
        load_images(from_module(small_cnn()), options())


def test_classes_that_do_not_fit_are_refused():
    dataset, model = data.make_shapes(1, seed=0), small_cnn()
    with pytest.raises(ValueError, match="3 logits, and shapes 100 classes"):
        in_classes_of(dataset, from_module(model))
    model.class_names = ["red circle", "b", "c"]
    with pytest.raises(ValueError, match="has a class 'orange circle', which is none of"):
        in_classes_of(dataset, from_module(model))

"""Pictures of any size: how they are read, brought to a network and counted, against torchvision."""

import shutil
import textwrap

import numpy as np
import pytest
import torch
import torchvision
from lab_commands import CPU, TINY, assert_one_line, outcome
from made_up import examined
from PIL import Image
from torch import nn
from torchvision.transforms import v2

import data
import train
from lab import classifier, examine, networks, pictures, reasons, results, stress
from lab.answers import checked_training_set
from lab.support import UserError, read_json
from metrics import expected_calibration_error

# What is answered follows from stripes of two pixels, which are gone in pictures of 32 pixels.
NETWORKS = """
    import torch
    import torch.nn.functional as F
    import torchvision
    from torch import nn
    from torchvision.transforms import v2

    class Stripes(nn.Module):
        def forward(self, x):
            if x.shape[-1] < 224:
                x = F.interpolate(x, 224, mode="bilinear")
            across = (x[..., 2:] - x[..., :-2]).square().mean(dim=(1, 2, 3))
            down = (x[..., 2:, :] - x[..., :-2, :]).square().mean(dim=(1, 2, 3))
            sure = 12 * (across - down).sign()
            return torch.stack([sure / 2, -sure / 2], dim=1) + 0 * x.mean()

    class Upsampled(nn.Sequential):
        def __init__(self):
            super().__init__(nn.Upsample(224), Stripes())

    def resnet():
        torch.manual_seed(0)
        return torchvision.models.resnet18(num_classes=2)

    def preset(picture):
        picture = v2.functional.center_crop(v2.functional.resize(picture, 256), 224)
        return v2.functional.pil_to_tensor(picture) / 255

    def in_bytes(picture):
        return v2.functional.pil_to_tensor(picture)

    def uncut(picture):
        return v2.functional.pil_to_tensor(picture) / 255

    def normalised(picture):
        return preset(picture) - 0.5
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Pictures of mixed sizes with stripes across or down, on noise, and a file of networks."""
    root, generator = tmp_path_factory.mktemp("stripes"), np.random.default_rng(0)
    for i, split in enumerate(["train"] * 12 + ["test"] * 16):
        height, width = generator.integers(230, 330, 2)
        if i % 2:
            stripes = 60 * (np.arange(width) // 2 % 2)[None, :, None]
        else:
            stripes = 60 * (np.arange(height) // 2 % 2)[:, None, None]
        coarse = generator.integers(0, 180, (3, 4, 4), dtype=np.uint8)
        ground = v2.functional.resize(torch.from_numpy(coarse), [int(height), int(width)]).permute(1, 2, 0)
        path = root / split / ("down" if i % 2 == 0 else "across") / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray((ground.numpy() + stripes).astype(np.uint8)).save(path)
    (root / "net.py").write_text(textwrap.dedent(NETWORKS))
    return root


@pytest.mark.parametrize(("size", "resize"), [(50, None), (24, None), (48, 56)])
def test_images_are_brought_to_the_network_as_by_torchvision(size, resize):
    images = torch.randint(0, 256, (5, 3, 32, 32), dtype=torch.uint8)
    network = nn.Sequential(nn.Flatten(), nn.Linear(3 * size * size, 4))
    model = classifier.FromPixels(network, size)
    model.uncropped = resize
    steps = v2.Compose([v2.Resize([resize or size] * 2), v2.CenterCrop(size)])
    expected = network(steps(images / 255)).detach()
    torch.testing.assert_close(classifier.predict(model, images, CPU), expected, rtol=1e-4, atol=1e-5)


def test_a_network_that_needs_224_pixels_gets_them(folder):
    """At 32 pixels it is as sure and answers as by chance, and a note says what is missing."""
    errors = {}
    for more in ((), ("--size", 224)):
        found = examined("--model", f"{folder}/net.py:Upsampled", "--layer", "none", *more)
        _, test = classifier.load_data(found, str(folder), None)
        logits = classifier.predict(found.model, test.images, CPU)
        errors[more] = expected_calibration_error(test.labels, logits.softmax(dim=1))
        assert any(note.endswith("such as --size 224") for note in found.notes) == (not more)
        assert found.input.endswith("of 224x224 pixels" if more else "of 32x32 pixels")
    assert errors[()] > 0.3 and errors["--size", 224] < 0.0025


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (("--size", 513), "--size 513: expected 8 to 512"),
        (("--size", 224, "--resize", 200), "--size 224, the middle of 200: expected"),
        (("--resize", 256), "--resize 256 belongs to --size"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(folder, more, message):
    with pytest.raises(UserError, match=message):
        examined("--model", f"{folder}/net.py:Stripes", *more)


def test_as_many_images_at_once_as_take_the_memory_of_fifty_small_ones():
    for side, network_side, expected in ((32, 0, 50), (64, 32, 12), (32, 224, 4), (512, 0, 4), (16, 0, 200)):
        images = torch.zeros(3, 3, side, side)
        assert classifier.images_at_once(images, network_side) == expected
        assert classifier.images_at_once(images, network_side, torch.device("cuda")) == 32 * expected
        assert classifier.images_at_once(images, network_side, "cuda", batch_size=7) == 7
    seen = []
    network = nn.Sequential(nn.Conv2d(3, 2, 9, 3), nn.Flatten(), nn.Linear(1800, 2))
    network.register_forward_pre_hook(lambda module, inputs: seen.append(len(inputs[0])))
    found = classifier.from_module(network, None, None, CPU, size=96)
    images, labels = torch.zeros(12, 3, 32, 32, dtype=torch.uint8), torch.zeros(12, dtype=torch.int64)
    hidden, black = torch.ones(12, 32, 32, dtype=torch.bool), torch.zeros(3)
    ways = [
        lambda: classifier.predict(found.model, images, CPU),
        lambda: found.explain(images),
        lambda: reasons.answers_under_covering(found, images, hidden, black),
        lambda: stress.under_change(found, images, labels, lambda model, x, *more: x, 1),
    ]
    for batch_size, expected in ((None, [5, 5, 2]), (7, [7, 5])):
        found.model.batch_size = batch_size
        for number, way in enumerate(ways):
            seen.clear()
            way()
            assert seen == ([10, 2] if number == 3 and batch_size is None else expected)


def test_of_a_folder_a_network_of_ones_own_gets_the_test_pictures_alone(folder, tmp_path, quick, no_page):
    """Then the mean colour of those covers, and nothing is said of training images."""
    (tmp_path / "only").symlink_to(folder / "test")
    argv = ["--model", f"{folder}/net.py:resnet", "--size=64", "--layer=none"]
    for name, dataset in {"both": folder, "alone": tmp_path / "only"}.items():
        out = tmp_path / name
        assert examine.main([*argv, "--dataset", str(dataset), "--out", str(out)]) == 0
        numbers = read_json(out / "metrics.json", "")
        assert "duplicates" not in numbers and "num_train" not in numbers["classes"][0]
        samples = torchvision.datasets.ImageFolder(folder / "test")
        squares = [v2.functional.center_crop(picture, min(picture.size)) for picture, _ in samples]
        images = torch.stack([v2.functional.pil_to_tensor(square.resize((64, 64), 2)) for square in squares])
        with np.load(out / "evidence.npz") as arrays:
            np.testing.assert_allclose(arrays["fill"], images.double().mean(dim=(0, 2, 3)) / 255, atol=1e-3)
        assert examine.main(["--page", "--out", str(out)]) == 0


MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of ImageNet


def test_a_transform_gives_what_the_one_of_torchvision_does_to_the_last_digit(
    folder, tmp_path, few_resamples, no_page
):
    out, model = tmp_path / "out", f"{folder}/net.py:resnet"
    argv = ["--model", model, "--transform=preset", "--size=224", "--mean", *MEAN, "--std", *STD]
    argv = [str(part) for part in (*argv, "--layer=none", "--dataset", folder)]
    assert examine.main([*argv, "--quick", "-b=4", "--out", str(out)]) == 0
    theirs = torchvision.models.ResNet18_Weights.IMAGENET1K_V1.transforms()
    samples = torchvision.datasets.ImageFolder(folder / "test").samples
    images = torch.stack([theirs(Image.open(path)) for path, _ in samples])
    numbers, arrays = results.read_report(out)
    order = torch.randperm(16, generator=torch.Generator().manual_seed(0))  # as predict has it
    network = networks.build(model).eval()
    with torch.no_grad():
        logits = torch.cat([network(part) for part in images[order].split(4)])[order.argsort()]
    assert torch.equal(arrays["logits"], logits)
    assert numbers["examined"]["its images"].endswith("of 224x224 pixels, by preset")
    with pytest.raises(UserError, match="name it by --model"):  # a file of results runs no code
        examine.test_images_of(out, examine.parse([]), numbers)
    named = examine.parse(["--model", model, "--transform=preset"])
    again = examine.test_images_of(out, named, numbers) / 255
    assert torch.equal(v2.functional.normalize(again, MEAN, STD), images)


@pytest.mark.parametrize(
    ("name", "more", "message"),
    [
        ("in_bytes", (), r"/\d+\.png .* it makes torch.uint8, expected a float tensor \[3, 224, 224\]"),
        ("uncut", (), r"/\d+\.png .* it makes \[3, \d+, \d+\], expected \[3, 224, 224\], .* --size"),
        ("normalised", (), r"/\d+\.png .* values from -0.\d+ to .* expected 0 to 1: .*--mean and --std"),
        ("preset", ("--resize", "256"), "--transform preset takes the place of --resize 256"),
        ("preset", ("--dataset", "shapes"), "for a folder of pictures, and shapes is none"),
    ],
)
def test_a_transform_that_does_not_fit_is_one_line(folder, name, more, message, capsys, monkeypatch):
    argv = ["--model", f"{folder}/net.py:Stripes", "--size=224", "--dataset", str(folder), *more]
    for command in (examine, stress):
        assert_one_line(*outcome(capsys, command.main, [*argv, "--transform", name]), message)


def linear(num_classes):
    return nn.Sequential(nn.Flatten(), nn.Linear(3072, num_classes))


def save(picture, path, **more):
    path.parent.mkdir(parents=True, exist_ok=True)
    picture.save(path, **more)


def test_a_folder_holds_the_same_pixels_as_for_the_core(tmp_path):
    """Whatever the mode, the size and the orientation of its pictures."""
    noise = np.random.default_rng(0).integers(0, 256, (2, 3, 50, 37, 4), dtype=np.uint8)
    for split, pair in zip(("train", "val"), noise, strict=True):
        for name, pixels in zip("abc", pair, strict=True):
            folder, colour = tmp_path / split / name, Image.fromarray(pixels[..., :3])
            turned = Image.Exif()
            turned[0x0112] = 6
            save(colour, folder / "turned.jpg", exif=turned)
            save(Image.fromarray(pixels), folder / "transparent.png")
            for mode in ("1", "L", "P", "CMYK", "YCbCr"):
                save(colour.convert(mode), folder / f"{mode}.tif")
            save(colour, folder / "._copy.png")
            save(colour.resize((9, 80)), folder / "narrow.webp")
    for size in (16, 64):
        ours, theirs = pictures.load(str(tmp_path), size=size), data.load(str(tmp_path), size=size)
        for own, other in zip(ours, theirs, strict=True):
            assert torch.equal(own.images, other.images) and len(own.images) == 24
            assert torch.equal(own.labels, other.labels) and own.class_names == other.class_names


def test_the_folder_of_test_pictures_by_other_names(tmp_path, capsys):
    """It may lack classes, loose pictures are noted, and folders that share their classes are refused."""
    picture = Image.new("RGB", (9, 9))
    for name in ("train/ant", "train/bee", "train/cow", "valid/ant", "valid/cow"):
        save(picture, tmp_path / name / "1.png")
    train_set, test = pictures.load(str(tmp_path))
    assert test.class_names == train_set.class_names == ["ant", "bee", "cow"]
    assert test.labels.tolist() == [0, 2]
    network = classifier.from_module(linear(3), ["Ant", "bee", "cow"])
    _, alone = classifier.load_data(network, str(tmp_path), None)
    assert alone.class_names == ["Ant", "bee", "cow"] and alone.labels.tolist() == [0, 2]
    assert "of 2 classes" in (printed := capsys.readouterr().out) and ": ant, cow\n" in printed
    save(picture, tmp_path / "valid" / "loose.PNG")
    pictures.load(str(tmp_path))
    assert "in no folder of a class, are left out: 1\n" in capsys.readouterr().out
    (tmp_path / "train").rename(tmp_path / "training_set")
    (tmp_path / "valid").rename(tmp_path / "Test")
    with pytest.raises(
        UserError, match="Test/ and training_set/ hold the same classes, such as ant: expected"
    ):
        pictures.load(str(tmp_path), with_train=False)


@pytest.mark.parametrize("factor", [2, 5, 8])
def test_a_picture_enlarged_by_a_whole_factor_is_brought_back(factor):
    small = torch.randint(0, 256, (3, 9, 12), dtype=torch.uint8)
    large = torch.nn.functional.interpolate(small[None], scale_factor=factor)[0]
    assert torch.equal(pictures.reduced(large), small) and pictures.reduced(small) is small
    large[1, 3, 4] += 1
    assert pictures.reduced(large) is large


def test_training_reads_a_folder_at_the_largest_size_and_the_checkpoint_says_it(
    folder, tmp_path, monkeypatch
):
    out = tmp_path / "run"
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data").mkdir()  # the default of --data-dir, in which CIFAR lies
    train.main([*TINY, "--dataset", str(folder), "--image-sizes", "24,48", "--out", str(out)])
    found = examined("--run", out)
    training, test = classifier.load_data(found, None, None)
    assert found.model.image_size == 48 and test.images.shape[1:] == (3, 48, 48)
    assert classifier.find_data(found, "shapes", None)[0] == "shapes" != found.dataset
    assert data.sha256_of(training.images) == found.training["config"]["images_sha256"]
    larger = examined("--run", out, "--size", 64)
    assert larger.model.image_size == 64
    training, test = classifier.load_data(larger, None, None)
    assert checked_training_set(larger, training, test) is training and not larger.notes
    assert classifier.is_own(found, f"{folder}/../{folder.name}/") and not classifier.is_own(found, "shapes")
    shutil.rmtree(folder / "train")  # another folder of pictures needs none
    found.dataset = "shapes"
    assert classifier.load_data(found, str(folder), None)[0] is None

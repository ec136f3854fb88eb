"""Folders of pictures, against what Pillow makes of them."""

import shutil
import tempfile
import types

import numpy as np
import pytest
import torch
import torchvision
from PIL import Image, ImageOps
from torchvision.transforms import v2

import data
from sources import pictures
from support.errors import UserError

RNG = np.random.default_rng(0)


def photograph(width, height):
    """A smooth picture of random colours, so that JPEG keeps it."""
    return Image.fromarray(RNG.integers(0, 256, (4, 5, 3), dtype=np.uint8)).resize((width, height))


def save_turned(path):
    """A JPEG that an EXIF tag turns by a quarter."""
    exif = Image.Exif()
    exif[0x0112] = 6
    photograph(90, 60).save(path, quality=95, exif=exif)


def save_as(mode, **options):
    """A function that writes a picture of many colours in a mode of Pillow."""

    def save(path):
        colours = Image.fromarray(RNG.integers(0, 256, (90, 70, 4), dtype=np.uint8), "RGBA")
        colours.convert("RGB" if mode == "CMYK" else mode).convert(mode).save(path, **options)

    return save


MODES = {
    "photo.jpg": save_as("RGB", quality=90),
    "turned.jpg": save_turned,
    "print.jpg": save_as("CMYK"),
    "grey.png": save_as("L"),
    "black and white.png": save_as("1"),
    "palette.gif": save_as("P"),
    "alpha.png": save_as("RGBA"),
    "grey and alpha.png": save_as("LA"),
    "a transparent colour.png": save_as("P", transparency=7),
    "a transparent grey.png": save_as("L", transparency=100),
}


@pytest.mark.parametrize("name", MODES)
def test_pixels_lie_on_white_bit_for_bit(name, tmp_path):
    """With and without transparency, as the alpha channel that Pillow makes of every picture says."""
    MODES[name](tmp_path / name)
    with Image.open(tmp_path / name) as file:
        rgba = np.array(ImageOps.exif_transpose(file).convert("RGBA"), dtype=np.float32)
    alpha = rgba[..., 3:] / 255
    expected = (rgba[..., :3] * alpha + 255 * (1 - alpha)).round().astype(np.uint8)
    found = pictures.read_picture(tmp_path / name)
    assert np.array_equal(found.permute(1, 2, 0), expected)
    assert (alpha.min() < 1) == ("alpha" in name or "transparent" in name)


@pytest.mark.parametrize(("size", "resize"), [(32, None), (224, None), (96, 112)])
@pytest.mark.parametrize("shape", [(430, 300), (60, 90), (9, 7), (263, 263)])
def test_a_picture_is_cut_and_resized_as_by_torchvision(shape, size, resize):
    """Equal, or one level off where torchvision does not compute in whole numbers."""
    picture = torch.from_numpy(RNG.integers(0, 256, (3, *shape), dtype=np.uint8))
    steps = [v2.Resize(resize)] if resize else [v2.CenterCrop(min(shape)), v2.Resize(size)]
    expected = v2.Compose([*steps, v2.CenterCrop(size)])(picture)
    assert (pictures.fit(picture, size, resize).int() - expected.int()).abs().max() <= 1


def ramp(white):
    """Every value from 0 to white, 64 x 64, and what an 8-bit picture of it has at 32x32 pixels."""
    values = np.linspace(0, white, 64 * 64).reshape(64, 64)
    return values, (255 * values / white).reshape(32, 2, 32, 2).mean(axis=(1, 3))


DEEP = {
    "16.png": lambda path: Image.fromarray(ramp(65535)[0].astype(np.uint16)).save(path),
    "16.tif": lambda path: Image.fromarray(ramp(65535)[0].astype(np.uint16)).save(path),
    "12.pgm": lambda path: path.write_bytes(b"P5 64 64 4095\n" + ramp(4095)[0].astype(">u2").tobytes()),
    "float.tif": lambda path: Image.fromarray(ramp(1)[0].astype(np.float32)).save(path),
}


@pytest.mark.parametrize("name", DEEP)
def test_more_than_8_bits_are_scaled_by_the_range_of_the_file(name, tmp_path):
    DEEP[name](tmp_path / name)
    grey = pictures.fit(pictures.read_picture(tmp_path / name), 32).numpy()
    assert np.abs(grey - ramp(255)[1]).max() <= 3 and grey.min() < 5 and grey.max() > 250


def test_the_bits_of_a_tiff_say_what_is_white_and_without_a_range_it_is_refused(tmp_path):
    values = np.arange(32 * 32).reshape(32, 32)
    for bits, sign in ((12, 1), (16, 1), (32, 1)):
        file = types.SimpleNamespace(mode="I", format="TIFF", tag_v2={258: (bits,), 339: (sign,)})
        stored = (values * (2**bits - 1) / 1023).astype(np.uint32).astype(np.int32)  # as Pillow has 32 bits
        grey = np.asarray(pictures.in_bytes(stored.astype(np.float64), file))
        assert np.abs(grey - values * 255 / 1023).max() <= 0.6
    Image.fromarray(values.astype(np.int32)).save(tmp_path / "signed.tif")
    Image.fromarray(values.astype(np.float32)).save(tmp_path / "float.tif")
    for name, mode in (("signed.tif", "I"), ("float.tif", "F")):
        with pytest.raises(ValueError, match=f"its values, {mode} from 0 to 1023, have no known range"):
            pictures.read_picture(tmp_path / name)


CLASSES = ("Zebra", "cat", "älter und jünger")


def write_set(root, **more):
    """Write {folder: names of pictures} for three classes of any names, and others beside them."""
    content = {
        "train/Zebra": ["b.png", "a.JPG"],
        "train/älter und jünger": ["1.gif", "2.webp", "3.png", "4.png"],
        "train/cat": ["x.png"],
        "test/Zebra": ["b.png"],
        "test/älter und jünger": ["1.png"],
        "test/cat": ["x.png", "w.png"],
    } | {folder.replace("_", "/"): names for folder, names in more.items()}
    for folder, names in content.items():
        if names is not None:
            (root / folder).mkdir(parents=True)
            for name in names:
                photograph(40, 36).save(root / folder / name)
    return root


def test_a_folder_becomes_two_datasets_in_the_order_of_names(tmp_path):
    root = write_set(tmp_path / "my pets")
    for other in ("train/.git/x.png", "train/cat/.hidden.png", "train/cat/more/Thumbs.db", "train/notes.txt"):
        (root / other).parent.mkdir(exist_ok=True)
        (root / other).write_bytes(b"no picture")
    photograph(40, 20).save(root / "train" / "Zebra" / "b.png")
    photograph(70, 90).save(root / "train" / "cat" / "x.png")
    (root / "train" / "cat" / "x.png").rename(root / "train" / "cat" / "more" / "x.png")
    train, test = data.load(str(root))
    assert train.class_names == test.class_names == [*CLASSES]
    assert train.labels.tolist() == [0, 0, 1, 2, 2, 2, 2] and test.labels.tolist() == [0, 1, 1, 2]
    assert train.filenames == ["a.JPG", "b.png", "more/x.png", "1.gif", "2.webp", "3.png", "4.png"]
    assert test.filenames == ["b.png", "w.png", "x.png", "1.png"]
    assert train.picture_side == test.picture_side == 36
    picture = pictures.read_picture(root / "test" / "cat" / "w.png")
    assert torch.equal(test.images[1], pictures.fit(picture, 32))
    assert train.superclass_of is None and train.superclass_names is None
    assert train.name == "folder my pets" and train.digest != test.digest
    assert train.provenance == test.provenance and "7" in train.provenance and "4" in train.provenance
    assert "other files left out: 2" in train.provenance
    # The same again, and the same from val/; beside test/ it is not looked at.
    (root / "test").rename(root / "val")
    assert [split.digest for split in data.load_folder(root)] == [train.digest, test.digest]
    write_set(tmp_path / "both")
    (tmp_path / "both" / "val").mkdir()
    assert len(data.load_folder(tmp_path / "both")[1].labels) == 4


def test_the_test_pictures_are_read_alone(tmp_path):
    """From test/, from val/, or from folders of classes that lie in the folder itself."""
    root = write_set(tmp_path / "pets")
    both = data.load(str(root))
    (root / "train" / "cat" / "x.png").write_bytes(b"which is not read")
    found = [data.load(str(root), with_train=False), data.load(str(root / "test"), with_train=False)]
    (root / "test").rename(root / "val")
    found.append(data.load(str(root), with_train=False))
    for train, test in found:
        assert train is None and test.provenance.endswith(", 4 test images")
        assert test.digest == both[1].digest and test.filenames == both[1].filenames
        assert test.class_names == [*CLASSES]
    (root / "val").rename(tmp_path / "away")
    with pytest.raises(UserError, match="/test cannot be used as a folder that holds one of pictures"):
        data.load(str(root), with_train=False)


def test_a_transform_gets_the_upright_picture_of_pillow_and_its_values_are_rounded(tmp_path):
    for split, name in (("a", "turned.jpg"), ("b", "grey and alpha.png")):
        (tmp_path / split).mkdir()
        MODES[name](tmp_path / split / name)
    seen = {}

    def transform(picture):
        seen[picture.size] = picture
        return torch.linspace(0, 1, 3 * 32 * 32).view(3, 32, 32)

    _, test = data.load(str(tmp_path), with_train=False, transform=transform)
    assert torch.equal(test.images[0].flatten().double(), (torch.linspace(0, 255, 3072)).round().double())
    assert {size: picture.mode for size, picture in seen.items()} == {(60, 90): "RGB", (70, 90): "RGB"}
    with Image.open(tmp_path / "a" / "turned.jpg") as file:
        assert np.array_equal(seen[60, 90], ImageOps.exif_transpose(file))


def test_many_pictures_lie_in_a_temporary_file_that_is_gone(tmp_path, monkeypatch):
    root, temporary = write_set(tmp_path / "pets"), tmp_path / "temporary"
    temporary.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(temporary))
    in_memory = data.load(str(root), workers=1)
    monkeypatch.setattr(pictures, "IN_MEMORY", 7 * 3 * 32 * 32 - 1)  # the training pictures need one more
    for ours, expected in zip(data.load(str(root), workers=3), in_memory, strict=True):
        assert torch.equal(ours.images, expected.images) and ours.digest == expected.digest
    assert not [*temporary.iterdir()]
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: types.SimpleNamespace(free=7 * 3 * 32 * 32 - 1))
    with pytest.raises(UserError, match=f"{temporary} has 0.0 GB free: set TMPDIR"):
        data.load(str(root))


def test_pairs_are_read_as_a_folder_of_them(tmp_path):
    root = write_set(tmp_path)
    theirs = torchvision.datasets.ImageFolder(root / "test")
    test = data.from_pairs(theirs, theirs.classes, 24, 30)
    expected = data.load(str(root), size=24, resize=30)[1]
    assert torch.equal(test.images, expected.images) and torch.equal(test.labels, expected.labels)
    assert test.class_names == [*CLASSES] and test.picture_side == expected.picture_side
    tensors = torchvision.datasets.ImageFolder(root / "test", torchvision.transforms.ToTensor())
    with pytest.raises(ValueError, match=r"picture 0 is a Tensor.*without a transform"):
        data.from_pairs(tensors, theirs.classes)


WRONG = {  # what is changed, and what the line names
    "no train": ({f"train_{name}": None for name in CLASSES}, "no train/"),
    "no test": ({f"test_{name}": None for name in CLASSES}, "test"),
    "another class": ({"train_dog": ["1.png"], "train_cat": None}, "same classes, but only one has 'cat'"),
    "an empty class": ({"train_dog": [], "test_dog": ["1.png"]}, "for the classes dog"),
    "one class": (
        {f"{split}_{name}": None for split in ("train", "test") for name in CLASSES[:2]},
        "pictures of 1 classes",
    ),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_folder_of_another_kind_is_refused_in_one_line(name, tmp_path, monkeypatch):
    changes, named = WRONG[name]
    monkeypatch.setattr(pictures, "read_picture", None)  # nothing is read before that
    with pytest.raises(UserError) as caught:
        data.load(str(write_set(tmp_path, **changes)))
    assert named in str(caught.value) and str(tmp_path) in str(caught.value) and "\n" not in str(caught.value)


def test_pictures_that_cannot_be_read_are_named_together(tmp_path):
    root = write_set(tmp_path, train_dog=[f"{i}.png" for i in range(7)], test_dog=["0.png"])
    for i in range(6):
        (root / "train" / "dog" / f"{i}.png").write_bytes(b"<!DOCTYPE html>")
    cut = root / "test" / "cat" / "w.png"
    cut.write_bytes(cut.read_bytes()[:100])
    with pytest.raises(UserError, match=r"cannot be read: 7, .*dog/0\.png.*dog/4\.png ") as caught:
        data.load_folder(root)
    assert str(caught.value).isprintable()

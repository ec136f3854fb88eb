"""cifar_c.py: small files in the layout of CIFAR-100-C, and files that are others."""

import numpy as np
import pytest

from lab.stress_tests import cifar_c

CLASSES = set(range(10))


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Two corruptions of 20 images at five severities."""
    monkeypatch.setattr(cifar_c, "IMAGES", 20)
    for name in ("fog", "spatter"):
        images = np.random.default_rng(0).integers(0, 256, (100, 32, 32, 3), dtype=np.uint8)
        np.save(tmp_path / f"{name}.npy", images)
    np.save(tmp_path / "labels.npy", np.tile(np.arange(20) % 10, 5).astype(np.uint8))
    return tmp_path


def test_files_are_opened_and_not_read(folder):
    arrays, labels = cifar_c.open_files(folder, CLASSES)
    assert list(arrays) == ["fog", "spatter"]
    assert isinstance(arrays["fog"], np.memmap) and not arrays["fog"].flags.writeable
    assert np.array_equal(arrays["fog"], np.load(folder / "fog.npy"))
    assert labels.dtype == np.int64 and labels.tolist() == [*range(10), *range(10)]


def test_other_files_are_refused(folder):
    fog, labels = np.load(folder / "fog.npy"), np.load(folder / "labels.npy")
    for name, content, said in (
        ("fog.npy", fog.transpose(0, 3, 1, 2), "fog.npy holds uint8"),
        ("labels.npy", np.concatenate([np.roll(labels[:20], 1), labels[20:]]), "labels.npy does not hold"),
        ("labels.npy", labels % 5, "labels.npy does not hold"),  # other classes, as those of CIFAR-10-C
    ):
        kept = (folder / name).read_bytes()
        np.save(folder / name, content)
        with pytest.raises(OSError, match=said):
            cifar_c.open_files(folder, CLASSES)
        (folder / name).write_bytes(kept)
    with pytest.raises(OSError, match="does not hold CIFAR-100-C"):
        cifar_c.open_files(folder / "nowhere", CLASSES)

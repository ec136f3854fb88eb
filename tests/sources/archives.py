"""A small CIFAR-100 in the files of all its sources, and writers of pickles, tars and zips."""

import functools
import hashlib
import io
import struct
import tarfile
import zipfile

import numpy as np
import torch
from torchvision.io import encode_png

from sources.cifar100 import CLASS_NAMES


class SmallCifar:
    """A small set in CIFAR-100's classes, and its files as the two sources of the whole one write them."""

    def __init__(self, per_class=(3, 2), seed=0):
        rng = np.random.default_rng(seed)
        self.splits = {}  # split: (images uint8 [N, 3, 32, 32], labels, file names), shuffled
        for split, count in zip(("train", "test"), per_class, strict=True):
            labels = rng.permutation(np.repeat(np.arange(100), count))
            images = rng.integers(0, 256, (len(labels), 3, 32, 32), dtype=np.uint8)
            images //= np.arange(1, 101, dtype=np.uint8)[labels][:, None, None, None]  # less to compress
            names = [f"{CLASS_NAMES[c]}_s_{i:06d}.png" for i, c in enumerate(labels)]
            self.splits[split] = (images, labels, names)

    def digests(self):
        """The content digests, computed a second time and from the definition."""
        return {
            split: hashlib.sha256(
                b"".join(sorted(bytes([c]) + x.tobytes() for x, c in zip(images, labels, strict=True)))
            ).hexdigest()
            for split, (images, labels, _) in self.splits.items()
        }

    def records(self):
        """What the official pickles hold, by split."""
        records = {}
        for split, (images, labels, names) in self.splits.items():
            data = images.reshape(len(images), -1)
            records[split] = {"filenames": list(names), "fine_labels": labels.tolist(), "data": data}
        return records

    @functools.cache  # noqa: B019
    def pickles(self):
        return {name: python2_pickle(record) for name, record in self.records().items()}

    @functools.cache  # noqa: B019
    def pngs(self):
        """{train/<class>/<name>.png: content}."""
        return {
            f"{split}/{CLASS_NAMES[c]}/{name}": encode_png(torch.from_numpy(image)).numpy().tobytes()
            for split, (images, labels, names) in self.splits.items()
            for image, c, name in zip(images, labels, names, strict=True)
        }

    def tar(self):
        return tar_gz({f"cifar-100-python/{name}": content for name, content in self.pickles().items()})

    def zip(self):
        return zip_of({f"CIFAR-100-dataset-main/{name}": content for name, content in self.pngs().items()})

    def write(self, root, kind):
        """Write one kind of source into the folder `root` and return its path."""
        root.mkdir(parents=True, exist_ok=True)
        if kind == "folder":
            return write_files(root / "cifar-100-python", self.pickles())
        if kind in ("tar", "zip"):
            path = root / {"tar": "cifar-100-python.tar.gz", "zip": "CIFAR-100-dataset-main.zip"}[kind]
            path.write_bytes(self.tar() if kind == "tar" else self.zip())
            return path
        return write_files(root if kind == "png" else root / "CIFAR-100-dataset-main", self.pngs())


def python2_pickle(value):
    """Write a pickle opcode by opcode as Python 2 did: protocol 2, byte strings, numpy's old module names."""

    def write(value):
        if value is None:
            return b"N"
        if isinstance(value, int):
            return b"J" + struct.pack("<i", value)
        if isinstance(value, (str, bytes)):
            value = value.encode("latin1") if isinstance(value, str) else value
            short = len(value) < 256
            return (b"U" + bytes([len(value)]) if short else b"T" + struct.pack("<i", len(value))) + value
        if isinstance(value, (list, tuple)):
            items = b"".join(write(item) for item in value)
            return b"](" + items + b"e" if isinstance(value, list) else b"(" + items + b"t"
        if isinstance(value, dict):
            return b"}(" + b"".join(write(key) + write(item) for key, item in value.items()) + b"u"
        # An array: _reconstruct(ndarray, (0,), "b"), then its state.
        dtype = b"cnumpy\ndtype\n" + write((value.dtype.str[1:], 0, 1)) + b"R"
        dtype += write((3, "|", None, None, None, -1, -1, 0)) + b"b"
        start = b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n" + write((0,)) + write("b") + b"tR"
        return start + b"(" + write(1) + write(value.shape) + dtype + b"\x89" + write(value.tobytes()) + b"tb"

    return b"\x80\x02" + write(value) + b"."


def tar_gz(files):
    """A tar.gz of {name: content}."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w:gz", compresslevel=1) as archive:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return out.getvalue()


def zip_of(files, compression=zipfile.ZIP_DEFLATED):
    """A zip of {name: content}."""
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", compression) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return out.getvalue()


def write_files(folder, files):
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    return folder


SMALL = SmallCifar()

"""Small sets in the official files of CIFAR-100 and CIFAR-10."""

import gzip
import hashlib
import io
import pickle
import tarfile

import numpy as np

FOLDERS = {"cifar100": "cifar-100-python", "cifar10": "cifar-10-batches-py"}
ARCHIVES = {"cifar100": "cifar-100-python.tar.gz", "cifar10": "cifar-10-python.tar.gz"}
FILES = {
    "cifar100": {"train": ["train"], "test": ["test"]},
    "cifar10": {"train": [f"data_batch_{i}" for i in (1, 2, 3, 4, 5)], "test": ["test_batch"]},
}


class Small:
    """Three training and two test images of each class, and what the official pickles hold of them."""

    def __init__(self, name="cifar100", seed=0):
        self.name = name
        rng = np.random.default_rng(seed)
        num_classes = {"cifar100": 100, "cifar10": 10}[name]
        self.splits = {}  # split: (images uint8 [N, 3, 32, 32], labels, file names), shuffled
        self.records = {}  # file: its content
        for split, per_class in (("train", 3), ("test", 2)):
            labels = rng.permutation(np.repeat(np.arange(num_classes), per_class))
            images = rng.integers(0, 256, (len(labels), 3, 32, 32), dtype=np.uint8)
            numbers = rng.permutation(len(labels))
            names = [f"s_{i:06d}_{c:02d}.png" for i, c in zip(numbers, labels, strict=True)]
            self.splits[split] = (images, labels, names)
            parts = np.array_split(np.arange(len(labels)), len(FILES[name][split]))
            for file, part in zip(FILES[name][split], parts, strict=True):
                self.records[file] = {
                    b"filenames": [names[i].encode() for i in part],
                    {"cifar100": b"fine_labels", "cifar10": b"labels"}[name]: labels[part].tolist(),
                    b"data": images[part].reshape(len(part), -1),
                }

    def digests(self):
        """The content digests of both splits, from the definition."""
        return [digest(images, labels) for images, labels, _ in self.splits.values()]

    def files(self):
        """{path in the archive: content}"""
        records = self.records
        if self.name == "cifar10":  # which torchvision reads, as texts and with the names of the classes
            records = {f: {key.decode(): x for key, x in record.items()} for f, record in records.items()}
        files = {f"{FOLDERS[self.name]}/{file}": as_in_python2(record) for file, record in records.items()}
        if self.name == "cifar10":
            files["cifar-10-batches-py/batches.meta"] = pickle.dumps({"label_names": ["airplane"]})
        return files

    def write(self, root, kind="folder", **changes):
        """Write the files as a folder or as an archive, some of them changed."""
        files = self.files() | {f"{FOLDERS[self.name]}/{file}": x for file, x in changes.items()}
        root.mkdir(parents=True, exist_ok=True)
        if kind == "tar":
            (root / ARCHIVES[self.name]).write_bytes(tar_gz(files))
            return root
        for path, content in files.items():
            (root / path).parent.mkdir(exist_ok=True)
            (root / path).write_bytes(content)
        return root


def digest(images, labels, size=1):
    """The sha256 over the sorted records: so many bytes for the label and then the pixels."""
    firsts = [int(label).to_bytes(size, "big") for label in labels]
    records = [first + image.tobytes() for first, image in zip(firsts, images, strict=True)]
    return hashlib.sha256(b"".join(sorted(records))).hexdigest()


def as_in_python2(record):
    """A pickle that has the old names of numpy's modules, as the official ones do."""
    return pickle.dumps(record, protocol=3).replace(b"cnumpy._core.", b"cnumpy.core.")


def tar_gz(files):
    """A tar.gz of {name: content}, to the byte the same whenever it is made."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as archive:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return gzip.compress(out.getvalue(), 1, mtime=0)

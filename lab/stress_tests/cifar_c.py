"""The published files of CIFAR-100-C and CIFAR-10-C, which stay on the disk.

Hendrycks and Dietterich, "Benchmarking Neural Network Robustness to Common Corruptions and Perturbations",
2019 (arXiv 1903.12261): labels.npy, fog.npy and so on, uint8 [50000, 32, 32, 3]. Severity s stands in rows
10000 (s - 1) to 10000 s, in the order of the official test file, and the labels repeat every 10,000 rows.
"""

from pathlib import Path

import numpy as np

IMAGES = 10_000  # of each severity


def open_files(folder: Path, classes: set[int]) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Return {"fog": array, ...} of all corruptions there, and the labels of one severity, int64 [10000].

    Raises OSError if there is none, a file is another one, or the labels are not those of `classes`.
    """
    files = {path.stem: path for path in sorted(folder.glob("*.npy")) if path.stem != "labels"}
    if not files:
        raise OSError(f"{folder} does not hold CIFAR-100-C, that is labels.npy, fog.npy and so on")
    labels = open_array(folder / "labels.npy", (5 * IMAGES,), np.integer).astype(np.int64)
    if (labels != np.tile(labels[:IMAGES], 5)).any() or set(labels.tolist()) != classes:
        wanted = f"the labels of {IMAGES:,} test images of {len(classes)} classes"
        raise OSError(f"{folder}/labels.npy does not hold {wanted}, five times")
    arrays = {name: open_array(path, (5 * IMAGES, 32, 32, 3), np.uint8) for name, path in files.items()}
    return arrays, labels[:IMAGES]


def open_array(path: Path, shape: tuple[int, ...], kind: type) -> np.ndarray:
    """Return the array in a .npy file without reading it; OSError if it has another shape or dtype."""
    try:
        array = np.lib.format.open_memmap(path, mode="r")
    except (OSError, ValueError) as error:
        raise OSError(f"{path} cannot be used as a file of CIFAR-100-C: {error}") from error
    if array.shape != shape or not np.issubdtype(array.dtype, kind):
        raise OSError(f"{path} holds {array.dtype} {array.shape}, expected {kind.__name__} {shape}")
    return array

"""What the sections of explore.html draw with: numbers in words, and sheets of pictures."""

import base64
import math

import numpy as np
import torch.nn.functional as F
from torch import Tensor

import report
from report import address, encoded

SIDE = 64  # pixels: the largest side of a picture on the page
MAX_SHEET, BYTES_PER_PIXEL = 600_000, 0.25  # of a sheet of pictures, whose quality falls until it fits


# ---- Numbers in words --------------------------------------------------------------------------------------


def percent(value: float | dict | None, digits: int = 1) -> str:
    """Return report.percent of a fraction, or of a fraction with its interval, {value, low, high}.

    A share that is not all, or not none, has a digit more than would make it so.
    """
    value = value["value"] if isinstance(value, dict) else value
    if digits == 0 and value is not None and (0 < value <= 0.005 or 0.995 <= value < 1):
        digits = 1
    return report.percent(value, digits)


def interval(row: dict, digits: int = 1) -> str:
    """Return a fraction with its interval, value, low and high, as "12.3 % (9.9–15.1)"."""
    low, high = (f"{100 * row[key]:.{digits}f}" for key in ("low", "high"))
    return f"{percent(row['value'], digits)} ({low}\N{WORD JOINER}–\N{WORD JOINER}{high})"


def corruption(name: str) -> str:
    """Return the name of a corruption for people."""
    return report.plain(name).replace("gaussian", "Gaussian").replace("jpeg", "JPEG")


# ---- Pictures ----------------------------------------------------------------------------------------------


def reduced(images: Tensor) -> Tensor:
    """Return images uint8 [N, 3, S, S] as the page shows them, reduced to 64 pixels if they are wider."""
    if images.shape[-1] <= SIDE:
        return images
    return F.interpolate(images, SIDE, mode="bilinear", antialias=True)


def picture(image: Tensor) -> str:
    """Return an image, uint8 [3, H, W] or float in [0, 1], as an address."""
    return address(encoded((255 * image).round().byte() if image.is_floating_point() else image), "png")


def sheet(images: Tensor, limit: int = MAX_SHEET, columns: int | None = None) -> dict:
    """Return images, uint8 [N, 3, S, S], as one JPEG file: `address`, `columns` and `rows`.

    Its quality falls until the file has `limit` bytes, or 0.25 a pixel. columns: by default a square.
    Images with opacity, [N, 4, S, S], are a PNG.
    """
    columns = columns or max(1, math.ceil(math.sqrt(len(images))))
    rows = max(1, math.ceil(len(images) / columns))
    grid = images.new_zeros(rows * columns, *images.shape[1:])
    grid[: len(images)] = images
    pixels = grid.unflatten(0, (rows, columns)).permute(2, 0, 3, 1, 4).flatten(3).flatten(1, 2)  # [3, H, W]
    if len(pixels) == 4:
        return {"address": address(encoded(pixels), "png"), "columns": columns, "rows": rows}
    for quality in range(85, 15, -10):
        content = encoded(pixels, "JPEG", quality)
        if len(content) <= max(limit, BYTES_PER_PIXEL * pixels[0].numel()):
            break
    return {"address": address(content, "jpeg"), "columns": columns, "rows": rows}


def base64_of(values: np.ndarray) -> str:
    """Return uint8 values as the base64 of their bytes."""
    return base64.b64encode(values.tobytes()).decode()

"""Changes too small to matter to people: mirror images, shifts of one pixel, and single plane waves.

`predict` below is a function of uint8 images [N, 3, H, W] that returns the predicted classes, int64 [N].
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Generator, Tensor


def shifted(images: Tensor, dy: int, dx: int) -> Tensor:
    """Move images [N, 3, H, W] by one pixel or none down and to the right; the border repeats its pixels."""
    padded = F.pad(images.float(), (1, 1, 1, 1), mode="replicate").to(images.dtype)
    height, width = images.shape[-2:]
    return padded[..., 1 - dy : 1 - dy + height, 1 - dx : 1 - dx + width]


def changed_answers(predict: Callable[[Tensor], Tensor], images: Tensor, y_pred: Tensor) -> dict[str, Tensor]:
    """Return which answers change for the mirror image and for a shift by one pixel, {name: bool [N]}.

    y_pred int64 [N] are the answers for the images as they are. Of the four shifts, up, down, left and right,
    one that changes the answer is enough. Sources: Zhang, "Making Convolutional Networks Shift-Invariant
    Again", 2019 (arXiv 1904.11486), section 4; Azulay and Weiss, "Why do deep convolutional networks
    generalize so poorly to small image transformations?", 2019 (arXiv 1805.12177).
    """
    shifts = [predict(shifted(images, dy, dx)) != y_pred for dy, dx in ((-1, 0), (1, 0), (0, -1), (0, 1))]
    return {"mirror": predict(images.flip(-1)) != y_pred, "shift": torch.stack(shifts).any(dim=0)}


def plane_wave(row: int, column: int, side: int = 32) -> Tensor:
    """Return the real wave with so many periods across an image, float32 [side, side], of length 1.

    Its Fourier transform is 0 but at (row, column) and at the frequency opposite to it.
    """
    spectrum = torch.zeros(side, side, dtype=torch.complex64)
    spectrum[row % side, column % side] = spectrum[-row % side, -column % side] = 1
    wave = torch.fft.ifft2(spectrum).real
    return wave / wave.norm()


def fourier_heatmap(
    predict: Callable[[Tensor], Tensor], images: Tensor, labels: Tensor, rows: list[int], columns: list[int]
) -> Tensor:
    """Return the error rate where one plane wave is added to each image, float32 [rows, columns].

    images uint8 [N, 3, H, H]; labels int64 [N]; rows and columns: periods across the image. A row of -3 is
    the mirror image of 3, and (row, column) is the same wave as (-row, -column). In each channel of each
    image the wave has length 4 in units of [0, 1] and a random sign, always the same one. Source: Yin et
    al., "A Fourier Perspective on Model Robustness in Computer Vision", 2019 (arXiv 1906.08988), section 3.
    """
    sign = torch.randint(2, (*images.shape[:2], 1, 1), generator=Generator().manual_seed(0)) * 2 - 1
    error = torch.zeros(len(rows), len(columns))
    for i, row in enumerate(rows):
        for j, column in enumerate(columns):
            changed = images / 255 + 4 * sign * plane_wave(row, column, images.shape[-1])
            answers = predict((changed.clamp(0, 1) * 255).round().to(torch.uint8))
            error[i, j] = (answers != labels).float().mean()
    return error

"""Changes too small to matter to people: mirror images and shifts by one pixel."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor


def shifted(images: Tensor, dy: int, dx: int) -> Tensor:
    """Move images [N, 3, H, W] by one pixel or none down and to the right; the border repeats its pixels."""
    height, width = images.shape[-2:]
    padded = F.pad(images.float(), (1, 1, 1, 1), mode="replicate").to(images.dtype)
    return padded[..., 1 - dy : 1 - dy + height, 1 - dx : 1 - dx + width]


def changed_answers(predict: Callable[[Tensor], Tensor], images: Tensor, y_pred: Tensor) -> dict[str, Tensor]:
    """Return which answers change for the mirror image and for a shift by one pixel, {name: bool [N]}.

    predict takes uint8 images [N, 3, H, W] to the predicted classes, int64 [N]; y_pred are those of the
    images as they are. Of the four shifts, up, down, left and right, one that changes the answer is enough.
    Sources: Zhang, "Making Convolutional Networks Shift-Invariant Again", 2019 (arXiv 1904.11486), section 4;
    Azulay and Weiss, "Why do deep convolutional networks generalize so poorly to small image
    transformations?", 2019 (arXiv 1805.12177).
    """
    mirror = predict(images.flip(-1)) != y_pred
    shift = torch.zeros_like(mirror)
    for dy, dx in ((-1, 0), (1, 0), (0, -1), (0, 1)):
        shift |= predict(shifted(images, dy, dx)) != y_pred
    return {"mirror": mirror, "shift": shift}

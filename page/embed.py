"""Pictures as a page holds them: PNG or JPEG files in the address of an <img>."""

import base64
import io

import torch.nn.functional as F
from PIL import Image
from torch import Tensor

SIDE = 64  # pixels: the largest side of a picture on a page


def plain(name: str) -> str:
    """Return a class name as people write it: CIFAR-100's have underscores in place of spaces."""
    return name.replace("_", " ")


def reduced(images: Tensor) -> Tensor:
    """Return images uint8 [N, 3, S, S] as a page shows them, reduced to 64 pixels if they are wider."""
    if images.shape[-1] <= SIDE:
        return images
    return F.interpolate(images, SIDE, mode="bilinear", antialias=True)


def encoded(pixels: Tensor, kind: str = "PNG", quality: int = 90) -> bytes:
    """Return uint8 [3, H, W] as the content of a PNG or JPEG file; only a JPEG uses the quality."""
    file = io.BytesIO()
    Image.fromarray(pixels.permute(1, 2, 0).contiguous().numpy()).save(file, kind, quality=quality)
    return file.getvalue()


def address(content: bytes) -> str:
    """Return an address for <img> that holds the content of a PNG or JPEG file."""
    kind = "png" if content.startswith(b"\x89PNG") else "jpeg"
    return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"


def picture(image: Tensor) -> str:
    """Return an image, uint8 [3, H, W] or float in [0, 1], as an address."""
    return address(encoded((255 * image).round().byte() if image.is_floating_point() else image))

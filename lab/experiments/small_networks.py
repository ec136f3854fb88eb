"""Networks and pictures that are not the ResNet on CIFAR-100, for lab/experiments/unlabelled.py.

    python lab/experiments/small_networks.py digits      pictures of digits, as a folder for --dataset

To train one of the networks let `build` in a copy of resnet_cifar.py return it, and set LAYER to "features".
"""

import sys
from pathlib import Path

import numpy as np
from PIL import Image
from torch import Tensor, nn

NUM_TEST = 50  # images of each digit; the others, about 130, train and validate


def convolution(channels: int, out: int, kernel: int, stride: int = 1, groups: int = 1) -> list[nn.Module]:
    """Return a convolution with batch norm and ReLU."""
    layer = nn.Conv2d(channels, out, kernel, stride, kernel // 2, groups=groups, bias=False)
    return [layer, nn.BatchNorm2d(out), nn.ReLU(inplace=True)]


class VGG(nn.Module):
    """Six 3x3 convolutions and two max-pools (arXiv 1409.1556), no shortcut: .3 M parameters at width 32."""

    def __init__(self, num_classes: int, width: int):
        super().__init__()
        layers, channels = [], 3
        for k, times in enumerate([1, 1, 2, 2, 4, 4]):
            if k in (2, 4):
                layers.append(nn.MaxPool2d(2))
            layers += convolution(channels, times * width, 3)
            channels = times * width
        self.features = nn.Sequential(*layers)
        self.fc = nn.Linear(channels, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.features(x).mean(dim=(2, 3)))


class MobileNet(nn.Module):
    """Seven depthwise separable convolutions (arXiv 1704.04861): .6 M parameters at width 32."""

    def __init__(self, num_classes: int, width: int):
        super().__init__()
        layers, channels = convolution(3, width, 3), width
        for times, stride in ((2, 1), (4, 2), (4, 1), (8, 2), (8, 1), (16, 2), (16, 1)):
            layers += convolution(channels, channels, 3, stride, groups=channels)
            layers += convolution(channels, times * width, 1)
            channels = times * width
        self.features = nn.Sequential(*layers)
        self.fc = nn.Linear(channels, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.features(x).mean(dim=(2, 3)))


def write_digits(folder: Path) -> None:
    """Write scikit-learn's 1,797 digits of 8x8 pixels, enlarged to 32, as folder/train/0/ and so on."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    for digit in range(10):
        for i, index in enumerate(np.flatnonzero(digits.target == digit)):
            path = folder / ("test" if i < NUM_TEST else "train") / str(digit) / f"{index}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            pixels = Image.fromarray((digits.images[index] * 255 / 16).astype(np.uint8))
            pixels.resize((32, 32), Image.Resampling.BILINEAR).convert("RGB").save(path)


if __name__ == "__main__":
    write_digits(Path(sys.argv[1]))

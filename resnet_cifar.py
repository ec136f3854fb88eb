"""ResNet-18 for 32x32 images, written out by hand.

He, Zhang, Ren and Sun, "Deep Residual Learning for Image Recognition", 2016 (arXiv 1512.03385): section 3.2
gives the residual block, table 1 the 18-layer network. Two changes make it fit small images, as in the
CIFAR networks of section 4.2: the first convolution is 3x3 with stride 1 instead of 7x7 with stride 2, and
there is no max-pooling. With them the four stages work at 32x32, 16x16, 8x8 and 4x4 pixels.

The names in the state dict are those of torchvision.models.resnet18, so weights can be loaded either way.
"""

from torch import Tensor, nn


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut: y = relu(F(x) + x), the paper's equation (1) and a ReLU.

    Where the block changes the shape, the shortcut is a 1x1 convolution W_s, equation (2) and option B of
    section 4.1: y = relu(F(x) + W_s x).
    """

    def __init__(self, in_channels: int, channels: int, stride: int):
        super().__init__()
        # No bias in any convolution: the batch norm behind it subtracts the mean and adds a bias of its own.
        self.conv1 = nn.Conv2d(in_channels, channels, 3, stride=stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = None
        if stride != 1 or in_channels != channels:
            self.downsample = nn.Sequential(
                nn.Conv2d(in_channels, channels, 1, stride=stride, bias=False), nn.BatchNorm2d(channels)
            )

    def forward(self, x: Tensor) -> Tensor:
        shortcut = x if self.downsample is None else self.downsample(x)
        x = self.relu(self.bn1(self.conv1(x)))
        x = self.bn2(self.conv2(x))
        return self.relu(x + shortcut)


class ResNet(nn.Module):
    """A 3x3 stem, four stages of two blocks, global average pooling and a linear classifier."""

    def __init__(self, num_classes: int, width: int):
        super().__init__()
        self.conv1 = nn.Conv2d(3, width, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.relu = nn.ReLU(inplace=True)
        self.layer1 = nn.Sequential(BasicBlock(width, width, 1), BasicBlock(width, width, 1))
        self.layer2 = nn.Sequential(BasicBlock(width, 2 * width, 2), BasicBlock(2 * width, 2 * width, 1))
        self.layer3 = nn.Sequential(BasicBlock(2 * width, 4 * width, 2), BasicBlock(4 * width, 4 * width, 1))
        self.layer4 = nn.Sequential(BasicBlock(4 * width, 8 * width, 2), BasicBlock(8 * width, 8 * width, 1))
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(8 * width, num_classes)

        # He initialisation (arXiv 1502.01852, equation 14), as in the paper. Batch norm divides the scale of
        # these weights out again, in the forward and in the backward pass; it only decides how far a step of
        # a given learning rate turns them. Batch norm starts with scale 1 and bias 0, PyTorch's default.
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu(self.bn1(self.conv1(x)))
        x = self.layer1(x)
        x = self.layer2(x)
        x = self.layer3(x)
        x = self.layer4(x)
        x = self.avgpool(x).flatten(1)
        return self.fc(x)


def resnet18(num_classes: int = 100, width: int = 64) -> ResNet:
    """Return a ResNet-18 that takes float images [N, 3, H, W] to logits [N, num_classes].

    `width` is the number of channels of the first stage; the others have two, four and eight times as many.
    64 is the width of the paper's network, here 11,220,132 parameters for 100 classes. A smaller width gives
    a network for quick runs: 16 needs about a sixteenth of the multiply-accumulates.

    Raises ValueError for sizes below 1.
    """
    if num_classes < 1 or width < 1:
        raise ValueError(f"num_classes and width must be at least 1, not {num_classes} and {width}")
    return ResNet(num_classes, width)

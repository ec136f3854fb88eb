"""What several tests share: images, and networks that are quick."""

import torch
import torch.nn.functional as F
import torchvision
from torch import nn

from resnet_cifar import BasicBlock, resnet18


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def natural_images(n: int, seed: int = 0) -> torch.Tensor:
    """Random images with the spectrum of photographs, amplitude falling as 1/f, float32 [n, 3, 32, 32]."""
    frequency = torch.hypot(torch.fft.fftfreq(32)[:, None], torch.fft.rfftfreq(32)[None, :]).clamp(min=1 / 32)
    grey_and_colour = torch.randn(n, 4, 32, 32, generator=seeded(seed))
    fields = torch.fft.irfft2(torch.fft.rfft2(grey_and_colour) / frequency)
    fields = fields / fields.std(dim=(2, 3), keepdim=True)
    return (0.45 + 0.2 * fields[:, :1] + 0.07 * fields[:, 1:]).clamp(0, 1)


class Linear(nn.Module):
    """Logits W x + b of the normalised image, in float32."""

    def __init__(self, num_classes: int, seed: int = 0):
        super().__init__()
        self.fc = nn.Linear(3 * 32 * 32, num_classes)
        with torch.no_grad():
            self.fc.weight.copy_(0.02 * torch.randn(self.fc.weight.shape, generator=seeded(seed)))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc(x.flatten(1))


class Wavy(Linear):
    """Logits 3 sin(W x + b): the gradient soon points the wrong way, so a path has ups and downs."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return 3 * torch.sin(super().forward(x))


class Small(nn.Module):
    """A convolutional network with batch norm and dropout, whose modes matter."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.conv1 = nn.Conv2d(3, 8, 3, padding=1)
        self.bn1 = nn.BatchNorm2d(8)
        self.layer1 = nn.Sequential(nn.Conv2d(8, 16, 3, stride=2, padding=1), nn.ReLU())
        self.fc = nn.Linear(16, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.layer1(F.relu(self.bn1(self.conv1(x))))
        return self.fc(F.dropout(x.mean(dim=(2, 3)), 0.5, self.training))


def small_resnet(num_classes: int = 6) -> nn.Module:
    """A narrow ResNet-18 in eval mode whose batch norms, as after training, are not the identity."""
    torch.manual_seed(0)
    model = resnet18(num_classes, width=4)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, std=0.3)
            nn.init.normal_(module.running_mean, std=0.3)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
    return model.eval()


def tiny_resnet(num_classes: int, width: int) -> nn.Module:
    """One residual block between a stem and a classifier, which trains in a moment."""
    stem = [nn.Conv2d(3, width, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU()]
    head = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(2 * width, num_classes)]
    return nn.Sequential(*stem, BasicBlock(width, 2 * width, 2), *head)


def small_swin() -> nn.Module:
    """A Swin transformer of torchvision, whose layers return [N, h, w, K]."""
    torch.manual_seed(0)
    model = torchvision.models.SwinTransformer([2, 2], 8, [1, 1], [1, 2], [4, 4], num_classes=6)
    nn.init.normal_(model.head.weight)
    return model.eval()


def small_vit() -> nn.Module:
    """A vision transformer of torchvision, whose layers return a class token and 4x4 tokens."""
    torch.manual_seed(0)
    model = torchvision.models.VisionTransformer(32, 8, 2, 2, hidden_dim=16, mlp_dim=32, num_classes=6)
    nn.init.normal_(model.heads.head.weight)
    return model.eval()

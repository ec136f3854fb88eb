"""The trained network for PyTorch Hub: torch.hub.load(DIR, "resnet18_cifar100", source="local")."""

import pathlib

import torch

import resnet_cifar

dependencies = ["torch"]


def resnet18_cifar100(pretrained: bool = True, width: int = 64) -> resnet_cifar.ResNet:
    """Return the ResNet-18 for CIFAR-100, trained and in eval mode, or a fresh one of any width.

    It takes float32 images [N, 3, 32, 32], RGB in [0, 1] and normalised with mean (0.50707516, 0.48654887,
    0.44091784) and standard deviation (0.26733429, 0.25643846, 0.27615047), to logits [N, 100]; `class_names`
    of the trained network has the 100 names. Test accuracy: 76.03 % in float32, without test-time
    augmentation. Raises ValueError for a width other than 64 with pretrained=True.
    """
    if not pretrained:
        return resnet_cifar.resnet18(100, width)
    if width != 64:
        raise ValueError(f"the trained network has width 64, not {width}: use pretrained=False")
    weights = pathlib.Path(__file__).parent / "weights" / "resnet18_cifar100.pt"
    checkpoint = torch.load(weights, map_location="cpu", weights_only=True)
    model = resnet_cifar.resnet18(100)
    model.load_state_dict(checkpoint["model"])  # float16 in the file, float32 in the network
    model.class_names = checkpoint["class_names"]
    return model.eval()

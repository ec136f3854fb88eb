"""Write a checkpoint in half precision, and measure on the test split what that changes.

    python benchmarks/half_precision.py --checkpoint runs/cifar100/checkpoints/best.pt --output half.pt

Accuracies: of the checkpoint; of the file written, which holds it as test_accuracy; of that file in
torchvision's own resnet18 with a 3x3 stem and no max-pooling; of the checkpoint with its logits averaged over
each image and its mirror image.
"""

import torch
import torchvision
from loader import load, parse
from network import FromPixels, predict
from torch import nn

from data import Normalize
from metrics import accuracy
from running.checkpoint import read_checkpoint, save_checkpoint
from running.console import run_main
from running.errors import UserError
from stress_tests.attacks import full_float32


def main():
    args = parse(__doc__, checkpoint="runs/cifar100/checkpoints/best.pt", data_dir=None, output="half.pt")
    with full_float32(args.device):
        measure(args)


def measure(args):
    examined, test = load(args)
    checkpoint = read_checkpoint(args.checkpoint)
    config = checkpoint["config"]
    if config["width"] != 64:
        raise UserError(f"the network has width {config['width']}, and torchvision's resnet18 has 64")
    del checkpoint["sha256"]  # of the file that was read
    weights = {}
    for name, tensor in checkpoint["model"].items():
        weights[name] = tensor.half() if tensor.is_floating_point() else tensor

    full = predict(examined.model, test.images, args.device)
    mirrored = predict(examined.model, test.images.flip(-1), args.device)
    examined.module.load_state_dict(weights)  # into float32 parameters, as load_checkpoint does
    half = predict(examined.model, test.images, args.device)
    test_accuracy = accuracy(test.labels, half.argmax(dim=1))
    save_checkpoint(args.output, checkpoint | {"model": weights, "test_accuracy": test_accuracy})

    theirs = torchvision.models.resnet18(num_classes=len(test.class_names))
    theirs.conv1 = nn.Conv2d(3, 64, 3, padding=1, bias=False)
    theirs.maxpool = nn.Identity()
    theirs.load_state_dict(torch.load(args.output, weights_only=True)["model"])
    model = FromPixels(theirs, config["image_size"], Normalize()).to(args.device)
    theirs_half = predict(model, test.images, args.device)

    results = {
        "float32": full,
        "float16": half,
        "float16 in torchvision's resnet18": theirs_half,
        "float32, averaged with the mirror image": full + mirrored,
    }
    for name, logits in results.items():
        print(f"{name:40} {accuracy(test.labels, logits.argmax(dim=1)):.2%}")
    changed = (full.argmax(dim=1) != half.argmax(dim=1)).sum()
    print(f"float16 changes {changed} predictions, and logits by at most {(full - half).abs().max():.4f}")


if __name__ == "__main__":
    run_main(main)

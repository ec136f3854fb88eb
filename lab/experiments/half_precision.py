"""Write a checkpoint in half precision, and measure on the test split what that changes.

    python experiments/half_precision.py runs/cifar100/checkpoints/best.pt half.pt

Accuracies: of the checkpoint; of the file written, which holds it as test_accuracy; of that file in
torchvision's own resnet18 with a 3x3 stem and no max-pooling; of the checkpoint with its logits averaged over
each image and its mirror image.
"""

import sys
from pathlib import Path

import torch
import torchvision
from torch import nn

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from data import Normalize
from lab.classifier import FromPixels, full_float32, load_checkpoint, load_data, predict
from metrics import accuracy
from support.checkpoint import read_checkpoint, save_checkpoint
from support.console import CommandLine, run_main
from support.device import pick_device
from support.errors import UserError


def main() -> None:
    parser = CommandLine(__doc__)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("output", type=Path)
    parser.add_argument("--data-dir", type=Path)
    parser.add_argument("--device", default="auto")
    args = parser.parse_args()
    device = pick_device(args.device)
    with full_float32(device):
        compare_precisions(args, device)


def compare_precisions(args, device: torch.device) -> None:
    """Write the file and print the accuracies."""
    classifier = load_checkpoint(args.checkpoint, device)
    _, test = load_data(classifier, None, args.data_dir)
    checkpoint = read_checkpoint(args.checkpoint)
    config = checkpoint["config"]
    if config["width"] != 64:
        raise UserError(f"the network has width {config['width']}, and torchvision's resnet18 has 64")
    del checkpoint["sha256"]  # of the file that was read
    weights = {}
    for name, tensor in checkpoint["model"].items():
        weights[name] = tensor.half() if tensor.is_floating_point() else tensor

    full = predict(classifier.model, test.images, device)
    mirrored = predict(classifier.model, test.images.flip(-1), device)
    classifier.module.load_state_dict(weights)  # into float32 parameters, as load_checkpoint does
    half = predict(classifier.model, test.images, device)
    test_accuracy = accuracy(test.labels, half.argmax(dim=1))
    save_checkpoint(args.output, checkpoint | {"model": weights, "test_accuracy": test_accuracy})

    theirs = torchvision.models.resnet18(num_classes=len(test.class_names))
    theirs.conv1 = nn.Conv2d(3, 64, 3, padding=1, bias=False)
    theirs.maxpool = nn.Identity()
    theirs.load_state_dict(torch.load(args.output, weights_only=True)["model"])
    model = FromPixels(theirs.eval(), config["image_size"], Normalize()).to(device)
    theirs_half = predict(model, test.images, device)

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

"""Write the best checkpoint of a run in half precision, and measure on the test split what that changes.

    python benchmarks/half_precision.py --run runs/cifar100 --output weights/resnet18_cifar100.pt

Four test accuracies: of the checkpoint as it is; of the file just written; of that file in torchvision's own
resnet18 with a 3x3 stem and no max-pooling; and of the checkpoint with its logits averaged over each image
and its mirror image, which the others do not do. The file holds what any best.pt holds, and the second of
them as test_accuracy.
"""

import sys
from pathlib import Path

import torch
import torchvision
from torch import nn

sys.path.insert(0, str(Path(__file__).parent.parent))

from metrics import accuracy
from running.console import CommandLine, run_main
from running.files import UserError
from running.folder import find_checkpoint, save_checkpoint
from train import load_data, load_model, predict


def main():
    parser = CommandLine(description=__doc__)
    parser.add_argument("--run", help="default: the newest under runs/")
    parser.add_argument("--data-dir", help="default: where training found the data")
    parser.add_argument("--output", type=Path, required=True)
    args = parser.parse_args()

    cpu = torch.device("cpu")
    path = find_checkpoint(args.run, None)
    model, checkpoint = load_model(path, cpu)
    if model.conv1.out_channels != 64:
        raise UserError(f"{path} has width {model.conv1.out_channels}: torchvision's resnet18 has 64")
    _, test = load_data(path, checkpoint, args.data_dir)
    del checkpoint["sha256"]  # of the file that was read
    weights = {name: t.half() if t.is_floating_point() else t for name, t in checkpoint["model"].items()}

    size = checkpoint["config"]["image_size"]

    model.load_state_dict(weights)  # into float32 parameters, as load_model does
    half_logits = predict(model, test.images, cpu, image_size=size)
    half_accuracy = accuracy(test.labels, half_logits.argmax(dim=1))
    save_checkpoint(args.output, checkpoint | {"model": weights, "test_accuracy": half_accuracy})

    theirs = torchvision.models.resnet18(num_classes=len(test.class_names))
    theirs.conv1 = nn.Conv2d(3, 64, 3, padding=1, bias=False)
    theirs.maxpool = nn.Identity()
    theirs.load_state_dict(torch.load(args.output, weights_only=True)["model"])
    their_logits = predict(theirs.to(memory_format=torch.channels_last), test.images, cpu, image_size=size)

    model.load_state_dict(checkpoint["model"])
    logits = predict(model, test.images, cpu, image_size=size)
    mirrored = predict(model, test.images.flip(-1), cpu, image_size=size)

    for name, scores in [
        ("float32", logits),
        ("float16", half_logits),
        ("float16 in torchvision's resnet18", their_logits),
        ("float32, averaged with the mirror image", (logits + mirrored) / 2),
    ]:
        print(f"{name:42}{accuracy(test.labels, scores.argmax(dim=1)):.2%}")
    changed = (logits.argmax(dim=1) != half_logits.argmax(dim=1)).sum()
    print(f"float16 changes {changed} of {len(logits)} predictions, logits by at most ", end="")
    print(f"{(logits - half_logits).abs().max():.4f}")
    print(f"wrote {args.output}, {args.output.stat().st_size / 1e6:.1f} MB")


if __name__ == "__main__":
    run_main(main)

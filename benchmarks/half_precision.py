"""Write the best checkpoint of a run in half precision, and measure on the test split what that changes.

    python benchmarks/half_precision.py --run runs/cifar100 --output weights/resnet18_cifar100.pt

Accuracies: of the checkpoint; of the file written, which holds it as test_accuracy; of that file in
torchvision's own resnet18 with a 3x3 stem and no max-pooling; of the checkpoint with its logits averaged over
each image and its mirror image.
"""

import torch
import torchvision
from loader import load, parse
from torch import nn

from data import memory_format
from metrics import accuracy
from running.console import run_main
from running.files import UserError
from running.folder import save_checkpoint
from stress_tests.attacks import full_float32
from train import predict


def main():
    args = parse(__doc__, run=None, data_dir=None, output="half.pt")
    with full_float32(args.device):
        measure(args)


def measure(args):
    model, checkpoint, test = load(args)
    config = checkpoint["config"]
    if config["width"] != 64:
        raise UserError(f"the run has width {config['width']}, and torchvision's resnet18 has 64")
    checkpoint.pop("sha256", None)  # of the file that was read
    weights = {name: t.half() if t.is_floating_point() else t for name, t in checkpoint["model"].items()}

    def logits_of(model, images=test.images):
        return predict(model, images, args.device, image_size=config["image_size"])

    def accuracy_of(logits):
        return accuracy(test.labels, logits.argmax(dim=1))

    full, mirrored = logits_of(model), logits_of(model, test.images.flip(-1))
    model.load_state_dict(weights)  # into float32 parameters, as load_model does
    half = logits_of(model)
    save_checkpoint(args.output, checkpoint | {"model": weights, "test_accuracy": accuracy_of(half)})
    theirs = torchvision.models.resnet18(num_classes=len(test.class_names))
    theirs.conv1, theirs.maxpool = nn.Conv2d(3, 64, 3, padding=1, bias=False), nn.Identity()
    theirs.load_state_dict(torch.load(args.output, weights_only=True)["model"])
    theirs_half = logits_of(theirs.to(args.device, memory_format=memory_format(args.device)))

    print(f"float32                                  {accuracy_of(full):.2%}")
    print(f"float16                                  {accuracy_of(half):.2%}")
    print(f"float16 in torchvision's resnet18        {accuracy_of(theirs_half):.2%}")
    print(f"float32, averaged with the mirror image  {accuracy_of(full + mirrored):.2%}")
    changed = (full.argmax(dim=1) != half.argmax(dim=1)).sum()
    print(f"float16 changes {changed} predictions, and logits by at most {(full - half).abs().max():.4f}")


if __name__ == "__main__":
    run_main(main)

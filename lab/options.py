"""What the commands of the laboratory share: which network is examined, on what, and how much at once."""

import argparse
from pathlib import Path

import torch

import report
from lab.classifier import Classifier, load_checkpoint, load_model
from lab.pictures import SIZE
from lab.support import UserError, core, one_line, option, reading

SHIPPED = Path(__file__).resolve().parent.parent / "weights" / "resnet18_cifar100.pt"
OF_MODEL = ("weights", "weights_key", "mean", "std", "classes", "resize", "transform")  # options of --model


def add_options(parser: argparse.ArgumentParser, default: str = "the newest under runs/") -> None:
    """Add the options that say what is examined."""
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--run", type=Path, help=f"run folder of train.py (default: {default})")
    which.add_argument("--checkpoint", type=Path, metavar="FILE", help="a checkpoint of train.py")
    text = "any network: NAME() in FILE.py returns a torch.nn.Module of images [N, 3, S, S]"
    which.add_argument("--model", metavar="FILE.py:NAME", help=text)
    parser.add_argument("--weights", type=Path, metavar="FILE", help="for --model: its state dict")
    text = "for --weights: which of several state dicts in the file, such as ema"
    parser.add_argument("--weights-key", metavar="KEY", help=text)
    text = "for --model: what normalises its images; without them it takes images in [0, 1]"
    parser.add_argument("--mean", type=float, nargs=3, metavar=("R", "G", "B"), help=text)
    parser.add_argument("--std", type=float, nargs=3, metavar=("R", "G", "B"), help="see --mean")
    text = "for --model: the classes of its logits, a name a line (default: the data set's, in its order)"
    parser.add_argument("--classes", type=Path, metavar="FILE", help=text)
    parser.add_argument("--size", type=int, metavar="N", help=f"side of its images (default: {SIZE})")
    parser.add_argument("--resize", type=int, metavar="M", help="with --size: the middle of pictures of M")
    text = "for --model: a function in FILE.py, of pictures of Pillow to float [3, N, N] in [0, 1], to resize"
    parser.add_argument("--transform", metavar="NAME", help=text)
    text = "what Grad-CAM explains, or none (default: the last layer with more than one cell)"
    parser.add_argument("--layer", metavar="NAME", help=text)


def add_computing_options(parser: argparse.ArgumentParser) -> None:
    """Add the options that say on what, and how much at once, a command computes."""
    text = "images to compute at once (default: about 50 of 32 pixels, on an accelerator 32 times as many)"
    parser.add_argument("-b", "--batch-size", type=from_one_on, metavar="N", help=text)
    text = "threads that read the pictures of a folder (default: one for each core)"
    parser.add_argument("-j", "--workers", type=from_one_on, metavar="N", help=text)
    parser.add_argument("--device", default="auto", help="auto, cuda, mps or cpu (default: auto)")


def from_one_on(text: str) -> int:
    """Return the whole number that an option is; argparse refuses others."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text}: expected a whole number from 1 on")
    return int(text)


def from_options(args: argparse.Namespace, device: torch.device, shipped: bool = False) -> Classifier:
    """Return the network that the options name, without any that of the newest run.

    If there is no run, or if `shipped` is to be the default, it is that in weights/.
    """
    if args.model is None:
        for name in OF_MODEL:
            if getattr(args, name) is not None:
                raise UserError(f"{option(name)} belongs to --model FILE.py:NAME, which is missing")
        path = args.checkpoint
        has_run = not shipped and any(Path("runs").glob("*/checkpoints/best.pt"))
        if path is None and (args.run is not None or has_run):
            with core():
                path, _ = report.find_checkpoint(args.run, None)
        return load_checkpoint(path or SHIPPED, device, args.layer, args.size)
    class_names = None
    if args.classes is not None:
        with reading(args.classes, "class names, one a line"):
            class_names = args.classes.read_text(encoding="utf-8-sig").split("\n")
            class_names = [one_line(name) for name in class_names if name.strip()]
    of_model = (args.model, args.weights, args.mean, args.std, args.layer, class_names)
    more = {key: getattr(args, key) for key in ("size", "resize", "weights_key", "transform")}
    return load_model(*of_model, device, **more)

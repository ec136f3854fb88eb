"""The options that the commands share: which network, its test images, and where its results go."""

import argparse
from collections.abc import Callable
from pathlib import Path

import data
import report
import train
from data import Dataset, UserError
from lab.network import Network, full_float32, load_checkpoint, load_model
from lab.pictures import in_classes_of, read_folder
from train import in_one_line, pick_device


def positive(text: str) -> int:
    """Return the whole number, 1 or more, of an option."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"expected a whole number, 1 or more, not {text!r}")
    return int(text)


def command_line(description: str, images: bool = False) -> argparse.ArgumentParser:
    """Return the parser of a command that examines a network, with `images` on a data set."""
    parser = train.command_line(description)
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--run", type=Path, help="a run of train.py (the newest, else the shipped weights)")
    which.add_argument("--checkpoint", type=Path, metavar="FILE", help="a checkpoint of train.py")
    which.add_argument("--model", metavar="FILE.py:NAME", help="NAME() returns a network, see lab/network.py")
    parser.add_argument("--size", type=positive, metavar="S", help="for --model: side of pictures (32)")
    parser.add_argument("--device", default="auto", help="auto, cuda, mps or cpu")
    if images:
        parser.add_argument("--dataset", metavar="NAME", help="cifar100, cifar10, shapes or a folder")
        parser.add_argument("--data-dir", metavar="DIR", help="where CIFAR or the training's pictures lie")
        parser.add_argument(
            "--out",
            type=Path,
            metavar="DIR",
            help="for results (by default the run's folder, else runs/<name>)",
        )
        parser.add_argument("--overwrite", action="store_true", help="replace results of any network")
        parser.add_argument("--batch-size", type=positive, metavar="N", help="images to compute at once")
    return parser


def run(parser: argparse.ArgumentParser, argv: list | None, command: Callable) -> int:
    """Run command(args); return the exit code. A bug has its traceback, see in_one_line."""
    with in_one_line(parser), full_float32():
        command(parser.parse_args(argv))
    return 0


def from_options(args: argparse.Namespace) -> tuple[Network, Path]:
    """Return the network that the options name, and the folder of its results: its run's, or runs/<name>."""
    device = pick_device(args.device)
    if args.size is not None and args.model is None:
        raise UserError("--size S is for --model, in pixels; a network of train.py has that of its training")
    if args.model is not None:
        network = load_model(args.model, device, args.size or 32)
        file, _, name = args.model.rpartition(":")
        folder = Path("runs") / f"{Path(file).stem}-{name}"
    else:
        path = args.checkpoint or report.find_checkpoint(args.run)
        folder = report.results_folder(path)
        network = load_checkpoint(path, device)
        if not is_own(network, args):
            folder = Path("runs") / f"{folder.resolve().name}-on-{Path(args.dataset).resolve().name}"
    network.batch_size = getattr(args, "batch_size", None)
    return network, folder


def is_own(network: Network, args: argparse.Namespace) -> bool:
    """Return whether a network of train.py is to answer the test images of its own training."""
    if network.checkpoint is None:
        return False
    own, named = network.checkpoint["config"]["dataset"], getattr(args, "dataset", None)
    # Pictures in pets are also those in pets/, but the folder shapes/ is not what the name shapes draws.
    is_folder = own not in (*data.CIFAR, "shapes")
    return named in (None, own) or (is_folder and Path(named).resolve() == Path(own).resolve())


def load_images(network: Network, args: argparse.Namespace) -> tuple[Dataset | None, Dataset, list[str]]:
    """Return the training set if it is known, the test set, and notes on them; for the options see above."""
    train, notes, name = None, [], args.dataset or "cifar100"
    if is_own(network, args):
        where = network.path, network.checkpoint, args.data_dir
        train, test = report.load_images(*where, ("train", "test"))
    elif args.dataset is None and network.num_classes != 100:
        text = f"{network.name} has {network.num_classes} logits"
        raise UserError(f"{text}: give its --dataset FOLDER (or cifar10), as by default it is CIFAR-100")
    elif name in (*data.CIFAR, "shapes"):
        train, test = data.load(name, args.data_dir or "data")
    else:
        test, notes = read_folder(Path(name), network.size, network.transform)
        notes = notes if args.size is None else []  # the user chose S
    of_network = network.class_names, network.num_classes, network.name
    return train and in_classes_of(train, *of_network), in_classes_of(test, *of_network), notes

"""What the benchmarks share: the path to the project's modules, options, a checkpoint and its test set."""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

from running.console import CommandLine
from running.device import pick_device
from running.folder import find_checkpoint
from train import load_data, load_model


def parse(description: str, **defaults: int | str | None) -> argparse.Namespace:
    """Return --device and an option for each of the defaults; those that are numbers count from 1."""
    parser = CommandLine(description)
    for name, default in (defaults | {"device": "auto"}).items():
        kind = int if isinstance(default, int) else str
        flag = "--" + name.replace("_", "-")
        parser.add_argument(flag, type=kind, default=default, help="default: %(default)s")
    args = parser.parse_args()
    if any(value < 1 for value in vars(args).values() if isinstance(value, int)):
        parser.error("expected counts of at least 1")
    args.device = pick_device(args.device)
    return args


def load(args: argparse.Namespace, default: Path | None = None) -> tuple:
    """Return network and content of the best checkpoint of --run, else of `default`, and the test set."""
    path = find_checkpoint(args.run, None if args.run else default)
    model, checkpoint = load_model(path, args.device)
    return model, checkpoint, load_data(path, checkpoint, args.data_dir)[1]

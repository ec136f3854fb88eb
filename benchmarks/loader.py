"""What the benchmarks share: the path to the project's modules, options, a network and its test set."""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

import network
from data import Dataset
from running.console import CommandLine, option
from running.device import pick_device


def parse(description: str, **defaults: int | str | Path | None) -> argparse.Namespace:
    """Return --device and an option for each of the defaults; those that are numbers count from 1."""
    parser = CommandLine(description)
    for name, default in (defaults | {"device": "auto"}).items():
        kind = int if isinstance(default, int) else str
        parser.add_argument(option(name), type=kind, default=default, help="default: %(default)s")
    args = parser.parse_args()
    for name, value in vars(args).items():
        if isinstance(value, int) and value < 1:
            parser.error(f"{option(name)} must be at least 1")
    args.device = pick_device(args.device)
    return args


def load(args: argparse.Namespace) -> tuple[network.Network, Dataset]:
    """Return the network of --checkpoint and its test set, in --data-dir or where the training found it."""
    examined = network.load_checkpoint(args.checkpoint, args.device)
    return examined, network.load_data(examined, None, args.data_dir)[1]

"""Networks of others: what NAME() in a FILE.py returns, and the state dicts that belong to it."""

import importlib.util
import sys
from pathlib import Path

from torch import Tensor, nn

from running.errors import UserError, one_line, reading

STATE_KEYS = ("state_dict", "model", "model_state_dict", "net", "ema", "model_ema")  # where weights may lie


def build(spec: str) -> nn.Module:
    """Return what NAME() in FILE.py returns, where spec is "FILE.py:NAME"; UserError if it is no network."""
    file, _, name = spec.rpartition(":")
    if not file.endswith(".py") or not name:
        raise UserError(f"--model {spec}: expected FILE.py:NAME, where NAME() returns the network")
    with reading(spec, "a network"):
        module = call_by_name(Path(file), name)
        if not isinstance(module, nn.Module):
            raise ValueError(f"it returns {type(module).__name__}, expected torch.nn.Module")
    return module


def call_by_name(file: Path, name: str) -> object:
    """Run a Python file and return what its function or class `name` returns."""
    # Behind the folders of this project, whose modules have the first right to names such as data.
    folder, ours = file.resolve().parent, Path(__file__).resolve().parent.parent
    sys.path.append(str(folder))
    for path in sorted(folder.glob("*.py")):
        if folder != ours and (ours / path.name).exists():
            print(f"note     {file} gets this project's {path.name}, not the one beside it: rename that one")
    spec = importlib.util.spec_from_file_location(f"examined_{file.stem}", file)
    python_module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = python_module  # dataclasses and pickles look it up there
    spec.loader.exec_module(python_module)
    return getattr(python_module, name)()


def load_weights(module: nn.Module, content: object) -> None:
    """Load a state dict, found in the content of a file, into a module; RuntimeError says what does not fit.

    It may lie below one of STATE_KEYS, and its names may begin with "module." of DataParallel and with
    "_orig_mod." of torch.compile where the module's own names do not.
    """
    own = module.state_dict()
    module.load_state_dict({own_name(name, own): value for name, value in find_state(content).items()})


def find_state(content: object) -> dict:
    """Return the state dict in the content of a file, and print below which key it was."""
    if isinstance(content, dict):
        if content and all(isinstance(value, Tensor) for value in content.values()):
            return content
        for key in STATE_KEYS:
            if isinstance(content.get(key), dict):
                beside = ", ".join(str(name) for name in content if name != key)
                print(f"weights  taken from the key {key!r}, beside {one_line(beside or 'nothing')}")
                return find_state(content[key])
    found = f"only {', '.join(map(str, content))}" if isinstance(content, dict) else type(content).__name__
    raise ValueError(f"it holds no state dict, {found}: save one by torch.save(model.state_dict(), FILE)")


def own_name(name: str, own: dict) -> str:
    """Return the name without the prefixes of wrappers, as far as `own` names need that."""
    short = name
    while short not in own:
        if not short.startswith(("module.", "_orig_mod.")):
            return name
        short = short.partition(".")[2]
    return short

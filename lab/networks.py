"""Somebody's own network: what NAME() in a FILE.py returns, its state dict, and its number formats."""

import argparse
import contextlib
import hashlib
import importlib.util
import pickle
import re
import sys
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from lab.support import UserError, one_line, reading

ROOT = Path(__file__).resolve().parents[1]
# The keys below which weights may lie in a file.
STATE_KEYS = "state_dict", "model", "model_state_dict", "net", "params", "ema", "model_ema"
# What often lies beside them: options, and numbers of NumPy, which 2.0 has moved.
SCALAR = np.float64(0).__reduce__()[0]
BESIDE_WEIGHTS = [argparse.Namespace, np.dtype, *(type(np.dtype(kind)) for kind in "?ilqefd")]
BESIDE_WEIGHTS += [(SCALAR, f"numpy.{core}.multiarray.scalar") for core in ("core", "_core")]


def build(spec: str) -> nn.Module:
    """Return the network that NAME() in FILE.py returns; spec is "FILE.py:NAME". UserError if it is none."""
    file, _, name = spec.rpartition(":")
    if not file.endswith(".py") or not name:
        raise UserError(f"--model {spec}: expected FILE.py:NAME, where NAME() returns the network")
    with reading(spec, "a network"), leading(Path(file).resolve().parent):
        module = getattr(run_file(Path(file)), name)()
        if not isinstance(module, nn.Module):
            raise ValueError(f"it returns {type(module).__name__}, expected torch.nn.Module")
    return uncompiled(module)


def uncompiled(module: nn.Module) -> nn.Module:
    """Return the module that torch.compile has wrapped, else the module itself."""
    return getattr(module, "_orig_mod", module)


def read_transform(spec: str) -> Callable[[Image.Image], Tensor]:
    """Return the function NAME of FILE.py, where spec is "FILE.py:NAME"."""
    file, _, name = spec.rpartition(":")
    with reading(spec, "a --transform"), leading(Path(file).resolve().parent):
        function = getattr(run_file(Path(file)), name)
        if not callable(function):
            raise ValueError(f"it is {type(function).__name__}, expected a function of a Pillow picture")
    return function


def run_file(file: Path) -> ModuleType:
    """Run a Python file, whose folder is to be leading, and return it as a module."""
    spec = importlib.util.spec_from_file_location(f"examined_{file.stem}", file)
    python_module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = python_module  # dataclasses and pickles look it up there
    spec.loader.exec_module(python_module)
    return python_module


@contextlib.contextmanager
def leading(folder: Path) -> Iterator[None]:
    """Let the modules of a folder come before all others while a block runs.

    Modules with the same names, of this project or of another FILE.py, are taken out of sys.modules and put
    back after the block. What the block has imported keeps working. The folder stays at the end of sys.path,
    as functions may import something when they are called.
    """
    names, path = set(), str(folder)
    if folder != ROOT:
        files = [*folder.glob("*.py"), *(file.parent for file in folder.glob("*/__init__.py"))]
        names = {file.stem for file in files} - sys.stdlib_module_names
    before = {name: sys.modules.pop(name) for name in [*sys.modules] if name.partition(".")[0] in names}
    sys.path.insert(0, path)
    try:
        yield
    finally:
        sys.path.remove(path)
        sys.path.append(path)
        for name in names & {file.stem for file in ROOT.iterdir()}:
            sys.modules.pop(name, None)
        sys.modules.update(before)


def read_tensors(path: Path) -> object:
    """Return what a file of torch.save or of safetensors holds, on the CPU; no code in it is run."""
    if path.suffix == ".safetensors":
        try:
            from safetensors.torch import load_file
        except ImportError as error:
            raise ValueError("it is of safetensors: pip install safetensors") from error
        return load_file(path)
    if zipfile.is_zipfile(path):  # as torch.save writes it since torch 1.6
        with zipfile.ZipFile(path) as archive:
            if damaged := archive.testzip():  # torch.load itself does not compare the checksums
                raise ValueError(f"it is damaged, the checksum of {damaged} is wrong")
            if "constants.pkl" in {Path(name).name for name in archive.namelist()}:
                raise ValueError("it is a TorchScript: let FILE.py return torch.jit.load(FILE)")
    try:
        with torch.serialization.safe_globals(BESIDE_WEIGHTS):
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        if named := re.search(r"GLOBAL (\S+)", str(error)):
            raise ValueError(
                f"it holds more than tensors and plain values, {named[1]}: "
                f"write its weights by torch.save(model.state_dict(), 'weights.pt')"
            ) from error
        raise ValueError("it is no file of torch.save, or only a part of one") from error


def load_weights(module: nn.Module, content: object, key: str | None = None) -> None:
    """Load the state dict in the content of a file into a module; RuntimeError says what does not fit.

    The state dict lies below `key`, or below one of STATE_KEYS, or is all of the content. Its names may have
    one more prefix than the module's own, such as "module." of DataParallel, "_orig_mod." of torch.compile or
    "net." of Lightning. Names without that prefix are left out, such as n_averaged of AveragedModel.
    """
    state = find_state(content, key)
    prefix = find_prefix(state, list(module.state_dict()))
    inside = {name[len(prefix) :]: value for name, value in state.items() if name.startswith(prefix)}
    if prefix:
        others = ", ".join(name for name in state if not name.startswith(prefix))
        left_out = f", without {one_line(others)}" if others else ""
        print(f"weights  {prefix!r} taken off their names{left_out}")
    for name, own in module.state_dict().items():
        if own.is_floating_point() and not inside.get(name, own).is_floating_point():
            raise ValueError(f"its {name} is {inside[name].dtype}, expected float: it is quantised")
    module.load_state_dict(inside)


def find_state(content: object, key: str | None) -> dict:
    """Return the state dict in the content of a file, without what lies beside it, and print the latter."""
    if not isinstance(content, dict):
        content = {type(content).__name__: content}
    held = ", ".join(map(str, content)) or "nothing"
    if key is not None:
        if not isinstance(content.get(key), dict):
            raise ValueError(f"it has no state dict below --weights-key {key}: it holds {held}")
        return find_state(content[key], None)
    for name in STATE_KEYS:
        if isinstance(content.get(name), dict):
            beside = ", ".join(str(other) for other in content if other != name) or "nothing"
            print(f"weights  taken from the key {name!r}, beside {one_line(beside)}")
            return find_state(content[name], None)
    state = {name: value for name, value in content.items() if isinstance(value, Tensor)}
    if not state:
        raise ValueError(
            f"it holds no state dict, only {held}: name its key by --weights-key, or save one by "
            f"torch.save(model.state_dict(), FILE)"
        )
    if others := ", ".join(str(name) for name in content if name not in state):
        print(f"weights  taken without {one_line(others)}, which are no tensors")
    return state


def find_prefix(state: dict, own: list[str]) -> str:
    """Return the prefix of all of a module's own names in a state dict, or else that of most names.

    Raises ValueError if several prefixes fit all names, as those of a student and its teacher.
    """
    if not own:
        return ""
    prefixes = [name[: -len(own[0])] for name in state if name == own[0] or name.endswith(f".{own[0]}")]
    fit = [prefix for prefix in prefixes if all(prefix + name in state for name in own)]
    if len(fit) > 1 and "" not in fit:
        raise ValueError(f"it holds several networks that fit, below {' and '.join(fit)}: save one of them")
    matches = {prefix: sum(prefix + name in state for name in own) for prefix in ["", *prefixes]}
    return max(matches, key=matches.get)  # the first one if several tie


def number_formats(module: nn.Module, outputs: list[Tensor]) -> str:
    """Return the number formats in which a network computes, such as "float32" or "bfloat16, float32"."""
    dtypes = {tensor.dtype for tensor in (*module.parameters(), *outputs)}
    for part in module.modules():
        if is_packed(weight := getattr(part, "weight", None)):
            dtypes.add(weight().dtype)
    dtypes -= {torch.bool, torch.int32, torch.int64}  # these belong to indices and masks
    return ", ".join(sorted(str(dtype).removeprefix("torch.") for dtype in dtypes)) or "float32"


def is_packed(value: object) -> bool:
    """Return whether a `weight` or `bias` has to be asked for, as in torch's quantised layers."""
    return callable(value) and not isinstance(value, nn.Module)


def digest_of(module: nn.Module) -> str:
    """Return the sha256 of the names, types, shapes and bytes of all weights and buffers.

    For a FromPixels it includes the numbers that normalise, as other numbers make other results.
    """
    digest, packed = hashlib.sha256(), []  # the weights of torch's quantised layers are no parameters
    for name, part in module.named_modules():
        for kind in ("weight", "bias"):
            value = getattr(part, kind, None)
            if is_packed(value) and value() is not None:
                packed.append((f"{name}.{kind}", value().dequantize()))
    for name, value in sorted([*module.named_parameters(), *module.named_buffers(), *packed]):
        digest.update(f"{name} {value.dtype} {list(value.shape)}\n".encode())
        digest.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    within = []  # the names of scripted modules, whose quantised weights nothing but their file shows
    for name, part in module.named_modules():
        if isinstance(part, torch.jit.ScriptModule) and not name.startswith(tuple(within)):
            digest.update(part.save_to_buffer())
            within.append(f"{name}.")
    return digest.hexdigest()

"""Checkpoints: torch.save writes them whole or not at all, and reading one runs no code that is in it."""

import hashlib
import io
import pickle
import re
import zipfile
from pathlib import Path

import torch

from support.errors import reading
from support.files import whole_file


def save_checkpoint(path: Path | str, checkpoint: dict) -> None:
    """Write a checkpoint, whole or not at all, and remove temporary files that a killed training left."""
    content = io.BytesIO()
    torch.save(checkpoint, content)
    with whole_file(path) as temporary:
        temporary.write_bytes(content.getbuffer())
    for left in Path(path).parent.glob(f".{Path(path).name}.*.tmp"):
        left.unlink(missing_ok=True)


def read_checkpoint(path: Path | str) -> dict:
    """Return the content of a checkpoint of train.py, with the `sha256` of its file; see read_tensors."""
    content, sha256 = read_tensors(path)
    with reading(path, "a checkpoint of train.py"):
        return {**content, "sha256": sha256}


def read_tensors(path: Path | str) -> tuple[object, str]:
    """Return what torch.save wrote to a file, with all tensors on the CPU, and the sha256 of the file.

    It runs no code in the file. Raises UserError if the file is damaged or holds more than plain values.
    """
    with reading(path, "a checkpoint"):
        data = Path(path).read_bytes()  # once: a training may put another file in its place at any moment
        sha256 = hashlib.sha256(data).hexdigest()
        if Path(path).suffix == ".safetensors":
            return read_safetensors(data), sha256
        if not zipfile.is_zipfile(io.BytesIO(data)):  # as torch.save writes it since torch 1.6
            raise ValueError("it was not written by torch.save, or only in part")
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            if damaged := archive.testzip():  # torch.load itself does not compare the checksums
                raise ValueError(f"it is damaged, the checksum of {damaged} is wrong")
            inside = {Path(name).name for name in archive.namelist()}
            if "data.pkl" not in inside:
                raise ValueError("it was not written by torch.save: it is another archive, such as .npz")
            if "constants.pkl" in inside:
                raise ValueError("it is a TorchScript: let FILE.py return torch.jit.load(FILE)")
        try:
            content = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
        except pickle.UnpicklingError as error:
            named = re.search(r"GLOBAL (\S+)", str(error))
            what = f", {named[1]}" if named else ""
            raise ValueError(
                f"it holds more than tensors and plain values{what}: "
                f"write its weights by torch.save(model.state_dict(), 'weights.pt')"
            ) from error
        return content, sha256


def read_safetensors(data: bytes) -> dict:
    """Return the tensors in the content of a .safetensors file, by their names."""
    try:
        from safetensors.torch import load
    except ImportError as error:
        raise ValueError("it is of safetensors: pip install safetensors") from error
    return load(data)

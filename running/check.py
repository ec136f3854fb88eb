"""What a file from outside must hold, written down as tables, and the functions that compare the two.

A table is made of these:
    float                      any finite number; int, str, bool and dict likewise any value of that type
    (float, 0, 1), (str, 1, 9) a number in that range, a text of that length
    {"a", "b"}                 one of these texts
    [x]                        a list of one x or more
    {"key": x, "other?": y}    a dict with these keys among others; one that ends in ? may be missing
    {str: x}                   a dict with any keys
"""

import math
from pathlib import Path

import torch
from torch import Tensor

from running.files import UserError

# fmt: off
NAME, EPOCHS, COUNT, SHARE = (str, 1, 300), (int, 1, 100_000), (int, 1, 10_000_000), (float, 0, 1)
RATE, POSITIVE = (float, 0, 1000), (float, 0, 1e9)

# config.json, and `config` in a checkpoint. SETTINGS lists the settings that report.py reads; train.py checks
# all of them itself.
SETTINGS = {
    "data_dir": str, "out": str, "epochs": EPOCHS, "batch_size": COUNT, "lr": RATE,
    "warmup_epochs": POSITIVE, "cutmix": SHARE,
}
NETWORK = {"dataset": {"cifar100", "shapes"}, "width": (int, 1, 1024), "image_size": (int, 8, 32)}
CONFIG = NETWORK | {
    "settings": SETTINGS, "provenance": str, "verified": bool, "digest": NAME, "num_train": COUNT,
    "num_val": COUNT, "parameters": (int, 1, 10**11), "device": NAME, "precision": NAME,
    "environment": {"hardware": str},
}

# A row of history.csv.
HISTORY = {
    "epoch": (float, 1, 100_000), "image_size": (float, 1, 1000), "lr": RATE, "train_loss": float,
    "train_accuracy": SHARE, "val_loss": float, "val_accuracy": SHARE, "seconds": POSITIVE,
    "images_per_second": POSITIVE,
}

# A checkpoint. That is enough for gradcam.py and stress.py; report.py and --resume need more.
CHECKPOINT = {
    "model": dict, "config": NETWORK | {"settings?": {"data_dir?": str}}, "epoch": EPOCHS,
    "class_names": [NAME], "superclass_names?": [NAME], "superclass_of?": [(int, 0, 10_000)],
    "history?": [HISTORY],
}
REPORTED = {"config": CONFIG, "val_accuracy": SHARE, "history": [HISTORY]}
OPTIMIZER = {"params": [int], "lr": float}
RESUMED = CHECKPOINT | REPORTED | {
    "optimizer": {"state": dict, "param_groups": [OPTIMIZER]}, "scaler": {"scale?": (float, 1e-30, 1e30)},
}

# stress.json, which grows test by test, and what is added at its end.
ACCURACY = {"value": SHARE, "low": SHARE, "high": SHARE}
ATTACKED = {"accuracy": ACCURACY, "right": str, "code?": str}
CORRUPTED = {
    "accuracy": ACCURACY, "images": COUNT, "mean_confidence": SHARE, "code?": str,
    "correct_per_class": [(int, 0, 10_000_000)],
}
STRESS = {
    "fingerprint": {"checkpoint": str, "sample": str, "settings": str}, "tests": {str: dict},
    "corruption_images": COUNT, "attack_images": COUNT, "radii": [(float, 0.001, 255)],
}
BROKEN = {"class": NAME, "clean": SHARE, "corrupted": SHARE, "drop": (float, -1, 1)}
FINISHED = {
    "tests": {"clean/0": CORRUPTED, "none/0": ATTACKED}, "robust_accuracy": {str: ACCURACY},
    "summary": {
        "mean_accuracy": {"fifteen": ACCURACY, "all": ACCURACY, "published?": ACCURACY},
        "mean_confidence": {"all": SHARE}, "classes_that_break_first": [BROKEN],
    },
    "checks": [{"name": str, "passed": bool, "detail": str}],
}

# Tensors, by their types and the names of their sizes; integers are classes, and C is the number of those.
FLOATS = {torch.float16, torch.bfloat16, torch.float32, torch.float64}
INTEGERS = {torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64}
VALIDATION = {"val_logits": (FLOATS, "NC"), "val_labels": ({torch.int64}, "N")}
PREDICTIONS = {
    "probabilities": ({torch.float32}, "NC"), "y_true": ({torch.int64}, "N"), "y_pred": ({torch.int64}, "N")
}

WORDS = {
    str: "a text", int: "a whole number", float: "a finite number", bool: "true or false",
    list: "a list that is not empty", dict: "a table",
}
# fmt: on


def unlike(value: object, expected: object) -> str | None:
    """Return what was expected, in words, if `value` is something else, whatever it holds; else None."""
    kind, *limits = expected if isinstance(expected, tuple) else (expected,)
    if isinstance(kind, set):
        return None if isinstance(value, str) and value in kind else " or ".join(sorted(kind))
    kind = kind if isinstance(kind, type) else type(kind)
    right = isinstance(value, int | float if kind is float else kind) and value != []
    right = right and isinstance(value, bool) == (kind is bool)  # to Python, True is a whole number as well
    if right and isinstance(value, float):
        right = math.isfinite(value)
    if right and limits:
        right = limits[0] <= (len(value) if kind is str else value) <= limits[1]
    unit = " letters" if kind is str else ""
    return None if right else WORDS[kind] + (f" of {limits[0]:,} to {limits[1]:,}{unit}" if limits else "")


def check(value: object, expected: object, file: Path | str, place: str = "") -> None:
    """Raise UserError unless `value`, found at `place` in the file, is as the table `expected` says."""
    if words := unlike(value, expected):
        plain = isinstance(value, str | int | float | None)
        found = repr(value) if plain else f"of type {type(value).__name__}"
        raise UserError(f"{file} cannot be used: {place or 'its content'} is {found}, expected {words}")
    if isinstance(expected, list):
        for i, item in enumerate(value):
            check(item, expected[0], file, f"{place}[{i}]")
    if isinstance(expected, dict):
        before = f"{place}." if place else ""
        rows = dict.fromkeys(value, expected[str]) if str in expected else expected
        lacking = [before + key for key in rows if key not in value and not key.endswith("?")]
        if lacking:
            reason = "it is of an older version or of another program"
            raise UserError(f"{file} cannot be used: it lacks {', '.join(lacking)}; {reason}")
        for key, row in rows.items():
            if key.removesuffix("?") in value:
                check(value[key.removesuffix("?")], row, file, before + key.removesuffix("?"))


def demand(file: Path | str, *rules: tuple[bool, str]) -> None:
    """Raise UserError with the fault of the first rule (whether it holds, the fault) that does not hold."""
    for holds, fault in rules:
        if not holds:
            raise UserError(f"{file} cannot be used: {fault}")


def check_tensors(content: object, file: Path | str) -> None:
    """Raise UserError unless all tensors in `content`, at any depth, are dense and hold finite numbers.

    A few bytes in a file can stand for a tensor of gigabytes: nothing is computed with it before this.
    """
    waiting, seen = [("", content)], set()
    while waiting:
        name, value = waiting.pop()
        if isinstance(value, dict | list | tuple) and id(value) not in seen:
            seen.add(id(value))
            items = value.items() if isinstance(value, dict) else enumerate(value)
            waiting += [(f"{name}.{key}" if name else str(key), item) for key, item in items]
        if isinstance(value, Tensor):
            dense = value.layout == torch.strided and value.device.type == "cpu"
            dense = dense and value.dtype in FLOATS | INTEGERS
            dense = dense and value.untyped_storage().nbytes() >= value.numel() * value.element_size()
            fault = "something else than a dense tensor of numbers"
            demand(file, (dense, f"it holds {fault} in {name}"))
            demand(file, (bool(value.isfinite().all()), f"it holds values that are not finite in {name}"))


def check_weights(weights: dict, expected: dict, network: str, file: Path | str) -> None:
    """Raise UserError unless the weights have the names and shapes of those `expected` of the network."""
    for name in expected | weights:
        found, wanted = (
            list(tensors[name].shape) if isinstance(tensors.get(name), Tensor) else "no tensor"
            for tensors in (weights, expected)
        )
        if found != wanted:
            raise UserError(f"{file} holds another network: {found} as {name}, where {network} has {wanted}")


def check_sizes(content: dict, expected: dict, file: Path | str, **sizes: int) -> None:
    """Raise UserError unless the tensors are as in a table such as VALIDATION; same names are same sizes."""
    for key, (types, names) in expected.items():
        tensor = content.get(key)
        right = isinstance(tensor, Tensor) and tensor.dtype in types and tensor.ndim == len(names)
        right = right and all(
            n == sizes.setdefault(k, n) > 0 for k, n in zip(names, tensor.shape, strict=True)
        )
        if right and tensor.dtype in INTEGERS:
            right = 0 <= tensor.min() <= tensor.max() < sizes["C"]
        shape = ", ".join(f"{k} = {sizes[k]}" if k in sizes else k for k in names)
        demand(file, (right, f"{key} is not a tensor [{shape}] of the right type and range"))


def check_checkpoint(content: object, file: Path | str, resuming: bool = False) -> None:
    """Raise UserError unless `content` is a checkpoint, for `resuming` one with the state of a training."""
    check(content, RESUMED if resuming else CHECKPOINT, file)
    check_tensors(content, file)
    names, groups = content["class_names"], content.get("superclass_names", [])
    of, epoch, history = content.get("superclass_of", []), content["epoch"], content.get("history", [])
    belong = len(of) == len(names) and max(of) < len(groups) if of or groups else True
    demand(
        file,
        (len(set(names)) == len(names), "its class names are not distinct"),
        (belong, "superclass_of is not one index of superclass_names for each class"),
        (
            not history or [row["epoch"] for row in history] == list(range(1, epoch + 1)),
            f"history does not have one row for each of {epoch} epochs",
        ),
    )
    if VALIDATION.keys() & content.keys():
        check_sizes(content, VALIDATION, file, C=len(names))


def check_reported(checkpoint: dict, file: Path | str) -> None:
    """Raise UserError unless a checkpoint says what report.py shows of its training."""
    check(checkpoint, REPORTED, file)
    config, settings = checkpoint["config"], checkpoint["config"]["settings"]
    demand(
        file,
        (settings["warmup_epochs"] <= settings["epochs"], "its warmup is longer than its training"),
        (settings["batch_size"] <= config["num_train"], "its batches are larger than its training set"),
    )


def check_stress(content: object, file: Path | str) -> None:
    """Raise UserError unless `content` is a stress.json, with all tests if it has their `checks`."""
    check(content, STRESS, file)
    tests, radii, lengths = content["tests"], [f"{radius:g}" for radius in content["radii"]], set()
    for name, record in tests.items():
        check(record, ATTACKED if "right" in record else CORRUPTED, file, f"tests.{name}")
        if "right" in record:
            digits = record["right"]
            right = len(digits) == content["attack_images"] and set(digits) <= {"0", "1"}
            demand(file, (right, f"tests.{name}.right is not a digit 0 or 1 for each image"))
        else:
            lengths.add(len(record["correct_per_class"]))
    demand(file, (len(lengths) < 2, "its tests do not have the same classes"))
    if "checks" in content:
        check(content, FINISHED, file)
        needed = {f"{name}/{radius}" for name in ("fgsm", "pgd", "random") for radius in radii}
        needed |= set(radii) - content["robust_accuracy"].keys()
        demand(file, (needed <= tests.keys(), f"it lacks the test {min(needed - tests.keys(), default='')}"))

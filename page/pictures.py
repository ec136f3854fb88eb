"""Pictures of the page, and what its script needs to know.

All pictures of a kind are one file, a sheet of 32x32 pixels each, of which the page shows parts. test is the
test split, a data.Dataset, and found a report.Found.
"""

import base64
import math
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.io import encode_jpeg, encode_png
from torchvision.utils import make_grid

from page import plots

MAX_SHEET = 600_000  # bytes of the pictures of all mistakes, whose quality falls until they fit


def png(pixels: Tensor) -> bytes:
    """Return uint8 [3, H, W] as the content of a PNG file."""
    return encode_png(pixels).numpy().tobytes()


def address(content: bytes) -> str:
    """Return the content of a PNG or JPEG file as an address that holds it."""
    kind = "png" if content.startswith(b"\x89PNG") else "jpeg"
    return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"


def picture(image: Tensor) -> str:
    """Return an image, float [3, H, W] in [0, 1] or uint8, as an address."""
    return address(png(image if image.dtype == torch.uint8 else (255 * image).round().to(torch.uint8)))


def sheet(images: Tensor, limit: int = MAX_SHEET, columns: int | None = None) -> dict:
    """Return images, uint8 [N, 3, 32, 32], as one JPEG file: `address`, `columns` and `rows`.

    Its quality falls until the file has `limit` bytes. columns: by default a square.
    """
    columns = columns or math.ceil(math.sqrt(max(1, len(images))))
    pixels = make_grid(images, columns, padding=0) if len(images) else torch.zeros(3, 32, 32).byte()
    for quality in range(95, 15, -10):
        content = encode_jpeg(pixels, quality=quality).numpy().tobytes()
        if len(content) <= limit:
            break
    height, width = pixels.shape[1:]
    return {"address": address(content), "columns": width // 32, "rows": height // 32}


def base64_bytes(values: Tensor) -> str:
    """Return whole numbers from 0 to 255 as the base64 of their bytes."""
    return base64.b64encode(values.to(torch.uint8).numpy().tobytes()).decode()


def base64_bits(values: Tensor) -> str:
    """Return bool values as the base64 of their bits, eight to a byte, the first the most significant."""
    return base64.b64encode(np.packbits(values.numpy())).decode()


def plain(name: str) -> str:
    """Return a class name as people write it: those of CIFAR-100 have underscores in place of spaces."""
    return name.replace("_", " ")


def run_name(run: str) -> str:
    """Return the name of a run without the folders around it."""
    return Path(run).name


def likeliest(probabilities: Tensor) -> list:
    """Return the three most likely classes, each with its probability to four decimals."""
    top = probabilities.argsort(descending=True, stable=True)[:3]
    return [[c, round(probabilities[c].item(), 4)] for c in top.tolist()]


def data_for_script(test, found) -> dict:
    """Return what the script shows of the misclassified images, of the puzzles and of the stress tests."""
    names = [plain(name) for name in test.class_names]
    fill = (255 * found.fill).round().int().tolist()
    data = {"classes": names, "fill": fill, "kinds": [row["name"] for row in found.numbers["kinds"]]}
    data |= {"inferno": base64_bytes(torch.from_numpy(plots.inferno())), "puzzles": puzzle_data(test, found)}
    data["covers"] = found.puzzles[0]["covers"] if found.puzzles else []  # the same for all puzzles
    data["runs"] = ["this network", *map(run_name, found.others)]
    runs = [found.probabilities, *(values["probabilities"] for values in found.others.values())]
    data["images"] = []
    for place, i in enumerate(found.browsed.tolist()):
        truth = test.labels[i].item()
        image = {
            "true": truth,
            "confidence": round(found.confidence[i].item(), 6),
            "truth": round(found.probabilities[i, truth].item(), 4),  # the probability of the true class
            "answers": [likeliest(probabilities[i]) for probabilities in runs],
            "file": test.filenames[i],
            "copied": -1 if found.training_labels is None else found.training_labels[i].item(),
            "kind": found.kinds[i].item(),
        }
        if found.covered is not None:
            answer, probability = (values[place, 0].item() for values in found.covered)
            image["covered"] = [answer, round(probability, 4)]
        data["images"].append(image)
    if test.superclass_of is not None:
        data["superclasses"] = [plain(name) for name in test.superclass_names]
        data["superclass_of"] = test.superclass_of.tolist()
    if found.maps is not None:
        # A byte for each cell, 128 for 0; more cells than 16x16 would weigh too much.
        maps = F.adaptive_avg_pool2d(found.maps[:, None], min(16, found.maps.shape[-1]))
        scaled = maps / maps.abs().amax(dim=(1, 2, 3), keepdim=True).clamp(min=1e-30)
        data["maps"] = base64_bytes((128 + 127 * scaled).round())
        data["covered_pixels"] = base64_bits(found.covered_pixels)
    return data | stress_data(test, found.stress)


def puzzle_data(test, found) -> list[dict]:
    """Return the mistakes that the reader takes apart, see reasons.find_puzzles; probabilities in percent."""
    rows = []
    for puzzle in found.puzzles:
        percents = (100 * puzzle["probabilities"]).round().int()
        answers = torch.stack([puzzle["classes"].int(), percents], dim=2).flatten(1)
        row = {key: puzzle[key] for key in ("best", "by_map")} | {"random": round(puzzle["random"], 4)}
        rows.append(row | {"true": test.labels[puzzle["index"]].item(), "answers": answers.tolist()})
    return rows


def stress_data(test, stress: dict | None) -> dict:
    """Return the answers that the two viewers show, those of the rows of their sheets."""
    data = {}
    if stress is not None and "examples" in stress:
        shown = stress["examples"]
        data["corruptions"] = {"true": test.labels[shown["images"]].tolist(), "answers": shown["answers"]}
    if stress is not None and "attack_examples" in stress:
        shown = stress["attack_examples"]
        true = test.labels[shown["images"]].tolist()
        data["attacks"] = {"true": true, "epsilons": stress["epsilons"], "answers": shown["answers"]}
    return data


def attack_sheet(test, stress: dict) -> dict:
    """Return the sheet of attacked images: as they are, then of each attack and epsilon change and result.

    The change is enlarged 50 times around grey.
    """
    images = test.images[stress["attack_examples"]["images"]]
    parts = [images]
    for of_attack in stress["attack_changes"]:
        for epsilon, changes in zip(stress["epsilons"], of_attack, strict=True):
            change = changes * (epsilon / 127)  # in levels of 255
            parts.append((128 + 50 * change).clamp(0, 255).to(torch.uint8))
            parts.append((images + change).clamp(0, 255).round().to(torch.uint8))
    return sheet(torch.cat(parts), MAX_SHEET // 3, len(images))

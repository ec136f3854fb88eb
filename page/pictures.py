"""Pictures of the page, and what its script needs to know.

All pictures of a kind are one file, a sheet of squares of at most 64 pixels each, of which the page shows
parts. Arguments are called as in sections.py.
"""

import base64
import io
import math
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from page import plots

SIDE = 64  # pixels, of a picture on the page, at most
MAX_SHEET = 600_000  # bytes of a sheet, whose quality falls until it fits; more for more pixels:
BYTES_PER_PIXEL = 0.25


def reduced(images: Tensor) -> Tensor:
    """Return images uint8 [N, 3, S, S] as the page shows them: wide ones reduced to 64, antialiased."""
    if images.shape[-1] <= SIDE:
        return images
    parts = (F.interpolate(part, SIDE, mode="bilinear", antialias=True) for part in images.split(100))
    return torch.cat(list(parts))


def middle(images: Tensor) -> Tensor:
    """Return the middle 64x64 pixels of images [N, 3, S, S]; all of them if there are fewer."""
    first = max(0, (images.shape[-1] - SIDE) // 2)
    return images[..., first : first + SIDE, first : first + SIDE]


def png(pixels: Tensor) -> bytes:
    """Return uint8 [3, H, W] as the content of a PNG file."""
    return file_of(pixels, "PNG")


def file_of(pixels: Tensor, kind: str, **options: int) -> bytes:
    """Return uint8 [3, H, W] as the content of a picture file of a kind that Pillow writes."""
    file = io.BytesIO()
    Image.fromarray(pixels.permute(1, 2, 0).contiguous().numpy()).save(file, kind, **options)
    return file.getvalue()


def address(content: bytes) -> str:
    """Return the content of a PNG or JPEG file as an address that holds it."""
    kind = "png" if content.startswith(b"\x89PNG") else "jpeg"
    return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"


def picture(image: Tensor) -> str:
    """Return an image, float [3, H, W] in [0, 1] or uint8, as an address."""
    return address(png(image if image.dtype == torch.uint8 else (255 * image).round().to(torch.uint8)))


def sheet(images: Tensor, limit: int = MAX_SHEET, columns: int | None = None) -> dict:
    """Return images, uint8 [N, 3, S, S], as one JPEG file: `address`, `columns` and `rows`.

    Its quality falls until the file has `limit` bytes, or 0.25 a pixel. columns: by default a square.
    """
    count, side = max(1, len(images)), images.shape[-1]
    columns = min(columns or math.ceil(math.sqrt(count)), count)
    rows = math.ceil(count / columns)
    height, width = rows * side, columns * side
    squares = torch.zeros(rows * columns, 3, side, side, dtype=torch.uint8)
    squares[: len(images)] = images
    # To [3, row, line of the square, column, pixel of the line].
    pixels = squares.unflatten(0, (rows, columns)).permute(2, 0, 3, 1, 4).reshape(3, height, width)
    for quality in range(95, 15, -10):
        content = file_of(pixels, "JPEG", quality=quality)
        if len(content) <= max(limit, BYTES_PER_PIXEL * height * width):
            break
    return {"address": address(content), "columns": columns, "rows": rows}


def base64_of(values: np.ndarray) -> str:
    """Return uint8 values as the base64 of their bytes."""
    return base64.b64encode(values.tobytes()).decode()


def plain(name: str) -> str:
    """Return a class name as people write it: those of CIFAR-100 have underscores in place of spaces."""
    return name.replace("_", " ")


def run_name(run: str) -> str:
    """Return how people call a run: "this network", and of others the name without the folders around it."""
    return run if run == "this network" else f"another training ({Path(run).name})"


def data_for_script(
    numbers: dict, answers: dict, evidence: dict, stress: dict | None, side: int | None = None
) -> dict:
    """Return what the script shows of the misclassified images, of the puzzles and of the stress tests.

    side: of the pictures in their sheet, in pixels; None without pictures.
    """
    data = {
        "side": side,
        "classes": [plain(name) for name in answers["class_names"]],
        "kinds": [row["name"] for row in numbers["kinds"]],
        "inferno": base64_of(plots.inferno()),
        "runs": [run_name(run) for run in answers["runs"]],
        "images": [mistake_data(answers, evidence, place) for place in range(len(evidence["mistakes"]))],
        "puzzles": puzzle_data(answers, evidence),
    }
    if "fill" in evidence:
        data["fill"] = (255 * evidence["fill"]).round().int().tolist()
    if "covers" in evidence:
        data["covers"] = [[cell for cell in cells if cell >= 0] for cells in evidence["covers"].tolist()]
    if "superclass_of" in answers:
        data["superclasses"] = [plain(name) for name in answers["superclass_names"]]
        data["superclass_of"] = answers["superclass_of"].tolist()
    if "maps" in evidence:
        # A byte for each cell, 128 for 0; more cells than 16x16 would weigh too much.
        maps = F.adaptive_avg_pool2d(evidence["maps"][:, None], min(16, evidence["maps"].shape[-1]))
        scaled = maps / maps.abs().amax(dim=(1, 2, 3), keepdim=True).clamp(min=1e-30)
        data["maps"] = base64_of((128 + 127 * scaled).round().byte().numpy())
        data["covered_pixels"] = base64_of(np.packbits(evidence["covered_pixels"].numpy()))
    return data | stress_data(answers, stress)


def mistake_data(answers: dict, evidence: dict, place: int) -> dict:
    """Return what the script knows of one mistake: `answers` of each run are the three likeliest classes."""
    i = evidence["mistakes"][place].item()
    likely = []
    for classes, probabilities in zip(evidence["answers"], evidence["answer_probabilities"], strict=True):
        pairs = zip(classes[place].tolist(), probabilities[place].tolist(), strict=True)
        likely.append([[c, round(probability, 4)] for c, probability in pairs])
    mistake = {
        "true": answers["y_true"][i].item(),
        "confidence": round(answers["confidence"][i].item(), 6),
        "truth": round(evidence["probability_true"][place].item(), 4),
        "rank": evidence["rank_true"][place].item(),
        "answers": likely,
        "file": answers["filenames"][i],
        "copied": answers["training_labels"][i].item() if "training_labels" in answers else -1,
        "kind": answers["kinds"][i].item(),
    }
    if "covered_answers" in evidence:
        probability = evidence["covered_probabilities"][place].item()
        mistake["covered"] = [evidence["covered_answers"][place].item(), round(probability, 4)]
    return mistake


def puzzle_data(answers: dict, evidence: dict) -> list[dict]:
    """Return the mistakes that the reader takes apart, see reasons.find_puzzles; probabilities in percent."""
    rows = []
    for place, index in enumerate(evidence.get("puzzles", torch.empty(0)).tolist()):
        percents = (100 * evidence["puzzle_probabilities"][place]).round().int()
        likely = torch.stack([evidence["puzzle_classes"][place].int(), percents], dim=2).flatten(1)
        row = {"true": answers["y_true"][index].item(), "file": answers["filenames"][index]}
        row |= {"answers": likely.tolist(), "random": round(evidence["puzzle_random"][place].item(), 4)}
        for key in ("best", "by_map"):
            cover = evidence[f"puzzle_{key}"][place].item()
            row[key] = None if cover < 0 else cover
        rows.append(row)
    return rows


def stress_data(answers: dict, stress: dict | None) -> dict:
    """Return the answers that the two viewers show, those of the rows of their sheets."""
    data = {}
    for viewer, key in (("corruptions", "examples"), ("attacks", "attack_examples")):
        if stress is not None and key in stress:
            shown = stress[key]
            data[viewer] = {"true": answers["y_true"][shown["images"]].tolist(), "answers": shown["answers"]}
    if "attacks" in data:
        data["attacks"]["epsilons"] = stress["epsilons"][:-1]
    return data


def attack_sheet(images: Tensor, stress: dict) -> dict:
    """Return the sheet of attacked images: as they are, then of each attack and epsilon change and result.

    images uint8 [N, 3, S, S]: the test images at their own size, of which the middle is shown. The change is
    enlarged around grey, so that epsilon is 100 levels.
    """
    shown = middle(images[stress["attack_examples"]["images"]])
    parts = [shown]
    for of_attack in stress["attack_changes"]:
        for epsilon, changes in zip(stress["epsilons"][:-1], of_attack, strict=False):
            change = changes / 127  # of epsilon
            parts.append((128 + 100 * change).to(torch.uint8))
            parts.append((shown + epsilon * change).clamp(0, 255).round().to(torch.uint8))
    return sheet(torch.cat(parts), MAX_SHEET // 3, len(shown))

"""What the script of explore.html needs to know, and the sheets of pictures that it shows.

All pictures of a kind are one file, a sheet of squares of at most 64 pixels each, of which the page shows
parts. Arguments are called as in story.py.
"""

import base64
import math
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Generator, Tensor

import metrics
from lab.explore import charts
from page.embed import SIDE, address, encoded, plain
from page.write import interval, percent

MAX_SHEET = 600_000  # bytes of a sheet, whose quality falls until it fits; more for more pixels:
BYTES_PER_PIXEL = 0.25


def middle(images: Tensor) -> Tensor:
    """Return the middle 64x64 pixels of images [N, 3, S, S]; all of them if there are fewer."""
    first = max(0, (images.shape[-1] - SIDE) // 2)
    return images[..., first : first + SIDE, first : first + SIDE]


def sheet(images: Tensor, limit: int = MAX_SHEET, columns: int | None = None) -> dict:
    """Return images, uint8 [N, 3, S, S], as one JPEG file: `address`, `columns` and `rows`.

    Its quality falls until the file has `limit` bytes, or 0.25 a pixel. columns: by default a square.
    """
    columns, side = columns or math.ceil(math.sqrt(max(1, len(images)))), images.shape[-1]
    rows = max(1, math.ceil(len(images) / columns))
    squares = torch.zeros(rows * columns, 3, side, side, dtype=torch.uint8)
    squares[: len(images)] = images
    pixels = (
        squares.view(rows, columns, 3, side, side)
        .permute(2, 0, 3, 1, 4)
        .reshape(3, rows * side, columns * side)
    )
    height, width = pixels.shape[1:]
    for quality in range(95, 15, -10):
        content = encoded(pixels, "JPEG", quality)
        if len(content) <= max(limit, BYTES_PER_PIXEL * height * width):
            break
    return {"address": address(content), "columns": columns, "rows": rows}


def base64_of(values: np.ndarray) -> str:
    """Return uint8 values as the base64 of their bytes."""
    return base64.b64encode(values.tobytes()).decode()


def puzzle_order(answers: dict, evidence: dict) -> list[int]:
    """Return the places of the puzzles in the order in which they are played.

    First, of those that the map's own pair solves, the one that random pairs solve least often. Those that no
    squares solve stand at seeded places behind it.
    """
    truth, places = answers["y_true"][evidence["puzzles"]], range(len(evidence["puzzles"]))
    first_answers = evidence["puzzle_classes"][:, :, 0]
    by_map = [
        cover >= 0 and first_answers[k, cover] == truth[k]
        for k, cover in enumerate(evidence["puzzle_by_map"])
    ]
    possible = [k for k in places if evidence["puzzle_best"][k] >= 0]
    firm = [k for k in places if k not in possible]
    possible.sort(key=lambda k: (not by_map[k], evidence["puzzle_random"][k].item()))
    first, rest = possible[:1], sorted(possible[1:])
    at = torch.randperm(len(places) - len(first), generator=Generator().manual_seed(0))[: len(firm)]
    for place, k in zip(sorted(at.tolist()), firm, strict=True):
        rest.insert(place, k)
    return first + rest


def run_name(run: str) -> str:
    """Return how people call a run: "this network", and of others the name without the folders around it."""
    return run if run == "this network" else f"another training ({Path(run).name})"


def scores_of(row: dict) -> list[str]:
    """Return recall and precision of a row of the classes of metrics.json in words."""
    if not row["num_test"]:
        return ["no test image"]
    recall, precision = metrics.proportion(row["num_right"], row["num_test"]), percent(row["precision"])
    return [f"recall {interval(recall, 0)}", f"precision {precision if row['num_predicted'] else '–'}"]


def data_for_script(
    numbers: dict, answers: dict, evidence: dict, stress: dict | None, side: int | None = None
) -> dict:
    """Return what the script shows of the misclassified images, of the puzzles and of the stress tests.

    side: of the pictures in their sheet, in pixels; None without pictures.
    """
    data = {
        "side": side,
        "classes": [plain(name) for name in answers["class_names"]],
        "scores": [scores_of(row) for row in numbers["classes"]],
        "kinds": [row["name"] for row in numbers["kinds"]],
        "inferno": base64_of(charts.inferno()),
        "runs": [run_name(run) for run in numbers["runs"]],
        "images": [],
        "puzzles": [],
    }
    if not evidence:
        return data | stress_data(answers, stress)
    data["images"] = [mistake_data(answers, evidence, place) for place in range(len(evidence["mistakes"]))]
    data["puzzles"] = puzzle_data(answers, evidence)
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


def answers_to_mistakes(mistakes: Tensor, y_true: Tensor, runs: list[Tensor]) -> dict:
    """Return what each run answers to the mistakes, int64 [m]: of evidence.npz.

    runs: probabilities float32 [N, C] of this network and of others. `answers` and `answer_probabilities`,
    [R, m, 3], are the three likeliest classes; `probability_true` and `rank_true`, [m], are this network's
    probability of the true class, and its place in the order of the answers, from 1.
    """
    of_mistakes = torch.stack([probabilities[mistakes] for probabilities in runs])
    order = of_mistakes.argsort(dim=2, descending=True, stable=True)
    is_true = order[0] == y_true[mistakes, None]
    return {
        "mistakes": mistakes,
        "answers": order[..., :3],
        "answer_probabilities": of_mistakes.gather(2, order[..., :3]),
        "probability_true": runs[0][mistakes, y_true[mistakes]],
        "rank_true": is_true.int().argmax(dim=1) + 1,
    }


def mistake_data(answers: dict, evidence: dict, place: int) -> dict:
    """Return what the script knows of one mistake: `answers` of each run are the three likeliest classes."""
    i = evidence["mistakes"][place].item()
    likely = []
    for classes, probabilities in zip(evidence["answers"], evidence["answer_probabilities"], strict=True):
        pairs = zip(classes[place].tolist(), probabilities[place].tolist(), strict=True)
        likely.append([[c, round(probability, 4)] for c, probability in pairs])
    confidence = round(answers["confidence"][i].item(), 6)
    likely[0][0][1] = confidence  # the probabilities in evidence.npz may have been rounded to 16 bits
    mistake = {
        "true": answers["y_true"][i].item(),
        "confidence": confidence,
        "truth": round(evidence["probability_true"][place].item(), 4),
        "rank": evidence["rank_true"][place].item(),
        "answers": likely,
        "file": answers["filenames"][i],
        "copied": answers["training_labels"][i].item() if "training_labels" in answers else -1,
        "kind": evidence["kinds"][place].item(),
    }
    if "covered_answers" in evidence:
        probability = evidence["covered_probabilities"][place].item()
        mistake["covered"] = [evidence["covered_answers"][place].item(), round(probability, 4)]
    return mistake


def title_of(true: str, predicted: str) -> str:
    """Return the title of a puzzle, such as "It calls this lobster a lamp. Can you change its mind?"."""
    article = "an" if predicted[0].lower() in "aeiou" else "a"
    return f"It calls this {true} {article} {predicted}. Can you change its mind?"


def puzzle_data(answers: dict, evidence: dict) -> list[dict]:
    """Return the mistakes that the reader takes apart, see reasons.find_puzzles; probabilities in percent."""
    rows, names = [], [plain(name) for name in answers["class_names"]]
    if "puzzles" not in evidence:
        return rows
    for place in puzzle_order(answers, evidence):
        index = evidence["puzzles"][place]
        percents = (100 * evidence["puzzle_probabilities"][place]).round().int()
        likely = torch.stack([evidence["puzzle_classes"][place].int(), percents], dim=2).flatten(1)
        row = {"true": answers["y_true"][index].item(), "answers": likely.tolist()}
        row["title"] = title_of(names[row["true"]], names[answers["y_pred"][index]])
        row["mistake"] = (evidence["mistakes"] == index).nonzero().item()
        row["random"] = round(evidence["puzzle_random"][place].item(), 4)
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

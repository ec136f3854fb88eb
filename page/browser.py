"""What the script of the page needs to know: the mistakes, the confusion matrix, and what its controls show.

All pictures of a kind are one file, a sheet of 32x32 pixels each, of which the page shows parts.
"""

import base64
import math

import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.utils import make_grid

from page import plots
from page.against import short
from page.page import Markup, fill, jpeg, plain
from stress_tests.corruptions import CORRUPTIONS, corrupt
from stress_tests.explanations import top_pixels

MAX_SHEET = 650_000  # bytes of the pictures of all mistakes, whose quality falls until they fit


def base64_bytes(values: Tensor) -> str:
    """Return whole numbers from 0 to 255 as the base64 of their bytes."""
    return base64.b64encode(values.to(torch.uint8).numpy().tobytes()).decode()


def sheet(images: Tensor, limit: int, columns: int | None = None) -> str:
    """Return images, uint8 [N, 3, 32, 32], as one JPEG file of `limit` bytes in base64, else a square."""
    columns = columns or math.ceil(math.sqrt(max(1, len(images))))
    pixels = make_grid(images, columns, padding=0) if len(images) else torch.zeros(3, 32, 32).byte()
    for quality in range(95, 15, -10):
        content = jpeg(pixels, quality)
        if len(content) <= limit:
            break
    return base64.b64encode(content).decode()


def nearest_sheet(neighbours: dict[str, Tensor] | None) -> Markup | str:
    """The nearest training images of the two classes of each mistake, one after the other."""
    if neighbours is None:
        return ""
    return fill("nearest_images", content=sheet(neighbours["images"].flatten(0, 1), 2 * MAX_SHEET))


def scaled_maps(maps: Tensor) -> Tensor:
    """Return the two maps of each mistake, float [M, 2, h, w], divided by the largest value of both."""
    return maps / maps.amax(dim=(1, 2, 3), keepdim=True).clamp(min=1e-30)


def answers(probabilities: Tensor, truth: int) -> list:
    """Return the three most likely classes, each with its probability, and the probability of the truth."""
    likely = probabilities.argsort(descending=True, stable=True)[:3].tolist()
    first_three = [[c, round(probabilities[c].item(), 4)] for c in likely]
    return [*first_three, round(probabilities[truth].item(), 4)]


def mistakes_data(test, found) -> dict:
    """Return what the script shows of the misclassified images, and the confusion matrix of all test images.

    test is the test split, a data.Dataset; found is a report.Found, of which the most confident M of the
    misclassified images are shown, as many as were browsed.
    """
    images, runs = [], [found.probabilities, *(values["probabilities"] for values in found.others.values())]
    for place, i in enumerate(found.browsed.tolist()):
        truth = test.labels[i].item()
        image = {
            "true": truth,
            "confidence": round(found.confidence[i].item(), 6),
            "answers": [answers(probabilities[i], truth) for probabilities in runs],
            "file": test.filenames[i],
            "copied": -1 if found.training_labels is None else found.training_labels[i].item(),
            "kind": found.kinds[i].item(),
        }
        if found.covered is not None:
            answer, probability = (values[place].item() for values in found.covered)
            image["covered"] = [answer, round(probability, 4)]
        if found.neighbours is not None:
            image["similarity"] = [round(s, 2) for s in found.neighbours["similarity"][i].tolist()]
        images.append(image)
    data = {
        "classes": [plain(name) for name in test.class_names],
        "confusion": found.confusion.tolist(),
        "images": images,
        "inferno": base64_bytes(torch.from_numpy(plots.inferno())),
        "runs": ["this network", *map(short, found.others)],
        "kinds": [row["name"] for row in found.numbers["kinds"]],
    }
    if found.neighbours is not None:
        data["searched"] = found.numbers["neighbours"]["training_images"]
    if test.superclass_of is not None:
        data["superclasses"] = [plain(name) for name in test.superclass_names]
        data["superclass_of"] = test.superclass_of.tolist()
    if found.maps is not None:
        maps = F.adaptive_avg_pool2d(found.maps, min(16, found.maps.shape[-1]))  # more cells weigh too much
        data["maps"] = base64_bytes((255 * scaled_maps(maps)).round())
        data["covered_pixels"] = base64_bits(top_pixels(found.maps[:, 0], (32, 32)))
    return data


def base64_bits(values: Tensor) -> str:
    """Return bool values as the base64 of their bits, eight to a byte, the first the most significant."""
    powers = 2 ** torch.arange(7, -1, -1)
    return base64_bytes((values.reshape(-1, 8) * powers).sum(dim=1))


# ---- Sliders ---------------------------------------------------------------------------------------------


def confidence_counts(found) -> list[list[int]]:
    """Return how many right and how many wrong answers have each whole percent of confidence, [2][100]."""
    percents = (100 * found.confidence.double()).long().clamp(max=99)
    wrong = torch.zeros(len(percents), dtype=torch.bool)
    wrong[found.misclassified] = True
    return [percents[part].bincount(minlength=100).tolist() for part in (~wrong, wrong)]


def temperature_data(found) -> list[dict]:
    """Return what the temperature slider shows: of each temperature the calibration and its bins."""
    rows = []
    for row in found.temperatures:
        bins = [[round(float(value), 4) for value in column.nan_to_num()] for column in row["bins"]]
        ece = round(row["expected_calibration_error"], 5)
        rows.append(
            {
                "temperature": row["temperature"],
                "ece": ece,
                "confidence": row["mean_confidence"],
                "bins": bins,
            }
        )
    return rows


# ---- Pictures that are corrupted or attacked -------------------------------------------------------------


def cells_of(piece: str, indices: list[int], answers: list, test, **places: str) -> list[Markup]:
    """Return a cell of a viewer for each image: its class, and the answer, right or wrong by sign and colour.

    indices are those of the images in the test split, answers [class, probability] of each, and places the
    rows of the sheet that the template of the cell names.
    """
    cells = []
    for column, (i, (chosen, probability)) in enumerate(zip(indices, answers, strict=True)):
        true = test.labels[i].item()
        state, sign = ("right", "\N{CHECK MARK}") if chosen == true else ("wrong", "\N{BALLOT X}")
        name = plain(test.class_names[chosen])
        caption = fill("answer", state=state, sign=sign, name=name, probability=probability)
        true = plain(test.class_names[true])
        cells.append(fill(piece, true=true, column=str(column), caption=caption, **places))
    return cells


def corruption_viewer(examples: dict, test, hardest: str) -> Markup:
    """A few test images under every corruption and the answers; first the hardest, at severity 3."""
    images = test.images[examples["images"]]
    pictures, tests = [images], ["clean/0"]
    for name in CORRUPTIONS:
        for severity in range(1, 6):
            pictures.append(corrupt(images, name, severity))
            tests.append(f"{name}/{severity}")
    shown = f"{hardest.replace(' ', '_')}/3"
    first, row = examples["answers"][shown], str(tests.index(shown))
    options = []
    for name in CORRUPTIONS:
        selected = Markup(" selected") if plain(name) == hardest else ""
        options.append(fill("option", value=name, text=plain(name), selected=selected))
    return fill(
        "corruption_viewer",
        sheet=sheet(torch.cat(pictures), MAX_SHEET, len(images)),
        rows=str(len(tests)),
        columns=str(len(images)),
        options=options,
        severity="3",
        cells=cells_of("corruption_cell", examples["images"], first, test, row=row),
    )


def attack_viewer(results: dict, test) -> Markup:
    """A few images under PGD at every epsilon: clean, fifty times the change, attacked; 1/255 first."""
    found, epsilons = results["attack_examples"], results["epsilons"]
    images = test.images[found["images"]]
    pictures = [images]
    for epsilon, changes in zip(epsilons, results["attack_changes"], strict=True):
        change = changes * (epsilon / 127)  # in levels of 255
        pictures.append((128 + 50 * change).clamp(0, 255).to(torch.uint8))
        pictures.append((images + change).clamp(0, 255).round().to(torch.uint8))
    step = epsilons.index(1)
    rows = {"change_row": str(1 + 2 * step), "row": str(2 + 2 * step)}
    return fill(
        "attack_viewer",
        sheet=sheet(torch.cat(pictures), MAX_SHEET // 4, len(images)),
        rows=str(len(pictures)),
        columns=str(len(images)),
        last=str(len(epsilons) - 1),
        step=str(step),
        cells=cells_of("attack_cell", found["images"], found["answers"]["1"], test, **rows),
    )


def viewer_data(results: dict | None, test) -> dict:
    """Return the answers that the two viewers show, those of the rows of their sheets."""
    data = {}
    if results is not None and "examples" in results:
        found = results["examples"]
        data["corruptions"] = {"true": test.labels[found["images"]].tolist(), "answers": found["answers"]}
    if results is not None and "attack_examples" in results:
        found = results["attack_examples"]
        rows = [found["answers"][f"{epsilon:g}"] for epsilon in results["epsilons"]]
        true = test.labels[found["images"]].tolist()
        data["attacks"] = {"true": true, "epsilons": results["epsilons"], "answers": rows}
    return data

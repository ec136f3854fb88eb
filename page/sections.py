"""Pictures, plots and rows, which the templates show besides the numbers of metrics.json.

Each function returns a part of the templates' context. numbers is metrics.json and arrays predictions.npz,
see docs/formats.md. images are the test images, uint8 [N, 3, S, S], or None if they are not available.
"""

from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from gradcam import overlay, to_heatmap
from page import plots
from page.embed import address, encoded, picture, plain, reduced
from page.failures import NUM_FAILURES
from support.console import command_of, duration
from support.outputs import headline

NUM_PAIRS, NUM_THUMBNAILS = 12, 4  # most confused pairs of classes, and pictures of each pair
MAP_SIDE = 128  # pixels: the side of a picture with a map over it


def mistakes(arrays: dict, images: Tensor | None) -> dict:
    """Return the most confident mistakes with their maps, as many as there are maps."""
    rows, names = [], [plain(name) for name in arrays["class_names"]]
    has_maps = images is not None and "maps_predicted" in arrays
    chosen = arrays["mistakes"][: len(arrays["maps_predicted"]) if has_maps else NUM_FAILURES]
    if has_maps:
        large = F.interpolate(reduced(images[chosen]), MAP_SIDE, mode="nearest") / 255
        maps = {}
        for kind in ("predicted", "true"):
            maps[kind] = overlay(large, to_heatmap(arrays[f"maps_{kind}"], MAP_SIDE))
    for place, i in enumerate(chosen.tolist()):
        true, predicted = arrays["y_true"][i].item(), arrays["y_pred"][i].item()
        row = {"true": names[true], "predicted": names[predicted], "file": arrays["filenames"][i]}
        row["probability_true"] = arrays["probabilities"][i, true].item()
        row["probability_predicted"] = arrays["confidence"][i].item()
        if images is not None:
            row["picture"] = picture(reduced(images[i : i + 1])[0])
        if has_maps:
            for kind, pictures in maps.items():
                row[f"map_{kind}"] = address(encoded(pictures[place], "JPEG"))
        rows.append(row)
    shown = {"mistakes": rows, "num_mistakes": len(arrays["mistakes"]), "has_maps": has_maps}
    return shown | {"map_size": "x".join(map(str, arrays["maps_predicted"].shape[1:])) if has_maps else ""}


def classes(numbers: dict, arrays: dict, images: Tensor | None) -> dict:
    """Return all classes, the most confused pairs, and the matrices."""
    rows = sorted(numbers["classes"], key=lambda row: (row["num_test"] == 0, row["recall"]))
    pairs, names = [], arrays["class_names"]
    for pair in numbers["most_confused_pairs"][:NUM_PAIRS]:
        true, predicted = (names.index(pair[key]) for key in ("true", "predicted"))
        confused = torch.nonzero((arrays["y_true"] == true) & (arrays["y_pred"] == predicted)).flatten()
        confused = confused[arrays["confidence"][confused].argsort(descending=True, stable=True)]
        shown = [] if images is None else reduced(images[confused[:NUM_THUMBNAILS]])
        pairs.append(pair | {"pictures": [picture(image) for image in shown]})
    wrong = arrays["confusion"].clone().fill_diagonal_(0)
    tied = (wrong == wrong.amax(dim=1, keepdim=True)).sum(dim=1)  # classes that it is taken for most often
    rows = [row | {"tied": tied[names.index(row["name"])].item()} for row in rows]
    left = numbers["most_confused_pairs"][NUM_PAIRS:]
    shown = {
        "class_rows": rows,
        "pairs": pairs,
        "matrices": matrices(arrays),
        "matrix_key": plots.matrix_key(),
    }
    return shown | {"cut_at": left[0]["count"] if left and left[0]["count"] == pairs[-1]["count"] else None}


def matrices(arrays: dict) -> list[dict]:
    """Return the confusion matrix; with more than 30 classes that of the superclasses, if any, comes first.

    Each has `size`, `kind` (class or superclass), `names`, `groups` [name, first row, number of rows], a
    `picture` with a pixel for each entry, and `entries` off the diagonal: `row`, `column`, `count`, and the
    `link` to the mistakes.
    """
    names = [plain(name) for name in arrays["class_names"]]
    if "superclass_of" not in arrays:
        return [matrix(arrays["confusion"], names, [], ("true", "predicted"))]
    superclasses = [plain(name) for name in arrays["superclass_names"]]
    order, groups = order_of(arrays)
    counts = arrays["confusion"][order][:, order]
    whole = matrix(counts, [names[c] for c in order], groups, ("true", "predicted"))
    if len(names) <= 30:
        return [whole]
    keys = ("superclass", "predicted_superclass")
    return [matrix(arrays["superclass_confusion"], superclasses, [], keys), whole]


def order_of(arrays: dict) -> tuple[list[int], list[tuple[str, int, int]]]:
    """Return the classes in the order of their superclasses, and (name, first, number) of each superclass."""
    group = arrays["superclass_of"]
    sizes = group.bincount(minlength=len(arrays["superclass_names"])).tolist()
    firsts = np.cumsum([0, *sizes[:-1]]).tolist()
    groups = list(zip(map(plain, arrays["superclass_names"]), firsts, sizes, strict=True))
    return group.argsort(stable=True).tolist(), groups


def matrix(counts: Tensor, names: list[str], groups: list, keys: tuple[str, str]) -> dict:
    """Return one matrix, int64 [C, C], see matrices; keys: how explore.html calls its row and column."""
    shares = counts / counts.sum(dim=1, keepdim=True).clamp(min=1)
    pixels = torch.from_numpy(plots.matrix_colours(shares.numpy())).permute(2, 0, 1)
    entries = []
    if len(names) <= plots.MOST_LABELLED:
        for row, column in torch.nonzero(counts.clone().fill_diagonal_(0)).tolist():
            link = {keys[0]: names[row], keys[1]: names[column]}
            entries.append({"row": row, "column": column, "count": counts[row, column].item(), "link": link})
    diagonal = counts.diagonal().tolist()
    return {
        "size": len(names),
        "kind": "class" if keys[0] == "true" else keys[0],
        "names": names,
        "groups": groups,
        "diagonal": diagonal,
        "picture": address(encoded(pixels)),
        "entries": entries,
    }


def confidence(numbers: dict) -> dict:
    """Return the reliability diagrams and the histograms of confidence, as trained and at the temperature."""
    titles = {"": "As trained", "_after_temperature": "At the temperature"}
    counts = {}
    for suffix in titles:
        if f"calibration_bins{suffix}" in numbers:
            histogram = numbers[f"confidence_histogram{suffix}"]
            counts[suffix] = np.array(histogram["right"]), np.array(histogram["wrong"])
    top = max((right + wrong).max() for right, wrong in counts.values())  # one scale for all histograms
    drawn = []
    for suffix, (right, wrong) in counts.items():
        title, error = titles[suffix], 100 * numbers[f"expected_calibration_error{suffix}"]
        text = f"{title}: accuracy against confidence in bins; the calibration error is {error:.1f} %."
        figure = plots.reliability(title, numbers[f"calibration_bins{suffix}"])
        drawn.append(plots.to_svg(figure, f"reliability{suffix}", text))
        sure = numbers[f"confident{suffix}"]["wrong"]
        text = f"{title}: confidence of right and wrong answers; above 90 % {sure} are wrong."
        figure = plots.confidence_histogram(title, right, wrong, top)
        drawn.append(plots.to_svg(figure, f"histogram{suffix}", text))
    return {"confidence_plots": drawn}


def training_curves(numbers: dict) -> dict:
    """Draw loss and accuracy by epoch; return {"loss": Figure, "accuracy": Figure}."""
    history, last_cutmix = numbers["training"]["history"], numbers["training"]["last_cutmix"]
    column = {key: np.array([row[key] for row in history]) for key in history[0]}
    sizes = column["image_size"]
    starts = [i for i in range(len(sizes)) if i == 0 or sizes[i] != sizes[i - 1]]
    changes = {i + 0.5: f"{sizes[i]:.0f} px" for i in starts if len(starts) > 1}
    if 0 < last_cutmix < len(history):
        changes[last_cutmix + 0.5] = "no CutMix"
    best = numbers["training"]["epoch"]
    return {name: plots.training_curve(column, name, best, changes) for name in ("loss", "accuracy")}


def training(numbers: dict) -> dict:
    """Return the curves of the training and how long it took."""
    if "training" not in numbers:
        return {"training": None}
    drawn = []
    for name, figure in training_curves(numbers).items():
        drawn.append(plots.to_svg(figure, f"training-{name}", f"{name} by epoch in training and validation"))
    seconds = sum(row["seconds"] for row in numbers["training"]["history"])
    return {"training": numbers["training"], "training_plots": drawn, "took": duration(seconds)}


def about(numbers: dict) -> dict:
    """Return the commands that made the network and this page, versions and digests."""
    commands = []
    facts = {"SHA-256 of the weights": numbers["checkpoint_sha256"]}
    facts["SHA-256 of the test images (cifar.content_digest)"] = numbers["data"]["digest"]
    if "training" in numbers:
        config = numbers["training"]["config"]
        # The device and the precision that "auto" became.
        settings = config["settings"] | {key: config[key] for key in ("device", "precision")}
        processes = config["environment"].get("processes", 1)
        start = "python" if processes == 1 else f"torchrun --nproc-per-node {processes}"
        commands.append(("The network was trained by", command_of(f"{start} train.py", settings)))
        facts |= {f"training: {name}": value for name, value in config["environment"].items()}
    if "command" in numbers:
        commands.append(("This page was made by", numbers["command"]))
    facts |= {f"report: {name}": value for name, value in numbers["environment"].items()}
    facts |= {f"network: {name}": value for name, value in numbers["network"].items()}
    return {"facts": facts, "commands": commands}


def write_plots(folder: Path, numbers: dict, arrays: dict) -> None:
    """Draw headline numbers, worst classes, matrix and training as files, in place of earlier ones."""
    figures = {"headline_metrics": plots.headline_bars(headline(numbers))}
    tested = [row for row in numbers["classes"] if row["num_test"]]
    bars, worst = {}, sorted(tested, key=lambda row: row["recall"])[:10]
    for row in worst:
        other = f" (most often taken for {row['most_confused_with']})" if row["most_confused_with"] else ""
        bars[plain(row["name"] + other)] = row["recall"]
    title = f"The {len(worst)} classes with the lowest accuracy"
    if len(worst) == len(tested):
        title = "The accuracy of each class, the lowest first"
    figures["worst_classes"] = plots.worst_classes(title, bars)
    order, groups = list(range(len(arrays["class_names"]))), []
    if "superclass_of" in arrays:
        order, groups = order_of(arrays)
    names, counts = [plain(arrays["class_names"][c]) for c in order], arrays["confusion"][order][:, order]
    sizes = {name: size for name, _, size in groups}
    figures["confusion_matrix"] = plots.confusion_matrix(counts.numpy(), names, sizes)
    if "training" in numbers:
        figures |= training_curves(numbers)
    for name in ("headline_metrics", "worst_classes", "confusion_matrix", "loss", "accuracy"):
        if name in figures:
            plots.save_png(figures[name], folder / f"{name}.png", dpi=110 if "matrix" in name else 160)
        else:
            (folder / f"{name}.png").unlink(missing_ok=True)

"""The sections of explore.html: what each template shows, and what the script knows of it.

A section has a function here. n is metrics.json and reasons.json, answers predictions.npz, evidence
evidence.npz or an empty dict, stress the stress tests or None. images are the test images as the page shows
them, uint8 [N, 3, s, s] with s at most 64, or None. Nothing is measured here.
"""

import base64
import io
import math
import re
import textwrap
from html import escape
from pathlib import Path

import matplotlib
import numpy as np
import torch
import torch.nn.functional as F
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

import metrics
import report
from gradcam import overlay, to_heatmap
from lab import estimate
from lab.answers import draw_game, failing_groups, offered, people_among, shared_words, without_people
from report import BLUE, GREY, INK, LINE, ORANGE, address, encoded, in_percent, plain

SIDE, MAP_SIDE = 64, 128  # pixels: the largest side of a picture on the page, and the side of one under a map
MAX_SHEET, BYTES_PER_PIXEL = 600_000, 0.25  # of a sheet of pictures, whose quality falls until it fits
NUM_CASES, NUM_FAILING, NUM_TIED = 5, 3, 6  # mistakes with both maps, groups of classes, hardest classes
LARGEST_EPSILON = 8  # of the attacks that are shown; a larger one is a check
NUM_WORST_SLICES, NUM_BEST_SLICES = 8, 4
LARGEST_MATRIX = 30  # classes: report.html has those of more
KEPT_ABOVE = (0, 0.5, 0.7, 0.9, 0.95)  # confidences
MAPS = {  # of covering: how the maps are called, in the order of their rows, which ends with chance
    "contrastive": "contrastive map",
    "best_of_three": "best of three random",
    "runner_up": "against runner-up",
    "random_class": "against a random class",
    "usual": "the usual map",
    "other_image": "another picture's",
    "centre": "the centre",
    "random": "random cells",
}
# Colours are variables of the style sheet, so that one plot serves a light and a dark page.
VARIABLES = {INK: "ink", GREY: "grey", LINE: "line", BLUE: "blue", ORANGE: "orange"}
TEXTS = ("axes.labelcolor", "axes.titlecolor", "text.color", "xtick.labelcolor", "ytick.labelcolor")
STYLE = report.STYLE | dict.fromkeys(TEXTS, INK) | dict.fromkeys(["xtick.color", "ytick.color"], GREY)
STYLE |= {
    "figure.titlesize": 13,
    "figure.titleweight": "bold",
    "axes.prop_cycle": matplotlib.cycler(color=[INK, GREY], marker=["o", "s"]),
    "lines.markersize": 4,
    "svg.fonttype": "none",  # text stays text
    "svg.hashsalt": "explore",
}


# ---- Numbers in words --------------------------------------------------------------------------------------


def percent(value: float | dict | None, digits: int = 1) -> str:
    """Return report.percent of a fraction, or of a fraction with its interval."""
    return report.percent(value["value"] if isinstance(value, dict) else value, digits)


def interval(row: dict, digits: int = 1) -> str:
    """Return a fraction with its interval, value, low and high, as "12.3 % (9.9–15.1)"."""
    low, high = (f"{100 * row[key]:.{digits}f}" for key in ("low", "high"))
    return f"{percent(row['value'], digits)} ({low}\N{WORD JOINER}–\N{WORD JOINER}{high})"


def slice_name(row: dict) -> str:
    """Return the name of a slice, "0.2 < contrast <= 0.3" as "contrast 0.2 to 0.3"."""
    low, is_between, high = row["slice"].partition(f" < {row['column']} <= ")
    return f"{row['column']} {low} to {high}" if is_between else row["slice"].replace(" <= ", " ≤ ")


# ---- Pictures and plots ------------------------------------------------------------------------------------


def reduced(images: Tensor) -> Tensor:
    """Return images uint8 [N, 3, S, S] as the page shows them, reduced to 64 pixels if they are wider."""
    return (
        images if images.shape[-1] <= SIDE else F.interpolate(images, SIDE, mode="bilinear", antialias=True)
    )


def picture(image: Tensor) -> str:
    """Return an image, uint8 [3, H, W] or float in [0, 1], as an address."""
    return address(encoded((255 * image).round().byte() if image.is_floating_point() else image), "png")


def sheet(images: Tensor, limit: int = MAX_SHEET, columns: int | None = None) -> dict:
    """Return images, uint8 [N, 3, S, S], as one JPEG file: `address`, `columns` and `rows`.

    Its quality falls until the file has `limit` bytes, or 0.25 a pixel. columns: by default a square.
    """
    columns, side = columns or math.ceil(math.sqrt(max(1, len(images)))), images.shape[-1]
    rows = max(1, math.ceil(len(images) / columns))
    squares = torch.zeros(rows * columns, 3, side, side, dtype=torch.uint8)
    squares[: len(images)] = images
    squares = squares.view(rows, columns, 3, side, side).permute(2, 0, 3, 1, 4)
    pixels = squares.reshape(3, rows * side, columns * side)
    for quality in range(95, 15, -10):
        content = encoded(pixels, "JPEG", quality)
        if len(content) <= max(limit, BYTES_PER_PIXEL * pixels[0].numel()):
            break
    return {"address": address(content, "jpeg"), "columns": columns, "rows": rows}


def base64_of(values: np.ndarray) -> str:
    """Return uint8 values as the base64 of their bytes."""
    return base64.b64encode(values.tobytes()).decode()


def small_figure(title: str, x_label: str, height: int = 250) -> tuple[Figure, Axes]:
    """Return a figure 360 pixels wide and its axes; the title says what y is."""
    figure = Figure(figsize=(5, height / 72))
    axes = figure.add_subplot()
    figure.suptitle(title, x=0.01, ha="left")
    axes.set_xlabel(x_label)
    return figure, axes


def to_svg(figure: Figure, name: str, description: str) -> Markup:
    """Return a figure as an <svg> element, whose ids begin with `name`; the description is for the blind."""
    file = io.StringIO()
    figure.savefig(file, format="svg", transparent=True, metadata={"Date": None})
    text = file.getvalue()
    text = re.sub(r"<metadata>.*?</metadata>", "", text[text.index("<svg") :], flags=re.DOTALL)
    text = re.sub(r'(\bid="|href="#|url\(#)', rf"\g<1>{name}-", text)
    for colour, variable in VARIABLES.items():
        text = text.replace(colour, f"var(--{variable})")
    return Markup(text.replace("<svg ", f'<svg role="img" aria-label="{escape(description)}" ', 1))


# ---- The sections: what a template shows, and what the script knows ----------------------------------------


def game(answers: dict, evidence: dict, images: Tensor | None) -> tuple[dict, dict]:
    """The pictures of the game, see answers.draw_game, and the answers to the wrong ones under covers.

    Of each picture: the answers on `offer`; under no cover, and where they were measured under all covers,
    `answers`, the three likeliest classes with their percents, -1 for a class of people; its place among the
    mistakes; the covers that are the `best` and the map's; and the share of pairs of squares that turn it,
    `random`.
    """
    index, people = draw_game(answers), people_among(answers["class_names"])
    if images is None or not len(index):
        return {"opener": None, "game": {"pictures": 0, "too_few": images is not None}}, {}
    places = {i: place for place, i in enumerate(evidence["mistakes"].tolist())}
    covered = {i: place for place, i in enumerate(evidence.get("puzzles", torch.zeros(0)).tolist())}
    rows = []
    for i, offer in zip(index.tolist(), offered(answers, index).tolist(), strict=True):
        top = answers["probabilities"][i].topk(min(3, len(answers["class_names"])))
        classes, shares = top.indices[None], top.values[None]
        row = {"true": answers["y_true"][i].item(), "mistake": places.get(i)}
        if i in covered:
            place = covered[i]
            classes, shares = (evidence[f"puzzle_{key}"][place] for key in ("classes", "probabilities"))
            chosen = {key: evidence[f"puzzle_{key}"][place].item() for key in ("best", "by_map")}
            row |= {key: None if cover < 0 else cover for key, cover in chosen.items()}
            row["random"] = round(evidence["puzzle_random"][place].item(), 4)
        row["offer"] = sorted(offer, key=lambda c: answers["class_names"][c])
        classes = torch.where(people[classes.long()], -1, classes.long())
        row["answers"] = torch.stack([classes, (100 * shares).round().long()], dim=2).flatten(1).tolist()
        rows.append(row)
    first = rows[0]
    opener = {"true": first["true"], "pred": first["answers"][0][0]}
    opener = {key: plain(answers["class_names"][c]) for key, c in opener.items()}
    opener |= {"confidence": first["answers"][0][1] / 100, "picture": picture(images[index[0]])}
    padded = evidence.get("covers", torch.zeros(0)).tolist()
    covers = [[cell for cell in cells if cell >= 0] for cells in padded]
    shown = {"opener": opener, "game_sheet": sheet(images[index], columns=len(index))}
    shown["game"] = {"pictures": len(rows), "covered": sum("random" in row for row in rows)}
    return shown, {"game": rows, "covers": covers or [[]]}


def mistakes(n: dict, answers: dict, evidence: dict, images: Tensor | None) -> tuple[dict, dict]:
    """How many mistakes there are, the sheet of them, and all that the script says of each one."""
    right, index = n["accuracy"], evidence.get("mistakes", torch.zeros(0, dtype=torch.int64))
    shown = {
        "num_wrong": len(answers["mistakes"]),
        "wrong": {"value": 1 - right["value"], "low": 1 - right["high"], "high": 1 - right["low"]},
        "num_shown": len(index),
        "has_maps": "covered_answers" in evidence,
        "mistakes_sheet": None if images is None or not len(index) else sheet(images[index]),
    }
    rows = []
    for place, i in enumerate(index.tolist()):
        likely = []  # of each run the three likeliest classes with their probabilities
        for classes, shares in zip(evidence["answers"], evidence["answer_probabilities"], strict=True):
            pairs = zip(classes[place].tolist(), shares[place].tolist(), strict=True)
            likely.append([[c, round(share, 4)] for c, share in pairs])
        sure = likely[0][0][1] = round(answers["confidence"][i].item(), 6)  # evidence.npz may have 16 bits
        row = {"true": answers["y_true"][i].item(), "confidence": sure, "answers": likely[0]}
        row |= {"truth": round(evidence["probability_true"][place].item(), 4)}
        row |= {"rank": evidence["rank_true"][place].item(), "others": [of_run[0] for of_run in likely[1:]]}
        row["copied"] = evidence["copies"][place].item() if "copies" in evidence else -1
        row["index"] = i
        if images is None:  # the list is a table
            row["file"] = answers["filenames"][i]
        if "covered_answers" in evidence:
            share = round(evidence["covered_probabilities"][place].item(), 4)
            row["covered"] = [evidence["covered_answers"][place].item(), share]
        rows.append(row)
    data = {"images": rows, "runs": [f"training {Path(run).name}" for run in n["runs"][1:]], "scores": []}
    for row in n["classes"]:
        of_class = ["no test image"]
        if row["num_test"]:
            recall = interval(metrics.proportion(row["num_right"], row["num_test"]), 0)
            of_class = [
                f"recall {recall}",
                f"precision {percent(row['precision']) if row['num_predicted'] else '–'}",
            ]
        data["scores"].append(of_class)
    if "superclass_of" in answers:
        data["superclasses"] = [plain(name) for name in answers["superclass_names"]]
        data["superclass_of"] = answers["superclass_of"].tolist()
    return shown, data


def other_runs(n: dict, answers: dict, evidence: dict, images: Tensor | None) -> tuple[dict, dict]:
    """What other trainings answer: kinds of mistakes, the range of accuracies, and three to judge by eye.

    Of each kind one picture is drawn by a seed. `copied` are the mistakes whose pixels are in the training
    set with another label, as the network answers or not.
    """
    shown = {"kinds": {row["name"]: row["count"] for row in n.get("kinds", ())}, "judged": [], "copied": None}
    runs = [row["accuracy"] for row in n.get("against", {}).get("runs", ())]
    shown["other_accuracies"] = [min(runs[1:]), max(runs[1:])] if runs[1:] else None
    index = evidence.get("mistakes", torch.zeros(0, dtype=torch.int64))
    if "copies" in evidence:
        other = (evidence["copies"] >= 0) & (evidence["copies"] != answers["y_true"][index])
        as_answered = other & (evidence["copies"] == answers["y_pred"][index])
        shown["copied"] = {"other": int(other.sum()), "as_answered": int(as_answered.sum())}
    if images is None or "kinds" not in evidence or not shown["kinds"]:
        return shown, {}
    order = torch.randperm(len(index), generator=torch.Generator().manual_seed(4))
    people = people_among(answers["class_names"])
    said = people[evidence["answers"][:, order, 0]].any(dim=0)  # by any training
    order = order[without_people(answers, index[order]) & ~said]
    for kind, name in enumerate(shown["kinds"]):
        for place in order[evidence["kinds"][order] == kind][:1].tolist():
            i, given = index[place].item(), evidence["answers"][1:, place, 0].tolist()
            row = {"kind": name, "picture": picture(images[i]), "others": []}
            row |= {key: plain(answers["class_names"][answers[f"y_{key}"][i]]) for key in ("true", "pred")}
            row["confidence"] = answers["confidence"][i].item()
            for c, share in zip(given, evidence["answer_probabilities"][1:, place, 0].tolist(), strict=True):
                row["others"].append(
                    (plain(answers["class_names"][c]), share, c == answers["y_true"][i].item())
                )
            shown["judged"].append(row)
    return shown, {}


def maps(n: dict, answers: dict, evidence: dict, images: Tensor | None) -> tuple[dict, dict]:
    """Mistakes with both of their maps, the plot of the covering test, and all maps as bytes."""
    shown, data, of_maps = {"covering_plot": None, "cases": []}, {}, n.get("covering", {}).get("mistakes")
    shown["map_cells"] = "x".join(map(str, evidence["maps"].shape[1:])) if "maps" in evidence else ""
    if of_maps is not None:
        rows = {label: of_maps[name]["to_truth"] for name, label in MAPS.items() if name in of_maps}
        shown["covering_plot"] = dots(rows)
    if "maps" not in evidence:
        return shown, data
    # A byte for each cell, 128 for 0; more cells than 16x16 would weigh too much.
    cells = F.adaptive_avg_pool2d(evidence["maps"][:, None], min(16, evidence["maps"].shape[-1]))
    scaled = cells / cells.abs().amax(dim=(1, 2, 3), keepdim=True).clamp(min=1e-30)
    data["maps"] = base64_of((128 + 127 * scaled).round().byte().numpy())
    data["covered_pixels"] = base64_of(np.packbits(evidence["covered_pixels"].numpy()))
    data["fill"] = (255 * evidence["fill"]).round().int().tolist()
    if images is None or "shown" not in evidence:  # it is not there if each mistake shows people
        return shown, data
    names, places = [plain(name) for name in answers["class_names"]], evidence["shown"]
    people = people_among(answers["class_names"])
    said = people[evidence["usual_answers"]] | people[evidence["covered_answers"][places]]
    fits = without_people(answers, evidence["mistakes"][places]) & ~said
    chosen = fits.nonzero().flatten()[:NUM_CASES]
    places = places[chosen]
    both = {"usual": {}, "contrastive": {}}  # the two kinds of maps of these mistakes
    for key in ("maps", "covered_pixels", "answers", "probabilities"):
        contrastive = evidence[key if key in ("maps", "covered_pixels") else f"covered_{key}"]
        both["usual"][key], both["contrastive"][key] = evidence[f"usual_{key}"][chosen], contrastive[places]
    index = evidence["mistakes"][places]
    large = F.interpolate(images[index].float(), MAP_SIDE, mode="nearest") / 255
    drawn = {kind: overlay(large, to_heatmap(of["maps"].relu(), MAP_SIDE)) for kind, of in both.items()}
    for k, i in enumerate(index.tolist()):
        row = {"true": names[answers["y_true"][i]], "predicted": names[answers["y_pred"][i]]}
        row |= {"confidence": answers["confidence"][i].item(), "picture": picture(images[i]), "kinds": {}}
        for kind, of_kind in both.items():
            fill = evidence["fill"][:, None, None]
            covered = torch.where(of_kind["covered_pixels"][k], fill, images[i] / 255)
            row["kinds"][kind] = {
                "map": address(encoded(drawn[kind][k], "JPEG"), "jpeg"),
                "covered": picture(covered),
                "answer": names[of_kind["answers"][k]],
                "probability": of_kind["probabilities"][k].item(),
            }
        row["turned"] = {kind: of["answer"] == row["true"] for kind, of in row["kinds"].items()}
        shown["cases"].append(row)
    return shown, data


def draw_intervals(axes: Axes, labels: list[str], rows: list[dict], filled: list[bool]) -> None:
    """Draw a point and its interval for each row, {value, low, high}, from the top."""
    for place, (row, is_filled) in enumerate(zip(rows, filled, strict=True)):
        axes.plot([row["low"], row["high"]], [place, place], color=INK, marker="", linestyle="-")
        face = INK if is_filled else "none"
        axes.plot(row["value"], place, marker="o", markersize=7, color=INK, markerfacecolor=face)
    axes.set_yticks(range(len(rows)), labels)
    axes.set_ylim(len(rows) - 0.5, -0.5)
    axes.tick_params(axis="y", length=0)
    axes.grid(visible=False, axis="y")
    axes.spines.left.set_visible(False)


def dots(rows: dict[str, dict]) -> Markup:
    """Plot the covering test: shares with intervals, {label: row}; the last is chance, a band behind all."""
    title = "Mistakes that become right, a quarter covered"
    figure, axes = small_figure(title, "share of mistakes", 85 + 24 * len(rows))
    chance = list(rows.values())[-1]
    axes.axvspan(chance["low"], chance["high"], color=LINE, linewidth=0)
    draw_intervals(axes, list(rows), list(rows.values()), [True] * len(rows))
    for place, (label, row) in enumerate(rows.items()):
        weight = "bold" if label in (MAPS["contrastive"], MAPS["usual"]) else "normal"
        options = {"xytext": (6, 0), "textcoords": "offset points", "va": "center", "fontweight": weight}
        axes.annotate(f"{100 * row['value']:.0f} %", (row["high"], place), **options).set_in_layout(False)
    room = 1.2 * max(row["high"] for row in rows.values()) + 0.03  # for the text behind a point
    axes.set_xlim(0, room)
    axes.locator_params(axis="x", nbins=5)
    in_percent(axes.xaxis)
    values = ", ".join(f"{label} {100 * row['value']:.0f} %" for label, row in rows.items())
    return to_svg(figure, "covering", f"{title}: {values}.")


def corruptions(answers: dict, stress: dict | None) -> tuple[dict, dict]:
    """Accuracies of each corruption, the hardest first, and of families, and a sheet for the viewer."""
    if stress is None:
        return {}, {}
    tests, means = stress["tests"], {}
    right = {test: row["accuracy"]["value"] for test, row in tests.items()}
    rows = []
    for name in [test[:-2] for test in tests if test.endswith("/5")]:
        values = [right[f"{name}/{severity}"] for severity in range(1, 6)]
        means[name] = sum(values) / 5
        rows.append({"name": name, "values": [*values, means[name]]})
    families = stress["families"].items()
    of_family = {family: sum(means[n] for n in names) / len(names) for family, names in families}
    shown = {"corruption_rows": sorted(rows, key=lambda row: row["values"][-1])}
    shown["families"] = sorted(of_family.items(), key=lambda item: item[1])
    if "examples" not in stress:
        return shown, {}
    index = torch.tensor(stress["examples"]["images"])
    kept, given = kept_examples(answers, index, stress["examples"]["answers"])
    if not len(kept):
        return shown, {}
    index, pixels = index[kept], stress["example_pixels"][:, kept]
    shown["corrupted_answers"], true = given, answers["y_true"][index]
    shown["corruption_sheet"] = sheet(pixels.flatten(0, 1), columns=len(index))
    shown["corruption_tests"] = list(given)
    shown["corrupted_true"] = [plain(answers["class_names"][c]) for c in true.tolist()]
    shown["corrupted_right"] = bool((answers["y_pred"][index] == true).all())
    script = {"true": true.tolist(), "answers": given, "right": {test: right[test] for test in given}}
    return shown, {"corruptions": script}


def kept_examples(answers: dict, index: Tensor, given: dict[str, list]) -> tuple[Tensor, dict[str, list]]:
    """Return the places of those test images, int64 [n], that no test takes for people, and their answers.

    given: the answers of each test, [[class, probability], ...]. Older results drew people, too.
    """
    people, fits = people_among(answers["class_names"]), without_people(answers, index)
    for rows in given.values():
        fits &= ~people[[c for c, _ in rows]]
    kept = fits.nonzero().flatten()
    return kept, {test: [rows[k] for k in kept.tolist()] for test, rows in given.items()}


def confidence(n: dict, answers: dict, stress: dict | None) -> tuple[dict, dict]:
    """How sure right and wrong answers are, how many lie above a confidence, calibration by severity."""
    right, wrong = (np.array(n["confidence_histogram"][side]) for side in ("right", "wrong"))
    figure, axes = small_figure("How sure answers are", f"confidence; {n['num_test']:,} answers, stacked")
    edges, filled, every = np.linspace(0, 1, len(right) + 1), {"fill": True, "linewidth": 0}, right + wrong
    axes.stairs(wrong, edges, color=ORANGE, **filled)
    # Lighter: they differ in grey, too.
    axes.stairs(every, edges, baseline=wrong, color=BLUE, alpha=0.4, **filled)
    x = 0.03 if every[len(every) // 2 :].sum() > every.sum() / 2 else 0.7  # where there are fewer bars
    axes.text(x, 0.92, f"right: {right.sum():,}", color=BLUE, transform=axes.transAxes)
    axes.text(x, 0.82, f"wrong: {wrong.sum():,}", color=ORANGE, transform=axes.transAxes)
    in_percent(axes.xaxis)
    axes.yaxis.get_major_locator().set_params(integer=True)
    axes.set(xlim=(0, 1), ylim=(0, 1.03 * max(1, every.max())))
    text = f"Confidence of right and wrong answers; wrong above 90 %: {n['confident']['wrong']}."
    drawn, errors = {"histogram": to_svg(figure, "histogram", text)}, {}
    if stress is not None:
        rows = stress["summary"]["by_severity"]
        for key, label in (("as_trained", "as trained"), ("with_temperature", "temperature")):
            if key in rows[0]:
                errors[label] = [row[key]["mean_ece"] for row in rows]
        x_label = f"severity; {stress['corruption_images']:,} pictures, mean of 15"
        figure, axes = small_figure("Calibration error", x_label)
        for label, values in errors.items():
            axes.plot(range(6), values, label=label, clip_on=False)
        axes.set(xlim=(0, 5), ylim=(0, 1.1 * max(map(max, errors.values())) + 0.01))
        axes.set_xticks(range(6), ["clean", *"12345"])
        in_percent(axes.yaxis)
        axes.legend(frameon=False)
        said = (f"{label} {100 * error[0]:.1f} to {100 * error[5]:.1f} %" for label, error in errors.items())
        text = f"Calibration error from clean images to severity 5: {', '.join(said)}."
        drawn["severity"] = to_svg(figure, "calibration", text)
    kept, is_right = [], answers["y_pred"] == answers["y_true"]
    for least in KEPT_ABOVE:
        surer = answers["confidence"] >= least
        count, hits = int(surer.sum()), int((surer & is_right).sum())
        row = {"least": least, "count": count, "share": count / len(surer)}
        kept.append(row | {"right": metrics.proportion(hits, count) if count else None})
    return {"confidence_plots": drawn, "calibration_errors": errors, "kept": kept}, {}


def unlabelled(stress: dict | None) -> tuple[dict, dict]:
    """How well accuracy is estimated without labels, see lab.estimate: each family by the others."""
    model = None if stress is None else estimate.fit(stress)
    if model is None:  # or no corruption changes the answers
        return {"estimated": None}, {}
    left = estimate.left_out(stress)
    figure, axes = small_figure("Estimated without labels, and measured", "estimated accuracy", 270)
    axes.plot([0, 1], [0, 1], color=GREY, marker="", linewidth=1)
    for place, (name, marker) in enumerate(zip(stress["families"], "osv^D*", strict=False)):
        inside = left["family"] == place
        options = {"linestyle": "", "marker": marker, "markersize": 5, "color": INK, "alpha": 0.7}
        options |= {"markerfacecolor": (INK, GREY, "none", LINE)[place % 4], "clip_on": False}
        axes.plot(left["estimate"][inside].numpy(), left["accuracy"][inside].numpy(), label=name, **options)
    axes.set_ylabel("measured accuracy")
    axes.legend(frameon=False, handletextpad=0, loc="upper left", fontsize=11)
    top = min(1.0, 1.1 * max(left["estimate"].max().item(), left["accuracy"].max().item()))
    axes.set(xlim=(0, top), ylim=(0, top))
    in_percent(axes.xaxis, axes.yaxis)
    shown = {"width": model["width"], "mean": (left["estimate"] - left["accuracy"]).abs().mean().item()}
    shown |= {"tests": len(left["family"]), "by_plane": model["plane"] is not None}
    names = np.concatenate([*stress["families"].values()]).tolist()
    worst = (left["estimate"] - left["accuracy"]).abs().argmax().item()
    shown["worst"] = {key: left[key][worst].clamp(0, 1).item() for key in ("estimate", "accuracy")}
    shown["worst"] |= {"name": names[worst // 5], "severity": worst % 5 + 1}
    text = f"Estimated and measured accuracy of {shown['tests']} tests: nine of ten differ by at most "
    drawn = to_svg(figure, "estimates", f"{text}{100 * shown['width']:.0f} points.")
    return {"estimated": shown, "estimates_plot": drawn}, {}


def attacks(n: dict, answers: dict, stress: dict | None, images: Tensor | None) -> tuple[dict, dict]:
    """The plot of the attacks, the share of the right answers that survive, and a sheet for the viewer.

    The sheet has the pictures, then of each attack and epsilon the change and the result. The change is
    enlarged around grey, so that epsilon is 100 levels; of large images the middle is shown. images: all test
    images as they are; older results need them, which lack `attack_pixels`.
    """
    if stress is None or "robust_accuracy" not in stress:
        return {}, {}
    robust, unattacked = stress["robust_accuracy"], stress["tests"]["unattacked/0"]["accuracy"]["value"]
    epsilons = [epsilon for epsilon in stress["epsilons"] if epsilon <= LARGEST_EPSILON]
    figure, axes = small_figure("Right under attack", "epsilon, in 1/255; bands: 95 % intervals", 265)
    for step, epsilon in enumerate(epsilons):  # the script shows one of these rules
        axes.axvline(epsilon, color=GREY, linewidth=1.2, marker="").set_gid(f"rule-{step}")
    axes.axhline(unattacked, color=GREY, linestyle=":", linewidth=1, marker="", label="no attack")
    rows = {"worst of all": (robust, INK), "random signs": (stress["random_signs"], GREY)}
    for (label, (of_epsilon, colour)), marker in zip(rows.items(), "os", strict=True):
        line = [of_epsilon[f"{epsilon:g}"] for epsilon in epsilons]
        value, low, high = ([point[key] for point in line] for key in ("value", "low", "high"))
        axes.plot(epsilons, value, color=colour, marker=marker, label=label, clip_on=False)
        axes.fill_between(epsilons, low, high, color=colour, alpha=0.15, linewidth=0)
    axes.set_xscale("log", base=2)
    axes.set_xticks(epsilons, [f"{epsilon:g}" for epsilon in epsilons])
    axes.set(xlim=(epsilons[0] / 1.3, 1.05 * epsilons[-1]), ylim=(0, 1))
    in_percent(axes.yaxis)
    above = {"loc": "lower right", "bbox_to_anchor": (1.02, 0.98), "ncols": 3}  # the lines may be anywhere
    axes.legend(frameon=False, fontsize=11, handlelength=1.5, columnspacing=1, **above)
    text = f"Accuracy under attack by epsilon: at 1/255 the worst leaves {100 * robust['1']['value']:.1f} %."
    shown = {"epsilon_plot": to_svg(figure, "epsilon", text), "steps": len(epsilons)}
    shown["surviving"] = robust["1"]["value"] / unattacked if unattacked else None
    made, script = attack_sheet(answers, stress, images, epsilons)
    shown["attack_cropped"] = (n["data"].get("size") or 0) > SIDE
    return shown | made, {} if not script else {"attacks": script | {"epsilons": epsilons}}


def attack_sheet(answers: dict, stress: dict, images: Tensor | None, epsilons: list) -> tuple[dict, dict]:
    """The pictures of the attacks as one sheet, see attacks, and the answers to them."""
    if "attack_examples" not in stress or (images is None and "attack_pixels" not in stress):
        return {}, {}
    index = torch.tensor(stress["attack_examples"]["images"])
    tests = {}  # {(attack, epsilon): answers}
    for name, of_epsilon in stress["attack_examples"]["answers"].items():
        tests |= {(name, epsilon): rows for epsilon, rows in of_epsilon.items()}
    kept, rows = kept_examples(answers, index, tests)
    if not len(kept):
        return {}, {}
    if "attack_pixels" in stress:
        pixels = stress["attack_pixels"][kept]
    else:
        first = max(0, (images.shape[-1] - SIDE) // 2)
        pixels = images[index[kept]][..., first : first + SIDE, first : first + SIDE]
    parts, true = [pixels], answers["y_true"][index[kept]].tolist()
    for of_attack in stress["attack_changes"][:, :, kept]:
        for epsilon, changes in zip(epsilons, of_attack, strict=False):
            change = changes / 127  # of epsilon
            parts.append((128 + 100 * change).to(torch.uint8))
            parts.append((pixels + epsilon * change).clamp(0, 255).round().to(torch.uint8))
    given = {name: {} for name, _ in rows}
    for (name, epsilon), of_images in rows.items():
        given[name][epsilon] = of_images
    shown = {"attack_sheet": sheet(torch.cat(parts), MAX_SHEET // 3, len(pixels)), "attacked_answers": given}
    shown["attacked_true"] = [plain(answers["class_names"][c]) for c in true]
    curves = {"worst": stress["robust_accuracy"], "random": stress["random_signs"]}
    right = {name: {key: row["value"] for key, row in rows.items()} for name, rows in curves.items()}
    return shown, {"true": true, "answers": given, "right": right}


def accuracy(n: dict, answers: dict) -> tuple[dict, dict]:
    """The hardest class and groups of classes, and the confusion matrix, of superclasses if it is large.

    Of each cell of it the `count`, its `share` of the row, and the `link` to the mistakes; `on_diagonal` is
    the share of all images.
    """
    names, confusion = answers["class_names"], answers["confusion"]
    tested = [row for row in n["classes"] if row["num_test"]]
    least = min(row["recall"] for row in tested)
    hardest = [row for row in tested if row["recall"] == least]
    lowest = hardest[0] | metrics.proportion(hardest[0]["num_right"], hardest[0]["num_test"])
    lowest |= {"names": [plain(row["name"]) for row in hardest[:NUM_TIED]], "tied": len(hardest)}
    groups = words = shared_words(names)
    counts, prefix = confusion, ""
    if "superclass_of" in answers:
        inside = [(answers["superclass_of"] == g) for g in range(len(answers["superclass_names"]))]
        members = [row.nonzero().flatten().tolist() for row in inside]
        groups = words | dict(zip(answers["superclass_names"], members, strict=True))
        if len(names) > LARGEST_MATRIX:
            names, counts, prefix = answers["superclass_names"], answers["superclass_confusion"], "all "
    failing = failing_groups(confusion, groups)[:NUM_FAILING]
    for row in failing:
        row["names"] = [plain(answers["class_names"][c]) for c in row["classes"]]
    shown = {"lowest": lowest, "failing": failing, "matrix": None}
    if len(names) > LARGEST_MATRIX:
        return shown, {}
    shown |= {"matrix": [], "of_superclasses": prefix != "", "on_diagonal": n["accuracy"]["value"]}
    shown["members"] = {}
    if prefix:
        shown["on_diagonal"] = (counts.trace() / counts.sum()).item()
        for name, classes in zip(names, members, strict=True):
            shown["members"][plain(name)] = [plain(answers["class_names"][c]) for c in classes]
    for i, row in enumerate(counts.tolist()):
        cells = []
        for j, count in enumerate(row):
            link = {"true": prefix + plain(names[i]), "predicted": prefix + plain(names[j])}
            cells.append({"count": count, "share": count / max(1, sum(row)), "link": link, "right": i == j})
        shown["matrix"].append({"name": plain(names[i]), "cells": cells})
    return shown, {}


def where(n: dict, answers: dict, evidence: dict, images: Tensor | None) -> tuple[dict, dict]:
    """The worst and the best slices, see lab/slices.py, and pictures inside and outside of the worst.

    `missed` is a gap that would mostly be missed: half of the width of the median interval.
    """
    rows = [row for row in n.get("slices", ()) if row["high"] is not None]  # the worst first
    rows = [row | {"name": slice_name(row)} for row in rows]
    shown = {"slices": rows, "worst": rows[0] if rows else None, "slice_pictures": {}}
    if not rows:
        return shown, {}
    worst, others = rows[:NUM_WORST_SLICES], rows[NUM_WORST_SLICES:]
    best = sorted(others, key=lambda row: -row["low"])[:NUM_BEST_SLICES]
    shown["weak"] = sum(row["weak"] for row in rows)
    shown["missed"] = float(np.median([(row["high"] - row["low"]) / 2 for row in rows]))
    shown["slices_plot"] = gaps(worst, best[::-1])
    has_pictures = images is not None and "slice_inside" in evidence
    for side in ("inside", "outside") if has_pictures else ():
        index = evidence[f"slice_{side}"]
        captions = [plain(answers["class_names"][c]) for c in answers["y_true"][index].tolist()]
        is_right = (answers["y_pred"][index] == answers["y_true"][index]).tolist()
        row = {"sheet": sheet(images[index], columns=max(1, len(index)))}
        shown["slice_pictures"][side] = row | {"pictures": list(zip(captions, is_right, strict=True))}
    return shown, {}


def gaps(worst: list[dict], best: list[dict]) -> Markup:
    """Plot the gaps of slices with their intervals, in points; weak ones are filled."""
    title, rows = "Gap to other pictures of the same classes", [*worst, *best]
    figure, axes = small_figure(title, "", 85 + 34 * len(rows))
    axes.set_xlabel("points", loc="right")
    axes.axvline(0, color=GREY, linewidth=1, marker="")
    keys = {"value": "gap", "low": "low", "high": "high"}
    points = [{key: 100 * row[name] for key, name in keys.items()} for row in rows]
    labels = [textwrap.fill(f"{row['name'][:40]} ({row['n']:,})", 28) for row in rows]
    draw_intervals(axes, labels, points, [row["weak"] for row in rows])
    if best:
        axes.axhline(len(worst) - 0.5, color=LINE, linewidth=1, marker="")
    values = ", ".join(f"{row['name']} {100 * row['gap']:+.1f}" for row in rows)
    return to_svg(figure, "slices", f"{title}, in points: {values}.")

"""What the templates of explore.html show besides the numbers: pictures, plots and rows.

Each function returns a part of their context, from what a run folder holds: numbers is metrics.json and
reasons.json, answers predictions.npz, evidence evidence.npz or an empty dict, stress the stress tests or
None, see docs/formats.md. images are the test images, uint8 [N, 3, S, S], or None. What is unknown is None.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

import metrics
from gradcam import overlay, to_heatmap
from lab.explore import charts, script_data
from lab.stress_tests.attacks import APGD_STEPS, PGD_STEPS
from page import plots
from page.embed import SIDE, address, encoded, picture, plain
from page.sections import MAP_SIDE

MAPS = {  # of covering: how the maps are called, in the order of their rows, which ends with chance
    "contrastive": "contrastive map",
    "runner_up": "against runner-up",
    "random_class": "against a random class",
    "usual": "the usual map",
    "other_image": "another picture's",
    "centre": "the centre",
    "random": "random cells",
}
LARGEST_MATRIX = 30  # classes: report.html has those of more
NUM_PAIRS, NUM_THUMBNAILS = 6, 3  # of classes that are confused most, and the pictures of each


def game(answers: dict, evidence: dict, images: Tensor | None) -> dict:
    """The puzzle that the game opens with, and the sheet of all of them in their order."""
    if images is None or "puzzles" not in evidence:
        return {"opener": None}
    places = script_data.puzzle_order(answers, evidence)
    names, first = [plain(name) for name in answers["class_names"]], places[0]
    index = evidence["puzzles"][places]
    opener = {"true": names[answers["y_true"][index[0]]], "predicted": names[answers["y_pred"][index[0]]]}
    opener["title"] = script_data.title_of(opener["true"], opener["predicted"])
    opener["confidence"] = evidence["puzzle_probabilities"][first, 0, 0].item()
    opener["picture"] = picture(images[index[0]])
    cover = max(evidence["puzzle_by_map"][first].item(), 0)
    opener["cells"] = [cell for cell in evidence["covers"][cover].int().tolist() if cell >= 0]
    opener["answer"] = names[evidence["puzzle_classes"][first, cover, 0].int()]
    opener["probability"] = evidence["puzzle_probabilities"][first, cover, 0].item()
    opener |= {"count": len(places), "possible": (evidence["puzzle_best"] >= 0).sum().item()}
    if "puzzles_drawn" in evidence and evidence["puzzles_drawn"][0]:
        drawn, turned = evidence["puzzles_drawn"].tolist()
        opener["drawn"] = {"count": drawn, "turned": turned} | metrics.proportion(turned, drawn)
    opener["fill"] = (255 * evidence["fill"]).round().int().tolist()
    return {"opener": opener, "puzzle_sheet": script_data.sheet(images[index], columns=len(index))}


def matrix(answers: dict) -> dict:
    """The rows of the confusion matrix, that of the superclasses if there are any and more than 30 classes.

    Of each its `name` and `cells`: `count`, its `share` of the row, and the `link` to the mistakes;
    `on_diagonal` is the share of all images.
    """
    names, counts, keys = answers["class_names"], answers["confusion"], ("true", "predicted")
    if "superclass_of" in answers and len(names) > LARGEST_MATRIX:
        names, counts = answers["superclass_names"], answers["superclass_confusion"]
        keys = ("superclass", "predicted_superclass")
    if len(names) > LARGEST_MATRIX:
        return {"matrix": None}
    names, rows, right = [plain(name) for name in names], [], counts.trace().item()
    for true, of_row in zip(names, counts.tolist(), strict=True):
        total, cells = max(1, sum(of_row)), []
        for predicted, count in zip(names, of_row, strict=True):
            link = {keys[0]: true, keys[1]: predicted}
            cells.append({"count": count, "share": count / total, "link": link, "right": true == predicted})
        rows.append({"name": true, "cells": cells})
    return {
        "matrix": rows,
        "of_superclasses": keys[0] == "superclass",
        "on_diagonal": right / counts.sum().item(),
    }


def confusions(numbers: dict, answers: dict, evidence: dict, images: Tensor | None) -> dict:
    """Groups and pairs of classes that are confused most, and the sheet of the mistakes on the page."""
    names, rows = answers["class_names"], []
    shown = evidence["mistakes"].tolist() if images is not None and evidence else []
    for pair in numbers["most_confused_pairs"][:NUM_PAIRS]:
        true, predicted = names.index(pair["true"]), names.index(pair["predicted"])
        members = (answers["y_true"] == true) & (answers["y_pred"] == predicted)
        places = [place for place, i in enumerate(shown) if members[i]]
        names_of_pair = {"true": plain(pair["true"]), "predicted": plain(pair["predicted"])}
        rows.append({"names": names_of_pair, "count": pair["count"], "places": places[:NUM_THUMBNAILS]})
    inside = numbers.get("errors_within_superclass") or 0
    tested = [row for row in numbers["classes"] if row["num_test"]]
    lowest = min(tested, key=lambda row: row["recall"])
    lowest = lowest | metrics.proportion(lowest["num_right"], lowest["num_test"])
    lowest["tied"] = sum(row["recall"] == lowest["recall"] for row in tested)
    return {
        "pairs": rows,
        # Superclasses say what is confused only if mistakes stay inside them more often than by chance.
        "groups": groups(answers) if inside > numbers.get("chance_within_superclass", 0) else [],
        "lowest": lowest,
        "mistakes_sheet": script_data.sheet(images[evidence["mistakes"]]) if shown else None,
        "runs": [script_data.run_name(run) for run in numbers["runs"][1:]],
        "num_shown": len(evidence.get("mistakes", ())),
        "has_superclasses": "superclass_of" in answers,
        "has_maps": "covered_answers" in evidence,
    }


def groups(answers: dict) -> list[dict]:
    """The two superclasses whose classes are taken for each other most often, as a share of their images."""
    if "superclass_of" not in answers:
        return []
    group, counts, rows = answers["superclass_of"], answers["confusion"], []
    for number, name in enumerate(answers["superclass_names"]):
        members = group == number
        inside, total = counts[members][:, members], max(1, counts[members].sum().item())
        count = (inside.sum() - inside.trace()).item()
        classes = [plain(answers["class_names"][c]) for c in members.nonzero().flatten().tolist()]
        rows.append({"name": plain(name), "classes": classes} | metrics.proportion(count, total))
    return sorted(rows, key=lambda row: -row["value"])[:2]


def maps(numbers: dict, answers: dict, evidence: dict, images: Tensor | None) -> dict:
    """Mistakes with both of their maps, one of them large, and the plots of the covering test."""
    covering, drawn = numbers.get("covering", {}), {}
    if "mistakes" in covering:
        of_maps = covering["mistakes"]
        rows = {label: of_maps[name]["to_truth"] for name, label in MAPS.items() if name in of_maps}
        drawn["mistakes"] = to_dots(
            "Mistakes that become right, a quarter covered", rows, "share of mistakes", "covering"
        )
    if "right" in covering:
        of_right = covering["right"]
        rows = {MAPS[name]: of_right[name]["changed"] for name in ("centre", "usual", "random")}
        drawn["right"] = to_dots(
            "Right answers that change, a quarter covered", rows, "share of answers", "covering-right"
        )
    shown = []
    if images is not None and "shown" in evidence:
        shown = mistakes_with_maps(answers, evidence, images)
    controls = {"random": MAPS["random"], "blurred_random": "random cells, both blurred instead of grey"}
    controls |= {name: MAPS[name] for name in ("random_class", "usual", "other_image", "centre")}
    return {
        "covering_plots": drawn,
        "cases": shown,
        "control_names": controls,
        "turned_of_all": turned_of_all(answers, evidence),
    }


def turned_of_all(answers: dict, evidence: dict) -> dict | None:
    """The `count` of all mistakes, if the page holds all, and the `share` that the contrastive map turns."""
    mistakes = evidence.get("mistakes", ())
    if "covered_answers" not in evidence or len(mistakes) < (answers["y_pred"] != answers["y_true"]).sum():
        return None
    turned = evidence["covered_answers"] == answers["y_true"][mistakes]
    return {"count": len(mistakes), "share": turned.double().mean().item()}


def to_dots(title: str, rows: dict, x_label: str, name: str) -> str:
    """One plot of the covering test as an element."""
    values = ", ".join(f"{label} {100 * row['value']:.0f} %" for label, row in rows.items())
    figure = charts.dots(title, rows, x_label, MAPS["contrastive"])
    return plots.to_svg(figure, name, f"{title}: {values}.")


def mistakes_with_maps(answers: dict, evidence: dict, images: Tensor) -> list[dict]:
    """The mistakes that the page shows: picture, both maps, and what covering them does; the first is large.

    Of each kind of map, `usual` and `contrastive`: whether the answer `turned` to the truth,
    and in `kinds` the map, the covered picture, the `answer` and its `probability`.
    """
    names, rows = [plain(name) for name in answers["class_names"]], []
    kinds = {"usual": {key: evidence[f"usual_{key}"] for key in ("maps", "answers", "probabilities")}}
    kinds["usual"]["pixels"] = evidence["usual_covered_pixels"]
    places = evidence["shown"]
    kinds["contrastive"] = {"maps": evidence["maps"][places]}
    for key in ("covered_pixels", "covered_answers", "covered_probabilities"):
        kinds["contrastive"][key.removeprefix("covered_")] = evidence[key][places]
    index = evidence["mistakes"][places]
    large = F.interpolate(images[index].float(), MAP_SIDE, mode="nearest") / 255
    for of_kind in kinds.values():
        of_kind["drawn"] = overlay(large, to_heatmap(of_kind["maps"].relu(), MAP_SIDE))
    for k, i in enumerate(index.tolist()):
        row = {"true": names[answers["y_true"][i]], "predicted": names[answers["y_pred"][i]]}
        row |= {"confidence": answers["confidence"][i].item(), "picture": picture(images[i])}
        row |= {"file": answers["filenames"][i], "kinds": {}, "turned": {}}
        for kind, of_kind in kinds.items():
            covered = torch.where(of_kind["pixels"][k], evidence["fill"][:, None, None], images[i] / 255)
            row["turned"][kind] = bool(of_kind["answers"][k] == answers["y_true"][i])
            row["kinds"][kind] = {
                "map": address(encoded(of_kind["drawn"][k], "JPEG")),
                "covered": picture(covered),
                "answer": names[of_kind["answers"][k]],
                "probability": of_kind["probabilities"][k].item(),
            }
        rows.append(row)
    return rows


def confidence(numbers: dict, stress: dict | None) -> dict:
    """Reliability as trained and at the temperature, calibration by severity, and how sure answers are."""
    drawn, rows = {}, [] if stress is None else stress.get("summary", {}).get("by_severity", [])
    labels = {"as_trained": "as trained", "with_temperature": "temperature"}
    errors = {
        labels[key]: [row[key].get("mean_ece", row[key]["ece"]) for row in rows]
        for key in labels
        if rows and key in rows[0]
    }
    for label, suffix in {"as trained": "", "at the temperature": "_after_temperature"}.items():
        if f"calibration_bins{suffix}" in numbers:
            error = numbers[f"expected_calibration_error{suffix}"]
            text = f"Accuracy against confidence {label}: they are {100 * error:.1f} % apart on average."
            figure = plots.reliability(label.capitalize(), numbers[f"calibration_bins{suffix}"])
            drawn[f"reliability{suffix}"] = plots.to_svg(figure, f"reliability{suffix}", text)
    if errors:
        ends = (f"{label} {100 * error[0]:.1f} to {100 * error[5]:.1f} %" for label, error in errors.items())
        text = f"Calibration error from clean images to severity 5: {', '.join(ends)}."
        figure = charts.severity_curves("Calibration error", errors, height=320)
        drawn["severity"] = plots.to_svg(figure, "calibration", text)
    counts = {side: torch.tensor(values).numpy() for side, values in numbers["confidence_histogram"].items()}
    text = f"Confidence of right and wrong answers; above 90 % {numbers['confident']['wrong']} are wrong."
    figure = plots.confidence_histogram("As trained", counts["right"], counts["wrong"])
    drawn["histogram"] = plots.to_svg(figure, "histogram", text)
    return {"confidence_plots": drawn, "calibration_errors": errors}


def stress_tests(answers: dict, stress: dict | None, images: Tensor | None) -> dict:
    """What lab.stress measured: tables, plots, and sheets for the two viewers."""
    if stress is None or "summary" not in stress:
        return {"stress": None}
    shown = {"stress": stress, "pgd_steps": PGD_STEPS, "apgd_steps": APGD_STEPS}
    tests, rows = stress["tests"], []
    names = [name for name in dict.fromkeys(test.split("/")[0] for test in tests) if f"{name}/5" in tests]
    for name in names:
        values = [tests[f"{name}/{severity}"]["accuracy"]["value"] for severity in range(1, 6)]
        rows.append({"name": name, "values": [*values, sum(values) / 5]})  # the last is the mean
    shown["corruption_rows"] = rows
    means = {row["name"]: row["values"][-1] for row in rows}
    families = {
        family: sum(means[n] for n in members) / len(members)
        for family, members in stress["families"].items()
    }
    shown["families"] = sorted(families.items(), key=lambda item: item[1])  # the hardest first
    shown["hardest"] = min(rows, key=lambda row: row["values"][2])["name"]
    by_severity = stress["summary"]["by_severity"]
    keys = {"accuracy": "accuracy", "confidence": "mean_confidence"}
    curves = {label: [row[key] for row in by_severity] for label, key in keys.items()}
    first, *_, last = curves["accuracy"]
    text = f"Accuracy falls from {100 * first:.1f} % on clean images to {100 * last:.1f} % at severity 5, "
    text += f"confidence from {100 * curves['confidence'][0]:.1f} to {100 * curves['confidence'][5]:.1f} %."
    figure = charts.severity_curves("Accuracy and confidence", curves, height=205)
    shown["severity_plot"] = plots.to_svg(figure, "severity", text)
    epsilons = stress["epsilons"][:-1]  # the last is a check, at which a sound attack leaves no image right
    random_signs = {f"{epsilon:g}": tests[f"random/{epsilon:g}"]["accuracy"] for epsilon in epsilons}
    shown["random_signs"] = stress.get("random_signs", random_signs)  # older files have all images only
    figure = charts.stress_epsilon(tests, stress["robust_accuracy"], shown["random_signs"], epsilons)
    at_one = 100 * stress["robust_accuracy"]["1"]["value"]
    text = f"Accuracy under attack by epsilon: at 1/255 the worst attack leaves {at_one:.1f} %."
    shown["epsilon_plot"] = plots.to_svg(figure, "epsilon", text)
    true = [plain(answers["class_names"][c]) for c in answers["y_true"].tolist()]
    if "examples" in stress:
        pixels, index = stress["example_pixels"], stress["examples"]["images"]
        shown["corruption_sheet"] = script_data.sheet(pixels.flatten(0, 1), columns=len(index))
        shown["corruption_tests"] = list(stress["examples"]["answers"])
        shown["corrupted_true"] = [true[i] for i in index]
    if "attack_examples" in stress and images is not None:
        shown["attack_sheet"] = script_data.attack_sheet(images, stress)
        shown["attack_cropped"] = images.shape[-1] > SIDE
        shown["attacked_true"] = [true[i] for i in stress["attack_examples"]["images"]]
    return shown

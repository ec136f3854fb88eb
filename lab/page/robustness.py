"""What explore.html shows of stress tests: its head, attacks, corruptions, confidence, and the page in short.

A section has a function here, as in sections.py. What is picked as the worst of several has an interval that
is widened for the picking, see picked; where intervals of others overlap with it, it is among the worst.
"""

import itertools
from statistics import NormalDist

import numpy as np
import torch
from torch import Tensor

import metrics
import report
from lab.answers import (
    above_threshold,
    failing_groups,
    may_be_drawn,
    people_among,
    shared_words,
    tests_of,
)
from lab.page.figures import (
    MAX_SHEET,
    SIDE,
    draw_attacks,
    draw_calibration,
    percent,
    picture,
    sheet,
    value_of,
)
from lab.slices import WEAK, slice_name
from report import plain

LARGEST_EPSILON = 8  # of the attacks that are shown; a larger one is a check
BINS, EDGES, SHOWN_EDGE = 15, range(9, 15), 12  # thresholds of confidence: 9 to 14 fifteenths, at first .80
KEPT = 0.9  # the share of right answers that somebody may want of a threshold
FEWEST_KEPT = 10  # answers above a threshold of which the worst corruption is named
DOT = 0.0875  # of the axis at the head: a narrower interval lies inside of its dot, see explore.css
LEAST_APART = 0.01  # of groups of classes, not to be tied
LEAST_GAIN = 0.05  # of own statistics, to be advised
LEAST_GAP = 0.1  # between training and validation accuracy, to be called overfitting
MOST_ACTS = 5


# ---- The worst of several ----------------------------------------------------------------------------------


def picked(hits: float, count: float, candidates: int) -> dict[str, float]:
    """Return a share with Wilson's interval, widened for the worst of so many candidates after Bonferroni.

    The interval depends on z^2 / n alone: a larger z is a smaller n.
    """
    normal = NormalDist().inv_cdf
    fewer = (normal(0.975) / normal(1 - 0.025 / candidates)) ** 2
    return metrics.proportion(hits * fewer, count * fewer)


def worst_of(rows: dict[str, dict]) -> list[str]:
    """Return the name with the lowest value, then those whose intervals overlap with its own.

    Of equal values that of more answers comes first.
    """
    names = sorted(rows, key=lambda name: (rows[name]["value"], rows[name]["high"] - rows[name]["low"]))
    return [name for name in names if name == names[0] or rows[name]["low"] < rows[names[0]]["high"]]


def fifteen_of(stress: dict) -> list[str]:
    """Return the names of the fifteen corruptions, those of a family side by side."""
    return [*itertools.chain(*stress["families"].values())]


def worst_by_question(stress: dict) -> list[tuple[str, str, str]]:
    """Return which of the fifteen leaves the fewest right, a row for each question: its name and its number.

    The last, of sure answers, is missing where no corruption leaves ten of them.
    """
    right = {name: stress["tests"][f"{name}/5"]["accuracy"]["value"] for name in fifteen_of(stress)}
    means = {name: mean_of_severities(stress, name) for name in right}
    rows = []
    for question, shares in (("over all severities", means), ("at severity 5", right)):
        name = min(shares, key=shares.get)
        rows.append((question, name, percent(shares[name], 0)))
    sure = worst_of_sure(stress)
    if sure is not None:
        number = f"{sure['hits']:,} of {sure['count']:,}"
        rows.append(
            (f"among answers above {percent(SHOWN_EDGE / BINS, 0)} at severity 5", sure["name"], number)
        )
    return rows


def mean_of_severities(stress: dict, name: str) -> float:
    """Return the mean accuracy under a corruption over its five severities."""
    return sum(stress["tests"][test]["accuracy"]["value"] for test in tests_of([name])) / 5


def right_of_fifteen(stress: dict, severity: int) -> dict[str, dict]:
    """Return what is right under each of the fifteen corruptions, see picked."""
    count, names = stress["corruption_images"], fifteen_of(stress)
    shares = {name: stress["tests"][f"{name}/{severity}"]["accuracy"]["value"] for name in names}
    return {name: picked(share * count, count, len(names)) for name, share in shares.items()}


# ---- The head ----------------------------------------------------------------------------------------------


def hero(n: dict, answers: dict, stress: dict | None) -> tuple[dict, dict]:
    """One picture from clean over the five severities of a corruption to an attack of one level of 255.

    Of each of the `stops`: the picture, the class and the probability of its answer, and how many of all
    pictures are `right` there, of `count`. None where no picture falls, see falling.
    """
    chosen = None if stress is None else falling(answers, stress)
    if chosen is None:
        return {"hero": None}, {}
    name, place, attacked = chosen
    names, truth = [plain(name) for name in answers["class_names"]], stress["examples"]["images"][place]
    truth, stops = names[answers["y_true"][truth]], []
    for test, pixels in zip(stress["examples"]["answers"], stress["example_pixels"], strict=True):
        corrupted, _, severity = test.partition("/")
        if corrupted not in ("clean", name):
            continue
        right = right_of_fifteen(stress, int(severity))[name] if corrupted == name else n["accuracy"]
        row = {"answer": stress["examples"]["answers"][test][place], "picture": picture(pixels[place])}
        count = stress["corruption_images"] if corrupted == name else n["num_test"]  # as in the heading
        stops.append(row | {"right": right, "count": count})
    if attacked is not None:
        change = stress["attack_changes"][0, stress["epsilons"].index(1), attacked] / 127
        image = (stress["attack_pixels"][attacked] + change).clamp(0, 255).round().to(torch.uint8)
        row = {"answer": stress["attack_examples"]["answers"]["pgd"]["1"][attacked]}
        row |= {"picture": picture(image), "right": stress["robust_accuracy"]["1"]}
        stops.append(row | {"count": stress["attack_images"]})
    for row in stops:
        c, row["share"] = row["answer"]
        row |= {"answer": names[c], "hit": names[c] == truth}
    worst = worst_of(right_of_fifteen(stress, 5))
    rank = ("worst" if len(worst) == 1 else "among") if name in worst else ""
    narrow = sum(row["right"]["high"] - row["right"]["low"] < DOT for row in stops) > len(stops) / 2
    shown = {"name": name, "rank": rank, "true": truth, "stops": stops, "attacked": attacked}
    return {"hero": shown | {"narrow": narrow}}, {}


def falling(answers: dict, stress: dict) -> tuple[str, int, int | None] | None:
    """Return a corruption, and the place of a picture that falls under it, also of those attacked, or None.

    It is the corruption of the fifteen with the fewest right at severity 5 that has such a picture: it is
    right when it is clean, wrong at severity 5, and no answer to it is of people. Of several one that an
    attack of 1/255 turns goes first, then the one that is answered most surely. None if there is none.
    """
    index, given = (stress.get("examples", {}).get(key, []) for key in ("images", "answers"))
    attacked, answers_to = [], {}  # where an answer is of people it is not shown
    if "robust_accuracy" in stress and "attack_examples" in stress:
        attacked, people = stress["attack_examples"]["images"], people_among(answers["class_names"])
        aimed = zip(attacked, stress["attack_examples"]["answers"]["pgd"]["1"], strict=True)
        answers_to = {i: c for i, (c, _) in aimed if not people[c]}
    right = right_of_fifteen(stress, 5)
    for name in sorted(right, key=lambda name: right[name]["value"]) if index else ():
        rows = torch.tensor([given[test] for test in ["clean/0", *tests_of([name])]])
        classes, true = rows[:, :, 0].long(), answers["y_true"][index]
        fits = may_be_drawn(answers, torch.tensor(index), classes)
        fits &= (classes[0] == true) & (classes[-1] != true)
        places = fits.nonzero().flatten().tolist()
        if places:
            turned = {i for i, c in answers_to.items() if c != answers["y_true"][i]}
            rank = {k: (index[k] in turned, index[k] in answers_to, rows[0, k, 1].item()) for k in places}
            place = max(places, key=rank.get)
            return name, place, attacked.index(index[place]) if index[place] in answers_to else None
    return None


# ---- Attacks and corruptions -------------------------------------------------------------------------------


def attacks(n: dict, answers: dict, stress: dict | None) -> tuple[dict, dict]:
    """The plot of the attacks, the share of the right answers that survive, and a sheet for the viewer.

    The sheet has the pictures, then of each attack and epsilon the change and the result. The change is
    enlarged around grey, so that epsilon is 100 levels; of large images the middle is shown.
    """
    if stress is None or "robust_accuracy" not in stress:
        return {}, {}
    robust, unattacked = stress["robust_accuracy"], stress["tests"]["unattacked/0"]["accuracy"]["value"]
    epsilons = [epsilon for epsilon in stress["epsilons"] if epsilon <= LARGEST_EPSILON]
    curves = {"worst": robust, "random": stress["random_signs"]}
    shown = {"epsilon_plot": draw_attacks(curves, epsilons, unattacked), "steps": len(epsilons)}
    shown["surviving"] = robust["1"]["value"] / unattacked if unattacked else None
    shown["attack_cropped"] = (n["data"].get("size") or 0) > SIDE
    if "attack_examples" not in stress:  # all right answers are of people
        return shown, {}
    index, tests = torch.tensor(stress["attack_examples"]["images"]), stress["attack_examples"]["answers"]
    kept, given = kept_examples(answers, index, [*tests["pgd"].values(), *tests["random"].values()]), {}
    if not kept:
        return shown, {}
    for name, of_epsilon in tests.items():
        given[name] = {key: [rows[k] for k in kept] for key, rows in of_epsilon.items()}
    pixels, true = stress["attack_pixels"][kept], answers["y_true"][index[kept]].tolist()
    parts = [pixels]
    for of_attack in stress["attack_changes"][:, :, kept]:
        for epsilon, changes in zip(epsilons, of_attack, strict=False):
            change = changes / 127  # of epsilon
            parts.append((128 + 100 * change).to(torch.uint8))
            parts.append((pixels + epsilon * change).clamp(0, 255).round().to(torch.uint8))
    shown |= {"attack_sheet": sheet(torch.cat(parts), MAX_SHEET // 3, len(pixels)), "attacked_answers": given}
    shown["attacked_true"] = [plain(answers["class_names"][c]) for c in true]
    right = {name: {key: row["value"] for key, row in curve.items()} for name, curve in curves.items()}
    return shown, {"attacks": {"true": true, "answers": given, "right": right, "epsilons": epsilons}}


def corruptions(answers: dict, stress: dict | None) -> tuple[dict, dict]:
    """Accuracies of each corruption, the hardest first, and of families, and a sheet for the viewer."""
    if stress is None:
        return {}, {}
    tests = stress["tests"]
    right = {test: row["accuracy"]["value"] for test, row in tests.items()}
    rows = []
    for name in [test[:-2] for test in tests if test.endswith("/5")]:
        values = [right[f"{name}/{severity}"] for severity in range(1, 6)]
        values.append(mean_of_severities(stress, name))
        rows.append({"name": name, "values": values, "repaired": None})
        if "own_statistics" in tests[f"{name}/5"]:  # of the same pictures, as trained and repaired
            rows[-1]["repaired"] = before_and_after([tests[f"{name}/5"]])
    of_family = {}
    for family, names in stress["families"].items():
        of_family[family] = sum(mean_of_severities(stress, name) for name in names) / len(names)
    shown = {"corruption_rows": sorted(rows, key=lambda row: row["values"][-1])}
    shown["families"] = sorted(of_family.items(), key=lambda item: item[1])
    shown["worst_by_question"], shown["clean_of_draws"] = worst_by_question(stress), clean_of_draws(stress)
    shown |= {"repair": None, "has_superclasses": "superclass_of" in answers}
    if "own_statistics" in tests["clean/0"]:
        hard = before_and_after([tests[test] for test in tests_of(fifteen_of(stress), [5])])
        shown["repair"] = {"hard": hard, "clean": before_and_after([tests["clean/0"]])}
        shown["repair_images"] = tests["clean/0"]["own_statistics"]["images"]
    shown["cues"] = {name: row["accuracy"]["value"] for name, row in stress["summary"]["cues"].items()}
    if "examples" not in stress:
        return shown, {}
    index = torch.tensor(stress["examples"]["images"])
    kept = kept_examples(answers, index, [*stress["examples"]["answers"].values()])
    if not kept:
        return shown, {}
    kept = kept[: len(kept) // 4 * 4 or None]  # whole rows
    given = {test: [rows[k] for k in kept] for test, rows in stress["examples"]["answers"].items()}
    index, pixels = index[kept], stress["example_pixels"][:, kept]
    shown["corrupted_answers"], true = given, answers["y_true"][index]
    shown["corruption_sheet"] = sheet(pixels.flatten(0, 1), columns=len(index))
    shown["corruption_tests"] = list(given)
    shown["corrupted_true"] = [plain(answers["class_names"][c]) for c in true.tolist()]
    shown["corrupted_right"] = bool((answers["y_pred"][index] == true).all())
    script = {"true": true.tolist(), "answers": given, "right": {test: right[test] for test in given}}
    return shown, {"corruptions": script}


def clean_of_draws(stress: dict) -> list[tuple[str, int, str]]:
    """Return what is right of clean pictures as trained, for each draw.

    A row is what the draw served, its number of pictures and the percent. The tests take different
    pictures, and so the same network is right a little more or less often.
    """
    clean = stress["tests"]["clean/0"]
    rows = [("the corruptions", stress["corruption_images"], clean["accuracy"]["value"])]
    if "robust_accuracy" in stress:
        unattacked = stress["tests"]["unattacked/0"]["accuracy"]["value"]
        rows.append(("the attacks", stress["attack_images"], unattacked))
    if "own_statistics" in clean:
        own = clean["own_statistics"]
        rows.append(("the repair", own["images"], value_of(own["plain"]["accuracy"])))
    if "few_together" in stress:
        rows.append(
            ("the batches", stress["few_together"]["images"], stress["few_together"]["plain"]["value"])
        )
    draws = {}
    for served, count, right in rows:
        draws.setdefault((count, percent(right, 0)), []).append(served)
    return [(" and ".join(served), *draw) for draw, served in draws.items()]


def kept_examples(answers: dict, index: Tensor, given: list[list]) -> list[int]:
    """Return the places of those test images, int64 [n], that no test takes for people.

    given: the answers of each test, [[class, probability], ...].
    """
    classes = torch.tensor(given)[:, :, 0].long()  # [tests, n]
    return may_be_drawn(answers, index, classes).nonzero().flatten().tolist()


def before_and_after(records: list[dict]) -> tuple[float, float]:
    """Return the mean accuracy of tests as trained and with own statistics, of the same pictures."""
    own = [record["own_statistics"] for record in records]
    parts = [row["plain"] for row in own], own
    return tuple(sum(value_of(row["accuracy"]) for row in rows) / len(rows) for rows in parts)


# ---- Confidence --------------------------------------------------------------------------------------------


def confidence(n: dict, answers: dict, stress: dict | None) -> tuple[dict, dict]:
    """How sure the network is, and how many answers are right above a threshold of confidence.

    `clean_kept` are clean answers, of all test pictures, above SHOWN_EDGE, and `dots` the fifteen corruptions
    at severity 5, the fewest right first: none is left out, however few of its answers are kept. `kept_stops`
    has what is said of each severity and step of the slider; the script knows the dots of all of them.
    `strictest` is what the last step keeps under the worst of these, and `enough` has for each severity and
    corruption the lowest threshold that is shown to suffice.
    """
    clean = [kept_clean(answers, edge) for edge in EDGES]
    enough = lowest_enough(clean)
    shown = {"clean_kept": clean[EDGES.index(SHOWN_EDGE)], "clean_enough": enough, "calibration_plot": None}
    shown |= {"shown_edge": SHOWN_EDGE, "num_needed": num_needed()}
    shown["threshold_steps"] = [edge / BINS for edge in EDGES]
    if stress is None:
        return shown, {}
    names = fifteen_of(stress)
    kept = {k: [kept_under(stress, k, edge) for edge in EDGES] for k in range(1, 6)}
    stops = [kept_stop(stress, k, edge, row) for k in kept for edge, row in zip(EDGES, kept[k], strict=True)]
    for row in stops:
        row["clean"] = clean[EDGES.index(row["edge"])]
        row["here"] = (row["severity"], row["edge"]) == (5, SHOWN_EDGE)
    of_name = kept[5][EDGES.index(SHOWN_EDGE)]
    worst = next(row["worst"] for row in stops if row["here"])
    shown["strictest"] = kept[5][-1][worst["name"]] if worst else None
    names.sort(key=lambda name: value_of(of_name[name]["right"] or 2))
    dots = [{"name": name} | of_name[name] for name in names]
    shown["enough"], needed = {}, num_needed()
    for severity, of_edges in kept.items():
        rows = shown["enough"][severity] = []
        for name in names:
            steps = [of_edge[name] for of_edge in of_edges]
            few = all(step["count"] < needed for step in steps)
            rows.append({"name": name, "least": lowest_enough(steps), "too_few": few})
    measured = [k for k in kept if all(own_statistics_of(stress, k))]  # severities
    count = own_statistics_of(stress, measured[0])[0]["images"] if measured else 0
    shown["repair_of"] = {"severities": measured, "images": count}
    errors, chance = calibration_errors(stress)["as trained"], errors_by_chance(stress)
    shown |= {"dots": dots, "kept_stops": stops, "calibration_error_at_5": (errors[5], chance[5])}
    shown["calibration_plot"] = draw_calibration(errors, chance, stress["corruption_images"])
    script = {"clean": [as_numbers(row) for row in clean]}
    script["dots"] = [[[as_numbers(row[name]) for name in names] for row in kept[k]] for k in kept]
    return shown, {"thresholds": script}


def kept_clean(answers: dict, edge: int) -> dict:
    """Return what a threshold keeps of all clean answers, see kept_row."""
    is_right = answers["y_pred"] == answers["y_true"]
    surer = report.probabilities_of(answers).amax(dim=1).double() > edge / BINS
    return kept_row(edge, int(surer.sum()), int((surer & is_right).sum()), len(surer))


def kept_row(edge: int, count: int, hits: int, total: int) -> dict:
    """Return what a threshold keeps and how many are right; `right`, with its interval, is None of none."""
    right = metrics.proportion(hits, count) if count else None
    return {"least": edge / BINS, "count": count, "hits": hits, "kept": count / total, "right": right}


def kept_under(stress: dict, severity: int, edge: int) -> dict[str, dict]:
    """Return what a threshold keeps under each of the fifteen corruptions, see kept_row."""
    rows, parts = {}, (("count", edge), ("right", edge), ("count", 0))
    for name in fifteen_of(stress):
        bins = stress["tests"][f"{name}/{severity}"]["calibration"]["as_trained"]
        counts = [round(sum(bins[key][first:])) for key, first in parts]
        rows[name] = kept_row(edge, *counts)
    return rows


def kept_stop(stress: dict, severity: int, edge: int, rows: dict[str, dict]) -> dict:
    """Return what is said of a severity and a threshold: the worst corruption, and what own statistics do.

    Of corruptions that keep FEWEST_KEPT answers or more `worst` is the one with the fewest right, None if
    there is none. `together` has what is kept and right of all fifteen together, of all their pictures, and
    `own` by own statistics, of fewer; None where that was not measured or nothing is kept.
    """
    enough = {name: row for name, row in rows.items() if row["count"] >= FEWEST_KEPT}
    shares = {name: picked(row["hits"], row["count"], len(enough)) for name, row in enough.items()}
    names = worst_of(shares)
    stop = {"severity": severity, "edge": edge, "least": edge / BINS, "worst": None, "own": None}
    if names:
        row = {"name": names[0], "right": shares[names[0]], "alone": len(names) == 1}
        stop["worst"] = enough[names[0]] | row
    records = [stress["tests"][test] for test in tests_of(fifteen_of(stress), [severity])]
    stop["together"] = above_threshold([row["calibration"]["as_trained"] for row in records], edge)
    own = own_statistics_of(stress, severity)
    if all(own):
        kept = above_threshold([row["calibration"] for row in own], edge)
        stop["own"] = kept if kept["right"] else None
    return stop


def worst_of_sure(stress: dict) -> dict | None:
    """Return the worst corruption of severity 5 above SHOWN_EDGE, see kept_stop."""
    return kept_stop(stress, 5, SHOWN_EDGE, kept_under(stress, 5, SHOWN_EDGE))["worst"]


def own_statistics_of(stress: dict, severity: int) -> list[dict | None]:
    """Return of each of the fifteen corruptions what own statistics do, None where that was not measured."""
    return [stress["tests"][test].get("own_statistics") for test in tests_of(fifteen_of(stress), [severity])]


def num_needed() -> int:
    """Return how many answers, all right, it takes to name a threshold, see lowest_enough."""
    return next(n for n in itertools.count(1) if picked(n, n, len(EDGES))["low"] >= KEPT)


def lowest_enough(rows: list[dict]) -> float | None:
    """Return the lowest of the thresholds whose interval's lower end reaches nine of ten right, or None."""
    shares = [picked(row["hits"], row["count"], len(rows))["low"] if row["count"] else 0 for row in rows]
    return next((row["least"] for row, low in zip(rows, shares, strict=True) if low >= KEPT), None)


def as_numbers(row: dict) -> list:
    """Return a row of what is kept for the script: how many, how many right, of all, and the interval."""
    ends = [round(row["right"][key], 4) for key in ("low", "high")] if row["right"] else []
    return [row["count"], row["hits"], round(row["kept"], 4), *ends]


def calibration_errors(stress: dict) -> dict[str, list[float]]:
    """Return the calibration errors from clean pictures to severity 5, as trained and by temperature."""
    rows = stress["summary"]["by_severity"]
    labels = {"as_trained": "as trained", "with_temperature": "temperature"}
    return {label: [row[key]["mean_ece"] for row in rows] for key, label in labels.items() if key in rows[0]}


def errors_by_chance(stress: dict) -> list[float]:
    """Return the errors that a perfectly calibrated network would show of as many pictures, as above."""
    levels = [["clean/0"], *(tests_of(fifteen_of(stress), [severity]) for severity in range(1, 6))]
    of_tests = [[error_by_chance(stress["tests"][test]) for test in tests] for tests in levels]
    return [sum(values) / len(values) for values in of_tests]


def error_by_chance(record: dict) -> float:
    """Return the calibration error by chance, see answers.calibration_error_by_chance, from bins alone.

    In each bin all answers have its mean confidence, which is nearly so: a bin is a fifteenth wide.
    """
    bins = record["calibration"]["as_trained"]
    count, right, gaps = (np.array(bins[key]) for key in ("count", "right", "gaps"))
    count = count.astype(int)
    sure = np.clip((right - gaps) / np.maximum(1, count), 0, 1)
    drawn = np.random.default_rng(0).binomial(count, sure, size=(500, len(count)))
    return float(np.abs(drawn - count * sure).sum(axis=1).mean() / count.sum())


# ---- In short ----------------------------------------------------------------------------------------------


def ending(n: dict, answers: dict, stress: dict | None) -> tuple[dict, dict]:
    """The page in short: at most five rows, of a weakness, its number, what to do and how that is known.

    They are ranked by the loss that is certain, `costs`: how far the upper end of its interval lies below
    what is right `without` it. Of a network near chance the first says that it is to be trained longer. Three
    have no rank: sure answers, that it overfits, where it does, and at the end what was not tested.
    """
    classes, people = look_first(n, answers)
    if near_chance(n):
        return {"acts": [{"kind": "train"}, *classes, {"kind": "untested"}]}, {}
    rows = [*classes, *people, *([] if stress is None else under_stress(n, answers, stress))]
    sure = [row for row in rows if row["kind"] == "threshold"]  # not of all answers, as the others are
    ranked = sorted((row for row in rows if row not in sure), key=lambda row: -row["costs"])[:MOST_ACTS]
    gap = overfitting(n)
    unranked = [*sure, *([{"kind": "overfit", "gap": gap}] if gap else [])]
    return {"acts": [*ranked, *unranked, {"kind": "untested"}]}, {}


def under_stress(n: dict, answers: dict, stress: dict) -> list[dict]:
    """Return the weaknesses that stress tests show: a corruption, a threshold under it, and an attack."""
    right = right_of_fifteen(stress, 5)
    name, *tied = worst_of(right)
    row = {"kind": "corruption", "name": name, "alone": not tied, "right": right[name]}
    row |= {"without": stress["tests"]["clean/0"]["accuracy"]["value"], "count": stress["corruption_images"]}
    rows = [row | {"repaired": repaired(stress, name)}]
    sure, clean = worst_of_sure(stress), kept_clean(answers, SHOWN_EDGE)["right"]
    if sure is not None and clean is not None:
        rows.append(sure | {"kind": "threshold", "without": clean["value"]})
    if "robust_accuracy" in stress:
        row = {"kind": "attack", "right": stress["robust_accuracy"]["1"], "count": stress["attack_images"]}
        rows.append(row | {"without": stress["tests"]["unattacked/0"]["accuracy"]["value"]})
    for row in rows:
        row["costs"] = row["without"] - row["right"]["high"]
    return [row for row in rows if row["costs"] > 0]


def look_first(n: dict, answers: dict) -> tuple[list[dict], list[dict]]:
    """Return where to look first, and the group of people that loses most, in lists of at most one row.

    The first is the group of classes or the weak slice that is shown to lose most, with the slices that are
    `alike`, of the same pictures or not to be told apart; else the pair of classes that is confused most
    often. No group or pair of it is of people, whose pictures are only counted. Groups within a point of it
    are `tied` with it.
    """
    names, people = answers["class_names"], people_among(answers["class_names"])
    groups = []
    for row in weak_groups(answers):
        row |= {"kind": "group", "without": row["rest"]["value"]}
        groups.append(row | {"costs": row["rest"]["low"] - row["right"]["high"]})
    with_people = [row for row in groups if people[row["classes"]].any()]
    of_people = [row | {"kind": "people", "worst": row is groups[0]} for row in with_people[:1]]
    groups = [row for row in groups if not people[row["classes"]].any()]
    weak, first = [row for row in n["slices"] if row["verdict"] == WEAK], [*groups]
    for worst in weak[:1]:
        names_of = {row["slice"]: slice_name(row, n["num_test"]) for row in weak}
        alike = [row["slice"] for row in weak if row["same_as"] == worst["slice"] or row["remains"] is None]
        row = {"kind": "slice", "costs": -worst["high"], "name": names_of[worst["slice"]]}
        first.append(row | {"alike": [names_of[text] for text in alike]})
    for row in n["most_confused_pairs"]:
        if not people[[names.index(row["true"]), names.index(row["predicted"])]].any():
            first.append({"kind": "pair", "costs": 0} | row)
    chosen = max(first, key=lambda row: row["costs"], default=None)
    if chosen is not None and chosen["kind"] == "group":
        value = chosen["right"]["value"]
        near = [row for row in groups if abs(row["right"]["value"] - value) < LEAST_APART]
        others = [row for row in near if row is not chosen]
        chosen = chosen | {"tied": [chosen, *others]}
    return [] if chosen is None else [chosen], [row for row in of_people if row["costs"] > 0]


def weak_groups(answers: dict) -> list[dict]:
    """Return answers.failing_groups of superclasses and of classes that share a word, by their plain names.

    A row has also how many are right, `hits` of `count`, the share `right` with an interval widened as one of
    all `candidates` was picked, and whether the name has a `link` to its mistakes.
    """
    members = {plain(name): classes for name, classes in members_of(answers).items()}
    words = {plain(name): classes for name, classes in shared_words(answers["class_names"]).items()}
    words, rows = words | members, []
    for row in failing_groups(answers["confusion"], words):
        count = int(answers["confusion"][row["classes"]].sum())
        row |= {"count": count, "hits": count - row["mistakes"], "candidates": len(words)}
        row["right"] = picked(row["hits"], count, len(words))
        rows.append(row | {"link": row["name"] in members})
    return rows


def repaired(stress: dict, name: str) -> tuple[float, float, int] | None:
    """Return what is right at severity 5 of a corruption as trained and by own statistics, and of how many.

    None where own statistics were not measured, or hardly help.
    """
    record = stress["tests"][f"{name}/5"]
    before, after = before_and_after([record]) if "own_statistics" in record else (0, 0)
    return (before, after, record["own_statistics"]["images"]) if after - before >= LEAST_GAIN else None


def overfitting(n: dict) -> tuple[float, float] | None:
    """Return training and validation accuracy of the epoch that is examined, if they lie far apart."""
    row = next((row for row in n.get("history", ()) if row["epoch"] == n["epoch"]), {})
    if row.get("train_accuracy", 0) - row.get("val_accuracy", 1) < LEAST_GAP:
        return None
    return row["train_accuracy"], row["val_accuracy"]


def near_chance(n: dict) -> bool:
    """Return whether the accuracy is nearer to guessing than a quarter of the way to all right."""
    chance = 1 / len(n["classes"])
    return n["accuracy"]["value"] < chance + 0.25 * (1 - chance)


def members_of(answers: dict) -> dict[str, list[int]]:
    """Return the classes of each superclass, by number; {} if there are none."""
    rows = enumerate(answers.get("superclass_names", ()))
    return {name: (answers["superclass_of"] == g).nonzero().flatten().tolist() for g, name in rows}

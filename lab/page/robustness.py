"""What explore.html shows of stress tests: its head, attacks, corruptions, confidence, and the page in short.

A section has a function here, as in sections.py. What is picked as the worst of several has an interval that
is widened for the picking, see picked; where intervals of others overlap with it, it is among the worst.
"""

import itertools

import torch
from torch import Tensor

import metrics
import report
from lab.answers import failing_groups, shared_words
from lab.intervals import SEVERITIES, picked, tests_of
from lab.page.figures import MAX_SHEET, SIDE, picture, sheet
from lab.pictures import may_be_drawn, people_among
from lab.slices import WEAK, slice_name
from report import plain

LARGEST_EPSILON = 8  # of the attacks that are shown; a larger one is a check
BINS, EDGES, SHOWN_EDGE = 15, range(9, 15), 12  # thresholds of confidence: 9 to 14 fifteenths, at first .80
KEPT = 0.9  # the share of right answers that somebody may want of a threshold
FEWEST_KEPT = 10  # answers above a threshold of which the worst corruption is named
LEAST_APART = 0.01  # of groups of classes, not to be tied
LEAST_GAIN = 0.05  # of own statistics, to be advised
MOST_ACTS = 5


# ---- The worst of several ----------------------------------------------------------------------------------


def worst_of(rows: dict[str, dict]) -> list[str]:
    """Return the name with the lowest value, then those whose intervals overlap with its own.

    Of equal values that of more answers comes first.
    """
    names = sorted(rows, key=lambda name: (rows[name]["value"], rows[name]["high"] - rows[name]["low"]))
    return [name for name in names if name == names[0] or rows[name]["low"] < rows[names[0]]["high"]]


def fifteen_of(stress: dict) -> list[str]:
    """Return the names of the fifteen corruptions, those of a family side by side."""
    return [*itertools.chain(*stress["families"].values())]


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
    names, examples, stops = [plain(name) for name in answers["class_names"]], stress["examples"], []
    truth = names[answers["y_true"][examples["images"][place]]]
    places = {test: k for k, test in enumerate(examples["answers"])}
    for severity, test in enumerate(["clean/0", *tests_of([name])]):
        row = {"right": n["accuracy"], "count": n["num_test"]}  # as in the heading
        if severity:
            row = {"right": right_of_fifteen(stress, severity)[name], "count": stress["corruption_images"]}
        image = stress["example_pixels"][places[test], place]
        stops.append(row | {"answer": examples["answers"][test][place], "picture": picture(image)})
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
    shown = {"name": name, "rank": rank, "true": truth, "stops": stops, "attacked": attacked}
    return {"hero": shown}, {}


def falling(answers: dict, stress: dict) -> tuple[str, int, int | None] | None:
    """Return a corruption, and the place of a picture that falls under it, also of those attacked, or None.

    It is the corruption of the fifteen with the fewest right at severity 5 that has such a picture: it is
    right when it is clean, wrong at severity 5, and no answer to it is of people. Of several one that an
    attack of 1/255 turns goes first, then the one that is answered most surely. None if there is none.
    """
    if "examples" not in stress:
        return None
    index, given = (stress["examples"][key] for key in ("images", "answers"))
    right, true, aimed, attacked = right_of_fifteen(stress, 5), answers["y_true"][index], {}, []
    if "attack_examples" in stress:  # where an answer is of people it is not shown
        attacked, people = stress["attack_examples"]["images"], people_among(answers["class_names"])
        of_attack = zip(attacked, stress["attack_examples"]["answers"]["pgd"]["1"], strict=True)
        aimed = {i: c for i, (c, _) in of_attack if not people[c]}
    turned = {i for i, c in aimed.items() if c != answers["y_true"][i]}
    for name in sorted(right, key=lambda name: right[name]["value"]):
        rows = torch.tensor([given[test] for test in ["clean/0", *tests_of([name])]])
        classes = rows[:, :, 0].long()
        fits = may_be_drawn(answers, torch.tensor(index), classes)
        fits &= (classes[0] == true) & (classes[-1] != true)
        places = fits.nonzero().flatten().tolist()
        if places:
            rank = {k: (index[k] in turned, index[k] in aimed, rows[0, k, 1].item()) for k in places}
            place = max(places, key=rank.get)
            return name, place, attacked.index(index[place]) if index[place] in aimed else None
    return None


# ---- Attacks and corruptions -------------------------------------------------------------------------------


def attacks(n: dict, answers: dict, stress: dict | None) -> tuple[dict, dict]:
    """The `epsilons` that are shown, and a sheet for the viewer.

    The sheet has the pictures, then of each attack and epsilon the change and the result. The change is
    enlarged around grey, so that epsilon is 100 levels; of large images the middle is shown.
    """
    if stress is None or "robust_accuracy" not in stress:
        return {}, {}
    epsilons = [epsilon for epsilon in stress["epsilons"] if epsilon <= LARGEST_EPSILON]
    shown = {"epsilons": epsilons, "attack_cropped": (n["data"].get("size") or 0) > SIDE}
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
    return shown, {"attacks": {"true": true, "answers": given, "epsilons": epsilons}}


def corruptions(answers: dict, stress: dict | None) -> tuple[dict, dict]:
    """Accuracies of each corruption, the hardest first, and of families, and a sheet for the viewer.

    Which of the fifteen leaves the fewest right is another one for each question: `least` over all severities
    and at severity 5, and of `sure` answers there.
    """
    if stress is None:
        return {}, {}
    tests = stress["tests"]
    right = {test: row["accuracy"]["value"] for test, row in tests.items()}
    rows, of_family = [], {}
    for name in [test[:-2] for test in tests if test.endswith("/5")]:
        values = [right[test] for test in tests_of([name])]
        values.append(sum(values) / 5)
        rows.append({"name": name, "values": values, "repaired": before_and_after(stress, [f"{name}/5"])})
    means = {row["name"]: row["values"][-1] for row in rows}
    for family, names in stress["families"].items():
        of_family[family] = sum(means[name] for name in names) / len(names)
    shown = {"corruption_rows": sorted(rows, key=lambda row: row["values"][-1])}
    shown["families"] = sorted(of_family.items(), key=lambda item: item[1])
    fifteen = [row for row in rows if row["name"] in fifteen_of(stress)]
    shown["least"] = [min(fifteen, key=lambda row: row["values"][place]) for place in (-1, 4)]
    shown |= {"sure": worst_of_sure(stress), "has_superclasses": "superclass_of" in answers}
    if "own_statistics" in tests["clean/0"]:
        hard = before_and_after(stress, tests_of(fifteen_of(stress), [5]))
        shown["repair"] = {"hard": hard, "clean": before_and_after(stress, ["clean/0"])}
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
    shown["corrupted_true"] = [plain(answers["class_names"][c]) for c in true.tolist()]
    shown["corrupted_right"] = bool((answers["y_pred"][index] == true).all())
    script = {"true": true.tolist(), "answers": given, "right": {test: right[test] for test in given}}
    return shown, {"corruptions": script}


def kept_examples(answers: dict, index: Tensor, given: list[list]) -> list[int]:
    """Return the places of those test images, int64 [n], that no test takes for people.

    given: the answers of each test, [[class, probability], ...].
    """
    classes = torch.tensor(given)[:, :, 0].long()  # [tests, n]
    return may_be_drawn(answers, index, classes).nonzero().flatten().tolist()


def before_and_after(stress: dict, tests: list[str]) -> tuple[float, float] | None:
    """Return the mean accuracy of tests as trained and by own statistics, of the same pictures.

    None where own statistics were not measured.
    """
    own = [stress["tests"][test].get("own_statistics") for test in tests]
    if not all(own):
        return None
    parts = [row["plain"] for row in own], own
    return tuple(sum(row["accuracy"]["value"] for row in rows) / len(rows) for rows in parts)


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
    shown = {"clean_kept": clean[EDGES.index(SHOWN_EDGE)], "clean_enough": lowest_enough(clean)}
    shown |= {"shown_edge": SHOWN_EDGE, "num_needed": num_needed()}
    shown["threshold_steps"] = [edge / BINS for edge in EDGES]
    if stress is None:
        return shown, {}
    kept, stops, enough = {}, [], {}
    for severity in SEVERITIES:
        kept[severity] = [kept_under(stress, severity, edge) for edge in EDGES]
        for edge, rows, of_clean in zip(EDGES, kept[severity], clean, strict=True):
            here = (severity, edge) == (5, SHOWN_EDGE)
            stops.append(kept_stop(stress, severity, edge, rows) | {"clean": of_clean, "here": here})
        enough[severity] = []
        for name in fifteen_of(stress):
            steps = [rows[name] for rows in kept[severity]]
            few = steps[0]["count"] < num_needed()
            enough[severity].append({"name": name, "least": lowest_enough(steps), "too_few": few})
    dots = [{"name": name} | row for name, row in kept[5][EDGES.index(SHOWN_EDGE)].items()]
    dots.sort(key=lambda row: row["right"]["value"] if row["right"] else 2)
    worst, names = worst_of_sure(stress), [row["name"] for row in dots]
    shown["strictest"] = kept[5][-1][worst["name"]] if worst else None
    shown |= {"dots": dots, "kept_stops": stops, "enough": enough}
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
    tests = {name: stress["tests"][f"{name}/{severity}"] for name in fifteen_of(stress)}
    return {name: kept_of([row["calibration"]["as_trained"]], edge) for name, row in tests.items()}


def kept_of(bins: list[dict], edge: int) -> dict:
    """Return what a threshold keeps of several tests together, see kept_row; bins: see lab.stress.measure."""
    sums = ("count", edge), ("right", edge), ("count", 0)
    count, hits, total = (round(sum(sum(of[key][first:]) for of in bins)) for key, first in sums)
    return kept_row(edge, count, hits, total)


def worst_kept(rows: dict[str, dict]) -> dict | None:
    """Return of corruptions that keep FEWEST_KEPT answers or more the one with the fewest right, or None.

    rows: see kept_under; `alone` says whether the interval of no other overlaps with its own.
    """
    enough = {name: row for name, row in rows.items() if row["count"] >= FEWEST_KEPT}
    shares = {name: picked(row["hits"], row["count"], len(enough)) for name, row in enough.items()}
    if not shares:
        return None
    name, *tied = worst_of(shares)
    return enough[name] | {"name": name, "right": shares[name], "alone": not tied}


def kept_stop(stress: dict, severity: int, edge: int, rows: dict[str, dict]) -> dict:
    """Return what is said of a severity and a threshold: the `worst` corruption, see worst_kept, and more.

    `together` has what is kept and right of all fifteen together, of all their pictures, and `own` by own
    statistics, of fewer; None where that was not measured.
    """
    stop = {"severity": severity, "edge": edge, "least": edge / BINS, "worst": worst_kept(rows)}
    records = [stress["tests"][test] for test in tests_of(fifteen_of(stress), [severity])]
    stop["together"] = kept_of([row["calibration"]["as_trained"] for row in records], edge)
    own = [row.get("own_statistics") for row in records]
    stop["own"] = kept_of([row["calibration"] for row in own], edge) if all(own) else None
    return stop


def worst_of_sure(stress: dict) -> dict | None:
    """Return the worst corruption of severity 5 above SHOWN_EDGE, see worst_kept."""
    return worst_kept(kept_under(stress, 5, SHOWN_EDGE))


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


# ---- In short ----------------------------------------------------------------------------------------------


def ending(n: dict, answers: dict, stress: dict | None) -> tuple[dict, dict]:
    """The page in short: at most five rows, of a weakness, its number, what to do and how that is known.

    They are ranked by the loss that is certain, `costs`: how far the upper end of its interval lies below
    what is right `without` it. Of a network near chance the first says that it is to be trained longer. Two
    have no rank: sure answers, and at the end what was not tested.
    """
    classes, people = look_first(n, answers)
    if near_chance(n):
        return {"acts": [{"kind": "train"}, *classes, {"kind": "untested"}]}, {}
    rows = [*classes, *people, *([] if stress is None else under_stress(answers, stress))]
    sure = [row for row in rows if row["kind"] == "threshold"]  # not of all answers, as the others are
    ranked = sorted((row for row in rows if row not in sure), key=lambda row: -row["costs"])[:MOST_ACTS]
    return {"acts": [*ranked, *sure, {"kind": "untested"}]}, {}


def under_stress(answers: dict, stress: dict) -> list[dict]:
    """Return the weaknesses that stress tests show: a corruption, a threshold under it, and an attack."""
    right = right_of_fifteen(stress, 5)
    name, *tied = worst_of(right)
    row = {"kind": "corruption", "name": name, "alone": not tied, "right": right[name]}
    row |= {"without": stress["tests"]["clean/0"]["accuracy"]["value"], "count": stress["corruption_images"]}
    before, after = before_and_after(stress, [f"{name}/5"]) or (0, 0)
    if after - before >= LEAST_GAIN:
        images = stress["tests"][f"{name}/5"]["own_statistics"]["images"]
        row["repaired"] = before, after, images
    rows = [row]
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
    groups = weak_groups(answers)
    for row in groups:
        row |= {"kind": "group", "without": row["rest"]["value"]}
        row["costs"] = row["rest"]["low"] - row["right"]["high"]
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
        chosen = chosen | {"tied": sorted(near, key=lambda row: row is not chosen)}
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


def near_chance(n: dict) -> bool:
    """Return whether the accuracy is nearer to guessing than a quarter of the way to all right."""
    chance = 1 / len(n["classes"])
    return n["accuracy"]["value"] < chance + 0.25 * (1 - chance)


def members_of(answers: dict) -> dict[str, list[int]]:
    """Return the classes of each superclass, by number; {} if there are none."""
    rows = enumerate(answers.get("superclass_names", ()))
    return {name: (answers["superclass_of"] == g).nonzero().flatten().tolist() for g, name in rows}

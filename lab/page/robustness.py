"""What explore.html shows of stress tests: its head, attacks and corruptions; see also confidence.py.

A section has a function here, as in sections.py. What is picked as the worst of several has an interval that
is widened for the picking, see picked; where intervals of others overlap with it, it is among the worst.
"""

import torch
from torch import Tensor

from lab.page.figures import MAX_SHEET, SIDE, picture, sheet
from lab.pictures import may_be_drawn, people_among
from lab.stressed import before_and_after, corruptions_of, fifteen_of, right_of_fifteen, tests_of, worst_of
from report import plain

# ---- The head ----------------------------------------------------------------------------------------------


def hero(n: dict, arrays: dict, stress: dict | None) -> tuple[dict, dict]:
    """One picture from clean over the five severities of a corruption to an attack of one level of 255.

    Of each of the `stops`: the picture, the class and the probability of its answer, and how many of all
    pictures are `right` there, of `count`. None where no picture falls, see falling.
    """
    chosen = None if stress is None else falling(arrays, stress)
    if chosen is None:
        return {"hero": None}, {}
    name, place, attacked = chosen
    names, examples, stops = [plain(name) for name in arrays["class_names"]], stress["examples"], []
    truth = names[arrays["y_true"][examples["images"][place]]]
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


def falling(arrays: dict, stress: dict) -> tuple[str, int, int | None] | None:
    """Return a corruption, and the place of a picture that falls under it, also of those attacked, or None.

    It is the corruption of the fifteen with the fewest right at severity 5 that has such a picture: it is
    right when it is clean, wrong at severity 5, and no answer to it is of people. Of several one that an
    attack of 1/255 turns goes first, then the one that is answered most surely. None if there is none.
    """
    if "examples" not in stress:
        return None
    index, answers = (stress["examples"][key] for key in ("images", "answers"))
    right, true, aimed, attacked = right_of_fifteen(stress, 5), arrays["y_true"][index], {}, []
    if "attack_examples" in stress:  # where an answer is of people it is not shown
        attacked, people = stress["attack_examples"]["images"], people_among(arrays["class_names"])
        of_attack = zip(attacked, stress["attack_examples"]["answers"]["pgd"]["1"], strict=True)
        aimed = {i: c for i, (c, _) in of_attack if not people[c]}
    turned = {i for i, c in aimed.items() if c != arrays["y_true"][i]}
    for name in sorted(right, key=lambda name: right[name]["value"]):
        rows = torch.tensor([answers[test] for test in ["clean/0", *tests_of([name])]])
        classes = rows[:, :, 0].long()
        fits = may_be_drawn(arrays, torch.tensor(index), classes)
        fits &= (classes[0] == true) & (classes[-1] != true)
        places = fits.nonzero().flatten().tolist()
        if places:
            rank = {k: (index[k] in turned, index[k] in aimed, rows[0, k, 1].item()) for k in places}
            place = max(places, key=rank.get)
            return name, place, attacked.index(index[place]) if index[place] in aimed else None
    return None


# ---- Attacks and corruptions -------------------------------------------------------------------------------


def attacks(n: dict, arrays: dict, stress: dict | None) -> tuple[dict, dict]:
    """The `epsilons` that are shown, and a sheet for the viewer.

    The sheet has the pictures, then of each attack and epsilon the change and the result. The change is
    enlarged around grey, so that epsilon is 100 levels; of large images the middle is shown.
    """
    if stress is None or "robust_accuracy" not in stress:
        return {}, {}
    epsilons = stress["epsilons"][:-1]  # the last is a check
    shown = {"epsilons": epsilons, "attack_cropped": (n["data"].get("size") or 0) > SIDE}
    if "attack_examples" not in stress:  # all right answers are of people
        return shown, {}
    index, tests = torch.tensor(stress["attack_examples"]["images"]), stress["attack_examples"]["answers"]
    kept, answers = kept_examples(arrays, index, [*tests["pgd"].values(), *tests["random"].values()]), {}
    if not kept:
        return shown, {}
    for name, of_epsilon in tests.items():
        answers[name] = {key: [rows[k] for k in kept] for key, rows in of_epsilon.items()}
    pixels, true = stress["attack_pixels"][kept], arrays["y_true"][index[kept]].tolist()
    parts = [pixels]
    for of_attack in stress["attack_changes"][:, :, kept]:
        for epsilon, changes in zip(epsilons, of_attack, strict=True):
            change = changes / 127  # of epsilon
            parts.append((128 + 100 * change).to(torch.uint8))
            parts.append((pixels + epsilon * change).clamp(0, 255).round().to(torch.uint8))
    shown["attack_sheet"] = sheet(torch.cat(parts), MAX_SHEET // 3, len(pixels))
    shown["attacked_answers"] = answers
    shown["attacked_true"] = [plain(arrays["class_names"][c]) for c in true]
    return shown, {"attacks": {"true": true, "answers": answers, "epsilons": epsilons}}


def corruptions(arrays: dict, stress: dict | None) -> tuple[dict, dict]:
    """Accuracies of each corruption, the hardest at severity 5 first, and a sheet for the viewer.

    `ends` are those of the fifteen with the fewest and with the most right at severity 5.
    """
    if stress is None:
        return {}, {}
    tests = stress["tests"]
    right = {test: row["accuracy"]["value"] for test, row in tests.items()}
    rows = []
    for name in corruptions_of(stress):
        values = [right[test] for test in tests_of([name])]
        values.append(sum(values) / 5)
        rows.append({"name": name, "values": values, "repaired": before_and_after(stress, [f"{name}/5"])})
    rows.sort(key=lambda row: row["values"][4])
    fifteen = [row for row in rows if row["name"] in fifteen_of(stress)]
    shown = {"corruption_rows": rows, "ends": (fifteen[0], fifteen[-1])}
    shown["has_superclasses"] = "superclass_of" in arrays
    if "own_statistics" in tests["clean/0"]:
        hard = before_and_after(stress, tests_of(fifteen_of(stress), [5]))
        shown["repair"] = {"hard": hard, "clean": before_and_after(stress, ["clean/0"])}
        shown["repair_images"] = tests["clean/0"]["own_statistics"]["images"]
    shown["grey"] = right.get("grey/0")
    if "examples" not in stress:
        return shown, {}
    index, examples = torch.tensor(stress["examples"]["images"]), stress["examples"]["answers"]
    kept = kept_examples(arrays, index, [*examples.values()])
    if not kept:
        return shown, {}
    kept = kept[: len(kept) // 4 * 4 or None]  # whole rows
    answers = {test: [pairs[k] for k in kept] for test, pairs in examples.items()}
    index, pixels = index[kept], stress["example_pixels"][:, kept]
    shown["corrupted_answers"], true = answers, arrays["y_true"][index]
    shown["corruption_sheet"] = sheet(pixels.flatten(0, 1), columns=len(index))
    shown["corrupted_true"] = [plain(arrays["class_names"][c]) for c in true.tolist()]
    shown["corrupted_right"] = bool((arrays["y_pred"][index] == true).all())
    script = {"true": true.tolist(), "answers": answers, "right": {test: right[test] for test in answers}}
    return shown, {"corruptions": script}


def kept_examples(arrays: dict, index: Tensor, answers: list[list]) -> list[int]:
    """Return the places of those test images, int64 [n], that no test takes for people.

    answers: the answers of each test, [[class, probability], ...].
    """
    classes = torch.tensor(answers)[:, :, 0].long()  # [tests, n]
    return may_be_drawn(arrays, index, classes).nonzero().flatten().tolist()

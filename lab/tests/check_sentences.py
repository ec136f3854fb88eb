"""What explore.html has to say in sentences that have numbers, by the files of its folder, at each stop.

Nothing of the page's own code is used: the numbers come from metrics.json, predictions.npz, reasons.json,
evidence.npz and stress.json, and the page is read as text.
"""

import itertools
import json
import math
from statistics import NormalDist

import numpy as np
import torch
from lab_pages import text_of


def wilson(hits, count, candidates=1):
    z = NormalDist().inv_cdf(1 - 0.05 / 2 / candidates)
    q, t = hits / count, z * z / count
    reach = np.sqrt(q * (1 - q) * t + t * t / 4)
    return (q + t / 2 - reach) / (1 + t), (q + t / 2 + reach) / (1 + t)


def whole(share):
    text = f"{100 * share:.0f}"
    return f"{100 * share:.1f}" if text in ("0", "100") and share not in (0, 1) else text


def pooled(bins, edge):
    """Which percents of the kept answers are right, and of all answers are kept; None of none."""
    hits, kept = (sum(sum(row[key][edge:]) for row in bins) for key in ("right", "count"))
    return (whole(hits / kept), whole(kept / sum(sum(row["count"]) for row in bins))) if kept else None


def edge_of(edge):
    """A threshold, one of fifteen parts, as it is: 93.3 for 14."""
    return f"{round(1000 * edge / 15) / 10:g}"


def enough(bins):
    """What is said of thresholds for nine of ten at severity 5, where one is certain."""
    lowest = {}
    for name, row in bins.items():
        for edge in range(14, 8, -1):
            hits, count = (round(sum(row[key][edge:])) for key in ("right", "count"))
            if count and wilson(hits, count, 6)[0] >= 0.9:
                lowest[name] = edge
    if not lowest:
        return "At severity 5 no threshold up to 93.3 % is certain under any of"
    alike = len(set(lowest.values())) == 1
    ends = [edge_of(edge(lowest.values())) for edge in (min, max)]
    text = f"the threshold that is enough lies between {ends[0]} % and {ends[1]} % under"
    text = f"At severity 5, {f'above {ends[0]} % is enough under' if alike else text}"
    names = [name.replace("_", " ") for name in lowest]
    text += f" {names[0] if len(names) == 1 else f'{len(names)} of the fifteen'}"
    rest = f"; under the other {15 - len(names)} no threshold up to 93.3 % is certain."
    return text.replace("15 of the", "all") + (rest if len(names) < 15 else ".")


def second_look(look, sure, right):
    """The second look: its draw and what confidence removes anew, what the mirror image adds of the file."""
    drawn = torch.randperm(len(sure), generator=torch.Generator().manual_seed(3))[: look["images"]].numpy()
    wrong, count = ~right[drawn], round(0.2 * len(drawn))
    removed = wrong[np.argsort(sure[drawn], kind="stable")[:count]].sum() / wrong.sum()
    mirror, gain = look["mirror"]["value"], look["difference"]
    low, value, high = (f"{100 * gain[key]:+.1f}".replace("-", "−") for key in ("low", "value", "high"))
    assert abs(mirror - look["confidence"]["value"] - gain["value"]) < 1e-9
    verdict = "is not shown to find more" if gain["low"] <= 0 <= gain["high"] else "finds fewer"
    if gain["low"] > 0:
        verdict = "finds a few more" if gain["value"] < 0.1 else "finds more"
    text = f"A second look {verdict} mistakes than confidence. Of {len(drawn):,} clean pictures with "
    text += f"{wrong.sum():,} mistakes, the least sure 20 % are rejected. By confidence that removes "
    text += f"{100 * removed:.1f} % of the mistakes, by the mean probability of picture and mirror image "
    return text + f"{100 * mirror:.1f} %: {value} ({low} to {high}) points."


def signed(*shares):
    value, low, high = (f"{100 * share:+.1f}".replace("-", "\N{MINUS SIGN}") for share in shares)
    return f"{value} ({low} to {high})"


def of_slices(rows, count, wrong):
    """How many are judged and weak, and each weak row; of the first, what it holds."""
    distinct = [row for row in rows if not row["same_as"]]
    judged, weak = (
        [row for row in distinct if test(row)] for test in (lambda r: r["low"] is not None, is_weak)
    )
    absent = len(distinct) - len(judged)
    if absent and judged:
        yield f"{absent} cannot be judged."
    if not rows:  # the page has no such section
        return
    if not weak:
        yield "no weakness is shown" if absent else f"None of {len(judged)} slices is shown to be weak."
    for row in weak:
        shares = f"{whole(row['here'])} % {whole(row['others'])} %"
        yield f"{shares} {signed(row['gap'], row['low'], row['high'])}"
    yield f"has all {len(rows)}."


def is_weak(row):
    return row["high"] is not None and row["high"] < 0


def of_repair(tests, names):
    """What own statistics repair at severity 5, over all fifteen and of each corruption."""
    own = {name: tests[f"{name}/5"].get("own_statistics") for name in names}
    if all(own.values()):
        shares = [(row["plain"]["accuracy"]["value"], row["accuracy"]["value"]) for row in own.values()]
        before, after = np.mean(shares, axis=0)
        yield f"Over all fifteen {whole(before)} % become {whole(after)} %"
        clean = tests["clean/0"]["own_statistics"]
        before, after = clean["plain"]["accuracy"]["value"], clean["accuracy"]["value"]
        yield f"clean, {whole(before)} % become {whole(after)} %"
        yield from (f"{100 * before:.0f} → {100 * after:.0f}" for before, after in shares)


def expected(folder):
    """Yield what the page has to say, sentence by sentence."""
    n, reasons = (json.loads((folder / name).read_text("utf-8")) for name in ("metrics.json", "reasons.json"))
    arrays = np.load(folder / "predictions.npz")
    y_true, y_pred, logits = arrays["y_true"], arrays["logits"].argmax(axis=1), arrays["logits"].astype(float)
    shares = np.exp(logits - logits.max(axis=1, keepdims=True))
    sure, right = (shares / shares.sum(axis=1, keepdims=True)).max(axis=1), y_true == y_pred
    wrong = int((~right).sum())
    if n.get("errors_within_superclass") is not None and wrong >= 50:
        groups = arrays["superclass_of"]
        stay = (groups[y_true] == groups[y_pred])[~right].mean()
        yield f"{whole(stay)} % of the mistakes stay in the"
    yield f"{wrong:,} of {len(right):,} pictures get a wrong answer."
    clean = {k: (int(right[sure > k / 15].sum()), int((sure > k / 15).sum())) for k in range(9, 15)}
    hits, total = clean[12]
    share = f"{whole(hits / total)} %" if total >= 50 and hits < total else f"{hits:,} of {total:,}"
    yield f"Above 80 %, {share} of the clean answers are right"
    lows = [wilson(*clean[k], 6)[0] if clean[k][1] else 0 for k in range(9, 15)]
    enough_of = [k for k, low in zip(range(9, 15), lows, strict=True) if low >= 0.9]
    first = f"an answer above {edge_of(min(enough_of))} % is enough." if enough_of else "no threshold"
    yield f"On clean pictures {'no threshold is needed.' if n['accuracy']['low'] >= 0.9 else first}"
    yield from of_slices(reasons["slices"], len(right), wrong)
    if (folder / "stress.json").is_file():
        stress = json.loads((folder / "stress.json").read_text("utf-8"))
        yield from of_corruptions(n, stress)
        yield from (of_threshold(stress, edge, clean[edge]) for edge in range(9, 15))
    if "covering" not in reasons:  # of answers alone, or by --quick
        return
    yield second_look(reasons["second_look"], sure, right)
    covering = reasons["covering"]
    ways = {"usual": "what the map marks", "centre": "the bare centre", "random": "cells drawn by chance"}
    kinds = ("right", "changed"), ("mistakes", "to_truth")
    for (kind, key), (name, words) in itertools.product(kinds, ways.items()):
        yield f"{words} {whole(covering[kind][name][key]['value'])} % ("


def of_corruptions(n, stress):
    """What is right under corruptions and attacks, which cost most and least, and thresholds for 90 %."""
    names = [name for members in stress["families"].values() for name in members]
    base = min(100, n["num_test"])  # counts are not scaled up
    yield f"{n['accuracy']['value'] * base:.0f} of {base} such pictures are right"
    for name, row in stress.get("unknown", {}).items():
        ends = f"{whole(row['sure']['value'])} % ({whole(row['sure']['low'])}–{whole(row['sure']['high'])})"
        yield f"{ends} of {row['images']:,} {'pictures of ' * (name != 'shapes')}{name}"
        value, low, high = (f"{100 * row['auroc'][key]:.0f}" for key in ("value", "low", "high"))
        yield f"{value} % ({low}–{high})"
    values = {test: record["accuracy"]["value"] for test, record in stress["tests"].items()}
    fifteen = np.mean([values[f"{name}/{k}"] for name in names for k in range(1, 6)])
    yield f"Under fifteen corruptions {whole(fifteen)} % are right on average."
    first, last = (end(names, key=lambda name: values[f"{name}/5"]) for end in (min, max))
    text = f"At severity 5 {first} leaves the fewest right, {whole(values[f'{first}/5'])} %, and {last}"
    yield f"{text} the most, {whole(values[f'{last}/5'])} %.".replace("_", " ")
    yield from of_repair(stress["tests"], names)
    robust = stress["robust_accuracy"]["1"]["value"]
    yield f"to mislead: {whole(robust)} % are right, not {whole(values['unattacked/0'])} %."
    needed = math.ceil(9 * NormalDist().inv_cdf(1 - 0.05 / 2 / 6) ** 2)  # n of n right: n / (n + z^2)
    if stress["corruption_images"] < needed:
        count = stress["corruption_images"]
        yield f"too few answers of {count} are kept to say: it takes {needed}, all right."
    yield enough({name: stress["tests"][f"{name}/5"]["calibration"]["as_trained"] for name in names})


def of_threshold(stress, edge, clean):
    """What is right above a threshold: clean, under the worst of severity 5, under all fifteen, repaired."""
    names = [name for members in stress["families"].values() for name in members]
    rows = {name: stress["tests"][f"{name}/5"] for name in names}
    worst = min(names, key=lambda name: rows[name]["accuracy"]["value"])
    bins = rows[worst]["calibration"]["as_trained"]
    hits, total = (round(sum(bins[key][edge:])) for key in ("right", "count"))
    text = f"Above {edge_of(edge)} %, {clean[0]:,} of {clean[1]:,} clean answers are right. "
    text += f"Under {worst.replace('_', ' ')} of severity 5, "
    if total:
        ends = wilson(hits, total, 15)
        text += f"it is {hits:,} of {total:,} ({whole(max(0, ends[0]))}–{whole(min(1, ends[1]))} %)."
    else:
        text += "no answer is that sure."
    if together := pooled([row["calibration"]["as_trained"] for row in rows.values()], edge):
        text += f" Over all fifteen, {together[1]} % of the answers are kept,"
        text += f" and {together[0]} % of these are right."
    if "own_statistics" in rows[names[0]]:
        own = [row["own_statistics"] for row in rows.values()]
        after = pooled([row["calibration"] for row in own], edge)
        text += f" The repair by own statistics ({own[0]['images']:,} pictures a corruption)"
        text += f" keeps {after[1]} %, and {after[0]} % of these are right."
    return text


def check(folder):
    """Return the sentences that the page of a folder lacks, and how many there are."""
    words = text_of((folder / "explore.html").read_text("utf-8"))
    sentences = list(expected(folder))
    for old, new in {"jpeg": "JPEG", "gaussian": "Gaussian"}.items():
        sentences = [text.replace(f" {old} ", f" {new} ") for text in sentences]
    return [text for text in sentences if text not in words], len(sentences)

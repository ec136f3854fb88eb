"""The section on confidence: what a threshold keeps, on clean pictures and under corruptions."""

import itertools

import metrics
import report
from lab.intervals import picked
from lab.stressed import BINS, SHOWN_EDGE, fifteen_of, right_of_fifteen, tests_of, worst_of

EDGES = range(9, 15)  # thresholds of confidence, in fifteenths
KEPT = 0.9  # the share of right answers that somebody may want of a threshold


def confidence(n: dict, arrays: dict, stress: dict | None) -> tuple[dict, dict]:
    """How sure the network is, and how many answers are right above a threshold of confidence.

    `clean_kept` are clean answers, of all test pictures, above SHOWN_EDGE, and `dots` the fifteen corruptions
    at severity 5, the fewest right first: none is left out, however few of its answers are kept. `kept_stops`
    has what is said of each step of the slider; the script knows the dots of all of them. `strictest` is what
    the last step keeps under the worst corruption, and `enough` has for each the lowest threshold that is
    shown to suffice.
    """
    clean = [kept_clean(arrays, edge) for edge in EDGES]
    shown = {"clean_kept": clean[EDGES.index(SHOWN_EDGE)], "clean_enough": lowest_enough(clean)}
    shown |= {"shown_edge": SHOWN_EDGE, "num_needed": num_needed()}
    shown |= {"threshold_steps": [edge / BINS for edge in EDGES], "clean_steps": clean}
    if stress is None:
        return shown, {}
    kept, stops, enough = [kept_under(stress, edge) for edge in EDGES], [], []
    for edge, rows, of_clean in zip(EDGES, kept, clean, strict=True):
        stops.append(kept_stop(stress, edge, rows) | {"clean": of_clean, "here": edge == SHOWN_EDGE})
    for name in fifteen_of(stress):
        steps = [rows[name] for rows in kept]
        few = steps[0]["count"] < num_needed()
        enough.append({"name": name, "least": lowest_enough(steps), "too_few": few})
    dots = [{"name": name} | row for name, row in kept[EDGES.index(SHOWN_EDGE)].items()]
    dots.sort(key=lambda row: row["right"]["value"] if row["right"] else 2)
    names = [row["name"] for row in dots]
    shown |= {"dots": dots, "kept_stops": stops, "enough": enough, "strictest": stops[-1]["worst"]}
    script = {"clean": [as_numbers(row) for row in clean]}
    script["dots"] = [[as_numbers(rows[name]) for name in names] for rows in kept]
    return shown, {"thresholds": script}


def kept_clean(arrays: dict, edge: int) -> dict:
    """Return what a threshold keeps of all clean answers, see kept_row."""
    is_right = arrays["y_pred"] == arrays["y_true"]
    surer = report.probabilities_of(arrays).amax(dim=1).double() > edge / BINS
    return kept_row(edge, int(surer.sum()), int((surer & is_right).sum()), len(surer))


def kept_row(edge: int, count: int, hits: int, total: int) -> dict:
    """Return what a threshold keeps and how many are right; `right`, with its interval, is None of none."""
    right = metrics.proportion(hits, count) if count else None
    return {"least": edge / BINS, "count": count, "hits": hits, "kept": count / total, "right": right}


def kept_under(stress: dict, edge: int) -> dict[str, dict]:
    """Return what a threshold keeps under each of the fifteen corruptions at severity 5, see kept_row."""
    tests = {name: stress["tests"][f"{name}/5"] for name in fifteen_of(stress)}
    return {name: kept_of([row["calibration"]["as_trained"]], edge) for name, row in tests.items()}


def kept_of(bins: list[dict], edge: int) -> dict:
    """Return what a threshold keeps of several tests together, see kept_row; bins: see lab.stress.measure."""
    sums = ("count", edge), ("right", edge), ("count", 0)
    count, hits, total = (round(sum(sum(of[key][first:]) for of in bins)) for key, first in sums)
    return kept_row(edge, count, hits, total)


def kept_under_worst(stress: dict, rows: dict[str, dict]) -> dict:
    """Return of the rows of kept_under that of the corruption with the fewest right of all its answers.

    Its interval is widened, as it was picked among fifteen.
    """
    name = worst_of(right_of_fifteen(stress, 5))[0]
    row = rows[name]
    share = picked(row["hits"], row["count"], len(rows)) if row["count"] else None
    return row | {"name": name, "right": share}


def kept_stop(stress: dict, edge: int, rows: dict[str, dict]) -> dict:
    """Return what is said of a threshold at severity 5: under the `worst` corruption, see kept_under_worst.

    rows: see kept_under. `together` has what is kept and right of all fifteen together, of all their
    pictures, and `own` by own statistics, of fewer; None where that was not measured.
    """
    stop = {"least": edge / BINS, "worst": kept_under_worst(stress, rows)}
    records = [stress["tests"][test] for test in tests_of(fifteen_of(stress), [5])]
    stop["together"] = kept_of([row["calibration"]["as_trained"] for row in records], edge)
    own = [row.get("own_statistics") for row in records]
    stop["own"] = kept_of([row["calibration"] for row in own], edge) if all(own) else None
    return stop


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

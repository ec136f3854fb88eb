"""The sections of the report, in their order: each is given what it shows and returns its claim and content.

What is not known is None, and what would say it is left out. `test` is the test split, a data.Dataset;
`accuracy`, `classes`, `pairs` and the like are parts of metrics.json. Nothing is measured here: a sentence is
chosen by the numbers that it says.
"""

import math
import shlex
from pathlib import Path
from urllib.parse import urlencode

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from data import MEAN
from gradcam import overlay
from page import against, plots
from page.browser import (
    MAX_SHEET,
    attack_viewer,
    confidence_counts,
    corruption_viewer,
    mistakes_data,
    nearest_sheet,
    scaled_maps,
    sheet,
    temperature_data,
    viewer_data,
)
from page.page import (
    Markup,
    Section,
    fill,
    filter_link,
    listed,
    p_value,
    percent,
    picture,
    plain,
    png,
    show,
    table,
    write_page,
)
from running.console import duration, option
from running.device import environment
from stress_tests.attacks import APGD_EPSILONS
from stress_tests.corruptions import CORRUPTIONS
from stress_tests.explanations import cover

HEADLINE = {
    "accuracy": "accuracy",
    "macro_precision": "macro precision",
    "macro_recall": "macro recall",
    "macro_f1": "macro F1",
    "top5_accuracy": "top-5 accuracy",
}
DATA_SETS = {"cifar100": "CIFAR-100", "cifar10": "CIFAR-10", "shapes": "coloured shapes"}
CONTROLS = {
    "random": "random maps",
    "centre": "the centre",
    "other_image": "another image's map",
    "activation": "activation strength",
}
BETTER = {"deletion": -1, "insertion": 1}  # the sign of a difference in favour of Grad-CAM
NUM_BESIDE = 5  # mistakes beside the one that is dissected


# ---- Words for numbers -----------------------------------------------------------------------------------


def side(mean_confidence: float, accuracy: dict) -> str:
    """Name the side of the accuracy on which the mean confidence is, if it is outside of the interval."""
    if accuracy["low"] <= mean_confidence <= accuracy["high"]:
        return "neither clearly overconfident nor clearly underconfident"
    return "overconfident" if mean_confidence > accuracy["value"] else "underconfident"


def are(count: int) -> str:
    """Return the verb for so many."""
    return "is" if count == 1 else "are"


def all_runs(count: int) -> str:
    """Name all of so many runs."""
    return "both runs" if count == 2 else f"all {count} runs"


def named(row: dict) -> str:
    """Return a class or superclass and its recall as "maple tree (44 %)"."""
    return f"{plain(row['name'])} ({percent(row['recall'], 0)})"


def spread(row: dict) -> str:
    """Return a mean and its range over the seeds as "0.02 (-0.04 to 0.07)"."""
    if row["value"] is None:
        return "–"
    value, low, high = (f"{round(row[key], 2) + 0.0:.2f}" for key in ("value", "low", "high"))  # no -0.00
    return f"{value} ({low} to {high})"


# ---- The head and one mistake ----------------------------------------------------------------------------


def headline(network, test, numbers: dict) -> Markup:
    """What is examined, a network.Network, and how often it is right; numbers is metrics.json."""
    return fill(
        "headline",
        **numbers,
        data_set=DATA_SETS.get(test.name, plain(test.name)),
        name=network.name,
        # With five classes or fewer it is 100 % whatever the network says.
        top5=fill("top5", **numbers) if len(test.class_names) > 5 else "",
    )


def one_mistake(test, found) -> Section:
    """A mistake taken apart, and the most confident ones; found is a report.Found.

    It is the one that becomes right with the highest probability when what speaks for the answer is covered,
    or, if there is none, the most confident of all.
    """
    if not len(found.browsed):
        return Section(fill("no_mistake_claim"), Markup(""))
    place = 0
    if found.covered is not None:
        answers, probabilities = found.covered
        repaired = answers == test.labels[found.browsed]
        place = int((repaired * probabilities).argmax())
    i = found.browsed[place].item()
    true, predicted = (plain(test.class_names[c]) for c in (test.labels[i], found.y_pred[i]))
    image = test.images[i : i + 1] / 255
    lead = {"open": test.filenames[i]}
    panels = [panel(image, f"the picture: {true}", lead)]
    covered, chosen = "", ""
    if found.covered is not None:
        maps = found.maps[place : place + 1]
        cells = F.interpolate(scaled_maps(maps), 32)[0]  # not blurred: it shows how coarse they are
        size = "x".join(map(str, maps.shape[2:]))
        panels.append(
            panel(overlay(image, cells[:1]), f"what speaks for {predicted} rather than {true}, {size} cells")
        )
        panels.append(panel(overlay(image, cells[1:]), f"what speaks for {true} rather than {predicted}"))
        answer, probability = (values[place].item() for values in found.covered)
        answer = plain(test.class_names[answer])
        without = cover(image, maps[:, 0], fill="mean", mean=torch.tensor(MEAN))
        panels.append(
            panel(without, f"the quarter most for {predicted} covered: {answer}, {percent(probability, 0)}")
        )
        covered = fill("and_covered", predicted=predicted, answer=answer, probability=probability)
        chosen = fill("chosen") if repaired.any() else ""
    if found.neighbours is not None:
        for which, name in enumerate((predicted, true)):
            similarity = found.neighbours["similarity"][i, which].item()
            nearest = found.neighbours["images"][place, which][None]
            if similarity:
                panels.append(panel(nearest, f"nearest training {name}, similarity {similarity:.2f}"))
    others = []
    for run, values in found.others.items():
        probability, answer = values["probabilities"][i].max(dim=0)
        said = f"{plain(test.class_names[answer])} ({percent(probability.item(), 0)})"
        others.append(f"{against.short(run)} says {said}")
    more = [case_link(test, found, j) for j in found.browsed.tolist() if j != i][:NUM_BESIDE]
    confidence = found.confidence[i].item()
    capital = true[:1].upper() + true[1:]
    claim = fill("case_claim", true=capital, predicted=predicted, confidence=confidence, and_covered=covered)
    others = f"On the same picture {listed(others)}." if others else ""
    return Section(claim, fill("one_mistake", panels=panels, others=others, chosen=chosen, more=more))


def panel(image: Tensor, caption: str, lead: dict | None = None) -> Markup:
    """Return one picture, float [1, 3, 32, 32] in [0, 1] or uint8, with its caption; `lead` is a filter."""
    pixels = image[0] if image.dtype == torch.uint8 else (255 * image[0]).round().to(torch.uint8)
    enlarged = picture(png(pixels), caption if lead else "", 160)
    if lead:
        enlarged = fill("picture_link", filter=urlencode(lead), picture=enlarged)
    return fill("panel", picture=enlarged, caption=caption)


def case_link(test, found, i: int) -> Markup:
    """Return the picture of mistake i, which leads to the dialog that takes it apart."""
    true, predicted = (plain(test.class_names[c]) for c in (test.labels[i], found.y_pred[i]))
    small = picture(png(test.images[i]), "", 96)
    confidence = found.confidence[i].item()
    return fill(
        "case_link",
        filter=urlencode({"open": test.filenames[i]}),
        picture=small,
        true=true,
        predicted=predicted,
        confidence=confidence,
    )


# ---- Why -------------------------------------------------------------------------------------------------

REPAIRED_BY = {
    "contrastive": "for the answer, not the truth",
    "predicted": "for the answer (the usual map)",
    "activation": "where activations are strong",
    "random": "random places",
    "true": "for the truth",
}


def why(numbers: dict, layer_note: str) -> Section | None:
    """Whether what the maps mark is a reason, and what was seen in training; None if neither is known."""
    seen = neighbours(numbers["neighbours"]) if "neighbours" in numbers else ""
    if "repair" not in numbers:
        return Section(fill("no_reason", layer_note=layer_note), seen) if seen else None
    found = numbers["repair"]
    test, at_random = found["mcnemar"]["mean_colour"], found["random"]["mean_colour"]
    more = found["contrastive"]["mean_colour"]["value"] > at_random["value"]
    clear = test["p"] <= 0.05
    outcome = ("repairs_more" if more else "repairs_less") if clear else "repairs_alike"
    claim = fill(outcome, **found)
    no_better = found["predicted"]["mean_colour"]["low"] <= at_random["value"]
    rows = {}
    for name, label in REPAIRED_BY.items():
        fills = {"by the mean colour": "mean_colour", "by a blurred copy": "blur"}
        rows[label] = {words: found[name][key] for words, key in fills.items()}
    figure = plots.dots(rows, "mistakes that become right")
    content = fill(
        "why_repair",
        **found,
        plot=plots.to_svg(figure, "repair", str(claim)),
        test=test,
        p=p_value(test["p"]),
        usual=fill("usual_no_better" if no_better else "usual", **found),
        another=fill("another", **found) if "towards_another" in found else "",
        neighbours=seen,
    )
    return Section(claim, content)


def neighbours(found: dict) -> Markup | str:
    """What the network has seen that is like its mistakes; nothing if there is no mistake."""
    row = found["mistakes"]
    if row is None:
        return ""
    shares = {"the answer's label": row["predicted_label"], "the true label": row["true_label"]}
    shares["another label"] = max(0.0, 1 - sum(shares.values()))
    bars, names = [], []
    for number, (name, share) in zip((2, 4, 1), shares.items(), strict=True):
        width, count = f"{100 * share:.2f}", percent(share, 0)
        bars.append(fill("kind_bar", number=number, width=width, name=name, count=count))
        names.append(fill("bar_name", mark=fill("kind_mark", number=number), name=name, count=count))
    claim = fill("neighbour_claim", **found)
    agrees_right = found["right"]["knn_agrees"] if found["right"] else None
    return fill(
        "neighbours", **found, claim=claim, alt=str(claim), bars=bars, names=names, agrees_right=agrees_right
    )


# ---- Kinds and the mistakes themselves -------------------------------------------------------------------


def kinds(rows: list[dict], others: int, compared: Markup | str) -> Section | None:
    """The kinds of mistakes as a bar that adds up, and as a table that leads to them; None without mistakes.

    others is the number of other runs, compared what they say together.
    """
    mistakes = sum(row["count"] for row in rows)
    if not mistakes:
        return None
    bars, cells = [], []
    for number, row in enumerate(rows, start=1):
        if row["count"]:
            count = row["count"] if row["share"] > 0.05 else ""
            width = f"{100 * row['share']:.2f}"
            bars.append(fill("kind_bar", width=width, number=number, name=row["name"], count=count))
        link = Markup(fill("kind_mark", number=number) + " " + filter_link(row["name"], kind=row["name"]))
        columns = {"kind": link, "mistakes": row["count"], "share": row["share"]}
        cells.append(columns | {"accuracy if they were right": row["accuracy_if_right"]})
    runs = all_runs(others + 1)
    count_of = {row["name"]: row["count"] for row in rows}
    if others:
        same, lucky = count_of["all runs give the same wrong answer"], count_of["another run is right"]
        claim = fill("kinds_of_runs_claim", mistakes=mistakes, same=same, lucky=lucky, runs=runs)
    else:
        second = sum(count for name, count in count_of.items() if "second" in name)
        claim = fill("kinds_of_one_claim", mistakes=mistakes, second=second)
    copied = count_of.get("the same pixels have another label in the training set", 0)
    aside = fill("aside", copied=copied) if copied else ""
    about = fill("kinds_of_runs", runs=runs, aside=aside) if others else fill("kinds_of_one")
    counts = table("Kinds of mistakes", cells)
    return Section(
        claim, fill("kinds", about=about, bars=bars, alt=str(claim), table=counts, compared=compared)
    )


def mistakes(test, found) -> Section:
    """The misclassified images, for the script to filter."""
    confident, shared, views = found.numbers["confident"], "", ""
    if "shared" in confident and confident["wrong"]:
        shared = fill("shared_claim", **confident["shared"], runs=all_runs(len(found.others) + 1))
    count, num_shown = len(found.misclassified), len(found.browsed)
    which = (
        f"The {num_shown:,} most confident of {count:,} mistakes"
        if num_shown < count
        else f"All {count:,} mistakes, the most confident first"
    )
    if found.maps is not None:
        views = fill("map_views")
    content = fill(
        "mistakes",
        which=which,
        by_superclass=fill("filter_superclass") if test.superclass_of is not None else "",
        views=views,
        nearest=fill("nearest") if found.neighbours else "",
        wrong_images=sheet(test.images[found.browsed], MAX_SHEET),
        nearest_images=nearest_sheet(found.neighbours),
    )
    wrong = f"{confident['wrong']:,} {are(confident['wrong'])}" if confident["wrong"] else "none is"
    claim = fill("no_confident_answer")
    if confident["answers"]:
        claim = fill("mistakes_claim", confident=confident, wrong=wrong, shared=shared)
    return Section(claim, content)


# ---- Which classes ---------------------------------------------------------------------------------------


def which_classes(test, y_pred: Tensor, numbers: dict) -> Section:
    """Classes, pairs and superclasses that are confused; numbers is metrics.json."""
    classes, count = numbers["classes"], len(test.class_names)
    coarse, reasons = "", []
    if "superclasses" in numbers and numbers["errors_within_superclass"] is not None:
        ranked = sorted(numbers["superclasses"], key=lambda row: row["recall"])
        coarse = fill("superclasses", **numbers | {"hardest": named(ranked[0]), "easiest": named(ranked[-1])})
    if "colour_or_shape" in numbers:
        reasons.append(fill("colour_or_shape", **numbers["colour_or_shape"]))
    if "words" in numbers:
        reasons.append(search_words(numbers["words"]))
    hardest = worst_classes(classes)[0]
    other, times = plain(hardest["most_confused_with"]), hardest["most_confused_with_count"]
    claim = fill(
        "classes_claim",
        name=plain(hardest["name"]),
        right=hardest["num_right"],
        num_test=hardest["num_test"],
        low=f"{100 * hardest['low']:.0f}",
        high=f"{100 * hardest['high']:.0f}",
        taken=fill("taken", other=other, count=times) if other else "",
    )
    first = [int((test.labels == c).int().argmax()) for c in range(count)]  # an example of each class
    content = fill(
        "classes",
        examples=sheet(test.images[first], MAX_SHEET, 10),
        example_rows=str(math.ceil(count / 10)),
        superclasses=coarse,
        typical=numbers["typical_class"],
        num_classes=count,
        num_pairs=count * (count - 1),
        never=numbers["pairs_never_confused"],
        order=fill("superclass_order") if coarse else "",
        by_superclass=fill("by_superclass") if test.superclass_of is not None else "",
        confused_pairs=confused_pairs(numbers["most_confused_pairs"], test, y_pred),
        class_table=class_table(classes),
        reasons=reasons,
    )
    return Section(claim, content)


def draw_failures(test, classes: list[dict], confusion: Tensor, folder: Path) -> None:
    """Draw the classes with the lowest recall and the confusion matrix, int64 [C, C], into the folder."""
    bars, worst = {}, worst_classes(classes)
    for row in worst:
        other = f" (mostly taken for {row['most_confused_with']})" if row["most_confused_with"] else ""
        bars[plain(row["name"] + other)] = row["recall"]
    title = f"The {len(worst)} classes with the lowest accuracy"
    if len(worst) == len(classes):
        title = "The accuracy of each class, the lowest first"
    plots.save_png(plots.worst_classes(title, bars), folder / "worst_classes.png")
    order, groups = list(range(len(classes))), {}
    if test.superclass_of is not None:
        order = test.superclass_of.argsort(stable=True).tolist()  # those of a superclass beside each other
        sizes = test.superclass_of.bincount(minlength=len(test.superclass_names)).tolist()
        groups = dict(zip(map(plain, test.superclass_names), sizes, strict=True))
    names = [plain(test.class_names[c]) for c in order]
    figure = plots.confusion_matrix(confusion[order][:, order].numpy(), names, groups)
    plots.save_png(figure, folder / "confusion_matrix.png")


def worst_classes(classes: list[dict]) -> list[dict]:
    """Return the rows of ten classes with test images, those with the lowest recall."""
    tested = [row for row in classes if row["num_test"]]
    return sorted(tested, key=lambda row: row["recall"])[:10]


def confused_pairs(pairs: list[dict], test, y_pred: Tensor) -> Markup:
    """The pairs that are confused most often, with up to four examples of each."""
    rows = []
    for pair in pairs[:10]:
        true, predicted = (test.class_names.index(pair[key]) for key in ("true", "predicted"))
        examples = torch.nonzero((test.labels == true) & (y_pred == predicted)).flatten()[:4]
        names = {key: plain(pair[key]) for key in ("true", "predicted")}
        alt = f"{names['true']}, taken for {names['predicted']}"
        pictures = []
        for i in examples:
            lead = urlencode({"open": test.filenames[i]})
            pictures.append(fill("picture_link", filter=lead, picture=picture(png(test.images[i]), alt, 48)))
        links = {key: filter_link(name, **names) for key, name in names.items()}
        rows.append(links | {"images": pair["count"], "examples": fill("pictures", pictures=pictures)})
    return table("Most confused pairs", rows)


def class_table(classes: list[dict]) -> Markup:
    """The sortable table of all classes, those with the lowest recall first and untested ones last."""
    rows = []
    for row in sorted(classes, key=lambda row: (row["num_test"] == 0, row["recall"])):
        name, other = plain(row["name"]), plain(row["most_confused_with"])
        cells = {"class": filter_link(name, true=name)}
        cells["recall"] = row["recall"] if row["num_test"] else ("–", -1)
        cells["precision"] = row["precision"]
        cells["F1"] = row["f1"]
        text = f"{other} ({row['most_confused_with_count']})"
        cells["mostly taken for"] = filter_link(text, true=name, predicted=other) if other else "none"
        rows.append(cells)
    return table("All classes", rows, sortable=True)


def search_words(found: dict) -> Markup:
    """Whether errors depend on the word by which a picture was found, and the words that differ most."""
    differing = [row for row in found["words"] if row["differs"]]
    rows = []
    for row in differing or found["words"][:5]:
        cells = {"class": filter_link(plain(row["class"]), true=plain(row["class"]))}
        cells["word"] = filter_link(plain(row["word"]), word=row["word"])
        cells |= {
            "images": row["images"],
            "errors": row["error_rate"],
            "other errors": row["other_error_rate"],
        }
        rows.append(cells | {"p after Holm": (p_value(row["p_adjusted"]), row["p_adjusted"])})
    count = len(differing)
    which = fill(
        "differ" if differing else "no_word_differs",
        count=count,
        differ="differs" if count == 1 else "differ",
        tested=len(found["words"]),
    )
    depend = "do" if found["p"] <= 0.05 else "do not clearly"
    figure = plots.null_histogram(np.array(found["shuffled"]), found["explained"])
    most = percent(found["shuffled_maximum"])
    said = f"The word explains {percent(found['explained'])}, shuffled words at most {most}."
    return fill(
        "search_words",
        **found,
        depend=depend,
        which=which,
        plot=plots.to_svg(figure, "words", said),
        table=table("Search words", rows),
    )


# ---- Does it know when it is wrong? ----------------------------------------------------------------------


def confidence(numbers: dict, found) -> Section:
    """Calibration and temperature, confidence of right and wrong answers, risk and coverage.

    numbers is metrics.json, found a report.Found.
    """
    as_trained, scaling, accuracy = found.calibration[0], "", numbers["accuracy"]
    if len(found.calibration) > 1:
        after, equal = found.calibration[1:]
        change = after["expected_calibration_error"] - as_trained["expected_calibration_error"]
        after_side = side(after["mean_confidence"], accuracy)
        moves = "lowers" if change < 0 else "raises"
        scaling = fill("temperature_scaling", after=after, moves=moves, side=after_side, equal=equal)
    claim = fill(
        "confidence_claim",
        side=side(as_trained["mean_confidence"], accuracy),
        mean_confidence=as_trained["mean_confidence"],
        accuracy=accuracy,
    )
    bins = [column.numpy() for column in as_trained["bins"]]
    coverage, risk = (values.numpy() for values in found.risk_coverage)
    labels = "share of the images that are answered", "errors among them"
    figure = plots.curves(*labels, coverage, {"": risk})
    plots.in_percent(figure.axes[0].xaxis)
    counts = confidence_counts(found)
    half = f"Errors fall to {percent(numbers['risk_at_half_coverage'])} if the surer half is answered."
    error = percent(as_trained["expected_calibration_error"])
    content = fill(
        "confidence",
        **{key: numbers[key] for key in ("confident", "aurc")},
        as_trained=as_trained,
        risk_at_half=numbers["risk_at_half_coverage"],
        risk_at_full=float(risk[-1]),
        last_temperature=str(len(found.temperatures) - 1),
        as_trained_place=str([row["temperature"] for row in found.temperatures].index(1.0)),
        temperature_scaling=scaling,
        plot_reliability=plots.to_svg(
            plots.reliability(*bins),
            "reliability",
            f"Reliability diagram. {claim} The calibration error is {error}.",
        ),
        plot_confidence=plots.to_svg(
            plots.confidence_histogram(*np.array(counts).reshape(2, 50, 2).sum(axis=2)),
            "histogram",
            f"Confidence of right and wrong answers; above 90 % wrong: {numbers['confident']['wrong']}.",
        ),
        plot_risk_coverage=plots.to_svg(figure, "risk", half),
    )
    return Section(claim, content)


# ---- What breaks it --------------------------------------------------------------------------------------


def corruptions(results: dict | None, test) -> Section:
    """How accuracy falls under corruption; results are what stress.read_results found."""
    if results is None or "summary" not in results:
        return Section(fill("no_stress_claim"), fill("no_stress"))
    tests, summary = results["tests"], results["summary"]
    rows = []
    for name, corruption in CORRUPTIONS.items():
        cells = {"corruption": plain(name), "family": corruption.family}
        for severity in range(1, 6):
            cells[str(severity)] = tests[f"{name}/{severity}"]["accuracy"]["value"]
        rows.append(cells)
    hardest = min(rows, key=lambda row: row["3"])
    broken = []
    for row in summary["classes_that_break_first"][:5]:
        broken.append(f"{plain(row['class'])} ({percent(row['clean'], 0)} to {percent(row['corrupted'], 0)})")
    clean, by_severity = tests["clean/0"], summary["by_severity"]
    lines = {"accuracy": "accuracy", "confidence": "mean_confidence"}
    lines = {label: [row[key] for row in by_severity] for label, key in lines.items()}
    figure = plots.curves("severity", "", range(6), lines, marker="o")
    ends = [percent(lines["accuracy"][severity]) for severity in (0, 5)]
    said = f"Accuracy is {ends[0]} on clean images and {ends[1]} at severity 5."
    content = fill(
        "corruptions",
        **results,
        viewer=corruption_viewer(results["examples"], test, hardest["corruption"])
        if "examples" in results
        else "",
        plot_severity=plots.to_svg(figure, "severity", said),
        shift=shift(by_severity) if "with_temperature" in by_severity[0] else "",
        sides=sides(clean, summary),
        published=fill("published", **results) if "published" in summary["mean_accuracy"] else "",
        corruption_table=table("Every corruption", rows, sortable=True),
        broken=fill("broken", classes=listed(broken)) if broken else fill("few_images"),
        num_corruptions=len(CORRUPTIONS),
    )
    claim = fill(
        "corruptions_claim",
        summary=summary,
        clean=clean["accuracy"]["value"],
        hardest=hardest["corruption"],
        accuracy=hardest["3"],
    )
    return Section(claim, content)


def sides(clean: dict, summary: dict) -> str:
    """Say on which side of the accuracy the mean confidence is, without and with corruption."""
    before = side(clean["mean_confidence"], clean["accuracy"])
    after = side(summary["mean_confidence"]["all"], summary["mean_accuracy"]["all"])
    if before == after:
        return f"On clean images and over all corruptions it is {after}"
    return f"On clean images it is {before}; over all corruptions it is {after}"


def shift(rows: list[dict]) -> Markup:
    """Say at which severities the temperature, fitted on clean images, makes the calibration error larger."""
    worse = []
    for severity in range(1, 6):
        row = rows[severity]
        if row["with_temperature"]["ece"] > row["as_trained"]["ece"]:
            worse.append(str(severity))
    if not worse:
        return fill("no_shift")
    where = "every severity" if len(worse) == 5 else f"severity {listed(worse)}"
    return fill("shift", where=where, severe=rows[5])


def attacks(results: dict, test) -> Section:
    """How accuracy falls under attack; results are what stress.read_results found, all tests."""
    tests, checks = results["tests"], []
    for row in results["checks"]:
        result = "passed" if row["passed"] else "FAILED"
        checks.append({"result": result, "check": row["name"], "what was found": row["detail"]})
    failed = sum(not row["passed"] for row in results["checks"])
    outcome = "checks_failed" if failed else "checks_passed"
    claim = fill(
        "attacks_claim", worst=results["robust_accuracy"]["1"], random=tests["random/1"]["accuracy"]["value"]
    )
    shown = results["epsilons"][:-1]  # the last one is a check, at which a sound attack leaves no image right
    figure = plots.stress_epsilon(tests, results["robust_accuracy"], shown)
    content = fill(
        "attacks",
        **{key: results[key] for key in ("tests", "attack_images", "robust_accuracy")},
        viewer=attack_viewer(results, test) if "attack_examples" in results else "",
        plot_epsilon=plots.to_svg(figure, "epsilon", str(claim)),
        apgd_epsilons=", ".join(f"{epsilon:g}/255" for epsilon in APGD_EPSILONS),
        checks=fill(outcome, failed=failed, count=len(checks), table=table("Checks of the attacks", checks)),
    )
    return Section(claim, content)


# ---- What it looks at, and whether the maps can be believed ----------------------------------------------

CUE_WORDS = {
    "grey": "without colour",
    "patches_16": "with patches of 16x16 shuffled",
    "patches_8": "with patches of 8x8 shuffled",
    "low_pass": "with only the slow waves (low pass)",
    "high_pass": "with only the fast waves (high pass)",
}
CONSISTENCY_WORDS = {
    "right": "right answers",
    "equally_sure": "right answers as unsure as the wrong ones",
    "wrong": "wrong answers",
}


def cues(results: dict) -> Section:
    """Accuracy without colour, texture or shape, and after changes that should not matter."""
    found = results["summary"]["cues"]
    rows = {CUE_WORDS[name]: {"": row["accuracy"]} for name, row in found.items()}
    drops = {name: f"{100 * row['drop']['value']:.1f}" for name, row in found.items()}
    claim = fill("cues_claim", **drops)
    clean = results["tests"]["clean/0"]["accuracy"]
    figure = plots.to_svg(plots.dots(rows, "accuracy"), "without", str(claim))
    changes = []
    for group, label in CONSISTENCY_WORDS.items():
        cells = {"changed answers of": label}
        for name, words in {"mirror": "mirror image", "shift": "shift by one pixel"}.items():
            row = results["consistency"][name][group]
            cells[words] = "–" if row is None else (show(row), row["value"])
        changes.append(cells)
    changed = table("Changed answers", changes)
    return Section(claim, fill("cues", plot_cues=figure, clean=clean, consistency_table=changed))


def compared_with_controls(rows: dict[str, dict], mode: str) -> dict[str, list[str]]:
    """Return than which controls Grad-CAM is better or worse by more than two standard errors."""
    groups = {"better than": [], "not told apart from": [], "worse than": []}
    for name, label in CONTROLS.items():
        ends = gain(rows[name], mode)
        if ends["low"] <= 0 <= ends["high"]:
            groups["not told apart from"].append(label)
        else:
            groups["better than" if ends["value"] > 0 else "worse than"].append(label)
    return groups


def gain(row: dict, mode: str) -> dict[str, float]:
    """Return by how much Grad-CAM is better than a control, with two standard errors to either side."""
    value = BETTER[mode] * row["gradcam_less_this"]["value"]
    error = 2 * row["gradcam_less_this"]["standard_error"]
    return {"value": value, "low": value - error, "high": value + error}


def verdict(found: dict) -> Markup:
    """Say in one sentence whether the maps can be believed."""
    better = [set(compared_with_controls(found[mode], mode)["better than"]) for mode in BETTER]
    beaten = [label for label in CONTROLS.values() if all(label in labels for labels in better)]
    others = [label for label in CONTROLS.values() if label not in beaten]
    if CONTROLS["random"] in others:
        return fill("maps_fail")
    return fill("maps_hold_partly" if others else "maps_hold", beaten=listed(beaten), others=listed(others))


def maps(found: dict | None, layer_note: str) -> Section:
    """Deletion, insertion and randomisation: can the maps be believed?"""
    if found is None:
        return Section(fill("no_maps_claim", layer_note=layer_note), Markup(""))
    parts, claim, rows = {}, verdict(found), {}
    for name, label in CONTROLS.items():
        rows[f"Grad-CAM against {label}"] = {mode: gain(found[mode][name], mode) for mode in BETTER}
    figure = plots.dots(rows, "points of probability; right of 0 Grad-CAM is better", " points")
    for mode in BETTER:
        kinds = compared_with_controls(found[mode], mode).items()
        parts[mode] = "; ".join(f"{kind} {listed(names)}" for kind, names in kinds if names)
    parts["plot"] = plots.to_svg(figure, "gains", str(claim))
    random_weights, down_to = [], found["randomization"]["down_to"]
    for name, row in down_to.items():
        cells = {"mean of rho": (spread(row["mean"]), 0), "mean of |rho|": (spread(row["mean_abs"]), 0)}
        random_weights.append({"random weights, down to": name} | cells)
    parts["pointing_game"] = ""
    if "pointing_game" in found:
        hits = found["pointing_game"]
        controls = [f"{label} {percent(hits[name]['value'])}" for name, label in CONTROLS.items()]
        parts["pointing_game"] = fill("pointing_game", **hits, controls=", ".join(controls))
    alike = "not known to be more"
    if row["mean_abs"]["value"] is not None and row["other_image"]["value"] is not None:
        alike = "no more" if row["mean_abs"]["value"] <= row["other_image"]["high"] else "more"
    content = fill(
        "maps",
        **found | parts,
        size="x".join(map(str, found["map_size"])),
        all_random=spread(row["mean_abs"]),
        alike=alike,
        other_image=spread(row["other_image"]),
        randomization_table=table("Random weights", random_weights),
    )
    return Section(claim, content)


# ---- Data, training, reproduction ------------------------------------------------------------------------


def data_set(test, numbers: dict) -> Section:
    """Class counts and the audit for duplicates; numbers is metrics.json."""
    counts = []
    for key, words in {"num_train": "in the training set", "num_test": "in the test set"}.items():
        of_classes = [row[key] for row in numbers["classes"] if key in row]
        if of_classes:
            ends = sorted({min(of_classes), max(of_classes)})
            counts.append(f"{' to '.join(f'{n:,}' for n in ends)} {words}")
    claim, audit = fill("no_audit_claim", num_test=len(test.labels)), []
    if "duplicates" in numbers:
        found = numbers["duplicates"]
        copies, without = found["test_images_in_train"], found["accuracy_without_them"]
        claim = fill("no_duplicates_claim")
        if copies and without is not None:
            gain = 100 * (without - numbers["accuracy"]["value"])
            them = "it" if copies == 1 else "them"
            difference = f"{gain:+.2f}"
            claim = fill("duplicates_claim", copies=copies, are=are(copies), them=them, difference=difference)
            audit.append(fill("duplicates", **found))
        audit.append(fill("repeats", **found))
    content = fill(
        "data",
        provenance=test.provenance[:1].upper() + test.provenance[1:],
        num_classes=len(test.class_names),
        counts=listed(counts),
        audit=audit,
    )
    return Section(claim, content)


def training(training, folder: Path) -> Section:
    """Curves of both splits, and time; training is a network.Training."""
    history, settings = training.history, training.settings
    column = {key: np.array([row[key] for row in history]) for key in history[0]}
    best = history[int(column["val_accuracy"].argmax())]
    sizes, changes = column["image_size"], {}
    for i in range(1, len(sizes)):
        if sizes[i] != sizes[i - 1]:
            changes[i + 0.5] = f"{sizes[i]:.0f} px"
    several_sizes = fill("several_sizes") if changes else ""
    last_cutmix = int(0.9 * settings["epochs"]) if settings["cutmix"] else 0  # as train_one_epoch has it
    if 0 < last_cutmix < len(history):
        changes[last_cutmix + 0.5] = "no CutMix"
    curves = {}
    for quantity in ("loss", "accuracy"):
        figure = plots.training_curve(column, quantity, best["epoch"], changes)
        plots.save_png(figure, folder / f"{quantity}.png")
        train, val = (history[-1][f"{split}_{quantity}"] for split in ("train", "val"))
        said = f"{quantity.capitalize()} by epoch: at last {train:.3f} in training, {val:.3f} in validation."
        curves[f"plot_{quantity}"] = plots.to_svg(figure, quantity, said)
    content = fill(
        "training",
        **vars(training),
        **curves,
        last=history[-1],
        cutmix=fill("cutmix", settings=settings, last_cutmix=last_cutmix) if last_cutmix else "",
        several_sizes=several_sizes,
    )
    took, epoch = duration(column["seconds"].sum()).replace(" ", "\N{NO-BREAK SPACE}"), training.epoch
    claim = fill(
        "training_claim",
        duration=took,
        epochs=settings["epochs"],
        epoch=epoch,
        val_accuracy=training.val_accuracy,
    )
    return Section(claim, content)


def reproduction(network, test, stress: dict | None, options: dict | None) -> Section:
    """The commands that make this page, and versions, hardware and digests.

    options are those of report.py, {name: value}; None if no command line made the page.
    """
    facts, lines = {}, {}
    if network.training:
        trained_on = network.training.config["environment"]
        facts |= {f"training: {name}": value for name, value in trained_on.items()}
        config = network.training.config  # it has the device and the precision that "auto" became
        settings = network.training.settings | {key: config[key] for key in ("device", "precision")}
        lines["The network was trained by"] = ["train.py", *words(settings)]
    if stress and options is not None:
        tested = {name: value for name, value in options.items() if name != "against"}
        full = [["--full"]] if stress["corruption_images"] == len(test.labels) else []
        lines["It was tested by"] = ["stress.py", *words(tested), *full]
    if options is not None:
        others = ", after report.py on the others," if options.get("against") else ""
        lines[f"This page was made{others} by"] = ["report.py", *words(options)]
    machine = environment(network.device)
    facts |= {f"report: {name}": value for name, value in machine.items()}
    facts |= {"images": network.input, "maps": network.layer_note}
    facts |= {"weights": network.path or "in memory", "digest of the weights": network.digest}
    facts |= {"data": test.provenance, "digest of the test images": test.digest}
    rows = [{"what": what, "value": str(value)} for what, value in facts.items()]
    commands = [fill("commands", what=what, commands=command(line)) for what, line in lines.items()]
    claim = fill(
        "reproduce_claim",
        name=network.name,
        parameters=network.parameters,
        macs=f"{network.macs / 1e6:,.1f}",
        hardware=machine["hardware"],
    )
    content = fill("reproduction", commands=commands, facts_table=table("Versions and data", rows))
    return Section(claim, content)


def command(line: list) -> str:
    """Return a command, [script, [option, value, ...], ...], with an option in each line."""
    script, *options = line
    return " \\\n    ".join([f"python {script}", *map(shlex.join, options)])


def words(options: dict) -> list[list[str]]:
    """Return options, {name: value}, as words of a command line, without those that say None, False or []."""
    found = []
    for name, value in options.items():
        if value is not None and value is not False and value != []:
            values = value if isinstance(value, list) else [value]
            found.append([option(name), *(str(value) for value in values if value is not True)])
    return found


# ---- The page --------------------------------------------------------------------------------------------


def fill_page(out: Path, network, test, found, options: dict | None) -> None:
    """Write report.html and plots/ into the folder `out`.

    network is a network.Network, test a data.Dataset and found a report.Found; options as in reproduction.
    """
    numbers, folder = found.numbers, out / "plots"
    plots.save_png(
        plots.headline_bars({name: numbers[key] for key, name in HEADLINE.items()}),
        folder / "headline_metrics.png",
    )
    draw_failures(test, numbers["classes"], found.confusion, folder)
    compared = against.section(numbers["against"]) if "against" in numbers else ""
    parts = {
        "One mistake": one_mistake(test, found),
        "Why": why(numbers, network.layer_note),
        "Kinds": kinds(numbers["kinds"], len(found.others), compared),
        "Mistakes": mistakes(test, found) if len(found.misclassified) else None,
        "Classes": which_classes(test, found.y_pred, numbers),
        "Confidence": confidence(numbers, found),
        "Corruptions": corruptions(found.stress, test),
    }
    if found.stress is not None and "summary" in found.stress:
        parts["Attacks"] = attacks(found.stress, test)
        parts["Cues"] = cues(found.stress)
    parts["Maps"] = maps(numbers.get("explanations"), network.layer_note)
    parts["Data"] = data_set(test, numbers)
    if network.training:
        parts["Training"] = training(network.training, folder)
    parts["Reproduce"] = reproduction(network, test, found.stress, options)
    data = mistakes_data(test, found) | viewer_data(found.stress, test)
    data |= {"temperatures": temperature_data(found), "confidence_counts": confidence_counts(found)}
    data |= {"num_test": len(test.labels), "mean": [round(255 * value) for value in MEAN]}
    title = f"{network.name}, {out.name}"
    known = {name: section for name, section in parts.items() if section is not None}
    write_page(out / "report.html", title, headline(network, test, numbers), known, data)

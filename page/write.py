"""Make the page: of a run folder and the test images come plots/, failures/, gradcam/ and report.html.

A template is a section. It sets `claim`, what the section says in one sentence, and shows what the sentence
stands on. All texts are escaped, and a missing value is an error. Nothing is measured here.
"""

import ast
import functools
import json
import math
from pathlib import Path
from urllib.parse import urlencode

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup
from torch import Tensor

from page import failures, pictures, plots, sections
from support.files import write_text
from support.outputs import IDENTITY, read_report, read_stress

FOLDER = Path(__file__).resolve().parent
NUMBER_END = "\N{NO-BREAK SPACE}%"  # no line ends between a number and its sign
SECTIONS = {
    "mistakes": "Which mistakes",
    "classes": "Which classes",
    "maps": "What the maps mark",
    "confidence": "Confidence",
    "corruptions": "Corruptions",
    "attacks": "Attacks",
    "about": "About",
}


def percent(value: float | dict | None, digits: int = 1) -> str:
    """Return 0.1234, or the value of a fraction with its interval, as "12.3 %"; a dash for None and NaN."""
    if isinstance(value, dict):
        value = value["value"]
    if value is None or math.isnan(value):
        return "–"
    return f"{100 * value:.{digits}f}{NUMBER_END}"


def interval(row: dict, digits: int = 1) -> str:
    """Return a fraction with its interval, value, low and high, as "12.3 % (9.9–15.1)"."""
    low, high = 100 * row["low"], 100 * row["high"]
    return f"{percent(row['value'], digits)} ({low:.{digits}f}–{high:.{digits}f})"


def points(row: dict, digits: int = 1) -> str:
    """Return a difference with its interval as "+1.2 points (0.3 to 2.1)"."""
    value, low, high = (f"{100 * row[key]:+.{digits}f}" for key in ("value", "low", "high"))
    return f"{value} points ({low} to {high})".replace("-", "\N{MINUS SIGN}")


def in_words(share: float) -> str:
    """Return a share as people say it: "three in four", "85 in 100", "none"."""
    words = ["", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"]
    for whole in (2, 3, 4, 5, 10):
        part = round(share * whole)
        if 0 < part < whole and abs(share - part / whole) < 0.012:
            return f"{words[part]} in {words[whole]}"
    if share in (0, 1):
        return "all" if share else "none"
    return f"{min(99, max(1, round(100 * share)))} in 100"


def p_value(p: float) -> str:
    """Return p with as many digits as mean something."""
    if p < 0.0001:
        return "below 0.0001"
    return f"{p:.2f}" if p >= 0.01 else f"{p:.4f}"


def mistakes_at(**wanted: str) -> str:
    """Return the address of the mistakes that fit, such as true="otter", predicted="seal"."""
    return f"#{urlencode(wanted)}"


@functools.cache
def source(name: str) -> dict:
    """Return where a function, class or module such as "metrics.accuracy" stands, and its source.

    `path`, the first `line` and `text` are read from the file: nothing is imported to be quoted.
    """
    parts, depth = name.split("."), 1
    while not (FOLDER.parent.joinpath(*parts[:depth])).with_suffix(".py").is_file():
        depth += 1
    path = Path(*parts[:depth]).with_suffix(".py")
    text = (FOLDER.parent / path).read_text(encoding="utf-8")
    node, first = ast.parse(text), 1
    for part in parts[depth:]:
        (node,) = (inner for inner in node.body if getattr(inner, "name", None) == part)
    lines = text.splitlines()
    if parts[depth:]:
        first = min([node.lineno, *(decorator.lineno for decorator in node.decorator_list)])
        lines = lines[first - 1 : node.end_lineno]
    return {"path": path.as_posix(), "line": first, "text": "\n".join(lines).rstrip()}


def make_templates() -> Environment:
    """Return what fills the templates."""
    loader = FileSystemLoader(FOLDER)
    templates = Environment(loader=loader, undefined=StrictUndefined, autoescape=True, lstrip_blocks=True)
    for function in (percent, interval, points, in_words, p_value, pictures.plain):
        templates.filters[function.__name__] = function
    templates.filters["grouped"] = "{:,}".format
    templates.globals |= {"source": source, "mistakes_at": mistakes_at}
    return templates


@plots.styled()
def write_page(out: Path, images: Tensor | None) -> None:
    """Write report.html, plots/, failures/ and gradcam/ into the run folder `out`, of what it holds.

    images uint8 [N, 3, S, S]: the test images, or None: the page is then without pictures. It needs no other
    file. Raises UserError if the files in the folder are not of one report; stress tests of something else
    are left out, and so is a section that has nothing to say.
    """
    numbers, answers, evidence = read_report(out)
    stress = read_stress(out, {key: numbers[key] for key in IDENTITY})
    maps, layer = evidence.get("maps"), numbers.get("maps", {}).get("layer")
    failures.write(out, failures.describe(answers, evidence), images, maps, layer)
    shown = None if images is None else pictures.reduced(images)
    context = {"n": numbers, "class_names": answers["class_names"], "folder": out.name}
    context |= sections.one_mistake(answers, evidence, shown)
    context |= sections.mistakes(answers, evidence, shown)
    context |= sections.classes(numbers, answers, shown)
    context |= sections.maps(numbers)
    context |= sections.confidence(numbers, stress)
    context |= sections.stress_tests(answers, stress, images)
    context |= sections.about(numbers, stress)
    context |= sections.training(out / "plots", numbers)
    context |= sections.write_plots(out / "plots", numbers, answers)
    templates, filled = make_templates(), []
    for name, title in SECTIONS.items():
        module = templates.get_template(f"{name}.html").make_module(context)
        claim = module.claim.strip()  # escaped by the template, like all of it
        section = {"id": name, "title": title, "claim": claim, "html": Markup(module)}
        if claim:
            filled.append(section | {"question": getattr(module, "question", None)})
    side = None if images is None else shown.shape[-1]
    data = pictures.data_for_script(numbers, answers, evidence, stress, side)
    page = templates.get_template("report.html").render(
        context,
        sections=filled,
        style=Markup((FOLDER / "style.css").read_text(encoding="utf-8")),
        script=Markup((FOLDER / "page.js").read_text(encoding="utf-8")),
        # With this escape no name can end the script element; JSON.parse reads it as the sign itself.
        data=Markup(json.dumps(data, separators=(",", ":")).replace("<", "\\u003c")),
    )
    write_text(out / "report.html", page + "\n")

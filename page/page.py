"""Fill the page: what was found becomes one HTML file, by the Jinja2 templates beside this file.

A template is a section. It sets `claim`, what the section says in one sentence, and shows what the sentence
stands on. All texts are escaped, and a missing value is an error. Nothing is measured here.
"""

import functools
import inspect
import json
import math
import pkgutil
from pathlib import Path
from urllib.parse import urlencode

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from page import pictures, plots, sections
from running.files import write_text

FOLDER = Path(__file__).resolve().parent
NUMBER_END = "\N{NO-BREAK SPACE}%"  # no line ends between a number and its sign
SECTIONS = {
    "one_mistake": "One mistake",
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
    return f"{value} points ({low} to {high})"


def p_value(p: float) -> str:
    """Return p with as many digits as mean something."""
    if p < 0.0001:
        return "below 0.0001"
    return f"{p:.2f}" if p >= 0.01 else f"{p:.4f}"


def mistakes_at(**filter: str) -> str:
    """Return the address of the mistakes with this filter, such as true="otter", predicted="seal"."""
    return f"#{urlencode(filter)}"


@functools.cache
def sources(names: str) -> list[dict]:
    """Return where functions, classes or modules stand, "metrics.accuracy,data.load", and their source."""
    found = []
    for name in names.split(","):
        documented = inspect.unwrap(pkgutil.resolve_name(name.strip()))
        lines, first = inspect.getsourcelines(documented)
        file = Path(inspect.getsourcefile(documented)).resolve()  # the project may be reached by a link
        path = file.relative_to(FOLDER.parent).as_posix()
        found.append({"path": path, "line": max(first, 1), "text": "".join(lines).rstrip()})
    return found


def environment() -> Environment:
    """Return what fills the templates."""
    templates = Environment(
        loader=FileSystemLoader(FOLDER),
        undefined=StrictUndefined,
        autoescape=True,
        lstrip_blocks=True,
    )
    templates.filters |= {
        "percent": percent,
        "interval": interval,
        "points": points,
        "p_value": p_value,
        "plain": pictures.plain,
    }
    templates.globals |= {"sources": sources, "mistakes_at": mistakes_at}
    return templates


@plots.styled()
def write_page(out: Path, examined, test, found) -> None:
    """Write report.html and plots/ into the folder `out`; the page needs no other file.

    examined: a classifier.Classifier; test: the test split, a data.Dataset; found: a report.Found.
    """
    templates = environment()
    context = {"n": found.numbers, "examined": examined, "test": test, "found": found}
    for add in (
        sections.one_mistake,
        sections.mistakes,
        sections.classes,
        sections.maps,
        sections.confidence,
        sections.stress,
    ):
        context |= add(test, found)
    context |= sections.about(out, examined, found)
    context |= sections.write_plots(out / "plots", test, found)
    filled = []
    for name, title in SECTIONS.items():
        module = templates.get_template(f"{name}.html").make_module(context)
        html = Markup(str(module))  # escaped by the template, like the claim
        claim = Markup(str(module.claim).strip())
        anchor = name.replace("_", "-")
        filled.append({"id": anchor, "title": title, "claim": claim, "html": html})
    data = pictures.data_for_script(test, found)
    page = templates.get_template("report.html").render(
        context,
        folder=out.name,
        sections=filled,
        style=Markup((FOLDER / "style.css").read_text(encoding="utf-8")),
        script=Markup((FOLDER / "page.js").read_text(encoding="utf-8")),
        # With this escape no name can end the script element; JSON.parse reads it as the sign itself.
        data=Markup(json.dumps(data, separators=(",", ":")).replace("<", "\\u003c")),
    )
    write_text(out / "report.html", page + "\n")

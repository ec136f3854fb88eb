"""Make report.html, plots/, failures/ and gradcam/ from the files of a run folder and the test images.

Each template is a section. All texts are escaped, and a missing value is an error. Nothing is measured here.
"""

import math
from collections.abc import Callable
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup
from torch import Tensor

from page import embed, failures, plots, sections
from support.errors import UserError
from support.files import write_text
from support.outputs import headline, read_report, sha256_of

FOLDER = Path(__file__).resolve().parent
NUMBER_END = "\N{NO-BREAK SPACE}%"  # no line ends between a number and its sign
DASH = "\N{WORD JOINER}–\N{WORD JOINER}"  # nor at this one


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
    return f"{percent(row['value'], digits)} ({low:.{digits}f}{DASH}{high:.{digits}f})"


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


def make_templates(folders: list[Path], functions: tuple[Callable, ...] = ()) -> Environment:
    """Return the Jinja2 environment of the templates in these folders; functions become more filters."""
    loader = FileSystemLoader(folders)
    templates = Environment(loader=loader, undefined=StrictUndefined, autoescape=True, lstrip_blocks=True)
    for function in (percent, interval, in_words, embed.plain, *functions):
        templates.filters[function.__name__] = function
    templates.filters["grouped"] = "{:,}".format
    templates.globals["style"] = Markup((FOLDER / "style.css").read_text(encoding="utf-8"))
    return templates


@plots.styled()
def write_page(out: Path, images: Tensor | None) -> None:
    """Write report.html, plots/, failures/ and gradcam/ into the run folder `out`, from what it holds.

    images uint8 [N, 3, S, S]: the test images; None makes a page without pictures. Raises UserError if the
    files are not of one report, or the images not those of the report.
    """
    numbers, arrays = read_report(out)
    if images is not None and sha256_of(images) != numbers["images_sha256"]:
        raise UserError(f"the test images are not those of {out / 'metrics.json'}: give their --data-dir")
    failures.write(out, failures.describe(arrays), images, arrays, numbers.get("layer"))
    sections.write_plots(out / "plots", numbers, arrays)
    context = {"n": numbers, "folder": out.name, "explore": (out / "explore.html").is_file()}
    context |= {"headline": headline(numbers)} | sections.mistakes(arrays, images)
    context |= sections.classes(numbers, arrays, images)
    context |= sections.confidence(numbers)
    context |= sections.training(numbers)
    context |= sections.about(numbers)
    page = make_templates([FOLDER]).get_template("report.html").render(context)
    write_text(out / "report.html", page + "\n")

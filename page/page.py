"""Fill the templates of the report: numbers, texts, tables and pictures become one HTML file.

report.html is the page and the other files are its sections; pieces.html holds what is repeated or
conditional, such as a cell of a table. `fill` fills all of them and escapes every text, so that no name of a
file or a class can become markup.
"""

import base64
import functools
import inspect
import json
import math
import pkgutil
import re
from html import escape
from pathlib import Path
from string import Template
from typing import NamedTuple
from urllib.parse import urlencode

from torch import Tensor
from torchvision.io import encode_jpeg, encode_png

from running.files import whole_file

FOLDER = Path(__file__).resolve().parent
NUMBER_END = "\N{NO-BREAK SPACE}%"  # no line ends between a number and its sign


# ---- Templates -------------------------------------------------------------------------------------------


class Markup(str):
    """A text that is HTML already: it is inserted as it is."""


class PageTemplate(Template):
    """A template with values, ${path.to.value:format} or $value, and source, ${code:metrics.accuracy}."""

    braceidpattern = r"(?:[\w./]+(?::[\w.,+%\s]+)?)"


class Values(dict):
    """The values of a template, found by such a path and shown as the format of Python says or by `show`."""

    def __getitem__(self, path: str) -> str:
        path, _, how = path.partition(":")
        if path == "code":
            return code(how)
        value = self
        for key in path.split("."):
            value = dict.__getitem__(value, key)
        if not how:
            return show(value)
        if value is None or value != value:  # NaN
            return "–"
        return escape(format(value, how).replace("%", NUMBER_END))


def read_templates() -> dict[str, PageTemplate]:
    """Return {name: template} of the HTML files and of the pieces, each below a comment with its name."""
    texts = {path.stem: path.read_text(encoding="utf-8") for path in FOLDER.glob("*.html")}
    pieces = re.split(r"<!-- (\w+) -->\n", texts.pop("pieces"))
    names, contents = pieces[1::2], pieces[2::2]  # before the first name there is nothing
    texts |= dict(zip(names, contents, strict=True))
    texts = {name: re.sub(r"(?<=\d) %", NUMBER_END, text.strip()) for name, text in texts.items()}
    return {name: PageTemplate(text) for name, text in texts.items()}


TEMPLATES = read_templates()


def fill(name: str, /, **values) -> Markup:
    """Fill the template of this name with the values; see Values. Raises KeyError if one is missing."""
    return Markup(TEMPLATES[name].substitute(Values(values)))


@functools.cache
def code(names: str) -> Markup:
    """Return the source of functions, classes or modules, "metrics.accuracy,network.predict", folded up."""
    sources = []
    for name in names.split(","):
        documented = inspect.unwrap(pkgutil.resolve_name(name.strip()))
        lines, first = inspect.getsourcelines(documented)
        file = Path(inspect.getsourcefile(documented)).resolve()  # the project may be reached by a link
        path = file.relative_to(FOLDER.parent).as_posix()
        sources.append(fill("source", path=path, line=max(first, 1), text="".join(lines).rstrip()))
    return fill("code", names=", ".join(names.replace(",", " ").split()), sources=sources)


class Section(NamedTuple):
    """A section of the page: what it says in one sentence, and what shows it."""

    claim: Markup
    content: Markup


def write_page(path: Path, title: str, headline: Markup, sections: dict[str, Section], data: dict) -> None:
    """Write report.html, {title: section} with links to each; data is for the script. It needs no file."""
    links, filled = [], []
    for name, section in sections.items():
        anchor = name.lower().replace(" ", "-")
        claim = re.sub(r"<[^>]*>", "", section.claim)
        links.append(fill("link", anchor=anchor, title=name, claim=Markup(claim)))
        filled.append(fill("section", anchor=anchor, title=name, **section._asdict()))
    page = fill(
        "report",
        style=Markup((FOLDER / "style.css").read_text(encoding="utf-8")),
        script=Markup((FOLDER / "page.js").read_text(encoding="utf-8")),
        title=title,
        headline=headline,
        links=links,
        sections=filled,
        # With this escape no name can end the script element; JSON.parse reads it as the sign itself.
        data=Markup(json.dumps(data, separators=(",", ":")).replace("<", "\\u003c")),
    )
    with whole_file(path) as temporary:
        temporary.write_text(page + "\n", encoding="utf-8", errors="backslashreplace")


# ---- Texts -----------------------------------------------------------------------------------------------


def show(value: str | int | float | dict | list | None) -> str:
    """Return a value as HTML: a text is escaped, 12345 is "12,345", and a float is a fraction, in percent.

    A fraction with its interval, a dict of value, low and high, is "12.3 % (9.9–15.1)". A list is what it
    holds, each on a line of its own.
    """
    if isinstance(value, Markup):
        return value
    if isinstance(value, str):
        return escape(value)
    if isinstance(value, list):
        return "\n".join(map(show, value))
    if isinstance(value, dict):
        return f"{percent(value['value'])} ({100 * value['low']:.1f}–{100 * value['high']:.1f})"
    return f"{value:,}" if isinstance(value, int) else percent(value)


def percent(value: float | None, digits: int = 1) -> str:
    """Return 0.1234 as "12.3 %", NaN as a dash, and None, the fraction of nothing, as "none"."""
    if value is None:
        return "none"
    return "–" if math.isnan(value) else f"{100 * value:.{digits}f}{NUMBER_END}"


def interval(ends: dict) -> str:
    """Return the ends of an interval, `low` and `high`, as "95 % interval 12.34 to 45.67 %"."""
    return f"95{NUMBER_END} interval {100 * ends['low']:.2f} to {percent(ends['high'], 2)}"


def p_value(p: float) -> str:
    """Return p with as many digits as mean something."""
    if p < 0.0001:
        return "below 0.0001"
    return f"{p:.2f}" if p >= 0.01 else f"{p:.4f}"


def plain(name: str) -> str:
    """Return a class name as people write it: those of CIFAR-100 have underscores in place of spaces."""
    return name.replace("_", " ")


def listed(words: list[str]) -> str:
    """Return words as "a", "a and b" or "a, b and c"."""
    if len(words) < 2:
        return "".join(words)
    return f"{', '.join(words[:-1])} and {words[-1]}"


def filter_link(text: str, **filter: str) -> Markup:
    """Return a text that leads to the mistakes with this filter, such as true="otter", predicted="seal"."""
    return fill("filter_link", text=text, filter=urlencode(filter))


def table(label: str, rows: list[dict], sortable: bool = False) -> Markup:
    """Return a table of rows, {heading: cell}. `label` is its name for screen readers.

    A cell is a text, markup, a number as in `show`, or (text, number) for a number that is shown as the text.
    The script sorts by the exact numbers, which the cells also hold.
    """
    head, body = [], []
    for row in rows:
        head, cells = [], []
        for heading, cell in row.items():
            text, value = cell if isinstance(cell, tuple) else (cell, cell)
            kind = "cell" if isinstance(value, str) else "number_cell"
            cells.append(fill(kind, text=text, value=str(value)))
            head.append(fill(f"{kind}_heading", text=heading))
        body.append(fill("row", cells=cells))
    kind = "sortable" if sortable else "fixed"
    return fill("table", label=label, kind=kind, head=head, rows=body)


# ---- Pictures --------------------------------------------------------------------------------------------


def png(pixels: Tensor) -> bytes:
    """Return uint8 [3, H, W] as the content of a PNG file."""
    return encode_png(pixels).numpy().tobytes()


def jpeg(pixels: Tensor, quality: int = 90) -> bytes:
    """Return uint8 [3, H, W] as the content of a JPEG file: smaller, and not quite the same pixels."""
    return encode_jpeg(pixels, quality=quality).numpy().tobytes()


def picture(content: bytes, alt: str, width: int, height: int | None = None) -> Markup:
    """Return the content of a PNG or JPEG file as a picture of a size in CSS pixels, by default a square."""
    kind = "png" if content.startswith(b"\x89PNG") else "jpeg"
    size = {"width": str(width), "height": str(height or width)}
    return fill("picture", kind=kind, content=base64.b64encode(content).decode(), alt=alt, **size)

"""Fill the templates of the report: numbers, texts, tables and pictures become one HTML file.

report.html is the page; training.html, stress.html and mistakes.html are sections of it; pieces.html holds
what is repeated or conditional, such as a cell of a table. `fill` fills all of them and escapes every text,
so that no name of a file or a class can become markup.
"""

import base64
import inspect
import math
import re
from collections.abc import Callable
from html import escape
from pathlib import Path
from string import Template
from urllib.parse import urlencode

import torch.nn.functional as F
from matplotlib.figure import Figure
from torch import Tensor
from torchvision.io import encode_jpeg, encode_png

from page import plots
from running.files import whole_file

FOLDER = Path(__file__).resolve().parent


class Markup(str):
    """A text that is HTML already: it is inserted as it is."""


def read_templates() -> dict[str, Template]:
    """Return {name: template} of the HTML files and of the pieces, each below a comment with its name."""
    texts = {path.stem: path.read_text(encoding="utf-8") for path in FOLDER.glob("*.html")}
    _, *parts = re.split(r"<!-- (\w+) -->\n", texts.pop("pieces"))
    texts |= dict(zip(parts[::2], parts[1::2], strict=True))
    return {name: Template(text.strip()) for name, text in texts.items()}


TEMPLATES = read_templates()


def fill(name: str, /, **values) -> Markup:
    """Fill the template of this name: every $key in it is replaced by values[key], as `show` shows it.

    Raises KeyError if a value is missing.
    """
    return Markup(TEMPLATES[name].substitute({key: show(value) for key, value in values.items()}))


def show(value: Markup | str | int | float | dict | None) -> str:
    """Return a value as HTML: a text is escaped, 12345 is "12,345", and a float is a share, in percent.

    A share with its interval, a dict of value, low and high, is "12.3 % (95 % interval 9.8 to 15.1 %)".
    """
    if isinstance(value, Markup):
        return value
    if isinstance(value, dict):
        return f"{percent(value['value'])} ({interval(value)})"
    if isinstance(value, int):
        return f"{value:,}"
    return escape(value) if isinstance(value, str) else percent(value)


def join(pieces: list[Markup]) -> Markup:
    """Return the pieces one after the other, each on a line of its own."""
    return Markup("\n".join(pieces))


def percent(value: float | None, digits: int = 1) -> str:
    """Return 0.1234 as "12.3 %", NaN as a dash, and None, the share of nothing, as "none"."""
    if value is None:
        return "none"
    return "–" if math.isnan(value) else f"{100 * value:.{digits}f} %"


def interval(share: dict, digits: int = 1) -> str:
    """Return the ends of an interval, `low` and `high`, as "95 % interval 12.3 to 45.6 %"."""
    return f"95 % interval {100 * share['low']:.{digits}f} to {percent(share['high'], digits)}"


def plain(name: str) -> str:
    """Return a class name as people write it: those of CIFAR-100 have underscores in place of spaces."""
    return name.replace("_", " ")


def filter_link(text: str, **chosen: str) -> Markup:
    """Return a text that leads to the mistakes with this filter, such as true="otter", predicted="seal"."""
    return fill("filter_link", text=text, filter=urlencode(chosen))


def code(functions: list[Callable]) -> Markup:
    """Return the source of functions or classes, folded up, each with its place in the repository."""
    sources, names = [], []
    for function in map(inspect.unwrap, functions):
        lines, first = inspect.getsourcelines(function)
        file = Path(inspect.getsourcefile(function)).resolve()  # the project may be reached by a link
        path = file.relative_to(FOLDER.parent).as_posix()
        sources.append(fill("source", path=path, line=str(first), text="".join(lines).rstrip()))
        # Not by its module: report.py that runs as a command is called __main__.
        names.append(f"{Path(path).stem}.{function.__qualname__}")
    return fill("code", names=", ".join(names), sources=join(sources))


def write_page(path: Path, **values) -> None:
    """Write report.html, filled with the values, style sheet and script in it: it needs no other file."""
    style, script = (Markup((FOLDER / name).read_text(encoding="utf-8")) for name in ("style.css", "page.js"))
    with whole_file(path) as temporary:
        temporary.write_text(fill("report", style=style, script=script, **values) + "\n", encoding="utf-8")


# ---- Tables ----------------------------------------------------------------------------------------------


def table(label: str, header: list[str], rows: list[list], sortable: bool = False) -> Markup:
    """Return a table. `label` is its name for screen readers.

    A cell is a text, markup, a number as in `show`, or (text, number) for a number that is shown as the text.
    """
    is_number = [not isinstance(cell, str) for cell in rows[0]] if rows else [False] * len(header)
    head = [
        fill("number_heading" if number else "heading", text=text)
        for text, number in zip(header, is_number, strict=True)
    ]
    body = [fill("row", cells=join([table_cell(cell) for cell in row])) for row in rows]
    kind = "sortable" if sortable else "fixed"
    return fill("table", label=label, kind=kind, head=join(head), rows=join(body))


def table_cell(cell: str | int | float | tuple) -> Markup:
    """Return one cell of a table; one of a number also holds the exact value, by which the script sorts."""
    if isinstance(cell, str):
        return fill("cell", text=cell)
    text, value = cell if isinstance(cell, tuple) else (cell, cell)
    return fill("number_cell", text=text, value=str(value))


# ---- Pictures --------------------------------------------------------------------------------------------


def plot(folder: Path, figures: dict[str, tuple[Figure, str]]) -> dict[str, Markup]:
    """Write each figure to folder/<name>.png and return them as SVG for the page, {"plot_<name>": markup}.

    figures is {name: (figure, what it shows, in words for those who do not see it)}.
    """
    svgs = {}
    for name, (figure, alt) in figures.items():
        with whole_file(folder / f"{name}.png") as temporary:
            plots.save_png(figure, temporary)
        svgs[f"plot_{name}"] = Markup(plots.to_svg(figure, name, alt))
    return svgs


def png(pixels: Tensor) -> bytes:
    """Return uint8 [3, H, W] as the content of a PNG file."""
    return encode_png(pixels).numpy().tobytes()


def jpeg(pixels: Tensor) -> bytes:
    """Return uint8 [3, H, W] as the content of a JPEG file: smaller, and not quite the same pixels."""
    return encode_jpeg(pixels, quality=95).numpy().tobytes()


def picture(pixels: Tensor, alt: str, width: int, encode: Callable[[Tensor], bytes] = png) -> Markup:
    """Return uint8 [3, H, H] as a picture `width` CSS pixels wide in the page; `encode` is png or jpeg."""
    content = base64.b64encode(encode(pixels)).decode()
    return fill("picture", kind=encode.__name__, content=content, alt=alt, width=width)


def enlarge(images: Tensor, factor: int) -> Tensor:
    """Repeat each pixel of images [..., H, W] `factor` times in both directions: larger, not blurred."""
    return images.repeat_interleave(factor, dim=-2).repeat_interleave(factor, dim=-1)


def outline(pixels: Tensor, mask: Tensor) -> Tensor:
    """Draw the border of the bool mask [H, W], white beside black, into uint8 [3, k H, k W]."""
    mask = enlarge(mask, pixels.shape[-1] // mask.shape[-1])
    padded = F.pad(mask[None, None].float(), (1, 1, 1, 1))
    grown = F.max_pool2d(padded, 3, stride=1)[0, 0] > 0
    shrunk = -F.max_pool2d(-padded, 3, stride=1)[0, 0] > 0
    drawn = pixels.clone()
    drawn[:, grown & ~mask] = 0
    drawn[:, mask & ~shrunk] = 255
    return drawn

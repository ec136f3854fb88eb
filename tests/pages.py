"""For tests of the pages: what a reader sees of HTML, and pictures in it."""

import base64
import re
from html import unescape
from html.parser import HTMLParser
from types import SimpleNamespace

import torch
from matplotlib.text import Text
from torchvision.io import ImageReadMode, decode_image

from page import plots


def text(markup):
    """Return what a reader sees of HTML, without script, style and code, its white space as single blanks."""
    hidden = r'<(script|style|details class="code").*?</(script|style|details)>'
    markup = re.sub(hidden, " ", markup, flags=re.DOTALL)
    words = " ".join(re.sub(r"<[^>]*>", " ", markup).split())
    return unescape(words).replace("\N{NO-BREAK SPACE}", " ").replace(" .", ".").replace(" ,", ",")


class Elements(HTMLParser):
    """What a browser makes of HTML: `found`, its elements with `tag`, `attributes` and the `text` in them."""

    def __init__(self, markup):
        super().__init__()
        self.found, self.open = [], []
        self.feed(markup)

    def handle_starttag(self, tag, attributes):
        self.found.append(SimpleNamespace(tag=tag, attributes=dict(attributes), text=""))
        if tag not in ("img", "meta", "link"):
            self.open.append(self.found[-1])

    def handle_data(self, data):
        for element in self.open:
            element.text += data

    def handle_endtag(self, tag):
        closed = self.open.pop()
        assert closed.tag == tag, f"<{closed.tag}> ends as </{tag}>"
        closed.text = " ".join(closed.text.split())

    def all(self, tag, **attributes):
        """Return the elements of a tag, and those with these attributes only; class_ is class."""
        wanted = {key.rstrip("_"): value for key, value in attributes.items()}
        return [e for e in self.found if e.tag == tag and wanted.items() <= e.attributes.items()]


def fraction(value, width=0.1):
    return {"value": value, "low": round(value - width, 6), "high": round(value + width, 6)}


def decoded(content):
    """Return the pixels, uint8 [3, H, W], of a picture in base64 or of the bytes of a file."""
    content = base64.b64decode(content) if isinstance(content, str) else content
    return decode_image(torch.frombuffer(bytearray(content), dtype=torch.uint8), ImageReadMode.RGB)


def assert_letters_inside(figure, least):
    """The letters of a figure of a page, at least so many texts, are text in the SVG, and inside of it."""
    written = re.findall(r"<text [^>]*>([^<]+)</text>", plots.to_svg(figure, "first", ""))
    assert len(written) > least
    for text in figure.findobj(Text):
        if text.get_text() in written:
            box = Text.get_window_extent(text)  # without the line that joins a name to its curve
            assert box.x0 > -1 and box.x1 < figure.bbox.width + 1, text
            assert box.y0 > -1 and box.y1 < figure.bbox.height + 1, text

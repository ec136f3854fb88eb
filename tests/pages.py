"""For tests of the pages: what a reader sees of HTML, and pictures in it."""

import base64
import re
from html import unescape

import torch
from torchvision.io import ImageReadMode, decode_image


def text(markup):
    """Return what a reader sees of HTML, without script, style and code, its white space as single blanks."""
    hidden = r'<(script|style|details class="code").*?</(script|style|details)>'
    markup = re.sub(hidden, " ", markup, flags=re.DOTALL)
    words = " ".join(re.sub(r"<[^>]*>", " ", markup).split())
    return unescape(words).replace("\N{NO-BREAK SPACE}", " ").replace(" .", ".").replace(" ,", ",")


def fraction(value, width=0.1):
    return {"value": value, "low": round(value - width, 6), "high": round(value + width, 6)}


def decoded(content):
    """Return the pixels, uint8 [3, H, W], of a picture in base64 or of the bytes of a file."""
    content = base64.b64decode(content) if isinstance(content, str) else content
    return decode_image(torch.frombuffer(bytearray(content), dtype=torch.uint8), ImageReadMode.RGB)

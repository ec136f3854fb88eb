"""page.py: templates, tables and pictures; every template is filled and names code that exists."""

import html
import re

import pytest
import torch
from processes import ROOT

import metrics
from page import page
from page.page import Markup, fill


def test_inserted_text_is_escaped_and_markup_is_not():
    hostile = '<script>alert("1")</script>&'
    table = page.table(hostile, [{hostile: hostile, "n": ("1", 1)}, {hostile: hostile, "n": 2}])
    picture = page.picture(page.png(torch.zeros(3, 4, 4, dtype=torch.uint8)), hostile, 4)
    for markup in (table, picture, fill("source", path=hostile, line=1, text=hostile)):
        assert "<script>" not in markup and html.escape(hostile) in markup
    assert fill("cell", text=Markup("<b>bold</b>")) == "<td><b>bold</b></td>"
    assert fill("cell", text="$value ${code:metrics.accuracy}") == "<td>$value ${code:metrics.accuracy}</td>"


def test_a_template_finds_values_by_path_and_format(monkeypatch):
    template = page.PageTemplate("$n ${a.b/1.c} ${x:.2%} ${x:+.3f} ${y.z} ${text:s}")
    monkeypatch.setitem(page.TEMPLATES, "trial", template)
    values = {"n": 12345, "a": {"b/1": {"c": 0.12345}}, "x": 0.5, "y": {"z": None}}
    filled = fill("trial", **values, text="<")
    assert filled == "12,345 12.3 % 50.00 % +0.500 none &lt;".replace(" %", "\N{NO-BREAK SPACE}%")
    with pytest.raises(KeyError, match="c"):
        fill("trial", **values | {"a": {"b/1": {}}}, text="<")
    ends = {"value": 0.735, "low": 0.67, "high": 0.791}
    shown = page.show(ends).replace("\N{NO-BREAK SPACE}", " ")
    assert shown == "73.5 % (67.0–79.1)" and page.show(float("nan")) == "–"


def test_the_code_behind_a_number_is_that_of_the_function():
    shown = html.unescape(page.code("metrics.macro_average, network.predict"))
    source = (ROOT / "metrics.py").read_text()
    line = source[: source.index("def macro_average")].count("\n") + 1
    assert (
        f"<code>metrics.py</code>, from line {line}" in shown
        and "Code: metrics.macro_average, network" in shown
    )
    body = source[source.index("def macro_average") :].split("\n\n\n")[0]
    assert f">{body.rstrip()}</pre>" in shown
    assert metrics.macro_average.__doc__ in shown and "def predict(" in shown


@pytest.mark.parametrize("name", page.TEMPLATES)
def test_every_template_names_code_that_exists_and_closes_its_tags(name):
    text = page.TEMPLATES[name].template
    for names in re.findall(r"\$\{code:(.*?)\}", text, flags=re.DOTALL):
        assert page.code(names).count("<pre ") == names.count(",") + 1
    open_tags = []
    for closing, tag in re.findall(r"<(/?)([a-z]+[0-9]?)[^>]*>", text):
        if closing:
            assert open_tags.pop() == tag
        elif tag not in ("meta", "link", "img", "br", "input"):
            open_tags.append(tag)
    assert open_tags == []

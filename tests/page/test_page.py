"""page.py: templates, tables and pictures; and report.html in a real browser, where Chromium is installed."""

import base64
import html
import os
import re
import runpy

import pytest
import torch
from chromium import Chromium, find_chromium
from processes import ROOT
from torchvision.io import decode_image

from page import page
from page.page import Markup, fill

needs_chromium = pytest.mark.skipif(
    find_chromium() is None and not os.environ.get("CI"), reason="Chromium is not installed"
)

# ---- Templates, tables, pictures -------------------------------------------------------------------------


def test_a_template_by_hand():
    assert fill("number_cell", text="5 %", value="0.05") == '<td class="number" data-value="0.05">5 %</td>'


def test_inserted_text_is_escaped_and_markup_is_not():
    hostile = '<script>alert("1")</script>&'
    table = page.table(hostile, [hostile, "n"], [[hostile, ("1", 1)], [hostile, 2]])
    picture = page.picture(torch.zeros(3, 4, 4, dtype=torch.uint8), hostile, 4)
    for markup in (table, picture):
        assert "<script>" not in markup and html.escape(hostile) in markup
        assert isinstance(markup, Markup)
    assert fill("cell", text=Markup("<b>bold</b>")) == "<td><b>bold</b></td>"
    assert fill("cell", text="$value ${x}") == "<td>$value ${x}</td>"


def test_code_of_a_project_that_is_reached_by_a_link(tmp_path):
    (tmp_path / "link").symlink_to(ROOT)
    names = runpy.run_path(str(tmp_path / "link" / "page" / "against.py"))
    assert "<code>page/against.py</code>" in page.code([names["digest"]])


def test_a_missing_value_fails():
    with pytest.raises(KeyError, match="note"):
        fill("card", name="accuracy", value="5 %")


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (12345, "12,345"),
        (0.12345, "12.3 %"),
        (float("nan"), "–"),
        (None, "none"),
        ("0.5", "0.5"),
        ({"value": 0.735, "low": 0.67, "high": 0.791}, "73.5 % (95 % interval 67.0 to 79.1 %)"),
    ],
)
def test_values_as_a_reader_sees_them(value, expected):
    assert page.show(value) == expected


def test_every_template_is_named_and_has_balanced_tags():
    """Each tag that is opened is closed, in every template alone, so they fit into each other."""
    assert {"report", "training", "stress", "card", "table", "picture"} <= page.TEMPLATES.keys()
    for name, template in page.TEMPLATES.items():
        open_tags = []
        for closing, tag in re.findall(r"<(/?)([a-z]+[0-9]?)[^>]*>", template.template):
            if closing:
                assert open_tags.pop() == tag, name
            elif tag not in ("meta", "link", "img", "br", "input"):
                open_tags.append(tag)
        assert open_tags == [], name


def test_a_picture_is_stored_within_the_page():
    pixels = torch.randint(0, 256, (3, 8, 8), dtype=torch.uint8)
    content = re.search(r'src="data:image/png;base64,(.*?)"', page.picture(pixels, "alt", 64))[1]
    stored = torch.frombuffer(bytearray(base64.b64decode(content)), dtype=torch.uint8)
    assert torch.equal(decode_image(stored), pixels)


def test_outline_marks_the_border_only():
    mask = torch.zeros(32, 32, dtype=torch.bool)
    mask[10:20, 5:30] = True
    drawn = page.outline(torch.full((3, 128, 128), 90, dtype=torch.uint8), mask)
    big = mask.repeat_interleave(4, 0).repeat_interleave(4, 1)
    for y in range(128):
        for x in range(128):
            near = big[max(0, y - 1) : y + 2, max(0, x - 1) : x + 2]
            expected = 90 if near.all() or not near.any() else 255 if big[y, x] else 0
            assert drawn[:, y, x].tolist() == [expected] * 3


# ---- In a browser ----------------------------------------------------------------------------------------


@pytest.fixture
def browser(tmp_path):
    chromium = Chromium(tmp_path / "profile")
    yield chromium
    chromium.close()


def column(browser, index):
    rows = "[...document.querySelectorAll('table.sortable tbody tr')]"
    return browser.evaluate(f"{rows}.map(row => row.cells[{index}].textContent)")


@needs_chromium
@pytest.mark.parametrize("scripts", [True, False])
def test_a_small_table_sorts_with_scripts_and_is_whole_without(browser, tmp_path, scripts):
    rows = [["b", 0.1], ["c", 0.05], ["a", 12345]]
    table = page.table("table", ["name", "number"], rows, sortable=True)
    script = (page.FOLDER / "page.js").read_text(encoding="utf-8")
    file = tmp_path / "table.html"
    file.write_text(
        f"<!DOCTYPE html><meta charset='utf-8'>{table}<script>{script}</script>", encoding="utf-8"
    )
    browser.call("Emulation.setScriptExecutionDisabled", value=not scripts)
    browser.open(file.as_uri())
    root = browser.call("DOM.getDocument", depth=1)["root"]["nodeId"]
    found = {
        query: len(browser.call("DOM.querySelectorAll", nodeId=root, selector=query)["nodeIds"])
        for query in ("tbody tr", "th button")
    }
    assert found == {"tbody tr": 3, "th button": 2 if scripts else 0}
    if scripts:
        for i, expected in ((0, "a b c"), (1, "c b a"), (1, "a b c")):
            browser.evaluate(f"document.querySelectorAll('th button')[{i}].click()")
            assert " ".join(column(browser, 0)) == expected


@pytest.fixture(scope="module")
def shown(shapes_report, tmp_path_factory):
    browser = Chromium(tmp_path_factory.mktemp("profile"))
    browser.call(
        "Emulation.setDeviceMetricsOverride", width=1280, height=900, deviceScaleFactor=1, mobile=False
    )
    browser.open((shapes_report / "report.html").resolve().as_uri())
    yield browser
    browser.close()


@needs_chromium
@pytest.mark.slow
def test_no_console_error_and_no_request_to_outside(shown, shapes_report):
    urls = [
        e["params"]["request"]["url"] for e in shown.events if e.get("method") == "Network.requestWillBeSent"
    ]
    assert (shapes_report / "report.html").resolve().as_uri() in urls
    assert [url for url in urls if not url.startswith(("file:", "data:"))] == []
    failures = (
        "Runtime.exceptionThrown",
        "Runtime.consoleAPICalled",
        "Log.entryAdded",
        "Network.loadingFailed",
    )
    assert [event for event in shown.events if event.get("method") in failures] == []


@needs_chromium
@pytest.mark.slow
def test_the_table_sorts_by_click_and_by_keyboard(shown):
    names, recalls = column(shown, 0), column(shown, 3)
    assert len(names) == 100
    expected = sorted(float(text.removesuffix(" %")) for text in recalls)
    assert expected != [float(text.removesuffix(" %")) for text in recalls]
    shown.evaluate("document.querySelectorAll('table.sortable th button')[3].click()")
    assert [float(text.removesuffix(" %")) for text in column(shown, 3)] == expected
    sort = "document.querySelectorAll('table.sortable th')[3].getAttribute('aria-sort')"
    assert shown.evaluate(sort) == "ascending"
    shown.evaluate("document.querySelectorAll('table.sortable th button')[3].focus()")
    for kind in ("keyDown", "keyUp"):
        shown.call(
            "Input.dispatchKeyEvent",
            type=kind,
            key="Enter",
            code="Enter",
            text="\r",
            windowsVirtualKeyCode=13,
        )
    assert [float(text.removesuffix(" %")) for text in column(shown, 3)] == expected[::-1]
    assert shown.evaluate(sort) == "descending"
    assert sorted(column(shown, 0)) == sorted(names)


@needs_chromium
@pytest.mark.slow
def test_every_picture_has_an_alternative_text(shown):
    assert shown.evaluate("document.images.length") > 100
    assert shown.evaluate("[...document.images].filter(i => !i.alt || !i.naturalWidth).length") == 0
    assert shown.evaluate("document.querySelectorAll('svg').length") >= 10
    assert (
        shown.evaluate(
            "[...document.querySelectorAll('svg')].filter(s => !s.getAttribute('aria-label')).length"
        )
        == 0
    )


@needs_chromium
@pytest.mark.slow
def test_what_scrolls_can_be_reached_by_keyboard_and_has_a_name(shown):
    scrolling = "[...document.querySelectorAll('*')].filter(e => getComputedStyle(e).overflowX === 'auto')"
    assert shown.evaluate(f"{scrolling}.length") > 5
    scrolling += ".filter(e => e.tagName !== 'DIALOG')"  # it holds buttons, and is named by its heading
    assert shown.evaluate(f"{scrolling}.filter(e => e.tabIndex || !e.getAttribute('aria-label')).length") == 0


@needs_chromium
@pytest.mark.slow
def test_ids_are_unique_and_links_lead_somewhere(shown):
    assert shown.evaluate("[...document.querySelectorAll('[id]')].map(e => e.id).length") == shown.evaluate(
        "new Set([...document.querySelectorAll('[id]')].map(e => e.id)).size"
    )
    broken = "[...document.querySelectorAll('a, use')]"
    broken += ".map(a => a.getAttribute('href') ?? a.getAttribute('xlink:href'))"
    broken += ".filter(h => !h.includes('=') && !document.getElementById(h.slice(1)))"
    assert shown.evaluate(broken) == []


@needs_chromium
@pytest.mark.slow
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [360, 1280, 1920])
def test_screenshots(shown, tmp_path, width, scheme):
    shown.call(
        "Emulation.setDeviceMetricsOverride", width=width, height=900, deviceScaleFactor=1, mobile=width < 600
    )
    shown.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])
    # The page itself never scrolls sideways; wide plots and tables do, in their own frames.
    assert shown.evaluate("document.documentElement.scrollWidth") <= width
    shot = base64.b64decode(shown.call("Page.captureScreenshot", format="png")["data"])
    folder = os.environ.get("SCREENSHOTS")
    if folder:
        whole = shown.call("Page.captureScreenshot", format="png", captureBeyondViewport=True)["data"]
        with open(f"{folder}/report-{width}-{scheme}.png", "wb") as file:
            file.write(base64.b64decode(whole))
    picture = decode_image(torch.frombuffer(bytearray(shot), dtype=torch.uint8))[:3].float()
    assert picture.shape[-1] == width
    background = picture[:, 5, 5].mean().item()
    assert background > 240 if scheme == "light" else background < 40
    assert (picture - picture[:, 5:6, 5:6]).abs().amax(0).gt(
        60
    ).float().mean() > 0.01  # there is something on it


@needs_chromium
@pytest.mark.slow
def test_readable_without_scripts(shapes_report, tmp_path_factory):
    browser = Chromium(tmp_path_factory.mktemp("profile"))
    try:
        browser.call("Emulation.setScriptExecutionDisabled", value=True)
        browser.open((shapes_report / "report.html").resolve().as_uri())
        root = browser.call("DOM.getDocument", depth=1)["root"]["nodeId"]
        select = lambda query: browser.call("DOM.querySelectorAll", nodeId=root, selector=query)["nodeIds"]  # noqa: E731
        assert len(select("table.sortable tbody tr")) == 100
        assert select("table.sortable th button") == []
        assert len(select(".gallery .mistake")) == 20
        assert len(select(".script[hidden]")) == len(select(".script")) >= 3
        assert len(select("a[data-filter]")) > 200 and select("a[data-filter][href]") == []
    finally:
        browser.close()

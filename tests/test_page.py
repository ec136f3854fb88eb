"""report.html in a real browser: no outside request, no error, a table that sorts, phone and desktop."""

import base64
import os

import pytest
import torch
from chromium import Chromium, find_chromium
from torchvision.io import decode_image

pytestmark = pytest.mark.skipif(
    find_chromium() is None and not os.environ.get("CI"), reason="Chromium is not installed"
)


@pytest.fixture(scope="module")
def page(shapes_report, tmp_path_factory):
    browser = Chromium(tmp_path_factory.mktemp("profile"))
    browser.call(
        "Emulation.setDeviceMetricsOverride", width=1280, height=900, deviceScaleFactor=1, mobile=False
    )
    browser.open((shapes_report / "report.html").resolve().as_uri())
    yield browser
    browser.close()


def test_no_console_error_and_no_request_to_outside(page, shapes_report):
    urls = [
        e["params"]["request"]["url"] for e in page.events if e.get("method") == "Network.requestWillBeSent"
    ]
    assert (shapes_report / "report.html").resolve().as_uri() in urls
    assert [url for url in urls if not url.startswith(("file:", "data:"))] == []
    failures = (
        "Runtime.exceptionThrown",
        "Runtime.consoleAPICalled",
        "Log.entryAdded",
        "Network.loadingFailed",
    )
    assert [event for event in page.events if event.get("method") in failures] == []


def column(page, index):
    rows = "[...document.querySelectorAll('table.sortable tbody tr')]"
    return page.evaluate(f"{rows}.map(row => row.cells[{index}].textContent)")


def test_the_table_sorts_by_click_and_by_keyboard(page):
    names, recalls = column(page, 0), column(page, 3)
    assert len(names) == 100
    expected = sorted(float(text.removesuffix(" %")) for text in recalls)
    assert expected != [float(text.removesuffix(" %")) for text in recalls]
    page.evaluate("document.querySelectorAll('table.sortable th button')[3].click()")
    assert [float(text.removesuffix(" %")) for text in column(page, 3)] == expected
    sort = "document.querySelectorAll('table.sortable th')[3].getAttribute('aria-sort')"
    assert page.evaluate(sort) == "ascending"
    page.evaluate("document.querySelectorAll('table.sortable th button')[3].focus()")
    for kind in ("keyDown", "keyUp"):
        page.call(
            "Input.dispatchKeyEvent",
            type=kind,
            key="Enter",
            code="Enter",
            text="\r",
            windowsVirtualKeyCode=13,
        )
    assert [float(text.removesuffix(" %")) for text in column(page, 3)] == expected[::-1]
    assert page.evaluate(sort) == "descending"
    assert sorted(column(page, 0)) == sorted(names)


def test_every_picture_has_an_alternative_text(page):
    assert page.evaluate("document.images.length") > 100
    assert page.evaluate("[...document.images].filter(i => !i.alt || !i.naturalWidth).length") == 0
    assert page.evaluate("document.querySelectorAll('svg').length") >= 10
    assert (
        page.evaluate(
            "[...document.querySelectorAll('svg')].filter(s => !s.getAttribute('aria-label')).length"
        )
        == 0
    )


def test_ids_are_unique_and_links_lead_somewhere(page):
    assert page.evaluate("[...document.querySelectorAll('[id]')].map(e => e.id).length") == page.evaluate(
        "new Set([...document.querySelectorAll('[id]')].map(e => e.id)).size"
    )
    broken = "[...document.querySelectorAll('a, use')]"
    broken += ".map(a => a.getAttribute('href') ?? a.getAttribute('xlink:href'))"
    broken += ".filter(h => !document.getElementById(h.slice(1)))"
    assert page.evaluate(broken) == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [390, 1280])
def test_screenshots(page, tmp_path, width, scheme):
    page.call(
        "Emulation.setDeviceMetricsOverride", width=width, height=900, deviceScaleFactor=1, mobile=width < 600
    )
    page.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])
    # The page itself never scrolls sideways; wide plots and tables do, in their own frames.
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    shot = base64.b64decode(page.call("Page.captureScreenshot", format="png")["data"])
    folder = os.environ.get("SCREENSHOTS")
    if folder:
        whole = page.call("Page.captureScreenshot", format="png", captureBeyondViewport=True)["data"]
        with open(f"{folder}/report-{width}-{scheme}.png", "wb") as file:
            file.write(base64.b64decode(whole))
    picture = decode_image(torch.frombuffer(bytearray(shot), dtype=torch.uint8))[:3].float()
    assert picture.shape[-1] == width
    background = picture[:, 5, 5].mean().item()
    assert background > 240 if scheme == "light" else background < 40
    assert (picture - picture[:, 5:6, 5:6]).abs().amax(0).gt(
        60
    ).float().mean() > 0.01  # there is something on it


def test_readable_without_scripts(shapes_report, tmp_path_factory):
    browser = Chromium(tmp_path_factory.mktemp("profile"))
    try:
        browser.call("Emulation.setScriptExecutionDisabled", value=True)
        browser.open((shapes_report / "report.html").resolve().as_uri())
        root = browser.call("DOM.getDocument", depth=1)["root"]["nodeId"]
        select = lambda query: browser.call("DOM.querySelectorAll", nodeId=root, selector=query)["nodeIds"]  # noqa: E731
        assert len(select("table.sortable tbody tr")) == 100
        assert select("table.sortable th button") == []
    finally:
        browser.close()

"""The report's page in a browser: filters, links, the confusion matrices and the keyboard.

What the page shows is counted a second time, from predictions.npz.
"""

import time
from urllib.parse import urlencode

import numpy as np
import pytest
import torch
from chromium import Chromium
from test_page import needs_chromium

import data
import report
from page import page, plots, sections

pytestmark = needs_chromium
KEYS = {"Enter": 13, "Escape": 27, "Tab": 9, "ArrowLeft": 37, "ArrowRight": 39, "ArrowDown": 40}
FOUND = "document.getElementById('found').textContent"
DIALOG = "document.getElementById('mistake')"


def press(browser, key):
    text = {"text": "\r"} if key == "Enter" else {}
    for kind in ("keyDown", "keyUp"):
        browser.call(
            "Input.dispatchKeyEvent", type=kind, key=key, code=key, windowsVirtualKeyCode=KEYS[key], **text
        )


def settle():
    """Give the page time to hear of a new address, which it does in a task of its own."""
    time.sleep(0.1)


def choose(browser, **filter):
    """Set the fields of the form, as a reader would; return what the page says then."""
    browser.evaluate("document.getElementById('filter').reset()")
    for key, value in filter.items():
        browser.evaluate(f"document.getElementById('filter').elements[{key!r}].value = {value!r}")
    browser.evaluate("document.getElementById('filter').dispatchEvent(new Event('input'))")
    return browser.evaluate(FOUND)


def follow(browser, address):
    """Change the address to another place of the page, as a link does; return what the page says then."""
    browser.evaluate(f"location.hash = {address!r}")
    settle()
    return browser.evaluate(FOUND)


def files_shown(browser):
    """The file names of all mistakes that fit the filter, read from the dialog one after the other."""
    names = []
    browser.evaluate("document.querySelector('#thumbnails button').click()")
    first = browser.evaluate("document.getElementById('mistake-place').textContent")
    for _ in range(int(first.split(" of ")[1])):
        names.append(browser.evaluate("document.getElementById('mistake-file').textContent"))
        browser.evaluate("document.getElementById('mistake-next').click()")
    assert browser.evaluate("document.getElementById('mistake-place').textContent") == first
    browser.evaluate(f"{DIALOG}.close()")
    return names


# ---- Quick: a page of the mistakes alone -----------------------------------------------------------------


@pytest.fixture
def small_page(small_sets, tmp_path):
    """A page with all mistakes of a network that is right about half of the images, and hostile names."""
    test = small_sets[1]
    logits = 3 * torch.randn(100, 100, generator=torch.Generator().manual_seed(0))
    logits[torch.arange(50), test.labels[:50]] += 9
    probabilities = logits.softmax(dim=1)
    order = report.most_confident_mistakes(probabilities, test.labels, 100)
    with pytest.MonkeyPatch.context() as patch:
        names = [f'<img src=x onerror="alert({c})">&' for c in range(100)]
        patch.setattr(test, "class_names", names)
        parts = sections.browser(order, probabilities, test)
    script = (page.FOLDER / "page.js").read_text(encoding="utf-8")
    heading = "<h2 id='mistakes' tabindex='-1'>Mistakes</h2>"
    file = tmp_path / "page.html"
    file.write_text(
        "<!DOCTYPE html><meta charset='utf-8'><link rel='icon' href='data:,'>"
        f"<style>{parts['sprite']}</style>{heading}{parts['mistakes']}"
        f"<script>{script}</script>",
        encoding="utf-8",
    )
    pairs = [(names[test.labels[i]], names[probabilities[i].argmax()], test.filenames[i]) for i in order]
    return file, pairs


def test_the_address_filters_and_names_stay_text(small_page, tmp_path):
    file, pairs = small_page
    true, predicted, name = pairs[7]
    fitting = [file for *pair, file in pairs if pair == [true, predicted]]
    browser = Chromium(tmp_path / "profile")
    try:
        browser.open(f"{file.as_uri()}#{urlencode({'true': true, 'predicted': predicted})}")
        assert browser.evaluate(FOUND) == f"{len(fitting)} of {len(pairs)} mistakes"
        assert files_shown(browser) == fitting and name in fitting
        assert browser.evaluate("document.images.length") == 0
        assert true in browser.evaluate("document.querySelector('#thumbnails button').textContent")
        assert follow(browser, "#true=unicorn") == "There is no class called unicorn."
        assert browser.evaluate("document.querySelectorAll('#thumbnails button').length") == 0
        failures = ("Runtime.exceptionThrown", "Log.entryAdded")
        assert [event for event in browser.events if event["method"] in failures] == []
    finally:
        browser.close()


# ---- Slow: the whole page --------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def opened(shapes_report, tmp_path_factory):
    browser = Chromium(tmp_path_factory.mktemp("profile"))
    browser.call(
        "Emulation.setDeviceMetricsOverride", width=1280, height=900, deviceScaleFactor=1, mobile=False
    )
    browser.address = (shapes_report / "report.html").resolve().as_uri()
    browser.open(browser.address)
    yield browser
    browser.close()


@pytest.fixture(scope="module")
def mistakes(shapes_report):
    """(true class, predicted class, both superclasses, confidence, file), the most confident first."""
    predictions, test = np.load(shapes_report / "predictions.npz"), data.make_shapes(20, 1)
    names = [name.replace("_", " ") for name in test.class_names]
    coarse = [test.superclass_names[s].replace("_", " ") for s in test.superclass_of]
    rows = []
    for i, (true, predicted) in enumerate(zip(predictions["y_true"], predictions["y_pred"], strict=True)):
        if true != predicted:
            confidence = predictions["probabilities"][i, predicted].item()
            file = test.filenames[i]
            rows.append((names[true], names[predicted], coarse[true], coarse[predicted], confidence, file))
    return sorted(rows, key=lambda row: -row[4])


def says(mistakes, count):
    return f"{count:,} of {len(mistakes):,} mistakes"


@pytest.mark.slow
def test_each_filter_gives_the_right_images(opened, mistakes):
    assert choose(opened) == says(mistakes, len(mistakes))
    true, predicted, coarse, coarse_predicted, *_ = mistakes[3]
    fields = {"true": true, "predicted": predicted, "superclass": coarse}
    fields["predicted_superclass"] = coarse_predicted
    for column, (key, name) in enumerate(fields.items()):
        count = sum(row[column] == name for row in mistakes)
        assert choose(opened, **{key: name}) == says(mistakes, count), key
    for low, high in ((0, 20), (20, 35.5), (50, 100)):
        fitting = [row for row in mistakes if low / 100 <= round(row[4], 6) <= high / 100]
        expected = says(mistakes, len(fitting)) if fitting else "No mistake fits this choice."
        assert choose(opened, **{"from": str(low), "to": str(high)}) == expected
    choose(opened, true=true, predicted=predicted)
    assert files_shown(opened) == [row[5] for row in mistakes if row[:2] == (true, predicted)]
    assert opened.evaluate("location.hash") == "#" + urlencode({"true": true, "predicted": predicted})


@pytest.mark.slow
def test_the_most_confident_come_first_and_more_on_request(opened, mistakes):
    choose(opened)
    shown = "[...document.querySelectorAll('#thumbnails button b')].map(b => b.textContent)"
    for count in (60, 120):
        expected = [f"{row[1]} {100 * round(row[4], 6):.1f}\xa0%" for row in mistakes[:count]]
        assert opened.evaluate(shown) == expected
        opened.evaluate("document.getElementById('more').click()")
    assert opened.evaluate("document.activeElement === document.querySelectorAll('#thumbnails button')[120]")


@pytest.mark.slow
def test_the_address_restores_a_filter(opened, mistakes):
    true, predicted = mistakes[5][:2]
    count = sum(row[:2] == (true, predicted) for row in mistakes)
    opened.open("about:blank")
    opened.open(f"{opened.address}#{urlencode({'true': true, 'predicted': predicted, 'from': 1})}")
    assert opened.evaluate(FOUND) == says(mistakes, count)
    fields = "['true', 'predicted', 'superclass', 'from', 'to'].map(key => filter.elements[key].value)"
    assert opened.evaluate(f"(filter => {fields})(document.getElementById('filter'))") == [
        true, predicted, "", "1", ""]  # fmt: skip
    assert 0 <= opened.evaluate("document.getElementById('mistakes').getBoundingClientRect().top") < 100
    opened.evaluate("document.querySelector('#filter [type=reset]').click()")
    settle()
    assert opened.evaluate(FOUND) == says(mistakes, len(mistakes))
    assert opened.evaluate("location.hash") == "#mistakes"


@pytest.mark.slow
def test_pairs_without_a_mistake_say_so(opened, mistakes):
    names = sorted({row[0] for row in mistakes})
    never = next((t, p) for t in names for p in names if t != p and (t, p) not in {r[:2] for r in mistakes})
    said = follow(opened, "#" + urlencode({"true": never[0], "predicted": never[1]}))
    assert said == f"No test image of the class {never[0]} is taken for {never[1]}."
    assert follow(opened, "#" + urlencode({"true": names[0], "predicted": names[0]})).endswith("is right.")


@pytest.mark.slow
def test_links_of_the_tables_lead_to_their_mistakes(opened, mistakes):
    links = opened.evaluate("[...document.querySelectorAll('a[data-filter]')].map(a => a.hash)")
    assert len(links) > 300 and len(set(links)) > 200
    for link in [*links[:20:7], *links[20:26], links[-1]]:
        chosen = dict(pair.split("=") for pair in link[1:].replace("+", " ").split("&"))
        columns = {"true": 0, "predicted": 1, "superclass": 2}
        fitting = [row for row in mistakes if all(row[columns[k]] == v for k, v in chosen.items())]
        opened.evaluate(f"document.querySelector('a[data-filter][href=\"{link}\"]').click()")
        settle()
        assert opened.evaluate("location.hash") == link
        assert opened.evaluate(FOUND) == (
            says(mistakes, len(fitting)) if fitting else "No mistake fits this choice."
        )
    # The same link once more leads there again, although the address stays the same.
    opened.evaluate("document.activeElement.blur()")
    opened.evaluate(f"document.querySelector('a[data-filter][href=\"{link}\"]').click()")
    settle()
    assert opened.evaluate("document.activeElement.id") == "mistakes"


@pytest.mark.slow
@pytest.mark.parametrize("matrix", [0, 1])
def test_a_cell_names_its_pair_and_leads_to_its_mistakes(opened, mistakes, matrix):
    """The figures stand in this order: by class, by superclass."""
    test = data.make_shapes(20, 1)
    if matrix == 0:
        order = sorted(range(100), key=lambda c: (int(test.superclass_of[c]), c))
        names, total = [test.class_names[c].replace("_", " ") for c in order], 20
    else:
        names = [name.replace("_", " ") for name in test.superclass_names]
        total = 2000 // len(names)
    columns = slice(0, 2) if matrix == 0 else slice(2, 4)
    key = ("true", "predicted") if matrix == 0 else ("superclass", "predicted_superclass")
    (true, predicted), *_ = (row[columns] for row in mistakes if row[columns][0] != row[columns][1])
    for pair in ((true, predicted), (predicted, predicted)):
        i, j = (names.index(name) for name in pair)
        cells = f"document.querySelectorAll('.cells')[{matrix}]"
        opened.evaluate(f"{cells}.scrollIntoView({{block: 'center'}})")
        box = opened.evaluate(f"(b => [b.left, b.top, b.width, b.height])({cells}.getBoundingClientRect())")
        x, y = box[0] + (j + 0.5) * box[2] / len(names), box[1] + (i + 0.5) * box[3] / len(names)
        if not 0 < y < 900:
            opened.evaluate(f"scrollBy({{top: {y - 450}, behavior: 'instant'}})")
            y = 450
        opened.call("Input.dispatchMouseEvent", type="mouseMoved", x=x, y=y)
        count = sum(row[columns] == pair for row in mistakes)
        said = opened.evaluate(f"document.querySelectorAll('.cover output')[{matrix}].textContent")
        if i != j:
            assert said == f"{true} taken for {predicted}: {count} of {total}"
        else:
            wrong = sum(row[columns][0] == predicted != row[columns][1] for row in mistakes)
            assert said.startswith(f"{predicted}: {total - wrong} of {total} right")
        for kind in ("mousePressed", "mouseReleased"):
            opened.call("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", clickCount=1)
        settle()
        chosen = dict(zip(key, pair, strict=True))
        if i == j and matrix == 0:
            chosen, count = {"true": predicted}, sum(row[0] == predicted for row in mistakes)
        assert opened.evaluate("location.hash") == "#" + urlencode(chosen)
        assert opened.evaluate(FOUND) == says(mistakes, count)


@pytest.mark.slow
def test_a_mistake_by_keyboard(opened, mistakes):
    choose(opened)
    opened.evaluate("document.querySelectorAll('#thumbnails button')[1].focus()")
    press(opened, "Enter")
    assert opened.evaluate(f"{DIALOG}.open")
    for key, index in (("ArrowRight", 2), ("ArrowRight", 3), ("ArrowLeft", 2)):
        press(opened, key)
        true, predicted, *_, confidence, file = mistakes[index]
        text = opened.evaluate(f"{DIALOG}.innerText")
        assert f"{true}, taken for {predicted}" in text and file in text
        assert f"{100 * round(confidence, 6):.1f}\xa0%" in text
        assert f"{index + 1} of {len(mistakes)}" in text
    assert opened.evaluate("document.querySelectorAll('#mistake-likely li').length") == 5
    assert opened.evaluate("getComputedStyle(document.getElementById('mistake-picture')).imageRendering") == (
        "pixelated"
    )
    press(opened, "Escape")
    assert not opened.evaluate(f"{DIALOG}.open")
    assert opened.evaluate("document.activeElement === document.querySelectorAll('#thumbnails button')[2]")
    # The cells of a matrix: the arrow keys move, Enter leads to the mistakes.
    opened.evaluate("document.querySelector('.cells').focus()")
    before = opened.evaluate("document.querySelector('.cover output').textContent")
    press(opened, "ArrowDown")
    assert opened.evaluate("document.querySelector('.cover output').textContent") != before
    press(opened, "Enter")
    settle()
    assert opened.evaluate("document.activeElement.id") == "mistakes"


@pytest.mark.slow
def test_tab_reaches_everything(opened):
    choose(opened, **{"from": "99"})  # few pictures
    opened.evaluate("scrollTo(0, 0); document.activeElement.blur(); getSelection().removeAllRanges()")
    opened.evaluate("document.querySelector('nav a').focus()")
    controls = 'a[href^="#"], button, select, input, summary, [tabindex="0"]'
    opened.evaluate(f"""wanted = new Set([...document.querySelectorAll('{controls}')]
        .filter(e => e.checkVisibility() && !e.closest('svg') && !e.closest('dialog')))""")
    count = opened.evaluate("wanted.size")
    assert count > 300
    for _ in range(count + 50):
        opened.evaluate("wanted.delete(document.activeElement)")
        press(opened, "Tab")
    assert opened.evaluate("[...wanted].map(e => e.outerHTML.slice(0, 200))") == []


CONTRAST = """(() => {
  const canvas = document.createElement("canvas").getContext("2d", { willReadFrequently: true });
  const channels = (colour) => {
    canvas.clearRect(0, 0, 1, 1); canvas.fillStyle = colour; canvas.fillRect(0, 0, 1, 1);
    return [...canvas.getImageData(0, 0, 1, 1).data];
  };
  const luminance = (colour) => channels(colour).slice(0, 3).map((c) => c / 255)
    .map((c) => c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4)
    .reduce((sum, c, i) => sum + c * [0.2126, 0.7152, 0.0722][i], 0);
  const root = getComputedStyle(document.documentElement);
  const behind = (element) => {  // every colour that can stand behind its text
    for (let e = element; e; e = e.parentElement) {
      const style = getComputedStyle(e);
      if (style.backgroundImage.startsWith("linear-gradient")) {
        const stops = style.backgroundImage.match(/rgba?\\([^)]*\\)/g).filter((c) => channels(c)[3] === 255);
        return stops.length > 1 ? stops : [...stops, ...behind(e.parentElement)];
      }
      if (channels(style.backgroundColor)[3] === 255) return [style.backgroundColor];
    }
    return [root.getPropertyValue("--page")];
  };
  const worst = new Map();
  const texts = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (texts.nextNode()) {
    const element = texts.currentNode.parentElement;
    if (!texts.currentNode.data.trim() || element.closest("script, style, svg, noscript, .bar")) continue;
    for (const background of behind(element)) {
      const pair = [getComputedStyle(element).color, background];
      const [dark, bright] = pair.map(luminance).sort((a, b) => a - b);
      const ratio = (bright + 0.05) / (dark + 0.05), key = element.tagName + "." + element.className;
      if (!(worst.get(key) <= ratio)) worst.set(key, ratio);
    }
  }
  return Object.fromEntries(worst);
})()"""


@pytest.mark.slow
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_contrast_of_text(opened, scheme):
    opened.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])
    opened.evaluate("document.querySelectorAll('details').forEach(d => d.open = true)")
    choose(opened)
    opened.evaluate("document.querySelector('#thumbnails button').click()")
    found = opened.evaluate(CONTRAST)
    opened.evaluate(f"{DIALOG}.close(); document.querySelectorAll('details').forEach(d => d.open = false)")
    assert len(found) > 20 and {"TD.number", "SUMMARY.", "B.", "LI."} <= found.keys()
    assert {name: ratio for name, ratio in found.items() if ratio < 4.5} == {}
    # The letters of the plots have the colour --ink and stand on the page.
    ink = opened.evaluate("getComputedStyle(document.documentElement).getPropertyValue('--ink')")
    assert plots.CSS_VARIABLES[plots.STYLE["text.color"]] == "ink" and ink


@pytest.mark.slow
def test_no_console_error_after_all_of_this(opened):
    failures = {"Runtime.exceptionThrown", "Runtime.consoleAPICalled", "Log.entryAdded"}
    assert [event for event in opened.events if event.get("method") in failures] == []

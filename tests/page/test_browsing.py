"""The report's page in Chromium: filters, links, confusion matrices and the keyboard.

What the page shows is counted a second time, from predictions.npz.
"""

import os
import time
from urllib.parse import parse_qsl, urlencode

import matplotlib
import numpy as np
import pytest
import torch
from chromium import Chromium, find_chromium

from data import to_input
from gradcam import GradCAM, overlay, to_heatmap
from train import load_model

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        find_chromium() is None and not os.environ.get("CI"), reason="Chromium is not installed"
    ),
]
KEYS = {
    "Enter": 13,
    "Escape": 27,
    "Tab": 9,
    "ArrowLeft": 37,
    "ArrowRight": 39,
    "ArrowUp": 38,
    "ArrowDown": 40,
}
FOUND = "document.getElementById('found').textContent"
DIALOG = "document.getElementById('mistake')"
CELLS = "document.getElementById('matrix-cells')"
SAYS = "document.getElementById('matrix-says')"
THUMBNAILS = "document.querySelectorAll('#thumbnails button')"


@pytest.fixture(scope="module")
def opened(reported, tmp_path_factory):
    browser = Chromium(tmp_path_factory.mktemp("profile"))
    browser.call(
        "Emulation.setDeviceMetricsOverride", width=1280, height=900, deviceScaleFactor=1, mobile=False
    )
    browser.address = (reported / "report.html").resolve().as_uri()
    browser.open(browser.address)
    yield browser
    browser.close()


@pytest.fixture(scope="module")
def misclassified(reported, reported_sets):
    """(true class, predicted class, both superclasses, confidence, file), the most confident first."""
    predictions, test = np.load(reported / "predictions.npz"), reported_sets[1]
    coarse = [test.superclass_names[s] for s in test.superclass_of]
    rows = []
    for i, (true, predicted) in enumerate(zip(predictions["y_true"], predictions["y_pred"], strict=True)):
        if true != predicted:
            names = [(test.class_names[c], coarse[c]) for c in (true, predicted)]
            confidence = predictions["probabilities"][i, predicted].item()
            rows.append((names[0][0], names[1][0], names[0][1], names[1][1], confidence, test.filenames[i]))
    return sorted(rows, key=lambda row: -row[4])


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


def says(misclassified, fitting):
    none = "No mistake on this page fits this choice."
    return f"{len(fitting)} of {len(misclassified)} mistakes" if fitting else none


def test_no_error_no_request_to_outside_and_names_stay_text(opened):
    kinds = ["Network.requestWillBeSent", "Runtime.exceptionThrown", "Log.entryAdded"]
    kinds += ["Page.javascriptDialogOpening"]
    events = {kind: [event for event in opened.events if event.get("method") == kind] for kind in kinds}
    urls = [event["params"]["request"]["url"] for event in events.pop("Network.requestWillBeSent")]
    assert opened.address in urls and [u for u in urls if not u.startswith(("file:", "data:"))] == []
    assert not any(events.values())
    assert opened.evaluate("document.images.length") > 100
    assert (
        opened.evaluate(
            "[...document.images].filter(i => !i.naturalWidth || !i.alt && !i.closest('[hidden]')).length"
        )
        == 0
    )
    assert opened.evaluate("[...document.querySelectorAll('svg')].filter(s => !s.ariaLabel).length") == 0
    ids = "[...document.querySelectorAll('[id]')].map(e => e.id)"
    assert opened.evaluate(f"{ids}.length") == opened.evaluate(f"new Set({ids}).size")


def test_each_filter_gives_the_right_images(opened, misclassified):
    assert choose(opened) == says(misclassified, misclassified)
    for column, key in enumerate(("true", "predicted", "superclass", "predicted_superclass")):
        name = misclassified[3][column]
        fitting = [row for row in misclassified if row[column] == name]
        assert choose(opened, **{key: name}) == says(misclassified, fitting), key
    for low, high in ((0, 20), (20, 55.5), (99.9999, 100)):
        fitting = [row for row in misclassified if low / 100 <= round(row[4], 6) <= high / 100]
        assert choose(opened, **{"from": str(low), "to": str(high)}) == says(misclassified, fitting)
    assert choose(opened) == says(misclassified, misclassified)
    shown = "[...document.querySelectorAll('#thumbnails button b')].map(b => b.textContent)"
    for count in (60, 120):
        expected = [f"{row[1]} {100 * round(row[4], 6):.1f}\xa0%" for row in misclassified[:count]]
        assert opened.evaluate(shown) == expected
        opened.evaluate("document.getElementById('more').click()")


def test_the_address_restores_a_filter(opened, misclassified):
    true, predicted = misclassified[5][:2]
    chosen = {"true": true, "predicted": predicted, "from": "1"}
    opened.open("about:blank")
    opened.open(f"{opened.address}#{urlencode(chosen)}")
    assert opened.evaluate(FOUND) == says(
        misclassified, [r for r in misclassified if r[:2] == (true, predicted)]
    )
    fields = "['true', 'predicted', 'from'].map(key => filter.elements[key].value)"
    assert opened.evaluate(f"(filter => {fields})(document.getElementById('filter'))") == list(
        chosen.values()
    )
    opened.evaluate("location.hash = '#true=unicorn'")
    settle()
    assert opened.evaluate(FOUND) == "No mistake on this page fits this choice."


def test_links_of_the_tables_lead_to_their_images(opened, misclassified):
    links = opened.evaluate("[...document.querySelectorAll('td a[data-filter]')].map(a => a.hash)")
    assert len(links) > 200
    columns = {"true": 0, "predicted": 1, "superclass": 2}
    for link in [*links[:22:7], *links[30:40]]:
        chosen = dict(parse_qsl(link[1:]))
        fitting = [r for r in misclassified if all(r[columns[key]] == name for key, name in chosen.items())]
        opened.evaluate(f"document.querySelector('a[data-filter][href=\"{link}\"]').click()")
        settle()
        assert opened.evaluate(FOUND) == says(misclassified, fitting)


@pytest.mark.parametrize("coarse", [False, True])
def test_a_cell_counts_all_its_images_and_leads_to_them(opened, misclassified, reported_sets, coarse):
    test = reported_sets[1]
    order = sorted(range(100), key=lambda c: (int(test.superclass_of[c]), c))
    names = test.superclass_names if coarse else [test.class_names[c] for c in order]
    total, columns = 400 // len(names), slice(2, 4) if coarse else slice(0, 2)
    keys = ("superclass", "predicted_superclass") if coarse else ("true", "predicted")
    draw_matrix(opened, by=keys[0].replace("true", "class"), numbers="count")
    labels = "[...document.querySelectorAll('#matrix-{} li')].map(item => item.textContent)"
    assert opened.evaluate(labels.format("rows")) == opened.evaluate(labels.format("columns")) == names
    wrong_pair = next(row[columns] for row in misclassified if row[columns][0] != row[columns][1])
    answers = {
        name: sum(row[columns][1] == name != row[columns][0] for row in misclassified) for name in names
    }
    for pair in (wrong_pair, (wrong_pair[0],) * 2):
        i, j = (names.index(name) for name in pair)
        opened.evaluate(f"{CELLS}.scrollIntoView({{block: 'center'}})")
        box = opened.evaluate(f"(b => [b.left, b.top, b.width, b.height])({CELLS}.getBoundingClientRect())")
        x, y = box[0] + (j + 0.5) * box[2] / len(names), box[1] + (i + 0.5) * box[3] / len(names)
        if not 100 < y < 800:  # nor below the links at the top
            opened.evaluate(f"scrollBy({{top: {y - 450}, behavior: 'instant'}})")
            y = 450
        opened.call("Input.dispatchMouseEvent", type="mouseMoved", x=x, y=y)
        fitting = [row for row in misclassified if row[columns] == pair]
        wrong = sum(row[columns][0] == pair[0] != row[columns][1] for row in misclassified)
        count = total - wrong if i == j else len(fitting)
        what = f"{pair[0]} recognised" if i == j else f"{pair[0]} taken for {pair[1]}"
        said = opened.evaluate(f"{SAYS}.textContent")
        assert said.startswith(f"{what}: {count} of {total} images of {pair[0]} (")
        assert f"({100 * count / total:.1f}\xa0%)" in said
        draw_matrix(opened, numbers="column")
        opened.call("Input.dispatchMouseEvent", type="mouseMoved", x=x, y=y)
        predicted = (
            answers[pair[1]]
            + total
            - sum(row[columns][0] == pair[1] != row[columns][1] for row in misclassified)
        )
        assert opened.evaluate(f"{SAYS}.textContent").startswith(f"{what}: {count} of {predicted} answers")
        draw_matrix(opened, numbers="count")
        for kind in ("mousePressed", "mouseReleased"):
            opened.call("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", clickCount=1)
        settle()
        chosen = dict(zip(keys, pair, strict=True))
        if i == j and not coarse:
            chosen, fitting = {"true": pair[0]}, [row for row in misclassified if row[0] == pair[0]]
        assert dict(parse_qsl(opened.evaluate("location.hash")[1:])) == chosen
        assert opened.evaluate(FOUND) == says(misclassified, fitting)


def draw_matrix(browser, **chosen):
    form = "document.getElementById('matrix-choice')"
    for key, value in chosen.items():
        browser.evaluate(f"{form}.elements[{key!r}].value = {value!r}")
    browser.evaluate(f"{form}.dispatchEvent(new Event('input'))")


@pytest.mark.parametrize("numbers", ["count", "row", "column"])
def test_the_colour_of_a_cell_is_its_share(opened, misclassified, reported, reported_sets, numbers):
    """Each share is counted a second time; the colour is that of matplotlib's inferno at its root."""
    test, predictions = reported_sets[1], np.load(reported / "predictions.npz")
    draw_matrix(opened, by="class", numbers=numbers)
    order = np.array(sorted(range(100), key=lambda c: (int(test.superclass_of[c]), c)))
    counts = np.zeros((100, 100))
    for true, predicted in zip(predictions["y_true"], predictions["y_pred"], strict=True):
        counts[true, predicted] += 1
    whole = {
        "count": counts.max(),
        "row": counts.sum(1, keepdims=True),
        "column": counts.sum(0, keepdims=True),
    }
    shares = (counts / np.maximum(1, whole[numbers]))[order][:, order]
    pixels = f"{CELLS}.getContext('2d').getImageData(0, 0, 2000, 2000).data"
    seen = np.array(opened.evaluate(f"[...{pixels}]")).reshape(2000, 2000, 4)[10::20, 10::20, :3]
    expected = 255 * matplotlib.colormaps["inferno"](np.sqrt(shares))[..., :3]
    assert np.abs(seen - expected).max() < 4


@pytest.mark.parametrize("index", [0, 7, 23])
def test_evidence_is_that_of_gradcam_and_overlay(opened, misclassified, reported, reported_sets, index):
    """On the picture that the page holds, which is a JPEG; the maps are bytes."""
    row, test = misclassified[index], reported_sets[1]
    model, checkpoint = load_model(reported / "checkpoints" / "best.pt", torch.device("cpu"))
    i = test.filenames.index(row[5])
    x = to_input(test.images[i : i + 1], checkpoint["config"]["image_size"])
    choose(opened)
    opened.evaluate(f"{THUMBNAILS}[{index}].click()")

    def pixels(canvas):
        data = f"document.getElementById('{canvas}').getContext('2d').getImageData(0, 0, 256, 256).data"
        return np.array(opened.evaluate(f"[...{data}]")).reshape(256, 256, 4)[..., :3]

    picture = pixels("mistake-picture")
    assert np.abs(picture[::8, ::8] - test.images[i].permute(1, 2, 0).numpy()).mean() < 12
    shown = torch.from_numpy(picture / 255).float().permute(2, 0, 1)[None]
    for kind, name in zip(("true", "predicted"), row[:2], strict=True):
        with GradCAM(model, "layer4") as cam:
            maps = cam(x, [test.class_names.index(name)])
        expected = overlay(shown, to_heatmap(maps, 256))[0].permute(1, 2, 0).numpy()
        difference = np.abs(pixels(f"evidence-{kind}") - expected.astype(int))
        assert difference.max() <= 6 and difference.mean() < 1, (kind, difference.max(), difference.mean())
    opened.evaluate("document.getElementById('show-evidence').click()")
    assert "evidence for" not in opened.evaluate(f"{DIALOG}.innerText")
    opened.evaluate("document.getElementById('show-evidence').click()")
    assert f"evidence for {row[0]}" in opened.evaluate(f"{DIALOG}.innerText")
    press(opened, "Escape")


def test_what_other_runs_said(opened, misclassified, reported, reported_sets):
    predictions, test = np.load(reported.parent / "other" / "predictions.npz"), reported_sets[1]
    wrong = [row for row in misclassified if predictions["y_pred"][test.filenames.index(row[5])]
             != test.class_names.index(row[0])]  # fmt: skip
    right = [row for row in misclassified if row not in wrong]
    assert wrong and right and choose(opened, runs="right") == says(misclassified, right)
    assert choose(opened, runs="wrong") == says(misclassified, wrong)
    opened.evaluate(f"{THUMBNAILS}[0].click()")
    i = test.filenames.index(wrong[0][5])
    answer, probability = predictions["y_pred"][i], predictions["probabilities"][i].max().item()
    said = f"says {test.class_names[answer]} ({100 * round(probability, 6):.1f}\xa0%)."
    assert said in opened.evaluate(f"{DIALOG}.innerText")
    press(opened, "Escape")


def test_an_image_by_keyboard(opened, misclassified):
    choose(opened)
    opened.evaluate(f"{THUMBNAILS}[1].focus()")
    press(opened, "Enter")
    assert opened.evaluate(f"{DIALOG}.open")
    for key, index in (("ArrowRight", 2), ("ArrowRight", 3), ("ArrowLeft", 2)):
        press(opened, key)
        true, predicted, *_, confidence, file = misclassified[index]
        text = opened.evaluate(f"{DIALOG}.innerText")
        assert f"{true}, taken for {predicted}" in text and file in text
        assert (
            f"{100 * round(confidence, 6):.1f}\xa0%" in text
            and f"{index + 1} of {len(misclassified)}" in text
        )
        assert dict(parse_qsl(opened.evaluate("location.hash")[1:])) == {"open": file}
    address = opened.evaluate("location.href")
    press(opened, "Escape")
    settle()
    assert opened.evaluate(f"document.activeElement === {THUMBNAILS}[2]")
    opened.evaluate(f"{THUMBNAILS}[3].click()")
    opened.evaluate("history.back()")
    settle()
    assert not opened.evaluate(f"{DIALOG}.open") and "open=" not in opened.evaluate("location.hash")
    opened.open("about:blank")
    opened.open(address)
    settle()
    assert misclassified[2][5] in opened.evaluate(f"{DIALOG}.innerText")
    press(opened, "Escape")
    opened.evaluate(f"{CELLS}.focus()")
    before = opened.evaluate(f"{SAYS}.textContent")
    press(opened, "ArrowDown")
    assert opened.evaluate(f"{SAYS}.textContent") != before
    press(opened, "ArrowUp")
    press(opened, "Enter")  # a cell of the diagonal always leads somewhere
    settle()
    assert opened.evaluate("document.activeElement.id") == "mistakes"


def test_tables_sort_by_click_and_by_keyboard(opened):
    cells = "[...document.querySelectorAll('table.sortable tbody tr')].map(row => row.cells[{}].textContent)"
    names, recalls = (opened.evaluate(cells.format(column)) for column in (0, 3))
    expected = sorted(float(text.removesuffix("\xa0%")) for text in recalls)
    assert [float(text.removesuffix("\xa0%")) for text in recalls] == expected  # the hardest classes first
    shown = "[...document.querySelectorAll('table.sortable tbody tr')].filter(row => row.offsetHeight).length"
    assert opened.evaluate(shown) == 10
    opened.evaluate("document.querySelector('button.all-rows').click()")
    assert opened.evaluate(shown) == 100
    opened.evaluate("document.querySelectorAll('table.sortable th button')[3].focus()")
    for order in (expected, expected[::-1]):
        press(opened, "Enter")
        assert [float(text.removesuffix("\xa0%")) for text in opened.evaluate(cells.format(3))] == order
    assert sorted(opened.evaluate(cells.format(0))) == sorted(names)


@pytest.mark.parametrize("width", [360, 1280])
def test_the_page_itself_never_scrolls_sideways(opened, width):
    """Wide plots and tables do, in their own frames."""
    size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 600}
    opened.call("Emulation.setDeviceMetricsOverride", **size)
    assert opened.evaluate("document.documentElement.scrollWidth") <= width


def test_readable_without_scripts(reported, tmp_path):
    browser = Chromium(tmp_path / "profile")
    try:
        browser.call("Emulation.setScriptExecutionDisabled", value=True)
        browser.open((reported / "report.html").resolve().as_uri())
        root = browser.call("DOM.getDocument", depth=1)["root"]["nodeId"]

        def count(query):
            return len(browser.call("DOM.querySelectorAll", nodeId=root, selector=query)["nodeIds"])

        assert count("table.sortable tbody tr") == 100 and count("table.sortable th button") == 0
        assert count(".gallery .mistake") == 2 and count(".script[hidden]") == count(".script") >= 3
        assert count("a[data-filter]") > 200 and count("td a[data-filter][href]") == 0
    finally:
        browser.close()

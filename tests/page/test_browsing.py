"""The report's page in Chromium: what its controls show is computed a second time, from predictions.npz."""

import json
import re
from collections import Counter
from pathlib import Path
from urllib.parse import parse_qsl, urlencode

import matplotlib
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from chromium import needs_chromium, opened_page
from pages import EPSILONS, decoded, stress_content
from processes import CPU

import data
import report
from gradcam import GradCAM, overlay
from network import load_checkpoint
from stress_tests.explanations import cover

pytestmark = [pytest.mark.slow, needs_chromium]
KEYS = ("true", "predicted", "superclass", "predicted_superclass")
LIST = "#thumbnails button"


@pytest.fixture(scope="module")
def browser_page(reported):
    with opened_page() as page:
        page.address = (reported / "report.html").as_uri()
        yield page
        assert page.errors == []


@pytest.fixture
def page(browser_page):
    browser_page.set_viewport_size({"width": 1280, "height": 900})
    browser_page.goto("about:blank")
    browser_page.goto(browser_page.address)
    return browser_page


@pytest.fixture(scope="module")
def predictions(reported):
    """Those of the run, and of the one that it is compared with."""
    return [np.load(reported.parent / name / "predictions.npz") for name in ("run", "other <b>run")]


@pytest.fixture(scope="module")
def answers(predictions, reported_sets):
    """Classes, superclasses, confidence and file of each test image, the most confident first."""
    rows, test = [], reported_sets[1]
    for i, row in enumerate(predictions[0]["probabilities"]):
        classes = [test.labels[i].item(), row.argmax().item()]
        groups = [test.superclass_names[test.superclass_of[c]] for c in classes]
        names = dict(zip(KEYS, [*(test.class_names[c] for c in classes), *groups], strict=True))
        rows.append(names | {"confidence": row.max().item(), "file": test.filenames[i], "index": i})
    return sorted(rows, key=lambda row: -row["confidence"])


@pytest.fixture(scope="module")
def mistakes(answers):
    return [row for row in answers if row["true"] != row["predicted"]]


def choose(page, **filter):
    """Set the fields of the form, as a reader would; return what the page says then."""
    page.click("#filter [type=reset]")
    page.wait_for_timeout(20)
    for name, value in filter.items():
        field = page.locator(f"#filter [name={name}]")
        field.fill(value) if name in ("from", "to") else field.select_option(value)
    return page.inner_text("#found")


def says(mistakes, count):
    return f"{count} of {len(mistakes)} mistakes" if count else "No mistake on this page fits this choice."


def fitting(mistakes, filter):
    return [row for row in mistakes if all(row[key] == value for key, value in filter.items())]


def names_of(mistakes):
    return [f"{row['predicted']} {100 * row['confidence']:.1f}\xa0%" for row in mistakes]


def address(page):
    """What the address says, once the page has heard of it, which takes a task of its own."""
    page.wait_for_timeout(50)
    return dict(parse_qsl(page.evaluate("location.hash")[1:]))


def pixels(page, canvas):
    """What a canvas shows, int32 [3, H, W]."""
    return decoded(page.evaluate(f"document.getElementById('{canvas}').toDataURL()").split(",")[1]).int()


def numbers(text):
    return [float(number.replace(",", "")) for number in re.findall(r"\d[\d,.]*", text)]


# ---- The page as a whole ---------------------------------------------------------------------------------


def test_no_error_no_request_and_nothing_is_cut_off(page):
    outside = [url for url in page.requests if not url.startswith(("file:", "data:", "about:"))]
    assert page.errors == [] and outside == []
    ids = page.evaluate("[...document.querySelectorAll('[id]')].map(e => e.id)")
    assert len(ids) == len(set(ids))
    assert page.evaluate("[...document.images].every(i => i.naturalWidth) && document.images.length") > 20
    cut_off = """[...document.querySelectorAll('svg text')].filter(text => {
        const [a, b] = [text, text.ownerSVGElement].map(e => e.getBoundingClientRect());
        return a.left < b.left - 2 || a.right > b.right + 2 || a.top < b.top - 2 || a.bottom > b.bottom + 2;
    }).map(text => text.textContent)"""
    assert page.evaluate(cut_off) == [] and page.locator("svg text").count() > 50


@pytest.mark.parametrize("width", [1280, 390, 320])
def test_the_navigation_leads_to_every_section(page, width):
    page.set_viewport_size({"width": width, "height": 900})
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    linked = page.evaluate("[...document.querySelectorAll('nav a')].map(a => a.hash)")
    assert linked == page.evaluate("[...document.querySelectorAll('h2')].map(h => '#' + h.id)")
    height = page.locator("nav").bounding_box()["height"]
    assert height < 60
    for link in page.locator("nav a").all():
        if width < 1000:
            page.click("#menu")
        link.click()
        page.wait_for_function("document.querySelector('nav [aria-current]').hash === location.hash")
        assert height <= page.locator("h2" + link.get_attribute("href")).bounding_box()["y"] < 900


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 390])
def test_axe_finds_nothing(reported, scheme, width):
    axe = pytest.importorskip("axe_playwright_python", reason="needs: pip install axe-playwright-python")
    with opened_page(color_scheme=scheme) as page:
        page.set_viewport_size({"width": width, "height": 900})
        page.goto((reported / "report.html").as_uri())
        page.evaluate((Path(axe.__file__).parent / "axe.min.js").read_text(encoding="utf-8"))
        for selector in ("button.all-rows", ".code summary >> nth=0", f"{LIST} >> nth=0"):
            page.click(selector)
            violations = "(await axe.run()).violations.map(v => [v.id, v.nodes.map(n => n.html)])"
            assert page.evaluate(f"async () => {violations}") == []


def test_readable_without_scripts(reported):
    with opened_page(java_script_enabled=False) as page:
        page.goto((reported / "report.html").as_uri())
        pictures = {".case img": 4, ".thumb img": 5, "#corrupted figure": 8, "#attacked .sheet": 18}
        captions = {"#corrupted .right, #corrupted .wrong": 8, "#attacked .right, #attacked .wrong": 6}
        for query, count in (pictures | captions | {"svg": 10, ".classes tbody tr": 100}).items():
            assert page.locator(query).filter(visible=True).count() >= count, query
        assert page.locator(".script:visible, th button").count() == 0


def test_a_page_of_which_little_is_known(tmp_path):
    """Two classes, no superclasses, no maps, no training set, no other run, no stress tests."""
    test = data.from_arrays(torch.randint(0, 256, (30, 3, 32, 32)).byte(), torch.arange(30) % 2, ["a_b", "c"])
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3072, 2))
    report.examine(model, test, out=tmp_path)
    wrong = (np.load(tmp_path / "predictions.npz")["y_pred"] != np.arange(30) % 2).nonzero()[0]
    with opened_page() as page:
        page.goto(f"{(tmp_path / 'report.html').as_uri()}#true=a+b")
        assert page.inner_text("#found") == says(wrong, sum(wrong % 2 == 0))
        choose(page)
        page.locator(LIST).first.click()
        shown = {"#mistake canvas": 1, "#views input": 1, "#mistake-runs tr": 1, "#matrix-rows li": 2}
        assert {query: page.locator(query).count() for query in shown} == shown
        assert not re.search("undefined|NaN|null", page.inner_text("body")) and page.errors == []


# ---- The list and the dialog -----------------------------------------------------------------------------


def test_filters_add_up(page, mistakes, predictions, reported):
    for key in KEYS:
        filter = {key: mistakes[3][key]}
        assert choose(page, **filter) == says(mistakes, len(fitting(mistakes, filter)))
    for low, high in ((0, 20), (20, 55.5), (99.9999, 100)):
        count = sum(low / 100 <= row["confidence"] <= high / 100 for row in mistakes)
        assert choose(page, **{"from": str(low), "to": str(high)}) == says(mistakes, count)
    kinds = json.loads((reported / "metrics.json").read_text(encoding="utf-8"))["kinds"]
    assert sum(row["count"] for row in kinds) == len(mistakes)
    for row in kinds:
        assert choose(page, kind=row["name"]) == says(mistakes, row["count"])
    right = predictions[1]["y_pred"] == predictions[1]["y_true"]  # in the other run
    count = sum(right[row["index"]] for row in mistakes)
    assert 0 < count < len(mistakes) and choose(page, runs="right") == says(mistakes, count)
    assert choose(page, runs="wrong") == says(mistakes, len(mistakes) - count)
    count = sum((predictions[0]["y_pred"] == predictions[1]["y_pred"])[row["index"]] for row in mistakes)
    assert choose(page, runs="same") == says(mistakes, count)
    assert choose(page) == says(mistakes, len(mistakes))
    assert page.locator(f"{LIST} b").all_text_contents() == names_of(mistakes)[:60]
    page.click("#more")
    assert page.locator(f"{LIST} b").all_text_contents() == names_of(mistakes)[:120]


def test_addresses_and_links_lead_to_their_mistakes(page, mistakes):
    wanted = {key: mistakes[5][key] for key in KEYS[:2]}
    page.goto("about:blank")
    page.goto(f"{page.address}#{urlencode(wanted | {'from': '1'})}")
    assert page.inner_text("#found") == says(mistakes, len(fitting(mistakes, wanted)))
    page.click("nav a[href='#mistakes']")  # clears the filter
    assert address(page) == {} and page.inner_text("#found") == says(mistakes, len(mistakes))
    page.click("button.all-rows")
    for link in page.locator(".classes td a[data-filter], .classes ~ * td a[data-filter]").all()[:40:5]:
        link.click()
        page.wait_for_timeout(100)
        filter = address(page)
        assert filter and page.inner_text("#found") == says(mistakes, len(fitting(mistakes, filter)))
    for link in page.locator("a.thumb[data-filter]").all():  # also of a file with a hostile name
        link.click()
        page.wait_for_timeout(100)  # the page hears of a new address in a task of its own
        assert link.inner_text().split("in truth ")[1] + "," in page.inner_text("#mistake-title")
        assert page.inner_text("#mistake-file") == address(page)["open"]
        page.keyboard.press("Escape")
        assert address(page) == {}


def test_a_grid_is_one_tab_stop_with_arrow_keys_inside(page):
    def focused():
        page.wait_for_timeout(50)
        return page.locator(LIST).evaluate_all("all => all.indexOf(document.activeElement)")

    first, *tops = page.locator(LIST).evaluate_all("all => all.map(b => b.offsetTop)")
    columns, place = 1 + tops.count(first), 0
    page.locator(LIST).first.focus()
    for key, step in (("Right", 1), ("Right", 1), ("Down", columns), ("Left", -1), ("Up", -columns)):
        page.keyboard.press(f"Arrow{key}")
        place += step
        assert focused() == place
    page.locator(LIST).nth(5).click()  # and back
    page.keyboard.press("Escape")
    assert focused() == 5
    page.keyboard.press("ArrowRight")
    assert focused() == 6
    assert page.locator(LIST).evaluate_all("all => all.flatMap((b, i) => b.tabIndex ? [] : [i])") == [6]
    page.keyboard.press("Tab")
    assert focused() == -1


def test_the_dialog_and_the_way_back(page, mistakes):
    """Back closes the dialog, and closing it leaves nothing to go back to."""
    thumbnails, dialog = page.locator(LIST), page.locator("#mistake")
    thumbnails.nth(1).focus()
    page.keyboard.press("Enter")
    for key, place in (("ArrowRight", 2), ("ArrowRight", 3), ("ArrowLeft", 2)):
        page.keyboard.press(key)
        row, seen = mistakes[place], dialog.inner_text()
        assert f"{row['true']}, taken for {row['predicted']}" in seen and row["file"] in seen
        assert f"{place + 1} of {len(mistakes)}" in seen and address(page) == {"open": row["file"]}
    there = page.url
    page.keyboard.press("Escape")
    assert "open" not in address(page) and not dialog.is_visible()
    assert thumbnails.nth(2).evaluate("button => button === document.activeElement")
    thumbnails.nth(3).click()
    page.keyboard.press("ArrowRight")
    page.go_back()
    assert "open" not in address(page) and not dialog.is_visible()
    page.go_back()
    assert page.url == "about:blank"
    page.goto(there)
    assert mistakes[2]["file"] in dialog.inner_text()
    page.click("#mistake-close")
    page.go_back()
    assert page.url == "about:blank"


def test_what_a_mistake_shows_is_what_the_networks_answer(
    page, mistakes, reported, reported_sets, predictions
):
    """On the picture that the page holds, which is a JPEG; the maps are bytes."""
    test, network = reported_sets[1], load_checkpoint(reported / "checkpoints" / "best.pt", CPU)
    images = test.images[[row["index"] for row in mistakes[:60]]] / 255
    classes = [[test.class_names.index(row[key]) for row in mistakes[:60]] for key in ("predicted", "true")]
    with GradCAM(network.model, "network.layer4") as cam:
        maps = torch.stack([cam(images, *classes), cam(images, *classes[::-1])], dim=1)
    # The one whose maps have the most cells that are not 0, of which this network has few.
    place = (maps > 0).sum(dim=(2, 3)).amin(dim=1).argmax().item()
    i, image, maps = mistakes[place]["index"], images[place : place + 1], maps[place]
    page.locator(LIST).nth(place).click()
    picture = pixels(page, "mistake-picture")
    assert (picture[:, 4::8, 4::8] - test.images[i]).abs().float().mean() < 12
    for view, cells in zip(("for", "against"), maps / maps.max(), strict=True):
        page.check(f"#views [value={view}]")
        expected = overlay(picture[None] / 255, F.interpolate(cells[None, None], 256)[0])[0]
        assert (pixels(page, "mistake-picture") - expected.int()).abs().max() <= 6, view
        assert "4x4 cells" in page.inner_text("#mistake-says")
    page.check("#views [value=covered]")
    covered = cover(image, maps[:1], mean=torch.tensor(data.MEAN))
    hidden = (covered != image).any(dim=1)[0]
    difference = (pixels(page, "mistake-picture")[:, 4::8, 4::8] / 255 - covered[0]).abs()
    assert hidden.sum() > 200 and difference[:, hidden].max() < 1 / 254  # the colour is exact
    assert difference[:, ~hidden].mean() < 12 / 255
    with torch.inference_mode():
        probability, answer = network.model(covered).softmax(dim=1)[0].max(dim=0)
    told = page.inner_text("#mistake-says")
    assert test.class_names[answer] in told
    assert numbers(told)[-1] == pytest.approx(100 * probability.item(), abs=0.06)
    for of_run, shown in zip(predictions, page.locator("#mistake-runs tr").all(), strict=True):
        expected = []
        for c in of_run["probabilities"][i].argsort()[::-1][:3]:
            sign = "✓ " if c == test.labels[i] else ""
            expected.append(f"{sign}{test.class_names[c]} {100 * of_run['probabilities'][i, c]:.1f}\xa0%")
        assert shown.locator("td").all_inner_texts() == expected


# ---- Sliders, viewers, tables ----------------------------------------------------------------------------


@pytest.mark.parametrize("low, high", [(0, 100), (40, 90), (90, 100), (0, 1), (37, 38)])
def test_the_range_of_confidence(page, mistakes, predictions, low, high):
    percent = 100 * predictions[0]["probabilities"].max(axis=1).astype(float)
    here = (percent >= low) & ((percent < high) | (high == 100))
    wrong = here & (predictions[0]["y_true"] != predictions[0]["y_pred"])
    page.fill("#range-from", str(low))
    page.fill("#range-to", str(high))
    expected = [low, high, here.sum(), 100 * here.mean(), wrong.sum()]
    expected += [100 * wrong.sum() / here.sum()] if here.any() else []
    assert numbers(page.inner_text("#range-says")) == pytest.approx(expected, abs=0.051)
    rows = [row for row in mistakes if low <= 100 * row["confidence"] <= high]
    assert page.locator("#range-thumbnails b").all_text_contents() == names_of(rows)[:6]
    page.click("#range-link")
    assert address(page)["to"] == str(high) and page.inner_text("#found") == says(mistakes, len(rows))
    if rows:
        page.locator("#range-thumbnails button").first.click()
        assert address(page)["open"] == rows[0]["file"]
        page.keyboard.press("Escape")
    page.fill("#range-from", "100")  # the ends do not cross
    assert numbers(page.inner_text("#range-says"))[:2] == [high, high]


@pytest.mark.parametrize("temperature", [0.4, 1.0, 2.5])
def test_the_temperature(page, predictions, temperature):
    powers = predictions[0]["probabilities"].astype(float) ** (1 / temperature)
    confidence = (powers / powers.sum(axis=1, keepdims=True)).max(axis=1)
    right, place = predictions[0]["y_pred"] == predictions[0]["y_true"], np.ceil(15 * confidence)
    bins = [place == b for b in sorted(set(place))]
    error = sum(abs(sum(right[b]) - sum(confidence[b])) for b in bins) / len(right)
    page.fill("#temperature", str(report.TEMPERATURES.index(temperature)))
    told = [temperature, 100 * error, 100 * confidence.mean()]
    assert numbers(page.inner_text("#temperature-says")) == pytest.approx(told, abs=0.06)
    left, top, end, bottom = map(float, page.get_attribute("#reliability", "data-axes").split())
    get = "all => all.map(c => ['cx', 'cy', 'r'].map(a => +c.getAttribute(a)))"
    drawn = page.locator("#reliability circle").evaluate_all(get)
    for (x, y, r), b in zip(drawn, bins, strict=True):
        assert x == pytest.approx(left + confidence[b].mean() * (end - left), abs=0.1)
        assert y == pytest.approx(bottom - right[b].mean() * (bottom - top), abs=0.1)
        assert r == pytest.approx(2 + 20 * b.mean() ** 0.5, abs=0.01)


def assert_captions(page, viewer, answers, test):
    """Class, percent, and whether it is right, by sign and by colour."""
    for i, (c, p) in enumerate(answers):
        caption = page.locator(f"{viewer} figcaption").nth(i)
        sign, state = ("✓", "right") if c == test.labels[i] else ("✗", "wrong")
        true = re.escape(test.class_names[test.labels[i]])
        expected = (
            rf"{true}: {sign} {re.escape(test.class_names[c])} ({100 * p - 0.5:.0f}|{100 * p + 0.5:.0f})\s%"
        )
        assert re.fullmatch(expected, caption.inner_text()), (expected, caption.inner_text())
        assert caption.locator("span").first.get_attribute("class") == state


def assert_row(locator, row, column):
    """Whether a reader sees this row of the sheet of pictures; tests of page/browser.py say what it holds."""
    get = "element => getComputedStyle(element).getPropertyValue('--sheet')"
    sheet = decoded(re.search(r"base64,([\w+/=]+)", locator.evaluate(get))[1]).float()
    locator.scroll_into_view_if_needed()
    box, seen = locator.bounding_box(), decoded(locator.screenshot())
    middles = (torch.arange(32) + 0.5) / 32  # of the pixels of the picture
    y, x = (
        (box[start] % 1 + box[size] * middles).long() for start, size in (("y", "height"), ("x", "width"))
    )
    pictures = torch.stack(sheet[:, :, 32 * column : 32 * column + 32].split(32, dim=1))
    distances = (pictures - seen[:, y][:, :, x]).abs().mean(dim=(1, 2, 3))
    assert distances[row] < distances.min() + 0.5, (row, distances.argmin())


def test_the_corruption_viewer(page, reported_sets):
    test, answers = reported_sets[1], stress_content(reported_sets[1].labels)["examples"]["answers"]
    for name, severity in (("glass_blur", 5), ("brightness", 1), ("fog", 0)):
        page.select_option("#corruption-choice [name=name]", name)
        page.fill("#corruption-choice [name=severity]", str(severity))
        key = f"{name}/{severity}" if severity else "clean/0"
        assert_captions(page, "#corrupted", answers[key], test)
        for column in (0, 7):
            assert_row(page.locator("#corrupted .sheet").nth(column), list(answers).index(key), column)


def test_the_attack_viewer(page, reported_sets):
    answers = stress_content(reported_sets[1].labels)["attack_examples"]["answers"]
    for step, epsilon in enumerate(EPSILONS):
        page.fill("#attack-choice [name=step]", str(step))
        assert page.inner_text("#attack-choice output") == f"{epsilon:g}/255"
        assert_captions(page, "#attacked", answers[f"{epsilon:g}"], reported_sets[1])
        for place, row in enumerate((0, 1 + 2 * step, 2 + 2 * step)):
            assert_row(page.locator("#attacked figure").nth(5).locator(".sheet").nth(place), row, 5)


def test_tables_sort(page):
    cells = page.locator(".classes tbody tr td:nth-child(2)")

    def recalls():
        return [numbers(text)[0] for text in cells.all_text_contents()]

    expected = sorted(recalls())
    assert recalls() == expected and cells.filter(visible=True).count() == 10  # the hardest classes first
    page.click("button.all-rows")
    assert cells.filter(visible=True).count() == 100
    page.locator(".classes th button").nth(1).focus()
    for order in (expected, expected[::-1]):
        page.keyboard.press("Enter")
        assert recalls() == order


# ---- The confusion matrix --------------------------------------------------------------------------------


def counted(answers, names, keys):
    pairs = Counter((row[keys[0]], row[keys[1]]) for row in answers)
    return np.array([[pairs[true, predicted] for predicted in names] for true in names])


@pytest.fixture(scope="module")
def class_names(reported_sets):
    """In the order of the matrix: those of a superclass stand together."""
    test = reported_sets[1]
    return [test.class_names[c] for c in sorted(range(100), key=lambda c: (int(test.superclass_of[c]), c))]


@pytest.mark.parametrize("coarse", [0, 1])
def test_a_cell_counts_its_images_and_leads_to_them(
    page, answers, mistakes, class_names, reported_sets, coarse
):
    names, keys = [class_names, reported_sets[1].superclass_names][coarse], KEYS[2 * coarse :]
    counts, cells = counted(answers, names, keys), page.locator("#matrix-cells")
    page.select_option("#matrix-choice [name=by]", ["class", "superclass"][coarse])
    for axis in ("rows", "columns"):
        assert page.locator(f"#matrix-{axis} li").all_text_contents() == names
    wrong = counts - np.diag(counts.diagonal())
    for i, j in (np.argwhere(wrong)[-1], np.argwhere(counts.diagonal())[3].repeat(2)):
        cells.scroll_into_view_if_needed()
        side = cells.bounding_box()["width"] / len(names)
        place = {"x": (j + 0.5) * side, "y": (i + 0.5) * side}
        for share, whole in (("column", counts[:, j].sum()), ("count", counts[i].sum())):
            page.select_option("#matrix-choice [name=numbers]", share)
            cells.hover(position=place)
            told = page.inner_text("#matrix-says")
            assert told.startswith(names[i]) and names[j] in told and f"{counts[i, j]} of {whole} " in told
            assert f"({100 * counts[i, j] / whole:.1f}\xa0%)" in told
        cells.click(position=place)
        wanted = {keys[0]: names[i], keys[1]: names[j]}
        if i == j and not coarse:  # the diagonal holds the right answers
            del wanted["predicted"]
        assert address(page) == wanted
        assert page.inner_text("#found") == says(mistakes, len(fitting(mistakes, wanted)))
    if not coarse:  # by keyboard
        page.focus("#matrix-cells")
        page.keyboard.press("ArrowRight")
        assert names[i + 1] in page.inner_text("#matrix-says")
        page.keyboard.press("ArrowDown")
        page.keyboard.press("Enter")
        assert address(page) == {"true": names[i + 1]}
        assert page.evaluate("document.activeElement.id") == "mistakes"


@pytest.mark.parametrize("hidden", [False, True])
@pytest.mark.parametrize("share", ["count", "row", "column"])
def test_the_colour_of_a_cell_is_its_share(page, answers, class_names, share, hidden):
    """The colour is that of matplotlib's inferno at the root, from nothing to the largest."""
    counts = counted(answers, class_names, KEYS)
    whole = {"count": 1, "row": counts.sum(axis=1)[:, None], "column": counts.sum(axis=0)}[share]
    shares = counts / np.maximum(1, whole) * (1 - np.eye(100) * hidden)
    page.select_option("#matrix-choice [name=numbers]", share)
    page.set_checked("#matrix-choice [name=diagonal]", hidden)
    expected = 255 * matplotlib.colormaps["inferno"](np.sqrt(shares / shares.max()))[..., :3]
    seen = pixels(page, "matrix-cells")[:, 10::20, 10::20].permute(1, 2, 0).numpy()
    assert np.abs(seen - expected).max() < 4
    largest = shares.max() if share == "count" else 100 * shares.max()
    assert numbers(page.inner_text("#matrix-largest")) == [round(largest)]


def test_a_tap_reads_a_cell_and_a_second_one_goes_there(reported):
    with opened_page(has_touch=True) as page:
        page.set_viewport_size({"width": 390, "height": 900})
        page.goto((reported / "report.html").as_uri())
        page.evaluate("document.getElementById('matrix').scrollIntoView()")  # not below the navigation
        box, told = page.locator("#matrix-cells").bounding_box(), []
        rows, side = page.locator("#matrix-rows").bounding_box(), box["width"] / 10
        names_end = max(rows["x"] + rows["width"], box["x"])  # they may lie over the first cells
        for x in (1, 1 + side, 1, 1):
            assert address(page) == {}
            page.touchscreen.tap(names_end + x, box["y"] + 5)
            told.append(page.inner_text("#matrix-says"))
        assert told[0] == told[2] == told[3] != told[1] and "superclass" in address(page)

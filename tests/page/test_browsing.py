"""The report's page in Chromium: filters, links, confusion matrices and the keyboard.

What the page shows is counted a second time, from predictions.npz.
"""

import base64
import json
from urllib.parse import parse_qsl, urlencode

import matplotlib
import numpy as np
import pytest
import torch
from chromium import needs_chromium, opened_page
from processes import CPU
from torchvision.io import ImageReadMode, decode_image

import data
import report
from gradcam import GradCAM, overlay, to_heatmap
from network import load_checkpoint

pytestmark = [pytest.mark.slow, needs_chromium]
COLUMNS = {"true": 0, "predicted": 1, "superclass": 2, "predicted_superclass": 3}


@pytest.fixture(scope="module")
def page(reported):
    with opened_page() as page:
        page.address = (reported / "report.html").as_uri()
        page.goto(page.address)
        yield page


@pytest.fixture(scope="module")
def misclassified(reported, reported_sets):
    """(true class, predicted class, both superclasses, confidence, file), the most confident first."""
    predictions, test = np.load(reported / "predictions.npz"), reported_sets[1]
    rows = []
    for i, (true, predicted) in enumerate(zip(predictions["y_true"], predictions["y_pred"], strict=True)):
        if true != predicted:
            classes = [test.class_names[c] for c in (true, predicted)]
            groups = [test.superclass_names[test.superclass_of[c]] for c in (true, predicted)]
            confidence = round(predictions["probabilities"][i, predicted].item(), 6)
            rows.append((*classes, *groups, confidence, test.filenames[i]))
    return sorted(rows, key=lambda row: -row[4])


def choose(page, **filter):
    """Set the fields of the form, as a reader would; return what the page says then."""
    page.evaluate("document.getElementById('filter').reset()")
    page.evaluate("""filter => {
        const form = document.getElementById('filter');
        for (const key in filter) form.elements[key].value = filter[key];
        form.dispatchEvent(new Event('input'));
    }""", filter)  # fmt: skip
    return page.inner_text("#found")


def says(misclassified, fitting):
    none = "No mistake on this page fits this choice."
    return f"{len(fitting)} of {len(misclassified)} mistakes" if fitting else none


def chosen(page):
    return dict(parse_qsl(page.evaluate("location.hash")[1:]))


def test_no_error_no_request_to_outside_and_names_stay_text(page):
    assert page.errors == [] and page.requests[0] == page.address
    assert [url for url in page.requests if not url.startswith(("file:", "data:"))] == []
    pictures = "[...document.images].filter(i => !i.naturalWidth || !i.alt && !i.closest('[hidden]')).length"
    assert page.evaluate("document.images.length") > 20 and page.evaluate(pictures) == 0
    assert page.evaluate("[...document.querySelectorAll('svg')].filter(s => !s.ariaLabel).length") == 0
    ids = page.evaluate("[...document.querySelectorAll('[id]')].map(e => e.id)")
    assert len(ids) == len(set(ids))
    links = page.evaluate("[...document.querySelectorAll('nav a')].map(a => a.hash.slice(1))")
    assert len(links) == 9 and set(links) <= set(ids)


def test_each_filter_gives_the_right_images(page, misclassified):
    assert choose(page) == says(misclassified, misclassified)
    for key, column in COLUMNS.items():
        name = misclassified[3][column]
        fitting = [row for row in misclassified if row[column] == name]
        assert choose(page, **{key: name}) == says(misclassified, fitting), key
    for low, high in ((0, 20), (20, 55.5), (99.9999, 100)):
        fitting = [row for row in misclassified if low / 100 <= row[4] <= high / 100]
        assert choose(page, **{"from": str(low), "to": str(high)}) == says(misclassified, fitting)
    assert choose(page) == says(misclassified, misclassified)
    expected = [f"{row[1]} {100 * row[4]:.1f}\xa0%" for row in misclassified]
    assert page.locator("#thumbnails button b").all_text_contents() == expected[:60]
    page.click("#more")
    assert page.locator("#thumbnails button b").all_text_contents() == expected[:120]


def test_the_address_restores_a_filter_and_links_lead_to_their_images(page, misclassified):
    true, predicted = misclassified[5][:2]
    wanted = {"true": true, "predicted": predicted, "from": "1"}
    page.goto("about:blank")
    page.goto(f"{page.address}#{urlencode(wanted)}")
    fitting = [row for row in misclassified if row[:2] == (true, predicted)]
    assert page.inner_text("#found") == says(misclassified, fitting)
    fields = "['true', 'predicted', 'from'].map(key => document.getElementById('filter').elements[key].value)"
    assert page.evaluate(fields) == list(wanted.values())
    page.evaluate("location.hash = '#true=unicorn'")
    page.wait_for_function("document.getElementById('found').textContent.startsWith('No mistake')")
    links = page.evaluate("[...document.querySelectorAll('td a[data-filter]')].map(a => a.hash)")
    assert len(links) > 200
    links = [link for link in links if "kind=" not in link]
    for link in [*links[:22:7], *links[30:40]]:
        filter = dict(parse_qsl(link[1:]))
        fitting = [r for r in misclassified if all(r[COLUMNS[key]] == name for key, name in filter.items())]
        page.evaluate(f"document.querySelector('a[data-filter][href=\"{link}\"]').click()")
        page.wait_for_function(f"location.hash === '{link}'")
        page.wait_for_timeout(50)  # the page hears of a new address in a task of its own
        assert page.inner_text("#found") == says(misclassified, fitting)


def test_kinds_of_mistakes_are_filters(page, misclassified, reported):
    kinds = json.loads((reported / "metrics.json").read_text(encoding="utf-8"))["kinds"]
    assert sum(row["count"] for row in kinds) == len(misclassified)
    for row in kinds:
        fitting = misclassified[: row["count"]]  # so many of them
        assert choose(page, kind=row["name"]) == says(misclassified, fitting)
    choose(page)


def draw_matrix(page, **choice):
    for name, value in choice.items():
        page.select_option(f"#matrix-choice [name={name}]", value)


@pytest.mark.parametrize("coarse", [False, True])
def test_a_cell_counts_all_its_images_and_leads_to_them(page, misclassified, reported_sets, coarse):
    test = reported_sets[1]
    order = sorted(range(100), key=lambda c: (int(test.superclass_of[c]), c))
    names = test.superclass_names if coarse else [test.class_names[c] for c in order]
    keys = ("superclass", "predicted_superclass") if coarse else ("true", "predicted")
    pairs = [(row[COLUMNS[keys[0]]], row[COLUMNS[keys[1]]]) for row in misclassified]
    total = 400 // len(names)
    draw_matrix(page, by="superclass" if coarse else "class", numbers="count")
    for axis in ("rows", "columns"):
        assert page.locator(f"#matrix-{axis} li").all_text_contents() == names
    pair = next(pair for pair in pairs if pair[0] != pair[1])
    for true, predicted in (pair, (pair[0],) * 2):
        i, j = names.index(true), names.index(predicted)
        wrong = sum(t == true != p for t, p in pairs)
        count = total - wrong if i == j else pairs.count((true, predicted))
        what = f"{true} recognised" if i == j else f"{true} taken for {predicted}"
        answers = (
            total - sum(t == predicted != p for t, p in pairs) + sum(t != predicted == p for t, p in pairs)
        )
        cells = page.locator("#matrix-cells")
        cells.scroll_into_view_if_needed()
        box = cells.bounding_box()
        place = {"x": (j + 0.5) * box["width"] / len(names), "y": (i + 0.5) * box["height"] / len(names)}
        cells.hover(position=place)
        told = page.inner_text("#matrix-says")
        assert told == f"{what}: {count} of {total} images of {true} ({100 * count / total:.1f}\xa0%)"
        draw_matrix(page, numbers="column")
        cells.hover(position=place)
        assert page.inner_text("#matrix-says").startswith(f"{what}: {count} of {answers} answers")
        draw_matrix(page, numbers="count")
        cells.click(position=place)
        page.wait_for_timeout(50)
        fitting = [p for p in pairs if p == (true, predicted)]
        wanted = dict(zip(keys, (true, predicted), strict=True))
        if i == j and not coarse:  # the diagonal holds the right answers
            fitting, wanted = [p for p in pairs if p[0] == true], {"true": true}
        assert chosen(page) == wanted and page.inner_text("#found") == says(misclassified, fitting)


def pixels(page, canvas):
    """What a canvas shows, int64 [H, W, 3]."""
    content = base64.b64decode(
        page.evaluate(f"document.getElementById('{canvas}').toDataURL()").split(",")[1]
    )
    picture = decode_image(torch.frombuffer(bytearray(content), dtype=torch.uint8), ImageReadMode.RGB)
    return picture.permute(1, 2, 0).long().numpy()


def test_the_colour_of_a_cell_is_its_share(page, reported, reported_sets):
    """Each share is counted a second time; the colour is that of matplotlib's inferno at its root."""
    test, predictions = reported_sets[1], np.load(reported / "predictions.npz")
    order = sorted(range(100), key=lambda c: (int(test.superclass_of[c]), c))
    counts = np.zeros((100, 100))
    np.add.at(counts, (predictions["y_true"], predictions["y_pred"]), 1)
    whole = {"count": counts.max(), "row": counts.sum(axis=1)[:, None], "column": counts.sum(axis=0)}
    for numbers, total in whole.items():
        draw_matrix(page, by="class", numbers=numbers)
        shares = (counts / np.maximum(1, total))[order][:, order]
        expected = 255 * matplotlib.colormaps["inferno"](np.sqrt(shares))[..., :3]
        assert np.abs(pixels(page, "matrix-cells")[10::20, 10::20] - expected).max() < 4


def test_evidence_is_that_of_gradcam_and_overlay(page, misclassified, reported, reported_sets):
    """On the picture that the page holds, which is a JPEG; the maps are bytes."""
    row, test = misclassified[7], reported_sets[1]
    network = load_checkpoint(reported / "checkpoints" / "best.pt", CPU)
    i = test.filenames.index(row[5])
    choose(page)
    page.locator("#thumbnails button").nth(7).click()
    picture = pixels(page, "mistake-picture")
    assert np.abs(picture[::8, ::8] - test.images[i].permute(1, 2, 0).numpy()).mean() < 12
    enlarged = torch.from_numpy(picture / 255).float().permute(2, 0, 1)[None]
    true, predicted = (test.class_names.index(name) for name in row[:2])
    for kind, classes in {"true": (true, predicted), "predicted": (predicted, true)}.items():
        with GradCAM(network.model, "network.layer4") as cam:
            maps = cam(test.images[i : i + 1] / 255, *([c] for c in classes))
        expected = overlay(enlarged, to_heatmap(maps, 256))[0].permute(1, 2, 0).numpy()
        difference = np.abs(pixels(page, f"evidence-{kind}") - expected.astype(int))
        assert difference.max() <= 6 and difference.mean() < 1, (kind, difference.max(), difference.mean())
    for shown in (False, True):
        page.click("#show-evidence")
        assert ("rather than" in page.inner_text("#mistake .panels")) == shown
    page.keyboard.press("Escape")


def test_what_other_runs_said(page, misclassified, reported, reported_sets):
    predictions, test = np.load(reported.parent / "other" / "predictions.npz"), reported_sets[1]
    wrong = []
    for row in misclassified:
        if predictions["y_pred"][test.filenames.index(row[5])] != test.class_names.index(row[0]):
            wrong.append(row)
    right = [row for row in misclassified if row not in wrong]
    assert wrong and right and choose(page, runs="right") == says(misclassified, right)
    assert choose(page, runs="wrong") == says(misclassified, wrong)
    page.locator("#thumbnails button").first.click()
    i = test.filenames.index(wrong[0][5])
    answer, probability = predictions["y_pred"][i], predictions["probabilities"][i].max().item()
    told = f"says {test.class_names[answer]} ({100 * round(probability, 6):.1f}\xa0%)."
    assert told in page.inner_text("#mistake")
    page.keyboard.press("Escape")


def test_an_image_by_keyboard(page, misclassified):
    choose(page)
    thumbnails, dialog = page.locator("#thumbnails button"), page.locator("#mistake")
    thumbnails.nth(1).focus()
    page.keyboard.press("Enter")
    assert dialog.is_visible()
    for key, index in (("ArrowRight", 2), ("ArrowRight", 3), ("ArrowLeft", 2)):
        page.keyboard.press(key)
        true, predicted, *_, confidence, file = misclassified[index]
        seen = dialog.inner_text()
        assert f"{true}, taken for {predicted}" in seen and file in seen and chosen(page) == {"open": file}
        assert f"{100 * confidence:.1f}\xa0%" in seen and f"{index + 1} of {len(misclassified)}" in seen
    address = page.url
    page.keyboard.press("Escape")
    assert thumbnails.nth(2).evaluate("button => document.activeElement === button")
    thumbnails.nth(3).click()
    page.go_back()
    page.wait_for_timeout(50)
    assert not dialog.is_visible() and "open" not in chosen(page)
    page.goto("about:blank")
    page.goto(address)
    assert misclassified[2][5] in dialog.inner_text()
    page.keyboard.press("Escape")
    page.focus("#matrix-cells")
    before = page.inner_text("#matrix-says")
    page.keyboard.press("ArrowDown")
    assert page.inner_text("#matrix-says") != before
    page.keyboard.press("ArrowUp")
    page.keyboard.press("Enter")  # a cell of the diagonal always leads somewhere
    page.wait_for_timeout(50)
    assert page.evaluate("document.activeElement.id") == "mistakes"


def test_tables_sort(page):
    cells = page.locator(".classes tbody tr td:nth-child(4)")

    def recalls():
        return [float(text.removesuffix("\xa0%")) for text in cells.all_text_contents()]

    expected = sorted(recalls())
    assert recalls() == expected and cells.filter(visible=True).count() == 10  # the hardest classes first
    page.click("button.all-rows")
    assert cells.filter(visible=True).count() == 100
    page.locator(".classes th button").nth(3).focus()
    for order in (expected, expected[::-1]):
        page.keyboard.press("Enter")
        assert recalls() == order


def test_a_page_without_superclasses_and_maps(tmp_path):
    test = data.from_arrays(torch.randint(0, 256, (30, 3, 32, 32)).byte(), torch.arange(30) % 2, ["a_b", "c"])
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3072, 2))
    report.examine(model, test, out=tmp_path)
    wrong = (np.load(tmp_path / "predictions.npz")["y_pred"] != np.arange(30) % 2).nonzero()[0]
    with opened_page() as page:
        page.goto(f"{(tmp_path / 'report.html').as_uri()}#true=a+b")
        assert page.inner_text("#found") == f"{sum(wrong % 2 == 0)} of {len(wrong)} mistakes"
        assert page.locator("select").count() == 5 and page.locator("#matrix-rows li").count() == 2
        choose(page)
        page.locator("#thumbnails button").first.click()
        assert page.locator("#mistake canvas").count() == 1 and page.errors == []
        assert "undefined" not in page.inner_text("#mistake")


def test_the_page_itself_never_scrolls_sideways(page):
    """Wide plots and tables do, in their own frames."""
    for width in (1280, 320):
        page.set_viewport_size({"width": width, "height": 900})
        assert page.evaluate("document.documentElement.scrollWidth") <= width


def test_readable_without_scripts(reported):
    with opened_page(java_script_enabled=False) as page:
        page.goto((reported / "report.html").as_uri())
        counts = {".classes tbody tr": 100, "th button": 0, ".gallery .mistake": 2, "td a[href]": 0}
        assert {query: page.locator(query).count() for query in counts} == counts
        assert page.locator(".script[hidden]").count() == page.locator(".script").count() >= 3

"""The report's page in Chromium: what its controls show is computed a second time, from the files."""

import json
import re
import shutil
from pathlib import Path
from urllib.parse import parse_qsl, urlencode

import evaluate
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from chromium import needs_chromium, opened_page
from lab_pages import EPSILONS, stress_content
from pages import decoded
from processes import CPU

import data
import report
from gradcam import overlay
from lab import reasons
from lab.classifier import load_checkpoint
from page import failures, sections
from page import write as page_module

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
    browser_page.wait_for_selector(LIST)
    return browser_page


@pytest.fixture(scope="module")
def mistakes(reported, reported_sets):
    """Classes, superclasses, confidence and file of each mistake, the most confident first."""
    rows, test = [], reported_sets[1]
    for i, row in enumerate(np.load(reported / "predictions.npz")["probabilities"]):
        classes = [test.labels[i].item(), row.argmax().item()]
        groups = [test.superclass_names[test.superclass_of[c]] for c in classes]
        names = dict(zip(KEYS, [*(test.class_names[c] for c in classes), *groups], strict=True))
        rows.append(names | {"confidence": row.max().item(), "file": test.filenames[i], "index": i})
    return sorted((r for r in rows if r["true"] != r["predicted"]), key=lambda row: -row["confidence"])


def choose(page, **wanted):
    """Set the fields of the form, as a reader would; return what the page says then."""
    page.click("#filter [type=reset]")
    page.wait_for_timeout(20)
    for name, value in wanted.items():
        field = page.locator(f"#filter [name={name}]")
        field.fill(value) if name in ("from", "to") else field.select_option(value)
    return page.inner_text("#found")


def says(mistakes, count):
    return f"{count} of {len(mistakes)} mistakes" if count else "No mistake on this page fits this choice."


def row_of(page, selector):
    return page.eval_on_selector(selector, "e => getComputedStyle(e).getPropertyValue('--row').trim()")


# ---- The page as a whole ---------------------------------------------------------------------------------


def test_no_error_no_request_and_nothing_is_cut_off(page):
    outside = [url for url in page.requests if not url.startswith(("file:", "data:", "about:"))]
    assert page.errors == [] and outside == []
    ids = page.evaluate("[...document.querySelectorAll('[id]')].map(e => e.id)")
    assert len(ids) == len(set(ids))
    assert page.evaluate("[...document.images].every(i => i.naturalWidth) && document.images.length") > 20
    cut_off = """[...document.querySelectorAll('svg text')].filter(text => {
        const [a, b] = [text, text.ownerSVGElement].map(e => e.getBoundingClientRect());
        const inside = a.left > b.left - 2 && a.right < b.right + 2;
        return a.width && !(inside && a.top > b.top - 2 && a.bottom < b.bottom + 2);
    }).map(text => text.textContent)"""
    assert page.evaluate(cut_off) == [] and page.locator("svg text").count() > 50


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 390])
def test_axe_finds_nothing(reported, scheme, width):
    axe = pytest.importorskip("axe_playwright_python", reason="needs: pip install axe-playwright-python")
    with opened_page(color_scheme=scheme) as page:
        page.set_viewport_size({"width": width, "height": 900})
        page.goto((reported / "report.html").as_uri())
        page.evaluate((Path(axe.__file__).parent / "axe.min.js").read_text(encoding="utf-8"))
        shown = ("#puzzle-show", "a[href='#class']", ".guess [type=submit] >> nth=0", "#class-end")
        for selector in (*shown, ".all-rows", ".code summary >> nth=0", f"{LIST} >> nth=0"):
            page.click(selector)
            violations = "(await axe.run()).violations.map(v => [v.id, v.nodes.map(n => n.html)])"
            assert page.evaluate(f"async () => {violations}") == []


def test_readable_without_scripts(reported):
    with opened_page(java_script_enabled=False) as page:
        page.goto((reported / "report.html").as_uri())
        pictures = {"#puzzle-static img": 4, "#corrupted figure": 8, ".attacked-row .sheet": 24}
        for query, count in (pictures | {"svg": 7}).items():
            assert page.locator(query).filter(visible=True).count() >= count, query
        assert page.locator(".script:visible, .guess:visible, .instead:visible, th button").count() == 0


def test_print_shows_what_the_screen_hides_and_no_controls(page):
    page.emulate_media(media="print")
    assert page.locator("nav, form, .script, dialog").filter(visible=True).count() == 0
    assert page.locator("#puzzle-static img").filter(visible=True).count() >= 2
    assert page.locator(".classes tbody tr").filter(visible=True).count() == 100
    page.emulate_media(media="screen")


def test_a_page_of_which_little_is_known(tmp_path):
    """Two classes, no superclasses, no maps, no training set, no other run, no stress tests."""
    test = data.from_arrays(torch.randint(0, 256, (30, 3, 32, 32)).byte(), torch.arange(30) % 2, ["a_b", "c"])
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3072, 2))
    report.examine(model, test, out=tmp_path)
    wrong = (np.load(tmp_path / "predictions.npz")["y_pred"] != np.arange(30) % 2).nonzero()[0]
    with opened_page() as page:
        page.goto(f"{(tmp_path / 'report.html').as_uri()}#true=a+b")
        page.wait_for_selector(LIST)
        assert page.inner_text("#found") == says(wrong, sum(wrong % 2 == 0))
        choose(page)
        page.locator(LIST).first.click()
        shown = {"#mistake .sheet": 1, "#mistake-runs tr": 1}
        assert {query: page.locator(query).count() for query in shown} == shown
        assert not re.search("undefined|NaN|null", page.inner_text("body")) and page.errors == []


def test_tables_sort_and_show_all_their_rows(page):
    page.click(".all-rows")
    page.click(".classes th:nth-child(3) button")
    cells = page.locator(".classes tbody td:nth-child(3)").filter(visible=True).all_inner_texts()
    values = [-1 if text == "–" else float(text.split()[0]) for text in cells]
    assert values == sorted(values) and len(values) == 100
    assert page.locator(".classes tbody a:not([tabindex='-1'])").count() == 1  # the arrow keys move inside


# ---- The list and the dialog -----------------------------------------------------------------------------


def test_filters_add_up(page, mistakes, reported):
    for key in KEYS:
        value = mistakes[3][key]
        assert choose(page, **{key: value}) == says(mistakes, sum(row[key] == value for row in mistakes))
    for low, high in ((0, 20), (20, 55.5), (99.9999, 100)):
        count = sum(low / 100 <= row["confidence"] <= high / 100 for row in mistakes)
        assert choose(page, **{"from": str(low), "to": str(high)}) == says(mistakes, count)
    kinds = json.loads((reported / "metrics.json").read_text(encoding="utf-8"))["kinds"]
    assert sum(row["count"] for row in kinds) == len(mistakes)
    share = f"{100 * kinds[0]['count'] / len(mistakes):.0f}\N{NO-BREAK SPACE}%"
    claim = f"{share} of {len(mistakes)} mistakes are the same wrong answer in both runs"
    assert page.inner_text("#mistakes ~ .claim").startswith(claim)
    for row in kinds:
        assert choose(page, kind=row["name"]) == says(mistakes, row["count"])
    most = max(kinds, key=lambda row: row["count"])  # one that does not occur has no link
    page.click(f"a[href='#kind={most['name']}']")
    said = says(mistakes, most["count"])  # in a moment: a changed address is an event of its own
    page.wait_for_function("said => document.getElementById('found').innerText === said", arg=said)


def test_the_dialog_takes_a_mistake_apart(page, mistakes, reported, reported_sets):
    """Its maps are those of gradcam.overlay, and the covered pixels those that report.py covered."""
    test, place = reported_sets[1], 2
    row = mistakes[place]
    page.locator(LIST).nth(place).click()
    assert page.inner_text("#mistake-title") == f"{row['true']}, taken for {row['predicted']}"
    probabilities = np.load(reported / "predictions.npz")["probabilities"][row["index"]]
    truth = test.class_names.index(row["true"])
    rank = int((probabilities > probabilities[truth]).sum()) + 1
    words = page.inner_text("#mistake-notes").replace("\N{NO-BREAK SPACE}", " ")
    place_of = "second" if rank == 2 else f"number {rank}"
    said = f"taken for {row['predicted']} with {100 * row['confidence']:.1f} %; {row['true']} is {place_of},"
    assert said in words and "other <b>run" in page.inner_text("#mistake-runs")
    assert f"the quarter that favours {row['predicted']} covered:" in page.inner_text("#mistake .case")
    address = dict(parse_qsl(page.evaluate("location.hash")[1:]))
    assert address == {"true": row["true"], "open": row["file"]}
    network = load_checkpoint(reported / "checkpoints" / "best.pt", CPU)
    image = test.images[row["index"]][None]
    classes = [torch.tensor([test.class_names.index(row[key])]) for key in ("predicted", "true")]
    (signed,) = network.pairs(image, [tuple(classes)])
    cells = (signed / signed.abs().max())[:, None]
    hidden = reasons.top_pixels(signed, 0.25, 32)[0]
    fill = (255 * evaluate.mean_colour(reported_sets[0])).round().byte()[:, None, None]
    expected = [image[0], torch.where(hidden, fill, image[0])]
    for sign in (1, -1):
        heatmap = F.interpolate((sign * cells).relu(), 32)[:, 0]
        expected.insert(-1, overlay(image / 255, heatmap)[0])
    for k, pixels in enumerate(expected):
        seen = decoded(page.locator(f"#mistake .sheet >> nth={k}").screenshot()).float()
        assert (seen - F.interpolate(pixels[None].float(), seen.shape[1:])[0]).abs().mean() < 14, k
    page.keyboard.press("ArrowRight")
    assert page.inner_text("#mistake-title").startswith(mistakes[place + 1]["true"])
    page.keyboard.press("Escape")
    page.wait_for_function("['', '#mistakes'].includes(location.hash)")


def test_an_address_opens_the_mistake_of_its_class_and_file(page, mistakes):
    for row in mistakes[:4]:
        page.goto(f"{page.address}#{urlencode({'true': row['true'], 'open': row['file']})}")
        page.wait_for_selector("#mistake[open]")
        assert page.inner_text("#mistake-title") == f"{row['true']}, taken for {row['predicted']}"
        assert page.inner_text("#mistake-file") == row["file"]
        page.click("#mistake-close")
        page.goto("about:blank")


# ---- The game ---------------------------------------------------------------------------------------------


@pytest.fixture
def game(reported, tmp_path):
    """The address of the page with three puzzles, of which two squares turn the first, as the map does."""
    written = (reported / "report.html").read_text(encoding="utf-8")
    start = written.index('id="page-data">') + len('id="page-data">')
    end = written.index("</script>", start)
    content = json.loads(written[start:end])
    puzzles = [content["puzzles"][k % len(content["puzzles"])] | {} for k in range(3)]
    for k, puzzle in enumerate(puzzles):
        wrong, other = ((puzzle["true"] + step) % 100 for step in (1, 2))
        answers = [[wrong, 60, puzzle["true"], 30, other, 10] for _ in reasons.COVERS]
        puzzle |= {"answers": answers, "by_map": reasons.COVERS.index((2, 3)), "best": None, "random": 0.0}
        if k == 0:
            puzzle |= {"best": reasons.COVERS.index((5, 6)), "random": 2 / 120}
            answers[puzzle["best"]] = [puzzle["true"], 71, other, 20, wrong, 9]
            answers[puzzle["by_map"]] = [puzzle["true"], 70, other, 20, wrong, 10]
    content["puzzles"] = puzzles
    name = tmp_path / "report.html"
    changed = json.dumps(content).replace("<", "\\u003c")
    name.write_text(written[:start] + changed + written[end:], encoding="utf-8")
    return name.as_uri(), puzzles, content["classes"]


def texts(page, selector):
    return [text.replace("\N{NO-BREAK SPACE}", " ") for text in page.locator(selector).all_inner_texts()]


def test_the_reader_commits_and_then_sees(page, game):
    address, puzzles, names = game
    page.goto(address)
    wrong, truth, other = (names[c] for c in puzzles[0]["answers"][0][::2])
    before = [f"{wrong} 60 %", f"{truth} 30 %", f"{other} 10 %"]
    squares, pressed = page.locator("#puzzle-picture button"), "#puzzle-picture [aria-pressed=true]"
    page.click("#puzzle-commit")
    assert "one or two squares" in page.inner_text("#puzzle-says")
    squares.nth(1).click()
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowDown")
    page.keyboard.press("Space")
    squares.nth(1).click()
    page.keyboard.press("ArrowDown")
    page.keyboard.press("Space")
    squares.nth(0).click()  # a third one is refused in words
    labels = [square.get_attribute("aria-label") for square in page.locator(pressed).all()]
    assert labels == ["row 2, column 2", "row 2, column 3"]
    assert "Two squares are covered already" in page.inner_text("#puzzle-says")
    assert texts(page, "#puzzle-answers li") == before and texts(page, "li.truth") == before[1:2]
    assert page.inner_text("#puzzle-results") == page.inner_text("#puzzle-tally") == ""
    page.click("#puzzle-commit")
    assert page.inner_text("#puzzle-says").startswith(f"Solved: with yours it says {truth}.")
    captions = [f"you: ✓ {truth} 71 %", f"the map: ✓ {truth} 70 %", f"the best: ✓ {truth} 71 %"]
    assert texts(page, "#puzzle-results figcaption")[:3] == captions
    assert texts(page, "#puzzle-random span") == ["2 %"]
    assert page.inner_text("#puzzle-tally") == "you 1 · the map 1 · chance 0.0 · possible 1 of 1"
    squares.nth(5).click()  # the list follows, what was committed stays
    assert texts(page, "#puzzle-answers li") == before
    squares.nth(5).click()
    assert texts(page, "#puzzle-answers li")[0] == f"✓ {truth} 71 %"
    assert texts(page, "#puzzle-results figcaption")[:3] == captions


def test_a_puzzle_that_cannot_be_turned_and_one_that_is_shown(game):
    address, puzzles, names = game
    with opened_page(has_touch=True, is_mobile=True) as page:
        page.goto(address)
        assert not page.locator(".keys").is_visible()  # a finger has no arrow keys
        page.tap("#puzzle-next")
        page.tap("#puzzle-picture button >> nth=2")
        page.tap("#puzzle-commit")
        wrong = names[(puzzles[1]["true"] + 1) % 100]
        said = f"Not turned: with yours it says {wrong}. No one or two squares turn it."
        assert page.inner_text("#puzzle-says").startswith(said)
        said = [text.split(":")[0] for text in texts(page, "#puzzle-results figcaption")]
        assert said == ["you", "the map", "of all pairs turn it"]
        page.tap("#puzzle-next")
        page.tap("#puzzle-show")  # counts for nobody
        assert page.inner_text("#puzzle-tally") == "you 0 · the map 0 · chance 0.0 · possible 0 of 1"
        assert not page.locator("#puzzle-end").is_visible()
        page.tap("#puzzle-next")
        page.tap("#puzzle-show")
        assert page.locator("#puzzle-end").is_visible()
        classes = page.evaluate("[...document.querySelectorAll('#puzzle-dots i')].map(dot => dot.className)")
        assert classes == ["seen now", "lost", "seen"]
        page.tap("#puzzle-more")
        page.wait_for_selector("#mistake[open]")
        assert page.inner_text("#mistake-file") == puzzles[0]["file"] and page.errors == []


# ---- Class mode -------------------------------------------------------------------------------------------


def test_a_class_guesses_first(reported, reported_sets, tmp_path, monkeypatch):
    """On a page on which all four questions can be asked."""
    folder = shutil.copytree(reported, tmp_path / "run")
    numbers = json.loads((folder / "metrics.json").read_text(encoding="utf-8"))
    numbers["covering"]["verdict"] = "no"
    (folder / "metrics.json").write_text(json.dumps(numbers), encoding="utf-8")
    stress = stress_content(reported_sets[1].labels) | {"checks": []}
    monkeypatch.setattr(page_module, "read_stress", lambda folder, whose: stress)
    monkeypatch.setattr(sections, "write_plots", NO_PLOTS)
    monkeypatch.setattr(failures, "write", lambda *some: None)
    page_module.write_page(folder, reported_sets[1].images)
    robust, tests = stress["robust_accuracy"]["1"]["value"], stress["tests"]
    truths = {
        "attacks": robust / tests["unattacked/0"]["accuracy"]["value"],
        "corruptions": tests["fog/3"]["accuracy"]["value"],
        "maps": numbers["covering"]["mistakes"]["contrastive"]["to_truth"]["value"],
        "confidence": stress["summary"]["by_severity"][5]["mean_confidence"],
    }
    with opened_page() as page:
        page.goto((folder / "report.html").as_uri())
        page.wait_for_selector(LIST)
        seen = page.inner_text("main")
        assert page.locator(".guess:visible, .instead:visible, .class-only:visible").count() == 0
        page.click("a[href='#class']")
        page.wait_for_selector(".guess")
        assert page.locator(".guess:visible").count() == 4
        headline, hidden = page.locator("h1 > span").first, "section.guessing :is(.claim, svg, table):visible"
        assert not headline.is_visible() and page.locator(hidden).count() == 0
        assert page.locator(".claims span.guessing").count() == 2
        assert page.locator("#corrupted .sheet:visible, .attacked:visible").count() > 20  # pictures stay
        for guess, (name, truth) in enumerate(truths.items(), 20):
            form = page.locator(f".guess[data-of={name}]")
            form.locator("[type=range]").fill(str(guess))
            form.locator("[type=submit]" if name != "maps" else "[name=skip]").click()
            said = page.locator(f"section[data-guess={name}] .beside b:not([hidden])").all_inner_texts()
            assert said == [f"you said {guess}", f"it is {100 * truth:.0f}"][name == "maps" :]
            assert page.locator(f"section[data-guess={name}] .claim").is_visible()
            assert headline.is_visible()  # its number is the first that is guessed
        page.reload()
        assert page.locator(".guess:visible").count() == 4
        page.emulate_media(media="print")
        assert headline.is_visible() and page.locator(".guess:visible, .instead:visible").count() == 0
        page.emulate_media(media="screen")
        page.click("#class-end")
        page.wait_for_selector(".instead", state="hidden")  # the script hears of a new address a moment later
        assert page.inner_text("main") == seen and page.errors == []


# ---- The viewers ------------------------------------------------------------------------------------------


def test_at_the_temperature_everything_is_at_the_temperature(page):
    chosen = "[id$=-as_trained], [id$=-with_temperature], span.as_trained, span.with_temperature"
    parts = f"[...document.querySelectorAll('{chosen}')]"
    visible = f"{parts}.filter(e => getComputedStyle(e).display !== 'none').map(e => e.id || e.className)"
    for name in ("with_temperature", "as_trained"):
        page.click(f"#temperatures [value={name}]")
        shown = page.evaluate(visible)
        assert len(shown) == 7 and all(part.endswith(name) for part in shown), shown
        assert {"histogram-wrong-" + name, "reliability-clean-title-" + name, name} <= set(shown)


def test_a_row_of_the_table_sets_the_pictures(page, reported_sets):
    results = stress_content(reported_sets[1].labels)
    tests, names = list(results["examples"]["answers"]), reported_sets[1].class_names
    first = "#corrupted .sheet >> nth=0"
    assert row_of(page, first) == str(tests.index("fog/3"))  # the hardest at severity 3
    assert page.input_value("#corruption-choice [name=severity]") == "3"
    page.click("tr[data-name=contrast] td:nth-child(6)")
    assert row_of(page, first) == str(tests.index("contrast/5"))
    answer, probability = results["examples"]["answers"]["contrast/5"][0]
    caption = page.inner_text("#corrupted figcaption >> nth=0")
    assert f"{names[answer]} {100 * probability:.0f}\xa0%" in caption
    page.click("tr[data-name=contrast] td:nth-child(7)")  # of the mean: the severity stays
    assert page.input_value("#corruption-choice [name=severity]") == "5"
    page.click("tr[data-name=grey] button")
    assert row_of(page, first) == str(tests.index("grey/0"))
    assert page.locator("#corruption-choice [name=severity]").is_disabled()


def test_the_slider_of_the_attacks(page, reported_sets):
    answers = stress_content(reported_sets[1].labels)["attack_examples"]["answers"]
    names = reported_sets[1].class_names
    for step in (EPSILONS.index(1), 0, len(EPSILONS) - 2):  # it begins at 1/255
        if step != EPSILONS.index(1):
            page.fill("#attack-choice [name=step]", str(step))
            rules = "[...document.querySelectorAll('[id^=epsilon-rule-]')]"
            rules += ".filter(e => getComputedStyle(e).display !== 'none')"
            assert page.evaluate(f"{rules}.map(e => e.id)") == [f"epsilon-rule-{step}"]
        said = page.inner_text("#attack-says")
        assert f"enlarged {100 / EPSILONS[step]:g} times" in said
        assert ("8 bits" in said) == (EPSILONS[step] < 1)
        for place, name in enumerate(("pgd", "random")):
            answer, probability = answers[name][f"{EPSILONS[step]:g}"][0]
            row = f".attacked-row >> nth={place}"
            assert f"{names[answer]} {100 * probability:.0f}\xa0%" in page.locator(row).inner_text()
            first = 1 + 2 * (place * (len(EPSILONS) - 1) + step)
            assert row_of(page, f"{row} >> .sheet >> nth=0") == str(first)

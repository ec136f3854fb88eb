"""explore.html in Chromium: what its controls show is computed a second time, from the files."""

import json
import re
from pathlib import Path
from urllib.parse import urlencode

import numpy as np
import pytest
import torch
from lab_chromium import needs_chromium, opened_page
from made_up import EPSILONS, stress_content

from lab import examine, pictures

pytestmark = [pytest.mark.slow, needs_chromium]
KEYS = ("true", "predicted", "superclass", "predicted_superclass")
LIST = "#thumbnails button"


@pytest.fixture(scope="module")
def browser_page(reported):
    with opened_page() as page:
        page.address = (reported / "explore.html").as_uri()
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
        rows.append(names | {"confidence": row.max().item(), "file": test.filenames[i]})
    return sorted((r for r in rows if r["true"] != r["predicted"]), key=lambda row: -row["confidence"])


def says(mistakes, count):
    return f"{count} of {len(mistakes)} mistakes" if count else "No mistake on this page fits all choices"


def row_of(page, selector):
    return page.eval_on_selector(selector, "e => getComputedStyle(e).getPropertyValue('--row').trim()")


# ---- The page as a whole ---------------------------------------------------------------------------------


def test_no_error_no_request_and_nothing_is_cut_off(page):
    outside = [url for url in page.requests if not url.startswith(("file:", "data:", "about:"))]
    assert page.errors == [] and outside == []
    ids = page.evaluate("[...document.querySelectorAll('[id]')].map(e => e.id)")
    assert len(ids) == len(set(ids))
    assert page.evaluate("[...document.images].every(i => i.naturalWidth) && document.images.length") > 12
    cut_off = """[...document.querySelectorAll('svg text')].filter(text => {
        const [a, b] = [text, text.ownerSVGElement].map(e => e.getBoundingClientRect());
        const inside = a.left > b.left - 2 && a.right < b.right + 2;
        return a.width && !(inside && a.top > b.top - 2 && a.bottom < b.bottom + 2);
    }).map(text => text.textContent)"""
    assert page.evaluate(cut_off) == [] and page.locator("svg text").count() > 50
    sizes = """new Set([...document.querySelectorAll('main *')].filter(e => e.offsetParent
        && !e.closest('svg') && [...e.childNodes].some(n => n.nodeType === 3 && n.textContent.trim()))
        .map(e => getComputedStyle(e).fontSize)).size"""
    assert page.evaluate(sizes) <= 6  # three of text and three of titles


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 390])
def test_axe_finds_nothing(reported, scheme, width):
    axe = pytest.importorskip("axe_playwright_python", reason="needs: pip install axe-playwright-python")
    with opened_page(color_scheme=scheme) as page:
        page.set_viewport_size({"width": width, "height": 900})
        found = "(async () => (await axe.run()).violations.map(v => [v.id, v.nodes.map(n => n.html)]))()"
        clicks = {"": ["#puzzle-impossible", ".code summary >> nth=0", f"{LIST} >> nth=0"]}
        for search, selectors in (clicks | {"?class": ["[name=show] >> nth=0"]}).items():
            page.goto((reported / "explore.html").as_uri() + search)
            page.evaluate((Path(axe.__file__).parent / "axe.min.js").read_text(encoding="utf-8"))
            for selector in selectors:
                assert page.evaluate(found) == []
                page.click(selector)
            assert page.evaluate(found) == []


def test_readable_without_scripts_and_on_paper(reported, page):
    counts = {".static figure": 2, "#live figure": 3, ".small-case img": 24, ".matrix-table td": 100}
    counts |= {"#corrupted figure": 8, ".attacks .sheet": 30, "svg": 6}
    with opened_page(java_script_enabled=False) as without:
        without.goto((reported / "explore.html").as_uri())
        page.emulate_media(media="print")
        for shown in (without, page):
            for query, count in counts.items():
                assert shown.locator(query).filter(visible=True).count() >= count, query
            assert shown.locator(".script, form, dialog").filter(visible=True).count() == 0
    page.emulate_media(media="screen")


def test_a_page_of_which_little_is_known(tmp_path):
    """Two classes, no superclasses, no maps, no training set, no other run, no stress tests."""
    torch.manual_seed(0)
    test = pictures.from_arrays(
        torch.randint(0, 256, (30, 3, 32, 32)).byte(), torch.arange(30) % 2, ["a_b", "c"]
    )
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3072, 2))
    examine.examine(model, test, out=tmp_path)
    wrong = (np.load(tmp_path / "predictions.npz")["y_pred"] != np.arange(30) % 2).nonzero()[0]
    assert any(wrong % 2 == 0)
    with opened_page() as page:
        page.goto(f"{(tmp_path / 'explore.html').as_uri()}#true=a+b")
        page.wait_for_selector(LIST)
        count = sum(wrong % 2 == 0)
        of_all, scores = page.inner_text("#found").split("; ")  # of the class that is chosen
        assert of_all == says(wrong, count) and scores.startswith(
            f"recall {100 * (15 - count) / 15:.0f}\u00a0% ("
        )
        page.locator(LIST).first.click()
        shown = {"#mistake .sheet": 1, "#mistake-runs tr": 1, ".matrix-table tbody tr": 2}
        assert {query: page.locator(query).count() for query in shown} == shown
        assert not re.search("undefined|NaN|null", page.inner_text("body")) and page.errors == []


# ---- Mistakes --------------------------------------------------------------------------------------------


def test_a_cell_of_the_matrix_opens_its_mistakes_and_filters_add_up(page, mistakes, reported):
    first = page.locator(".matrix-table .miss a").first
    count = first.inner_text()
    first.click()
    page.wait_for_function("count => found.innerText.startsWith(`${count} of `)", arg=count)
    pair = [page.input_value(f"#filter [name={name}]") for name in KEYS[2:]]
    assert sum([row[key] for key in KEYS[2:]] == pair for row in mistakes) == int(count)
    page.click("#filter [type=reset]")
    page.wait_for_timeout(20)
    page.locator("#filter [name=true]").select_option(mistakes[3]["true"])
    expected = sum(row["true"] == mistakes[3]["true"] for row in mistakes)
    assert page.inner_text("#found").split("; ")[0] == says(mistakes, expected)
    page.click("#filter [type=reset]")
    page.wait_for_timeout(20)
    page.locator("#any-class").select_option(mistakes[3]["true"])
    page.wait_for_function("text => found.innerText.startsWith(text)", arg=says(mistakes, expected))
    kinds = json.loads((reported / "reasons.json").read_text(encoding="utf-8"))["kinds"]
    for row in kinds:
        page.click("#filter [type=reset]")
        page.wait_for_timeout(20)
        page.locator("#filter [name=kind]").select_option(row["name"])
        assert page.inner_text("#found") == says(mistakes, row["count"])


def test_an_address_opens_the_mistake_of_its_class_and_file(page, mistakes):
    for place, row in enumerate(mistakes[:3]):
        page.goto("about:blank")
        page.goto(f"{page.address}#{urlencode({'true': row['true'], 'open': row['file']})}")
        page.wait_for_selector("#mistake[open]")
        assert page.inner_text("#mistake-title") == f"{row['true']}, taken for {row['predicted']}"
        assert page.inner_text("#mistake-file") == row["file"]
        assert "other <b>run" in page.inner_text("#mistake-runs")
        page.keyboard.press("ArrowRight")
        assert page.inner_text("#mistake-title").startswith(mistakes[place + 1]["true"])
        page.keyboard.press("Escape")
        page.wait_for_selector("#mistake:not([open])", state="attached")


def test_a_button_covers_what_a_map_marks(page):
    states = "#live figcaption:visible"
    before = page.inner_text(states)
    assert before.startswith("It answers")
    page.click("[data-covers=contrastive]")
    assert "quarter covered" in page.inner_text(states)
    page.click("[data-covers=contrastive]")
    assert page.inner_text(states) == before


# ---- The game ---------------------------------------------------------------------------------------------


@pytest.fixture
def game(reported, tmp_path):
    """The address of the page with six puzzles, of which two squares turn the first, as the map does."""
    written = (reported / "explore.html").read_text(encoding="utf-8")
    start = written.index('id="page-data">') + len('id="page-data">')
    end = written.index("</script>", start)
    content = json.loads(written[start:end])
    covers = content["covers"]
    puzzles = [content["puzzles"][k % len(content["puzzles"])] | {} for k in range(6)]
    for k, puzzle in enumerate(puzzles):
        wrong, other = ((puzzle["true"] + step) % 100 for step in (1, 2))
        answers = [[wrong, 60, puzzle["true"], 30, other, 10] for _ in covers]
        puzzle |= {"answers": answers, "by_map": covers.index([2, 3]), "best": None, "random": 0.0}
        if k == 0:
            puzzle |= {"best": covers.index([5, 6]), "random": 2 / 120}
            answers[puzzle["best"]] = [puzzle["true"], 71, other, 20, wrong, 9]
            answers[puzzle["by_map"]] = [puzzle["true"], 70, other, 20, wrong, 10]
    content["puzzles"] = puzzles
    name = tmp_path / "explore.html"
    changed = json.dumps(content).replace("<", "\\u003c")
    name.write_text(written[:start] + changed + written[end:], encoding="utf-8")
    return name.as_uri(), puzzles, content["classes"]


def texts(page, selector):
    return [text.replace("\N{NO-BREAK SPACE}", " ") for text in page.locator(selector).all_inner_texts()]


def test_a_round_by_keyboard(page, game):
    """Right and down to row 2, column 2, which space covers, then right; a third square is refused."""
    address, puzzles, names = game
    page.goto(address)
    wrong, truth, other = (names[c] for c in puzzles[0]["answers"][0][::2])
    assert f"so that it answers {truth}." in page.inner_text("#puzzle-task")
    assert page.locator("#puzzle-commit").is_disabled()
    height = page.evaluate("document.documentElement.scrollHeight")
    page.focus("#puzzle-picture button >> nth=0")
    for key in ("ArrowRight", "ArrowDown", "Space", "ArrowRight", "Space", "ArrowRight", "Space"):
        page.keyboard.press(key)
    labels = [square.get_attribute("aria-label") for square in page.locator("[aria-pressed=true]").all()]
    assert labels == ["row 2, column 2", "row 2, column 3"]
    assert "Two squares are the most" in page.inner_text("#puzzle-says")
    assert texts(page, "#puzzle-answers li") == [f"{wrong} 60 %", f"{truth} 30 %", f"{other} 10 %"]
    page.keyboard.press("Enter")
    luck = page.inner_text("#puzzle-results .luck")
    assert (
        page.inner_text("#puzzle-says") == f"Solved: it answers {truth}. Of all pairs {luck} do it: a hint."
    )
    captions = [f"you: ✓ {truth} 71 %", f"the map's squares: ✓ {truth} 70 %", f"the best: ✓ {truth} 71 %"]
    assert texts(page, "#puzzle-results figcaption")[:3] == captions
    assert texts(page, ".luck") == ["2 %"] and page.locator("#puzzle-results canvas").count() == 1
    page.click("#puzzle-picture button >> nth=5")  # the list and the message follow
    assert page.inner_text("#puzzle-says") == f"With what is covered now, it answers {wrong}."
    page.click("#puzzle-next")
    assert page.evaluate("document.activeElement.ariaLabel") == "row 1, column 1"
    assert page.url.endswith("#puzzle=2")
    assert page.evaluate("document.documentElement.scrollHeight") == height


def test_what_cannot_be_done_scores_and_five_rounds_have_a_moral(game):
    address, _, _ = game
    with opened_page(has_touch=True, is_mobile=True) as page:
        page.goto(f"{address}#puzzle=2")
        assert not page.locator(".keys").is_visible()  # a finger has no arrow keys
        for k in range(5):
            if k == 2:
                page.tap("#puzzle-picture button >> nth=2")
                page.tap("#puzzle-commit")
                assert "No cover of one or two squares makes it answer" in page.inner_text("#puzzle-says")
            else:
                page.tap("#puzzle-impossible")
                assert page.inner_text("#puzzle-says").startswith("Right.")
            assert page.locator("#puzzle-line").is_visible() == (k == 4)
            page.tap("#puzzle-next")
        assert (
            page.inner_text("#puzzle-line")
            == "I made it right 0 times in 5, its contrastive map 0 times. You?"
        )
        assert "you saw 4 times that it cannot be done" in page.inner_text("#puzzle-tally")
        classes = page.evaluate(
            "[...document.querySelectorAll('#puzzle-dots i')].map(dot => dot.className.trim())"
        )
        assert classes == ["now", "won", "won", "lost", "won", "won"] and page.errors == []


# ---- Class mode -------------------------------------------------------------------------------------------


def test_a_class_votes_before_it_sees(page, reported, reported_sets):
    numbers = json.loads((reported / "reasons.json").read_text(encoding="utf-8"))
    assert numbers["covering"]["verdict"] == "too few"  # so the section on maps asks nothing
    stress = stress_content(reported_sets[1].labels)  # of which a check failed: nor does that on attacks
    assert page.locator("form.guess:visible, .class-only:visible").count() == 0
    page.goto(f"{page.address}?class")
    page.reload()  # the mode stays
    truths = {"confidence": stress["summary"]["mean_confidence"]["fifteen"], "corruptions": 0.2}
    assert page.locator("form.guess:visible").count() == len(truths)
    for name, truth in truths.items():
        section = f"section[aria-labelledby={name}]"
        hidden = page.locator(f"{section} :is(.claim, .body :is(p, .p, table, svg, form, figcaption))")
        assert hidden.filter(visible=True).count() == 0
        assert page.locator("#corrupted .sheet").first.is_visible()  # pictures without answers are no secret
        strip = page.locator(f"{section} .votes")
        strip.scroll_into_view_if_needed()
        box = strip.bounding_box()
        for share in np.linspace(0.1, 0.9, 30):
            page.mouse.click(box["x"] + share * box["width"], box["y"] + box["height"] / 2)
        page.fill(f"{section} [name=vote]", "17")  # the slider chooses, the button votes
        page.click(f"{section} .guess button:not([name])")
        assert page.locator(f"{section} .votes").get_attribute("aria-label") == "31 votes"
        page.click(f"{section} [name=show]")
        assert page.inner_text(f"{section} .votes strong").startswith(f"it is {round(100 * truth)}")
        assert hidden.filter(visible=True).count() > 3


# ---- The viewers ------------------------------------------------------------------------------------------


def test_a_row_of_the_table_sets_the_pictures(page, reported_sets):
    stress = stress_content(reported_sets[1].labels)
    tests, names = list(stress["examples"]["answers"]), reported_sets[1].class_names
    first = "#corrupted .sheet >> nth=0"
    assert row_of(page, first) == str(tests.index("fog/3"))  # the hardest at severity 3
    page.click("tr[data-name=contrast] td:nth-child(6)")
    assert row_of(page, first) == str(tests.index("contrast/5"))
    answer, probability = stress["examples"]["answers"]["contrast/5"][0]
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
        words = page.inner_text("#attack-says")
        assert ("below one level" in words, "look alike" in words) == (
            EPSILONS[step] < 1,
            EPSILONS[step] <= 2,
        )
        for place, name in enumerate(("pgd", "random")):
            answer, probability = answers[name][f"{EPSILONS[step]:g}"][0]
            figure = f"figure.attacked[data-attack={name}] >> nth=0"
            assert f"{names[answer]} {100 * probability:.0f}\xa0%" in page.locator(figure).inner_text()
            first = 1 + 2 * (place * (len(EPSILONS) - 1) + step)
            assert row_of(page, f"{figure} >> .sheet") == str(first + 1)
            assert row_of(page, f".attacks > .sheet >> nth={6 * place}") == str(first)

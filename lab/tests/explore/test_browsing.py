"""explore.html in Chromium: what its controls show is computed a second time, from the files."""

import re
from pathlib import Path
from urllib.parse import urlencode

import matplotlib
import numpy as np
import pytest
import torch
from lab_chromium import needs_chromium, opened_page

from lab import examine, pictures

pytestmark = [pytest.mark.slow, needs_chromium]
LIST = "#thumbnails button"


@pytest.fixture(scope="module")
def browser_page(made):
    with opened_page() as page:
        yield page
        assert page.errors == []


@pytest.fixture
def page(browser_page, made):
    browser_page.set_viewport_size({"width": 1280, "height": 900})
    browser_page.goto("about:blank")
    browser_page.goto(made.address)
    browser_page.wait_for_selector(LIST)
    return browser_page


@pytest.fixture(scope="module")
def mistakes(made, reported_sets):
    """Class, answer, both superclasses, confidence and file of each mistake, the most confident first."""
    rows, test = [], reported_sets[1]
    names = [name.replace("_", " ") for name in test.class_names]
    groups = [test.superclass_names[g].replace("_", " ") for g in test.superclass_of]
    for i, row in enumerate(np.load(made.folder / "predictions.npz")["probabilities"]):
        true, predicted = test.labels[i].item(), row.argmax().item()
        if true != predicted:
            row = {"true": names[true], "predicted": names[predicted], "confidence": row.max().item()}
            rows.append(row | {"groups": [groups[true], groups[predicted]], "file": test.filenames[i]})
    return sorted(rows, key=lambda row: -row["confidence"])


def texts(page, selector):
    return [text.replace("\N{NO-BREAK SPACE}", " ") for text in page.locator(selector).all_inner_texts()]


def found(page):
    return page.inner_text("#found").split("; ")[0]


def says(mistakes, count):
    return f"{count} of {len(mistakes)} mistakes" if count else "No mistake on this page fits"


def place_of(page, selector, axis):
    return page.eval_on_selector(selector, f"e => getComputedStyle(e).getPropertyValue('--{axis}').trim()")


# ---- The page as a whole ---------------------------------------------------------------------------------


def test_no_error_no_request_and_nothing_is_cut_off(page):
    outside = [url for url in page.requests if not url.startswith(("file:", "data:", "about:"))]
    assert page.errors == [] and outside == []
    ids = page.evaluate("[...document.querySelectorAll('[id]')].map(e => e.id)")
    assert len(ids) == len(set(ids))
    assert page.evaluate("[...document.images].every(i => i.naturalWidth) && document.images.length") > 8
    cut_off = """[...document.querySelectorAll('svg text')].filter(text => {
        const [a, b] = [text, text.ownerSVGElement].map(e => e.getBoundingClientRect());
        const inside = a.left > b.left - 2 && a.right < b.right + 2;
        return a.width && !(inside && a.top > b.top - 2 && a.bottom < b.bottom + 2);
    }).map(text => text.textContent)"""
    assert page.evaluate(cut_off) == [] and page.locator("svg text").count() > 50
    for width in (1600, 1280, 640, 390):
        page.set_viewport_size({"width": width, "height": 900})
        assert page.evaluate("document.documentElement.scrollWidth") <= width


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_right_is_blue_and_wrong_is_orange(made, scheme):
    """By red and blue: of answers that stand as right and as wrong, and of cells of the matrix."""
    with opened_page(color_scheme=scheme) as page:
        page.goto(made.address)
        shown = {"right": "✓", "wrong": "✗"}
        for kind, sign in shown.items():
            spans = page.locator(f"#corrupted span.{kind}, .attacks span.{kind}")
            assert spans.count() and all(text.startswith(sign) for text in spans.all_inner_texts())
            red, _, blue = map(
                int, re.findall(r"\d+", spans.first.evaluate("e => getComputedStyle(e).color"))
            )
            assert (blue > red) == (kind == "right")
        rows = page.locator(".matrix-table tbody tr").all()
        script = "cells => cells.map(e => e.textContent && getComputedStyle(e).backgroundColor)"
        for i, row in enumerate(rows):
            for j, colour in enumerate(row.locator("td").evaluate_all(script)):
                if colour:
                    red, _, blue, *_ = map(float, re.findall(r"[\d.]+", colour.replace("srgb", "")))
                    assert (blue > red) == (i == j), (i, j, colour)


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 390])
def test_axe_finds_nothing(made, scheme, width):
    axe = pytest.importorskip("axe_playwright_python", reason="needs: pip install axe-playwright-python")
    with opened_page(color_scheme=scheme) as page:
        page.set_viewport_size({"width": width, "height": 900})
        violations = "(async () => (await axe.run()).violations.map(v => [v.id, v.nodes.map(n => n.html)]))()"
        clicks = [
            "#puzzle-choices button >> nth=0",
            "#puzzle-give-up",
            ".code button >> nth=0",
            f"{LIST} >> nth=0",
        ]
        for search, selectors in {"": clicks, "?class": ["[name=show] >> nth=0"]}.items():
            page.goto(made.address + search)
            page.evaluate((Path(axe.__file__).parent / "axe.min.js").read_text(encoding="utf-8"))
            for selector in selectors:
                assert page.evaluate(violations) == []
                page.click(selector)
                page.wait_for_timeout(400)  # bars move
                if "code" in selector:
                    assert page.locator(".source:popover-open code").inner_text().startswith("def ")
                    page.keyboard.press("Escape")
            assert page.evaluate(violations) == []


def test_readable_without_scripts_and_on_paper(made, page):
    counts = {
        ".static img": 1,
        ".matrix-table td": 100,
        "#corrupted figure": 8,
        ".attacks .sheet": 24,
        "svg": 5,
    }
    with opened_page(java_script_enabled=False) as without:
        without.goto(made.address)
        page.emulate_media(media="print")
        for shown in (without, page):
            for query, count in counts.items():
                assert shown.locator(query).filter(visible=True).count() >= count, query
            assert shown.locator(".puzzle, form, dialog").filter(visible=True).count() == 0
    assert page.locator(LIST).filter(visible=True).count() == 20
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
        recall = f"recall {100 * (15 - count) / 15:.0f}\u00a0% ("
        assert of_all == says(wrong, count) and scores.startswith(recall)
        assert page.locator("#puzzle-choices button").count() == 2
        page.locator(LIST).first.click()
        shown = {"#mistake .sheet": 1, ".matrix-table tbody tr": 2}
        assert {query: page.locator(query).count() for query in shown} == shown
        assert not re.search("undefined|NaN|null", page.inner_text("body")) and page.errors == []


# ---- Mistakes --------------------------------------------------------------------------------------------


def test_thumbnails_say_what_was_answered_and_what_is_true(page, mistakes):
    for place, row in enumerate(mistakes[:20]):
        item = page.locator(LIST).nth(place)
        assert item.locator("[data-text=predicted]").inner_text() == row["predicted"]
        assert item.locator("[data-text=true]").inner_text() == row["true"]
        confidence = item.locator("[data-text=confidence]").inner_text().replace("\N{NO-BREAK SPACE}", " ")
        assert confidence == f"{100 * row['confidence']:.1f} %"


def test_a_cell_of_the_matrix_opens_its_mistakes_filters_add_up_and_back_undoes_them(page, mistakes):
    first = page.locator(".matrix-table .miss a").first
    count = first.inner_text()
    first.click()
    page.wait_for_function("count => found.innerText.startsWith(`${count} of `)", arg=count)
    pair = [page.input_value(f"#filter [name={name}]") for name in ("true", "predicted")]
    assert sum([f"all {group}" for group in row["groups"]] == pair for row in mistakes) == int(count)
    page.click("#filter [type=reset]")
    page.wait_for_timeout(50)
    assert found(page) == says(mistakes, len(mistakes))
    counts = []
    for key, filters in (("true", {}), ("predicted", {"true": mistakes[3]["true"]})):
        page.locator(f"#filter [name={key}]").select_option(mistakes[3][key])
        wanted = filters | {key: mistakes[3][key]}
        counts.append(sum(all(row[k] == v for k, v in wanted.items()) for row in mistakes))
        assert found(page) == says(mistakes, counts[-1])
    for expected in (counts[0], len(mistakes), int(count)):
        page.go_back()
        page.wait_for_function("text => found.innerText.startsWith(text)", arg=says(mistakes, expected))
    page.locator("#any-class").select_option(mistakes[3]["true"])
    page.wait_for_function("text => found.innerText.startsWith(text)", arg=says(mistakes, counts[0]))


def test_an_address_opens_the_mistake_of_its_class_and_file(page, mistakes, made):
    for place, row in enumerate(mistakes[:3]):
        page.goto("about:blank")
        page.goto(f"{made.address}#{urlencode({'true': row['true'], 'open': row['file']})}")
        page.wait_for_selector("#mistake[open]")
        assert page.inner_text("#mistake-title") == f"{row['true']}, taken for {row['predicted']}"
        assert page.inner_text("#mistake-file") == row["file"]
        notes = page.inner_text("#mistake-notes").replace("\N{NO-BREAK SPACE}", " ")
        assert notes.startswith(f"It answers {row['predicted']} {100 * row['confidence']:.1f} %, ")
        assert "Other trainings: other <b>run: " in notes
        column = made.evidence["mistakes"].tolist().index(made.answers["filenames"].index(row["file"]))
        side = int(np.ceil(np.sqrt(len(mistakes))))
        assert place_of(page, "#mistake .sheet", "column") == str(column % side)
        assert place_of(page, "#mistake .sheet", "row") == str(column // side)
        page.keyboard.press("ArrowRight")
        assert page.inner_text("#mistake-title").startswith(mistakes[place + 1]["true"])
        page.keyboard.press("Escape")
        page.wait_for_selector("#mistake:not([open])", state="attached")


def pixels_of(page, selector):
    """The pixels of a canvas, uint8 [S, S, 4]."""
    script = "c => [c.width, ...c.getContext('2d').getImageData(0, 0, c.width, c.height).data]"
    side, *values = page.locator(selector).evaluate(script)
    return np.array(values, dtype=np.uint8).reshape(side, side, 4)


def test_maps_of_a_mistake_mark_the_left_for_the_answer_and_the_right_for_the_truth(page, mistakes, made):
    """The map is 1, 0.5, -0.25, -0.5 from left to right, in all rows; the left quarter is covered."""
    first = next(
        k
        for k, row in enumerate(mistakes)
        if row["file"] == made.answers["filenames"][made.evidence["mistakes"][0]]
    )
    page.locator(LIST).nth(first).click()
    colours = matplotlib.colormaps["inferno"]
    for canvas, values in ((0, [1.0, 0.5, 0.0, 0.0]), (1, [0.0, 0.0, 0.25, 0.5])):
        expected = np.array([colours(value, bytes=True)[:3] for value in values], dtype=float)
        drawn = pixels_of(page, f"#mistake canvas >> nth={canvas}")[..., :3].astype(float)
        assert drawn.shape == (4, 4, 3) and abs(drawn - expected).max() <= 12  # a byte holds a cell
    cover = pixels_of(page, "#mistake canvas >> nth=2")
    assert (cover[:, :8, 3] == 255).all() and (cover[:, 8:, 3] == 0).all()
    assert (cover[:, :8, :3] == (255 * made.evidence["fill"]).round().numpy()).all()
    captions = texts(page, "#mistake figcaption")
    true, predicted = mistakes[first]["true"], mistakes[first]["predicted"]
    assert captions[1:3] == [
        f"what speaks for {a} rather than {b}" for a, b in ((predicted, true), (true, predicted))
    ]


def test_a_button_covers_what_a_map_marks(page):
    states = "#live figcaption:visible"
    before = page.inner_text(states)
    page.click("[data-covers=contrastive]")
    assert page.inner_text(states).startswith("Covered by the contrastive map")
    page.click("[data-covers=usual]")
    assert page.inner_text(states).startswith("Covered by the usual map")
    page.click("[data-covers=usual]")
    assert page.inner_text(states) == before


# ---- The game --------------------------------------------------------------------------------------------

PICTURE = "#puzzle-picture button >> nth="


@pytest.fixture(scope="module")
def puzzles(made):
    """Truth, answer and file of each puzzle; see made_files.with_puzzles."""
    names, rows = [name.replace("_", " ") for name in made.answers["class_names"]], []
    for place, i in enumerate(made.evidence["puzzles"].tolist()):
        true, predicted = (names[made.answers[key][i]] for key in ("y_true", "y_pred"))
        rows.append(
            {"true": true, "predicted": predicted, "place": place, "file": made.answers["filenames"][i]}
        )
    return rows


def puzzle_shown(page, puzzles):
    column = int(place_of(page, "#puzzle-picture", "column"))
    return puzzles[column]


def test_ten_games_by_rule(made, puzzles):
    """The rule: cover the squares 5 and 6; where that does not turn it, give up. Four of six are solved."""
    orders, early = [], set()
    with opened_page() as page:
        for _ in range(10):
            page.goto("about:blank")
            page.goto(made.address)
            orders.append([])
            for turn in range(len(puzzles)):
                puzzle = puzzle_shown(page, puzzles)
                orders[-1].append(puzzle["place"])
                choices = texts(page, "#puzzle-choices button")
                assert {puzzle["true"], puzzle["predicted"]} < set(choices) and len(set(choices)) == 3
                page.locator("#puzzle-choices button").nth(turn % 3).click()
                page.click(f"{PICTURE}5")
                page.click(f"{PICTURE}6")
                solved = puzzle["place"] < 4
                assert page.is_visible("#puzzle-give-up") != solved
                if solved:
                    expected = f"It gives in after 2 tries: {puzzle['true']}. You can go on covering."
                else:
                    page.click("#puzzle-give-up")
                    expected = f"No one or two squares make it say {puzzle['true']}. You can go on covering."
                assert page.inner_text("#puzzle-says") == expected
                tally = page.inner_text("#puzzle-tally")
                page.click("#puzzle-next")
            so_far = "So far you turned 4 of 6, the map's squares 2, two random squares 0.0 on average"
            assert tally == f"{so_far}; 4 can be turned."
            early |= {tuple(sorted(orders[-1][:3]))}
        assert page.errors == []
    assert len(early) == 1 and set(*early) < set(range(4)) and len({tuple(order) for order in orders}) > 3
    assert all(sorted(order) == list(range(6)) for order in orders)


def test_a_round_by_keyboard(page, puzzles):
    """A third square uncovers the first; bars, message and moral follow; squares stay playable."""
    while puzzle_shown(page, puzzles)["place"] >= 2:  # one that the map's squares solve
        page.reload()
    puzzle = puzzle_shown(page, puzzles)
    assert page.locator(f"{PICTURE}0").is_disabled() and not page.is_visible("#puzzle-bars")
    assert puzzle["predicted"] not in page.inner_text("#puzzle-says")
    page.locator("#puzzle-choices button", has_text=re.compile(f"^{re.escape(puzzle['true'])}$")).click()
    says = page.inner_text("#puzzle-says").replace("\N{NO-BREAK SPACE}", " ")
    assert (
        says.startswith("Right. It is a")
        and f"the network says {puzzle['predicted']}, 60 %. Cover one" in says
    )
    assert texts(page, "#puzzle-bars b") == ["60 %", "30 %", "10 %"]
    for key in ("Space", "ArrowDown", "ArrowRight", "Space", "ArrowRight"):
        page.keyboard.press(key)
    assert page.inner_text("#puzzle-says") == f"Still not {puzzle['true']}. Cover other squares."
    page.keyboard.press("Space")
    labels = [
        square.get_attribute("aria-label") for square in page.locator(".grid4 [aria-pressed=true]").all()
    ]
    assert labels == ["row 2, column 2", "row 2, column 3"]
    assert page.inner_text("#puzzle-says").startswith(f"It gives in after 3 tries: {puzzle['true']}.")
    assert texts(page, "#puzzle-bars span")[:2] == [f"✓ {puzzle['true']}", puzzle["predicted"]]
    assert texts(page, "#puzzle-bars b")[0] == "65 %"
    widths = [
        bar.evaluate("e => getComputedStyle(e, '::before').width")
        for bar in page.locator("#puzzle-bars li").all()
    ]
    assert page.locator("#puzzle-bars li").first.get_attribute("class") == "right" and len(set(widths)) == 3
    moral = page.inner_text("#puzzle-moral").replace("\N{NO-BREAK SPACE}", " ")
    assert "They turn it, too. 1 % of all pairs of squares do it: hardly luck." in moral
    outlined = page.locator("#puzzle-moral i").evaluate_all("all => all.map(e => e.style.gridArea)")
    assert outlined == ["2 / 2", "2 / 3"]
    page.click(f"{PICTURE}5")
    assert page.inner_text("#puzzle-says") == f"Now it says {puzzle['predicted']}. You can go on covering."
    page.click("#puzzle-more")
    page.wait_for_selector("#mistake[open]")
    assert page.inner_text("#mistake-file") == puzzle["file"]


def test_a_map_that_marks_other_squares_says_what_they_do(page, puzzles):
    while puzzle_shown(page, puzzles)["place"] not in (2, 3):
        page.reload()
    puzzle = puzzle_shown(page, puzzles)
    page.locator("#puzzle-choices button").first.click()
    page.click("#puzzle-give-up")
    assert page.inner_text("#puzzle-says").startswith(f"These squares make it say {puzzle['true']}.")
    moral = page.inner_text("#puzzle-moral").replace("\N{NO-BREAK SPACE}", " ")
    assert f"With them covered it says {puzzle['predicted']}, 60 %." in moral
    outlined = page.locator("#puzzle-moral i").evaluate_all("all => all.map(e => e.style.gridArea)")
    assert outlined == ["1 / 3", "1 / 4"]


def test_on_a_phone_picture_bars_and_buttons_are_seen_together(made):
    with opened_page(has_touch=True, is_mobile=True) as page:
        page.set_viewport_size({"width": 390, "height": 844})
        page.goto(made.address)
        page.tap("#puzzle-choices button >> nth=0")
        for selector in ("#puzzle-picture", "#puzzle-bars", "#puzzle-give-up"):
            box = page.locator(selector).bounding_box()
            assert box["y"] >= 0 and box["y"] + box["height"] <= 844, selector


# ---- Class mode ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("width", "height"), [(1280, 800), (1920, 1080)])
def test_a_class_votes_before_it_sees(made, width, height):
    stress, asked = made.stress, ["mistakes", "maps", "corruptions", "confidence", "attacks"]
    covered = made.numbers["covering"]["mistakes"]["usual"]["to_truth"]["value"]
    hardest = min(
        stress["families"]["noise"], key=lambda name: stress["tests"][f"{name}/3"]["accuracy"]["value"]
    )
    truths = [
        made.numbers["accuracy"]["value"],
        covered,
        stress["tests"][f"{hardest}/3"]["accuracy"]["value"],
    ]
    truths += [stress["summary"]["mean_confidence"]["fifteen"], stress["robust_accuracy"]["1"]["value"]]
    with opened_page() as page:
        page.set_viewport_size({"width": width, "height": height})
        page.goto(made.address)
        assert page.locator("form.guess:visible").count() == 0
        page.click("nav >> text=For a class")
        page.reload()  # the mode stays
        assert page.locator("form.guess:visible").count() == len(asked)
        for name, truth in zip(asked, truths, strict=True):
            section = f"section[aria-labelledby={name}]"
            hidden = page.locator(f"{section} :is(.claim, .below, .body :is(table, svg, form, .thumb))")
            assert hidden.filter(visible=True).count() == 0
            votes = []
            for typed, expected in (("1 at 34", "1 vote, median 30"), ("70", "2 votes, median 50")):
                page.fill(f"{section} [name=typed]", typed)
                page.press(f"{section} [name=typed]", "Enter")
                assert page.inner_text(f"{section} .guess output") == expected
            for _ in range(3):  # once more than there is something to take back
                page.click(f"{section} [name=undo]")
            for about, count in ((30, 3), (70, 20), (100, 9)):  # 32, of which some are taken back
                page.fill(f"{section} [name=typed]", f"{count} at {about}" if count != 3 else "34")
                page.press(f"{section} [name=typed]", "Enter")
                votes += [about] * (1 if count == 3 else count)
                assert (len(votes) == 1) == (
                    page.inner_text(f"{section} .guess output") == "1 vote, median 30"
                )
            page.click(f"{section} [aria-label='one more vote for 0']")
            page.click(f"{section} [aria-label='one vote less for 100']")
            page.click(f"{section} [aria-label='one vote less for 50']")  # there is none
            votes = [0, *votes[:-1]]
            median = f"{np.median(votes):g}"
            assert page.inner_text(f"{section} .guess output") == f"{len(votes)} votes, median {median}"
            page.click(f"{section} [name=undo]")
            assert page.inner_text(f"{section} .guess output").startswith(f"{len(votes) + 1} votes")
            counts = texts(page, f"{section} .votes b")
            assert counts == ["1", "", "", "1", "", "", "", "20", "", "", "9"]
            page.locator(f"#{name}").scroll_into_view_if_needed()
            below = page.locator("nav").bounding_box()["height"]
            assert page.locator(section).bounding_box()["height"] < height - below, name
            page.click(f"{section} [name=show]")
            assert page.inner_text(f"{section} .votes strong").split(" (")[0] == f"it is {100 * truth:.0f}"
            assert page.locator(f"{section} .claim").is_visible()
        assert page.locator("section[aria-labelledby=attacks] .attacks .sheet").first.is_visible()
        assert page.errors == []


# ---- The viewers -----------------------------------------------------------------------------------------


def test_a_row_of_the_table_sets_the_pictures_and_the_slider_says_how_many_are_right(page, made):
    stress, names = made.stress, made.answers["class_names"]
    tests, first, slider = (
        list(stress["examples"]["answers"]),
        "#corrupted .sheet >> nth=0",
        "[name=severity]",
    )
    rows = page.locator("#corruption-table tbody tr[data-name]")
    hardest = rows.first.get_attribute("data-name")
    assert place_of(page, first, "row") == str(tests.index(f"{hardest}/3"))
    assert (
        rows.first.locator("b").inner_text() == hardest.replace("_", " ") and rows.locator("b").count() == 1
    )
    page.click("tr[data-name=contrast] td:nth-child(6)")
    assert place_of(page, first, "row") == str(tests.index("contrast/5"))
    answer, probability = stress["examples"]["answers"]["contrast/5"][0]
    caption = page.inner_text("#corrupted figcaption >> nth=0")
    assert f"{names[answer]} {100 * probability:.0f}\xa0%" in caption
    right = f"5: {100 * stress['tests']['contrast/5']['accuracy']['value']:.0f}\xa0% right"
    assert page.inner_text("#corruption-choice output") == right
    assert page.locator(f"#corruption-choice {slider}").evaluate("e => e.ariaValueText") == right
    page.click("tr[data-name=contrast] td:nth-child(7)")  # of the mean: the severity stays
    assert page.input_value(f"#corruption-choice {slider}") == "5"
    page.fill(f"#corruption-choice {slider}", "0")
    assert page.inner_text("#corruption-choice output").startswith("clean: 70")
    page.click("tr[data-name=grey] button")
    assert place_of(page, first, "row") == str(tests.index("grey/0"))
    assert page.locator(f"#corruption-choice {slider}").is_disabled()


def test_the_slider_of_the_attacks(page, made):
    stress, names = made.stress, made.answers["class_names"]
    epsilons = stress["epsilons"][:-1]
    for step in (epsilons.index(1), 0, len(epsilons) - 1):  # it begins at 1/255
        if step != epsilons.index(1):
            page.fill("#attack-choice [name=step]", str(step))
            rules = "[...document.querySelectorAll('[id^=epsilon-rule-]')]"
            rules += ".filter(e => getComputedStyle(e).display !== 'none')"
            assert page.evaluate(f"{rules}.map(e => e.id)") == [f"epsilon-rule-{step}"]
        epsilon = f"{epsilons[step]:g}"
        worst, signs = (100 * stress[key][epsilon]["value"] for key in ("robust_accuracy", "random_signs"))
        words = f"{epsilon}/255: {worst:.1f}\xa0% right, by random signs {signs:.1f}\xa0%"
        assert page.inner_text("#attack-choice output") == words
        assert page.locator("#attack-choice [name=step]").evaluate("e => e.ariaValueText") == words
        for attack, name in enumerate(("pgd", "random")):
            answer, probability = stress["attack_examples"]["answers"][name][epsilon][0]
            figure = f".attacks [data-attack={name}] >> nth=0"
            assert f"{names[answer]} {100 * probability:.0f}\xa0%" in page.locator(figure).inner_text()
            assert place_of(page, f"{figure} >> .sheet", "row") == str(
                2 + 2 * (attack * len(epsilons) + step)
            )
        assert place_of(page, ".attacks [data-row='0'] .sheet >> nth=0", "row") == str(1 + 2 * step)

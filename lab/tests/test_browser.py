"""explore.html in Chromium: what a reader does, what a class does, and what is wrong or odd."""

import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from lab_pages import NAMES, PROGRAM, make_people, opened

from lab import answers, sections
from lab import page as page_of_results

pytestmark = [pytest.mark.slow, pytest.mark.skipif(PROGRAM is None, reason="needs Chromium")]
LIST, SQUARE, CHOICE = (
    "#thumbnails button",
    "#puzzle-picture button >> nth=",
    "#puzzle-choices button >> nth=",
)
SECTIONS = ["mistakes", "where", "maps", "corruptions", "confidence", "unlabelled", "attacks", "accuracy"]


def plain(text):
    return text.replace("\N{NO-BREAK SPACE}", " ")


def name_of(c):
    return NAMES[c].replace("_", " ")


def play(page, pictures, choose):
    """Play the whole game; choose(k, names) is the place of the answer. Return how many were right."""
    score = 0
    for k, (truth, offer) in enumerate(pictures):
        names = page.locator("#puzzle-choices button").all_inner_texts()
        assert sorted(names) == sorted(offer) and "old woman" not in names
        place = choose(k, names)
        page.click(f"{CHOICE}{place}")
        score += names[place] == truth
        if k + 1 < len(pictures):
            page.click("#puzzle-next")
    return score


@pytest.fixture(scope="module")
def pictures(made):
    """The truth and the answers on offer of each picture of the game, from the files."""
    index = answers.draw_game(made.answers)
    offers = answers.offered(made.answers, index).tolist()
    truths = made.answers["y_true"][index].tolist()
    return [(name_of(c), [name_of(o) for o in offer]) for c, offer in zip(truths, offers, strict=True)]


CUT_OFF = """[...document.querySelectorAll('svg text')].filter(text => {
    const [a, b] = [text, text.ownerSVGElement].map(e => e.getBoundingClientRect());
    const inside = a.left > b.left - 2 && a.right < b.right + 2;
    return a.width && !(inside && a.top > b.top - 2 && a.bottom < b.bottom + 2);
}).map(text => text.textContent)"""  # letters of plots

# ---- The page as a whole -----------------------------------------------------------------------------------


@pytest.mark.parametrize(("width", "scheme"), [(390, "dark"), (1280, "light"), (1920, "dark")])
def test_axe_finds_nothing_and_nothing_is_cut_off(made, width, scheme):
    axe = pytest.importorskip("axe_playwright_python", reason="needs: pip install axe-playwright-python")
    violations = "(async () => (await axe.run()).violations.map(v => [v.id, v.nodes.map(n => n.html)]))()"
    clicks = [f"{CHOICE}0", f"{LIST} >> nth=0", "#mistake-close", ".matrix-table .miss a >> nth=0"]
    for search, selectors in {"": clicks, "?class": ["#screens [name=next]", ".current [name=show]"]}.items():
        with opened(made.address + search, width, color_scheme=scheme) as page:
            page.evaluate((Path(axe.__file__).parent / "axe.min.js").read_text(encoding="utf-8"))
            for selector in (None, *selectors):
                if selector:
                    page.click(selector)
                    page.wait_for_timeout(350)  # bars move
                assert page.evaluate(violations) == [], selector
                assert page.evaluate("document.documentElement.scrollWidth") <= width
                assert page.evaluate(CUT_OFF) == []
            ids = page.evaluate("[...document.querySelectorAll('[id]')].map(e => e.id)")
            assert len(ids) == len(set(ids))


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_blue_is_right_orange_is_wrong_and_nothing_else_has_a_colour(made, scheme):
    """By red and blue: answers, cells of the matrix; links, low numbers and points are neither."""

    def hue(locator, what):
        colour = locator.evaluate(f"e => getComputedStyle(e).{what}").replace("srgb", "")
        red, _, blue, *_ = map(float, re.findall(r"[\d.]+", colour))
        return "blue" if blue > 1.25 * red else "orange" if red > 1.25 * blue else "none"

    with opened(made.address, color_scheme=scheme) as page:
        for kind, wanted in {"right": "blue", "wrong": "orange"}.items():
            assert hue(page.locator(f".attacks span.{kind}").first, "color") == wanted
        assert hue(page.locator(".matrix-table .miss").first, "backgroundColor") != "blue"
        assert hue(page.locator("main a").first, "color") == "none"
        assert hue(page.locator(".cells td[style]").first, "backgroundColor") == "none"
        for plot in page.locator(
            "svg:not([aria-label^='Confidence of right'])"
        ).all():  # but the histogram of right and wrong answers
            assert "var(--blue)" not in plot.inner_html() and "var(--orange)" not in plot.inner_html()


def test_on_paper_and_without_a_script_all_is_there(made):
    with opened(made.address) as page:
        page.emulate_media(media="print")
        assert page.locator(LIST).filter(visible=True).count() == 20
        count = len(made.answers["mistakes"])
        assert page.inner_text("#all-mistakes") == f"All mistakes, the surest first, 20 of {count}"
        assert page.locator(".verdict").filter(visible=True).count() == page.locator(".judge").count() > 0
        assert (
            page.locator("form, dialog, nav, button:not(.thumb, .cells *)").filter(visible=True).count() == 0
        )
    with opened(made.address, java_script_enabled=False) as page:
        shown = {".static img": 1, ".verdict": 1, ".matrix-table td": 64, "#corrupted figure": 1, "svg": 5}
        for query, count in shown.items():
            assert page.locator(query).filter(visible=True).count() >= count, query
        assert page.locator(".puzzle, form, dialog").filter(visible=True).count() == 0


def test_at_200_percent_the_picture_of_the_game_does_not_shrink(made):
    with opened(made.address, 640, 450) as page:
        assert page.locator("#puzzle-picture").bounding_box()["width"] >= 260


# ---- The game ----------------------------------------------------------------------------------------------


def test_the_game_ends_with_its_last_picture_and_the_score_is_true(made, pictures):
    with opened(made.address) as page:
        score = play(page, pictures, lambda k, names: k % 3)
        tally = plain(page.inner_text("#puzzle-tally"))
        assert tally.startswith(
            f"All 20 pictures: you {score}, the network 10 of 20. Of the 10 that it gets wrong, "
        )
        turned = int((made.evidence["puzzle_best"] >= 0).sum())
        luck = made.evidence["puzzle_random"].sum().item()
        assert f"{turned} can be turned by one or two squares; you turned 0." in tally
        assert f"two squares drawn by chance would turn {luck:.1f}." in tally
        assert not page.is_visible("#puzzle-next") and page.is_visible("#puzzle-again")
        address = page.get_attribute("#puzzle-share", "href")
        page.reload()
        assert plain(page.inner_text("#puzzle-tally")) == tally  # nothing is lost
        page.click("#puzzle-again")
        assert page.inner_text("#puzzle-tally") == "" and page.is_visible("#puzzle-choices")
    for shared, words in {
        address: f"{score} of 20, the network 10.",
        "#score=21": "“21” is no score",
    }.items():
        with opened(made.address + shared) as page:
            assert words in page.inner_text("#puzzle-shared")


def test_only_covering_is_a_try_and_a_third_square_covers_nothing(made, pictures):
    """Of a picture that two squares turn, and neither of them alone, nor one of them with another."""
    covers, classes = made.evidence["covers"].tolist(), made.evidence["puzzle_classes"][:, :, 0]
    place = next(p for p, cover in enumerate(made.evidence["puzzle_best"].tolist()) if cover > 16)
    turn = answers.draw_game(made.answers).tolist().index(made.evidence["puzzles"][place].item())
    first, second = covers[made.evidence["puzzle_best"][place]]
    truth, c = pictures[turn][0], made.answers["y_true"][made.evidence["puzzles"][place]]
    stays = [k for k, cover in enumerate(covers) if first in cover and classes[place, k] != c]
    other = next(s for s in range(16) if any(set(covers[k]) == {first, s} for k in stays))
    with opened(made.address) as page:
        for _ in range(turn):
            page.click(f"{CHOICE}0")
            page.click("#puzzle-next")
        assert page.locator(f"{SQUARE}0").is_disabled()
        page.click(f"{CHOICE}0")
        for square in (first, other, other, other, second):  # the third uncovers, the last is refused
            page.click(f"{SQUARE}{square}")
        assert page.inner_text("#puzzle-says") == "Two squares at most: uncover one first."
        assert page.locator("#puzzle-picture [aria-pressed=true]").count() == 2
        page.click(f"{SQUARE}{other}")
        page.click(f"{SQUARE}{second}")
        assert page.inner_text("#puzzle-says") == f"Now it says {truth}, after 4 tries."


def test_people_are_no_game_in_a_set_with_a_class_of_persons(tmp_path):
    """Also where a person would be the likeliest other answer."""
    made = make_people(tmp_path / "people")
    index = answers.draw_game(made.answers)
    assert len(index) >= 6
    with opened((tmp_path / "people" / "explore.html").as_uri()) as page:
        for _ in range(len(index)):
            assert "person" not in page.locator("#puzzle-choices button").all_inner_texts()
            page.click(f"{CHOICE}0")
            assert "person" not in page.inner_text("#puzzle-says")
            if page.is_visible("#puzzle-next"):
                page.click("#puzzle-next")


# ---- Mistakes ----------------------------------------------------------------------------------------------


def test_an_address_opens_a_picture_by_its_number_and_says_what_it_does_not_know(made):
    mistakes = made.answers["mistakes"].tolist()
    with opened(f"{made.address}#open={mistakes[5]}") as page:
        title = page.inner_text("#mistake-title")
        true, predicted = (name_of(made.answers[key][mistakes[5]]) for key in ("y_true", "y_pred"))
        assert title == f"{true}, taken for {predicted}" and page.url.endswith(f"#open={mistakes[5]}")
        page.keyboard.press("ArrowRight")
        assert page.url.endswith(f"#open={mistakes[6]}")
    for address, words in {
        "#true=unicorn": f"No class here is called “unicorn”. {len(mistakes)} of {len(mistakes)} mistakes",
        "#open=99999": "Test image 99999 is no mistake on this page.",
        "#true=c%20": "No class here is called “c ”.",
    }.items():
        with opened(made.address + address) as page:
            assert page.inner_text("#found").startswith(words) and page.locator("dialog[open]").count() == 0


def test_a_cell_of_the_matrix_shows_its_pictures_in_place(made):
    confusion = made.answers["confusion"].numpy()
    with opened(made.address) as page:
        link = page.locator(".matrix-table .miss a").first
        true, predicted = np.argwhere(confusion * (1 - np.eye(len(NAMES), dtype=int)))[0]
        link.click()
        number, text = confusion[true, predicted], page.inner_text("#cell p")
        pictures = "picture" if number == 1 else "pictures"
        assert text.startswith(f"{number} {pictures} of {name_of(true)}, answered {name_of(predicted)}")
        count = min(9, confusion[true, predicted])
        assert page.locator("#cell .thumb").count() == count and page.url.endswith("explore.html")
        page.click("#cell .thumb >> nth=0")
        assert page.inner_text("#mistake-title") == f"{name_of(true)}, taken for {name_of(predicted)}"
        page.keyboard.press("Escape")
        assert page.evaluate("document.activeElement.closest('#cell') !== null")
        page.click("#cell a")
        assert page.inner_text("#found").startswith(f"{confusion[true, predicted]} of ")


def test_one_judges_before_other_trainings_are_heard(made):
    with opened(made.address) as page:
        judge = page.locator(".judge").first
        assert not judge.locator(".verdict").is_visible()
        judge.locator("button", has_text="label").click()
        assert judge.locator(".verdict").is_visible()
        assert judge.locator("[aria-pressed=true]").all_inner_texts() == ["label"]


# ---- Class mode --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("width", [1280, 1920])
def test_one_question_is_on_the_screen_and_no_answer(made, width):
    with opened(f"{made.address}?class", width, 1000) as page:
        for section in SECTIONS:
            page.click("#screens [name=next]")
            visible = page.locator("section").filter(visible=True)
            assert visible.count() == 1 and visible.get_attribute("aria-labelledby") == section
            assert not page.is_visible("#puzzle")
            hidden = page.locator(".claim, .below, .body").filter(visible=True)
            assert hidden.count() == 0 and page.locator("form.guess:visible").count() == 1
            assert page.get_attribute("nav [aria-current=true]", "href") == f"#{section}"
            page.click(".current [name=show]")
            assert page.locator(".claim:visible, .body:visible").count() == 2
            page.click(".current [name=show]")
            assert page.locator(".claim:visible, .body:visible").count() == 0
        assert page.locator("#screens [name=next]").is_disabled()


@pytest.mark.parametrize(("width", "height"), [(1280, 720), (1024, 768), (390, 844)])
def test_a_class_sees_all_that_it_needs_and_nothing_scrolls_sideways(made, width, height):
    with opened(f"{made.address}?class", width, height) as page:
        show = page.locator("#puzzle-choices button").last.bounding_box()
        assert show["y"] + show["height"] < height and "hands" in page.inner_text("#puzzle-choices")
        for _ in SECTIONS:
            page.click("#screens [name=next]")
            for _ in range(2):  # before and after
                assert page.evaluate("document.documentElement.scrollWidth") <= width
                page.click(".current [name=show]")
            boxes = [button.bounding_box() for button in page.locator(".current .votes button").all()]
            assert min(min(box["width"], box["height"]) for box in boxes) >= 24


def test_without_a_game_the_first_screen_of_a_class_is_the_first_question(made, tmp_path, monkeypatch):
    out = shutil.copytree(made.out, tmp_path / "run")
    monkeypatch.setattr(sections, "draw_game", lambda answers: torch.zeros(0, dtype=torch.int64))
    page_of_results.write_explore(out)
    with opened(f"{(out / 'explore.html').as_uri()}?class") as page:
        assert page.locator(".current form.guess").is_visible()
        assert page.locator("#screens [name=previous]").is_disabled()


TYPED = {  # what is typed: the votes that it adds, or what is said
    "30": [30],
    "7 at 30": [30] * 7,
    "30, 40, 50": [30, 40, 50],
    "2 at 100, 0": [100, 100, 0],
    "3.5": "“3.5” is not understood",
    "12 at 130": "130 is not one of",
    "15": "15 is not one of",
    "30, many": "“many” is not understood",
    "9999 at 10": "9999 votes are not from 1 to 1000",
    "-10": "“-10” is not understood",
    "": "“” is not understood",
}


def test_votes_are_what_was_typed_or_none(made):
    votes = []
    with opened(f"{made.address}?class") as page:
        page.click("#screens [name=next]")
        for typed, added in TYPED.items():
            page.fill(".current [name=typed]", typed)
            page.press(".current [name=typed]", "Enter")
            output = page.inner_text(".current .guess output")
            if isinstance(added, str):
                assert output.startswith(added) and output.endswith("Nothing is added.")
            else:
                votes += added
                assert (
                    output == f"{len(votes)} vote{'s' if len(votes) > 1 else ''}, median {np.median(votes):g}"
                )
            counts = [str(votes.count(about) or "") for about in range(0, 101, 10)]
            assert page.locator(".current .votes b").all_inner_texts() == counts
        page.reload()  # loses nothing
        assert page.locator(".current .votes b").all_inner_texts() == counts


def test_thirty_hands_play_the_game(made, pictures):
    with opened(f"{made.address}?class") as page:
        fields, show = page.locator("#puzzle-choices input"), page.locator("#puzzle-choices button").last
        for nonsense in ("many", "-3", "1.5", "99999"):
            fields.nth(1).fill(nonsense)
            show.click()
            assert (
                page.inner_text("#puzzle-says") == f"“{nonsense}” is no number of hands: nothing is counted."
            )
            assert not page.is_visible("#puzzle-bars")
        fields.nth(1).fill("")
        show.click()
        assert page.inner_text("#puzzle-says").startswith("Count hands first")
        hits = 0
        for k, (truth, _) in enumerate(pictures):
            names = page.locator("#puzzle-choices span button").all_inner_texts()
            hands = [17, 8, 4]
            for place, count in enumerate(hands):
                fields.nth(place).fill(str(count))
            page.click(f"{CHOICE}2")  # a press is one hand more
            hands[2] += 1
            hits += hands[names.index(truth)]
            show.click()
            if k + 1 < len(pictures):
                page.click("#puzzle-next")
        share = f"{100 * hits / 600:.0f}"
        words = f"All 20 pictures: {hits} of 600 hands are right ({share} %), the network 10 of 20 (50 %)."
        assert plain(page.inner_text("#puzzle-tally")).startswith(words)


def test_nothing_freezes_before_the_truth_is_shown(made):
    """All about a picture, the menu of classes and the numbers of the matrix, each in class mode."""
    with opened(f"{made.address}?class") as page:
        while not page.is_visible("#puzzle-more"):
            if page.is_visible("#puzzle-next"):
                page.click("#puzzle-next")
            page.locator("#puzzle-choices input").first.fill("1")
            page.locator("#puzzle-choices button").last.click()
        page.click("#puzzle-more")
        assert page.locator("#mistake").bounding_box()["height"] > 100
        page.click("#mistake-close")
        page.click("#puzzle-next")
        assert page.is_visible("#puzzle-choices")
        page.click("nav >> text=Accuracy")
        page.click(".current [name=show]")
        page.locator("#any-class").select_option("c")
        assert page.locator(LIST).first.is_visible() and page.input_value("#filter [name=true]") == "c"
        page.click("nav >> text=Accuracy")
        page.click(".matrix-table .miss a >> nth=0")
        assert page.is_visible("#cell .thumb >> nth=0")


# ---- The viewers -------------------------------------------------------------------------------------------


def test_a_row_and_the_sliders_show_what_the_files_hold(made):
    names, stress = [name_of(c) for c in range(len(NAMES))], made.stress
    with opened(made.address) as page:
        page.click("tr[data-name=contrast] td:nth-child(6)")
        given, shown = stress["examples"]["answers"], stress["examples"]["images"]
        kept = [k for k in range(len(shown)) if all(rows[k][0] != 2 for rows in given.values())]  # no people
        first = next(
            k for k in kept if 2 not in (made.answers["y_true"][shown[k]], made.answers["y_pred"][shown[k]])
        )
        answer, probability = given["contrast/5"][first]
        assert f"{names[answer]} {100 * probability:.0f} %" in plain(
            page.inner_text("#corrupted figcaption >> nth=0")
        )
        right = f"5: {100 * stress['tests']['contrast/5']['accuracy']['value']:.0f} % right"
        assert plain(page.inner_text("#corruption-choice output")) == right
        epsilons = [e for e in stress["epsilons"] if e <= 8]
        page.fill("#attack-choice [name=step]", str(len(epsilons) - 1))
        shares = [
            100 * stress[key][f"{epsilons[-1]:g}"]["value"] for key in ("robust_accuracy", "random_signs")
        ]
        words = f"{epsilons[-1]:g}/255: {shares[0]:.1f} % right, by random signs {shares[1]:.1f} %"
        assert plain(page.inner_text("#attack-choice output")) == words
        before = page.inner_text("#live figcaption:visible")
        page.click("[data-covers=usual]")
        assert page.inner_text("#live figcaption:visible").startswith("Covered by the usual map")
        page.click("[data-covers=usual]")
        assert page.inner_text("#live figcaption:visible") == before


def test_maps_and_cover_of_a_mistake_are_those_of_the_files(made):
    script = "c => [c.width, ...c.getContext('2d').getImageData(0, 0, c.width, c.height).data]"
    place = 3
    with opened(f"{made.address}#open={made.answers['mistakes'][place]}") as page:
        canvases = [page.locator("#mistake canvas").nth(k).evaluate(script) for k in range(3)]
    sides, pixels = [c[0] for c in canvases], [torch.tensor(c[1:]).view(c[0], c[0], 4) for c in canvases]
    assert sides == [4, 4, 32]
    assert ((pixels[2][..., 3] == 255) == made.evidence["covered_pixels"][place]).all()
    signed = made.evidence["maps"][place]
    for sign, drawn in ((1, pixels[0]), (-1, pixels[1])):
        light = drawn[..., :3].sum(dim=2).flatten()  # inferno grows lighter
        order = (sign * signed).clamp(min=0).flatten()
        level = (127 * order / signed.abs().max()).round()
        assert (light[level.argsort()].diff() >= 0).all()

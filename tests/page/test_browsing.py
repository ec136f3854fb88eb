"""The report's page in Chromium: one pass through each thing that its script does, against the files."""

import json
import re
import shutil
from pathlib import Path
from urllib.parse import urlencode

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from chromium import needs_chromium, opened_page
from pages import EPSILONS, decoded, stress_content
from processes import CPU
from test_page import written_page

import data
import evaluate
import report
from gradcam import overlay
from lab import reasons
from lab.classifier import load_checkpoint

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


def texts(page, selector):
    return [text.replace("\N{NO-BREAK SPACE}", " ") for text in page.locator(selector).all_inner_texts()]


# ---- The page as a whole ---------------------------------------------------------------------------------


def test_no_error_no_request_and_all_pictures(page):
    assert page.errors == [] and all(url.startswith(("file:", "data:", "about:")) for url in page.requests)
    assert page.evaluate("[...document.images].every(i => i.naturalWidth) && document.images.length") > 20


@pytest.mark.parametrize(("scheme", "width"), [("light", 1280), ("dark", 390)])
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


def test_readable_without_scripts_and_in_print(reported):
    with opened_page(java_script_enabled=False) as page:
        page.goto((reported / "report.html").as_uri())
        pictures = {"#puzzle-static img": 4, "#corrupted figure": 8, ".attacked-row .sheet": 24}
        for query, count in (pictures | {"svg": 7}).items():
            assert page.locator(query).filter(visible=True).count() >= count, query
        assert page.locator(".script:visible, .guess:visible, .instead:visible, th button").count() == 0
        page.emulate_media(media="print")
        assert page.locator("nav, form, dialog").filter(visible=True).count() == 0
        assert page.locator(".classes tbody tr").filter(visible=True).count() == 100


def test_a_page_of_which_little_is_known(tmp_path):
    """Two classes, no superclasses, no maps, no training set, no other run, no stress tests."""
    test = data.from_arrays(torch.randint(0, 256, (30, 3, 32, 32)).byte(), torch.arange(30) % 2, ["a_b", "c"])
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3072, 2))
    report.examine(model, test, out=tmp_path)
    wrong = (np.load(tmp_path / "predictions.npz")["y_pred"] != np.arange(30) % 2).nonzero()[0]
    with opened_page() as page:
        page.goto(f"{(tmp_path / 'report.html').as_uri()}#true=a+b")
        page.wait_for_selector(LIST)
        assert page.inner_text("#found") == f"{sum(wrong % 2 == 0)} of {len(wrong)} mistakes"
        page.locator(LIST).first.click()
        assert page.locator("#mistake .sheet").count() == page.locator("#mistake-runs tr").count() == 1
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
    def shown(count):
        """Whether the page says so; a moment later, as a changed address is an event of its own."""
        said = f"{count} of {len(mistakes)} mistakes"
        page.wait_for_function("said => document.getElementById('found').innerText === said", arg=said)

    for key in KEYS:
        page.select_option(f"#filter [name={key}]", mistakes[3][key])
        shown(sum(row[key] == mistakes[3][key] for row in mistakes))
        page.click("#filter [type=reset]")
    page.fill("#filter [name=from]", "20")
    page.fill("#filter [name=to]", "55.5")
    shown(sum(0.2 <= row["confidence"] <= 0.555 for row in mistakes))
    kinds = json.loads((reported / "metrics.json").read_text(encoding="utf-8"))["kinds"]
    most = max(kinds, key=lambda row: row["count"])  # one that does not occur has no link
    page.click(f"a[href='#kind={most['name']}']")
    shown(most["count"])


def test_a_mistake_is_taken_apart(page, mistakes, reported, reported_sets):
    """Its maps are those of gradcam.overlay, and the covered pixels those that report.py covered."""
    test, place = reported_sets[1], 2
    page.locator(LIST).nth(place).click()
    page.keyboard.press("Escape")
    page.wait_for_function("['', '#mistakes'].includes(location.hash)")
    row = mistakes[place]
    page.goto(f"{page.address}#{urlencode({'true': row['true'], 'open': row['file']})}")
    page.wait_for_selector("#mistake[open]")
    assert page.inner_text("#mistake-title") == f"{row['true']}, taken for {row['predicted']}"
    assert page.inner_text("#mistake-file") == row["file"]
    assert texts(page, "#mistake-notes")[0].count(f"{row['predicted']} with {100 * row['confidence']:.1f} %;")
    assert "other <b>run" in page.inner_text("#mistake-runs")
    network = load_checkpoint(reported / "checkpoints" / "best.pt", CPU)
    image = test.images[row["index"]][None]
    classes = [torch.tensor([test.class_names.index(row[key])]) for key in ("predicted", "true")]
    (signed,) = network.contrast(image, [tuple(classes)])
    cells = (signed / signed.abs().max())[:, None]
    hidden = reasons.top_pixels(signed, 0.25, 32)[0]
    fill = (255 * evaluate.mean_colour(reported_sets[0])).round().byte()[:, None, None]
    heatmaps = [F.interpolate((sign * cells).relu(), 32)[:, 0] for sign in (1, -1)]
    expected = [image[0], *(overlay(image / 255, heatmap)[0] for heatmap in heatmaps)]
    for k, pixels in enumerate([*expected, torch.where(hidden, fill, image[0])]):
        seen = decoded(page.locator(f"#mistake .sheet >> nth={k}").screenshot()).float()
        assert (seen - F.interpolate(pixels[None].float(), seen.shape[1:])[0]).abs().mean() < 14, k
    page.keyboard.press("ArrowRight")
    assert page.inner_text("#mistake-title").startswith(mistakes[place + 1]["true"])


# ---- The game --------------------------------------------------------------------------------------------


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
    changed = json.dumps(content).replace("<", "\\u003c")
    (tmp_path / "report.html").write_text(written[:start] + changed + written[end:], encoding="utf-8")
    return (tmp_path / "report.html").as_uri(), puzzles, content["classes"]


def test_the_reader_commits_and_then_sees(page, game):
    """One puzzle that is solved by the keyboard, one that cannot be, and one that is shown."""
    address, puzzles, names = game
    page.goto(address)
    wrong, truth, other = (names[c] for c in puzzles[0]["answers"][0][::2])
    page.locator("#puzzle-picture button").nth(1).click()
    for key in ("ArrowDown", "Space", "ArrowRight", "Space"):  # three are chosen, and the third is refused
        page.keyboard.press(key)
    assert "Two squares are covered already" in page.inner_text("#puzzle-says")
    page.locator("#puzzle-picture button").nth(1).click()
    page.locator("#puzzle-picture button").nth(6).click()
    assert texts(page, "#puzzle-answers li") == [f"{wrong} 60 %", f"{truth} 30 %", f"{other} 10 %"]
    assert page.inner_text("#puzzle-results") == page.inner_text("#puzzle-tally") == ""
    page.click("#puzzle-commit")
    captions = [f"you: ✓ {truth} 71 %", f"the map: ✓ {truth} 70 %", f"the best: ✓ {truth} 71 %"]
    assert texts(page, "#puzzle-results figcaption")[:3] == captions
    assert texts(page, "#puzzle-random span") == ["2 %"]
    assert page.inner_text("#puzzle-says").startswith(f"Solved: with yours it says {truth}.")
    assert page.inner_text("#puzzle-tally") == "you 1 · the map 1 · chance 0.0 · possible 1 of 1"
    assert texts(page, "#puzzle-answers li")[0] == f"✓ {truth} 71 %"  # the list follows from now on
    page.click("#puzzle-next")
    page.locator("#puzzle-picture button").nth(2).click()
    page.click("#puzzle-commit")
    assert "No one or two squares turn it." in page.inner_text("#puzzle-says")
    page.click("#puzzle-next")
    page.click("#puzzle-show")  # counts for nobody
    assert page.inner_text("#puzzle-tally") == "you 1 · the map 1 · chance 0.0 · possible 1 of 2"
    dots = page.evaluate("[...document.querySelectorAll('#puzzle-dots i')].map(dot => dot.className)")
    assert dots == ["won", "lost", "seen now"] and page.locator("#puzzle-end").is_visible()
    page.click("#puzzle-more")
    page.wait_for_selector("#mistake[open]")
    assert page.inner_text("#mistake-file") == puzzles[2]["file"]


# ---- Class mode ------------------------------------------------------------------------------------------


def test_a_class_guesses_first(reported, reported_sets, tmp_path):
    """On a page on which all four questions can be asked."""
    folder = shutil.copytree(reported, tmp_path / "run")
    numbers = json.loads((folder / "metrics.json").read_text(encoding="utf-8"))
    numbers["covering"]["verdict"] = "no"
    (folder / "metrics.json").write_text(json.dumps(numbers), encoding="utf-8")
    stress = stress_content(reported_sets[1].labels) | {"checks": []}
    written_page(folder, reported_sets[1].images, stress)
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
        page.click("a[href='#class']")
        page.wait_for_selector(".guess")
        headline, hidden = page.locator("h1 > span").first, "section.guessing :is(.claim, svg, table):visible"
        assert not headline.is_visible() and page.locator(hidden).count() == 0
        for guess, (name, truth) in enumerate(truths.items(), 20):
            form = page.locator(f".guess[data-of={name}]")
            form.locator("[type=range]").fill(str(guess))
            form.locator("[type=submit]" if name != "maps" else "[name=skip]").click()
            said = page.locator(f"section[data-guess={name}] .beside b:not([hidden])").all_inner_texts()
            assert said == [f"you said {guess}", f"it is {100 * truth:.0f}"][name == "maps" :]
            assert headline.is_visible()  # its number is the first that is guessed
        page.click("#class-end")
        page.wait_for_selector(".instead", state="hidden")  # the script hears of a new address a moment later
        assert page.inner_text("main") == seen and page.errors == []


# ---- The viewers -----------------------------------------------------------------------------------------


def test_at_the_temperature_everything_is_at_the_temperature(page):
    chosen = "[id$=-as_trained], [id$=-with_temperature], span.as_trained, span.with_temperature"
    parts = f"[...document.querySelectorAll('{chosen}')]"
    visible = f"{parts}.filter(e => getComputedStyle(e).display !== 'none').map(e => e.id || e.className)"
    for name in ("with_temperature", "as_trained"):
        page.click(f"#temperatures [value={name}]")
        shown = page.evaluate(visible)
        assert len(shown) == 7 and all(part.endswith(name) for part in shown), shown


def row_of(page, selector):
    return page.eval_on_selector(selector, "e => getComputedStyle(e).getPropertyValue('--row').trim()")


def test_the_viewers_of_corruptions_and_attacks(page, reported_sets):
    results, names = stress_content(reported_sets[1].labels), reported_sets[1].class_names

    def caption(answer, probability):
        return f"{names[answer]} {100 * probability:.0f} %"

    tests, picture = list(results["examples"]["answers"]), "#corrupted .sheet >> nth=0"
    assert row_of(page, picture) == str(tests.index("fog/3"))  # the hardest at severity 3
    page.click("tr[data-name=contrast] td:nth-child(6)")
    assert row_of(page, picture) == str(tests.index("contrast/5"))
    answers = results["examples"]["answers"]["contrast/5"]
    assert caption(*answers[0]) in texts(page, "#corrupted figcaption")[0]
    page.click("tr[data-name=grey] button")  # which has one strength
    assert row_of(page, picture) == str(tests.index("grey/0"))
    assert page.locator("#corruption-choice [name=severity]").is_disabled()
    page.fill("#attack-choice [name=step]", "0")
    assert f"enlarged {100 / EPSILONS[0]:g} times" in page.inner_text("#attack-says")
    assert page.locator("[id^=epsilon-rule-].chosen").get_attribute("id") == "epsilon-rule-0"
    for place, name in enumerate(("pgd", "random")):
        answers = results["attack_examples"]["answers"][name][f"{EPSILONS[0]:g}"]
        assert caption(*answers[0]) in texts(page, ".attacked-row")[place]
        first = 1 + 2 * place * (len(EPSILONS) - 1)
        assert row_of(page, f".attacked-row >> nth={place} >> .sheet >> nth=0") == str(first)

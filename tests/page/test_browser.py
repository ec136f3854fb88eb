"""page/browser.py: what the script is told, against loops over what was found, and the sheets of pictures."""

import base64
import json
import re

import numpy as np
import pytest
import torch
from pages import decoded, pictures, stress_content

import report
from page import browser
from stress_tests.corruptions import CORRUPTIONS, corrupt
from stress_tests.explanations import cover


def cell(sheet, row, column):
    """Return a picture, float32 [3, 32, 32], of a sheet of them."""
    return sheet[:, 32 * row : 32 * row + 32, 32 * column : 32 * column + 32].float()


def stored(content, *shape):
    return np.frombuffer(base64.b64decode(content), dtype=np.uint8).reshape(shape)


def test_the_mistakes(found, small_sets):
    test, rows, y_true = small_sets[1], found.probabilities.tolist(), small_sets[1].labels.tolist()
    data = json.loads(json.dumps(browser.mistakes_data(test, found)))
    pairs = [(true, row.index(max(row))) for true, row in zip(y_true, rows, strict=True)]
    assert data["confusion"] == [[pairs.count((i, j)) for j in range(100)] for i in range(100)]
    wrong = sorted((i for i, (t, p) in enumerate(pairs) if t != p), key=lambda i: -max(rows[i]))[:30]
    assert [row["file"] for row in data["images"]] == [test.filenames[i] for i in wrong]
    runs = [rows, found.others["b"]["probabilities"].tolist()]
    for place, (row, i) in enumerate(zip(data["images"], wrong, strict=True)):
        for answers, of_run in zip(row["answers"], runs, strict=True):
            likely = sorted(range(100), key=lambda c: -of_run[i][c])[:3]
            assert answers == [[c, round(of_run[i][c], 4)] for c in likely] + [round(of_run[i][y_true[i]], 4)]
        assert (row["true"], row["copied"]) == (y_true[i], y_true[i])
        assert row["covered"] == [found.covered[0][place], round(found.covered[1][place].item(), 4)]
        rank = sorted(rows[i], reverse=True).index(rows[i][y_true[i]])
        kind = "second" if rank == 1 else "third to fifth" if rank < 5 else "further down"
        assert data["kinds"][row["kind"]] == f"the true class is {kind}"
    scale = found.maps.amax(dim=(1, 2, 3))[:, None, None]  # of both maps of a mistake
    np.testing.assert_allclose(
        stored(data["maps"], 30, 2, 16) / 255, found.maps.flatten(2) / scale, atol=0.002
    )
    # White covers black pixels where the first map is largest.
    white = cover(torch.zeros(30, 3, 32, 32), found.maps[:, 0], mean=torch.ones(3))[:, 0]
    assert (np.unpackbits(stored(data["covered_pixels"], -1)) == white.flatten().numpy()).all()
    sheet = decoded(browser.sheet(test.images[wrong], browser.MAX_SHEET))
    assert all((cell(sheet, *divmod(n, 6)) - test.images[i]).abs().mean() < 12 for n, i in enumerate(wrong))
    # What is not known is left out.
    found.maps, found.covered, found.neighbours, found.others, found.training_labels = (
        None,
        None,
        None,
        {},
        None,
    )
    data = browser.mistakes_data(test, found)
    assert not {"maps", "covered_pixels"} & data.keys() and len(data["images"][0]["answers"]) == 1
    assert not {"covered", "similarity"} & data["images"][0].keys() and data["images"][0]["copied"] == -1
    assert browser.nearest_sheet(None) == "" and browser.viewer_data(None, test) == {}


@pytest.mark.slow
def test_the_pictures_of_many_mistakes_stay_below_their_limit():
    """Noise, which no file format makes smaller."""
    images = torch.randint(0, 256, (2500, 3, 32, 32), dtype=torch.uint8)
    assert len(browser.sheet(images, browser.MAX_SHEET)) < 4 / 3 * browser.MAX_SHEET + 4


def test_the_sliders(found, small_sets):
    confidence, hits = found.confidence.numpy(), (found.y_pred == small_sets[1].labels).numpy()
    right, wrong = browser.confidence_counts(found)
    for percent in range(100):
        here = (confidence >= percent / 100) & (confidence < (percent + 1) / 100)
        assert (right[percent], wrong[percent]) == ((here & hits).sum(), (here & ~hits).sum())
    rows = browser.temperature_data(found)
    assert [row["temperature"] for row in rows] == report.TEMPERATURES and 1.0 in report.TEMPERATURES
    for row in rows[::13]:
        powers = found.probabilities.double().numpy() ** (1 / row["temperature"])
        sure = (powers / powers.sum(axis=1, keepdims=True)).max(axis=1)
        bins, error = np.ceil(15 * sure), 0
        for b in set(bins):
            error += abs(sum(sure[bins == b]) - sum(hits[bins == b])) / 100
        assert (row["ece"], row["confidence"]) == pytest.approx((error, sure.mean()), abs=2e-5)
        means, accuracies, counts = map(np.array, row["bins"])
        assert counts.tolist() == [(bins == b + 1).sum() for b in range(15)]
        assert (means @ counts, accuracies @ counts) == pytest.approx((sure.sum(), hits.sum()), abs=0.01)


def test_the_viewers_begin_with_pictures_and_their_answers(small_sets):
    test, results = small_sets[1], stress_content(small_sets[1].labels)
    data, answers = browser.viewer_data(results, test), results["examples"]["answers"]
    assert data["corruptions"] == {"true": test.labels[:8].tolist(), "answers": answers}
    assert data["attacks"]["answers"] == list(results["attack_examples"]["answers"].values())[1:]
    markup = browser.corruption_viewer(results["examples"], test, "glass blur")
    (sheet,) = pictures(markup)
    row, changed = list(answers).index("glass_blur/3"), corrupt(test.images[:8], "glass_blur", 3)
    assert row == 1 + 5 * list(CORRUPTIONS).index("glass_blur") + 2
    for column, (sign, (c, _)) in enumerate(
        zip(re.findall("[✓✗]", markup), answers["glass_blur/3"], strict=True)
    ):
        assert f'style="--row: {row}; --column: {column}"' in markup and (sign == "✓") == (
            c == test.labels[column]
        )
        assert (cell(sheet, row, column) - changed[column]).abs().mean() < 12
        assert (cell(sheet, 0, column) - test.images[column]).abs().mean() < 12
    (sheet,) = pictures(browser.attack_viewer(results, test))
    step = results["epsilons"].index(4)
    for column, change in enumerate(results["attack_changes"][step] / 127 * 4):
        for row, image in ((1, 128 + 50 * change), (2, test.images[column] + change)):
            assert (cell(sheet, row + 2 * step, column) - image.clamp(0, 255)).abs().mean() < 12

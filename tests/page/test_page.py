"""page/: a whole page against what is known by hand of its answers, and pages of unusual reports."""

import csv
import itertools
import json
import math
import os
import re
import shutil
from urllib.parse import parse_qs

import matplotlib
import numpy as np
import pytest
import torch
from jinja2 import UndefinedError
from pages import Elements, decoded, fraction
from PIL import Image
from torch import nn
from torchvision.transforms.functional import resize

import data
import report
from page import embed, plots, sections, write
from support import outputs
from support.errors import UserError

HOSTILE_CLASS = "<img src=x onerror=alert(1)>&"
HOSTILE_FILE = "</script><b>\"'&a=%41#+.png"
NAMES = ["left_half", "right_half", HOSTILE_CLASS]
SHOWN = ["left half", "right half", HOSTILE_CLASS]
# Rows are true classes. 16 of 23 answers are right.
MATRIX = [[7, 2, 1], [0, 6, 2], [2, 0, 3]]
ANSWERS = [(t, p) for t in range(3) for p in range(3) for _ in range(MATRIX[t][p])]


class Colours(nn.Module):
    """The scores of three classes: ten times the mean of red, of green and of blue."""

    def __init__(self):
        super().__init__()
        self.layer4, self.fc = nn.AvgPool2d(8), nn.Linear(3, 3, bias=False)
        self.fc.weight = nn.Parameter(10 * torch.eye(3))

    def forward(self, images):
        return self.fc(self.layer4(images).mean(dim=(2, 3)))


def pictures():
    """What gets these answers, each with another confidence: red on the left, green on the right, or blue."""
    scores = torch.zeros(len(ANSWERS), 3, 1, 1)
    for i, (t, p) in enumerate(ANSWERS):
        scores[i, t] = 4.5 - 0.3 * (i - 5)
        scores[i, p] = 4.5 if t != p else 2 + i / 12
    images = (scores / 10).repeat(1, 1, 32, 32)
    images[:, 0] *= 2 * (torch.arange(32) < 16)
    images[:, 1] *= 2 * (torch.arange(32) >= 16)
    return (255 * images).round().byte()


def write_report(out, test, logits, train=None, model=None):
    """What report.main writes before the page, of these scores."""
    validation = None if train is None else (2 * logits, test.labels)
    numbers, arrays = report.evaluate(logits, test, train, validation)
    if model:
        arrays |= report.explain_mistakes(model.network, model, test.images, arrays)
    numbers |= {"network": {"name": "Colours", "parameters": 12345}, "layer": "layer4", "notes": ["<so>"]}
    numbers |= {"environment": {"torch": "2"}, "data": outputs.data_of(test, None, None, 32)}
    return report.write_results(out, numbers | outputs.identity("of weights", test), arrays)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The folder of a page, the test set, the probabilities as lists, and metrics.json."""
    out = tmp_path_factory.mktemp("pages") / "<b>"
    images, labels = pictures(), [t for t, _ in ANSWERS]
    files = [f"{i}.png" for i in range(len(ANSWERS))]
    files[7] = HOSTILE_FILE
    test = data.from_arrays(images, labels, NAMES, "my_pictures", files)
    train = data.from_arrays(images[7:10], [2, 1, 0], NAMES)
    model = report.FromPixels(Colours(), 32, nn.Identity())
    logits = report.predict(model, test.images, "cpu")
    numbers = write_report(out, test, logits, train, model)
    write.write_page(out, test.images)
    return out, test, logits.double().softmax(dim=1).tolist(), numbers


def percent(value):
    return f"{100 * value:.1f} %"


def page_of(folder):
    """The elements of report.html, of which none runs or loads anything."""
    page = Elements((folder / "report.html").read_text(encoding="utf-8"))
    assert page.open == [] and not page.all("script")
    for element in page.found:
        assert not [name for name in element.attributes if name.startswith("on")], element
        for key in ("src", "href", "xlink:href"):
            address = element.attributes.get(key, "#")
            assert re.match(r"data:|#|explore\.html", address), address
    return page


def texts(elements):
    return [element.text for element in elements]


def pixels_of(image):
    """The pixels uint8 [3, H, W] of an <img>, or of the <image> of a matrix."""
    address = image.attributes.get("src") or image.attributes["href"]
    return decoded(address.split(",")[1])


def surest(rows):
    """The mistakes, the most confident first."""
    wrong = [i for i, (t, p) in enumerate(ANSWERS) if t != p]
    return sorted(wrong, key=lambda i: -rows[i][ANSWERS[i][1]])


def test_the_numbers_of_a_page(whole):
    out, _, rows, numbers = whole
    page = page_of(out)
    assert texts(page.all("h1")) == ["Seven in ten of the answers are right."]
    (lead,) = page.all("p", class_="lead")
    assert lead.text == "Colours, 12,345 parameters, on my_pictures: 3 classes, 23 test images."
    recall, precision, f1 = [7 / 10, 6 / 8, 3 / 5], [7 / 9, 6 / 8, 3 / 6], [14 / 19, 12 / 16, 6 / 11]
    bins = {}
    for (t, p), row in zip(ANSWERS, rows, strict=True):
        bins.setdefault(math.ceil(15 * max(row)), []).append((max(row), t == p))
    gaps = {b: abs(sum(c - right for c, right in answers)) for b, answers in bins.items()}
    error = sum(gaps.values()) / 23
    assert len(bins) > 4 and abs(error - np.mean([gaps[b] / len(bins[b]) for b in bins])) > 0.01
    expected = {"accuracy": 16 / 23, "macro precision": np.mean(precision), "macro recall": np.mean(recall)}
    expected |= {"macro F1": np.mean(f1), "calibration error": error}
    shown = dict(zip(texts(page.all("dt")), texts(page.all("dd")), strict=True))
    assert "top-5 accuracy" not in shown  # of three classes
    assert all(shown[name].startswith(percent(value)) for name, value in expected.items())
    low, high = (100 * numbers["accuracy"][end] for end in ("low", "high"))
    assert shown["accuracy"].endswith(f" {low:.1f}–{high:.1f}")
    assert "Note: <so>." in texts(page.all("p", class_="note"))

    claims = texts(page.all("p", class_="claim"))
    assert claims[0].startswith("7 of 23 images are misclassified")
    assert (
        claims[1].replace("\N{WORD JOINER}", "")
        == f"The hardest class is {HOSTILE_CLASS}: 3 of 5 images are right, 60 % (23–88)."
    )
    mean = np.mean([max(row) for row in rows])
    assert claims[2] == f"It is too sure: {percent(mean)} sure on average, and {percent(16 / 23)} are right."
    mostly = ["right half (2)", f"{HOSTILE_CLASS} (2)", "left half (2)"]
    cells = texts(page.all("td"))
    wilson = ["40–89", "41–93", "23–88"]  # of 7 / 10, 6 / 8 and 3 / 5
    for row, c in enumerate((2, 0, 1)):  # the hardest first
        expected = [SHOWN[c], percent(recall[c]), wilson[c], percent(precision[c]), percent(f1[c]), mostly[c]]
        assert cells[6 * row : 6 * row + 6] == expected
    # The letters of the plots are text.
    plotted = " ".join(texts(page.all("svg")))
    after = 100 * numbers["expected_calibration_error_after_temperature"]
    described = " ".join(svg.attributes["aria-label"] for svg in page.all("svg"))
    assert abs(after - 100 * error) > 1
    for title, value in (("As trained", 100 * error), ("At the temperature", after)):
        assert f"{title}: calibration error {value:.1f} %" in plotted
        assert (
            f"{title}: accuracy against confidence in bins; the calibration error is {value:.1f} %"
            in described
        )
    assert plotted.count("right: 16") == plotted.count("wrong: 7") == 2
    prose = " ".join(texts(page.all("div", class_="p")))
    num_sure = sum(max(row) > 0.9 for row in rows)
    num_wrong = sum(max(row) > 0.9 and t != p for (t, p), row in zip(ANSWERS, rows, strict=True))
    sure = f"{num_wrong} of {num_sure} answers above 90 % confidence are wrong"
    assert f"As trained the error is {percent(error)}. {sure} ({percent(num_wrong / num_sure)})." in prose
    assert "3 test images are, pixel by pixel, also training images, 2 of them with another label" in prose
    assert "Without all 3 the accuracy is 80.00 % instead of 69.57" in prose


def test_the_mistakes_and_their_maps(whole):
    """The map of the left half is bright on the left, that of the right half on the right."""
    out, test, rows, _ = whole
    page = page_of(out)
    articles = page.all("article")
    images = [image for image in page.all("img") if image.attributes["alt"]]
    captions = texts(page.all("figcaption"))
    with open(out / "failures" / "failures.csv", newline="", encoding="utf-8") as file:
        failures = list(csv.DictReader(file))
    assert len(articles) == len(failures) == 7 and len(images) == len(captions) == 21
    for place, i in enumerate(surest(rows)):
        t, p = ANSWERS[i]
        assert page.all("h3")[place].text == f"{SHOWN[t]}, taken for {SHOWN[p]}"
        picture, *maps = map(pixels_of, images[3 * place : 3 * place + 3])
        assert torch.equal(picture, test.images[i])
        assert images[3 * place].attributes["alt"] == test.filenames[i]
        said = [f"true class: {SHOWN[t]}", *(f"map for {SHOWN[c]}, {percent(rows[i][c])}" for c in (p, t))]
        assert captions[3 * place : 3 * place + 3] == said
        row = failures[place]
        assert (row["file_name"], row["true_class"]) == (test.filenames[i], NAMES[t])
        for kind, c in (("true", t), ("predicted", p)):
            assert float(row[f"probability_{kind}"]) == pytest.approx(rows[i][c], abs=1e-5)
        assert row["label_in_training"] == {7: NAMES[2], 8: NAMES[1], 9: NAMES[0]}.get(i, "")
        for c, pixels in zip((p, t), maps, strict=True):
            assert is_lit(c, pixels)
        # The pictures of gradcam/ stand side by side on white, the picture itself first.
        figure = np.asarray(Image.open(out / row["gradcam"]).convert("RGB"))
        columns = np.flatnonzero((figure[len(figure) // 2] < 250).any(axis=1))
        panels = np.split(columns, np.flatnonzero(np.diff(columns) > 5) + 1)
        for c, panel in zip((p, t), panels[1:3], strict=True):
            middle = figure[len(figure) // 2 - 20 : len(figure) // 2 + 20, panel[0] : panel[-1]]
            assert is_lit(c, middle.transpose(2, 0, 1))


def is_lit(c, pixels):
    """Whether a picture uint8 [3, H, W] is bright on the sides where class c is: left, right, or both."""
    luma = np.asarray(pixels).mean(axis=(0, 1)) / 255
    third = len(luma) // 3
    return [bool(side.mean() > 0.6) for side in (luma[:third], luma[-third:])] == [c != 1, c != 0]


def colours(counts):
    """The colours uint8 [3, C, C] of a matrix whose rows are true classes, by square roots of the shares."""
    shares = [[math.sqrt(count / max(1, sum(row))) for count in row] for row in counts]
    return torch.from_numpy(matplotlib.colormaps["cividis"](np.array(shares), bytes=True)[..., :3]).movedim(
        2, 0
    )


def test_rows_of_the_matrix_are_true_classes(whole):
    """In the picture of the page, its entries, the list of pairs, and the plot in a file."""
    out, test, rows, _ = whole
    page, expected = page_of(out), colours(MATRIX)
    (image,) = page.all("image")
    assert torch.equal(pixels_of(image), expected)
    left, top, side = (float(image.attributes[key]) for key in ("x", "y", "width"))

    def in_cells(elements):
        cells = {}
        for element in elements:
            x, y = (float(element.attributes[key]) for key in ("x", "y"))
            cells[3 * (y - top) // side, 3 * (x - left) // side] = element.text
        return cells

    pairs = {(t, p): MATRIX[t][p] for t in range(3) for p in range(3) if t != p and MATRIX[t][p]}
    assert in_cells(rect for rect in page.all("rect") if rect.text) == {
        (t, p): f"{SHOWN[t]} taken for {SHOWN[p]}: {n}" for (t, p), n in pairs.items()
    }
    assert in_cells(page.all("text", class_="on-dark")) == {pair: str(n) for pair, n in pairs.items()}
    assert in_cells(page.all("text", class_="on-light")) == {(c, c): str(MATRIX[c][c]) for c in range(3)}
    listed = page.all("div", class_="pair")
    order = [(0, 1), (1, 2), (2, 0), (0, 2)]
    assert texts(listed) == [f"{SHOWN[t]} taken for {SHOWN[p]}: {pairs[t, p]}" for t, p in order]
    confused = [i for pair in order for i in surest(rows) if ANSWERS[i] == pair]
    for thumbnail, i in zip(page.all("img", width="56"), confused, strict=True):
        assert torch.equal(pixels_of(thumbnail), test.images[i])
    plot = np.asarray(Image.open(out / "plots" / "confusion_matrix.png").convert("RGB"))
    places = {}
    for t, p in itertools.product(range(3), range(3)):
        if MATRIX[t][p]:
            places[t, p] = np.median(np.argwhere((plot == expected[:, t, p].numpy()).all(axis=2)), axis=0)
    for (one, (y, x)), (other, (b, a)) in itertools.product(places.items(), places.items()):
        for first, second, here, there in zip(one, other, (y, x), (b, a), strict=True):
            assert (here < there - 20) == (first < second), (one, other)


@pytest.fixture
def no_files(monkeypatch):
    """The page alone, in a moment."""
    monkeypatch.setattr(sections, "write_plots", lambda *arguments: None)
    monkeypatch.setattr(plots, "save_png", lambda *arguments: None)


def test_links_lead_to_explore_html_if_it_is_there(whole, no_files, tmp_path):
    out, test = shutil.copytree(whole[0], tmp_path / "copy"), whole[1]
    assert all(link.attributes["href"].startswith("#") for link in page_of(out).all("a"))
    (out / "explore.html").touch()
    for folder in ("failures", "gradcam"):  # of an earlier report, which had more
        (out / folder / "08_a_as_b.png").touch()
    write.write_page(out, test.images)
    page = page_of(out)
    links = [link.attributes["href"] for link in page.all("a")]
    asked = [
        parse_qs(link.removeprefix("explore.html#"), strict_parsing=True) for link in links if "=" in link
    ]
    classes = [row["true"] for row in asked if row.keys() == {"true"}]
    asked = [row for row in asked if "predicted" in row]
    pairs = [(SHOWN[t], SHOWN[p]) for t in range(3) for p in range(3) if t != p and MATRIX[t][p]]
    ids = {element.attributes.get("id") for element in page.found}
    assert "explore.html" in links and {link[1:] for link in links if link.startswith("#")} <= ids
    assert classes == [[SHOWN[c]] for c in (2, 0, 1)]  # the hardest first
    # Of each pair one link is in the matrix and one in the list.
    assert sorted((*row["true"], *row["predicted"]) for row in asked) == sorted(2 * pairs)
    assert not list(out.rglob("08_a_as_b.png"))
    with pytest.raises(UserError, match="the test images are not those of"):
        write.write_page(out, test.images.flip(0))


def test_answers_without_images_are_a_table(whole, no_files, tmp_path):
    _, test, rows, _ = whole
    write_report(tmp_path, test, torch.tensor(rows).log())
    write.write_page(tmp_path, None)
    page = page_of(tmp_path)
    assert not page.all("img") and len(page.all("image")) == 1
    cells = texts(page.all("td"))
    for place, i in enumerate(surest(rows)):
        t, p = ANSWERS[i]
        expected = [SHOWN[t], SHOWN[p], test.filenames[i], percent(rows[i][p]), percent(rows[i][t])]
        assert cells[5 * place : 5 * place + 5] == expected
    written = (tmp_path / "failures" / "failures.csv").read_text(encoding="utf-8").splitlines()
    assert len(written) == 8 and os.listdir(tmp_path / "failures") == ["failures.csv"]


def test_all_right_ties_and_a_class_without_images(whole, no_files, tmp_path):
    _, test, _, _ = whole
    labels, names = torch.arange(12) % 3, [*"abcd"]
    dataset = data.from_arrays(test.images[:12], labels, names)
    page, answers = {}, {"right": labels, "ties": labels.clone()}
    answers["ties"][:2] = torch.tensor([1, 2])
    answers["never b, c"] = torch.zeros_like(labels)
    for name, y_pred in answers.items():
        write_report(tmp_path, dataset, 5 * torch.eye(4)[y_pred])
        write.write_page(tmp_path, dataset.images)
        page[name] = page_of(tmp_path)
        assert len(list((tmp_path / "failures").glob("*.png"))) == (y_pred != labels).sum()
        cells = texts(page[name].all("td"))
        last = cells.index("d")
        assert cells[last : last + 6] == ["d", "–", "", "–", "0.0 %", "none"]
    said = {name: texts([*page[name].all("h1"), *page[name].all("p", class_="claim")]) for name in page}
    assert said["right"][:3] == [
        "All of the answers are right.",
        "There is no mistake.",
        "Every image of every class is right.",
    ]
    assert said["ties"][2] == "2 classes tie at the lowest recall, 75.0 %."
    assert said["never b, c"][0] == "One in three of the answers are right."
    assert said["never b, c"][2] == "2 classes tie at the lowest recall, 0.0 %."
    assert texts(page["never b, c"].all("td"))[:6] == ["b", "0.0 %", "0–49", "–", "0.0 %", "a (4)"]


def test_the_page_of_a_run(run_with_report, small_sets):
    """Of a hundred classes in ten superclasses, with the training."""
    test, page = small_sets[1], page_of(run_with_report)
    y_pred = np.load(run_with_report / "predictions.npz")["y_pred"].tolist()
    coarse, fine = np.zeros((10, 10), int), np.zeros((100, 100), int)
    for t, p in zip(test.labels.tolist(), y_pred, strict=True):
        coarse[test.superclass_of[t], test.superclass_of[p]] += 1
        fine[t, p] += 1
    for image, counts in zip(page.all("image"), (coarse, fine), strict=True):
        assert torch.equal(pixels_of(image), colours(counts))
    numbers = json.loads((run_with_report / "metrics.json").read_text(encoding="utf-8"))
    best, history = numbers["training"]["epoch"], numbers["training"]["history"]
    accuracy = max(row["val_accuracy"] for row in history)
    said = texts(page.all("p", class_="claim"))
    assert (
        said[-1]
        == f"Epoch {best} of at most 3 is examined, the best on validation images ({percent(accuracy)})."
    )
    assert re.fullmatch(r"\d\d classes tie at the lowest recall, 0\.0 %\.", said[1])
    assert sum(f"{percent(numbers['top5_accuracy']['value'])} " in dd for dd in texts(page.all("dd"))) == 1
    trained, reported = texts(page.all("pre"))
    assert trained.startswith("python train.py \\ --dataset shapes \\") and reported == numbers["command"]


def test_the_command_of_several_processes_and_the_sizes_of_a_training(run_with_report, monkeypatch):
    numbers = json.loads((run_with_report / "metrics.json").read_text(encoding="utf-8"))
    numbers["training"]["config"]["environment"]["processes"] = 2
    (_, command), _ = sections.about(numbers)["commands"]
    assert command.startswith("torchrun --nproc-per-node 2 train.py \\\n")
    for row, size in zip(numbers["training"]["history"], (24, 24, 32), strict=True):
        row["image_size"] = size
    figure = sections.training_curves(numbers)["loss"]
    assert [label.get_text() for label in figure.axes[0].child_axes[0].get_xticklabels()] == [
        "24 px",
        "32 px",
    ]


def test_each_histogram_is_of_its_own_temperature(whole, monkeypatch):
    monkeypatch.setattr(plots, "to_svg", lambda figure, *texts: figure)
    numbers, drawn = whole[3], []
    for figure in sections.confidence(numbers)["confidence_plots"][1::2]:
        drawn.append(list(figure.axes[0].patches[0].get_data().values))
    names = ("confidence_histogram", "confidence_histogram_after_temperature")
    assert drawn == [numbers[name]["wrong"] for name in names] and drawn[0] != drawn[1]


# ---- Parts -----------------------------------------------------------------------------------------------


def test_the_matrix_is_in_the_order_of_the_superclasses():
    arrays = {"class_names": ["a", "b", "c"], "confusion": torch.tensor(MATRIX)}
    arrays |= {"superclass_of": torch.tensor([1, 0, 1]), "superclass_names": ["x", "y"]}
    (shown,) = sections.matrices(arrays)
    assert shown["names"] == ["b", "a", "c"] and shown["groups"] == [("x", 0, 1), ("y", 1, 2)]
    for entry in shown["entries"]:
        t, p = ("abc".index(shown["names"][entry[key]]) for key in ("row", "column"))
        assert entry["count"] == MATRIX[t][p]


def test_the_ten_worst_classes_are_drawn_the_worst_on_top(tmp_path):
    """Of twelve, one of them without images: the lengths of the bars in the picture."""
    right, labels = [3, 9, 5, 10, 1, 8, 0, 4, 2, 6, 7], torch.arange(11).repeat_interleave(10)
    is_right = torch.cat([torch.arange(10) < n for n in right])
    logits = torch.eye(12)[torch.where(is_right, labels, (labels + 1) % 11)]
    dataset = data.from_arrays(torch.zeros(110, 3, 8, 8).byte(), labels, [f"c{c}" for c in range(12)])
    numbers, arrays = report.evaluate(logits, dataset, None, None)
    sections.write_plots(tmp_path, numbers, arrays | {"class_names": dataset.class_names})
    pixels = np.asarray(Image.open(tmp_path / "worst_classes.png").convert("RGB")).astype(int)
    orange = (abs(pixels - [0xB0, 0x4C, 0x00]) < 3).all(axis=2).sum(axis=1)
    rows = np.flatnonzero(orange > 5)
    lengths = [orange[part[len(part) // 2]] for part in np.split(rows, np.flatnonzero(np.diff(rows) > 1) + 1)]
    np.testing.assert_allclose(np.array(lengths) / lengths[-1], np.arange(1, 10) / 9, atol=0.02)


def test_large_pictures_are_reduced_as_by_torchvision():
    images = torch.randint(0, 256, (2, 3, 96, 96), dtype=torch.uint8)
    assert (embed.reduced(images).int() - resize(images, [64, 64]).int()).abs().max() <= 1
    assert embed.reduced(images[..., :64, :64]).shape == (2, 3, 64, 64)


def test_words_for_numbers():
    assert write.percent(0.1234) == "12.3\N{NO-BREAK SPACE}%" and write.percent(None) == "–"
    assert write.percent(fraction(0.5), 0) == "50\N{NO-BREAK SPACE}%" and write.percent(math.nan) == "–"
    interval = write.interval(fraction(0.5, 0.25), 0)
    assert interval.replace("\N{WORD JOINER}", "") == "50\N{NO-BREAK SPACE}% (25–75)"


def test_a_share_in_words():
    said = {0.76: "three in four", 0.099: "one in ten", 0.665: "two in three", 0.85: "85 in 100", 0: "none"}
    said |= {1: "all", 0.001: "1 in 100", 0.999: "99 in 100", 0.41: "two in five"}
    assert {share: write.in_words(share) for share in said} == said


def test_a_missing_value_fails_and_every_text_is_escaped():
    templates = write.make_templates([write.FOLDER])
    with pytest.raises(UndefinedError):
        templates.from_string("{{ n.no_such_value }}").render(n={})
    assert templates.from_string("{{ name }}").render(name="<b>&") == "&lt;b&gt;&amp;"

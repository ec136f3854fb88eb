"""page.py and sections.py: pages from files alone, what is left out, and sentences beside their numbers."""

import json
import re
import shutil

import numpy as np
import pytest
import torch
from lab_pages import MARKUP, NAMES, text_of
from torch import nn

import data
from lab import answers, estimate, folder, page, sections

pytestmark = pytest.mark.slow


@pytest.fixture
def copied(made, tmp_path):
    """A copy of the folder, to change."""
    return shutil.copytree(made.out, tmp_path / "run")


def change(out, file, **changed):
    """Change keys of a JSON file; None removes one."""
    content = json.loads((out / file).read_text()) | changed
    content = {key: value for key, value in content.items() if value is not None}
    (out / file).write_text(json.dumps(content))


def set_evidence(out, evidence):
    change(out, "reasons.json", evidence_sha256=folder.write_arrays(out / "evidence.npz", evidence))


def seen(out):
    return text_of((out / "explore.html").read_text())


def test_both_pages_are_equal_when_made_anew_without_network_or_test_images(made, copied, monkeypatch):
    pages = ("*.html", "plots/*", "failures/*", "gradcam/*")
    before = {path: path.read_bytes() for pattern in pages for path in copied.glob(pattern)}
    monkeypatch.setattr(nn.Module, "__call__", lambda *arguments: pytest.fail("a network was run"))
    monkeypatch.setattr(data, "load", lambda *arguments: pytest.fail("a data set was read"))
    for path in before:
        path.unlink()
    assert page.main([str(copied)]) == 0 and len(before) > 50
    for path, content in before.items():
        assert path.read_bytes() == content, path


def test_pictures_of_older_results_are_of_the_data_set_that_they_record(made, copied, monkeypatch, capsys):
    old = {key: value for key, value in made.evidence.items() if not key.startswith("picture")}
    set_evidence(copied, old)
    reasons = json.loads((copied / "reasons.json").read_text())
    change(copied, "reasons.json", data=reasons["data"] | {"name": "shapes"})
    test = data.Dataset("shapes", made.images, made.answers["y_true"], NAMES, [], source="")
    calls = []
    monkeypatch.setattr(data, "load", lambda *arguments, **options: calls.append(options) or [test])
    assert page.main([str(copied)]) == 0 and "no pictures" not in seen(copied)
    assert calls == [{"download": False}]
    assert (copied / "report.html").read_bytes() == (made.out / "report.html").read_bytes()
    test.images = made.images.flip(0)  # another set
    capsys.readouterr()
    assert page.main([str(copied)]) == 0
    note = "the test pictures are not here, so the page has none"
    assert note in seen(copied) and note in capsys.readouterr().out
    assert "<img" not in (copied / "explore.html").read_text().split("<main>")[1]


@pytest.mark.parametrize(
    ("pictures", "index"), [((2, 3, 65, 65), [0, 1]), ((2, 3, 8, 8), [0, 240]), ((2, 3, 8, 8), [0])]
)
def test_damaged_pictures_are_one_line(made, copied, capsys, pictures, index):
    some = {"pictures": torch.zeros(pictures).byte(), "picture_index": torch.tensor(index)}
    set_evidence(copied, made.evidence | some)
    with pytest.raises(SystemExit) as stopped:
        page.main([str(copied)])
    assert stopped.value.code == 2 and "evidence.npz are damaged" in capsys.readouterr().err


def test_a_folder_without_results_is_one_line(tmp_path, capsys):
    with pytest.raises(SystemExit) as stopped:
        page.main([str(tmp_path)])
    assert stopped.value.code == 2 and "there is no report" in capsys.readouterr().err


def test_stress_tests_of_another_network_are_left_out_with_a_note_on_the_page(copied, capsys):
    assert "Under fifteen corruptions" in seen(copied)
    change(copied, "stress.json", checkpoint_sha256="0" * 64)
    assert page.main([str(copied)]) == 0
    (note,) = re.findall(r"note +(.*left out.*)", capsys.readouterr().out)
    assert "Under fifteen corruptions" not in seen(copied) and note in seen(copied)


def test_finished_corruptions_are_shown_without_attacks(copied):
    attacked = ["robust_accuracy", "random_signs", "checks", "attack_examples"]
    change(copied, "stress.json", **dict.fromkeys(attacked), attacks_left_out="no gradient reaches it")
    assert page.main([str(copied)]) == 0
    assert "Under fifteen corruptions" in seen(copied) and "No gradient reaches it." in seen(copied)


def test_names_are_texts_and_files_are_named_in_no_page_with_pictures(made, copied):
    markup = (made.out / "explore.html").read_text()
    assert MARKUP not in markup and MARKUP in seen(made.out)
    files = [f"picture_{i:05d}.png" for i in range(len(made.images))]
    arrays = dict(np.load(copied / "predictions.npz")) | {"filenames": np.array(files)}
    digest = folder.write_arrays(copied / "predictions.npz", arrays)
    change(copied, "metrics.json", predictions_sha256=digest)
    change(copied, "reasons.json", predictions_sha256=digest)
    assert page.main([str(copied)]) == 0
    assert "picture_0" not in (copied / "explore.html").read_text()


def test_the_game_has_as_many_right_as_wrong_pictures_and_no_people(made):
    """By NumPy: of all test images, those whose truth and two likeliest other classes are no person."""
    index, shares = answers.draw_game(made.answers).numpy(), made.answers["probabilities"].numpy()
    truth, answer = made.answers["y_true"].numpy(), made.answers["y_pred"].numpy()
    person = NAMES.index("old_woman")
    fits = []
    for i, row in enumerate(shares):
        likely = [c for c in np.argsort(-row, kind="stable") if c != truth[i]][:2]
        fits.append(person not in (truth[i], *likely))
    right = truth == answer
    assert all(fits[i] for i in index) and len(set(index)) == len(index) == 20
    assert right[index].sum() == 10 == min(10, sum(right & fits), sum(~right & fits))
    few = dict(made.answers) | {"y_pred": torch.where(torch.arange(240) < 2, 7, made.answers["y_true"])}
    assert len(answers.draw_game(few)) == 0
    wrong = [i for i in index.tolist() if not right[i]]
    assert made.evidence["puzzles"].tolist() == wrong  # all of them may be covered


def test_a_person_under_a_cover_is_another_class_in_the_game(made):
    person, classes = NAMES.index("old_woman"), made.evidence["puzzle_classes"].long()
    _, script = sections.game(made.answers, made.evidence, made.images)
    shown = [torch.tensor(row["answers"]).view(len(row["answers"]), 3, 2) for row in script["game"]]
    assert all(person not in rows[..., 0] for rows in shown)
    rows = torch.cat([rows for rows in shown if len(rows) > 1])[..., 0]
    assert (rows == -1).sum() == (classes == person).sum() > 0


def test_a_page_with_pictures_and_without_a_game_says_so(copied, made):
    few = "There is no game, as it takes three right and three wrong pictures without people."
    assert few not in seen(copied)
    arrays = dict(np.load(copied / "predictions.npz"))
    arrays["y_true"] = arrays["y_pred"]
    digest = folder.write_arrays(copied / "predictions.npz", arrays)
    change(copied, "metrics.json", predictions_sha256=digest)
    change(copied, "reasons.json", predictions_sha256=digest)
    page.write_explore(copied)
    assert few in seen(copied)
    images = {key: value for key, value in made.evidence.items() if not key.startswith("picture")}
    set_evidence(copied, images)
    page.write_explore(copied)
    assert few not in seen(copied)


def test_what_is_drawn_by_chance_shows_no_people(made):
    """Also of older results, in which some were drawn."""
    person = torch.tensor([NAMES.index("old_woman")])
    shown = (made.answers["y_true"] == person).nonzero().flatten()[:2].tolist()
    stress = dict(made.stress) | {"examples": dict(made.stress["examples"])}
    stress["examples"]["images"] = [*shown, *stress["examples"]["images"][2:]]
    kept = []
    for k, i in enumerate(stress["examples"]["images"]):
        given = [rows[k][0] for rows in stress["examples"]["answers"].values()]
        if person.item() not in (*given, made.answers["y_true"][i], made.answers["y_pred"][i]):
            kept.append(k)
    html, script = sections.corruptions(made.answers, stress)
    assert 0 < len(kept) <= len(stress["examples"]["images"]) - 2
    assert len(html["corrupted_true"]) == html["corruption_sheet"]["columns"] == len(kept)
    for test, rows in script["corruptions"]["answers"].items():
        assert rows == [stress["examples"]["answers"][test][k] for k in kept]


def section(made, name, **changed):
    """Return a section of the page as a reader sees it, of changed `n`, `stress` or `answers`."""
    parts = {"n": made.n, "answers": made.answers, "stress": made.stress} | changed
    context, images = {"n": parts["n"], "class_names": NAMES}, made.images
    everything = page.parts_of_sections(
        parts["n"], parts["answers"], made.evidence, parts["stress"], images, images
    )
    for of_template, _ in everything:
        context |= of_template
    module = page.make_templates().get_template(f"{name}.html").make_module(context)
    return text_of(f"{module.claim} {module.below} {module}")


@pytest.mark.parametrize(
    ("helps", "words"),
    [
        ([0, 1, 2, 3, 4, 5], "on clean pictures and at every severity."),
        ([0, 1, 2], "up to severity 2, and worse above."),
        ([0], "on clean pictures alone."),
        ([4, 5], "at severity 4 and above."),
        ([0, 3], "only on clean pictures, at severity 3."),
        ([], "nowhere."),
    ],
)
def test_advice_on_the_temperature_follows_the_chart(made, helps, words):
    rows = []
    for k in range(6):
        scaled = 0.1 if k in helps else 0.3
        rows.append({"as_trained": {"mean_ece": 0.2}, "with_temperature": {"mean_ece": scaled}})
    stress = made.stress | {"summary": made.stress["summary"] | {"by_severity": rows}}
    n = made.n | {"temperature": 1.5, "expected_calibration_error_after_temperature": 0.99}
    shown = section(made, "confidence", n=n, stress=stress)
    clean, hard = ("10.0 %" if k in helps else "30.0 %" for k in (0, 5))
    assert f"On the 16 pictures of the chart the error goes from 20.0 % to {clean} when they are" in shown
    assert f"20.0 % to {hard} at severity 5. The temperature is better {words}" in shown
    error = 100 * n["expected_calibration_error"]
    assert f"on all 240 clean test pictures it goes from {error:.1f} % to 99.0 %." in shown


def test_the_worst_estimate_without_labels_is_named_with_its_numbers(made):
    left, names = estimate.left_out(made.stress), []
    for of_family in made.stress["families"].values():
        for name in of_family:
            names += [f"{name.replace('_', ' ')} of severity {k}" for k in range(1, 6)]
    guessed, right = left["estimate"].clamp(0, 1).numpy(), left["accuracy"].numpy()
    worst = np.argmax(np.abs(left["estimate"].numpy() - right))
    words = (
        f"Worst: {names[worst]}, estimated {100 * guessed[worst]:.0f} %, measured {100 * right[worst]:.0f} %"
    )
    assert words in section(made, "unlabelled")


def test_all_of_the_hardest_classes_are_named_or_counted(made):
    rows = [row | {"num_right": 0, "recall": 0.0} for row in made.n["classes"]]
    assert "a b, c, old woman, " in section(made, "accuracy", n=made.n | {"classes": rows})
    assert "f and 2 more: each 0 % right." in section(made, "accuracy", n=made.n | {"classes": rows})


@pytest.mark.parametrize(
    ("low", "high", "words"),
    [
        (0.01, 0.05, "+3.0 points (+1.0 to +5.0): more than three blind tries."),
        (-0.05, -0.01, "−3.0 points (−5.0 to −1.0): less than three blind tries."),
        (-0.01, 0.03, "+1.0 points (−1.0 to +3.0): the difference could be zero."),
    ],
)
def test_the_lead_over_three_blind_tries_is_said_with_its_interval(made, low, high, words):
    lead = {"value": (low + high) / 2, "low": low, "high": high}
    covering = made.n["covering"]
    covering = covering | {"differences": covering["differences"] | {"best_of_three": lead}}
    assert words in section(made, "maps", n=made.n | {"covering": covering})


@pytest.mark.parametrize(
    ("high", "claim"),
    [
        ([0.01, 0.02], "None of 2 slices is shown to be weak. "),
        ([-0.008, 0.02], "Of 2 slices one is weak: dark 0, at least 0.8 points below other pictures"),
        ([-0.03, -0.02], "Of 2 slices 2 are weak, most of all: dark 0, at least 3.0 points below other"),
    ],
)
def test_where_it_fails_quotes_the_near_end_of_the_interval(made, high, claim):
    rows = []
    for k, near in enumerate(high):
        row = {"slice": f"dark {k}", "column": "dark", "n": 50, "accuracy": 0.5, "gap": near - 0.04}
        rows.append(row | {"low": near - 0.08, "high": near, "weak": near < 0})
    few = rows[0] | {"slice": "few", "gap": None, "low": None, "high": None, "weak": False}
    words = section(made, "where", n=made.n | {"slices": [*rows, few]})
    assert words.startswith(claim) and "With 240 pictures a gap below about 4 points" in words
    assert "few" not in words.split("A slice is compared")[0]
    assert section(made, "where", n=made.n | {"slices": []}) == ""


def test_kinds_of_mistakes_and_copies_add_up(made):
    words = section(made, "mistakes")
    counts = {row["name"]: row["count"] for row in made.n["kinds"]}
    assert sum(counts.values()) == len(made.answers["mistakes"])
    assert f"{counts.get('right_in_another', 0)} are right in another training" in words
    copies = torch.full_like(made.answers["mistakes"], -1)
    wrong, true = (made.answers[key][made.answers["mistakes"]] for key in ("y_pred", "y_true"))
    copies[0], copies[1], copies[2] = wrong[0], 7 if 7 not in (wrong[1], true[1]) else 6, true[2]
    made.evidence["copies"] = copies
    words = section(made, "mistakes")
    del made.evidence["copies"]
    assert "Of those on this page 2 have the same pixels in the training set under another label" in words
    assert "there 1 is labelled as the network answers" in words

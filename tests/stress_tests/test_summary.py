"""summary.py against slow second computations: loops over images, and resampling."""

import pytest
import torch
from networks import seeded
from torch import nn

import stress
from metrics import calibration_bins, expected_calibration_error
from stress_tests import summary
from stress_tests.corruptions import CORRUPTIONS, FIFTEEN
from stress_tests.cues import CUES

OF_FIFTEEN = [f"{name}/{severity}" for name in FIFTEEN for severity in range(1, 6)]
TESTS = [f"{name}/{severity}" for name in CORRUPTIONS for severity in range(1, 6)]


@pytest.fixture(scope="module")
def measured():
    """Random scores of 66 images for every test: logits, labels, records and answers."""
    labels = torch.tensor(30 * [0, 1] + 6 * [2])  # few of the last class
    logits = {}
    for seed, test in enumerate(["clean/0", *TESTS, *(f"{name}/0" for name in CUES)]):
        logits[test] = 2 * torch.randn(66, 4, generator=seeded(seed))
    records, answers = {}, {}
    for test in logits:
        records[test], answers[test] = stress.measure(logits[test], labels, 1.7)
    return logits, labels, records, answers


def test_the_interval_of_a_mean_by_resampling():
    scores = torch.rand(400, generator=seeded(), dtype=torch.float64)
    draws = torch.randint(400, (2000, 400), generator=seeded(1))
    low, high = scores[draws].mean(dim=1).quantile(torch.tensor([0.025, 0.975], dtype=torch.float64)).tolist()
    interval = summary.mean_interval(scores)
    assert interval["value"] == pytest.approx(scores.mean().item())
    assert interval["low"] == pytest.approx(low, abs=3e-3)
    assert interval["high"] == pytest.approx(high, abs=3e-3)
    standard_error = scores.std().item() / 400**0.5
    assert interval["high"] - interval["value"] == pytest.approx(1.96 * standard_error)
    assert summary.mean_interval(scores[:1])["low"] == scores[0].item()  # of one image nothing is known


def test_the_calibration_of_several_tests_is_that_of_all_their_answers(measured):
    logits, labels, records, answers = measured
    tests = TESTS[3:6]
    found = summary.calibration_of(records, answers, tests)
    for name, divisor in {"as_trained": 1, "with_temperature": 1.7}.items():
        probabilities = [(logits[test] / divisor).softmax(dim=1) for test in tests]
        together = expected_calibration_error(labels.repeat(3), torch.cat(probabilities))
        assert found[name]["ece"] == pytest.approx(together, abs=1e-6)
        errors = [expected_calibration_error(labels, rows) for rows in probabilities]
        assert found[name]["mean_ece"] == pytest.approx(sum(errors) / 3, abs=1e-6)
        nll = nn.functional.cross_entropy(
            torch.cat([logits[test] for test in tests]) / divisor, labels.repeat(3)
        )
        assert found[name]["nll"] == pytest.approx(nll.item(), abs=1e-6)
    assert found["as_trained"]["ece"] != found["with_temperature"]["ece"]
    confidence = torch.cat([logits[test].softmax(dim=1).amax(dim=1) for test in tests]).mean().item()
    assert found["mean_confidence"] == pytest.approx(confidence, abs=1e-6)


def test_the_summary_by_loops_over_the_images(measured):
    logits, labels, records, answers = measured
    found = summary.summarise(records, answers, labels, ["a", "b", "c", "d"])
    assert set(found["mean_accuracy"]) == {"fifteen"}
    for group, names in {"fifteen": FIFTEEN}.items():
        drops, scores = [], []
        for i, label in enumerate(labels.tolist()):
            right = [logits[t][i].argmax().item() == label for t in TESTS if t.split("/")[0] in names]
            scores.append(sum(right) / len(right))
            drops.append((logits["clean/0"][i].argmax().item() == label) - scores[-1])
        for key, values in {"mean_accuracy": scores, "drop": drops}.items():
            values = torch.tensor(values, dtype=torch.float64)
            assert found[key][group] == pytest.approx(summary.mean_interval(values), abs=1e-9)
    at_severity_3 = torch.stack([answers[f"{name}/3"] for name in FIFTEEN])
    assert found["by_severity"][3]["accuracy"] == pytest.approx(at_severity_3.double().mean().item())
    assert found["by_severity"][0]["accuracy"] == records["clean/0"]["accuracy"]["value"]
    clean = answers["clean/0"].double()
    for name in CUES:
        assert found["cues"][name]["accuracy"] == records[f"{name}/0"]["accuracy"]
        drop = summary.mean_interval(clean - answers[f"{name}/0"].double())
        assert found["cues"][name]["drop"] == drop

    rows = found["classes_that_break_first"]
    assert sorted(row["class"] for row in rows) == ["a", "b"]  # six images of c tell nothing, d has none
    assert rows[0]["drop"] >= rows[1]["drop"]
    for row in rows:
        own = labels == "ab".index(row["class"])
        corrupted = torch.stack([answers[test][own] for test in OF_FIFTEEN]).double().mean().item()
        assert row["drop"] == pytest.approx(clean[own].mean().item() - corrupted)


def test_published_files_are_a_group_of_their_own_once_all_fifteen_are_measured(measured):
    _, labels, records, answers = measured
    published = [f"published {name}/{severity}" for name in FIFTEEN for severity in range(1, 6)]
    more_records, more_answers = dict(records), dict(answers)
    for test in published:
        other_images = torch.tensor([True, False, False, False])
        more_records[test], more_answers[test] = records["fog/1"], other_images
    names = ["a", "b", "c", "d"]
    found = summary.summarise(more_records, more_answers, labels, names)
    assert found["mean_accuracy"]["published"]["value"] == 0.25
    assert set(found["drop"]) == {"fifteen"}
    del more_answers["published fog/2"]
    expected = summary.summarise(records, answers, labels, names)
    assert summary.summarise(more_records, more_answers, labels, names) == expected


def test_an_attack_counts_where_it_was_run():
    text = {
        "unattacked/0": "111110",
        "fgsm/1": "011110",
        "pgd/1": "101110",
        "fgsm/2": "000000",  # another epsilon
        "apgd_ce/1": "000010",
    }
    answers = {test: torch.tensor([digit == "1" for digit in digits]) for test, digits in text.items()}

    def left(names, epsilon):
        return summary.still_right(answers, names, epsilon).nonzero().flatten().tolist()

    assert left((), 1) == [0, 1, 2, 3, 4]
    assert left(("fgsm", "pgd", "pgd_more_steps"), 1) == [2, 3, 4]
    assert left(("fgsm", "pgd", "apgd_ce"), 1) == [4]
    assert left(("fgsm", "pgd"), 0.5) == [0, 1, 2, 3, 4]
    assert left(("fgsm", "pgd"), 2) == []


def test_reliability_is_that_of_all_answers_together(measured):
    logits, labels, records, answers = measured
    tests = TESTS[3:6]
    rows = torch.cat([logits[test].softmax(dim=1) for test in tests])
    confidence, accuracy, count = calibration_bins(labels.repeat(3), rows)
    expected = [list(row) for row in zip(confidence, accuracy, count, strict=True) if row[2]]
    found = summary.reliability(records, answers, tests)
    assert found["images"] == 66
    found = found["bins"]["as_trained"]
    torch.testing.assert_close(torch.tensor(found), torch.tensor(expected), rtol=1e-5, atol=1e-5)

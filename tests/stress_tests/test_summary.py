"""summary.py against the answers of all tests together."""

import pytest
import torch
from networks import seeded

import stress
from metrics import calibration_bins, expected_calibration_error
from stress_tests import summary

TESTS = ["fog/3", "snow/1", "grey/0"]


@pytest.fixture(scope="module")
def measured():
    """Random scores of 66 images for three tests: logits, labels, records and answers."""
    labels = torch.tensor(30 * [0, 1] + 6 * [2])
    logits = {test: 2 * torch.randn(66, 4, generator=seeded(seed)) for seed, test in enumerate(TESTS)}
    records, answers = {}, {}
    for test in logits:
        records[test], answers[test] = stress.measure(logits[test], labels, 1.7)
    return logits, labels, records, answers


def test_the_calibration_of_several_tests_is_that_of_all_their_answers(measured):
    logits, labels, records, answers = measured
    found = summary.calibration_of(records, answers, TESTS)
    for name, divisor in {"as_trained": 1, "with_temperature": 1.7}.items():
        probabilities = [(logits[test] / divisor).softmax(dim=1) for test in TESTS]
        together = expected_calibration_error(labels.repeat(3), torch.cat(probabilities))
        assert found[name]["ece"] == pytest.approx(together, abs=1e-6)
    assert found["as_trained"]["ece"] != found["with_temperature"]["ece"]
    confidence = torch.cat([logits[test].softmax(dim=1).amax(dim=1) for test in TESTS]).mean().item()
    assert found["mean_confidence"] == pytest.approx(confidence, abs=1e-6)


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
    rows = torch.cat([logits[test].softmax(dim=1) for test in TESTS])
    confidence, accuracy, count = calibration_bins(labels.repeat(3), rows)
    expected = [list(row) for row in zip(confidence, accuracy, count, strict=True) if row[2]]
    found = summary.reliability_bins(records, answers, TESTS)
    assert found["images"] == 66
    found = found["bins"]["as_trained"]
    torch.testing.assert_close(torch.tensor(found), torch.tensor(expected), rtol=1e-5, atol=1e-5)

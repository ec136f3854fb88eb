"""summary.py, the worst case; means over several tests are tested in tests/test_stress.py."""

import torch

from stress_tests import summary


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

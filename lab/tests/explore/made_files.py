"""Content of the files of a run folder, made up, for tests of explore.html."""

import itertools

import torch
from lab_pages import fraction
from made_up import stress_content

from lab.stress_tests.corruptions import FIFTEEN

COVERS = [(), *((a,) for a in range(16)), *itertools.combinations(range(16), 2)]
SOLUTION, OTHER = COVERS.index((5, 6)), COVERS.index((2, 3))  # two covers of the puzzles
NUM_PUZZLES, NUM_SOLVED, NUM_EARLY = 6, 4, 3


def stress_results(labels):
    """What read_stress returns, whose checks all passed, with an accuracy of its own for each test."""
    stress = stress_content(labels)
    edges = {"noise": (0, 3), "blur": (3, 7), "weather": (7, 11), "digital": (11, 15)}
    stress["families"] = {name: list(FIFTEEN)[first:end] for name, (first, end) in edges.items()}
    stress["checks"] = [{"name": "a check", "passed": True, "detail": ""}]
    for place, (name, test) in enumerate(stress["tests"].items()):
        if not name.startswith(("clean", "unattacked")):
            test["accuracy"] = fraction(0.2 + place / 1000)
        test["mean_confidence"] = 0.4 + place / 1000
    stress["robust_accuracy"] = {e: fraction(0.15 - k / 100) for k, e in enumerate(stress["robust_accuracy"])}
    return stress


def covering(verdict="specific", **changed):
    """`covering` of reasons.json: of every map other shares."""
    names = ["contrastive", "usual", "random", "centre", "other_image", "random_class", "runner_up"]
    names += ["best_of_two", "best_of_three", "best_of_four"]
    rows = {
        name: {"to_truth": fraction(0.3 - k / 50, 0.01), "changed": fraction(0.9 - k / 50, 0.01)}
        for k, name in enumerate(names)
    }
    less = {"random": fraction(0.02, 0.05), "centre": fraction(0.0)}
    content = {"images": {"mistakes": 800, "right": 400}, "mistakes": rows, "verdict": verdict, "tries": 3}
    content |= {"usual_less": less, "changed_less": less, "differences": {"best_of_three": fraction(0.0)}}
    return content | changed


def with_puzzles(evidence, answers):
    """Add six puzzles of the first six mistakes: four are solved by the squares 5 and 6, two by none.

    The map marks these two squares in the first two, the squares 2 and 3 in the others.
    """
    index = evidence["mistakes"][:NUM_PUZZLES]
    truth, predicted = answers["y_true"][index], answers["y_pred"][index]
    num_classes, solved = len(answers["class_names"]), torch.arange(NUM_PUZZLES) < NUM_SOLVED
    second, third = (truth + 1) % num_classes, (truth + 2) % num_classes
    classes = torch.stack([predicted, second, third], dim=1)[:, None].repeat(1, len(COVERS), 1)
    classes[solved, SOLUTION] = torch.stack([truth, predicted, second], dim=1)[solved]
    probabilities = torch.tensor([0.6, 0.3, 0.1]).repeat(NUM_PUZZLES, len(COVERS), 1)
    probabilities[:, SOLUTION, 0] = 0.65
    return evidence | {
        "puzzles": index,
        "puzzle_classes": classes,
        "puzzle_probabilities": probabilities,
        "puzzle_best": torch.where(solved, SOLUTION, -1),
        "puzzle_by_map": torch.where(torch.arange(NUM_PUZZLES) < 2, SOLUTION, OTHER),
        "puzzle_random": solved.double() / 120,
        "covers": torch.tensor([(*cover, -1, -1)[:2] for cover in COVERS]),
    }

"""to_label.py: the draw of forty pictures, and what labels beside them mean."""

from pathlib import Path

import torch

from lab import to_label

NAMES = [f"class_{c}" for c in range(10)]


def test_the_pictures_to_label_are_drawn_from_all():
    drawn = to_label.draw(1000)
    assert len(set(drawn.tolist())) == 40 and 350 < drawn.double().mean() < 650
    together = torch.randperm(1000, generator=torch.Generator().manual_seed(0)).argsort() // 100
    assert len(together[drawn].unique()) == 10  # they are of all batches of own_statistics
    assert 250 < drawn[:20].double().mean() < 750  # whoever labels twenty has a sample too
    assert sorted(to_label.draw(30).tolist()) == list(range(30))


def test_other_is_none_of_the_classes_unless_it_is_one():
    table, path = {"label": ["Other", "", "class_3"]}, Path("to_label.csv")
    assert to_label.labels_of(table, path, NAMES).tolist() == [-2, -1, 3]
    assert to_label.labels_of(table, path, [*NAMES, "other"]).tolist() == [10, -1, 3]


def test_labels_that_were_chosen_or_shuffled_are_doubted():
    """Answers are of ten classes, in turn: moved by a row no label is beside its own."""
    answers = torch.arange(60) % 10
    drawn = torch.isin(torch.arange(60), to_label.draw(60))
    labels = torch.where(drawn, answers, -1)
    assert to_label.notes_on_labels(labels, answers) == []
    assert to_label.notes_on_labels(answers, answers) == []  # all are labelled
    assert to_label.notes_on_labels(torch.where(drawn, -2, -1), answers) == []
    (note,) = to_label.notes_on_labels(torch.where(torch.arange(60) < 50, answers, -1), answers)
    chosen = int((~drawn[:50]).sum())
    assert note.startswith(f"{chosen} of 50 labelled pictures are not those that are drawn") and chosen > 9
    moved = drawn.nonzero().flatten()[:24]
    half = labels.index_copy(0, moved, labels[moved].roll(1))  # the others agree, more than by chance
    assert to_label.notes_on_labels(half, answers) == [] and (half != labels).sum() >= 20
    labels[drawn] = labels[drawn].roll(1)
    agree = int((labels == answers).sum())
    (note,) = to_label.notes_on_labels(labels, answers)
    assert note.startswith(f"label and answer agree in {agree} rows") and "in another order in 40:" in note
    assert to_label.notes_on_labels(torch.where(drawn, (answers + 1) % 3, -1), answers) == []

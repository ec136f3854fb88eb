"""Why the network fails: what its mistakes have in common, each reason with a number that tests it.

Five questions, each a function or two. Which part of the picture made it this answer and not the true one,
and does the answer change without that part? What has the network seen in training that looks like it? Is
another training wrong too? Which of the two halves of a name does it get wrong? Is a class several things?
"""

import re
from collections import Counter

import torch
from torch import Tensor

import metrics
from data import MEAN, Dataset, split_indices
from network import BATCH_SIZE, Network, predict
from stress_tests.controls import mean_and_error
from stress_tests.explanations import activation_energy, cover

NUM_REPAIRED = 400  # mistakes whose pixels are covered
COVERED = 0.25  # of the pixels
FILLS = {"mean_colour": "mean", "blur": "blur"}  # the names here, and those of explanations.cover
NUM_DRAWS = 3  # of random maps
NUM_REFERENCE = 8000  # training images among which neighbours are looked for
NUM_NEIGHBOURS = 10
MIN_IMAGES = 10  # test images of a search word that is tested

# ---- Which part of the picture, and does the answer change without it? -----------------------------------


@torch.inference_mode()
def cover_answers(
    network: Network, images: Tensor, maps: Tensor, fill: str = "mean_colour"
) -> tuple[Tensor, Tensor]:
    """Return the answers, int64 [N], and their probabilities, float32 [N], without the top of each map.

    images float32 [N, 3, 32, 32] in [0, 1]; maps float32 [N, h, w]. A quarter of the pixels, as many for
    every map, is covered, see stress_tests.explanations.cover.
    """
    probabilities, answers, mean = [], [], torch.tensor(MEAN)
    for part in torch.arange(len(images)).split(BATCH_SIZE):
        covered = cover(images[part].to(network.device), maps[part], COVERED, FILLS[fill], mean)
        probability, answer = network.folded(covered).float().softmax(dim=1).max(dim=1)
        probabilities.append(probability.cpu())
        answers.append(answer.cpu())
    return torch.cat(answers), torch.cat(probabilities)


def energy_maps(network: Network, images: Tensor) -> Tensor:
    """Return the activation energy of images uint8 [N, 3, 32, 32] at the layer, float32 [N, h, w]."""
    maps = []

    def keep(layer: torch.nn.Module, inputs: tuple, output: Tensor) -> None:
        cells = output if network.reshape is None else network.reshape(output)
        maps.append(activation_energy(cells).cpu())

    handle = network.module.get_submodule(network.layer).register_forward_hook(keep)
    try:
        predict(network.model, images, network.device)
    finally:
        handle.remove()
    return torch.cat(maps)


def repair_rates(network: Network, test: Dataset, probabilities: Tensor, misclassified: Tensor) -> dict:
    """Return how often a mistake becomes right when the top quarter of the pixels of a map is covered.

    probabilities float32 [N, C]; misclassified int64 [M], M > 0, of which a seeded sample is taken. The maps
    are the contrastive one (the answer rather than the truth), those of the predicted and of the true class,
    the activation energy, which knows no class, and random ones of the same size, for which the mean over
    three draws is given. Each has, for either fill, `value` with its 95 % interval over the images: Wilson's,
    and for the mean over the draws 1.96 standard errors. "mcnemar" compares contrastive and the first random
    maps on the same images. "towards_another", absent for two classes, is a control: the map of the answer
    rather than the most likely other wrong class, and how often the answer becomes that class.
    """
    generator = torch.Generator().manual_seed(0)
    sample = misclassified[torch.randperm(len(misclassified), generator=generator)[:NUM_REPAIRED]]
    images, answer, truth = test.images[sample] / 255, probabilities[sample].argmax(1), test.labels[sample]
    maps = {
        "contrastive": network.explain(images, answer, against=truth),
        "predicted": network.explain(images, answer),
        "true": network.explain(images, truth),
        "activation": energy_maps(network, test.images[sample]),
    }
    if network.num_classes > 2:
        rest = probabilities[sample].scatter(1, torch.stack([answer, truth], dim=1), -1.0)
        another = rest.argmax(dim=1)
        towards_another = network.explain(images, answer, against=another)
    size = maps["contrastive"].shape
    draws = [torch.rand(size, generator=generator) for _ in range(NUM_DRAWS)]
    result = {"images": len(sample), "covered": COVERED, "mcnemar": {}}
    result |= {name: {} for name in [*maps, "random"]}
    for fill in FILLS:
        repaired = {}
        for name, of_images in maps.items():
            repaired[name] = cover_answers(network, images, of_images, fill)[0] == truth
            result[name][fill] = metrics.proportion(int(repaired[name].sum()), len(sample))
        if network.num_classes > 2:
            moved = cover_answers(network, images, towards_another, fill)[0] == another
            row = metrics.proportion(int(moved.sum()), len(sample))
            result.setdefault("towards_another", {})[fill] = row
        at_random = [cover_answers(network, images, of_images, fill)[0] == truth for of_images in draws]
        result["random"][fill] = mean_of_draws(torch.stack(at_random))
        only_contrastive = int((repaired["contrastive"] & ~at_random[0]).sum())
        only_random = int((at_random[0] & ~repaired["contrastive"]).sum())
        result["mcnemar"][fill] = {
            "only_contrastive": only_contrastive,
            "only_random": only_random,
            "p": metrics.mcnemar_exact(only_contrastive, only_random),
        }
    return result


def mean_of_draws(repaired: Tensor) -> dict[str, float]:
    """Return the mean of bool [draws, N] and its interval, from the means over the draws of N images."""
    row = mean_and_error(repaired.double().mean(dim=0))
    value, width = row["value"], 1.96 * row["standard_error"]
    return {"value": value, "low": max(0.0, value - width), "high": min(1.0, value + width)}


# ---- What has the network seen that is like it? ----------------------------------------------------------


def find_neighbours(
    network: Network,
    train: Dataset,
    test: Dataset,
    y_pred: Tensor,
    features: Tensor,
    trained_on: Tensor | None = None,
) -> tuple[dict, dict[str, Tensor]]:
    """Find the training images nearest to each test image in the features, what goes into the classifier.

    y_pred int64 [N] and features float32 [N, D] are those of the test images; trained_on int64: the training
    images that the network has learned from, in a balanced order (see data.split_indices), of which the first
    8,000 are looked at; None takes all of `train` for them. Returns numbers, and tensors: "counts" int64
    [N, 2], how many of the ten nearest have the predicted and how many the true label, and of mistakes
    "nearest" int64 [N, 2], the index of the nearest training image of the predicted and of the true class,
    with "similarity" float32 [N, 2], the cosine; -1 and 0 elsewhere, and if the class has no image there.
    """
    if trained_on is None:
        trained_on, _ = split_indices(train, 0.0, seed=0)
    reference = trained_on[:NUM_REFERENCE]
    _, reference_features = network.features(train.images[reference])
    labels, y_true, wrong = train.labels[reference], test.labels, y_pred != test.labels
    k = min(NUM_NEIGHBOURS, len(reference))
    _, neighbours = metrics.nearest_neighbours(features, reference_features, k)
    found = labels[neighbours]
    by_vote = vote(found)
    counts = torch.stack([(found == c[:, None]).sum(dim=1) for c in (y_pred, y_true)], dim=1)
    tensors = {
        "counts": counts,
        "nearest": torch.full_like(counts, -1),
        "similarity": torch.zeros(counts.shape),
    }
    mistakes = torch.nonzero(wrong).flatten()
    for place, classes in enumerate((y_pred, y_true)):
        for c in classes[mistakes].unique().tolist():
            rows, members = mistakes[classes[mistakes] == c], torch.nonzero(labels == c).flatten()
            if len(members):
                best, nearest = metrics.nearest_neighbours(features[rows], reference_features[members], 1)
                tensors["nearest"][rows, place] = reference[members[nearest[:, 0]]]
                tensors["similarity"][rows, place] = best[:, 0]
    numbers = {
        "training_images": len(reference),
        "neighbours": k,
        "knn_accuracy": metrics.accuracy(y_true, by_vote),
        "mistakes": labels_of_neighbours(counts[wrong] / k, (by_vote == y_pred)[wrong]),
        "right": labels_of_neighbours(counts[~wrong] / k, (by_vote == y_pred)[~wrong]),
    }
    return numbers, tensors


def vote(labels: Tensor) -> Tensor:
    """Return the most frequent of each row of labels int64 [N, k], of equally frequent ones the first."""
    votes = (labels[:, :, None] == labels[:, None, :]).sum(dim=2)
    return labels.gather(1, votes.argmax(dim=1, keepdim=True))[:, 0]  # argmax takes the first maximum


def labels_of_neighbours(shares: Tensor, knn_agrees: Tensor) -> dict[str, float] | None:
    """Return means over some images; shares [M, 2] of the predicted and true label, knn_agrees bool [M]."""
    if len(shares) == 0:
        return None
    predicted, true = shares.double().mean(dim=0).tolist()
    return {
        "predicted_label": predicted,
        "true_label": true,
        "none_with_true_label": (shares[:, 1] == 0).double().mean().item(),
        "knn_agrees": knn_agrees.double().mean().item(),
    }


# ---- What kind of mistake? -------------------------------------------------------------------------------


def kinds_of_mistakes(
    y_true: Tensor,
    probabilities: Tensor,
    superclass_of: Tensor | None = None,
    training_labels: Tensor | None = None,
    others: list[Tensor] | tuple = (),
) -> tuple[Tensor, list[dict]]:
    """Return the kind of each mistake, int64 [N] and -1 for right answers, and a row for each kind.

    y_true int64 [N]; probabilities float32 [N, C]; superclass_of int64 [C]; training_labels int64 [N], the
    label of the same pixels in the training set, -1 where they are not there; others: the answers int64 [N]
    of other runs. A mistake is of the first kind that fits, so the rows, in the order of the kinds, add up to
    all mistakes: `name`, `count`, `share` of the mistakes, and what accuracy would be if all of the kind were
    right.
    """
    order = probabilities.argsort(dim=1, descending=True, stable=True)  # of equal ones the lower class first
    y_pred, second = order[:, 0], order[:, 1] == y_true
    wrong, always = y_pred != y_true, torch.ones_like(second)
    fits = {}  # of each kind, bool [N]
    if training_labels is not None:
        copied = training_labels >= 0
        relabelled = copied & (training_labels != y_true)
        fits["the same pixels have another label in the training set"] = relabelled
    if len(others):
        answers = torch.stack(list(others))
        fits["all runs give the same wrong answer"] = (answers == y_pred).all(dim=0)
        fits["all runs are wrong, but not alike"] = (answers != y_true).all(dim=0)
        fits["another run is right"] = always
    else:
        if superclass_of is None:
            fits["the true class is second"] = second
        else:
            near = superclass_of[y_pred] == superclass_of[y_true]
            fits["the true class is second, within the superclass"] = second & near
            fits["the true class is second, elsewhere"] = second
        fits["the true class is third to fifth"] = (order[:, :5] == y_true[:, None]).any(dim=1)
        fits["the true class is further down"] = always
    kind, rows = torch.full_like(y_true, -1), []
    num_wrong, num_right = int(wrong.sum()), int((~wrong).sum())
    for number, (name, fit) in enumerate(fits.items()):
        members = wrong & fit & (kind == -1)
        kind[members] = number
        count = int(members.sum())
        row = {"name": name, "count": count, "share": count / max(1, num_wrong)}
        rows.append(row | {"accuracy_if_right": (num_right + count) / len(wrong)})
    return kind, rows


def confident_mistakes(y_true: Tensor, probabilities: Tensor, others: list[Tensor]) -> dict[str, int]:
    """Return how many mistakes have a probability above 0.9, and how many of them the other runs share.

    "same_answer": all runs give the same wrong answer; "all_wrong": these, and where wrong answers differ.
    Shapes as in kinds_of_mistakes.
    """
    confidence, y_pred = probabilities.max(dim=1)
    sure = (confidence > 0.9) & (y_pred != y_true)
    answers = torch.stack(others)[:, sure]
    return {
        "mistakes": int(sure.sum()),
        "same_answer": int((answers == y_pred[sure]).all(dim=0).sum()),
        "all_wrong": int((answers != y_true[sure]).all(dim=0).sum()),
    }


def colour_or_shape(test: Dataset, y_pred: Tensor) -> dict[str, int] | None:
    """Return of the mistakes on shapes how many have the right colour, the right shape, or neither.

    The class names are "purple circle", and the shapes are the superclasses. None for another data set.
    """
    if test.name != "shapes":
        return None
    colours = [name.split()[0] for name in test.class_names]
    colour_of = torch.tensor([colours.index(colour) for colour in colours])
    mistakes = y_pred != test.labels
    right_colour = mistakes & (colour_of[y_pred] == colour_of[test.labels])
    right_shape = mistakes & (test.superclass_of[y_pred] == test.superclass_of[test.labels])
    return {
        "mistakes": int(mistakes.sum()),
        "right_colour": int(right_colour.sum()),
        "right_shape": int(right_shape.sum()),
        "neither": int((mistakes & ~right_colour & ~right_shape).sum()),
    }


# ---- Is a class several things? --------------------------------------------------------------------------


def search_words(filenames: list[str]) -> list[str]:
    """Return the word by which each picture was found: soda_can of soda_can_s_000123.png; "" without one.

    So names CIFAR-100 (and CIFAR-10) its files: Torralba, Fergus and Freeman, "80 Million Tiny Images", 2008,
    collected pictures by searching for the nouns of WordNet, several of them for most classes here.
    """
    matches = [re.fullmatch(r"(.+)_s_\d+\.png", name) for name in filenames]
    return [match[1] if match else "" for match in matches]


def errors_by_word(test: Dataset, wrong: Tensor) -> dict | None:
    """Return whether the errors within a class depend on the word by which its pictures were found.

    wrong bool [N]. "explained", with "p" and the mean and maximum of what shuffled words explain, is that of
    metrics.permutation_test on all images, each with its word however rare: chance is in the shuffled words
    as well. "words" has a row for each word of ten images or more in a class with two such words: its errors
    and those of all other images of its class, p of Fisher's exact test, and p adjusted by Holm for the
    number of rows, in the order of which they come. None if no class has two such words.
    """
    words, labels = search_words(test.filenames), test.labels.tolist()
    number_of = {word: number for number, word in enumerate(sorted(set(words)))}
    of_image = torch.tensor([number_of[word] for word in words])
    images = Counter(zip(labels, words, strict=True))
    frequent = [(c, word) for (c, word), count in sorted(images.items()) if word and count >= MIN_IMAGES]
    words_of_class = Counter(c for c, _ in frequent)
    rows = []
    for c, word in frequent:
        if words_of_class[c] < 2:
            continue
        in_class = test.labels == c
        with_word = in_class & (of_image == number_of[word])
        here, there = wrong[with_word], wrong[in_class & ~with_word]
        errors, other_errors = int(here.sum()), int(there.sum())
        p = metrics.fisher_exact(errors, len(here) - errors, other_errors, len(there) - other_errors)
        row = {"class": test.class_names[c], "word": word, "images": len(here), "errors": errors}
        row |= {"error_rate": errors / len(here), "other_images": len(there), "other_errors": other_errors}
        rows.append(row | {"other_error_rate": other_errors / len(there), "p": p})
    if not rows:
        return None
    for row, adjusted in zip(rows, metrics.holm([row["p"] for row in rows]).tolist(), strict=True):
        row["p_adjusted"] = adjusted
        row["differs"] = adjusted <= 0.05
    explained, p, null = metrics.permutation_test(
        wrong, test.labels, of_image, torch.Generator().manual_seed(0)
    )
    return {
        "explained": explained,
        "p": p,
        "shuffled_mean": null.mean().item(),
        "shuffled_maximum": null.max().item(),
        "shuffled": [round(value, 5) for value in null.tolist()],
        "permutations": len(null),
        "classes": sum(count >= 2 for count in words_of_class.values()),
        "words": sorted(rows, key=lambda row: (row["p_adjusted"], row["p"])),
    }

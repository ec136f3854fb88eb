"""What mistakes have in common, each finding with a control, and whether maps can be believed.

Which pixels weigh between the answer and another class, and does a map know that, or would any map do? Are
maps those of this network? Is another training wrong too? Which of the two halves of a name is wrong?
"""

import dataclasses
import itertools
import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Generator, Tensor, nn

import metrics
from data import SIZE, Dataset
from lab import more_metrics
from lab.classifier import Classifier, copied, images_at_once

NUM_MISTAKES, NUM_RIGHT = 800, 400  # images whose pixels are covered
COVERED = 0.25  # of the pixels
NUM_DRAWS = 3  # of random maps
MAPS_AT_ONCE = 50  # to enlarge, which takes memory
FEWEST = 40  # mistakes for a verdict
NUM_RANDOMIZED, NUM_SEEDS = 40, 5  # images, and random networks


def mean_colour(dataset: Dataset) -> Tensor:
    """Return the mean of all pixels of the images, float32 [3] in [0, 1]."""
    images = dataset.images  # a sum of all at once would have them in 64 bits
    sums = torch.stack([part.sum(dim=(0, 2, 3)) for part in images.split(images_at_once(images))])
    return (sums.sum(dim=0).double() / (255 * len(images) * images.shape[-1] ** 2)).float()


# ---- Cover what a map marks ------------------------------------------------------------------------------


def top_pixels(maps: Tensor, fraction: float, side: int) -> Tensor:
    """Return where the maps float [N, h, w] are largest, once they are enlarged bilinearly to side x side.

    bool [N, side, side]: of each map round(fraction side^2) pixels. Equal ones go in reading order.
    """
    hidden = torch.zeros(len(maps), side * side, dtype=torch.bool)
    for part in torch.arange(len(maps)).split(MAPS_AT_ONCE):
        heatmaps = F.interpolate(maps[part, None], side, mode="bilinear", align_corners=False)
        order = heatmaps.flatten(1).argsort(dim=1, descending=True, stable=True)
        hidden[part[:, None], order[:, : round(fraction * side * side)]] = True
    return hidden.view(-1, side, side)


def blurred(images: Tensor) -> Tensor:
    """Return images [N, 3, S, S] under a Gaussian blur whose standard deviation is an eighth of the side.

    At the border the weights of the pixels that are there are scaled to a sum of 1.
    """
    places = torch.arange(images.shape[-1])
    sigma = len(places) / 8
    weights = torch.exp(-((places[:, None] - places) ** 2) / (2 * sigma**2))  # of a row, or of a column
    weights /= weights.sum(dim=1, keepdim=True)
    return weights @ images @ weights.T


@torch.inference_mode()
def answers_to(
    classifier: Classifier, images: Tensor, hidden: Tensor, fill: Tensor | Callable
) -> tuple[Tensor, Tensor]:
    """Return the three likeliest classes, int64 [N, 3], and their probabilities where pixels are hidden.

    images uint8 [N, 3, S, S]; hidden bool [N, S, S]; fill, float32 [3] or [N, 3, S, S] in [0, 1], is what
    stands in their place, or a function of images in [0, 1] that returns it, such as `blurred`.
    """
    classes, probabilities = [], []
    for part in torch.arange(len(images)).split(images_at_once(images, classifier.model.image_size)):
        pixels = images[part] / 255
        if callable(fill):
            instead = fill(pixels)
        else:
            instead = fill[:, None, None] if fill.ndim == 1 else fill[part]
        covered = torch.where(hidden[part, None], instead, pixels)
        logits = classifier.model(covered.to(classifier.device)).float().cpu()
        top = logits.softmax(dim=1).topk(min(3, logits.shape[1]), dim=1)
        classes.append(top.indices)
        probabilities.append(top.values)
    return torch.cat(classes), torch.cat(probabilities)


def centre_maps(count: int, side: int) -> Tensor:
    """Return a Gaussian in the centre, standard deviation side / 4, float32 [count, side, side]."""
    offsets = torch.arange(side) - (side - 1) / 2
    gaussian = torch.exp(-(offsets[:, None] ** 2 + offsets[None, :] ** 2) / (2 * (side / 4) ** 2))
    return gaussian.expand(count, side, side)


def measure_covering(
    classifier: Classifier, images: Tensor, y_true: Tensor, logits: Tensor, fill: Tensor
) -> dict:
    """Cover the quarter of the pixels that a map marks most: what becomes of the answer?

    One point of the deletion curve of Petsiuk, Das and Saenko, "RISE", 2018 (arXiv 1806.07421), section 4.
    images uint8 [N, 3, S, S]; y_true int64 [N]; logits float32 [N, C]; fill float32 [3] in [0, 1], the mean
    colour. Returns what cover_mistakes and cover_right find in seeded samples, absent where there are none,
    and the verdict on the mistakes.
    """
    generator = Generator().manual_seed(0)
    is_right = logits.argmax(dim=1) == y_true
    mistakes, right = torch.nonzero(~is_right).flatten(), torch.nonzero(is_right).flatten()
    mistakes = mistakes[torch.randperm(len(mistakes), generator=generator)[:NUM_MISTAKES]]
    right = right[torch.randperm(len(right), generator=generator)[:NUM_RIGHT]]
    result = {"images": {"mistakes": len(mistakes), "right": len(right)}, "covered": COVERED}
    if len(mistakes):
        of_mistakes = images[mistakes], y_true[mistakes], logits[mistakes]
        result |= cover_mistakes(classifier, *of_mistakes, fill, generator)
    result["verdict"] = verdict_on(len(mistakes), result.get("differences", {}))
    if len(right):
        result["right"] = cover_right(classifier, images[right], logits[right], fill, generator)
    return result


def answers_without_top(
    classifier: Classifier, images: Tensor, maps: Tensor, fill: Tensor | Callable, fraction: float = COVERED
) -> Tensor:
    """Return the answers, int64 [D, N], where the fraction that maps float [D, N, h, w] mark is covered."""
    answers = []
    for of_draw in maps:
        hidden = top_pixels(of_draw, fraction, images.shape[-1])
        classes, _ = answers_to(classifier, images, hidden, fill)
        answers.append(classes[:, 0])
    return torch.stack(answers)


def cover_mistakes(
    classifier: Classifier, images: Tensor, truth: Tensor, logits: Tensor, fill: Tensor, generator: Generator
) -> dict:
    """Return of mistakes what `changed` and what became the truth, with a quarter covered.

    The claim is that the contrastive map, of the answer rather than the truth (GradCAM.pairs), finds what
    weighs between these two. Its controls: the map of the answer rather than the runner-up, for which nobody
    has to know the truth; rather than a random third class; the usual map, of the answer alone; the
    contrastive map of another image; and random cells, the mean of three draws. `blurred` is with the blurred
    image in place of the mean colour, and `another` by a map of the answer rather than the likeliest other
    wrong class, and what became that class. `differences` are the claim less a control, paired. What needs a
    third class, or another image, is absent where there is none.
    """
    likely = logits.argsort(dim=1, descending=True, stable=True)
    answer, runner_up = likely[:, 0], likely[:, 1]
    questions = {"contrastive": (answer, truth), "usual": (answer, None)}
    if logits.shape[1] > 2:
        pair = torch.stack([answer, truth], dim=1)
        another = logits.scatter(1, pair, -math.inf).argmax(dim=1)
        random_class = torch.rand(logits.shape, generator=generator).scatter(1, pair, -1).argmax(dim=1)
        questions |= {"another": (answer, another), "random_class": (answer, random_class)}
    signed = classifier.contrast(images, list(questions.values()))
    maps = {name: of_question[None] for name, of_question in zip(questions, signed, strict=True)}
    if len(images) > 1:
        maps["other_image"] = maps["contrastive"].roll(1, dims=1)
    maps["random"] = torch.rand(NUM_DRAWS, *signed[0].shape, generator=generator)

    covered = {}  # the answers, int64 [draws, N]
    for name, of_name in maps.items():
        covered[name] = answers_without_top(classifier, images, of_name, fill)
    # The runner-up is the truth or the likeliest other wrong class: its map is one of those.
    to_another = covered.pop("another", covered["contrastive"])
    covered["runner_up"] = torch.where(runner_up == truth, covered["contrastive"], to_another)
    of_blur = {}
    for name in ("contrastive", "random"):
        of_blur[name] = answers_without_top(classifier, images, maps[name], blurred)

    result = {"mistakes": {}, "blurred": {}, "differences": {}}
    for name, answers in covered.items():
        result["mistakes"][name] = {"changed": share(answers != answer), "to_truth": share(answers == truth)}
    for name, answers in of_blur.items():
        result["blurred"][name] = {"to_truth": share(answers == truth)}
    if "another" in questions:
        by = {"contrastive": to_another, "random": covered["random"]}
        result["another"] = {name: {"to_another": share(by[name] == another)} for name in by}
    pairs = {"blurred_random": (of_blur["contrastive"], of_blur["random"])}
    for name in ("random", "other_image", "random_class"):
        if name in covered:
            pairs[name] = (covered["contrastive"], covered[name])
    for name, (claim, control) in pairs.items():
        gain = (claim == truth).double().mean(dim=0) - (control == truth).double().mean(dim=0)
        result["differences"][name] = more_metrics.mean_interval(gain)
    return result


def verdict_on(count: int, differences: dict[str, dict]) -> str:
    """Return what the contrastive map was shown to find in `count` mistakes, see cover_mistakes.

    "specific" to the two classes if the intervals of its differences to all controls lie above 0; "more than
    chance" if those to random cells do, with both fills; else "no". Of fewer than 40 it is "too few".
    """
    if count < FEWEST:
        return "too few"
    beaten = {name for name, difference in differences.items() if difference["low"] > 0}
    if not beaten >= {"random", "blurred_random"}:
        return "no"
    return "specific" if beaten >= {"other_image", "random_class"} else "more than chance"


def cover_right(
    classifier: Classifier, images: Tensor, logits: Tensor, fill: Tensor, generator: Generator
) -> dict:
    """Return of right answers what `changed` and what became the runner-up, with a quarter covered.

    By the map of the answer rather than the runner-up, the usual one, random cells, and the centre, where
    most objects are.
    """
    likely = logits.argsort(dim=1, descending=True, stable=True)
    answer, runner_up = likely[:, 0], likely[:, 1]
    to_runner_up, usual = classifier.contrast(images, [(answer, runner_up), (answer, None)])
    maps = {
        "runner_up": to_runner_up[None],
        "usual": usual[None],
        "random": torch.rand(NUM_DRAWS, *usual.shape, generator=generator),
        "centre": centre_maps(len(images), images.shape[-1])[None],
    }
    result = {}
    for name, of_name in maps.items():
        answers = answers_without_top(classifier, images, of_name, fill)
        result[name] = {"changed": share(answers != answer), "to_runner_up": share(answers == runner_up)}
    return result


def share(hits: Tensor) -> dict[str, float]:
    """Return the share of True in bool [D, N], of D draws, with its interval over the N images.

    It is Wilson's for one draw, and for more 1.96 standard errors of the mean of each image's own share.
    """
    if len(hits) == 1:
        return metrics.proportion(int(hits.sum()), hits.shape[1])
    row = more_metrics.mean_interval(hits.double().mean(dim=0))
    return {"value": row["value"], "low": max(0.0, row["low"]), "high": min(1.0, row["high"])}


# ---- Cover one or two cells --------------------------------------------------------------------------------

CELLS = 4  # the picture as 4x4 squares
COVERS = [(), *((a,) for a in range(CELLS**2)), *itertools.combinations(range(CELLS**2), 2)]
NUM_TURNED, NUM_FIRM = 15, 5  # mistakes to take apart that become the truth, and that do not
MAX_EXAMINED = 60


def cells_hidden(cells: tuple[int, ...], side: int) -> Tensor:
    """Return where some of the 4x4 squares of a picture are, bool [side, side]; in reading order."""
    hidden = torch.zeros(side, side, dtype=torch.bool)
    edges = [i * side // CELLS for i in range(CELLS + 1)]
    for cell in cells:
        row, column = divmod(cell, CELLS)
        hidden[edges[row] : edges[row + 1], edges[column] : edges[column + 1]] = True
    return hidden


def find_puzzles(
    classifier: Classifier, images: Tensor, y_true: Tensor, misclassified: Tensor, fill: Tensor, opener: int
) -> dict[str, Tensor]:
    """Return mistakes to take apart: what the network answers with one or two of the 4x4 squares covered.

    images uint8 [N, 3, S, S]; y_true int64 [N]; misclassified int64 [M], at least one. The image `opener`,
    then the others in a seeded order: the first 15 that some of COVERS turn to the truth and the first 5 that
    none does, in the order of `mixed`. At most 60 are examined, fewer of more than 90 pixels, at 224 only 10.

    Of these P images: `puzzles`, which they are, int64 [P]; the three likeliest classes under each cover,
    `puzzle_classes` int64 [P, 137, 3], and their `puzzle_probabilities`, float32; `puzzle_best`, int64 [P],
    the place in COVERS of the surest true answer or -1; `puzzle_by_map`, see choices_of_maps; and
    `puzzle_random`, float64 [P], the share of pairs of squares that make it true. `covers`, int64 [137, 2],
    are the COVERS, with -1 for no cell.
    """
    hidden = torch.stack([cells_hidden(cells, images.shape[-1]) for cells in COVERS])
    # Each takes 137 passes, whose time goes with the pixels, also those that the network makes itself.
    side = max(images.shape[-1], classifier.model.image_size, classifier.largest_side)
    most = min(MAX_EXAMINED, 10 * max(1, 50 * SIZE**2 // side**2))
    order = torch.randperm(len(misclassified), generator=Generator().manual_seed(1))[:most]
    examined = [opener, *(i for i in misclassified[order].tolist() if i != opener)]
    found, left = [], {True: NUM_TURNED, False: NUM_FIRM}
    for i in examined:
        if not any(left.values()):
            break
        image = images[i].expand(len(COVERS), -1, -1, -1)
        classes, probabilities = answers_to(classifier, image, hidden, fill)
        turned = bool((classes[:, 0] == y_true[i]).any())
        if left[turned]:
            left[turned] -= 1
            found.append((i, turned, classes, probabilities))
    found = mixed(found)
    index = torch.tensor([i for i, *_ in found])
    classes = torch.stack([of_image for _, _, of_image, _ in found])
    probabilities = torch.stack([of_image for *_, of_image in found])
    is_true = classes[:, :, 0] == y_true[index, None]
    surest = (is_true * probabilities[:, :, 0]).argmax(dim=1)
    return {
        "puzzles": index,
        "puzzle_classes": classes,
        "puzzle_probabilities": probabilities,
        "puzzle_best": torch.where(is_true.any(dim=1), surest, -1),
        "puzzle_by_map": choices_of_maps(classifier, images[index], classes[:, 0, 0], y_true[index]),
        "puzzle_random": is_true[:, -math.comb(CELLS**2, 2) :].double().mean(dim=1),
        "covers": torch.tensor([(*cells, -1, -1)[:2] for cells in COVERS]),
    }


def mixed(found: list[tuple]) -> list[tuple]:
    """Return puzzles (index, whether a cover turns it, ...), three that are turned before each that is not.

    Else they stay in their order. Whoever begins should not meet one after another that cannot be done.
    """
    turned = [puzzle for puzzle in found if puzzle[1]]
    firm = [puzzle for puzzle in found if not puzzle[1]]
    result = []
    while turned or firm:
        result += turned[:3] + firm[:1]
        turned, firm = turned[3:], firm[1:]
    return result


def choices_of_maps(classifier: Classifier, images: Tensor, answers: Tensor, truth: Tensor) -> Tensor:
    """Return the place in COVERS of the two squares that each contrastive map marks most, int64 [N].

    images uint8 [N, 3, S, S]; answers and truth int64 [N]. -1 without a layer to explain.
    """
    if classifier.layer is None:
        return torch.full_like(answers, -1)
    side = images.shape[-1]
    (signed,) = classifier.contrast(images, [(answers, truth)])
    large = F.interpolate(signed[:, None], side, mode="bilinear", align_corners=False)[:, 0]
    marked = [large[:, cells_hidden((cell,), side)].mean(dim=1) for cell in range(CELLS**2)]
    pairs = torch.stack(marked, dim=1).topk(2).indices.sort().values
    return torch.tensor([COVERS.index(tuple(pair)) for pair in pairs.tolist()])


# ---- Are maps those of this network, and do they point at the object? -----------------------------------


def measure_random_weights(classifier: Classifier, images: Tensor, y_pred: Tensor) -> dict:
    """Compare the maps with those of the same network with random weights, and with another image's map.

    A map that stays when the network forgets what it has learned does not explain it: Adebayo et al., "Sanity
    Checks for Saliency Maps", 2018 (arXiv 1810.03292), section 3. images uint8 [N, 3, S, S]; y_pred int64
    [N], the classes that are explained. Returns the mean |rank correlation| over a seeded sample of the
    images, the mean, lowest and highest over five random networks; None where all maps are constant.
    """
    sample = torch.randperm(len(images), generator=Generator().manual_seed(0))[:NUM_RANDOMIZED]
    images, classes = images[sample], y_pred[sample]
    trained = classifier.explain(images, classes).flatten(1)
    same, other = [], []
    for seed in range(NUM_SEEDS):
        untrained = dataclasses.replace(classifier, model=copied(classifier.model))
        randomize(untrained.module, seed)
        maps = untrained.explain(images, classes).flatten(1)
        same.append(spearman(trained, maps).abs().nanmean())
        other.append(spearman(trained.roll(1, 0), maps).abs().nanmean())
    found = {"images": len(images), "seeds": NUM_SEEDS}
    for name, values in {"same_image": torch.stack(same), "other_image": torch.stack(other)}.items():
        row = {"value": values.mean().item(), "low": values.min().item(), "high": values.max().item()}
        found[name] = {key: None if math.isnan(number) else number for key, number in row.items()}
    return found


def spearman(a: Tensor, b: Tensor) -> Tensor:
    """Return the rank correlation of the rows of a and b [N, K], float64 [N]; NaN for a constant row."""
    a, b = (more_metrics.mean_ranks(x.contiguous()) - (x.shape[1] + 1) / 2 for x in (a, b))
    return (a * b).sum(dim=1) / ((a * a).sum(dim=1) * (b * b).sum(dim=1)).sqrt()


@torch.no_grad()
def randomize(module: nn.Module, seed: int) -> None:
    """Give a module random weights and fresh statistics; torch's random generators stay as they are.

    Convolutions are drawn as in He et al. 2015 (arXiv 1502.01852); modules that can reset their parameters,
    such as linear, normalising and attention layers, do so. Parameters that are then still the old ones, such
    as class tokens and position embeddings, are drawn from a normal distribution with their own mean and
    standard deviation, so that activations keep their scale. All is drawn on the CPU, the same everywhere.
    """
    fresh = copied(module).cpu().to(memory_format=torch.contiguous_format)
    with torch.random.fork_rng(devices=[]):  # saves and restores the CPU's generator alone
        torch.default_generator.manual_seed(seed)  # torch.manual_seed would seed all GPUs as well
        for part in fresh.modules():
            if isinstance(part, nn.Conv2d):
                nn.init.kaiming_normal_(part.weight, mode="fan_out", nonlinearity="relu")
                if part.bias is not None:
                    nn.init.zeros_(part.bias)
            elif hasattr(part, "reset_parameters"):
                part.reset_parameters()
            elif isinstance(part, nn.MultiheadAttention):
                part._reset_parameters()
        for old, new in zip(module.parameters(), fresh.parameters(), strict=True):
            if torch.equal(old.cpu(), new):
                new.normal_(new.mean().item(), new.std(correction=0).item())
    module.load_state_dict(fresh.state_dict())


# ---- What kind of mistake? -------------------------------------------------------------------------------


def kinds_of_mistakes(
    y_true: Tensor, logits: Tensor, superclass_of: Tensor | None = None, others: list[Tensor] | tuple = ()
) -> tuple[Tensor, list[dict]]:
    """Return the kind of each mistake, int64 [N] and -1 for right answers, and a row for each kind.

    y_true int64 [N]; logits float32 [N, C]; superclass_of int64 [C]; others: the answers int64 [N] of other
    runs. A mistake is of the first kind that fits, so the rows, in the order of the kinds, add up to all
    mistakes: `name`, `count`, `share` of the mistakes, and what accuracy would be if all of them were right.
    """
    order = logits.argsort(dim=1, descending=True, stable=True)  # of equal ones the lower class first
    y_pred, second = order[:, 0], order[:, 1] == y_true
    wrong, always = y_pred != y_true, torch.ones_like(second)
    if len(others):
        answers = torch.stack(list(others))
        fits = {"same_in_all": (answers == y_pred).all(dim=0), "wrong_in_all": (answers != y_true).all(dim=0)}
        fits["right_in_another"] = always
    else:
        fits = {}  # of each kind, bool [N]
        if superclass_of is not None:
            fits["second_within_superclass"] = second & (superclass_of[y_pred] == superclass_of[y_true])
        fits |= {"second": second, "in_first_five": (order[:, :5] == y_true[:, None]).any(dim=1)}
        fits["further_down"] = always
    kind, rows = torch.full_like(y_true, -1), []
    num_wrong, num_right = int(wrong.sum()), int((~wrong).sum())
    for number, (name, fit) in enumerate(fits.items()):
        members = wrong & fit & (kind == -1)
        kind[members] = number
        count = int(members.sum())
        row = {"name": name, "count": count, "share": count / max(1, num_wrong)}
        rows.append(row | {"accuracy_if_right": (num_right + count) / len(wrong)})
    return kind, rows

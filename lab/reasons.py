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
from data import SIZE, Dataset, images_at_once
from lab import more_metrics
from lab.classifier import Classifier, copied

NUM_MISTAKES, NUM_RIGHT = 800, 400  # images whose pixels are covered
COVERED = 0.25  # of the pixels
NUM_DRAWS = 3  # of random maps
MAPS_AT_ONCE = 50  # to enlarge, which takes memory
FEWEST, LEAD = 40, 0.03  # mistakes for a verdict, and what "specific" needs over each of the CONTROLS
CONTROLS = ("random", "blurred_random", "other_image", "random_class", "usual", "centre")
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
def answers_under_covering(
    classifier: Classifier, images: Tensor, hidden: Tensor, fill: Tensor | Callable
) -> tuple[Tensor, Tensor]:
    """Return the three likeliest classes, int64 [N, 3], and their probabilities, with hidden pixels replaced.

    images uint8 [N, 3, S, S]; hidden bool [N, S, S]; fill, float32 [3] or [N, 3, S, S] in [0, 1], is what
    replaces them, or a function that makes it from images in [0, 1], such as `blurred`.
    """
    classes, probabilities = [], []
    for part in torch.arange(len(images)).split(classifier.images_at_once(images)):
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
    colour. Returns `covering` of docs/formats.md, of seeded samples of the mistakes and the right answers.
    """
    generator = Generator().manual_seed(0)
    is_right = logits.argmax(dim=1) == y_true
    wrong, right = torch.nonzero(~is_right).flatten(), torch.nonzero(is_right).flatten()
    wrong = wrong[torch.randperm(len(wrong), generator=generator)[:NUM_MISTAKES]]
    right = right[torch.randperm(len(right), generator=generator)[:NUM_RIGHT]]
    result = {"images": {"mistakes": len(wrong), "right": len(right)}, "covered": COVERED}
    if len(wrong):
        result |= cover_mistakes(classifier, images[wrong], y_true[wrong], logits[wrong], fill, generator)
    result["verdict"] = verdict_on(len(wrong), result.get("differences", {}))
    if len(right):
        result["right"] = cover_right(classifier, images[right], logits[right], fill, generator)
    return result


def answers_without_top(
    classifier: Classifier, images: Tensor, maps: Tensor, fill: Tensor | Callable, fraction: float = COVERED
) -> Tensor:
    """Return the answers, int64 [D, N], where the fraction that maps float [D, N, h, w] mark is covered."""
    answers = []
    for draw in maps:
        hidden = top_pixels(draw, fraction, images.shape[-1])
        classes, _ = answers_under_covering(classifier, images, hidden, fill)
        answers.append(classes[:, 0])
    return torch.stack(answers)


def cover_mistakes(
    classifier: Classifier, images: Tensor, truth: Tensor, logits: Tensor, fill: Tensor, generator: Generator
) -> dict:
    """Cover what maps mark in mistakes: how many answers change, and how many become the truth?

    images uint8 [N, 3, S, S]; truth int64 [N]; logits float32 [N, C]; fill float32 [3] in [0, 1].

        name                 map of                                          target      covered by
        contrastive          the answer rather than the truth                truth       fill
        usual                the answer alone                                truth       fill
        random               random cells, three draws                       truth       fill
        centre               a Gaussian in the centre                        truth       fill
        other_image          as contrastive, but of the image before it      truth       fill
        random_class         the answer rather than a random third class     truth       fill
        another_contrastive  the answer rather than the likeliest third one  that third  fill
        blurred_contrastive  as contrastive                                  truth       the blurred image
        blurred_random       as random                                       truth       the blurred image

    Two classes have no third one, and a single image has none before it: their rows are left out.
    """
    likely = logits.argsort(dim=1, descending=True, stable=True)
    answer = likely[:, 0]
    questions = [(answer, truth), (answer, None)]
    if logits.shape[1] > 2:
        pair = torch.stack([answer, truth], dim=1)
        third = logits.scatter(1, pair, -math.inf).argmax(dim=1)
        random_third = torch.rand(logits.shape, generator=generator).scatter(1, pair, -1).argmax(dim=1)
        questions += [(answer, random_third), (answer, third)]
    contrastive, usual, *thirds = (signed[None] for signed in classifier.pairs(images, questions))
    random = torch.rand(NUM_DRAWS, *usual.shape[1:], generator=generator)
    tests = [
        ("contrastive", contrastive, truth, fill),
        ("usual", usual, truth, fill),
        ("random", random, truth, fill),
        ("centre", centre_maps(len(images), images.shape[-1])[None], truth, fill),
        ("blurred_contrastive", contrastive, truth, blurred),
        ("blurred_random", random, truth, blurred),
    ]
    if len(images) > 1:
        tests.append(("other_image", contrastive.roll(1, dims=1), truth, fill))
    if thirds:
        tests += [("random_class", thirds[0], truth, fill), ("another_contrastive", thirds[1], third, fill)]
    answers, hits = {}, {}
    for name, maps, target, filling in tests:
        answers[name] = answers_without_top(classifier, images, maps, filling)
        hits[name] = answers[name] == target
    # The runner-up is the truth or the likeliest third class: both maps have been covered.
    of_third = answers["another_contrastive" if thirds else "contrastive"]
    answers["runner_up"] = torch.where(likely[:, 1] == truth, answers["contrastive"], of_third)
    if thirds:
        hits["another_random"] = answers["random"] == third
    return summarise_mistakes(answers, hits, likely, truth)


def summarise_mistakes(answers: dict, hits: dict, likely: Tensor, truth: Tensor) -> dict:
    """Return the shares of cover_mistakes, and paired differences of those that become the truth.

    answers int64 [D, N], of D draws, and hits bool [D, N], whether they are the target, of each name there;
    likely int64 [N, C]: the classes in the order of the logits without a cover; truth int64 [N].
    """
    result, pair = {"mistakes": {}, "differences": {}}, ("contrastive", "random")
    rank = (likely == truth[:, None]).int().argmax(dim=1)
    ranks = {"second": rank == 1, "third": rank == 2, "later": rank > 2}
    for name in [name for name in answers if not name.startswith(("another", "blurred"))]:
        changed, hit = answers[name] != likely[:, 0], answers[name] == truth
        row = {"changed": share(changed), "to_truth": share(hit), "to_truth_of_changed": share(hit, changed)}
        row["by_rank"] = {place: share(hit, members.expand_as(hit)) for place, members in ranks.items()}
        result["mistakes"][name] = row
    result["blurred"] = {name: {"to_truth": share(hits[f"blurred_{name}"])} for name in pair}
    if "another_random" in hits:
        result["another"] = {name: {"to_another": share(hits[f"another_{name}"])} for name in pair}
    means = {name: draws.double().mean(dim=0) for name, draws in hits.items()}  # of each image
    for control in [name for name in CONTROLS if name in means]:
        claim = means["blurred_contrastive" if control == "blurred_random" else "contrastive"]
        result["differences"][control] = more_metrics.mean_interval(claim - means[control])
    usual_less = {c: more_metrics.mean_interval(means["usual"] - means[c]) for c in ("random", "centre")}
    return result | {"usual_less": usual_less}


def verdict_on(count: int, differences: dict[str, dict]) -> str:
    """Return what the contrastive map was shown to find in `count` mistakes, see cover_mistakes.

    "specific" to the two classes if it leads each control by 3 points or more, with an interval above 0;
    "more than chance" if its intervals over random cells lie above 0, with both fills; else "no". A control
    that cannot exist is not passed. Fewer than 40 mistakes are "too few".
    """
    if count < FEWEST:
        return "too few"
    above = {name for name, difference in differences.items() if difference["low"] > 0}
    if not above >= {"random", "blurred_random"}:
        return "no"
    far = {name for name in above if differences[name]["value"] >= LEAD}
    return "specific" if far == set(CONTROLS) else "more than chance"


def cover_right(
    classifier: Classifier, images: Tensor, logits: Tensor, fill: Tensor, generator: Generator
) -> dict:
    """Cover what maps mark in right answers: how many change, and how many become the runner-up?

    The maps are of the answer rather than the runner-up, of the answer alone, of random cells and the centre.
    """
    likely = logits.argsort(dim=1, descending=True, stable=True)
    answer, runner_up = likely[:, 0], likely[:, 1]
    to_runner_up, usual = classifier.pairs(images, [(answer, runner_up), (answer, None)])
    maps = {
        "runner_up": to_runner_up[None],
        "usual": usual[None],
        "random": torch.rand(NUM_DRAWS, *usual.shape, generator=generator),
        "centre": centre_maps(len(images), images.shape[-1])[None],
    }
    result = {}
    for name, draws in maps.items():
        answers = answers_without_top(classifier, images, draws, fill)
        result[name] = {"changed": share(answers != answer), "to_runner_up": share(answers == runner_up)}
    return result


def share(hits: Tensor, among: Tensor | None = None) -> dict[str, float] | None:
    """Return the share of True in bool [D, N], of D draws, with its interval over the N images.

    With `among`, bool [D, N], it is the share of these, or None if there are none. The interval is Wilson's
    for one draw, and for more 1.96 standard errors of a ratio of means over the images, linearised.
    """
    among = torch.ones_like(hits) if among is None else among
    if not among.any():
        return None
    part, base = (hits & among).double().mean(dim=0), among.double().mean(dim=0)
    if len(hits) == 1:
        return metrics.proportion(int(part.sum()), int(base.sum()))
    ratio = part.mean() / base.mean()
    row = more_metrics.mean_interval((part - ratio * (base - base.mean())) / base.mean())
    return {"value": row["value"], "low": max(0.0, row["low"]), "high": min(1.0, row["high"])}


def cover_usual(classifier: Classifier, images: Tensor, answers: Tensor, fill: Tensor, side: int) -> dict:
    """Return what a page shows of usual maps: the maps, the pixels they mark, and the answers without these.

    images uint8 [N, 3, S, S]; answers int64 [N]; fill float32 [3]. Returns `usual_maps` float32 [N, h, w],
    `usual_covered_pixels` bool [N, side, side], `usual_answers` int64 and `usual_probabilities` float32 [N].
    """
    (maps,) = classifier.pairs(images, [(answers, None)])
    hidden = top_pixels(maps, COVERED, images.shape[-1])
    classes, probabilities = answers_under_covering(classifier, images, hidden, fill)
    shown = {"usual_maps": maps, "usual_covered_pixels": top_pixels(maps, COVERED, side)}
    return shown | {"usual_answers": classes[:, 0], "usual_probabilities": probabilities[:, 0]}


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
    """Cover one or two of the 4x4 squares of mistakes, and return what the network answers then.

    images uint8 [N, 3, S, S]; y_true int64 [N]; misclassified int64 [M], at least one. Examines the image
    `opener`, then the others in a seeded order: at most 60, fewer if they are wider than 90 pixels, 10 at
    224. Keeps the first 15 that one of COVERS turns to the truth and the first 5 that none does, see mixed.
    Returns the arrays of evidence.npz from `puzzles` to `puzzle_random`, see docs/formats.md.
    """
    hidden = torch.stack([cells_hidden(cells, images.shape[-1]) for cells in COVERS])
    # Each takes 137 passes, whose time goes with the pixels, also those that the network makes itself.
    side = max(images.shape[-1], classifier.model.image_size, classifier.largest_side)
    most = min(MAX_EXAMINED, 10 * max(1, 50 * SIZE**2 // side**2))
    order = torch.randperm(len(misclassified), generator=Generator().manual_seed(1))[:most]
    puzzles, left = [], {True: NUM_TURNED, False: NUM_FIRM}
    for i in [opener, *(i for i in misclassified[order].tolist() if i != opener)]:
        image = images[i].expand(len(COVERS), -1, -1, -1)
        classes, probabilities = answers_under_covering(classifier, image, hidden, fill)
        turned = bool((classes[:, 0] == y_true[i]).any())
        if left[turned]:
            left[turned] -= 1
            puzzles.append((i, turned, classes, probabilities))
        if not any(left.values()):
            break
    indices, _, classes, probabilities = zip(*mixed(puzzles), strict=True)
    index, classes, probabilities = torch.tensor(indices), torch.stack(classes), torch.stack(probabilities)
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


def mixed(puzzles: list[tuple]) -> list[tuple]:
    """Return puzzles (index, whether a cover turns it, ...), three that are turned before each that is not.

    Else they stay in their order. Whoever begins should not meet one after another that cannot be done.
    """
    turned = [puzzle for puzzle in puzzles if puzzle[1]]
    firm = [puzzle for puzzle in puzzles if not puzzle[1]]
    result = []
    for i in range(len(puzzles)):  # behind the end of a list its slices are empty
        result += turned[3 * i : 3 * i + 3] + firm[i : i + 1]
    return result


def choices_of_maps(classifier: Classifier, images: Tensor, answers: Tensor, truth: Tensor) -> Tensor:
    """Return the place in COVERS of the two squares that each contrastive map marks most, int64 [N].

    images uint8 [N, 3, S, S]; answers and truth int64 [N]. -1 without a layer to explain.
    """
    if classifier.layer is None:
        return torch.full_like(answers, -1)
    side = images.shape[-1]
    (signed,) = classifier.pairs(images, [(answers, truth)])
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

"""What mistakes have in common, each finding with a control, and whether maps can be believed.

Does covering what a map marks change the answer, or would any map do? Do maps depend on what this network has
learned? What kinds of mistakes are there, and does another training make the same ones?
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
COVERED = 0.25  # share of the pixels
NUM_DRAWS = 3  # random maps
NUM_SHOWN = 9  # mistakes that the page shows with both maps
MAPS_AT_ONCE = 50  # maps that are enlarged together; more would need much memory
FEWEST, LEAD = 40, 0.03  # mistakes that a verdict needs, and the lead over each control that "specific" needs
CONTROLS = ("random", "blurred_random", "other_image", "random_class", "usual", "centre")
NUM_RANDOMIZED, NUM_SEEDS = 40, 5  # images, and random networks


def mean_colour(dataset: Dataset) -> Tensor:
    """Return the mean of all pixels of the images, float32 [3] in [0, 1]."""
    images = dataset.images  # summed in parts, as a sum takes them to 64 bits
    sums = torch.stack([part.sum(dim=(0, 2, 3)) for part in images.split(images_at_once(images))])
    return (sums.sum(dim=0).double() / (255 * len(images) * images.shape[-1] ** 2)).float()


# ---- Cover what a map marks ------------------------------------------------------------------------------


def top_pixels(maps: Tensor, fraction: float, side: int) -> Tensor:
    """Enlarge maps float [N, h, w] bilinearly to side x side, and return where they are largest.

    The result is bool [N, side, side], True at round(fraction side^2) pixels of each map. Where pixels tie,
    the first ones in reading order are taken.
    """
    hidden = torch.zeros(len(maps), side * side, dtype=torch.bool)
    for part in torch.arange(len(maps)).split(MAPS_AT_ONCE):
        heatmaps = F.interpolate(maps[part, None], side, mode="bilinear", align_corners=False)
        order = heatmaps.flatten(1).argsort(dim=1, descending=True, stable=True)
        hidden[part[:, None], order[:, : round(fraction * side * side)]] = True
    return hidden.view(-1, side, side)


def blurred(images: Tensor) -> Tensor:
    """Return images [N, 3, S, S] under a Gaussian blur with a standard deviation of S / 8.

    At the border the weights of the pixels inside the image are scaled to a sum of 1.
    """
    places = torch.arange(images.shape[-1])
    sigma = len(places) / 8
    weights = torch.exp(-((places[:, None] - places) ** 2) / (2 * sigma**2))  # for rows and for columns
    weights /= weights.sum(dim=1, keepdim=True)
    return weights @ images @ weights.T


@torch.inference_mode()
def answers_under_covering(
    classifier: Classifier, images: Tensor, hidden: Tensor, fill: Tensor | Callable
) -> tuple[Tensor, Tensor]:
    """Replace the hidden pixels; return the three likeliest classes, int64 [N, 3], and their probabilities.

    images uint8 [N, 3, S, S]; hidden bool [N, S, S]. fill, float32 [3] or [N, 3, S, S] in [0, 1], replaces
    the pixels; it may also be a function that makes it from images in [0, 1], such as `blurred`.
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
    """Cover the quarter of the pixels that a map marks most: does the answer change, and to what?

    One point of the deletion curve of Petsiuk, Das and Saenko, "RISE", 2018 (arXiv 1806.07421), section 4.
    images uint8 [N, 3, S, S]; y_true int64 [N]; logits float32 [N, C]; fill float32 [3] in [0, 1], the mean
    colour. Seeded samples of the mistakes and of the right answers are covered. Returns `covering` of
    docs/formats.md; cover_mistakes, summarise_mistakes, cover_right and verdict_on explain its keys.
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
    """Cover the fraction that maps float [D, N, h, w] mark most; return the answers, int64 [D, N]."""
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
    # The runner-up is the truth or the likeliest third class, and both maps have been covered.
    third_covered = answers["another_contrastive" if thirds else "contrastive"]
    answers["runner_up"] = torch.where(likely[:, 1] == truth, answers["contrastive"], third_covered)
    if thirds:
        hits["another_random"] = answers["random"] == third
    return summarise_mistakes(answers, hits, likely, truth)


def summarise_mistakes(answers: dict, hits: dict, likely: Tensor, truth: Tensor) -> dict:
    """Return the numbers of cover_mistakes, as shares with their intervals.

    answers, {name: int64 [D, N]}, are the answers of D draws, and hits, {name: bool [D, N]}, say which are
    the target. likely int64 [N, C] has the classes by falling logit without a cover; truth int64 [N].

        mistakes     {name: changed     the answer is another one
                            to_truth    it is the truth
                            to_truth_of_changed    the share of the changed answers that are the truth
                            by_rank     to_truth where the truth was the second, third or a later class}
        blurred      {contrastive, random: to_truth}, with the blurred image for the mean colour
        another      {contrastive, random: to_another}, the likeliest third class
        differences  {control: to_truth by the contrastive map less that by the control, paired}
        usual_less   {random, centre: to_truth by the usual map less that by the control, paired}
        runner_up_less    {random: the same of the answer rather than the runner-up}
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
    by_runner_up = (answers["runner_up"] == truth).double().mean(dim=0)
    runner_up_less = {"random": more_metrics.mean_interval(by_runner_up - means["random"])}
    return result | {"usual_less": usual_less, "runner_up_less": runner_up_less}


def verdict_on(count: int, differences: dict[str, dict]) -> str:
    """Return what the covering test has shown about the contrastive map, see cover_mistakes.

    count: the number of mistakes; fewer than 40 are "too few". differences: the lead of the map over each
    control. The map is "specific" to the two classes if it leads every one of the CONTROLS by at least 3
    points, with an interval above 0. It finds "more than chance" if both intervals over random cells, with
    either fill, lie above 0. Otherwise the verdict is "no". A control that cannot exist counts as not passed.
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
    """Cover what maps mark in right answers: how many `changed`, and how many came `to_runner_up`?

    The maps are `runner_up`, the answer rather than the runner-up, `usual`, the answer alone, `random` cells,
    and the `centre`.
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
    """Return the share of True in hits, bool [D, N], of D draws, with its interval over the N images.

    With `among`, bool [D, N], it is the share among its True entries, or None if there are none. One draw has
    Wilson's interval. More draws have 1.96 standard errors of a ratio of means over the images, linearised.
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
    """Return usual maps for the page, the pixels that they mark, and the answers with these pixels covered.

    images uint8 [N, 3, S, S]; answers int64 [N]; fill float32 [3]. Returns `usual_maps` float32 [N, h, w],
    `usual_covered_pixels` bool [N, side, side], `usual_answers` int64 and `usual_probabilities` float32 [N].
    """
    (maps,) = classifier.pairs(images, [(answers, None)])
    hidden = top_pixels(maps, COVERED, images.shape[-1])
    classes, probabilities = answers_under_covering(classifier, images, hidden, fill)
    shown = {"usual_maps": maps, "usual_covered_pixels": top_pixels(maps, COVERED, side)}
    return shown | {"usual_answers": classes[:, 0], "usual_probabilities": probabilities[:, 0]}


def choose_shown(drawn: Tensor, truth: Tensor, turned: Tensor, covered: Tensor, usual: dict) -> dict:
    """Choose the mistakes that the page shows with both maps: their places, `shown`, and what `usual` holds.

    drawn int64 [N]: places of mistakes in a random order; truth int64 [N]; usual: see cover_usual. turned,
    bool [N], says whether covering by the contrastive map makes the answer right, and covered, bool
    [N, side, side], what it covers. First stands a mistake that the contrastive map alone turns, the one
    whose maps mark the fewest pixels in common. The others follow as they were drawn, nine in all.
    """
    alone = turned & (usual["usual_answers"] != truth)
    common = (covered & usual["usual_covered_pixels"]).flatten(1).sum(dim=1)
    first = int(torch.where(alone, common, covered[0].numel() + 1).argmin())
    order = [first, *(k for k in range(len(drawn)) if k != first)][:NUM_SHOWN]
    return {"shown": drawn[order]} | {key: values[order] for key, values in usual.items()}


# ---- Cover one or two cells --------------------------------------------------------------------------------

CELLS = 4  # the picture as 4x4 squares
COVERS = [(), *((a,) for a in range(CELLS**2)), *itertools.combinations(range(CELLS**2), 2)]
NUM_TURNED, NUM_FIRM = 15, 5  # puzzles that some cover turns to the truth, and puzzles that none turns
MAX_EXAMINED = 60  # mistakes


def cells_hidden(cells: tuple[int, ...], side: int) -> Tensor:
    """Return bool [side, side], True in these of the 4x4 squares of a picture, numbered in reading order."""
    hidden = torch.zeros(side, side, dtype=torch.bool)
    edges = [i * side // CELLS for i in range(CELLS + 1)]
    for cell in cells:
        row, column = divmod(cell, CELLS)
        hidden[edges[row] : edges[row + 1], edges[column] : edges[column + 1]] = True
    return hidden


def find_puzzles(
    classifier: Classifier, images: Tensor, y_true: Tensor, misclassified: Tensor, fill: Tensor, opener: int
) -> dict[str, Tensor]:
    """Cover one or two of the 4x4 squares of mistakes, and return what the network then answers.

    images uint8 [N, 3, S, S]; y_true int64 [N]; misclassified int64 [M], at least one. The image `opener` is
    examined first, then the others in a seeded order: at most 60, fewer if they are wider than 90 pixels, and
    10 at 224. The first 15 that some cover turns to the truth are kept, and the first 5 that none turns, see
    mixed. Returns the arrays of evidence.npz from `puzzles` to `puzzles_drawn`, see docs/formats.md.
    """
    hidden = torch.stack([cells_hidden(cells, images.shape[-1]) for cells in COVERS])
    # Each takes 137 passes, and their time grows with the pixels, also if the network enlarges the image.
    side = max(images.shape[-1], classifier.model.image_size, classifier.largest_side)
    most = min(MAX_EXAMINED, 10 * max(1, 50 * SIZE**2 // side**2))
    order = torch.randperm(len(misclassified), generator=Generator().manual_seed(1))[:most]
    puzzles, left, drawn = [], {True: NUM_TURNED, False: NUM_FIRM}, []
    for i in [opener, *(i for i in misclassified[order].tolist() if i != opener)]:
        image = images[i].expand(len(COVERS), -1, -1, -1)
        classes, probabilities = answers_under_covering(classifier, image, hidden, fill)
        turned = bool((classes[:, 0] == y_true[i]).any())
        drawn += [turned] * (i != opener)
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
        "puzzles_drawn": torch.tensor([len(drawn), sum(drawn)]),
    }


def mixed(puzzles: list[tuple]) -> list[tuple]:
    """Return puzzles (index, whether a cover turns it, ...), three solvable ones before each unsolvable one.

    Otherwise the order stays. A beginner should not meet one after another that cannot be solved.
    """
    turned = [puzzle for puzzle in puzzles if puzzle[1]]
    firm = [puzzle for puzzle in puzzles if not puzzle[1]]
    result = []
    for i in range(len(puzzles)):  # behind the end of a list its slices are empty
        result += turned[3 * i : 3 * i + 3] + firm[i : i + 1]
    return result


def choices_of_maps(classifier: Classifier, images: Tensor, answers: Tensor, truth: Tensor) -> Tensor:
    """Return for each contrastive map the place in COVERS of the two squares that it marks most, int64 [N].

    images uint8 [N, 3, S, S]; answers and truth int64 [N]. Without a layer to explain all places are -1.
    """
    if classifier.layer is None:
        return torch.full_like(answers, -1)
    side = images.shape[-1]
    (signed,) = classifier.pairs(images, [(answers, truth)])
    large = F.interpolate(signed[:, None], side, mode="bilinear", align_corners=False)[:, 0]
    marked = [large[:, cells_hidden((cell,), side)].mean(dim=1) for cell in range(CELLS**2)]
    pairs = torch.stack(marked, dim=1).topk(2).indices.sort().values
    return torch.tensor([COVERS.index(tuple(pair)) for pair in pairs.tolist()])


# ---- Do maps depend on what the network has learned? -----------------------------------------------------


def measure_random_weights(classifier: Classifier, images: Tensor, y_pred: Tensor) -> dict:
    """Correlate the maps with those of random weights, for the same image and, as a control, for another.

    A map that stays when the network forgets what it has learned does not explain it: Adebayo et al., "Sanity
    Checks for Saliency Maps", 2018 (arXiv 1810.03292), section 3. images uint8 [N, 3, S, S]; y_pred int64
    [N], the classes that are explained. For each of five random networks the |rank correlation| is averaged
    over a seeded sample of the images. Returns the mean, the lowest and the highest of these five, or None
    where all maps are constant.
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
    result = {"images": len(images), "seeds": NUM_SEEDS}
    for name, values in {"same_image": torch.stack(same), "other_image": torch.stack(other)}.items():
        row = {"value": values.mean().item(), "low": values.min().item(), "high": values.max().item()}
        result[name] = {key: None if math.isnan(number) else number for key, number in row.items()}
    return result


def spearman(a: Tensor, b: Tensor) -> Tensor:
    """Return the rank correlation of the rows of a and b [N, K], float64 [N]; NaN for a constant row."""
    a, b = (more_metrics.mean_ranks(x.contiguous()) - (x.shape[1] + 1) / 2 for x in (a, b))
    return (a * b).sum(dim=1) / ((a * a).sum(dim=1) * (b * b).sum(dim=1)).sqrt()


@torch.no_grad()
def randomize(module: nn.Module, seed: int) -> None:
    """Give a module random weights and fresh statistics; torch's random generators stay as they are.

    Convolutions are drawn as in He et al. 2015 (arXiv 1502.01852). Modules that can reset their parameters,
    such as linear, normalising and attention layers, do so. Class tokens, position embeddings and other
    parameters that are still unchanged are drawn from a normal distribution with their own mean and standard
    deviation, so that activations keep their scale. All numbers are drawn on the CPU, the same everywhere.
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
    runs. The first kind that fits gets a mistake, so the rows add up to all mistakes. A row has the `name`,
    the `count`, the `share` of the mistakes, and `accuracy_if_right`, the accuracy if all mistakes of the
    kind were right.
    """
    order = logits.argsort(dim=1, descending=True, stable=True)  # where logits tie, the lower class first
    y_pred, second = order[:, 0], order[:, 1] == y_true
    wrong, always = y_pred != y_true, torch.ones_like(second)
    if len(others):
        answers = torch.stack(list(others))
        fits = {"same_in_all": (answers == y_pred).all(dim=0), "wrong_in_all": (answers != y_true).all(dim=0)}
        fits["right_in_another"] = always
    else:
        fits = {}  # {kind: bool [N]}
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

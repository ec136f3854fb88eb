"""What mistakes have in common, each finding with a control, and whether maps can be believed.

Which pixels weigh between the answer and another class, and can a map be believed that says so? Is another
training wrong too? Which of the two halves of a name does it get wrong?
"""

import contextlib
import dataclasses
import itertools
import math
from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Generator, Tensor, nn

import metrics
from classifier import BATCH_SIZE, Classifier, copied
from gradcam import to_heatmap

NUM_COVERED = 400  # mistakes, and as many right answers, whose pixels are covered
COVERED, KEPT = 0.25, 0.5  # of the pixels
NUM_DRAWS = 3  # of random maps
NUM_RANDOMIZED, NUM_SEEDS = 40, 5  # images, and random networks
NUM_POINTED = 1000  # images for the pointing game

# ---- Cover what a map marks ------------------------------------------------------------------------------


def top_pixels(maps: Tensor, fraction: float, side: int = 32) -> Tensor:
    """Return where the maps float [N, h, w] are largest, once they are enlarged bilinearly to side x side.

    bool [N, side, side]: of each map round(fraction side^2) pixels. Equal ones go in reading order.
    """
    heatmaps = F.interpolate(maps[:, None], side, mode="bilinear", align_corners=False)
    order = heatmaps.flatten(1).argsort(dim=1, descending=True, stable=True)
    rank = order.argsort(dim=1).view(len(maps), side, side)
    return rank < round(fraction * side * side)


@torch.inference_mode()
def answers_to(classifier: Classifier, images: Tensor, hidden: Tensor, fill: Tensor) -> tuple[Tensor, Tensor]:
    """Return the three likeliest classes, int64 [N, 3], and their probabilities where pixels are hidden.

    images float32 [N, 3, 32, 32] in [0, 1]; hidden bool [N, 32, 32]; fill float32 [3] is what covers them.
    """
    likely = []
    for part in torch.arange(len(images)).split(BATCH_SIZE):
        covered = torch.where(hidden[part, None], fill[:, None, None], images[part])
        logits = classifier.model(covered.to(classifier.device)).float().cpu()
        likely.append(logits.softmax(dim=1).topk(min(3, logits.shape[1]), dim=1))
    return torch.cat([top.indices for top in likely]), torch.cat([top.values for top in likely])


@contextlib.contextmanager
def energy_of_passes(classifier: Classifier) -> Iterator[list[Tensor]]:
    """Yield a list, to which each forward pass in the block adds its activation energy, float32 [n, h, w].

    The sum over the channels of the squared activations of the layer: where it responds, whatever the class,
    a control for maps that claim to explain one.
    """
    maps = []

    def keep(layer: nn.Module, inputs: tuple, output: Tensor) -> None:
        cells = output if classifier.reshape is None else classifier.reshape(output)
        maps.append(cells.detach().float().square().sum(dim=1).cpu())

    handle = classifier.module.get_submodule(classifier.layer).register_forward_hook(keep)
    try:
        yield maps
    finally:
        handle.remove()


def centre_maps(count: int, side: int = 32) -> Tensor:
    """Return a Gaussian in the centre, standard deviation side / 4, float32 [count, side, side]."""
    offsets = torch.arange(side) - (side - 1) / 2
    gaussian = torch.exp(-(offsets[:, None] ** 2 + offsets[None, :] ** 2) / (2 * (side / 4) ** 2))
    return gaussian.expand(count, side, side)


def measure_covering(
    classifier: Classifier, test, logits: Tensor, misclassified: Tensor, fill: Tensor
) -> dict:
    """Cover the quarter that a map marks most, and keep only the half: what becomes of the answer?

    These are one point each of the deletion and insertion curves of Petsiuk, Das and Saenko, "RISE", 2018
    (arXiv 1806.07421), section 4. test: a data.Dataset; logits float32 [N, C]; misclassified int64 [M]; fill
    float32 [3] in [0, 1], the mean colour. Of seeded samples of mistakes and of right answers each map has
    `changed`, the share of answers that change; `to_truth` of mistakes, `to_runner_up` of right answers, for
    which `kept` says how many stay if only the half is kept. Maps: contrastive (of the answer rather than the
    truth or, for right answers, the runner-up, see GradCAM.pair), usual, and as controls the contrastive one
    of another image, the centre, the activation energy and random ones, the mean over three draws. `another`,
    absent for two classes, is aimed at the likeliest other wrong class. Each share has its 95 % interval over
    the images, Wilson's, and for means over draws and differences 1.96 standard errors.
    """
    generator = Generator().manual_seed(0)
    right = torch.nonzero(logits.argmax(dim=1) == test.labels).flatten()
    result = {"images": NUM_COVERED, "covered": COVERED, "kept": KEPT}
    for name, pool in {"mistakes": misclassified, "right": right}.items():
        sample = pool[torch.randperm(len(pool), generator=generator)[:NUM_COVERED]]
        if len(sample):
            images, of_sample = test.images[sample] / 255, logits[sample]
            truth = test.labels[sample] if name == "mistakes" else None
            result[name] = cover_sample(classifier, images, of_sample, truth, fill, generator)
    return result


def cover_sample(
    classifier: Classifier,
    images: Tensor,
    logits: Tensor,
    truth: Tensor | None,
    fill: Tensor,
    generator: Generator,
) -> dict:
    """Return what measure_covering says of one sample: mistakes, or right answers if `truth` is None."""

    def answer_to(hidden: Tensor) -> Tensor:
        return answers_to(classifier, images, hidden, fill)[0][:, 0]

    likely = logits.argsort(dim=1, descending=True, stable=True)
    answer, toward, goal = likely[:, 0], likely[:, 1], "to_runner_up"
    if truth is not None:
        toward, goal = truth, "to_truth"
    questions = [(answer, toward), (answer, None)]
    has_another = truth is not None and logits.shape[1] > 2
    if has_another:
        rest = logits.scatter(1, torch.stack([answer, truth], dim=1), -math.inf)
        another = rest.argmax(dim=1)
        questions.append((answer, another))
    with energy_of_passes(classifier) as energy:
        contrastive, usual, *to_another = classifier.contrast(images, questions)
    maps = {
        "contrastive": [contrastive],
        "usual": [usual],
        "other_image": [contrastive.roll(1, 0)],
        "centre": [centre_maps(len(images))],
        "activation": [torch.cat(energy)],
        "random": [torch.rand(contrastive.shape, generator=generator) for _ in range(NUM_DRAWS)],
    }
    result, scores = {"images": len(images)}, {}
    for name, several in maps.items():
        hidden = [top_pixels(map, COVERED) for map in several]
        covered = torch.stack([answer_to(pixels) for pixels in hidden])
        scores[name] = {"changed": covered != answer, goal: covered == toward}
        if truth is None:
            hidden = [~top_pixels(map, KEPT) for map in several]
            kept = torch.stack([answer_to(pixels) for pixels in hidden])
            scores[name]["kept"] = kept == answer
        elif has_another and name == "random":
            scores[name]["to_another"] = covered == another
        result[name] = {key: share(draws_of) for key, draws_of in scores[name].items()}
    gain = scores["contrastive"][goal].double().mean(dim=0) - scores["random"][goal].double().mean(dim=0)
    result["contrastive_less_random"] = {goal: metrics.mean_interval(gain)}
    if has_another:
        moved = answer_to(top_pixels(to_another[0], COVERED)) == another
        result["another"] = {"to_another": share(moved[None]), "random": result["random"].pop("to_another")}
    if truth is not None:
        margin = (logits.gather(1, answer[:, None]) - logits.gather(1, truth[:, None]))[:, 0]
        thirds = margin.argsort().tensor_split(3)
        result["by_margin"] = []
        for part in thirds:
            if len(part):
                row = {name: share(scores[name][goal][:, part]) for name in ("contrastive", "random")}
                result["by_margin"].append(row)
    return result


def share(hits: Tensor) -> dict[str, float]:
    """Return the share of True in bool [draws, N] with its interval over the N images: value, low, high."""
    if len(hits) == 1:
        return metrics.proportion(int(hits.sum()), hits.shape[1])
    row = metrics.mean_interval(hits.double().mean(dim=0))
    return {"value": row["value"], "low": max(0.0, row["low"]), "high": min(1.0, row["high"])}


# ---- Cover one or two cells --------------------------------------------------------------------------------

CELLS = 4  # the picture as 4x4 squares
COVERS = [(), *((a,) for a in range(CELLS**2)), *itertools.combinations(range(CELLS**2), 2)]
NUM_TURNED, NUM_FIRM = 15, 5  # mistakes to take apart that become the truth, and that do not
MAX_EXAMINED = 60


def cells_hidden(cells: tuple[int, ...], side: int = 32) -> Tensor:
    """Return where some of the 4x4 squares of a picture are, bool [side, side]; in reading order."""
    hidden = torch.zeros(CELLS * CELLS, dtype=torch.bool)
    hidden[list(cells)] = True
    size = side // CELLS
    return hidden.view(CELLS, CELLS).repeat_interleave(size, dim=0).repeat_interleave(size, dim=1)


def find_puzzles(classifier: Classifier, test, misclassified: Tensor, fill: Tensor) -> list[dict]:
    """Return mistakes to take apart: what the network answers with one or two of the 4x4 squares covered.

    Of a seeded order of the misclassified images, int64 [M], the first 15 that some of COVERS turn to the
    truth and the first 5 that none does, mixed, after at most 60 were examined. Of each `index` in the test
    set, and of each of COVERS the three likeliest `classes` and their `probabilities`, int64 and float32
    [137, 3]; `best`, the place in COVERS of the surest true answer or None, `by_map`, that of the two squares
    that the contrastive map marks most, None without maps, and `random`, the share of pairs that make it
    true. `hidden` bool [137, 32, 32] is where COVERS lie.
    """
    hidden = torch.stack([cells_hidden(cells) for cells in COVERS])
    order = torch.randperm(len(misclassified), generator=Generator().manual_seed(1))[:MAX_EXAMINED]
    puzzles, left = [], {True: NUM_TURNED, False: NUM_FIRM}
    for i in misclassified[order].tolist():
        if not any(left.values()):
            break
        images, truth = (test.images[i] / 255).expand(len(COVERS), -1, -1, -1), test.labels[i]
        classes, probabilities = answers_to(classifier, images, hidden, fill)
        right = classes[:, 0] == truth
        turned = bool(right.any())
        if left[turned]:
            left[turned] -= 1
            puzzle = {"index": i, "classes": classes, "probabilities": probabilities, "hidden": hidden}
            puzzle["best"] = int((right * probabilities[:, 0]).argmax()) if turned else None
            puzzle["by_map"] = choice_of_map(classifier, images[:1], classes[:1, 0], truth[None])
            puzzle["random"] = right[-math.comb(CELLS**2, 2) :].double().mean().item()
            puzzles.append(puzzle)
    return puzzles


def stack_puzzles(puzzles: list[dict]) -> dict:
    """Return the puzzles of find_puzzles as the arrays of evidence.npz, P of each, with -1 for None.

    `covers`, int64 [137, 2], are the COVERS, with -1 for no cell.
    """
    stacked = {"puzzles": torch.tensor([puzzle["index"] for puzzle in puzzles])}
    for key in ("classes", "probabilities"):
        stacked[f"puzzle_{key}"] = torch.stack([puzzle[key] for puzzle in puzzles])
    for key in ("best", "by_map"):
        places = [-1 if puzzle[key] is None else puzzle[key] for puzzle in puzzles]
        stacked[f"puzzle_{key}"] = torch.tensor(places)
    stacked["puzzle_random"] = torch.tensor([puzzle["random"] for puzzle in puzzles], dtype=torch.float64)
    stacked["covers"] = torch.tensor([(*cells, -1, -1)[:2] for cells in COVERS])
    return stacked


def choice_of_map(classifier: Classifier, image: Tensor, answer: Tensor, truth: Tensor) -> int | None:
    """Return the place in COVERS of the two squares that the map of answer rather than truth marks most."""
    if classifier.layer is None:
        return None
    (map,) = classifier.contrast(image, [(answer, truth)])
    cells = F.adaptive_avg_pool2d(F.interpolate(map[:, None], 32, mode="bilinear"), CELLS).flatten()
    return COVERS.index(tuple(sorted(cells.topk(2).indices.tolist())))


# ---- Are maps those of this network, and do they point at the object? -----------------------------------


def measure_random_weights(classifier: Classifier, images: Tensor, classes: Tensor) -> dict:
    """Compare the maps with those of the same network with random weights, and with another image's map.

    A map that stays when the network forgets what it has learned does not explain it: Adebayo et al., "Sanity
    Checks for Saliency Maps", 2018 (arXiv 1810.03292), section 3. images float32 [N, 3, 32, 32] in [0, 1];
    classes int64 [N]. Returns the mean |rank correlation| over the images, the mean, lowest and highest over
    five random networks; None where all maps are constant.
    """
    images, classes = images[:NUM_RANDOMIZED], classes[:NUM_RANDOMIZED]
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
    a, b = (metrics.mean_ranks(x.contiguous()) - (x.shape[1] + 1) / 2 for x in (a, b))
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


def measure_pointing(classifier: Classifier, test, y_pred: Tensor) -> dict:
    """Return how often the maximum of a map falls on the object, of the usual map and of controls.

    test: a data.Dataset with masks; y_pred int64 [N]; see metrics.pointing_game.
    """
    generator = Generator().manual_seed(0)
    sample = torch.randperm(len(test.labels), generator=generator)[:NUM_POINTED]
    images, game = test.images[sample] / 255, {"images": len(sample)}
    with energy_of_passes(classifier) as energy:
        maps = classifier.explain(images, y_pred[sample])
    compared = {
        "gradcam": maps,
        "random": torch.rand(maps.shape, generator=generator),
        "centre": centre_maps(len(sample)),
        "other_image": maps.roll(1, 0),
        "activation": torch.cat(energy),
    }
    for name, of_images in compared.items():
        hits, game["chance"] = metrics.pointing_game(to_heatmap(of_images, 32), test.masks[sample])
        game[name] = metrics.proportion(hits, len(sample))
    return game


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


def colour_or_shape(test, y_pred: Tensor) -> dict[str, int] | None:
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

"""Attacks: small changes of an image that are chosen to make the network wrong, and checks of the attacks.

All functions take a model of images in [0, 1]. A network that wants normalised images is handed in together
with the normalisation, nn.Sequential(Normalize(), network), so that distances are those of the images.

All attacks are called alike, attack(model, images, labels, epsilon, generator), with the model on the images'
device, where the results are too, and in the mode in which it is to be attacked: the caller calls eval().
ATTACKS says which ones are made, at which epsilons and of which images.
"""

import functools
import math
from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Generator, Tensor, nn

from .corruptions import random_sign, spawn, uniform

EPSILONS = (0.25, 0.5, 1, 2, 4, 8, 64)  # in 1/255; at the last one a sound attack leaves no image right
PGD_STEPS, APGD_STEPS = 10, 20
MORE_STEPS, MORE_STEPS_EPSILON = 100, 1  # another PGD of so many steps, on the images that survive it there
TWO_POINTS = 0.02 + 1e-9  # of accuracy; 0.34 - 0.32 is a little more than 0.02 in floating point
APGD_EPSILONS = (0.5, 1, 2)  # some images survive PGD there

cross_entropy = functools.partial(F.cross_entropy, reduction="none")  # one number for each image


def dlr_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Return the difference of logits ratio of logits z [N, C] and labels y int64 [N], float [N].

        DLR(z, y) = (max_{i != y} z_i - z_y) / (z_1st - z_3rd),   the largest and third largest logit

    Its gradient does not vanish where the network is sure, as that of the cross-entropy does. Raises
    ValueError for fewer than three classes. Source: Croce and Hein 2020 (arXiv 2003.01690), equation 6.
    """
    if logits.shape[1] < 3:
        raise ValueError(f"the DLR loss needs logits of at least 3 classes, not {logits.shape[1]}")
    largest = logits.topk(3, dim=1).values
    right = logits.gather(1, labels[:, None])[:, 0]
    best_wrong = logits.scatter(1, labels[:, None], -math.inf).amax(dim=1)
    return (best_wrong - right) / (largest[:, 0] - largest[:, 2] + 1e-12)


class NoGradientError(ValueError):
    """No gradient of a model's scores reaches the images, so it cannot be attacked in this way."""


def attack_step(
    model: nn.Module, loss_of: Callable, images: Tensor, labels: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the loss [N], whether each image is misclassified, bool [N], and the loss's gradient.

    Raises NoGradientError if there is none, for instance if the model works inside torch.no_grad(), or if
    torch cannot compute it.
    """
    gradient = None
    with torch.enable_grad():
        images = images.detach().requires_grad_()
        logits = model(images).float()
        loss = loss_of(logits, labels)
        if loss.requires_grad:  # grad leaves nothing in the parameters' .grad
            try:
                (gradient,) = torch.autograd.grad(loss.sum(), images, allow_unused=True)
            except RuntimeError as error:  # reentrant checkpoints allow backward() only
                raise NoGradientError(f"the gradient cannot be computed: {error}") from error
    if gradient is None:
        raise NoGradientError("no gradient of the scores reaches the images, which attacks need")
    return loss.detach(), logits.argmax(dim=1) != labels, gradient


def per_image(values: Tensor) -> Tensor:
    """Return one value for each image, [N], as [N, 1, 1, 1]."""
    return values[:, None, None, None]


def linf_ball(images: Tensor, epsilon: float) -> tuple[Tensor, Tensor]:
    """Return the lowest and the highest images within epsilon of `images` and within [0, 1]."""
    return (images - epsilon).clamp(min=0), (images + epsilon).clamp(max=1)


def random_corner(
    model: nn.Module, images: Tensor, labels: Tensor, epsilon: float, generator: Generator
) -> Tensor:
    """Change every value by epsilon, up or down at random, clipped to [0, 1]: a control, and no attack.

    Arguments and result as in fgsm; it asks neither the model nor the labels.
    """
    low, high = linf_ball(images, epsilon)
    sign = random_sign(spawn(generator, len(images)), *images.shape[1:])
    return (images + epsilon * sign.to(images)).clamp(low, high)


def fgsm(
    model: nn.Module, images: Tensor, labels: Tensor, epsilon: float, generator: Generator | None = None
) -> Tensor:
    """Fast gradient sign method: x' = x + epsilon sign(grad_x J(x, y)), clipped to [0, 1].

    images float32 [N, 3, H, W] in [0, 1], labels int64 [N], epsilon in the units of images. Returns images of
    the same shape, at most epsilon away in every value; draws nothing from generator. Source: Goodfellow,
    Shlens and Szegedy 2015 (arXiv 1412.6572), section 4.
    """
    low, high = linf_ball(images, epsilon)
    _, _, gradient = attack_step(model, cross_entropy, images, labels.to(images.device))
    return (images + epsilon * gradient.sign()).clamp(low, high)


class Strongest:
    """The strongest point that an attack has seen of each image.

    It is a misclassified one if there is any, and among those the one with the largest loss.
    """

    def __init__(self, images: Tensor):
        self.images = images.clone()
        self.loss = torch.full((len(images),), -math.inf, device=images.device)
        self.fooled = torch.zeros(len(images), dtype=torch.bool, device=images.device)

    def see(self, index: Tensor, x: Tensor, loss: Tensor, wrong: Tensor) -> None:
        """Keep those of the points x of the images `index`, int64 [M], that are stronger than what is kept.

        loss float32 [M], and wrong, bool [M], whether they are misclassified: see attack_step.
        """
        newly_fooled = wrong & ~self.fooled[index]
        larger_loss = (wrong == self.fooled[index]) & (loss > self.loss[index])
        stronger = newly_fooled | larger_loss
        self.images[index] = torch.where(per_image(stronger), x, self.images[index])
        self.loss[index] = torch.where(stronger, loss, self.loss[index])
        self.fooled[index] |= wrong

    def left(self) -> Tensor:
        """Return the indices, int64 [M], of the images that are still classified correctly."""
        return (~self.fooled).nonzero()[:, 0]


def random_start(images: Tensor, epsilon: float, generators: list[Generator]) -> Tensor:
    """Return a random point within epsilon of each image; as in corruptions.py each has its own generator."""
    low, high = linf_ball(images, epsilon)
    noise = uniform(generators, -1, 1, *images.shape[1:]).to(images.device)
    return (images + epsilon * noise).clamp(low, high)


def pgd(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    epsilon: float,
    generator: Generator,
    steps: int = PGD_STEPS,
    restarts: int = 1,
    until_fooled: bool = False,
) -> Tensor:
    """Projected gradient descent on the negative loss, within epsilon of the images in every value.

        x_{t+1} = Proj( x_t + a sign(grad_x J(x_t, y)) ),   x_0 uniform in the ball,   a = 2.5 epsilon / steps

    The projection onto the ball and [0, 1] is a clamp; a is large enough to reach every point of the ball
    from any start. Returns the strongest of all points visited, see Strongest. A restart works only on the
    images that are still classified correctly; with until_fooled an image moves no further once it is
    misclassified, which is enough to count them. Arguments and result as in fgsm. Source: Madry et al. 2018
    (arXiv 1706.06083), section 2.1; the step is that of its section 5.
    """
    labels = labels.to(images.device)
    low, high = linf_ball(images, epsilon)
    step_size = 2.5 * epsilon / steps
    strongest, generators = Strongest(images), spawn(generator, len(images))
    for _ in range(restarts):
        index = strongest.left()
        x = random_start(images, epsilon, generators)[index]
        for _ in range(steps + 1):
            if len(index) == 0:
                return strongest.images
            loss, wrong, gradient = attack_step(model, cross_entropy, x, labels[index])
            strongest.see(index, x, loss, wrong)
            x = (x + step_size * gradient.sign()).clamp(low[index], high[index])
            if until_fooled:
                index, x = index[~wrong], x[~wrong]
    return strongest.images


def apgd(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    epsilon: float,
    generator: Generator,
    steps: int = APGD_STEPS,
    restarts: int = 1,
    loss: str = "ce",
) -> Tensor:
    """Auto-PGD: projected gradient descent with momentum that finds the length of its steps by itself.

    Returns the strongest of all points visited; each restart follows apgd_path on the images that are still
    classified correctly. Its f is the cross-entropy, "ce", or the difference of logits ratio, "dlr".
    Arguments and result as in pgd. Source: Croce and Hein 2020 (arXiv 2003.01690), algorithm 1.
    """
    labels = labels.to(images.device)
    f = {"ce": cross_entropy, "dlr": dlr_loss}[loss]
    strongest, generators = Strongest(images), spawn(generator, len(images))
    for _ in range(restarts):
        index = strongest.left()
        if len(index) == 0:
            break
        start = random_start(images, epsilon, generators)[index]
        apgd_path(model, f, start, images[index], labels[index], epsilon, steps, strongest, index)
    return strongest.images


def apgd_path(
    model: nn.Module,
    f: Callable,
    x: Tensor,
    images: Tensor,
    labels: Tensor,
    epsilon: float,
    steps: int,
    strongest: Strongest,
    index: Tensor,
) -> None:
    """Follow APGD from x on, within epsilon of the images, and show `strongest` each point as one of `index`.

        z_{k+1} = Proj( x_k + a sign(grad_x f(x_k)) )
        x_{k+1} = Proj( x_k + 0.75 (z_{k+1} - x_k) + 0.25 (x_k - x_{k-1}) ),   x_1 = z_1

    The step a begins at 2 epsilon. At each of step_checks it is halved for the images whose f rose in less
    than 75 % of the steps since the last check, or that kept both a and their largest f since then; these go
    back to their point of largest f.
    """
    low, high = linf_ball(images, epsilon)
    loss, wrong, gradient = attack_step(model, f, x, labels)
    strongest.see(index, x, loss, wrong)
    previous_x = x
    best_x, best_loss, best_gradient = x, loss, gradient  # where the loss was largest, image by image
    step_size = torch.full_like(loss, 2 * epsilon)
    halved = torch.zeros_like(loss, dtype=torch.bool)
    rises = torch.zeros_like(loss)  # since the last check
    last_check, loss_at_check = 0, loss
    checks = step_checks(steps)
    for step in range(1, steps + 1):
        z = (x + per_image(step_size) * gradient.sign()).clamp(low, high)
        if step > 1:
            z = (x + 0.75 * (z - x) + 0.25 * (x - previous_x)).clamp(low, high)
        previous_x, x, previous_loss = x, z, loss
        loss, wrong, gradient = attack_step(model, f, x, labels)
        strongest.see(index, x, loss, wrong)
        rises += loss > previous_loss
        better = loss > best_loss
        best_loss = torch.where(better, loss, best_loss)
        best_x = torch.where(per_image(better), x, best_x)
        best_gradient = torch.where(per_image(better), gradient, best_gradient)
        if step in checks:
            few_rises = rises < 0.75 * (step - last_check)
            stuck = ~halved & (best_loss == loss_at_check)
            halved = few_rises | stuck
            step_size = torch.where(halved, step_size / 2, step_size)
            loss = torch.where(halved, best_loss, loss)
            x = torch.where(per_image(halved), best_x, x)
            gradient = torch.where(per_image(halved), best_gradient, gradient)
            last_check, loss_at_check = step, best_loss
            rises = torch.zeros_like(rises)


def step_checks(steps: int) -> list[int]:
    """Return after how many of the steps APGD checks its progress: the w_j of Croce and Hein, section 3.

    w_j = ceil(p_j steps), p_0 = 0, p_1 = 0.22, p_{j+1} = p_j + max(p_j - p_{j-1} - 0.03, 0.06), up to 1.
    """
    percent = [0, 22]
    while percent[-1] <= 100:
        percent.append(percent[-1] + max(percent[-1] - percent[-2] - 3, 6))
    return [math.ceil(p * steps / 100) for p in percent[:-1]]


class Attack(NamedTuple):
    """One row of the table: call function(model, images, labels, epsilon / 255, generator, **settings)."""

    function: Callable[..., Tensor]
    settings: dict
    epsilons: tuple[float, ...]  # at which it is made, in 1/255
    survivors_of: tuple[str, ...] = ()  # it attacks only images that these leave right at the same epsilon


BEFORE_APGD = ("fgsm", "pgd", "pgd_more_steps")  # APGD is slow, so it comes last
# Every attack takes only images that are right without one.
ATTACKS = {
    "fgsm": Attack(fgsm, {}, EPSILONS),
    "pgd": Attack(pgd, {"restarts": 2, "until_fooled": True}, EPSILONS),
    "pgd_more_steps": Attack(
        pgd, {"steps": MORE_STEPS, "until_fooled": True}, (MORE_STEPS_EPSILON,), ("pgd",)
    ),
    "apgd_ce": Attack(apgd, {"loss": "ce"}, APGD_EPSILONS, BEFORE_APGD),
    "apgd_dlr": Attack(apgd, {"loss": "dlr"}, APGD_EPSILONS, (*BEFORE_APGD, "apgd_ce")),
}


def check_attacks(accuracy: dict[str, float]) -> list[dict]:
    """Look for signs that the attack is weak rather than the network robust.

    accuracy holds that without an attack, "unattacked/0", that under each attack at each of its epsilons,
    such as "pgd/0.25", and that under random signs, "random/0.25", all of the same images. Returns one dict
    for each check: name, passed, and detail with the numbers. Source: Athalye, Carlini and Wagner 2018 (arXiv
    1802.00420), section 3.1; Carlini et al. 2019 (arXiv 1902.06705),
    "basic sanity tests".
    """
    under = {name: [accuracy[f"{name}/{e:g}"] for e in EPSILONS] for name in ("fgsm", "pgd", "random")}
    few_steps = accuracy[f"pgd/{MORE_STEPS_EPSILON:g}"]
    more_steps = accuracy[f"pgd_more_steps/{MORE_STEPS_EPSILON:g}"]
    smaller_epsilon = [accuracy["unattacked/0"], *under["pgd"][:-1]]
    limits = {  # that the accuracy under PGD may not exceed by more than a margin, one for each epsilon
        # Not asked of FGSM: its one long step may end where the gradient no longer describes the loss.
        "a larger epsilon does not raise the accuracy under PGD": (smaller_epsilon, 0.0),
        # Of two attacks the weaker one may be lucky with an image or two.
        "PGD leaves at most 2 points more than FGSM": (under["fgsm"], TWO_POINTS),
        "PGD is at least as strong as random noise": (under["random"], 0.0),
    }
    checks = []
    for name, (highest, margin) in limits.items():
        points = zip(EPSILONS, under["pgd"], highest, strict=True)
        above = [f"{e:g}/255: {100 * a:.1f} % > {100 * b:.1f} %" for e, a, b in points if a - b > margin]
        checks.append((name, not above, "; ".join(above) or "at every epsilon"))
    last = under["pgd"][-1]
    left = f"{100 * last:.1f} % at {EPSILONS[-1]:g}/255"
    checks.append(("a large epsilon brings the accuracy to zero", last == 0, left))
    left = f"at {MORE_STEPS_EPSILON:g}/255 {PGD_STEPS} steps leave {100 * few_steps:.1f} %"
    left += f", {MORE_STEPS} steps from another start {100 * more_steps:.1f} %"
    checks.append(("more steps of PGD take at most 2 points", few_steps - more_steps <= TWO_POINTS, left))
    return [{"name": name, "passed": passed, "detail": detail} for name, passed, detail in checks]

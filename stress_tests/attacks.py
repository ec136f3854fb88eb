"""Attacks: small changes of an image that are chosen to make the network wrong, and checks of the attacks.

All functions take a model of images in [0, 1]. A network that wants normalised images is handed in together
with the normalisation, nn.Sequential(Normalize(), network), so that distances are those of the images.
"""

import contextlib
import math
from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Generator, Tensor, nn

from .corruptions import random_sign, spawn, uniform

RADII = (0.25, 0.5, 1, 2, 4, 8, 64)  # in 1/255; at the last one a sound attack leaves no image right
PGD_STEPS = 10
PGD_RESTARTS = 2
MORE_STEPS_RADIUS = 1  # one of RADII at which some images survive: there PGD runs again with twice the steps


@contextlib.contextmanager
def evaluating(model: nn.Module) -> Iterator[torch.device]:
    """Run a block with the model in eval mode and in full float32, then restore the modes of its modules.

    Yields the model's device.
    """
    modes = {module: module.training for module in model.modules()}
    device = next(model.parameters()).device
    try:
        tf32_off = torch.backends.cudnn.flags(enabled=True, allow_tf32=False)
        with torch.autocast(device.type, enabled=False), tf32_off:
            model.eval()
            yield device
    finally:
        for module, mode in modes.items():
            module.training = mode


def attack_step(model: nn.Module, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return the loss [N], whether each image is misclassified, bool [N], and the loss's gradient."""
    with torch.enable_grad():
        images = images.detach().requires_grad_()
        logits = model(images)
        loss = F.cross_entropy(logits, labels, reduction="none")
        # Only the images' gradient is asked for: nothing is left in the parameters' .grad.
        (gradient,) = torch.autograd.grad(loss.sum(), images)
    return loss.detach(), logits.argmax(dim=1) != labels, gradient


def ball(images: Tensor, epsilon: float) -> tuple[Tensor, Tensor]:
    """Return the lowest and highest float32 images within epsilon of `images` and within [0, 1], exactly.

    Computed in float64 on the CPU, because not every device has float64; the results are on the images'
    device.
    """
    device, images = images.device, images.cpu()
    exact_low, exact_high = images.double() - epsilon, images.double() + epsilon
    low, high = exact_low.float(), exact_high.float()
    # Rounding to float32 may have stepped out of the ball; the next number inwards is inside.
    low = torch.where(low.double() < exact_low, low.nextafter(torch.tensor(2.0)), low)
    high = torch.where(high.double() > exact_high, high.nextafter(torch.tensor(-1.0)), high)
    return low.clamp(min=0).to(device), high.clamp(max=1).to(device)


def fgsm(model: nn.Module, images: Tensor, labels: Tensor, epsilon: float) -> Tensor:
    """Fast gradient sign method: x' = x + epsilon sign(grad_x J(x, y)), clipped to [0, 1].

    images float32 [N, 3, H, W] in [0, 1], labels int64 [N], epsilon in the images' units. Returns images of
    the same shape, at most epsilon away in every value, on the model's device. Source: Goodfellow, Shlens and
    Szegedy 2015 (arXiv 1412.6572), section 4.
    """
    with evaluating(model) as device:
        images, labels = images.to(device), labels.to(device)
        gradient = attack_step(model, images, labels)[2]
        low, high = ball(images, epsilon)
        return (images + epsilon * gradient.sign()).clamp(low, high)


def pgd(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    epsilon: float,
    generator: Generator,
    steps: int = PGD_STEPS,
    restarts: int = 1,
) -> Tensor:
    """Projected gradient descent on the negative loss, within epsilon of the images in every value.

        x_{t+1} = Proj( x_t + a sign(grad_x J(x_t, y)) ),   x_0 uniform in the ball,   a = 2.5 epsilon / steps

    The projection onto the ball and [0, 1] is a clamp; a is large enough to reach every point of the ball
    from any start. Of all points visited the attack returns a misclassified one if there is any, and among
    those the one with the largest loss. A restart works only on the images that are still classified
    correctly. Arguments and result as in fgsm; as in corruptions.py, each image draws its starts from a
    generator of its own. Source: Madry et al. 2018 (arXiv 1706.06083), section 2.1; the step is that of its
    section 5.
    """
    with evaluating(model) as device:
        images, labels = images.to(device), labels.to(device)
        low, high = ball(images, epsilon)
        best, best_loss = images.clone(), torch.full((len(images),), -math.inf, device=device)
        fooled = torch.zeros(len(images), dtype=torch.bool, device=device)
        generators = spawn(generator, len(images))
        for _ in range(restarts):
            start = images + epsilon * uniform(generators, -1, 1, *images.shape[1:]).to(device)
            remaining = (~fooled).nonzero()[:, 0]
            if len(remaining) == 0:
                break
            x = start.clamp(low, high)[remaining]
            for step in range(steps + 1):
                loss, wrong, gradient = attack_step(model, x, labels[remaining])
                was_fooled = fooled[remaining]
                better = (wrong > was_fooled) | ((wrong == was_fooled) & (loss > best_loss[remaining]))
                best[remaining[better]], best_loss[remaining[better]] = x[better], loss[better]
                fooled[remaining[better]] = wrong[better]
                if step < steps:
                    x = (x + 2.5 * epsilon / steps * gradient.sign()).clamp(low[remaining], high[remaining])
        return best


def random_corner(images: Tensor, epsilon: float, generator: Generator) -> Tensor:
    """Change every value by epsilon, up or down at random, clipped to [0, 1]; attacks must do better."""
    low, high = ball(images, epsilon)
    sign = random_sign(spawn(generator, len(images)), *images.shape[1:])
    return (images + epsilon * sign.to(images)).clamp(low, high)


def higher_at(stronger: list[float], weaker: list[float]) -> str:
    """List the radii at which the attack that should be stronger leaves the higher accuracy."""
    return "; ".join(
        f"{radius:g}/255: {100 * a:.1f} % > {100 * b:.1f} %"
        for radius, a, b in zip(RADII, stronger, weaker, strict=True)
        if a > b
    )


def check_attacks(clean: float, attacks: dict[str, list[float]], more_steps: float) -> list[dict]:
    """Look for signs that the attack is weak rather than the network robust.

    clean is the accuracy without attack; attacks holds the accuracies at each of RADII under "fgsm", "pgd"
    and "random"; more_steps is that under PGD with twice the steps at MORE_STEPS_RADIUS. Returns one dict for
    each check: name, passed, and detail with the numbers. Source: Athalye, Carlini and Wagner 2018 (arXiv
    1802.00420), section 3.1; Carlini et al. 2019 (arXiv 1902.06705), "basic sanity tests".
    """
    pgd = attacks["pgd"]
    # Not asked of FGSM: its one long step may end where the gradient no longer describes the loss.
    rises = higher_at(pgd, [clean, *pgd[:-1]])
    loses_to_fgsm = higher_at(pgd, attacks["fgsm"])
    loses_to_noise = higher_at(pgd, attacks["random"])
    few_steps = pgd[RADII.index(MORE_STEPS_RADIUS)]
    at_last = f"{100 * pgd[-1]:.1f} % at {RADII[-1]:g}/255"
    with_steps = (
        f"{100 * few_steps:.1f} % with {PGD_STEPS}, {100 * more_steps:.1f} % with {2 * PGD_STEPS} steps "
        f"at {MORE_STEPS_RADIUS:g}/255"
    )
    everywhere = "at every radius"
    checks = [
        ("a larger radius does not raise the accuracy under PGD", not rises, rises or everywhere),
        ("PGD is at least as strong as FGSM", not loses_to_fgsm, loses_to_fgsm or everywhere),
        ("PGD is at least as strong as random noise", not loses_to_noise, loses_to_noise or everywhere),
        ("a large radius brings the accuracy to zero", pgd[-1] == 0, at_last),
        ("more steps do not weaken PGD", more_steps <= few_steps, with_steps),
    ]
    return [{"name": name, "passed": passed, "detail": detail} for name, passed, detail in checks]

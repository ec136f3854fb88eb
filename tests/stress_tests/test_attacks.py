import pytest
import torch
import torch.nn.functional as F
from networks import Linear, Small, Wavy, natural_images, seeded
from torch import nn

from data import MEAN, STD, Normalize
from stress_tests import attacks

IMAGES = natural_images(24)


def of_images(network: nn.Module) -> nn.Module:
    """The model of images in [0, 1] that attacks take."""
    return nn.Sequential(Normalize(), network)


def mean_loss(model: nn.Module, images: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        return F.cross_entropy(model.eval()(images), labels, reduction="none")


def test_fgsm_against_the_closed_form_of_a_linear_model():
    model, epsilon = of_images(Linear(5)), 4 / 255
    labels = torch.randint(0, 5, (len(IMAGES),), generator=seeded())
    attacked = attacks.fgsm(model, IMAGES, labels, epsilon)
    # d loss / d x = W^T (softmax(logits) - onehot) / std, in float64.
    weight = model[1].fc.weight.detach().double()
    std = torch.tensor(STD, dtype=torch.float64)[:, None, None]
    mean = torch.tensor(MEAN, dtype=torch.float64)[:, None, None]
    logits = ((IMAGES.double() - mean) / std).flatten(1) @ weight.T + model[1].fc.bias.detach().double()
    gradient = (logits.softmax(dim=1) - F.one_hot(labels, 5)) @ weight
    gradient = gradient.view_as(IMAGES) / std
    expected = (IMAGES.double() + epsilon * gradient.sign()).clamp(0, 1)
    clear = gradient.abs() > 1e-6  # elsewhere float32 may see the other sign
    assert clear.float().mean() > 0.99
    torch.testing.assert_close(attacked.double()[clear], expected[clear], atol=1e-6, rtol=0)


@pytest.mark.parametrize("epsilon", [0.25 / 255, 1 / 255, 8 / 255, 64 / 255])
def test_attacks_stay_in_their_ball_exactly(epsilon):
    images = torch.cat([IMAGES[:6], torch.rand(6, 3, 32, 32, generator=seeded())])
    images[0], images[1] = 0.0, 1.0
    labels = torch.arange(12) % 10
    model = of_images(Small())
    for attacked in (
        attacks.fgsm(model, images, labels, epsilon),
        attacks.pgd(model, images, labels, epsilon, seeded(), steps=5, restarts=2),
        attacks.random_corner(images, epsilon, seeded()),
    ):
        assert attacked.dtype == torch.float32 and attacked.shape == images.shape
        assert attacked.min() >= 0 and attacked.max() <= 1
        difference = (attacked.double() - images.double()).abs()
        assert difference.max() <= epsilon  # in float64, without tolerance
        assert difference.max() > 0.99 * epsilon  # and the radius is used
    low, high = attacks.ball(images, epsilon)
    inside = (images > epsilon) & (images < 1 - epsilon)
    torch.testing.assert_close(high[inside] - low[inside], torch.full_like(high[inside], 2 * epsilon))


def test_pgd_is_at_least_as_strong_as_fgsm():
    # Two classes and a linear model: the gradient has one sign everywhere, so FGSM is the worst case.
    model = of_images(Linear(2))
    labels = torch.arange(len(IMAGES)) % 2
    single = attacks.fgsm(model, IMAGES, labels, 2 / 255)
    iterated = attacks.pgd(model, IMAGES, labels, 2 / 255, seeded(), steps=10)
    torch.testing.assert_close(
        mean_loss(model, iterated, labels), mean_loss(model, single, labels), atol=1e-5, rtol=0
    )
    assert (mean_loss(model, iterated, labels) > mean_loss(model, IMAGES, labels)).all()
    small = of_images(Small())
    labels = small.eval()(IMAGES).argmax(dim=1)
    single = attacks.fgsm(small, IMAGES, labels, 8 / 255)
    iterated = attacks.pgd(small, IMAGES, labels, 8 / 255, seeded(), steps=20)
    assert (mean_loss(small, iterated, labels) >= mean_loss(small, single, labels) - 1e-4).all()
    noise = attacks.random_corner(IMAGES, 8 / 255, seeded())
    assert mean_loss(small, noise, labels).mean() < mean_loss(small, single, labels).mean()


def test_pgd_fools_exactly_the_images_within_reach_and_restarts_only_the_others():
    # Two classes, a linear model: fooled if and only if the margin is below epsilon times the L1 norm of the
    # difference of the weights. Images away from 0 and 1, so that only the ball limits the attack.
    model, images = of_images(Linear(2)), 0.25 + 0.5 * IMAGES
    logits = model(images).detach()
    labels, margin = logits.argmax(dim=1), (logits[:, 0] - logits[:, 1]).abs()
    weight = (model[1].fc.weight[0] - model[1].fc.weight[1]).detach().view(3, 32, 32)
    reach = (weight / torch.tensor(STD)[:, None, None]).abs().sum()
    epsilon = (margin.sort().values[11:13].mean() / reach).item()
    attacked = attacks.pgd(model, images, labels, epsilon, seeded(), steps=10, restarts=3)
    fooled = model(attacked).argmax(dim=1) != labels
    assert torch.equal(fooled, margin < epsilon * reach) and fooled.sum() == 12
    seen = []
    model.register_forward_hook(lambda module, inputs, output: seen.append(len(output)))
    attacks.pgd(model, images, labels, epsilon, seeded(), steps=10, restarts=3)
    assert seen == 11 * [24] + 22 * [12]


def test_pgd_returns_the_worst_point_it_visited():
    model, images = of_images(Wavy(10)), IMAGES[:8]
    # Labels that are wrong from the start, so that only the loss counts.
    labels = (model(images).argmax(dim=1) + 1) % 10
    seen = []
    handle = model.register_forward_hook(lambda module, inputs, output: seen.append(output.detach()))
    attacked = attacks.pgd(model, images, labels, 8 / 255, seeded(), steps=6)
    handle.remove()
    visited = torch.stack([F.cross_entropy(logits, labels, reduction="none") for logits in seen])
    worst = visited.argmax(dim=0)
    assert len(visited) == 7 and (worst > 0).any() and (worst < 6).any()
    torch.testing.assert_close(mean_loss(model, attacked, labels), visited.amax(dim=0))


def test_attacks_are_the_same_in_a_batch_as_alone_and_leave_the_model_alone():
    model = of_images(Small())
    model.train()
    model[1].bn1.eval()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    labels = torch.arange(6)
    together = attacks.pgd(model, IMAGES[:6], labels, 4 / 255, seeded(), steps=3, restarts=2)
    generator = seeded()
    alone = [
        attacks.pgd(model, IMAGES[i : i + 1], labels[i : i + 1], 4 / 255, generator, steps=3, restarts=2)
        for i in range(6)
    ]
    # A gradient of about zero may change its sign with the order of summation, so not every pixel must agree.
    assert ((together - torch.cat(alone)).abs() < 1e-6).float().mean() > 0.999
    with torch.no_grad():  # gradients are on where they are needed, whatever surrounds the call
        assert not torch.equal(attacks.fgsm(model, IMAGES[:6], labels, 4 / 255), IMAGES[:6])
    assert all(parameter.grad is None for parameter in model.parameters())
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    assert model.training and model[1].fc.training and not model[1].bn1.training


def test_the_checks_find_a_weak_attack():
    n = len(attacks.RADII)
    falling = [0.6 - 0.1 * i for i in range(n - 1)] + [0.0]
    good = {"fgsm": [v + 0.01 for v in falling], "pgd": falling, "random": [0.7] * n}
    where = attacks.RADII.index(attacks.MORE_STEPS_RADIUS)

    def failed(clean=0.7, more_steps=falling[where], **changed):
        checks = attacks.check_attacks(clean, good | changed, more_steps)
        assert len(checks) == 5 and all(check["detail"] for check in checks)
        return [i for i, check in enumerate(checks) if not check["passed"]]

    def with_value(values, i, value):
        return [*values[:i], value, *values[i + 1 :]]

    assert failed() == []
    assert failed(clean=0.55) == [0]
    assert failed(pgd=with_value(falling, 4, 0.35), fgsm=[0.9] * n) == [0]
    assert failed(fgsm=with_value(good["fgsm"], 2, 0.1)) == [1]
    assert failed(random=with_value(good["random"], 3, 0.2)) == [2]
    assert failed(pgd=with_value(falling, n - 1, 0.01), fgsm=[0.9] * n) == [3]
    assert failed(more_steps=falling[where] + 0.01) == [4]

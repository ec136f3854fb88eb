"""attacks.py against a worked example, closed forms of linear models, and a slow APGD image by image."""

import math
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from lab_networks import Linear, Wavy, natural_images
from networks import seeded
from torch import nn

from data import STD, Normalize
from lab import attacks

IMAGES = natural_images(24)


def of_images(network: nn.Module) -> nn.Module:
    """The model of images in [0, 1] that attacks take."""
    return nn.Sequential(Normalize(), network)


def test_worked_example():
    """Two classes, told apart by red minus blue of one pixel: the attack takes red away and adds blue."""
    model = nn.Sequential(nn.Flatten(), nn.Linear(3, 2))
    model[1].load_state_dict({"weight": torch.tensor([[1.0, 0, -1], [-1, 0, 1]]), "bias": torch.zeros(2)})
    image = torch.tensor([0.6, 0.5, 0.4]).view(1, 3, 1, 1)  # logits 0.2 and -0.2: class 0
    expected = torch.tensor([0.45, 0.5, 0.55]).view(1, 3, 1, 1)  # logits -0.1 and 0.1: class 1
    label = torch.tensor([0])
    for attacked in (
        attacks.fgsm(model, image, label, 0.15),
        attacks.pgd(model, image, label, 0.15, seeded(), steps=4, restarts=3),
        attacks.apgd(model, image, label, 0.15, seeded(), steps=10),
    ):
        # Green does not matter, so PGD leaves it at random.
        assert (attacked - expected).abs()[:, [0, 2]].max() < 1e-6
        assert model(attacked).argmax() == 1
    assert torch.equal(attacks.fgsm(model, image, label, 0.15)[:, 1], image[:, 1])


@pytest.mark.parametrize("epsilon", [0.25 / 255, 64 / 255])
def test_attacks_stay_in_their_ball(epsilon):
    images = torch.cat([IMAGES[:6], torch.rand(6, 3, 32, 32, generator=seeded())])
    images[0], images[1] = 0.0, 1.0
    model, labels = of_images(Linear(10)), torch.arange(12) % 10
    for attacked in (
        attacks.fgsm(model, images, labels, epsilon),
        attacks.pgd(model, images, labels, epsilon, seeded(), steps=5, restarts=2),
        attacks.random_corner(model, images, labels, epsilon, seeded()),
        attacks.apgd(model, images, labels, epsilon, seeded(), steps=10, loss="ce"),
        attacks.apgd(model, images, labels, epsilon, seeded(), steps=10, loss="dlr"),
    ):
        assert attacked.dtype == torch.float32 and attacked.shape == images.shape
        assert attacked.min() >= 0 and attacked.max() <= 1
        difference = (attacked.double() - images.double()).abs()
        assert 0.99 * epsilon < difference.max() <= epsilon + 1e-7  # float32 rounds


@pytest.mark.parametrize("attack", [attacks.fgsm, attacks.pgd, attacks.apgd, attacks.random_corner])
def test_an_attack_under_no_grad_and_of_images_or_an_epsilon_in_bytes(attack):
    model, labels = of_images(Linear(10)), torch.zeros(2, dtype=torch.int64)
    with torch.no_grad():  # gradients are on where they are needed, and stay nowhere
        assert not torch.equal(attack(model, IMAGES[:2], labels, 4 / 255, seeded()), IMAGES[:2])
    assert all(parameter.grad is None for parameter in model.parameters())
    for images in (255 * IMAGES[:2], IMAGES[:2] - 0.5):
        with pytest.raises(ValueError, match=r"images must be in \[0, 1\], not from"):
            attack(model, images, labels, 8 / 255, seeded())
    with pytest.raises(ValueError, match=r"epsilon must be in \[0, 1\] .* not 8"):
        attack(model, IMAGES[:2], labels, 8, seeded())


class FrozenBody(Linear):
    """A body under no_grad, as of a feature extractor, behind which a trained layer follows."""

    def forward(self, x):
        with torch.no_grad():
            body = x.flatten(1).cos()
        return self.fc(body)


def test_where_no_gradient_reaches_the_images():
    frozen = FrozenBody(10)
    assert frozen(IMAGES[:2]).requires_grad  # because of its last layer
    for model in (frozen, torch.no_grad()(frozen)):
        with pytest.raises(ValueError, match="no gradient of the scores reaches the images"):
            attacks.fgsm(model, IMAGES[:2], torch.zeros(2, dtype=torch.int64), 0.1)


def test_noise_is_an_image_s_own():
    """Random signs of a batch are those of its images one by one, and half of them are up."""
    images, labels, generator = torch.full((6, 3, 32, 32), 0.5), torch.zeros(6), seeded(4)
    together = attacks.random_corner(None, images, labels, 0.25, seeded(4))
    alone = [attacks.random_corner(None, images[:1], labels, 0.25, generator) for _ in range(6)]
    assert torch.equal(together, torch.cat(alone)) and not torch.equal(together[0], together[1])
    assert set(together.unique().tolist()) == {0.25, 0.75}
    assert (together > 0.5).float().mean() == pytest.approx(0.5, abs=0.015)


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
    # Where it is enough to know who is fooled, each image moves until it is, and no other one is affected.
    seen.clear()
    stopped = attacks.pgd(model, images, labels, epsilon, seeded(), 10, 3, until_fooled=True)
    assert seen[0] == 24 and seen[:11] == sorted(seen[:11], reverse=True) and seen[11:] == 22 * [12]
    assert torch.equal(model(stopped).argmax(dim=1) != labels, fooled)
    assert torch.equal(stopped[~fooled], attacked[~fooled])


def test_the_strongest_point_by_hand():
    """Of each image a misclassified point beats any other, and among equals the larger loss."""
    strongest = attacks.Strongest(torch.zeros(3, 1, 1, 1))
    points = [  # index, x, loss, misclassified
        ([0, 1, 2], [1, 1, 1], [5, 1, 2], [False, True, False]),
        ([0, 1], [2, 2], [4, 9], [True, False]),  # a smaller loss, but wrong; a larger one, but right
        ([2, 0], [3, 3], [1, 4.5], [False, True]),
        ([0], [4], [9], [False]),
    ]
    for index, x, loss, wrong in points:
        x = torch.tensor(x).view(-1, 1, 1, 1).float()
        strongest.see(torch.tensor(index), x, torch.tensor(loss).float(), torch.tensor(wrong))
    assert strongest.images.flatten().tolist() == [3, 1, 1]
    assert strongest.fooled.tolist() == [True, True, False] and strongest.left().tolist() == [2]


def test_dlr_loss_by_hand():
    logits = torch.tensor([[4.0, 1.0, 3.0, -2.0]]).expand(3, 4)
    labels = torch.tensor([0, 2, 3])
    expected = torch.tensor([(3 - 4) / (4 - 1), (4 - 3) / (4 - 1), (4 + 2) / (4 - 1)])
    torch.testing.assert_close(attacks.dlr_loss(logits, labels), expected)
    # It depends neither on the scale nor on a shift of the logits.
    torch.testing.assert_close(attacks.dlr_loss(1000 * logits - 9000, labels), expected)
    with pytest.raises(ValueError, match="at least 3 classes, not 2"):
        attacks.dlr_loss(logits[:, :2], labels.clamp(max=1))


def test_the_checkpoints_of_apgd_are_those_of_the_paper():
    p, expected = [0.0, 0.22], []
    while p[-1] <= 1:
        expected.append(math.ceil(round(p[-1] * 1000, 6)))
        p.append(p[-1] + max(p[-1] - p[-2] - 0.03, 0.06))
    assert attacks.step_checks(1000) == [0, *expected] and expected[:3] == [220, 410, 570]
    assert attacks.step_checks(10) == [0, 3, 5, 6, 7, 8, 9, 10, 10]


def slow_apgd(model, image, label, start, epsilon, steps):
    """Algorithm 1 of Croce and Hein on one image, with numbers and lists; returns the points visited."""

    def f(x):
        x = x.detach().requires_grad_()
        loss = F.cross_entropy(model(x[None]), label[None])
        return loss.item(), torch.autograd.grad(loss, x)[0].sign()

    def project(x):
        return torch.maximum(torch.minimum(x, image + epsilon), image - epsilon).clamp(0, 1)

    loss, sign = f(start)
    x, before, best, best_loss = start, start, start, loss
    checks = attacks.step_checks(steps)
    eta, etas, bests, losses, rises, visited = 2 * epsilon, [2 * epsilon], [loss], [loss], [], [start]
    for k in range(1, steps + 1):
        z = project(x + eta * sign)
        before, x = x, z if k == 1 else project(x + 0.75 * (z - x) + 0.25 * (x - before))
        loss, sign = f(x)
        visited.append(x)
        rises.append(loss > losses[-1])
        if loss > best_loss:
            best, best_loss = x, loss
        losses.append(loss)
        bests.append(best_loss)
        etas.append(eta)
        if k in checks:
            last = max(w for w in checks if w < k)
            too_few = sum(rises[last:k]) < 0.75 * (k - last)
            stuck = etas[last] == etas[k] and bests[last] == bests[k]
            if too_few or stuck:
                eta, x, losses[-1], sign = eta / 2, best, best_loss, f(best)[1]
    return visited


@pytest.mark.parametrize(("epsilon", "steps"), [(8 / 255, 50), (16 / 255, 20)])
def test_apgd_against_a_slow_one(epsilon, steps):
    model, images = of_images(Wavy(10)).eval().double(), IMAGES[:6].double()  # rounding decides nothing
    labels = (model(images).argmax(dim=1) + 1) % 10  # wrong from the start, so that only the loss counts
    seen = []
    handle = model.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0].detach()))
    attacks.apgd(model, images, labels, epsilon, seeded(), steps=steps)
    handle.remove()
    assert len(seen) == steps + 1
    assert ((seen[0] - images).abs() > epsilon / 2).float().mean() > 0.4  # it starts anywhere in the ball
    halved = 0
    for i in range(6):
        expected = slow_apgd(model, images[i], labels[i], seen[0][i], epsilon, steps)
        for ours, theirs in zip(seen, expected, strict=True):
            assert ((ours[i] - theirs).abs() < 1e-5).float().mean() > 0.99
        halved += ((seen[-1][i] - images[i]).abs() < 0.9 * epsilon).float().mean() > 0.05
    assert halved > 0


FALLING = [0.6, 0.5, 0.4, 0.3, 0.2, 0.1, 0.0]  # at the seven epsilons
GOOD = {"fgsm": [v + 0.01 for v in FALLING], "pgd": FALLING, "random": [0.7] * 7, "clean": 0.7, "more": 0.4}


@pytest.mark.parametrize(
    ("changed", "failed"),
    [
        ({}, []),
        ({"clean": 0.55}, [0]),
        ({"pgd": [*FALLING[:4], 0.35, 0.1, 0.0], "fgsm": [0.9] * 7}, [0]),
        ({"fgsm": [0.61, 0.51, 0.38, *FALLING[3:]]}, []),  # an image of fifty
        ({"fgsm": [0.61, 0.51, 0.379, *FALLING[3:]]}, [1]),
        ({"random": [0.7, 0.7, 0.7, 0.2, 0.7, 0.7, 0.7]}, [2]),
        ({"pgd": [*FALLING[:-1], 0.01], "fgsm": [0.9] * 7}, [3]),
        ({"more": 0.37}, [4]),
    ],
)
def test_the_checks_find_a_weak_attack(changed, failed):
    values = GOOD | changed
    accuracy = {"unattacked/0": values["clean"], "pgd_more_steps/1": values["more"]}
    for name in ("fgsm", "pgd", "random"):
        accuracy |= {f"{name}/{e:g}": v for e, v in zip(attacks.EPSILONS, values[name], strict=True)}
    checks = attacks.check_attacks(accuracy)
    assert len(checks) == 5 and all(check["detail"] for check in checks)
    assert [i for i, check in enumerate(checks) if not check["passed"]] == failed


@pytest.mark.slow
def test_both_files_work_alone_in_another_project(tmp_path):
    folder = Path(attacks.__file__).parent
    for name in ("attacks.py", "corruptions.py"):
        shutil.copy(folder / name, tmp_path)
    program = """
import sys, torch, attacks, corruptions
model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3072, 5))
images, labels = torch.rand(2, 3, 32, 32), torch.tensor([0, 1])
corruptions.CORRUPTIONS["fog"](images, 3, torch.Generator())
attacks.apgd(model, images, labels, 0.01, torch.Generator(), steps=2)
print(*sys.modules)
"""
    done = subprocess.run(
        [sys.executable, "-Ic", f"import sys; sys.path.insert(0, '.'){program}"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
    )
    assert not set(done.stdout.split()) & {"lab", "data", "train", "report", "metrics", "matplotlib"}

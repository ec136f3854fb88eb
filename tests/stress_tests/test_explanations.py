"""explanations.py against a worked example, slow loops and closed forms."""

import math
from copy import deepcopy
from itertools import pairwise

import pytest
import torch
from networks import Linear, Small, natural_images, seeded
from torch import nn
from torchvision.models import VisionTransformer
from torchvision.transforms import InterpolationMode
from torchvision.transforms.functional import resize

from data import MEAN, STD, Normalize
from gradcam import GradCAM
from stress_tests import explanations
from stress_tests.corruptions import blur

IMAGES = natural_images(24)
FILL = torch.tensor(MEAN)


def test_worked_example():
    """A picture of 2 x 2 grey pixels; the logit of class 0 is their sum, that of class 1 is 0."""

    class Sum(nn.Module):
        def forward(self, images):
            total = images[:, 0].sum(dim=(1, 2))
            return torch.stack([total, torch.zeros_like(total)], dim=1)

    picture = torch.tensor([[0.1, 0.9], [0.4, 0.0]])
    images, black, label = picture.expand(1, 3, 2, 2), torch.zeros(3), torch.tensor([0])
    curves, areas = explanations.deletion_insertion(Sum(), images, picture[None], label, black, steps=4)
    # The largest pixel goes first: the sums are 1.4, 0.5, 0.1, 0 and 0.
    expected = [1 / (1 + math.exp(-total)) for total in (1.4, 0.5, 0.1, 0.0, 0.0)]
    assert curves[0].tolist() == pytest.approx(expected)
    assert areas.item() == pytest.approx(sum(expected) / 4 - (expected[0] + expected[4]) / 8)


@pytest.mark.parametrize("mode", ["deletion", "insertion"])
def test_deletion_and_insertion_against_a_loop(mode):
    network, images = Linear(4), IMAGES[:3]
    model = nn.Sequential(Normalize(), network)
    maps = torch.rand(3, 32, 32, generator=seeded())
    maps[0, :16] = 0.5  # ties
    classes = torch.tensor([0, 3, 1])
    curves, areas = explanations.deletion_insertion(model, images, maps, classes, FILL, steps=8, mode=mode)
    assert curves.shape == (3, 9)
    mean, std = (torch.tensor(v)[:, None, None] for v in (MEAN, STD))
    for n in range(3):
        blurred = blur(images[n : n + 1], 4.0)[0]
        start = images[n] if mode == "deletion" else blurred
        order = sorted(range(1024), key=lambda i: (-maps[n].flatten()[i].item(), i))
        expected = []
        for step in range(9):
            picture = start.clone()
            for i in order[: step * 128]:
                y, x = divmod(i, 32)
                picture[:, y, x] = mean[:, 0, 0] if mode == "deletion" else images[n, :, y, x]
            logits = network(((picture - mean) / std)[None])
            expected.append(logits.softmax(dim=1)[0, classes[n]].item())
        assert curves[n].tolist() == pytest.approx(expected, abs=1e-5)
        area = sum((a + b) / 2 / 8 for a, b in pairwise(expected))
        assert areas[n].item() == pytest.approx(area, abs=1e-5)


def test_what_does_not_fit_is_refused():
    maps, classes = IMAGES[:2, 0], torch.tensor([0, 1])
    for arguments, message in [
        ((maps, classes, FILL, 16, "both"), "mode"),
        ((maps[:, :4], classes, FILL), "maps"),
        ((maps, classes, FILL[:1]), "fill"),
    ]:
        with pytest.raises(ValueError, match=message):
            explanations.deletion_insertion(Linear(4), IMAGES[:2], *arguments)


def test_spearman_against_closed_forms():
    generator = seeded()
    a = torch.stack([torch.randperm(50, generator=generator) for _ in range(4)]).float()
    b = torch.stack([torch.randperm(50, generator=generator) for _ in range(4)]).float()
    # Without ties: 1 - 6 sum d^2 / (n (n^2 - 1)).
    expected = 1 - 6 * ((a - b) ** 2).sum(dim=1).double() / (50 * (50**2 - 1))
    torch.testing.assert_close(explanations.spearman(a, b), expected)
    torch.testing.assert_close(explanations.spearman(a, torch.exp(b / 9)), expected)  # only the order counts
    torch.testing.assert_close(explanations.spearman(a, -a), -torch.ones(4, dtype=torch.float64))
    assert explanations.spearman(torch.zeros(1, 4), torch.tensor([[0.0, 1, 2, 3]])).isnan().all()


def test_spearman_against_a_slow_loop_and_for_large_maps():
    values = torch.randint(0, 6, (4, 40), generator=seeded()).float()  # many ties
    for row, ranks in zip(values.tolist(), explanations.centred_ranks(values).tolist(), strict=True):
        order = sorted(row)
        mean_rank = {v: (2 * order.index(v) + 1 + order.count(v)) / 2 for v in row}  # counted from 1
        assert ranks == [mean_rank[v] - 41 / 2 for v in row]
    # Fifty maps of 56 x 56 pixels: all pairs of pixels would be half a billion numbers.
    large = torch.rand(50, 56 * 56, generator=seeded())
    torch.testing.assert_close(explanations.spearman(large, large), torch.ones(50, dtype=torch.float64))


def test_cover_against_a_loop():
    images = IMAGES[:4]
    maps = torch.rand(4, 4, 4, generator=seeded())
    maps[1] = maps[1].round()  # plateaus
    maps[2] = 0
    large = resize(maps, [32, 32], InterpolationMode.BILINEAR, antialias=False)
    for fill, others in (("mean", FILL[:, None, None].expand(4, 3, 32, 32)), ("blur", blur(images, 4.0))):
        covered = explanations.cover(images, maps, 0.3, fill, FILL)
        for n in range(4):
            order = sorted(range(1024), key=lambda i: (-large[n].flatten()[i].item(), i))
            expected = images[n].clone()
            for i in order[:307]:  # 0.3 x 1024 = 307.2
                y, x = divmod(i, 32)
                expected[:, y, x] = others[n, :, y, x]
            torch.testing.assert_close(covered[n], expected)
    assert torch.equal(explanations.cover(images, maps, 0.0, "blur"), images)
    for fill, mean in (("black", FILL), ("mean", None)):
        with pytest.raises(ValueError, match="fill"):
            explanations.cover(images, maps, 0.25, fill, mean)


def test_activation_energy_by_hand():
    activations = torch.tensor([[[[1.0, -2.0]], [[3.0, 0.5]]]])  # one image, two channels, 1 x 2 pixels
    energy = explanations.activation_energy(activations.double())
    assert energy.tolist() == [[[10.0, 4.25]]] and energy.dtype == torch.float32


def explain(model: nn.Module):
    """Return explain(images, classes) of this model, as cascading_randomization takes it."""

    def maps(images: torch.Tensor, classes: torch.Tensor) -> torch.Tensor:
        with GradCAM(model, "1.layer1") as cam:
            return cam(images, classes)

    return maps


def test_randomization_check_goes_down_from_the_classifier():
    model = nn.Sequential(Normalize(), Small())
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    random_state = torch.get_rng_state()
    modules = ["1.fc", "1.layer1", "1.bn1", "1.conv1"]
    checked = explanations.cascading_randomization(model, IMAGES, explain(model), modules, seed=3)
    correlations, of_another_image = checked
    assert torch.equal(torch.get_rng_state(), random_state)
    assert list(correlations) == modules
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    # At the first step nothing below the classifier has changed: the same by hand.
    changed = deepcopy(model)
    torch.manual_seed(3)
    changed[1].fc.reset_parameters()
    classes = model.eval()(IMAGES).argmax(dim=1)
    maps = [explain(network)(IMAGES, classes).flatten(1) for network in (model, changed)]
    torch.testing.assert_close(correlations["1.fc"], explanations.spearman(*maps), equal_nan=True)
    for i, rho in enumerate(of_another_image["1.fc"]):
        expected = explanations.spearman(maps[0][i - 1][None], maps[1][i][None])
        torch.testing.assert_close(rho, expected[0], equal_nan=True)


def test_each_step_keeps_what_the_steps_before_it_made_random():
    model, states = nn.Sequential(Normalize(), Small()).eval(), []
    before = {name: values.clone() for name, values in model.named_parameters()}
    predicted = model(IMAGES[:2]).argmax(dim=1)  # by the trained model, whatever the random one answers later
    model.train()

    def record(images, classes):
        assert not model.training and torch.equal(classes, predicted)
        states.append({name: values.clone() for name, values in model.named_parameters()})
        return images[:, 0]

    names = ["1.fc", "1.layer1", "1.conv1"]
    correlations, _ = explanations.cascading_randomization(model, IMAGES[:2], record, names)
    # These maps look at the images alone, so they do not change with the weights.
    torch.testing.assert_close(correlations["1.conv1"], torch.ones(2, dtype=torch.float64))
    assert len(states) == 4 and model.training
    for done, state in enumerate(states):
        changed = {name for name, values in before.items() if not torch.equal(values, state[name])}
        assert changed == {name for name in state if name.startswith(tuple(names[:done]))}


def test_random_weights_are_the_same_in_every_memory_format():
    contiguous = Small()
    channels_last = deepcopy(contiguous).to(memory_format=torch.channels_last)
    for model in (contiguous, channels_last):
        explanations.randomize(model, 5)
    assert channels_last.conv1.weight.is_contiguous(memory_format=torch.channels_last)
    torch.manual_seed(5)
    nn.init.kaiming_normal_(expected := torch.empty(8, 3, 3, 3), mode="fan_out", nonlinearity="relu")
    assert torch.equal(contiguous.conv1.weight, expected)
    for name, value in contiguous.state_dict().items():
        assert torch.equal(channels_last.state_dict()[name], value), name


def test_the_weights_come_back_if_something_fails():
    model = nn.Sequential(Normalize(), Small())
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(AttributeError, match="layer9"):
        explanations.cascading_randomization(model, IMAGES, explain(model), ["1.fc", "1.layer9"])
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    assert model.training


class Scaled(nn.Linear):
    """A linear layer with a parameter that its reset_parameters does not know."""

    def __init__(self):
        super().__init__(12, 12)
        self.gain = nn.Parameter(torch.zeros(12))


@pytest.mark.parametrize("transformer", [False, True])
def test_randomize_reaches_every_parameter(transformer):
    if transformer:
        network = VisionTransformer(8, 4, 2, 2, 12, 24, num_classes=5)
    else:
        network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.LayerNorm(12), Scaled(), Small())
        network[1].running_mean.fill_(7.0)
    for parameter in network.parameters():  # as if trained: nothing is at its start
        nn.init.normal_(parameter, 0.3, 0.1)
    trained = deepcopy(network)
    explanations.randomize(network, seed=0)
    for (name, old), new in zip(trained.named_parameters(), network.parameters(), strict=True):
        assert (old != new).all(), name
    if transformer:  # a bare parameter keeps its mean and its spread, as far as 60 draws have them
        old, new = trained.encoder.pos_embedding, network.encoder.pos_embedding
        assert abs(new.mean() - old.mean()) < 0.05 and 0.7 < new.std() / old.std() < 1.4
        assert (network.encoder.layers[0].self_attention.in_proj_bias == 0).all()  # as torch begins
    else:
        assert (network[1].running_mean == 0).all()


def test_randomize_seeds_no_device(monkeypatch):
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Linear(4, 2))

    def seed(*_):
        raise AssertionError("a generator of torch was seeded")

    for module in (torch, torch.cuda, torch.mps):
        monkeypatch.setattr(module, "manual_seed", seed)
    before = torch.get_rng_state()
    for module in (network, nn.ReLU()):  # the second has no weights, and nothing to do
        explanations.randomize(module, seed=0)
        assert torch.equal(torch.get_rng_state(), before)

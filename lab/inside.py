"""What is inside a network: a few passes say what it makes, which layer is explained, and what is unusual.

Each function takes a lab.classifier.Classifier, and look_inside fills in what that knows of its network.
"""

import contextlib

import torch
from torch import Generator, Tensor, nn
from torch.nn.modules.module import register_module_forward_hook

from lab import networks
from lab.layer import find_layer
from lab.predictions import kind_of
from lab.support import UserError, one_line


@torch.enable_grad()
def look_inside(classifier, layer: str | None) -> None:
    """Check the network by a few forward passes, count its parameters, and find its layer.

    layer as in find_layer. Raises UserError for a network that cannot be examined.
    """
    model = classifier.model
    names = {module: name for name, module in classifier.module.named_modules()}
    outputs = []  # (name, output) of every module, in the order in which they end
    projections = {}  # {name of a linear layer: name of the layer before it, or None}

    def note(module: nn.Module, inputs: tuple, output: object) -> None:
        if module not in names:
            return
        if isinstance(module, nn.Linear) and inputs:
            before = (name for name, output_before in reversed(outputs) if output_before is inputs[0])
            projections[names[module]] = next(before, None)
        outputs.append((names[module], output))

    images = noise(classifier, 2, seed=0).requires_grad_()
    try:
        with register_module_forward_hook(note):
            output = model.own_output(images)
    except Exception as error:
        raise UserError(why_refused(classifier, images, error)) from error
    outputs.pop()  # the network itself ends last
    logits = logits_in(classifier, output, images)
    model.makes_one_logit = output.numel() == 2  # for two images
    classifier.num_classes = logits.shape[1]
    classifier.parameters = sum(parameter.numel() for parameter in classifier.module.parameters())
    tensors = [output for _, output in outputs if isinstance(output, Tensor)]
    classifier.computes_in = networks.number_formats(classifier.module, tensors)
    classifier.largest_side = max((output.shape[2] for output in tensors if output.ndim == 4), default=0)
    try:
        chosen = find_layer(model, images, outputs, logits, layer, projections)
    except RuntimeError as error:  # such as that of reentrant checkpoints
        raise UserError(f"{classifier.name} cannot be differentiated: {one_line(error)}") from error
    classifier.layer, classifier.reshape, classifier.layer_note = chosen
    check_answers(classifier, logits)


def noise(classifier, count: int, seed: int) -> Tensor:
    """Return `count` images of noise in [0, 1], as large as the network takes them, on its device."""
    side = classifier.model.image_size
    return torch.rand(count, 3, side, side, generator=Generator().manual_seed(seed)).to(classifier.device)


# ---- What it makes -----------------------------------------------------------------------------------------


def wrapper(name: str, hook: str) -> str:
    """Return the advice to wrap the network that `name` makes, with the three lines to copy."""
    lines = f"def wrapped(): net = {name}(); net.register_forward_{hook}); return net"
    return f"put this beside it, and name it in its place: {lines}"


@torch.no_grad()
def why_refused(classifier, images: Tensor, error: Exception) -> str:
    """Return why a network does not take two images [2, 3, S, S], and what to do, for people."""
    name, shape = classifier.name, list(images.shape)
    try:
        classifier.module(images[:, :1])
    except Exception:
        advice = "for another size give --size"
        if any(isinstance(part, torch.fx.GraphModule) for part in classifier.module.modules()):
            advice = "if torch.export has fixed the batch give it dynamic_shapes"
        return f"{name} cannot take images {shape} ({one_line(error)}): {advice}"
    hook = "pre_hook(lambda module, inputs: inputs[0].mean(dim=1, keepdim=True)"
    return f"{name} takes images of one channel, not {shape}: {wrapper(name, hook)}"


def logits_in(classifier, output: object, images: Tensor) -> Tensor:
    """Return the logits [2, C] that are the network's output for two images.

    Raises UserError if they are not, with the place in the output where they seem to be.
    """
    name, kind, within = classifier.name, type(output).__name__, {}
    if isinstance(output, Tensor):
        kind = f"{output.dtype} {list(output.shape)}"
        if output.shape[2:] == (1, 1):
            within = {"output.flatten(1)": output.flatten(1)}
        elif output.is_floating_point():
            logits = classifier.model.as_logits(output, images)
            if logits.ndim == 2 and len(logits) == 2:
                check_logits(classifier, logits)
                return logits
    elif isinstance(output, dict):
        within = {f"output[{key!r}]": value for key, value in output.items()}
    elif isinstance(output, tuple | list):
        within = {f"output[{place}]": value for place, value in enumerate(output)}
    else:
        within = {f"output.{key}": value for key, value in vars(output).items()}
    advice = "wrap it in a module that returns them"
    for code, value in within.items():
        if isinstance(value, Tensor) and value.ndim == 2 and len(value) == 2:
            advice = wrapper(name, f"hook(lambda module, inputs, output: {code}")
            break
    raise UserError(f"{name} makes of 2 images {kind}, expected float logits [2, C]: {advice}")


def check_logits(classifier, logits: Tensor) -> None:
    """Raise UserError unless logits are finite, and as many as there are class names, if any."""
    if not logits.isfinite().all():
        raise UserError(f"{classifier.name} cannot be used: it makes logits that are not finite")
    if classifier.class_names is not None and len(classifier.class_names) != logits.shape[1]:
        raise UserError(
            f"{classifier.name} makes {logits.shape[1]} logits and has {len(classifier.class_names)} class "
            f"names: expected as many"
        )


# ---- What is unusual ---------------------------------------------------------------------------------------


@torch.no_grad()
def check_answers(classifier, logits: Tensor) -> None:
    """Add a note if the network answers at random, depends on other images, or makes probabilities."""
    model, notes = classifier.model, classifier.notes
    # Images of different brightness have different statistics.
    light = torch.tensor([1.0, 0.7, 0.4, 0.1], device=classifier.device).view(4, 1, 1, 1)
    images = light * noise(classifier, 4, seed=1)
    try:
        first, again = model(images), model(images)
        try:
            alone = model(images[:1])
        except ValueError:  # batch norm without running statistics refuses a single value
            alone = None
    except Exception as error:
        raise UserError(
            f"{classifier.name} takes two images, but not one or four ({one_line(error)}): squeeze() takes a "
            f"batch of one away, flatten(1) does not, and torch.export fixes the batch without dynamic_shapes"
        ) from error
    if not alike(first, again):
        notes.append("it answers at random, twice the same images and other logits: is dropout on?")
    elif alone is None or not alike(first[:1], alone):
        notes.append(
            "the answer depends on the other images of the batch: has batch norm no running statistics?"
        )
    outputs = torch.cat([logits, first])
    kind = kind_of(outputs)
    if model.makes_one_logit and makes_probabilities(model, images):
        model.ends_in_softmax = True
        classifier.output = "one probability, of the second of two classes"
        notes.append("the network makes one number from 0 to 1: it is the probability of the second class")
    elif model.makes_one_logit:
        classifier.output = "one logit z, as the two logits -z/2 and z/2"
        notes.append("the network makes one logit z: it is taken as two, [-z/2, z/2], of two classes")
    elif kind != "logits":
        model.ends_in_softmax = True
        classifier.output = f"{kind}, of which the logarithm is taken"
        notes.append(f"the network makes {kind}: their logarithms are taken as logits")
    elif ((outputs >= 0) & (outputs <= 1)).all():
        notes.append("all outputs lie in 0 to 1: are these probabilities? Logits are expected")


def makes_probabilities(model: nn.Module, images: Tensor) -> bool:
    """Return whether a network of one number makes those from 0 to 1 only.

    It is asked outside of [0, 1] as well, where a logit grows, and a probability does not.
    """
    numbers = [model.own_output(images).flatten()]
    for scale in (1e2, 1e4):
        with contextlib.suppress(Exception):  # some networks refuse such numbers
            numbers.append(model.own_output(scale * (images - 0.5)).flatten())
    numbers = torch.cat(numbers)
    numbers = numbers[numbers.isfinite()]
    return bool(((numbers >= 0) & (numbers <= 1)).all())


def alike(a: Tensor, b: Tensor) -> bool:
    """Return whether logits [N, C] are equal but for rounding."""
    return bool((a - b).abs().max() <= 1e-3 * (a.abs().max() + 1e-6))

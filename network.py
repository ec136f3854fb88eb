"""What is examined: a checkpoint of train.py or anybody's network, as one object.

Everything that comes from outside is read and checked here: load_checkpoint, load_model and from_module
return a Network, and nothing behind it asks where that came from. What is not known of it is None.
"""

import argparse
import functools
import hashlib
import importlib.util
import math
import sys
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.fx.experimental.optimization import fuse
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.modules.module import register_module_forward_hook
from torch.nn.parameter import is_lazy
from torch.utils.flop_counter import FlopCounterMode

from data import CLASS_NAMES, Dataset, Normalize, load, memory_format, resize
from gradcam import GradCAM, channels_last, tokens
from metrics import fit_temperature, temperature_of_equal_confidence
from resnet_cifar import resnet18
from running.console import Progress
from running.files import UserError, check_file, one_line, reading
from running.folder import best_checkpoint, newest_run, read_checkpoint, read_tensors, run_of
from stress_tests.attacks import eval_mode

# How the output of a layer may hold its cells, and what takes it to the first of these.
LAYOUTS = {"[N, K, h, w]": None, "[N, h, w, K]": channels_last, "tokens [N, T, K]": tokens}
BATCH_SIZE = 50  # images whose activations stay in the cache of a CPU


class FromPixels(nn.Module):
    """A network behind all that is done to an image before it: float images in [0, 1] to logits [N, C].

    Images larger than image_size, the side in pixels that the network was trained for, are resized to it.
    `order`, int64 [C], brings the logits into the order of the data set's classes.
    """

    def __init__(self, network: nn.Module, image_size: int = 32, normalize: nn.Module | None = None):
        super().__init__()
        self.network = network
        self.image_size = image_size
        self.normalize = normalize or nn.Identity()
        self.layout = torch.contiguous_format
        self.order = None

    def forward(self, images: Tensor) -> Tensor:
        x = self.normalize(resize(images, self.image_size))
        logits = self.network(x.contiguous(memory_format=self.layout))
        return logits if self.order is None else logits[:, self.order]


@dataclass
class Training:
    """What is known of how a network was trained."""

    settings: dict  # as the command line of train.py had them
    config: dict  # config.json: the settings, the data, versions and hardware
    epoch: int
    history: list[dict]  # a row for each epoch
    val_accuracy: float
    val_logits: Tensor | None = None  # float32 [N, C]
    val_labels: Tensor | None = None  # int64 [N]


@dataclass
class Network:
    """What is examined."""

    model: FromPixels  # float32 images [N, 3, 32, 32] in [0, 1] to logits [N, C], in eval mode, on the device
    device: torch.device
    name: str
    path: Path | None  # the file of its weights
    class_names: list[str] | None
    input: str  # what the network itself takes, for people
    digest: str = ""  # sha256 of the checkpoint, or see digest_of
    training: Training | None = None
    dataset: str | None = None  # what it was trained on
    # What look_inside finds. Layers are dotted names, or None if there is no such layer.
    layer: str | None = None  # that Grad-CAM explains
    reshape: Callable[[Tensor], Tensor] | None = None  # takes the output of the layer to [N, K, h, w]
    layer_note: str = ""  # how the layer was chosen, or why there is none
    classifier: str | None = None  # the linear layer that makes the logits
    num_classes: int = 0
    parameters: int = 0
    macs: int = 0  # multiply-accumulates of one image

    @property
    def module(self) -> nn.Module:
        """The network itself, without what stands before it."""
        return self.model.network

    @functools.cached_property
    def folded(self) -> FromPixels:
        """The model for logits without gradients, and for hooks on nothing but the classifier; see fold."""
        return fold(self)

    @functools.cached_property
    def temperature(self) -> float | None:
        """The temperature that fits the validation logits, see metrics.fit_temperature; None without them."""
        if self.training is None or self.training.val_logits is None:
            return None
        return fit_temperature(self.training.val_logits, self.training.val_labels)

    @functools.cached_property
    def temperature_of_equal_confidence(self) -> float | None:
        """The one that makes the mean confidence on the validation images equal to the accuracy there."""
        if self.temperature is None:
            return None
        return temperature_of_equal_confidence(self.training.val_logits, self.training.val_labels)

    def explain(self, images: Tensor, classes: Tensor, against: Tensor | None = None) -> Tensor:
        """Return the Grad-CAM maps of images in [0, 1] at the layer, float32 [N, h, w] on the CPU.

        images float32 [N, 3, 32, 32]; classes and against int64 [N], see gradcam.GradCAM.
        """
        return self.contrast(images, classes, against)[:, 0]

    def contrast(self, images: Tensor, classes: Tensor, against: Tensor | None) -> Tensor:
        """Return what speaks for classes rather than against, and the other way round, of each image.

        Arguments as in explain. Returns float32 [N, 2, h, w] on the CPU, both maps of one forward pass, see
        gradcam.GradCAM.pair.
        """
        maps = []
        with GradCAM(self.model, f"network.{self.layer}", self.reshape) as cam:
            for part in torch.arange(len(images)).split(BATCH_SIZE):
                other = None if against is None else against[part]
                pair = cam.pair(images[part].to(self.device), classes[part], other)
                maps.append(torch.stack(pair, dim=1).cpu())
        return torch.cat(maps)

    def features(self, images: Tensor, progress: Progress | None = None) -> tuple[Tensor, Tensor | None]:
        """Return the logits of uint8 images [N, 3, 32, 32], and by the same passes what makes them.

        Both on the CPU: logits float32 [N, C], see predict, and what goes into the classifier, float32
        [N, D], or None if there is no such layer.
        """
        if self.classifier is None:
            return predict(self.folded, images, self.device, progress=progress), None
        found = []

        def keep(classifier: nn.Module, inputs: tuple) -> None:
            # A copy: it may be a view of a much larger tensor, such as one token of many.
            found.append(inputs[0].flatten(1).float().cpu().clone())

        handle = self.folded.network.get_submodule(self.classifier).register_forward_pre_hook(keep)
        try:
            logits = predict(self.folded, images, self.device, progress=progress)
        finally:
            handle.remove()
        return logits, torch.cat(found)


@torch.inference_mode()
def predict(
    model: nn.Module,
    images: Tensor,
    device: torch.device,
    batch_size: int = BATCH_SIZE,
    progress: Progress | None = None,
) -> Tensor:
    """Return the logits of uint8 images [N, 3, 32, 32], float32 [N, C] on the CPU, computed in eval mode.

    model takes float32 images in [0, 1]. It computes in the precision of the caller: in a training inside
    running.device.autocast, in a report inside stress_tests.attacks.full_float32.
    """
    logits = []
    with eval_mode(model):
        for start in range(0, max(len(images), 1), batch_size):  # no images give logits [0, C]
            batch = images[start : start + batch_size].to(device)
            logits.append(model(batch.float() / 255).float())
            if progress:
                progress.update(min(start + batch_size, len(images)))
    return torch.cat(logits).cpu()


@torch.inference_mode(False)  # also for a caller in that mode, whose weights nothing else could use
@torch.no_grad()
def fold(network: Network) -> FromPixels:
    """Return a copy of the model in which each batch norm is part of the convolution before it: it is faster.

    In eval mode a batch norm multiplies and shifts each channel by constants: w' = w gamma / sqrt(var + eps),
    b' = (b - mean) gamma / sqrt(var + eps) + beta. Where the network has hooks or cannot be traced, or the
    copy does not run the classifier or has other logits on images of noise, the model itself is returned.
    """
    model, parts = network.model, list(network.model.modules())
    has_hooks = any(part._forward_hooks or part._forward_pre_hooks for part in parts)
    if has_hooks or not any(isinstance(part, nn.BatchNorm2d) for part in parts):
        return model
    images = torch.rand(4, 3, 32, 32, generator=torch.Generator().manual_seed(0)).to(network.device)
    try:
        with eval_mode(model):
            traced = fuse(model.network)
            folded = FromPixels(traced, model.image_size, model.normalize).eval()
            folded.layout, folded.order = model.layout, model.order
            expected = model(images)
            equal = (folded(images) - expected).abs().max() <= 1e-4 * expected.abs().max()
    except Exception:  # whatever a tracer, a copy or somebody's code stumbles over
        return model
    runs = {None, *(node.target for node in traced.graph.nodes)}
    return folded if equal and network.classifier in runs else model


# ---- From a file or from memory --------------------------------------------------------------------------


def load_checkpoint(path: Path | str, device: torch.device, layer: str | None = None) -> Network:
    """Return the network of a checkpoint of train.py, in float32; layer as in find_layer.

    Raises UserError if the file is damaged or incomplete, or its weights do not fit.
    """
    checkpoint = read_checkpoint(path)
    with reading(path, "a checkpoint of train.py"):
        config, state = checkpoint["config"], checkpoint["model"]
        width, image_size, dataset = config["width"], config["image_size"], config["dataset"]
        if image_size not in range(8, 33):
            raise ValueError(f"it says images of {image_size} pixels")
        class_names = [one_line(name) for name in checkpoint["class_names"]]
        training = Training(
            settings=config["settings"],
            config=config,
            epoch=checkpoint["epoch"],
            history=checkpoint["history"],
            val_accuracy=checkpoint["val_accuracy"],
        )
        if "val_logits" in checkpoint:
            training.val_logits = checkpoint["val_logits"].float()
            training.val_labels = checkpoint["val_labels"]
        with torch.device("meta"):  # without memory, as the file may claim any width
            module = resnet18(len(class_names), width)
        # A plain dict: in another one torch notes that it is to be assigned, also at a second loading.
        module.load_state_dict(dict(state), assign=True)
    model = FromPixels(module.float(), image_size, Normalize())
    model.layout = memory_format(device)
    network = Network(
        model=model.to(device, memory_format=model.layout).eval(),
        device=device,
        name=f"ResNet-18 of width {width}",
        path=Path(path),
        class_names=class_names,
        input=f"normalised, of {image_size}x{image_size} pixels",
        digest=checkpoint["sha256"],
        training=training,
        dataset=dataset,
    )
    return look_inside(network, layer)


def load_model(
    spec: str,
    weights: Path | str | None,
    mean: tuple | None,
    std: tuple | None,
    layer: str | None,
    class_names: list[str] | None,
    device: torch.device,
) -> Network:
    """Return the network that NAME() in FILE.py returns, where spec is "FILE.py:NAME", in float32.

    weights: a file with its state dict, also below "state_dict" or "model" and with "module." before the
    names. mean and std, three numbers each, normalise images in [0, 1]. class_names are those of the logits,
    in their order; layer as in find_layer. Raises UserError for what cannot be used.
    """
    file, _, name = spec.rpartition(":")
    if not file.endswith(".py") or not name:
        raise UserError(f"--model {spec}: expected FILE.py:NAME, where NAME() returns the network")
    check_file(file, "Python file")
    with reading(spec, "a network"):
        module = call_by_name(Path(file), name)
        if not isinstance(module, nn.Module):
            raise ValueError(f"it returns {type(module).__name__}, expected torch.nn.Module")
    if weights is not None:
        content, _ = read_tensors(weights)
        with reading(weights, f"weights of {spec}"):
            load_weights(module, content)
    if (mean is None) != (std is None):
        raise UserError("--mean and --std belong together: give both, or neither for a network of [0, 1]")
    normalize, said = None, "in [0, 1]"
    if mean is not None:
        if not all(0 <= value <= 1 for value in mean) or not all(0 < value <= 1 for value in std):
            found = f"--mean {list(mean)} --std {list(std)} are not those of images in [0, 1]"
            raise UserError(f"{found}: expected numbers from 0 to 1, and for --std above 0")
        normalize = Normalize(mean, std)
        said = f"normalised by mean {list(mean)} and standard deviation {list(std)}"
    network = from_module(FromPixels(module, normalize=normalize), class_names, layer, device)
    network.name, network.input = name, said
    network.path = Path(weights) if weights is not None else None
    return network


def from_module(
    model: nn.Module, class_names: list[str] | None, layer: str | None, device: torch.device
) -> Network:
    """Return a Network of any module that takes float images in [0, 1]; layer as in find_layer.

    The module itself is moved to the device, to float32 and to eval mode.
    """
    model = model if isinstance(model, FromPixels) else FromPixels(model)
    network = Network(
        model=model.float().to(device).eval(),
        device=device,
        name=type(model.network).__name__,
        path=None,
        class_names=class_names,
        input="in [0, 1]",
    )
    look_inside(network, layer)
    network.digest = digest_of(network.model)  # after a pass, as lazy layers have no weights before it
    return network


def call_by_name(file: Path, name: str) -> object:
    """Run a Python file and return what its function or class `name` returns."""
    # Behind the folders of this project, whose modules have the first right to names such as data.
    sys.path.append(str(file.resolve().parent))
    spec = importlib.util.spec_from_file_location(f"examined_{file.stem}", file)
    python_module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = python_module  # dataclasses and pickles look it up there
    spec.loader.exec_module(python_module)
    return getattr(python_module, name)()


def load_weights(module: nn.Module, content: object) -> None:
    """Load a state dict, found in the content of a file, into a module; ValueError says what does not fit."""
    state = content
    for key in ("state_dict", "model"):
        if isinstance(state, dict) and isinstance(state.get(key), dict):
            state = state[key]
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise ValueError("it holds no state dict: save it by torch.save(model.state_dict(), FILE)")
    # DataParallel and torch.compile put these before the names.
    state = {name.removeprefix("module.").removeprefix("_orig_mod."): state[name] for name in state}
    misshapen = []
    for name, own in module.state_dict().items():
        if name in state and not is_lazy(own) and own.shape != state[name].shape:
            misshapen.append(f"{name} {list(state[name].shape)} instead of {list(own.shape)}")
    if misshapen:
        raise ValueError(f"shapes that do not fit ({len(misshapen)}): {', '.join(misshapen[:3])}")
    found = module.load_state_dict(state, strict=False)
    problems = []
    for problem, names in (("missing", found.missing_keys), ("unexpected", found.unexpected_keys)):
        if names:
            problems.append(f"{problem} names ({len(names)}): {', '.join(names[:3])}")
    if problems:
        raise ValueError("; ".join(problems))


def digest_of(module: nn.Module) -> str:
    """Return the sha256 of the names, types, shapes and bytes of all weights and buffers.

    That of a FromPixels is also of the numbers that normalise, without which results are others.
    """
    digest = hashlib.sha256()
    for name, value in sorted([*module.named_parameters(), *module.named_buffers()]):
        digest.update(f"{name} {value.dtype} {list(value.shape)}\n".encode())
        digest.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


# ---- What is inside --------------------------------------------------------------------------------------


@torch.enable_grad()
def look_inside(network: Network, layer: str | None) -> Network:
    """Check the network by one forward pass, count its parameters and operations, and find its layers."""
    names = {module: name for name, module in network.module.named_modules()}
    outputs = []  # (name, output) of every module, in the order in which they end

    def note(module: nn.Module, inputs: tuple, output: object) -> None:
        if names.get(module):  # the network itself has the name ""
            outputs.append((names[module], output))

    # Noise, so that cells that can differ do.
    images = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0)).to(network.device)
    counter = FlopCounterMode(display=False)
    # Attention in single products and sums, as the fused one of a CPU is not counted (torch 2.13).
    plain_attention = sdpa_kernel(SDPBackend.MATH)
    with plain_attention, counter, register_module_forward_hook(note):
        logits = network.model(images.requires_grad_())
    check_logits(network, logits)
    network.num_classes = logits.shape[1]
    network.parameters = sum(parameter.numel() for parameter in network.module.parameters())
    network.macs = counter.get_total_flops() // (2 * len(images))  # one is a product and a sum
    runs = Counter(name for name, _ in outputs)
    for name, output in outputs:
        is_linear = isinstance(network.module.get_submodule(name), nn.Linear)
        if is_linear and output.shape == logits.shape and runs[name] == 1:
            network.classifier = name
    find_layer(network, layer, outputs, runs, logits)
    return network


def check_logits(network: Network, logits: object) -> None:
    """Raise UserError unless these are logits of two images, one for each class that has a name."""
    is_tensor = isinstance(logits, Tensor)
    made = f"{logits.dtype} {list(logits.shape)}" if is_tensor else type(logits).__name__
    if not is_tensor or not logits.is_floating_point() or logits.shape[:-1] != (2,):
        raise UserError(f"{network.name} makes {made} of 2 images, expected float logits [2, C]")
    if not logits.isfinite().all():
        raise UserError(f"{network.name} cannot be used: it makes logits that are not finite")
    if network.class_names is not None and len(network.class_names) != logits.shape[1]:
        found = f"{network.name} makes {logits.shape[1]} logits, but its class names are"
        raise UserError(f"{found} {len(network.class_names)}: expected one for each")


def find_layer(network: Network, layer: str | None, outputs: list, runs: Counter, logits: Tensor) -> None:
    """Set the layer that Grad-CAM explains: the named one, none if that is "none", else the last fit one.

    outputs are (name, output) of the modules in the order of one forward pass, runs how often each of them
    ran, logits the result. A layer is fit if it runs once, its output has more than one cell, these differ,
    and the gradient of the score reaches them: behind the last attention of a transformer it reaches the
    class token only.
    """
    if layer == "none":
        network.layer_note = "no maps, by --layer none"
        return
    if layer is not None and runs[layer] != 1:
        problem = f"runs {runs[layer]} times in a pass" if runs[layer] else "is no layer that runs"
        choices = ", ".join(name for name, _ in outputs if runs[name] == 1 and "." not in name)
        raise UserError(f"--layer {layer} {problem}: expected one such as {choices}, or none")
    score = logits.amax(dim=1).sum()
    for name, output in reversed(outputs):
        layout = layout_of(output)
        if layout is None or runs[name] != 1 or layer not in (None, name) or not score.requires_grad:
            continue
        (gradient,) = torch.autograd.grad(score, output, retain_graph=True, materialize_grads=True)
        reshape = LAYOUTS[layout]
        cells = output if reshape is None else reshape(output)
        gradient = gradient if reshape is None else reshape(gradient)
        differ = (cells != cells[..., :1, :1]).any()
        reached = (gradient != 0).any(dim=1).sum(dim=(1, 2))  # so many cells of each image
        if differ and (reached > 1).any():
            height, width = cells.shape[2:]
            brought = "" if reshape is None else f", brought from {layout} to [N, K, h, w]"
            network.layer, network.reshape = name, reshape
            network.layer_note = f"{name}, {height}x{width} cells{brought}"
            return
    fit = f"an output {' or '.join(LAYOUTS)} of several cells on which the scores depend"
    if layer is not None:
        raise UserError(f"--layer {layer} cannot be explained: expected {fit}")
    network.layer_note = f"no maps: no layer has {fit}"


def layout_of(output: object) -> str | None:
    """Return which of LAYOUTS a module's output for two images has, or None.

    The images are square, and so are maps: equal sides tell [N, K, h, w] from [N, h, w, K]. Tokens are a
    square, with one class token before it or without.
    """
    if not isinstance(output, Tensor) or not output.requires_grad or output.shape[:1] != (2,):
        return None
    if output.ndim == 4 and output.shape[2] == output.shape[3]:
        return "[N, K, h, w]"
    if output.ndim == 4 and output.shape[1] == output.shape[2]:
        return "[N, h, w, K]"
    if output.ndim == 3 and output.shape[1] - math.isqrt(output.shape[1]) ** 2 in (0, 1):
        return "tokens [N, T, K]"
    return None


# ---- The command line ------------------------------------------------------------------------------------


def add_options(parser: argparse.ArgumentParser, default: str = "the newest under runs/") -> None:
    """Add the options that say what is examined."""
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--run", type=Path, help=f"run folder of train.py (default: {default})")
    which.add_argument("--checkpoint", type=Path, metavar="FILE", help="a checkpoint of train.py")
    help = "any network: NAME() in FILE.py returns a torch.nn.Module of images [N, 3, 32, 32]"
    which.add_argument("--model", metavar="FILE.py:NAME", help=help)
    parser.add_argument("--weights", type=Path, metavar="FILE", help="for --model: its state dict")
    help = "for --model: what normalises its images; without them it takes images in [0, 1]"
    parser.add_argument("--mean", type=float, nargs=3, metavar=("R", "G", "B"), help=help)
    parser.add_argument("--std", type=float, nargs=3, metavar=("R", "G", "B"), help="see --mean")
    help = "for --model: the classes of its logits, a name a line (default: the data set's, in its order)"
    parser.add_argument("--classes", type=Path, metavar="FILE", help=help)
    help = "what Grad-CAM explains, or none (default: the last layer with more than one cell)"
    parser.add_argument("--layer", metavar="NAME", help=help)


def from_options(args: argparse.Namespace, device: torch.device, default: Path | None = None) -> Network:
    """Return the network that the options name; without any the checkpoint `default`, or the newest run's."""
    if args.model is None:
        for name in ("weights", "mean", "std", "classes"):
            if getattr(args, name) is not None:
                raise UserError(f"--{name} belongs to --model FILE.py:NAME, which is missing")
        path = args.checkpoint
        if path is None and (args.run is not None or default is None):
            path = best_checkpoint(args.run or newest_run())
        return load_checkpoint(path or default, device, args.layer)
    class_names = None
    if args.classes is not None:
        check_file(args.classes)
        with reading(args.classes, "class names, one a line"):
            class_names = args.classes.read_text(encoding="utf-8").split("\n")
            class_names = [one_line(name) for name in class_names if name.strip()]
    return load_model(args.model, args.weights, args.mean, args.std, args.layer, class_names, device)


def results_folder(network: Network, out: Path | None) -> Path:
    """Return where results go: `out`, else the checkpoint's run, else runs/<name of weights or model>."""
    if out is not None:
        return out
    if network.path is None:
        return Path("runs") / network.name
    return run_of(network.path) or Path("runs") / (network.path.stem.strip(".") or "checkpoint")


def load_data(network: Network, dataset: str | None, data_dir: str | None) -> tuple[Dataset, Dataset]:
    """Return the training and the test set for a network, whose logits come in the order of their classes.

    dataset: as in data.load, by default what the network was trained on, else cifar100. data_dir: where CIFAR
    lies, by default where the training found it, else data/. Raises UserError if the classes do not fit.
    """
    name = dataset or network.dataset or "cifar100"
    if name in CLASS_NAMES:  # before the data are read or drawn
        check_number_of_classes(network, CLASS_NAMES[name], name)
    if data_dir is None and network.training is not None:
        saved = network.training.settings.get("data_dir")
        data_dir = saved if saved and Path(saved).is_dir() else None
    train, test = load(name, data_dir or "data")
    fit_classes(network, test)
    return train, test


def check_number_of_classes(network: Network, class_names: list[str], dataset: str) -> None:
    """Raise UserError unless the network has as many logits as there are classes in the data set."""
    if network.num_classes != len(class_names):
        found = (
            f"{network.name} has {network.num_classes} logits, but {dataset} has {len(class_names)} classes"
        )
        raise UserError(f"{found}: name the data set it was trained on by --dataset")


def fit_classes(network: Network, test: Dataset) -> None:
    """Bring the logits into the order of the classes of `test`; raise UserError if they do not fit."""
    wanted, given = test.class_names, network.class_names
    check_number_of_classes(network, wanted, test.name)
    if given is None or given == wanted:
        network.class_names = wanted
        return
    plain = [name.replace("_", " ").lower() for name in given]
    asked = [name.replace("_", " ").lower() for name in wanted]
    others = Counter(plain) - Counter(asked)
    if others:
        found = f"the classes of {network.name} are not those of {test.name}, such as {next(iter(others))!r}"
        raise UserError(f"{found}: name the data set it was trained on by --dataset")
    network.model.order = torch.tensor([plain.index(name) for name in asked], device=network.device)
    vars(network).pop("folded", None)  # in case it was made before, in another order
    network.class_names = wanted

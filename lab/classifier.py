"""What is examined: a checkpoint of train.py or anybody's network, as one object.

Everything that comes from outside is read and checked here: load_checkpoint, load_model and from_module
return a Classifier, and the rest of the laboratory need not ask where it came from. What is not available is
None.
"""

import copy
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Generator, Tensor, nn

import data
import report
from data import Normalize
from gradcam import Classes, GradCAM
from lab import networks, pictures
from lab.inside import look_inside
from lab.pictures import SIZE
from lab.predictions import plain_name
from lab.support import Progress, UserError, core, file_digest, full_float32, reading

MUCH_LARGER = 1.5  # times the side of the images are pictures of which too much may be lost


class FromPixels(nn.Module):
    """A network that takes float images in [0, 1] to logits [N, C]: it resizes and normalises them first.

    Images of another side than image_size are brought to it by way of `uncropped` if that is given, see
    resize. `order`, int64 [C], brings the logits into the order of the data set's classes. Where a network
    makes one logit z for an image, they are [-z/2, z/2]. Where it `ends_in_softmax`, they are the logarithms
    of what it makes, or of [1 - p, p], less their mean: then the gradient of a sure answer is not 0.
    `batch_size`: so many images are computed at once, see images_at_once.
    """

    def __init__(self, network: nn.Module, image_size: int = SIZE, normalize: nn.Module | None = None):
        super().__init__()
        self.network, self.image_size, self.normalize = network, image_size, normalize or nn.Identity()
        self.uncropped = self.order = self.batch_size = None
        self.ends_in_softmax = self.makes_one_logit = False

    def forward(self, images: Tensor) -> Tensor:
        return self.as_logits(self.own_output(images), images)

    def own_output(self, images: Tensor) -> object:
        """Return what the network itself makes of images in [0, 1], whatever that is."""
        x = self.normalize(resize(images, self.image_size, self.uncropped)).contiguous()
        return self.network(x.clone() if x is images else x)  # a copy, for what works in place

    def as_logits(self, logits: Tensor, images: Tensor) -> Tensor:
        """Return the logits [N, C] in the network's output for images."""
        if logits.ndim < 2 and len(images) == 1:
            logits = logits.reshape(1, -1)  # squeeze() has taken a batch of one away
        if logits.is_floating_point():
            logits = logits.float()  # float64 and bfloat16 are not what follows expects
            if logits.shape in ((len(images),), (len(images), 1)):
                one = logits.flatten()
                if self.ends_in_softmax and ((one < -1e-3) | (one > 1 + 1e-3)).any():
                    raise UserError(
                        f"the network makes numbers from 0 to 1 of noise, and from {one.min():.3g} to "
                        f"{one.max():.3g} of images, so they may be logits: let it return "
                        f"torch.stack([-z, z], dim=1) / 2, with z of one dimension"
                    )
                # Halves, as Grad-CAM needs a gradient of both.
                pair = [1 - one, one] if self.ends_in_softmax else [-one / 2, one / 2]
                logits = torch.stack(pair, dim=1)
        if self.ends_in_softmax:
            logits = logits.clamp(min=torch.finfo(logits.dtype).tiny).log()
            logits = logits - logits.mean(dim=1, keepdim=True)
        return logits if self.order is None else logits[:, self.order]


def resize(images: Tensor, side: int, uncropped: int | None = None) -> Tensor:
    """Bring images, float [N, 3, H, W], of another size to [N, 3, side, side], bilinear and antialiased.

    With `uncropped` they are brought to that side, and the middle of them is taken.
    """
    if images.shape[-2:] == (side, side):
        return images
    device = images.device
    if device.type == "mps" and images.requires_grad:
        images = images.cpu()  # attacks differentiate this, and Apple GPUs cannot (torch 2.13)
    images = F.interpolate(images, uncropped or side, mode="bilinear", antialias=True).to(device)
    return pictures.center_crop(images, side)


def images_at_once(
    images: Tensor, network_side: int = 0, device: torch.device | str = "cpu", batch_size: int | None = None
) -> int:
    """Return how many images [N, 3, S, S], enlarged to network_side, to compute at once: batch_size, if any.

    By default it is as many as data.parts takes of images that are so large.
    """
    side = max(images.shape[-1], network_side)
    count = max(4, 50 * 32**2 // side**2)
    return batch_size or (count if torch.device(device).type == "cpu" else 32 * count)


@dataclass
class Classifier:
    """What is examined."""

    model: FromPixels  # float32 images [N, 3, S, S] in [0, 1] to logits [N, C], in eval mode, on the device
    device: torch.device
    name: str
    path: Path | None  # the file of its weights
    class_names: list[str] | None
    input: str  # what the network itself takes, for people
    digest: str = ""  # sha256 of the checkpoint, or see networks.digest_of
    code: str | None = None  # sha256 of the FILE.py it is from
    training: dict | None = None  # config, epoch and history of its checkpoint of train.py
    validation: tuple[Tensor, Tensor] | None = None  # logits float32 [N, C] and labels int64 [N]
    dataset: str | None = None  # what it was trained on
    transform: str | None = None  # FILE.py:NAME of what brings pictures of a folder to it, see read_transform
    notes: list[str] = field(default_factory=list)  # what makes its numbers mean less, for people
    # The following is what look_inside finds.
    layer: str | None = None  # dotted name of the layer that Grad-CAM explains, if there is one
    reshape: Callable[[Tensor], Tensor] | None = None  # takes the output of the layer to [N, K, h, w]
    layer_note: str = ""  # how the layer was chosen, or why there is none
    output: str = "logits"  # what the network itself makes, for people
    num_classes: int = 0
    parameters: int = 0
    computes_in: str = "float32"  # the number formats of its layers, for people
    largest_side: int = 0  # in pixels, of what goes through it

    @property
    def module(self) -> nn.Module:
        """The network itself, without what stands before it."""
        return self.model.network

    def __repr__(self) -> str:
        what = f"{self.name}, {self.num_classes} classes, {self.parameters:,} parameters"
        return f"Classifier({what}, images {self.input}, layer {self.layer}, on {self.device})"

    def images_at_once(self, images: Tensor) -> int:
        """Return how many images [N, 3, S, S] to compute at once, see above."""
        return images_at_once(images, self.model.image_size, self.device, self.model.batch_size)

    def predict(self, images: Tensor) -> Tensor:
        """Return the logits of uint8 images [N, 3, S, S], float32 [N, C] on the CPU; see predict below."""
        with full_float32(self.device):
            return predict(self.model, images, self.device)

    def explain(self, images: Tensor, classes: Classes = None, against: Classes = None) -> Tensor:
        """Return the Grad-CAM maps of images at the layer, float32 [N, h, w], 0 or more, on the CPU.

        images uint8 [N, 3, S, S]; classes and against as gradcam.GradCAM takes them: None explains the
        predicted classes.
        """
        return self.pairs(images, [(classes, against)])[0].relu()

    def pairs(self, images: Tensor, questions: list[tuple[Classes, Classes]]) -> list[Tensor]:
        """Return for each (classes, against) what GradCAM.weighted_sum does, float32 [N, h, w] on the CPU.

        images as in explain. Raises ValueError if no layer can be explained, see layer_note.
        """
        if self.layer is None:
            raise ValueError(self.layer_note)
        cam, maps = GradCAM(self.model, f"network.{self.layer}", self.reshape), []
        for question in questions:
            asked = [c if c is None else torch.as_tensor(c).expand(len(images)) for c in question]
            parts = []
            for part in torch.arange(len(images)).split(self.images_at_once(images)):
                pixels = images[part].to(self.device) / 255
                parts.append(cam.weighted_sum(pixels, *(c if c is None else c[part] for c in asked)).cpu())
            maps.append(torch.cat(parts))
        return maps


# ---- Predict ---------------------------------------------------------------------------------------------


@torch.inference_mode()
def predict(
    model: nn.Module, images: Tensor, device: torch.device | str, progress: Progress | None = None
) -> Tensor:
    """Return what report.predict returns, but compute the images in a random order, always the same one.

    Test sets come in the order of their classes. That would flatter or spoil a network that lets the other
    images of a batch influence an answer. The precision is the caller's, see full_float32.
    """
    order, logits = torch.randperm(len(images), generator=Generator().manual_seed(0)), []
    side, batch_size = (getattr(model, name, None) for name in ("image_size", "batch_size"))
    for part in order.split(images_at_once(images, side or 0, device, batch_size)):
        logits.append(model(images[part].to(device) / 255).float().cpu())
        if progress:
            progress.update(sum(map(len, logits)))
    return torch.cat(logits)[order.argsort()]


# ---- From a file or from memory --------------------------------------------------------------------------


def load_checkpoint(
    path: Path | str, device: torch.device | str = "cpu", layer: str | None = None, size: int | None = None
) -> Classifier:
    """Return the network of a checkpoint of train.py, in float32; layer as in find_layer.

    size is by default its own. Raises UserError if the file is damaged, or its weights do not fit.
    """
    try:
        with core():
            (_, normalize, network), checkpoint = report.load_network(path)
    except UserError as error:
        raise UserError(f"{error} (a network of your own is --model, its weights --weights)") from error
    config, device = checkpoint["config"], torch.device(device)
    model = FromPixels(network, size or config["image_size"], normalize).to(device)
    if device.type != "mps":  # where it gives wrong results (pytorch issue 175189, torch 2.13)
        model.to(memory_format=torch.channels_last)
    facts = type(network).__name__, "normalised", path, file_digest(Path(path))
    classifier = from_module(model, checkpoint["class_names"], layer, device, *facts)
    classifier.dataset = config["dataset"]
    classifier.training = {key: checkpoint[key] for key in ("config", "epoch", "history")}
    if "val_logits" in checkpoint:
        classifier.validation = checkpoint["val_logits"].float(), checkpoint["val_labels"]
    return classifier


def load_model(
    spec: str,
    weights: Path | str | None = None,
    mean: tuple | None = None,
    std: tuple | None = None,
    layer: str | None = None,
    class_names: list[str] | None = None,
    device: torch.device | str = "cpu",
    *,
    size: int | None = None,
    resize: int | None = None,
    weights_key: str | None = None,
    transform: str | None = None,
) -> Classifier:
    """Return the network that NAME() in FILE.py returns, where spec is "FILE.py:NAME", in float32.

    weights: a file with its state dict, below weights_key if that is given, see networks.load_weights. mean
    and std, three numbers each, normalise images in [0, 1]. class_names are those of the logits, in their
    order; layer as in find_layer. size, by default SIZE, is the side in pixels of the images that it takes:
    the middle of those that are `resize` wide, if that is given. transform: NAME in FILE.py of what brings
    pictures of a folder to it, see networks.read_transform. Raises UserError for what cannot be used.
    """
    if resize is not None and transform is not None:
        raise UserError(f"--transform {transform} takes the place of --resize {resize}: leave one out")
    if resize is not None and size is None:
        raise UserError(f"--resize {resize} belongs to --size, which is missing")
    module = networks.build(spec)
    if weights_key is not None and weights is None:
        raise UserError(f"--weights-key {weights_key} belongs to --weights FILE, which is missing")
    if weights is not None:
        with reading(weights, f"weights of {spec}"):
            networks.load_weights(module, networks.read_tensors(Path(weights)), weights_key)
    if (mean is None) != (std is None):
        raise UserError("--mean and --std belong together: give both, or neither for a network of [0, 1]")
    normalize, takes = None, "in [0, 1]"
    if mean is not None:
        if not all(0 <= value <= 1 for value in mean) or not all(0 < value <= 1 for value in std):
            raise UserError(
                f"--mean {list(mean)} --std {list(std)} are not those of images in [0, 1]: "
                f"expected numbers from 0 to 1, and for --std above 0"
            )
        normalize = Normalize(mean, std)
        takes = f"normalised by mean {list(mean)} and standard deviation {list(std)}"
    model = FromPixels(module, size or SIZE, normalize)
    model.uncropped = resize
    file, _, name = spec.rpartition(":")
    classifier = from_module(model, class_names, layer, device, name, takes, weights)
    classifier.code = file_digest(Path(file))
    if transform is not None:
        classifier.transform = f"{file}:{transform}"
        classifier.input += f", by {transform}"
    return classifier


def from_module(
    model: nn.Module,
    class_names: list[str] | None = None,
    layer: str | None = None,
    device: torch.device | str = "cpu",
    name: str | None = None,
    takes: str = "in [0, 1]",
    weights: Path | str | None = None,
    digest: str | None = None,
    size: int = SIZE,
) -> Classifier:
    """Return a Classifier of any module that takes float images [N, 3, size, size] in [0, 1].

    layer as in find_layer; a FromPixels is taken as it is, with its own size. Of another module a copy is
    examined, on the device, in float32 and in eval mode. name, takes (how images are normalised) and weights
    (a file) are for people. Raises UserError for what cannot be examined.
    """
    device = torch.device(device)
    if not isinstance(model, FromPixels):
        model = FromPixels(copied(networks.uncompiled(model)), size)
    side, of_larger = model.image_size, f", the middle of {model.uncropped}" if model.uncropped else ""
    if not pictures.SMALLEST <= side <= pictures.LARGEST or (model.uncropped or side) < side:
        raise UserError(
            f"--size {side}{of_larger}: expected {pictures.SMALLEST} to {pictures.LARGEST}, --resize above"
        )
    name = name or type(model.network).__name__
    if any(tensor.is_meta for tensor in (*model.parameters(), *model.buffers())):
        raise UserError(f"{name} has weights on the meta device, which are none: load them first")
    for part in model.modules():  # those of torch.export refuse to change their mode, and have none
        vars(part).pop("train", None)
        vars(part).pop("eval", None)
    classifier = Classifier(
        model=model.float().to(device).eval(),
        device=device,
        name=name,
        path=None if weights is None else Path(weights),
        class_names=class_names,
        input=f"{takes}, of {side}x{side} pixels{of_larger}",
    )
    with full_float32(device):
        look_inside(classifier, layer)
    # After look_inside, as lazy layers have no weights before their first pass.
    classifier.digest = digest or networks.digest_of(model)
    return classifier


def copied(module: nn.Module) -> nn.Module:
    """Return a deep copy of a module. Tensors that it keeps of a pass lose their graph: torch copies none."""
    without_graph = {}  # {id of a tensor: what the copy has in its place}
    for part in module.modules():
        for value in vars(part).values():
            if isinstance(value, Tensor) and value.grad_fn is not None:
                without_graph[id(value)] = value.detach()
    return copy.deepcopy(module, without_graph)


# ---- Its images and their classes --------------------------------------------------------------------------


def find_data(classifier: Classifier, dataset: str | None, data_dir: str | None) -> tuple[str, str]:
    """Return the name of the data set and the folder in which CIFAR lies, as data.load takes them.

    dataset: by default what the network was trained on, else cifar100. data_dir: by default where the
    training found it, else data/.
    """
    name = dataset or classifier.dataset or "cifar100"
    if dataset is None and data_dir is not None and name not in (*data.CIFAR, "shapes"):
        return data_dir, data_dir  # where the folder of the training lies now
    if data_dir is None and classifier.training is not None:
        saved = classifier.training["config"]["settings"].get("data_dir")
        data_dir = saved if saved and Path(saved).is_dir() else None
    return name, data_dir or "data"


def is_own(classifier: Classifier, dataset: str | None) -> bool:
    """Return whether --dataset, if it is given, names the data set that the network was trained on."""
    own = classifier.dataset
    if dataset is None or own is None:
        return dataset is None
    is_same_folder = Path(dataset).is_dir() and Path(dataset).resolve() == Path(own).resolve()
    return dataset == own or is_same_folder


def load_data(
    classifier: Classifier, dataset: str | None, data_dir: str | None, workers: int | None = None
) -> tuple[data.Dataset | None, data.Dataset]:
    """Return the training and the test set for a network, whose logits come in the order of their classes.

    Of a folder of pictures there is a training set if a network of train.py was trained on it, else None.
    dataset and data_dir: see find_data; workers: see pictures.load. Raises UserError if the classes do
    not fit.
    """
    name, root = find_data(classifier, dataset, data_dir)
    if classifier.transform is not None and not Path(name).is_dir():
        raise UserError(f"--transform is for a folder of pictures, and {name} is none: give --dataset FOLDER")
    with_train = classifier.training is not None and is_own(classifier, dataset)
    how = {"with_train": with_train, "workers": workers}
    if classifier.transform is not None:
        how["transform"] = networks.read_transform(classifier.transform)
    train, test = pictures.load(name, root, classifier.model.image_size, classifier.model.uncropped, **how)
    test = widened(test, classifier.class_names)
    fit_classes(classifier, test)
    return train, test


def places_of(wanted: list[str], names: list[str]) -> list[int] | None:
    """Return where each of the wanted names stands among `names`, None if one does not, or two are the same.

    Names are compared as they are, else without regard to case and underscores.
    """
    for spelled in (str, plain_name):
        sought, there = [spelled(name) for name in wanted], [spelled(name) for name in names]
        if {*sought} <= {*there} and len({*sought}) == len(sought) and len({*there}) == len(there):
            return [there.index(name) for name in sought]
    return None


def widened(test: data.Dataset, class_names: list[str] | None) -> data.Dataset:
    """Return a test set with pictures of only some of a network's classes, `class_names`, as one of all."""
    places = places_of(test.class_names, class_names or [])
    if places is None or len(places) == len(class_names):
        return test
    print(f"note     {len(class_names) - len(places)} of its {len(class_names)} classes have no picture")
    return replace(test, labels=torch.tensor(places)[test.labels], class_names=class_names)


def note_small_size(classifier: Classifier, picture_side: int | None) -> None:
    """Add a note if pictures of picture_side pixels are reduced, but the network may want larger images.

    It may if --size was left at its default, or if the network enlarges the images again. The checkpoint of a
    network of train.py says what it wants.
    """
    side, inside = classifier.model.image_size, classifier.largest_side
    enlarges = inside >= MUCH_LARGER * side
    if classifier.training is not None or (picture_side or 0) <= MUCH_LARGER * side:
        return
    if enlarges or side == SIZE:
        wanted = inside if enlarges else min(picture_side, pictures.LARGEST)
        classifier.notes.append(
            f"the pictures, of about {picture_side} pixels, are reduced to {side}: if the network was "
            f"trained on larger ones, give their side, such as --size {wanted}"
        )


def fit_classes(classifier: Classifier, test: data.Dataset) -> None:
    """Bring the logits into the order of the classes of `test`, see places_of.

    Raises UserError if the classes do not fit.
    """
    wanted, own = test.class_names, classifier.class_names
    if classifier.num_classes != len(wanted):
        raise UserError(
            f"{classifier.name} has {classifier.num_classes} logits, but {test.name} has {len(wanted)} "
            f"classes: name the data set it was trained on by --dataset, or its classes by --classes"
        )
    note_small_size(classifier, getattr(test, "picture_side", None))
    classifier.class_names = wanted
    if own is None or own == wanted:
        return
    places = places_of(wanted, own)
    if places is None:
        others = [name for name in own if plain_name(name) not in map(plain_name, wanted)] or own
        raise UserError(
            f"the classes of {classifier.name} are not those of {test.name}, such as {others[0]!r}: "
            f"expected each of those once, name its own by --classes, or the data set by --dataset"
        )
    order = torch.tensor(places, device=classifier.device)
    before = classifier.model.order  # where it has been fitted to another data set
    classifier.model.order = order if before is None else before[order]

"""train.py: the schedule and the loop against formulas, and resuming against no interruption."""

import itertools
import json
import math
import os
from dataclasses import asdict, replace

import pytest
import torch
import torch.nn.functional as F
from networks import seeded, tiny_resnet
from PIL import Image
from processes import TINY, assert_same_run, contents, read_history
from torchvision.transforms.functional import resize

import data
import report
import train
from data import MEAN, STD, batches, split_indices
from support.checkpoint import read_checkpoint
from support.console import CommandLine
from support.errors import UserError
from support.settings import add_settings

# Three epochs of three steps, a fraction of a second.
SMALL = [*TINY, "--dataset=shapes", "--limit-train=12"]


def run(out, options=""):
    """Train in this process; the last of two equal options counts."""
    return train.main([*SMALL, "--out", str(out), *options.split()])


def go_on(out, options=""):
    return train.main(["--resume", "--out", str(out), *options.split()])


def config_of(options, preset=None):
    """The settings that a command line gives, without a run."""
    parser = CommandLine("")
    add_settings(parser, train.Config, train.PRESETS)
    return train.Config(**(train.PRESETS.get(preset, {}) | vars(parser.parse_args(options.split()))))


def last(out):
    return read_checkpoint(out / "checkpoints" / "last.pt")


def config_json(out):
    return json.loads((out / "config.json").read_text())


@pytest.fixture
def tiny(monkeypatch):
    """One residual block in place of eight."""
    for module in (train, report):
        monkeypatch.setattr(module, "resnet18", tiny_resnet)
    monkeypatch.setattr(os, "fsync", lambda file: None)


def test_cutmix_and_warmup_depend_on_the_epochs_and_the_data_set():
    assert config_of("--epochs 29").cutmix == 0 and config_of("--epochs 30").cutmix == 0.5
    short = config_of("--epochs 5 --cutmix 0.25")
    assert (short.cutmix, short.warmup_epochs) == (0.25, 1)
    assert config_of("--dataset shapes --epochs 40", "shapes").cutmix == 0


@pytest.mark.parametrize(
    "per_class, options, epochs, batch_size",
    [(60, "", 10, 32), (6, "", 100, 32), (1, "--limit-train 20", 100, 20)],
)
def test_a_folder_is_seen_about_as_often_as_the_shapes(
    tmp_path, monkeypatch, per_class, options, epochs, batch_size
):
    """48,000 images in all, 10 to 100 times; the batches have 32 images, or all if there are fewer."""
    images = torch.randint(0, 256, (100 * per_class, 3, 8, 8), dtype=torch.uint8, generator=seeded())
    dataset = data.from_arrays(images, torch.arange(len(images)) % 4, list("abcd"))
    monkeypatch.setattr(data, "load", lambda *some: (dataset, dataset))
    config = config_of(f"--dataset {tmp_path} {options}", "folder")
    config, _, train_index, val_index = train.load_split(config)
    assert (config.epochs, config.batch_size) == (epochs, batch_size)
    assert config.patience == max(5, epochs // 8) and config.warmup_epochs == 2
    assert len(val_index) == len(train_index) / 4


def cosine(step, total, warmup, peak, final=0.0):
    """The schedule again, by (1 + cos x) / 2 = cos^2(x / 2)."""
    if step < warmup:
        return peak / warmup * step
    angle = math.pi / 2 * (step - warmup) / max(1, total - warmup)
    return final + (peak - final) * math.cos(min(angle, math.pi / 2)) ** 2


@pytest.mark.parametrize(
    "total, warmup, peak, final", [(300, 45, 0.15, 0.0), (70, 1, 2.0, 0.1), (9, 0, 1, 0), (5, 5, 1.0, 0.2)]
)
def test_schedule_equals_its_formula(total, warmup, peak, final):
    for step in range(total):
        lr = train.warmup_cosine(step, total, warmup, peak, final)
        assert lr == pytest.approx(cosine(step, total, warmup, peak, final), abs=1e-12)
    for step in (total, total + 5):
        assert train.warmup_cosine(step, total, warmup, peak, final) == final
    for wrong in [(-1, total, warmup), (0, 0, 0), (0, total, total + 1)]:
        with pytest.raises(ValueError, match="no schedule"):
            train.warmup_cosine(*wrong, peak)


def test_every_size_has_its_share_of_the_epochs():
    def sides(epochs, sizes):
        return [train.image_size(epoch, epochs, sizes) for epoch in range(1, epochs + 1)]

    assert sides(10, [20, 24, 32]) == [20] * 3 + [24] * 3 + [32] * 4
    assert sides(2, [20, 24, 32]) == [24, 32] and sides(4, [28, 16]) == [28, 28, 16, 16]


def normalised(images, size):
    """Images at another size, as by torchvision, and then the normalisation, of float32 numbers."""
    mean, std = torch.tensor(MEAN)[:, None, None], torch.tensor(STD)[:, None, None]
    return (resize(images, [size, size], antialias=True) - mean) / std


def train_by_formulas(dataset, args):
    """The training of train.py again, with its loss, clipping, schedule and optimizer written out.

    Returns the model, and (mean loss, accuracy, learning rate) of each epoch.
    """
    torch.manual_seed(args.seed)
    train_index, _ = split_indices(dataset, args.val_fraction, args.seed)
    images, labels = (tensor[train_index[: args.limit_train]] for tensor in (dataset.images, dataset.labels))
    model = tiny_resnet(len(dataset.class_names), args.width).double()
    layers = [module for module in model.modules() if isinstance(module, torch.nn.Conv2d | torch.nn.Linear)]
    decayed = {layer.weight for layer in layers}
    velocity = {name: torch.zeros_like(p) for name, p in model.named_parameters()}
    steps, epochs = len(images) // args.batch_size, []
    for epoch in range(1, args.epochs + 1):
        losses, correct = [], 0
        size = train.image_size(epoch, args.epochs, args.sizes())
        cutmix = args.cutmix if epoch <= 0.9 * args.epochs else 0
        one_hot = F.one_hot(labels, 100).double()
        drawn = batches(images, one_hot, args.batch_size, args.seed, epoch, cutmix)
        for step, (batch, targets) in enumerate(drawn, start=(epoch - 1) * steps):
            lr = cosine(step, args.epochs * steps, round(args.warmup_epochs * steps), args.lr)
            log_p = model(normalised(batch.double() / 255, size)).log_softmax(dim=1)
            # Szegedy et al. 2016 (arXiv 1512.00567), section 7: the target is mixed with the uniform one
            target = targets * (1 - args.label_smoothing)
            loss = -((target + args.label_smoothing / log_p.shape[1]) * log_p).sum() / len(batch)
            gradients = torch.autograd.grad(loss, model.parameters())
            norm = math.sqrt(sum(g.double().square().sum().item() for g in gradients))
            # PyTorch adds 1e-6 to the norm, and a narrow network on four images makes much of little.
            factor = min(1.0, args.clip_norm / (norm + 1e-6)) if args.clip_norm else 1.0
            losses.append(loss.item())
            correct += (log_p.argmax(dim=1) == targets.argmax(dim=1)).sum().item()
            for (name, p), gradient in zip(model.named_parameters(), gradients, strict=True):
                decay = args.weight_decay if p in decayed else 0
                gradient = factor * gradient + decay * p.detach()
                velocity[name] = args.momentum * velocity[name] + gradient
                p.data -= lr * (gradient + args.momentum * velocity[name])
        epochs.append((sum(losses) / len(losses), correct / (steps * args.batch_size), lr))
    return model, epochs


@pytest.mark.parametrize(
    "options",
    [
        "--clip-norm 0.05 --seed 5",
        "--clip-norm 0 --label-smoothing 0 --image-sizes 32 --cutmix 1",
        "--momentum 0 --weight-decay 0.1 --warmup-epochs 0 --image-sizes 13,21",
        "--label-smoothing 0.4 --warmup-epochs 2 --batch-size 5",
    ],
)
def test_the_loop_equals_one_written_out_in_formulas(tmp_path, small, tiny, monkeypatch, options):
    # In float64, because in float32 rounding now and then takes a ReLU to the other side.
    monkeypatch.setattr(train, "resnet18", lambda *args: tiny_resnet(*args).double())
    monkeypatch.setattr(torch.Tensor, "float", torch.Tensor.double)
    options = f"--epochs 2 --lr 0.05 --warmup-epochs 0.5 {options}"
    run(tmp_path / "run", options)
    args = config_of(f"{' '.join(SMALL)} {options}", "shapes")
    model, epochs = train_by_formulas(small[0], args)
    ours, expected = dict(last(tmp_path / "run")["model"]), dict(model.state_dict())
    torch.testing.assert_close(ours, expected, rtol=1e-6, atol=1e-8)
    for row, (loss, train_accuracy, lr) in zip(read_history(tmp_path / "run"), epochs, strict=True):
        assert row["train_loss"] == pytest.approx(loss, rel=1e-6)
        assert row["train_accuracy"] == pytest.approx(train_accuracy, abs=1e-9)
        assert row["lr"] == pytest.approx(lr, abs=1e-12)


def test_early_stopping_ends_a_run_and_it_stays_ended(tmp_path, small, tiny, monkeypatch, capsys):
    """Four epochs at 16 pixels do not count; of those at 32 the first is the best, and two follow it."""
    accuracies = iter([0.4, 0.1, 0.1, 0.1, 0.5, 0.1, 0.1, 0.1])
    validate = train.validate

    def validated(training, row):
        logits = validate(training, row)
        row["val_accuracy"] = next(accuracies)
        return 1e7 * logits

    monkeypatch.setattr(train, "validate", validated)
    run(tmp_path / "run", "--patience 2 --epochs 8 --limit-train 4 --image-sizes 16,32")
    best = read_checkpoint(tmp_path / "run" / "checkpoints" / "best.pt")
    assert (last(tmp_path / "run")["epoch"], best["epoch"]) == (7, 5)
    assert last(tmp_path / "run")["val_accuracy"] == best["val_accuracy"] == 0.5
    logits = best["val_logits"]  # which were too large for float16
    assert logits.dtype == torch.float16 and logits.isfinite().all() and logits.abs().max() > 5e4
    before = contents(tmp_path)
    capsys.readouterr()
    assert go_on(tmp_path / "run") == 0
    assert "after 7 epochs" in capsys.readouterr().out and contents(tmp_path) == before


def test_what_a_run_leaves_behind(tmp_path, small, monkeypatch):
    train_set = replace(small[0], labels=small[0].labels % 4, class_names=list("abcd"))
    monkeypatch.setattr(data, "load", lambda *some: (train_set, train_set))
    run(tmp_path, "--limit-train 20 --batch-size 10 --lr 0.05 --val-fraction 0.4 --image-sizes 16,20")
    history, config = read_history(tmp_path), config_json(tmp_path)
    # The validation numbers again, from the checkpoint alone.
    best = read_checkpoint(tmp_path / "checkpoints" / "best.pt")
    network, _ = report.load_network(tmp_path / "checkpoints" / "best.pt")
    _, val_index = split_indices(train_set, 0.4, 0)
    assert len(val_index) == 120 and (config["num_train"], config["num_val"]) == (20, 13)
    images, labels = train_set.images[val_index[:13]], train_set.labels[val_index[:13]]
    with torch.no_grad():
        logits = network(normalised(images / 255, 20))
    expected = (logits.argmax(dim=1) == labels).sum().item() / 13
    assert best["val_accuracy"] == expected == max(row["val_accuracy"] for row in history)
    row = history[best["epoch"] - 1]
    log_p = logits.log_softmax(dim=1)
    loss = -(0.9 * log_p[range(13), labels] + 0.1 * log_p.mean(dim=1)).mean().item()
    assert row["val_loss"] == pytest.approx(loss, rel=1e-4) and row["val_accuracy"] == expected
    torch.testing.assert_close(best["val_logits"].float(), logits, rtol=1e-2, atol=1e-2)
    assert torch.equal(best["val_labels"], labels) and best["class_names"] == train_set.class_names
    assert (config["dataset"], config["width"], config["image_size"]) == ("shapes", 16, 20)
    assert config["digest"] == train_set.digest and config["provenance"] == train_set.provenance
    assert config["parameters"] == sum(p.numel() for p in network.parameters())
    # Nothing but plain values in config.json, and the same in the checkpoint.
    assert json.loads(json.dumps(best["config"])) == best["config"] == config


def test_a_folder_of_pictures(tmp_path, tiny, monkeypatch, capsys):
    """Three colours, in unequal numbers; val/ is the test set."""
    colours = {"röd 1": (200, 40, 40), "green": (40, 200, 40), "blue": (40, 40, 200)}
    for split, counts in {"train": (14, 22, 9), "val": (2, 3, 1)}.items():
        for (name, colour), count in zip(colours.items(), counts, strict=True):
            folder = tmp_path / "sets" / "my pictures" / split / name
            folder.mkdir(parents=True)
            for i in range(count):
                one_more = tuple(value + i for value in colour)  # as copies would all go to training
                Image.new("RGB", (20 + i, 40), one_more).save(folder / f"{i}.png")
    monkeypatch.chdir(tmp_path)
    options = ["--epochs=10", "--patience=0", "--image-sizes=16", "--device=cpu", "--precision=fp32"]
    assert train.main(["--dataset", "sets/my pictures/", *options]) == 0
    assert "36 images to train on, 9 to validate" in capsys.readouterr().out
    _, best = report.load_network("runs/my pictures/checkpoints/best.pt")
    assert best["class_names"] == ["blue", "green", "röd 1"]
    assert best["config"]["dataset"] == "sets/my pictures/"
    settings = best["config"]["settings"]
    assert (settings["batch_size"], settings["width"], settings["lr"]) == (32, 16, 0.1)
    assert best["val_accuracy"] >= 7 / 9
    (tmp_path / "sets" / "my pictures").rename(tmp_path / "moved")
    resume = ["--resume", "--out", "runs/my pictures"]
    with pytest.raises(UserError, match=r"--dataset sets/my pictures/: .* or a folder that is there"):
        train.main(resume)
    assert train.main([*resume, "--dataset", "moved"]) == 0


def interrupt(monkeypatch, number):
    """Press Ctrl-C in the n-th step from now on, once."""
    steps = itertools.count(1)

    def counting(*args):
        for batch in batches(*args):
            if next(steps) == number:
                raise KeyboardInterrupt
            yield batch

    monkeypatch.setattr(train, "batches", counting)


def test_interrupted_and_resumed_is_the_same_to_the_bit(tmp_path, small, tiny, monkeypatch, capsys):
    """Three steps are an epoch: what comes after the last finished one is done again."""
    options = "--clip-norm 0.3 --momentum 0.5 --seed 3 --label-smoothing 0 --cutmix 0.5"
    run(tmp_path / "whole", options)
    interrupt(monkeypatch, 5)
    assert run(tmp_path / "parts", options) == 130
    assert last(tmp_path / "parts")["epoch"] == 1
    torch.manual_seed(5)  # a program that draws other random numbers in between
    assert go_on(tmp_path / "parts") == 0
    assert_same_run(tmp_path / "parts", tmp_path / "whole")
    out = capsys.readouterr().out
    assert "interrupted; the same command with --resume" in out
    assert "\nresumed  after 1 epochs\n" in out and "\nnote " not in out


def test_resume_keeps_the_settings_and_what_may_change_may(tmp_path, small, tiny, monkeypatch):
    """config.json goes on to say how the run began; the history says in which precision each epoch was."""
    odd = "--momentum 0 --label-smoothing 0 --patience 1 --seed 0 --clip-norm 1 --warmup-epochs 1"
    interrupt(monkeypatch, 8)
    assert run(tmp_path / "here", odd) == 130
    expected = asdict(config_of(f"{' '.join(SMALL)} {odd}", "shapes"))
    began = config_json(tmp_path / "here")
    moved = tmp_path / "moved away ä"
    (tmp_path / "here").rename(moved)
    (moved / "config.json").unlink()  # last.pt alone says what the run is
    seen = []
    monkeypatch.setattr(data, "load", lambda name, root, size: seen.append(root) or small)
    assert go_on(moved, "--data-dir elsewhere --precision bf16") == 0
    expected |= {"out": str(moved), "data_dir": "elsewhere"}
    assert config_json(moved) == last(moved)["config"] == began | {"settings": expected}
    assert seen == ["elsewhere"]
    assert [row["precision"] for row in read_history(moved)] == ["fp32", "fp32", "bf16"]


def test_clipping_is_of_the_gradient_and_not_of_the_scaled_one(tmp_path, small, tiny, monkeypatch):
    """With a scaler that multiplies by a power of two and float32, nothing changes, not even a bit."""
    run(tmp_path / "plain", "--clip-norm 0.05")
    scaler = torch.amp.GradScaler
    monkeypatch.setattr(torch.amp, "GradScaler", lambda device, enabled: scaler(device, init_scale=1024.0))
    run(tmp_path / "scaled", "--clip-norm 0.05")
    plain, scaled = (last(tmp_path / name)["model"] for name in ("plain", "scaled"))
    torch.testing.assert_close(scaled, plain, rtol=0, atol=0)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_on_cuda(tmp_path, small, monkeypatch, precision):
    options = f"--device cuda --precision {precision} --limit-train 40 --epochs 6"
    interrupt(monkeypatch, 12)
    assert run(tmp_path / "run", options) == 130 and go_on(tmp_path / "run") == 0
    losses = [row["train_loss"] for row in read_history(tmp_path / "run")]
    assert losses[-1] < losses[0]
    # The weights were saved from the GPU and load on the CPU.
    network, _ = report.load_network(tmp_path / "run" / "checkpoints" / "best.pt")
    assert network(torch.rand(2, 3, 32, 32)).isfinite().all()


@pytest.mark.parametrize(
    "kind, capability, cpuinfo, expected",
    [
        ("cuda", (7, 5), "", "fp16"),  # T4
        ("cuda", (8, 0), "", "bf16"),  # A100
        ("cpu", None, "AuthenticAMD avx512_bf16", "bf16"),  # Zen 4
        ("cpu", None, "AuthenticAMD avx512f", "fp32"),
        ("cpu", None, "GenuineIntel avx512_bf16 amx_bf16", "bf16"),  # Sapphire Rapids
    ],
)
def test_auto_precision(monkeypatch, kind, capability, cpuinfo, expected):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    monkeypatch.setattr(train, "cpuinfo", lambda: cpuinfo)
    assert train.pick_precision("auto", torch.device(kind)) == expected
    assert train.pick_precision("fp32", torch.device(kind)) == "fp32"


def test_autocast_computes_in_that_precision():
    for precision, dtype in {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}.items():
        with train.autocast(torch.device("cpu"), precision):
            assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == dtype

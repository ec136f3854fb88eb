"""train.py: the schedule against torch's schedulers, the loop against a second one written out in formulas,
and resuming against not having been interrupted."""

import contextlib
import csv
import json
import math
import os
import types
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
import torchvision
from processes import write_config
from torch import nn
from torch.optim.lr_scheduler import CosineAnnealingLR, LambdaLR, SequentialLR

import train
from data import batches, split_indices, to_input
from resnet_cifar import resnet18
from running.files import UserError
from running.folder import load_checkpoint, read_config, read_history, save_checkpoint

CPU = torch.device("cpu")
# Three epochs of three steps, a fraction of a second.
TINY = "--dataset shapes --width 16 --limit-train 12 --batch-size 4 --epochs 3 --device cpu --precision fp32"
COLUMNS = ["epoch", "image_size", "lr", "train_loss", "train_accuracy", "val_loss", "val_accuracy"]
COLUMNS += ["seconds", "images_per_second"]


def run(out, options=""):
    """Train in this process; the last of two equal options counts."""
    return train.main([*TINY.split(), "--out", str(out), *options.split()])


def resume(out, options=""):
    return train.main(["--resume", "--out", str(out), *options.split()])


def settings(options):
    return train.read_settings(options.split())[0]


def last(out):
    return load_checkpoint(out / "checkpoints" / "last.pt", resuming=True)


def without_times(history):
    return [{k: v for k, v in row.items() if k not in ("seconds", "images_per_second")} for row in history]


def assert_same_run(out, reference):
    """Every bit of the weights, the optimizer, the history and best.pt is the same; not so the times."""
    ours, theirs = last(out), last(reference)
    for key in ("model", "optimizer", "scaler", "epoch"):
        torch.testing.assert_close(ours[key], theirs[key], rtol=0, atol=0)
    assert without_times(ours["history"]) == without_times(theirs["history"])
    assert without_times(read_history(out)) == without_times(read_history(reference))
    best = [load_checkpoint(folder / "checkpoints" / "best.pt") for folder in (out, reference)]
    for key in ("model", "epoch", "val_accuracy"):
        torch.testing.assert_close(best[0][key], best[1][key], rtol=0, atol=0)


# ---------------------------------------------------------------------------------------------------------
# The schedule


@pytest.mark.parametrize(
    "total, warmup, peak, final", [(300, 45, 0.15, 0.0), (70, 1, 2.0, 0.1), (9, 0, 1, 0)]
)
def test_schedule_equals_torch_schedulers_stepped_every_batch(total, warmup, peak, final):
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1, dtype=torch.float64))], lr=peak)
    cosine = CosineAnnealingLR(optimizer, total - warmup, eta_min=final)
    scheduler = cosine
    if warmup:
        for group in optimizer.param_groups:
            group["lr"] = peak
        linear = LambdaLR(optimizer, lambda step: step / warmup)
        scheduler = SequentialLR(optimizer, [linear, cosine], milestones=[warmup])
    for step in range(total):
        expected = optimizer.param_groups[0]["lr"]
        assert train.warmup_cosine(step, total, warmup, peak, final) == pytest.approx(expected, abs=1e-9), (
            step
        )
        optimizer.step()
        scheduler.step()


@pytest.mark.parametrize(
    "total, warmup, peak, final", [(100, 20, 0.3, 0.0), (50, 50, 1.0, 0.2), (7, 0, 1, 0.5)]
)
def test_schedule_equals_its_formula(total, warmup, peak, final):
    for step in range(total + 5):
        if step < warmup:
            expected = peak / warmup * step
        elif step < total:
            # (1 + cos x) / 2 = cos^2(x / 2)
            expected = (
                final + (peak - final) * math.cos(math.pi / 2 * (step - warmup) / (total - warmup)) ** 2
            )
        else:
            expected = final
        assert train.warmup_cosine(step, total, warmup, peak, final) == pytest.approx(expected, abs=1e-12)


def test_a_schedule_of_one_step():
    assert train.warmup_cosine(0, 1, 0, 0.3, 0.1) == 0.3  # the peak, without a warmup
    assert train.warmup_cosine(0, 1, 1, 0.3, 0.1) == 0  # the first step of a warmup
    assert train.warmup_cosine(1, 1, 1, 0.3, 0.1) == 0.1


@pytest.mark.parametrize("step, total, warmup", [(-1, 10, 2), (0, 0, 0), (0, 10, 11), (0, 10, -1)])
def test_impossible_schedules_are_refused(step, total, warmup):
    with pytest.raises(ValueError, match="no schedule"):
        train.warmup_cosine(step, total, warmup, 0.1)


# ---------------------------------------------------------------------------------------------------------
# The optimizer and the loop, written out


def test_optimizer_decays_the_weights_of_layers_and_nothing_else():
    model = resnet18(10, width=4)
    optimizer = train.make_optimizer(model, 0.1, 0.9, 0.01)
    decay = {id(p): group["weight_decay"] for group in optimizer.param_groups for p in group["params"]}
    assert sum(len(group["params"]) for group in optimizer.param_groups) == len(list(model.parameters()))
    for name, module in model.named_modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            assert decay[id(module.weight)] == 0.01, name
        if isinstance(module, nn.BatchNorm2d):
            assert decay[id(module.weight)] == 0 and decay[id(module.bias)] == 0, name
    assert decay[id(model.fc.bias)] == 0


@pytest.mark.parametrize("momentum", [0.0, 0.8])
def test_optimizer_steps_by_the_nesterov_equations(momentum):
    model = nn.Linear(3, 2).double()
    optimizer = train.make_optimizer(model, 0.1, momentum, 0.01)
    parameters = {name: p.detach().clone() for name, p in model.named_parameters()}
    velocity = {name: torch.zeros_like(p) for name, p in parameters.items()}
    for step in range(3):
        generator = torch.Generator().manual_seed(step)
        for name, p in model.named_parameters():
            p.grad = torch.randn(p.shape, generator=generator, dtype=p.dtype)
            gradient = p.grad + (0.01 * parameters[name] if name == "weight" else 0)
            velocity[name] = momentum * velocity[name] + gradient
            parameters[name] = parameters[name] - 0.1 * (gradient + momentum * velocity[name])
        optimizer.step()
    torch.testing.assert_close(dict(model.named_parameters()), parameters, rtol=0, atol=1e-14)


@pytest.mark.parametrize(
    "epochs, sizes, expected",
    [
        (18, [20, 24, 32], [20] * 6 + [24] * 6 + [32] * 6),
        (10, [20, 24, 32], [20] * 3 + [24] * 3 + [32] * 4),
        (2, [20, 24, 32], [24, 32]),
        (1, [20, 24, 32], [32]),
        (5, [32], [32] * 5),
        (4, [28, 16], [28, 28, 16, 16]),
    ],
)
def test_every_size_has_its_share_of_the_epochs(epochs, sizes, expected):
    assert [train.image_size(epoch, epochs, sizes) for epoch in range(1, epochs + 1)] == expected


@pytest.mark.parametrize("num_sizes", [1, 2, 3, 5])
def test_shares_differ_by_at_most_one_epoch_and_the_last_size_comes_last(num_sizes):
    sizes = list(range(8, 8 + num_sizes))
    for epochs in range(1, 41):
        used = [train.image_size(epoch, epochs, sizes) for epoch in range(1, epochs + 1)]
        assert used == sorted(used) and used[-1] == sizes[-1]
        counts = [used.count(size) for size in sizes]
        assert max(counts) - min(counts) <= 1, (epochs, counts)


def resized(images, size):
    """Antialiased bilinear, as a matrix: a triangle as wide as the scale, at the centre of each new pixel."""
    old = images.shape[-1]
    centres = (torch.arange(size, dtype=images.dtype) + 0.5) * old / size
    distance = (torch.arange(old, dtype=images.dtype) + 0.5 - centres[:, None]).abs()
    weights = (1 - distance * size / old).clamp(min=0)
    weights = weights / weights.sum(dim=1, keepdim=True)
    return torch.einsum("ij,ncjk,lk->ncil", weights, images, weights)


def train_by_formulas(dataset, args):
    """The training of train.py again, with its loss, clipping, schedule and optimizer written out.

    Returns the model, and (mean loss, accuracy) of each epoch.
    """
    torch.manual_seed(args.seed)
    train_index, _ = split_indices(dataset, args.val_fraction, args.seed)
    images, labels = (tensor[train_index[: args.limit_train]] for tensor in (dataset.images, dataset.labels))
    model = resnet18(len(dataset.class_names), args.width).double()
    velocity = {name: torch.zeros_like(p) for name, p in model.named_parameters()}
    steps, epochs = len(images) // args.batch_size, []
    for epoch in range(args.epochs):
        losses, correct = [], 0
        size = train.image_size(epoch + 1, args.epochs, args.sizes())
        cutmix = args.cutmix if epoch + 1 <= 0.9 * args.epochs else 0
        drawn = batches(
            images, F.one_hot(labels, 100).double(), args.batch_size, args.seed, epoch + 1, cutmix
        )
        for i, (batch, targets) in enumerate(drawn):
            step, total, warmup = epoch * steps + i, args.epochs * steps, round(args.warmup_epochs * steps)
            if step < warmup:
                lr = args.lr * step / warmup
            else:
                lr = args.lr * math.cos(math.pi / 2 * (step - warmup) / (total - warmup)) ** 2
            log_p = model(resized(to_input(batch).double(), size)).log_softmax(dim=1)
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
                is_layer_weight = name.endswith("weight") and not any(
                    x in name for x in ("bn", "downsample.1")
                )
                gradient = factor * gradient + (args.weight_decay * p.detach() if is_layer_weight else 0)
                velocity[name] = args.momentum * velocity[name] + gradient
                p.data -= lr * (gradient + args.momentum * velocity[name])
        epochs.append((sum(losses) / len(losses), correct / (steps * args.batch_size), lr))
    return model, epochs


@pytest.mark.parametrize(
    "options",
    [
        "",
        pytest.param("--clip-norm 0.5 --seed 5", marks=pytest.mark.slow),
        pytest.param("--clip-norm 0 --label-smoothing 0 --lr 0.01", marks=pytest.mark.slow),
        "--momentum 0 --weight-decay 0.1 --warmup-epochs 0",
        pytest.param("--label-smoothing 0.4 --warmup-epochs 2 --batch-size 5", marks=pytest.mark.slow),
        pytest.param("--image-sizes 32", marks=pytest.mark.slow),
        "--cutmix 1",
        "--image-sizes 13,21",
    ],
)
def test_the_loop_equals_one_written_out_in_formulas(tmp_path, small, monkeypatch, options):
    # In float64, because in float32 rounding now and then takes a ReLU to the other side.
    monkeypatch.setattr(train, "resnet18", lambda *args: resnet18(*args).double())
    monkeypatch.setattr(train, "to_input", lambda *args: to_input(*args).double())
    monkeypatch.setattr(torch.Tensor, "float", torch.Tensor.double)
    options = f"--epochs 2 --lr 0.05 --warmup-epochs 0.5 {options}"
    run(tmp_path / "run", options)
    args = settings(f"{TINY} {options}")
    model, epochs = train_by_formulas(small[0], args)
    ours, expected = dict(last(tmp_path / "run")["model"]), dict(model.state_dict())
    torch.testing.assert_close(ours, expected, rtol=1e-6, atol=1e-8)
    for row, (loss, train_accuracy, lr) in zip(read_history(tmp_path / "run"), epochs, strict=True):
        assert row["train_loss"] == pytest.approx(loss, rel=1e-6)
        assert row["train_accuracy"] == pytest.approx(train_accuracy, abs=1e-9)
        assert row["lr"] == pytest.approx(lr, abs=1e-12)


@pytest.mark.parametrize("value", ["20,", "a", "20 24", "33", "7,32", "", "-20"])
def test_wrong_image_sizes_are_named(value):
    with pytest.raises(UserError, match=f"--image-sizes {value}: expected sizes from 8 to 32"):
        train.read_settings([f"--image-sizes={value}"])


def test_same_seed_same_run_and_another_seed_another(tmp_path, small):
    for name, seed in [("a", 1), ("b", 1), ("c", 2)]:
        torch.rand(7)  # whatever was drawn before must not matter
        run(tmp_path / name, f"--seed {seed}")
    assert_same_run(tmp_path / "a", tmp_path / "b")
    assert not torch.equal(
        last(tmp_path / "a")["model"]["fc.weight"], last(tmp_path / "c")["model"]["fc.weight"]
    )


@pytest.mark.slow
@pytest.mark.parametrize("limit, per_class", [(100, {1}), (150, {1, 2}), (40, {0, 1})])
def test_limit_train_is_balanced(tmp_path, small, monkeypatch, limit, per_class):
    seen = []
    monkeypatch.setattr(train, "batches", lambda *args: seen.append(args[:2]) or batches(*args))
    run(tmp_path / "run", f"--limit-train {limit} --batch-size 20 --epochs 1")
    images, targets = seen[0]
    assert len(images) == len(targets) == limit
    assert set(targets.sum(dim=0).tolist()) == per_class
    config = read_config(tmp_path / "run")
    # A fifth of the images, rounded for each class of three, is one: validation has half as many as training.
    assert (config["num_train"], config["num_val"]) == (limit, limit // 2)


def history_of(accuracies, sizes):
    """Rows of a history, with nothing but what early stopping looks at."""
    return [
        {"epoch": i + 1, "image_size": size, "val_accuracy": accuracy}
        for i, (accuracy, size) in enumerate(zip(accuracies, sizes, strict=True))
    ]


@pytest.mark.slow
@pytest.mark.parametrize("patience, epochs_run", [(1, 3), (2, 4), (3, 6), (0, 8)])
def test_early_stopping(tmp_path, small, monkeypatch, capsys, patience, epochs_run):
    accuracies = iter([0.1, 0.2, 0.2, 0.1, 0.3, 0.1, 0.1, 0.1][: 2 if patience == 1 else 8] + [0.0] * 8)
    if patience == 3:
        accuracies = iter([0.1, 0.1, 0.3, 0.2, 0.2, 0.2])
    monkeypatch.setattr(train, "accuracy", lambda *args: next(accuracies))
    options = f"--patience {patience} --epochs 8 --limit-train 4 --image-sizes 32"
    run(tmp_path / "run", options)
    saved = last(tmp_path / "run")
    assert (saved["epoch"], len(saved["history"])) == (epochs_run, epochs_run)
    assert train.should_stop(saved["history"], settings(options))
    assert not train.should_stop(saved["history"][:-1], settings(options))
    assert ("stopped early" in capsys.readouterr().out) == (patience > 0)
    best = load_checkpoint(tmp_path / "run" / "checkpoints" / "best.pt")
    expected = {1: (2, 0.2), 2: (2, 0.2), 3: (3, 0.3), 0: (5, 0.3)}[patience]
    row = train.best_row(saved["history"])
    assert (best["epoch"], best["val_accuracy"]) == expected == (row["epoch"], row["val_accuracy"])
    # A run that was stopped early is finished for --resume as well.
    assert resume(tmp_path / "run") == 0
    assert f"is finished after {epochs_run} epochs" in capsys.readouterr().out


def test_patience_begins_with_images_of_the_last_size(tmp_path, small, monkeypatch):
    """Four epochs at 16 pixels, the first of them the best; then two at 32 without a better one."""
    accuracies = iter([0.5] + [0.1] * 7)
    monkeypatch.setattr(train, "accuracy", lambda *args: next(accuracies))
    options = "--patience 2 --epochs 8 --limit-train 4 --image-sizes 16,32"
    run(tmp_path / "run", options)
    saved = last(tmp_path / "run")
    assert (saved["epoch"], train.best_row(saved["history"])["epoch"]) == (6, 1)
    assert train.should_stop(saved["history"], settings(options))


def test_the_default_patience_can_fire():
    """In the default 40 epochs, of which those from the 27th on have full size, and after the best one."""
    defaults = settings("")
    sizes = [train.image_size(epoch, 40, defaults.sizes()) for epoch in range(1, 41)]
    assert sizes.index(32) == 26

    def epochs_run(accuracies):
        history = history_of(accuracies, sizes)
        return next(n for n in range(1, 41) if train.should_stop(history[:n], defaults))

    assert epochs_run([0.5] + [0.1] * 39) == 31
    assert epochs_run([epoch / 100 for epoch in range(30)] + [0.1] * 10) == 35
    assert epochs_run([epoch / 100 for epoch in range(40)]) == 40
    assert epochs_run([epoch / 100 for epoch in range(35)] + [0.1] * 4 + [0.5]) == 40


@pytest.mark.parametrize("epochs, patience", [(3, 5), (40, 5), (47, 5), (48, 6), (200, 25)])
def test_the_default_patience_is_an_eighth_of_the_epochs_and_at_least_five(epochs, patience):
    assert settings(f"--epochs {epochs}").patience == patience
    assert settings(f"--epochs {epochs} --patience 7").patience == 7


def test_the_default_patience_would_not_have_ended_the_run_in_results():
    with open(Path(train.__file__).parent / "results" / "history.csv", newline="") as file:
        history = [{key: float(value) for key, value in row.items()} for row in csv.DictReader(file)]
    begun = settings("")
    assert len(history) == begun.epochs
    for epochs in range(1, begun.epochs):
        assert not train.should_stop(history[:epochs], begun)
    assert train.should_stop(history, begun)


# ---------------------------------------------------------------------------------------------------------
# predict


@pytest.fixture(scope="module")
def network():
    torch.manual_seed(0)
    model = resnet18(10, width=4)
    model.train()
    model(torch.randn(64, 3, 32, 32))  # so that the running statistics are not the initial ones
    return model


IMAGES = torch.randint(0, 256, (23, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("batch_size", [1, 7, 23, 500])
def test_predict_equals_the_plain_forward_pass_and_restores_the_mode(network, training, batch_size):
    state = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    with torch.no_grad():
        expected = network.eval()(to_input(IMAGES))
    network.train(training)
    logits = train.predict(network, IMAGES, CPU, batch_size=batch_size)
    assert network.training == training == network.layer1[0].bn1.training
    assert logits.dtype == torch.float32 and logits.shape == (23, 10) and not logits.requires_grad
    torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(dict(network.state_dict()), state, rtol=0, atol=0)


def test_predict_in_bfloat16_is_near_and_float32(network):
    logits = train.predict(network, IMAGES, CPU, "bf16")
    expected = train.predict(network, IMAGES, CPU)
    assert logits.dtype == torch.float32
    assert 0 < (logits - expected).abs().max() < 0.05 * expected.abs().max()


def test_predict_restores_the_mode_when_the_model_raises(network):
    network.train()
    with pytest.raises(ValueError):
        train.predict(network, IMAGES[:, :2], CPU)
    assert network.training and network.layer1[0].bn1.training


def test_predict_reports_its_progress(network):
    seen = []
    train.predict(network, IMAGES, CPU, batch_size=10, progress=types.SimpleNamespace(update=seen.append))
    assert seen == [10, 20, 23]


# ---------------------------------------------------------------------------------------------------------
# A run from end to end


@pytest.mark.slow
def test_a_run_on_shapes(shapes_run):
    history, config = read_history(shapes_run), read_config(shapes_run)
    assert [list(row) for row in history] == [COLUMNS] * 2 and [row["epoch"] for row in history] == [1, 2]
    assert history[1]["train_loss"] < history[0]["train_loss"] < math.log(100) + 0.3
    assert history[1]["val_accuracy"] > 0.015  # a guess is right once in a hundred times
    assert (config["num_train"], config["num_val"]) == (1200, 300)
    assert config["provenance"] == "the built-in shapes set, 60 images of each of 100 classes, seed 0"


@pytest.mark.parametrize("sizes", ["24,28,32", "16,20"])
def test_what_a_run_leaves_behind(tmp_path, small, sizes):
    run(tmp_path, f"--limit-train 60 --batch-size 20 --lr 0.05 --val-fraction 0.4 --image-sizes {sizes}")
    history, config, train_set = read_history(tmp_path), read_config(tmp_path), small[0]
    # The validation numbers again, from the checkpoint alone.
    model, best = train.load_model(tmp_path / "checkpoints" / "best.pt", CPU)
    _, val_index = split_indices(train_set, 0.4, 0)
    assert len(val_index) == 100 and (config["num_train"], config["num_val"]) == (60, 30)
    images, labels = train_set.images[val_index[:30]], train_set.labels[val_index[:30]]
    with torch.no_grad():
        logits = model(resized(to_input(images), int(sizes[-2:])))
    assert best["config"]["image_size"] == int(sizes[-2:])
    expected = (logits.argmax(dim=1) == labels).sum().item() / 30
    assert best["val_accuracy"] == expected == max(row["val_accuracy"] for row in history)
    row = history[best["epoch"] - 1]
    log_p = logits.log_softmax(dim=1)
    loss = -(0.9 * log_p[range(30), labels] + 0.1 * log_p.mean(dim=1)).mean().item()
    assert row["val_loss"] == pytest.approx(loss, rel=1e-4) and row["val_accuracy"] == expected
    torch.testing.assert_close(best["val_logits"].float(), logits, rtol=1e-2, atol=1e-2)
    assert torch.equal(best["val_labels"], labels)
    assert best["class_names"] == train_set.class_names
    assert best["superclass_names"] == train_set.superclass_names
    assert best["superclass_of"] == train_set.superclass_of.tolist()
    assert config["dataset"] == "shapes" and config["width"] == 16
    assert config["digest"] == train_set.digest and config["provenance"] == train_set.provenance
    assert config["parameters"] == sum(p.numel() for p in model.parameters())
    assert all(isinstance(value, str | int) for value in config["environment"].values())
    # Nothing but plain values in config.json, and the same in the checkpoint.
    assert json.loads(json.dumps(best["config"])) == best["config"] == config


@pytest.mark.slow
def test_training_lowers_the_loss(tmp_path, small, capsys):
    run(tmp_path / "run", "--epochs 15 --limit-train 40 --batch-size 20 --label-smoothing 0 --patience 0")
    losses = [row["train_loss"] for row in read_history(tmp_path / "run")]
    assert losses[-1] < 0.7 * losses[0]
    out = capsys.readouterr().out
    assert f"saved    {tmp_path / 'run' / 'checkpoints' / 'best.pt'}" in out
    assert f"next     python report.py --run {tmp_path / 'run'}" in out


# ---------------------------------------------------------------------------------------------------------
# Interrupted and resumed


@pytest.fixture
def interrupt(monkeypatch):
    """interrupt(n): Ctrl-C is pressed in the n-th step from now on, once."""

    def at_step(number):
        count = 0

        def counting(*args):
            nonlocal count
            for batch in batches(*args):
                count += 1
                if count == number:
                    raise KeyboardInterrupt
                yield batch

        monkeypatch.setattr(train, "batches", counting)

    return at_step


@pytest.mark.parametrize("step", [4, *(pytest.param(step, marks=pytest.mark.slow) for step in (5, 9))])
def test_interrupted_and_resumed_is_the_same_to_the_bit(tmp_path, small, interrupt, capsys, step):
    """Three steps are an epoch: what comes after the last finished one is done again."""
    options = "--batch-size 4 --clip-norm 0.3 --momentum 0.5 --seed 3 --label-smoothing 0 --patience 0"
    run(tmp_path / "whole", options)
    interrupt(step)
    assert run(tmp_path / "parts", options) == 130
    finished = (step - 1) // 3
    assert last(tmp_path / "parts")["epoch"] == finished
    torch.manual_seed(step)  # a program that draws other random numbers in between
    assert resume(tmp_path / "parts") == 0
    assert_same_run(tmp_path / "parts", tmp_path / "whole")
    out = capsys.readouterr().out
    command = f"python train.py --resume --out {tmp_path / 'parts'}\n"
    assert f"interrupted; resume with: {command}" in out and f"resumed  after {finished} epochs\n" in out


@pytest.mark.slow
def test_interrupted_after_every_epoch_and_resumed_is_the_same_to_the_bit(tmp_path, small, interrupt):
    run(tmp_path / "whole", "--epochs 4")
    interrupt(4)
    codes = [run(tmp_path / "parts", "--epochs 4")]
    while codes[-1] == 130:
        interrupt(4)
        codes.append(resume(tmp_path / "parts"))
    assert codes == [130] * 3 + [0]
    assert_same_run(tmp_path / "parts", tmp_path / "whole")


@pytest.mark.slow
def test_interrupted_in_the_validation_repeats_the_epoch(tmp_path, small, monkeypatch):
    run(tmp_path / "whole")
    predict, calls = train.predict, []

    def pressed(*args, **kwargs):
        calls.append(len(args[1]))
        if len(calls) == 2:
            raise KeyboardInterrupt
        return predict(*args, **kwargs)

    monkeypatch.setattr(train, "predict", pressed)
    assert run(tmp_path / "parts") == 130
    assert last(tmp_path / "parts")["epoch"] == 1
    assert resume(tmp_path / "parts") == 0 and len(calls) == 4
    assert_same_run(tmp_path / "parts", tmp_path / "whole")


@pytest.mark.slow
@pytest.mark.parametrize("file", ["best.pt", "last.pt"])
def test_interrupted_before_a_checkpoint_is_written_is_the_same_to_the_bit(
    tmp_path, small, monkeypatch, file
):
    """As after kill -9 at that moment: nothing is caught, and the disk has what was there before."""
    run(tmp_path / "whole")

    class Killed(BaseException):
        pass

    def dying(path, checkpoint):
        if checkpoint["epoch"] == 2 and path.name == file:
            raise Killed
        save_checkpoint(path, checkpoint)

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(train, "save_checkpoint", dying)
        patch.setattr(train, "best_row", lambda history: history[-1])  # so that each epoch is the best
        run(tmp_path / "parts")
    assert last(tmp_path / "parts")["epoch"] == 1
    assert resume(tmp_path / "parts") == 0
    assert_same_run(tmp_path / "parts", tmp_path / "whole")


def test_without_a_finished_epoch_there_is_nothing_to_resume(tmp_path, small, interrupt, monkeypatch):
    out = tmp_path / "run"
    interrupt(2)
    with pytest.raises(KeyboardInterrupt):  # which ends the command with "interrupted" and exit code 130
        run(out)
    with pytest.raises(UserError, match="has no finished epoch to resume: start it again with --overwrite"):
        resume(out)
    # That does it also where best.pt was written, and last.pt was not.
    (out / "checkpoints").mkdir()
    (out / "checkpoints" / "best.pt").write_text("half of an epoch")
    assert run(out, "--overwrite") == 0 and last(out)["epoch"] == 3


def test_resume_of_a_finished_run_says_so_and_changes_nothing(tmp_path, small, capsys):
    run(tmp_path / "run")
    before = {path: path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()}
    assert resume(tmp_path / "run") == 0
    assert "is finished after 3 epochs" in capsys.readouterr().out
    assert {path: path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()} == before


def test_resume_takes_the_settings_of_the_run_and_what_may_change_may(
    tmp_path, small, interrupt, monkeypatch
):
    odd = "--epochs 2 --momentum 0 --label-smoothing 0 --patience 1 --seed 0 --clip-norm 1 --warmup-epochs 1"
    interrupt(5)
    assert run(tmp_path / "here", odd) == 130
    moved = tmp_path / "moved away ä"
    (tmp_path / "here").rename(moved)
    seen = []
    monkeypatch.setattr(train, "load", lambda name, root, url=None: seen.append(root) or small)
    assert resume(moved, "--data-dir elsewhere --precision bf16") == 0
    config = read_config(moved)
    expected = vars(settings(f"{TINY} {odd}"))
    expected |= {"out": str(moved), "data_dir": "elsewhere", "precision": "bf16"}
    assert config["settings"] == expected
    assert seen == ["elsewhere"] and config["precision"] == "bf16" and not (tmp_path / "here").exists()


def test_the_checkpoint_of_a_wild_epoch_can_be_read(tmp_path, small, monkeypatch):
    wild = torch.tensor([[1e9, -1e9] + [0.0] * 98]).repeat(300, 1)
    monkeypatch.setattr(train, "predict", lambda network, images, *rest, **options: wild[: len(images)])
    run(tmp_path)
    logits = load_checkpoint(tmp_path / "checkpoints" / "best.pt")["val_logits"]
    assert torch.equal(logits.sign(), wild[: len(logits)].sign())


def test_a_run_with_another_optimizer_is_resumed_with_it_alone(
    tmp_path, small, interrupt, monkeypatch, capsys
):
    sgd = train.make_optimizer
    monkeypatch.setattr(train, "make_optimizer", lambda model, *rest: torch.optim.AdamW(model.parameters()))
    run(tmp_path / "whole")
    interrupt(5)
    assert run(tmp_path / "run") == 130
    with monkeypatch.context() as patch:
        patch.setattr(train, "make_optimizer", sgd)
        with pytest.raises(UserError, match="comes from another version of train"):
            resume(tmp_path / "run")
    assert resume(tmp_path / "run") == 0
    assert_same_run(tmp_path / "run", tmp_path / "whole")


def test_resume_without_out_stays_in_the_default_folder_and_keeps_flags(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    begun = vars(settings("--out elsewhere --compile --seed 0 --epochs 1 --lr 1"))
    write_config(tmp_path / "runs" / "cifar100", settings=begun)
    resumed, resuming, overwrite = train.read_settings(["--resume"])
    assert vars(resumed) == begun | {"out": "runs/cifar100"} and (resuming, overwrite) == (True, False)
    assert settings("--resume --no-compile").compile is False  # on a machine that cannot compile


def test_resume_overlays_the_saved_settings_with_those_given(tmp_path):
    begun = vars(settings("--lr 0.3 --batch-size 64 --limit-train 500 --device cpu"))
    write_config(tmp_path, settings=begun)
    resumed = settings(f"--resume --out {tmp_path} --batch-size 32 --device cuda --epochs 40")
    assert vars(resumed) == begun | {"batch_size": 32, "device": "cuda", "out": str(tmp_path)}


def test_the_last_tenth_of_the_epochs_has_no_cutmix():
    for epochs in range(1, 201):
        assert train.last_cutmix_epoch(epochs) == epochs - math.ceil(epochs / 10)


def test_cutmix_is_for_cifar100():
    assert settings("").cutmix == 0.5 and settings("--dataset shapes").cutmix == 0
    assert settings("--dataset shapes --cutmix 0.25").cutmix == 0.25


@pytest.mark.parametrize(
    "change", [lambda begun: begun.update(lookahead=5), lambda begun: begun.pop("clip_norm")]
)
def test_a_run_of_another_version_is_not_resumed(tmp_path, change):
    begun = vars(settings(""))
    change(begun)
    write_config(tmp_path, settings=begun)
    with pytest.raises(UserError, match=r"was started by another version of train\.py: resume it with that"):
        settings(f"--resume --out {tmp_path}")


@pytest.mark.parametrize(
    "options, named",
    [
        ("--epochs 4", "--epochs 3"),
        ("--lr 0.1 --seed 1", "--lr 0.15, --seed 0"),
        ("--width 17", "--width 16"),
        ("--warmup-epochs 0", "--warmup-epochs 0.6"),
        ("--dataset cifar100", "--dataset shapes"),
    ],
)
def test_resume_with_changed_settings_names_them(tmp_path, small, interrupt, options, named):
    interrupt(4)
    run(tmp_path / "run")
    before = (tmp_path / "run" / "checkpoints" / "last.pt").read_bytes()
    with pytest.raises(UserError) as info:
        resume(tmp_path / "run", options)
    assert f"was started with {named}:" in str(info.value)
    assert (tmp_path / "run" / "checkpoints" / "last.pt").read_bytes() == before


def test_resume_believes_the_checkpoint_rather_than_an_edited_config(tmp_path, small, interrupt):
    interrupt(4)
    run(tmp_path / "run")
    path = tmp_path / "run" / "config.json"
    path.write_text(path.read_text().replace('"epochs": 3', '"epochs": 30'))
    with pytest.raises(UserError, match="was started with --epochs 3:"):
        resume(tmp_path / "run")


def test_a_wrong_setting_leaves_no_trace(tmp_path):
    """Config are checked before the folder is made and locked."""
    for options in ("--epochs 0", "--image-sizes 5", "--warmup-epochs 4", "--resume"):
        with pytest.raises(UserError):
            run(tmp_path / "run", options)
        assert not (tmp_path / "run").exists(), options


# ---------------------------------------------------------------------------------------------------------
# float16, which on a CPU only this test uses


@pytest.fixture
def float16(monkeypatch):
    """What float16 does to gradients, in float32, which a CPU computes faster: overflow at 65504."""

    def with_half_gradients(*args):
        model = resnet18(*args)
        for parameter in model.parameters():
            parameter.register_hook(lambda gradient: gradient.half().float())
        return model

    monkeypatch.setattr(train, "pick_precision", lambda name, device: "fp16")
    monkeypatch.setattr(train, "autocast", lambda device, precision: contextlib.nullcontext())
    monkeypatch.setattr(train, "resnet18", with_half_gradients)


@pytest.mark.slow
def test_float16_skips_steps_and_is_not_stopped_by_that(tmp_path, small, float16, monkeypatch, interrupt):
    steps = []
    sgd_step, scaler = torch.optim.SGD.step, torch.amp.GradScaler
    monkeypatch.setattr(torch.optim.SGD, "step", lambda self: steps.append(1) or sgd_step(self))
    # A scale that the gradients cannot bear: it is halved step by step until they can.
    monkeypatch.setattr(torch.amp, "GradScaler", lambda *a, **k: scaler(*a, **k, init_scale=2.0**19))
    options = "--epochs 5 --lr 0.02 --patience 0"
    assert run(tmp_path / "whole", options) == 0
    halved = math.log2(2.0**19 / last(tmp_path / "whole")["scaler"]["scale"])
    assert 2 <= halved <= 13 and len(steps) == 15 - halved
    assert all(math.isfinite(value) for row in read_history(tmp_path / "whole") for value in row.values())
    # The state of the scaler is saved and restored as well.
    interrupt(5)
    assert run(tmp_path / "parts", options) == 130 and resume(tmp_path / "parts") == 0
    assert_same_run(tmp_path / "parts", tmp_path / "whole")


@pytest.mark.slow
def test_a_run_may_change_to_float16_and_back(tmp_path, small, float16, monkeypatch, interrupt):
    with monkeypatch.context() as patch:
        patch.setattr(train, "pick_precision", lambda name, device: "fp32")
        interrupt(5)
        assert run(tmp_path / "run", "--lr 0.02") == 130
    assert last(tmp_path / "run")["scaler"] == {}
    interrupt(5)
    assert resume(tmp_path / "run", "--precision fp16") == 130
    assert last(tmp_path / "run")["scaler"]["scale"] > 0
    monkeypatch.setattr(train, "pick_precision", lambda name, device: "fp32")
    assert resume(tmp_path / "run", "--precision fp32") == 0


def test_clipping_is_of_the_gradient_and_not_of_the_scaled_one(tmp_path, small, monkeypatch):
    """With a scaler that multiplies by a power of two and float32, nothing changes, not even a bit."""
    run(tmp_path / "plain", "--clip-norm 0.5")
    scaler = torch.amp.GradScaler
    monkeypatch.setattr(torch.amp, "GradScaler", lambda device, enabled: scaler(device, init_scale=1024.0))
    run(tmp_path / "scaled", "--clip-norm 0.5")
    plain, scaled = (last(tmp_path / name)["model"] for name in ("plain", "scaled"))
    torch.testing.assert_close(scaled, plain, rtol=0, atol=0)


# ---------------------------------------------------------------------------------------------------------
# Loading what was trained


def make_checkpoint(**changes):
    """A checkpoint of a network with three classes that is as narrow as can be."""
    torch.manual_seed(0)
    checkpoint = {
        "model": resnet18(3, 2).state_dict(),
        "config": {"dataset": "shapes", "width": 2, "image_size": 32, "settings": {"epochs": 5}},
        "epoch": 4,
        "class_names": ["a", "b", "c"],
    }
    return checkpoint | changes


def test_load_model_gives_the_same_network_in_eval_mode(tmp_path):
    torch.manual_seed(1)
    model = resnet18(3, width=2)
    model.train()(torch.randn(9, 3, 32, 32))
    save_checkpoint(tmp_path / "x.pt", make_checkpoint(model=model.state_dict()))
    loaded, checkpoint = train.load_model(tmp_path / "x.pt", CPU)
    images = torch.randn(2, 3, 32, 32)
    assert not loaded.training and checkpoint["epoch"] == 4
    assert all(p.dtype == torch.float32 for p in loaded.parameters())
    assert loaded.conv1.weight.is_contiguous(memory_format=torch.channels_last)
    with torch.inference_mode():
        torch.testing.assert_close(loaded(images), model.eval()(images))
    # Weights kept in half the bytes are read as float32.
    halved = {name: t.half() if t.is_floating_point() else t for name, t in model.state_dict().items()}
    save_checkpoint(tmp_path / "x.pt", make_checkpoint(model=halved))
    loaded, _ = train.load_model(tmp_path / "x.pt", CPU)
    torch.testing.assert_close(loaded.fc.weight, model.fc.weight.half().float(), rtol=0, atol=0)


def with_weight(name, tensor):
    return make_checkpoint()["model"] | {name: tensor}


REFUSED = {
    "no data set": (make_checkpoint(config={"width": 2, "image_size": 32}), "it lacks config.dataset"),
    "another data set": (
        make_checkpoint(config={"dataset": "imagenet", "width": 2, "image_size": 32}),
        "config.dataset is 'imagenet', expected cifar100 or shapes",
    ),
    "no width": (make_checkpoint(config={"dataset": "shapes"}), "it lacks config.width"),
    "an absurd width": (
        make_checkpoint(config={"dataset": "shapes", "width": 10**9, "image_size": 32}),
        "config.width is 1000000000, expected a whole number of 1 to 1,024",
    ),
    "no classes": (
        make_checkpoint(class_names=[]),
        "class_names is of type list, expected a list that is not",
    ),
    "another width": (
        make_checkpoint(config={"dataset": "shapes", "width": 3, "image_size": 32}),
        "holds another network: [2, 3, 3, 3] as conv1.weight, where a ResNet-18 of width 3 for 3 classes has "
        "[3, 3, 3, 3]",
    ),
    "another number of classes": (
        make_checkpoint(class_names=["a", "b"]),
        "[3, 16] as fc.weight, where a ResNet-18 of width 2 for 2 classes has [2, 16]",
    ),
    "torchvision's network": (
        make_checkpoint(
            model=torchvision.models.resnet18(num_classes=3).state_dict(),
            config={"dataset": "cifar100", "width": 64, "image_size": 32},
        ),
        "holds another network: [64, 3, 7, 7] as conv1.weight",
    ),
    "a layer too many": (
        make_checkpoint(model=with_weight("layer5.weight", torch.zeros(1))),
        "[1] as layer5.weight, where a ResNet-18 of width 2 for 3 classes has no tensor",
    ),
    "a layer too few": (
        make_checkpoint(model={k: v for k, v in make_checkpoint()["model"].items() if k != "fc.bias"}),
        "no tensor as fc.bias",
    ),
    "no tensor": (make_checkpoint(model=with_weight("fc.bias", 3.0)), "no tensor as fc.bias"),
    "a weight that is not finite": (
        make_checkpoint(model=with_weight("fc.bias", torch.tensor([0, float("nan"), 0]))),
        "holds values that are not finite in model.fc.bias",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_another_network_is_refused_by_name(tmp_path, case):
    content, message = REFUSED[case]
    torch.save(content, tmp_path / "x.pt")
    with pytest.raises(UserError) as info:
        train.load_model(tmp_path / "x.pt", CPU)
    assert message in str(info.value) and str(info.value).startswith(str(tmp_path / "x.pt"))


def test_load_data_looks_where_it_is_told_else_where_training_did_else_in_data(
    monkeypatch, small_sets, tmp_path
):
    monkeypatch.chdir(tmp_path)
    seen = []
    monkeypatch.setattr(train, "load", lambda *args: seen.append(args) or small_sets)
    names = small_sets[1].class_names
    (tmp_path / "a" / "train" / "apple").mkdir(parents=True)
    (tmp_path / "pipe").mkdir()
    os.mkfifo(tmp_path / "pipe" / "cifar100-cache.npz")
    for saved in ("a", "absent/deep", "pipe", "x" * 5000, "x\0", ""):
        config = {"dataset": "cifar100", "settings": {"data_dir": saved}}
        for given in ("b", None):
            checkpoint = make_checkpoint(class_names=names, config=config)
            assert train.load_data("x.pt", checkpoint, given) is small_sets
            assert seen.pop() == ("cifar100", given or ("a" if saved == "a" else "data")), saved
    train.load_data("x.pt", make_checkpoint(class_names=names, config={"dataset": "cifar100"}), None)
    assert seen == [("cifar100", "data")]
    assert {path.name for path in tmp_path.iterdir()} == {"a", "pipe"}  # nothing was made
    with pytest.raises(UserError, match=r"the classes of x\.pt are not those of the shapes test set"):
        train.load_data("x.pt", make_checkpoint(), None)


# ---------------------------------------------------------------------------------------------------------
# On a GPU


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_on_cuda(tmp_path, small, interrupt, precision):
    options = f"--device cuda --precision {precision} --limit-train 40 --epochs 6"
    interrupt(12)
    assert run(tmp_path / "run", options) == 130 and resume(tmp_path / "run") == 0
    losses = [row["train_loss"] for row in read_history(tmp_path / "run")]
    assert losses[-1] < losses[0]
    # The weights were saved from the GPU and load on the CPU.
    model, _ = train.load_model(tmp_path / "run" / "checkpoints" / "best.pt", CPU)
    assert train.predict(model, IMAGES, CPU).isfinite().all()

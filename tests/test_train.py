"""train.py: the schedule against torch's schedulers, the loop against a second one written out in formulas,
and resuming against not having been interrupted."""

import contextlib
import json
import math
from dataclasses import asdict

import pytest
import torch
import torch.nn.functional as F
from processes import TINY, assert_same_run, contents
from torch import nn
from torch.optim.lr_scheduler import CosineAnnealingLR, LambdaLR, SequentialLR

import train
from data import batches, split_indices, to_input
from resnet_cifar import resnet18
from running.console import CommandLine, add_options
from running.files import UserError
from running.folder import load_checkpoint, read_history, save_checkpoint

CPU = torch.device("cpu")
# Three epochs of three steps, a fraction of a second.
SMALL = [*TINY, "--dataset=shapes", "--limit-train=12"]
COLUMNS = ["epoch", "image_size", "lr", "train_loss", "train_accuracy", "val_loss", "val_accuracy"]
COLUMNS += ["seconds", "images_per_second"]


def run(out, options=""):
    """Train in this process; the last of two equal options counts."""
    return train.main([*SMALL, "--out", str(out), *options.split()])


def resume(out, options=""):
    return train.main(["--resume", "--out", str(out), *options.split()])


def config_of(options):
    """The settings that a command line gives, without a run."""
    parser = CommandLine("")
    add_options(parser, train.Config)
    return train.Config(**vars(parser.parse_args(options.split())))


def last(out):
    return load_checkpoint(out / "checkpoints" / "last.pt")


def config_json(out):
    return json.loads((out / "config.json").read_text())


# ---- Settings --------------------------------------------------------------------------------------------


def test_defaults_depend_on_the_data_set():
    shapes, cifar100 = config_of("--dataset shapes"), config_of("")
    assert [getattr(shapes, name) for name in ("width", "batch_size", "lr", "epochs")] == [16, 32, 0.1, 10]
    assert [getattr(cifar100, name) for name in ("width", "batch_size", "lr", "epochs")] == [
        64,
        128,
        0.15,
        40,
    ]
    assert (shapes.out, cifar100.out) == ("runs/shapes", "runs/cifar100")
    assert config_of("--dataset shapes --width 32 --epochs 3").width == 32
    assert config_of("--epochs 40") == cifar100 and config_of("--dataset shapes --epochs 10") == shapes


@pytest.mark.parametrize(
    "options, cutmix",
    [
        ("", 0.5),
        ("--epochs 30", 0.5),
        ("--epochs 29", 0),
        ("--dataset shapes", 0),
        ("--dataset shapes --epochs 40", 0),
        ("--epochs 5 --cutmix 0.25", 0.25),
    ],
)
def test_cutmix_is_the_default_only_where_it_pays(options, cutmix):
    assert config_of(options).cutmix == cutmix


def test_help_tells_the_defaults(capsys):
    with pytest.raises(SystemExit):
        train.main(["--help"])
    text = " ".join(capsys.readouterr().out.split())
    for part in [
        "default for cifar100: 64, default for shapes: 16",
        "default for cifar100: 40, default for shapes: 10",
        "0.5, but 0 for shapes or below 30 epochs",
        "--seed SEED decides the split, the initial weights and the batches (0 to 4294967295, default: 0)",
    ]:
        assert part in text


# ---- The schedule -----------------------------------------------------------------------------------------


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


# ---- The optimizer and the loop, written out --------------------------------------------------------------


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
        (4, [28, 16], [28, 28, 16, 16]),
    ],
)
def test_every_size_has_its_share_of_the_epochs(epochs, sizes, expected):
    assert [train.image_size(epoch, epochs, sizes) for epoch in range(1, epochs + 1)] == expected


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
        pytest.param("--clip-norm 0 --label-smoothing 0 --image-sizes 32", marks=pytest.mark.slow),
        "--momentum 0 --weight-decay 0.1 --warmup-epochs 0",
        pytest.param("--label-smoothing 0.4 --warmup-epochs 2 --batch-size 5", marks=pytest.mark.slow),
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
    args = config_of(f"{' '.join(SMALL)} {options}")
    model, epochs = train_by_formulas(small[0], args)
    ours, expected = dict(last(tmp_path / "run")["model"]), dict(model.state_dict())
    torch.testing.assert_close(ours, expected, rtol=1e-6, atol=1e-8)
    for row, (loss, train_accuracy, lr) in zip(read_history(tmp_path / "run"), epochs, strict=True):
        assert row["train_loss"] == pytest.approx(loss, rel=1e-6)
        assert row["train_accuracy"] == pytest.approx(train_accuracy, abs=1e-9)
        assert row["lr"] == pytest.approx(lr, abs=1e-12)


def test_same_seed_same_run_and_another_seed_another(tmp_path, small):
    for name, seed in [("a", 1), ("b", 1), ("c", 2)]:
        torch.rand(7)  # whatever was drawn before must not matter
        run(tmp_path / name, f"--seed {seed}")
    assert_same_run(tmp_path / "a", tmp_path / "b")
    assert not torch.equal(
        last(tmp_path / "a")["model"]["fc.weight"], last(tmp_path / "c")["model"]["fc.weight"]
    )


def history_of(accuracies, sizes):
    """Rows of a history, with nothing but what early stopping looks at."""
    return [
        {"epoch": i + 1, "image_size": size, "val_accuracy": accuracy}
        for i, (accuracy, size) in enumerate(zip(accuracies, sizes, strict=True))
    ]


def test_early_stopping_ends_a_run_and_it_stays_ended(tmp_path, small, monkeypatch, capsys):
    """Four epochs at 16 pixels, the first of them the best; then two at 32 without a better one."""
    accuracies = iter([0.5] + [0.1] * 7)
    monkeypatch.setattr(train, "accuracy", lambda *args: next(accuracies))
    run(tmp_path / "run", "--patience 2 --epochs 8 --limit-train 4 --image-sizes 16,32")
    best = load_checkpoint(tmp_path / "run" / "checkpoints" / "best.pt")
    assert last(tmp_path / "run")["epoch"] == 6 and (best["epoch"], best["val_accuracy"]) == (1, 0.5)
    assert "stopped early" in capsys.readouterr().out
    before = contents(tmp_path)
    assert resume(tmp_path / "run") == 0
    assert "is finished after 6 epochs" in capsys.readouterr().out and contents(tmp_path) == before


def test_the_default_patience_can_fire():
    """In the default 40 epochs, of which those from the 27th on have full size, and after the best one."""
    defaults = config_of("")
    sizes = [train.image_size(epoch, 40, defaults.sizes()) for epoch in range(1, 41)]
    assert sizes.index(32) == 26

    def epochs_run(accuracies):
        history = history_of(accuracies, sizes)
        return next(n for n in range(1, 41) if train.should_stop(history[:n], defaults))

    assert epochs_run([0.5] + [0.1] * 39) == 31
    assert epochs_run([epoch / 100 for epoch in range(30)] + [0.1] * 10) == 35
    assert epochs_run([epoch / 100 for epoch in range(40)]) == 40
    assert epochs_run([epoch / 100 for epoch in range(35)] + [0.1] * 4 + [0.5]) == 40


# ---- predict ----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def network():
    torch.manual_seed(0)
    model = resnet18(10, width=4)
    model.train()
    model(torch.randn(64, 3, 32, 32))  # so that the running statistics are not the initial ones
    return model


IMAGES = torch.randint(0, 256, (23, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("batch_size", [7, 500])
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


def test_predict_restores_the_mode_when_the_model_raises(network):
    network.train()
    with pytest.raises(ValueError):
        train.predict(network, IMAGES[:, :2], CPU)
    assert network.training and network.layer1[0].bn1.training


# ---- A run from end to end --------------------------------------------------------------------------------


@pytest.mark.parametrize("sizes", ["24,28,32", "16,20"])
def test_what_a_run_leaves_behind(tmp_path, small, sizes):
    run(tmp_path, f"--limit-train 60 --batch-size 20 --lr 0.05 --val-fraction 0.4 --image-sizes {sizes}")
    history, config, train_set = read_history(tmp_path), config_json(tmp_path), small[0]
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


# ---- Interrupted and resumed ------------------------------------------------------------------------------


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


def test_without_a_finished_epoch_there_is_nothing_to_resume(tmp_path, small, interrupt):
    out = tmp_path / "run"
    interrupt(2)
    with pytest.raises(KeyboardInterrupt):  # which ends the command with "interrupted" and exit code 130
        run(out)
    with pytest.raises(UserError, match="has no finished epoch to resume: start it again without --resume"):
        resume(out)
    assert run(out) == 0 and last(out)["epoch"] == 3


def test_resume_keeps_the_settings_and_what_may_change_may(tmp_path, small, interrupt, monkeypatch):
    odd = "--epochs 2 --momentum 0 --label-smoothing 0 --patience 1 --seed 0 --clip-norm 1 --warmup-epochs 1"
    interrupt(5)
    assert run(tmp_path / "here", odd) == 130
    expected = asdict(config_of(f"{' '.join(SMALL)} {odd}"))
    moved = tmp_path / "moved away ä"
    (tmp_path / "here").rename(moved)
    (moved / "config.json").unlink()  # last.pt alone says what the run is
    seen = []
    monkeypatch.setattr(train, "load", lambda name, root, url=None: seen.append(root) or small)
    assert resume(moved, "--data-dir elsewhere --precision bf16") == 0
    expected |= {"out": str(moved), "data_dir": "elsewhere", "precision": "bf16"}
    assert config_json(moved)["settings"] == last(moved)["config"]["settings"] == expected
    assert seen == ["elsewhere"] and config_json(moved)["precision"] == "bf16"


def test_a_run_with_another_optimizer_is_resumed_with_it_alone(tmp_path, small, interrupt, monkeypatch):
    sgd = train.make_optimizer
    monkeypatch.setattr(train, "make_optimizer", lambda model, *rest: torch.optim.AdamW(model.parameters()))
    run(tmp_path / "whole")
    interrupt(5)
    assert run(tmp_path / "run") == 130
    with monkeypatch.context() as patch:
        patch.setattr(train, "make_optimizer", sgd)
        with pytest.raises(UserError, match=r"last\.pt cannot be used as a checkpoint to resume from: "):
            resume(tmp_path / "run")
    assert resume(tmp_path / "run") == 0
    assert_same_run(tmp_path / "run", tmp_path / "whole")


def test_the_checkpoint_of_a_wild_epoch_can_be_read(tmp_path, small, monkeypatch):
    wild = torch.tensor([[1e9, -1e9] + [0.0] * 98]).repeat(300, 1)
    monkeypatch.setattr(train, "predict", lambda network, images, *rest, **options: wild[: len(images)])
    run(tmp_path)
    logits = load_checkpoint(tmp_path / "checkpoints" / "best.pt")["val_logits"]
    assert torch.equal(logits.sign(), wild[: len(logits)].sign())


# ---- float16, which on a CPU only this test uses ----------------------------------------------------------


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


def test_clipping_is_of_the_gradient_and_not_of_the_scaled_one(tmp_path, small, monkeypatch):
    """With a scaler that multiplies by a power of two and float32, nothing changes, not even a bit."""
    run(tmp_path / "plain", "--clip-norm 0.5")
    scaler = torch.amp.GradScaler
    monkeypatch.setattr(torch.amp, "GradScaler", lambda device, enabled: scaler(device, init_scale=1024.0))
    run(tmp_path / "scaled", "--clip-norm 0.5")
    plain, scaled = (last(tmp_path / name)["model"] for name in ("plain", "scaled"))
    torch.testing.assert_close(scaled, plain, rtol=0, atol=0)


# ---- Loading what was trained -----------------------------------------------------------------------------


def checkpoint_of(model, **config):
    return {
        "model": model.state_dict(),
        "config": {"dataset": "shapes", "width": 2, "image_size": 32, "settings": {}} | config,
        "epoch": 4,
        "class_names": ["a", "b", "c"],
    }


def test_load_model_gives_the_same_network_in_eval_mode(tmp_path):
    model = resnet18(3, width=2)
    model.train()(torch.randn(9, 3, 32, 32))
    save_checkpoint(tmp_path / "x.pt", checkpoint_of(model))
    loaded, checkpoint = train.load_model(tmp_path / "x.pt", CPU)
    images = torch.randn(2, 3, 32, 32)
    assert not loaded.training and checkpoint["epoch"] == 4
    assert loaded.conv1.weight.is_contiguous(memory_format=torch.channels_last)
    with torch.inference_mode():
        torch.testing.assert_close(loaded(images), model.eval()(images))
    # What the checkpoint holds can be loaded once more, as resuming does, without taking the place of the
    # parameters, which an optimizer may hold already.
    other = resnet18(3, width=2)
    before = list(other.parameters())
    other.load_state_dict(checkpoint["model"])
    assert all(ours is theirs for ours, theirs in zip(before, other.parameters(), strict=True))
    # Weights kept in half the bytes are read as float32.
    save_checkpoint(tmp_path / "half.pt", checkpoint_of(model.half()))
    loaded, _ = train.load_model(tmp_path / "half.pt", CPU)
    torch.testing.assert_close(loaded.fc.weight, model.fc.weight.float(), rtol=0, atol=0)


@pytest.mark.parametrize("edited", [{"precision": "fp7"}, {"dataset": "foo"}, {"seed": 1.5}, {"width": 16.0}])
def test_a_setting_of_another_kind_is_one_line(edited):
    """Such as in a saved run that somebody has edited; argparse sees to the command line."""
    with pytest.raises(UserError, match=f"--{next(iter(edited))} .*: expected (one of|a value of type)"):
        train.Config(**edited)


def test_load_data_looks_where_it_is_told_else_where_training_did_else_in_data(
    monkeypatch, small_sets, tmp_path
):
    monkeypatch.chdir(tmp_path)
    seen = []
    monkeypatch.setattr(train, "load", lambda *args: seen.append(args) or small_sets)
    (tmp_path / "a" / "cifar-100-python").mkdir(parents=True)
    model = resnet18(3, width=2)
    for saved in ("a", "absent/deep", "x" * 5000, "x\0", ""):
        checkpoint = checkpoint_of(model, dataset="cifar100", settings={"data_dir": saved})
        checkpoint["class_names"] = small_sets[1].class_names
        for given in ("b", None):
            assert train.load_data("x.pt", checkpoint, given) is small_sets
            assert seen.pop() == ("cifar100", given or ("a" if saved == "a" else "data")), saved
    with pytest.raises(UserError, match=r"x\.pt .*its classes are not those of the shapes test set"):
        train.load_data("x.pt", checkpoint_of(model), None)
    assert [path.name for path in tmp_path.iterdir()] == ["a"]  # nothing was made


# ---- On a GPU ---------------------------------------------------------------------------------------------


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

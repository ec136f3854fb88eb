"""estimate.py against NumPy: answers of which the truth is known, and results that it must refuse.

The worked example: 80 % of clean answers are right at a mean confidence of 70 %. Each point of confidence
that a corruption takes costs two points of accuracy, so at 60 % confidence 60 % are right.
"""

import json

import numpy as np
import pytest
import torch
from lab_commands import CPU, assert_one_line, outcome
from lab_networks import Linear, natural_images
from PIL import Image

from lab import estimate, pictures, results
from lab.classifier import from_module, load_model
from lab.stress_tests.corruptions import FAMILIES, FIFTEEN
from lab.support import UserError

FIFTEEN_BY_FAMILY = {family: [n for n in names if n in FIFTEEN] for family, names in FAMILIES.items()}


def stress_of(accuracy_of, confidences=None):
    """The content of a stress.json in which accuracy_of(family, confidence) is right."""
    generator, tests = np.random.default_rng(0), {}
    for family, names in FIFTEEN_BY_FAMILY.items():
        for name in names:
            for severity in range(1, 6):
                confidence = generator.uniform(0.3, 0.7) if confidences is None else confidences
                accuracy = {"value": accuracy_of(family, confidence)}
                tests[f"{name}/{severity}"] = {"accuracy": accuracy, "mean_confidence": confidence}
    tests["clean/0"] = {"accuracy": {"value": 0.8}, "mean_confidence": 0.7}
    tests["saturate/1"] = {"accuracy": {"value": 0.0}, "mean_confidence": 0.69}  # not one of the fifteen
    return {"families": FIFTEEN_BY_FAMILY, "tests": tests}


def test_worked_example():
    line = estimate.fit(stress_of(lambda family, confidence: 0.8 - 2 * (0.7 - confidence)))
    assert line["slope"] == pytest.approx(2) and line["width"] == pytest.approx(0, abs=1e-12)
    assert estimate.read_line(line, 0.6, 10**9)["value"] == pytest.approx(0.6)
    assert estimate.read_line(line, 0.2, 100) == {"value": 0, "low": 0, "high": 0}  # none below nothing
    low, high = (estimate.read_line(line, 0.6, 100)[key] for key in ("low", "high"))
    right = np.random.default_rng(0).binomial(100, 0.6, 10_000) / 100  # of a hundred pictures
    assert ((right >= low) & (right <= high)).mean() == pytest.approx(0.9, abs=0.02)


def test_fit_with_numpy():
    noise = np.random.default_rng(1)
    slopes = {"noise": 2.5, "blur": 1.5, "weather": 1.8, "digital": 2}
    stress = stress_of(lambda family, c: 0.8 - slopes[family] * (0.7 - c) + noise.normal(0, 0.02))
    line = estimate.fit(stress)
    rows = [
        (family, 0.7 - stress["tests"][f"{name}/{s}"]["mean_confidence"], stress["tests"][f"{name}/{s}"])
        for family, names in FIFTEEN_BY_FAMILY.items()
        for name in names
        for s in range(1, 6)
    ]
    families, x = np.array([row[0] for row in rows]), np.array([row[1] for row in rows])
    y = 0.8 - np.array([row[2]["accuracy"]["value"] for row in rows])
    assert line["slope"] == pytest.approx(np.linalg.lstsq(x[:, None], y, rcond=None)[0][0])
    errors = np.empty(75)  # the estimated accuracy less the true one
    for family in slopes:
        others = families != family
        slope = np.linalg.lstsq(x[others, None], y[others], rcond=None)[0][0]
        errors[~others] = (0.8 - slope * x[~others]) - (0.8 - y[~others])
        assert line["bias"][family] == pytest.approx(errors[~others].mean())
    assert line["bias"]["noise"] > 0 > line["bias"]["blur"]  # noise costs more than the others say
    assert line["width"] == pytest.approx(np.sort(np.abs(errors))[67])  # 68 of 75 are nine of ten
    assert line["confidences"] == [pytest.approx(0.7 - x.max()), 0.7]


def test_as_many_labels_tell_as_much():
    count = estimate.labels_for(0.05)
    right = np.random.default_rng(0).binomial(count, 0.5, 100_000) / count
    assert (np.abs(right - 0.5) <= 0.05).mean() == pytest.approx(0.9, abs=0.02)


def test_a_confidence_that_never_changes():
    with pytest.raises(UserError, match="as confident under all"):
        estimate.fit(stress_of(lambda family, confidence: 0.5, confidences=0.7))
    stress = stress_of(lambda family, confidence: confidence)
    del stress["tests"]["fog/3"]
    with pytest.raises(UserError, match="lacks the test fog/3"):
        estimate.fit(stress)


def test_estimate_of_a_network():
    """Where accuracy is always the confidence and a tenth, the estimate is so too."""
    network = from_module(Linear(10), device=CPU)
    images = (natural_images(300) * 255).round().byte()
    logits = network.module(images.float() / 255).detach().double().numpy()
    confidences = (np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)).max(axis=1)
    stress = stress_of(lambda family, c: 0.8 - (0.7 - c)) | {"checkpoint_sha256": network.digest}
    result = estimate.estimate(network, images, stress)
    assert result["confidence"] == pytest.approx(confidences.mean(), abs=1e-6)
    assert result["accuracy"]["value"] == pytest.approx(confidences.mean() + 0.1, abs=1e-6)
    low, high = result["confidences"]
    assert result["outside"] == (not low - 0.05 < confidences.mean() < high + 0.05)
    with pytest.raises(UserError, match="of other weights than Linear"):
        estimate.estimate(network, images, stress | {"checkpoint_sha256": "of others"})


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Pictures above and below, a network, and the results of lab.stress in tmp_path/tested."""
    images = (natural_images(12) * 255).round().byte()
    for i, image in enumerate(images):
        path = tmp_path / "pictures" / ("below/more" if i % 2 else ".") / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image.permute(1, 2, 0).numpy()).save(path)
    (tmp_path / "pictures" / "notes.txt").write_text("not a picture")
    (tmp_path / "pictures" / "below" / ".hidden").mkdir()
    for name in (".hidden/copy.png", "._0.png"):
        (tmp_path / "pictures" / "below" / name).write_text("as systems and notebooks leave them")
    (tmp_path / "net.py").write_text("from lab_networks import Linear\ndef net(): return Linear(10)\n")
    test = pictures.from_arrays(images, [*range(10), 0, 1], [f"class {c}" for c in range(10)])
    monkeypatch.setattr(pictures, "load", lambda *some, **more: (None, test))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def command(folder, *more):
    torch.manual_seed(0)  # for Linear's bias
    argv = [folder / "pictures", "--model", f"{folder}/net.py:net", "--stress", folder / "tested", *more]
    return [str(part) for part in argv]


def test_command(folder, capsys):
    torch.manual_seed(0)
    network = load_model(f"{folder}/net.py:net", device=CPU)
    identity = results.identity(network, pictures.load()[1])
    (folder / "tested").mkdir()
    stress = stress_of(lambda family, c: 0.8 - (0.7 - c)) | identity
    (folder / "tested" / "stress.json").write_text(json.dumps(stress))
    assert estimate.main(command(folder)) == 0
    *lines, last = capsys.readouterr().out.splitlines()
    value = 100 * estimate.estimate(network, pictures.load()[1].images, stress)["accuracy"]["value"]
    assert last.startswith(f"estimated accuracy {value:.0f} % (") and "12 in" in "".join(lines)
    for others in (["--mean", *"000", "--std", *"111"], ["--size", "32", "--resize", "36"]):
        code, err = outcome(capsys, estimate.main, command(folder, *others))
        assert_one_line(code, err, "is of another network, preprocessing or test set: run python -m lab")


def test_what_cannot_be_estimated(folder, capsys):
    code, err = outcome(capsys, estimate.main, command(folder))
    assert_one_line(code, err, r"there is no .*stress\.json: python -m lab\.stress with the same options")
    (folder / "tested").mkdir()
    (folder / "tested" / "stress.json").write_text("{}")
    code, err = outcome(capsys, estimate.main, ["nowhere", *command(folder)[1:]])
    assert_one_line(code, err, "nowhere is not a folder")
    (folder / "pictures" / "0.png").write_text("not a picture")
    code, err = outcome(capsys, estimate.main, command(folder))
    assert_one_line(code, err, "cannot be read: 1, .*0.png")

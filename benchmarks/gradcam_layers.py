"""Which layer should Grad-CAM explain? Measures the four stages of a trained network side by side.

    python benchmarks/gradcam_layers.py                     the weights in weights/, on CIFAR-100
    python benchmarks/gradcam_layers.py --run runs/shapes   the best checkpoint of a run

Pointing game (share of maxima on the object; only the shapes set knows where it is), and the areas under the
deletion curve (smaller is better) and the insertion curve (larger is better), for the predicted class. Their
difference, insertion less deletion, is also compared with that of layer4, image by image. After each ± comes
the standard error of a mean over images. The last row is that of random maps with the resolution of layer3.
"""

import sys
from pathlib import Path

import torch
from torch import nn

sys.path.insert(0, str(Path(__file__).parent.parent))

from data import MEAN, Normalize, to_input
from gradcam import DEFAULT_CHECKPOINT, GradCAM, to_heatmap
from metrics import pointing_game
from running.console import CommandLine, run_main
from running.folder import find_checkpoint
from stress_tests.explanations import deletion_insertion
from train import load_data, load_model


def mean(values):
    """Return the mean and its standard error as text."""
    return f"{values.mean():.3f} ± {values.std() / len(values) ** 0.5:.3f}"


def main():
    parser = CommandLine(description=__doc__)
    parser.add_argument("--run", help="default: the weights in weights/")
    parser.add_argument("--data-dir", help="default: where training found the data")
    parser.add_argument("--images", type=int, default=500)
    args = parser.parse_args()

    path = find_checkpoint(args.run, None) if args.run else DEFAULT_CHECKPOINT
    model, checkpoint = load_model(path, torch.device("cpu"))
    size = checkpoint["config"]["image_size"]
    pixel_model, fill = nn.Sequential(Normalize(size), model), torch.tensor(MEAN)
    _, test = load_data(path, checkpoint, args.data_dir)
    sample = torch.randperm(len(test.labels), generator=torch.Generator().manual_seed(0))[: args.images]
    images = test.images[sample]
    with torch.no_grad():
        classes = torch.cat([model(to_input(part, size)) for part in images.split(100)]).argmax(dim=1)

    print(f"{len(sample)} test images of {test.name}, {path}")
    print(
        f"{'layer':8}{'map':>7}{'empty':>7}{'pointing':>10}{'deletion':>16}{'insertion':>16}{'difference':>16}",
        end="",
    )
    print(f"{'against layer4':>18}")
    layer4 = None
    for layer in ("layer4", "layer3", "layer2", "layer1", "random"):
        if layer == "random":
            maps = torch.rand(len(images), 8, 8, generator=torch.Generator().manual_seed(0))
        else:
            with GradCAM(model, layer) as cam:
                parts = zip(images.split(100), classes.split(100), strict=True)
                maps = torch.cat([cam(to_input(part, size), target) for part, target in parts])
        heatmaps = to_heatmap(maps, 32)
        hits = (
            "–"
            if test.masks is None
            else f"{pointing_game(heatmaps, test.masks[sample])[0] / len(sample):.1%}"
        )
        areas = []
        for mode in ("deletion", "insertion"):
            parts = zip(images.split(100), heatmaps.split(100), classes.split(100), strict=True)
            results = [deletion_insertion(pixel_model, x / 255, h, c, fill, 16, mode)[1] for x, h, c in parts]
            areas.append(torch.cat(results))
        difference = areas[1] - areas[0]
        layer4 = difference if layer4 is None else layer4
        empty = f"{(maps.amax(dim=(1, 2)) == 0).float().mean():.1%}"
        map_size = f"{maps.shape[1]}x{maps.shape[2]}"
        print(f"{layer:8}{map_size:>7}{empty:>7}{hits:>10}{mean(areas[0]):>16}{mean(areas[1]):>16}", end="")
        print(f"{mean(difference):>16}{mean(difference - layer4):>18}", flush=True)
    if test.masks is not None:
        print(f"a random pixel is on the object in {test.masks[sample].float().mean():.1%}")


if __name__ == "__main__":
    run_main(main)

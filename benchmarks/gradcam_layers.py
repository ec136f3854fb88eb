"""Which layer should Grad-CAM explain, and do its maps find more than chance does, and than the centre?

    python benchmarks/gradcam_layers.py [--checkpoint FILE] [--images 200]      by default weights/

Areas under the deletion curve (smaller is better) and the insertion curve (larger is better), 16 steps, for
the predicted class of test images: of the maps at layer4 and layer3, and of controls in the same size. Below
are differences, taken image by image. After each ± comes the standard error of the mean.
"""

import torch
from loader import load, parse

from data import MEAN
from gradcam import DEFAULT_CHECKPOINT, to_heatmap
from running.console import run_main
from stress_tests.attacks import full_float32
from stress_tests.controls import mean_and_error, with_controls
from stress_tests.explanations import deletion_insertion

LAYERS = ("layer4", "layer3")


def main():
    args = parse(__doc__, checkpoint=DEFAULT_CHECKPOINT, data_dir=None, images=200)
    with full_float32(args.device):
        measure(args)


def measure(args):
    examined, test = load(args)
    generator = torch.Generator().manual_seed(0)
    sample = torch.randperm(len(test.labels), generator=generator)[: args.images]
    images = test.images[sample].to(args.device) / 255
    with torch.no_grad():
        classes = examined.model(images).argmax(dim=1)

    areas = {}
    for layer in LAYERS:
        examined.layer = layer
        maps = examined.explain(images, classes)
        for name, control in with_controls(maps, images.shape[-1], generator).items():
            label = {"gradcam": layer, "centre": "centre"}.get(name, f"{name}, as {layer}")
            heatmaps = to_heatmap(control, images.shape[-1])
            curves = []
            for mode in ("deletion", "insertion"):
                _, area = deletion_insertion(
                    examined.model, images, heatmaps, classes, torch.tensor(MEAN), 16, mode
                )
                curves.append(area.cpu())
            areas[label] = torch.stack(curves)
    for first, second in [("layer4", "layer3"), ("layer4", "centre"), ("layer3", "centre")]:
        areas[f"{first} less {second}"] = areas[first] - areas[second]

    print(f"{f'{len(sample)} test images of {test.name}':36}       deletion         insertion")
    for name, values in areas.items():
        deletion, insertion = mean_and_error(values[0]), mean_and_error(values[1])
        print(f"{name:32}{cell(deletion):>18}{cell(insertion):>18}")


def cell(row):
    return f"{row['value']:.3f} ± {row['standard_error']:.3f}"


if __name__ == "__main__":
    run_main(main)

"""Which layer should Grad-CAM explain, and do its maps find more than chance does, and than the centre?

    python benchmarks/gradcam_layers.py [--run RUN] [--images 200]      without RUN the weights in weights/

Areas under the deletion curve (smaller is better) and the insertion curve (larger is better), 16 steps, for
the predicted class of test images: of the maps at layer4 and layer3, and of the controls of report.py in the
same size. Below are differences, taken image by image. After each ± comes the standard error of the mean.
"""

import torch
from loader import load, parse
from torch import nn

from data import MEAN, Normalize
from gradcam import DEFAULT_CHECKPOINT
from report import STEPS, explain, mean_and_error, with_controls
from running.console import run_main
from stress_tests.attacks import full_float32
from stress_tests.explanations import deletion_insertion


def main():
    args = parse(__doc__, run=None, data_dir=None, images=200)
    with full_float32(args.device):
        measure(args)


def measure(args):
    network, checkpoint, test = load(args, DEFAULT_CHECKPOINT)
    model, areas = nn.Sequential(Normalize(checkpoint["config"]["image_size"]), network), {}
    generator = torch.Generator().manual_seed(0)
    chosen = torch.randperm(len(test.labels), generator=generator)[: args.images]
    images = test.images[chosen].to(args.device) / 255
    with torch.no_grad():
        classes = model(images).argmax(dim=1)
    for layer in ("layer4", "layer3"):
        maps = explain(model, images, classes, layer)
        for name, shown in with_controls(maps, images.shape[-1], generator).items():
            explained = model, images, shown, classes, torch.tensor(MEAN), STEPS
            area = [deletion_insertion(*explained, mode)[1].cpu() for mode in ("deletion", "insertion")]
            label = {"gradcam": layer, "centre": "centre"}.get(name, f"{name}, as {layer}")
            areas[label] = torch.stack(area)
    for first, second in [("layer4", "layer3"), ("layer4", "centre"), ("layer3", "centre")]:
        areas[f"{first} less {second}"] = areas[first] - areas[second]

    print(f"{f'{len(chosen)} test images of {test.name}':36}       deletion         insertion")
    for name, values in areas.items():
        cells = [f"{row['value']:.3f} ± {row['standard_error']:.3f}" for row in map(mean_and_error, values)]
        print(f"{name:32}{cells[0]:>18}{cells[1]:>18}")


if __name__ == "__main__":
    run_main(main)

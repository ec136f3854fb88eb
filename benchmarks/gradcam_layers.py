"""Which layer should Grad-CAM explain, and do its maps find more than chance does, and than the centre?

    python benchmarks/gradcam_layers.py [--run RUN] [--images 200]      without RUN the weights in weights/

Areas under the deletion curve (smaller is better) and the insertion curve (larger is better), 16 steps, for
the predicted class of test images. Beside Grad-CAM at layer4 and layer3 stand random maps of the same sizes,
enlarged in the same way, and a Gaussian in the centre. Below are differences, taken image by image. After
each ± comes the standard error of the mean over the images.
"""

import torch
from loader import load, parse
from torch import nn

from data import MEAN, Normalize, to_input
from gradcam import DEFAULT_CHECKPOINT, GradCAM, to_heatmap
from running.console import run_main
from stress_tests.attacks import full_float32
from stress_tests.explanations import deletion_insertion

PAIRS = [("layer4", "random as layer4"), ("layer3", "random as layer3"), ("layer4", "layer3")]
PAIRS += [("layer4", "centre"), ("layer3", "centre")]


def main():
    args = parse(__doc__, run=None, data_dir=None, images=200)
    with full_float32(args.device), torch.no_grad():
        measure(args)


def measure(args):
    model, checkpoint, test = load(args, DEFAULT_CHECKPOINT)
    pixel_model = nn.Sequential(Normalize(checkpoint["config"]["image_size"]), model)
    offset = torch.arange(32) - 15.5
    bell = torch.exp(-((offset / 8) ** 2) / 2)  # its standard deviation is a quarter of the side
    generator, areas = torch.Generator().manual_seed(0), {}
    chosen = torch.randperm(len(test.labels), generator=generator)[: args.images]
    for part in chosen.split(100):
        images = test.images[part].to(args.device)
        inputs = to_input(images, checkpoint["config"]["image_size"])
        maps, classes = {}, model(inputs).argmax(dim=1)
        for layer in ("layer4", "layer3"):
            with GradCAM(model, layer) as cam:
                maps[layer] = cam(inputs, classes)
            maps[f"random as {layer}"] = torch.rand(maps[layer].shape, generator=generator)
        maps["centre"] = (bell[:, None] * bell).expand(len(part), 32, 32)
        for name, values in maps.items():
            explained = pixel_model, images / 255, to_heatmap(values, 32), classes, torch.tensor(MEAN), 16
            curves = [deletion_insertion(*explained, mode)[1].cpu() for mode in ("deletion", "insertion")]
            areas.setdefault(name, []).append(torch.stack(curves))

    print(f"{f'{len(chosen)} test images of {test.name}':34}       deletion         insertion")
    areas = {name: torch.cat(values, dim=1) for name, values in areas.items()}
    areas |= {f"{first} less {second}": areas[first] - areas[second] for first, second in PAIRS}
    for name, values in areas.items():
        cells = [f"{area.mean():.3f} ± {area.std() / len(area) ** 0.5:.3f}" for area in values]
        print(f"{name:30}{cells[0]:>18}{cells[1]:>18}")


if __name__ == "__main__":
    run_main(main)

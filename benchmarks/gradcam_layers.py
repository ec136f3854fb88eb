"""Which layer should Grad-CAM explain? Measures the four stages of a trained network side by side.

    python benchmarks/gradcam_layers.py --run runs/shapes

Pointing game (share of maxima on the object; only the shapes set knows where it is), and the areas under the
deletion curve (smaller is better) and the insertion curve (larger is better), for the predicted class.
"""

import argparse
import sys
from pathlib import Path

import torch
from torch import nn

sys.path.insert(0, str(Path(__file__).parent.parent))

from data import MEAN, Normalize, to_input
from gradcam import GradCAM, to_heatmap
from metrics import pointing_game
from running.folder import find_checkpoint
from stress_tests.explanations import deletion_insertion
from train import load_data, load_model

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--run")
parser.add_argument("--images", type=int, default=500)
args = parser.parse_args()

path = find_checkpoint(args.run, None)
model, checkpoint = load_model(path, torch.device("cpu"))
pixel_model, mean = nn.Sequential(Normalize(), model), torch.tensor(MEAN)
_, test = load_data(path, checkpoint, None)
sample = torch.randperm(len(test.labels), generator=torch.Generator().manual_seed(0))[: args.images]
images = test.images[sample]
with torch.no_grad():
    classes = torch.cat([model(to_input(part)) for part in images.split(100)]).argmax(dim=1)

print(f"{len(sample)} test images of {test.name}, {args.run or 'newest run'}")
print(f"{'layer':8}{'map':>8}{'empty maps':>12}{'pointing game':>15}{'deletion':>10}{'insertion':>11}")
for layer in ("layer1", "layer2", "layer3", "layer4"):
    with GradCAM(model, layer) as cam:
        parts = zip(images.split(100), classes.split(100), strict=True)
        maps = torch.cat([cam(to_input(part), target) for part, target in parts])
    heatmaps = to_heatmap(maps, 32)
    hits = (
        "–" if test.masks is None else f"{pointing_game(heatmaps, test.masks[sample])[0] / len(sample):.1%}"
    )
    areas = [
        deletion_insertion(pixel_model, images / 255, heatmaps, classes, mean, 16, mode)[1].mean().item()
        for mode in ("deletion", "insertion")
    ]
    empty = (maps.amax(dim=(1, 2)) == 0).float().mean().item()
    size = f"{maps.shape[1]}x{maps.shape[2]}"
    print(f"{layer:8}{size:>8}{empty:12.1%}{hits:>15}{areas[0]:10.3f}{areas[1]:11.3f}")
if test.masks is not None:
    print(f"a random pixel is on the object in {test.masks[sample].float().mean():.1%}")

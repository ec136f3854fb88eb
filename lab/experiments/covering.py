"""Does the covering test depend on fill, size, layer and kind of map, and what could be reached?

    python lab/experiments/covering.py weights/resnet18_cifar100.pt --data-dir data

Prints a Markdown table for all mistakes, or for a random sample of them: the share that becomes the truth
under the cover of a map that is told the truth, and under that of random cells, the mean of three draws. Each
row has 95 % intervals over the images. The last rows cover by other maps than Grad-CAM at the last layer. One
is at layer3, whose cells are 8x8; the other is occlusion (Zeiler and Fergus 2014): how much the margin falls
where a cell is covered alone. Occlusion tries sixteen covers, so its control is the best of sixteen random
ones, chosen by the truth. lab/reasons.py has the measurements of every report.
"""

import dataclasses
import sys
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Generator, Tensor

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from data import MEAN, STD
from lab import reasons
from lab.classifier import Classifier, full_float32, load_checkpoint, load_data, predict
from lab.support import CommandLine, pick_device, run_main


def main() -> None:
    parser = CommandLine(__doc__)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--data-dir", type=Path)
    parser.add_argument("--images", type=int, help="how many mistakes (default: all)", metavar="N")
    args = parser.parse_args()
    device = pick_device("auto")
    with full_float32(device):
        classifier = load_checkpoint(args.checkpoint, device)
        train, test = load_data(classifier, None, args.data_dir)
        fill = train.images.sum(dim=(0, 2, 3)) / (255 * train.images[:, 0].numel())
        answer = predict(classifier.model, test.images, device).argmax(dim=1)
        mistakes = torch.nonzero(answer != test.labels).flatten()
        order = torch.randperm(len(mistakes), generator=Generator().manual_seed(0))
        sample = mistakes[order[: args.images]]
        measure(classifier, test.images[sample], test.labels[sample], answer[sample], fill)


def measure(
    classifier: Classifier, images: Tensor, truth: Tensor, answer: Tensor, mean_colour: Tensor
) -> None:
    """Print the table of mistakes: images uint8 [N, 3, S, S]; truth and answer int64 [N]."""
    generator = Generator().manual_seed(0)
    (contrastive,) = classifier.pairs(images, [(answer, truth)])
    random = torch.rand(reasons.NUM_DRAWS, *contrastive.shape, generator=generator)

    def row(name: str, fraction: float, fill: Tensor | Callable) -> None:
        cells = []
        for maps in (contrastive[None], random):
            now = reasons.answers_without_top(classifier, images, maps, fill, fraction)
            cells.append(said(now == truth))
        print(f"| {name} | {cells[0]} | {cells[1]} |", flush=True)

    print(f"| of {len(images)} mistakes, becomes the truth | contrastive map | random cells |")
    print("| --- | --- | --- |")
    row("a quarter covered by the mean colour of the data", 0.25, mean_colour)
    row("an eighth", 0.125, mean_colour)
    row("a half", 0.5, mean_colour)
    row("a quarter covered by the blurred picture", 0.25, reasons.blurred)
    row("by the mean colour of the picture", 0.25, lambda x: x.mean(dim=(2, 3), keepdim=True))
    row("by black", 0.25, torch.zeros(3))
    row("by another picture", 0.25, images.roll(1, 0) / 255)
    noise = torch.randn(images.shape, generator=generator) * torch.tensor(STD).view(3, 1, 1)
    noise = (noise + torch.tensor(MEAN).view(3, 1, 1)).clamp(0, 1)
    row("by noise of the mean and standard deviation of CIFAR-100", 0.25, noise)
    turned = reasons.answers_without_top(classifier, images, -contrastive[None], mean_colour)
    print(f"| a quarter, the sign turned: what speaks for the truth | {said(turned == truth)} | |")
    margins = margins_without_cells(classifier, images, truth, answer, mean_colour)
    best = margins.argsort(dim=1, stable=True)[:, :4].tolist()
    hidden = torch.stack([reasons.cells_hidden(tuple(cells), images.shape[-1]) for cells in best])
    ceiling, _ = reasons.answers_under_covering(classifier, images, hidden, mean_colour)
    name = "the four of 4x4 cells that are best when covered alone"
    print(f"| {name} | {said(ceiling[None, :, 0] == truth)} | |", flush=True)

    def told(name: str, maps: Tensor, blind: Tensor) -> None:
        now = reasons.answers_without_top(classifier, images, maps[None], mean_colour)
        print(f"| {name} | {said(now == truth)} | {said(blind)} |", flush=True)

    if hasattr(classifier.module, "layer3"):
        finer = dataclasses.replace(classifier, layer="layer3", reshape=None)
        (maps,) = finer.pairs(images, [(answer, truth)])
        cells = torch.rand(reasons.NUM_DRAWS, *maps.shape, generator=generator)
        blind = reasons.answers_without_top(classifier, images, cells, mean_colour) == truth
        told("contrastive map at layer3, against random cells of its 8x8", maps, blind)
    cells = torch.rand(reasons.CELLS**2, len(images), *contrastive.shape[1:], generator=generator)
    blind = reasons.answers_without_top(classifier, images, cells, mean_colour) == truth
    maps = -margins.view(-1, reasons.CELLS, reasons.CELLS)
    told("occlusion, against the best of sixteen random covers", maps, blind.any(dim=0)[None])


def margins_without_cells(
    classifier: Classifier, images: Tensor, truth: Tensor, answer: Tensor, fill: Tensor
) -> Tensor:
    """Return the margin where each of the 4x4 cells is covered alone, float32 [N, 16].

    The margin is the score of the answer less that of the truth. No map is needed, but sixteen more passes.
    """
    side, margins = images.shape[-1], []
    with torch.inference_mode():
        for cell in range(reasons.CELLS**2):
            hidden = reasons.cells_hidden((cell,), side)
            covered, logits = torch.where(hidden, fill[:, None, None], images / 255), []
            for part in covered.split(classifier.images_at_once(covered)):
                logits.append(classifier.model(part.to(classifier.device)).float().cpu())
            logits = torch.cat(logits)
            margins.append(logits.gather(1, answer[:, None]) - logits.gather(1, truth[:, None]))
    return torch.cat(margins, dim=1)


def said(hits: Tensor) -> str:
    """Return the share of True in bool [D, N], see reasons.share, in percent with its interval."""
    value, low, high = (100 * number for number in reasons.share(hits).values())
    return f"{value:.1f} % ({low:.1f} to {high:.1f})"


if __name__ == "__main__":
    run_main(main)

"""Water on the lens: how the published spatter lights its drops, with the filters of OpenCV written out."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

STRAIGHT, DIAGONAL, KNIGHT = 1.0, 1.4, 2.1969  # lengths of the steps of the chamfer distance, in pixels
FARTHEST = 20.0  # longer distances are cut


def filter_3x3(planes: Tensor, kernel: list[list[int]], border: str) -> Tensor:
    """Replace each pixel of [N, H, W] by a weighted sum of its 3x3 neighbours; border as in torch's pad."""
    weights = torch.tensor([[kernel]], dtype=planes.dtype)
    return F.conv2d(F.pad(planes[:, None], (1, 1, 1, 1), mode=border), weights)[:, 0]


def canny(levels: Tensor, low: float, high: float) -> Tensor:
    """Find edges in planes [N, H, W] of whole numbers from 0 to 255, floating-point; returns bool [N, H, W].

    The strength of an edge is |g_x| + |g_y|, with Sobel's gradient g. A pixel is a candidate if it exceeds
    `low` and is stronger than its two neighbours across the edge, along the nearest of four directions. Edges
    are the candidates above `high` and all candidates connected to them. Source: Canny, "A computational
    approach to edge detection", 1986; ties between neighbours are decided as OpenCV does.
    """
    gx = filter_3x3(levels, [[-1, 0, 1], [-2, 0, 2], [-1, 0, 1]], "replicate")
    gy = filter_3x3(levels, [[-1, -2, -1], [0, 0, 0], [1, 2, 1]], "replicate")
    strength = gx.abs() + gy.abs()
    near = F.unfold(F.pad(strength, (1, 1, 1, 1))[:, None], 3).view(len(levels), 9, *levels.shape[1:])
    upper_left, up, upper_right, left, _, right, lower_left, down, lower_right = near.unbind(dim=1)
    falling = (strength > upper_left) & (strength > lower_right)
    rising = (strength > lower_left) & (strength > upper_right)
    strongest = torch.where((gx < 0) == (gy < 0), falling, rising)
    tangent = math.sqrt(2) - 1  # of 22.5 degrees; that of 67.5 degrees is 2 more
    steep = gy.abs() > (tangent + 2) * gx.abs()
    strongest = torch.where(steep, (strength > up) & (strength >= down), strongest)
    flat = gy.abs() < tangent * gx.abs()
    strongest = torch.where(flat, (strength > left) & (strength >= right), strongest)
    candidates = strongest & (strength > low)
    edges, grown = torch.zeros_like(candidates), candidates & (strength > high)
    while not torch.equal(edges, grown):
        edges = grown
        grown = candidates & (F.max_pool2d(edges.float(), 3, stride=1, padding=1) > 0)
    return edges


def chamfer_distance(edges: Tensor) -> Tensor:
    """Return the length of the shortest path to an edge, at most FARTHEST; bool to float64 [N, H, W].

    A path is made of steps to a side, to a corner, and as a knight moves in chess. Source: Borgefors,
    "Distance transformations in digital images", 1986.
    """
    n, h, w = edges.shape
    place = torch.cartesian_prod(torch.arange(h), torch.arange(w)).double()
    offset = (place[:, None] - place).abs()  # [H W, H W, 2]
    long, short = offset.amax(dim=2), offset.amin(dim=2)
    few_turns = (long - 2 * short) * STRAIGHT + short * KNIGHT
    many_turns = (2 * short - long) * DIAGONAL + (long - short) * KNIGHT
    length = torch.where(2 * short <= long, few_turns, many_turns)
    length = F.pad(length, (0, 0, 0, 1), value=FARTHEST)  # one more row, as the cut of every distance
    rows = F.pad(edges.flatten(1), (0, 1), value=True)
    return torch.stack([length[row].amin(dim=0) for row in rows]).view(n, h, w)


def equalise(levels: Tensor) -> Tensor:
    """Spread the levels of each plane [N, H, W], floating-point, over 0 to 255 by their ranks.

    A level becomes the fraction of the pixels above the lowest level that do not exceed it, times 255; a
    plane of one level stays as it is.
    """
    flat = levels.flatten(1)
    not_above = torch.searchsorted(flat.sort(dim=1).values, flat, right=True)
    lowest = not_above.amin(dim=1, keepdim=True)  # how many pixels have the lowest level
    scale = torch.tensor(255.0) / (flat.shape[1] - lowest).clamp(min=1)  # float32 decides how halves round
    spread = ((not_above - lowest) * scale).round().to(levels)
    return torch.where(lowest == flat.shape[1], flat, spread).view_as(levels)


def water_light(levels: Tensor) -> Tensor:
    """Light drops of water from the upper left: embossed distance from the edges of the drops, times height.

    levels: the heights, whole numbers from 0 to 255, floating-point [N, H, W]. Returns the light that each
    pixel adds, float32 [N, H, W] in [0, 1], the brightest pixel of each plane 1.
    """
    ones = [[1, 1, 1]] * 3
    levels = levels.double()
    distance = chamfer_distance(canny(levels, low=50, high=150))
    distance = (filter_3x3(distance, ones, "reflect") / 9 + 1e-9).floor()
    embossed = filter_3x3(equalise(distance), [[-2, -1, 0], [-1, 1, 1], [0, 1, 2]], "reflect").clamp(0, 255)
    light = levels * (filter_3x3(embossed, ones, "reflect") / 9).round()
    return (light / light.amax(dim=(1, 2), keepdim=True).clamp(min=1)).float()

"""The filters of OpenCV, written out in water.py, against slow second computations."""

import math

import torch
import torch.nn.functional as F
from networks import seeded

from stress_tests import water


def drops(n: int, threshold: float = 0.7, seed: int = 0) -> torch.Tensor:
    """Heights of drops as spatter draws them: blurred noise above a threshold, in whole levels, float64."""
    noise = 0.65 + 0.1 * torch.randn(n, 1, 32, 32, generator=seeded(seed))
    height = F.avg_pool2d(F.pad(noise, (1, 1, 1, 1), mode="replicate"), 3, stride=1)[:, 0]
    return (255 * torch.where(height > threshold - 0.02, height, 0)).floor().double()


def slow_canny(plane: list[list[float]], low: float, high: float) -> set[tuple[int, int]]:
    """Canny pixel by pixel, with angles instead of slopes and a search from the strong pixels."""
    size = len(plane)

    def value(y, x):
        return plane[min(max(y, 0), size - 1)][min(max(x, 0), size - 1)]

    def gradient(y, x):
        gx = sum(w * (value(y + i, x + 1) - value(y + i, x - 1)) for i, w in ((-1, 1), (0, 2), (1, 1)))
        gy = sum(w * (value(y + 1, x + i) - value(y - 1, x + i)) for i, w in ((-1, 1), (0, 2), (1, 1)))
        return gx, gy

    strength = {(y, x): sum(map(abs, gradient(y, x))) for y in range(size) for x in range(size)}
    candidates = set()
    for (y, x), here in strength.items():
        gx, gy = gradient(y, x)
        angle = math.degrees(math.atan2(gy, gx)) % 180
        if angle < 22.5 or angle > 157.5:
            first, second, tie = (0, -1), (0, 1), True
        elif 67.5 < angle < 112.5:
            first, second, tie = (-1, 0), (1, 0), True
        else:
            step = 1 if angle < 90 else -1
            first, second, tie = (-1, -step), (1, step), False
        before, after = (strength.get((y + dy, x + dx), 0) for dy, dx in (first, second))
        if here > low and here > before and (here >= after if tie else here > after):
            candidates.add((y, x))
    edges, waiting = set(), [pixel for pixel in candidates if strength[pixel] > high]
    while waiting:
        y, x = waiting.pop()
        if (y, x) in candidates and (y, x) not in edges:
            edges.add((y, x))
            waiting += [(y + dy, x + dx) for dy in (-1, 0, 1) for dx in (-1, 0, 1)]
    return edges


def test_canny_against_a_slow_one():
    noise = torch.randint(0, 32, (3, 32, 32), generator=seeded()).double()
    planes = torch.cat([drops(3), noise, (drops(3) / 3).floor()])  # strong, mixed and weak edges
    edges = water.canny(planes, 50, 150)
    for plane, found in zip(planes, edges, strict=True):
        expected = slow_canny(plane.tolist(), 50, 150)
        assert {tuple(pixel) for pixel in found.nonzero().tolist()} == expected
        assert len(expected) < 400
    assert (edges.sum(dim=(1, 2)) > 0).sum() >= 7
    assert not water.canny(torch.full((1, 32, 32), 9.0).double(), 50, 150).any()


def test_chamfer_distance_against_dijkstra():
    edges = torch.rand(3, 32, 32, generator=seeded()) < 0.004
    edges[2] = False
    distance = water.chamfer_distance(edges)
    knight = [(1, 2), (2, 1), (-1, 2), (-2, 1), (1, -2), (2, -1), (-1, -2), (-2, -1)]
    steps = {(0, 1): 1, (1, 0): 1, (0, -1): 1, (-1, 0): 1} | {(a, b): 1.4 for a in (-1, 1) for b in (-1, 1)}
    steps |= dict.fromkeys(knight, 2.1969)
    for plane, found in zip(edges, distance, strict=True):
        best = torch.where(plane, 0.0, 1e9).double()
        while True:  # relax every step at once until nothing gets shorter
            padded = F.pad(best, (2, 2, 2, 2), value=1e9)
            reached = [padded[2 + y : 34 + y, 2 + x : 34 + x] + cost for (y, x), cost in steps.items()]
            shorter = torch.minimum(best, torch.stack(reached).amin(dim=0))
            if torch.equal(shorter, best):
                break
            best = shorter
        torch.testing.assert_close(found, best.clamp(max=20))
    assert (distance[2] == 20).all() and distance[0].max() > 10 and (distance[edges] == 0).all()


def test_equalise_by_counting():
    planes = torch.randint(0, 21, (3, 32, 32), generator=seeded()).double()
    planes[1] = planes[1].clamp(min=15)
    planes[2] = 7
    for plane, spread in zip(planes, water.equalise(planes), strict=True):
        values = plane.flatten().tolist()
        lowest = values.count(min(values))
        for before, after in zip(values[::37], spread.flatten().tolist()[::37], strict=True):
            counted = sum(value <= before for value in values) - lowest
            expected = round(255 * counted / (1024 - lowest)) if lowest < 1024 else 7
            assert abs(after - expected) <= 1  # a half may be rounded either way
        assert spread.max() == (7 if lowest == 1024 else 255)


def test_light_is_the_height_times_the_embossed_distance():
    levels = drops(6)
    light = water.water_light(levels)
    assert light.dtype == torch.float32 and light.shape == levels.shape
    assert (light.amax(dim=(1, 2)) == 1).all() and light.min() == 0
    assert (light[levels == 0] == 0).all()
    assert torch.equal(water.water_light(torch.zeros(1, 32, 32)), torch.zeros(1, 32, 32))  # no drop, no light
    assert torch.equal(water.water_light(levels[2:3]), light[2:3])
    # The same pixel by pixel, with the neighbours of a reflected border: light comes from the upper left.
    rows = range(32)
    emboss = {(-1, -1): -2, (-1, 0): -1, (0, -1): -1, (0, 0): 1, (0, 1): 1, (1, 0): 1, (1, 1): 2}
    window = {(a, b): 1 / 9 for a in (-1, 0, 1) for b in (-1, 0, 1)}

    def filtered(plane, kernel):
        near = {i: i for i in rows} | {-1: 1, 32: 30}
        return [
            [sum(k * plane[near[i + a]][near[j + b]] for (a, b), k in kernel.items()) for j in rows]
            for i in rows
        ]

    distance = filtered(water.chamfer_distance(water.canny(levels[:1], low=50, high=150))[0].tolist(), window)
    whole = torch.tensor(distance).add(1e-6).floor()[None].double()
    shade = [
        [min(max(v, 0), 255) for v in row] for row in filtered(water.equalise(whole)[0].tolist(), emboss)
    ]
    expected = levels[0].double() * torch.tensor(filtered(shade, window), dtype=torch.float64).round()
    torch.testing.assert_close(light[0].double(), expected / expected.max(), atol=0.02, rtol=0)

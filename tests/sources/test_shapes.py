"""The built-in shapes: an image has the colour of its class where the shape is, and another one elsewhere."""

import torch
import torch.nn.functional as F
from networks import seeded

from sources import shapes


def drawn(inside, per_class, generator):
    """Images of one shape, and bool [N, 1, 32, 32], where it is."""
    seen = []

    def recorded(x, y):
        seen.append(inside(x, y))
        return seen[0]

    images = shapes.draw_shape(recorded, per_class, generator)
    return images, F.avg_pool2d(seen[0].float()[:, None], 3) > 0.5


def test_the_colour_of_the_class_is_where_the_shape_is(small_sets):
    """Inside, the mean colour is much nearer to the colour that the class is named for than outside."""
    generator = seeded()
    parts = [drawn(inside, 3, generator) for inside in shapes.SHAPES.values()]
    images, mask = (torch.cat(part) for part in zip(*parts, strict=True))
    assert torch.equal(images, small_sets[0].images)
    names = [f"{colour} {shape}" for shape in shapes.SHAPES for colour in shapes.COLOURS for _ in range(3)]
    assert [small_sets[0].class_names[c] for c in small_sets[0].labels] == names
    colours = torch.tensor([shapes.COLOURS[name.split()[0]] for name in names])
    distance = []
    for side in (mask, ~mask):
        mean = (images / 255 * side).sum(dim=(2, 3)) / side.sum(dim=(2, 3))
        distance.append((mean - colours).norm(dim=1))
    # The tip of a triangle points up: its mean lies below the middle of its height.
    triangles = [m for m, name in zip(mask[:, 0], names, strict=True) if name.endswith("triangle")]
    rows = [place.nonzero()[:, 0].double() for place in triangles]
    assert torch.stack([row.mean() - (row.min() + row.max()) / 2 for row in rows]).mean() > 0.5
    inside, outside = distance
    assert (inside < outside).float().mean() > 0.97 and inside.median() < 0.25 < outside.median()

"""The built-in shapes: the masks agree with the colours and forms of the images."""

import torch

from sources import shapes


def test_masks_show_where_the_colour_of_the_class_is(small_sets):
    """Inside, the mean colour is much nearer to the colour that the class is named for than outside."""
    images, labels, masks = small_sets[0].images / 255, small_sets[0].labels, small_sets[0].masks
    colours = torch.tensor(list(shapes.COLOURS.values())).repeat(10, 1)[labels]  # by shape, then colour
    for i, name in enumerate(shapes.COLOURS):
        assert shapes.CLASS_NAMES[i].startswith(name)
    distance = {}
    for side, mask in (("inside", masks), ("outside", ~masks)):
        mean = (images * mask[:, None]).sum(dim=(2, 3)) / mask.sum(dim=(1, 2))[:, None]
        distance[side] = (mean - colours).norm(dim=1)
    assert (distance["inside"] < distance["outside"]).float().mean() > 0.97
    assert distance["inside"].median() < 0.25 < distance["outside"].median()

"""Shifts by hand, and the answers that they change against a loop over the images."""

import torch
from networks import Linear, natural_images

from data import to_input
from stress_tests.sensitivity import changed_answers, shifted

NETWORK, IMAGES = Linear(6), (natural_images(40) * 255).round().byte()


def predict(images):
    return NETWORK(to_input(images)).argmax(dim=1)


def test_a_shift_by_hand():
    image = torch.arange(9, dtype=torch.uint8).view(1, 1, 3, 3)
    assert shifted(image, 1, 0)[0, 0].tolist() == [[0, 1, 2], [0, 1, 2], [3, 4, 5]]
    assert shifted(image, 0, -1)[0, 0].tolist() == [[1, 2, 2], [4, 5, 5], [7, 8, 8]]


def test_changed_answers_image_by_image():
    changed = changed_answers(predict, IMAGES, predict(IMAGES))
    for i, image in enumerate(IMAGES):
        before = predict(image[None]).item()
        up = torch.cat([image[:, 1:], image[:, -1:]], dim=1)
        down = torch.cat([image[:, :1], image[:, :-1]], dim=1)
        left = torch.cat([image[:, :, 1:], image[:, :, -1:]], dim=2)
        right = torch.cat([image[:, :, :1], image[:, :, :-1]], dim=2)
        assert changed["mirror"][i] == (predict(image.flip(2)[None]).item() != before)
        assert changed["shift"][i] == (predict(torch.stack([up, down, left, right])) != before).any()
    assert 0 < changed["shift"].sum() < len(IMAGES)

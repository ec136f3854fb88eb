"""Plane waves against their formula, and the answers that they change against a loop over the images."""

import math

import torch
from networks import Linear, natural_images

from data import to_input
from stress_tests.sensitivity import changed_answers, fourier_heatmap, plane_wave, shifted

NETWORK, IMAGES = Linear(6), (natural_images(12) * 255).round().byte()


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
        up, down = (
            torch.cat(rows, dim=1) for rows in ((image[:, 1:], image[:, -1:]), (image[:, :1], image[:, :-1]))
        )
        turned = image.transpose(1, 2)
        left, right = (
            torch.cat(rows, dim=1).transpose(1, 2)
            for rows in ((turned[:, 1:], turned[:, -1:]), (turned[:, :1], turned[:, :-1]))
        )
        assert changed["mirror"][i] == (predict(image.flip(2)[None]).item() != before)
        views = torch.stack([up, down, left, right])
        assert changed["shift"][i] == (predict(views) != before).any()


def test_a_plane_wave_is_a_cosine():
    for row, column in ((0, 0), (1, 0), (3, 5), (-4, 7), (0, 16)):
        wave = torch.tensor(
            [[math.cos(2 * math.pi * (row * y + column * x) / 32) for x in range(32)] for y in range(32)]
        )
        assert torch.allclose(plane_wave(row, column), wave / wave.norm(), atol=1e-5)


def test_the_heat_map_image_by_image():
    labels = predict(IMAGES)
    labels[::3] = (labels[::3] + 1) % 6
    error = fourier_heatmap(predict, IMAGES, labels, [-2, 6], [0, 9])
    generator, wrong = torch.Generator().manual_seed(0), 0
    sign = torch.randint(2, (12, 3, 1, 1), generator=generator) * 2 - 1
    for i, image in enumerate(IMAGES):
        changed = (image / 255 + 4 * sign[i] * plane_wave(6, 9)).clamp(0, 1)
        wrong += predict((changed * 255).round().byte()[None]).item() != labels[i]
    assert abs(error[1, 1].item() - int(wrong) / 12) < 1e-6
    assert error.shape == (2, 2) and error.unique().numel() > 1

"""The most similar images against a loop over all pairs."""

import torch
from networks import natural_images

from stress_tests.lookalikes import most_similar

OTHERS = (natural_images(60, seed=1) * 255).round().byte()


def test_copies_of_any_brightness_and_their_mirror_images_are_found():
    images = torch.stack([OTHERS[3], OTHERS[5].flip(-1), OTHERS[7] // 2, OTHERS[9]])
    images[3, :, :8, :8] = 0
    index, similarity = most_similar(images, OTHERS)
    assert index.tolist() == [3, 5, 7, 9]
    assert (similarity[:3] > 0.999).all() and similarity[3] < 0.999


def test_against_a_loop_over_all_pairs():
    images = (natural_images(50, seed=2) * 255).round().byte()

    def thumbnail(image):
        values = [
            image[c, 4 * i : 4 * i + 4, 4 * j : 4 * j + 4].double().mean().item()
            for c in range(3)
            for i in range(8)
            for j in range(8)
        ]
        return torch.tensor(values, dtype=torch.float64)

    index, similarity = most_similar(images, OTHERS)
    theirs = [thumbnail(other) for other in OTHERS]
    for i, image in enumerate(images):
        views = thumbnail(image), thumbnail(image.flip(-1))
        pairs = [
            max(torch.corrcoef(torch.stack([view, other]))[0, 1].item() for view in views) for other in theirs
        ]
        assert abs(similarity[i].item() - max(pairs)) < 1e-5
        assert abs(pairs[index[i]] - max(pairs)) < 1e-5

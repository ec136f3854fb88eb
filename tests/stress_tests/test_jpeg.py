import torch
from networks import natural_images, seeded
from torchvision.io import decode_jpeg, encode_jpeg

from stress_tests import jpeg
from stress_tests.corruptions import CORRUPTIONS

IMAGES = natural_images(24)


def test_jpeg_against_torchvision():
    images = (torch.cat([IMAGES, torch.rand(4, 3, 32, 32, generator=seeded())]) * 255).round()
    for quality in (95, 80, 65, 58, 50, 40, 10):
        expected = torch.stack([decode_jpeg(encode_jpeg(image.byte(), quality=quality)) for image in images])
        difference = (jpeg.jpeg(images / 255, quality) * 255 - expected).abs()
        # libjpeg computes in integers, so a coefficient that is about half a step may go the other way.
        assert difference.mean() < 0.6 and (difference > 4).float().mean() < 0.02, quality
        assert difference.mean() < 0.08 * (images - expected).abs().mean(), quality
    for severity, quality in enumerate((80, 65, 58, 50, 40), start=1):
        assert torch.equal(
            CORRUPTIONS["jpeg_compression"](IMAGES, severity, seeded()), jpeg.jpeg(IMAGES, quality)
        )


def test_jpeg_parts():
    transform = jpeg.dct_matrix()
    torch.testing.assert_close(transform @ transform.T, torch.eye(8, dtype=torch.float64))
    assert jpeg.quantisation_table(jpeg.LUMINANCE_STEPS, 50)[0, 0] == 16
    assert jpeg.quantisation_table(jpeg.CHROMINANCE_STEPS, 50)[7, 7] == 99
    assert jpeg.quantisation_table(jpeg.LUMINANCE_STEPS, 25)[0, 1] == 22  # twice the step
    assert (jpeg.quantisation_table(jpeg.LUMINANCE_STEPS, 100) == 1).all()
    # With steps of 1 everywhere grey pictures come back as they were, within rounding.
    grey = IMAGES.mean(dim=1, keepdim=True).expand_as(IMAGES)
    assert (jpeg.jpeg(grey, 100) - grey).abs().max() < 2.1 / 255

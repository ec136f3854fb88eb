"""Look-alikes: which image of another set is the most similar one, and does the network do better on such?"""

import torch
import torch.nn.functional as F
from torch import Tensor


def thumbnails(images: Tensor) -> Tensor:
    """Reduce images [N, 3, H, W] to the means of an 8x8 grid, centred, and scaled to length 1; [N, 192].

    Neither brightness nor contrast counts, so the scalar product of two thumbnails is their correlation.
    """
    small = F.adaptive_avg_pool2d(images.float(), 8).flatten(1)
    small = small - small.mean(dim=1, keepdim=True)
    return small / small.norm(dim=1, keepdim=True).clamp(min=1e-6)


def most_similar(images: Tensor, others: Tensor) -> tuple[Tensor, Tensor]:
    """Find for each image the most similar one of `others`, as it is or mirrored.

    images uint8 [N, 3, H, W]; others uint8 [M, 3, H, W]. Returns the index into `others`, int64 [N], and the
    similarity, float32 [N], from -1 to 1, which an exact copy has: the correlation of the thumbnails. Of
    equal ones the first counts. Barz and Denzler, "Do We Train on Test Data?", 2020 (arXiv 1902.00423),
    searched by the features of a network and judged by eye: 891 of CIFAR-100's 10,000 test images have a
    near-duplicate among its training images.
    """
    theirs, index, similarity = thumbnails(others), [], []
    for part in images.split(500):
        found = torch.maximum(thumbnails(part) @ theirs.T, thumbnails(part.flip(-1)) @ theirs.T)
        best = found.max(dim=1)
        index.append(best.indices)
        similarity.append(best.values.clamp(-1, 1))
    return torch.cat(index), torch.cat(similarity)

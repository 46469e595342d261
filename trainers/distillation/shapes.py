"""Features of different networks brought to shapes that can be compared."""

from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F


def pooled_alike(
    student: Float[Tensor, "n c h w"], teacher: Float[Tensor, "n d i j"]
) -> tuple[Float[Tensor, "n c a b"], Float[Tensor, "n d a b"]]:
    """Both maps averaged to the smaller height and the smaller width of the two."""
    height, width = (min(student.shape[i], teacher.shape[i]) for i in (2, 3))
    return _pooled(student, (height, width)), _pooled(teacher, (height, width))


def embedding(feature: Float[Tensor, "n d *space"]) -> Float[Tensor, "n d"]:
    """One vector per image: maps are averaged over their places."""
    return feature.flatten(2).mean(dim=2) if feature.ndim > 2 else feature


def _pooled(feature: Float[Tensor, "n c h w"], size: tuple[int, int]) -> Float[Tensor, "n c a b"]:
    return feature if feature.shape[2:] == size else F.adaptive_avg_pool2d(feature, size)

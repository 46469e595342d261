"""CC: correlation congruence (Peng et al., ICCV 2019, arXiv 1904.01802).

    C_ij = k(f_i, f_j), the Gaussian kernel of f / ||f|| by its Taylor series of order P
    k(x, y) = exp(-2 g) sum_{p=0..P} (2 g)^p / p! (x . y)^p
    L = ||C_S - C_T||_F^2 / n^2

The default weight is that of the collection Knowledge-Distillation-Zoo (github.com/AberHu) for this
loss with these values. The benchmark RepDistiller has another loss under this name, products of the
differences of neighbours in the batch, and its weight of 0.02 is for that one.
"""

import math
from typing import Annotated, ClassVar, Literal

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from trainers.distillation.feature_loss import (
    DefaultLayers,
    DistillationBatch,
    FeatureLoss,
    Weight,
    feature_loss,
)
from trainers.distillation.shapes import embedding


@feature_loss
class CorrelationCongruence(FeatureLoss):
    """Images correlate for the student as for the teacher. Weight 100 is AberHu's."""

    default_layers: ClassVar[DefaultLayers] = "embedding"
    dimensions: ClassVar[tuple[int, ...]] = (2, 4)

    name: Literal["cc"] = "cc"
    weight: Weight = 100.0
    kernel_gamma: Annotated[float, Field(gt=0, description="g of the Gaussian kernel")] = 0.4
    order: Annotated[int, Field(ge=1, le=20, description="P of its Taylor series")] = 2

    def value(self, batch: DistillationBatch) -> Float[Tensor, ""]:
        values = []
        for features in zip(batch.student, batch.teacher, strict=True):
            student, teacher = map(embedding, features)
            values.append(correlation_loss(student, teacher, self.kernel_gamma, self.order))
        return torch.stack(values).sum()


def correlation_loss(
    student: Float[Tensor, "n d"],
    teacher: Float[Tensor, "n e"],
    gamma: float = 0.4,
    order: int = 2,
) -> Float[Tensor, ""]:
    """Mean squared difference of the correlations of all pairs of images."""
    return F.mse_loss(_correlations(student, gamma, order), _correlations(teacher, gamma, order))


def _correlations(x: Float[Tensor, "n d"], gamma: float, order: int) -> Float[Tensor, "n n"]:
    directions = F.normalize(x, dim=1)
    cosines = directions @ directions.T
    terms = ((2 * gamma) ** p / math.factorial(p) * cosines**p for p in range(order + 1))
    return math.exp(-2 * gamma) * torch.stack(list(terms)).sum(dim=0)

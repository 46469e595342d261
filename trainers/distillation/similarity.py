"""SP: similarity-preserving distillation (Tung and Mori, ICCV 2019, arXiv 1907.09682).

G = Q Q^T with Q the features, one row per image; every row of G divided by its norm
L = sum_layers ||G_S - G_T||_F^2 / n^2
"""

from typing import ClassVar, Literal

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from trainers.distillation.feature_loss import (
    DefaultLayers,
    DistillationBatch,
    FeatureLoss,
    Weight,
    feature_loss,
)


@feature_loss
class SimilarityPreserving(FeatureLoss):
    """Images that are alike to the teacher are alike to the student. 3000 is the authors' gamma."""

    default_layers: ClassVar[DefaultLayers] = "last stage"
    dimensions: ClassVar[tuple[int, ...]] = (2, 4)

    name: Literal["sp"] = "sp"
    weight: Weight = 3000.0

    def value(self, batch: DistillationBatch) -> Float[Tensor, ""]:
        pairs = zip(batch.student, batch.teacher, strict=True)
        return torch.stack([similarity_loss(s, t) for s, t in pairs]).sum()


def similarity_loss(
    student: Float[Tensor, "n ..."], teacher: Float[Tensor, "n ..."]
) -> Float[Tensor, ""]:
    """Mean squared difference of the similarities of all pairs; any shape behind the batch."""
    return F.mse_loss(_similarities(student), _similarities(teacher))


def _similarities(feature: Float[Tensor, "n ..."]) -> Float[Tensor, "n n"]:
    rows = feature.flatten(1)
    return F.normalize(rows @ rows.T, dim=1)

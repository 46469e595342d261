"""RKD: relational knowledge distillation (Park et al., CVPR 2019, arXiv 1904.05068).

    distance:  psi_D(i, j) = ||f_i - f_j|| / mean of all distances > 0
    angle:     psi_A(i, j, k) = cos of the angle at j between f_i and f_k
    L = w_D mean h(psi_D) + w_A mean h(psi_A)

h is the Huber loss between student and teacher, the means go over all n^2 pairs and n^3
triples, those of an image with itself included, as in the authors' code.
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
from trainers.distillation.shapes import embedding


@feature_loss
class RelationalKnowledge(FeatureLoss):
    """Distances and angles between images are the teacher's. 25 and 50 are the authors' weights."""

    default_layers: ClassVar[DefaultLayers] = "embedding"
    dimensions: ClassVar[tuple[int, ...]] = (2, 4)

    name: Literal["rkd"] = "rkd"
    distance_weight: Weight = 25.0
    angle_weight: Weight = 50.0

    def value(self, batch: DistillationBatch) -> Float[Tensor, ""]:
        values = []
        for features in zip(batch.student, batch.teacher, strict=True):
            student, teacher = map(embedding, features)
            distances = self.distance_weight * distance_loss(student, teacher)
            values.append(distances + self.angle_weight * angle_loss(student, teacher))
        return torch.stack(values).sum()


def distance_loss(
    student: Float[Tensor, "n d"], teacher: Float[Tensor, "n e"]
) -> Float[Tensor, ""]:
    """Huber loss of the distances between images, in units of their mean."""
    return F.smooth_l1_loss(_relative_distances(student), _relative_distances(teacher))


def angle_loss(student: Float[Tensor, "n d"], teacher: Float[Tensor, "n e"]) -> Float[Tensor, ""]:
    """Huber loss of the cosines of the angles that every three images form."""
    return F.smooth_l1_loss(_cosines(student), _cosines(teacher))


def _relative_distances(x: Float[Tensor, "n d"]) -> Float[Tensor, "n n"]:
    differences = x.unsqueeze(0) - x.unsqueeze(1)
    distances, apart = _norms(differences)
    distances = distances * apart
    # A batch of one image, or of one image's copies, has no distances.
    mean = distances.sum() / apart.sum().clamp_min(1)
    return distances / mean.clamp_min(torch.finfo(x.dtype).tiny)


def _cosines(x: Float[Tensor, "n d"]) -> Float[Tensor, "n n n"]:
    """[j, i, k]: at image j, between images i and k."""
    differences = x.unsqueeze(0) - x.unsqueeze(1)
    directions = differences / _norms(differences)[0].unsqueeze(2)
    return directions @ directions.mT


def _norms(differences: Float[Tensor, "n n d"]) -> tuple[Tensor, Tensor]:
    """Euclidean norms, 1 in place of 0, where the root has no gradient; and whether they are."""
    squares = differences.square().sum(dim=2)
    apart = squares > 0
    return squares.where(apart, torch.ones_like(squares)).sqrt(), apart

"""NST: neuron selectivity transfer (Huang and Wang, 2017, arXiv 1707.01219).

The squared maximum mean discrepancy between the channels of student and teacher, each a sample
f of dimension h w, with the polynomial kernel:

    f <- f / ||f||_2,   k(x, y) = (x . y)^2                               (d = 2, c = 0)
    L = mean_ij k(t_i, t_j) + mean_ij k(s_i, s_j) - 2 mean_ij k(s_i, t_j)

per image and layer; the mean over images and the sum over layers.
"""

from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from trainers.distillation.feature_loss import DistillationBatch, FeatureLoss, Weight, feature_loss
from trainers.distillation.shapes import pooled_alike


@feature_loss
class NeuronSelectivity(FeatureLoss):
    """The student's neurons fire where the teacher's do. Weight 50 is RepDistiller's."""

    name: Literal["nst"] = "nst"
    weight: Weight = 50.0

    def value(self, batch: DistillationBatch) -> Float[Tensor, ""]:
        pairs = zip(batch.student, batch.teacher, strict=True)
        return torch.stack([selectivity_loss(s, t) for s, t in pairs]).sum()


def selectivity_loss(
    student: Float[Tensor, "n c h w"], teacher: Float[Tensor, "n d i j"]
) -> Float[Tensor, ""]:
    """The discrepancy of one layer, mean over images; the larger maps are pooled."""
    ours, theirs = (F.normalize(f.flatten(2), dim=2) for f in pooled_alike(student, teacher))
    return _kernel(theirs, theirs) + _kernel(ours, ours) - 2 * _kernel(ours, theirs)


def _kernel(a: Float[Tensor, "n c p"], b: Float[Tensor, "n d p"]) -> Float[Tensor, ""]:
    """The mean of k over all pairs of channels and all images."""
    return (a @ b.mT).square().mean()

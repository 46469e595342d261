"""AT: attention transfer (Zagoruyko and Komodakis, ICLR 2017, arXiv 1612.03928).

    A = sum_c |F_c|^p,   q = vec(A) / ||vec(A)||_2
    L = sum_layers mean (q_S - q_T)^2

The paper sums the squares of one image's map; its code, and the published weight, take the mean
over places and images. A channel's mean in place of its sum changes nothing, q has no scale.
"""

from typing import Annotated, Literal

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from trainers.distillation.feature_loss import DistillationBatch, FeatureLoss, Weight, feature_loss
from trainers.distillation.shapes import pooled_alike


@feature_loss
class AttentionTransfer(FeatureLoss):
    """The student looks where the teacher looks. Weight 1000 is the authors' beta."""

    name: Literal["at"] = "at"
    weight: Weight = 1000.0
    exponent: Annotated[float, Field(ge=1, description="p")] = 2.0

    def value(self, batch: DistillationBatch) -> Float[Tensor, ""]:
        pairs = zip(batch.student, batch.teacher, strict=True)
        return torch.stack([attention_loss(s, t, self.exponent) for s, t in pairs]).sum()


def attention_loss(
    student: Float[Tensor, "n c h w"], teacher: Float[Tensor, "n d i j"], exponent: float = 2.0
) -> Float[Tensor, ""]:
    """Mean squared difference of the attention maps of one layer; the larger maps are pooled."""
    ours, theirs = (_attention(f, exponent) for f in pooled_alike(student, teacher))
    return F.mse_loss(ours, theirs)


def _attention(feature: Float[Tensor, "n c h w"], exponent: float) -> Float[Tensor, "n places"]:
    return F.normalize(feature.abs().pow(exponent).mean(dim=1).flatten(1), dim=1)

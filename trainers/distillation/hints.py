"""FitNet: hints from the middle of the teacher (Romero et al., ICLR 2015, arXiv 1412.6550).

    L = mean (r(F_S) - F_T)^2

r is a regressor from the student's channels to the teacher's, learned with the student. Here it is
a 1x1 convolution and the larger maps are pooled; the paper's convolution also brings the sizes
together. It ends without a ReLU, since the hinted layer of some networks has none. One departure:
the paper learns from hints first and from logits after, here both are summed, as is usual today.
"""

from typing import ClassVar, Literal

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn
from torch.nn import functional as F

from trainers.distillation.feature_loss import (
    DefaultLayers,
    DistillationBatch,
    FeatureLoss,
    Weight,
    feature_loss,
)
from trainers.distillation.shapes import pooled_alike


@feature_loss
class FitNet(FeatureLoss):
    """The student's middle stage predicts the teacher's. Weight 100 is RepDistiller's."""

    default_layers: ClassVar[DefaultLayers] = "middle stage"

    name: Literal["fitnet"] = "fitnet"
    weight: Weight = 100.0

    def build(
        self, example: DistillationBatch, labels: Int64[Tensor, " m"], seed: int
    ) -> nn.Module:
        return HintRegressors(example)


class HintRegressors(nn.Module):
    """A regressor per layer."""

    def __init__(self, example: DistillationBatch) -> None:
        super().__init__()
        self.regressors = nn.ModuleList(
            nn.Conv2d(student.shape[1], teacher.shape[1], 1)
            for student, teacher in zip(example.student, example.teacher, strict=True)
        )

    def forward(self, batch: DistillationBatch) -> Float[Tensor, ""]:
        values = []
        for regressor, *pair in zip(self.regressors, batch.student, batch.teacher, strict=True):
            student, teacher = pooled_alike(*pair)
            values.append(F.mse_loss(regressor(student), teacher))
        return torch.stack(values).sum()

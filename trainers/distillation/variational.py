"""VID: variational information distillation (Ahn et al., CVPR 2019, arXiv 1904.05835).

The mutual information of the layers' features is bounded from below by -E[-log q(F_T | F_S)], with
q a Gaussian whose mean a small network predicts from F_S and whose variance is learned per channel:

    L = mean ((F_T - mu(F_S))^2 / (2 sigma_c^2) + log(sigma_c))
    sigma_c^2 = softplus(a_c) + 1e-5

without the constant log(2 pi) / 2. mu is three 1x1 convolutions with ReLUs between, inside as wide
as the teacher; variances start at 5. These values and the mean over elements are the benchmark
RepDistiller's, from the authors' code.
"""

import math
from typing import Annotated, Literal

import torch
from jaxtyping import Float, Int64
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from trainers.distillation.feature_loss import DistillationBatch, FeatureLoss, Weight, feature_loss
from trainers.distillation.shapes import pooled_alike

SMALLEST_VARIANCE = 1e-5


@feature_loss
class VariationalInformation(FeatureLoss):
    """The student's features tell as much as possible of the teacher's. Weight 1: RepDistiller."""

    name: Literal["vid"] = "vid"
    weight: Weight = 1.0
    initial_variance: Annotated[float, Field(gt=SMALLEST_VARIANCE)] = 5.0

    def build(
        self, example: DistillationBatch, labels: Int64[Tensor, " m"], seed: int
    ) -> nn.Module:
        return VariationalGaussians(example, self.initial_variance)


class VariationalGaussians(nn.Module):
    """A Gaussian of the teacher's feature given the student's, one per layer."""

    def __init__(self, example: DistillationBatch, initial_variance: float) -> None:
        super().__init__()
        pairs = zip(example.student, example.teacher, strict=True)
        widths = [(student.shape[1], teacher.shape[1]) for student, teacher in pairs]
        self.means = nn.ModuleList(_mean_network(*pair) for pair in widths)
        # The inverse of softplus.
        start = math.log(math.expm1(initial_variance - SMALLEST_VARIANCE))
        self.raw_variances = nn.ParameterList(torch.full((width,), start) for _, width in widths)

    def forward(self, batch: DistillationBatch) -> Float[Tensor, ""]:
        values = []
        for mean, raw, *pair in zip(
            self.means, self.raw_variances, batch.student, batch.teacher, strict=True
        ):
            student, teacher = pooled_alike(*pair)
            variance = F.softplus(raw).view(-1, 1, 1) + SMALLEST_VARIANCE
            error = (teacher - mean(student)).square()
            values.append((error / variance + variance.log()).mean() / 2)
        return torch.stack(values).sum()


def _mean_network(inputs: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, 1, bias=False),
        nn.ReLU(),
        nn.Conv2d(outputs, outputs, 1, bias=False),
        nn.ReLU(),
        nn.Conv2d(outputs, outputs, 1, bias=False),
    )

"""The loss between a student and its teacher as data, and the part of it that is on logits."""

from typing import Annotated

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from spaces.frozen import Frozen
from trainers.distillation.feature_loss import AnyFeatureLoss, Weight


class DistillationLoss(Frozen):
    """gamma * CE(targets) + alpha * T^2 KL(teacher || student) at temperature T, and the weighted
    sum of losses on features.

    The defaults are SQAKD's (Zhao and Zhao, AISTATS 2024, arXiv 2403.11106): gamma 0 makes it
    free of labels. The factor T^2 keeps gradients at the size of those of the cross-entropy
    (Hinton et al., arXiv 1503.02531). A call computes the part on logits; that on features needs
    to know the networks and is computed by a Distiller.
    """

    temperature: Annotated[float, Field(gt=0)] = 4.0
    alpha: Weight = 1.0
    gamma: Weight = 0.0
    features: Annotated[
        tuple[AnyFeatureLoss, ...],
        Field(strict=False, description="losses on features, each with its name and weight"),
    ] = ()

    def __call__(
        self,
        student: Float[Tensor, "n k"],
        teacher: Float[Tensor, "n k"],
        targets: Float[Tensor, "n k"],
    ) -> Float[Tensor, ""]:
        """The mean over the batch, nats. `student` and `teacher` are logits."""
        loss = self.alpha * kd_loss(student, teacher, self.temperature)
        if self.gamma > 0:
            loss = loss + self.gamma * F.cross_entropy(student, targets)
        return loss


def kd_loss(
    student: Float[Tensor, "n k"], teacher: Float[Tensor, "n k"], temperature: float
) -> Float[Tensor, ""]:
    """T^2 KL(softmax(teacher / T) || softmax(student / T)), mean over the batch, nats."""
    log_student = torch.log_softmax(student / temperature, dim=1)
    log_teacher = torch.log_softmax(teacher / temperature, dim=1)
    divergence = F.kl_div(log_student, log_teacher, reduction="batchmean", log_target=True)
    return temperature**2 * divergence


# Weights as published: Zhao and Zhao's; Hinton et al.'s loss as the RepDistiller benchmark (Tian
# et al., arXiv 1910.10699) weighs it; both terms in full, as that benchmark adds KD to others.
SQAKD = DistillationLoss()
KD = DistillationLoss(alpha=0.9, gamma=0.1)
KD_CE = DistillationLoss(alpha=1.0, gamma=1.0)

"""The loss between a student and its teacher as data, and the part of it that is on logits."""

from typing import Annotated, Any

import torch
from jaxtyping import Float
from pydantic import Field, model_validator
from torch import Tensor
from torch.nn import functional as F

from spaces.errors import unknown_name
from spaces.frozen import Frozen
from trainers.distillation.feature_loss import AnyFeatureLoss, Weight


class DistillationLoss(Frozen):
    """gamma * CE(targets) + alpha * T^2 KL(teacher || student) at temperature T, and the weighted
    sum of losses on features.

    A plain text is the name of a published one: sqakd, kd or kd_ce. The defaults are SQAKD's (Zhao
    and Zhao, AISTATS 2024, arXiv 2403.11106): gamma 0 makes it free of labels. The factor T^2 keeps
    gradients at the size of those of the cross-entropy (Hinton et al., arXiv 1503.02531). A call
    computes the part on logits; that on features needs to know the networks and is computed by a
    Distiller.
    """

    temperature: Annotated[float, Field(gt=0)] = 4.0
    alpha: Weight = 1.0
    gamma: Weight = 0.0
    label_smoothing: Annotated[
        float, Field(ge=0, lt=1, description="of the targets of gamma's cross-entropy")
    ] = 0.0
    features: Annotated[
        tuple[AnyFeatureLoss, ...],
        Field(strict=False, description="losses on features, each with its name and weight"),
    ] = ()

    @model_validator(mode="before")
    @classmethod
    def _published(cls, content: Any) -> Any:
        if not isinstance(content, str):
            return content
        if content not in PUBLISHED:
            raise ValueError(str(unknown_name("loss", content, PUBLISHED)))
        return PUBLISHED[content]

    @model_validator(mode="after")
    def _smooths_something(self) -> "DistillationLoss":
        if self.label_smoothing > 0 and self.gamma == 0:
            raise ValueError("label_smoothing is of the cross-entropy: give gamma a weight above 0")
        return self

    def __call__(
        self,
        student: Float[Tensor, "n k"],
        teacher: Float[Tensor, "n k"],
        targets: Float[Tensor, "n k"],
    ) -> Float[Tensor, ""]:
        """The mean over the batch, nats. `student` and `teacher` are logits."""
        loss = self.alpha * kd_loss(student, teacher, self.temperature)
        if self.gamma > 0:
            hard = F.cross_entropy(student, targets, label_smoothing=self.label_smoothing)
            loss = loss + self.gamma * hard
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
PUBLISHED: dict[str, dict[str, Any]] = {
    "sqakd": {"alpha": 1.0, "gamma": 0.0},
    "kd": {"alpha": 0.9, "gamma": 0.1},
    "kd_ce": {"alpha": 1.0, "gamma": 1.0},
}
SQAKD, KD, KD_CE = (DistillationLoss(**weights) for weights in PUBLISHED.values())

"""What the batches of one epoch of distillation tell: losses and the metric."""

import torch
from jaxtyping import Float
from torch import Tensor

from trainers.distillation import kd_loss
from trainers.metric import contextual_mutual_information, teacher_stddev


class Tally:
    """What an epoch's batches tell, of all ranks. It keeps every logit: 8 N K bytes."""

    def __init__(self, temperature: float) -> None:
        self.temperature, self.images = temperature, 0
        self._logits: list[Tensor] = []
        self._taught: list[Tensor] = []
        self._targets: list[Tensor] = []
        self._sums: Tensor | float = 0.0  # loss, KD loss; on the device, for which nothing waits

    def add(
        self,
        logits: Float[Tensor, "n k"],
        taught: Float[Tensor, "n k"],
        targets: Float[Tensor, "n k"],
        loss: Float[Tensor, ""],
    ) -> None:
        """A whole batch; `loss` is its mean."""
        self.images += len(targets)
        self._logits.append(logits)
        self._taught.append(taught)
        self._targets.append(targets)
        kd = kd_loss(logits, taught, self.temperature)
        self._sums = self._sums + torch.stack([loss, kd]).double() * len(targets)

    def figures(self) -> dict[str, float]:
        """Means per image."""
        assert isinstance(self._sums, Tensor)
        loss, kd = (self._sums / self.images).tolist()
        return {"training_loss": loss, "kd_training": kd}

    def information(self) -> dict[str, float]:
        """The metric of student and teacher, and T.stddev; all logits must be finite."""
        targets = torch.cat(self._targets)
        student = contextual_mutual_information(torch.cat(self._logits), targets)
        teacher = contextual_mutual_information(torch.cat(self._taught), targets)
        return {
            "score": student.score,
            "teacher_score": teacher.score,
            "cmi": student.cmi,
            "centroid_divergence": student.centroid_divergence,
            "teacher_cmi": teacher.cmi,
            "teacher_centroid_divergence": teacher.centroid_divergence,
            "teacher_stddev": teacher_stddev([batch.softmax(dim=1) for batch in self._taught]),
            "entropy": student.entropy,
        }

"""CRD: contrastive representation distillation (Tian, Krishnan, Isola, ICLR 2020,
arXiv 1910.10699).

Student and teacher embeddings are projected to unit vectors v. Each is contrasted with the memory
m of the other network's vectors, one per image: its own image is the positive, K images of other
classes are the negatives.

    P(v, m_j) = exp(v . m_j / tau) / Z,   Z = N mean(exp) over the first batch
    h = P / (P + K / N)
    L = -mean [log h(positive) + sum_negatives log(1 - h)]

summed over both directions. After a batch the memory of its images becomes the normalised
m <- momentum m + (1 - momentum) v. All values are those of the authors' code.

Two things are ours. Negatives are drawn with replacement and keyed by the step, so that a resumed
run draws the same; there are at most as many as the data set has images. And a mixture (CutMix,
MixUp) counts as a view of the image that it started from, whose class its negatives avoid.
"""

from typing import Annotated, ClassVar, Literal

import torch
from jaxtyping import Float, Int64
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from spaces import randomness
from spaces.errors import UserError
from trainers.distillation.feature_loss import (
    DefaultLayers,
    DistillationBatch,
    FeatureLoss,
    Weight,
    feature_loss,
)
from trainers.distillation.shapes import embedding


@feature_loss
class ContrastiveRepresentation(FeatureLoss):
    """The student tells images apart as the teacher does. Weight 0.8 is the authors' beta.

    Checkpoints grow by two memories of float32 (images, width).
    """

    default_layers: ClassVar[DefaultLayers] = "embedding"
    dimensions: ClassVar[tuple[int, ...]] = (2, 4)
    needs_sample_ids: ClassVar[bool] = True

    name: Literal["crd"] = "crd"
    weight: Weight = 0.8
    width: Annotated[int, Field(ge=1, description="of the projected embeddings")] = 128
    negatives: Annotated[int, Field(ge=1, description="K, at most the number of images")] = 16384
    temperature: Annotated[float, Field(gt=0, description="tau")] = 0.07
    momentum: Annotated[float, Field(ge=0, lt=1, description="of the memories")] = 0.5

    def build(
        self, example: DistillationBatch, labels: Int64[Tensor, " m"], seed: int
    ) -> nn.Module:
        if len(example.student) != 1:
            raise UserError(
                f"loss.features: crd remembers one embedding per image, got {len(example.student)} "
                "layers"
            )
        widths = [embedding(f[0]).shape[1] for f in (example.student, example.teacher)]
        return Contrast(self, widths[0], widths[1], labels, seed)


class Negatives(nn.Module):
    """Draws images of other classes than the one given, evenly."""

    order: Tensor
    first: Tensor
    counts: Tensor

    def __init__(self, labels: Int64[Tensor, " m"]) -> None:
        super().__init__()
        counts = torch.bincount(labels)
        if int(counts.max()) == len(labels):
            raise UserError("loss.features: crd contrasts classes, and all images are of one")
        # Sorted by class, the images to avoid are one interval.
        self.register_buffer("order", labels.argsort(stable=True), persistent=False)
        self.register_buffer("first", counts.cumsum(0) - counts, persistent=False)
        self.register_buffer("counts", counts, persistent=False)

    def forward(
        self, classes: Int64[Tensor, " n"], count: int, rng: torch.Generator
    ) -> Int64[Tensor, "n count"]:
        """`count` rows of images per element of `classes`, with replacement."""
        first, own = (t[classes].unsqueeze(1) for t in (self.first, self.counts))
        draws = torch.rand(len(classes), count, dtype=torch.float64, generator=rng)
        others = len(self.order) - own
        ranks = (draws.to(others.device) * others).long()
        return self.order[ranks + own * (ranks >= first)]


class Contrast(nn.Module):
    """The two projections and the two memories."""

    labels: Tensor
    student_memory: Tensor
    teacher_memory: Tensor
    normalisers: Tensor
    steps: Tensor

    def __init__(
        self,
        config: ContrastiveRepresentation,
        student_width: int,
        teacher_width: int,
        labels: Int64[Tensor, " m"],
        seed: int,
    ) -> None:
        super().__init__()
        self.config, self.seed = config, seed
        self.project_student = nn.Linear(student_width, config.width)
        self.project_teacher = nn.Linear(teacher_width, config.width)
        self.negatives = Negatives(labels)
        self.register_buffer("labels", labels, persistent=False)
        bound = (config.width / 3) ** -0.5  # the memories begin with norms of about 1
        for name in ("student_memory", "teacher_memory"):
            memory = torch.empty(len(labels), config.width).uniform_(-bound, bound)
            self.register_buffer(name, memory)
        self.register_buffer("normalisers", torch.zeros(2))  # Z of student, teacher; 0: not yet set
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64))

    def forward(self, batch: DistillationBatch) -> Float[Tensor, ""]:
        """In training mode the memories move on."""
        ids = batch.sample_ids
        student = F.normalize(self.project_student(embedding(batch.student[0])), dim=1)
        teacher = F.normalize(self.project_teacher(embedding(batch.teacher[0])), dim=1)
        rows = torch.cat([ids.unsqueeze(1), self._draw(ids)], dim=1)
        value = self._contrast(student, self.teacher_memory, rows, 0)
        value = value + self._contrast(teacher, self.student_memory, rows, 1)
        if self.training:
            self.student_memory = self._moved(self.student_memory, student, ids)
            self.teacher_memory = self._moved(self.teacher_memory, teacher, ids)
            self.steps += 1
        return value

    def _draw(self, ids: Int64[Tensor, " n"]) -> Int64[Tensor, "n k"]:
        rng = torch.Generator().manual_seed(
            randomness.key(self.seed, int(self.steps), "negatives") % 2**63
        )
        count = min(self.config.negatives, len(self.labels))
        drawn: Tensor = self.negatives(self.labels[ids], count, rng)
        return drawn

    def _contrast(
        self,
        vectors: Float[Tensor, "n d"],
        memory: Float[Tensor, "m d"],
        rows: Int64[Tensor, "n j"],
        side: int,
    ) -> Float[Tensor, ""]:
        """The loss of one direction; `rows` of the memory are the positive, then the negatives."""
        scores = (vectors @ memory.T / self.config.temperature).gather(1, rows).exp()
        normaliser = self.normalisers[side].clone()
        if normaliser == 0:
            normaliser = scores.detach().mean() * len(memory)
            if self.training:
                self.normalisers[side] = normaliser
        p = scores / normaliser
        noise = (rows.shape[1] - 1) / len(memory)  # K / N
        positive, negative = p[:, 0] / (p[:, 0] + noise), noise / (p[:, 1:] + noise)
        return -(positive.log() + negative.log().sum(dim=1)).mean()

    @torch.no_grad()
    def _moved(
        self, memory: Float[Tensor, "m d"], vectors: Float[Tensor, "n d"], ids: Int64[Tensor, " n"]
    ) -> Float[Tensor, "m d"]:
        """A new tensor, since the gradient of this batch still needs the old one."""
        # An image may be in a batch twice: its last view counts, in whatever order kernels write.
        places = torch.arange(len(ids), device=ids.device)
        latest = torch.full_like(memory[:, 0], -1, dtype=torch.int64)
        latest.scatter_reduce_(0, ids, places, "amax")
        seen = latest >= 0
        momentum, moved = self.config.momentum, memory.clone()
        mean = momentum * memory[seen] + (1 - momentum) * vectors[latest[seen]]
        moved[seen] = F.normalize(mean, dim=1)
        return moved

"""The whole loss of one student: on logits and on features, with whatever the losses learn."""

from collections.abc import Iterable
from typing import NamedTuple

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from spaces import randomness
from spaces.errors import UserError
from trainers.contexts import eval_mode
from trainers.distillation.feature_loss import DistillationBatch, FeatureLoss
from trainers.distillation.layers import Answer, Tap, embedding_tap, stage_taps, watched
from trainers.distillation.loss import DistillationLoss


class _Places(NamedTuple):
    """Where one loss looks, in the student and in the teacher."""

    student: tuple[Tap, ...]
    teacher: tuple[Tap, ...]


class Distiller(nn.Module):
    """`loss` between two networks. Its parameters are those that the feature losses learn.

    `inputs` is a normalised batch (N, C, H, W) from which layers and shapes are found, `labels`
    (M,) are those of all images that the student learns from. Raises UserError where a loss cannot
    compare the two networks.
    """

    def __init__(
        self,
        loss: DistillationLoss,
        *,
        student: nn.Module,
        teacher: nn.Module,
        inputs: Float[Tensor, "n c h w"],
        labels: Int64[Tensor, " m"],
        seed: int,
    ) -> None:
        super().__init__()
        self.loss = loss
        self.places = [_places(part, student, teacher, inputs) for part in loss.features]
        self.student_taps = _all(places.student for places in self.places)
        self.teacher_taps = _all(places.teacher for places in self.places)
        self.parts = nn.ModuleList()
        if loss.features:
            answers = (
                _without_learning(student, inputs, self.student_taps),
                _without_learning(teacher, inputs, self.teacher_taps),
            )
            self._build(answers, labels, seed)

    def forward(
        self,
        student: Answer,
        teacher: Answer,
        targets: Float[Tensor, "n k"],
        sample_ids: Int64[Tensor, " n"],
    ) -> Float[Tensor, ""]:
        """The mean over the batch; the answers hold the features at `student_taps` and
        `teacher_taps`, `sample_ids` are rows of the images that `labels` were of."""
        total = self.loss(student.logits, teacher.logits.detach(), targets)
        for loss, places, part in zip(self.loss.features, self.places, self.parts, strict=True):
            total = total + loss.weight * part(_seen(places, student, teacher, targets, sample_ids))
        return total

    def _build(
        self, answers: tuple[Answer, Answer], labels: Int64[Tensor, " m"], seed: int
    ) -> None:
        targets = torch.softmax(answers[1].logits, dim=1)
        rows = torch.arange(len(targets), device=labels.device) % len(labels)
        for index, (loss, places) in enumerate(zip(self.loss.features, self.places, strict=True)):
            example = _seen(places, *answers, targets, rows)
            _require_dimensions(loss, places, example)
            key = randomness.key(seed, "feature loss", index) % 2**63
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(key)
                self.parts.append(loss.build(example, labels, key))
        self.parts.to(targets.device)


def _places(loss: FeatureLoss, student: nn.Module, teacher: nn.Module, inputs: Tensor) -> _Places:
    """The layers that the config names, or the loss's own choice in either network."""
    named = tuple(map(Tap, loss.layers)), tuple(map(Tap, loss.teacher_layers or loss.layers))
    places = _Places(
        named[0] or _default_taps(loss, student, inputs),
        named[1] or _default_taps(loss, teacher, inputs),
    )
    if len(places.student) != len(places.teacher):
        names = (", ".join(tap.module for tap in taps) for taps in places)
        raise UserError(
            "loss.features: {} compares layers in pairs, and the student has {}, the teacher {}: "
            "name as many in layers as in teacher_layers".format(loss.name, *names)
        )
    return places


def _default_taps(loss: FeatureLoss, model: nn.Module, inputs: Tensor) -> tuple[Tap, ...]:
    if loss.default_layers == "embedding":
        return (embedding_tap(model, inputs),)
    stages = tuple(stage_taps(model, inputs))
    if not stages:
        raise UserError(
            f"loss.features: {loss.name} looks at maps (N, C, H, W), and no layer of the network "
            "gives one: choose a loss on embeddings, such as rkd"
        )
    middle = len(stages) // 2
    of = {"stages": stages, "middle stage": (stages[middle],), "last stage": stages[-1:]}
    return of[loss.default_layers]


def _require_dimensions(loss: FeatureLoss, places: _Places, example: DistillationBatch) -> None:
    kinds = {2: "vectors (N, D)", 4: "maps (N, C, H, W)"}
    pairs = zip(
        (*places.student, *places.teacher), (*example.student, *example.teacher), strict=True
    )
    for tap, feature in pairs:
        if feature.ndim not in loss.dimensions:
            wanted = " or ".join(kinds[number] for number in loss.dimensions)
            shape = ", ".join(map(str, ("N", *feature.shape[1:])))
            raise UserError(
                f"loss.features: {loss.name} compares {wanted}, "
                f"and the layer {tap.module!r} gives ({shape})"
            )


def _seen(
    places: _Places, student: Answer, teacher: Answer, targets: Tensor, sample_ids: Tensor
) -> DistillationBatch:
    return DistillationBatch(
        student=tuple(student.features[tap] for tap in places.student),
        teacher=tuple(teacher.features[tap].detach() for tap in places.teacher),
        student_logits=student.logits,
        teacher_logits=teacher.logits.detach(),
        targets=targets,
        sample_ids=sample_ids,
    )


@torch.no_grad()
def _without_learning(model: nn.Module, inputs: Tensor, taps: Iterable[Tap]) -> Answer:
    with eval_mode(model):
        return watched(model, inputs, taps)


def _all(taps: Iterable[tuple[Tap, ...]]) -> tuple[Tap, ...]:
    """Every tap once."""
    return tuple(dict.fromkeys(tap for some in taps for tap in some))

"""The student and the one training loop: a probe takes a few epochs of it, a promotion all."""

import math
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, fields
from typing import Annotated, Any

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from spaces import Policy, randomness
from spaces.errors import UserError
from spaces.frozen import Frozen
from trainers.batches import augmented_batches, epoch_order, steps_per_epoch
from trainers.contexts import eval_mode, keyed_draws
from trainers.datasets import ImageSplits
from trainers.distillation import Answer, DistillationLoss, Distiller, kd_loss, watched
from trainers.metric import ContextualMutualInformation, TeacherStddev
from trainers.quantization import (
    QuantizationSpec,
    calibrate,
    ewgs_layers,
    quantize,
    quantizer_parameters,
    update_deltas,
)
from trainers.teacher import accuracy, fraction_right, logits_of


class StudentRecipe(Frozen):
    """How a student is distilled: Adam for its weights, Adam without decay for its quantizers,
    both with a cosine to zero over the epochs of this run."""

    batch_size: Annotated[int, Field(ge=2)] = 64
    repeats: Annotated[
        int, Field(ge=1, description="augmented views of every image in one epoch")
    ] = 24
    learning_rate: Annotated[float, Field(gt=0)] = 4e-3
    quantizer_learning_rate: Annotated[float, Field(gt=0)] = 4e-4
    weight_decay: Annotated[float, Field(ge=0)] = 1e-4
    loss: DistillationLoss = DistillationLoss()
    curvature_every: Annotated[
        int,
        Field(
            ge=0,
            description="epochs between updates of EWGS's delta, the first at once; 0: none",
        ),
    ] = 5
    curvature_draws: Annotated[int, Field(ge=1, le=50)] = 3


def _figure(better: str, meaning: str) -> Any:
    return field(metadata={"better": better, "meaning": meaning})


@dataclass(frozen=True)
class EpochReport:
    """What one epoch of distillation tells. `training` figures are of the augmented batches as
    they were trained on, `validation` figures of plain images; losses in nats."""

    epoch: int = _figure("", "epochs done, from 1")
    score: float = _figure("lower", "D - CMI of the student on training batches")
    teacher_score: float = _figure("lower", "D - CMI of the teacher on training batches")
    cmi: float = _figure("higher", "contextual mutual information of the student")
    centroid_divergence: float = _figure("lower", "D: the student's centroids from the labels")
    teacher_cmi: float = _figure("higher", "contextual mutual information of the teacher")
    teacher_centroid_divergence: float = _figure("lower", "D of the teacher")
    teacher_stddev: float = _figure("lower", "T.stddev of the teacher's mean predictions")
    entropy: float = _figure("higher", "mean entropy of the student's predictions in training")
    training_loss: float = _figure("lower", "the loss that was minimised, mean per image")
    kd_training: float = _figure("lower", "T^2 KL to the teacher on training batches")
    kd_validation: float = _figure("lower", "T^2 KL to the teacher on validation images")
    kd_gap: float = _figure("lower", "kd_validation - kd_training")
    validation_loss: float = _figure("lower", "cross-entropy on validation images")
    validation_accuracy: float = _figure("higher", "fraction right on validation images")
    images_per_second: float = _figure("", "training images per second of training")

    def as_dict(self) -> dict[str, int | float]:
        return asdict(self)


FIGURES = {f.name: f.metadata["meaning"] for f in fields(EpochReport)}
# The figures that can steer a search, and whether it minimises or maximises them.
OBJECTIVES = {
    f.name: {"lower": "min", "higher": "max"}[f.metadata["better"]]
    for f in fields(EpochReport)
    if f.metadata["better"]
}


class DivergedError(Exception):
    """The loss is no longer a number; the message says when."""


class StudentTrainer:
    """Distils `teacher` into a low-bit student under one augmentation policy.

    The student is a quantized copy of `network`, or of the teacher itself where that is None.
    Everything random is keyed by `seed`: trainers that differ in their policy alone see the same
    images in the same order with the same draws. `epochs()` goes on where `load_state_dict` left.
    """

    def __init__(
        self,
        *,
        teacher: nn.Module,
        splits: ImageSplits,
        policy: Policy,
        quantization: QuantizationSpec,
        recipe: StudentRecipe,
        epochs: int,
        seed: int,
        network: nn.Module | None = None,
    ) -> None:
        self.teacher, self.splits, self.recipe = teacher, splits, recipe
        self.total_epochs, self.seed = epochs, seed
        self.epochs_done = 0
        self.augment = policy.augmenter(splits.num_classes, seed)
        start = teacher if network is None else network
        self.student = quantize(start, quantization).requires_grad_(True)
        first = splits.normalise(splits.student.images[: recipe.batch_size])
        calibrate(self.student, first)
        _require_known_images(recipe.loss, policy)
        self.loss = Distiller(
            recipe.loss,
            student=self.student,
            teacher=teacher,
            inputs=first,
            labels=splits.student.labels,
            seed=seed,
        )
        self._steps = steps_per_epoch(len(splits.student.labels), recipe.repeats, recipe.batch_size)
        self.optimizer = self._optimizer()
        self.schedule = torch.optim.lr_scheduler.CosineAnnealingLR(
            self.optimizer, epochs * self._steps
        )
        self._validation_teacher = logits_of(teacher, splits, splits.validation)

    def epochs(self) -> Iterator[EpochReport]:
        """Trains the epochs that are left; yields a report after each. Raises DivergedError."""
        while self.epochs_done < self.total_epochs:
            every = self.recipe.curvature_every
            if every and self.epochs_done % every == 0 and ewgs_layers(self.student):
                self._update_curvature()
            with keyed_draws(self.seed, self.epochs_done, "network"):
                report = self._train_epoch()
            self.epochs_done += 1
            yield report

    def test_accuracy(self) -> float:
        """Fraction right on the test images. Nothing may be decided by it."""
        return accuracy(self.student, self.splits, self.splits.test)

    def state_dict(self) -> dict[str, Any]:
        """Everything that training changes."""
        return {
            "student": self.student.state_dict(),
            "loss": self.loss.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "schedule": self.schedule.state_dict(),
            "epochs_done": self.epochs_done,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes back to where `state_dict` was taken."""
        self.student.load_state_dict(state["student"])
        self.loss.load_state_dict(state["loss"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.schedule.load_state_dict(state["schedule"])
        self.epochs_done = state["epochs_done"]

    def _optimizer(self) -> torch.optim.Adam:
        quantizers = quantizer_parameters(self.student)
        known = set(map(id, quantizers))
        weights = [p for p in self.student.parameters() if id(p) not in known]
        recipe = self.recipe
        like_weights = {"lr": recipe.learning_rate, "weight_decay": recipe.weight_decay}
        groups = [
            {"params": weights, **like_weights},
            {"params": quantizers, "lr": recipe.quantizer_learning_rate},
        ]
        if learned := list(self.loss.parameters()):
            groups.append({"params": learned, **like_weights})
        # Fused: one kernel for all parameters, on CPU as on CUDA.
        return torch.optim.Adam(groups, fused=True)

    def _batches(self, epoch: int) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """Inputs (N, C, H, W), targets (N, K) and whose views they are, rows (N,) of the images."""
        count, size = len(self.splits.student.labels), self.recipe.batch_size
        order = torch.from_numpy(epoch_order(count, self.recipe.repeats, self.seed, epoch) % count)
        batches = augmented_batches(
            self.splits.student,
            self.augment,
            batch_size=size,
            repeats=self.recipe.repeats,
            seed=self.seed,
            epoch=epoch,
            teacher=lambda images: self._teach(self.splits.normalise(images)).logits,
        )
        for (images, targets), rows in zip(batches, order.split(size), strict=True):
            yield self.splits.normalise(images), targets, rows.to(targets.device)

    def _train_epoch(self) -> EpochReport:
        student_metric, teacher_metric = (
            ContextualMutualInformation(),
            ContextualMutualInformation(),
        )
        stddev = TeacherStddev()
        sums = torch.zeros(3, dtype=torch.float64)  # loss, KD loss, images
        started = time.perf_counter()
        self.student.train()
        self.loss.train()
        for inputs, targets, rows in self._batches(self.epochs_done):
            taught = self._teach(inputs)
            answer = watched(self.student, inputs, self.loss.student_taps)
            loss = self.loss(answer, taught, targets, rows)
            logits, teacher = answer.logits, taught.logits
            self.optimizer.zero_grad(set_to_none=True)
            loss.backward()
            self.optimizer.step()
            self.schedule.step()
            student_metric.update(logits, targets)
            teacher_metric.update(teacher, targets)
            stddev.update(teacher)
            kd = kd_loss(logits.detach(), teacher, self.recipe.loss.temperature)
            sums += torch.tensor([float(loss.detach()), float(kd), 1.0]) * len(targets)
        seconds = time.perf_counter() - started
        total_loss, total_kd, images = sums.tolist()
        validation = self._validate(total_kd / images)
        if not all(map(math.isfinite, (total_loss, *validation.values()))):
            raise DivergedError(
                f"the loss is no longer a finite number in epoch {self.epochs_done + 1}"
            )
        student_info, teacher_info = student_metric.compute(), teacher_metric.compute()
        return EpochReport(
            epoch=self.epochs_done + 1,
            score=student_info.score,
            teacher_score=teacher_info.score,
            cmi=student_info.cmi,
            centroid_divergence=student_info.centroid_divergence,
            teacher_cmi=teacher_info.cmi,
            teacher_centroid_divergence=teacher_info.centroid_divergence,
            teacher_stddev=stddev.compute(),
            entropy=student_info.entropy,
            training_loss=total_loss / images,
            kd_training=total_kd / images,
            images_per_second=images / seconds,
            **validation,
        )

    @torch.no_grad()
    def _teach(self, inputs: Float[Tensor, "n c h w"]) -> Answer:
        with eval_mode(self.teacher):
            return watched(self.teacher, inputs, self.loss.teacher_taps)

    def _validate(self, kd_training: float) -> dict[str, float]:
        labels = self.splits.validation.labels
        logits = logits_of(self.student, self.splits, self.splits.validation)
        kd = float(kd_loss(logits, self._validation_teacher, self.recipe.loss.temperature))
        return {
            "kd_validation": kd,
            "kd_gap": kd - kd_training,
            "validation_loss": float(F.cross_entropy(logits, labels)),
            "validation_accuracy": fraction_right(logits, labels),
        }

    def _update_curvature(self) -> None:
        """EWGS's delta from three batches of the coming epoch."""
        batches = [
            batch for batch, _ in zip(self._batches(self.epochs_done), range(3), strict=False)
        ]

        def loss_of(inputs: Tensor, targets: Tensor, rows: Tensor) -> Tensor:
            answer = watched(self.student, inputs, self.loss.student_taps)
            return self.loss(answer, self._teach(inputs), targets, rows)

        rng = torch.Generator().manual_seed(
            randomness.key(self.seed, self.epochs_done, "curvature") % 2**63
        )
        losses = [lambda batch=batch: loss_of(*batch) for batch in batches]
        with eval_mode(self.student), eval_mode(self.loss):
            update_deltas(self.student, losses, rng, self.recipe.curvature_draws)


def _require_known_images(loss: DistillationLoss, policy: Policy) -> None:
    """Refuses a mixing that does not tell whose views a batch shows to a loss that needs it."""
    picked = policy.mixing is not None and policy.mixing.name == "cutmix_pick"
    for name in (part.name for part in loss.features if picked and part.needs_sample_ids):
        raise UserError(
            f"loss.features: {name} remembers images, and the policy's cutmix_pick does not tell "
            "which ones a batch shows: mix by cutmix or leave the loss out"
        )

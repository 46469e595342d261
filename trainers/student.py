"""The student and the one training loop: a probe takes a few epochs of it, a promotion all."""

import math
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, fields
from itertools import islice
from typing import Annotated, Any

import torch
from jaxtyping import Float
from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.nn import functional as F

from spaces import Policy, randomness
from spaces.errors import UserError
from trainers import parallel
from trainers.batches import Batch, augmented_batches, steps_per_epoch
from trainers.contexts import eval_mode, keyed_draws
from trainers.datasets import ImageSplits
from trainers.distillation import Answer, DistillationLoss, Distiller, kd_loss, watched
from trainers.distillation.layers import Tap
from trainers.optimisation import TrainingRecipe
from trainers.quantization import (
    QuantizationSpec,
    calibrate,
    ewgs_layers,
    quantize,
    quantizer_parameters,
    update_deltas,
)
from trainers.tally import Tally
from trainers.teacher import accuracy, fraction_right, logits_of
from trainers.training import Training

CURVATURE_BATCHES = 3  # of a coming epoch, from which EWGS's delta is estimated
# An epoch's loss has exploded when it is this many times what knowing nothing costs: log K nats, or
# the loss of the untrained student. On digits Adam at a rate of 1, with which it still learns,
# begins with 3 times that, and at 10 with 300 times.
EXPLODED = 100.0


class StudentRecipe(TrainingRecipe):
    """How a student is distilled. Its quantizers have a learning rate of their own and no decay."""

    repeats: Annotated[
        int, Field(ge=1, description="augmented views of every image in one epoch")
    ] = 24
    quantizer_learning_rate: Annotated[float, Field(gt=0)] = 4e-4
    loss: DistillationLoss = DistillationLoss()
    curvature_every: Annotated[
        int,
        Field(
            ge=0,
            description="epochs between updates of EWGS's delta, the first at once; 0: none",
        ),
    ] = 5
    curvature_draws: Annotated[int, Field(ge=1, le=50)] = 3

    @model_validator(mode="after")
    def _compiled_networks_show_no_features(self) -> "StudentRecipe":
        if self.compile and self.loss.features:
            raise ValueError(
                "compile: losses on features look into the network, which then runs as one piece: "
                "set compile to false or loss.features to []"
            )
        return self


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
    """The loss is no number any more, or one that means nothing; the message says when."""


class StudentTrainer:
    """Distils `teacher` into a low-bit student under one augmentation policy.

    The student is a quantized copy of `network`, or of the teacher itself where that is None.
    Everything random is keyed by `seed`: trainers that differ in their policy alone see the same
    images in the same order with the same draws. `epochs()` goes on where `load_state_dict` left.
    Where torch.distributed is initialised, its ranks train one student (trainers/parallel.py), and
    all of them must call the same methods.
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
        _require_known_images(recipe.loss, policy)
        self.teacher, self.splits, self.recipe = teacher, splits, recipe
        self.total_epochs, self.seed = epochs, seed
        self.epochs_done = 0
        self.augment = policy.augmenter(splits.num_classes, seed)
        student = quantize(teacher if network is None else network, quantization)
        first = splits.normalise(splits.student.images[: recipe.batch_size])
        calibrate(student, first)
        self.student = parallel.start_alike(student.requires_grad_(True))
        self.loss = Distiller(
            recipe.loss,
            student=self.student,
            teacher=teacher,
            inputs=first,
            labels=splits.student.labels,
            seed=seed,
        )
        steps = steps_per_epoch(len(splits.student.labels), recipe.repeats, recipe.batch_size)
        self.training = Training(self.student, self._groups(), recipe, epochs * steps)
        self._validation_teacher = logits_of(teacher, splits, splits.validation)
        knowing_nothing = max(self._untrained_loss(first), math.log(splits.num_classes))
        self._no_sense = EXPLODED * knowing_nothing

    @property
    def outcome(self) -> nn.Module:
        """The network that is judged and kept: the student, or the moving average of its states
        where the recipe asks for one."""
        return self.training.outcome

    def epochs(self) -> Iterator[EpochReport]:
        """Trains the epochs that are left; yields a report after each. Raises DivergedError."""
        # Ranks see different images and draw differently for them.
        own_key = (parallel.rank(),) if parallel.rank() else ()
        while self.epochs_done < self.total_epochs:
            every = self.recipe.curvature_every
            if every and self.epochs_done % every == 0 and ewgs_layers(self.student):
                self._update_curvature()
            with keyed_draws(self.seed, self.epochs_done, "network", *own_key):
                report = self._train_epoch()
            self.epochs_done += 1
            yield report

    def test_accuracy(self) -> float:
        """Fraction right on the test images. Nothing may be decided by it."""
        return accuracy(self.outcome, self.splits, self.splits.test)

    def state_dict(self) -> dict[str, Any]:
        """Everything that training changes, the same in all ranks; torch.load reads it safely."""
        return {
            "student": self.student.state_dict(),
            "loss": self.loss.state_dict(),
            **self.training.state_dict(),
            "epochs_done": self.epochs_done,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes back to where `state_dict` was taken."""
        self.student.load_state_dict(state["student"])
        self.loss.load_state_dict(state["loss"])
        self.training.load_state_dict(state)
        self.epochs_done = state["epochs_done"]

    def _groups(self) -> list[dict[str, Any]]:
        quantizers = quantizer_parameters(self.student)
        known = set(map(id, quantizers))
        weights = [p for p in self.student.parameters() if id(p) not in known]
        recipe = self.recipe
        like_weights = {"lr": recipe.learning_rate, "weight_decay": recipe.weight_decay}
        groups = [
            {"params": weights, **like_weights},
            {"params": quantizers, "lr": recipe.quantizer_learning_rate, "weight_decay": 0.0},
        ]
        if learned := list(self.loss.parameters()):
            groups.append({"params": learned, **like_weights})
        return groups

    def _batches(self, epoch: int) -> Iterator[Batch]:
        """Batches whose images are normalised."""
        for images, targets, rows in augmented_batches(
            self.splits.student,
            self.augment,
            batch_size=self.recipe.batch_size,
            repeats=self.recipe.repeats,
            seed=self.seed,
            epoch=epoch,
            teacher=lambda images: self._teach(self.splits.normalise(images)).logits,
        ):
            yield Batch(self.training.placed(self.splits.normalise(images)), targets, rows)

    def _train_epoch(self) -> EpochReport:
        tally = Tally(self.recipe.loss.temperature)
        started = time.perf_counter()
        self.student.train()
        self.loss.train()
        for batch in self._batches(self.epochs_done):
            self._train_batch(batch, tally)
        self.training.agree()
        training = tally.figures()
        seconds = time.perf_counter() - started
        validation = self._validate(training["kd_training"])
        self._require_sense(training["training_loss"], validation)
        return EpochReport(
            epoch=self.epochs_done + 1,
            **training,
            **tally.information(),
            **validation,
            images_per_second=tally.images / seconds,
        )

    def _train_batch(self, batch: Batch, tally: Tally) -> None:
        count = len(batch.targets)
        seen: list[tuple[parallel.Part, Tensor]] = []
        loss_here = torch.zeros((), device=self.training.device)

        def loss_of(part: parallel.Part) -> Tensor:
            inputs, targets, rows = (tensor[part.rows] for tensor in batch)
            answer = self._answer(self.training.run, inputs, self.loss.student_taps)
            taught = self._teach(inputs)
            loss = self.loss(answer, taught, targets, rows)
            loss_here.add_(loss.detach() * part.share)
            seen.append((part, torch.cat([answer.logits.detach(), taught.logits], dim=1)))
            return loss

        self.training.step(count, loss_of)
        logits, taught = parallel.gathered(seen, count).chunk(2, dim=1)
        tally.add(logits, taught, batch.targets, parallel.summed(loss_here))

    def _answer(self, model: nn.Module, inputs: Tensor, taps: tuple[Tap, ...]) -> Answer:
        """In the recipe's precision; losses get it in float32, where small differences count."""
        with self.training.autocast():
            answer = watched(model, inputs, taps)
        return Answer(
            answer.logits.float(), {tap: found.float() for tap, found in answer.features.items()}
        )

    @torch.no_grad()
    def _teach(self, inputs: Float[Tensor, "n c h w"]) -> Answer:
        with eval_mode(self.teacher):
            return self._answer(self.teacher, inputs, self.loss.teacher_taps)

    def _validate(self, kd_training: float) -> dict[str, float]:
        labels = self.splits.validation.labels
        logits = logits_of(self.outcome, self.splits, self.splits.validation)
        kd = float(kd_loss(logits, self._validation_teacher, self.recipe.loss.temperature))
        return {
            "kd_validation": kd,
            "kd_gap": kd - kd_training,
            "validation_loss": float(F.cross_entropy(logits, labels)),
            "validation_accuracy": fraction_right(logits, labels),
        }

    @torch.no_grad()
    def _untrained_loss(self, inputs: Tensor) -> float:
        """On the first images as they are, at their labels."""
        labels = self.splits.student.labels[: len(inputs)]
        targets = F.one_hot(labels, self.splits.num_classes).float()
        taught = self._teach(inputs)
        with eval_mode(self.student), eval_mode(self.loss):
            answer = self._answer(self.student, inputs, self.loss.student_taps)
            rows = torch.arange(len(labels), device=labels.device)
            return float(self.loss(answer, taught, targets, rows))

    def _require_sense(self, training_loss: float, validation: dict[str, float]) -> None:
        epoch = self.epochs_done + 1
        if not all(map(math.isfinite, (training_loss, *validation.values()))):
            raise DivergedError(f"the loss is no longer a finite number in epoch {epoch}")
        if training_loss > self._no_sense:
            raise DivergedError(
                f"the loss exploded in epoch {epoch}: {training_loss:.3g}, more than "
                f"{EXPLODED:g} times that of knowing nothing"
            )

    def _update_curvature(self) -> None:
        """EWGS's delta from the first batches of the coming epoch; every rank takes all of them."""

        def loss_of(inputs: Tensor, targets: Tensor, rows: Tensor) -> Tensor:
            answer = watched(self.student, inputs, self.loss.student_taps)
            return self.loss(answer, self._teach(inputs), targets, rows)

        rng = torch.Generator().manual_seed(
            randomness.key(self.seed, self.epochs_done, "curvature") % 2**63
        )
        losses = [
            lambda part=part: loss_of(*part)
            for batch in islice(self._batches(self.epochs_done), CURVATURE_BATCHES)
            for part in self._parts_of(batch)
        ]
        with eval_mode(self.student), eval_mode(self.loss):
            update_deltas(self.student, losses, rng, self.recipe.curvature_draws)
        self.training.agree()

    def _parts_of(self, batch: Batch) -> Iterator[tuple[Tensor, ...]]:
        for part in parallel.parts(len(batch.rows), self.recipe.accumulate):
            yield tuple(tensor[part.rows] for tensor in batch)


def _require_known_images(loss: DistillationLoss, policy: Policy) -> None:
    """Refuses to a loss that remembers images what does not tell it whose views it is shown."""
    picked = policy.mixing is not None and policy.mixing.name == "cutmix_pick"
    for name in (part.name for part in loss.features if part.needs_sample_ids):
        if picked:
            raise UserError(
                f"loss.features: {name} remembers images, and the policy's cutmix_pick does not "
                "tell which ones a batch shows: mix by cutmix or leave the loss out"
            )
        if parallel.world_size() > 1:
            raise UserError(
                f"loss.features: {name} remembers images, and of several workers each would "
                "remember others: train with one or leave the loss out"
            )

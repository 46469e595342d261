"""The teacher: a full-precision network, from a file or trained once and kept by what made it.

It learns with mild augmentation and CutMix: without them its predictions on plain images carry no
contextual information and the metric ranks badly.
"""

import hashlib
import json
from collections.abc import Mapping
from importlib.metadata import version
from typing import Annotated

import numpy as np
import torch
from jaxtyping import Float, Int64
from pydantic import Field, field_validator
from torch import Tensor, nn
from torch.nn import functional as F

from spaces.atomic_write import atomic_write
from spaces.errors import UserError
from spaces.policy import Chain, Mixing, Operation, Policy, Range
from trainers import parallel
from trainers.batches import augmented_batches, steps_per_epoch
from trainers.cache_folder import made_folder
from trainers.contexts import eval_mode, keyed_draws, one_thread
from trainers.datasets import ImageSplits, Labelled
from trainers.models import (
    OWN,
    Network,
    NetworkName,
    WeightsFile,
    Width,
    made_of,
    network_for,
    network_from_arrays,
    weights_hash,
)
from trainers.optimisation import Smoothing, TrainingRecipe
from trainers.training import Training

EVALUATION_BATCH = 512

MILD_AFFINE_CUTMIX = Policy(
    name="mild_affine+cutmix",
    chains=(
        Chain(
            operations=(
                Operation(name="rotate", magnitude=Range(low=0, high=12)),
                Operation(name="shear_x", magnitude=Range(low=0, high=0.2)),
                Operation(name="translate_x", magnitude=Range(low=0, high=0.13)),
                Operation(name="translate_y", magnitude=Range(low=0, high=0.13)),
            )
        ),
    ),
    mixing=Mixing(name="cutmix", probability=0.5),
    interpolation="bilinear",
)


class TeacherRecipe(TrainingRecipe):
    """How the teacher is trained, by cross-entropy on soft targets.

    With `weights` it is read from that file and not trained. `width` is of CIFAR's networks,
    others have their own.
    """

    network: NetworkName = "resnet8"
    width: Width = 8
    weights: WeightsFile = None
    epochs: Annotated[int, Field(ge=1)] = 30
    label_smoothing: Smoothing = 0.0
    policy: Policy = MILD_AFFINE_CUTMIX
    seed: Annotated[int, Field(ge=0, le=2**31 - 1)] = 0

    @field_validator("policy")
    @classmethod
    def _without_a_teacher(cls, policy: Policy) -> Policy:
        if policy.mixing and policy.mixing.name == "cutmix_pick":
            raise ValueError("cutmix_pick asks a teacher, and the teacher has none")
        return policy

    @property
    def architecture(self) -> Network:
        """The network, fresh: what is trained, or what the weights are for."""
        return Network(name=self.network, width=self.width if self.network in OWN else None)


@one_thread()
def train_teacher(splits: ImageSplits, recipe: TeacherRecipe) -> nn.Module:
    """Trains on all training images; returns the network in eval mode.

    Raises UserError where the images are too small for the network, and where training diverges.
    """
    model = network_for(recipe.architecture, splits, seed=recipe.seed)
    model = parallel.start_alike(model)
    augment = recipe.policy.augmenter(splits.num_classes, recipe.seed)
    steps = recipe.epochs * steps_per_epoch(len(splits.train.labels), 1, recipe.batch_size)
    group = {
        "params": list(model.parameters()),
        "lr": recipe.learning_rate,
        "weight_decay": recipe.weight_decay,
    }
    training = Training(model, [group], recipe, steps)
    model.train()
    for epoch in range(recipe.epochs):
        batches = augmented_batches(
            splits.train,
            augment,
            batch_size=recipe.batch_size,
            repeats=1,
            seed=recipe.seed,
            epoch=epoch,
        )
        with keyed_draws(recipe.seed, epoch, "network"):
            for images, targets, _ in batches:
                _learn(training, splits.normalise(images), targets, recipe.label_smoothing)
        training.agree()
    model = training.outcome
    if not all(bool(torch.isfinite(p).all()) for p in model.parameters()):
        raise UserError(
            f"teacher.learning_rate: training at {recipe.learning_rate:g} diverged, lower it"
        )
    return frozen(model)


def _learn(training: Training, inputs: Tensor, targets: Tensor, smoothing: float) -> None:
    def loss_of(part: parallel.Part) -> Tensor:
        with training.autocast():
            logits = training.run(training.placed(inputs[part.rows]))
        return F.cross_entropy(logits.float(), targets[part.rows], label_smoothing=smoothing)

    training.step(len(targets), loss_of)


def frozen(model: nn.Module) -> nn.Module:
    """`model` as a teacher: eval mode, so that its statistics stay, and without gradients."""
    return model.eval().requires_grad_(False)


def to_arrays(model: nn.Module) -> dict[str, np.ndarray]:
    """The state of `model` as numpy arrays, which Ray's object store shares without copies."""
    return {name: tensor.cpu().numpy() for name, tensor in model.state_dict().items()}


def teacher_from_arrays(
    arrays: Mapping[str, np.ndarray], splits: ImageSplits, recipe: TeacherRecipe
) -> nn.Module:
    """The inverse of `to_arrays`, without a copy: the weights may be read-only views."""
    return frozen(network_from_arrays(arrays, recipe.architecture, splits.num_classes))


def teacher_hash(splits: ImageSplits, recipe: TeacherRecipe) -> str:
    """Sixteen hex digits of everything that makes the teacher; of a file that is its content.

    Raises UserError where the file cannot be read.
    """
    settings = recipe.model_dump(mode="json", exclude={"weights"})
    if recipe.weights is not None:
        architecture = recipe.architecture.model_dump(mode="json", exclude={"weights"})
        settings = {**architecture, "weights": weights_hash(recipe.weights)}
    made_by = {
        "recipe": settings,
        "network": made_of(recipe.network),
        "data": splits.content_hash,
        "normalised_by": [splits.mean, splits.std],
        "torch": torch.__version__,
        "torchvision": version("torchvision"),
        "augury": version("augury"),
    }
    text = json.dumps(made_by, sort_keys=True)
    return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()


def cached_teacher(splits: ImageSplits, recipe: TeacherRecipe) -> nn.Module:
    """The teacher of `recipe`: from its file, else from the cache, else trained and kept there.

    Raises UserError where the file does not fit, and where nothing can be trained or kept.
    """
    if recipe.weights is not None:
        network = recipe.architecture.model_copy(update={"weights": recipe.weights})
        return frozen(network_for(network, splits, seed=recipe.seed))
    path = made_folder("teachers", "teachers") / f"{teacher_hash(splits, recipe)}.pt"
    if path.exists():
        model = network_for(recipe.architecture, splits, seed=recipe.seed)
        try:
            model.load_state_dict(torch.load(path, weights_only=True))
        except Exception:  # whatever a broken file makes torch raise
            raise UserError(f"{path} is not the teacher that it should be: delete it") from None
        return frozen(model)
    model = train_teacher(splits, recipe)
    with atomic_write(path) as temporary:
        torch.save(model.state_dict(), temporary)
    return model


def accuracy(model: nn.Module, splits: ImageSplits, part: Labelled) -> float:
    """Fraction of the images of `part` that `model` names rightly."""
    return fraction_right(logits_of(model, splits, part), part.labels)


def fraction_right(logits: Float[Tensor, "n k"], labels: Int64[Tensor, " n"]) -> float:
    """How often the largest of the logits is the label's."""
    return float((logits.argmax(dim=1) == labels).double().mean())


@torch.no_grad()
def logits_of(model: nn.Module, splits: ImageSplits, part: Labelled) -> Float[Tensor, "n k"]:
    """What `model` says of the plain images of `part`, in eval mode."""
    with eval_mode(model):
        chunks = part.images.split(EVALUATION_BATCH)
        return torch.cat([model(splits.normalise(chunk)) for chunk in chunks])

"""The teacher: a full-precision network, trained once and kept by what made it.

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
from pydantic import Field, field_validator
from torch import Tensor, nn
from torch.nn import functional as F

from spaces.atomic_write import atomic_write
from spaces.errors import UserError
from spaces.frozen import Frozen
from spaces.policy import Chain, Mixing, Operation, Policy, Range
from trainers.batches import augmented_batches, steps_per_epoch
from trainers.cache_folder import made_folder
from trainers.contexts import eval_mode, one_thread
from trainers.datasets import ImageSplits, Labelled, as_tensor
from trainers.models import NetworkName, build_network

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


class TeacherRecipe(Frozen):
    """How the teacher is trained: Adam, cosine to zero, cross-entropy on soft targets."""

    network: NetworkName = "resnet8"
    width: Annotated[int, Field(ge=4, le=64, description="channels of the first stage")] = 8
    epochs: Annotated[int, Field(ge=1)] = 30
    batch_size: Annotated[int, Field(ge=2)] = 64
    learning_rate: Annotated[float, Field(gt=0)] = 4e-3
    weight_decay: Annotated[float, Field(ge=0)] = 1e-4
    policy: Policy = MILD_AFFINE_CUTMIX
    seed: Annotated[int, Field(ge=0, le=2**31 - 1)] = 0

    @field_validator("policy")
    @classmethod
    def _without_a_teacher(cls, policy: Policy) -> Policy:
        if policy.mixing and policy.mixing.name == "cutmix_pick":
            raise ValueError("cutmix_pick asks a teacher, and the teacher has none")
        return policy


@one_thread()
def train_teacher(splits: ImageSplits, recipe: TeacherRecipe) -> nn.Module:
    """Trains on all training images; returns the network in eval mode."""
    model = _fresh(splits, recipe)
    augment = recipe.policy.augmenter(splits.num_classes, recipe.seed)
    optimizer = torch.optim.Adam(
        model.parameters(), lr=recipe.learning_rate, weight_decay=recipe.weight_decay
    )
    steps = recipe.epochs * steps_per_epoch(len(splits.train.labels), 1, recipe.batch_size)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    model.train()
    for epoch in range(recipe.epochs):
        for images, targets in augmented_batches(
            splits.train,
            augment,
            batch_size=recipe.batch_size,
            repeats=1,
            seed=recipe.seed,
            epoch=epoch,
        ):
            optimizer.zero_grad(set_to_none=True)
            F.cross_entropy(model(splits.normalise(images)), targets).backward()
            optimizer.step()
            schedule.step()
    if not all(bool(torch.isfinite(p).all()) for p in model.parameters()):
        raise UserError(
            f"teacher.learning_rate: training at {recipe.learning_rate:g} diverged, lower it"
        )
    return frozen(model)


def _fresh(splits: ImageSplits, recipe: TeacherRecipe) -> nn.Module:
    return build_network(recipe.network, splits.num_classes, width=recipe.width, seed=recipe.seed)


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
    model = _fresh(splits, recipe)
    model.load_state_dict({k: as_tensor(v) for k, v in arrays.items()}, assign=True)
    return frozen(model)


def teacher_hash(splits: ImageSplits, recipe: TeacherRecipe) -> str:
    """Sixteen hex digits of everything that makes the teacher."""
    made_by = {
        "recipe": recipe.model_dump(mode="json"),
        "data": splits.content_hash,
        "torch": torch.__version__,
        "torchvision": version("torchvision"),
        "augury": version("augury"),
    }
    text = json.dumps(made_by, sort_keys=True)
    return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()


def cached_teacher(splits: ImageSplits, recipe: TeacherRecipe) -> nn.Module:
    """The teacher of `recipe`, from the cache where it is, else trained and kept there."""
    path = made_folder("teachers", "teachers") / f"{teacher_hash(splits, recipe)}.pt"
    if path.exists():
        model = _fresh(splits, recipe)
        try:
            model.load_state_dict(torch.load(path, weights_only=True))
        except Exception:  # whatever a broken file makes torch raise
            raise UserError(f"{path} is not the teacher that it should be: delete it") from None
        return frozen(model)
    model = train_teacher(splits, recipe)
    with atomic_write(path) as temporary:
        torch.save(model.state_dict(), temporary)
    return model


@torch.no_grad()
def accuracy(model: nn.Module, splits: ImageSplits, part: Labelled) -> float:
    """Fraction of the images of `part` that `model` names rightly."""
    with eval_mode(model):
        logits: Tensor = model(splits.normalise(part.images))
    return float((logits.argmax(dim=1) == part.labels).double().mean())

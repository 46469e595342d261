"""What every loss on features has in common, and the table of them.

To add one, derive from FeatureLoss, give it a `name` and a `weight`, write its `value`, and
register it by `@feature_loss`; one outside of Augury needs neither, a config finds it at
`package.module:Class`. Where the loss learns something itself, override `build` in place of
`value`.
"""

from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal, TypeVar

from jaxtyping import Float, Int64
from pydantic import BeforeValidator, Field, SerializeAsAny, ValidationError
from torch import Tensor, nn

from spaces.errors import UserError, from_validation, unknown_name
from spaces.frozen import Frozen
from trainers.users_own import users_class

Weight = Annotated[float, Field(ge=0)]
Layers = Annotated[tuple[str, ...], Field(strict=False)]
# What a loss looks at where the config names no layers.
DefaultLayers = Literal["stages", "middle stage", "last stage", "embedding"]


@dataclass(frozen=True)
class DistillationBatch:
    """What a feature loss may look at. `student` and `teacher` hold a feature (N, ...) per layer,
    in the same order; the teacher's carry no gradients. `targets` are soft after a mixing.
    `sample_ids` are rows of the student's images; a mixture has that of the image it started from.
    """

    student: tuple[Tensor, ...]
    teacher: tuple[Tensor, ...]
    student_logits: Float[Tensor, "n k"]
    teacher_logits: Float[Tensor, "n k"]
    targets: Float[Tensor, "n k"]
    sample_ids: Int64[Tensor, " n"]


class FeatureLoss(Frozen):
    """One loss on features; its value is multiplied by `weight`."""

    default_layers: ClassVar[DefaultLayers] = "stages"
    # 4: maps (N, C, H, W); 2: vectors (N, D).
    dimensions: ClassVar[tuple[int, ...]] = (4,)
    needs_sample_ids: ClassVar[bool] = False

    name: str
    weight: Weight = 1.0
    layers: Annotated[
        Layers, Field(description="the student's modules to compare; none: the loss's own choice")
    ] = ()
    teacher_layers: Annotated[
        Layers, Field(description="the teacher's, in the same order; none: those of `layers`")
    ] = ()

    def value(self, batch: DistillationBatch) -> Float[Tensor, ""]:
        """The loss of a batch, without its weight."""
        raise NotImplementedError(f"{type(self).__name__} has neither `value` nor `build`")

    def build(
        self, example: DistillationBatch, labels: Int64[Tensor, " m"], seed: int
    ) -> nn.Module:
        """The loss as a module that maps a DistillationBatch to a scalar.

        Its parameters are trained with the student's and its buffers kept in checkpoints. In eval
        mode it may change neither. `example` is a batch with the shapes to come, `labels` are of
        all images of the student.
        """
        return _WithoutParameters(self)


class _WithoutParameters(nn.Module):
    def __init__(self, loss: FeatureLoss) -> None:
        super().__init__()
        self.loss = loss

    def forward(self, batch: DistillationBatch) -> Tensor:
        return self.loss.value(batch)


FEATURE_LOSSES: dict[str, type[FeatureLoss]] = {}
_Registered = TypeVar("_Registered", bound=FeatureLoss)


def feature_loss(cls: type[_Registered]) -> type[_Registered]:
    """Registers a loss, so that configs find it by the default of its `name`."""
    FEATURE_LOSSES[cls.model_fields["name"].default] = cls
    return cls


def _called(name: str) -> type[FeatureLoss]:
    """The loss `name`, or the class at `package.module:Class`; raises ValueError for none."""
    if ":" not in name:
        if name not in FEATURE_LOSSES:
            raise ValueError(str(unknown_name("feature loss", name, FEATURE_LOSSES)))
        return FEATURE_LOSSES[name]
    try:
        return users_class("feature loss", name, FeatureLoss)
    except UserError as error:
        raise ValueError(str(error)) from None


def _by_name(value: Any) -> Any:
    """The mapping `value` as the loss that it names."""
    if not isinstance(value, dict):
        return value
    name = value.get("name")
    if not isinstance(name, str):
        raise ValueError(f"name: give one of {', '.join(FEATURE_LOSSES)}")
    kind = _called(name)
    try:
        return kind.model_validate(value)
    except ValidationError as error:
        raise ValueError(str(from_validation(error, kind, name))) from None


AnyFeatureLoss = Annotated[SerializeAsAny[FeatureLoss], BeforeValidator(_by_name)]

"""How weights are moved, as data: optimisers, schedules, and what every recipe says of them."""

import math
from collections.abc import Iterable
from typing import Annotated, Any, ClassVar, Literal

import torch
from pydantic import BeforeValidator, Field, model_validator

from spaces.frozen import Frozen

ParameterGroups = Iterable[dict[str, Any]]
Fraction = Annotated[float, Field(ge=0, lt=1)]
Smoothing = Annotated[
    float, Field(ge=0, lt=1, description="how much of every target is spread over all classes")
]


class Adam(Frozen):
    """Kingma and Ba, ICLR 2015 (arXiv 1412.6980); weight decay is a part of the gradient."""

    name: Literal["adam"] = "adam"

    def over(self, groups: ParameterGroups) -> torch.optim.Optimizer:
        # Fused, here and below: one kernel for all parameters, on CPU as on CUDA.
        return torch.optim.Adam(groups, fused=True)


class AdamW(Frozen):
    """Loshchilov and Hutter, ICLR 2019 (arXiv 1711.05101): Adam, with the decay beside it."""

    name: Literal["adamw"] = "adamw"

    def over(self, groups: ParameterGroups) -> torch.optim.Optimizer:
        return torch.optim.AdamW(groups, fused=True)


class SGD(Frozen):
    """Stochastic gradient descent, with Nesterov's momentum unless told otherwise."""

    name: Literal["sgd"] = "sgd"
    momentum: Fraction = 0.9
    nesterov: bool = True

    @model_validator(mode="after")
    def _nesterov_has_momentum(self) -> "SGD":
        if self.nesterov and self.momentum == 0:
            raise ValueError("nesterov needs a momentum above 0: set nesterov to false")
        return self

    def over(self, groups: ParameterGroups) -> torch.optim.Optimizer:
        return torch.optim.SGD(groups, momentum=self.momentum, nesterov=self.nesterov, fused=True)


class Schedule(Frozen):
    """What the learning rates are multiplied with, step by step.

    A warm-up is a fraction of the run and not a number of steps, so that a probe warms up like the
    long run whose beginning it is not.
    """

    name: str
    warmup: Annotated[
        Fraction, Field(description="fraction of the run in which rates rise from zero, linearly")
    ] = 0.0

    def factor(self, step: int, steps: int) -> float:
        """For step `step`, from 0, of `steps`."""
        rising = round(self.warmup * steps)
        if step < rising:
            return (step + 1) / rising
        return self.shape((step - rising) / max(steps - rising, 1))

    def shape(self, progress: float) -> float:
        """After the warm-up, of which `progress` from 0 to 1 is done."""
        raise NotImplementedError


class Cosine(Schedule):
    """Half a cosine from 1 to 0 (Loshchilov and Hutter, ICLR 2017, arXiv 1608.03983)."""

    name: Literal["cosine"] = "cosine"

    def shape(self, progress: float) -> float:
        return (1 + math.cos(math.pi * progress)) / 2


class Step(Schedule):
    """Multiplied by `drop` at each of `at`, as in He et al., CVPR 2016 (arXiv 1512.03385)."""

    name: Literal["step"] = "step"
    at: Annotated[
        tuple[Fraction, ...],
        Field(strict=False, min_length=1, description="fractions of what follows the warm-up"),
    ] = (0.5, 0.75)
    drop: Annotated[float, Field(gt=0, lt=1)] = 0.1

    def shape(self, progress: float) -> float:
        return self.drop ** sum(progress >= place for place in self.at)


class Constant(Schedule):
    """The same rates from the warm-up to the end."""

    name: Literal["constant"] = "constant"

    def shape(self, progress: float) -> float:
        return 1.0


def _by_name(default: str) -> BeforeValidator:
    """A plain text is short for `{name: text}`, and `default` is meant where no name is given."""

    def named(value: Any) -> Any:
        if isinstance(value, str):
            return {"name": value}
        return {"name": default} | value if isinstance(value, dict) else value

    return BeforeValidator(named)


AnyOptimizer = Annotated[Adam | AdamW | SGD, Field(discriminator="name"), _by_name("adam")]
AnySchedule = Annotated[Cosine | Step | Constant, Field(discriminator="name"), _by_name("cosine")]


class TrainingRecipe(Frozen):
    """What teachers and students are trained by alike."""

    PRECISIONS: ClassVar = {
        "float32": torch.float32,
        "bfloat16": torch.bfloat16,
        "float16": torch.float16,
    }

    batch_size: Annotated[int, Field(ge=2, description="images of one step")] = 64
    accumulate: Annotated[
        int,
        Field(
            ge=1,
            description="parts in which a batch passes the network, to save memory; batch norm and "
            "losses that compare images see a part",
        ),
    ] = 1
    learning_rate: Annotated[float, Field(gt=0)] = 4e-3
    weight_decay: Annotated[float, Field(ge=0)] = 1e-4
    optimizer: AnyOptimizer = Adam()
    schedule: AnySchedule = Cosine()
    ema_decay: Annotated[
        float | None,
        Field(gt=0, lt=1, description="per step; the average of all weights is what comes out"),
    ] = None
    precision: Annotated[
        Literal["float32", "bfloat16", "float16"],
        Field(description="of convolutions and matrix products in training, by autocast"),
    ] = "float32"
    channels_last: Annotated[
        bool, Field(description="weights and images lie so in memory, which GPUs like")
    ] = False
    compile: Annotated[bool, Field(description="torch.compile, for long runs")] = False

    @property
    def dtype(self) -> torch.dtype:
        """What `precision` names."""
        return self.PRECISIONS[self.precision]

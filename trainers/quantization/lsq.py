"""LSQ: learned step size (Esser et al., ICLR 2020, arXiv 1902.08153).

    q   = round(clamp(x / s, -Qn, Qp))         x_q = s q
    dx_q/ds = q - x/s inside, -Qn or Qp where clamped
    weights:      Qn = 2^(b-1), Qp = 2^(b-1) - 1
    activations:  Qn = 0,       Qp = 2^b - 1    (as weights where inputs are negative)

s is learned, begins at 2 mean|x| / sqrt(Qp), and its gradient is scaled by 1 / sqrt(N Qp), with N
the weights, or the inputs of one image, that share it. Weights of one bit would have Qp = 0, for
which neither is defined.
"""

import math

import torch
from jaxtyping import Float
from torch import Tensor, nn

from spaces.errors import UserError
from trainers.quantization.layer import (
    Grid,
    QuantizedLayer,
    Quantizer,
    even_grid,
    quantization_method,
    straight_through,
)


class LSQ(Quantizer):
    """The formulas above with a learned step `step`, () or (channels,)."""

    lowest: Tensor
    highest: Tensor

    def __init__(self, bits: int, channels: int | None = None) -> None:
        super().__init__(bits, channels)
        self.step = nn.Parameter(self.scalars(1.0))
        # Buffers: whether inputs are signed is found out once, and part of the state.
        self.register_buffer("lowest", torch.tensor(0.0))
        self.register_buffer("highest", torch.tensor(2.0**bits - 1))

    def initialise(self, x: Float[Tensor, "*shape"]) -> None:
        if self._is_signed(x):
            if self.bits == 1:
                raise UserError(
                    "student.quantization.activation_bits: a layer gets negative inputs, "
                    "which LSQ cannot hold in 1 bit"
                )
            self.lowest.fill_(-(2.0 ** (self.bits - 1)))
            self.highest.fill_(2.0 ** (self.bits - 1) - 1)
        size = self.reduced(x.abs(), lambda values: values.mean(dim=-1))
        self.step.copy_((2 * size / self.highest.sqrt()).clamp_min(1e-8))

    def forward(self, x: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        scale = 1 / (math.sqrt(self._sharing(x)) * self.highest.sqrt())
        step = self.step * scale
        step = self.spread(step + (self.step - step).detach(), x)
        position = (x / step).clamp(self.lowest, self.highest)
        return straight_through(position.round(), position) * step

    def grid(self, x: Float[Tensor, "*shape"]) -> Grid:
        levels = int(self.highest - self.lowest) + 1
        return even_grid(levels, self.lowest * self.step, self.step)

    def _is_signed(self, x: Tensor) -> bool:
        raise NotImplementedError

    def _sharing(self, x: Tensor) -> int:
        raise NotImplementedError


class LSQWeights(LSQ):
    def _is_signed(self, x: Tensor) -> bool:
        return True

    def _sharing(self, x: Tensor) -> int:
        return x.numel() if self.channels is None else x[0].numel()


class LSQActivations(LSQ):
    def _is_signed(self, x: Tensor) -> bool:
        return bool((x < 0).any())

    def _sharing(self, x: Tensor) -> int:
        return x[0].numel()


@quantization_method("lsq", weight_bits=(2, 8))
class LSQLayer(QuantizedLayer):
    """A layer with a learned step for its weights and one for its inputs."""

    weights = LSQWeights
    activations = LSQActivations

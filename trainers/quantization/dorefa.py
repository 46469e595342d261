"""DoReFa: weights through a tanh (Zhou et al., 2016, arXiv 1606.06160).

    w_q = 2 Q(tanh(w) / (2 max|tanh(w)|) + 1/2) - 1       two bits and more
    w_q = sign(w)                                         one bit
    a_q = Q(clamp(a, 0, 1))
    Q(x) = round(x (2^b - 1)) / (2^b - 1), straight through

The ranges are fixed. The paper trains from nothing; a student begins as its teacher, with weights
and inputs of any size. So both get a factor that is set once from the first batch: weights the one
that keeps their mean size (for one bit that is the paper's E|w|), inputs the value at which they
are clipped. Inputs that can be negative are clipped at both ends.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from trainers.quantization.layer import (
    Grid,
    QuantizedLayer,
    Quantizer,
    even_grid,
    on_levels,
    quantization_method,
    straight_through,
    three_deviations,
)


class DoReFaWeights(Quantizer):
    """w_q times `scale`, () or (channels,), which is fixed."""

    scale: Tensor

    def __init__(self, bits: int, channels: int | None = None) -> None:
        super().__init__(bits, channels)
        self.register_buffer("scale", self.scalars(1.0))

    def initialise(self, x: Float[Tensor, "*shape"]) -> None:
        sizes = [
            self.reduced(values.abs(), lambda values: values.mean(dim=-1))
            for values in (x, self._levels(x))
        ]
        self.scale.copy_(sizes[0] / sizes[1].clamp_min(1e-8))

    def forward(self, x: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        return self.spread(self.scale, x) * self._levels(x)

    def grid(self, x: Float[Tensor, "*shape"]) -> Grid:
        # Even in the values that enter the layer; where x must lie for them is uneven.
        return even_grid(2**self.bits, -self.scale, 2 * self.scale / (2**self.bits - 1))

    def _levels(self, x: Tensor) -> Tensor:
        if self.bits == 1:
            return straight_through(torch.where(x < 0, -1.0, 1.0).to(x), x)
        squashed = torch.tanh(x)
        largest = self.reduced(squashed.abs(), lambda values: values.amax(dim=-1))
        largest = self.spread(largest.detach().clamp_min(1e-8), x)
        return 2 * on_levels(squashed / (2 * largest) + 0.5, self.bits) - 1


class DoReFaActivations(Quantizer):
    """a_q on [lowest, highest], which is fixed: [0, c], or [-c, c] for signed inputs."""

    lowest: Tensor
    highest: Tensor

    def __init__(self, bits: int, channels: int | None = None) -> None:
        super().__init__(bits, channels)
        self.register_buffer("lowest", torch.tensor(0.0))
        self.register_buffer("highest", torch.tensor(1.0))

    def initialise(self, x: Float[Tensor, "*shape"]) -> None:
        self.highest.copy_(three_deviations(x))
        self.lowest.copy_(-self.highest if bool((x < 0).any()) else torch.zeros_like(self.highest))

    def forward(self, x: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        span = self.highest - self.lowest
        unit = ((x - self.lowest) / span).clamp(0, 1)
        return on_levels(unit, self.bits) * span + self.lowest

    def grid(self, x: Float[Tensor, "*shape"]) -> Grid:
        step = (self.highest - self.lowest) / (2**self.bits - 1)
        return even_grid(2**self.bits, self.lowest, step)


@quantization_method("dorefa")
class DoReFaLayer(QuantizedLayer):
    """A layer with nothing to learn beside its weights."""

    weights = DoReFaWeights
    activations = DoReFaActivations

"""DSQ: differentiable soft quantization (Gong et al., ICCV 2019, arXiv 1908.05033).

    D = (u - l) / (2^b - 1)                    i = floor((clamp(x, l, u) - l) / D)
    phi(x) = tanh(k (x - m_i)) / tanh(k D / 2)   m_i = l + (i + 1/2) D
    k = ln(2 / alpha - 1) / D
    soft = l + D (i + (phi + 1) / 2)           forward: phi replaced by its sign

The forward pass is the hard staircase; backward the sign has the gradients of phi, for x, l and u.
l and u are learned; alpha, the distance between the two staircases, stays at 0.4.
"""

import math

import torch
from jaxtyping import Float
from torch import Tensor, nn

from trainers.quantization.layer import (
    Grid,
    QuantizedLayer,
    Quantizer,
    even_grid,
    quantization_method,
    straight_through,
    three_deviations,
)

ALPHA = 0.4
STEEPNESS = math.log(2 / ALPHA - 1)  # k D


class DSQ(Quantizer):
    """The formulas above with learned bounds, () or (channels,)."""

    def __init__(self, bits: int, channels: int | None = None) -> None:
        super().__init__(bits, channels)
        self.lower = nn.Parameter(self.scalars(0.0))
        self.upper = nn.Parameter(self.scalars(1.0))

    def forward(self, x: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        steps = 2**self.bits - 1
        lower, upper = self.spread(self.lower, x), self.spread(self.upper, x)
        width = (upper - lower) / steps
        # min and max instead of clamp: their gradients reach the bounds.
        position = (torch.minimum(torch.maximum(x, lower), upper) - lower) / width
        index = position.detach().floor().clamp(0, steps - 1)
        phi = torch.tanh(STEEPNESS * (position - index - 0.5)) / math.tanh(STEEPNESS / 2)
        soft = index + (phi + 1) / 2
        hard = index + (position.detach() >= index + 0.5).to(x)
        return lower + width * straight_through(hard, soft)

    def grid(self, x: Float[Tensor, "*shape"]) -> Grid:
        step = (self.upper - self.lower) / (2**self.bits - 1)
        return even_grid(2**self.bits, self.lower, step)


class DSQWeights(DSQ):
    """Bounds at three deviations of the weights."""

    def initialise(self, x: Float[Tensor, "*shape"]) -> None:
        deviation = self.reduced(x, lambda values: values.std(dim=-1)).clamp_min(1e-6)
        self.lower.copy_(-3 * deviation)
        self.upper.copy_(3 * deviation)


class DSQActivations(DSQ):
    """Bounds at the smallest input and at three deviations."""

    def initialise(self, x: Float[Tensor, "*shape"]) -> None:
        self.lower.copy_(x.min())
        self.upper.copy_(torch.maximum(three_deviations(x), self.lower + 1e-6))


@quantization_method("dsq")
class DSQLayer(QuantizedLayer):
    """A layer with soft staircases for its weights and its inputs."""

    weights = DSQWeights
    activations = DSQActivations

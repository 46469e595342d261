"""PACT: a learned clip of the inputs (Choi et al., 2018, arXiv 1805.06085).

    y   = clamp(x, 0, alpha)
    y_q = round(y (2^b - 1) / alpha) alpha / (2^b - 1)
    dy_q/dalpha = 1 where x >= alpha, else 0

Weights are DoReFa's. alpha is learned. The paper starts it at 10 and lets weight decay shrink it;
quantizers have no decay here, so it starts where the first batch of inputs ends (three deviations).
Inputs that can be negative are clipped at -alpha as well, whose gradient then is -1.
"""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from trainers.quantization.dorefa import DoReFaWeights
from trainers.quantization.layer import (
    Grid,
    QuantizedLayer,
    Quantizer,
    even_grid,
    quantization_method,
    straight_through,
    three_deviations,
)


class PACTActivations(Quantizer):
    """The formulas above with the learned clip `alpha`."""

    sign: Tensor

    def __init__(self, bits: int, channels: int | None = None) -> None:
        super().__init__(bits, channels)
        self.alpha = nn.Parameter(torch.tensor(1.0))
        self.register_buffer("sign", torch.tensor(0.0))  # 1 where inputs can be negative

    def initialise(self, x: Float[Tensor, "*shape"]) -> None:
        self.alpha.copy_(three_deviations(x))
        self.sign.fill_(float((x < 0).any()))

    def forward(self, x: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        lowest = -self.sign * self.alpha
        clipped = torch.minimum(torch.maximum(x, lowest), self.alpha)
        step = ((self.alpha - lowest) / (2**self.bits - 1)).detach()
        lowest = lowest.detach()
        rounded = torch.round((clipped - lowest) / step) * step + lowest
        return straight_through(rounded, clipped)

    def grid(self, x: Float[Tensor, "*shape"]) -> Grid:
        lowest = -self.sign * self.alpha
        return even_grid(2**self.bits, lowest, (self.alpha - lowest) / (2**self.bits - 1))


@quantization_method("pact")
class PACTLayer(QuantizedLayer):
    """A layer with a learned clip for its inputs."""

    weights = DoReFaWeights
    activations = PACTActivations

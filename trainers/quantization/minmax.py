"""Straight-through min-max: the affine quantizer of deployment (Jacob et al., CVPR 2018,
arXiv 1712.05877), with nothing learned.

    s = (max - min) / (2^b - 1)      z = round(-min / s)        min <= 0 <= max
    x_q = s (clamp(round(x / s) + z, 0, 2^b - 1) - z)           gradient 1 inside, 0 where clamped

Weights take their minimum and maximum as they are now; inputs a running mean of those of the
batches that were trained on. Zero is one of the levels.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from trainers.quantization.layer import (
    Grid,
    QuantizedLayer,
    Quantizer,
    even_grid,
    quantization_method,
    straight_through,
)

MOMENTUM = 0.1  # of a batch's extremes in the running ones, as in batch normalisation


class MinMax(Quantizer):
    """The affine grid between two extremes."""

    def on_grid(
        self, x: Float[Tensor, "*shape"], low: Tensor, high: Tensor
    ) -> Float[Tensor, "*shape"]:
        """`x` on the levels between `low` and `high`, () or (channels,)."""
        grid = self.grid_between(low, high)
        step = self.spread(grid.step, x)
        zero = self.spread((-grid.low / grid.step).round(), x)
        position = (x / step).clamp(-zero, grid.levels - 1 - zero)
        return straight_through(position.round(), position) * step

    def grid_between(self, low: Tensor, high: Tensor) -> Grid:
        """The levels between `low` and `high`, widened to hold zero and moved to hit it."""
        low, high = low.clamp_max(0), high.clamp_min(0)
        step = ((high - low) / (2**self.bits - 1)).clamp_min(1e-8)
        return even_grid(2**self.bits, -(-low / step).round() * step, step)


class MinMaxWeights(MinMax):
    def forward(self, x: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        return self.on_grid(x, *self._extremes(x))

    def grid(self, x: Float[Tensor, "*shape"]) -> Grid:
        return self.grid_between(*self._extremes(x))

    def _extremes(self, x: Tensor) -> tuple[Tensor, Tensor]:
        low = self.reduced(x.detach(), lambda values: values.amin(dim=-1))
        return low, self.reduced(x.detach(), lambda values: values.amax(dim=-1))


class MinMaxActivations(MinMax):
    lowest: Tensor
    highest: Tensor

    def __init__(self, bits: int, channels: int | None = None) -> None:
        super().__init__(bits, channels)
        self.register_buffer("lowest", torch.tensor(0.0))
        self.register_buffer("highest", torch.tensor(1.0))

    def initialise(self, x: Float[Tensor, "*shape"]) -> None:
        self.lowest.copy_(x.min())
        self.highest.copy_(x.max())

    def forward(self, x: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        if self.training:
            with torch.no_grad():
                self.lowest.lerp_(x.min(), MOMENTUM)
                self.highest.lerp_(x.max(), MOMENTUM)
        return self.on_grid(x, self.lowest, self.highest)

    def grid(self, x: Float[Tensor, "*shape"]) -> Grid:
        return self.grid_between(self.lowest, self.highest)


@quantization_method("minmax")
class MinMaxLayer(QuantizedLayer):
    """A layer on the grid that integer hardware computes on."""

    weights = MinMaxWeights
    activations = MinMaxActivations

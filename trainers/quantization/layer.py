"""What every quantizer is made of: layers that quantize, and the names under which they are found.

A method is a `QuantizedLayer` with a `Quantizer` for its weights and one for its inputs, registered
under a name:

    @quantization_method("sign", weight_bits=(1, 1))
    class SignLayer(QuantizedLayer):
        weights = SignWeights
        activations = LSQActivations

A config finds it by that name, or by `package.module:Class` where nothing else imports the module.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, TypeVar

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from spaces.errors import UserError, unknown_name
from trainers.users_own import users_class

KNOWN_FORWARDS = (nn.Conv2d.forward, nn.Linear.forward)


@dataclass(frozen=True)
class Grid:
    """What a quantizer does, without its gradients: x becomes level
    i = round((x - low) / step), at least 0 and at most `levels` - 1, and enters the layer as
    value_low + i value_step. Tensors () or (channels,)."""

    levels: int
    low: Tensor
    step: Tensor
    value_low: Tensor
    value_step: Tensor


def even_grid(levels: int, low: Tensor, step: Tensor) -> Grid:
    """The grid on which a value stands for itself."""
    return Grid(levels, low, step, low, step)


class Quantizer(nn.Module):
    """Maps one tensor, the weights or the inputs of a layer, onto at most 2^bits values.

    `channels` is the number of output channels where each has parameters of its own, else None.
    """

    def __init__(self, bits: int, channels: int | None = None) -> None:
        super().__init__()
        self.bits, self.channels = bits, channels

    def initialise(self, x: Float[Tensor, "*shape"]) -> None:
        """Sets the parameters from a first tensor: weights as they are, or one batch of inputs."""

    def forward(self, x: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        """`x` on its levels, with the method's own gradient."""
        raise NotImplementedError

    def grid(self, x: Float[Tensor, "*shape"]) -> Grid:
        """The levels of `x`, for export to where gradients do not matter.

        Raises UserError, by default: a method need not have even levels.
        """
        raise UserError(f"{type(self).__name__} does not say what its levels are (Quantizer.grid)")

    def scalars(self, value: float) -> Tensor:
        """A tensor of `value`, () or (channels,)."""
        return torch.full(() if self.channels is None else (self.channels,), value)

    def spread(self, values: Tensor, x: Tensor) -> Tensor:
        """`values`, () or (channels,), in a shape that broadcasts over `x` (channels, ...)."""
        return values if self.channels is None else values.view(-1, *[1] * (x.ndim - 1))

    def reduced(
        self, x: Float[Tensor, "*shape"], by: Callable[[Tensor], Tensor]
    ) -> Float[Tensor, "..."]:
        """`by` (of the last dimension) of all elements of `x`, or of those of each channel."""
        return by(x.flatten() if self.channels is None else x.flatten(start_dim=1))


class QuantizedLayer(nn.Module):
    """A convolution or linear layer whose weights and inputs are quantized."""

    weights: ClassVar[type[Quantizer]]
    activations: ClassVar[type[Quantizer]]
    # Lowest and highest number of bits that the method defines.
    weight_bits: ClassVar[tuple[int, int]] = (1, 8)
    activation_bits: ClassVar[tuple[int, int]] = (1, 8)

    def __init__(
        self,
        layer: nn.Conv2d | nn.Linear,
        weight_bits: int,
        activation_bits: int,
        *,
        per_channel: bool = False,
    ) -> None:
        super().__init__()
        self.layer = layer
        # A channel of one weight, as in a depthwise 1x1 convolution, has no deviation of its own.
        channels = len(layer.weight) if per_channel and layer.weight[0].numel() > 1 else None
        self.weight_quantizer = self.weights(weight_bits, channels)
        self.activation_quantizer = self.activations(activation_bits)

    def quantizer_parameters(self) -> list[nn.Parameter]:
        """What the method learns, apart from the layer's own weights."""
        return [
            *self.weight_quantizer.parameters(),
            *self.activation_quantizer.parameters(),
        ]

    @torch.no_grad()
    def initialise(self, x: Float[Tensor, "n ..."]) -> None:
        """Sets all quantizers from the layer's weights and one batch of its inputs."""
        self.weight_quantizer.initialise(self.layer.weight)
        self.activation_quantizer.initialise(x)

    def forward(self, x: Float[Tensor, "n ..."]) -> Float[Tensor, "n ..."]:
        weight = self.weight_quantizer(self.layer.weight)
        return self.operate(self.activation_quantizer(in_full(x)), weight, self.layer.bias)

    def output_factor(self) -> Tensor | float:
        """What the layer multiplies its output with."""
        return 1.0

    def operate(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """What the layer does, with other weights."""
        if type(self.layer).forward not in KNOWN_FORWARDS:
            return with_weights(self.layer, x, weight, bias)
        if isinstance(self.layer, nn.Conv2d):
            return self.layer._conv_forward(x, weight, bias)
        return F.linear(x, weight, bias)

    @property
    def weight(self) -> Tensor:
        """There is none: a network that reads it would compute with weights of full precision."""
        raise UserError(
            f"the network takes the weights of {self.layer} for a computation of its own, as "
            "torchvision's Swin does: no quantizer here can change that, choose another network"
        )

    def extra_repr(self) -> str:
        return f"W{self.weight_quantizer.bits}A{self.activation_quantizer.bits}"


METHODS: dict[str, type[QuantizedLayer]] = {}
Layer = TypeVar("Layer", bound=type[QuantizedLayer])


def quantization_method(
    name: str, *, weight_bits: tuple[int, int] = (1, 8), activation_bits: tuple[int, int] = (1, 8)
) -> Callable[[Layer], Layer]:
    """Registers a layer under `name`, with the lowest and highest bits that it defines."""

    def register(layer: Layer) -> Layer:
        layer.weight_bits, layer.activation_bits = weight_bits, activation_bits
        METHODS[name] = layer
        return layer

    return register


def method_called(name: str) -> type[QuantizedLayer]:
    """The method `name`, or the class at `package.module:Class`.

    Raises UserError where there is none, with the nearest name.
    """
    if ":" not in name:
        if name not in METHODS:
            raise unknown_name("quantizer", name, METHODS)
        return METHODS[name]
    return users_class("quantizer", name, QuantizedLayer)


def with_weights(layer: nn.Module, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """What the forward of `layer` makes of `x`, with other weights."""
    state = {"weight": weight} if bias is None else {"weight": weight, "bias": bias}
    out: Tensor = torch.func.functional_call(layer, state, (x,))
    return out


def in_full(x: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """`x` in float32 where autocast made it 16 bits: of 8 bits, some levels would be lost there."""
    return x.float() if x.dtype.itemsize < 4 else x


def straight_through(rounded: Tensor, x: Tensor) -> Tensor:
    """The value of `rounded` with the gradient of `x` (Bengio et al., arXiv 1308.3432)."""
    return x + (rounded - x).detach()


def on_levels(unit: Float[Tensor, "*shape"], bits: int) -> Float[Tensor, "*shape"]:
    """`unit`, values in [0, 1], on 2^bits even levels; the gradient passes straight through."""
    steps = 2**bits - 1
    return straight_through(torch.round(unit * steps) / steps, unit)


def three_deviations(x: Float[Tensor, "*shape"]) -> Float[Tensor, ""]:
    """Where to clip inputs at first: three deviations of the Gaussian that x is the half of.

    Inputs mostly follow a ReLU, and the deviation of half a Gaussian is sqrt(1 - 2/pi) of the
    whole's. Never zero: a dead layer still needs a range.
    """
    deviation = x.std() / (1.0 if bool((x < 0).any()) else (1 - 2 / torch.pi) ** 0.5)
    return (3 * deviation).clamp_min(1e-6)

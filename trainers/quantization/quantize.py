"""Which layers of a network become low-bit, and how they meet their first batch."""

import copy
from collections.abc import Sequence
from typing import Annotated, Literal

import torch
from jaxtyping import Float
from pydantic import Field, model_validator
from torch import Tensor, nn

from spaces.errors import UserError
from spaces.frozen import Frozen
from trainers.contexts import eval_mode
from trainers.quantization.layer import KNOWN_FORWARDS, QuantizedLayer, method_called, with_weights

Bits = Annotated[int, Field(ge=1, le=8)]
ENDS_BITS = 8  # of the first and last layer, where those are quantized but not to low bits


# They have weights of two dimensions or more and multiply with them, but not as these two do.
_UNKNOWN = (
    nn.modules.conv._ConvNd,
    nn.MultiheadAttention,
    nn.RNNBase,
    nn.Bilinear,
)


class QuantizationSpec(Frozen):
    """Bit widths of weights and activations, and the quantizer that makes them."""

    quantizer: Annotated[
        str, Field(description="ewgs, lsq, pact, dorefa, dsq, minmax or package.module:Class")
    ] = "ewgs"
    weight_bits: Bits = 2
    activation_bits: Bits = 2
    per_channel: Annotated[
        bool, Field(description="parameters for each output channel of the weights")
    ] = False
    first_and_last: Annotated[
        Literal["keep", "8 bits", "quantize"], Field(description="what becomes of these two layers")
    ] = "keep"

    @model_validator(mode="after")
    def _defined(self) -> "QuantizationSpec":
        try:
            method = method_called(self.quantizer)
        except UserError as error:
            raise ValueError(str(error)) from None
        for what in ("weight_bits", "activation_bits"):
            (low, high), bits = getattr(method, what), getattr(self, what)
            if not low <= bits <= high:
                raise ValueError(
                    f"{self.quantizer} defines {what} from {low} to {high}, got {bits}"
                )
        return self

    def __str__(self) -> str:
        return f"W{self.weight_bits}A{self.activation_bits} {self.quantizer.upper()}"


def quantize(model: nn.Module, spec: QuantizationSpec) -> nn.Module:
    """A copy of `model` whose convolutions and linear layers are quantized.

    What becomes of the first and last of them, in the order in which the network registers them,
    is `spec.first_and_last`; every recipe that we know keeps them. The copy needs `calibrate`
    before its first use. Raises UserError where a layer has weights that no method here knows, and
    where none would be quantized.
    """
    model = copy.deepcopy(model)
    method = method_called(spec.quantizer)
    places = _layers(model)
    ends = {id(places[0][0]), id(places[-1][0])} if places else set()
    for layer, names in places:
        bits = spec.weight_bits, spec.activation_bits
        if id(layer) in ends and spec.first_and_last == "keep":
            continue
        if id(layer) in ends and spec.first_and_last == "8 bits":
            bits = ENDS_BITS, ENDS_BITS
        quantized = method(layer, *bits, per_channel=spec.per_channel)
        for name in names:  # a layer that is used in two places stays one layer
            parent, _, child = name.rpartition(".")
            setattr(model.get_submodule(parent), child, quantized)
    if not quantized_layers(model):
        raise UserError(
            f"of the network's {len(places)} convolutions and linear layers none would be "
            "quantized: set student.quantization.first_and_last to 'quantize' or '8 bits'"
            if places
            else "the network has no convolution (Conv2d) and no linear layer to quantize"
        )
    return model


def _layers(model: nn.Module) -> list[tuple[nn.Conv2d | nn.Linear, list[str]]]:
    """Every convolution and linear layer once, with all names that it goes by."""
    names: dict[int, list[str]] = {}
    layers: dict[int, nn.Conv2d | nn.Linear] = {}
    for name, module in model.named_modules(remove_duplicate=False):
        if isinstance(module, nn.Conv2d | nn.Linear):
            _require_linear(name, module)
            layers[id(module)] = module
            names.setdefault(id(module), []).append(name)
        elif isinstance(module, _UNKNOWN):
            raise UserError(
                f"layer {name!r} is a {type(module).__name__}, which no quantizer here knows: "
                f"convolutions (Conv2d) and linear layers can be quantized"
            )
    return [(layers[key], names[key]) for key in layers]


@torch.no_grad()
def _require_linear(name: str, layer: nn.Conv2d | nn.Linear) -> None:
    """Raises UserError where a forward of the layer's own, as in timm's StdConv2d, standardises its
    weights: what it multiplies with would not be what the quantizer made."""
    if type(layer).forward in KNOWN_FORWARDS:
        return
    shape = (layer.in_features,) if isinstance(layer, nn.Linear) else (layer.in_channels, 32, 32)
    x = torch.randn(1, *shape, generator=torch.Generator().manual_seed(0)).to(layer.weight)
    bias = None if layer.bias is None else torch.zeros_like(layer.bias)
    once, twice = (with_weights(layer, x, times * layer.weight, bias) for times in (1, 2))
    if not torch.allclose(2 * once, twice, rtol=1e-3, atol=1e-6):
        raise UserError(
            f"layer {name!r} is a {type(layer).__name__}, which changes its weights before it "
            "multiplies with them: no quantizer here knows it, choose a network without"
        )


@torch.no_grad()
def calibrate(model: nn.Module, inputs: Float[Tensor, "n c h w"]) -> None:
    """Initialises every quantized layer from one normalised batch, in the order of the forward."""
    met: set[int] = set()

    def meet(layer: nn.Module, args: Sequence[Tensor]) -> None:
        assert isinstance(layer, QuantizedLayer)
        if id(layer) not in met:  # the first of several places decides
            met.add(id(layer))
            layer.initialise(args[0])

    hooks = [layer.register_forward_pre_hook(meet) for layer in quantized_layers(model)]
    try:
        with eval_mode(model):
            model(inputs)
    finally:
        for hook in hooks:
            hook.remove()


def quantized_layers(model: nn.Module) -> list[QuantizedLayer]:
    """The quantized layers of `model`, in the order in which it registers them."""
    return [module for module in model.modules() if isinstance(module, QuantizedLayer)]


def quantizer_parameters(model: nn.Module) -> list[nn.Parameter]:
    """What the quantizers of `model` learn, to be optimised apart from its weights."""
    return [p for layer in quantized_layers(model) for p in layer.quantizer_parameters()]

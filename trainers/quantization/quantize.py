"""Which layers of a network become low-bit, and how they meet their first batch."""

import copy
from typing import Annotated, Literal

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor, nn

from spaces.frozen import Frozen
from trainers.contexts import eval_mode
from trainers.quantization.ewgs import EWGSLayer

Bits = Annotated[int, Field(ge=1, le=8)]


class QuantizationSpec(Frozen):
    """Bit widths of weights and activations, and the quantizer that makes them."""

    quantizer: Literal["ewgs"] = "ewgs"
    weight_bits: Bits = 2
    activation_bits: Bits = 2

    def __str__(self) -> str:
        return f"W{self.weight_bits}A{self.activation_bits} {self.quantizer.upper()}"


def quantize(model: nn.Module, spec: QuantizationSpec) -> nn.Module:
    """A copy of `model` whose convolutions and linear layers are quantized, but the first and last.

    Those two stay in full precision, as in every recipe that we know. Layers count in the order in
    which the network registers them. The copy needs `calibrate` before its first use.
    """
    model = copy.deepcopy(model)
    names = [n for n, m in model.named_modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    for name in names[1:-1]:
        layer = model.get_submodule(name)
        assert isinstance(layer, nn.Conv2d | nn.Linear)
        parent, _, child = name.rpartition(".")
        quantized = EWGSLayer(layer, spec.weight_bits, spec.activation_bits)
        setattr(model.get_submodule(parent), child, quantized)
    return model


@torch.no_grad()
def calibrate(model: nn.Module, inputs: Float[Tensor, "n c h w"]) -> None:
    """Initialises every quantized layer from one normalised batch, in the order of the forward."""
    hooks = [
        module.register_forward_pre_hook(lambda layer, args: layer.initialise(args[0]))
        for module in model.modules()
        if isinstance(module, EWGSLayer)
    ]
    try:
        with eval_mode(model):
            model(inputs)
    finally:
        for hook in hooks:
            hook.remove()


def quantizer_parameters(model: nn.Module) -> list[nn.Parameter]:
    """What the quantizers of `model` learn, to be optimised apart from its weights."""
    layers = (m for m in model.modules() if isinstance(m, EWGSLayer))
    return [parameter for layer in layers for parameter in layer.quantizer_parameters()]

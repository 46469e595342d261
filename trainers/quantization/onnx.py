"""A student as ONNX, with its quantizers as pairs of QuantizeLinear and DequantizeLinear.

Weights are stored as integers of 8 bits with the scale of their levels, inputs of a layer are
clipped to the range of their levels and pass through 8 bits on the way. So a student of 4 to 8 bits
is the same network in every runtime that knows the operators (opset 21). Fewer bits would be
computed in eight all the same, and nothing gained: those are refused.
"""

import copy
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor, nn

from spaces.atomic_write import atomic_write
from spaces.errors import UserError
from trainers.quantization.layer import Grid, QuantizedLayer, Quantizer

OPSET = 21
FEWEST_BITS = 4
PACKAGES = "onnx and onnxscript"


def export_onnx(student: nn.Module, example: Float[Tensor, "n c h w"], path: Path) -> None:
    """Writes `student`, in eval mode, with normalised images (N, C, H, W) float32, N free, as its
    input and logits (N, K) as its output.

    Raises UserError where a layer has fewer than 4 bits or levels that are not even, and where the
    packages that write ONNX are missing.
    """
    model = copy.deepcopy(student).cpu().eval()
    for name, layer in list(model.named_modules(remove_duplicate=False)):  # shared ones twice
        if isinstance(layer, QuantizedLayer):
            parent, _, child = name.rpartition(".")
            setattr(model.get_submodule(parent), child, _deployed(name, layer))
    try:
        import onnx  # noqa: F401
        import onnxscript  # noqa: F401
    except ImportError:
        raise UserError(f"writing ONNX needs {PACKAGES}: pip install 'augury[onnx]'") from None
    program = torch.onnx.export(
        model,
        (example.cpu().float(),),
        dynamo=True,
        opset_version=OPSET,
        input_names=["images"],
        output_names=["logits"],
        dynamic_shapes=({0: torch.export.Dim("batch")},),
        verbose=False,
    )
    assert program is not None
    with atomic_write(path) as temporary:
        program.save(temporary)


def _deployed(name: str, layer: QuantizedLayer) -> nn.Module:
    for what in (layer.weight_quantizer, layer.activation_quantizer):
        if what.bits < FEWEST_BITS:
            raise UserError(
                f"layer {name!r} has {what.bits} bits: ONNX computes in 4 bits or more, "
                f"so a student of fewer gains nothing from it"
            )
    return _DeployedLayer(layer)


class _DeployedLayer(nn.Module):
    """The layer with its weights as integers and its input through integers."""

    bias: Tensor | None

    def __init__(self, layer: QuantizedLayer) -> None:
        super().__init__()
        with torch.no_grad():
            factor = layer.output_factor()
            weight = layer.layer.weight
            self.weight = _Stored(layer.weight_quantizer, weight, factor)
            self.activation = _Passing(layer.activation_quantizer.grid(weight))
            bias = layer.layer.bias
            self.register_buffer("bias", None if bias is None else factor * bias.detach())
        self.operate = layer.operate

    def forward(self, x: Tensor) -> Tensor:
        return self.operate(self.activation(x), self.weight(), self.bias)


class _Stored(nn.Module):
    """Weights as uint8, and how they become numbers again."""

    level: Tensor
    scale: Tensor
    zero: Tensor
    low: Tensor

    def __init__(self, quantizer: Quantizer, weight: Tensor, factor: Tensor | float) -> None:
        super().__init__()
        grid = quantizer.grid(weight)
        self.axis = None if quantizer.channels is None else 0
        low, step = (quantizer.spread(v, weight) for v in (grid.value_low, grid.value_step))
        level = ((quantizer(weight) - low) / step).round()
        self.register_buffer("level", level.to(torch.uint8))
        self.register_buffer("scale", grid.value_step.detach() * factor)
        self.register_buffer("zero", torch.zeros_like(grid.value_step, dtype=torch.uint8))
        self.register_buffer("low", (low * factor).detach())

    def forward(self) -> Tensor:
        return _dequantize(self.level, self.scale, self.zero, self.axis) + self.low


class _Passing(nn.Module):
    """Inputs clipped, to uint8 and back."""

    low: Tensor
    high: Tensor
    step: Tensor
    value_step: Tensor
    zero: Tensor

    def __init__(self, grid: Grid) -> None:
        super().__init__()
        self.register_buffer("low", grid.low.detach().clone())
        self.register_buffer("high", (grid.low + (grid.levels - 1) * grid.step).detach())
        self.register_buffer("step", grid.step.detach().clone())
        self.register_buffer("value_step", grid.value_step.detach().clone())
        self.register_buffer("zero", torch.tensor(0, dtype=torch.uint8))
        self.value_low = float(grid.value_low)

    def forward(self, x: Tensor) -> Tensor:
        # Not by clamp, whose pair of operators the exporter's optimizer makes one of, with bounds
        # called by their input: two layers with the same input would lose theirs.
        bounded = torch.onnx.ops.symbolic(
            "Clip", (x, self.low, self.high), dtype=torch.float32, shape=x.shape, version=OPSET
        )
        level = torch.onnx.ops.symbolic(
            "QuantizeLinear",
            (bounded - self.low, self.step, self.zero),
            dtype=torch.uint8,
            shape=x.shape,
            version=OPSET,
        )
        value = _dequantize(level, self.value_step, self.zero, None)
        return value + self.value_low if self.value_low else value


def _dequantize(level: Tensor, scale: Tensor, zero: Tensor, axis: int | None) -> Tensor:
    return torch.onnx.ops.symbolic(
        "DequantizeLinear",
        (level, scale, zero),
        attrs={} if axis is None else {"axis": axis},
        dtype=torch.float32,
        shape=level.shape,
        version=OPSET,
    )

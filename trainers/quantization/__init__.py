"""Low-bit students: `quantize` swaps a network's layers for quantized ones.

A method of your own is a `QuantizedLayer` that is registered with `quantization_method`.
"""

from trainers.quantization import dorefa, dsq, lsq, minmax, pact
from trainers.quantization.ewgs import ewgs_layers, update_deltas
from trainers.quantization.layer import (
    METHODS,
    Grid,
    QuantizedLayer,
    Quantizer,
    quantization_method,
    straight_through,
)
from trainers.quantization.quantize import (
    QuantizationSpec,
    calibrate,
    quantize,
    quantized_layers,
    quantizer_parameters,
)

__all__ = [
    "METHODS",
    "Grid",
    "QuantizationSpec",
    "QuantizedLayer",
    "Quantizer",
    "calibrate",
    "dorefa",
    "dsq",
    "ewgs_layers",
    "lsq",
    "minmax",
    "pact",
    "quantization_method",
    "quantize",
    "quantized_layers",
    "quantizer_parameters",
    "straight_through",
    "update_deltas",
]

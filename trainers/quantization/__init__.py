"""Low-bit students: `quantize` swaps a network's layers for quantized ones."""

from trainers.quantization.ewgs import update_deltas
from trainers.quantization.quantize import (
    QuantizationSpec,
    calibrate,
    quantize,
    quantizer_parameters,
)

__all__ = ["QuantizationSpec", "calibrate", "quantize", "quantizer_parameters", "update_deltas"]

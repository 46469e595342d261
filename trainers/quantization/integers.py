"""Convolutions of discretized values in whole numbers, on a CPU.

What a low-bit layer multiplies are a few levels: inputs i / n with i = 0..n, weights j / m with
j = -m..m. So the sum of products is one of integers over n m, and the int8 kernels of oneDNN, three
times as fast as those of float32, compute it exactly, where float32 rounds. Gradients are those of
the convolution in float32, once and twice.

The kernels are reached by operators that torch made for its own compiler. Where this build or this
processor does not have them as they are called here, `available` says so.
"""

from functools import cache
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

# Without VNNI two products are summed in 16 bits: 2 x 15 x 15 fits in, those of 8 bits would not.
MOST_BITS = 4
# Fewer values than that are multiplied sooner than they are made integers.
FEWEST_VALUES = 2**18

_Geometry = tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]  # stride, padding, dilation


def fits(layer: nn.Module, x: Tensor, weight_bits: int, activation_bits: int) -> bool:
    """Whether `convolved` can compute `layer` of x: a convolution with no forward of its own, small
    levels, one group, float32 on a CPU, and enough of it."""
    return (
        not torch.compiler.is_compiling()  # which makes kernels of its own
        and isinstance(layer, nn.Conv2d)
        and type(layer).forward is nn.Conv2d.forward
        and layer.groups == 1
        and layer.padding_mode == "zeros"
        and not isinstance(layer.padding, str)
        and x.dtype == torch.float32
        and x.device.type == "cpu"
        and x.numel() >= FEWEST_VALUES
        and max(weight_bits, activation_bits) <= MOST_BITS
        and available()
    )


def convolved(
    layer: nn.Conv2d,
    x: Float[Tensor, "n c h w"],
    weight: Float[Tensor, "d c i j"],
    scale: Float[Tensor, ""],
    steps: tuple[int, int],
) -> Float[Tensor, "n d k l"]:
    """`layer` of x with `scale` times `weight` and without its bias.

    `steps` are n and m: x holds i / n, 0 <= i <= n, and `weight` j / m, -m <= j <= m.
    """
    out: Tensor = _Convolution.apply(x, scale * weight, weight.detach(), scale, layer, steps)
    return out


class _Convolution(torch.autograd.Function):
    @staticmethod
    def forward(  # type: ignore[no-untyped-def]  # noqa: PLR0917 (apply takes no keywords)
        ctx,
        x: Tensor,
        scaled: Tensor,
        weight: Tensor,
        scale: Tensor,
        layer: nn.Conv2d,
        steps: tuple[int, int],
    ) -> Tensor:
        ctx.save_for_backward(x, scaled)
        ctx.geometry = layer.stride, layer.padding, layer.dilation
        n, m = steps
        # By way of int16: straight from float32 to uint8 takes half as long again.
        whole = torch.add(torch.tensor(0.5), x, alpha=n).to(torch.int16).to(torch.uint8)
        whole_weight = (weight * m).round().to(torch.int8)
        return _summed(whole, whole_weight, scale / (n * m), ctx.geometry)

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Any, ...]:  # type: ignore[no-untyped-def]
        x, scaled = ctx.saved_tensors
        wanted = [*ctx.needs_input_grad[:2], False]
        by_x, by_scaled, _ = torch.ops.aten.convolution_backward(
            grad, x, scaled, None, *ctx.geometry, False, [0, 0], 1, wanted
        )
        return by_x, by_scaled, None, None, None, None


def _summed(x: Tensor, weight: Tensor, factor: Tensor, geometry: _Geometry) -> Tensor:
    """`factor` times the convolution of x uint8 with weight int8, float32."""
    ops = torch.ops.onednn
    factors = factor.detach().expand(len(weight)).contiguous()
    zeros = torch.zeros(len(weight), dtype=torch.int64)
    packed = ops.qconv_prepack(weight, factors, 1.0, 0, *geometry, 1, list(x.shape))
    inputs = x, 1.0, 0, packed, factors, zeros, None
    out: Tensor = ops.qconv2d_pointwise(
        *inputs, *geometry, 1, 1.0, 0, torch.float32, "none", [], "none"
    )
    return out


@cache
def available() -> bool:
    """Whether the operators are there and say what float32 says, where sums are largest."""
    x = torch.full((1, 16, 3, 3), 2**MOST_BITS - 1, dtype=torch.uint8)
    weight = torch.full((8, 16, 3, 3), 2**MOST_BITS - 1, dtype=torch.int8)
    weight[::2].neg_()
    try:
        found = _summed(x, weight, torch.tensor(0.5), ((1, 1), (1, 1), (1, 1)))
    except Exception:  # whatever another version of torch makes of this call
        return False
    expected = torch.conv2d(x.float(), weight.float(), padding=1) / 2
    return torch.equal(found, expected)

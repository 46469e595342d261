"""EWGS: element-wise gradient scaling (Lee, Kim, Ham, CVPR 2021, arXiv 2104.00903).

    x^  = clamp((x - l) / (u - l), 0, 1)                                          (eq. 1)
    x_q = round(x^ (L - 1)) / (L - 1)          L = 2^bits, half to even            (eq. 2)
    activations enter as x_q, weights as 2 (x_q - 1/2)
    out = |s| (conv(a_q, w_q) + bias)
    backward through the rounding:  g (1 + delta sign(g) (x^ - x_q))               (eq. 5)

l, u of weights and activations and s are learned per layer. delta is the curvature of the loss in
the discretized values, max(0, (Tr H / N) / (3 std(G))) (eq. 8), renewed during training by
`update_deltas`; zero makes the quantizer a straight-through estimator.

Gradients and curvature are those of the discretized tensors as they enter the layer: for weights
in [-1, 1], where a step is twice as wide as in eq. 2.

One departure: the paper estimates the trace of one layer at a time, `update_deltas` of all layers
with one Rademacher vector each at once. Blocks across layers have expectation zero, so every trace
stays unbiased, for one backward pass per draw instead of one per layer and draw.
"""

import math
from collections.abc import Callable, Iterable

import torch
from jaxtyping import Float
from torch import Tensor, nn

from trainers.quantization import integers
from trainers.quantization.layer import (
    Grid,
    QuantizedLayer,
    Quantizer,
    in_full,
    quantization_method,
)


class _Discretize(torch.autograd.Function):
    """Equations 1 and 2 and their gradients as one node; twice differentiable in `grad` alone.

    Chained from torch's own functions these element-wise steps take half the time of a student.
    A pass in place costs a third of one that allocates, and the kernel of hardtanh's gradient,
    which is that of clamp, a tenth of `where`. Only the clamped positions are kept beside the
    result: the next layer keeps that one anyway, and their difference is the rounding error.
    """

    @staticmethod
    def forward(  # type: ignore[no-untyped-def]  # noqa: PLR0917 (apply takes no keywords)
        ctx, x: Tensor, lower: Tensor, upper: Tensor, levels: int, delta: Tensor
    ) -> Tensor:
        steps = levels - 1
        position = (x - lower).mul_(steps / (upper - lower)).clamp_(0, steps)
        out = position.round().div_(steps)
        ctx.save_for_backward(position, out, upper - lower, delta)
        ctx.steps = steps
        return out

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[no-untyped-def]
        position, out, span, delta = ctx.saved_tensors
        inside = torch.ops.aten.hardtanh_backward(grad, position, 0, ctx.steps)
        error = torch.sub(position, out.detach(), alpha=ctx.steps)
        # sign(g) g is |g|, and where x was clamped there is no error.
        slope = inside.addcmul_(grad.abs().mul_(delta / ctx.steps), error).div_(span)
        if span.ndim == 0:  # x^ is out and its error
            by_upper = -_dot(slope, position) / ctx.steps
        else:
            by_upper = -(slope * position).sum_to_size(span.shape) / ctx.steps
        return slope, -slope.sum_to_size(span.shape) - by_upper, by_upper, None, None


def _dot(x: Float[Tensor, "*shape"], y: Float[Tensor, "*shape"]) -> Float[Tensor, ""]:
    """The sum of all products, in the order of `y` in memory: another costs a copy."""
    if y.ndim == 4 and y.is_contiguous(memory_format=torch.channels_last):
        x, y = x.permute(0, 2, 3, 1), y.permute(0, 2, 3, 1)
    return torch.dot(x.flatten(), y.flatten())


def discretize(
    x: Float[Tensor, "*shape"],
    lower: Float[Tensor, "..."],
    upper: Float[Tensor, "..."],
    levels: int,
    delta: Float[Tensor, ""],
) -> Float[Tensor, "*shape"]:
    """`x` on the nearest of `levels` levels between `lower` and `upper`, as a value in [0, 1].

    The bounds have one shape, which broadcasts over `x`. Gradients for `x` and the bounds pass the
    rounding by equation 5.
    """
    out: Tensor = _Discretize.apply(x, lower, upper, levels, delta)
    return out


class Discretizer(Quantizer):
    """Equations 1 and 2 with learned bounds and the curvature `delta` of one tensor."""

    delta: Tensor

    def __init__(self, bits: int, channels: int | None = None) -> None:
        super().__init__(bits, channels)
        self.lower = nn.Parameter(self.scalars(0.0))
        self.upper = nn.Parameter(self.scalars(1.0))
        self.register_buffer("delta", torch.tensor(0.0))

    def set_bounds(self, lower: Tensor, upper: Tensor) -> None:
        self.lower.copy_(lower)
        # A tensor without spread (a dead layer) still needs a step that is not zero.
        self.upper.copy_(torch.maximum(upper, lower + 1e-6 * lower.abs().clamp_min(1.0)))

    def forward(self, x: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        lower, upper = self.spread(self.lower, x), self.spread(self.upper, x)
        return discretize(x, lower, upper, 2**self.bits, self.delta)

    def _grid_on(self, value_low: float, value_high: float) -> Grid:
        steps = 2**self.bits - 1
        step = (self.upper - self.lower) / steps
        ends = torch.full_like(step, value_low), torch.full_like(step, value_high)
        return Grid(steps + 1, self.lower, step, ends[0], (ends[1] - ends[0]) / steps)


class WeightDiscretizer(Discretizer):
    def initialise(self, x: Float[Tensor, "*shape"]) -> None:
        deviation = self.reduced(x, lambda values: values.std(dim=-1))
        self.set_bounds(-3 * deviation, 3 * deviation)

    def forward(self, x: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        return 2 * (super().forward(x) - 0.5)

    def grid(self, x: Float[Tensor, "*shape"]) -> Grid:
        return self._grid_on(-1.0, 1.0)


class ActivationDiscretizer(Discretizer):
    def initialise(self, x: Float[Tensor, "*shape"]) -> None:
        # Inputs follow a ReLU: half a Gaussian, whose deviation is sqrt(1 - 2/pi) of the whole's.
        self.set_bounds(x.min(), 3 * x.std() / math.sqrt(1 - 2 / math.pi))

    def grid(self, x: Float[Tensor, "*shape"]) -> Grid:
        return self._grid_on(0.0, 1.0)


@quantization_method("ewgs")
class EWGSLayer(QuantizedLayer):
    """A layer whose weights and inputs are discretized, with a learned scale of its output."""

    weights = WeightDiscretizer
    activations = ActivationDiscretizer
    weight_quantizer: WeightDiscretizer
    activation_quantizer: ActivationDiscretizer

    def __init__(
        self,
        layer: nn.Conv2d | nn.Linear,
        weight_bits: int,
        activation_bits: int,
        *,
        per_channel: bool = False,
    ) -> None:
        super().__init__(layer, weight_bits, activation_bits, per_channel=per_channel)
        self.output_scale = nn.Parameter(torch.tensor(1.0))
        self.discretized: list[Tensor] | None = None  # filled while `update_deltas` looks on

    def quantizer_parameters(self) -> list[nn.Parameter]:
        return [*super().quantizer_parameters(), self.output_scale]

    @torch.no_grad()
    def initialise(self, x: Float[Tensor, "n ..."]) -> None:
        """Sets bounds and output scale from one batch of inputs, as the paper's code does."""
        super().initialise(x)
        self.output_scale.fill_(1.0)
        exact = self.operate(x, self.layer.weight, self.layer.bias)
        self.output_scale.copy_(exact.abs().mean() / self.forward(x).abs().mean().clamp_min(1e-8))

    def forward(self, x: Float[Tensor, "n ..."]) -> Float[Tensor, "n ..."]:
        activation = self.activation_quantizer(in_full(x))
        weight = self.weight_quantizer(self.layer.weight)
        if self.discretized is not None:
            self.discretized += [weight, activation]
        # The scale is multiplied into the weights, of which there are fewer than outputs.
        scale = self.output_factor()
        bias = None if self.layer.bias is None else scale * self.layer.bias
        bits = self.weight_quantizer.bits, self.activation_quantizer.bits
        if not integers.fits(self.layer, x, *bits):
            return self.operate(activation, scale * weight, bias)
        assert isinstance(self.layer, nn.Conv2d)
        steps = 2 ** bits[1] - 1, 2 ** bits[0] - 1
        out = integers.convolved(self.layer, activation, weight, scale, steps)
        return out if bias is None else out + bias.view(-1, 1, 1)

    def output_factor(self) -> Tensor:
        return self.output_scale.abs()


def ewgs_layers(model: nn.Module) -> list[EWGSLayer]:
    """The layers of `model` that have a curvature to keep."""
    return [module for module in model.modules() if isinstance(module, EWGSLayer)]


def update_deltas(
    model: nn.Module,
    losses: Iterable[Callable[[], Tensor]],
    rng: torch.Generator,
    draws: int = 50,
) -> None:
    """Renews delta of every EWGS layer of `model` from the curvature of `losses`.

    `losses` compute the training loss of one batch each (the paper takes three); `draws` is the
    number of Rademacher vectors per batch in Hutchinson's estimate of the trace.
    """
    layers = ewgs_layers(model)
    ratios = []
    for loss in losses:
        for layer in layers:
            layer.discretized = []
        try:
            value = loss()
            tensors = [tensor for layer in layers for tensor in layer.discretized or ()]
        finally:
            for layer in layers:
                layer.discretized = None
        ratios.append(_curvature_ratios(value, tensors, rng, draws))
    quantizers = [q for la in layers for q in (la.weight_quantizer, la.activation_quantizer)]
    for quantizer, ratio in zip(quantizers, torch.stack(ratios).mean(dim=0), strict=True):
        quantizer.delta.copy_(ratio.clamp_min(0))


def _curvature_ratios(
    loss: Tensor, tensors: list[Tensor], rng: torch.Generator, draws: int
) -> Float[Tensor, " m"]:
    """(Tr H / N) / (3 std(G)) for each of `tensors`."""
    grads = torch.autograd.grad(loss, tensors, create_graph=True)
    traces = [torch.zeros((), device=t.device) for t in tensors]
    for _ in range(draws):
        signs = [_rademacher(t, rng) for t in tensors]
        products = torch.autograd.grad(grads, tensors, grad_outputs=signs, retain_graph=True)
        for i, (sign, product) in enumerate(zip(signs, products, strict=True)):
            traces[i] += (sign * product).sum() / draws
    return torch.stack(
        [
            trace / tensor.numel() / (3 * grad.detach().std()).clamp_min(1e-12)
            for trace, tensor, grad in zip(traces, tensors, grads, strict=True)
        ]
    )


def _rademacher(like: Tensor, rng: torch.Generator) -> Tensor:
    bits = torch.randint(0, 2, like.shape, generator=rng, device=rng.device)
    return bits.to(like).mul_(2).sub_(1)

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
from torch.nn import functional as F


class _Discretize(torch.autograd.Function):
    """Equations 1 and 2 and their gradients as one node; twice differentiable in `grad` alone.

    Chained from torch's own functions these element-wise steps take half the time of a student.
    A pass in place costs a third of one that allocates, and the kernel of hardtanh's gradient,
    which is that of clamp, a tenth of `where`.
    """

    @staticmethod
    def forward(  # type: ignore[no-untyped-def]  # noqa: PLR0917 (apply takes no keywords)
        ctx, x: Tensor, lower: Tensor, upper: Tensor, levels: int, delta: Tensor
    ) -> Tensor:
        steps = levels - 1
        position = (x - lower).mul_(steps / (upper - lower))
        error = position.clamp(0, steps)
        out = error.round()
        error.sub_(out)
        out.div_(steps)
        ctx.save_for_backward(position, error, out, upper - lower, delta)
        ctx.steps = steps
        return out

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[no-untyped-def]
        position, error, out, span, delta = ctx.saved_tensors
        inside = torch.ops.aten.hardtanh_backward(grad, position, 0, ctx.steps)
        # sign(g) g is |g|, and where x was clamped there is no error.
        slope = torch.addcmul(inside, grad.abs().mul_(delta / ctx.steps), error).div_(span)
        flat = slope.flatten()
        by_upper = -(flat.dot(out.flatten()) + flat.dot(error.flatten()) / ctx.steps)
        return slope, -flat.sum() - by_upper, by_upper, None, None


def discretize(
    x: Float[Tensor, "*shape"],
    lower: Float[Tensor, ""],
    upper: Float[Tensor, ""],
    levels: int,
    delta: Float[Tensor, ""],
) -> Float[Tensor, "*shape"]:
    """`x` on the nearest of `levels` levels between `lower` and `upper`, as a value in [0, 1].

    Gradients for `x` and the bounds pass the rounding by equation 5.
    """
    out: Tensor = _Discretize.apply(x, lower, upper, levels, delta)
    return out


class Discretizer(nn.Module):
    """Equations 1 and 2 with learned bounds and the curvature `delta` of one tensor."""

    delta: Tensor

    def __init__(self, bits: int) -> None:
        super().__init__()
        self.levels = 2**bits
        self.lower = nn.Parameter(torch.tensor(0.0))
        self.upper = nn.Parameter(torch.tensor(1.0))
        self.register_buffer("delta", torch.tensor(0.0))

    def set_bounds(self, lower: float, upper: float) -> None:
        with torch.no_grad():
            self.lower.fill_(lower)
            # A tensor without spread (a dead layer) still needs a step that is not zero.
            self.upper.fill_(max(upper, lower + 1e-6 * max(1.0, abs(lower))))

    def forward(self, x: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        return discretize(x, self.lower, self.upper, self.levels, self.delta)


class EWGSLayer(nn.Module):
    """A convolution or linear layer with quantized weights and inputs."""

    def __init__(
        self, layer: nn.Conv2d | nn.Linear, weight_bits: int, activation_bits: int
    ) -> None:
        super().__init__()
        self.layer = layer
        self.weight_quantizer = Discretizer(weight_bits)
        self.activation_quantizer = Discretizer(activation_bits)
        self.output_scale = nn.Parameter(torch.tensor(1.0))
        self.discretized: list[Tensor] | None = None  # filled while `update_deltas` looks on

    def quantizer_parameters(self) -> list[nn.Parameter]:
        """What the quantizer learns: five scalars, apart from the layer's own weights."""
        bounds = (*self.weight_quantizer.parameters(), *self.activation_quantizer.parameters())
        return [*bounds, self.output_scale]

    @torch.no_grad()
    def initialise(self, x: Float[Tensor, "n ..."]) -> None:
        """Sets bounds and output scale from one batch of inputs, as the paper's code does."""
        weight = self.layer.weight
        self.weight_quantizer.set_bounds(-3 * float(weight.std()), 3 * float(weight.std()))
        # Inputs follow a ReLU: half a Gaussian, whose deviation is sqrt(1 - 2/pi) of the whole's.
        spread = float(x.std()) / math.sqrt(1 - 2 / math.pi)
        self.activation_quantizer.set_bounds(float(x.min()), 3 * spread)
        self.output_scale.fill_(1.0)
        exact, quantized = self._operate(x, weight, self.layer.bias), self.forward(x)
        self.output_scale.copy_(exact.abs().mean() / quantized.abs().mean().clamp_min(1e-8))

    def forward(self, x: Float[Tensor, "n ..."]) -> Float[Tensor, "n ..."]:
        activation = self.activation_quantizer(x)
        weight = 2 * (self.weight_quantizer(self.layer.weight) - 0.5)
        if self.discretized is not None:
            self.discretized += [weight, activation]
        # The scale is multiplied into the weights, of which there are fewer than outputs.
        scale = self.output_scale.abs()
        bias = None if self.layer.bias is None else scale * self.layer.bias
        return self._operate(activation, scale * weight, bias)

    def _operate(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        if isinstance(self.layer, nn.Conv2d):
            return self.layer._conv_forward(x, weight, bias)
        return F.linear(x, weight, bias)

    def extra_repr(self) -> str:
        bits = (
            q.levels.bit_length() - 1 for q in (self.weight_quantizer, self.activation_quantizer)
        )
        return "W{}A{}".format(*bits)


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
    layers = [module for module in model.modules() if isinstance(module, EWGSLayer)]
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

"""EWGS against its published numbers, and its curvature against an exact Hessian."""

import itertools
import json
import math
from pathlib import Path

import pytest
import torch
from torch import nn

from trainers.quantization import integers
from trainers.quantization.ewgs import EWGSLayer, discretize, update_deltas

DATA = json.loads((Path(__file__).parent.parent / "fixtures" / "ewgs.json").read_text())


def double(values: object) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


@pytest.mark.parametrize("case", DATA["cases"], ids=lambda c: f"L{c['levels']}-delta{c['delta']}")
def test_rounding_and_its_gradient(case):
    x = double(DATA["x"]).requires_grad_()
    out = discretize(x, double(0.0), double(1.0), case["levels"], double(case["delta"]))
    out.backward(double(DATA["g"]))
    torch.testing.assert_close(out, double(case["forward"]), atol=1e-6, rtol=0)
    clamped = (x.detach() <= 0) | (x.detach() >= 1)  # the numbers are of the rounding alone
    expected = double(case["grad_in"]).masked_fill(clamped, 0)
    torch.testing.assert_close(x.grad, expected, atol=1e-6, rtol=0)


@pytest.mark.parametrize("case", DATA["qconv"], ids=lambda c: f"L{c['levels']}-delta{c['delta']}")
def test_a_quantized_convolution(case):
    weight, bits = double(case["weight"]), int(math.log2(case["levels"]))
    convolution = nn.Conv2d(weight.shape[1], weight.shape[0], 3, padding=1, bias=False).double()
    convolution.weight.data.copy_(weight)
    layer = EWGSLayer(convolution, bits, bits).double()
    x = double(case["x"]).requires_grad_()
    layer.initialise(x.detach())
    w, a = layer.weight_quantizer, layer.activation_quantizer
    learned = {"lW": w.lower, "uW": w.upper, "lA": a.lower, "uA": a.upper}
    learned["output_scale"] = layer.output_scale
    for name, parameter in learned.items():
        assert parameter.item() == pytest.approx(case["init"][name], abs=1e-6), name
    w.delta.fill_(case["delta"])
    a.delta.fill_(case["delta"])

    out = layer(x)
    out.backward(double(case["grad_out"]))

    found = {"output": out, "grad_weight": convolution.weight.grad, "grad_x": x.grad}
    found |= {f"grad_{name}": parameter.grad for name, parameter in learned.items()}
    for name, tensor in found.items():
        torch.testing.assert_close(tensor, double(case[name]), atol=1e-6, rtol=0, msg=name)


def test_gradients_do_not_depend_on_the_layout_in_memory():
    generator = torch.Generator().manual_seed(0)
    x, grad = torch.randn(2, 3, 4, 5, 6, generator=generator, dtype=torch.float64)
    found = []
    for of_x, of_grad in itertools.product(
        (torch.contiguous_format, torch.channels_last), repeat=2
    ):
        inputs = [x.clone(memory_format=of_x), double(-1.0), double(1.5)]
        out = discretize(*(tensor.requires_grad_() for tensor in inputs), 4, double(0.3))
        by_out = grad.contiguous(memory_format=of_grad)
        found.append([out, *torch.autograd.grad(out, inputs, by_out)])
    for other in found[1:]:
        torch.testing.assert_close(other, found[0])


def convolution_in(monkeypatch, most_bits: int) -> list[torch.Tensor]:
    """Output, gradients and curvatures of a layer; whole numbers are for up to `most_bits`."""
    monkeypatch.setattr(integers, "MOST_BITS", most_bits)
    generator = torch.Generator().manual_seed(1)
    layer = EWGSLayer(nn.Conv2d(16, 8, 3, stride=2, padding=1), 3, 2)
    for parameter in layer.layer.parameters():
        parameter.data.copy_(torch.randn(parameter.shape, generator=generator))
    x = torch.rand(64, 16, 16, 16, generator=generator).requires_grad_()
    layer.initialise(x.detach())
    layer.weight_quantizer.delta.fill_(0.1)
    out = layer(x)
    gradients = torch.autograd.grad(out.square().mean(), [x, *layer.parameters()])
    update_deltas(layer, [lambda: layer(x).square().mean()], torch.Generator(), draws=1)
    deltas = layer.weight_quantizer.delta, layer.activation_quantizer.delta
    assert all(deltas)
    return [out.detach(), *gradients, *deltas]


@pytest.mark.skipif(not integers.available(), reason="a build of torch without these kernels")
def test_whole_numbers_give_what_floats_give(monkeypatch):
    whole, floats = (convolution_in(monkeypatch, bits) for bits in (4, 0))
    assert not torch.equal(whole[0], floats[0])  # floats round: the two ways were two
    for found, expected in zip(whole, floats, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_a_wide_layer_with_a_forward_of_its_own_keeps_it():
    class Padded(nn.Conv2d):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return super().forward(nn.functional.pad(x, (0, 1, 0, 1)))

    layer = EWGSLayer(Padded(16, 8, 3), 2, 2)
    x = torch.rand(64, 16, 16, 16)
    layer.initialise(x)
    assert layer(x).shape == layer.layer(x).shape == (64, 8, 15, 15)


def two_layers() -> tuple[nn.Sequential, torch.Tensor]:
    generator = torch.Generator().manual_seed(3)
    first, second = nn.Linear(3, 4, bias=False), nn.Linear(4, 2, bias=False)
    model = nn.Sequential(EWGSLayer(first, 2, 2), nn.Tanh(), EWGSLayer(second, 2, 2)).double()
    for parameter in (first.weight, second.weight):
        parameter.data.copy_(torch.randn(parameter.shape, generator=generator))
    x = torch.rand(5, 3, generator=generator, dtype=torch.float64)
    with torch.no_grad():
        model[0].initialise(x)
        model[2].initialise(model[1](model[0](x)))
    return model, x


def exact_delta(of_tensor, tensor: torch.Tensor) -> float:
    """max(0, (Tr H / N) / (3 std G)) with the whole Hessian."""
    hessian = torch.autograd.functional.hessian(of_tensor, tensor)
    gradient = torch.autograd.functional.jacobian(of_tensor, tensor)
    trace = hessian.reshape(tensor.numel(), -1).trace() / tensor.numel()
    return max(0.0, float(trace / (3 * gradient.std())))


def test_deltas_agree_with_the_exact_hessian():
    model, x = two_layers()
    layer = model[2]
    targets = torch.tensor([0, 1, 0, 1, 1])

    def loss_from_output(output: torch.Tensor) -> torch.Tensor:
        return nn.functional.cross_entropy(3 * output, targets)

    with torch.no_grad():
        activation = layer.activation_quantizer(model[1](model[0](x)))
        weight = layer.weight_quantizer(layer.layer.weight)
        scale = layer.output_scale.abs()
    by_weight = exact_delta(lambda w: loss_from_output(scale * activation @ w.T), weight)
    by_activation = exact_delta(lambda a: loss_from_output(scale * a @ weight.T), activation)
    assert by_weight > 0
    assert by_activation > 0

    rng = torch.Generator().manual_seed(0)
    update_deltas(model, [lambda: loss_from_output(model(x))], rng, draws=4000)

    assert float(layer.weight_quantizer.delta) == pytest.approx(by_weight, rel=0.1)
    assert float(layer.activation_quantizer.delta) == pytest.approx(by_activation, rel=0.1)


def test_negative_curvature_leaves_a_straight_through_estimator():
    model, x = two_layers()
    rng = torch.Generator().manual_seed(0)
    update_deltas(model, [lambda: -model(x).square().mean()], rng, draws=200)
    assert float(model[2].weight_quantizer.delta) == 0


def test_looking_at_the_curvature_leaves_no_traces():
    model, x = two_layers()
    before = model(x)
    update_deltas(model, [lambda: model(x).square().mean()], torch.Generator(), draws=1)
    assert model[0].discretized is None
    assert all(parameter.grad is None for parameter in model.parameters())
    torch.testing.assert_close(model(x), before)  # delta acts on gradients only

"""EWGS's delta over several batches: the mean of their ratios, then nothing below zero."""

from collections.abc import Callable

import pytest
import torch
from torch import nn

from trainers.quantization import update_deltas
from trainers.quantization.ewgs import EWGSLayer, discretize

Loss = Callable[[], torch.Tensor]


@pytest.fixture
def layer() -> EWGSLayer:
    generator = torch.Generator().manual_seed(1)
    linear = nn.Linear(3, 4)
    for parameter in linear.parameters():
        parameter.data.copy_(torch.randn(parameter.shape, generator=generator))
    quantized = EWGSLayer(linear, 2, 2).double()
    quantized.initialise(inputs(0))
    return quantized


def inputs(seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(6, 3, generator=generator, dtype=torch.float64)


def squares(layer: EWGSLayer, seed: int, factor: float = 1.0) -> Loss:
    return lambda: factor * layer(inputs(seed)).square().mean()


def deltas(layer: EWGSLayer, losses: list[Loss], rng: torch.Generator) -> torch.Tensor:
    update_deltas(layer, losses, rng, draws=50)
    return torch.stack([layer.weight_quantizer.delta, layer.activation_quantizer.delta]).clone()


def seeded() -> torch.Generator:
    return torch.Generator().manual_seed(11)


def test_delta_is_the_mean_over_the_batches(layer):
    rng = seeded()  # one stream of signs for both, as when both are given at once
    apart = [deltas(layer, [squares(layer, seed)], rng) for seed in (0, 1)]
    assert (torch.stack(apart) > 0).all()
    together = deltas(layer, [squares(layer, seed) for seed in (0, 1)], seeded())
    torch.testing.assert_close(together, torch.stack(apart).mean(dim=0))


def test_the_mean_is_taken_before_the_clamp(layer):
    losses = [squares(layer, 0), squares(layer, 0, -1.0), squares(layer, 0, -1.0)]
    assert deltas(layer, losses, seeded()).tolist() == [0, 0]


def test_the_scale_of_the_loss_does_not_matter(layer):
    plain = deltas(layer, [squares(layer, 0)], seeded())
    torch.testing.assert_close(deltas(layer, [squares(layer, 0, 1000.0)], seeded()), plain)


def test_an_update_forgets_the_one_before(layer):
    first = deltas(layer, [squares(layer, 0)], seeded())
    deltas(layer, [squares(layer, 0, -1.0)], seeded())
    torch.testing.assert_close(deltas(layer, [squares(layer, 0)], seeded()), first)


def test_a_loss_that_fails_leaves_no_layer_looking_on(layer):
    def fail() -> torch.Tensor:
        layer(inputs(0))
        raise RuntimeError("no such batch")

    with pytest.raises(RuntimeError, match="no such batch"):
        update_deltas(layer, [fail], seeded())
    assert layer.discretized is None


def test_delta_pushes_a_value_to_where_its_gradient_wants_it():
    """Equation 5: a positive gradient counts more above its level than below it."""
    unit = torch.tensor([0.30, 0.36], dtype=torch.float64, requires_grad=True)  # level 1/3
    lower, upper, delta = (torch.tensor(v, dtype=torch.float64) for v in (0.0, 1.0, 0.5))
    discretize(unit, lower, upper, 4, delta).sum().backward()
    assert unit.grad[0] < 1 < unit.grad[1]


def test_a_fresh_layer_is_a_straight_through_estimator(layer):
    assert layer.weight_quantizer.delta == 0
    assert layer.activation_quantizer.delta == 0
    assert "weight_quantizer.delta" in layer.state_dict()

"""Every quantizer against its own formula, and what all of them promise."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from torch import Tensor, nn

from spaces.errors import UserError
from trainers.models import build_network
from trainers.quantization import (
    METHODS,
    QuantizationSpec,
    QuantizedLayer,
    Quantizer,
    calibrate,
    quantization_method,
    quantize,
    quantized_layers,
    quantizer_parameters,
    straight_through,
)
from trainers.quantization.dorefa import DoReFaActivations, DoReFaWeights
from trainers.quantization.dsq import DSQActivations, DSQWeights
from trainers.quantization.ewgs import WeightDiscretizer
from trainers.quantization.lsq import LSQActivations, LSQWeights
from trainers.quantization.minmax import MinMaxActivations, MinMaxWeights
from trainers.quantization.pact import PACTActivations

BITS = st.integers(2, 8)
SEEDS = st.integers(0, 10_000)
BUILT_IN = sorted(METHODS)


def tensor(seed: int, *shape: int, positive: bool = False) -> Tensor:
    x = torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return x.clamp_min(0) if positive else x


def initialised(quantizer: Quantizer, x: Tensor) -> Quantizer:
    quantizer.double()
    with torch.no_grad():
        quantizer.initialise(x)
    return quantizer.eval()


def gradients(quantizer: Quantizer, x: Tensor, of: str) -> tuple[Tensor, Tensor]:
    """Of the sum of squares, for x and for the parameter `of`."""
    x = x.clone().requires_grad_()
    quantizer(x).square().sum().backward()
    assert x.grad is not None
    return x.grad, getattr(quantizer, of).grad


@given(SEEDS, BITS)
@settings(max_examples=25, deadline=None)
def test_lsq_is_its_equations(seed, bits):
    weights = tensor(seed, 4, 3, 3, 3)
    low, high = -(2 ** (bits - 1)), 2 ** (bits - 1) - 1
    lsq = initialised(LSQWeights(bits), weights)
    step = lsq.step.item()
    assert step == pytest.approx(2 * float(weights.abs().mean()) / math.sqrt(high))
    position = weights / step
    q = position.clamp(low, high).round()
    torch.testing.assert_close(lsq(weights), q * step)
    by_x, by_step = gradients(lsq, weights, "step")
    inside = (position > low) & (position < high)
    torch.testing.assert_close(by_x, torch.where(inside, 2 * q * step, 0.0))
    slope = torch.where(inside, q - position, q)
    expected = (2 * q * step * slope).sum() / math.sqrt(weights.numel() * high)
    torch.testing.assert_close(by_step, expected)


def test_lsq_holds_signed_inputs_and_says_so_where_one_bit_cannot():
    assert initialised(LSQActivations(3), tensor(0, 5, 4)).lowest == -4
    assert initialised(LSQActivations(3), tensor(0, 5, 4, positive=True)).highest == 7
    with pytest.raises(UserError, match="negative inputs"):
        initialised(LSQActivations(1), tensor(0, 5, 4))


@given(SEEDS, BITS)
@settings(max_examples=25, deadline=None)
def test_pact_learns_its_clip(seed, bits):
    inputs = 4 * tensor(seed, 64, positive=True)
    pact = initialised(PACTActivations(bits), inputs)
    with torch.no_grad():
        pact.alpha.fill_(2.0)
    steps = 2**bits - 1
    expected = torch.round(inputs.clamp(0, 2) * steps / 2) * 2 / steps
    torch.testing.assert_close(pact(inputs), expected)
    by_x, by_alpha = gradients(pact, inputs, "alpha")
    clipped = inputs >= 2
    torch.testing.assert_close(by_alpha, (2 * expected[clipped]).sum())
    torch.testing.assert_close(by_x[~clipped & (inputs > 0)], 2 * expected[~clipped & (inputs > 0)])
    assert not by_x[clipped].any()


def test_pact_clips_signed_inputs_at_both_ends():
    pact = initialised(PACTActivations(4), torch.tensor([-3.0, 3.0], dtype=torch.float64))
    with torch.no_grad():
        pact.alpha.fill_(2.0)
    pact(torch.tensor([-5.0, -2.5, 0.1, 7.0], dtype=torch.float64)).sum().backward()
    assert pact.alpha.grad.item() == -1 - 1 + 1


@given(SEEDS, BITS)
@settings(max_examples=25, deadline=None)
def test_dorefa_is_its_equations_at_the_size_of_the_weights(seed, bits):
    weights = tensor(seed, 4, 3, 3, 3)
    dorefa = initialised(DoReFaWeights(bits), weights)
    squashed = torch.tanh(weights)
    unit = squashed / (2 * squashed.abs().max()) + 0.5
    steps = 2**bits - 1
    levels = 2 * torch.round(unit * steps) / steps - 1
    scale = weights.abs().mean() / levels.abs().mean()
    torch.testing.assert_close(dorefa(weights), scale * levels)
    x = weights.clone().requires_grad_()
    dorefa(x).sum().backward()
    expected = scale * (1 - squashed.square()) / squashed.abs().max()
    torch.testing.assert_close(x.grad, expected)


def test_dorefa_of_one_bit_is_the_sign_at_the_mean_size():
    weights = tensor(1, 4, 5)
    binary = initialised(DoReFaWeights(1), weights)(weights)
    torch.testing.assert_close(binary, weights.sign() * weights.abs().mean())


@given(SEEDS, BITS)
@settings(max_examples=25, deadline=None)
def test_dsq_steps_hard_and_learns_softly(seed, bits):
    weights = tensor(seed, 4, 3, 3, 3)
    dsq = initialised(DSQWeights(bits), weights)
    lower, upper = dsq.lower.item(), dsq.upper.item()
    width = (upper - lower) / (2**bits - 1)
    clamped = weights.clamp(lower, upper)
    expected = lower + width * torch.floor((clamped - lower) / width + 0.5)
    torch.testing.assert_close(dsq(weights), expected)
    x = weights.clone().requires_grad_()
    dsq(x).sum().backward()
    k = math.log(2 / 0.4 - 1) / width
    index = torch.floor((clamped - lower) / width).clamp(0, 2**bits - 2)
    middle = lower + (index + 0.5) * width
    slope = k * (1 - torch.tanh(k * (weights - middle)) ** 2) / math.tanh(k * width / 2)
    inside = (weights > lower) & (weights < upper)
    torch.testing.assert_close(x.grad, torch.where(inside, slope * width / 2, 0.0))

    def rising(low: float, high: float) -> float:
        """The sum with l and u changed, the sign as phi: first order in both."""
        step = (high - low) / (2**bits - 1)
        place = (weights.clamp(low, high) - low) / step - index - 0.5
        phi = torch.tanh(k * width * place) / math.tanh(k * width / 2)
        hard = (expected - lower) / width
        return float((low + step * hard + width * (index + (phi + 1) / 2)).sum())

    e = 1e-6
    by_lower = (rising(lower + e, upper) - rising(lower - e, upper)) / (2 * e)
    by_upper = (rising(lower, upper + e) - rising(lower, upper - e)) / (2 * e)
    assert dsq.lower.grad.item() == pytest.approx(by_lower, rel=1e-4, abs=1e-4)
    assert dsq.upper.grad.item() == pytest.approx(by_upper, rel=1e-4, abs=1e-4)


@given(SEEDS, BITS, st.booleans())
@settings(max_examples=25, deadline=None)
def test_minmax_covers_the_range_and_zero(seed, bits, per_channel):
    weights = tensor(seed, 4, 3, 3, 3)
    found = initialised(MinMaxWeights(bits, 4 if per_channel else None), weights)(weights)
    rows = list(weights) if per_channel else [weights]
    results = list(found) if per_channel else [found]
    for row, result in zip(rows, results, strict=True):
        step = (row.max() - row.min()) / (2**bits - 1)
        # The zero point is rounded, so that one end of the grid may lie half a step inside.
        assert (row - result).abs().max() <= step * 1.0001
        whole = result / step
        torch.testing.assert_close(whole, whole.round(), atol=1e-6, rtol=0)


def test_minmax_follows_the_inputs_it_is_trained_on_and_no_others():
    quantizer = initialised(MinMaxActivations(4), tensor(0, 8, 4))
    before = quantizer.highest.clone()
    quantizer(100 * torch.ones(2, 2, dtype=torch.float64))
    assert quantizer.highest == before
    quantizer.train()(100 * torch.ones(2, 2, dtype=torch.float64))
    torch.testing.assert_close(quantizer.highest, before + 0.1 * (100 - before))


WEIGHTS = [LSQWeights, DoReFaWeights, DSQWeights, MinMaxWeights, WeightDiscretizer]
ACTIVATIONS = [LSQActivations, DoReFaActivations, DSQActivations, MinMaxActivations]


@pytest.mark.parametrize("bits", [2, 3, 8])
@pytest.mark.parametrize("kind", WEIGHTS)
def test_weights_per_channel_are_as_if_each_channel_were_a_tensor(kind, bits):
    weights = tensor(3, 4, 3, 3, 3) * torch.tensor([0.01, 0.1, 1.0, 10.0]).view(4, 1, 1, 1)
    together = initialised(kind(bits, 4), weights)(weights)
    for row, found in zip(weights, together, strict=True):
        alone = initialised(kind(bits), row.unsqueeze(0))(row.unsqueeze(0))
        torch.testing.assert_close(found, alone[0])


@pytest.mark.parametrize("signed", [False, True])
@pytest.mark.parametrize("kind", [*ACTIVATIONS, PACTActivations])
def test_eight_bits_hardly_change_inputs_of_either_kind(kind, signed):
    x = tensor(2, 200, 5, positive=not signed)
    quantizer = initialised(kind(8), x)
    typical = x.abs() < 2  # beyond three deviations they may clip
    assert (quantizer(x) - x)[typical].abs().max() < 0.08  # half a step of LSQ at first


@pytest.fixture(scope="module")
def network() -> nn.Module:
    return build_network("resnet8", 10, width=4, seed=0)


@pytest.fixture(scope="module")
def inputs() -> Tensor:
    return torch.randn(16, 3, 16, 16, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("per_channel", [False, True])
@pytest.mark.parametrize("name", BUILT_IN)
def test_every_method_makes_a_student_of_few_levels_that_learns(network, inputs, name, per_channel):
    spec = QuantizationSpec(quantizer=name, per_channel=per_channel)
    student = quantize(network, spec)
    calibrate(student, inputs)
    for layer in quantized_layers(student):
        weight = layer.weight_quantizer(layer.layer.weight)
        rows = list(weight) if per_channel else [weight]
        assert max(row.unique().numel() for row in rows) <= 4
    targets = torch.arange(16) % 10
    optimizer = torch.optim.Adam(student.parameters(), lr=3e-3)
    losses = []
    for _ in range(25):
        loss = nn.functional.cross_entropy(student.train()(inputs), targets)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.85 * losses[0]
    learned = quantizer_parameters(student)
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in learned)


@pytest.mark.parametrize("name", BUILT_IN)
def test_a_saved_student_is_the_same_student(network, inputs, name):
    student = quantize(network, QuantizationSpec(quantizer=name))
    calibrate(student, inputs)
    again = quantize(network, QuantizationSpec(quantizer=name))
    again.load_state_dict(student.state_dict())
    assert torch.equal(again.eval()(inputs), student.eval()(inputs))


def test_bits_that_a_method_does_not_define_are_refused_by_name():
    with pytest.raises(ValidationError, match="lsq defines weight_bits from 2 to 8, got 1"):
        QuantizationSpec(quantizer="lsq", weight_bits=1)
    assert QuantizationSpec(quantizer="ewgs", activation_bits=1)


def test_an_unknown_method_is_refused_with_the_nearest():
    with pytest.raises(ValidationError, match="did you mean 'ewgs'"):
        QuantizationSpec(quantizer="ewsg")
    with pytest.raises(ValidationError, match="cannot be imported"):
        QuantizationSpec(quantizer="no_such_module:Layer")
    with pytest.raises(ValidationError, match="is not a QuantizedLayer"):
        QuantizationSpec(quantizer="math:pi")


@pytest.mark.parametrize(("choice", "bits"), [("keep", None), ("8 bits", 8), ("quantize", 2)])
def test_the_first_and_the_last_layer_become_what_was_chosen(network, inputs, choice, bits):
    student = quantize(network, QuantizationSpec(first_and_last=choice))
    calibrate(student, inputs)
    for layer in (student.conv1, student.classifier):
        found = layer.weight_quantizer.bits if isinstance(layer, QuantizedLayer) else None
        assert found == bits
    assert torch.isfinite(student(inputs)).all()


def test_depthwise_and_shared_layers_are_quantized_once():
    shared = nn.Conv2d(4, 4, 3, padding=1, groups=4)
    model = nn.Sequential(nn.Conv2d(3, 4, 1), shared, nn.ReLU(), shared, nn.Flatten())
    model.append(nn.Linear(4 * 36, 2))
    student = quantize(model, QuantizationSpec(per_channel=True))
    assert student[1] is student[3]
    assert len(quantized_layers(student)) == 1
    calibrate(student, torch.rand(8, 3, 6, 6))
    assert student(torch.rand(8, 3, 6, 6)).shape == (8, 2)


@pytest.mark.parametrize("name", BUILT_IN)
def test_channels_of_one_weight_are_quantized_together(name):
    layers = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, 1, groups=4), nn.Flatten(), nn.Linear(64, 2)
    student = quantize(nn.Sequential(*layers), QuantizationSpec(quantizer=name, per_channel=True))
    images = torch.randn(8, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    calibrate(student, images)
    assert torch.isfinite(student(images)).all()


def test_a_network_of_which_nothing_would_be_quantized_is_refused():
    two = nn.Sequential(nn.Conv2d(3, 4, 1), nn.Flatten(), nn.Linear(64, 2))
    with pytest.raises(UserError, match=r"of the network's 2 .* none would be quantized: set"):
        quantize(two, QuantizationSpec())
    with pytest.raises(UserError, match=r"no convolution .* and no linear layer"):
        quantize(nn.Sequential(nn.Flatten(), nn.BatchNorm1d(48)), QuantizationSpec())
    assert len(quantized_layers(quantize(two, QuantizationSpec(first_and_last="8 bits")))) == 2


@pytest.mark.parametrize(
    "layer", [nn.Conv1d(1, 1, 1), nn.ConvTranspose2d(1, 1, 1), nn.LSTM(2, 2)], ids=repr
)
def test_a_layer_that_nobody_knows_is_named(layer):
    model = nn.Sequential(nn.Conv2d(1, 1, 1), layer, nn.Linear(1, 1))
    with pytest.raises(UserError, match="layer '1' is a"):
        quantize(model, QuantizationSpec())


class Padded(nn.Conv2d):
    """As timm's Conv2dSame: a forward of its own, with the weights as they are."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(nn.functional.pad(x, (0, 1, 0, 1)))


class Standardised(nn.Conv2d):
    """As timm's StdConv2d."""

    def forward(self, x: Tensor) -> Tensor:
        return self._conv_forward(x, self.weight / self.weight.std(), self.bias)


class Reading(nn.Sequential):
    """As torchvision's Swin: it multiplies with the weights of a layer that it does not call."""

    def forward(self, x: Tensor) -> Tensor:
        return self[2](nn.functional.conv2d(self[0](x), self[1].weight).flatten(1))


def test_a_layer_with_a_forward_of_its_own_keeps_it():
    model = nn.Sequential(nn.Conv2d(3, 4, 1), Padded(4, 4, 2), nn.Flatten(), nn.Linear(144, 2))
    images = torch.randn(8, 3, 6, 6, generator=torch.Generator().manual_seed(0))
    spec = QuantizationSpec(quantizer="minmax", weight_bits=8, activation_bits=8)
    student = quantize(model, spec)
    calibrate(student, images)
    assert len(quantized_layers(student)) == 1
    torch.testing.assert_close(student(images), model(images), atol=0.02, rtol=0)


def test_weights_that_would_not_be_those_of_the_quantizer_are_refused():
    layers = nn.Conv2d(3, 4, 1), Standardised(4, 4, 1), nn.Linear(64, 2)
    with pytest.raises(UserError, match="layer '1' is a Standardised, which changes its weights"):
        quantize(nn.Sequential(*layers), QuantizationSpec())
    student = quantize(Reading(layers[0], nn.Conv2d(4, 4, 1), layers[2]), QuantizationSpec())
    with pytest.raises(UserError, match=r"takes the weights of Conv2d.* for a computation of its"):
        calibrate(student, torch.zeros(2, 3, 4, 4))


def test_somebody_elses_method_needs_thirty_lines(network, inputs):
    class Ternary(Quantizer):
        """-t, 0 or t, with t the mean size of the weights beyond half of it."""

        def forward(self, x: Tensor) -> Tensor:
            far = x.abs() > 0.5 * x.abs().mean()
            size = (x.abs() * far).sum() / far.sum()
            return straight_through(x.sign() * far * size, x)

    try:

        @quantization_method("ternary", weight_bits=(2, 2))
        class TernaryLayer(QuantizedLayer):
            weights = Ternary
            activations = LSQActivations

        student = quantize(network, QuantizationSpec(quantizer="ternary"))
        calibrate(student, inputs)
        layers = quantized_layers(student)
        assert all(isinstance(layer, TernaryLayer) for layer in layers)
        values = layers[0].weight_quantizer(layers[0].layer.weight).unique()
        assert values.numel() == 3
    finally:
        METHODS.pop("ternary")

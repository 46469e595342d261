"""What every bit width must keep."""

import pytest
import torch
from pydantic import ValidationError
from torch import nn

from trainers.models import build_network
from trainers.quantization import QuantizationSpec, calibrate, quantize, quantizer_parameters
from trainers.quantization.ewgs import EWGSLayer


@pytest.fixture(scope="module")
def network() -> nn.Module:
    return build_network("resnet8", 10, width=4, seed=0)


@pytest.fixture(scope="module")
def inputs() -> torch.Tensor:
    return torch.randn(16, 3, 16, 16, generator=torch.Generator().manual_seed(0))


def layers(model: nn.Module) -> list[EWGSLayer]:
    return [module for module in model.modules() if isinstance(module, EWGSLayer)]


@pytest.mark.parametrize("bits", range(1, 9))
def test_weights_and_activations_have_at_most_two_to_the_bits_values(network, inputs, bits):
    spec = QuantizationSpec(weight_bits=bits, activation_bits=9 - bits)
    student = quantize(network, spec)
    calibrate(student, inputs)
    student(inputs)
    for layer in layers(student):
        layer.discretized = []
    student(inputs)
    for layer in layers(student):
        weight, activation = layer.discretized
        assert 2 <= weight.unique().numel() <= 2**bits
        assert 2 <= activation.unique().numel() <= 2 ** (9 - bits)
        assert weight.abs().max() <= 1
        assert activation.min() >= 0


def test_the_first_and_the_last_layer_stay_and_the_original_is_untouched(network, inputs):
    state = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    student = quantize(network, QuantizationSpec())
    calibrate(student, inputs)
    assert isinstance(student.conv1, nn.Conv2d)
    assert isinstance(student.classifier, nn.Linear)
    assert len(layers(student)) == 6
    assert not layers(network)
    for name, tensor in network.state_dict().items():
        assert torch.equal(tensor, state[name])


def test_calibration_leaves_normalisation_alone_and_sets_every_bound(network, inputs):
    student = quantize(network, QuantizationSpec()).train()
    calibrate(student, inputs)
    assert student.training
    assert torch.equal(student.bn1.running_mean, network.bn1.running_mean)
    for layer in layers(student):
        for quantizer in (layer.weight_quantizer, layer.activation_quantizer):
            assert quantizer.lower < quantizer.upper
        assert layer.output_scale > 0


def test_a_dead_layer_still_calibrates_to_finite_numbers(network):
    student = quantize(network, QuantizationSpec())
    calibrate(student, torch.zeros(4, 3, 16, 16))
    assert torch.isfinite(student(torch.zeros(4, 3, 16, 16))).all()


def test_eight_bits_are_close_to_full_precision(network, inputs):
    network.eval()
    fine, coarse = (
        quantize(network, QuantizationSpec(weight_bits=b, activation_bits=b)).eval() for b in (8, 1)
    )
    errors = []
    for student in (fine, coarse):
        calibrate(student, inputs)
        errors.append((student(inputs) - network(inputs)).abs().mean().item())
    assert errors[0] < 0.25 * errors[1]


def test_five_scalars_per_layer_are_the_quantizers(network):
    student = quantize(network, QuantizationSpec())
    parameters = quantizer_parameters(student)
    assert len(parameters) == 5 * len(layers(student))
    assert all(parameter.numel() == 1 for parameter in parameters)


@pytest.mark.parametrize("bits", [0, 9, -2])
def test_bits_outside_one_to_eight_are_refused(bits):
    with pytest.raises(ValidationError, match="weight_bits"):
        QuantizationSpec(weight_bits=bits)

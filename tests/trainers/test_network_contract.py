"""What every network of ours must keep, whatever its depth and width."""

from itertools import pairwise

import pytest
import torch

from trainers.models import OWN, build_network
from trainers.models.network import RESNETS, VGGS

IMAGES = torch.randn(4, 3, 16, 16, generator=torch.Generator().manual_seed(0))


def parameters(model: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


@pytest.mark.parametrize(
    ("name", "count"),  # He et al. give 0.27, 0.46 and 0.85 millions
    [("resnet20", 269_722), ("resnet32", 464_154), ("resnet56", 853_018)],
)
def test_the_papers_networks_to_the_last_parameter(name, count):
    assert parameters(build_network(name, 10, seed=0)) == count


@pytest.mark.parametrize("width", [4, 5])
@pytest.mark.parametrize("name", RESNETS)
def test_parameters_of_a_resnet_by_the_formula(name, width):
    """Convolutions without bias, two numbers per normalised channel, a linear classifier."""
    blocks = (int(name.removeprefix("resnet")) - 2) // 6
    stages = [width, 2 * width, 4 * width]
    expected = 3 * width * 9 + 2 * width + stages[-1] * 7 + 7
    for inputs, outputs in zip([width, *stages], stages, strict=False):
        expected += (inputs + (2 * blocks - 1) * outputs) * outputs * 9 + 2 * blocks * 2 * outputs
    assert parameters(build_network(name, 7, width=width, seed=0)) == expected


@pytest.mark.parametrize("width", [4, 64])
@pytest.mark.parametrize("name", VGGS)
def test_parameters_of_a_vgg_by_the_formula(name, width):
    """Convolutions with bias, two numbers per normalised channel, a linear classifier. At the
    papers' width and 100 classes it is 3.97 and 9.46 millions, as the literature says."""
    channels = [3, *(factor * width for factor in (1, 2, 4, 8, 8))]
    repeats = {"vgg8": 0, "vgg13": 1}[name]
    expected = channels[-1] * 100 + 100
    for inputs, outputs in pairwise(channels):
        expected += (inputs + repeats * outputs) * outputs * 9 + (1 + repeats) * 3 * outputs
    assert parameters(build_network(name, 100, width=width, seed=0)) == expected


@pytest.mark.parametrize("name", RESNETS)
def test_weighted_layers_of_a_resnet_are_as_many_as_its_name_says(name):
    model = build_network(name, 10, width=4, seed=0)
    layers = [m for m in model.modules() if isinstance(m, torch.nn.Conv2d | torch.nn.Linear)]
    assert f"resnet{len(layers)}" == name


@pytest.mark.parametrize("name", OWN)
def test_every_weight_learns_and_an_image_in_eval_mode_does_not_depend_on_its_batch(name):
    model = build_network(name, 10, width=4, seed=0)
    model(IMAGES).square().sum().backward()
    for key, parameter in model.named_parameters():
        assert parameter.grad is not None
        assert bool(parameter.grad.any()), key
    model.eval()
    torch.testing.assert_close(model(IMAGES)[:1], model(IMAGES[:1]), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("name", OWN)
def test_without_a_width_it_is_the_papers(name):
    width = 16 if name in RESNETS else 64
    state = build_network(name, 10, seed=3).state_dict()
    for key, tensor in build_network(name, 10, width=width, seed=3).state_dict().items():
        assert torch.equal(state[key], tensor), key

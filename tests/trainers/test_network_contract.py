"""What every network must keep, whatever its depth and width."""

import typing

import pytest
import torch

from trainers.models import NetworkName, build_network

NETWORKS = typing.get_args(NetworkName)


@pytest.mark.parametrize(
    ("name", "count"),  # He et al. give 0.27, 0.46 and 0.85 millions
    [("resnet20", 269_722), ("resnet32", 464_154), ("resnet56", 853_018)],
)
def test_the_papers_networks_to_the_last_parameter(name, count):
    model = build_network(name, 10, width=16, seed=0)
    assert sum(parameter.numel() for parameter in model.parameters()) == count


@pytest.mark.parametrize("width", [4, 5])
@pytest.mark.parametrize("name", NETWORKS)
def test_parameters_by_the_formula(name, width):
    """Convolutions without bias, two numbers per normalised channel, a linear classifier."""
    blocks = (int(name.removeprefix("resnet")) - 2) // 6
    stages = [width, 2 * width, 4 * width]
    expected = 3 * width * 9 + 2 * width + stages[-1] * 7 + 7
    for inputs, outputs in zip([width, *stages], stages, strict=False):
        expected += (inputs + (2 * blocks - 1) * outputs) * outputs * 9 + 2 * blocks * 2 * outputs
    model = build_network(name, 7, width=width, seed=0)
    assert sum(parameter.numel() for parameter in model.parameters()) == expected


@pytest.mark.parametrize("name", NETWORKS)
def test_weighted_layers_are_as_many_as_the_name_says(name):
    model = build_network(name, 10, width=4, seed=0)
    layers = [m for m in model.modules() if isinstance(m, torch.nn.Conv2d | torch.nn.Linear)]
    assert f"resnet{len(layers)}" == name


@pytest.mark.parametrize("name", NETWORKS)
def test_every_weight_learns_and_an_image_in_eval_mode_does_not_depend_on_its_batch(name):
    model = build_network(name, 10, width=4, seed=0)
    images = torch.randn(4, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    model(images).square().sum().backward()
    assert all(p.grad is not None and bool(p.grad.any()) for p in model.parameters())
    model.eval()
    torch.testing.assert_close(model(images)[:1], model(images[:1]), atol=1e-5, rtol=1e-4)

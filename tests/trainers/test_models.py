"""The networks against the figures of their paper."""

import pytest
import torch

from trainers.models import build_network


@pytest.mark.parametrize(
    ("name", "millions"),  # table 6 of the paper
    [("resnet20", 0.27), ("resnet32", 0.46), ("resnet56", 0.85)],
)
def test_parameters_as_in_the_paper(name, millions):
    model = build_network(name, 10, width=16, seed=0)
    count = sum(parameter.numel() for parameter in model.parameters())
    assert count / 1e6 == pytest.approx(millions, abs=0.01)


@pytest.mark.parametrize("size", [(16, 16), (33, 20)])
def test_logits_for_any_image_size(size):
    model = build_network("resnet8", 7, width=4, seed=0)
    assert model(torch.randn(2, 3, *size)).shape == (2, 7)


def test_weights_depend_on_the_seed_alone():
    before = torch.random.get_rng_state()
    first, again, other = (build_network("resnet8", 10, width=4, seed=s) for s in (1, 1, 2))
    assert torch.equal(torch.random.get_rng_state(), before)
    assert torch.equal(first.conv1.weight, again.conv1.weight)
    assert not torch.equal(first.conv1.weight, other.conv1.weight)


def test_the_shortcut_has_no_parameters_and_keeps_what_it_carries():
    block = build_network("resnet8", 10, width=4, seed=0).blocks[1]
    torch.nn.init.zeros_(block.bn2.weight)
    block.eval()
    x = torch.rand(1, 4, 6, 6)
    out = block(x)
    assert out.shape == (1, 8, 3, 3)
    assert torch.equal(out[:, 2:6], x[:, :, ::2, ::2])
    assert not out[:, :2].any()
    assert not out[:, 6:].any()

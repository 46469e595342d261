"""Every row of the table of operations: its range and its rounding."""

import pytest
import torch
from torchvision.transforms.v2 import functional as F

from spaces import Chain, Operation, Policy, Range
from spaces.operations import OPERATIONS

WITH_MAGNITUDE = [name for name, kind in OPERATIONS.items() if kind.has_magnitude]


def images(count: int = 4, channels: int = 3) -> torch.Tensor:
    generator = torch.Generator().manual_seed(7)
    return torch.randint(0, 256, (count, channels, 9, 21), dtype=torch.uint8, generator=generator)


@pytest.mark.parametrize("name", WITH_MAGNITUDE)
def test_the_range_is_the_one_of_the_strengths(name):
    kind = OPERATIONS[name]
    assert (kind.at_strength(0.0), kind.at_strength(1.0)) == (kind.neutral, kind.strongest)
    assert set(kind.range) == {kind.neutral, kind.strongest}
    assert kind.unit
    assert kind.strength(kind.neutral) == 0
    assert kind.strength(kind.strongest) == 1


def test_bits_are_whole():
    bits = {OPERATIONS["posterize"].at_strength(tenth / 10) for tenth in range(11)}
    assert bits == {8.0, 7.0, 6.0, 5.0, 4.0, 3.0, 2.0}


def test_a_bin_between_two_whole_bits_is_rounded_as_torchvision_rounds():
    """TrivialAugment's 31 bins from 2 to 8 bits lie 0.2 bits apart."""
    between = Operation(name="posterize", magnitude=Range(low=5.8, high=5.8))
    policy = Policy(chains=(Chain(operations=(between,)),))
    out, _ = policy.augmenter(1)(images(), torch.zeros(4, dtype=torch.int64))
    assert torch.equal(out, F.posterize(images(), 6))


def test_operations_without_magnitude_have_no_unit_either():
    for name in set(OPERATIONS) - set(WITH_MAGNITUDE):
        kind = OPERATIONS[name]
        assert (kind.unit, kind.neutral, kind.strongest, kind.signed) == (None, None, None, False)

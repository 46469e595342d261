"""Every row of the table of operations: its range, its rounding, its kernel at every strength."""

import numpy as np
import pytest
import torch
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional as F

from spaces import Chain, Operation, Policy, Range
from spaces.kernels import Resampling
from spaces.operations import OPERATIONS

WITH_MAGNITUDE = [name for name, kind in OPERATIONS.items() if kind.has_magnitude]


def images(count: int = 4, channels: int = 3) -> torch.Tensor:
    generator = torch.Generator().manual_seed(7)
    return torch.randint(0, 256, (count, channels, 9, 21), dtype=torch.uint8, generator=generator)


def affine(image: torch.Tensor, resampling: Resampling, **moves: object) -> torch.Tensor:
    still = {"angle": 0.0, "translate": [0, 0], "scale": 1.0, "shear": [0.0, 0.0]}
    return F.affine(
        image,
        **still | moves,
        interpolation=resampling.interpolation,
        fill=[float(resampling.fill)],
    )


def slope(magnitude: float) -> float:
    return float(np.rad2deg(np.arctan(magnitude)))


# Written from the papers' words rather than from the kernels: image, magnitude, resampling.
EXPECTED = {
    "shear_x": lambda i, m, r: affine(i, r, shear=[slope(m), 0.0], center=[0, 0]),
    "shear_y": lambda i, m, r: affine(i, r, shear=[0.0, slope(m)], center=[0, 0]),
    "translate_x": lambda i, m, r: affine(i, r, translate=[int(m * 21), 0]),
    "translate_y": lambda i, m, r: affine(i, r, translate=[0, int(m * 9)]),
    "rotate": lambda i, m, r: F.rotate(i, m, r.interpolation, fill=[float(r.fill)]),
    "brightness": lambda i, m, _: F.adjust_brightness(i, 1 + m),
    "color": lambda i, m, _: F.adjust_saturation(i, 1 + m),
    "contrast": lambda i, m, _: F.adjust_contrast(i, 1 + m),
    "sharpness": lambda i, m, _: F.adjust_sharpness(i, 1 + m),
    "posterize": lambda i, m, _: F.posterize(i, int(np.rint(m))),
    "solarize": lambda i, m, _: F.solarize(i, min(m, 255)) if m <= 255 else i,
    "autocontrast": lambda i, _m, _: F.autocontrast(i),
    "equalize": lambda i, _m, _: F.equalize(i),
    "invert": lambda i, _m, _: F.invert(i),
    "identity": lambda i, _m, _: i,
}


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("interpolation", list(map(InterpolationMode, ("nearest", "bilinear"))))
@pytest.mark.parametrize("name", OPERATIONS)
def test_every_operation_at_every_strength_and_sign(name, interpolation, channels):
    kind, resampling = OPERATIONS[name], Resampling(interpolation, fill=77)
    magnitudes = np.linspace(kind.neutral, kind.strongest, 31) if kind.has_magnitude else [0.0]
    for magnitude in (m * s for m in magnitudes for s in ((1, -1) if kind.signed else (1,))):
        found = kind.kernel(images(channels=channels), float(magnitude), resampling)
        for image, one in zip(images(channels=channels), found, strict=True):
            expected = EXPECTED[name](image, float(magnitude), resampling)
            assert torch.equal(one, expected), magnitude


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

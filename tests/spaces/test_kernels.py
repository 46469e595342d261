"""Every operation against torchvision's own tensor path, on single images, to the last pixel."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torchvision.transforms import InterpolationMode, v2

from spaces.errors import UserError
from spaces.kernels import Resampling
from spaces.operations import OPERATIONS, TRIVIAL_AUGMENT_OPERATIONS, operation_kind

TORCHVISION = {
    "identity": "Identity",
    "shear_x": "ShearX",
    "shear_y": "ShearY",
    "translate_x": "TranslateX",
    "translate_y": "TranslateY",
    "rotate": "Rotate",
    "brightness": "Brightness",
    "color": "Color",
    "contrast": "Contrast",
    "sharpness": "Sharpness",
    "posterize": "Posterize",
    "solarize": "Solarize",
    "autocontrast": "AutoContrast",
    "equalize": "Equalize",
    "invert": "Invert",
}


def reference(
    image: torch.Tensor, name: str, magnitude: float, interpolation: InterpolationMode, fill: int
) -> torch.Tensor:
    """What torchvision's automatic augmentations do to one image (C, H, W) uint8."""
    if name == "translate_x":
        magnitude *= image.shape[-1]
    if name == "translate_y":
        magnitude *= image.shape[-2]
    if name == "posterize":
        magnitude = round(magnitude)
    if name == "solarize":  # torchvision takes a fraction there; the threshold itself is exact
        return v2.functional.solarize(image, magnitude)
    return v2.TrivialAugmentWide()._apply_image_or_video_transform(
        image, TORCHVISION[name], magnitude, interpolation=interpolation, fill={torch.Tensor: fill}
    )


@settings(max_examples=250, deadline=None)
@given(
    name=st.sampled_from(sorted(OPERATIONS)),
    strength=st.floats(0, 1),
    negative=st.booleans(),
    height=st.integers(4, 40),
    width=st.integers(4, 40),
    channels=st.sampled_from([1, 3]),
    interpolation=st.sampled_from([InterpolationMode.NEAREST, InterpolationMode.BILINEAR]),
    fill=st.sampled_from([0, 128]),
    seed=st.integers(0, 1000),
)
def test_equal_to_torchvision_on_single_images(
    name, strength, negative, height, width, channels, interpolation, fill, seed
):
    kind = OPERATIONS[name]
    magnitude = kind.at_strength(strength) if kind.has_magnitude else 0.0
    if name == "solarize":
        magnitude = min(magnitude, 255.0)  # torchvision refuses the threshold that inverts nothing
    if kind.signed and negative:
        magnitude = -magnitude
    generator = torch.Generator().manual_seed(seed)
    shape = (3, channels, height, width)
    images = torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)
    before = images.clone()

    out = kind.kernel(images, magnitude, Resampling(interpolation, fill))

    assert torch.equal(images, before)
    for image, found in zip(images, out, strict=True):
        expected = reference(image, name, magnitude, interpolation, fill)
        assert torch.equal(found, expected)


@pytest.mark.parametrize("name", [n for n, kind in OPERATIONS.items() if kind.has_magnitude])
def test_the_neutral_magnitude_changes_nothing_and_the_strongest_does(name):
    kind = OPERATIONS[name]
    images = torch.randint(0, 256, (2, 3, 16, 16), dtype=torch.uint8)
    assert torch.equal(kind.kernel(images, kind.neutral, Resampling()), images)
    assert not torch.equal(kind.kernel(images, kind.strongest, Resampling()), images)


@given(
    st.sampled_from([k for k in OPERATIONS.values() if k.has_magnitude and not k.whole]),
    st.floats(0, 1),
)
def test_strength_is_the_inverse_of_at_strength(kind, strength):
    assert kind.strength(kind.at_strength(strength)) == pytest.approx(strength, abs=1e-9)
    low, high = kind.range
    assert low <= kind.at_strength(strength) <= high


def test_the_fourteen_operations_of_trivial_augment():
    theirs = v2.TrivialAugmentWide._AUGMENTATION_SPACE
    assert {TORCHVISION[name] for name in TRIVIAL_AUGMENT_OPERATIONS} == set(theirs)
    for name in TRIVIAL_AUGMENT_OPERATIONS:
        assert OPERATIONS[name].signed == theirs[TORCHVISION[name]][1]


def test_an_unknown_operation_names_the_nearest_one():
    with pytest.raises(UserError, match="unknown operation 'rotat': did you mean 'rotate'"):
        operation_kind("rotat")

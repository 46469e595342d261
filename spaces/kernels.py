"""One kernel per operation: torchvision's own tensor functions with a physical magnitude.

Every kernel takes images (N, C, H, W) uint8 and one signed magnitude for all of them, and returns
new images of the same shape and type. torchvision.transforms.v2 on uint8 tensors is the reference,
so its functions are called as its automatic augmentations call them.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import UInt8
from torch import Tensor
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional as F

Images = UInt8[Tensor, "n c h w"]


@dataclass(frozen=True)
class Resampling:
    """How geometric operations fill what they cannot know."""

    interpolation: InterpolationMode = InterpolationMode.NEAREST
    fill: int = 0


Kernel = Callable[[Images, float, Resampling], Images]


def _affine(
    images: Images,
    resampling: Resampling,
    *,
    translate: tuple[int, int] = (0, 0),
    shear: tuple[float, float] = (0.0, 0.0),
    center: list[float] | None = None,
) -> Images:
    return F.affine(
        images,
        angle=0.0,
        translate=list(translate),
        scale=1.0,
        shear=list(shear),
        interpolation=resampling.interpolation,
        fill=float(resampling.fill),
        center=center,
    )


def _degrees(slope: float) -> float:
    return math.degrees(math.atan(slope))


def shear_x(images: Images, slope: float, resampling: Resampling) -> Images:
    """Rows slide by `slope` pixels per row, anchored at the top left corner."""
    return _affine(images, resampling, shear=(_degrees(slope), 0.0), center=[0.0, 0.0])


def shear_y(images: Images, slope: float, resampling: Resampling) -> Images:
    """Columns slide by `slope` pixels per column, anchored at the top left corner."""
    return _affine(images, resampling, shear=(0.0, _degrees(slope)), center=[0.0, 0.0])


def translate_x(images: Images, fraction: float, resampling: Resampling) -> Images:
    """Shifts by `fraction` of the width, cut to whole pixels as torchvision does."""
    return _affine(images, resampling, translate=(int(fraction * images.shape[-1]), 0))


def translate_y(images: Images, fraction: float, resampling: Resampling) -> Images:
    """Shifts by `fraction` of the height, cut to whole pixels as torchvision does."""
    return _affine(images, resampling, translate=(0, int(fraction * images.shape[-2])))


def rotate(images: Images, degrees: float, resampling: Resampling) -> Images:
    """Rotates counter-clockwise about the centre."""
    return F.rotate(
        images, degrees, interpolation=resampling.interpolation, fill=float(resampling.fill)
    )


def brightness(images: Images, change: float, _: Resampling) -> Images:
    """Blends with black: every value times 1 + `change`."""
    return F.adjust_brightness(images, 1.0 + change)


def color(images: Images, change: float, _: Resampling) -> Images:
    """Blends with the grey image; 1 + `change` = 0 is grey. One channel stays as it is."""
    return F.adjust_saturation(images, 1.0 + change)


def contrast(images: Images, change: float, _: Resampling) -> Images:
    """Blends with the image's mean grey."""
    return F.adjust_contrast(images, 1.0 + change)


def sharpness(images: Images, change: float, _: Resampling) -> Images:
    """Blends with the smoothed image."""
    return F.adjust_sharpness(images, 1.0 + change)


def posterize(images: Images, bits: float, _: Resampling) -> Images:
    """Keeps the highest `bits` bits of every value, rounded to whole bits."""
    return F.posterize(images, round(bits))


def solarize(images: Images, threshold: float, _: Resampling) -> Images:
    """Inverts every value at or above `threshold`; 256 inverts none."""
    return F.solarize(images, threshold) if threshold <= 255 else images.clone()


def autocontrast(images: Images, _magnitude: float, _: Resampling) -> Images:
    """Stretches every channel to the full range."""
    return F.autocontrast(images)


def equalize(images: Images, _magnitude: float, _: Resampling) -> Images:
    """Equalises every channel's histogram."""
    return F.equalize(images)


def invert(images: Images, _magnitude: float, _: Resampling) -> Images:
    """255 minus every value."""
    return F.invert(images)


def identity(images: Images, _magnitude: float, _: Resampling) -> Images:
    """Leaves the images as they are."""
    return torch.clone(images)

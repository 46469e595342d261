"""CutMix and MixUp on uint8 batches, with targets exact for the pixels that were kept."""

import math

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from spaces.policy import Mixing


def mix(
    images: UInt8[Tensor, "n c h w"],
    targets: Float[Tensor, "n k"],
    mixing: Mixing,
    rng: np.random.Generator,
) -> tuple[UInt8[Tensor, "n c h w"], Float[Tensor, "n k"]]:
    """Mixes every image with another of its batch; one lambda per batch.

    The partner is the image a drawn number of places further on, so none is its own partner in a
    batch of two or more. All draws are made even if the batch is left alone: policies that differ
    in probability then see the same luck.
    """
    coin, share = rng.random(), rng.beta(mixing.alpha, mixing.alpha)
    shift = int(rng.integers(1, max(len(images), 2)))
    corner = rng.random(2)
    if coin >= mixing.probability:
        return images, targets
    partners = images.roll(shift, dims=0)
    if mixing.name == "cutmix":
        images, share = _paste_box(images, partners, share, corner)
    else:
        images = _blend(images, partners, share)
    return images, share * targets + (1.0 - share) * targets.roll(shift, dims=0)


def _paste_box(
    images: Tensor, partners: Tensor, share: float, corner: np.ndarray
) -> tuple[Tensor, float]:
    """A box of about 1 - `share` of the area, cut at the border; returns the share really kept."""
    height, width = images.shape[-2:]
    side = math.sqrt(1.0 - share) / 2
    centre_y, centre_x = int(corner[0] * height), int(corner[1] * width)
    half_h, half_w = int(side * height), int(side * width)
    top, bottom = max(centre_y - half_h, 0), min(centre_y + half_h, height)
    left, right = max(centre_x - half_w, 0), min(centre_x + half_w, width)
    images = images.clone()
    images[..., top:bottom, left:right] = partners[..., top:bottom, left:right]
    return images, 1.0 - (bottom - top) * (right - left) / (height * width)


def _blend(images: Tensor, partners: Tensor, share: float) -> Tensor:
    mixed = torch.lerp(partners.float(), images.float(), share)
    return mixed.round_().to(torch.uint8)

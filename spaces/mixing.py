"""CutMix, MixUp and CutMixPick on uint8 batches, targets exact for the pixels that were kept."""

import math
from collections.abc import Callable

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from spaces import randomness
from spaces.draws import Ids, Key
from spaces.errors import UserError
from spaces.geometry import box_mask
from spaces.kernels import Numbers, upload
from spaces.policy import Mixing

Mixed = tuple[UInt8[Tensor, "n c h w"], Float[Tensor, "n k"]]
Teacher = Callable[[Tensor], Tensor]


def mix(
    images: UInt8[Tensor, "n c h w"],
    targets: Float[Tensor, "n k"],
    mixing: Mixing,
    ids: Ids,
    key: Key,
    *,
    teacher: Teacher | None = None,
) -> Mixed:
    """Mixes every image with another of its batch.

    The partner is the image a drawn number of places further on, so none is its own partner in a
    batch of two or more. Draws do not depend on the probability: policies that differ in it alone
    see the same luck. CutMixPick asks `teacher` for the logits of images uint8 and raises UserError
    where there is none; its rows are those of the mixtures that it kept.
    """
    if mixing.name == "cutmix_pick":
        return _picked(images, targets, mixing, ids, key, teacher=teacher)
    if mixing.per == "image":
        return _mixed_per_image(images, targets, mixing, ids, key)
    rng = randomness.generator(*key)
    coin, share = rng.random(), rng.beta(mixing.alpha, mixing.alpha)
    shift, corner = _shift(rng, len(images)), rng.random(2)
    if coin >= mixing.probability:
        return images, targets
    partners = images.roll(shift, dims=0)
    if mixing.name == "mixup":
        images = torch.lerp(partners.float(), images.float(), share).round_().to(torch.uint8)
    else:
        shares = np.array([share])
        edges, kept = cutmix_boxes(shares, corner[None], *images.shape[-2:])
        (top, left, bottom, right), share = edges[:, 0].tolist(), float(kept[0])
        images = images.clone()
        images[..., top:bottom, left:right] = partners[..., top:bottom, left:right]
    return images, share * targets + (1.0 - share) * targets.roll(shift, dims=0)


def _mixed_per_image(images: Tensor, targets: Tensor, mixing: Mixing, ids: Ids, key: Key) -> Mixed:
    """A lambda, a box and a coin for every image, a partner as far on as everybody's."""
    shift = _shift(randomness.generator(*key), len(images))
    own, other = randomness.gamma(ids, mixing.alpha, 2, *key, "share").T
    shares = own / (own + other)
    mixed = randomness.uniform(ids, *key, "coin") < mixing.probability
    partners = images.roll(shift, dims=0)
    if mixing.name == "mixup":
        shares = np.where(mixed, shares, 1.0)
        weight = upload(shares.astype(np.float32), images.device).view(-1, 1, 1, 1)
        images = torch.lerp(partners.float(), images.float(), weight).round_().to(torch.uint8)
    else:
        corners = randomness.uniforms(ids, *key, stages=("y", "x")).T
        edges, shares = cutmix_boxes(shares, corners, *images.shape[-2:])
        edges, shares = np.where(mixed, edges, 0), np.where(mixed, shares, 1.0)
        inside = box_mask(upload(edges, images.device), *images.shape[-2:])
        images = torch.where(inside.unsqueeze(1), partners, images)
    kept = upload(shares.astype(np.float32), images.device).unsqueeze(1)
    return images, kept * targets + (1.0 - kept) * targets.roll(shift, dims=0)


def _picked(
    images: Tensor,
    targets: Tensor,
    mixing: Mixing,
    ids: Ids,
    key: Key,
    *,
    teacher: Teacher | None,
) -> Mixed:
    if teacher is None:
        raise UserError("cutmix_pick asks the teacher: call the augmenter with teacher=FUNCTION")
    if randomness.generator(*key, "coin").random() >= mixing.probability:
        return images, targets
    assert mixing.keep is not None
    wanted = len(images)
    cutmix = mixing.model_copy(update={"name": "cutmix", "probability": 1.0})
    rounds = [
        mix(images, targets, cutmix, ids, (*key, index))
        for index in range(math.ceil(1 / mixing.keep))
    ]
    candidates = round(wanted / mixing.keep)
    mixtures = torch.cat([part for part, _ in rounds])[:candidates]
    labels = torch.cat([part for _, part in rounds])[:candidates]
    uncertain = entropy(teacher(mixtures)).topk(wanted).indices.sort().values
    return mixtures[uncertain], labels[uncertain]


def entropy(logits: Float[Tensor, "n k"]) -> Float[Tensor, " n"]:
    """The entropy of softmax(logits), nats."""
    log_p = torch.log_softmax(logits.float(), dim=1)
    return -(log_p.exp() * log_p).sum(dim=1)


def _shift(rng: np.random.Generator, count: int) -> int:
    return int(rng.integers(1, max(count, 2)))


def cutmix_boxes(
    shares: Numbers, corners: Numbers, height: int, width: int
) -> tuple[np.ndarray, Numbers]:
    """Boxes of about 1 - share of the area about a place drawn evenly, cut at the border.

    Returns top, left, bottom and right, int64 (4, N), and the share of pixels really kept, (N,).
    """
    side = np.sqrt(1.0 - shares) / 2
    first, last = [], []
    for axis, length in enumerate((height, width)):
        centre, half = (
            (corners[:, axis] * length).astype(np.int64),
            (side * length).astype(np.int64),
        )
        first.append(np.maximum(centre - half, 0))
        last.append(np.minimum(centre + half, length))
    covered = (last[0] - first[0]) * (last[1] - first[1])
    return np.stack([*first, *last]), 1.0 - covered / (height * width)

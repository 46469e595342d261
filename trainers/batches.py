"""Augmented batches of a data set that lies in memory."""

from collections.abc import Callable, Iterator

import numpy as np
import numpy.typing as npt
import torch
from jaxtyping import Float
from torch import Tensor

from spaces import PolicyAugment, randomness
from trainers.datasets import Labelled

AHEAD = 512  # images that are augmented together, where batches are smaller


def steps_per_epoch(count: int, repeats: int, batch_size: int) -> int:
    """Batches in one epoch; the last may be short."""
    return -(-count * repeats // batch_size)


def epoch_order(count: int, repeats: int, seed: int, epoch: int) -> npt.NDArray[np.int64]:
    """The sample ids of one epoch in order, (count * repeats,); modulo `count` they are images."""
    rng = randomness.generator(seed, epoch, "order")
    return np.concatenate([rng.permutation(count) + count * r for r in range(repeats)])


def augmented_batches(
    data: Labelled,
    augment: PolicyAugment,
    *,
    batch_size: int,
    repeats: int,
    seed: int,
    epoch: int,
    teacher: Callable[[Tensor], Tensor] | None = None,
) -> Iterator[tuple[Tensor, Float[Tensor, "n k"]]]:
    """One epoch: every image `repeats` times, in an order and with draws keyed by (seed, epoch).

    Yields images uint8 (N, C, H, W) and targets float32 (N, K). Each pass over the data is a
    permutation of its own, and every view of an image has a sample id of its own. Two policies with
    the same seed meet the same images in the same order with the same draws. `teacher` maps images
    uint8 to logits, for the mixing that asks it.
    """
    count = len(data.labels)
    order = epoch_order(count, repeats, seed, epoch)
    ahead = max(AHEAD // batch_size, 1) * batch_size
    for start in range(0, len(order), ahead):
        sample_ids = torch.from_numpy(order[start : start + ahead])
        some = data.take((sample_ids % count).to(data.labels.device))
        yield from augment.batches(
            some.images,
            some.labels,
            batch_size=batch_size,
            epoch=epoch,
            sample_ids=sample_ids,
            teacher=teacher,
        )

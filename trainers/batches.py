"""Augmented batches of a data set that lies in memory."""

from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from spaces import PolicyAugment, randomness
from trainers.datasets import Labelled

AHEAD = 512  # images that are augmented together, where batches are smaller


class Batch(NamedTuple):
    """Images uint8 (N, C, H, W), soft targets float32 (N, K), and rows (N,) of the data set: whose
    views the images are. A mixture has the row of the image that it started from."""

    images: Tensor
    targets: Tensor
    rows: Tensor


def steps_per_epoch(count: int, repeats: int, batch_size: int) -> int:
    """Batches in one epoch, of two images or more; the last may be short, or longer by one."""
    return max(-(-(count * repeats - 1) // batch_size), 1)


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
) -> Iterator[Batch]:
    """One epoch: every image `repeats` times, in an order and with draws keyed by (seed, epoch).

    Each pass over the data is a permutation of its own, and every view of an image has a sample id
    of its own. Two policies with the same seed meet the same images in the same order with the same
    draws. Where one image would be left for the last batch, the batch before takes it: batch norm
    cannot learn from one. `teacher` maps images uint8 to logits, for the mixing that asks it.
    """
    count = len(data.labels)
    order = torch.from_numpy(epoch_order(count, repeats, seed, epoch))
    for start, stop, size in _blocks(len(order), batch_size):
        sample_ids = order[start:stop]
        rows = (sample_ids % count).to(data.labels.device)
        some = data.take(rows)
        batches = augment.batches(
            some.images,
            some.labels,
            batch_size=size,
            epoch=epoch,
            sample_ids=sample_ids,
            teacher=teacher,
        )
        for (images, targets), whose in zip(batches, rows.split(size), strict=True):
            yield Batch(images, targets, whose)


def _blocks(images: int, batch_size: int) -> Iterator[tuple[int, int, int]]:
    """What is augmented together: from where to where, and in batches of which size."""
    one_more = batch_size + 1 if images > batch_size and images % batch_size == 1 else 0
    ahead = max(AHEAD // batch_size, 1) * batch_size
    for start in range(0, images - one_more, ahead):
        yield start, min(start + ahead, images - one_more), batch_size
    if one_more:
        yield images - one_more, images, one_more

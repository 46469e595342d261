"""The engine: one policy on a uint8 batch, every image with operations and magnitudes of its own.

It groups the images of a batch that drew the same operation at the same signed magnitude and runs
the kernel once per group. Draws are made on the host from stateless keys (randomness.py).
"""

from collections import defaultdict
from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
import torch
from jaxtyping import Float, Int64, UInt8
from torch import Tensor, nn
from torch.nn.functional import one_hot
from torch.utils.data import get_worker_info
from torchvision.transforms import InterpolationMode

from spaces import randomness
from spaces.kernels import Resampling
from spaces.mixing import mix
from spaces.operations import operation_kind
from spaces.policy import Operation, Policy, Range

Ids = npt.NDArray[np.int64]


class PolicyAugment(nn.Module):
    """Applies `policy` to batches: uint8 images in, uint8 images and soft targets out.

    Called with `epoch` and `sample_ids`, what the operations do to an image depends on (seed,
    epoch, sample id) alone; a mixing depends on the batch too, whose images it mixes.
    Called without, every call draws anew and the sequence of calls repeats itself from the same
    seed; in a DataLoader worker the worker's own seed, which torch renews per epoch, takes the
    place of `seed`.
    """

    def __init__(self, policy: Policy, *, num_classes: int, seed: int = 0) -> None:
        super().__init__()
        self.policy = policy.normalised()
        self.num_classes = num_classes
        self.seed = seed
        self._calls = 0
        self._resampling = Resampling(InterpolationMode(policy.interpolation), policy.fill)
        weights = np.array([chain.weight for chain in self.policy.chains])
        self._chain_ends = np.cumsum(weights / weights.sum())[:-1]

    def forward(
        self,
        images: Tensor,
        labels: Tensor,
        *,
        epoch: int | None = None,
        sample_ids: Int64[Tensor, " n"] | None = None,
    ) -> tuple[UInt8[Tensor, "n c h w"], Float[Tensor, "n k"]]:
        """Augments images (N, C, H, W) uint8, C 1 or 3, with labels (N,) int64.

        Returns new images and targets (N, num_classes) float32 whose rows sum to 1. Rows keep
        their order and the input is left as it is. Raises ValueError where images or labels are
        not of that shape and type (checked here: a user's loop runs no shape checker).
        """
        _check(images, labels, self.num_classes)
        ids = np.arange(len(images)) if sample_ids is None else sample_ids.numpy(force=True)
        worker = get_worker_info()
        seed = self.seed if worker is None or epoch is not None else worker.seed
        if epoch is None:
            epoch, self._calls = self._calls, self._calls + 1
        out = images.clone()
        for draw in range(self.policy.draws):
            self._apply_chains(out, ids, (seed, epoch, draw))
        targets = one_hot(labels, self.num_classes).to(torch.float32)
        if self.policy.mixing is not None:
            rng = randomness.generator(seed, epoch, int(ids[0]), "mixing")
            out, targets = mix(out, targets, self.policy.mixing, rng)
        return out, targets

    def _apply_chains(self, images: Tensor, ids: Ids, key: tuple[int, ...]) -> None:
        """Draws a chain per image and applies it in place, one position of all chains at a time."""
        chains = self.policy.chains
        chosen = np.searchsorted(
            self._chain_ends, randomness.uniform(ids, *key, "chain"), side="right"
        )
        for position in range(max(len(chain.operations) for chain in chains)):
            groups: dict[tuple[str, float], list[int]] = defaultdict(list)
            for index in np.unique(chosen):
                if position < len(chains[index].operations):
                    rows = np.flatnonzero(chosen == index)
                    operation = chains[index].operations[position]
                    for row, magnitude in _drawn(operation, rows, ids, (*key, position)):
                        groups[operation.name, magnitude].append(row)
            for (name, magnitude), members in groups.items():
                where = torch.tensor(members, device=images.device)
                kernel = operation_kind(name).kernel
                images[where] = kernel(images[where], magnitude, self._resampling)

    def extra_repr(self) -> str:
        return f"{self.policy}, num_classes={self.num_classes}, seed={self.seed}"


def _drawn(
    operation: Operation, rows: npt.NDArray[np.intp], ids: Ids, key: tuple[int, ...]
) -> Iterator[tuple[int, float]]:
    """(row, signed magnitude) for those of `rows` to which the operation is applied."""
    ids = ids[rows]
    applied = randomness.uniform(ids, *key, "probability") < operation.probability
    magnitudes = _magnitudes(operation, ids, key)
    if operation.kind.signed:
        magnitudes = np.where(randomness.uniform(ids, *key, "sign") < 0.5, -magnitudes, magnitudes)
    yield from zip(rows[applied].tolist(), magnitudes[applied].tolist(), strict=True)


def _magnitudes(operation: Operation, ids: Ids, key: tuple[int, ...]) -> npt.NDArray[np.float64]:
    magnitude = operation.magnitude
    if isinstance(magnitude, Range):
        bins = np.linspace(magnitude.low, magnitude.high, magnitude.bins)
        drawn = randomness.uniform(ids, *key, "magnitude") * magnitude.bins
        return bins[drawn.astype(np.intp)]
    return np.full(len(ids), 0.0 if magnitude is None else magnitude)


def _check(images: Tensor, labels: Tensor, num_classes: int) -> None:
    if images.dtype != torch.uint8 or images.ndim != 4:
        raise ValueError(
            f"images must be uint8 of shape (N, C, H, W), got {images.dtype} {tuple(images.shape)}"
        )
    if images.shape[1] not in (1, 3):
        raise ValueError(f"images must have 1 or 3 channels, got {images.shape[1]}")
    if labels.shape != images.shape[:1] or labels.dtype != torch.int64:
        raise ValueError(
            f"labels must be int64 of shape ({len(images)},), got {labels.dtype} "
            f"{tuple(labels.shape)}"
        )
    if len(labels) == 0:
        raise ValueError("the batch is empty")
    if not labels.is_cuda and not 0 <= int(labels.min()) <= int(labels.max()) < num_classes:
        raise ValueError(
            f"labels must lie in 0..{num_classes - 1}, got {int(labels.min())}..{int(labels.max())}"
        )

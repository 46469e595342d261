"""The engine: one policy on a uint8 batch, every image with operations and magnitudes of its own.

What is drawn is drawn on the host (draws.py). The images are then sorted by operation, and each
kernel gets its images at once, with a magnitude for each of them.
"""

import logging
import math
import operator
from collections.abc import Iterator
from typing import Any, SupportsIndex

import numpy as np
import numpy.typing as npt
import torch
from jaxtyping import Float, Int64, UInt8
from torch import Tensor, nn
from torch.utils.data import get_worker_info
from torchvision.transforms import InterpolationMode

from spaces import randomness
from spaces.draws import NO_PLACES, NOTHING, Ids, Key, Program, places
from spaces.errors import UserError
from spaces.geometry import warped, warps_together
from spaces.kernels import Drawn, Images, InOrder, Resampling, per_image
from spaces.mixing import Teacher, mix
from spaces.operations import PIXELS
from spaces.policy import Policy

# Bytes of images that are sorted at once, and what one call of a kernel gets of them: what it needs
# in floats stays in the cache of a core, and in a small part of a GPU's memory.
CHUNK = {"cpu": 16 * 2**20, "cuda": 64 * 2**20}
BLOCK = {"cpu": 2**19, "cuda": 64 * 2**20}

Batch = tuple[UInt8[Tensor, "n c h w"], Float[Tensor, "n k"]]

log = logging.getLogger("augury")


class PolicyAugment(nn.Module):
    """Applies `policy` to batches: uint8 images in, uint8 images and soft targets out.

    Called with `epoch` and `sample_ids`, what the operations do to an image depends on (seed,
    epoch, sample id) alone; a mixing depends on the batch too, whose images it mixes. Sample ids
    default to places in the batch, so give them wherever an epoch has more batches than one.
    Called without either, every call draws anew and the sequence of calls repeats itself from the
    same seed; in a DataLoader worker the worker's own seed, which torch renews per epoch, takes
    the place of `seed`.

    Beside its input and output it needs memory for some float copies of half a MiB of images (of
    64 MiB on a GPU), of 16 MiB where a policy blends, and up to 48 MiB per process and image size
    for index maps.
    """

    def __init__(self, policy: Policy, *, num_classes: int, seed: int = 0) -> None:
        if num_classes < 1:
            raise ValueError(f"num_classes must be 1 or more, got {num_classes}")
        super().__init__()
        self.policy = policy.normalised()
        self.num_classes = num_classes
        self.seed = seed
        self._calls = 0
        self._said_size: tuple[int, int] | None = policy.image_size
        self._resampling = Resampling(InterpolationMode(policy.interpolation), policy.fill)
        self._base = Program((self.policy.base,))
        self._program = Program(self.policy.chains)

    # Drawn on the host: nothing for a compiler to see through.
    @torch.compiler.disable  # type: ignore[untyped-decorator]
    @torch.no_grad()
    def forward(
        self,
        images: Tensor,
        labels: Tensor,
        *,
        epoch: SupportsIndex | None = None,
        sample_ids: Int64[Tensor, " n"] | None = None,
        teacher: Teacher | None = None,
    ) -> Batch:
        """Augments images (N, C, H, W) uint8, C 1 or 3, with labels (N,) int64.

        Returns new images and targets (N, num_classes) float32 whose rows sum to 1. Rows keep
        their order and the input is left as it is. `teacher` maps images uint8 to logits (N, K);
        CutMixPick alone asks for it. Raises ValueError where images, labels or sample ids are not
        of that shape and type, and UserError where the policy is not meant for images of this size.
        """
        (batch,) = self.batches(
            images,
            labels,
            batch_size=max(len(images), 1),
            epoch=epoch,
            sample_ids=sample_ids,
            teacher=teacher,
        )
        return batch

    @torch.no_grad()
    def batches(
        self,
        images: Tensor,
        labels: Tensor,
        *,
        batch_size: int,
        epoch: SupportsIndex | None = None,
        sample_ids: Int64[Tensor, " n"] | None = None,
        teacher: Teacher | None = None,
    ) -> Iterator[Batch]:
        """Augments all images at once and mixes them in batches of `batch_size`, the last short.

        With `epoch` and `sample_ids` these are the batches that one call for each of them returns,
        for less: a call for 64 small images takes mostly what every call takes. Takes and raises
        what a call does.
        """
        if sample_ids is None:
            sample_ids = torch.arange(len(images))
        _check(images, labels, sample_ids, self.num_classes)
        self._check_size(images.shape[-2:])
        ids = sample_ids.numpy(force=True)
        key = self._key(epoch)
        out = self._in_chunks(images, ids, key)
        targets = torch.zeros(len(labels), self.num_classes, device=labels.device)
        targets.scatter_(1, labels.unsqueeze(1), 1.0)
        for start in range(0, len(images), batch_size):
            part = slice(start, start + batch_size)
            batch = out[part], targets[part]
            if self.policy.mixing is not None:
                mixing_key = (*key, int(ids[start]), "mixing")
                batch = mix(*batch, self.policy.mixing, ids[part], mixing_key, teacher=teacher)
            yield batch

    def _key(self, epoch: SupportsIndex | None) -> tuple[int, int]:
        """Seed and epoch of a call; without an epoch the calls are counted."""
        if epoch is not None:
            return self.seed, operator.index(epoch)
        worker = get_worker_info()
        self._calls += 1
        return self.seed if worker is None else worker.seed, self._calls - 1

    def _in_chunks(self, images: Images, ids: Ids, key: Key) -> Images:
        out = torch.empty_like(images, memory_format=torch.contiguous_format)
        for part in _blocks(0, len(images), _rows_of(images, CHUNK)):
            self._augment(images[part].contiguous(), out[part], ids[part], key)
        return out

    def _augment(self, images: Images, out: Images, ids: Ids, key: Key) -> None:
        """Base and chains, from `images` into `out`."""
        images = self._run(self._base, images, out, ids, (*key, "base"))
        blend = self.policy.blend
        if blend is None:
            done = self._run_draws(images, out, ids, key)
        else:
            weights = blend_weights(blend.width, blend.alpha, ids, key)
            mixed = images * per_image(weights[:, 0], images)
            other = torch.empty_like(images)
            for version in range(blend.width):
                found = self._run_draws(images, other, ids, (*key, "version", version))
                mixed += per_image(weights[:, version + 1], images) * found
            done = mixed
        if done is not out:
            out.copy_(done)

    def _run_draws(self, images: Images, out: Images, ids: Ids, key: Key) -> Images:
        most, fewest = self.policy.draws, self.policy.min_draws or self.policy.draws
        for draw in range(most):
            wanted = None
            if draw >= fewest:
                more = randomness.uniform(ids, *key, "depth") * (most - fewest + 1)
                wanted = more >= draw - fewest + 1
            images = self._run(self._program, images, out, ids, (*key, draw), wanted=wanted)
        return images

    def _run(
        self,
        program: Program,
        images: Images,
        out: Images,
        ids: Ids,
        key: Key,
        *,
        wanted: npt.NDArray[np.bool_] | None = None,
    ) -> Images:
        """Draws a chain per image and applies it, one position of all chains at a time.

        Returns `out`, which may be `images`; where there is nothing to do, `images` as they are.
        """
        if program.length == 0:
            return images
        chosen = program.choose(ids, key)
        if wanted is not None:
            chosen = np.where(wanted, chosen, NOTHING)
        rows = _rows_of(images, BLOCK)
        together = warps_together(images, self._resampling)
        alone = len(program.kinds) - (len(program.moves) if together else 0)
        for position in range(program.length):
            now = (*key, position)
            kinds, magnitudes = program.step(chosen, position, ids, now)
            order = np.argsort(kinds, kind="stable")
            kinds, magnitudes = kinds[order], magnitudes[order]
            source, target = InOrder(images, order), InOrder(out, order)
            starts = np.searchsorted(kinds, np.arange(len(program.kinds) + 1)).tolist()
            if images is not out:  # NOTHING sorts first
                target[: starts[0]] = source[: starts[0]]
            for kind, start, stop in zip(program.kinds[:alone], starts, starts[1:], strict=False):
                for block in _blocks(start, stop, rows):
                    placed = places(kind, ids[order[block]], now) if kind.places else NO_PLACES
                    drawn = Drawn(magnitudes[block], placed, self._resampling)
                    target[block] = kind.kernel(source[block], drawn)
            for block in _blocks(starts[alone], len(images), rows):
                moves = [*map(program.moves.__getitem__, (kinds[block] - alone).tolist())]
                drawn = Drawn(magnitudes[block], NO_PLACES, self._resampling)
                target[block] = warped(source[block], drawn, moves)
            images = out
        return out

    def _check_size(self, size: torch.Size) -> None:
        """Says once what a policy that was found at another size does at this one."""
        height, width = size
        if self._said_size in (None, (height, width)):
            return
        found = "{}x{}".format(*self._said_size)
        if any(kind.unit == PIXELS for kind in (*self._base.kinds, *self._program.kinds)):
            raise UserError(
                f"policy {str(self.policy)!r} was found at {found} pixels and has magnitudes in "
                f"pixels, which mean something else at {height}x{width}"
            )
        log.warning(
            "policy %r was found at %s pixels; at %dx%d its fractions of the side are scaled",
            str(self.policy),
            found,
            height,
            width,
        )
        self._said_size = (height, width)

    def extra_repr(self) -> str:
        return f"{self.policy}, num_classes={self.num_classes}, seed={self.seed}"


def _blocks(start: int, stop: int, rows: int) -> list[slice]:
    return [slice(first, min(first + rows, stop)) for first in range(start, stop, rows)]


def _rows_of(images: Images, size: dict[str, int]) -> int:
    """How many images fit into that many bytes, one at least."""
    return max(size.get(images.device.type, size["cpu"]) // math.prod(images.shape[1:]), 1)


def blend_weights(width: int, alpha: float, ids: Ids, key: Key) -> npt.NDArray[np.float64]:
    """AugMix's weights, (N, 1 + width): of the image itself and of each version; rows sum to 1.

    The image's own share is from Beta(alpha, alpha), the others divide the rest as
    Dirichlet(alpha, ...): both are Gamma variables over their sum.
    """
    own, rest = randomness.gamma(ids, alpha, 2, *key, "blend").T
    versions = randomness.gamma(ids, alpha, width, *key, "versions")
    share = own / (own + rest)
    others = (1 - share)[:, None] * versions / versions.sum(axis=1, keepdims=True)
    return np.concatenate([share[:, None], others], axis=1)


def _check(images: Any, labels: Any, sample_ids: Any, num_classes: int) -> None:
    # A user's loop runs no type checker, and whoever has numpy arrays is to read of tensors.
    if not _is_tensor(images, torch.uint8) or images.ndim != 4:
        raise ValueError(
            f"images must be a uint8 tensor of shape (N, C, H, W), got {_in_words(images)}"
        )
    if images.shape[1] not in (1, 3):
        raise ValueError(f"images must have 1 or 3 channels, got {images.shape[1]}")
    if 0 in images.shape:
        what = "the batch is empty" if len(images) == 0 else "the images have no pixels"
        raise ValueError(f"{what}: images of shape {tuple(images.shape)}")
    for name, numbers in (("labels", labels), ("sample_ids", sample_ids)):
        if not _is_tensor(numbers, torch.int64) or numbers.shape != images.shape[:1]:
            raise ValueError(
                f"{name} must be an int64 tensor of shape ({len(images)},), got "
                f"{_in_words(numbers)}"
            )
    if not labels.is_cuda and not 0 <= int(labels.min()) <= int(labels.max()) < num_classes:
        raise ValueError(
            f"labels must lie in 0..{num_classes - 1}, got {int(labels.min())}..{int(labels.max())}"
        )


def _is_tensor(value: Any, dtype: torch.dtype) -> bool:
    return isinstance(value, Tensor) and value.dtype == dtype


def _in_words(value: Any) -> str:
    if isinstance(value, Tensor):
        return f"{value.dtype} {tuple(value.shape)}"
    return f"{type(value).__module__}.{type(value).__qualname__}".removeprefix("builtins.")

"""What happens to which image: chains, operations and magnitudes, drawn on the host from keys."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from spaces import randomness
from spaces.geometry import MOVES
from spaces.operations import OperationKind
from spaces.policy import Chain, Operation, Range

Ids = npt.NDArray[np.int64]
Key = tuple[int | str, ...]
NOTHING = -1
NO_PLACES = np.empty((0, 0))


class Program:
    """A weighted choice among chains, as tables that are looked up for a whole batch at once."""

    def __init__(self, chains: Sequence[Chain]) -> None:
        weights = np.array([chain.weight for chain in chains])
        self._chain_ends = np.cumsum(weights / weights.sum())[:-1]
        operations = list(dict.fromkeys(o for chain in chains for o in chain.operations))
        # Warps last, so that they lie together in a batch that is sorted by kind.
        kinds = dict.fromkeys(o.kind for o in operations)
        self.kinds = sorted(kinds, key=lambda kind: kind.kernel in MOVES)
        self.moves = [MOVES[kind.kernel] for kind in self.kinds if kind.kernel in MOVES]
        self.length = max(len(chain.operations) for chain in chains)
        # The row after the last is for images that no chain was chosen for: index NOTHING.
        self._operation_at = np.full((len(chains) + 1, self.length), NOTHING)
        for row, chain in enumerate(chains):
            for column, operation in enumerate(chain.operations):
                self._operation_at[row, column] = operations.index(operation)
        self._probability = np.array([o.probability for o in operations])
        self._signed = np.array([o.kind.signed for o in operations])
        # In 16 bits, which numpy sorts by their digits.
        self._kind = np.array([self.kinds.index(o.kind) for o in operations], dtype=np.int16)
        values = [_values(o) for o in operations]
        self._bins = np.array([len(v) for v in values])
        self._magnitude = np.zeros((len(operations), max(self._bins, default=1)))
        for row, value in enumerate(values):
            self._magnitude[row, : len(value)] = value

    def choose(self, ids: Ids, key: Key) -> npt.NDArray[np.intp]:
        """A chain per image."""
        if len(self._chain_ends) == 0:
            return np.zeros(len(ids), dtype=np.intp)
        return np.searchsorted(
            self._chain_ends, randomness.uniform(ids, *key, "chain"), side="right"
        )

    def step(
        self, chosen: npt.NDArray[np.intp], position: int, ids: Ids, key: Key
    ) -> tuple[npt.NDArray[np.int16], npt.NDArray[np.float64]]:
        """Which of `kinds` is applied to each image, or NOTHING, and at what signed magnitude."""
        operation = self._operation_at[chosen, position]
        applied = operation != NOTHING
        stages = "probability", "magnitude", "sign"
        coin, place, sign = randomness.uniforms(ids, *key, stages=stages)
        applied &= coin < self._probability[operation]
        bins = (place * self._bins[operation]).astype(np.intp)
        magnitudes = self._magnitude[operation, bins]
        negative = self._signed[operation] & (sign < 0.5)
        magnitudes = np.where(negative, -magnitudes, magnitudes)
        return np.where(applied, self._kind[operation], NOTHING), magnitudes


def places(kind: OperationKind, ids: Ids, key: Key) -> npt.NDArray[np.float64]:
    """The numbers from [0, 1) that place boxes and crops, float64 (N, kind.places)."""
    return randomness.uniforms(ids, *key, kind.name, stages=range(kind.places)).T


def _values(operation: Operation) -> npt.NDArray[np.float64]:
    magnitude = operation.magnitude
    if isinstance(magnitude, Range):
        return np.linspace(magnitude.low, magnitude.high, magnitude.bins)
    return np.array([0.0 if magnitude is None else magnitude])

"""Draws that depend on their key and on nothing else.

Every random decision names what it is for, (seed, epoch, sample id, stage), and hashes that into a
number. Two candidates therefore meet the same luck, a resumed run repeats itself, and the order in
which batches, workers or trials run does not matter. The mixing function is SplitMix64's finaliser
(Steele, Lea, Flood: Fast splittable pseudorandom number generators, OOPSLA 2014).
"""

import hashlib
import operator
from collections.abc import Sequence
from functools import lru_cache, reduce

import numpy as np
import numpy.typing as npt

_GOLDEN, _FIRST, _SECOND = 0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB
_WORD = 2**64 - 1


def key(*parts: int | str) -> int:
    """A 64-bit key for `parts`; the same in every process and on every machine."""
    return reduce(_extended, parts, 0)


def _extended(state: int, part: int | str) -> int:
    # Plain integers: numpy takes ten times as long over a single number.
    state = (state ^ _as_word(part)) + _GOLDEN & _WORD
    state = (state ^ state >> 30) * _FIRST & _WORD
    state = (state ^ state >> 27) * _SECOND & _WORD
    return state ^ state >> 31


def uniform(sample_ids: npt.NDArray[np.int64], *parts: int | str) -> npt.NDArray[np.float64]:
    """One number in [0, 1) per sample id, shape (N,), float64, from (sample id, *parts)."""
    return _fractions(np.uint64(key(*parts)), sample_ids)


def uniforms(
    sample_ids: npt.NDArray[np.int64], *parts: int | str, stages: Sequence[int | str]
) -> npt.NDArray[np.float64]:
    """A row of `uniform` for each of `stages`, which end its key: (len(stages), N)."""
    common = key(*parts)
    keys = np.array([_extended(common, stage) for stage in stages], dtype=np.uint64)
    return _fractions(keys[:, None], sample_ids)


def gamma(
    sample_ids: npt.NDArray[np.int64], shape: float, count: int, *parts: int | str
) -> npt.NDArray[np.float64]:
    """`count` Gamma(shape, 1) variables per sample id, (N, count): over their sum they are
    Dirichlet(shape, ...), two of them Beta(shape, shape)."""
    from scipy.special import gammaincinv  # a tenth of a second that few policies need

    draws = uniforms(sample_ids, *parts, stages=range(count)).T
    # A draw of exactly 0 would make a sum of zeros possible.
    return gammaincinv(shape, np.maximum(draws, 2.0**-53))


def generator(*parts: int | str) -> np.random.Generator:
    """A generator for draws that one number cannot give: permutations, Beta variables."""
    return np.random.Generator(np.random.Philox(key=key(*parts)))


def _fractions(
    keys: np.uint64 | npt.NDArray[np.uint64], sample_ids: npt.NDArray[np.int64]
) -> npt.NDArray[np.float64]:
    words = _mixed(keys ^ _mixed(sample_ids.astype(np.uint64)))
    return (words >> np.uint64(11)).astype(np.float64) * 2.0**-53


def _mixed(words: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    words = words + np.uint64(_GOLDEN)  # modulo 2^64 is the algorithm, not an accident
    words ^= words >> np.uint64(30)
    words *= np.uint64(_FIRST)
    words ^= words >> np.uint64(27)
    words *= np.uint64(_SECOND)
    return words ^ (words >> np.uint64(31))


@lru_cache(maxsize=4096)
def _as_word(part: int | str) -> int:
    if not isinstance(part, str):
        return operator.index(part) % 2**64
    return int.from_bytes(hashlib.blake2b(part.encode(), digest_size=8).digest(), "big")

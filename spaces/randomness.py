"""Draws that depend on their key and on nothing else.

Every random decision names what it is for, (seed, epoch, sample id, stage), and hashes that into a
number. Two candidates therefore meet the same luck, a resumed run repeats itself, and the order in
which batches, workers or trials run does not matter. The mixing function is SplitMix64's finaliser
(Steele, Lea, Flood: Fast splittable pseudorandom number generators, OOPSLA 2014).
"""

import hashlib
from functools import lru_cache

import numpy as np
import numpy.typing as npt

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_FIRST = np.uint64(0xBF58476D1CE4E5B9)
_SECOND = np.uint64(0x94D049BB133111EB)


def key(*parts: int | str) -> int:
    """A 64-bit key for `parts`; the same in every process and on every machine."""
    state = np.zeros(1, dtype=np.uint64)
    for part in parts:
        state = _mixed(state ^ np.uint64(_as_word(part)))
    return int(state[0])


def uniform(sample_ids: npt.NDArray[np.int64], *parts: int | str) -> npt.NDArray[np.float64]:
    """One number in [0, 1) per sample id, shape (N,), float64, from (sample id, *parts)."""
    words = _mixed(np.uint64(key(*parts)) ^ _mixed(sample_ids.astype(np.uint64)))
    return (words >> np.uint64(11)).astype(np.float64) * 2.0**-53


def generator(*parts: int | str) -> np.random.Generator:
    """A generator for draws that one number cannot give: permutations, Beta variables."""
    return np.random.Generator(np.random.Philox(key=key(*parts)))


def _mixed(words: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    words = words + _GOLDEN  # arithmetic modulo 2^64 is the algorithm, not an accident
    words = (words ^ (words >> np.uint64(30))) * _FIRST
    words = (words ^ (words >> np.uint64(27))) * _SECOND
    return words ^ (words >> np.uint64(31))


@lru_cache(maxsize=4096)
def _as_word(part: int | str) -> int:
    if isinstance(part, int):
        return part % 2**64
    return int.from_bytes(hashlib.blake2b(part.encode(), digest_size=8).digest(), "big")

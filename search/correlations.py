"""Rank correlations with bootstrap intervals: how well one figure orders policies by another."""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import rankdata

from spaces import randomness

RESAMPLES = 1000
CONFIDENCE = 0.95
FEWEST = 4  # policies: the ranks of three can agree by chance one time in six

Floats = NDArray[np.float64]
Interval = tuple[float, float]


@dataclass(frozen=True)
class Correlation:
    """Spearman's and Kendall's (tau-b) coefficients over `count` pairs, each with the interval that
    holds the middle `CONFIDENCE` of its bootstrap. NaN where a side is constant."""

    spearman: float
    kendall: float
    spearman_interval: Interval
    kendall_interval: Interval
    count: int

    def as_dict(self) -> dict[str, Any]:
        """None for what is no number."""
        return {
            "spearman": _plain(self.spearman),
            "spearman_interval": [_plain(bound) for bound in self.spearman_interval],
            "kendall": _plain(self.kendall),
            "kendall_interval": [_plain(bound) for bound in self.kendall_interval],
            "policies": self.count,
        }


def correlate(x: Floats, y: Floats, *, seed: int = 0) -> Correlation:
    """How well `x` orders what `y` orders, both (n,) and finite.

    The interval is the percentile bootstrap over pairs (Efron and Tibshirani 1993, chapter 13):
    it tells of other policies that might have been compared, not of other seeds.
    """
    drawn = resamples(len(x), seed)
    return Correlation(
        float(spearman(x, y)),
        float(kendall(x, y)),
        _interval(spearman(x[drawn], y[drawn])),
        _interval(kendall(x[drawn], y[drawn])),
        len(x),
    )


def lead(x: Floats, other: Floats, y: Floats, *, seed: int = 0) -> tuple[float, float]:
    """Spearman's coefficient of `x` with `y` minus that of `other` with `y`, and its standard error
    by the same resamples for both."""
    drawn = resamples(len(x), seed)
    differences = spearman(x[drawn], y[drawn]) - spearman(other[drawn], y[drawn])
    return float(spearman(x, y) - spearman(other, y)), float(np.nanstd(differences, ddof=1))


def resamples(count: int, seed: int) -> NDArray[np.int64]:
    """(RESAMPLES, count) indices drawn with replacement; the same for the same arguments."""
    return randomness.generator(seed, count, "bootstrap").integers(0, count, (RESAMPLES, count))


def spearman(x: Floats, y: Floats) -> Floats:
    """Pearson's coefficient of the ranks along the last axis, ties by their mean rank."""
    return _cosine(_centred(rankdata(x, axis=-1)), _centred(rankdata(y, axis=-1)))


def kendall(x: Floats, y: Floats) -> Floats:
    """Kendall's tau-b along the last axis (Kendall 1945): pairs in the same order minus pairs in
    opposite order, over the geometric mean of the pairs that each side tells apart."""
    return _cosine(_orders(x), _orders(y))


def _orders(values: Floats) -> Floats:
    first, second = np.triu_indices(values.shape[-1], k=1)
    return np.sign(values[..., first] - values[..., second])


def _centred(values: Floats) -> Floats:
    return values - values.mean(axis=-1, keepdims=True)


def _cosine(a: Floats, b: Floats) -> Floats:
    with np.errstate(invalid="ignore"):  # 0 / 0 where a side is constant
        return (a * b).sum(-1) / np.sqrt((a * a).sum(-1) * (b * b).sum(-1))


def _interval(drawn: Floats) -> Interval:
    known = drawn[np.isfinite(drawn)]  # a resample of one policy many times has no order
    if not len(known):
        return math.nan, math.nan
    low, high = np.quantile(known, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    return float(low), float(high)


def _plain(value: float) -> float | None:
    return value if math.isfinite(value) else None

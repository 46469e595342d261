"""Rank correlations against scipy, and intervals against what they must hold."""

import math
import warnings

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy import stats

from search.correlations import correlate, kendall, lead, resamples, spearman

pairs = st.integers(2, 12).flatmap(
    lambda n: arrays(np.float64, (2, n), elements=st.integers(-3, 3).map(float))
)


@given(pairs)
def test_coefficients_are_those_of_scipy_with_and_without_ties(both):
    x, y = both
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", stats.ConstantInputWarning)
        expected = stats.spearmanr(x, y).statistic, stats.kendalltau(x, y).statistic
    np.testing.assert_allclose([spearman(x, y), kendall(x, y)], expected, atol=1e-12)


def test_a_stack_of_samples_is_one_sample_after_another():
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(2, 5, 9))
    np.testing.assert_array_equal(kendall(x, y), [kendall(a, b) for a, b in zip(x, y, strict=True)])
    np.testing.assert_array_equal(
        spearman(x, y), [spearman(a, b) for a, b in zip(x, y, strict=True)]
    )


def test_an_interval_holds_the_truth_as_often_as_it_says():
    """Pairs of a normal distribution with r = 0.6, whose Spearman coefficient is known."""
    truth = 6 / math.pi * math.asin(0.6 / 2)
    rng = np.random.default_rng(1)
    held = 0
    for _ in range(60):
        x, noise = rng.normal(size=(2, 40))
        low, high = correlate(x, 0.6 * x + 0.8 * noise).spearman_interval
        held += low <= truth <= high
    assert 50 <= held <= 60  # the percentile bootstrap of 40 is a little narrow


def test_a_perfect_order_and_a_constant_one():
    x = np.arange(6.0)
    found = correlate(x, x**3)
    assert (found.spearman, found.kendall, found.count) == pytest.approx((1, 1, 6))
    assert found.spearman_interval == pytest.approx((1, 1))
    constant = correlate(x, np.zeros(6))
    assert math.isnan(constant.spearman) and constant.as_dict()["spearman_interval"] == [None, None]


def test_a_lead_is_paired():
    """Two predictors that err alike are told apart where each alone could be either."""
    rng = np.random.default_rng(2)
    y, noise = rng.normal(size=(2, 25))
    better, worse = y + 0.8 * noise, y + 1.6 * noise
    difference, error = lead(better, worse, y)
    assert difference == pytest.approx(spearman(better, y) - spearman(worse, y))
    assert lead(worse, better, y) == pytest.approx((-difference, error))
    drawn = [resamples(25, seed) for seed in (0, 1)]  # as if each had policies of its own
    alone = [np.var(spearman(p[d], y[d])) for p, d in zip((better, worse), drawn, strict=True)]
    assert 0 < error < 0.8 * sum(alone) ** 0.5

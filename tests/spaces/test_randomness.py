"""Draws that depend on their key and on nothing else."""

import subprocess
import sys

import numpy as np
import pytest
from scipy import stats

from spaces import randomness

IDS = np.arange(20_000)


@pytest.mark.parametrize("parts", [(0, 0, "chain"), (7, 3, "sign"), (2**31, 1000, "magnitude", 2)])
def test_uniform(parts):
    draws = randomness.uniform(IDS, *parts)
    assert draws.min() >= 0
    assert draws.max() < 1
    assert stats.kstest(draws, "uniform").pvalue > 1e-3


def test_uniform_over_seeds_and_epochs_for_one_sample():
    one = np.array([5])
    over_seeds = [randomness.uniform(one, seed, 0, "chain")[0] for seed in range(4000)]
    over_epochs = [randomness.uniform(one, 0, epoch, "chain")[0] for epoch in range(4000)]
    assert stats.kstest(over_seeds, "uniform").pvalue > 1e-3
    assert stats.kstest(over_epochs, "uniform").pvalue > 1e-3


@pytest.mark.parametrize("other", [(1, 0, "chain"), (0, 1, "chain"), (0, 0, "sign"), (0, 0)])
def test_another_key_is_another_draw(other):
    first, second = randomness.uniform(IDS, 0, 0, "chain"), randomness.uniform(IDS, *other)
    assert abs(stats.pearsonr(first, second).statistic) < 0.03


def test_neighbouring_samples_are_independent():
    draws = randomness.uniform(IDS, 0, 0, "chain")
    assert abs(stats.pearsonr(draws[:-1], draws[1:]).statistic) < 0.03


def test_a_sample_draws_the_same_in_any_batch():
    order = np.random.default_rng(0).permutation(IDS)
    whole = randomness.uniform(IDS, 3, 4, "x")
    assert np.array_equal(randomness.uniform(order, 3, 4, "x"), whole[order])
    assert np.array_equal(randomness.uniform(IDS[10:20], 3, 4, "x"), whole[10:20])


def test_another_process_draws_the_same():
    code = (
        "import numpy as np; from spaces import randomness as r;"
        "print(r.key(1, 'mixing'), r.uniform(np.arange(3), 1, 'a').tolist(),"
        " r.generator(1, 'b').beta(1, 1))"
    )
    outputs = {
        subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=True
        ).stdout
        for _ in range(2)
    }
    here = (
        f"{randomness.key(1, 'mixing')} {randomness.uniform(np.arange(3), 1, 'a').tolist()} "
        f"{randomness.generator(1, 'b').beta(1, 1)}\n"
    )
    assert outputs == {here}


def test_negative_and_large_seeds_are_keys_too():
    assert len({randomness.key(part) for part in (-1, 0, 1, 2**63, 2**64 - 2)}) == 5

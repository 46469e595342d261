"""Which figure foretells the end: on made-up policies of which the truth is known."""

from itertools import pairwise

import numpy as np
import pytest

from search.predictors import OUTCOMES, predictions, recommend
from spaces import UserError
from trainers.student import OBJECTIVES

POLICIES = 14


def made(noise):
    """Probes of 1, 2 and 4 epochs whose figures follow the final loss with `noise[epochs, figure]`,
    else none of it, and what they end with."""
    rng = np.random.default_rng(0)
    quality = rng.normal(size=POLICIES)
    outcomes = [
        {"validation_loss": -q, "validation_accuracy": q, "test_accuracy": q} for q in quality
    ]
    probed = {}
    for epochs in (1, 2, 4):
        figures = [{} for _ in quality]
        for name, way in OBJECTIVES.items():
            spread = noise.get((epochs, name))
            drawn = rng.normal(size=POLICIES)
            values = drawn if spread is None else quality + spread * drawn
            for told, value in zip(figures, values, strict=True):
                told[name] = value if way == "max" else -value
        probed[epochs] = figures
    return probed, outcomes


def test_the_best_comes_first_and_plus_one_is_perfect_whichever_way_it_runs():
    exact = {(2, "cmi"): 0.0, (2, "kd_gap"): 0.0}  # higher is better, lower is better
    found = predictions(*made(exact))
    assert {(p.figure, p.epochs) for p in found[:2]} == {("cmi", 2), ("kd_gap", 2)}
    for prediction in found[:2]:
        assert all(prediction.outcomes[name].spearman == pytest.approx(1) for name in OUTCOMES)
    assert all(a.spearman >= b.spearman for a, b in pairwise(found))
    assert len(found) == 3 * len(OBJECTIVES)


@pytest.mark.parametrize(
    ("noise", "objective", "epochs"),
    [
        # The best is the only one.
        ({(4, "kd_gap"): 0.2}, "kd_gap", 4),
        # A shorter probe that cannot be told from it is enough.
        ({(4, "kd_gap"): 0.3, (1, "kd_gap"): 0.35}, "kd_gap", 1),
        # One that is told to be worse is not.
        ({(4, "kd_gap"): 0.0, (1, "kd_gap"): 1.5}, "kd_gap", 4),
        # Among equals the default stays.
        ({(2, "kd_gap"): 0.3, (2, "score"): 0.35}, "score", 2),
    ],
)
def test_what_is_recommended(noise, objective, epochs):
    probed, outcomes = made(noise)
    told = recommend(predictions(probed, outcomes), outcomes)
    assert (told.objective, told.probe_epochs, told.trusted) == (objective, epochs, True)
    assert f"{objective} after {epochs} epoch" in told.sentence


def test_where_nothing_foretells_anything_that_is_said():
    probed, outcomes = made({})
    found = [p for p in predictions(probed, outcomes) if not p.tells]
    told = recommend(found, outcomes)
    assert (told.objective, told.trusted) == ("score", False)
    assert "No figure is seen to foretell" in told.sentence


def test_too_few_policies_are_a_sentence():
    probed, outcomes = made({})
    with pytest.raises(UserError, match=r"3 policies .* need 4 or more"):
        predictions({1: probed[1][:3]}, outcomes[:3])

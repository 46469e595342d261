"""The verdict says who won and when that means nothing."""

import json
import math

import numpy as np
import pytest
from scipy import stats

from search.results import FullLength
from search.verdict import Candidate, decide
from spaces import Chain, Operation, Policy, scheme

COMPOSED = Policy(chains=(Chain(operations=(Operation(name="equalize"),)),))
CUTMIX, MIXUP, NONE = scheme("cutmix"), scheme("mixup"), scheme("none")


def candidate(
    policy: Policy, role: str, validation: list[float], test: list[float] | None = None
) -> Candidate:
    test = test or validation
    runs = [
        FullLength(seed, v, 1 - v, t)
        for seed, (v, t) in enumerate(zip(validation, test, strict=True))
    ]
    return Candidate(policy, role, tuple(runs))


def test_a_clear_lead_is_said_with_its_differences():
    verdict = decide(
        [
            candidate(NONE, "none", [0.90, 0.91, 0.90]),
            candidate(COMPOSED, "candidate", [0.95, 0.96, 0.95]),
            candidate(CUTMIX, "scheme", [0.92, 0.93, 0.91]),
        ]
    )
    assert verdict.winner.policy == COMPOSED
    assert verdict.sentence == (
        "equalize is best (validation 95.3 ± 0.6 %, test 95.3 ± 0.6 %, 3 seeds): "
        "+3.3 ± 0.3 points over cutmix (test +3.3 ± 0.3); "
        "+5.0 ± 0.3 points over none (test +5.0 ± 0.3)."
    )
    assert all(difference.beyond_noise for difference in verdict.differences)


def test_no_augmentation_can_win():
    verdict = decide(
        [candidate(COMPOSED, "candidate", [0.9, 0.9]), candidate(NONE, "none", [0.95, 0.96])]
    )
    assert verdict.sentence.startswith("No policy beat the control: no augmentation is best")


def test_a_scheme_can_win():
    verdict = decide(
        [
            candidate(COMPOSED, "candidate", [0.90, 0.90, 0.91]),
            candidate(CUTMIX, "scheme", [0.95, 0.96, 0.95]),
            candidate(NONE, "none", [0.90, 0.90, 0.91]),
        ]
    )
    assert verdict.sentence.startswith(
        "No composed policy beat the controls: the scheme cutmix is best"
    )


def test_a_lead_within_the_noise_is_called_that():
    verdict = decide(
        [
            candidate(COMPOSED, "candidate", [0.95, 0.90, 0.93]),
            candidate(NONE, "none", [0.92, 0.93, 0.92]),
        ]
    )
    assert "within the noise of the seeds" in verdict.sentence
    assert not verdict.differences[0].beyond_noise


def test_a_lead_that_the_test_images_do_not_share_is_called_that():
    verdict = decide(
        [
            candidate(COMPOSED, "candidate", [0.95, 0.96, 0.95], test=[0.90, 0.90, 0.91]),
            candidate(NONE, "none", [0.92, 0.932, 0.92], test=[0.91, 0.91, 0.91]),
        ]
    )
    assert verdict.winner.policy == COMPOSED  # validation decides all the same
    assert "not confirmed by the test images" in verdict.sentence


def test_who_lost_its_students_on_hard_seeds_cannot_win_by_it():
    easy_seed_only = Candidate(COMPOSED, "candidate", (FullLength(1, 0.97, 0.1, 0.97),))
    whole = candidate(CUTMIX, "scheme", [0.96, 0.98, 0.96])
    verdict = decide([easy_seed_only, whole], lost=["equalize: the loss diverged"] * 2)
    assert verdict.winner is whole
    assert verdict.sentence.endswith("2 students did not reach the end.")
    assert verdict.as_dict()["lost_students"] == ["equalize: the loss diverged"] * 2


def test_a_winner_without_a_control_is_not_praised():
    verdict = decide([candidate(COMPOSED, "candidate", [0.95, 0.96])])
    assert "there was no control to compare it with" in verdict.sentence


def test_the_best_of_many_must_lead_by_more():
    """Over 3 seeds a lead of 1 with a standard error of 0.2 has p = 0.04: enough against one rival,
    not against the luck of the best of four."""
    winner = candidate(COMPOSED, "candidate", [0.95, 0.96, 0.95])
    control = candidate(NONE, "none", [0.9365, 0.95, 0.9435])
    rivals = [candidate(scheme(n), "candidate", [0.9, 0.9, 0.9]) for n in ("mixup", "cutmix")]
    assert decide([winner, control]).differences[0].beyond_noise
    assert not decide([winner, control, *rivals]).differences[0].beyond_noise


@pytest.mark.parametrize(("seeds", "images"), [(2, 300), (3, 10_000)])
def test_equal_policies_rarely_look_unequal(seeds, images):
    """Few images and two seeds let differences agree exactly now and then."""
    rng = np.random.default_rng(0)
    schemes = ["trivial_augment", "rand_augment", "cutmix", "mixup"]
    beyond = 0
    for _ in range(600):
        drawn = 0.96 + 0.005 * rng.standard_normal((5, seeds))
        drawn = np.round(drawn * images) / images
        none = candidate(NONE, "none", drawn[0].tolist())
        others = [
            candidate(scheme(n), "candidate", values.tolist())
            for n, values in zip(schemes, drawn[1:], strict=True)
        ]
        differences = decide([none, *others]).differences
        beyond += any(d.control == "none" and d.beyond_noise for d in differences)
    assert beyond / 600 < 0.05


def test_seeds_that_agree_exactly_are_no_certainty():
    """Two seeds, the same difference: its own spread is nothing, that of all candidates is not."""
    winner, control = [0.96, 0.94], [0.95, 0.93]
    alone = decide([candidate(COMPOSED, "candidate", winner), candidate(NONE, "none", control)])
    (difference,) = alone.differences
    assert difference.validation.interval is None
    assert not difference.beyond_noise
    assert "equal for all 2 seeds, whose noise is not known by that" in alone.sentence
    among = decide(
        [
            candidate(COMPOSED, "candidate", winner),
            candidate(NONE, "none", control),
            candidate(CUTMIX, "scheme", [0.92, 0.94]),
        ]
    )
    lead = next(d for d in among.differences if d.role == "none").validation
    assert lead.standard_error == pytest.approx(0)
    assert lead.noise > 0.01
    assert lead.interval[0] < 0
    assert "+1.0 ± 1.6 points over none, within the noise of the seeds" in among.sentence


def test_against_one_rival_the_interval_is_that_of_the_paired_t_test():
    rng = np.random.default_rng(1)
    ours, theirs = 0.95 + 0.01 * rng.random((2, 4))
    verdict = decide(
        [
            candidate(COMPOSED, "candidate", (ours + 0.01).tolist()),
            candidate(NONE, "none", theirs.tolist()),
        ]
    )
    (difference,) = verdict.differences
    expected = stats.ttest_rel(ours + 0.01, theirs).confidence_interval(0.95)
    assert difference.validation.interval == pytest.approx(tuple(expected))
    assert difference.beyond_noise == (expected.low > 0)


def test_the_noise_of_few_seeds_is_that_of_all_candidates():
    """Against least squares with a column for every candidate and every seed."""
    values = np.array([[0.96, 0.95, 0.955], [0.95, 0.94, 0.945], [0.93, 0.91, 0.94]])
    roles = [(COMPOSED, "candidate"), (NONE, "none"), (CUTMIX, "scheme")]
    verdict = decide([candidate(p, r, v.tolist()) for (p, r), v in zip(roles, values, strict=True)])
    of_candidate, of_seed = np.indices(values.shape).reshape(2, -1)
    design = np.hstack([np.eye(3)[of_candidate], np.eye(3)[of_seed]])
    fitted = design @ np.linalg.lstsq(design, values.ravel(), rcond=None)[0]
    variance = ((values.ravel() - fitted) ** 2).sum() / 4
    lead = next(d for d in verdict.differences if d.role == "none").validation
    assert lead.noise == pytest.approx(math.sqrt(2 * variance / 3))
    reach = stats.t.ppf(1 - 0.05 / 2 / 2, 4) * lead.noise
    assert lead.interval == pytest.approx((0.01 - reach, 0.01 + reach))


def test_seeds_that_differ_more_than_those_of_others_count_as_they_are():
    verdict = decide(
        [
            candidate(COMPOSED, "candidate", [0.99, 0.95, 0.97]),
            candidate(NONE, "none", [0.93, 0.96, 0.90]),
            candidate(CUTMIX, "scheme", [0.92, 0.92, 0.92]),
            candidate(MIXUP, "scheme", [0.91, 0.91, 0.91]),
        ]
    )
    lead = next(d for d in verdict.differences if d.role == "none").validation
    assert lead.noise == lead.standard_error
    reach = stats.t.ppf(1 - 0.05 / 2 / 3, 2) * lead.noise
    assert lead.interval == pytest.approx((lead.mean - reach, lead.mean + reach))


def test_the_file_has_all_numbers():
    verdict = decide(
        [
            candidate(COMPOSED, "candidate", [0.95, 0.96, 0.97], test=[0.94, 0.95, 0.93]),
            candidate(NONE, "none", [0.90, 0.91, 0.89]),
        ]
    )
    found = json.loads(json.dumps(verdict.as_dict(), allow_nan=False))
    best, none = found["candidates"]
    assert none["role"] == "none"
    assert best["seeds"] == [0, 1, 2]
    assert best["validation_accuracy"]["mean"] == pytest.approx(0.96)
    assert best["validation_accuracy"]["standard_error"] == pytest.approx(0.01 / math.sqrt(3))
    assert best["test_accuracy"]["values"] == [0.94, 0.95, 0.93]
    (difference,) = found["differences"]
    assert difference["test"] == pytest.approx(0.04)
    assert difference["validation_interval"][0] < 0.06 < difference["validation_interval"][1]
    assert difference["confidence"] == 0.95
    assert difference["beyond_noise"]


def test_one_seed_is_never_beyond_noise():
    verdict = decide([candidate(COMPOSED, "candidate", [0.99]), candidate(NONE, "none", [0.5])])
    assert not verdict.differences[0].beyond_noise
    assert "1 seed)" in verdict.sentence


def test_equal_accuracy_is_decided_by_loss():
    worse = Candidate(COMPOSED, "candidate", (FullLength(0, 0.9, 0.4, 0.9),))
    better = Candidate(NONE, "none", (FullLength(0, 0.9, 0.3, 0.9),))
    assert decide([worse, better]).winner is better


def test_differences_are_paired_over_the_seeds_that_both_have():
    winner = Candidate(
        COMPOSED, "candidate", tuple(FullLength(s, 0.9 + s / 100, 0.1, 0.9) for s in (1, 2, 3))
    )
    control = Candidate(NONE, "none", tuple(FullLength(s, 0.8, 0.2, 0.8) for s in (2, 3, 4)))
    (difference,) = decide([winner, control]).differences
    assert difference.seeds == 2
    assert difference.validation.mean == pytest.approx(0.125)
    lost = Candidate(NONE, "none", (FullLength(9, 0.8, 0.2, 0.8),))
    assert decide([winner, lost]).differences == ()


def test_the_sentence_names_the_strongest_scheme_and_the_file_all_controls():
    verdict = decide(
        [
            candidate(COMPOSED, "candidate", [0.95, 0.96]),
            candidate(CUTMIX, "scheme", [0.93, 0.93]),
            candidate(MIXUP, "scheme", [0.94, 0.94]),
            candidate(NONE, "none", [0.9, 0.9]),
        ]
    )
    assert "mixup" in verdict.sentence
    assert "cutmix" not in verdict.sentence
    assert [d["control"] for d in verdict.as_dict()["differences"]] == ["cutmix", "mixup", "none"]

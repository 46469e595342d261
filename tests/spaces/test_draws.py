"""What the engine draws: every bin, sign, operation and position by a draw of its own.

Images are of one grey, so that what became of an image tells what was drawn for it.
"""

from collections import Counter

import numpy as np
import pytest
import torch
from scipy import stats
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional as F

from spaces import Chain, Operation, Policy, Range, scheme

COUNT = 8000
GREY = 100
SURE = 1e-4  # the seeds are fixed: a pass stays a pass


def drawn(policy: Policy, count: int = COUNT) -> np.ndarray:
    """The grey of each of `count` images after `policy`."""
    images = torch.full((count, 3, 2, 2), GREY, dtype=torch.uint8)
    out, _ = policy.augmenter(1)(images, torch.zeros(count, dtype=torch.int64))
    return out[:, 0, 0, 0].numpy().astype(int)


def chain(*operations: Operation, **changes: object) -> Policy:
    return Policy(chains=(Chain(operations=operations),), **changes)


def assert_equally_often(outcomes: np.ndarray, expected: set[int]) -> None:
    counts = Counter(outcomes.tolist())
    assert set(counts) == expected
    assert stats.chisquare(list(counts.values())).pvalue > SURE


# Bin b of 1 to 9 makes the grey 100 + 10 b or 100 - 10 b.
ANY_BRIGHTNESS = Operation(name="brightness", magnitude=Range(low=0.1, high=0.9, bins=9))


def test_every_bin_of_a_range_is_drawn_equally_often_ends_included():
    bins = np.round(np.abs(drawn(chain(ANY_BRIGHTNESS)) - GREY) / 10).astype(int)
    assert_equally_often(bins, set(range(1, 10)))


def test_the_sign_does_not_depend_on_the_magnitude():
    grey = drawn(chain(ANY_BRIGHTNESS))
    bins = np.round(np.abs(grey - GREY) / 10).astype(int)
    counts = [np.bincount(bins[(grey > GREY) == up])[1:] for up in (False, True)]
    assert stats.chi2_contingency(counts).pvalue > SURE
    assert np.mean(grey > GREY) == pytest.approx(0.5, abs=0.03)


# 100 inverted is 155, 100 in four bits is 96, both one after the other are 144.
INVERT = Operation(name="invert", probability=0.5)
POSTERIZE = Operation(name="posterize", magnitude=4.0, probability=0.5)


def test_positions_of_a_chain_draw_apart():
    assert_equally_often(drawn(chain(INVERT, POSTERIZE)), {100, 155, 96, 144})


def test_the_same_operation_twice_in_a_chain_draws_twice():
    assert_equally_often(drawn(chain(INVERT, INVERT)), {100, 155})


def test_repeated_draws_of_a_policy_draw_apart():
    assert_equally_often(drawn(chain(INVERT, draws=2)), {100, 155})
    surely = Operation(name="invert")
    choice = Policy(chains=(Chain(operations=(surely,)), Chain()), draws=2)
    assert_equally_often(drawn(choice), {100, 155})


def test_whether_an_operation_is_applied_does_not_depend_on_which_chain_was_chosen():
    two = Policy(chains=(Chain(operations=(INVERT,)), Chain(operations=(POSTERIZE,))))
    shares = Counter(drawn(two).tolist())
    expected = {100: COUNT / 2, 155: COUNT / 4, 96: COUNT / 4}
    assert set(shares) == set(expected)
    observed = [shares[grey] for grey in expected]
    assert stats.chisquare(observed, list(expected.values())).pvalue > SURE


@pytest.mark.parametrize("interpolation", ["nearest", "bilinear"])
@pytest.mark.parametrize("fill", [0, 200])
def test_interpolation_and_fill_are_the_policys(interpolation, fill):
    policy = chain(Operation(name="rotate", magnitude=30.0), interpolation=interpolation, fill=fill)
    images = torch.randint(
        0, 256, (8, 3, 13, 17), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)
    )
    out, _ = policy.augmenter(1)(images, torch.zeros(8, dtype=torch.int64))
    for image, found in zip(images, out, strict=True):
        both = [
            F.rotate(image, angle, InterpolationMode(interpolation), fill=float(fill) or None)
            for angle in (30.0, -30.0)
        ]
        assert any(torch.equal(found, rotated) for rotated in both)


def test_equal_identities_make_equal_images():
    """Dropped operations must not shift the draws of those that stay."""
    rotate = Operation(name="rotate", magnitude=Range(low=5, high=90))
    idle = Operation(name="identity")
    short, long = chain(rotate), chain(idle, rotate, name="the same by another name")
    assert short.identity == long.identity
    images = torch.randint(0, 256, (64, 3, 12, 12), dtype=torch.uint8)
    labels = torch.zeros(64, dtype=torch.int64)
    found = [policy.augmenter(1, seed=3)(images, labels)[0] for policy in (short, long)]
    assert torch.equal(*found)


def test_batches_of_one_epoch_are_mixed_by_lambdas_of_their_own():
    augment = scheme("mixup").augmenter(4)
    images, labels = torch.zeros(4, 1, 2, 2, dtype=torch.uint8), torch.arange(4)
    kept = {
        float(augment(images, labels, epoch=0, sample_ids=torch.arange(4) + 4 * batch)[1].max())
        for batch in range(20)
    }
    assert len(kept) == 20


def test_no_draw_touches_the_generators_of_torch_and_numpy():
    torch_state, numpy_state = torch.random.get_rng_state(), np.random.get_state()[1].copy()
    drawn(scheme("rand_augment+cutmix"), count=32)
    assert torch.equal(torch.random.get_rng_state(), torch_state)
    assert np.array_equal(np.random.get_state()[1], numpy_state)


def boxes(count: int) -> np.ndarray:
    """Which pixels CutMix pasted into the first of two images, (count, 64, 64), at any lambda."""
    images = torch.stack([torch.zeros(1, 64, 64), torch.full((1, 64, 64), 255.0)]).to(torch.uint8)
    augment, labels = scheme("cutmix").augmenter(2), torch.arange(2)
    return np.stack([augment(images, labels)[0][0, 0].numpy() == 255 for _ in range(count)])


def test_boxes_of_cutmix_have_the_area_and_the_places_of_the_paper():
    pasted = boxes(1500)
    # A box of side s = sqrt(1 - lambda), density 2 s, cut at the border, covers s - s^2/4 of each
    # axis on average over uniform centres: E[(s - s^2/4)^2] = 1/2 - 1/5 + 1/48 of the area.
    assert pasted.mean() == pytest.approx(1 / 2 - 1 / 5 + 1 / 48, abs=0.03)
    held = pasted[pasted.any(axis=(1, 2))]
    rows, columns = held.any(axis=2), held.any(axis=1)
    assert np.array_equal(held, rows[:, :, None] & columns[:, None, :])  # each a rectangle
    middle = [(side * np.arange(64)).sum(axis=1) / side.sum(axis=1) for side in (rows, columns)]
    assert abs(stats.pearsonr(*middle).statistic) < 0.1
    for places in middle:
        assert np.mean(places) == pytest.approx(31.5, abs=1.5)

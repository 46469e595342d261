"""CutMix and MixUp: targets exact for the pixels that were kept."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from spaces import Mixing, Policy
from spaces.mixing import mix
from spaces.randomness import generator

CUTMIX, MIXUP = Mixing(name="cutmix"), Mixing(name="mixup")


def coloured(count: int, height: int, width: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Image i is filled with the value i, and its label is class i."""
    values = torch.arange(count, dtype=torch.uint8)
    images = values.view(-1, 1, 1, 1).expand(count, 3, height, width)
    return images.contiguous(), torch.eye(count)


@given(st.integers(2, 9), st.integers(3, 20), st.integers(3, 20), st.integers(0, 10_000))
def test_cutmix_targets_are_the_shares_of_pixels(count, height, width, seed):
    images, targets = coloured(count, height, width)
    mixed, soft = mix(images, targets, CUTMIX, generator(seed, "mixing"))
    for row in range(count):
        shares = torch.bincount(mixed[row, 0].flatten().long(), minlength=count) / (height * width)
        torch.testing.assert_close(soft[row], shares, atol=1e-6, rtol=0)


@given(st.integers(2, 9), st.integers(0, 10_000))
def test_mixup_blends_images_as_it_blends_labels(count, seed):
    images, targets = coloured(count, 4, 4)
    images = images * 20
    mixed, soft = mix(images, targets, MIXUP, generator(seed, "mixing"))
    expected = soft @ (20.0 * torch.arange(count).float())
    assert (mixed[:, 0, 0, 0].float() - expected).abs().max() <= 0.5 + 1e-3
    assert ((soft > 0).sum(dim=1) <= 2).all()


@pytest.mark.parametrize("mixing", [CUTMIX, MIXUP])
def test_no_image_is_mixed_with_itself(mixing):
    images, targets = coloured(5, 8, 8)
    for seed in range(30):
        _, soft = mix(images, targets, mixing, generator(seed, "mixing"))
        kept = soft.diagonal()
        assert (kept < 1).all() or torch.equal(soft, targets)


@pytest.mark.parametrize("alpha", [0.4, 1.0, 3.0])
def test_lambda_is_beta_distributed(alpha):
    images, targets = coloured(2, 2, 2)
    mixing = Mixing(name="mixup", alpha=alpha)
    kept = [
        float(mix(images, targets, mixing, generator(seed, "mixing"))[1][0, 0])
        for seed in range(1500)
    ]
    assert stats.kstest(kept, stats.beta(alpha, alpha).cdf).pvalue > 1e-3


def test_probability_is_the_share_of_batches():
    images, targets = coloured(4, 8, 8)
    mixing = Mixing(name="mixup", probability=0.25)
    untouched = [
        torch.equal(mix(images, targets, mixing, generator(seed, "mixing"))[0], images)
        and torch.equal(mix(images, targets, mixing, generator(seed, "mixing"))[1], targets)
        for seed in range(800)
    ]
    assert np.mean(untouched) == pytest.approx(0.75, abs=0.05)


def test_policies_that_differ_in_probability_see_the_same_luck():
    images, targets = coloured(4, 8, 8)
    always, often = (Mixing(name="cutmix", probability=p) for p in (1.0, 0.8))
    for seed in range(40):
        mixed, _ = mix(images, targets, often, generator(seed, "mixing"))
        sure, _ = mix(images, targets, always, generator(seed, "mixing"))
        assert torch.equal(mixed, sure) or torch.equal(mixed, images)


def test_a_batch_of_one_has_no_other_to_mix_with():
    images = torch.randint(0, 256, (1, 3, 8, 8), dtype=torch.uint8)
    for mixing in (CUTMIX, MIXUP):
        augment = Policy(mixing=mixing).augmenter(num_classes=3)
        out, targets = augment(images, torch.tensor([2]))
        assert torch.equal(out, images)
        torch.testing.assert_close(targets, torch.tensor([[0.0, 0.0, 1.0]]))


def test_the_input_stays_as_it_is():
    images, targets = coloured(4, 8, 8)
    before = images.clone()
    mix(images, targets, CUTMIX, generator(1, "mixing"))
    assert torch.equal(images, before)

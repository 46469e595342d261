"""CutMix and MixUp: targets exact for the pixels that were kept."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from spaces import Mixing, Policy, UserError
from spaces.mixing import mix

CUTMIX, MIXUP = Mixing(name="cutmix"), Mixing(name="mixup")


def coloured(count: int, height: int, width: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Image i is filled with the value i, and its label is class i."""
    values = torch.arange(count, dtype=torch.uint8)
    images = values.view(-1, 1, 1, 1).expand(count, 3, height, width)
    return images.contiguous(), torch.eye(count)


@given(st.integers(2, 9), st.integers(3, 20), st.integers(3, 20), st.integers(0, 10_000))
def test_cutmix_targets_are_the_shares_of_pixels(count, height, width, seed):
    images, targets = coloured(count, height, width)
    mixed, soft = mix(images, targets, CUTMIX, np.arange(len(images)), (seed, "mixing"))
    for row in range(count):
        shares = torch.bincount(mixed[row, 0].flatten().long(), minlength=count) / (height * width)
        torch.testing.assert_close(soft[row], shares, atol=1e-6, rtol=0)


@given(st.integers(2, 9), st.integers(0, 10_000))
def test_mixup_blends_images_as_it_blends_labels(count, seed):
    images, targets = coloured(count, 4, 4)
    images = images * 20
    mixed, soft = mix(images, targets, MIXUP, np.arange(len(images)), (seed, "mixing"))
    expected = soft @ (20.0 * torch.arange(count).float())
    assert (mixed[:, 0, 0, 0].float() - expected).abs().max() <= 0.5 + 1e-3
    assert ((soft > 0).sum(dim=1) <= 2).all()


@pytest.mark.parametrize("mixing", [CUTMIX, MIXUP])
def test_no_image_is_mixed_with_itself(mixing):
    images, targets = coloured(5, 8, 8)
    for seed in range(30):
        _, soft = mix(images, targets, mixing, np.arange(len(images)), (seed, "mixing"))
        kept = soft.diagonal()
        assert (kept < 1).all() or torch.equal(soft, targets)


@pytest.mark.parametrize("alpha", [0.4, 1.0, 3.0])
def test_lambda_is_beta_distributed(alpha):
    images, targets = coloured(2, 2, 2)
    mixing = Mixing(name="mixup", alpha=alpha)
    kept = [
        float(mix(images, targets, mixing, np.arange(len(images)), (seed, "mixing"))[1][0, 0])
        for seed in range(1500)
    ]
    assert stats.kstest(kept, stats.beta(alpha, alpha).cdf).pvalue > 1e-3


def test_probability_is_the_share_of_batches():
    images, targets = coloured(4, 8, 8)
    mixing = Mixing(name="mixup", probability=0.25)
    untouched = [
        torch.equal(
            mix(images, targets, mixing, np.arange(len(images)), (seed, "mixing"))[0], images
        )
        and torch.equal(
            mix(images, targets, mixing, np.arange(len(images)), (seed, "mixing"))[1], targets
        )
        for seed in range(800)
    ]
    assert np.mean(untouched) == pytest.approx(0.75, abs=0.05)


def test_policies_that_differ_in_probability_see_the_same_luck():
    images, targets = coloured(4, 8, 8)
    always, often = (Mixing(name="cutmix", probability=p) for p in (1.0, 0.8))
    for seed in range(40):
        mixed, _ = mix(images, targets, often, np.arange(len(images)), (seed, "mixing"))
        sure, _ = mix(images, targets, always, np.arange(len(images)), (seed, "mixing"))
        assert torch.equal(mixed, sure) or torch.equal(mixed, images)


def test_a_batch_of_one_has_no_other_to_mix_with():
    images = torch.randint(0, 256, (1, 3, 8, 8), dtype=torch.uint8)
    for mixing in (CUTMIX, MIXUP):
        augment = Policy(mixing=mixing).augmenter(num_classes=3)
        out, targets = augment(images, torch.tensor([2]))
        assert torch.equal(out, images)
        torch.testing.assert_close(targets, torch.tensor([[0.0, 0.0, 1.0]]))


PER_IMAGE = [Mixing(name=name, per="image") for name in ("cutmix", "mixup")]


@given(st.integers(2, 9), st.integers(3, 20), st.integers(3, 20), st.integers(0, 10_000))
def test_boxes_per_image_have_exact_targets(count, height, width, seed):
    images, targets = coloured(count, height, width)
    mixed, soft = mix(images, targets, PER_IMAGE[0], np.arange(count), (seed, "mixing"))
    for row in range(count):
        shares = torch.bincount(mixed[row, 0].flatten().long(), minlength=count) / (height * width)
        torch.testing.assert_close(soft[row], shares, atol=1e-6, rtol=0)


def test_lambdas_per_image_are_beta_distributed_and_blend_images_as_labels():
    images, targets = coloured(200, 4, 4)
    mixing = Mixing(name="mixup", per="image", alpha=0.4)
    mixed, soft = mix(images, targets, mixing, np.arange(200), (3, "mixing"))
    assert stats.kstest(soft.diagonal().numpy(), stats.beta(0.4, 0.4).cdf).pvalue > 1e-3
    expected = soft @ torch.arange(200).float()
    assert (mixed[:, 0, 0, 0].float() - expected).abs().max() <= 0.5 + 1e-3


@pytest.mark.parametrize("mixing", PER_IMAGE)
def test_probability_per_image_is_the_share_of_images(mixing):
    images, targets = coloured(200, 8, 8)
    rare = mixing.model_copy(update={"probability": 0.25})
    mixed, soft = mix(images, targets, rare, np.arange(200), (5, "mixing"))
    whole = soft.diagonal() == 1
    assert whole.double().mean().item() == pytest.approx(0.75, abs=0.1)
    assert torch.equal(mixed[whole], images[whole])


def test_cutmix_pick_keeps_what_the_teacher_is_least_certain_of():
    """A teacher that is the more certain the brighter the image."""
    images, targets = coloured(60, 8, 8)
    asked = []

    def teacher(mixtures: torch.Tensor) -> torch.Tensor:
        asked.append(mixtures)
        certainty = mixtures.float().mean(dim=(1, 2, 3)) / 20
        return torch.stack([certainty, torch.zeros_like(certainty)], dim=1)

    pick = Mixing(name="cutmix_pick", keep=0.4)
    mixed, soft = mix(images, targets, pick, np.arange(60), (1, "mixing"), teacher=teacher)
    (candidates,) = asked
    assert len(candidates) == 150
    assert mixed.shape == images.shape
    brightness = candidates.float().mean(dim=(1, 2, 3)).sort().values
    kept = mixed.float().mean(dim=(1, 2, 3)).sort().values
    torch.testing.assert_close(kept, brightness[:60])
    for image, target in zip(mixed, soft, strict=True):
        shares = torch.bincount(image[0].flatten().long(), minlength=60) / 64
        torch.testing.assert_close(target, shares, atol=1e-6, rtol=0)


def test_cutmix_pick_without_a_teacher_says_so():
    images, labels = torch.zeros(4, 3, 8, 8, dtype=torch.uint8), torch.zeros(4, dtype=torch.int64)
    with pytest.raises(UserError, match="call the augmenter with teacher=FUNCTION"):
        Policy(mixing=Mixing(name="cutmix_pick")).augmenter(1)(images, labels)


def test_keep_belongs_to_picking():
    assert Mixing(name="cutmix_pick").keep == 0.5
    with pytest.raises(ValueError, match="keep belongs to cutmix_pick, mixup keeps every image"):
        Mixing(name="mixup", keep=0.5)


def test_the_input_stays_as_it_is():
    images, targets = coloured(4, 8, 8)
    before = images.clone()
    mix(images, targets, CUTMIX, np.arange(4), (1, "mixing"))
    assert torch.equal(images, before)

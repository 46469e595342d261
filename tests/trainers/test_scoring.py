"""The metric without training: what a teacher says of a policy."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from spaces import Chain, Operation, Policy, scheme
from trainers.batches import augmented_batches
from trainers.datasets import DigitsConfig, ImageSplits, load_splits
from trainers.metric import contextual_mutual_information, teacher_stddev
from trainers.scoring import score
from trainers.teacher import TeacherRecipe, train_teacher

MIXED = scheme("trivial_augment+cutmix")


@pytest.fixture(scope="module")
def splits() -> ImageSplits:
    return load_splits(DigitsConfig(image_size=8, train_images=200, validation_images=100))


@pytest.fixture(scope="module")
def teacher(splits) -> torch.nn.Module:
    return train_teacher(splits, TeacherRecipe(width=4, epochs=8, batch_size=32))


def test_the_score_is_the_metric_of_every_view_of_every_training_image(splits, teacher):
    found = score(MIXED, teacher, splits, repeats=3, batch_size=64, seed=5)
    batches = list(
        augmented_batches(
            splits.train, MIXED.augmenter(10, 5), batch_size=64, repeats=3, seed=5, epoch=0
        )
    )
    logits = [teacher(splits.normalise(images)) for images, _, _ in batches]
    expected = contextual_mutual_information(
        torch.cat(logits), torch.cat([targets for _, targets, _ in batches])
    )
    assert found.images == 600
    assert found.score == pytest.approx(expected.score, abs=1e-6)
    assert found.cmi == pytest.approx(expected.cmi, abs=1e-6)
    assert found.centroid_divergence == pytest.approx(expected.centroid_divergence, abs=1e-6)
    assert found.entropy == pytest.approx(expected.entropy, abs=1e-6)
    stddev = teacher_stddev([torch.softmax(batch, dim=1) for batch in logits])
    assert found.teacher_stddev == pytest.approx(stddev, abs=1e-7)
    assert found.score == pytest.approx(found.centroid_divergence - found.cmi)


def test_the_same_seed_scores_the_same_and_another_does_not(splits, teacher):
    first, again, other = (
        score(MIXED, teacher, splits, batch_size=64, seed=seed) for seed in (0, 0, 1)
    )
    assert first == again
    assert first.score != other.score


def test_as_many_threads_as_one_likes_give_the_same_score(splits, teacher):
    expected = score(MIXED, teacher, splits, batch_size=64)
    torch.set_num_threads(3)
    try:
        found = score(MIXED, teacher, splits, batch_size=64)
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(1)
    assert found == expected


def test_what_pushes_the_images_out_of_sight_scores_worse_than_nothing(splits, teacher):
    away = Chain(operations=(Operation(name="translate_x", magnitude=0.75),))
    plain = score(scheme("none"), teacher, splits, repeats=1)
    assert score(Policy(chains=(away,)), teacher, splits, repeats=1).score > plain.score


def test_a_teacher_in_training_mode_is_judged_in_eval_mode_and_stays_as_it_was(splits, teacher):
    expected = score(MIXED, teacher, splits, batch_size=20)
    before = {name: tensor.clone() for name, tensor in teacher.state_dict().items()}
    try:
        found = score(MIXED, teacher.train(), splits, batch_size=20)
        changed = [n for n, t in teacher.state_dict().items() if not torch.equal(t, before[n])]
    finally:
        teacher.load_state_dict(before)
        teacher.eval()
    assert not changed
    assert found == expected


@settings(max_examples=40, deadline=None)
@given(st.integers(5, 60), st.integers(2, 5), st.booleans(), st.integers(0, 2**31))
def test_the_order_of_the_images_does_not_matter(count, classes, soft, seed):
    generator = torch.Generator().manual_seed(seed)
    logits = 4 * torch.randn(count, classes, generator=generator)
    targets = torch.arange(count) % classes
    if soft:
        targets = torch.softmax(2 * torch.randn(count, classes, generator=generator), dim=1)
    rows = torch.randperm(count, generator=generator)
    first = contextual_mutual_information(logits, targets)
    second = contextual_mutual_information(logits[rows], targets[rows])
    assert second[:6] == pytest.approx(first[:6], rel=1e-9, abs=1e-12, nan_ok=True)

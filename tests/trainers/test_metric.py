"""The metric against the published numbers, against plain numpy, and in every known trap."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from trainers.metric import (
    ContextualInformation,
    ContextualMutualInformation,
    TeacherStddev,
    contextual_mutual_information,
    teacher_stddev,
)


@pytest.fixture(scope="module")
def published(fixtures: Path) -> dict:
    return json.loads((fixtures / "cmi_hard_labels.json").read_text())


def test_hard_labels_agree_with_the_published_numbers(published):
    logits = torch.tensor(published["logits"], dtype=torch.float64)
    found = contextual_mutual_information(logits, torch.tensor(published["labels"]))
    expected = published["expected_hard"]
    assert found.cmi == pytest.approx(expected["cmi"], abs=1e-6)
    assert found.centroid_divergence == pytest.approx(expected["centroid_div"], abs=1e-6)
    assert found.cross_entropy == pytest.approx(expected["ce"], abs=1e-6)
    assert found.entropy == pytest.approx(expected["entropy"], abs=1e-6)
    assert found.score == pytest.approx(expected["centroid_div"] - expected["cmi"], abs=1e-6)


def test_teacher_stddev_agrees_with_the_published_number_and_drops_the_short_window(published):
    data = published["stddev"]
    batches = torch.tensor(data["logits"], dtype=torch.float64)
    assert len(batches) % data["window_steps"] != 0
    metric = TeacherStddev(window=data["window_steps"])
    for batch in batches:
        metric.update(batch)
    assert metric.compute() == pytest.approx(data["expected"], abs=1e-6)


def test_teacher_stddev_needs_two_windows():
    batch = torch.full((4, 3), 1 / 3)
    assert math.isnan(teacher_stddev([batch] * 9, window=5))
    assert teacher_stddev([batch] * 10, window=5) == pytest.approx(0)


def assert_same(found: ContextualInformation, expected: ContextualInformation) -> None:
    assert found[:6] == pytest.approx(expected[:6], rel=1e-6, nan_ok=True)
    assert found.empty_classes == expected.empty_classes


def by_definition(logits: np.ndarray, t: np.ndarray) -> tuple[float, float]:
    """CMI and D image by image, as the formula reads."""
    p = np.exp(logits - logits.max(axis=1, keepdims=True))
    p /= p.sum(axis=1, keepdims=True)
    classes = range(t.shape[1])
    q = [sum(t[i, y] * p[i] for i in range(len(p))) / t[:, y].sum() for y in classes]
    cmi = 0.0
    for i in range(len(p)):
        mixture = sum(t[i, y] * q[y] for y in classes)
        cmi += float(np.sum(p[i] * np.log(p[i] / mixture))) / len(p)
    return cmi, float(np.mean([-np.log(q[y][y]) for y in classes]))


@settings(max_examples=60, deadline=None)
@given(st.integers(2, 5), st.integers(6, 30), st.integers(0, 2**31), st.booleans())
def test_equals_the_definition_written_out(classes, count, seed, soft):
    rng = np.random.default_rng(seed)
    logits = rng.normal(scale=3, size=(count, classes))
    labels = np.arange(count) % classes
    t = np.eye(classes)[labels]
    if soft:
        share = rng.beta(1, 1)
        t = share * t + (1 - share) * np.roll(t, 1, axis=0)
    targets = torch.tensor(t) if soft else torch.tensor(labels)
    found = contextual_mutual_information(
        torch.tensor(logits), targets.float() if soft else targets
    )
    cmi, divergence = by_definition(logits, t.astype(np.float32) if soft else t)
    assert found.cmi == pytest.approx(cmi, abs=1e-6)
    assert found.centroid_divergence == pytest.approx(divergence, abs=1e-6)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(1, 9), min_size=1, max_size=6), st.booleans(), st.integers(0, 2**31))
def test_batches_of_any_size_give_what_one_batch_gives(sizes, soft, seed):
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(sum(sizes), 3, generator=generator)
    labels = torch.randint(0, 3, (sum(sizes),), generator=generator)
    targets = torch.softmax(torch.randn(sum(sizes), 3, generator=generator), 1) if soft else labels
    metric = ContextualMutualInformation()
    for rows in torch.arange(sum(sizes)).split(sizes):
        metric.update(logits[rows], targets[rows])
    whole = contextual_mutual_information(logits, targets)
    if whole.empty_classes:
        with pytest.warns(UserWarning, match="no image of class"):
            found = metric.compute()
    else:
        found = metric.compute()
    assert_same(found, whole)


def test_one_hot_targets_are_hard_labels():
    logits, labels = torch.randn(20, 4), torch.arange(20) % 4
    one_hot = torch.nn.functional.one_hot(labels, 4).float()
    hard = contextual_mutual_information(logits, labels)
    assert_same(contextual_mutual_information(logits, one_hot), hard)


def test_accuracy_is_nan_on_soft_targets():
    soft = torch.tensor([[0.7, 0.3], [0.2, 0.8]])
    assert math.isnan(contextual_mutual_information(torch.randn(2, 2), soft).accuracy)


def test_an_empty_class_is_named_warned_of_and_left_out():
    logits = torch.randn(9, 3)
    labels = torch.tensor([0, 2] * 4 + [0])
    metric = ContextualMutualInformation()
    metric.update(logits, labels)
    with pytest.warns(UserWarning, match="no image of class 1: left out"):
        found = metric.compute()
    assert found.empty_classes == (1,)
    p = torch.softmax(logits.double(), 1)
    expected = -sum(float(p[labels == y].mean(0)[y].log()) for y in (0, 2)) / 2
    assert found.centroid_divergence == pytest.approx(expected)


def test_targets_without_any_weight_are_refused():
    with pytest.raises(ValueError, match="every class is empty"):
        contextual_mutual_information(torch.randn(3, 2), torch.zeros(3, 2))


@pytest.mark.parametrize("scale", [1e2, 1e4])
def test_extreme_logits_stay_finite(scale):
    logits = scale * torch.eye(3).repeat(4, 1)
    wrong = contextual_mutual_information(logits, (torch.arange(12) + 1) % 3)
    assert all(math.isfinite(value) for value in wrong[:6])
    assert wrong.centroid_divergence == pytest.approx(scale, rel=1e-6)


def test_logits_that_are_not_finite_and_no_images_are_refused():
    with pytest.raises(ValueError, match="finite logits"):
        contextual_mutual_information(torch.tensor([[math.nan, 0.0]]), torch.tensor([0]))
    with pytest.raises(ValueError, match="at least one image"):
        contextual_mutual_information(torch.empty(0, 3), torch.empty(0, dtype=torch.int64))
    with (
        pytest.warns(UserWarning, match="before the ``update``"),
        pytest.raises(ValueError, match="at least one image"),
    ):
        ContextualMutualInformation().compute()


def test_confident_predictions_of_the_label_score_zero():
    found = contextual_mutual_information(50 * torch.eye(3).repeat(2, 1), torch.arange(6) % 3)
    assert found.score == pytest.approx(0, abs=1e-12)
    assert found.accuracy == 1


def test_the_class_states_its_direction_and_resets():
    metric = ContextualMutualInformation()
    assert metric.higher_is_better is False
    metric.update(torch.randn(4, 2), torch.tensor([0, 1, 0, 1]))
    metric.reset()
    logits, labels = torch.randn(4, 2), torch.tensor([0, 1, 1, 0])
    metric.update(logits, labels)
    assert_same(metric.compute(), contextual_mutual_information(logits, labels))

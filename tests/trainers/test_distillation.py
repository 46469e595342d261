"""The distillation loss against the formula in plain numpy and against finite differences."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError
from scipy.special import rel_entr, softmax

from trainers.distillation import DistillationLoss, kd_loss


def logits(seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return 4 * torch.randn(6, 5, generator=generator, dtype=torch.float64)


@given(st.integers(0, 1000), st.floats(0.5, 20))
def test_kd_is_the_scaled_divergence_from_the_teacher(seed, temperature):
    student, teacher = logits(seed), logits(seed + 1)
    p, q = (softmax(x.numpy() / temperature, axis=1) for x in (teacher, student))
    expected = temperature**2 * rel_entr(p, q).sum(axis=1).mean()
    assert float(kd_loss(student, teacher, temperature)) == pytest.approx(expected, rel=1e-9)


def test_a_student_equal_to_its_teacher_has_no_loss():
    assert float(kd_loss(logits(0), logits(0), 4.0)) == pytest.approx(0, abs=1e-12)


def test_the_gradient_agrees_with_finite_differences():
    student = logits(2).requires_grad_()
    targets = torch.softmax(logits(3), 1)
    loss = DistillationLoss(alpha=2, gamma=1)
    assert torch.autograd.gradcheck(lambda s: loss(s, logits(4), targets), (student,))


def test_gamma_weighs_the_cross_entropy_and_the_default_is_free_of_labels():
    student, teacher, targets = logits(5), logits(6), torch.softmax(logits(7), 1)
    kd = float(kd_loss(student, teacher, 4.0))
    ce = -np.mean(np.sum((targets * torch.log_softmax(student, 1)).numpy(), axis=1))
    assert float(DistillationLoss()(student, teacher, targets)) == pytest.approx(kd)
    both = DistillationLoss(alpha=2, gamma=3)(student, teacher, targets)
    assert float(both) == pytest.approx(2 * kd + 3 * ce)


@pytest.mark.parametrize("wrong", [{"temperature": 0}, {"alpha": -1}, {"gamma": float("nan")}])
def test_values_without_meaning_are_refused(wrong):
    with pytest.raises(ValidationError, match=next(iter(wrong))):
        DistillationLoss(**wrong)

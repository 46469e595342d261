"""Every loss on features against its formula in loops, against finite differences, and under the
transformations that it must not see."""

import math
from collections.abc import Callable
from itertools import product

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from trainers.distillation import DistillationBatch, FeatureLoss, FitNet, VariationalInformation
from trainers.distillation.attention import attention_loss
from trainers.distillation.correlation import correlation_loss
from trainers.distillation.relational import angle_loss, distance_loss
from trainers.distillation.selectivity import selectivity_loss
from trainers.distillation.similarity import similarity_loss

Loss = Callable[[Tensor, Tensor], Tensor]
SEEDS = st.integers(0, 1000)
ON_MAPS: list[Loss] = [attention_loss, similarity_loss, selectivity_loss]
ON_EMBEDDINGS: list[Loss] = [similarity_loss, distance_loss, angle_loss, correlation_loss]


def normal(seed: int, *shape: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def rotation(seed: int, size: int) -> Tensor:
    return torch.linalg.qr(normal(seed, size, size))[0]


def batch(student: Tensor, teacher: Tensor) -> DistillationBatch:
    """One layer; nothing but its features is looked at."""
    nothing = torch.zeros(len(student), 3, dtype=torch.float64)
    ids = torch.arange(len(student))
    return DistillationBatch((student,), (teacher,), nothing, nothing, nothing, ids)


def built(loss: FeatureLoss, example: DistillationBatch) -> torch.nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return loss.build(example, torch.tensor([0, 1]), 0).double()


def halved(maps: np.ndarray) -> np.ndarray:
    """Means of 2x2 squares."""
    return (maps[..., ::2, ::2] + maps[..., 1::2, ::2] + maps[..., ::2, 1::2]
            + maps[..., 1::2, 1::2]) / 4  # fmt: skip


def unit(rows: np.ndarray) -> np.ndarray:
    return np.array([row / math.sqrt(sum(v * v for v in row)) for row in rows])


def huber(x: float) -> float:
    return x * x / 2 if abs(x) < 1 else abs(x) - 0.5


@given(SEEDS, st.sampled_from([1.0, 2.0, 3.0]))
@settings(max_examples=10, deadline=None)
def test_attention_transfer_by_loops_with_pooling_and_other_channels(seed, exponent):
    student, teacher = normal(seed, 3, 2, 4, 4), normal(seed + 1, 3, 5, 2, 2)
    expected = 0.0
    for ours, theirs in zip(halved(student.numpy()), teacher.numpy(), strict=True):
        maps = []
        for feature in (ours, theirs):
            places = product(range(2), range(2))
            energy = [sum(abs(c[y, x]) ** exponent for c in feature) for y, x in places]
            maps.append(unit(np.array([energy]))[0])
        expected += sum((a - b) ** 2 for a, b in zip(*maps, strict=True)) / (3 * 4)
    assert float(attention_loss(student, teacher, exponent)) == pytest.approx(expected, rel=1e-9)


@given(SEEDS)
@settings(max_examples=10, deadline=None)
def test_similarity_by_loops(seed):
    student, teacher = normal(seed, 4, 2, 3, 3), normal(seed + 1, 4, 7)
    matrices = []
    for feature in (student.flatten(1).numpy(), teacher.numpy()):
        dots = [[sum(p * q for p, q in zip(a, b, strict=True)) for b in feature] for a in feature]
        matrices.append(unit(np.array(dots)))
    expected = sum((matrices[0][i, j] - matrices[1][i, j]) ** 2 for i, j in np.ndindex(4, 4)) / 16
    assert float(similarity_loss(student, teacher)) == pytest.approx(expected, rel=1e-9)


@given(SEEDS)
@settings(max_examples=10, deadline=None)
def test_selectivity_by_loops_with_pooling_and_other_channels(seed):
    student, teacher = normal(seed, 2, 3, 2, 2), normal(seed + 1, 2, 4, 4, 4)

    def mean_kernel(xs: np.ndarray, ys: np.ndarray) -> float:
        return float(np.mean([sum(x * y) ** 2 for x in xs for y in ys]))

    expected = 0.0
    for ours, theirs in zip(student.numpy(), halved(teacher.numpy()), strict=True):
        s, t = unit(ours.reshape(3, -1)), unit(theirs.reshape(4, -1))
        expected += (mean_kernel(t, t) + mean_kernel(s, s) - 2 * mean_kernel(s, t)) / 2
    assert float(selectivity_loss(student, teacher)) == pytest.approx(expected, rel=1e-8)


@given(SEEDS)
@settings(max_examples=10, deadline=None)
def test_relational_distances_by_loops(seed):
    student, teacher = normal(seed, 4, 3), 3 * normal(seed + 1, 4, 5)
    tables = []
    for points in (student.numpy(), teacher.numpy()):
        table = [[math.dist(a, b) for b in points] for a in points]
        mean = sum(map(sum, table)) / 12
        tables.append([[value / mean for value in row] for row in table])
    expected = sum(huber(tables[0][i][j] - tables[1][i][j]) for i, j in np.ndindex(4, 4)) / 16
    assert float(distance_loss(student, teacher)) == pytest.approx(expected, rel=1e-9)


@given(SEEDS)
@settings(max_examples=10, deadline=None)
def test_relational_angles_by_loops(seed):
    student, teacher = normal(seed, 4, 3), normal(seed + 1, 4, 5)

    def cosine(points: np.ndarray, i: int, j: int, k: int) -> float:
        a, b = points[i] - points[j], points[k] - points[j]
        norms = math.sqrt(sum(a * a) * sum(b * b))
        return float(sum(a * b)) / norms if norms else 0.0

    triples = list(product(range(4), repeat=3))
    expected = sum(
        huber(cosine(student.numpy(), *t) - cosine(teacher.numpy(), *t)) for t in triples
    )
    assert float(angle_loss(student, teacher)) == pytest.approx(expected / 64, rel=1e-9)


@given(SEEDS, st.integers(1, 4))
@settings(max_examples=10, deadline=None)
def test_correlation_by_loops(seed, order):
    student, teacher = normal(seed, 4, 3), normal(seed + 1, 4, 5)

    def kernel(x: np.ndarray, y: np.ndarray) -> float:
        dot = float(sum(x * y))
        series = sum(0.8**p / math.factorial(p) * dot**p for p in range(order + 1))
        return math.exp(-0.8) * series

    ours, theirs = unit(student.numpy()), unit(teacher.numpy())
    pairs = list(np.ndindex(4, 4))
    expected = sum((kernel(ours[i], ours[j]) - kernel(theirs[i], theirs[j])) ** 2 for i, j in pairs)
    found = correlation_loss(student, teacher, 0.4, order)
    assert float(found) == pytest.approx(expected / 16, rel=1e-9)


def test_many_terms_of_correlation_are_the_gaussian_kernel():
    """Of unit vectors, exp(-g ||x - y||^2), g = 0.4."""
    student, teacher = normal(0, 4, 3), normal(1, 4, 5)
    kernels = [np.exp(-0.4 * np.square(u[:, None] - u[None]).sum(2))
               for u in (unit(student.numpy()), unit(teacher.numpy()))]  # fmt: skip
    expected = np.square(kernels[0] - kernels[1]).mean()
    assert float(correlation_loss(student, teacher, 0.4, 20)) == pytest.approx(expected, rel=1e-9)


def test_a_hint_is_the_error_of_a_linear_map_of_channels():
    example = batch(normal(0, 2, 3, 4, 4), normal(1, 2, 5, 2, 2))
    module = built(FitNet(), example)
    ((weight, bias),) = [(r.weight.detach(), r.bias.detach()) for r in module.regressors]
    student, (teacher,) = halved(example.student[0].numpy()), example.teacher
    expected = 0.0
    for n, d, y, x in np.ndindex(2, 5, 2, 2):
        predicted = sum(float(weight[d, c]) * student[n, c, y, x] for c in range(3)) + bias[d]
        expected += float(predicted - teacher[n, d, y, x]) ** 2 / 40
    assert float(module(example).detach()) == pytest.approx(expected, rel=1e-9)


def test_variational_information_is_a_gaussian_of_the_teacher():
    example = batch(normal(0, 2, 3, 2, 2), normal(1, 2, 4, 2, 2))
    module = built(VariationalInformation(initial_variance=2.0), example)
    with torch.no_grad():
        module.raw_variances[0].copy_(normal(2, 4))
        mean = module.means[0](example.student[0])
    raw, expected = module.raw_variances[0].tolist(), 0.0
    for n, c, y, x in np.ndindex(2, 4, 2, 2):
        variance = math.log1p(math.exp(raw[c])) + 1e-5
        gaussian = torch.distributions.Normal(mean[n, c, y, x], math.sqrt(variance))
        log_q = float(gaussian.log_prob(example.teacher[0][n, c, y, x]))
        expected -= (log_q + math.log(2 * math.pi) / 2) / 32
    assert float(module(example).detach()) == pytest.approx(expected, rel=1e-9)


def test_the_variance_begins_where_the_config_says():
    module = built(
        VariationalInformation(initial_variance=2.0), batch(*[normal(0, 2, 3, 2, 2)] * 2)
    )
    variances = torch.nn.functional.softplus(module.raw_variances[0]) + 1e-5
    torch.testing.assert_close(variances, torch.full_like(variances, 2.0), atol=1e-5, rtol=0)


@pytest.mark.parametrize("loss", [*ON_MAPS, distance_loss, angle_loss, correlation_loss])
def test_gradients_agree_with_finite_differences_twice(loss):
    """The second derivative is what EWGS's curvature asks for."""
    shape = (3, 2, 2, 2) if loss in ON_MAPS else (4, 3)
    student, teacher = normal(3, *shape).requires_grad_(), normal(4, *shape)
    assert torch.autograd.gradcheck(lambda s: loss(s, teacher), (student,))
    assert torch.autograd.gradgradcheck(lambda s: loss(s, teacher), (student,))


@pytest.mark.parametrize("loss", [FitNet(), VariationalInformation()])
def test_gradients_of_what_is_learned_agree_with_finite_differences(loss):
    student, teacher = normal(3, 2, 2, 2, 2), normal(4, 2, 3, 2, 2)
    module = built(loss, batch(student, teacher))
    names, values = zip(*module.named_parameters(), strict=True)

    def of(feature: Tensor, *parameters: Tensor) -> Tensor:
        changed = dict(zip(names, parameters, strict=True))
        return torch.func.functional_call(module, changed, (batch(feature, teacher),))

    assert torch.autograd.gradcheck(of, (student.requires_grad_(), *values))


@pytest.mark.parametrize("loss", ON_MAPS)
def test_maps_equal_to_the_teachers_have_no_loss(loss):
    maps = normal(5, 3, 2, 4, 4)
    assert float(loss(maps, maps)) == pytest.approx(0, abs=1e-14)
    assert float(loss(maps, normal(6, 3, 2, 4, 4))) > 1e-3


@given(SEEDS, st.floats(0.1, 10))
@settings(max_examples=20, deadline=None)
def test_rotated_and_scaled_embeddings_are_alike_to_every_relation(seed, scale):
    teacher = normal(seed, 5, 3)
    student = scale * teacher @ rotation(seed + 1, 3)
    for loss in ON_EMBEDDINGS:
        assert float(loss(student, teacher)) == pytest.approx(0, abs=1e-12)


@given(SEEDS)
@settings(max_examples=20, deadline=None)
def test_a_shift_of_all_embeddings_is_nothing_to_distances_and_angles(seed):
    student, teacher, shift = normal(seed, 5, 3), normal(seed + 1, 5, 3), normal(seed + 2, 1, 3)
    for loss in (distance_loss, angle_loss):
        assert float(loss(student + shift, teacher)) == pytest.approx(float(loss(student, teacher)))


@given(SEEDS)
@settings(max_examples=20, deadline=None)
def test_the_order_of_channels_is_nothing_to_attention_similarity_and_selectivity(seed):
    student, teacher = normal(seed, 3, 4, 2, 2), normal(seed + 1, 3, 4, 2, 2)
    shuffled = student[:, torch.from_numpy(np.random.default_rng(seed).permutation(4))]
    for loss in ON_MAPS:
        assert float(loss(shuffled, teacher)) == pytest.approx(float(loss(student, teacher)))


@pytest.mark.parametrize("loss", ON_EMBEDDINGS)
@pytest.mark.parametrize("images", [1, 2, 3])
def test_short_batches_and_copies_of_one_image_have_finite_gradients(loss, images):
    """The last batch of an epoch may hold one image, and a batch one image twice."""
    student = normal(7, 1, 3).repeat(images, 1).requires_grad_()
    value = loss(student, normal(8, images, 3))
    (gradient,) = torch.autograd.grad(value, student)
    assert torch.isfinite(value)
    assert torch.isfinite(gradient).all()

"""CRD against its formula in loops, its draws, and its memories."""

import math

import pytest
import torch
from torch import Tensor

from spaces.errors import UserError
from trainers.distillation import ContrastiveRepresentation, DistillationBatch
from trainers.distillation.contrastive import Contrast, Negatives

LABELS = torch.tensor([0, 1, 2, 0, 1, 2, 2, 0])
CONFIG = ContrastiveRepresentation(width=4, negatives=5)


def normal(seed: int, *shape: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def batch(ids: list[int], seed: int = 0) -> DistillationBatch:
    features = normal(seed, len(ids), 3, 2, 2), normal(seed + 1, len(ids), 6)
    logits = torch.zeros(len(ids), 3, dtype=torch.float64)
    return DistillationBatch(
        (features[0],), (features[1],), logits, logits, logits, torch.tensor(ids)
    )


def built(config: ContrastiveRepresentation = CONFIG) -> Contrast:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return config.build(batch([0, 1]), LABELS, 7).double()


def unit(vector: list[float]) -> list[float]:
    norm = math.sqrt(sum(v * v for v in vector))
    return [v / norm for v in vector]


def by_loops(module: Contrast, seen: DistillationBatch) -> float:
    """The loss of a first batch, whose mean score gives Z."""
    with torch.no_grad():
        pooled = seen.student[0].mean(dim=(2, 3))
        sides = [
            (module.project_student(pooled).tolist(), module.teacher_memory.tolist()),
            (module.project_teacher(seen.teacher[0]).tolist(), module.student_memory.tolist()),
        ]
    ids = seen.sample_ids.tolist()
    rows = [
        [i, *drawn] for i, drawn in zip(ids, module._draw(seen.sample_ids).tolist(), strict=True)
    ]
    total = 0.0
    for vectors, memory in sides:
        scores = [
            [
                math.exp(sum(map(math.prod, zip(unit(v), memory[j], strict=True))) / 0.07)
                for j in row
            ]
            for v, row in zip(vectors, rows, strict=True)
        ]
        z = len(memory) * sum(map(sum, scores)) / (len(ids) * 6)
        for positive, *negatives in scores:
            h = [p / z / (p / z + 5 / 8) for p in (positive, *negatives)]
            total -= (math.log(h[0]) + sum(math.log(1 - p) for p in h[1:])) / len(ids)
    return total


def test_the_loss_by_loops():
    module, seen = built(), batch([3, 1, 6])
    expected = by_loops(module, seen)
    assert float(module(seen).detach()) == pytest.approx(expected, rel=1e-9)


def test_gradients_agree_with_finite_differences():
    module, seen = built().eval(), batch([3, 1])
    module.normalisers.fill_(20.0)

    def of(feature: Tensor) -> Tensor:
        changed = {**vars(seen), "student": (feature,)}
        return module(DistillationBatch(**changed))

    assert torch.autograd.gradcheck(of, (seen.student[0].clone().requires_grad_(),))


def test_negatives_are_of_other_classes_and_every_one_of_them_is_drawn_as_often():
    drawn = Negatives(LABELS)(LABELS, 4000, torch.Generator().manual_seed(0))
    for row, label in zip(drawn, LABELS, strict=True):
        counts = torch.bincount(row, minlength=8)
        others = label != LABELS
        assert not counts[~others].any()
        expected = 4000 / int(others.sum())
        assert (counts[others] - expected).abs().max() < 5 * math.sqrt(expected)


def test_draws_are_those_of_the_step_and_no_more_than_there_are_images():
    module, ids = built(ContrastiveRepresentation(width=4)), torch.tensor([0, 1])
    first = module._draw(ids)
    assert first.shape == (2, 8)
    assert torch.equal(first, module._draw(ids))
    module(batch([0, 1]))
    assert not torch.equal(first, module._draw(ids))


def test_the_memory_of_what_was_seen_moves_half_way_and_the_other_stays():
    module, seen = built(), batch([3, 1])
    before = module.student_memory.clone()
    module(seen)
    with torch.no_grad():
        projected = module.project_student(seen.student[0].mean(dim=(2, 3)))
    for place, row in enumerate([3, 1]):
        vector = unit(projected[place].tolist())
        mean = [(a + b) / 2 for a, b in zip(before[row].tolist(), vector, strict=True)]
        assert module.student_memory[row].tolist() == pytest.approx(unit(mean))
    others = [0, 2, 4, 5, 6, 7]
    assert torch.equal(module.student_memory[others], before[others])


def test_of_an_image_that_is_there_twice_the_last_view_is_remembered():
    module, seen = built(), batch([3, 1, 3])
    alone = built()
    module(seen)
    last = {name: (getattr(seen, name)[0][2:],) for name in ("student", "teacher")}
    rest = {n: getattr(seen, n)[2:] for n in ("student_logits", "teacher_logits", "targets")}
    alone(DistillationBatch(**last, **rest, sample_ids=torch.tensor([3])))
    torch.testing.assert_close(module.teacher_memory[3], alone.teacher_memory[3])


def test_looking_on_in_eval_mode_changes_nothing():
    module = built().eval()
    before = {name: value.clone() for name, value in module.state_dict().items()}
    values = [float(module(batch([0, 4])).detach()) for _ in range(2)]
    assert values[0] == values[1]
    for name, value in module.state_dict().items():
        assert torch.equal(value, before[name]), name


def test_z_is_set_by_the_first_batch_and_kept():
    module = built()
    module(batch([0, 4]))
    first = module.normalisers.clone()
    assert (first > 0).all()
    module(batch([5, 2], seed=9))
    assert torch.equal(module.normalisers, first)


def test_one_class_has_nothing_to_be_contrasted_with():
    with pytest.raises(UserError, match="all images are of one"):
        CONFIG.build(batch([0, 1]), torch.zeros(4, dtype=torch.int64), 0)

"""Every loss on features in the real loop: low-bit students, digits, CutMix's soft targets."""

import pickle

import pytest
import torch
from torch import nn

from spaces import Mixing, Policy, scheme
from spaces.errors import UserError
from trainers.datasets import DigitsConfig, ImageSplits, load_splits
from trainers.distillation import FEATURE_LOSSES, DistillationLoss
from trainers.quantization import QuantizationSpec
from trainers.student import StudentRecipe, StudentTrainer
from trainers.teacher import TeacherRecipe, train_teacher

NAMES = sorted(FEATURE_LOSSES)
CUTMIX = scheme("cutmix")
LEARNED = ["crd", "fitnet", "vid"]


@pytest.fixture(scope="module")
def splits() -> ImageSplits:
    return load_splits(
        DigitsConfig(image_size=8, train_images=200, student_images=40, validation_images=100)
    )


@pytest.fixture(scope="module")
def teacher(splits) -> nn.Module:
    return train_teacher(splits, TeacherRecipe(width=4, epochs=4, batch_size=32))


@pytest.fixture
def build(splits, teacher):
    def build(*names: str, policy: Policy = CUTMIX, epochs=2, **changes) -> StudentTrainer:
        loss = DistillationLoss(alpha=0, features=[{"name": name} for name in names])
        recipe = {"batch_size": 13, "repeats": 2, "loss": loss, "curvature_every": 0} | changes
        return StudentTrainer(
            teacher=teacher,
            splits=splits,
            policy=policy,
            quantization=QuantizationSpec(),
            recipe=StudentRecipe(**recipe),
            epochs=epochs,
            seed=3,
        )

    return build


def losses(trainer: StudentTrainer) -> list[float]:
    return [report.training_loss for report in trainer.epochs()]


def state(trainer: StudentTrainer) -> dict[str, torch.Tensor]:
    return trainer.student.state_dict() | trainer.loss.state_dict(prefix="loss.")


@pytest.mark.parametrize("name", NAMES)
def test_training_on_one_loss_alone_lowers_it(build, name):
    trainer = build(name, repeats=5, learning_rate=2e-3)
    first, last = losses(trainer)
    assert last < first
    modules = [*trainer.student.modules(), *trainer.teacher.modules()]
    assert not any(module._forward_hooks for module in modules)
    pickle.dumps(trainer.student)


@pytest.mark.parametrize("name", LEARNED)
def test_what_a_loss_learns_is_trained_like_the_weights(build, name):
    trainer = build(name, epochs=1, weight_decay=0.01)
    weights, quantizers, learned = trainer.training.optimizer.param_groups
    assert list(map(id, learned["params"])) == list(map(id, trainer.loss.parameters()))
    assert (learned["lr"], learned["weight_decay"]) == (weights["lr"], weights["weight_decay"])
    assert quantizers["weight_decay"] == 0
    before = [parameter.detach().clone() for parameter in trainer.loss.parameters()]
    list(trainer.epochs())
    for old, new in zip(before, trainer.loss.parameters(), strict=True):
        assert not torch.equal(old, new)


def test_a_resumed_student_equals_an_uninterrupted_one(build, tmp_path):
    names = [*LEARNED, "at", "rkd"]
    whole = build(*names)
    expected = losses(whole)
    interrupted = build(*names)
    next(interrupted.epochs())
    torch.save(interrupted.state_dict(), tmp_path / "state.pt")
    resumed = build(*names)
    resumed.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    assert losses(resumed) == expected[1:]
    for name, tensor in state(whole).items():
        assert torch.equal(tensor, state(resumed)[name]), name


def test_curvature_of_all_losses_at_once_is_finite_and_disturbs_no_memory(build):
    trainer = build(*NAMES, epochs=1, curvature_every=1, curvature_draws=1)
    before = {name: tensor.clone() for name, tensor in trainer.loss.state_dict().items()}
    trainer._update_curvature()
    for name, tensor in trainer.loss.state_dict().items():
        assert torch.equal(tensor, before[name]), name
    deltas = [tensor for name, tensor in trainer.student.state_dict().items() if "delta" in name]
    assert all(torch.isfinite(delta) for delta in deltas)
    assert any(deltas)
    assert len(losses(trainer)) == 1


def test_sample_ids_are_the_rows_of_the_images_in_a_batch(build, splits):
    trainer = build("crd", policy=scheme("none"))
    batches = list(trainer._batches(epoch=1))
    assert [len(rows) for _, _, rows in batches] == [13] * 6 + [2]
    for inputs, targets, rows in batches:
        assert torch.equal(inputs, splits.normalise(splits.student.images[rows]))
        assert torch.equal(targets.argmax(dim=1), splits.student.labels[rows])


def test_a_mixing_that_hides_whose_views_it_shows_is_refused_by_the_loss_that_remembers(build):
    picking = scheme("none").model_copy(update={"mixing": Mixing(name="cutmix_pick", keep=0.5)})
    with pytest.raises(UserError, match="crd remembers images, and the policy's cutmix_pick"):
        build("crd", policy=picking)
    assert len(losses(build("rkd", policy=picking, epochs=1))) == 1

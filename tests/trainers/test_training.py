"""The training loop against the same loop written out, and at its edges."""

import copy
import math

import pytest
import torch
from pydantic import ValidationError
from torch import nn
from torch.nn import functional as F

from spaces import Policy, scheme
from trainers.batches import augmented_batches
from trainers.datasets import DigitsConfig, ImageSplits, load_splits
from trainers.distillation import KD, KD_CE, SQAKD, DistillationLoss, kd_loss
from trainers.metric import contextual_mutual_information
from trainers.quantization import QuantizationSpec, calibrate, quantize, quantizer_parameters
from trainers.quantization.ewgs import ActivationDiscretizer, EWGSLayer
from trainers.student import DivergedError, StudentRecipe, StudentTrainer
from trainers.teacher import TeacherRecipe, train_teacher

MIXED = scheme("trivial_augment+cutmix")
LOSS = DistillationLoss(temperature=3.0, alpha=2.0, gamma=0.5)
RECIPE = StudentRecipe(
    batch_size=7,
    repeats=2,
    learning_rate=4e-3,
    quantizer_learning_rate=4e-4,
    weight_decay=1e-4,
    loss=LOSS,
    curvature_every=0,
    curvature_draws=2,
)


@pytest.fixture(scope="module")
def splits() -> ImageSplits:
    return load_splits(
        DigitsConfig(image_size=8, train_images=200, student_images=40, validation_images=100)
    )


@pytest.fixture(scope="module")
def teacher(splits) -> nn.Module:
    return train_teacher(splits, TeacherRecipe(width=4, epochs=6, batch_size=32))


@pytest.fixture
def build(splits, teacher):
    def build(
        policy: Policy = MIXED,
        *,
        epochs: int = 2,
        of: nn.Module = teacher,
        network: nn.Module | None = None,
        **changes: object,
    ) -> StudentTrainer:
        return StudentTrainer(
            teacher=of,
            splits=splits,
            policy=policy,
            quantization=QuantizationSpec(),
            recipe=RECIPE.model_copy(update=changes),
            epochs=epochs,
            seed=3,
            network=network,
        )

    return build


def figures(trainer: StudentTrainer) -> list[dict[str, float]]:
    reports = [report.as_dict() for report in trainer.epochs()]
    return [{k: v for k, v in r.items() if k != "images_per_second"} for r in reports]


def deltas(trainer: StudentTrainer) -> list[float]:
    layers = [m for m in trainer.student.modules() if isinstance(m, EWGSLayer)]
    quantizers = [q for la in layers for q in (la.weight_quantizer, la.activation_quantizer)]
    return [float(quantizer.delta) for quantizer in quantizers]


def by_hand(splits: ImageSplits, teacher: nn.Module, student: nn.Module) -> dict[str, float]:
    """The figures of one epoch in which no weight moves."""
    logits, answers, targets, losses = [], [], [], []
    student.train()
    keys = {"batch_size": 7, "repeats": 2, "seed": 3, "epoch": 0}
    for images, soft, _ in augmented_batches(splits.student, MIXED.augmenter(10, 3), **keys):
        inputs = splits.normalise(images)
        logits.append(student(inputs).detach())
        answers.append(teacher(inputs))
        targets.append(soft)
        kd = kd_loss(logits[-1], answers[-1], 3.0)
        loss = 2 * kd + 0.5 * F.cross_entropy(logits[-1], soft)
        losses.append((len(soft) * loss, len(soft) * kd))
    of_student, of_teacher = (
        contextual_mutual_information(torch.cat(x), torch.cat(targets)) for x in (logits, answers)
    )
    plain = splits.normalise(splits.validation.images)
    validation = student.eval()(plain).detach()
    kd_validation = float(kd_loss(validation, teacher(plain), 3.0))
    training_loss, kd_training = (float(sum(x)) / 80 for x in zip(*losses, strict=True))
    labels = splits.validation.labels
    return {
        "score": of_student.score,
        "cmi": of_student.cmi,
        "entropy": of_student.entropy,
        "teacher_score": of_teacher.score,
        "teacher_cmi": of_teacher.cmi,
        "teacher_centroid_divergence": of_teacher.centroid_divergence,
        "training_loss": training_loss,
        "kd_training": kd_training,
        "kd_validation": kd_validation,
        "kd_gap": kd_validation - kd_training,
        "validation_loss": float(F.cross_entropy(validation, labels)),
        "validation_accuracy": float((validation.argmax(1) == labels).double().mean()),
    }


def test_a_report_says_what_the_loop_written_out_says(build, splits, teacher):
    """At a learning rate of nothing; the last batch is short, so means of means would be wrong."""
    trainer = build(epochs=1, learning_rate=1e-30, quantizer_learning_rate=1e-30)
    (report,) = figures(trainer)
    student = quantize(teacher, QuantizationSpec())
    calibrate(student, splits.normalise(splits.student.images[:7]))
    expected = by_hand(splits, teacher, student)
    assert {name: report[name] for name in expected} == pytest.approx(expected, abs=1e-5)


def test_test_accuracy_is_of_the_test_images(build, splits):
    trainer = build()
    list(trainer.epochs())
    logits = trainer.student.eval()(splits.normalise(splits.test.images))
    right = (logits.argmax(dim=1) == splits.test.labels).double().mean()
    assert trainer.test_accuracy() == pytest.approx(float(right), abs=2 / len(logits))


def test_the_student_starts_from_the_teachers_weights(build, teacher):
    student = build().student.state_dict()
    for name, tensor in teacher.state_dict().items():
        inner = name.replace(".weight", ".layer.weight")
        assert torch.equal(student[inner if inner in student else name], tensor), name


def test_only_weights_decay_and_quantizers_have_a_rate_of_their_own(build):
    trainer = build(weight_decay=0.3)
    weights, quantizers = trainer.training.optimizer.param_groups
    assert (weights["weight_decay"], quantizers["weight_decay"]) == (0.3, 0)
    assert (weights["lr"], quantizers["lr"]) == (4e-3, 4e-4)
    own = quantizer_parameters(trainer.student)
    assert list(map(id, quantizers["params"])) == list(map(id, own))
    everything = list(trainer.student.parameters())
    assert len(weights["params"]) + len(own) == len(everything)
    assert all(parameter.requires_grad for parameter in everything)


def test_rates_fall_to_zero_along_a_cosine_over_the_epochs_of_this_run(build):
    trainer = build(epochs=4)
    rates = [trainer.training.optimizer.param_groups[0]["lr"] for _ in trainer.epochs()]
    expected = [4e-3 * (1 + math.cos(math.pi * done / 4)) / 2 for done in (1, 2, 3, 4)]
    assert rates == pytest.approx(expected, abs=1e-9)


def test_every_step_moves_the_normalisation_statistics_once_also_with_curvature(build):
    trainer = build(epochs=3, curvature_every=1)
    list(trainer.epochs())
    steps = trainer.student.bn1.num_batches_tracked - trainer.teacher.bn1.num_batches_tracked
    assert int(steps) == 3 * 12


def test_without_curvature_every_delta_stays_zero(build):
    trainer = build(curvature_every=0, epochs=2)
    list(trainer.epochs())
    assert set(deltas(trainer)) == {0.0}


def test_a_student_resumed_between_updates_of_curvature_equals_an_uninterrupted_one(
    build, tmp_path
):
    whole = build(epochs=4, curvature_every=2)
    expected = figures(whole)
    assert any(deltas(whole))
    interrupted = build(epochs=4, curvature_every=2)
    next(interrupted.epochs())
    torch.save(interrupted.state_dict(), tmp_path / "state.pt")
    resumed = build(epochs=4, curvature_every=2)
    resumed.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    assert figures(resumed) == expected[1:]
    assert deltas(resumed) == deltas(whole)


def test_levels_are_computed_in_float32_whatever_the_precision(build, splits):
    trainer = build(precision="bfloat16", epochs=1)
    seen = {}

    def note(module: nn.Module, args: tuple, out: torch.Tensor) -> None:
        if module.training and isinstance(module, ActivationDiscretizer | nn.BatchNorm2d):
            seen.setdefault(type(module), set()).add((args[0].dtype, out.dtype))

    with nn.modules.module.register_module_forward_hook(note):
        (report,) = figures(trainer)
    assert seen[ActivationDiscretizer] == {(torch.float32, torch.float32)}
    assert seen[nn.BatchNorm2d] == {(torch.bfloat16, torch.bfloat16)}
    (full,) = figures(build(epochs=1))
    assert report["kd_training"] == pytest.approx(full["kd_training"], rel=0.2)
    assert report["kd_training"] != full["kd_training"]


def test_a_batch_in_parts_is_the_same_batch(build, splits):
    """But for batch norm, which sees a part; the figures are of whole batches."""
    recipe = {"learning_rate": 1e-30, "quantizer_learning_rate": 1e-30}
    whole, parted = (figures(build(epochs=1, accumulate=a, **recipe))[0] for a in (1, 3))
    assert parted["teacher_score"] == pytest.approx(whole["teacher_score"], abs=1e-5)
    assert parted["teacher_stddev"] == pytest.approx(whole["teacher_stddev"], abs=1e-6)
    assert parted["training_loss"] != whole["training_loss"]
    assert parted["kd_training"] == pytest.approx(whole["kd_training"], rel=0.3)


def test_the_average_is_what_is_judged_and_resumed(build, splits):
    trainer = build(epochs=2, ema_decay=0.9)
    _, report = trainer.epochs()
    logits = trainer.outcome.eval()(splits.normalise(splits.validation.images))
    assert trainer.outcome is not trainer.student
    right = (logits.argmax(dim=1) == splits.validation.labels).double().mean()
    assert report.validation_accuracy == pytest.approx(float(right))
    again = build(epochs=2, ema_decay=0.9)
    again.load_state_dict(trainer.state_dict())
    for a, b in zip(trainer.outcome.parameters(), again.outcome.parameters(), strict=True):
        assert torch.equal(a, b)


def test_losses_on_features_need_a_network_that_is_not_compiled():
    loss = DistillationLoss(features=[{"name": "at"}])
    with pytest.raises(ValidationError, match=r"set compile to false or loss\.features to"):
        StudentRecipe(compile=True, loss=loss)


def test_smoothing_is_of_the_labels_in_the_loss_and_of_nothing_else(build):
    recipe = {"learning_rate": 1e-30, "quantizer_learning_rate": 1e-30}
    hard, soft = (
        figures(build(epochs=1, loss=LOSS.model_copy(update={"label_smoothing": s}), **recipe))[0]
        for s in (0.0, 0.2)
    )
    assert soft["training_loss"] > hard["training_loss"] + 1e-3
    same = {"score", "teacher_score", "kd_training", "validation_loss"}
    assert {k: soft[k] for k in same} == {k: hard[k] for k in same}


def test_one_image_that_is_left_joins_the_batch_before(build):
    """Of 40 in batches of 13; batch norm of one pixel cannot learn from one image."""
    network = nn.Sequential(
        nn.Conv2d(3, 4, 3),
        nn.Conv2d(4, 4, 3),
        nn.AdaptiveAvgPool2d(1),
        nn.BatchNorm2d(4),
        nn.Flatten(),
        nn.Linear(4, 10),
    )
    trainer = build(epochs=1, batch_size=13, repeats=1, network=network)
    assert [len(batch.rows) for batch in trainer._batches(0)] == [13, 13, 14]
    (report,) = trainer.epochs()
    assert trainer.training.schedule.last_epoch == 3
    assert math.isfinite(report.training_loss)


def test_a_finished_student_has_no_epochs_left(build):
    trainer = build(epochs=1)
    assert len(list(trainer.epochs())) == 1
    assert list(trainer.epochs()) == []


def test_a_teacher_in_training_mode_teaches_in_eval_mode_and_stays_as_it_was(build, teacher):
    expected = figures(build(epochs=1))
    careless = copy.deepcopy(teacher).train()
    before = {name: tensor.clone() for name, tensor in careless.state_dict().items()}
    found = figures(build(epochs=1, of=careless))
    for name, tensor in careless.state_dict().items():
        assert torch.equal(tensor, before[name]), name
    assert found == expected


def test_a_student_that_is_lost_in_the_last_step_is_not_reported(build):
    """One step in all: the loss before it is finite, what it leaves behind is not."""
    trainer = build(epochs=1, batch_size=64, repeats=1, learning_rate=1e30)
    with pytest.raises(DivergedError, match="in epoch 1"):
        list(trainer.epochs())


def test_a_loss_that_means_nothing_ends_training_though_it_is_a_number(build):
    with pytest.raises(DivergedError, match=r"exploded in epoch 1: .* 100 times that of knowing"):
        list(build(learning_rate=100.0).epochs())
    assert len(list(build(learning_rate=1.0).epochs())) == 2


@pytest.mark.parametrize(
    ("name", "loss"), [("sqakd", SQAKD), ("kd", KD), ("kd_ce", KD_CE)], ids=["sqakd", "kd", "kd_ce"]
)
def test_a_recipe_may_name_a_published_loss(name, loss):
    assert StudentRecipe(loss=name).loss == loss


@pytest.mark.parametrize(
    ("wrong", "sentence"),
    [
        ("sqkd", "unknown loss 'sqkd': did you mean 'sqakd'"),
        ({"label_smoothing": 0.1}, "give gamma a weight above 0"),
    ],
)
def test_losses_that_are_none_are_refused(wrong, sentence):
    with pytest.raises(ValidationError, match=sentence):
        StudentRecipe(loss=wrong)


@pytest.mark.parametrize("gamma", [0.25, 1.0])
def test_any_weight_of_the_labels_counts(gamma):
    generator = torch.Generator().manual_seed(0)
    student, teacher = (torch.randn(5, 3, generator=generator) for _ in range(2))
    targets = torch.softmax(torch.randn(5, 3, generator=generator), dim=1)
    with_labels, without = (
        float(DistillationLoss(gamma=g)(student, teacher, targets)) for g in (gamma, 0.0)
    )
    entropy = float(-(targets * torch.log_softmax(student, dim=1)).sum(dim=1).mean())
    assert with_labels - without == pytest.approx(gamma * entropy, rel=1e-4)

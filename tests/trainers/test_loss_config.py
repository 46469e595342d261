"""Losses as data: what a config says, what it becomes, and what is refused in one sentence."""

import sys
from collections.abc import Iterator
from typing import Literal

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor, nn

from search.config import load_config
from spaces.errors import UserError
from trainers.distillation import (
    FEATURE_LOSSES,
    KD,
    KD_CE,
    SQAKD,
    AttentionTransfer,
    DistillationBatch,
    DistillationLoss,
    Distiller,
    FeatureLoss,
    RelationalKnowledge,
    Tap,
    feature_loss,
    watched,
)
from trainers.models import build_network

PUBLISHED = {
    "at": 1000, "sp": 3000, "nst": 50, "rkd": 1, "cc": 100, "crd": 0.8, "fitnet": 100, "vid": 1,
}  # fmt: skip
INPUTS = torch.randn(4, 3, 16, 16, generator=torch.Generator().manual_seed(0))
LABELS = torch.tensor([0, 1, 2, 3])


def network(width: int = 4) -> nn.Module:
    return build_network("resnet8", 4, width=width, seed=0).eval()


def distiller(*features: object, student: nn.Module | None = None) -> Distiller:
    loss = DistillationLoss(features=features)
    return Distiller(
        loss,
        student=student or network(),
        teacher=network(8),
        inputs=INPUTS,
        labels=LABELS,
        seed=0,
    )


def value(of: Distiller, student: nn.Module) -> Tensor:
    answer = watched(student, INPUTS, of.student_taps)
    taught = watched(network(8), INPUTS, of.teacher_taps)
    return of(answer, taught, torch.eye(4), torch.arange(4))


def test_published_weights_are_the_defaults():
    assert {name: kind().weight for name, kind in FEATURE_LOSSES.items()} == PUBLISHED


def test_the_losses_on_logits_have_their_published_weights():
    found = [(loss.temperature, loss.alpha, loss.gamma) for loss in (SQAKD, KD, KD_CE)]
    assert found == [(4, 1, 0), (4, 0.9, 0.1), (4, 1, 1)]


def test_a_config_names_losses_and_comes_back_from_its_yaml(tmp_path):
    path = tmp_path / "search.yaml"
    path.write_text(
        "student: {recipe: {loss: {temperature: 4, alpha: 1, gamma: 0, features: "
        "[{name: at, weight: 1000, layers: [blocks.0]}, {name: rkd, angle_weight: 2}]}}}"
    )
    config = load_config(path)
    expected = (
        AttentionTransfer(layers=("blocks.0",)),
        RelationalKnowledge(angle_weight=2),
    )
    assert config.student.recipe.loss.features == expected
    path.write_text(config.to_yaml())
    assert load_config(path) == config


@pytest.mark.parametrize(
    ("features", "sentence"),
    [
        ("[{name: fitnets}]", r"unknown feature loss 'fitnets': did you mean 'fitnet'\?"),
        ("[{name: at, wieght: 3}]", r"unknown key 'wieght' in at: did you mean 'weight'\?"),
        ("[{name: at, weight: -1}]", r"features\.0: at: weight: .*greater than or equal to 0"),
        ("[{weight: 1}]", r"features\.0: name: give one of at, "),
        ("[at]", "features"),
    ],
)
def test_a_mistake_is_named_in_one_sentence(features, sentence, tmp_path):
    path = tmp_path / "search.yaml"
    path.write_text(f"student: {{recipe: {{loss: {{features: {features}}}}}}}")
    with pytest.raises(UserError, match=sentence) as caught:
        load_config(path)
    assert "\n" not in str(caught.value)


@pytest.fixture
def mimic() -> Iterator[type[FeatureLoss]]:
    @feature_loss
    class Mimic(FeatureLoss):
        name: Literal["mimic"] = "mimic"
        weight: float = 10.0
        shift: float = 0.0

        def value(self, batch: DistillationBatch) -> Tensor:
            return (batch.student[0].mean() - batch.teacher[0].mean() + self.shift).abs()

    yield Mimic
    del FEATURE_LOSSES["mimic"]


def test_a_loss_from_outside_is_found_by_its_name_and_weighed(mimic):
    student = network()
    parts = [value(distiller(*f, student=student), student) for f in ((), ({"name": "mimic"},))]
    shifted = value(distiller({"name": "mimic", "shift": 100.0}, student=student), student)
    assert parts[1] > parts[0]
    assert float((shifted - parts[0]).detach()) == pytest.approx(1000, rel=0.1)
    assert isinstance(DistillationLoss(features=[{"name": "mimic"}]).features[0], mimic)


def test_without_features_the_loss_is_that_on_logits_to_the_last_bit():
    student, loss = network(), DistillationLoss(alpha=2, gamma=0.5)
    of = Distiller(loss, student=student, teacher=network(8), inputs=INPUTS, labels=LABELS, seed=0)
    assert of.student_taps == of.teacher_taps == ()
    assert not list(of.parameters())
    assert not of.state_dict()
    expected = loss(student(INPUTS), network(8)(INPUTS), torch.eye(4))
    assert torch.equal(value(of, student), expected)


def test_losses_add_up_with_their_weights():
    student = network()
    at, sp = ({"name": name, "weight": 2.0} for name in ("at", "sp"))
    nothing, first, second, both = (
        float(value(distiller(*f, student=student), student).detach())
        for f in ((), (at,), (sp,), (at, sp))
    )
    assert first > nothing
    assert both - nothing == pytest.approx(first + second - 2 * nothing, rel=1e-4)
    heavier = value(distiller(at | {"weight": 4.0}, student=student), student)
    assert float(heavier.detach()) - nothing == pytest.approx(2 * (first - nothing), rel=1e-4)


def test_each_loss_looks_where_its_paper_looks():
    expected = {
        "at": ["blocks.0", "blocks.1", "blocks.2"],
        "nst": ["blocks.0", "blocks.1", "blocks.2"],
        "vid": ["blocks.0", "blocks.1", "blocks.2"],
        "fitnet": ["blocks.1"],
        "sp": ["blocks.2"],
        "rkd": ["classifier"],
        "cc": ["classifier"],
        "crd": ["classifier"],
    }
    for name, layers in expected.items():
        of = distiller({"name": name})
        assert [tap.module for tap in of.student_taps] == layers
        assert of.student_taps == of.teacher_taps
    assert distiller({"name": "rkd"}).student_taps == (Tap("classifier", "input"),)


def test_layers_of_two_networks_are_paired_by_the_config():
    named = {"name": "at", "layers": ["blocks.0"], "teacher_layers": ["blocks.1"]}
    of = distiller(named)
    assert (of.student_taps, of.teacher_taps) == ((Tap("blocks.0"),), (Tap("blocks.1"),))
    assert torch.isfinite(value(of, network()))


@pytest.mark.parametrize(
    ("named", "sentence"),
    [
        ({"layers": ["block.0"]}, r"unknown layer 'block\.0'.*did you mean 'blocks\.0'"),
        ({"layers": ["classifier"]}, r"at compares maps .*layer 'classifier' gives \(N, 4\)"),
        (
            {"layers": ["blocks.0"], "teacher_layers": ["blocks.0", "blocks.1"]},
            "the student has blocks.0, the teacher blocks.0, blocks.1",
        ),
    ],
)
def test_layers_that_cannot_be_compared_are_refused(named, sentence):
    with pytest.raises(UserError, match=sentence):
        distiller({"name": "at"} | named)


def test_a_network_without_maps_is_told_so():
    flat = nn.Sequential(nn.Flatten(), nn.Linear(768, 4))
    with pytest.raises(UserError, match="no layer of the network gives one"):
        distiller({"name": "at"}, student=flat)


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_teacher_gets_no_gradient_and_the_student_does(name):
    student, teacher = network(), network(8)
    of = distiller({"name": name}, student=student)
    answer = watched(student, INPUTS, of.student_taps)
    taught = watched(teacher, INPUTS, of.teacher_taps)
    of(answer, taught, torch.eye(4), torch.arange(4)).backward()
    assert all(parameter.grad is None for parameter in teacher.parameters())
    assert student.conv1.weight.grad.any()
    assert all(parameter.grad is not None for parameter in of.parameters())


@pytest.mark.parametrize(
    "wrong",
    [{"name": "crd", "negatives": 0}, {"name": "at", "exponent": 0.5}, {"name": "cc", "order": 0}],
)
def test_values_without_meaning_are_refused(wrong):
    with pytest.raises(ValidationError, match=next(key for key in wrong if key != "name")):
        DistillationLoss(features=[wrong])


def test_a_loss_of_the_users_own_is_found_by_its_module(tmp_path, monkeypatch):
    (tmp_path / "my_losses.py").write_text(
        "from trainers.distillation import FeatureLoss\n"
        "class Mimic(FeatureLoss):\n"
        "    weight: float = 10.0\n"
        "    def value(self, batch):\n"
        "        return (batch.student[0] - batch.teacher[0]).square().sum()\n"
    )
    monkeypatch.setattr(sys, "path", sys.path.copy())
    monkeypatch.chdir(tmp_path)  # where commands are run, which is not on their path
    config = load_config(
        overrides=["student.recipe.loss={features: [{name: 'my_losses:Mimic', weight: 2}]}"]
    )
    (loss,) = config.student.recipe.loss.features
    assert type(loss).__name__ == "Mimic" and loss.weight == 2
    (tmp_path / "again.yaml").write_text(config.to_yaml())
    assert load_config(tmp_path / "again.yaml") == config
    same = network(8).requires_grad_(False)
    assert value(distiller(loss, student=same), same) == value(distiller(student=same), same)
    for name, said in (("my_losses:Nimic", "cannot be imported"), ("math:pi", "not a FeatureLoss")):
        with pytest.raises(UserError, match=f"{name}.*{said}"):
            load_config(overrides=[f"student.recipe.loss={{features: [{{name: '{name}'}}]}}"])

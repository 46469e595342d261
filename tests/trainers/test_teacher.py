"""The teacher: the same from the same recipe, kept under the name of all that made it."""

import math
import os
from dataclasses import replace

import pytest
import torch

from spaces import UserError, scheme
from trainers.batches import augmented_batches
from trainers.cache_folder import cache_folder
from trainers.datasets import DigitsConfig, ImageSplits, load_splits
from trainers.models import build_network
from trainers.optimisation import SGD, Constant
from trainers.teacher import (
    TeacherRecipe,
    accuracy,
    cached_teacher,
    teacher_hash,
    train_teacher,
)

QUICK = TeacherRecipe(width=4, epochs=1, batch_size=64, learning_rate=4e-3)


@pytest.fixture(scope="module")
def splits() -> ImageSplits:
    return load_splits(DigitsConfig(image_size=8, train_images=300, validation_images=100))


def assert_equal_weights(a: torch.nn.Module, b: torch.nn.Module) -> None:
    for (name, left), right in zip(a.state_dict().items(), b.state_dict().values(), strict=True):
        assert torch.equal(left, right), name


def test_the_same_recipe_trains_the_same_teacher_and_another_seed_another(splits):
    first, again = train_teacher(splits, QUICK), train_teacher(splits, QUICK)
    assert_equal_weights(first, again)
    other = train_teacher(splits, QUICK.model_copy(update={"seed": 1}))
    assert not torch.equal(first.classifier.weight, other.classifier.weight)


def test_training_is_the_loop_written_out(splits):
    """Adam, cross-entropy on soft targets, a cosine to zero over the steps."""
    model = build_network("resnet8", 10, width=4, seed=0).train()
    optimizer = torch.optim.Adam(model.parameters(), lr=4e-3, weight_decay=QUICK.weight_decay)
    keys = {"batch_size": 64, "repeats": 1, "seed": 0, "epoch": 0}
    batches = augmented_batches(splits.train, QUICK.policy.augmenter(10, 0), **keys)
    for step, (images, targets, _) in enumerate(batches):
        optimizer.param_groups[0]["lr"] = 4e-3 * (1 + math.cos(math.pi * step / 5)) / 2
        optimizer.zero_grad()
        log_probs = torch.log_softmax(model(splits.normalise(images)), dim=1)
        (-(targets * log_probs).sum(dim=1).mean()).backward()
        optimizer.step()
    found = train_teacher(splits, QUICK).state_dict()
    for name, tensor in model.state_dict().items():
        torch.testing.assert_close(found[name], tensor, atol=1e-4, rtol=1e-4, msg=name)


def test_training_leaves_the_global_generator_and_the_data_alone(splits):
    state, content = torch.random.get_rng_state(), splits.content_hash
    train_teacher(splits, QUICK)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert splits.content_hash == content


def test_more_epochs_teach_more(splits):
    recipes = [QUICK, QUICK.model_copy(update={"epochs": 12, "policy": scheme("none")})]
    short, long = (accuracy(train_teacher(splits, r), splits, splits.validation) for r in recipes)
    assert long > short
    assert long > 0.4


def test_a_teacher_is_frozen_and_in_eval_mode(splits):
    teacher = train_teacher(splits, QUICK)
    assert not teacher.training
    assert not any(module.training for module in teacher.modules())
    assert not any(parameter.requires_grad for parameter in teacher.parameters())


@pytest.mark.parametrize(
    "change",
    [
        {"network": "resnet20"},
        {"width": 5},
        {"epochs": 2},
        {"batch_size": 32},
        {"learning_rate": 1e-3},
        {"weight_decay": 0.0},
        {"policy": scheme("mixup")},
        {"label_smoothing": 0.1},
        {"optimizer": SGD()},
        {"schedule": Constant()},
        {"ema_decay": 0.9},
        {"seed": 7},
    ],
    ids=lambda change: next(iter(change)),
)
def test_every_part_of_the_recipe_is_in_the_hash(splits, change):
    assert set(change) <= set(TeacherRecipe.model_fields)
    assert teacher_hash(splits, QUICK.model_copy(update=change)) != teacher_hash(splits, QUICK)


def test_what_images_are_normalised_by_is_in_the_hash(splits):
    other = replace(splits, mean=(0.5, 0.5, 0.5))
    assert other.content_hash == splits.content_hash
    assert teacher_hash(other, QUICK) != teacher_hash(splits, QUICK)


def test_a_teacher_has_the_options_of_a_student(splits):
    """The average of states, by torch's SGD, with smoothed labels: the loop written out."""
    recipe = QUICK.model_copy(
        update={
            "optimizer": SGD(),
            "schedule": Constant(),
            "ema_decay": 0.5,
            "label_smoothing": 0.2,
        }
    )
    model = build_network("resnet8", 10, width=4, seed=0).train()
    decay = {"weight_decay": QUICK.weight_decay}
    optimizer = torch.optim.SGD(model.parameters(), 4e-3, momentum=0.9, nesterov=True, **decay)
    keys = {"batch_size": 64, "repeats": 1, "seed": 0, "epoch": 0}
    average = None
    for images, targets, _ in augmented_batches(
        splits.train, QUICK.policy.augmenter(10, 0), **keys
    ):
        optimizer.zero_grad()
        smooth = 0.8 * targets + 0.02
        log_probs = torch.log_softmax(model(splits.normalise(images)), dim=1)
        (-(smooth * log_probs).sum(dim=1).mean()).backward()
        optimizer.step()
        now = model.classifier.weight.detach().clone()
        average = now if average is None else (average + now) / 2
    found = train_teacher(splits, recipe).classifier.weight
    torch.testing.assert_close(found, average, atol=1e-5, rtol=1e-4)


def test_the_data_is_in_the_hash(splits):
    other = load_splits(DigitsConfig(image_size=8, train_images=301, validation_images=100))
    assert teacher_hash(other, QUICK) != teacher_hash(splits, QUICK)
    assert teacher_hash(splits, QUICK) == teacher_hash(splits, TeacherRecipe(**dict(QUICK)))


def test_the_cache_is_where_the_environment_says(monkeypatch, tmp_path):
    monkeypatch.setenv("AUGURY_CACHE", str(tmp_path / "mine"))
    assert cache_folder() == tmp_path / "mine"
    monkeypatch.delenv("AUGURY_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache_folder() == tmp_path / "xdg" / "augury"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert cache_folder() == tmp_path / "home" / ".cache" / "augury"


def test_what_is_kept_is_weights_alone_and_is_what_comes_back(splits, monkeypatch, tmp_path):
    monkeypatch.setenv("AUGURY_CACHE", str(tmp_path))
    trained = cached_teacher(splits, QUICK)
    (file,) = (tmp_path / "teachers").iterdir()
    state = torch.load(file, weights_only=True)
    assert set(state) == set(trained.state_dict())
    # Were the teacher trained anew, the file's own weights would not come back.
    torch.save({name: tensor + 1 for name, tensor in state.items()}, file)
    again = cached_teacher(splits, QUICK)
    assert torch.equal(again.classifier.weight, trained.classifier.weight + 1)


def test_a_file_that_holds_more_than_weights_is_not_executed(splits, monkeypatch, tmp_path):
    monkeypatch.setenv("AUGURY_CACHE", str(tmp_path))
    file = tmp_path / "teachers" / f"{teacher_hash(splits, QUICK)}.pt"
    file.parent.mkdir()
    trap = tmp_path / "trap"
    torch.save(Trap(str(trap)), file)
    with pytest.raises(UserError, match="is not the teacher that it should be: delete it"):
        cached_teacher(splits, QUICK)
    assert not trap.exists()


def test_what_diverged_is_not_kept(splits, monkeypatch, tmp_path):
    monkeypatch.setenv("AUGURY_CACHE", str(tmp_path))
    with pytest.raises(UserError, match=r"teacher.learning_rate: training at 1e\+30 diverged"):
        cached_teacher(splits, QUICK.model_copy(update={"learning_rate": 1e30}))
    assert list((tmp_path / "teachers").iterdir()) == []


def test_a_cache_that_is_no_folder_is_named_before_training(splits, monkeypatch, tmp_path):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("AUGURY_CACHE", str(tmp_path / "file"))
    with pytest.raises(UserError, match="set AUGURY_CACHE"):
        cached_teacher(splits, QUICK)


class Trap:
    """Unpickling it makes a folder."""

    def __init__(self, path: str) -> None:
        self.path = path

    def __reduce__(self) -> tuple:
        return os.mkdir, (self.path,)

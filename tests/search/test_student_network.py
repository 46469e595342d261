"""Students of another network than the teacher's, through a real Ray cluster."""

import math
from dataclasses import replace
from pathlib import Path

import pytest
import ray
import torch
from ray import tune

from search.config import SearchConfig, load_config
from search.trainable import ProbeTrial, Shared
from spaces import UserError, scheme
from trainers.datasets import load_splits
from trainers.models import build_network
from trainers.student import StudentTrainer
from trainers.teacher import frozen

TINY = ["data.student_images=40", "teacher.width=4", "student.recipe.repeats=1"]


pytestmark = pytest.mark.usefixtures("cluster")


def first_validation_loss(
    config: SearchConfig, seed: int, folder: Path, images: str = "student"
) -> float:
    """Of a student after one epoch, in an actor that got everything from the object store."""
    splits = load_splits(config.data)
    teacher = frozen(build_network("resnet8", 10, width=4, seed=0))
    shared = Shared.put(config, splits, teacher, config.student.start(splits), checkpoints=folder)
    trial = {"policy": scheme("none").to_json(), "seed": seed, "cpus": 1, "gpus": 0}
    shared = shared.learning_from(images)
    bound = tune.with_parameters(ProbeTrial, shared=shared, epochs=1)
    actor = ray.remote(num_cpus=1)(bound).remote(config=trial)
    report = ray.get(actor.train.remote())
    ray.kill(actor)
    assert not report.get("failure")
    return report["validation_loss"]


def test_students_of_full_length_can_learn_from_all_training_images(tmp_path):
    config = load_config(overrides=[*TINY, "data.train_images=120"])
    splits = load_splits(config.data)
    losses = {}
    for images in ("student", "train"):
        trainer = StudentTrainer(
            teacher=frozen(build_network("resnet8", 10, width=4, seed=0)),
            splits=replace(splits, student=getattr(splits, images)),
            policy=scheme("none"),
            quantization=config.student.quantization,
            recipe=config.student.recipe,
            epochs=1,
            seed=3,
        )
        losses[images] = next(trainer.epochs()).validation_loss
    found = first_validation_loss(config, seed=3, folder=tmp_path, images="train")
    assert found == losses["train"] != losses["student"]


def test_students_start_where_the_config_says(tmp_path):
    for seed in (3, 4):
        state = build_network("vgg8", 10, width=4, seed=seed).state_dict()
        torch.save(state, tmp_path / f"{seed}.pt")
    starts = [
        "null",
        "{name: vgg8, width: 4}",
        f"{{name: vgg8, width: 4, weights: {tmp_path / '3.pt'}}}",
        f"{{name: vgg8, width: 4, weights: {tmp_path / '4.pt'}}}",
    ]
    configs = [load_config(overrides=[*TINY, f"student.network={start}"]) for start in starts]
    losses = [
        first_validation_loss(config, seed=3, folder=tmp_path / str(index))
        for index, config in enumerate(configs)
    ]
    assert all(math.isfinite(loss) for loss in losses)
    copy, fresh, three, four = losses
    assert three == fresh  # the file holds what seed 3 makes
    assert len({copy, fresh, four}) == 3


def test_a_student_that_cannot_be_is_refused_before_a_teacher_is_trained():
    config = load_config(overrides=["student.network=torchvision:resnet18"])
    with pytest.raises(UserError, match="at least 32 pixels, got 16x16"):
        config.student.start(load_splits(config.data))

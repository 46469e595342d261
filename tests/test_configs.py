"""Every config that is shipped loads, and its student takes a step on files of the true format."""

import math
import pickle
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from search.config import SearchConfig, load_config
from spaces import UserError, scheme
from trainers.datasets import load_splits
from trainers.models import OWN, build_network
from trainers.optimisation import AdamW, Step
from trainers.student import StudentTrainer
from trainers.teacher import frozen

CONFIGS = sorted((Path(__file__).parent.parent / "configs").glob("*.yaml"))


def test_digits_is_what_runs_without_a_config(repo_root):
    assert load_config(repo_root / "configs" / "digits.yaml") == SearchConfig()


@pytest.mark.parametrize("recipe", ["teacher", "student.recipe"])
def test_another_optimiser_or_schedule_has_keys_of_its_own(recipe):
    config = load_config(
        overrides=[
            f"{recipe}.optimizer=sgd",
            f"{recipe}.optimizer.momentum=0.8",
            f"{recipe}.optimizer.name=adamw",
            f"{recipe}.schedule.name=step",
            f"{recipe}.schedule.at=[0.3, 0.6]",
        ]
    )
    found = config.teacher if recipe == "teacher" else config.student.recipe
    assert found.optimizer == AdamW()
    assert found.schedule == Step(at=(0.3, 0.6))
    with pytest.raises(UserError, match=r"optimizer.name 'sdg' .*did you mean 'sgd'"):
        load_config(overrides=[f"{recipe}.optimizer=sdg"])
    with pytest.raises(UserError, match=r"schedule 'at' .*did you mean 'name'"):
        load_config(overrides=[f"{recipe}.schedule={{at: [0.5]}}"])


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.name)
def test_the_student_of_a_shipped_config_takes_a_step(path, tmp_path, monkeypatch):
    monkeypatch.setenv("AUGURY_CACHE", str(tmp_path / "cache"))
    config = shrunk(path, tmp_path)
    splits = load_splits(config.data)
    name = config.teacher.network
    width = 4 if name in OWN else None
    teacher = frozen(build_network(name, splits.num_classes, width=width, seed=0))
    trainer = StudentTrainer(
        teacher=teacher,
        splits=splits,
        policy=scheme("cutmix").on(config.data.base),
        quantization=config.student.quantization,
        recipe=config.student.recipe,
        epochs=1,
        seed=0,
    )
    first, *_, last = trainer.student.parameters()
    before = first.detach().clone(), last.detach().clone()
    (report,) = trainer.epochs()
    assert math.isfinite(report.training_loss)
    assert not first.equal(before[0])
    assert not last.equal(before[1])


def shrunk(path: Path, folder: Path) -> SearchConfig:
    """The config with a few images of the data set that it names."""
    config = load_config(path)
    classes = {"cifar10": 10, "cifar100": 100, "tiny_imagenet": 2, "digits": 10}[config.data.name]
    overrides = [
        f"data.student_images={classes}",
        f"student.recipe.batch_size={classes}",
        "student.recipe.repeats=1",
        "student.recipe.curvature_every=0",
    ]
    if config.data.name != "digits":
        write = write_cifar if config.data.name.startswith("cifar") else write_tiny_imagenet
        write(folder / "data", classes)
        overrides += [f"data.path={folder / 'data'}", f"data.validation_images={classes}"]
    if config.data.name == "tiny_imagenet":
        overrides.append("data.image_size=64")
    return load_config(path, overrides)


def write_cifar(folder: Path, classes: int) -> None:
    """Python pickles: two training images a class and one to test."""
    folder.mkdir()
    rng = np.random.default_rng(0)
    key, files = b"labels", [f"data_batch_{n}" for n in range(1, 6)]
    if classes == 100:
        key, files = b"fine_labels", ["train"]
    for name in [*files, "test" if classes == 100 else "test_batch"]:
        labels = list(range(classes)) * 2
        pixels = rng.integers(0, 256, (len(labels), 3072), dtype=np.uint8)
        (folder / name).write_bytes(pickle.dumps({key: labels, b"data": pixels}, protocol=2))


def write_tiny_imagenet(folder: Path, classes: int) -> None:
    """JPEGs in a folder per class, and those of val with a file that names their classes."""
    rng = np.random.default_rng(0)
    names = [f"n{index:08}" for index in range(classes)]
    files = {f"train/{n}/images/{n}_{i}.JPEG": n for n in names for i in range(3)}
    val = {f"val_{i}.JPEG": name for i, name in enumerate(names)}
    for file in [*files, *(f"val/images/{file}" for file in val)]:
        (folder / file).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (64, 64, 3), dtype=np.uint8)).save(folder / file)
    (folder / "wnids.txt").write_text("\n".join(names))
    rows = [f"{file}\t{name}\t0\t0\t62\t62" for file, name in val.items()]
    (folder / "val" / "val_annotations.txt").write_text("\n".join(rows))

"""Teachers from files, what they are worth, and students that are another network."""

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from torchmetrics.classification import MulticlassCalibrationError
from torchvision.transforms.v2.functional import normalize

from spaces import UserError, scheme
from trainers.datasets import DigitsConfig, ImageSplits, load_splits
from trainers.datasets.config import FolderConfig
from trainers.models import Network, build_network, network_for
from trainers.quantization import QuantizationSpec
from trainers.student import StudentRecipe, StudentTrainer
from trainers.teacher import (
    TeacherRecipe,
    accuracy,
    cached_teacher,
    frozen,
    logits_of,
    teacher_hash,
    train_teacher,
)
from trainers.teacher_check import check_teacher

QUICK = TeacherRecipe(width=4, epochs=1)
STUDENT = StudentRecipe(repeats=1, batch_size=16, curvature_every=0)


@pytest.fixture(scope="module")
def splits() -> ImageSplits:
    config = DigitsConfig(train_images=300, student_images=40, validation_images=100)
    return load_splits(config)


@pytest.fixture(scope="module")
def trained(splits) -> nn.Module:
    """It knows its training images by heart and still tells those of a class apart."""
    return train_teacher(splits, TeacherRecipe(width=8, epochs=20, policy=scheme("none")))


def student_of(splits, teacher, network, seed=0) -> StudentTrainer:
    return StudentTrainer(
        teacher=teacher,
        splits=splits,
        policy=scheme("none"),
        quantization=QuantizationSpec(),
        recipe=STUDENT,
        epochs=2,
        seed=seed,
        network=network,
    )


def test_a_teacher_from_a_file_is_neither_trained_nor_kept(splits, tmp_path, monkeypatch):
    monkeypatch.setenv("AUGURY_CACHE", str(tmp_path / "cache"))
    saved = build_network("resnet8", 10, width=4, seed=9)
    torch.save(saved.state_dict(), tmp_path / "net.pt")
    teacher = cached_teacher(splits, QUICK.model_copy(update={"weights": tmp_path / "net.pt"}))
    for key, tensor in teacher.state_dict().items():
        assert torch.equal(tensor, saved.state_dict()[key]), key
    assert not teacher.training
    assert not any(parameter.requires_grad for parameter in teacher.parameters())
    assert not (tmp_path / "cache").exists()


def test_the_hash_of_a_teacher_from_a_file_is_of_its_content_alone(splits, tmp_path):
    for name, seed in {"a.pt": 0, "c.pt": 1}.items():
        torch.save(build_network("resnet8", 10, width=4, seed=seed).state_dict(), tmp_path / name)
    (tmp_path / "b.pt").write_bytes((tmp_path / "a.pt").read_bytes())
    a, b, c = (
        QUICK.model_copy(update={"weights": tmp_path / f"{name}.pt"}) for name in ("a", "b", "c")
    )
    hashes = [teacher_hash(splits, recipe) for recipe in (a, b, c, QUICK)]
    assert hashes[0] == hashes[1]
    assert len(set(hashes)) == 3
    # Settings of a training that does not take place tell nothing apart.
    assert teacher_hash(splits, a.model_copy(update={"epochs": 9})) == hashes[0]


MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@pytest.mark.parametrize("memory_gib", [0.0, 1.0], ids=["mapped", "in memory"])
def test_images_are_normalised_as_the_file_was_trained(tmp_path, monkeypatch, memory_gib):
    """In this process and, by way of the object store's arrays, in every other."""
    monkeypatch.setenv("AUGURY_CACHE", str(tmp_path / "cache"))
    rng = np.random.default_rng(0)
    for index in range(10):
        path = tmp_path / "images" / "ab"[index % 2] / f"{index}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (8, 8, 3), dtype=np.uint8)).save(path)
    config = {"path": tmp_path / "images", "image_size": 8, "memory_gib": memory_gib}
    config |= {"validation_images": 2, "test_images": 2}
    by_itself = load_splits(FolderConfig(**config))
    images = by_itself.test.images
    for normalisation in ("imagenet", {"mean": [0.1, 0.2, 0.3], "std": [0.4, 0.5, 0.6]}):
        given = load_splits(FolderConfig(**config, normalisation=normalisation))
        elsewhere = ImageSplits.from_arrays(given.to_arrays())
        mean, std = (MEAN, STD) if normalisation == "imagenet" else normalisation.values()
        expected = normalize(images / 255, mean, std)
        for splits in (given, elsewhere):
            torch.testing.assert_close(splits.normalise(images), expected)
            assert (splits.folder is None) == (memory_gib > 0)
        assert not torch.allclose(by_itself.normalise(images), expected, atol=0.01)


def test_images_too_small_for_the_network_are_refused_before_training(splits):
    with pytest.raises(UserError, match="at least 32 pixels, got 16x16"):
        train_teacher(splits, TeacherRecipe(network="torchvision:resnet18"))


def test_a_network_with_dropout_trains_the_same_teacher_twice():
    recipe = TeacherRecipe(network="torchvision:squeezenet1_1", epochs=1, learning_rate=1e-3)
    enlarged = load_splits(DigitsConfig(image_size=24, student_images=20))
    data = ImageSplits(**{**vars(enlarged), "train": enlarged.student})
    state = torch.random.get_rng_state()
    first, again = (train_teacher(data, recipe).state_dict() for _ in range(2))
    assert torch.equal(torch.random.get_rng_state(), state)
    for key, tensor in first.items():
        assert torch.equal(tensor, again[key]), key


def test_a_student_of_its_own_network_starts_from_its_weights(splits, tmp_path):
    saved = build_network("vgg8", 10, width=4, seed=5)
    torch.save(saved.state_dict(), tmp_path / "student.pt")
    start = network_for(
        Network(name="vgg8", width=4, weights=tmp_path / "student.pt"), splits, seed=0
    )
    trainer = student_of(splits, frozen(build_network("resnet8", 10, width=4, seed=0)), start)
    assert torch.equal(trainer.student.classifier.weight, saved.classifier.weight)
    reports = list(trainer.epochs())
    assert [report.epoch for report in reports] == [1, 2]
    assert not torch.equal(trainer.student.classifier.weight, saved.classifier.weight)
    assert torch.equal(start.classifier.weight, saved.classifier.weight), "the start was trained"


def test_a_student_with_dropout_goes_on_as_if_nothing_had_interrupted_it(splits, trained):
    """Depthwise convolutions and a dropout, of a network that is not ours."""
    layers = nn.Conv2d(3, 8, 3, stride=2), nn.BatchNorm2d(8), nn.Conv2d(8, 8, 3, groups=8)
    head = nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Dropout(0.5), nn.Linear(8, 10)
    start = nn.Sequential(*layers, nn.ReLU(), *head)
    whole, interrupted, resumed = (student_of(splits, trained, start) for _ in range(3))
    expected = [report.training_loss for report in whole.epochs()]
    first = next(interrupted.epochs()).training_loss
    resumed.load_state_dict(interrupted.state_dict())
    assert [first, *(report.training_loss for report in resumed.epochs())] == expected


def test_the_figures_of_a_check_are_those_of_torchmetrics_and_a_fair_teacher_is_not_warned_of(
    splits, trained
):
    found = check_teacher(trained, splits)
    logits = logits_of(trained, splits, splits.validation)
    error = MulticlassCalibrationError(num_classes=10)
    error.update(torch.softmax(logits, dim=1), splits.validation.labels)
    assert found.validation.calibration_error == pytest.approx(float(error.compute()), abs=1e-6)
    assert found.validation.accuracy == accuracy(trained, splits, splits.validation) > 0.8
    assert found.training.accuracy == pytest.approx(1)
    assert found.test.images == len(splits.test.labels)
    assert found.warnings == ()


def test_a_teacher_that_is_sure_of_every_training_image_is_warned_of(splits, trained):
    class Sure(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return trained(x) * 10

    fair, sure = check_teacher(trained, splits), check_teacher(Sure(), splits)
    assert sure.cmi < fair.cmi
    assert sure.validation.accuracy == fair.validation.accuracy
    assert len(sure.warnings) == 1
    assert f"CMI on plain training images is {sure.cmi:.4f} nats" in sure.warnings[0]


def test_a_teacher_that_knows_nothing_is_told(splits):
    found = check_teacher(frozen(build_network("resnet8", 10, width=4, seed=0)), splits)
    assert "hardly more than" in found.warnings[0]

"""The digits: by writer, by class, by seed, and with words for what cannot be."""

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits

from spaces.errors import UserError
from trainers.datasets import DigitsConfig, ImageSplits, Labelled, load_splits


@pytest.fixture(scope="module")
def splits() -> ImageSplits:
    return load_splits(DigitsConfig())


def rows(part: Labelled) -> set[bytes]:
    return {image.numpy().tobytes() for image in part.images}


def test_sizes_shapes_and_types(splits):
    sizes = [len(p.labels) for p in (splits.train, splits.student, splits.validation, splits.test)]
    assert sizes == [900, 80, 300, 597]
    assert splits.train.images.shape == (900, 3, 16, 16)
    assert splits.train.images.dtype == torch.uint8
    assert splits.train.labels.dtype == torch.int64
    assert splits.image_size == (16, 16)


def test_the_writers_of_train_are_not_those_of_validation_and_test(splits):
    labels = load_digits().target
    assert splits.train.labels.tolist() == labels[:900].tolist()
    held_out = np.sort(np.concatenate([splits.validation.labels, splits.test.labels]))
    assert held_out.tolist() == np.sort(labels[900:]).tolist()


def test_no_image_is_in_two_parts_and_the_student_sees_a_part_of_train(splits):
    train, validation, test = map(rows, (splits.train, splits.validation, splits.test))
    assert not train & validation
    assert not train & test
    assert not validation & test
    assert rows(splits.student) < train


def test_every_class_has_its_share(splits):
    assert splits.student.labels.bincount().tolist() == [8] * 10
    held_out = splits.validation.labels.bincount() + splits.test.labels.bincount()
    expected = held_out * 300 / 897
    assert (splits.validation.labels.bincount() - expected).abs().max() <= 1


def test_the_seed_changes_who_validates_but_not_who_trains(splits):
    other = load_splits(DigitsConfig(seed=1))
    assert torch.equal(other.train.images, splits.train.images)
    assert rows(other.validation) != rows(splits.validation)
    assert rows(other.student) != rows(splits.student)


def test_upsampling_keeps_the_range(splits):
    assert splits.train.images.min() == 0
    assert splits.train.images.max() == 255
    larger = load_splits(DigitsConfig(image_size=32))
    assert larger.image_size == (32, 32)


def test_normalised_training_images_have_mean_zero_and_deviation_one(splits):
    images = splits.normalise(splits.train.images)
    assert images.mean().item() == pytest.approx(0, abs=1e-5)
    assert images.std().item() == pytest.approx(1, abs=1e-5)


def test_the_hash_names_the_content(splits):
    assert load_splits(DigitsConfig()).content_hash == splits.content_hash
    others = [DigitsConfig(seed=1), DigitsConfig(student_images=90), DigitsConfig(image_size=8)]
    hashes = {load_splits(config).content_hash for config in others}
    assert len(hashes | {splits.content_hash}) == 4


def test_the_digits_are_those_of_every_version():
    assert load_splits(DigitsConfig()).content_hash == "13ddf540218c1a8f"


def test_arrays_and_back_without_a_warning_for_read_only_memory(splits):
    arrays = splits.to_arrays()
    for part in ("train", "student", "validation", "test"):
        for array in arrays[part]:
            array.setflags(write=False)
    assert ImageSplits.from_arrays(arrays).content_hash == splits.content_hash


@pytest.mark.parametrize(
    ("config", "sentence"),
    [
        (DigitsConfig(validation_images=5), r"validation split of 5 images misses class .*: raise"),
        (DigitsConfig(validation_images=890), r"test split of 7 images misses class .*: lower"),
        (DigitsConfig(validation_images=897), "at most 896 can validate, got 897"),
        (DigitsConfig(student_images=7), "student split of 7 images misses class"),
        (DigitsConfig(student_images=901), "at most data.train_images = 900, got 901"),
        (DigitsConfig(train_images=1797), "at most 0 can validate"),
    ],
)
def test_splits_that_cannot_be_are_refused_in_a_sentence(config, sentence):
    with pytest.raises(UserError, match=sentence):
        load_splits(config)

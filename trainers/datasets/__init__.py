"""Data sets as uint8 images in four parts: train, student, validation, test."""

from dataclasses import replace

from trainers.datasets.assembly import assembled
from trainers.datasets.cache import cached
from trainers.datasets.cifar import cifar
from trainers.datasets.config import (
    IMAGENET,
    AnyData,
    CifarConfig,
    DataConfig,
    DigitsConfig,
    EncodedConfig,
    FolderConfig,
    TinyImageNetConfig,
)
from trainers.datasets.digits import digits
from trainers.datasets.encoded import Source
from trainers.datasets.folders import image_folder, tiny_imagenet
from trainers.datasets.parquet import parquet
from trainers.datasets.splits import PARTS, ImageSplits, Labelled, as_tensor

__all__ = [
    "PARTS",
    "DataConfig",
    "DigitsConfig",
    "ImageSplits",
    "Labelled",
    "as_tensor",
    "load_splits",
]


def load_splits(config: AnyData) -> ImageSplits:
    """The data set that `config` asks for; raises UserError where it cannot be read or split."""
    splits = _read(config)
    if config.normalisation == "data":
        return splits
    given = IMAGENET if config.normalisation == "imagenet" else config.normalisation
    return replace(splits, mean=given.mean, std=given.std)


def _read(config: AnyData) -> ImageSplits:
    if isinstance(config, DigitsConfig):
        return digits(config)
    if isinstance(config, CifarConfig):
        classes, parts = cifar(config)
        return assembled(config.name, classes, parts, config)
    return _encoded(config)


def _encoded(config: EncodedConfig) -> ImageSplits:
    """Encoded images by way of the cache."""
    source = _source(config)
    parts, files, notes = {}, {}, []
    for part, encoded in source.parts.items():
        parts[part], files[part], told = cached(encoded, part, config.image_size, config.bad_images)
        notes += told
    return assembled(config.name, source.classes, parts, config, files=files, notes=notes)


def _source(config: EncodedConfig) -> Source:
    if isinstance(config, TinyImageNetConfig):
        return tiny_imagenet(config)
    return image_folder(config) if isinstance(config, FolderConfig) else parquet(config)

"""Data sets as uint8 tensors in three parts: train, validation, test."""

import dataclasses
import hashlib
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal, NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int64, UInt8
from pydantic import Field
from torch import Tensor
from torch.nn.functional import interpolate

from spaces import Chain, randomness
from spaces.errors import UserError
from spaces.frozen import Frozen

PARTS = ("train", "student", "validation", "test")


class DataConfig(Frozen):
    """Which data set, how large its images are and how many go into which part."""

    name: Literal["digits"] = "digits"
    image_size: Annotated[int, Field(ge=8, le=64, description="side of the images, pixels")] = 16
    train_images: Annotated[int, Field(ge=10, description="the teacher learns from these")] = 900
    student_images: Annotated[
        int, Field(ge=1, description="class-balanced part of them that the student is distilled on")
    ] = 80
    validation_images: Annotated[int, Field(ge=1, description="promotion decides by these")] = 300
    base: Annotated[
        Chain, Field(description="operations that belong to the data set, under every policy")
    ] = Chain()
    seed: Annotated[int, Field(ge=0, le=2**31 - 1)] = 0


class Labelled(NamedTuple):
    """Images (N, C, H, W) uint8 and labels (N,) int64."""

    images: Tensor
    labels: Tensor

    def take(self, rows: Int64[Tensor, " m"]) -> "Labelled":
        return Labelled(self.images[rows], self.labels[rows])

    def to(self, device: torch.device) -> "Labelled":
        return Labelled(self.images.to(device), self.labels.to(device))


@dataclass(frozen=True)
class ImageSplits:
    """A data set ready for training. `student` is a part of `train`; `mean`, `std` are of `train`,
    per channel, in units of the full range 0..1."""

    name: str
    num_classes: int
    train: Labelled
    student: Labelled
    validation: Labelled
    test: Labelled
    mean: tuple[float, ...]
    std: tuple[float, ...]

    @property
    def image_size(self) -> tuple[int, int]:
        """Height and width in pixels."""
        height, width = self.train.images.shape[-2:]
        return height, width

    @property
    def content_hash(self) -> str:
        """Sixteen hex digits of all pixels and labels and of who belongs to which part."""
        digest = hashlib.blake2b(digest_size=8)
        for part in PARTS:
            for tensor in getattr(self, part):
                digest.update(str(tuple(tensor.shape)).encode())
                digest.update(tensor.cpu().numpy().tobytes())
        return digest.hexdigest()

    def normalise(self, images: UInt8[Tensor, "n c h w"]) -> Float[Tensor, "n c h w"]:
        """Images as float32 of mean 0 and deviation 1 on the training images, per channel."""
        mean = torch.tensor(self.mean, device=images.device).view(-1, 1, 1) * 255
        std = torch.tensor(self.std, device=images.device).view(-1, 1, 1) * 255
        return (images.float() - mean) / std

    def to(self, device: torch.device) -> "ImageSplits":
        """The same splits with their tensors on `device`."""
        return dataclasses.replace(self, **{p: getattr(self, p).to(device) for p in PARTS})

    def to_arrays(self) -> dict[str, Any]:
        """The content as numpy arrays, which Ray's object store shares without copies."""
        fields = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        for part in PARTS:
            images, labels = fields[part]
            fields[part] = images.cpu().numpy(), labels.cpu().numpy()
        return fields

    @classmethod
    def from_arrays(cls, content: Mapping[str, Any]) -> "ImageSplits":
        """The inverse of `to_arrays`; the tensors may be read-only views."""
        fields = dict(content)
        for part in PARTS:
            images, labels = fields[part]
            fields[part] = Labelled(as_tensor(images), as_tensor(labels))
        return cls(**fields)


def as_tensor(array: np.ndarray) -> Tensor:
    """A tensor that shares the memory of `array`, also where that is read-only."""
    with warnings.catch_warnings():
        # Nothing here writes into shared arrays: images are gathered, the teacher is frozen.
        warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
        return torch.from_numpy(array)


def load_splits(config: DataConfig) -> ImageSplits:
    """The data set that `config` asks for; raises UserError where it cannot be split like that."""
    return _digits(config)


def _digits(config: DataConfig) -> ImageSplits:
    """scikit-learn's handwritten digits: 1,797 images of 8x8 by 13 writers (Alpaydin and Kaynak,
    UCI 1998), upsampled, three equal channels.

    The file is in the order of its writers, so a cut through it splits by writer: the first images
    train; the others, by people whom the teacher never saw, are validation and test.
    """
    from sklearn.datasets import load_digits  # a second that only this data set costs

    raw = load_digits()
    grey = torch.from_numpy(raw.images).float().unsqueeze(1) * (255 / 16)
    size = (config.image_size, config.image_size)
    grey = interpolate(grey, size=size, mode="bilinear", antialias=False)
    images = grey.round().to(torch.uint8).repeat(1, 3, 1, 1)
    everything = Labelled(images, torch.from_numpy(raw.target).to(torch.int64))
    held_out = len(images) - config.train_images
    if config.validation_images >= held_out:
        raise UserError(
            f"data.validation_images: digits has {len(images)} images, {config.train_images} train "
            f"and at least one must test, so at most {max(held_out - 1, 0)} can validate, "
            f"got {config.validation_images}"
        )
    train = everything.take(torch.arange(config.train_images))
    others = everything.take(torch.arange(config.train_images, len(images)))
    return _splits("digits", 10, train, others, config)


def _splits(
    name: str, num_classes: int, train: Labelled, others: Labelled, config: DataConfig
) -> ImageSplits:
    """Cuts validation and test out of `others` and the student's part out of `train`."""
    if config.student_images > len(train.labels):
        raise UserError(
            f"data.student_images: at most data.train_images = {len(train.labels)}, "
            f"got {config.student_images}"
        )
    order = _stratified_order(others.labels, config.seed, "validation")
    validation = others.take(order[: config.validation_images])
    test = others.take(order[config.validation_images :])
    student = train.take(
        _stratified_order(train.labels, config.seed, "student")[: config.student_images]
    )
    sizes = {"train": train, "student": student, "validation": validation, "test": test}
    for part, images in sizes.items():
        _require_every_class(part, images.labels, num_classes)
    pixels = train.images.float() / 255
    return ImageSplits(
        name=name,
        num_classes=num_classes,
        train=train,
        student=student,
        validation=validation,
        test=test,
        mean=tuple(pixels.mean(dim=(0, 2, 3)).tolist()),
        std=tuple(pixels.std(dim=(0, 2, 3)).tolist()),
    )


def _stratified_order(labels: Int64[Tensor, " n"], seed: int, purpose: str) -> Int64[Tensor, " n"]:
    """An order of which every beginning holds all classes in nearly their own proportions.

    Within a class the order is drawn from `seed`; the j-th of the n images of a class stands at
    (j + u) / n of the way, u drawn per class so that short beginnings favour no class.
    """
    values = labels.numpy()
    draws = randomness.uniform(np.arange(len(values)), seed, purpose)
    position = np.empty(len(values))
    for label in np.unique(values):
        rows = np.flatnonzero(values == label)
        shuffled = rows[np.argsort(draws[rows], kind="stable")]
        offset = randomness.uniform(np.array([label]), seed, purpose, "offset")[0]
        position[shuffled] = (np.arange(len(rows)) + offset) / len(rows)
    return torch.from_numpy(np.argsort(position, kind="stable"))


def _require_every_class(part: str, labels: Tensor, num_classes: int) -> None:
    missing = sorted(set(range(num_classes)) - set(labels.tolist()))
    if missing:
        key = {"test": "validation_images"}.get(part, f"{part}_images")
        change = "lower" if part == "test" else "raise"
        raise UserError(
            f"the {part} split of {len(labels)} images misses class "
            f"{', '.join(map(str, missing))}: {change} data.{key}"
        )

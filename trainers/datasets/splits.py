"""A data set in four parts, in memory or mapped from the cache."""

import dataclasses
import hashlib
import json
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int64, UInt8
from torch import Tensor

from spaces.atomic_write import atomic_write
from spaces.errors import UserError

PARTS = ("train", "student", "validation", "test")


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
    """A data set ready for training. `student` is a part of `train`; `mean`, `std` are what images
    are normalised by, per channel, in units of the full range 0..1. `notes` says in sentences what
    reading it met. `folder` is where the parts lie that are mapped from files and not in memory."""

    name: str
    num_classes: int
    train: Labelled
    student: Labelled
    validation: Labelled
    test: Labelled
    mean: tuple[float, ...]
    std: tuple[float, ...]
    notes: tuple[str, ...] = ()
    folder: Path | None = None

    @property
    def image_size(self) -> tuple[int, int]:
        """Height and width in pixels."""
        height, width = self.train.images.shape[-2:]
        return height, width

    @property
    def content_hash(self) -> str:
        """Sixteen hex digits of all pixels and labels and of who belongs to which part; the same
        in memory and mapped, where it was computed when the files were made."""
        if self.folder:
            return str(_described(self.folder)["content_hash"])
        return content_hash({part: getattr(self, part) for part in PARTS})

    def normalise(self, images: UInt8[Tensor, "n c h w"]) -> Float[Tensor, "n c h w"]:
        """Images as float32, less `mean` and over `std`, per channel.

        On a CPU their channels are last in memory, which makes networks half as fast again.
        """
        layout = torch.channels_last if images.device.type == "cpu" else torch.preserve_format
        mean = torch.tensor(self.mean, device=images.device).view(-1, 1, 1) * 255
        std = torch.tensor(self.std, device=images.device).view(-1, 1, 1) * 255
        return images.to(torch.float32, memory_format=layout).sub_(mean).div_(std)

    def to(self, device: torch.device) -> "ImageSplits":
        """The same splits with their tensors on `device`."""
        return dataclasses.replace(self, **{p: getattr(self, p).to(device) for p in PARTS})

    def to_arrays(self) -> dict[str, Any]:
        """The content as numpy arrays, which Ray's object store shares without copies; of mapped
        splits the folder, which every process maps for itself."""
        if self.folder:
            return {"folder": str(self.folder), "mean": self.mean, "std": self.std}
        fields = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        for part in PARTS:
            images, labels = fields[part]
            fields[part] = images.cpu().numpy(), labels.cpu().numpy()
        return fields

    @classmethod
    def from_arrays(cls, content: Mapping[str, Any]) -> "ImageSplits":
        """The inverse of `to_arrays`; the tensors may be read-only views."""
        if content["folder"]:
            splits = cls.mapped(Path(content["folder"]))
            return dataclasses.replace(splits, mean=content["mean"], std=content["std"])
        fields = dict(content)
        for part in PARTS:
            images, labels = fields[part]
            fields[part] = Labelled(as_tensor(images), as_tensor(labels))
        return cls(**fields)

    @classmethod
    def mapped(cls, folder: Path) -> "ImageSplits":
        """The splits that `trainers.datasets.assembly` wrote into `folder`: read-only tensors that
        all processes of a machine share. Raises UserError where the files are not whole."""
        described = _described(folder)
        parts = mapped_parts(folder)
        return cls(
            name=described["name"],
            num_classes=described["num_classes"],
            **parts,
            mean=tuple(described["mean"]),
            std=tuple(described["std"]),
            notes=tuple(described["notes"]),
            folder=folder,
        )


def mapped_parts(folder: Path) -> dict[str, Labelled]:
    """The parts that lie in `folder`; raises UserError where a file is not whole."""
    parts = {}
    for part in PARTS:
        labels = loaded(folder / f"{part}_labels.npy", np.int64)
        images = loaded(folder / f"{part}.npy", np.uint8, mapped=True)[: len(labels)]
        parts[part] = Labelled(as_tensor(images), as_tensor(labels))
    return parts


def loaded(path: Path, kind: type[np.generic], *, mapped: bool = False) -> np.ndarray:
    """The array in a file of the cache; raises UserError where that is not whole."""
    try:
        array = np.load(path, mmap_mode="r" if mapped else None)
    except Exception:  # whatever a broken header makes numpy raise
        array = None
    if array is None or array.dtype != kind or array.ndim == 0:
        raise UserError(f"{path.parent} is not the data that it should be: delete it")
    return array


def describe(folder: Path, content: Mapping[str, Any]) -> None:
    """Writes what is to be known of the parts in `folder` beside them, and a digest of it."""
    with atomic_write(folder / "splits.json") as path:
        path.write_text(json.dumps({**content, "digest": _digest(content)}, indent=2))


def _described(folder: Path) -> dict[str, Any]:
    try:
        content = json.loads((folder / "splits.json").read_text())
        whole = content.pop("digest") == _digest(content)
    except FileNotFoundError:
        raise UserError(
            f"{folder}: the data is not on this machine: set AUGURY_CACHE to a folder that all "
            "machines share"
        ) from None
    except (ValueError, KeyError, AttributeError, TypeError):
        whole = False
    if not whole:
        raise UserError(f"{folder} is damaged: delete it")
    return content


def _digest(content: Mapping[str, Any]) -> str:
    return hashlib.blake2b(json.dumps(content, sort_keys=True).encode(), digest_size=8).hexdigest()


def content_hash(parts: Mapping[str, Labelled]) -> str:
    """Sixteen hex digits of the shapes and bytes of all four parts."""
    digest = hashlib.blake2b(digest_size=8)
    for part in PARTS:
        for tensor in parts[part]:
            digest.update(str(tuple(tensor.shape)).encode())
            digest.update(np.ascontiguousarray(tensor.cpu().numpy()).data)
    return digest.hexdigest()


def as_tensor(array: np.ndarray) -> Tensor:
    """A tensor that shares the memory of `array`, also where that is read-only."""
    with warnings.catch_warnings():
        # Nothing here writes into shared arrays: images are gathered, the teacher is frozen.
        warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
        return torch.from_numpy(array)

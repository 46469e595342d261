"""Parts of a source as ImageSplits: in memory where they fit, else mapped from the cache."""

import hashlib
import os
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from spaces.atomic_write import atomic_write
from spaces.errors import UserError
from trainers.cache_folder import made_folder, make_once, reserve
from trainers.datasets.cache import require_unchanged
from trainers.datasets.config import DividedConfig
from trainers.datasets.division import Division, divided
from trainers.datasets.splits import (
    PARTS,
    ImageSplits,
    Labelled,
    content_hash,
    describe,
    mapped_parts,
)

GIB = 2**30
FORMAT = 2  # raise it where the same parts would be kept otherwise
ROWS_AT_ONCE = 4096  # copied or counted


def assembled(
    name: str,
    classes: Sequence[str],
    source: Mapping[str, Labelled],
    config: DividedConfig,
    *,
    files: Mapping[str, Path] | None = None,
    notes: Sequence[str] = (),
) -> ImageSplits:
    """Divides `source` as `config` says. Where the parts together exceed its `memory_gib` they are
    written to the cache once and mapped; `files` are those of the source that are mapped already.

    Raises UserError where the source cannot be divided like that, and where files of the cache are
    no longer what was written.
    """
    division = divided({part: images.labels for part, images in source.items()}, classes, config)
    if _size(source, division) > config.memory_gib * GIB:
        folder = made_folder("datasets", "mapped images") / _key(source, division, files or {})
        about = {"name": name, "num_classes": len(classes), "notes": list(notes)}
        make_once(folder, partial(_fill, about, source, division, files or {}))
        mapped = ImageSplits.mapped(folder)
        if content_hash({part: getattr(mapped, part) for part in PARTS}) != mapped.content_hash:
            raise UserError(f"{folder} is damaged: delete it")
        return mapped
    for file in (files or {}).values():
        require_unchanged(file)
    train, validation, test = (
        source[origin].take(rows)
        for origin, rows in (division[part] for part in ("train", "validation", "test"))
    )
    student = train if _is_train(division) else source["train"].take(division["student"][1])
    mean, std = channel_statistics(train.images)
    return ImageSplits(
        name=name,
        num_classes=len(classes),
        train=train,
        student=student,
        validation=validation,
        test=test,
        mean=mean,
        std=std,
        notes=tuple(notes),
    )


def channel_statistics(images: Tensor) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and sample deviation per channel of uint8 (N, C, H, W), in units of the full range.

    From counts of the 256 values: exact, and without a copy of the images as floats.
    """
    channels = images.shape[1]
    counts = torch.zeros(channels, 256, dtype=torch.float64)
    for some in images.split(ROWS_AT_ONCE):
        for channel in range(channels):
            counts[channel] += some[:, channel].flatten().bincount(minlength=256)
    values = torch.arange(256, dtype=torch.float64) / 255
    total = counts.sum(dim=1)
    mean = counts @ values / total
    squares = (counts * (values - mean.unsqueeze(1)) ** 2).sum(dim=1)
    return tuple(mean.tolist()), tuple((squares / (total - 1)).sqrt().tolist())


def _size(source: Mapping[str, Labelled], division: Division) -> int:
    """Bytes of the images of all parts; a student that is all of train costs nothing."""
    own = [part for part in PARTS if part != "student" or not _is_train(division)]
    rows = sum(len(division[part][1]) for part in own)
    return rows * source["train"].images[0].numel()


def _is_train(division: Division) -> bool:
    return division["student"][1] is division["train"][1]


def _key(source: Mapping[str, Labelled], division: Division, files: Mapping[str, Path]) -> str:
    digest = hashlib.blake2b(f"{FORMAT}".encode(), digest_size=10)
    for part in PARTS:
        origin, rows = division[part]
        digest.update(f"{part} {origin} ".encode())
        digest.update(rows.numpy().data)
    for part, labelled in source.items():
        if part in files:  # in a folder that is called by its content
            digest.update(files[part].parent.name.encode())
        else:
            digest.update(np.ascontiguousarray(labelled.images.numpy()).data)
        digest.update(labelled.labels.numpy().data)
    return f"splits-{digest.hexdigest()}"


def _fill(
    about: dict[str, Any],
    source: Mapping[str, Labelled],
    division: Division,
    files: Mapping[str, Path],
    folder: Path,
) -> None:
    for file in files.values():
        require_unchanged(file)
    for left in folder.iterdir():  # by a killed process
        left.unlink()
    for part in PARTS:
        origin, rows = division[part]
        images = folder / f"{part}.npy"
        if part == "student" and _is_train(division):
            os.link(folder / "train.npy", images)
        elif origin in files and len(rows) == len(source[origin].labels):
            os.link(files[origin], images)  # a second name of the file, not a copy
        else:
            _copy(source[origin].images, rows, images)
        with (folder / f"{part}_labels.npy").open("wb") as labels:
            np.save(labels, source[origin].labels[rows].numpy())
    parts = mapped_parts(folder)
    mean, std = channel_statistics(parts["train"].images)
    describe(folder, about | {"mean": mean, "std": std, "content_hash": content_hash(parts)})


def _copy(images: Tensor, rows: Tensor, path: Path) -> None:
    shape = (len(rows), *images.shape[1:])
    with atomic_write(path) as temporary:
        copy = np.lib.format.open_memmap(temporary, "w+", np.uint8, shape)
        reserve(temporary)
        for start in range(0, len(rows), ROWS_AT_ONCE):
            some = rows[start : start + ROWS_AT_ONCE]
            copy[start : start + len(some)] = images[some].numpy()
        copy.flush()

"""Decoded images, made once and kept: nobody decodes a JPEG twice.

The images of one part lie in a folder called by a digest of their files. While it is made it has
another name and a journal, so that who comes after a kill goes on where the last whole chunk ended;
a lock lets one process of a machine make it while the others wait.

    images.npy      (N, 3, size, size) uint8; what could not be decoded has no row
    labels.npy      int64, of the rows
    journal.jsonl   a line per chunk: rows, digest of their bytes, what was left out or converted
    summary.json    the last to be written
"""

import fcntl
import hashlib
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import numpy as np
from pydantic import ValidationError

from spaces.atomic_write import atomic_write
from spaces.errors import UserError
from spaces.frozen import Frozen
from trainers.cache_folder import made_folder
from trainers.datasets.decoding import BadImageError, Decoded, decoded
from trainers.datasets.encoded import Encoded
from trainers.datasets.splits import Labelled, as_tensor

FORMAT = 1  # raise it where the same files would give other pixels
CHUNK = 256  # images between lines of the journal
NAMED = 3  # bad images in a message


class _Chunk(Frozen):
    """A line of the journal. `bad` holds, of what was left out, the place in the source and why."""

    rows: int
    digest: str
    bad: dict[int, str]
    cmyk: int
    sixteen_bit: int


class _Summary(Frozen):
    """What was left out of `total` images, by name and reason, and what was converted."""

    total: int
    bad: dict[str, str]
    cmyk: int
    sixteen_bit: int

    def sentences(self, part: str) -> Iterator[str]:
        if self.bad:
            yield f"{part}: {len(self.bad)} of {self.total} images left out: {_named(self.bad)}"
        for count, kind in ((self.cmyk, "CMYK"), (self.sixteen_bit, "16-bit")):
            if count:
                yield f"{part}: {count} {kind} images converted to 8-bit RGB"


def cached(
    source: Encoded, part: str, size: int, bad_images: float
) -> tuple[Labelled, Path, list[str]]:
    """The images of `source` as read-only mapped uint8 (N, 3, size, size), the file that they are
    in, and sentences about what was left out or converted.

    Raises UserError that names the first bad images where they are more than the fraction
    `bad_images` of all, and where the files of the cache are not whole.
    """
    key = hashlib.blake2b(f"{FORMAT} {size} {source.stamp}".encode(), digest_size=10).hexdigest()
    folder = made_folder("datasets", "decoded images") / key
    if not folder.exists():
        with _alone(folder.with_suffix(".lock")):
            if not folder.exists():
                _make(folder, source, part, size, bad_images)
    labelled, summary = _open(folder)
    _require_few(summary.bad, summary.total, bad_images, part)  # another limit may have made it
    return labelled, folder / "images.npy", list(summary.sentences(part))


@contextmanager
def _alone(path: Path) -> Iterator[None]:
    """Holds the lock at `path`, which a kill gives back."""
    with path.open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _make(folder: Path, source: Encoded, part: str, size: int, bad_images: float) -> None:
    unfinished = folder.with_suffix(".unfinished")
    unfinished.mkdir(exist_ok=True)
    images = _writable(unfinished / "images.npy", (len(source.labels), 3, size, size))
    chunks = _whole_chunks(unfinished / "journal.jsonl", images)
    rows = sum(chunk.rows for chunk in chunks)
    with atomic_write(unfinished / "journal.jsonl") as kept:
        kept.write_text("".join(chunk.model_dump_json() + "\n" for chunk in chunks))
    with (unfinished / "journal.jsonl").open("a") as journal, ThreadPoolExecutor() as threads:
        for start in range(CHUNK * len(chunks), len(images), CHUNK):
            encoded = source.read(start, start + CHUNK)
            found = list(threads.map(partial(_try, size=size), encoded))
            good = [image for image in found if isinstance(image, Decoded)]
            for row, image in enumerate(good, start=rows):
                images[row] = image.pixels
            images.flush()
            rows += len(good)
            chunk = _Chunk(
                rows=len(good),
                digest=_digest(images[rows - len(good) : rows]),
                bad={start + i: why for i, why in enumerate(found) if isinstance(why, str)},
                cmyk=sum(image.cmyk for image in good),
                sixteen_bit=sum(image.sixteen_bit for image in good),
            )
            chunks.append(chunk)
            journal.write(chunk.model_dump_json() + "\n")
            journal.flush()
            os.fsync(journal.fileno())
            _require_few(_bad(chunks, source), len(images), bad_images, part)
    _finish(unfinished, source, chunks)
    unfinished.rename(folder)


def _try(content: bytes, size: int) -> Decoded | str:
    """The image, or why there is none."""
    try:
        return decoded(content, size)
    except BadImageError as error:
        return str(error)


def _writable(path: Path, shape: tuple[int, ...]) -> np.memmap:
    if not path.exists():
        with atomic_write(path) as temporary:
            np.lib.format.open_memmap(temporary, "w+", np.uint8, shape).flush()
    return np.lib.format.open_memmap(path, "r+")


def _whole_chunks(journal: Path, images: np.ndarray) -> list[_Chunk]:
    """The chunks that a killed process finished, up to the first that is not what was written."""
    chunks: list[_Chunk] = []
    rows = 0
    for line in journal.read_text().splitlines() if journal.exists() else ():
        try:
            chunk = _Chunk.model_validate_json(line)
        except ValidationError:  # the last line of a killed process
            break
        if chunk.digest != _digest(images[rows : rows + chunk.rows]):
            break
        chunks.append(chunk)
        rows += chunk.rows
    return chunks


def _digest(images: np.ndarray) -> str:
    return hashlib.blake2b(np.ascontiguousarray(images).data, digest_size=8).hexdigest()


def _finish(folder: Path, source: Encoded, chunks: list[_Chunk]) -> None:
    bad = {place for chunk in chunks for place in chunk.bad}
    labels = [label for place, label in enumerate(source.labels) if place not in bad]
    with atomic_write(folder / "labels.npy") as temporary, temporary.open("wb") as file:
        np.save(file, np.array(labels, np.int64))
    summary = _Summary(
        total=len(source.labels),
        bad=_bad(chunks, source),
        cmyk=sum(chunk.cmyk for chunk in chunks),
        sixteen_bit=sum(chunk.sixteen_bit for chunk in chunks),
    )
    with atomic_write(folder / "summary.json") as temporary:
        temporary.write_text(summary.model_dump_json(indent=2))


def _bad(chunks: list[_Chunk], source: Encoded) -> dict[str, str]:
    return {source.names[place]: why for chunk in chunks for place, why in chunk.bad.items()}


def _require_few(bad: dict[str, str], total: int, limit: float, part: str) -> None:
    if len(bad) > limit * total:
        raise UserError(
            f"data.bad_images: at least {len(bad)} of the {total} images of {part} cannot be "
            f"used, more than {limit:g} of all: {_named(bad)}"
        )


def _named(bad: dict[str, str]) -> str:
    first = [f"{name} ({why})" for name, why in list(bad.items())[:NAMED]]
    return ", ".join(first) + (", ..." if len(bad) > NAMED else "")


def _open(folder: Path) -> tuple[Labelled, _Summary]:
    try:
        summary = _Summary.model_validate_json((folder / "summary.json").read_text())
        labels = np.load(folder / "labels.npy")
        images = np.load(folder / "images.npy", mmap_mode="r")[: len(labels)]
    except (OSError, ValueError):
        raise UserError(f"{folder} is not the images that it should be: delete it") from None
    return Labelled(as_tensor(images), as_tensor(labels)), summary


def require_unchanged(images_file: Path) -> None:
    """Raises UserError where the bytes of a cache are no longer those that were written."""
    images = np.load(images_file, mmap_mode="r")
    journal = images_file.with_name("journal.jsonl")
    written = len(journal.read_text().splitlines())
    if len(_whole_chunks(journal, images)) != written:
        raise UserError(f"{images_file.parent} is damaged: delete it")

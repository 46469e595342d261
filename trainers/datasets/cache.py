"""Decoded images, made once and kept: nobody decodes a JPEG twice.

The images of one part lie in a folder called by a digest of their files. Who comes after a kill
goes on where the last whole chunk ended.

    images.npy      (N, 3, size, size) uint8; what could not be decoded has no row
    journal.jsonl   a line per chunk of files: rows, what was left out or converted, and a digest
                    of the line and of the pixels
"""

import hashlib
import os
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np
import torch
from pydantic import ValidationError

from spaces.atomic_write import atomic_write
from spaces.errors import UserError
from spaces.frozen import Frozen
from trainers.cache_folder import made_folder, make_once, reserve
from trainers.datasets.decoding import BadImageError, Decoded, decoded
from trainers.datasets.encoded import Encoded
from trainers.datasets.splits import Labelled, as_tensor, loaded

FORMAT = 2  # raise it where the same files would give other pixels, or these be kept otherwise
CHUNK = 256  # files between lines of the journal
NAMED = 3  # bad images in a message


class _Chunk(Frozen):
    """A line of the journal. `bad` holds, of what was left out, the place in the source and why."""

    rows: int
    bad: dict[int, str]
    cmyk: int
    sixteen_bit: int
    digest: str = ""

    def digest_with(self, images: np.ndarray) -> str:
        """What `digest` should be where these are its rows."""
        digest = hashlib.blake2b(np.ascontiguousarray(images).data, digest_size=8)
        digest.update(self.model_dump_json(exclude={"digest"}).encode())
        return digest.hexdigest()


def cached(
    source: Encoded, part: str, size: int, bad_images: float
) -> tuple[Labelled, Path, list[str]]:
    """The images of `source` as read-only mapped uint8 (N, 3, size, size), the file that they are
    in, and sentences about what was left out or converted.

    Raises UserError that names the first bad images where they are more than the fraction
    `bad_images` of all, and where the files of the cache are not whole. Whether pixels are still
    those that were written, `require_unchanged` tells.
    """
    key = hashlib.blake2b(f"{FORMAT} {size} {source.stamp}".encode(), digest_size=10).hexdigest()
    folder = made_folder("datasets", "decoded images") / key
    make_once(folder, partial(_make, source=source, part=part, size=size, bad_images=bad_images))
    chunks = _read_journal(folder / "journal.jsonl")
    bad = _bad(chunks, source)
    _require_few(bad, source, bad_images, part)  # another limit may have made it
    kept = [label for place, label in enumerate(source.labels) if place not in bad]
    labels = torch.tensor(kept, dtype=torch.int64)
    images = loaded(folder / "images.npy", np.uint8, mapped=True)[: len(labels)]
    if len(images) != len(labels) or sum(chunk.rows for chunk in chunks) != len(labels):
        raise UserError(f"{folder} is damaged: delete it")
    notes = list(_notes(chunks, bad, source, part))
    return Labelled(as_tensor(images), labels), folder / "images.npy", notes


def require_unchanged(images_file: Path) -> None:
    """Raises UserError where the bytes of a cache are no longer those that were written."""
    images = loaded(images_file, np.uint8, mapped=True)
    chunks = _read_journal(images_file.with_name("journal.jsonl"))
    if len(_whole(chunks, images)) != len(chunks):
        raise UserError(f"{images_file.parent} is damaged: delete it")


def _make(unfinished: Path, *, source: Encoded, part: str, size: int, bad_images: float) -> None:
    for left in unfinished.glob(".*.tmp"):  # by a kill between two whole files
        left.unlink()
    images = _writable(unfinished / "images.npy", (len(source.labels), 3, size, size))
    chunks = _whole(_lines(unfinished / "journal.jsonl"), images)
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
                bad={start + i: why for i, why in enumerate(found) if isinstance(why, str)},
                cmyk=sum(image.cmyk for image in good),
                sixteen_bit=sum(image.sixteen_bit for image in good),
            )
            digest = chunk.digest_with(images[rows - len(good) : rows])
            chunks.append(chunk.model_copy(update={"digest": digest}))
            journal.write(chunks[-1].model_dump_json() + "\n")
            journal.flush()
            os.fsync(journal.fileno())
            _require_few(_bad(chunks, source), source, bad_images, part)


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
            reserve(temporary)
    return np.lib.format.open_memmap(path, "r+")


def _lines(journal: Path) -> Iterator[_Chunk]:
    """The lines up to the first that is none, as is the last one of a killed process."""
    for line in journal.read_bytes().splitlines() if journal.exists() else ():
        try:
            yield _Chunk.model_validate_json(line)
        except ValidationError:
            return


def _read_journal(path: Path) -> list[_Chunk]:
    """The lines of a finished cache, where all of them must be whole."""
    chunks = list(_lines(path))
    if not path.exists() or len(chunks) != len(path.read_bytes().splitlines()):
        raise UserError(f"{path.parent} is damaged: delete it")
    return chunks


def _whole(chunks: Iterable[_Chunk], images: np.ndarray) -> list[_Chunk]:
    """`chunks` up to the first whose line or pixels are not what was written."""
    whole: list[_Chunk] = []
    rows = 0
    for chunk in chunks:
        if chunk.digest != chunk.digest_with(images[rows : rows + chunk.rows]):
            break
        whole.append(chunk)
        rows += chunk.rows
    return whole


def _bad(chunks: list[_Chunk], source: Encoded) -> dict[int, str]:
    """Of what was left out, the place in the source and name and reason."""
    return {
        place: f"{source.names[place]} ({why})"
        for chunk in chunks
        for place, why in chunk.bad.items()
    }


def _require_few(bad: dict[int, str], source: Encoded, limit: float, part: str) -> None:
    total = len(source.labels)
    if len(bad) > limit * total:
        raise UserError(
            f"data.bad_images: at least {len(bad)} of the {total} images of {part} cannot be "
            f"used, more than {limit:g} of all: {_named(bad)}"
        )


def _notes(chunks: list[_Chunk], bad: dict[int, str], source: Encoded, part: str) -> Iterator[str]:
    if bad:
        yield f"{part}: {len(bad)} of {len(source.labels)} images left out: {_named(bad)}"
    for count, kind in (
        (sum(chunk.cmyk for chunk in chunks), "CMYK"),
        (sum(chunk.sixteen_bit for chunk in chunks), "16-bit"),
    ):
        if count:
            yield f"{part}: {count} {kind} images converted to 8-bit RGB"


def _named(bad: dict[int, str]) -> str:
    text = ", ".join(list(bad.values())[:NAMED]) + (", ..." if len(bad) > NAMED else "")
    return text.encode(errors="backslashreplace").decode()  # names of files need not be Unicode
